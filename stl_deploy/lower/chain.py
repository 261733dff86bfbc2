"""The one lowering: a graph of any importer to a chain of populations in nodes of NIR alone.

Dropout goes, BatchNorm, scales and pooling go into the weights (``flow.py``), the maximum of spikes becomes
SumPool2d -> Threshold, and an input that is read as x / levels becomes whole numbers by weights that are
divided by the levels. Everything is computed in float64; a node that meets no other stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import nir
import numpy as np

from stl_deploy.errors import InputError, Problem
from stl_deploy.ir import nir_graph as G
from stl_deploy.ir.float_neurons import FloatNeurons
from stl_deploy.ir.synapses import Pair, Shape
from stl_deploy.lower import linear as L
from stl_deploy.lower.flow import Flow, Sum, Term
from stl_deploy.lower.nodes import LINEAR, SPIKING, Reading, read_neurons
from stl_deploy.lower.population import Population, or_pool, wired

DIRECTLY = "place BatchNorm and scales directly behind a convolution or linear layer"


def lower(graph: nir.NIRGraph) -> nir.NIRGraph:
    """The lowered graph of one that has metadata of ours, such as ``importers/stl.py`` makes.

    Raises InputError and LoweringError naming everything that is wrong.
    """
    meta = G.float_meta(graph)
    reading = Reading(levels=meta.input_levels, foreign=False)
    made = chain(Flow(graph.nodes, list(graph.edges), reading))
    return made.graph(graph.metadata[G.KEY])


@dataclass(frozen=True, eq=False)
class Chain:
    """The nodes of a lowered graph, in order."""

    nodes: dict[str, nir.ir.NIRNode]
    recurrent: G.Recurrent
    in_shape: Shape
    out_shape: Shape

    def graph(self, meta: str) -> nir.NIRGraph:
        """The graph with ``meta`` as its JSON string, verified."""
        made = G.chain_graph(self.nodes, self.in_shape, self.out_shape, meta, self.recurrent)
        G.verify(made)
        return made


def chain(flow: Flow) -> Chain:
    """The chain of populations; ``flow`` may have problems already.

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
    # What multiplying out carries past a float64 is named behind it.
    with np.errstate(over="ignore", invalid="ignore"):
        sums = flow.sums()
        found = [
            population
            for name, node in flow.nodes.items()
            if isinstance(node, SPIKING) and (population := _population(flow, name, node, sums))
        ]
        flow.broken += [
            Problem(
                population.name,
                "its weights and scales, multiplied out, are not finite numbers in float64",
                "bring weights and thresholds to a range around 1",
            )
            for population in found
            if not all(np.isfinite(numbers).all() for numbers in population.numbers())
        ]
        flow.done()
        return _emit(flow, _ordered(flow, found, sums))


def _population(flow: Flow, name: str, node: Any, sums: dict[str, Sum]) -> Population | None:
    """The neurons of a node with what they receive, or None where a problem is noted."""
    if name not in sums:
        return None  # what it receives could not be said, which is noted
    total = sums[name]
    feeding = [source for source in total.terms if source != name]
    if len(feeding) != 1:
        what = ", ".join(sorted(feeding)) or "nothing but its own spikes"
        flow.problems.append(
            Problem(
                name,
                f"receives {what}; a layer receives the one before it, and its own spikes",
                "networks are chains of layers: remove connections that skip one or lead back",
            )
        )
        return None
    (source,) = feeding
    term = total.terms[source]
    try:
        if isinstance(node, G.MaxPool2d):
            return _max_pool(flow, name, node, source, term, total)
        read = read_neurons(node, total.shape, flow.reading)
        flow.problems += [Problem(name, text) for text in read.wrong]
        if window := _or_window(flow, node, read.neurons, source, total):
            assert term.way.kind == "conv"
            return or_pool(name, source, term.weights, window, term.way.in_shape)
        return None if read.wrong else wired(name, read, source, total, flow.shapes[source])
    except L.CannotFold as error:
        flow.problems.append(Problem(name, str(error), DIRECTLY))
    except ValueError as error:
        flow.broken.append(Problem(name, str(error)))
    return None


