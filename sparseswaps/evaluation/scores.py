"""Log-probabilities of tokens under a causal language model, computed block after block.

Many sequences go through one decoder block before the next block is loaded. A device holds one block, the hidden states
of one batch, and the logits of a few tokens, so it need not hold the model.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from sparseswaps.base.memory import map_slices
from sparseswaps.base.progress import Report, ignore_progress
from sparseswaps.calibration.activations import Keep, keep_in_memory
from sparseswaps.calibration.replay import Batch, Replay
from sparseswaps.model.mask_file import Masks
from sparseswaps.model.masked import prune_block
from sparseswaps.model.weights import Weights, WeightsInMemory

Targets = Sequence[list[int]]
TOKENS = 1 << 18  # of the sequences that go through all blocks together, whose hidden states wait for the next block
LOGITS = 1 << 25  # the most logits at a time; an eighth of a GB in float32


def score(
    model: PreTrainedModel | Weights,
    inputs: Sequence[list[int]],
    targets: Targets,
    batch_size: int,
    masks: Masks | None = None,
    keep: Keep = keep_in_memory,
    progress: Report = ignore_progress,
) -> list[tuple[Tensor, Tensor]]:
    """Score target tokens: `targets[i]` are the tokens that the model is to predict at the last places of `inputs[i]`.

    Args:
        model: a model in memory, whose dropout is switched off, or weights on disk.
        inputs: token ids, at least one each. Equal inputs are run once.
        targets: token ids, one to as many as there are inputs.
        batch_size: sequences per forward pass, halved whenever the GPU runs out of memory.
        masks: masks by tensor name, which are applied to each block (a model in memory stays pruned).
        keep: stores the hidden states of batches that wait for the next block.
        progress: told the number of sequences done, and of runs of a sequence through a block.

    Returns, for each item, the log-probability of each target token, float32 [targets], and whether no other token is
    likelier, bool [targets]; both on the CPU.

    Raises InputError when the blocks cannot be run one by one, the files lack a parameter, or a single sequence is too
    much for the GPU's memory.
    """
    weights = WeightsInMemory(model) if isinstance(model, PreTrainedModel) else model
    weights.model.eval()
    items = defaultdict(list)  # the items with these inputs
    for item, ids in enumerate(inputs):
        items[tuple(ids)].append(item)
    # The order of lm-eval, so that batches and their rounding are the same: sequences of one batch are about as long.
    order = sorted(items, key=lambda ids: (-len(ids), ids))
    results: dict[int, tuple[Tensor, Tensor]] = {}
    done = run = 0
    while done < len(order):
        chunk = order[done : done + max(1, TOKENS // len(order[done]))]
        replay = Replay(weights, keep, lambda _, more, done=done, run=run: progress(done, run + more))
        _run_blocks(replay, chunk, batch_size, masks)
        results |= _score_batches(replay, chunk, items, targets)
        done, run = done + len(chunk), run + replay.sequences_run
        progress(done, run)
    return [results[item] for item in range(len(inputs))]


def _run_blocks(replay: Replay, sequences: list[tuple[int, ...]], batch_size: int, masks: Masks | None) -> None:
    """Run sequences, longest first, through all blocks; the batches of `replay` then hold the last block's outputs."""
    starts = range(0, len(sequences), batch_size)
    groups = [list(map(torch.tensor, sequences[start : start + batch_size])) for start in starts]
    # Causal attention never sees the padding on the right.
    replay.observe([Batch(pad_sequence(group, batch_first=True)) for group in groups])
    for index, block in enumerate(replay.blocks):
        with replay.weights.block(index):
            if masks is not None:
                prune_block(block, replay.weights.layers[index], masks)
            replay.advance(index)


def _score_batches(
    replay: Replay, sequences: list[tuple[int, ...]], items: Mapping[tuple[int, ...], list[int]], targets: Targets
) -> dict[int, tuple[Tensor, Tensor]]:
    """Score the targets of sequences by the last block's outputs; return the scores of each item."""
    results, remaining = {}, iter(sequences)
    with replay.weights.ends():
        for batch in replay.batches:
            states = batch.hidden()  # [batch, length, width]
            scored, of_items = [], []
            for row, ids in zip(states, remaining, strict=False):
                of_items += items[ids]
                scored += [row[len(ids) - len(targets[item]) : len(ids)] for item in items[ids]]
            wanted = [torch.tensor(targets[item]) for item in of_items]
            logprobs, likeliest = _score_tokens(replay, torch.cat(scored), torch.cat(wanted), states.shape[1])
            sizes = list(map(len, wanted))
            pairs = zip(logprobs.split(sizes), likeliest.split(sizes), strict=True)
            results |= dict(zip(of_items, pairs, strict=True))
    return results


def _score_tokens(replay: Replay, states: Tensor, targets: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Score target tokens by the last block's outputs [targets, width], at most `most` at a time.

    `most` is the length of a sequence that the model has read, since a family may limit it.
    """

    def score_slice(part: slice) -> tuple[Tensor, Tensor]:
        logits, wanted = replay.logits(states[part]).float(), targets[part].to(replay.weights.device)
        losses = functional.cross_entropy(logits, wanted, reduction="none")
        return -losses.cpu(), (logits.argmax(-1) == wanted).cpu()

    size = max(1, min(most, LOGITS // replay.weights.model.config.get_text_config().vocab_size))
    logprobs, likeliest = zip(*map_slices(score_slice, len(targets), size, "tokens"), strict=True)
    return torch.cat(logprobs), torch.cat(likeliest)
