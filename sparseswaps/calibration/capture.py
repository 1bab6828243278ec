"""Gram matrices of a model's calibration inputs, block by block."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from sparseswaps.base.progress import Report, ignore_progress
from sparseswaps.calibration.activations import Keep, keep_in_memory
from sparseswaps.calibration.grams import Grams, GramSum
from sparseswaps.calibration.replay import Replay
from sparseswaps.model.blocks import expert_modules, put_weights
from sparseswaps.model.weights import Weights

# From a block's number and its Gram matrices to its new weights, [d_out, d_in] by layer name.
Prune = Callable[[int, Grams], dict[str, Tensor]]


def capture(
    weights: Weights,
    samples: Tensor,
    held_out: Tensor,
    batch_size: int,
    prune: Prune | None = None,
    keep: Keep = keep_in_memory,
    progress: Report = ignore_progress,
) -> Iterator[Grams]:
    """Capture the Gram matrices of every prunable layer's inputs: yield one `Grams` per block, in order.

    The matrices are float32, on the model's device. `samples` and `held_out` are int64 [any number, seqlen] token ids;
    `batch_size` is sequences per forward pass. Without `prune`, the inputs are the dense model's. With `prune`,
    `capture` puts the weights that `prune` returns into each block before the block gives the next block's inputs.

    Memory holds the weights and Gram matrices of one block and the hidden states of one batch at a time. `keep` stores
    the hidden states of the other batches. If the device's memory runs out, batches are halved. `progress` is told the
    number of blocks done, and of sequences run through a block: once each, and once more for experts and for `prune`.

    A layer that the model never calls, but takes the weight of (Mamba's), is named in the log and has no Gram matrix.
    An expert that sees fewer tokens than its input has features is given all tokens of its layer (`Grams.unrouted`).

    Raises InputError when an activation is NaN or infinite, or a single sequence is too much for the device's memory.
    """
    replay = Replay(weights, keep, progress)
    replay.start(samples, held_out, batch_size)
    for index in range(len(weights.layers)):
        # No name here holds the yielded matrices while the next ones are summed, nor may a decorated generator.
        yield capture_block(replay, index, prune)


@torch.no_grad()
def capture_block(replay: Replay, index: int, prune: Prune | None = None) -> Grams:
    """Capture one block; afterwards the batches of `replay` hold the block's outputs, of the pruned block if any."""
    block, layers = replay.blocks[index], replay.weights.layers[index]
    sequences, tokens = replay.count()
    gram_sum = GramSum(f"{replay.prefix}.{index}", layers, sequences)
    with replay.weights.block(index):
        # A block with experts may have to see its inputs twice, so the first run keeps them.
        advanced = prune is None and not expert_modules(block)
        replay.run_block(index, gram_sum.add, advance=advanced)
        if starved := gram_sum.restart_starved_experts():
            advanced = prune is None
            replay.run_block(index, gram_sum.add, unrouted=starved, advance=advanced)
        grams = gram_sum.finish(tokens)
        if prune is not None:
            put_weights(block, layers, prune(index, grams))
        if not advanced:
            replay.run_block(index, advance=True)
    replay.progress(index + 1, replay.sequences_run)
    return grams
