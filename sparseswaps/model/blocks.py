"""The decoder blocks of a transformers causal language model, and the matrices in them that can be pruned.

Nothing in this module knows a model family. The prunable matrices are the blocks' linear layers, and the experts that
transformers holds in one parameter for all.
"""

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.pytorch_utils import Conv1D

from sparseswaps.base.errors import InputError, transformers_message
from sparseswaps.model.layers import Layer

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]


def find_blocks(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """Find the decoder blocks and their dotted name. Raises InputError when the model has no such list."""
    depth = model.config.get_text_config().num_hidden_layers
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return name, module
    raise InputError(f"{type(model).__name__}: found no list of {depth} decoder blocks; it cannot be pruned")


def linear_layers(block: nn.Module) -> dict[str, nn.Linear | Conv1D]:
    """Find the prunable linear layers of a block, by their name within the block.

    Layers that choose a token's experts are left out: layers named router, and layers beside a group of experts with
    one output for each expert, or with one output (the gate of a shared expert).
    """
    linear = {name: module for name, module in block.named_modules() if isinstance(module, nn.Linear | Conv1D)}
    group_sizes = {}  # the number of experts in a group, by the group's module name
    for name, module in block.named_modules():
        if isinstance(module, nn.ModuleList):
            group_sizes[name] = len(module)
        for parameter in module.parameters(recurse=False):
            if parameter.ndim == 3 and not isinstance(module, nn.Conv1d):
                group_sizes[name] = len(parameter)
    for group, experts in group_sizes.items():
        parent = group[: group.rfind(".") + 1]  # with its dot
        for name in list(linear):
            beside = name.startswith(parent) and not name.startswith(f"{group}.")
            if beside and linear[name].weight.shape[0] in (1, experts):
                del linear[name]
    return {name: module for name, module in linear.items() if "router" not in name}


def expert_modules(block: nn.Module) -> dict[str, nn.Module]:
    """Find the modules of a block that hold all experts in parameters of three dimensions, by name within the block."""
    marks = ("has_gate", "is_transposed", "num_experts")  # set by transformers' `use_experts_implementation`
    modules = block.named_modules()
    return {name: module for name, module in modules if all(hasattr(module, mark) for mark in marks)}


def expert_parameters(experts: nn.Module) -> tuple[str, str]:
    """Return the names of an expert's first and last parameter, in the order of the forward pass."""
    return "gate_up_proj" if experts.has_gate else "up_proj", "down_proj"


def find_layers(model: PreTrainedModel, shapes: Shapes | None = None) -> list[list[Layer]]:
    """Find the prunable layers of every block of a model on any device, also on the meta device.

    `shapes` has the shape of each tensor of the model's files, by name. A layer is left out if the files hold it in an
    unknown arrangement. None: the files that `save_pretrained` would write.
    """
    prefix, blocks = find_blocks(model)
    if shapes is None:
        state = {name: torch.empty_like(tensor, device="meta") for name, tensor in model.named_parameters()}
        shapes = {name: tuple(tensor.shape) for name, tensor in revert_weight_conversion(model, state).items()}
    return [_block_layers(model, f"{prefix}.{index}", block, shapes) for index, block in enumerate(blocks)]


def _block_layers(model: PreTrainedModel, block_name: str, block: nn.Module, shapes: Shapes) -> list[Layer]:
    transposed = {f"{name}.weight": isinstance(module, Conv1D) for name, module in linear_layers(block).items()}
    for name, module in expert_modules(block).items():
        transposed |= {f"{name}.{parameter}": module.is_transposed for parameter in expert_parameters(module)}
    layers = []
    for parameter, is_transposed in transposed.items():
        shape = tuple(block.get_parameter(parameter).shape)
        # Each row holds its own number. In the converted tensors, the numbers show which rows went where.
        numbers = torch.arange(math.prod(shape[:-1])).view(*shape[:-1], 1)
        pieces = revert_weight_conversion(model, {f"{block_name}.{parameter}": numbers})
        unchanged = [name for name, piece in pieces.items() if torch.equal(piece, numbers)]
        names = [name for whole in (f"{block_name}.{parameter}", *unchanged) for name in _file_names(model, whole)]
        tensor = next((name for name in names if name in shapes), None)
        if tensor is None:
            layers += _layers_in_pieces(model, block_name, parameter, shape, pieces, shapes)
        elif shapes[tensor] == shape:
            d_out, d_in = reversed(shape[-2:]) if is_transposed else shape[-2:]
            if len(shape) == 2:
                name = parameter.removesuffix(".weight")
                layers.append(Layer(name, tensor, parameter, d_out, d_in, transposed=is_transposed))
            else:
                module, _, leaf = parameter.rpartition(".")
                for expert in range(shape[0]):
                    name = f"{module}.{expert}.{leaf}"
                    layers.append(
                        Layer(name, tensor, parameter, d_out, d_in, transposed=is_transposed, expert=expert, fused=True)
                    )
    return layers


def _file_names(model: PreTrainedModel, parameter: str) -> tuple[str, str]:
    """Return a parameter's possible names in files. Files saved without the head, as gpt2 was, lack a prefix."""
    return parameter, parameter.removeprefix(f"{model.base_model_prefix}.")


def _layers_in_pieces(
    model: PreTrainedModel, block_name: str, parameter: str, shape: Shape, pieces: dict[str, Tensor], shapes: Shapes
) -> list[Layer]:
    """Find the layers of a parameter that the files hold in several tensors, each of whole and consecutive rows.

    `pieces` are the row numbers [rows, 1] in each tensor that transformers would save. Returns no layers when a tensor
    is missing or holds other rows.
    """
    layers = []
    for tensor, numbers in pieces.items():
        tensor = next((name for name in _file_names(model, tensor) if name in shapes), tensor)
        d_out, d_in = len(numbers), shape[-1]
        first = int(numbers.flatten()[0])
        consecutive = torch.arange(first, first + d_out)[:, None]
        if shapes.get(tensor) != (d_out, d_in) or not torch.equal(numbers, consecutive):
            return []
        name = tensor.split(f".{block_name.rpartition('.')[2]}.", 1)[-1].removesuffix(".weight")
        expert, row = divmod(first, shape[-2]) if len(shape) == 3 else (None, first)
        layers.append(Layer(name, tensor, parameter, d_out, d_in, expert=expert, row=row))
    return layers if sum(layer.d_out for layer in layers) == math.prod(shape[:-1]) else []


def find_unpruned(model: PreTrainedModel, layers: list[list[Layer]]) -> list[str]:
    """Return the names of the blocks' matrices that belong to no layer. Biases of experts do not count as matrices."""
    prefix, blocks = find_blocks(model)
    names = []
    for index, block in enumerate(blocks):
        pruned = {layer.parameter for layer in layers[index]}
        for name, weight in block.named_parameters():
            if weight.ndim >= 2 and not name.endswith("bias") and name not in pruned:
                names.append(f"{prefix}.{index}.{name}")
    return names


def check_linear_layers(folder: Path, model: PreTrainedModel, layers: list[list[Layer]], shapes: Shapes) -> None:
    """Raise InputError when a folder's files lack a linear layer's weight or hold it in another shape.

    Raises InputError also when no block has a layer, so that nothing can be pruned.
    """
    prefix, blocks = find_blocks(model)
    for index, block in enumerate(blocks):
        pruned = {layer.parameter for layer in layers[index]}
        for name, module in linear_layers(block).items():
            if f"{name}.weight" not in pruned:
                _check_stored(folder, model, f"{prefix}.{index}.{name}.weight", module.weight, shapes)
    if not any(layers):
        raise InputError(f"{folder}: its decoder blocks hold no linear layers or experts, so nothing can be pruned")


def _check_stored(folder: Path, model: PreTrainedModel, parameter: str, weight: Tensor, shapes: Shapes) -> None:
    """Raise InputError unless the files hold a linear layer's weight in tensors that are not whole rows."""
    pieces = revert_weight_conversion(model, {parameter: weight})
    if len(pieces) > 1 and any(piece in shapes for piece in pieces):
        return  # the layer then stays dense
    for tensor in _file_names(model, parameter):
        if tensor in shapes:
            expected = tuple(weight.shape)
            raise InputError(f"{folder}: {parameter} is {shapes[tensor]}, its configuration says {expected}")
    raise InputError(f"{folder}: holds no tensor {parameter!r}, which its configuration calls for")


def put_weights(block: nn.Module, layers: list[Layer], weights: dict[str, Tensor]) -> None:
    """Copy new weights, [d_out, d_in] by layer name, into a block's layers. Layers without new weights stay as is."""
    for layer in layers:
        if layer.name in weights:
            layer.view_in(block.get_parameter(layer.parameter).data).copy_(weights[layer.name])


def skeleton(folder: Path, trust_remote_code: bool, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """Build a model in eval mode, with parameters on the meta device. Raises InputError when transformers cannot."""
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        dtype = dtype or config.dtype or torch.float32
        with init_empty_weights(include_buffers=False):
            model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code)
    except Exception as error:  # a broken configuration makes transformers raise anything
        raise InputError(f"{folder}: transformers cannot build it: {transformers_message(error)}") from None
    return model.eval()
