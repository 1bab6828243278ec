"""Gram matrices G = X X^T of a layer's inputs, and the pruning error that they measure (arXiv 2512.10922)."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from sparseswaps.base.errors import InputError
from sparseswaps.base.memory import map_slices
from sparseswaps.layer.swaps.cost import norms

_VANISHED = 2.0**-50  # the norm of a feature whose squares are lost in float32
_ROWS, _COLUMNS = 2048, 4096  # of a weight and of its Gram matrix in float64 at a time: the whole would double memory


@dataclass(frozen=True)
class Inputs:
    """What calibration knows of one layer's inputs, on one device.

    Attributes:
        gram: float32 [d_in, d_in].
        held_out: the same of held-out text, if there is any.
        sums: float64 [d_in], each feature summed over the calibration tokens.
        tokens, sequences: how many of them there were.
    """

    gram: Tensor
    held_out: Tensor | None
    sums: Tensor
    tokens: int
    sequences: int


def accumulate(total: Tensor, inputs: Tensor) -> None:
    """Add the Gram matrix of one batch to `total`, in place.

    Args:
        total: float64 [d_in, d_in].
        inputs: [..., d_in], any floating dtype; the leading dimensions are tokens. Products are formed in float32,
            which holds those of bfloat16 inputs exactly, and batches are summed in float64.
    """
    tokens = inputs.reshape(-1, inputs.shape[-1])
    halves = tokens.is_cuda and tokens.dtype in (torch.bfloat16, torch.float16)
    if not halves:
        tokens = tokens.float()

    def add(part: slice) -> None:
        rows = tokens[:, part].T
        # On the tensor cores, halves are multiplied as they are and summed in float32.
        total[part] += torch.mm(rows, tokens, out_dtype=torch.float32) if halves else rows @ tokens

    map_slices(add, len(total), _ROWS, "rows of a Gram matrix", "batch_size")


def symmetric_gram(total: Tensor) -> Tensor:
    """The Gram matrix of all batches, float32 [d_in, d_in], from their float64 `total`: exactly symmetric, which the
    rounding of a device's matrix product need not be."""
    total = total.float()
    return (total + total.T).div_(2)


@torch.no_grad()
def gram_matrix(inputs: Tensor | Iterable[Tensor]) -> Tensor:
    """The Gram matrix G = X X^T of a layer's inputs, all that its pruning error has to know of them (arXiv 2512.10922).

    Args:
        inputs: [..., d_in], any floating dtype; the leading dimensions are tokens. Or batches of such, one after the
            other, that need not be in memory together. Their products are formed in float32 and summed in float64.

    Returns:
        float32 [d_in, d_in], on the device of the inputs.

    Raises:
        InputError: there are no inputs, they are no floating-point tensors of one width, or they hold NaN or Inf.
    """
    total = None
    for batch in [inputs] if isinstance(inputs, Tensor) else inputs:
        if not isinstance(batch, Tensor) or not batch.is_floating_point() or not batch.ndim:
            raise InputError("inputs: expected floating-point tensors [..., d_in], tokens first")
        if total is None:
            total = torch.zeros(batch.shape[-1], batch.shape[-1], dtype=torch.float64, device=batch.device)
        if batch.shape[-1] != len(total):
            raise InputError(f"inputs: a batch has {batch.shape[-1]} features, those before it {len(total)}")
        accumulate(total, batch)
    if total is None:
        raise InputError("inputs: there are none")
    if not total.isfinite().all():
        raise InputError("inputs: hold NaN or Inf, or their squares overflow")
    return symmetric_gram(total)


def check_gram(gram: Tensor) -> None:
    """Raise InputError unless `gram` is square, finite, symmetric and positive semidefinite, all within rounding.

    Rounding is relative to sqrt(G_ii G_jj), so that outlier features hide nothing in the others: with its diagonal
    scaled to one, the matrix must have a Cholesky factor once d_in * 2^-23 is added to the diagonal.
    """
    if gram.ndim != 2 or gram.shape[0] != gram.shape[1]:
        raise InputError(f"the Gram matrix is not square but {tuple(gram.shape)}")
    if not gram.isfinite().all():
        raise InputError("the Gram matrix holds NaN or Inf")
    if not len(gram):
        return
    rounding = len(gram) * torch.finfo(torch.float32).eps
    diagonal = gram.diagonal().double()
    dead = diagonal == 0
    vanished = _VANISHED * diagonal.clamp_min(0).sqrt()  # what a feature may share that was lost when it was squared
    if (diagonal < 0).any() or (gram[dead].abs() > vanished).any() or (gram[:, dead].abs() > vanished[:, None]).any():
        raise InputError("the Gram matrix is not positive semidefinite")
    scale = diagonal.rsqrt().masked_fill(dead, 0)
    scaled = torch.empty(gram.shape, dtype=torch.float32, device=gram.device)
    for first in range(0, len(gram), _ROWS):
        rows = slice(first, first + _ROWS)  # more than 1 is wrong already, and must not become infinite
        scaled[rows] = (gram[rows].double() * scale[rows, None] * scale).clamp_(-4, 4)
    if (scaled - scaled.T).abs().max() > rounding:
        raise InputError("the Gram matrix is not symmetric")
    scaled.diagonal().fill_(1 + rounding)
    # Float32 is enough for most; where it fails, rounding may be to blame, and float64 decides.
    if torch.linalg.cholesky_ex(scaled).info:
        scaled = scaled.double()
        if torch.linalg.cholesky_ex(scaled).info:
            raise InputError("the Gram matrix is not positive semidefinite")


