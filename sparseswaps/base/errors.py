"""The one exception that users are meant to see."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class InputError(ValueError):
    """Bad input from outside: one line that names the key, argument, file or layer, and says what to do."""


class BrokenFileError(InputError):
    """A file that is not, or no longer, what was written: its path, what is wrong with it, and what to do."""

    OF_A_JOB = "delete it and run snakemake again"

    def __init__(self, path: str | Path, what: str, remedy: str = OF_A_JOB) -> None:
        super().__init__(f"{path}: {what}; {remedy}")
        self.path, self.what = Path(path), what


def one_line(error: object) -> str:
    """Somebody else's message without its line breaks."""
    return " ".join(str(error).split())


def reason(error: Exception) -> str:
    """What went wrong in transformers, in a line; where it will not run a model's own code, the key that allows it."""
    text = str(error).strip() or type(error).__name__
    if "trust_remote_code" in text:
        return "it needs the code in its own files; if you trust that, set models.<name>.trust_remote_code: true"
    return text.splitlines()[0]


@contextmanager
def naming(place: str) -> Iterator[None]:
    """Put `place` before the message of any InputError that is raised inside, and into the notes of other errors."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{place}: {error}") from None
    except Exception as error:
        error.add_note(f"while working on {place}")
        raise
