"""DSnoT (Zhang et al., ICLR 2024, arXiv 2310.08915): a mask changed until the expected output is the dense one's."""

from math import inf

import torch
from torch import Tensor

from sparseswaps.memory import sliced
from sparseswaps.pattern import Pattern
from sparseswaps.refine.engine import checked


@torch.no_grad()
def dsnot(
    weight: Tensor,
    gram: Tensor,
    mask: Tensor,
    pattern: Pattern,
    sums: Tensor,
    tokens: int,
    sequences: int,
    cycles: int = 50,
    threshold: float = 0.1,
) -> Tensor:
    """Regrow and prune one weight of each row again and again, as long as the row's expected error is large.

    With D_ij = W_ij times the mean over sequences of the sum over tokens of x_j, a row's error is the sum of D over its
    pruned weights. Regrown is the pruned weight with the error's sign of largest |D_ij| / Var(x_j), pruned the kept
    weight of the other sign of least Wanda score |W_ij| ||X_j||, both in one block of the pattern: so either of them
    lowers the error, or takes it past zero. Of equal ones the one further left is taken.

    A weight moves once: as in the authors' code, what was regrown is not pruned again nor the other way round. A row
    stops where no such pair is left. For N:M the authors' code prunes without regard to the sign and stops a row before
    its error changes sign; here the criteria of the paper hold within blocks.

    Args:
        weight: [d_out, d_in], any floating dtype.
        gram: [d_in, d_in] on the same device, float32 or float64, summed over all calibration tokens.
        mask: boolean [d_out, d_in], True where kept; not modified.
        pattern: in which blocks weights may change places.
        sums: float64 [d_in], the sum of x_j over all calibration tokens.
        tokens, sequences: how many calibration tokens there are, and in how many sequences.
        cycles: weights that a row regrows at most.
        threshold: the error at which a row stops.

    Returns:
        boolean [d_out, d_in] with as many weights kept in each block as in `mask`.

    Raises:
        InputError: weight and Gram matrix are not what `refine.engine.checked` takes, or the pattern does not divide
            d_in.
    """
    weight, gram = checked(weight, gram)
    size = pattern.blocks(weight.shape[1]).size
    squares = gram.diagonal().double()
    # Where a feature hardly varies, what is left of the difference is the rounding of a Gram matrix in float32.
    least = torch.finfo(torch.float32).eps * squares / tokens
    variance = torch.maximum(squares / tokens - (sums / tokens) ** 2, least).masked_fill_(squares == 0, 1)

    def carried(rows: slice) -> Tensor:
        part = weight[rows].double()
        return _carried(
            part * (sums / sequences), part.abs() * squares.sqrt(), variance, mask[rows], size, cycles, threshold
        )

    return torch.cat(sliced(carried, len(weight), len(weight), "rows"))


def _carried(
    effect: Tensor, wanda: Tensor, variance: Tensor, start: Tensor, size: int, cycles: int, threshold: float
) -> Tensor:
    """Some rows from their masks `start` to where they stop; `effect` is D, and is modified."""
    mask = start.clone(memory_format=torch.contiguous_format)
    error = effect.masked_fill(mask, 0).sum(1)
    block = torch.arange(effect.shape[1], device=effect.device) // size
    rows = torch.arange(len(effect), device=effect.device)
    for _ in range(cycles):
        rows = rows[error[rows].abs() > threshold]
        if not len(rows):
            break
        kept, toward = mask[rows], effect[rows] * error[rows, None].sign()
        prunable = kept & (toward < 0)
        paired = prunable.view(len(rows), -1, size).any(2).repeat_interleave(size, 1)
        growable = ~kept & (toward > 0) & paired
        grown = (toward / variance).masked_fill_(~growable, -inf).argmax(1)
        there = prunable & (block == block[grown, None])
        pruned = wanda[rows].masked_fill_(~there, inf).argmin(1)
        found = growable.any(1)
        rows, grown, pruned = rows[found], grown[found], pruned[found]
        error[rows] += effect[rows, pruned] - effect[rows, grown]
        mask[rows, grown], mask[rows, pruned] = True, False
        effect[rows, grown] = effect[rows, pruned] = 0  # neither moves again
    return mask
