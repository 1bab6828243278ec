"""Where hidden states wait for their block: in host memory, or in files."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
import torch
from torch import Tensor

Keep = Callable[[Tensor], Callable[[], Tensor]]
"""Puts a tensor away and gives what brings it back, on the CPU."""


def in_memory(tensor: Tensor) -> Callable[[], Tensor]:
    kept = tensor.cpu()
    return lambda: kept


def in_files(folder: Path) -> Keep:
    """Into files of `folder` that have no name, so that nothing is left of them however the process ends."""

    def keep(tensor: Tensor) -> Callable[[], Tensor]:
        file = TemporaryFile(dir=folder)  # noqa: SIM115 (it ends with the last reference to it)
        tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tofile(file)
        shape, dtype = tensor.shape, tensor.dtype

        def back() -> Tensor:
            file.seek(0)
            return torch.from_numpy(np.fromfile(file, dtype=np.uint8)).view(dtype).view(shape)

        return back

    return keep


def keeping(where: str, folder: Path) -> Keep:
    """The way that the configuration names: `memory`, or `disk` for files in `folder`, which is made."""
    if where == "memory":
        return in_memory
    folder.mkdir(parents=True, exist_ok=True)
    return in_files(folder)
