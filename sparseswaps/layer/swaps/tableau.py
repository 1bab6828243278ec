"""The state of a search with refit: a row's Gram matrix swept on its kept weights (`refit` gives the equations)."""

from math import inf
from typing import NamedTuple

import torch
from torch import Tensor


class Tableau(NamedTuple):
    """The blocks A, B, v, c and s of some rows, which a search updates in place.

    A slot is a place for a kept weight. Every row has as many slots as the row with the most kept weights fills. The
    unused slots of other rows come last: their `kept` is -1, and their rows of `table` are zero.
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


def build_tableau(weight: Tensor, matrix: Tensor, mask: Tensor) -> Tableau:
    """Compute the tableau of some rows from Cholesky factors of their kept weights' matrices D_SS.

    `weight` is [rows, d_in], `matrix` D [d_in, d_in], both float64, and `mask` boolean [rows, d_in].
    """
    counts = mask.sum(1, keepdim=True)
    slots = int(counts.max())
    kept = (~mask).byte().argsort(dim=1, stable=True)[:, :slots]
    used = torch.arange(slots, device=kept.device) < counts  # [rows, slots]
    chosen = matrix[kept].mul_(used[:, :, None])  # D_S, [rows, slots, d_in]
    places = kept[:, None].expand(-1, slots, -1)
    square = chosen.gather(2, places).mul_(used[:, None])  # D_SS, with zeros for unused slots
    square.diagonal(dim1=1, dim2=2).add_((~used).double())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(square))  # A
    inverse.diagonal(dim1=1, dim2=2).mul_(used)
    target = weight @ matrix  # D w
    v = torch.einsum("rij,rj->ri", inverse, target.gather(1, kept))
    c = target - torch.einsum("ri,rij->rj", v, chosen)
    table = inverse @ chosen  # B
    s = (matrix.diagonal() - (chosen * table).sum(1)).masked_fill_(mask, inf)
    table.scatter_(2, places, torch.where(used[:, None], inverse, table.gather(2, places)))
    return Tableau(kept.masked_fill(~used, -1), table, v, c, s)
