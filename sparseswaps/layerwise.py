"""What refinement does to one layer: its mask, and the row of the table of losses that says what came of it."""

import time

from torch import Tensor

from sparseswaps.gram import row_loss
from sparseswaps.masks import check_mask
from sparseswaps.memory import sliced
from sparseswaps.pattern import Pattern
from sparseswaps.refine import refine


def refine_layer(
    weight: Tensor, gram: Tensor, held_out: Tensor | None, start: Tensor, pattern: Pattern, max_swaps: int | None
) -> tuple[Tensor, dict[str, float]]:
    """Refine a layer's mask, and measure its error before and after.

    Args:
        weight, gram, start, pattern, max_swaps: as for `refine`, on one device.
        held_out: [d_in, d_in], a Gram matrix that refinement does not see, if there is one.

    Returns:
        The mask, and the figures of the layer by the names of their columns; None where there is no held-out text.

    Raises:
        InputError, CertificateError: as `refine` does; InputError when `start` does not keep what `pattern` says.
    """
    began = time.monotonic()
    result = refine(weight, gram, start, pattern, max_swaps)
    check_mask(result.mask, pattern)
    unseen = [None, None]
    if held_out is not None:
        unseen = [_loss(weight, held_out, mask) for mask in (start, result.mask)]
    return result.mask, {
        "d_out": weight.shape[0],
        "d_in": weight.shape[1],
        "kept": int(result.mask.sum()),
        "loss_before": float(result.loss_before.sum()),
        "loss_after": float(result.loss_after.sum()),
        "held_out_before": unseen[0],
        "held_out_after": unseen[1],
        "swaps": int(result.swaps.sum()),
        "max_row_swaps": int(result.swaps.max()),
        "rows": len(weight),
        "rows_certified": int(result.certified.sum()),
        "drift": float(result.drift.max()),
        "seconds": round(time.monotonic() - began, 3),
    }


def _loss(weight: Tensor, gram: Tensor, mask: Tensor) -> float:
    """The error of all rows, of so many at a time as the GPU has memory for."""
    rows = len(weight)
    return sum(sliced(lambda part: float(row_loss(weight[part], gram, mask[part]).sum()), rows, rows, "rows"))


def summary(row: dict[str, float]) -> str:
    """One line of such a row, for a log."""
    return (
        f"error {row['loss_before']:.6g} -> {row['loss_after']:.6g}, {row['swaps']} swaps, "
        f"{row['rows_certified']} of {row['rows']} rows certified, drift {row['drift']:.1g}"
    )


def total(rows: list[dict[str, float]]) -> str:
    """One line of several rows."""
    before, after = (sum(row[column] for row in rows) for column in ("loss_before", "loss_after"))
    return f"error {before:.6g} -> {after:.6g}, {sum(row['swaps'] for row in rows)} swaps"
