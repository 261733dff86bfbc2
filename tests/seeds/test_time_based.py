"""Time-based losses: a current that a spike clears with the membrane, read out by spikes weighted by step.

Composed into weights: the standardisation of weights at run time, and average pools of spikes, into the
weights behind them. A sum of spikes is two connections with the same weights; the classes, which such a
sum may come before, have neurons of their own. The thresholds stay, with their norm_weight divided out of
the current. Decays are not on a grid of powers of two, so that no neuron may come near its threshold.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pytest

from stl_deploy.ir.float_neurons import FloatNeurons
from stl_deploy.ir.floats import FloatNetwork
from stl_deploy.ir.readouts import FloatReadout
from tests.build import seeds
from tests.build.seeds import Draft, Float, Ran, Watch, conv, dense, per_channel
from tests.build.seeds_quantized import CHIPS, same_everywhere

T, CLASSES = 7, 10
SHAPES = {"conv1": (6, 8, 8), "conv2": (8, 4, 4), "conv3": (8, 4, 4), "fc": (CLASSES,)}


@dataclass
class Time:
    """Time constants: ``tm`` infinite for no leak, ``ts`` 1 for no memory of the current."""

    tm: float
    ts: float


@dataclass
class System:
    weight: dict[str, Float] = field(default_factory=dict)
    norm_weight: dict[str, Float] = field(default_factory=dict)
    norm_bias: dict[str, Float] = field(default_factory=dict)
    theta: dict[str, Float] = field(default_factory=dict)

    def standardised(self, name: str) -> Float:
        """The weights as a layer multiplies with them, before the norm_weight that its thresholds carry."""
        w = self.weight[name]
        axes = tuple(range(1, w.ndim))
        mean, deviation = w.mean(axes, keepdims=True), w.std(axes, keepdims=True)
        return (w - mean) / np.sqrt(deviation**2 + 1e-5)

    def whole(self, name: str) -> Float:
        """The same with norm_weight and norm_bias."""
        scaled = seeds.rows(self.standardised(name), self.norm_weight[name])
        return scaled + self.norm_bias[name].reshape(-1, *[1] * (scaled.ndim - 1))


def drawn(rng: np.random.Generator, time: Time, readout: str) -> tuple[System, np.ndarray, Ran]:
    s = System()
    sizes = {"conv1": (6, 2, 3, 3), "conv2": (8, 6, 3, 3), "conv3": (8, 8, 3, 3)}
    for name, size in (sizes | {"fc": (CLASSES, 128)}).items():
        fan = int(np.prod(size[1:]))
        s.weight[name] = rng.normal(0, 1, size)
        s.norm_weight[name] = rng.uniform(1.5, 2.5, size[0]) / np.sqrt(fan)
        s.norm_bias[name] = rng.uniform(0, 1.5, size[0]) / fan
        s.theta[name] = rng.uniform(0.2, 0.5, size[0])
    x = seeds.held(rng, (6, T, 2, 8, 8), -10, 10)
    return s, x, theirs(s, x, time, readout)


def theirs(s: System, x: np.ndarray, time: Time, readout: str) -> Ran:
    ran = Ran(watch=Watch())
    c, u = dict.fromkeys(SHAPES, 0.0), dict.fromkeys(SHAPES, 0.0)

    def layer(name: str, given: Float) -> Float:
        w, theta = s.whole(name), s.theta[name]
        if w.ndim == 2:
            current = given.reshape(len(given), -1) @ w.T
        else:
            current, theta = seeds.conv2d(given, w, padding=1), per_channel(theta)
        c[name] = (1 - 1 / time.ts) * c[name] + current
        u[name] = (1 - 1 / time.tm) * u[name] + c[name] / time.ts
        fired = ran.watch.above(u[name], theta)
        c[name], u[name] = c[name] * (1 - fired), u[name] * (1 - fired)
        return ran.note(name, fired)

    score = np.zeros((len(x), CLASSES))
    for t in range(T):
        y = seeds.avg_pool(layer("conv1", x[:, t] / 8), 2)
        y = layer("conv2", y)
        y = layer("conv3", y) + y
        out = layer("fc", y)
        score += out * (11 * T - t) if readout == "linear" else out * 2.0**-t
    ran.classes = score.argmax(axis=1)
    ran.scores = score if readout == "linear" else score * 2.0 ** (T - 1)
    return ran


def ours(s: System, time: Time, readout: str) -> FloatNetwork:
    draft = Draft({"input": (2, 8, 8)})
    for name, shape in SHAPES.items():
        # u / norm_weight is what the neurons count in: the kernel stays, and the threshold is divided.
        norm, bias = s.norm_weight[name], s.norm_bias[name]
        weight = s.standardised(name)
        weight = weight + (bias / norm).reshape(-1, *[1] * (weight.ndim - 1))
        theta = (s.theta[name] / norm).reshape(-1, *[1] * (len(shape) - 1))
        draft.add(name, shape, _neurons(shape, theta, time))
        if name == "conv1":
            draft.connect("input", name, conv(weight / 8, padding=1))
        elif name == "conv2":
            draft.connect("conv1", name, conv(seeds.pooled_before(weight, 2), 2, 2))
        elif name == "conv3":
            draft.connect("conv2", name, conv(weight, padding=1))
        else:
            draft.connect(["conv2", "conv3"], name, dense(weight))
    steps = [11 * T - t if readout == "linear" else 2 ** (T - 1 - t) for t in range(T)]
    return draft.network(FloatReadout(CLASSES, 1, "fc", steps=tuple(map(float, steps))))


def _neurons(shape: tuple[int, ...], theta: Float, time: Time) -> FloatNeurons:
    one = np.ones(1)
    return seeds.neurons(
        shape,
        1 - 1 / time.tm,
        seeds.reached(theta),
        kind="cuba",
        current=one / time.ts,
        gain=one / time.ts,
        reset_current=True,
    )


@pytest.mark.parametrize("readout", ["linear", "halved"])
@pytest.mark.parametrize(
    "time", [Time(5, 3), Time(np.inf, 3), Time(5, 1), Time(np.inf, 1)], ids=repr
)
@pytest.mark.parametrize("seed", range(2))
def test_spikes_and_classes(seed: int, time: Time, readout: str) -> None:
    system, x, ran = seeds.working(seed, partial(drawn, time=time, readout=readout))
    seeds.agree(ours(system, time, readout), x, ran)


def test_first_spike_times_as_input() -> None:
    """A network may also be given one spike for each value, the earlier the larger it is."""

    def draw(rng: np.random.Generator) -> tuple[System, np.ndarray, Ran]:
        system, _, _ = drawn(rng, Time(5, 3), "linear")
        system.weight["conv1"] += 0.5
        system.norm_weight["conv1"] *= 8
        at = rng.integers(0, T, (6, 1, 2, 8, 8))
        x = (np.arange(T).reshape(1, T, 1, 1, 1) == at).astype(np.uint8)
        return system, x, theirs(system, x, Time(5, 3), "linear")

    system, x, ran = seeds.working(0, draw)
    seeds.agree(ours(system, Time(5, 3), "linear"), x, ran)


@pytest.mark.parametrize("time", [Time(5, 3), Time(np.inf, 3)], ids=repr)
@pytest.mark.parametrize("chip", CHIPS)
def test_in_whole_numbers(chip: str, time: Time) -> None:
    system, x, _ = seeds.working(0, partial(drawn, time=time, readout="linear"))
    same_everywhere(ours(system, time, "linear"), x, chip)
