"""Linear maps between two populations, and what several of them in a row or side by side are as one.

A chip holds one layer of weights between two populations of neurons. Graphs put more there: pooling,
scales, BatchNorm, several weights in a row. All of that is linear, so it is multiplied out:

    dense after anything     W2 (W1 x) = (W2 W1) x
    convolution after convolution (and pooling is one)
                             kernel k1 + (k2 - 1) s1 d2, stride s1 s2, padding p1 + p2 s1
    scale                    into rows or columns of dense weights, into channels of a kernel
    place among zeros        rows of zeros of what is before it, columns less of what is behind it

The second holds where the rim of zeros around the inner result is the rim of the outer one: without
padding in between, or for windows that tile the plane. Maps have no bias; constants are carried apart.
Everything is computed in float64; a map that meets no other stays what it was.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from stl_deploy.ir import nir_graph as G
from stl_deploy.ir.conv import convolve, unroll
from stl_deploy.ir.synapses import Geometry, Pair, Shape

Array = NDArray[Any]
MAX_WEIGHTS = 1 << 27  # of one map that is multiplied out: 1 GiB of float64
MAX_NEURONS = 1 << 24  # of one population, or of what stands between two


class CannotFold(ValueError):
    """Two maps are no single one that a chip can hold; the message says why."""


@dataclass(frozen=True, eq=False)
class Diagonal:
    """Each value times its own factor: ``scale`` [n] in C order, or [1] for all."""

    scale: Array

    kind: ClassVar[Literal["scale"]] = "scale"

    @property
    def trivial(self) -> bool:
        """Whether it changes nothing."""
        return bool((self.scale == 1).all())

    @property
    def counts(self) -> bool:
        """Whether spikes so scaled are still counts of spikes, of all neurons alike."""
        return bool(np.ptp(self.scale) == 0 and self.scale.flat[0] > 0)

    def apply(self, values: Array) -> Array:
        """The map of ``values``, an array of the shape that goes in."""
        return values if self.trivial else values * _of(self.scale, values.shape)

    def dense(self, shape: Shape) -> Dense:
        """The same of an input of ``shape`` as dense weights. Raises CannotFold for too many."""
        inputs = math.prod(shape)
        _check_weights(inputs, inputs)
        return Dense(np.diag(np.broadcast_to(self.scale, inputs).astype(np.float64)))

    def weights(self, shape: Shape) -> Dense | Conv:
        """Weights of their own between neurons of ``shape``: of each channel, or of each neuron."""
        if len(shape) < 3:
            return self.dense(shape)
        factor = per_channel(self.scale, shape).astype(np.float64).reshape(-1, 1, 1, 1)
        return conv(factor, (1, 1), (0, 0), (1, 1), shape[0], shape)

    def full(self, shape: Shape) -> Array:
        """The factors as float64 of ``shape``."""
        return np.broadcast_to(_of(self.scale, shape), shape).astype(np.float64)

    def rows_times(self, factor: Array) -> Diagonal:
        """Each value times one more factor of its own."""
        return Diagonal(self.scale.astype(np.float64) * factor.reshape(-1))

    def divided(self, by: int) -> Diagonal:
        """All factors divided."""
        return Diagonal(self.scale.astype(np.float64) / by)

    def same(self, other: Map) -> bool:
        """Whether it is the same map."""
        return other.kind == "scale" and np.array_equal(self.scale, other.scale)


@dataclass(frozen=True, eq=False)
class Dense:
    """All-to-all: weight [outputs, inputs], inputs in C order."""

    weight: Array

    kind: ClassVar[Literal["dense"]] = "dense"

    def apply(self, values: Array) -> Array:
        """See ``Diagonal``."""
        product: Array = self.weight @ values.reshape(-1)
        return product

    def dense(self, _shape: Shape) -> Dense:
        """See ``Diagonal``."""
        return self

    def rows_times(self, factor: Array) -> Dense:
        """Each row times its own factor."""
        return Dense(self.weight.astype(np.float64) * factor.reshape(-1, 1))

    def divided(self, by: int) -> Dense:
        """All weights divided."""
        return Dense(self.weight.astype(np.float64) / by)

    def same(self, other: Map) -> bool:
        """See ``Diagonal``."""
        return other.kind == "dense" and np.array_equal(self.weight, other.weight)


@dataclass(frozen=True, eq=False)
class Conv:
    """PyTorch's cross-correlation [C, H, W] -> [O, H', W']: weight [O, C/groups, kh, kw]."""

    weight: Array
    geometry: Geometry
    in_shape: Shape
    out_shape: Shape

    kind: ClassVar[Literal["conv"]] = "conv"

    def apply(self, values: Array) -> Array:
        """See ``Diagonal``."""
        x = values.reshape(1, *self.in_shape).astype(np.float64)
        out: Array = convolve(x, self.weight.astype(np.float64), *self.geometry)[0]
        return out

    def dense(self, shape: Shape) -> Dense:
        """See ``Diagonal``."""
        _check_weights(math.prod(self.out_shape), math.prod(shape))
        return Dense(matrix(self).toarray())

    def channels_times(self, factor: Array) -> Conv:
        """Each output channel times its own factor."""
        return replace(self, weight=self.weight.astype(np.float64) * factor[:, None, None, None])

    def divided(self, by: int) -> Conv:
        """All weights divided."""
        return replace(self, weight=self.weight.astype(np.float64) / by)

    def same(self, other: Map) -> bool:
        """See ``Diagonal``."""
        if other.kind != "conv" or other.geometry != self.geometry:
            return False
        return np.array_equal(self.weight, other.weight)

    @property
    def window(self) -> Pair | None:
        """Its window, where it adds up the same positive multiple of all values in windows that tile."""
        kernel = self.weight.shape[2], self.weight.shape[3]
        stride, padding, dilation, groups = self.geometry
        alone = self.weight.shape[1] == 1 and len(self.weight) == groups == self.in_shape[0]
        tiles = stride == kernel and padding == (0, 0) and dilation == (1, 1)
        least = self.weight.min()
        return kernel if alone and tiles and least > 0 and self.weight.max() == least else None


