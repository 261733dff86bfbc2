"""Typed description of a spiking network: what a checkpoint stores in addition to its parameters.

A description is written by hand as one line in the notation of the STL-SNN paper,
``128C5-BN-LIF-P14-128C5-BN-LIF-P7-FC2048-LIF-FC100-LIF-AvgPool10``:

=============  ==========================================================================
``128C5``      convolution, 128 channels, 5x5, stride 1, padding 2 (same), no bias
``BN``         BatchNorm over the channels
``LIF``        leaky integrate-and-fire with a threshold per neuron
``P14``        adaptive max pooling of spikes to 14x14
``D0.5``       dropout, p = 0.5
``FC2048``     linear, 2048 features, no bias (the input is flattened)
``AvgPool10``  readout: mean over groups of 10 neurons, then over time
=============  ==========================================================================

Layers are numbered by kind (``conv1``, ``lif1``, ...), which are the official code's module names.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from stl_deploy.errors import InputError, Problem
from stl_deploy.ir import arch_neurons
from stl_deploy.ir.arch_neurons import NeuronRules
from stl_deploy.ir.units import MAX_STEPS

NAME = r"^[A-Za-z_][A-Za-z0-9_]{0,63}$"
MAX_NEURONS = 1 << 26  # bounds on what an untrusted description may make us allocate
MAX_UNGROUPED = 1 << 30  # entries of the matrix that a linear layer in groups is lowered to

Size = Annotated[int, Field(gt=0, le=1 << 20)]
Pair = tuple[Size, Size]
Shape = tuple[int, ...]


class _Spec(BaseModel):
    """A layer.

    ``parameters``: it has some, to be trained or stored. ``weighted``: they include weights. ``spikes``:
    what leaves it are spikes. ``left_out``: fields that a file has only where they are not their default.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)
    name: str = Field(pattern=NAME)
    parameters: ClassVar[bool] = False
    weighted: ClassVar[bool] = False
    spikes: ClassVar[bool] = False
    left_out: ClassVar[frozenset[str]] = frozenset()

    @model_serializer(mode="wrap")
    def _short(self, whole: SerializerFunctionWrapHandler) -> dict[str, Any]:
        defaults = {name: type(self).model_fields[name].default for name in self.left_out}
        return {
            name: value
            for name, value in whole(self).items()
            if name not in defaults or getattr(self, name) != defaults[name]
        }

    def output_shape(self, shape: Shape) -> Shape:
        """Shape after the layer for an input of ``shape``. Raises ValueError naming the layer."""
        return shape

    def resized(self, _size: Callable[[int], int], grouped: bool) -> Self:
        """The layer with ``size`` times as many outputs and groups, or, unless ``grouped``, one group.

        Layers without weights are as large as their input.
        """
        return self

    def unfit_for_integers(self) -> str:
        """What keeps it out of a network that counts in integers, "" where nothing does."""
        return ""


class Conv(_Spec):
    """2-d convolution; weight (channels, in/groups, kh, kw)."""

    parameters: ClassVar[bool] = True
    weighted: ClassVar[bool] = True

    kind: Literal["conv"] = "conv"
    channels: Size
    kernel: Pair
    stride: Pair = (1, 1)
    padding: tuple[Annotated[int, Field(ge=0, le=1024)], Annotated[int, Field(ge=0, le=1024)]]
    groups: Size = 1
    bias: bool = False

    @property
    def outputs(self) -> int:
        """Length of the first axis of weight and output."""
        return self.channels

    def output_shape(self, shape: Shape) -> Shape:
        """See ``_Spec``."""
        c, *plane = _image(self, shape)
        if c % self.groups or self.channels % self.groups:
            raise ValueError(
                f"{self.name}: {c} in and {self.channels} out channels do not divide "
                f"into {self.groups} groups"
            )
        size = tuple(
            conv_size(n, k, s, p)
            for n, k, s, p in zip(plane, self.kernel, self.stride, self.padding, strict=True)
        )
        if min(size) < 1:
            raise ValueError(f"{self.name}: kernel {self.kernel} is larger than input {shape}")
        return (self.channels, *size)

    def resized(self, size: Callable[[int], int], grouped: bool) -> Self:
        """See ``_Spec``."""
        groups = size(self.groups) if grouped else 1
        return self.model_copy(update={"channels": size(self.channels), "groups": groups})


