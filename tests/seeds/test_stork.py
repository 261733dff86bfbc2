"""stork: a current that the membrane hears a step late, recurrent layers, and a leaky readout's maximum.

In stork's own clock every connection, also one between layers, takes three steps: what a step sends
arrives in the next, at a current that the membrane hears a step later, and it fires a step after that.
Counted by hops, as in this project, layers answer in the same step and only recurrent connections are
late. Both are tried: with stork's own delays everything happens in the same steps; by hops a layer fires
three steps earlier for each hop before it. Nothing is composed into weights. Decays are not on a grid of
powers of two, so that no neuron may come near its threshold and no class near the winner.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pytest

from stl_deploy.ir.floats import FloatNetwork
from stl_deploy.ir.readouts import FloatReadout
from stl_deploy.ir.synapses import Pair
from tests.build import seeds
from tests.build.seeds import Draft, Float, Ran, Watch, conv, dense
from tests.build.seeds_quantized import CHIPS, same_everywhere

STEP = 2e-3
LATE = 3
CLASSES = 7
DM, DS = np.exp(-STEP / 20e-3), np.exp(-STEP / 10e-3)
DM_OUT, DS_OUT, V0 = np.exp(-STEP / 0.7), np.exp(-STEP / 10e-3), -1e-3
T, SAMPLES = 60, 8


@dataclass
class Group:
    """Neurons in stork's clock: a step of theirs fires by what the steps before it left."""

    shape: tuple[int, ...]
    dm: float
    decays: tuple[float, ...]  # of its currents
    fires: bool = True
    v0: float = 0.0
    state: dict[str, Any] = field(default_factory=dict)

    def step(self, given: list[Float], watch: Watch) -> Float:
        """Spikes, or the membrane where nothing fires, given what arrives at each current."""
        zero = np.zeros((SAMPLES, *self.shape))
        mem = self.state.get("mem", zero + self.v0)
        currents = self.state.get("currents", [zero for _ in self.decays])
        fired = watch.above(mem, 1) if self.fires else zero
        self.state["mem"] = (self.dm * mem + (1 - self.dm) * sum(currents)) * (1 - fired)
        self.state["currents"] = [
            d * c + new for d, c, new in zip(self.decays, currents, given, strict=True)
        ]
        return fired if self.fires else mem


@dataclass
class System:
    """Weights by (source, target, current); a kernel of a convolution over one axis has its stride."""

    groups: dict[str, tuple[tuple[int, ...], tuple[float, ...]]]
    weight: dict[tuple[str, str, int], Float]
    stride: Mapping[str, int]


def theirs(s: System, x: np.ndarray, steps: int) -> Ran:
    """All groups step, and then all connections pass on what the groups sent."""
    ran = Ran(watch=Watch())
    groups = {name: Group(shape, DM, decays) for name, (shape, decays) in s.groups.items()}
    groups["out"] = Group((CLASSES,), DM_OUT, (DS_OUT,), False, V0)
    arriving = _silence(groups)
    voltages = []
    for t in range(steps):
        given = x[:, t] if t < x.shape[1] else np.zeros_like(x[:, 0])
        sent = {"input": given.astype(np.float64)}
        for name, group in groups.items():
            sent[name] = group.step(arriving[name], ran.watch)
            if group.fires:
                ran.note(name, sent[name])
        voltages.append(sent["out"])
        arriving = _silence(groups)
        for key in s.weight:
            source, target, current = key
            got = _through(s, key, sent[source])
            arriving[target][current] += got.reshape(SAMPLES, *groups[target].shape)
    highest = np.max(voltages, axis=0)
    ran.classes = highest.argmax(axis=1)
    ran.scores = highest
    two = np.sort(highest, axis=1)[:, -2:]
    ran.watch.least = min(ran.watch.least, float((two[:, 1] - two[:, 0]).min()))
    return ran


def _silence(groups: Mapping[str, Group]) -> dict[str, list[Float]]:
    """Nothing at each current of each group."""
    return {
        name: [np.zeros((SAMPLES, *group.shape)) for _ in group.decays]
        for name, group in groups.items()
    }


def _through(s: System, key: tuple[str, str, int], sent: Float) -> Float:
    """What the connection ``key`` makes of what its source sent."""
    w = s.weight[key]
    if w.ndim == 2:
        return sent.reshape(SAMPLES, -1) @ w.T
    return seeds.conv2d(sent, w, *_geometry(s, key))


