"""The Gram matrices of one decoder block, one for each distinct input of its layers."""

import logging
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sparseswaps.base.errors import InputError
from sparseswaps.layer.gram import Inputs, accumulate, symmetric_gram
from sparseswaps.model.layers import Layer, Matrix

MatrixInputs = dict[Matrix, list[Tensor]]  # the inputs of each matrix of a block, [..., d_in] for each call


@dataclass
class Grams:
    """The Gram matrices of one decoder block's inputs. Layers that read the same tensor share one distinct input."""

    reads: dict[str, str] = field(default_factory=dict)  # the input of each layer, named for its first reader
    matrix: dict[str, Tensor] = field(default_factory=dict)  # [d_in, d_in] per input, over the calibration tokens
    sums: dict[str, Tensor] = field(default_factory=dict)  # float64 [d_in] per input, over the calibration tokens
    held_out: dict[str, Tensor] = field(default_factory=dict)  # as `matrix`; empty without held-out text
    # X X~^T, [d_in, d_in] per input, of the dense model's inputs X and these inputs X~; empty unless asked for
    cross: dict[str, Tensor] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)  # the number of calibration tokens per input
    unrouted: list[str] = field(default_factory=list)  # experts' inputs summed over all tokens, since they saw too few
    order: list[str] = field(default_factory=list)  # the layers in the order in which the block calls them
    sequences: int = 0  # of the calibration text

    def readers(self, layers: list[Layer]) -> list[Layer]:
        """Return the layers that were calibrated; the other layers of the block stay dense."""
        return [layer for layer in layers if layer.name in self.reads]

    def inputs(self, layer: str, device: str | torch.device) -> Inputs:
        """Return what calibration knows of a layer's inputs, with the matrices on a device."""
        source = self.reads[layer]
        held_out = self.held_out[source].to(device) if source in self.held_out else None
        sums = self.sums[source].to(device)
        cross = self.cross[source].to(device) if source in self.cross else None
        return Inputs(self.matrix[source].to(device), held_out, sums, self.tokens[source], self.sequences, cross)

    def figures(self, layer: str) -> dict[str, int | bool]:
        """Return a layer's columns in tables: its calibration tokens, and whether they were not routed to it."""
        source = self.reads[layer]
        return {"tokens": self.tokens[source], "unrouted": source in self.unrouted}

    def discard(self, source: str) -> None:
        """Discard the sums of a distinct input."""
        for sums in (self.matrix, self.held_out, self.cross, self.sums, self.tokens):
            sums.pop(source, None)


class GramSum:
    """Sums up the Gram matrices of one block, batch by batch, in float64. `block` is the block's dotted name."""

    def __init__(self, block: str, layers: list[Layer], sequences: int) -> None:
        self.block, self.layers, self.grams = block, layers, Grams(sequences=sequences)
        self._wanted = layers  # the layers whose inputs are summed

    def add(self, inputs: MatrixInputs, held_out: bool, dense: MatrixInputs | None = None) -> None:
        """Add one batch. Raises InputError naming a layer when an activation is NaN or infinite.

        `dense` are the inputs in the dense model. They are not taken for experts, which may see other tokens there.
        """
        grams = self.grams
        layers = [layer for layer in self._wanted if layer.matrix in inputs]
        if not grams.order:
            calls = {matrix: position for position, matrix in enumerate(inputs)}
            grams.order = [layer.name for layer in sorted(layers, key=lambda layer: calls[layer.matrix])]
        first: dict[Any, str] = {}
        for layer in layers:
            reader = first.setdefault(layer.matrix, layer.name)
            # All inputs are alive at once, so equal addresses mean the same tensor; an empty one has no address.
            address = tuple((x.data_ptr(), x.shape, x.stride()) for x in inputs[layer.matrix] if x.numel())
            grams.reads.setdefault(layer.name, first.setdefault(address, reader) if address else reader)
        totals = grams.held_out if held_out else grams.matrix
        sources = [layer for layer in layers if grams.reads[layer.name] == layer.name]
        for layer in sources:  # before anything is added: if memory runs out here, the batch can be tried again
            if layer.name not in totals:
                device = inputs[layer.matrix][0].device
                totals[layer.name] = torch.zeros(layer.d_in, layer.d_in, dtype=torch.float64, device=device)
                if dense is not None and layer.expert is None and not held_out:
                    grams.cross[layer.name] = torch.zeros_like(totals[layer.name])
        for layer in sources:
            if not held_out and layer.name in grams.cross:
                for of_dense, x in zip(dense[layer.matrix], inputs[layer.matrix], strict=True):
                    accumulate(grams.cross[layer.name], of_dense, x)
            for x in inputs[layer.matrix]:
                accumulate(totals[layer.name], x)
                if not held_out:
                    grams.tokens[layer.name] = grams.tokens.get(layer.name, 0) + x.shape[:-1].numel()
                    sums = x.reshape(-1, layer.d_in).sum(0, dtype=torch.float64)
                    grams.sums[layer.name] = sums + grams.sums.get(layer.name, 0)
            if not totals[layer.name].diagonal().isfinite().all():
                name = f"{self.block}.{layer.name}"
                raise InputError(f"{name}: an input activation is NaN or Inf; check the model and its dtype")

    def restart_starved_experts(self) -> set[Matrix]:
        """Discard the sums of experts that saw fewer tokens than they have features, and return their matrices.

        If there are any, `add` sums the inputs of these experts only from now on.
        """
        experts = [layer for layer in self.layers if layer.expert is not None]
        starved = [layer for layer in experts if self.grams.tokens.get(layer.name, layer.d_in) < layer.d_in]
        for layer in starved:
            self.grams.unrouted.append(layer.name)
            self.grams.discard(layer.name)
        self._wanted = starved or self._wanted
        return {layer.matrix for layer in starved}

    def finish(self, tokens: int) -> Grams:
        """Return the Gram matrices in float32, of the layers that can be calibrated, and log the names of the others.

        A layer stays dense if the model takes its weight without calling it, or calls it for too few of the `tokens`.
        """
        grams = self.grams
        for layer in self.layers:
            source = grams.reads.get(layer.name)
            if source is None:
                logging.warning("%s.%s: never called with an input of its own, left dense", self.block, layer.name)
            elif (count := grams.tokens.get(source, 0)) < min(layer.d_in, tokens):
                logging.warning("%s.%s: sees %d tokens, left dense", self.block, layer.name, count)
                del grams.reads[layer.name]
        for source in {*grams.matrix, *grams.held_out} - set(grams.reads.values()):
            grams.discard(source)
        for totals in (grams.matrix, grams.held_out):
            for name in list(totals):
                totals[name] = symmetric_gram(totals.pop(name))
        grams.cross = {name: total.float() for name, total in grams.cross.items()}
        return grams
