"""Inputs of NIR graphs whose shape counts more than a step: samples of a batch, or the steps themselves.

Writers take the shape of the tensor that they traced a network with, so that an Input of 784 values is
declared as (100, 784) or (1, 5, 784), and one behind which images are laid flat as (1, 28, 28). What follows
says how many values a step has: weights, kernels, neurons with parameters of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import nir
import numpy as np

from stl_deploy.errors import Problem
from stl_deploy.ir import nir_graph as G
from stl_deploy.ir.float_neurons import NEURONS
from stl_deploy.ir.synapses import Shape

Nodes = Mapping[str, nir.ir.NIRNode]
Edges = list[tuple[str, str]]
Fits = Callable[[Shape], Shape | None]  # the step that a shape is read as; None: it is none
MOST_AXES = 3  # of a step: channels, height, width


# What leaves these is as large as what arrives, if their parameters are single values.
KEEPING = (*NEURONS, nir.Scale, nir.Delay, G.Dropout, G.InputScale)


@dataclass(frozen=True)
class Steps:
    """Nodes with Inputs of one step; ``dropped`` are the axes that were left out of those that had more."""

    nodes: dict[str, nir.ir.NIRNode]
    dropped: dict[str, Shape]


def of_one_step(nodes: Nodes, edges: Edges) -> Steps:
    """``nodes``, whose values are sound, with the Inputs of a step.

    An Input stays as it is where it is one already, or where nothing that follows says what a step is.
    """
    found, dropped = dict(nodes), {}
    for name, node in nodes.items():
        if not isinstance(node, nir.Input):
            continue
        declared = _declared(node)
        wanted = [_fits(*first) for first in _first(name, nodes, edges)]
        for start in range(len(declared) if wanted else 0):
            steps = {fits(declared[start:]) for fits in wanted}
            step = steps.pop()
            if steps or step is None:
                continue
            if step != declared:
                found[name] = nir.Input({"input": np.array(step)})
            if start:
                dropped[name] = declared[:start]
            break
    for axes in set(dropped.values()):
        found |= {name: _without(node, axes) for name, node in found.items()}
    return Steps(found, dropped)


def misfits(nodes: Nodes, edges: Edges) -> list[Problem]:
    """The Inputs that count other axes than the first for batch or time, with the shape that would do."""
    problems = []
    for name, node in nodes.items():
        if not isinstance(node, nir.Input):
            continue
        declared = _declared(node)
        for first, flat in _first(name, nodes, edges):
            dense = isinstance(first, nir.Linear | nir.Affine) and not flat
            count = np.shape(first.weight)[1] if dense else 0
            if len(declared) > 1 and count in declared:
                what = (
                    f"has shape {declared}; the weights behind it read {count} values in each step"
                )
                remedy = f"set its shape to [{count}], without axes of batch and time"
                problems.append(Problem(f"{name}.shape", what, remedy))
    return problems


def _without(node: nir.ir.NIRNode, axes: Shape) -> nir.ir.NIRNode:
    """A Flatten or an Output that counts ``axes`` before those of a step, without them.

    A Flatten from axis 0 or 1 on reads the same with and without a batch.
    """
    count = len(axes)
    if isinstance(node, nir.Output):
        declared = G.shape_of(node.output_type["output"])
        more = len(declared) > MOST_AXES and declared[:count] == axes
        return nir.Output({"output": np.array(declared[count:])}) if more else node
    if not isinstance(node, nir.Flatten) or node.start_dim < max(2, count):
        return node
    end = node.end_dim - count if node.end_dim >= 0 else node.end_dim
    return replace(node, start_dim=node.start_dim - count, end_dim=end)


def _declared(node: nir.Input) -> Shape:
    """The shape of ``node``; () for what is none."""
    value = np.atleast_1d(np.asarray(node.input_type.get("input")))
    if value.dtype.kind not in "iu" or value.ndim != 1 or (value < 1).any():
        return ()
    return G.shape_of(value)


def _first(name: str, nodes: Nodes, edges: Edges) -> list[tuple[nir.ir.NIRNode, bool]]:
    """The nodes behind an Input that are the first to say a shape, and whether a Flatten is before them.

    None at all where a node of another kind comes first.
    """
    following: dict[str, list[str]] = {}
    for source, target in edges:
        following.setdefault(source, []).append(target)
    found, pending, seen = [], [(name, False)], {name}
    while pending:
        source, flat = pending.pop()
        for target in following.get(source, ()):
            if target in seen:
                continue
            seen.add(target)
            node = nodes[target]
            if _says(node):
                found.append((node, flat))
            elif isinstance(node, (nir.Flatten, *KEEPING)):
                pending.append((target, flat or isinstance(node, nir.Flatten)))
            else:
                return []
    return found


def _says(node: nir.ir.NIRNode) -> bool:
    """Whether ``node`` says how many values it reads."""
    if isinstance(node, nir.Linear | nir.Affine):
        return np.ndim(node.weight) == 2
    if isinstance(node, nir.Conv1d | nir.Conv2d):
        return np.ndim(node.weight) == (3 if isinstance(node, nir.Conv1d) else 4)
    return isinstance(node, nir.SumPool2d | nir.AvgPool2d) or _values(node) is not None


def _fits(node: nir.ir.NIRNode, flat: bool) -> Fits:
    """The step that ``node`` reads of a shape, behind a Flatten where ``flat``."""

    def fits(shape: Shape) -> Shape | None:
        if isinstance(node, nir.Linear | nir.Affine):
            count = node.weight.shape[1]
            one = math.prod(shape) == count and len(shape) <= MOST_AXES
            return None if not one else shape if flat else (count,)
        if isinstance(node, nir.Conv1d | nir.Conv2d):
            channels = node.weight.shape[1] * G.pair(node.groups)[0]
            return shape if (len(shape), shape[0]) == (node.weight.ndim - 1, channels) else None
        if isinstance(node, nir.SumPool2d | nir.AvgPool2d):
            return shape if len(shape) == MOST_AXES else None
        same = _squeezed(shape) == _squeezed(np.shape(_values(node)))
        return shape if len(shape) <= MOST_AXES and (same or flat) else None

    return fits


def _values(node: nir.ir.NIRNode) -> Any:
    """The parameters of which there is one for each value that the node reads; None where it has none."""
    known = NEURONS.get(type(node))
    keys = ("scale",) if isinstance(node, nir.Scale) else known.parameters if known else ()
    return next((v for key in keys if (v := np.asarray(getattr(node, key))).size > 1), None)


def _squeezed(shape: Shape) -> Shape:
    return tuple(n for n in shape if n != 1)
