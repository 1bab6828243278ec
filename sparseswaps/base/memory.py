"""Smaller batches when a GPU runs out of memory, so that a job continues."""

import gc
import logging
from collections.abc import Callable
from typing import TypeVar

import torch

from sparseswaps.base.errors import InputError
from sparseswaps.base.progress import Report, ignore_progress

T = TypeVar("T")


def halve_until_it_fits(step: Callable[[int], T], size: int, what: str, lower: str = "") -> tuple[T, int]:
    """Call `step(size)`; halve the size, with a line in the log, each time the GPU runs out of memory.

    A call of `step` that fails must change nothing. `what` names the things that `size` counts, in the plural; `lower`
    is the setting that makes each of them smaller. Returns the result of `step`, and the size that fitted. Raises
    InputError when size 1 does not fit either.
    """
    while True:
        try:
            return step(size), size
        except torch.OutOfMemoryError:
            pass  # the error holds the failed frames and their tensors until this block ends
        if size == 1:
            instead = f"lower {lower}, or use the CPU (gpu: false)" if lower else "use the CPU (gpu: false)"
            raise InputError(f"out of GPU memory with one of the {what} at a time; {instead}")
        logging.warning("out of memory at %d %s: going on with %d", size, what, size // 2)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        size //= 2


def map_slices(
    step: Callable[[slice], T], count: int, size: int, what: str, lower: str = "", progress: Report = ignore_progress
) -> list[T]:
    """Call `step` for consecutive slices of `range(count)`, and return the results.

    Slices have `size` items, and half as many from the item on where the GPU ran out of memory. The other arguments and
    the errors are as for `halve_until_it_fits`; `progress` receives the number of items that are done.
    """
    results: list[T] = []
    start, size = 0, min(size, count)
    while start < count:
        result, size = halve_until_it_fits(
            lambda items, first=start: step(slice(first, min(first + items, count))), size, what, lower
        )
        results.append(result)
        start = min(start + size, count)
        progress(start, 0)
    return results
