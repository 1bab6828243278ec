"""ADMM pruning (Boza, arXiv 2401.02938), split into a warm start (the mask) and a reconstruction (the weight update).

Features are scaled to a norm of one, d_j = sqrt(G_jj) + 1e-8, and A = G / (d d^T) + damping mean(diag) I. The paper's
round for a mask M, with rho = 1, is

    Z = (W + U) * M,    U <- U + W - Z,    W <- (A + I)^-1 (A W0 + Z - U)

The whole state of a round is V = W + U: Z is V inside the mask, and the new U is V outside the mask.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from sparseswaps.base.memory import map_slices
from sparseswaps.base.progress import Report, ignore_progress
from sparseswaps.layer.gram import validate_layer
from sparseswaps.layer.masks import keep_best
from sparseswaps.layer.pattern import Pattern

_DAMPING = 0.1


def admm_mask(
    weight: Tensor, gram: Tensor, pattern: Pattern, picks: int = 15, progress: Report = ignore_progress
) -> Tensor:
    """Return the mask of the last of `picks` rounds, each of which keeps the weights of largest |W + U|.

    The first round picks Wanda's mask.
    """
    weight, gram = validate_layer(weight, gram)
    scale, matrix, inverse = _scale_problem(gram, _DAMPING, weight.dtype)

    def keep_largest(state: Tensor) -> Tensor:
        return keep_best(state.abs(), pattern)

    def pick_masks(rows: slice) -> Tensor:
        return keep_largest(_run_rounds(weight[rows] * scale, matrix, inverse, keep_largest, picks - 1))

    return torch.cat(map_slices(pick_masks, len(weight), len(weight), "rows", progress=progress))


def admm_update(
    weight: Tensor,
    gram: Tensor,
    mask: Tensor,
    damping: float = _DAMPING,
    iterations: int = 20,
    progress: Report = ignore_progress,
) -> Tensor:
    """Return weights on a mask, after `iterations` rounds, that approach the least damped error of the output."""
    weight, gram = validate_layer(weight, gram)
    scale, matrix, inverse = _scale_problem(gram, damping, weight.dtype)

    def update_weights(rows: slice) -> Tensor:
        state = _run_rounds(weight[rows] * scale, matrix, inverse, lambda _: mask[rows], iterations)
        return (state / scale).masked_fill_(~mask[rows], 0).float()

    return torch.cat(map_slices(update_weights, len(weight), len(weight), "rows", progress=progress))


def _scale_problem(gram: Tensor, damping: float, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Return d, A and (A + I)^-1 in `dtype`. The eigenvalues of A + I are from 1 to d_in + 2, so float32 is enough."""
    scale = gram.diagonal().double().sqrt() + 1e-8
    matrix = (gram / scale / scale[:, None]).to(dtype)
    matrix.diagonal().add_(damping * matrix.diagonal().mean())
    identity = torch.eye(len(matrix), dtype=dtype, device=matrix.device)
    return scale.to(dtype), matrix, torch.cholesky_inverse(torch.linalg.cholesky(matrix + identity))


def _run_rounds(start: Tensor, matrix: Tensor, inverse: Tensor, pick: Callable[[Tensor], Tensor], count: int) -> Tensor:
    """Return V after `count` rounds from W0 = `start` [rows, d_in] and U = 0; `pick` returns the mask for a V."""
    pull, state = start @ matrix, start
    for _ in range(count):
        outside = state.masked_fill(pick(state), 0)
        inside = state - outside
        state = (pull + inside - outside) @ inverse + outside
    return state
