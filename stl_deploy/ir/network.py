"""The integer network: what every backend runs, held as plain arrays, carried by ``model.nir``.

A network is a chain of layers. A ``LifLayer`` is a weight matrix or kernel and the neurons behind
it, which may hear each other through a matrix of their own; an ``OrPool`` fires where any input in
its window does. The arithmetic of a step is defined in ``hw_sim/reference.py``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from stl_deploy.ir import slices
from stl_deploy.ir.slices import WeightPrecision, Weights

if TYPE_CHECKING:
    pass
from stl_deploy.ir.notes import Diagnostic, Lowering, Placement, Precision, Rounding
from stl_deploy.ir.synapses import (
    Conv,
    Dense,
    IntArray,
    Pair,
    Shape,
    Sparse,
    Synapses,
    with_weights,
)

Reset = Literal["zero", "subtract"]


@dataclass(frozen=True)
class LifLayer:
    """Synapses and the LIF neurons behind them. A channel of ``Sparse`` synapses is one neuron.

    Attributes:
        name: of the neurons, as in the PyTorch model; ``synapse_name`` of the weights.
        input_shape, shape: of the population before and of this one, without batch and time.
        exp: weights count 2^exp; the accumulator receives ``(w @ s) << exp``.
        recurrent: [neurons, neurons], from the neurons' own spikes of the step before, of a flat
            population; added to the same sum, so that unit and ``exp`` are those of ``synapses``.
        recurrent_name: of its weights, "" without.
        reset: what a spike does to v: "zero", or "subtract" vth << 6.
        bias_mant, bias_exp: int32 [O], one a channel; added to v every step as mant << exp.
        du, dv: decay constants of current and voltage, 0..4095 (see hw_sim/reference.py).
        vth: int32 of ``shape``; fires where v > vth << 6.
        scale: float64 [O], the float value of 64 units of v (of one unit of vth), a channel.
        weight_bits: the grid of the weights, +-(2^(bits-1) - 1) at precision "8".
        weight_precision: how a chip stores a weight and what its grid is (``slices.py``); weights are
            int8 at "8", else int16.
    """

    name: str
    synapse_name: str
    synapses: Synapses
    input_shape: Shape
    shape: Shape
    bias_mant: NDArray[np.int32]
    vth: NDArray[np.int32]
    scale: NDArray[np.float64]
    weight_bits: int = 8
    exp: int = 0
    bias_exp: int = 6
    du: int = 4095
    dv: int = 2048
    recurrent: Dense | None = None
    recurrent_name: str = ""
    reset: Reset = "zero"
    weight_precision: WeightPrecision = "8"

    @property
    def bias(self) -> NDArray[np.int64]:
        """What is added to v every step, int64, broadcastable to ``shape``."""
        return self.per_neuron(self.bias_mant.astype(np.int64) << self.bias_exp)

    def per_neuron(self, values: NDArray[Any]) -> NDArray[Any]:
        """Values of the channels [O], broadcastable to ``shape``."""
        if len(values) == self.neurons:
            return values.reshape(self.shape)
        return values.reshape(-1, *[1] * (len(self.shape) - 1))

    @property
    def neurons(self) -> int:
        """Size of the population."""
        return math.prod(self.shape)

    @property
    def grid_bits(self) -> float:
        """Effective bits of a weight at the end of the grid."""
        return slices.effective_bits(slices.largest(self.weight_precision, self.weight_bits))

    @property
    def stored_weights(self) -> int:
        """Numbers that are not zero, recurrent ones included; one of a kernel counts once.

        A weight of two slices is two where neither is zero.
        """
        own = 0 if self.recurrent is None else self._synapses_of(self.recurrent.weight).sum()
        return int(self._synapses_of(self.synapses.weight).sum() + own)

    def _synapses_of(self, weight: Weights) -> NDArray[np.int64]:
        return slices.synapses(weight, self.weight_precision)

    def groups(self) -> Iterator[LifLayer]:
        """The layer with the weights of each group of synapses alone, one after the other.

        Their weights, each counted with the ``exp`` of its layer, add up to those of this one.
        """
        if self.weight_precision == "8":
            yield self
            return
        own = () if self.recurrent is None else (self.recurrent.weight,)
        held = [slices.cut(w, self.weight_precision) for w in (self.synapses.weight, *own)]
        for group, weight, *heard in zip(slices.GROUPS[self.weight_precision], *held, strict=True):
            yield replace(
                self,
                synapses=with_weights(self.synapses, weight),
                recurrent=Dense(heard[0]) if heard else None,
                exp=self.exp + group.exp,
                weight_precision="8",
            )


@dataclass(frozen=True)
class OrPool:
    """Max pooling of binary spikes: one compartment a window, firing in the step its input fires.

    On the chip this is a LIF that forgets everything (du = dv = 4095) with vth = 0 behind weights 1.
    """

    name: str
    synapse_name: str
    input_shape: Shape
    shape: Shape
    kernel: Pair

    @property
    def neurons(self) -> int:
        """Size of the population."""
        return math.prod(self.shape)


Layer = LifLayer | OrPool


@dataclass(frozen=True)
class Readout:
    """The host's part: class k is the mean over neurons k*population .. (k+1)*population-1 and time."""

    classes: int
    population: int

    def votes(self, spikes: IntArray) -> NDArray[np.int64]:
        """Spike counts [N, classes] of the last layer's spikes [N, T, ...]."""
        counts = spikes.reshape(*spikes.shape[:2], -1).sum(axis=1, dtype=np.int64)
        votes: NDArray[np.int64] = counts.reshape(len(spikes), self.classes, self.population).sum(
            axis=2
        )
        return votes

    def predict(self, spikes: IntArray) -> NDArray[np.int64]:
        """Class of each sample, the first of those with most votes."""
        best: NDArray[np.int64] = self.votes(spikes).argmax(axis=1)
        return best


