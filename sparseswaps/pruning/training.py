"""Block reconstruction: train a pruned block to give the dense block's output, while its masks stay or tighten.

The kept weights of a block's layers are trained on the pruned model's inputs of the block, against the dense model's
outputs of the block: the reconstruction of a part that holds a non-linearity (arXiv 2510.14444). Masks may tighten on
the way, along a cubic ramp of the sparsity (Zhu and Gupta, arXiv 1710.01878).
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from sparseswaps.base.errors import InputError
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

_BETAS = (0.9, 0.95)  # of Adam
_RAMP = 0.6  # the share of the steps after which masks have their final sparsity


def sparsity_share(level: int, levels: int) -> float:
    """Return the share of the final sparsity at a level of the ramp, from 1 to `levels`."""
    return 1 - (1 - level / levels) ** 3


class BlockTraining:
    """The training of one block of a replay, whose weights are on the device. The block itself stays as it is."""

    def __init__(
        self,
        replay: Replay,
        index: int,
        grams: Grams,
        dense: dict[str, Tensor],
        pattern_of: Callable[[int, str], Pattern],
        steps: Sequence[Step],
        settings: BlockReconstruction,
    ) -> None:
        """Copy the block's weights.

        Args:
            replay: its batches hold the pruned model's inputs of the block, and the dense model's outputs.
            grams: the Gram matrices of the block's inputs.
            dense: the dense weights, [d_out, d_in] by layer name.
            pattern_of: as for `prune_block`.
            steps: warm start, refinement and reconstruction of a layer, for the later levels of the ramp.
        """
        self.replay, self.index, self.grams, self.pattern_of = replay, index, grams, pattern_of
        self.dense, self.steps, self.settings = dense, steps, settings
        self.block, self.layers = replay.blocks[index], grams.readers(replay.weights.layers[index])
        # Adam changes these float32 values; the block computes with `weights`, the same in its own dtype.
        self.weights = {layer.parameter: self.block.get_parameter(layer.parameter) for layer in self.layers}
        self.values = {name: weight.detach().float().clone() for name, weight in self.weights.items()}
        self.kept = {name: torch.zeros_like(value, dtype=torch.bool) for name, value in self.values.items()}
        self.pruned = {name: torch.zeros_like(value, dtype=torch.bool) for name, value in self.values.items()}
        # A step of Adam is as large as the learning rate, so the rate is relative to the size of the dense weights.
        rates = {name: settings.learning_rate * self._size(name) for name in self.values}
        groups = [{"params": [value], "lr": rates[name]} for name, value in self.values.items()]
        self.adam = torch.optim.Adam(groups, betas=_BETAS)
        self.level, self.swaps = 0, dict.fromkeys(dense, 0)  # the level of the ramp; swaps so far by layer
        self.epochs: list[dict[str, Any]] = []
        self.best: dict[str, Tensor] | None = None  # the values of the best epoch with the final masks
        self.least = float("inf")  # the error of these values on held-out text
        # The squares of the dense outputs on calibration text (False) and on held-out text (True).
        self.scale = {held_out: self._squares(lambda batch: batch.dense(), held_out) for held_out in (False, True)}

    def _size(self, parameter: str) -> float:
        """Return the root mean square of the dense weights of a parameter's layers."""
        weights = [self.dense[layer.name].flatten() for layer in self.layers if layer.parameter == parameter]
        return float(torch.cat(weights).float().square().mean().sqrt())

    def run(self, result: PrunedBlock) -> PrunedBlock:
        """Train the block from the masks and weights of the first level; return masks, weights and figures.

        Raises InputError when no epoch has a finite error.
        """
        began = time.monotonic() - sum(row["seconds"] for row in result.losses)
        groups, levels = self._groups(), self.settings.levels
        steps = self.settings.epochs * len(groups)
        starts = {int(_RAMP * steps * (level - 1) / max(1, levels - 1)): level for level in range(1, levels + 1)}
        schedule = torch.optim.lr_scheduler.LambdaLR(self.adam, lambda step: 1 - step / steps)
        order = torch.Generator().manual_seed(self.index)
        step = 0
        for epoch in range(1, self.settings.epochs + 1):
            errors = []
            for group in torch.randperm(len(groups), generator=order).tolist():
                if step in starts:
                    self.level = starts[step]
                    result = result if self.level == 1 else self._tighten()
                    self._take_over(result)
                if step == 0:
                    self._end_epoch(0, self._squares(self._difference, False))
                errors.append(self._take_step(*groups[group]))
                schedule.step()
                step += 1
            self._end_epoch(epoch, sum(errors))
        if self.best is None:
            raise InputError(f"block {self.index}: the training diverged; lower the block's learning_rate")
        return self._result(result, time.monotonic() - began)

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

    def _tighten(self) -> PrunedBlock:
        """Prune the current weights to the sparsity of the level."""

        def weight_of(layer: Layer) -> Tensor:
            return layer.view_in(self.values[layer.parameter]).contiguous()

        share = sparsity_share(self.level, self.settings.levels)
        return prune_block(self.index, self.layers, self.grams, weight_of, self.pattern_of, self.steps, share=share)

    def _take_over(self, result: PrunedBlock) -> None:
        """Go on from the masks and weights of a level."""
        for layer in self.layers:
            mask = result.masks[layer.name]
            layer.view_in(self.values[layer.parameter]).copy_(result.weights[layer.name])
            layer.view_in(self.kept[layer.parameter]).copy_(mask)
            layer.view_in(self.pruned[layer.parameter]).copy_(~mask)
        for row in result.losses:
            self.swaps[row["layer"]] += row["swaps"]
        self._round_values()

    def _round_values(self) -> None:
        """Give the block's forward pass the current values, in the block's dtypes."""
        self.weights = {
            name: value.detach().to(self.weights[name].dtype).requires_grad_() for name, value in self.values.items()
        }

    def _take_step(self, first: int, last: int) -> float:
        """Take one step on the calibration sequences from `first` to before `last`; return their squared error."""

        def backward(size: int) -> float:
            if size < max(len(batch.ids) for batch in self._batches(first, last)):
                self.replay.split_batches(size)
            for weight in self.weights.values():
                weight.grad = torch.zeros_like(weight)  # not None, for a weight that no sequence of the step reaches
            total = 0.0
            for batch in self._batches(first, last):
                error = self._difference(batch).square().sum()
                error.backward(inputs=list(self.weights.values()))  # Adam does not depend on the gradients' scale
                total += error.item()
            return total

        with torch.enable_grad():
            error, _ = halve_until_it_fits(backward, last - first, "sequences", "the calibration's seqlen")
        for name, value in self.values.items():
            value.grad = self.weights[name].grad.float().masked_fill_(~self.kept[name], 0)
        self.adam.step()
        for name, value in self.values.items():
            value.masked_fill_(self.pruned[name], 0)  # Adam moves a weight for a while after its last gradient
        self._round_values()
        self.replay.sequences_run += last - first
        self.replay.progress(self.index, self.replay.sequences_run)
        return error

    def _batches(self, first: int, last: int) -> list[Batch]:
        batches, position = [], 0
        for batch in self.replay.batches:
            if not batch.held_out:
                if first <= position < last:
                    batches.append(batch)
                position += len(batch.ids)
        return batches

    def _difference(self, batch: Batch) -> Tensor:
        """Return the block's output minus the dense block's, float32 [batch, seqlen, width]."""

        def block(*args: Any, **kwargs: Any) -> Any:
            return functional_call(self.block, self.weights, args, kwargs)

        with record_inputs(self.block):  # runs experts by plain products, which have gradients
            output = self.replay.run(block, batch, self.index, batch.hidden())
        return output.float() - batch.dense().to(output.device).float()

    @torch.no_grad()
    def _squares(self, states: Callable[[Batch], Tensor], held_out: bool) -> float:
        batches = [batch for batch in self.replay.batches if batch.held_out == held_out]
        return sum(states(batch).float().square().sum().item() for batch in batches)

    def _end_epoch(self, epoch: int, squares: float) -> None:
        """Note the relative errors of an epoch. Keep its values if the masks are final and no error was smaller.

        `squares` is the squared error on calibration text.
        """
        error = squares / self.scale[False]
        held_out = self._squares(self._difference, True) / self.scale[True] if self.scale[True] else None
        on_held_out = "none" if held_out is None else f"{held_out:.4g}"
        logging.info("block %d, epoch %d: relative error %.4g, held out %s", self.index, epoch, error, on_held_out)
        self.epochs.append(
            {"block": self.index, "epoch": epoch, "level": self.level, "error": error, "held_out": held_out}
        )
        better = error < float("inf") if held_out is None else held_out < self.least
        if self.level == self.settings.levels and better:
            self.best = {name: value.clone() for name, value in self.values.items()}
            self.least = held_out

    def _result(self, result: PrunedBlock, seconds: float) -> PrunedBlock:
        """Return the best epoch. The errors of a layer are of its dense weights: before, with the warm start's mask."""
        warmstart, refine, _ = self.steps
        steps = [warmstart, Refine(RefinementSettings(max_swaps=0), refine.counted)]
        starts = prune_block(
            self.index, self.layers, self.grams, lambda layer: self.dense[layer.name], self.pattern_of, steps
        ).losses
        size = sum(layer.d_out * layer.d_in for layer in self.layers)
        weights, losses = {}, []
        for layer, start, row in zip(self.layers, starts, result.losses, strict=True):
            weight = self.dense[layer.name]
            inputs = self.grams.inputs(layer.name, weight.device)
            new = layer.view_in(self.best[layer.parameter]).to(weight.dtype).contiguous()
            weights[layer.name] = new
            figures = {name: start[name] for name in ("loss_before", "held_out_before")}
            figures["loss_after"] = float(output_error(weight, inputs.gram, new).sum())
            if inputs.held_out is not None:
                figures["held_out_after"] = float(output_error(weight, inputs.held_out, new).sum())
            share = layer.d_out * layer.d_in / size
            figures |= {"swaps": self.swaps[layer.name], "seconds": round(seconds * share, 3)}
            losses.append(row | figures)
        return replace(result, weights=weights, losses=losses, curves=[], epochs=self.epochs)
