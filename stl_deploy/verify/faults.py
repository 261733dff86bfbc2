"""Faults: where an integer network is not what its float graph rounds to, and what that looks like.

The rounding itself is no fault. A weight that is not the nearest of its grid is one, a threshold off
by one, a kernel that lies transposed, weights that are all too large by the same factor; and a layer
that ran as if its inputs had come a time step late. Each is found by taking the layer's own units
and rounding again, or by running the layer again as it would be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import permutations
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from stl_deploy.chips import facts as chips
from stl_deploy.hw_sim import reference
from stl_deploy.ir import slices
from stl_deploy.ir.float_chain import FloatLayer
from stl_deploy.ir.kinds import entry
from stl_deploy.ir.chain import Layer, LifLayer
from stl_deploy.ir.network import IntegerNetwork
from stl_deploy.ir.slices import Weights
from stl_deploy.ir.synapses import Conv, Dense, Sparse
from stl_deploy.ir.units import DECAY_ONE, FORGETS, FRACTION_BITS
from stl_deploy.verify.certificates import unrolled

Kind = Literal["weight", "threshold", "bias", "decay", "kernel", "input scale", "time step"]
# What a mistake is called, its kind, and the layer and inputs [T, ...] that it would have run with.
Runs = Iterator[tuple[str, Kind, Layer, NDArray[np.uint8]]]
Row = tuple[tuple[int, ...], int, int]  # where a value stands, what it is, what it should be
NAMED = 3  # values that a message lists before it says "..."
TIE = 1e-6  # of a unit: values so near to the middle of two integers round to either


@dataclass(frozen=True)
class Fault:
    """One thing about a layer that rounding does not explain; ``count`` values are concerned."""

    layer: str
    kind: Kind
    count: int
    text: str

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def of_network(network: IntegerNetwork, layer: Layer, floats: FloatLayer) -> list[Fault]:
    """What ``layer`` holds that its float layer, of the same kind, does not round to, of any cause."""
    return entry(FAULTS, layer.kind, layer.name, "the search for faults")(network, layer, floats)


def _of_pool(*_: object) -> list[Fault]:
    """A pool holds no values that could be rounded."""
    return []


def _of_lif(network: IntegerNetwork, layer: LifLayer, floats: FloatLayer) -> list[Fault]:
    """Faults of weights, biases, thresholds and the decay.

    Of a calibrated layer only the decay is looked at: its values are no rounding of single ones.
    """
    faults: list[Fault] = []
    how = network.precision.get(layer.name)
    if how is None or not how.calibrated:
        find = entry(WEIGHTS, layer.synapses.kind, layer.name, "the search for faults")
        faults += [*find(layer, layer.synapses, floats), *_biases(layer, floats)]
        if network.lowering != "grouped":  # which rounds thresholds once more, as it likes
            faults += _thresholds(network, layer, floats)
    step = DECAY_ONE * (1 - floats.keep)
    if abs(layer.dv - (0 if floats.keep == 1 else min(max(step, 1), FORGETS))) > 0.5 + TIE:
        text = f"dv is {layer.dv} where a decay to {floats.keep:.6g} rounds to {round(step)}"
        faults.append(Fault(layer.name, "decay", 1, text))
    return faults


# What of a layer's kind can be a fault.
FAULTS: dict[str, Callable[[IntegerNetwork, Any, Any], list[Fault]]] = {
    "lif": _of_lif,
    "or_pool": _of_pool,
}


def _weights(layer: LifLayer, mine: Conv | Dense, floats: FloatLayer) -> list[Fault]:
    """Weights that are not the nearest on their grid, and what arrangement of them would be."""
    held = mine.weight
    off = _off(held, layer, floats.weight)
    if not off.any():
        return []
    rows: NDArray[np.bool_] = off.reshape(len(off), -1).max(axis=1)
    which = "" if rows.all() else f" of {rows.sum()} of its {len(rows)} output channels"
    for name, moved in _arrangements(floats, layer.input_shape):
        left = int(_off(held, layer, moved)[rows].sum())
        if 10 * left < off.sum():
            text = f"the weights{which} are those of the float model {name}"
            return [Fault(layer.name, "kernel", int(off.sum()), text)]
    if factor := _factor(held, layer, floats.weight):
        text = f"the weights are {factor:.6g} times those of the float model"
        return [Fault(layer.name, "input scale", int(off.sum()), text)]
    nearest = _nearest(layer, floats.weight)
    listed = [(index, int(held[index]), int(nearest[index])) for index in _indices(off)]
    text = _list(int(off.sum()), off.size, f"weights of {layer.synapse_name}", listed)
    return [Fault(layer.name, "weight", int(off.sum()), text)]


def _single_weights(layer: LifLayer, mine: Sparse, floats: FloatLayer) -> list[Fault]:
    """The same for single connections; those left out hold zero."""
    row, column, weight = unrolled(layer, floats)
    inputs = mine.size[1]
    stored = mine.row.astype(np.int64) * inputs + mine.column
    at = np.searchsorted(row.astype(np.int64) * inputs + column, stored)
    held = np.zeros(len(row), np.int64)
    held[at] = mine.weight
    top = slices.largest(layer.weight_precision, layer.weight_bits)
    exact = np.clip(weight / (layer.scale * 2.0**layer.exp)[row], -top, top)
    off = np.abs(held - exact) > 0.5 + TIE
    if not off.any():
        return []
    listed: list[Row] = [
        ((int(row[i]), int(column[i])), int(held[i]), round(exact[i])) for (i,) in _indices(off)
    ]
    what = f"connections (neuron, input) of {layer.synapse_name}"
    return [
        Fault(layer.name, "weight", int(off.sum()), _list(int(off.sum()), off.size, what, listed))
    ]


# The faults of weights, by the kind of the synapses.
WEIGHTS: dict[str, Callable[[LifLayer, Any, FloatLayer], list[Fault]]] = {
    "conv": _weights,
    "dense": _weights,
    "sparse": _single_weights,
}


def _exact(layer: LifLayer, weight: NDArray[np.float64]) -> NDArray[np.float64]:
    """Float weights in the layer's units, at most as large as its grid."""
    top = slices.largest(layer.weight_precision, layer.weight_bits)
    unit = (layer.scale * 2.0**layer.exp).reshape(-1, *[1] * (weight.ndim - 1))
    exact: NDArray[np.float64] = np.clip(weight / unit, -top, top)
    return exact


