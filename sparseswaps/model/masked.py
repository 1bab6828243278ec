"""Models pruned in memory by a mask file, and kept pruned while they are trained."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from sparseswaps.base.errors import InputError
from sparseswaps.model.blocks import find_blocks, find_layers
from sparseswaps.model.description import Model
from sparseswaps.model.directory import RunDtype
from sparseswaps.model.layers import Layer
from sparseswaps.model.loading import load_model
from sparseswaps.model.mask_file import Masks, read_mask_file

_STORED = (torch.bfloat16, torch.float16, torch.float32)  # possible dtypes of the base's files, before loading


def apply_masks(model: PreTrainedModel, path: str | Path) -> dict[str, Tensor]:
    """Prune a fresh copy of the base model by a `masks.safetensors` that the workflow wrote.

    Args:
        model: the base model, on any device, in its own dtype or loaded into a wider dtype; pruned in place.
        path: the mask file.

    Returns:
        The boolean mask (True = kept) of each pruned parameter by its name in `model`, on its device.

    Raises:
        InputError: the file is not a mask file of a whole model, or `model` is not the file's base model: a parameter
            is missing, or has other values than in the base. Nothing is pruned then.
    """
    stored_masks, base = read_mask_file(path)
    prefix, blocks = find_blocks(model)
    masks: dict[str, Tensor] = {}
    missing = set(stored_masks)
    for index, layers in enumerate(find_layers(model, stored_masks.shapes)):
        for layer in layers:
            parameter = blocks[index].get_parameter(layer.parameter).detach()
            name = f"{prefix}.{index}.{layer.parameter}"
            if layer.tensor in missing:  # a tensor of all experts is checked once
                missing.remove(layer.tensor)
                weight = parameter if layer.fused or layer.transposed else layer.view_in(parameter)  # as in the file
                if not _has_digest(weight, base["tensors"][layer.tensor]):
                    raise InputError(f"{path}: {name} has other values than the base {base['source']}; load that one")
            if name not in masks:
                masks[name] = torch.ones(parameter.shape, dtype=torch.bool, device=parameter.device)
            layer.view_in(masks[name]).copy_(stored_masks.mask_of_layer(layer))
    if missing:
        raise InputError(f"{path}: this model lacks {min(missing)} of the base model {base['source']}; load that one")
    for name, mask in masks.items():
        model.get_parameter(name).data.masked_fill_(~mask, 0)
    return masks


def prune_block(block: nn.Module, layers: list[Layer], masks: Masks) -> None:
    """Prune the layers of a block, in place on its device, by the masks of a whole model's file."""
    for layer in layers:
        if layer.tensor in masks:
            mask = masks.mask_of_layer(layer)
            weight = block.get_parameter(layer.parameter).detach()
            layer.view_in(weight).masked_fill_(~mask.to(weight.device), 0)


def load_pruned(description: Model, masks: Masks | None, device: str, dtype: RunDtype = "float32") -> PreTrainedModel:
    """Load a model as `load_model` does, and prune it by masks of its own; raise InputError as `load_model` does."""
    model = load_model(description.folder, device, description.trust_remote_code, dtype)
    for block, layers in zip(find_blocks(model)[1], description.blocks, strict=True) if masks else ():
        prune_block(block, layers, masks)
    return model


def keep_zeros(model: nn.Module, masks: dict[str, Tensor]) -> RemovableHandle:
    """Set pruned weights back to zero after every step of any optimizer that trains them.

    Args:
        model: a pruned model.
        masks: the masks that `prune` or `apply_masks` returned: boolean, True where kept, by parameter name.

    Returns:
        A handle whose `remove()` ends this.
    """
    pruned = {parameter: ~masks[name] for name, parameter in model.named_parameters() if name in masks}

    def restore(optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter in pruned:
                    pruned[parameter] = pruned[parameter].to(parameter.device)  # the model may have moved since
                    parameter.data.masked_fill_(pruned[parameter], 0)

    return register_optimizer_step_post_hook(restore)


def _has_digest(tensor: Tensor, digest: str) -> bool:
    """Return whether a tensor has this SHA-256 in its own dtype, or in a narrower dtype that holds its values."""
    for dtype in dict.fromkeys((tensor.dtype, *_STORED)):
        stored = tensor.to(dtype)
        if torch.equal(stored.to(tensor.dtype), tensor):
            raw = stored.contiguous().cpu().flatten().view(torch.uint8).numpy()
            if hashlib.sha256(raw).hexdigest() == digest:
                return True
    return False
