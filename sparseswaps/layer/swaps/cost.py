"""The norms of the weights' contributions to the output, and how far rounding can distort the cost of a swap."""

import torch
from torch import Tensor


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
