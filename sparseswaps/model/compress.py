"""Write a pruned checkpoint without its zeros: one bit a weight, or less for N:M, and the kept values."""

import json
import re
import shutil
import struct
from math import ceil, comb, prod
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from sparseswaps.base.errors import InputError
from sparseswaps.base.files import write_atomically
from sparseswaps.base.progress import Report, ignore_progress
from sparseswaps.base.tensor_file import open_tensors
from sparseswaps.layer.masks import pack
from sparseswaps.model.compressed import ENDING, POSITIONS, VALUES, checksum, digits_of_word, sets_of_positions
from sparseswaps.model.directory import INDEX, companion_files, weight_files

_GROUPS = (4, 8, 16)  # the M of the N:M patterns that are looked for
_FULL = 0.99  # the share of the groups' places that must be taken; the others store zeros
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes
_MOST_ENTRY = 400  # bytes of a tensor's two entries and its metadata in the header, beside its name


def compress(checkpoint: str | Path, out: str | Path, progress: Report = ignore_progress) -> None:
    """Write a checkpoint without the zeros of its weights. `load_compressed` then gives the same model bit by bit.

    In bfloat16, weights that are 60 % zeros take 46 % of their bytes, 2:4 takes 54 %. `sparseswaps/model/compressed.py`
    describes the format. Memory holds one tensor at a time.

    Args:
        checkpoint: a Hugging Face directory with safetensors files.
        out: the new folder. transformers alone finds no weights in it.
        progress: is told the number of tensors written, and their megabytes.

    Raises:
        InputError: `checkpoint` has no safetensors files or a broken one, or `out` exists or cannot be written.
    """
    source, out = Path(checkpoint), Path(out)
    if out.exists():
        raise InputError(f"{out}: exists; take another folder, or delete it")
    files, count, size = weight_files(source), 0, 0
    with write_atomically(out) as folder:
        folder.mkdir()
        for name in companion_files(source):
            if name != INDEX:  # names files that the new folder lacks
                shutil.copyfile(source / name, folder / name)
        for name in files:
            with open_tensors(source / name) as tensors, (folder / f"{Path(name).stem}{ENDING}").open("wb") as file:
                writer = _Writer(file, list(tensors.keys()))
                for tensor, dtype in _in_order(tensors):
                    value = tensors.get_tensor(tensor)
                    writer.add(tensor, value, dtype)
                    count, size = count + 1, size + value.nbytes
                    progress(count, size // 10**6)
                writer.finish()


def _in_order(tensors: safe_open) -> list[tuple[str, str]]:
    """Return the names and dtypes of a file's tensors. Those that are not whole words of eight bytes come last.

    torch cannot read a tensor that begins at a byte which is no multiple of its values' size.
    """
    dtypes, keys = {}, {}
    for name in tensors.keys():  # noqa: SIM118
        part = tensors.get_slice(name)
        dtypes[name] = part.get_dtype()
        itemsize = int((re.findall(r"\d+", dtypes[name]) or ["8"])[0]) // 8  # BOOL has a byte
        keys[name] = prod(part.get_shape()) * itemsize % 8 > 0, -itemsize
    return [(name, dtypes[name]) for name in sorted(keys, key=keys.get)]


class _Writer:
    """Writes a safetensors file tensor by tensor, and the header, which is the file's beginning, at the end."""

    def __init__(self, file: Any, names: list[str]) -> None:
        self.file, self.entries, self.table, self.position = file, {}, {}, 0
        self.room = 8 * ceil(sum(3 * len(json.dumps(name)) + _MOST_ENTRY for name in names) / 8) + 64
        file.seek(8 + self.room)

    def add(self, name: str, tensor: Tensor, dtype: str) -> None:
        """Write a tensor: in two pieces if these are smaller."""
        pieces = _pieces(tensor)
        if pieces is None:
            self._write(name, tensor, dtype)
            return
        positions, values, groups = pieces
        self._write(name + POSITIONS, positions, "I64")
        self._write(name + VALUES, values, dtype)
        self.table[name] = {"shape": list(tensor.shape), "groups": groups, "crc32": checksum(positions, values)}

    def _write(self, name: str, tensor: Tensor, dtype: str) -> None:
        self.file.write(tensor.contiguous().flatten().view(torch.uint8).numpy())
        offsets = [self.position, self.position + tensor.nbytes]
        self.entries[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": offsets}
        self.position = offsets[1]

    def finish(self) -> None:
        """Write the header. The room that is left in it is spaces, as the format allows."""
        metadata = {"format": "pt", "sparse": json.dumps(self.table)}
        header = json.dumps({"__metadata__": metadata, **self.entries}).encode()
        self.file.seek(0)
        self.file.write(struct.pack("<Q", self.room) + header.ljust(self.room))


def _pieces(tensor: Tensor) -> tuple[Tensor, Tensor, list[int] | None] | None:
    """Return a tensor's positions, its values and its N:M; None if it is not smaller in pieces.

    A value counts as zero if all its bits are zero, so -0.0 is kept.
    """
    if tensor.ndim < 2 or tensor.nbytes % 8:
        return None
    stored = tensor.contiguous().flatten().view(_INTEGERS[tensor.itemsize]) != 0
    groups = _groups(stored, tensor.shape[-1])
    if groups is None:
        positions = _pad(pack(stored)).view(torch.int64)
    else:
        stored = _fill(stored, *groups)
        positions = _pack_groups(stored, *groups)
    values = _pad(tensor.flatten()[stored])
    return (positions, values, groups) if positions.nbytes + values.nbytes < tensor.nbytes else None


def _pad(values: Tensor) -> Tensor:
    """Add zeros to a multiple of eight bytes."""
    return torch.nn.functional.pad(values, (0, -len(values) % (8 // values.itemsize)))


def _groups(stored: Tensor, d_in: int) -> list[int] | None:
    """Return the N:M whose groups are nearly full and whose positions take less than one bit a weight, or None."""
    for m in _GROUPS:
        if d_in % m == 0:
            n = int(stored.view(-1, m).sum(1).max())
            full = 0 < n < m and int(stored.sum()) >= _FULL * stored.numel() * n / m
            if full and digits_of_word(n, m) * m > 64:
                return [n, m]
    return None


def _fill(stored: Tensor, n: int, m: int) -> Tensor:
    """Store zeros as well where a group has less than N values: the leftmost ones."""
    grouped = stored.view(-1, m)
    missing = n - grouped.sum(1, keepdim=True)
    return (grouped | (~grouped & ((~grouped).cumsum(1) <= missing))).flatten()


def _pack_groups(stored: Tensor, n: int, m: int) -> Tensor:
    """Return the words of the groups' sets of positions."""
    sets, count = sets_of_positions(n, m), digits_of_word(n, m)
    weights = 2 ** torch.arange(m)
    numbers = torch.zeros(2**m, dtype=torch.int64)
    numbers[(sets * weights).sum(1)] = torch.arange(len(sets))
    digits = numbers[(stored.view(-1, m) * weights).sum(1)]
    digits = torch.nn.functional.pad(digits, (0, -len(digits) % count)).view(-1, count)
    return (digits * comb(m, n) ** torch.arange(count)).sum(1)
