"""Numbers as a person reads them: significant digits, counts, percentages, units."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass

PREFIXES = ((1.0, ""), (1e-3, "m"), (1e-6, "µ"), (1e-9, "n"), (1e-12, "p"))


# Numbers for people


def significant(value: float, digits: int = 3) -> str:
    """``value`` with so many significant digits, thousands separated, never an exponent."""
    if value == 0:
        return "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}"


def count(value: float) -> str:
    """A count, or the mean of counts: a small mean keeps three significant digits."""
    return f"{value:,.0f}" if value == int(value) or abs(value) >= 100 else significant(value)


def percent(fraction: float) -> str:
    """A fraction in percent. Only what is exactly 0 or 1 reads as 0 % or 100 %."""
    if fraction in (0, 1):
        return f"{fraction:.0%}".replace("%", " %")
    # Near 0 three significant digits, near 1 as many decimals as tell it from 100 %.
    low, high = math.log10(100 * fraction), math.log10(100 * (1 - fraction))
    decimals = max(2, 2 - math.floor(low), -math.floor(high))
    return f"{100 * fraction:.{decimals}f} %"


@dataclass(frozen=True)
class Unit:
    """A unit with its prefix; calling it formats a value given in the plain unit."""

    label: str
    factor: float

    @classmethod
    def fitting(cls, unit: str, values: Iterable[float]) -> Unit:
        """The prefix that makes the largest value at least 1, so that a table has one unit."""
        largest = max((abs(v) for v in values), default=0.0)
        factor, prefix = next((p for p in PREFIXES if largest >= p[0]), PREFIXES[-1])
        return cls(prefix + unit, factor)

    def __call__(self, value: float) -> str:
        """``value`` as a number of this unit, without its label."""
        return significant(value / self.factor)
