"""Populations whose sums are added up in a room of their own, where their neurons find them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from stl_deploy.chips import facts as chips
from stl_deploy.hw_sim import arrivals, buffers, kernels, proofs, rules
from stl_deploy.hw_sim.cases import (
    Case,
    Done,
    Int64,
    Runs,
    lif_neurons,
    of_each,
    own_ways,
    takes_the_plain_step,
)
from stl_deploy.hw_sim.compiled import LANES
from stl_deploy.ir import kinds
from stl_deploy.ir.network import Connection
from stl_deploy.ir.synapses import IntArray
from stl_deploy.ir.units import DECAY_ONE, FORGETS, FRACTION_BITS

Sent = Mapping[str, IntArray]


@dataclass(frozen=True)
class Way:
    """A connection whose sums are added up; its source sends values of type ``kind``."""

    source: str
    delay: int
    exp: int
    port: int
    kind: np.dtype[Any]
    synapses: arrivals.Synapses

    @classmethod
    def of(cls, case: Case, c: Connection) -> Way | None:
        """None where the loops cannot run the synapses."""
        synapses = arrivals.ready(case.network, c)
        if synapses is None:
            return None
        kind = arrivals.kind_of(case.network.span(c.source))
        return cls(c.source, c.delay, c.exp, c.port, kind, synapses)


@dataclass(frozen=True)
class Sums:
    """What comes to the ``currents``, one or two, of ``size`` neurons.

    ``outer`` are the ways from outside the part, ``inner`` those from inside. ``narrow``: sums are of 32
    bits, which hold them all.
    """

    size: int
    currents: int
    outer: tuple[Way, ...]
    inner: tuple[Way, ...]
    narrow: bool

    @classmethod
    def of(cls, case: Case, part: set[str], without: list[Connection], narrow: bool) -> Sums | None:
        """The sums of all connections but those ``without``; None where the reference has to run the part."""
        found: dict[bool, list[Way]] = {True: [], False: []}
        for c in case.into:
            if c in without:
                continue
            way = Way.of(case, c)
            if way is None:
                return None
            found[c.source in part].append(way)
        return cls(
            case.population.size,
            1 if case.population.neurons.du2 is None else 2,
            tuple(found[False]),
            tuple(found[True]),
            narrow,
        )

    @property
    def kind(self) -> type[np.int32 | np.int64]:
        """The type of the sums."""
        return np.int32 if self.narrow else np.int64

    @property
    def bytes(self) -> int:
        """The size of the sums of one step."""
        return self.size * self.currents * np.dtype(np.int32).itemsize

    def space(self, samples: int, steps: int) -> IntArray:
        """Memory for the sums of so many samples at a time, which is not zero."""
        entries = self.currents * samples * steps * (self.size + LANES)
        space: IntArray = np.empty(entries, self.kind)
        return space

    def room(self, space: IntArray, sent: Sent, samples: slice, steps: int) -> IntArray:
        """[currents, N, T, neurons + LANES] of some samples in ``space``, with what comes from outside."""
        shape = self.currents, samples.stop - samples.start, steps, self.size + LANES
        every: NDArray[Any] = space[: math.prod(shape)].reshape(shape)
        every[:] = 0
        for way in self.outer:
            x, sums = sent[way.source][samples], every[way.port]
            if way.delay >= steps:
                continue
            if x.shape[1] == 1 and steps > 1:  # held: the same in every step
                part: NDArray[Any] = arrivals.room(len(x), 1, self.size, np.int32)
                way.synapses.add(x, part, 0, 0)
                sums[:, way.delay :] += part.astype(sums.dtype) << way.exp
            else:
                self.receive(way, x[:, : steps - way.delay], every, way.delay)
        return every

    def receive(self, way: Way, x: IntArray, every: NDArray[Any], first: int) -> None:
        """Add what ``x`` [N, S, values] brings to the steps of the sums from ``first`` on."""
        # Writable and in C order: numba would compile everything again for other arrays.
        x, sums = np.require(x, way.kind, ["C", "W"]), every[way.port]
        if self.narrow:
            way.synapses.add(x, sums, first, way.exp)
        else:
            part: NDArray[Any] = arrivals.room(len(x), x.shape[1], self.size, np.int32)
            way.synapses.add(x, part, 0, 0)
            sums[:, first : first + x.shape[1]] += part.astype(np.int64) << way.exp


class Stepped(Protocol):
    """Neurons, ready to be stepped from sums."""

    @property
    def bytes(self) -> int:
        """What is kept of one step, besides sums and what is written."""

    def begin(self, samples: int, steps: int) -> Any:
        """Room for what ``step`` needs of so many samples besides sums; used again for further samples."""

    def step(self, state: Any, first: int, last: int, sums: IntArray, done: Done) -> None:
        """Run the steps ``first`` to ``last``, of which all sums are there (``Sums.room``)."""

    def alone(self, state: Any, sums: IntArray, done: Done) -> None:
        """Run all steps."""

    def hears(self, way: Way) -> bool:
        """Whether ``recurrent`` can bring the neurons' own spikes by ``way``."""

    def recurrent(self, way: Way, state: Any, sums: IntArray, done: Done) -> None:
        """Run all steps, to which ``way`` brings the neurons' own spikes."""


