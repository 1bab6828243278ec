"""The steps that give a layer new weights: fitted to its mask, or its own with zeros."""

from dataclasses import dataclass

from sparseswaps.base.progress import Report
from sparseswaps.layer.reconstruction import Reconstruction, reconstruct_layer
from sparseswaps.pruning.block import LayerState, Step


@dataclass(frozen=True)
class Reconstruct(Step):
    """Fit a layer's kept weights to its mask, and measure its error again."""

    settings: Reconstruction

    def __call__(self, state: LayerState, progress: Report) -> None:
        state.new_weight, state.figures = reconstruct_layer(
            state.weight, state.inputs, state.mask, self.settings, state.figures, progress
        )


def fit_weights(settings: Reconstruction | None) -> Step:
    """Return the step that gives each layer new weights; without settings, its own with zeros."""
    return SetZeros() if settings is None or settings.method == "none" else Reconstruct(settings)


class SetZeros(Step):
    """Set a layer's pruned weights to zero; the kept weights stay as they are."""

    def __call__(self, state: LayerState, progress: Report) -> None:
        state.new_weight = state.weight.masked_fill(~state.mask, 0)
        progress(state.layer.d_out, 0)
