"""The lowered float graph in ONNX: one step in float32, as ``float_exec`` takes it in float64.

Names and state are those of the integer step: ``v_in/<neurons>`` becomes ``v/<neurons>``; a CubaLIF has
``i_in/`` and ``i/`` too, recurrent neurons ``spikes_in/``. Thresholds are rounded down to float32, so that
the strict compare fires at the same float32 values as the one in float64.
"""

from __future__ import annotations

from typing import Any, get_args

import nir
import numpy as np
import onnx
from numpy.typing import NDArray

from stl_deploy.exporters import onnx_graph
from stl_deploy.exporters.onnx_graph import Builder
from stl_deploy.ir import nir_graph as G
from stl_deploy.ir.notes import Diagnostic
from stl_deploy.ir.synapses import Shape

KNOWN = (
    nir.Conv2d,
    nir.SumPool2d,
    nir.Flatten,
    nir.Affine,
    nir.Linear,
    nir.Threshold,
    *get_args(G.Neurons),
)


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
    found = [
        _left_out(f"{name} is a {type(node).__name__}, which has no form here", "use step.onnx")
        for name, node in G.inner(graph).items()
        if not isinstance(node, KNOWN)
    ]
    arrays = (
        a for n in graph.nodes.values() for a in vars(n).values() if isinstance(a, np.ndarray)
    )
    if (size := 4 * sum(array.size for array in arrays)) > onnx_graph.FILE_BYTES_MAX:
        found.append(_left_out(onnx_graph.too_large(size), "use model.float.nir"))
    return tuple(found)


def _left_out(why: str, remedy: str) -> Diagnostic:
    return Diagnostic("onnx/float_step.onnx", f"not written: {why}", remedy)


def graph(source: nir.NIRGraph) -> onnx.GraphProto:
    """One time step: ``input`` uint8 and state in; spikes uint8 of every layer and state out."""
    b = Builder()
    shape = G.in_shape(source)
    x = b.cast(b.input("input", np.uint8, ("N", *shape)), np.float32, "real_input")
    beside = G.recurrent(source)
    for name, node in G.inner(source).items():
        before, shape = shape, G.node_output(name, node, shape)
        if isinstance(node, G.Neurons):
            own = beside[name][1].weight if name in beside else None
            x = _neurons(b, name, node, x, shape, own)
        elif isinstance(node, nir.Threshold):
            vth = b.constant(b.name("v_threshold", name), _down(node.threshold))
            x = _fired(b, b.op("Greater", [x, vth], b.name("fires", name)), name, shape)
        else:
            x = _stateless(b, name, node, x, before)
    return b.graph("float_step")


def _stateless(b: Builder, name: str, node: nir.ir.NIRNode, x: str, before: Shape) -> str:
    """A node without state behind a population of shape ``before``."""
    out = b.name("out", name)
    match node:
        case nir.Conv2d():
            stride, padding, dilation = G.conv_geometry(node)
            geometry = {
                "kernel_shape": node.weight.shape[2:],
                "strides": stride,
                "pads": (*padding, *padding),
                "dilations": dilation,
                "group": int(node.groups),
            }
            return b.op("Conv", [x, _weight(b, name, node), _bias(b, name, node)], out, **geometry)
        case nir.SumPool2d():
            return _sum_pool(b, name, node, x, before[0])
        case nir.Flatten():
            return b.op("Flatten", [x], out, axis=1)
        case nir.Affine():
            return b.op("Gemm", [x, _weight(b, name, node), _bias(b, name, node)], out, transB=1)
        case nir.Linear():
            return b.op("Gemm", [x, _weight(b, name, node)], out, transB=1)
    raise TypeError(f"cannot write {type(node).__name__}")


def _weight(b: Builder, name: str, node: nir.ir.NIRNode) -> str:
    return b.constant(b.name("weight", name), node.weight.astype(np.float32))


def _bias(b: Builder, name: str, node: nir.ir.NIRNode) -> str:
    return b.constant(b.name("bias", name), node.bias.astype(np.float32))


def _sum_pool(b: Builder, name: str, node: nir.SumPool2d, x: str, channels: int) -> str:
    """A convolution of ones: the mean times the size of the window would round."""
    kernel, stride, padding = map(G.pair, (node.kernel_size, node.stride, node.padding))
    ones = b.constant(b.name("ones", name), np.ones((channels, 1, *kernel), np.float32))
    window = {"kernel_shape": kernel, "strides": stride, "pads": (*padding, *padding)}
    return b.op("Conv", [x, ones], b.name("out", name), group=channels, **window)


def _neurons(
    b: Builder,
    name: str,
    node: G.Neurons,
    x: str,
    shape: Shape,
    own: NDArray[Any] | None,
) -> str:
    """One step of NIR's equation, in the order of ``float_exec``."""
    if own is not None:
        spikes = b.input(b.name("spikes_in", name), np.uint8, ("N", *shape))
        spikes = b.cast(spikes, np.float32, b.name("real_spikes", name))
        weight = b.constant(b.name("own_weight", name), own.T.astype(np.float32))
        heard = b.op("MatMul", [spikes, weight], b.name("heard", name))
        x = b.op("Add", [x, heard], b.name("both", name))
    if isinstance(node, nir.CubaLIF):
        synapse = G.DT / node.tau_syn.astype(np.float64)
        x = _leaky(b, name, "i", 1 - synapse, synapse * node.w_in, x, shape)
        b.output(x, np.float32, ("N", *shape))
    if isinstance(node, nir.IF):
        gain = G.DT * node.r.astype(np.float64)
        v = _leaky(b, name, "v", np.ones_like(gain), gain, x, shape, 0 * gain)
    else:
        tau = node.tau_mem if isinstance(node, nir.CubaLIF) else node.tau
        part = G.DT / tau.astype(np.float64)
        v = _leaky(b, name, "v", 1 - part, part * node.r, x, shape, part * node.v_leak)
    vth = b.constant(b.name("v_threshold", name), _down(node.v_threshold))
    fires = b.op("Greater", [v, vth], b.name("fires", name))
    if G.reset_of(node) == "subtract":
        reset = b.op("Sub", [v, vth], b.name("reset_v", name))
    else:
        reset = b.constant(b.name("v_reset", name), node.v_reset.astype(np.float32))
    b.output(b.op("Where", [fires, reset, v], b.name("v", name)), np.float32, ("N", *shape))
    return _fired(b, fires, name, shape)


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


def _fired(b: Builder, fires: str, name: str, shape: Shape) -> str:
    """The spikes as an output, and as what the next layer adds up."""
    spikes = b.cast(fires, np.uint8, b.name("spikes", name))
    b.output(spikes, np.uint8, ("N", *shape))
    return b.cast(spikes, np.float32, b.name("real", name))


def _down(values: NDArray[Any]) -> NDArray[np.float32]:
    """The largest float32 that is not above each value."""
    near = values.astype(np.float32)
    lower = np.nextafter(near, np.float32(-np.inf))
    return np.where(near.astype(np.float64) > values, lower, near).astype(np.float32)
