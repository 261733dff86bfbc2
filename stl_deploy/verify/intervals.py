"""The integer neuron in intervals: where its voltage can be, given currents in float. Compiled.

Nothing here knows a spike of the integer network. A neuron is followed through every history of spikes that
it may have had: a *branch* is one, or all that have the last spike in common, and holds an interval for the
voltage (certificates.py has the proof).
"""

# No ``from __future__ import annotations``: numba reads the functions as they are.
from typing import Any, NamedTuple

import numpy as np

from stl_deploy.hw_sim.compiled import Array, Int, compiled
from stl_deploy.ir.units import DECAY_BITS

SILENT = 1  # every branch stays below its threshold
FIRES = 2  # every branch passes it
REFUTED = 4  # in addition to the others: the float voltage contradicts the float spike
SPIKING = -1  # the place of what spikes in a step
LONG = 1 << 40  # an age at which no decay is exact
WRAP = 1 << 31  # half of what 32 bits tell apart
Each = Any  # an array [neurons], or of one neuron the number


class Side(NamedTuple):
    """Parameters of the float neurons, or of the integer ones; voltages in float units.

    ``keep``, ``first``, ``second`` and ``rise_keep`` are what a decay leaves of v, of both currents and of
    what is added to the threshold; those of the integers' currents are int64 and count 1/4096. ``bias`` is
    added to v. ``start`` is v before the first step, ``reset`` what a spike sets it to, or ``drop`` what a
    spike takes off it. ``floor`` is the lowest v, ``rise`` what a spike adds to the threshold.
    """

    keep: Each
    first: Each
    second: Each
    bias: Each
    start: Each
    reset: Each
    drop: Each
    floor: Each
    rise: Each
    rise_keep: Each


class Cells(NamedTuple):
    """Parameters of both sides, voltages in the float model's units.

    ``floats`` and ``whole`` are the two sides. The float model fires from ``theta`` on; ``stays`` is the
    largest integer voltage that does not fire, and ``fires`` the smallest that does; ``unit``, one unit of v;
    ``slack``, what rounding of floats may have added up to. ``exact``, how many decays in a row lose nothing,
    is a whole number.
    """

    floats: Side
    whole: Side
    theta: Each
    stays: Each
    fires: Each
    unit: Each
    slack: Each
    exact: Each


class Kind(NamedTuple):
    """What is the same for all neurons of a side.

    ``keeps``: a spike leaves v less ``Side.drop``, where it otherwise sets it to ``Side.reset``;
    ``clears``: it sets the currents to 0; ``hold``: so many steps v rests after it, -1 for all that are left.
    """

    keeps: bool
    clears: bool
    hold: int


class Rules(NamedTuple):
    """What is the same for all neurons of a population.

    ``limit`` is M, 0 for none. ``currents``: what arrives goes through currents, and integers arrive as whole
    numbers of v; ``rises``: a threshold moves on either side.
    """

    floats: Kind
    whole: Kind
    limit: float
    currents: bool
    rises: bool


class Arriving(NamedTuple):
    """What arrives, float64 [N, T, neurons], at the first and second current of each side.

    Without currents it is what both voltages gain, bias included, and nothing arrives at the second.
    """

    floats: Array
    whole: Array
    floats2: Array
    whole2: Array


class Branches(NamedTuple):
    """Room for the branches of one neuron, and for the float neuron.

    There may be steps + 1 branches; what spikes in a step is joined in the last place, ``SPIKING``. Of a
    branch: the ends of v and of what is added to the threshold, the number of decays since v was zero, the
    currents, which are known exactly (int64), and the steps left to rest. ``used`` int64 [2] tells how many
    branches are in use, and how long the float neuron rests; ``v`` float64 [4] is its voltage, its currents,
    and what is added to its threshold.
    """

    low: Array
    high: Array
    age: Array
    first: Array
    second: Array
    rise_low: Array
    rise_high: Array
    rest: Array
    used: Array
    v: Array


@compiled
def _room(steps: Int) -> Branches:
    """Branches for so many steps."""
    size = steps + 2
    return Branches(
        np.empty(size),
        np.empty(size),
        np.empty(size, np.int64),
        np.empty(size, np.int64),
        np.empty(size, np.int64),
        np.empty(size),
        np.empty(size),
        np.empty(size, np.int64),
        np.empty(2, np.int64),
        np.empty(4),
    )


@compiled
def _side(j: Int, side: Side) -> Side:
    """That of one neuron."""
    return Side(
        *(side.keep[j], side.first[j], side.second[j], side.bias[j], side.start[j]),
        *(side.reset[j], side.drop[j], side.floor[j], side.rise[j], side.rise_keep[j]),
    )


@compiled
def _cell(j: Int, cells: Cells) -> Cells:
    """Those of one neuron."""
    return Cells(
        *(_side(j, cells.floats), _side(j, cells.whole), cells.theta[j], cells.stays[j]),
        *(cells.fires[j], cells.unit[j], cells.slack[j], cells.exact[j]),
    )


