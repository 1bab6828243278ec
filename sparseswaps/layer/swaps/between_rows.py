"""Swaps between the rows of a matrix that keeps a number of weights as a whole, however many each row keeps of them.

When row r prunes its kept weight u and another row r' keeps its pruned weight p, the matrix's error changes by

    (2 w_u c_u + w_u^2 G_uu)  +  (-2 w_p c_p + w_p^2 G_pp),

each part with the weights of its own row and its correlation vector c = G ((1 - m) * w). There is no interaction, as
between u and p of one row (`reference.swap_cost`): the cheapest u and the cheapest p are the best pair of all, if they
are of different rows.
"""

from itertools import islice

import torch
from torch import Tensor

from sparseswaps.layer.gram import correlation
from sparseswaps.layer.swaps.certificate import CertificateError
from sparseswaps.layer.swaps.cost import norms, rounding

_CACHED, _MOST = 1 << 17, 1 << 22  # costs formed at a time: what a core has cache for, what keeps a GPU busy
_NEVER = torch.finfo(torch.float64).max  # what a swap costs that may not be: no gain makes up for it
_PASSES = 16  # searches from freshly computed correlations; a second that finds nothing is the rule


@torch.no_grad()
def exchange(weight: Tensor, gram: Tensor, mask: Tensor, frozen: Tensor | None, budget: Tensor) -> Tensor:
    """Swap weights between rows, in place, until no such swap lowers the matrix's error beyond rounding.

    It goes in rounds: the best pair of all is swapped, then the best of the rows that are left, while they improve (of
    equal pairs the one of the lowest rows, of equal weights of a row the one further left). Rows that took part are
    then looked at again. A row may lose all of its weights, or be given all.

    Args:
        weight: [d_out, d_in], float32 or float64.
        gram: [d_in, d_in] on the same device, float32 or float64.
        mask: boolean [d_out, d_in], True where kept; modified.
        frozen: boolean [d_out, d_in], weights that may not be pruned; None where all may.
        budget: int64 [d_out], how many swaps each row may take part in.

    Returns:
        int64 [d_out], in how many swaps each row took part.

    Raises:
        CertificateError: the number of kept weights changed, or the search does not end: a defect.
    """
    swaps, kept = torch.zeros_like(budget), mask.sum()
    for _ in range(_PASSES):
        made = _pass(weight, gram, mask, frozen, budget - swaps)
        if not made.any():
            break
        swaps += made
    else:
        raise CertificateError("the search between rows does not come to its end: a defect, report it")
    if mask.sum() != kept:
        raise CertificateError("the search between rows changed how many weights are kept: a defect, report it")
    return swaps


def _pass(weight: Tensor, gram: Tensor, mask: Tensor, frozen: Tensor | None, budget: Tensor) -> Tensor:
    """`exchange` as far as it comes with correlations that are kept up with the mask, and drift."""
    (d_out, d_in), device = weight.shape, weight.device
    size = max(1, (_CACHED if device.type == "cpu" else _MOST) // d_in)
    current = correlation(weight, gram, mask)
    swaps = torch.zeros_like(budget)
    # Of each row the cheapest weight to prune and the cheapest to keep: what they cost, and their columns.
    cost = torch.empty(2, d_out, dtype=torch.float64, device=device)
    column = torch.empty(2, d_out, dtype=torch.int64, device=device)

    def look(rows: Tensor) -> None:
        for at in rows.split(size):
            kept, s = mask[at], norms(weight[at], gram)
            alone = s * s + rounding(s)[:, None] * s  # rounding is part of a cost, as within rows
            slope = 2 * weight[at] * current[at]
            closed = ~kept if frozen is None else ~kept | frozen[at]
            spent = (swaps[at] >= budget[at]).double()
            for side, (costs, shut) in enumerate([(alone + slope, closed), (alone - slope, kept)]):
                # To fill by a mask would take half of all the time.
                least, where = costs.add_(shut.double(), alpha=_NEVER).min(1)
                cost[side, at], column[side, at] = least.add_(spent, alpha=_NEVER), where

    look(torch.arange(d_out, device=device))
    while pairs := best_pairs(*cost.tolist()):
        pruning, keeping = torch.tensor(pairs, device=device).T
        rows = torch.cat([pruning, keeping])
        columns = torch.cat([column[0, pruning], column[1, keeping]])
        for at, of in zip(rows.split(size), columns.split(size), strict=True):
            kept, w = mask[at, of], weight[at, of].double()
            current[at] += torch.where(kept, w, -w)[:, None] * gram[of]
            mask[at, of] = ~kept
        swaps[rows] += 1
        look(rows)
    return swaps


def best_pairs(pruning: list[float], keeping: list[float]) -> list[tuple[int, int]]:
    """Pairs of a row that prunes and one that keeps: the best, then the best of the other rows, while they improve.

    Args:
        pruning, keeping: what pruning and keeping a weight costs each row at least.
    """
    sides = []  # the rows that have a chance, the cheapest last
    for mine, other in ((pruning, keeping), (keeping, pruning)):
        least = min(other)
        chances = (row for row, cost in enumerate(mine) if cost + least < 0)
        sides.append(sorted(chances, key=lambda row, of=mine: (of[row], row), reverse=True))
    found, taken = [], set()
    while True:
        fronts = []  # the two cheapest of each side, since the very cheapest may be the same row
        for side in sides:
            while side and side[-1] in taken:
                side.pop()
            fronts.append(list(islice((row for row in reversed(side) if row not in taken), 2)))
        pairs = ((pruning[u] + keeping[p], u, p) for u in fronts[0] for p in fronts[1] if u != p)
        cost, *pair = min(pairs, default=(0, -1, -1))
        if cost >= 0:
            return found
        found.append(tuple(pair))
        taken.update(pair)
