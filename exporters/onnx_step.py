"""The integer network in ONNX: one step of it, and that step in a Scan over time.

Every line of ``hw_sim/reference.py`` in integers (docs/onnx.md has the table). Sums of weights are
ConvInteger or MatMulInteger of 8 bit inputs and weights, in int32; all behind them is int64, where
nothing here can overflow (``problems``), with the chip's wraps and limits written out. State is int32
where the chip has registers, int64 on chip ``ideal``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from stl_deploy import chip as chips
from stl_deploy.errors import Problem
from stl_deploy.exporters.onnx_graph import Builder
from stl_deploy.network import (
    Conv,
    Dense,
    IntArray,
    IntegerNetwork,
    Layer,
    LifLayer,
    OrPool,
    Shape,
    Sparse,
    row_sums,
)

Slice = tuple[NDArray[np.int8], int]
State = tuple[str, type[np.generic], Shape]
INT32_SUM_LIMIT = 1 << 31
# |x| * 4096 has to fit int64 in a decay.
STATE_LIMIT = 1 << 50
INPUT_LEVELS_MAX = 255
# A file of protocol buffers holds 2 GiB; the rest is for names and nodes.
FILE_BYTES_MAX = (1 << 31) - (1 << 24)


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
    by_time = _swapped(b, "input", "input_by_time", network.input_shape)
    kept = [f"{name}_by_time" for name, _, _ in results]
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
        _swapped(b, f"{name}_by_time", name, shape)
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
    return np.int64 if chips.load(network.chip).state_limit is None else np.int32


def _step(b: Builder, network: IntegerNetwork) -> None:
    """Layer by layer from ``input`` to the spikes, u and v of the last."""
    spikes = b.name("input")
    for layer in network.layers:
        levels = network.input_limit(layer)
        if isinstance(layer, OrPool):
            spikes = _or_pool(b, layer, spikes, state_type(network))
        else:
            spikes = _lif(b, layer, spikes, levels, network)


def _or_pool(b: Builder, layer: OrPool, inputs: str, state: type[np.generic]) -> str:
    """u = count << 6 of the window, v = 0; fires where anything in it did."""
    name, channels = layer.name, layer.shape[0]
    ones = b.constant(b.name("ones", name), np.ones((channels, 1, *layer.kernel), np.uint8))
    window = {"kernel_shape": layer.kernel, "strides": layer.kernel, "group": channels}
    count = b.op("ConvInteger", [inputs, ones], b.name("count", name), **window)
    fires = b.op("Greater", [count, b.number(0, np.int32)], b.name("fires", name))
    wide = b.cast(count, np.int64, b.name("wide_count", name))
    u = b.op("Mul", [wide, b.number(64)], b.name("wide_u", name))
    v = b.op("Mul", [wide, b.number(0)], b.name("wide_v", name))
    b.cast(u, state, b.name("u", name))
    b.cast(v, state, b.name("v", name))
    return b.cast(fires, np.uint8, b.name("spikes", name))


def _lif(b: Builder, layer: LifLayer, inputs: str, levels: int, network: IntegerNetwork) -> str:
    """One step of LIF neurons, as at the head of ``hw_sim/reference.py``."""
    name, limit = layer.name, chips.load(network.chip).state_limit
    a = _accumulate(b, layer, inputs, levels)
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
    vth = b.constant(b.name("vth", name), layer.vth.astype(np.int64) << 6)
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
    scaled = b.op("Mul", [x, b.number(4096 - constant)], f"scaled:{name}")
    return b.op("Div", [scaled, b.number(4096)], name)


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


# Weighted sums


def _accumulate(b: Builder, layer: LifLayer, inputs: str, levels: int) -> str:
    """a << 6 [N, *shape] in int64: what the inputs, and the layer's own spikes, add up to."""
    total = _weighted(b, layer, inputs, levels)
    if layer.recurrent is not None:
        own = b.name("spikes_in", layer.name)
        heard = _dense(b, layer.recurrent, own, 1, layer, "own_")
        total = b.op("Add", [total, heard], b.name("both", layer.name))
    return b.op("Mul", [total, b.number(1 << (layer.exp + 6))], b.name("a", layer.name))


