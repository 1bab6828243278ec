"""The refinement of one layer's mask, with the figures that describe its result."""

import time
from collections.abc import Iterator
from itertools import chain, count, takewhile
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparseswaps.base.memory import map_slices
from sparseswaps.base.progress import Report, ignore_progress
from sparseswaps.layer.baselines.dsnot import dsnot
from sparseswaps.layer.gram import Inputs, row_loss
from sparseswaps.layer.pattern import Pattern
from sparseswaps.layer.settings import RefinementSettings
from sparseswaps.layer.swaps.cost import norms
from sparseswaps.layer.swaps.engine import walk
from sparseswaps.layer.swaps.refit import refit_swaps


class RefinedLayer(NamedTuple):
    """The refined mask of a layer; figures of held-out text are None where there is none."""

    mask: Tensor  # boolean [d_out, d_in]
    figures: dict[str, Any]  # by the names of their columns
    curve: list[dict[str, Any]]  # `loss` and `held_out` by `budget`, the number of swaps that a row could make so far


class _Step(NamedTuple):
    """A layer at one step of its refinement: mask, swaps and certificates as in `Refinement`, losses of all rows."""

    mask: Tensor
    swaps: Tensor
    certified: Tensor
    drift: float
    loss: float
    held_out: float | None


def refine_layer(
    weight: Tensor,
    inputs: Inputs,
    start: Tensor,
    pattern: Pattern,
    settings: RefinementSettings,
    progress: Report = ignore_progress,
) -> RefinedLayer:
    """Refine the mask `start` of a layer [d_out, d_in], and measure its losses on the way, all on one device.

    With `stop: held_out` the result is the mask of the last step before the held-out loss rose, if there is held-out
    text. Progress and errors are as for `refine`.
    """
    began = time.monotonic()
    if settings.method == "dsnot":
        steps = _dsnot_steps(weight, inputs, start, pattern, settings.max_swaps)
    elif settings.refit:
        steps = _refit_steps(weight, inputs, start, pattern, settings.max_swaps, progress)
    else:
        steps = _swap_steps(weight, inputs, start, pattern, settings, progress)
    best, curve = None, []
    for step in steps:
        if settings.stop == "held_out" and curve and step.held_out is not None and step.held_out >= best.held_out:
            break
        best = step
        curve.append({"budget": int(step.swaps.max()), "loss": step.loss, "held_out": step.held_out})
    progress(len(weight), int(step.swaps.sum()))
    figures = {
        "d_out": weight.shape[0],
        "d_in": weight.shape[1],
        "kept": int(best.mask.sum()),
        "loss_before": curve[0]["loss"],
        "loss_after": best.loss,
        "held_out_before": curve[0]["held_out"],
        "held_out_after": best.held_out,
        "swaps": int(best.swaps.sum()),
        "max_row_swaps": int(best.swaps.max()),
        "rows": len(weight),
        "rows_certified": int(best.certified.sum()),
        "drift": best.drift,
        "seconds": round(time.monotonic() - began, 3),
    }
    return RefinedLayer(best.mask, figures, curve)


def ladder(most: int | None) -> Iterator[int | None]:
    """Yield the budgets at which a refinement is measured: 0, 1, 2, 5, 10, 25, 50, 100, ... and finally `most`."""
    rungs = chain([0, 1, 2, 5], (rung * 10**power for power in count() for rung in (10, 25, 50)))
    yield from takewhile(lambda rung: most is None or rung < most, rungs)
    yield most


