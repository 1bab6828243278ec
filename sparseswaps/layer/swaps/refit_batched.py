"""The search with refit in batched torch operations in float64. All rows step together. The equations are in `refit`."""

from math import inf

import torch
from torch import Tensor

from sparseswaps.layer.swaps.tableau import Tableau


def swap_rows(
    matrix: Tensor, tableau: Tableau, size: int, tolerance: Tensor, budget: Tensor
) -> tuple[Tensor, Tensor]:
    """Swap weights in every row, as `refit_cpu.swap_rows` does."""
    swaps, settled = torch.zeros_like(budget), torch.zeros(len(budget), dtype=torch.bool, device=budget.device)
    while True:
        change, slot, p = _best_pairs(tableau, size)
        settled = change >= -tolerance
        active = (~settled & (swaps < budget)).nonzero().flatten()
        if not len(active):
            return swaps, settled
        if 2 * len(active) <= len(budget):
            part = Tableau(*(t[active] for t in tableau))
            made, settled[active] = swap_rows(matrix, part, size, tolerance[active], budget[active] - swaps[active])
            swaps[active] += made
            for whole, some in zip(tableau, part, strict=True):
                whole[active] = some
            return swaps, settled
        _exchange(matrix, tableau, active, slot, p)
        swaps[active] += 1


def _best_pairs(tableau: Tableau, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the least dL of each row, the slot of its u, and its p: each [rows]. Ties: lowest u, then lowest p."""
    kept, b, v, c, s = tableau
    rows, slots, d_in = b.shape
    if not slots:
        nothing = torch.zeros(rows, dtype=torch.int64, device=b.device)
        return torch.zeros(rows, dtype=torch.float64, device=b.device), nothing, nothing
    unused = kept < 0
    u = kept.clamp_min(0)
    a = b.gather(2, u[:, :, None])[..., 0].masked_fill_(unused, 1)
    cost = (v * v / a).masked_fill_(unused, inf)  # of pruning u
    c, s, first = c[:, None], s[:, None], 0
    if size < d_in:
        first = u // size * size
        columns = first[:, :, None] + torch.arange(size, device=b.device)
        b, c, s = (t.expand(-1, slots, -1).gather(2, columns) for t in (b, c, s))
    gain = (b * (v / a)[:, :, None]).add_(c).square_()
    gain /= b.square().div_(a[:, :, None]).add_(s)
    gain, p = gain.max(2)  # [rows, slots]
    change = cost - gain
    least = change.amin(1)
    slot = kept.masked_fill(change != least[:, None], d_in).argmin(1)
    return least, slot, (p + first).gather(1, slot[:, None])[:, 0]


def _exchange(matrix: Tensor, tableau: Tableau, active: Tensor, slot: Tensor, p: Tensor) -> None:
    """Sweep back the weight of a slot [rows], u, and sweep p [rows] in its place, in the rows `active`."""
    kept, table, v, c, s = tableau
    i, slot, p = active, slot[active], p[active]
    each = torch.arange(len(i), device=i.device)
    u, old = kept[i, slot], table[i, slot]
    a, b, x = old[each, u], old[each, p], v[i, slot] / old[each, u]
    factors = torch.zeros(len(kept), 1, kept.shape[1], dtype=table.dtype, device=table.device)
    factors[i, 0] = matrix[p].gather(1, kept[i].clamp_min(0))
    new = matrix[p].masked_fill_(s[i] == inf, 0)  # becomes the row of p after u is swept back
    new -= (factors @ table)[i, 0]
    new += (b / a)[:, None] * old
    pivot = new[each, p]
    z = (c[i, p] + b * x) / pivot
    f = table[i, :, u] / a[:, None]
    y = (table[i, :, p] - f * b[:, None]) / pivot[:, None]
    f[each, slot], y[each, slot] = 0, 0
    left = torch.zeros(*kept.shape, 2, dtype=table.dtype, device=table.device)
    right = torch.zeros(len(kept), 2, table.shape[2], dtype=table.dtype, device=table.device)
    left[i], right[i] = torch.stack([f, y], 2), torch.stack([old, new], 1)
    table.baddbmm_(left, right, alpha=-1)
    table[i, :, u], table[i, :, p] = -f - y * (b / a)[:, None], -y
    v[i] -= f * v[i, slot][:, None] + y * (pivot * z)[:, None]
    least = s[i, p] / (a * pivot)
    c[i] += old * x[:, None] - new * z[:, None]
    s[i] += old.square() / a[:, None] - new.square() / pivot[:, None]
    c[i, u], s[i, u], s[i, p] = x - b / a * z, least, inf
    new /= pivot[:, None]
    new[each, u], new[each, p] = b / (a * pivot), 1 / pivot
    table[i, slot], kept[i, slot], v[i, slot] = new, p, z
