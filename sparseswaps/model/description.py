"""The description of a model's files, by which stages read weights without building the model."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparseswaps.model.checkpoint import Checkpoint


@dataclass(frozen=True)
class Layer:
    """A prunable matrix of a decoder block, [d_out, d_in]: a linear layer's weight, or one of an expert's.

    Files and models need not hold it alike. In a file it is a tensor, or one matrix of a tensor of all experts. In a
    model it is a parameter, or rows of one, or rows of one expert's matrix in a parameter of all experts. Where it is
    `transposed` (GPT-2's Conv1D), both hold [d_in, d_out].

    Attributes:
        name: within its block, as the file has it.
        tensor: the file's tensor.
        parameter: the model's parameter, within the block.
        expert: which matrix of a parameter with three dimensions; None where that has two.
        row: the first row there.
        fused: whether the file's tensor has three dimensions as well.
    """

    name: str
    tensor: str
    parameter: str
    d_out: int
    d_in: int
    transposed: bool = False
    expert: int | None = None
    row: int = 0
    fused: bool = False

    @property
    def matrix(self) -> tuple[str, int | None]:
        """Which matrix of the model it is, or is rows of."""
        return self.parameter, self.expert

    def of_parameter(self, parameter: Tensor) -> Tensor:
        """This matrix, [d_out, d_in], as a view of the model's parameter."""
        matrix = parameter if self.expert is None else parameter[self.expert]
        return (matrix.T if self.transposed else matrix)[self.row : self.row + self.d_out]

    def of_file(self, read: Callable[[str, int | None], Tensor]) -> Tensor:
        """This matrix, [d_out, d_in], where `read` gives a file's tensor, or one expert's matrix of it, by its name."""
        matrix = read(self.tensor, self.expert if self.fused else None)
        return matrix.T.contiguous() if self.transposed else matrix


@dataclass(frozen=True)
class Model:
    """What stages know of a model.

    Attributes:
        folder: the Hugging Face directory.
        blocks: the prunable layers of each block.
        left_dense: parameters of the blocks that are matrices but are not pruned.
        tensors: SHA-256 of every tensor's bytes.
        files: SHA-256 of the configuration, tokenizer and other small files.
        source: what the configuration calls it: a hub id, a directory or `embedded`.
        revision: the commit hash of a hub id.
        trust_remote_code: whether the code that lies beside its weights may run.
    """

    folder: str
    blocks: list[list[Layer]]
    left_dense: list[str]
    tensors: dict[str, str]
    files: dict[str, str]
    source: str
    revision: str | None = None
    trust_remote_code: bool = False

    @property
    def base(self) -> dict[str, Any]:
        """What mask files and checkpoints say of the model that they were made from."""
        names = ("source", "revision", "trust_remote_code", "folder", "fingerprint", "tensors")
        return {name: getattr(self, name) for name in names}

    @property
    def checkpoint(self) -> Checkpoint:
        return Checkpoint(Path(self.folder))

    @property
    def fingerprint(self) -> str:
        """A digest of all weights, by which artifacts know their model."""
        return hashlib.sha256(json.dumps(self.tensors, sort_keys=True).encode()).hexdigest()[:16]

    def weight(self, layer: Layer) -> Tensor:
        """The weight of one layer, [d_out, d_in] in its stored dtype."""
        return layer.of_file(self.checkpoint.tensor)


def by_tensor(layers: list[Layer], matrices: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Masks or weights of a block's layers, [d_out, d_in] by layer name, as its files hold them: by the name of their
    tensor, in its shape."""
    found: dict[str, Tensor] = {}
    experts: dict[str, list[Tensor]] = {}
    for layer in layers:
        matrix = matrices[layer.name].T.contiguous() if layer.transposed else matrices[layer.name]
        if layer.fused:
            experts.setdefault(layer.tensor, []).append(matrix)
        else:
            found[layer.tensor] = matrix
    return found | {name: torch.stack(of_experts) for name, of_experts in experts.items()}
