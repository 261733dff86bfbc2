"""Compiled loops for neurons with any of the rules of ``ir/neurons.py``, in 64 bits, as in the reference.

One kernel carries every rule: what neurons do not have is passed over, by flags that are the same for a whole
population. A step takes CHUNK neurons at a time through short loops, one for each rule, whose intermediate
results stay in the first-level cache.
"""

# No ``from __future__ import annotations``: numba reads the functions as they are.
from typing import NamedTuple

import numpy as np
from numba import int32

from stl_deploy.hw_sim.buffers import add_pieces
from stl_deploy.hw_sim.compiled import Array, Int, compiled
from stl_deploy.hw_sim.kernels import Pieces, Wiring, clear, find_events, scatter
from stl_deploy.hw_sim.lanes import count_runs
from stl_deploy.ir.units import DECAY_BITS, FRACTION_BITS

CHUNK = 1 << 8  # neurons
STATES = ("u", "v", "u2", "q", "rest")  # in the order of ``States``


class Rules(NamedTuple):
    """Parameters of neurons, as in ``Lif``, in units of v.

    An array holds int64 values, one for each neuron in memory order, or CHUNK times the one that all have.
    ``gain`` is [T, values], without entries where there is no gain. ``u_keep``, ``u2_keep``, ``v_keep`` and
    ``q_keep`` are what the decays leave, of 4096. ``limit`` and ``too_large`` are as in ``kernels.Neurons``.
    ``second``, ``adapts``, ``bounded`` and ``graded`` tell whether there is a second current, an adaptive
    threshold, a floor and a value that is sent. Run i is ``run_length[i]`` neurons from ``run_first[i]`` on
    core ``run_core[i]``; there are none where the active neurons need not be counted.
    """

    bias: Array
    threshold: Array
    u_keep: Array
    u2_keep: Array
    v_keep: Array
    q_keep: Array
    left: Array
    floor: Array
    adapt: Array
    gain: Array
    first: Array
    limit: Int
    too_large: Int
    fires: Int
    second: Int
    adapts: Int
    bounded: Int
    resets: Int
    subtract: Int
    reset_current: Int
    hold: Int
    graded: Int
    shift: Int
    levels: Int
    run_first: Array
    run_length: Array
    run_core: Array


class States(NamedTuple):
    """The states int64 [N, neurons]; those that neurons do not have are [N, 0]."""

    u: Array
    v: Array
    u2: Array
    q: Array
    rest: Array


class Results(NamedTuple):
    """Where a run writes: counts as in ``kernels.Did``, and what is sent, [N, T, neurons].

    That are ``spikes`` uint8, or int16 ``values`` of graded neurons; the other has no entries. ``kept`` int64
    [states, N, T, neurons], in the order of STATES, has none where nobody wants the states.
    """

    spikes: Array
    values: Array
    active: Array
    overflow: Array
    kept: Array


class Scratch(NamedTuple):
    """Room of CHUNK: int64 ``a``, ``a2`` and ``v``, uint8 ``fired`` and ``over``; uint8 ``busy`` of all."""

    a: Array
    a2: Array
    v: Array
    fired: Array
    over: Array
    busy: Array


@compiled
def part(values: Array, first: Int, size: Int) -> Array:
    """The ``values`` of ``size`` neurons from ``first`` on, or the one that all have."""
    return values[first : first + size] if first + size <= len(values) else values[:size]


@compiled
def decayed(x: Int, keep: Int) -> Int:
    """What a decay leaves of x, truncated toward zero."""
    kept = (abs(x) * keep) >> DECAY_BITS
    return -kept if x < 0 else kept


@compiled
def add_current(
    u: Array,
    a: Array,
    keep: Array,
    bias: Array,
    gain: Array,
    limit: Int,
    too_large: Int,
    busy: Array,
    over: Array,
) -> None:
    """A step of a current ``u`` to which the sum ``a`` comes, in place; ``a`` is used up.

    With a gain, which has no entries where there is none, the bias comes the same way.
    """
    size = len(u)
    for i in range(size):
        busy[i] |= (decayed(u[i], keep[i]) != 0) | (a[i] != 0)
        over[i] |= abs(a[i]) >= too_large
        a[i] = a[i] << FRACTION_BITS
    if len(gain):
        for i in range(size):
            x = (np.int64(int32(a[i])) if limit else a[i]) + bias[i]
            x = (np.int64(int32(x)) if limit else x) * gain[i]
            scaled = abs(x) >> DECAY_BITS
            a[i] = -scaled if x < 0 else scaled
    if limit:
        for i in range(size):
            x = np.int64(int32(decayed(u[i], keep[i]) + int32(a[i])))
            over[i] |= (x > limit) | (x <= -limit)
            u[i] = x - 2 * limit if x > limit else x + 2 * limit if x <= -limit else x
    else:
        for i in range(size):
            u[i] = decayed(u[i], keep[i]) + a[i]


