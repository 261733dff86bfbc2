"""Synapses of the integer network: which input reaches which neuron, and with what weight.

Each kind knows its weighted sums, how many synapses leave an input, every synapse on its own, and its
size. A further kind is a further class here; tables that backends keep are keyed by ``kind``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from stl_deploy.ir import conv
from stl_deploy.ir.slices import Weights

Shape = tuple[int, ...]
Pair = tuple[int, int]
IntArray = NDArray[np.integer[Any]]
Int64 = NDArray[np.int64]
Float = NDArray[np.float64]
Entries = tuple[NDArray[np.int32], NDArray[np.int32]]


class Geometry(NamedTuple):
    """Where a kernel goes, in the order of the functions of ``conv.py``."""

    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int


@dataclass(frozen=True)
class Conv:
    """Convolution, weight [O, C/groups, kh, kw], as PyTorch's cross-correlation."""

    weight: Weights
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int

    kind: Literal["conv"] = "conv"

    @property
    def geometry(self) -> Geometry:
        """Where the kernel goes."""
        return Geometry(self.stride, self.padding, self.dilation, self.groups)

    def sums(self, spikes: IntArray, levels: int = 1) -> Int64:
        """The weighted sums [N, O, H', W'] of inputs 0..levels [N, C, H, W]."""
        dtype = _exact(self, levels)
        x: NDArray[Any] = spikes.astype(dtype)
        w: NDArray[Any] = self.weight.astype(dtype)
        return conv.convolve(x, w, *self.geometry).astype(np.int64)

    def row_sums(self, values: Int64) -> Int64:
        """``values`` of the stored weights, added up for each output channel: int64 [O]."""
        return _by_row(self.weight, values)

    def with_weights(self, weight: Weights) -> Conv:
        """The same synapses with other weights, of the same shape."""
        return replace(self, weight=weight)

    def scaled(self, unit: Float) -> Float:
        """The weights times ``unit`` [O], that of each output channel: float64 of their shape."""
        return _by_channel(self.weight, unit)

    def into(self, _neuron: int, _inputs: IntArray, index: IntArray) -> Int64:
        """The weights [n] that stand at ``index`` [n, dimensions] and lead to a neuron."""
        held: Int64 = self.weight[tuple(index.T)].astype(np.int64)
        return held

    def fan_out(self, input_shape: Shape) -> Int64:
        """Stored, non-zero, in-bounds synapses that leave each input: int64 of ``input_shape``."""
        c, h, w = input_shape
        return conv.fan_out(self.weight != 0, (c, h, w), *self.geometry)

    def entries(self, input_shape: Shape, shape: Shape) -> Entries:
        """(neuron, input), each in C order, of every stored, non-zero, in-bounds synapse."""
        (c, h, w), (o, y, x) = input_shape, shape
        row, column, weights = conv.unroll(self.weight, (c, h, w), (o, y, x), *self.geometry)
        stored = weights != 0
        return row[stored], column[stored]

    def fan_out_into(
        self, part: IntArray, parts: int, input_shape: Shape, shape: Shape
    ) -> csr_array:
        """``fan_out`` by the part [neurons] of the population that they lead to: int32 [parts, inputs]."""
        if self.weight.shape[1] == 1:  # Few enough to list, where a product would be mostly zeros.
            return _into(part, parts, self.entries(input_shape, shape), math.prod(input_shape))
        c, h, w = input_shape
        stored = self.weight != 0
        return conv.fan_out_into(stored, part.reshape(shape), parts, (c, h, w), *self.geometry)

    def possible(self, input_shape: Shape) -> int:
        """In-bounds synapses, those whose weight is zero included."""
        c, h, w = input_shape
        every = np.ones(self.weight.shape, np.bool_)
        return int(conv.fan_out(every, (c, h, w), *self.geometry).sum())

    def parameters(self, _input_shape: Shape) -> int:
        """Weights of the model, zeros included: those of the kernel."""
        return self.weight.size

    @property
    def arrays(self) -> tuple[IntArray, ...]:
        """Everything that has to be stored of these synapses."""
        return (self.weight,)