def validate_layer(weight: Tensor, gram: Tensor) -> tuple[Tensor, Tensor]:
    """Check a layer's weight and Gram matrix, and return them in the form that every search expects.

    Args:
        weight: [d_out, d_in], any floating dtype.
        gram: [d_in, d_in] on the same device.

    Returns:
        Both contiguous, in float64 if they came in float64 and in float32 otherwise; the Gram matrix exactly symmetric.

    Raises:
        InputError: shapes or devices differ, a weight is not finite, the Gram matrix is not symmetric or not positive
            semidefinite, or a loss would overflow.
    """
    if weight.ndim != 2 or not weight.is_floating_point() or weight.shape[1] == 0:
        raise InputError(f"a weight is a floating-point matrix with columns, not {weight.dtype} {tuple(weight.shape)}")
    d_in = weight.shape[1]
    if gram.shape != (d_in, d_in) or gram.device != weight.device:
        raise InputError(
            f"weight {tuple(weight.shape)} on {weight.device} needs a [{d_in}, {d_in}] Gram matrix there, "
            f"not one of {tuple(gram.shape)} on {gram.device}"
        )
    if not weight.isfinite().all():
        raise InputError("the weight holds NaN or Inf")
    check_gram(gram)
    weight, gram = (t.detach() if t.dtype == torch.float64 else t.detach().float() for t in (weight, gram))
    for part in weight.split(1024):
        if not norms(part, gram).sum(1).square().isfinite().all():
            raise InputError("the weight and its Gram matrix are so large that a loss overflows: scale them down")
    # Of a feature whose squares are lost in rounding nothing may be left: a search takes it for dead.
    dead = gram.diagonal() == 0
    if gram[dead].any():
        gram = gram.masked_fill(dead | dead[:, None], 0)
    return weight.contiguous(), gram.contiguous() if torch.equal(gram, gram.T) else (gram + gram.T) / 2


def correlation(weight: Tensor, gram: Tensor, mask: Tensor) -> Tensor:
    """c = G ((1 - m) * w) for each row: how the inputs correlate with what pruning takes from the output.

    Args:
        weight: [d_out, d_in], any floating dtype.
        gram: [d_in, d_in], any floating dtype.
        mask: boolean [d_out, d_in], True where kept.

    Returns:
        float64 [d_out, d_in].
    """
    found = torch.empty(weight.shape, dtype=torch.float64, device=weight.device)
    for first in range(0, len(weight), _ROWS):
        rows = slice(first, first + _ROWS)
        found[rows] = product(weight[rows].double().masked_fill(mask[rows], 0), gram)
    return found


def product(rows: Tensor, gram: Tensor) -> Tensor:
    """rows @ G for float64 rows [rows, d_in], in float64, without a float64 copy of all of a large Gram matrix."""
    found = torch.empty_like(rows)
    for left in range(0, len(gram), _COLUMNS):
        columns = slice(left, left + _COLUMNS)
        found[:, columns] = rows @ gram[:, columns].double()
    return found


def row_loss(weight: Tensor, gram: Tensor, mask: Tensor) -> Tensor:
    """Each row's pruning error ||w X - (m * w) X||^2 = (w - m * w)^T G (w - m * w).

    Args and errors as for `correlation`.

    Returns:
        float64 [d_out], never negative.
    """
    return output_error(weight, gram, weight.masked_fill(~mask, 0))


def output_error(weight: Tensor, gram: Tensor, new: Tensor) -> Tensor:
    """Each row's error ||v X - w X||^2 = (v - w)^T G (v - w) with new weights v in place of its own, w.

    Args:
        weight, new: [d_out, d_in], any floating dtype.
        gram: [d_in, d_in], any floating dtype.

    Returns:
        float64 [d_out], never negative.
    """
    found = torch.empty(len(weight), dtype=torch.float64, device=weight.device)
    for first in range(0, len(weight), _ROWS):
        rows = slice(first, first + _ROWS)
        change = new[rows].double() - weight[rows]
        found[rows] = (product(change, gram) * change).sum(1)
    return found.clamp_min_(0)


def loss_from_correlation(weight: Tensor, correlation: Tensor, mask: Tensor) -> Tensor:
    """The `row_loss` where the correlation of the mask is at hand: the sum of w_p c_p over the pruned weights."""
    return (weight * correlation).masked_fill_(mask, 0).sum(1).clamp_min(0)
