"""Storage for the hidden states of batches that wait for their turn: host memory, or a file."""

import weakref
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from os import SEEK_END
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
import torch
from torch import Tensor

from sparseswaps.base.errors import InputError

Load = Callable[[], Tensor]  # returns a stored tensor, on the CPU
Keep = Callable[[Tensor], Load]  # stores a tensor


def keep_in_memory(tensor: Tensor) -> Load:
    """Store a tensor in host memory."""
    stored = tensor.cpu()
    return lambda: stored


class KeepOnDisk:
    """Stores tensors in a file of a folder. The file has no name, so the system deletes it however the process ends.

    The space of a tensor is free for the next one of the same size as soon as nothing refers to its `Load`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = TemporaryFile(dir=folder)  # noqa: SIM115 (the last reference to it closes it)
        self._free: dict[int, list[int]] = defaultdict(list)  # the offsets of free spaces by their length, in bytes

    def __call__(self, tensor: Tensor) -> Load:
        """Store a tensor. Raises InputError when the disk is full."""
        data = tensor.cpu().contiguous().flatten().view(torch.uint8).numpy()
        free = self._free[len(data)]
        try:
            begin = self._file.seek(free.pop()) if free else self._file.seek(0, SEEK_END)
            self._file.write(data.data)
            self._file.flush()
        except OSError as error:
            raise InputError(f"activations: disk: {self.folder}: {error.strerror}; make room there") from None
        load = partial(self._load, begin, len(data), tensor.dtype, tensor.shape)
        weakref.finalize(load, free.append, begin)
        return load

    def _load(self, begin: int, length: int, dtype: torch.dtype, shape: torch.Size) -> Tensor:
        self._file.seek(begin)
        return torch.from_numpy(np.fromfile(self._file, dtype=np.uint8, count=length)).view(dtype).view(shape)


def choose_keep(kind: str, folder: Path) -> Keep:
    """Return the storage that configuration key `activations` names: `memory`, or `disk` for a file in `folder`."""
    if kind == "memory":
        return keep_in_memory
    folder.mkdir(parents=True, exist_ok=True)
    return KeepOnDisk(folder)
