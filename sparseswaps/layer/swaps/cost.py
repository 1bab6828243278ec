"""The exact cost of a 1-swap, and how far rounding can distort it (arXiv 2512.10922)."""

from collections.abc import Sequence

import torch
from torch import Tensor


def swap_cost(w: Sequence[float], c: Sequence[float], gram: Sequence[Sequence[float]], u: int, p: int) -> float:
    """Return the exact change of a row's loss for a 1-swap, which prunes kept weight `u` and keeps pruned weight `p`.

    `w` is the row [d_in], `c` its correlation vector G ((1 - m) * w) [d_in], `gram` is G [d_in, d_in].
    """
    pruning_u = 2 * w[u] * c[u] + w[u] ** 2 * gram[u][u]
    keeping_p = -2 * w[p] * c[p] + w[p] ** 2 * gram[p][p]
    return pruning_u + keeping_p - 2 * w[u] * w[p] * gram[u][p]


def feature_norms(gram: Tensor) -> Tensor:
    """Return ||X_j|| = sqrt(G_jj), float64 [d_in]."""
    return gram.diagonal().double().clamp_min(0).sqrt()


def norms(weight: Tensor, gram: Tensor) -> Tensor:
    """Return s_ij = |w_ij| ||X_j||, float64 [rows, d_in], the norm of a weight's contribution to the output."""
    return weight.double().abs() * feature_norms(gram)


def rounding(s: Tensor) -> Tensor:
    """Return a bound on the rounding error of a swap's cost, per unit of s_u + s_p: float64 [rows].

    The correlation c_u sums products of s_u with every norm s [rows, d_in] of its row. Every search adds the bound to
    the cost of a swap. A swap therefore counts as an improvement only beyond rounding, and every search ends.
    """
    return 16 * torch.finfo(torch.float64).eps * s.sum(-1)