def _weighted(b: Builder, layer: LifLayer, inputs: str, levels: int) -> str:
    """The sum of w * s_in [N, *shape] in int64."""
    match layer.synapses:
        case Dense() as dense:
            return _dense(b, dense, inputs, levels, layer, "")
        case Sparse() as sparse:
            return _sparse(b, sparse, inputs, levels, layer)
        case Conv() as conv:
            return _conv(b, conv, inputs, levels, layer)
    raise TypeError(f"unknown synapses {layer.synapses!r}")


def _conv(b: Builder, conv: Conv, inputs: str, levels: int, layer: LifLayer) -> str:
    geometry = {
        "kernel_shape": conv.weight.shape[2:],
        "strides": conv.stride,
        # ONNX lists where every axis begins, then where every axis ends.
        "pads": (*conv.padding, *conv.padding),
        "dilations": conv.dilation,
        "group": conv.groups,
    }
    # Most versions of onnxruntime convolve with uint8 alone: 128 stands for 0.
    zeros = [b.number(0, np.uint8), b.number(128, np.uint8)]
    sums = []
    for i, (part, shift) in enumerate(slices(conv.weight, levels)):
        unsigned = (part.astype(np.int16) + 128).astype(np.uint8)
        weight = b.constant(b.name(f"weight.{i}", layer.name), unsigned)
        name = b.name(f"sum.{i}", layer.name)
        sums.append((b.op("ConvInteger", [inputs, weight, *zeros], name, **geometry), shift))
    return _added(b, sums, layer.name, "")


def _dense(b: Builder, dense: Dense, inputs: str, levels: int, layer: LifLayer, prefix: str) -> str:
    flat = (0, dense.weight.shape[1])
    rows = b.op("Reshape", [inputs, b.shape(flat)], b.name(f"{prefix}rows", layer.name))
    sums = _products(b, rows, dense.weight.T, levels, layer.name, prefix)
    total = _added(b, sums, layer.name, prefix)
    shape = b.shape((0, *layer.shape))
    return b.op("Reshape", [total, shape], b.name(f"{prefix}shaped", layer.name))


def _sparse(b: Builder, sparse: Sparse, inputs: str, levels: int, layer: LifLayer) -> str:
    """Neurons at one place of the plane hear the same inputs: a small matrix for each place."""
    name, groups = layer.name, _groups(layer, sparse)
    index, weight = blocks(sparse, layer.shape[0], groups)
    places, outputs = len(index) // groups, weight.shape[2]
    rows = b.op("Reshape", [inputs, b.shape((0, sparse.size[1]))], b.name("rows", name))
    heard = b.op(
        "Gather", [rows, b.constant(b.name("index", name), index)], b.name("heard", name), axis=1
    )
    heard = b.op("Transpose", [heard], b.name("by_place", name), perm=(1, 0, 2))
    sums = _products(b, heard, weight, levels, name, "")
    total = _added(b, sums, name, "")
    total = b.op("Transpose", [total], b.name("by_sample", name), perm=(1, 0, 2))
    split = b.shape((0, groups, places, outputs))
    total = b.op("Reshape", [total, split], b.name("split", name))
    total = b.op("Transpose", [total], b.name("by_channel", name), perm=(0, 1, 3, 2))
    return b.op("Reshape", [total, b.shape((0, *layer.shape))], b.name("shaped", name))


def _products(
    b: Builder, rows: str, weight: IntArray, levels: int, layer: str, prefix: str
) -> list[tuple[str, int]]:
    """rows @ weight in int32, a slice of the weights at a time, each with its shift."""
    sums = []
    for i, (part, shift) in enumerate(slices(weight, levels)):
        constant = b.constant(b.name(f"{prefix}weight.{i}", layer), part)
        name = b.name(f"{prefix}sum.{i}", layer)
        sums.append((b.op("MatMulInteger", [rows, constant], name), shift))
    return sums


