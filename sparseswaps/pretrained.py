"""Loading models and tokenizers with transformers, from local directories only."""

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from sparseswaps.errors import InputError


def load_model(folder: str, device: str) -> PreTrainedModel:
    """A causal language model in eval mode: in float32 on the CPU, in its checkpoint's dtype on a GPU.

    Raises InputError when transformers cannot load it, or would fill parameters that the checkpoint lacks with random
    numbers.
    """
    dtype = torch.float32 if device == "cpu" else "auto"
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, output_loading_info=True, local_files_only=True
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise InputError(f"{folder}: transformers cannot load it: {_first_line(error)}") from None
    if info["missing_keys"]:
        raise InputError(f"{folder}: the checkpoint lacks {', '.join(sorted(info['missing_keys']))}")
    return model.eval().to(device)


def load_tokenizer(folder: str) -> PreTrainedTokenizerBase:
    """A model's tokenizer. Raises InputError when there is none."""
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder}: transformers finds no tokenizer in it: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
