"""What arrives at the neurons of a graph: everything linear between two populations, multiplied out.

Several paths are added up. The result is a sum for each population: of each source, and each number of steps
that its spikes are late, one or more maps; and a constant. What a population can hold of that is settled in
``population.py``.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import nir
import numpy as np

from stl_deploy.errors import InputError, LoweringError, Problem
from stl_deploy.ir import nir_graph as G
from stl_deploy.ir.floats import NO_SECOND_BIAS
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

MAX_TERMS = 50  # of one sum: paths that stay apart multiply


@dataclass(frozen=True, eq=False)
class Term:
    """What one source contributes: ``way`` of its values, over ``divisor``, times ``post`` if not None.

    The values are those of ``delay`` steps before, stand among zeros where there is a ``place``, and arrive
    at ``port`` of the neurons. ``weights`` is the name of the last node with weights on the way.
    """

    source: str
    way: L.Map = L.IDENTITY
    weights: str = ""
    post: Array | None = None
    divisor: int = 1
    delay: int = 0
    place: L.Place | None = None
    port: int = 0

    def behind(self, node: Linear, name: str) -> Term:
        """The term behind one more ``node`` called ``name``. Raises CannotFold where it is none."""
        made = replace(
            self,
            weights=name if node.weighted or not self.weights else self.weights,
            divisor=self.divisor * node.divisor,
            delay=self.delay + node.delay,
            port=self.port or node.port,
        )
        if node.place is not None:
            inside = self.place
            return replace(made, place=inside.within(node.place) if inside else node.place)
        way = node.way
        if self.place is not None:
            way, place = L.reading(way, self.place)
            made = replace(made, place=place)
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

    def plus(self, other: Term) -> Term | None:
        """Both terms as one; None where they are not a single one."""
        mine, its = ((t.source, t.delay, t.divisor, t.port) for t in (self, other))
        if mine != its:
            return None
        if self.post is not None or other.post is not None or self.place != other.place:
            return None
        try:
            way = L.add(self.way, other.way)
        except L.CannotFold:
            return None
        return replace(self, way=way, weights=self.weights or other.weights)


def merged(terms: Iterable[Term]) -> tuple[Term, ...]:
    """``terms`` with those of the same source and delay as one wherever they are a single map."""
    found: list[Term] = []
    for term in terms:
        for i, before in enumerate(found):
            if (both := before.plus(term)) is not None:
                found[i] = both
                break
        else:
            found.append(term)
    return tuple(found)


@dataclass(frozen=True, eq=False)
class Sum:
    """What arrives somewhere: terms of its sources, and a constant, together of ``shape``."""

    shape: Shape
    terms: tuple[Term, ...]
    constant: Array | None = None


@dataclass
class Flow:
    """A graph without graphs inside, with the shape of what leaves each node.

    It has one Output, and every node is finite in its numbers. Problems are collected:
    ``broken`` for what means nothing, ``problems`` for what has a meaning, but no place on a chip.
    ``dropped`` are axes before those of a step that an Input had, and an Output may have.
    """

    nodes: Mapping[str, nir.ir.NIRNode]
    edges: list[tuple[str, str]]
    reading: Reading
    shapes: dict[str, Shape] = field(default_factory=dict)
    broken: list[Problem] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    dropped: frozenset[Shape] = frozenset()

    def done(self) -> None:
        """Raise what has been collected."""
        if self.broken:
            raise InputError(self.broken)
        if self.problems:
            raise LoweringError(self.problems)

    @property
    def inputs(self) -> list[str]:
        """The names of the Inputs."""
        return [name for name, node in self.nodes.items() if isinstance(node, nir.Input)]

    @property
    def end(self) -> str:
        """The name of the Output."""
        (name,) = (n for n, node in self.nodes.items() if isinstance(node, nir.Output))
        return name

    def _shape_of(self, value: Array) -> Shape:
        shape = G.shape_of(value)
        return as_image(shape) if self.reading.foreign else shape

    def spread_shapes(self) -> None:
        """Shapes from the inputs on, along any edge; nodes that none reaches are named."""
        following = self.following()
        for start in self.inputs:
            self.shapes[start] = self._shape_of(self.nodes[start].input_type["input"])
        pending = deque(self.inputs)
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
                Problem(name, "is not reached from an input")
                for name in self.nodes
                if name not in self.shapes
            ]

    def check_output(self) -> None:
        """The output's own shape, where it says one, has as many values as what arrives."""
        end = self.end
        declared = self._shape_of(self.nodes[end].output_type["output"])
        arrives = self.shapes.get(end)
        possible = {declared, *(declared[len(axes) :] for axes in self.dropped)}
        if arrives and math.prod(arrives) not in map(math.prod, possible):
            self.broken.append(Problem(end, f"is declared as {declared} and gets {arrives}"))

    def check_cycles(self) -> None:
        """On every cycle something holds a value from one step to the next."""
        at_once = [name for name, node in self.nodes.items() if not holds(node, self.reading.dt)]
        self.broken += [
            Problem(name, "lies on a cycle without neurons")
            for name in G.on_cycles(at_once, self.edges)
        ]

    def check_sums(self) -> None:
        """Note the loops of delays alone: what goes round in one never ends, and is no finite sum."""
        between = [name for name, node in self.nodes.items() if not isinstance(node, SPIKING)]
        self.problems += [
            Problem(name, "is in a loop without neurons", "put neurons into the loop")
            for name in G.on_cycles(between, self.edges)
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
            (name, Sum(self.shapes[name], (Term(name),)))
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
        shape = parts[0].shape
        constant: Array | None = None
        for part in parts:
            if part.shape != shape:
                what = f"gets inputs of shapes {shape} and {part.shape}"
                self.broken.append(Problem(name, what))
                return parts[0]
            if part.constant is not None:
                constant = part.constant if constant is None else constant + part.constant
        terms = [term for part in parts for term in part.terms]
        return Sum(shape, merged(terms) if len(parts) > 1 else tuple(terms), constant)

    def _behind(self, name: str, total: Sum) -> Sum | None:
        """What leaves a linear node; None where it cannot be said, and the problem is noted."""
        if len(total.terms) > MAX_TERMS:
            what = f"adds up {len(total.terms)} paths, more than {MAX_TERMS}"
            self.problems.append(Problem(name, what, "place neurons in between"))
            return None
        try:
            node = linear(self.nodes[name], total.shape, self.reading)
            terms = merged(term.behind(node, name) for term in total.terms)
            arrived = _constant_behind(total.constant, node)
        except Late:
            what = "delays a bias too, which is there from the first step on"
            remedy = "put the Delay before the weights with the bias"
            self.problems.append(Problem(name, what, remedy))
            return None
        except L.CannotFold as error:
            late = isinstance(self.nodes[name], nir.Delay)
            what = "cannot be one layer of weights with what is before it"
            remedy = "place neurons in between, or fold it before the export"
            self.problems.append(
                Problem(name, str(error), "give it one number of steps; --dt says how long one is")
                if late
                else Problem(name, f"{what}: {error}", remedy)
            )
            return None
        except (ValueError, OverflowError) as error:
            self.broken.append(Problem(name, str(error)))
            return None
        if any(term.port for term in terms) and arrived is not None and arrived.any():
            self.problems.append(Problem(name, *NO_SECOND_BIAS))
            return None
        return Sum(node.out_shape, terms, arrived)


class Late(ValueError):
    """A constant that does not arrive in the first steps."""


def _constant_behind(constant: Array | None, node: Linear) -> Array | None:
    """The constant that leaves ``node``. Raises Late where it is delayed."""
    arrived = constant
    if arrived is not None and node.delay and arrived.any():
        raise Late
    if arrived is not None:
        arrived = node.way.apply(arrived)
        arrived = arrived if node.place is None else node.place.filled(arrived)
        arrived = arrived.reshape(node.out_shape)
        arrived = arrived if node.divisor == 1 else arrived / node.divisor
    if node.constant is not None:
        own = node.constant.reshape(node.out_shape)
        arrived = own if arrived is None else arrived + own
    return arrived
