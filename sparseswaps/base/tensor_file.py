"""Safetensors files that this project writes: a header that says what they hold, and a checksum of all of it."""

import json
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from sparseswaps.base.errors import BrokenFileError, InputError, one_line
from sparseswaps.base.files import write_atomically

if TYPE_CHECKING:  # importing torch takes a second, which the start of the workflow does without
    from torch import Tensor

UNREADABLE = (SafetensorError, TypeError, RuntimeError)  # what comes of a tensor that torch has no type or shape for
_MOST_HEADER = 20_000_000  # bytes that become 0.8 GB at worst; of 10,000 tensors they are about a million


def open_tensors(path: str | Path, framework: str = "pt", remedy: str = "copy, download or make it again") -> safe_open:
    """Open a safetensors file and check its header: its tensors fill the file, without gaps or overlaps.

    Raises BrokenFileError when it is not such a file.
    """
    try:
        with Path(path).open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
        if length <= _MOST_HEADER:
            return safe_open(path, framework=framework)
        error = f"its header is said to have {length} bytes"
    except (SafetensorError, OSError) as raised:
        error = one_line(raised)
    raise BrokenFileError(path, f"not a readable safetensors file ({error})", remedy)


def write_tensors(path: str | Path, tensors: dict[str, "Tensor"], header: dict[str, Any]) -> None:
    """Write tensors under a header of plain JSON, with a CRC-32 of all that the file holds.

    Raises InputError when the disk is full or read-only.
    """
    from safetensors.torch import save_file

    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    header = header | {"crc32": _checksum(tensors, header)}
    with write_atomically(path) as partial:
        try:  # one entry: safetensors writes several in any order, and equal content must be equal bytes
            save_file(tensors, partial, metadata={"sparseswaps": json.dumps(header, sort_keys=True)})
        except SafetensorError as error:
            raise InputError(f"{path}: cannot be written ({error}); make room and run snakemake again") from None


def _checksum(tensors: dict[str, "Tensor"], header: dict[str, str]) -> str:
    """The CRC-32 of everything that a file holds: quick beside reading it, and no single bit goes unnoticed."""
    import torch

    shapes = {name: [str(tensor.dtype), *tensor.shape] for name, tensor in tensors.items()}
    found = zlib.crc32(json.dumps([header, shapes], sort_keys=True).encode())
    for name in sorted(tensors):
        found = zlib.crc32(tensors[name].flatten().view(torch.uint8).numpy(), found)
    return f"{found:08x}"


def read_tensors(path: str | Path) -> tuple[dict[str, "Tensor"], dict[str, str]]:
    with open_tensors(path, remedy=BrokenFileError.RERUN) as file:
        try:
            header = json.loads((file.metadata() or {})["sparseswaps"])
            written = header.pop("crc32")
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError):  # not by `write_tensors`
            return {}, {}
        try:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            same = written == _checksum(tensors, header)
        except UNREADABLE:
            same = False
    if not same:
        raise BrokenFileError(path, "its content is not what was written (a fault of a disk or a copy)")
    return tensors, header
