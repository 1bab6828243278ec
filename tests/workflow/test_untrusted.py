"""Files of others, and files that were damaged: one line that names them, quickly, and nothing in them is run."""

import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from helpers import tiny_study
from safetensors.torch import load_file

from sparseswaps.base.errors import InputError
from sparseswaps.base.files import read_csv, read_json, write_csv, write_json
from sparseswaps.calibration.grams import Grams
from sparseswaps.model.checkpoint import Checkpoint
from sparseswaps.model.description import Model
from sparseswaps.model.directory import check_files, read_config
from sparseswaps.model.layers import Layer
from sparseswaps.model.mask_file import read_mask_file
from sparseswaps.workflow.artifacts import (
    new_weights,
    read_grams,
    read_masks,
    read_model,
    read_samples,
    write_grams,
    write_masks,
    write_model,
    write_samples,
    write_weights,
)
from sparseswaps.workflow.config import load_study

LAYER = Layer(name="proj", tensor="0.proj.weight", parameter="proj.weight", d_out=3, d_in=16)
MODEL = Model("folder", [[LAYER]], [], {LAYER.tensor: "0" * 64}, {}, source="org/name")
REMEDY = "delete it and run snakemake again"


# --- Headers of safetensors files ---------------------------------------------------------------------------------


def broken_headers(file: bytes, seed: int):
    """Ever other files with something wrong in the header of this one, or in how long it is."""
    draw = random.Random(seed)
    length = int.from_bytes(file[:8], "little")
    header, data = file[8 : 8 + length], file[8 + length :]
    numbers = [-1, 0, 1, 7, 2**31, 2**32, 2**62, 2**63, 2**64, 10**400, 1.5, 1e308, "8", None, True, [], {}]
    words = ["", "F31", "f32", "F64", "F4", "F6_E2M3", "F8_E8M0", "C64", "BOOL", "\0", "a\nb", 5, None, ["F32"]]
    garbage = [b"", b"null", b"[]", b"{}", b'"x"', b"NaN", b"{", b"\xff\xfe{}", b"\xef\xbb\xbf{}", b"{'a': 1}"]

    def as_file(header: bytes, said: int | None = None) -> bytes:
        return (len(header) if said is None else said).to_bytes(8, "little") + header + data

    def cut() -> bytes:
        return file[: draw.randrange(len(file)) if draw.random() < 0.5 else draw.randrange(12 + length)]

    def wrong_length() -> bytes:
        far = [0, 1, 7, length - 1, length + 1, len(file) - 8, len(file), 2**24, 2**31, 2**40, 2**63, 2**64 - 1]
        return as_file(header, draw.choice([*far, draw.randrange(2 * len(file))]))

    def flipped() -> bytes:
        found = bytearray(header)
        for _ in range(draw.randint(1, 4)):
            found[draw.randrange(length)] ^= 1 << draw.randrange(8)
        return as_file(bytes(found))

    def no_header() -> bytes:
        depth = draw.choice([50, 500, 100_000])
        return as_file(draw.choice([*garbage, b"[" * depth, b'{"a":' * depth, draw.randbytes(40)]))

    def nonsense() -> bytes:
        content = json.loads(header)
        for _ in range(draw.randint(1, 2)):
            name, other = draw.choices(["calibration", "held_out"], k=2)
            begin, end = json.loads(header)[other]["data_offsets"]
            spans = [[end, begin], [begin, end], [begin + 8, end + 8], [begin, end + 8], [begin, end - 8], [begin]]
            spans += [[-8, end], [begin, len(data) + 8], [begin, draw.choice(numbers)], [draw.choice(numbers), end]]
            shape = [draw.choice([0, 1, 2, 16, 2**32, *numbers]) for _ in range(draw.randint(0, 4))]
            metadata = [{"a": 1}, {"a": None}, {"a": {"b": "c"}}, {}]
            ours = ['{"crc32": "0"}', '{"crc32": 0}', '["crc32"]', "crc32", "5", "null", "[" * 100_000, "1" * 5000]
            metadata += [{"sparseswaps": text} for text in ours]
            entry = content.get(name)
            if draw.random() < 0.7 and isinstance(entry, dict):
                values = {"data_offsets": [*spans, *numbers], "shape": [shape, shape, *numbers]}
                values |= {"dtype": words, "more": numbers}
                key = draw.choice(list(values))
                entry[key] = draw.choice(values[key])
            else:
                choices = {name: [*numbers, *words], "": [entry], "__metadata__": [*numbers, *metadata]}
                key = draw.choice(list(choices))
                content[key] = draw.choice(choices[key])
        if draw.random() < 0.1:
            del content[draw.choice(list(content))]
        return as_file(json.dumps(content).encode())

    def twice() -> bytes:
        content = json.loads(header)
        name = draw.choice(list(content))
        other = json.dumps(content[draw.choice(list(content))])
        return as_file(header.rstrip()[:-1] + f", {json.dumps(name)}: {other}}}".encode())

    while True:
        yield draw.choice([cut, wrong_length, flipped, no_header, nonsense, nonsense, nonsense, twice])()


