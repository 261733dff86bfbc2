"""Linear maps between two populations, and what several of them in a row or side by side are as one.

A chip holds one layer of weights between two populations of neurons. Graphs put more there: pooling,
scales, BatchNorm, weights behind weights. All of that is linear, so it is multiplied out:

    dense after anything     W2 (W1 x) = (W2 W1) x
    convolution after convolution (and pooling is one)
                             kernel k1 + (k2 - 1) s1 d2, stride s1 s2, padding p1 + p2 s1
    scale                    into rows or columns of dense weights, into channels of a kernel

The second holds where the rim of zeros around the inner result is the rim of the outer one: without
padding in between, or for windows that tile the plane. Maps have no bias; constants are carried apart.
Everything is computed in float64; a map that meets no other stays what it was.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stl_deploy.ir import nir_graph as G
from stl_deploy.ir.conv import convolve, unroll
from stl_deploy.ir.synapses import Pair, Shape

Array = NDArray[Any]
MAX_WEIGHTS = 1 << 27  # of one map that is multiplied out: 1 GiB of float64
MAX_NEURONS = 1 << 24  # of one population, or of what stands between two


class CannotFold(ValueError):
    """Two maps are no single one that a chip can hold; the message says why."""


@dataclass(frozen=True, eq=False)
class Diagonal:
    """Each value times its own factor: ``scale`` [n] in C order, or [1] for all."""

    scale: Array

    @property
    def trivial(self) -> bool:
        """Whether it changes nothing."""
        return bool((self.scale == 1).all())


@dataclass(frozen=True, eq=False)
class Dense:
    """All-to-all: weight [outputs, inputs], inputs in C order."""

    weight: Array


@dataclass(frozen=True, eq=False)
class Conv:
    """PyTorch's cross-correlation [C, H, W] -> [O, H', W']: weight [O, C/groups, kh, kw]."""

    weight: Array
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int
    in_shape: Shape
    out_shape: Shape


Map = Diagonal | Dense | Conv
IDENTITY = Diagonal(np.ones(1))


def conv(
    weight: Array, stride: Pair, padding: Pair, dilation: Pair, groups: int, in_shape: Shape
) -> Conv:
    """A convolution of an input of ``in_shape``. Raises ValueError where it does not fit."""
    if weight.ndim != 4 or len(in_shape) != 3:
        raise ValueError(f"a kernel of shape {weight.shape} for an input of shape {in_shape}")
    outputs, per_group, kh, kw = weight.shape
    if groups < 1 or outputs % groups or per_group * groups != in_shape[0]:
        raise ValueError(
            f"a kernel of shape {weight.shape} in {groups} groups for an input of {in_shape}"
        )
    plane = G.plane(in_shape, (kh, kw), stride, padding, dilation)
    check_size((outputs, *plane))
    return Conv(weight, stride, padding, dilation, groups, in_shape, (outputs, *plane))


def pool(kernel: Pair, stride: Pair, padding: Pair, value: float, in_shape: Shape) -> Conv:
    """Windows added up and times ``value``, as a convolution of every channel by itself."""
    if len(in_shape) != 3 or min(kernel) < 1 or math.prod(kernel) > MAX_NEURONS:
        raise ValueError(f"a window {kernel} for an input of shape {in_shape}")
    weight = np.full((in_shape[0], 1, *kernel), value)
    return conv(weight, stride, padding, (1, 1), in_shape[0], in_shape)


def check_size(shape: Shape) -> None:
    """Raise ValueError for more values than MAX_NEURONS."""
    if math.prod(shape) > MAX_NEURONS:
        raise ValueError(f"{shape} are more than {MAX_NEURONS:,} values")


def apply(one: Map, values: Array) -> Array:
    """``one`` of ``values``, an array of the shape that goes in."""
    match one:
        case Diagonal(scale):
            return values if one.trivial else values * _of(scale, values.shape)
        case Dense(weight):
            product: Array = weight @ values.reshape(-1)
            return product
        case Conv():
            x = values.reshape(1, *one.in_shape).astype(np.float64)
            geometry = one.stride, one.padding, one.dilation, one.groups
            out: Array = convolve(x, one.weight.astype(np.float64), *geometry)[0]
            return out


