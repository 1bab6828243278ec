"""Gram matrices G = X X^T of a layer's inputs, and the pruning error that they define (arXiv 2512.10922)."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from sparseswaps.base.errors import InputError
from sparseswaps.base.memory import map_slices
from sparseswaps.layer.swaps.cost import norms

_VANISHED = 2.0**-50  # the norm of a feature whose squares are lost in float32
_ROWS, _COLUMNS = 2048, 4096  # of a weight and a Gram matrix converted to float64 at a time, to save memory


@dataclass(frozen=True)
class Inputs:
    """The calibration figures of one layer's inputs, on one device."""

    gram: Tensor  # float32 [d_in, d_in], the Gram matrix of the calibration text
    held_out: Tensor | None  # float32 [d_in, d_in], the Gram matrix of held-out text, if there is such text
    sums: Tensor  # float64 [d_in], the sum of each feature over the calibration tokens
    tokens: int  # of calibration
    sequences: int
    cross: Tensor | None = None  # float32 [d_in, d_in], X X~^T of the dense model's inputs X and these inputs X~


def accumulate(total: Tensor, inputs: Tensor, others: Tensor | None = None) -> None:
    """Add the Gram matrix of a batch [..., d_in] of any floating dtype to `total`, float64 [d_in, d_in], in place.

    With `others` [..., d_in], add the products of the features of `inputs` (rows) with the features of `others`.
    Products are formed in float32, which holds products of bfloat16 inputs exactly; batches are summed in float64.
    """
    left = inputs.reshape(-1, inputs.shape[-1])
    halves = left.is_cuda and left.dtype in (torch.bfloat16, torch.float16)
    left = left if halves else left.float()
    tokens = left if others is None else others.reshape(left.shape).to(left.dtype)

    def add(part: slice) -> None:
        rows = left[:, part].T
        # Tensor cores multiply halves as they are and sum in float32.
        total[part] += torch.mm(rows, tokens, out_dtype=torch.float32) if halves else rows @ tokens

    map_slices(add, len(total), _ROWS, "rows of a Gram matrix", "batch_size")


def symmetric_gram(total: Tensor) -> Tensor:
    """Return a float64 total [d_in, d_in] in float32 and exactly symmetric, which a device's product need not be."""
    total = total.float()
    return (total + total.T).div_(2)


@torch.no_grad()
def gram_matrix(inputs: Tensor | Iterable[Tensor]) -> Tensor:
    """Return the Gram matrix G = X X^T of a layer's inputs, which defines the layer's pruning error (arXiv 2512.10922).

    Args:
        inputs: [..., d_in], any floating dtype; the leading dimensions are tokens. Or an iterable of such batches.
            Products are formed in float32 and summed in float64.

    Returns:
        float32 [d_in, d_in], on the inputs' device.

    Raises:
        InputError: there are no inputs, they are not floating-point tensors of one width, or they hold NaN or Inf.
    """
    total = None
    for batch in [inputs] if isinstance(inputs, Tensor) else inputs:
        if not isinstance(batch, Tensor) or not batch.is_floating_point() or not batch.ndim:
            raise InputError("inputs: not a floating-point tensor [..., d_in]; pass tensors with the features last")
        if total is None:
            total = torch.zeros(batch.shape[-1], batch.shape[-1], dtype=torch.float64, device=batch.device)
        if batch.shape[-1] != len(total):
            raise InputError(f"inputs: a batch has {batch.shape[-1]} features, the first batch has {len(total)}")
        accumulate(total, batch)
    if total is None:
        raise InputError("inputs: no batch was given; pass at least one")
    if not total.isfinite().all():
        raise InputError("inputs: NaN, Inf, or values whose squares overflow; check the model and its dtype")
    return symmetric_gram(total)


def check_gram(gram: Tensor) -> None:
    """Raise InputError unless `gram` is square, finite, symmetric and positive semidefinite, all within rounding.

    Rounding is relative to sqrt(G_ii G_jj), so that outlier features hide no errors in other features. With its
    diagonal scaled to one, the matrix must have a Cholesky factor after d_in * 2^-23 is added to the diagonal.
    """
    if gram.ndim != 2 or gram.shape[0] != gram.shape[1]:
        raise InputError(f"the Gram matrix is not square but {tuple(gram.shape)}")
    if not gram.isfinite().all():
        raise InputError("the Gram matrix holds NaN or Inf")
    rounding = len(gram) * torch.finfo(torch.float32).eps
    diagonal = gram.diagonal().double()
    dead = diagonal == 0
    vanished = _VANISHED * diagonal.clamp_min(0).sqrt()  # the largest product with a feature whose squares are lost
    if (diagonal < 0).any() or (gram[dead].abs() > vanished).any() or (gram[:, dead].abs() > vanished[:, None]).any():
        raise InputError("the Gram matrix is not positive semidefinite")
    scale = diagonal.rsqrt().masked_fill(dead, 0)
    scaled = torch.empty(gram.shape, dtype=torch.float32, device=gram.device)
    for first in range(0, len(gram), _ROWS):
        rows = slice(first, first + _ROWS)  # entries above 1 are wrong already; clamped, they stay finite
        scaled[rows] = (gram[rows].double() * scale[rows, None] * scale).clamp_(-4, 4)
    if (scaled - scaled.T).abs().max() > rounding:
        raise InputError("the Gram matrix is not symmetric")
    scaled.diagonal().fill_(1 + rounding)
    # Float32 is enough for most matrices. Where it fails, rounding may be the cause, so float64 decides.
    if torch.linalg.cholesky_ex(scaled).info:
        scaled = scaled.double()
        if torch.linalg.cholesky_ex(scaled).info:
            raise InputError("the Gram matrix is not positive semidefinite")


