"""Masks: boolean tensors of a weight's shape, True where the weight is kept."""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from sparseswaps.base.errors import InputError
from sparseswaps.layer.pattern import Pattern

Counted = Literal["rows", "matrix", "roughly"]
_ROUGHLY = 0.01  # of a matrix's weights


def keep_best(scores: Tensor, pattern: Pattern) -> Tensor:
    """The mask that keeps the weights of highest score: exact in count in every block of every row.

    Args:
        scores: [d_out, d_in], any floating dtype; of equal scores the one further left is kept.
        pattern: which scores compete.

    Returns:
        Boolean [d_out, d_in].
    """
    size, kept = pattern.blocks(scores.shape[1])
    grouped = scores.reshape(scores.shape[0], -1, size)
    order = grouped.argsort(dim=-1, descending=True, stable=True)
    mask = torch.zeros(grouped.shape, dtype=torch.bool, device=scores.device).scatter_(-1, order[..., :kept], True)
    return mask.view_as(scores)


def check_mask(mask: Tensor, pattern: Pattern, counted: Counted = "rows") -> None:
    """Raise InputError unless a mask, boolean [d_out, d_in], keeps as many weights as `pattern` says.

    Args:
        counted: where they are counted. "rows": in every block of every row. "matrix": over all rows, where a pattern
            is one of whole rows. "roughly": over all rows, within a hundredth of all weights or one a row, whichever is
            more, and no block of N:M keeps more than N. That is for masks made elsewhere: other tools round otherwise,
            and weights that are zero in the base model look pruned.
    """
    size, kept = pattern.blocks(mask.shape[1])
    counts = mask.reshape(mask.shape[0], -1, size).sum(-1)
    found, asked, every = int(counts.sum()), kept * counts.numel(), mask.numel()
    whole_rows = size == mask.shape[1]
    by = f"asked for by pattern {pattern.label}"
    if counted == "roughly":
        by += ": exclude this warm start for it, or give this layer its own by `layers`"
    if counted == "roughly" and abs(found - asked) > max(_ROUGHLY * every, len(mask)):
        raise InputError(f"{1 - found / every:.2%} of the weights are pruned, {1 - asked / every:.2%} are {by}")
    if counted == "matrix" and whole_rows and found != asked:
        raise InputError(f"{found} weights are kept, {asked} are {by}")
    if counted != "rows" and whole_rows:
        return
    wrong = (counts > kept if counted == "roughly" else counts != kept).nonzero()
    if len(wrong):
        row, block = wrong[0].tolist()
        raise InputError(
            f"row {row}, block {block} keeps {counts[row, block].item()} weights of {size}, {kept} are {by}"
        )


def pack(mask: Tensor) -> Tensor:
    """Boolean [..., d_in] to uint8 [..., ceil(d_in / 8)], first weight in the highest bit."""
    return torch.from_numpy(np.packbits(mask.cpu().numpy(), axis=-1))


def unpack(packed: Tensor, d_in: int) -> Tensor:
    """The inverse of `pack`: uint8 [..., ceil(d_in / 8)] to boolean [..., d_in]."""
    return torch.from_numpy(np.unpackbits(packed.cpu().numpy(), axis=-1, count=d_in).astype(bool))
