"""The readout in ONNX, behind the last step: the scores of the classes, and the first with the highest.

``scores`` of ``stl_deploy/ir/readouts.py`` in int64. TopK settles ties as a prediction does: of equal values
the one with the lowest index stands first. (ArgMax takes no int64 in older versions of onnxruntime.)
Onnxruntime's ReduceSum adds int64 up in float64: sums that could pass its 53 bits are products with ones.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np
from onnx import helper

from stl_deploy.exporters import onnx_limits
from stl_deploy.exporters.onnx_graph import Builder
from stl_deploy.ir.network import IntegerNetwork

EXACT_SUM_LIMIT = 1 << 53


def write(b: Builder, network: IntegerNetwork) -> None:
    """Add ``scores`` int64 [N, classes] and ``prediction`` int64 [N]; u, v and what is sent are there."""
    readout, source = network.readout, _Source(b, network)
    values = RULES[readout.rule](source)
    if readout.factors is not None:
        by = b.constant("readout.factors", np.asarray(readout.factors, np.int64))
        values = b.op("Mul", [values, by], "readout.multiplied")
    if readout.matrix is None:
        sizes = b.shape((0, readout.classes, readout.population))
        groups = b.op("Reshape", [values, sizes], "readout.groups")
        if readout.rule == "first":
            b.op("ReduceMax", [groups], "scores", axes=[2], keepdims=0)
        elif source.sums_are_exact:
            b.op("ReduceSum", [groups, b.shape((2,))], "scores", keepdims=0)
        else:
            ones = b.constant("readout.ones", np.ones(readout.population, np.int64))
            b.op("MatMul", [groups, ones], "scores")
    else:
        matrix = b.constant("readout.matrix", np.asarray(readout.matrix, np.int64).T)
        _with_offset(source, b.op("MatMul", [values, matrix], "readout.weighed"))
    first = _sorted(b, "scores", 1, "readout.best")
    b.op("Reshape", [first, b.shape((0,))], "prediction")
    b.output("scores", np.int64, ("N", readout.classes))
    b.output("prediction", np.int64, ("N",))


class _Source:
    """The population that is read out; every property is a value of the graph."""

    def __init__(self, b: Builder, network: IntegerNetwork) -> None:
        self.b, self.readout = b, network.readout
        self.neurons = network.size(self.readout.source)
        self.sums_are_exact = onnx_limits.largest_score(network) < EXACT_SUM_LIMIT

    @cached_property
    def sent(self) -> str:
        """What it sent [N, T, neurons], as it stands."""
        return self._flat("spikes")

    @cached_property
    def v(self) -> str:
        """Its v after each step, [N, T, neurons] int64."""
        return self.b.cast(self._flat("v"), np.int64, "readout.v")

    @cached_property
    def steps(self) -> str:
        """How many steps there were, int64 [1]."""
        return self.b.op(
            "Shape", [f"spikes/{self.readout.source}"], "readout.steps", start=1, end=2
        )

    @cached_property
    def weights(self) -> str:
        """The weight of each of these steps, int64 [T]."""
        every = self.b.constant("readout.every_weight", np.array(self.readout.steps, np.int64))
        return self.b.op("Slice", [every, self.b.shape((0,)), self.steps], "readout.weights")

    def over_steps(self, values: str, name: str) -> str:
        """values [N, T, neurons] added up."""
        if self.sums_are_exact:
            return self.b.op("ReduceSum", [values, self.b.shape((1,))], name, keepdims=0)
        ones = self.b.op("Expand", [self.b.number(1), self.steps], "readout.one_a_step")
        return self.b.op("MatMul", [ones, values], name)

    def _flat(self, kind: str) -> str:
        sizes = self.b.shape((0, 0, self.neurons))
        return self.b.op(
            "Reshape", [f"{kind}/{self.readout.source}", sizes], f"readout.flat_{kind}"
        )


def _with_offset(source: _Source, scores: str) -> None:
    """The scores, an offset added in every step, as often as the step counts."""
    b, readout = source.b, source.readout
    if readout.offset is None:
        b.op("Identity", [scores], "scores")
        return
    times = source.steps
    if readout.steps is not None:
        times = b.op("ReduceSum", [source.weights, b.shape((0,))], "readout.times")
    offset = b.constant("readout.offset", np.asarray(readout.offset, np.int64))
    b.op("Add", [scores, b.op("Mul", [offset, times], "readout.offsets")], "scores")


def _votes(source: _Source) -> str:
    b = source.b
    sent = b.cast(source.sent, np.int64, "readout.sent")
    if source.readout.steps is not None:
        by = b.op("Unsqueeze", [source.weights, b.shape((1,))], "readout.by_step")
        sent = b.op("Mul", [sent, by], "readout.weighted")
    return source.over_steps(sent, "readout.votes")


def _last(source: _Source) -> str:
    return source.b.op("Gather", [source.v, source.b.number(-1)], "readout.last", axis=1)


def _mean(source: _Source) -> str:
    return source.over_steps(source.v, "readout.sum")


def _max(source: _Source) -> str:
    return source.b.op("ReduceMax", [source.v], "readout.max", axes=[1], keepdims=0)


def _first(source: _Source) -> str:
    """How many neurons come behind each: by first spike, then by v after it, then by index."""
    b, count = source.b, source.neurons
    spiked = b.cast(source.sent, np.bool_, "readout.spiked")
    steps = b.op("Squeeze", [source.steps], "readout.count")
    every = b.op("Range", [b.number(0), steps, b.number(1)], "readout.every_step")
    column = b.op("Unsqueeze", [every, b.shape((1,))], "readout.column")
    when = b.op("Where", [spiked, column, steps], "readout.when")
    first = b.op("ReduceMin", [when], "readout.first", axes=[1], keepdims=0)
    end = b.op("Sub", [steps, b.number(1)], "readout.end")
    row = b.op("Unsqueeze", [b.op("Min", [first, end], "readout.at"), b.shape((1,))], "readout.row")
    then = b.op("Equal", [column, row], "readout.then")
    masked = b.op("Where", [then, source.v, b.number(0)], "readout.v_there")
    v = b.op("ReduceSum", [masked, b.shape((1,))], "readout.v_then", keepdims=0)
    # TopK keeps equal values in their order: what is sorted by v stays so within a step.
    by_v = _sorted(b, v, count, "readout.by_v")
    by_first = _sorted(b, _at(b, first, by_v), count, "readout.by_first", largest=0)
    place = _sorted(b, _at(b, by_v, by_first), count, "readout.place", largest=0)
    return b.op("Sub", [b.number(count - 1), place], "readout.ranks")


def _at(b: Builder, values: str, index: str) -> str:
    """values [N, n] at the places index [N, n] of each sample."""
    index = b.op("Unsqueeze", [index, b.shape((2,))], f"{index}_places")
    return b.op("GatherND", [values, index], f"{index}_read", batch_dims=1)


def _sorted(b: Builder, values: str, count: int, name: str, largest: int = 1) -> str:
    """Where the ``count`` highest, or lowest, of values [N, ...] stand along the last axis."""
    made = [f"{name}_values", name]
    given = [values, b.shape((count,))]
    b.nodes.append(helper.make_node("TopK", given, made, name=name, largest=largest))
    return name


RULES: dict[str, Callable[[_Source], str]] = {
    "votes": _votes,
    "last": _last,
    "mean": _mean,
    "max": _max,
    "first": _first,
}
