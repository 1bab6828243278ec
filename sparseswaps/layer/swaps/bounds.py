"""What makes the search cheap and still exact: how much the interaction of a pair can lower its cost.

With s_i = |w_i| sqrt(G_ii) and rho_i the strongest correlation of feature i with another, the interaction of a swap is

    |2 w_u w_p G_up|  <=  2 s_u s_p min(rho_u, rho_p)  <=  lambda rho_u s_u^2 + rho_p s_p^2 / lambda

for any lambda > 0, so that a pair costs at least the sum of a number that belongs to u and one that belongs to p. Where
the two lowest such numbers add up to more than a pair at hand costs, no better pair exists.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

LAMBDA = 0.7  # any positive value is exact


def strongest_correlation(gram: Tensor, size: int) -> Tensor:
    """rho_i = max over j != i in i's block of `size` columns of |G_ij| / sqrt(G_ii G_jj); 0 for dead features.

    Args:
        gram: [d_in, d_in], floating.
        size: columns per block; d_in where all pairs are feasible.

    Returns:
        float64 [d_in].
    """
    block = torch.arange(len(gram), device=gram.device) // size
    found = [shared.masked_fill(block[rows, None] != block, 0).amax(1) for rows, shared in _correlations(gram)]
    return torch.cat(found)


def strongest_by_tile(gram: Tensor, tile: int) -> Tensor:
    """The same within each tile of `tile` columns: the strongest correlation of i with another feature j of tile t.

    Returns:
        float32 [d_in, ceil(d_in / tile)], rounded up, so that bounds remain bounds.
    """
    found = []
    for _, shared in _correlations(gram):
        padded = torch.nn.functional.pad(shared, (0, -len(gram) % tile))
        found.append((padded.view(len(shared), -1, tile).amax(2) * (1 + 2**-22)).float())
    return torch.cat(found)


def _correlations(gram: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """|G_ij| / sqrt(G_ii G_jj) with zeros for i = j, some rows at a time: the whole in float64 is too much memory."""
    scale = gram.diagonal().double().clamp_min(0).rsqrt().nan_to_num(posinf=0)
    for start in range(0, len(gram), 256):
        rows = slice(start, start + 256)
        shared = gram[rows].double().abs() * scale[rows, None] * scale
        shared.diagonal(start).zero_()
        yield rows, shared