def _max_pool(
    flow: Flow, name: str, node: G.MaxPool2d, source: str, term: Term, total: Sum
) -> Population | None:
    plain = term.way.kind == "scale" and term.way.trivial and len(total.terms) == 1
    if not plain or total.constant is not None or not _binary(flow, source):
        graded = isinstance(flow.nodes[source], nir.Input) and term.way.kind == "scale"
        what = "a graded input" if graded else f"the values of {term.weights or source}"
        flow.problems.append(
            Problem(
                name,
                f"max pooling of {what}, which are not binary spikes",
                "place it behind the neurons, or use average pooling or a strided convolution",
            )
        )
        return None
    return or_pool(name, source, f"{name}_sum", node.kernel, node.in_shape)


def _binary(flow: Flow, source: str) -> bool:
    return not isinstance(flow.nodes[source], nir.Input) or flow.reading.levels == 1


def _or_window(
    flow: Flow, node: nir.ir.NIRNode, made: FloatNeurons, source: str, total: Sum
) -> Pair | None:
    """The window of an OR pool, where these neurons fire as soon as one input of theirs does."""
    term = total.terms[source]
    if term.way.kind != "conv" or len(total.terms) > 1:
        return None
    if made.has_state and not flow.reading.foreign:
        return None  # our own graphs say so where they mean a pool
    window, least = term.way.window, term.way.weight.min()
    forgets = made.reset == "zero" and not made.has_current
    plain = total.constant is None and term.post is None and not made.leak.any()
    fires = (made.threshold >= 0).all() and (made.threshold < least * made.gain).all()
    return window if forgets and plain and fires and _binary(flow, source) else None


def _ordered(flow: Flow, found: list[Population], sums: dict[str, Sum]) -> list[Population]:
    """The populations from the input to the output. Raises LoweringError for anything else."""
    after: dict[str, list[Population]] = {}
    for population in found:
        after.setdefault(population.source, []).append(population)
    for source, several in after.items():
        if len(several) > 1:
            names = ", ".join(p.name for p in several)
            flow.problems.append(
                Problem(source, f"feeds {names}; a layer feeds the one after it alone")
            )
    flow.done()
    at = flow.start
    order: list[Population] = []
    while at in after and len(order) <= len(found):
        order.append(after[at][0])
        at = order[-1].name
    total = sums.get(flow.end)
    term = None if total is None or set(total.terms) != {at} else total.terms[at]
    if not order or len(order) != len(found):
        left = {p.name for p in found} - {p.name for p in order}
        where = ", ".join(sorted(left)) or "graph"
        flow.problems.append(Problem(where, "not on a chain from the input to the output"))
    elif (
        term is None
        or not (term.way.kind == "scale" and term.way.counts)
        or (total and total.constant is not None)
    ):
        flow.problems.append(
            Problem(
                flow.end,
                "what leaves the network is not the spikes of its last neurons but weighted values; "
                "a chip's readout counts spikes",
                "end with neurons, or leave out what follows them",
            )
        )
    flow.done()
    return order


def _emit(flow: Flow, order: list[Population]) -> Chain:
    nodes: dict[str, nir.ir.NIRNode] = {}
    recurrent: G.Recurrent = {}
    taken = {p.name for p in order}
    shape = flow.shapes[flow.start]
    for given in order:
        # Behind neurons in a row there are no images.
        population = given.flat() if len(shape) == 1 else given
        weights = population.weights or f"{population.name}_w"
        while weights in taken:
            weights += "_w"
        taken.add(weights)
        nodes |= population.weight_nodes(weights, shape)
        nodes[population.name] = population.node
        if population.recurrent is not None:
            name = population.recurrent_name or f"{population.name}_rec"
            while name in taken:
                name += "_rec"
            taken.add(name)
            recurrent[population.name] = name, nir.Linear(weight=population.recurrent)
        shape = population.shape
    if names := {"input", "output"} & taken:
        raise InputError(
            [
                Problem(n, "is the name of neurons or weights; it stands for the graph's end")
                for n in names
            ]
        )
    return Chain(nodes, recurrent, flow.shapes[flow.start], shape)
