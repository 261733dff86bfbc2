"""Writing an integer network as a NIR graph, whose form ``integer_nir.py`` describes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import nir
import numpy as np
from numpy.typing import NDArray

from stl_deploy.formats import integer_meta as M
from stl_deploy.formats import integer_placement
from stl_deploy.formats import integer_readout as readouts
from stl_deploy.formats import integer_rules as rules
from stl_deploy.formats import integer_words as words
from stl_deploy.ir import nir_graph as G
from stl_deploy.ir.network import Connection, IntegerNetwork, Population
from stl_deploy.ir.neurons import by_channel
from stl_deploy.ir.synapses import Conv, Dense, OneToOne, Shape, Sparse

Float = NDArray[np.float64]
Nodes = tuple[nir.ir.NIRNode, nir.ir.NIRNode | None]


@dataclass(frozen=True)
class Way:
    """What the node of a connection's weights is made from.

    Attributes:
        connection: the first of those that share the node.
        before, target: the shape of the source, and the population.
        exp: what the target counts in, see ``words.base``.
        bias: the bias of the target where this node has it, [outputs] in the units of its sums.
    """

    connection: Connection
    before: Shape
    target: Population
    exp: int
    bias: Float | None = None

    @property
    def weight(self) -> NDArray[Any]:
        """The weights as they are written."""
        return words.stored(self.connection, self.exp)


def _conv(way: Way, conv: Conv) -> Nodes:
    if _pools(way, conv):
        return G.sum_pool(conv.stride, way.before), None
    bias = np.zeros(len(conv.weight)) if way.bias is None else way.bias
    stride, padding, dilation, groups = conv.geometry
    return G.conv2d(way.weight, bias, way.before, stride, padding, groups, dilation), None


def _pools(way: Way, conv: Conv) -> bool:
    """Whether the kernel counts the spikes of windows that tile the plane, for neurons that pool."""
    return (
        way.target.kind == "or"
        and way.connection.exp == 0
        and conv.weight.shape[:2] == (conv.groups, 1)
        and bool((conv.weight == 1).all())
        and conv.stride == conv.weight.shape[2:]
        and (conv.padding, conv.dilation) == ((0, 0), (1, 1))
    )


def _dense(way: Way, _: Dense) -> Nodes:
    if way.bias is None:
        return nir.Linear(weight=way.weight), None
    return nir.Affine(weight=way.weight, bias=way.bias), None


def _one_to_one(way: Way, _: OneToOne) -> Nodes:
    flat = len(way.target.shape) == 1
    return nir.Scale(scale=way.weight.reshape(way.target.shape if flat else way.before)), None


def _sparse(way: Way, synapses: Sparse) -> Nodes:
    """The convolution before rounding, its Scale, and the single connections as its metadata."""
    kernel, target = synapses.kernel, way.target
    stride, padding, dilation, groups = kernel.geometry
    none = np.zeros(len(kernel.weight))
    node = G.conv2d(kernel.weight, none, way.before, stride, padding, groups, dilation)
    node.metadata = {
        "row": synapses.row,
        "column": synapses.column,
        "weight": synapses.weight,
        "bias": kernel.bias,
    }
    # The kernel counts the float model's units, a step of the neuron's grid is scale * 2^exp.
    factor = 1 / (np.broadcast_to(target.neurons.scale, target.shape) * 2.0**way.exp)
    return node, nir.Scale(scale=factor)


SYNAPSES: dict[str, Callable[[Way, Any], Nodes]] = {
    "conv": _conv,
    "dense": _dense,
    "one_to_one": _one_to_one,
    "sparse": _sparse,
}


def _lif(population: Population, exp: int, biased: bool) -> nir.ir.NIRNode:
    node = words.neurons(population, exp, biased)
    node.metadata = dict(rules.arrays(population.neurons, population.shape))
    return node


def _or(population: Population, _exp: int, _biased: bool) -> nir.ir.NIRNode:
    return words.threshold(population)


# A function takes the population, what its ``r`` carries, and whether its bias has no place in weights.
NEURONS: dict[str, Callable[[Population, int, bool], nir.ir.NIRNode]] = {"lif": _lif, "or": _or}


def _channel_bias(population: Population, exp: int) -> Float | None:
    """The bias of a kernel's channels, None where it differs within one."""
    try:
        return by_channel(words.in_weights(population.neurons.bias, exp), population.shape)
    except ValueError:
        return None


