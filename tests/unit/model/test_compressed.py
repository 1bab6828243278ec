import json
import shutil
import subprocess
import sys
from math import comb

import pytest
import torch
from families import families, tiny, tokens
from helpers import REPOSITORY
from safetensors.torch import load_file, save_file

import sparseswaps
from sparseswaps.base.errors import InputError
from sparseswaps.layer.masks import keep_best
from sparseswaps.layer.pattern import parse_pattern
from sparseswaps.model.blocks import find_blocks, find_layers
from sparseswaps.model.compressed import ENDING, POSITIONS, VALUES, digits_of_word, read_compressed, sets_of_positions


def raw(tensor):
    return tensor.contiguous().flatten().view(torch.uint8)


def pruned(config, pattern):
    model = tiny(config)
    for block, layers in zip(find_blocks(model)[1], find_layers(model), strict=True):
        for layer in layers:
            weight = layer.view_in(block.get_parameter(layer.parameter).data)
            weight.masked_fill_(~keep_best(weight.abs(), parse_pattern(pattern)), 0)
    return model


def write(folder, tensors):
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@families
def test_any_family_loads_bit_by_bit(config, tmp_path):
    model = pruned(config, "2:4").to(torch.bfloat16)
    model.save_pretrained(tmp_path / "pruned")
    sparseswaps.compress(tmp_path / "pruned", tmp_path / "compressed")
    options = {"dtype": torch.bfloat16, "attn_implementation": "eager", "experts_implementation": "eager"}
    loaded = sparseswaps.load_compressed(tmp_path / "compressed", **options)
    plain = type(model).from_pretrained(tmp_path / "pruned", **options)
    expected = plain.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(raw(tensor), raw(expected[name])) for name, tensor in loaded.state_dict().items())
    with torch.no_grad():
        assert torch.equal(loaded(tokens(2, 0)).logits, plain(tokens(2, 0)).logits)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("pattern", "bits"),  # of a weight's position, of words as full as they can be
    [("60%", 1), ("2:4", 64 / 96), ("1:4", 64 / 124), ("4:8", 64 / 80), ("6:8", 64 / 104)],
)
def test_a_matrix_takes_the_bytes_of_its_kept_values_and_positions(pattern, bits, dtype, tmp_path):
    parsed = parse_pattern(pattern)
    size, kept = parsed.groups(960)
    weight = torch.randn(832, 960, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype) + 9
    weight[~keep_best(torch.randn(832, 960), parsed)] = 0
    sparseswaps.compress(write(tmp_path / "model", {"w": weight}), tmp_path / "out")
    pieces = load_file(tmp_path / "out" / f"model{ENDING}")
    assert sum(piece.nbytes for piece in pieces.values()) == pytest.approx(
        weight.numel() * (kept / size * weight.itemsize + bits / 8), rel=1e-3
    )
    assert torch.equal(dict(read_compressed(tmp_path / "out"))["w"], weight)


def test_every_bit_is_kept(tmp_path):
    few = torch.zeros(64, 64)
    few[0, :7] = torch.tensor([-0.0, float("nan"), float("inf"), 1e-45, -1.0, 0.0, 2.0])
    short = torch.zeros(64, 32)  # 2:4, but for one group with a zero in the place of a kept weight
    short.view(-1, 4)[:, [1, 3]] = 1.0
    short.view(-1, 4)[100, 3] = 0.0
    tensors = {
        "few": few,
        "short": short,
        "zeros": torch.zeros(8, 8, dtype=torch.bfloat16),
        "dense": torch.ones(5, 7, dtype=torch.float16),
        "odd": torch.zeros(3, 5, dtype=torch.bfloat16),  # 30 bytes: no whole words
        "norm": torch.ones(3),
        "count": torch.tensor(7),
        "flags": torch.tensor([True, False, True]),
        "ünïcode": torch.zeros(2, 8),
    }
    sparseswaps.compress(write(tmp_path / "model", tensors), tmp_path / "out")
    read = dict(read_compressed(tmp_path / "out"))
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert read[name].shape == tensor.shape
        assert torch.equal(raw(read[name]), raw(tensor)), name
    pieces = load_file(tmp_path / "out" / f"model{ENDING}")
    assert {"dense", "odd", "norm", "count", "flags", f"few{VALUES}", f"short{POSITIONS}"} <= pieces.keys()


@pytest.mark.parametrize(("n", "m"), [(n, m) for m in (4, 8) for n in range(1, m)] + [(8, 16), (15, 16)])
def test_words_hold_as_many_numbers_as_fit(n, m):
    digits = digits_of_word(n, m)
    assert comb(m, n) ** digits <= 2**63 < comb(m, n) ** (digits + 1)
    sets = sets_of_positions(n, m)
    assert sets.shape == (comb(m, n), m)
    assert (sets.sum(1) == n).all()
    assert len(torch.unique(sets, dim=0)) == len(sets)


def test_the_reader_is_one_file_that_needs_nothing_of_this_package(tmp_path):
    sparseswaps.compress(write(tmp_path / "model", {"w": torch.zeros(8, 8)}), tmp_path / "out")
    shutil.copy(REPOSITORY / "sparseswaps" / "model" / "compressed.py", tmp_path / "reader.py")
    code = "import sys, reader; print(dict(reader.read_compressed('out')), 'sparseswaps' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ran.stdout.startswith("{'w': tensor(")
    assert ran.stdout.endswith("False\n")


def test_what_is_no_compressed_checkpoint_is_named(tmp_path):
    folder = write(tmp_path / "model", {"w": torch.zeros(64, 64)})
    with pytest.raises(ValueError, match="model: holds no"):
        dict(read_compressed(folder))
    with pytest.raises(InputError, match="exists"):
        sparseswaps.compress(folder, folder)
    sparseswaps.compress(folder, tmp_path / "out")
    path = tmp_path / "out" / f"model{ENDING}"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="checksum mismatch in w"):
        dict(read_compressed(tmp_path / "out"))


def test_the_header_says_what_is_stored(tmp_path):
    weight = torch.zeros(4, 16)
    weight.view(-1, 4)[:, :2] = 1
    sparseswaps.compress(write(tmp_path / "model", {"w": weight}), tmp_path / "out")
    with (tmp_path / "out" / f"model{ENDING}").open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    entry = json.loads(header["__metadata__"]["sparse"])["w"]
    assert (length % 8, entry["shape"], entry["groups"]) == (0, [4, 16], [2, 4])
