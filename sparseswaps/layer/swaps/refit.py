"""Swaps and eliminations that are judged with all kept weights refitted after them (Optimal Brain Compression).

For a row w with kept weights S and pruned weights P, let D = G + ridge I with ridge = damping * mean(diag G). The search
looks for the mask of least damped error after a refit,

    L(S) = min over v, zero on P, of (v - w)^T D (v - w).

Expanded, the error under the minimum is (v - w)^T G (v - w) + ridge ||v - m * w||^2 + ridge ||m' * w||^2, with m' = 1 on
P. The first two terms are what `least_squares` minimises, and the third term does not depend on v. The weights v at the
minimum are thus the weights that `least_squares` reaches with the same damping, v_S = A (D w)_S with A = (D_SS)^-1. The
third term counts a pruned weight as pruned from noise of variance ridge, too; it makes L fall whenever a weight is added.

Let B = A D_SP, s_p = D_pp - D_pS B_p and c = D (w - v), which is zero on S. These are the blocks of D swept on S (the
sweep operator). To prune kept u alone costs v_u^2 / A_uu, to keep pruned p alone gains c_p^2 / s_p. The swap changes L by

    dL(u, p) = v_u^2 / A_uu - (c_p + B_up v_u / A_uu)^2 / (s_p + B_up^2 / A_uu),

and is a sweep back of u and a sweep of p (`Tableau`). No bound cheaper than B skips pairs: by the Cauchy-Schwarz
inequality dL(u, p) >= -c_p^2 / s_p, which at the optimum excludes no p. So every step computes dL for all pairs.

References: Frantar and Alistarh, Optimal Brain Compression, arXiv 2208.11580; Goodnight, A Tutorial on the SWEEP
Operator, 1979.
"""

from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from sparseswaps.base.errors import InputError
from sparseswaps.base.memory import map_slices
from sparseswaps.base.progress import Report, ignore_progress
from sparseswaps.layer.gram import check_flags, validate_layer
from sparseswaps.layer.pattern import Pattern
from sparseswaps.layer.swaps.tableau import build_tableau

_LEAST_DAMPING = 1e-4  # the condition number of D is at most 1 + d_in / damping
_RESOLUTION = 1e-11  # the least gain of a swap, as a share of sum_j w_j^2 D_jj; 1e-13 of it would be rounding
_PASSES = 16  # searches from a fresh tableau, each of at most d_in swaps; usually the second one makes no swap
_UNLIMITED = torch.iinfo(torch.int64).max
_ENTRIES_ON_CPU, _ENTRIES = 1 << 24, 1 << 28  # float64 numbers of the rows that are searched side by side


@dataclass(frozen=True)
class RefitResult:
    """A mask that `refit_swaps` refined, and the figures of each row.

    Attributes:
        mask: boolean [d_out, d_in], True where kept.
        swaps: int64 [d_out], swaps made.
        certified: boolean [d_out], True where a search of all pairs from a fresh tableau found no swap that gains.
        loss_before, loss_after: float64 [d_out], the damped error L after a refit of the kept weights.
    """

    mask: Tensor
    swaps: Tensor
    certified: Tensor
    loss_before: Tensor
    loss_after: Tensor