def _neuron_bias(population: Population, exp: int) -> Float | None:
    bias = words.in_weights(population.neurons.bias, exp)
    return np.broadcast_to(bias, population.shape).reshape(-1).copy()


# By the kind of synapses, how the bias of the neurons stands in the weights.
BIASES: dict[str, Callable[[Population, int], Float | None]] = {
    "conv": _channel_bias,
    "dense": _neuron_bias,
}


class Writer:
    """A network on its way to a graph."""

    def __init__(self, network: IntegerNetwork) -> None:
        self.network = network
        self.nodes: dict[str, nir.ir.NIRNode] = {}
        self.edges: list[tuple[str, str]] = []
        self.taken = {*network.inputs, *network.by_name}
        self.of: dict[tuple[str, str, str], str] = {}  # by connection, the node of its weights
        self.delays: dict[tuple[str, int], str] = {}

    def graph(self) -> nir.NIRGraph:
        """The graph."""
        network = self.network
        for name, port in network.inputs.items():
            self.nodes[name] = nir.Input(input_type={"input": np.array(port.shape)})
        for population in network.populations:
            self._population(population)
        meta = self._meta(self._end())
        unsaid = {"chip_facts"} if meta.chip_facts is None else None
        metadata = {G.KEY: meta.model_dump_json(exclude=unsaid)}
        return nir.NIRGraph(self.nodes, self.edges, metadata=metadata, type_check=False)

    def _end(self) -> str | None:
        """The output, and in front of it the matrix of the readout, whose name this is."""
        readout = self.network.readout
        end, shape = readout.source, self.network.shape(readout.source)
        matrix, name = readouts.node(readout), None
        if matrix is not None:
            if len(shape) > 1:
                flat = self._new("readout_flatten", G.flatten(shape))
                self._link(end, flat)
                end = flat
            name = self._new("readout", matrix)
            self._link(end, name)
            end, shape = name, (readout.classes,)
        output = nir.Output(output_type={"output": np.array(shape)})
        output.metadata = dict(readouts.arrays(readout))
        self._link(end, self._new("output", output))
        return name

    def _population(self, population: Population) -> None:
        exp = words.base(self.network, population)
        sharing = list(_sharing(self.network, self.network.into(population.name)))
        place, bias = self._place_of_bias(population, exp, sharing)
        for group in sharing:
            self._weights(population, exp, group, bias if group is place else None)
        self.nodes[population.name] = NEURONS[population.kind](population, exp, place is None)

    def _place_of_bias(
        self, population: Population, exp: int, sharing: Sequence[list[Connection]]
    ) -> tuple[list[Connection] | None, Float | None]:
        """The first weights that can have the bias of the neurons, and how it stands there."""
        neurons = population.neurons
        if neurons.has_current or not neurons.bias.any():
            return None, None
        for group in sharing:
            at_once = all(c.delay == 0 and c.source != c.target for c in group)
            form = BIASES.get(group[0].synapses.kind)
            bias = form(population, exp) if form is not None and at_once else None
            if bias is not None:
                return group, bias
        return None, None

    def _weights(
        self, target: Population, exp: int, group: list[Connection], bias: Float | None
    ) -> None:
        """The node of connections that share their weights, and the way from their sources to the target."""
        first, before = group[0], self.network.shape(group[0].source)
        way = Way(first, before, target, exp, bias)
        node, behind = SYNAPSES[first.synapses.kind](way, first.synapses)
        name = self._name(first.name)
        entry = name
        if len(before) > 1 and G.shape_of(node.input_type["input"]) != before:
            entry = self._new(f"{name}_flatten", G.flatten(before))
        self.nodes[name] = node
        for connection in group:
            self.of[connection.key] = name
            self._link(self._sent(connection), entry)
        if entry != name:
            self._link(entry, name)
        end = name
        if behind is not None:
            end = self._new(f"{name}_fold", behind)
            self._link(name, end)
        self._link(end, target.name)

    def _sent(self, connection: Connection) -> str:
        """The node of what the connection's source sent its delay ago."""
        source = connection.source
        if connection.delay == int(source == connection.target):
            return source
        key = source, connection.delay
        if key not in self.delays:
            wait = np.full(self.network.shape(source), connection.delay * G.DT)
            self.delays[key] = self._new(f"{source}_delay{connection.delay}", nir.Delay(delay=wait))
            self._link(source, self.delays[key])
        return self.delays[key]

    def _link(self, source: str, target: str) -> None:
        self.edges.append((source, target))

    def _new(self, wish: str, node: nir.ir.NIRNode) -> str:
        name = self._name(wish)
        self.nodes[name] = node
        return name

    def _name(self, wish: str) -> str:
        """``wish``, with a number where another node has that name."""
        name, number = wish, 1
        while name in self.taken:
            number += 1
            name = f"{wish}_{number}"
        self.taken.add(name)
        return name

    def _meta(self, matrix: str | None) -> M.IntegerMeta:
        network, readout = self.network, self.network.readout
        placed = network.placement
        return M.IntegerMeta(
            chip=network.chip,
            chip_facts=None if network.chip_facts is None else json.loads(network.chip_facts),
            timesteps=network.timesteps,
            inputs=[
                M.InputMeta(name=name, levels=i.levels, signed=i.signed, held=i.held)
                for name, i in network.inputs.items()
            ],
            populations=list(map(_population_meta, network.populations)),
            connections=[_connection_meta(c, self.of[c.key]) for c in network.connections],
            readout=M.ReadoutMeta(
                classes=readout.classes,
                population=readout.population,
                source=readout.source,
                rule=readout.rule,
                node=matrix,
            ),
            lowering=network.lowering,
            lowering_reason=network.lowering_reason,
            precision={n: M.PrecisionMeta(**vars(p)) for n, p in network.precision.items()},
            rounding={n: M.RoundingMeta(**vars(r)) for n, r in network.rounding.items()},
            placement=None if placed is None else integer_placement.to_meta(placed),
            diagnostics=[(d.where, d.what, d.remedy) for d in network.diagnostics],
            read_as=network.read_as,
        )