@dataclass(frozen=True)
class LifNeurons:
    """Neurons with no more than a current, a decay and a reset, to zero or by the threshold."""

    neurons: kernels.Neurons
    plain: bool

    bytes = 0

    def begin(self, samples: int, steps: int) -> tuple[NDArray[np.uint8], Int64, Int64]:
        """Room for marks, currents and voltages."""
        size = samples, len(self.neurons.bias)
        return np.zeros(size[1], np.uint8), np.zeros(size, np.int64), np.zeros(size, np.int64)

    def step(self, state: Any, first: int, last: int, sums: IntArray, done: Done) -> None:
        """See ``Stepped``."""
        active, u, v = state
        buffers.sums_wide(sums[0], self.neurons, first, last, active, u, v, done.did)

    def alone(self, state: Any, sums: IntArray, done: Done) -> None:
        """See ``Stepped``; the sums lack what neurons send themselves one to one."""
        samples, steps = sums.shape[1:3]
        if self.plain:
            bias = self.neurons.bias
            marks, v = np.zeros((steps, len(bias)), np.uint8), np.stack([bias, bias])
            buffers.sums_plain(sums[0][:, :, None], self.neurons, marks, v, done.did)
        else:
            self.step(self.begin(samples, steps), 0, steps, sums, done)

    def hears(self, way: Way) -> bool:
        """See ``Stepped``."""
        return way.synapses.layout is not None

    def recurrent(self, way: Way, state: Any, sums: IntArray, done: Done) -> None:
        """See ``Stepped``."""
        active, u, v = state
        back = _back(way, len(self.neurons.bias))
        buffers.run_recurrent(sums[0], back, self.neurons, active, u[0], v[0], done.did)


