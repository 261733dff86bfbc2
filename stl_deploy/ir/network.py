"""The integer network: what every backend runs, held as plain arrays, carried by ``model.nir``.

A network is a chain of layers. A ``LifLayer`` is a weight matrix or kernel and the neurons behind
it, which may be recurrent, through a matrix of their own; an ``OrPool`` fires where any input in
its window does. The arithmetic of a step is defined in ``hw_sim/reference.py``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from stl_deploy.ir import slices
from stl_deploy.ir.notes import Diagnostic, Lowering, Placement, Precision, Rounding
from stl_deploy.ir.slices import WeightPrecision, Weights
from stl_deploy.ir.synapses import (
    Conv,
    Dense,
    IntArray,
    Pair,
    Shape,
    Synapses,
)
from stl_deploy.ir.units import DECAY_ONE, FORGETS, FRACTION_BITS

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
    bias_exp: int = FRACTION_BITS
    du: int = FORGETS
    dv: int = DECAY_ONE // 2
    recurrent: Dense | None = None
    recurrent_name: str = ""
    reset: Reset = "zero"
    weight_precision: WeightPrecision = "8"

    kind: ClassVar[Literal["lif"]] = "lif"

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

    @property
    def has_current(self) -> bool:
        """Whether the neurons remember a current from step to step (CUBA)."""
        return self.du != FORGETS

    def groups(self) -> Iterator[LifLayer]:
        """The layer with the weights of each group of synapses alone, one after the other.

        Their weights, each counted with the ``exp`` of its layer, add up to those of this one.
        """
        if self.weight_precision == "8":
            yield self
            return
        own = () if self.recurrent is None else (self.recurrent.weight,)
        held = [slices.cut(w, self.weight_precision) for w in (self.synapses.weight, *own)]
        for group, weight, *back in zip(slices.GROUPS[self.weight_precision], *held, strict=True):
            yield replace(
                self,
                synapses=self.synapses.with_weights(weight),
                recurrent=Dense(back[0]) if back else None,
                exp=self.exp + group.exp,
                weight_precision="8",
            )


@dataclass(frozen=True)
class OrPool:
    """Max pooling of binary spikes: one compartment a window, firing in the step its input fires.

    It answers as a ``LifLayer`` does, as what it is on a chip: neurons that forget everything and have
    a threshold of zero behind weights of one. Its windows tile the plane.
    """

    name: str
    synapse_name: str
    input_shape: Shape
    shape: Shape
    kernel: Pair

    kind: ClassVar[Literal["or_pool"]] = "or_pool"
    weight_bits: ClassVar[int] = 1
    grid_bits: ClassVar[float] = 1
    weight_precision: ClassVar[WeightPrecision] = "8"
    exp: ClassVar[int] = 0
    bias_exp: ClassVar[int] = FRACTION_BITS
    du: ClassVar[int] = FORGETS
    dv: ClassVar[int] = FORGETS
    recurrent: ClassVar[None] = None
    recurrent_name: ClassVar[str] = ""
    reset: ClassVar[Reset] = "zero"

    @cached_property
    def synapses(self) -> Conv:
        """A weight of one for each neuron of a window."""
        ones = np.ones((self.shape[0], 1, *self.kernel), np.int8)
        return Conv(ones, self.kernel, (0, 0), (1, 1), self.shape[0])

    @property
    def bias_mant(self) -> NDArray[np.int32]:
        """int32 [C], all zero."""
        return np.zeros(self.shape[0], np.int32)

    @property
    def bias(self) -> NDArray[np.int64]:
        """int64, all zero, broadcastable to ``shape``."""
        return np.zeros((1,) * len(self.shape), np.int64)

    @property
    def has_current(self) -> bool:
        """Whether the neurons remember a current: they do not."""
        return False

    @property
    def vth(self) -> NDArray[np.int32]:
        """int32 of ``shape``, all zero."""
        return np.zeros(self.shape, np.int32)

    @property
    def neurons(self) -> int:
        """Size of the population."""
        return math.prod(self.shape)

    def groups(self) -> Iterator[OrPool]:
        """See ``LifLayer``; the weights of a pool are one group."""
        yield self


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
    ``rounding`` what it cost each layer (``grouped``). ``placement`` is that on ``chip``, None
    where the chip has no cores. ``chip_facts`` is the JSON of a chip's facts where the chip does not come
    with the package (``chips/facts.py``).
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
    chip_facts: str | None = None

    @property
    def lif_layers(self) -> tuple[LifLayer, ...]:
        """The layers with weights."""
        return tuple(layer for layer in self.layers if layer.kind == "lif")

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
    if layer.recurrent is None:
        return np.zeros(layer.shape, np.int64)
    stored = slices.synapses(layer.recurrent.weight, layer.weight_precision)
    count: NDArray[np.int64] = stored.sum(axis=0)
    return count.reshape(layer.shape)


def in_bounds_synapses(layer: Layer) -> NDArray[np.int64]:
    """Stored, non-zero, in-bounds synapses that leave each input neuron: int64 of ``input_shape``."""
    total = np.zeros(layer.input_shape, np.int64)
    for group in layer.groups():
        total += group.synapses.fan_out(layer.input_shape)
    return total
