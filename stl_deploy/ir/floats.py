"""The float network: a lowered NIR graph, decoded once for everybody who runs, rounds or proves it.

Populations and connections, as in the integer network (``network.py``). Between two populations of a lowered
graph stands one node of ``WAYS``, with at most a Delay and a Flatten before it; the neurons are in
``float_neurons.py``. Before the Output may stand one more Linear or Affine, the matrix of the readout. Names
are those of the graph's nodes, and so those of the integer network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Literal

import nir
import numpy as np
from numpy.typing import NDArray

from stl_deploy.errors import InputError, LoweringError, Problem
from stl_deploy.ir import conv, cut, order
from stl_deploy.ir import nir_graph as G
from stl_deploy.ir import nir_walk as walk
from stl_deploy.ir import nir_words as words
from stl_deploy.ir.float_neurons import NEURONS, FloatNeurons
from stl_deploy.ir.float_neurons import decode as decode_neurons
from stl_deploy.ir.neurons import of_channels
from stl_deploy.ir.readouts import FloatReadout
from stl_deploy.ir.synapses import Geometry, Pair, Shape

Float = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Weights:
    """Weights of the graph, float64; ``geometry`` is None for all-to-all weights [O, I].

    ``bias`` [O] is that of the node. It arrives once, over however many connections share the weights, so
    that ``apply`` leaves it out and the population has it.
    """

    name: str
    weight: Float
    bias: Float | None
    geometry: Geometry | None

    kind: ClassVar[Literal["weights"]] = "weights"

    def apply(self, x: Float) -> Float:
        """The weighted sums of x [N, *source], without the bias."""
        return self.sums(x, self.weight)

    def sums(self, x: Float, weight: Float) -> Float:
        """The same with ``weight`` in the place of its own."""
        if self.geometry is None:
            product: Float = x.reshape(len(x), -1) @ weight.T
            return product
        return conv.convolve(x, weight, *self.geometry)

    def most(self, shape: Shape, low: float, high: float) -> Float:
        """The most that arrives [1, *target] where every value of ``shape`` is one of low..high."""
        ones = np.ones((1, *shape))
        above = self.sums(high * ones, np.maximum(self.weight, 0))
        return above + self.sums(low * ones, np.minimum(self.weight, 0))

    def output(self, shape: Shape) -> Shape:
        """The shape of what arrives from a source of ``shape``. Raises ValueError where it does not fit."""
        if self.geometry is None:
            if math.prod(shape) != self.weight.shape[1]:
                raise ValueError(f"weights {self.weight.shape} for an input of shape {shape}")
            return (len(self.weight),)
        kernel = self.weight.shape[2], self.weight.shape[3]
        stride, padding, dilation, groups = self.geometry
        if len(shape) != 3 or shape[0] != self.weight.shape[1] * groups:
            raise ValueError(f"a kernel {self.weight.shape} for an input of shape {shape}")
        return (len(self.weight), *G.plane(shape, kernel, stride, padding, dilation))


@dataclass(frozen=True, eq=False)
class OneToOne:
    """A factor for each value: ``weight`` float64 of the source's shape."""

    name: str
    weight: Float

    kind: ClassVar[Literal["one_to_one"]] = "one_to_one"
    bias: ClassVar[None] = None

    def apply(self, x: Float) -> Float:
        """x [N, *source], each value times its factor."""
        return x.reshape(len(x), *self.weight.shape) * self.weight

    def most(self, _shape: Shape, low: float, high: float) -> Float:
        """The most that arrives [1, *target] where every value is one of low..high."""
        found: Float = np.maximum(self.weight * low, self.weight * high)[None]
        return found

    def output(self, shape: Shape) -> Shape:
        """The shape of what arrives from a source of ``shape``. Raises ValueError where it does not fit."""
        if math.prod(shape) != self.weight.size:
            raise ValueError(f"factors {self.weight.shape} for an input of shape {shape}")
        return self.weight.shape


