"""Which neurons reach which neurons of a population, and by how many stored synapses.

Neurons are numbered here in the order in which placement deals them out: position by position, row
after row, and at each position channel by channel ([H, W, C] of a population [C, H, W]). Neurons of
one position share their inputs, those of neighbouring positions most of them. Synapses are the
stored, non-zero, in-bounds ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from stl_deploy.ir.synapses import Conv, Dense, Pair, Shape, Synapses

Int = NDArray[np.integer[Any]]
_T = TypeVar("_T", bound=np.generic)


class Wiring(Protocol):
    """The synapses from one source into a population."""

    def counts(self, low: int, high: int) -> Int:
        """How many synapses neurons of the source have to neurons low..high-1; those left out have none."""

    def mark(self, low: int, high: int, reach: NDArray[np.int64]) -> None:
        """Add 1 to ``reach`` (of the source's shape) at each of its neurons with any such synapse."""

    def fan_in(self) -> NDArray[np.int64]:
        """How many synapses each neuron has."""


def of(
    synapses: Synapses, before: Shape, shape: Shape, order: Sequence[int] | None = None
) -> Wiring:
    """The wiring of ``synapses`` from a source of the shape ``before`` into a population of ``shape``.

    The neurons are renumbered in ``order``.
    """
    if synapses.kind == "dense":
        rows = dealt(np.arange(math.prod(shape)), shape)
        return DenseWiring(synapses, rows if order is None else rows[np.asarray(order)])
    if synapses.kind == "conv" and order is None:
        return ConvWiring(synapses, before, shape)
    return together([synapses], before, shape, order)


def together(
    ways: Sequence[Synapses], before: Shape, shape: Shape, order: Sequence[int] | None = None
) -> Wiring:
    """The wiring of several synapses between the same two; those between the same neurons count once."""
    each = [synapses.entries(before, shape) for synapses in ways]
    if len(each) == 1:
        return SingleWiring(*each[0], before, shape, order)
    width = math.prod(before)
    pairs = np.concatenate([neurons.astype(np.int64) * width + inputs for neurons, inputs in each])
    return SingleWiring(*np.divmod(np.unique(pairs), width), before, shape, order)


def dealt(values: Int, shape: Shape) -> NDArray[np.int64]:
    """Values of the neurons of a population ``shape`` (C order), flat, in the order of placement."""
    inner = values.astype(np.int64).reshape(shape)
    return (np.moveaxis(inner, 0, -1) if len(shape) > 1 else inner).reshape(-1)


def undealt(values: NDArray[_T], shape: Shape) -> NDArray[_T]:
    """The inverse of ``dealt``: values in the order of placement as an array of ``shape``."""
    if len(shape) == 1:
        return values
    return np.moveaxis(values.reshape(*shape[1:], shape[0]), -1, 0)


def coordinates(index: int, shape: Shape) -> Shape:
    """Where neuron ``index`` of the order of placement is in a population ``shape``."""
    where = tuple(int(i) for i in np.unravel_index(index, (*shape[1:], shape[0])))
    return (where[-1], *where[:-1])


class DenseWiring:
    """All-to-all, from inputs in C order to the neurons ``rows``, numbered in C order."""

    def __init__(self, dense: Dense, rows: Int) -> None:
        self.stored = dense.weight != 0
        if (rows != np.arange(len(rows))).any():
            self.stored = self.stored[rows]

    def counts(self, low: int, high: int) -> Int:
        """See ``Wiring``."""
        counts: NDArray[np.int64] = self.stored[low:high].sum(axis=0, dtype=np.int64)
        return counts

    def mark(self, low: int, high: int, reach: NDArray[np.int64]) -> None:
        """See ``Wiring``."""
        reach += self.stored[low:high].any(axis=0).reshape(reach.shape)

    def fan_in(self) -> NDArray[np.int64]:
        """See ``Wiring``."""
        total: NDArray[np.int64] = self.stored.sum(axis=1, dtype=np.int64)
        return total


class ConvWiring:
    """A convolution [C, H, W] -> [O, H', W'], every synapse of every neuron on its own."""

    def __init__(self, kernel: Conv, input_shape: Shape, shape: Shape) -> None:
        self.conv, self.input_shape, self.shape = kernel, input_shape, shape
        stored = kernel.weight != 0
        channels, per_group = shape[0], stored.shape[1]
        taps = np.zeros((channels + 1, input_shape[0], *stored.shape[2:]), np.int32)
        for o in range(channels):
            first = o // (channels // kernel.groups) * per_group
            taps[o + 1, first : first + per_group] = stored[o]
        # taps[b] - taps[a]: synapses from an input channel through a kernel tap to channels a..b-1.
        self.taps = taps.cumsum(axis=0, dtype=np.int32)
        self.stored_taps = stored.sum(axis=1, dtype=np.int64)

    def counts(self, low: int, high: int) -> Int:
        """See ``Wiring``."""
        return self._window(low, high)[1]

    def mark(self, low: int, high: int, reach: NDArray[np.int64]) -> None:
        """See ``Wiring``."""
        rows, counts = self._window(low, high)
        reach[:, rows] += counts > 0

    def fan_in(self) -> NDArray[np.int64]:
        """See ``Wiring``."""
        c = self.conv
        inside = [
            _inside(*sizes)
            for sizes in zip(
                self.input_shape[1:],
                self.shape[1:],
                c.weight.shape[2:],
                c.stride,
                c.padding,
                c.dilation,
                strict=True,
            )
        ]
        rows, columns = inside
        total: NDArray[np.int64] = np.einsum(
            "oij,iy,jx->yxo", self.stored_taps, rows, columns, optimize=True
        )
        return total.reshape(-1)

    def _window(self, low: int, high: int) -> tuple[slice, Int]:
        """The input rows that neurons low..high-1 see, and the synapses [C, rows, W] from there."""
        (sh, sw), (ph, pw), (dh, dw) = self.conv.stride, self.conv.padding, self.conv.dilation
        kernel: Pair = self.conv.weight.shape[2], self.conv.weight.shape[3]
        (_, height, width), (channels, _, out_width) = self.input_shape, self.shape
        first = low // channels // out_width
        last = (high - 1) // channels // out_width
        top = first * sh - ph
        span_y, span_x = dh * (kernel[0] - 1) + 1, dw * (kernel[1] - 1) + 1
        span = (last - first) * sh + span_y
        padded = np.zeros((self.input_shape[0], span, width + 2 * pw), np.int32)
        for positions, low_channel, high_channel in _pieces(low, high, channels):
            taps = self.taps[high_channel] - self.taps[low_channel]
            y = (positions // out_width - first) * sh
            x = positions % out_width * sw
            if len(positions) == 1:
                seen = slice(y[0], y[0] + span_y, dh), slice(x[0], x[0] + span_x, dw)
                padded[:, *seen] += taps
                continue
            for i, j in product(range(kernel[0]), range(kernel[1])):
                padded[:, y + i * dh, x + j * dw] += taps[:, i, j, None]
        start = min(max(top, 0), height)
        rows = slice(start, min(max(top + span, start), height))
        return rows, padded[:, rows.start - top : rows.stop - top, pw : pw + width]


class SingleWiring:
    """Any synapses, one by one: ``neurons`` [n] and ``inputs`` [n] in C order.

    The neurons are renumbered in ``order``.
    """

    def __init__(
        self, neurons: Int, inputs: Int, before: Shape, shape: Shape, order: Sequence[int] | None
    ) -> None:
        size = math.prod(shape)
        # Rows of C order -> places in the order of placement -> places in ``order``.
        place = np.arange(size)
        if order is not None:
            place[np.asarray(order)] = np.arange(size)
        row = undealt(place, shape).reshape(-1)[neurons]
        self.columns = inputs[np.argsort(row, kind="stable")]
        self.starts = np.concatenate([[0], np.bincount(row, minlength=size).cumsum()])
        self.inputs = math.prod(before)

    def counts(self, low: int, high: int) -> Int:
        """See ``Wiring``."""
        some = self.columns[self.starts[low] : self.starts[high]]
        return np.bincount(some, minlength=self.inputs)

    def mark(self, low: int, high: int, reach: NDArray[np.int64]) -> None:
        """See ``Wiring``."""
        reach += (self.counts(low, high) > 0).reshape(reach.shape)

    def fan_in(self) -> NDArray[np.int64]:
        """See ``Wiring``."""
        return np.diff(self.starts)


def _pieces(low: int, high: int, channels: int) -> list[tuple[NDArray[np.int64], int, int]]:
    """Neurons low..high-1 as (positions, first channel, channel after the last)."""
    (first, a), (last, b) = divmod(low, channels), divmod(high - 1, channels)
    if first == last:
        return [(np.array([first]), a, b + 1)]
    between = np.arange(first + 1, last)
    return [
        (np.array([first]), a, channels),
        *([(between, 0, channels)] if between.size else []),
        (np.array([last]), 0, b + 1),
    ]


def _inside(
    size: int, out: int, kernel: int, stride: int, padding: int, dilation: int
) -> NDArray[np.int64]:
    """int64 [kernel, out]: 1 where a kernel tap of an output position lies inside the input."""
    at = np.arange(out) * stride + np.arange(kernel)[:, None] * dilation - padding
    return ((at >= 0) & (at < size)).astype(np.int64)