def _population_meta(population: Population) -> M.PopulationMeta:
    neurons, scale = population.neurons, np.zeros(0)
    if population.kind != "or":
        try:
            scale = by_channel(neurons.scale, population.shape)
        except ValueError:
            scale = np.broadcast_to(neurons.scale, population.shape).reshape(-1)
    return M.PopulationMeta(
        name=population.name,
        kind=population.kind,
        bias_exp=neurons.bias_exp,
        reset=neurons.reset,
        reset_current=neurons.reset_current,
        hold=neurons.hold,
        graded=None if neurons.graded is None else M.GradedMeta(**vars(neurons.graded)),
        scale=scale.tolist(),
    )


def _connection_meta(connection: Connection, node: str) -> M.ConnectionMeta:
    return M.ConnectionMeta(
        name=connection.name,
        source=connection.source,
        target=connection.target,
        node=node,
        exp=connection.exp,
        bits=connection.bits,
        precision=connection.precision,
        delay=connection.delay,
        port=connection.port,
    )


def _sharing(
    network: IntegerNetwork, connections: Sequence[Connection]
) -> Iterator[list[Connection]]:
    """Connections into a population, those together that share their weights."""
    groups: list[list[Connection]] = []
    for connection in connections:
        for group in groups:
            if _share(network, group[0], connection):
                group.append(connection)
                break
        else:
            groups.append([connection])
    yield from groups


def _share(network: IntegerNetwork, a: Connection, b: Connection) -> bool:
    """Whether one node serves both: they have one name, one shape, and the same weights in the same form."""
    return (
        (a.name, a.exp, a.bits, a.port) == (b.name, b.exp, b.bits, b.port)
        and a.precision == b.precision
        and network.shape(a.source) == network.shape(b.source)
        and a.synapses.kind == b.synapses.kind
        and a.synapses.geometry == b.synapses.geometry
        and all(map(np.array_equal, a.synapses.arrays, b.synapses.arrays))
    )