def _nearest(layer: LifLayer, weight: NDArray[np.float64]) -> NDArray[np.float64]:
    nearest: NDArray[np.float64] = np.rint(_exact(layer, weight))
    return nearest


def _off(held: Weights, layer: LifLayer, weight: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which integers are not the nearest to ``weight``."""
    off: NDArray[np.bool_] = np.abs(held - _exact(layer, weight)) > 0.5 + TIE
    return off


def _arrangements(
    floats: FloatLayer, input_shape: tuple[int, ...]
) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """Float weights as somebody might have laid them out by mistake, and what to call that."""
    weight = floats.weight
    if floats.geometry is not None:
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


def _factor(held: Weights, layer: LifLayer, weight: NDArray[np.float64]) -> float | None:
    """The one factor by which all weights are larger than the float ones, if that explains them."""
    unit = (layer.scale * 2.0**layer.exp).reshape(-1, *[1] * (weight.ndim - 1))
    mine = held * unit
    norm = float((weight**2).sum())
    factor = float((mine * weight).sum()) / norm if norm else 0.0
    if factor <= 0 or abs(factor - 1) < 0.01:
        return None
    # The factor is known as well as the rounding allows, so are the weights.
    left = np.abs(mine - factor * weight) / unit
    return factor if left.max() < 1.5 else None


def _biases(layer: LifLayer, floats: FloatLayer) -> list[Fault]:
    """Biases that are not the nearest their register can hold."""
    step = 2.0 ** (layer.bias_exp - FRACTION_BITS)
    wanted = np.repeat(floats.bias, len(layer.scale) // len(floats.bias)) / (layer.scale * step)
    off = np.abs(layer.bias_mant - wanted) > 0.5 + TIE
    if not off.any():
        return []
    listed = [(i, int(layer.bias_mant[i]), round(wanted[i])) for i in _indices(off)]
    text = _list(int(off.sum()), off.size, "biases", listed)
    return [Fault(layer.name, "bias", int(off.sum()), text)]


def _thresholds(network: IntegerNetwork, layer: LifLayer, floats: FloatLayer) -> list[Fault]:
    """Thresholds that are not ceil(theta / scale) - 1, nor the end of the register."""
    low, high = chips.of(network).threshold_range
    ratio = floats.theta / layer.per_neuron(layer.scale)
    if network.lowering == "fold":
        # The unit is theta over a whole number, which a division gives back but nearly.
        whole = np.rint(ratio)
        ratio = np.where(np.abs(ratio - whole) < TIE, whole, ratio)
    nearest = np.clip(np.ceil(ratio) - 1, low, high)
    off = layer.vth != nearest
    if not off.any():
        return []
    listed = [(i, int(layer.vth[i]), int(nearest[i])) for i in _indices(off)]
    text = _list(int(off.sum()), off.size, "thresholds", listed)
    return [Fault(layer.name, "threshold", int(off.sum()), text)]


def _indices(off: NDArray[np.bool_]) -> list[tuple[int, ...]]:
    """The first few places that are marked."""
    return [tuple(map(int, index)) for index in np.argwhere(off)[:NAMED]]


def _list(count: int, total: int, what: str, rows: list[Row]) -> str:
    """In words: how many values are off, and the first few of them."""
    parts = []
    for index, held, expected in rows:
        where = index if len(index) != 1 else index[0]
        away = abs(held - expected)
        by = f"{'one' if away == 1 else away} too {'high' if held > expected else 'low'}"
        parts.append(f"{where} is {held}, not {expected} ({by})")
    more = ", ..." if count > len(rows) else ""
    return f"{count:,} of {total:,} {what} are not what the float model rounds to: " + (
        ", ".join(parts) + more
    )


def of_execution(
    network: IntegerNetwork, layer: Layer, inputs: NDArray[np.uint8], spikes: NDArray[np.uint8]
) -> list[Fault]:
    """What explains that ``layer`` gave ``spikes`` [T, *shape] on ``inputs`` [T, *input_shape].

    For one sample, whose spikes are not those of the definition (``hw_sim/reference.py``).
    """

    def run(tried: Layer, seen: NDArray[np.uint8]) -> NDArray[np.uint8]:
        spikes: NDArray[np.uint8] = reference.run_layer(network, tried, seen[None]).spikes[0]
        return spikes

    right = run(layer, inputs)
    wrong = int(np.count_nonzero(right != spikes))
    for late, name in ((1, "late"), (-1, "early")):
        if np.array_equal(_moved(right, late), spikes):
            text = f"its spikes came one time step {name}"
            return [Fault(layer.name, "time step", wrong, text)]
    for text, kind, tried, seen in _runs(layer, inputs):
        if np.array_equal(run(tried, seen), spikes):
            return [Fault(layer.name, kind, wrong, text)]
    return []


def _runs(layer: Layer, inputs: NDArray[np.uint8]) -> Runs:
    """Mistakes in running a layer: what to call it, the layer and the inputs it would be with."""
    yield "it ran as if its inputs came one time step late", "time step", layer, _moved(inputs, 1)
    yield "it ran as if its inputs came one time step early", "time step", layer, _moved(inputs, -1)
    yield from entry(MISTAKES, layer.kind, layer.name, "the search for faults")(layer, inputs)


def _turned(layer: LifLayer, inputs: NDArray[np.uint8]) -> Runs:
    """Its kernel, if it has one, as somebody might have laid it out by mistake."""
    mine = layer.synapses
    for name, weight in entry(TURNS, mine.kind, layer.name, "the search for faults")(mine.weight):
        turned = replace(layer, synapses=mine.with_weights(weight))
        yield f"it ran as if its kernel were {name}", "kernel", turned, inputs


def _turns_of_kernel(weight: Weights) -> Iterator[tuple[str, Weights]]:
    yield "mirrored in both directions", weight[:, :, ::-1, ::-1]
    if weight.shape[2] == weight.shape[3]:
        yield "transposed", weight.swapaxes(2, 3)


def _none(*_: object) -> Iterator[Any]:
    return iter(())


# Mistakes with the weights of a layer's kind; those of a pool are all ones, however they are turned.
MISTAKES: dict[str, Callable[[Any, NDArray[np.uint8]], Runs]] = {"lif": _turned, "or_pool": _none}
TURNS: dict[str, Callable[[Weights], Iterator[tuple[str, Weights]]]] = {
    "conv": _turns_of_kernel,
    "dense": _none,
    "sparse": _none,
}


def _moved(values: NDArray[np.uint8], late: int) -> NDArray[np.uint8]:
    """Steps [T, ...] moved by one; nothing comes in from outside."""
    out = np.zeros_like(values)
    if late > 0:
        out[1:] = values[:-1]
    else:
        out[:-1] = values[1:]
    return out
