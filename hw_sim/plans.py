"""How the compiled engine runs each part of a network: which kernels take it, with which arguments."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from stl_deploy.chips import facts as chips
from stl_deploy.hw_sim import kernels, lanes, proofs
from stl_deploy.hw_sim.arrivals import SUMS
from stl_deploy.hw_sim.cases import (
    Case,
    Done,
    Int64,
    Runs,
    keeps_states,
    lif_neurons,
    own_ways,
    takes_the_plain_step,
)
from stl_deploy.hw_sim.layouts import LAYOUTS, Layout, memory_shape
from stl_deploy.hw_sim.members import Member, Sent
from stl_deploy.ir import kinds
from stl_deploy.ir.network import Connection, IntegerNetwork, Population
from stl_deploy.ir.synapses import IntArray, Shape

Cores = Mapping[str, IntArray]

NEURONS = ("lif", "or")  # kinds that the kernels step
# Fields that they know. Neurons with others than those of ``kinds`` are stepped by ``rules.py``.
FIELDS = kinds.FIELDS | kinds.RESETS | kinds.RULES
TOGETHER = 1 << 20  # bytes of sums of a population that are added up before its neurons step
LOOP = 16 << 20  # and of a loop, whose every step costs time by itself


class Plan(Protocol):
    """How to run one part of a network."""

    def run(self, sent: Sent, done: Mapping[str, Done]) -> None:
        """Write what each population of the part does to ``done``, which is zero before but for spikes.

        ``sent`` holds what sources from outside the part send, [N, T, values] in memory order, uint8 or
        int16; T is 1 for an input that is held.
        """


def plan(
    network: IntegerNetwork,
    part: tuple[Population, ...],
    steps: int,
    states: bool,
    cores: Cores,
) -> Plan | None:
    """How to run ``part``, None where the reference has to."""
    if not all(_is_known(p, steps) for p in part):
        return None
    cases = [
        Case(network, p, steps, keeps_states(network, p, states), cores.get(p.name)) for p in part
    ]
    if len(part) == 1 and not kinds.unknown_fields(part[0].neurons):
        found = PoolPlan.of(cases[0]) or LifPlan.of(cases[0])
        if found is not None:
            return found
    return StepPlan.of(cases)


def _is_known(population: Population, steps: int) -> bool:
    """Whether kernels know the population's kind, all its fields, and a gain for each step."""
    neurons = population.neurons
    if population.kind not in NEURONS or kinds.unknown_fields(neurons, FIELDS):
        return False
    return neurons.gain is None or len(neurons.gain) >= steps


@dataclass(frozen=True)
class PoolPlan:
    """A population that fires where anything of a window arrives, windows side by side."""

    name: str
    source: str
    before: Shape
    shape: Shape
    runs: Runs

    @classmethod
    def of(cls, case: Case) -> PoolPlan | None:
        """None where states are wanted, or the population is no such pool."""
        if case.population.kind != "or" or case.states or len(case.into) != 1:
            return None
        (way,), shape = case.into, case.population.shape
        before = case.network.shape(way.source)
        if not case.comes_at_once(way) or not _tiles(way, before, shape):
            return None
        chip, (_, most) = chips.of(case.network), case.network.span(way.source)
        limit = chip.accumulator_limit or proofs.WORD
        if case.network.span(way.source)[0] < 0 or most * way.synapses.weight[0].size >= limit:
            return None
        runs = Runs.of(case, np.zeros(1, np.int64))
        return cls(case.population.name, way.source, before, shape, runs)

    def run(self, sent: Sent, done: Mapping[str, Done]) -> None:
        """Pool, and count the windows that fire."""
        x, mine = sent[self.source], done[self.name].did
        rows = x.shape[0] * x.shape[1]
        out = mine.spikes.reshape(rows, *memory_shape(self.shape))
        kernels.or_pool(x.reshape(rows, self.before[1], -1), out)
        runs = self.runs
        lanes.count_rows(
            mine.spikes.reshape(rows, -1),
            runs.first,
            runs.length,
            runs.core,
            mine.active.reshape(rows, -1),
        )


def _tiles(way: Connection, before: Shape, shape: Shape) -> bool:
    """Whether the synapses are ones from windows that tile the source."""
    if way.synapses.kind != "conv" or len(shape) != 3 or way.exp:
        return False
    weight, place = way.synapses.weight, way.synapses.geometry
    height, width = weight.shape[2:]
    return (
        before == (shape[0], shape[1] * height, shape[2] * width)
        and (len(weight), weight.shape[1]) == (shape[0], 1)
        and place == ((height, width), (0, 0), (1, 1), shape[0])
        and bool((weight == 1).all())
    )


