"""What a fault is, and how one is told: which values are off, where the first stand, and by how much."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Kind = Literal[
    "weight",
    "threshold",
    "bias",
    "decay",
    "kernel",
    "input scale",
    "time step",
    "delay",
    "connection",
    "port",
    "reset",
    "hold",
    "floor",
    "start",
    "adaptive threshold",
    "gain",
    "output",
]
Row = tuple[tuple[int, ...], int, int]  # where a value stands, what it is, what it should be
NAMED = 3  # values that a message lists before it says "..."
TIE = 1e-6  # of a unit: values so near to the middle of two integers round to either


@dataclass(frozen=True)
class Fault:
    """One thing about the population ``layer`` that no rounding explains; it concerns ``count`` values."""

    layer: str
    kind: Kind
    count: int
    text: str

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def off(held: NDArray[Any], exact: NDArray[Any]) -> NDArray[np.bool_]:
    """Which whole numbers are not the nearest to the exact ones."""
    far: NDArray[np.bool_] = np.abs(held - exact) > 0.5 + TIE
    return far


def indices(wrong: NDArray[np.bool_]) -> list[tuple[int, ...]]:
    """The first few places that are marked."""
    return [tuple(map(int, index)) for index in np.argwhere(wrong)[:NAMED]]


def listed(count: int, total: int, what: str, rows: list[Row]) -> str:
    """In words: how many values are off, and the first few of them."""
    parts = [
        f"{place(index)} is {held}, not {expected} ({by(held, expected, 'high', 'low')})"
        for index, held, expected in rows
    ]
    more = ", ..." if count > len(rows) else ""
    return f"{count:,} of {total:,} {what} are not what the float model rounds to: " + (
        ", ".join(parts) + more
    )


def place(index: tuple[int, ...]) -> str:
    """Where a value stands."""
    return str(index if len(index) != 1 else index[0])


def by(held: int, expected: int, above: str, below: str) -> str:
    """How far a value is off."""
    away = abs(held - expected)
    return f"{'one' if away == 1 else away} too {above if held > expected else below}"
