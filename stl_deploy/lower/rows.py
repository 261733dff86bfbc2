"""A float population as the quantizer takes it: rows of weights, in the units of its voltage.

A LIF neuron does not change when its weights, bias and threshold are scaled together. What v gains for each
unit of the graph's sums is therefore taken into the weights where all neurons have the same gain; where they
differ (learned time constants), v is counted in units of its neuron's gain instead.

A chip adds a bias to the voltage. One that would pass through a current comes from a neuron that fires in
every step, over weights of its own. Neurons with a gain for each step add it to what arrives instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from stl_deploy.ir.float_neurons import FloatNeurons
from stl_deploy.ir.floats import FloatConnection, FloatNetwork, FloatPopulation
from stl_deploy.ir.network import Population
from stl_deploy.ir.neurons import Each, Lif
from stl_deploy.ir.slices import Weights
from stl_deploy.ir.synapses import Conv, Dense, Geometry, OneToOne, Shape
from stl_deploy.ir.units import FORGETS
from stl_deploy.lower import rules
from stl_deploy.lower.checks import decays

Float = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Rows:
    """The weights of a connection, a row for each channel (of a kernel) or for each neuron.

    Attributes:
        name, source, delay, port: of the connection.
        weight: float64 [O, C/groups, kh, kw] of a kernel, [neurons, inputs], or one to one [neurons].
        geometry: where a kernel goes.
        fine: whether they take a finer grid before they widen the unit that others share.
    """

    name: str
    source: str
    delay: int
    weight: Float
    kind: Literal["conv", "dense", "one_to_one"]
    geometry: Geometry | None = None
    fine: bool = False
    port: int = 0

    def synapses(self, weight: Weights) -> Conv | Dense | OneToOne:
        """Integer synapses of this form; ``weight`` has the shape of these weights."""
        if self.geometry is not None:
            return Conv(weight, *self.geometry)
        return OneToOne(weight) if self.kind == "one_to_one" else Dense(weight)

    def peak(self, channels: int) -> Float:
        """The largest magnitude in each channel, float64 [channels]."""
        peak: Float = np.abs(self.weight).reshape(channels, -1).max(axis=1)
        return peak

    def received(self, worth: Float) -> Rows:
        """These weights of whole numbers that are ``worth`` [neurons or 1] so much in the float network.

        Raises ValueError where a kernel's channel would need more than one weight.
        """
        if worth.size == 1 or self.geometry is None:
            return replace(self, weight=self.weight * worth)
        groups, per_group = self.geometry.groups, self.weight.shape[1]
        channels = worth.reshape(groups * per_group, -1)
        if np.ptp(channels, axis=1).any():
            raise ValueError("the neurons of a channel send values in different units")
        of_rows = np.repeat(
            channels[:, 0].reshape(groups, per_group), len(self.weight) // groups, 0
        )
        return replace(self, weight=self.weight * of_rows[:, :, None, None])


@dataclass(frozen=True, eq=False)
class Target:
    """What leads into a population, and its neurons.

    Attributes:
        name, shape: of the population.
        rows: of its connections, those from the population itself last.
        theta: [*shape], reached where a neuron fires.
        bias: what is added to v in every step, of the shape or one for each channel [C, 1, ...].
        factor: what the weights are multiplied by, those of the graph being 1.
        gain: what a unit of v is in the graph's, broadcastable to the shape.
        du, dv: decay constants.
        neurons: of the float network.
        always: the name of a neuron that fires in every step, where a bias comes from one.
        common: whether all channels have one unit: values of theirs are compared, or sent.
        by_voltage: whether the readout needs v.
    """

    name: str
    shape: Shape
    rows: tuple[Rows, ...]
    theta: Float
    bias: Float
    factor: float
    gain: Float
    du: Each
    dv: Each
    neurons: FloatNeurons
    always: str | None = None
    common: bool = False
    by_voltage: bool = False

    @property
    def channels(self) -> int:
        """How many units the population has."""
        return self.shape[0]

    @property
    def size(self) -> int:
        """How many neurons."""
        return self.theta.size

    @property
    def from_always(self) -> Float:
        """The largest magnitude that the neuron ``always`` sends to each channel, float64 [C]."""
        (rows,) = (rows for rows in self.rows if rows.source == self.always)
        return rows.peak(self.channels)

    def received(self, worth: Mapping[str, Float]) -> Target:
        """The same where sources send whole numbers that are ``worth`` so much, by name.

        Raises ValueError as ``Rows.received``.
        """
        rows = [r.received(worth[r.source]) if r.source in worth else r for r in self.rows]
        return replace(self, rows=tuple(rows))


def targets(network: FloatNetwork) -> dict[str, Target]:
    """What the quantizer takes of each population with weights, by name."""
    taken = {*network.inputs, *network.by_name, *(c.name for c in network.connections)}
    found = {}
    for population in network.populations:
        if not network.pools(population.name):
            target = found[population.name] = of(network, population, taken)
            taken |= {name for rows in target.rows for name in (rows.name, rows.source)}
    return found


def of(network: FloatNetwork, population: FloatPopulation, taken: Set[str]) -> Target:
    """What the quantizer takes of a population with weights; ``taken`` are names of other things."""
    neurons, shape = population.neurons, population.shape
    read = network.readout if population.name == network.output else None
    rule = "votes" if read is None else read.rule
    by_voltage = rule != "votes"
    gain = np.asarray(neurons.total_gain)
    same = bool(np.ptp(gain) <= 1e-12 * np.abs(gain).max())
    factor = (float(gain.flat[0]) if same else 1.0) * rules.common_gain(neurons)
    each: Float = np.ones((1,) * len(shape)) if same else np.broadcast_to(gain, shape)
    into = sorted(network.into(population.name), key=lambda c: c.source == population.name)
    rows = [_rows(connection, factor, neurons, shape) for connection in into]
    bias: Float = least(population.bias * factor, shape)
    always = None
    if bias.any() and (neurons.current != 1).any() and neurons.amplify is None:
        always, name = _bias_names(into, population.name, taken)
        weight = np.broadcast_to(bias, shape).reshape(-1, 1)
        rows.insert(len(rows) - _own(into, population.name), _from(always, name, weight))
        bias = np.zeros_like(bias)
    if neurons.leak.any():
        bias = least(bias + np.broadcast_to(neurons.leak, shape) / each, shape)
    du, dv = decays(neurons)
    return Target(
        population.name,
        shape,
        tuple(rows),
        _theta(neurons, each, shape),
        bias,
        factor,
        each,
        rules.each(du, shape),
        rules.each(dv, shape),
        neurons,
        always,
        neurons.graded or (by_voltage and (not neurons.fires or rule == "first")),
        by_voltage,
    )


def always(name: str) -> Population:
    """The neuron that fires in every step: a bias of one unit, a threshold of zero, and no memory."""
    neurons = Lif(np.zeros(1, np.int32), np.ones(1, np.int32), np.ones(1), du=FORGETS, dv=FORGETS)
    return Population(name, (1,), neurons)


def least(values: NDArray[Any], shape: Shape) -> NDArray[Any]:
    """``values`` as one for each channel, [C, 1, ...], or of ``shape`` where they differ in a channel."""
    full = np.broadcast_to(values, shape).reshape(shape[0], -1)
    if (full == full[:, :1]).all():
        return full[:, :1].reshape(-1, *[1] * (len(shape) - 1)).copy()
    return full.reshape(shape).copy()


def _theta(neurons: FloatNeurons, gain: Float, shape: Shape) -> Float:
    """What v must reach, in units of ``gain`` [C, ...]; 0 for neurons that never fire."""
    if not neurons.fires:
        return np.zeros(shape)
    return neurons.theta if gain.size == 1 else neurons.theta / gain


def _rows(connection: FloatConnection, factor: float, neurons: FloatNeurons, shape: Shape) -> Rows:
    way = connection.way
    at = connection.name, connection.source, connection.delay
    assert way.kind != "window"  # ``checks`` refuses them
    weight = way.weight * factor
    if connection.port:
        share = least(rules.second_share(neurons), shape)
        weight = weight.reshape(shape) if way.kind == "one_to_one" else weight
        if way.kind != "one_to_one":
            share = share if share.size in (1, len(weight)) else np.broadcast_to(share, shape)
            share = share.reshape(-1, *[1] * (weight.ndim - 1))
        weight = weight * share
    if way.kind == "one_to_one":
        return Rows(*at, weight.reshape(-1), "one_to_one", fine=True, port=connection.port)
    kind: Literal["dense", "conv"] = "dense" if way.geometry is None else "conv"
    return Rows(*at, weight, kind, way.geometry, port=connection.port)


def _own(into: list[FloatConnection], name: str) -> int:
    """How many connections lead from a population to itself."""
    return sum(connection.source == name for connection in into)


def _from(source: str, name: str, weight: Float) -> Rows:
    return Rows(name, source, 0, weight, "dense", fine=True)


def _bias_names(into: list[FloatConnection], population: str, taken: Set[str]) -> tuple[str, str]:
    """Names of the neuron that a bias comes from, and of its weights: after the weights with the bias."""
    after = next((c.name for c in into if c.way.bias is not None), population)
    source = f"{after}_bias"
    while source in taken or f"{source}_w" in taken:
        source += "_"
    return source, f"{source}_w"
