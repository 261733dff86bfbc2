"""Event counts of a run: spikes, synaptic operations and neuron updates, per layer, sample and step.

One synop is one spike meeting one stored, non-zero, in-bounds synapse. A neuron is updated in every
physical step; it is *active* in those steps where it has anything to compute (what is left of its
state, input or bias is not zero).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from stl_deploy.hw_sim import kernels
from stl_deploy.hw_sim.reference import Trace
from stl_deploy.network import IntArray, IntegerNetwork, in_bounds_synapses, recurrent_synapses

Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class LayerCounts:
    """Counts of one layer, int64 [N, T] each, at logical (hop-aligned) steps.

    ``inputs`` are the events that reach the layer from before it, ``overflow`` the neuron steps outside a
    register. ``recurrent`` are those of the synops that are; they count in the step of the spike, one
    before it is heard.
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
        self.fan_out = {layer.name: in_bounds_synapses(layer) for layer in network.layers}
        self.own = {layer.name: recurrent_synapses(layer) for layer in network.layers}
        self.parts: list[Counts] = []

    def add(self, raster: IntArray, trace: Trace) -> None:
        """Count one batch: its input [N, T, ...] and what the network did with it."""
        inputs: IntArray = raster
        layers = []
        for layer in self.network.layers:
            did = trace.layers[layer.name]
            events, synops = weighted_events(inputs, self.fan_out[layer.name])
            own = np.zeros_like(synops)
            if self.own[layer.name].any():
                own = weighted_events(did.spikes, self.own[layer.name])[1]
            layers.append(
                LayerCounts(
                    name=layer.name,
                    neurons=layer.neurons,
                    inputs=events,
                    synops=synops + own,
                    recurrent=own,
                    active=did.active,
                    spikes=np.zeros_like(events),
                    overflow=did.overflow,
                )
            )
            inputs = did.spikes
        # What one layer fires is what the next one gets.
        nothing = np.zeros(inputs.shape[2:], np.int64)
        fired = [layer.inputs for layer in layers[1:]] + [weighted_events(inputs, nothing)[0]]
        layers = [replace(layer, spikes=n) for layer, n in zip(layers, fired, strict=True)]
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


def weighted_events(x: IntArray, weight: Int64) -> tuple[Int64, Int64]:
    """Non-zero entries of x [N, T, *shape], and the sum of their ``weight`` [*shape]: [N, T] each."""
    if x.shape[2:] != weight.shape:
        x = x.reshape(*x.shape[:2], *weight.shape)
    # As x lies in memory, whatever the order of its axes.
    axes = sorted(range(weight.ndim), key=lambda axis: -x.strides[axis + 2])
    rows = x.transpose(0, 1, *(axis + 2 for axis in axes)).reshape(x.shape[0] * x.shape[1], -1)
    if rows.dtype != np.uint8:
        rows = (rows != 0).view(np.uint8)
    events, sums = np.empty((2, *x.shape[:2]), np.int64)
    kernels.weigh(
        np.require(rows, requirements=["C", "W"]),
        np.ascontiguousarray(weight.transpose(axes)).reshape(-1),
        events.reshape(-1),
        sums.reshape(-1),
    )
    return events, sums
