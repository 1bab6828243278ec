"""Mask files: the masks of a block or of a whole model, with one bit per weight."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from sparseswaps.base.errors import InputError
from sparseswaps.base.tensor_file import read_tensors
from sparseswaps.layer.masks import unpack
from sparseswaps.model.layers import Layer


class Masks(Mapping[str, Tensor]):
    """The masks of a file by name. Memory holds bits; a mask becomes boolean [..., d_in] when it is read."""

    def __init__(self, packed: dict[str, Tensor], d_in: dict[str, int]) -> None:
        self._packed, self._d_in = packed, d_in

    def __getitem__(self, name: str) -> Tensor:
        return self._read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._packed)

    def __len__(self) -> int:
        return len(self._packed)

    def mask_of_layer(self, layer: Layer) -> Tensor:
        """Return the mask of a layer, [d_out, d_in]."""
        return layer.read_with(self._read)

    def _read(self, name: str, expert: int | None = None) -> Tensor:
        packed = self._packed[name] if expert is None else self._packed[name][expert]
        return unpack(packed, self._d_in[name])

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: (*packed.shape[:-1], self._d_in[name]) for name, packed in self._packed.items()}


def read_mask_file(path: str | Path) -> tuple[Masks, dict[str, Any]]:
    """Read a mask file of a whole model: the masks by tensor name, and `Model.base` for the tensors that have a mask.

    Raises InputError when the file cannot be read, or is not a mask file of a whole model.
    """
    tensors, header = read_tensors(path, "copy or make it again, or name another file")
    try:
        more = header["more"]
        base = more["base"] | {"tensors": {name: more["base"]["tensors"][name] for name in tensors}}
        return Masks(tensors, {name: int(more["d_in"][name]) for name in tensors}), base
    except (KeyError, TypeError, ValueError):
        message = "not the mask file of a whole model; name the masks.safetensors beside a checkpoint"
        raise InputError(f"{path}: {message}") from None
