"""Compiled loops of the engine: events, scattered sums, the LIF step, OR pools and counts.

Populations lie in *memory order* here: (H, W, C), channels innermost, and everything else as it is. So
one input event meets the outputs of a whole kernel row in one contiguous run. The functions release
Python's lock: the engine runs them on several threads, each on samples of its own.
"""

# No ``from __future__ import annotations``: numba reads the functions as they are.
import functools
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
from llvmlite import ir
from numba import int32, njit, types, uintp
from numba.core import cgutils as untyped
from numba.core.caching import FunctionCache
from numba.extending import intrinsic
from numpy.typing import NDArray

cgutils: Any = untyped
Array = NDArray[Any]
Int = int | np.integer[Any]
Function = TypeVar("Function", bound=Callable[..., Any])
# Runs of weights are padded with zeros to a multiple of this many, which whole vector registers hold.
LANES = 32
WIDTH = 4  # as many vectors of LANES stay in registers; a power of two


def compiled(function: Function) -> Function:
    """``function`` compiled at its first call; the result is kept on disk where that is possible."""
    made: Any = njit(nogil=True)(function)
    with suppress(RuntimeError):  # No folder that numba could write to: compile in every process.
        made._cache = _Cache(function)  # type: ignore[no-untyped-call]
    return cast(Function, made)


class _Cache(FunctionCache):
    """Numba's cache, which does without a file that cannot be written, say on a full disk."""

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep what was compiled."""
        with suppress(OSError):
            super().save_overload(sig, data)  # type: ignore[no-untyped-call]


def inlined(function: Callable[..., Any]) -> Any:
    """``intrinsic``, whose first argument, numba's typing context, is not given by the caller."""
    return intrinsic(function)


def _lanes(context: Any, builder: Any, kind: Any, array: Any, index: Any) -> Any:
    """The place of LANES elements of an array as a whole vector, which need not lie at a multiple."""
    if kind.layout != "C":
        raise TypeError(f"{kind} is not contiguous")
    of = context.make_array(kind)(context, builder, array)
    lanes = ir.VectorType(context.get_data_type(kind.dtype), LANES)
    return builder.bitcast(builder.gep(of.data, [index]), lanes.as_pointer())