def slow_headers():
    """Headers that are as long as they may be, and costly to read: many small things."""
    size = 19_900_000
    shape = b'{"a": {"dtype": "I64", "shape": [' + b"1," * (size // 2) + b'1], "data_offsets": [0, 8]}}'
    for header in (
        shape,
        b'{"__metadata__": {' + b'"":"",' * (size // 6) + b'"": 1}}',
        b"[" + b"{}," * (size // 3) + b"{}]",
    ):
        yield len(header).to_bytes(8, "little") + header


def read_all(folder: Path, original: dict[str, torch.Tensor]) -> str:
    """What the readers make of `model.safetensors`, as a model's weights and as an artifact."""
    path, outcome = folder / "model.safetensors", "refused"
    readers = [check_files, lambda folder: Checkpoint(folder).hashes()]
    readers += [lambda _: read_samples(path, MODEL), lambda _: read_mask_file(path)]
    for number, reader in enumerate(readers):
        result, error = tried(lambda reader=reader: reader(folder))
        if error is not None:
            assert str(path) in error, error
            assert "\n" not in error, error
        else:
            outcome = "read"
            if number == 1:  # nothing overlaps, and nothing is left over
                length = int.from_bytes(path.read_bytes()[:8], "little")
                tensors = load_file(path).values()
                assert sum(t.numel() * t.element_size() for t in tensors) == path.stat().st_size - 8 - length
            assert number < 2 or all(torch.equal(*pair) for pair in zip(result, original.values(), strict=True))
    return outcome


def tried(read):
    """What a reader returns, and what it says where it refuses."""
    try:
        return read(), None
    except InputError as error:
        return None, str(error)


def fuzz(folder: Path, count: int) -> None:
    """Read so many broken files; print what came of them, the seconds of the slowest, and the peak memory in bytes."""
    tensors = {"calibration": torch.arange(12).view(3, 4), "held_out": torch.arange(4).view(1, 4)}
    path = folder / "model.safetensors"
    write_samples(path, *tensors.values(), MODEL, "key")
    whole = path.read_bytes()
    assert read_samples(path, MODEL)[0].equal(tensors["calibration"])
    files, outcomes, slowest = broken_headers(whole, seed=0), [], 0.0
    for file in islice(files, count):
        path.write_bytes(file)
        began = time.process_time()
        outcomes.append(read_all(folder, tensors))
        slowest = max(slowest, time.process_time() - began)
    for file in slow_headers():
        path.write_bytes(file)
        seconds = []
        for _ in range(3):  # on a busy machine, one may be slow by chance
            began = time.process_time()
            with pytest.raises(InputError, match="not a readable safetensors file"):
                Checkpoint(folder).shapes()
            seconds.append(time.process_time() - began)
        slowest = max(slowest, min(seconds))
    # Of this process alone: getrusage counts from what its parent held, and the tests beside this one hold much.
    memory = 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])
    counts = {outcome: outcomes.count(outcome) for outcome in sorted(set(outcomes))}
    print(json.dumps({"outcomes": counts, "slowest": slowest, "memory": memory}))


def test_a_thousand_broken_headers_are_refused_in_a_second_and_a_gigabyte(tmp_path):
    command = [sys.executable, __file__, str(tmp_path), "1000"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["slowest"] < 1, found
    assert found["memory"] < 2**30, found
    assert found["outcomes"]["refused"] > 600, found  # what is left of the others is sound


def test_a_longer_header_than_any_model_has_is_not_looked_at(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes((20_000_001).to_bytes(8, "little") + b"{")
    os.truncate(path, 30_000_000)
    with pytest.raises(InputError, match="its header is said to have 20000001 bytes"):
        check_files(tmp_path)


@pytest.mark.parametrize(("dtype", "shape", "size"), [("F6_E2M3", [8], 6), ("F32", [0, 2**63], 0)])
def test_a_tensor_that_is_sound_but_for_torch_is_named(dtype, shape, size, tmp_path):
    entry = {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}
    header = json.dumps({"x": entry, "__metadata__": {"sparseswaps": '{"crc32": "00000000"}'}}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * size)
    assert "torch cannot read tensor x" in refusal(lambda _: Checkpoint(tmp_path).hashes(), path)
    assert "its content is not what was written" in refusal(lambda _: read_samples(path, MODEL), path)


# --- Artifacts ----------------------------------------------------------------------------------------------------


def artifacts(folder: Path, model: Model) -> dict:
    """An artifact of every kind in a folder: its path, and how a job reads it, by kind."""
    matrix = torch.arange(256.0).view(16, 16)
    grams = Grams(
        {"proj": "proj"}, {"proj": matrix}, {"proj": torch.ones(16).double()}, {"proj": matrix.T + 1}, {"proj": 4}
    )
    mask = torch.rand(3, 16, generator=torch.Generator().manual_seed(0)) < 0.5
    write_model(folder / "model.json", model)
    write_samples(folder / "samples.safetensors", torch.ones(2, 4).long(), torch.zeros(1, 4).long(), model, "key")
    write_grams(folder / "gram.safetensors", grams, model, "key")
    write_masks(folder / "mask.safetensors", [("proj", mask)], model, "key")
    write_weights(folder / "weights.safetensors", {"proj": torch.ones(3, 16).bfloat16()}, model, "key")
    write_masks(folder / "masks.safetensors", [(LAYER.tensor, mask)], model, "key", base=model.base)
    write_csv(folder / "losses.csv", [{"block": 0, "layer": "proj", "loss_after": 0.25}] * 2)
    write_json(folder / "perplexity.json", {"perplexity": 2.5})
    readers = {
        "model.json": lambda path: read_model(path),
        "samples.safetensors": lambda path: read_samples(path, MODEL),
        "gram.safetensors": lambda path: read_grams(path, MODEL),
        "mask.safetensors": lambda path: read_masks(path, MODEL),
        "weights.safetensors": lambda path: new_weights([str(path)], MODEL)(LAYER.tensor),
        "masks.safetensors": lambda path: read_mask_file(path),
        "losses.csv": lambda path: read_csv(path),
        "perplexity.json": lambda path: read_json(path),
    }
    return {name: (folder / name, reader) for name, reader in readers.items()}


KINDS = ["model.json", "samples.safetensors", "gram.safetensors", "mask.safetensors", "weights.safetensors"]
KINDS += ["masks.safetensors", "losses.csv", "perplexity.json"]
TENSORS = [kind for kind in KINDS if kind.endswith(".safetensors")]


@pytest.fixture
def model(tiny_model, tmp_path):
    """A copy of the tiny model, to be spoilt."""
    return shutil.copytree(tiny_model, tmp_path / "model")


@pytest.fixture
def described(tiny_model):
    """The model of the artifacts, with weights that are there."""
    return replace(MODEL, folder=str(tiny_model))


def refusal(read, path: Path) -> str:
    """What a reader says of a file: one line that names it."""
    with pytest.raises(InputError) as error:
        read(path)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(f"{path}: ")
    return str(error.value)


@pytest.mark.parametrize("kind", KINDS)
def test_a_truncated_or_empty_artifact_is_named(kind, described, tmp_path):
    path, read = artifacts(tmp_path, described)[kind]
    whole = path.read_bytes()
    read(path)
    cuts = {0, 1, 7, 8, len(whole) // 3, len(whole) // 2, len(whole) - 9, len(whole) - 2}
    for size in cuts:
        path.write_bytes(whole[:size])
        assert REMEDY in refusal(read, path)


def says_what_it_is(file: bytes) -> bool:
    """Whether a file's header can still be read as that of an artifact."""
    try:
        header = json.loads(file[8 : 8 + int.from_bytes(file[:8], "little")])
        return "crc32" in json.loads(header["__metadata__"]["sparseswaps"])
    except (ValueError, KeyError):
        return False


@pytest.mark.parametrize("kind", ["model.json", *TENSORS])
def test_no_flipped_bit_goes_unnoticed(kind, described, tmp_path):
    path, read = artifacts(tmp_path, described)[kind]
    whole = path.read_bytes()
    bits = range(0, 8 * len(whole), 8 * len(whole) // 400 | 1)
    for bit in bits:
        broken = bytearray(whole)
        broken[bit // 8] ^= 1 << bit % 8
        path.write_bytes(broken)
        message = refusal(read, path)
        anybodys = kind == "masks.safetensors" and not says_what_it_is(bytes(broken))
        assert REMEDY in message or (anybodys and "not the mask file of a whole model" in message)


@pytest.mark.parametrize("kind", TENSORS[:-1])
def test_an_artifact_of_another_model_is_named(kind, described, tmp_path):
    other = replace(described, tensors={LAYER.tensor: "1" * 64})
    path, read = artifacts(tmp_path, other)[kind]
    assert f"belongs to another model than org/name, which model.json describes; {REMEDY}" in refusal(read, path)


def test_an_artifact_of_another_kind_is_named(described, tmp_path):
    found = artifacts(tmp_path, described)
    message = refusal(found["mask.safetensors"][1], found["gram.safetensors"][0])
    assert message.endswith(f"holds grams, not masks; {REMEDY}")


@pytest.mark.parametrize("size", [0, 5, 300, -2])
def test_a_truncated_checkpoint_is_named_when_it_is_evaluated(model, size):
    from sparseswaps.model.loading import load_model

    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    assert "copy, download or make it again" in refusal(lambda _: load_model(str(model), "cpu"), path)


# --- Paths and names ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        *["../model.safetensors", "{}/model.safetensors", "..", ".", "", "a/../model.safetensors", "a\\b.safetensors"],
        *["x" * 300 + ".safetensors", "\0.safetensors", "\ud800.safetensors", "pytorch_model.bin", None, 5, ["a"]],
    ],
)
def test_an_index_names_files_of_its_own_folder(model, name):
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    shutil.copyfile(model / "pytorch_model.bin", model.parent / "model.safetensors")
    name = name.format(model.parent) if isinstance(name, str) else name
    index = model / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"a": name}}))
    refusal(lambda _: check_files(model), index)


