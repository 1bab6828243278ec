"""What a model directory says of itself without reading a weight: quick enough for every start of the workflow."""

import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from sparseswaps.embedded import MODEL
from sparseswaps.errors import InputError
from sparseswaps.files import read_json

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
HUB_ID = re.compile(r"\w[\w.-]*(/[\w.-]+)?")  # a name, or organisation/name
_PICKLES = {".bin", ".pt", ".pth"}
_NO_COMPANIONS = _PICKLES | {".safetensors", ".h5", ".msgpack", ".onnx", ".gguf", ".ckpt"}


def is_hub_id(source: str) -> bool:
    """Whether a model's `source` is `name` or `organisation/name` on the hub: a directory of that name goes first."""
    taken = source == "embedded" or Path(source).exists()
    return not taken and HUB_ID.fullmatch(source) is not None


def locate(settings: dict[str, Any]) -> Path:
    """The directory of a model by its entry in a checked configuration, where a hub id's `revision` is a commit hash.

    Raises InputError when a hub id is not in the cache; `hub.resolve` puts it there.
    """
    source, revision = settings["source"], settings["revision"]
    if revision is None:
        return MODEL if source == "embedded" else Path(source)
    from huggingface_hub import try_to_load_from_cache  # a quarter of a second, for those who need it

    config = try_to_load_from_cache(source, "config.json", revision=revision)
    if not isinstance(config, str):
        raise InputError(f"{source!r} ({revision}) is gone from the hub's cache; run snakemake again")
    return Path(config).parent


def config_of(folder: Path) -> dict[str, Any]:
    """The `config.json` of a model's language part.

    Raises InputError when it is not there or not one, or says that the weights are quantised.
    """
    if not (folder / "config.json").is_file():
        raise InputError(f"{str(folder)!r} is not a model directory: there is no config.json in it")
    config = read_json(folder / "config.json")
    parts = [config]
    if isinstance(config, dict) and isinstance(config.get("text_config"), dict):
        of_both = {key: config[key] for key in ("dtype", "torch_dtype", "tie_word_embeddings") if key in config}
        parts.append(of_both | config["text_config"])
    if not isinstance(parts[-1], dict):
        raise InputError(f"{folder / 'config.json'}: not the configuration of a model")
    if any(part.get("quantization_config") for part in parts):
        raise InputError(
            f"{folder / 'config.json'}: has a quantization_config, and quantised weights cannot be pruned here; "
            "take the model that they were made from (in bfloat16, float16 or float32), and quantise after pruning"
        )
    return parts[-1]


def number(config: dict[str, Any], *keys: str) -> int | None:
    """The first of the keys that a `config.json` gives a whole number for."""
    return next((config[key] for key in keys if type(config.get(key)) is int), None)


def depth(config: dict[str, Any]) -> int:
    """The number of decoder blocks by a `config.json`. Raises InputError when it does not say."""
    found = number(config, "num_hidden_layers", "n_layer", "n_layers", "num_layers")
    if not found or found < 1:
        raise InputError("config.json says nowhere how many decoder blocks the model has (num_hidden_layers)")
    return found


def context(config: dict[str, Any]) -> int | None:
    """The most tokens that a model takes by its `config.json`; None when it does not say."""
    return number(config, "max_position_embeddings", "n_positions", "max_seq_len", "seq_length")


def vocabulary(config: dict[str, Any]) -> int | None:
    """The number of token ids that a model has embeddings for by its `config.json`; None when it does not say."""
    return number(config, "vocab_size", "n_vocab")


def entry_file(source: str, names: Collection[str]) -> str:
    """The one of a model's files by which transformers finds its weights: the single safetensors file, or the index.

    Raises InputError when it is not among the names; where there are pickled weights, with the command to convert them.
    """
    for name in (SINGLE, INDEX):
        if name in names:
            return name
    if any(Path(name).suffix in _PICKLES for name in names):
        target = f"{Path(source).name}-safetensors"
        convert = "; ".join(
            [
                "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T",
                f"M.from_pretrained({source!r}, dtype='auto').save_pretrained({target!r})",
                f"T.from_pretrained({source!r}).save_pretrained({target!r})",
            ]
        )
        raise InputError(
            f"{source!r} holds no {SINGLE} or {INDEX}, only pickled weights, which can run code when they are read; if "
            f'you trust them, convert them with `python -c "{convert}"` and take {target!r} as source'
        )
    raise InputError(f"{source!r} holds no {SINGLE} or {INDEX}: save the model anew with save_pretrained()")


def indexed_files(index: Path) -> list[str]:
    """The names of the weight files of an index, in order. Raises InputError when it is none or they lie elsewhere."""
    content = read_json(index)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{index}: not an index of tensors (no weight_map)")
    names = sorted(set(map(str, weight_map.values())))
    for name in names:
        if Path(name).name != name:
            raise InputError(f"{index}: names {name!r}, which is not a file of that folder")
    return names


def weight_files(folder: Path) -> list[str]:
    """The names of a model's safetensors files: the single one, or those of the index, as transformers reads them.

    Raises InputError when there are none, or one that the index names is missing or lies elsewhere.
    """
    entry = entry_file(str(folder), [path.name for path in folder.iterdir()])
    if entry == SINGLE:
        return [SINGLE]
    names = indexed_files(folder / entry)
    for name in names:
        if not (folder / name).is_file():
            raise InputError(f"{folder / entry}: names {name!r}, which is not a file of that folder")
    return names


def check_sizes(folder: Path) -> None:
    """Compare the size of every weight file with what its header announces.

    Raises InputError naming a file that is truncated, or none of safetensors.
    """
    for name in weight_files(folder):
        path = folder / name
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            try:
                header = json.loads(file.read(min(length, size)))
                end = max(entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__")
            except (ValueError, KeyError, TypeError, AttributeError):
                raise InputError(f"{path}: not a safetensors file, or a truncated one; copy it again") from None
        if size != 8 + length + end:
            raise InputError(f"{path}: has {size} bytes, its header says {8 + length + end}; copy it again")


def is_companion(name: str) -> bool:
    """Whether a file belongs to a model beside its weights: configuration, tokenizer, licence.

    Weights in other formats or of other files do not, nor does the model card.
    """
    return Path(name).suffix not in _NO_COMPANIONS and not name.startswith(".") and name != "README.md"


def companion_files(folder: Path) -> list[str]:
    """The names of the files that belong to a model beside its weights."""
    return sorted(path.name for path in folder.iterdir() if path.is_file() and is_companion(path.name))
