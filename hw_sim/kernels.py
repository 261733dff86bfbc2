"""Compiled loops of the engine: events, scattered sums, the LIF step, OR pools and counts.

Populations lie in *memory order* here: (H, W, C), channels innermost, and everything else as it is. So
one input event meets the outputs of a whole kernel row in one contiguous run. The functions release
Python's lock: the engine runs them on several threads, each on samples of its own.
"""

# No ``from __future__ import annotations``: numba reads the functions as they are.
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
from llvmlite import ir
from numba import int32, njit, types, uint8, uintp
from numba.extending import intrinsic
from numpy.typing import NDArray

Array = NDArray[Any]
Int = int | np.integer[Any]
Function = TypeVar("Function", bound=Callable[..., Any])
# Runs of weights are padded with zeros to a multiple of this many, which whole vector registers hold.
LANES = 32
STRIDE = np.uintp(LANES)


def compiled(function: Function) -> Function:
    """``function`` compiled at its first call; the result is kept on disk where that is possible."""
    try:
        made: Any = njit(nogil=True, cache=True)(function)
    except RuntimeError:  # No folder that numba could write to: compile in every process.
        made = njit(nogil=True)(function)
    return cast(Function, made)


def inlined(function: Callable[..., Any]) -> Any:
    """``intrinsic``, whose first argument, numba's typing context, is not given by the caller."""
    return intrinsic(function)


def _add(sig: Any, context: Any, builder: Any, args: tuple[Any, ...]) -> Any:
    """LLVM for ``to[at:at + LANES] += sum(values[v:v + LANES] for v in ...)``, in whole vectors.

    Left to itself LLVM has to ask each time whether ``to`` and ``values`` overlap, which takes longer
    than the sum. Nothing is checked: the arrays must reach that far.
    """

    def vector(which: int, index: Any) -> tuple[Any, Any]:
        array = context.make_array(sig.args[which])(context, builder, args[which])
        lanes = ir.VectorType(context.get_data_type(sig.args[which].dtype), LANES)
        place = builder.bitcast(builder.gep(array.data, [index]), lanes.as_pointer())
        return place, lanes

    place, lanes = vector(0, args[1])
    # Places are those of elements, not of whole vectors.
    total = builder.load(place, align=1)
    for index in args[3:]:
        values = builder.load(vector(2, index)[0], align=1)
        total = builder.add(total, builder.sext(values, lanes))
    builder.store(total, place, align=1)
    return context.get_dummy_value()


@inlined
def add_one(typing: Any, to: Any, at: Any, values: Any, a: Any) -> Any:
    """``_add`` with one run of values."""
    return types.void(to, at, values, a), lambda *how: _add(how[2], how[0], how[1], how[3])


@inlined
def add_two(typing: Any, to: Any, at: Any, values: Any, a: Any, b: Any) -> Any:
    """``_add`` with two runs of values."""
    return types.void(to, at, values, a, b), lambda *how: _add(how[2], how[0], how[1], how[3])


