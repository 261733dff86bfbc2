"""Typed description of a spiking network: what a checkpoint stores in addition to its parameters.

Layers (``arch_layers.py``) stand in an order in which each reads earlier ones. By hand a description is
written as one line (``arch_notation.py``).
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from stl_deploy.errors import InputError
from stl_deploy.ir import arch_notation
from stl_deploy.ir.arch_layers import (
    INPUT,
    Add,
    AvgPool,
    BatchNorm,
    Concat,
    Conv,
    Dropout,
    Layer,
    Lif,
    Linear,
    MaxPool,
    Pair,
    Shape,
    Size,
)
from stl_deploy.ir.readouts import Rule
from stl_deploy.ir.units import MAX_STEPS

__all__ = [
    "INPUT",
    "OFFICIAL_MNIST",
    "Add",
    "Architecture",
    "AvgPool",
    "BatchNorm",
    "Concat",
    "Conv",
    "Dropout",
    "Input",
    "Layer",
    "Lif",
    "Linear",
    "MaxPool",
    "Pair",
    "Quantized",
    "Shape",
    "Size",
]

MAX_NEURONS = 1 << 26  # bounds on what an untrusted description may make us allocate
MAX_LAYERS = 1024
OFFICIAL_MNIST = "128C5-BN-LIF-P14-128C5-BN-LIF-P7-FC2048-LIF-FC100-LIF-AvgPool10"


class Input(BaseModel):
    """What the network reads: binary spikes (``levels`` = 1) or integers 0..levels, read as x/levels."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    shape: Annotated[tuple[Size, ...], Field(min_length=1, max_length=3)]
    levels: Annotated[int, Field(ge=1, le=255)] = 1


