"""DSnoT (Zhang et al., ICLR 2024, arXiv 2310.08915): a mask is changed until the expected output is the dense one's."""

from math import inf

import torch
from torch import Tensor

from sparseswaps.base.memory import map_slices
from sparseswaps.layer.gram import validate_layer
from sparseswaps.layer.pattern import NM, Pattern


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
    """Regrow one weight of each row and prune another, again and again, while the row's expected error is large.

    With D_ij = W_ij times the mean over sequences of the sum over tokens of x_j, a row's error is the sum of D over its
    pruned weights. Regrown is the pruned weight of largest D_ij / Var(x_j), or of smallest where the error is negative;
    pruned is the kept weight of least Wanda score whose D has the other sign, so that it too moves the error towards
    zero, or past it. For N:M it is, as in the authors' code, the kept weight of least score in the block of the regrown
    one, of either sign, and a row stops before its error would change sign.

    A weight moves once, as in that code: what was regrown is not pruned again, nor the other way round. A row also
    stops where no weight is left to regrow or to prune. Of equal weights the one further left is taken.

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
        boolean [d_out, d_in]; every block keeps as many weights as in `mask`.

    Raises:
        InputError: weight and Gram matrix are not what `refine.engine.checked` takes, or the pattern does not divide
            d_in.
    """
    weight, gram = validate_layer(weight, gram)
    within = pattern.blocks(weight.shape[1]).size if isinstance(pattern, NM) else None
    squares = gram.diagonal().double()
    # Of a feature that does not vary, the difference is the rounding of a Gram matrix in float32; of a dead one, 0.
    rounding = torch.finfo(torch.float32).eps * squares / tokens
    variance = torch.maximum(squares / tokens - (sums / tokens) ** 2, rounding).masked_fill_(squares == 0, 1)

    def carried(rows: slice) -> Tensor:
        part = weight[rows].double()
        effect, score = part * (sums / sequences), part.abs() * squares.sqrt()
        return _carried(effect, score, variance, mask[rows], within, cycles, threshold)

    return torch.cat(map_slices(carried, len(weight), len(weight), "rows"))


def _carried(
    effect: Tensor, score: Tensor, variance: Tensor, start: Tensor, within: int | None, cycles: int, threshold: float
) -> Tensor:
    """Some rows from their masks `start` to where they stop; `effect` is D, `within` the M of N:M."""
    mask = start.clone(memory_format=torch.contiguous_format)
    lost = effect.masked_fill(mask, 0)  # D of what may be regrown
    spare = score.masked_fill(~mask, inf)  # the score of what may be pruned
    error = lost.sum(1)
    block = torch.arange(effect.shape[1], device=effect.device) // (within or effect.shape[1])
    rows = torch.arange(len(effect), device=effect.device)
    for _ in range(cycles):
        rows = rows[error[rows].abs() > threshold]
        if not len(rows):
            break
        sign = error[rows].sign()[:, None]
        gain, grown = (lost[rows] * sign / variance).max(1)
        closed = effect[rows] * sign >= 0 if within is None else block != block[grown, None]
        price, pruned = spare[rows].masked_fill_(closed, inf).min(1)
        after = error[rows] + effect[rows, pruned] - effect[rows, grown]
        going = (gain > 0) & (price < inf)
        if within is not None:
            going &= after * sign[:, 0] > 0
        rows, grown, pruned = rows[going], grown[going], pruned[going]
        error[rows] = after[going]
        mask[rows, grown], mask[rows, pruned] = True, False
        lost[rows, grown], spare[rows, pruned] = 0, inf
    return mask