@dataclass(frozen=True)
class RuleNeurons:
    """Neurons with any of the rules, of the ``kind`` of ``rules.py``; ``states``: whether these are kept."""

    parameters: rules.Rules
    size: int
    states: bool
    kind: type[np.int32 | np.int64]

    @property
    def bytes(self) -> int:
        """See ``Stepped``."""
        return self.states * len(rules.STATES) * self.size * np.dtype(self.kind).itemsize

    def begin(self, samples: int, steps: int) -> tuple[rules.States, rules.Scratch, IntArray]:
        """States, scratch, and room for the states of all steps."""
        mine, kind = self.parameters, self.kind
        there = {"u": 1, "v": 1, "u2": mine.second, "q": mine.adapts, "rest": mine.hold}
        states = [np.zeros(samples * self.size * bool(there[n]), kind) for n in rules.STATES]
        a, a2, v = (np.zeros(rules.CHUNK, kind) for _ in range(3))
        fired, over = (np.zeros(rules.CHUNK, np.uint8) for _ in range(2))
        scratch = rules.Scratch(a, a2, v, fired, over, np.zeros(steps * self.size, np.uint8))
        return rules.States(*states), scratch, self._kept(samples * steps)

    def _kept(self, rows: int) -> IntArray:
        kept: IntArray = np.empty(len(rules.STATES) * rows * self.size * self.states, self.kind)
        return kept

    def step(self, state: Any, first: int, last: int, sums: IntArray, done: Done) -> None:
        """See ``Stepped``; the states of all steps are written after the last."""
        self._run(NOTHING, state, first, last, sums, done)

    def alone(self, state: Any, sums: IntArray, done: Done) -> None:
        """See ``Stepped``."""
        self._all(NOTHING, state, sums, done)

    def hears(self, way: Way) -> bool:
        """See ``Stepped``; not for graded values either."""
        return way.synapses.layout is not None and not self.parameters.graded

    def recurrent(self, way: Way, state: Any, sums: IntArray, done: Done) -> None:
        """See ``Stepped``."""
        self._all(_back(way, self.size), state, sums, done)

    def _all(self, back: buffers.Back, state: Any, sums: IntArray, done: Done) -> None:
        """Run all steps of samples that share their states."""
        samples, steps = sums.shape[1:3]
        states, scratch, _ = state
        self._run(back, (states, scratch, self._kept(samples * steps)), 0, steps, sums, done)

    def _run(
        self, back: buffers.Back, state: Any, first: int, last: int, sums: IntArray, done: Done
    ) -> None:
        states, scratch, kept = state
        sent, graded = done.did.spikes.reshape(-1), self.parameters.graded
        kept = kept[: len(rules.STATES) * len(sent)]
        results = rules.Results(
            np.zeros(0, np.uint8) if graded else sent,
            sent if graded else np.zeros(0, np.int16),
            kept,
            done.did.active,
            done.did.overflow,
        )
        rules.run(self.parameters, back, sums, first, last, states, scratch, results)
        if last == sums.shape[2] and self.states:
            by_name = kept.reshape(len(rules.STATES), *done.did.spikes.shape)
            for name, values in zip(rules.STATES, by_name, strict=True):
                if name in done.states:
                    done.states[name][:] = values


def _back(way: Way, size: int) -> buffers.Back:
    """The way back of a population of ``size`` neurons, which has a layout."""
    layout = way.synapses.layout
    if layout is None:
        raise ValueError(f"{way.source}: synapses without a layout")
    pixels = size // len(layout.wiring.channel_at)
    acc: NDArray[Any] = np.zeros((layout.phases, layout.accumulators), layout.sum_type)
    narrow = layout.sum_type == np.int16
    return NOTHING._replace(
        delay=way.delay,
        exp=way.exp,
        port=way.port,
        wiring=layout.wiring,
        pieces=layout.pieces,
        pointers=np.zeros(pixels * layout.phases + 1, np.int64),
        found=np.zeros(size + 1, np.int32),
        **{"weights" if narrow else "wide_weights": layout.weights},
        **{"acc" if narrow else "wide_acc": acc},
    )


def _nothing() -> buffers.Back:
    """No way back."""
    none = np.zeros(0, np.int64)
    tables = none, none, none, none, none, none, none
    return buffers.Back(
        delay=0,
        exp=0,
        port=0,
        weights=np.zeros(0, np.int8),
        wide_weights=np.zeros(0, np.int16),
        wiring=kernels.Wiring(*tables, 0, 0, False, none),
        pieces=kernels.Pieces(none, none, none, none),
        acc=np.zeros((0, 0), np.int16),
        wide_acc=np.zeros((0, 0), np.int32),
        pointers=none,
        found=np.zeros(0, np.int32),
    )


NOTHING = _nothing()


