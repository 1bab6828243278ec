"""What refinement does to one layer: its mask, and the figures that say what came of it."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, count, takewhile
from typing import Any

import torch
from torch import Tensor

from sparseswaps.base.memory import map_slices
from sparseswaps.base.progress import Report, ignore_progress
from sparseswaps.layer.baselines.dsnot import dsnot
from sparseswaps.layer.gram import Inputs, row_loss
from sparseswaps.layer.pattern import Pattern
from sparseswaps.layer.settings import RefinementSettings
from sparseswaps.layer.swaps.cost import norms
from sparseswaps.layer.swaps.engine import Refinement, walk


@dataclass(frozen=True)
class Refined:
    """A layer's refinement.

    Attributes:
        mask: boolean [d_out, d_in].
        figures: of the layer, by the names of their columns; None where there is no held-out text.
        curve: error by the number of swaps that a row could make so far, as rows of columns `budget`, `loss`,
            `held_out`.
    """

    mask: Tensor
    figures: dict[str, Any]
    curve: list[dict[str, Any]]


def refine_layer(
    weight: Tensor,
    inputs: Inputs,
    start: Tensor,
    pattern: Pattern,
    how: RefinementSettings,
    progress: Report = ignore_progress,
) -> Refined:
    """Refine a layer's mask, and measure its error on the way.

    Args:
        weight: [d_out, d_in], floating; `inputs` and `start`, the mask to begin with, are on its device.
        how: with `stop="held_out"` the mask is that of the last step before the held-out error rose, where there is
            held-out text.
        progress: is told how many rows have come to their end, and how many swaps were made.

    Raises:
        InputError, CertificateError: as `refine` does.
    """
    began = time.monotonic()
    steps = {"swaps": partial(_swaps, progress=progress), "dsnot": _dsnot}[how.method]
    best, curve = None, []
    for step in steps(weight, inputs, start, pattern, how):
        worse = best is not None and step.held_out is not None and step.held_out >= best.held_out
        if how.stop == "held_out" and worse:
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
    return Refined(best.mask, figures, curve)


@dataclass(frozen=True)
class _Step:
    """A layer on its way: masks and counts as in `Refinement`, error over all rows."""

    mask: Tensor
    swaps: Tensor
    certified: Tensor
    drift: float
    loss: float
    held_out: float | None


def ladder(most: int | None) -> Iterator[int]:
    """The numbers of swaps at which a refinement is looked at: 0, 1, 2, 5, 10, 25, 50, 100, ... and `most` at last."""
    rungs = chain([0, 1, 2, 5], (rung * 10**power for power in count() for rung in (10, 25, 50)))
    yield from takewhile(lambda rung: most is None or rung < most, rungs)
    yield most


def _swaps(
    weight: Tensor, inputs: Inputs, start: Tensor, pattern: Pattern, how: RefinementSettings, progress: Report
) -> Iterator[_Step]:
    """Exact 1-swaps (`refine.walk`), step by step of the ladder."""
    gram = shrunk(inputs.gram, how.shrinkage)
    frozen = frozen_weights(weight, inputs.gram, how.freeze) if how.freeze else None
    grams = {"loss": inputs.gram} if how.shrinkage else {}
    if inputs.held_out is not None:
        grams["held_out"] = inputs.held_out
    of_rows = {name: torch.zeros(len(weight), dtype=torch.float64, device=weight.device) for name in grams}
    last: Refinement | None = None
    options = {"frozen": frozen, "between_rows": how.between_rows, "progress": progress}
    for result in walk(weight, gram, start, pattern, ladder(how.max_swaps), **options):
        changed = slice(None) if last is None else (result.mask != last.mask).any(1)
        for name, of in grams.items():
            part, mask = weight[changed], result.mask[changed]
            rows = len(part)
            found = map_slices(lambda i, w=part, g=of, m=mask: row_loss(w[i], g, m[i]), rows, rows, "rows")
            if found:
                of_rows[name][changed] = torch.cat(found)
        losses = {"loss": float(result.loss_after.sum()), "held_out": None}
        losses |= {name: float(values.sum()) for name, values in of_rows.items()}
        yield _Step(result.mask, result.swaps, result.certified, float(result.drift.max()), **losses)
        last = result


def _dsnot(weight: Tensor, inputs: Inputs, start: Tensor, pattern: Pattern, how: RefinementSettings) -> Iterator[_Step]:
    """DSnoT: the mask as it is, and what it is made to."""
    limit = {} if how.max_swaps is None else {"cycles": how.max_swaps}
    mask = dsnot(weight, inputs.gram, start, pattern, inputs.sums, inputs.tokens, inputs.sequences, **limit)
    for found in (start, mask):
        swaps = (start & ~found).sum(1)
        loss = total_error(row_loss, weight, inputs.gram, found)
        unseen = None if inputs.held_out is None else total_error(row_loss, weight, inputs.held_out, found)
        yield _Step(found, swaps, torch.zeros_like(swaps, dtype=torch.bool), 0.0, loss, unseen)


def shrunk(gram: Tensor, shrinkage: float) -> Tensor:
    """(1 - s) G + s diag(G): correlations are trusted less; at s = 1 the best mask is Wanda's."""
    if not shrinkage:
        return gram
    found = gram * (1 - shrinkage)
    found.diagonal().copy_(gram.diagonal())
    return found


def frozen_weights(weight: Tensor, gram: Tensor, fraction: float) -> Tensor:
    """The weights of highest Wanda score |W_ij| ||X_j||, `fraction` of each row: boolean [d_out, d_in]."""
    count = round(fraction * weight.shape[1])
    highest = norms(weight, gram).argsort(descending=True, stable=True)[:, :count]
    return torch.zeros(weight.shape, dtype=torch.bool, device=weight.device).scatter_(1, highest, True)


def total_error(error: Any, weight: Tensor, gram: Tensor, of: Tensor) -> float:
    """An error of all rows, of so many at a time as the GPU has memory for."""
    rows = len(weight)
    return sum(map_slices(lambda part: float(error(weight[part], gram, of[part]).sum()), rows, rows, "rows"))
