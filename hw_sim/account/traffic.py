"""Events of every core and link of a chip, laid onto the physical steps in which they happen."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from stl_deploy.chips import placement
from stl_deploy.chips.facts import Chip
from stl_deploy.hw_sim.account import kernels, unpriced
from stl_deploy.hw_sim.account.mesh import Link, Mesh
from stl_deploy.hw_sim.account.work import Arrivals, BatchWork, LayerWork
from stl_deploy.ir.network import IntegerNetwork
from stl_deploy.ir.notes import Placement

Float = NDArray[np.float64]
Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]

DOES = ("active", "spikes", "packets_out")


@dataclass(frozen=True)
class Traffic:
    """Events of every core and link of one chip, summed over all samples and steps of a run.

    Integers [cores], cores as placement numbers them; ``link_packets`` [links] as ``Mesh`` numbers
    them. ``in_from_host`` and ``out_to_host`` are packets that cross the chip's edge, ``host_reads`` the
    times that the host reads a v, which are no packets.
    """

    placed: Placement
    mesh: Mesh
    layers: tuple[str, ...]
    neurons: Int64
    active: Int64
    spikes: Int64
    synops: Int64
    packets_in: Int64
    packets_out: Int64
    link_packets: Int64
    in_from_host: int
    out_to_host: int
    host_reads: int

    def layer_of(self, core: int) -> str:
        """The name of the population that lies on a core."""
        return next(
            name
            for name, on in self.placed.layers.items()
            if on.first_core <= core < on.first_core + on.cores
        )

    @property
    def links(self) -> list[tuple[Link, int]]:
        """The links that carried anything, and how many packets, the busiest first."""
        used = np.flatnonzero(self.link_packets)
        order = used[np.argsort(-self.link_packets[used], kind="stable")]
        return [(self.mesh.link(int(n)), int(self.link_packets[n])) for n in order]


class Schedule:
    """Lays rows of logical steps [S] onto physical steps, batch after batch.

    ``land`` returns the S physical steps that no later batch adds to; the last ``late`` stay in ``open``.
    """

    def __init__(self, late: int, rows: int, dtype: DTypeLike = np.float64) -> None:
        self.open: NDArray[Any] = np.zeros((rows, late), dtype)

    def land(
        self, steps: int, parts: Iterable[tuple[int, Int64 | int | slice, NDArray[Any]]]
    ) -> NDArray[Any]:
        """Add each of ``parts``, (delay, which rows, values [rows, steps]); the complete steps."""
        more = np.zeros((len(self.open), steps), self.open.dtype)
        total = np.concatenate([self.open, more], axis=1)
        for delay, rows, values in parts:
            total[rows, delay : delay + steps] += values
        self.open = total[:, steps:]
        return total[:, :steps]


@dataclass(frozen=True)
class Received:
    """What arrives at the cores of a population: integers [G, S] by physical step.

    ``synops`` are apart by the kind of their synapses, which they are priced by.
    """

    packets: Int32
    synops: dict[str, Int32]


class Inbox:
    """What arrives at one population, brought from the steps of its sources to physical ones.

    ``first`` is the depth of its earliest source; what that sends in its logical step k arrives in physical
    step ``first`` + k, and what others send up to ``span`` steps later.
    """

    def __init__(self, network: IntegerNetwork, name: str, cores: int) -> None:
        depth = depths(network)
        self.connections = network.connections
        into = network.into(name)
        self.depths = {c.source: depth[c.source] for c in into}
        self.first = min(self.depths.values(), default=depth[name] - 1)
        self.span = max(self.depths.values(), default=self.first) - self.first
        self.cores, self.kinds = cores, tuple(dict.fromkeys(c.synapses.kind for c in into))
        self.reset()

    def reset(self) -> None:
        """Forget everything that arrived."""
        size = self.span, self.cores, np.int32
        self.packets = Schedule(*size)
        self.synops = {kind: Schedule(*size) for kind in self.kinds}

    def land(self, steps: int, arrivals: Sequence[Arrivals]) -> Received:
        """Take in what all sources sent in a batch; what arrived in the steps that are complete."""
        everywhere = slice(None)
        packets = [(self._late(a), everywhere, a.packets) for a in arrivals]
        synops = {
            kind: [
                (self._late(a), everywhere, values)
                for a in arrivals
                for number, values in a.synops.items()
                if self.connections[number].synapses.kind == kind
            ]
            for kind in self.kinds
        }
        return Received(
            self.packets.land(steps, packets),
            {kind: self.synops[kind].land(steps, parts) for kind, parts in synops.items()},
        )

    def _late(self, arrivals: Arrivals) -> int:
        return self.depths[arrivals.source] - self.first

    @property
    def open(self) -> Received:
        """What arrived in the ``span`` steps that are not complete."""
        return Received(
            self.packets.open, {kind: landing.open for kind, landing in self.synops.items()}
        )


@dataclass(frozen=True)
class Taken:
    """A batch on a chip: what populations did by logical step, and received by physical step.

    ``did`` are the sums [S] over the cores of each population, ``load`` [S] the packets of the busiest link
    in the physical steps that the batch completes.
    """

    layers: dict[str, LayerWork]
    did: dict[str, dict[str, Int64]]
    received: dict[str, Received]
    load: Float


class OnChip:
    """A network on one chip: its events by core and link, as they come in.

    Raises ValueError for a network whose populations no chip can run in step.
    """

    def __init__(
        self, network: IntegerNetwork, chip: Chip, placed: Placement | None = None
    ) -> None:
        placed = placed or placement.of(network, chip)
        if placed is None:
            raise ValueError(f"{chip.name} has no cores")
        self.chip, self.placed, self.network = chip, placed, network
        self.mesh = Mesh(chip, placed.cores)
        self.depth = depths(network)
        self.neurons = {
            name: np.array(placed.layers[name].blocks, np.int64) for name in network.by_name
        }
        self.inboxes = {n: Inbox(network, n, len(on)) for n, on in self.neurons.items()}
        self.reset()

    def reset(self) -> None:
        """Forget everything added."""
        self.done = {
            name: {what: np.zeros(len(on), np.int64) for what in DOES}
            for name, on in self.neurons.items()
        }
        self.packets_in = {name: np.zeros(len(on), np.int64) for name, on in self.neurons.items()}
        self.synops = {
            name: {kind: np.zeros(len(on), np.int64) for kind in self.inboxes[name].kinds}
            for name, on in self.neurons.items()
        }
        self.link_packets = {name: np.zeros(self.mesh.links, np.int64) for name in self.neurons}
        self.from_host = self.samples = 0
        for inbox in self.inboxes.values():
            inbox.reset()
        self.carrying = np.zeros(0, np.int64)
        self.schedule = Schedule(self.network.hops, 0)

    def take(self, work: BatchWork) -> Taken:
        """Add the work of a batch."""
        steps = len(next(iter(work.events.values())))
        self.samples += steps // self.network.timesteps
        did, received = {}, {}
        for name, layer in work.layers.items():
            did[name] = {w: _added(getattr(layer, w), self.done[name][w]) for w in DOES}
            self.link_packets[name][layer.link_ids] += layer.links.sum(axis=1, dtype=np.int64)
            arrivals = [a for a in work.arrivals if a.target == name]
            for a in arrivals:
                self.packets_in[name] += a.packets.sum(axis=1, dtype=np.int64)
                for number, synops in a.synops.items():
                    kind = self.network.connections[number].synapses.kind
                    self.synops[name][kind] += synops.sum(axis=1, dtype=np.int64)
            received[name] = self.inboxes[name].land(steps, arrivals)
        self.from_host += sum(
            int(a.packets.sum()) for a in work.arrivals if a.source in self.network.inputs
        )
        if not len(self.carrying):  # The same for every batch, and few of all links.
            ids = [layer.link_ids for layer in work.layers.values()]
            self.carrying = np.unique(np.concatenate(ids))
            self.schedule = Schedule(self.network.hops, len(self.carrying))
        loads = self.schedule.land(
            steps,
            (
                (self.depth[n], np.searchsorted(self.carrying, did.link_ids), did.links)
                for n, did in work.layers.items()
            ),
        )
        return Taken(work.layers, did, received, loads.max(axis=0, initial=0))

    def traffic(self) -> Traffic:
        """Everything added so far."""
        names, readout = tuple(self.neurons), self.network.readout
        sent = int(self.done[readout.source]["spikes"].sum())
        received = {n: np.sum([*by_kind.values()], axis=0) for n, by_kind in self.synops.items()}
        return Traffic(
            placed=self.placed,
            mesh=self.mesh,
            layers=names,
            neurons=self._by_core(self.neurons),
            **{what: self._by_core({n: self.done[n][what] for n in names}) for what in DOES},
            synops=self._by_core(received),
            packets_in=self._by_core(self.packets_in),
            link_packets=np.sum([*self.link_packets.values()], axis=0),
            in_from_host=self.from_host,
            out_to_host=sent if readout.by_spikes else 0,
            host_reads=unpriced.reads(self.network) * self.samples,
        )

    def _by_core(self, values: dict[str, Int64]) -> Int64:
        """Values [G] of every population as one array [cores]."""
        found = np.zeros(self.placed.cores, np.int64)
        for name, on in self.placed.layers.items():
            found[on.first_core : on.first_core + on.cores] = values[name]
        return found


def depths(network: IntegerNetwork) -> dict[str, int]:
    """The depth of every input and population. Raises ValueError where no depths serve."""
    if network.depth is None:
        raise ValueError("no chip can run these populations in step")
    return network.depth


def _added(events: NDArray[Any], by_core: Int64) -> Int64:
    """Add events [G, S] to ``by_core`` [G]; their sums [S] over the cores."""
    by_step = np.zeros(events.shape[1], np.int64)
    kernels.add_up(events, by_core, by_step)
    return by_step
