"""Perplexity of a causal language model on disjoint windows of one token stream, as in the pruning literature:
exp(mean over windows of the window's mean cross-entropy). The perplexity depends on the windows' length.
"""

import math
import sys
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel

from sparseswaps.base.errors import InputError
from sparseswaps.base.progress import Report, ignore_progress
from sparseswaps.calibration.activations import Keep, keep_in_memory
from sparseswaps.evaluation.scores import score
from sparseswaps.model.mask_file import Masks
from sparseswaps.model.weights import Weights

LARGEST = math.log(sys.float_info.max)  # nats; the exponential of a larger loss overflows


@dataclass(frozen=True)
class Perplexity:
    """A perplexity and what it was measured on."""

    perplexity: float  # exp(nll)
    nll: float  # mean over windows of the mean cross-entropy of a window, in nats per token
    windows: int
    seqlen: int  # tokens per window, of which seqlen - 1 are predicted
    tokens: int  # windows * seqlen


def windows(ids: Tensor, seqlen: int, limit: int | None = None) -> Tensor:
    """Cut a token stream, int64 [N], into disjoint windows and drop the tokens left at the end.

    Returns a view of `ids`, [min(N // seqlen, limit), seqlen], of the first windows; without `limit`, of all.
    Raises InputError when `seqlen` or `limit` is too small, or the text is shorter than one window.
    """
    if seqlen < 2:
        raise InputError(f"seqlen: {seqlen} tokens leave nothing to predict; set it to 2 or more")
    if limit is not None and limit < 1:
        raise InputError(f"limit: {limit} windows; set it to 1 or more, or leave it out")
    count = len(ids) // seqlen
    if count == 0:
        raise InputError(
            f"seqlen: the evaluation text has {len(ids)} tokens, less than one window of {seqlen}; "
            "lower seqlen or give a longer text"
        )
    return ids[: count * seqlen].view(count, seqlen)[:limit]


def perplexity(
    model: PreTrainedModel | Weights,
    windows: Tensor,
    batch_size: int = 8,
    masks: Masks | None = None,
    keep: Keep = keep_in_memory,
    progress: Report = ignore_progress,
) -> Perplexity:
    """Measure the perplexity of a causal language model on windows of tokens, int64 [n, seqlen].

    The other arguments are those of `score`. Raises InputError when a window's cross-entropy is not finite, or so large
    that its exponential is not.
    """
    count, seqlen = windows.shape
    inputs, targets = windows[:, :-1].tolist(), windows[:, 1:].tolist()
    scores = score(model, inputs, targets, batch_size, masks, keep, progress)
    losses = [-logprobs.double().mean().item() for logprobs, _ in scores]
    for index, loss in enumerate(losses):
        if not loss < LARGEST:  # also true of NaN
            raise InputError(
                f"evaluation window {index} of {count}: the cross-entropy is {loss} nats; "
                "the checkpoint's weights are broken, or its dtype overflows"
            )
    nll = math.fsum(losses) / count
    return Perplexity(math.exp(nll), nll, count, seqlen, windows.numel())
