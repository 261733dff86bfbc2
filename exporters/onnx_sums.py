"""What the inputs of a layer add up to, in ONNX's integer products.

ConvInteger and MatMulInteger take inputs and weights of 8 bits and add in int32. Weights of more bits
go in slices. Connections of a folded convolution, each with a weight of its own, become a small matrix for
every place of the plane, because ONNX multiplies no sparse ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stl_deploy.exporters.onnx_graph import Builder
from stl_deploy.ir import kinds
from stl_deploy.ir.chain import LifLayer
from stl_deploy.ir.synapses import Conv, Dense, IntArray, Sparse
from stl_deploy.ir.units import FRACTION_BITS

Slice = tuple[NDArray[np.int8], int]


def accumulate(b: Builder, layer: LifLayer, inputs: str, levels: int) -> str:
    """a << 6 [N, *shape] in int64: what the inputs, and the layer's own spikes, add up to."""
    form = kinds.entry(SYNAPSES, layer.synapses.kind, layer.name, WHO)
    total = form.sums(b, layer.synapses, inputs, levels, layer)
    if layer.recurrent is not None:
        own = b.name("spikes_in", layer.name)
        heard = _dense(b, layer.recurrent, own, 1, layer, "own_")
        total = b.op("Add", [total, heard], b.name("both", layer.name))
    return b.op("Mul", [total, b.number(1 << (layer.exp + FRACTION_BITS))], b.name("a", layer.name))


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


def _dense(
    b: Builder, dense: Dense, inputs: str, levels: int, layer: LifLayer, prefix: str = ""
) -> str:
    flat = (0, dense.weight.shape[1])
    rows = b.op("Reshape", [inputs, b.shape(flat)], b.name(f"{prefix}rows", layer.name))
    sums = _products(b, rows, dense.weight.T, levels, layer.name, prefix)
    total = _added(b, sums, layer.name, prefix)
    shape = b.shape((0, *layer.shape))
    return b.op("Reshape", [total, shape], b.name(f"{prefix}shaped", layer.name))


def _sparse(b: Builder, sparse: Sparse, inputs: str, levels: int, layer: LifLayer) -> str:
    """Neurons at one place of the plane have the same inputs: a small matrix for each place."""
    name, groups = layer.name, groups_of(layer, sparse)
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


def groups_of(layer: LifLayer, sparse: Sparse) -> int:
    """Groups of the convolution that ``sparse`` was folded from; any divisor of the channels is exact."""
    groups = sparse.kernel.groups
    return groups if layer.shape[0] % groups == 0 else 1


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

    ``sums`` adds the nodes of the sum of w * s_in, [N, *shape] in int64: of (graph, synapses, name of the
    inputs, their largest value, layer). ``numbers`` is how many 8-bit numbers a slice of the layer takes.
    """

    sums: Callable[[Builder, Any, str, int, LifLayer], str]
    numbers: Callable[[Any, LifLayer], int]


def _stored(synapses: Conv | Dense, _layer: LifLayer) -> int:
    return synapses.weight.size


def _in_blocks(sparse: Sparse, layer: LifLayer) -> int:
    """Those of the matrices, and four for each entry of the index."""
    parts = cut(sparse, layer.shape[0], groups_of(layer, sparse))
    return parts.count * parts.most * (4 + parts.outputs)


WHO = "ONNX"
SYNAPSES: dict[str, Form] = {
    "conv": Form(_conv, _stored),
    "dense": Form(_dense, _stored),
    "sparse": Form(_sparse, _in_blocks),
}
