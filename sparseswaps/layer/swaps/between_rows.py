"""Swaps between two rows of a matrix, which keep the number of kept weights of the matrix but not of its rows.

The weights of two rows do not interact (unlike in `reference.swap_cost`). So the cheapest weight to prune and the
cheapest weight to keep of all rows are the best pair, if they are in different rows.
"""

from itertools import islice

import torch
from torch import Tensor

from sparseswaps.layer.gram import correlation
from sparseswaps.layer.swaps.certificate import CertificateError
from sparseswaps.layer.swaps.cost import norms, rounding

_CACHED, _MOST = 1 << 17, 1 << 22  # costs formed at a time: as many as a core's cache holds, or as keep a GPU busy
_NEVER = torch.finfo(torch.float64).max  # the cost of a forbidden change: no gain makes up for it
_PASSES = 16  # searches from freshly computed correlations; usually the second one makes no swap


def exchange(weight: Tensor, gram: Tensor, mask: Tensor, frozen: Tensor, budget: Tensor) -> Tensor:
    """Swap weights between rows, in place, until no such swap lowers the matrix's error beyond rounding.

    A round makes the best swap of all, then the best swap of the rows that are left, while swaps improve (of equal
    pairs the pair of the lowest rows, of equal weights of a row the leftmost). The next round compares the rows that
    took part again. A row may lose all of its weights, or keep all of them.

    The arguments are as in `backends.Rows`, for all rows of a matrix. Returns the number of swaps that each row took
    part in, int64 [d_out]. Raises CertificateError if the search has a defect.
    """
    swaps, kept = torch.zeros_like(budget), mask.sum()
    for _ in range(_PASSES):
        made = _ExchangePass(weight, gram, mask, frozen, budget - swaps).run()
        if not made.any():
            break
        swaps += made
    else:
        raise CertificateError("the search between rows does not end: a defect, report it")
    if mask.sum() != kept:
        raise CertificateError("the search between rows changed how many weights are kept: a defect, report it")
    return swaps


class _ExchangePass:
    """One search between rows, with correlations that are updated swap by swap and so gather rounding errors."""

    def __init__(self, weight: Tensor, gram: Tensor, mask: Tensor, frozen: Tensor, budget: Tensor) -> None:
        (d_out, d_in), device = weight.shape, weight.device
        self.weight, self.gram, self.mask, self.frozen, self.budget = weight, gram, mask, frozen, budget
        self.correlation = correlation(weight, gram, mask)
        self.swaps = torch.zeros_like(budget)
        # The cost of each row's cheapest weight to prune, and of its cheapest weight to keep; their columns.
        self.cost = torch.empty(2, d_out, dtype=torch.float64, device=device)
        self.column = torch.empty(2, d_out, dtype=torch.int64, device=device)
        self.chunk = max(1, (_CACHED if device.type == "cpu" else _MOST) // d_in)  # rows handled at a time

    def run(self) -> Tensor:
        """Swap until no pair improves; return the swaps of each row."""
        self._find_cheapest(torch.arange(len(self.weight), device=self.weight.device))
        while pairs := best_pairs(*self.cost.tolist()):
            pruning, keeping = torch.tensor(pairs, device=self.weight.device).T
            rows = torch.cat([pruning, keeping])
            self._flip(rows, torch.cat([self.column[0, pruning], self.column[1, keeping]]))
            self._find_cheapest(rows)
        return self.swaps

    def _find_cheapest(self, rows: Tensor) -> None:
        for part in rows.split(self.chunk):
            kept, s = self.mask[part], norms(self.weight[part], self.gram)
            alone = s * s + rounding(s)[:, None] * s  # rounding is part of a cost, as within rows
            slope = 2 * self.weight[part] * self.correlation[part]
            closed = ~kept | self.frozen[part]
            spent = (self.swaps[part] >= self.budget[part]).double()
            for side, (costs, forbidden) in enumerate([(alone + slope, closed), (alone - slope, kept)]):
                # Filling by a mask would take half of the search's time.
                least, column = costs.add_(forbidden.double(), alpha=_NEVER).min(1)
                self.cost[side, part], self.column[side, part] = least.add_(spent, alpha=_NEVER), column

    def _flip(self, rows: Tensor, columns: Tensor) -> None:
        """Prune or keep one weight of each row."""
        for part, column in zip(rows.split(self.chunk), columns.split(self.chunk), strict=True):
            kept, w = self.mask[part, column], self.weight[part, column].double()
            self.correlation[part] += torch.where(kept, w, -w)[:, None] * self.gram[column]
            self.mask[part, column] = ~kept
        self.swaps[rows] += 1


def best_pairs(pruning: list[float], keeping: list[float]) -> list[tuple[int, int]]:
    """Pair rows that prune with rows that keep: the best pair, then the best pair of the other rows, and so on.

    `pruning` and `keeping` are the least cost of pruning and of keeping a weight, of each row. Returns pairs (row that
    prunes, row that keeps); no row is in two pairs.
    """
    sides = []  # (cost, row) of the rows that may be in an improving pair, the cheapest last
    for mine, other in ((pruning, keeping), (keeping, pruning)):
        least = min(other)
        sides.append(sorted(((cost, row) for row, cost in enumerate(mine) if cost + least < 0), reverse=True))
    pairs, taken = [], set()
    while True:
        fronts = []  # the two cheapest rows of each side, since the cheapest of both sides may be the same row
        for side in sides:
            while side and side[-1][1] in taken:
                side.pop()
            fronts.append(list(islice((entry for entry in reversed(side) if entry[1] not in taken), 2)))
        options = ((a + b, u, p) for a, u in fronts[0] for b, p in fronts[1] if u != p)
        cost, *pair = min(options, default=(0, -1, -1))
        if cost >= 0:
            return pairs
        pairs.append(tuple(pair))
        taken.update(pair)
