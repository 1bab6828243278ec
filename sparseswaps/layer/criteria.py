"""Criteria: functions that make a layer's warm start, its first mask. `WARMSTARTS` is the only list of their names.

The configuration takes the names from here. So that it does not wait for torch, functions import what needs torch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from hashlib import sha256
from typing import TYPE_CHECKING, Literal

from sparseswaps.base.errors import InputError
from sparseswaps.base.progress import Report, ignore_progress
from sparseswaps.layer.pattern import Pattern

if TYPE_CHECKING:
    from torch import Tensor

    WarmStart = Callable[[Tensor, Tensor, Pattern, Report], Tensor]


def rank_by(score: Callable[[Tensor, Tensor], Tensor]) -> WarmStart:
    """Turn a score per weight into a warm start that keeps the highest scores of each group."""

    @wraps(score)
    def warm_start(weight: Tensor, gram: Tensor, pattern: Pattern, progress: Report = ignore_progress) -> Tensor:
        from torch import cat

        from sparseswaps.base.memory import map_slices
        from sparseswaps.layer.masks import keep_best

        scores = score(weight.float(), gram.float())  # of all rows, since a score may compare rows
        rows = len(scores)
        return cat(map_slices(lambda s: keep_best(scores[s], pattern), rows, rows, "rows", progress=progress))

    return warm_start


@rank_by
def magnitude(weight: Tensor, gram: Tensor) -> Tensor:
    """|W_ij|."""
    return weight.abs()


def wanda_scores(weight: Tensor, gram: Tensor) -> Tensor:
    """Return |W_ij| ||X_j||_2, with ||X_j||_2 = sqrt(G_jj) (Sun et al., arXiv 2306.11695): float32 [d_out, d_in]."""
    return weight.float().abs() * gram.diagonal().float().sqrt()


wanda = rank_by(wanda_scores)


@rank_by
def ria(weight: Tensor, gram: Tensor) -> Tensor:
    """(|W_ij| / sum_i |W_ij| + |W_ij| / sum_j |W_ij|) sqrt(||X_j||_2) (Zhang et al., ICLR 2024).

    The norm is over all tokens, not a mean over sequences: a common factor changes no ranking.
    """
    size = weight.abs()
    relative = size / size.sum(0, keepdim=True) + size / size.sum(1, keepdim=True)
    return relative.nan_to_num(0) * gram.diagonal().pow(0.25)


def greedy(weight: Tensor, gram: Tensor, pattern: Pattern, progress: Report = ignore_progress) -> Tensor:
    from sparseswaps.layer.swaps.engine import eliminate

    return eliminate(weight, gram, pattern, progress=progress)


def obc(weight: Tensor, gram: Tensor, pattern: Pattern, progress: Report = ignore_progress) -> Tensor:
    from sparseswaps.layer.swaps.refit import refit_eliminate

    return refit_eliminate(weight, gram, pattern, progress=progress)


@rank_by
def random(weight: Tensor, gram: Tensor) -> Tensor:
    """Uniformly random scores, which depend on nothing but the weight's values: not on the machine, device or run."""
    import torch

    digest = sha256(weight.detach().cpu().contiguous().numpy()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big"))
    return torch.rand(weight.shape, generator=generator).to(weight.device)


def sparsegpt(weight: Tensor, gram: Tensor, pattern: Pattern, progress: Report = ignore_progress) -> Tensor:
    from sparseswaps.layer.baselines.sparsegpt import sparsegpt_mask

    return sparsegpt_mask(weight, gram, pattern, progress=progress)


def admm(weight: Tensor, gram: Tensor, pattern: Pattern, progress: Report = ignore_progress) -> Tensor:
    from sparseswaps.layer.baselines.admm import admm_mask

    return admm_mask(weight, gram, pattern, progress=progress)


def alps(weight: Tensor, gram: Tensor, pattern: Pattern, progress: Report = ignore_progress) -> Tensor:
    from sparseswaps.layer.baselines.alps import alps_mask

    return alps_mask(weight, gram, pattern, progress=progress)


WARMSTARTS: dict[str, WarmStart] = {
    "magnitude": magnitude,
    "wanda": wanda,
    "ria": ria,
    "greedy": greedy,
    "obc": obc,
    "random": random,
    "sparsegpt": sparsegpt,
    "admm": admm,
    "alps": alps,
}
Criterion = Literal[*WARMSTARTS]  # the type of configuration keys


def warmstart(weight: Tensor, gram: Tensor, pattern: Pattern, criterion: str = "wanda") -> Tensor:
    """Make a layer's first mask by a criterion: boolean [d_out, d_in], True where kept.

    Args:
        weight: [d_out, d_in], any floating dtype.
        gram: [d_in, d_in] on the same device, float32 or float64, the Gram matrix of the layer's inputs.
        pattern: which weights compete, and how many are kept (`parse_pattern`).
        criterion: `magnitude`, |W_ij|; `wanda`, |W_ij| ||X_j|| (arXiv 2306.11695); `ria` (Zhang et al., ICLR 2024);
            `greedy`, exact backward elimination; `obc`, exact backward elimination with all kept weights refitted
            after each step (arXiv 2208.11580); `random`; `sparsegpt` (arXiv 2301.00774); `admm` (arXiv 2401.02938); or
            `alps` (arXiv 2406.07831). For a sparsity, the rows of `sparsegpt` and `alps` keep different numbers of
            weights.

    Raises:
        InputError: the criterion is unknown, shapes or devices do not fit, a weight is not finite, the Gram matrix is
            not symmetric or not positive semidefinite, or the pattern does not divide d_in.
    """
    from sparseswaps.layer.gram import validate_layer

    if criterion not in WARMSTARTS:
        raise InputError(f"criterion: {criterion!r} is unknown; use one of {', '.join(WARMSTARTS)}")
    return WARMSTARTS[criterion](*validate_layer(weight, gram), pattern)
