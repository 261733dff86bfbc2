"""The integer network again, fast: equal to ``reference`` bit for bit, and tested against it.

Parts of a network run one after the other, sources first: mostly single populations, over all steps, and the
populations of a loop together. Weights stay int8 and sums are int16 or int32, whichever the worst one-sided
sum fits; weights of more than 8 bits stay int16, with sums of int32. Every partial sum of any input lies
between the sum of the negative and the sum of the positive weights, times the largest input. Voltages are
int32 where ``bounds.voltage_range`` shows that no register can overflow, else int64 with the reference's
rules (docs/numerics.md, "The engine"). A part that neither covers runs in the reference.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from stl_deploy.chips import facts as chips
from stl_deploy.hw_sim import kernels, plans, reference
from stl_deploy.hw_sim.arrivals import kind_of
from stl_deploy.hw_sim.cases import Done, Int64, core_count, keeps_states
from stl_deploy.hw_sim.layouts import memory_shape
from stl_deploy.hw_sim.plans import Plan
from stl_deploy.hw_sim.reference import LayerTrace, Trace
from stl_deploy.ir.network import Input, IntegerNetwork, Population, Raster
from stl_deploy.ir.readouts import Readout
from stl_deploy.ir.synapses import IntArray, Shape
from stl_deploy.spread import cores

Part = TypeVar("Part")
TASK = 1 << 6  # samples that one thread takes at a time
TASK_BYTES = 8 << 20  # and no more than so many bytes of one population's spikes
MEMORY = 128 << 20  # bytes that the traces of a batch may take


def run(
    network: IntegerNetwork,
    raster: Raster,
    states: bool = False,
    cores: Mapping[str, IntArray] | None = None,
) -> Trace:
    """Run ``network`` on a raster [N, T, *input_shape], or one by input, as the reference does."""
    return Engine(network, cores).run(raster, states)


def batch_size(network: IntegerNetwork, states: bool = False) -> int:
    """Samples at a time whose traces fit into MEMORY, and into a part of the memory that is free."""
    sample = sum(
        (1 if port.held else network.timesteps)
        * network.size(name)
        * np.dtype(kind_of(network.span(name))).itemsize
        for name, port in network.inputs.items()
    )
    wide = chips.of(network).state_limit is None
    for population in network.populations:
        room = _Out.zeros(population, (1, 1), keeps_states(network, population, states), wide, None)
        sample += room.nbytes * network.timesteps
    if network.readout.by_voltage:  # in 64 bits, to be scored
        sample += network.size(network.readout.source) * network.timesteps * 8
    return max(1, min(256, min(MEMORY, _free_memory() // 8) // sample))


def _free_memory() -> int:
    """Bytes of memory that nobody uses; as good as endless where the system does not say."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 1 << 62


class Engine:
    """A network prepared to run on many rasters; ``cores`` as in ``reference.run``."""

    def __init__(
        self, network: IntegerNetwork, cores: Mapping[str, IntArray] | None = None
    ) -> None:
        self.network = network
        self.cores = cores or {}
        self._plans: dict[tuple[int, int, bool], Plan | None] = {}
        self._sources = [
            {c.source for population in part for c in network.into(population.name)}
            for part in network.parts
        ]

    def run(self, raster: Raster, states: bool = False) -> Trace:
        """Run ``network`` on a raster [N, T, *input_shape], or one by input, samples in parallel."""
        network, given = self.network, self.network.rasters(raster)
        size = next(iter(given.values())).shape[:2]
        given = {n: x[:, :1] if network.inputs[n].held else x for n, x in given.items()}
        wide = chips.of(network).state_limit is None
        outs = {
            p.name: _Out.zeros(
                p, size, keeps_states(network, p, states), wide, self.cores.get(p.name)
            )
            for p in network.populations
        }
        ways = [self._plan(i, size[1], states) for i in range(len(network.parts))]

        def task(some: slice) -> None:
            sent = {n: _Sent.of(x[some], network, n) for n, x in given.items()}
            for part, plan, sources in zip(network.parts, ways, self._sources, strict=True):
                mine = {p.name: outs[p.name] for p in part}
                heard = {name: sent[name] for name in sources if name in sent}
                _run(self, part, plan, heard, mine, some)
                for name in mine:
                    sent[name] = _Sent.own(outs[name], some)

        in_parallel(task, _turns(network, size))
        traces = {name: out.trace(slice(None)) for name, out in outs.items()}
        last = traces[network.readout.source]
        return Trace(traces, network.readout.predict(last.spikes, last.v))

    def _plan(self, index: int, steps: int, states: bool) -> Plan | None:
        """The plan of a part for rasters of so many steps, made once."""
        key = index, steps, states
        if key not in self._plans:
            part = self.network.parts[index]
            self._plans[key] = plans.plan(self.network, part, steps, states, self.cores)
        return self._plans[key]


