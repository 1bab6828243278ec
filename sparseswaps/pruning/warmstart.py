"""The step that makes a layer's first mask."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from sparseswaps.base.progress import Part, Report
from sparseswaps.layer.criteria import WARMSTARTS
from sparseswaps.layer.masks import Counted, check_mask
from sparseswaps.model.layers import Layer
from sparseswaps.pruning.block import LayerState
from sparseswaps.pruning.progress import rows_part


@dataclass(frozen=True)
class WarmStart:
    """Make a layer's first mask by a criterion, or take the mask from a file.

    Attributes:
        criterion: a name in `WARMSTARTS`; ignored where masks are imported.
        imported: returns the imported mask of a layer, boolean [d_out, d_in]; None where the criterion makes the masks.
        counted: where the kept weights are counted (`check_mask`).
    """

    criterion: str | None
    imported: Callable[[Layer], Tensor] | None
    counted: Counted

    def part(self, layer: Layer) -> Part:
        return rows_part(layer)

    def __call__(self, state: LayerState, progress: Report) -> None:
        if self.imported is None:
            make = WARMSTARTS[self.criterion]
            state.mask = make(state.weight, state.inputs.gram, state.pattern, progress=progress)
        else:
            state.mask = self.imported(state.layer).to(state.weight.device)
            progress(state.layer.d_out, 0)
        check_mask(state.mask, state.pattern, self.counted)
