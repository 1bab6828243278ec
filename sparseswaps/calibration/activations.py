"""Where hidden states wait for their block: in host memory, or in files."""

import weakref
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
import torch
from torch import Tensor

from sparseswaps.base.errors import InputError

Keep = Callable[[Tensor], Callable[[], Tensor]]
"""Puts a tensor away and gives what brings it back, on the CPU."""


def in_memory(tensor: Tensor) -> Callable[[], Tensor]:
    kept = tensor.cpu()
    return lambda: kept


def in_files(folder: Path) -> Keep:
    """Into a file of `folder` that has no name, so that nothing is left of it however the process ends.

    What is brought back no more leaves its place to the next. Raises InputError when the disk is full.
    """
    file = TemporaryFile(dir=folder)  # noqa: SIM115 (it ends with the last reference to it)
    free: list[tuple[int, int]] = []  # begin and length
    end = 0

    def keep(tensor: Tensor) -> Callable[[], Tensor]:
        nonlocal end
        data = tensor.cpu().contiguous().flatten().view(torch.uint8).numpy()
        begin = next((begin for begin, length in free if length == len(data)), end)
        if begin == end:
            end += len(data)
        else:
            free.remove((begin, len(data)))
        try:
            file.seek(begin)
            file.write(data.data)
            file.flush()
        except OSError as error:
            raise InputError(f"activations: disk: {folder}: {error.strerror}") from None
        length, shape, dtype = len(data), tensor.shape, tensor.dtype

        def back() -> Tensor:
            file.seek(begin)
            return torch.from_numpy(np.fromfile(file, dtype=np.uint8, count=length)).view(dtype).view(shape)

        weakref.finalize(back, free.append, (begin, length))
        return back

    return keep


def keeping(where: str, folder: Path) -> Keep:
    """The way that the configuration names: `memory`, or `disk` for files in `folder`, which is made."""
    if where == "memory":
        return in_memory
    folder.mkdir(parents=True, exist_ok=True)
    return in_files(folder)
