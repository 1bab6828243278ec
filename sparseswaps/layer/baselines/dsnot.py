"""DSnoT (Zhang et al., ICLR 2024, arXiv 2310.08915): change a mask until the expected output is the dense layer's."""

from math import inf

import torch
from torch import Tensor

from sparseswaps.base.memory import map_slices
from sparseswaps.layer.gram import Inputs, validate_layer
from sparseswaps.layer.pattern import NM, Pattern


def dsnot(
    weight: Tensor, inputs: Inputs, mask: Tensor, pattern: Pattern, cycles: int = 50, threshold: float = 0.1
) -> Tensor:
    """Regrow one weight of each row and prune another one, repeatedly, while the row's expected error is large.

    D_ij is W_ij times the mean over sequences of the sum over tokens of x_j. The error of row i is the sum of D_ij over
    its pruned weights. A cycle regrows the pruned weight of largest D_ij / Var(x_j), or of smallest if the error is
    negative. It prunes the kept weight of least Wanda score among the weights whose D_ij also moves the error towards
    zero. For N:M it prunes the kept weight of least score in the group of the regrown weight, and a row stops before
    its error changes sign (both as in the authors' code).

    A weight moves at most once (as in the authors' code). Of equal weights the leftmost one moves. A row stops when it
    has regrown `cycles` weights, has no weight left to regrow or to prune, or has an error of at most `threshold`.
    """
    weight, gram = validate_layer(weight, inputs.gram)
    size = pattern.groups(weight.shape[1]).size if isinstance(pattern, NM) else None
    squares = gram.diagonal().double()
    # For a constant feature the difference is only the rounding of a float32 Gram matrix; for a dead feature it is 0.
    rounding = torch.finfo(torch.float32).eps * squares / inputs.tokens
    variance = torch.maximum(squares / inputs.tokens - (inputs.sums / inputs.tokens) ** 2, rounding)
    variance.masked_fill_(squares == 0, 1)

    def balance_part(rows: slice) -> Tensor:
        part = weight[rows].double()
        effect, score = part * (inputs.sums / inputs.sequences), part.abs() * squares.sqrt()
        return _balance_rows(effect, score, variance, mask[rows], size, cycles, threshold)

    return torch.cat(map_slices(balance_part, len(weight), len(weight), "rows"))


def _balance_rows(
    effect: Tensor, score: Tensor, variance: Tensor, start: Tensor, size: int | None, cycles: int, threshold: float
) -> Tensor:
    """Return the final masks of some rows; `effect` is D [rows, d_in], `score` Wanda's, `size` the M of N:M or None."""
    mask = start.clone(memory_format=torch.contiguous_format)
    lost = effect.masked_fill(mask, 0)  # D of the weights that may be regrown
    spare = score.masked_fill(~mask, inf)  # the score of the weights that may be pruned
    error = lost.sum(1)
    group = torch.arange(effect.shape[1], device=effect.device) // (size or effect.shape[1])
    rows = torch.arange(len(effect), device=effect.device)
    for _ in range(cycles):
        rows = rows[error[rows].abs() > threshold]
        if not len(rows):
            break
        sign = error[rows].sign()[:, None]
        gain, grown = (lost[rows] * sign / variance).max(1)
        closed = effect[rows] * sign >= 0 if size is None else group != group[grown, None]
        price, pruned = spare[rows].masked_fill_(closed, inf).min(1)
        after = error[rows] + effect[rows, pruned] - effect[rows, grown]
        going = (gain > 0) & (price < inf)
        if size is not None:
            going &= after * sign[:, 0] > 0
        rows, grown, pruned = rows[going], grown[going], pruned[going]
        error[rows] = after[going]
        mask[rows, grown], mask[rows, pruned] = True, False
        lost[rows, grown], spare[rows, pruned] = 0, inf
    return mask
