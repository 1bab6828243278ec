"""The description of a model's files, by which stages read weights without building the model."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from sparseswaps.checkpoint import Checkpoint


@dataclass(frozen=True)
class Layer:
    """A linear layer of a decoder block: its name within the block and its weight's shape [d_out, d_in].

    Masks and weights are [d_out, d_in] everywhere but in the model's files, where a `transposed` layer's tensor is
    [d_in, d_out] (GPT-2's Conv1D).
    """

    name: str
    d_out: int
    d_in: int
    transposed: bool

    def in_file(self, matrix: Tensor) -> Tensor:
        """A matrix [d_out, d_in] of this layer in the shape of its tensor, or the other way round."""
        return matrix.T.contiguous() if self.transposed else matrix


@dataclass(frozen=True)
class Model:
    """What stages know of a model.

    Attributes:
        folder: the Hugging Face directory.
        prefix: dotted name of the list of decoder blocks in the names of tensors.
        blocks: the prunable layers of each block.
        left_dense: parameters of the blocks that are matrices but cannot be pruned.
        tensors: SHA-256 of every tensor's bytes.
        files: SHA-256 of the configuration, tokenizer and other small files.
        source: what the configuration calls it: a hub id, a directory or `embedded`.
        revision: the commit hash of a hub id.
        trust_remote_code: whether the code that lies beside its weights may run.
    """

    folder: str
    prefix: str
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

    def tensor_name(self, block: int, layer: str) -> str:
        return f"{self.prefix}.{block}.{layer}.weight"

    def weight(self, block: int, layer: Layer) -> Tensor:
        """The weight of one layer, [d_out, d_in] in its stored dtype."""
        return layer.in_file(self.checkpoint.tensor(self.tensor_name(block, layer.name)))