@dataclass(frozen=True)
class Dense:
    """All-to-all, weight [out, in], on the input flattened in C order."""

    weight: Weights

    kind: Literal["dense"] = "dense"

    @property
    def geometry(self) -> None:
        """See ``Conv``: every input reaches every neuron."""
        return

    def sums(self, spikes: NDArray[Any], levels: int = 1) -> Int64:
        """The weighted sums [N, out] of inputs 0..levels [N, ...]."""
        dtype = _exact(self, levels)
        x: NDArray[Any] = spikes.reshape(len(spikes), -1).astype(dtype)
        w: NDArray[Any] = self.weight.astype(dtype)
        sums: Int64 = (x @ w.T).astype(np.int64)
        return sums

    def row_sums(self, values: Int64) -> Int64:
        """``values`` of the stored weights, added up for each neuron: int64 [out]."""
        return _by_row(self.weight, values)

    def with_weights(self, weight: Weights) -> Dense:
        """The same synapses with other weights, of the same shape."""
        return replace(self, weight=weight)

    def scaled(self, unit: Float) -> Float:
        """The weights times ``unit`` [O], that of each output channel: float64 of their shape."""
        return _by_channel(self.weight, unit)

    def into(self, _neuron: int, _inputs: IntArray, index: IntArray) -> Int64:
        """The weights [n] that stand at ``index`` [n, dimensions] and lead to a neuron."""
        held: Int64 = self.weight[tuple(index.T)].astype(np.int64)
        return held

    def fan_out(self, input_shape: Shape) -> Int64:
        """Stored, non-zero synapses that leave each input: int64 of ``input_shape``."""
        count: Int64 = (self.weight != 0).sum(axis=0, dtype=np.int64)
        return count.reshape(input_shape)

    def entries(self, _input_shape: Shape, _shape: Shape) -> Entries:
        """(neuron, input), each in C order, of every stored, non-zero synapse."""
        neurons, inputs = np.nonzero(self.weight)
        return neurons.astype(np.int32), inputs.astype(np.int32)

    def fan_out_into(
        self, part: IntArray, parts: int, _input_shape: Shape, _shape: Shape
    ) -> csr_array:
        """``fan_out`` by the part [neurons] of the population that they lead to: int32 [parts, inputs]."""
        ones, neuron = np.ones(len(part), np.int32), np.arange(len(part))
        members = csr_array((ones, (part, neuron)), shape=(parts, len(part)))
        return csr_array(members @ (self.weight != 0).astype(np.int32))

    def possible(self, _input_shape: Shape) -> int:
        """Synapses, those whose weight is zero included."""
        return self.weight.size

    def parameters(self, _input_shape: Shape) -> int:
        """Weights of the model, zeros included."""
        return self.weight.size

    @property
    def arrays(self) -> tuple[IntArray, ...]:
        """Everything that has to be stored of these synapses."""
        return (self.weight,)


@dataclass(frozen=True, eq=False)
class Kernel:
    """The convolution of a float model: weight float64 [O, C/groups, kh, kw], bias float64 [O]."""

    weight: NDArray[np.float64]
    bias: NDArray[np.float64]
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int

    @property
    def geometry(self) -> Geometry:
        """Where the kernel goes."""
        return Geometry(self.stride, self.padding, self.dilation, self.groups)


@dataclass(frozen=True, eq=False)
class Sparse:
    """Single connections, what a folded convolution becomes: one weight each, none of them zero.

    ``row`` int32 [n] is the neuron, ``column`` int32 [n] the input, both counted in C order;
    ``weight`` [n]. Sorted by row, then column, no pair twice. ``size`` is (neurons, inputs),
    ``kernel`` what they were made from, which NIR's own nodes show.
    """

    row: NDArray[np.int32]
    column: NDArray[np.int32]
    weight: Weights
    size: Pair
    kernel: Kernel

    kind: Literal["sparse"] = "sparse"

    @property
    def geometry(self) -> None:
        """See ``Conv``: there is no kernel left."""
        return

    @cached_property
    def matrix(self) -> csr_array[np.int64]:
        """The same as a sparse matrix int64 [neurons, inputs]."""
        entries = self.weight.astype(np.int64), (self.row, self.column)
        return csr_array(entries, shape=self.size)

    def sums(self, spikes: IntArray, _levels: int = 1) -> Int64:
        """The weighted sums [N, neurons] of inputs [N, ...]."""
        flat = spikes.reshape(len(spikes), -1).astype(np.int64)
        return np.asarray(self.matrix @ flat.T).T

    def row_sums(self, values: Int64) -> Int64:
        """``values`` of the stored weights, added up for each neuron: int64 [neurons]."""
        # float64 counts in bincount are exact: sums of bytes stay far below 2^53.
        sums = np.bincount(self.row, weights=values, minlength=self.size[0])
        return sums.astype(np.int64)

    def with_weights(self, weight: Weights) -> Sparse:
        """The same connections with other weights [n]; those of zero are left out."""
        at = weight != 0
        return replace(self, row=self.row[at], column=self.column[at], weight=weight[at])

    def scaled(self, unit: Float) -> csr_array[np.float64]:
        """The weights times ``unit`` [neurons], as a sparse matrix float64 [neurons, inputs]."""
        entries = self.weight * unit[self.row], (self.row, self.column)
        return csr_array(entries, shape=self.size)

    def into(self, neuron: int, inputs: IntArray, _index: IntArray) -> Int64:
        """The weights [n] that lead from ``inputs`` [n] to a neuron, zero where there is none."""
        held = np.zeros(self.size[1], np.int64)
        start, end = np.searchsorted(self.row, [neuron, neuron + 1])
        held[self.column[start:end]] = self.weight[start:end]
        return held[inputs]

    def fan_out(self, input_shape: Shape) -> Int64:
        """Connections that leave each input: int64 of ``input_shape``."""
        count = np.bincount(self.column, minlength=math.prod(input_shape))
        return count.astype(np.int64).reshape(input_shape)

    def entries(self, _input_shape: Shape, _shape: Shape) -> Entries:
        """(neuron, input), each in C order, of every connection."""
        return self.row, self.column

    def fan_out_into(
        self, part: IntArray, parts: int, input_shape: Shape, _shape: Shape
    ) -> csr_array:
        """``fan_out`` by the part [neurons] of the population that they lead to: int32 [parts, inputs]."""
        return _into(part, parts, (self.row, self.column), math.prod(input_shape))

    def possible(self, input_shape: Shape) -> int:
        """In-bounds synapses of the convolution, those whose weight is zero included."""
        (c, h, w), k = input_shape, self.kernel
        every = np.ones(k.weight.shape, np.bool_)
        fan_out = conv.fan_out(every, (c, h, w), k.stride, k.padding, k.dilation, k.groups)
        return int(fan_out.sum())

    def parameters(self, input_shape: Shape) -> int:
        """Weights of the model, zeros included: every synapse has its own."""
        return self.possible(input_shape)

    @property
    def arrays(self) -> tuple[IntArray, ...]:
        """Everything that has to be stored of these synapses."""
        return self.weight, self.row, self.column


