"""The integer network in ONNX: one step of it, and that step in a Scan over time.

Every line of ``hw_sim/reference.py`` in integers (docs/onnx.md has the table). Weighted sums come in int64
(onnx_sums.py); nothing behind them can overflow it (onnx_limits.py), and the chip's wraps and limits are
written out, for any arithmetic and width that a chip's file can name. State is int32 where the chip has
registers, int64 on chip ``ideal``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from stl_deploy.chips import facts as chips
from stl_deploy.exporters import onnx_inputs, onnx_sums
from stl_deploy.exporters.onnx_graph import Builder
from stl_deploy.ir import kinds
from stl_deploy.ir.network import IntegerNetwork, Population
from stl_deploy.ir.synapses import IntArray, Shape
from stl_deploy.ir.units import DECAY_ONE, FRACTION_BITS

State = tuple[str, type[np.generic], Shape]


def step_graph(network: IntegerNetwork) -> onnx.GraphProto:
    """One time step: the inputs and the state in; spikes, u and v of every population and the state out."""
    b = Builder()
    for name, port in network.inputs.items():
        b.input(onnx_inputs.label(network, name), onnx_inputs.kind(port), ("N", *port.shape))
    states, results = _states(network), _results(network)
    for name, kind, shape in states:
        b.input(name, kind, ("N", *shape))
    _step(b, network)
    given = {name for name, _, _ in results}
    for name, kind, shape in states:
        if _after(name) not in given:
            b.output(_after(name), kind, ("N", *shape))
    for name, kind, shape in results:
        b.output(name, kind, ("N", *shape))
    return b.graph("step")


def scan_graph(network: IntegerNetwork) -> onnx.GraphProto:
    """All steps: inputs [N, T, ...] in, those that are held [N, 1, ...].

    Spikes, u and v [N, T, ...], votes and prediction out.
    """
    b = Builder()
    for name, port in network.inputs.items():
        steps: int | str = 1 if port.held else "T"
        label = onnx_inputs.label(network, name)
        b.input(label, onnx_inputs.kind(port), ("N", steps, *port.shape))
    states, results = _states(network), _results(network)
    batch = b.op("Shape", [b.inputs[0].name], "batch", start=0, end=1)
    starts = [_zeros(b, batch, *state) for state in states]
    ends = [f"last_{name}" for name, _, _ in states]
    # Time goes to the front and back again: not every tool scans along another axis.
    arriving = [
        _swapped(b, value, f"by_time_{name}", network.shape(name))
        for name, value in onnx_inputs.in_every_step(b, network).items()
    ]
    kept = [f"by_time_{name}" for name, _, _ in results]
    b.nodes.append(
        onnx.helper.make_node(
            "Scan",
            [*starts, *arriving],
            [*ends, *kept],
            name="steps",
            body=_body(network),
            num_scan_inputs=len(arriving),
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
    for name, port in network.inputs.items():
        label = onnx_inputs.label(network, name)
        b.input(b.name(label), onnx_inputs.kind(port), ("N", *port.shape))
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
    groups = b.op("Reshape", [f"spikes/{readout.source}", sizes], "readout.groups")
    wide = b.cast(groups, np.int64, "readout.wide")
    axes = b.constant("readout.axes", np.array([1, 3], np.int64))
    b.op("ReduceSum", [wide, axes], "votes", keepdims=0)
    # Older versions of onnxruntime compare no int64 here; counts are far below 2^31.
    narrow = b.cast("votes", np.int32, "readout.narrow")
    b.op("ArgMax", [narrow], "prediction", axis=1, keepdims=0)
    b.output("votes", np.int64, ("N", readout.classes))
    b.output("prediction", np.int64, ("N",))


def _states(network: IntegerNetwork) -> list[State]:
    """What goes from step to step: name of the input, type, shape.

    ``past_in/<source>`` [N, D, *shape] are the last D steps of what a source sent, the newest first; D is
    the longest delay of a connection out of it.
    """
    found: list[State] = []
    for population in network.populations:
        if POPULATIONS[population.kind].remembers:
            wide = state_type(network)
            found += [(f"{kind}_in/{population.name}", wide, population.shape) for kind in "uv"]
    for source in (*network.inputs, *network.by_name):
        longest = _longest(network, source)
        if longest:
            port = network.inputs.get(source)
            kind = np.uint8 if port is None else onnx_inputs.kind(port)
            found.append((f"past_in/{source}", kind, (longest, *network.shape(source))))
    return found


def _longest(network: IntegerNetwork, source: str) -> int:
    """The longest delay of a connection that leads out of a source."""
    return max((c.delay for c in network.out_of(source)), default=0)


def _after(name: str) -> str:
    """The output that becomes the state ``name`` of the next step."""
    return name.replace("_in/", "/", 1)


def _results(network: IntegerNetwork) -> list[State]:
    """What every step gives: name, type, shape."""
    wide = state_type(network)
    return [
        (f"{kind}/{p.name}", np.uint8 if kind == "spikes" else wide, p.shape)
        for p in network.populations
        for kind in ("spikes", "u", "v")
    ]


def state_type(network: IntegerNetwork) -> type[np.int32] | type[np.int64]:
    """The type of u and v."""
    return np.int64 if chips.of(network).state_limit is None else np.int32


def _step(b: Builder, network: IntegerNetwork) -> None:
    """One population after the other, from the inputs and the state to spikes, u and v."""
    sent = {name: b.name(onnx_inputs.label(network, name)) for name in network.inputs}
    for population in network.populations:
        name = population.name
        a = onnx_sums.accumulate(b, network, population, sent)
        form = kinds.entry(POPULATIONS, population.kind, name, onnx_sums.WHO)
        sent[name] = form.step(b, population, a, network)
    for source, now in sent.items():
        if longest := _longest(network, source):
            _remember(b, source, now, network.shape(source), longest)


def _remember(b: Builder, source: str, now: str, shape: Shape, longest: int) -> None:
    """What a source sent in the last steps, this one included."""
    first = b.op("Unsqueeze", [now, b.shape((1,))], b.name("newest", source))
    if longest == 1:
        b.op("Identity", [first], b.name("past", source))
        return
    old = b.name("past_in", source)
    ends = [b.shape((n,)) for n in (0, longest - 1, 1)]
    kept = b.op("Slice", [old, *ends], b.name("kept_past", source))
    b.op("Concat", [first, kept], b.name("past", source), axis=1)


def _or(b: Builder, population: Population, a: str, network: IntegerNetwork) -> str:
    """u = a, v = 0; fires where anything arrived."""
    state, name = state_type(network), population.name
    fires = b.op("Greater", [a, b.number(0)], b.name("fires", name))
    v = b.op("Mul", [a, b.number(0)], b.name("wide_v", name))
    b.cast(a, state, b.name("u", name))
    b.cast(v, state, b.name("v", name))
    return b.cast(fires, np.uint8, b.name("spikes", name))


def _lif(b: Builder, population: Population, a: str, network: IntegerNetwork) -> str:
    """One step of LIF neurons, as at the head of ``hw_sim/reference.py``; ``a`` is a << 6."""
    name, limit, neurons = population.name, chips.of(network).state_limit, population.neurons
    old_u = b.cast(b.name("u_in", name), np.int64, b.name("old_u", name))
    old_v = b.cast(b.name("v_in", name), np.int64, b.name("old_v", name))
    kept = _decay(b, old_u, np.asarray(neurons.du) + 1, name, "kept_u")
    u = b.op("Add", [kept, a], b.name("sum_u", name))
    if limit is not None:
        u = _wrap_once(b, _wrap32(b, u, name, "u"), name, limit)
    bias = b.constant(b.name("bias", name), neurons.bias)
    kept = _decay(b, old_v, np.asarray(neurons.dv), name, "kept_v")
    v = b.op("Add", [kept, u], b.name("driven_v", name))
    v = b.op("Add", [v, bias], b.name("sum_v", name))
    if limit is not None:
        ends = [b.number(1 - limit), b.number(limit - 1)]
        v = b.op("Clip", [_wrap32(b, v, name, "v"), *ends], b.name("clipped_v", name))
    vth = b.constant(b.name("vth", name), neurons.vth.astype(np.int64) << FRACTION_BITS)
    fires = b.op("Greater", [v, vth], b.name("fires", name))
    reset = b.number(0)
    if neurons.reset == "subtract":
        reset = b.op("Sub", [v, vth], b.name("reset_v", name))
    v = b.op("Where", [fires, reset, v], b.name("after_v", name))
    b.cast(u, state_type(network), b.name("u", name))
    b.cast(v, state_type(network), b.name("v", name))
    return b.cast(fires, np.uint8, b.name("spikes", name))


def _decay(b: Builder, x: str, constant: IntArray, layer: str, kind: str) -> str:
    """x * (4096 - constant) / 4096. ONNX divides integers toward zero, as Loihi does."""
    if constant.ndim:
        keeps = b.constant(b.name(f"share_{kind}", layer), DECAY_ONE - constant.astype(np.int64))
    else:
        keeps = b.number(DECAY_ONE - int(constant))
    scaled = b.op("Mul", [x, keeps], b.name(f"scaled_{kind}", layer))
    return b.op("Div", [scaled, b.number(DECAY_ONE)], b.name(kind, layer))


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

    ``step`` adds the nodes of a time step and gives the name of its spikes: of (graph, population, name of
    a << 6, network). ``remembers`` tells whether u and v go from step to step; ``fields`` of the neurons
    are carried.
    """

    step: Callable[[Builder, Any, str, IntegerNetwork], str]
    remembers: bool
    fields: frozenset[str] = kinds.FIELDS


POPULATIONS: dict[str, Form] = {"lif": Form(_lif, True), "or": Form(_or, False)}
