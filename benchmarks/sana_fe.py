"""Energy and time by SANA-FE's "simple" model and by ours: same network, placement, spikes, costs.

    python -m venv sanafe && sanafe/bin/pip install sanafe==2.2.9    # anywhere; never a dependency
    python benchmarks/sana_fe.py --python sanafe/bin/python [--network NAME] [--steps 1024]

The networks, on Loihi 1 with the costs of loihi1-nahuku, each behind a relay of its inputs:

    chain    a convolution, a pool and two dense populations, on 78 cores
    delay    a residual block whose skip connection waits a step in the delays of its synapses
    relay    the same block, its skip over a population of relays
    zoo      the shipped model, without its biases, which SANA-FE would apply before a population's
             first input; needs 5 GB

SANA-FE's input neurons replay the spikes of the relay; every other spike it computes itself, and all
have to be ours. Its input and the way of the counted spikes to the host do not exist there, so what our
relay receives and what goes to the host is left out here. SANA-FE counts a neuron as updated also where
its inputs cancel to zero; where that happens its cost is told apart.

The default steps are as many as a batch of hw_sim has (256 samples of 4 steps). Prints the largest
relative difference of energy and time over all steps, the counts, and how many times longer SANA-FE's
simulation takes than our counting and pricing of the same spikes, and than our whole run with the engine
computing the spikes.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import stl_deploy
from stl_deploy.chips import facts as chips
from stl_deploy.chips import placement
from stl_deploy.chips.facts import Chip
from stl_deploy.hw_sim import engine, reference
from stl_deploy.hw_sim.account.energy import STORED_AS, Energy, Meter
from stl_deploy.hw_sim.account.traffic import OnChip
from stl_deploy.hw_sim.account.work import Work
from stl_deploy.hw_sim.reference import Trace
from stl_deploy.ir.network import Connection, Input, IntegerNetwork, Population
from stl_deploy.ir.neurons import Lif, Or, shared
from stl_deploy.ir.notes import LayerPlacement, Placement
from stl_deploy.ir.readouts import Readout
from stl_deploy.ir.synapses import Conv, Dense, IntArray, OneToOne, Shape
from stl_deploy.ir.units import DECAY_ONE

ENERGY_MODEL = "loihi1-nahuku"
CLOSE, FASTER = 1e-6, 500
# Neurons a core.
BLOCKS = {
    "chain": {"relay": 392, "conv": 224, "pool": 112, "fc": 8, "out": 5},
    "delay": {"relay": 98, "stem": 112, "block": 196, "join": 128, "pool": 56, "out": 5},
}
BLOCKS["relay"] = BLOCKS["delay"] | {"copy": 224}


class Draft:
    """A network in the making, with positive weights, whose sums never cancel, and random thresholds."""

    def __init__(self, shape: Shape) -> None:
        self.rng = np.random.default_rng(5)
        self.input = Input(shape)
        self.populations: list[Population] = []
        self.connections: list[Connection] = []
        self.gate("relay", "input", shape, OneToOne(np.ones(math.prod(shape), np.int8)))

    def weights(self, *shape: int) -> Any:
        """Positive ones."""
        return self.rng.integers(1, 100, shape).astype(np.int8)

    def gate(self, name: str, source: str, shape: Shape, synapses: Conv | OneToOne) -> None:
        """Neurons that fire where anything arrives."""
        self.populations.append(Population(name, shape, Or()))
        self.connections.append(Connection(f"{name}_w", source, name, synapses, bits=1))

    def lif(self, name: str, shape: Shape, vth: int, **sources: Conv | Dense | OneToOne) -> None:
        """Neurons with thresholds around ``vth`` behind synapses from each of ``sources``."""
        thresholds = self.rng.integers(vth // 2, 2 * vth, shape).astype(np.int32)
        neurons = Lif(thresholds, np.zeros((), np.int32), np.ones(()))
        self.populations.append(Population(name, shape, neurons))
        for source, synapses in sources.items():
            self.connections.append(Connection(f"{source}_{name}", source, name, synapses))

    def made(self, steps: int) -> IntegerNetwork:
        """The network, whose last population is counted."""
        last = self.populations[-1]
        return IntegerNetwork(
            "loihi1",
            steps,
            {"input": self.input},
            tuple(self.populations),
            tuple(self.connections),
            Readout(last.size, 1, last.name),
        )


def chain(steps: int) -> IntegerNetwork:
    """One population behind the other."""
    draft = Draft((1, 28, 28))
    conv = Conv(draft.weights(8, 1, 5, 5), (1, 1), (2, 2), (1, 1), 1)
    draft.lif("conv", (8, 28, 28), 800, relay=conv)
    draft.gate("pool", "conv", (8, 14, 14), windows(8))
    draft.lif("fc", (256,), 15_000, pool=Dense(draft.weights(256, 1568)))
    draft.lif("out", (10,), 1_500, fc=Dense(draft.weights(10, 256)))
    return draft.made(steps)


def residual(steps: int, relays: bool) -> IntegerNetwork:
    """Two convolutions of which the second also gets what went into the first.

    SANA-FE keeps the delays of a population's synapses by their address, and counts those of every kind
    of synapses from 0. So where synapses have delays, all of a population are of one kind.
    """
    draft = Draft((1, 14, 14))
    shape, size = (8, 14, 14), 8 * 14 * 14
    three = (1, 1), (1, 1), (1, 1)
    draft.lif("stem", shape, 250, relay=Conv(draft.weights(8, 1, 3, 3), *three, 1))
    draft.lif("block", shape, 900, stem=Conv(draft.weights(8, 8, 3, 3), *three, 1))
    main = Conv(draft.weights(8, 8, 3, 3), *three, 1)
    if relays:
        draft.gate("copy", "stem", shape, OneToOne(np.ones(size, np.int8)))
        draft.lif("join", shape, 500, block=main, copy=OneToOne(np.full(size, 99, np.int8)))
    else:
        skip = Conv(np.full((8, 1, 1, 1), 99, np.int8), (1, 1), (0, 0), (1, 1), 8)
        draft.lif("join", shape, 500, block=main, stem=skip)
    draft.gate("pool", "join", (8, 7, 7), windows(8))
    draft.lif("out", (10,), 6_000, pool=Dense(draft.weights(10, 8 * 49)))
    return draft.made(steps)


def windows(channels: int) -> Conv:
    """What pools 2 x 2 neurons of each channel."""
    return Conv(np.ones((channels, 1, 2, 2), np.int8), (2, 2), (0, 0), (1, 1), channels)


def zoo(steps: int) -> IntegerNetwork:
    """The shipped model behind a relay, without biases."""
    path = Path(__file__).parents[1] / "models" / "zoo" / "fashion-stl.pt"
    net = stl_deploy.quantize(stl_deploy.from_torch(stl_deploy.load(path)), chip="loihi1")
    (name, given), *_ = net.inputs.items()
    draft = Draft(given.shape)
    populations = [
        replace(p, neurons=replace(p.neurons, bias_mant=np.zeros_like(p.neurons.bias_mant)))
        if p in net.weighted
        else p
        for p in net.populations
    ]
    connections = [replace(c, source="relay") if c.source == name else c for c in net.connections]
    return replace(
        net,
        timesteps=steps,
        inputs={"input": given},
        populations=(*draft.populations, *populations),
        connections=(*draft.connections, *connections),
        placement=None,
    )


def laid(net: IntegerNetwork, chip: Chip, sizes: dict[str, int]) -> Placement:
    """So many neurons of each population a core."""
    layers: dict[str, LayerPlacement] = {}
    first = 0
    for population in net.populations:
        size = sizes[population.name]
        full, rest = divmod(population.size, size)
        blocks = (*[size] * full, *([rest] if rest else []))
        layers[population.name] = LayerPlacement(first, blocks, None, {}, {})
        first += len(blocks)
    per_tile, per_chip = chip.limits.cores_per_tile, chip.limits.cores_per_chip
    assert per_tile is not None
    assert per_chip is not None
    tiles, count = math.ceil(first / per_tile.value), math.ceil(first / per_chip.value)
    return Placement(chip.name, layers, first, tiles, count)


def synapses(net: IntegerNetwork, connection: Connection) -> tuple[list[list[int]], list[int]]:
    """(source, target) of every non-zero synapse, and its weight: what the connection does to ones."""
    pairs: list[list[int]] = []
    weights: list[int] = []
    size, shape = net.size(connection.source), net.shape(connection.source)
    for first in range(0, size, 256):
        one = np.eye(size, dtype=np.uint8)[first : first + 256].reshape(-1, *shape)
        flat = connection.sums(one, 1)
        source, target = np.nonzero(flat)
        pairs += np.stack([source + first, target], axis=1).tolist()
        weights += flat[source, target].tolist()
    return pairs, weights


def specification(net: IntegerNetwork, placed: Placement, trace: Trace) -> dict[str, Any]:
    """Everything that SANA-FE's side needs."""
    chip, energy_model = chips.profiles()[ENERGY_MODEL]
    grid, limits = chip.mesh, chip.limits
    assert grid is not None
    assert limits.cores_per_tile is not None
    assert limits.compartments_per_core is not None
    groups: list[dict[str, Any]] = []
    for population in net.populations:
        name, neurons = population.name, population.neurons
        on = placed.layers[name]
        dv = shared(neurons.dv)
        assert dv is not None
        groups.append(
            {
                "name": name,
                "cores": (placement.core_of(population, on) + on.first_core).tolist(),
                "leak": 1 - dv / DECAY_ONE if population.kind == "lif" else 0.0,
                "thresholds": np.broadcast_to(neurons.vth, population.shape).reshape(-1).tolist(),
            }
        )
    connections = []
    for c in net.connections:
        if c.source in net.inputs:
            continue
        pairs, weights = synapses(net, c)
        kind = STORED_AS.get(c.synapses.kind, c.synapses.kind)
        connections.append(
            {
                "source": c.source,
                "target": c.target,
                "kind": kind,
                "waits": net.waits(c),
                "pairs": pairs,
                "weights": weights,
            }
        )
    first = trace.layers[net.populations[0].name].spikes[0]
    return {
        "version": 2,
        "steps": net.timesteps,
        "energy_model": energy_model.model_dump(by_alias=True),
        "grid": {
            "columns": grid.columns.value,
            "rows": grid.rows.value,
            "cores_per_tile": limits.cores_per_tile.value,
            "neurons_per_core": limits.compartments_per_core.value,
        },
        "groups": groups,
        "connections": connections,
        "trains": first.reshape(net.timesteps, -1).T.tolist(),
    }


