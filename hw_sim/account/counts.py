"""Event counts of a run: spikes, synaptic operations and neuron updates, per population, sample and step.

One synop is one spike meeting one stored, non-zero, in-bounds synapse. A neuron is updated in every
physical step; it is *active* in those steps where it has anything to compute (what is left of its
state, input or bias is not zero).
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from stl_deploy.hw_sim.account.work import BatchWork
from stl_deploy.hw_sim.reference import Trace
from stl_deploy.ir.network import IntegerNetwork

Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class LayerCounts:
    """Counts of one population, int64 [N, T] each, at logical (hop-aligned) steps.

    ``inputs`` are the events of its sources, itself left out, each counted once however many connections
    lead here from it; ``synops`` those of all its connections. Both count in the step of the spike that
    causes them, also where a delay lets it take effect later. ``overflow`` are the neuron steps outside a
    register.
    """

    name: str
    neurons: int
    inputs: Int64
    synops: Int64
    active: Int64
    spikes: Int64
    overflow: Int64


@dataclass(frozen=True)
class ConnectionCounts:
    """The synops of one connection, int64 [N, T], in the step of the spike that causes them."""

    name: str
    source: str
    target: str
    synops: Int64


@dataclass(frozen=True)
class Counts:
    """Counts over N samples of T steps, and the predicted classes [N].

    ``layers`` are the populations, ``connections`` in the order of the network's. ``hops`` is D, the depth of
    the deepest population; 0 for a network that no chip has a schedule for. ``readout_macs`` [N] are the
    non-zero votes that meet non-zero weights of the readout's matrix, 0 where it has none.
    """

    layers: tuple[LayerCounts, ...]
    connections: tuple[ConnectionCounts, ...]
    predictions: Int64
    readout_macs: Int64
    hops: int

    @property
    def samples(self) -> int:
        """N."""
        return len(self.predictions)

    @property
    def timesteps(self) -> int:
        """T."""
        return int(self.layers[0].spikes.shape[1])

    @property
    def physical_steps(self) -> int:
        """Samples follow each other without a gap: N*T steps, and D more until the last has left."""
        return self.samples * self.timesteps + self.hops

    @property
    def overflows(self) -> dict[str, int]:
        """Populations with overflow, and how often."""
        return {c.name: n for c in self.layers if (n := int(c.overflow.sum()))}


class Counter:
    """Adds up counts batch by batch; use ``add`` on each, in order."""

    def __init__(self, network: IntegerNetwork) -> None:
        self.network = network
        self.reset()

    def reset(self) -> None:
        """Forget everything added."""
        self.parts: list[Counts] = []

    def add(self, work: BatchWork, trace: Trace) -> None:
        """Take in one batch: its work on some chip, and what the network did."""
        network, size = self.network, next(iter(trace.layers.values())).active.shape
        synops = {
            number: by_core.sum(axis=0, dtype=np.int64).reshape(size)
            for arrivals in work.arrivals
            for number, by_core in arrivals.synops.items()
        }
        connections = tuple(
            ConnectionCounts(c.name, c.source, c.target, synops[number])
            for number, c in enumerate(network.connections)
        )
        layers = []
        for population in network.populations:
            name, did = population.name, trace.layers[population.name]
            into = [c for c in connections if c.target == name]
            sources = {c.source for c in into} - {name}
            layers.append(
                LayerCounts(
                    name=name,
                    neurons=population.size,
                    inputs=_sum([work.events[source].reshape(size) for source in sources], size),
                    synops=_sum([c.synops for c in into], size),
                    active=did.active,
                    spikes=work.events[name].reshape(size),
                    overflow=did.overflow,
                )
            )
        hops = 0 if network.depth is None else network.hops
        macs = network.readout.multiplications(trace.layers[network.readout.source].spikes)
        self.parts.append(Counts(tuple(layers), connections, trace.predictions, macs, hops))

    def total(self) -> Counts:
        """All batches as one."""
        first = self.parts[0]
        return Counts(
            tuple(map(_joined, zip(*(part.layers for part in self.parts), strict=True))),
            tuple(map(_joined, zip(*(part.connections for part in self.parts), strict=True))),
            np.concatenate([part.predictions for part in self.parts]),
            np.concatenate([part.readout_macs for part in self.parts]),
            first.hops,
        )


_Each = TypeVar("_Each", LayerCounts, ConnectionCounts)


def _joined(parts: tuple[_Each, ...]) -> _Each:
    """The counts of one population or connection in several batches as one."""
    arrays: dict[str, Any] = {
        field.name: np.concatenate([getattr(part, field.name) for part in parts])
        for field in fields(parts[0])
        if isinstance(getattr(parts[0], field.name), np.ndarray)
    }
    return replace(parts[0], **arrays)


def _sum(counts: list[Int64], size: tuple[int, ...]) -> Int64:
    """The sum of counts [N, T], zero where there are none."""
    return np.sum(counts, axis=0) if counts else np.zeros(size, np.int64)
