"""Where the work falls: events of every core and link, for every sample and logical step.

A spike becomes one packet for each core of the next layer that it has a synapse into (the last
layer's: one, to the host), one for each core of its own layer that hears it, and on that core one synop
for each such synapse. Everything here is linear in the spikes, so a batch is one product of a sparse
integer matrix with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csc_array, csr_array, vstack

from stl_deploy import placement
from stl_deploy.hw_sim.mesh import Mesh
from stl_deploy.hw_sim.reference import Trace
from stl_deploy.network import (
    Conv,
    Dense,
    IntArray,
    IntegerNetwork,
    Layer,
    OrPool,
    Placement,
    Sparse,
)

Int64 = NDArray[np.int64]
Int32 = NDArray[np.int32]
Rows = dict[str, csr_array]


@dataclass(frozen=True)
class LayerWork:
    """Events of one layer in a batch of S = N*T steps: integers [S, G] by core, [S, links] by link.

    ``links`` and ``sent`` are about the packets that the layer sends, to the next and to itself: over
    each link, and by their way, [S, ways] with the hops of each way (east-west, north-south) in ``ways``.
    ``heard_packets`` and ``heard_synops`` are what its own spikes of the step cause on its own cores, in
    the physical step after that of ``packets_in`` and ``synops``; None where it does not hear itself.
    """

    active: Int64
    spikes: Int32
    synops: Int32
    packets_in: Int32
    packets_out: Int32
    links: Int32
    sent: Int32
    ways: Int64
    heard_packets: Int32 | None = None
    heard_synops: Int32 | None = None


def synapses_by_core(layer: Layer, cores: IntArray, count: int) -> csr_array:
    """Stored, non-zero, in-bounds synapses of each input neuron into each core.

    int32 [G, inputs], inputs in C order, for neurons that lie on ``cores`` [neurons].
    """
    if isinstance(layer, OrPool):
        return _by_core_pool(layer, cores, count)
    if isinstance(layer.synapses, Dense):
        on_core = csr_array(_one_hot(cores, count))
        return csr_array(on_core @ (layer.synapses.weight != 0).astype(np.int32))
    if isinstance(layer.synapses, Sparse):
        row, column = layer.synapses.row, layer.synapses.column
        entries = np.ones(len(row), np.int32), (cores[row], column)
        return csr_array(entries, shape=(count, layer.synapses.size[1]))
    return _by_core_conv(layer.synapses, layer.input_shape, layer.shape, cores, count)


def own_synapses_by_core(layer: Layer, cores: IntArray, count: int) -> csr_array | None:
    """The same for the synapses from ``layer`` into itself, int32 [G, neurons]; None without."""
    if isinstance(layer, OrPool) or layer.recurrent is None:
        return None
    on_core = csr_array(_one_hot(cores, count))
    return csr_array(on_core @ (layer.recurrent.weight != 0).astype(np.int32))


def _one_hot(classes: IntArray, count: int) -> csr_array:
    """int32 [count, n]: 1 at the class of each of n items."""
    n = len(classes)
    ones = np.ones(n, np.int32)
    return csr_array((ones, (classes, np.arange(n))), shape=(count, n))


def _nothing(rows: int, columns: int) -> csr_array:
    """int32 [rows, columns] of zeros."""
    entries = np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(rows + 1, np.int32)
    return csr_array(entries, shape=(rows, columns))


def _by_core_pool(layer: OrPool, cores: IntArray, count: int) -> csr_array:
    (kh, kw), (_, height, width) = layer.kernel, layer.input_shape
    c, i, j = np.indices(layer.input_shape).reshape(3, -1)
    target = (c * (height // kh) + i // kh) * (width // kw) + j // kw
    return _one_hot(cores[target], count)


def _by_core_conv(
    conv: Conv, before: tuple[int, ...], after: tuple[int, ...], cores: IntArray, count: int
) -> csr_array:
    """Synapses of a convolution, by where each tap of each output neuron lies, not one by one.

    With k over output channels and taps: [input channel, k] stored times [k, (position, core)].
    """
    channels, per_group, *kernel = conv.weight.shape
    stored = np.zeros((channels, *kernel, before[0]), np.int32)
    for o in range(channels):
        first = o // (channels // conv.groups) * per_group
        stored[o, ..., first : first + per_group] = np.moveaxis(conv.weight[o] != 0, 0, -1)
    o, p, q, i, j = np.indices((channels, *kernel, *after[1:]), sparse=True)
    y = i * conv.stride[0] + p * conv.dilation[0] - conv.padding[0]
    x = j * conv.stride[1] + q * conv.dilation[1] - conv.padding[1]
    inside = (y >= 0) & (y < before[1]) & (x >= 0) & (x < before[2])
    core = cores.reshape(after)[:, None, None]
    position = y * before[2] + x
    k = (o * kernel[0] + p) * kernel[1] + q
    full = np.broadcast_shapes(inside.shape, core.shape, k.shape)
    inside, core, position, k = (np.broadcast_to(a, full) for a in (inside, core, position, k))
    places = before[1] * before[2]
    where = csr_array(
        (
            np.ones(np.count_nonzero(inside), np.int32),
            (core[inside] * places + position[inside], k[inside]),
        ),
        shape=(count * places, stored.shape[0] * kernel[0] * kernel[1]),
    )
    # [(core, position), k] @ [k, input channel] -> [core, (channel, position)]
    total = (where @ stored.reshape(-1, before[0])).reshape(count, places, before[0])
    return csr_array(np.moveaxis(total, -1, 1).reshape(count, -1))


class Work:
    """Counts the work of batches of one network on one chip."""

    def __init__(self, network: IntegerNetwork, placed: Placement, mesh: Mesh) -> None:
        self.network, self.placed, self.mesh = network, placed, mesh
        self.cores = {
            layer.name: placement.core_of(layer, placed.layers[layer.name])
            for layer in network.layers
        }
        into = [
            synapses_by_core(layer, self.cores[layer.name], placed.layers[layer.name].cores)
            for layer in network.layers
        ]
        self.host = _Spike({"packets_in": _reach(into[0]), "synops": into[0]})
        self.wires = [
            self._wires(layer, following, after)
            for layer, following, after in zip(
                network.layers, [*network.layers[1:], None], [*into[1:], None], strict=True
            )
        ]

    def _wires(self, layer: Layer, following: Layer | None, into: csr_array | None) -> _Spike:
        """What a spike of ``layer`` causes on its cores, on the way and in the layer after it."""
        placed = self.placed.layers[layer.name]
        own = self.cores[layer.name]
        on_core = _one_hot(own, placed.cores)
        heard = own_synapses_by_core(layer, own, placed.cores)
        rows: Rows = {}
        # Where packets go: the first core of a layer, and which cores after it each neuron reaches.
        goals: list[tuple[int, csr_array]] = []
        if following is not None and into is not None:
            rows |= {"packets_in": _reach(into), "synops": into}
            goals.append((self.placed.layers[following.name].first_core, rows["packets_in"]))
        if heard is not None:
            rows |= {"heard_packets": _reach(heard), "heard_synops": heard}
            goals.append((placed.first_core, rows["heard_packets"]))
        sent = np.full(layer.neurons, following is None, np.int32)  # to the host
        sent += sum(reach.sum(axis=0, dtype=np.int32) for _, reach in goals)
        rows |= {"spikes": on_core, "packets_out": csr_array(on_core * sent)}
        if not goals:
            rows["links"] = _nothing(self.mesh.links, layer.neurons)
            rows["ways"] = _nothing(0, layer.neurons)
            return _Spike(rows, np.zeros((0, 2), np.int64))
        ends = [
            (first + core, neuron) for first, reach in goals for core, neuron in [reach.nonzero()]
        ]
        core, neuron = (np.concatenate(each).astype(np.int64) for each in zip(*ends, strict=True))
        source, target = self.mesh.tile(own[neuron] + placed.first_core), self.mesh.tile(core)
        ways, way = np.unique(
            np.stack(self.mesh.hops(source, target), axis=1), axis=0, return_inverse=True
        )
        packets = _one_hot(neuron, layer.neurons)
        rows |= {
            "links": csr_array((packets @ self.mesh.routes(source, target)).T),
            "ways": csr_array(_one_hot(way.reshape(-1), len(ways)) @ packets.T),
        }
        return _Spike(rows, ways)

    def count(self, inputs: IntArray, trace: Trace, active: Mapping[str, Int64]) -> list[LayerWork]:
        """The work of one batch: its inputs [N, T, ...] and what the network did with them.

        ``active`` are the active neurons [N*T, G] of each layer.
        """
        arriving = self.host.count(inputs)
        layers = []
        for layer, wires in zip(self.network.layers, self.wires, strict=True):
            sent = wires.count(trace.layers[layer.name].spikes)
            layers.append(
                LayerWork(
                    active=active[layer.name],
                    spikes=sent["spikes"],
                    synops=arriving["synops"],
                    packets_in=arriving["packets_in"],
                    packets_out=sent["packets_out"],
                    links=sent["links"],
                    sent=sent["ways"],
                    ways=wires.ways,
                    heard_packets=sent.get("heard_packets"),
                    heard_synops=sent.get("heard_synops"),
                )
            )
            arriving = sent
        return layers


class _Spike:
    """What a spike of each neuron of a population causes: rows [counters, neurons] by name.

    ``ways`` are the hops behind the counters of that name.
    """

    def __init__(self, rows: dict[str, csr_array], ways: Int64 | None = None) -> None:
        self.ways = np.zeros((0, 2), np.int64) if ways is None else ways
        self.parts = [_Columns(rows, list(rows))]
        if not self.parts[0].merged and "synops" in rows:
            # Synapses differ from neuron to neuron where weights are zero, all else by place alone.
            alike = [name for name in rows if name != "synops"]
            self.parts = [_Columns(rows, alike), _Columns(rows, ["synops"])]

    def count(self, spikes: IntArray) -> dict[str, Int32]:
        """Each counter [S, counters] for spikes [N, T, *shape], S = N*T."""
        steps = spikes.shape[0] * spikes.shape[1]
        # Much faster than the indices of a table of numbers.
        fired = np.flatnonzero(spikes.reshape(-1) != 0)
        step, neuron = np.divmod(fired, spikes.size // steps)
        return {
            name: table
            for part in self.parts
            for name, table in part.count(step, neuron, steps).items()
        }


class _Columns:
    """A product of some of the rows of a ``_Spike`` with spikes, equal columns being one."""

    def __init__(self, rows: dict[str, csr_array], names: list[str]) -> None:
        self.names = names
        self.ends = np.cumsum([rows[name].shape[0] for name in names])[:-1]
        matrix = csc_array(vstack([rows[name] for name in names], format="csc"))
        matrix.sort_indices()
        self.kinds, first = _kinds(matrix)
        # Counting spikes by kind takes a counter for each, which few equal columns do not repay.
        self.merged = 2 * len(first) <= len(self.kinds)
        self.matrix = csr_array(matrix[:, first] if self.merged else matrix.T)

    def count(self, step: Int64, neuron: Int64, steps: int) -> dict[str, Int32]:
        """Each counter [S, counters] for the spikes of ``neuron`` in ``step``, in order of steps."""
        if self.merged:
            kinds = self.matrix.shape[1]
            counts = np.bincount(step * kinds + self.kinds[neuron], minlength=steps * kinds)
            total = (self.matrix @ counts.reshape(steps, kinds).T.astype(np.int32)).T
        else:
            starts = np.searchsorted(step, np.arange(steps + 1))
            ones = np.ones(len(neuron), np.int32)
            fired = csr_array((ones, neuron, starts), shape=(steps, len(self.kinds)))
            total = (fired @ self.matrix).toarray()
        return dict(zip(self.names, np.split(total, self.ends, axis=1), strict=True))


def _kinds(matrix: csc_array) -> tuple[Int64, Int64]:
    """For each column the number of its kind, equal columns being of one, and a column of each kind."""
    known: dict[bytes, int] = {}
    kinds = np.zeros(matrix.shape[1], np.int64)
    for n, (low, high) in enumerate(pairwise(matrix.indptr.tolist())):
        column = matrix.indices[low:high].tobytes() + matrix.data[low:high].tobytes()
        kinds[n] = known.setdefault(column, len(known))
    return kinds, np.unique(kinds, return_index=True)[1]


def _reach(into: csr_array) -> csr_array:
    """int32 of the same shape: 1 where there is any synapse."""
    return csr_array((into > 0).astype(np.int32))
