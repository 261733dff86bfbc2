"""Convolutions as single connections: how many there are, and whether integers are a kernel's, rounded."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stl_deploy.ir import conv
from stl_deploy.ir.synapses import Float, Geometry, Shape, Sparse

MOST = 1 << 25  # single connections of a network, where the chip itself sets no limit


def check(synapses: Sparse, before: Shape, shape: Shape, unit: Float, qmax: int) -> None:
    """Raise ValueError unless the integers of a folded convolution are its kernel's, rounded.

    Each to one of the two neighbouring integers, or to an end of the grid +-``qmax`` where that is nearer.
    ``unit`` [neurons] is the float value of a weight of 1.
    """
    kernel = synapses.kernel
    (c, h, w), (o, y, x) = before, shape
    row, column, weight = conv.unroll(kernel.weight, (c, h, w), (o, y, x), *kernel.geometry)
    expected = np.clip(weight / unit[row], -qmax, qmax)
    place = row.astype(np.int64) * synapses.size[1] + column
    given = synapses.row.astype(np.int64) * synapses.size[1] + synapses.column
    at = np.searchsorted(place, given)
    if (at == len(place)).any() or (place[at] != given).any():
        raise ValueError("a single connection is not one of its convolution's")
    stored = np.zeros(len(place))
    stored[at] = synapses.weight
    if (np.abs(stored - expected) >= 1).any():
        raise ValueError("the single connections are not its convolution, rounded")


def connections(kernel: NDArray[np.bool_], shape: Shape, geometry: Geometry) -> int:
    """How many single connections a convolution of an input ``shape`` has at the weights in ``kernel``."""
    c, h, w = shape
    return int(conv.fan_out(kernel, (c, h, w), *geometry).sum())
