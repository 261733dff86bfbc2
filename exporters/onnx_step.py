"""The integer network in ONNX: one step of it, and that step in a Scan over time.

Every line of ``hw_sim/reference.py`` in integers (docs/onnx.md has the table). Weighted sums come in int64
(onnx_sums.py); nothing behind them can overflow it (onnx_limits.py), and the chip's wraps and limits are
written out, for any arithmetic and width that a chip's file can name. State is int32 where the chip has
registers, int64 on chip ``ideal``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from stl_deploy.chips import facts as chips
from stl_deploy.exporters import onnx_sums
from stl_deploy.exporters.onnx_graph import Builder
from stl_deploy.ir import kinds
from stl_deploy.ir.chain import LifLayer, OrPool
from stl_deploy.ir.network import IntegerNetwork
from stl_deploy.ir.synapses import Shape
from stl_deploy.ir.units import DECAY_ONE, FRACTION_BITS, UNIT

State = tuple[str, type[np.generic], Shape]


def step_graph(network: IntegerNetwork) -> onnx.GraphProto:
    """One time step: ``input``, state in; spikes, u and v of every layer out."""
    b = Builder()
    b.input("input", np.uint8, ("N", *network.input_shape))
    states = _states(network)
    for name, kind, shape in states:
        b.input(name, kind, ("N", *shape))
    _step(b, network)
    for name, kind, shape in _results(network):
        b.output(name, kind, ("N", *shape))
    return b.graph("step")


def scan_graph(network: IntegerNetwork) -> onnx.GraphProto:
    """All steps: ``input`` [N, T, ...] in; spikes, u and v [N, T, ...], votes and prediction out."""
    b = Builder()
    b.input("input", np.uint8, ("N", "T", *network.input_shape))
    states, results = _states(network), _results(network)
    batch = b.op("Shape", ["input"], "batch", start=0, end=1)
    starts = [_zeros(b, batch, *state) for state in states]
    ends = [f"last_{name}" for name, _, _ in states]
    # Time goes to the front and back again: not every tool scans along another axis.
    by_time = _swapped(b, "input", "by_time_input", network.input_shape)
    kept = [f"by_time_{name}" for name, _, _ in results]
    b.nodes.append(
        onnx.helper.make_node(
            "Scan",
            [*starts, by_time],
            [*ends, *kept],
            name="steps",
            body=_body(network),
            num_scan_inputs=1,
        )
    )
    for name, kind, shape in results:
        _swapped(b, f"by_time_{name}", name, shape)
        b.output(name, kind, ("N", "T", *shape))
    _readout(b, network)
    return b.graph("scan")


def _swapped(b: Builder, value: str, name: str, shape: Shape) -> str:
    """The first two axes, of samples and of time, in the other order."""
    return b.op("Transpose", [value], name, perm=(1, 0, *range(2, 2 + len(shape))))


def _zeros(b: Builder, batch: str, name: str, kind: type[np.generic], shape: Shape) -> str:
    """The state before the first step, for as many samples as there are."""
    size = b.op("Concat", [batch, b.shape(shape)], f"size_{name}", axis=0)
    zero = onnx.numpy_helper.from_array(np.zeros(1, kind))
    return b.op("ConstantOfShape", [size], f"first_{name}", value=zero)


def _body(network: IntegerNetwork) -> onnx.GraphProto:
    """The step as Scan takes it: state first; the state goes on, and u, v and spikes are kept."""
    b = Builder(prefix="step:")
    for name, kind, shape in _states(network):
        b.input(b.name(name), kind, ("N", *shape))
    b.input(b.name("input"), np.uint8, ("N", *network.input_shape))
    _step(b, network)
    for name, kind, shape in _states(network):
        # One name cannot be an output twice.
        on = b.op("Identity", [b.name(_after(name))], b.name(f"next_{_after(name)}"))
        b.output(on, kind, ("N", *shape))
    for name, kind, shape in _results(network):
        b.output(b.name(name), kind, ("N", *shape))
    return b.graph("step")


def _readout(b: Builder, network: IntegerNetwork) -> None:
    """Spike counts of the classes, and the first class with most."""
    readout = network.readout
    sizes = b.shape((0, 0, readout.classes, readout.population))
    groups = b.op("Reshape", [f"spikes/{network.layers[-1].name}", sizes], "readout.groups")
    wide = b.cast(groups, np.int64, "readout.wide")
    axes = b.constant("readout.axes", np.array([1, 3], np.int64))
    b.op("ReduceSum", [wide, axes], "votes", keepdims=0)
    # Older versions of onnxruntime compare no int64 here; counts are far below 2^31.
    narrow = b.cast("votes", np.int32, "readout.narrow")
    b.op("ArgMax", [narrow], "prediction", axis=1, keepdims=0)
    b.output("votes", np.int64, ("N", readout.classes))
    b.output("prediction", np.int64, ("N",))


def _states(network: IntegerNetwork) -> list[State]:
    """What goes from step to step: name of the input, type, shape."""
    found: list[State] = []
    for layer in network.lif_layers:
        wide = state_type(network)
        found += [(f"{kind}_in/{layer.name}", wide, layer.shape) for kind in ("u", "v")]
        if layer.recurrent is not None:
            found.append((f"spikes_in/{layer.name}", np.uint8, layer.shape))
    return found


def _after(name: str) -> str:
    """The output that becomes the state ``name`` of the next step."""
    return name.replace("_in/", "/", 1)


def _results(network: IntegerNetwork) -> list[State]:
    """What every step gives: name, type, shape."""
    wide = state_type(network)
    return [
        (f"{kind}/{layer.name}", np.uint8 if kind == "spikes" else wide, layer.shape)
        for layer in network.layers
        for kind in ("spikes", "u", "v")
    ]


def state_type(network: IntegerNetwork) -> type[np.int32] | type[np.int64]:
    """The type of u and v."""
    return np.int64 if chips.of(network).state_limit is None else np.int32


def _step(b: Builder, network: IntegerNetwork) -> None:
    """Layer by layer from ``input`` to the spikes, u and v of the last."""
    spikes = b.name("input")
    for layer in network.layers:
        form = kinds.entry(POPULATIONS, layer.kind, layer.name, onnx_sums.WHO)
        spikes = form.step(b, layer, spikes, network)


def _or_pool(b: Builder, layer: OrPool, inputs: str, network: IntegerNetwork) -> str:
    """u = count << 6 of the window, v = 0; fires where anything in it did."""
    state = state_type(network)
    name, channels = layer.name, layer.shape[0]
    ones = b.constant(b.name("ones", name), np.ones((channels, 1, *layer.kernel), np.uint8))
    window = {"kernel_shape": layer.kernel, "strides": layer.kernel, "group": channels}
    count = b.op("ConvInteger", [inputs, ones], b.name("count", name), **window)
    fires = b.op("Greater", [count, b.number(0, np.int32)], b.name("fires", name))
    wide = b.cast(count, np.int64, b.name("wide_count", name))
    u = b.op("Mul", [wide, b.number(UNIT)], b.name("wide_u", name))
    v = b.op("Mul", [wide, b.number(0)], b.name("wide_v", name))
    b.cast(u, state, b.name("u", name))
    b.cast(v, state, b.name("v", name))
    return b.cast(fires, np.uint8, b.name("spikes", name))


def _lif(b: Builder, layer: LifLayer, inputs: str, network: IntegerNetwork) -> str:
    """One step of LIF neurons, as at the head of ``hw_sim/reference.py``."""
    name, limit = layer.name, chips.of(network).state_limit
    a = onnx_sums.accumulate(b, layer, inputs, network.input_limit(layer))
    old_u = b.cast(b.name("u_in", name), np.int64, b.name("old_u", name))
    old_v = b.cast(b.name("v_in", name), np.int64, b.name("old_v", name))
    kept = _decay(b, old_u, layer.du + 1, b.name("kept_u", name))
    u = b.op("Add", [kept, a], b.name("sum_u", name))
    if limit is not None:
        u = _wrap_once(b, _wrap32(b, u, name, "u"), name, limit)
    bias = b.constant(b.name("bias", name), layer.bias)
    kept = _decay(b, old_v, layer.dv, b.name("kept_v", name))
    v = b.op("Add", [kept, u], b.name("driven_v", name))
    v = b.op("Add", [v, bias], b.name("sum_v", name))
    if limit is not None:
        ends = [b.number(1 - limit), b.number(limit - 1)]
        v = b.op("Clip", [_wrap32(b, v, name, "v"), *ends], b.name("clipped_v", name))
    vth = b.constant(b.name("vth", name), layer.vth.astype(np.int64) << FRACTION_BITS)
    fires = b.op("Greater", [v, vth], b.name("fires", name))
    reset = b.number(0)
    if layer.reset == "subtract":
        reset = b.op("Sub", [v, vth], b.name("reset_v", name))
    v = b.op("Where", [fires, reset, v], b.name("after_v", name))
    b.cast(u, state_type(network), b.name("u", name))
    b.cast(v, state_type(network), b.name("v", name))
    return b.cast(fires, np.uint8, b.name("spikes", name))


def _decay(b: Builder, x: str, constant: int, name: str) -> str:
    """x * (4096 - constant) / 4096. ONNX divides integers toward zero, as Loihi does."""
    scaled = b.op("Mul", [x, b.number(DECAY_ONE - constant)], f"scaled:{name}")
    return b.op("Div", [scaled, b.number(DECAY_ONE)], name)


def _wrap32(b: Builder, x: str, layer: str, kind: str) -> str:
    """Two's complement wrap into 32 bits: a remainder with the sign of the divisor (fmod = 0)."""
    moved = b.op("Add", [x, b.number(1 << 31)], b.name(f"moved_{kind}", layer))
    rest = b.op("Mod", [moved, b.number(1 << 32)], b.name(f"rest_{kind}", layer), fmod=0)
    return b.op("Sub", [rest, b.number(1 << 31)], b.name(f"wrapped_{kind}", layer))


