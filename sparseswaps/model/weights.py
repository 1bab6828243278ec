"""A model's weights on the device where its blocks run: all in memory, or read from files block by block."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Protocol

import torch
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    convert_and_load_state_dict_in_model,
    rename_source_key,
)
from transformers.modeling_utils import LoadStateDictConfig
from transformers.utils import logging

from sparseswaps.base.errors import InputError
from sparseswaps.model.blocks import find_blocks, find_layers, skeleton
from sparseswaps.model.description import Model
from sparseswaps.model.layers import Layer


class Weights(Protocol):
    """A causal language model whose weights are on the device while they are needed.

    Attributes:
        model: the model, in eval mode.
        layers: the prunable layers of each block.
        device: the device that computes.
    """

    model: PreTrainedModel
    layers: list[list[Layer]]
    device: torch.device

    def stem(self) -> AbstractContextManager[None]:
        """Keep everything that comes before the blocks on the device."""
        ...

    def block(self, index: int) -> AbstractContextManager[None]:
        """Keep a block on the device."""
        ...


class WeightsInMemory:
    """`Weights` of a loaded model."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model, self.layers, self.device = model, find_layers(model), model.device

    def stem(self) -> AbstractContextManager[None]:
        return nullcontext()

    def block(self, index: int) -> AbstractContextManager[None]:
        return nullcontext()


class WeightsOnDisk:
    """`Weights` that are read from a model's files, one part at a time, and dropped after use.

    The model computes in float32 on the CPU, and in its configuration's dtype on other devices. transformers reads the
    files, so a block is the same as after `from_pretrained`: fused, renamed or kept in float32.
    """

    def __init__(self, description: Model, device: str) -> None:
        """Raises InputError when transformers cannot build the model."""
        logging.disable_progress_bar()  # else transformers shows a bar for every block
        self.device = torch.device(device)
        self.checkpoint = description.checkpoint
        self.layers = description.blocks
        dtype = torch.float32 if device == "cpu" else None
        self.model = skeleton(self.checkpoint.folder, description.trust_remote_code, dtype)
        self._blocks_name, self._blocks = find_blocks(self.model)
        self._head = self.model.get_output_embeddings()  # None if the model has no head
        self._mapping = get_model_conversion_mapping(self.model)
        self._parts = self._sort_tensors()

    def _sort_tensors(self) -> dict[int | None, list[str]]:
        """Return the names of the files' tensors by block. The key None holds the names of the stem."""
        renamings = [entry for entry in self._mapping if isinstance(entry, WeightRenaming)]
        converters = [entry for entry in self._mapping if isinstance(entry, WeightConverter)]
        known = self.model.state_dict()
        names = {module: name for name, module in self.model.named_modules()}
        head, embeddings = names.get(self._head), names[self.model.get_input_embeddings()]
        parts: dict[int | None, list[str]] = {}
        others: dict[str, list[str]] = defaultdict(list)
        for name in self.checkpoint.files:
            renamed, _ = rename_source_key(name, renamings, converters, self.model.base_model_prefix, known)
            if renamed.startswith(f"{self._blocks_name}."):
                index = int(renamed.removeprefix(f"{self._blocks_name}.").partition(".")[0])
                parts.setdefault(index, []).append(name)
            else:
                others[renamed.rpartition(".")[0]].append(name)
        tied = self.model.config.get_text_config().tie_word_embeddings
        if embeddings in others or not tied:  # else the files hold the head's weight for both
            others.pop(head, None)
        parts[None] = [name for tensors in others.values() for name in tensors]
        return parts

    @contextmanager
    def stem(self) -> Iterator[None]:
        """Raises InputError when the files lack a parameter."""
        others = {*self._blocks.modules(), self._head}
        with self._loaded(None, [module for module in self.model.modules() if module not in others]):
            yield

    @contextmanager
    def block(self, index: int) -> Iterator[None]:
        """Raises InputError when the files lack a parameter."""
        with self._loaded(index, list(self._blocks[index].modules())):
            yield

    @contextmanager
    def _loaded(self, part: int | None, modules: list[nn.Module]) -> Iterator[None]:
        names = {module: name for name, module in self.model.named_modules()}
        embeddings = self.model.get_input_embeddings()
        try:
            self._load(self._parts.get(part, []))
            if embeddings in modules and embeddings.weight.is_meta and self._head is not None:
                embeddings.weight = self._head.weight
            for module in modules:
                for name, parameter in module._parameters.items():
                    if parameter is not None and parameter.is_meta:
                        raise InputError(f"{self.checkpoint.folder}: lacks {names[module]}.{name}")
                for name, buffer in module._buffers.items():
                    module._buffers[name] = None if buffer is None else buffer.to(self.device)
            yield
        finally:
            for module in [*modules, *([self._head] if part is None and self._head is not None else [])]:
                for name, parameter in module._parameters.items():
                    if parameter is not None:
                        empty = torch.empty_like(parameter, device="meta")
                        module._parameters[name] = nn.Parameter(empty, requires_grad=False)

    def _load(self, tensors: list[str]) -> None:
        """Put tensors of the files into the model. The files stay mapped into memory until the function returns."""
        dtype = self.model.dtype
        settings = LoadStateDictConfig(
            device_map={"": self.device},
            dtype=dtype,
            dtype_plan=self.model._get_dtype_plan(dtype),
            weight_mapping=self._mapping,
        )
        with ExitStack() as files:
            opened = {
                name: files.enter_context(safe_open(self.checkpoint.folder / name, framework="pt"))
                for name in {self.checkpoint.files[tensor] for tensor in tensors}
            }
            slices = {tensor: opened[self.checkpoint.files[tensor]].get_slice(tensor) for tensor in tensors}
            result, _ = convert_and_load_state_dict_in_model(self.model, slices, settings)
        if result.conversion_errors or result.mismatched_keys:
            wrong = sorted([*result.conversion_errors, *(name for name, *_ in result.mismatched_keys)])
            raise InputError(f"{self.checkpoint.folder}: transformers cannot load {', '.join(wrong)}")
