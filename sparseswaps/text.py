"""Calibration and evaluation text: where it comes from, and how token windows are drawn from it."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sparseswaps.embedded.corpus import documents
from sparseswaps.errors import InputError

if TYPE_CHECKING:  # importing it takes seconds, and whoever passes a tokenizer has done so
    from transformers import PreTrainedTokenizerBase

_SEPARATOR = "<|endoftext|>"


def load(text: str, split: str, field: str = "text") -> list[str]:
    """The documents of a text.

    Args:
        text: `embedded` (the standard library's sources), a `.jsonl` file (one document a line, in `field`), or a
            `.txt` file (documents divided by `<|endoftext|>`).
        split: the embedded text's split.
        field: the JSON field that holds a document.

    Raises:
        InputError: the file is missing, of another kind, or a line does not hold the field.
    """
    if text == "embedded":
        return [source for _, source in documents(split)]
    path = Path(text)
    if path.suffix not in (".txt", ".jsonl"):
        raise InputError(f"text {text!r}: expected `embedded`, or a .txt or .jsonl file")
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"text {text!r}: cannot be read ({error})") from None
    if path.suffix == ".txt":
        return [part.strip() for part in content.split(_SEPARATOR) if part.strip()]
    found = []
    for number, line in enumerate(content.split("\n"), 1):
        if line.strip():
            try:
                document = json.loads(line)[field]
            except (json.JSONDecodeError, KeyError, TypeError):
                document = None
            if not isinstance(document, str):
                raise InputError(f"text {text!r}: line {number} is not JSON with a text in its field {field!r}")
            found.append(document)
    return found


def tokenize(tokenizer: "PreTrainedTokenizerBase", text: str) -> Tensor:
    """The token ids of one text, int64 [tokens], with the special tokens that the tokenizer adds by itself."""
    return torch.tensor(tokenizer(text, verbose=False)["input_ids"], dtype=torch.int64)


def draw(
    documents: Iterable[str],
    tokenizer: "PreTrainedTokenizerBase",
    samples: int,
    held_out: int,
    seqlen: int,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Draw token windows for calibration, and further ones to be held out, none overlapping another.

    Documents longer than `seqlen` tokens are visited in a seeded random order and give one window each, at a random
    place (the usual C4 protocol). Only when they run out does a document that is long enough give another.

    Returns:
        int64 [samples, seqlen] for calibration, and int64 [held_out, seqlen].

    Raises:
        InputError: the text holds fewer windows than asked for.
    """
    random = torch.Generator().manual_seed(seed)
    documents = list(documents)
    wanted = samples + held_out
    windows: list[Tensor] = []
    remaining: list[Tensor] = []  # windows of visited documents that were not drawn yet, [any number, seqlen]
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
            f"the calibration text is too short: {samples} samples and {held_out} held-out ones of {seqlen} tokens "
            f"were asked for, it gives {len(windows)}; ask for fewer or shorter ones, or give more text"
        )
    drawn = torch.stack(windows)
    return drawn[:samples], drawn[samples:]
