"""Faults: where an integer network is not what its float graph rounds to, and what that looks like.

The rounding itself is no fault. A weight that is not the nearest of its grid is one, a threshold off
by one, a kernel that lies transposed, weights that are all too large by the same factor, a delay that is a
step too long, two connections whose weights were exchanged. Each is found by taking the population's own
units and rounding again. ``rule_faults.py`` has those of rules of neurons, ``runs.py`` those of a run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations, permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stl_deploy.chips import facts as chips
from stl_deploy.ir import floats as W
from stl_deploy.ir import slices
from stl_deploy.ir.floats import FloatConnection, FloatNetwork, FloatPopulation
from stl_deploy.ir.kinds import entry
from stl_deploy.ir.network import Connection, IntegerNetwork, Population
from stl_deploy.ir.synapses import Shape
from stl_deploy.ir.units import DECAY_ONE, FORGETS, FRACTION_BITS
from stl_deploy.lower import graded
from stl_deploy.lower.rules import common_gain
from stl_deploy.verify import fault, pairs, rule_faults
from stl_deploy.verify.fault import TIE, Fault, Row
from stl_deploy.verify.pairs import Pair

Float = NDArray[np.float64]


def of_network(
    network: IntegerNetwork, population: Population, floats: FloatNetwork
) -> list[Fault]:
    """What ``population`` and its connections hold that the float network does not round to, of any cause.

    Of a calibrated population only decays, delays and sources are looked at: its values are no rounding of
    single ones.
    """
    known, paired = floats.by_name[population.name], pairs.of(network, population.name, floats)
    # What brings a bias is looked at as one.
    constant = [m for m, *_ in paired if m is not None and pairs.stands_in(network, m, floats)]
    paired = [pair for pair in paired if pair.mine not in constant]
    faults = [*_ways(population.name, paired)]
    if population.kind != "lif":
        return faults
    how = network.precision.get(population.name)
    if how is None or not how.calibrated:
        faults += _weights_of(network, population, paired, floats)
        faults += _biases(network, population, known, constant)
        if network.lowering != "grouped":  # which rounds thresholds once more, as it likes
            faults += _thresholds(network, population, known)
    return [*faults, *_decays(population, known), *rule_faults.of(population, known)]


def _ways(name: str, paired: list[Pair]) -> Iterator[Fault]:
    """Connections that are too many or missing, of another source or current, or too late or early."""
    for mine, theirs, source, delay in paired:
        if mine is None or theirs is None:
            found = mine or theirs
            assert found is not None
            where = "the float model" if theirs is None else "the integer network"
            text = f"connection {found.name} from {found.source} is not in {where}"
            yield Fault(name, "connection", 1, text)
        elif source != theirs.source:
            text = f"connection {mine.name} comes from {source}, not from {theirs.source}"
            yield Fault(name, "connection", 1, text)
        elif mine.port != theirs.port:
            current = ("the first current", "the second current")
            text = f"connection {mine.name} feeds {current[mine.port]}, not {current[theirs.port]}"
            yield Fault(name, "port", 1, text)
        elif delay != theirs.delay:
            text = (
                f"connection {mine.name} from {source} has a delay of {delay}, not "
                f"{theirs.delay} ({fault.by(delay, theirs.delay, 'much', 'little')})"
            )
            yield Fault(name, "delay", 1, text)


def _worth(network: IntegerNetwork, theirs: FloatConnection, floats: FloatNetwork) -> float:
    """What one of the values that the source of a connection sends is worth in the float network."""
    known, population = floats.by_name.get(theirs.source), network.by_name.get(theirs.source)
    sends = None if population is None else population.neurons.graded
    if known is None or population is None or sends is None:
        return 1.0
    return float(graded.worth(population, known.neurons, sends.shift)[0])


def _weights_of(
    network: IntegerNetwork, population: Population, paired: list[Pair], floats: FloatNetwork
) -> list[Fault]:
    """Faults of the weights of all connections; two that were exchanged are one fault."""
    known = floats.by_name[population.name]

    def faults(mine: Connection, theirs: FloatConnection) -> list[Fault]:
        find = entry(WEIGHTS, mine.synapses.kind, population.name, "the search for faults")
        unit = pairs.units(population, known, theirs.port) / _worth(network, theirs, floats)
        return find(network, population, mine, theirs, unit)

    found: dict[str, list[Fault]] = {}
    both = [(m, t) for m, t, *_ in paired if m is not None and t is not None and pairs.alike(m, t)]
    for mine, theirs in both:
        found[mine.name] = faults(mine, theirs)
    for (a, theirs_a), (b, theirs_b) in combinations(both, 2):
        if not (
            found[a.name]
            and found[b.name]
            and _fits(network, a, theirs_b)
            and _fits(network, b, theirs_a)
        ):
            continue
        if not faults(a, theirs_b) and not faults(b, theirs_a):
            count = sum(one.count for c in (a, b) for one in found[c.name])
            text = f"the weights of {a.name} and {b.name} are exchanged"
            found[a.name], found[b.name] = [Fault(population.name, "connection", count, text)], []
    return [one for some in found.values() for one in some]


def _fits(network: IntegerNetwork, mine: Connection, theirs: FloatConnection) -> bool:
    """Whether weights of ``theirs`` could stand in ``mine``."""
    return pairs.alike(mine, theirs) and math.prod(network.shape(mine.source)) == math.prod(
        network.shape(theirs.source)
    )


def _weights(
    network: IntegerNetwork,
    population: Population,
    mine: Connection,
    theirs: FloatConnection,
    unit: Float,
) -> list[Fault]:
    """Weights that are not the nearest on their grid, and what arrangement of them would be."""
    way = pairs.as_weights(theirs.way)
    assert way is not None
    held, name = mine.synapses.weight, population.name
    worth = pairs.by_output(unit, len(held))
    if worth is None:
        return []
    grid = _Grid.of(mine, worth)
    off = grid.off(held, way.weight)
    if not off.any():
        return []
    rows: NDArray[np.bool_] = off.reshape(len(off), -1).max(axis=1)
    which = "" if rows.all() else f" of {rows.sum()} of its {len(rows)} output channels"
    whose = "" if len(network.into(name)) == 1 else f" of {mine.name}"
    for called, moved in _arrangements(way, network.shape(mine.source)):
        left = int(grid.off(held, moved)[rows].sum())
        if 10 * left < off.sum():
            text = f"the weights{whose}{which} are those of the float model {called}"
            return [Fault(name, "kernel", int(off.sum()), text)]
    if factor := grid.factor(held, way.weight):
        text = f"the weights{whose} are {factor:.6g} times those of the float model"
        return [Fault(name, "input scale", int(off.sum()), text)]
    nearest = np.rint(grid.exact(way.weight))
    listed = [(index, int(held[index]), int(nearest[index])) for index in fault.indices(off)]
    text = fault.listed(int(off.sum()), off.size, f"weights of {mine.name}", listed)
    return [Fault(name, "weight", int(off.sum()), text)]


def _single_weights(
    network: IntegerNetwork,
    population: Population,
    mine: Connection,
    theirs: FloatConnection,
    unit: Float,
) -> list[Fault]:
    """The same for single synapses; those left out hold zero."""
    source = network.shape(mine.source)
    row, column, weight = pairs.unrolled(theirs.way, source, population.shape)
    inputs = math.prod(source)
    neuron, from_, values = (
        (mine.synapses.row, mine.synapses.column, mine.synapses.weight)
        if mine.synapses.kind == "sparse"
        else (*[np.arange(population.size)] * 2, mine.synapses.weight)
    )
    at = np.searchsorted(
        row.astype(np.int64) * inputs + column, neuron.astype(np.int64) * inputs + from_
    )
    held = np.zeros(len(row), np.int64)
    held[at] = values
    grid = _Grid.of(mine, unit.reshape(-1)[row])
    off, nearest = grid.off(held, weight), np.rint(grid.exact(weight))
    if not off.any():
        return []
    listed: list[Row] = [
        ((int(row[i]), int(column[i])), int(held[i]), int(nearest[i]))
        for (i,) in fault.indices(off)
    ]
    what = f"connections (neuron, input) of {mine.name}"
    text = fault.listed(int(off.sum()), off.size, what, listed)
    return [Fault(population.name, "weight", int(off.sum()), text)]


# The faults of weights, by the kind of the synapses.
WEIGHTS: dict[
    str,
    Callable[[IntegerNetwork, Population, Any, FloatConnection, Float], list[Fault]],
] = {
    "conv": _weights,
    "dense": _weights,
    "sparse": _single_weights,
    "one_to_one": _single_weights,
}


@dataclass(frozen=True, eq=False)
class _Grid:
    """The grid of a connection's weights: what one is ``worth`` [rows], and the ``top`` of it."""

    worth: Float
    top: int

    @classmethod
    def of(cls, mine: Connection, unit: Float) -> _Grid:
        """``unit`` [rows] is what a weight is worth without the connection's exponent."""
        return cls(unit * 2.0**mine.exp, slices.largest(mine.precision, mine.bits))

    def unit(self, weight: Float) -> Float:
        """What one is worth, broadcastable to ``weight`` [rows, ...]."""
        return self.worth.reshape(-1, *[1] * (weight.ndim - 1))

    def exact(self, weight: Float) -> Float:
        """Float weights on the grid, at most as large as it."""
        exact: Float = np.clip(weight / self.unit(weight), -self.top, self.top)
        return exact

    def off(self, held: NDArray[Any], weight: Float) -> NDArray[np.bool_]:
        """Which integers are not the nearest to ``weight``."""
        off: NDArray[np.bool_] = np.abs(held - self.exact(weight)) > 0.5 + TIE
        return off

    def factor(self, held: NDArray[Any], weight: Float) -> float | None:
        """The one factor by which all weights are larger than the float ones, if that explains them."""
        unit = self.unit(weight)
        mine = held * unit
        norm = float((weight**2).sum())
        factor = float((mine * weight).sum()) / norm if norm else 0.0
        if factor <= 0 or abs(factor - 1) < 0.01:
            return None
        # The factor is known as well as the rounding allows, so are the weights.
        left = np.abs((mine - factor * weight) / unit)
        return factor if left.max() < 1.5 else None