@dataclass(frozen=True, eq=False)
class Window:
    """Sums over windows of every channel."""

    name: str
    channels: int
    kernel: Pair
    stride: Pair
    padding: Pair

    kind: ClassVar[Literal["window"]] = "window"
    bias: ClassVar[None] = None

    @property
    def tiles(self) -> bool:
        """Whether windows neither overlap nor reach over the rim."""
        return self.stride == self.kernel and self.padding == (0, 0)

    def apply(self, x: Float) -> Float:
        """The sums of x [N, C, H, W], one place of the window after the other."""
        x = np.pad(x, ((0, 0), (0, 0), *((p, p) for p in self.padding)))
        rows, columns = (
            (size - k) // s + 1
            for size, k, s in zip(x.shape[2:], self.kernel, self.stride, strict=True)
        )
        total = np.zeros((*x.shape[:2], rows, columns))
        for i, j in np.ndindex(self.kernel):
            total += x[:, :, i :: self.stride[0], j :: self.stride[1]][:, :, :rows, :columns]
        return total

    def most(self, shape: Shape, _low: float, high: float) -> Float:
        """The most that arrives [1, *target] where every value of ``shape`` is at most ``high``."""
        return self.apply(np.full((1, *shape), high))

    def output(self, shape: Shape) -> Shape:
        """The shape of what arrives from a source of ``shape``. Raises ValueError where it does not fit."""
        if len(shape) != 3 or shape[0] != self.channels:
            raise ValueError(f"windows of {self.channels} channels for an input of shape {shape}")
        return (shape[0], *G.plane(shape, self.kernel, self.stride, self.padding, (1, 1)))


Way = Weights | OneToOne | Window


@dataclass(frozen=True, eq=False)
class FloatConnection:
    """``way`` of what ``source`` sends arrives at current ``port`` of ``target``, ``delay`` steps later."""

    source: str
    target: str
    way: Way
    delay: int = 0
    port: int = 0

    @property
    def name(self) -> str:
        """That of the weights."""
        return self.way.name

    @property
    def key(self) -> tuple[str, str, str]:
        """What tells it from all others."""
        return self.name, self.source, self.target


@dataclass(frozen=True, eq=False)
class FloatPopulation:
    """Neurons, and what arrives at them in every step besides spikes.

    ``bias`` is float64, broadcastable to ``shape``: that of the weights, in the units of the graph's sums.
    """

    name: str
    shape: Shape
    neurons: FloatNeurons
    bias: Float

    @property
    def size(self) -> int:
        """How many neurons."""
        return math.prod(self.shape)


