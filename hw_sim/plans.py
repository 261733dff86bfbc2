"""How the compiled engine runs each layer: memory layouts, and which kernel takes it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csc_array

from stl_deploy.chips import bounds
from stl_deploy.chips import facts as chips
from stl_deploy.hw_sim import kernels, lanes
from stl_deploy.hw_sim.account.windows import Windows
from stl_deploy.hw_sim.compiled import LANES
from stl_deploy.ir.network import IntegerNetwork, Layer, LifLayer, OrPool
from stl_deploy.ir.slices import Weights
from stl_deploy.ir.synapses import Conv, Dense, IntArray, Shape, Sparse

Bytes = NDArray[np.uint8]
Int64 = NDArray[np.int64]

# A tile of a linear layer is read for all samples of a task before the next one; it fits into a
# first-level cache. INPUTS weights of -128 are more than -2^15.
BLOCK = 128  # outputs
INPUTS = 255
SUMS = 256 << 10  # bytes of sums that a task keeps


class Plan(Protocol):
    """How to run one layer, on inputs uint8 [N, T, ...] in memory order."""

    def run(self, x: Bytes, did: kernels.Did) -> None:
        """Write what the layer does on ``x``; ``did`` is zero before."""


# Memory order: channels innermost


def memory_shape(shape: Shape) -> Shape:
    """The shape of a population in memory: (C, H, W) lies as (H, W, C)."""
    return (*shape[1:], shape[0]) if len(shape) == 3 else shape


def memory_order(values: NDArray[Any], shape: Shape) -> NDArray[Any]:
    """Values of the neurons of ``shape``, flat, in the order in which they lie in memory."""
    values = values.reshape(shape)
    return np.ascontiguousarray(np.moveaxis(values, 0, -1) if len(shape) == 3 else values).ravel()


# Plans


def core_count(cores: IntArray | None) -> int:
    """How many cores ``cores`` names; one where none are named."""
    return 1 if cores is None else int(cores.max()) + 1


@dataclass(frozen=True)
class _Runs:
    """Runs of neurons that lie together in memory and on one core."""

    first: Int64
    length: Int64
    core: Int64

    @classmethod
    def of(cls, layer: Layer, starts: Int64, cores: IntArray | None) -> _Runs:
        """Runs that begin at ``starts`` and wherever the core changes."""
        core = np.zeros(layer.neurons, np.int64)
        if cores is not None:
            core = memory_order(np.asarray(cores, np.int64), layer.shape)
        first = np.union1d(starts, np.flatnonzero(np.diff(core)) + 1)
        return cls(first, np.diff(first, append=layer.neurons), core[first])


@dataclass(frozen=True)
class PoolPlan:
    """An OR pool."""

    layer: OrPool
    runs: _Runs

    @classmethod
    def of(cls, layer: OrPool, cores: IntArray | None) -> PoolPlan | None:
        """None where the windows do not tile the input."""
        c, h, w = layer.shape
        if layer.input_shape != (c, h * layer.kernel[0], w * layer.kernel[1]):
            return None
        return cls(layer, _Runs.of(layer, np.zeros(1, np.int64), cores))

    def run(self, x: Bytes, did: kernels.Did) -> None:
        """Pool, and count the windows that fire."""
        rows = x.shape[0] * x.shape[1]
        out = did.spikes.reshape(rows, *memory_shape(self.layer.shape))
        kernels.or_pool(x.reshape(rows, x.shape[2], -1), out)
        runs = self.runs
        lanes.count_rows(
            did.spikes.reshape(rows, -1),
            runs.first,
            runs.length,
            runs.core,
            did.active.reshape(rows, -1),
        )


@dataclass(frozen=True)
class _Synapses:
    """Weights as the kernels read them, and the pieces in which a block's accumulators lie.

    The neurons from ``first[i]`` on have their accumulators from ``at[i]`` on; block b begins at
    neuron ``blocks[b]``.
    """

    weights: Weights
    wiring: kernels.Wiring
    pixels: tuple[int, int]
    first: Int64
    at: Int64
    blocks: Int64
    accumulators: int

    @property
    def sum_type(self) -> type[np.int16 | np.int32]:
        """What the sums of binary inputs of a phase fit into."""
        return np.int16 if self.weights.dtype == np.int8 else np.int32

    @property
    def phases(self) -> int:
        """How many sums of each accumulator are added up at the end."""
        return len(self.wiring.phases) - 1


@dataclass(frozen=True)
class LifPlan:
    """A convolution or linear layer with its neurons.

    ``busy`` are the neurons of each core where all are active in every step, else None.
    """

    synapses: _Synapses
    neurons: kernels.Neurons
    plain: bool
    graded: bool
    busy: Int64 | None

    @classmethod
    def of(
        cls,
        network: IntegerNetwork,
        layer: LifLayer,
        steps: int,
        states: bool,
        cores: IntArray | None,
    ) -> LifPlan | None:
        """None where sums of 32 bits are not known to hold every input's, or shapes do not match."""
        levels = network.input_limit(layer)
        if not (fits_32_bits(layer, levels) and 0 <= layer.exp < 64):
            return None
        synapses = _synapses(layer, levels)
        if synapses is None:
            return None
        plain = not states and in_lanes(synapses.first, layer)
        plain = plain and takes_the_plain_step(network, layer, steps)
        neurons, busy = _neurons(
            network, layer, (synapses.first, synapses.at, synapses.blocks), plain, cores
        )
        return cls(synapses, neurons, plain, levels > 1, busy)

    def run(self, x: Bytes, did: kernels.Did) -> None:
        """Run the samples of ``x`` from a state of zero."""
        mine = self.synapses
        rows, columns = mine.pixels
        size = mine.phases, mine.accumulators
        kind = np.int32 if self.graded else mine.sum_type
        together = _together(x.shape[0], x.shape[1], math.prod(size) * np.dtype(kind).itemsize)
        if self.busy is not None:
            did.active[:] = self.busy
        synapses = (
            x.reshape(*x.shape[:2], rows * columns, -1),
            np.empty(x.size + 1, np.uint8) if self.graded else None,
            mine.weights,
            mine.wiring,
            self.neurons,
            np.zeros((together, *size), kind),
        )
        bias = self.neurons.bias
        if self.plain:
            marks, v = np.zeros((together, len(bias)), np.uint8), np.stack([bias, bias])
            kernels.run_plain(*synapses, marks, v, did)
        else:
            sums, active = np.zeros(mine.accumulators, np.int32), np.zeros(len(bias), np.uint8)
            kernels.run_wide(*synapses, sums, active, np.zeros_like(bias), np.zeros_like(bias), did)


