"""The steps that give a layer new weights: fitted to its mask, or its own with zeros."""

from dataclasses import dataclass

from sparseswaps.base.progress import Part, Report
from sparseswaps.layer.reconstruction import Reconstruction, reconstruct_layer
from sparseswaps.model.layers import Layer
from sparseswaps.pruning.block import LayerState
from sparseswaps.pruning.progress import rows_part


@dataclass(frozen=True)
class Reconstruct:
    """Fit a layer's kept weights to its mask, and measure its error again."""

    settings: Reconstruction

    def part(self, layer: Layer) -> Part:
        return rows_part(layer)

    def __call__(self, state: LayerState, progress: Report) -> None:
        state.new_weight, state.figures = reconstruct_layer(
            state.weight, state.inputs, state.mask, self.settings, state.figures, progress
        )


@dataclass(frozen=True)
class SetZeros:
    """Set a layer's pruned weights to zero; the kept weights stay as they are."""

    def part(self, layer: Layer) -> Part:
        return rows_part(layer)

    def __call__(self, state: LayerState, progress: Report) -> None:
        state.new_weight = state.weight.masked_fill(~state.mask, 0)
        progress(state.layer.d_out, 0)
