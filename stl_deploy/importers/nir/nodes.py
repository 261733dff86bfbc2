"""The nodes of a NIR graph one by one: what is wrong with them, their shapes, and the linear ones as maps."""

from __future__ import annotations

import math
from typing import Any

import nir
import numpy as np
from numpy.typing import NDArray

from stl_deploy.errors import Problem
from stl_deploy.formats import nir_io
from stl_deploy.importers.nir import linear as L
from stl_deploy.importers.nir import neurons as N
from stl_deploy.ir import nir_graph as G
from stl_deploy.ir.synapses import Pair, Shape

Array = NDArray[Any]
PLAIN = {"input_type", "output_type", "metadata", "input_shape", "in_shape", "out_shape"}
MAX_DEPTH = 16  # of graphs inside graphs
SPIKING = (nir.LIF, nir.IF, nir.CubaLIF, nir.Threshold, G.MaxPool2d)
LINEAR = (
    nir.Affine,
    nir.Linear,
    nir.Scale,
    nir.Conv1d,
    nir.Conv2d,
    nir.SumPool2d,
    nir.AvgPool2d,
    nir.Flatten,
    nir.Delay,
    nir.Output,
    G.BatchNorm,
    G.Dropout,
)
GRADED_PARAMETERS: dict[type, tuple[str, ...]] = {
    nir.LI: ("tau", "r", "v_leak"),
    nir.CubaLI: ("tau_mem", "tau_syn", "r", "w_in", "v_leak"),
    nir.I: ("r",),
}
GRADED = tuple(GRADED_PARAMETERS)


# Nodes one by one


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
                nodes[full] = G.Dropout((), ()) if inside else node
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
                problems.append(Problem(f"{prefix}{target}", f"an input that hears {source}"))
            if isinstance(part.nodes.get(source), nir.Output):
                problems.append(Problem(f"{prefix}{source}", f"an output that feeds {target}"))
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


def holds(node: nir.ir.NIRNode, dt: float) -> bool:
    """Whether what leaves ``node`` is, round a cycle, that of a step before."""
    if isinstance(node, nir.Delay):
        return bool((np.rint(np.asarray(node.delay, np.float64) / dt) >= 1).all())
    return isinstance(node, (*SPIKING, *GRADED))


def misfits(node: nir.ir.NIRNode, shape: Shape, dt: float) -> list[str]:
    """Which parameters of ``node`` do not fit an input of ``shape``, or are out of range."""
    found = []
    for key in {**N.PARAMETERS, **GRADED_PARAMETERS}.get(type(node), ()):
        try:
            N.parameter(node, key, shape)
        except ValueError as error:
            found.append(str(error))
    if isinstance(node, G.Neurons):
        try:
            G.reset_of(node)
        except ValueError as error:
            found.append(str(error))
    if isinstance(node, nir.Delay) and (np.asarray(node.delay) < 0).any():
        found.append("delay is below zero")
    if isinstance(node, LINEAR) and not found:
        try:
            linear_map(node, shape, dt)
        except L.CannotFold:
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
                (".shape", f"{_short(types.get(kind))} is no shape of one to three whole numbers")
            ]
        if (shape < 1).any() or math.prod(int(n) for n in shape) > L.MAX_NEURONS:
            return [(".shape", f"{_short(shape)}: from 1 to {L.MAX_NEURONS:,} values are accepted")]
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
            found.append((f".{key}", f"{_short(value)} is no number"))
        elif not np.isfinite(array).all():
            found.append((f".{key}", "holds what is no finite number"))
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


def as_image(shape: Shape) -> Shape:
    """Sequences [C, L] are read as images [C, 1, L]."""
    return (shape[0], 1, shape[1]) if len(shape) == 2 else shape


