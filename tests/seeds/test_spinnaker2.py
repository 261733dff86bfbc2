"""Chains of NIR's neurons with the reset by subtraction that SpiNNaker2's compiler assumes.

Composed into weights: sums and averages over windows, into the convolution behind them. A step counts v +
dt / tau (r I - v + v_leak), with a current before it for CubaLIF. Weights are on a grid of powers of two.
The decay of the last layer is not, so that none of its neurons may come near its threshold; elsewhere ties
count.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from stl_deploy.ir.floats import FloatNetwork
from stl_deploy.ir.readouts import FloatReadout
from tests.build import seeds
from tests.build.seeds import Draft, Float, Ran, Watch, conv, dense, per_channel
from tests.build.seeds_quantized import CHIPS, same_everywhere

T, SAMPLES, CLASSES = 10, 6, 11
SHAPES = {"if": (6, 8, 8), "lif": (8, 4, 4), "cuba": (CLASSES,)}
STEP, LEAK = 0.25, 0.125  # dt / tau and v_leak of the LIF
MEM, SYN, W_IN = 0.3, 0.4, 1.5  # dt / tau_mem, dt / tau_syn and w_in of the CubaLIF


@dataclass
class System:
    weight: dict[str, Float]
    bias: dict[str, Float]


def drawn(rng: np.random.Generator, pool: str) -> tuple[System, np.ndarray, Ran]:
    sizes = {"if": (6, 2, 3, 3), "lif": (8, 6, 3, 3), "cuba": (CLASSES, 128)}
    spread = {"if": 1.0, "lif": 3.0 if pool == "avg" else 1.0, "cuba": 1.5}
    system = System(
        {n: seeds.weights(rng, s, spread[n], 5 if n != "cuba" else 25) for n, s in sizes.items()},
        {n: seeds.grid(rng.uniform(-0.1, 0.1, s[0]), 5) for n, s in sizes.items()},
    )
    x = seeds.spikes(rng, (SAMPLES, T, 2, 8, 8), 0.2)
    return system, x, theirs(system, x, pool)


def theirs(s: System, x: np.ndarray, pool: str) -> Ran:
    ran = Ran(watch=Watch())
    v = {name: np.zeros((SAMPLES, *shape)) for name, shape in SHAPES.items()}
    current = np.zeros((SAMPLES, CLASSES))
    for t in range(T):
        v["if"] += seeds.conv2d(x[:, t].astype(np.float64), s.weight["if"], padding=1)
        v["if"] += per_channel(s.bias["if"])
        fired = (v["if"] > 1).astype(np.float64)
        v["if"] -= fired
        y = seeds.avg_pool(ran.note("if", fired), 2) * (4 if pool == "sum" else 1)
        arriving = seeds.conv2d(y, s.weight["lif"], padding=1) + per_channel(s.bias["lif"])
        v["lif"] += STEP * (arriving / STEP - v["lif"] + LEAK)
        fired = (v["lif"] > 1).astype(np.float64)
        v["lif"] -= fired
        y = ran.note("lif", fired).reshape(SAMPLES, -1)
        arriving = y @ s.weight["cuba"].T + s.bias["cuba"]
        current += SYN * (W_IN * arriving - current)
        v["cuba"] += MEM * (current - v["cuba"])
        fired = ran.watch.above(v["cuba"], 0.25)
        v["cuba"] -= 0.25 * fired
        ran.note("cuba", fired)
    ran.classes = np.sum(ran.sent["cuba"], axis=0).argmax(axis=1)
    return ran


def ours(s: System, pool: str) -> FloatNetwork:
    one = np.ones(1)
    draft = Draft({"input": (2, 8, 8)})
    first = seeds.neurons(SHAPES["if"], 1.0, reset="subtract")
    draft.add("if", SHAPES["if"], first, per_channel(s.bias["if"]))
    draft.connect("input", "if", conv(s.weight["if"], padding=1))
    second = seeds.neurons(SHAPES["lif"], 1 - STEP, reset="subtract", leak=STEP * LEAK * one)
    draft.add("lif", SHAPES["lif"], second, per_channel(s.bias["lif"]))
    kernel = seeds.pooled_before(s.weight["lif"], 2) * (4 if pool == "sum" else 1)
    draft.connect("if", "lif", conv(kernel, 2, 2))
    third = seeds.neurons(
        SHAPES["cuba"],
        1 - MEM,
        0.25,
        reset="subtract",
        kind="cuba",
        gain=MEM * one,
        current=SYN * one,
        drive=SYN * W_IN * one,
    )
    draft.add("cuba", SHAPES["cuba"], third, s.bias["cuba"])
    draft.connect("lif", "cuba", dense(s.weight["cuba"]))
    return draft.network(FloatReadout(CLASSES, 1, "cuba"))


@pytest.mark.parametrize("pool", ["avg", "sum"])
@pytest.mark.parametrize("seed", range(4))
def test_spikes_and_classes(seed: int, pool: str) -> None:
    system, x, ran = seeds.working(seed, lambda rng: drawn(rng, pool))
    seeds.agree(ours(system, pool), x, ran)


@pytest.mark.parametrize("chip", CHIPS)
def test_in_whole_numbers(chip: str) -> None:
    system, x, _ = seeds.working(0, lambda rng: drawn(rng, "avg"))
    same_everywhere(ours(system, "avg"), x, chip)
