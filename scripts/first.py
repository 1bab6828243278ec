"""What the two scripts that make first masks have in common."""

from collections.abc import Callable

import job  # noqa: F401  it makes the package importable where it is not installed
from torch import Tensor

from sparseswaps.base.progress import Report, ignore_progress
from sparseswaps.layer.criteria import WARMSTARTS
from sparseswaps.layer.masks import check_mask
from sparseswaps.layer.pattern import Pattern
from sparseswaps.model.description import Model
from sparseswaps.model.imported_masks import import_masks
from sparseswaps.model.layers import Layer


def first_masks(settings: dict, model: Model) -> Callable[..., Tensor]:
    """A function from a layer, its weight, Gram matrix and pattern to its first mask, on the weight's device; it may
    be given a `Report` of the rows that are done, too."""
    theirs = import_masks(settings["from"], model) if "from" in settings else None

    def first(
        layer: Layer, weight: Tensor, gram: Tensor, pattern: Pattern, progress: Report = ignore_progress
    ) -> Tensor:
        if theirs is None:
            mask = WARMSTARTS[settings["criterion"]](weight, gram, pattern, progress=progress)
        else:
            mask = theirs(layer).to(weight.device)
            progress(layer.d_out, 0)
        check_mask(mask, pattern, settings["counted"])
        return mask

    return first
