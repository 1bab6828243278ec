"""Running out of GPU memory: a job goes on with smaller batches."""

import gc
import logging
from collections.abc import Callable
from typing import TypeVar

import torch

from sparseswaps.base.errors import InputError
from sparseswaps.base.progress import Report, ignore_progress

T = TypeVar("T")


def halve_until_it_fits(step: Callable[[int], T], size: int, what: str, lower: str | None = None) -> tuple[T, int]:
    """Run `step(size)`; with half the size, and a line in the log, for as long as the GPU has no memory for it.

    Args:
        step: what needs memory in proportion to its argument. It may be run again, so that it must leave no trace when
            it fails.
        size: at first, at least 1.
        what: of which it is a number, in the plural.
        lower: the setting that makes each of them smaller, if there is one.

    Returns:
        What `step` returned, and the size that it could be run with.

    Raises:
        InputError: there is no memory for one either.
    """
    while True:
        try:
            return step(size), size
        except torch.OutOfMemoryError:
            pass  # the error holds the frames that failed and their tensors: out of this block, it is gone
        if size == 1:
            instead = f"lower {lower}, or set gpu: false" if lower else "set gpu: false"
            raise InputError(f"out of GPU memory with one of the {what} at a time; {instead}")
        logging.warning("out of memory at %d %s: going on with %d", size, what, size // 2)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        size //= 2


def map_slices(
    step: Callable[[slice], T],
    count: int,
    size: int,
    what: str,
    lower: str | None = None,
    progress: Report = ignore_progress,
) -> list[T]:
    """What `step` returns for one slice of `range(count)` after the other, each of `size` at first, and of half as many
    from where the GPU had no memory for them.

    Args and errors are those of `halve_until_it_fits`; `progress` is told how many of `count` are done.
    """
    found: list[T] = []
    start, size = 0, min(size, count)
    while start < count:
        result, size = halve_until_it_fits(
            lambda most, at=start: step(slice(at, min(at + most, count))), size, what, lower
        )
        found.append(result)
        start = min(start + size, count)
        progress(start, 0)
    return found
