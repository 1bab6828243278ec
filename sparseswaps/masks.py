"""Masks: boolean tensors of a weight's shape, True where the weight is kept."""

import numpy as np
import torch
from torch import Tensor

from sparseswaps.errors import InputError
from sparseswaps.pattern import Pattern


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


def check_mask(mask: Tensor, pattern: Pattern, equal_rows: bool = True) -> None:
    """Raise InputError unless every block of every row keeps exactly as many weights as `pattern` says.

    Without `equal_rows`, a pattern of whole rows says how many the matrix keeps in all.
    """
    size, kept = pattern.blocks(mask.shape[1])
    counts = mask.reshape(mask.shape[0], -1, size).sum(-1)
    if not equal_rows and size == mask.shape[1]:
        if (found := int(counts.sum())) != kept * len(mask):
            raise InputError(f"{found} weights are kept, {kept * len(mask)} are asked for by pattern {pattern.label}")
        return
    wrong = (counts != kept).nonzero()
    if len(wrong):
        row, block = wrong[0].tolist()
        raise InputError(
            f"row {row}, block {block} keeps {counts[row, block].item()} weights of {size}, "
            f"{kept} are asked for by pattern {pattern.label}"
        )


def pack(mask: Tensor) -> Tensor:
    """Boolean [..., d_in] to uint8 [..., ceil(d_in / 8)], first weight in the highest bit."""
    return torch.from_numpy(np.packbits(mask.cpu().numpy(), axis=-1))


def unpack(packed: Tensor, d_in: int) -> Tensor:
    """The inverse of `pack`: uint8 [..., ceil(d_in / 8)] to boolean [..., d_in]."""
    return torch.from_numpy(np.unpackbits(packed.cpu().numpy(), axis=-1, count=d_in).astype(bool))