def assess(
    net: IntegerNetwork, on: OnChip, work: Work, raster: IntArray, trace: Trace, whole: bool
) -> Energy:
    """Our energy and time; unless ``whole``, without what SANA-FE does not have."""
    on.reset()
    meter = Meter(net, on, chips.profiles()[ENERGY_MODEL][1])
    (done,) = work.count(raster, trace)
    if not whole:
        counted = net.readout.source
        last = done.layers[counted]
        inside = replace(last, packets_out=last.packets_out - last.spikes)
        done = replace(
            done,
            arrivals=tuple(a for a in done.arrivals if a.source not in net.inputs),
            layers=done.layers | {counted: inside},
        )
    meter.add(on.take(done))
    return meter.energy(net.timesteps)


def timed(work: Any, repeat: int) -> tuple[float, float, float]:
    """Least, median and most seconds."""
    took = []
    for _ in range(repeat):
        start = time.perf_counter()
        work()
        took.append(time.perf_counter() - start)
    return min(took), statistics.median(took), max(took)


def simulate_there(python: str, spec: dict[str, Any]) -> dict[str, Any]:
    """Run SANA-FE's side."""
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "spec.json", Path(folder) / "out.json"
        source.write_text(json.dumps(spec), "utf-8")
        side = Path(__file__).with_name("sana_fe_side.py")
        subprocess.run([python, side, source, out], check=True, stdout=subprocess.DEVNULL)
        result: dict[str, Any] = json.loads(out.read_text("utf-8"))
        return result


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", default=sys.executable, help="one that imports sanafe")
    parser.add_argument("--steps", type=int, default=1024)
    parser.add_argument("--network", choices=list(NETWORKS), default="chain")
    args = parser.parse_args()
    if args.python == sys.executable and importlib.util.find_spec("sanafe") is None:
        sys.exit(
            "sanafe is not installed here: pip install sanafe==2.2.9 elsewhere and give --python"
        )
    chip = chips.load("loihi1")
    net = NETWORKS[args.network](args.steps)
    sizes = BLOCKS.get(args.network)
    placed = placement.place(net, chip) if sizes is None else laid(net, chip, sizes)
    assert placed is not None
    rng = np.random.default_rng(6)
    (given,) = net.inputs.values()
    raster = (rng.random((1, args.steps, *given.shape)) < 0.2).astype(np.uint8)
    on = OnChip(net, chip, placed)
    work = Work(net, [(on.placed, on.mesh)])
    trace = reference.run(net, raster, cores=work.cores)
    theirs = simulate_there(args.python, specification(net, placed, trace))
    ours = assess(net, on, work, raster, trace, whole=False)
    report(net, ours, theirs, trace)
    least, count, most = timed(lambda: assess(net, on, work, raster, trace, whole=True), 25)
    fast = engine.Engine(net, work.cores)
    fast.run(raster)
    _, run, _ = timed(lambda: assess(net, on, work, raster, fast.run(raster), whole=True), 5)
    low, took, high = theirs["run_seconds"]
    print(
        f"SANA-FE: {args.steps} steps in {took:.2f} s ({low:.2f} to {high:.2f}; one thread, no traces), "
        f"{theirs['build_seconds']:.1f} s before that to build the network\n"
        f"our counting and pricing of the same spikes: {1e3 * count:.2f} ms ({1e3 * least:.2f} to "
        f"{1e3 * most:.2f}), {took / count:,.0f} times less (wanted {FASTER})\n"
        f"with the engine computing the spikes: {1e3 * run:.1f} ms, {took / run:,.0f} times less"
    )


