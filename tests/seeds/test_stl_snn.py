"""STL-SNN: thresholds that are trained, one for each neuron; max pooling of spikes; groups of voting neurons.

Everything is on a grid of powers of two. Nothing stands between the neurons but the pools, which are
neurons of their own (``Threshold``), and the average over groups, which is the readout's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from stl_deploy.ir.float_neurons import FloatNeurons
from stl_deploy.ir.floats import FloatNetwork
from stl_deploy.ir.readouts import FloatReadout
from tests.build import seeds
from tests.build.seeds import ONE, ZERO, Draft, Float, Ran, conv, dense, window
from tests.build.seeds_quantized import CHIPS, same_everywhere

T, GROUP = 8, 4
LAYERS = {"conv1": (6, 8, 8), "conv2": (8, 4, 4), "fc1": (40,), "fc2": (10 * GROUP,)}


@dataclass
class System:
    weight: dict[str, Float]
    bias: dict[str, Float]
    theta: dict[str, Float]


def drawn(rng: np.random.Generator) -> tuple[System, np.ndarray, Ran]:
    sizes = {"conv1": (6, 2, 3, 3), "conv2": (8, 6, 3, 3), "fc1": (40, 32), "fc2": (10 * GROUP, 40)}
    system = System(
        {name: seeds.weights(rng, size, 1.2) for name, size in sizes.items()},
        {name: seeds.grid(rng.uniform(-0.1, 0.2, size[0]), 5) for name, size in sizes.items()},
        {name: seeds.grid(rng.uniform(0.2, 1.5, shape), 5) for name, shape in LAYERS.items()},
    )
    x = seeds.spikes(rng, (6, T, 2, 8, 8))
    return system, x, theirs(system, x)


def theirs(system: System, x: np.ndarray) -> Ran:
    ran, v = Ran(), dict.fromkeys(LAYERS, 0.0)

    def neurons(name: str, current: Float) -> Float:
        h = 0.5 * v[name] + current
        s = (h >= system.theta[name]).astype(np.float64)
        v[name] = (1 - s) * h
        return ran.note(name, s)

    def layer(name: str, s: Float) -> Float:
        w, b = system.weight[name], system.bias[name]
        if w.ndim == 2:
            return neurons(name, s.reshape(len(s), -1) @ w.T + b)
        return neurons(name, seeds.conv2d(s, w, padding=1) + b[:, None, None])

    voted = np.zeros((len(x), 10))
    for t in range(T):
        s = layer("conv1", x[:, t].astype(np.float64))
        s = ran.note("pool1", seeds.blocks(s, 2).max(axis=-1))
        s = layer("conv2", s)
        s = ran.note("pool2", seeds.blocks(s, 2).max(axis=-1))
        s = layer("fc2", layer("fc1", s))
        voted += s.reshape(-1, 10, GROUP).mean(axis=2)
    ran.classes = voted.argmax(axis=1)
    return ran


def ours(system: System) -> FloatNetwork:
    draft, source = Draft({"input": (2, 8, 8)}), "input"
    for name, shape in LAYERS.items():
        theta = seeds.reached(system.theta[name])
        bias = system.bias[name].reshape(-1, *[1] * (len(shape) - 1))
        draft.add(name, shape, seeds.neurons(shape, 0.5, theta), bias)
        weight = system.weight[name]
        draft.connect(source, name, conv(weight, padding=1) if weight.ndim == 4 else dense(weight))
        source = name
        if len(shape) == 3:
            source = f"pool{name[-1]}"
            half = shape[0], shape[1] // 2, shape[2] // 2
            draft.add(source, half, _any(half))
            draft.connect(name, source, window(shape[0], 2))
    return draft.network(FloatReadout(10, GROUP, "fc2"))


def _any(shape: tuple[int, ...]) -> FloatNeurons:
    return FloatNeurons("threshold", ONE, ONE, ZERO, np.full(shape, 0.5), ZERO, ONE, ONE)


@pytest.mark.parametrize("seed", range(5))
def test_spikes_and_classes(seed: int) -> None:
    system, x, ran = seeds.working(seed, drawn)
    network = ours(system)
    assert [network.pools(name) for name in ("pool1", "pool2")] == [True, True]
    seeds.agree(network, x, ran)


@pytest.mark.parametrize("chip", CHIPS)
def test_in_whole_numbers(chip: str) -> None:
    system, x, _ = seeds.working(0, drawn)
    same_everywhere(ours(system), x, chip)
