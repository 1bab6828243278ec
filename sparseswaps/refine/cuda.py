"""The search on a GPU, in Triton: one program owns a row and carries it until no swap improves it.

Rows never wait for each other: the GPU hands the next row to whichever multiprocessor has finished one. A row's mask
and correlation stay in memory, where all threads of its program find them; what a search for the best pair needs is in
registers. All decisions are in float64.
"""

from math import inf

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparseswaps.refine.bounds import LAMBDA, strongest_correlation
from sparseswaps.refine.reference import norms, rounding


def swap_rows(
    weight: Tensor, gram: Tensor, mask: Tensor, correlation: Tensor, size: int, budget: Tensor
) -> tuple[Tensor, Tensor]:
    """See `sparseswaps.refine.engine.Backend`."""
    rows, d_in = weight.shape
    swaps = torch.zeros_like(budget)
    certified = torch.zeros(rows, dtype=torch.bool, device=weight.device)
    state = (weight, gram, mask.view(torch.int8), correlation, norm_of(gram), rounding(norms(weight, gram)))
    result = (budget, swaps, certified.view(torch.int8))
    if not rows:
        return swaps, certified
    if size == d_in:
        width = width_of(d_in)
        few = width // 4
        strongest = strongest_correlation(gram, size).float()
        strongest = strongest.nextafter(torch.full_like(strongest, inf))  # rounded up, so that the bound holds
        listed = torch.empty(rows, few, dtype=torch.int32, device=weight.device)
        _swap_row[(rows,)](*state, *result, strongest, listed, d_in, LAMBDA, width, few, num_warps=warps_of(width))
    else:
        blocks, padded = triton.next_power_of_2(d_in // size), triton.next_power_of_2(size)
        column = torch.arange(d_in, device=weight.device)[:, None]
        inside = gram.gather(1, column // size * size + torch.arange(size, device=weight.device))
        _swap_blocks[(rows,)](*state, *result, inside, d_in, size, blocks, padded, num_warps=warps_of(blocks * padded))
    return swaps, certified


def eliminate_rows(weight: Tensor, gram: Tensor, size: int, kept: int) -> Tensor:
    """See `sparseswaps.refine.engine.Backend`."""
    rows, d_in = weight.shape
    mask = torch.ones(rows, d_in, dtype=torch.bool, device=weight.device)
    if rows:
        width = width_of(d_in)
        arguments = (weight, gram, mask.view(torch.int8), norm_of(gram), d_in, size, kept, width)
        _eliminate[(rows,)](*arguments, num_warps=warps_of(width))
    return mask


def width_of(d_in: int) -> int:
    """Features that a program has room for: a power of two."""
    return max(16, triton.next_power_of_2(d_in))


def norm_of(gram: Tensor) -> Tensor:
    """sqrt(G_jj), float64 [d_in]."""
    return gram.diagonal().double().clamp_min(0).sqrt()


def warps_of(width: int) -> int:
    """Warps that share a row of `width` features: 32 features a thread, as far as a program can have threads."""
    return min(32, max(4, width // 1024))


@triton.jit
def _lower(value, index, value2, index2):
    """The lower value with its index; of equal values the one of lower index."""
    first = (value < value2) | ((value == value2) & (index < index2))
    return tl.where(first, value, value2), tl.where(first, index, index2)


@triton.jit
def _lower3(cost, pair, a, u, b, p, cost2, pair2, a2, u2, b2, p2):
    """Three times `_lower` in one reduction."""
    cost, pair = _lower(cost, pair, cost2, pair2)
    a, u = _lower(a, u, a2, u2)
    b, p = _lower(b, p, b2, p2)
    return cost, pair, a, u, b, p


@triton.jit
def _moved(index, valid, u, p, w_u, w_p, correlation, gram, d_in):
    """The correlations once kept u and pruned p have changed places, in memory too."""
    c = tl.load(correlation + index, valid, 0.0)
    g_u = tl.load(gram + u * d_in + index, valid, 0.0).to(tl.float64)
    g_p = tl.load(gram + p * d_in + index, valid, 0.0).to(tl.float64)
    c += w_u * g_u - w_p * g_p
    tl.debug_barrier()  # in narrow rows several threads hold the same feature; all have loaded it
    tl.store(correlation + index, c, valid)
    return c


@triton.jit
def _alone(index, valid, c, row):
    """Of each feature: its weight, s^2, whether it is kept, and what pruning it (or keeping it) costs by itself."""
    weight, mask, norm, unit = row
    w = tl.load(weight + index, valid, 0.0).to(tl.float64)
    kept = tl.load(mask + index, valid, 0) != 0
    s = tl.abs(w) * tl.load(norm + index, valid, 0.0)
    shared = 2 * w * c
    return w, s * s, kept, s * s + unit * s + tl.where(kept, shared, -shared)


@triton.jit
def _bounded(index, valid, c, row, strongest, lam: tl.constexpr):
    """Of each feature: its weight, whether it is kept, its cost alone and the lowest with what it shares with any other
    (see `bounds`), infinite where it is in no pair."""
    w, own, kept, alone = _alone(index, valid, c, row)
    share = own * tl.load(strongest + index, valid, 0.0)
    low = alone - tl.where(kept, share * lam, share * (1 / lam))
    return w, kept, alone, tl.where(valid, low, float("inf"))


@triton.jit
def _near(low, kept, a, b, best):
    """Whether a feature can be in a pair that costs at most `best`."""
    return low + tl.where(kept, b, a) <= best


@triton.jit
def _peel(index, w, kept, alone, low, a, u, b, p, best, pair, row, correlation, gram, d_in):
    """Try u, the open kept feature of lowest bound a, with every pruned one, and p, the open pruned feature of lowest
    bound b, with every kept one, and close both. Returns the bounds, the next a, u, b, p and the best pair so far."""
    w_u, _, _, alone_u = _alone(u, True, tl.load(correlation + u), row)
    w_p, _, _, alone_p = _alone(p, True, tl.load(correlation + p), row)
    near = _near(low, kept, a, b, best)  # no other is read: its pairs cannot win
    g = tl.load(gram + tl.where(kept, p, u).to(tl.int64) * d_in + index, near, 0.0).to(tl.float64)
    cost = alone + tl.where(kept, alone_p, alone_u) - 2 * w * tl.where(kept, w_p, w_u) * g
    cost = tl.where(near, cost, float("inf"))
    pairs = tl.where(kept, index, u).to(tl.int64) * d_in + tl.where(kept, p, index)
    low = tl.where((index == u) | (index == p), float("inf"), low)
    open_u, open_p = tl.where(kept, low, float("inf")), tl.where(kept, float("inf"), low)
    cost, pairs, a, u, b, p = tl.reduce((cost, pairs, open_u, index, open_p, index), 0, _lower3)
    best, pair = _lower(best, pair, cost, pairs)
    return low, a, u, b, p, best, pair


@triton.jit
def _swap_row(
    weight, gram, mask, correlation, norm, unit, budget, swaps, certified, strongest, listed,
    d_in, lam: tl.constexpr, width: tl.constexpr, few: tl.constexpr,
):  # fmt: skip
    """Any two features of a row may change places. The best pair is found by peeling: over the whole row, until at most
    few features can be in a better pair than the one at hand, then over a list of these."""
    i = tl.program_id(0).to(tl.int64)
    weight, mask, correlation, listed = weight + i * d_in, mask + i * d_in, correlation + i * d_in, listed + i * few
    row = (weight, mask, norm, tl.load(unit + i))
    index, slot = tl.arange(0, width), tl.arange(0, few)
    valid = index < d_in
    allowed = tl.load(budget + i)
    made, pair = allowed * 0, allowed * 0
    u_swap, p_swap, w_u, w_p = made, made, tl.load(unit + i) * 0, tl.load(unit + i) * 0  # no swap to make at first
    improving = True
    while improving:
        c = _moved(index, valid, u_swap, p_swap, w_u, w_p, correlation, gram, d_in)
        tl.debug_barrier()  # mask and correlation are in memory, for all threads
        w, kept, alone, low = _bounded(index, valid, c, row, strongest, lam)
        a, u = tl.min(tl.where(kept, low, float("inf")), 0, return_indices=True)
        b, p = tl.min(tl.where(kept, float("inf"), low), 0, return_indices=True)
        best, pair = w_u * 0, made * 0 - 1  # no pair; it wins ties, for a swap of cost 0 is none
        live = tl.sum(_near(low, kept, a, b, best).to(tl.int32))
        while live > few:
            low, a, u, b, p, best, pair = _peel(
                index, w, kept, alone, low, a, u, b, p, best, pair, row, correlation, gram, d_in
            )
            live = tl.sum(_near(low, kept, a, b, best).to(tl.int32))

        near = _near(low, kept, a, b, best)
        tl.store(listed + tl.cumsum(near.to(tl.int32)) - 1, index, near)
        tl.debug_barrier()  # and so is the list
        filled = slot < live
        some = tl.load(listed + slot, filled, 0)
        c = tl.load(correlation + some, filled, 0.0)
        w, kept, alone, low = _bounded(some, filled, c, row, strongest, lam)
        while a + b <= best:
            low, a, u, b, p, best, pair = _peel(
                some, w, kept, alone, low, a, u, b, p, best, pair, row, correlation, gram, d_in
            )

        improving = (pair >= 0) & (made < allowed)
        tl.debug_barrier()  # all threads are done with mask and correlation
        if improving:
            u_swap, p_swap = pair // d_in, pair % d_in
            w_u, w_p = tl.load(weight + u_swap).to(tl.float64), tl.load(weight + p_swap).to(tl.float64)
            tl.store(mask + u_swap, 0)
            tl.store(mask + p_swap, 1)
            made += 1
    tl.store(swaps + i, made)
    tl.store(certified + i, (pair < 0).to(tl.int8))


@triton.jit
def _swap_blocks(
    weight, gram, mask, correlation, norm, unit, budget, swaps, certified, inside,
    d_in, size: tl.constexpr, blocks: tl.constexpr, padded: tl.constexpr,
):  # fmt: skip
    """Two features of the same block of size may change places. Every pair is tried; `inside` [d_in, size] holds the
    Gram entries of each feature with those of its block."""
    i = tl.program_id(0).to(tl.int64)
    weight, mask, correlation = weight + i * d_in, mask + i * d_in, correlation + i * d_in
    row = (weight, mask, norm, tl.load(unit + i))
    first, column = tl.arange(0, blocks)[:, None] * size, tl.arange(0, padded)[None, :]
    index = first + column
    valid = (column < size) & (index < d_in)
    allowed = tl.load(budget + i)
    made, pair = allowed * 0, allowed * 0
    u_swap, p_swap, w_u, w_p = made, made, tl.load(unit + i) * 0, tl.load(unit + i) * 0  # no swap to make at first
    improving = True
    while improving:
        c = _moved(index, valid, u_swap, p_swap, w_u, w_p, correlation, gram, d_in)
        tl.debug_barrier()  # the mask is in memory, for all threads
        w, _, kept, alone = _alone(index, valid, c, row)
        best, pair = w * 0, index.to(tl.int64) * 0 - 1  # no pair; it wins ties, for a swap of cost 0 is none
        for j in range(size):
            w_j = tl.sum(tl.where(column == j, w, 0.0), 1, keep_dims=True)
            alone_j = tl.min(tl.where((column == j) & kept, alone, float("inf")), 1, keep_dims=True)
            g = tl.load(inside + (first + j) * size + column, valid, 0.0).to(tl.float64)
            cost = tl.where(valid & ~kept, alone_j + alone - 2 * w_j * w * g, float("inf"))
            best, pair = _lower(best, pair, cost, (first + j).to(tl.int64) * d_in + index)
        best, pair = tl.reduce((best, pair), 1, _lower)
        best, pair = tl.reduce((best, pair), 0, _lower)

        improving = (pair >= 0) & (made < allowed)
        tl.debug_barrier()  # all threads are done with the mask
        if improving:
            u_swap, p_swap = pair // d_in, pair % d_in
            w_u, w_p = tl.load(weight + u_swap).to(tl.float64), tl.load(weight + p_swap).to(tl.float64)
            tl.store(mask + u_swap, 0)
            tl.store(mask + p_swap, 1)
            made += 1
    tl.store(swaps + i, made)
    tl.store(certified + i, (pair < 0).to(tl.int8))


@triton.jit
def _eliminate(weight, gram, mask, norm, d_in, size: tl.constexpr, kept: tl.constexpr, width: tl.constexpr):
    """Prunes the feature of least cost, again and again, while its block has weights to spare."""
    i = tl.program_id(0).to(tl.int64)
    weight, mask = weight + i * d_in, mask + i * d_in
    index = tl.arange(0, width)
    valid = index < d_in
    w = tl.load(weight + index, valid, 0.0).to(tl.float64)
    s = tl.abs(w) * tl.load(norm + index, valid, 0.0)
    cost = tl.where(valid, s * s, float("inf"))  # s_u^2 + 2 w_u c_u, infinite where u may not go
    spare = tl.where(valid, size - kept, 0)  # of the feature's block
    for _ in range(d_in // size * (size - kept)):
        u = tl.argmin(cost, 0).to(tl.int64)
        tl.store(mask + u, 0)
        spare -= (index // size == u // size).to(tl.int32)
        g = tl.load(gram + u * d_in + index, valid, 0.0).to(tl.float64)
        cost += 2 * tl.load(weight + u).to(tl.float64) * w * g
        cost = tl.where((index == u) | (spare <= 0), float("inf"), cost)
