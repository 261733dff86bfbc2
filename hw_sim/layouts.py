"""Memory layouts of the compiled engine: populations, and synapses as the kernels read them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stl_deploy.hw_sim import kernels
from stl_deploy.hw_sim.compiled import LANES
from stl_deploy.ir.slices import Weights
from stl_deploy.ir.synapses import Conv, Dense, Shape

Int64 = NDArray[np.int64]

# A tile of a linear layer is read for all samples of a task before the next one; it fits into a
# first-level cache. INPUTS weights of -128 are more than -2^15.
BLOCK = 128  # outputs
INPUTS = 255


def memory_shape(shape: Shape) -> Shape:
    """The shape of a population in memory: (C, H, W) lies as (H, W, C)."""
    return (*shape[1:], shape[0]) if len(shape) == 3 else shape


def memory_order(values: NDArray[Any], shape: Shape) -> NDArray[Any]:
    """Values of the neurons of ``shape``, flat, in the order in which they lie in memory."""
    values = values.reshape(shape)
    return np.ascontiguousarray(np.moveaxis(values, 0, -1) if len(shape) == 3 else values).ravel()


@dataclass(frozen=True)
class Layout:
    """Synapses as the kernels read them, and the pieces in which a block's accumulators lie.

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
    neurons: int

    @property
    def sum_type(self) -> type[np.int16 | np.int32]:
        """What the sums of binary inputs of a phase fit into."""
        return np.int16 if self.weights.dtype == np.int8 else np.int32

    @property
    def phases(self) -> int:
        """How many sums of each accumulator are added up at the end."""
        return len(self.wiring.phases) - 1

    @cached_property
    def pieces(self) -> kernels.Pieces:
        """The pieces, of a population that ends with the last."""
        ends = np.append(self.blocks, self.neurons)
        length = np.diff(self.first, append=self.neurons)
        return kernels.Pieces(
            np.searchsorted(self.first, ends).astype(np.int64), self.first, length, self.at
        )


def dense(synapses: Dense, input_shape: Shape, shape: Shape, binary: bool) -> Layout | None:
    """One pixel with all inputs as channels, and one run of weights for each block of outputs."""
    outputs, inputs = synapses.weight.shape
    if math.prod(shape) != outputs or math.prod(input_shape) != inputs:
        return None
    in_order = synapses.weight
    if len(shape) == 3:
        in_order = in_order[memory_order(np.arange(outputs), shape)]
    starts = np.arange(0, outputs, BLOCK)
    run = _padded(min(BLOCK, outputs))
    weights = np.zeros((len(starts), inputs, run), synapses.weight.dtype)
    for part, start in zip(weights, starts, strict=True):
        rows = in_order[start : start + BLOCK]
        target = part[:, : len(rows)].reshape(*memory_shape(input_shape), len(rows))
        source = rows.reshape(len(rows), *input_shape)
        channel = 1 if len(input_shape) == 3 else 0
        target[:] = np.moveaxis(np.moveaxis(source, channel, -1) if channel else source, 0, -1)
    one = [[(0, 0)]]
    narrow = binary and weights.dtype == np.int8
    phases = _linear_phases(weights) if narrow else np.array([0, inputs])
    return Layout(
        weights=weights.reshape(-1),
        wiring=_wiring(one, one, np.zeros(inputs), (1, 1, run), phases, grouped=False),
        pixels=(1, 1),
        first=starts,
        at=np.zeros_like(starts),
        blocks=starts,
        accumulators=run,
        neurons=outputs,
    )


def convolution(conv: Conv, input_shape: Shape, shape: Shape, binary: bool) -> Layout | None:
    """Runs of a whole kernel row where its outputs lie side by side, else of one tap and group.

    A whole row needs accumulators for outputs left and right of the plane too; nobody reads those.
    """
    if len(input_shape) != 3 or len(shape) != 3:
        return None
    (channels, *plane), (outputs, height, width) = input_shape, shape
    kh, kw = conv.weight.shape[2:]
    geometry = list(zip(plane, conv.padding, conv.stride, conv.dilation, (kh, kw), strict=True))
    expected = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, p, s, d, k in geometry]
    weights = conv.weight
    if (outputs, height, width) != (len(weights), *expected):
        return None
    if channels != weights.shape[1] * conv.groups or outputs % conv.groups:
        return None
    narrow = binary and weights.dtype == np.int8
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
    return Layout(
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
        neurons=height * width * outputs,
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
        math.prod(runs),
        runs[2],
        grouped,
        phases.astype(np.int64),
    )


def _padded(run: int) -> int:
    return -(-run // LANES) * LANES


# By the kind of synapses. A function takes synapses of that kind, the shapes of the populations before and
# behind them, and whether inputs are 0 or 1; it returns None where the kernels cannot run them.
LAYOUTS: dict[str, Callable[[Any, Shape, Shape, bool], Layout | None]] = {
    "conv": convolution,
    "dense": dense,
}
