"""Files that are complete under their final name, or not there at all; JSON and CSV."""

import csv
import errno
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from io import StringIO
from pathlib import Path
from typing import Any
from uuid import uuid4

from sparseswaps.base.errors import BrokenFileError, InputError

_REMEDIES = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room",
    errno.EROFS: "make it writable",
    errno.EACCES: "make it writable",
}


@contextmanager
def write_atomically(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, of a file or folder. Rename it to `path` on success, delete it on failure.

    The temporary files of killed attempts are deleted. If such an attempt still runs, that attempt fails.
    Raises InputError when the disk is full or read-only.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{uuid4().hex}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for leftover in path.parent.glob(f".{escape(path.name)}.*.partial"):
            _remove(leftover)
        yield partial
        if path.is_dir():  # a folder cannot be renamed over a folder that is not empty
            _remove(path)
        partial.replace(path)
    except OSError as error:
        if error.errno not in _REMEDIES:
            raise
        remedy = f"{_REMEDIES[error.errno]} and run the same command again"
        raise InputError(f"{path}: cannot be written: {error.strerror}; {remedy}") from None
    finally:
        _remove(partial)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def write_json(path: str | Path, content: Any) -> None:
    """Write `content` as indented JSON. Raises ValueError for NaN and infinity."""
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    with write_atomically(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_csv(path: str | Path, rows: list[dict[str, Any]]) -> None:
    """Write rows that have the same keys, under a header of the keys. None becomes an empty field."""
    with write_atomically(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0] if rows else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_csv(path: str | Path) -> list[dict[str, Any]]:
    """Read the rows that `write_csv` wrote, as they were. Raises BrokenFileError when the file is incomplete."""
    try:
        text = Path(path).read_bytes().decode("utf-8")
        rows = list(csv.DictReader(StringIO(text, newline="")))
    except (UnicodeDecodeError, csv.Error):
        text, rows = "", []
    complete = all(None not in row and None not in row.values() for row in rows)
    if not (text.endswith("\n") and complete and (rows or text == "\n")):
        raise BrokenFileError(path, "not a complete table")
    return [{name: _parse(field) for name, field in row.items()} for row in rows]


def _parse(text: str) -> Any:
    words = {"True": True, "False": False, "": None}
    if text in words:
        return words[text]
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text


def read_json(path: str | Path) -> Any:
    """Read a JSON file. Raises InputError when the file is missing or not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; check the path") from None
    except (ValueError, RecursionError) as error:  # ValueError: also not UTF-8, or a number of thousands of digits
        remedy = "copy or download it again; if a job wrote it, delete it and run snakemake again"
        raise BrokenFileError(path, f"not valid JSON ({error})", remedy) from None