@dataclass(frozen=True)
class Member:
    """A population that runs from its sums; ``busy`` are the neurons of each core, if all always are."""

    name: str
    sums: Sums
    neurons: LifNeurons | RuleNeurons
    busy: Int64 | None

    @classmethod
    def of(cls, case: Case, part: set[str]) -> Member | None:
        """None where the reference has to run the part."""
        ruled = bool(kinds.unknown_fields(case.population.neurons))
        narrow = (
            proofs.rules_fit_32_bits(case.network, case.population, case.steps)
            if ruled
            else proofs.total_fits_32_bits(case.network, case.population)
        )
        sums = Sums.of(case, part, [] if ruled else own_ways(case), narrow)
        if sums is None:
            return None
        name, start = case.population.name, np.zeros(1, np.int64)
        if ruled:
            return cls(name, sums, *_rule_neurons(case, sums.kind))
        length = np.array([sums.size], np.int64)
        pieces = kernels.Pieces(np.array([0, 1]), start, length, start)
        plain = len(part) == 1 and not sums.inner and takes_the_plain_step(case, pieces)
        neurons, busy = lif_neurons(case, pieces, start, plain, exp=0)
        return cls(name, sums, LifNeurons(neurons, plain), busy)


def _rule_neurons(case: Case, kind: type[np.int32 | np.int64]) -> tuple[RuleNeurons, Int64 | None]:
    """The neurons, and those of each core where all are active in every step, else None."""
    population, chip, n = case.population, chips.of(case.network), case.population.neurons
    runs = Runs.of(case, np.zeros(1, np.int64))
    busy = np.bincount(runs.core, runs.length).astype(np.int64) if n.bias.all() else None
    if busy is not None:  # nothing to count
        runs = Runs(runs.first[:0], runs.length[:0], runs.core[:0])

    def each(values: Any) -> NDArray[Any]:
        """As ``Rules`` holds a parameter."""
        values = np.asarray(values, np.int64)
        if (values == values.flat[0]).all():
            return np.full(rules.CHUNK, values.flat[0], kind)
        return of_each(values, population.shape).astype(kind)

    gain = _gains(n.gain, case)
    # A threshold that no voltage reaches may be any such.
    threshold = n.vth.astype(np.int64) << FRACTION_BITS
    if kind == np.int32:
        threshold = np.minimum(threshold, 2 * proofs.ROOM)
    limit = None
    if not proofs.rules_never_overflow(case.network, population, case.steps):
        limit = chip.state_limit
    made = rules.Rules(
        bias=each(n.bias),
        threshold=each(threshold),
        u_keep=each(FORGETS - np.asarray(n.du, np.int64)),
        u2_keep=each(FORGETS - np.asarray(0 if n.du2 is None else n.du2, np.int64)),
        v_keep=each(DECAY_ONE - np.asarray(n.dv, np.int64)),
        q_keep=each(DECAY_ONE - np.asarray(n.dq, np.int64)),
        left=each(n.v_reset if n.reset == "constant" else 0),
        floor=each(0 if n.floor is None else n.floor),
        adapt=each(n.adapt),
        gain=gain.reshape(-1),
        gains=gain.shape[1],
        v0=each(n.v0),
        forgets=int(not n.has_current),
        limit=limit or 0,
        too_large=np.iinfo(kind).max if chip.accumulator_limit is None else chip.accumulator_limit,
        fires=int(n.fires),
        second=int(n.du2 is not None),
        adapts=int(n.adapts),
        bounded=int(n.floor is not None),
        resets=int(n.reset != "none"),
        subtract=int(n.reset == "subtract"),
        reset_current=int(n.reset_current),
        hold=n.hold,
        graded=int(n.graded is not None),
        shift=0 if n.graded is None else n.graded.shift,
        levels=1 if n.graded is None else n.graded.levels,
        run_first=runs.first,
        run_length=runs.length,
        run_core=runs.core,
    )
    return RuleNeurons(made, population.size, case.states, kind), busy


def _gains(gain: NDArray[np.int16] | None, case: Case) -> NDArray[np.int16]:
    """Rows of the parameters of a step, as ``Rules`` holds them."""
    if gain is None:
        return np.zeros((0, 0), np.int16)
    gain = gain[: case.steps]
    flat = gain.reshape(len(gain), -1)
    if (flat == flat[:, :1]).all():
        return np.repeat(flat[:, :1], rules.CHUNK, axis=1)
    return np.stack([of_each(row, case.population.shape) for row in gain])
