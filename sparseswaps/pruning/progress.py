"""How long the layers and blocks of a model take, compared with each other: the parts of long work."""

from collections.abc import Iterable, Sequence
from math import inf
from typing import TYPE_CHECKING

from sparseswaps.base.progress import Part

if TYPE_CHECKING:  # it imports torch, and the start of the workflow does without
    from sparseswaps.model.layers import Layer

SWAPS = 0.06  # swaps to a row's optimum, of d_in: 0.04 to 0.075 were measured at 60% and 2:4 (benchmarks/results)


def rows_of(layers: Iterable["Layer"], max_swaps: int | None = None) -> list[Part]:
    """The rows of layers, a part each; a row takes time in proportion to d_in^2, as its products with a Gram matrix do
    and, nearly, its swaps to the optimum."""
    budget = inf if max_swaps is None else max_swaps
    return [Part(la.d_out, la.d_in**2, la.d_out * min(SWAPS * la.d_in, budget) or inf) for la in layers]


def blocks_of(layers: Sequence[Sequence["Layer"]], sequences: int, again: bool = False) -> Part:
    """A model's blocks, each run over so many sequences: once, and once more for experts, and once more if `again`."""
    passes = 1 + again + any(layer.expert is not None for of_block in layers for layer in of_block)
    return Part(len(layers), likely=len(layers) * sequences * passes)