@dataclass(frozen=True, eq=False)
class FloatNetwork:
    """The whole network; ``output`` is the population that ``readout`` reads.

    Populations stand in an order in which connections without a delay lead forward. ``meta`` is what the
    graph's metadata says, None where there is none.
    """

    inputs: Mapping[str, Shape]
    populations: tuple[FloatPopulation, ...]
    connections: tuple[FloatConnection, ...]
    output: str
    meta: G.FloatMeta | None
    readout: FloatReadout | None = None

    @cached_property
    def by_name(self) -> dict[str, FloatPopulation]:
        """The populations by name."""
        return {population.name: population for population in self.populations}

    @cached_property
    def _into(self) -> dict[str, tuple[FloatConnection, ...]]:
        return {n: tuple(c for c in self.connections if c.target == n) for n in self.by_name}

    def into(self, population: str) -> tuple[FloatConnection, ...]:
        """The connections that lead into a population."""
        return self._into[population]

    def shape(self, name: str) -> Shape:
        """The shape of an input or a population."""
        return self.inputs[name] if name in self.inputs else self.by_name[name].shape

    @cached_property
    def parts(self) -> tuple[tuple[FloatPopulation, ...], ...]:
        """As those of the integer network."""
        ways = [(c.source, c.target) for c in self.connections]
        found = order.parts(list(self.by_name), ways)
        return tuple(tuple(self.by_name[name] for name in part) for part in found)

    def cut(self, populations: Iterable[str]) -> FloatNetwork:
        """The network that is given what ``populations`` send, as inputs (``ir/cut.py``)."""
        names = cut.sources(populations)
        ports = {new: self.shape(old) for old, new in names.items()}
        return replace(
            self,
            inputs={**self.inputs, **ports},
            connections=tuple(
                replace(c, source=names.get(c.source, c.source)) for c in self.connections
            ),
        )

    @property
    def trained(self) -> G.Trained | None:
        """The units of a network that was trained on integers."""
        return None if self.meta is None else self.meta.trained

    @property
    def newer(self) -> bool:
        """Whether versions of ``meta`` before ``nir_graph.RULES`` cannot say all of the network."""
        read = self.readout
        votes = read is None or (
            read.rule == "votes" and read.steps is None and read.matrix is None
        )
        plain = all(p.neurons.plain for p in self.populations)
        return not (votes and plain) or any(c.port for c in self.connections)

    def pools(self, name: str) -> bool:
        """Whether the neurons of a population fire exactly where an input of their window does."""
        into, neurons = self.into(name), self.by_name[name].neurons
        if neurons.has_state or len(into) != 1 or into[0].delay:
            return False
        way, theta = into[0].way, neurons.threshold
        inside = bool(((theta >= 0) & (theta < 1)).all())
        return isinstance(way, Window) and way.tiles and inside


def _conv(name: str, node: nir.Conv2d, _shape: Shape) -> Weights:
    geometry = Geometry(*G.conv_geometry(node), int(node.groups))
    return Weights(name, _float(node.weight), _float(node.bias), geometry)


def _dense(name: str, node: nir.Linear | nir.Affine, _shape: Shape) -> Weights:
    bias = _float(node.bias) if hasattr(node, "bias") else None
    return Weights(name, _float(node.weight), bias, None)


def _window(name: str, node: nir.SumPool2d, shape: Shape) -> Window:
    return Window(name, shape[0], *map(G.pair, (node.kernel_size, node.stride, node.padding)))


def _scale(name: str, node: nir.Scale, _shape: Shape) -> OneToOne:
    return OneToOne(name, _float(node.scale))


def _float(values: NDArray[Any]) -> Float:
    return values.astype(np.float64, copy=False)


# A function takes the name of a node, the node and the shape before it.
WAYS: dict[type, Callable[[str, Any, Shape], Way]] = {
    nir.Conv2d: _conv,
    nir.Linear: _dense,
    nir.Affine: _dense,
    nir.SumPool2d: _window,
    nir.Scale: _scale,
}
KNOWN = (*WAYS, *NEURONS, nir.Flatten, nir.Delay)
NO_SECOND_BIAS = (
    "has a bias, and leads to a second current, which has none",
    "put the bias into the weights of the first current",
)
SILENT = (
    "has no threshold, and other neurons receive its voltage; only a readout can read that",
    "end the network with it; a LI and the LIF behind it are one CubaLIF, two LI one with a second current "
    "(docs/import-nir.md)",
)


def decode(graph: nir.NIRGraph) -> FloatNetwork:
    """The float network of a lowered graph.

    Raises LoweringError naming every node that has no place in one, and InputError for broken metadata.
    """
    return _Decoder(graph).network()


