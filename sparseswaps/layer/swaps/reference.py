"""Algorithm 1 of the paper as it is printed: float64, one row at a time, every pair tried. The oracle for tests."""

import torch
from torch import Tensor

from sparseswaps.base.progress import Report, ignore_progress
from sparseswaps.layer.swaps.cost import norms, rounding, swap_cost


def swap_rows(
    weight: Tensor,
    gram: Tensor,
    mask: Tensor,
    frozen: Tensor,
    correlation: Tensor,
    size: int,
    budget: Tensor,
    progress: Report = ignore_progress,
) -> tuple[Tensor, Tensor]:
    """As `backends.Backend` says."""
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


def eliminate_rows(weight: Tensor, gram: Tensor, size: int, kept: int, progress: Report = ignore_progress) -> Tensor:
    """As `backends.Backend` says."""
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
