"""The search with refit: the Gram matrix of each row, swept on the row's kept weights. `refit` gives the equations.

Everything is batched torch in float64, for any device. Compiled code for CPU cores was measured once: a call of
`refit_swaps` took between the same time (d_in 64) and half of it (d_in 512), so it is not kept.
"""

from math import inf
from typing import NamedTuple

import torch
from torch import Tensor

from sparseswaps.base.errors import InputError


class Tableau(NamedTuple):
    """The blocks A, B, v, c and s of some rows, which a search updates in place.

    A slot is a place for a kept weight. Every row has as many slots as the row with the most kept weights fills, and at
    least one. The unused slots of other rows come last: their `kept` is -1, and their rows of `table` are zero.
    """

    kept: Tensor  # int64 [rows, slots], the column of the weight in each slot
    table: Tensor  # float64 [rows, slots, d_in]: column j is A_j for kept j, and B_j for pruned j
    v: Tensor  # float64 [rows, slots], the refitted weights
    c: Tensor  # float64 [rows, d_in]; meaningless but finite for kept columns
    s: Tensor  # float64 [rows, d_in]; infinite for kept columns, so that no swap keeps them again

    @property
    def mask(self) -> Tensor:
        """The kept weights, boolean [rows, d_in]."""
        return self.s == inf


def invert(matrices: Tensor) -> Tensor:
    """Return the inverse of one or many blocks of D, float64 [..., n, n]. Raises InputError if rounding forbids it."""
    factor, failed = torch.linalg.cholesky_ex(matrices)
    if failed.any():
        raise InputError("damping: too small for the rounding of this Gram matrix; use a larger one, such as 0.01")
    return torch.cholesky_inverse(factor)


def build_tableau(weight: Tensor, matrix: Tensor, mask: Tensor) -> Tableau:
    """Compute the tableau of some rows from Cholesky factors of their kept weights' matrices D_SS.

    `weight` is [rows, d_in], `matrix` D [d_in, d_in], both float64, and `mask` boolean [rows, d_in].
    """
    counts = mask.sum(1, keepdim=True)
    slots = max(1, int(counts.max()))
    kept = (~mask).byte().argsort(dim=1, stable=True)[:, :slots]
    used = torch.arange(slots, device=kept.device) < counts  # [rows, slots]
    chosen = matrix[kept].mul_(used[:, :, None])  # D_S, [rows, slots, d_in]
    places = kept[:, None].expand(-1, slots, -1)
    square = chosen.gather(2, places).mul_(used[:, None])  # D_SS, with zeros for unused slots
    square.diagonal(dim1=1, dim2=2).add_((~used).double())
    inverse = invert(square)  # A
    inverse.diagonal(dim1=1, dim2=2).mul_(used)
    target = weight @ matrix  # D w
    v = torch.einsum("rij,rj->ri", inverse, target.gather(1, kept))
    c = target - torch.einsum("ri,rij->rj", v, chosen)
    table = inverse @ chosen  # B
    s = (matrix.diagonal() - (chosen * table).sum(1)).masked_fill_(mask, inf)
    table.scatter_(2, places, torch.where(used[:, None], inverse, table.gather(2, places)))
    return Tableau(kept.masked_fill(~used, -1), table, v, c, s)


def swap_rows(matrix: Tensor, tableau: Tableau, size: int, tolerance: Tensor, budget: Tensor) -> tuple[Tensor, Tensor]:
    """Swap weights in every row until no swap lowers L by more than `tolerance` [rows], or `budget` [rows] is spent.

    `matrix` is D, float64 [d_in, d_in]. Both weights of a swap are in the same group of `size` columns. The tableau is
    updated. Returns the swaps made, int64 [rows], and whether no swap gains any more, boolean [rows].
    """
    swaps = torch.zeros_like(budget)
    while True:
        change, slot, p = _best_pairs(tableau, size)
        settled = change >= -tolerance
        active = (~settled & (swaps < budget)).nonzero().flatten()
        if not len(active):
            return swaps, settled
        if 2 * len(active) <= len(budget):  # go on with these rows alone
            part = Tableau(*(t[active] for t in tableau))
            made, settled[active] = swap_rows(matrix, part, size, tolerance[active], budget[active] - swaps[active])
            swaps[active] += made
            for whole, some in zip(tableau, part, strict=True):
                whole[active] = some
            return swaps, settled
        _exchange(matrix, tableau, active, slot[active], p[active])
        swaps[active] += 1


