"""The relative error of every block's output in a pruned model, on two paths.

The dense path gives each pruned block the hidden states of the dense model: the error is the block's own. The pruned
path gives it the hidden states that the pruned blocks before it made: the error has accumulated.
"""

import math

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sparseswaps.base.errors import InputError
from sparseswaps.base.progress import Report, ignore_progress
from sparseswaps.calibration.activations import Keep, keep_in_memory
from sparseswaps.calibration.replay import Batch, Replay
from sparseswaps.model.blocks import find_blocks
from sparseswaps.model.mask_file import Masks
from sparseswaps.model.masked import prune_block
from sparseswaps.model.weights import Weights, WeightsInMemory

PATHS = ("dense_path", "pruned_path")


def drift(
    dense: PreTrainedModel | Weights,
    pruned: PreTrainedModel | Weights,
    ids: Tensor,
    batch_size: int,
    masks: Masks | None = None,
    keep: Keep = keep_in_memory,
    progress: Report = ignore_progress,
) -> list[dict[str, float]]:
    """Measure the relative error of every block's output on the dense path and on the pruned path.

    The device holds two blocks at a time, a dense one and a pruned one.

    Args:
        dense: the dense model.
        pruned: another copy of the model, which is pruned already or by `masks`. Embeddings are the same.
        ids: token ids, int64 [sequences, seqlen].
        batch_size: sequences per forward pass, halved whenever the GPU runs out of memory.
        masks: masks by tensor name, which are applied to each block (a model in memory stays pruned).
        keep: stores the hidden states of batches that wait for the next block.
        progress: told the number of blocks done, and of sequences run through a block.

    Returns a row for each block: `block`, and for each of PATHS the sum of (output - dense output)^2, divided by the
    sum of (dense output)^2. Both are over all tokens, in float64.

    Raises InputError when an error is not finite, the blocks cannot be run one by one, the files lack a parameter, or a
    single sequence is too much for the GPU's memory.
    """
    dense, pruned = (WeightsInMemory(one) if isinstance(one, PreTrainedModel) else one for one in (dense, pruned))
    for weights in (dense, pruned):
        weights.model.eval()
    replay = Replay(pruned, keep, progress)
    replay.start(ids, ids[:0], batch_size, keep_dense=True)
    rows: list[dict[str, float]] = []
    for index, dense_block in enumerate(find_blocks(dense.model)[1]):
        with dense.block(index), pruned.block(index):
            if masks is not None:
                prune_block(replay.blocks[index], pruned.layers[index], masks)
            errors = _advance_paths(replay, index, dense_block)
        for path, error in errors.items():
            if not math.isfinite(error):
                raise InputError(
                    f"{replay.prefix}.{index}: the relative error of its output is {error} ({path}); "
                    "the checkpoint's weights are broken, or its dtype overflows"
                )
        rows.append({"block": index} | errors)
        progress(len(rows), replay.sequences_run)
    return rows


def _advance_paths(replay: Replay, index: int, dense: nn.Module) -> dict[str, float]:
    """Run a pruned block on both paths and its `dense` block on the dense path; return the relative errors by path.

    The outputs take the place of the inputs: a batch has the pruned path in `hidden`, and the dense path in `dense`.
    """
    sums = torch.zeros(len(PATHS) + 1, dtype=torch.float64)  # of squares: errors by path, dense outputs

    def run(batch: Batch) -> None:
        target = replay.run(dense, batch, index, batch.dense())  # [batch, seqlen, width]
        outputs = [replay.run(replay.blocks[index], batch, index, load()) for load in (batch.dense, batch.hidden)]
        exact = target.double()
        squares = [(output.double() - exact).square().sum() for output in outputs]
        batch.dense, batch.hidden = replay.keep(target), replay.keep(outputs[-1])
        sums.add_(torch.stack([*squares, exact.square().sum()]).cpu())

    replay.run_batches(index, run)
    return dict(zip(PATHS, (sums[:-1] / sums[-1]).tolist(), strict=True))
