"""The public functions of the swap engine: check the input, search with a backend, and verify the result."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sparseswaps.base.errors import InputError
from sparseswaps.base.memory import map_slices
from sparseswaps.base.progress import Report, ignore_progress
from sparseswaps.layer.gram import check_flags, correlation, loss_from_correlation, validate_layer
from sparseswaps.layer.pattern import Pattern
from sparseswaps.layer.swaps.backends import Backend, Rows, select_backend
from sparseswaps.layer.swaps.between_rows import exchange
from sparseswaps.layer.swaps.certificate import CertificateError, improvable_rows

_CHECKED_ROWS = 4  # rows whose certificate is checked over every pair
_TINY = torch.finfo(torch.float64).tiny
_PASSES = 16  # searches from freshly computed correlations; usually the second one makes no swap


@dataclass(frozen=True)
class Refinement:
    """A refined mask, and the figures of each row.

    Attributes:
        mask: boolean [d_out, d_in], True where kept.
        swaps: int64 [d_out], swaps made.
        loss_before: float64 [d_out], the pruning error ||w X - (m * w) X||^2 of the given mask, summed over the tokens.
        loss_after: float64 [d_out], the pruning error of `mask`.
        certified: boolean [d_out], True where no 1-swap lowers the row's loss beyond rounding.
        drift: float64 [d_out], the largest difference between the correlation vector that the search updated and the
            correlation vector of the final mask, relative to the latter's largest entry.
    """

    mask: Tensor
    swaps: Tensor
    loss_before: Tensor
    loss_after: Tensor
    certified: Tensor
    drift: Tensor


def refine_mask(
    weight: Tensor,
    gram: Tensor,
    mask: Tensor,
    pattern: Pattern,
    max_swaps: int | None = None,
    backend: str | None = None,
    frozen: Tensor | None = None,
    between_rows: bool = False,
    progress: Report = ignore_progress,
) -> Refinement:
    """Swap kept against pruned weights, always the pair that lowers a row's error most, until no pair does.

    Every step takes the best of all feasible pairs of a row (arXiv 2512.10922, Algorithm 1; ties: lowest kept index,
    then lowest pruned index). Both weights of a pair are in the same group of the pattern, so every group keeps as many
    weights as in `mask`. Costs are float64, and a swap must gain more than rounding (`cost.rounding`). All rows are
    refined side by side; a GPU that runs out of memory refines fewer rows at a time.

    Args:
        weight: [d_out, d_in], any floating dtype.
        gram: [d_in, d_in] on the same device, float32 or float64, the Gram matrix of the layer's inputs.
        mask: boolean [d_out, d_in], True where kept; not modified. Rows may keep different numbers of weights.
        pattern: which weights may change places.
        max_swaps: the most swaps of a row; None goes to the local optimum.
        backend: `reference`, `cpu`, `cuda` or `batched`; None takes the fastest one for the device.
        frozen: boolean [d_out, d_in], the kept weights that no swap may prune.
        between_rows: whether two rows may also exchange a kept and a pruned weight (`between_rows.exchange`), in turn
            with the swaps within rows until neither improves. Then only the matrix keeps as many weights as before.
        progress: receives the number of rows that are done and the number of swaps made.

    Returns:
        A `Refinement` on the weight's device.

    Raises:
        InputError: shapes or devices do not fit, a weight is not finite, the Gram matrix is not symmetric or not
            positive semidefinite, a loss overflows, `max_swaps` is negative, the backend is unknown or of another
            device, the pattern does not divide d_in or forbids swaps between rows, or one row needs too much memory.
        CertificateError: a float64 check over every pair of some rows contradicts the search.
    """
    *_, last = walk(weight, gram, mask, pattern, [max_swaps], backend, frozen, between_rows, progress)
    progress(len(last.swaps), int(last.swaps.sum()))
    return last


def walk(
    weight: Tensor,
    gram: Tensor,
    mask: Tensor,
    pattern: Pattern,
    budgets: Iterable[int | None],
    backend: str | None = None,
    frozen: Tensor | None = None,
    between_rows: bool = False,
    progress: Report = ignore_progress,
) -> Iterator[Refinement]:
    """Refine a mask in steps: yield the result of `refine` for each rising budget, until every row is at its optimum.

    Each step continues from the step before. The other arguments and the errors are as for `refine`; `progress` counts
    a row as done when the row is at its optimum, since another budget may follow.
    """
    weight, gram = validate_layer(weight, gram)
    frozen = torch.zeros_like(mask) if frozen is None else frozen
    check_flags(weight, "mask", mask)
    check_flags(weight, "frozen", frozen)
    size = pattern.groups(weight.shape[1]).size
    if between_rows and size != weight.shape[1]:
        raise InputError(f"between_rows: pattern {pattern.label} fixes the kept weights of every group; use a sparsity")
    search = _LayerSearch(select_backend(weight, backend), weight, gram, mask, mask & frozen, size, progress)
    unlimited = torch.iinfo(torch.int64).max
    for budget in budgets:
        if budget is not None and not (isinstance(budget, int) and budget >= 0):
            raise InputError(f"max_swaps is {budget}: use a whole number of at least 0, or none for the local optimum")
        allowed = unlimited if budget is None else min(budget, unlimited)
        search.advance(allowed)
        while between_rows and search.exchange_between_rows(allowed):
            search.advance(allowed)
        yield Refinement(**{name: column.clone() for name, column in vars(search.result).items()})
        if search.result.certified.all():
            return


class _LayerSearch:
    """The search for a layer's best mask, from budget to budget; `result` is what it has reached."""

    def __init__(
        self, backend: Backend, weight: Tensor, gram: Tensor, mask: Tensor, frozen: Tensor, size: int, progress: Report
    ) -> None:
        self.backend, self.weight, self.gram, self.size, self.progress = backend, weight, gram, size, progress
        self.frozen, self.started = frozen.contiguous(), False
        mask = mask.clone(memory_format=torch.contiguous_format)
        swaps = torch.zeros(len(weight), dtype=torch.int64, device=weight.device)
        before, after, drift = torch.zeros(3, len(weight), dtype=torch.float64, device=weight.device)
        self.result = Refinement(mask, swaps, before, after, torch.zeros_like(swaps, dtype=torch.bool), drift)

    def advance(self, allowed: int) -> None:
        """Refine every row that has no certificate, until it has one or has made `allowed` swaps in all."""
        open_rows = (~self.result.certified).nonzero().flatten()
        all_open = len(open_rows) == len(self.weight)

        def refine_part(part: slice) -> None:
            self._refine_rows(part if all_open else open_rows[part], allowed)  # a slice copies no rows

        map_slices(refine_part, len(open_rows), len(open_rows), "rows")
        self.started = True

    def exchange_between_rows(self, allowed: int) -> bool:
        """Swap weights between rows, whose certificates are then void; return whether any swap was made."""
        result = self.result
        exchanged = exchange(self.weight, self.gram, result.mask, self.frozen, allowed - result.swaps)
        result.swaps.add_(exchanged)
        result.certified.logical_and_(exchanged == 0)
        return bool(exchanged.any())

    def _refine_rows(self, rows: slice | Tensor, allowed: int) -> None:
        """Refine some rows. The result changes only at the end, so the call can be repeated when memory runs out."""
        result, weight, frozen, start = self.result, self.weight[rows], self.frozen[rows], self.result.mask[rows]
        ended_before, made_before = int(result.certified.sum()), int(result.swaps.sum())

        def report(ended: int, made: int) -> None:
            self.progress(ended_before + ended, made_before + made)

        part, unfinished = self._search(weight, start, frozen, allowed - result.swaps[rows], report)
        self._check_counts(start, part.mask, frozen)
        sample = part.certified.nonzero().flatten()
        sample = sample[:: max(1, -(-len(sample) // _CHECKED_ROWS))]
        wrong = sample[improvable_rows(weight[sample], self.gram, part.mask[sample], frozen[sample], self.size)]
        if len(wrong := torch.cat([unfinished, wrong])):
            row = torch.arange(len(self.weight), device=wrong.device)[rows][wrong[0]]
            raise CertificateError(f"row {row} is not at the optimum that the search reported: a defect, report it")
        if not self.started:
            result.loss_before[rows] = part.loss_before
        result.mask[rows], result.loss_after[rows], result.certified[rows] = part.mask, part.loss_after, part.certified
        result.swaps[rows] += part.swaps
        result.drift[rows] = torch.maximum(result.drift[rows], part.drift)

    def _search(
        self, weight: Tensor, start: Tensor, frozen: Tensor, budget: Tensor, report: Report
    ) -> tuple[Refinement, Tensor]:
        """Search from the masks `start` [rows, d_in], which stay as they are.

        Rows that moved are searched again from freshly computed correlations, so that the rounding of their updates
        does not decide the result. Returns the result of these rows, and the rows that moved in every pass.
        """
        gram, size = self.gram, self.size
        mask = start.clone(memory_format=torch.contiguous_format)
        updated = correlation(weight, gram, mask)  # [rows, d_in]
        loss_before = loss_from_correlation(weight, updated, mask)
        loss_after, drift = loss_before.clone(), torch.zeros_like(loss_before)
        swaps, certified = self.backend.swap_rows(Rows(weight, gram, mask, frozen, updated, size, budget), report)
        stopped = (swaps == budget) & (swaps > 0) & ~certified  # by the budget: there is nothing to certify
        loss_after[stopped] = loss_from_correlation(weight[stopped], updated[stopped], mask[stopped])
        moved = ((swaps > 0) & ~stopped).nonzero().flatten()
        updated = updated[moved]
        for _ in range(_PASSES):
            if not len(moved):
                break
            some_weight, some_mask = weight[moved], mask[moved]
            fresh = correlation(some_weight, gram, some_mask)
            loss_after[moved] = loss_from_correlation(some_weight, fresh, some_mask)
            difference = (updated - fresh).abs_().amax(1) / fresh.abs().amax(1).clamp_min(_TINY)
            drift[moved] = torch.maximum(drift[moved], difference)
            rows = Rows(some_weight, gram, some_mask, frozen[moved], fresh, size, budget[moved] - swaps[moved])
            made, certified[moved] = self.backend.swap_rows(rows, ignore_progress)
            mask[moved] = some_mask
            swaps[moved] += made
            moved, updated = moved[made > 0], fresh[made > 0]
        return Refinement(mask, swaps, loss_before, loss_after, certified, drift), moved

    def _check_counts(self, start: Tensor, mask: Tensor, frozen: Tensor) -> None:
        """Raise CertificateError unless every group keeps as many weights as at the start, and all frozen weights."""
        before, after = (m.reshape(len(m), -1, self.size).sum(-1) for m in (start, mask))
        if not torch.equal(before, after):
            raise CertificateError("the search changed how many weights a group keeps: a defect, report it")
        if (frozen & ~mask).any():
            raise CertificateError("the search pruned a frozen weight: a defect, report it")


def eliminate(
    weight: Tensor, gram: Tensor, pattern: Pattern, backend: str | None = None, progress: Report = ignore_progress
) -> Tensor:
    """Make a mask by exact backward elimination: from the dense row, prune repeatedly the weight of least cost.

    Pruning kept weight u adds 2 w_u c_u + w_u^2 G_uu to the row's error, with c = G ((1 - m) * w). A group that keeps
    only as many weights as the pattern asks for loses no more. The arguments and the input errors are as for `refine`.
    """
    weight, gram = validate_layer(weight, gram)
    size, kept = pattern.groups(weight.shape[1])
    search = select_backend(weight, backend)

    def eliminate_part(rows: slice) -> Tensor:
        return search.eliminate_rows(weight[rows], gram, size, kept, lambda done, _: progress(rows.start + done, 0))

    return torch.cat(map_slices(eliminate_part, len(weight), len(weight), "rows"))
