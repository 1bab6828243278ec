"""The search on a GPU, in Triton: one program refines one row until no swap improves it. All decisions are in float64.

A row's state is in memory and read in chunks, so registers limit neither d_in nor the number of rows on a
multiprocessor, which gets a new row when it has finished one.
"""

from math import inf

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparseswaps.base.progress import Report
from sparseswaps.layer.swaps.backends import Rows
from sparseswaps.layer.swaps.bounds import LAMBDA, strongest_correlation
from sparseswaps.layer.swaps.cost import feature_norms, norms, rounding

_CHUNK = 512  # features in a step of a sweep: 4 a thread, 16 bytes of float32
_FEW = 1024  # features that a search continues with in registers, once no other feature can be in the best pair
_WARPS, _REGISTERS = 4, 128  # then four rows share a multiprocessor and hide each other's waits
_FUSED = False  # so that products and sums are rounded as on the CPU with every version of Triton


def swap_rows(rows: Rows, progress: Report) -> tuple[Tensor, Tensor]:
    """Refine all rows, as `backends.Backend` says."""
    weight, gram, mask, frozen, correlation, size, budget = rows
    count, d_in = weight.shape
    swaps = torch.zeros_like(budget)
    certified = torch.zeros(count, dtype=torch.bool, device=weight.device)
    unit = torch.cat([rounding(norms(part, gram)) for part in weight.split(256)])  # float64 for some rows at a time
    state = mask.to(torch.int8) + (mask & frozen)  # 0: pruned, 1: kept, 2: kept and never to be pruned
    row = (weight, gram, state, correlation, feature_norms(gram), unit)
    result = (budget, swaps, certified.view(torch.int8))
    options = {"num_warps": _WARPS, "maxnreg": _REGISTERS, "enable_fp_fusion": _FUSED}
    if size == d_in:
        strongest = strongest_correlation(gram, size).float()
        strongest = strongest.nextafter(torch.full_like(strongest, inf))  # rounded up, so that the bound holds
        low = torch.empty_like(correlation)
        listed = torch.empty(count, _FEW, dtype=torch.int32, device=weight.device)
        with torch.cuda.device_of(weight):
            _swap_row[(count,)](*row, *result, strongest, low, listed, d_in, LAMBDA, _CHUNK, _FEW, **options)
    else:
        padded = triton.next_power_of_2(size)
        column = torch.arange(d_in, device=weight.device)[:, None]
        inside = gram.gather(1, column // size * size + torch.arange(size, device=weight.device))
        with torch.cuda.device_of(weight):
            _swap_groups[(count,)](*row, *result, inside, d_in, size, max(1, _CHUNK // padded), padded, **options)
    mask.copy_(state != 0)
    progress(int(certified.sum()), int(swaps.sum()))
    return swaps, certified


def eliminate_rows(weight: Tensor, gram: Tensor, size: int, kept: int, progress: Report) -> Tensor:
    """Make a mask by backward elimination, as `backends.Backend` says."""
    rows, d_in = weight.shape
    mask = torch.ones(rows, d_in, dtype=torch.bool, device=weight.device)
    width = triton.next_power_of_2(d_in)
    warps = min(32, max(1, width // 1024))
    arguments = (weight, gram, mask.view(torch.int8), feature_norms(gram), d_in, size, kept, width)
    with torch.cuda.device_of(weight):
        _eliminate[(rows,)](*arguments, num_warps=warps, maxnreg=min(255, 2048 // warps), enable_fp_fusion=_FUSED)
    progress(rows, 0)
    return mask


@triton.jit
def _lower(value, index, value2, index2):
    """Return the lower value with its index; of equal values the lower index."""
    first = (value < value2) | ((value == value2) & (index < index2))
    return tl.where(first, value, value2), tl.where(first, index, index2)


@triton.jit
def _lower2(a, u, b, p, a2, u2, b2, p2):
    """Return the lowest bound of either side with its feature: two `_lower` in one reduction."""
    a, u = _lower(a, u, a2, u2)
    b, p = _lower(b, p, b2, p2)
    return a, u, b, p


@triton.jit
def _lower3(a, u, b, p, cost, a2, u2, b2, p2, cost2):
    """Return the lowest bound of either side with its feature, and the lower cost, in one reduction."""
    a, u, b, p = _lower2(a, u, b, p, a2, u2, b2, p2)
    return a, u, b, p, tl.where(cost < cost2, cost, cost2)


@triton.jit
def _move(index, valid, u, p, w_u, w_p, correlation, gram, d_in):
    """Update the correlations for the swap of kept u and pruned p; store and return them."""
    c = tl.load(correlation + index, valid, 0.0)
    g_u = tl.load(gram + u * d_in + index, valid, 0.0).to(tl.float64)
    g_p = tl.load(gram + p * d_in + index, valid, 0.0).to(tl.float64)
    c += w_u * g_u - w_p * g_p
    tl.store(correlation + index, c, valid)
    return c


@triton.jit
def _alone(index, valid, kept, c, weight, norm, unit):
    """Return each feature's weight, its s^2, and the cost of pruning it alone (of keeping it, if it is pruned)."""
    w = tl.load(weight + index, valid, 0.0).to(tl.float64)
    s = tl.abs(w) * tl.load(norm + index, valid, 0.0)
    shared = 2 * w * c
    return w, s * s, s * s + unit * s + tl.where(kept, shared, -shared)


@triton.jit
def _load_ends(u, p, correlation, weight, norm, unit):
    """Return both ends of the pairs to try: (feature, weight, cost alone) of each."""
    w_u, _, alone_u = _alone(u, True, True, tl.load(correlation + u), weight, norm, unit)
    w_p, _, alone_p = _alone(p, True, False, tl.load(correlation + p), weight, norm, unit)
    return u, w_u, alone_u, p, w_p, alone_p


@triton.jit
def _pair_costs(index, near, kept, w, alone, ends, gram, d_in):
    """Return the cost of each kept feature with p and of each pruned feature with u; infinite for features not near."""
    u, w_u, alone_u, p, w_p, alone_p = ends
    g = tl.load(gram + tl.where(kept, p, u).to(tl.int64) * d_in + index, near, 0.0).to(tl.float64)
    cost = alone + tl.where(kept, alone_p, alone_u) - 2 * w * tl.where(kept, w_p, w_u) * g
    return tl.where(near, cost, float("inf"))


@triton.jit
def _pair_numbers(index, kept, ends, d_in):
    """Return the number u d_in + p of each such pair: the lowest number has the lowest u, then the lowest p."""
    u, _, _, p, _, _ = ends
    return tl.where(kept, index, u).to(tl.int64) * d_in + tl.where(kept, p, index)


@triton.jit
def _close_ends(index, bound, ends):
    """Return the bounds, infinite for both ends."""
    u, _, _, p, _, _ = ends
    return tl.where((index == u) | (index == p), float("inf"), bound)


@triton.jit
def _split_sides(index, kept, bound):
    """Return the bounds of kept features and the bounds of pruned features, each with its feature."""
    return tl.where(kept, bound, float("inf")), index, tl.where(kept, float("inf"), bound), index


@triton.jit
def _reduce_sides(a, u, b, p, cost, pairs, best, pair):
    """Return the lowest bound of either side with its feature, and the best pair after trying `pairs`."""
    a, u, b, p, lowest = tl.reduce((a, u, b, p, cost), 0, _lower3)
    if lowest <= best:
        best, pair = _lower(best, pair, lowest, tl.min(tl.where(cost == lowest, pairs, 1 << 62), 0))
    return a, u, b, p, best, pair


@triton.jit
def _swap(pair, mask, weight, d_in):
    """Make a swap in the mask, visible to all threads; return u, p and their weights, for `_move`."""
    u, p = pair // d_in, pair % d_in
    tl.store(mask + u, 0)
    tl.store(mask + p, 1)
    tl.debug_barrier()
    return u, p, tl.load(weight + u).to(tl.float64), tl.load(weight + p).to(tl.float64)


@triton.jit
def _swap_row(
    weight, gram, mask, correlation, norm, unit, budget, swaps, certified, strongest, low, listed,
    d_in, lam: tl.constexpr, chunk: tl.constexpr, few: tl.constexpr,
):  # fmt: skip
    """Refine a row in which any two features may change places, by peeling (docs/engine.md).

    A step tries the open kept feature u of lowest bound a with the pruned features, and the open pruned feature p of
    lowest bound b with the kept features, and closes both. It tries only features near enough to be in a better pair,
    and lists them. Once the list holds all of them, the search continues in registers.
    """
    i = tl.program_id(0).to(tl.int64)
    weight, mask, correlation, low = weight + i * d_in, mask + i * d_in, correlation + i * d_in, low + i * d_in
    listed += i * few
    unit, allowed = tl.load(unit + i), tl.load(budget + i)
    lane, slot = tl.arange(0, chunk), tl.arange(0, few)
    none = tl.full([chunk], float("inf"), tl.float64)
    made, pair = allowed * 0, allowed * 0
    u_swap, p_swap, w_u, w_p = made, made, unit * 0, unit * 0  # no swap at first
    improving = True
    while improving:
        least = (none, lane, none, lane)
        for start in range(0, d_in, chunk):
            index = start + lane
            valid = index < d_in
            c = _move(index, valid, u_swap, p_swap, w_u, w_p, correlation, gram, d_in)
            state = tl.load(mask + index, valid, 0)
            kept = state != 0
            _, own, alone = _alone(index, valid, kept, c, weight, norm, unit)
            share = own * tl.load(strongest + index, valid, 0.0)
            bound = alone - tl.where(kept, share * lam, share * (1 / lam))
            bound = tl.where(valid & (state != 2), bound, float("inf"))
            tl.store(low + index, bound, valid)
            least = _lower2(*least, *_split_sides(index, kept, bound))
        a, u, b, p = tl.reduce(least, 0, _lower2)
        best, pair = unit * 0, made * 0 - 1  # no pair; it wins ties, since a swap of cost 0 is no improvement
        tl.debug_barrier()  # correlations and bounds are in memory, visible to all threads

        near_count = u * 0 + few + 1  # not listed yet
        while (near_count > few) & (a + b <= best):
            ends = _load_ends(u, p, correlation, weight, norm, unit)
            least, costs, pairs = (none, lane, none, lane), none, lane.to(tl.int64)
            near_count = u * 0
            for start in range(0, d_in, chunk):
                index = start + lane
                bound = tl.load(low + index, index < d_in, float("inf"))
                kept = tl.load(mask + index, index < d_in, 0) != 0
                near = bound + tl.where(kept, b, a) <= best
                position = near_count + tl.cumsum(near.to(tl.int32)) - 1
                tl.store(listed + position, index, near & (position < few))
                near_count += tl.sum(near.to(tl.int32))
                c = tl.load(correlation + index, near, 0.0)
                w, _, alone = _alone(index, near, kept, c, weight, norm, unit)
                cost = _pair_costs(index, near, kept, w, alone, ends, gram, d_in)
                costs, pairs = _lower(costs, pairs, cost, _pair_numbers(index, kept, ends, d_in))
                least = _lower2(*least, *_split_sides(index, kept, _close_ends(index, bound, ends)))
            tl.debug_barrier()  # the list is in memory, all threads have read the bounds
            tl.store(low + u, float("inf"))
            tl.store(low + p, float("inf"))
            a, u, b, p, best, pair = _reduce_sides(*least, costs, pairs, best, pair)
            tl.debug_barrier()  # the ends are closed

        filled = slot < tl.where(a + b <= best, near_count, 0)
        index = tl.load(listed + slot, filled, 0)
        bound = tl.load(low + index, filled, float("inf"))
        kept = tl.load(mask + index, filled, 0) != 0
        c = tl.load(correlation + index, filled, 0.0)
        w, _, alone = _alone(index, filled, kept, c, weight, norm, unit)
        while a + b <= best:
            ends = _load_ends(u, p, correlation, weight, norm, unit)
            near = bound + tl.where(kept, b, a) <= best
            cost = _pair_costs(index, near, kept, w, alone, ends, gram, d_in)
            bound = _close_ends(index, bound, ends)
            sides = _split_sides(index, kept, bound)
            a, u, b, p, best, pair = _reduce_sides(*sides, cost, _pair_numbers(index, kept, ends, d_in), best, pair)

        improving = (pair >= 0) & (made < allowed)
        tl.debug_barrier()  # all threads are done with the row's state
        if improving:
            u_swap, p_swap, w_u, w_p = _swap(pair, mask, weight, d_in)
            made += 1
    tl.store(swaps + i, made)
    tl.store(certified + i, (pair < 0).to(tl.int8))


@triton.jit
def _swap_groups(
    weight, gram, mask, correlation, norm, unit, budget, swaps, certified, inside,
    d_in, size: tl.constexpr, groups: tl.constexpr, padded: tl.constexpr,
):  # fmt: skip
    """Refine a row in which two features of the same group of `size` may change places, by trying every pair.

    `inside` [d_in, size] holds the Gram entries of each feature with the features of its group.
    """
    i = tl.program_id(0).to(tl.int64)
    weight, mask, correlation = weight + i * d_in, mask + i * d_in, correlation + i * d_in
    unit, allowed = tl.load(unit + i), tl.load(budget + i)
    group, column = tl.arange(0, groups)[:, None], tl.arange(0, padded)[None, :]
    none = tl.full([groups, padded], 0, tl.float64)
    made, pair = allowed * 0, allowed * 0
    u_swap, p_swap, w_u, w_p = made, made, unit * 0, unit * 0  # no swap at first
    improving = True
    while improving:
        best, pair = none, none.to(tl.int64) - 1  # no pair; it wins ties, since a swap of cost 0 is no improvement
        for start in range(0, d_in, groups * size):
            first = start + group * size
            index = first + column
            valid = (column < size) & (index < d_in)
            c = _move(index, valid, u_swap, p_swap, w_u, w_p, correlation, gram, d_in)
            state = tl.load(mask + index, valid, 0)
            kept = state != 0
            w, _, alone = _alone(index, valid, kept, c, weight, norm, unit)
            for j in range(size):
                w_j = tl.sum(tl.where(column == j, w, 0.0), 1, keep_dims=True)
                alone_j = tl.min(tl.where((column == j) & (state == 1), alone, float("inf")), 1, keep_dims=True)
                g = tl.load(inside + (first + j) * size + column, valid, 0.0).to(tl.float64)
                cost = tl.where(valid & ~kept, alone_j + alone - 2 * w_j * w * g, float("inf"))
                best, pair = _lower(best, pair, cost, (first + j).to(tl.int64) * d_in + index)
        best, pair = tl.reduce((best, pair), 1, _lower)
        best, pair = tl.reduce((best, pair), 0, _lower)

        improving = (pair >= 0) & (made < allowed)
        tl.debug_barrier()  # all threads are done with the mask
        if improving:
            u_swap, p_swap, w_u, w_p = _swap(pair, mask, weight, d_in)
            made += 1
    tl.store(swaps + i, made)
    tl.store(certified + i, (pair < 0).to(tl.int8))


@triton.jit
def _eliminate(weight, gram, mask, norm, d_in, size: tl.constexpr, kept: tl.constexpr, width: tl.constexpr):
    """Prune the feature of least cost repeatedly, among the features whose group has weights to spare."""
    i = tl.program_id(0).to(tl.int64)
    weight, mask = weight + i * d_in, mask + i * d_in
    index = tl.arange(0, width)
    valid = index < d_in
    w = tl.load(weight + index, valid, 0.0).to(tl.float64)
    s = tl.abs(w) * tl.load(norm + index, valid, 0.0)
    cost = tl.where(valid, s * s, float("inf"))  # s_u^2 + 2 w_u c_u, infinite where u may not go
    spare = tl.where(valid, size - kept, 0)  # of the feature's group
    for _ in range(d_in // size * (size - kept)):
        u = tl.argmin(cost, 0).to(tl.int64)
        tl.store(mask + u, 0)
        spare -= (index // size == u // size).to(tl.int32)
        g = tl.load(gram + u * d_in + index, valid, 0.0).to(tl.float64)
        cost += 2 * tl.load(weight + u).to(tl.float64) * w * g
        cost = tl.where((index == u) | (spare <= 0), float("inf"), cost)
