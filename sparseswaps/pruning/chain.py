"""Prune a whole model block after block, each block on the inputs that the pruned blocks before it give."""

from collections.abc import Callable, Iterator

from torch import Tensor

from sparseswaps.base.progress import Report, ignore_progress
from sparseswaps.calibration.activations import Keep, keep_in_memory
from sparseswaps.calibration.capture import capture
from sparseswaps.calibration.grams import Grams
from sparseswaps.model.weights import Weights
from sparseswaps.pruning.block import PrunedBlock


def prune_chain(
    weights: Weights,
    calibration: Tensor,
    held_out: Tensor,
    batch_size: int,
    prune: Callable[[int, Grams], PrunedBlock],
    keep: Keep = keep_in_memory,
    progress: Report = ignore_progress,
) -> Iterator[PrunedBlock]:
    """Prune every block of a dense model on pruned inputs, as in the paper (arXiv 2512.10922), and yield the results.

    `prune` prunes a block, from its number and Gram matrices; its result must have new weights for all pruned layers.
    Each block gets them before it gives the inputs of the next block. The other arguments are as for `capture`, the
    errors as for `capture` and `prune`.
    """
    pruned: list[PrunedBlock] = []

    def new_weights(index: int, grams: Grams) -> dict[str, Tensor]:
        pruned.append(prune(index, grams))
        return pruned[-1].weights

    for _ in capture(weights, calibration, held_out, batch_size, new_weights, keep, progress):
        yield pruned.pop()
