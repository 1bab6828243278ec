"""Sparsity patterns: which weights of a row compete, and how many of them are kept.

Every pattern divides a row of `d_in` weights into groups of `size` weights, each of which keeps exactly `kept` weights.
A sparsity is one group that spans the row.
"""

import re
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from math import floor
from typing import NamedTuple

from sparseswaps.base.errors import InputError


class Groups(NamedTuple):
    """The division of a row: groups of `size` weights, each of which keeps `kept` weights."""

    size: int
    kept: int


@dataclass(frozen=True)
class PerRow:
    """A sparsity: every row prunes floor(d_in * sparsity) weights. `sparsity` is exact, in [0, 1)."""

    sparsity: Fraction

    @property
    def label(self) -> str:
        # The division is exact, because a sparsity is always read from a decimal fraction.
        percent = Decimal(100 * self.sparsity.numerator) / Decimal(self.sparsity.denominator)
        return f"{percent.normalize():f}%"

    def groups(self, d_in: int) -> Groups:
        return Groups(d_in, d_in - floor(d_in * self.sparsity))

    def soften(self, share: float) -> "PerRow":
        """Return the pattern that prunes a share, from 0 to 1, of the weights that this one prunes."""
        return PerRow(self.sparsity * Fraction(round(share * 1000), 1000))


@dataclass(frozen=True)
class NM:
    """N:M sparsity: each `m` consecutive weights keep `n` weights."""

    n: int
    m: int

    @property
    def label(self) -> str:
        return f"{self.n}:{self.m}"

    def groups(self, d_in: int) -> Groups:
        if d_in % self.m:
            raise InputError(f"pattern {self.label} does not divide d_in = {d_in}: choose one whose M divides it")
        return Groups(self.m, self.n)

    def soften(self, share: float) -> "NM":
        """Return the pattern that prunes a share, from 0 to 1, of the weights that this one prunes; rounded."""
        return NM(self.m - round((self.m - self.n) * share), self.m)


Pattern = PerRow | NM


def parse_pattern(value: str | float) -> Pattern:
    """Parse a pattern: "60%", 0.6 or "0.6" for a sparsity of every row, "2:4" for N:M (N kept of M).

    Decimal fractions are exact: 0.7 is 7/10. A row of d_in weights prunes floor(d_in * sparsity) of them, or each M
    consecutive weights keep N.

    Returns:
        `PerRow` or `NM`. Their method `groups(d_in)` returns the division of a row.

    Raises:
        InputError: the value is not a pattern, the sparsity is outside [0, 1), or not 0 < N < M.
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
        raise InputError(f"pattern {text!r}: the sparsity {float(sparsity):g} is outside [0, 1); write 60% or 0.6")
    return PerRow(sparsity)


def counting_rule(warmstart: str, between_rows: bool) -> str:
    """Return how `masks.check_mask` counts the kept weights of a criterion's masks after a refinement."""
    return "matrix" if warmstart in ("sparsegpt", "alps") or between_rows else "rows"


def slug_of(label: str) -> str:
    """Return a pattern's label in the form of folder names: "60%" becomes 60pct, "2:4" becomes 2of4."""
    return label.replace("%", "pct").replace(":", "of")
