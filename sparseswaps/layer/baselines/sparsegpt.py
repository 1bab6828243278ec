"""SparseGPT (Frantar & Alistarh, arXiv 2301.00774), split into a warm start (the mask) and a weight update.

The update of a column depends only on the masks of the columns up to it. `sparsegpt_update` on the mask of
`sparsegpt_mask` therefore returns exactly SparseGPT's weights.
"""

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from sparseswaps.base.errors import InputError
from sparseswaps.base.progress import Report, ignore_progress
from sparseswaps.layer.gram import validate_layer
from sparseswaps.layer.masks import keep_best
from sparseswaps.layer.pattern import NM, Pattern

_ATTEMPTS = 4  # to factor a Gram matrix, each with ten times the damping of the attempt before


def sparsegpt_mask(
    weight: Tensor,
    gram: Tensor,
    pattern: Pattern,
    damping: float = 0.01,
    block: int = 128,
    progress: Report = ignore_progress,
) -> Tensor:
    """Return the mask that SparseGPT picks during its sweep.

    The sweep prunes the weights of least w_j^2 / [(H_F)^-1]_jj, where F is the columns from j on. This score is the
    error that pruning w_j adds after the columns to its right have compensated. For a sparsity, the weights of all rows
    compete in each `block` of columns: rows may keep different numbers of weights, and the matrix keeps d_out times the
    pattern's number for a row. N:M holds in every M columns of every row, which are chosen when the sweep reaches them.

    For N:M, `block` is only the number of columns swept at a time. Of equal scores the upper row's is kept, then the
    leftmost. `progress` receives the number of rows times the share of columns that are done. Raises InputError if the
    Gram matrix has no Cholesky factor even with 1000 times the damping.
    """
    weight, gram = validate_layer(weight, gram)
    d_out, d_in = weight.shape
    kept = d_out * pattern.groups(d_in).kept  # of the whole matrix

    def choose(scores: Tensor, first: int) -> Tensor:
        if isinstance(pattern, NM):
            return keep_best(scores, pattern)
        # A share of `kept` for all columns so far, so that the rounding of the parts does not add up.
        count = kept * (first + scores.shape[1]) // d_in - kept * first // d_in
        mask = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
        mask[scores.flatten().argsort(descending=True, stable=True)[:count]] = True
        return mask.view(scores.shape)

    together = block
    if isinstance(pattern, NM):
        together, block = pattern.m, max(block // pattern.m, 1) * pattern.m
    mask = torch.empty(weight.shape, dtype=torch.bool, device=weight.device)
    _sweep(weight, gram, mask, damping, block, progress, choose, together)
    return mask


def sparsegpt_update(
    weight: Tensor,
    gram: Tensor,
    mask: Tensor,
    damping: float = 0.01,
    block: int = 128,
    progress: Report = ignore_progress,
) -> Tensor:
    """Return the weights that SparseGPT's sweep makes for any mask.

    The weights of dead features become zero, too. `block` is the number of columns swept at a time, which changes only
    the rounding. Progress and errors are as for `sparsegpt_mask`.
    """
    weight, gram = validate_layer(weight, gram)
    return _sweep(weight, gram, mask, damping, block, progress).float()


def _sweep(
    weight: Tensor,
    gram: Tensor,
    mask: Tensor,
    damping: float,
    block: int,
    progress: Report,
    choose: Callable[[Tensor, int], Tensor] | None = None,
    together: int = 1,
) -> Tensor:
    """Prune column by column, and compensate each column's error in the columns to its right; return the new weights.

    When the sweep reaches `together` columns, it writes their mask, if it has a `choose`: a function of their scores
    [d_out, <= together] and of the first column's index.
    """
    factor = _factor(gram, damping).to(weight.dtype)
    # Transposed, so that the sweep reads contiguous columns.
    new = weight.masked_fill(gram.diagonal() == 0, 0).T.contiguous()
    for start in range(0, len(new), block):
        columns, later = slice(start, start + block), slice(start + block, None)
        part, upper = new[columns], factor[columns, columns]
        errors = torch.empty_like(part)
        for i in range(len(part)):
            if choose is not None and i % together == 0:
                scores = (part[i : i + together] / upper.diagonal()[i : i + together, None]).square().T
                mask[:, start + i : start + i + together] = choose(scores, start + i)
            errors[i] = (part[i] / upper[i, i]).masked_fill_(mask[:, start + i], 0)
            part[i:].addr_(upper[i, i:], errors[i], alpha=-1)
        new[later].addmm_(factor[columns, later].T, errors, alpha=-1)
        progress(len(weight) * min(start + block, len(new)) // len(new), 0)
    return new.T.masked_fill(~mask, 0)


def _factor(gram: Tensor, damping: float) -> Tensor:
    """Return the upper triangular U with U^T U = H^-1, so that [(H_F)^-1]_jj = U_jj^2 for the columns F from j on.

    H is the Gram matrix divided by its mean diagonal, which changes no result, plus the damping. The factor is always
    float64, so that masks do not depend on whether float32 fails; at d_in 4096 it takes one CPU core a few seconds.
    """
    # With rows and columns reversed, H = L L^T is an upper factor times its transpose. U is the inverse of the upper
    # factor, so that H itself is never inverted.
    damped = gram.double().flip(0, 1)
    damped /= damped.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)
    diagonal = damped.diagonal().clone()
    for attempt in range(_ATTEMPTS):
        level = damping * 10**attempt
        if attempt:
            logging.warning("the Gram matrix has no Cholesky factor with damping %g: trying %g", level / 10, level)
        damped.diagonal().copy_(diagonal + level)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            del damped  # a third of the memory in use
            identity = torch.eye(len(lower), dtype=lower.dtype, device=lower.device)
            return torch.linalg.solve_triangular(lower, identity, upper=False).flip(0, 1)
    raise InputError(f"the Gram matrix has no Cholesky factor with damping {level:g} either: raise the damping")