Map = Diagonal | Dense | Conv
IDENTITY = Diagonal(np.ones(1))


class Place(NamedTuple):
    """Where values stand among zeros: ``size`` of them from ``start`` on, of ``total``, in C order."""

    start: int
    size: int
    total: int

    def filled(self, values: Array, rest: float = 0.0) -> Array:
        """``values`` [size] at their place, ``rest`` everywhere else: float64 [total]."""
        full = np.full(self.total, rest)
        full[self.start : self.start + self.size] = values.reshape(-1)
        return full

    def within(self, outer: Place) -> Place:
        """The place of the values where all that it is of stands at ``outer``."""
        return Place(outer.start + self.start, self.size, outer.total)


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
    geometry = Geometry(stride, padding, dilation, groups)
    return Conv(weight, geometry, in_shape, (outputs, *plane))


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


def after(first: Map, second: Map) -> Map:
    """``second`` of what ``first`` gives. Raises CannotFold where that is not a single map."""
    if first.kind == "scale" and first.trivial:
        return second
    if second.kind == "scale" and second.trivial:
        return first
    combine = AFTER.get((first.kind, second.kind))
    if combine is None:
        raise CannotFold(f"a {second.kind} layer behind a {first.kind} layer")
    return combine(first, second)


def add(one: Map, other: Map) -> Map:
    """Both of the same input, added up. Raises CannotFold where that is not a single map."""
    combine = ADD.get((one.kind, other.kind))
    total = None if combine is None else combine(one, other)
    if total is None:
        raise CannotFold(
            f"a {one.kind} layer and a {other.kind} layer in parallel are not a single layer"
        )
    return total


def reading(way: Map, place: Place) -> tuple[Map, Place | None]:
    """What ``way`` makes of values at ``place`` alone, and the place of that; None where it is all."""
    start, stop = place.start, place.start + place.size
    if way.kind == "scale":
        return (way if way.scale.size == 1 else Diagonal(way.scale[start:stop])), place
    if way.kind == "dense":
        return Dense(way.weight[:, start:stop]), None
    area = math.prod(way.in_shape[1:])
    if start % area or stop % area:
        raise CannotFold("a concatenation that splits a channel is followed by a convolution")
    first, last = start // area, stop // area
    in_shape = (last - first, *way.in_shape[1:])
    (outputs, each), groups = way.weight.shape[:2], way.geometry.groups
    if groups == 1 or first % each or last % each:
        weight = way.weight if groups == 1 else _ungrouped(way, 1)[0]
        geometry = way.geometry._replace(groups=1)
        return Conv(weight[:, first:last], geometry, in_shape, way.out_shape), None
    first, last, inside = first // each, last // each, outputs // groups
    geometry = way.geometry._replace(groups=last - first)
    rows = slice(first * inside, last * inside)
    out_shape = ((last - first) * inside, *way.out_shape[1:])
    area = math.prod(way.out_shape[1:])
    found = Place(first * inside * area, math.prod(out_shape), math.prod(way.out_shape))
    return Conv(way.weight[rows], geometry, in_shape, out_shape), found


