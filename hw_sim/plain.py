"""The operations of ``lanes.py`` as plain compiled loops, without private interfaces of numba and llvmlite.

Results equal those of ``vectors.py`` bit for bit, also where integers wrap.
"""

# No ``from __future__ import annotations``: numba reads the functions as they are.
from typing import Any

from numba import int32, int64, uintp

from stl_deploy.hw_sim.compiled import LANES, Array, Int, inner
from stl_deploy.ir.units import DECAY_BITS


@inner
def add_runs(
    to: Array,
    at: Int,
    values: Array,
    base: Int,
    events: Array,
    first: Int,
    end: Int,
    size: Int,
    run: Int,
    factors: Array | None,
) -> None:
    """Add a run of values for each of ``events[first:end]``, that of e from ``base + e * size`` on.

    They are added to ``to`` from ``at`` on, times ``factors[first:end]`` unless that is None. Sums wrap in
    the type of ``to``. Nothing is checked: the arrays must reach that far.
    """
    for e in range(first, end):
        start = base + events[uintp(e)] * size
        if factors is None:
            for i in range(run):
                to[uintp(at + i)] += values[uintp(start + i)]
        else:
            factor = factors[uintp(e)]
            for i in range(run):
                to[uintp(at + i)] += factor * values[uintp(start + i)]


@inner
def marked(marks: Array, at: Int) -> Any:
    """Which of ``marks[at:at + LANES]``, uint8, are not zero: bit i of an int64 for the i-th."""
    bits = int64(0)
    for i in range(LANES):
        bits |= int64(marks[uintp(at + i)] != 0) << i
    return bits


@inner
def how_many(bits: Int) -> Any:
    """How many of the LANES bits of ``bits`` are set: sums of neighbours, in 2, 4 and 8 bits."""
    pairs = bits - ((bits >> 1) & 0x55555555)
    fours = (pairs & 0x33333333) + ((pairs >> 2) & 0x33333333)
    bytes_ = (fours + (fours >> 4)) & 0x0F0F0F0F
    return ((bytes_ * 0x01010101) >> 24) & 0xFF


@inner
def lowest(bits: Int) -> Any:
    """The number of the lowest of the LANES bits of ``bits`` that is set, of those that are not zero."""
    return how_many((bits & -bits) - 1)


@inner
def step(lanes: Any, steps: Any) -> None:
    """Step neurons without current memory in 32 bits, ``lanes.Lanes`` as ``lanes.Steps`` says.

    Voltages stay in ``after`` from step to step. Registers of 32 bits wrap, which numba's sums of int32
    do not: they are of 64 bits and cut off.
    """
    v, n = lanes.after, steps.neuron
    for i in range(n, n + LANES):
        v[uintp(i)] = 0 if steps.first == 0 else lanes.before[uintp(i)]
    for s in range(steps.steps):
        acc_at, marks_at = steps.acc_at + s * steps.acc_step, s * steps.marks_step
        hears = not steps.bare and steps.first + s >= steps.delay
        for i in range(LANES):
            a, old, bias = int32(0), v[uintp(n + i)], lanes.bias[uintp(n + i)]
            for phase in range(steps.phases):
                a = int32(a + lanes.acc[uintp(acc_at + phase * steps.acc_phase + i)])
            given = int64(a) << steps.shift
            to = steps.spikes_at + marks_at + i
            if hears and lanes.spikes[uintp(to - steps.delay * steps.marks_step)]:
                given += lanes.own[uintp(n + i)]
            kept = (abs(int64(old)) * lanes.keep[uintp(n + i)]) >> DECAY_BITS
            new = int32((-kept if old < 0 else kept) + given + bias)
            threshold = lanes.threshold[uintp(n + i)]
            fires = new > threshold
            left = int32(new - threshold) if steps.subtract and not steps.bare else int32(0)
            v[uintp(n + i)] = left if fires else new
            lanes.spikes[uintp(to)] = fires
            lanes.active[uintp(steps.active_at + marks_at + i)] = (
                old | (int32(given) if not steps.bare else a) | bias
            ) != 0
