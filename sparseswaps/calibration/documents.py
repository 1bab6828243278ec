"""Documents for calibration and evaluation: from the embedded text, local files, or data sets of the hub."""

import gzip
import json
import zlib
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from sparseswaps import embedded
from sparseswaps.base.errors import InputError, one_line
from sparseswaps.calibration.settings import FILES, TextSource, is_file
from sparseswaps.model.directory import HUB_ID

PRESETS = {"c4": "allenai/c4", "wikitext2": "Salesforce/wikitext"}
_SEPARATOR = "<|endoftext|>"  # between the documents of a .txt file


def load(source: str | TextSource, use: str) -> Sequence[str]:
    """Load the documents of a text. The documents of a data set of the hub stay on disk until they are read.

    A text may be given by its name alone: `embedded` (sources of Python's standard library), a `.txt` file (documents
    divided by `<|endoftext|>`), a `.jsonl` file, gzipped or not (one document a line), a `.parquet` file, or a data set
    of the hub by its id or by a name in `PRESETS`. `use` is the part of the embedded text, `calibration` or
    `evaluation`. Raises InputError when the text cannot be read, or a line or a row does not hold text.
    """
    source = TextSource(text=source) if isinstance(source, str) else source
    text, field = source.text, source.field
    if text == "embedded":
        return list(_read_file(embedded.TEXT / f"{use}.jsonl", "text").values())
    if not is_file(text):
        if Path(text).is_file() or not (Path(text).exists() or HUB_ID.fullmatch(text)):
            raise InputError(f"text {text!r}: neither a data set of the hub nor a file that ends in {', '.join(FILES)}")
        return _load_from_hub(PRESETS.get(text, text), source)
    if not Path(text).is_file():
        raise InputError(f"text {text!r}: no such file; check the path")
    try:
        documents = _read_file(Path(text), field)
    except InputError:
        raise
    except (OSError, ValueError, EOFError, zlib.error) as error:  # ValueError: also undecodable, or not Parquet
        raise InputError(f"text {text!r}: cannot be read ({one_line(error)}); copy or download it again") from None
    for position, document in documents.items():
        if not isinstance(document, str):
            message = f"{position} has no text in field {field!r}; mend the file, or set `field`"
            raise InputError(f"text {text!r}: {message}")
    return list(documents.values())


def _read_file(path: Path, field: str) -> dict[str, Any]:
    """Return the documents of a file by their positions in the file, such as "line 3"."""
    if path.suffix == ".txt":
        parts = path.read_text(encoding="utf-8").split(_SEPARATOR)
        return {f"part {number}": part.strip() for number, part in enumerate(parts, 1) if part.strip()}
    if path.suffix == ".parquet":
        pandas = _import("pandas", "Parquet files")
        column = pandas.read_parquet(path, columns=[field])[field]
        return {f"row {number}": document for number, document in enumerate(column, 1)}
    documents = {}
    open_text = gzip.open if path.suffix == ".gz" else open
    with open_text(path, "rt", encoding="utf-8", newline="\n") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    documents[f"line {number}"] = json.loads(line)[field]
                except (json.JSONDecodeError, KeyError, TypeError):
                    documents[f"line {number}"] = None
    return documents


def _import(package: str, use: str) -> Any:
    """Import a package of the extra `workflow`. Raises InputError when it is not installed."""
    try:
        return import_module(package)
    except ModuleNotFoundError:
        raise InputError(f'{use} need {package}: pip install "sparseswaps[workflow]"') from None


def _load_from_hub(name: str, source: TextSource) -> Sequence[str]:
    from huggingface_hub import hf_hub_download

    load_dataset = _import("datasets", "data sets of the hub").load_dataset
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
        raise InputError(
            f"the data set {name!r} cannot be loaded ({type(error).__name__}: {one_line(error)}); check its id, "
            "`subset`, `split`, `files` and `revision`, log in with `hf auth login` if it is gated, or name a file "
            f"that ends in {', '.join(FILES)}"
        ) from None
    if getattr(rows.features.get(field), "dtype", None) not in ("string", "large_string"):
        columns = ", ".join(rows.features)
        raise InputError(f"the data set {name!r} has no text in a column {field!r}; set `field` to one of {columns}")
    if (missing := rows.data.column(field).null_count) > 0:
        raise InputError(f"the data set {name!r} has {missing} rows without text in column {field!r}; take another")
    return rows[field]
