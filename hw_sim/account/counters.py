"""What spikes add to counters, which is linear in them: each neuron has a column of counters.

Neurons with the same column, mostly those of one place and one core, are counted together first. Where
columns differ from neuron to neuron, as those of synapses do where weights are zero, those of alike
neurons are counted together all the same, and what they differ in is added, if that is less.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import block_diag, csc_array, csr_array, vstack

from stl_deploy.hw_sim.account import kernels
from stl_deploy.hw_sim.compiled import LANES
from stl_deploy.hw_sim.layouts import memory_order
from stl_deploy.ir.synapses import IntArray, Shape

Bytes = NDArray[np.uint8]
Int64 = NDArray[np.int64]
Int32 = NDArray[np.int32]
Bits = NDArray[np.uint32]  # spikes [words, steps], LANES neurons to a word
Key = tuple[str, str]  # what is counted, and of which target or connection where that matters
Table = dict[Key, Int32]

FEW = 4  # Kinds are few where so many neurons or more are of each.


@dataclass(frozen=True)
class Columns:
    """Counters of the neurons of a population: neuron n has column ``kind[n]`` of [counters, kinds]."""

    kind: Int64
    matrix: csr_array

    @classmethod
    def of(cls, matrix: csr_array | csc_array) -> Columns:
        """From one column for each neuron, [counters, neurons]."""
        columns = csc_array(matrix)
        kind, examples = kinds_of(columns)
        return cls(kind, csr_array(columns[:, examples]))

    @property
    def kinds(self) -> int:
        """How many columns there are."""
        return int(self.matrix.shape[1])

    def each(self) -> csc_array:
        """One column for each neuron, [counters, neurons], entries in order."""
        columns = csc_array(csc_array(self.matrix)[:, self.kind])
        columns.sort_indices()
        return columns


def kinds_of(matrix: csc_array) -> tuple[Int64, Int64]:
    """For each column the number of its kind, equal columns being of one, and a column of each kind.

    Columns are told apart by a sum of random numbers. Should two different ones ever have the same,
    every column is of its own kind.
    """
    matrix.sum_duplicates()
    columns = matrix.shape[1]
    numbers = np.random.default_rng(0).integers(1 << 63, size=matrix.shape[0], dtype=np.uint64)
    terms = numbers[matrix.indices] * matrix.data.astype(np.uint64)
    sums = np.append(np.uint64(0), np.cumsum(terms))[matrix.indptr]
    _, first, kinds = np.unique(np.diff(sums), return_index=True, return_inverse=True)
    lengths, starts = np.diff(matrix.indptr), matrix.indptr[:-1]
    example = first[kinds]
    if (lengths == lengths[example]).all():
        same = np.arange(len(terms)) + np.repeat(starts[example] - starts, lengths)
        equal = (matrix.indices[same] == matrix.indices) & (matrix.data[same] == matrix.data)
        if equal.all():
            return kinds.astype(np.int64), first.astype(np.int64)
    return np.arange(columns), np.arange(columns)


class SpikeCounters:
    """What a spike of each neuron of a population of ``shape`` causes, by chip and name."""

    def __init__(self, shape: Shape, columns: Sequence[Mapping[Key, Columns]]) -> None:
        self.shape = shape
        order = memory_order(np.arange(math.prod(shape)), shape)
        lie = {
            (chip, name): Columns(own.kind[order], own.matrix)
            for chip, by_name in enumerate(columns)
            for name, own in by_name.items()
        }
        self.keys = list(lie)
        self.ends = np.cumsum([own.matrix.shape[0] for own in lie.values()])
        self.chips = len(columns)
        split = [_split(own) for own in lie.values()]
        self.alike = _Alike.of([own for own, _ in split])
        rest = csr_array(vstack([rest for _, rest in split], "csr"), dtype=np.int32)
        self.rest = _Planes.of(rest) if rest.nnz else None

    @property
    def counters(self) -> int:
        """How many there are, of all chips."""
        return int(self.ends[-1])

    def rows(self, spikes: IntArray) -> Bytes:
        """Spikes [N, T, ...] as uint8 [S, neurons] in memory order, not zero where there is one."""
        marks: NDArray[Any] = spikes if spikes.dtype == np.uint8 else (spikes != 0).view(np.uint8)
        ordered = marks.reshape(*spikes.shape[:2], *self.shape)
        if len(self.shape) == 3:
            ordered = np.moveaxis(ordered, 2, -1)
        flat = ordered.reshape(spikes.shape[0] * spikes.shape[1], -1)
        # Writable as well: numba would compile everything again for a read-only array.
        return np.require(flat, requirements=["C", "W"])

    def count(self, spikes: Bytes, table: Int32) -> None:
        """Write the counters [counters, S] for spikes [S, neurons]."""
        steps = len(spikes)
        bits = _packed(spikes)
        total = self.alike.count(bits)
        if self.rest is not None:
            self.rest.add(bits, total)
        table[:] = total[:, :steps]

    def by_name(self, table: Int32) -> list[Table]:
        """Counters [counters, S] by chip and name."""
        named: list[Table] = [{} for _ in range(self.chips)]
        for (chip, name), part in zip(self.keys, np.split(table, self.ends[:-1]), strict=True):
            named[chip][name] = part
        return named


@dataclass(frozen=True)
class _Masks:
    """Sets of neurons: set i has the ``masks`` from ``pointers[i]`` to ``pointers[i + 1]``.

    Each holds LANES neurons, those of one of ``words``.
    """

    pointers: Int64
    words: Int64
    masks: NDArray[np.uint32]

    @classmethod
    def of(cls, count: int, which: Int64, neuron: Int64) -> _Masks:
        """For ``count`` sets, from the pairs of a set and a neuron in it, each of them once."""
        words = int(neuron.max(initial=0)) // LANES + 1
        keys, at = np.unique(which * words + neuron // LANES, return_inverse=True)
        masks = np.zeros(len(keys), np.uint32)
        np.bitwise_or.at(masks, at, np.uint32(1) << (neuron % LANES).astype(np.uint32))
        return cls(np.searchsorted(keys, words * np.arange(count + 1)), keys % words, masks)

    def count(self, bits: Bits) -> Int32:
        """How many neurons of each set spike, [sets, S], from bits [words, S]."""
        found = np.empty((len(self.pointers) - 1, bits.shape[1]), np.int32)
        kernels.count_bits(self.pointers, self.words, self.masks, bits, found)
        return found


@dataclass(frozen=True)
class _Alike:
    """Counters of which each has few kinds of neurons.

    ``atoms`` are neurons that are of one kind for all of them. ``kinds`` [kinds of all, atoms] adds them up
    to kinds, and ``matrix`` [counters of all, kinds of all] those to counters.
    """

    atoms: _Masks
    kinds: csr_array
    matrix: csr_array

    @classmethod
    def of(cls, columns: Sequence[Columns]) -> _Alike:
        joined = np.zeros(len(columns[0].kind), np.int64)
        for own in columns:
            _, joined = np.unique(joined * own.kinds + own.kind, return_inverse=True)
        _, examples = np.unique(joined, return_index=True)
        of_kinds = [one_hot(own.kind[examples], own.kinds) for own in columns]
        return cls(
            _Masks.of(len(examples), joined, np.arange(len(joined))),
            csr_array(vstack(of_kinds, "csr"), dtype=np.int32),
            csr_array(block_diag([own.matrix for own in columns], "csr"), dtype=np.int32),
        )

    def count(self, bits: Bits) -> Int32:
        """The counters [counters, S] for spikes, packed."""
        kinds, matrix, steps = self.kinds, self.matrix, bits.shape[1]
        found = np.zeros((kinds.shape[0], steps), np.int32)
        kernels.multiply(kinds.indptr, kinds.indices, None, self.atoms.count(bits), found)
        total = np.zeros((matrix.shape[0], steps), np.int32)
        kernels.multiply(matrix.indptr, matrix.indices, matrix.data, found, total)
        return total


@dataclass(frozen=True)
class _Planes:
    """A matrix [counters, neurons] by the bits of its entries, as counts of ones are faster than products.

    The neurons whose entry for a counter has a bit, and a sign, are a plane; ``matrix`` [counters, planes]
    has what one of them is worth.
    """

    planes: _Masks
    matrix: csr_array

    @classmethod
    def of(cls, matrix: csr_array) -> _Planes:
        counter = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
        value = matrix.data.astype(np.int64)
        width = int(np.abs(value).max()).bit_length()
        entry = [np.flatnonzero(np.abs(value) >> bit & 1) for bit in range(width)]
        bit = np.repeat(np.arange(width), [len(found) for found in entry])
        which = np.concatenate(entry)
        keys, plane = np.unique(
            (2 * counter[which] + (value[which] < 0)) * width + bit, return_inverse=True
        )
        worth = (1 << keys % width) * np.where(keys // width % 2, -1, 1)
        places = keys // width // 2, np.arange(len(keys))
        return cls(
            _Masks.of(len(keys), plane.astype(np.int64), matrix.indices[which].astype(np.int64)),
            csr_array((worth.astype(np.int32), places), (matrix.shape[0], len(keys))),
        )

    def add(self, bits: Bits, total: Int32) -> None:
        """Add the product with spikes, packed, to ``total`` [counters, S]."""
        found, matrix = self.planes.count(bits), self.matrix
        kernels.multiply(matrix.indptr, matrix.indices, matrix.data, found, total)


def _packed(spikes: Bytes) -> Bits:
    """Where there are spikes uint8 [S, neurons], as bits [words, S], S filled up to a multiple of LANES."""
    steps, neurons = spikes.shape
    bits = np.zeros((-(-neurons // LANES), -(-steps // LANES) * LANES), np.uint32)
    kernels.pack(spikes, bits)
    return bits


def _split(columns: Columns) -> tuple[Columns, csr_array]:
    """Columns of few kinds, and what those of each neuron [counters, neurons] differ in."""
    size = columns.matrix.shape[0], len(columns.kind)
    if FEW * columns.kinds <= size[1]:
        nothing = np.zeros(0, np.int32), (np.zeros(0, np.int64), np.zeros(0, np.int64))
        return columns, csr_array(nothing, shape=size)
    each = columns.each()
    pattern = Columns.of(csc_array((np.ones_like(each.data), each.indices, each.indptr), size))
    if FEW * pattern.kinds <= size[1]:
        # Those of one kind have the same places. What they have there differs little from the largest.
        place = csc_array(
            (np.arange(pattern.matrix.nnz), *_places(pattern.matrix)), pattern.matrix.shape
        )
        at = Columns(pattern.kind, csr_array(place)).each().data
        largest = np.zeros(pattern.matrix.nnz, np.int32)
        np.maximum.at(largest, at, each.data)
        rest = csc_array((each.data - largest[at], each.indices, each.indptr), size, copy=True)
        rest.eliminate_zeros()
        if 2 * rest.nnz <= each.nnz:
            alike = csc_array((largest, *_places(pattern.matrix)), pattern.matrix.shape)
            return Columns(pattern.kind, csr_array(alike)), csr_array(rest, shape=size)
    return Columns(
        np.zeros(size[1], np.int64), csr_array(np.zeros((size[0], 1), np.int32))
    ), csr_array(each)


def _places(matrix: csr_array) -> tuple[IntArray, IntArray]:
    """Indices and pointers by columns, entries in order."""
    columns = csc_array(matrix)
    columns.sort_indices()
    return columns.indices, columns.indptr


def one_hot(classes: IntArray, count: int) -> csr_array:
    """int32 [count, n]: 1 at the class of each of n items."""
    n = len(classes)
    ones = np.ones(n, np.int32)
    return csr_array((ones, (classes, np.arange(n))), shape=(count, n))
