"""Block reconstruction: train a pruned block to give the dense block's output, while its masks tighten or stay.

The kept weights of a block's layers are trained on pruned inputs against the outputs of the dense block on the dense
model's inputs, by Adam on the mean squared error. Reconstruction of a part of the model that holds a non-linearity, on
calibration text, follows arXiv 2510.14444; the ramp of the sparsity is cubic (Zhu and Gupta, arXiv 1710.01878).
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sparseswaps.base.memory import halve_until_it_fits
from sparseswaps.calibration.grams import Grams
from sparseswaps.calibration.recording import record_inputs
from sparseswaps.calibration.replay import Batch, Replay
from sparseswaps.layer.gram import output_error
from sparseswaps.layer.pattern import Pattern
from sparseswaps.layer.settings import BlockReconstruction, RefinementSettings
from sparseswaps.model.layers import Layer
from sparseswaps.pruning.block import PrunedBlock, Step, prune_block
from sparseswaps.pruning.refine import Refine
from sparseswaps.pruning.warmstart import WarmStart

_BETAS = (0.9, 0.95)  # of Adam
_RAMP = 0.6  # the share of the steps after which the masks have their final sparsity


@dataclass
class BlockTraining:
    """The training of one block of a replay, whose weights are on the device and dense at the start.

    Attributes:
        replay: its batches hold the pruned model's inputs of the block, and the dense model's outputs.
        grams: the Gram matrices of the block's inputs.
        weight_of, pattern_of: as for `prune_block`; the weights are read once, before the training.
        warmstart, refine, fit: the steps that make masks and weights, at every stage of the ramp.
    """

    replay: Replay
    index: int
    grams: Grams
    weight_of: Callable[[Layer], Tensor]
    pattern_of: Callable[[int, str], Pattern]
    warmstart: WarmStart
    refine: Refine
    fit: Step
    settings: BlockReconstruction

    def __post_init__(self) -> None:
        self.block = self.replay.blocks[self.index]
        self.layers = self.grams.readers(self.replay.weights.layers[self.index])
        self.parameters = {layer.parameter: self.block.get_parameter(layer.parameter) for layer in self.layers}
        self.dense = {layer.name: self.weight_of(layer).clone() for layer in self.layers}
        # Adam changes float32 copies; the block computes with the copies in its own dtype.
        self.values = {name: parameter.detach().float().clone() for name, parameter in self.parameters.items()}
        self.trained = {name: torch.zeros_like(value, dtype=torch.bool) for name, value in self.values.items()}
        self.zeros = {name: torch.zeros_like(value, dtype=torch.bool) for name, value in self.values.items()}
        self.adam = torch.optim.Adam(list(self.values.values()), self.settings.learning_rate, _BETAS)

    def run(self) -> PrunedBlock:
        """Train the block, and return its masks, weights and figures. The block holds other weights afterwards."""
        began = time.monotonic()
        stages, groups = self.settings.stages, self._groups()
        steps = self.settings.epochs * len(groups)
        starts = {round(_RAMP * steps * stage / max(1, stages - 1)): stage + 1 for stage in range(stages)}
        squares = {held_out: self._sum(lambda _, target: target, held_out) for held_out in (False, True)}
        generator = torch.Generator().manual_seed(self.index)
        pruned, swaps, epochs, best, least = None, {}, [], None, float("inf")

        def measure(epoch: int, error: float | None) -> None:
            """Note the errors of an epoch; keep its weights if they are the best on held-out text."""
            nonlocal best, least
            held_out = self._error(True) / squares[True] if squares[True] else None
            epochs.append({"block": self.index, "epoch": epoch, "error": error, "held_out": held_out})
            logging.info("block %d, epoch %d: error %s, held out %s", self.index, epoch, error, held_out)
            if pruned is not None and (held_out is None or held_out < least):
                least, best = held_out, {name: value.clone() for name, value in self.values.items()}

        step = 0
        for epoch in range(self.settings.epochs):
            total = 0.0
            for group in torch.randperm(len(groups), generator=generator).tolist():
                if step in starts:
                    share = 1 - (1 - starts[step] / stages) ** 3
                    stage = self._tighten(share, first=step == 0)
                    for row in stage.losses:
                        swaps[row["layer"]] = swaps.get(row["layer"], 0) + row["swaps"]
                    pruned = stage if starts[step] == stages else None
                    if step == 0:
                        measure(0, self._error(False) / squares[False])
                for options in self.adam.param_groups:
                    options["lr"] = self.settings.learning_rate * (1 - step / steps)
                total += self._train(groups[group], squares[False] / self.replay.count()[0])
                step += 1
            measure(epoch + 1, total / len(groups))
        self.values = best
        return self._result(pruned, swaps, epochs, time.monotonic() - began)

    def _groups(self) -> list[tuple[int, int]]:
        """Return the sequences of each step: the first, and the one after the last."""
        groups, first, last = [], 0, 0
        for batch in self.replay.batches:
            if not batch.held_out:
                last += len(batch.ids)
                if last - first >= self.settings.sequences:
                    groups.append((first, last))
                    first = last
        return groups if first == last else [*groups, (first, last)]

    def _tighten(self, share: float, first: bool) -> PrunedBlock:
        """Prune the current weights to a share of the final sparsity."""

        def current(layer: Layer) -> Tensor:
            return layer.view_in(self.values[layer.parameter]).contiguous()

        pruned = prune_block(
            self.index,
            self.layers,
            self.grams,
            self._dense_weight if first else current,
            lambda block, layer: self.pattern_of(block, layer).soften(share),
            [self.warmstart, self.refine, self.fit],
        )
        for layer in self.layers:
            mask = pruned.masks[layer.name]
            layer.view_in(self.values[layer.parameter]).copy_(pruned.weights[layer.name])
            layer.view_in(self.trained[layer.parameter]).copy_(mask)
            layer.view_in(self.zeros[layer.parameter]).copy_(~mask)
        return pruned

    def _dense_weight(self, layer: Layer) -> Tensor:
        return self.dense[layer.name]

    def _put(self) -> None:
        for name, parameter in self.parameters.items():
            parameter.data.copy_(self.values[name])

    def _train(self, group: tuple[int, int], scale: float) -> float:
        """Take one step on a group of sequences; return its error, relative to the mean square of a sequence's output.

        Changes nothing until all batches of the group have gone through.
        """
        first, last = group
        self._put()

        def backward(size: int) -> float:
            if size < max(len(batch.ids) for batch in self._batches(first, last)):
                self.replay.split_batches(size)
            self.block.zero_grad()
            total = 0.0
            for batch in self._batches(first, last):
                error = self._difference(batch).square().sum() / (scale * (last - first))
                error.backward()
                total += error.item()
            return total

        for parameter in self.parameters.values():
            parameter.requires_grad_(True)
        try:
            with torch.enable_grad():
                error, _ = halve_until_it_fits(backward, last - first, "sequences", "the calibration's seqlen")
            for name, value in self.values.items():
                value.grad = self.parameters[name].grad.float().masked_fill_(~self.trained[name], 0)
        finally:
            for parameter in self.parameters.values():
                parameter.requires_grad_(False)
                parameter.grad = None
        self.adam.step()
        for name, value in self.values.items():
            value.masked_fill_(self.zeros[name], 0)  # Adam still moves a weight for a while after its last gradient
        return error

    def _batches(self, first: int, last: int) -> list[Batch]:
        """Return the batches with the calibration sequences from `first` to before `last`."""
        batches, position = [], 0
        for batch in self.replay.batches:
            if not batch.held_out:
                if first <= position < last:
                    batches.append(batch)
                position += len(batch.ids)
        return batches

    def _difference(self, batch: Batch) -> Tensor:
        with record_inputs(self.block):  # which runs experts by plain products, which have gradients
            output = self.replay.run(batch, self.index, batch.hidden())
        return output.float() - batch.dense().to(output.device).float()

    @torch.no_grad()
    def _error(self, held_out: bool) -> float:
        """Return the squared error of the block's output on calibration text or held-out text, summed up."""
        self._put()
        return self._sum(lambda batch, _: self._difference(batch), held_out)

    def _sum(self, of: Callable[[Batch, Tensor], Tensor], held_out: bool) -> float:
        batches = [batch for batch in self.replay.batches if batch.held_out == held_out]
        return sum(of(batch, batch.dense()).float().square().sum().item() for batch in batches)

    def _result(
        self, pruned: PrunedBlock, swaps: dict[str, int], epochs: list[dict[str, Any]], seconds: float
    ) -> PrunedBlock:
        """Return the result, with each layer's errors by its dense weights, before and after."""
        nothing = Refine(RefinementSettings(max_swaps=0), self.refine.counted)
        steps = [self.warmstart, nothing]
        before = prune_block(self.index, self.layers, self.grams, self._dense_weight, self.pattern_of, steps).losses
        size = sum(layer.d_out * layer.d_in for layer in self.layers)
        weights, losses = {}, []
        for layer, start, row in zip(self.layers, before, pruned.losses, strict=True):
            dense = self._dense_weight(layer)
            new = layer.view_in(self.values[layer.parameter]).to(dense.dtype)
            weights[layer.name] = new.contiguous()
            inputs = self.grams.inputs(layer.name, dense.device)
            errors = {"loss_before": start["loss_before"], "held_out_before": start["held_out_before"]}
            errors["loss_after"] = float(output_error(dense, inputs.gram, new).sum())
            if inputs.held_out is not None:
                errors["held_out_after"] = float(output_error(dense, inputs.held_out, new).sum())
            errors |= {"swaps": swaps[layer.name], "seconds": round(seconds * layer.d_out * layer.d_in / size, 3)}
            losses.append(row | errors)
        return replace(pruned, weights=weights, losses=losses, curves=[], epochs=epochs)
