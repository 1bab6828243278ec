"""The search in batched torch operations in float64, for any device with float64. All rows step together.

Whole rows are searched by peeling (docs/engine.md), N:M groups by forming every pair.
"""

from math import inf

import torch
from torch import Tensor

from sparseswaps.base.progress import Report
from sparseswaps.layer.swaps.backends import Rows
from sparseswaps.layer.swaps.bounds import LAMBDA, strongest_correlation
from sparseswaps.layer.swaps.cost import norms, rounding

_PAIRS = 1 << 22  # pairs formed at a time: 32 MB in float64

Best = tuple[Tensor, Tensor, Tensor]  # cost, u, p: each [rows]; there is no swap unless the cost is below 0


def swap_rows(rows: Rows, progress: Report) -> tuple[Tensor, Tensor]:
    """Refine all rows, as `backends.Backend` says."""
    weight, gram, mask, frozen, correlation, size, budget = rows
    weight, gram = weight.double(), gram.double()
    swaps = torch.zeros_like(budget)
    certified = torch.zeros(len(weight), dtype=torch.bool, device=weight.device)
    s = norms(weight, gram)
    alone = s * s + rounding(s)[:, None] * s
    whole_rows = size == weight.shape[1]
    bound = s * s * strongest_correlation(gram, size) if whole_rows else None
    active = torch.arange(len(weight), device=weight.device)
    while len(active):
        w, c, kept = weight[active], correlation[active], mask[active]
        pruning = (alone[active] + 2 * w * c).masked_fill(~kept | frozen[active], inf)  # cost of pruning u alone
        keeping = (alone[active] - 2 * w * c).masked_fill(kept, inf)  # cost of keeping p alone
        if whole_rows:
            cost, u, p = best_in_row(w, gram, pruning, keeping, bound[active])
        else:
            cost, u, p = best_in_group(w, gram, pruning, keeping, size)
        improving = cost < 0
        certified[active[~improving]] = True
        improving &= swaps[active] < budget[active]
        active, u, p = active[improving], u[improving], p[improving]
        correlation[active] += weight[active, u, None] * gram[u] - weight[active, p, None] * gram[p]
        mask[active, u], mask[active, p] = False, True
        swaps[active] += 1
        progress(int(certified.sum()), int(swaps.sum()))
    return swaps, certified


def best_in_group(w: Tensor, gram: Tensor, pruning: Tensor, keeping: Tensor, size: int) -> Best:
    """Return the cheapest swap of each row with u and p in the same group of `size` columns, by forming every pair."""
    rows, d_in = w.shape
    groups = gram.view(d_in // size, size, d_in // size, size).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    parts = []
    for part in torch.arange(rows, device=w.device).split(max(1, _PAIRS // (d_in * size))):
        x, a, b = (t[part].view(len(part), -1, size) for t in (w, pruning, keeping))
        pairs = a[..., :, None] + b[..., None, :] - 2 * x[..., :, None] * x[..., None, :] * groups
        cost, flat = pairs.flatten(1).min(1)  # of equal costs the first: lowest u, then lowest p
        u = flat // size
        parts.append((cost, u, u // size * size + flat % size))
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


def best_in_row(w: Tensor, gram: Tensor, pruning: Tensor, keeping: Tensor, bound: Tensor) -> Best:
    """Return the cheapest improving swap of each row (cost 0 if there is none); `bound` [rows, d_in] is rho_i s_i^2."""
    row = torch.arange(len(w), device=w.device)
    best = torch.zeros(len(w), dtype=torch.float64, device=w.device)
    pair = torch.full((2, len(w)), -1, device=w.device)  # u, p
    sides = [(pruning, pruning - LAMBDA * bound), (keeping, keeping - bound / LAMBDA)]
    turn = 0
    while True:
        floor = sides[0][1].amin(1) + sides[1][1].amin(1)
        searching = (floor < best) | ((floor == best) & (pair[0] >= 0))  # an equal pair may come first in order
        if not searching.any():
            return best, pair[0], pair[1]
        (mine, least), (other, _) = sides[turn], sides[1 - turn]
        i = least.argmin(1)
        cost, j = (mine[row, i, None] + other - 2 * w[row, i, None] * w * gram[i]).min(1)
        u, p = (i, j) if turn == 0 else (j, i)
        earlier = (u < pair[0]) | ((u == pair[0]) & (p < pair[1]))
        better = searching & ((cost < best) | ((cost == best) & (pair[0] >= 0) & earlier))
        best = torch.where(better, cost, best)
        pair = torch.where(better, torch.stack([u, p]), pair)
        mine[row, i], least[row, i] = inf, inf
        turn = 1 - turn


def eliminate_rows(weight: Tensor, gram: Tensor, size: int, kept: int, progress: Report) -> Tensor:
    """Make a mask by backward elimination, as `backends.Backend` says."""
    w, gram = weight.double(), gram.double()
    mask = torch.ones_like(w, dtype=torch.bool)
    spare = torch.full((len(w), w.shape[1] // size), size - kept, device=w.device)
    correlation, own = torch.zeros_like(w), norms(w, gram) ** 2
    rows = torch.arange(len(w), device=w.device)
    for _ in range(spare.shape[1] * (size - kept)):
        eligible = mask & (spare > 0).repeat_interleave(size, dim=1)
        u = (own + 2 * w * correlation).masked_fill(~eligible, inf).argmin(1)
        mask[rows, u] = False
        spare[rows, u // size] -= 1
        correlation += w[rows, u, None] * gram[u]
    progress(len(w), 0)  # all rows end together
    return mask
