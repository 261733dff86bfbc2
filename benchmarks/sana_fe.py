"""Energy and time by SANA-FE's "simple" model and by ours: same network, placement, spikes, costs.

    python -m venv sanafe && sanafe/bin/pip install sanafe==2.2.9    # anywhere; never a dependency
    python benchmarks/sana_fe.py --python sanafe/bin/python [--steps 1024] [--zoo]

A relay of the inputs, a convolution, a pool and two dense layers lie on 78 cores of Loihi 1 (costs of
loihi1-nahuku); with ``--zoo`` a relay and the shipped model, without its biases, which SANA-FE would
apply before a layer's first input. SANA-FE's input neurons replay the spikes of the relay; every
other spike it computes itself, and all have to be ours. Its input and the last layer's way to the
host do not exist there, so what our relay receives and what the last layer sends is left out here.
SANA-FE counts a neuron as updated also where its inputs cancel to zero; where that happens its cost
is told apart.

The default steps are as many as a batch of hw_sim has (256 samples of 4 steps). Prints the largest
relative difference of energy and time over all steps, the counts, and how many times longer SANA-FE's
simulation takes than our counting and pricing of the same spikes, and than our whole run with the engine
computing the spikes.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
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
from stl_deploy.hw_sim import engine, reference
from stl_deploy.hw_sim.account.energy import Energy, Meter, OnChip
from stl_deploy.hw_sim.account.work import Work
from stl_deploy.hw_sim.reference import Trace
from stl_deploy.ir import chain as chain_view
from stl_deploy.ir.chain import LifLayer, OrPool
from stl_deploy.ir.network import IntegerNetwork, Readout
from stl_deploy.ir.notes import Placement
from stl_deploy.ir.synapses import Conv, Dense, IntArray

ENERGY_MODEL = "loihi1-nahuku"
CLOSE, FASTER = 1e-6, 500
# Neurons a core; None: in their usual order.
BLOCKS = {
    "relay": ((392,) * 2, None),
    "conv": ((224,) * 28, None),
    "pool": ((112,) * 14, None),
    "fc": ((8,) * 32, None),
    "out": ((5,) * 2, None),
}


def zoo(steps: int) -> IntegerNetwork:
    """The shipped model behind a relay, without biases."""
    path = Path(__file__).parents[1] / "models" / "zoo" / "fashion-stl.pt"
    net = stl_deploy.quantize(stl_deploy.from_torch(stl_deploy.load(path)), chip="loihi1")
    layers = [
        replace(layer, bias_mant=np.zeros_like(layer.bias_mant))
        if isinstance(layer, LifLayer)
        else layer
        for layer in net.layers
    ]
    relay = OrPool("relay", "relay_w", net.input_shape, net.input_shape, (1, 1))
    return replace(net, timesteps=steps, layers=(relay, *layers), placement=None)


def small(steps: int) -> IntegerNetwork:
    """Positive weights, whose sums never cancel."""
    rng = np.random.default_rng(5)

    def lif(name: str, synapses: Conv | Dense, before: Any, shape: Any, vth: int) -> LifLayer:
        thresholds = rng.integers(vth // 2, 2 * vth, shape).astype(np.int32)
        zeros, ones = np.zeros(shape[0], np.int32), np.ones(shape[0])
        return LifLayer(name, f"{name}_w", synapses, before, shape, zeros, thresholds, ones)

    def weights(*shape: int) -> Any:
        return rng.integers(1, 100, shape).astype(np.int8)

    conv = Conv(weights(8, 1, 5, 5), (1, 1), (2, 2), (1, 1), 1)
    return chain_view.of(
        "loihi1",
        steps,
        (1, 28, 28),
        1,
        (
            OrPool("relay", "relay_w", (1, 28, 28), (1, 28, 28), (1, 1)),
            lif("conv", conv, (1, 28, 28), (8, 28, 28), 800),
            OrPool("pool", "pool_w", (8, 28, 28), (8, 14, 14), (2, 2)),
            lif("fc", Dense(weights(256, 1568)), (8, 14, 14), (256,), 15_000),
            lif("out", Dense(weights(10, 256)), (256,), (10,), 1_500),
        ),
        Readout(10, 1),
    )


def connections(layer: LifLayer | OrPool) -> tuple[list[list[int]], list[int]]:
    """(source, target) of every non-zero synapse, and its weight: what the layer does to ones."""
    pairs: list[list[int]] = []
    weights: list[int] = []
    inputs = int(np.prod(layer.input_shape))
    for first in range(0, inputs, 256):
        one = np.eye(inputs, dtype=np.uint8)[first : first + 256].reshape(-1, *layer.input_shape)
        flat = reference.accumulate(layer, one).reshape(len(one), -1)
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
    groups: list[dict[str, Any]] = [{"name": net.layers[0].name}]
    for layer in net.layers[1:]:
        pairs, weights = connections(layer)
        groups.append(
            {
                "name": layer.name,
                "kind": layer.synapses.kind,
                "leak": 0.5 if layer.kind == "lif" else 0.0,
                "thresholds": layer.vth.reshape(-1).tolist(),
                "pairs": pairs,
                "weights": weights,
            }
        )
    first = trace.layers[net.layers[0].name].spikes[0]
    return {
        "version": 1,
        "steps": net.timesteps,
        "energy_model": energy_model.model_dump(by_alias=True),
        "grid": {
            "columns": grid.columns.value,
            "rows": grid.rows.value,
            "cores_per_tile": limits.cores_per_tile.value,
            "neurons_per_core": limits.compartments_per_core.value,
        },
        "groups": groups,
        "cores": [
            (placement.core_of(population, on) + on.first_core).tolist()
            for population, on in zip(net.populations, placed.layers.values(), strict=True)
        ],
        "trains": first.reshape(net.timesteps, -1).T.tolist(),
    }


def assess(
    net: IntegerNetwork, on: OnChip, work: Work, raster: IntArray, trace: Trace, whole: bool
) -> Energy:
    """Our energy and time; unless ``whole``, without what SANA-FE does not have."""
    on.reset()
    meter = Meter(net, on, chips.profiles()[ENERGY_MODEL][1])
    (layers,) = work.count(raster, trace)
    if not whole:
        first, last = layers[0], layers[-1]
        nothing = np.zeros_like(first.synops)
        layers[0] = replace(first, synops=nothing, packets_in=nothing)
        layers[-1] = replace(last, packets_out=np.zeros_like(last.packets_out))
    meter.add(*on.take(layers))
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
    parser.add_argument("--zoo", action="store_true", help="the shipped model; needs 5 GB")
    args = parser.parse_args()
    if args.python == sys.executable and importlib.util.find_spec("sanafe") is None:
        sys.exit(
            "sanafe is not installed here: pip install sanafe==2.2.9 elsewhere and give --python"
        )
    chip = chips.load("loihi1")
    net = zoo(args.steps) if args.zoo else small(args.steps)
    placed = placement.place(net, chip) if args.zoo else placement.rebuild(net, chip, BLOCKS)
    assert placed is not None
    rng = np.random.default_rng(6)
    raster = (rng.random((1, args.steps, 1, 28, 28)) < 0.2).astype(np.uint8)
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
        f"{sum(layer.neurons for layer in net.layers):,} neurons on {ours.cores} cores, "
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
    for i, did in enumerate(trace.layers.values()):
        active[i:] += did.active[0, : net.timesteps - i]
    more = np.array(theirs["updated"]) - active
    print(
        f"updated neurons: {active.sum():,} ours, {more.sum():,} more with SANA-FE, whose inputs cancel"
    )
    return 1e-12 * chips.profiles()[ENERGY_MODEL][1].update_pj.active * more


def check_spikes(net: IntegerNetwork, theirs: dict[str, Any], trace: Trace) -> bool:
    """Whether every spike of every layer is the same."""
    for i, layer in enumerate(net.layers):
        expected = trace.layers[layer.name].spikes[0].reshape(net.timesteps, -1)
        got = np.zeros_like(expected)
        for step, addresses in enumerate(theirs["fired"]):
            for group, offset in addresses:
                if group == layer.name and step >= i:
                    got[step - i, offset] = 1
        if (got[: net.timesteps - i] != expected[: net.timesteps - i]).any():
            return False
    return True


if __name__ == "__main__":
    main()