def in_parallel(task: Callable[[Part], None], parts: Sequence[Part]) -> None:
    """Do all parts; the compiled loops run without Python's lock."""
    workers = min(cores(), len(parts))
    if workers <= 1:
        for part in parts:
            task(part)
        return
    with ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(task, parts):
            pass


def _turns(network: IntegerNetwork, size: tuple[int, ...]) -> list[slice]:
    """Samples of each task: few enough for the caches."""
    samples, steps = size
    names = [*network.inputs, *network.by_name]
    largest = steps * max(network.size(name) for name in names)
    return in_turns(samples, min(TASK, max(1, TASK_BYTES // max(1, largest))))


def in_turns(count: int, most: int) -> list[slice]:
    """Parts of at most ``most`` of ``count``, as alike as can be and as many for every thread."""
    tasks = -(-count // most)
    tasks = min(count, -(-tasks // cores()) * cores())
    ends = [count * i // tasks for i in range(tasks + 1)] if tasks else [0]
    return [slice(*ends) for ends in itertools.pairwise(ends)]


@dataclass(frozen=True)
class _Sent:
    """What an input or a population sends, [N, T, *shape], with T = 1 of a frame that is held.

    ``ready`` is the same in memory order, [N, T, values] uint8 or int16, None where values are not those that
    plans were made for. ``values`` gives them in the order of the reference.
    """

    values: Callable[[], IntArray]
    ready: IntArray | None

    @classmethod
    def of(cls, values: IntArray, network: IntegerNetwork, name: str) -> _Sent:
        """Values from outside."""
        shape, span = network.shape(name), network.span(name)
        values = values.reshape(*values.shape[:2], *shape)
        return cls(lambda: values, _in_memory_order(values, shape, span))

    @classmethod
    def own(cls, out: _Out, some: slice) -> _Sent:
        """What the engine found."""
        spikes, population = out.spikes[some], out.population
        ready = spikes.reshape(*spikes.shape[:2], population.size)
        return cls(
            lambda: out.trace(some).spikes, np.require(ready, kind_of(population.neurons.span))
        )


def _in_memory_order(x: IntArray, shape: Shape, span: tuple[int, int]) -> IntArray | None:
    """Values [N, T, *shape] as [N, T, values] in memory order; None where one does not lie in ``span``."""
    lowest, most = span
    if x.dtype.kind not in "bui" or not x.size or most > np.iinfo(np.int16).max:
        return None
    if len(shape) == 3:
        x = np.moveaxis(x, 2, -1)
    x = np.ascontiguousarray(x.view(np.uint8) if x.dtype == np.bool_ else x)
    if x.min() < lowest or x.max() > most:
        return None
    # Writable as well: numba would compile everything again for a read-only array.
    return np.require(x.reshape(*x.shape[:2], -1), kind_of(span), ["C", "W"])


def _run(
    engine: Engine,
    part: tuple[Population, ...],
    plan: Plan | None,
    given: Mapping[str, _Sent],
    outs: Mapping[str, _Out],
    some: slice,
) -> None:
    """Run a part on some samples: by its plan, or in the reference.

    ``given`` is what its sources outside send.
    """
    ready = {name: x.ready for name, x in given.items() if x.ready is not None}
    if plan is not None and len(ready) == len(given):
        plan.run(ready, {name: out.part(some) for name, out in outs.items()})
        return
    steps = next(iter(outs.values())).spikes.shape[1]
    alone = _alone(engine.network, part)
    rasters: dict[str, IntArray] = {NOTHING: np.zeros((some.stop - some.start, steps, 1), np.uint8)}
    for name, sent in given.items():
        values = sent.values()
        rasters[name] = np.broadcast_to(values, (len(values), steps, *values.shape[2:]))
    states = all(out.u is not None for out in outs.values())
    done = reference.run(alone, rasters, states, engine.cores)
    for name, out in outs.items():
        out.put(some, done.layers[name])


NOTHING = ""  # the name of an input that leads nowhere, for populations that hear of none


def _alone(network: IntegerNetwork, part: tuple[Population, ...]) -> IntegerNetwork:
    """A part with its sources outside as inputs, none of which is held."""
    names = {population.name for population in part}
    into = tuple(c for c in network.connections if c.target in names)
    sources = {c.source for c in into} - names
    # The readout tells whether states of its source are kept.
    others = Readout(part[0].size, 1, part[0].name)
    return replace(
        network,
        inputs={n: network.port(n) for n in sources} | {NOTHING: Input((1,))},
        populations=part,
        connections=into,
        readout=network.readout if network.readout.source in names else others,
        placement=None,
    )


def _only(values: IntArray | None, kind: type[np.signedinteger[Any]]) -> IntArray:
    """States [N, T, neurons] that are there and of the ``kind``, or none."""
    none: IntArray = np.zeros((0, 0, 0), kind)
    return none if values is None or values.dtype != kind else values


@dataclass
class _Out:
    """The results of a population for all samples, in memory order."""

    population: Population
    spikes: NDArray[Any]
    active: Int64
    overflow: Int64
    u: IntArray | None
    v: IntArray | None
    more: dict[str, IntArray]
    by_core: bool

    @classmethod
    def zeros(
        cls,
        population: Population,
        size: tuple[int, ...],
        states: bool,
        wide: bool,
        cores: IntArray | None,
    ) -> _Out:
        """Results of ``size`` [N, T]."""
        shape = (*size, *memory_shape(population.shape))
        kind = np.int64 if wide else np.int32
        return cls(
            population,
            np.empty(shape, np.uint8 if population.neurons.graded is None else np.int16),
            np.zeros((*size, core_count(cores)), np.int64),
            np.zeros(size, np.int64),
            np.zeros(shape, kind) if states else None,
            np.zeros(shape, kind) if states else None,
            {name: np.zeros(shape, kind) for name in population.neurons.states if states},
            cores is not None,
        )

    @property
    def nbytes(self) -> int:
        """Of what lies here for every neuron."""
        kept = (self.spikes, self.u, self.v, *self.more.values())
        return sum(values.nbytes for values in kept if values is not None)

    def part(self, part: slice) -> Done:
        """Where to write the results of some samples."""
        size = (*self.spikes[part].shape[:2], self.population.size)
        kept = {"u": self.u, "v": self.v, **self.more}
        states = {n: x[part].reshape(size) for n, x in kept.items() if x is not None}
        did = kernels.Did(
            self.spikes[part].reshape(size),
            self.active[part],
            self.overflow[part],
            *(_only(states.get(name), np.int32) for name in ("u", "v")),
            *(_only(states.get(name), np.int64) for name in ("u", "v")),
        )
        return Done(did, states)

    def put(self, part: slice, did: LayerTrace) -> None:
        """Take over what the reference did on some samples."""
        mine = self.trace(part)
        mine.spikes[:] = did.spikes
        self.overflow[part] = did.overflow
        self.active[part] = (
            did.active[:, :, None] if did.active_by_core is None else did.active_by_core
        )
        for here, there in ((mine.u, did.u), (mine.v, did.v)):
            if here is not None and there is not None:
                here[:] = there
        for name, values in mine.more.items():
            values[:] = did.more[name]

    def trace(self, part: slice) -> LayerTrace:
        """The results of some samples as [N, T, *shape]: views, not copies."""

        def view(x: NDArray[Any]) -> NDArray[Any]:
            return np.moveaxis(x[part], -1, 2) if len(self.population.shape) == 3 else x[part]

        return LayerTrace(
            view(self.spikes),
            self.active[part].sum(axis=2),
            self.overflow[part],
            None if self.u is None else view(self.u),
            None if self.v is None else view(self.v),
            self.active[part] if self.by_core else None,
            {name: view(values) for name, values in self.more.items()},
        )