class _Decoder:
    """A graph on its way to a network; ``problems`` collects what has no place in one."""

    def __init__(self, graph: nir.NIRGraph) -> None:
        self.graph = graph
        self.problems = [
            Problem(
                name,
                f"a {type(node).__name__} has no place in a lowered float graph",
                "lower the graph first (from_torch, from_nir)",
            )
            for name, node in graph.nodes.items()
            if type(node) not in (*KNOWN, nir.Input, nir.Output)
        ]
        self._done()
        self.before = walk.before(graph)
        self.shapes = walk.shapes(graph)

    def _done(self) -> None:
        if self.problems:
            raise LoweringError(self.problems)

    def network(self) -> FloatNetwork:
        """The network."""
        graph = self.graph
        meta = G.float_meta(graph) if G.KEY in graph.metadata else None
        names = [name for name, node in graph.nodes.items() if type(node) in NEURONS]
        into = {name: list(self._arriving(name)) for name in names}
        output, matrix = self._output()
        self._rest(into, matrix)
        self._done()
        flat = [connection for some in into.values() for connection in some]
        populations = {name: self._population(name) for name in self._ordered(names, flat)}
        place = {name: i for i, name in enumerate(populations)}
        made = FloatNetwork(
            {n: self.shapes[n] for n, node in graph.nodes.items() if isinstance(node, nir.Input)},
            tuple(populations.values()),
            tuple(sorted(flat, key=lambda connection: place[connection.target])),
            output,
            meta,
            None if meta is None else self._readout(meta, populations[output], matrix),
        )
        problems = []
        for name, population in populations.items():
            gain = population.neurons.amplify
            if meta is not None and gain is not None and len(gain) < meta.timesteps:
                what = f"has a gain for {len(gain)} steps; the network has {meta.timesteps}"
                problems.append(Problem(name, what))
        if problems:
            raise InputError(problems)
        if meta is not None and meta.version < G.RULES and made.newer:
            what = f"version {meta.version} has no such neurons, connections or readouts"
            raise InputError(Problem(f"metadata.{G.KEY}", f"{what}; version {G.RULES} has"))
        return made

    def _readout(
        self, meta: G.FloatMeta, population: FloatPopulation, matrix: str | None
    ) -> FloatReadout:
        """How classes are scored. Raises InputError for what does not fit the last population."""
        said = meta.readout or G.Read()
        weights = None if matrix is None else self.graph.nodes[matrix]
        bias = getattr(weights, "bias", None)
        where = f"metadata.{G.KEY}: readout"
        if said.rule == "votes" and not (population.neurons.fires or population.neurons.graded):
            what = f"counts spikes, and {population.name} has no threshold"
            raise InputError(Problem(where, what, 'read "last", "mean" or "max" of v'))
        try:
            found = FloatReadout(
                meta.classes,
                meta.population,
                population.name,
                said.rule,
                said.steps,
                None if said.factors is None else np.array(said.factors),
                None if weights is None else _float(weights.weight),
                None if bias is None else _float(bias),
            )
        except ValueError as error:
            raise InputError(Problem(where, str(error))) from None
        if not found.fits(population.size) and (meta.readout is not None or matrix is not None):
            what = f"{meta.classes} classes of {meta.population} neurons; {population.name} has "
            raise InputError(Problem(where, f"{what}{population.size}"))
        if found.factors is not None and found.factors.shape != (population.size,):
            what = (
                f"has {len(found.factors)} factors; {population.name} has {population.size} neurons"
            )
            raise InputError(Problem(where, what))
        if found.steps is not None and len(found.steps) != meta.timesteps:
            what = f"has weights of {len(found.steps)} steps, not of {meta.timesteps}"
            raise InputError(Problem(where, what))
        return found

    def _population(self, name: str) -> FloatPopulation:
        shape = self.shapes[name]
        bias: Float = np.zeros((1,) * len(shape))
        for source in self.before[name]:
            given = getattr(self.graph.nodes[source], "bias", None)
            if type(self.graph.nodes[source]) in WAYS and given is not None:
                if words.read(self.graph.nodes[source]).port and np.any(given):
                    raise LoweringError(Problem(source, *NO_SECOND_BIAS))
                bias = bias + of_channels(_float(given), shape)
        neurons = decode_neurons(self.graph.nodes[name])
        if neurons.amplify is not None and not neurons.has_current and neurons.leak.any():
            # A bias that the gain of each step multiplies: that of a convolution is one per channel.
            bias = bias + neurons.leak / neurons.gain
            neurons = replace(neurons, leak=np.zeros(1))
        return FloatPopulation(name, shape, neurons, bias)

    def _arriving(self, name: str) -> Iterator[FloatConnection]:
        """The connections into a population."""
        for last in self.before[name]:
            node = self.graph.nodes[last]
            weighted = type(node) in WAYS
            port = self._port(last, name) if weighted else 0
            way: Way | None = None
            firsts = self.before[last] if weighted else [last]
            for source, delay in (found for first in firsts for found in self._sources(first, 0)):
                shape = self.shapes[source]
                if weighted:
                    way = way or WAYS[type(node)](last, node, shape)
                else:
                    way = OneToOne(f"{source}_{name}", np.ones(self.shapes[name]))
                # What neurons send themselves arrives in the next step at the earliest.
                least = 1 if source == name else 0
                yield FloatConnection(source, name, way, max(delay, least), port)

    def _port(self, weights: str, target: str) -> int:
        """Of the neurons ``target``, that at which ``weights`` arrive."""
        said = words.read(self.graph.nodes[weights])
        if said != words.Words(port=said.port):
            self.problems.append(Problem(weights, "has rules of neurons in its metadata"))
        if said.port and f"{G.KEY}.current2" not in self.graph.nodes[target].metadata:
            what = f"leads to a second current, which {target} has not"
            self.problems.append(Problem(weights, what))
        return said.port

    def _sources(self, name: str, delay: int, end: bool = False) -> list[tuple[str, int]]:
        """The inputs and populations whose values leave node ``name`` as they are, and how late.

        Neurons that send nothing are among them only at the ``end``, where v is read.
        """
        node = self.graph.nodes[name]
        if type(node) in NEURONS and not end:
            neurons = decode_neurons(node)
            if not (neurons.fires or neurons.graded):
                self.problems.append(Problem(name, *SILENT))
                return []
        if walk.keeps_state(node):
            return [(name, delay)]
        if type(node) in WAYS:
            what = "is followed by more weights, without neurons in between"
            self.problems.append(
                Problem(name, what, "lower the graph first (from_torch, from_nir)")
            )
            return []
        if isinstance(node, nir.Delay):
            steps = np.rint(np.asarray(node.delay, np.float64) / G.DT)
            if np.ptp(steps) != 0:
                what = f"delays of {steps.min():.0f} to {steps.max():.0f} steps"
                self.problems.append(Problem(name, what, "give all values the same delay"))
            delay += int(steps.flat[0])
        return [s for first in self.before[name] for s in self._sources(first, delay, end)]

    def _output(self) -> tuple[str, str | None]:
        """The population that leads to the output, and the weights in between."""
        (end,) = (n for n, node in self.graph.nodes.items() if isinstance(node, nir.Output))
        before, matrix = self.before[end], self._matrix(end)
        if matrix is not None:
            before = self.before[matrix]
        found = [source for name in before for source in self._sources(name, 0, end=True)]
        if len(found) != 1 or found[0][1] or type(self.graph.nodes[found[0][0]]) not in NEURONS:
            self.problems.append(Problem(end, "is not what one population sends"))
            return "", None
        return found[0][0], matrix

    def _matrix(self, end: str) -> str | None:
        """The weights that lead to the output and to nothing else."""
        last = self.before[end][0] if len(self.before[end]) == 1 else ""
        if not isinstance(self.graph.nodes.get(last), nir.Linear | nir.Affine):
            return None
        return last if [b for a, b in self.graph.edges if a == last] == [end] else None

    def _rest(self, into: Mapping[str, list[FloatConnection]], matrix: str | None) -> None:
        """Note the weights that lead to no neurons, but for the matrix of the readout."""
        used = {connection.name for some in into.values() for connection in some} | {matrix}
        self.problems += [
            Problem(name, "has no neurons behind it")
            for name, node in self.graph.nodes.items()
            if type(node) in WAYS and name not in used
        ]

    def _ordered(self, names: list[str], connections: list[FloatConnection]) -> list[str]:
        """``names`` so that connections without a delay lead forward."""
        needs = {name: set[str]() for name in names}
        for connection in connections:
            if not connection.delay and connection.source in needs:
                needs[connection.target].add(connection.source)
        done: list[str] = []
        while len(done) < len(names):
            ready = next((n for n in names if n not in done and needs[n] <= set(done)), None)
            if ready is None:
                left = [name for name in names if name not in done]
                ways = [(a, name) for name in left for a in needs[name]]
                self.problems += order.at_once(left, ways)
                self._done()
            else:
                done.append(ready)
        return done


