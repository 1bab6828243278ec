"""What makes the search cheap and still exact: how much the interaction of a pair can lower its cost.

With s_i = |w_i| sqrt(G_ii) and rho_i the strongest correlation of feature i with another, the interaction of a swap is

    |2 w_u w_p G_up|  <=  2 s_u s_p min(rho_u, rho_p)  <=  lambda rho_u s_u^2 + rho_p s_p^2 / lambda

for any lambda > 0, so that a pair costs at least the sum of a number that belongs to u and one that belongs to p. Where
the two lowest such numbers add up to more than a pair at hand costs, no better pair exists.
"""

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
    d_in = len(gram)
    scale = gram.diagonal().double().clamp_min(0).rsqrt().nan_to_num(posinf=0)
    column = torch.arange(d_in, device=gram.device)
    strongest = torch.empty_like(scale)
    for row in column.split(256):  # a slice at a time: a float64 copy of the whole would double the memory
        near = slice(int(row[0]) // size * size, (int(row[-1]) // size + 1) * size)
        feasible = (row[:, None] // size == column[near] // size) & (row[:, None] != column[near])
        shared = gram[row, near].double().abs() * scale[row, None] * scale[near]
        strongest[row] = shared.masked_fill(~feasible, 0).amax(1)
    return strongest
