"""The exceptions that users are meant to see."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class InputError(ValueError):
    """Bad input from outside: one line that names the key, argument, file or layer, and says what to do."""


class BrokenFileError(InputError):
    """A file (`path`) that is damaged, incomplete, or of another kind or model than expected (`what`)."""

    RERUN = "delete it and run snakemake again"

    def __init__(self, path: str | Path, what: str, remedy: str = RERUN) -> None:
        super().__init__(f"{path}: {what}; {remedy}")
        self.path, self.what = Path(path), what


def one_line(error: object) -> str:
    """Return the message of another library's error without line breaks."""
    return " ".join(str(error).split())


def transformers_message(error: Exception) -> str:
    """Return the first line of an error of transformers, or the setting that lets it run a model's own code."""
    text = str(error).strip() or type(error).__name__
    if "trust_remote_code" in text:
        remedy = "models.<name>.trust_remote_code: true, or --trust-remote-code on the command line"
        return f"it needs the code in its own files; if you trust that, set {remedy}"
    return text.splitlines()[0]


@contextmanager
def prefix_errors(prefix: str) -> Iterator[None]:
    """Put `prefix` before the message of every InputError that is raised inside, and into the notes of other errors."""
    try:
        yield
    except InputError as error:
        error.args = (f"{prefix}: {error}",)
        raise
    except Exception as error:
        error.add_note(f"while working on {prefix}")
        raise
