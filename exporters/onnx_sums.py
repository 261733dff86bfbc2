"""What arrives at a population over its connections, in ONNX's integer products.

ConvInteger and MatMulInteger take inputs and weights of 8 bits and add in int32. Weights of more bits
go in slices. Connections of a folded convolution, each with a weight of its own, become a small matrix for
every place of the plane, because ONNX multiplies no sparse ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stl_deploy.exporters import onnx_inputs
from stl_deploy.exporters.onnx_graph import Builder
from stl_deploy.ir import kinds
from stl_deploy.ir.network import Connection, IntegerNetwork, Population
from stl_deploy.ir.synapses import Conv, Dense, IntArray, OneToOne, Shape, Sparse
from stl_deploy.ir.units import FRACTION_BITS

Slice = tuple[NDArray[np.int8], int]


@dataclass(frozen=True)
class Arriving:
    """One plane of what arrives over a connection, and where its nodes are written.

    ``value`` is uint8 [N, *source], 0..``levels``. ``prefix`` goes before the kinds of names, whose
    population is ``where``, of ``shape``.
    """

    value: str
    levels: int
    prefix: str
    where: str
    shape: Shape

    def name(self, b: Builder, kind: str) -> str:
        """The name of a value of this plane."""
        return b.name(self.prefix + kind, self.where)


def accumulate(
    b: Builder,
    network: IntegerNetwork,
    population: Population,
    sent: Mapping[str, str],
    port: int = 0,
) -> str:
    """a << 6 [N, *shape] in int64: what all connections to a current add up to.

    ``sent`` are the values of this step by source, of those that stand before the population.
    """
    where, total = population.name, ""
    for i, c in enumerate(network.into(where)):
        if c.port != port:
            continue
        prefix = f"{i}_"
        value = sent[c.source] if not c.delay else _past(b, c, prefix)
        planes = onnx_inputs.planes(b, network, c.source, value, f"{prefix}{where}")
        for k, (plane, factor) in enumerate(planes):
            levels = min(network.levels(c.source), onnx_inputs.BYTE - 1)
            arriving = Arriving(plane, levels, f"{prefix}{k}_", where, population.shape)
            form = kinds.entry(SYNAPSES, c.synapses.kind, where, WHO)
            part = form.sums(b, c.synapses, arriving)
            by = b.number((factor << c.exp) << FRACTION_BITS)
            part = b.op("Mul", [part, by], arriving.name(b, "shifted_sum"))
            total = b.op("Add", [total, part], arriving.name(b, "so_far")) if total else part
    if not total:
        return b.constant(b.name("nothing", where), np.zeros((1, *population.shape), np.int64))
    return b.op("Identity", [total], b.name("a2" if port else "a", where))


def _past(b: Builder, connection: Connection, prefix: str) -> str:
    """What the source sent ``delay`` steps ago."""
    past, where = b.name("past_in", connection.source), connection.target
    at = b.constant(b.name(f"{prefix}ago", where), np.int64(connection.delay - 1))
    return b.op("Gather", [past, at], b.name(f"{prefix}late", where), axis=1)


def _conv(b: Builder, conv: Conv, x: Arriving) -> str:
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
    for i, (part, shift) in enumerate(slices(conv.weight, x.levels)):
        unsigned = (part.astype(np.int16) + 128).astype(np.uint8)
        weight = b.constant(x.name(b, f"weight.{i}"), unsigned)
        name = x.name(b, f"sum.{i}")
        sums.append((b.op("ConvInteger", [x.value, weight, *zeros], name, **geometry), shift))
    return _added(b, sums, x)


def _dense(b: Builder, dense: Dense, x: Arriving) -> str:
    flat = (0, dense.weight.shape[1])
    rows = b.op("Reshape", [x.value, b.shape(flat)], x.name(b, "rows"))
    total = _added(b, _products(b, rows, dense.weight.T, x), x)
    return b.op("Reshape", [total, b.shape((0, *x.shape))], x.name(b, "shaped"))


def _one_to_one(b: Builder, single: OneToOne, x: Arriving) -> str:
    wide = b.cast(x.value, np.int64, x.name(b, "wide"))
    placed = b.op("Reshape", [wide, b.shape((0, *x.shape))], x.name(b, "placed"))
    weight = single.weight.astype(np.int64).reshape(x.shape)
    return b.op("Mul", [placed, b.constant(x.name(b, "weight"), weight)], x.name(b, "each"))


def _sparse(b: Builder, sparse: Sparse, x: Arriving) -> str:
    """Neurons at one place of the plane have the same inputs: a small matrix for each place."""
    groups = groups_of(x.shape, sparse)
    index, weight = blocks(sparse, x.shape[0], groups)
    places, outputs = len(index) // groups, weight.shape[2]
    rows = b.op("Reshape", [x.value, b.shape((0, sparse.size[1]))], x.name(b, "rows"))
    heard = b.op(
        "Gather", [rows, b.constant(x.name(b, "index"), index)], x.name(b, "heard"), axis=1
    )
    heard = b.op("Transpose", [heard], x.name(b, "by_place"), perm=(1, 0, 2))
    total = _added(b, _products(b, heard, weight, x), x)
    total = b.op("Transpose", [total], x.name(b, "by_sample"), perm=(1, 0, 2))
    split = b.shape((0, groups, places, outputs))
    total = b.op("Reshape", [total, split], x.name(b, "split"))
    total = b.op("Transpose", [total], x.name(b, "by_channel"), perm=(0, 1, 3, 2))
    return b.op("Reshape", [total, b.shape((0, *x.shape))], x.name(b, "shaped"))


def _products(b: Builder, rows: str, weight: IntArray, x: Arriving) -> list[tuple[str, int]]:
    """rows @ weight in int32, a slice of the weights at a time, each with its shift."""
    sums = []
    for i, (part, shift) in enumerate(slices(weight, x.levels)):
        constant = b.constant(x.name(b, f"weight.{i}"), part)
        sums.append((b.op("MatMulInteger", [rows, constant], x.name(b, f"sum.{i}")), shift))
    return sums


def _added(b: Builder, sums: list[tuple[str, int]], x: Arriving) -> str:
    """The slices' sums, each shifted, in int64."""
    total = ""
    for i, (part, shift) in enumerate(sums):
        part = b.cast(part, np.int64, x.name(b, f"wide.{i}"))
        if shift:
            part = b.op("Mul", [part, b.number(1 << shift)], x.name(b, f"shifted.{i}"))
        total = b.op("Add", [total, part], x.name(b, f"total.{i}")) if total else part
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


