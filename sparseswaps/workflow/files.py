"""The files from outside that a study reads, and the identities of their contents."""

from collections.abc import Iterable
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from sparseswaps import embedded
from sparseswaps.calibration.settings import TextSource, is_file
from sparseswaps.model.directory import companion_files, weight_files
from sparseswaps.workflow.config import ModelSource


def model_files(source: ModelSource) -> list[str]:
    """Return a model's files; none for a model of the hub, whose commit hash stands for its files."""
    if source.revision is not None:
        return []
    return [str(source.folder / name) for name in companion_files(source.folder) + weight_files(source.folder)]


def text_files(text: TextSource) -> list[str]:
    """Return the file of a text, if the text is a local file."""
    return [text.text] if is_file(text.text) else []


def task_files(include: str | None) -> list[str]:
    """Return all files of a folder of lm-eval tasks."""
    return sorted(str(path) for path in Path(include).rglob("*") if path.is_file()) if include else []


def embedded_task_files(tasks: list[str]) -> list[Path]:
    """Return the files of those tasks that come with the project."""
    paths = [embedded.TASKS_FOLDER / task for task in tasks if task in embedded.TASKS]
    return [path.with_suffix(ending) for path in paths for ending in (".yaml", ".jsonl")]


def identities_of_text(text: TextSource, use: str) -> dict[str, Any]:
    """Return the identity of a text's file. The embedded text has a file for each `use`, identified by its content."""
    if text.text == "embedded":
        path = embedded.TEXT / f"{use}.jsonl"
        return {path.name: _content(str(path), path.stat().st_size, path.stat().st_mtime_ns)}
    return identities(text_files(text))


def identities(paths: Iterable[str | Path]) -> dict[str, Any]:
    """Return the identity of each file by its name."""
    return {Path(path).name: identity(path) for path in paths}


def identity(path: str | Path) -> Any:
    """Return the SHA-256 of a file's content. Of a file over 1 MB, which Snakemake does not compare by its content,
    return the size and the time of change."""
    status = Path(path).stat()
    if status.st_size > 1e6:
        return [status.st_size, status.st_mtime_ns]
    return _content(str(path), status.st_size, status.st_mtime_ns)


@cache
def _content(path: str, size: int, changed: int) -> str:
    return sha256(Path(path).read_bytes()).hexdigest()
