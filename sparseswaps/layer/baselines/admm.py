"""ADMM pruning (Boza, arXiv 2401.02938): the best weights on a mask, and a mask found on the way to such weights.

Features are scaled to a norm of one, d_j = sqrt(G_jj) + 1e-8, and A = G / (d d^T) + damping mean(diag) I. The paper's
round for a mask M, with rho = 1, is

    Z = (W + U) * M,    U <- U + W - Z,    W <- (A + I)^-1 (A W0 + Z - U)

of which V = W + U is the whole state: Z is V inside of the mask, and the new U is V outside of it.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from sparseswaps.base.memory import map_slices
from sparseswaps.base.progress import Report, ignore_progress
from sparseswaps.layer.gram import validate_layer
from sparseswaps.layer.masks import keep_best
from sparseswaps.layer.pattern import Pattern


@torch.no_grad()
def admm_mask(
    weight: Tensor,
    gram: Tensor,
    pattern: Pattern,
    damping: float = 0.1,
    picks: int = 15,
    progress: Report = ignore_progress,
) -> Tensor:
    """The last mask of the rounds that pick one each: the weights of largest |W + U|, at first Wanda's mask.

    Args:
        weight: [d_out, d_in], any floating dtype.
        gram: [d_in, d_in] on the same device, float32 or float64.
        pattern: how many weights every round keeps.
        damping: what is added to the diagonal of the scaled Gram matrix, relative to that diagonal's mean.
        picks: rounds that pick a mask, at least one. Those after them change weights only.
        progress: is told how many rows are done.

    Returns:
        boolean [d_out, d_in], True where kept.

    Raises:
        InputError: weight and Gram matrix are not what `refine.engine.checked` takes, or the pattern does not divide
            d_in.
    """
    weight, gram = validate_layer(weight, gram)
    scale, matrix, inverse = _scaled(gram, damping, weight.dtype)

    def best(state: Tensor) -> Tensor:
        return keep_best(state.abs(), pattern)

    def picked(part: slice) -> Tensor:
        return best(_rounds(weight[part] * scale, matrix, inverse, best, picks - 1))

    return torch.cat(map_slices(picked, len(weight), len(weight), "rows", progress=progress))


@torch.no_grad()
def admm_update(
    weight: Tensor,
    gram: Tensor,
    mask: Tensor,
    damping: float = 0.1,
    iterations: int = 20,
    progress: Report = ignore_progress,
) -> Tensor:
    """The weights on a mask that come near the least error of the output, the damping taken as part of it.

    Args and errors are those of `admm_mask`; `mask` is boolean [d_out, d_in] and may keep any number of weights
    anywhere.

    Returns:
        float32 [d_out, d_in], exactly zero outside of the mask.
    """
    weight, gram = validate_layer(weight, gram)
    scale, matrix, inverse = _scaled(gram, damping, weight.dtype)

    def updated(part: slice) -> Tensor:
        state = _rounds(weight[part] * scale, matrix, inverse, lambda _: mask[part], iterations)
        return (state / scale).masked_fill_(~mask[part], 0).float()

    return torch.cat(map_slices(updated, len(weight), len(weight), "rows", progress=progress))


def _scaled(gram: Tensor, damping: float, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """d, A and (A + I)^-1, each in `dtype`: eigenvalues of A + I are from 1 to d_in + 2, so float32 is enough."""
    scale = gram.diagonal().double().sqrt() + 1e-8
    matrix = (gram / scale / scale[:, None]).to(dtype)
    matrix.diagonal().add_(damping * matrix.diagonal().mean())
    identity = torch.eye(len(matrix), dtype=dtype, device=matrix.device)
    return scale.to(dtype), matrix, torch.cholesky_inverse(torch.linalg.cholesky(matrix + identity))


def _rounds(start: Tensor, matrix: Tensor, inverse: Tensor, pick: Callable[[Tensor], Tensor], count: int) -> Tensor:
    """V after `count` rounds on the masks that `pick` makes of it, from W0 = `start` [rows, d_in] and U = 0."""
    pull, state = start @ matrix, start
    for _ in range(count):
        outside = state.masked_fill(pick(state), 0)
        inside = state - outside
        state = (pull + inside - outside) @ inverse + outside
    return state
