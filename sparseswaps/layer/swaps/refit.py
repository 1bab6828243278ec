"""Swaps and eliminations that are judged with all kept weights refitted after them.

Let a row w keep the weights S and prune the weights P, and let D = G + ridge I with ridge = damping * mean(diag G). The
search lowers the damped error after a refit,

    L(S) = min over v of (v - w)^T D (v - w), with v zero on P.

For a mask m, the error under the minimum is (v - w)^T G (v - w) + ridge ||v - m * w||^2 + ridge ||(1 - m) * w||^2. Only
the first two terms depend on v, and they are what `least_squares` minimises. So `least_squares` with the same damping
reaches the weights that the search assumes, v_S = A (D w)_S with A = (D_SS)^-1. The third term makes L the error for
inputs with independent noise of variance ridge. On synthetic layers, masks that were chosen without the third term
had up to 2 % more held-out error (damping 0.1, measured once).

Let B = A D_SP, s_p = D_pp - D_pS B_p and c = D (w - v), which is zero on S. The sweep operator, applied to D and D w
for all columns of S, gives these blocks. To prune kept u alone costs v_u^2 / A_uu, and to keep pruned p alone gains
c_p^2 / s_p. A swap sweeps back u and sweeps p, and it changes L by

    dL(u, p) = v_u^2 / A_uu - (c_p + B_up v_u / A_uu)^2 / (s_p + B_up^2 / A_uu).

Every step computes dL for all pairs. The bound dL >= -c_p^2 / s_p needs no B, but excludes no p near the optimum.

References: Frantar and Alistarh, Optimal Brain Compression, arXiv 2208.11580; Goodnight, A Tutorial on the SWEEP
Operator, The American Statistician, 1979.
"""

from math import inf
from typing import NamedTuple

import torch
from torch import Tensor

from sparseswaps.base.errors import InputError
from sparseswaps.base.memory import map_slices
from sparseswaps.base.progress import Report, ignore_progress
from sparseswaps.layer.gram import check_flags, validate_layer
from sparseswaps.layer.pattern import Groups, Pattern
from sparseswaps.layer.swaps.tableau import build_tableau, invert, swap_rows

_LEAST_DAMPING = 1e-4  # the condition number of D is at most 1 + d_in / damping
_RESOLUTION = 1e-11  # the least gain of a swap, as a share of sum_j w_j^2 D_jj; rounding is about 1e-13
_PASSES = 16  # searches from a fresh tableau, each of at most d_in swaps; usually the second one makes no swap
_UNLIMITED = torch.iinfo(torch.int64).max
_ENTRIES_ON_CPU, _ENTRIES = 1 << 20, 1 << 28  # float64 numbers of the rows that are searched side by side


class RefitResult(NamedTuple):
    """A mask that `refit_swaps` refined, and the figures of each row."""

    mask: Tensor  # boolean [d_out, d_in], True where kept
    swaps: Tensor  # int64 [d_out], swaps made
    certified: Tensor  # boolean [d_out], True where all pairs of a fresh tableau hold no swap that gains
    loss_before: Tensor  # float64 [d_out], the damped error L of the given mask, after a refit of the kept weights
    loss_after: Tensor  # float64 [d_out], the damped error L of `mask`


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
    swap must gain more than 1e-11 of sum_j w_j^2 D_jj. Weights of dead features count as zero. In float64, a row that
    keeps k weights takes about 2 (k^3 + k^2 d_in) operations twice, about 15 k d_in for each swap, and memory for
    4 k d_in numbers.

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

    rows = _rows_at_a_time(weight, 2 * int(start.sum(1).max()) * len(matrix))
    parts = map_slices(refine_part, len(weight), rows, "rows")
    return RefitResult(*map(torch.cat, zip(*parts, strict=True)))


def _damp(weight: Tensor, gram: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """Check a layer; return its weights [d_out, d_in], zero for dead features, and the matrix D, both in float64."""
    if not _LEAST_DAMPING <= damping < inf:
        raise InputError(f"damping is {damping}; use a number of at least {_LEAST_DAMPING}, such as 0.01")
    weight, gram = validate_layer(weight, gram)
    matrix = gram.to(torch.float64, copy=True)
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
        room = (budget - swaps[rows]).clamp_max_(len(matrix) if number < _PASSES - 1 else 0)
        made, settled = swap_rows(matrix, tableau, size, tolerance[rows], room)
        mask[rows] = tableau.mask
        swaps[rows] += made
        certified[rows] = settled & (made == 0)
        rows = rows[made > 0]
        if not len(rows):
            break
    return RefitResult(mask, swaps, certified, *losses)


def refit_eliminate(
    weight: Tensor, gram: Tensor, pattern: Pattern, damping: float = 0.01, progress: Report = ignore_progress
) -> Tensor:
    """Make a mask by exact backward elimination with refit: prune repeatedly the weight of least cost v_u^2 / A_uu.

    This is Optimal Brain Compression, row by row. A group that keeps only as many weights as the pattern asks for loses
    no more. Ties: the lowest column. A row that prunes n weights takes about n^2 d_in operations in float64, and memory
    for n d_in numbers. The arguments and the errors are as for `refit_swaps`. Returns a boolean mask [d_out, d_in].
    """
    weight, matrix = _damp(weight, gram, damping)
    groups = pattern.groups(weight.shape[1])
    pruned = len(matrix) // groups.size * (groups.size - groups.kept)
    inverse = invert(matrix)

    def eliminate_part(rows: slice) -> Tensor:
        return _eliminate_rows(weight[rows], inverse, groups, pruned)

    rows = _rows_at_a_time(weight, pruned * len(matrix))
    return torch.cat(map_slices(eliminate_part, len(weight), rows, "rows", progress=progress))


def _eliminate_rows(weight: Tensor, inverse: Tensor, groups: Groups, pruned: int) -> Tensor:
    """Prune `pruned` weights of each row [rows, d_in], with the inverse of D [d_in, d_in].

    To prune u lowers A by A_u A_u^T / A_uu. The rows A_u / sqrt(A_uu) are therefore a Cholesky factor of the inverse,
    with pivots in the order of pruning. A row A_u is computed from the factor when u is pruned.
    """
    size, kept = groups
    mask, v = torch.ones_like(weight, dtype=torch.bool), weight.clone()
    rows, diagonal = torch.arange(len(v), device=v.device), inverse.diagonal().expand_as(v).clone()
    spare = torch.full((len(v), v.shape[1] // size), size - kept, device=v.device)
    factor = torch.empty(len(v), pruned, v.shape[1], dtype=v.dtype, device=v.device)
    for step in range(pruned):
        open_columns = mask & (spare > 0).repeat_interleave(size, dim=1)
        u = (v.square() / diagonal).masked_fill_(~open_columns, inf).argmin(1)
        mask[rows, u] = False
        spare[rows, u // size] -= 1
        before = factor[:, :step]
        row = inverse[u] - (before[rows, :, u][:, None] @ before)[:, 0]
        row /= row[rows, u].sqrt()[:, None]
        factor[:, step] = row
        v -= row * (v[rows, u] / row[rows, u])[:, None]
        diagonal -= row.square()
    return mask
