"""For the rooms that still read a chain: a network as layers, and layers as a network. To be removed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from stl_deploy.ir import slices
from stl_deploy.ir.network import Connection, Input, IntegerNetwork, Population, Readout
from stl_deploy.ir.neurons import Lif, Or, Reset, of_channels
from stl_deploy.ir.slices import WeightPrecision, Weights
from stl_deploy.ir.synapses import Conv, Dense, Pair, Shape, Synapses
from stl_deploy.ir.units import DECAY_ONE, FORGETS, FRACTION_BITS


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


def of(
    chip: str,
    timesteps: int,
    input_shape: Shape,
    input_levels: int,
    layers: Sequence[Layer],
    readout: Readout,
    **fields: Any,
) -> IntegerNetwork:
    """The network of a chain of layers."""
    populations: list[Population] = []
    connections: list[Connection] = []
    before = "input"
    for layer in layers:
        neurons: Lif | Or
        if layer.kind == "or_pool":
            neurons = Or()
        else:
            neurons = Lif(
                layer.vth,
                of_channels(layer.bias_mant, layer.shape),
                of_channels(layer.scale, layer.shape),
                layer.bias_exp,
                layer.du,
                layer.dv,
                layer.reset,
            )
        same = layer.exp, layer.weight_bits, layer.weight_precision
        populations.append(Population(layer.name, layer.shape, neurons))
        connections.append(
            Connection(layer.synapse_name, before, layer.name, layer.synapses, *same)
        )
        if layer.recurrent is not None:
            connections.append(
                Connection(layer.recurrent_name, layer.name, layer.name, layer.recurrent, *same, 1)
            )
        before = layer.name
    return IntegerNetwork(
        chip,
        timesteps,
        {"input": Input(input_shape, input_levels)},
        tuple(populations),
        tuple(connections),
        replace(readout, source=before),
        **fields,
    )


def with_layers(network: IntegerNetwork, layers: Sequence[Layer], **fields: Any) -> IntegerNetwork:
    """The network with other layers."""
    shape = fields.pop("input_shape", network.input_shape)
    levels = fields.pop("input_levels", network.input_levels)
    readout = fields.pop("readout", network.readout)
    made = of(network.chip, network.timesteps, shape, levels, layers, readout)
    return replace(
        network,
        inputs=made.inputs,
        populations=made.populations,
        connections=made.connections,
        readout=made.readout,
        **fields,
    )


def layers_of(network: IntegerNetwork) -> tuple[Layer, ...]:
    """The layers of a network that is a chain."""
    layers: list[Layer] = []
    (before,) = network.inputs
    for p in network.populations:
        own = [c for c in network.into(p.name) if c.source == p.name]
        (feed,) = (c for c in network.into(p.name) if c.source != p.name)
        if feed.source != before or feed.delay or len(own) > 1:
            raise ValueError(f"{p.name}: not a chain")
        if p.kind == "or":
            window = feed.synapses.weight.shape[2:]
            layers.append(OrPool(p.name, feed.name, network.shape(before), p.shape, window))
        else:
            layers.append(_lif(network, p, feed, own[0] if own else None))
        before = p.name
    return tuple(layers)


def _lif(
    network: IntegerNetwork, p: Population, feed: Connection, own: Connection | None
) -> LifLayer:
    n = p.neurons
    assert isinstance(n, Lif)
    if own is not None and (own.delay, own.exp, own.bits, own.precision) != (
        1,
        feed.exp,
        feed.bits,
        feed.precision,
    ):
        raise ValueError(f"{p.name}: not a chain")
    assert own is None or isinstance(own.synapses, Dense)
    channels = p.size if feed.synapses.kind == "sparse" else p.shape[0]
    flat = [
        np.broadcast_to(v, p.shape).reshape(channels, -1)[:, 0].copy()
        for v in (n.bias_mant, n.scale)
    ]
    return LifLayer(
        p.name,
        feed.name,
        feed.synapses,
        network.shape(feed.source),
        p.shape,
        flat[0],
        n.vth,
        flat[1],
        feed.bits,
        feed.exp,
        n.bias_exp,
        int(n.du),
        int(n.dv),
        None if own is None else own.synapses,
        "" if own is None else own.name,
        n.reset,
        feed.precision,
    )


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
