"""Gram matrices of a model's calibration inputs, block by block."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from sparseswaps.base.progress import Report, ignore_progress
from sparseswaps.calibration.activations import Keep, keep_in_memory
from sparseswaps.calibration.grams import Grams, GramSum
from sparseswaps.calibration.replay import Replay
from sparseswaps.model.blocks import expert_modules
from sparseswaps.model.layers import Layer
from sparseswaps.model.weights import Weights


def capture(
    weights: Weights,
    samples: Tensor,
    held_out: Tensor,
    batch_size: int,
    keep: Keep = keep_in_memory,
    progress: Report = ignore_progress,
) -> Iterator[Grams]:
    """Capture the Gram matrices of the dense inputs of every prunable layer: yield one `Grams` per block, in order.

    The matrices are float32, on the model's device. `samples` and `held_out` are int64 [any number, seqlen] token ids;
    `batch_size` is sequences per forward pass.

    Memory holds the weights and Gram matrices of one block and the hidden states of one batch at a time. `keep` stores
    the hidden states of the other batches. If the device's memory runs out, batches are halved. `progress` is told the
    number of blocks done, and of sequences run through a block: once each, and once more for experts.

    A layer that the model never calls, but takes the weight of (Mamba's), is named in the log and has no Gram matrix.
    An expert that sees fewer tokens than its input has features is given all tokens of its layer (`Grams.unrouted`).

    Raises InputError when an activation is NaN or infinite, or a single sequence is too much for the device's memory.
    """
    replay = Replay(weights, keep, progress)
    replay.start(samples, held_out, batch_size)
    for index in range(len(weights.layers)):
        # No name here holds the yielded matrices while the next ones are summed, nor may a decorated generator.
        yield _capture_block(replay, index)


def _capture_block(replay: Replay, index: int) -> Grams:
    with replay.weights.block(index):
        grams = sum_grams(replay, index, advance=True)
    replay.progress(index + 1, replay.sequences_run)
    return grams


def sum_grams(
    replay: Replay,
    index: int,
    layers: list[Layer] | None = None,
    dense: nn.Module | None = None,
    advance: bool = False,
) -> Grams:
    """Sum up the Gram matrices of a block's inputs; the block's weights are on the device.

    `layers` are the layers whose inputs are summed, all by default. `dense` is the block with its dense weights, for
    the products of the dense model's inputs with these inputs (`Grams.cross`). With `advance`, the batches of `replay`
    hold the block's outputs afterwards.
    """
    samples = [batch.ids for batch in replay.batches if not batch.held_out]
    layers = replay.weights.layers[index] if layers is None else layers
    gram_sum = GramSum(f"{replay.prefix}.{index}", layers, sequences=sum(map(len, samples)))
    # A block with experts may have to see its inputs twice, so the first run keeps them.
    advances = advance and not expert_modules(replay.blocks[index])
    replay.run_block(index, gram_sum.add, advance=advances, dense=dense)
    if starved := gram_sum.restart_starved_experts():
        replay.run_block(index, gram_sum.add, unrouted=starved, advance=advance)
    elif advance and not advances:
        replay.run_block(index, advance=True)
    return gram_sum.finish(tokens=sum(map(torch.numel, samples)))
