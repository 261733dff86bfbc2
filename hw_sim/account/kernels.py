"""Compiled loops that count and price the spikes of a run."""

# No ``from __future__ import annotations``: numba reads the functions as they are.
import numpy as np
from numba import uint32, uintp

from stl_deploy.hw_sim.compiled import LANES, Array, compiled
from stl_deploy.hw_sim.lanes import add_runs, how_many, lowest, marked

LINE = 16  # words of 32 bits that the cache holds together


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
def pack(marks: Array, bits: Array) -> None:
    """Write which of marks uint8 [rows, neurons] are not zero to bits uint32 [words, rows at least].

    Bit i of word w is that of neuron ``w * LANES + i``.
    """
    rows, neurons = marks.shape
    flat, whole = marks.reshape(-1), neurons // LANES
    left = neurons - whole * LANES
    for first in range(0, rows, LINE):
        last = min(first + LINE, rows)
        for word in range(whole):
            for row in range(first, last):
                bits[word, row] = marked(flat, row * neurons + word * LANES)
        if left and whole:
            for row in range(first, last):
                bits[whole, row] = marked(flat, (row + 1) * neurons - LANES) >> (LANES - left)
        elif left:
            for row in range(first, last):
                for n in range(left):
                    bits[whole, row] |= uint32(marks[row, n] != 0) << uint32(n)


@compiled
def count_bits(pointers: Array, words: Array, masks: Array, bits: Array, out: Array) -> None:
    """Count the bits uint32 [words, S] under masks, and write the counts int32 [counts, S].

    Count i has the ``masks`` uint32 from ``pointers[i]`` to ``pointers[i + 1]``, each for one of ``words``.
    """
    for i in range(len(out)):
        to = out[i]
        for s in range(len(to)):
            to[s] = 0
        for k in range(pointers[i], pointers[i + 1]):
            some, mask = bits[words[k]], masks[k]
            for s in range(len(to)):
                to[s] += how_many(some[s] & mask)


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
