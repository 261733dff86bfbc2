"""Where the work falls: events of every core and link, for every sample and logical step.

A spike becomes one packet for each core of the next layer that it has a synapse into (the last
layer's: one, to the host), and on that core one synop for each such synapse. Everything here is
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
from stl_deploy.hw_sim.account.counters import Columns, Population, Table, one_hot
from stl_deploy.hw_sim.account.mesh import Mesh
from stl_deploy.hw_sim.reference import Trace
from stl_deploy.ir.chain import Layer
from stl_deploy.ir.network import IntegerNetwork
from stl_deploy.ir.notes import Placement
from stl_deploy.ir.synapses import IntArray

Bytes = NDArray[np.uint8]
Int64 = NDArray[np.int64]
Int32 = NDArray[np.int32]

ROWS = 256  # steps that one thread counts at a time


@dataclass(frozen=True)
class LayerWork:
    """Events of one layer in a batch of S = N*T steps: integers [G, S] by core, [links, S] by link.

    ``inputs`` [S] are the events that reach the layer from before it. ``links`` and ``sent`` are about
    the packets that it sends, to the next one and to itself: over each of the links ``link_ids``, which
    are all that carry any, and by their way, [ways, S] with the hops of each way (east-west, north-south)
    in ``ways``. ``recurrent_packets`` and ``recurrent_synops`` are what its own spikes of the step cause
    on its own cores, in the physical step after that of ``packets_in`` and ``synops``; None where it is
    not recurrent.
    """

    inputs: Int64
    active: Int64
    spikes: Int32
    synops: Int32
    packets_in: Int32
    packets_out: Int32
    links: Int32
    link_ids: Int64
    sent: Int32
    ways: Int64
    recurrent_packets: Int32 | None = None
    recurrent_synops: Int32 | None = None


def synapses_by_core(layer: Layer, cores: IntArray, count: int) -> csr_array:
    """Stored, non-zero, in-bounds synapses of each input neuron into each core.

    int32 [G, inputs], inputs in C order, for neurons that lie on ``cores`` [neurons]. A weight of two slices
    is two synapses where neither is zero.
    """
    return _added(
        group.synapses.fan_out_into(cores, count, group.input_shape, group.shape)
        for group in layer.groups()
    )


def recurrent_synapses_by_core(layer: Layer, cores: IntArray, count: int) -> csr_array | None:
    """The same for the recurrent synapses, int32 [G, neurons]; None where ``layer`` has none."""
    if layer.recurrent is None:
        return None
    return _added(
        group.recurrent.fan_out_into(cores, count, group.shape, group.shape)
        for group in layer.groups()
        if group.recurrent is not None
    )


def _added(matrices: Iterable[csr_array]) -> csr_array:
    first, *rest = matrices
    return csr_array(sum(rest, first))


class _Place:
    """A network on one chip: the cores of its neurons, and what each of their spikes causes there.

    ``columns[0]`` are for the input, ``columns[i + 1]`` for layer i: counters by name.
    """

    def __init__(self, network: IntegerNetwork, placed: Placement, mesh: Mesh) -> None:
        self.placed, self.mesh = placed, mesh
        self.cores = {
            population.name: placement.core_of(population, placed.layers[population.name])
            for population in network.populations
        }
        into = [
            synapses_by_core(layer, self.cores[layer.name], placed.layers[layer.name].cores)
            for layer in network.layers
        ]
        one = csr_array(np.ones((1, 1), np.int32))
        self.columns: list[dict[str, Columns]] = [
            {
                "inputs": Columns(np.zeros(into[0].shape[1], np.int64), one),
                "packets_in": _reach(into[0]),
                "synops": Columns.of(into[0]),
            }
        ]
        self.link_ids: list[Int64] = []
        self.ways: list[Int64] = []
        for layer, following, after in zip(
            network.layers, [*network.layers[1:], None], [*into[1:], None], strict=True
        ):
            self._wires(layer, following, after)

    def _wires(self, layer: Layer, following: Layer | None, into: csr_array | None) -> None:
        """What a spike of ``layer`` causes on its own cores, on the way and where it arrives."""
        placed = self.placed.layers[layer.name]
        own = self.cores[layer.name]
        recurrent = recurrent_synapses_by_core(layer, own, placed.cores)
        columns: dict[str, Columns] = {}
        # Where packets go: the first core of a layer, and which cores after it each neuron reaches.
        goals: list[tuple[int, Columns]] = []
        if following is not None and into is not None:
            columns |= {"packets_in": _reach(into), "synops": Columns.of(into)}
            goals.append((self.placed.layers[following.name].first_core, columns["packets_in"]))
        if recurrent is not None:
            columns |= {
                "recurrent_packets": _reach(recurrent),
                "recurrent_synops": Columns.of(recurrent),
            }
            goals.append((placed.first_core, columns["recurrent_packets"]))
        # Neurons on one core that reach the same cores are alike.
        kind = np.asarray(own, np.int64)
        for _, reach in goals:
            _, kind = np.unique(kind * reach.kinds + reach.kind, return_inverse=True)
        _, example, kind = np.unique(kind, return_index=True, return_inverse=True)
        goal = [(first, csr_array(reach.matrix[:, reach.kind[example]])) for first, reach in goals]
        sent = np.full(len(example), following is None, np.int32)  # to the host
        sent += sum(reach.sum(axis=0, dtype=np.int32) for _, reach in goal)
        on_core = one_hot(own[example], placed.cores)
        columns |= {
            "spikes": Columns(
                np.asarray(own, np.int64), one_hot(np.arange(placed.cores), placed.cores)
            ),
            "packets_out": _joined(kind, csr_array(on_core * sent)),
        }
        ids, ways = np.zeros(0, np.int64), np.zeros((0, 2), np.int64)
        if goal:
            links, by_way, ways = self._ways(
                np.asarray(own[example], np.int64) + placed.first_core, goal
            )
            ids = np.flatnonzero(np.diff(links.indptr)).astype(np.int64)
            columns |= {
                "links": _joined(kind, csr_array(links[ids])),
                "ways": _joined(kind, by_way),
            }
        self.columns.append(columns)
        self.link_ids.append(ids)
        self.ways.append(ways)

    def _ways(
        self, source_core: Int64, goals: list[tuple[int, csr_array]]
    ) -> tuple[csr_array, csr_array, Int64]:
        """Links [links, kinds] and ways [ways, kinds] that the packets of kinds of neurons take.

        ``goals`` are the first core of a layer and [cores, kinds]: 1 where a packet goes to. Also the
        hops of each way, [ways, 2].
        """
        ends = [(first + core, kind) for first, reach in goals for core, kind in [reach.nonzero()]]
        core, kind = (np.concatenate(each).astype(np.int64) for each in zip(*ends, strict=True))
        source, target = self.mesh.tile(source_core[kind]), self.mesh.tile(core)
        ways, way = np.unique(
            np.stack(self.mesh.hops(source, target), axis=1), axis=0, return_inverse=True
        )
        packets = one_hot(kind, len(source_core))
        links = csr_array((packets @ self.mesh.routes(source, target)).T)
        return links, csr_array(one_hot(way.reshape(-1), len(ways)) @ packets.T), ways


class Work:
    """Counts the work of batches of one network, on one chip or on several at once.

    ``cores`` holds for each layer a number for each neuron, int [neurons], that tells its core on
    every chip; ``reference.run`` counts active neurons by it.
    """

    def __init__(self, network: IntegerNetwork, places: Sequence[tuple[Placement, Mesh]]) -> None:
        self.network = network
        self.places = [_Place(network, *place) for place in places]
        self.cores: dict[str, IntArray] = {}
        self._means: dict[str, list[csr_array]] = {}
        for layer in network.layers:
            each = np.stack([place.cores[layer.name] for place in self.places])
            distinct, number = np.unique(each, axis=1, return_inverse=True)
            self.cores[layer.name] = number.reshape(-1)
            self._means[layer.name] = [
                one_hot(cores, place.placed.layers[layer.name].cores)
                for cores, place in zip(distinct, self.places, strict=True)
            ]
        shapes = [network.input_shape, *(layer.shape for layer in network.layers)]
        self._spikes = [
            Population(shape, [place.columns[i] for place in self.places])
            for i, shape in enumerate(shapes)
        ]

    def count(self, inputs: IntArray, trace: Trace) -> list[list[LayerWork]]:
        """The work of one batch, by chip and layer.

        ``inputs`` [N, T, ...] are what arrived, and ``trace`` what the network, run with ``cores``,
        did with them.
        """
        fired = [inputs, *(trace.layers[layer.name].spikes for layer in self.network.layers)]
        trains = [spike.rows(train) for spike, train in zip(self._spikes, fired, strict=True)]
        steps = len(trains[0])
        tables = [np.empty((spike.counters, steps), np.int32) for spike in self._spikes]

        def task(part: slice) -> None:
            for spike, train, table in zip(self._spikes, trains, tables, strict=True):
                spike.count(train[part], table[:, part])

        engine.in_parallel(task, engine.in_turns(steps, ROWS))
        named = [s.by_name(table) for s, table in zip(self._spikes, tables, strict=True)]
        return [self._layers(chip, trace, named) for chip in range(len(self.places))]

    def _layers(self, chip: int, trace: Trace, named: list[list[Table]]) -> list[LayerWork]:
        """The work on one chip, from the counters by boundary and chip."""
        place, layers = self.places[chip], []
        for i, layer in enumerate(self.network.layers):
            arriving, sent = named[i][chip], named[i + 1][chip]
            nothing = np.zeros((0, sent["spikes"].shape[1]), np.int32)
            layers.append(
                LayerWork(
                    inputs=arriving["inputs" if i == 0 else "spikes"].sum(axis=0, dtype=np.int64),
                    active=self._active(layer.name, chip, trace),
                    spikes=sent["spikes"],
                    synops=arriving["synops"],
                    packets_in=arriving["packets_in"],
                    packets_out=sent["packets_out"],
                    links=sent.get("links", nothing),
                    link_ids=place.link_ids[i],
                    sent=sent.get("ways", nothing),
                    ways=place.ways[i],
                    recurrent_packets=sent.get("recurrent_packets"),
                    recurrent_synops=sent.get("recurrent_synops"),
                )
            )
        return layers

    def _active(self, layer: str, chip: int, trace: Trace) -> Int64:
        """Active neurons int64 [G, S] by the cores of one chip."""
        by_number = trace.layers[layer].active_by_core
        if by_number is None:
            raise ValueError(f"{layer}: run without the cores of this work")
        total: Int64 = self._means[layer][chip] @ by_number.reshape(-1, by_number.shape[-1]).T
        return total


def _reach(into: csr_array) -> Columns:
    """1 where there is any synapse."""
    return Columns.of(csr_array((into > 0).astype(np.int32)))


def _joined(kind: Int64, matrix: csr_array) -> Columns:
    """Columns by ``kind`` of neurons, equal ones joined."""
    joined = Columns.of(matrix)
    return Columns(joined.kind[kind], joined.matrix)
