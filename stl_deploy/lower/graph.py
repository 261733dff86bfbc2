"""The one lowering: a graph of any importer to populations and connections in nodes of NIR alone.

Dropout goes, BatchNorm, scales and pooling go into the weights (``flow.py``), the maximum of spikes becomes
SumPool2d -> Threshold, and an input that is read as x / levels becomes whole numbers by weights that are
divided by the levels. Everything is computed in float64; a node that meets no other stays as it is.

Connections that share their weights, as where several populations are added up in front of a convolution,
stay one node with several edges into it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import nir
import numpy as np

from stl_deploy.errors import InputError, LoweringError, Problem
from stl_deploy.ir import floats, order
from stl_deploy.ir import nir_graph as G
from stl_deploy.ir import nir_words as words
from stl_deploy.ir.float_neurons import FloatNeurons
from stl_deploy.ir.synapses import Pair, Shape
from stl_deploy.lower import linear as L
from stl_deploy.lower.ends import End, Wanted, is_silent, with_readout
from stl_deploy.lower.ends import find as find_end
from stl_deploy.lower.flow import Flow, Sum
from stl_deploy.lower.nodes import LINEAR, SPIKING, Array, Reading, read_neurons
from stl_deploy.lower.population import Connection, Draft, Population, or_pool, settled

DIRECTLY = "place BatchNorm and scales directly behind a convolution or linear layer"
Weighted = tuple[Connection, ...]


def lower(graph: nir.NIRGraph) -> nir.NIRGraph:
    """The lowered graph of one that has metadata of ours, such as ``importers/stl.py`` makes.

    Raises InputError and LoweringError naming everything that is wrong.
    """
    meta = G.float_meta(graph)
    binary = meta.input_levels == 1 and not meta.signed
    reading = Reading(binary=binary, foreign=False)
    wanted = Wanted(None if meta.readout is None else meta.readout.rule, meta.classes)
    return lowered(Flow(graph.nodes, list(graph.edges), reading), wanted).graph(meta)


@dataclass(frozen=True, eq=False)
class Lowered:
    """The nodes and edges of a lowered graph, populations in an order in which spikes go forward.

    ``end`` is read, ``outputs`` values in every step; ``unit`` [neurons] is what its v counts, None for 1.
    """

    nodes: dict[str, nir.ir.NIRNode]
    edges: list[tuple[str, str]]
    end: End
    outputs: int
    unit: Array | None = None

    def graph(self, meta: G.FloatMeta) -> nir.NIRGraph:
        """The graph with ``meta`` as its JSON string, of a newer version where it must be; verified.

        The readout of ``meta``, where it has one, adds steps and factors to that of ``end``.
        """
        read = self._read(meta.readout)
        newer = meta.model_copy(update={"version": max(meta.version, G.RULES), "readout": read})
        network = floats.decode(self._with(newer))
        return self._with(newer if network.newer else meta)

    def _read(self, said: G.Read | None) -> G.Read | None:
        """How ``end`` is read, None for votes. Raises LoweringError where v has units of its own."""
        said = said or G.Read()
        factors = None if said.factors is None else np.array(said.factors)
        if self.end.rule != "votes":
            for more in (self.end.factors, self.unit):
                if more is not None:
                    factors = more.reshape(-1) * (1 if factors is None else factors)
        if self.end.rule == "first" and self.unit is not None:
            what = (
                "is behind a convolution with scales of their own, so that voltages do not compare"
            )
            raise LoweringError(Problem(self.end.name, what, DIRECTLY))
        told = None if factors is None else tuple(factors.tolist())
        read = G.Read(rule=self.end.rule, steps=said.steps, factors=told)
        return None if read == G.Read() else read

    def _with(self, meta: G.FloatMeta) -> nir.NIRGraph:
        metadata = {G.KEY: meta.text()}
        return nir.NIRGraph(self.nodes, self.edges, metadata=metadata, type_check=False)


def lowered(flow: Flow, wanted: Wanted) -> Lowered:
    """The populations and connections of ``flow``, which may have problems already.

    Raises InputError or LoweringError with everything that is wrong.
    """
    refused = {problem.where for problem in flow.problems}
    flow.problems += [
        Problem(name, f"a {type(node).__name__} is not supported")
        for name, node in flow.nodes.items()
        if not isinstance(node, (*SPIKING, *LINEAR, nir.Input)) and name not in refused
    ]
    flow.done()
    flow.spread_shapes()
    flow.check_output()
    flow.check_cycles()
    flow.done()
    flow.check_sums()
    flow.done()
    # What multiplying out carries past a float64 is named behind it.
    with np.errstate(over="ignore", invalid="ignore"):
        sums = flow.sums()
        _check_neurons(flow, sums)
        end = find_end(flow, sums[flow.end], wanted)
        if end is None:
            _check_voltages(flow, sums[flow.end])
            flow, end = with_readout(flow, sums[flow.end], wanted)
            sums = flow.sums()
        drafts = [
            draft
            for name, node in flow.nodes.items()
            if isinstance(node, SPIKING) and (draft := _draft(flow, name, node, sums))
        ]
        flow.done()
        _check_leading(flow, drafts, end.name)
        found, shapes = _populations(flow, drafts)
        return _Emitter(flow, shapes, end).made(_ordered(flow, found))


def _check_neurons(flow: Flow, sums: Mapping[str, Sum]) -> None:
    """Note a network without neurons, and neurons whose voltage others receive."""
    if not any(isinstance(node, SPIKING) for node in flow.nodes.values()):
        flow.problems.append(Problem("graph", "has no neurons", "put neurons behind the weights"))
        flow.done()
    heard = {
        term.source
        for name, total in sums.items()
        for term in total.terms
        if isinstance(flow.nodes[name], SPIKING)
    }
    flow.problems += [
        Problem(name, *floats.SILENT)
        for name, node in flow.nodes.items()
        if name in heard and is_silent(node)
    ]


def _check_voltages(flow: Flow, total: Sum) -> None:
    """Raise LoweringError where an output that neurons have to compute is made of voltages."""
    flow.problems += [
        Problem(
            name,
            "has no threshold, and its voltage is one of several things that are added up or delayed at the "
            "output; a readout reads it alone",
            "let it lead to the output alone; integrators of one tau and r can be one, with the weights "
            "of both",
        )
        for name in dict.fromkeys(term.source for term in total.terms)
        if is_silent(flow.nodes[name])
    ]
    flow.done()


def _draft(flow: Flow, name: str, node: Any, sums: dict[str, Sum]) -> Draft | None:
    """The neurons of a node with what they receive, or None where a problem is noted."""
    if name not in sums:
        return None  # what it receives could not be said, which is noted
    total = sums[name]
    if not any(term.source != name for term in total.terms):
        flow.problems.append(Problem(name, "receives nothing but its own spikes"))
        return None
    try:
        if isinstance(node, G.MaxPool2d):
            return _max_pool(flow, name, node, total)
        read = read_neurons(node, total.shape, flow.reading)
        flow.problems += [Problem(name, text) for text in read.wrong]
        if window := _or_window(flow, node, read.neurons, total):
            (term,) = total.terms
            assert term.way.kind == "conv"
            return or_pool(name, term, term.weights, window, term.way.in_shape)
        if not read.wrong:
            return Draft(name, total.shape, total.terms, read, total.constant)
    except ValueError as error:
        flow.broken.append(Problem(name, str(error)))
    return None


def _max_pool(flow: Flow, name: str, node: G.MaxPool2d, total: Sum) -> Draft | None:
    term = total.terms[0]
    plain = term.way.kind == "scale" and term.way.trivial and len(total.terms) == 1
    if not plain or term.place or total.constant is not None or not _binary(flow, term.source):
        graded = isinstance(flow.nodes[term.source], nir.Input) and term.way.kind == "scale"
        what = "a graded input" if graded else f"the values of {term.weights or term.source}"
        flow.problems.append(
            Problem(
                name,
                f"max pooling of {what}, which are not binary spikes",
                "place it behind the neurons, or use average pooling or a strided convolution "
                "(docs/recipes/snntorch-tutorial-6.md)",
            )
        )
        return None
    return or_pool(name, term, f"{name}_sum", node.kernel, node.in_shape)


def _binary(flow: Flow, source: str) -> bool:
    return not isinstance(flow.nodes[source], nir.Input) or flow.reading.binary


def _or_window(flow: Flow, node: nir.ir.NIRNode, made: FloatNeurons, total: Sum) -> Pair | None:
    """The window of an OR pool, where these neurons fire as soon as one input of theirs does."""
    term = total.terms[0]
    if term.way.kind != "conv" or len(total.terms) > 1:
        return None
    if made.has_state and not flow.reading.foreign:
        return None  # our own graphs say so where they mean a pool
    window, least = term.way.window, term.way.weight.min()
    forgets = made.reset == "zero" and not made.has_current and made.plain
    forgets = forgets and not made.v_reset.any()
    plain = total.constant is None and term.post is None and not made.leak.any()
    fires = (made.threshold >= 0).all() and (made.threshold < least * made.gain).all()
    alone = plain and not term.delay and not term.place
    return window if forgets and alone and fires and _binary(flow, term.source) else None


def _check_leading(flow: Flow, drafts: list[Draft], end: str) -> None:
    """Raise LoweringError unless all neurons lead to ``end``."""
    leading, pending = {end}, [end]
    by_name = {draft.name: draft for draft in drafts}
    while pending:
        draft = by_name.get(pending.pop())
        new = {t.source for t in draft.terms} - leading if draft else set()
        leading |= new
        pending += new
    flow.problems += [
        Problem(name, "leads to no output", "remove it, or connect what it feeds")
        for name in (*flow.inputs, *by_name)
        if name not in leading
    ]
    flow.done()


def _populations(flow: Flow, drafts: list[Draft]) -> tuple[dict[str, Population], dict[str, Shape]]:
    """All populations by name, and their shapes with those of the inputs.

    Where several connections cannot share the kernels of an image, its neurons stand in a row instead, with
    single weights. Raises LoweringError for what is not possible either, InputError for numbers out of range.
    """
    inputs = {name: flow.shapes[name] for name in flow.inputs}
    rows: set[str] = set()
    while True:
        shapes = settled(drafts, inputs, rows)
        found: dict[str, Population] = {}
        failed: dict[str, str] = {}
        for draft in drafts:
            try:
                found[draft.name] = draft.population(shapes[draft.name], shapes)
            except L.CannotFold as error:
                failed[draft.name] = str(error)
        new = {d.name for d in drafts if d.name in failed and len(d.terms) > 1} - rows
        if not new:
            break
        rows |= new
    flow.problems += [Problem(name, what, DIRECTLY) for name, what in failed.items()]
    flow.broken += [
        Problem(
            name,
            "its weights and scales, multiplied out, are not finite numbers in float64",
            "bring weights and thresholds to a range around 1",
        )
        for name, population in found.items()
        if not all(np.isfinite(numbers).all() for numbers in population.numbers())
    ]
    flow.done()
    return found, shapes


def _ordered(flow: Flow, found: Mapping[str, Population]) -> list[Population]:
    """The populations so that connections without a delay lead forward. Raises LoweringError in a loop."""
    needs = {
        name: {c.source for c in p.connections if not c.delay and c.source in found}
        for name, p in found.items()
    }
    done: dict[str, Population] = {}
    while len(done) < len(found):
        ready = [n for n in found if n not in done and needs[n] <= done.keys()]
        if not ready:
            left = [name for name in found if name not in done]
            ways = [(source, name) for name in left for source in needs[name]]
            flow.problems += order.at_once(left, ways)
            flow.done()
        done |= {name: found[name] for name in ready}
    return list(done.values())


@dataclass
class _Emitter:
    """Nodes and edges of the lowered graph, in the making."""

    flow: Flow
    shapes: Mapping[str, Shape]
    end: End
    nodes: dict[str, nir.ir.NIRNode] = field(default_factory=dict)
    edges: list[tuple[str, str]] = field(default_factory=list)
    taken: set[str] = field(default_factory=set)

    def made(self, populations: list[Population]) -> Lowered:
        """The graph of ``populations``."""
        names = [population.name for population in populations]
        inputs = self.flow.inputs
        self.ports = {inputs[0]: "input"} if len(inputs) == 1 else {name: name for name in inputs}
        self.taken = {*names, *self.ports.values(), "output"}
        clashing = {"output", *self.ports.values()} & set(names)
        if clashing or "output" in self.ports.values():
            raise InputError(
                [
                    Problem(n, "is the name of neurons or weights; it stands for the graph's end")
                    for n in clashing or {"output"}
                ]
            )
        for name, port in self.ports.items():
            self.nodes[port] = nir.Input(input_type={"input": np.array(self.shapes[name])})
        back: list[tuple[Population, Weighted, bool]] = []
        reached = set(inputs)
        for population in populations:
            biased = False
            for shared in _shared(population):
                first = shared[0]
                own = first.way.kind != "scale" and not first.port and population.bias is not None
                own = own and not biased
                biased = biased or own
                if {c.source for c in shared} <= reached:
                    self._ways(population, shared, own)
                else:
                    back.append((population, shared, own))
            self.nodes[population.name] = population.node
            reached.add(population.name)
        shape = self._matrix(self.end, self.shapes[self.end.name])
        self.nodes["output"] = nir.Output(output_type={"output": np.array(shape)})
        for late in back:
            self._ways(*late)
        (unit,) = (p.unit for p in populations if p.name == self.end.name)
        return Lowered(self.nodes, self.edges, self.end, math.prod(shape), unit)

    def _matrix(self, end: End, shape: Shape) -> Shape:
        """Nodes and edges from the last neurons, of ``shape``, to the output; what arrives there."""
        if end.matrix is None:
            self.edges.append((end.name, "output"))
            return shape
        name, source = self._free(end.weights or f"{end.name}_out", "_w"), end.name
        if len(shape) > 1:
            source = self._free(f"{name}_flatten", "_")
            self.nodes[source] = G.flatten(shape)
            self.edges.append((end.name, source))
        node = nir.Linear(end.matrix) if end.offset is None else nir.Affine(end.matrix, end.offset)
        self.nodes[name] = node
        self.edges += [(source, name), (name, "output")]
        return (len(end.matrix),)

    def _free(self, name: str, more: str) -> str:
        while name in self.taken:
            name += more
        self.taken.add(name)
        return name

    def _ways(self, population: Population, shared: Weighted, biased: bool) -> None:
        """Nodes and edges from the sources of connections that share their weights to ``population``."""
        first = shared[0]
        own = first.source == population.name
        name = first.weights or self._unnamed(population, first)
        name = self._free(name, "_rec" if own else "_w")
        bias = population.bias if biased else None
        flattened: dict[Shape, str] = {}
        for c in shared:
            source = self._late(c, own)
            shape = self.shapes[c.source]
            if len(shape) > 1 and first.way.kind != "conv" and shape != population.shape:
                if shape not in flattened:
                    flattened[shape] = self._free(f"{name}_flatten", "_")
                    self.nodes[flattened[shape]] = G.flatten(shape)
                    self.edges.append((flattened[shape], name))
                self.edges.append((source, flattened[shape]))
            else:
                self.edges.append((source, name))
        self.nodes[name] = _node(first.way, population, bias)
        words.say(self.nodes[name], port=first.port)
        self.edges.append((name, population.name))

    def _unnamed(self, population: Population, connection: Connection) -> str:
        if connection.source == population.name:
            return f"{population.name}_rec"
        others = [c for c in population.connections if c.source != population.name]
        several = len(others) > 1
        return f"{connection.source}_{population.name}" if several else f"{population.name}_w"

    def _late(self, connection: Connection, own: bool) -> str:
        """The node whose values arrive: the source, or a Delay behind it."""
        source = self.ports.get(connection.source, connection.source)
        if connection.delay <= (1 if own else 0):
            return source
        name = f"{source}_delay{connection.delay}"
        if name not in self.nodes:
            self._free(name, "_")
            delay = np.full(self.shapes[connection.source], connection.delay * G.DT)
            self.nodes[name] = nir.Delay(delay=delay)
            self.edges.append((source, name))
        return name


def _shared(population: Population) -> list[Weighted]:
    """The connections, those together that share their weights."""
    found: list[Weighted] = []
    for c in population.connections:
        for i, some in enumerate(found):
            first = some[0]
            others = population.name not in (c.source, first.source) and c.way.kind != "scale"
            others = others and c.port == first.port
            if others and c.weights and c.weights == first.weights and c.way.same(first.way):
                found[i] = (*some, c)
                break
        else:
            found.append((c,))
    return found


def _node(way: L.Map, population: Population, bias: Array | None) -> nir.ir.NIRNode:
    """The node of the weights ``way`` into ``population``."""
    if way.kind == "scale":
        return nir.Scale(scale=way.full(population.shape))
    if way.kind == "dense":
        if bias is None:
            return nir.Linear(weight=way.weight)
        return nir.Affine(weight=way.weight, bias=bias.reshape(-1))
    if population.window is not None:
        return G.sum_pool(population.window, way.in_shape)
    if bias is None:
        bias = np.zeros(len(way.weight), way.weight.dtype)
    stride, padding, dilation, groups = way.geometry
    return G.conv2d(way.weight, bias, way.in_shape, stride, padding, groups, dilation)
