"""Every synapse of a connection on its own, in plain Python."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np

from stl_deploy.ir.network import Connection, IntegerNetwork
from stl_deploy.ir.synapses import Conv, Dense, OneToOne, Sparse
from tests.build.nets import taken

Index = tuple[int, ...]


def weights(network: IntegerNetwork, connection: Connection) -> Iterator[tuple[Index, Index, int]]:
    """(source, target, weight) of every in-bounds synapse, those of zero included."""
    before, after = network.shape(connection.source), network.shape(connection.target)
    sources, targets = list(np.ndindex(before)), list(np.ndindex(after))
    held = connection.synapses
    if isinstance(held, Sparse):
        for row, column, weight in zip(held.row, held.column, held.weight, strict=True):
            yield sources[column], targets[row], int(weight)
    elif isinstance(held, OneToOne):
        yield from zip(sources, targets, map(int, held.weight), strict=True)
    elif isinstance(held, Conv):
        yield from _convolution(held, before, after)
    else:
        assert isinstance(held, Dense)
        for target, row in zip(targets, held.weight.tolist(), strict=True):
            yield from zip(sources, [target] * len(row), row, strict=True)


def _convolution(conv: Conv, before: Index, after: Index) -> Iterator[tuple[Index, Index, int]]:
    (c_in, height, width), (o_out, rows, columns) = before, after
    for o, k, p, q in np.ndindex(conv.weight.shape):
        c = o // (o_out // conv.groups) * (c_in // conv.groups) + k
        weight = int(conv.weight[o, k, p, q])
        for i, j in product(range(rows), range(columns)):
            y = i * conv.stride[0] + p * conv.dilation[0] - conv.padding[0]
            x = j * conv.stride[1] + q * conv.dilation[1] - conv.padding[1]
            if 0 <= y < height and 0 <= x < width:
                yield (c, y, x), (o, i, j), weight


def wires(network: IntegerNetwork, connection: Connection) -> Iterator[tuple[Index, Index]]:
    """(source, target) of every stored, non-zero, in-bounds synapse; twice for a weight of two slices."""
    for source, target, weight in weights(network, connection):
        for _ in range(taken(weight, connection.precision)):
            yield source, target
