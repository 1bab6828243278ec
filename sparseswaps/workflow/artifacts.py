"""The artifacts that stages hand to each other. The header of a safetensors file says what it holds, of which model,
and what made it. A reader raises BrokenFileError for a file that is broken, of another kind or of another model.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sparseswaps.base.errors import BrokenFileError, InputError
from sparseswaps.base.files import read_json, write_json
from sparseswaps.base.tensor_file import read_tensors, write_tensors
from sparseswaps.calibration.grams import Grams
from sparseswaps.layer.masks import pack
from sparseswaps.model.checkpoint import read_pruned
from sparseswaps.model.description import Model
from sparseswaps.model.directory import weight_files
from sparseswaps.model.layers import Layer, file_tensors
from sparseswaps.model.mask_file import Masks

if TYPE_CHECKING:  # the module imports transformers, which most jobs do without
    from sparseswaps.calibration.replay import Batch


def block_file(block: int, ending: str = "safetensors") -> str:
    """Return the name of a decoder block's file in a folder of one file a block."""
    return f"block{block:02d}.{ending}"


def write_model(path: str | Path, model: Model) -> None:
    """Write a model's description, with a checksum."""
    content = asdict(model) | {"fingerprint": model.fingerprint}
    write_json(path, content | {"sha256": _sha256(content)})


def _sha256(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_model(path: str | Path) -> Model:
    """Read a model's description. Raise InputError when it is broken, or the weights are not where it says."""
    content = read_json(path)
    try:
        if content.pop("sha256") != _sha256(content):
            raise BrokenFileError(path, "checksum mismatch: the file was damaged or edited")
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


def write_samples(path: str | Path, calibration: Tensor, held_out: Tensor, model: Model, provenance: str) -> None:
    """Write the token ids of calibration and held-out sequences, int64 [any number, seqlen] each."""
    tensors = {"calibration": calibration, "held_out": held_out}
    _write(path, "samples", tensors, {"sha256": digest(calibration, held_out)}, model, provenance)


def digest(*ids: Tensor) -> str:
    """Return the SHA-256 of token ids, int64 [any number, seqlen] each: of samples, calibration before held out."""
    return hashlib.sha256(torch.cat(ids).numpy()).hexdigest()


def read_samples(path: str | Path, model: Model) -> tuple[Tensor, Tensor]:
    """Read token ids that `write_samples` wrote: calibration, held out."""
    tensors, _ = _read(path, "samples", model)
    return tensors["calibration"], tensors["held_out"]


def write_grams(path: str | Path, grams: Grams, model: Model, provenance: str) -> None:
    """Write a block's Gram matrices in float32, and its sums in float64."""
    parts = {"calibration": grams.matrix, "held_out": grams.held_out, "sums": grams.sums}
    tensors = {f"{name}.{part}": tensor.cpu() for part, by_name in parts.items() for name, tensor in by_name.items()}
    more = {name: getattr(grams, name) for name in ("reads", "tokens", "unrouted", "sequences")}
    _write(path, "grams", tensors, more, model, provenance)


def read_grams(path: str | Path, model: Model) -> Grams:
    """Read a block's Gram matrices that `write_grams` wrote. Raise BrokenFileError when one is not finite."""
    tensors, more = _read(path, "grams", model)
    parts: dict[str, dict[str, Tensor]] = {"calibration": {}, "held_out": {}, "sums": {}}
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise BrokenFileError(path, f"{name} holds NaN or Inf")
        source, _, part = name.rpartition(".")
        parts[part][source] = tensor
    return Grams(matrix=parts["calibration"], held_out=parts["held_out"], sums=parts["sums"], **more)


def write_hidden(folder: Path, batches: "Iterable[Batch]", model: Model, provenance: str) -> None:
    """Write the hidden states of all batches, a file for each batch, into a folder that does not exist."""
    folder.mkdir()
    for number, batch in enumerate(batches):
        tensors = {"ids": batch.ids, "hidden": batch.hidden().cpu()}
        if batch.dense:
            tensors["dense"] = batch.dense().cpu()
        path = folder / f"batch{number:06d}.safetensors"
        _write(path, "hidden states", tensors, {"held_out": batch.held_out}, model, provenance)


def read_hidden(folder: str | Path, model: Model) -> Iterator[tuple[Tensor, bool, Tensor, Tensor | None]]:
    """Yield the arguments of `Replay.resume` from the files that `write_hidden` wrote, one file at a time."""
    for path in sorted(Path(folder).glob("batch*")):
        tensors, more = _read(path, "hidden states", model)
        yield tensors["ids"], more["held_out"], tensors["hidden"], tensors.get("dense")


def write_masks(
    path: str | Path, masks: Iterable[tuple[str, Tensor]], model: Model, provenance: str, **more: Any
) -> None:
    """Write boolean masks [..., d_in] with the names of their layers or tensors, a bit for each weight.

    Each mask is packed before the next is taken. The header holds `more` as JSON.
    """
    packed, widths = {}, {}
    for name, mask in masks:
        packed[name], widths[name] = pack(mask), mask.shape[-1]
    _write(path, "masks", packed, {"d_in": widths, **more}, model, provenance)


def read_masks(path: str | Path, model: Model) -> Masks:
    """Read masks that `write_masks` wrote."""
    tensors, more = _read(path, "masks", model)
    return Masks(tensors, more["d_in"])


def write_weights(path: str | Path, weights: dict[str, Tensor], model: Model, provenance: str) -> None:
    """Write the new weights of a block's layers, [d_out, d_in] in their stored dtype, by layer name."""
    _write(path, "weights", {name: weight.cpu() for name, weight in weights.items()}, {}, model, provenance)


def new_weights(paths: Sequence[str], model: Model) -> Callable[[str], Tensor]:
    """Return a function from the name of a tensor of the model's files to its new weights, in its shape and dtype.

    `paths` are the files that `write_weights` wrote, one for each block; one block is in memory at a time.
    """
    blocks = {layer.tensor: block for block, layers in enumerate(model.blocks) for layer in layers}

    @lru_cache(maxsize=1)
    def tensors_of(block: int) -> dict[str, Tensor]:
        weights, _ = _read(paths[block], "weights", model)
        return file_tensors([layer for layer in model.blocks[block] if layer.name in weights], weights)

    return lambda name: tensors_of(blocks[name])[name]


def evaluated_model(inputs: Mapping[str, Any]) -> tuple[Model, Masks | None]:
    """Return the description of the model that an evaluation runs, and the masks to apply to the model.

    A checkpoint is pruned already; its description names the files alone.
    """
    if "checkpoint" in inputs:
        folder, base = inputs["checkpoint"], read_pruned(inputs["checkpoint"])["base"]
        return Model(folder, [], [], {}, {}, folder, trust_remote_code=base["trust_remote_code"]), None
    model = read_model(inputs["model"])
    return model, read_masks(inputs["masks"], model) if "masks" in inputs else None


def _write(path: str | Path, kind: str, tensors: dict[str, Tensor], more: dict, model: Model, provenance: str) -> None:
    write_tensors(path, tensors, {"kind": kind, "model": model.fingerprint, "provenance": provenance, "more": more})


def _read(path: str | Path, kind: str, model: Model) -> tuple[dict[str, Tensor], dict]:
    tensors, header = read_tensors(path)
    if header.get("kind") != kind:
        raise BrokenFileError(path, f"holds {header.get('kind', 'nothing known')}, not {kind}")
    if header["model"] != model.fingerprint:
        raise BrokenFileError(path, f"belongs to another model than {model.source}, which model.json describes")
    return tensors, header["more"]
