"""The search in batched torch operations: all rows step together, on any device, in float64.

Within N:M blocks every pair is formed. Across a whole row that would be up to d_in^2 / 4 pairs; there a separable
bound on the pair's cost first discards those that cannot win, so that the Gram matrix is read for a few, and the
winner is still the best of all pairs.
"""

from math import inf

import torch
from torch import Tensor

from sparseswaps.refine.reference import rounding_of

_LAMBDA = 0.7  # how a pair's interaction is shared between its two bounds; any positive number is exact
_PAIRS = 1 << 22  # pairs formed at a time: 32 MB in float64

Best = tuple[Tensor, Tensor, Tensor]  # cost (infinite where there is no pair), u, p: each [rows]


def refine_rows(
    weight: Tensor, gram: Tensor, mask: Tensor, size: int, max_swaps: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """See `sparseswaps.refine.engine.BACKENDS`."""
    mask = mask.clone()
    swaps = torch.zeros(len(weight), dtype=torch.int64, device=weight.device)
    certified = torch.zeros(len(weight), dtype=torch.bool, device=weight.device)
    tolerance = rounding_of(weight, gram)
    correlation = weight.masked_fill(mask, 0) @ gram
    whole_rows = size == weight.shape[1]
    strongest = strongest_interaction(gram) if whole_rows else None
    active = torch.arange(len(weight), device=weight.device)
    while len(active):
        w, c, kept = weight[active], correlation[active], mask[active]
        own = w * w * gram.diagonal()
        pruning = (own + 2 * w * c).masked_fill(~kept, inf)  # what pruning u costs alone
        keeping = (own - 2 * w * c).masked_fill(kept, inf)  # what keeping p costs alone
        if whole_rows:
            bound = strongest * own
            cost, u, p = best_in_row(w, gram, pruning, keeping, bound, tolerance[active])
        else:
            cost, u, p = best_in_block(w, gram, pruning, keeping, size)
        improving = cost < -tolerance[active]
        certified[active[~improving]] = True
        if max_swaps is not None:
            improving &= swaps[active] < max_swaps
        active, u, p = active[improving], u[improving], p[improving]
        correlation[active] += weight[active, u, None] * gram[u] - weight[active, p, None] * gram[p]
        mask[active, u], mask[active, p] = False, True
        swaps[active] += 1
    return mask, swaps, certified


def best_in_block(w: Tensor, gram: Tensor, pruning: Tensor, keeping: Tensor, size: int) -> Best:
    """The cheapest swap of each row with u and p in the same block of `size`, by forming every such pair."""
    rows, d_in = w.shape
    blocks = gram.view(d_in // size, size, d_in // size, size).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    found = []
    for part in torch.arange(rows, device=w.device).split(max(1, _PAIRS // (d_in * size))):
        x, a, b = (t[part].view(len(part), -1, size) for t in (w, pruning, keeping))
        pairs = a[..., :, None] + b[..., None, :] - 2 * x[..., :, None] * x[..., None, :] * blocks
        cost, flat = pairs.flatten(1).min(1)  # of equal costs the first: lowest u, then lowest p
        u = flat // size
        found.append((cost, u, u // size * size + flat % size))
    return tuple(torch.cat(column) for column in zip(*found, strict=True))


def best_in_row(w: Tensor, gram: Tensor, pruning: Tensor, keeping: Tensor, bound: Tensor, tolerance: Tensor) -> Best:
    """The cheapest swap of each row among all pairs, certified without forming all of them.

    `bound` [rows, d_in] is rho_i w_i^2 G_ii with rho_i the strongest correlation of feature i. A pair's interaction
    |2 w_u w_p G_up| is at most lambda bound_u + bound_p / lambda, so a pair costs at least the sum of

        a'_u = pruning_u - lambda bound_u   and   b'_p = keeping_p - bound_p / lambda.

    Any pair's true cost is an incumbent; u can be in a better pair only if a'_u + min b' is below it, and p likewise.
    """
    least_a, least_b = pruning - _LAMBDA * bound, keeping - bound / _LAMBDA
    first = least_a.argmin(1, keepdim=True)
    incumbent = pruning.gather(1, first) + keeping - 2 * w.gather(1, first) * w * gram[first.squeeze(1)]
    limit = incumbent.amin(1, keepdim=True) + tolerance[:, None]
    live_u = (least_a + least_b.amin(1, keepdim=True) <= limit) & pruning.isfinite()
    live_p = (least_b + least_a.amin(1, keepdim=True) <= limit) & keeping.isfinite()
    some_u, some_p = max(1, int(live_u.sum(1).max())), max(1, int(live_p.sum(1).max()))
    # The stable sort puts survivors first and leaves them in ascending order, which settles ties.
    us = live_u.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :some_u]
    ps = live_p.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :some_p]
    a = pruning.masked_fill(~live_u, inf).gather(1, us)
    b = keeping.masked_fill(~live_p, inf).gather(1, ps)
    wu, wp = w.gather(1, us), w.gather(1, ps)
    found = []
    for part in torch.arange(len(w), device=w.device).split(max(1, _PAIRS // (some_u * some_p))):
        entries = gram[us[part, :, None], ps[part, None, :]]
        pairs = a[part, :, None] + b[part, None, :] - 2 * wu[part, :, None] * wp[part, None, :] * entries
        cost, flat = pairs.flatten(1).min(1)
        u = us[part].gather(1, flat[:, None] // some_p).squeeze(1)
        p = ps[part].gather(1, flat[:, None] % some_p).squeeze(1)
        found.append((cost, u, p))
    return tuple(torch.cat(column) for column in zip(*found, strict=True))


def strongest_interaction(gram: Tensor) -> Tensor:
    """rho_i = max over j != i of |G_ij| / sqrt(G_ii G_jj), [d_in]; 0 for dead features."""
    scale = gram.diagonal().clamp_min(0).rsqrt().nan_to_num(posinf=0)
    return (gram * scale * scale[:, None]).abs().fill_diagonal_(0).amax(1)
