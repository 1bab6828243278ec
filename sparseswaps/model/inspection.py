"""Inspect a checkpoint or a mask file: the sparsity and the pattern of each prunable matrix."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from sparseswaps.base.errors import InputError
from sparseswaps.base.files import read_json
from sparseswaps.model.checkpoint import ABOUT, Checkpoint
from sparseswaps.model.mask_file import read_mask_file

_GROUPS = (4, 8, 16, 32)  # the M of the N:M patterns that are looked for
_FULL = 0.99  # the share of the N:M groups' places that must be taken


@dataclass(frozen=True)
class Matrix:
    """The name and the shape of a matrix, and the weights that it keeps."""

    name: str  # of the file's tensor, with the number of the expert where a tensor holds several
    shape: tuple[int, int]  # d_out, d_in
    zeros: int
    least_kept: int  # weights in a row
    most_kept: int
    group_pattern: str | None  # the N:M of which every group keeps N, except for zeros of the dense model


def inspect(path: Path) -> tuple[str, list[Matrix]]:
    """Read a checkpoint's weights or a file's masks. Return a line about the base model, and every prunable matrix.

    Raises InputError when the path is neither the directory of a causal language model nor a mask file.
    """
    if path.is_dir():
        return _base_of_checkpoint(path), list(_matrices_of_checkpoint(path))
    if not path.is_file():
        raise InputError(f"{path}: no such file or directory; check the path")
    masks, base = read_mask_file(path)
    return f"{path}: masks for {base['source']} (weights {base['fingerprint']})", [
        matrix for name, mask in masks.items() for matrix in _matrices_of_tensor(name, mask)
    ]


def _base_of_checkpoint(folder: Path) -> str:
    if not (folder / ABOUT).exists():
        return f"{folder}: a checkpoint without a record of its base model"
    about = read_json(folder / ABOUT)
    return f"{folder}: {about['base']['source']} (weights {about['base']['fingerprint']}), pruned to {about['pattern']}"


def _matrices_of_checkpoint(folder: Path) -> Iterator[Matrix]:
    from sparseswaps.model.blocks import find_layers, skeleton  # takes seconds to import

    checkpoint = Checkpoint(folder)
    shapes = checkpoint.shapes()  # names a missing file, before transformers builds the model
    for layers in find_layers(skeleton(folder, trust_remote_code=False), shapes):
        for layer in layers:
            name = f"{layer.tensor}.{layer.expert}" if layer.fused else layer.tensor
            yield _describe(name, layer.read_with(checkpoint.tensor) != 0)


def _matrices_of_tensor(name: str, mask: Tensor) -> Iterator[Matrix]:
    if mask.ndim == 2:
        yield _describe(name, mask)
    else:
        for expert, of_expert in enumerate(mask):
            yield _describe(f"{name}.{expert}", of_expert)


def _describe(name: str, mask: Tensor) -> Matrix:
    """Describe a mask, boolean [d_out, d_in]."""
    d_out, d_in = mask.shape
    kept = mask.sum(1)
    pattern = None
    for size in reversed([size for size in _GROUPS if size < d_in and d_in % size == 0]):
        most = int(mask.view(d_out, -1, size).sum(-1).max())
        if most < size and kept.sum() >= _FULL * mask.numel() * most / size:
            pattern = f"{most}:{size}"  # 2:4 is also 4:8: the smallest size counts
    return Matrix(name, (d_out, d_in), int((~mask).sum()), int(kept.min()), int(kept.max()), pattern)
