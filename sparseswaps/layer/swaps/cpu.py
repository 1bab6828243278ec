"""The search on CPU cores: compiled, in float64, one row at a time, so that a row's state stays in a core's cache.

Threads take rows as they become free; the result of a row depends on that row alone. Whole rows are searched by peeling
(docs/engine.md).
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from math import inf

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from torch import Tensor

from sparseswaps.base.progress import Report
from sparseswaps.layer.swaps.backends import Rows
from sparseswaps.layer.swaps.bounds import LAMBDA, strongest_by_tile, strongest_correlation
from sparseswaps.layer.swaps.cost import feature_norms, rounding

_TILE = 64  # columns that share one stored lowest bound
_ROWS = 8  # rows that a thread takes at a time

# The inputs hold no NaN (`refine` checks this), but infinities, which mark closed weights.
_compiled = njit(cache=True, nogil=True, fastmath={"contract", "nsz", "nnan"})


@intrinsic
def _minimum(context, a, b):
    """Return min(a, b) in a form that LLVM vectorises in a reduction, unlike Python's min."""

    def code(context, builder, signature, arguments):
        kind = arguments[0].type
        minimum = builder.module.declare_intrinsic("llvm.minnum", [kind], ir.FunctionType(kind, [kind, kind]))
        return builder.call(minimum, arguments, fastmath=("nnan", "nsz"))

    return types.float64(types.float64, types.float64), code


@_compiled
def _lowest_value(values):
    lowest = inf
    for i in range(len(values)):
        lowest = _minimum(lowest, values[i])
    return lowest


@_compiled
def _lowest_difference(cost, bound):
    lowest = inf
    for i in range(len(cost)):
        lowest = _minimum(lowest, cost[i] - bound[i])
    return lowest


@_compiled
def _lowest_pair(cost, w, row, twice):
    lowest = inf
    for j in range(len(cost)):
        lowest = _minimum(lowest, cost[j] - twice * w[j] * row[j])
    return lowest


@_compiled
def _fill_floors(cost, bound, floors):
    for tile in range(len(floors)):
        columns = slice(tile * _TILE, (tile + 1) * _TILE)
        floors[tile] = _lowest_difference(cost[columns], bound[columns])


@_compiled
def _lowest_index(cost, bound, floors):
    """Return the first index of the lowest cost - bound."""
    tile = 0
    for t in range(len(floors)):
        if floors[t] < floors[tile]:
            tile = t
    index = tile * _TILE
    for i in range(index, min(len(cost), index + _TILE)):
        if cost[i] - bound[i] < cost[index] - bound[index]:
            index = i
    return index


@_compiled
def _cheapest_partner(cost, w, row, twice, floors, share, rho, limit):
    """Return the lowest of cost_j - twice w_j row_j and the first column of its tile; inf if none is below `limit`.

    In tile t the interaction is at most share rho[t] beyond the part in `floors`, so most tiles are skipped.
    """
    lowest, start = inf, 0
    for tile in range(len(floors)):
        if floors[tile] - share * rho[tile] <= limit:
            columns = slice(tile * _TILE, (tile + 1) * _TILE)
            lowest_of_tile = _lowest_pair(cost[columns], w[columns], row[columns], twice)
            if lowest_of_tile < lowest:
                lowest, start = lowest_of_tile, tile * _TILE
    return lowest, start


@_compiled
def _partner_index(cost, w, row, twice, start):
    """Return the first index of the lowest of cost_j - twice w_j row_j in the tile from column `start` on."""
    lowest, partner = inf, start
    for j in range(start, min(len(cost), start + _TILE)):
        value = cost[j] - twice * w[j] * row[j]
        if value < lowest:
            lowest, partner = value, j
    return partner


