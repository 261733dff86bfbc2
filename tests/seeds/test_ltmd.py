"""LTMD: dense blocks that concatenate currents, a threshold for each layer, a head that emits its membrane.

Composed into weights and biases: every BatchNorm; concatenation, as each consumer's own rows of weights;
the average pool of a transition, into the convolution before it; the global average, into the weights
behind it; the lateral convolution of the head, into its matrix. Carried by graded integrators: the first
convolution with its BatchNorm, behind which a strided one stands without neurons, and whose zeros at the
rim no single kernel has; its bias goes on to the consumers, neuron by neuron. All but the thresholds is on
a grid of powers of two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pytest

from stl_deploy.ir.float_neurons import FloatNeurons
from stl_deploy.ir.floats import FloatNetwork
from stl_deploy.ir.readouts import FloatReadout
from tests.build import seeds
from tests.build.seeds import BatchNorm, Draft, Float, Ran, Watch, conv, dense, per_channel
from tests.build.seeds_quantized import CHIPS, same_everywhere

T, SIDE, FIRST, GROWTH, WIDE, CLASSES, FEATURES = 4, 16, 6, 4, 8, 10, 20
BLOCKS = (2, 2)


@dataclass
class System:
    conv: dict[str, Float] = field(default_factory=dict)
    norm: dict[str, BatchNorm] = field(default_factory=dict)
    w: dict[str, float] = field(default_factory=dict)
    bias: dict[str, Float] = field(default_factory=dict)


def layers() -> list[tuple[str, int]]:
    """Dense layers and the transition, in order, each with the channels that it reads."""
    found, channels = [], FIRST
    for block, count in enumerate(BLOCKS):
        for layer in range(count):
            found.append((f"dense{block}.{layer}", channels))
            channels += GROWTH
        if block == 0:
            found.append(("transition", channels))
            channels //= 2
    return [*found, ("end", channels)]


def drawn(rng: np.random.Generator) -> tuple[System, np.ndarray, Ran]:
    s, kernel = System(), partial(seeds.weights, rng)
    norm = partial(BatchNorm.drawn, rng, low=-0.5, high=0.1)
    s.conv["conv0"] = kernel((FIRST, 1, 3, 3), bits=3) / 16
    s.norm["norm0"] = norm(FIRST)
    s.conv["pool0"] = kernel((FIRST, FIRST, 3, 3), 0.7, bits=3)
    for name, channels in layers():
        if name.startswith("dense"):
            s.norm[f"{name}.1"] = norm(channels)
            s.conv[f"{name}.1"] = kernel((WIDE, channels, 1, 1))
            s.norm[f"{name}.2"] = norm(WIDE)
            s.conv[f"{name}.2"] = kernel((GROWTH, WIDE, 3, 3))
            names = [f"{name}.1", f"{name}.2"]
        elif name == "transition":
            s.norm[name] = norm(channels)
            s.conv[name] = kernel((channels // 2, channels, 1, 1), 1.5)
            names = [name]
        else:
            s.norm[name] = norm(channels)
            s.conv["fc1"], s.conv["fc2"] = kernel((FEATURES, channels)), kernel((CLASSES, FEATURES))
            names = [name, "mean", "fc1", "fc2"]
        s.w |= {n: float(rng.uniform(0.5, 1.2)) for n in names}
    s.w["mean"] = 0.5
    for name in ("fc1", "fc2"):
        s.bias[name] = seeds.grid(rng.uniform(-0.2, 0.3, len(s.conv[name])), 5)
        s.conv[f"lateral {name}"] = seeds.grid(rng.normal(0, 0.3, 5), 5)
    x = seeds.held(rng, (4, T, 1, SIDE, SIDE))
    return s, x, theirs(s, x)


def theirs(s: System, x: np.ndarray) -> Ran:
    ran = Ran(watch=Watch())
    u: dict[str, Float | float] = dict.fromkeys(s.w, 0.0)
    fired: dict[str, Float | float] = dict.fromkeys(s.w, 0.0)

    def step(name: str, current: Float) -> Float:
        u[name] = now = 0.25 * u[name] * (1 - fired[name]) + current
        fired[name] = sent = ran.watch.above(now - np.tanh(s.w[name]), 0)
        return sent

    def spike(name: str, current: Float) -> Float:
        return ran.note(name, step(name, current))

    def emit(name: str, f: Float) -> Float:
        y = f @ s.conv[name].T + s.bias[name]
        padded = np.pad(y, ((0, 0), (2, 2)))
        k = s.conv[f"lateral {name}"]
        y = y + sum(k[i] * padded[:, i : i + y.shape[1]] for i in range(5))
        sent = step(name, y)
        return ran.note(name, u[name] * sent)

    total = np.zeros((len(x), CLASSES))
    for t in range(T):
        c = seeds.conv2d(x[:, t].astype(np.float64), s.conv["conv0"], padding=1)
        c = seeds.conv2d(s.norm["norm0"](c), s.conv["pool0"], 2, 1)
        for name, _ in layers():
            if name.startswith("dense"):
                one, two = f"{name}.1", f"{name}.2"
                new = seeds.conv2d(spike(one, s.norm[one](c)), s.conv[one])
                new = seeds.conv2d(spike(two, s.norm[two](new)), s.conv[two], padding=1)
                c = np.concatenate([c, new], axis=1)
            elif name == "transition":
                c = seeds.conv2d(s.norm[name](spike(name, c)), s.conv[name])
                c = seeds.avg_pool(c, 2)
        f = spike("mean", spike("end", s.norm["end"](c)).mean(axis=(2, 3)))
        total += emit("fc2", emit("fc1", f))
    ran.classes, ran.scores = (total / T).argmax(axis=1), total
    return ran


@dataclass
class Part:
    """Channels of a concatenation of currents: what ``source`` sends through ``weight``, plus ``bias``."""

    source: str
    weight: Float
    stride: int
    padding: int
    bias: Float  # [C, H, W], or one that broadcasts to it

    @property
    def channels(self) -> int:
        return len(self.weight)


def ours(s: System) -> FloatNetwork:
    draft = Draft({"input": (1, SIDE, SIDE)})
    norm0, shape = s.norm["norm0"], (FIRST, SIDE, SIDE)
    # What the integrators send is what arrives, without a bias.
    draft.add("conv0", shape, seeds.neurons(shape, 0.0, fires=False, graded=True))
    draft.connect("input", "conv0", conv(seeds.rows(s.conv["conv0"], norm0.scale), padding=1))
    shift = np.broadcast_to(per_channel(norm0.shift), (1, *shape))
    parts = [Part("conv0", s.conv["pool0"], 2, 1, seeds.conv2d(shift, s.conv["pool0"], 2, 1)[0])]
    side = SIDE // 2
    for name, channels in layers():
        one = name if name in ("transition", "end") else f"{name}.1"
        norm = None if name == "transition" else s.norm[one]
        _consumer(draft, one, parts, norm, _lif(s.w[one], (channels, side, side)))
        if name == "transition":
            after = s.norm[name]
            flat = s.conv[name][:, :, 0, 0]
            kernel = s.conv[name] * after.scale[:, None, None]
            pooled = seeds.pooled_behind(kernel, 2)
            parts = [Part(one, pooled, 2, 0, per_channel(flat @ after.shift))]
            side //= 2
        elif name != "end":
            two = f"{name}.2"
            between = [Part(one, s.conv[one], 1, 0, np.zeros((WIDE, 1, 1)))]
            _consumer(draft, two, between, s.norm[two], _lif(s.w[two], (WIDE, side, side)))
            parts.append(Part(two, s.conv[two], 1, 1, np.zeros((GROWTH, 1, 1))))
    return _head(draft, s, channels, side)


def _consumer(
    draft: Draft, name: str, parts: Sequence[Part], norm: BatchNorm | None, lif: FloatNeurons
) -> None:
    """Neurons that read all parts, through a BatchNorm of their own."""
    channels, *plane = lif.shape
    scale, shift = (
        (np.ones(channels), np.zeros(channels)) if norm is None else (norm.scale, norm.shift)
    )
    full = [np.broadcast_to(part.bias, (part.channels, *plane)) for part in parts]
    bias = np.concatenate(full) * per_channel(scale) + per_channel(shift)
    draft.add(name, lif.shape, lif, bias)
    first = 0
    for part in parts:
        wide = seeds.rows(seeds.placed(part.weight, first, channels), scale)
        draft.connect(part.source, name, conv(wide, part.stride, part.padding))
        first += part.channels


def _head(draft: Draft, s: System, channels: int, side: int) -> FloatNetwork:
    draft.add("mean", (channels,), _lif(s.w["mean"], (channels,)))
    draft.connect("end", "mean", dense(seeds.means(channels, side * side)))
    before = "mean"
    for name in ("fc1", "fc2"):
        size, k = len(s.conv[name]), s.conv[f"lateral {name}"]
        lateral = sum(k[i] * np.eye(size, k=i - 2) for i in range(5))
        matrix = np.eye(size) + lateral
        draft.add(name, (size,), _lif(s.w[name], (size,), graded=True), matrix @ s.bias[name])
        draft.connect(before, name, dense(matrix @ s.conv[name]))
        before = name
    return draft.network(FloatReadout(CLASSES, 1, "fc2"))


def _lif(w: float, shape: tuple[int, ...], **fields: bool) -> FloatNeurons:
    return seeds.neurons(shape, 0.25, np.tanh(w), **fields)


@pytest.mark.parametrize("seed", range(5))
def test_spikes_and_classes(seed: int) -> None:
    system, x, ran = seeds.working(seed, drawn)
    seeds.agree(ours(system), x, ran)


@pytest.mark.parametrize("chip", CHIPS)
def test_in_whole_numbers(chip: str) -> None:
    system, x, _ = seeds.working(0, drawn)
    same_everywhere(ours(system), x, chip)
