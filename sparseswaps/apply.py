"""Mask files on models in memory: prune a fresh copy of the base model, and keep it pruned while it is trained."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook
from torch.utils.hooks import RemovableHandle

from sparseswaps.artifacts import read_mask_file
from sparseswaps.errors import InputError

_STORED = (torch.bfloat16, torch.float16, torch.float32)  # what a base's tensors may have been before they were loaded


def apply_masks(model: nn.Module, path: str | Path) -> dict[str, Tensor]:
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
    parameters, prefix = dict(model.named_parameters()), getattr(model, "base_model_prefix", "")
    masks = {}
    for name, mask in of_base.items():
        here = name if name in parameters else f"{prefix}.{name}"  # files that lack the head name tensors shorter
        if here not in parameters:
            raise InputError(f"{path}: its base model has a parameter {name}, this one has not")
        parameter = parameters[here].detach()
        if parameter.shape != mask.shape or not _is_bytes_of(parameter, base["tensors"][name]):
            raise InputError(f"{path}: {here} has not the values of the base model {base['source']}")
        masks[here] = mask.to(parameter.device)
    for name, mask in masks.items():
        parameters[name].data.masked_fill_(~mask, 0)
    return masks


def keep_zeros(model: nn.Module, masks: dict[str, Tensor]) -> RemovableHandle:
    """From now on set pruned weights back to zero after every step of any optimizer that trains them.

    Args:
        model: a pruned model.
        masks: what `apply_masks` returned for it.

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