def _every(builder: Any, value: Any, lanes: Any) -> Any:
    """A vector of the type ``lanes`` that has ``value`` everywhere."""
    first = builder.insert_element(ir.Constant(lanes, ir.Undefined), value, ir.IntType(32)(0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
    return builder.shuffle_vector(first, first, zeros)


@inlined
def add_runs(
    typing: Any,
    to: Any,
    at: Any,
    values: Any,
    base: Any,
    events: Any,
    first: Any,
    end: Any,
    size: Any,
    run: Any,
    factors: Any,
) -> Any:
    """Add a run of values for each of ``events[first:end]``, that of e from ``base + e * size`` on.

    They are added to ``to`` from ``at`` on, times ``factors[first:end]`` unless that is None. ``run`` is a
    multiple of LANES. Nothing is checked: the arrays must reach that far.
    """
    return types.void(to, at, values, base, events, first, end, size, run, factors), _add_runs


def _add_runs(context: Any, builder: Any, sig: Any, args: tuple[Any, ...]) -> Any:
    """LLVM for ``add_runs``: a part of a run stays in registers for all events.

    Left to itself LLVM has to ask each time whether ``to`` and ``values`` overlap, which takes longer
    than the sum.
    """
    to, at, values, base, events, first, end, size, run, factors = args
    listed = context.make_array(sig.args[4])(context, builder, events)
    times = None if sig.args[9] == types.none else context.make_array(sig.args[9])

    def add(done: Any, width: int) -> None:
        """Add ``width`` vectors of each run, those after ``done`` values."""

        def places(kind: Any, array: Any, index: Any) -> list[Any]:
            starts = (builder.add(index, index.type(LANES * i)) for i in range(width))
            return [_lanes(context, builder, kind, array, start) for start in starts]

        targets = places(sig.args[0], to, builder.add(at, done))
        # Places are those of elements, not of whole vectors.
        sums = [cgutils.alloca_once_value(builder, builder.load(p, align=1)) for p in targets]
        with cgutils.for_range_slice(builder, first, end, first.type(1)) as (i, _):
            event = builder.zext(builder.load(builder.gep(listed.data, [i])), base.type)
            start = builder.add(builder.add(base, done), builder.mul(event, size))
            for total, place in zip(sums, places(sig.args[2], values, start), strict=True):
                old = builder.load(total)
                more = builder.load(place, align=1)
                more = more if more.type == old.type else builder.sext(more, old.type)
                if times is not None:
                    factor = builder.gep(times(context, builder, factors).data, [i])
                    more = builder.mul(more, _every(builder, builder.load(factor), more.type))
                builder.store(builder.add(old, more), total)
        for total, place in zip(sums, targets, strict=True):
            builder.store(builder.load(total), place, align=1)

    widest = LANES * WIDTH
    whole = builder.and_(run, run.type(-widest))
    with cgutils.for_range_slice(builder, run.type(0), whole, run.type(widest)) as (done, _):
        add(done, WIDTH)
    for width in (2, 1):
        some = builder.and_(run, run.type(LANES * width))
        with builder.if_then(cgutils.is_not_null(builder, some)):
            add(builder.and_(run, run.type(-2 * LANES * width)), width)
    return context.get_dummy_value()


@inlined
def marked(typing: Any, marks: Any, at: Any) -> Any:
    """Which of ``marks[at:at + LANES]``, uint8, are not zero: bit i of an int64 for the i-th."""

    def code(context: Any, builder: Any, sig: Any, args: tuple[Any, ...]) -> Any:
        values = builder.load(_lanes(context, builder, sig.args[0], *args), align=1)
        bits = builder.icmp_unsigned("!=", values, ir.Constant(values.type, None))
        return builder.zext(builder.bitcast(bits, ir.IntType(LANES)), ir.IntType(64))

    return types.int64(marks, at), code


@inlined
def lowest(typing: Any, bits: Any) -> Any:
    """The number of the lowest bit of ``bits`` that is set, of those that are not zero."""

    def code(context: Any, builder: Any, sig: Any, args: tuple[Any, ...]) -> Any:
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(bits), code


@inlined
def how_many(typing: Any, bits: Any) -> Any:
    """How many bits of ``bits`` are set."""
    return types.int64(bits), lambda context, builder, sig, args: builder.ctpop(args[0])


class Lanes(NamedTuple):
    """What ``step`` reads and writes, flat: sums ``acc`` int16 or int32, marks uint8, the rest int32."""

    acc: Array
    before: Array
    after: Array
    bias: Array
    threshold: Array
    spikes: Array
    active: Array


class Steps(NamedTuple):
    """Where ``step`` finds it, all int64.

    The LANES neurons from ``neuron`` on are stepped ``steps`` times. Step i takes the sum of ``phases``
    runs of ``acc``, from ``acc_at + i * acc_step`` on, each ``acc_phase`` after the one before, times
    2^shift. ``keep`` is what the decay leaves, of 4096. Voltages come from ``before``, or are zero where
    ``begins`` is not. Marks go to ``spikes`` and ``active`` from ``spikes_at`` and ``active_at`` on, and
    ``marks_step`` further with every step.
    """

    neuron: Int
    steps: Int
    begins: Int
    acc_at: Int
    acc_step: Int
    phases: Int
    acc_phase: Int
    shift: Int
    keep: Int
    spikes_at: Int
    active_at: Int
    marks_step: Int


@inlined
def step(typing: Any, lanes: Any, steps: Any) -> Any:
    """Step neurons without current memory in 32 bits, where no register can overflow.

    ``active`` tells whether a neuron had anything to compute.
    """
    return types.void(lanes, steps), _step


def _step(context: Any, builder: Any, sig: Any, args: tuple[Any, ...]) -> Any:
    """LLVM for ``step``: voltages stay in registers from step to step."""
    kinds = dict(zip(sig.args[0].fields, sig.args[0].types, strict=True))
    arrays = dict(zip(kinds, cgutils.unpack_tuple(builder, args[0]), strict=True))
    numbers = cgutils.unpack_tuple(builder, args[1])
    given = dict(zip(sig.args[1].fields, numbers, strict=True))
    wide = ir.VectorType(ir.IntType(32), LANES)
    zero = ir.Constant(wide, [0] * LANES)

    def place(name: str, *indices: Any) -> Any:
        index = functools.reduce(builder.add, indices)
        return _lanes(context, builder, kinds[name], arrays[name], index)

    def load(name: str, *indices: Any) -> Any:
        return builder.load(place(name, *indices), align=1)

    bias, threshold = load("bias", given["neuron"]), load("threshold", given["neuron"])
    shift, keep = (
        _every(builder, builder.trunc(given[name], wide.element), wide)
        for name in ("shift", "keep")
    )
    begins = cgutils.is_not_null(builder, given["begins"])
    start = builder.select(begins, zero, load("before", given["neuron"]))
    v = cgutils.alloca_once_value(builder, start)
    total = cgutils.alloca_once(builder, wide)

    def loop(halves: bool) -> None:
        with cgutils.for_range(builder, given["steps"]) as each:
            row = builder.mul(each.index, given["acc_step"])
            builder.store(zero, total)
            with cgutils.for_range(builder, given["phases"]) as phase:
                at = builder.mul(phase.index, given["acc_phase"])
                part = load("acc", given["acc_at"], row, at)
                part = part if part.type == wide else builder.sext(part, wide)
                builder.store(builder.add(builder.load(total), part), total)
            a, old = builder.load(total), builder.load(v)
            left = _halved(builder, old) if halves else _decayed(builder, old, keep)
            new = builder.add(builder.add(left, builder.shl(a, shift)), bias)
            fires = builder.icmp_signed(">", new, threshold)
            builder.store(builder.select(fires, zero, new), v)
            active = builder.icmp_signed("!=", builder.or_(builder.or_(old, a), bias), zero)
            row = builder.mul(each.index, given["marks_step"])
            for name, marks in (("spikes", fires), ("active", active)):
                to = place(name, given[f"{name}_at"], row)
                builder.store(builder.zext(marks, to.type.pointee), to, align=1)

    half = builder.icmp_signed("==", given["keep"], given["keep"].type(2048))
    with builder.if_else(half) as (then, otherwise):
        with then:
            loop(halves=True)
        with otherwise:
            loop(halves=False)
    builder.store(builder.load(v), place("after", given["neuron"]), align=1)
    return context.get_dummy_value()


def _halved(builder: Any, v: Any) -> Any:
    """Half of the voltages ``v``, truncated toward zero."""
    one, sign = (ir.Constant(v.type, [n] * LANES) for n in (1, 31))
    return builder.ashr(builder.add(v, builder.lshr(v, sign)), one)


def _decayed(builder: Any, v: Any, keep: Any) -> Any:
    """What ``keep`` of 4096 leaves of the voltages ``v``, truncated toward zero.

    ``abs(v) * keep >> 12`` is split at bit 12, which is exact and stays within 32 bits.
    """
    zero, twelve, low = (ir.Constant(v.type, [n] * LANES) for n in (0, 12, 4095))
    negative = builder.icmp_signed("<", v, zero)
    size = builder.select(negative, builder.sub(zero, v), v)
    high = builder.mul(builder.lshr(size, twelve), keep)
    left = builder.lshr(builder.mul(builder.and_(size, low), keep), twelve)
    left = builder.add(high, left)
    return builder.select(negative, builder.sub(zero, left), left)


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


class Neurons(NamedTuple):
    """Parameters of the neurons and the contiguous pieces in which they are updated.

    ``bias`` and ``threshold`` (of v, strict) are in memory order, int32 for ``step`` and int64 for
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


@compiled
def add_phases(acc: Array, sums: Array) -> None:
    """Move the sums of all phases, ``acc`` [phases, accumulators], into ``sums``, int32."""
    for i in range(len(sums)):
        sums[i] = 0
    for phase in range(len(acc)):
        part = acc[phase]
        for i in range(len(sums)):
            sums[i] += part[i]
    clear(acc)


@compiled
def clear(acc: Array) -> None:
    """Set all accumulators to zero."""
    flat = acc.reshape(-1)
    for i in range(len(flat)):
        flat[i] = 0


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
        did.spikes.reshape(-1),
        active.reshape(-1),
    )
    size, steps = did.spikes.shape[2], did.spikes.shape[1]
    for piece in range(neurons.block_first[block], neurons.block_first[block + 1]):
        first, length = neurons.first[piece], neurons.length[piece]
        for start in range(0, length, LANES):
            # The last of a piece may step neurons again, which start as they did.
            i = min(start, length - LANES)
            where = Steps(
                neuron=np.int64(first + i),
                steps=np.int64(acc.shape[0]),
                begins=np.int64(row % steps == 0),
                acc_at=np.int64(neurons.at[piece] + i),
                acc_step=np.int64(acc.shape[1] * acc.shape[2]),
                phases=np.int64(acc.shape[1]),
                acc_phase=np.int64(acc.shape[2]),
                shift=np.int64(neurons.exp + 6),
                keep=np.int64(neurons.v_keep),
                spikes_at=np.int64(row * size + first + i),
                active_at=np.int64(first + i),
                marks_step=np.int64(size),
            )
            step(lanes, where)


@compiled
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
    steps = did.spikes.shape[1]
    n, t = row // steps, row % steps
    for piece in range(neurons.block_first[block], neurons.block_first[block + 1]):
        first, size, at = neurons.first[piece], neurons.length[piece], neurons.at[piece]
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
def count_active(neurons: Neurons, block: int, active: Array, counts: Array) -> None:
    """Add the ``active`` neurons [neurons] of a block to the ``counts`` of their cores."""
    runs = slice(neurons.block_run[block], neurons.block_run[block + 1])
    count_runs(
        active, neurons.run_first[runs], neurons.run_length[runs], neurons.run_core[runs], counts
    )


@compiled
def list_events(x: Array, wiring: Wiring, values: Array | None) -> tuple[Array, Array]:
    """``find_events`` of inputs x uint8 [N, T, pixels, channels], with new lists."""
    pointers = np.empty(x.size // x.shape[3] * (len(wiring.phases) - 1) + 1, np.int64)
    channels = np.empty(x.size + 1, np.int32)
    find_events(x.reshape(-1, x.shape[3]), wiring.phases, pointers, channels, values)
    return pointers, channels


@compiled
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
    for block in range(len(neurons.block_first) - 1):
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
    for block in range(len(neurons.block_first) - 1):
        for first in range(0, rows, len(acc)):
            some = acc[: min(len(acc), rows - first)]
            collect(wiring, weights, block, pointers, channels, values, first, pixels, some)
            for i in range(len(some)):
                row = first + i
                add_phases(some[i], sums)
                update_wide(neurons, block, sums, u, v, did, row, active)
                count_active(neurons, block, active, did.active[row // steps, row % steps])


@compiled
def sums_plain(sums: Array, neurons: Neurons, active: Array, v: Array, did: Did) -> None:
    """Run a layer of one block whose sums int32 [N, T, 1, accumulators] are known by the plain step.

    ``active`` uint8 [T, neurons] and ``v`` int32 [2, neurons] are scratch.
    """
    steps = sums.shape[1]
    for n in range(len(sums)):
        update_plain(neurons, 0, sums[n], v, did, n * steps, active)
        for t in range(steps):
            count_active(neurons, 0, active[t], did.active[n, t])


@compiled
def sums_wide(sums: Array, neurons: Neurons, active: Array, u: Array, v: Array, did: Did) -> None:
    """Run a layer as ``sums_plain``, by a step for any neurons; the scratch is that of ``run_wide``."""
    steps = sums.shape[1]
    for n in range(len(sums)):
        for t in range(steps):
            update_wide(neurons, 0, sums[n, t, 0], u, v, did, n * steps + t, active)
            count_active(neurons, 0, active, did.active[n, t])


@compiled
def count_runs(marks: Array, first: Array, length: Array, kind: Array, counts: Array) -> None:
    """Add the marks uint8 [neurons] of each run to the counts int64 [kinds] of its kind.

    Run i are the ``length[i]`` neurons from ``first[i]``; a mark is whatever is not zero.
    """
    for i in range(len(first)):
        at, count = first[i], 0
        end = at + length[i]
        while at < end:
            if at + LANES <= len(marks):
                bits = marked(marks, at)
                if end - at < LANES:
                    bits &= (1 << (end - at)) - 1
                count += how_many(bits)
                at += LANES
            else:
                count += marks[uintp(at)] != 0
                at += 1
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
    own_sums: Array,
    active: Array,
    u: Array,
    v: Array,
    did: Did,
) -> None:
    """Run a linear layer that hears itself; the arguments are those of ``run_wide``, and its own weights.

    ``acc`` is [1, phases, accumulators], ``own_acc`` [phases, accumulators]. ``sums`` is int32
    [blocks, N * T, accumulators]: all sums of the inputs come first, then step by step those of the spikes of
    the step before, of all blocks before any neuron is updated. ``active``, ``u`` and ``v`` are [neurons].
    """
    samples, steps = x.shape[:2]
    own_phases = len(own_wiring.phases) - 1
    pointers, found = list_events(x, wiring, values)
    own_pointers = np.empty(own_phases + 1, np.int64)
    own_found = np.empty(len(v) + 1, np.int32)
    blocks = len(neurons.block_first) - 1
    for block in range(blocks):
        for row in range(samples * steps):
            collect(wiring, weights, block, pointers, found, values, row, 1, acc)
            add_phases(acc[0], sums[block, row])
    for row in range(samples * steps):
        n, t = row // steps, row % steps
        if t > 0:
            before = did.spikes[n, t - 1].reshape(1, -1)
            find_events(before, own_wiring.phases, own_pointers, own_found, None)
            for block in range(blocks):
                for phase in range(own_phases):
                    at = own_pointers[phase:]
                    scatter(own_wiring, own_weights, block, at, own_found, None, own_acc[phase])
                add_phases(own_acc, own_sums)
                for i in range(len(own_sums)):
                    sums[block, row, i] += own_sums[i]
        for block in range(blocks):
            update_wide(neurons, block, sums[block, row], u, v, did, row, active)
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
