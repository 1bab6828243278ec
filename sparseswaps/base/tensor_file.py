"""Safetensors files. The files of this project have a header that describes them, and a checksum of everything."""

import json
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from sparseswaps.base.errors import BrokenFileError, InputError, one_line
from sparseswaps.base.files import write_atomically

if TYPE_CHECKING:  # the start of the workflow does not need torch, which takes a second to import
    from torch import Tensor

UNREADABLE = (SafetensorError, TypeError, RuntimeError)  # raised for a tensor whose type or shape torch does not know
_MOST_HEADER = 20_000_000  # bytes; they take 0.8 GB of memory at worst. The header of 10,000 tensors has about 1 MB


def open_tensors(path: str | Path, framework: str = "pt", remedy: str = "copy, download or make it again") -> safe_open:
    """Open a safetensors file.

    Raises BrokenFileError when the file is not in safetensors format, or its tensors leave gaps or overlap.
    """
    try:
        with Path(path).open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
        if length <= _MOST_HEADER:
            return safe_open(path, framework=framework)
        error = f"it announces a header of {length} bytes"
    except (SafetensorError, OSError) as raised:
        error = one_line(raised)
    raise BrokenFileError(path, f"not a readable safetensors file ({error})", remedy)


def write_tensors(path: str | Path, tensors: dict[str, "Tensor"], header: dict[str, Any]) -> None:
    """Write tensors under a header of plain JSON, with a CRC-32 of both. Raises as `write_atomically` does."""
    from safetensors.torch import save_file

    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    header = header | {"crc32": _checksum(tensors, header)}
    with write_atomically(path) as partial:
        try:  # one entry: safetensors writes entries in any order, but equal content must give equal bytes
            save_file(tensors, partial, metadata={"sparseswaps": json.dumps(header, sort_keys=True)})
        except SafetensorError as error:
            raise InputError(f"{path}: cannot be written ({error}); make room and run the same command again") from None


def _checksum(tensors: dict[str, "Tensor"], header: dict[str, Any]) -> str:
    """Return the CRC-32 of header, names, shapes, dtypes and values. It takes less time than reading the file."""
    import torch

    shapes = {name: [str(tensor.dtype), *tensor.shape] for name, tensor in tensors.items()}
    checksum = zlib.crc32(json.dumps([header, shapes], sort_keys=True).encode())
    for name in sorted(tensors):
        checksum = zlib.crc32(tensors[name].flatten().view(torch.uint8).numpy(), checksum)
    return f"{checksum:08x}"


def read_tensors(path: str | Path, remedy: str = BrokenFileError.RERUN) -> tuple[dict[str, "Tensor"], dict[str, str]]:
    """Read the tensors and the header that `write_tensors` wrote; both are empty if another program wrote the file.

    Raises BrokenFileError, with `remedy` as what to do, when the file was damaged or edited.
    """
    with open_tensors(path, remedy=remedy) as file:
        header = _header_of(file)
        if not header:
            return {}, {}
        written = header.pop("crc32")
        try:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            same = written == _checksum(tensors, header)
        except UNREADABLE:
            same = False
    if not same:
        raise BrokenFileError(path, "checksum mismatch: the file was damaged or edited", remedy)
    return tensors, header


def read_header(path: str | Path) -> dict[str, Any]:
    """Read the header that `write_tensors` wrote, unchecked and without torch; empty if another program wrote the file.

    Raises BrokenFileError when the file is not in safetensors format.
    """
    with open_tensors(path, "np", BrokenFileError.RERUN) as file:
        return _header_of(file)


def _header_of(file: safe_open) -> dict[str, Any]:
    try:
        header = json.loads((file.metadata() or {})["sparseswaps"])
    except (KeyError, ValueError, RecursionError):
        header = None
    return header if isinstance(header, dict) and "crc32" in header else {}  # else another program's file