@compiled
def _begin(cell: Cells, branches: Branches) -> None:
    """Before the first step: one branch, at the start."""
    start = cell.whole.start
    branches.low[0] = branches.high[0] = start
    branches.age[0] = 1 if start != 0 else 0
    branches.first[0] = branches.second[0] = branches.rest[0] = 0
    branches.rise_low[0] = branches.rise_high[0] = 0.0
    branches.used[0], branches.used[1] = 1, 0
    branches.v[:] = 0.0
    branches.v[0] = cell.floats.start


@compiled
def _current(u: Any, x: float, kept: Any, limit: float) -> Any:
    """The integer current after a step in which ``x`` arrives (``arithmetic.add_current``), int64."""
    magnitude = (abs(u) * kept) >> DECAY_BITS
    u = (magnitude if u >= 0 else -magnitude) + np.int64(x)
    if limit > 0:
        m = np.int64(limit)
        u = (u + WRAP) % (2 * WRAP) - WRAP
        if u > m:
            u -= 2 * m
        elif u <= -m:
            u += 2 * m
    return u


@compiled
def _truncated(low: float, high: float, unit: float) -> tuple[float, float]:
    """The ends after truncation toward zero, which takes less than a unit, and never the sign."""
    low = max(low - unit, 0.0) if low > 0 else low
    high = min(high + unit, 0.0) if high < 0 else high
    return low, high


@compiled
def _float_voltage(x: float, x2: float, side: Side, rules: Rules, v: Array) -> float:
    """The float voltage before the reset, of neurons that do not rest, and their currents moved on."""
    kept: float = side.keep * v[0]
    if not rules.currents:
        return kept + x
    v[1] = side.first * v[1] + x
    v[2] = side.second * v[2] + x2
    kept += (v[1] + v[2]) + side.bias
    return kept


@compiled
def _float_reset(v: float, fired: Int, side: Side, rules: Rules, of: Branches) -> None:
    """The float neuron's state after a step in which it came to ``v``."""
    kind = rules.floats
    of.v[3] = side.rise_keep * of.v[3]
    if of.used[1] > 0:
        of.used[1] -= 1
    if fired:
        v = v - side.drop if kind.keeps else side.reset
        if kind.clears:
            of.v[1] = of.v[2] = 0.0
        of.v[3] += side.rise
        of.used[1] = kind.hold
    of.v[0] = v


@compiled
def _voltage(
    b: Int, integer: float, cell: Cells, rules: Rules, of: Branches
) -> tuple[float, float, int]:
    """The ends of v before the threshold, in a branch that does not rest, and its new age.

    ``integer`` is what arrives, with the bias; with currents, nothing else than the bias.
    """
    unit, slack, kept = cell.unit, cell.slack, cell.whole.keep
    far, wraps = (rules.limit - 1) * unit, rules.limit * unit
    lower, upper, old = kept * of.low[b], kept * of.high[b], of.age[b]
    if old > cell.exact:
        lower, upper = _truncated(lower, upper, unit)
    if rules.currents:
        first, second = of.first[b], of.second[b]
        outside = max(abs(first), abs(second)) > rules.limit
        integer += float(first + second) * unit
    else:
        outside = abs(integer - cell.whole.bias) + slack >= wraps
    lower += integer
    upper += integer
    if rules.limit > 0:
        if outside:
            lower, upper, old = -far, far, LONG
        elif lower - slack < -far or upper + slack > far:
            lower = min(max(lower, -far), far)
            upper = min(max(upper, -far), far)
            old = LONG
    return lower, upper, old + 1


@compiled
def _rise(b: Int, cell: Cells, rules: Rules, of: Branches, fired: bool) -> None:
    """Move on what is added to the threshold of branch ``b``, in which the neuron ``fired`` or not."""
    kept, far = cell.whole.rise_keep, (rules.limit - 1) * cell.unit
    low, high = _truncated(kept * of.rise_low[b], kept * of.rise_high[b], cell.unit)
    if fired:
        low += cell.whole.rise
        high += cell.whole.rise
    if rules.limit > 0:
        low, high = min(max(low, -far), far), min(max(high, -far), far)
    of.rise_low[b], of.rise_high[b] = low, high


@compiled
def _joined(lower: float, upper: float, old: Int, b: Int, first: bool, of: Branches) -> None:
    """Join branch ``b``, in which v and its age are these, with all that spike in this step.

    They have the last spike in common. ``first``: it is the first of them.
    """
    low, high, at = of.rise_low[b], of.rise_high[b], SPIKING
    of.low[at] = lower if first else min(of.low[at], lower)
    of.high[at] = upper if first else max(of.high[at], upper)
    of.age[at] = old if first else max(of.age[at], old)
    of.rise_low[at] = low if first else min(of.rise_low[at], low)
    of.rise_high[at] = high if first else max(of.rise_high[at], high)
    # Where spikes leave the currents alone, those of all branches are the same.
    of.first[at], of.second[at] = of.first[b], of.second[b]


