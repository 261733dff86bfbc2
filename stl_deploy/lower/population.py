"""A population with its connections and a bias: what a lowered graph can hold of a sum.

Factors that differ from neuron to neuron go into the weights; behind a convolution, whose weights are
shared, into the thresholds, since v, all inputs and the threshold may be scaled together. A constant input
is a bias of the weights; where those have one bias per channel and it differs within one, it is ``v_leak``.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import nir
import numpy as np

from stl_deploy.ir import nir_graph as G
from stl_deploy.ir.float_neurons import FloatNeurons
from stl_deploy.ir.synapses import Pair, Shape
from stl_deploy.lower import linear as L
from stl_deploy.lower.flow import Term, merged
from stl_deploy.lower.nodes import Array, Read, span

Shapes = Mapping[str, Shape]
SENDS = "it sends values, which others receive in the units of the graph"


@dataclass(frozen=True, eq=False)
class Connection:
    """``way`` of what ``source`` sent ``delay`` steps ago; ``weights`` names it where the graph does.

    ``port`` is the current at which it arrives.
    """

    source: str
    way: L.Map
    weights: str = ""
    delay: int = 0
    port: int = 0


@dataclass(frozen=True, eq=False)
class Population:
    """Neurons and all that they receive.

    Attributes:
        node: the neurons as they stand in a lowered graph.
        connections: those that lead forward first.
        bias: of all that arrives over connections with weights of their own, of the population's shape, or
            of its channels behind a convolution.
        window: that of an OR pool, which has no weights of its own.
        unit: what v counts, of the graph's v, of the population's shape; None for 1.
    """

    name: str
    node: nir.ir.NIRNode
    shape: Shape
    connections: tuple[Connection, ...]
    bias: Array | None = None
    window: Pair | None = None
    unit: Array | None = None

    def numbers(self) -> Iterator[Array]:
        """All arrays of it."""
        parts = [*vars(self.node).values(), *self.node.metadata.values()]
        yield from (part for part in parts if isinstance(part, np.ndarray))
        if self.bias is not None:
            yield self.bias
        for c in self.connections:
            yield c.way.scale if c.way.kind == "scale" else c.way.weight


@dataclass(frozen=True, eq=False)
class Draft:
    """Neurons, ``read`` of a graph, and what arrives at them, before it is settled which shape they have.

    ``shape`` is that of what arrives. ``read`` is None for an OR pool, which has a ``window``.
    """

    name: str
    shape: Shape
    terms: tuple[Term, ...]
    read: Read | None = None
    constant: Array | None = None
    window: Pair | None = None

    @property
    def image(self) -> Shape | None:
        """The shape that the neurons have unless something asks for a row, None where something does."""
        shapes = {
            term.way.out_shape
            for term in self.terms
            if term.way.kind == "conv" and term.place is None
        }
        if not shapes:
            return self.shape if len(self.shape) > 1 else None
        rows = any(term.way.kind == "dense" for term in self.terms)
        (shape, *others) = shapes
        return None if rows or others else shape

    def takes(self, image: Shape, shapes: Shapes) -> bool:
        """Whether every source has the shape that neurons of shape ``image`` need."""
        for term in self.terms:
            before = shapes[term.source]
            if term.way.kind == "conv" and before != term.way.in_shape:
                return False
            if term.way.kind == "scale":
                plane = before[1:] == image[1:] and len(before) == len(image)
                if before != image if term.place is None else not plane:
                    return False
        return True

    def population(self, shape: Shape, shapes: Shapes) -> Population:
        """With neurons of ``shape``, behind sources of ``shapes``. Raises CannotFold for what none is."""
        if self.read is None:
            return self._pool(shape)
        return _wired(self, self.read, shape, shapes)

    def _pool(self, shape: Shape) -> Population:
        (term,) = self.terms
        if len(shape) > 1 and not term.delay:
            node: nir.ir.NIRNode = nir.Threshold(threshold=np.full(shape, 0.5))
            feed = Connection(term.source, term.way, term.weights)
            return Population(self.name, node, shape, (feed,), window=self.window)
        # Neurons that fire, and forget, whenever anything arrives.
        way = term.way if len(shape) > 1 else term.way.dense(())
        node = G.lif(np.full(shape, 0.5), tau=2 * G.DT, r=2)
        feed = Connection(term.source, way, term.weights, term.delay)
        return Population(self.name, node, shape, (feed,))


def or_pool(name: str, term: Term, weights: str, window: Pair, in_shape: Shape) -> Draft:
    """Max pooling of spikes: each window sums them with weight 1, whatever the graph's own scale.

    The maximum of zeros and ones is 1 where their sum is at least 1.
    """
    way = L.pool(window, window, (0, 0), 1.0, in_shape)
    return Draft(name, way.out_shape, (replace(term, way=way, weights=weights),), window=window)


def settled(drafts: list[Draft], inputs: Shapes, rows: Collection[str] = ()) -> dict[str, Shape]:
    """The shapes of all inputs and populations: images wherever nothing asks for neurons in a row.

    ``rows`` names populations for which something else does.
    """
    shapes = dict(inputs)
    images = {
        draft.name: image
        for draft in drafts
        if draft.name not in rows and (image := draft.image) is not None
    }
    shapes |= {draft.name: images.get(draft.name, (math.prod(draft.shape),)) for draft in drafts}
    while True:
        others = [
            draft.name
            for draft in drafts
            if draft.name in images and not draft.takes(images[draft.name], shapes)
        ]
        if not others:
            return shapes
        for name in others:
            shapes[name] = (math.prod(images.pop(name)),)


@dataclass(frozen=True, eq=False)
class _Arriving:
    """A term as a connection in the making; ``post`` is of the population's shape."""

    term: Term
    way: L.Map
    post: Array | None

    def connection(self) -> Connection:
        term = self.term
        return Connection(term.source, self.way, term.weights, term.delay, term.port)


