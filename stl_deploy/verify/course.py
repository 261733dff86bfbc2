"""The course of one neuron on both sides, and what the difference of their voltages is made of.

Up to the step in which they part, both sides have the same spikes. So each part of the difference follows
the equations of the neuron: it decays, passes through currents, and is gone after a reset that sets both
voltages.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from stl_deploy.chips import arithmetic
from stl_deploy.ir.neurons import Neurons
from stl_deploy.ir.synapses import Shape
from stl_deploy.ir.units import DECAY_ONE, FORGETS, UNIT
from stl_deploy.lower.rules import common_gain
from stl_deploy.verify import pairs
from stl_deploy.verify.certificates import Certifier

Part = Literal[
    "weight",
    "bias",
    "decay",
    "register",
    "reset",
    "v_reset",
    "start",
    "floor",
    "hold",
    "gain",
    "current",
    "second current",
]
PARTS: tuple[Part, ...] = get_args(Part)
Parts = dict[Part, float]
Int64 = NDArray[np.int64]
LONG_AGO = 1 << 40  # decays after which v is a multiple of 1


@dataclass
class Current:
    """One of the currents: in float units of v, as an integer, and what the difference is made of."""

    floats: float = 0.0
    whole: int = 0
    parts: Parts = field(default_factory=dict)


@dataclass
class Course:
    """Where a neuron's voltages have come to, before the reset, and what their difference is made of.

    ``reset`` is the step of the last spike after which both sides were set to a voltage, None if there was
    none; ``decays``, how many decays v has had since it was zero. ``rise`` and ``whole_rise`` are what
    earlier spikes added to the thresholds; ``rests`` and ``whole_rests`` the steps that each side still
    rests. ``left`` float64 [2, T] is how much of what came to each current in a step is left in the integer
    voltage.
    """

    v: float
    v_int: int
    parts: Parts
    reset: int | None = None
    decays: int = 0
    rise: float = 0.0
    whole_rise: int = 0
    rests: int = 0
    whole_rests: int = 0
    left: NDArray[np.float64] = field(default_factory=lambda: np.zeros((2, 0)))


class Follower:
    """Takes one neuron of ``certifier``'s population through its steps.

    ``sent`` is what every source sends in the float model, [T, *shape]; the course ends in the last step.
    """

    def __init__(
        self, certifier: Certifier, neuron: Shape, sent: Mapping[str, NDArray[Any]]
    ) -> None:
        self.certifier, self.population = certifier, certifier.population
        self.mine: Neurons = self.population.neurons
        self.theirs = certifier.known.neurons
        self.flat = flat = int(np.ravel_multi_index(neuron, self.population.shape))
        self.unit, self.slack = (
            float(x[flat]) for x in (certifier.cells.unit, certifier.cells.slack)
        )
        batch = {name: values[None] for name, values in sent.items()}
        spikes = sent[self.population.name]
        self.steps = len(spikes)
        self.spikes = spikes.reshape(self.steps, -1)[:, flat]
        second = self.mine.du2 is not None or self.theirs.current2 is not None
        self.ports = (0, 1) if second else (0,)
        both = [certifier.sums(batch, port) for port in self.ports]
        self.floats, self.whole = ([sums[i][0, :, flat] for sums in both] for i in (0, 1))
        self.stands_in = self._bias_sources(batch)
        amplified, gain = certifier.amplified()
        self.amplified, self.gain = (
            np.broadcast_to(x, (len(x), self.population.size))[:, flat] for x in (amplified, gain)
        )
        self.common = common_gain(self.theirs)
        floats, whole = certifier.cells.floats, certifier.cells.whole
        self.keep, self.kept = float(floats.keep[flat]), float(whole.keep[flat])
        self.shares = [
            (float(a[flat]), float(b[flat]) / DECAY_ONE)
            for a, b in ((floats.first, whole.first), (floats.second, whole.second))
        ]
        self.currents = [Current(), Current()]
        self.kinds = self._kinds()

    def own(self, values: Any) -> int:
        """The neuron's own of whole numbers that broadcast to the population."""
        return int(np.broadcast_to(values, self.population.shape).reshape(-1)[self.flat])

    def side(self, name: str) -> tuple[float, float]:
        """A parameter of both sides, in float units."""
        cells = self.certifier.cells
        return tuple(float(getattr(s, name)[self.flat]) for s in (cells.floats, cells.whole))  # type: ignore[return-value]

    def run(self) -> Course:
        """The course up to the last step, before its reset."""
        start, whole_start = self.side("start")
        course = Course(start, self.own(self.mine.v0), self._nothing())
        course.decays = 1 if course.v_int else 0
        if "start" in course.parts:
            course.parts["start"] = whole_start - start
        rested = []
        for t in range(self.steps):
            if t:
                self._reset(course, t - 1)
            rested.append(course.whole_rests != 0)
            self._step(course, t)
        course.left = self._left(rested)
        return course

    def _nothing(self) -> Parts:
        """No contribution of any part."""
        return dict.fromkeys(self.kinds, 0.0)

    def _kinds(self) -> tuple[Part, ...]:
        """The parts that these neurons can have."""
        mine, theirs, kinds = self.mine, self.theirs, self.certifier.rules
        both = (kinds.floats, kinds.whole)
        there: dict[Part, bool] = {
            "weight": True,
            "bias": True,
            "decay": True,
            "register": True,
            "reset": mine.reset == "subtract" or theirs.reset == "subtract",
            "v_reset": any(self.side("reset")) and not all(kind.keeps for kind in both),
            "start": any(self.side("start")),
            "floor": mine.floor is not None or theirs.floor is not None,
            "hold": any(kind.hold for kind in both),
            "gain": mine.gain is not None or theirs.amplify is not None,
            "current": any(self.shares[0]),
            "second current": len(self.ports) > 1,
        }
        return tuple(name for name, is_there in there.items() if is_there)

    def _bias_sources(self, batch: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
        """What populations that stand for a bias bring to the first current, float64 [T]."""
        network, floats = self.certifier.network, self.certifier.floats
        total = np.zeros(self.steps)
        for c in network.into(self.population.name):
            if pairs.stands_in(network, c, floats):
                whole = self.certifier.brought(batch, c)[0, :, self.flat]
                total += whole * UNIT * self.unit
        return total

    def _step(self, course: Course, t: int) -> None:
        """Both voltages before the threshold of step ``t``."""
        gained, beside, whole_gained, parts = self._arrived(t)
        rests, whole_rests = course.rests != 0, course.whole_rests != 0
        v, v_int = course.v, course.v_int
        if not rests:
            course.v = self.keep * v + gained + beside
        if not whole_rests:
            course.v_int, moved = self._voltage(v_int, whole_gained), course.parts
            cut = _decayed(v_int, self.own(self.mine.dv)) - self.kept * v_int
            course.parts = {name: self.kept * value for name, value in moved.items()}
            course.parts["decay"] += (self.kept - self.keep) * v + cut * self.unit
            for name, value in parts.items():
                course.parts[name] += value
            course.decays += 1
        # A register that wrapped or saturated is all that can be left over, but for a side that rests alone.
        self._rest_is(course, "hold" if rests != whole_rests else "register")
        self._floor(course)

    def _arrived(self, t: int) -> tuple[float, float, int, Parts]:
        """What the float voltage gains in a step and, beside it, from its bias; what the integer one gains;
        and what the difference of the two is made of.
        """
        mine, certifier = self.mine, self.certifier
        bias, leak = float(certifier.bias[self.flat]), self.side("bias")[0]
        held = self.own(mine.bias)
        if not certifier.currents:
            x, whole = float(self.floats[0][t]), float(self.whole[0][t])
            parts: Parts = {"weight": whole - x, "bias": held * self.unit - bias}
            a = _one(round(whole / self.unit) // UNIT)
            u, _ = arithmetic.step_current(_one(0), a, FORGETS, certifier.limit)
            return x, bias, int(u[0]) + held, parts
        parts = self._nothing()
        gained, whole_gained = 0.0, 0
        for port in self.ports:
            self._move(port, t, bias if port == 0 else 0.0, held if port == 0 else 0)
            current = self.currents[port]
            gained, whole_gained = gained + current.floats, whole_gained + current.whole
            for name, value in current.parts.items():
                parts[name] += value
        if mine.gain is None:
            whole_gained += held
            parts["bias"] += held * self.unit
        parts["bias"] -= leak
        return gained, leak, whole_gained, parts

    def _move(self, port: int, t: int, bias: float, held: int) -> None:
        """Take a current through step ``t``; ``bias`` and ``held`` are those of both sides."""
        mine, current, limit = self.mine, self.currents[port], self.certifier.limit
        x, whole = float(self.floats[port][t]), float(self.whole[port][t])
        keep, kept = self.shares[port]
        du = self.own(mine.du if port == 0 else (FORGETS if mine.du2 is None else mine.du2))
        amplified, through = float(self.amplified[t]), mine.gain is not None
        gain = int(self.gain[t])
        factor, common = (gain / DECAY_ONE, self.common) if through else (1.0, 1.0)
        a = round(whole / self.unit) // UNIT
        arriving = int(
            arithmetic.arriving(_one(a), limit, held if through else 0, gain if through else None)[
                0
            ]
        )
        brought = self.stands_in[t] if port == 0 else 0.0
        meant = (held * self.unit if through else 0.0) + brought
        weight: Part = "weight" if port == 0 else "second current"
        decay: Part = "current" if port == 0 else "second current"
        cut = _decayed(current.whole, du + 1) - kept * current.whole
        parts = {name: kept * value for name, value in current.parts.items()}
        new: list[tuple[Part, float]] = [
            (weight, (whole - brought - x * common) * factor),
            ("bias", (meant - bias * common) * factor),
            ("gain", (x + bias) * (factor * common - amplified)),
            ("gain", arriving * self.unit - (whole - brought + meant) * factor),
            (decay, (kept - keep) * current.floats + cut * self.unit),
        ]
        for name, value in new:
            known: Part = name if name in self.kinds else "register"
            parts[known] = parts.get(known, 0.0) + value
        current.parts = parts
        current.floats = keep * current.floats + (x + bias) * amplified
        u, _ = arithmetic.add_current(_one(current.whole), _one(arriving), du, limit)
        current.whole = int(u[0])

    def _voltage(self, v_int: int, gained: int) -> int:
        """The integer voltage after a step, before the threshold."""
        dv, limit = self.own(self.mine.dv), self.certifier.limit
        v, _ = arithmetic.step_voltage(_one(v_int), _one(gained), _one(0), dv, limit)
        return int(v[0])

    def _rest_is(self, course: Course, part: Part) -> None:
        """Whatever of the difference is not accounted for is of ``part``."""
        left = course.v_int * self.unit - course.v - sum(course.parts.values())
        if abs(left) > 2 * self.slack:
            course.parts[part] = course.parts.get(part, 0.0) + left

    def _floor(self, course: Course) -> None:
        """Both voltages are no lower than their floors."""
        floor, _ = self.side("floor")
        whole = self.mine.floor
        below = course.v < floor
        course.v = max(course.v, floor)
        if whole is not None and course.v_int < self.own(whole):
            course.v_int, course.decays = self.own(whole), LONG_AGO
            if below:
                course.parts = self._nothing()
            below = True
        if below:
            self._rest_is(course, "floor")

    def _reset(self, course: Course, t: int) -> None:
        """What step ``t`` leaves of both sides."""
        mine, theirs, rules = self.mine, self.theirs, self.certifier.rules
        course.rests -= course.rests > 0
        course.whole_rests -= course.whole_rests > 0
        rise, _ = self.side("rise")
        course.rise *= self.side("rise_keep")[0]
        course.whole_rise = _decayed(course.whole_rise, self.own(mine.dq))
        if not self.spikes[t]:
            return
        course.rise += rise
        grown = _one(course.whole_rise + self.own(mine.adapt))
        course.whole_rise = int(arithmetic.saturate(grown, self.certifier.limit)[0])
        threshold = _one(self.own(mine.vth) * UNIT)
        v_int = arithmetic.after_spike(
            _one(course.v_int), np.ones(1, np.bool_), threshold, mine.reset, self.own(mine.v_reset)
        )
        course.v_int = int(v_int[0])
        course.v = course.v - self.side("drop")[0] if rules.floats.keeps else self.side("reset")[0]
        course.rests, course.whole_rests = rules.floats.hold, rules.whole.hold
        if not rules.floats.keeps and not rules.whole.keeps:
            course.parts, course.reset = self._nothing(), t
            course.decays = 1 if course.v_int else 0
            self._rest_is(course, "v_reset")
        else:
            course.reset = None
            self._rest_is(course, "reset")
        if theirs.reset_current:
            self.currents = [Current(0.0, c.whole, c.parts) for c in self.currents]
        if mine.reset_current:
            self.currents = [Current(c.floats, 0, {}) for c in self.currents]

    def _left(self, rested: list[bool]) -> NDArray[np.float64]:
        """``Course.left``; ``rested`` says in which steps the integer neuron rested."""
        last, rules = self.steps - 1, self.certifier.rules.whole
        left = np.zeros((2, self.steps))
        v, u = 0.0, [0.0, 0.0]
        for t in range(last, -1, -1):
            if t == last:
                v = 1.0
            else:
                v = v if rested[t + 1] else v * self.kept
                v = 0.0 if self.spikes[t] and not rules.keeps else v
            for port in (0, 1):
                kept = 0.0 if self.spikes[t] and rules.clears else self.shares[port][1]
                u[port] = u[port] * kept + (0.0 if rested[t] else v)
                left[port, t] = u[port] * self.gain[t] / DECAY_ONE
        return left


def _one(value: int) -> Int64:
    return np.array([value], np.int64)


def _decayed(value: int, constant: int) -> int:
    """A decay as the reference defines it."""
    return int(arithmetic.decay(_one(value), constant)[0])
