"""Facts about a model directory that need no weights. They are quick to find, at every start of the workflow."""

import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

from sparseswaps.base.errors import InputError
from sparseswaps.base.files import read_json
from sparseswaps.base.tensor_file import open_tensors
from sparseswaps.embedded import MODEL

RunDtype = Literal["float32", "checkpoint"]  # what a model runs in: float32, or the dtype of its checkpoint
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
HUB_ID = re.compile(r"\w[\w.-]*(/[\w.-]+)?")  # a name, or organisation/name
_PICKLES = {".bin", ".pt", ".pth"}
_NO_COMPANIONS = _PICKLES | {".safetensors", ".h5", ".msgpack", ".onnx", ".gguf", ".ckpt"}


def is_hub_id(source: str) -> bool:
    """Return whether a model's `source` is `name` or `organisation/name` on the hub; a local directory goes first."""
    return source != "embedded" and not Path(source).exists() and HUB_ID.fullmatch(source) is not None


def locate(source: str, revision: str | None) -> Path:
    """Return the directory of a model. Raises InputError when the commit of a hub id has gone from the cache."""
    if revision is None:
        return MODEL if source == "embedded" else Path(source)
    from huggingface_hub import try_to_load_from_cache  # takes 0.25 s to import

    config = try_to_load_from_cache(source, "config.json", revision=revision)
    if not isinstance(config, str):
        raise InputError(f"{source!r} ({revision}) is gone from the hub's cache; run snakemake again")
    return Path(config).parent


def read_config(folder: Path) -> dict[str, Any]:
    """Read the language part of a model's `config.json`.

    Raises InputError when the file is missing or broken, announces quantised weights, or makes transformers load other
    weights than the folder's, or code from the hub.
    """
    parts, path = _parts(folder), folder / "config.json"
    if any(part.get("quantization_config") for part in parts):
        remedy = "take the model that they were made from, and quantise after pruning"
        raise InputError(f"{path}: quantised weights (quantization_config) cannot be pruned; {remedy}")
    if "transformers_weights" in parts[0]:
        raise InputError(f"{path}: transformers_weights names other weights; delete that key")
    for key in ("attn_implementation", "experts_implementation"):
        if any("/" in str(part.get(name)) for part in parts for name in (key, f"_{key}")):
            raise InputError(f"{path}: {key} names code on the hub; delete that key")
    if (folder / "adapter_config.json").exists():
        raise InputError(f"{str(folder)!r} holds an adapter (adapter_config.json): merge it, and save the model again")
    return parts[-1]


def _parts(folder: Path) -> list[dict[str, Any]]:
    """Read a model's `config.json`, and its language part if there are others."""
    if not (folder / "config.json").is_file():
        raise InputError(f"{str(folder)!r} is not a model directory: it has no config.json; check the path")
    config = read_json(folder / "config.json")
    parts = [config]
    if isinstance(config, dict) and isinstance(config.get("text_config"), dict):
        shared = {key: config[key] for key in ("dtype", "torch_dtype", "tie_word_embeddings") if key in config}
        parts.append(shared | config["text_config"])
    if not isinstance(parts[-1], dict):
        raise InputError(f"{folder / 'config.json'}: not the configuration of a model; copy or download it again")
    return parts


def first_integer(config: Mapping[str, Any], *keys: str) -> int | None:
    """Return the value of the first key in a `config.json` that has a whole number."""
    return next((config[key] for key in keys if type(config.get(key)) is int), None)


def depth(config: Mapping[str, Any]) -> int:
    """Return the number of decoder blocks in a `config.json`. Raises InputError when it does not say."""
    blocks = first_integer(config, "num_hidden_layers", "n_layer", "n_layers", "num_layers")
    if not blocks or blocks < 1:
        raise InputError("config.json does not say how many decoder blocks the model has; add num_hidden_layers")
    return blocks


def context_length(config: Mapping[str, Any]) -> int | None:
    """Return the largest number of tokens that a model takes by its `config.json`; None when it does not say."""
    return first_integer(config, "max_position_embeddings", "n_positions", "max_seq_len", "seq_length")


def vocabulary_size(config: Mapping[str, Any]) -> int | None:
    """Return the number of token ids with embeddings by a model's `config.json`; None when it does not say."""
    return first_integer(config, "vocab_size", "n_vocab")


