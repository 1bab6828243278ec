"""The step that refines a layer's mask by exact 1-swaps, or by a method to compare with."""

from dataclasses import dataclass

from sparseswaps.base.progress import Report
from sparseswaps.layer.masks import Counted, check_mask
from sparseswaps.layer.refinement import RefinementSettings, refine_layer
from sparseswaps.pruning.block import LayerState, Step


@dataclass(frozen=True)
class Refine(Step):
    """Refine a layer's mask. `counted` says where the kept weights are counted (`check_mask`)."""

    settings: RefinementSettings
    counted: Counted

    @property
    def max_swaps(self) -> int | None:
        return self.settings.max_swaps

    def __call__(self, state: LayerState, progress: Report) -> None:
        refined = refine_layer(state.weight, state.inputs, state.mask, state.pattern, self.settings, progress)
        check_mask(refined.mask, state.pattern, self.counted)
        state.mask, state.curve = refined.mask, refined.curve
        state.figures |= refined.figures