class Quantized(BaseModel):
    """The parameters are integers in register units (``models/qat.py``); weights have so many bits."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    weight_bits: Annotated[int, Field(ge=2, le=8)]

    @property
    def largest(self) -> int:
        """The largest weight of the grid, 2^(B-1) - 1."""
        return (1 << (self.weight_bits - 1)) - 1


class Architecture(BaseModel):
    """A spiking network and how its classes are read.

    The last layer is neurons; ``population`` of them stand for each class, class k owning neurons
    k*population .. (k+1)*population-1, and ``readout`` says how they are scored (``readouts.Readout``).
    ``quantized``: the network counts in integers, None for one in floating point. ``members``: it is
    so many networks that decide together (``models/joint.py``), None for one alone.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    input: Input
    layers: Annotated[tuple[Layer, ...], Field(min_length=1, max_length=MAX_LAYERS)]
    population: PositiveInt
    timesteps: Annotated[int, Field(ge=1, le=MAX_STEPS)] = 4
    readout: Rule = "votes"
    quantized: Quantized | None = None
    members: Annotated[int, Field(ge=2, le=1024)] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Architecture:
        problems = self._name_problems()
        if not problems:  # else nothing says what leads where
            problems += self._shape_problems() + self._way_problems() + self._readout_problems()
            problems += self._integer_problems() + self._member_problems()
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def to_dict(self) -> dict[str, Any]:
        """Plain data that ``from_dict`` reads, without what does not apply."""
        usual = {"readout"} if self.readout == "votes" else None
        return self.model_dump(mode="json", exclude_none=True, exclude=usual)

    @property
    def reads(self) -> dict[str, tuple[str, ...]]:
        """The names of what each layer reads: layers, or ``INPUT``."""
        before = [INPUT, *(layer.name for layer in self.layers)]
        return {layer.name: layer.inputs or (before[i],) for i, layer in enumerate(self.layers)}

    @property
    def given(self) -> dict[str, Shape]:
        """Shape of what arrives at each layer, by name, without batch and time."""
        return {name: given for name, (given, _) in self._sizes()[0].items()}

    @property
    def shapes(self) -> dict[str, Shape]:
        """Output shape of each layer, by name, without batch and time."""
        return {name: shape for name, (_, shape) in self._sizes()[0].items()}

    @property
    def classes(self) -> int:
        """Number of classes of the readout."""
        return math.prod(self.shapes[self.layers[-1].name]) // self.population

    @property
    def weighted(self) -> dict[str, Conv | Linear]:
        """The layers with weights, by name."""
        return {layer.name: layer for layer in self.layers if isinstance(layer, Conv | Linear)}

    @property
    def feeds(self) -> dict[str, tuple[str, ...]]:
        """The layers with weights whose outputs add up to what arrives at each population."""
        weighted, (_, arriving) = self.weighted, self._sums()
        return {
            layer.name: tuple(name for name in arriving[layer.name] if name in weighted)
            for layer in self.layers
            if layer.kind == "lif"
        }

    @property
    def passed(self) -> dict[str, tuple[bool, ...]]:
        """Of each sum that adds spikes to outputs of weights, which of its inputs are spikes."""
        reads, (leaving, _) = self.reads, self._sums()
        weighted = self.weighted.keys()
        sums = {
            layer.name: tuple(weighted.isdisjoint(leaving[name]) for name in reads[layer.name])
            for layer in self.layers
            if layer.kind == "add"
        }
        return {name: spikes for name, spikes in sums.items() if any(spikes) and not all(spikes)}

    @property
    def levels(self) -> dict[str, int]:
        """The largest value that leaves each layer without weights, and the input."""
        most, reads = {INPUT: self.input.levels}, self.reads
        for layer in self.layers:
            read = [most.get(name, 0) for name in reads[layer.name]]
            most[layer.name] = 1 if layer.spikes else sum(read)
        return most

    def behind(self, name: str) -> list[str]:
        """The populations and layers with weights that read ``name``, also through sums and the like."""
        found, reached, reads = [], {name}, self.reads
        for layer in self.layers:
            if reached.intersection(reads[layer.name]):
                if layer.kind == "lif" or layer.weighted:
                    found.append(layer.name)
                else:
                    reached.add(layer.name)
        return found

    @property
    def split(self) -> set[str]:
        """The names of the layers of Dale's law whose inhibition arrives at a second current."""
        return {name for _, name in self._inhibited()}

    @property
    def joins(self) -> list[str]:
        """The names of the layers that join several; without any the network is a chain."""
        return [layer.name for layer in self.layers if layer.joins]

    def _sizes(self) -> tuple[dict[str, tuple[Shape, Shape]], list[str]]:
        """Shapes of what arrives at and leaves each layer that has them, and why others have none."""
        found: dict[str, tuple[Shape, Shape]] = {INPUT: (self.input.shape, self.input.shape)}
        problems, reads = [], self.reads
        for layer in self.layers:
            read = reads[layer.name]
            if any(name not in found for name in read):
                continue  # the layer before is what is wrong
            try:
                given = layer.joined([found[name][1] for name in read])
                shape = layer.output_shape(given)
            except ValueError as error:
                problems.append(str(error))
                continue
            if math.prod(shape) > MAX_NEURONS:
                problems.append(f"{layer.name}: {shape} has more than {MAX_NEURONS} entries")
                continue
            found[layer.name] = given, shape
        del found[INPUT]
        return found, problems

    def _name_problems(self) -> list[str]:
        """Names that are used twice, and inputs that name nothing before them."""
        problems = [
            f"layer name {name!r} is used {n} times"
            for name, n in Counter(layer.name for layer in self.layers).items()
            if n > 1
        ]
        known = {INPUT}
        for layer in self.layers:
            problems += [
                f"{layer.name}: reads {name!r}, which is no layer before it"
                for name in layer.inputs
                if name not in known
            ]
            if layer.joins and len(layer.inputs) < 2:
                problems.append(
                    f"{layer.name}: joins {len(layer.inputs)} layers; give it two or more"
                )
            known.add(layer.name)
        return problems

    def _shape_problems(self) -> list[str]:
        sizes, problems = self._sizes()
        last = self.layers[-1]
        if last.kind != "lif":
            problems.append(f"the last layer is {last.name}, not a LIF")
        neurons = math.prod(sizes[last.name][1]) if last.name in sizes else 0
        if neurons % self.population:
            problems.append(
                f"{neurons} output neurons do not divide into populations of {self.population}"
            )
        return problems

    def _way_problems(self) -> list[str]:
        """Layers that lead nowhere, and what cannot be read as it is."""
        reads = self.reads
        leading = {self.layers[-1].name}
        for layer in reversed(self.layers):
            if layer.name in leading:
                leading |= set(reads[layer.name])
        by_name = {layer.name: layer for layer in self.layers}
        problems = [
            f"{layer.name}: leads to no output (remove it, or connect what it feeds)"
            for layer in self.layers
            if layer.name not in leading
        ]
        problems += [
            f"{layer.name}: has no threshold, so it sends nothing to {reader} (end the network with it, "
            "or set fires to true)"
            for reader, read in reads.items()
            for name in read
            if name != INPUT and (layer := by_name[name]).kind == "lif" and not layer.fires
        ]
        problems += [
            f"{reader}: has a second current, at which {name} inhibits, and reads it through others (let "
            f"it read {name} itself)"
            for reader, name in self._inhibited()
            if (name,) != reads[reader]
        ]
        return problems + [
            f"{layer.name}: max pooling of {name}, whose values are not the binary spikes of one "
            "population (place it behind neurons, or use average pooling)"
            for layer in self.layers
            if layer.kind == "maxpool"
            for name in reads[layer.name]
            if not self._binary(name, by_name)
        ]

    def _inhibited(self) -> list[tuple[str, str]]:
        """Neurons with a second current, and the layers of Dale's law whose weights lead to them."""
        reads = self.reads
        found = []
        law: dict[str, set[str]] = {INPUT: set()}
        for layer in self.layers:
            through = set().union(*(law[name] for name in reads[layer.name]))
            law[layer.name] = through
            if layer.kind == "lif":
                found += [(layer.name, name) for name in through if layer.current2 is not None]
                law[layer.name] = set()
            elif layer.weighted:
                law[layer.name] = {layer.name} if "inhibitory" in layer.shared else set()
        return found

    def _binary(self, name: str, by_name: dict[str, Layer]) -> bool:
        """Whether what leaves ``name`` are binary spikes of one population."""
        while name != INPUT and by_name[name].kind == "dropout":
            (name,) = self.reads[name]
        return self.input.levels == 1 if name == INPUT else by_name[name].spikes

    def _readout_problems(self) -> list[str]:
        """Neurons that the readout cannot score."""
        last = self.layers[-1]
        if last.kind != "lif" or last.fires or self.readout not in ("votes", "first"):
            return []
        return [
            f"{last.name}: has no threshold, and a readout by {self.readout} needs spikes (read it by last, "
            "mean or max)"
        ]

    def _integer_problems(self) -> list[str]:
        """What a network that counts in integers cannot have."""
        if self.quantized is None:
            return []
        problems = [
            f"{layer.name}: {what}, in a network of integers"
            for layer in self.layers
            if (what := layer.unfit_for_integers())
        ]
        remedy = "(give each population weights of its own)"
        for name, feeds in self.feeds.items():
            if not feeds:
                what = "reads spikes that no weights lead to (place a layer with weights before it)"
                problems.append(f"{name}: {what}")
        for name in self.weighted:
            into = self.behind(name)
            if len(into) > 1 or set(into).intersection(self.weighted):
                what = "and in a network of integers weights count in the units of one population"
                problems.append(f"{name}: leads to {' and '.join(into)}, {what} {remedy}")
        arriving = self._sums()[1]
        for name, read in self.reads.items():
            sources = arriving[name]
            if len(read) > 1 and INPUT in sources:
                what = (
                    "adds the input to others, in a network of integers (place weights before it)"
                )
                problems.append(f"{name}: {what}")
            twice = [source for source, times in sources.items() if times > 1]
            problems += [
                f"{name}: adds up {source} twice, in a network of integers" for source in twice
            ]
        return problems

    def _sums(self) -> tuple[dict[str, Counter[str]], dict[str, Counter[str]]]:
        """How often inputs, populations and layers with weights are added up in what leaves each layer, and
        in what arrives at it. Counts end at 2: sums of sums double them."""
        reads = self.reads
        leaving, arriving = {INPUT: Counter([INPUT])}, {}
        for layer in self.layers:
            name = layer.name
            total: Counter[str] = Counter()
            for read in reads[name]:
                total.update(leaving[read])
            arriving[name] = Counter({at: min(times, 2) for at, times in total.items()})
            ends = layer.spikes or layer.weighted
            leaving[name] = Counter([name]) if ends else arriving[name]
        return leaving, arriving

    def _member_problems(self) -> list[str]:
        """What cannot be of a network of several, whose layers hold one part for each of them."""
        if self.members is None:
            return []
        weights = list(self.weighted.values())
        numbers = {"population": self.population}
        numbers |= {f"channels of {layer.name}": layer.outputs for layer in weights}
        numbers |= {f"groups of {layer.name}": layer.groups for layer in weights[1:-1]}
        problems = [f"{name}: members are chains, which join no layers" for name in self.joins]
        problems += [
            f"{what}: {number} does not divide into {self.members} members"
            for what, number in numbers.items()
            if number % self.members
        ]
        return problems + [
            f"{layer.name}: members have no {what} of their own (train them without)"
            for layer in self.layers
            for what in layer.shared
        ]

    @classmethod
    def from_dict(cls, data: Any, where: str = "arch") -> Architecture:
        """Check an untrusted dictionary. Raises InputError naming every field that is wrong."""
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise InputError(arch_notation.explained(error, where)) from None

    @classmethod
    def parse(
        cls,
        text: str,
        input_shape: Shape = (1, 28, 28),
        *,
        levels: int = 1,
        timesteps: int = 4,
        tau: float = 0.5,
    ) -> Architecture:
        """Read the notation of ``arch_notation.py``. Raises InputError naming the token.

        ``tau`` is that of neurons whose token says none.
        """
        read = arch_notation.read(text, tuple(input_shape), tau)
        return cls.from_dict(
            {
                "input": {"shape": tuple(input_shape), "levels": levels},
                "layers": read.layers,
                "population": read.population,
                "timesteps": timesteps,
                "readout": read.readout,
            },
            where=f"architecture {text!r}",
        )