def magnitudes(graph: nir.NIRGraph) -> dict[str, Float]:
    """Of every population, the largest sum of magnitudes [O] that a step of ``graph`` can add up.

    Rounding errors grow with this and not with the sum itself. For a model with BatchNorm this is
    that of the graph *before* it is lowered, whose terms cancel when they are folded. Populations behind
    neurons that send values, which have no bound, are left out.
    """
    largest: dict[str, Float] = {}
    levels = np.array([float(G.float_meta(graph).input_levels)])
    preceding, shapes = walk.before(graph), walk.shapes(graph)
    peaks: dict[str, Float] = {
        name: levels if isinstance(node, nir.Input) else _sent(node)
        for name, node in graph.nodes.items()
        if walk.keeps_state(node)
    }
    for name in walk.ordered(graph):
        node = graph.nodes[name]
        if not isinstance(node, nir.Input) and not walk.keeps_state(node):
            peaks[name] = _peak(name, node, shapes, preceding, peaks)
    for name, node in graph.nodes.items():
        if type(node) in NEURONS:
            largest[name] = _added(preceding[name], peaks)
    return {name: peak for name, peak in largest.items() if not np.isnan(peak).any()}


def _sent(node: nir.ir.NIRNode) -> Float:
    """The largest value that neurons send, NaN where there is no bound."""
    graded = type(node) in NEURONS and words.read(node).neurons.get("graded", False)
    return np.full(1, np.nan if graded else 1.0)


