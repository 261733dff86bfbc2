"""Which connection of the float network an integer one stands for, and how their weights compare.

An integer network may have populations that the float one lacks, which only pass on what they receive: relays
(``lower/relays.py``), and copies of a population that receives nothing.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stl_deploy.ir import conv
from stl_deploy.ir.floats import FloatConnection, FloatNetwork, FloatPopulation, Way, Weights
from stl_deploy.ir.network import Connection, IntegerNetwork, Population
from stl_deploy.ir.synapses import Geometry, Shape
from stl_deploy.lower.rules import common_gain

Float = NDArray[np.float64]
Ints = NDArray[np.integer[Any]]
NEAR = 1e-9  # relative: units of one channel that differ by no more than rounding are the same


class Pair(NamedTuple):
    """A connection on both sides; None where a side has none.

    ``source`` and ``delay`` are those of the integer one, through relays.
    """

    mine: Connection | None
    theirs: FloatConnection | None
    source: str = ""
    delay: int = 0


class Row(NamedTuple):
    """The synapses of a neuron: inputs [n], where their weights stand [n, dimensions], float weights [n]."""

    inputs: Ints
    places: Ints
    weight: Float


def of(network: IntegerNetwork, name: str, floats: FloatNetwork) -> list[Pair]:
    """The connections into population ``name``, in the order of the integer network.

    Pairs have the same name and, where that is not clear, the same source.
    """
    left = list(floats.into(name))
    found: dict[tuple[str, str, str], FloatConnection] = {}
    mine = network.into(name)
    from_ = {c.key: origin(network, c, floats) for c in mine}
    for exactly in (True, False):
        for a in mine:
            source, _ = from_[a.key]
            b = next(
                (b for b in left if a.name == b.name and (not exactly or source == b.source)), None
            )
            if a.key not in found and b is not None:
                found[a.key] = b
                left.remove(b)
    return [
        *(Pair(a, found.get(a.key), *from_[a.key]) for a in mine),
        *(Pair(None, b) for b in left),
    ]


def passes_on(network: IntegerNetwork, name: str) -> bool:
    """Whether a population sends what it receives, unchanged, or the same whatever happens."""
    into = network.into(name)
    if not into:
        return True
    relay = network.by_name[name].kind == "or" and len(into) == 1
    only = into[0].synapses
    return relay and only.kind == "one_to_one" and bool((only.weight == 1).all())


def origin(network: IntegerNetwork, c: Connection, floats: FloatNetwork) -> tuple[str, int]:
    """Where a connection comes from, through relays, and how many steps later."""
    source, delay = c.source, c.delay
    while source not in floats.inputs and source not in floats.by_name:
        if source not in network.by_name or not passes_on(network, source):
            break
        before = network.into(source)
        if not before:
            # A copy: of the one that the float connection of the same name comes from.
            same = (b.source for b in floats.into(c.target) if b.name == c.name)
            silent = [name for name in same if name in floats.by_name and not floats.into(name)]
            return (silent[0] if silent else source), delay
        source, delay = before[0].source, delay + before[0].delay
    return source, delay


def as_weights(way: Way) -> Weights | None:
    """A way as all-to-all weights or a kernel; None for factors, which are one for each neuron."""
    if way.kind == "window":
        ones = np.ones((way.channels, 1, *way.kernel))
        return Weights(
            way.name, ones, None, Geometry(way.stride, way.padding, (1, 1), way.channels)
        )
    return None if way.kind == "one_to_one" else way


def factors(way: Way) -> Float:
    """The factors [neurons] of a way that is one for each neuron."""
    assert way.kind == "one_to_one"
    return way.weight.reshape(-1)


def alike(mine: Connection, theirs: FloatConnection) -> bool:
    """Whether the weights of both stand in the same places."""
    way = as_weights(theirs.way)
    if mine.synapses.kind == "one_to_one" or way is None:
        return mine.synapses.kind == "one_to_one" and way is None
    if mine.synapses.kind == "sparse":
        return True
    same = mine.synapses.weight.shape == way.weight.shape
    return same and mine.synapses.geometry == way.geometry


def units(population: Population, known: FloatPopulation, port: int = 0) -> Float:
    """What one weight of exponent 0 to a current is worth in the units of the float graph: [*shape]."""
    scale = np.broadcast_to(population.neurons.scale, population.shape)
    gain = known.neurons.total_gain
    if port and known.neurons.drive2 is not None:
        gain = known.neurons.gain * known.neurons.drive2
    gain = gain * common_gain(known.neurons)
    units: Float = scale / np.broadcast_to(gain, population.shape)
    return units


def stands_in(network: IntegerNetwork, c: Connection, floats: FloatNetwork) -> bool:
    """Whether a connection brings the bias of its target's float neurons, from a neuron that always fires."""
    if c.source not in network.by_name or c.source in floats.by_name or c.port:
        return False
    return not network.into(c.source) and bool(floats.by_name[c.target].bias.any())


def by_output(unit: NDArray[Any], outputs: int) -> NDArray[Any] | None:
    """``unit`` [*shape] of ``outputs``, channels or neurons; None where it differs within a channel."""
    rows = unit.reshape(outputs, -1)
    same = np.abs(rows - rows[:, :1]) <= NEAR * np.abs(rows[:, :1])
    return rows[:, 0].copy() if same.all() else None


def row(way: Way, source: Shape, shape: Shape, neuron: Shape) -> Row:
    """The in-bounds synapses of a float connection into one neuron of a population of ``shape``."""
    flat = int(np.ravel_multi_index(neuron, shape))
    weights = as_weights(way)
    if weights is None:
        return Row(np.array([flat]), np.array([[flat]]), factors(way)[[flat]])
    weight = weights.weight
    if weights.geometry is None:
        columns = np.arange(weight.shape[1])
        index = np.stack([np.full_like(columns, flat), columns], axis=1)
        return Row(columns, index, weight[flat])
    channel, i, j = neuron
    (sh, sw), (ph, pw), (dh, dw), groups = weights.geometry
    _, per_group, kh, kw = weight.shape
    first = channel // (len(weight) // groups) * per_group
    taps = np.indices((per_group, kh, kw)).reshape(3, -1)
    y, x = i * sh + taps[1] * dh - ph, j * sw + taps[2] * dw - pw
    _, height, width = source
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    columns = (((first + taps[0]) * height + y) * width + x)[inside]
    index = np.concatenate([np.full((1, taps.shape[1]), channel), taps]).T[inside]
    return Row(columns, index, weight[tuple(index.T)])


def unrolled(way: Way, source: Shape, shape: Shape) -> tuple[Ints, Ints, Float]:
    """(neuron, input, weight) of every in-bounds synapse, sorted by neuron, then input."""
    weights = as_weights(way)
    if weights is None:
        single = factors(way)
        at = np.arange(len(single))
        return at, at, single
    if weights.geometry is None:
        neurons, inputs = np.indices(weights.weight.shape, np.int32).reshape(2, -1)
        return neurons, inputs, weights.weight.reshape(-1)
    (c, h, w), (o, y, x) = source, shape
    return conv.unroll(weights.weight, (c, h, w), (o, y, x), *weights.geometry)