@_compiled
def _best_in_row(w, gram, s, rho, pruning, keeping, bound_u, bound_p, floors_u, floors_p):
    """Return the pair of the cheapest swap of a row, or (-1, -1) if none improves.

    `pruning` [d_in] is the cost of pruning each kept weight alone, `keeping` [d_in] the cost of keeping each pruned
    weight alone. Both are infinite for the other weights, and the search overwrites both. `rho` [d_in, tiles] is the
    strongest correlation of a feature with each tile of columns.
    """
    best, u, p = 0.0, -1, -1
    _fill_floors(pruning, bound_u, floors_u)
    _fill_floors(keeping, bound_p, floors_p)
    lowest_u, lowest_p = _lowest_value(floors_u), _lowest_value(floors_p)
    kept_side = True
    while lowest_u + lowest_p < best or (u >= 0 and lowest_u + lowest_p == best):
        if kept_side:
            mine, other, bound, floors, floors_other, share = pruning, keeping, bound_u, floors_u, floors_p, LAMBDA
        else:
            mine, other, bound, floors, floors_other, share = keeping, pruning, bound_p, floors_p, floors_u, 1 / LAMBDA
        i = _lowest_index(mine, bound, floors)
        share *= s[i] * s[i]
        cost, start = _cheapest_partner(other, w, gram[i], 2 * w[i], floors_other, share, rho[i], best - mine[i])
        cost += mine[i]
        if cost < best or (u >= 0 and cost == best):
            j = _partner_index(other, w, gram[i], 2 * w[i], start)
            first, second = (i, j) if kept_side else (j, i)
            if cost < best or first < u or (first == u and second < p):
                best, u, p = cost, first, second
        mine[i] = inf
        tile = i // _TILE
        columns = slice(tile * _TILE, (tile + 1) * _TILE)
        floors[tile] = _lowest_difference(mine[columns], bound[columns])
        if kept_side:
            lowest_u = _lowest_value(floors)
        else:
            lowest_p = _lowest_value(floors)
        kept_side = not kept_side
    return u, p


@_compiled
def _best_in_groups(w, gram, pruning, keeping, bound_u, bound_p, size, floors):
    """Return the pair of the cheapest swap within a group of `size` columns, or (-1, -1) if none improves."""
    for group in range(len(floors)):
        lowest_u, lowest_p = inf, inf
        for i in range(group * size, (group + 1) * size):
            lowest_u = _minimum(lowest_u, pruning[i] - bound_u[i])
            lowest_p = _minimum(lowest_p, keeping[i] - bound_p[i])
        floors[group] = lowest_u + lowest_p
    best, u, p, likely = 0.0, -1, -1, 0
    for group in range(len(floors)):
        if floors[group] < floors[likely]:
            likely = group
    for turn in range(-1, len(floors)):  # the likeliest group first, since a low cost skips other groups
        group = likely if turn < 0 else turn
        if floors[group] > best:
            continue  # no pair of the group is cheap enough
        for i in range(group * size, (group + 1) * size):
            if pruning[i] == inf:
                continue
            for j in range(group * size, (group + 1) * size):
                cost = pruning[i] + keeping[j] - 2 * w[i] * w[j] * gram[i, j]
                if cost < best or (cost == best and u >= 0 and (i < u or (i == u and j < p))):
                    best, u, p = cost, i, j
    return u, p


@_compiled
def _move(c, slope, prune, keep, pruning, keeping, row_u, row_p, w_u, w_p):
    """Update the correlation vector for a swap, and the cost of every weight alone."""
    for i in range(len(c)):
        moved = c[i] + (w_u * row_u[i] - w_p * row_p[i])
        c[i] = moved
        pruning[i] = prune[i] + slope[i] * moved
        keeping[i] = keep[i] + slope[i] * moved


@_compiled
def _swap_row(w, gram, s, rho, rho_tiles, unit, kept, frozen, c, size, budget):
    d_in = len(w)
    slope, prune, keep, alone = np.empty(d_in), np.empty(d_in), np.empty(d_in), np.empty(d_in)
    bound_u, bound_p, pruning, keeping = np.empty(d_in), np.empty(d_in), np.empty(d_in), np.empty(d_in)
    for i in range(d_in):
        own = s[i] * s[i]
        alone[i] = own + unit * s[i]
        bound_u[i], bound_p[i] = own * rho[i] * LAMBDA, own * rho[i] / LAMBDA
        slope[i] = 2 * w[i] if kept[i] else -2 * w[i]
        prune[i] = alone[i] if kept[i] and not frozen[i] else inf
        keep[i] = inf if kept[i] else alone[i]
    tiles = (d_in + _TILE - 1) // _TILE if size == d_in else d_in // size
    floors_u, floors_p = np.empty(tiles), np.empty(tiles)
    swaps = 0
    u, p, w_u, w_p = 0, 0, 0.0, 0.0
    while True:
        _move(c, slope, prune, keep, pruning, keeping, gram[u], gram[p], w_u, w_p)
        if size == d_in:
            u, p = _best_in_row(w, gram, s, rho_tiles, pruning, keeping, bound_u, bound_p, floors_u, floors_p)
        else:
            u, p = _best_in_groups(w, gram, pruning, keeping, bound_u, bound_p, size, floors_u)
        if u < 0:
            return swaps, True
        if swaps >= budget:
            return swaps, False
        w_u, w_p = w[u], w[p]
        kept[u], kept[p] = False, True
        slope[u], slope[p] = -slope[u], -slope[p]
        prune[u], keep[u], prune[p], keep[p] = inf, alone[u], alone[p], inf
        swaps += 1


