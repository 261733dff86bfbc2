"""A population with one layer of weights, a bias and recurrent weights: what a chip can hold of a sum.

Factors that differ from neuron to neuron go into the weights; behind a convolution, whose weights are
shared, into the thresholds, since v, inputs and threshold may be scaled together. ``v_leak`` of neurons
without a synaptic current is a constant input v_leak / r.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import nir
import numpy as np

from stl_deploy.ir import nir_graph as G
from stl_deploy.ir.float_neurons import FloatNeurons
from stl_deploy.ir.synapses import Pair, Shape
from stl_deploy.lower import linear as L
from stl_deploy.lower.flow import Sum, Term
from stl_deploy.lower.nodes import Array, Read


@dataclass(frozen=True, eq=False)
class Population:
    """Neurons and all that they receive.

    Attributes:
        node: the neurons as they stand in a lowered graph.
        source, way, weights: where the spikes come from, the layer of weights, its name.
        constant: the bias, of the population's shape, or of its channels behind a convolution.
        recurrent, recurrent_name: weights from the neurons back to them.
        window: that of an OR pool, which has no weights of its own.
        neurons: the same as ``node``; None for an OR pool.
    """

    name: str
    node: nir.ir.NIRNode
    shape: Shape
    source: str
    way: L.Dense | L.Conv
    weights: str
    constant: Array | None = None
    recurrent: Array | None = None
    recurrent_name: str = ""
    window: Pair | None = None
    neurons: FloatNeurons | None = None

    def flat(self) -> Population:
        """The same with single weights in the place of a convolution, and neurons in a row.

        What an OR pool becomes fires, and forgets, whenever anything arrives.
        """
        if self.way.kind == "dense":
            return self
        size = math.prod(self.shape)
        way, bias = self.way.dense(self.way.in_shape), self.constant
        if self.neurons is None:
            node: nir.ir.NIRNode = G.lif(np.full(size, 0.5), tau=2 * G.DT, r=2)
        else:
            node = self.neurons.reshaped((size,)).node()
        if bias is not None:
            bias = np.repeat(bias, size // len(bias))
        return replace(self, node=node, shape=(size,), way=way, constant=bias, window=None)

    def weight_nodes(self, name: str, shape: Shape) -> dict[str, nir.ir.NIRNode]:
        """The nodes of the layer of weights, called ``name``, behind a population of ``shape``."""
        way, bias = self.way, self.constant
        if way.kind == "conv":
            if self.window is not None:
                return {name: G.sum_pool(self.window, way.in_shape)}
            if bias is None:
                bias = np.zeros(len(way.weight), way.weight.dtype)
            stride, padding, dilation, groups = way.geometry
            return {
                name: G.conv2d(way.weight, bias, way.in_shape, stride, padding, groups, dilation)
            }
        nodes: dict[str, nir.ir.NIRNode] = {}
        if len(shape) > 1:
            nodes[f"{name}_flatten"] = G.flatten(shape)
        nodes[name] = (
            nir.Linear(weight=way.weight)
            if bias is None
            else nir.Affine(weight=way.weight, bias=bias.reshape(-1))
        )
        return nodes

    def numbers(self) -> Iterator[Array]:
        """All arrays of it."""
        parts = (self.constant, self.recurrent, self.way.weight, *vars(self.node).values())
        yield from (part for part in parts if isinstance(part, np.ndarray))


def or_pool(name: str, source: str, weights: str, window: Pair, in_shape: Shape) -> Population:
    """Max pooling of spikes: each window sums them with weight 1, whatever the graph's own scale.

    The maximum of zeros and ones is 1 where their sum is at least 1.
    """
    way = L.pool(window, window, (0, 0), 1.0, in_shape)
    node = nir.Threshold(threshold=np.full(way.out_shape, 0.5))
    return Population(name, node, way.out_shape, source, way, weights, window=window)


def wired(name: str, read: Read, source: str, total: Sum, source_shape: Shape) -> Population:
    """The population of the neurons ``read``, which receive ``total`` from ``source`` and themselves.

    Raises CannotFold for what one layer of weights, a bias and recurrent weights cannot say.
    """
    term, own = total.terms[source], total.terms.get(name)
    made, node = read.neurons, read.kept
    way, post, constant, recurrent = term.way, term.post, total.constant, None
    shape = made.shape
    if own is not None:
        # Recurrent weights need neurons in a row, behind single weights. Their rows hold the scale of
        # each neuron; in the thresholds it would change what the recurrent weights mean.
        way, post, recurrent = _rows(term, source_shape), None, _rows(own, shape).weight
        if len(shape) > 1:
            shape = (math.prod(shape),)
            made, node = made.reshaped(shape), None
            constant = None if constant is None else constant.reshape(-1)
    if way.kind == "conv" and way.out_shape != shape:
        made, node, shape = made.reshaped(way.out_shape), None, way.out_shape
    way = way.weights(shape)
    if term.divisor != 1:
        way = way.divided(term.divisor)
    if post is not None:
        post = _positive(post.reshape(shape), "its scale")
        made, node = replace(made.scaled(post), gain=made.gain), None
        constant = None if constant is None else constant.reshape(shape) / post
    uniform = np.ptp(made.gain) <= 1e-12 * np.abs(made.gain).max() and made.gain.flat[0] > 0
    if not uniform and way.kind == "dense":
        way = way.rows_times(made.gain)
        recurrent = None if recurrent is None else recurrent * made.gain.reshape(-1, 1)
        constant = None if constant is None else constant * made.gain
        made, node = replace(made, gain=np.ones(shape)), None
    elif not uniform:
        made = made.scaled(_positive(made.gain, "what its inputs are multiplied with"))
        node = None
    if not made.has_current and made.leak.any():
        extra = made.leak / made.gain
        constant = extra if constant is None else constant.reshape(shape) + extra
        made, node = replace(made, leak=np.zeros(shape)), None
    return Population(
        name,
        made.node() if node is None else node,
        shape,
        source,
        way,
        term.weights,
        _bias(constant, way, shape),
        recurrent,
        own.weights if own is not None else "",
        neurons=made,
    )


def _rows(term: Term, shape: Shape) -> L.Dense:
    """``term`` of a source of ``shape`` as single weights, whose rows take the factors of ``post``."""
    way = term.way.dense(shape)
    return way if term.post is None else way.rows_times(term.post)


def _bias(constant: Array | None, way: L.Dense | L.Conv, shape: Shape) -> Array | None:
    """The constant as a bias: of each neuron, or of each channel behind a convolution."""
    if constant is None or not constant.any():
        return None
    if way.kind == "dense":
        return constant
    try:
        return L.per_channel(constant.reshape(shape), shape, rounding=1e-12)
    except L.CannotFold:
        raise L.CannotFold(
            "its constant input differs between the neurons of a channel; a convolution has one "
            "bias per channel"
        ) from None


def _positive(factor: Array, what: str) -> Any:
    if not (factor > 0).all() or not np.isfinite(factor).all():
        raise L.CannotFold(f"{what} is not above zero everywhere, behind a convolution")
    return factor