def _wired(draft: Draft, read: Read, shape: Shape, shapes: Shapes) -> Population:
    """The population of the neurons ``read`` in ``shape``."""
    made, node, constant = read.neurons, read.kept, draft.constant
    if made.shape != shape:
        made, node = made.reshaped(shape), None
        constant = None if constant is None else constant.reshape(shape)
    arriving = [_arriving(term, shape, shapes) for term in _in_order(draft)]
    unit = next((one.post for one in arriving if one.post is not None), None)
    counted = np.ones(shape)
    if unit is not None:
        unit = counted = _positive(unit, "its scale")
        made, node = replace(_scaled(made, unit), gain=made.gain), None
        constant = None if constant is None else constant.reshape(shape) / unit
        arriving = [_over(one, unit) for one in arriving]
    ways = [one.way for one in arriving]
    uniform = np.ptp(made.gain) <= 1e-12 * np.abs(made.gain).max() and made.gain.flat[0] > 0
    if not uniform and any(way.kind == "conv" for way in ways):
        gain = _positive(made.gain, "what its inputs are multiplied with")
        made, node, counted = _scaled(made, gain), None, counted * gain
    elif not uniform and made.graded:
        raise L.CannotFold(f"its inputs are multiplied with {span(made.gain)}, and {SENDS}")
    elif not uniform:
        ways = [way if way.kind == "conv" else way.rows_times(made.gain) for way in ways]
        constant = None if constant is None else constant.reshape(shape) * made.gain
        made, node = replace(made, gain=np.ones(shape)), None
    if not made.has_current and made.leak.any():
        extra = made.leak / made.gain
        constant = extra if constant is None else constant.reshape(shape) + extra
        made, node = replace(made, leak=np.zeros(shape)), None
    if constant is not None:
        constant = constant.reshape(shape) if constant.any() else None
    ways = _with_bias(arriving, ways, made, constant, shape)
    first = [way for one, way in zip(arriving, ways, strict=True) if not one.term.port]
    bias = _bias(first, constant, shape)
    if constant is not None and bias is None:
        if made.has_current:
            raise L.CannotFold(
                "its constant input differs between the neurons of a channel and passes through a "
                "current; a convolution has one bias per channel"
            )
        made, node = replace(made, leak=constant * made.gain), None
    connections = [
        replace(one.connection(), way=way) for one, way in zip(arriving, ways, strict=True)
    ]
    kept = made.node() if node is None else node
    told = None if (counted == 1).all() else counted
    return Population(draft.name, kept, shape, tuple(connections), bias, unit=told)