def refit_swaps(
    weight: Tensor,
    gram: Tensor,
    start: Tensor,
    pattern: Pattern,
    damping: float = 0.01,
    max_swaps: int | None = None,
    progress: Report = ignore_progress,
) -> RefitResult:
    """Swap kept against pruned weights, always the pair that lowers a row's refitted error L most, until no pair does.

    Both weights of a pair are in the same group of the pattern. Ties: lowest kept column, then lowest pruned column. A
    swap must gain more than 1e-11 of sum_j w_j^2 D_jj. Weights of dead features count as zero. A row takes time for
    about d_in^3 / 2 operations, and for about 2 kept d_in operations for each swap; all in float64.

    Args:
        weight: [d_out, d_in], any floating dtype.
        gram: [d_in, d_in] on the same device, float32 or float64, the Gram matrix of the layer's inputs.
        start: boolean [d_out, d_in], True where kept; not modified. Rows may keep different numbers of weights.
        pattern: which weights may change places.
        damping: the ridge, as a share of the mean of the Gram matrix's diagonal; at least 1e-4.
        max_swaps: the most swaps of a row; None goes to the local optimum.
        progress: receives the number of rows that are done and the number of swaps made.

    Raises:
        InputError: shapes or devices do not fit, a weight is not finite, the Gram matrix is not symmetric or not
            positive semidefinite, `damping` is too small, `max_swaps` is negative, the pattern does not divide d_in,
            or a GPU has no memory for one row.
    """
    weight, matrix = _damp(weight, gram, damping)
    check_flags(weight, "start", start)
    if max_swaps is not None and not (isinstance(max_swaps, int) and max_swaps >= 0):
        raise InputError(f"max_swaps is {max_swaps}: use a whole number of at least 0, or none for the local optimum")
    size, budget = pattern.groups(weight.shape[1]).size, _UNLIMITED if max_swaps is None else min(max_swaps, _UNLIMITED)
    made = 0

    def refine_part(rows: slice) -> RefitResult:
        nonlocal made
        result = _refine_rows(weight[rows], matrix, start[rows], size, budget)
        made += int(result.swaps.sum())
        progress(rows.stop, made)
        return result

    slots = int(start.sum(1).max())
    rows = _rows_at_a_time(weight, 2 * slots * len(matrix))
    parts = map_slices(refine_part, len(weight), rows, "rows")
    return RefitResult(*(torch.cat([getattr(part, name) for part in parts]) for name in RefitResult.__annotations__))


def _damp(weight: Tensor, gram: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """Check a layer; return its weights [d_out, d_in], zero for dead features, and the matrix D, both in float64."""
    if not _LEAST_DAMPING <= damping < inf:
        raise InputError(f"damping is {damping}; use a number of at least {_LEAST_DAMPING}, such as 0.01")
    weight, gram = validate_layer(weight, gram)
    matrix = gram.double().clone()
    dead = matrix.diagonal() == 0
    matrix.diagonal().add_(damping * float(matrix.diagonal().mean()) or 1.0)  # all features may be dead
    return weight.double().masked_fill(dead, 0), matrix


def _rows_at_a_time(weight: Tensor, entries: int) -> int:
    """Return how many rows are searched side by side, if each takes `entries` float64 numbers."""
    return max(1, (_ENTRIES_ON_CPU if weight.device.type == "cpu" else _ENTRIES) // max(1, entries))


def _refine_rows(weight: Tensor, matrix: Tensor, start: Tensor, size: int, budget: int) -> RefitResult:
    """Refine some rows from the masks `start`, with at most `budget` swaps in each.

    Rows that moved are searched again from a fresh tableau, so that the rounding of their updates does not decide.
    """
    if weight.device.type == "cpu":
        from sparseswaps.layer.swaps.refit_cpu import swap_rows
    else:
        from sparseswaps.layer.swaps.refit_batched import swap_rows
    rows, mask = torch.arange(len(weight), device=weight.device), start.clone()
    swaps, certified = torch.zeros_like(rows), torch.zeros_like(rows, dtype=torch.bool)
    losses = torch.zeros(2, len(weight), dtype=torch.float64, device=weight.device)
    tolerance = _RESOLUTION * (weight.square() * matrix.diagonal()).sum(1)
    for number in range(_PASSES):
        w = weight[rows]
        tableau = build_tableau(w, matrix, mask[rows])
        losses[1, rows] = (w * tableau.c).masked_fill_(mask[rows], 0).sum(1).clamp_min_(0)
        if not number:
            losses[0] = losses[1]
        made, settled = swap_rows(matrix, tableau, size, tolerance[rows], (budget - swaps[rows]).clamp_max_(len(matrix)))
        mask[rows] = tableau.mask
        swaps[rows] += made
        certified[rows] = settled & (made == 0)
        rows = rows[made > 0]
        if not len(rows):
            break
    return RefitResult(mask, swaps, certified, *losses)