@dataclass(frozen=True, eq=False)
class OneToOne:
    """From each input to the neuron in the same place: weight [n], in C order."""

    weight: Weights

    kind: Literal["one_to_one"] = "one_to_one"

    @property
    def geometry(self) -> None:
        """See ``Conv``: there is no kernel."""
        return

    def sums(self, spikes: IntArray, _levels: int = 1) -> Int64:
        """The weighted inputs [N, n] of inputs [N, ...]."""
        product: Int64 = spikes.reshape(len(spikes), -1).astype(np.int64) * self.weight
        return product

    def row_sums(self, values: Int64) -> Int64:
        """``values`` of the stored weights, for each neuron: int64 [n]."""
        return values

    def with_weights(self, weight: Weights) -> OneToOne:
        """The same synapses with other weights, of the same shape."""
        return replace(self, weight=weight)

    def scaled(self, unit: Float) -> csr_array[np.float64]:
        """The weights times ``unit``, [n] or of each channel, as a sparse matrix float64 [n, n]."""
        values = self.weight.astype(np.float64) * np.repeat(unit, len(self.weight) // len(unit))
        at = np.arange(len(values), dtype=np.int32)
        return csr_array((values, (at, at)), shape=(len(values), len(values)))

    def into(self, neuron: int, inputs: IntArray, _index: IntArray) -> Int64:
        """The weights [n] that lead from ``inputs`` [n] to a neuron, zero where there is none."""
        held = np.zeros(len(inputs), np.int64)
        held[inputs == neuron] = self.weight[neuron]
        return held

    def fan_out(self, input_shape: Shape) -> Int64:
        """Stored, non-zero synapses that leave each input: int64 of ``input_shape``."""
        count: Int64 = (self.weight != 0).astype(np.int64)
        return count.reshape(input_shape)

    def entries(self, _input_shape: Shape, _shape: Shape) -> Entries:
        """(neuron, input), each in C order, of every stored, non-zero synapse."""
        at = np.flatnonzero(self.weight).astype(np.int32)
        return at, at

    def fan_out_into(
        self, part: IntArray, parts: int, input_shape: Shape, shape: Shape
    ) -> csr_array:
        """``fan_out`` by the part [neurons] of the population that they lead to: int32 [parts, inputs]."""
        return _into(part, parts, self.entries(input_shape, shape), len(self.weight))

    def possible(self, _input_shape: Shape) -> int:
        """Synapses, those whose weight is zero included."""
        return self.weight.size

    def parameters(self, _input_shape: Shape) -> int:
        """Weights of the model, zeros included."""
        return self.weight.size

    @property
    def arrays(self) -> tuple[IntArray, ...]:
        """Everything that has to be stored of these synapses."""
        return (self.weight,)


Synapses = Conv | Dense | OneToOne | Sparse


def _into(part: IntArray, parts: int, entries: Entries, inputs: int) -> csr_array:
    """Single synapses ``entries`` (neuron, input) counted by part and input: int32 [parts, inputs]."""
    neuron, column = entries
    ones = np.ones(len(neuron), np.int32)
    return csr_array((ones, (part[neuron], column)), shape=(parts, inputs))


def _by_channel(weight: Weights, unit: Float) -> Float:
    values: Float = weight * unit.reshape(-1, *[1] * (weight.ndim - 1))
    return values


def _by_row(weight: Weights, values: Int64) -> Int64:
    totals: Int64 = values.reshape(len(weight), -1).sum(axis=1)
    return totals


def _exact(synapses: Conv | Dense, levels: int) -> type[np.floating[Any]]:
    """The type in which sums of inputs 0..levels are exact.

    Sums run in floating point, where integers are exact: no partial sum exceeds ``levels * sum|w|``,
    and float32 holds every integer up to 2^24, float64 up to 2^53.
    """
    weight = np.abs(synapses.weight.astype(np.int64))
    return np.float32 if levels * int(synapses.row_sums(weight).max()) < 1 << 24 else np.float64
