"""Random NIR graphs: the product's float graph spikes as an interpreter of the NIR graph does.

The interpreter (``nir_interpreter.py``) shares no code with the product. Weights, gains and decays are
dyadic, so most sums are exact, and a draw in which a value comes within 1e-9 of its threshold is left
out: there the last bit may decide. STL_NIR_GRAPHS draws as many graphs.
"""

from __future__ import annotations

import os
import warnings
from collections import Counter
from dataclasses import dataclass, field

import nir
import numpy as np
import pytest

import stl_deploy
from stl_deploy.errors import InputError, LoweringError, UncheckedWarning
from stl_deploy.formats import nir_io
from stl_deploy.ir import execute as float_exec
from stl_deploy.ir import nir_graph as G
from tests.build import nir_interpreter

DRAWS = int(os.environ.get("STL_NIR_GRAPHS", "200"))
SAMPLES, STEPS = 3, 10
CLOSE = 1e-9  # of a threshold
DECAYS = 1.0, 0.75, 0.5, 0.25, 0.125  # dt/tau


class Draw:
    """A random graph, a raster for it, and ``words`` for what is in the graph."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.dt = float(self.rng.choice([1e-4, 1e-4, 1e-3, 2**-10]))
        self.nodes, self.edges, self.words = {}, [], set()
        self.inputs = self.shape = self.drawn_shape()
        self.sources, self.targets = [("in", self.shape)], []  # names and shapes of both
        self.nodes["in"] = nir.Input({"input": np.array(self.shape)})
        self.ends, self.spikes = (
            ["in"],
            True,
        )  # what the next node is behind; whether that is spikes
        for i in range(1, 1 + int(self.rng.integers(1, 4))):
            self.layer(i)
        self.lead_back()
        if len(self.shape) > 1 and self.maybe(0.5):
            self.flatten("last_flat")
        if self.maybe(0.1):
            self.put("last", nir.Scale(np.full(self.shape, 0.5)))
        self.put("out", nir.Output({"output": np.array(self.shape)}))
        self.graph = nir.NIRGraph(self.nodes, self.edges, type_check=False)
        rate = self.rng.uniform(0.2, 0.6)
        size = SAMPLES, STEPS, *self.inputs
        self.raster = (self.rng.random(size) < rate).astype(np.uint8)

    # Numbers

    def maybe(self, chance):
        return bool(self.rng.random() < chance)

    def drawn_shape(self):
        rank, rng = self.rng.choice([1, 2, 3], p=[0.25, 0.15, 0.6]), self.rng
        sizes = [rng.integers(3, 9)], [rng.integers(1, 3), rng.integers(6, 12)]
        image = [rng.integers(1, 3), rng.integers(4, 8), rng.integers(4, 8)]
        return tuple(int(n) for n in (*sizes, image)[rank - 1])

    def grid(self, low, high, shape):
        """Multiples of 1/16."""
        return np.rint(self.rng.uniform(low, high, shape) * 16) / 16

    def weights(self, *shape):
        """Multiples of 1/16, smaller for more inputs; sums of spikes so weighted are around 1."""
        spread = 1.4 / np.sqrt(np.prod(shape[1:]))
        return np.rint(self.rng.normal(spread / 4, spread, shape) * 16) / 16

    def bias(self, n):
        return self.grid(-0.2, 0.2, n) * self.maybe(0.5)

    def each(self, low, high, word="", signed=False, shape=None):
        """Values of the present shape, or of ``shape``: one for all, or for each channel or neuron."""
        shape = shape or self.shape
        channels = (shape[0], *[1] * (len(shape) - 1))
        kind = self.rng.choice(["all", "channel", "neuron"], p=[0.3, 0.2, 0.5])
        size = {"all": (1,) * len(channels), "channel": channels, "neuron": shape}[kind]
        values = np.maximum(self.grid(low, high, size), 1 / 16)
        if signed:
            values *= self.rng.choice([-1, 1], size)
        if word and kind == "neuron":
            self.words.add(f"{word} per neuron")
        return np.broadcast_to(values, shape).copy()

    def decay(self):
        size = self.shape if self.maybe(0.3) else (1,) * len(self.shape)
        return np.broadcast_to(self.rng.choice(DECAYS, size), self.shape).copy()

    # Nodes

    def put(self, name, node, behind=None):
        """A node behind all that is open, or behind ``behind``; what leaves it is open then."""
        self.nodes[name] = node
        self.edges += [(source, name) for source in (behind or self.ends)]
        self.ends = [name]

    def flatten(self, name):
        self.put(name, nir.Flatten({"input": np.array(self.shape)}, 0, -1))
        self.shape = (int(np.prod(self.shape)),)

    def scale(self, name, low=0.25, high=2, signed=False):
        self.words.add("scaled")
        self.put(name, nir.Scale(self.each(low, high, "scale", signed)))

    def delay(self, name, shape, most=3):
        """A Delay of whole steps."""
        self.words.add("delay")
        return nir.Delay(np.full(shape, int(self.rng.integers(1, most + 1)) * self.dt))

    def layer(self, i):
        """One population with what is in front of it."""
        others = [n for n, shape in self.sources if shape == self.shape and n not in self.ends]
        if others and self.maybe(0.3):
            self.ends.append(str(self.rng.choice(others)))
            self.words.add("spikes added up")
        if self.maybe(0.15):
            self.put(f"late{i}", self.delay(f"late{i}", self.shape))
        if len(self.shape) == 3 and min(self.shape[1:]) >= 2 and self.maybe(0.2):
            return self.or_pool(i)
        if len(self.shape) > 1 and min(self.shape[1:]) >= 3:
            recurrent = self.maybe(0.45)
            self.convolution(i)
        else:
            if len(self.shape) > 1:
                self.flatten(f"flat{i}")
            recurrent = self.maybe(0.5)
            self.dense(i)
        self.neurons(i, recurrent)
        return None

    def convolution(self, i):
        """Convolutions with pools, scales and a Flatten about them, each there or not."""
        image = len(self.shape) == 3
        tiles = not (image and self.maybe(0.3)) or self.pool(f"pre{i}")
        before, shape = self.ends, self.shape
        node = self.conv1d(shape) if len(shape) == 2 else self.conv2d(shape, tiles)
        self.put(f"conv{i}", node)
        self.measure(node, shape)
        if self.maybe(0.15):  # a second path of the same geometry
            other = type(node)(**{**_fields(node), "weight": self.weights(*node.weight.shape)})
            ends = self.ends
            self.put(f"side{i}", other, before)
            self.ends += ends
            self.words.add("several paths")
        if image and min(self.shape[1:]) >= 3 and self.maybe(0.2):
            self.pool(f"post{i}")
        if self.maybe(0.45):
            self.scale(f"scale{i}")
        if self.maybe(0.25):
            self.words.add("flat before the neurons")
            self.flatten(f"flat{i}")
            if self.maybe(0.3):
                self.scale(f"each{i}")

    def measure(self, node, shape):
        """The present shape is what ``node`` makes of ``shape``."""
        out = nir_interpreter.linear(node, np.zeros((1, *shape)), self.dt)
        self.shape = out.shape[1:]

    def conv2d(self, shape, padded):
        groups = int(self.rng.choice([g for g in (1, 2) if shape[0] % g == 0]))
        kernel = np.minimum(self.rng.integers(1, 4, 2), shape[1:])
        weight = self.weights(groups * int(self.rng.integers(1, 3)), shape[0] // groups, *kernel)
        stride, padding = tuple(int(n) for n in self.rng.integers(1, 3, 2)), (0, 0)
        wide = all(2 * k - 1 <= n for k, n in zip(kernel, shape[1:], strict=True))
        dilation = 2 if wide and self.maybe(0.3) else 1
        if padded and self.maybe(0.4):
            padding = tuple(int(n) for n in self.rng.integers(0, 2, 2))
            odd = all((k - 1) * dilation % 2 == 0 for k in kernel)
            if odd and self.maybe(0.5):
                stride, padding = (1, 1), "same"
        elif self.maybe(0.2):
            padding = "valid"
        bias = self.bias(len(weight))
        return _conv2d(weight, stride, padding, dilation, groups, bias, shape)

    def conv1d(self, shape):
        weight = self.weights(int(self.rng.integers(1, 4)), shape[0], 3)
        stride = int(self.rng.integers(1, 3))
        padding = self.rng.choice(["same", "valid", "1"] if stride == 1 else ["valid", "1"])
        padding = 1 if padding == "1" else str(padding)
        self.words.add("conv1d")
        return nir.Conv1d(shape[1], weight, stride, padding, 1, 1, self.bias(len(weight)))

    def pool(self, name):
        """A pool; whether its windows tile the plane, so that a padded convolution may follow."""
        kernel = self.rng.integers(1, 4, 2) if self.maybe(0.3) else np.array([2, 2])
        kernel = np.minimum(kernel, self.shape[1:])
        stride = kernel if self.maybe(0.7) else self.rng.integers(1, 3, 2)
        kind = nir.AvgPool2d if self.maybe(0.6) else nir.SumPool2d
        node, shape = kind(kernel_size=kernel, stride=stride, padding=np.zeros(2, int)), self.shape
        self.words.add("averaged" if kind is nir.AvgPool2d else "summed")
        self.put(name, node)
        self.measure(node, shape)
        return bool((stride == kernel).all() and (np.array(shape[1:]) % kernel == 0).all())

    def or_pool(self, i):
        """A pool behind spikes, with neurons that fire whenever an input does."""
        kernel, shape = np.array([2, 2]), self.shape
        averaged = self.maybe(0.4)
        kind = nir.AvgPool2d if averaged else nir.SumPool2d
        node = kind(kernel_size=kernel, stride=kernel, padding=np.zeros(2, int))
        self.put(f"or{i}", node)
        self.measure(node, shape)
        if self.maybe(0.5):
            self.flatten(f"or_flat{i}")
            self.words.add("or pool, flat")
        threshold = self.rng.uniform(0.1, 0.9, self.shape) / (4 if averaged else 1)
        made, zero, one = self.rng.integers(3), np.zeros(self.shape), np.ones(self.shape)
        if made == 0:
            node = nir.Threshold(threshold)
        elif made == 1:
            node = nir.IF(r=one, v_threshold=threshold, v_reset=zero)
        else:
            decay = self.decay()
            node = nir.LIF(self.dt / decay, 1 / decay, zero, threshold, zero)
        self.put(f"pool{i}", node)
        self.sources.append((f"pool{i}", self.shape))
        self.words.add("or pool")

    def dense(self, i):
        """Weights with scales, further weights and a second path about them, each there or not."""
        if self.maybe(0.1):
            return self.scale(f"each{i}", 0.5)
        if self.maybe(0.2):
            self.scale(f"before{i}", signed=True)
        n, inputs = int(self.rng.integers(3, 9)), self.shape[0]
        before = self.ends
        self.put(f"fc{i}", nir.Affine(self.weights(n, inputs), self.bias(n)))
        if self.maybe(0.2):
            ends = self.ends
            self.put(f"side{i}", nir.Linear(self.weights(n, inputs) / 2), before)
            self.ends += ends
            self.words.add("several paths")
        self.shape = (n,)
        if self.maybe(0.2):
            self.put(f"more{i}", nir.Linear(self.weights(n, n)))
        if self.maybe(0.3):
            self.scale(f"each{i}", signed=True)
        if self.maybe(0.1):
            self.put(f"delay{i}", nir.Delay(np.zeros(n)))
        return None

    def neurons(self, i, recurrent):
        """A population, with a way back to itself or without, in a graph of its own or not."""
        kind = self.rng.choice(["LIF", "LIF", "IF", "CubaLIF", "Threshold"])
        node = getattr(self, kind)(recurrent or len(self.shape) == 1)
        if kind != "Threshold" and self.maybe(0.35):
            node.metadata["reset"] = "subtract"
        self.words |= {kind, *node.metadata.values()}
        name = f"lif{i}"
        for j in range(2):
            if self.maybe(0.3):
                self.ends += self.way(
                    f"skip{i}{j}", self.sources[:-1] or self.sources, self.shape, "skip"
                )
        back, edges = self.back(name) if recurrent else ({}, [])
        if recurrent:
            self.words |= {"recurrent", f"recurrent on rank {len(self.shape)}"}
        if not self.maybe(0.25):
            self.put(name, node)
            self.nodes |= back
            self.edges += edges
            self.sources.append((name, self.shape))
            self.targets.append((name, self.shape))
            return
        self.words.add("nested")
        shape = np.array(self.shape)
        ends = {"input": nir.Input({"input": shape}), "output": nir.Output({"output": shape})}
        edges = [("input", name), (name, "output"), *edges]
        inner = nir.NIRGraph({**ends, name: node, **back}, edges, type_check=False)
        self.put(f"part{i}", inner)
        self.sources.append((f"part{i}", self.shape))
        self.targets.append((f"part{i}", self.shape))

    def way(self, name, sources, shape, word, late=False):
        """The end of a further way from one of ``sources`` to neurons of ``shape``: [] where none fits."""
        picked = sources[int(self.rng.integers(len(sources)))]
        end, before = picked
        if (
            before != shape
            and len(shape) != 1
            and not (len(before) == 3 and before[1:] == shape[1:])
        ):
            return []
        self.words.add(word)
        if late or self.maybe(0.3):
            self.put(f"{name}_delay", self.delay(name, before), [end])
            end = f"{name}_delay"
        if before == shape:
            how = self.rng.choice(["edge", "scale"])
            if how == "edge" and end in self.ends:
                return []  # an edge that stands twice
            if how == "edge" and not late:
                return [end]
            self.nodes[f"{name}_w"] = nir.Scale(self.each(0.25, 1, "scale", True, shape))
        elif len(shape) == 1:
            if len(before) > 1:
                self.put(f"{name}_flat", nir.Flatten({"input": np.array(before)}, 0, -1), [end])
                end = f"{name}_flat"
            self.nodes[f"{name}_w"] = nir.Linear(self.weights(shape[0], int(np.prod(before))))
        else:
            kernel = self.weights(shape[0], before[0], 1, 1)
            self.nodes[f"{name}_w"] = _conv2d(
                kernel, (1, 1), (0, 0), 1, 1, self.bias(shape[0]), before
            )
        self.edges.append((end, f"{name}_w"))
        return [f"{name}_w"]

    def lead_back(self):
        """A way with a Delay from a population to one before it."""
        ends = self.ends
        if len(self.targets) > 1 and self.maybe(0.4):
            target, shape = self.targets[0]
            later = [s for s in self.sources if s[0] in {n for n, _ in self.targets[1:]}]
            for end in self.way("back", later, shape, "loop", late=True):
                self.edges.append((end, target))
        self.ends = ends

    def LIF(self, leaks):
        decay, gain, zero = self.decay(), self.each(0.5, 2, "gain"), np.zeros(self.shape)
        leak = self.grid(-0.1, 0.1, self.shape) if leaks and self.maybe(0.5) else zero
        return nir.LIF(self.dt / decay, gain / decay, leak, self.threshold(), zero)

    def IF(self, leaks):
        gain = self.each(0.5, 2, "gain") / self.dt if self.maybe(0.6) else np.ones(self.shape)
        return nir.IF(r=gain, v_threshold=2 * self.threshold(), v_reset=np.zeros(self.shape))

    def CubaLIF(self, leaks):
        decay, current, zero = self.decay(), self.decay(), np.zeros(self.shape)
        return nir.CubaLIF(
            tau_syn=self.dt / current, tau_mem=self.dt / decay, r=self.each(0.5, 2, "gain") / decay,
            v_leak=self.grid(-0.1, 0.1, self.shape), v_reset=zero, v_threshold=self.threshold(),
            w_in=self.each(0.5, 1.5, "gain") / current,
        )  # fmt: skip

    def Threshold(self, leaks):
        return nir.Threshold(self.threshold())

    def threshold(self):
        return self.rng.uniform(0.1, 0.9, self.shape)

    def back(self, name):
        """Nodes and edges that lead from the population ``name`` back to it."""
        n, r = self.shape[0], f"{name}_r"
        ways = ["edge", "scale", "conv"] if len(self.shape) > 1 else ["edge", "scale", "dense"]
        way = self.rng.choice(ways, p=[0.1, 0.3, 0.6])
        if way == "edge":
            return {}, [(name, name)]
        scale = nir.Scale(self.each(0.25, 2, "recurrent scale", signed=True))
        if way == "scale":
            return {r: scale}, [(name, r), (r, name)]
        if way == "dense":
            node = nir.Affine(self.weights(n, n), self.bias(n))
        elif len(self.shape) == 2:
            node = nir.Conv1d(self.shape[1], self.weights(n, n, 3), 1, "same", 1, 1, self.bias(n))
        else:
            weight = self.weights(n, n, 3, 3)
            node = _conv2d(weight, (1, 1), (1, 1), 1, 1, self.bias(n), self.shape)
        if self.maybe(0.3):
            self.words.add("recurrent, late")
            late = f"{r}_late"
            edges = [(name, late), (late, r), (r, name)]
            return {late: self.delay(late, self.shape), r: node}, edges
        if self.maybe(0.5):
            return {r: node}, [(name, r), (r, name)]
        if way == "dense" and self.maybe(0.4):  # side by side
            return {r: node, f"{r}2": scale}, [
                (name, r),
                (r, name),
                (name, f"{r}2"),
                (f"{r}2", name),
            ]
        return {r: node, f"{r}2": scale}, [(name, r), (r, f"{r}2"), (f"{r}2", name)]


def _conv2d(weight, stride, padding, dilation, groups, bias, shape):
    node = nir.Conv2d(None, weight, stride, padding, dilation, groups, bias)
    node.input_shape = tuple(shape[1:])
    return node


def _fields(node):
    names = "input_shape", "weight", "stride", "padding", "dilation", "groups", "bias"
    return {name: getattr(node, name) for name in names}


@dataclass
class Outcomes:
    """What became of the draws; ``words`` and ``rates`` are of those that were compared."""

    drawn: int = 0
    refused: list[int] = field(default_factory=list)
    close: list[int] = field(default_factory=list)
    same: list[int] = field(default_factory=list)
    differ: list[str] = field(default_factory=list)
    words: Counter[str] = field(default_factory=Counter)
    rates: list[float] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)

    @property
    def accepted(self) -> int:
        return self.drawn - len(self.refused)

    def text(self) -> str:
        kinds = ", ".join(f"{word} {count}" for word, count in sorted(self.words.items()))
        lively = np.mean([0.02 < rate < 0.98 for rate in self.rates])
        reasons = "".join(f"\n  {n} x {text}" for text, n in self.reasons.most_common(8))
        return (
            f"{self.drawn} drawn, {self.accepted} accepted, {len(self.close)} too close to a "
            f"threshold, {len(self.differ)} differ; {kinds}; {lively:.0%} of the populations fire "
            f"in 2 to 98 % of the steps; refused: {reasons}"
        )


def compare(seed, outcomes, folder=None):
    """Draw, import and run one graph; through a file where a ``folder`` is given."""
    draw = Draw(seed)
    outcomes.drawn += 1
    graph = draw.graph
    if folder is not None:
        nir_io.write(graph, folder / f"{seed}.nir")
        graph = folder / f"{seed}.nir"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UncheckedWarning)  # most draws state no reset
            made = stl_deploy.from_nir(graph, dt=draw.dt, timesteps=STEPS)
    except (LoweringError, InputError) as error:
        outcomes.refused.append(seed)
        outcomes.reasons.update({p.what[-70:] for p in error.problems})
        return
    expected, margin = nir_interpreter.run(draw.graph, draw.raster, draw.dt)
    if margin < CLOSE:
        outcomes.close.append(seed)
        return
    shape = SAMPLES, STEPS, *G.in_shape(made)
    got = float_exec.run(made, draw.raster.reshape(shape))
    outcomes.words.update(draw.words)
    outcomes.rates += [spikes.mean() for spikes in expected.values()]
    wrong = (
        [f"populations {sorted(got)}, not {sorted(expected)}"] if set(got) != set(expected) else []
    )
    for name in got.keys() & expected.keys():
        different = int((got[name].reshape(expected[name].shape) != expected[name]).sum())
        if different:
            wrong.append(f"{name}: {different} of {expected[name].size} spikes")
    if wrong:
        outcomes.differ.append(f"seed {seed} ({', '.join(sorted(draw.words))}): {'; '.join(wrong)}")
    else:
        outcomes.same.append(seed)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    found, folder = Outcomes(), tmp_path_factory.mktemp("graphs")
    for seed in range(DRAWS):
        try:
            compare(seed, found, folder if seed % 8 == 0 else None)
        except Exception as error:
            error.add_note(f"seed {seed}")
            raise
    print(found.text())
    return found


def test_random_graphs_spike_as_they_read(outcomes):
    assert not outcomes.differ, "\n".join(outcomes.differ)


def test_the_random_graphs_are_lowered_and_spike(outcomes):
    """Or the test above would show nothing."""
    compared = len(outcomes.same) + len(outcomes.differ)
    assert outcomes.accepted >= 0.85 * outcomes.drawn, outcomes.text()
    assert len(outcomes.close) <= 0.05 * outcomes.drawn, outcomes.text()
    assert np.mean([0.02 < rate < 0.98 for rate in outcomes.rates]) > 0.8, outcomes.text()
    least = {
        "recurrent": 0.4, "scaled": 0.4, "gain per neuron": 0.2, "scale per neuron": 0.2, "subtract": 0.2,
        "recurrent scale per neuron": 0.05, "averaged": 0.1, "summed": 0.05, "or pool": 0.1,
        "or pool, flat": 0.04, "flat before the neurons": 0.1, "nested": 0.2, "several paths": 0.05,
        "recurrent on rank 1": 0.2, "recurrent on rank 2": 0.02, "recurrent on rank 3": 0.1,
        "conv1d": 0.05, "skip": 0.2, "delay": 0.3, "loop": 0.05, "spikes added up": 0.03,
        "recurrent, late": 0.05, "LIF": 0.3, "IF": 0.15, "CubaLIF": 0.15, "Threshold": 0.15,
    }  # fmt: skip
    rare = {
        w: outcomes.words[w] for w, share in least.items() if outcomes.words[w] < share * compared
    }
    assert not rare, outcomes.text()
