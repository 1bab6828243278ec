"""The search with refit on CPU cores: compiled, in float64, one row at a time. The equations are in `refit`."""

from math import inf

import numpy as np
import torch
from numba import njit
from torch import Tensor

from sparseswaps.layer.swaps.cpu import run_on_all_threads
from sparseswaps.layer.swaps.tableau import Tableau

_NEARLY = 1 - 1e-14  # a pair this near to the best pair is computed again, with a division, which decides

_compiled = njit(cache=True, nogil=True, fastmath={"contract", "nsz", "nnan"})


@_compiled
def _any_gains(b, c, s, x, share, limit):
    """Return whether (c_p + B_up x)^2 >= limit (s_p + share B_up^2) for any p; the loop has no division."""
    count = 0
    for p in range(len(b)):
        shifted = c[p] + x * b[p]
        count += shifted * shifted >= limit * (s[p] + share * b[p] * b[p])
    return count > 0


@_compiled
def _best_pair(kept, table, v, c, s, size, tolerance):
    """Return the slot of u, and p, of the swap of least dL < -tolerance; (-1, -1) if there is none."""
    best, slot, partner = -tolerance, -1, -1
    for i in range(len(kept)):
        u, b = kept[i], table[i]
        x, share = v[i] / b[u], 1 / b[u]
        cost, first = v[i] * x, u // size * size
        group = slice(first, first + size)
        if not _any_gains(b[group], c[group], s[group], x, share, (cost - best) * _NEARLY):
            continue
        for p in range(first, first + size):
            shifted = c[p] + x * b[p]
            change = cost - shifted * shifted / (s[p] + share * b[p] * b[p])
            if change < best or (change == best and slot >= 0 and u < kept[slot]):
                best, slot, partner = change, i, p
    return slot, partner


@_compiled
def _exchange(matrix, kept, table, v, c, s, slot, p):
    """Sweep back the weight of a slot, u, and sweep p in its place."""
    u, old = kept[slot], table[slot].copy()
    a, b, x = old[u], old[p], v[slot] / old[u]
    new = np.where(s == inf, 0.0, matrix[p])  # becomes the row of p after u is swept back
    for i in range(len(kept)):
        new -= matrix[p, kept[i]] * table[i]
    new += b / a * old
    pivot = new[p]
    z = (c[p] + b * x) / pivot
    for i in range(len(kept)):
        if i != slot:
            row = table[i]
            f = row[u] / a
            y = (row[p] - f * b) / pivot
            for j in range(len(row)):
                row[j] -= f * old[j] + y * new[j]
            row[u], row[p] = -f - y * b / a, -y
            v[i] -= f * v[slot] + y * pivot * z
    least = s[p] / (a * pivot)
    for j in range(len(c)):
        c[j] += old[j] * x - new[j] * z
        s[j] += old[j] * old[j] / a - new[j] * new[j] / pivot
        table[slot, j] = new[j] / pivot
    c[u], s[u], s[p] = x - b / a * z, least, inf
    table[slot, u], table[slot, p] = b / (a * pivot), 1 / pivot
    kept[slot], v[slot] = p, z


@_compiled
def _swap_row(matrix, kept, table, v, c, s, size, tolerance, budget):
    swaps = 0
    while True:
        slot, p = _best_pair(kept, table, v, c, s, size, tolerance)
        if slot < 0 or swaps >= budget:
            return swaps, slot < 0
        _exchange(matrix, kept, table, v, c, s, slot, p)
        swaps += 1


def swap_rows(
    matrix: Tensor, tableau: Tableau, size: int, tolerance: Tensor, budget: Tensor
) -> tuple[Tensor, Tensor]:
    """Swap weights in every row until no swap lowers L by more than `tolerance` [rows], or `budget` [rows] is spent.

    `matrix` is D, float64 [d_in, d_in], and both weights of a swap are in the same `size` columns. The tableau is
    updated. Returns the swaps made, int64 [rows], and whether no swap gains any more, boolean [rows].
    """
    swaps, settled = torch.empty_like(budget), torch.empty(len(budget), dtype=torch.bool)
    arrays = [t.numpy() for t in (*tableau, tolerance, budget, swaps, settled)]
    whole, counts = matrix.numpy(), (tableau.kept >= 0).sum(1).tolist()

    def swap_part(rows: slice) -> None:
        for row in range(rows.start, rows.stop):
            *state, least, most, made, ended = (array[row : row + 1] for array in arrays)
            kept, table, v, c, s = (array[0] for array in state)
            used = slice(counts[row])
            made[0], ended[0] = _swap_row(whole, kept[used], table[used], v[used], c, s, size, least[0], most[0])

    for _ in run_on_all_threads(len(budget), 1, swap_part):
        pass
    return swaps, settled