def _arrangements(way: W.Weights, input_shape: Shape) -> Iterator[tuple[str, Float]]:
    """Float weights as somebody might have laid them out by mistake, and what to call that."""
    weight = way.weight
    if way.geometry is not None:
        yield "mirrored in both directions (a true convolution)", weight[:, :, ::-1, ::-1]
        yield "upside down", weight[:, :, ::-1]
        yield "mirrored left to right", weight[:, :, :, ::-1]
        if weight.shape[2] == weight.shape[3]:
            transposed = weight.swapaxes(2, 3)
            yield "transposed (rows for columns)", transposed
            yield "transposed and mirrored in both directions", transposed[:, :, ::-1, ::-1]
        if weight.shape[0] == weight.shape[1]:
            yield "with input and output channels exchanged", weight.swapaxes(0, 1)
        return
    if weight.shape[0] == weight.shape[1]:
        yield "transposed (inputs for outputs)", weight.T
    if len(input_shape) == 3:
        planes = weight.reshape(len(weight), *input_shape)
        for order in permutations(range(3)):
            if order != (0, 1, 2):
                letters = "".join("CHW"[axis] for axis in order)
                moved = planes.transpose(0, *(axis + 1 for axis in order))
                yield f"with inputs flattened as {letters}, not CHW", moved.reshape(weight.shape)


