"""The Gram matrices of one decoder block, one for each distinct input of its layers."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from sparseswaps.layer.gram import Inputs
from sparseswaps.model.layers import Layer


@dataclass
class Grams:
    """Gram matrices of the inputs of one decoder block's layers, one per distinct input.

    Attributes:
        reads: the input of each layer, named for the first layer that reads it.
        matrix: [d_in, d_in] per distinct input, summed over the calibration tokens: in float64, then float32.
        sums: float64 [d_in] per distinct input, its features summed over the calibration tokens.
        held_out: the same over the held-out tokens; empty when there are none.
        tokens: how many calibration tokens each distinct input was summed over.
        unrouted: distinct inputs of experts that saw too few tokens: summed over all tokens of their layer.
        sequences: how many calibration sequences the tokens belong to.
    """

    reads: dict[str, str] = field(default_factory=dict)
    matrix: dict[str, Tensor] = field(default_factory=dict)
    sums: dict[str, Tensor] = field(default_factory=dict)
    held_out: dict[str, Tensor] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    unrouted: list[str] = field(default_factory=list)
    sequences: int = 0

    def readers(self, layers: list[Layer]) -> list[Layer]:
        """Those of a block's layers that were calibrated; the others stay dense."""
        return [layer for layer in layers if layer.name in self.reads]

    def of(self, layer: str, device: str | torch.device) -> Inputs:
        """What is known of a layer's inputs, with the matrices on a device."""
        source = self.reads[layer]
        unseen = self.held_out[source].to(device) if source in self.held_out else None
        sums = self.sums[source].to(device)
        return Inputs(self.matrix[source].to(device), unseen, sums, self.tokens[source], self.sequences)

    def about(self, layer: str) -> dict[str, int | bool]:
        """What tables say of a layer's calibration, by column."""
        source = self.reads[layer]
        return {"tokens": self.tokens[source], "unrouted": source in self.unrouted}
