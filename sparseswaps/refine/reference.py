"""Algorithm 1 of the paper as it is printed: float64, one row at a time, every pair tried. The oracle for tests."""

from math import inf

import torch
from torch import Tensor


def swap_cost(w: Tensor, c: Tensor, gram: Tensor, u: int, p: int) -> float:
    """The exact change of a row's loss when kept weight `u` is pruned and pruned weight `p` kept, a 1-swap.

    `c` is the correlation vector G ((1 - m) * w), float64 [d_in].
    """
    pruning_u = 2 * w[u] * c[u] + w[u] ** 2 * gram[u, u]
    keeping_p = -2 * w[p] * c[p] + w[p] ** 2 * gram[p, p]
    return float(pruning_u + keeping_p - 2 * w[u] * w[p] * gram[u, p])


def rounding_of(w: Tensor, gram: Tensor) -> Tensor:
    """What float64 rounding can make of a swap's cost; an improvement must exceed it. `w`: [..., d_in]."""
    norms = w.abs() * gram.diagonal().clamp_min(0).sqrt()
    return 16 * torch.finfo(torch.float64).eps * norms.amax(-1) * norms.sum(-1)


def refine_rows(
    weight: Tensor, gram: Tensor, mask: Tensor, size: int, max_swaps: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """See `sparseswaps.refine.engine.BACKENDS`."""
    mask = mask.clone()
    swaps = torch.zeros(len(weight), dtype=torch.int64)
    certified = torch.zeros(len(weight), dtype=torch.bool)
    for row, (w, m) in enumerate(zip(weight, mask, strict=True)):
        tolerance = float(rounding_of(w, gram))
        while True:
            c = gram @ w.masked_fill(m, 0)
            best, pair = inf, None
            for u in m.nonzero().flatten().tolist():
                for p in (~m).nonzero().flatten().tolist():
                    if u // size == p // size and (cost := swap_cost(w, c, gram, u, p)) < best:
                        best, pair = cost, (u, p)
            if best >= -tolerance:
                certified[row] = True
                break
            if swaps[row] == max_swaps:
                break
            m[pair[0]], m[pair[1]] = False, True
            swaps[row] += 1
    return mask, swaps, certified