NAMES = ["../x", "a/b", "..", ".hidden", "", "x" * 81, "x\n", "x\0", "-x", "x y"]
PLACES = ["name", "models", "calibrations", "refinements", "reconstructions", "evaluation.perplexity"]


@pytest.mark.parametrize(
    ("place", "name"), [("models", name) for name in NAMES] + [(place, "../x") for place in [*PLACES, "patterns"]]
)
def test_names_that_become_folders_stay_in_theirs(tiny_model, place, name):
    config = tiny_study(tiny_model)
    if place == "name":
        config["name"] = name
    elif place == "patterns":
        config["patterns"] = [{"name": name, "sparsity": "60%", "owl": {}}]
    elif place == "evaluation.perplexity":
        config["evaluation"]["perplexity"] = {name: {"text": "embedded", "seqlen": 32}}
    else:
        config[place] = {name: next(iter(config.get(place, {"": {}}).values()))}
    with pytest.raises(InputError) as error:
        load_study(config)
    assert str(error.value).startswith(f"config key {place}")
    assert "\n" not in str(error.value)
    assert repr(name)[:70] in str(error.value)


# --- What else a model's folder may hold --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"transformers_weights": "pytorch_model.bin"}', "transformers_weights names other weights"),
        ('{"attn_implementation": "org/code"}', "attn_implementation names code on the hub"),
        ('{"text_config": {"_attn_implementation": "org/code@main"}}', "attn_implementation names code on the hub"),
        ('{"experts_implementation": {"": "org/code"}}', "experts_implementation names code on the hub"),
        ("[" * 100_000, "not valid JSON"),
        ('{"num_hidden_layers": ' + "1" * 5000 + "}", "not valid JSON"),
        ("\0", "not valid JSON"),
    ],
)
def test_a_configuration_that_leads_elsewhere_is_refused(content, message, tmp_path):
    (tmp_path / "config.json").write_text(content)
    assert message in refusal(lambda _: read_config(tmp_path), tmp_path / "config.json")


