"""Progress of long work: functions report it, and jobs show it in their log and on a terminal.

A function that may take minutes tells a `Report` totals since its own start, so work that is repeated counts once.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from math import inf
from typing import Any

Report = Callable[[int, int], None]  # (rows or windows done so far, swaps or tokens made so far)

EVERY = 30.0  # seconds between two lines in the log
_DRAWN = 0.2  # seconds between two states of a bar


def ignore_progress(done: int, made: int) -> None:
    """Ignore a progress report."""


@dataclass(frozen=True)
class Part:
    """A part of long work."""

    count: int  # units to do
    cost: float = 1.0  # the time that a unit takes, relative to units of other parts
    likely: float = inf  # the expected number of things made; it tells the progress before the first unit is done

    def share(self, done: int, made: int) -> float:
        """Return the share of the part that is done, from 0 to 1."""
        return max(done / self.count, min(made / self.likely, 1.0))


@contextmanager
def show_progress(name: str, unit: str, makes: str, parts: Sequence[Part]) -> Iterator[list[Report]]:
    """Show the progress of the work in the block: a line in the log every `EVERY` seconds, and a bar on a terminal.

    `name` is the bar's label, `unit` and `makes` what the work does and makes, in the plural; `makes` may be empty. The
    time left is estimated from the costs of the parts and the time spent. Yields a `Report` for each part.
    """
    from tqdm import tqdm  # imported here, since it takes 0.1 s, which the start of the workflow saves

    # All bars of a process share one line, also a bar within another.
    layout = f"{name} {{percentage:3.0f}}%|{{bar}}| {{desc}}"
    with tqdm(total=1, bar_format=layout, leave=False, position=0, dynamic_ncols=True, disable=None) as bar:
        display = _Display(unit, makes, parts, bar)
        yield [partial(display.update, index) for index in range(len(parts))]


class _Display:
    """The progress of all parts of some work, shown in the log and by a bar of tqdm."""

    def __init__(self, unit: str, makes: str, parts: Sequence[Part], bar: Any) -> None:
        self.unit, self.makes, self.parts, self.bar = unit, makes, parts, bar
        self.total, self.cost = sum(part.count for part in parts), sum(part.count * part.cost for part in parts)
        self.reports = [(0, 0)] * len(parts)
        self.began = self.logged = self.drawn = time.monotonic()

    def update(self, index: int, done: int, made: int) -> None:
        """Take the report of a part, and show it if the last line or bar is old enough."""
        self.reports[index] = done, made
        now = time.monotonic()
        log, draw = now - self.logged >= EVERY, not self.bar.disable and now - self.drawn >= _DRAWN
        if not log and not draw:
            return
        done, made = map(sum, zip(*self.reports, strict=True))
        pairs = zip(self.parts, self.reports, strict=True)
        share = sum(part.count * part.cost * part.share(*report) for part, report in pairs) / self.cost
        left = timedelta(seconds=round((now - self.began) * (1 / share - 1))) if share else "unknown time"
        rate = made / (now - self.began)
        amount = f"{done:,} of {self.total:,} {self.unit}, "
        speed = f"{rate:,.{0 if rate >= 10 else 1}f} {self.makes}/s, " if self.makes else ""
        if draw:
            self.drawn, self.bar.n = now, share
            self.bar.set_description_str(f"{amount}{speed}{left} left")
        if log:
            self.logged = now
            logging.info("%s%s%s%s left", amount, f"{made:,} {self.makes}, " if self.makes else "", speed, left)
