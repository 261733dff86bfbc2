"""The float network in ONNX: one step in float32, as ``ir/execute.py`` takes it in float64.

Names and state are those of the integer step: ``v_in/<neurons>`` becomes ``v/<neurons>``; a CubaLIF has
``i_in/`` and ``i/`` too, recurrent neurons ``spikes_in/``. Thresholds are rounded down to float32, so that
the strict compare fires at the same float32 values as the one in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import nir
import numpy as np
import onnx
from numpy.typing import NDArray

from stl_deploy.errors import LoweringError
from stl_deploy.exporters import onnx_graph
from stl_deploy.exporters.onnx_graph import Builder
from stl_deploy.ir import nir_graph as G
from stl_deploy.ir.float_chain import FloatLayer
from stl_deploy.ir.floats import Weights, Window, decode
from stl_deploy.ir.notes import Diagnostic
from stl_deploy.ir.synapses import Pair, Shape

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
    values = (
        values
        for layer in network.layers
        for part in (*layer.ways, layer, layer.neurons)
        for values in vars(part).values()
        if isinstance(values, np.ndarray)
    )
    if (size := 4 * sum(array.size for array in values)) > onnx_graph.FILE_BYTES_MAX:
        return (_left_out(onnx_graph.too_large(size), "use model.float.nir"),)
    return ()


def _left_out(why: str, remedy: str) -> Diagnostic:
    return Diagnostic("onnx/float_step.onnx", f"not written: {why}", remedy)


def graph(source: nir.NIRGraph) -> onnx.GraphProto:
    """One time step: ``input`` uint8 and state in; spikes uint8 of every layer and state out."""
    b = Builder()
    network = decode(source)
    shape = network.input_shape
    x = b.cast(b.input("input", np.uint8, ("N", *shape)), np.float32, "real_input")
    for layer in network.layers:
        for way in layer.ways:
            x = WAYS[way.kind](b, way, x)
        x = _neurons(b, layer, x) if layer.neurons.has_state else _compared(b, layer, x)
    return b.graph("float_step")


def _weights(b: Builder, way: Weights, x: str) -> str:
    """Weighted sums, of inputs in C order where there is no kernel."""
    weight = _constant(b, "weight", way.name, way.weight)
    bias = [] if way.bias is None else [_constant(b, "bias", way.name, way.bias)]
    out = b.name("out", way.name)
    if way.geometry is None:
        flat = b.op("Flatten", [x], b.name("flat", way.name), axis=1)
        return b.op("Gemm", [flat, weight, *bias], out, transB=1)
    stride, padding, dilation, groups = way.geometry
    window = _window_of(way.weight.shape[2:], stride, padding)
    return b.op("Conv", [x, weight, *bias], out, dilations=dilation, group=groups, **window)


def _window(b: Builder, way: Window, x: str) -> str:
    """A convolution of ones: the mean times the size of the window would round."""
    ones = _constant(b, "ones", way.name, np.ones((way.channels, 1, *way.kernel)))
    window = _window_of(way.kernel, way.stride, way.padding)
    return b.op("Conv", [x, ones], b.name("out", way.name), group=way.channels, **window)


WAYS: dict[str, Callable[[Builder, Any, str], str]] = {"weights": _weights, "window": _window}


def _window_of(kernel: tuple[int, ...], stride: Pair, padding: Pair) -> dict[str, Any]:
    return {"kernel_shape": kernel, "strides": stride, "pads": (*padding, *padding)}


def _constant(b: Builder, what: str, name: str, values: NDArray[Any]) -> str:
    return b.constant(b.name(what, name), values.astype(np.float32))


def _compared(b: Builder, layer: FloatLayer, x: str) -> str:
    """Neurons without state: they fire where the sum is above the threshold."""
    vth = b.constant(b.name("v_threshold", layer.name), _down(layer.neurons.threshold))
    return _fired(b, b.op("Greater", [x, vth], b.name("fires", layer.name)), layer)


def _neurons(b: Builder, layer: FloatLayer, x: str) -> str:
    """One step of the neurons' equation, in the order of ``ir/execute.py``."""
    neurons, name, shape = layer.neurons, layer.name, layer.shape
    if layer.own is not None:
        spikes = b.input(b.name("spikes_in", name), np.uint8, ("N", *shape))
        spikes = b.cast(spikes, np.float32, b.name("real_spikes", name))
        weight = b.constant(b.name("own_weight", name), layer.own.T.astype(np.float32))
        heard = b.op("MatMul", [spikes, weight], b.name("heard", name))
        x = b.op("Add", [x, heard], b.name("both", name))
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
    return _fired(b, fires, layer)


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


def _fired(b: Builder, fires: str, layer: FloatLayer) -> str:
    """The spikes as an output, and as what the next layer adds up."""
    spikes = b.cast(fires, np.uint8, b.name("spikes", layer.name))
    b.output(spikes, np.uint8, ("N", *layer.shape))
    return b.cast(spikes, np.float32, b.name("real", layer.name))


def _down(values: NDArray[Any]) -> NDArray[np.float32]:
    """The largest float32 that is not above each value."""
    near = values.astype(np.float32)
    lower = np.nextafter(near, np.float32(-np.inf))
    return np.where(near.astype(np.float64) > values, lower, near).astype(np.float32)
