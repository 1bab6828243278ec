"""The description of a model's files. With a description, a job reads weights without building the model."""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from sparseswaps.base.progress import Report, ignore_progress
from sparseswaps.model.checkpoint import Checkpoint
from sparseswaps.model.directory import companion_files
from sparseswaps.model.layers import Layer


@dataclass
class Model:
    """The description of the files of a model in a Hugging Face directory."""

    folder: str
    blocks: list[list[Layer]]  # the prunable layers of each block
    left_dense: list[str]  # the names of the blocks' matrices that are not pruned
    tensors: dict[str, str]  # the SHA-256 of each tensor's bytes
    files: dict[str, str]  # the SHA-256 of each small file: configuration, tokenizer and others
    source: str  # the name in the configuration: a hub id, a directory or `embedded`
    revision: str | None = None  # the commit hash of a hub id
    trust_remote_code: bool = False  # whether Python code in the folder may run

    @property
    def base(self) -> dict[str, Any]:
        """The entry of the base model in mask files and pruned checkpoints."""
        names = ("source", "revision", "trust_remote_code", "folder", "fingerprint", "tensors")
        return {name: getattr(self, name) for name in names}

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """The tensors in the folder's files."""
        return Checkpoint(Path(self.folder))

    @property
    def fingerprint(self) -> str:
        """The digest of all weights that artifacts carry to name their model."""
        return hashlib.sha256(json.dumps(self.tensors, sort_keys=True).encode()).hexdigest()[:16]

    def weight(self, layer: Layer) -> Tensor:
        """Read the weight of one layer, [d_out, d_in] in its stored dtype."""
        return layer.read_with(self.checkpoint.tensor)


def describe(folder: Path, trust_remote_code: bool = False, progress: Report = ignore_progress) -> Model:
    """Check and hash the files of a model directory. The model is built without memory for its weights.

    `progress` is told the number of tensors hashed, and their megabytes. Raises InputError when the folder is not a
    safetensors checkpoint of a causal language model, a linear layer's weight is missing or of another shape, or a
    tensor holds NaN or Inf.
    """
    from sparseswaps.model import blocks  # imports transformers, which takes seconds; most jobs only read a description

    checkpoint = Checkpoint(folder)
    shapes = checkpoint.shapes()
    model = blocks.skeleton(folder, trust_remote_code)
    layers = blocks.find_layers(model, shapes)
    blocks.check_linear_layers(folder, model, layers, shapes)
    return Model(
        folder=str(folder),
        blocks=layers,
        left_dense=blocks.find_unpruned(model, layers),
        tensors=checkpoint.hashes(progress),
        files={name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in companion_files(folder)},
        source=str(folder),
        trust_remote_code=trust_remote_code,
    )
