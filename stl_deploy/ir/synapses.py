"""Synapses of the integer network: which input reaches which neuron, and with what weight."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from stl_deploy.ir.slices import Weights

if TYPE_CHECKING:
    from scipy.sparse import csr_array


Shape = tuple[int, ...]
Pair = tuple[int, int]
IntArray = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Conv:
    """Convolution, weight [O, C/groups, kh, kw], as PyTorch's cross-correlation."""

    weight: Weights
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int

    kind: Literal["conv"] = "conv"


@dataclass(frozen=True)
class Dense:
    """All-to-all, weight [out, in], on the input flattened in C order."""

    weight: Weights

    kind: Literal["dense"] = "dense"


@dataclass(frozen=True, eq=False)
class Kernel:
    """The convolution of a float model: weight float64 [O, C/groups, kh, kw], bias float64 [O]."""

    weight: NDArray[np.float64]
    bias: NDArray[np.float64]
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int


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

    @cached_property
    def matrix(self) -> csr_array[np.int64]:
        """The same as a sparse matrix int64 [neurons, inputs]."""
        from scipy.sparse import csr_array

        entries = self.weight.astype(np.int64), (self.row, self.column)
        return csr_array(entries, shape=self.size)


Synapses = Conv | Dense | Sparse


def with_weights(synapses: Synapses, weight: Weights) -> Synapses:
    """``synapses`` with other weights, of the same shape; single connections of zero are left out."""
    if not isinstance(synapses, Sparse):
        return replace(synapses, weight=weight)
    at = weight != 0
    return replace(synapses, row=synapses.row[at], column=synapses.column[at], weight=weight[at])


def row_sums(synapses: Synapses, values: NDArray[np.int64]) -> NDArray[np.int64]:
    """``values`` of the stored weights, added up for each output channel: int64 [O].

    The channels of ``Sparse`` are its neurons.
    """
    if isinstance(synapses, Sparse):
        # float64 counts in bincount are exact: sums of bytes stay far below 2^53.
        sums = np.bincount(synapses.row, weights=values, minlength=synapses.size[0])
        return sums.astype(np.int64)
    totals: NDArray[np.int64] = values.reshape(len(synapses.weight), -1).sum(axis=1)
    return totals
