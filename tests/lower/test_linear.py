"""Linear maps next to zeros: what concatenations come down to, against matrices."""

from __future__ import annotations

import math

import numpy as np
import pytest

from stl_deploy.lower import linear as L

SEEDS = range(40)


def drawn(seed):
    """A map of images of 6 channels, and the shape of what comes out."""
    rng = np.random.default_rng(seed)
    shape = (6, int(rng.integers(2, 5)), int(rng.integers(2, 5)))
    kind = rng.choice(["conv", "dense", "scale", "scale of channels"])
    if kind == "conv":
        groups = int(rng.choice([1, 2, 3, 6]))
        weight = rng.normal(size=(6, 6 // groups, 2, 2))
        way = L.conv(weight, (1, 2), (1, 0), (1, 1), groups, shape)
        return rng, way, shape, way.out_shape
    if kind == "dense":
        return rng, L.Dense(rng.normal(size=(5, math.prod(shape)))), shape, (5,)
    values = rng.normal(size=shape if kind == "scale" else (6, 1, 1))
    return rng, L.Diagonal(np.broadcast_to(values, shape).ravel().copy()), shape, shape


@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_read_of_a_part(seed):
    """The rest is 0, so that only the columns of the part matter."""
    rng, way, shape, _ = drawn(seed)
    first, last = sorted(rng.choice(7, 2, replace=False).tolist())
    area = math.prod(shape[1:])
    place = L.Place(first * area, (last - first) * area, math.prod(shape))
    x = rng.normal(size=(last - first, *shape[1:]))
    part, found = L.reading(way, place)
    got = part.apply(x).ravel()
    got = got if found is None else found.filled(got)
    np.testing.assert_allclose(got, way.apply(place.filled(x).reshape(shape)).ravel())


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("flat", [False, True])
def test_rows_of_zeros(seed, flat):
    rng, way, shape, out = drawn(seed)
    no_kernel = len(out) < 3 or (way.kind == "scale" and np.ptp(way.scale.reshape(6, -1)[0]) > 0)
    flat = flat or no_kernel
    area = math.prod(out[1:])
    total = (out[0] + 3, *out[1:])
    place = L.Place(2 * area, math.prod(out), math.prod(total))
    x = rng.normal(size=shape)
    whole = L.among_zeros(way, place, shape, (math.prod(total),) if flat else total)
    assert whole.kind == ("dense" if flat else "conv") or way.kind == "dense"
    np.testing.assert_allclose(whole.apply(x).ravel(), place.filled(way.apply(x)))


def test_a_channel_that_is_split():
    way = L.conv(np.ones((1, 2, 1, 1)), (1, 1), (0, 0), (1, 1), 1, (2, 2, 2))
    with pytest.raises(L.CannotFold, match="splits a channel"):
        L.reading(way, L.Place(2, 4, 8))


def test_a_place_within_a_place():
    inside, outer = L.Place(1, 2, 4), L.Place(3, 4, 9)
    assert inside.within(outer) == (4, 2, 9)
    values = np.array([5.0, 6.0])
    np.testing.assert_array_equal(
        inside.within(outer).filled(values), outer.filled(inside.filled(values))
    )
