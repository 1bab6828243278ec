"""Tokenise text, and draw windows of tokens from documents for calibration."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from sparseswaps.base.errors import InputError


def tokenize(tokenizer: PreTrainedTokenizerBase, text: str) -> Tensor:
    """Return the token ids of one text, int64 [tokens], with the special tokens that the tokenizer adds."""
    return torch.tensor(tokenizer(text, verbose=False)["input_ids"], dtype=torch.int64)


def check_vocabulary(ids: Tensor, vocabulary: int | None) -> None:
    """Raise InputError when a token id has no embedding in the model.

    `vocabulary` is the number of ids with an embedding; None when the model does not say, and then nothing is checked.
    """
    if vocabulary is not None and (largest := int(ids.max())) >= vocabulary:
        raise InputError(
            f"the tokenizer gives token id {largest}, but the model has embeddings for {vocabulary} ids only, so the "
            "tokenizer is another model's; put the model's own tokenizer files beside its weights"
        )


def draw(
    documents: Sequence[str], tokenizer: PreTrainedTokenizerBase, samples: int, held_out: int, seqlen: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Draw token windows for calibration, and further windows to hold out. No two windows overlap.

    Documents longer than `seqlen` tokens are visited in a seeded random order. Each gives one window, at a random place
    (the usual C4 protocol). When all documents have been visited, long documents give further windows. Documents that
    are not visited are not read. Returns int64 [samples, seqlen] for calibration, and int64 [held_out, seqlen]. Raises
    InputError when the text has too few windows.
    """
    random = torch.Generator().manual_seed(seed)
    wanted = samples + held_out
    windows: list[Tensor] = []
    remaining: list[Tensor] = []  # windows of visited documents that have not been drawn, [any number, seqlen]
    for index in torch.randperm(len(documents), generator=random).tolist():
        if len(windows) == wanted:
            break
        ids = tokenize(tokenizer, documents[index])
        if len(ids) <= seqlen:
            continue
        count = len(ids) // seqlen
        offset = int(torch.randint(len(ids) - count * seqlen + 1, (), generator=random))
        cut = ids[offset : offset + count * seqlen].view(count, seqlen)
        cut = cut[torch.randperm(count, generator=random)]
        windows.append(cut[0])
        remaining.append(cut[1:])
    while len(windows) < wanted and (remaining := [cut for cut in remaining if len(cut)]):
        windows.extend(cut[0] for cut in remaining[: wanted - len(windows)])
        remaining = [cut[1:] for cut in remaining]
    if len(windows) < wanted:
        raise InputError(
            f"the calibration text is too short: it gives {len(windows)} of {samples} samples and {held_out} held-out "
            f"samples of {seqlen} tokens, each from a document that is longer; lower samples, held_out or seqlen, or "
            "give more or longer documents"
        )
    drawn = torch.stack(windows)
    return drawn[:samples], drawn[samples:]
