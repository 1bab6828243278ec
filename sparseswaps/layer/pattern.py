"""Sparsity patterns: which weights of a row compete for being kept, and how many are.

Both kinds say the same to everything that follows: a row of `d_in` weights falls into blocks of `size`, each of
which keeps exactly `kept` weights. A per-row pattern is one block that spans the row.
"""

import re
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from math import floor
from typing import NamedTuple

from sparseswaps.base.errors import InputError


class Blocks(NamedTuple):
    """How one row is divided: blocks of `size` weights, `kept` of them kept in each."""

    size: int
    kept: int


@dataclass(frozen=True)
class PerRow:
    """Every row prunes floor(d_in * sparsity) weights, wherever they are. `sparsity` is exact, in [0, 1)."""

    sparsity: Fraction

    @property
    def label(self) -> str:
        return f"{self._percent}%"

    @property
    def _percent(self) -> str:
        """Exact, since a sparsity is only ever read from a decimal fraction."""
        percent = Decimal(100 * self.sparsity.numerator) / Decimal(self.sparsity.denominator)
        return f"{percent.normalize():f}"

    def blocks(self, d_in: int) -> Blocks:
        return Blocks(d_in, d_in - floor(d_in * self.sparsity))


@dataclass(frozen=True)
class NM:
    """N:M sparsity: `n` weights kept in each block of `m` consecutive ones."""

    n: int
    m: int

    @property
    def label(self) -> str:
        return f"{self.n}:{self.m}"

    def blocks(self, d_in: int) -> Blocks:
        """Raises InputError when `m` does not divide `d_in`."""
        if d_in % self.m:
            raise InputError(f"pattern {self.label} does not divide d_in = {d_in}: choose one whose M divides it")
        return Blocks(self.m, self.n)


Pattern = PerRow | NM


def parse_pattern(value: str | float) -> Pattern:
    """Read a pattern as people write it: "60%", 0.6 or "0.6" for a sparsity per row, "2:4" for N:M (N kept of M).

    Decimal fractions are taken at their word: 0.7 is 7/10, so that counts are exact. Of d_in weights a row prunes
    floor(d_in * sparsity), or each M consecutive ones keep N.

    Returns:
        `PerRow` or `NM`; either says by `blocks(d_in)` how a row is divided, and how much of it is kept.

    Raises:
        InputError: it is none, the sparsity is outside [0, 1), or not 0 < N < M.
    """
    text = str(value).strip()
    if match := re.fullmatch(r"(\d+):(\d+)", text):
        n, m = int(match[1]), int(match[2])
        if not 0 < n < m:
            raise InputError(f"pattern {text!r}: N:M keeps N of M weights and needs 0 < N < M")
        return NM(n, m)
    if not (match := re.fullmatch(r"(-?\d+(?:\.\d+)?)(%?)", text)):
        raise InputError(f"pattern {text!r}: expected a sparsity such as 60% or 0.6, or N:M such as 2:4")
    sparsity = Fraction(match[1]) / (100 if match[2] else 1)
    if not 0 <= sparsity < 1:
        raise InputError(f"pattern {text!r}: the sparsity {float(sparsity):g} is outside [0, 1)")
    return PerRow(sparsity)


def counting_rule(warmstart: str, between_rows: bool) -> str:
    """Where the weights are counted that masks of a criterion keep, after its refinement: see `masks.check_mask`."""
    return "matrix" if warmstart == "sparsegpt" or between_rows else "rows"


def slug_of(label: str) -> str:
    """A pattern's label as folders have it: "60%" is 60pct, "2:4" is 2of4."""
    return label.replace("%", "pct").replace(":", "of")