def _together(samples: int, steps: int, size: int) -> int:
    """Steps whose sums, ``size`` bytes each, are kept at a time: of whole samples, or of a part of one."""
    fit = max(1, SUMS // size)
    return fit if fit < steps else min(samples, fit // steps) * steps


@dataclass(frozen=True)
class RecurrentPlan:
    """A linear layer that hears itself: its plan without that, and its own weights."""

    layer: LifPlan
    own: _Synapses

    @classmethod
    def of(
        cls, network: IntegerNetwork, layer: LifLayer, steps: int, cores: IntArray | None
    ) -> RecurrentPlan | None:
        """None where the reference has to do it, see ``LifPlan``."""
        assert layer.recurrent is not None  # by the caller's match
        alone = LifPlan.of(network, layer, steps, states=True, cores=cores)
        own = _dense(replace(layer, input_shape=layer.shape), layer.recurrent, levels=1)
        return None if alone is None or own is None else cls(alone, own)

    def run(self, x: Bytes, did: kernels.Did) -> None:
        """Run the samples of ``x`` from a state of zero."""
        mine, neurons = self.layer.synapses, self.layer.neurons
        size = len(mine.blocks), x.shape[0] * x.shape[1], mine.accumulators
        if self.layer.busy is not None:
            did.active[:] = self.layer.busy
        kernels.run_recurrent(
            x.reshape(*x.shape[:2], 1, -1),
            np.empty(x.size + 1, np.uint8) if self.layer.graded else None,
            mine.weights,
            mine.wiring,
            self.own.weights,
            self.own.wiring,
            neurons,
            np.zeros(
                (1, mine.phases, mine.accumulators),
                np.int32 if self.layer.graded else mine.sum_type,
            ),
            np.zeros((self.own.phases, self.own.accumulators), self.own.sum_type),
            np.empty(size, np.int32),
            np.empty(self.own.accumulators, np.int32),
            np.zeros(len(neurons.bias), np.uint8),
            np.zeros_like(neurons.bias),
            np.zeros_like(neurons.bias),
            did,
        )


@dataclass(frozen=True)
class SinglePlan:
    """Single connections: each input has its own weights to its own neurons."""

    weights: Windows
    neurons: kernels.Neurons
    plain: bool
    busy: Int64 | None

    @classmethod
    def of(
        cls,
        network: IntegerNetwork,
        layer: LifLayer,
        synapses: Sparse,
        steps: int,
        states: bool,
        cores: IntArray | None,
    ) -> SinglePlan | None:
        """None where inputs are graded, or sums of 32 bits are not known to hold every input's."""
        fits = synapses.size[1] * _most(synapses.weight) < 1 << 31
        if not fits or network.input_limit(layer) > 1 or not 0 <= layer.exp < 64:
            return None
        start = np.zeros(1, np.int64)
        plain = not states and in_lanes(start, layer)
        plain = plain and takes_the_plain_step(network, layer, steps)
        neurons, busy = _neurons(network, layer, (start, start, start), plain, cores)
        after, before = (
            memory_order(np.arange(size), shape)
            for size, shape in zip(synapses.size, (layer.shape, layer.input_shape), strict=True)
        )
        matrix = csc_array(synapses.matrix[after][:, before])
        matrix.sort_indices()
        return cls(Windows.of(matrix), neurons, plain, busy)

    def run(self, x: Bytes, did: kernels.Did) -> None:
        """Run the samples of ``x`` from a state of zero."""
        if self.busy is not None:
            did.active[:] = self.busy
        sums = self.weights.add(x.reshape(x.shape[0] * x.shape[1], -1))
        sums, bias = sums.reshape(*x.shape[:2], 1, -1), self.neurons.bias
        if self.plain:
            marks, v = np.zeros((x.shape[1], len(bias)), np.uint8), np.stack([bias, bias])
            kernels.sums_plain(sums, self.neurons, marks, v, did)
        else:
            active, u, v = np.zeros(len(bias), np.uint8), np.zeros_like(bias), np.zeros_like(bias)
            kernels.sums_wide(sums, self.neurons, active, u, v, did)


def _neurons(
    network: IntegerNetwork,
    layer: LifLayer,
    pieces: tuple[Int64, Int64, Int64],
    plain: bool,
    cores: IntArray | None,
) -> tuple[kernels.Neurons, Int64 | None]:
    """The neurons in pieces (first neurons, first accumulators, first neurons of blocks).

    Also the neurons of each core where all are active in every step, else None.
    """
    (first, at, blocks), chip = pieces, chips.of(network)
    runs = _Runs.of(layer, blocks, cores)
    # A bias keeps a neuron busy in every step: then there is nothing to count.
    busy = np.bincount(runs.core, runs.length).astype(np.int64) if layer.bias.all() else None
    kind = np.int32 if plain else np.int64
    far = np.iinfo(kind)
    threshold = np.clip(layer.vth.astype(np.int64) << 6, far.min, far.max)
    ends = np.append(blocks, layer.neurons)
    limit = chip.accumulator_limit
    neurons = kernels.Neurons(
        bias=_spread(layer.bias, layer).astype(kind),
        threshold=_spread(threshold, layer).astype(kind),
        u_keep=4096 - (layer.du + 1),
        v_keep=4096 - layer.dv,
        exp=layer.exp,
        limit=chip.state_limit or 0,
        too_large=1 << 62 if limit is None else limit,
        subtract=layer.reset == "subtract",
        block_first=np.searchsorted(first, ends).astype(np.int64),
        first=first,
        length=np.diff(first, append=layer.neurons),
        at=at,
        block_run=np.searchsorted(runs.first, ends).astype(np.int64) * (busy is None),
        run_first=runs.first,
        run_length=runs.length,
        run_core=runs.core,
    )
    return neurons, busy


def _spread(values: NDArray[Any], layer: LifLayer) -> NDArray[Any]:
    """One value for each neuron, in memory order."""
    return memory_order(np.broadcast_to(values, layer.shape), layer.shape)


def fits_32_bits(layer: LifLayer, levels: int) -> bool:
    """Whether no sum of inputs 0..``levels``, and no part of one, can pass 32 bits before ``exp``."""
    weight, largest = layer.synapses.weight, 0
    if layer.recurrent is not None:
        if layer.recurrent.weight.dtype != weight.dtype:
            return False
        largest = layer.neurons * _most(layer.recurrent.weight)
    return largest + int(weight[0].size) * levels * _most(weight) < 1 << 31


def _most(weight: Weights) -> int:
    """What no weight of this type exceeds; more than 32 bits hold for types that are not foreseen."""
    return {np.dtype(np.int8): 1 << 7, np.dtype(np.int16): 1 << 15}.get(weight.dtype, 1 << 62)


def in_lanes(first: Int64, layer: LifLayer) -> bool:
    """Whether all pieces of neurons, from ``first`` on, are as many as the plain step takes together."""
    return bool(np.diff(first, append=layer.neurons).min() >= LANES)


def takes_the_plain_step(network: IntegerNetwork, layer: LifLayer, steps: int) -> bool:
    """Whether ``lanes.step`` does all that a layer can need in so many steps."""
    simple = layer.du == 4095 and layer.reset == "zero"
    return simple and never_overflows(network, layer, steps)


def never_overflows(network: IntegerNetwork, layer: LifLayer, steps: int) -> bool:
    """Whether no input of so many steps can bring a register to its limit, or past 32 bits.

    Such a layer neither wraps nor saturates nor counts overflow.
    """
    chip = chips.of(network)
    if not (0 <= layer.du <= 4095 and 0 <= layer.dv <= 4096 and 0 <= layer.exp <= 16):
        return False
    levels = network.input_limit(layer)
    register = 1 << 31 if chip.state_limit is None else min(chip.state_limit, 1 << 31)
    accumulator = register if chip.accumulator_limit is None else chip.accumulator_limit
    worst = _largest(bounds.one_sided_sums(layer, levels))
    if worst >= accumulator or worst << 6 >= register:
        return False
    current = _largest(bounds.current_range(layer, levels, steps))
    voltage = _largest(bounds.voltage_range(layer, levels, steps))
    return max(current, voltage, int(np.abs(layer.bias).max())) < register


def _largest(span: tuple[Int64, Int64]) -> int:
    """The largest magnitude between lower bounds of at most and upper bounds of at least zero."""
    return max(-int(span[0].min()), int(span[1].max()))


def _synapses(layer: LifLayer, levels: int) -> _Synapses | None:
    """The synapses for the kernels, None where shapes are not those of the weights."""
    if isinstance(layer.synapses, Dense):
        return _dense(layer, layer.synapses, levels)
    if isinstance(layer.synapses, Conv):
        return _convolution(layer, layer.synapses, levels)
    return None


def _dense(layer: LifLayer, dense: Dense, levels: int) -> _Synapses | None:
    """One pixel with all inputs as channels, and one run of weights a block of outputs."""
    outputs, inputs = dense.weight.shape
    if layer.shape != (outputs,) or plan_size(layer.input_shape) != inputs:
        return None
    starts = np.arange(0, outputs, BLOCK)
    run = _padded(min(BLOCK, outputs))
    weights = np.zeros((len(starts), inputs, run), dense.weight.dtype)
    for part, start in zip(weights, starts, strict=True):
        rows = dense.weight[start : start + BLOCK]
        target = part[:, : len(rows)].reshape(*memory_shape(layer.input_shape), len(rows))
        source = rows.reshape(len(rows), *layer.input_shape)
        channel = 1 if len(layer.input_shape) == 3 else 0
        target[:] = np.moveaxis(np.moveaxis(source, channel, -1) if channel else source, 0, -1)
    one = [[(0, 0)]]
    narrow = levels == 1 and weights.dtype == np.int8
    phases = _linear_phases(weights) if narrow else np.array([0, inputs])
    return _Synapses(
        weights=weights.reshape(-1),
        wiring=_wiring(one, one, np.zeros(inputs), (1, 1, run), phases, grouped=False),
        pixels=(1, 1),
        first=starts,
        at=np.zeros_like(starts),
        blocks=starts,
        accumulators=run,
    )


def _convolution(layer: LifLayer, conv: Conv, levels: int) -> _Synapses | None:
    """Runs of a whole kernel row where its outputs lie side by side, else of one tap and group.

    A whole row needs accumulators for outputs left and right of the plane too; nobody reads those.
    """
    if len(layer.input_shape) != 3 or len(layer.shape) != 3:
        return None
    (channels, *plane), (outputs, height, width) = layer.input_shape, layer.shape
    kh, kw = conv.weight.shape[2:]
    geometry = list(zip(plane, conv.padding, conv.stride, conv.dilation, (kh, kw), strict=True))
    expected = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, p, s, d, k in geometry]
    weights = conv.weight
    if (outputs, height, width) != (len(weights), *expected):
        return None
    if channels != weights.shape[1] * conv.groups or outputs % conv.groups:
        return None
    narrow = levels == 1 and weights.dtype == np.int8
    phases = _phases(conv) if narrow else np.array([0, channels])
    if phases is None:
        return None
    rows = [_taps(y, height, *geometry[0][1:]) for y in range(plane[0])]
    per_group = outputs // conv.groups
    if conv.groups == conv.stride[1] == conv.dilation[1] == 1:
        padding = conv.padding[1]
        left = max(0, kw - 1 - padding)
        row_width = max(left + width, plane[1] + padding + left)
        columns = [[(0, x + padding - (kw - 1) + left)] for x in range(plane[1])]
        # [C, kh, 1, kw * O], the last column of the kernel first: it meets the leftmost output.
        runs = weights[:, :, :, ::-1].transpose(1, 2, 3, 0).reshape(channels, kh, 1, -1)
    else:
        left, row_width = 0, width
        columns = [_taps(x, width, *geometry[1][1:]) for x in range(plane[1])]
        grouped = weights.reshape(conv.groups, per_group, -1, kh, kw)
        runs = grouped.transpose(0, 2, 3, 4, 1).reshape(channels, kh, kw, per_group)
    run = _padded(runs.shape[3])
    padded = np.zeros((*runs.shape[:3], run), weights.dtype)
    padded[..., : runs.shape[3]] = runs
    return _Synapses(
        weights=padded.reshape(-1),
        wiring=_wiring(
            [[(i, y * row_width * outputs) for i, y in taps] for taps in rows],
            [[(j, x * outputs) for j, x in taps] for taps in columns],
            np.arange(channels) // weights.shape[1] * per_group,
            padded.shape[1:],
            phases,
            grouped=conv.groups > 1,
        ),
        pixels=(plane[0], plane[1]),
        first=np.arange(height) * width * outputs,
        at=(np.arange(height) * row_width + left) * outputs,
        blocks=np.zeros(1, np.int64),
        # The padding of the last run adds zeros behind the last output.
        accumulators=height * row_width * outputs + run,
    )


def _linear_phases(weights: Weights) -> Int64:
    """Bounds of inputs which, if binary, add up to less than 2^15, for weights [blocks, inputs, outputs].

    INPUTS of them do so whatever the weights.
    """
    inputs = weights.shape[1]
    units = np.arange(0, inputs, INPUTS)
    sides = np.stack(
        [
            np.abs(np.add.reduceat(limit(weights, 0), units, axis=1, dtype=np.int32))
            for limit in (np.maximum, np.minimum)
        ]
    )
    found, total = [0], np.zeros_like(sides[:, :, 0])
    for unit, start in enumerate(units):
        part = sides[:, :, unit]
        if (total + part).max() >= 1 << 15:
            found.append(int(start))
            total[:] = 0
        total += part
    return np.array([*found, inputs])


def _phases(conv: Conv) -> Int64 | None:
    """Bounds of channels whose binary inputs add up to less than 2^15; None where one's alone do not.

    A sum of any of the weights lies between that of the negative and that of the positive ones.
    """
    weights = conv.weight.astype(np.int64)
    size = conv.weight.shape[1]
    sides = np.stack([np.maximum(weights, 0), np.maximum(-weights, 0)]).sum(axis=(3, 4))
    found, total = [0], np.zeros(sides.shape[:2], np.int64)
    for channel in range(size * conv.groups):
        group = channel // size
        outputs = slice(
            group * len(weights) // conv.groups, (group + 1) * len(weights) // conv.groups
        )
        part = sides[:, outputs, channel % size]
        if part.max() >= 1 << 15:
            return None
        if (total[:, outputs] + part).max() >= 1 << 15:
            found.append(channel)
            total[:] = 0
        total[:, outputs] += part
    return np.array([*found, size * conv.groups])


def _taps(
    position: int, outputs: int, padding: int, stride: int, dilation: int, kernel: int
) -> list[tuple[int, int]]:
    """(tap, output) that an input position meets along one axis."""
    found = []
    for tap in range(kernel):
        output, between = divmod(position + padding - tap * dilation, stride)
        if not between and 0 <= output < outputs:
            found.append((tap, output))
    return found


Taps = list[list[tuple[int, int]]]


def _wiring(
    rows: Taps,
    columns: Taps,
    channel_at: NDArray[Any],
    runs: Shape,
    phases: Int64,
    grouped: bool,
) -> kernels.Wiring:
    """Tables of (tap, accumulator) lists, one a row and one a column of the input.

    ``runs`` is the shape of one channel's weights, [kernel rows, kernel columns, run].
    """

    def table(taps: Taps, size: int) -> tuple[Int64, Int64, Int64]:
        flat = np.array([pair for some in taps for pair in some], np.int64).reshape(-1, 2)
        first = np.cumsum([0, *map(len, taps)]).astype(np.int64)
        return first, np.ascontiguousarray(flat[:, 0] * size), np.ascontiguousarray(flat[:, 1])

    row_first, row_tap, row_at = table(rows, runs[1] * runs[2])
    col_first, col_tap, col_at = table(columns, runs[2])
    return kernels.Wiring(
        row_first,
        row_tap,
        row_at,
        col_first,
        col_tap,
        col_at,
        channel_at.astype(np.int64),
        plan_size(runs),
        runs[2],
        grouped,
        phases.astype(np.int64),
    )


def _padded(run: int) -> int:
    return -(-run // LANES) * LANES


def plan_size(shape: Shape) -> int:
    """How many values an array of ``shape`` holds."""
    return int(np.prod(shape))
