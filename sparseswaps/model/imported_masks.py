"""Masks that were made elsewhere, to start from: the zeros of a checkpoint, or a mask file."""

from collections.abc import Callable
from functools import lru_cache
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
    """The masks of a model's layers that files made elsewhere say.

    Args:
        path: a directory in Hugging Face layout whose pruned weights are zero, of any dtype; or the mask file of a
            whole model, in which layers without a mask are dense.
        model: what they are for.

    Returns:
        A function from a layer of `model` to its mask, boolean [d_out, d_in], True where kept; of a directory it reads
        no more than the layer's weights.

    Raises:
        InputError: the directory lacks a layer of the model or has it in another shape; the mask file is of another
            model, or none.
    """
    return (_zeros if Path(path).is_dir() else _mask_file)(Path(path), model)


def _zeros(folder: Path, model: Model) -> Callable[[Layer], Tensor]:
    theirs = Checkpoint(folder)
    found, expected = theirs.shapes(), model.checkpoint.shapes()
    # Files that were saved without the head, as gpt2 was, have names without the first part of others'.
    longer = {name.partition(".")[2]: name for name in found}
    names = {}
    for tensor in dict.fromkeys(layer.tensor for layer in chain.from_iterable(model.blocks)):
        choices = (tensor, tensor.partition(".")[2], longer.get(tensor))
        name = next((choice for choice in choices if choice in found), None)
        if name is None:
            raise InputError(f"{folder}: holds no tensor {tensor!r}, which model {model.source} has")
        if found[name] != expected[tensor]:
            raise InputError(f"{folder}: {name} is {found[name]}, in model {model.source} it is {expected[tensor]}")
        names[tensor] = name
    return lambda layer: layer.read_with(lambda tensor, expert: theirs.tensor(names[tensor], expert)) != 0


def _mask_file(path: Path, model: Model) -> Callable[[Layer], Tensor]:
    masks, base = read_mask_file(path)
    if any(model.tensors.get(name) != digest for name, digest in base["tensors"].items()):
        raise InputError(f"{path}: was made for another model than {model.source}, for {base['source']}")
    whole = lru_cache(maxsize=1)(masks.__getitem__)  # of all experts at once

    def mask(layer: Layer) -> Tensor:
        if layer.tensor not in masks:
            return torch.ones(layer.d_out, layer.d_in, dtype=torch.bool)
        return layer.read_with(lambda tensor, expert: whole(tensor) if expert is None else whole(tensor)[expert])

    return mask
