"""Compiled loops that count and price the spikes of a run."""

# No ``from __future__ import annotations``: numba reads the functions as they are.
from typing import Any

import numpy as np
from numba import uint64, uintp

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
def swapped(high: Any, low: Any, shift: int, mask: Any) -> Any:
    """Two words, of which each gave the other those bits that lie under ``mask`` in the second."""
    moved = ((high >> uint64(shift)) ^ low) & mask
    return high ^ (moved << uint64(shift)), low ^ moved


@compiled
def ones(word: Any) -> Any:
    """A word whose bytes are 1 where those of ``word`` are not 0."""
    word = (word | (word >> uint64(4))) & uint64(0x0F0F0F0F0F0F0F0F)
    word = (word | (word >> uint64(2))) & uint64(0x0303030303030303)
    return (word | (word >> uint64(1))) & uint64(0x0101010101010101)


@compiled
def transpose(words: Array, out: Array) -> None:
    """Turn marks, eight by eight bytes at a time, into ones and zeros.

    ``words`` uint64 [rows, neurons / 8] hold marks uint8, which ``out`` uint64 [neurons, rows / 8] gets with
    rows and neurons exchanged. Rows that no whole block holds are left out.
    """
    whole, half = uint64(0x00000000FFFFFFFF), uint64(0x0000FFFF0000FFFF)
    byte = uint64(0x00FF00FF00FF00FF)
    for j in range(words.shape[1]):
        for block in range(len(words) // 8):
            s, n = 8 * block, 8 * j
            a, b, c, d = words[s, j], words[s + 1, j], words[s + 2, j], words[s + 3, j]
            e, f, g, h = words[s + 4, j], words[s + 5, j], words[s + 6, j], words[s + 7, j]
            (a, e), (b, f) = swapped(a, e, 32, whole), swapped(b, f, 32, whole)
            (c, g), (d, h) = swapped(c, g, 32, whole), swapped(d, h, 32, whole)
            (a, c), (b, d) = swapped(a, c, 16, half), swapped(b, d, 16, half)
            (e, g), (f, h) = swapped(e, g, 16, half), swapped(f, h, 16, half)
            (a, b), (c, d) = swapped(a, b, 8, byte), swapped(c, d, 8, byte)
            (e, f), (g, h) = swapped(e, f, 8, byte), swapped(g, h, 8, byte)
            out[n, block], out[n + 1, block] = ones(a), ones(b)
            out[n + 2, block], out[n + 3, block] = ones(c), ones(d)
            out[n + 4, block], out[n + 5, block] = ones(e), ones(f)
            out[n + 6, block], out[n + 7, block] = ones(g), ones(h)


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