def _added(names: list[str], peaks: Mapping[str, Float]) -> Float:
    total: Float = np.asarray(sum((peaks[name] for name in names), np.zeros(1)))
    return total


def _peak(
    name: str,
    node: Any,
    shapes: Mapping[str, Shape],
    preceding: Mapping[str, list[str]],
    peaks: Mapping[str, Float],
) -> Float:
    """The largest sum of magnitudes behind a node that is not neurons."""
    peak = _added(preceding[name], peaks)
    way = None
    if type(node) in WAYS:
        way = WAYS[type(node)](name, node, shapes[preceding[name][0]])
    if isinstance(way, Weights):
        weight = np.abs(way.weight)
        bias = 0.0 if way.bias is None else np.abs(way.bias)
        return np.asarray(weight.reshape(len(weight), -1).sum(axis=1) * peak.max() + bias)
    if isinstance(way, OneToOne):
        return peak * float(np.abs(way.weight).max())
    if isinstance(way, Window):
        return peak * float(np.prod(way.kernel))
    if isinstance(node, G.BatchNorm):
        k = np.abs(node.gamma) / np.sqrt(node.var.astype(np.float64) + node.eps)
        return np.asarray(k * (peak + np.abs(node.mean)) + np.abs(node.beta))
    if isinstance(node, G.Place):
        placed = np.zeros(node.out_shape[0])
        placed[node.first : node.first + node.in_shape[0]] = peak
        return placed
    # What an average pool adds up is no more than what enters it.
    return peak / node.levels if isinstance(node, G.InputScale) else peak