def among_zeros(way: Map, place: Place, in_shape: Shape, shape: Shape) -> Dense | Conv:
    """``way`` of an input of ``in_shape`` with rows of zeros, so that values of ``shape`` come out."""
    area = math.prod(shape[1:])
    image = len(shape) == 3 and not place.start % area and not place.size % area
    if way.kind == "scale" and image and in_shape[1:] == shape[1:]:
        way = way.weights(in_shape)
    if way.kind == "conv" and image:
        channels = slice(place.start // area, (place.start + place.size) // area)
        kernel = _ungrouped(way, 1)[0]
        weight = np.zeros((shape[0], *kernel.shape[1:]))
        weight[channels] = kernel
        return Conv(weight, way.geometry._replace(groups=1), way.in_shape, shape)
    inside = way.dense(in_shape).weight
    _check_weights(place.total, inside.shape[1])
    rows = np.zeros((place.total, inside.shape[1]))
    rows[place.start : place.start + place.size] = inside
    return Dense(rows)


def _scale_scale(first: Diagonal, second: Diagonal) -> Map:
    return Diagonal(first.scale * second.scale)


def _scale_dense(first: Diagonal, second: Dense) -> Map:
    weight = second.weight
    return Dense(weight.astype(np.float64) * np.broadcast_to(first.scale, weight[0].shape))


def _scale_conv(first: Diagonal, second: Conv) -> Map:
    factor = per_channel(first.scale, second.in_shape)
    return replace(second, weight=_input_scaled(second, factor))


def _dense_scale(first: Dense, second: Diagonal) -> Map:
    return first.rows_times(second.scale)


def _conv_scale(first: Conv, second: Diagonal) -> Map:
    return first.channels_times(per_channel(second.scale, first.out_shape))


def _dense_dense(first: Dense, second: Dense) -> Map:
    _check_weights(len(second.weight), first.weight.shape[1])
    return Dense(second.weight.astype(np.float64) @ first.weight.astype(np.float64))


def _conv_dense(first: Conv, second: Dense) -> Map:
    _check_weights(len(second.weight), math.prod(first.in_shape))
    return Dense(np.asarray((matrix(first).T @ second.weight.astype(np.float64).T).T))


def _dense_and_dense(one: Dense, other: Dense) -> Map | None:
    if one.weight.shape != other.weight.shape:
        return None
    return Dense(one.weight.astype(np.float64) + other.weight)


def _conv_and_conv(one: Conv, other: Conv) -> Map | None:
    if one.weight.shape != other.weight.shape or one.geometry != other.geometry:
        return None
    return replace(one, weight=one.weight.astype(np.float64) + other.weight)


def _dense_and_scale(one: Dense, other: Diagonal) -> Map | None:
    weight = one.weight
    if weight.shape[0] != weight.shape[1]:
        return None
    return Dense(weight.astype(np.float64) + np.diag(np.broadcast_to(other.scale, weight[0].shape)))


def matrix(one: Conv) -> Any:
    """The convolution as a sparse matrix float64 [outputs, inputs], both in C order."""
    (c, h, w), (o, y, x) = one.in_shape, one.out_shape
    connections = math.prod(one.out_shape) * math.prod(one.weight.shape[1:])
    if connections > MAX_WEIGHTS:
        raise CannotFold(f"{connections:,} single connections; {MAX_WEIGHTS:,} are the limit")
    row, column, weight = unroll(one.weight.astype(np.float64), (c, h, w), (o, y, x), *one.geometry)
    shape = math.prod(one.out_shape), math.prod(one.in_shape)
    return csr_array((weight, (row, column)), shape=shape)


def per_channel(values: Array, shape: Shape, rounding: float = 0.0) -> Array:
    """The value of each channel [C] of ``values`` of ``shape``.

    Raises CannotFold where they differ by more than ``rounding`` of the largest.
    """
    full = _of(values, shape).reshape(shape[0], -1)
    if (np.abs(full - full[:, :1]) > rounding * np.abs(full).max()).any():
        raise CannotFold("its values differ within a channel")
    return full[:, 0].copy()


def _of(values: Array, shape: Shape) -> Array:
    """``values`` [n] or [1], in C order, as an array of ``shape``."""
    return np.broadcast_to(values.reshape(-1), (math.prod(shape),)).reshape(shape)


def _check_weights(outputs: int, inputs: int) -> None:
    if outputs * inputs > MAX_WEIGHTS:
        raise CannotFold(
            f"{outputs:,} x {inputs:,} weights, multiplied out; {MAX_WEIGHTS:,} are the limit"
        )


def _input_scaled(one: Conv, factor: Array) -> Array:
    """The kernel with each input channel times its own factor."""
    groups = factor.reshape(one.geometry.groups, 1, -1)
    weight = one.weight.astype(np.float64)
    split = weight.reshape(one.geometry.groups, -1, *weight.shape[1:])
    return (split * groups[..., None, None]).reshape(weight.shape)


def _conv_after_conv(first: Conv, second: Conv) -> Conv:
    """The convolution that both are. Raises CannotFold where the rims of zeros do not meet."""
    inner, outer = first.geometry, second.geometry
    tiles = (
        inner.stride == first.weight.shape[2:]
        and inner.padding == (0, 0)
        and inner.dilation == (1, 1)
        and all(n % s == 0 for n, s in zip(first.in_shape[1:], inner.stride, strict=True))
    )
    if outer.padding != (0, 0) and not tiles:
        raise CannotFold("the second pads with zeros what the first gives")
    groups = math.gcd(inner.groups, outer.groups)
    a, b = (_ungrouped(one, groups) for one in (first, second))
    step = tuple(s * d for s, d in zip(inner.stride, outer.dilation, strict=True))
    reach = [(k - 1) * d + 1 for k, d in zip(a.shape[3:], inner.dilation, strict=True)]
    size = [n + (k - 1) * d for n, k, d in zip(reach, b.shape[3:], step, strict=True)]
    if b.shape[0] * b.shape[1] * a.shape[2] * math.prod(size) > MAX_WEIGHTS:
        raise CannotFold(f"a kernel of {size[0]} x {size[1]}, multiplied out, is too large")
    kernel = np.zeros((groups, b.shape[1], a.shape[2], *size))
    rows, columns = (slice(0, n, d) for n, d in zip(reach, inner.dilation, strict=True))
    for i, j in np.ndindex(b.shape[3:]):
        part = kernel[..., i * step[0] :, j * step[1] :][..., : reach[0], : reach[1]]
        part[..., rows, columns] += np.einsum("gom,gmchw->gochw", b[..., i, j], a)
    stride = inner.stride[0] * outer.stride[0], inner.stride[1] * outer.stride[1]
    padding = (
        inner.padding[0] + outer.padding[0] * inner.stride[0],
        inner.padding[1] + outer.padding[1] * inner.stride[1],
    )
    weight = kernel.reshape(-1, *kernel.shape[2:])
    return conv(weight, stride, padding, (1, 1), groups, first.in_shape)


def _ungrouped(one: Conv, groups: int) -> Array:
    """The kernel [groups, O/groups, C/groups, kh, kw] with ``groups``, which divide its own."""
    weight = one.weight.astype(np.float64)
    outputs, per_group, kh, kw = weight.shape
    inside = one.geometry.groups // groups
    o = outputs // one.geometry.groups
    if weight.size * inside > MAX_WEIGHTS:
        raise CannotFold("its groups, multiplied out, are too large")
    full = np.zeros((groups, inside, o, inside, per_group, kh, kw))
    split = weight.reshape(groups, inside, o, per_group, kh, kw)
    for i in range(inside):
        full[:, i, :, i] = split[:, i]
    return full.reshape(groups, outputs // groups, inside * per_group, kh, kw)


AFTER: dict[tuple[str, str], Callable[[Any, Any], Map]] = {
    ("scale", "scale"): _scale_scale,
    ("scale", "dense"): _scale_dense,
    ("scale", "conv"): _scale_conv,
    ("dense", "scale"): _dense_scale,
    ("dense", "dense"): _dense_dense,
    ("conv", "scale"): _conv_scale,
    ("conv", "dense"): _conv_dense,
    ("conv", "conv"): _conv_after_conv,
}
ADD: dict[tuple[str, str], Callable[[Any, Any], Map | None]] = {
    ("scale", "scale"): lambda one, other: Diagonal(one.scale + other.scale),
    ("dense", "dense"): _dense_and_dense,
    ("conv", "conv"): _conv_and_conv,
    ("dense", "scale"): _dense_and_scale,
    ("scale", "dense"): lambda one, other: _dense_and_scale(other, one),
}