def report(net: IntegerNetwork, ours: Energy, theirs: dict[str, Any], trace: Trace) -> None:
    """Print the differences. SANA-FE's step s, from 1, is our physical step s, from 0."""
    steps = slice(1, net.timesteps + 1)
    fired = sum(map(len, theirs["fired"]))
    same = check_spikes(net, theirs, trace)
    print(
        f"{sum(population.size for population in net.populations):,} neurons on {ours.cores} cores, "
        f"{fired:,} spikes in {net.timesteps} steps, "
        + ("every one of them ours" if same else "NOT the same as ours")
    )
    for name, mine, other in (
        ("energy", ours.series_j[steps] + cancelled(net, theirs, trace), theirs["joules"]),
        ("time", ours.series_s[steps], theirs["seconds"]),
    ):
        difference = np.abs(mine / np.array(other) - 1)
        print(
            f"{name} of a step: largest relative difference {difference.max():.1e} "
            f"({'within' if difference.max() < CLOSE else 'BEYOND'} {CLOSE:.0e}); all steps "
            f"{mine.sum():.9e} ours, {sum(other):.9e} SANA-FE"
        )
    bounds = {bound.part for bound in ours.bounds}
    print(f"bound by: {', '.join(sorted(bounds))}")


def cancelled(net: IntegerNetwork, theirs: dict[str, Any], trace: Trace) -> Any:
    """Joules of each step for neurons that SANA-FE alone takes for active; prints how many."""
    active = np.zeros(net.timesteps, np.int64)
    for name, did in trace.layers.items():
        late = depth(net, name) - 1
        active[late:] += did.active[0, : net.timesteps - late]
    more = np.array(theirs["updated"]) - active
    print(
        f"updated neurons: {active.sum():,} ours, {more.sum():,} more with SANA-FE, whose inputs cancel"
    )
    return 1e-12 * chips.profiles()[ENERGY_MODEL][1].update_pj.active * more


def check_spikes(net: IntegerNetwork, theirs: dict[str, Any], trace: Trace) -> bool:
    """Whether every spike of every population is the same."""
    for name, did in trace.layers.items():
        late = depth(net, name) - 1
        expected = did.spikes[0].reshape(net.timesteps, -1)
        got = np.zeros_like(expected)
        for step, addresses in enumerate(theirs["fired"]):
            for group, offset in addresses:
                if group == name and step >= late:
                    got[step - late, offset] = 1
        if (got[: net.timesteps - late] != expected[: net.timesteps - late]).any():
            return False
    return True


def depth(net: IntegerNetwork, name: str) -> int:
    """Hops from the input to a population."""
    assert net.depth is not None
    return net.depth[name]


NETWORKS = {
    "chain": chain,
    "delay": lambda steps: residual(steps, relays=False),
    "relay": lambda steps: residual(steps, relays=True),
    "zoo": zoo,
}

if __name__ == "__main__":
    main()
