"""The public face of the swap engine: checks its input, picks a backend, measures what came of it."""

from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from sparseswaps.errors import InputError
from sparseswaps.gram import row_loss
from sparseswaps.pattern import Pattern
from sparseswaps.refine import batched, reference

# A backend takes float64 weight and Gram matrix, the mask, the block size and the budget; it returns the refined mask,
# the swaps made in each row and whether each row was found to have no improving swap left.
BACKENDS = {"reference": reference.refine_rows, "batched": batched.refine_rows}


class Stop(IntEnum):
    """Why a row stopped."""

    OPTIMUM = 0  # no swap lowers its loss: certified
    BUDGET = 1  # max_swaps were made and an improving swap is left


@dataclass(frozen=True)
class Refinement:
    """The result of `refine`; one entry a row but for the mask.

    Attributes:
        mask: boolean [d_out, d_in], True where kept.
        swaps: int64 [d_out], swaps made.
        loss_before, loss_after: float64 [d_out], the pruning error of each row.
        certified: boolean [d_out], True where no 1-swap lowers the row's loss beyond rounding.
        stop: int8 [d_out], a `Stop` for each row.
    """

    mask: Tensor
    swaps: Tensor
    loss_before: Tensor
    loss_after: Tensor
    certified: Tensor
    stop: Tensor


def refine(
    weight: Tensor,
    gram: Tensor,
    mask: Tensor,
    pattern: Pattern,
    max_swaps: int | None = None,
    backend: str = "batched",
) -> Refinement:
    """Swap kept against pruned weights, always the pair that lowers a row's error most, until none does.

    Every step takes the best of all feasible pairs of a row (paper, Algorithm 1; ties: lowest kept index, then
    lowest pruned index). Pairs are feasible within a block of the pattern, so the number of kept weights of every
    block stays what it is in `mask`; it may differ from row to row.

    Args:
        weight: [d_out, d_in], any floating dtype.
        gram: [d_in, d_in] on the same device, the Gram matrix of the layer's inputs.
        mask: boolean [d_out, d_in], True where kept; not modified.
        pattern: which weights may change places.
        max_swaps: swaps per row at most; None: to the local optimum.
        backend: a name in `BACKENDS`.

    Returns:
        A `Refinement` on the weight's device.

    Raises:
        InputError: shapes do not fit, a weight or Gram entry is not finite, `max_swaps` is negative, the backend is
            unknown, or the pattern does not divide d_in.
    """
    d_in = weight.shape[1]
    if gram.shape != (d_in, d_in) or mask.shape != weight.shape or mask.dtype != torch.bool:
        raise InputError(
            f"weight {tuple(weight.shape)} needs a [{d_in}, {d_in}] Gram matrix and a boolean mask of its shape, "
            f"not {tuple(gram.shape)} and {mask.dtype} {tuple(mask.shape)}"
        )
    if not (weight.isfinite().all() and gram.isfinite().all()):
        raise InputError("the weight or its Gram matrix holds NaN or Inf")
    if max_swaps is not None and max_swaps < 0:
        raise InputError(f"max_swaps is {max_swaps}: expected a number of swaps, or none for the local optimum")
    if backend not in BACKENDS:
        raise InputError(f"backend {backend!r}: expected one of {', '.join(BACKENDS)}")
    size = pattern.blocks(d_in).size
    refined, swaps, certified = BACKENDS[backend](weight.double(), gram.double(), mask, size, max_swaps)
    return Refinement(
        mask=refined,
        swaps=swaps,
        loss_before=row_loss(weight, gram, mask),
        loss_after=row_loss(weight, gram, refined),
        certified=certified,
        stop=torch.where(certified, int(Stop.OPTIMUM), int(Stop.BUDGET)).to(torch.int8),
    )
