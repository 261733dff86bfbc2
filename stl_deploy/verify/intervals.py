"""The integer neuron in intervals: where its voltage can be, given currents in float. Compiled.

Nothing here knows a spike of the integer network. A neuron is followed through every history of
resets that it may have had: a *branch* is one, and holds an interval for the voltage (certificates.py
has the proof).
"""

# No ``from __future__ import annotations``: numba reads the functions as they are.
from typing import NamedTuple

import numpy as np

from stl_deploy.hw_sim.compiled import Array, compiled

SILENT = 1  # every branch stays below its threshold
FIRES = 2  # every branch passes it
REFUTED = 4  # beside the others: the float voltage contradicts the float spike
LONG = 1 << 40  # an age at which no decay is exact


class Cells(NamedTuple):
    """Of each neuron, float64 [neurons], in the float model's units.

    ``bias`` of the float model; ``bias_error``, what the integer one has more; ``integer_bias``, what
    the register adds; ``theta``; ``stays``, the largest integer voltage that does not fire, and
    ``fires``, the smallest that does; ``unit``, one unit of v; ``slack``, what rounding of floats may
    have added up to.
    """

    bias: Array
    bias_error: Array
    integer_bias: Array
    theta: Array
    stays: Array
    fires: Array
    unit: Array
    slack: Array


@compiled
def follow(
    sums: Array,
    spikes: Array,
    cells: Cells,
    keep: float,
    kept: float,
    exact: int,
    limit: float,
    verdicts: Array,
    bounds: Array,
) -> None:
    """Write the verdict on every entry, and with ``bounds`` how far the voltages can be apart.

    ``sums`` float64 [N, T, 2, neurons] are the float model's weighted inputs and the error of the
    integer ones; ``spikes`` uint8 [N, T, neurons] those of the float model, ``verdicts`` and ``bounds``
    of that shape (``bounds`` empty if not wanted). ``keep`` and ``kept`` are what a decay leaves in
    float and in integers, ``exact`` how many decays in a row lose nothing, ``limit`` is M, 0 for none.
    """
    samples, steps, neurons = spikes.shape
    low, high = np.empty(steps + 1), np.empty(steps + 1)
    age = np.empty(steps + 1, np.int64)
    for n in range(samples):
        for j in range(neurons):
            unit, slack = cells.unit[j], cells.slack[j]
            far, wraps = (limit - 1) * unit, limit * unit
            v = 0.0
            count = 1
            low[0] = high[0] = 0.0
            age[0] = 0
            for t in range(steps):
                current = sums[n, t, 0, j] + cells.bias[j]
                arriving = current + (sums[n, t, 1, j] + cells.bias_error[j])
                v = keep * v + current
                may_fire = may_stay = False
                worst = 0.0
                left = 0
                for b in range(count):
                    lower, upper, old = kept * low[b], kept * high[b], age[b]
                    if old > exact:
                        # Truncation toward zero takes less than a unit, and never the sign.
                        lower = max(lower - unit, 0.0) if lower > 0 else lower
                        upper = min(upper + unit, 0.0) if upper < 0 else upper
                    lower += arriving
                    upper += arriving
                    if limit > 0:
                        if abs(arriving - cells.integer_bias[j]) + slack >= wraps:
                            lower, upper, old = -far, far, LONG
                        elif lower - slack < -far or upper + slack > far:
                            lower = min(max(lower, -far), far)
                            upper = min(max(upper, -far), far)
                            old = LONG
                    worst = max(worst, abs(lower - v), abs(upper - v))
                    fires = upper + slack >= cells.fires[j]
                    stays = lower - slack <= cells.stays[j]
                    if not fires and not stays:  # Between two integers there is none.
                        fires = stays = True
                    may_fire |= fires
                    may_stay |= stays
                    if stays:
                        low[left] = lower
                        high[left] = min(upper, cells.stays[j])
                        age[left] = old + 1
                        left += 1
                if may_fire:
                    low[left] = high[left] = 0.0
                    age[left] = 0
                    left += 1
                count = left
                if not may_stay:
                    verdict = FIRES
                elif not may_fire:
                    verdict = SILENT
                else:
                    verdict = 0
                below = v < cells.theta[j] - slack
                above = v >= cells.theta[j] + slack
                refuted = below if spikes[n, t, j] else above
                verdicts[n, t, j] = verdict | REFUTED if refuted else verdict
                if bounds.size:
                    bounds[n, t, j] = worst + slack
                if spikes[n, t, j]:
                    v = 0.0
