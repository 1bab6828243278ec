"""An independent check of certificates: every pair of a few rows, in float64, without the search's code or bounds."""

import torch
from torch import Tensor

from sparseswaps.layer.gram import correlation
from sparseswaps.layer.swaps.cost import norms, rounding

_PAIRS = 1 << 22  # pairs formed at a time: 32 MB in float64


class CertificateError(RuntimeError):
    """A search's result contradicts an independent check: a defect of the engine or of the machine."""


def improvable_rows(weight: Tensor, gram: Tensor, mask: Tensor, frozen: Tensor, size: int) -> Tensor:
    """Return which rows have a swap that lowers their loss by more than twice the rounding error: boolean [rows].

    The arguments are as in `backends.Rows`.
    """
    s = norms(weight, gram)
    uncertain = 2 * rounding(s)[:, None] * s
    improvable = torch.zeros(len(weight), dtype=torch.bool, device=weight.device)
    for row, (w, c) in enumerate(zip(weight.double(), correlation(weight, gram, mask), strict=True)):
        alone = s[row] ** 2 + uncertain[row]
        kept, pruned = (mask[row] & ~frozen[row]).nonzero().flatten(), (~mask[row]).nonzero().flatten()
        if not (len(kept) and len(pruned)):
            continue
        for u in kept.split(max(1, _PAIRS // len(pruned))):
            p = pruned[(pruned // size >= u[0] // size) & (pruned // size <= u[-1] // size)]
            costs = (alone + 2 * w * c)[u, None] + (alone - 2 * w * c)[p] - 2 * w[u, None] * w[p] * gram[u][:, p]
            improvable[row] |= ((costs < 0) & (u[:, None] // size == p // size)).any()
    return improvable
