"""Algorithm 1 of the paper as it is printed: float64, one row at a time, every pair tried. The oracle for tests."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sparseswaps.progress import Report, nobody


def swap_cost(w: Sequence[float], c: Sequence[float], gram: Sequence[Sequence[float]], u: int, p: int) -> float:
    """The exact change of a row's loss when kept weight `u` is pruned and pruned weight `p` kept, a 1-swap.

    `c` is the correlation vector G ((1 - m) * w), [d_in].
    """
    pruning_u = 2 * w[u] * c[u] + w[u] ** 2 * gram[u][u]
    keeping_p = -2 * w[p] * c[p] + w[p] ** 2 * gram[p][p]
    return pruning_u + keeping_p - 2 * w[u] * w[p] * gram[u][p]


def feature_norms(gram: Tensor) -> Tensor:
    """||X_j|| = sqrt(G_jj), float64 [d_in]."""
    return gram.diagonal().double().clamp_min(0).sqrt()


def norms(weight: Tensor, gram: Tensor) -> Tensor:
    """s_ij = |w_ij| ||X_j||, float64 [rows, d_in]: what a weight contributes to the output, in norm."""
    return weight.double().abs() * feature_norms(gram)


def rounding(norms: Tensor) -> Tensor:
    """What float64 rounding can make of a swap's cost, for each unit of s_u + s_p; float64 [rows].

    The correlation c_u sums products of s_u with every other norm of its row. Every search adds this to the cost of a
    swap, so that a swap counts as an improvement only when it is more than rounding, and every search ends.
    """
    return 16 * torch.finfo(torch.float64).eps * norms.sum(-1)


def swap_rows(
    weight: Tensor,
    gram: Tensor,
    mask: Tensor,
    frozen: Tensor,
    correlation: Tensor,
    size: int,
    budget: Tensor,
    progress: Report = nobody,
) -> tuple[Tensor, Tensor]:
    """See `sparseswaps.refine.engine.Backend`."""
    weight, gram = weight.double(), gram.double()
    swaps = torch.zeros_like(budget)
    certified = torch.zeros(len(weight), dtype=torch.bool, device=weight.device)
    s = norms(weight, gram)
    uncertain = (rounding(s)[:, None] * s).tolist()
    entries = gram.tolist()
    for row, (mask_row, frozen_row, c) in enumerate(zip(mask, frozen, correlation, strict=True)):
        w = weight[row].tolist()
        while True:
            c.copy_(gram @ weight[row].masked_fill(mask_row, 0))
            kept = (mask_row & ~frozen_row).nonzero().flatten().tolist()
            pruned = (~mask_row).nonzero().flatten().tolist()
            best, pair = 0.0, None
            at = c.tolist()
            for u in kept:
                for p in pruned:
                    if u // size == p // size:
                        cost = swap_cost(w, at, entries, u, p) + uncertain[row][u] + uncertain[row][p]
                        if cost < best:
                            best, pair = cost, (u, p)
            if pair is None:
                certified[row] = True
                break
            if swaps[row] == budget[row]:
                break
            mask_row[pair[0]], mask_row[pair[1]] = False, True
            swaps[row] += 1
        progress(int(certified.sum()), int(swaps.sum()))
    return swaps, certified


def eliminate_rows(weight: Tensor, gram: Tensor, size: int, kept: int, progress: Report = nobody) -> Tensor:
    """See `sparseswaps.refine.engine.Backend`."""
    weight, gram = weight.double(), gram.double()
    mask = torch.ones_like(weight, dtype=torch.bool)
    for row, (w, mask_row) in enumerate(zip(weight, mask, strict=True)):
        while True:
            c = gram @ w.masked_fill(mask_row, 0)
            costs = {
                u: float(2 * w[u] * c[u] + w[u] ** 2 * gram[u, u])
                for u in mask_row.nonzero().flatten().tolist()
                if mask_row[u // size * size : (u // size + 1) * size].sum() > kept
            }
            if not costs:
                break
            mask_row[min(costs, key=costs.get)] = False
        progress(row + 1, 0)
    return mask