def _wrap_once(b: Builder, u: str, layer: str, limit: int) -> str:
    """u - 2M above M, u + 2M at -M and below."""
    high = b.op("Greater", [u, b.number(limit)], b.name("high_u", layer))
    low = b.op("Less", [u, b.number(1 - limit)], b.name("low_u", layer))
    under = b.op("Sub", [u, b.number(2 * limit)], b.name("down_u", layer))
    over = b.op("Add", [u, b.number(2 * limit)], b.name("up_u", layer))
    rest = b.op("Where", [low, over, u], b.name("raised_u", layer))
    return b.op("Where", [high, under, rest], b.name("new_u", layer))


@dataclass(frozen=True)
class Form:
    """How one kind of population is written.

    ``step`` adds the nodes of a time step and gives the name of its spikes: of (graph, layer, name of the
    inputs, network). ``size`` is an upper bound of the bytes that a file takes for the layer.
    """

    step: Callable[[Builder, Any, str, IntegerNetwork], str]
    size: Callable[[Any], int]


def _pool_size(layer: OrPool) -> int:
    return layer.shape[0] * math.prod(layer.kernel)


def _lif_size(layer: LifLayer) -> int:
    synapses = layer.synapses
    size = kinds.entry(onnx_sums.SYNAPSES, synapses.kind, layer.name, onnx_sums.WHO).numbers(
        synapses, layer
    )
    if layer.recurrent is not None:
        size += layer.recurrent.weight.size
    slices_at_most = synapses.weight.dtype.itemsize + 1
    return 16 * layer.neurons + slices_at_most * size


POPULATIONS: dict[str, Form] = {
    "lif": Form(_lif, _lif_size),
    "or_pool": Form(_or_pool, _pool_size),
}