def _scaled(made: FloatNeurons, unit: Array) -> FloatNeurons:
    """``made`` with v in units of ``unit``. Raises CannotFold where others receive what it is."""
    if made.graded:
        raise L.CannotFold(f"its inputs have scales of their own behind a convolution, and {SENDS}")
    return made.scaled(unit)


def _in_order(draft: Draft) -> list[Term]:
    """The terms, those of other sources first; what neurons send themselves is a step old."""
    own = [t for t in draft.terms if t.source == draft.name]
    own = list(merged(replace(t, delay=max(t.delay, 1)) for t in own))
    return [t for t in draft.terms if t.source != draft.name] + own


def _arriving(term: Term, shape: Shape, shapes: Shapes) -> _Arriving:
    """``term`` with weights for neurons of ``shape``; factors behind a convolution are left over."""
    way, post, before = term.way, term.post, shapes[term.source]
    if len(shape) == 1 and way.kind == "conv":
        way = way.dense(before)
    if post is not None and way.kind != "conv":
        way, post = way.rows_times(post), None
    if term.divisor != 1:
        way = way.divided(term.divisor)
    if term.place is not None:
        way = L.among_zeros(way, term.place, before, shape)
        post = None if post is None else term.place.filled(post, 1.0)
    return _Arriving(term, way, None if post is None else post.reshape(shape))


def _over(one: _Arriving, unit: Array) -> _Arriving:
    """``one`` into neurons whose v counts ``unit``. Raises CannotFold where its weights cannot say that."""
    if one.post is unit:
        return replace(one, post=None)
    factor = (1 / unit) if one.post is None else one.post / unit
    if one.way.kind != "conv":
        return replace(one, way=one.way.rows_times(factor), post=None)
    try:
        channels = L.per_channel(factor, factor.shape, rounding=1e-12)
    except L.CannotFold:
        raise L.CannotFold(
            f"its inputs from {one.term.source} have other scales within a channel than its other inputs"
        ) from None
    return replace(one, way=one.way.channels_times(channels), post=None)


def _with_bias(
    arriving: list[_Arriving],
    ways: list[L.Map],
    made: FloatNeurons,
    constant: Array | None,
    shape: Shape,
) -> list[L.Map]:
    """``ways`` with weights that can have a bias, where a constant input cannot be added to v itself."""
    firsts = [i for i, one in enumerate(arriving) if not one.term.port]
    passes = made.has_current or made.amplify is not None
    if constant is None or not passes or any(ways[i].kind != "scale" for i in firsts):
        return ways
    if not firsts:
        raise L.CannotFold("it has a constant input, and weights to its second current alone")
    first = ways[firsts[0]]
    assert first.kind == "scale"
    return [first.weights(shape) if i == firsts[0] else way for i, way in enumerate(ways)]


def _bias(ways: list[L.Map], constant: Array | None, shape: Shape) -> Array | None:
    """The constant as a bias of weights: of each neuron, or of each channel; None where none can have it."""
    kinds = {way.kind for way in ways}
    if constant is None or kinds == {"scale"}:
        return None
    if "dense" in kinds:
        return constant
    try:
        return L.per_channel(constant, shape, rounding=1e-12)
    except L.CannotFold:
        return None


def _positive(factor: Array, what: str) -> Any:
    if not (factor > 0).all() or not np.isfinite(factor).all():
        raise L.CannotFold(f"{what} is not above zero everywhere, behind a convolution")
    return factor
