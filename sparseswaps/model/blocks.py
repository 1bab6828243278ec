"""The decoder blocks of any transformers causal language model, and the matrices in them that can be pruned.

Nothing here knows a model family: the blocks are the module list that is as long as the configuration says the model
is deep; what is pruned are their linear layers, and the experts that transformers holds in one parameter for all.
"""

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.pytorch_utils import Conv1D

from sparseswaps.base.errors import InputError, reason
from sparseswaps.base.progress import Report, ignore_progress
from sparseswaps.model.checkpoint import Checkpoint
from sparseswaps.model.description import Layer, Model
from sparseswaps.model.directory import companion_files

Shapes = Mapping[str, tuple[int, ...]]


def depth(config: PretrainedConfig) -> int:
    """The number of decoder blocks that a model's configuration announces."""
    return config.get_text_config().num_hidden_layers


def find_blocks(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """The decoder blocks and their dotted name. Raises InputError when the model has no such list."""
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth(model.config):
            return name, module
    raise InputError(f"{type(model).__name__}: found no list of {depth(model.config)} decoder blocks")


def linear_layers(block: nn.Module) -> dict[str, nn.Linear | Conv1D]:
    """The linear layers of a block by their name within it, but for those that choose what a token goes through: what
    is called a router, and what stands beside experts and has an output for each of them, or one (the gate of a shared
    expert)."""
    found = {name: module for name, module in block.named_modules() if isinstance(module, nn.Linear | Conv1D)}
    groups = {}  # of experts, and how many there are
    for name, module in block.named_modules():
        if isinstance(module, nn.ModuleList):
            groups[name] = len(module)
        for parameter in module.parameters(recurse=False):
            if parameter.ndim == 3 and not isinstance(module, nn.Conv1d):
                groups[name] = len(parameter)
    for name, experts in groups.items():
        beside = f"{name.rpartition('.')[0]}." if "." in name else ""
        for other in [other for other in found if other.startswith(beside) and not other.startswith(f"{name}.")]:
            if found[other].weight.shape[0] in (1, experts):
                del found[other]
    return {name: module for name, module in found.items() if "router" not in name}


def expert_modules(block: nn.Module) -> dict[str, nn.Module]:
    """The modules of a block that hold all experts in parameters of three dimensions, by their name within it.

    They are those that transformers' `use_experts_implementation` describes; `expert_parameters` are their matrices.
    """
    return {
        name: module
        for name, module in block.named_modules()
        if hasattr(module, "has_gate") and hasattr(module, "is_transposed") and hasattr(module, "num_experts")
    }


def expert_parameters(experts: nn.Module) -> tuple[str, str]:
    """The names of the parameters that an expert's input goes through: first and last."""
    return "gate_up_proj" if experts.has_gate else "up_proj", "down_proj"


def layers_of(model: PreTrainedModel, shapes: Shapes | None = None) -> list[list[Layer]]:
    """The prunable layers of every block.

    Args:
        model: on any device, the meta device too.
        shapes: the shape of each tensor of the model's files, by name; layers that lie otherwise in them than can be
            understood are left out. None: as `save_pretrained` would write them.
    """
    prefix, blocks = find_blocks(model)
    if shapes is None:
        state = {name: torch.empty_like(tensor, device="meta") for name, tensor in model.named_parameters()}
        shapes = {name: tuple(tensor.shape) for name, tensor in revert_weight_conversion(model, state).items()}
    return [_layers_of_block(model, f"{prefix}.{index}", block, shapes) for index, block in enumerate(blocks)]


def _layers_of_block(model: PreTrainedModel, place: str, block: nn.Module, shapes: Shapes) -> list[Layer]:
    transposed = {f"{name}.weight": isinstance(module, Conv1D) for name, module in linear_layers(block).items()}
    for name, module in expert_modules(block).items():
        transposed |= {f"{name}.{parameter}": module.is_transposed for parameter in expert_parameters(module)}
    found = []
    for parameter, turned in transposed.items():
        shape = tuple(block.get_parameter(parameter).shape)
        numbers = torch.arange(math.prod(shape[:-1])).view(*shape[:-1], 1)
        pieces = revert_weight_conversion(model, {f"{place}.{parameter}": numbers})
        whole = [name for name, part in pieces.items() if torch.equal(part, numbers)]
        names = [name for own in (f"{place}.{parameter}", *whole) for name in _names(model, own)]
        own = next((name for name in names if name in shapes), None)
        if own is None:
            found += _pieces(model, place, parameter, shape, pieces, shapes)
        elif shapes[own] == shape:
            d_out, d_in = reversed(shape[-2:]) if turned else shape[-2:]
            if len(shape) == 2:
                found.append(Layer(parameter.removesuffix(".weight"), own, parameter, d_out, d_in, turned))
            else:
                module, _, leaf = parameter.rpartition(".")
                found += [
                    Layer(f"{module}.{expert}.{leaf}", own, parameter, d_out, d_in, turned, expert, fused=True)
                    for expert in range(shape[0])
                ]
    return found


def _names(model: PreTrainedModel, parameter: str) -> tuple[str, str]:
    """What files may call a parameter: those that were saved without the head, as gpt2 was, have a shorter name."""
    return parameter, parameter.removeprefix(f"{model.base_model_prefix}.")


def _pieces(
    model: PreTrainedModel,
    place: str,
    parameter: str,
    shape: tuple[int, ...],
    pieces: dict[str, Tensor],
    shapes: Shapes,
) -> list[Layer]:
    """The layers of a parameter that files hold in pieces, as transformers would save it: the numbers of its rows are
    found again in the pieces. Empty when these are not all there, each with whole, successive rows."""
    found = []
    for tensor, numbers in pieces.items():
        tensor = next((name for name in _names(model, tensor) if name in shapes), tensor)
        d_out, d_in = len(numbers), shape[-1]
        expert, row = divmod(int(numbers.flatten()[0]), shape[-2])
        successive = torch.arange(d_out)[:, None] + (expert * shape[-2] + row)
        if shapes.get(tensor) != (d_out, d_in) or not torch.equal(numbers, successive):
            return []
        name = tensor.split(f".{place.rpartition('.')[2]}.", 1)[-1].removesuffix(".weight")
        found.append(Layer(name, tensor, parameter, d_out, d_in, expert=expert if len(shape) == 3 else None, row=row))
    return found if sum(layer.d_out for layer in found) == math.prod(shape[:-1]) else []


def put_weights(block: nn.Module, layers: list[Layer], weights: dict[str, Tensor]) -> None:
    """Give a block's layers new weights, [d_out, d_in] by layer name; those that have none keep theirs."""
    for layer in layers:
        if layer.name in weights:
            layer.of_parameter(block.get_parameter(layer.parameter).data).copy_(weights[layer.name])


def left_dense(block: nn.Module, layers: list[Layer]) -> list[str]:
    """The parameters of a block that are matrices and belong to none of its layers; experts' biases are none."""
    pruned = {layer.parameter for layer in layers}
    matrices = [name for name, parameter in block.named_parameters() if parameter.ndim >= 2]
    return [name for name in matrices if name not in pruned and not name.endswith("bias")]


def skeleton(folder: Path, trust_remote_code: bool, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """A model in eval mode without its weights: parameters are on the meta device, buffers as they are computed.

    Raises InputError when transformers cannot build it.
    """
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        dtype = dtype or config.dtype or torch.float32
        with init_empty_weights(include_buffers=False):
            model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code)
    except Exception as error:  # whatever a broken configuration sets off in transformers
        raise InputError(f"{folder}: transformers cannot build it: {reason(error)}") from None
    return model.eval()


def describe(folder: Path, trust_remote_code: bool = False, progress: Report = ignore_progress) -> Model:
    """Read, check and hash a model directory; the model is built without memory for its weights.

    Args:
        folder: in Hugging Face layout.
        trust_remote_code: whether Python code in it may run.
        progress: is told how many tensors are hashed, and of how many megabytes.

    Raises:
        InputError: it is not a safetensors checkpoint of a causal language model, a linear layer's weight is missing or
            of another shape, or a tensor holds NaN or Inf.
    """
    checkpoint = Checkpoint(folder)
    shapes = checkpoint.shapes()
    model = skeleton(folder, trust_remote_code)
    prefix, blocks = find_blocks(model)
    layers = layers_of(model, shapes)
    for index, block in enumerate(blocks):
        pruned = {layer.parameter for layer in layers[index]}
        for name, module in linear_layers(block).items():
            if f"{name}.weight" not in pruned:
                place, expected = f"{prefix}.{index}.{name}.weight", tuple(module.weight.shape)
                pieces = revert_weight_conversion(model, {place: module.weight})
                if len(pieces) > 1 and any(piece in shapes for piece in pieces):
                    continue  # it is there, in pieces that are not whole rows: left dense
                there = next((shapes[tensor] for tensor in _names(model, place) if tensor in shapes), None)
                said = f"{place} is {there}, its configuration says {expected}"
                if there is None:
                    said = f"holds no tensor {place!r}, which its configuration calls for"
                raise InputError(f"{folder}: {said}")
    if not any(layers):
        raise InputError(
            f"{folder}: its decoder blocks hold neither linear layers nor experts, so nothing can be pruned"
        )
    return Model(
        folder=str(folder),
        blocks=layers,
        left_dense=[f"{prefix}.{i}.{name}" for i, block in enumerate(blocks) for name in left_dense(block, layers[i])],
        tensors=checkpoint.hashes(progress),
        files={name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in companion_files(folder)},
        source=str(folder),
        trust_remote_code=trust_remote_code,
    )
