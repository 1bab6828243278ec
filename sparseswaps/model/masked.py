"""Mask files on models in memory: prune a fresh copy of the base model, and keep it pruned while it is trained."""

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
from sparseswaps.model.loading import load_model
from sparseswaps.model.mask_file import read_mask_file

_STORED = (torch.bfloat16, torch.float16, torch.float32)  # what a base's tensors may have been before they were loaded


def apply_masks(model: PreTrainedModel, path: str | Path) -> dict[str, Tensor]:
    """Prune a fresh copy of the base model by a `masks.safetensors` that the workflow wrote.

    Args:
        model: the base model, on any device, in its own dtype or loaded into a wider one; pruned in place.
        path: the mask file.

    Returns:
        The boolean mask (True = kept) of each pruned parameter by its name in `model`, on its device.

    Raises:
        InputError: the file is no mask file of a whole model, or `model` is not the base that it was made for: a
            parameter is missing, or has other values than the base's. Nothing is pruned then.
    """
    of_base, base = read_mask_file(path)
    prefix, blocks = find_blocks(model)
    masks: dict[str, Tensor] = {}
    found = set()
    for index, layers in enumerate(find_layers(model, of_base.shapes)):
        for layer in layers:
            parameter = blocks[index].get_parameter(layer.parameter).detach()
            here = f"{prefix}.{index}.{layer.parameter}"
            whole = masks.setdefault(here, torch.ones(parameter.shape, dtype=torch.bool, device=parameter.device))
            if layer.fused and layer.tensor in found:  # all experts at once
                continue
            if layer.fused:
                stored, part = parameter, whole
            else:
                stored, part = (layer.view_in(t) for t in (parameter, whole))
                stored, part = (stored.T, part.T) if layer.transposed else (stored, part)
            if not _is_bytes_of(stored, base["tensors"][layer.tensor]):
                raise InputError(f"{path}: {here} has not the values of the base model {base['source']}")
            part.copy_(of_base[layer.tensor])
            found.add(layer.tensor)
    if absent := sorted(set(of_base) - found):
        raise InputError(f"{path}: its base model has a parameter {absent[0]}, this one has not")
    parameters = dict(model.named_parameters())
    for name, mask in masks.items():
        parameters[name].data.masked_fill_(~mask, 0)
    return masks


def load_pruned(folder: str, masks: str | Path | None, device: str, trust_remote_code: bool = False) -> PreTrainedModel:
    """The model of a directory as `load_model` loads it, with the masks of a mask file on it if one is given.

    Raises InputError as `load_model` and `apply_masks` do.
    """
    model = load_model(folder, device, trust_remote_code)
    if masks is not None:
        try:
            apply_masks(model, masks)
        except InputError as error:
            raise InputError(
                f"{error} (loaded as {model.dtype}; if its files hold more than that, set checkpoints: true)"
            ) from None
    return model


def keep_zeros(model: nn.Module, masks: dict[str, Tensor]) -> RemovableHandle:
    """From now on set pruned weights back to zero after every step of any optimizer that trains them.

    Args:
        model: a pruned model.
        masks: those of `prune`, or what `apply_masks` returned: boolean, True where kept, by parameter name.

    Returns:
        A handle whose `remove()` ends it.
    """
    pruned = {parameter: ~masks[name] for name, parameter in model.named_parameters() if name in masks}

    def restore(optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter in pruned:
                    pruned[parameter] = pruned[parameter].to(parameter.device)  # the model may have moved since
                    parameter.data.masked_fill_(pruned[parameter], 0)

    return register_optimizer_step_post_hook(restore)


def _is_bytes_of(tensor: Tensor, digest: str) -> bool:
    """Whether a tensor, in its dtype or in one that it was widened from, has the bytes of this SHA-256."""
    for dtype in dict.fromkeys((tensor.dtype, *_STORED)):
        stored = tensor.to(dtype)
        if torch.equal(stored.to(tensor.dtype), tensor):
            raw = stored.contiguous().cpu().flatten().view(torch.uint8).numpy()
            if hashlib.sha256(raw).hexdigest() == digest:
                return True
    return False
