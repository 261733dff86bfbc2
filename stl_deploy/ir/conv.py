"""2-d cross-correlation in numpy, shared by the float executor and the integer reference."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from scipy.sparse import csr_array

Pair = tuple[int, int]


def convolve(
    x: NDArray[Any],
    weight: NDArray[Any],
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
) -> NDArray[Any]:
    """Cross-correlation as in PyTorch: x [N, C, H, W], weight [O, C/groups, kh, kw].

    Both are of one floating dtype and so is the result [N, O, H', W']. Integers come out exact as
    long as every sum of magnitudes stays below 2^24 (float32) or 2^53 (float64).
    """
    seen = windows(x, (weight.shape[2], weight.shape[3]), stride, padding, dilation)
    parts = [
        np.tensordot(part, w, axes=([1, 4, 5], [1, 2, 3]))
        for part, w in zip(
            np.split(seen, groups, axis=1), np.split(weight, groups, axis=0), strict=True
        )
    ]
    return np.moveaxis(np.concatenate(parts, axis=3), 3, 1)


def windows(
    x: NDArray[Any], kernel: Pair, stride: Pair, padding: Pair, dilation: Pair
) -> NDArray[Any]:
    """What each output of a convolution sees of x [N, C, H, W]: a view [N, C, H', W', kh, kw]."""
    (ph, pw), (dh, dw), (sh, sw) = padding, dilation, stride
    x = np.pad(x, ((0, 0), (0, 0), (ph, ph), (pw, pw)))
    reach = (dh * (kernel[0] - 1) + 1, dw * (kernel[1] - 1) + 1)
    return sliding_window_view(x, reach, axis=(2, 3))[:, :, ::sh, ::sw, ::dh, ::dw]


def fan_out(
    nonzero: NDArray[np.bool_],
    shape: tuple[int, int, int],
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
) -> NDArray[np.int64]:
    """How many synapses leave each input neuron: int64 of the input ``shape`` (C, H, W).

    Synapses are the non-zero weights ``nonzero`` [O, C/groups, kh, kw] at in-bounds positions.
    """
    out_channels, _, kh, kw = nonzero.shape
    per_channel = nonzero.reshape(groups, out_channels // groups, *nonzero.shape[1:]).sum(1)
    per_channel = per_channel.reshape(shape[0], kh, kw)
    size = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, p, d, k, s in zip(shape[1:], padding, dilation, (kh, kw), stride, strict=True)
    ]
    padded = np.zeros((shape[0], shape[1] + 2 * padding[0], shape[2] + 2 * padding[1]), np.int64)
    for i, j in np.ndindex(kh, kw):
        rows = slice(i * dilation[0], i * dilation[0] + stride[0] * (size[0] - 1) + 1, stride[0])
        cols = slice(j * dilation[1], j * dilation[1] + stride[1] * (size[1] - 1) + 1, stride[1])
        padded[:, rows, cols] += per_channel[:, i, j, None, None]
    return padded[:, padding[0] : padding[0] + shape[1], padding[1] : padding[1] + shape[2]]


def fan_out_into(
    nonzero: NDArray[np.bool_],
    part: NDArray[np.integer[Any]],
    parts: int,
    shape: tuple[int, int, int],
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
) -> csr_array:
    """``fan_out`` by the part of the outputs that the synapses lead to: int32 [parts, inputs].

    ``part`` [O, H', W'] is the number of each output's part. Synapses are not listed one by one: with k over
    output channels and taps, the result is [(part, position), k] times [k, input channel].
    """
    outputs, per_group, *kernel = nonzero.shape
    stored = np.zeros((outputs, *kernel, shape[0]), np.int32)
    for o in range(outputs):
        first = o // (outputs // groups) * per_group
        stored[o, ..., first : first + per_group] = np.moveaxis(nonzero[o], 0, -1)
    o, p, q, i, j = np.indices((outputs, *kernel, *part.shape[1:]), sparse=True)
    y = i * stride[0] + p * dilation[0] - padding[0]
    x = j * stride[1] + q * dilation[1] - padding[1]
    inside = (y >= 0) & (y < shape[1]) & (x >= 0) & (x < shape[2])
    own = part[:, None, None]
    position = y * shape[2] + x
    k = (o * kernel[0] + p) * kernel[1] + q
    full = np.broadcast_shapes(inside.shape, own.shape, k.shape)
    inside, own, position, k = (np.broadcast_to(a, full) for a in (inside, own, position, k))
    places = shape[1] * shape[2]
    where = csr_array(
        (
            np.ones(np.count_nonzero(inside), np.int32),
            (own[inside] * places + position[inside], k[inside]),
        ),
        shape=(parts * places, outputs * kernel[0] * kernel[1]),
    )
    total = (where @ stored.reshape(-1, shape[0])).reshape(parts, places, shape[0])
    return csr_array(np.moveaxis(total, -1, 1).reshape(parts, -1))


def unroll(
    weight: NDArray[Any],
    shape: tuple[int, int, int],
    out_shape: tuple[int, int, int],
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[Any]]:
    """Every in-bounds synapse of a convolution [C, H, W] -> [O, H', W'] on its own.

    Returns (row, column, weight) of n synapses, sorted by row, then column: ``row`` counts the
    neurons and ``column`` the inputs in C order.
    """
    (outputs, per_group, kh, kw), (_, height, width) = weight.shape, shape
    y, x = (
        np.arange(n)[:, None] * s + np.arange(k) * d - p
        for n, s, k, d, p in zip(out_shape[1:], stride, (kh, kw), dilation, padding, strict=True)
    )
    first = np.arange(outputs) // (outputs // groups) * per_group
    channel = first[:, None] + np.arange(per_group)
    # Axes: output channel, output row, output column, input channel, kernel row, kernel column.
    size = (outputs, *out_shape[1:], per_group, kh, kw)
    plane = y[:, None, :, None] * width + x[None, :, None, :]
    column = channel[:, None, None, :, None, None] * (height * width) + plane[None, :, :, None]
    inside = ((y >= 0) & (y < height))[:, None, :, None] & ((x >= 0) & (x < width))[:, None, :]
    inside = np.broadcast_to(inside[None, :, :, None], size)
    row = np.arange(math.prod(out_shape), dtype=np.int32).reshape(*out_shape, 1, 1, 1)
    values = weight[:, None, None]
    return (
        np.broadcast_to(row, size)[inside],
        np.broadcast_to(column.astype(np.int32), size)[inside],
        np.broadcast_to(values, size)[inside],
    )
