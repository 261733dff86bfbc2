"""Compiled loops for neurons with any of the rules of ``ir/neurons.py``.

One kernel carries every rule: what neurons do not have is passed over, by flags that are the same for a whole
population. A step takes CHUNK neurons at a time through short loops, one for each rule, whose intermediate
results stay in the first-level cache. Arrays are flat and read from offsets, since numba spends more time on
a slice than these loops on its entries.

The kernel is compiled for 32 bits, where ``proofs.rules_fit_32_bits`` allows that, or else for 64, as in the
reference. Sums, parameters, states and scratch are of so many bits, the *kind*. numba computes in 64 bits;
what is stored, or converted to the kind, is cut off. A chip's registers wrap at 32 bits, as these do.
"""

# No ``from __future__ import annotations``: numba reads the functions as they are.
from typing import Any, NamedTuple

from numba import int32, uintp

from stl_deploy.hw_sim.buffers import Back, hear
from stl_deploy.hw_sim.compiled import Array, Int, merged, uncounted
from stl_deploy.hw_sim.lanes import count_rows
from stl_deploy.ir.units import DECAY_BITS, DECAY_ONE, FRACTION_BITS

CHUNK = 1 << 8  # neurons
STATES = ("u", "v", "u2", "q", "rest")  # in the order of ``States``