@compiled
def add_voltage(
    rules: Rules, first: Int, u: Array, u2: Array, rest: Array, v: Array, new: Array, over: Array
) -> None:
    """The voltages ``new`` of a chunk before the threshold, after ``v``; ``v`` is left as it is."""
    size, limit = len(v), rules.limit
    keep, bias = part(rules.v_keep, first, size), part(rules.bias, first, size)
    for i in range(size):
        new[i] = decayed(v[i], keep[i]) + u[i]
    if rules.second:
        for i in range(size):
            new[i] += u2[i]
    if not rules.gain.size:
        for i in range(size):
            new[i] += bias[i]
    for i in range(size * (limit != 0)):
        x = np.int64(int32(new[i]))
        over[i] |= (abs(x) > limit - 1) & (rules.hold == 0 or rest[i] == 0)
        new[i] = min(max(x, -limit + 1), limit - 1)
    if rules.hold:
        for i in range(size):
            new[i] = v[i] if rest[i] else new[i]
    if rules.bounded:
        floor = part(rules.floor, first, size)
        for i in range(size):
            new[i] = max(new[i], floor[i])


@compiled
def fire(
    rules: Rules, first: Int, v: Array, q: Array, rest: Array, threshold: Array, fired: Array
) -> None:
    """Mark the neurons of a chunk that spike, and let none spike that rests."""
    for i in range(len(v)):
        fired[i] = v[i] > threshold[i]
    if rules.adapts:
        for i in range(len(v)):
            fired[i] = v[i] > threshold[i] + q[i]
    if rules.hold:
        for i in range(len(v)):
            fired[i] &= rest[i] == 0


@compiled
def send(rules: Rules, of: Array, fired: Array, values: Array) -> None:
    """Write the values that a chunk sends, int16, where it fires: from ``of``, shifted and cut off."""
    for i in range(len(of)):
        value = min(max(of[i] >> rules.shift, -rules.levels), rules.levels)
        values[i] = value if fired[i] else 0


@compiled
def after_spikes(
    rules: Rules,
    first: Int,
    fired: Array,
    threshold: Array,
    new: Array,
    u: Array,
    u2: Array,
    v: Array,
    q: Array,
    rest: Array,
) -> None:
    """Resets, rest and adaptation of a chunk; ``v`` comes from ``new``."""
    size, limit = len(v), rules.limit
    if rules.subtract:
        for i in range(size):
            v[i] = new[i] - threshold[i] if fired[i] else new[i]
    elif rules.resets:
        left = part(rules.left, first, size)
        for i in range(size):
            v[i] = left[i] if fired[i] else new[i]
    else:
        for i in range(size):
            v[i] = new[i]
    if rules.reset_current:
        for i in range(size):
            u[i] = 0 if fired[i] else u[i]
        for i in range(len(u2)):
            u2[i] = 0 if fired[i] else u2[i]
    if rules.hold:
        for i in range(size):
            rest[i] = rules.hold if fired[i] else rest[i] - (rest[i] > 0)
    if rules.adapts:
        keep, adapt = part(rules.q_keep, first, size), part(rules.adapt, first, size)
        for i in range(size):
            x = decayed(q[i], keep[i]) + (adapt[i] if fired[i] else 0)
            q[i] = min(max(x, -limit + 1), limit - 1) if limit else x


@compiled
def step_chunk(
    rules: Rules, t: Int, first: Int, scratch: Scratch, states: States, n: Int, results: Results
) -> Int:
    """Step ``t`` of the neurons of a chunk of sample n, whose sums are in ``scratch``.

    Returns how many overflowed a register.
    """
    size = min(CHUNK, states.v.shape[1] - first)
    to = slice(first, first + size)
    u, v = states.u[n, to], states.v[n, to]
    u2, q, rest = states.u2[n, to], states.q[n, to], states.rest[n, to]
    a, a2, new = scratch.a[:size], scratch.a2[:size], scratch.v[:size]
    fired, over, busy = scratch.fired[:size], scratch.over[:size], scratch.busy[to]
    bias, threshold = part(rules.bias, first, size), part(rules.threshold, first, size)
    for i in range(size):
        busy[i] = (v[i] != 0) | (bias[i] != 0)
        over[i] = 0
        fired[i] = 1
    for i in range(len(q)):
        busy[i] |= q[i] != 0
    for i in range(len(rest)):
        busy[i] |= rest[i] != 0
    if rules.graded and not rules.fires:
        send(rules, a, fired, results.values[n, t, to])
    gain = part(rules.gain[t], first, size) if rules.gain.size else rules.gain.reshape(-1)
    keep, limit, too_large = part(rules.u_keep, first, size), rules.limit, rules.too_large
    add_current(u, a, keep, bias, gain, limit, too_large, busy, over)
    if rules.second:
        for i in range(size):
            new[i] = 0  # the bias comes once
        keep = part(rules.u2_keep, first, size)
        add_current(u2, a2, keep, new, gain, limit, too_large, busy, over)
    add_voltage(rules, first, u, u2, rest, v, new, over)
    if rules.fires:
        fire(rules, first, new, q, rest, threshold, fired)
    else:
        for i in range(size):
            fired[i] = 0
    if not rules.graded:
        spikes = results.spikes[n, t, to]
        for i in range(size):
            spikes[i] = fired[i]
    elif rules.fires:
        send(rules, new, fired, results.values[n, t, to])
    after_spikes(rules, first, fired, threshold, new, u, u2, v, q, rest)
    count = 0
    for i in range(size):
        count += over[i]
    return count