def _geometry(s: System, key: tuple[str, str, int]) -> tuple[Pair, Pair]:
    """Stride and padding of a convolution over the last axis."""
    source, target, _ = key
    stride = 1 if source == target else s.stride[target]
    return (1, stride), (0, s.weight[key].shape[3] // 2)


def ours(s: System, x: np.ndarray, own_clock: bool) -> FloatNetwork:
    """The network with stork's delays, or with the least that hops allow."""
    draft = Draft({"input": x.shape[2:]})
    for name, (shape, decays) in s.groups.items():
        fields = _current(DM, decays[0])
        if len(decays) > 1:
            fields |= {"current2": 1 - np.ones(1) * decays[1], "drive2": np.ones(1)}
        draft.add(name, shape, seeds.neurons(shape, DM, 1.0, hold=1, **fields))
    # The first voltage that is read out in stork is the one before any step. By hops, the output has
    # forgotten some of it when anything arrives.
    passed = -1 if own_clock else LATE * (len(s.groups) + 1) - 1
    v0 = np.ones(1) * V0 * DM_OUT**passed
    out = seeds.integrators(CLASSES, DM_OUT, v0=v0, **_current(DM_OUT, DS_OUT))
    draft.add("out", (CLASSES,), out)
    for key, w in s.weight.items():
        source, target, current = key
        late = LATE if source == target or own_clock else 0
        way = dense(w) if w.ndim == 2 else conv(w, *_geometry(s, key))
        draft.connect(source, target, way, delay=late, port=current)
    return draft.network(FloatReadout(CLASSES, 1, "out", "max"))


def _current(dm: float, ds: float) -> dict[str, Any]:
    one = np.ones(1)
    return {"kind": "cuba", "gain": one * (1 - dm), "current": one * (1 - ds)}


def balanced(rng: np.random.Generator, size: int) -> Float:
    """Weights of the output whose sums rise and fall, so that the maximum is not the last."""
    w = rng.normal(0, 1, (CLASSES, size))
    return w - w.mean(axis=1, keepdims=True)


def sounds(rng: np.random.Generator) -> np.ndarray:
    """Spikes [SAMPLES, T, 16] of which channels have rates that change once."""
    rates = np.repeat(rng.uniform(0, 0.5, (SAMPLES, 3, 16)), T // 3, axis=1)
    return (rng.random(rates.shape) < rates).astype(np.uint8)


def recurrent(rng: np.random.Generator) -> tuple[System, np.ndarray]:
    """Convolutions over the channels of a sound, strided between layers, recurrent within them."""
    shapes = {"layer1": (5, 1, 16), "layer2": (8, 1, 8)}
    kernel = partial(seeds.weights, rng, bits=25)
    weight = {
        ("input", "layer1", 0): kernel((5, 1, 1, 7), 3.0, mean=0.8),
        ("layer1", "layer1", 0): kernel((5, 5, 1, 3), 1.5),
        ("layer1", "layer2", 0): kernel((8, 5, 1, 5), 4.0, mean=0.8),
        ("layer2", "layer2", 0): kernel((8, 8, 1, 3), 1.5),
        ("layer2", "out", 0): balanced(rng, 64),
    }
    groups = {name: (shape, (DS,)) for name, shape in shapes.items()}
    s = System(groups, weight, {"layer1": 1, "layer2": 2})
    return s, sounds(rng)[:, :, None, None]


def dale(rng: np.random.Generator) -> tuple[System, np.ndarray]:
    """Excitatory neurons and a quarter as many inhibitory ones, whose currents decay more slowly."""
    excitatory, inhibitory = 24, 6
    both = excitatory + inhibitory
    is_inhibitory = np.arange(both) >= excitatory

    def magnitudes(
        size: tuple[int, int], spread: float, senders: np.ndarray | None = None
    ) -> Float:
        w = np.abs(seeds.weights(rng, size, spread, 25))
        return w if senders is None else w * senders

    weight = {
        ("input", "both", 0): magnitudes((both, 16), 1.2),
        ("both", "both", 0): magnitudes((both, both), 0.4, ~is_inhibitory),
        ("both", "both", 1): -magnitudes((both, both), 1.5, is_inhibitory),
        ("both", "out", 0): np.pad(balanced(rng, excitatory), ((0, 0), (0, inhibitory))),
    }
    s = System({"both": ((both,), (DS, np.exp(-STEP / 20e-3)))}, weight, {})
    return s, sounds(rng)


@pytest.mark.parametrize("make", [recurrent, dale])
@pytest.mark.parametrize("seed", range(4))
def test_in_its_own_clock(seed: int, make: Any) -> None:
    def draw(rng: np.random.Generator) -> tuple[System, np.ndarray, Ran]:
        s, x = make(rng)
        return s, x, theirs(s, x, T)

    system, x, ran = seeds.working(seed, draw)
    seeds.agree(ours(system, x, own_clock=True), x, ran)


@pytest.mark.parametrize("make", [recurrent, dale])
@pytest.mark.parametrize("seed", range(4))
def test_counted_by_hops(seed: int, make: Any) -> None:
    def draw(rng: np.random.Generator) -> tuple[System, np.ndarray, Ran]:
        s, x = make(rng)
        ran = theirs(s, x, T + LATE * (len(s.groups) + 1))
        for deep, name in enumerate(s.groups, 1):
            assert not np.any(ran.sent[name][: LATE * deep])
            ran.sent[name] = ran.sent[name][LATE * deep :][:T]
        return s, x, ran

    system, x, ran = seeds.working(seed, draw)
    seeds.agree(ours(system, x, own_clock=False), x, ran)


@pytest.mark.parametrize("own_clock", [True, False])
@pytest.mark.parametrize("make", [recurrent, dale])
@pytest.mark.parametrize("chip", CHIPS)
def test_in_whole_numbers(chip: str, make: Any, own_clock: bool) -> None:
    system, x = make(np.random.default_rng([0, 0]))
    same_everywhere(ours(system, x, own_clock), x, chip)
