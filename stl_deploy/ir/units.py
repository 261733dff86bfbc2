"""The fixed-point units in which the integer network counts; docs/numerics.md explains them.

A voltage or current carries ``FRACTION_BITS`` bits below the unit of weights and thresholds. A decay
constant counts ``1 / DECAY_ONE``.
"""

from __future__ import annotations

FRACTION_BITS = 6
UNIT = 1 << FRACTION_BITS  # of weights and thresholds, in steps of u and v
DECAY_BITS = 12
DECAY_ONE = 1 << DECAY_BITS
FORGETS = DECAY_ONE - 1  # the largest decay constant: as du it keeps no current
MAX_STEPS = 1 << 12  # time steps of a sample that files and commands accept
MAX_UNSIGNED = (1 << 8) - 1  # levels of an input: its values are uint8 in a raster
MAX_SIGNED = (1 << 15) - 1  # the same with a sign: int8 or int16