class BatchNorm(_Spec):
    """BatchNorm over channels (conv) or features (linear), applied step by step."""

    parameters: ClassVar[bool] = True

    kind: Literal["batchnorm"] = "batchnorm"
    eps: float = Field(default=1e-5, gt=0, lt=1)

    def unfit_for_integers(self) -> str:
        """See ``_Spec``."""
        return "BatchNorm"


class Lif(NeuronRules, _Spec):
    """Neurons, a threshold for each of them; ``arch_neurons.py`` has their rules.

    Without further rules they are LIF: ``v = tau*v + I; s = v >= threshold; v = (1-s)*v``.
    """

    parameters: ClassVar[bool] = True
    spikes: ClassVar[bool] = True
    left_out: ClassVar[frozenset[str]] = arch_neurons.RULES

    def output_shape(self, shape: Shape) -> Shape:
        """See ``_Spec``."""
        if what := arch_neurons.misfit(self, shape):
            raise ValueError(f"{self.name}: {what}")
        return shape

    def unfit_for_integers(self) -> str:
        """See ``_Spec``."""
        return arch_neurons.unfit_for_integers(self)


class MaxPool(_Spec):
    """Max pooling of binary spikes over windows that tile the plane (a same-step OR)."""

    spikes: ClassVar[bool] = True

    kind: Literal["maxpool"] = "maxpool"
    kernel: Pair

    def output_shape(self, shape: Shape) -> Shape:
        """See ``_Spec``."""
        c, height, width = _image(self, shape)
        if height % self.kernel[0] or width % self.kernel[1]:
            raise ValueError(
                f"{self.name}: windows {self.kernel} do not tile the plane {shape[1:]}"
            )
        return (c, height // self.kernel[0], width // self.kernel[1])


class Linear(_Spec):
    """Linear over the flattened features; weight (features, in/groups), groups as a convolution's."""

    parameters: ClassVar[bool] = True
    weighted: ClassVar[bool] = True

    kind: Literal["linear"] = "linear"
    features: Size
    groups: Size = 1
    bias: bool = False

    @property
    def outputs(self) -> int:
        """Length of the first axis of weight and output."""
        return self.features

    def output_shape(self, shape: Shape) -> Shape:
        """See ``_Spec``."""
        inputs = math.prod(shape)
        if inputs % self.groups or self.features % self.groups:
            raise ValueError(
                f"{self.name}: {inputs} in and {self.features} out features do not divide into "
                f"{self.groups} groups"
            )
        if self.groups > 1 and inputs * self.features > MAX_UNGROUPED:
            raise ValueError(
                f"{self.name}: {inputs} in times {self.features} out features are more than "
                f"{MAX_UNGROUPED}, with zeros between its groups"
            )
        return (self.features,)

    def resized(self, size: Callable[[int], int], grouped: bool) -> Self:
        """See ``_Spec``."""
        groups = size(self.groups) if grouped else 1
        return self.model_copy(update={"features": size(self.features), "groups": groups})


class Dropout(_Spec):
    """Dropout in training, identity in evaluation."""

    kind: Literal["dropout"] = "dropout"
    p: float = Field(ge=0, lt=1)


def _image(layer: Conv | MaxPool, shape: Shape) -> tuple[int, int, int]:
    """``shape`` as (C, H, W), which ``layer`` needs. Raises ValueError for another."""
    if len(shape) != 3:
        raise ValueError(f"{layer.name}: {layer.kind} needs an input (C, H, W), got {shape}")
    return shape[0], shape[1], shape[2]


Layer = Annotated[Conv | BatchNorm | Lif | MaxPool | Linear | Dropout, Field(discriminator="kind")]


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
    """A feed-forward spiking network with a population readout.

    ``population`` neurons of the last LIF vote for each class: class k owns neurons
    k*population .. (k+1)*population-1, and the output is their mean over neurons and time.
    ``quantized``: the network counts in integers, None for one in floating point. ``members``: it is
    so many networks that decide together (``models/joint.py``), None for one alone.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    input: Input
    layers: Annotated[tuple[Layer, ...], Field(min_length=1, max_length=256)]
    population: PositiveInt
    timesteps: Annotated[int, Field(ge=1, le=MAX_STEPS)] = 4
    quantized: Quantized | None = None
    members: Annotated[int, Field(ge=2, le=1024)] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Architecture:
        problems = self._shape_problems() + self._silent_problems()
        problems += self._integer_problems() + self._member_problems()
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def to_dict(self) -> dict[str, Any]:
        """Plain data that ``from_dict`` reads, without what does not apply."""
        return self.model_dump(mode="json", exclude_none=True)

    @property
    def shapes(self) -> dict[str, Shape]:
        """Output shape of each layer, by name, without batch and time."""
        shapes: dict[str, Shape] = {}
        shape: Shape = self.input.shape
        for layer in self.layers:
            shape = layer.output_shape(shape)
            shapes[layer.name] = shape
        return shapes

    @property
    def classes(self) -> int:
        """Number of classes of the readout."""
        return math.prod(self.shapes[self.layers[-1].name]) // self.population

    @property
    def weighted(self) -> dict[str, Conv | Linear]:
        """The layers with weights, by name."""
        return {layer.name: layer for layer in self.layers if isinstance(layer, Conv | Linear)}

    @property
    def sources(self) -> dict[str, str]:
        """Of each LIF that weights lead to, the name of the layer with these."""
        chain = [layer for layer in self.layers if layer.weighted or layer.kind == "lif"]
        return {lif.name: source.name for source, lif in pairwise(chain) if lif.kind == "lif"}

    def _shape_problems(self) -> list[str]:
        problems = [
            f"layer name {name!r} is used {n} times"
            for name, n in Counter(layer.name for layer in self.layers).items()
            if n > 1
        ]
        shape: Shape = self.input.shape
        for layer in self.layers:
            try:
                shape = layer.output_shape(shape)
            except ValueError as error:
                return [*problems, str(error)]
            if math.prod(shape) > MAX_NEURONS:
                return [*problems, f"{layer.name}: {shape} has more than {MAX_NEURONS} entries"]
        if self.layers[-1].kind != "lif":
            problems.append(f"the last layer is {self.layers[-1].name}, not a LIF")
        if math.prod(shape) % self.population:
            problems.append(
                f"{math.prod(shape)} output neurons do not divide into populations of "
                f"{self.population}"
            )
        return problems

    def _silent_problems(self) -> list[str]:
        """Where neurons without a threshold, which send nothing, are followed by others."""
        return [
            f"{layer.name}: has no threshold, so it sends nothing to {self.layers[i + 1].name} (end the "
            "network with it, or set fires to true)"
            for i, layer in enumerate(self.layers[:-1])
            if layer.kind == "lif" and not layer.fires
        ]

    def _integer_problems(self) -> list[str]:
        """What a network that counts in integers cannot have."""
        if self.quantized is None:
            return []
        return [
            f"{layer.name}: {what}, in a network of integers"
            for layer in self.layers
            if (what := layer.unfit_for_integers())
        ]

    def _member_problems(self) -> list[str]:
        """What cannot be of a network of several, whose layers hold one part for each of them."""
        if self.members is None:
            return []
        weights = list(self.weighted.values())
        numbers = {"population": self.population}
        numbers |= {f"channels of {layer.name}": layer.outputs for layer in weights}
        numbers |= {f"groups of {layer.name}": layer.groups for layer in weights[1:-1]}
        problems = [
            f"{what}: {number} does not divide into {self.members} members"
            for what, number in numbers.items()
            if number % self.members
        ]
        return problems + [
            f"{layer.name}: members have no {what} of their own (train them without)"
            for layer in self.layers
            if layer.kind == "lif"
            for what in layer.shared
        ]

    @classmethod
    def from_dict(cls, data: Any, where: str = "arch") -> Architecture:
        """Check an untrusted dictionary. Raises InputError naming every field that is wrong."""
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise InputError(_explain(error, where)) from None

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
        """Read the one-line notation above. Raises InputError naming the token."""
        layers: list[dict[str, Any]] = []
        counts: Counter[str] = Counter()
        shape: Shape = tuple(input_shape)
        population = 1
        tokens = text.strip().split("-")
        for index, token in enumerate(tokens):
            where = f"architecture token {index + 1} {token!r}"
            if readout := re.fullmatch(r"AvgPool(\d{1,6})", token):
                if index != len(tokens) - 1:
                    raise InputError(Problem(where, "the readout is not the last token"))
                population = int(readout[1])
                break
            spec = _parse_token(token, shape, where)
            prefix = spec.pop("prefix")
            counts[prefix] += 1
            spec["name"] = f"{prefix}{counts[prefix]}"
            if spec["kind"] == "lif":
                spec["tau"] = tau
            layers.append(spec)
            try:
                shape = _LAYER_KINDS[spec["kind"]].model_validate(spec).output_shape(shape)
            except ValidationError as error:
                raise InputError(_explain(error, where)) from None
            except ValueError as error:
                raise InputError(Problem(where, str(error))) from None
        return cls.from_dict(
            {
                "input": {"shape": tuple(input_shape), "levels": levels},
                "layers": layers,
                "population": population,
                "timesteps": timesteps,
            },
            where=f"architecture {text!r}",
        )


_LAYER_KINDS: dict[str, type[_Spec]] = {
    "conv": Conv,
    "batchnorm": BatchNorm,
    "lif": Lif,
    "maxpool": MaxPool,
    "linear": Linear,
    "dropout": Dropout,
}

OFFICIAL_MNIST = "128C5-BN-LIF-P14-128C5-BN-LIF-P7-FC2048-LIF-FC100-LIF-AvgPool10"


def conv_size(size: int, kernel: int, stride: int, padding: int) -> int:
    """Output length of a convolution along one axis."""
    return (size + 2 * padding - kernel) // stride + 1


def _parse_token(token: str, shape: Shape, where: str) -> dict[str, Any]:
    if conv := re.fullmatch(r"(\d{1,6})C(\d{1,3})", token):
        kernel = int(conv[2])
        if kernel % 2 == 0:
            raise InputError(
                Problem(where, f"kernel {kernel} is even", "use an odd kernel (same padding)")
            )
        return {
            "kind": "conv",
            "prefix": "conv",
            "channels": int(conv[1]),
            "kernel": (kernel, kernel),
            "padding": (kernel // 2, kernel // 2),
        }
    if token == "BN":
        return {"kind": "batchnorm", "prefix": "bn"}
    if token == "LIF":
        return {"kind": "lif", "prefix": "lif"}
    if pool := re.fullmatch(r"P(\d{1,4})", token):
        size = int(pool[1])
        if len(shape) != 3 or size < 1 or shape[1] % size or shape[2] % size:
            raise InputError(
                Problem(
                    where,
                    f"a plane {shape[1:]} cannot be tiled into {size}x{size} equal windows",
                    "pool to a divisor of its height and width",
                )
            )
        window = (shape[1] // size, shape[2] // size)
        return {"kind": "maxpool", "prefix": "pool", "kernel": window}
    if linear := re.fullmatch(r"FC(\d{1,7})", token):
        return {"kind": "linear", "prefix": "fc", "features": int(linear[1])}
    if drop := re.fullmatch(r"D(0(?:\.\d+)?)", token):
        return {"kind": "dropout", "prefix": "drop", "p": float(drop[1])}
    raise InputError(
        Problem(where, "is not known", "use <n>C<k>, BN, LIF, P<n>, D<p>, FC<n>, AvgPool<n>")
    )


def _explain(error: ValidationError, where: str) -> list[Problem]:
    return [
        Problem(
            ".".join([where, *(str(part) for part in e["loc"])]),
            e["msg"].removeprefix("Value error, "),
        )
        for e in error.errors(include_url=False)
    ]
