"""The integer network: what every backend runs, held as plain arrays, carried by ``model.nir``.

Populations of neurons, and connections between them. Any number of connections lead into a population, from
inputs, from other populations and from itself; what arrives is added up. The arithmetic of a step is defined
in ``hw_sim/reference.py``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from stl_deploy.ir import cut, order, slices
from stl_deploy.ir.neurons import Neurons, misfit
from stl_deploy.ir.notes import Diagnostic, Lowering, Placement, Precision, Rounding
from stl_deploy.ir.read_as import ReadAs
from stl_deploy.ir.readouts import Readout
from stl_deploy.ir.slices import WeightPrecision
from stl_deploy.ir.synapses import IntArray, Shape, Synapses

Raster = IntArray | Mapping[str, IntArray]
SHOWN = 12  # inputs and populations in the text of a network


@dataclass(frozen=True)
class Input:
    """Values that come from outside in every step.

    Attributes:
        shape: of one step's values.
        levels: the largest magnitude of a value; 1 for spikes.
        signed: whether values go down to -levels, not to 0.
        held: whether one frame is read in every step, so that a raster has a single one.
    """

    shape: Shape
    levels: int = 1
    signed: bool = False
    held: bool = False

    @property
    def lowest(self) -> int:
        """The lowest value."""
        return -self.levels if self.signed else 0


@dataclass(frozen=True, eq=False)
class Population:
    """Neurons, ``shape`` without batch and time; ``name`` is that of the PyTorch module."""

    name: str
    shape: Shape
    neurons: Neurons

    @property
    def size(self) -> int:
        """How many neurons."""
        return math.prod(self.shape)

    @property
    def kind(self) -> Literal["lif", "or"]:
        """That of its neurons."""
        return self.neurons.kind


@dataclass(frozen=True, eq=False)
class Connection:
    """Synapses from an input or a population to a population.

    Attributes:
        name: of the weights. Connections that share their weights share it; those into one population
            from one source differ in it.
        source, target: names; the source may be the target itself.
        exp: weights count 2^exp: the target receives ``(w @ s) << exp``.
        bits: the grid of the weights, +-(2^(bits-1) - 1) at precision "8".
        precision: how a chip stores a weight and what its grid is (``slices.py``); weights are int8 at
            "8", else int16.
        delay: steps that a spike waits; at least 1 on a way from a population back to itself.
        port: which current of the target it feeds: 0, or 1 for the second (``Lif.du2``).
    """

    name: str
    source: str
    target: str
    synapses: Synapses
    exp: int = 0
    bits: int = 8
    precision: WeightPrecision = "8"
    delay: int = 0
    port: int = 0

    @property
    def key(self) -> tuple[str, str, str]:
        """What tells it from all others."""
        return self.name, self.source, self.target

    @property
    def words(self) -> str:
        """What messages call it."""
        return f"{self.name} ({self.source} to {self.target})"

    @property
    def grid_bits(self) -> float:
        """Effective bits of a weight at the end of the grid."""
        return slices.effective_bits(slices.largest(self.precision, self.bits))

    @property
    def stored_weights(self) -> int:
        """Numbers that are not zero; one of a kernel counts once, one of two slices twice."""
        return int(slices.synapses(self.synapses.weight, self.precision).sum())

    def sums(self, values: IntArray, levels: int) -> NDArray[np.int64]:
        """What ``values`` [N, *source] within -levels..levels add to the target: int64 [N, neurons]."""
        return self.synapses.sums(values, levels).reshape(len(values), -1) << self.exp

    def groups(self) -> Iterator[Connection]:
        """The connection with the weights of each group of synapses alone, one after the other.

        Their weights, each counted with its own ``exp``, add up to those of this one.
        """
        if self.precision == "8":
            yield self
            return
        held = slices.cut(self.synapses.weight, self.precision)
        for group, weight in zip(slices.GROUPS[self.precision], held, strict=True):
            synapses = self.synapses.with_weights(weight)
            yield replace(self, synapses=synapses, exp=self.exp + group.exp, precision="8")


@dataclass(frozen=True, eq=False)
class IntegerNetwork:
    """The whole network, with what NIR cannot say.

    Populations stand in an order in which connections without a delay lead forward. ``lowering`` says how
    thresholds were brought to the chip, ``lowering_reason`` why so, and ``rounding`` what it cost each
    population (``grouped``). ``placement`` is that on ``chip``, None where the chip has no cores.
    ``read_as`` says how the populations were read from the model file, where an importer said so.
    ``chip_facts`` is the JSON of a chip's facts where the chip does not come with the package
    (``chips/facts.py``).
    """

    chip: str
    timesteps: int
    inputs: Mapping[str, Input]
    populations: tuple[Population, ...]
    connections: tuple[Connection, ...]
    readout: Readout
    lowering: Lowering = "native"
    lowering_reason: str = ""
    rounding: dict[str, Rounding] = field(default_factory=dict)
    precision: dict[str, Precision] = field(default_factory=dict)
    diagnostics: tuple[Diagnostic, ...] = ()
    read_as: tuple[ReadAs, ...] = ()
    placement: Placement | None = None
    chip_facts: str | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for what is no network."""
        order.check(
            list(self.inputs),
            [population.name for population in self.populations],
            [(c.key, c.source, c.target, c.delay) for c in self.connections],
        )
        for c in self.connections:
            if c.port not in (0, 1) or (c.port and self.by_name[c.target].neurons.du2 is None):
                raise ValueError(
                    f"{c.key}: leads to current {c.port}, which {c.target} does not have"
                )
            if c.source in self.by_name and self.span(c.source) == (0, 0):
                raise ValueError(f"{c.key}: {c.source} sends nothing")
        for p in self.populations:
            if p.kind == "lif" and (what := misfit(p.neurons, p.shape, self.timesteps)) is not None:
                raise ValueError(f"{p.name}: {what}")
        self._check_readout()

    def __repr__(self) -> str:
        named = [f"{name} {port.shape}" for name, port in self.inputs.items()]
        named += [f"{population.name} {population.shape}" for population in self.populations]
        if len(named) > SHOWN:
            named[SHOWN - 1 : -1] = [f"{len(named) - SHOWN} more"]
        return (
            f"IntegerNetwork for {self.chip}, {self.timesteps} steps, {self.readout.classes} classes: "
            + ", ".join(named)
        )

    def _check_readout(self) -> None:
        """Raise ValueError for a readout that does not fit its source; one in the making may lack it."""
        source = self.by_name.get(self.readout.source)
        if source is None:
            return
        what = self.readout.misfit(source.size, self.timesteps)
        if what is not None:
            raise ValueError(f"{source.name}: {what}")

    @cached_property
    def by_name(self) -> dict[str, Population]:
        """The populations by name."""
        return {population.name: population for population in self.populations}

    @cached_property
    def _into(self) -> dict[str, tuple[Connection, ...]]:
        return {n: tuple(c for c in self.connections if c.target == n) for n in self.by_name}

    @cached_property
    def _out_of(self) -> dict[str, tuple[Connection, ...]]:
        names = [*self.inputs, *self.by_name]
        return {n: tuple(c for c in self.connections if c.source == n) for n in names}

    def into(self, population: str) -> tuple[Connection, ...]:
        """The connections that lead into a population."""
        return self._into[population]

    def out_of(self, source: str) -> tuple[Connection, ...]:
        """The connections that lead out of an input or a population."""
        return self._out_of[source]

    def shape(self, name: str) -> Shape:
        """The shape of an input or a population."""
        return self.inputs[name].shape if name in self.inputs else self.by_name[name].shape

    def size(self, name: str) -> int:
        """How many values an input, or neurons a population, has."""
        return math.prod(self.shape(name))

    def span(self, source: str) -> tuple[int, int]:
        """The lowest and the highest value that an input or a population sends."""
        if source in self.inputs:
            given = self.inputs[source]
            return given.lowest, given.levels
        return self.by_name[source].neurons.span

    def levels(self, source: str) -> int:
        """The largest magnitude that an input or a population sends: 1 for spikes."""
        return max(map(abs, self.span(source)))

    def port(self, source: str) -> Input:
        """The input that would send what an input or a population sends."""
        lowest, levels = self.span(source)
        return Input(self.shape(source), max(1, levels), lowest < 0)

    @cached_property
    def parts(self) -> tuple[tuple[Population, ...], ...]:
        """Populations that run together step by step, sources first.

        The populations of a loop are one part; every other population is a part of its own.
        """
        ways = [(c.source, c.target) for c in self.connections]
        return tuple(
            tuple(self.by_name[name] for name in part)
            for part in order.parts(list(self.by_name), ways)
        )

    @cached_property
    def depth(self) -> dict[str, int] | None:
        """Hops from the inputs, which are at 0, to each population; None where no depths serve.

        A spike needs a step for a hop. So a connection leads down by at most ``1 + delay``, and what it does
        not need of that, ``waits``, the chip has to wait. Around a loop of fewer steps of delay than hops
        no depths do that.
        """
        ways = [(c.source, c.target, c.delay) for c in self.connections]
        return order.depths(list(self.inputs), list(self.by_name), ways)

    @property
    def hops(self) -> int:
        """The depth of the deepest population. Raises ValueError where no depths serve."""
        return max(self._depths().values())

    def waits(self, connection: Connection) -> int:
        """Steps that a spike waits on a chip, besides the hop. Raises ValueError where no depths serve."""
        depth = self._depths()
        return depth[connection.target] - depth[connection.source] + connection.delay - 1

    def _depths(self) -> dict[str, int]:
        if self.depth is None:
            raise ValueError("a loop has fewer steps of delay than hops")
        return self.depth

    @property
    def weighted(self) -> tuple[Population, ...]:
        """The populations with neurons of their own: all but the pools."""
        return tuple(population for population in self.populations if population.kind != "or")

    @property
    def weight_precision(self) -> str:
        """How weights are stored; with commas between where connections differ."""
        found = (c.precision for c in self.connections if self.by_name[c.target].kind != "or")
        return ", ".join(dict.fromkeys(found))

    def rasters(self, given: Raster) -> dict[str, IntArray]:
        """What arrives at each input in each step, [N, T, *shape]: views where a frame is held.

        ``given`` is a raster for each input by name, or the raster of the only one; one of an input that
        is held has a single step. Raises ValueError for others.
        """
        by_name = given if isinstance(given, Mapping) else dict.fromkeys(self.inputs, given)
        if set(by_name) != set(self.inputs) or (by_name is not given and len(self.inputs) != 1):
            raise ValueError(f"rasters are needed for {', '.join(self.inputs)}, one for each")
        steps = [by_name[n].shape[1] for n, port in self.inputs.items() if not port.held]
        count = steps[0] if steps else self.timesteps
        samples = {name: len(by_name[name]) for name in self.inputs}
        if len(set(samples.values())) > 1:
            raise ValueError(f"{samples}: as many samples are needed of each input")
        found: dict[str, IntArray] = {}
        for name, port in self.inputs.items():
            x = by_name[name]
            if x.shape[1] != (1 if port.held else count):
                raise ValueError(f"{name}: {x.shape[1]} steps, not {1 if port.held else count}")
            x = x.reshape(*x.shape[:2], *port.shape)
            found[name] = np.broadcast_to(x, (len(x), count, *port.shape)) if port.held else x
        return found

    def alone(self, name: str) -> IntegerNetwork:
        """A population with what leads into it: its sources are inputs, but for itself."""
        into = self.into(name)
        inputs = {
            c.source: self.inputs.get(c.source, self.port(c.source))
            for c in into
            if c.source != name
        }
        population = self.by_name[name]
        return replace(
            self,
            inputs=inputs,
            populations=(population,),
            connections=into,
            readout=Readout(population.size, 1, name),
            rounding={},
            precision={},
            diagnostics=(),
            read_as=(),
            placement=None,
        )

    def cut(self, populations: Iterable[str]) -> IntegerNetwork:
        """The network that is given what ``populations`` send, as inputs (``ir/cut.py``)."""
        names = cut.sources(populations)
        ports = {new: self.port(old) for old, new in names.items()}
        return replace(
            self,
            inputs={**self.inputs, **ports},
            connections=tuple(
                replace(c, source=names.get(c.source, c.source)) for c in self.connections
            ),
            placement=None,
        )

    def changed(self, *others: Population | Connection) -> IntegerNetwork:
        """The network with ``others`` in the place of those of their name (and source and target)."""
        populations = {p.name: p for p in others if isinstance(p, Population)}
        connections = {c.key: c for c in others if isinstance(c, Connection)}
        return replace(
            self,
            populations=tuple(populations.get(p.name, p) for p in self.populations),
            connections=tuple(connections.get(c.key, c) for c in self.connections),
        )


def synapse_count(network: IntegerNetwork, connection: Connection) -> int:
    """Stored, non-zero, in-bounds synapses of ``connection``; a weight of two slices is up to two."""
    return int(fan_out(network, connection).sum())


def fan_out(network: IntegerNetwork, connection: Connection) -> NDArray[np.int64]:
    """Stored, non-zero, in-bounds synapses that leave each neuron of the source: int64 of its shape."""
    shape = network.shape(connection.source)
    total = np.zeros(shape, np.int64)
    for group in connection.groups():
        total += group.synapses.fan_out(shape)
    return total
