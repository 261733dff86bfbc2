"""The nodes of a NIR graph by another tool, one by one: laid flat, and what is wrong with them."""

from __future__ import annotations

import copy
import math
from typing import Any

import nir
import numpy as np

from stl_deploy.errors import Problem
from stl_deploy.formats import nir_io
from stl_deploy.formats.raster_values import array_of
from stl_deploy.ir import nir_graph as G
from stl_deploy.ir.float_neurons import NEURONS, decode
from stl_deploy.ir.synapses import Shape
from stl_deploy.lower.linear import MAX_NEURONS, CannotFold
from stl_deploy.lower.nodes import LINEAR, Reading, linear, parameter

PLAIN = {"input_type", "output_type", "metadata", "input_shape", "in_shape", "out_shape"}
MAX_DEPTH = 16  # of graphs inside graphs


def flat(
    graph: nir.NIRGraph,
) -> tuple[dict[str, nir.ir.NIRNode], list[tuple[str, str]], list[Problem]]:
    """Nodes and edges without graphs inside graphs, whose nodes are named ``graph.node``."""
    nodes: dict[str, nir.ir.NIRNode] = {}
    edges: list[tuple[str, str]] = []
    problems: list[Problem] = []

    def lay(part: nir.NIRGraph, prefix: str, depth: int) -> None:
        ends: dict[str, tuple[str, str]] = {}
        for name, node in part.nodes.items():
            full = f"{prefix}{name}"
            if full in nodes:
                problems.append(Problem(full, "is the name of two nodes"))
            if fault := nir_io.name_fault(name):
                problems.append(Problem(full, *fault))
            if not isinstance(node, nir.NIRGraph):
                inside = prefix and isinstance(node, nir.Input | nir.Output)
                nodes[full] = G.Dropout((), ()) if inside else _of_arrays(full, node)
                continue
            if depth >= MAX_DEPTH:
                problems.append(Problem(full, f"graphs lie in graphs deeper than {MAX_DEPTH}"))
                continue
            kinds = (nir.Input, nir.Output)
            first, last = (
                [k for k, n in node.nodes.items() if isinstance(n, kind)] for kind in kinds
            )
            if len(first) != 1 or len(last) != 1:
                problems.append(
                    Problem(
                        full, f"a graph with {len(first)} inputs and {len(last)} outputs, not one"
                    )
                )
                continue
            ends[name] = f"{full}.{first[0]}", f"{full}.{last[0]}"
            lay(node, f"{full}.", depth + 1)
        # An edge that stands twice adds its values twice.
        for source, target in map(tuple, part.edges):
            if isinstance(part.nodes.get(target), nir.Input):
                problems.append(Problem(f"{prefix}{target}", f"is an input, but receives {source}"))
            if isinstance(part.nodes.get(source), nir.Output):
                problems.append(Problem(f"{prefix}{source}", f"is an output, but feeds {target}"))
            missing = {source, target} - part.nodes.keys()
            problems.extend(
                Problem(f"{prefix}{name}", "an edge names this node, but there is none")
                for name in sorted(missing)
            )
            if not missing and not problems:
                a = ends[source][1] if source in ends else f"{prefix}{source}"
                b = ends[target][0] if target in ends else f"{prefix}{target}"
                edges.append((a, b))

    lay(graph, "", 0)
    return nodes, edges, problems


def _of_arrays(name: str, node: nir.ir.NIRNode) -> nir.ir.NIRNode:
    """``node`` with arrays instead of the tensors of torch that some writers put into it."""
    tensors = {key: value for key, value in vars(node).items() if hasattr(value, "detach")}
    if not tensors:
        return node
    made = copy.copy(node)
    for key, value in tensors.items():
        setattr(made, key, array_of(value, f"{name}.{key}"))
    return made


def misfits(node: nir.ir.NIRNode, shape: Shape, reading: Reading) -> list[str]:
    """Which parameters of ``node`` do not fit an input of ``shape``, or are out of range."""
    found = []
    known = NEURONS.get(type(node))
    values = {}
    for key in known.parameters if known else ():
        try:
            values[key] = parameter(node, key, shape)
        except ValueError as error:
            found.append(str(error))
    if known and not found:
        try:
            decode(node, values)
        except ValueError as error:
            found.append(str(error))
    if isinstance(node, nir.Delay) and (np.asarray(node.delay) < 0).any():
        found.append("delay is below zero")
    if type(node) in LINEAR and not found:
        try:
            linear(node, shape, reading)
        except CannotFold:
            pass  # has a meaning, only no place on a chip
        except (ValueError, OverflowError) as error:
            found.append(str(error))
    return found


def faults(node: nir.ir.NIRNode) -> list[tuple[str, str]]:
    """What is wrong with the values of a node by itself: (.parameter, what)."""
    found = []
    if isinstance(node, nir.Input | nir.Output):
        kind = "input" if isinstance(node, nir.Input) else "output"
        types = getattr(node, f"{kind}_type")
        shape = np.atleast_1d(np.asarray(types.get(kind)))
        if shape.dtype.kind not in "iu" or shape.ndim != 1 or not 1 <= shape.size <= 3:
            return [
                (
                    ".shape",
                    f"{_short(types.get(kind))} is not a valid shape (one to three positive integers)",
                )
            ]
        if (shape < 1).any() or math.prod(int(n) for n in shape) > MAX_NEURONS:
            return [(".shape", f"{_short(shape)}: from 1 to {MAX_NEURONS:,} values are accepted")]
        return []
    for key, value in vars(node).items():
        if key in PLAIN:
            continue
        if key in ("padding",) and isinstance(value, str | bytes):
            continue
        array = np.asarray(value)
        if array.dtype.kind == "c":
            found.append((f".{key}", "is complex; only real numbers are supported"))
        elif array.dtype.kind not in "iufb":
            found.append((f".{key}", f"{_short(value)} is not a number"))
        elif not np.isfinite(array).all():
            found.append((f".{key}", "contains NaN or infinite values"))
        elif array.size == 0:
            found.append((f".{key}", "is empty"))
        elif key in ("kernel_size", "stride", "padding", "dilation", "groups") and (
            array.size > 2 or np.abs(array).max() > 1 << 20 or (array != np.rint(array)).any()
        ):
            found.append((f".{key}", f"{_short(value)} is not one small whole number or two"))
        elif key in ("kernel_size", "stride", "dilation", "groups") and (array < 1).any():
            found.append((f".{key}", f"{_short(value)} is below 1"))
    return found


def _short(value: Any) -> str:
    text = str(value).replace("\n", " ")
    return text if len(text) <= 60 else f"{text[:57]}..."