def _biases(
    network: IntegerNetwork,
    population: Population,
    known: FloatPopulation,
    constant: list[Connection],
) -> Iterator[Fault]:
    """Biases that are not the nearest their register, or weights of a neuron that always fires, can hold."""
    neurons, theirs = population.neurons, known.neurons
    bias, leak = known.bias * theirs.total_gain * common_gain(theirs), theirs.leak
    through = (
        theirs.amplify is None and bool((theirs.current != 1).any()) and bool(known.bias.any())
    )
    for c in constant if through else []:
        bits = slices.largest(c.precision, c.bits)
        one = neurons.scale * 2.0**c.exp
        exact = np.broadcast_to(np.clip(bias / one, -bits, bits), population.shape)
        always = np.ones((1, *network.shape(c.source)), np.int64)
        held = (c.sums(always, 1) >> c.exp).reshape(population.shape)
        yield from _of_biases(population, f"biases ({c.name})", held, exact)
    if through and not constant:
        text = "its bias passes through a current, and no neuron brings it"
        yield Fault(population.name, "bias", 1, text)
    step = 2.0 ** (neurons.bias_exp - FRACTION_BITS)
    wanted = np.broadcast_to(
        ((0 if through else bias) + leak) / (neurons.scale * step), population.shape
    )
    held = np.broadcast_to(neurons.bias_mant, population.shape)
    yield from _of_biases(population, "biases", held, wanted)


