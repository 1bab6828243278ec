"""Masks that another program or study made: the zeros of a checkpoint, or a mask file."""

from collections.abc import Callable
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from sparseswaps.base.errors import InputError
from sparseswaps.model.checkpoint import Checkpoint
from sparseswaps.model.description import Model
from sparseswaps.model.layers import Layer
from sparseswaps.model.mask_file import read_mask_file


def import_masks(path: str | Path, model: Model) -> Callable[[Layer], Tensor]:
    """Return a function from a layer of `model` to its mask in `path`, boolean [d_out, d_in], True where kept.

    `path` is a directory in Hugging Face layout whose pruned weights are zero, of any dtype; or the mask file of a
    whole model, in which layers without a mask are dense. Raises InputError when a layer is missing or has another
    shape, or when the mask file is broken or belongs to another model.
    """
    return _import_zeros(Path(path), model) if Path(path).is_dir() else _import_mask_file(Path(path), model)


def _import_zeros(folder: Path, model: Model) -> Callable[[Layer], Tensor]:
    pruned = Checkpoint(folder)
    shapes, expected = pruned.shapes(), model.checkpoint.shapes()
    # Files that were saved without the head, as gpt2 was, lack the first part of other files' names.
    prefixed = {name.partition(".")[2]: name for name in shapes}
    names = {}  # of the pruned tensors, by the model's name
    for tensor in dict.fromkeys(layer.tensor for layer in chain.from_iterable(model.blocks)):
        choices = (tensor, tensor.partition(".")[2], prefixed.get(tensor))
        name = next((choice for choice in choices if choice in shapes), None)
        if name is None:
            raise InputError(f"{folder}: holds no tensor {tensor!r}, which model {model.source} has")
        if shapes[name] != expected[tensor]:
            raise InputError(f"{folder}: {name} is {shapes[name]}, in model {model.source} it is {expected[tensor]}")
        names[tensor] = name
    return lambda layer: layer.read_with(lambda tensor, expert: pruned.tensor(names[tensor], expert)) != 0


def _import_mask_file(path: Path, model: Model) -> Callable[[Layer], Tensor]:
    masks, base = read_mask_file(path)
    if any(model.tensors.get(name) != digest for name, digest in base["tensors"].items()):
        raise InputError(f"{path}: belongs to another model, {base['source']}, not to {model.source}")

    def import_mask(layer: Layer) -> Tensor:
        if layer.tensor in masks:
            return masks.mask_of_layer(layer)
        return torch.ones(layer.d_out, layer.d_in, dtype=torch.bool)

    return import_mask
