"""Walking a NIR graph along its edges: what stands before a node, in which order, with which shapes.

Neurons keep a state, so that a loop through them has an order all the same: each walk begins at the inputs
and at the neurons.
"""

from __future__ import annotations

from collections.abc import Iterator

import nir

from stl_deploy.errors import LoweringError, Problem
from stl_deploy.ir import nir_graph as G
from stl_deploy.ir import nir_words as words
from stl_deploy.ir.float_neurons import NEURONS, decode
from stl_deploy.ir.synapses import Shape


def before(graph: nir.NIRGraph) -> dict[str, list[str]]:
    """The nodes from which an edge leads to each node, in the order of the edges.

    Raises LoweringError for an edge of a node that is missing, and unless there is an Input and one Output.
    """
    found: dict[str, list[str]] = {name: [] for name in graph.nodes}
    missing = sorted({name for edge in graph.edges for name in edge} - set(graph.nodes))
    problems = [Problem(name, "an edge names this node, but there is none") for name in missing]
    for source, target in graph.edges:
        found.setdefault(target, []).append(source)
    inputs, outputs = (
        [name for name, node in graph.nodes.items() if isinstance(node, kind)]
        for kind in (nir.Input, nir.Output)
    )
    if not inputs:
        problems.append(Problem("graph", "has no Input node"))
    if len(outputs) != 1:
        problems.append(Problem("graph", f"has {len(outputs)} Output nodes, not 1"))
    problems += [Problem(name, "an edge leads into this Input") for name in inputs if found[name]]
    if problems:
        raise LoweringError(problems)
    return found


def keeps_state(node: nir.ir.NIRNode) -> bool:
    """Whether ``node`` is an input or neurons, where walks begin."""
    return type(node) in NEURONS or isinstance(node, nir.Input)


def ordered(graph: nir.NIRGraph) -> list[str]:
    """All nodes: inputs and neurons first, every other node behind those before it.

    Raises LoweringError for a loop without neurons.
    """
    preceding = before(graph)
    done = [name for name, node in graph.nodes.items() if keeps_state(node)]
    left = [name for name in graph.nodes if name not in set(done)]
    reached = set(done)
    while left:
        ready = [name for name in left if reached.issuperset(preceding[name])]
        if not ready:
            what = "is in a loop without neurons"
            raise LoweringError([Problem(name, what) for name in G.on_cycles(left, graph.edges)])
        done += ready
        reached |= set(ready)
        left = [name for name in left if name not in reached]
    return done


def shapes(graph: nir.NIRGraph) -> dict[str, Shape]:
    """What leaves each node, without batch and time.

    Raises LoweringError naming the nodes that do not fit what arrives, or that nothing arrives at.
    """
    preceding = before(graph)
    names = ordered(graph)
    found: dict[str, Shape] = {}
    problems: list[Problem] = []
    for name in names:
        node = graph.nodes[name]
        if isinstance(node, nir.Input):
            found[name] = G.shape_of(node.input_type["input"])
        elif type(node) in NEURONS:
            found[name] = getattr(node, NEURONS[type(node)].parameters[-1]).shape
    # Neurons last: what leads to them is known then.
    for name in sorted(names, key=lambda name: keeps_state(graph.nodes[name])):
        node = graph.nodes[name]
        if isinstance(node, nir.Input):
            continue
        arriving = {found[source] for source in preceding[name] if source in found}
        if len(arriving) != 1:
            if not preceding[name]:
                problems.append(Problem(name, "no edge leads to this node"))
            elif len(arriving) > 1:
                listed = " and ".join(str(shape) for shape in sorted(arriving))
                problems.append(Problem(name, f"adds up values of the shapes {listed}"))
            continue
        try:
            found[name] = G.node_output(name, node, *arriving)
            if type(node) in NEURONS:
                decode(node)
            else:
                words.read(node)
        except ValueError as error:
            problems.append(Problem(name, str(error).removeprefix(f"{name}: ")))
    if problems:
        raise LoweringError(problems)
    return found


def shaped(graph: nir.NIRGraph) -> Iterator[tuple[str, nir.ir.NIRNode, Shape, Shape]]:
    """Name, node, and the shapes before and behind it, of every node but Input and Output."""
    found, preceding = shapes(graph), before(graph)
    for name, node in graph.nodes.items():
        if not isinstance(node, (nir.Input, nir.Output)):
            yield name, node, found[preceding[name][0]], found[name]
