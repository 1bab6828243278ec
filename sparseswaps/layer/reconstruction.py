"""What reconstruction does to one layer: its new weights, and the figures that say what came of them."""

import time
from typing import Any

from torch import Tensor

from sparseswaps.base.progress import Report, ignore_progress
from sparseswaps.layer.baselines.admm import admm_update
from sparseswaps.layer.baselines.sparsegpt import sparsegpt_update
from sparseswaps.layer.gram import Inputs, output_error
from sparseswaps.layer.least_squares import least_squares
from sparseswaps.layer.refinement import total_error
from sparseswaps.layer.settings import Reconstruction


def reconstruct_layer(
    weight: Tensor,
    inputs: Inputs,
    mask: Tensor,
    how: Reconstruction,
    figures: dict[str, Any],
    progress: Report = ignore_progress,
) -> tuple[Tensor, dict[str, Any]]:
    """New values for a layer's kept weights.

    Args:
        weight: [d_out, d_in], floating; `inputs` and `mask` are on its device.
        figures: those of the mask's refinement.
        progress: is told how many rows are done.

    Returns:
        The weights in the dtype they had, zero where pruned, and the figures with the error that they leave.
    """
    began = time.monotonic()
    if how.method == "sparsegpt":
        new = sparsegpt_update(weight, inputs.gram, mask, how.damping, progress=progress)
    elif how.method == "admm":
        new = admm_update(weight, inputs.gram, mask, how.damping, how.iterations, progress)
    else:
        new = least_squares(weight, inputs.gram, mask, how.damping, how.iterations, progress)
    new = new.to(weight.dtype)  # before it is measured: rounding is part of what a checkpoint gets
    after = {"loss_after": total_error(output_error, weight, inputs.gram, new)}
    if inputs.held_out is not None:
        after["held_out_after"] = total_error(output_error, weight, inputs.held_out, new)
    seconds = figures["seconds"] + time.monotonic() - began
    return new, figures | after | {"seconds": round(seconds, 3)}