@inlined
def add_four(typing: Any, to: Any, at: Any, values: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
    """``_add`` with four runs of values."""
    return types.void(to, at, values, a, b, c, d), lambda *how: _add(how[2], how[0], how[1], how[3])


class Wiring(NamedTuple):
    """Where the event of an input neuron lands, as tables.

    An event at row y, column x, channel c meets, for each ``k`` in ``row_first[y]..row_first[y+1]``
    and each ``m`` in ``col_first[x]..col_first[x+1]``, the ``run`` weights from
    ``c * channel_size + row_tap[k] + col_tap[m]`` on, which are added to the accumulators from
    ``row_at[k] + col_at[m] + channel_at[c]`` on. Weights are int8 [blocks, channels, channel_size],
    flattened. All entries are uintp, which spares numba its test for indices from the end.

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
    channel_size: np.uintp
    run: np.uintp
    grouped: bool
    phases: Array


class Neurons(NamedTuple):
    """Parameters of the neurons and the contiguous pieces in which they are updated.

    ``bias`` and ``threshold`` (of v, strict) are in memory order, int32 for ``fire_plain`` and int64 for
    ``fire_wide``. ``u_keep`` and ``v_keep`` are what a decay leaves, of 4096. ``limit`` is M, 0 without
    limit; an abs(a) of ``too_large`` or more overflows. ``subtract`` says that a spike takes the
    threshold off v, not all of it. Piece i is ``length[i]`` neurons from ``first[i]``, their accumulators
    from ``at[i]``; block b has the pieces ``block_first[b]`` to ``block_first[b+1]``. Run i is
    ``run_length[i]`` neurons from ``run_first[i]``, all on core ``run_core[i]``; block b has the runs
    ``block_run[b]`` to ``block_run[b+1]``.
    """

    bias: Array
    threshold: Array
    u_keep: int
    v_keep: int
    exp: int
    limit: int
    too_large: int
    subtract: bool
    block_first: Array
    first: Array
    length: Array
    at: Array
    block_run: Array
    run_first: Array
    run_length: Array
    run_core: Array


class Did(NamedTuple):
    """Where a run writes: spikes uint8 [N, T, neurons], counts int64 [N, T, cores] and [N, T].

    ``u`` and ``v`` are [N, T, neurons], or empty where nobody wants them.
    """

    spikes: Array
    active: Array
    overflow: Array
    u: Array
    v: Array


@compiled
def find_events(
    x: Array, phases: Array, pointers: Array, channels: Array, values: Array | None
) -> None:
    """List the non-zero channels of every row of x uint8 [rows, channels], a row being a pixel.

    Those of row i in phase k, channels ``phases[k]..phases[k+1]``, are the entries from ``pointers[j]``
    to ``pointers[j+1]`` with j = i * number of phases + k; so are their values where these are wanted.
    The lists have room for one entry more than there are events. Eight channels without any event are
    passed at once.
    """
    found = uintp(0)
    j = 0
    for i in range(x.shape[0]):
        row = x[i]
        for k in range(len(phases) - 1):
            pointers[j] = found
            j += 1
            c, end = uintp(phases[k]), uintp(phases[k + 1])
            while c < end:
                last = min(c + uintp(8), end)
                if last - c == uintp(8):
                    some = uint8(0)
                    for m in range(8):
                        some |= row[c + uintp(m)]
                    if not some:
                        c = last
                        continue
                while c < last:
                    channels[found] = c
                    if values is not None:
                        values[found] = row[c]
                    found += uintp(row[c] != 0)
                    c += uintp(1)
    pointers[j] = found


@compiled
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
    events are ones. Four events of one pixel go together, then two: they have the same accumulators,
    which are then read and written once.
    """
    width = len(wiring.col_first) - 1
    phases = len(wiring.phases) - 1
    run, channel_size = wiring.run, wiring.channel_size
    start = uintp(block) * uintp(len(wiring.channel_at)) * channel_size
    for pixel in range((len(pointers) + phases - 2) // phases):
        e, end = pointers[pixel * phases], pointers[pixel * phases + 1]
        if e == end:
            continue
        y = pixel // width
        x = pixel - y * width
        rows = range(wiring.row_first[y], wiring.row_first[y + 1])
        cols = range(wiring.col_first[x], wiring.col_first[x + 1])
        if values is None and not wiring.grouped:
            while e + 4 <= end:
                w0 = start + uintp(channels[e]) * channel_size
                w1 = start + uintp(channels[e + 1]) * channel_size
                w2 = start + uintp(channels[e + 2]) * channel_size
                w3 = start + uintp(channels[e + 3]) * channel_size
                for k in rows:
                    for m in cols:
                        at = wiring.row_at[k] + wiring.col_at[m]
                        tap = wiring.row_tap[k] + wiring.col_tap[m]
                        a0, a1, a2, a3 = w0 + tap, w1 + tap, w2 + tap, w3 + tap
                        for i in range(uintp(0), run, STRIDE):
                            add_four(acc, at + i, weights, a0 + i, a1 + i, a2 + i, a3 + i)
                e += 4
            while e + 2 <= end:
                w0 = start + uintp(channels[e]) * channel_size
                w1 = start + uintp(channels[e + 1]) * channel_size
                for k in rows:
                    for m in cols:
                        at = wiring.row_at[k] + wiring.col_at[m]
                        tap = wiring.row_tap[k] + wiring.col_tap[m]
                        a0, a1 = w0 + tap, w1 + tap
                        for i in range(uintp(0), run, STRIDE):
                            add_two(acc, at + i, weights, a0 + i, a1 + i)
                e += 2
        while e < end:
            channel = uintp(channels[e])
            w0 = start + channel * channel_size
            to = wiring.channel_at[channel]
            for k in rows:
                for m in cols:
                    at = to + wiring.row_at[k] + wiring.col_at[m]
                    a0 = w0 + wiring.row_tap[k] + wiring.col_tap[m]
                    if values is None:
                        for i in range(uintp(0), run, STRIDE):
                            add_one(acc, at + i, weights, a0 + i)
                    else:
                        for i in range(run):
                            acc[at + i] += values[e] * weights[a0 + i]
            e += 1


@compiled
def flush(acc: Array, sums: Array, begin: bool) -> None:
    """Move the accumulators of a phase into the sums, int32."""
    if begin:
        for i in range(len(acc)):
            sums[i] = acc[i]
            acc[i] = 0
    else:
        for i in range(len(acc)):
            sums[i] += acc[i]
            acc[i] = 0


@compiled
def fire_plain(
    acc: Array,
    v: Array,
    bias: Array,
    threshold: Array,
    v_keep: Int,
    exp: int,
    spikes: Array,
    active: Array,
) -> None:
    """One step in 32 bits of neurons without current memory, where no register can overflow.

    ``active`` tells whether a neuron had anything to compute. Every result is cast at once, or numba
    would go on in 64 bits. The decay splits ``abs(v) * keep >> 12`` at bit 12, which is exact and stays
    within 32 bits.
    """
    shift = int32(exp + 6)
    for i in range(len(v)):
        a = int32(acc[i])
        old = v[i]
        size = int32(-old) if old < 0 else old
        high = int32(int32(size >> 12) * v_keep)
        left = int32(high + int32(int32(int32(size & 4095) * v_keep) >> 12))
        left = int32(-left) if old < 0 else left
        new = int32(int32(left + int32(a << shift)) + bias[i])
        fires = new > threshold[i]
        active[i] = (old != 0) | (a != 0) | (bias[i] != 0)
        spikes[i] = fires
        v[i] = int32(0) if fires else new


@compiled
def fire_wide(
    acc: Array,
    u: Array,
    v: Array,
    bias: Array,
    threshold: Array,
    u_keep: int,
    v_keep: int,
    exp: int,
    limit: int,
    too_large: int,
    subtract: bool,
    spikes: Array,
    active: Array,
) -> Int:
    """One step of any neurons in 64 bits, rule by rule as in the reference.

    ``active`` tells whether a neuron had anything to compute. Returns how many overflowed a register.
    """
    overflow: Int = 0
    for i in range(len(v)):
        a = np.int64(acc[i]) << exp
        left = (abs(u[i]) * u_keep) >> 12
        left = -left if u[i] < 0 else left
        active[i] = (left != 0) | (v[i] != 0) | (a != 0) | (bias[i] != 0)
        current = left + (a << 6)
        beyond = abs(a) >= too_large
        if limit:
            current = np.int64(int32(left + int32(a << 6)))
            beyond |= (current > limit) | (current <= -limit)
            current = (
                current - 2 * limit
                if current > limit
                else current + 2 * limit
                if current <= -limit
                else current
            )
        kept = (abs(v[i]) * v_keep) >> 12
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


@compiled
def update(
    neurons: Neurons,
    piece: int,
    sums: Array,
    u: Array | None,
    v: Array,
    did: Did,
    row: int,
    active: Array,
) -> None:
    """Step one piece of the neurons in ``row``, a step of a sample, from its ``sums``."""
    steps = did.spikes.shape[1]
    n, t = row // steps, row % steps
    first, size, at = neurons.first[piece], neurons.length[piece], neurons.at[piece]
    to = slice(first, first + size)
    acc = sums[at : at + size]
    # Element by element: numba compiles a slice's assignment for seconds.
    if t == 0:
        for i in range(first, first + size):
            v[i] = 0
    if u is None:
        fire_plain(
            acc,
            v[to],
            neurons.bias[to],
            neurons.threshold[to],
            int32(neurons.v_keep),
            neurons.exp,
            did.spikes[n, t, to],
            active[to],
        )
        return
    if t == 0:
        for i in range(first, first + size):
            u[i] = 0
    did.overflow[n, t] += fire_wide(
        acc,
        u[to],
        v[to],
        neurons.bias[to],
        neurons.threshold[to],
        neurons.u_keep,
        neurons.v_keep,
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


@compiled
def run_lif(
    x: Array,
    values: Array | None,
    weights: Array,
    wiring: Wiring,
    neurons: Neurons,
    acc: Array,
    sums: Array,
    active: Array,
    u: Array | None,
    v: Array,
    did: Did,
) -> None:
    """Run a layer on inputs x uint8 [N, T, pixels, channels] from zero, and write what it did.

    ``acc`` (zero; int16 or int32) takes the sums of one phase and ``sums`` int32 [R, len(acc)] those of
    R steps of a block: its weights stay in the cache meanwhile, and then each piece of its neurons.
    ``values`` is room for those of the events, None where x is binary. ``active`` uint8 [R, neurons], and
    ``u`` and ``v`` [neurons] of the type of ``bias`` are scratch; without ``u`` the step is the plain one.
    """
    samples, steps, pixels, channels = x.shape
    rows, phases = samples * steps, len(wiring.phases) - 1
    per_row = pixels * phases
    pointers = np.empty(rows * per_row + 1, np.int64)
    found = np.empty(x.size + 1, np.int32)
    find_events(x.reshape(-1, channels), wiring.phases, pointers, found, values)
    for block in range(len(neurons.block_first) - 1):
        runs = slice(neurons.block_run[block], neurons.block_run[block + 1])
        for first in range(0, rows, len(sums)):
            last = min(first + len(sums), rows)
            for phase in range(phases):
                for row in range(first, last):
                    at = pointers[row * per_row + phase : (row + 1) * per_row + 1]
                    scatter(wiring, weights, block, at, found, values, acc)
                    flush(acc, sums[row - first], phase == 0)
            for piece in range(neurons.block_first[block], neurons.block_first[block + 1]):
                for row in range(first, last):
                    update(neurons, piece, sums[row - first], u, v, did, row, active[row - first])
            for row in range(first, last):
                count_runs(
                    active[row - first],
                    neurons.run_first[runs],
                    neurons.run_length[runs],
                    neurons.run_core[runs],
                    did.active[row // steps, row % steps],
                )


@compiled
def run_sums(
    sums: Array, neurons: Neurons, active: Array, u: Array | None, v: Array, did: Did
) -> None:
    """Run a layer of one block whose sums int32 [N * T, accumulators] are known; see ``run_lif``."""
    steps = did.spikes.shape[1]
    runs = neurons.block_run[1]
    for row in range(len(sums)):
        for piece in range(neurons.block_first[1]):
            update(neurons, piece, sums[row], u, v, did, row, active)
        count_runs(
            active,
            neurons.run_first[:runs],
            neurons.run_length[:runs],
            neurons.run_core[:runs],
            did.active[row // steps, row % steps],
        )


@compiled
def count_runs(marks: Array, first: Array, length: Array, kind: Array, counts: Array) -> None:
    """Add the marks uint8 [neurons] of each run to the counts int64 [kinds] of its kind.

    Run i are the ``length[i]`` neurons from ``first[i]``; a mark is whatever is not zero.
    """
    for i in range(len(first)):
        run = marks[first[i] : first[i] + length[i]]
        count = int32(0)
        for k in range(len(run)):
            count += int32(run[k] != 0)
        counts[kind[i]] += count


@compiled
def count_rows(marks: Array, first: Array, length: Array, kind: Array, counts: Array) -> None:
    """``count_runs`` for each row of marks [rows, neurons] and counts [rows, kinds]."""
    for row in range(len(marks)):
        count_runs(marks[row], first, length, kind, counts[row])


@compiled
def run_recurrent(
    x: Array,
    values: Array | None,
    weights: Array,
    wiring: Wiring,
    own_weights: Array,
    own_wiring: Wiring,
    neurons: Neurons,
    acc: Array,
    own_acc: Array,
    sums: Array,
    active: Array,
    u: Array,
    v: Array,
    did: Did,
) -> None:
    """Run a linear layer that hears itself; the arguments are those of ``run_lif``, and its own weights.

    ``sums`` is int32 [blocks, N * T, len(acc)]: all sums of the inputs come first, then step by step
    those of the spikes of the step before, of all blocks before any neuron is updated. ``active`` is
    uint8 [neurons].
    """
    samples, steps, pixels, channels = x.shape
    phases, own_phases = len(wiring.phases) - 1, len(own_wiring.phases) - 1
    per_row = pixels * phases
    pointers = np.empty(samples * steps * per_row + 1, np.int64)
    found = np.empty(x.size + 1, np.int32)
    find_events(x.reshape(-1, channels), wiring.phases, pointers, found, values)
    own_pointers = np.empty(own_phases + 1, np.int64)
    own_found = np.empty(len(v) + 1, np.int32)
    blocks = len(neurons.block_first) - 1
    for block in range(blocks):
        for row in range(samples * steps):
            for phase in range(phases):
                at = pointers[row * per_row + phase : (row + 1) * per_row + 1]
                scatter(wiring, weights, block, at, found, values, acc)
                flush(acc, sums[block, row], phase == 0)
    for row in range(samples * steps):
        n, t = row // steps, row % steps
        if t > 0:
            before = did.spikes[n, t - 1].reshape(1, -1)
            find_events(before, own_wiring.phases, own_pointers, own_found, None)
            for block in range(blocks):
                for phase in range(own_phases):
                    at = own_pointers[phase:]
                    scatter(own_wiring, own_weights, block, at, own_found, None, own_acc)
                    flush(own_acc, sums[block, row], False)
        for block in range(blocks):
            for piece in range(neurons.block_first[block], neurons.block_first[block + 1]):
                update(neurons, piece, sums[block, row], u, v, did, row, active)
        runs = neurons.block_run[blocks]
        count_runs(
            active,
            neurons.run_first[:runs],
            neurons.run_length[:runs],
            neurons.run_core[:runs],
            did.active[n, t],
        )


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


@compiled
def add_windows(words: Array, windows: Array, start: Array, values: Array, total: Array) -> None:
    """Add the windows of every spike to the totals int32 [rows, counters].

    Spikes are uint8 [rows, neurons], seen eight at a time as ``words`` uint64 [rows, neurons / 8].
    Neuron n has the windows ``windows[n]..windows[n + 1]``; window w adds ``values[w * LANES]`` and those
    after it to the counters from ``start[w]`` on.
    """
    rows, size = words.shape
    spikes = words.view(np.uint8)
    found = np.empty(8 * size + 1, np.int64)
    for row in range(rows):
        train, out = spikes[row], total[row]
        count = 0
        for word in range(size):
            if words[row, word]:
                for i in range(8 * word, 8 * word + 8):
                    found[count] = i
                    count += train[i] != 0
        for i in range(count):
            for w in range(windows[found[i]], windows[found[i] + 1]):
                add_one(out, uintp(start[w]), values, uintp(w) * STRIDE)


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

    A core takes ``base[core]`` and, for each of ``counts`` [cores, steps], its ``costs`` times it. Write
    the largest of these to ``most`` [steps] and the first core that has it to ``core`` [steps].
    """
    one, two, three = counts
    for s in range(len(most)):
        most[s] = -1.0
        core[s] = 0
    for g in range(len(base)):
        for s in range(len(most)):
            took = base[g] + costs[0] * one[g, s] + costs[1] * two[g, s] + costs[2] * three[g, s]
            longer = took > most[s]
            most[s] = took if longer else most[s]
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
