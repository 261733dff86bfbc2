"""Energy and time of a run by the energy models of ``chips/*.toml``, exact for every core and step.

Per physical step and core (SANA-FE's "simple" schedule): generating takes
G = always*neurons + active*U + spike*F + out*packets, receiving R = in*packets + synop*S. The network
takes as long as its busiest link is occupied and a packet of the longest way travels. A step lasts as
long as the largest of all G, all R and the network, and the barrier.

Layer i of 0..D-1 updates its neurons for logical step k in physical step k + i + 1, and receives what
they need in the step before, in which the layer before it sends: N samples of T steps take N*T + D.
Its recurrent input for step k + 1 is sent, and received, in the step of its update for k.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stl_deploy.chips import facts as chips
from stl_deploy.chips import placement
from stl_deploy.chips.facts import Chip, Profile
from stl_deploy.hw_sim.account import kernels
from stl_deploy.hw_sim.account.mesh import Link, Mesh
from stl_deploy.hw_sim.account.work import LayerWork, Work
from stl_deploy.hw_sim.reference import Trace
from stl_deploy.ir.kinds import entry
from stl_deploy.ir.chain import Layer
from stl_deploy.ir.network import IntegerNetwork
from stl_deploy.ir.notes import Placement
from stl_deploy.ir.synapses import IntArray

Float = NDArray[np.float64]
Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
Sums = dict[str, Int64]

COUNTERS = ("active", "spikes", "synops", "packets_in", "packets_out")
EVENTS = ("neuron update", "neuron spike", "synop", "packet out", "packet in", "hop")
PARTS = ("generate", "receive", "network")


@dataclass(frozen=True)
class Traffic:
    """Events of every core and link of one chip, summed over all samples and steps of a run.

    Integers [cores], cores as placement numbers them; ``link_packets`` [links] as ``Mesh`` numbers
    them. ``in_from_host`` and ``out_to_host`` are packets that cross the chip's edge.
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

    def layer_of(self, core: int) -> str:
        """The name of the layer that lies on a core."""
        return next(
            name for name, on in self.placed.layers.items() if core < on.first_core + on.cores
        )

    @property
    def links(self) -> list[tuple[Link, int]]:
        """The links that carried anything, and how many packets, the busiest first."""
        used = np.flatnonzero(self.link_packets)
        order = used[np.argsort(-self.link_packets[used], kind="stable")]
        return [(self.mesh.link(int(n)), int(self.link_packets[n])) for n in order]


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
    the energy model assumes without a published source.
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

    Use ``cores`` for ``reference.run`` and ``add`` on each batch, in order.
    """

    def __init__(self, network: IntegerNetwork, energy_model: str | None = None) -> None:
        known = chips.profiles(chips.of(network))
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
        """For each layer a number for each neuron that tells its core on every chip."""
        return self.work.cores

    def reset(self) -> None:
        """Forget everything added."""
        for on in self.chips.values():
            on.reset()
        for meter in self.meters.values():
            meter.reset()

    def add(self, inputs: IntArray, trace: Trace) -> list[LayerWork]:
        """Count and price one batch: its inputs [N, T, ...] and what the network did with them.

        Returns the work of each layer by the cores of one of the chips.
        """
        return self.take(self.work.count(inputs, trace))

    def take(self, works: list[list[LayerWork]]) -> list[LayerWork]:
        """Price what ``work.count`` found in a batch."""
        for on, layers in zip(self.chips.values(), works, strict=True):
            taken = on.take(layers)
            for meter in self.meters.values():
                if meter.on is on:
                    meter.add(*taken)
        return works[0]

    def energies(self) -> dict[str, Energy]:
        """Energy and time by energy model, of everything added."""
        return {name: meter.energy(self.timesteps) for name, meter in self.meters.items()}


class OnChip:
    """A network on one chip: its events by core and link, as they come in."""

    def __init__(
        self, network: IntegerNetwork, chip: Chip, placed: Placement | None = None
    ) -> None:
        placed = placed or placement.of(network, chip)
        if placed is None:
            raise ValueError(f"{chip.name} has no cores")
        self.chip, self.placed, self.network = chip, placed, network
        self.mesh = Mesh(chip, placed.cores)
        self.neurons = [
            np.array(placed.layers[layer.name].blocks, np.int64) for layer in network.layers
        ]
        self.reset()

    def reset(self) -> None:
        """Forget everything added."""
        self.totals = {
            name: [np.zeros(len(n), np.int64) for n in self.neurons] for name in COUNTERS
        }
        self.link_packets = [np.zeros(self.mesh.links, np.int64) for _ in self.network.layers]
        self.from_host = 0
        # Packets and synops that each layer's last spikes cause on its own cores, in the next batch: [G, 1].
        self.pending: dict[int, tuple[Int32, Int32]] = {}
        self.schedule = Schedule(len(self.network.layers), self.mesh.links)

    def take(self, layers: list[LayerWork]) -> tuple[list[LayerWork], list[Sums], Float]:
        """Add the work of a batch.

        Returns it with recurrent packets and synops added to ``packets_in`` and ``synops`` one step later,
        the sums over cores for each layer, and the packets [S] of the busiest link in the steps that the
        batch completes.
        """
        self.from_host += int(layers[0].packets_in.sum())
        layers = [self._with_recurrent(i, work) for i, work in enumerate(layers)]
        sums: list[Sums] = []
        for i, work in enumerate(layers):
            sums.append({})
            for name in COUNTERS:
                sums[i][name] = np.zeros(len(work.inputs), np.int64)
                kernels.add_up(getattr(work, name), self.totals[name][i], sums[i][name])
            self.link_packets[i][work.link_ids] += work.links.sum(axis=1, dtype=np.int64)
        loads = self.schedule.land(
            len(layers[0].inputs),
            ((i + 1, work.link_ids, work.links) for i, work in enumerate(layers)),
        )
        return layers, sums, loads.max(axis=0)

    def _with_recurrent(self, i: int, work: LayerWork) -> LayerWork:
        """The work of layer ``i`` with its recurrent part, of which the last step is kept as pending."""
        if work.recurrent_packets is None or work.recurrent_synops is None:
            return work
        none = np.zeros((len(work.recurrent_synops), 1), np.int32)
        packets, synops = (
            np.concatenate([before, now], axis=1)
            for before, now in zip(
                self.pending.get(i, (none, none)),
                (work.recurrent_packets, work.recurrent_synops),
                strict=True,
            )
        )
        self.pending[i] = packets[:, -1:].copy(), synops[:, -1:].copy()
        return replace(
            work,
            packets_in=work.packets_in + packets[:, :-1],
            synops=work.synops + synops[:, :-1],
        )

    def total(self, name: str, i: int) -> Int64:
        """The events of layer ``i`` by core, those that are still pending included."""
        total = self.totals[name][i]
        if i in self.pending and name in ("packets_in", "synops"):
            packets, synops = self.pending[i]
            total = total + (packets if name == "packets_in" else synops)[:, 0]
        return total

    def traffic(self) -> Traffic:
        """Everything added so far."""
        layers = range(len(self.network.layers))
        events = {name: np.concatenate([self.total(name, i) for i in layers]) for name in COUNTERS}
        return Traffic(
            placed=self.placed,
            mesh=self.mesh,
            layers=tuple(layer.name for layer in self.network.layers),
            neurons=np.concatenate(self.neurons),
            **events,
            link_packets=np.sum(self.link_packets, axis=0),
            in_from_host=self.from_host,
            out_to_host=int(self.totals["spikes"][-1].sum()),
        )


class Schedule:
    """Lays rows of logical steps [S] onto physical steps, batch after batch.

    ``land`` returns the S physical steps that no later batch adds to; the last D stay in ``open``.
    """

    def __init__(self, hops: int, rows: int) -> None:
        self.open = np.zeros((rows, hops))

    def land(self, steps: int, parts: Iterable[tuple[int, Int64 | int, NDArray[Any]]]) -> Float:
        """Add each of ``parts``, (delay, which rows, values [rows, steps]); the complete steps."""
        total = np.concatenate([self.open, np.zeros((len(self.open), steps))], axis=1)
        for delay, rows, values in parts:
            total[rows, delay : delay + steps] += values
        self.open = total[:, steps:]
        return total[:, :steps]


class Meter:
    """Prices the work on one chip by one energy model.

    Raises LoweringError for synapses of a kind whose cost the model does not give.
    """

    def __init__(self, network: IntegerNetwork, on: OnChip, energy_model: Profile) -> None:
        self.on, self.energy_model, self.layers = on, energy_model, network.layers
        self.synop_ns, self.synop_pj = (
            [self._synop_cost(layer, table.model_dump()) for layer in network.layers]
            for table in (energy_model.synop_ns, energy_model.synop_pj)
        )
        self.first = np.array([[placed.first_core] for placed in on.placed.layers.values()])
        self.reset()

    def _synop_cost(self, layer: Layer, costs: dict[str, float]) -> float:
        """What a synop of ``layer`` costs, by how its synapses are stored."""
        who = f"energy model {self.energy_model.title!r}"
        return entry(costs, layer.synapses.kind, layer.name, who)

    def reset(self) -> None:
        """Forget everything added."""
        rows = len(self.layers)
        self.schedules = {field.name: Schedule(rows, rows) for field in fields(_Steps)}
        self.parts: list[tuple[Float, Int64, Int64, Float]] = []

    def add(self, layers: list[LayerWork], sums: list[Sums], load: Float) -> None:
        """Price one batch; ``load`` are the packets of the busiest link in the completed steps."""
        rows = [
            self._price(*each)
            for each in zip(range(len(layers)), layers, self.on.neurons, sums, strict=True)
        ]
        landed = {
            name: schedule.land(
                len(load),
                (
                    (i + (name not in RECEIVING), i, getattr(steps, name))
                    for i, steps in enumerate(rows)
                ),
            )
            for name, schedule in self.schedules.items()
        }
        self.parts.append(self._settle(landed, load))

    def _price(self, i: int, work: LayerWork, neurons: Int64, sums: Sums) -> _Steps:
        """What each logical step of layer ``i`` takes, in ns and pJ."""
        p, steps = self.energy_model, len(work.inputs)
        generate, way, sent = np.zeros((3, steps))
        slowest = np.zeros(steps, np.int64)
        kernels.slowest(
            p.update_ns.always * neurons,
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
        return _Steps(
            generate=generate,
            generate_core=slowest,
            way=way,
            sent_pj=p.update_pj.active * sums["active"]
            + p.update_pj.spike * sums["spikes"]
            + p.packet_pj.out * sums["packets_out"]
            + sent,
            **self._received(i, work.packets_in, work.synops, sums["packets_in"], sums["synops"]),
        )

    def _received(
        self, i: int, packets: Int32, synops: Int32, all_packets: Int64, all_synops: Int64
    ) -> dict[str, NDArray[Any]]:
        """The entries of RECEIVING for packets and synops [G, S] of layer ``i`` and their sums [S]."""
        p = self.energy_model
        ns, core = np.zeros(len(all_packets)), np.zeros(len(all_packets), np.int64)
        costs = np.array([p.packet_ns.in_, self.synop_ns[i], 0.0])
        kernels.slowest(np.zeros(len(packets)), costs, (packets, synops, synops), ns, core)
        pj = p.packet_pj.in_ * all_packets + self.synop_pj[i] * all_synops
        return {"receive": ns, "receive_core": core, "received_pj": pj}

    def _open(self) -> dict[str, Float]:
        """The steps that no batch completed, with what is still pending."""
        steps = {name: schedule.open.copy() for name, schedule in self.schedules.items()}
        for i, pending in self.on.pending.items():
            sums = (events.sum(axis=0, dtype=np.int64) for events in pending)
            for name, values in self._received(i, *pending, *sums).items():
                steps[name][i, i] += values[0]
        return steps

    def _settle(self, landed: dict[str, Float], load: Float) -> tuple[Float, Int64, Int64, Float]:
        """Of physical steps: ns without the barrier, the part of PARTS and the core, and pJ."""
        largest = np.array([[n.max()] for n in self.on.neurons])
        steps = np.arange(len(load))
        # Neurons are updated also while their layer has no sample to work on.
        generate = np.maximum(landed["generate"], self.energy_model.update_ns.always * largest)
        idle = np.array([[int(n.argmax())] for n in self.on.neurons])
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
        always = self.energy_model.update_pj.always * sum(int(n.sum()) for n in self.on.neurons)
        energy = landed["sent_pj"].sum(axis=0) + landed["received_pj"].sum(axis=0) + always
        return candidates[part, steps], part, core[part, steps], energy

    def energy(self, timesteps: int) -> Energy:
        """Energy and time of everything added."""
        last = self._settle(self._open(), self.on.schedule.open.max(axis=0))
        settled = zip(*self.parts, last, strict=True)
        ns, part, core, pj = (np.concatenate(each) for each in settled)
        placed, chip = self.on.placed, self.on.chip
        seconds = 1e-9 * ns + self.energy_model.barrier.seconds(placed.tiles)
        samples = (len(seconds) - len(self.layers)) // timesteps
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
            latency_s=float(seconds.mean()) * (timesteps + len(self.layers)),
            per_step_s=_means(seconds, phase),
            per_step_j=_means(1e-12 * pj, phase),
            bounds=tuple(_bounds(part, core, np.zeros_like(phase), traffic)[0]),
            step_bounds=tuple(of[0] for of in _bounds(part, core, phase, traffic)),
            series_s=seconds,
            series_j=1e-12 * pj,
            traffic=traffic,
            cores=placed.cores,
            beyond=tuple(map(str, placed.beyond)),
            extrapolation=self.energy_model.extrapolation,
        )

    def _by_layer_event(self, steps: int, samples: int) -> dict[str, dict[str, float]]:
        """Joules per inference by layer and event, from the totals."""
        p, on = self.energy_model, self.on
        east_west = on.mesh.east_west
        table = {}
        for i, layer in enumerate(self.layers):
            events = {name: int(on.total(name, i).sum()) for name in COUNTERS}
            across = int(on.link_packets[i][east_west].sum())
            along = int(on.link_packets[i][~east_west].sum())
            picojoules = (
                p.update_pj.always * layer.neurons * steps + p.update_pj.active * events["active"],
                p.update_pj.spike * events["spikes"],
                self.synop_pj[i] * events["synops"],
                p.packet_pj.out * events["packets_out"],
                p.packet_pj.in_ * events["packets_in"],
                p.hop_pj.east_west * across + p.hop_pj.north_south * along,
            )
            joules = (1e-12 * pj / samples for pj in picojoules)
            table[layer.name] = dict(zip(EVENTS, joules, strict=True))
        return table


@dataclass(frozen=True)
class _Steps:
    """What the logical steps [S] of a layer take: ns of its slowest core and which, and pJ.

    ``way`` is the time of the longest way that a packet of the layer travels.
    """

    generate: Float
    generate_core: Int64
    receive: Float
    receive_core: Int64
    way: Float
    sent_pj: Float
    received_pj: Float


# These happen in the physical step in which the layer before sends, the others one later.
RECEIVING = ("receive", "receive_core", "received_pj")


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
