import json
import os
import random
import subprocess
import sys
from itertools import islice

import pytest
import torch
from helpers import attempt, refusal
from safetensors.torch import load_file

from sparseswaps.base.tensor_file import open_tensors, read_tensors, write_tensors
from sparseswaps.model.checkpoint import Checkpoint

TENSORS = {"a": torch.arange(12).view(3, 4), "b": torch.arange(4).view(1, 4)}


@pytest.fixture
def path(tmp_path):
    """A file of this project that is also the single file of a model folder."""
    write_tensors(tmp_path / "model.safetensors", TENSORS, {"kind": "samples"})
    return tmp_path / "model.safetensors"


class BrokenHeaders:
    """An endless series of files with something wrong in the header of one file, or in the header's length."""

    NUMBERS = (-1, 0, 1, 7, 2**31, 2**32, 2**62, 2**63, 2**64, 10**400, 1.5, 1e308, "8", None, True, [], {})
    WORDS = ("", "F31", "f32", "F64", "F4", "F6_E2M3", "F8_E8M0", "C64", "BOOL", "\0", "a\nb", 5, None, ["F32"])
    GARBAGE = (b"", b"null", b"[]", b"{}", b'"x"', b"NaN", b"{", b"\xff\xfe{}", b"\xef\xbb\xbf{}", b"{'a': 1}")
    OURS = ('{"crc32": "0"}', '{"crc32": 0}', '["crc32"]', "crc32", "5", "null", "[" * 100_000, "1" * 5000)

    def __init__(self, file: bytes, seed: int) -> None:
        self.file, self.random = file, random.Random(seed)
        self.length = int.from_bytes(file[:8], "little")
        self.header, self.data = file[8 : 8 + self.length], file[8 + self.length :]

    def __iter__(self):
        kinds = [self.cut, self.lie, self.flip, self.replace, self.twist, self.twist, self.twist, self.repeat]
        while True:
            yield self.random.choice(kinds)()

    def join(self, header: bytes, length: int | None = None) -> bytes:
        return (len(header) if length is None else length).to_bytes(8, "little") + header + self.data

    def cut(self) -> bytes:
        return self.file[: self.random.randrange(self.random.choice([len(self.file), 12 + self.length]))]

    def lie(self) -> bytes:
        """A wrong length."""
        lengths = [0, 1, 7, self.length - 1, self.length + 1, len(self.file) - 8, len(self.file)]
        lengths += [2**24, 2**31, 2**40, 2**63, 2**64 - 1, self.random.randrange(2 * len(self.file))]
        return self.join(self.header, self.random.choice(lengths))

    def flip(self) -> bytes:
        header = bytearray(self.header)
        for _ in range(self.random.randint(1, 4)):
            header[self.random.randrange(self.length)] ^= 1 << self.random.randrange(8)
        return self.join(bytes(header))

    def replace(self) -> bytes:
        depth = self.random.choice([50, 500, 100_000])
        return self.join(self.random.choice([*self.GARBAGE, b"[" * depth, b'{"a":' * depth, self.random.randbytes(40)]))

    def twist(self) -> bytes:
        """Wrong values in sound JSON."""
        choose, content = self.random.choice, json.loads(self.header)
        for _ in range(self.random.randint(1, 2)):
            name, other = self.random.choices(list(TENSORS), k=2)
            begin, end = json.loads(self.header)[other]["data_offsets"]
            spans = [[end, begin], [begin, end], [begin + 8, end + 8], [begin, end + 8], [begin, end - 8], [begin]]
            spans += [[-8, end], [begin, len(self.data) + 8], [begin, choose(self.NUMBERS)]]
            shape = [choose([0, 1, 2, 16, 2**32, *self.NUMBERS]) for _ in range(self.random.randint(0, 4))]
            metadata = [{"a": 1}, {"a": None}, {"a": {"b": "c"}}, {}, *({"sparseswaps": text} for text in self.OURS)]
            entry = content.get(name)
            if self.random.random() < 0.7 and isinstance(entry, dict):
                values = {"data_offsets": [*spans, *self.NUMBERS], "shape": [shape, shape, *self.NUMBERS]}
                values |= {"dtype": self.WORDS, "more": self.NUMBERS}
                key = choose(list(values))
                entry[key] = choose(values[key])
            else:
                values = {name: [*self.NUMBERS, *self.WORDS], "": [entry], "__metadata__": [*self.NUMBERS, *metadata]}
                key = choose(list(values))
                content[key] = choose(values[key])
        if self.random.random() < 0.1:
            del content[choose(list(content))]
        return self.join(json.dumps(content).encode())

    def repeat(self) -> bytes:
        """A key that is there twice."""
        content = json.loads(self.header)
        name, other = self.random.choices(list(content), k=2)
        more = f", {json.dumps(name)}: {json.dumps(content[other])}}}"
        return self.join(self.header.rstrip()[:-1] + more.encode())


def test_a_broken_header_is_refused_in_one_line_or_changes_nothing(path):
    refused = 0
    for file in islice(BrokenHeaders(path.read_bytes(), seed=0), 1000):
        path.write_bytes(file)
        content, line = attempt(lambda path=path: read_tensors(path))
        hashes, other = attempt(Checkpoint(path.parent).hashes)
        for text in filter(None, (line, other)):
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
