"""Small networks with their events counted by hand: core by core, link by link, step by step."""

from __future__ import annotations

import math
import tomllib
from collections import Counter, defaultdict
from dataclasses import replace
from importlib import resources
from itertools import pairwise

import numpy as np

from stl_deploy.chips import facts as chips
from stl_deploy.chips import placement
from stl_deploy.hw_sim import reference
from stl_deploy.ir.notes import LayerPlacement, Placement
from stl_deploy.ir.readouts import Readout
from stl_deploy.ir.synapses import Conv, Dense
from tests.build.nets import taken
from tests.build.networks import chain, lif, pool, recurrent
from tests.build.networks import weights as random_weights
from tests.build.wires import weights


def facts(chip):
    """The chip's file, as TOML and nothing more."""
    path = resources.files("stl_deploy.chips") / f"{chip}.toml"
    return tomllib.loads(path.read_text("utf-8"))


def drawn(rng, *shape):
    """Random weights, a third of them zero, which are stored but cost nothing."""
    return random_weights(rng, *shape, low=-20, high=40, zeros=0.33)


def tiny(timesteps=3):
    """Strided, padded, dilated, grouped convolution; pool; two dense layers, one with a bias."""
    rng = np.random.default_rng(7)
    conv = Conv(drawn(rng, 4, 1, 3, 2), (2, 1), (1, 2), (1, 2), 2)
    return chain(
        lif("lif1", conv, (2, 5, 4), (4, 3, 6), vth=25),
        pool((4, 3, 6), (3, 2)),
        lif("lif2", Dense(drawn(rng, 5, 12)), (4, 1, 3), (5,), vth=20, bias=-3),
        lif("lif3", Dense(drawn(rng, 4, 5)), (5,), (4,), vth=10),
        steps=timesteps,
        levels=3,
        readout=Readout(2, 2),
    )


def large(timesteps=2):
    """On Loihi 1: 8 cores, 7 by out-axons, 14 by synapse memory, 1; 8 tiles in two columns."""
    rng = np.random.default_rng(8)
    conv = Conv(drawn(rng, 8, 1, 3, 3), (1, 1), (1, 1), (1, 1), 1)
    return chain(
        lif("lif1", conv, (1, 30, 30), (8, 30, 30), 40),
        pool((8, 30, 30), (2, 2)),
        lif("lif2", Dense(drawn(rng, 600, 1800)), (8, 15, 15), (600,), 500),
        lif("lif3", Dense(drawn(rng, 10, 600)), (600,), (10,), 30),
        chip="loihi1",
        steps=timesteps,
    )


def hears(network):
    """``network`` with recurrent weights in its flat populations, a third of which are zero."""
    return recurrent(network, np.random.default_rng(9), -20, 40)


def alone(timesteps=3):
    """One population, first and last, on three cores of Loihi 1, each neuron of which is sent a few."""
    rng = np.random.default_rng(10)
    layer = lif("lif", Dense(drawn(rng, 2100, 6)), (6,), (2100,), 20)
    own = Dense(drawn(rng, 2100, 2100) * (rng.random((2100, 2100)) < 0.002))
    layer = replace(layer, recurrent=own, recurrent_name="rec")
    return chain(layer, chip="loihi1", steps=timesteps)


