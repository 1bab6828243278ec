"""Where calibration and evaluation text comes from: the embedded text, local files, data sets of the hub."""

import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sparseswaps.base.errors import InputError, one_line
from sparseswaps.embedded import corpus

PRESETS = {"c4": "allenai/c4", "wikitext2": "Salesforce/wikitext"}
FILES = (".txt", ".jsonl", ".jsonl.gz", ".json.gz", ".parquet")
HUB_KEYS = ("subset", "files", "revision")  # settings that mean something for data sets of the hub alone
SETTINGS = ("text", "field", "split", *HUB_KEYS)  # what decides the documents

_SEPARATOR = "<|endoftext|>"


def is_file(text: str) -> bool:
    """Whether a text is a local file: its name says so, whether it is there or not."""
    return text.endswith(FILES)


def load(
    text: str,
    use: str,
    field: str = "text",
    split: str = "train",
    subset: str | None = None,
    files: str | list[str] | None = None,
    revision: str | None = None,
) -> Sequence[str]:
    """The documents of a text; those of a data set of the hub stay on disk until they are looked at.

    Args:
        text: `embedded` (the standard library's sources), a `.txt` file (documents divided by `<|endoftext|>`), a
            `.jsonl` file, gzipped or not (one document a line, in `field`), a `.parquet` file, or a data set of the
            hub by its id or by a name in `PRESETS`.
        use: `calibration` or `evaluation`, the split of the embedded text.
        field: the JSON field or the column that holds a document.
        split, subset, revision: which part of a data set of the hub, as `datasets.load_dataset` takes them.
        files: the names of its files that make up the split, in place of a subset.

    Raises:
        InputError: the text cannot be read, or a line or a column does not hold text.
    """
    if text == "embedded":
        return [source for _, source in corpus.documents(use)]
    if not is_file(text):
        return _of_hub(PRESETS.get(text, text), field, split, subset, files, revision)
    path = Path(text)
    try:
        if path.suffix == ".txt":
            parts = path.read_text(encoding="utf-8").split(_SEPARATOR)
            return [part.strip() for part in parts if part.strip()]
        rows = _parquet(path, field) if path.suffix == ".parquet" else _json_lines(path, field)
        found = []
        for place, document in rows:
            if not isinstance(document, str):
                raise InputError(f"text {text!r}: {place} holds no text in its field {field!r}")
            found.append(document)
        return found
    except InputError:
        raise
    except (OSError, ValueError, EOFError, zlib.error) as error:  # also undecodable, truncated or no Parquet at all
        raise InputError(f"text {text!r}: cannot be read ({one_line(error)})") from None


def _json_lines(path: Path, field: str) -> Iterator[tuple[str, Any]]:
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8", newline="\n") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    document = json.loads(line)[field]
                except (json.JSONDecodeError, KeyError, TypeError):
                    document = None
                yield f"line {number}", document


def _parquet(path: Path, field: str) -> Iterator[tuple[str, Any]]:
    import pandas

    for number, document in enumerate(pandas.read_parquet(path, columns=[field])[field], 1):
        yield f"row {number}", document


def _of_hub(
    name: str, field: str, split: str, subset: str | None, files: str | list[str] | None, revision: str | None
) -> Sequence[str]:
    from datasets import load_dataset
    from huggingface_hub import hf_hub_download

    try:
        if files is None:
            found = load_dataset(name, subset, split=split, revision=revision)
        else:  # from the cache's folder: `load_dataset` finds chosen files of a hub id with a connection only
            files = [files] if isinstance(files, str) else files
            paths = [hf_hub_download(name, file, repo_type="dataset", revision=revision) for file in files]
            folder = paths[0].removesuffix(files[0])
            found = load_dataset(folder, data_files={split.partition("[")[0]: files}, split=split)
    except Exception as error:  # whatever a data set, the hub or the network between sets off
        cause = f"{type(error).__name__}: {one_line(error)}"
        raise InputError(
            f"the data set {name!r} cannot be loaded ({cause}); check its id, `subset`, `split`, `files` and "
            "`revision`, log in with `hf auth login` if it is gated, or name a local file"
        ) from None
    if getattr(found.features.get(field), "dtype", None) not in ("string", "large_string"):
        raise InputError(f"the data set {name!r} has no text in a column {field!r}; it has {', '.join(found.features)}")
    if (missing := found.data.column(field).null_count) > 0:
        raise InputError(f"the data set {name!r} has {missing} rows without text in its column {field!r}")
    return found[field]
