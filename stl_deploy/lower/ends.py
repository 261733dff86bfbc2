"""The end of a network: what its classes are read from.

Spikes of the last neurons vote, weighted by a matrix where weights follow; of neurons without a threshold
v is read. Of anything else, such as spikes of several populations added up, the sum in each step is the
voltage of neurons that forget it, which are put behind it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import nir
import numpy as np

from stl_deploy.errors import InputError, Problem
from stl_deploy.ir.float_neurons import NEURONS, decode
from stl_deploy.ir.readouts import Rule
from stl_deploy.lower import linear as L
from stl_deploy.lower.flow import Flow, Sum, Term
from stl_deploy.lower.nodes import SPIKING, Array

INSTEAD = "read it by last, mean or max over time (--readout)"


@dataclass(frozen=True)
class Wanted:
    """What was said of the readout: its rule, and how many classes there are; None where nothing was."""

    rule: Rule | None = None
    classes: int | None = None


@dataclass(frozen=True, eq=False)
class End:
    """The population ``name`` is read by ``rule``.

    ``matrix`` [classes, neurons] and ``offset`` weigh its votes, ``weights`` names them; ``factors``
    [neurons] are those of its voltages, None for 1.
    """

    name: str
    rule: Rule
    weights: str = ""
    matrix: Array | None = None
    offset: Array | None = None
    factors: Array | None = None


def is_silent(node: nir.ir.NIRNode) -> bool:
    """Whether ``node`` is neurons that send nothing, since they have no threshold.

    Broken ones are not: what is wrong with them is said where they are read.
    """
    if type(node) not in NEURONS:
        return False
    try:
        with np.errstate(all="ignore"):  # a tau of 0, for one
            neurons = decode(node)
    except ValueError:
        return False
    return not (neurons.fires or neurons.graded)


def find(flow: Flow, total: Sum, wanted: Wanted) -> End | None:
    """What is read where ``total`` arrives at the output, None where that takes further neurons.

    Notes problems in ``flow``; raises InputError for a number of classes that does not fit.
    """
    if len(total.terms) != 1:
        return None
    (term,) = total.terms
    node = flow.nodes[term.source]
    if not isinstance(node, SPIKING) or term.delay or term.place or term.port:
        return None
    constant = total.constant if total.constant is not None and total.constant.any() else None
    scale = term.way if term.way.kind == "scale" and term.post is None else None
    if is_silent(node):
        return _by_voltage(flow, term, constant, wanted.rule or "last")
    rule = wanted.rule or "votes"
    counts = scale is not None and scale.counts and constant is None
    if scale is not None and counts and (scale.trivial or rule in ("votes", "first")):
        return End(term.source, rule)
    matrix = _matrix(flow, term) if rule in ("votes", "mean") else None
    if matrix is None:
        return None
    outputs = len(matrix)
    offset = None if constant is None else constant.reshape(-1)
    classes = classes_of(outputs, wanted)
    if classes != outputs:
        matrix = matrix.reshape(classes, -1, matrix.shape[1]).sum(axis=1)
        offset = None if offset is None else offset.reshape(classes, -1).sum(axis=1)
    return End(term.source, "votes", term.weights, matrix, offset)


def classes_of(outputs: int, wanted: Wanted) -> int:
    """How many classes ``outputs`` are. Raises InputError where they do not divide."""
    classes = wanted.classes or outputs
    if outputs % classes:
        what = f"{outputs} outputs do not divide into {classes} classes"
        raise InputError(Problem("--classes", what))
    return classes


def _by_voltage(flow: Flow, term: Term, constant: Array | None, rule: Rule) -> End:
    """The end at neurons without a threshold, or a problem in ``flow``."""
    way = term.way
    if rule in ("votes", "first"):
        what = f"has no threshold, and a readout by {rule} needs spikes"
        flow.problems.append(Problem(term.source, what, INSTEAD))
    positive = way.kind == "scale" and term.post is None and bool((way.scale > 0).all())
    if not positive or constant is not None:
        what = f"lies behind {term.source}, whose voltage is read; weights of voltages are not supported"
        where = term.weights or flow.end
        flow.problems.append(Problem(where, what, f"put the weights before {term.source}"))
    scale: Any = way.scale if way.kind == "scale" else np.ones(1)
    return End(term.source, rule, factors=None if np.ptp(scale) == 0 else scale)


def _matrix(flow: Flow, term: Term) -> Array | None:
    """The weights of a term, float64 [outputs, neurons]; None for more than can be written out."""
    try:
        way = term.way.dense(flow.shapes[term.source])
    except L.CannotFold:
        return None
    way = way if term.post is None else way.rows_times(term.post)
    return way.weight.astype(np.float64) / term.divisor


def with_readout(flow: Flow, total: Sum, wanted: Wanted) -> tuple[Flow, End]:
    """``flow`` with neurons before its output whose v is ``total`` in each step, and the end at them."""
    name = "readout"
    while name in flow.nodes:
        name += "_"
    if wanted.rule == "first":
        what = "is weighted values and not the spikes of its last neurons, of which the first would count"
        flow.problems.append(Problem(flow.end, what, INSTEAD))
    one, shape = np.ones(total.shape), total.shape
    node = nir.LI(tau=flow.reading.dt * one, r=one, v_leak=0 * one)
    edges = [(a, name if b == flow.end else b) for a, b in flow.edges]
    nodes = {**flow.nodes, name: node}
    shapes = {**flow.shapes, name: shape}
    added = replace(flow, nodes=nodes, edges=[*edges, (name, flow.end)], shapes=shapes)
    # Votes of several populations are the sum of what they send.
    rule = "mean" if wanted.rule in (None, "votes", "first") else wanted.rule
    return added, End(name, rule)
