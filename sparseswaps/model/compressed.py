"""Read checkpoints that `sparseswaps compress` wrote. This file needs safetensors and torch alone, and can be copied.

A compressed checkpoint is a folder with the small files of the checkpoint (config.json, tokenizer) and weight files
that end in `.sparse.safetensors`. A tensor with many zeros is stored in two pieces, `<name>!positions` and
`<name>!values`; every other tensor is stored as it is. The file's metadata has a JSON table under the key `sparse`,
with an entry for each tensor in pieces: `shape`; `groups`, [N, M] or null; `crc32` of the bytes of both pieces.

- `values` are the tensor's values that are not zero, in order. Zeros may follow, to a multiple of eight bytes.
- `positions` are int64 words. Without groups, a word is eight bytes, from low to high, and bit 7 - i % 8 of byte i // 8
  says whether value i is stored. With groups, N of every M consecutive values are stored. The set of their positions
  has a number, its row in `sets_of_positions`. A word holds as many numbers as fit 63 bits: they are its digits to the
  base of the number of sets, the first number the lowest digit.
"""

import json
import zlib
from collections.abc import Iterator
from functools import cache
from itertools import combinations
from math import comb, prod
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

ENDING = ".sparse.safetensors"
POSITIONS, VALUES = "!positions", "!values"


def load_compressed(path: str | Path, **options: Any) -> Any:
    """Load a compressed checkpoint into its transformers model, with every bit of the checkpoint it was made from.

    Args:
        path: the folder that `compress` wrote.
        options: of transformers' `from_pretrained`, such as `dtype` and `device_map`. While the model is loaded, host
            memory also holds all weights once.

    Returns:
        A `PreTrainedModel`, in eval mode.

    Raises:
        ValueError: the folder holds no compressed checkpoint, or a file is damaged; the line names it.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(path)
    model = AutoModelForCausalLM._model_mapping[type(config)]
    return model.from_pretrained(None, config=config, state_dict=dict(read_compressed(path)), **options)


def read_compressed(path: str | Path) -> Iterator[tuple[str, Tensor]]:
    """Yield the name and the value of each tensor of the checkpoint that a compressed one was made from.

    Memory holds one tensor at a time. Raises ValueError as `load_compressed` does.
    """
    files = sorted(Path(path).glob(f"*{ENDING}"))
    if not files:
        raise ValueError(f"{path}: holds no *{ENDING}; name a folder that `sparseswaps compress` wrote")
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            table = json.loads((tensors.metadata() or {}).get("sparse", "{}"))
            names = [name for name in tensors.keys() if not name.endswith((POSITIONS, VALUES))]  # noqa: SIM118
            yield from ((name, tensors.get_tensor(name)) for name in names)
            for name, entry in table.items():
                positions, values = tensors.get_tensor(name + POSITIONS), tensors.get_tensor(name + VALUES)
                if checksum(positions, values) != entry["crc32"]:
                    raise ValueError(f"{file}: checksum mismatch in {name}: copy or compress the checkpoint again")
                yield name, expand(positions, values, entry["shape"], entry["groups"])


def expand(positions: Tensor, values: Tensor, shape: list[int], groups: list[int] | None) -> Tensor:
    """Return a tensor from its pieces."""
    stored = _read_bits(positions, prod(shape)) if groups is None else _read_groups(positions, prod(shape), *groups)
    tensor = torch.zeros(prod(shape), dtype=values.dtype)
    tensor[stored] = values[: int(stored.sum())]
    return tensor.view(shape)


def _read_bits(positions: Tensor, count: int) -> Tensor:
    bits = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8)
    return (positions.view(torch.uint8)[:, None] & bits).bool().flatten()[:count]


def _read_groups(positions: Tensor, count: int, n: int, m: int) -> Tensor:
    sets = sets_of_positions(n, m)
    digits = torch.empty(len(positions), digits_of_word(n, m), dtype=torch.int64)
    words = positions.clone()
    for digit in range(digits.shape[1]):
        digits[:, digit] = words % len(sets)
        words //= len(sets)
    return sets[digits.flatten()[: count // m]].flatten()


@cache
def sets_of_positions(n: int, m: int) -> Tensor:
    """Return all sets of N of M positions in lexicographic order: boolean [sets, M]."""
    sets = torch.zeros(comb(m, n), m, dtype=torch.bool)
    for number, positions in enumerate(combinations(range(m), n)):
        sets[number, list(positions)] = True
    return sets


def digits_of_word(n: int, m: int) -> int:
    """Return how many numbers of sets a word of 63 bits holds."""
    digits = 1
    while comb(m, n) ** (digits + 1) <= 2**63:
        digits += 1
    return digits


def checksum(positions: Tensor, values: Tensor) -> int:
    """Return the CRC-32 of the bytes of both pieces of a tensor."""
    return zlib.crc32(values.view(torch.uint8).numpy(), zlib.crc32(positions.view(torch.uint8).numpy()))
