"""Where the work falls: events of every core and link, for every sample and logical step of their source.

A spike becomes one packet for each core that its neuron has a synapse into, over however many connections,
as placement gives it one axon there. Spikes that the readout needs become one more, to the host. On the
core where a packet arrives, each such synapse is one synop. Values that come in from the host do the same,
one event each where they are not zero, in every step also where one frame is held. Everything here is
linear in the spikes (``counters``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from stl_deploy.chips import placement
from stl_deploy.hw_sim import engine
from stl_deploy.hw_sim.account.counters import Columns, Key, SpikeCounters, Table, one_hot
from stl_deploy.hw_sim.account.mesh import Mesh
from stl_deploy.hw_sim.reference import Trace
from stl_deploy.ir.network import Connection, IntegerNetwork, Raster
from stl_deploy.ir.notes import Placement
from stl_deploy.ir.synapses import IntArray

Int64 = NDArray[np.int64]
Int32 = NDArray[np.int32]

ROWS = 256  # steps that one thread counts at a time


@dataclass(frozen=True)
class LayerWork:
    """What a population does in a batch of S = N*T of its steps: integers [G, S] by core.

    ``links`` and ``sent`` are about the packets that it sends: over each of the links ``link_ids``, which are
    all that carry any, [links, S], and by their way, [ways, S] with the hops of each way (east-west,
    north-south) in ``ways``.
    """

    active: Int32
    spikes: Int32
    packets_out: Int32
    links: Int32
    link_ids: Int64
    sent: Int32
    ways: Int64


@dataclass(frozen=True)
class Arrivals:
    """What one source sends to one target in the S steps of the source: integers [G, S] by core.

    ``synops`` are those of each connection between the two, by its place among the network's connections.
    """

    source: str
    target: str
    packets: Int32
    synops: dict[int, Int32]


@dataclass(frozen=True)
class BatchWork:
    """Everything that a batch of S steps causes on one chip.

    ``events`` [S] are the spikes of each population, and the values of each input that are not zero.
    """

    events: dict[str, Int64]
    layers: dict[str, LayerWork]
    arrivals: tuple[Arrivals, ...]


def synapses_by_core(
    network: IntegerNetwork, connection: Connection, cores: IntArray, count: int
) -> csr_array:
    """Stored, non-zero, in-bounds synapses of each neuron of the source into each core.

    int32 [G, neurons], neurons in C order, for a target whose neurons lie on ``cores`` [neurons]. A weight of
    two slices is two synapses where neither is zero.
    """
    before, after = network.shape(connection.source), network.shape(connection.target)
    return _added(
        group.synapses.fan_out_into(cores, count, before, after) for group in connection.groups()
    )


def _added(matrices: Iterable[csr_array]) -> csr_array:
    first, *rest = matrices
    return csr_array(sum(rest, first))


class _Place:
    """A network on one chip: the cores of its neurons, and what each of their spikes causes there.

    ``columns`` are, for each input and population, counters by name. Without a placement every population
    has one core, and nothing is known of links.
    """

    def __init__(
        self, network: IntegerNetwork, placed: Placement | None = None, mesh: Mesh | None = None
    ) -> None:
        self.network, self.mesh = network, mesh
        self.cores: dict[str, Int64] = {}
        self.count: dict[str, int] = {}
        self.first_core: dict[str, int] = {}
        for population in network.populations:
            name = population.name
            if placed is None:
                self.cores[name], self.count[name] = np.zeros(population.size, np.int64), 1
                continue
            on = placed.layers[name]
            self.cores[name] = placement.core_of(population, on)
            self.count[name], self.first_core[name] = on.cores, on.first_core
        self.link_ids: dict[str, Int64] = {}
        self.ways: dict[str, Int64] = {}
        one = csr_array(np.ones((1, 1), np.int32))
        self.columns: dict[str, dict[Key, Columns]] = {}
        for name in network.inputs:
            events = Columns(np.zeros(network.size(name), np.int64), one)
            self.columns[name] = {("events", ""): events} | self._arriving(name)
        for population in network.populations:
            self._wires(population.name)

    def targets(self, source: str) -> dict[str, list[int]]:
        """The populations that a source leads to, and by which of the network's connections."""
        found: dict[str, list[int]] = {}
        for number, c in enumerate(self.network.connections):
            if c.source == source:
                found.setdefault(c.target, []).append(number)
        return found

    def _arriving(self, source: str) -> dict[Key, Columns]:
        """What an event of ``source`` causes where it arrives."""
        columns: dict[Key, Columns] = {}
        for target, numbers in self.targets(source).items():
            cores, count = self.cores[target], self.count[target]
            into = [
                synapses_by_core(self.network, self.network.connections[i], cores, count)
                for i in numbers
            ]
            columns["packets_in", target] = _reach(_added(into))
            for i, matrix in zip(numbers, into, strict=True):
                columns["synops", str(i)] = Columns.of(matrix)
        return columns

    def _wires(self, name: str) -> None:
        """What a spike of a population causes on its own cores, on the way and where it arrives."""
        own, count = self.cores[name], self.count[name]
        columns = self._arriving(name)
        reaches = {
            target: reach for (what, target), reach in columns.items() if what == "packets_in"
        }
        # Neurons on one core that reach the same cores are alike.
        kind = np.asarray(own, np.int64)
        for reach in reaches.values():
            _, kind = np.unique(kind * reach.kinds + reach.kind, return_inverse=True)
        _, example, kind = np.unique(kind, return_index=True, return_inverse=True)
        goals = {
            target: csr_array(reach.matrix[:, reach.kind[example]])
            for target, reach in reaches.items()
        }
        readout = self.network.readout
        to_host = readout.by_spikes and name == readout.source
        sent = np.full(len(example), to_host, np.int32)
        sent += sum(goal.sum(axis=0, dtype=np.int32) for goal in goals.values())
        columns["spikes", ""] = Columns(own, one_hot(np.arange(count), count))
        columns["packets_out", ""] = _joined(kind, csr_array(one_hot(own[example], count) * sent))
        ids, ways = np.zeros(0, np.int64), np.zeros((0, 2), np.int64)
        if goals and self.mesh is not None:
            links, by_way, ways = self._ways(self.mesh, own[example] + self.first_core[name], goals)
            ids = np.flatnonzero(np.diff(links.indptr)).astype(np.int64)
            columns["links", ""] = _joined(kind, csr_array(links[ids]))
            columns["ways", ""] = _joined(kind, by_way)
        self.columns[name] = columns
        self.link_ids[name], self.ways[name] = ids, ways

    def _ways(
        self, mesh: Mesh, source_core: Int64, goals: dict[str, csr_array]
    ) -> tuple[csr_array, csr_array, Int64]:
        """Links [links, kinds] and ways [ways, kinds] that the packets of kinds of neurons take.

        ``goals`` are [cores, kinds] for each target: 1 where a packet goes to. Also the hops of each way,
        [ways, 2].
        """
        ends = [
            (self.first_core[target] + core, kind)
            for target, reach in goals.items()
            for core, kind in [reach.nonzero()]
        ]
        core, kind = (np.concatenate(each).astype(np.int64) for each in zip(*ends, strict=True))
        source, target = mesh.tile(source_core[kind]), mesh.tile(core)
        ways, way = np.unique(
            np.stack(mesh.hops(source, target), axis=1), axis=0, return_inverse=True
        )
        packets = one_hot(kind, len(source_core))
        links = csr_array((packets @ mesh.routes(source, target)).T)
        return links, csr_array(one_hot(way.reshape(-1), len(ways)) @ packets.T), ways


