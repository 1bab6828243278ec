"""The one exception that users are meant to see."""

from collections.abc import Iterator
from contextlib import contextmanager


class InputError(ValueError):
    """Bad input from outside: one line that names the key, file or layer, and says what to do."""


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
