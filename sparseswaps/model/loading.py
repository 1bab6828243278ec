"""Models and tokenizers, loaded by transformers from local directories only."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from sparseswaps.base.errors import InputError, transformers_message
from sparseswaps.model.directory import RunDtype, check_files


def load_model(
    folder: str | Path, device: str, trust_remote_code: bool = False, dtype: RunDtype = "float32"
) -> PreTrainedModel:
    """Load a causal language model in eval mode.

    Raises InputError when transformers cannot load the model, or would fill missing parameters with random numbers.
    """
    check_files(Path(folder))
    chosen = torch.float32 if dtype == "float32" else "auto"
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            folder, dtype=chosen, output_loading_info=True, local_files_only=True, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise InputError(f"{folder}: transformers cannot load it: {transformers_message(error)}") from None
    if info["missing_keys"]:
        missing = ", ".join(sorted(info["missing_keys"]))
        raise InputError(f"{folder}: the checkpoint lacks {missing}; copy, download or save the model again")
    return model.eval().to(device)


def load_tokenizer(folder: str | Path, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load a model's tokenizer. Raises InputError when there is none."""
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
    except Exception as error:  # a broken file makes transformers and tokenizers raise anything
        message = transformers_message(error).rstrip(" .:")
        remedy = "copy the model's tokenizer files (tokenizer.json, tokenizer_config.json) there"
        raise InputError(f"{folder}: transformers finds no tokenizer in it ({message}); {remedy}") from None
