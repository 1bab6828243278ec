"""Prune the blocks of a model one after the other, each on the outputs of the pruned blocks before it."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from sparseswaps.calibration.capture import sum_grams
from sparseswaps.calibration.grams import Grams
from sparseswaps.calibration.replay import Replay
from sparseswaps.calibration.settings import PrunedInputs
from sparseswaps.layer.pattern import Pattern
from sparseswaps.layer.settings import Reconstruction
from sparseswaps.model.blocks import put_weights
from sparseswaps.model.layers import Layer
from sparseswaps.pruning.block import PrunedBlock, Step, check_held_out, prune_block
from sparseswaps.pruning.reconstruct import fit_weights
from sparseswaps.pruning.refine import Refine
from sparseswaps.pruning.training import BlockTraining, sparsity_share
from sparseswaps.pruning.warmstart import WarmStart


@dataclass(frozen=True)
class Chain:
    """How the blocks of a chain are pruned. `weight_of` and `pattern_of` are as for `prune_block`."""

    weight_of: Callable[[int, Layer], Tensor]  # from a block's number and a layer of the block
    pattern_of: Callable[[int, str], Pattern]
    warmstart: WarmStart
    refine: Refine
    reconstruction: Reconstruction | None
    inputs: PrunedInputs

    def start(self, replay: Replay, samples: Tensor, held_out: Tensor, batch_size: int) -> None:
        """Give a replay its first batches; the arguments are those of `Replay.start`.

        Where blocks are trained, a batch has no more sequences than a step.
        """
        training = self.reconstruction.block if self.reconstruction else None
        size = min(batch_size, training.sequences) if training else batch_size
        replay.start(samples, held_out, size, keep_dense=training is not None or self.inputs.dense_target > 0)

    def prune_next(self, replay: Replay, index: int) -> PrunedBlock:
        """Prune the next block of a replay; its batches then hold the outputs of the pruned block.

        Raises as `prune_block` and `BlockTraining` do.
        """
        block, layers = replay.blocks[index], replay.weights.layers[index]
        training = self.reconstruction.block if self.reconstruction else None
        with replay.weights.block(index):
            dense = copy.deepcopy(block) if self.inputs.dense_target else None
            grams = sum_grams(replay, index, dense=dense)
            check_held_out(grams)
            if training and dense is None:
                replay.advance_dense(index, block)
            kept = {layer.name: self.weight_of(index, layer).clone() for layer in layers} if training else {}
            share = sparsity_share(1, training.levels) if training else 1.0
            pruned = self._prune_layers(replay, index, grams, dense, share)
            if dense is not None:
                replay.advance_dense(index, dense)
            if training:
                trainer = BlockTraining(replay, index, grams, kept, self.pattern_of, self.steps, training)
                pruned = trainer.run(pruned)
            put_weights(block, layers, pruned.weights)
            replay.run_block(index, advance=True)
        return pruned

    @property
    def steps(self) -> list[Step]:
        """The steps that every layer takes."""
        return [self.warmstart, self.refine, fit_weights(self.reconstruction)]

    def _prune_layers(
        self, replay: Replay, index: int, grams: Grams, dense: nn.Module | None, share: float
    ) -> PrunedBlock:
        """Prune the layers of a block to a share of their sparsity, all together or in the order of the settings."""
        weight_of, target = partial(self.weight_of, index), self.inputs.dense_target
        pruned, before = PrunedBlock({}, {}, [], []), []
        for layers in self._groups(replay.weights.layers[index], grams):
            if before:  # the pruned layers change the inputs of these layers
                put_weights(replay.blocks[index], before, pruned.weights)
                grams = sum_grams(replay, index, layers, dense)
                check_held_out(grams)
            pruned += prune_block(
                index, layers, grams, weight_of, self.pattern_of, self.steps, dense_target=target, share=share
            )
            before = layers
        return pruned

    def _groups(self, layers: list[Layer], grams: Grams) -> list[list[Layer]]:
        """Return the layers that are pruned together, group by group, in the order in which the block calls them."""
        if self.inputs.order == "together":
            return [layers]
        groups: dict[str, list[Layer]] = {}
        for layer in sorted(grams.readers(layers), key=lambda layer: grams.order.index(layer.name)):
            # All experts are pruned together: each reads tokens of its own.
            source = grams.reads[layer.name] if layer.expert is None else layer.parameter
            groups.setdefault(source, []).append(layer)
        return list(groups.values())
