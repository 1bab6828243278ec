"""The exact cost of a 1-swap, and how far rounding can distort it (arXiv 2512.10922)."""

from collections.abc import Sequence

import torch
from torch import Tensor


def swap_cost(w: Sequence[float], c: Sequence[float], gram: Sequence[Sequence[float]], u: int, p: int) -> float:
    """The exact change of a row's loss when kept weight `u` is pruned and pruned weight `p` kept, a 1-swap.

    `c` is the correlation vector G ((1 - m) * w), [d_in].
    """
    pruning_u = 2 * w[u] * c[u] + w[u] ** 2 * gram[u][u]
    keeping_p = -2 * w[p] * c[p] + w[p] ** 2 * gram[p][p]
    return pruning_u + keeping_p - 2 * w[u] * w[p] * gram[u][p]


def feature_norms(gram: Tensor) -> Tensor:
    """||X_j|| = sqrt(G_jj), float64 [d_in]."""
    return gram.diagonal().double().clamp_min(0).sqrt()


def norms(weight: Tensor, gram: Tensor) -> Tensor:
    """s_ij = |w_ij| ||X_j||, float64 [rows, d_in]: what a weight contributes to the output, in norm."""
    return weight.double().abs() * feature_norms(gram)


def rounding(norms: Tensor) -> Tensor:
    """What float64 rounding can make of a swap's cost, for each unit of s_u + s_p; float64 [rows].

    The correlation c_u sums products of s_u with every other norm of its row. Every search adds this to the cost of a
    swap, so that a swap counts as an improvement only when it is more than rounding, and every search ends.
    """
    return 16 * torch.finfo(torch.float64).eps * norms.sum(-1)
