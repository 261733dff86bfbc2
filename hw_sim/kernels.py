"""Compiled loops of the engine: events, scattered sums, the LIF step, OR pools and counts.

Populations lie in *memory order* here: (H, W, C), channels innermost, and everything else as it is. So
one input event meets the outputs of a whole kernel row in one contiguous run. The functions release
Python's lock: the engine runs them on several threads, each on samples of its own.
"""

# No ``from __future__ import annotations``: numba reads the functions as they are.
from typing import NamedTuple

import numpy as np
from numba import int32, uintp

from stl_deploy.hw_sim.compiled import LANES, Array, Int, compiled, inner
from stl_deploy.hw_sim.lanes import Lanes, Steps, add_runs, count_runs, lowest, marked, step
from stl_deploy.ir.units import DECAY_BITS, FRACTION_BITS


class Wiring(NamedTuple):
    """Where the event of an input neuron lands, as tables.

    An event at row y, column x, channel c meets, for each ``k`` in ``row_first[y]..row_first[y+1]``
    and each ``m`` in ``col_first[x]..col_first[x+1]``, the ``run`` weights from
    ``c * channel_size + row_tap[k] + col_tap[m]`` on, which are added to the accumulators from
    ``row_at[k] + col_at[m] + channel_at[c]`` on. Weights are int8, or int16 into accumulators of int32,
    [blocks, channels, channel_size], flattened.

    Channels ``phases[k]..phases[k+1]`` are summed together: what they can add up to fits the type of
    the accumulators.
    """

    row_first: Array
    row_tap: Array
    row_at: Array
    col_first: Array
    col_tap: Array
    col_at: Array
    channel_at: Array
    channel_size: int
    run: int
    grouped: bool
    phases: Array


class Pieces(NamedTuple):
    """Contiguous pieces of a population and of accumulators.

    Piece i is ``length[i]`` neurons from ``first[i]``, their accumulators from ``at[i]``; block b has the
    pieces ``block_first[b]`` to ``block_first[b+1]``.
    """

    block_first: Array
    first: Array
    length: Array
    at: Array


class Neurons(NamedTuple):
    """Parameters of the neurons and the contiguous pieces in which they are updated.

    ``bias`` and ``threshold`` (of v, strict) are in memory order, int32 for ``step`` and int64 for
    ``fire_wide``. ``u_keep`` and ``v_keep`` are what a decay leaves, of 4096: one for all neurons, or one for
    each; for ``step`` always one for each, int32. ``own`` is what a neuron's own spike adds to its sum
    ``delay`` steps later; it has no entries where nothing does. For ``step`` it has one for each neuron in
    any case, and counts units of v. Sums count 2^exp. ``limit`` is M, 0 without limit; an abs(a) of
    ``too_large`` or more overflows. ``subtract`` says that a spike takes the threshold off v, not all of it.
    ``pieces`` are those of the sums. Run i is ``run_length[i]`` neurons from ``run_first[i]``, all on core
    ``run_core[i]``; block b has the runs ``block_run[b]`` to ``block_run[b+1]``.
    """

    bias: Array
    threshold: Array
    u_keep: Array
    v_keep: Array
    own: Array
    delay: int
    exp: int
    limit: int
    too_large: int
    subtract: bool
    halves: bool
    bare: bool
    pieces: Pieces
    block_run: Array
    run_first: Array
    run_length: Array
    run_core: Array


class Did(NamedTuple):
    """Where a run writes: spikes uint8 [N, T, neurons], counts int64 [N, T, cores] and [N, T].

    ``u`` and ``v`` int32 are [N, T, neurons], or empty where nobody wants them. So are ``wide_u`` and
    ``wide_v`` int64, for chips without limits.
    """

    spikes: Array
    active: Array
    overflow: Array
    u: Array
    v: Array
    wide_u: Array
    wide_v: Array


