"""How far long work has come: what functions tell of it, and where that is shown.

A function that may take minutes takes a `Report`, and tells it from the thread that called it. What it tells counts
from its own beginning, so that work which is begun again, where memory ran out, is not counted twice.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from math import inf

Report = Callable[[int, int], None]  # how much is done so far (rows, windows), how much was made (swaps, tokens)

EVERY = 30.0  # seconds between two lines in the log
_DRAWN = 0.2  # seconds between two states of a bar


def ignore_progress(done: int, made: int) -> None:
    """Ignore a progress report."""


@dataclass(frozen=True)
class Part:
    """A part of long work.

    Attributes:
        count: how much there is to do.
        cost: the time that one of these takes, compared with those of other parts.
        likely: how much will be made in all, as far as is known: it tells how far the part is while nothing is done.
    """

    count: int
    cost: float = 1.0
    likely: float = inf

    def share(self, done: int, made: int) -> float:
        """Which share of it is done, from 0 to 1."""
        return max(done / self.count, min(made / self.likely, 1.0))


@contextmanager
def show_progress(name: str, unit: str, makes: str, parts: Sequence[Part]) -> Iterator[list[Report]]:
    """While work goes on, show how far it is: in the log as a line every `EVERY` seconds, and where standard error is a
    terminal as a bar as well, which is gone at the end.

    Args:
        name: stands before the bar.
        unit: what is done, in the plural.
        makes: what is made, in the plural; empty where nothing is.
        parts: of the work. The time left is what their costs make of the time spent.

    Yields:
        A `Report` for each part.
    """
    from tqdm import tqdm  # a tenth of a second that the workflow's start does without

    total, cost = sum(part.count for part in parts), sum(part.count * part.cost for part in parts)
    state = [(0, 0)] * len(parts)
    began = logged = drawn = time.monotonic()

    def told(index: int, done: int, made: int) -> None:
        nonlocal logged, drawn
        state[index] = done, made
        now = time.monotonic()
        log, draw = now - logged >= EVERY, not bar.disable and now - drawn >= _DRAWN
        if not log and not draw:
            return
        done, made = map(sum, zip(*state, strict=True))
        share = sum(part.count * part.cost * part.share(*at) for part, at in zip(parts, state, strict=True)) / cost
        left = timedelta(seconds=round((now - began) * (1 / share - 1))) if share else "unknown time"
        words = [f"{done:,} of {total:,} {unit}", f"{left} left"]
        if makes:
            rate = made / (now - began)
            words.insert(1, f"{rate:,.{0 if rate >= 10 else 1}f} {makes}/s")
        if draw:
            drawn, bar.n = now, share
            bar.set_description_str(", ".join(words))
        if log:
            logged = now
            logging.info(", ".join(words[:1] + [f"{made:,} {makes}"] * bool(makes) + words[1:]))

    # All bars of a process, one within another too, take turns on one line.
    layout = f"{name} {{percentage:3.0f}}%|{{bar}}| {{desc}}"
    with tqdm(total=1, bar_format=layout, leave=False, position=0, dynamic_ncols=True, disable=None) as bar:
        yield [partial(told, index) for index in range(len(parts))]