def _as_2d(node: nir.Conv1d) -> tuple[Array, Pair, Pair, Pair]:
    """A Conv1d on [C, 1, L]: weight, stride, padding, dilation."""
    if node.weight.ndim != 3:
        raise ValueError(f"the kernel has shape {node.weight.shape}, not rank 3")
    (stride, _), (dilation, _) = G.pair(node.stride), G.pair(node.dilation)
    weight = node.weight[:, :, None]
    padding = node.padding.decode() if isinstance(node.padding, bytes) else node.padding
    if isinstance(padding, str):
        reach = dilation * (weight.shape[3] - 1)
        if padding == "valid":
            reach = 0
        elif padding != "same" or reach % 2 or stride != 1:
            raise ValueError(f"padding {padding!r} of a kernel of {weight.shape[3]}")
        return weight, (1, stride), (0, reach // 2), (1, dilation)
    return weight, (1, stride), (0, G.pair(padding)[0]), (1, dilation)


def _conv_of(node: nir.Conv1d | nir.Conv2d, shape: Shape) -> L.Conv:
    groups = G.pair(node.groups)[0]
    if isinstance(node, nir.Conv1d):
        weight, stride, padding, dilation = _as_2d(node)
    else:
        if node.weight.ndim != 4:
            raise ValueError(f"the kernel has shape {node.weight.shape}, not rank 4")
        weight = node.weight
        stride, padding, dilation = G.conv_geometry(node)
    return L.conv(weight, stride, padding, dilation, groups, shape)


def _pool_of(node: nir.SumPool2d | nir.AvgPool2d, shape: Shape) -> L.Conv:
    kernel, stride, padding = (G.pair(v) for v in (node.kernel_size, node.stride, node.padding))
    # As in PyTorch by default, zeros of the padding count in an average.
    value = 1.0 if isinstance(node, nir.SumPool2d) else 1 / math.prod(kernel)
    return L.pool(kernel, stride, padding, value, shape)


def shape_behind(node: nir.ir.NIRNode, shape: Shape) -> Shape:
    """Shape of what leaves ``node`` for an input of ``shape``. Raises ValueError where it does not fit."""
    match node:
        case nir.Affine() | nir.Linear():
            if node.weight.ndim != 2 or shape != node.weight.shape[1:]:
                raise ValueError(
                    f"weights of shape {node.weight.shape} for an input of shape {shape}"
                )
            return (node.weight.shape[0],)
        case nir.Conv1d() | nir.Conv2d():
            return _conv_of(node, shape).out_shape
        case nir.SumPool2d() | nir.AvgPool2d():
            return _pool_of(node, shape).out_shape
        case G.MaxPool2d():
            if node.in_shape != shape:
                raise ValueError(f"a pool of {node.in_shape} for an input of shape {shape}")
            return node.out_shape
        case nir.Flatten():
            return _flattened(node, shape)
    return shape


def _flattened(node: nir.Flatten, shape: Shape) -> Shape:
    """All of ``shape`` in a row; the dimensions may be counted with one for a batch or without."""
    ranks = {len(shape), 2 if len(shape) == 3 and shape[1] == 1 else len(shape)}
    start, end = node.start_dim, node.end_dim
    begins = {0, 1} | {-rank for rank in ranks}
    ends = {-1} | {rank - 1 for rank in ranks} | ranks
    if len(shape) > 1 and (start not in begins or end not in ends):
        raise ValueError(f"flattens dimensions {start} to {end} of {shape}, not all of them")
    return (math.prod(shape),)


def linear_map(node: nir.ir.NIRNode, shape: Shape, dt: float) -> tuple[L.Map, Array | None, bool]:
    """A linear node as a map, its constant, and whether it gives the layer of weights its name.

    Raises ValueError for parameters that do not fit, CannotFold for what is not linear.
    """
    match node:
        case nir.Affine():
            if node.bias.shape != (len(node.weight),):
                raise ValueError(
                    f"a bias of shape {node.bias.shape} for {len(node.weight)} outputs"
                )
            return L.Dense(node.weight), node.bias, True
        case nir.Linear():
            return L.Dense(node.weight), None, True
        case nir.Conv1d() | nir.Conv2d():
            way = _conv_of(node, shape)
            if node.bias.shape != (len(way.weight),):
                raise ValueError(
                    f"a bias of shape {node.bias.shape} for {len(way.weight)} channels"
                )
            full = np.broadcast_to(node.bias.reshape(-1, 1, 1), way.out_shape)
            return way, full if node.bias.any() else None, True
        case nir.SumPool2d() | nir.AvgPool2d():
            return _pool_of(node, shape), None, False
        case nir.Scale():
            return L.Diagonal(N.parameter(node, "scale", shape).reshape(-1)), None, False
        case G.BatchNorm():
            k = node.gamma.astype(np.float64) / np.sqrt(node.var.astype(np.float64) + node.eps)
            ones = [1] * (len(shape) - 1)
            constant = (node.beta - k * node.mean).reshape(-1, *ones)
            scale = np.broadcast_to(k.reshape(-1, *ones), shape)
            return L.Diagonal(scale.reshape(-1)), np.broadcast_to(constant, shape), False
        case nir.Delay():
            steps = N.parameter(node, "delay", shape) / dt
            if np.rint(steps).any():
                raise L.CannotFold(
                    f"a delay of {steps.min():g} to {steps.max():g} steps of {dt:g} s; connections to "
                    "the next layer have none"
                )
    return L.IDENTITY, None, False
