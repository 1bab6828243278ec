"""Perplexity of a causal language model on disjoint windows of one token stream, as in the pruning literature:
exp(mean over windows of the window's mean cross-entropy). The perplexity depends on the windows' length.
"""

import math
import sys
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from sparseswaps.base.errors import InputError
from sparseswaps.base.memory import map_slices
from sparseswaps.base.progress import Report, ignore_progress

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


@torch.inference_mode()
def perplexity(
    model: torch.nn.Module, windows: Tensor, batch_size: int = 8, progress: Report = ignore_progress
) -> Perplexity:
    """Measure the perplexity of a model on windows of tokens, int64 [n, seqlen], on any device.

    Args:
        model: a causal LM of transformers, or anything that maps `input_ids` [b, seqlen] to an output with `.logits`
            [b, seqlen, vocabulary] and has `.device`. Its dropout is switched off.
        batch_size: windows per forward pass, halved whenever the GPU runs out of memory.
        progress: called with the number of windows done and the number of their tokens.

    Raises InputError when a window's cross-entropy is not finite, or so large that its exponential is not.
    """
    model.eval()
    count, seqlen = windows.shape

    def window_losses(rows: slice) -> list[float]:
        batch = windows[rows].to(model.device)
        logits = model(input_ids=batch, use_cache=False).logits  # [windows, seqlen, vocabulary]
        # One window at a time: a whole batch of logits in float32 would be the largest tensor of the evaluation.
        pairs = zip(logits[:, :-1], batch[:, 1:], strict=True)
        return torch.stack([functional.cross_entropy(row.float(), ids) for row, ids in pairs]).tolist()

    def report_tokens(done: int, _: int) -> None:
        progress(done, done * seqlen)

    batches = map_slices(window_losses, count, batch_size, "windows", "seqlen", report_tokens)
    losses = [loss for batch in batches for loss in batch]
    for index, loss in enumerate(losses):
        if not loss < LARGEST:  # also true of NaN
            raise InputError(
                f"evaluation window {index} of {count}: the cross-entropy is {loss} nats; "
                "the checkpoint's weights are broken, or its dtype overflows"
            )
    nll = math.fsum(losses) / count
    return Perplexity(math.exp(nll), nll, count, seqlen, windows.numel())
