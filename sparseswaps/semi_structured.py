"""2:4 matrices in torch's semi-structured layout: the kept values, and two bits for each that say where they stood.

The layout is that of torch's CUTLASS backend, which torch packs and unpacks in its own operations, on any device. The
other backend's is known to the cuSPARSELt library alone, and only that one runs on GPUs later than Ampere. So files
hold the first, and `load` packs for the backend that runs. They hold it as pairs of plain tensors: safetensors cannot
write torch's class for the two, and torch.load reads it only where a file may run code.
"""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.sparse import (
    SparseSemiStructuredTensor,
    SparseSemiStructuredTensorCUSPARSELT,
    SparseSemiStructuredTensorCUTLASS,
)
from torch.sparse._semi_structured_conversions import (
    sparse_semi_structured_from_dense_cutlass,
    sparse_semi_structured_to_dense_cutlass,
)
from transformers import PreTrainedModel

from sparseswaps.blocks import skeleton
from sparseswaps.errors import BrokenFileError, InputError, one_line
from sparseswaps.files import replacing
from sparseswaps.modeldir import companion_files, config_of, opened, weight_files

# Of weight files: transformers finds none under such a name, and so fills none with random numbers.
_PREFIX = "compressed-"


def refusal(weight: Tensor) -> str | None:
    """Why a matrix cannot be compressed; None where it can.

    CUTLASS's demands on shapes are the stricter, so that both backends take what is not refused.
    """
    if weight.ndim != 2 or weight.dtype not in (torch.float16, torch.bfloat16):
        return f"{weight.ndim} dimensions of {weight.dtype}, not 2 of float16 or bfloat16"
    least = SparseSemiStructuredTensorCUTLASS._DTYPE_SHAPE_CONSTRAINTS[weight.dtype]
    if weight.shape[0] % least.sparse_min_rows or weight.shape[1] % least.sparse_min_cols:
        sizes = f"{least.sparse_min_rows} and {least.sparse_min_cols}"
        return f"{weight.shape[0]} x {weight.shape[1]}, which are no multiples of {sizes}"
    if ((weight.reshape(-1, 4) != 0).sum(-1) > 2).any():
        return "more than two of four weights are kept, so it is not 2:4"
    return None


