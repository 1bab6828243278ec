"""Documents for calibration and evaluation: from the embedded text, local files, or data sets of the hub."""

import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sparseswaps import embedded
from sparseswaps.base.errors import InputError, one_line
from sparseswaps.calibration.settings import TextSource, is_file

PRESETS = {"c4": "allenai/c4", "wikitext2": "Salesforce/wikitext"}
_SEPARATOR = "<|endoftext|>"  # between the documents of a .txt file


def load(source: str | TextSource, use: str) -> Sequence[str]:
    """Load the documents of a text. The documents of a data set of the hub stay on disk until they are read.

    Args:
        source: the text, or only its name: `embedded` (sources of Python's standard library), a `.txt` file (documents
            divided by `<|endoftext|>`), a `.jsonl` file, gzipped or not (one document a line), a `.parquet` file, or a
            data set of the hub by its id or by a name in `PRESETS`.
        use: `calibration` or `evaluation`, the part of the embedded text.

    Raises:
        InputError: the text cannot be read, or a line or a row does not hold text.
    """
    source = TextSource(text=source) if isinstance(source, str) else source
    text, field = source.text, source.field
    if text == "embedded":
        return [document for _, document in _read_lines(embedded.TEXT / f"{use}.jsonl", "text")]
    if not is_file(text):
        return _load_from_hub(PRESETS.get(text, text), source)
    path = Path(text)
    try:
        if path.suffix == ".txt":
            parts = path.read_text(encoding="utf-8").split(_SEPARATOR)
            return [part.strip() for part in parts if part.strip()]
        documents = []
        for place, document in _read_parquet(path, field) if path.suffix == ".parquet" else _read_lines(path, field):
            if not isinstance(document, str):
                message = f"{place} has no text in field {field!r}; mend the file, or set `field`"
                raise InputError(f"text {text!r}: {message}")
            documents.append(document)
        return documents
    except InputError:
        raise
    except (OSError, ValueError, EOFError, zlib.error) as error:  # ValueError: also undecodable, or not Parquet
        raise InputError(f"text {text!r}: cannot be read ({one_line(error)}); copy or download it again") from None


def _read_lines(path: Path, field: str) -> Iterator[tuple[str, Any]]:
    open_text = gzip.open if path.suffix == ".gz" else open
    with open_text(path, "rt", encoding="utf-8", newline="\n") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    document = json.loads(line)[field]
                except (json.JSONDecodeError, KeyError, TypeError):
                    document = None
                yield f"line {number}", document


def _read_parquet(path: Path, field: str) -> Iterator[tuple[str, Any]]:
    import pandas

    for number, document in enumerate(pandas.read_parquet(path, columns=[field])[field], 1):
        yield f"row {number}", document


def _load_from_hub(name: str, source: TextSource) -> Sequence[str]:
    from datasets import load_dataset
    from huggingface_hub import hf_hub_download

    split, field, revision = source.split, source.field, source.revision
    try:
        if source.files is None:
            rows = load_dataset(name, source.subset, split=split, revision=revision)
        else:  # from the cache's folder: with a hub id, `load_dataset` needs a connection to find chosen files
            files = [source.files] if isinstance(source.files, str) else source.files
            paths = [hf_hub_download(name, file, repo_type="dataset", revision=revision) for file in files]
            folder = paths[0].removesuffix(files[0])
            rows = load_dataset(folder, data_files={split.partition("[")[0]: files}, split=split)
    except Exception as error:  # a data set, the hub or the network may raise anything
        cause = f"{type(error).__name__}: {one_line(error)}"
        raise InputError(
            f"the data set {name!r} cannot be loaded ({cause}); check its id, `subset`, `split`, `files` and "
            "`revision`, log in with `hf auth login` if it is gated, or name a local file"
        ) from None
    if getattr(rows.features.get(field), "dtype", None) not in ("string", "large_string"):
        columns = ", ".join(rows.features)
        raise InputError(f"the data set {name!r} has no text in a column {field!r}; set `field` to one of {columns}")
    if (missing := rows.data.column(field).null_count) > 0:
        raise InputError(f"the data set {name!r} has {missing} rows without text in column {field!r}; take another")
    return rows[field]
