"""The integer neuron in intervals: where its voltage can be, given currents in float. Compiled.

Nothing here knows a spike of the integer network. A neuron is followed through every history of spikes that
it may have had: a *branch* is one, or all that have the last spike in common, and holds an interval for the
voltage (certificates.py has the proof).
"""

# No ``from __future__ import annotations``: numba reads the functions as they are.
from typing import NamedTuple

import numpy as np

from stl_deploy.hw_sim.compiled import Array, Int, compiled

SILENT = 1  # every branch stays below its threshold
FIRES = 2  # every branch passes it
REFUTED = 4  # in addition to the others: the float voltage contradicts the float spike
LONG = 1 << 40  # an age at which no decay is exact


class Cells(NamedTuple):
    """Of each neuron, float64 [neurons], voltages in the float model's units.

    ``keep`` and ``kept`` are what a decay leaves in float and in integers; ``bias`` what the integer
    register adds; ``theta`` and ``threshold`` of the float model, which fires from the one on and subtracts
    the other; ``stays``, the largest integer voltage that does not fire, and ``fires``, the smallest that
    does; ``unit``, one unit of v; ``slack``, what rounding of floats may have added up to. ``exact``, how
    many decays in a row lose nothing, is a whole number.
    """

    keep: Array
    kept: Array
    bias: Array
    theta: Array
    threshold: Array
    stays: Array
    fires: Array
    unit: Array
    slack: Array
    exact: Array


class Rules(NamedTuple):
    """What is the same for all neurons of a population.

    Whether a spike subtracts in float and in integers, where it otherwise sets to 0; ``limit`` is M, 0 for
    none.
    """

    float_subtracts: bool
    subtracts: bool
    limit: float


class Branches(NamedTuple):
    """Room for the branches of one neuron, [steps + 1] each: voltage, and decays since it was zero.

    ``used`` int64 [1] tells how many are in use; ``v`` float64 [1] is the float voltage.
    """

    low: Array
    high: Array
    age: Array
    used: Array
    v: Array


@compiled
def _begin(branches: Branches) -> None:
    """Before the first step: one branch, at zero."""
    branches.low[0] = branches.high[0] = branches.v[0] = 0.0
    branches.age[0] = 0
    branches.used[0] = 1


@compiled
def _step(
    j: Int,
    current: float,
    integer: float,
    fired: Int,
    cells: Cells,
    rules: Rules,
    branches: Branches,
) -> tuple[int, float]:
    """Take neuron ``j`` through a step: the verdict, and how far the voltages can be apart.

    ``current`` is what arrives in float, ``integer`` what arrives in integers, both with the bias; ``fired``
    whether the float neuron spikes.
    """
    unit, slack, kept = cells.unit[j], cells.slack[j], cells.kept[j]
    far, wraps = (rules.limit - 1) * unit, rules.limit * unit
    low, high, age = branches.low, branches.high, branches.age
    v = cells.keep[j] * branches.v[0] + current
    may_fire = may_stay = False
    worst = 0.0
    reset_low = reset_high = 0.0
    reset_age = 0
    left = 0
    for b in range(branches.used[0]):
        lower, upper, old = kept * low[b], kept * high[b], age[b]
        if old > cells.exact[j]:
            # Truncation toward zero takes less than a unit, and never the sign.
            lower = max(lower - unit, 0.0) if lower > 0 else lower
            upper = min(upper + unit, 0.0) if upper < 0 else upper
        lower += integer
        upper += integer
        if rules.limit > 0:
            if abs(integer - cells.bias[j]) + slack >= wraps:
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
        if fires and rules.subtracts:
            # All that spike now have the last spike in common.
            from_low, from_high = max(lower, cells.fires[j]), max(upper, cells.fires[j])
            reset_low = min(reset_low, from_low) if may_fire else from_low
            reset_high = max(reset_high, from_high) if may_fire else from_high
            reset_age = max(reset_age, old + 1)
        may_fire |= fires
        may_stay |= stays
        if stays:
            low[left] = lower
            high[left] = min(upper, cells.stays[j])
            age[left] = old + 1
            left += 1
    if may_fire:
        drop = cells.stays[j] if rules.subtracts else 0.0
        low[left] = reset_low - drop
        high[left] = reset_high - drop
        age[left] = reset_age
        left += 1
    branches.used[0] = left
    if not may_stay:
        verdict = FIRES
    elif not may_fire:
        verdict = SILENT
    else:
        verdict = 0
    refuted = v < cells.theta[j] - slack if fired else v >= cells.theta[j] + slack
    if refuted:
        verdict |= REFUTED
    if fired:
        v = v - cells.threshold[j] if rules.float_subtracts else 0.0
    branches.v[0] = v
    return verdict, worst + slack


@compiled
def follow(
    currents: Array,
    integers: Array,
    spikes: Array,
    cells: Cells,
    rules: Rules,
    verdicts: Array,
    bounds: Array,
) -> None:
    """Write the verdict on every entry, and with ``bounds`` how far the voltages can be apart.

    ``currents`` and ``integers`` float64 [N, T, neurons] are what arrives in float and in integers, with the
    bias; ``spikes`` uint8 [N, T, neurons] those of the float model, ``verdicts`` and ``bounds`` of that shape
    (``bounds`` empty if not wanted).
    """
    samples, steps, neurons = spikes.shape
    branches = Branches(
        np.empty(steps + 1),
        np.empty(steps + 1),
        np.empty(steps + 1, np.int64),
        np.empty(1, np.int64),
        np.empty(1),
    )
    for n in range(samples):
        for j in range(neurons):
            _begin(branches)
            for t in range(steps):
                verdict, apart = _step(
                    *(j, currents[n, t, j], integers[n, t, j], spikes[n, t, j]),
                    *(cells, rules, branches),
                )
                verdicts[n, t, j] = verdict
                if bounds.size:
                    bounds[n, t, j] = apart
