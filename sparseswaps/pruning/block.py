"""Prune the layers of one decoder block: the same steps for each layer, one layer after the other."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from sparseswaps.base.errors import prefix_errors
from sparseswaps.base.progress import Report, show_progress
from sparseswaps.calibration.grams import Grams
from sparseswaps.layer.dense_target import weights_for_dense_outputs
from sparseswaps.layer.gram import Inputs, check_gram
from sparseswaps.layer.pattern import Pattern
from sparseswaps.model.layers import Layer
from sparseswaps.pruning.progress import rows_part

_SUMMARY = "error {loss_before:.6g} -> {loss_after:.6g}, {swaps} swaps, {rows_certified} of {rows} rows certified"


@dataclass
class LayerState:
    """A layer on its way through the steps; each step reads and changes it. All tensors are on one device."""

    layer: Layer
    weight: Tensor  # [d_out, d_in]
    inputs: Inputs
    pattern: Pattern
    mask: Tensor | None  # boolean [d_out, d_in], True where kept; None before a step makes it
    figures: dict[str, Any]  # the layer's row of the table of losses
    curve: list[dict[str, Any]] = field(default_factory=list)  # the layer's rows of the table of curves
    new_weight: Tensor | None = None  # like `weight`, zero where pruned; None while the weights stay as they are


class Step:
    """One thing that is done to a layer: a warm start, a refinement or a reconstruction."""

    max_swaps: int | None = 0  # most swaps of a row; None: to the optimum

    def __call__(self, state: LayerState, progress: Report) -> None:
        """Change `state`; tell `progress` how many rows are done, and how many swaps were made."""
        raise NotImplementedError


@dataclass(frozen=True)
class PrunedBlock:
    """The results of a block's layers."""

    masks: dict[str, Tensor]  # boolean [d_out, d_in] by layer name
    weights: dict[str, Tensor]  # [d_out, d_in] in their stored dtype, by layer name; empty while the weights stay
    losses: list[dict[str, Any]]  # a row of figures for each layer
    curves: list[dict[str, Any]]  # error by the number of swaps, in rows that name their layer
    epochs: list[dict[str, Any]] = field(default_factory=list)  # error of the block's output by epoch of its training

    def __add__(self, other: "PrunedBlock") -> "PrunedBlock":
        """Return the results of the layers of both."""
        return PrunedBlock(
            self.masks | other.masks,
            self.weights | other.weights,
            self.losses + other.losses,
            self.curves + other.curves,
            self.epochs + other.epochs,
        )


def prune_block(
    block: int,
    layers: Sequence[Layer],
    grams: Grams,
    weight_of: Callable[[Layer], Tensor],
    pattern_of: Callable[[int, str], Pattern],
    steps: Sequence[Step],
    masks: Mapping[str, Tensor] | None = None,
    figures: Mapping[str, dict[str, Any]] | None = None,
    dense_target: float = 0.0,
    share: float = 1.0,
) -> PrunedBlock:
    """Run steps on every calibrated layer of a block; the other layers stay dense.

    Args:
        weight_of: returns a layer's weight, [d_out, d_in], on the device that computes.
        pattern_of: returns a layer's pattern, from the block's number and the layer's name.
        steps: run in order on a layer, before the next layer is read.
        masks: the masks that the steps begin with, by layer name; None where the first step makes the masks.
        figures: the rows of losses that the steps continue, by layer name.
        dense_target: how much of the way weights go to those that give dense outputs (`weights_for_dense_outputs`), if
            `grams` has the products that these need. Losses are then relative to these weights.
        share: the share of each pattern's pruned weights that is pruned (`soften` of a pattern).

    Raises InputError or CertificateError as a step does; the line names block and layer.
    """
    new_masks, new_weights, losses, curves = {}, {}, [], []
    calibrated = grams.readers(layers)
    parts = [rows_part(layer, step.max_swaps) for layer in calibrated for step in steps]
    with show_progress(f"block {block}", "rows", "swaps", parts) as reports:
        progress = iter(reports)
        for layer in calibrated:
            names = {"block": block, "layer": layer.name}
            with prefix_errors(f"block {block}, {layer.name}"):
                weight = weight_of(layer)
                inputs = grams.inputs(layer.name, weight.device)
                if dense_target and inputs.cross is not None:
                    target = weights_for_dense_outputs(weight, inputs.gram, inputs.cross, dense_target)
                    weight = target.to(weight.dtype)
                state = LayerState(
                    layer,
                    weight,
                    inputs,
                    pattern_of(block, layer.name).soften(share),
                    mask=masks[layer.name].to(weight.device) if masks else None,
                    figures=names | grams.figures(layer.name) | (figures[layer.name] if figures else {}),
                )
                for step in steps:
                    step(state, next(progress))
            new_masks[layer.name] = state.mask
            if state.new_weight is not None:
                new_weights[layer.name] = state.new_weight
            losses.append(state.figures)
            curves.extend(names | point for point in state.curve)
            if "loss_after" in state.figures:
                logging.info("block %d, %s: %s", block, layer.name, _SUMMARY.format(**state.figures))
    return PrunedBlock(new_masks, new_weights, losses, curves)


def check_held_out(grams: Grams) -> None:
    """Check the Gram matrices of held-out text, which no step checks; raise InputError that names the input."""
    for name, matrix in grams.held_out.items():
        with prefix_errors(name):
            check_gram(matrix)


def total(rows: Sequence[dict[str, Any]]) -> str:
    """Return the figures of several layers in one line, for a log."""
    before, after = (sum(row[column] for row in rows) for column in ("loss_before", "loss_after"))
    return f"error {before:.6g} -> {after:.6g}, {sum(row['swaps'] for row in rows)} swaps"
