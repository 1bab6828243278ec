"""A model's weights on the device where its blocks run: all in memory, or read from files block by block."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

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
from sparseswaps.model.directory import RunDtype


class WeightsInMemory:
    """A loaded model, and the prunable layers of each block. `device` is the device that computes."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model, self.layers, self.device = model, find_layers(model), model.device

    def stem(self) -> AbstractContextManager[None]:
        return nullcontext()

    def ends(self) -> AbstractContextManager[None]:
        return nullcontext()

    def block(self, index: int) -> AbstractContextManager[None]:
        return nullcontext()


class WeightsOnDisk:
    """Like `WeightsInMemory`, but weights are read from a model's files, one part at a time, and dropped after use.

    The model computes in float32, or in the dtype of its configuration (`dtype="checkpoint"`). transformers reads the
    files, so a block is the same as after `from_pretrained`: fused, renamed or kept in float32.
    """

    def __init__(self, description: Model, device: str, dtype: RunDtype = "float32") -> None:
        """Raises InputError when transformers cannot build the model."""
        logging.disable_progress_bar()  # else transformers shows a bar for every block
        self.device, self.checkpoint, self.layers = torch.device(device), description.checkpoint, description.blocks
        chosen = torch.float32 if dtype == "float32" else None
        self.model = skeleton(self.checkpoint.folder, description.trust_remote_code, chosen)
        self._blocks_name, self._blocks = find_blocks(self.model)
        self.depth = len(self._blocks)  # decoder blocks
        self._embeddings = self.model.get_input_embeddings()
        self._head = self.model.get_output_embeddings()  # None if the model has no head
        self._tied = self._head is not None and self.model.config.get_text_config().tie_word_embeddings
        inside = {*self._blocks.modules()}
        self._outside = [module for module in self.model.modules() if module not in inside]
        self._mapping = get_model_conversion_mapping(self.model)
        self._parts = self._sort_tensors()

    def _sort_tensors(self) -> dict[int | str, list[str]]:
        """Return the names of the files' tensors by block, and of the parts `embeddings`, `head` and `rest`."""
        renamings = [entry for entry in self._mapping if isinstance(entry, WeightRenaming)]
        converters = [entry for entry in self._mapping if isinstance(entry, WeightConverter)]
        known, prefix = self.model.state_dict(), f"{self._blocks_name}."
        names = {module: name for name, module in self.model.named_modules()}
        parts: dict[int | str, list[str]] = defaultdict(list)
        others: dict[str, list[str]] = defaultdict(list)
        for name in self.checkpoint.files:
            renamed, _ = rename_source_key(name, renamings, converters, self.model.base_model_prefix, known)
            if renamed.startswith(prefix):
                parts[int(renamed.removeprefix(prefix).partition(".")[0])].append(name)
            else:
                others[renamed.rpartition(".")[0]].append(name)
        embeddings, head = (others.pop(names.get(module), []) for module in (self._embeddings, self._head))
        if self._tied:  # the files may hold the weight of either, or both
            shared = embeddings or [name for name in head if name.endswith(".weight")]
            embeddings, head = shared, shared + [name for name in head if not name.endswith(".weight")]
        parts |= {"embeddings": embeddings, "head": head}
        parts["rest"] = [name for tensors in others.values() for name in tensors]
        return parts

    def stem(self) -> AbstractContextManager[None]:
        """Keep everything before the blocks on the device. Raises InputError when the files lack a parameter."""
        return self._keep_on_device(["rest", "embeddings"], self._outside, unused=self._head)

    def ends(self) -> AbstractContextManager[None]:
        """Keep everything after the blocks on the device. Raises InputError when the files lack a parameter."""
        return self._keep_on_device(["rest", "head"], self._outside, unused=self._embeddings)

    def block(self, index: int) -> AbstractContextManager[None]:
        """Keep a block on the device. Raises InputError when the files lack a parameter."""
        return self._keep_on_device([index], list(self._blocks[index].modules()))

    @contextmanager
    def _keep_on_device(
        self, parts: list[int | str], modules: list[nn.Module], unused: nn.Module | None = None
    ) -> Iterator[None]:
        names = {module: name for name, module in self.model.named_modules()}
        try:
            self._load([name for part in parts for name in self._parts[part]])
            if unused is not None and self._tied:
                loaded = self._head if self._embeddings.weight.is_meta else self._embeddings
                self._embeddings.weight = self._head.weight = loaded.weight
            for module in modules:
                for name, parameter in module._parameters.items():
                    if parameter is not None and parameter.is_meta and module is not unused:
                        raise InputError(f"{self.checkpoint.folder}: lacks {names[module]}.{name}")
                for name, buffer in module._buffers.items():
                    module._buffers[name] = None if buffer is None else buffer.to(self.device)
            yield
        finally:
            for module in modules:
                for name, parameter in module._parameters.items():
                    if parameter is not None:
                        empty = torch.empty_like(parameter, device="meta")
                        module._parameters[name] = nn.Parameter(empty, requires_grad=False)

    def _load(self, tensors: list[str]) -> None:
        """Put tensors of the files into the model. The files stay mapped into memory until the function returns."""
        dtype, plan = self.model.dtype, self.model._get_dtype_plan(self.model.dtype)
        settings = LoadStateDictConfig(
            device_map={"": self.device}, dtype=dtype, dtype_plan=plan, weight_mapping=self._mapping
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


Weights = WeightsInMemory | WeightsOnDisk
