import copy
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from random import Random

import pytest
import torch
from helpers import attempt, refusal
from safetensors.torch import load_file

from sparseswaps.base.tensor_file import open_tensors, read_header, read_tensors, write_tensors
from sparseswaps.model.checkpoint import Checkpoint

TENSORS = {"a": torch.arange(12).view(3, 4), "b": torch.arange(4).view(1, 4)}


@pytest.fixture
def path(tmp_path):
    """A file of this project that is also the single file of a model folder."""
    write_tensors(tmp_path / "model.safetensors", TENSORS, {"kind": "samples"})
    return tmp_path / "model.safetensors"


NUMBERS = (-1, 0, 1, 7, 2**31, 2**32, 2**62, 2**63, 2**64, 10**400, 1.5, 1e308, "8", None, True, [], {})
WORDS = ("", "F31", "f32", "F64", "F4", "F6_E2M3", "F8_E8M0", "C64", "BOOL", "\0", "a\nb", 5, None, ["F32"])
GARBAGE = (b"", b"null", b"[]", b"{}", b'"x"', b"NaN", b"{", b"\xff\xfe{}", b"\xef\xbb\xbf{}", b"{'a': 1}")
OURS = ('{"crc32": "0"}', '{"crc32": 0}', '["crc32"]', "crc32", "5", "null", "[" * 100_000, "1" * 5000)


def broken_headers(file: bytes, seed: int) -> Iterator[bytes]:
    """Yield files without end that have something wrong in the header of a file, or in the header's length."""
    random, length = Random(seed), int.from_bytes(file[:8], "little")
    header, data = file[8 : 8 + length], file[8 + length :]
    lengths = [0, 1, 7, length - 1, length + 1, len(file) - 8, len(file), 2**24, 2**31, 2**40, 2**63, 2**64 - 1]
    while True:
        broken, size = bytearray(header), None
        kind = random.choice(["cut", "length", "flip", "garbage", "repeat", "value", "value", "value"])
        if kind == "cut":
            yield file[: random.randrange(random.choice([len(file), 12 + length]))]
            continue
        if kind == "length":
            size = random.choice([*lengths, random.randrange(2 * len(file))])
        elif kind == "flip":
            for _ in range(random.randint(1, 4)):
                broken[random.randrange(length)] ^= 1 << random.randrange(8)
        elif kind == "garbage":
            depth = random.choice([50, 500, 100_000])
            broken = random.choice([*GARBAGE, b"[" * depth, b'{"a":' * depth, random.randbytes(40)])
        elif kind == "repeat":  # a key that is there twice
            name, other = random.choices(list(json.loads(header)), k=2)
            entry = json.dumps({name: json.loads(header)[other]}).encode()
            broken = header.rstrip()[:-1] + b", " + entry[1:]
        else:
            broken = json.dumps(with_wrong_values(json.loads(header), len(data), random)).encode()
        yield (len(broken) if size is None else size).to_bytes(8, "little") + broken + data


def with_wrong_values(content: dict, size: int, random: Random) -> dict:
    """Put wrong values, or values of another tensor, into a header whose tensors have `size` bytes."""
    whole = copy.deepcopy(content)
    for _ in range(random.randint(1, 2)):
        name, other = random.choices(list(TENSORS), k=2)
        begin, end = whole[other]["data_offsets"]
        spans = [[end, begin], [begin, end], [begin + 8, end + 8], [begin, end + 8], [begin, end - 8], [begin]]
        spans += [[-8, end], [begin, size + 8], [begin, random.choice(NUMBERS)]]
        shape = [random.choice([0, 1, 2, 16, 2**32, *NUMBERS]) for _ in range(random.randint(0, 4))]
        metadata = [{"a": 1}, {"a": None}, {"a": {"b": "c"}}, {}, *({"sparseswaps": text} for text in OURS)]
        entry, target = content.get(name), content
        if random.random() < 0.7 and isinstance(entry, dict):
            target = entry
            values = {"data_offsets": [*spans, *NUMBERS], "shape": [shape, shape, *NUMBERS], "dtype": WORDS}
            values["more"] = NUMBERS
        else:
            values = {name: [*NUMBERS, *WORDS], "": [entry], "__metadata__": [*NUMBERS, *metadata]}
        key = random.choice(list(values))
        target[key] = random.choice(values[key])
    if random.random() < 0.1:
        del content[random.choice(list(content))]
    return content


def test_a_broken_header_is_refused_in_one_line_or_changes_nothing(path):
    refused = 0
    for file in islice(broken_headers(path.read_bytes(), seed=0), 1000):
        path.write_bytes(file)
        content, line = attempt(lambda path=path: read_tensors(path))
        header, alone = attempt(lambda path=path: read_header(path))
        assert header in (None, {}) or set(header) >= {"crc32"}
        hashes, other = attempt(Checkpoint(path.parent).hashes)
        for text in filter(None, (line, alone, other)):
            assert str(path) in text
            assert "\n" not in text
        if content not in (None, ({}, {})):  # the header of another program gives empty dicts
            assert all(torch.equal(content[0][name], tensor) for name, tensor in TENSORS.items())
        if hashes is not None:  # nothing overlaps, and nothing is left over
            size = sum(tensor.nbytes for tensor in load_file(path).values())
            assert size == len(file) - 8 - int.from_bytes(file[:8], "little")
        refused += line is not None
    assert refused > 600


REFUSE = """
import sys
from pathlib import Path
from sparseswaps.base.errors import InputError
from sparseswaps.base.tensor_file import open_tensors
try:
    open_tensors(sys.argv[1])
except InputError:
    lines = Path("/proc/self/status").read_text().splitlines()
    print(next(line.split()[1] for line in lines if line.startswith("VmHWM")))
"""
SIZE = 19_900_000  # bytes of a header, a little less than the most that is read


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    "header",
    [
        b'{"a": {"dtype": "I64", "shape": [' + b"1," * (SIZE // 2) + b'1], "data_offsets": [0, 8]}}',
        b'{"__metadata__": {' + b'"":"",' * (SIZE // 6) + b'"": 1}}',
        b"[" + b"{}," * (SIZE // 3) + b"{}]",
    ],
    ids=["shape", "metadata", "list"],
)
def test_a_header_of_many_small_things_takes_less_than_a_gigabyte(header, tmp_path):
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    command = [sys.executable, "-c", REFUSE, str(tmp_path / "x.safetensors")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert 1024 * int(done.stdout) < 2**30


def test_a_longer_header_than_any_model_has_is_not_read(path):
    path.write_bytes((20_000_001).to_bytes(8, "little") + b"{")
    os.truncate(path, 30_000_000)
    assert "20000001" in refusal(open_tensors, path)


@pytest.mark.parametrize(("dtype", "shape", "size"), [("F6_E2M3", [8], 6), ("F32", [0, 2**63], 0)])
def test_a_tensor_that_torch_does_not_know_is_refused(dtype, shape, size, path):
    entry = {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}
    header = json.dumps({"odd": entry, "__metadata__": {"sparseswaps": '{"crc32": "00000000"}'}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * size)
    assert "odd" in refusal(lambda path: Checkpoint(path.parent).hashes(), path)
    refusal(read_tensors, path)