class Rules(NamedTuple):
    """Parameters of neurons, as in ``Lif``, in units of v.

    An array holds values of the kind, one for each neuron in memory order, or CHUNK times the one that all
    have. So do the ``gains`` entries that ``gain`` int16 has for each step; there are none without a gain.
    ``u_keep``, ``u2_keep``, ``v_keep`` and ``q_keep`` are what the decays leave, of 4096. ``limit`` and
    ``too_large`` are as in ``kernels.Neurons``; a limit of 0 also stands for one that nothing can reach.
    ``forgets`` tells that no current is remembered; ``second``,
    ``adapts``, ``bounded`` and ``graded`` whether there is a second one, an adaptive threshold, a floor and a
    value that is sent. Run i is
    ``run_length[i]`` neurons from ``run_first[i]`` on core ``run_core[i]``; there are none where the active
    neurons need not be counted.
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
    v0: Array
    gain: Array
    gains: Int
    forgets: Int
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
    """The states of the kind [N * neurons]; those that neurons do not have are empty."""

    u: Array
    v: Array
    u2: Array
    q: Array
    rest: Array


class Results(NamedTuple):
    """Where a run writes: counts as in ``kernels.Did``, and what is sent, [N * T * neurons].

    That are ``spikes`` uint8, or int16 ``values`` of graded neurons; the other is empty. ``kept`` of the kind
    [states * N * T * neurons], in the order of STATES, is empty where nobody wants the states.
    """

    spikes: Array
    values: Array
    kept: Array
    active: Array
    overflow: Array


class Scratch(NamedTuple):
    """Room for CHUNK neurons, of the kind and uint8; ``busy`` uint8 [T * neurons] for a sample."""

    a: Array
    a2: Array
    v: Array
    fired: Array
    over: Array
    busy: Array


@merged
def place(values: Array, first: Int, size: Int) -> Int:
    """Where the values of ``size`` neurons from ``first`` on begin in a parameter."""
    return first if first + size <= len(values) else 0


@merged
def decayed(x: Any, keep: Any) -> Any:
    """x * keep / 4096, truncated toward zero, cut off at the kind; keep is positive, x not the lowest number.

    ``abs(x) * keep >> 12`` is split at bit 12, so that no part needs more bits than the kind has.
    """
    kind, size = type(x), abs(x)
    high, low = kind((size >> DECAY_BITS) * keep), kind((size & (DECAY_ONE - 1)) * keep)
    left = kind(high + kind(low >> DECAY_BITS))
    return kind(-left) if x < 0 else left


@merged
def load(sums: Array, start: Int, size: Int, a: Array) -> None:
    """The sums of a chunk."""
    for i in range(size):
        a[uintp(i)] = sums[uintp(start + i)]


@merged
def mark_busy(
    rules: Rules, first: Int, size: Int, states: States, at: Int, busy: Array, row: Int
) -> None:
    """Mark neurons with a bias, or a state other than a current; the currents mark theirs."""
    v, q, rest = states.v, states.q, states.rest
    b = place(rules.bias, first, size)
    for i in range(size):
        busy[uintp(row + i)] = (v[uintp(at + i)] != 0) | (rules.bias[uintp(b + i)] != 0)
    for i in range(size * (rules.adapts != 0)):
        busy[uintp(row + i)] |= q[uintp(at + i)] != 0
    for i in range(size * (rules.hold != 0)):
        busy[uintp(row + i)] |= rest[uintp(at + i)] != 0


@merged
def amplify(rules: Rules, t: Int, first: Int, size: Int, port: Int, a: Array) -> None:
    """What comes to a current times the gain of step t, in place; the bias comes to the first."""
    b, kind = place(rules.bias, first, size), type(a[0])
    g = t * rules.gains + (first if first + size <= rules.gains else 0)
    if rules.limit:
        for i in range(size):
            a[uintp(i)] = int32(a[uintp(i)])
    for i in range(size * (port == 0)):
        a[uintp(i)] += rules.bias[uintp(b + i)]
    if rules.limit:
        for i in range(size):
            a[uintp(i)] = int32(a[uintp(i)])
    for i in range(size):
        gain = kind(rules.gain[uintp(g + i)])
        x = decayed(a[uintp(i)], abs(gain))
        a[uintp(i)] = -x if gain < 0 else x


@merged
def add_current(
    rules: Rules,
    t: Int,
    first: Int,
    size: Int,
    port: Int,
    scratch: Scratch,
    u: Array,
    at: Int,
    row: Int,
) -> None:
    """A step of the first or second current ``u``, to which the sum in ``scratch`` comes and is used up."""
    a, left, over, busy = scratch.a, scratch.v, scratch.over, scratch.busy
    keep, kind = rules.u_keep, type(a[0])
    if port:
        a, keep = scratch.a2, rules.u2_keep
    k, limit, too_large = place(keep, first, size), kind(rules.limit), kind(rules.too_large)
    if rules.forgets:
        for i in range(size):
            left[uintp(i)] = 0
    else:
        for i in range(size):
            left[uintp(i)] = decayed(u[uintp(at + i)], keep[uintp(k + i)])
    for i in range(size):
        busy[uintp(row + i)] |= (left[uintp(i)] | a[uintp(i)]) != 0
    for i in range(size * (rules.limit != 0)):
        over[uintp(i)] |= (a[uintp(i)] >= too_large) | (a[uintp(i)] <= -too_large)
    for i in range(size):
        a[uintp(i)] <<= FRACTION_BITS
    if rules.gains:
        amplify(rules, t, first, size, port, a)
    for i in range(size * (rules.limit == 0)):
        u[uintp(at + i)] = left[uintp(i)] + a[uintp(i)]
    for i in range(size * (rules.limit != 0)):
        x = kind(int32(left[uintp(i)] + int32(a[uintp(i)])))
        over[uintp(i)] |= (x > limit) | (x <= -limit)
        x = kind(x - 2 * limit) if x > limit else kind(x + 2 * limit) if x <= -limit else x
        u[uintp(at + i)] = x


@merged
def add_voltage(
    rules: Rules, first: Int, size: Int, states: States, at: Int, new: Array, over: Array
) -> None:
    """The voltages ``new`` of a chunk before the threshold; those before the step stay in ``states``."""
    u, v, u2, rest, kind = states.u, states.v, states.u2, states.rest, type(new[0])
    k, b = place(rules.v_keep, first, size), place(rules.bias, first, size)
    for i in range(size):
        new[uintp(i)] = decayed(v[uintp(at + i)], rules.v_keep[uintp(k + i)]) + u[uintp(at + i)]
    for i in range(size * (rules.second != 0)):
        new[uintp(i)] += u2[uintp(at + i)]
    for i in range(size * (rules.gains == 0)):
        new[uintp(i)] += rules.bias[uintp(b + i)]
    most = kind(rules.limit - 1)
    if rules.limit and rules.hold:
        for i in range(size):
            x = kind(int32(new[uintp(i)]))
            over[uintp(i)] |= ((x > most) | (x < -most)) & (rest[uintp(at + i)] == 0)
    elif rules.limit:
        for i in range(size):
            x = kind(int32(new[uintp(i)]))
            over[uintp(i)] |= (x > most) | (x < -most)
    for i in range(size * (rules.limit != 0)):
        x = kind(int32(new[uintp(i)]))
        new[uintp(i)] = most if x > most else -most if x < -most else x
    for i in range(size * (rules.hold != 0)):
        x, kept = new[uintp(i)], v[uintp(at + i)]
        new[uintp(i)] = kept if rest[uintp(at + i)] else x
    f = place(rules.floor, first, size)
    for i in range(size * (rules.bounded != 0)):
        new[uintp(i)] = max(new[uintp(i)], rules.floor[uintp(f + i)])


@merged
def fire(
    rules: Rules, first: Int, size: Int, states: States, at: Int, v: Array, fired: Array
) -> None:
    """Mark the neurons of a chunk that spike, none of which rests."""
    threshold, q, rest = rules.threshold, states.q, states.rest
    h = place(threshold, first, size)
    for i in range(size):
        fired[uintp(i)] = v[uintp(i)] > threshold[uintp(h + i)]
    for i in range(size * (rules.fires and rules.adapts)):
        fired[uintp(i)] = v[uintp(i)] > threshold[uintp(h + i)] + q[uintp(at + i)]
    for i in range(size * (rules.hold != 0)):
        fired[uintp(i)] &= rest[uintp(at + i)] == 0
    for i in range(size * (rules.fires == 0)):
        fired[uintp(i)] = 0


@merged
def send(rules: Rules, size: Int, of: Array, fired: Array, values: Array, to: Int) -> None:
    """Write what a chunk sends, int16: ``of``, shifted and cut off; only of those that fire, where any do."""
    for i in range(size):
        value = min(max(of[uintp(i)] >> rules.shift, -rules.levels), rules.levels)
        values[uintp(to + i)] = value if fired[uintp(i)] or not rules.fires else 0


@merged
def after_spikes(
    rules: Rules, first: Int, size: Int, states: States, at: Int, fired: Array, new: Array
) -> None:
    """Resets, rest and adaptation of a chunk, whose voltage before the reset is ``new``."""
    u, v, u2, q, rest = states
    h, r = place(rules.threshold, first, size), place(rules.left, first, size)
    # Both values are read in any case: loops with reads that depend on something are far slower.
    if rules.subtract:
        for i in range(size):
            x, threshold = new[uintp(i)], rules.threshold[uintp(h + i)]
            v[uintp(at + i)] = x - threshold if fired[uintp(i)] else x
    elif rules.resets:
        for i in range(size):
            x, left = new[uintp(i)], rules.left[uintp(r + i)]
            v[uintp(at + i)] = left if fired[uintp(i)] else x
    else:
        for i in range(size):
            v[uintp(at + i)] = new[uintp(i)]
    for i in range(size * (rules.reset_current != 0)):
        x = u[uintp(at + i)]
        u[uintp(at + i)] = 0 if fired[uintp(i)] else x
    for i in range(size * (rules.reset_current and rules.second)):
        x = u2[uintp(at + i)]
        u2[uintp(at + i)] = 0 if fired[uintp(i)] else x
    for i in range(size * (rules.hold != 0)):
        x = rest[uintp(at + i)]
        rest[uintp(at + i)] = rules.hold if fired[uintp(i)] else x - (x > 0)
    k, p = place(rules.q_keep, first, size), place(rules.adapt, first, size)
    for i in range(size * (rules.adapts != 0)):
        x, adapt = decayed(q[uintp(at + i)], rules.q_keep[uintp(k + i)]), rules.adapt[uintp(p + i)]
        q[uintp(at + i)] = x + adapt if fired[uintp(i)] else x
    most = type(new[0])(rules.limit - 1)
    for i in range(size * (rules.adapts != 0 and rules.limit != 0)):
        q[uintp(at + i)] = min(max(q[uintp(at + i)], -most), most)


@merged
def keep_states(states: States, at: Int, size: Int, kept: Array, to: Int) -> None:
    """Write the states of a chunk, each a fifth of ``kept`` after the one before."""
    each = len(kept) // 5
    for i in range(size):
        kept[uintp(to + i)] = states.u[uintp(at + i)]
        kept[uintp(to + each + i)] = states.v[uintp(at + i)]
    for i in range(size * (len(states.u2) > 0)):
        kept[uintp(to + 2 * each + i)] = states.u2[uintp(at + i)]
    for i in range(size * (len(states.q) > 0)):
        kept[uintp(to + 3 * each + i)] = states.q[uintp(at + i)]
    for i in range(size * (len(states.rest) > 0)):
        kept[uintp(to + 4 * each + i)] = states.rest[uintp(at + i)]


@merged
def step_chunk(
    rules: Rules,
    t: Int,
    first: Int,
    size: Int,
    states: States,
    at: Int,
    scratch: Scratch,
    row: Int,
    results: Results,
    to: Int,
) -> Int:
    """Step t of the ``size`` neurons from ``first`` on of a sample, whose sums are in ``scratch``.

    Their states begin ``at``, their marks in ``scratch.busy`` at ``row``, and what they send at ``to``.
    Returns how many overflowed a register.
    """
    a, new, fired, over, busy = scratch.a, scratch.v, scratch.fired, scratch.over, scratch.busy
    for i in range(size):
        over[uintp(i)] = 0
    mark_busy(rules, first, size, states, at, busy, row)
    if rules.graded and not rules.fires:
        send(rules, size, a, fired, results.values, to)
    for port in range(1 + rules.second):
        u = states.u2 if port else states.u
        add_current(rules, t, first, size, port, scratch, u, at, row)
    add_voltage(rules, first, size, states, at, new, over)
    fire(rules, first, size, states, at, new, fired)
    if not rules.graded:
        for i in range(size):
            results.spikes[uintp(to + i)] = fired[uintp(i)]
    elif rules.fires:
        send(rules, size, new, fired, results.values, to)
    after_spikes(rules, first, size, states, at, fired, new)
    if len(results.kept):
        keep_states(states, at, size, results.kept, to)
    count = 0
    for i in range(size):
        count += over[uintp(i)]
    return count


@merged
def start(rules: Rules, states: States, at: Int, neurons: Int) -> None:
    """Set the states of a sample, which begin ``at``, to those before the first step."""
    for first in range(0, neurons, CHUNK):
        size = min(CHUNK, neurons - first)
        f = place(rules.v0, first, size)
        for i in range(size):
            states.u[uintp(at + first + i)] = 0
            states.v[uintp(at + first + i)] = rules.v0[uintp(f + i)]
    for state in (states.u2, states.q, states.rest):
        for i in range(neurons * (len(state) > 0)):
            state[uintp(at + i)] = 0


@uncounted
def run(
    rules: Rules,
    back: Back,
    sums: Array,
    first: Int,
    last: Int,
    states: States,
    scratch: Scratch,
    results: Results,
) -> None:
    """Run the steps ``first`` to ``last`` of all samples; ``states`` are left for the next step.

    There may be room for the states of one sample only, if ``last`` is the number of steps and ``first`` 0.

    ``sums`` [currents, N, T, neurons at least] lack what comes ``back``. Neurons that nothing leads back to
    go through all steps chunk by chunk.
    """
    samples, steps = results.overflow.shape
    neurons = max(len(results.spikes), len(results.values)) // (samples * steps)
    room, flat = sums.shape[3], sums.reshape(-1)
    # Where samples run one after the other they share their states.
    apart = neurons * (len(states.v) > neurons)
    marks = scratch.busy.reshape(steps, neurons)
    together = neurons if back.delay else CHUNK
    for n in range(samples):
        if first == 0:
            start(rules, states, n * apart, neurons)
        for begin in range(0, neurons, together):
            for t in range(first, last):
                row = n * steps + t
                if back.delay and t >= back.delay:
                    at = (row - back.delay) * neurons
                    sent = results.spikes[at : at + neurons]
                    hear(back, sent, sums[back.port, n, t])
                for i in range(begin, min(begin + together, neurons), CHUNK):
                    size = min(CHUNK, neurons - i)
                    for port in range(1 + rules.second):
                        at = (port * samples * steps + row) * room + i
                        load(flat, at, size, scratch.a2 if port else scratch.a)
                    results.overflow[n, t] += step_chunk(
                        rules,
                        t,
                        i,
                        size,
                        states,
                        n * apart + i,
                        scratch,
                        t * neurons + i,
                        results,
                        row * neurons + i,
                    )
        count_rows(
            marks[first:last],
            rules.run_first,
            rules.run_length,
            rules.run_core,
            results.active[n, first:last],
        )