def _of_biases(
    population: Population, called: str, held: NDArray[Any], wanted: NDArray[Any]
) -> Iterator[Fault]:
    """The fault that some biases are not the nearest; one for each channel where that says all."""
    by_channel = [pairs.by_output(values, population.shape[0]) for values in (wanted, held)]
    if by_channel[0] is not None and by_channel[1] is not None:
        wanted, held = by_channel[0], by_channel[1]
    wrong = fault.off(held, wanted)
    if wrong.any():
        listed = [(i, int(held[i]), round(wanted[i])) for i in fault.indices(wrong)]
        text = fault.listed(int(wrong.sum()), wrong.size, called, listed)
        yield Fault(population.name, "bias", int(wrong.sum()), text)


def _decays(population: Population, known: FloatPopulation) -> list[Fault]:
    """Decays that are not the nearest their register can hold."""
    neurons, keep = population.neurons, known.neurons.keep
    wanted = np.where(keep == 1, 0.0, np.clip(DECAY_ONE * (1 - keep), 1, FORGETS))
    shape = population.shape
    wanted, keep = np.broadcast_to(wanted, shape), np.broadcast_to(keep, shape)
    held: NDArray[Any] = np.broadcast_to(neurons.dv, shape)
    off = np.abs(held - wanted) > 0.5 + TIE
    if not off.any():
        return []
    first = tuple(map(int, np.argwhere(off)[0]))
    same = bool(np.ptp(wanted) == 0 and np.ptp(held) == 0)
    where = (
        ""
        if same
        else f"{int(off.sum()):,} of {off.size:,} decays are off: at {fault.place(first)} "
    )
    text = (
        f"{where}dv is {held[first]} where a decay to {keep[first]:.6g} rounds to "
        f"{round(DECAY_ONE * (1 - keep[first]))}"
    )
    return [Fault(population.name, "decay", 1 if same else int(off.sum()), text)]


def _thresholds(
    network: IntegerNetwork, population: Population, known: FloatPopulation
) -> list[Fault]:
    """Thresholds that are not ceil(theta / scale) - 1, nor the end of the register."""
    if not (population.neurons.fires and known.neurons.fires):
        return []
    low, high = chips.of(network).threshold_range
    neurons, shape = population.neurons, population.shape
    ratio = np.broadcast_to(known.neurons.theta / neurons.scale, shape)
    if network.lowering == "fold":
        # The unit is theta over a whole number, which a division gives back but nearly.
        whole = np.rint(ratio)
        ratio = np.where(np.abs(ratio - whole) < TIE, whole, ratio)
    nearest = np.clip(np.ceil(ratio) - 1, low, high)
    vth = np.broadcast_to(neurons.vth, shape)
    off = vth != nearest
    if not off.any():
        return []
    listed = [(i, int(vth[i]), int(nearest[i])) for i in fault.indices(off)]
    text = fault.listed(int(off.sum()), off.size, "thresholds", listed)
    return [Fault(population.name, "threshold", int(off.sum()), text)]