def _added(b: Builder, sums: list[tuple[str, int]], layer: str, prefix: str) -> str:
    """The slices' sums, each shifted, in int64."""
    total = ""
    for i, (part, shift) in enumerate(sums):
        part = b.cast(part, np.int64, b.name(f"{prefix}wide.{i}", layer))
        if shift:
            part = b.op("Mul", [part, b.number(1 << shift)], b.name(f"{prefix}shifted.{i}", layer))
        total = b.op("Add", [total, part], b.name(f"{prefix}total.{i}", layer)) if total else part
    return total


def slices(weight: IntArray, levels: int) -> list[Slice]:
    """``weight`` as a sum of int8 arrays, each shifted left; all zeros are one slice.

    x86 processors without VNNI add the products of two neighbours in 16 bits and saturate
    (onnxruntime's kernels for AVX2, uint8 times int8). So that no two products of inputs 0..``levels``
    reach 2^15, a slice has 8 bits for inputs up to 127 and 7 bits for larger ones.
    """
    bits = 8 if levels <= 127 else 7
    half, rest = 1 << (bits - 1), weight.astype(np.int64)
    found: list[Slice] = []
    while not found or rest.any():
        part = ((rest + half) & (2 * half - 1)) - half
        found.append((part.astype(np.int8), bits * len(found)))
        rest = (rest - part) >> bits
    return found


def _groups(layer: LifLayer, sparse: Sparse) -> int:
    """Groups of the convolution that ``sparse`` was folded from; any divisor of the channels is exact."""
    groups = sparse.kernel.groups
    return groups if layer.shape[0] % groups == 0 else 1


@dataclass(frozen=True, eq=False)
class _Blocks:
    """Which block of neurons each connection belongs to, and what the blocks hear.

    A block is the channels of a group at one place of the plane. ``pairs`` are (block, input), sorted,
    each once; ``which`` is that of each connection; the n-th input that a block hears has ``position`` n.
    """

    count: int
    outputs: int
    owner: NDArray[np.int64]
    heard: NDArray[np.int64]
    position: NDArray[np.int64]
    which: NDArray[np.int64]
    slot: NDArray[np.int64]

    @property
    def most(self) -> int:
        """How many inputs the block hears that hears most."""
        return int(self.position.max(initial=0)) + 1


def _blocks(sparse: Sparse, channels: int, groups: int) -> _Blocks:
    neurons, inputs = sparse.size
    places, outputs = neurons // channels, channels // groups
    channel, place = np.divmod(sparse.row.astype(np.int64), places)
    block = channel // outputs * places + place
    pairs, which = np.unique(block * inputs + sparse.column, return_inverse=True)
    owner, heard = np.divmod(pairs, inputs)
    first = np.searchsorted(owner, np.arange(groups * places))
    position = np.arange(len(pairs)) - first[owner]
    return _Blocks(groups * places, outputs, owner, heard, position, which, channel % outputs)


def blocks(sparse: Sparse, channels: int, groups: int) -> tuple[NDArray[np.int32], IntArray]:
    """Single connections as matrices, one for the channels of a group at a place of the plane.

    Returns (index, weight): int32 [groups * places, K], the inputs that a block hears, and the weights
    [groups * places, K, channels / groups], zero where a neuron does not hear one, and where a block
    hears less than K.
    """
    cut = _blocks(sparse, channels, groups)
    index = np.zeros((cut.count, cut.most), np.int32)
    index[cut.owner, cut.position] = cut.heard
    weight = np.zeros((cut.count, cut.most, cut.outputs), sparse.weight.dtype)
    weight[cut.owner[cut.which], cut.position[cut.which], cut.slot] = sparse.weight
    return index, weight


# What cannot be carried