def dealt(network, rng, chip="loihi1"):
    """``network`` placed on ``chip`` in blocks of any size, its populations in any order."""
    layers, first = {}, 0
    for name in rng.permutation([population.name for population in network.populations]):
        size = network.size(name)
        cuts = np.sort(rng.choice(np.arange(1, size), min(size - 1, 3), replace=False))
        blocks = np.diff([0, *cuts, size]).tolist()
        taken_in = None if rng.random() < 0.5 else tuple(rng.permutation(size).tolist())
        layers[str(name)] = LayerPlacement(first, tuple(blocks), None, {}, {}, taken_in)
        first += len(blocks)
    placed = Placement(chip, layers, first, -(-first // 4), -(-first // 128))
    return replace(network, placement=placed)


def core_by_neuron(population, placed):
    """The core of each neuron, counted over the chip: blocks dealt position by position."""
    order = sorted(np.ndindex(population.shape), key=lambda at: (*at[1:], at[0]))
    if placed.order is not None:
        order = [order[i] for i in placed.order]
    cores = [placed.first_core + g for g, size in enumerate(placed.blocks) for _ in range(size)]
    return dict(zip(order, cores, strict=True))


def way(source, target, per_tile=4, rows=4):
    """The tiles that a packet visits from core to core: columns first, then rows."""
    at, end = source // per_tile, target // per_tile
    visited = [at]
    while at // rows != end // rows:
        at += rows if end // rows > at // rows else -rows
        visited.append(at)
    while at != end:
        at += 1 if end > at else -1
        visited.append(at)
    return visited


class ByHand:
    """Every event of a run, in dictionaries: what core and link do in each physical step.

    ``updates``, ``spikes``, ``out``, ``received`` count by (step, core), ``synops`` by (step, core, kind of
    synapses), ``links`` by (step, tile, next tile), ``ways`` by (step, hops east-west, hops north-south); all
    populations by name. ``by_connection`` are the synops of each, by (sample, logical step of the spike).
    """

    def __init__(self, network, inputs, chip):
        self.network = network
        self.placed = network.placement
        if self.placed is None or self.placed.chip != chip:
            self.placed = placement.place(
                network, chips.load(chip)
            )  # tests/chips/test_placement.py
        trace = reference.run(network, inputs, states=True)
        sent = network.rasters(inputs) | {n: did.spikes for n, did in trace.layers.items()}
        self.samples, self.timesteps = next(iter(sent.values())).shape[:2]
        self.hops = max(network.depth.values())
        self.steps = self.samples * self.timesteps + self.hops
        for kind in ("updates", "spikes", "out", "received", "synops", "links", "ways"):
            setattr(self, kind, {p.name: Counter() for p in network.populations})
        self.by_connection = [Counter() for _ in network.connections]
        self.from_host = 0
        self.cores = {
            p.name: core_by_neuron(p, self.placed.layers[p.name]) for p in network.populations
        }
        self.neurons = Counter(core for cores in self.cores.values() for core in cores.values())
        size = self.samples, self.timesteps
        self.arrived = {p.name: np.zeros((2, *size, p.size), np.int64) for p in network.populations}
        for source, values in sent.items():
            self._send(source, values)
        for population in network.populations:
            self._update(population, trace.layers[population.name])

    def _send(self, source, values):
        """A packet for each core that a neuron has a synapse into, in the step in which it spikes."""
        leads = defaultdict(list)
        for number, c in enumerate(self.network.connections):
            if c.source == source:
                for where, ways in self._ways(c).items():
                    leads[where].append((number, c, *ways))
        for n, t in np.ndindex(self.samples, self.timesteps):
            at = n * self.timesteps + t + self.network.depth[source]
            for where in map(tuple, np.argwhere(values[n, t]).tolist()):
                targets = set()
                for number, c, synapses, into, weight in leads[where]:
                    for core, count in synapses.items():
                        self.by_connection[number][n, t] += count
                        self.synops[c.target][at, core, c.synapses.kind] += count
                        targets.add((c.target, core))
                    if t + c.delay < self.timesteps:
                        amount = int(values[(n, t, *where)]) * weight << c.exp
                        self.arrived[c.target][c.port, n, t + c.delay][into] += amount
                for target, core in targets:
                    self.received[target][at, core] += 1
                if source in self.network.inputs:
                    self.from_host += len(targets)
                else:
                    self._leave(source, at, where, targets)

    def _ways(self, c):
        """For each neuron of the source: synapses by core of the target, its neurons and their weights."""
        found = defaultdict(lambda: (Counter(), [], []))
        cores = self.cores[c.target]
        place = {where: i for i, where in enumerate(np.ndindex(self.network.shape(c.target)))}
        for before, after, weight in weights(self.network, c):
            if count := taken(weight, c.precision):
                synapses, into, held = found[before]
                synapses[cores[after]] += count
                into.append(place[after])
                held.append(weight)
        return {
            where: (synapses, np.array(into), np.array(held, np.int64))
            for where, (synapses, into, held) in found.items()
        }

    def _leave(self, source, at, where, targets):
        own = self.cores[source][where]
        self.spikes[source][at, own] += 1
        counted = self.network.readout.rule in ("votes", "first")  # by the host
        self.out[source][at, own] += len(targets) + (
            counted and source == self.network.readout.source
        )
        for _, target in targets:
            visited = way(own, target)
            across = sum(abs(b - a) >= 4 for a, b in pairwise(visited))
            self.ways[source][at, across, len(visited) - 1 - across] += 1
            for a, b in pairwise(visited):
                self.links[source][at, a, b] += 1

    def _update(self, population, did):
        """Active: anything left of a current, in v, q or rest, in what arrives or in the bias."""
        name, neurons = population.name, population.neurons
        bias, v0 = (np.broadcast_to(v, population.shape) for v in (neurons.bias, neurons.v0))
        currents = {"u": neurons.du} | ({} if neurons.du2 is None else {"u2": neurons.du2})
        states = {"u": did.u, "v": did.v, **did.more}
        for n, t in np.ndindex(self.samples, self.timesteps):
            at = n * self.timesteps + t + self.network.depth[name]
            busy = (self.arrived[name][:, n, t] != 0).any(axis=0).reshape(population.shape)
            busy = busy | (bias != 0) | ((v0 != 0) if t == 0 else False)
            for state, values in states.items() if t else ():
                left = abs(values[n, t - 1].astype(np.int64))
                if state in currents:
                    left = left * (4095 - np.broadcast_to(currents[state], left.shape)) >> 12
                busy = busy | (left != 0)
            for where in map(tuple, np.argwhere(busy).tolist()):
                self.updates[name][at, self.cores[name][where]] += 1

    def total(self, kind):
        """The events of all populations by core, or by link, over all steps."""
        total, width = Counter(), 2 if kind == "links" else 1
        for events in getattr(self, kind).values():
            for (_, *where), n in events.items():
                total[tuple(where[:width])] += n
        return total

    def price(self, chip, profile, **others):
        """Joules by population and event per inference; ns and pJ of each step, and what bound it.

        ``others`` are costs in the place of the profile's.
        """
        cost = facts(chip)["profiles"][profile] | others
        joule, picojoule = {}, [0.0] * self.steps
        generate = {(s, c): cost["update_ns"]["always"] * n for s in range(self.steps)
                    for c, n in self.neurons.items()}  # fmt: skip
        receive, load, slowest_way = defaultdict(float), Counter(), [0.0] * self.steps
        for population in self.network.populations:
            name = population.name
            events = defaultdict(float)

            def spend(event, step, pj, events=events):
                events[event] += pj
                picojoule[step] += pj

            for step in range(self.steps):
                spend("neuron update", step, cost["update_pj"]["always"] * population.size)
            for what, event, pj, ns in (
                ("updates", "neuron update", "active", "active"),
                ("spikes", "neuron spike", "spike", "spike"),
            ):
                for (step, core), n in getattr(self, what)[name].items():
                    spend(event, step, cost["update_pj"][pj] * n)
                    generate[step, core] += cost["update_ns"][ns] * n
            for (step, core), n in self.out[name].items():
                spend("packet out", step, cost["packet_pj"]["out"] * n)
                generate[step, core] += cost["packet_ns"]["out"] * n
            for (step, core), n in self.received[name].items():
                spend("packet in", step, cost["packet_pj"]["in"] * n)
                receive[step, core] += cost["packet_ns"]["in"] * n
            for (step, core, kind), n in self.synops[name].items():
                stored = "sparse" if kind == "one_to_one" else kind
                spend("synop", step, cost["synop_pj"][stored] * n)
                receive[step, core] += cost["synop_ns"][stored] * n
            for (step, a, b), n in self.links[name].items():
                direction = "east_west" if abs(b - a) >= 4 else "north_south"
                spend("hop", step, cost["hop_pj"][direction] * n)
                load[step, a, b] += n
            for step, across, along in self.ways[name]:
                hop = cost["hop_ns"]
                ns = hop["east_west"] * across + hop["north_south"] * along
                slowest_way[step] = max(slowest_way[step], ns)
            joule[name] = {event: 1e-12 * pj / self.samples for event, pj in events.items()}
        times, bounds = [], []
        cores = [
            core for by_neuron in self.cores.values() for core in sorted(set(by_neuron.values()))
        ]
        for step in range(self.steps):
            busiest = max((n for (s, *_), n in load.items() if s == step), default=0)
            # Of parts that take as long, generating comes first; of cores, those of the first population.
            parts = [
                *((generate[step, core], "generate", core) for core in cores),
                *((receive.get((step, core), 0.0), "receive", core) for core in cores),
                (cost["link_ns"] * busiest + slowest_way[step], "network", None),
            ]
            _, part, core = max(parts, key=lambda p: round(p[0], 6))
            times.append(max(ns for ns, *_ in parts))
            bounds.append((part, core))
        tiles = math.ceil(len(self.neurons) / 4)
        barrier = barrier_us(cost["barrier"], tiles)
        return joule, [1e-9 * ns + 1e-6 * barrier for ns in times], picojoule, bounds


def barrier_us(table, tiles):
    """Of a table's entries: in proportion between two of them, or the last that was reached."""
    points = list(zip(table["tiles"], table["us"], strict=True))
    if tiles <= points[0][0]:
        return points[0][1]
    for (low, a), (high, b) in pairwise(points):
        if tiles < high:
            return a + (b - a) * (tiles - low) / (high - low) if table["between"] == "line" else a
    return points[-1][1]
