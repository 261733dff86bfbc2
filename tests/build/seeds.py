"""Systems of other authors: what their equations need in numpy, and float networks put together by hand.

A test of ``tests/seeds`` has two parts. One writes the equations of a system out step by step, with the
operations that stand between the neurons (BatchNorm, pooling, concatenation) as they are. The other is the
same network as populations and connections, with these operations composed into weights and biases.

Sums of floats depend on their order, and so may spikes at a threshold. Where all constants of a system are
multiples of powers of two, so are the weights drawn here (``grid``), every sum is exact, and ties count.
Elsewhere ``Watch`` makes sure that nothing came near a threshold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from stl_deploy.ir import execute
from stl_deploy.ir.float_neurons import FloatNeurons
from stl_deploy.ir.floats import (
    FloatConnection,
    FloatNetwork,
    FloatPopulation,
    OneToOne,
    Way,
    Weights,
    Window,
)
from stl_deploy.ir.readouts import FloatReadout
from stl_deploy.ir.synapses import Geometry, Pair, Shape

Float = NDArray[np.float64]
LOW, HIGH = 0.05, 0.60
NEAR = 1e-9
EPS = 2.0**-16  # of a BatchNorm, so that var + EPS is a power of four exactly

# The systems' own operations


def conv2d(x: Float, weight: Float, stride: int | Pair = 1, padding: int | Pair = 0) -> Float:
    """Cross-correlation of x [N, C, H, W] with weight [O, C, kh, kw]."""
    (sh, sw), (ph, pw) = _pair(stride), _pair(padding)
    x = np.pad(x, ((0, 0), (0, 0), (ph, ph), (pw, pw)))
    windows = sliding_window_view(x, weight.shape[2:], axis=(2, 3))[:, :, ::sh, ::sw]
    return np.einsum("nchwij,ocij->nohw", windows, weight)


def _pair(value: int | Pair) -> Pair:
    return (value, value) if isinstance(value, int) else value


def blocks(x: Float, size: int) -> Float:
    """x [N, C, H, W] in windows that tile it: [N, C, H / size, W / size, size * size]."""
    n, c, h, w = x.shape
    parts = x.reshape(n, c, h // size, size, w // size, size).swapaxes(3, 4)
    return parts.reshape(n, c, h // size, w // size, size * size)


def avg_pool(x: Float, size: int) -> Float:
    """Means over windows that tile x [N, C, H, W]."""
    return blocks(x, size).mean(axis=-1)


@dataclass
class BatchNorm:
    """BatchNorm with its running statistics, each [C]."""

    gamma: Float
    beta: Float
    mean: Float
    var: Float

    @classmethod
    def drawn(
        cls, rng: np.random.Generator, channels: int, low: float = -0.25, high: float = 0.5
    ) -> BatchNorm:
        """All multiples of 1/16, the deviation a power of two, the constant part from about low to high."""
        return cls(
            grid(rng.uniform(0.5, 1.5, channels), 4),
            grid(rng.uniform(low, high, channels), 4),
            grid(rng.uniform(-0.25, 0.25, channels), 4),
            4.0 ** rng.integers(-1, 1, channels) - EPS,
        )

    def __call__(self, x: Float) -> Float:
        """Of x [N, C, ...]."""
        gamma, beta, mean, var = (
            a.reshape(-1, *[1] * (x.ndim - 2)) for a in (self.gamma, self.beta, self.mean, self.var)
        )
        return (x - mean) / np.sqrt(var + EPS) * gamma + beta

    @property
    def scale(self) -> Float:
        """The factor of each channel [C]."""
        return self.gamma / np.sqrt(self.var + EPS)

    @property
    def shift(self) -> Float:
        """What is added to each channel behind the factor [C]."""
        return self.beta - self.mean * self.scale


@dataclass
class Watch:
    """How near any neuron came to its threshold."""

    least: float = np.inf

    def above(self, v: Float, theta: Any) -> Float:
        """1 where v > theta, which is v >= theta where nothing is near."""
        self.least = min(self.least, float(np.abs(v - theta).min()))
        return (v > theta).astype(np.float64)


# Random parts


def grid(values: Any, bits: int) -> Float:
    """``values`` rounded to multiples of 2^-bits."""
    return np.asarray(np.rint(np.asarray(values) * 2.0**bits) / 2.0**bits, np.float64)


def weights(
    rng: np.random.Generator, size: Shape, spread: float = 1.0, bits: int = 5, mean: float = 0.3
) -> Float:
    """Weights of which some tens of spikes add up to about ``spread``, on a grid of 2^-bits."""
    fan = np.prod(size[1:]) / 4
    return grid(spread * rng.normal(mean / np.sqrt(fan), 1, size) / np.sqrt(fan), bits)


def spikes(rng: np.random.Generator, size: Shape, rate: float = 0.3) -> NDArray[np.uint8]:
    """Random spikes [N, T, ...]."""
    return (rng.random(size) < rate).astype(np.uint8)


def held(rng: np.random.Generator, size: Shape, low: int = 0, top: int = 15) -> NDArray[np.int16]:
    """Frames of whole numbers, the same in every step of [N, T, ...]."""
    frame = rng.integers(low, top + 1, (size[0], 1, *size[2:]))
    return np.repeat(frame, size[1], axis=1).astype(np.int16)


# Operations composed into weights


def pooled_behind(weight: Float, size: int) -> Float:
    """The kernel of a convolution of stride 1 whose outputs are then averaged over windows of ``size``.

    Its stride is ``size``, its padding that of the convolution.
    """
    o, c, h, w = weight.shape
    wide = np.zeros((o, c, h + size - 1, w + size - 1))
    for i, j in np.ndindex(size, size):
        wide[:, :, i : i + h, j : j + w] += weight / size**2
    return wide


def pooled_before(weight: Float, size: int) -> Float:
    """The kernel of a convolution of what was averaged over windows of ``size``.

    Stride and padding are ``size`` times those of the convolution.
    """
    wide: Float = np.kron(weight, np.ones((size, size))) / size**2
    return wide


def means(channels: int, plane: int) -> Float:
    """The matrix [C, C * plane] of a global average over so many places."""
    return np.kron(np.eye(channels), np.ones(plane)) / plane


def placed(weight: Float, first: int, channels: int) -> Float:
    """``weight`` [O, ...] as rows first.. of one with so many rows, the others 0."""
    wide = np.zeros((channels, *weight.shape[1:]))
    wide[first : first + len(weight)] = weight
    return wide


def rows(weight: Float, factors: Float) -> Float:
    """``weight`` [O, ...] with each row times its factor [O]."""
    return weight * factors.reshape(-1, *[1] * (weight.ndim - 1))


def per_channel(values: Float) -> Float:
    """``values`` [C] for a population [C, H, W]."""
    return values[:, None, None]


# Float networks

ONE, ZERO = np.ones(1), np.zeros(1)


def neurons(shape: Shape, keep: Any, theta: Any = 1.0, **fields: Any) -> FloatNeurons:
    """v = keep v + gain I + leak, which fire above ``theta`` and go to 0."""
    given: dict[str, Any] = {
        "kind": "lif",
        "step": 1 - np.asarray(keep, np.float64),
        "gain": ONE,
        "leak": ZERO,
        "threshold": np.broadcast_to(np.asarray(theta, np.float64), shape).copy(),
        "v_reset": ZERO,
        "current": ONE,
        "drive": ONE,
    }
    return FloatNeurons(**(given | fields))


def integrators(size: int, keep: Any = 1.0, **fields: Any) -> FloatNeurons:
    """Neurons that never fire."""
    return neurons((size,), keep, fires=False, **fields)


def reached(theta: Any) -> Float:
    """The threshold of neurons that fire at v >= theta."""
    below: Float = np.nextafter(np.asarray(theta, np.float64), -np.inf)
    return below


@dataclass
class Draft:
    """A float network in the making."""

    inputs: Mapping[str, Shape]
    populations: list[FloatPopulation] = field(default_factory=list)
    connections: list[FloatConnection] = field(default_factory=list)

    def add(self, name: str, shape: Shape, made: FloatNeurons, bias: Any = 0.0) -> None:
        """A population with its bias, which broadcasts to ``shape``."""
        full = np.asarray(bias, np.float64)
        full = full if full.ndim else np.full((1,) * len(shape), float(bias))
        self.populations.append(FloatPopulation(name, shape, made, full))

    def connect(
        self, sources: str | Iterable[str], target: str, way: Callable[[str], Way], **fields: int
    ) -> None:
        """Connections from ``sources``, which share the weights; ``fields`` are delay and port."""
        name = f"{target}_w{sum(c.target == target for c in self.connections)}"
        made = way(name)
        self.connections += [
            FloatConnection(source, target, made, **fields)
            for source in ((sources,) if isinstance(sources, str) else sources)
        ]

    def network(self, readout: FloatReadout) -> FloatNetwork:
        """The network."""
        made = tuple(self.populations), tuple(self.connections)
        return FloatNetwork(self.inputs, *made, readout.source, None, readout)


def dense(weight: Float) -> Callable[[str], Way]:
    """All-to-all weights [O, I]."""
    return lambda name: Weights(name, weight, None, None)


def conv(weight: Float, stride: int | Pair = 1, padding: int | Pair = 0) -> Callable[[str], Way]:
    """A convolution."""
    geometry = Geometry(_pair(stride), _pair(padding), (1, 1), 1)
    return lambda name: Weights(name, weight, None, geometry)


def same(shape: Shape, factor: Any = 1.0) -> Callable[[str], Way]:
    """Each value to its own neuron, times a factor that broadcasts to ``shape``."""
    full = np.broadcast_to(np.asarray(factor, np.float64), shape).copy()
    return lambda name: OneToOne(name, full)


def window(channels: int, size: int) -> Callable[[str], Way]:
    """Sums over windows that tile each channel."""
    pair = size, size
    return lambda name: Window(name, channels, pair, pair, (0, 0))


# Comparison


@dataclass
class Ran:
    """What the equations gave: spikes [N, T, ...] by population, and the class of each sample [N]."""

    sent: dict[str, list[Float]] = field(default_factory=dict)
    classes: Any = None
    scores: Float | None = None  # [N, classes], in the readout's units
    watch: Watch | None = None

    def note(self, name: str, sent: Float) -> Float:
        """Remember what a population sent in the next step."""
        self.sent.setdefault(name, []).append(sent)
        return sent

    @property
    def spikes(self) -> dict[str, Float]:
        """[N, T, ...] by population."""
        return {name: np.stack(steps, axis=1) for name, steps in self.sent.items()}

    @property
    def works(self) -> bool:
        """Whether every population fires, and not all the time."""
        rates = [(sent != 0).mean() for sent in self.spikes.values()]
        return all(LOW <= rate <= HIGH for rate in rates)


def working(seed: int, draw: Callable[[np.random.Generator], tuple[Any, Any, Ran]]) -> Any:
    """The first draw (system, input, what its equations gave) in which every population fires."""
    for attempt in range(100):
        system, x, ran = draw(np.random.default_rng([seed, attempt]))
        if ran.works:
            return system, x, ran
    rates = {name: round(float((sent != 0).mean()), 3) for name, sent in ran.spikes.items()}
    raise AssertionError(f"no draw in which all fire; the last one: {rates}")


def agree(network: FloatNetwork, x: Any, ran: Ran) -> None:
    """Assert that ``network`` spikes and predicts as the equations say."""
    got, assert_equal = execute.trace(network, x), np.testing.assert_array_equal
    for name, sent in ran.spikes.items():
        assert_equal(got.sent[name], sent, err_msg=name)
    assert network.readout is not None
    last = got.sent[network.output], got.v
    assert_equal(network.readout.predict(*last), ran.classes)
    if ran.scores is not None:
        np.testing.assert_allclose(network.readout.scores(*last), ran.scores, 1e-9, 1e-12)
    if ran.watch is not None:
        assert ran.watch.least > NEAR
