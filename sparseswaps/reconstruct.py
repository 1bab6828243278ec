"""Reconstruction: new values for the weights that a mask keeps, so that they make up for those that it prunes."""

import torch
from torch import Tensor

from sparseswaps.errors import InputError
from sparseswaps.gram import correlation, output_error, product
from sparseswaps.memory import sliced
from sparseswaps.refine.engine import checked

_ROWS = 2048  # solved side by side: four float64 vectors each, and the products of so many are as fast as of more
_CONVERGED = 1e-8  # of the first residual, in the preconditioner's norm: float32 can tell no better solution


@torch.no_grad()
def least_squares(weight: Tensor, gram: Tensor, mask: Tensor, damping: float, iterations: int) -> Tensor:
    """The kept weights v that minimise each row's damped error (v - w)^T G (v - w) + ridge ||v - m * w||^2.

    The ridge, damping * mean(diag G), pulls the kept weights to their own values; features that are zero keep theirs.
    With v = m * w + x and c = G ((1 - m) * w), x solves M (G + ridge I) M x = m * c: conjugate gradients from x = 0,
    with the diagonal as preconditioner, for all rows at once. They lower the error with every iteration. A row that
    rounding to float32 leaves worse than m * w, as it can where an outlier feature dwarfs the others, stays m * w.

    Args:
        weight: [d_out, d_in], any floating dtype.
        gram: [d_in, d_in] on the same device, float32 or float64.
        mask: boolean [d_out, d_in], True where kept.
        damping: not negative.
        iterations: at most; rows that have converged before stay as they are.

    Returns:
        float32 [d_out, d_in], zero where the mask prunes.

    Raises:
        InputError: as `refine.refine` for weight, Gram matrix and mask; the damping is negative or not finite.
    """
    weight, gram = checked(weight, gram)
    if mask.shape != weight.shape or mask.dtype != torch.bool:
        raise InputError(
            f"weight {tuple(weight.shape)} needs a boolean mask of its shape, not {mask.dtype} {tuple(mask.shape)}"
        )
    if not 0 <= damping < float("inf"):
        raise InputError(f"damping is {damping}: expected a number that is not negative, such as 0.01")

    def solve(rows: slice) -> Tensor:
        own, kept = weight[rows], mask[rows]
        start = own.masked_fill(~kept, 0).float()
        moved = _conjugate_gradients(
            gram, kept, correlation(own, gram, kept).masked_fill_(~kept, 0), _ridge(gram, damping), iterations
        )
        new = moved.add_(start).float()
        before, after = (objective(own, gram, v, kept, damping) for v in (start, new))
        return torch.where((after <= before)[:, None], new, start)

    return torch.cat(sliced(solve, len(weight), _ROWS, "rows"))


def objective(weight: Tensor, gram: Tensor, new: Tensor, mask: Tensor, damping: float) -> Tensor:
    """What `least_squares` lowers, of any weights `new` [d_out, d_in] that are zero outside the mask: float64 [d_out]."""
    moved = new.double() - weight.masked_fill(~mask, 0)
    return output_error(weight, gram, new) + _ridge(gram, damping) * moved.square().sum(1)


def _ridge(gram: Tensor, damping: float) -> float:
    return damping * float(gram.diagonal().double().mean())


def _conjugate_gradients(gram: Tensor, kept: Tensor, residual: Tensor, ridge: float, iterations: int) -> Tensor:
    """x, float64 [rows, d_in], with M (G + ridge I) M x = `residual` (which is overwritten) for each row's M."""
    diagonal = gram.diagonal().double() + ridge
    inverse = diagonal.reciprocal().masked_fill(diagonal == 0, 0)
    found, direction = torch.zeros_like(residual), residual * inverse
    size = (residual * direction).sum(1)  # the squared residual in the preconditioner's norm
    enough = _CONVERGED**2 * size
    for _ in range(iterations):
        image = product(direction, gram).add_(direction, alpha=ridge).masked_fill_(~kept, 0)
        curvature = (direction * image).sum(1)
        going = (size > enough) & (curvature > 0)  # rounding may leave G not quite positive, where it is singular
        if not going.any():
            break
        step = (size / curvature).masked_fill_(~going, 0)[:, None]
        found.addcmul_(step, direction)
        residual.addcmul_(step, image, value=-1)
        image = residual * inverse
        following = (residual * image).sum(1).masked_fill_(~going, 0)  # 0 where a row has stopped, for good
        direction.mul_((following / size).nan_to_num_(0)[:, None]).add_(image)
        size = following
    return found
