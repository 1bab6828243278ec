"""Bounds on the interaction of a swap, which make the search cheap and keep it exact (docs/engine.md).

With s_i = |w_i| sqrt(G_ii) and rho_i the strongest correlation of feature i with another feature,
|2 w_u w_p G_up| <= lambda rho_u s_u^2 + rho_p s_p^2 / lambda: a number for u plus a number for p.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

LAMBDA = 0.7  # any positive value is exact


def strongest_correlation(gram: Tensor, size: int) -> Tensor:
    """Return max |G_ij| / sqrt(G_ii G_jj) over j != i in i's group of `size` columns, 0 if dead: float64 [d_in]."""
    group = torch.arange(len(gram), device=gram.device) // size
    parts = [shared.masked_fill(group[rows, None] != group, 0).amax(1) for rows, shared in _correlations(gram)]
    return torch.cat(parts)


def strongest_by_tile(gram: Tensor, tile: int) -> Tensor:
    """Return the strongest correlation of feature i with another feature of each tile of `tile` columns.

    The values, float32 [d_in, ceil(d_in / tile)], are rounded up, so that they stay bounds.
    """
    parts = []
    for _, shared in _correlations(gram):
        padded = torch.nn.functional.pad(shared, (0, -len(gram) % tile))
        parts.append((padded.view(len(shared), -1, tile).amax(2) * (1 + 2**-22)).float())
    return torch.cat(parts)


def _correlations(gram: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield some rows i at a time (to save memory) with their |G_ij| / sqrt(G_ii G_jj), zero for i = j."""
    scale = gram.diagonal().double().clamp_min(0).rsqrt().nan_to_num(posinf=0)
    for start in range(0, len(gram), 256):
        rows = slice(start, start + 256)
        shared = gram[rows].double().abs() * scale[rows, None] * scale
        shared.diagonal(start).zero_()
        yield rows, shared
