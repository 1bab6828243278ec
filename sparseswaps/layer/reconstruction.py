"""What reconstruction does to one layer: its new weights, and the figures that say what came of them."""

import time
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sparseswaps.base.errors import InputError
from sparseswaps.base.progress import Report, ignore_progress
from sparseswaps.layer.baselines.admm import admm_update
from sparseswaps.layer.baselines.sparsegpt import sparsegpt_update
from sparseswaps.layer.gram import Inputs, output_error
from sparseswaps.layer.least_squares import least_squares
from sparseswaps.layer.refinement import Settings, total_error

_METHODS = ("least_squares", "sparsegpt", "admm")


@dataclass(frozen=True)
class Reconstruction(Settings):
    """How kept weights are fitted to a mask; configuration key `reconstructions`.

    Attributes:
        method: `least_squares`, masked, by preconditioned conjugate gradients (the default); or to compare with, the
            update of `sparsegpt` (arXiv 2301.00774) or `admm` (arXiv 2401.02938).
        damping: what is added to the Gram matrix's diagonal, of its mean (0.01); `admm` scales it to one
            first.
        iterations: of conjugate gradients, or of ADMM (50); `sparsegpt` is one sweep.

    Raises:
        InputError: there is no such method.
    """

    method: str = "least_squares"
    damping: float = 0.01
    iterations: int = 50

    def __post_init__(self) -> None:
        if self.method not in _METHODS:
            raise InputError(f"method: {self.method!r} is not one of {', '.join(_METHODS)}")


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
