"""TEBN: a BatchNorm whose output is weighted by step, in front of the membrane.

Composed into weights and biases: BatchNorm; the average pools of spikes, into the weights behind them. The
weight of a step is the neurons' own (``amplify``). Both readouts have no neurons: they are a matrix on
counts with an offset, and also integrators whose last voltage counts. Everything is on a grid of powers of
two.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from stl_deploy.ir.floats import FloatNetwork
from stl_deploy.ir.readouts import FloatReadout
from tests.build import seeds
from tests.build.seeds import BatchNorm, Draft, Float, Ran, conv, dense, per_channel
from tests.build.seeds_quantized import CHIPS, same_everywhere

T, CLASSES, GROUP = 6, 8, 4
SHAPES = {"conv1": (6, 8, 8), "conv2": (8, 4, 4), "conv3": (10, 4, 4)}


@dataclass
class System:
    weight: dict[str, Float]
    bias: dict[str, Float]
    norm: dict[str, BatchNorm]
    p: dict[str, Float]
    head: list[tuple[Float, Float]]  # Linear layers on the pooled spikes of the last neurons


def drawn(rng: np.random.Generator, head: str) -> tuple[System, np.ndarray, Ran]:
    sizes = {"conv1": (6, 2, 3, 3), "conv2": (8, 6, 3, 3), "conv3": (10, 8, 3, 3)}
    inner = [(CLASSES, 40)] if head == "resnet" else [(24, 40), (CLASSES * GROUP, 24)]
    system = System(
        {n: seeds.weights(rng, s) / (16 if n == "conv1" else 1) for n, s in sizes.items()},
        {n: seeds.grid(rng.uniform(-0.1, 0.1, s[0]), 5) for n, s in sizes.items()},
        {n: BatchNorm.drawn(rng, s[0], -0.5, 0.3) for n, s in sizes.items()},
        {n: seeds.grid(rng.uniform(0.25, 1.75, T), 3) for n in sizes},
        [(seeds.weights(rng, s), seeds.grid(rng.normal(0, 0.3, s[0]), 5)) for s in inner],
    )
    x = seeds.held(rng, (6, T, 2, 8, 8))
    return system, x, theirs(system, x, head)


def theirs(system: System, x: np.ndarray, head: str) -> Ran:
    ran, v = Ran(), dict.fromkeys(SHAPES, 0.0)

    def layer(name: str, s: Float, t: int) -> Float:
        y = seeds.conv2d(s, system.weight[name], padding=1) + per_channel(system.bias[name])
        v[name] = 0.25 * v[name] + system.p[name][t] * system.norm[name](y)
        fired = (v[name] > 1).astype(np.float64)
        v[name] = v[name] * (1 - fired)
        return ran.note(name, fired)

    out = np.zeros((T, len(x), CLASSES))
    for t in range(T):
        s = seeds.avg_pool(layer("conv1", x[:, t].astype(np.float64), t), 2)
        s = layer("conv3", layer("conv2", s, t), t)
        f = seeds.avg_pool(s, 2).reshape(len(x), -1)
        for w, b in system.head:
            f = f @ w.T + b
        out[t] = f if head == "resnet" else f.reshape(-1, CLASSES, GROUP).mean(axis=2)
    ran.classes = out.mean(axis=0).argmax(axis=1)
    ran.scores = out.sum(axis=0)
    return ran


def ours(system: System, head: str, readout: str) -> FloatNetwork:
    draft, source = Draft({"input": (2, 8, 8)}), "input"
    for name, shape in SHAPES.items():
        norm = system.norm[name]
        p = system.p[name].reshape(T, 1, 1, 1)
        bias = norm.scale * system.bias[name] + norm.shift
        draft.add(name, shape, seeds.neurons(shape, 0.25, 1.0, amplify=p), per_channel(bias))
        weight = seeds.rows(system.weight[name], norm.scale)
        if name == "conv2":
            draft.connect(source, name, conv(seeds.pooled_before(weight, 2), 2, 2))
        else:
            draft.connect(source, name, conv(weight, 1, 1))
        source = name
    matrix, offset = _pool((10, 4, 4), 2), np.zeros(40)
    for w, b in system.head:
        matrix, offset = w @ matrix, w @ offset + b
    if head == "vgg":
        groups = seeds.means(CLASSES, GROUP)
        matrix, offset = groups @ matrix, groups @ offset
    if readout == "matrix":
        return draft.network(FloatReadout(CLASSES, 1, "conv3", matrix=matrix, offset=offset))
    draft.add("out", (CLASSES,), seeds.integrators(CLASSES), offset)
    draft.connect("conv3", "out", dense(matrix))
    return draft.network(FloatReadout(CLASSES, 1, "out", "last"))


def _pool(shape: tuple[int, int, int], size: int) -> Float:
    """The matrix of an average pool of values of ``shape``."""
    every = np.eye(int(np.prod(shape))).reshape(-1, *shape)
    return seeds.avg_pool(every, size).reshape(len(every), -1).T


@pytest.mark.parametrize("readout", ["matrix", "last"])
@pytest.mark.parametrize("head", ["resnet", "vgg"])
@pytest.mark.parametrize("seed", range(3))
def test_spikes_and_classes(seed: int, head: str, readout: str) -> None:
    system, x, ran = seeds.working(seed, lambda rng: drawn(rng, head))
    seeds.agree(ours(system, head, readout), x, ran)


@pytest.mark.parametrize("readout", ["matrix", "last"])
@pytest.mark.parametrize("chip", CHIPS)
def test_in_whole_numbers(chip: str, readout: str) -> None:
    system, x, _ = seeds.working(0, lambda rng: drawn(rng, "vgg"))
    same_everywhere(ours(system, "vgg", readout), x, chip)
