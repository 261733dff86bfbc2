"""Energy and time of a run by the energy models of ``chips/*.toml``, exact for every core and step.

Per physical step and core (SANA-FE's "simple" schedule): generating takes
G = always*neurons + active*U + spike*F + out*packets, receiving R = in*packets + synop*S. The network
takes as long as its busiest link is occupied and a packet of the longest way travels. A step lasts as
long as the largest of all G, all R and the network, and the barrier.

A population of depth d updates its neurons for logical step k in physical step k + d, and its packets are
sent, received and looked up in the synapses' memory in that same step; those of inputs, which are at depth
0, in step k. Where a synapse has a delay, its weight waits at the target's core: the synop has been paid for.
N samples of T steps take N*T + D steps, D being the depth of the deepest population.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stl_deploy.chips import facts as chips
from stl_deploy.chips.facts import Profile
from stl_deploy.errors import LoweringError, Problem
from stl_deploy.hw_sim.account import kernels, unpriced
from stl_deploy.hw_sim.account.traffic import OnChip, Received, Schedule, Taken, Traffic
from stl_deploy.hw_sim.account.unpriced import Unpriced
from stl_deploy.hw_sim.account.work import BatchWork, LayerWork, Work
from stl_deploy.hw_sim.reference import Trace
from stl_deploy.ir import order
from stl_deploy.ir.kinds import entry
from stl_deploy.ir.network import IntegerNetwork, Raster
from stl_deploy.ir.synapses import IntArray

Float = NDArray[np.float64]
Int64 = NDArray[np.int64]

EVENTS = ("neuron update", "neuron spike", "synop", "packet out", "packet in", "hop")
PARTS = ("generate", "receive", "network")
# How synapses are stored that a chip's energy models give no cost of their own.
STORED_AS = {"one_to_one": "sparse"}


@dataclass(frozen=True)
class Bound:
    """What the time of some steps hung on: a part of the work of a core, or the network."""

    part: str
    core: int | None
    layer: str | None
    steps: int


@dataclass(frozen=True)
class Energy:
    """Per inference, in joules and seconds, mean over the samples of a run.

    ``static_j`` takes the middle of the measured range ``static_range_j`` of static power, None where
    none is known; ``latency_s`` covers T + D steps. ``per_step_s`` and ``per_step_j`` (dynamic) are
    means over the physical steps t, t + T, ... for t = 0..T-1; ``step_bounds`` what bound most of each
    of them, ``bounds`` what bound steps at all, the most frequent first. ``series_s`` and ``series_j``
    are the time and the dynamic energy of every physical step [N*T + D]. ``beyond`` lists what no core
    of that chip could hold: the figures are then those of larger cores. ``extrapolation`` says what
    the energy model assumes without a published source, ``unpriced`` what it has no figure for.
    """

    by_event_j: dict[str, float]
    by_layer_j: dict[str, float]
    by_layer_event_j: dict[str, dict[str, float]]
    static_j: float | None
    static_range_j: tuple[float, float] | None
    time_s: float
    latency_s: float
    per_step_s: tuple[float, ...]
    per_step_j: tuple[float, ...]
    bounds: tuple[Bound, ...]
    step_bounds: tuple[Bound, ...]
    series_s: Float
    series_j: Float
    traffic: Traffic
    cores: int
    unpriced: Unpriced
    beyond: tuple[str, ...] = ()
    extrapolation: str | None = None

    @property
    def dynamic_j(self) -> float:
        """Sum over events."""
        return sum(self.by_event_j.values())

    @property
    def total_j(self) -> float:
        """Dynamic and static; no energy model covers I/O."""
        return self.dynamic_j + (self.static_j or 0.0)


class Assessment:
    """Adds up work batch by batch, then prices it: by every energy model, or by one.

    Use ``cores`` for ``reference.run`` and ``add`` on each batch, in order. A network whose populations no
    chip can run in step has counts, and no energies. Raises LoweringError where one was asked for by name.
    """

    def __init__(self, network: IntegerNetwork, energy_model: str | None = None) -> None:
        problem = unscheduled(network)
        if problem is not None and energy_model is not None:
            raise LoweringError(problem)
        known = {} if problem is not None else chips.profiles(chips.of(network))
        wanted = {n: p for n, p in known.items() if energy_model in (None, n)}
        self.timesteps = network.timesteps
        # Placing takes seconds where the network is large: once per chip, not once per energy model.
        self.chips = {
            name: OnChip(network, chip)
            for name, chip in {chip.name: chip for chip, _ in wanted.values()}.items()
        }
        self.work = Work(network, [(on.placed, on.mesh) for on in self.chips.values()])
        self.meters = {
            name: Meter(network, self.chips[chip.name], facts)
            for name, (chip, facts) in wanted.items()
        }

    @property
    def cores(self) -> dict[str, IntArray]:
        """For each population a number for each neuron that tells its core on every chip."""
        return self.work.cores

    def reset(self) -> None:
        """Forget everything added."""
        for on in self.chips.values():
            on.reset()
        for meter in self.meters.values():
            meter.reset()

    def add(self, inputs: Raster, trace: Trace) -> BatchWork:
        """Count and price one batch: its inputs [N, T, ...] and what the network did with them.

        Returns the work by the cores of one of the chips.
        """
        return self.take(self.work.count(inputs, trace))

    def take(self, works: list[BatchWork]) -> BatchWork:
        """Price what ``work.count`` found in a batch."""
        for on, work in zip(
            self.chips.values(), works, strict=False
        ):  # one work also without a chip
            taken = on.take(work)
            for meter in self.meters.values():
                if meter.on is on:
                    meter.add(taken)
        return works[0]

    def energies(self) -> dict[str, Energy]:
        """Energy and time by energy model, of everything added."""
        return {name: meter.energy(self.timesteps) for name, meter in self.meters.items()}


def unscheduled(network: IntegerNetwork) -> Problem | None:
    """Why no chip can run the populations in step, and energy and time are unknown; None where one can."""
    if network.depth is not None:
        return None
    loops = []
    for part in network.parts:
        names = [population.name for population in part]
        ways = [
            (c.source, c.target, c.delay)
            for c in network.connections
            if c.source in names and c.target in names
        ]
        if order.depths([], names, ways) is None:
            loops.append(", ".join(names))
    return Problem(
        "; ".join(loops),
        "a loop of connections has fewer steps of delay than hops, so that no chip can run it in step; "
        "its energy and time are not estimated",
        "give its connections longer delays",
    )


class Meter:
    """Prices the work on one chip by one energy model.

    Raises LoweringError for synapses of a kind whose cost the model does not give.
    """

    def __init__(self, network: IntegerNetwork, on: OnChip, energy_model: Profile) -> None:
        self.on, self.energy_model, self.network = on, energy_model, network
        self.names = list(network.by_name)
        self.synop_ns = self._synop_costs(energy_model.synop_ns.model_dump())
        self.synop_pj = self._synop_costs(energy_model.synop_pj.model_dump())
        self.first = np.array([[on.placed.layers[name].first_core] for name in self.names])
        self.reset()

    def _synop_costs(self, costs: dict[str, float]) -> dict[str, float]:
        """What a synop of each kind of synapses costs that the network has."""
        who = f"energy model {self.energy_model.title!r}"
        known = costs | {kind: costs[stored] for kind, stored in STORED_AS.items()}
        found: dict[str, float] = {}
        for c in self.network.connections:
            found[c.synapses.kind] = entry(known, c.synapses.kind, c.name, who)
        return found

    def reset(self) -> None:
        """Forget everything added."""
        rows = len(self.names)
        self.schedules = {
            field.name: Schedule(self.network.hops, rows)
            for table in (_Generated, _Receipt)
            for field in fields(table)
        }
        self.parts: list[tuple[Float, Int64, Int64, Float]] = []

    def add(self, taken: Taken) -> None:
        """Price one batch."""
        on, steps = self.on, len(taken.load)
        parts: dict[str, list[tuple[int, int, NDArray[Any]]]] = {n: [] for n in self.schedules}
        for row, name in enumerate(self.names):
            generated = self._generated(name, taken.layers[name], taken.did[name])
            for what, values in vars(generated).items():
                parts[what].append((on.depth[name], row, values))
            receipt = self._receipt(taken.received[name])
            for what, values in vars(receipt).items():
                parts[what].append((on.inboxes[name].first, row, values))
        landed = {n: schedule.land(steps, parts[n]) for n, schedule in self.schedules.items()}
        self.parts.append(self._settle(landed, taken.load))

    def _generated(self, name: str, work: LayerWork, sums: dict[str, Int64]) -> _Generated:
        """What each logical step of a population takes, in ns and pJ."""
        p, steps = self.energy_model, work.spikes.shape[1]
        generate, way, sent = np.zeros((3, steps))
        slowest = np.zeros(steps, np.int64)
        kernels.slowest(
            p.update_ns.always * self.on.neurons[name],
            np.array([p.update_ns.active, p.update_ns.spike, p.packet_ns.out]),
            (work.active, work.spikes, work.packets_out),
            generate,
            slowest,
        )
        kernels.travel(
            work.ways @ [p.hop_ns.east_west, p.hop_ns.north_south],
            work.ways @ [p.hop_pj.east_west, p.hop_pj.north_south],
            work.sent,
            way,
            sent,
        )
        return _Generated(
            generate=generate,
            generate_core=slowest,
            way=way,
            sent_pj=p.update_pj.active * sums["active"]
            + p.update_pj.spike * sums["spikes"]
            + p.packet_pj.out * sums["packets_out"]
            + sent,
        )

    def _receipt(self, received: Received) -> _Receipt:
        """What receiving takes in each physical step, in ns and pJ."""
        p, (cores, steps) = self.energy_model, received.packets.shape
        counts = tuple(
            np.ascontiguousarray(events) for events in (received.packets, *received.synops.values())
        )
        ns, core = np.zeros(steps), np.zeros(steps, np.int64)
        costs_ns = [p.packet_ns.in_, *(self.synop_ns[kind] for kind in received.synops)]
        kernels.slowest(np.zeros(cores), np.array(costs_ns), counts, ns, core)
        costs_pj = [p.packet_pj.in_, *(self.synop_pj[kind] for kind in received.synops)]
        pj = np.zeros(steps)
        for cost, events in zip(costs_pj, counts, strict=True):
            pj += cost * events.sum(axis=0, dtype=np.int64)
        return _Receipt(receive=ns, receive_core=core, received_pj=pj)

    def _open(self) -> dict[str, Float]:
        """The steps that no batch completed, with what is still on its way."""
        steps = {name: schedule.open.copy() for name, schedule in self.schedules.items()}
        for row, name in enumerate(self.names):
            inbox = self.on.inboxes[name]
            for what, values in vars(self._receipt(inbox.open)).items():
                steps[what][row, inbox.first : inbox.first + inbox.span] += values
        return steps

    def _settle(self, landed: dict[str, Float], load: Float) -> tuple[Float, Int64, Int64, Float]:
        """Of physical steps: ns without the barrier, the part of PARTS and the core, and pJ."""
        largest = np.array([[n.max()] for n in self.on.neurons.values()])
        steps = np.arange(len(load))
        # Neurons are updated also while their layer has no sample to work on.
        generate = np.maximum(landed["generate"], self.energy_model.update_ns.always * largest)
        idle = np.array([[int(n.argmax())] for n in self.on.neurons.values()])
        generate_core = np.where(landed["generate"] > 0, landed["generate_core"], idle) + self.first
        layer = np.stack([generate.argmax(axis=0), landed["receive"].argmax(axis=0)])
        core = np.stack(
            [
                generate_core[layer[0], steps],
                (landed["receive_core"] + self.first)[layer[1], steps],
                np.full(len(steps), -1),
            ]
        ).astype(np.int64)
        network = self.energy_model.link_ns * load + landed["way"].max(axis=0)
        candidates = np.stack([generate.max(axis=0), landed["receive"].max(axis=0), network])
        part = candidates.argmax(axis=0)
        always = self.energy_model.update_pj.always * sum(
            int(n.sum()) for n in self.on.neurons.values()
        )
        energy = landed["sent_pj"].sum(axis=0) + landed["received_pj"].sum(axis=0) + always
        return candidates[part, steps], part, core[part, steps], energy

    def energy(self, timesteps: int) -> Energy:
        """Energy and time of everything added."""
        last = self._settle(self._open(), self.on.schedule.open.max(axis=0, initial=0))
        settled = zip(*self.parts, last, strict=True)
        ns, part, core, pj = (np.concatenate(each) for each in settled)
        placed, chip = self.on.placed, self.on.chip
        seconds = 1e-9 * ns + self.energy_model.barrier.seconds(placed.tiles)
        samples = (len(seconds) - self.network.hops) // timesteps
        by_layer_event = self._by_layer_event(len(seconds), samples)
        total = float(seconds.sum()) / samples
        watt = None if chip.static is None else chip.static.watt(placed.cores, placed.chips)
        static = None if watt is None else (watt[0] * total, watt[1] * total)
        traffic = self.on.traffic()
        phase = np.arange(len(seconds)) % timesteps
        return Energy(
            by_event_j={e: sum(part[e] for part in by_layer_event.values()) for e in EVENTS},
            by_layer_j={name: sum(part.values()) for name, part in by_layer_event.items()},
            by_layer_event_j=by_layer_event,
            static_j=None if static is None else sum(static) / 2,
            static_range_j=static,
            time_s=total,
            latency_s=float(seconds.mean()) * (timesteps + self.network.hops),
            per_step_s=_means(seconds, phase),
            per_step_j=_means(1e-12 * pj, phase),
            bounds=tuple(_bounds(part, core, np.zeros_like(phase), traffic)[0]),
            step_bounds=tuple(of[0] for of in _bounds(part, core, phase, traffic)),
            series_s=seconds,
            series_j=1e-12 * pj,
            traffic=traffic,
            cores=placed.cores,
            unpriced=unpriced.of(self.network, chip),
            beyond=tuple(map(str, placed.beyond)),
            extrapolation=self.energy_model.extrapolation,
        )

    def _by_layer_event(self, steps: int, samples: int) -> dict[str, dict[str, float]]:
        """Joules per inference by layer and event, from the totals."""
        p, on = self.energy_model, self.on
        east_west = on.mesh.east_west
        table = {}
        for name, did in on.done.items():
            events = {what: int(by_core.sum()) for what, by_core in did.items()}
            across = int(on.link_packets[name][east_west].sum())
            along = int(on.link_packets[name][~east_west].sum())
            neurons = int(on.neurons[name].sum())
            synops = {kind: int(by_core.sum()) for kind, by_core in on.synops[name].items()}
            picojoules = (
                p.update_pj.always * neurons * steps + p.update_pj.active * events["active"],
                p.update_pj.spike * events["spikes"],
                sum(self.synop_pj[kind] * n for kind, n in synops.items()),
                p.packet_pj.out * events["packets_out"],
                p.packet_pj.in_ * int(on.packets_in[name].sum()),
                p.hop_pj.east_west * across + p.hop_pj.north_south * along,
            )
            joules = (1e-12 * pj / samples for pj in picojoules)
            table[name] = dict(zip(EVENTS, joules, strict=True))
        return table


@dataclass(frozen=True)
class _Generated:
    """What the logical steps [S] of a population take: ns of its slowest core and which, and pJ.

    ``way`` is the time of the longest way that a packet of the population travels.
    """

    generate: Float
    generate_core: Int64
    way: Float
    sent_pj: Float


@dataclass(frozen=True)
class _Receipt:
    """What receiving takes in each physical step: ns of the slowest core and which, and pJ."""

    receive: Float
    receive_core: Int64
    received_pj: Float


def _bounds(part: Int64, core: Int64, phase: Int64, traffic: Traffic) -> list[list[Bound]]:
    """For each phase what bound its steps and how many of them, the most frequent first."""
    cores = traffic.placed.cores + 1
    found, steps = np.unique((phase * len(PARTS) + part) * cores + core + 1, return_counts=True)
    names = [n for n, on in traffic.placed.layers.items() for _ in range(on.cores)]
    bounds: list[list[Bound]] = [[] for _ in range(int(phase.max()) + 1)]
    for which in np.lexsort((found, -steps)).tolist():
        rest, at = divmod(int(found[which]), cores)
        of, p = divmod(rest, len(PARTS))
        on = None if at == 0 else at - 1
        layer = None if on is None else names[on]
        bounds[of].append(Bound(PARTS[p], on, layer, int(steps[which])))
    return bounds


def _means(series: Float, phase: Int64) -> tuple[float, ...]:
    """The mean of ``series`` over the steps of each phase."""
    means: list[float] = (np.bincount(phase, series) / np.bincount(phase)).tolist()
    return tuple(means)