class Work:
    """Counts the work of batches of one network, on one chip or on several at once.

    Without any chip, the work is counted as if every population had a core of its own. ``cores`` holds for
    each population a number for each neuron, int [neurons], that tells its core on every chip;
    ``reference.run`` counts active neurons by it.
    """

    def __init__(self, network: IntegerNetwork, places: Sequence[tuple[Placement, Mesh]]) -> None:
        self.network = network
        self.places = [_Place(network, *place) for place in places] or [_Place(network)]
        self.cores: dict[str, IntArray] = {}
        self._means: dict[str, list[csr_array]] = {}
        for population in network.populations:
            name = population.name
            each = np.stack([place.cores[name] for place in self.places])
            distinct, number = np.unique(each, axis=1, return_inverse=True)
            self.cores[name] = number.reshape(-1)
            self._means[name] = [
                one_hot(cores, place.count[name])
                for cores, place in zip(distinct, self.places, strict=True)
            ]
        self._spikes = {
            name: SpikeCounters(network.shape(name), [place.columns[name] for place in self.places])
            for name in (*network.inputs, *network.by_name)
        }

    def count(self, inputs: Raster, trace: Trace) -> list[BatchWork]:
        """The work of one batch, by chip.

        ``inputs`` are the rasters that arrived, and ``trace`` what the network, run with ``cores``, did with
        them.
        """
        fired = self.network.rasters(inputs) | {n: did.spikes for n, did in trace.layers.items()}
        counters = list(self._spikes.values())
        trains = [spikes.rows(fired[name]) for name, spikes in self._spikes.items()]
        steps = len(trains[0])
        tables = [np.empty((spikes.counters, steps), np.int32) for spikes in counters]

        def task(part: slice) -> None:
            for spikes, train, table in zip(counters, trains, tables, strict=True):
                spikes.count(train[part], table[:, part])

        engine.in_parallel(task, engine.in_turns(steps, ROWS))
        named = {
            name: spikes.by_name(table)
            for (name, spikes), table in zip(self._spikes.items(), tables, strict=True)
        }
        return [
            self._batch(chip, trace, {name: tables[chip] for name, tables in named.items()})
            for chip in range(len(self.places))
        ]

    def _batch(self, chip: int, trace: Trace, named: dict[str, Table]) -> BatchWork:
        """The work on one chip, from the counters by source."""
        place, layers, events = self.places[chip], {}, {}
        for name in self.network.inputs:
            events[name] = named[name]["events", ""][0].astype(np.int64)
        for name in self.network.by_name:
            did = named[name]
            nothing = np.zeros((0, did["spikes", ""].shape[1]), np.int32)
            events[name] = did["spikes", ""].sum(axis=0, dtype=np.int64)
            layers[name] = LayerWork(
                active=self._active(name, chip, trace),
                spikes=did["spikes", ""],
                packets_out=did["packets_out", ""],
                links=did.get(("links", ""), nothing),
                link_ids=place.link_ids[name],
                sent=did.get(("ways", ""), nothing),
                ways=place.ways[name],
            )
        arrivals = tuple(
            Arrivals(
                source,
                target,
                packets=named[source]["packets_in", target],
                synops={i: named[source]["synops", str(i)] for i in numbers},
            )
            for source in named
            for target, numbers in place.targets(source).items()
        )
        return BatchWork(events, layers, arrivals)

    def _active(self, name: str, chip: int, trace: Trace) -> Int32:
        """Active neurons int32 [G, S] by the cores of one chip."""
        by_number = trace.layers[name].active_by_core
        if by_number is None:
            raise ValueError(f"{name}: run without the cores of this work")
        total = self._means[name][chip] @ by_number.reshape(-1, by_number.shape[-1]).T
        return np.ascontiguousarray(total, np.int32)


def _reach(into: csr_array) -> Columns:
    """1 where there is any synapse."""
    return Columns.of(csr_array((into > 0).astype(np.int32)))


def _joined(kind: Int64, matrix: csr_array) -> Columns:
    """Columns by ``kind`` of neurons, equal ones joined."""
    joined = Columns.of(matrix)
    return Columns(joined.kind[kind], joined.matrix)