def _best_pairs(tableau: Tableau, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the least dL of each row, the slot of its u, and its p: each [rows]. Ties: lowest u, then lowest p."""
    kept, b, v, c, s = tableau
    unused, u = kept < 0, kept.clamp_min(0)
    a = b.gather(2, u[:, :, None])[..., 0].masked_fill_(unused, 1)  # A_uu, [rows, slots]
    cost = (v * v / a).masked_fill_(unused, inf)  # of pruning u alone
    c, s, first = c[:, None], s[:, None], torch.zeros_like(u)
    if size < b.shape[2]:
        first = u // size * size
        columns = first[:, :, None] + torch.arange(size, device=b.device)
        b, c, s = (t.expand(-1, b.shape[1], -1).gather(2, columns) for t in (b, c, s))
    root = a.rsqrt()[:, :, None]
    b = b * root  # B_up / sqrt(A_uu)
    gain = (b * (v[:, :, None] * root)).add_(c).square_()  # torch.addcmul takes ten times as long
    gain.div_(b.square_().add_(s))
    gain, p = gain.max(2)  # [rows, slots]
    change = cost - gain
    least = change.amin(1)
    slot = kept.masked_fill(change != least[:, None], torch.iinfo(kept.dtype).max).argmin(1)
    return least, slot, (p + first).gather(1, slot[:, None])[:, 0]


def _exchange(matrix: Tensor, tableau: Tableau, rows: Tensor, slot: Tensor, p: Tensor) -> None:
    """Prune the weight u in a slot and keep p, both [rows], in some rows: sweep back u, and sweep p in its place.

    Sweeping back u subtracts f old, with the row of u; sweeping p then subtracts y new, with the row that p then has.
    """
    kept, table, v, c, s = tableau
    each = torch.arange(len(rows), device=rows.device)
    u, old = kept[rows, slot], table[rows, slot]
    a, b = old[each, u], old[each, p]  # A_uu, B_up
    x, ratio = v[rows, slot] / a, (b / a)[:, None]
    left, right = (torch.zeros(len(kept), n, 2, dtype=a.dtype, device=a.device) for n in table.shape[1:])
    left[rows, :, 0] = matrix[p].gather(1, kept[rows].clamp_min(0))
    products = (left[:, None, :, 0] @ table)[rows, 0]  # D_pS (A | B)
    new = matrix[p].masked_fill_(s[rows] == inf, 0) - products + ratio * old
    pivot = new[each, p][:, None]  # s_p + B_up^2 / A_uu
    z = (c[rows, p] + b * x)[:, None] / pivot  # the new weight
    f = table[rows, :, u] / a[:, None]
    y = (table[rows, :, p] - f * b[:, None]) / pivot
    f[each, slot], y[each, slot] = 0, 0
    left[rows], right[rows] = torch.stack([f, y], 2), torch.stack([old, new], 2)
    table.baddbmm_(left, right.mT, alpha=-1)
    table[rows, :, u], table[rows, :, p] = -f - y * ratio, -y
    v[rows] -= f * v[rows, slot][:, None] + y * pivot * z
    left_over = s[rows, p] / (a * pivot[:, 0])
    c[rows] += old * x[:, None] - new * z
    s[rows] += old.square() / a[:, None] - new.square() / pivot
    c[rows, u], s[rows, u], s[rows, p] = x - (ratio * z)[:, 0], left_over, inf
    new = new / pivot
    new[each, u], new[each, p] = (ratio / pivot)[:, 0], 1 / pivot[:, 0]
    table[rows, slot], kept[rows, slot], v[rows, slot] = new, p, z[:, 0]
