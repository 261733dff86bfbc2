"""Convolutions as single connections: how many there are, and whether integers are a kernel's, rounded."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stl_deploy.ir import conv, slices
from stl_deploy.ir.chain import LifLayer
from stl_deploy.ir.synapses import Geometry, Shape, Sparse
from stl_deploy.ir.units import FRACTION_BITS

MOST = 1 << 25  # single connections of a network, where the chip itself sets no limit


def check(layer: LifLayer, synapses: Sparse) -> None:
    """Raise ValueError unless the integers of a folded convolution are its kernel's, rounded.

    Each to one of the two neighbouring integers, or to an end of the grid where that is nearer.
    """
    kernel = synapses.kernel
    (c, h, w), (o, y, x) = layer.input_shape, layer.shape
    row, column, weight = conv.unroll(kernel.weight, (c, h, w), (o, y, x), *kernel.geometry)
    unit = layer.scale * 2.0**layer.exp
    qmax = slices.largest(layer.weight_precision, layer.weight_bits)
    expected = np.clip(weight / unit[row], -qmax, qmax)
    place = row.astype(np.int64) * synapses.size[1] + column
    given = synapses.row.astype(np.int64) * synapses.size[1] + synapses.column
    at = np.searchsorted(place, given)
    if (at == len(place)).any() or (place[at] != given).any():
        raise ValueError("a single connection is not one of its convolution's")
    stored = np.zeros(len(place))
    stored[at] = synapses.weight
    step = 2.0 ** (layer.bias_exp - FRACTION_BITS)
    bias = layer.bias_mant * step
    wanted = np.repeat(kernel.bias, layer.neurons // len(kernel.bias)) / layer.scale
    if (np.abs(stored - expected) >= 1).any() or (np.abs(bias - wanted) >= step).any():
        raise ValueError("the single connections are not its convolution, rounded")


def connections(kernel: NDArray[np.bool_], shape: Shape, geometry: Geometry) -> int:
    """How many single connections a convolution of an input ``shape`` has at the weights in ``kernel``."""
    c, h, w = shape
    return int(conv.fan_out(kernel, (c, h, w), *geometry).sum())
