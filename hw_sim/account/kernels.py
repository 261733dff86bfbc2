"""Compiled loops that count and price the spikes of a run."""

# No ``from __future__ import annotations``: numba reads the functions as they are.
import numpy as np
from numba import uintp

from stl_deploy.hw_sim.compiled import LANES, Array, compiled
from stl_deploy.hw_sim.lanes import add_runs, lowest, marked


@compiled
def list_marks(marks: Array, found: Array) -> int:
    """List which of marks uint8 [neurons] are not zero, and return how many; ``found`` has room for all."""
    at, count = 0, 0
    while at + LANES <= len(marks):
        bits = marked(marks, at)
        while bits:
            found[uintp(count)] = at + lowest(bits)
            bits &= bits - 1
            count += 1
        at += LANES
    while at < len(marks):
        if marks[uintp(at)]:
            found[uintp(count)] = at
            count += 1
        at += 1
    return count


@compiled
def count_marks(marks: Array, kind: Array, counts: Array) -> None:
    """Add the marks uint8 [rows, neurons] to the counts int64 [rows, kinds] of their neurons' ``kind``."""
    found = np.empty(marks.shape[1], np.int32)
    for row in range(len(marks)):
        out = counts[row]
        for i in range(list_marks(marks[row], found)):
            out[uintp(kind[uintp(found[uintp(i)])])] += 1


@compiled
def add_windows(spikes: Array, windows: Array, start: Array, values: Array, total: Array) -> None:
    """Add the windows of every spike uint8 [rows, neurons] to the totals int32 [rows, counters].

    Neuron n has the windows ``windows[n]..windows[n + 1]``; window w adds ``values[w * LANES]`` and those
    after it to the counters from ``start[w]`` on.
    """
    found, one = np.empty(spikes.shape[1], np.int32), np.zeros(1, np.int32)
    for row in range(len(spikes)):
        out = total[row]
        for i in range(list_marks(spikes[row], found)):
            for w in range(windows[found[i]], windows[found[i] + 1]):
                add_runs(out, start[w], values, w * LANES, one, 0, 1, 0, LANES, None)


@compiled
def multiply(pointers: Array, indices: Array, factors: Array | None, x: Array, out: Array) -> None:
    """Add the product of a matrix int32 by rows and x int32 or int8 [rows, S] to ``out`` [rows, S].

    S is a multiple of LANES; without ``factors`` all entries are ones.
    """
    flat, size = x.reshape(-1), x.shape[1]
    for i in range(len(out)):
        add_runs(out[i], 0, flat, 0, indices, pointers[i], pointers[i + 1], size, size, factors)


@compiled
def add_up(events: Array, by_core: Array, by_step: Array) -> None:
    """Add the sums of events [cores, steps] to ``by_core`` and to ``by_step``."""
    for g in range(events.shape[0]):
        total = 0
        for s in range(events.shape[1]):
            total += events[g, s]
            by_step[s] += events[g, s]
        by_core[g] += total


@compiled
def slowest(base: Array, costs: Array, counts: tuple[Array, ...], most: Array, core: Array) -> None:
    """Find the core that takes longest in every step.

    A core takes ``base[core]`` and, for each of ``counts`` int32 [cores, steps], its ``costs`` times it.
    Write the largest of these to ``most`` [steps] and the first core that has it to ``core`` [steps].
    """
    took = np.empty(len(most), np.float64)
    for s in range(len(most)):
        most[s] = -1.0
        core[s] = 0
    for g in range(len(base)):
        for s in range(len(most)):
            took[s] = base[g]
        for i in range(len(costs)):
            events = counts[i][g]
            for s in range(len(most)):
                took[s] += costs[i] * events[s]
        for s in range(len(most)):
            longer = took[s] > most[s]
            most[s] = took[s] if longer else most[s]
            core[s] = g if longer else core[s]


@compiled
def travel(ns: Array, pj: Array, sent: Array, longest: Array, energy: Array) -> None:
    """Add up what packets ``sent`` [ways, steps] take.

    A way takes ``ns`` and ``pj`` [ways]. Write the time of the longest way that any packet takes to
    ``longest`` [steps], and the energy of all to ``energy`` [steps]; both begin at zero.
    """
    for w in range(len(ns)):
        for s in range(len(longest)):
            took = ns[w] if sent[w, s] > 0 else 0.0
            longest[s] = took if took > longest[s] else longest[s]
            energy[s] += pj[w] * sent[w, s]