def _swap_steps(
    weight: Tensor, inputs: Inputs, start: Tensor, pattern: Pattern, settings: RefinementSettings, progress: Report
) -> Iterator[_Step]:
    """Refine by exact 1-swaps (`engine.walk`), one step for each budget of the ladder."""
    gram = shrink_correlations(inputs.gram, settings.shrinkage)
    frozen = highest_scores(weight, inputs.gram, settings.freeze) if settings.freeze else None
    loss = _MaskLoss(weight, inputs.gram) if settings.shrinkage else None  # else the search has measured it
    held_out = None if inputs.held_out is None else _MaskLoss(weight, inputs.held_out)
    budgets = ladder(settings.max_swaps)
    for step in walk(weight, gram, start, pattern, budgets, None, frozen, settings.between_rows, progress):
        step_loss = loss.measure(step.mask) if loss else float(step.loss_after.sum())
        step_held_out = held_out and held_out.measure(step.mask)
        yield _Step(step.mask, step.swaps, step.certified, float(step.drift.max()), step_loss, step_held_out)


def _dsnot_steps(
    weight: Tensor, inputs: Inputs, start: Tensor, pattern: Pattern, max_swaps: int | None
) -> Iterator[_Step]:
    """Refine by DSnoT in two steps: the warm start, and the final mask."""
    limit = {} if max_swaps is None else {"cycles": max_swaps}
    for mask in (start, dsnot(weight, inputs, start, pattern, **limit)):
        swaps = (start & ~mask).sum(1)
        yield _measure_step(weight, inputs, mask, swaps, torch.zeros_like(swaps, dtype=torch.bool))


def _refit_steps(
    weight: Tensor, inputs: Inputs, start: Tensor, pattern: Pattern, max_swaps: int | None, progress: Report
) -> Iterator[_Step]:
    """Refine by swaps with refit in two steps: the warm start, and the final mask.

    As for all refinements, the losses are those of the old weights. They may rise, because the search lowers the error
    after a refit.
    """
    refined = refit_swaps(weight, inputs.gram, start, pattern, max_swaps=max_swaps, progress=progress)
    unchanged = refined.swaps == 0
    yield _measure_step(weight, inputs, start, torch.zeros_like(refined.swaps), refined.certified & unchanged)
    yield _measure_step(weight, inputs, refined.mask, refined.swaps, refined.certified)


def _measure_step(weight: Tensor, inputs: Inputs, mask: Tensor, swaps: Tensor, certified: Tensor) -> _Step:
    """Return the step of a search that measures no losses itself."""
    loss = _MaskLoss(weight, inputs.gram).measure(mask)
    held_out = None if inputs.held_out is None else _MaskLoss(weight, inputs.held_out).measure(mask)
    return _Step(mask, swaps, certified, 0.0, loss, held_out)


class _MaskLoss:
    """The loss of a changing mask by one Gram matrix. Only rows whose mask changed are computed again."""

    def __init__(self, weight: Tensor, gram: Tensor) -> None:
        self.weight, self.gram = weight, gram
        self.mask: Tensor | None = None
        self.row_losses = torch.zeros(len(weight), dtype=torch.float64, device=weight.device)

    def measure(self, mask: Tensor) -> float:
        """Return the loss of a mask, summed over all rows."""
        changed = slice(None) if self.mask is None else (mask != self.mask).any(1)
        weight, new = self.weight[changed], mask[changed]
        if rows := len(weight):
            parts = map_slices(lambda part: row_loss(weight[part], self.gram, new[part]), rows, rows, "rows")
            self.row_losses[changed] = torch.cat(parts)
        self.mask = mask
        return float(self.row_losses.sum())


def shrink_correlations(gram: Tensor, shrinkage: float) -> Tensor:
    """Return (1 - s) G + s diag(G), which trusts correlations less; the best mask at s = 1 is Wanda's."""
    if not shrinkage:
        return gram
    shrunk = gram * (1 - shrinkage)
    shrunk.diagonal().copy_(gram.diagonal())
    return shrunk


def highest_scores(weight: Tensor, gram: Tensor, fraction: float) -> Tensor:
    """Return the `fraction` of each row's weights with the highest Wanda scores |W_ij| ||X_j||, as a boolean mask."""
    count = round(fraction * weight.shape[1])
    highest = norms(weight, gram).argsort(descending=True, stable=True)[:, :count]
    return torch.zeros(weight.shape, dtype=torch.bool, device=weight.device).scatter_(1, highest, True)
