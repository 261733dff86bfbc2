"""Random float networks of medium size in which neurons have one rule besides leaking and firing.

``python -m tests.build.rule_floats`` prints how many of their spikes differ in integers.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from stl_deploy.ir import execute, slices
from stl_deploy.ir import nir_graph as G
from stl_deploy.ir.floats import FloatConnection, FloatNetwork, FloatPopulation, Weights
from stl_deploy.ir.network import IntegerNetwork
from stl_deploy.ir.readouts import FloatReadout
from stl_deploy.lower import graded
from stl_deploy.lower.quantize import quantize
from tests.build import forced
from tests.build.float_networks import neurons

INPUTS, HIDDEN, CLASSES, STEPS, SAMPLES = 80, 100, 10, 20, 12
CURRENT = {"kind": "cuba", "current": np.full(1, 0.4)}


def _gains(rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(0.3, 2.5, (STEPS, 1))


# What each rule is, where a threshold is about 1.
RULES: dict[str, Any] = {
    "zero": lambda _: {},
    "subtract": lambda _: {"reset": "subtract"},
    "constant": lambda rng: {"v_reset": rng.uniform(-0.5, 0.3, HIDDEN)},
    "none": lambda _: {"reset": "none"},
    "current": lambda _: CURRENT,
    "reset of the current": lambda _: {**CURRENT, "reset_current": True},
    "hold": lambda _: {"hold": 2},
    "once": lambda _: {"hold": -1},
    "floor": lambda _: {"floor": np.full(1, -0.3)},
    "adaptive threshold": lambda rng: {
        "adapt": rng.uniform(0.1, 0.6, HIDDEN),
        "adapt_step": np.full(1, 0.1),
    },
    "second current": lambda _: {
        **CURRENT,
        "drive": np.full(1, 0.4),
        "current2": np.full(1, 0.15),
        "drive2": np.full(1, -0.1),
    },
    "gain": lambda rng: {"amplify": _gains(rng)},
    "start": lambda rng: {"v0": rng.uniform(-1, 0.8, HIDDEN)},
    "graded spikes": lambda _: {"graded": True},
    "graded sums": lambda _: {"graded": True, "fires": False},
}


def network(
    rule: str, seed: int = 0, keep: float = 0.8, read: str = "votes"
) -> tuple[FloatNetwork, np.ndarray]:
    """Input -> "a" -> "b", both of the ``rule``, -> "out", and spikes [SAMPLES, STEPS, INPUTS] for it.

    Thresholds are such that 5 to 40 % of the neurons spike in a step, where the rule lets them. "out" has
    none where it is read by v.
    """
    rng = np.random.default_rng(seed)
    shares = rng.uniform(0, 0.4, (SAMPLES, 1, INPUTS))
    raster = (rng.random((SAMPLES, STEPS, INPUTS)) < shares).astype(np.uint8)
    made = FloatNetwork({"input": (INPUTS,)}, (), (), "out", None)
    for name, source in (("a", "input"), ("b", "a")):
        made = _with(rng, made, raster, name, source, HIDDEN, RULES[rule](rng), keep)
    fields = {"fires": False} if read in ("last", "mean", "max") else {}
    made = _with(rng, made, raster, "out", "b", CLASSES, fields, keep)
    meta = G.FloatMeta(timesteps=STEPS, classes=CLASSES, population=1)
    readout = FloatReadout(CLASSES, 1, "out", read)  # type: ignore[arg-type]
    return replace(made, meta=meta, readout=readout), raster


def _with(
    rng: np.random.Generator,
    made: FloatNetwork,
    raster: np.ndarray,
    name: str,
    source: str,
    size: int,
    fields: dict[str, Any],
    keep: float,
) -> FloatNetwork:
    spread = rng.uniform(0.6, 1.4, size)
    bias = rng.normal(0, 0.05, size)
    ways = _ways(rng, name, source, size, made.shape(source)[0], "current2" in fields)
    best: tuple[float, FloatNetwork] | None = None
    for base in np.geomspace(0.3, 20, 12):
        given = neurons(base * spread, keep, **_scaled(fields, base))
        population = FloatPopulation(name, (size,), given, bias)
        tried = replace(
            made,
            populations=(*made.populations, population),
            connections=(*made.connections, *ways),
            output=name,
        )
        rate = float((execute.run(tried, raster)[name] != 0).mean())
        if best is None or abs(rate - 0.15) < abs(best[0] - 0.15):
            best = rate, tried
    assert best is not None
    return best[1]


def _scaled(fields: dict[str, Any], base: float) -> dict[str, Any]:
    """The fields with values of v in units of the threshold."""
    of_v = {"v_reset", "floor", "adapt", "v0"}
    return {key: value * base if key in of_v else value for key, value in fields.items()}


def _ways(
    rng: np.random.Generator, name: str, source: str, outputs: int, inputs: int, second: bool
) -> list[FloatConnection]:
    def weights(suffix: str) -> Weights:
        drawn = rng.normal(0.3 / np.sqrt(inputs), 1.0 / np.sqrt(0.2 * inputs), (outputs, inputs))
        return Weights(f"{name}{suffix}", drawn * rng.uniform(0.5, 1.5, (outputs, 1)), None, None)

    found = [FloatConnection(source, name, weights("_w"))]
    if second:
        found.append(FloatConnection(source, name, weights("_w2"), 0, 1))
    return found


def given(
    network: IntegerNetwork, floats: FloatNetwork, want: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """What populations send in float, as their integer selves would send it."""
    found = {}
    for name, values in want.items():
        mine = network.by_name[name]
        found[name] = values
        if (sends := mine.neurons.graded) is not None:
            unit = graded.worth(mine, floats.by_name[name].neurons, sends.shift)
            whole = np.rint(values / unit)
            found[name] = whole.clip(-sends.levels, sends.levels).astype(np.int16)
    return found


def wrong(
    network: IntegerNetwork, floats: FloatNetwork, raster: np.ndarray
) -> dict[str, np.ndarray]:
    """Where spikes differ if sources send what they do in float, [N, T, neurons] of all that spike."""
    want = execute.run(floats, raster)
    got = forced.run(network, raster, given(network, floats, want)).layers
    fire = [p.name for p in floats.populations if p.neurons.fires]
    assert all(0.02 < (want[name] != 0).mean() < 0.4 for name in fire)
    return {name: (got[name].spikes != 0) != (want[name] != 0) for name in fire}


def share(wrong: Mapping[str, np.ndarray]) -> float:
    """The share of spikes that differ, over all populations."""
    return float(np.concatenate([x.reshape(-1) for x in wrong.values()]).mean())


def table(seeds: int = 10, keeps: Sequence[float] = (0.5, 0.8)) -> None:
    """Print the shares in percent, by rule and precision: of all networks, the worst one and population."""
    for rule in RULES:
        line = [f"{rule:<21}"]
        for precision in slices.PRECISIONS:
            networks, populations = [], []
            for seed, keep in itertools.product(range(seeds), keeps):
                floats, raster = network(rule, seed, keep)
                differ = wrong(quantize(floats, weight_precision=precision), floats, raster)
                networks.append(100 * share(differ))
                populations += [100 * float(x.mean()) for x in differ.values()]
            mean, worst = float(np.mean(networks)), (max(networks), max(populations))
            line.append(f"{precision:>4} {mean:.3f} {worst[0]:.3f} {worst[1]:.3f}")
        print("  ".join(line), flush=True)


if __name__ == "__main__":
    table()