def entry_file(source: str, names: Collection[str]) -> str:
    """Return the file by which transformers finds weights: the single safetensors file, or the index.

    Raises InputError when `names` has neither.
    """
    for name in (SINGLE, INDEX):
        if name in names:
            return name
    if any(name.endswith(".sparse.safetensors") for name in names):
        remedy = f"save the model of sparseswaps.load_compressed({source!r}) in another folder"
        raise InputError(f"{source!r} is a compressed checkpoint; {remedy}")
    if any(Path(name).suffix in _PICKLES for name in names):
        target = f"{Path(source).name}-safetensors"
        convert = (
            "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; "
            f"M.from_pretrained({source!r}, dtype='auto').save_pretrained({target!r}); "
            f"T.from_pretrained({source!r}).save_pretrained({target!r})"
        )
        raise InputError(
            f"{source!r} holds no {SINGLE} or {INDEX}, only pickled weights, which can run code when they are read; if "
            f'you trust them, convert them with `python -c "{convert}"` and take {target!r} as source'
        )
    raise InputError(f"{source!r} holds no {SINGLE} or {INDEX}: save the model again with save_pretrained()")


def indexed_files(index: Path) -> list[str]:
    """Return the names of an index's weight files, in order.

    Raises InputError when the file is not an index, or names a file outside its own folder.
    """
    content = read_json(index)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{index}: not an index of tensors (no weight_map); copy or download it again")
    names = sorted(set(map(str, weight_map.values())))
    for name in names:
        if Path(name).name != name or not re.fullmatch(r"[^\\]{1,200}\.safetensors", name):
            raise InputError(f"{index}: names {name!r}, which is not a file of the folder; correct the index")
    return names


def weight_files(folder: Path) -> list[str]:
    """Return the names of the safetensors files that transformers reads. Raises InputError when one is missing."""
    if not folder.is_dir():
        raise InputError(f"{str(folder)!r} is not a directory; check the path")
    entry = entry_file(str(folder), [path.name for path in folder.iterdir()])
    names = [SINGLE] if entry == SINGLE else indexed_files(folder / entry)
    for path in (folder / name for name in names):
        if path.is_symlink() and not path.is_file():
            raise InputError(f"{path}: a link to {os.readlink(path)}, which is not a file; mend the link")
        if not path.is_file():
            raise InputError(f"{folder / entry}: names {path.name!r}, which is not a file of the folder; copy it there")
    return names


def check_files(folder: Path) -> None:
    """Raise InputError naming a file of a model that is missing or has a broken safetensors header. Reads no tensor."""
    companion_files(folder)
    for name in weight_files(folder):
        with open_tensors(folder / name, "np"):
            pass


def mask_files(path: str | Path) -> list[Path]:
    """Return the files that imported masks are read from: the weights of a model directory, or the mask file itself.

    Raises InputError when files are missing or broken, or hold compressed or quantised weights.
    """
    path = Path(path)
    if not path.is_dir():
        if not path.is_file():
            raise InputError(f"{str(path)!r} is neither a model directory nor a mask file (masks.safetensors)")
        with open_tensors(path, "np") as file:
            if "sparseswaps" not in (file.metadata() or {}):
                raise InputError(f"{str(path)!r} is not a mask file; for a model, name its directory")
        return [path]
    if any(_is_packed(part.get("quantization_config")) for part in _parts(path)):
        raise InputError(
            f"{path / 'config.json'}: has a quantization_config: zeros cannot be read from compressed or quantised "
            "weights; save the weights uncompressed (with llm-compressor, save_pretrained(..., save_compressed=False))"
        )
    check_files(path)
    return [path / name for name in weight_files(path)]


def _is_packed(config: Any) -> bool:
    """Return whether a `quantization_config` means packed weights; compressed-tensors also marks plain ones."""
    if not isinstance(config, dict) or config.get("quant_method") != "compressed-tensors":
        return bool(config)
    sparsity = config.get("sparsity_config")
    formats = [config.get("format"), sparsity.get("format") if isinstance(sparsity, dict) else None]
    return any(name not in (None, "dense") for name in formats)


def is_companion(name: str) -> bool:
    """Return whether a file belongs to a model beside its weights, as configuration, tokenizer and licence do."""
    return Path(name).suffix not in _NO_COMPANIONS and not name.startswith(".") and name != "README.md"


def companion_files(folder: Path) -> list[str]:
    """Return the names of the files that belong to a model beside its weights. Raises InputError for a dead link."""
    paths = sorted(path for path in folder.iterdir() if is_companion(path.name))
    for path in paths:
        if path.is_symlink() and not path.exists():
            raise InputError(f"{path}: a link to {os.readlink(path)}, which is not there; mend the link, or delete it")
    return [path.name for path in paths if path.is_file()]
