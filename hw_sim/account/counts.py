"""Event counts of a run: spikes, synaptic operations and neuron updates, per layer, sample and step.

One synop is one spike meeting one stored, non-zero, in-bounds synapse. A neuron is updated in every
physical step; it is *active* in those steps where it has anything to compute (what is left of its
state, input or bias is not zero).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stl_deploy.hw_sim.account.work import LayerWork
from stl_deploy.hw_sim.reference import Trace
from stl_deploy.ir.network import IntegerNetwork

Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class LayerCounts:
    """Counts of one layer, int64 [N, T] each, at logical (hop-aligned) steps.

    ``inputs`` are the events that reach the layer from before it, ``overflow`` the neuron steps outside a
    register. ``recurrent`` are those of the synops that recurrent synapses cause; they count in the step of
    the spike, one before the neurons receive it.
    """

    name: str
    neurons: int
    inputs: Int64
    synops: Int64
    recurrent: Int64
    active: Int64
    spikes: Int64
    overflow: Int64


@dataclass(frozen=True)
class Counts:
    """Counts of all layers over N samples of T steps, and the predicted classes [N]."""

    layers: tuple[LayerCounts, ...]
    predictions: Int64

    @property
    def samples(self) -> int:
        """N."""
        return len(self.predictions)

    @property
    def timesteps(self) -> int:
        """T."""
        return int(self.layers[0].spikes.shape[1])

    @property
    def hops(self) -> int:
        """D: every weight layer and every OR pool delays by one physical step."""
        return len(self.layers)

    @property
    def physical_steps(self) -> int:
        """Samples follow each other without a gap: N*T steps, and D more until the last has left."""
        return self.samples * self.timesteps + self.hops

    @property
    def overflows(self) -> dict[str, int]:
        """Layers with overflow, and how often."""
        return {c.name: n for c in self.layers if (n := int(c.overflow.sum()))}


class Counter:
    """Adds up counts batch by batch; use ``add`` on each, in order."""

    def __init__(self, network: IntegerNetwork) -> None:
        self.network = network
        self.reset()

    def reset(self) -> None:
        """Forget everything added."""
        self.parts: list[Counts] = []

    def add(self, work: Sequence[LayerWork], trace: Trace) -> None:
        """Take in one batch: the work of each layer, and what the network did."""
        layers = []
        for layer, done in zip(self.network.layers, work, strict=True):
            did = trace.layers[layer.name]
            size, arrived = did.active.shape, done.synops.sum(axis=0, dtype=np.int64)
            own = np.zeros_like(arrived)
            if done.recurrent_synops is not None:
                own = done.recurrent_synops.sum(axis=0, dtype=np.int64)
            layers.append(
                LayerCounts(
                    name=layer.name,
                    neurons=layer.neurons,
                    inputs=done.inputs.reshape(size),
                    synops=(arrived + own).reshape(size),
                    recurrent=own.reshape(size),
                    active=did.active,
                    spikes=done.spikes.sum(axis=0, dtype=np.int64).reshape(size),
                    overflow=did.overflow,
                )
            )
        self.parts.append(Counts(tuple(layers), trace.predictions))

    def total(self) -> Counts:
        """All batches as one."""
        fields = ("inputs", "synops", "recurrent", "active", "spikes", "overflow")
        layers = tuple(
            LayerCounts(
                first.name,
                first.neurons,
                **{
                    f: np.concatenate([getattr(p.layers[i], f) for p in self.parts]) for f in fields
                },
            )
            for i, first in enumerate(self.parts[0].layers)
        )
        return Counts(layers, np.concatenate([p.predictions for p in self.parts]))
