"""Rate-based backpropagation: a subtracting reset, in BasicBlocks, SEW and pre-activation networks.

Composed into weights and biases: BatchNorm, those of a sum of currents too, and the global average. A sum
of spikes is two connections with the same weights. The classifier has no neurons: a matrix on the counts
of the last neurons, or integrators where it reads the sum of two populations. The largest of four currents
(the stem of pre-activation networks) is carried by graded neurons without memory, which send what they
receive where it is above zero: max(a, b) = a + relu(b - a). A decay of 0.2 is not on a grid of powers of
two, so that no neuron may come near its threshold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pytest

from stl_deploy.ir.float_neurons import FloatNeurons
from stl_deploy.ir.floats import FloatNetwork
from stl_deploy.ir.readouts import FloatReadout
from tests.build import seeds
from tests.build.seeds import (
    BatchNorm,
    Draft,
    Float,
    Ran,
    Watch,
    conv,
    dense,
    per_channel,
    same,
)
from tests.build.seeds_quantized import CHIPS, same_everywhere

T, SIDE, WIDTH, CLASSES = 6, 8, 6, 10
TAU = 1.25


@dataclass
class System:
    conv: dict[str, Float] = field(default_factory=dict)
    norm: dict[str, BatchNorm] = field(default_factory=dict)
    fc: tuple[Float, Float] = (np.zeros(0), np.zeros(0))


def drawn(
    rng: np.random.Generator, run: Callable[[System, np.ndarray], Ran]
) -> tuple[System, np.ndarray, Ran]:
    s, norm = System(), partial(BatchNorm.drawn, rng, low=-0.5, high=0.3)
    kernel = partial(seeds.weights, rng, bits=25)
    s.conv["conv0"] = kernel((WIDTH, 2, 3, 3)) / 16
    s.norm["conv0"] = norm(WIDTH)
    for name in ("a.1", "a.2", "b.1", "b.2"):
        s.conv[name] = kernel((WIDTH, WIDTH, 3, 3))
        s.norm[name] = norm(WIDTH)
    s.conv["shortcut"] = kernel((WIDTH, WIDTH, 1, 1), 0.7)
    s.norm["shortcut"], s.norm["end"] = norm(WIDTH), norm(WIDTH)
    s.fc = kernel((CLASSES, WIDTH)), seeds.grid(rng.normal(0, 0.3, CLASSES), 5)
    x = seeds.held(rng, (6, T, 2, SIDE, SIDE))
    return s, x, run(s, x)


# As the equations say


class Lif:
    """SpikingJelly's LIF: tau 1.25, decay_input False, v_reset None."""

    def __init__(self, ran: Ran) -> None:
        self.ran, self.v = ran, dict[str, Float]()

    def __call__(self, name: str, current: Float) -> Float:
        v = self.v.get(name, np.zeros_like(current))
        h = v - v / TAU + current
        s = self.ran.watch.above(h, 1)
        self.v[name] = h - s
        return self.ran.note(name, s)


def run_with(s: System, x: np.ndarray, features: Callable[[Lif, Float], Float]) -> Ran:
    ran, total = Ran(watch=Watch()), np.zeros((len(x), CLASSES))
    lif = Lif(ran)
    for t in range(T):
        f = features(lif, x[:, t].astype(np.float64)).mean(axis=(2, 3))
        total += f @ s.fc[0].T + s.fc[1]
    ran.classes, ran.scores = (total / T).argmax(axis=1), total
    return ran


def normed(s: System, name: str, x: Float, padding: int = 1) -> Float:
    return s.norm[name](seeds.conv2d(x, s.conv[name], padding=padding))


def basic(s: System, x: np.ndarray) -> Ran:
    """The shortcut, a convolution or not, comes before the second neurons."""

    def features(lif: Lif, x: Float) -> Float:
        y = lif("conv0", normed(s, "conv0", x))
        short = normed(s, "shortcut", y, padding=0)
        y = lif("a.2", normed(s, "a.2", lif("a.1", normed(s, "a.1", y))) + short)
        return lif("b.2", normed(s, "b.2", lif("b.1", normed(s, "b.1", y))) + y)

    return run_with(s, x, features)


def sew(s: System, x: np.ndarray) -> Ran:
    """Spikes are summed behind the second neurons."""

    def features(lif: Lif, x: Float) -> Float:
        y = lif("conv0", normed(s, "conv0", x))
        y = lif("a.2", normed(s, "a.2", lif("a.1", normed(s, "a.1", y)))) + y
        return lif("b.2", normed(s, "b.2", lif("b.1", normed(s, "b.1", y)))) + y

    return run_with(s, x, features)


def preact(s: System, x: np.ndarray) -> Ran:
    """BatchNorm and neurons stand before each convolution, and currents are summed."""

    def features(lif: Lif, x: Float) -> Float:
        c = seeds.blocks(seeds.conv2d(x, s.conv["conv0"], padding=1), 2).max(axis=-1)
        for name in ("a", "b"):
            one = seeds.conv2d(
                lif(f"{name}.1", s.norm[f"{name}.1"](c)), s.conv[f"{name}.1"], padding=1
            )
            two = lif(f"{name}.2", s.norm[f"{name}.2"](one))
            c = c + seeds.conv2d(two, s.conv[f"{name}.2"], padding=1)
        return lif("end", s.norm["end"](c))

    return run_with(s, x, features)


# As populations


def _lif(side: int = SIDE) -> FloatNeurons:
    shape = WIDTH, side, side
    return seeds.neurons(shape, 1 - 1 / TAU, seeds.reached(1.0), reset="subtract")


