"""Energy and time of a run from a named profile of ``chips/*.toml``.

Per physical step and core (SANA-FE's "simple" schedule): generating takes
G = always*neurons + active*U + spike*F + out*packets, receiving R = in*packets + synop*S; a step
lasts as long as its slowest core's larger part, and the barrier. Cores and axons are those of the
placement on the profile's chip. A layer's events are spread evenly over its cores and axons: a spike
becomes as many packets as the layer's neurons have out-axons on average. Hops between tiles are not
counted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stl_deploy import placement
from stl_deploy.chip import Chip, Profile
from stl_deploy.hw_sim.counts import Counts
from stl_deploy.network import IntegerNetwork, Layer, OrPool, Placement

Float = NDArray[np.float64]


@dataclass(frozen=True)
class Energy:
    """Per inference, in joules and seconds, mean over the samples of a run.

    ``static_j`` takes the middle of the measured range of static power, None where none is known;
    ``latency_s`` covers T + D steps; ``per_step_s`` is the mean duration of the steps t = 0..T-1.
    ``beyond`` lists what no core of that chip could hold: the figures are then those of larger cores.
    """

    by_event_j: dict[str, float]
    by_layer_j: dict[str, float]
    static_j: float | None
    time_s: float
    latency_s: float
    per_step_s: tuple[float, ...]
    cores: int
    beyond: tuple[str, ...] = ()

    @property
    def dynamic_j(self) -> float:
        """Sum over events."""
        return sum(self.by_event_j.values())

    @property
    def total_j(self) -> float:
        """Dynamic and static; I/O is not part of any profile yet."""
        return self.dynamic_j + (self.static_j or 0.0)


def assess(network: IntegerNetwork, counts: Counts, chip: Chip, profile: Profile) -> Energy:
    """Energy and time of ``counts`` on ``chip`` by ``profile``."""
    cores = placement.of(network, chip)
    if cores is None:
        raise ValueError(f"{chip.name} has no cores")
    by_layer = {
        layer.name: _layer_energy(i, network, counts, profile, cores)
        for i, layer in enumerate(network.layers)
    }
    by_event = {
        event: sum(part[event] for part in by_layer.values()) / counts.samples
        for event in next(iter(by_layer.values()))
    }
    steps = _step_times(network, counts, profile, cores)
    total = float(steps.sum())
    phases = np.arange(len(steps)) % counts.timesteps
    static = None
    if chip.static is not None:
        low, high = chip.static.core_watt_low.value, chip.static.core_watt_high.value
        static = (low + high) / 2 * cores.cores * total / counts.samples
    return Energy(
        by_event_j=by_event,
        by_layer_j={n: sum(part.values()) / counts.samples for n, part in by_layer.items()},
        static_j=static,
        time_s=total / counts.samples,
        latency_s=float(steps.mean()) * (counts.timesteps + counts.hops),
        per_step_s=tuple(float(steps[phases == t].mean()) for t in range(counts.timesteps)),
        cores=cores.cores,
        beyond=tuple(map(str, cores.beyond)),
    )


def synop_cost(layer: Layer, table: object) -> float:
    """The entry of a profile's synop table for how ``layer`` stores its synapses."""
    kind = "conv" if isinstance(layer, OrPool) else layer.synapses.kind
    return float(getattr(table, kind))


def _packets_out(layer: Layer, cores: Placement) -> float:
    """Packets that a spike of ``layer`` becomes, one a core that it is sent to, on average."""
    return cores.layers[layer.name].total["out_axons"] / layer.neurons


def _packets_in(layer: Layer, cores: Placement) -> float:
    """Cores of ``layer`` that an event before it reaches, on average."""
    return cores.layers[layer.name].total["in_axons"] / math.prod(layer.input_shape)


def _layer_energy(
    i: int, network: IntegerNetwork, counts: Counts, profile: Profile, cores: Placement
) -> dict[str, float]:
    """Joules by event of layer ``i`` over all samples."""
    layer, did = network.layers[i], counts.layers[i]
    spikes = float(did.spikes.sum())
    return {
        "neuron update": 1e-12
        * (
            profile.update_pj.always * did.neurons * counts.physical_steps
            + profile.update_pj.active * float(did.active.sum())
        ),
        "neuron spike": 1e-12 * profile.update_pj.spike * spikes,
        "synop": 1e-12 * synop_cost(layer, profile.synop_pj) * float(did.synops.sum()),
        "packet out": 1e-12 * profile.packet_pj.out * spikes * _packets_out(layer, cores),
        "packet in": 1e-12
        * profile.packet_pj.in_
        * float(did.inputs.sum())
        * _packets_in(layer, cores),
    }


def _step_times(
    network: IntegerNetwork, counts: Counts, profile: Profile, cores: Placement
) -> Float:
    """Seconds of every physical step, float64 [N*T + D]."""
    slowest = np.zeros(counts.physical_steps)
    for i, (layer, did) in enumerate(zip(network.layers, counts.layers, strict=True)):
        n = cores.layers[layer.name].cores
        cost = profile.update_ns
        busy = (
            cost.active * _physical(did.active, i, counts)
            + cost.spike * _physical(did.spikes, i, counts)
            + profile.packet_ns.out * _physical(did.spikes, i, counts) * _packets_out(layer, cores)
        )
        generate = (cost.always * did.neurons + busy) / n
        receive = (
            profile.packet_ns.in_ * _packets_in(layer, cores) * _physical(did.inputs, i, counts)
            + synop_cost(layer, profile.synop_ns) * _physical(did.synops, i, counts)
        ) / n
        slowest = np.maximum(slowest, np.maximum(generate, receive))
    barrier = float(np.interp(cores.tiles, profile.barrier.tiles, profile.barrier.us))
    return slowest * 1e-9 + barrier * 1e-6


def _physical(logical: NDArray[np.int64], layer: int, counts: Counts) -> Float:
    """Counts [N, T] of the layer at hop ``layer`` on the physical schedule, float64 [N*T + D]."""
    series = np.zeros(counts.physical_steps)
    series[layer + 1 : layer + 1 + logical.size] = logical.reshape(-1)
    return series
