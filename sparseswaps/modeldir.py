"""What a model directory says of itself without reading a weight: quick enough for every start of the workflow."""

from pathlib import Path
from typing import Any

from sparseswaps.embedded import MODEL
from sparseswaps.errors import InputError
from sparseswaps.files import read_json

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_NO_COMPANIONS = set([".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".onnx", ".gguf", ".ckpt", ".md"])


def locate(source: str) -> Path:
    """The directory of a model by its `source` in the configuration."""
    return MODEL if source == "embedded" else Path(source)


def config_of(folder: Path) -> dict[str, Any]:
    """The `config.json` of a model's language part. Raises InputError when it is not there or not one."""
    if not (folder / "config.json").is_file():
        raise InputError(f"{str(folder)!r} is not a model directory: there is no config.json in it")
    config = read_json(folder / "config.json")
    if isinstance(config, dict) and isinstance(config.get("text_config"), dict):
        of_both = {key: config[key] for key in ("dtype", "torch_dtype", "tie_word_embeddings") if key in config}
        config = of_both | config["text_config"]
    if not isinstance(config, dict):
        raise InputError(f"{folder / 'config.json'}: not the configuration of a model")
    return config


def number(config: dict[str, Any], *keys: str) -> int | None:
    """The first of the keys that a `config.json` gives a whole number for."""
    return next((config[key] for key in keys if type(config.get(key)) is int), None)


def depth(config: dict[str, Any]) -> int:
    """The number of decoder blocks by a `config.json`. Raises InputError when it does not say."""
    found = number(config, "num_hidden_layers", "n_layer", "n_layers", "num_layers")
    if found is None:
        raise InputError("config.json says nowhere how many decoder blocks the model has (num_hidden_layers)")
    return found


def context(config: dict[str, Any]) -> int | None:
    """The most tokens that a model takes by its `config.json`; None when it does not say."""
    return number(config, "max_position_embeddings", "n_positions", "max_seq_len", "seq_length")


def widths(config: dict[str, Any]) -> dict[str, int]:
    """The widths that linear layers read, as far as a `config.json` announces them, by its keys."""
    keys = ("hidden_size", "intermediate_size", "moe_intermediate_size", "n_embd")
    return {key: width for key in keys if (width := number(config, key)) is not None}


def weight_files(folder: Path) -> list[str]:
    """The names of a model's safetensors files: the single one, or those of the index, as transformers reads them.

    Raises InputError when there are none, or one that the index names is missing or lies elsewhere.
    """
    if (folder / SINGLE).exists():
        return [SINGLE]
    if not (folder / INDEX).exists():
        raise InputError(f"{str(folder)!r} holds no {SINGLE} or {INDEX}: save the model anew with save_pretrained()")
    index = read_json(folder / INDEX)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{folder / INDEX}: not an index of tensors (no weight_map)")
    names = sorted(set(map(str, weight_map.values())))
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise InputError(f"{folder / INDEX}: names {name!r}, which is not a file of that folder")
    return names


def companion_files(folder: Path) -> list[str]:
    """The names of the files that belong to a model beside its weights: configuration, tokenizer, licence.

    Weights in other formats or of other files are not among them, nor is the model card.
    """
    return sorted(path.name for path in folder.iterdir() if path.is_file() and path.suffix not in _NO_COMPANIONS)
