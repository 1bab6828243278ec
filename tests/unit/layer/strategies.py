"""Make layers of every difficulty for the property tests of the searches, and the masks that one swap makes."""

import torch
from helpers import layer
from hypothesis import strategies as st

from sparseswaps.layer.masks import keep_best
from sparseswaps.layer.pattern import parse_pattern

KINDS = ["random", "correlated", "rank deficient", "duplicated", "dead", "outliers", "zero weights"]


@st.composite
def masked_layers(draw, sizes):
    """Draw a weight [1 to 3, d_in], its Gram matrix in float64, a pattern, and a random mask.

    `sizes` maps each pattern to a list of d_in.
    """
    pattern = draw(st.sampled_from(sorted(sizes)))
    seed, rows = draw(st.integers(0, 10**6)), draw(st.integers(1, 3))
    weight, inputs = layer(seed, rows, draw(st.sampled_from(sizes[pattern])), draw(st.sampled_from(KINDS)))
    pattern, random = parse_pattern(pattern), torch.Generator().manual_seed(seed + 1)
    scores = torch.rand(weight.shape, generator=random)
    start = draw(st.sampled_from(["pattern", "any counts", "all kept", "all pruned"]))
    shares = {"any counts": torch.rand(rows, 1, generator=random), "all kept": 1, "all pruned": 0}
    mask = keep_best(scores, pattern) if start == "pattern" else scores < shares[start]
    return weight, inputs.double() @ inputs.double().T, pattern, mask


def masks_after_a_swap(mask, size):
    """Return the masks of one row after each feasible swap: {(u, p): boolean [d_in]}."""
    kept, pruned = mask.nonzero().flatten().tolist(), (~mask).nonzero().flatten().tolist()
    column = torch.arange(len(mask))
    pairs = [(u, p) for u in kept for p in pruned if u // size == p // size]
    return {(u, p): mask ^ (column == u) ^ (column == p) for u, p in pairs}
