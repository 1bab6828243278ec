"""Compare the results of two runs of one study: every tensor, loss, perplexity and score must be equal to the bit.

    python .ci/compare_results.py BEFORE AFTER [--part]    (two folders `results`; --part: AFTER has more files)

Times and the records of what made a file may differ, and nothing else. Exits with 1 where a file differs or is missing.
"""

import json
import sys
from collections import Counter
from pathlib import Path

import pandas
import torch
from safetensors import safe_open

IGNORED = {"seconds", "key", "provenance", "sparseswaps.json", "model.json", "tasks", "reports"}


def read(path: Path) -> object:
    """Return what a file says, without the times and records that may differ between two runs."""
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if path.suffix == ".csv":
        try:
            table = pandas.read_csv(path)
        except pandas.errors.EmptyDataError:
            return None
        return table.drop(columns=[name for name in table if name in IGNORED])
    if path.suffix == ".json":
        content = json.loads(path.read_text(encoding="utf-8"))
        return content
    return path.read_bytes()


def equal(one: object, other: object) -> bool:
    """Tell whether two contents of `read` are equal to the bit."""
    if isinstance(one, pandas.DataFrame):
        return one.equals(other)
    if isinstance(one, dict) and all(isinstance(value, torch.Tensor) for value in one.values()):
        return one.keys() == other.keys() and all(
            tensor.dtype == other[name].dtype and torch.equal(tensor, other[name]) for name, tensor in one.items()
        )
    if isinstance(one, dict):
        return {k: v for k, v in one.items() if k not in IGNORED} == {
            k: v for k, v in other.items() if k not in IGNORED
        }
    return one == other


def kind(path: Path) -> str:
    """Return the kind of an artifact: its folder's name for files per block, its own name for the others."""
    return path.parent.name if path.stem.startswith("block") or path.parent.name == "perplexity" else path.name


def files(folder: Path) -> set[Path]:
    """Return the paths of the artifacts below a folder, relative to the folder."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {path for path in paths if not IGNORED.intersection(path.parts) and not path.name.startswith(".")}


def main() -> None:
    before, after, *part = map(Path, sys.argv[1:])
    paths, others = files(before), files(after)
    missing = sorted(map(str, paths - others if part else paths ^ others))
    compared, different = Counter(), []
    for path in sorted(paths & others):
        compared[kind(path)] += 1
        if not equal(read(before / path), read(after / path)):
            different.append(str(path))
    for name, count in sorted(compared.items()):
        print(f"{count:5d} {name}")
    print(f"{sum(compared.values())} files compared, {len(different)} different, {len(missing)} in one run only")
    if different or missing:
        sys.exit("\n".join([*different[:20], *(f"in one run only: {path}" for path in missing[:20])]))


if __name__ == "__main__":
    main()
