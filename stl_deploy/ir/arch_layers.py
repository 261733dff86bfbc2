"""The layers of a description (``arch.py``): their fields, and the shape of what leaves each."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
)

from stl_deploy.ir import arch_neurons
from stl_deploy.ir.arch_neurons import NeuronRules

NAME = r"^[A-Za-z_][A-Za-z0-9_]{0,63}$"
INPUT = "input"  # what layers call the raster
MAX_JOINED = 100  # layers that one reads
MAX_INPUTS = 1 << 26  # of a layer
MAX_UNGROUPED = 1 << 30  # entries of the matrix that a linear layer in groups is lowered to

Name = Annotated[str, Field(pattern=NAME)]
Size = Annotated[int, Field(gt=0, le=1 << 20)]
Pair = tuple[Size, Size]
Shape = tuple[int, ...]


class _Spec(BaseModel):
    """A layer.

    ``inputs`` are the layers that it reads, or "input"; without any it reads the layer before it.
    ``parameters``: it has some, to be trained or stored. ``weighted``: they include weights. ``spikes``:
    what leaves it are spikes. ``joins``: it reads several layers. ``left_out``: fields that a file has
    only where they are not their default.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)
    name: Name
    inputs: Annotated[tuple[Name, ...], Field(max_length=MAX_JOINED)] = ()
    parameters: ClassVar[bool] = False
    weighted: ClassVar[bool] = False
    spikes: ClassVar[bool] = False
    joins: ClassVar[bool] = False
    left_out: ClassVar[frozenset[str]] = frozenset()

    @model_serializer(mode="wrap")
    def _short(self, whole: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = type(self).model_fields
        defaults = {name: fields[name].default for name in (*self.left_out, "inputs")}
        return {
            name: value
            for name, value in whole(self).items()
            if name not in defaults or getattr(self, name) != defaults[name]
        }

    @property
    def shared(self) -> list[str]:
        """What concerns all of a layer, so that the parts of several members cannot stand in it."""
        return []

    def joined(self, shapes: Sequence[Shape]) -> Shape:
        """Shape of its inputs together. Raises ValueError naming the layer."""
        if len(shapes) > 1:
            raise ValueError(
                f"{self.name}: reads one layer, not {len(shapes)} (join them with an add or a concat "
                "layer)"
            )
        return shapes[0]

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
        return _tiled(self, shape)


class AvgPool(_Spec):
    """The mean over windows that tile the plane, of spikes or currents."""

    kind: Literal["avgpool"] = "avgpool"
    kernel: Pair

    def output_shape(self, shape: Shape) -> Shape:
        """See ``_Spec``."""
        return _tiled(self, shape)

    def unfit_for_integers(self) -> str:
        """See ``_Spec``."""
        return "average pooling"


class Linear(_Spec):
    """Linear over the flattened features; weight (features, in/groups), groups as a convolution's.

    Dale's law: of the inputs the last ``inhibitory`` inhibit, all others excite, as those of
    ``arch_neurons.Recurrent``. With 0 every weight has the sign that it was learned with.
    """

    parameters: ClassVar[bool] = True
    weighted: ClassVar[bool] = True

    left_out: ClassVar[frozenset[str]] = frozenset({"inhibitory"})

    kind: Literal["linear"] = "linear"
    features: Size
    groups: Size = 1
    bias: bool = False
    inhibitory: Annotated[int, Field(ge=0, le=MAX_INPUTS)] = 0

    @property
    def outputs(self) -> int:
        """Length of the first axis of weight and output."""
        return self.features

    def output_shape(self, shape: Shape) -> Shape:
        """See ``_Spec``."""
        inputs = math.prod(shape)
        if self.inhibitory > inputs or (self.inhibitory and self.groups > 1):
            raise ValueError(
                f"{self.name}: {self.inhibitory} of {inputs} inputs in {self.groups} groups inhibit (give "
                "it one group, and no more than its inputs)"
            )
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

    @property
    def shared(self) -> list[str]:
        """See ``_Spec``."""
        return ["inhibitory"] if self.inhibitory else []


class Dropout(_Spec):
    """Dropout in training, identity in evaluation."""

    kind: Literal["dropout"] = "dropout"
    p: float = Field(ge=0, lt=1)


class Add(_Spec):
    """The sum of its inputs, currents or spikes, which have one shape; one may stand there twice."""

    joins: ClassVar[bool] = True

    kind: Literal["add"] = "add"

    def joined(self, shapes: Sequence[Shape]) -> Shape:
        """See ``_Spec``."""
        if len(set(shapes)) > 1:
            raise ValueError(
                f"{self.name}: adds up {' and '.join(map(str, shapes))} (bring them to one shape, as with "
                "a 1x1 convolution)"
            )
        return shapes[0]


class Concat(_Spec):
    """Its inputs behind each other along the channels; behind that their planes agree."""

    joins: ClassVar[bool] = True

    kind: Literal["concat"] = "concat"

    def joined(self, shapes: Sequence[Shape]) -> Shape:
        """See ``_Spec``."""
        if len({shape[1:] for shape in shapes}) > 1:
            raise ValueError(
                f"{self.name}: puts {' and '.join(map(str, shapes))} behind each other, whose planes "
                "differ (pool them to one size)"
            )
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])

    def unfit_for_integers(self) -> str:
        """See ``_Spec``."""
        return "a concatenation of layers"


def _tiled(layer: MaxPool | AvgPool, shape: Shape) -> Shape:
    """Shape of what its windows make of ``shape``. Raises ValueError where they do not tile the plane."""
    c, height, width = _image(layer, shape)
    if height % layer.kernel[0] or width % layer.kernel[1]:
        raise ValueError(f"{layer.name}: windows {layer.kernel} do not tile the plane {shape[1:]}")
    return (c, height // layer.kernel[0], width // layer.kernel[1])


def _image(layer: Conv | MaxPool | AvgPool, shape: Shape) -> tuple[int, int, int]:
    """``shape`` as (C, H, W), which ``layer`` needs. Raises ValueError for another."""
    if len(shape) != 3:
        raise ValueError(f"{layer.name}: {layer.kind} needs an input (C, H, W), got {shape}")
    return shape[0], shape[1], shape[2]


def conv_size(size: int, kernel: int, stride: int, padding: int) -> int:
    """Output length of a convolution along one axis."""
    return (size + 2 * padding - kernel) // stride + 1


Layer = Annotated[
    Conv | BatchNorm | Lif | MaxPool | AvgPool | Linear | Dropout | Add | Concat,
    Field(discriminator="kind"),
]
