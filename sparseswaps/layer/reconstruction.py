"""The reconstruction of one layer: new values for its kept weights, with the figures that describe the result."""

import time
from typing import Any

from torch import Tensor

from sparseswaps.base.memory import map_slices
from sparseswaps.base.progress import Report, ignore_progress
from sparseswaps.layer.baselines.admm import admm_update
from sparseswaps.layer.baselines.sparsegpt import sparsegpt_update
from sparseswaps.layer.gram import Inputs, output_error
from sparseswaps.layer.least_squares import least_squares
from sparseswaps.layer.settings import Reconstruction


def reconstruct_layer(
    weight: Tensor,
    inputs: Inputs,
    mask: Tensor,
    settings: Reconstruction,
    figures: dict[str, Any],
    progress: Report = ignore_progress,
) -> tuple[Tensor, dict[str, Any]]:
    """Compute new values for a layer's kept weights.

    Args:
        weight: [d_out, d_in], floating; `inputs` and `mask` are on the same device.
        figures: the figures of the mask's refinement.
        progress: receives the number of rows that are done.

    Returns:
        The new weights in the dtype of `weight`, zero where pruned, and the figures with the losses of these weights.
    """
    began = time.monotonic()
    if settings.method == "sparsegpt":
        new = sparsegpt_update(weight, inputs.gram, mask, settings.damping, progress=progress)
    elif settings.method == "admm":
        new = admm_update(weight, inputs.gram, mask, settings.damping, settings.iterations, progress)
    else:
        new = least_squares(weight, inputs.gram, mask, settings.damping, settings.iterations, progress)
    new = new.to(weight.dtype)  # before the losses are measured: a checkpoint has rounded weights
    losses = {"loss_after": _total_error(weight, inputs.gram, new)}
    if inputs.held_out is not None:
        losses["held_out_after"] = _total_error(weight, inputs.held_out, new)
    seconds = figures["seconds"] + time.monotonic() - began
    return new, figures | losses | {"seconds": round(seconds, 3)}


def _total_error(weight: Tensor, gram: Tensor, new: Tensor) -> float:
    """Return `output_error`, summed over all rows."""
    rows = len(weight)
    return sum(map_slices(lambda part: float(output_error(weight[part], gram, new[part]).sum()), rows, rows, "rows"))
