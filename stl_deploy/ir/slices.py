"""How a chip stores a weight: which synapses it takes, and what integers these hold.

Every precision is a sum of groups of synapses into the same neuron, each of 8 bits as chips have them:

- "8": one group of mixed sign, so that a weight of B bits is in -(2^(B-1)-1) .. 2^(B-1)-1.
- "split": positive weights in an excitatory group, negative ones in an inhibitory one. A group of one
  sign spends no bit on it, its magnitudes are 0..2^B-1. A weight stands in one of the two.
- "2x8": two groups of mixed sign, ``w = (high << 7) + low`` with 7 the weight exponent of the first, the
  largest that Loihi has. What fits into the low slice alone stands there, in -128..127; beyond it low is
  in -64..63. A weight with both parts takes two synapses.

Sums are linear, so the network holds w itself, and the arithmetic knows nothing of groups. What counts
synapses, or lays them onto a chip, does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

WeightPrecision = Literal["8", "split", "2x8"]
PRECISIONS: tuple[WeightPrecision, ...] = get_args(WeightPrecision)
Sign = Literal["mixed", "excitatory", "inhibitory"]
Weights = NDArray[np.int8 | np.int16]

SHIFT = 7  # of the high slice
LOW = 1 << (SHIFT - 1)  # next to a high slice the low one holds -LOW..LOW-1
SLICE_BITS = 8
ALONE = 1 << (SLICE_BITS - 1)  # and without one -ALONE..ALONE-1


@dataclass(frozen=True)
class Group:
    """Synapses with one format: the sign that their weights have, and the exponent 2^exp they count."""

    sign: Sign
    exp: int


_MIXED = Group("mixed", 0)
GROUPS: dict[WeightPrecision, tuple[Group, ...]] = {
    "8": (_MIXED,),
    "split": (Group("excitatory", 0), Group("inhibitory", 0)),
    "2x8": (Group("mixed", SHIFT), _MIXED),
}
# Synapses that a weight takes at most.
PER_WEIGHT: dict[WeightPrecision, int] = {"8": 1, "split": 1, "2x8": 2}


def largest(precision: WeightPrecision, bits: int) -> int:
    """The end of the symmetric grid that weights are rounded to."""
    if precision == "2x8":
        return ((ALONE - 1) << SHIFT) + LOW - 1
    return (1 << (bits if precision == "split" else bits - 1)) - 1


def span(precision: WeightPrecision, bits: int) -> tuple[int, int]:
    """The smallest and the largest weight that the groups can hold."""
    top = largest(precision, bits)
    if precision == "split":
        return -top, top
    return (-(1 << (bits - 1)) if precision == "8" else -(ALONE << SHIFT) - LOW), top


def contradictions(precision: WeightPrecision, bits: int, exp: int) -> list[str]:
    """Why no layer can have these three; none where one can."""
    found = []
    if precision == "2x8" and bits != SLICE_BITS:
        found.append(f"2x8 has slices of {SLICE_BITS} bits, not of {bits}")
    if precision == "2x8" and exp != 0:
        found.append(
            f"2x8 takes the weight exponents 0 and {SHIFT} itself, and leaves none for {exp}"
        )
    return found


def effective_bits(steps: float) -> float:
    """Bits of a grid whose largest weight is ``steps`` times its unit."""
    return math.log2(steps + 1) + 1


def kind(precision: WeightPrecision) -> np.dtype[np.int8 | np.int16]:
    """The type of a network's weights."""
    return np.dtype(np.int8) if precision == "8" else np.dtype(np.int16)


def cut(weight: NDArray[Any], precision: WeightPrecision) -> tuple[Weights, ...]:
    """What each of ``GROUPS[precision]`` holds of ``weight``, arrays of its shape; they add up to it."""
    if precision == "8":
        return (weight,)
    wide = weight.astype(np.int16)
    if precision == "split":
        return np.maximum(wide, 0), np.minimum(wide, 0)
    high = np.where((wide >= -ALONE) & (wide < ALONE), 0, (wide + LOW) >> SHIFT)
    return high.astype(np.int8), (wide - (high << SHIFT)).astype(np.int8)


def synapses(weight: NDArray[Any], precision: WeightPrecision) -> NDArray[np.int64]:
    """How many synapses each weight takes, int64 of its shape; none where it is zero."""
    count = np.zeros(weight.shape, np.int64)
    for part in cut(weight, precision):
        count += part != 0
    return count