def groups_of(shape: Shape, sparse: Sparse) -> int:
    """Groups of the convolution that ``sparse`` was folded from; any divisor of the channels is exact."""
    groups = sparse.kernel.groups
    return groups if shape[0] % groups == 0 else 1


@dataclass(frozen=True, eq=False)
class Cut:
    """Which block of neurons each connection belongs to, and what the inputs of the blocks are.

    A block is the channels of a group at one place of the plane: ``count`` blocks of ``outputs`` neurons.
    Of every pair of a block and one of its inputs, sorted and each once: ``owner`` is the block,
    ``heard`` the input, the n-th of this block has ``position`` n. Of every connection: ``which`` is its
    pair, ``slot`` its neuron within the block.
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
        """The number of inputs of the block that has most."""
        return int(self.position.max(initial=0)) + 1


def cut(sparse: Sparse, channels: int, groups: int) -> Cut:
    """``sparse`` in blocks, its neurons being ``channels`` in ``groups``."""
    neurons, inputs = sparse.size
    places, outputs = neurons // channels, channels // groups
    channel, place = np.divmod(sparse.row.astype(np.int64), places)
    block = channel // outputs * places + place
    pairs, which = np.unique(block * inputs + sparse.column, return_inverse=True)
    owner, heard = np.divmod(pairs, inputs)
    first = np.searchsorted(owner, np.arange(groups * places))
    position = np.arange(len(pairs)) - first[owner]
    return Cut(groups * places, outputs, owner, heard, position, which, channel % outputs)


def blocks(sparse: Sparse, channels: int, groups: int) -> tuple[NDArray[np.int32], IntArray]:
    """Single connections as matrices, one for the channels of a group at a place of the plane.

    Returns (index, weight): int32 [groups * places, K], the inputs of a block, and the weights
    [groups * places, K, channels / groups], zero where a neuron lacks one of them, and where a block
    has fewer than K.
    """
    parts = cut(sparse, channels, groups)
    index = np.zeros((parts.count, parts.most), np.int32)
    index[parts.owner, parts.position] = parts.heard
    weight = np.zeros((parts.count, parts.most, parts.outputs), sparse.weight.dtype)
    weight[parts.owner[parts.which], parts.position[parts.which], parts.slot] = sparse.weight
    return index, weight


@dataclass(frozen=True)
class Form:
    """How one kind of synapses is written.

    ``sums`` adds the nodes of the sum of w * s, [N, *shape] in int64: of (graph, synapses, what arrives).
    ``numbers`` is how many 8-bit numbers a slice takes: of (synapses, shape of the target).
    """

    sums: Callable[[Builder, Any, Arriving], str]
    numbers: Callable[[Any, Shape], int]


def _stored(synapses: Conv | Dense | OneToOne, _shape: Shape) -> int:
    return synapses.weight.size


def _in_blocks(sparse: Sparse, shape: Shape) -> int:
    """Those of the matrices, and four for each entry of the index."""
    parts = cut(sparse, shape[0], groups_of(shape, sparse))
    return parts.count * parts.most * (4 + parts.outputs)


def _wide(single: OneToOne, _shape: Shape) -> int:
    """Weights in int64."""
    return 8 * single.weight.size


WHO = "ONNX"
SYNAPSES: dict[str, Form] = {
    "conv": Form(_conv, _stored),
    "dense": Form(_dense, _stored),
    "one_to_one": Form(_one_to_one, _wide),
    "sparse": Form(_sparse, _in_blocks),
}
