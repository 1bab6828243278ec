"""Prune the blocks of a model one after the other, each on the outputs of the pruned blocks before it."""

from collections.abc import Callable

from torch import Tensor

from sparseswaps.calibration.capture import capture_block
from sparseswaps.calibration.grams import Grams
from sparseswaps.calibration.replay import Replay
from sparseswaps.layer.pattern import Pattern
from sparseswaps.layer.settings import Reconstruction
from sparseswaps.model.layers import Layer
from sparseswaps.pruning.block import PrunedBlock, check_held_out, prune_block
from sparseswaps.pruning.reconstruct import fit_weights
from sparseswaps.pruning.refine import Refine
from sparseswaps.pruning.training import BlockTraining
from sparseswaps.pruning.warmstart import WarmStart


def prune_next_block(
    replay: Replay,
    index: int,
    weight_of: Callable[[Layer], Tensor],
    pattern_of: Callable[[int, str], Pattern],
    warmstart: WarmStart,
    refine: Refine,
    reconstruction: Reconstruction | None,
) -> PrunedBlock:
    """Prune the next block of a replay; its batches then hold the outputs of the pruned block.

    `weight_of` and `pattern_of` are as for `prune_block`, which also says what is raised. For a reconstruction that
    trains blocks, the replay must keep dense hidden states.
    """
    results = []

    def prune(_index: int, grams: Grams) -> dict[str, Tensor]:
        check_held_out(grams)
        steps = [warmstart, refine, fit_weights(reconstruction)]
        if reconstruction is None or reconstruction.block is None:
            layers = replay.weights.layers[index]
            results.append(prune_block(index, layers, grams, weight_of, pattern_of, steps))
        else:
            replay.advance_dense(index)
            training = BlockTraining(replay, index, grams, weight_of, pattern_of, *steps, reconstruction.block)
            results.append(training.run())
        return results[0].weights

    capture_block(replay, index, prune)
    return results[0]
