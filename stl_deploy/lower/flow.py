"""What arrives at the neurons of a graph: everything linear between two populations, multiplied out.

Several paths are added up. The result is a sum for each population: of each source a map, and a constant.
What a chain can hold of that is settled in ``chain.py``.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import nir
import numpy as np

from stl_deploy.errors import InputError, LoweringError, Problem
from stl_deploy.ir import nir_graph as G
from stl_deploy.ir.synapses import Shape
from stl_deploy.lower import linear as L
from stl_deploy.lower.nodes import (
    SPIKING,
    Array,
    Linear,
    Reading,
    as_image,
    holds,
    linear,
    shape_behind,
)


@dataclass(frozen=True, eq=False)
class Term:
    """What one source contributes: ``way`` of its values, over ``divisor``, times ``post`` if not None.

    ``weights`` is the name of the last node with weights on the way.
    """

    way: L.Map
    weights: str = ""
    post: Array | None = None
    divisor: int = 1

    def behind(self, node: Linear, name: str) -> Term:
        """The term behind one more ``node`` called ``name``. Raises CannotFold where it is none."""
        way = node.way
        made = replace(
            self,
            weights=name if node.weighted or not self.weights else self.weights,
            divisor=self.divisor * node.divisor,
        )
        if self.post is not None:
            if way.kind != "scale":
                raise L.CannotFold("a scale that differs within a channel is followed by weights")
            return replace(made, post=self.post * way.scale)
        if self.way.kind == "conv" and way.kind == "scale":
            try:
                return replace(made, way=L.after(self.way, way))
            except L.CannotFold:
                size = math.prod(self.way.out_shape)
                return replace(made, post=np.broadcast_to(way.scale, (size,)))
        return replace(made, way=L.after(self.way, way))

    def plus(self, other: Term) -> Term:
        """Both terms of one source as one. Raises CannotFold where they are none."""
        if self.post is not None or other.post is not None or self.divisor != other.divisor:
            raise L.CannotFold("scaled neuron by neuron")
        way = L.add(self.way, other.way)
        return replace(self, way=way, weights=self.weights or other.weights)


@dataclass(frozen=True, eq=False)
class Sum:
    """What arrives somewhere: the terms of its sources, and a constant, together of ``shape``."""

    shape: Shape
    terms: Mapping[str, Term]
    constant: Array | None = None


@dataclass
class Flow:
    """A graph without graphs inside, with the shape of what leaves each node.

    It has one Input and one Output, and every node is finite in its numbers. Problems are collected:
    ``broken`` for what means nothing, ``problems`` for what has a meaning, but no place on a chip.
    """

    nodes: Mapping[str, nir.ir.NIRNode]
    edges: list[tuple[str, str]]
    reading: Reading
    shapes: dict[str, Shape] = field(default_factory=dict)
    broken: list[Problem] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def done(self) -> None:
        """Raise what has been collected."""
        if self.broken:
            raise InputError(self.broken)
        if self.problems:
            raise LoweringError(self.problems)

    @property
    def start(self) -> str:
        """The name of the Input."""
        (name,) = (n for n, node in self.nodes.items() if isinstance(node, nir.Input))
        return name

    @property
    def end(self) -> str:
        """The name of the Output."""
        (name,) = (n for n, node in self.nodes.items() if isinstance(node, nir.Output))
        return name

    def _shape_of(self, value: Array) -> Shape:
        shape = G.shape_of(value)
        return as_image(shape) if self.reading.foreign else shape

    def spread_shapes(self) -> None:
        """Shapes from the input on, along any edge; nodes that none reaches are named."""
        following = self.following()
        start = self.start
        self.shapes[start] = self._shape_of(self.nodes[start].input_type["input"])
        pending = deque([start])
        while pending:
            name = pending.popleft()
            for target in following[name]:
                if target in self.shapes:
                    continue
                try:
                    self.shapes[target] = shape_behind(self.nodes[target], self.shapes[name])
                    pending.append(target)
                except (ValueError, OverflowError) as error:
                    self.broken.append(Problem(target, str(error)))
                    self.shapes[target] = ()
        if not self.broken:  # else what lies behind was not looked at
            self.broken += [
                Problem(name, "is not reached from the input")
                for name in self.nodes
                if name not in self.shapes
            ]

    def check_output(self) -> None:
        """The output's own shape, where it says one, has as many values as what arrives."""
        end = self.end
        declared = self._shape_of(self.nodes[end].output_type["output"])
        arrives = self.shapes.get(end)
        if arrives and math.prod(declared) != math.prod(arrives):
            self.broken.append(Problem(end, f"is declared as {declared} and gets {arrives}"))

    def check_cycles(self, holding: tuple[type, ...] = ()) -> None:
        """On every cycle something holds a value from one step to the next, as ``holding`` nodes do too."""
        at_once = [
            name
            for name, node in self.nodes.items()
            if not (isinstance(node, holding) or holds(node, self.reading.dt))
        ]
        self.broken += [
            Problem(name, "lies on a cycle without neurons")
            for name in G.on_cycles(at_once, self.edges)
        ]

    def following(self) -> dict[str, list[str]]:
        """The targets of each node's edges."""
        following: dict[str, list[str]] = {name: [] for name in self.nodes}
        for source, target in self.edges:
            following[source].append(target)
        return following

    def sums(self) -> dict[str, Sum]:
        """What arrives at every node, in the order of the edges, with neurons as sources."""
        following = self.following()
        waiting = dict.fromkeys(self.nodes, 0)
        for _, target in self.edges:
            waiting[target] += 1
        arriving: dict[str, list[Sum | None]] = {name: [] for name in self.nodes}
        sums: dict[str, Sum] = {}
        ready: deque[tuple[str, Sum | None]] = deque(
            (name, Sum(self.shapes[name], {name: Term(L.IDENTITY)}))
            for name, node in self.nodes.items()
            if isinstance(node, (nir.Input, *SPIKING))
        )
        while ready:
            name, out = ready.popleft()
            for target in following[name]:
                arriving[target].append(out)
                waiting[target] -= 1
                if waiting[target]:
                    continue
                parts = [part for part in arriving[target] if part is not None]
                whole = len(parts) == len(arriving.pop(target))
                total = self._join(target, parts) if whole else None
                if total is not None:
                    sums[target] = total
                if not isinstance(self.nodes[target], SPIKING):
                    behind = None if total is None else self._behind(target, total)
                    ready.append((target, behind))
        self.done()
        return sums

    def _join(self, name: str, parts: list[Sum]) -> Sum:
        """Several in-edges add up."""
        total = Sum(parts[0].shape, {})
        for part in parts:
            if part.shape != total.shape:
                self.broken.append(
                    Problem(name, f"gets inputs of shapes {total.shape} and {part.shape}")
                )
                return total
            terms = dict(total.terms)
            for source, term in part.terms.items():
                if source not in terms:
                    terms[source] = term
                    continue
                try:
                    terms[source] = terms[source].plus(term)
                except L.CannotFold as error:
                    what = f"receives {source} on two paths that are not a single layer: {error}"
                    self.problems.append(Problem(name, what))
            constant = part.constant
            if total.constant is not None and constant is not None:
                constant = total.constant + constant
            elif constant is None:
                constant = total.constant
            total = Sum(part.shape, terms, constant)
        return total

    def _behind(self, name: str, total: Sum) -> Sum | None:
        """What leaves a linear node; None where it cannot be said, and the problem is noted."""
        try:
            node = linear(self.nodes[name], total.shape, self.reading)
            terms = {source: term.behind(node, name) for source, term in total.terms.items()}
            arrived = None if total.constant is None else node.way.apply(total.constant)
        except L.CannotFold as error:
            self.problems.append(
                Problem(
                    name,
                    f"cannot be one layer of weights with what is before it: {error}",
                    "place neurons in between, or fold it before the export",
                )
            )
            return None
        except (ValueError, OverflowError) as error:
            self.broken.append(Problem(name, str(error)))
            return None
        if arrived is not None:
            arrived = arrived.reshape(node.out_shape)
            arrived = arrived if node.divisor == 1 else arrived / node.divisor
        if node.constant is not None:
            constant = node.constant.reshape(node.out_shape)
            arrived = constant if arrived is None else arrived + constant
        return Sum(node.out_shape, terms, arrived)