def problems(network: IntegerNetwork) -> list[Problem]:
    """What ONNX's integers cannot carry, the whole network at once."""
    found: list[Problem] = []
    if network.input_levels > INPUT_LEVELS_MAX:
        what = f"input levels {network.input_levels}; the input is uint8, 0..{INPUT_LEVELS_MAX}"
        found.append(Problem("input", what, "record the input with fewer levels"))
    last = network.layers[-1]
    readout = network.readout
    if readout.classes * readout.population != last.neurons:
        what = f"{last.neurons} neurons for {readout.classes} classes of {readout.population}"
        found.append(Problem(last.name, what, "correct the readout"))
    for layer in network.lif_layers:
        found += _layer_problems(layer, network)
    if not found and (size := sum(map(_bytes, network.layers))) > FILE_BYTES_MAX:
        what = f"weights and thresholds take {size:,} bytes; an ONNX file holds {FILE_BYTES_MAX:,}"
        found.append(Problem("onnx", what, "use --target nir, which has no such limit"))
    return found


def _layer_problems(layer: LifLayer, network: IntegerNetwork) -> Iterator[Problem]:
    name = layer.name
    if not isinstance(layer.synapses, Conv | Dense | Sparse):
        kind = type(layer.synapses).__name__
        yield Problem(
            name, f"synapses {kind} are not known to the ONNX exporter", "use --target nir"
        )
        return
    if layer.reset not in ("zero", "subtract"):
        yield Problem(name, f"reset {layer.reset!r} is not zero or subtract", "use one of these")
    for what, value, low, high in (
        ("current decay du", layer.du, -1, 4095),
        ("voltage decay dv", layer.dv, 0, 4096),
        ("weight exponent", layer.exp, 0, 7),
    ):
        if not low <= value <= high:
            yield Problem(name, f"{what} {value} is outside {low}..{high}", "quantize again")
            return
    levels, fewer = network.input_limit(layer), "quantize again with fewer --weight-bits"
    worst = _largest_part(layer.synapses, levels)
    if layer.recurrent is not None:
        worst = max(worst, _largest_part(layer.recurrent, 1))
    if worst >= INT32_SUM_LIMIT:
        yield Problem(name, f"a sum can reach {worst}; ONNX adds products in 32 bits", fewer)
    elif (top := _largest_state(layer, levels, network)) >= STATE_LIMIT:
        what = f"u or v can reach {top}; the decay is exact below {STATE_LIMIT}"
        yield Problem(name, what, "quantize for chip loihi2")


def _largest_part(synapses: Conv | Dense | Sparse, levels: int) -> int:
    """Largest |sum| of a slice, for inputs 0..``levels``."""
    parts = (abs(part.astype(np.int64)) for part, _ in slices(synapses.weight, levels))
    return levels * max(int(row_sums(synapses, part).max()) for part in parts)


def _largest_state(layer: LifLayer, levels: int, network: IntegerNetwork) -> int:
    """Largest |u| or |v| within the network's time, 0 where registers bound them."""
    if chips.load(network.chip).state_limit is not None:
        return 0
    total = levels * int(
        row_sums(layer.synapses, abs(layer.synapses.weight.astype(np.int64))).max()
    )
    if layer.recurrent is not None:
        total += int(abs(layer.recurrent.weight.astype(np.int64)).sum(axis=1).max())
    a, bias, u, v, top = total << (layer.exp + 6), int(abs(layer.bias).max()), 0, 0, 0
    for _ in range(network.timesteps):
        u = (u * (4095 - layer.du) >> 12) + a
        v = (v * (4096 - layer.dv) >> 12) + u + bias
        top = max(top, u, v)
    return top


def _bytes(layer: Layer) -> int:
    """Upper bound of what a file takes for the layer."""
    if isinstance(layer, OrPool):
        return layer.shape[0] * math.prod(layer.kernel)
    synapses, size = layer.synapses, layer.synapses.weight.size
    if isinstance(synapses, Sparse):
        cut = _blocks(synapses, layer.shape[0], _groups(layer, synapses))
        size = cut.count * cut.most * (4 + cut.outputs)
    if layer.recurrent is not None:
        size += layer.recurrent.weight.size
    slices_at_most = synapses.weight.dtype.itemsize + 1
    return 16 * layer.neurons + slices_at_most * size
