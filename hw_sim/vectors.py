"""The operations of ``lanes.py`` written in LLVM, a whole vector of neurons at a time.

They rest on private interfaces of numba and llvmlite, which any release may change: pyproject.toml bounds
both to versions that were tried. ``plain.py`` has the same operations without these interfaces.
"""

# No ``from __future__ import annotations``: numba reads the functions as they are.
import functools
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils as untyped
from numba.extending import intrinsic

from stl_deploy.hw_sim.compiled import LANES
from stl_deploy.ir.units import DECAY_BITS, DECAY_ONE

cgutils: Any = untyped
WIDTH = 4  # as many vectors of LANES stay in registers; a power of two


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
        return builder.zext(
            builder.bitcast(bits, ir.IntType(LANES)), context.get_data_type(sig.return_type)
        )

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

    def code(context: Any, builder: Any, sig: Any, args: tuple[Any, ...]) -> Any:
        count = builder.ctpop(args[0])
        wide = context.get_data_type(sig.return_type)
        return count if count.type == wide else builder.zext(count, wide)

    return types.int64(bits), code


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
    shift = _every(builder, builder.trunc(given["shift"], wide.element), wide)
    begins = cgutils.is_null(builder, given["first"])
    start = builder.select(begins, zero, load("before", given["neuron"]))
    v = cgutils.alloca_once_value(builder, start)
    total = cgutils.alloca_once(builder, wide)

    def heard(own: Any, step: Any, row: Any) -> Any:
        """What the neurons' own spikes bring them in a step, whose marks begin ``row`` further on."""
        late = builder.icmp_signed(">=", builder.add(given["first"], step), given["delay"])
        back = builder.mul(given["delay"], given["marks_step"])
        # Too early there are no marks, and those of this step are read, which do not count.
        back = builder.select(late, back, back.type(0))
        marks = load("spikes", given["spikes_at"], builder.sub(row, back))
        fired = builder.icmp_unsigned("!=", marks, ir.Constant(marks.type, None))
        return builder.select(builder.and_(fired, _every(builder, late, fired.type)), own, zero)

    def loop(halves: bool, bare: bool) -> None:
        keep = None if halves else load("keep", given["neuron"])
        own = None if bare else load("own", given["neuron"])
        # All bits where a spike leaves what is above the threshold, none where it leaves nothing.
        mask = _every(builder, builder.neg(builder.trunc(given["subtract"], wide.element)), wide)
        with cgutils.for_range(builder, given["steps"]) as each:
            row = builder.mul(each.index, given["acc_step"])
            builder.store(zero, total)
            with cgutils.for_range(builder, given["phases"]) as phase:
                at = builder.mul(phase.index, given["acc_phase"])
                part = load("acc", given["acc_at"], row, at)
                part = part if part.type == wide else builder.sext(part, wide)
                builder.store(builder.add(builder.load(total), part), total)
            a, old = builder.load(total), builder.load(v)
            row = builder.mul(each.index, given["marks_step"])
            came = builder.shl(a, shift)
            if not bare:
                a = came = builder.add(came, heard(own, each.index, row))
            left = _halved(builder, old) if halves else _decayed(builder, old, keep)
            new = builder.add(builder.add(left, came), bias)
            fires = builder.icmp_signed(">", new, threshold)
            above = zero if bare else builder.and_(builder.sub(new, threshold), mask)
            builder.store(builder.select(fires, above, new), v)
            active = builder.icmp_signed("!=", builder.or_(builder.or_(old, a), bias), zero)
            for name, marks in (("spikes", fires), ("active", active)):
                to = place(name, given[f"{name}_at"], row)
                builder.store(builder.zext(marks, to.type.pointee), to, align=1)

    def loops(bare: bool) -> None:
        half = cgutils.is_not_null(builder, given["halves"])
        with builder.if_else(half) as (then, otherwise):
            with then:
                loop(halves=True, bare=bare)
            with otherwise:
                loop(halves=False, bare=bare)

    with builder.if_else(cgutils.is_not_null(builder, given["bare"])) as (then, otherwise):
        with then:
            loops(bare=True)
        with otherwise:
            loops(bare=False)
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
    zero, bits, low = (ir.Constant(v.type, [n] * LANES) for n in (0, DECAY_BITS, DECAY_ONE - 1))
    negative = builder.icmp_signed("<", v, zero)
    size = builder.select(negative, builder.sub(zero, v), v)
    high = builder.mul(builder.lshr(size, bits), keep)
    left = builder.lshr(builder.mul(builder.and_(size, low), keep), bits)
    left = builder.add(high, left)
    return builder.select(negative, builder.sub(zero, left), left)
