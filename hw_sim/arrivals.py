"""What connections bring to a population, added up by compiled loops before its neurons step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csc_array, csr_array

from stl_deploy.hw_sim import buffers, proofs
from stl_deploy.hw_sim.account import kernels as windows
from stl_deploy.hw_sim.account.windows import Windows
from stl_deploy.hw_sim.compiled import LANES
from stl_deploy.hw_sim.layouts import LAYOUTS, Layout, memory_order
from stl_deploy.ir.network import Connection, IntegerNetwork
from stl_deploy.ir.synapses import IntArray, OneToOne, Shape, Sparse

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]

SUMS = 256 << 10  # bytes of accumulators that are kept at a time


class Synapses(Protocol):
    """Synapses of a connection, ready for compiled loops."""

    @property
    def layout(self) -> Layout | None:
        """Where kernels find the synapses that land in runs."""

    @property
    def bytes(self) -> int:
        """The size of the weights."""

    def add(self, x: IntArray, sums: Int32, first: int, exp: int) -> None:
        """Add what ``x`` [N, S, inputs] brings, times 2^exp, to the steps of ``sums`` from ``first`` on.

        ``x`` is in memory order, uint8 or int16. ``sums`` is [N, T, neurons + LANES], in memory order too;
        the last LANES are nobody's.
        """


@dataclass(frozen=True)
class Scattered:
    """Synapses that have a layout."""

    layout: Layout
    binary: bool

    @property
    def bytes(self) -> int:
        """The size of the weights."""
        return self.layout.weights.nbytes

    def add(self, x: IntArray, sums: Int32, first: int, exp: int) -> None:
        """See ``Synapses``."""
        mine, (samples, steps, _) = self.layout, x.shape
        size = mine.phases, mine.accumulators
        kind = mine.sum_type if self.binary else np.int32
        fit = max(1, SUMS // (math.prod(size) * np.dtype(kind).itemsize))
        buffers.add_scattered(
            x.reshape(samples, steps, math.prod(mine.pixels), -1),
            None if self.binary else np.empty(x.size + 1, x.dtype),
            mine.weights,
            mine.wiring,
            mine.pieces,
            np.zeros((min(samples * steps, fit), *size), kind),
            exp,
            first,
            sums,
        )


@dataclass(frozen=True)
class Listed:
    """Single synapses, each input with a list of its own."""

    pointers: Int64
    neurons: Int32
    weights: Int32

    layout: None = None

    @property
    def bytes(self) -> int:
        """The size of the weights."""
        return self.neurons.nbytes + self.weights.nbytes

    def add(self, x: IntArray, sums: Int32, first: int, exp: int) -> None:
        """See ``Synapses``."""
        buffers.add_listed(x, self.pointers, self.neurons, self.weights, exp, first, sums)


@dataclass(frozen=True)
class InWindows:
    """Single synapses of binary inputs, those to neighbours together."""

    held: Windows

    layout: None = None

    @property
    def bytes(self) -> int:
        """The size of the weights."""
        return self.held.values.nbytes

    def add(self, x: IntArray, sums: Int32, first: int, exp: int) -> None:
        """See ``Synapses``."""
        samples, steps, _ = x.shape
        rows: NDArray[Any] = x.reshape(samples * steps, -1)
        held = self.held
        if exp == 0 and steps == sums.shape[1]:
            total = sums.reshape(samples * steps, -1)
            windows.add_windows(rows, held.windows, held.start, held.values, total)
        else:
            sums[:, first : first + steps] += (held.add(rows) << exp).reshape(samples, steps, -1)


def kind_of(span: tuple[int, int]) -> np.dtype[Any]:
    """The type in which the loops read values of a span."""
    lowest, most = span
    return np.dtype(np.uint8 if lowest >= 0 and most <= np.iinfo(np.uint8).max else np.int16)


def ready(network: IntegerNetwork, connection: Connection) -> Synapses | None:
    """The synapses of ``connection``, None where the loops cannot run them, or sums could pass 32 bits."""
    kind = connection.synapses.kind
    if kind not in READY or not proofs.fits_32_bits(network, connection):
        return None
    binary = network.span(connection.source) == (0, 1)
    shapes = network.shape(connection.source), network.shape(connection.target)
    return READY[kind](connection.synapses, *shapes, binary)


def _scattered(
    layout: Callable[[Any, Shape, Shape, bool], Layout | None],
) -> Callable[[Any, Shape, Shape, bool], Synapses | None]:
    def made(synapses: Any, before: Shape, shape: Shape, binary: bool) -> Synapses | None:
        found = layout(synapses, before, shape, binary)
        return None if found is None else Scattered(found, binary)

    return made


def _sparse(synapses: Sparse, before: Shape, shape: Shape, binary: bool) -> Synapses | None:
    columns = _columns(synapses.matrix, before, shape)
    return InWindows(Windows.of(columns)) if binary else _listed(columns)


def _one_to_one(synapses: OneToOne, before: Shape, shape: Shape, _binary: bool) -> Synapses | None:
    at = np.arange(len(synapses.weight))
    matrix = csr_array((synapses.weight.astype(np.int64), (at, at)))
    return _listed(_columns(matrix, before, shape))


def _columns(matrix: csr_array, before: Shape, shape: Shape) -> csc_array:
    """The matrix [neurons, inputs] with both in memory order."""
    rows, columns = (memory_order(np.arange(math.prod(s)), s) for s in (shape, before))
    found = csc_array(matrix[rows][:, columns])
    found.sort_indices()
    return found


def _listed(columns: csc_array) -> Listed:
    return Listed(
        columns.indptr.astype(np.int64),
        columns.indices.astype(np.int32),
        columns.data.astype(np.int32),
    )


# By the kind of synapses, as ``LAYOUTS``.
READY: dict[str, Callable[[Any, Shape, Shape, bool], Synapses | None]] = {
    **{kind: _scattered(layout) for kind, layout in LAYOUTS.items()},
    "sparse": _sparse,
    "one_to_one": _one_to_one,
}


def room(samples: int, steps: int, neurons: int, kind: type[np.signedinteger[Any]]) -> IntArray:
    """Zeros to add sums up in, [N, T, neurons + LANES]."""
    return np.zeros((samples, steps, neurons + LANES), kind)