@inner
def find_events(
    x: Array, phases: Array, pointers: Array, channels: Array, values: Array | None
) -> None:
    """List the non-zero channels of every row of x uint8 [rows, channels], a row being a pixel.

    Those of row i in phase k, channels ``phases[k]..phases[k+1]``, are the entries from ``pointers[j]``
    to ``pointers[j+1]`` with j = i * number of phases + k; so are their values where these are wanted.
    The lists have room for one entry more than there are events.
    """
    flat = x.reshape(-1)
    found, j, row = 0, 0, 0
    for _ in range(x.shape[0]):
        for k in range(len(phases) - 1):
            pointers[j] = found
            j += 1
            c, end = phases[k], phases[k + 1]
            while c < end:
                at = row + c
                if c + 8 <= end and at + LANES <= len(flat):
                    bits = marked(flat, at)
                    if end - c < LANES:
                        bits &= (1 << (end - c)) - 1
                    while bits:
                        i = lowest(bits)
                        bits &= bits - 1
                        channels[uintp(found)] = c + i
                        if values is not None:
                            values[uintp(found)] = flat[uintp(at + i)]
                        found += 1
                    c += LANES
                else:
                    channels[uintp(found)] = c
                    if values is not None:
                        values[uintp(found)] = flat[uintp(at)]
                    found += flat[uintp(at)] != 0
                    c += 1
        row += x.shape[1]
    pointers[j] = found