@dataclass(frozen=True)
class LifPlan:
    """Synapses that have a layout, with their neurons: sums stay in the cache until these have stepped.

    ``busy`` are the neurons of each core where all are active in every step, else None.
    """

    name: str
    source: str
    synapses: Layout
    neurons: kernels.Neurons
    plain: bool
    binary: bool
    busy: Int64 | None

    @classmethod
    def of(cls, case: Case) -> LifPlan | None:
        """None where there is another way in, but for one by which neurons hear their own spikes."""
        network, population = case.network, case.population
        ways = [c for c in case.into if c.source != population.name]
        own = [c for c in case.into if c.source == population.name]
        if len(ways) != 1 or not case.comes_at_once(ways[0]) or not set(own) <= set(own_ways(case)):
            return None
        (way,) = ways
        if way.synapses.kind not in LAYOUTS or not proofs.fits_32_bits(network, way):
            return None
        binary = network.span(way.source) == (0, 1)
        layout = LAYOUTS[way.synapses.kind]
        synapses = layout(way.synapses, network.shape(way.source), population.shape, binary)
        if synapses is None:
            return None
        plain = takes_the_plain_step(case, synapses.pieces)
        if own and not plain:
            return None
        neurons, busy = lif_neurons(case, synapses.pieces, synapses.blocks, plain, way.exp)
        return cls(population.name, way.source, synapses, neurons, plain, binary, busy)

    def run(self, sent: Sent, done: Mapping[str, Done]) -> None:
        """Run the samples from a state of zero."""
        x, to, mine = sent[self.source], done[self.name].did, self.synapses
        size = mine.phases, mine.accumulators
        kind = mine.sum_type if self.binary else np.int32
        together = _together(x.shape[0], x.shape[1], math.prod(size) * np.dtype(kind).itemsize)
        if self.busy is not None:
            to.active[:] = self.busy
        synapses = (
            x.reshape(*x.shape[:2], math.prod(mine.pixels), -1),
            None if self.binary else np.empty(x.size + 1, x.dtype),
            mine.weights,
            mine.wiring,
            self.neurons,
            np.zeros((together, *size), kind),
        )
        bias = self.neurons.bias
        if self.plain:
            marks, v = np.zeros((together, len(bias)), np.uint8), np.stack([bias, bias])
            kernels.run_plain(*synapses, marks, v, to)
        else:
            sums, active = np.zeros(mine.accumulators, np.int32), np.zeros(len(bias), np.uint8)
            kernels.run_wide(*synapses, sums, active, np.zeros_like(bias), np.zeros_like(bias), to)


def _together(samples: int, steps: int, size: int) -> int:
    """Steps whose sums, ``size`` bytes each, are kept at a time: of whole samples, or of a part of one."""
    fit = max(1, SUMS // size)
    return fit if fit < steps else min(samples, fit // steps) * steps


@dataclass(frozen=True)
class StepPlan:
    """Any part: sums from outside come first, then step after step what the part sends itself."""

    members: tuple[Member, ...]
    steps: int

    @classmethod
    def of(cls, cases: list[Case]) -> StepPlan | None:
        """None where the reference has to run the part."""
        part = {case.population.name for case in cases}
        members = [Member.of(case, part) for case in cases]
        found = [member for member in members if member is not None]
        return cls(tuple(found), cases[0].steps) if len(found) == len(members) else None

    def run(self, sent: Sent, done: Mapping[str, Done]) -> None:
        """Run the samples, as many at a time as sums fit into the cache."""
        for member in self.members:
            if member.busy is not None:
                done[member.name].did.active[:] = member.busy
        first, together = self.members[0], self._in_step
        turns = list(self._turns(len(done[first.name].did.spikes)))
        most = max((some.stop - some.start for some in turns), default=0)
        # Memory is used again for every turn: the first access to a page of it takes long.
        spaces = {m.name: m.sums.space(most, self.steps) for m in self.members}
        states = {
            m.name: m.neurons.begin(most if together else 1, self.steps) for m in self.members
        }
        for some in turns:
            here = {name: all_.of(some) for name, all_ in done.items()}
            rooms = {
                m.name: m.sums.room(spaces[m.name], sent, some, self.steps) for m in self.members
            }
            given = states[first.name], rooms[first.name], here[first.name]
            if together:
                self._loop(here, rooms, states)
            elif first.sums.inner:
                first.neurons.recurrent(first.sums.inner[0], *given)
            else:
                first.neurons.alone(*given)

    @property
    def _in_step(self) -> bool:
        """Whether samples go through every step together, and not one after the other through all steps."""
        (first, *others), inner = self.members, self.members[0].sums.inner
        return bool(others or inner[1:] or (inner and not first.neurons.hears(inner[0])))

    def _turns(self, samples: int) -> Iterator[slice]:
        """Samples that go together: with large weights more, so that these are read less often."""
        ways = [way for m in self.members for way in (*m.sums.outer, *m.sums.inner)]
        loop = len(self.members) > 1 or bool(self.members[0].sums.inner)
        kept = max(LOOP if loop else TOGETHER, 4 * sum(way.synapses.bytes for way in ways))
        one = sum(m.sums.bytes + m.neurons.bytes for m in self.members) * self.steps
        count = max(1, kept // one)
        return (slice(at, min(samples, at + count)) for at in range(0, samples, count))

    def _loop(
        self, done: Mapping[str, Done], rooms: dict[str, IntArray], states: dict[str, Any]
    ) -> None:
        """All samples step after step."""
        for t in range(self.steps):
            for m in self.members:
                for way in m.sums.inner:
                    at = t - way.delay
                    if at >= 0:
                        given = done[way.source].did.spikes[:, at : at + 1]
                        m.sums.receive(way, given, rooms[m.name], t)
                m.neurons.step(states[m.name], t, t + 1, rooms[m.name], done[m.name])
