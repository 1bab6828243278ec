"""ALPS (Meng et al., NeurIPS 2024, arXiv 2406.07831): a warm start, the mask. Its weights are masked least squares.

ALPS looks for weights V on the pattern that minimise, with H = G + lambda I and lambda = 0.01 mean(diag G),

    ||V X - W X||^2 + lambda ||V - W||^2 = sum over rows of (v - w)^T H (v - w).

`alps_mask` is the first part, ADMM in units that scale the diagonal of H to one: A = H / (d d^T) with d = sqrt(diag H),
W0 = W d, and so on. With the scaled dual variable U = dual / rho, from D = the largest of W0 and U = 0, a round is

    B = W0 + R (D - U - W0),    D = the largest of B + U,    U <- U + B - D,    R = rho (A + rho I)^-1.

This B is the paper's (A + rho I)^-1 (A W0 + rho D - rho U). The whole state of a round is S = B + U, as in `admm`: D is
S inside the mask, and the new U is S outside the mask. Every 3 rounds rho changes by the change of the mask, and the
rounds end when the mask settles. The constants and the rule for rho are those of the authors' program. The result is
the mask of the last D. The program takes the largest of the last B, which are the same weights or nearly so.

The second part, conjugate gradients on the fixed mask, needs no function here. On a mask m, the pruned weights add the
constant lambda ||(1 - m) w||^2, so that the objective is (v - w)^T G (v - w) + lambda ||v - m w||^2: the objective of
`least_squares` with its default damping. Both solvers have the same preconditioner, diag H. ALPS takes at most 10
iterations from the B of its last round, `least_squares` takes more from m w, to the same minimum. ALPS is therefore
warm start `alps`, refinement `none`, reconstruction `least_squares`.
"""

import torch
from torch import Tensor

from sparseswaps.base.progress import Report, ignore_progress
from sparseswaps.layer.gram import validate_layer
from sparseswaps.layer.masks import keep_best
from sparseswaps.layer.pattern import NM, Pattern

_DAMPING = 0.01
_RHO = 0.1  # of the first rounds
_EVERY = 3  # rounds between two changes of rho
_MOST = 300  # rounds
_PATIENCE, _SETTLED = 30, 3e-4  # after so many rounds, a change of at most this share of the kept weights is enough


def alps_mask(weight: Tensor, gram: Tensor, pattern: Pattern, progress: Report = ignore_progress) -> Tensor:
    """Return the mask on which ALPS' rounds settle.

    For a sparsity, the weights of all rows compete: rows may keep different numbers of weights, and the matrix keeps
    d_out times the pattern's number for a row. Of equal weights the upper row's is kept, then the leftmost. `progress`
    receives the number of rows times the share of the most rounds, and all rows at the end.
    """
    weight, gram = validate_layer(weight, gram)
    scale, values, vectors = _decompose_scaled(gram)
    dense = weight * scale.to(weight.dtype)
    first = before = mask = _keep_largest(dense, pattern)
    state, rho, started = dense.masked_fill(~mask, 0), _RHO, False
    for done in range(_EVERY, _MOST + 1, _EVERY):
        resolvent = ((vectors * (rho / (values + rho))) @ vectors.T).to(weight.dtype)  # R
        for _ in range(_EVERY):
            state = _run_round(dense, state, mask, resolvent)
            mask = _keep_largest(state, pattern)
        progress(len(weight) * done // _MOST, 0)
        changed = int((mask != before).sum())
        share = changed / max(int(mask.sum()), 1)
        before = mask
        if (started and not changed) or (done > _PATIENCE and share < _SETTLED):
            break
        started = started or share > 0.005
        factor = _growth(share) if started else 1 / 5
        rho *= factor
        state = torch.where(mask, state, state / factor)  # the dual variable rho U stays
        if not started and changed:  # with too large a rho, the mask stays near the first: start again
            mask, state = first, dense.masked_fill(~first, 0)
    progress(len(weight), 0)
    return mask


def _decompose_scaled(gram: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return d [d_in], and the eigenvalues and eigenvectors (columns) of A, all float64.

    The Gram matrix is first divided by its mean diagonal, which changes no mask. Rounding can make it slightly
    indefinite, so eigenvalues are at least 0.
    """
    damped = gram.to(torch.float64, copy=True)
    damped.div_(damped.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)).diagonal().add_(_DAMPING)
    scale = damped.diagonal().sqrt()
    values, vectors = torch.linalg.eigh(damped.div_(scale).div_(scale[:, None]))
    return scale, values.clamp_min_(0), vectors


def _run_round(dense: Tensor, state: Tensor, mask: Tensor, resolvent: Tensor) -> Tensor:
    """Return S = B + U [d_out, d_in] of the next round from S = `state` and its mask; `dense` is W0."""
    following = torch.where(mask, state, -state).sub_(dense) @ resolvent  # D - U is S, or -S outside the mask
    return following.add_(dense).add_(state.masked_fill(mask, 0))


def _growth(share: float) -> float:
    """Return the factor of rho after a change of the mask by a `share` of the kept weights."""
    if share > 0.1:
        return 1.3
    return 1.2 if share > 0.005 else 1.1


def _keep_largest(values: Tensor, pattern: Pattern) -> Tensor:
    """Return the mask of the values of largest size: in every group for N:M, for a sparsity in the whole matrix."""
    sizes = values.abs()
    if isinstance(pattern, NM):
        return keep_best(sizes, pattern)
    kept = len(values) * pattern.groups(values.shape[1]).kept
    pruned = sizes.numel() - kept
    if not pruned:
        return torch.ones_like(values, dtype=torch.bool)
    sizes = sizes.flatten()
    least = sizes.kthvalue(pruned).values  # the largest pruned value; a selection is faster than a sort
    mask = sizes > least
    mask[(sizes == least).nonzero().flatten()[: kept - int(mask.sum())]] = True
    return mask.view(values.shape)
