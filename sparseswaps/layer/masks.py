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
    """Return the mask, boolean [d_out, d_in], that keeps the weights of highest score in every group of every row.

    `scores` is [d_out, d_in] of any floating dtype; of equal scores the leftmost is kept.
    """
    size, kept = pattern.groups(scores.shape[1])
    grouped = scores.reshape(scores.shape[0], -1, size)
    order = grouped.argsort(dim=-1, descending=True, stable=True)
    mask = torch.zeros(grouped.shape, dtype=torch.bool, device=scores.device).scatter_(-1, order[..., :kept], True)
    return mask.view_as(scores)


def check_mask(mask: Tensor, pattern: Pattern, counted: Counted = "rows") -> None:
    """Raise InputError unless a mask [d_out, d_in] keeps as many weights as its pattern asks for.

    `counted` says where the kept weights are counted. "rows": in every group of every row. "matrix": for a sparsity, in
    the whole matrix; for N:M, in every group. "roughly", for imported masks: in the whole matrix, within 1 % of all
    weights or one weight a row, and no N:M group keeps more than N; other tools round differently, and zero weights of
    the base model look pruned.
    """
    size, kept = pattern.groups(mask.shape[1])
    counts = mask.reshape(len(mask), -1, size).sum(-1)
    total, asked, every = int(counts.sum()), kept * counts.numel(), mask.numel()
    asks, remedy = f"pattern {pattern.label} asks for", ""
    if counted == "roughly":
        remedy = "; exclude this warm start for the pattern, or give the layer its own pattern by `layers`"
        if abs(total - asked) > max(_ROUGHLY * every, len(mask)):
            pruned, wanted = 1 - total / every, 1 - asked / every
            raise InputError(f"{pruned:.2%} of the weights are pruned, but {asks} {wanted:.2%}{remedy}")
    if counted != "rows" and size == mask.shape[1]:
        if counted == "matrix" and total != asked:
            raise InputError(f"{total} weights are kept, but {asks} {asked}")
        return
    wrong = (counts > kept if counted == "roughly" else counts != kept).nonzero()
    if len(wrong):
        row, group = wrong[0].tolist()
        count = counts[row, group].item()
        raise InputError(f"row {row}, group {group} keeps {count} of {size} weights, but {asks} {kept}{remedy}")


def pack(mask: Tensor) -> Tensor:
    """Pack boolean [..., d_in] into uint8 [..., ceil(d_in / 8)], the first weight in the highest bit."""
    return torch.from_numpy(np.packbits(mask.cpu().numpy(), axis=-1))


def unpack(packed: Tensor, d_in: int) -> Tensor:
    """Unpack uint8 [..., ceil(d_in / 8)], the result of `pack`, into boolean [..., d_in]."""
    return torch.from_numpy(np.unpackbits(packed.cpu().numpy(), axis=-1, count=d_in).astype(bool))