@_compiled
def _swap_chunk(weight, s, unit, gram, rho, rho_tiles, size, mask, frozen, correlation, budget, swaps, certified):
    for row in range(len(weight)):
        w, kept, c = weight[row], (mask[row], frozen[row]), correlation[row]
        swaps[row], certified[row] = _swap_row(w, gram, s[row], rho, rho_tiles, unit[row], *kept, c, size, budget[row])


@_compiled
def _eliminate_chunk(weight, s, gram, size, kept, mask):
    rows, d_in = weight.shape
    c, alone, pruning = np.empty(d_in), np.empty(d_in), np.empty(d_in)
    floors = np.empty((d_in + _TILE - 1) // _TILE)
    spare, nothing = np.empty(d_in // size, np.int64), np.zeros(d_in)
    for row in range(rows):
        w = weight[row]
        for i in range(d_in):
            c[i] = 0
            alone[i] = pruning[i] = s[row, i] * s[row, i] if kept < size else inf
        spare[:] = size - kept
        for _ in range(len(spare) * (size - kept)):
            _fill_floors(pruning, nothing, floors)
            u = _lowest_index(pruning, nothing, floors)
            mask[row, u] = False
            alone[u] = inf
            spare[u // size] -= 1
            if spare[u // size] == 0:
                alone[u // size * size : (u // size + 1) * size] = inf
            pruned, twice = gram[u], 2 * w[u]
            for i in range(d_in):
                c[i] += twice * pruned[i]
                pruning[i] = alone[i] + w[i] * c[i]


def _run_on_all_threads(rows: int, work: Callable[[slice], None]) -> Iterator[slice]:
    """Call `work` for slices that cover all rows, on as many threads as torch uses; yield the finished slices in order.

    `work` must not call torch, which would start more threads in each of these threads.
    """
    slices = [slice(start, min(start + _ROWS, rows)) for start in range(0, rows, _ROWS)]
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for done, _ in zip(slices, pool.map(work, slices), strict=True):
            yield done


def swap_rows(rows: Rows, progress: Report) -> tuple[Tensor, Tensor]:
    """Refine all rows, as `backends.Backend` says."""
    weight, gram, mask, frozen, correlation, size, budget = rows
    swaps, certified = torch.empty_like(budget), torch.empty(len(weight), dtype=torch.bool)
    if size == weight.shape[1]:
        tiles = strongest_by_tile(gram, _TILE)
        rho = tiles.amax(1).double()
    else:
        tiles, rho = torch.empty(0, 0), strongest_correlation(gram, size)
    layer = [t.numpy() for t in (gram, rho, tiles)]
    rowwise = [t.numpy() for t in (mask, frozen, correlation, budget, swaps, certified)]
    weights, scale = weight.numpy(), feature_norms(gram).numpy()

    def swap_part(part: slice) -> None:
        w = weights[part].astype(np.float64)
        s = np.abs(w) * scale
        _swap_chunk(w, s, rounding(s), *layer, size, *(array[part] for array in rowwise))

    ended = made = 0
    for part in _run_on_all_threads(len(weight), swap_part):
        ended, made = ended + int(certified[part].sum()), made + int(swaps[part].sum())
        progress(ended, made)
    return swaps, certified


def eliminate_rows(weight: Tensor, gram: Tensor, size: int, kept: int, progress: Report) -> Tensor:
    """Make a mask by backward elimination, as `backends.Backend` says."""
    mask = torch.ones(weight.shape, dtype=torch.bool)
    weights, entries, result, scale = weight.numpy(), gram.numpy(), mask.numpy(), feature_norms(gram).numpy()

    def eliminate_part(rows: slice) -> None:
        w = weights[rows].astype(np.float64)
        _eliminate_chunk(w, np.abs(w) * scale, entries, size, kept, result[rows])

    for rows in _run_on_all_threads(len(weight), eliminate_part):
        progress(rows.stop, 0)
    return mask
