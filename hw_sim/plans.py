"""How the compiled engine runs each part of a network: which kernels take it, with which arguments."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from stl_deploy.chips import facts as chips
from stl_deploy.hw_sim import arrivals, buffers, kernels, lanes, proofs
from stl_deploy.hw_sim.arrivals import SUMS
from stl_deploy.hw_sim.compiled import LANES
from stl_deploy.hw_sim.layouts import LAYOUTS, Layout, memory_order, memory_shape
from stl_deploy.ir import kinds
from stl_deploy.ir.network import Connection, IntegerNetwork, Population
from stl_deploy.ir.synapses import IntArray, Shape
from stl_deploy.ir.units import DECAY_ONE, FORGETS, FRACTION_BITS

Int64 = NDArray[np.int64]
Sent = Mapping[str, IntArray]
Cores = Mapping[str, IntArray]

NEURONS = ("lif", "or")  # kinds that the kernels step
TOGETHER = 1 << 20  # bytes of sums of a population that are added up before its neurons step
LOOP = 16 << 20  # and of a loop, whose every step costs time by itself


class Plan(Protocol):
    """How to run one part of a network."""

    def run(self, sent: Sent, did: Mapping[str, kernels.Did]) -> None:
        """Write what each population of the part does; ``did`` is zero before.

        ``sent`` holds what sources from outside the part send, [N, T, values] in memory order, uint8 or
        int16; T is 1 for an input that is held. It also holds what populations of the part send others where
        that is not what they do.
        """


@dataclass(frozen=True)
class Case:
    """A population to plan for: of which network, for how many steps, and what is wanted of it."""

    network: IntegerNetwork
    population: Population
    steps: int
    states: bool
    cores: IntArray | None

    @property
    def into(self) -> tuple[Connection, ...]:
        """The connections into the population."""
        return self.network.into(self.population.name)

    def comes_at_once(self, connection: Connection) -> bool:
        """Whether each step of its source, from outside, is heard in the same step."""
        source = connection.source
        held = source in self.network.inputs and self.network.inputs[source].held
        return not held and not connection.delay and source != self.population.name


def core_count(cores: IntArray | None) -> int:
    """How many cores ``cores`` names; one where none are named."""
    return 1 if cores is None else int(cores.max()) + 1


def keeps_states(network: IntegerNetwork, population: Population, states: bool) -> bool:
    """Whether u, v and the rest of a population are kept: where ``states``, and where a readout needs v."""
    return states or (network.readout.by_voltage and network.readout.source == population.name)


def plan(
    network: IntegerNetwork,
    part: tuple[Population, ...],
    steps: int,
    states: bool,
    cores: Cores,
) -> Plan | None:
    """How to run ``part``, None where the reference has to."""
    if any(p.kind not in NEURONS or kinds.unknown_fields(p.neurons) for p in part):
        return None
    cases = [
        Case(network, p, steps, keeps_states(network, p, states), cores.get(p.name)) for p in part
    ]
    if len(part) == 1:
        found = PoolPlan.of(cases[0]) or LifPlan.of(cases[0])
        if found is not None:
            return found
    return StepPlan.of(cases)


@dataclass(frozen=True)
class _Runs:
    """Runs of neurons that lie together in memory and on one core."""

    first: Int64
    length: Int64
    core: Int64

    @classmethod
    def of(cls, case: Case, starts: Int64) -> _Runs:
        """Runs that begin at ``starts`` and wherever the core changes."""
        population = case.population
        core = np.zeros(population.size, np.int64)
        if case.cores is not None:
            core = memory_order(np.asarray(case.cores, np.int64), population.shape)
        first = np.union1d(starts, np.flatnonzero(np.diff(core)) + 1)
        return cls(first, np.diff(first, append=population.size), core[first])


@dataclass(frozen=True)
class PoolPlan:
    """A population that fires where anything of a window arrives, windows side by side."""

    name: str
    source: str
    before: Shape
    shape: Shape
    runs: _Runs

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
        runs = _Runs.of(case, np.zeros(1, np.int64))
        return cls(case.population.name, way.source, before, shape, runs)

    def run(self, sent: Sent, did: Mapping[str, kernels.Did]) -> None:
        """Pool, and count the windows that fire."""
        x, mine = sent[self.source], did[self.name]
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
        if len(ways) != 1 or not case.comes_at_once(ways[0]) or not set(own) <= set(_own(case)):
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
        neurons, busy = _neurons(case, synapses.pieces, synapses.blocks, plain, way.exp)
        return cls(population.name, way.source, synapses, neurons, plain, binary, busy)

    def run(self, sent: Sent, did: Mapping[str, kernels.Did]) -> None:
        """Run the samples from a state of zero."""
        x, to, mine = sent[self.source], did[self.name], self.synapses
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
class _Way:
    """A connection into a population whose sums are added up."""

    source: str
    delay: int
    exp: int
    synapses: arrivals.Synapses


@dataclass(frozen=True)
class _Member:
    """A population whose sums are added up in a room of their own, where its neurons find them.

    ``outer`` are its ways from outside the part, ``inner`` those from inside but for what the kernels do by
    themselves. ``narrow``: whether sums of 32 bits hold them all.
    """

    name: str
    neurons: kernels.Neurons
    outer: tuple[_Way, ...]
    inner: tuple[_Way, ...]
    plain: bool
    narrow: bool
    busy: Int64 | None

    @classmethod
    def of(cls, case: Case, part: set[str]) -> _Member | None:
        """None where the reference has to run the part."""
        network, population = case.network, case.population
        own = _own(case)
        ways: dict[bool, list[_Way]] = {True: [], False: []}
        for c in case.into:
            if c in own:
                continue
            synapses = arrivals.ready(network, c)
            if synapses is None:
                return None
            ways[c.source in part].append(_Way(c.source, c.delay, c.exp, synapses))
        start = np.zeros(1, np.int64)
        pieces = kernels.Pieces(
            np.array([0, 1]), start, np.array([population.size], np.int64), start
        )
        narrow = proofs.total_fits_32_bits(network, population)
        plain = len(part) == 1 and not ways[True] and takes_the_plain_step(case, pieces)
        neurons, busy = _neurons(case, pieces, start, plain, exp=0)
        inside, outside = tuple(ways[True]), tuple(ways[False])
        return cls(population.name, neurons, outside, inside, plain, narrow, busy)

    @property
    def size(self) -> int:
        """How many neurons."""
        return len(self.neurons.bias)

    def room(self, sent: Sent, samples: slice, steps: int) -> IntArray:
        """The sums of some samples, with what comes from outside."""
        count = samples.stop - samples.start
        kind = np.int32 if self.narrow else np.int64
        sums: NDArray[Any] = arrivals.room(count, steps, self.size, kind)
        for way in self.outer:
            x = sent[way.source][samples]
            if way.delay >= steps:
                continue
            if x.shape[1] == 1 and steps > 1:  # held: the same in every step
                part: NDArray[Any] = arrivals.room(count, 1, self.size, np.int32)
                way.synapses.add(x, part, 0, 0)
                sums[:, way.delay :] += part.astype(sums.dtype) << way.exp
            else:
                self.receive(way, x[:, : steps - way.delay], sums, way.delay)
        return sums

    def receive(self, way: _Way, x: IntArray, sums: NDArray[Any], first: int) -> None:
        """Add what ``x`` [N, S, values] brings to the steps of ``sums`` from ``first`` on."""
        # Writable and in C order: numba would compile everything again for other arrays.
        x = np.require(x, requirements=["C", "W"])
        if self.narrow:
            way.synapses.add(x, sums, first, way.exp)
        else:
            part: NDArray[Any] = arrivals.room(len(x), x.shape[1], self.size, np.int32)
            way.synapses.add(x, part, 0, 0)
            sums[:, first : first + x.shape[1]] += part.astype(np.int64) << way.exp


@dataclass(frozen=True)
class StepPlan:
    """Any part: sums from outside come first, then step after step what the part sends itself."""

    members: tuple[_Member, ...]
    steps: int

    @classmethod
    def of(cls, cases: list[Case]) -> StepPlan | None:
        """None where the reference has to run the part."""
        part = {case.population.name for case in cases}
        members = [_Member.of(case, part) for case in cases]
        found = [member for member in members if member is not None]
        return cls(tuple(found), cases[0].steps) if len(found) == len(members) else None

    def run(self, sent: Sent, did: Mapping[str, kernels.Did]) -> None:
        """Run the samples, as many at a time as sums fit into the cache."""
        for member in self.members:
            if member.busy is not None:
                did[member.name].active[:] = member.busy
        for some in self._turns(len(did[self.members[0].name].spikes)):
            here = {name: _samples(all_, some) for name, all_ in did.items()}
            rooms = {m.name: m.room(sent, some, self.steps) for m in self.members}
            first = self.members[0]
            if len(self.members) > 1 or len(first.inner) > 1:
                self._loop({name: x[some] for name, x in sent.items()}, here, rooms)
            elif not first.inner:
                _alone(first, rooms[first.name], here[first.name])
            elif not _recurrent(first, rooms[first.name], here[first.name]):
                self._loop({}, here, rooms)

    def _turns(self, samples: int) -> Iterator[slice]:
        """Samples that go together: with large weights more, so that these are read less often."""
        ways = [way for m in self.members for way in (*m.outer, *m.inner)]
        loop = len(self.members) > 1 or bool(self.members[0].inner)
        kept = max(LOOP if loop else TOGETHER, 4 * sum(way.synapses.bytes for way in ways))
        one = sum(m.size for m in self.members) * self.steps * np.dtype(np.int32).itemsize
        count = max(1, kept // one)
        return (slice(at, min(samples, at + count)) for at in range(0, samples, count))

    def _loop(self, sent: Sent, did: Mapping[str, kernels.Did], rooms: dict[str, IntArray]) -> None:
        """All samples step after step."""
        states = {m.name: _state(m, len(rooms[m.name])) for m in self.members}
        for t in range(self.steps):
            for m in self.members:
                for way in m.inner:
                    if t >= way.delay:
                        own = did[way.source].spikes
                        given = own if way.source == m.name else sent.get(way.source, own)
                        at = t - way.delay
                        m.receive(way, given[:, at : at + 1], rooms[m.name], t)
                sums, last = rooms[m.name], t + 1
                buffers.sums_wide(sums, m.neurons, t, last, *states[m.name], did[m.name])


def _alone(member: _Member, sums: IntArray, did: kernels.Did) -> None:
    """Step neurons whose sums are complete, but for what they send themselves one to one."""
    steps = sums.shape[1]
    if member.plain:
        bias = member.neurons.bias
        marks, v = np.zeros((steps, len(bias)), np.uint8), np.stack([bias, bias])
        buffers.sums_plain(sums[:, :, None], member.neurons, marks, v, did)
    else:
        buffers.sums_wide(sums, member.neurons, 0, steps, *_state(member, len(sums)), did)


def _recurrent(member: _Member, sums: IntArray, did: kernels.Did) -> bool:
    """Run neurons that one further connection leads back to, False where it has no layout."""
    (way,) = member.inner
    layout = way.synapses.layout
    if layout is None:
        return False
    active, u, v = _state(member, 1)
    acc = np.zeros((layout.phases, layout.accumulators), layout.sum_type)
    weights = layout.weights, layout.wiring, layout.pieces, way.exp, way.delay
    buffers.run_recurrent(sums, *weights, member.neurons, acc, active, u[0], v[0], did)
    return True


def _state(member: _Member, samples: int) -> tuple[NDArray[np.uint8], Int64, Int64]:
    """Room for marks, currents and voltages."""
    size = samples, member.size
    return np.zeros(member.size, np.uint8), np.zeros(size, np.int64), np.zeros(size, np.int64)


def _samples(did: kernels.Did, some: slice) -> kernels.Did:
    return kernels.Did(*(array[some] for array in did))


def _own(case: Case) -> list[Connection]:
    """The way, none or one, by which kernels bring neurons their own spikes one to one."""
    ways = [
        c
        for c in case.into
        if c.source == case.population.name
        and c.synapses.kind == "one_to_one"
        and 0 <= c.exp < proofs.SHIFTS
    ]
    return ways[:1]


def _neurons(
    case: Case, pieces: kernels.Pieces, blocks: Int64, plain: bool, exp: int
) -> tuple[kernels.Neurons, Int64 | None]:
    """The neurons in ``pieces``, whose blocks begin at ``blocks``, with sums that count 2^exp.

    Also the neurons of each core where all are active in every step, else None.
    """
    population, chip = case.population, chips.of(case.network)
    shape, neurons = population.shape, population.neurons
    runs = _Runs.of(case, blocks)
    # A bias keeps a neuron busy in every step: then there is nothing to count.
    busy = np.bincount(runs.core, runs.length).astype(np.int64) if neurons.bias.all() else None
    kind = np.int32 if plain else np.int64
    far = np.iinfo(kind)
    threshold = np.clip(neurons.vth.astype(np.int64) << FRACTION_BITS, far.min, far.max)
    own = _own(case)
    sent = np.zeros(population.size if plain else 0, kind)
    for c in own:
        sent = memory_order(c.synapses.weight.astype(np.int64), shape) << c.exp
        sent = (sent << FRACTION_BITS if plain else sent).astype(kind)
    v_keep = DECAY_ONE - np.asarray(neurons.dv, np.int64)
    ends = np.append(blocks, population.size)
    made = kernels.Neurons(
        bias=_of_each(neurons.bias, shape).astype(kind),
        threshold=_of_each(threshold, shape).astype(kind),
        u_keep=_one_or_each(FORGETS - np.asarray(neurons.du, np.int64), shape),
        v_keep=_of_each(v_keep, shape).astype(kind) if plain else _one_or_each(v_keep, shape),
        own=sent,
        delay=own[0].delay if own else 0,
        exp=exp,
        limit=chip.state_limit or 0,
        too_large=1 << 62 if chip.accumulator_limit is None else chip.accumulator_limit,
        subtract=neurons.reset == "subtract",
        halves=bool((v_keep == DECAY_ONE // 2).all()),
        bare=not own and neurons.reset == "zero",
        pieces=pieces,
        block_run=np.searchsorted(runs.first, ends).astype(np.int64) * (busy is None),
        run_first=runs.first,
        run_length=runs.length,
        run_core=runs.core,
    )
    return made, busy


def _of_each(values: Any, shape: Shape) -> NDArray[Any]:
    """One value for each neuron, in memory order."""
    return memory_order(np.broadcast_to(values, shape), shape)


def _one_or_each(values: Int64, shape: Shape) -> Int64:
    """The one value that all neurons have, or one for each in memory order."""
    same = (values == values.flat[0]).all()
    # A copy: numba would compile everything again for an array that cannot be written to.
    return values.reshape(-1)[:1].copy() if same else _of_each(values, shape).copy()


def takes_the_plain_step(case: Case, pieces: kernels.Pieces) -> bool:
    """Whether the plain step does all that is wanted, with as many neurons in a piece as it takes at once."""
    if case.states or pieces.length.min() < LANES:
        return False
    return proofs.takes_the_plain_step(case.network, case.population, case.steps)
