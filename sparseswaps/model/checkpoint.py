"""Hugging Face checkpoints in safetensors: read lazily, described, written back with zeros, and checked."""

import hashlib
import json
import mmap
import shutil
import struct
import zlib
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparseswaps.base.errors import BrokenFileError, InputError, one_line
from sparseswaps.base.files import read_json, write_atomically, write_json
from sparseswaps.base.progress import Report, ignore_progress
from sparseswaps.base.tensor_file import UNREADABLE, open_tensors
from sparseswaps.model.directory import companion_files, weight_files

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_ABOUT = "sparseswaps.json"  # what a pruned checkpoint is, and the checksums of its other files


class Checkpoint:
    """The tensors of a model folder, read from its safetensors files one at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def files(self) -> dict[str, str]:
        """The name of the file that holds each tensor. Raises InputError when files are missing or broken."""
        files = {}
        for name in weight_files(self.folder):
            with open_tensors(self.folder / name) as file:
                files.update(dict.fromkeys(file.keys(), name))
        return files

    def tensor(self, name: str, expert: int | None = None) -> Tensor:
        """Read one tensor, or one expert's slice of it, to the CPU in its stored dtype.

        Raises InputError naming the tensor or its file.
        """
        if name not in self.files:
            raise InputError(f"{self.folder}: holds no tensor {name!r}")
        with open_tensors(self.folder / self.files[name]) as file:
            part = file.get_slice(name)
            try:
                return part[...] if expert is None else part[expert]
            except UNREADABLE as error:
                message = f"torch cannot read tensor {name} ({one_line(error)}); delete it from the file"
                raise InputError(f"{self.folder / self.files[name]}: {message}") from None

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor, without reading it."""
        shapes = {}
        for name in dict.fromkeys(self.files.values()):
            with open_tensors(self.folder / name) as file:
                shapes |= {tensor: tuple(file.get_slice(tensor).get_shape()) for tensor in file.keys()}  # noqa: SIM118
        return shapes

    def hashes(self, progress: Report = ignore_progress) -> dict[str, str]:
        """The SHA-256 of every tensor's bytes. Raises InputError naming the first that holds NaN or Inf.

        `progress` is told how many tensors are done, and how many megabytes these have.
        """
        found, size = {}, 0
        for name in sorted(self.files):
            tensor = self.tensor(name)
            if tensor.is_floating_point() and tensor.dtype not in _DTYPES.values():
                kinds = "float64, float32, float16 or bfloat16"
                raise InputError(f"{self.folder / self.files[name]}: tensor {name} is {tensor.dtype}, not {kinds}")
            if tensor.is_floating_point() and not tensor.isfinite().all():
                raise InputError(f"{self.folder / self.files[name]}: tensor {name} holds NaN or Inf")
            found[name] = hashlib.sha256(tensor.contiguous().flatten().view(torch.uint8).numpy()).hexdigest()
            size += tensor.nbytes
            progress(len(found), size // 10**6)
        return found


def write_pruned(
    source: Checkpoint,
    masks: Mapping[str, Tensor],
    target: str | Path,
    about: dict[str, Any],
    weights: Callable[[str], Tensor] | None = None,
    progress: Report = ignore_progress,
) -> None:
    """Copy a model folder, with zeros where masks say so.

    Weight files keep their names, headers and tensor order: they are copied, and pruned weights are then overwritten
    in place, so that whatever is not pruned stays what it was to the bit, one tensor is in memory at a time.

    Args:
        source: the dense model.
        masks: boolean masks (True = kept) by tensor name, each of its tensor's shape.
        weights: new values of a tensor's kept weights by its name, in its dtype and shape; None: they keep theirs.
        target: the folder to write; complete or not there at all.
        about: what to say of it in the folder's sparseswaps.json, where the CRC-32 of every other file is added.
        progress: is told how many matrices have their zeros.

    Raises:
        InputError: a mask's tensor is missing from the source or has another shape or dtype.
    """
    by_file: dict[str, list[str]] = {file: [] for file in weight_files(source.folder)}
    for name in masks:
        if name not in source.files:
            raise InputError(f"{source.folder}: holds no tensor {name!r}")
        by_file[source.files[name]].append(name)
    with write_atomically(target) as folder:
        folder.mkdir()
        companions = [name for name in companion_files(source.folder) if name != _ABOUT]
        for name in companions:
            shutil.copyfile(source.folder / name, folder / name)
        written = 0
        for file, names in by_file.items():
            shutil.copyfile(source.folder / file, folder / file)
            _write_in_place(folder / file, names, masks, weights, lambda done, _, of=written: progress(of + done, 0))
            written += len(names)
        write_json(
            folder / _ABOUT, about | {"crc32": {name: _checksum(folder / name) for name in [*companions, *by_file]}}
        )


def _write_in_place(
    path: Path,
    names: list[str],
    masks: Mapping[str, Tensor],
    weights: Callable[[str], Tensor] | None,
    progress: Report,
) -> None:
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as view:
        (length,) = struct.unpack("<Q", view[:8])
        header = json.loads(view[8 : 8 + length])
        for done, name in enumerate(names, 1):
            entry, mask = header[name], masks[name]
            if entry["shape"] != list(mask.shape) or entry["dtype"] not in _DTYPES:
                raise InputError(
                    f"{path.name}: {name} is {entry['dtype']} {entry['shape']}, its mask is {list(mask.shape)}"
                )
            begin = entry["data_offsets"][0]
            weight = torch.frombuffer(
                view, dtype=_DTYPES[entry["dtype"]], count=mask.numel(), offset=8 + length + begin
            )
            if weights is not None:
                weight.copy_(weights(name).flatten())
            weight.masked_fill_(~mask.flatten(), 0)
            del weight  # releases the map's buffer, which could not be closed otherwise
            progress(done, 0)
        view.flush()


def read_pruned(folder: str | Path) -> dict[str, Any]:
    """What sparseswaps.json says of a checkpoint that `write_pruned` wrote, once all its files are seen to be as they
    were written: they are read once, a few MB at a time.

    Raises:
        BrokenFileError: the first file that is not.
    """
    about = read_json(path := Path(folder) / _ABOUT)
    try:
        for name, written in about["crc32"].items():
            path = Path(folder) / name
            if _checksum(path) != written:
                raise BrokenFileError(
                    path, "its content is not what was written (a fault of a disk, or an edit by hand)"
                )
    except FileNotFoundError:
        raise BrokenFileError(path, "is gone") from None
    except (KeyError, TypeError, AttributeError):
        raise BrokenFileError(path, "has no checksums of the checkpoint's files") from None
    return about


def _checksum(path: Path) -> str:
    found = 0
    with path.open("rb") as file:
        while part := file.read(2**22):
            found = zlib.crc32(part, found)
    return f"{found:08x}"