@dataclass(frozen=True)
class IntegerNetwork:
    """The whole network, with what NIR cannot say.

    ``input_shape`` is that of one step's input; ``input_levels`` its largest value (1: binary).
    ``lowering`` says how thresholds were brought to the chip, ``lowering_reason`` why so, and
    ``rounding`` what it cost each layer (``profiles``). ``placement`` is that on ``chip``, None
    where the chip has no cores.
    """

    chip: str
    timesteps: int
    input_shape: Shape
    input_levels: int
    layers: tuple[Layer, ...]
    readout: Readout
    lowering: Lowering = "native"
    lowering_reason: str = ""
    rounding: dict[str, Rounding] = field(default_factory=dict)
    precision: dict[str, Precision] = field(default_factory=dict)
    diagnostics: tuple[Diagnostic, ...] = ()
    placement: Placement | None = None

    @property
    def lif_layers(self) -> tuple[LifLayer, ...]:
        """The layers with weights."""
        return tuple(layer for layer in self.layers if isinstance(layer, LifLayer))

    @property
    def weight_precision(self) -> str:
        """How weights are stored; those of its layers with commas between where they differ."""
        return ", ".join(dict.fromkeys(layer.weight_precision for layer in self.lif_layers))

    def input_limit(self, layer: Layer) -> int:
        """Largest value on the inputs of ``layer``: 1 for spikes, ``input_levels`` at the first."""
        return self.input_levels if layer is self.layers[0] else 1


def synapse_count(layer: Layer) -> int:
    """Stored, non-zero, in-bounds synapses of ``layer``, recurrent ones included.

    A weight of two slices is two synapses where neither is zero.
    """
    return int(in_bounds_synapses(layer).sum()) + int(recurrent_synapses(layer).sum())


def recurrent_synapses(layer: Layer) -> NDArray[np.int64]:
    """Stored, non-zero synapses that leave each neuron for its own layer: int64 of ``shape``."""
    if isinstance(layer, OrPool) or layer.recurrent is None:
        return np.zeros(layer.shape, np.int64)
    stored = slices.synapses(layer.recurrent.weight, layer.weight_precision)
    count: NDArray[np.int64] = stored.sum(axis=0)
    return count.reshape(layer.shape)


def in_bounds_synapses(layer: Layer) -> NDArray[np.int64]:
    """Stored, non-zero, in-bounds synapses that leave each input neuron: int64 of ``input_shape``."""
    if isinstance(layer, OrPool):
        return np.ones(layer.input_shape, np.int64)
    total = np.zeros(layer.input_shape, np.int64)
    for group in layer.groups():
        total += _fan_out(group)
    return total


def _fan_out(layer: LifLayer) -> NDArray[np.int64]:
    """``in_bounds_synapses`` of a layer whose weights take one synapse each."""
    from stl_deploy.ir.conv import fan_out

    match layer.synapses:
        case Dense(weight=weight):
            count: NDArray[np.int64] = (weight != 0).sum(axis=0, dtype=np.int64)
            return count.reshape(layer.input_shape)
        case Sparse(column=column):
            inputs = math.prod(layer.input_shape)
            return np.bincount(column, minlength=inputs).astype(np.int64).reshape(layer.input_shape)
        case Conv() as conv:
            c, h, w = layer.input_shape
            return fan_out(
                conv.weight != 0, (c, h, w), conv.stride, conv.padding, conv.dilation, conv.groups
            )
    raise TypeError(f"unknown layer {layer!r}")
