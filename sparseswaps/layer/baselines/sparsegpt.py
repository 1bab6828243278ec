"""SparseGPT (Frantar & Alistarh, arXiv 2301.00774): one sweep over the columns that prunes and makes up for it.

What the sweep does to a column depends on the masks of the columns up to it alone. So its mask is all that need be
kept: `sparsegpt_update` on the mask that `sparsegpt_mask` has found makes the very weights of SparseGPT.
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

_ATTEMPTS = 4  # to factor a Gram matrix, each with ten times the damping


@torch.no_grad()
def sparsegpt_mask(
    weight: Tensor,
    gram: Tensor,
    pattern: Pattern,
    damping: float = 0.01,
    block: int = 128,
    progress: Report = ignore_progress,
) -> Tensor:
    """The mask that SparseGPT finds while it changes the weights.

    Pruned are the weights of least w_j^2 / [(H_F)^-1]_jj with F the columns from j on: what pruning w_j adds to the
    error once those right of it have made up for it. A sparsity is the whole matrix's: in each `block` of columns the
    weights of all rows compete, so rows are not equally sparse; the matrix keeps d_out times what the pattern says of a
    row. N:M holds in every M columns of every row, chosen when the sweep reaches them.

    Args:
        weight: [d_out, d_in], any floating dtype.
        gram: [d_in, d_in] on the same device, float32 or float64.
        pattern: how many weights are kept.
        damping: what is added to the diagonal of the Gram matrix, relative to the diagonal's mean.
        block: columns whose weights compete; for N:M, how many are swept at a time.
        progress: is told how many rows are done: as all are swept together, the same share of them as of the columns.

    Returns:
        boolean [d_out, d_in], True where kept. Of equal scores that of the upper row is kept, then that further left.

    Raises:
        InputError: weight and Gram matrix are not what `refine.engine.checked` takes, the pattern does not divide d_in,
            or there is no Cholesky factor with much more damping either.
    """
    weight, gram = validate_layer(weight, gram)
    d_out, d_in = weight.shape
    kept = d_out * pattern.blocks(d_in).kept  # of the whole matrix

    def choose(scores: Tensor, first: int) -> Tensor:
        if isinstance(pattern, NM):
            return keep_best(scores, pattern)
        # As many up to a block's last column as is their share, so that the rounding of blocks does not add up.
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


@torch.no_grad()
def sparsegpt_update(
    weight: Tensor,
    gram: Tensor,
    mask: Tensor,
    damping: float = 0.01,
    block: int = 128,
    progress: Report = ignore_progress,
) -> Tensor:
    """The weights that SparseGPT's sweep makes for a mask, whoever has found it.

    Args and errors are those of `sparsegpt_mask`. `mask` is boolean [d_out, d_in] and may keep any number of weights
    anywhere; `block` is how many columns are swept at a time, and changes the rounding only.

    Returns:
        float32 [d_out, d_in], exactly zero outside of the mask and where a feature is dead.
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
    """Prune column after column, and have those right of it make up for the error.

    With `choose`, the mask of every `together` columns is what that says of their scores [d_out, <= together] and the
    first one's index once the sweep has reached them, and is written into `mask`; without, `mask` is taken as it is.

    Returns:
        The new weights, [d_out, d_in] in the dtype of `weight`.
    """
    factor = _factor(gram, damping).to(weight.dtype)
    # Transposed, so that the columns that the sweep works on are contiguous.
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
    """The upper triangular U with U^T U = H^-1, so that [(H_F)^-1]_jj = U_jj^2 for the columns F from j on.

    H is the Gram matrix in the unit of its mean diagonal, which changes no result, plus the damping; a dead feature has
    nothing else on its diagonal, and anything would do. In float64 at once, not only where float32 fails: masks never
    depend on which of them it was, and at d_in 4096 it takes one CPU core a few seconds.
    """
    # With rows and columns in reverse, H = L L^T is an upper factor times its transpose: U is the inverse of the upper
    # factor, and H need not be inverted itself.
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