def after(first: Map, second: Map) -> Map:
    """``second`` of what ``first`` gives. Raises CannotFold where that is no single map."""
    match first, second:
        case Diagonal(), _ if first.trivial:
            return second
        case _, Diagonal() if second.trivial:
            return first
        case Diagonal(a), Diagonal(b):
            return Diagonal(a * b)
        case Diagonal(scale), Dense(weight):
            return Dense(weight.astype(np.float64) * np.broadcast_to(scale, weight[0].shape))
        case Diagonal(scale), Conv(weight):
            factor = per_channel(scale, second.in_shape)
            return replace(second, weight=_input_scaled(second, factor))
        case Dense(weight), Diagonal(scale):
            return Dense(weight.astype(np.float64) * scale.reshape(-1, 1))
        case Conv(weight), Diagonal(scale):
            factor = per_channel(scale, first.out_shape)
            return replace(first, weight=weight.astype(np.float64) * factor[:, None, None, None])
        case Dense(a), Dense(b):
            _check_weights(len(b), a.shape[1])
            return Dense(b.astype(np.float64) @ a.astype(np.float64))
        case Conv(), Dense(weight):
            _check_weights(len(weight), math.prod(first.in_shape))
            return Dense(np.asarray((matrix(first).T @ weight.astype(np.float64).T).T))
        case Conv(), Conv():
            return _conv_after_conv(first, second)
    raise CannotFold(f"a {type(second).__name__} behind a {type(first).__name__}")


def add(one: Map, other: Map) -> Map:
    """Both of the same input, added up. Raises CannotFold where that is no single map."""
    match one, other:
        case Dense(a), Dense(b) if a.shape == b.shape:
            return Dense(a.astype(np.float64) + b)
        case Diagonal(a), Diagonal(b):
            return Diagonal(a + b)
        case Conv(a), Conv(b) if a.shape == b.shape and _geometry(one) == _geometry(other):
            return replace(one, weight=a.astype(np.float64) + b)
        case (Dense(weight), Diagonal(scale)) | (Diagonal(scale), Dense(weight)) if (
            weight.shape[0] == weight.shape[1]
        ):
            diagonal = np.broadcast_to(scale, weight[0].shape)
            return Dense(weight.astype(np.float64) + np.diag(diagonal))
    raise CannotFold(
        f"a {type(one).__name__} and a {type(other).__name__} side by side are no single one"
    )


def matrix(one: Conv) -> Any:
    """The convolution as a sparse matrix float64 [outputs, inputs], both in C order."""
    from scipy.sparse import csr_array

    geometry = one.stride, one.padding, one.dilation, one.groups
    (c, h, w), (o, y, x) = one.in_shape, one.out_shape
    connections = math.prod(one.out_shape) * math.prod(one.weight.shape[1:])
    if connections > MAX_WEIGHTS:
        raise CannotFold(f"{connections:,} single connections; {MAX_WEIGHTS:,} are the limit")
    row, column, weight = unroll(one.weight.astype(np.float64), (c, h, w), (o, y, x), *geometry)
    shape = math.prod(one.out_shape), math.prod(one.in_shape)
    return csr_array((weight, (row, column)), shape=shape)


def dense(one: Map, shape: Shape) -> Dense:
    """``one`` of an input of ``shape`` as dense weights. Raises CannotFold for too many."""
    inputs = math.prod(shape)
    match one:
        case Dense():
            return one
        case Diagonal(scale):
            _check_weights(inputs, inputs)
            return Dense(np.diag(np.broadcast_to(scale, inputs).astype(np.float64)))
        case Conv():
            _check_weights(math.prod(one.out_shape), inputs)
            return Dense(matrix(one).toarray())


