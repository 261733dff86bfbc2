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
from stl_deploy.ir.chain import LifLayer
from stl_deploy.ir.network import Readout
from stl_deploy.ir.synapses import Conv, Dense
from tests.build.nets import recurrent_synapses, synapses
from tests.build.networks import chain, lif, pool, recurrent, weights


def facts(chip):
    """The chip's file, as TOML and nothing more."""
    path = resources.files("stl_deploy.chips") / f"{chip}.toml"
    return tomllib.loads(path.read_text("utf-8"))


def drawn(rng, *shape):
    """Random weights, a third of them zero, which are stored but cost nothing."""
    return weights(rng, *shape, low=-20, high=40, zeros=0.33)


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
    """``network``, its flat layers hearing themselves through weights a third of which are zero."""
    return recurrent(network, np.random.default_rng(9), -20, 40)


def alone(timesteps=3):
    """One layer, first and last, on three cores of Loihi 1, each neuron of which hears a few."""
    rng = np.random.default_rng(10)
    layer = lif("lif", Dense(drawn(rng, 2100, 6)), (6,), (2100,), 20)
    own = Dense(drawn(rng, 2100, 2100) * (rng.random((2100, 2100)) < 0.002))
    layer = replace(layer, recurrent=own, recurrent_name="rec")
    return chain(layer, chip="loihi1", steps=timesteps)


def core_by_neuron(layer, placed):
    """The core of each neuron, counted over the chip: blocks dealt position by position."""
    if len(layer.shape) == 1:
        dealt = [(i,) for i in range(layer.shape[0])]
    else:
        channels, rows, columns = layer.shape
        dealt = [(c, i, j) for i, j in np.ndindex(rows, columns) for c in range(channels)]
    cores = [placed.first_core + g for g, size in enumerate(placed.blocks) for _ in range(size)]
    return dict(zip(dealt, cores, strict=True))


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

    ``updates``, ``spikes``, ``out``, ``received``, ``synops`` count by (step, core), ``links`` by
    (step, tile, next tile), ``ways`` by (step, hops east-west, hops north-south); all layers by name.
    """

    def __init__(self, network, inputs, chip):
        self.network = network
        self.placed = placement.place(network, chips.load(chip))  # tests/chips/test_placement.py
        trace = reference.run(network, inputs, states=True)
        samples, steps = inputs.shape[:2]
        self.samples, self.hops = samples, len(network.layers)
        self.steps = samples * steps + self.hops
        names = [layer.name for layer in network.layers]
        for kind in ("updates", "spikes", "out", "received", "synops", "links", "ways"):
            setattr(self, kind, {name: Counter() for name in names})
        self.cores = {
            layer.name: core_by_neuron(layer, self.placed.layers[layer.name])
            for layer in network.layers
        }
        self.neurons = Counter(core for cores in self.cores.values() for core in cores.values())
        source = inputs
        for i, layer in enumerate(network.layers):
            did = trace.layers[layer.name]
            self._receive(i, layer, source, synapses(layer))
            if i == 0:
                self.from_host = sum(self.received[layer.name].values())
            # What a layer hears of itself it receives in the step in which the next one does.
            self._receive(i + 1, layer, did.spikes, recurrent_synapses(layer))
            self._update(i, layer, did)
            self._send(i, layer, did.spikes)
            source = did.spikes

    def _receive(self, delay, layer, source, wires):
        on, into = self.cores[layer.name], defaultdict(Counter)
        for before, after in wires:
            into[before][on[after]] += 1
        for k, step in enumerate(source.reshape(-1, *source.shape[2:])):
            for where in map(tuple, np.argwhere(step).tolist()):
                for core, n in into[where].items():
                    self.received[layer.name][k + delay, core] += 1
                    self.synops[layer.name][k + delay, core] += n

    def _update(self, i, layer, did):
        """Active: anything in v, in what arrives (all that is in u) or in the bias; pools: fired."""
        on = self.cores[layer.name]
        samples, steps = did.spikes.shape[:2]
        for n, t in np.ndindex(samples, steps):
            before = did.v[n, t - 1] if t else np.zeros(layer.shape)
            busy = did.spikes[n, t] != 0
            if isinstance(layer, LifLayer):
                assert layer.du == 4095
                busy = (did.u[n, t] != 0) | (before != 0) | (layer.bias != 0)
            for where in map(tuple, np.argwhere(busy).tolist()):
                self.updates[layer.name][n * steps + t + i + 1, on[where]] += 1

    def _send(self, i, layer, spikes):
        on, targets = self.cores[layer.name], defaultdict(set)
        last = i + 1 == len(self.network.layers)
        if not last:
            following = self.network.layers[i + 1]
            for before, after in synapses(following):
                targets[before].add(self.cores[following.name][after])
        for before, after in recurrent_synapses(layer):
            targets[before].add(on[after])
        for k, step in enumerate(spikes.reshape(-1, *layer.shape)):
            for where in map(tuple, np.argwhere(step).tolist()):
                at = k + i + 1
                self.spikes[layer.name][at, on[where]] += 1
                self.out[layer.name][at, on[where]] += last + len(targets[where])
                for target in targets[where]:
                    visited = way(on[where], target)
                    across = sum(abs(b - a) >= 4 for a, b in pairwise(visited))
                    self.ways[layer.name][at, across, len(visited) - 1 - across] += 1
                    for a, b in pairwise(visited):
                        self.links[layer.name][at, a, b] += 1

    def total(self, kind):
        """The events of all layers by core, or by link, over all steps."""
        total = Counter()
        for events in getattr(self, kind).values():
            for (_, *where), n in events.items():
                total[tuple(where)] += n
        return total

    def price(self, chip, profile):
        """Joules by layer and event per inference; ns and pJ of each step, and what bound it."""
        cost = facts(chip)["profiles"][profile]
        joule, picojoule = {}, [0.0] * self.steps
        generate = {(s, c): cost["update_ns"]["always"] * n for s in range(self.steps)
                    for c, n in self.neurons.items()}  # fmt: skip
        receive, load, slowest_way = defaultdict(float), Counter(), [0.0] * self.steps
        for layer in self.network.layers:
            name = layer.name
            # An OR pool stores its ones as a convolution does.
            kind = "dense" if isinstance(getattr(layer, "synapses", None), Dense) else "conv"
            events = defaultdict(float)

            def spend(event, step, pj, events=events):
                events[event] += pj
                picojoule[step] += pj

            for step in range(self.steps):
                spend("neuron update", step, cost["update_pj"]["always"] * layer.neurons)
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
            for (step, core), n in self.synops[name].items():
                spend("synop", step, cost["synop_pj"][kind] * n)
                receive[step, core] += cost["synop_ns"][kind] * n
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
        for step in range(self.steps):
            busiest = max((n for (s, *_), n in load.items() if s == step), default=0)
            parts = [
                *((ns, "generate", core) for (s, core), ns in generate.items() if s == step),
                *((ns, "receive", core) for (s, core), ns in receive.items() if s == step),
                (cost["link_ns"] * busiest + slowest_way[step], "network", None),
            ]
            ns, part, core = max(parts, key=lambda p: p[0])
            times.append(ns)
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
