"""A short way to write networks that are chains: layers, each with the weights in front of its neurons.

The product has no layers; ``network`` makes populations and connections of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stl_deploy.chips import facts as chips
from stl_deploy.hw_sim import reference
from stl_deploy.ir.network import Connection, Input, IntegerNetwork, Population
from stl_deploy.ir.neurons import Lif, Neurons, Or, Reset, of_channels
from stl_deploy.ir.readouts import Readout
from stl_deploy.ir.slices import WeightPrecision
from stl_deploy.ir.synapses import Conv, Dense, Pair, Synapses

Shape = tuple[int, ...]


@dataclass(frozen=True)
class LifLayer:
    """LIF neurons, the weights in front of them and, if they are recurrent, those of their own.

    ``bias_mant`` and ``scale`` are [channels] or [neurons]; the other fields are those of ``Lif`` and
    ``Connection``.
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
    du: Any = 4095
    dv: Any = 2048
    recurrent: Dense | None = None
    recurrent_name: str = ""
    reset: Reset = "zero"
    weight_precision: WeightPrecision = "8"

    @property
    def neurons(self) -> int:
        """How many."""
        return math.prod(self.shape)

    def population(self) -> Population:
        """The neurons."""
        neurons = Lif(
            self.vth,
            of_channels(self.bias_mant, self.shape),
            of_channels(self.scale, self.shape),
            self.bias_exp,
            self.du,
            self.dv,
            self.reset,
        )
        return Population(self.name, self.shape, neurons)

    def connections(self, source: str) -> list[Connection]:
        """What leads into the neurons."""
        same = self.exp, self.weight_bits, self.weight_precision
        found = [Connection(self.synapse_name, source, self.name, self.synapses, *same)]
        if self.recurrent is not None:
            own = Connection(self.recurrent_name, self.name, self.name, self.recurrent, *same, 1)
            found.append(own)
        return found


@dataclass(frozen=True)
class OrPool:
    """Max pooling of spikes in windows of ``kernel``, which tile the plane."""

    name: str
    synapse_name: str
    input_shape: Shape
    shape: Shape
    kernel: Pair

    @property
    def neurons(self) -> int:
        """How many."""
        return math.prod(self.shape)

    def population(self) -> Population:
        """The neurons."""
        neurons: Neurons = Or()
        return Population(self.name, self.shape, neurons)

    def connections(self, source: str) -> list[Connection]:
        """The windows."""
        channels = self.shape[0]
        ones = np.ones((channels, 1, *self.kernel), np.int8)
        windows = Conv(ones, self.kernel, (0, 0), (1, 1), channels)
        return [Connection(self.synapse_name, source, self.name, windows, bits=1)]


Layer = LifLayer | OrPool


def network(
    layers: Sequence[Layer],
    chip: str = "loihi2",
    steps: int = 4,
    levels: int = 1,
    readout: Readout | None = None,
    **fields: Any,
) -> IntegerNetwork:
    """The layers one behind the other; every neuron of the last is a class of its own without ``readout``."""
    before, connections = "input", []
    for layer in layers:
        connections += layer.connections(before)
        before = layer.name
    readout = Readout(layers[-1].neurons, 1) if readout is None else readout
    return IntegerNetwork(
        chip,
        steps,
        {"input": Input(layers[0].input_shape, levels)},
        tuple(layer.population() for layer in layers),
        tuple(connections),
        replace(readout, source=before),
        **fields,
    )


def run(
    layer: Layer,
    inputs: NDArray[Any],
    chip: chips.Chip,
    levels: int = 1,
    states: bool = False,
) -> reference.LayerTrace:
    """What a layer does by itself on inputs [N, T, *input_shape], in the reference."""
    facts = {"chip_facts": chips.carried(chip)}
    alone = network((layer,), chip.name, inputs.shape[1], levels, **facts)
    return reference.run(alone, inputs, states).layers[layer.name]