@compiled
def step_row(
    rules: Rules,
    narrow: Array,
    wide: Array,
    n: Int,
    t: Int,
    states: States,
    scratch: Scratch,
    results: Results,
) -> None:
    """Step ``t`` of sample n, whose sums are there.

    Sums are [currents, N, T, neurons at least]: ``narrow`` int32, or ``wide`` int64, whichever has entries.
    """
    neurons = states.v.shape[1]
    for first in range(0, neurons, CHUNK):
        size = min(CHUNK, neurons - first)
        for port in range(1 + rules.second):
            a = scratch.a2 if port else scratch.a
            if narrow.size:
                low = narrow[port, n, t, first : first + size]
                for i in range(size):
                    a[i] = low[i]
            else:
                high = wide[port, n, t, first : first + size]
                for i in range(size):
                    a[i] = high[i]
        results.overflow[n, t] += step_chunk(rules, t, first, scratch, states, n, results)
    count_runs(
        scratch.busy, rules.run_first, rules.run_length, rules.run_core, results.active[n, t]
    )
    if results.kept.size:
        copy_state(states.u[n], results.kept[0, n, t])
        copy_state(states.v[n], results.kept[1, n, t])
        copy_state(states.u2[n], results.kept[2, n, t])
        copy_state(states.q[n], results.kept[3, n, t])
        copy_state(states.rest[n], results.kept[4, n, t])


@compiled
def copy_state(state: Array, to: Array) -> None:
    """Copy a state, if there is one."""
    for i in range(len(state)):
        to[i] = state[i]


@compiled
def start(rules: Rules, states: States, n: int) -> None:
    """Set the states of sample n to those before the first step."""
    for i in range(states.v.shape[1]):
        states.u[n, i] = 0
        states.v[n, i] = rules.first[i % len(rules.first)]
    for state in (states.u2, states.q, states.rest):
        for i in range(state.shape[1]):
            state[n, i] = 0


@compiled
def run_steps(
    rules: Rules,
    narrow: Array,
    wide: Array,
    first: Int,
    last: Int,
    states: States,
    scratch: Scratch,
    results: Results,
) -> None:
    """Run the steps ``first`` to ``last`` of all samples, whose sums are there (``step_row``).

    ``states`` are left for the next step.
    """
    for n in range(len(states.v)):
        if first == 0:
            start(rules, states, n)
        for t in range(first, last):
            step_row(rules, narrow, wide, n, t, states, scratch, results)


@compiled
def hear(
    sent: Array,
    weights: Array,
    wiring: Wiring,
    pieces: Pieces,
    acc: Array,
    pointers: Array,
    found: Array,
    factor: Int,
    narrow: Array,
    wide: Array,
) -> None:
    """Add what ``sent`` uint8 [neurons], spikes of one step, bring to the sums [neurons] of one step.

    ``acc`` [phases, accumulators] is zero, ``pointers`` and ``found`` are room for the list of events.
    """
    phases = len(acc)
    find_events(sent.reshape(-1, len(wiring.channel_at)), wiring.phases, pointers, found, None)
    for block in range(len(pieces.block_first) - 1):
        for phase in range(phases):
            scatter(wiring, weights, block, pointers[phase:], found, None, acc[phase])
        if len(narrow):
            add_pieces(acc, pieces, block, factor, narrow)
        else:
            add_pieces(acc, pieces, block, factor, wide)
        clear(acc)


@compiled
def run_recurrent(
    rules: Rules,
    weights: Array,
    wiring: Wiring,
    pieces: Pieces,
    acc: Array,
    exp: Int,
    delay: Int,
    port: Int,
    narrow: Array,
    wide: Array,
    states: States,
    scratch: Scratch,
    results: Results,
) -> None:
    """``run_steps`` of neurons that hear their own spikes ``delay`` steps later, times 2^exp."""
    samples, steps, neurons = results.spikes.shape
    pixels = neurons // len(wiring.channel_at)
    pointers = np.empty(pixels * len(acc) + 1, np.int64)
    found = np.empty(neurons + 1, np.int32)
    for n in range(samples):
        start(rules, states, n)
        for t in range(steps):
            if t >= delay:
                sent = results.spikes[n, t - delay]
                low = narrow[port, n, t] if narrow.size else narrow.reshape(-1)
                high = wide[port, n, t] if wide.size else wide.reshape(-1)
                hear(sent, weights, wiring, pieces, acc, pointers, found, 1 << exp, low, high)
            step_row(rules, narrow, wide, n, t, states, scratch, results)
