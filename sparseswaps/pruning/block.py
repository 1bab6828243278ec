"""What is done to a block's layers where it is all done at once: a warm start, its refinement, and new weights."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from sparseswaps.base.errors import prefix_errors
from sparseswaps.base.progress import show_progress
from sparseswaps.calibration.grams import Grams
from sparseswaps.layer.gram import check_gram
from sparseswaps.layer.masks import Counted, check_mask
from sparseswaps.layer.pattern import Pattern
from sparseswaps.layer.reconstruction import Reconstruction, reconstruct_layer
from sparseswaps.layer.refinement import RefinementSettings, refine_layer, summary
from sparseswaps.model.layers import Layer
from sparseswaps.pruning.progress import rows_of


@dataclass(frozen=True)
class Recipe:
    """What is done to every layer.

    Attributes:
        first: the first mask of a layer, by the layer, its weight, Gram matrix and pattern.
        pattern_of: the pattern of a layer, by the number of its block and its name.
        refinement: how masks are refined.
        reconstruction: how kept weights are fitted to their mask; None: they stay what they are.
        counted: where the weights are counted that a mask keeps (`check_mask`).
    """

    first: Callable[[Layer, Tensor, Tensor, Pattern], Tensor]
    pattern_of: Callable[[int, str], Pattern]
    refinement: RefinementSettings
    reconstruction: Reconstruction | None
    counted: Counted


@dataclass(frozen=True)
class PrunedBlock:
    """What became of a block's layers.

    Attributes:
        masks: boolean [d_out, d_in] by layer name.
        weights: [d_out, d_in] by layer name, in the dtype that they had, zero where pruned.
        losses: figures, a row a layer.
        curves: error by the number of swaps, in rows that name their layer.
    """

    masks: dict[str, Tensor] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)
    losses: list[dict[str, Any]] = field(default_factory=list)
    curves: list[dict[str, Any]] = field(default_factory=list)


def prune_block(
    block: int, layers: list[Layer], grams: Grams, weight_of: Callable[[Layer], Tensor], recipe: Recipe
) -> PrunedBlock:
    """Prune the calibrated layers of a block; the others stay dense. How far it is, log and terminal show.

    Args:
        block: its number.
        weight_of: a layer's weight, [d_out, d_in], on the device to compute on.

    Raises:
        InputError, CertificateError: as `refine_layer` and `reconstruct_layer` do; the line names block and layer.
    """
    found, layers = PrunedBlock(), grams.readers(layers)
    with show_progress(f"block {block}", "rows", "swaps", rows_of(layers, recipe.refinement.max_swaps)) as reports:
        for layer, report in zip(layers, reports, strict=True):
            name, here = f"block {block}, {layer.name}", {"block": block, "layer": layer.name}
            with prefix_errors(name):
                weight, pattern = weight_of(layer), recipe.pattern_of(block, layer.name)
                inputs = grams.of(layer.name, weight.device)
                if inputs.held_out is not None:
                    check_gram(inputs.held_out)
                start = recipe.first(layer, weight, inputs.gram, pattern)
                refined = refine_layer(weight, inputs, start, pattern, recipe.refinement, report)
                check_mask(refined.mask, pattern, recipe.counted)
                figures, new = refined.figures, weight.masked_fill(~refined.mask, 0)
                if recipe.reconstruction:
                    new, figures = reconstruct_layer(weight, inputs, refined.mask, recipe.reconstruction, figures)
            found.masks[layer.name], found.weights[layer.name] = refined.mask, new
            found.losses.append(here | grams.about(layer.name) | figures)
            found.curves.extend(here | point for point in refined.curve)
            logging.info("%s: %s", name, summary(figures))
    return found
