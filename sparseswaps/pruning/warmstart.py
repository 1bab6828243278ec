"""The step that makes a layer's first mask."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from sparseswaps.base.progress import Report
from sparseswaps.layer.criteria import WARMSTARTS
from sparseswaps.layer.masks import Counted, check_mask
from sparseswaps.model.layers import Layer
from sparseswaps.pruning.block import LayerState, Step


@dataclass(frozen=True)
class WarmStart(Step):
    """Make a layer's first mask by a criterion, or take the mask from a file."""

    criterion: str | None  # a name in `WARMSTARTS`; ignored where masks are imported
    imported: Callable[[Layer], Tensor] | None  # returns a layer's imported mask, boolean [d_out, d_in]
    counted: Counted  # where the kept weights are counted (`check_mask`)

    def __call__(self, state: LayerState, progress: Report) -> None:
        if self.imported is None:
            make = WARMSTARTS[self.criterion]
            state.mask = make(state.weight, state.inputs.gram, state.pattern, progress=progress)
        else:
            state.mask = self.imported(state.layer).to(state.weight.device)
            progress(state.layer.d_out, 0)
        check_mask(state.mask, state.pattern, self.counted)
