"""The decoder blocks of any transformers causal language model, and the layers in them that can be pruned.

Nothing here knows a model family: the blocks are the module list that is as long as the configuration says the model
is deep, and their linear layers are what is pruned.
"""

import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from sparseswaps.checkpoint import Checkpoint
from sparseswaps.errors import InputError, reason
from sparseswaps.model import Layer, Model
from sparseswaps.modeldir import companion_files


def depth(config: PretrainedConfig) -> int:
    """The number of decoder blocks that a model's configuration announces."""
    return config.get_text_config().num_hidden_layers


def find_blocks(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """The decoder blocks and their dotted name. Raises InputError when the model has no such list."""
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth(model.config):
            return name, module
    raise InputError(f"{type(model).__name__}: found no list of {depth(model.config)} decoder blocks")


def prunable_layers(block: nn.Module) -> dict[str, nn.Linear | Conv1D]:
    """The linear layers of a block by their name within it, in the order of their definition."""
    return {name: module for name, module in block.named_modules() if isinstance(module, nn.Linear | Conv1D)}


def as_layer(name: str, module: nn.Linear | Conv1D) -> Layer:
    """The description of a linear layer; GPT-2's `Conv1D` holds its weight as [d_in, d_out]."""
    transposed = isinstance(module, Conv1D)
    d_out, d_in = reversed(module.weight.shape) if transposed else module.weight.shape
    return Layer(name, d_out, d_in, transposed)


def put_masks(block: nn.Module, masks: dict[str, Tensor]) -> None:
    """Set the pruned weights of a block to zero; `masks` are boolean [d_out, d_in] by layer name."""
    layers = prunable_layers(block)
    for name, mask in masks.items():
        pruned = ~as_layer(name, layers[name]).in_file(mask)
        layers[name].weight.data.masked_fill_(pruned.to(layers[name].weight.device), 0)


def left_dense(block: nn.Module) -> list[str]:
    """Parameters of a block that look like matrices but belong to no linear layer: they cannot be pruned yet."""
    linear = {id(module.weight) for module in prunable_layers(block).values()}
    return [name for name, p in block.named_parameters() if p.ndim >= 2 and id(p) not in linear]


def describe(folder: Path, trust_remote_code: bool = False) -> Model:
    """Read, check and hash a model directory; the model is built without memory for its weights.

    Args:
        folder: in Hugging Face layout.
        trust_remote_code: whether Python code in it may run.

    Raises:
        InputError: it is not a safetensors checkpoint of a causal language model, a layer's weight is missing or of
            another shape, or a tensor holds NaN or Inf.
    """
    checkpoint = Checkpoint(folder)
    names = checkpoint.files
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    except Exception as error:  # whatever a broken configuration sets off in transformers
        raise InputError(f"{folder}: transformers cannot build it: {reason(error)}") from None
    prefix, blocks = find_blocks(model)
    if not any(name.startswith(prefix) for name in names):  # saved without its head, as gpt2 was
        prefix = prefix.removeprefix(f"{model.base_model_prefix}.")
    described = Model(
        folder=str(folder),
        prefix=prefix,
        blocks=[[as_layer(name, module) for name, module in prunable_layers(block).items()] for block in blocks],
        left_dense=[f"{prefix}.{i}.{name}" for i, block in enumerate(blocks) for name in left_dense(block)],
        tensors=checkpoint.hashes(),
        files={name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in companion_files(folder)},
        source=str(folder),
        trust_remote_code=trust_remote_code,
    )
    if not any(described.blocks):
        raise InputError(f"{folder}: its decoder blocks hold no linear layer, which is all that can be pruned yet")
    for index, layers in enumerate(described.blocks):
        for layer in layers:
            if (name := described.tensor_name(index, layer.name)) not in names:
                raise InputError(f"{folder}: holds no tensor {name!r}, which its configuration calls for")
            expected = (layer.d_in, layer.d_out) if layer.transposed else (layer.d_out, layer.d_in)
            if (shape := checkpoint.shape(name)) != expected:
                raise InputError(f"{folder}: {name} is {shape}, its configuration says {expected}")
    return described
