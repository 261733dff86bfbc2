"""Random integer networks that branch, in which every population works.

Every population fires in 2 to 60 % of its steps, and one of its spikes depends on a threshold exactly. What
may occur is chosen by ``Features``: who cannot carry something asks for graphs without it.

``STL_TABLE_GRAPHS`` and ``STL_TABLE_SEED`` set how many graphs over the whole table of rules and readouts the
tests of the engine, of ONNX and of Lava compare with the reference, and the first seed.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stl_deploy.hw_sim import reference
from stl_deploy.ir import slices
from stl_deploy.ir.conv import unroll
from stl_deploy.ir.network import Connection, Input, IntegerNetwork, Population
from stl_deploy.ir.neurons import Graded, Lif, Or
from stl_deploy.ir.readouts import Readout, Rule
from stl_deploy.ir.slices import WeightPrecision
from stl_deploy.ir.synapses import Conv, Dense, Kernel, OneToOne, Sparse, Synapses

LOW, HIGH = 0.02, 0.60
TOP = 131_071  # the largest threshold of Loihi
Rasters = dict[str, NDArray[Any]]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Features:
    """What a graph may have; a connection that does not lead back has a delay of at most ``delays`` steps."""

    chips: tuple[str, ...] = ("ideal", "loihi1", "loihi2", "loihi2")
    inputs: int = 2
    graded: bool = True
    signed: bool = True
    held: bool = True
    delays: int = 3
    loops: bool = True
    own: bool = True
    one_to_one: bool = True
    sparse: bool = True
    pools: bool = True
    bias_source: bool = True
    decays_per_neuron: bool = True
    bias_per_neuron: bool = True
    currents: bool = True
    exponents: bool = True
    precisions: tuple[WeightPrecision, ...] = slices.PRECISIONS
    subtract: bool = True
    rules: frozenset[str] = frozenset()
    readouts: tuple[Rule, ...] = ("votes",)


# What neurons may do besides, by the fields of ``Lif`` and values of ``reset``.
RESETS = frozenset({"none", "constant", "reset_current", "hold", "once"})
RULES = RESETS | {"floor", "adapt", "du2", "gain", "v0", "graded", "integrator"}
READOUTS: tuple[Rule, ...] = ("votes", "last", "mean", "max", "first")
EVERYTHING = Features()
TABLE = Features(chips=("ideal", "loihi2"), rules=RULES, readouts=READOUTS)
TABLE_SEED = int(os.environ.get("STL_TABLE_SEED", "20233"))


def over_the_table(
    count: int, fits: Callable[[IntegerNetwork], bool] = lambda _: True
) -> Iterator[tuple[int, IntegerNetwork, Rasters]]:
    """Seeds, graphs and rasters of ``count`` graphs that ``fits`` takes, or of STL_TABLE_GRAPHS."""
    wanted = int(os.environ.get("STL_TABLE_GRAPHS", count))
    drawn = ((seed, *draw(seed, TABLE)) for seed in itertools.count(TABLE_SEED))
    return itertools.islice((graph for graph in drawn if fits(graph[1])), wanted)


def draw(seed: int, features: Features = EVERYTHING) -> tuple[IntegerNetwork, Rasters]:
    """A graph and a raster of two or three samples for each input, the same for the same seed.

    Most graphs join at least two ways in some population.
    """
    rng = np.random.default_rng(seed)
    while True:
        made = _Draft.of(rng, features).made()
        if made is not None:
            return made


def named(network: IntegerNetwork, rasters: Rasters) -> NDArray[Any] | Rasters:
    """The raster alone where there is one input."""
    return rasters if len(rasters) > 1 else next(iter(rasters.values()))


def sent(network: IntegerNetwork, rasters: Rasters) -> dict[str, NDArray[Any]]:
    """What inputs (as given) and populations send."""
    trace = reference.run(network, rasters)
    return rasters | {name: did.spikes for name, did in trace.layers.items()}


def alone(
    network: IntegerNetwork, name: str, values: Mapping[str, NDArray[Any]], states: bool = False
) -> reference.LayerTrace:
    """What a population does for the ``values`` that its sources send."""
    one = network.alone(name)
    if not one.inputs:
        steps = next(iter(values.values()))
        given: dict[str, Any] = {"nothing": np.zeros((len(steps), network.timesteps, 1), np.uint8)}
        one = replace(one, inputs={"nothing": Input((1,))})
    else:
        given = {source: values[source] for source in one.inputs}
    return reference.run(one, given, states).layers[name]


def flips(network: IntegerNetwork, rasters: Rasters, name: str) -> bool:
    """Whether a threshold of population ``name``, raised by one, changes one of its spikes."""
    population = network.by_name[name]
    if not isinstance(population.neurons, Lif) or not network.into(name):
        return True
    if not population.neurons.fires:
        return True
    values = sent(network, rasters)
    spikes = alone(network, name, values).spikes
    for neuron in zip(*np.nonzero(spikes.any(axis=(0, 1))), strict=True):
        vth = population.neurons.vth.copy()
        vth[neuron] += 1
        moved = network.changed(replace(population, neurons=replace(population.neurons, vth=vth)))
        if (alone(moved, name, values).spikes != spikes).any():
            return True
    return False


@dataclass
class _Draft:
    """A graph in the making, with what its sources have sent so far."""

    rng: np.random.Generator
    may: Features
    chip: str
    steps: int
    samples: int
    inputs: dict[str, Input] = field(default_factory=dict)
    populations: list[Population] = field(default_factory=list)
    connections: list[Connection] = field(default_factory=list)
    rule: Rule = "votes"
    rasters: Rasters = field(default_factory=dict)
    values: Rasters = field(default_factory=dict)

    @classmethod
    def of(cls, rng: np.random.Generator, may: Features) -> _Draft:
        chip = str(rng.choice(may.chips))
        made = cls(rng, may, chip, int(rng.integers(2, 8)), int(rng.integers(2, 4)))
        if len(may.readouts) > 1:
            made.rule = str(rng.choice(may.readouts))  # type: ignore[assignment]
        return made

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def made(self) -> tuple[IntegerNetwork, Rasters] | None:
        """The graph, or None where a population cannot be brought to work."""
        for i in range(int(self.rng.integers(1, self.may.inputs + 1))):
            self._input(f"input{i}" if i else "input")
        count = int(self.rng.integers(3, 6))
        for i in range(count):
            if not self._population(f"p{i}", first=i == 0, last=i == count - 1):
                return None
        if self.may.loops and self.chance(0.6):
            self._lead_back()
        network = self.network()
        if network.depth is None and self.chip != "ideal":
            return None
        trace = reference.run(network, self.rasters)
        for population in network.populations:
            rate = (trace.layers[population.name].spikes != 0).mean()
            if not population.neurons.fires:
                continue
            if network.into(population.name) and not LOW <= rate <= HIGH:
                return None
            if population.kind == "lif" and not flips(network, self.rasters, population.name):
                return None
        if len(self.may.readouts) > 1:
            network = replace(network, readout=self._weighed(network.readout))
        return network, self.rasters

    def network(self) -> IntegerNetwork:
        last = self.populations[-1]
        return IntegerNetwork(
            self.chip,
            self.steps,
            self.inputs,
            tuple(self.populations),
            tuple(self.connections),
            self._readout(last),
        )

    def _readout(self, last: Population) -> Readout:
        rule = self.rule if last.neurons.fires else "max"
        return Readout(last.size, 1, last.name, rule)

    def _weighed(self, read: Readout) -> Readout:
        """The readout with some of what its rule may have, of classes with several neurons each or of one."""
        rng, neurons = self.rng, read.classes
        some: dict[str, Any] = {}
        if read.rule == "votes" and self.chance(0.4):
            some["steps"] = tuple(map(float, rng.integers(-3, 8, self.steps)))
        if read.rule == "votes" and self.chance(0.5):
            classes = int(rng.integers(2, 6))
            some["matrix"] = rng.integers(-9, 10, (classes, neurons))
            if self.chance(0.5):
                some["offset"] = rng.integers(-20, 21, classes)
            return replace(read, classes=classes, **some)
        if read.rule in ("last", "mean", "max") and self.chance(0.4):
            some["factors"] = rng.integers(-4, 1000, neurons)
        each = int(rng.choice(_divisors(neurons)[:-1] or [1]))
        return replace(read, classes=neurons // each, population=each, **some)

    def _input(self, name: str) -> None:
        rng = self.rng
        shape: Shape = (int(rng.integers(4, 20)),)
        if self.chance(0.75):
            shape = int(rng.integers(1, 4)), int(rng.integers(4, 8)), int(rng.integers(4, 8))
        signed = self.may.signed and self.chance(0.3)
        levels = int(rng.choice([7, 100])) if self.may.graded and self.chance(0.4) else 1
        held = self.may.held and self.chance(0.25)
        port = Input(shape, levels, signed, held)
        size = self.samples, 1 if held else self.steps, *shape
        drawn = rng.integers(port.lowest, levels + 1, size) * (rng.random(size) < 0.5)
        self.inputs[name] = port
        self.rasters[name] = drawn.astype(np.int16 if signed else np.uint8)
        self.values[name] = self.rasters[name]

    def _shape(self, source: str) -> Shape:
        found = [p.shape for p in self.populations if p.name == source]
        return found[0] if found else self.inputs[source].shape

    def _population(self, name: str, first: bool, last: bool) -> bool:
        """One more population and what leads into it; False where it cannot be brought to work."""
        rng = self.rng
        sources = [n for n in self.values if not n.endswith("_bias")]
        source = sources[0] if first else str(rng.choice(sources[-2:]))
        before = self._shape(source)
        if len(before) == 3 and self.may.pools and self._binary(source) and self.chance(0.3):
            return self._pool(name, source, before)
        if len(before) == 3 and self.chance(0.85):
            first_way = self._conv(before)
        else:
            first_way = self._dense(before, (int(rng.integers(4, 20)),))
        if first_way is None:
            return False
        synapses, shape = first_way
        into = [self._connection(f"{name}_w", source, name, synapses)]
        others = [other for other in sources if other != source]
        if not first and others and self.chance(0.75):
            unused = [n for n in others if n in self.inputs and not self._leads_on(n)]
            other = str(rng.choice(unused or others))
            if way := self._way(self._shape(other), shape):
                into.append(self._connection(f"{name}_x", other, name, way))
        if self.may.own and self.chance(0.3):
            way = self._way(shape, shape)
            if way is not None:
                own = self._connection(f"{name}_r", name, name, way)
                into.append(replace(own, delay=own.delay + 1))
        if self.may.bias_source and self.chance(0.2):
            into.append(self._bias_source(name, shape))
        neurons = self._rules(self._neurons(shape), shape, last) if self.may.rules else None
        neurons = neurons or self._neurons(shape)
        if neurons.du2 is not None:
            into = [replace(c, port=1) if self.chance(0.4) else c for c in into]
        if neurons.span == (0, 0):
            into = [c for c in into if c.source != name]
        self.connections += into
        return self._tuned(Population(name, shape, neurons))

    def _leads_on(self, source: str) -> bool:
        return any(c.source == source for c in self.connections)

    def _binary(self, source: str) -> bool:
        if source not in self.inputs:
            return self.network().span(source) == (0, 1)
        return source not in self.inputs or self.inputs[source] == Input(
            self.inputs[source].shape, held=self.inputs[source].held
        )

    def _pool(self, name: str, source: str, before: Shape) -> bool:
        c, h, w = before
        kernel = int(self.rng.choice(_divisors(h))), int(self.rng.choice(_divisors(w)))
        ones = Conv(np.ones((c, 1, *kernel), np.int8), kernel, (0, 0), (1, 1), c)
        self.connections.append(Connection(f"{name}_w", source, name, ones, bits=1))
        return self._tuned(Population(name, (c, h // kernel[0], w // kernel[1]), Or()))

    def _bias_source(self, name: str, shape: Shape) -> Connection:
        source = f"{name}_bias"
        one, zero = np.ones((1,), np.int32), np.zeros((1,), np.int32)
        self.populations.append(
            Population(source, (1,), Lif(zero, one, np.ones(1), du=4095, dv=4095))
        )
        self.values[source] = np.ones((self.samples, self.steps, 1), np.uint8)
        weight = self._weights((math.prod(shape), 1), 8, "8")
        return Connection(source, source, name, Dense(weight))

    def _connection(self, name: str, source: str, target: str, synapses: Synapses) -> Connection:
        """The connection, with a precision, an exponent and a delay."""
        rng = self.rng
        precision: WeightPrecision = (
            str(rng.choice(self.may.precisions)) if self.chance(0.4) else "8"
        )  # type: ignore[assignment]
        if precision not in self.may.precisions:
            precision = "8"
        bits = 8 if precision == "2x8" else int(rng.integers(4, 9))
        weight = self._weights(synapses.weight.shape, bits, precision)
        exp = int(rng.integers(0, 3)) if self.may.exponents and precision != "2x8" else 0
        delay = int(rng.integers(0, self.may.delays + 1)) if self.chance(0.4) else 0
        made = synapses.with_weights(weight)
        return Connection(name, source, target, made, exp, bits, precision, delay)

    def _weights(self, size: Shape, bits: int, precision: WeightPrecision) -> slices.Weights:
        """Of both signs or of one, small ones as often as large ones where the grid is wide."""
        rng, top = self.rng, slices.largest(precision, bits)
        size_of = np.minimum(np.floor(2 ** rng.uniform(0, np.log2(top + 1), size)), top)
        sign = rng.choice([-1, 1], size) if self.chance(0.8) else 1
        drawn = size_of * sign * (rng.random(size) < 0.9)
        if not drawn.any():
            drawn.flat[0] = top
        return drawn.astype(slices.kind(precision))

    def _dense(self, before: Shape, shape: Shape) -> tuple[Synapses, Shape]:
        return Dense(np.ones((math.prod(shape), math.prod(before)), np.int8)), shape

    def _conv(self, before: Shape) -> tuple[Synapses, Shape] | None:
        rng, (c, *plane) = self.rng, before
        groups = int(rng.choice(_divisors(c)))
        outputs = groups * int(rng.integers(1, 4))
        kernel, stride = rng.integers(1, 4, 2), rng.integers(1, 3, 2)
        padding, dilation = rng.integers(0, 2, 2), rng.integers(1, 3, 2)
        size = (np.array(plane) + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
        if size.min() < 2:
            return None
        weight = np.ones((outputs, c // groups, *map(int, kernel)), np.int8)
        conv = Conv(weight, _pair(stride), _pair(padding), _pair(dilation), groups)
        shape = outputs, *map(int, size)
        return (self._single(conv, before, shape) if self._sometimes_sparse() else conv), shape

    def _sometimes_sparse(self) -> bool:
        return self.may.sparse and self.chance(0.15)

    def _single(self, conv: Conv, before: Shape, shape: Shape) -> Sparse:
        """The convolution with a weight of its own for every synapse."""
        (c, h, w), (o, y, x) = before, shape
        row, column, _ = unroll(conv.weight, (c, h, w), (o, y, x), *conv.geometry)
        kernel = Kernel(conv.weight.astype(np.float64), np.zeros(o), *conv.geometry)
        size = math.prod(shape), math.prod(before)
        return Sparse(row, column, np.ones(len(row), np.int8), size, kernel)

    def _way(self, before: Shape, shape: Shape) -> Synapses | None:
        """Synapses between two given shapes, None where none are tried."""
        if before == shape and self.may.one_to_one and self.chance(0.7):
            return OneToOne(np.ones(math.prod(shape), np.int8))
        if len(shape) == 1:
            return self._dense(before, shape)[0]
        if len(before) == 1:
            return None
        # A kernel that spans the difference, of stride 1, or one with a rim of zeros.
        reach = [a - b + 1 for a, b in zip(before[1:], shape[1:], strict=True)]
        padding = [max(0, -(n - 1) + 1) // 2 if n < 1 else int(n == 1) for n in reach]
        kernel = [n + 2 * p for n, p in zip(reach, padding, strict=True)]
        if min(kernel) < 1 or max(kernel) > 5:
            return None
        weight = np.ones((shape[0], before[0], *kernel), np.int8)
        return Conv(weight, (1, 1), (padding[0], padding[1]), (1, 1), 1)

    def _neurons(self, shape: Shape) -> Lif:
        rng, may = self.rng, self.may
        each: Any = shape if may.bias_per_neuron and self.chance(0.3) else _channels(shape)
        bias = rng.integers(-40, 80, each) * self.chance(0.6)
        du: Any = 4095 if not may.currents or self.chance(0.7) else int(rng.integers(0, 4096))
        dv: Any = 2048 if self.chance(0.5) else int(rng.integers(1, 4096))
        if may.decays_per_neuron and self.chance(0.3):
            dv = rng.integers(1, 4096, shape).astype(np.int32)
        if may.decays_per_neuron and du != 4095 and self.chance(0.5):
            du = rng.integers(0, 4096, shape).astype(np.int32)
        subtract = may.subtract and self.chip != "loihi1" and self.chance(0.4)
        return Lif(
            np.zeros(shape, np.int32),
            bias.astype(np.int32),
            np.ones(_channels(shape)),
            6,
            du,
            dv,
            "subtract" if subtract else "zero",
        )

    def _rules(self, lif: Lif, shape: Shape, last: bool) -> Lif:
        """The neurons with some of the rules that they may have."""
        rng = self.rng
        may = {rule for rule in sorted(self.may.rules) if self.chance(0.2)}
        size: Any = shape if self.chance(0.3) else ()

        def drawn(lowest: int = -1, most: float = 12) -> Any:
            values = np.rint(64 * 2 ** rng.uniform(0, most, size)) * rng.choice([lowest, 1], size)
            return values.astype(np.int32) if size else int(values)

        fields: dict[str, Any] = {}
        if reset := sorted(may & {"none", "constant"}):
            fields["reset"] = reset[0]
        if fields.get("reset") == "constant":
            fields["v_reset"] = drawn()
        if "hold" in may or "once" in may:
            fields["hold"] = -1 if "once" in may else int(rng.integers(1, 4))
        if "reset_current" in may:
            fields["reset_current"] = True
        if "floor" in may:
            fields["floor"] = drawn(-1, 10) if self.chance(0.2) else -np.abs(drawn())
        if "adapt" in may:
            fields |= {"adapt": drawn(), "dq": int(rng.integers(0, 4096))}
        if "du2" in may:
            fields["du2"] = int(rng.integers(0, 4096))
        if "gain" in may:
            each = _channels(shape) if self.chance(0.5) else ()
            gain = rng.integers(-8000, 16_000, (self.steps, *each))
            fields["gain"] = gain.astype(np.int16)
        if "v0" in may:
            fields["v0"] = drawn()
        if "graded" in may:
            fields["graded"] = Graded(int(rng.integers(4, 12)), int(rng.choice([15, 200, 3000])))
        if "integrator" in may and (last or "graded" in may):
            fields["fires"] = False
        return replace(lif, **fields)

    def _tuned(self, population: Population) -> bool:
        """Add the population with thresholds with which it fires; False where there are none."""
        self.populations.append(population)
        name, neurons = population.name, population.neurons
        if not neurons.fires:
            self.values[name] = alone(self.network(), name, self.values).spikes
            return neurons.graded is None or bool(self.values[name].any())
        if isinstance(neurons, Or):
            self.values[name] = alone(self.network(), name, self.values).spikes
            return bool(LOW <= self.values[name].mean() <= HIGH)
        spread = self.rng.uniform(0.6, 1.4, population.shape)
        for base in self.rng.permutation(np.geomspace(1, 60_000, 24)):
            vth = np.minimum(base * spread, TOP - 71).astype(np.int32)
            self.populations[-1] = replace(population, neurons=replace(neurons, vth=vth))
            rate = (alone(self.network(), name, self.values).spikes != 0).mean()
            if 2 * LOW <= rate <= 0.8 * HIGH:
                return self._on_the_edge(self.populations[-1])
        return False

    def _on_the_edge(self, population: Population) -> bool:
        """Raise one neuron's threshold as far as its first spike of some sample allows."""
        name, neurons = population.name, population.neurons
        spikes = alone(self.network(), name, self.values).spikes
        where: Any = np.argwhere(spikes)
        sample, _, *neuron = where[self.rng.integers(len(where))]
        at = tuple(neuron)
        step = int((spikes[(sample, slice(None), *at)] != 0).argmax())
        vth = neurons.vth.copy()
        vth[at] = TOP
        self.populations[-1] = replace(population, neurons=replace(neurons, vth=vth))
        silent = alone(self.network(), name, self.values, states=True)
        assert silent.v is not None
        edge = (int(silent.v[(sample, step, *at)]) - 1) >> 6
        if not 0 <= edge < TOP:
            return False
        vth[at] = edge
        self.populations[-1] = replace(population, neurons=replace(neurons, vth=vth))
        self.values[name] = alone(self.network(), name, self.values).spikes
        return True

    def _lead_back(self) -> None:
        """A connection from a later population to an earlier one, late enough for a chip."""
        names = [p.name for p in self.populations if not p.name.endswith("_bias")]
        if len(names) < 2:
            return
        i, j = sorted(self.rng.choice(len(names), 2, replace=False).tolist())
        target = next(p for p in self.populations if p.name == names[i])
        way = self._way(self._shape(names[j]), target.shape)
        sends = self.network().span(names[j]) != (0, 0)
        if target.kind == "lif" and way is not None and sends:
            made = self._connection(f"{names[i]}_back", names[j], names[i], way)
            hops = 0 if self.chip == "ideal" and self.chance(0.3) else j - i
            self.connections.append(replace(made, delay=hops + 1 + int(self.rng.integers(0, 2))))


def _channels(shape: Shape) -> Shape:
    return (shape[0], *[1] * (len(shape) - 1))


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def _pair(values: NDArray[Any]) -> tuple[int, int]:
    return int(values[0]), int(values[1])
