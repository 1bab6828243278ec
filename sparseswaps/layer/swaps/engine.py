"""The public face of the swap engine: checks its input, picks a backend, measures and checks what came of it."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from sparseswaps.base.errors import InputError
from sparseswaps.base.memory import map_slices
from sparseswaps.base.progress import Report, ignore_progress
from sparseswaps.layer.gram import correlation, loss_of, validate_layer
from sparseswaps.layer.pattern import Pattern
from sparseswaps.layer.swaps.between_rows import exchange
from sparseswaps.layer.swaps.certificate import CertificateError, improvable

BACKENDS = ("reference", "cpu", "cuda", "batched")
_CHECKED_ROWS = 4  # rows whose certificate is checked over every pair
_TINY = torch.finfo(torch.float64).tiny
_PASSES = 16  # searches from freshly computed correlations; a second that finds nothing is the rule


class Backend(Protocol):
    """What a module of `sparseswaps.refine` offers that searches; `weight` and `gram` are float32 or float64."""

    def swap_rows(
        self,
        weight: Tensor,
        gram: Tensor,
        mask: Tensor,
        frozen: Tensor,
        correlation: Tensor,
        size: int,
        budget: Tensor,
        progress: Report,
    ) -> tuple[Tensor, Tensor]:
        """Refine `mask`, boolean [rows, d_in], in place, and keep its `correlation`, float64 [rows, d_in], with it.

        `frozen`, boolean [rows, d_in], are kept weights that stay; `size` is the number of columns in a block,
        `budget`, int64 [rows], the number of swaps that a row may make. `progress` is told, as often as that costs
        nothing, how many rows are at their optimum so far, and how many swaps were made.
        Returns the swaps made, int64 [rows], and whether no pair improves any more, boolean [rows].
        """
        ...

    def eliminate_rows(self, weight: Tensor, gram: Tensor, size: int, kept: int, progress: Report) -> Tensor:
        """Prune the weight that costs least again and again, until each block of `size` columns keeps `kept`.

        `progress` is told how many rows are done. Returns the mask, boolean [rows, d_in].
        """
        ...


@dataclass(frozen=True)
class Refinement:
    """A refined mask, and what each row's refinement came to.

    Attributes:
        mask: boolean [d_out, d_in], True where kept.
        swaps: int64 [d_out], swaps made.
        loss_before, loss_after: float64 [d_out], the pruning error ||w X - (m * w) X||^2 of each row, summed over the
            tokens that the Gram matrix was summed over.
        certified: boolean [d_out], True where no 1-swap lowers the row's loss beyond rounding.
        drift: float64 [d_out], how far the correlation vector that the search kept was from the one computed anew
            from its mask, relative to its largest entry.
    """

    mask: Tensor
    swaps: Tensor
    loss_before: Tensor
    loss_after: Tensor
    certified: Tensor
    drift: Tensor


@torch.no_grad()
def refine(
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
    """Swap kept against pruned weights, always the pair that lowers a row's error most, until none does.

    Every step takes the best of all feasible pairs of a row (arXiv 2512.10922, Algorithm 1; ties: lowest kept index,
    then lowest pruned index). Pairs are feasible within a block of the pattern, so the number of kept weights of every
    block stays what it is in `mask`; it may differ from row to row. Costs are float64; an improvement must exceed
    what rounding could make of it (`reference.rounding`). All rows are refined side by side, and part after part once
    the GPU is out of memory.

    Args:
        weight: [d_out, d_in], any floating dtype.
        gram: [d_in, d_in] on the same device, float32 or float64, the Gram matrix of the layer's inputs.
        mask: boolean [d_out, d_in], True where kept; not modified.
        pattern: which weights may change places.
        max_swaps: swaps per row at most; None: to the local optimum.
        backend: `reference`, `cpu`, `cuda` or `batched`; None: `cpu` and `cuda` on these devices, `batched` on any
            other and where there is no Triton.
        frozen: boolean [d_out, d_in], the kept weights that no swap may prune.
        between_rows: rows may also exchange a kept weight of one against a pruned one of another (`between.exchange`),
            in turn with their own swaps until neither improves. The matrix then keeps as many weights as before,
            its rows need not.
        progress: is told now and then how many rows have come to their end, and how many swaps were made.

    Returns:
        A `Refinement` on the weight's device.

    Raises:
        InputError: shapes or devices do not fit, a weight is not finite, the Gram matrix is not symmetric or not
            positive semidefinite, their products overflow, `max_swaps` is no number of swaps, the backend is unknown or
            of another device, the pattern does not divide d_in or does not let rows exchange weights, or the GPU has no
            memory for a single row.
        CertificateError: a float64 check over every pair of some rows contradicts the search.
    """
    *_, last = walk(weight, gram, mask, pattern, [max_swaps], backend, frozen, between_rows, progress)
    progress(len(last.swaps), int(last.swaps.sum()))
    return last


@torch.no_grad()
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
    """`refine` in steps: what it returns for each of `budgets`, rising, until every row is at its optimum.

    Each step goes on from the one before. Other arguments and errors are those of `refine`, but that rows which have
    spent a budget are not at their end here: there may be another.
    """
    weight, gram = validate_layer(weight, gram)
    d_out, d_in = weight.shape
    if frozen is None:
        frozen = torch.zeros_like(mask)
    for name, flags in (("mask", mask), ("frozen", frozen)):
        if flags.shape != weight.shape or flags.dtype != torch.bool:
            raise InputError(
                f"weight {tuple(weight.shape)} needs a boolean {name} of its shape, "
                f"not {flags.dtype} {tuple(flags.shape)}"
            )
        if flags.device != weight.device:
            raise InputError(f"the {name} is on {flags.device}, the weight on {weight.device}")
    size = pattern.blocks(d_in).size
    if between_rows and size != d_in:
        raise InputError(f"pattern {pattern.label} says what each block keeps: swaps between rows cannot keep to it")
    search = backend_of(weight, backend)

    mask, frozen = mask.clone(memory_format=torch.contiguous_format), (mask & frozen).contiguous()
    swaps = torch.zeros(d_out, dtype=torch.int64, device=weight.device)
    loss_before, loss_after, drift = torch.zeros(3, d_out, dtype=torch.float64, device=weight.device)
    certified = torch.zeros(d_out, dtype=torch.bool, device=weight.device)

    def carry(allowed: int, first: bool = False) -> None:
        """Rows without a certificate, as far as `allowed` swaps go."""
        open_rows = (~certified).nonzero().flatten()
        every = len(open_rows) == d_out

        def part(chosen: slice) -> None:
            rows = chosen if every else open_rows[chosen]
            ended, made = int(certified.sum()), int(swaps.sum())  # before this part, which may be begun again
            left = allowed - swaps[rows]

            def told(of_these: int, made_by_these: int) -> None:
                progress(ended + of_these, made + made_by_these)

            moved = _carried(search, weight[rows], gram, mask[rows], frozen[rows], size, left, told)
            if first:
                loss_before[rows] = moved.loss_before
            mask[rows], loss_after[rows], certified[rows] = moved.mask, moved.loss_after, moved.certified
            swaps[rows] += moved.swaps
            drift[rows] = torch.maximum(drift[rows], moved.drift)
            sample = moved.certified.nonzero().flatten()
            sample = sample[:: max(1, -(-len(sample) // _CHECKED_ROWS))]
            contradicted = improvable(weight[rows][sample], gram, moved.mask[sample], frozen[rows][sample], size)
            wrong = torch.cat([moved.moving.nonzero().flatten(), sample[contradicted]])
            if len(wrong):
                row = open_rows[chosen][wrong[0]]
                raise CertificateError(f"row {row} is not at the optimum that the search reported: a defect, report it")

        map_slices(part, len(open_rows), len(open_rows), "rows")

    for step, budget in enumerate(budgets):
        if budget is not None and not (isinstance(budget, int) and budget >= 0):
            raise InputError(f"max_swaps is {budget}: expected a number of swaps, or none for the local optimum")
        most = torch.iinfo(torch.int64).max
        allowed = most if budget is None else min(budget, most)
        carry(allowed, first=step == 0)
        while between_rows and (exchanged := exchange(weight, gram, mask, frozen, allowed - swaps)).any():
            swaps += exchanged
            certified &= exchanged == 0
            carry(allowed)
        state = (t.clone() for t in (mask, swaps, loss_before, loss_after, certified))
        yield Refinement(*state, drift.clone())
        if certified.all():
            return


class _Carried(NamedTuple):
    """Some rows after a search: the columns of `Refinement`, and which rows still moved in their last search."""

    mask: Tensor
    swaps: Tensor
    loss_before: Tensor
    loss_after: Tensor
    drift: Tensor
    certified: Tensor
    moving: Tensor


def _carried(
    search: Backend,
    weight: Tensor,
    gram: Tensor,
    start: Tensor,
    frozen: Tensor,
    size: int,
    budget: Tensor,
    progress: Report,
) -> _Carried:
    """Some rows from their masks `start`, which is not modified, to where their searches end."""
    mask = start.clone(memory_format=torch.contiguous_format)
    current = correlation(weight, gram, mask)
    loss_before = loss_of(weight, current, mask)
    loss_after, drift = loss_before.clone(), torch.zeros_like(loss_before)
    swaps, certified = search.swap_rows(weight, gram, mask, frozen, current, size, budget, progress)
    stopped = (swaps == budget) & (swaps > 0) & ~certified  # with improving swaps left: nothing to be certain of
    loss_after[stopped] = loss_of(weight[stopped], current[stopped], mask[stopped])
    rows = ((swaps > 0) & ~stopped).nonzero().flatten()
    current = current[rows]
    for _ in range(_PASSES):
        if not len(rows):
            break
        # What rounding has done to the correlations ends here: rows that moved are searched again from fresh ones.
        moved, refined = weight[rows], mask[rows]
        fresh = correlation(moved, gram, refined)
        loss_after[rows] = loss_of(moved, fresh, refined)
        drift[rows] = torch.maximum(
            drift[rows], (current - fresh).abs_().amax(1) / fresh.abs().amax(1).clamp_min(_TINY)
        )
        left = budget[rows] - swaps[rows]
        made, certified[rows] = search.swap_rows(moved, gram, refined, frozen[rows], fresh, size, left, ignore_progress)
        mask[rows] = refined
        swaps[rows] += made
        rows, current = rows[made > 0], fresh[made > 0]
    before, after = (m.reshape(len(m), -1, size).sum(-1) for m in (start, mask))
    if not torch.equal(before, after):
        raise CertificateError("the search changed how many weights a block keeps: a defect, report it")
    if (frozen & ~mask).any():
        raise CertificateError("the search pruned a frozen weight: a defect, report it")
    moving = torch.zeros_like(certified)
    moving[rows] = True
    return _Carried(mask, swaps, loss_before, loss_after, drift, certified, moving)


@torch.no_grad()
def eliminate(
    weight: Tensor, gram: Tensor, pattern: Pattern, backend: str | None = None, progress: Report = ignore_progress
) -> Tensor:
    """Exact backward elimination: from the dense row, prune again and again the weight that costs the row least.

    Pruning kept weight u adds 2 w_u c_u + w_u^2 G_uu to the row's error (the half of a swap's cost that is u's), with
    c = G ((1 - m) * w). Blocks that have no weight left to spare are passed over.

    Args and input errors are those of `refine`; no swaps are made.

    Returns:
        boolean [d_out, d_in], True where kept.
    """
    weight, gram = validate_layer(weight, gram)
    size, kept = pattern.blocks(weight.shape[1])
    search = backend_of(weight, backend)

    def part(rows: slice) -> Tensor:
        return search.eliminate_rows(weight[rows], gram, size, kept, lambda done, _: progress(rows.start + done, 0))

    return torch.cat(map_slices(part, len(weight), len(weight), "rows"))


def backend_of(weight: Tensor, name: str | None) -> Backend:
    """The module that searches; only the one asked for is imported. Raises InputError when there is none."""
    device = weight.device.type
    if name is None:
        ready = {"cpu": True, "cuda": find_spec("triton") is not None}
        name = device if ready.get(device) else "batched"
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"  # Triton's kernels then run on the CPU
    if name in ("cpu", "cuda") and name != device and not (name == "cuda" and interpreted):
        raise InputError(f"backend {name!r}: the tensors are on {device}")
    if name == "reference":
        from sparseswaps.layer.swaps import reference as module
    elif name == "cpu":
        from sparseswaps.layer.swaps import cpu as module
    elif name == "cuda":
        from sparseswaps.layer.swaps import cuda as module
    elif name == "batched":
        from sparseswaps.layer.swaps import batched as module
    else:
        raise InputError(f"backend {name!r}: expected one of {', '.join(BACKENDS)}")
    return module