@inner
def scatter(
    wiring: Wiring,
    weights: Array,
    block: int,
    pointers: Array,
    channels: Array,
    values: Array | None,
    acc: Array,
) -> None:
    """Add the events of one step and phase to the accumulators ``acc``, known not to overflow.

    ``pointers`` are those of the step's pixels and begin at the phase; ``values`` is None where all
    events are ones. The events of one pixel go together: they have the same accumulators, which are then
    read and written once.
    """
    width = len(wiring.col_first) - 1
    phases = len(wiring.phases) - 1
    run, size = wiring.run, wiring.channel_size
    start = block * len(wiring.channel_at) * size
    for pixel in range((len(pointers) + phases - 2) // phases):
        first, last = pointers[pixel * phases], pointers[pixel * phases + 1]
        if first == last:
            continue
        y = pixel // width
        x = pixel - y * width
        for k in range(wiring.row_first[y], wiring.row_first[y + 1]):
            for m in range(wiring.col_first[x], wiring.col_first[x + 1]):
                at = wiring.row_at[k] + wiring.col_at[m]
                base = start + wiring.row_tap[k] + wiring.col_tap[m]
                if values is not None:
                    for e in range(first, last):
                        to = at + wiring.channel_at[channels[e]]
                        here = base + channels[e] * size
                        for i in range(run):
                            acc[to + i] += values[e] * weights[here + i]
                elif wiring.grouped:
                    for e in range(first, last):
                        to = at + wiring.channel_at[channels[e]]
                        add_runs(acc, to, weights, base, channels, e, e + 1, size, run, None)
                else:
                    add_runs(acc, at, weights, base, channels, first, last, size, run, None)


@inner
def add_phases(acc: Array, sums: Array) -> None:
    """Move the sums of all phases, ``acc`` [phases, accumulators], into ``sums``, int32."""
    for i in range(len(sums)):
        sums[i] = 0
    for phase in range(len(acc)):
        part = acc[phase]
        for i in range(len(sums)):
            sums[i] += part[i]
    clear(acc)


@inner
def clear(acc: Array) -> None:
    """Set all accumulators to zero."""
    flat = acc.reshape(-1)
    for i in range(len(flat)):
        flat[i] = 0


@inner
def fire_wide(
    acc: Array,
    u: Array,
    v: Array,
    bias: Array,
    threshold: Array,
    u_keep: Array,
    v_keep: Array,
    exp: int,
    limit: int,
    too_large: int,
    subtract: bool,
    spikes: Array,
    active: Array,
) -> Int:
    """One step of any neurons in 64 bits, rule by rule as in the reference.

    ``u_keep`` and ``v_keep`` have one entry for all neurons, or one for each. ``active`` tells whether a
    neuron had anything to compute. Returns how many overflowed a register.
    """
    overflow: Int = 0
    one_u, one_v = len(u_keep) == 1, len(v_keep) == 1
    first_u, first_v = u_keep[0], v_keep[0]
    for i in range(len(v)):
        a = np.int64(acc[i]) << exp
        left = (abs(u[i]) * (first_u if one_u else u_keep[i])) >> DECAY_BITS
        left = -left if u[i] < 0 else left
        active[i] = (left != 0) | (v[i] != 0) | (a != 0) | (bias[i] != 0)
        current = left + (a << FRACTION_BITS)
        beyond = abs(a) >= too_large
        if limit:
            current = np.int64(int32(left + int32(a << FRACTION_BITS)))
            beyond |= (current > limit) | (current <= -limit)
            current = (
                current - 2 * limit
                if current > limit
                else current + 2 * limit
                if current <= -limit
                else current
            )
        kept = (abs(v[i]) * (first_v if one_v else v_keep[i])) >> DECAY_BITS
        voltage = (-kept if v[i] < 0 else kept) + current + bias[i]
        if limit:
            voltage = np.int64(int32(voltage))
            beyond |= abs(voltage) > limit - 1
            voltage = min(max(voltage, -limit + 1), limit - 1)
        fires = voltage > threshold[i]
        overflow += beyond
        spikes[i] = fires
        u[i] = current
        reset = voltage - threshold[i] if subtract else 0
        v[i] = reset if fires else voltage
    return overflow


@inner
def update_plain(
    neurons: Neurons, block: int, acc: Array, v: Array, did: Did, row: int, active: Array
) -> None:
    """Step the neurons of a block, pieces of at least LANES, through steps of one sample from ``row`` on.

    ``acc`` is [steps, phases, accumulators], ``v`` int32 [2, neurons] what the steps before left and what
    these leave, and ``active`` [steps, neurons].
    """
    before, after = v[0], v[1]
    lanes = Lanes(
        acc.reshape(-1),
        before,
        after,
        neurons.bias,
        neurons.threshold,
        neurons.v_keep,
        neurons.own,
        did.spikes.reshape(-1),
        active.reshape(-1),
    )
    size, steps, pieces = did.spikes.shape[2], did.spikes.shape[1], neurons.pieces
    for piece in range(pieces.block_first[block], pieces.block_first[block + 1]):
        first, length = pieces.first[piece], pieces.length[piece]
        for start in range(0, length, LANES):
            # The last of a piece may step neurons again, which start as they did.
            i = min(start, length - LANES)
            where = Steps(
                neuron=np.int64(first + i),
                steps=np.int64(acc.shape[0]),
                first=np.int64(row % steps),
                acc_at=np.int64(pieces.at[piece] + i),
                acc_step=np.int64(acc.shape[1] * acc.shape[2]),
                phases=np.int64(acc.shape[1]),
                acc_phase=np.int64(acc.shape[2]),
                shift=np.int64(neurons.exp + FRACTION_BITS),
                halves=np.int64(neurons.halves),
                bare=np.int64(neurons.bare),
                subtract=np.int64(neurons.subtract),
                delay=np.int64(neurons.delay),
                spikes_at=np.int64(row * size + first + i),
                active_at=np.int64(first + i),
                marks_step=np.int64(size),
            )
            step(lanes, where)


@inner
def update_wide(
    neurons: Neurons,
    block: int,
    sums: Array,
    u: Array,
    v: Array,
    did: Did,
    row: int,
    active: Array,
) -> None:
    """Step the neurons of a block in ``row``, a step of a sample, from its ``sums``."""
    steps, pieces = did.spikes.shape[1], neurons.pieces
    n, t = row // steps, row % steps
    for piece in range(pieces.block_first[block], pieces.block_first[block + 1]):
        first, size, at = pieces.first[piece], pieces.length[piece], pieces.at[piece]
        to = slice(first, first + size)
        # Element by element: numba compiles a slice's assignment for seconds.
        if t == 0:
            for i in range(first, first + size):
                u[i] = 0
                v[i] = 0
        did.overflow[n, t] += fire_wide(
            sums[at : at + size],
            u[to],
            v[to],
            neurons.bias[to],
            neurons.threshold[to],
            neurons.u_keep if len(neurons.u_keep) == 1 else neurons.u_keep[to],
            neurons.v_keep if len(neurons.v_keep) == 1 else neurons.v_keep[to],
            neurons.exp,
            neurons.limit,
            neurons.too_large,
            neurons.subtract,
            did.spikes[n, t, to],
            active[to],
        )
        if did.u.size:
            for i in range(first, first + size):
                did.u[n, t, i] = u[i]
                did.v[n, t, i] = v[i]
        if did.wide_u.size:
            for i in range(first, first + size):
                did.wide_u[n, t, i] = u[i]
                did.wide_v[n, t, i] = v[i]


@inner
def count_active(neurons: Neurons, block: int, active: Array, counts: Array) -> None:
    """Add the ``active`` neurons [neurons] of a block to the ``counts`` of their cores."""
    runs = slice(neurons.block_run[block], neurons.block_run[block + 1])
    count_runs(
        active, neurons.run_first[runs], neurons.run_length[runs], neurons.run_core[runs], counts
    )


@inner
def list_events(x: Array, wiring: Wiring, values: Array | None) -> tuple[Array, Array]:
    """``find_events`` of inputs x uint8 [N, T, pixels, channels], with new lists."""
    pointers = np.empty(x.size // x.shape[3] * (len(wiring.phases) - 1) + 1, np.int64)
    channels = np.empty(x.size + 1, np.int32)
    find_events(x.reshape(-1, x.shape[3]), wiring.phases, pointers, channels, values)
    return pointers, channels


@inner
def collect(
    wiring: Wiring,
    weights: Array,
    block: int,
    pointers: Array,
    channels: Array,
    values: Array | None,
    first: int,
    pixels: int,
    acc: Array,
) -> None:
    """Add the events of some steps, from row ``first`` on, to ``acc`` [steps, phases, accumulators]."""
    per_row = pixels * acc.shape[1]
    for phase in range(acc.shape[1]):
        for i in range(len(acc)):
            row = first + i
            at = pointers[row * per_row + phase : (row + 1) * per_row + 1]
            scatter(wiring, weights, block, at, channels, values, acc[i, phase])


@compiled
def run_plain(
    x: Array,
    values: Array | None,
    weights: Array,
    wiring: Wiring,
    neurons: Neurons,
    acc: Array,
    active: Array,
    v: Array,
    did: Did,
) -> None:
    """Run a layer on inputs x uint8 [N, T, pixels, channels] from zero by the plain step.

    ``acc`` [R, phases, accumulators] (zero; int16 or int32) takes the sums of R steps of a block, whose
    weights stay in the cache meanwhile. R is less than T, or a multiple of it. ``values`` is room for those
    of the events, None where x is binary. ``active`` uint8 [R, neurons] and ``v`` int32 [2, neurons] are
    scratch.
    """
    steps, pixels = x.shape[1], x.shape[2]
    rows = x.shape[0] * steps
    pointers, channels = list_events(x, wiring, values)
    for block in range(len(neurons.pieces.block_first) - 1):
        first = 0
        while first < rows:
            last = min(first + len(acc), rows)
            if len(acc) < steps:
                last = min(last, (first // steps + 1) * steps)
            some = acc[: last - first]
            collect(wiring, weights, block, pointers, channels, values, first, pixels, some)
            for at in range(0, last - first, steps):
                update_plain(neurons, block, some[at : at + steps], v, did, first + at, active[at:])
            clear(some)
            for row in range(first, last):
                to = did.active[row // steps, row % steps]
                count_active(neurons, block, active[row - first], to)
            if last % steps:
                for i in range(v.shape[1]):
                    v[0, i] = v[1, i]
            first = last


@compiled
def run_wide(
    x: Array,
    values: Array | None,
    weights: Array,
    wiring: Wiring,
    neurons: Neurons,
    acc: Array,
    sums: Array,
    active: Array,
    u: Array,
    v: Array,
    did: Did,
) -> None:
    """Run a layer as ``run_plain``, by a step for any neurons.

    ``sums`` int32 [accumulators], ``active`` uint8 [neurons], ``u`` and ``v`` int64 [neurons] are scratch.
    """
    steps, pixels = x.shape[1], x.shape[2]
    rows = x.shape[0] * steps
    pointers, channels = list_events(x, wiring, values)
    for block in range(len(neurons.pieces.block_first) - 1):
        for first in range(0, rows, len(acc)):
            some = acc[: min(len(acc), rows - first)]
            collect(wiring, weights, block, pointers, channels, values, first, pixels, some)
            for i in range(len(some)):
                row = first + i
                add_phases(some[i], sums)
                update_wide(neurons, block, sums, u, v, did, row, active)
                count_active(neurons, block, active, did.active[row // steps, row % steps])


@compiled
def or_pool(x: Array, out: Array) -> None:
    """Or over windows: x uint8 [rows, H, W * C] to out uint8 [rows, H/kh, W/kw, C].

    In runs of a whole row: the rows of a window, then its columns by shifts of C.
    """
    rows, height, width, channels = out.shape
    size = x.shape[2]
    kh, kw = x.shape[1] // height, size // (width * channels)
    line, joined = np.empty(size, np.uint8), np.empty(size, np.uint8)
    for i in range(rows):
        for y in range(height):
            for j in range(size):
                line[j] = x[i, y * kh, j] != 0
            for k in range(1, kh):
                for j in range(size):
                    line[j] |= x[i, y * kh + k, j] != 0
            for j in range(size):
                joined[j] = line[j]
            for k in range(1, kw):
                shifted = line[k * channels :]
                for j in range(len(shifted)):
                    joined[j] |= shifted[j]
            for z in range(width):
                target, window = out[i, y, z], joined[z * kw * channels :]
                for c in range(channels):
                    target[c] = window[c]
