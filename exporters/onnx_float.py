"""The float network in ONNX: one step in float32, as ``ir/execute.py`` takes it in float64.

Names and state are those of the integer step: ``v_in/<neurons>`` becomes ``v/<neurons>``; a CubaLIF has
``i_in/`` and ``i/`` too, and what arrives late comes from ``past_in/<source>``. Thresholds are rounded
down to float32, so that the strict compare fires at the same float32 values as the one in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

import nir
import numpy as np
import onnx
from numpy.typing import NDArray

from stl_deploy.errors import LoweringError
from stl_deploy.exporters import onnx_graph
from stl_deploy.exporters.onnx_graph import Builder
from stl_deploy.ir import nir_graph as G
from stl_deploy.ir.floats import (
    FloatConnection,
    FloatNetwork,
    FloatPopulation,
    OneToOne,
    Weights,
    Window,
    decode,
)
from stl_deploy.ir.notes import Diagnostic
from stl_deploy.ir.synapses import Pair, Shape

RESETS = ("zero", "subtract")
REMEDY = (
    "export the float model instead of its integers: model.float.nir next to model.nir, or what it was made "
    "from; in Python give export() the lowered graph (graph=)"
)


def notes(graph: nir.NIRGraph | None) -> tuple[Diagnostic, ...]:
    """Why there is no float step; empty where there is one.

    The integers do not depend on it, so that it is left out and not refused.
    """
    if graph is None:
        return (_left_out("there is no float graph", REMEDY),)
    if G.KEY in graph.metadata and G.float_meta(graph).trained is not None:
        what = "the model was trained on integers, which its float graph rounds as step.onnx does"
        return (_left_out(what, "use step.onnx"),)
    try:
        network = decode(graph)
    except LoweringError as error:
        return tuple(_left_out(f"{p.where}: {p.what}", "use step.onnx") for p in error.problems)
    if unknown := [why for p in network.populations for why in _unknown(p)]:
        return tuple(_left_out(why, "use step.onnx") for why in unknown)
    parts = [part for p in network.populations for part in (p, p.neurons)]
    values = (
        values
        for part in (*parts, *(c.way for c in network.connections))
        for values in vars(part).values()
        if isinstance(values, np.ndarray)
    )
    if (size := 4 * sum(array.size for array in values)) > onnx_graph.FILE_BYTES_MAX:
        return (_left_out(onnx_graph.too_large(size), "use model.float.nir"),)
    return ()


def _unknown(population: FloatPopulation) -> list[str]:
    """What the neurons do that ``_neurons`` does not write."""
    neurons = population.neurons
    found = [
        f"{field.name!r} of its neurons"
        for field in fields(neurons)
        if field.default is not MISSING
        and field.name != "reset"
        and not np.array_equal(getattr(neurons, field.name), field.default)
    ]
    if neurons.reset not in RESETS:
        found.append(f"the reset {neurons.reset!r}")
    return [f"{population.name}: {what} has no place in it" for what in found]


def _left_out(why: str, remedy: str) -> Diagnostic:
    return Diagnostic("onnx/float_step.onnx", f"not written: {why}", remedy)


def graph(source: nir.NIRGraph) -> onnx.GraphProto:
    """One time step: inputs and state in; spikes uint8 of every population and state out.

    An input is uint8, or int16 where the graph says that it is signed.
    """
    b = Builder()
    network = decode(source)
    signed = network.meta is not None and network.meta.signed
    kind = np.int16 if signed else np.uint8
    sent: dict[str, str] = {}
    for name, shape in network.inputs.items():
        given = b.input(name, kind, ("N", *shape))
        sent[name] = b.cast(given, np.float32, b.name("real", name))
    for population in network.populations:
        x = _arriving(b, network, population, sent)
        remembers = population.neurons.has_state
        sent[population.name] = (_neurons if remembers else _compared)(b, population, x)
    for name, now in sent.items():
        longest = max((c.delay for c in network.connections if c.source == name), default=0)
        if longest:
            _remember(b, name, now, network.shape(name), longest)
    return b.graph("float_step")


def _arriving(
    b: Builder, network: FloatNetwork, population: FloatPopulation, sent: Mapping[str, str]
) -> str:
    """The sum of all connections into a population, and its bias."""
    name = population.name
    total = ""
    for i, c in enumerate(network.into(name)):
        x = sent[c.source] if not c.delay else _past(b, c, i)
        where = Place(f"{i}_", name, population.shape)
        part = WAYS[c.way.kind](b, c.way, x, where)
        total = b.op("Add", [total, part], where.name(b, "so_far")) if total else part
    if not total:
        return b.constant(b.name("bias", name), population.bias.astype(np.float32)[None])
    if not population.bias.any():
        return total
    return b.op("Add", [total, _constant(b, "bias", name, population.bias)], b.name("sum", name))


def _past(b: Builder, connection: FloatConnection, number: int) -> str:
    """What the source sent ``delay`` steps ago."""
    past, name = b.name("past_in", connection.source), connection.target
    at = b.constant(b.name(f"{number}_ago", name), np.int64(connection.delay - 1))
    return b.op("Gather", [past, at], b.name(f"{number}_late", name), axis=1)


def _remember(b: Builder, source: str, now: str, shape: Shape, longest: int) -> None:
    """What a source sent in the last steps, this one included, as state of the graph."""
    size: tuple[int | str, ...] = ("N", longest, *shape)
    old = b.input(b.name("past_in", source), np.float32, size)
    first = b.op("Unsqueeze", [now, b.shape((1,))], b.name("newest", source))
    both = b.op("Concat", [first, old], b.name("all_past", source), axis=1)
    ends = [b.shape((n,)) for n in (0, longest, 1)]
    b.output(b.op("Slice", [both, *ends], b.name("past", source)), np.float32, size)


@dataclass(frozen=True)
class Place:
    """Where the nodes of a connection are written: into ``target`` of ``shape``."""

    prefix: str
    target: str
    shape: Shape

    def name(self, b: Builder, kind: str) -> str:
        """The name of a value of the connection."""
        return b.name(self.prefix + kind, self.target)

    def shaped(self, b: Builder, value: str) -> str:
        """``value`` [N, ...] in the shape of the target."""
        return b.op("Reshape", [value, b.shape((0, *self.shape))], self.name(b, "shaped"))


def _weights(b: Builder, way: Weights, x: str, where: Place) -> str:
    """Weighted sums, of inputs in C order where there is no kernel."""
    weight = b.constant(where.name(b, "weight"), way.weight.astype(np.float32))
    if way.geometry is None:
        flat = b.op("Flatten", [x], where.name(b, "flat"), axis=1)
        product = b.op("Gemm", [flat, weight], where.name(b, "out"), transB=1)
        return where.shaped(b, product) if len(where.shape) > 1 else product
    stride, padding, dilation, groups = way.geometry
    window = _window_of(way.weight.shape[2:], stride, padding)
    out = where.name(b, "out")
    return b.op("Conv", [x, weight], out, dilations=dilation, group=groups, **window)


def _one_to_one(b: Builder, way: OneToOne, x: str, where: Place) -> str:
    weight = way.weight.reshape(where.shape).astype(np.float32)
    factors = b.constant(where.name(b, "weight"), weight)
    return b.op("Mul", [where.shaped(b, x), factors], where.name(b, "each"))


def _window(b: Builder, way: Window, x: str, where: Place) -> str:
    """A convolution of ones: the mean times the size of the window would round."""
    ones = b.constant(where.name(b, "ones"), np.ones((way.channels, 1, *way.kernel), np.float32))
    window = _window_of(way.kernel, way.stride, way.padding)
    return b.op("Conv", [x, ones], where.name(b, "out"), group=way.channels, **window)


WAYS: dict[str, Callable[[Builder, Any, str, Place], str]] = {
    "weights": _weights,
    "one_to_one": _one_to_one,
    "window": _window,
}


def _window_of(kernel: tuple[int, ...], stride: Pair, padding: Pair) -> dict[str, Any]:
    return {"kernel_shape": kernel, "strides": stride, "pads": (*padding, *padding)}


def _constant(b: Builder, what: str, name: str, values: NDArray[Any]) -> str:
    return b.constant(b.name(what, name), values.astype(np.float32))


def _compared(b: Builder, population: FloatPopulation, x: str) -> str:
    """Neurons without state: they fire where the sum is above the threshold."""
    vth = b.constant(b.name("v_threshold", population.name), _down(population.neurons.threshold))
    return _fired(b, b.op("Greater", [x, vth], b.name("fires", population.name)), population)


def _neurons(b: Builder, population: FloatPopulation, x: str) -> str:
    """One step of the neurons' equation, in the order of ``ir/execute.py``."""
    neurons, name, shape = population.neurons, population.name, population.shape
    if neurons.has_current:
        x = _leaky(b, name, "i", 1 - neurons.current, neurons.drive, x, shape)
        b.output(x, np.float32, ("N", *shape))
    v = _leaky(b, name, "v", neurons.keep, neurons.gain, x, shape, neurons.leak)
    vth = b.constant(b.name("v_threshold", name), _down(neurons.threshold))
    fires = b.op("Greater", [v, vth], b.name("fires", name))
    if neurons.reset == "subtract":
        reset = b.op("Sub", [v, vth], b.name("reset_v", name))
    else:
        reset = _constant(b, "v_reset", name, neurons.v_reset)
    b.output(b.op("Where", [fires, reset, v], b.name("v", name)), np.float32, ("N", *shape))
    return _fired(b, fires, population)


