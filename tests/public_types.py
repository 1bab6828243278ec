"""Uses of the public names, for a type checker alone: `make lint` runs mypy on this file, and nothing imports it."""

from collections.abc import Sequence
from typing import Any, assert_type

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import sparseswaps


def prune_a_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> None:
    result = sparseswaps.prune(model, tokenizer, pattern="2:4", calibration=texts, max_swaps=5)
    assert_type(result, sparseswaps.Pruned)
    assert_type(result.masks, dict[str, torch.Tensor])
    assert_type(result.losses, list[dict[str, Any]])
    sparseswaps.prune(model, None, 0.6, "ria", torch.zeros(8, 64, dtype=torch.int64), reconstruction={"method": "admm"})
    sparseswaps.prune(model, tokenizer, "60%", reconstruction=sparseswaps.Reconstruction(iterations=20))
    sparseswaps.keep_zeros(model, result.masks).remove()
    sparseswaps.apply_masks(model, "masks.safetensors")


def prune_a_layer(weight: torch.Tensor, inputs: list[torch.Tensor]) -> torch.Tensor:
    gram = sparseswaps.gram_matrix(inputs)
    pattern = sparseswaps.parse_pattern("60%")
    start = sparseswaps.warmstart(weight, gram, pattern, "wanda")
    assert_type(start, torch.Tensor)
    result = sparseswaps.refine_mask(weight, gram, start, pattern, max_swaps=10)
    assert_type(result, sparseswaps.Refinement)
    assert_type(result.mask, torch.Tensor)
    return weight * result.mask


def name_the_error(error: Exception) -> str | None:
    return str(error) if isinstance(error, sparseswaps.InputError) else None
