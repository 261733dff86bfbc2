"""One time step of a population in ONNX: ``Neurons.step`` of ``hw_sim/reference.py`` in integers.

What arrives comes in int64 (onnx_sums.py), and nothing behind it can overflow that (onnx_limits.py). The
wraps and limits of the chip are written out, for any width that a chip file can name. States are int32 where
the chip has registers, int64 on chip ``ideal``. A rule that neurons do not use adds no node.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stl_deploy.chips import facts as chips
from stl_deploy.exporters import onnx_inputs
from stl_deploy.exporters.onnx_graph import Builder
from stl_deploy.ir import kinds
from stl_deploy.ir.network import IntegerNetwork, Population
from stl_deploy.ir.neurons import Each, Graded, Neurons
from stl_deploy.ir.synapses import IntArray, Shape
from stl_deploy.ir.units import DECAY_ONE, FRACTION_BITS

State = tuple[str, type[np.generic], Shape]
Sums = Sequence[str]  # a << 6 of each current, [N, *shape] int64


def state_type(network: IntegerNetwork) -> type[np.int32] | type[np.int64]:
    """The type of u, v and the other states."""
    return np.int64 if chips.of(network).state_limit is None else np.int32


def results(network: IntegerNetwork, population: Population) -> list[State]:
    """What a population gives in every step: name, type, shape."""
    name, wide = population.name, state_type(network)
    found: list[State] = [
        (f"spikes/{name}", onnx_inputs.sent_type(network, name), population.shape)
    ]
    return found + [
        (f"{kind}/{name}", wide, population.shape)
        for kind in ("u", "v", *population.neurons.states)
    ]


def states(network: IntegerNetwork, population: Population) -> list[State]:
    """What a population keeps from step to step: name of the input, type, shape."""
    if not POPULATIONS[population.kind].remembers:
        return []
    name, wide, neurons = population.name, state_type(network), population.neurons
    found: list[State] = [
        (f"{kind}_in/{name}", wide, population.shape) for kind in ("u", "v", *neurons.states)
    ]
    if _counts(neurons):
        found.append((f"t_in/{name}", np.int64, ()))
    return found


def _counts(neurons: Neurons) -> bool:
    """Whether a step depends on its number."""
    return neurons.gain is not None or _starts(neurons)


def _starts(neurons: Neurons) -> bool:
    """Whether v begins at something else than 0."""
    return bool(np.any(np.asarray(neurons.v0) != 0))


def _or(b: Builder, population: Population, sums: Sums, network: IntegerNetwork) -> str:
    """u = a, v = 0; fires where anything arrived."""
    (a,), state, name = sums, state_type(network), population.name
    fires = b.op("Greater", [a, b.number(0)], b.name("fires", name))
    v = b.op("Mul", [a, b.number(0)], b.name("wide_v", name))
    b.cast(a, state, b.name("u", name))
    b.cast(v, state, b.name("v", name))
    return b.cast(fires, np.uint8, b.name("spikes", name))


def _lif(b: Builder, population: Population, sums: Sums, network: IntegerNetwork) -> str:
    """One step of LIF neurons, in the order of the reference."""
    limit = chips.of(network).state_limit
    step = _Step(b, population.name, population.shape, population.neurons, limit)
    return step.written(sums, state_type(network))


@dataclass(frozen=True)
class _Step:
    """The nodes of one population; ``limit`` is that of its registers, None on chip ``ideal``."""

    b: Builder
    name: str
    shape: Shape
    neurons: Neurons
    limit: int | None

    def written(self, sums: Sums, state: type[np.generic]) -> str:
        """Write the step. Returns the name of what the population sends."""
        n, b = self.neurons, self.b
        old = {kind: self.old(kind) for kind in ("u", "v", *n.states)}
        if _counts(n):
            self.op("Add", [self.called("t_in"), b.number(1)], "t")
        if _starts(n):
            first = self.op("Equal", [self.step_number(), b.number(0)], "is_first")
            old["v"] = self.op("Where", [first, self.each("v0", n.v0), old["v"]], "start_v")
        new = {"u": self.current("u", n.du, old["u"], self.arriving("u", sums[0], n.bias))}
        if n.du2 is not None:
            new["u2"] = self.current("u2", n.du2, old["u2"], self.arriving("u2", sums[1], None))
        v = self.voltage(old, new)
        fires = self.fires(v, old)
        sent = self.sent(fires, v, sums[0])
        new["v"] = self.after_reset(fires, v)
        if n.reset_current:
            for current in [kind for kind in new if kind != "v"]:
                left = self.op("Where", [fires, b.number(0), new[current]], f"left_{current}")
                new[current] = left
        if "rest" in old:
            new["rest"] = self.rest(fires, old["rest"])
        if "q" in old:
            new["q"] = self.adapted(fires, old["q"])
        for kind, value in new.items():
            b.cast(value, state, self.called(kind))
        return b.cast(sent, np.uint8 if n.graded is None else np.int16, self.called("spikes"))

    def called(self, kind: str) -> str:
        """The name of a value of the population."""
        return self.b.name(kind, self.name)

    def op(self, operator: str, inputs: Sequence[str], kind: str, **attributes: Any) -> str:
        """A node whose output is the population's value of this kind."""
        return self.b.op(operator, inputs, self.called(kind), **attributes)

    def each(self, kind: str, values: Any) -> str:
        """A constant of the neurons."""
        return self.b.constant(self.called(kind), np.asarray(values, np.int64))

    def old(self, kind: str) -> str:
        """A state before the step, in int64."""
        return self.b.cast(self.called(f"{kind}_in"), np.int64, self.called(f"old_{kind}"))

    def step_number(self) -> str:
        """How many steps are done, [N, 1, ...]."""
        ones = (1,) * len(self.shape)
        return self.op("Reshape", [self.called("t_in"), self.b.shape((0, *ones))], "t_of_each")

    def arriving(self, kind: str, a: str, bias: IntArray | None) -> str:
        """What a << 6 adds to a current; under a gain, which counts 1/4096, the bias comes with it."""
        gain = self.neurons.gain
        if gain is None:
            return a
        if bias is not None:
            a = self.op("Add", [a, self.each("bias", bias)], f"biased_{kind}")
        if self.limit is not None:
            a = self.wrapped32(a, f"arriving_{kind}")
        one = (1,) * (len(self.shape) + 1 - gain.ndim)
        by_step = gain.reshape(len(gain), *one, *gain.shape[1:])
        every = self.b.constant(self.called("gain"), by_step.astype(np.int16))
        now = self.op("Gather", [every, self.called("t_in")], f"gain_of_{kind}", axis=0)
        wide = self.b.cast(now, np.int64, self.called(f"wide_gain_of_{kind}"))
        product = self.op("Mul", [a, wide], f"amplified_{kind}")
        return self.op("Div", [product, self.b.number(DECAY_ONE)], f"gained_{kind}")

    def current(self, kind: str, du: Each, old: str, x: str) -> str:
        """A current after the step in which ``x`` arrives."""
        kept = self.decayed(old, np.asarray(du) + 1, f"kept_{kind}")
        u = self.op("Add", [kept, x], f"sum_{kind}")
        if self.limit is None:
            return u
        return self.wrapped_once(self.wrapped32(u, kind), kind, self.limit)

    def voltage(self, old: Mapping[str, str], new: Mapping[str, str]) -> str:
        """v before the threshold."""
        n, b = self.neurons, self.b
        kept = self.decayed(old["v"], np.asarray(n.dv), "kept_v")
        v = self.op("Add", [kept, new["u"]], "driven_v")
        if "u2" in new:
            v = self.op("Add", [v, new["u2"]], "twice_driven_v")
        if n.gain is None:
            v = self.op("Add", [v, self.each("bias", n.bias)], "sum_v")
        if self.limit is not None:
            v = self.saturated(self.wrapped32(v, "v"), "v", self.limit)
        if "rest" in old:
            awake = self.op("Equal", [old["rest"], b.number(0)], "awake")
            v = self.op("Where", [awake, v, old["v"]], "rested_v")
        if n.floor is not None:
            v = self.op("Max", [v, self.each("floor", n.floor)], "floored_v")
        return v

    def fires(self, v: str, old: Mapping[str, str]) -> str:
        """Where neurons spike."""
        if not self.neurons.fires:
            return self.op("Less", [v, v], "fires")
        threshold = self.threshold()
        if "q" in old:
            threshold = self.op("Add", [threshold, old["q"]], "threshold")
        if "rest" not in old:
            return self.op("Greater", [v, threshold], "fires")
        above = self.op("Greater", [v, threshold], "above")
        return self.op("And", [above, self.called("awake")], "fires")

    def threshold(self) -> str:
        """vth << 6."""
        return self.each("vth", self.neurons.vth.astype(np.int64) << FRACTION_BITS)

    def sent(self, fires: str, v: str, a: str) -> str:
        """What the population sends: spikes, or values."""
        graded = self.neurons.graded
        if graded is None:
            return fires
        if self.neurons.fires:
            return self.op("Where", [fires, self.cut(v, graded, 0), self.b.number(0)], "value")
        # What arrives has one sample for all where no connection leads to the first current.
        full = self.op("Expand", [a, self.op("Shape", [v], "size")], "a_of_each")
        return self.cut(full, graded, FRACTION_BITS)

    def cut(self, x: str, graded: Graded, more: int) -> str:
        """x >> shift, and as many bits ``more``, within the levels."""
        by = self.b.number(1 << (graded.shift + more))
        rest = self.op("Mod", [x, by], "below_shift", fmod=0)
        above = self.op("Sub", [x, rest], "above_shift")
        shifted = self.op("Div", [above, by], "shifted")
        ends = [self.b.number(-graded.levels), self.b.number(graded.levels)]
        return self.op("Clip", [shifted, *ends], "cut")

    def after_reset(self, fires: str, v: str) -> str:
        """v after the reset."""
        n = self.neurons
        if n.reset == "none" or not n.fires:
            return v
        to = self.b.number(0)
        if n.reset == "subtract":
            to = self.op("Sub", [v, self.threshold()], "reset_v")
        elif n.reset == "constant":
            to = self.each("v_reset", n.v_reset)
        return self.op("Where", [fires, to, v], "after_v")

    def rest(self, fires: str, old: str) -> str:
        """The steps left to rest; those that rest for good have less than none."""
        counts = self.op("Greater", [old, self.b.number(0)], "counts_down")
        one = self.b.cast(counts, np.int64, self.called("one_less"))
        left = self.op("Sub", [old, one], "left_rest")
        return self.op("Where", [fires, self.b.number(self.neurons.hold), left], "new_rest")

    def adapted(self, fires: str, old: str) -> str:
        """What is added to the thresholds of the next step."""
        n = self.neurons
        kept = self.decayed(old, np.asarray(n.dq), "kept_q")
        added = self.op("Where", [fires, self.each("adapt", n.adapt), self.b.number(0)], "added_q")
        q = self.op("Add", [kept, added], "sum_q")
        return q if self.limit is None else self.saturated(q, "q", self.limit)

    def decayed(self, x: str, constant: IntArray, kind: str) -> str:
        """x * (4096 - constant) / 4096. ONNX divides integers toward zero, as Loihi does."""
        if constant.ndim:
            keeps = self.each(f"share_{kind}", DECAY_ONE - constant.astype(np.int64))
        else:
            keeps = self.b.number(DECAY_ONE - int(constant))
        scaled = self.op("Mul", [x, keeps], f"scaled_{kind}")
        return self.op("Div", [scaled, self.b.number(DECAY_ONE)], kind)

    def wrapped32(self, x: str, kind: str) -> str:
        """Two's complement wrap into 32 bits: a remainder with the sign of the divisor (fmod = 0)."""
        b = self.b
        moved = self.op("Add", [x, b.number(1 << 31)], f"moved_{kind}")
        rest = self.op("Mod", [moved, b.number(1 << 32)], f"rest_{kind}", fmod=0)
        return self.op("Sub", [rest, b.number(1 << 31)], f"wrapped_{kind}")

    def wrapped_once(self, u: str, kind: str, limit: int) -> str:
        """u - 2M above M, u + 2M at -M and below."""
        b = self.b
        high = self.op("Greater", [u, b.number(limit)], f"high_{kind}")
        low = self.op("Less", [u, b.number(1 - limit)], f"low_{kind}")
        under = self.op("Sub", [u, b.number(2 * limit)], f"down_{kind}")
        over = self.op("Add", [u, b.number(2 * limit)], f"up_{kind}")
        rest = self.op("Where", [low, over, u], f"raised_{kind}")
        return self.op("Where", [high, under, rest], f"new_{kind}")

    def saturated(self, x: str, kind: str, limit: int) -> str:
        """x within the registers of v."""
        ends = [self.b.number(1 - limit), self.b.number(limit - 1)]
        return self.op("Clip", [x, *ends], f"clipped_{kind}")


@dataclass(frozen=True)
class Form:
    """How one kind of population is written.

    ``step`` adds the nodes of a time step and gives the name of what the population sends: of (graph,
    population, names of a << 6 of each current, network). ``remembers`` tells whether u and v go from step to
    step; ``fields`` of the neurons, and words of the readout, are carried.
    """

    step: Callable[[Builder, Any, Sums, IntegerNetwork], str]
    remembers: bool
    fields: frozenset[str]


POPULATIONS: dict[str, Form] = {
    "lif": Form(_lif, True, kinds.TABLE),
    "or": Form(_or, False, kinds.FIELDS | kinds.READOUTS),
}