def test_an_adapter_is_refused(model):
    (model / "adapter_config.json").write_text('{"base_model_name_or_path": "../other"}')
    with pytest.raises(InputError, match="holds an adapter"):
        read_config(model)


def test_nothing_in_a_models_folder_is_run(model, tmp_path, monkeypatch):
    from sparseswaps.model.description import describe
    from sparseswaps.model.loading import load_model, load_tokenizer

    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    for name in ("pytorch_model.bin", "training_args.bin", "adapter_model.bin", "tokenizer.pkl"):
        torch.save(Trap(), model / name)
    (model / "own.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'sprung')!r})\n")
    load_model(str(model), "cpu")
    load_tokenizer(str(model))
    describe(model)
    for name, key in (("config.json", "AutoModelForCausalLM"), ("tokenizer_config.json", "AutoTokenizer")):
        content = read_json(model / name) | {"auto_map": {key: "own.Own", "AutoConfig": "own.Own"}}
        write_json(model / name, content)
    for read in (lambda: load_model(str(model), "cpu"), lambda: load_tokenizer(str(model)), lambda: describe(model)):
        _, error = tried(read)
        assert error is None or "trust_remote_code: true" in error
    assert not (tmp_path / "sprung").exists()


def test_a_broken_tokenizer_is_named(model):
    from sparseswaps.model.loading import load_tokenizer

    for content in ("", "{}", "[" * 100_000, '{"model": 5}'):
        (model / "tokenizer.json").write_text(content)
        with pytest.raises(InputError, match="transformers finds no tokenizer in it"):
            load_tokenizer(str(model))


if __name__ == "__main__":
    fuzz(Path(sys.argv[1]), int(sys.argv[2]))
