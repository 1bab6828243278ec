"""Hugging Face checkpoints in safetensors: read tensor by tensor, written with pruned weights, and checked."""

import hashlib
import json
import shutil
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

_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
ABOUT = "sparseswaps.json"  # describes a pruned checkpoint, and holds the checksums of its other files


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
                files |= dict.fromkeys(file.keys(), name)
        return files

    def tensor(self, name: str, expert: int | None = None) -> Tensor:
        """Read one tensor, or one expert's slice of it, to the CPU in its stored dtype. Raises InputError naming it."""
        if name not in self.files:
            raise InputError(f"{self.folder}: holds no tensor {name!r}")
        with open_tensors(self.folder / self.files[name]) as file:
            try:
                part = file.get_slice(name)
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
        """Return the SHA-256 of every tensor's bytes. Raises InputError naming the first tensor with NaN or Inf.

        `progress` is told the number of tensors done, and their megabytes.
        """
        hashes, size = {}, 0
        for name in sorted(self.files):
            tensor, label = self.tensor(name), f"{self.folder / self.files[name]}: tensor {name}"
            if tensor.is_floating_point():
                if tensor.dtype not in _DTYPES:
                    raise InputError(f"{label} is {tensor.dtype}; save the model in float32, float16 or bfloat16")
                if not tensor.isfinite().all():
                    raise InputError(f"{label} holds NaN or Inf; copy or download the file again")
            hashes[name] = hashlib.sha256(tensor.contiguous().flatten().view(torch.uint8).numpy()).hexdigest()
            size += tensor.nbytes
            progress(len(hashes), size // 10**6)
        return hashes


def write_pruned(
    source: Checkpoint,
    masks: Mapping[str, Tensor],
    target: str | Path,
    about: dict[str, Any],
    weights: Callable[[str], Tensor] | None = None,
    progress: Report = ignore_progress,
) -> None:
    """Copy a model folder, and set pruned weights to zero.

    `masks` are boolean (True = kept), by tensor name and in the tensor's shape. `weights` returns new values of a
    tensor by its name, in its dtype and shape. `about` is the content of the new sparseswaps.json, to which the CRC-32
    of every other file is added. `progress` is told the number of tensors overwritten.

    Weight files are copied, and their pruned tensors are overwritten in place. All other bytes stay the same, and
    memory holds one tensor at a time. Raises InputError when a mask's tensor is missing or has another shape.
    """
    files = [name for name in companion_files(source.folder) if name != ABOUT] + weight_files(source.folder)
    with write_atomically(target) as folder:
        folder.mkdir()
        for file in files:
            shutil.copyfile(source.folder / file, folder / file)
        for done, (name, mask) in enumerate(masks.items(), start=1):
            weight = source.tensor(name)
            if weight.shape != mask.shape:
                message = f"{name} is {list(weight.shape)}, its mask is {list(mask.shape)}"
                raise InputError(f"{source.folder / source.files[name]}: {message}")
            if weights is not None:
                weight = weights(name).to(weight.dtype)
            _overwrite(folder / source.files[name], name, weight.masked_fill(~mask, 0))
            progress(done, 0)
        write_json(folder / ABOUT, about | {"crc32": {file: _checksum(folder / file) for file in files}})


def _overwrite(path: Path, name: str, tensor: Tensor) -> None:
    """Overwrite a tensor of a weight file with another tensor of its shape and dtype."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        file.seek(8 + length + header[name]["data_offsets"][0])
        file.write(tensor.contiguous().flatten().view(torch.uint8).numpy())


def read_pruned(folder: str | Path) -> dict[str, Any]:
    """Read a pruned checkpoint's sparseswaps.json. Raises BrokenFileError unless the other files have their CRC-32."""
    about_path = Path(folder) / ABOUT
    about = read_json(about_path)
    try:
        checksums = about["crc32"].items()
    except (KeyError, TypeError, AttributeError):
        raise BrokenFileError(about_path, "has no checksums of the checkpoint's files") from None
    for name, checksum in checksums:
        path = Path(folder) / name
        if not path.is_file():
            raise BrokenFileError(path, "is gone")
        if _checksum(path) != checksum:
            raise BrokenFileError(path, "checksum mismatch: the file was damaged or edited")
    return about


def _checksum(path: Path) -> str:
    checksum = 0
    with path.open("rb") as file:
        while part := file.read(2**22):
            checksum = zlib.crc32(part, checksum)
    return f"{checksum:08x}"
