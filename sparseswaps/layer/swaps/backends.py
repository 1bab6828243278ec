"""The interface of a search backend, and the choice of one for a device."""

import os
from importlib.util import find_spec
from typing import NamedTuple, Protocol

from torch import Tensor

from sparseswaps.base.errors import InputError
from sparseswaps.base.progress import Report


class Rows(NamedTuple):
    """Rows of a layer to refine. A search modifies `mask`, and updates `correlation` with it."""

    weight: Tensor  # [rows, d_in], float32 or float64
    gram: Tensor  # [d_in, d_in], float32 or float64
    mask: Tensor  # boolean [rows, d_in], True where kept
    frozen: Tensor  # boolean [rows, d_in], the kept weights that no swap may prune
    correlation: Tensor  # float64 [rows, d_in], c = G ((1 - m) * w)
    size: int  # columns per group; both weights of a swap are in the same group
    budget: Tensor  # int64 [rows], the most swaps of each row


class Backend(Protocol):
    """A module of this folder that searches."""

    def swap_rows(self, rows: Rows, progress: Report) -> tuple[Tensor, Tensor]:
        """Swap weights in every row until no swap improves the row, or the row has spent its budget.

        Returns the swaps made, int64 [rows], and whether no swap improves the row any more, boolean [rows]. `progress`
        receives the number of rows at their optimum and the number of swaps made.
        """

    def eliminate_rows(self, weight: Tensor, gram: Tensor, size: int, kept: int, progress: Report) -> Tensor:
        """Prune the cheapest weight of every row repeatedly, until each group of `size` columns keeps `kept` weights.

        Returns the mask, boolean [rows, d_in]. `progress` receives the number of rows that are done.
        """


def select_backend(weight: Tensor, name: str | None) -> Backend:
    """Import and return the backend of a name, to compute on the device of a weight.

    None takes `cpu` or `cuda` on these devices, and `batched` on other devices and on a GPU without Triton. Raises
    InputError if the name is unknown, or the backend is for another device.
    """
    device = weight.device.type
    if name is None:
        name = device if device == "cpu" or (device == "cuda" and find_spec("triton")) else "batched"
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"  # Triton's kernels then run on the CPU
    if name in ("cpu", "cuda") and name != device and not (name == "cuda" and interpreted):
        raise InputError(f"backend {name!r} does not run on {device}, where the weight is; leave `backend` out")
    if name == "reference":
        from sparseswaps.layer.swaps import reference as module
    elif name == "cpu":
        from sparseswaps.layer.swaps import cpu as module
    elif name == "cuda":
        from sparseswaps.layer.swaps import cuda as module
    elif name == "batched":
        from sparseswaps.layer.swaps import batched as module
    else:
        raise InputError(f"backend {name!r} is unknown; use one of reference, cpu, cuda, batched")
    return module
