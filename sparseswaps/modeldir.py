"""What a model directory says of itself without reading a weight: quick enough for every start of the workflow."""

from pathlib import Path
from typing import Any

from sparseswaps.embedded import MODEL
from sparseswaps.errors import InputError
from sparseswaps.files import read_json

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


def locate(source: str) -> Path:
    """The directory of a model by its `source` in the configuration."""
    return MODEL if source == "embedded" else Path(source)


def config_of(folder: Path) -> dict[str, Any]:
    """The `config.json` of a model's language part. Raises InputError when it is not there."""
    if not (folder / "config.json").is_file():
        raise InputError(f"{str(folder)!r} is not a model directory: there is no config.json in it")
    config = read_json(folder / "config.json")
    return config.get("text_config", config)


def depth(config: dict[str, Any]) -> int:
    """The number of decoder blocks by a `config.json`. Raises InputError when it does not say."""
    for key in ("num_hidden_layers", "n_layer", "n_layers", "num_layers"):
        if key in config:
            return config[key]
    raise InputError("config.json says nowhere how many decoder blocks the model has (num_hidden_layers)")


def widths(config: dict[str, Any]) -> dict[str, int]:
    """The widths that linear layers read, as far as a `config.json` announces them, by its keys."""
    keys = ("hidden_size", "intermediate_size", "moe_intermediate_size", "n_embd")
    return {key: config[key] for key in keys if isinstance(config.get(key), int)}


def weight_files(folder: Path) -> list[str]:
    """The names of a model's safetensors files.

    Raises InputError when there are none, or one that the index names is missing or lies elsewhere.
    """
    if (folder / INDEX).exists():
        index = read_json(folder / INDEX)
        names = sorted(set(index.get("weight_map", {}).values()))
        for name in names:
            if Path(name).name != name or not (folder / name).is_file():
                raise InputError(f"{folder / INDEX}: names {name!r}, which is not a file of that folder")
        return names
    if (folder / SINGLE).exists():
        return [SINGLE]
    raise InputError(f"{str(folder)!r} holds no {SINGLE} or {INDEX}: save the model anew with save_pretrained()")
