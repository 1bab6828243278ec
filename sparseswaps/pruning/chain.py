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


def start_chain(
    replay: Replay, samples: Tensor, held_out: Tensor, batch_size: int, reconstruction: Reconstruction | None
) -> None:
    """Give a replay its first batches, as the reconstruction needs them; the arguments are those of `Replay.start`.

    Where blocks are trained, a batch has no more sequences than a step, and the dense hidden states are kept.
    """
    block = reconstruction.block if reconstruction else None
    size = min(batch_size, block.sequences) if block else batch_size
    replay.start(samples, held_out, size, keep_dense=block is not None)


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

    `weight_of` and `pattern_of` are as for `prune_block`, which also says what is raised.
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