def _leaky(
    b: Builder,
    name: str,
    kind: str,
    keep: NDArray[np.float64],
    gain: NDArray[np.float64],
    x: str,
    shape: Shape,
    leak: NDArray[np.float64] | None = None,
) -> str:
    """keep * state + gain * x + leak, of a state ``kind`` that is an input of the graph."""
    old = b.input(b.name(f"{kind}_in", name), np.float32, ("N", *shape))
    factors = [
        b.constant(b.name(f"{kind}_{what}", name), values.astype(np.float32))
        for what, values in (("keep", keep), ("gain", gain))
    ]
    kept = b.op("Mul", [old, factors[0]], b.name(f"kept_{kind}", name))
    driven = b.op("Mul", [x, factors[1]], b.name(f"driven_{kind}", name))
    if leak is None:
        return b.op("Add", [kept, driven], b.name(kind, name))
    total = b.op("Add", [kept, driven], b.name(f"sum_{kind}", name))
    constant = b.constant(b.name(f"{kind}_leak", name), leak.astype(np.float32))
    return b.op("Add", [total, constant], b.name(f"new_{kind}", name))


def _fired(b: Builder, fires: str, population: FloatPopulation) -> str:
    """The spikes as an output, and as what the next layer adds up."""
    spikes = b.cast(fires, np.uint8, b.name("spikes", population.name))
    b.output(spikes, np.uint8, ("N", *population.shape))
    return b.cast(spikes, np.float32, b.name("real", population.name))


def _down(values: NDArray[Any]) -> NDArray[np.float32]:
    """The largest float32 that is not above each value."""
    near = values.astype(np.float32)
    lower = np.nextafter(near, np.float32(-np.inf))
    return np.where(near.astype(np.float64) > values, lower, near).astype(np.float32)
