"""Gram matrices G = X X^T of a layer's inputs, and the pruning error that they measure (arXiv 2512.10922)."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from sparseswaps.errors import InputError


@dataclass
class Grams:
    """Gram matrices of the inputs of one decoder block's layers, one per distinct input.

    Attributes:
        reads: the input of each layer, named for the first layer that reads it.
        matrix: [d_in, d_in] per distinct input, summed over the calibration tokens; float64 while they are summed,
            float32 in an artifact.
        held_out: the same over the held-out tokens; empty when there are none.
    """

    reads: dict[str, str] = field(default_factory=dict)
    matrix: dict[str, Tensor] = field(default_factory=dict)
    held_out: dict[str, Tensor] = field(default_factory=dict)


def accumulate(total: Tensor, inputs: Tensor) -> None:
    """Add the Gram matrix of one batch to `total`, in place.

    Args:
        total: float64 [d_in, d_in].
        inputs: [..., d_in], any floating dtype; the leading dimensions are tokens. Products are formed in float32,
            which holds those of bfloat16 inputs exactly, and batches are summed in float64.
    """
    tokens = inputs.reshape(-1, inputs.shape[-1]).float()
    total += tokens.T @ tokens


def check_gram(gram: Tensor) -> None:
    """Raise InputError unless `gram` is square, finite, symmetric and positive semidefinite.

    Semidefinite within rounding: a Cholesky factor exists once d_in * 2^-23 of the largest diagonal entry is added to
    the diagonal.
    """
    if gram.ndim != 2 or gram.shape[0] != gram.shape[1]:
        raise InputError(f"the Gram matrix is not square but {tuple(gram.shape)}")
    if not gram.isfinite().all():
        raise InputError("the Gram matrix holds NaN or Inf")
    scale = gram.diagonal().abs().max().double() if len(gram) else torch.zeros(())
    rounding = len(gram) * torch.finfo(torch.float32).eps * scale
    if (gram - gram.T).abs().max() > rounding:
        raise InputError("the Gram matrix is not symmetric")
    shifted = gram.double() + rounding * torch.eye(len(gram), dtype=torch.float64, device=gram.device)
    if gram.any() and torch.linalg.cholesky_ex(shifted).info:  # all-zero inputs are semidefinite, if useless
        raise InputError("the Gram matrix is not positive semidefinite")


def row_loss(weight: Tensor, gram: Tensor, mask: Tensor) -> Tensor:
    """Each row's pruning error ||w X - (m * w) X||^2 = (w - m * w)^T G (w - m * w).

    Args:
        weight: [d_out, d_in], any floating dtype.
        gram: [d_in, d_in], any floating dtype.
        mask: boolean [d_out, d_in], True where kept.

    Returns:
        float64 [d_out], never negative.
    """
    dropped = weight.double().masked_fill(mask, 0)
    return ((dropped @ gram.double()) * dropped).sum(1).clamp_min(0)