class Blocks(Draft):
    """A network of populations [WIDTH, SIDE, SIDE]."""

    def __init__(self, s: System) -> None:
        super().__init__({"input": (2, SIDE, SIDE)})
        self.s = s

    def stage(self, name: str, sources: str | list[str], extra: Float | None = None) -> None:
        """Neurons behind a convolution and its BatchNorm."""
        norm, kernel = self.s.norm[name], self.s.conv[name]
        bias = norm.shift if extra is None else norm.shift + extra
        self.add(name, (WIDTH, SIDE, SIDE), _lif(), per_channel(bias))
        self.connect(sources, name, conv(seeds.rows(kernel, norm.scale), padding=1))

    def counted(self, source: str, side: int = SIDE) -> FloatNetwork:
        """Classified by the counts of ``source``."""
        matrix = self.s.fc[0] @ seeds.means(WIDTH, side * side)
        return self.network(FloatReadout(CLASSES, 1, source, matrix=matrix, offset=self.s.fc[1]))


def our_basic(s: System) -> FloatNetwork:
    draft = Blocks(s)
    draft.stage("conv0", "input")
    draft.stage("a.1", "conv0")
    draft.stage("a.2", "a.1", s.norm["shortcut"].shift)
    draft.connect("conv0", "a.2", conv(seeds.rows(s.conv["shortcut"], s.norm["shortcut"].scale)))
    draft.stage("b.1", "a.2")
    draft.stage("b.2", "b.1")
    draft.connect("a.2", "b.2", same((WIDTH, SIDE, SIDE)))
    return draft.counted("b.2")


def our_sew(s: System) -> FloatNetwork:
    draft = Blocks(s)
    draft.stage("conv0", "input")
    draft.stage("a.1", "conv0")
    draft.stage("a.2", "a.1")
    draft.stage("b.1", ["conv0", "a.2"])
    draft.stage("b.2", "b.1")
    matrix = s.fc[0] @ seeds.means(WIDTH, SIDE * SIDE)
    draft.add("out", (CLASSES,), seeds.integrators(CLASSES), s.fc[1])
    draft.connect(["conv0", "a.2", "b.2"], "out", dense(matrix))
    return draft.network(FloatReadout(CLASSES, 1, "out", "last"))


def our_preact(s: System) -> FloatNetwork:
    draft, side = Blocks(s), SIDE // 2
    shape = WIDTH, side, side
    corners = {}
    for i, j in np.ndindex(2, 2):
        corners[i, j] = np.zeros((WIDTH, 2, 4, 4))
        corners[i, j][:, :, i : i + 3, j : j + 3] = s.conv["conv0"]
    a, b, c, d = corners.values()

    def above_zero(name: str, kernel: Float, more: Mapping[str, float]) -> None:
        """Neurons that send what arrives where it is above zero."""
        draft.add(name, shape, seeds.neurons(shape, 0.0, 0.0, graded=True))
        draft.connect("input", name, conv(kernel, 2, 1))
        for source, factor in more.items():
            draft.connect(source, name, same(shape, factor))

    above_zero("max.1", b - a, {})  # max(a, b) = a + max.1
    above_zero("max.2", d - c, {})  # max(c, d) = c + max.2
    above_zero("max.3", c - a, {"max.2": 1, "max.1": -1})  # max of all = a + max.1 + max.3
    before: list[str] = []
    for name in ("a", "b"):
        one, two = f"{name}.1", f"{name}.2"
        _sum_of_currents(draft, one, before, a)
        norm = s.norm[two]
        draft.add(two, shape, _lif(side), per_channel(norm.shift))
        draft.connect(one, two, conv(seeds.rows(s.conv[one], norm.scale), padding=1))
        before.append(two)
    _sum_of_currents(draft, "end", before, a)
    return draft.counted("end", side)


def _sum_of_currents(draft: Blocks, name: str, before: list[str], stem: Float) -> None:
    """Neurons behind a BatchNorm of the stem's largest currents and those of all blocks ``before``."""
    norm, side = draft.s.norm[name], SIDE // 2
    draft.add(name, (WIDTH, side, side), _lif(side), per_channel(norm.shift))
    draft.connect("input", name, conv(seeds.rows(stem, norm.scale), 2, 1))
    scale = per_channel(norm.scale)
    draft.connect(["max.1", "max.3"], name, same((WIDTH, side, side), scale))
    for block in before:
        kernel = seeds.rows(draft.s.conv[block], norm.scale)
        draft.connect(block, name, conv(kernel, padding=1))


@pytest.mark.parametrize(
    ("run", "build"), [(basic, our_basic), (sew, our_sew), (preact, our_preact)]
)
@pytest.mark.parametrize("seed", range(3))
def test_spikes_and_classes(
    seed: int,
    run: Callable[[System, np.ndarray], Ran],
    build: Callable[[System], FloatNetwork],
) -> None:
    system, x, ran = seeds.working(seed, lambda rng: drawn(rng, run))
    seeds.agree(build(system), x, ran)


@pytest.mark.parametrize(
    ("run", "build"), [(basic, our_basic), (sew, our_sew), (preact, our_preact)]
)
@pytest.mark.parametrize("chip", CHIPS)
def test_in_whole_numbers(
    chip: str,
    run: Callable[[System, np.ndarray], Ran],
    build: Callable[[System], FloatNetwork],
) -> None:
    system, x, _ = seeds.working(0, lambda rng: drawn(rng, run))
    same_everywhere(build(system), x, chip)