@torch.no_grad()
def validate_layer(weight: Tensor, gram: Tensor) -> tuple[Tensor, Tensor]:
    """Check a layer's weight [d_out, d_in] and Gram matrix, and return them in the form that every search expects.

    Both are then detached and contiguous, each stays float64 or becomes float32, and the Gram matrix is exactly
    symmetric. Raises InputError if shapes or devices differ, a weight is not finite, the Gram matrix is not symmetric
    or not positive semidefinite, or a loss would overflow.
    """
    if weight.ndim != 2 or not weight.is_floating_point() or weight.shape[1] == 0:
        raise InputError(f"weight {weight.dtype} {tuple(weight.shape)}: use a floating-point matrix [d_out, d_in]")
    d_in = weight.shape[1]
    if gram.shape != (d_in, d_in) or gram.device != weight.device:
        raise InputError(
            f"the Gram matrix is {list(gram.shape)} on {gram.device}, but weight {list(weight.shape)} on "
            f"{weight.device} needs [{d_in}, {d_in}] on the same device"
        )
    if not weight.isfinite().all():
        raise InputError("the weight holds NaN or Inf")
    check_gram(gram)
    weight, gram = (t.detach() if t.dtype == torch.float64 else t.detach().float() for t in (weight, gram))
    for part in weight.split(1024):
        if not norms(part, gram).sum(1).square().isfinite().all():
            raise InputError("the weight and its Gram matrix are so large that a loss overflows: scale them down")
    # A search takes a feature whose squares are lost in rounding for dead, so its other products go, too.
    dead = gram.diagonal() == 0
    if gram[dead].any():
        gram = gram.masked_fill(dead | dead[:, None], 0)
    return weight.contiguous(), gram.contiguous() if torch.equal(gram, gram.T) else (gram + gram.T) / 2


def check_flags(weight: Tensor, name: str, flags: Tensor) -> None:
    """Raise InputError unless `flags` is a boolean tensor of the weight's shape, on its device."""
    if flags.shape != weight.shape or flags.dtype != torch.bool:
        raise InputError(
            f"weight {tuple(weight.shape)} needs a boolean {name} of its shape, not {flags.dtype} {tuple(flags.shape)}"
        )
    if flags.device != weight.device:
        raise InputError(f"the {name} is on {flags.device}, the weight on {weight.device}")


@torch.no_grad()
def correlation(weight: Tensor, gram: Tensor, mask: Tensor) -> Tensor:
    """Return c = G ((1 - m) * w) for each row, the correlation of the inputs with the pruned part of the output.

    `weight` [d_out, d_in] and `gram` have any floating dtype, `mask` is boolean. Returns float64 [d_out, d_in].
    """
    result = torch.empty(weight.shape, dtype=torch.float64, device=weight.device)
    for first in range(0, len(weight), _ROWS):
        rows = slice(first, first + _ROWS)
        result[rows] = product(weight[rows].double().masked_fill(mask[rows], 0), gram)
    return result


def product(rows: Tensor, gram: Tensor) -> Tensor:
    """Return rows @ G in float64 for float64 rows [rows, d_in], without a float64 copy of a large Gram matrix."""
    result = torch.empty_like(rows)
    for left in range(0, len(gram), _COLUMNS):
        columns = slice(left, left + _COLUMNS)
        result[:, columns] = rows @ gram[:, columns].double()
    return result


def row_loss(weight: Tensor, gram: Tensor, mask: Tensor) -> Tensor:
    """Return each row's pruning error ||w X - (m * w) X||^2 = (w - m * w)^T G (w - m * w): float64 [d_out].

    The arguments are as for `correlation`.
    """
    return output_error(weight, gram, weight.masked_fill(~mask, 0))


@torch.no_grad()
def output_error(weight: Tensor, gram: Tensor, new: Tensor) -> Tensor:
    """Return each row's error ||v X - w X||^2 = (v - w)^T G (v - w) with new weights v in place of its weights w.

    All arguments have any floating dtype. Returns float64 [d_out], never negative.
    """
    errors = []
    for own, replaced in zip(weight.split(_ROWS), new.split(_ROWS), strict=True):
        change = replaced.double() - own
        errors.append((product(change, gram) * change).sum(1))
    return torch.cat(errors).clamp_min_(0)


def loss_from_correlation(weight: Tensor, correlation: Tensor, mask: Tensor) -> Tensor:
    """Return `row_loss` from the mask's correlation: the sum of w_p c_p over the pruned weights p."""
    return (weight * correlation).masked_fill_(mask, 0).sum(1).clamp_min(0)