@compiled
def _stayed(at: Int, b: Int, cell: Cells, rules: Rules, of: Branches) -> None:
    """Branch ``b``, whose v is written, without a spike, in the place ``at``."""
    of.first[at], of.second[at] = of.first[b], of.second[b]
    of.rest[at] = of.rest[b] - 1 if of.rest[b] > 0 else of.rest[b]
    of.rise_low[at], of.rise_high[at] = of.rise_low[b], of.rise_high[b]
    if rules.rises:
        _rise(at, cell, rules, of, False)


@compiled
def _spiked(at: Int, cell: Cells, rules: Rules, of: Branches) -> None:
    """What has spiked, in the place ``at``."""
    kind, whole = rules.whole, cell.whole
    if kind.keeps:
        of.low[at], of.high[at] = of.low[SPIKING] - whole.drop, of.high[SPIKING] - whole.drop
        of.age[at] = of.age[SPIKING]
    else:
        of.low[at] = of.high[at] = whole.reset
        of.age[at] = 1 if whole.reset != 0 else 0
    of.first[at] = 0 if kind.clears else of.first[SPIKING]
    of.second[at] = 0 if kind.clears else of.second[SPIKING]
    of.rest[at] = kind.hold
    of.rise_low[at], of.rise_high[at] = of.rise_low[SPIKING], of.rise_high[SPIKING]
    if rules.rises:
        _rise(at, cell, rules, of, True)


@compiled
def _all_branches(x: Array, v: float, cell: Cells, rules: Rules, of: Branches) -> tuple[int, float]:
    """Take all branches through a step: the verdict, and how far the voltages can be from the float ``v``."""
    slack, whole = cell.slack, cell.whole
    may_fire = may_stay = False
    worst = 0.0
    left = 0
    for b in range(of.used[0]):
        if rules.currents:
            of.first[b] = _current(of.first[b], x[1], whole.first, rules.limit)
            of.second[b] = _current(of.second[b], x[3], whole.second, rules.limit)
        rests = of.rest[b] != 0
        if rests:
            lower, upper, old = of.low[b], of.high[b], of.age[b]
        else:
            integer = whole.bias if rules.currents else x[1]
            lower, upper, old = _voltage(b, integer, cell, rules, of)
        if lower - slack < whole.floor:
            lower, upper, old = max(lower, whole.floor), max(upper, whole.floor), LONG
        worst = max(worst, abs(lower - v), abs(upper - v))
        above, below = cell.fires + of.rise_low[b], cell.stays + of.rise_high[b]
        fires = upper + slack >= above and not rests
        stays = lower - slack <= below or rests
        if not fires and not stays:  # Between two integers there is none.
            fires = stays = True
        if fires:
            _joined(max(lower, above), max(upper, above), old, b, not may_fire, of)
        if stays:
            of.low[left] = lower
            of.high[left] = upper if rests else min(upper, below)
            of.age[left] = old
            _stayed(left, b, cell, rules, of)
            left += 1
        may_fire |= fires
        may_stay |= stays
    if may_fire:
        _spiked(left, cell, rules, of)
        left += 1
    of.used[0] = left
    verdict = 0
    if not may_stay:
        verdict = FIRES
    elif not may_fire:
        verdict = SILENT
    return verdict, worst + slack


@compiled
def _step(x: Array, fired: Int, cell: Cells, rules: Rules, branches: Branches) -> tuple[int, float]:
    """Take a neuron through a step: the verdict, and how far the voltages can be apart.

    ``x`` float64 [4] is what arrives, as in ``Arriving``; ``fired`` whether the float neuron spikes.
    """
    before, rests = branches.v[0], branches.used[1] != 0
    v = _float_voltage(x[0], x[2], cell.floats, rules, branches.v)
    v = max(before if rests else v, cell.floats.floor)
    verdict, apart = _all_branches(x, v, cell, rules, branches)
    theta = cell.theta + branches.v[3]
    refuted = v < theta - cell.slack if fired else v >= theta + cell.slack
    if (fired and rests) or (refuted and not rests):
        verdict |= REFUTED
    _float_reset(v, fired, cell.floats, rules, branches)
    return verdict, apart


@compiled
def follow(
    arriving: Arriving,
    spikes: Array,
    cells: Cells,
    rules: Rules,
    verdicts: Array,
    bounds: Array,
) -> None:
    """Write the verdict on every entry, and with ``bounds`` how far the voltages can be apart.

    ``spikes`` uint8 [N, T, neurons] are those of the float model, ``verdicts`` and ``bounds`` of that shape
    (``bounds`` empty if not wanted).
    """
    samples, steps, neurons = spikes.shape
    branches = _room(steps)
    x = np.zeros(4)
    for n in range(samples):
        for j in range(neurons):
            cell = _cell(j, cells)
            _begin(cell, branches)
            for t in range(steps):
                x[0], x[1] = arriving.floats[n, t, j], arriving.whole[n, t, j]
                if rules.currents:
                    x[2], x[3] = arriving.floats2[n, t, j], arriving.whole2[n, t, j]
                verdict, apart = _step(x, spikes[n, t, j], cell, rules, branches)
                verdicts[n, t, j] = verdict
                if bounds.size:
                    bounds[n, t, j] = apart