def compress(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Pack a 2:4 matrix, on its device, into 9/16 of its bytes.

    Args:
        weight: float16 or bfloat16 [d_out, d_in], multiples of 32 and 64; in each four successive weights of a row two
            at most are not 0.

    Returns:
        The kept values, [d_out, d_in / 2] in the weight's dtype, and their places, int16 [d_out, d_in / 16] in the
        order of CUTLASS's kernels.

    Raises:
        InputError: the matrix is another, by `refusal`.
    """
    if (why := refusal(weight)) is not None:
        raise InputError(f"cannot be compressed: {why}")
    return sparse_semi_structured_from_dense_cutlass(weight.contiguous())


def decompress(values: Tensor, places: Tensor) -> Tensor:
    """What `compress` packed, [d_out, d_in]: the same to the bit, but for a pruned -0, which comes back as 0."""
    return sparse_semi_structured_to_dense_cutlass(values, places)


def export(source: str | Path, target: str | Path) -> list[str]:
    """Write a pruned checkpoint with its 2:4 matrices compressed; `load` reads it, transformers alone does not.

    A tensor `NAME` that is compressed becomes `NAME.values` and `NAME.places`; all others, and the files that belong to
    the model, stay what they are. Weight files keep their names behind `compressed-`. One is in memory at a time.

    Args:
        source: the checkpoint.
        target: the folder to write; complete or not there at all.

    Returns:
        The names of the compressed tensors.

    Raises:
        InputError: the checkpoint is none, or there is nothing in it to compress.
    """
    source, device = Path(source), "cuda" if torch.cuda.is_available() else "cpu"
    found = []
    with replacing(target) as folder:
        folder.mkdir()
        for name in companion_files(source):
            shutil.copyfile(source / name, folder / name)
        for file in weight_files(source):
            tensors, compressed = {}, []
            with opened(source / file) as weights:
                for name in weights.keys():  # noqa: SIM118
                    tensor = weights.get_tensor(name)
                    if refusal(tensor) is None:
                        parts = compress(tensor.to(device))
                        tensors |= {f"{name}.values": parts[0].cpu(), f"{name}.places": parts[1].cpu()}
                        compressed.append(name)
                    else:
                        tensors[name] = tensor
                about = (weights.metadata() or {}) | {"compressed": json.dumps(compressed)}
            save_file(tensors, folder / f"{_PREFIX}{file}", metadata=about)
            found += compressed
        if not found:
            raise InputError(
                f"{source}: holds nothing to compress: no float16 or bfloat16 matrix whose sides are multiples of 32 "
                "and 64 is 2:4"
            )
    return found


def load(folder: str | Path, device: str = "cuda", trust_remote_code: bool = False) -> PreTrainedModel:
    """The model of a folder that `export` wrote, in eval mode and in its stored dtype.

    On a CUDA device the weights of its 2:4 linear layers are `SparseSemiStructuredTensor`; elsewhere torch has no
    kernels for those, and they are dense. The whole model is held dense in host memory before.

    Raises InputError when the folder holds something else, or files are broken or missing.
    """
    folder = Path(folder)
    config_of(folder)
    tensors = _read(folder)
    empty = skeleton(folder, trust_remote_code)
    model, info = type(empty).from_pretrained(None, config=empty.config, state_dict=tensors, output_loading_info=True)
    if info["missing_keys"]:
        raise InputError(f"{folder}: lacks {', '.join(sorted(info['missing_keys']))}")
    if model.can_generate() and (folder / "generation_config.json").is_file():
        model.generation_config = type(model.generation_config).from_pretrained(folder)
    return to_semi_structured(model.eval(), device) if torch.device(device).type == "cuda" else model.to(device)


def _read(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder that `export` wrote, dense."""
    found = {}
    for path in sorted(folder.glob(f"{_PREFIX}*.safetensors")):
        with opened(path) as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            try:
                for name in json.loads(file.metadata()["compressed"]):
                    parts = tensors.pop(f"{name}.values"), tensors.pop(f"{name}.places")
                    tensors[name] = decompress(*parts)
            except (KeyError, TypeError, ValueError, RuntimeError) as error:
                what = f"not what export() wrote ({one_line(error)})"
                raise BrokenFileError(path, what, "export the checkpoint again") from None
        found |= tensors
    if not found:
        raise InputError(f"{folder}: holds no {_PREFIX}*.safetensors, which export() writes")
    return found


def backend() -> type[SparseSemiStructuredTensor]:
    """The class of semi-structured tensors to compute with: cuSPARSELt's where torch was built with it."""
    available = torch.backends.cusparselt.is_available()
    return SparseSemiStructuredTensorCUSPARSELT if available else SparseSemiStructuredTensorCUTLASS


def layers_2_4(model: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers whose weights can be compressed, by name."""
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    return {name: module for name, module in linear.items() if refusal(module.weight) is None}


def to_semi_structured(model: PreTrainedModel, device: str) -> PreTrainedModel:
    """Bring a pruned model to a CUDA device, in place, with semi-structured weights in its 2:4 linear layers.

    Their dense weights come to the device one at a time.
    """
    layers = layers_2_4(model)
    waiting = {name: layer.weight for name, layer in layers.items()}
    for layer in layers.values():
        layer.weight = None  # these tensors cannot be moved once they are there
    model.to(device)
    for name, layer in layers.items():
        layer.weight = semi_structured(waiting.pop(name).to(device), backend())
    return model


def semi_structured(weight: Tensor, of: type[SparseSemiStructuredTensor]) -> nn.Parameter:
    """A 2:4 matrix on a CUDA device, [d_out, d_in], as a parameter for the kernels of a backend."""
    return nn.Parameter(of.from_dense(weight.detach().contiguous()), requires_grad=False)
