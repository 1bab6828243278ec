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
    """Compute new values for the kept weights of a layer [d_out, d_in], all arguments on one device.

    Returns the new weights in the dtype of `weight`, zero where pruned, and the `figures` of the mask's refinement with
    the losses of these weights.
    """
    began = time.monotonic()
    if settings.method == "sparsegpt":
        new = sparsegpt_update(weight, inputs.gram, mask, settings.damping, progress=progress)
    else:
        update = admm_update if settings.method == "admm" else least_squares
        new = update(weight, inputs.gram, mask, settings.damping, settings.iterations, progress)
    new = new.to(weight.dtype)  # before the losses are measured: a checkpoint has rounded weights
    losses = {"loss_after": _total_error(weight, inputs.gram, new)}
    if inputs.held_out is not None:
        losses["held_out_after"] = _total_error(weight, inputs.held_out, new)
    seconds = figures["seconds"] + time.monotonic() - began
    return new, figures | losses | {"seconds": round(seconds, 3)}


def _total_error(weight: Tensor, gram: Tensor, new: Tensor) -> float:
    rows = len(weight)
    return sum(map_slices(lambda part: float(output_error(weight[part], gram, new[part]).sum()), rows, rows, "rows"))