def per_channel(values: Array, shape: Shape, rounding: float = 0.0) -> Array:
    """The value of each channel [C] of ``values`` of ``shape``.

    Raises CannotFold where they differ by more than ``rounding`` of the largest.
    """
    full = _of(values, shape).reshape(shape[0], -1)
    if (np.abs(full - full[:, :1]) > rounding * np.abs(full).max()).any():
        raise CannotFold("its values differ within a channel")
    return full[:, 0]


def _of(values: Array, shape: Shape) -> Array:
    """``values`` [n] or [1], in C order, as an array of ``shape``."""
    return np.broadcast_to(values.reshape(-1), (math.prod(shape),)).reshape(shape)


def _geometry(one: Conv) -> tuple[Any, ...]:
    return one.stride, one.padding, one.dilation, one.groups


def _check_weights(outputs: int, inputs: int) -> None:
    if outputs * inputs > MAX_WEIGHTS:
        raise CannotFold(
            f"{outputs:,} x {inputs:,} weights, multiplied out; {MAX_WEIGHTS:,} are the limit"
        )


def _input_scaled(one: Conv, factor: Array) -> Array:
    """The kernel with each input channel times its own factor."""
    groups = factor.reshape(one.groups, 1, -1)
    weight = one.weight.astype(np.float64)
    split = weight.reshape(one.groups, -1, *weight.shape[1:])
    return (split * groups[..., None, None]).reshape(weight.shape)


def _conv_after_conv(first: Conv, second: Conv) -> Conv:
    """The convolution that both are. Raises CannotFold where the rims of zeros do not meet."""
    tiles = (
        first.stride == first.weight.shape[2:]
        and first.padding == (0, 0)
        and first.dilation == (1, 1)
        and all(n % s == 0 for n, s in zip(first.in_shape[1:], first.stride, strict=True))
    )
    if second.padding != (0, 0) and not tiles:
        raise CannotFold("the second pads with zeros what the first gives")
    groups = math.gcd(first.groups, second.groups)
    a, b = (_ungrouped(one, groups) for one in (first, second))
    step = tuple(s * d for s, d in zip(first.stride, second.dilation, strict=True))
    reach = [(k - 1) * d + 1 for k, d in zip(a.shape[3:], first.dilation, strict=True)]
    size = [n + (k - 1) * d for n, k, d in zip(reach, b.shape[3:], step, strict=True)]
    if b.shape[0] * b.shape[1] * a.shape[2] * math.prod(size) > MAX_WEIGHTS:
        raise CannotFold(f"a kernel of {size[0]} x {size[1]}, multiplied out, is too large")
    kernel = np.zeros((groups, b.shape[1], a.shape[2], *size))
    rows, columns = (slice(0, n, d) for n, d in zip(reach, first.dilation, strict=True))
    for i, j in np.ndindex(b.shape[3:]):
        part = kernel[..., i * step[0] :, j * step[1] :][..., : reach[0], : reach[1]]
        part[..., rows, columns] += np.einsum("gom,gmchw->gochw", b[..., i, j], a)
    stride = first.stride[0] * second.stride[0], first.stride[1] * second.stride[1]
    padding = (
        first.padding[0] + second.padding[0] * first.stride[0],
        first.padding[1] + second.padding[1] * first.stride[1],
    )
    weight = kernel.reshape(-1, *kernel.shape[2:])
    return conv(weight, stride, padding, (1, 1), groups, first.in_shape)


def _ungrouped(one: Conv, groups: int) -> Array:
    """The kernel [groups, O/groups, C/groups, kh, kw] with ``groups``, which divide its own."""
    weight = one.weight.astype(np.float64)
    outputs, per_group, kh, kw = weight.shape
    inside = one.groups // groups
    o = outputs // one.groups
    if weight.size * inside > MAX_WEIGHTS:
        raise CannotFold("its groups, multiplied out, are too large")
    full = np.zeros((groups, inside, o, inside, per_group, kh, kw))
    split = weight.reshape(groups, inside, o, per_group, kh, kw)
    for i in range(inside):
        full[:, i, :, i] = split[:, i]
    return full.reshape(groups, outputs // groups, inside * per_group, kh, kw)
