"""How long layers and blocks take, compared with each other: the parts of long work."""

from collections.abc import Sequence
from math import inf
from typing import TYPE_CHECKING

from sparseswaps.base.progress import Part

if TYPE_CHECKING:  # the module imports torch, and the start of the workflow must not
    from sparseswaps.model.layers import Layer

SWAPS = 0.06  # swaps to a row's optimum, of d_in: 0.04 to 0.075 were measured at 60% and 2:4 (benchmarks/results)


def rows_part(layer: "Layer", max_swaps: int | None = 0) -> Part:
    """Return the rows of a layer as a part of long work, with `max_swaps` for each row; None: to the optimum.

    A row takes time in proportion to d_in^2: its products with a Gram matrix do, and, nearly, its swaps to the optimum.
    """
    swaps = SWAPS * layer.d_in if max_swaps is None else min(SWAPS * layer.d_in, max_swaps)
    return Part(layer.d_out, layer.d_in**2, layer.d_out * swaps or inf)


def blocks_part(blocks: Sequence[Sequence["Layer"]], sequences: int, more: int = 0) -> Part:
    """Return the blocks of a model, each a sequence of layers, as a part of long work.

    Every block is run over the sequences once, once more for experts, and `more` times for other reasons.
    """
    passes = 1 + more + any(layer.expert is not None for layers in blocks for layer in layers)
    return Part(len(blocks), likely=len(blocks) * sequences * passes)
