"""Algorithm 1 of the paper (arXiv 2512.10922) as printed: float64, one row at a time, every pair tried.

A row with weights w, mask m (1: kept) and Gram matrix G has the loss L(m) = (w - m * w)^T G (w - m * w) and the
correlation vector c = G ((1 - m) * w). Algorithm 1 prunes u and keeps p for the pair (u, p) of least `swap_cost`, until
no swap has a negative cost or the budget is spent. This is the oracle of the tests, and the backend `reference`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from sparseswaps.base.progress import Report
from sparseswaps.layer.swaps.backends import Rows
from sparseswaps.layer.swaps.cost import norms, rounding


def swap_rows(rows: Rows, progress: Report) -> tuple[Tensor, Tensor]:
    """Run Algorithm 1 on every row, as `backends.Backend` says."""
    weight, gram, mask, frozen, correlation, size, budget = rows
    weight, gram = weight.double(), gram.double()
    swaps = torch.zeros_like(budget)
    certified = torch.zeros(len(weight), dtype=torch.bool, device=weight.device)
    s = norms(weight, gram)
    uncertain = rounding(s)[:, None] * s  # [rows, d_in]
    for row, (w, m, c) in enumerate(zip(weight, mask, correlation, strict=True)):
        while True:
            c.copy_(gram @ w.masked_fill(m, 0))  # c = G ((1 - m) * w), computed again for every swap
            pair = best_swap(w, gram, m, frozen[row], c, uncertain[row], size)
            if pair is None:
                certified[row] = True  # the local optimum
                break
            if swaps[row] == budget[row]:
                break
            u, p = pair
            m[u], m[p] = False, True
            swaps[row] += 1
        progress(int(certified.sum()), int(swaps.sum()))
    return swaps, certified


def best_swap(
    w: Tensor, gram: Tensor, m: Tensor, frozen: Tensor, c: Tensor, uncertain: Tensor, size: int
) -> tuple[int, int] | None:
    """Return the feasible pair (u, p) of least cost; None if no swap improves the row beyond rounding.

    A pair is feasible if u is kept and not frozen, p is pruned, and both are in the same group of `size` columns. Of
    equal costs the first pair wins: the lowest u, then the lowest p.
    """
    kept, pruned = (m & ~frozen).nonzero().flatten().tolist(), (~m).nonzero().flatten().tolist()
    w, c, gram, uncertain = w.tolist(), c.tolist(), gram.tolist(), uncertain.tolist()
    least, best = 0.0, None
    for u in kept:
        for p in pruned:
            if u // size == p // size:
                cost = swap_cost(w, c, gram, u, p) + uncertain[u] + uncertain[p]
                if cost < least:
                    least, best = cost, (u, p)
    return best


def swap_cost(w: Sequence[float], c: Sequence[float], gram: Sequence[Sequence[float]], u: int, p: int) -> float:
    """Return the exact change of a row's loss for a 1-swap, which prunes kept weight `u` and keeps pruned weight `p`.

    `w` is the row [d_in], `c` its correlation vector G ((1 - m) * w) [d_in], `gram` is G [d_in, d_in].
    """
    pruning_u = 2 * w[u] * c[u] + w[u] ** 2 * gram[u][u]
    keeping_p = -2 * w[p] * c[p] + w[p] ** 2 * gram[p][p]
    return pruning_u + keeping_p - 2 * w[u] * w[p] * gram[u][p]


def eliminate_rows(weight: Tensor, gram: Tensor, size: int, kept: int, progress: Report) -> Tensor:
    """Prune the cheapest weight of every row repeatedly, as `backends.Backend` says.

    Pruning u costs 2 w_u c_u + w_u^2 G_uu, the part of a swap's cost that belongs to u.
    """
    weight, gram = weight.double(), gram.double()
    mask = torch.ones_like(weight, dtype=torch.bool)
    for row, (w, m) in enumerate(zip(weight, mask, strict=True)):
        while True:
            c = gram @ w.masked_fill(m, 0)
            costs = {
                u: float(2 * w[u] * c[u] + w[u] ** 2 * gram[u, u])
                for u in m.nonzero().flatten().tolist()
                if m[u // size * size : (u // size + 1) * size].sum() > kept
            }
            if not costs:
                break
            m[min(costs, key=costs.get)] = False
        progress(row + 1, 0)
    return mask
