"""The artifacts that stages hand to each other: what is in each, and its checks when it is read.

Tensors are safetensors files whose header says what they are (`kind`), which model they belong to (its fingerprint)
and what made them (the key of the stage). A reader refuses a file that is broken, of another kind or of another model.
A checksum of all that is in it tells whether it is as it was written.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparseswaps.base.errors import BrokenFileError, InputError
from sparseswaps.base.files import read_json, write_json
from sparseswaps.base.tensor_file import read_tensors, write_tensors
from sparseswaps.calibration.grams import Grams
from sparseswaps.layer.masks import pack
from sparseswaps.model.description import Model
from sparseswaps.model.directory import weight_files
from sparseswaps.model.layers import Layer, file_tensors
from sparseswaps.model.mask_file import Masks


def write_model(path: str | Path, model: Model) -> None:
    content = asdict(model) | {"fingerprint": model.fingerprint}
    write_json(path, content | {"sha256": _sha256(content)})


def _sha256(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_model(path: str | Path) -> Model:
    """Raises InputError when the description is broken or the weights are not where it says."""
    content = read_json(path)
    try:
        if content.pop("sha256") != _sha256(content):
            raise BrokenFileError(path, "its content is not what was written")
        blocks = [[Layer(**layer) for layer in block] for block in content["blocks"]]
        model = Model(**{field.name: content[field.name] for field in fields(Model)} | {"blocks": blocks})
    except (KeyError, TypeError, AttributeError):
        raise BrokenFileError(path, "not a model description") from None
    try:
        weight_files(Path(model.folder))
    except (InputError, OSError):  # moved, or thrown out of the hub's cache
        message = f"the weights of {model.source} are gone from {model.folder}; delete the file and run snakemake again"
        raise InputError(f"{path}: {message}") from None
    return model


def write_samples(path: str | Path, calibration: Tensor, held_out: Tensor, model: Model, key: str) -> None:
    """Token ids of calibration sequences, int64 [samples, seqlen], and of held-out ones, int64 [held_out, seqlen]."""
    more = {"sha256": digest(calibration, held_out)}
    _write(path, "samples", {"calibration": calibration, "held_out": held_out}, more, model, key)


def digest(*ids: Tensor) -> str:
    """The SHA-256 of token ids as int64, [any number, seqlen] each: of samples, calibration before held out."""
    return hashlib.sha256(torch.cat(ids).numpy()).hexdigest()


def read_samples(path: str | Path, model: Model) -> tuple[Tensor, Tensor]:
    """What `write_samples` wrote: calibration, held out."""
    tensors, _ = _read(path, "samples", model)
    return tensors["calibration"], tensors["held_out"]


def write_grams(path: str | Path, grams: Grams, model: Model, key: str) -> None:
    """Gram matrices in float32, sums in float64."""
    tensors = {f"{name}.calibration": matrix.cpu() for name, matrix in grams.matrix.items()}
    tensors |= {f"{name}.held_out": matrix.cpu() for name, matrix in grams.held_out.items()}
    tensors |= {f"{name}.sums": sums.cpu() for name, sums in grams.sums.items()}
    more = {name: getattr(grams, name) for name in ("reads", "tokens", "unrouted", "sequences")}
    _write(path, "grams", tensors, more, model, key)


def read_grams(path: str | Path, model: Model) -> Grams:
    tensors, more = _read(path, "grams", model)
    split: dict[str, dict[str, Tensor]] = {"calibration": {}, "held_out": {}, "sums": {}}
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise BrokenFileError(path, f"{name} holds NaN or Inf")
        layer, _, which = name.rpartition(".")
        split[which][layer] = tensor
    return Grams(matrix=split["calibration"], held_out=split["held_out"], sums=split["sums"], **more)


def write_masks(path: str | Path, masks: Iterable[tuple[str, Tensor]], model: Model, key: str, **more: Any) -> None:
    """Boolean masks [..., d_in] and the names of their layers or tensors, each packed to bits before the next is taken;
    `more` goes into the header as JSON."""
    packed, widths = {}, {}
    for name, mask in masks:
        packed[name], widths[name] = pack(mask), mask.shape[-1]
    _write(path, "masks", packed, {"d_in": widths, **more}, model, key)


def read_masks(path: str | Path, model: Model) -> Masks:
    tensors, more = _read(path, "masks", model)
    return Masks(tensors, more["d_in"])


def write_weights(path: str | Path, weights: dict[str, Tensor], model: Model, key: str) -> None:
    """New weights of a block's layers, [d_out, d_in] in their stored dtype, by layer name."""
    _write(path, "weights", {name: weight.cpu() for name, weight in weights.items()}, {}, model, key)


def new_weights(paths: Sequence[str], model: Model) -> Callable[[str], Tensor]:
    """The new weights of a tensor of the model's files, by its name, in its shape and dtype; those of one block are in
    memory at a time. `paths` are what `write_weights` wrote of each block."""
    place = {layer.tensor: index for index, layers in enumerate(model.blocks) for layer in layers}

    @lru_cache(maxsize=1)
    def of_block(index: int) -> dict[str, Tensor]:
        weights, _ = _read(paths[index], "weights", model)
        return file_tensors([layer for layer in model.blocks[index] if layer.name in weights], weights)

    return lambda name: of_block(place[name])[name]


def _write(path: str | Path, kind: str, tensors: dict[str, Tensor], more: dict, model: Model, key: str) -> None:
    write_tensors(path, tensors, {"kind": kind, "model": model.fingerprint, "key": key, "more": more})


def _read(path: str | Path, kind: str, model: Model) -> tuple[dict[str, Tensor], dict]:
    tensors, header = read_tensors(path)
    if header.get("kind") != kind:
        raise BrokenFileError(path, f"holds {header.get('kind', 'nothing known')}, not {kind}")
    if header["model"] != model.fingerprint:
        raise BrokenFileError(path, f"belongs to another model than {model.source}, which model.json describes")
    return tensors, header["more"]
