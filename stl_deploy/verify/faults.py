"""Faults: where an integer network is not what its float graph rounds to, and what that looks like.

The rounding itself is no fault. A weight that is not the nearest of its grid is one, a threshold off
by one, a kernel that lies transposed, weights that are all too large by the same factor, a delay that is a
step too long, two connections whose weights were exchanged; and a population that ran as if its inputs had
come a time step late. Each is found by taking the population's own units and rounding again, or by running
the population again as it would be.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import combinations, permutations
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from stl_deploy.chips import facts as chips
from stl_deploy.hw_sim import reference
from stl_deploy.ir import cut, slices
from stl_deploy.ir import floats as W
from stl_deploy.ir.floats import FloatConnection, FloatNetwork, FloatPopulation
from stl_deploy.ir.kinds import entry
from stl_deploy.ir.network import Connection, IntegerNetwork, Population
from stl_deploy.ir.slices import Weights
from stl_deploy.ir.synapses import Shape
from stl_deploy.ir.units import DECAY_ONE, FORGETS, FRACTION_BITS
from stl_deploy.verify import pairs
from stl_deploy.verify.pairs import Pair

Float = NDArray[np.float64]
Sent = Mapping[
    str, NDArray[Any]
]  # what inputs and populations send in a sample, [T, *shape] by name
Kind = Literal[
    "weight",
    "threshold",
    "bias",
    "decay",
    "kernel",
    "input scale",
    "time step",
    "delay",
    "connection",
]
# What a mistake is called, its kind, and the network and what is sent that it would have run with.
Runs = Iterator[tuple[str, Kind, IntegerNetwork, Sent]]
Row = tuple[tuple[int, ...], int, int]  # where a value stands, what it is, what it should be
NAMED = 3  # values that a message lists before it says "..."
TIE = 1e-6  # of a unit: values so near to the middle of two integers round to either


@dataclass(frozen=True)
class Fault:
    """One thing about the population ``layer`` that no rounding explains; it concerns ``count`` values."""

    layer: str
    kind: Kind
    count: int
    text: str

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def of_network(
    network: IntegerNetwork, population: Population, floats: FloatNetwork
) -> list[Fault]:
    """What ``population`` and its connections hold that the float network does not round to, of any cause.

    Of a calibrated population only decays, delays and sources are looked at: its values are no rounding of
    single ones.
    """
    known, paired = floats.by_name[population.name], pairs.of(network, population.name, floats)
    faults = [*_ways(population.name, paired)]
    how = network.precision.get(population.name)
    if population.kind == "lif" and (how is None or not how.calibrated):
        unit = pairs.units(population, known)
        faults += _weights_of(network, population, paired, unit)
        faults += _biases(population, known)
        if network.lowering != "grouped":  # which rounds thresholds once more, as it likes
            faults += _thresholds(network, population, known)
    return faults + (_decays(population, known) if population.kind == "lif" else [])


def _ways(name: str, paired: list[Pair]) -> Iterator[Fault]:
    """Connections that are too many or missing, of another source, or too late or early."""
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
        elif delay != theirs.delay:
            text = (
                f"connection {mine.name} from {source} has a delay of {delay}, not "
                f"{theirs.delay} ({_by(delay, theirs.delay, 'much', 'little')})"
            )
            yield Fault(name, "delay", 1, text)


def _weights_of(
    network: IntegerNetwork, population: Population, paired: list[Pair], unit: Float
) -> list[Fault]:
    """Faults of the weights of all connections; two that were exchanged are one fault."""
    found: dict[str, list[Fault]] = {}
    both = [(m, t) for m, t, *_ in paired if m is not None and t is not None and pairs.alike(m, t)]
    for mine, theirs in both:
        find = entry(WEIGHTS, mine.synapses.kind, population.name, "the search for faults")
        found[mine.name] = find(network, population, mine, theirs, unit)
    for (a, theirs_a), (b, theirs_b) in combinations(both, 2):
        if not (
            found[a.name]
            and found[b.name]
            and _fits(network, a, theirs_b)
            and _fits(network, b, theirs_a)
        ):
            continue
        exchanged = [
            WEIGHTS[m.synapses.kind](network, population, m, t, unit)
            for m, t in ((a, theirs_b), (b, theirs_a))
        ]
        if not any(exchanged):
            count = sum(fault.count for c in (a, b) for fault in found[c.name])
            text = f"the weights of {a.name} and {b.name} are exchanged"
            found[a.name], found[b.name] = [Fault(population.name, "connection", count, text)], []
    return [fault for some in found.values() for fault in some]


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
    listed = [(index, int(held[index]), int(nearest[index])) for index in _indices(off)]
    text = _list(int(off.sum()), off.size, f"weights of {mine.name}", listed)
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
        ((int(row[i]), int(column[i])), int(held[i]), int(nearest[i])) for (i,) in _indices(off)
    ]
    what = f"connections (neuron, input) of {mine.name}"
    text = _list(int(off.sum()), off.size, what, listed)
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
        left = np.abs(mine - factor * weight) / unit
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


def _biases(population: Population, known: FloatPopulation) -> list[Fault]:
    """Biases that are not the nearest their register can hold."""
    neurons, shape = population.neurons, population.shape
    step = 2.0 ** (neurons.bias_exp - FRACTION_BITS)
    bias = known.bias * known.neurons.total_gain + known.neurons.leak
    wanted = np.broadcast_to(bias / (neurons.scale * step), shape)
    held: NDArray[Any] = np.broadcast_to(neurons.bias_mant, shape)
    by_channel = [pairs.by_output(values, shape[0]) for values in (wanted, held)]
    if by_channel[0] is not None and by_channel[1] is not None:
        wanted, held = by_channel[0], by_channel[1]
    off = np.abs(held - wanted) > 0.5 + TIE
    if not off.any():
        return []
    listed = [(i, int(held[i]), round(wanted[i])) for i in _indices(off)]
    text = _list(int(off.sum()), off.size, "biases", listed)
    return [Fault(population.name, "bias", int(off.sum()), text)]


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
        "" if same else f"{int(off.sum()):,} of {off.size:,} decays are off: at {_place(first)} "
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
    listed = [(i, int(vth[i]), int(nearest[i])) for i in _indices(off)]
    text = _list(int(off.sum()), off.size, "thresholds", listed)
    return [Fault(population.name, "threshold", int(off.sum()), text)]


def _indices(off: NDArray[np.bool_]) -> list[tuple[int, ...]]:
    """The first few places that are marked."""
    return [tuple(map(int, index)) for index in np.argwhere(off)[:NAMED]]


def _list(count: int, total: int, what: str, rows: list[Row]) -> str:
    """In words: how many values are off, and the first few of them."""
    parts = [
        f"{_place(index)} is {held}, not {expected} ({_by(held, expected, 'high', 'low')})"
        for index, held, expected in rows
    ]
    more = ", ..." if count > len(rows) else ""
    return f"{count:,} of {total:,} {what} are not what the float model rounds to: " + (
        ", ".join(parts) + more
    )


def _place(index: tuple[int, ...]) -> str:
    return str(index if len(index) != 1 else index[0])


def _by(held: int, expected: int, above: str, below: str) -> str:
    away = abs(held - expected)
    return f"{'one' if away == 1 else away} too {above if held > expected else below}"


def run_alone(network: IntegerNetwork, name: str, sent: Sent) -> NDArray[np.uint8]:
    """The spikes [T, *shape] of a population by definition, for what its sources and it send [T, ...]."""
    alone = network.alone(name).cut([name])
    # What is held was repeated for every step already.
    inputs = {source: replace(port, held=False) for source, port in alone.inputs.items()}
    given = {source: values[None] for source, values in sent.items() if source in inputs}
    given[cut.given(name)] = sent[name][None]
    found: NDArray[np.uint8] = (
        reference.run(replace(alone, inputs=inputs), given).layers[name].spikes[0]
    )
    return found


def of_execution(
    network: IntegerNetwork, name: str, sent: Sent, spikes: NDArray[np.uint8]
) -> list[Fault]:
    """What explains that population ``name`` gave ``spikes`` [T, *shape].

    For one sample, whose spikes are not those of the definition (``hw_sim/reference.py``); ``sent`` is what
    its sources, and it itself, send.
    """
    right = run_alone(network, name, sent)
    wrong = int(np.count_nonzero(right != spikes))
    for late, word in ((1, "late"), (-1, "early")):
        if np.array_equal(_moved(right, late), spikes):
            text = f"its spikes came one time step {word}"
            return [Fault(name, "time step", wrong, text)]
    for text, kind, tried, seen in _runs(network, name, sent):
        if np.array_equal(run_alone(tried, name, seen), spikes):
            return [Fault(name, kind, wrong, text)]
    return []


def _runs(network: IntegerNetwork, name: str, sent: Sent) -> Runs:
    """Mistakes in running a population: what to call it, the network and what is sent in it."""
    into = network.into(name)
    for late, word in ((1, "late"), (-1, "early")):
        moved = {source: _moved(values, late) for source, values in sent.items()}
        yield f"it ran as if its inputs came one time step {word}", "time step", network, moved
    for c in into if len(into) > 1 else ():
        least = 1 if c.source == name else 0
        for by, word in ((1, "late"), (-1, "early")):
            if c.delay + by >= least:
                tried = network.changed(replace(c, delay=c.delay + by))
                yield (
                    f"it ran as if connection {c.name} were one time step {word}",
                    "delay",
                    tried,
                    sent,
                )
    for a, b in combinations(into, 2):
        if (
            a.synapses.kind == b.synapses.kind
            and a.synapses.weight.shape == b.synapses.weight.shape
        ):
            tried = network.changed(
                replace(a, synapses=b.synapses, exp=b.exp),
                replace(b, synapses=a.synapses, exp=a.exp),
            )
            text = f"it ran as if the weights of {a.name} and {b.name} were exchanged"
            yield text, "connection", tried, sent
    for c in into:
        for called, weight in entry(TURNS, c.synapses.kind, name, "the search for faults")(
            c.synapses.weight
        ):
            turned = network.changed(replace(c, synapses=c.synapses.with_weights(weight)))
            whose = "its kernel" if len(into) == 1 else f"the kernel of {c.name}"
            yield f"it ran as if {whose} were {called}", "kernel", turned, sent


def _turns_of_kernel(weight: Weights) -> Iterator[tuple[str, Weights]]:
    yield "mirrored in both directions", weight[:, :, ::-1, ::-1]
    if weight.shape[2] == weight.shape[3]:
        yield "transposed", weight.swapaxes(2, 3)


def _none(*_: object) -> Iterator[Any]:
    return iter(())


# Mistakes with the weights of synapses, by their kind.
TURNS: dict[str, Callable[[Weights], Iterator[tuple[str, Weights]]]] = {
    "conv": _turns_of_kernel,
    "dense": _none,
    "sparse": _none,
    "one_to_one": _none,
}


def _moved(values: NDArray[Any], late: int) -> NDArray[Any]:
    """Steps [T, ...] moved by one; nothing comes in from outside."""
    out = np.zeros_like(values)
    if late > 0:
        out[1:] = values[:-1]
    else:
        out[:-1] = values[1:]
    return out
