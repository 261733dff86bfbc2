"""Neuronal competition groups: neurons that fire once, pools of first spikes, the class of the earliest.

Nothing stands between the neurons. A pool is a neuron without memory that fires the first time that
anything arrives in its window, and then never again. All weights are on a grid of powers of two, so that
ties count: those of thresholds, of spikes in one step (the larger v wins) and of voltages (the lower index
wins).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from stl_deploy.ir import execute
from stl_deploy.ir.floats import FloatNetwork
from stl_deploy.ir.neurons import ONCE
from stl_deploy.ir.readouts import FloatReadout
from tests.build import seeds
from tests.build.seeds import Draft, Float, Ran, conv, dense
from tests.build.seeds_quantized import CHIPS, same_everywhere

T, SAMPLES, CLASSES, GROUP = 12, 16, 6, 5
SIDE, CHANNELS, POOL = 12, 4, 4  # planes of 12, features of 8 and pools of 2


@dataclass
class System:
    kernel: Float
    theta: float
    weight: Float
    last: Float


def drawn(rng: np.random.Generator, bits: int, strong: float) -> tuple[System, np.ndarray, Ran]:
    pooled = CHANNELS * (SIDE - 4) ** 2 // POOL**2
    system = System(
        seeds.grid(rng.uniform(0, 1, (CHANNELS, 2, 5, 5)), 5),
        float(seeds.grid(rng.uniform(4, 8), 5)),
        seeds.grid(rng.uniform(0, strong, (CLASSES * GROUP, pooled)), bits),
        seeds.grid(rng.uniform(1, 5, CLASSES * GROUP), bits),
    )
    # Every pixel spikes at most once, the brighter the earlier, in one of two channels (on and off).
    at = rng.integers(0, T + 4, (SAMPLES, 1, 2, SIDE, SIDE))
    x = (np.arange(T).reshape(1, T, 1, 1, 1) == at).astype(np.uint8)
    return system, x, theirs(system, x)


class Once:
    """Neurons that add up what arrives until they fire, which they do once."""

    def __init__(self, shape: tuple[int, ...], fires: Callable[[Float], np.ndarray]) -> None:
        self.v, self.fires = np.zeros((SAMPLES, *shape)), fires
        self.at = np.full(self.v.shape, -1)

    def step(self, t: int, current: Float) -> Float:
        silent = self.at < 0
        self.v = np.where(silent, self.v + current, self.v)
        now = silent & self.fires(self.v)
        self.at[now] = t
        return now.astype(np.float64)


def theirs(s: System, x: np.ndarray) -> Ran:
    ran = Ran()
    features = Once((CHANNELS, SIDE - 4, SIDE - 4), lambda v: v >= s.theta)
    pools = np.zeros((SAMPLES, CHANNELS, 2, 2), bool)
    last = Once((CLASSES * GROUP,), lambda v: v > s.last)
    for t in range(T):
        current = seeds.conv2d(x[:, t].astype(np.float64), s.kernel)
        fired = ran.note("features", features.step(t, current))
        reached = seeds.blocks(fired, POOL).max(axis=-1) > 0
        first = ran.note("pools", (reached & ~pools).astype(np.float64))
        pools |= reached
        ran.note("last", last.step(t, first.reshape(SAMPLES, -1) @ s.weight.T))
    ran.classes = [_class(at, v) for at, v in zip(last.at, last.v, strict=True)]
    return ran


def _class(at: np.ndarray, v: Float) -> int:
    """That of the earliest spike; of several the one with the largest v, then the first."""
    fired = np.flatnonzero(at >= 0)
    some = fired[at[fired] == at[fired].min()] if len(fired) else np.arange(len(v))
    return int(some[np.argmax(v[some])]) // GROUP


def ours(s: System) -> FloatNetwork:
    draft = Draft({"input": (2, SIDE, SIDE)})
    once = {"reset": "none", "hold": ONCE}
    shape, pooled = (CHANNELS, SIDE - 4, SIDE - 4), (CHANNELS, 2, 2)
    draft.add("features", shape, seeds.neurons(shape, 1.0, seeds.reached(s.theta), **once))
    draft.connect("input", "features", conv(s.kernel))
    draft.add("pools", pooled, seeds.neurons(pooled, 0.0, 0.5, **once))
    every = np.eye(CHANNELS)[:, :, None, None] * np.ones((POOL, POOL))
    draft.connect("features", "pools", conv(every, POOL))
    size = CLASSES * GROUP
    draft.add("last", (size,), seeds.neurons((size,), 1.0, s.last, **once))
    draft.connect("pools", "last", dense(s.weight))
    return draft.network(FloatReadout(CLASSES, GROUP, "last", "first"))


@pytest.mark.parametrize("bits", [1, 5])  # a coarse grid has many ties
@pytest.mark.parametrize("seed", range(4))
def test_spikes_and_classes(seed: int, bits: int) -> None:
    system, x, ran = seeds.working(seed, lambda rng: drawn(rng, bits, 1.5))
    seeds.agree(ours(system), x, ran)


def test_without_any_spike() -> None:
    """Then the largest voltage tells the class."""
    system, x, _ = drawn(np.random.default_rng(0), 5, 1.5)
    system.last = system.last + 100
    rng = np.random.default_rng(1)
    x = x * (rng.random(x.shape) < np.linspace(0.1, 1, SAMPLES).reshape(-1, 1, 1, 1, 1))
    ran = theirs(system, x)
    assert not np.any(ran.sent["last"])
    assert len(set(ran.classes)) > 2
    seeds.agree(ours(system), x, ran)


def test_ties_are_met() -> None:
    """The draws above hold first spikes in one step, and of those some with equal voltages."""
    together, equal = 0, 0
    for seed in range(4):
        system, x, _ = seeds.working(seed, lambda rng: drawn(rng, 1, 1.5))
        got = execute.trace(ours(system), x)
        fired, v = got.sent["last"], got.v
        for sample in range(SAMPLES):
            steps = np.flatnonzero(fired[sample].any(axis=1))
            if len(steps):
                at = v[sample, steps[0]][fired[sample, steps[0]] != 0]
                together += len(at) > 1
                equal += int((at == at.max()).sum() > 1)
    assert together > 10
    assert equal > 3


@pytest.mark.parametrize("chip", CHIPS)
def test_in_whole_numbers(chip: str) -> None:
    system, x, _ = seeds.working(0, lambda rng: drawn(rng, 5, 1.5))
    same_everywhere(ours(system), x, chip)
