"""Rate-based backpropagation: SpikingJelly's LIF with tau 1.25, decay_input False and a subtracting reset.

Every step: h = 0.2 v + I, a spike where h >= 1, v = h - s. Four families are told apart by their names:

- VGG (``feature.N``): convolution, BatchNorm and neurons; a number more is an average pool of 2 x 2.
- ResNet (``layerL.B.conv1``): conv1, bn1, neurons, conv2, bn2; the shortcut is added before the second
  neurons.
- SEW (``layerL.B.convNeuron1``): the same, and spikes are added behind the second neurons.
- pre-activation (bn1 has the channels that conv1 reads): BatchNorm and neurons stand before each convolution,
  currents are added up, and the stem's are max-pooled.

Behind the last neurons: the global average and a linear layer without neurons.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from stl_deploy.errors import InputError, Problem
from stl_deploy.importers.official.draft import Array, At, Draft, Rules
from stl_deploy.importers.official.system import Said, System

BLOCK = re.compile(r"layer(\d+)\.(\d+)\.(?:conv1|convNeuron1\.0)\.weight")
FEATURE = re.compile(r"feature\.(\d+)\.weight")
POOL = 2
Neurons = Callable[[At, str], At]


def build(draft: Draft, said: Said) -> At:
    """The class, as it runs."""
    rules = Rules(said.keep, said.threshold, reset="subtract", reached=True)

    def neurons(at: At, name: str) -> At:
        return draft.spikes(at, name, rules)

    blocks = [f"layer{m[1]}.{m[2]}" for key in draft.params if (m := BLOCK.fullmatch(key))]
    if not blocks:
        at = _vgg(draft, neurons, said.input)
    elif draft.has(f"{blocks[0]}.convNeuron1.0.weight"):
        at = _residual(draft, neurons, said.input, blocks, _sew)
    elif _before_weights(draft, blocks):
        at = _preactivated(draft, neurons, said.input, blocks)
    else:
        at = _residual(draft, neurons, said.input, blocks, _basic)
    return _classified(draft, at)


def _classified(draft: Draft, at: At) -> At:
    """The linear layer behind the global average, or behind all values where it reads so many."""
    name = draft.linear_layers("classifier")[0]
    columns = draft.take(f"{name}.weight").shape[1]
    if len(at.shape) == 3 and columns == at.shape[0]:
        at = draft.global_average(at, "average")
    return draft.linear(at, name)


def _unit(draft: Draft, at: At, conv: str, norm: str, stride: int = 1) -> At:
    return draft.norm(draft.conv(at, conv, stride), norm)


def _vgg(draft: Draft, neurons: Neurons, at: At) -> At:
    """Convolution, BatchNorm and neurons are three numbers; a fourth is a pool."""
    numbers = [
        int(found[1])
        for key, values in draft.params.items()
        if (found := FEATURE.fullmatch(key)) and values.ndim == 4
    ]
    for i, number in enumerate(numbers):
        at = _unit(draft, at, f"feature.{number}", f"feature.{number + 1}")
        at = neurons(at, f"feature.{number + 2}")
        more = numbers[i + 1] - number - 3 if i + 1 < len(numbers) else 0
        if more > 1:
            what = f"is {more} numbers behind the neurons of feature.{number}; none or a pool is expected"
            raise InputError(Problem(f"{draft.path}: feature.{numbers[i + 1]}.weight", what))
        if more or (i + 1 == len(numbers) and _pooled_at_the_end(draft, at)):
            at = draft.average(at, (POOL, POOL), f"feature.{number + 3}")
    return at


def _pooled_at_the_end(draft: Draft, at: At) -> bool:
    """Whether the classifier reads the values of a last pool, and not the mean of each channel."""
    (name, *_) = draft.linear_layers("classifier")
    columns = draft.params[f"{name}.weight"].shape[1]
    channels, height, width = at.shape
    return bool(columns != channels and columns * POOL**2 == channels * height * width)


def _stem(draft: Draft, at: At) -> At:
    """The convolution before the first block, behind which stands its BatchNorm where it has one."""
    plain = draft.has("conv0.weight")
    conv = "conv0" if plain else "conv0.0"
    weight = draft.take(f"{conv}.weight")
    if weight.ndim == 4 and weight.shape[2] > 3:
        what = (
            f"has a kernel of {weight.shape[2]} x {weight.shape[3]}, as for ImageNet; the strides and "
            "pools of that stem are not in the file"
        )
        remedy = "export the live network: stl_deploy.from_torch(net, sample)"
        raise InputError(Problem(f"{draft.path}: {conv}.weight", what, remedy))
    at = draft.conv(at, conv)
    norm = next((n for n in ("conv0.1", "bn0") if draft.has(f"{n}.running_mean")), None)
    return at if norm is None else draft.norm(at, norm)


Block = Callable[[Draft, Neurons, At, str, int], At]


def _residual(draft: Draft, neurons: Neurons, at: At, blocks: list[str], block: Block) -> At:
    at = neurons(_stem(draft, at), "conv0.neurons")
    for name in blocks:
        at = block(draft, neurons, at, name, _stride(name))
    return at


def _stride(block: str) -> int:
    """The first block of every layer but the first halves the plane."""
    layer, number = block.removeprefix("layer").split(".")
    return 2 if int(layer) > 1 and int(number) == 0 else 1


def _shortcut(draft: Draft, block: str) -> str | None:
    """The name of a block's shortcut, where it has weights."""
    names = (f"{block}.{name}" for name in ("shortcut", "downsample"))
    return next((name for name in names if draft.has(f"{name}.0.weight")), None)


def _basic(draft: Draft, neurons: Neurons, at: At, block: str, stride: int) -> At:
    way = neurons(_unit(draft, at, f"{block}.conv1", f"{block}.bn1", stride), f"{block}.neurons1")
    way = _unit(draft, way, f"{block}.conv2", f"{block}.bn2")
    if short := _shortcut(draft, block):
        at = _unit(draft, at, f"{short}.0", f"{short}.1", stride)
    return neurons(draft.add(f"{block}.sum", way, at), f"{block}.neurons2")


def _sew(draft: Draft, neurons: Neurons, at: At, block: str, stride: int) -> At:
    way = at
    for half, step in (("convNeuron1", stride), ("convNeuron2", 1)):
        name = f"{block}.{half}"
        way = neurons(_unit(draft, way, f"{name}.0", f"{name}.1", step), f"{name}.neurons")
    if short := _shortcut(draft, block):
        at = neurons(_unit(draft, at, f"{short}.0", f"{short}.1", stride), f"{short}.neurons")
    return draft.add(f"{block}.sum", way, at)


def _before_weights(draft: Draft, blocks: list[str]) -> bool:
    """Whether BatchNorm and neurons stand before each convolution of the blocks."""
    sizes = [
        (draft.params[f"{name}.bn1.weight"].size, draft.params[f"{name}.conv1.weight"].shape[:2])
        for name in blocks
        if draft.has(f"{name}.bn1.weight") and draft.params[f"{name}.conv1.weight"].ndim == 4
    ]
    differing = [(norm, shape) for norm, shape in sizes if shape[0] != shape[1]]
    end = _last_norm(draft)
    return end is not None if not differing else all(n == shape[1] for n, shape in differing)


def _last_norm(draft: Draft) -> str | None:
    """The BatchNorm behind all blocks, which pre-activation networks have."""
    names = [
        key.removesuffix(".running_mean") for key in draft.params if key.endswith("running_mean")
    ]
    outside = [name for name in names if not name.startswith(("layer", "conv0", "bn0", "feature"))]
    return outside[0] if outside else None


def _preactivated(draft: Draft, neurons: Neurons, at: At, blocks: list[str]) -> At:
    at = _largest(draft, _stem(draft, at), "conv0.pool")
    for block in blocks:
        stride = _stride(block)
        spikes = neurons(draft.norm(at, f"{block}.bn1"), f"{block}.neurons1")
        way = _unit(draft, spikes, f"{block}.conv1", f"{block}.bn2", stride)
        way = draft.conv(neurons(way, f"{block}.neurons2"), f"{block}.conv2")
        if short := _shortcut(draft, block):
            at = draft.conv(spikes, f"{short}.0", stride)
        at = draft.add(f"{block}.sum", way, at)
    end = _last_norm(draft)
    if end is None:
        raise InputError(Problem(str(draft.path), "has no BatchNorm behind its last block"))
    return neurons(draft.norm(at, end), f"{end}.neurons")


def _largest(draft: Draft, at: At, name: str) -> At:
    """The largest of each window of 2 x 2 currents.

    Neurons that send what arrives where it is above 0 carry it: max(a, b) = a + max(b - a, 0).
    """
    a, b, c, d = (draft.corner(at, f"{name}.{i}", POOL, i) for i in range(POOL**2))
    upper = _larger(draft, a, b, f"{name}.upper")
    lower = _larger(draft, c, d, f"{name}.lower")
    return _larger(draft, upper, lower, f"{name}.all")


def _larger(draft: Draft, a: At, b: At, name: str) -> At:
    less = draft.scaled(a, f"{name}.less", -1.0)
    more = draft.above_zero(draft.add(f"{name}.difference", b, less), f"{name}.more")
    return draft.add(name, a, more)


def _first(params: dict[str, Array]) -> str:
    return next(
        (key for key in ("conv0.0.weight", "conv0.weight") if key in params),
        next((key for key, values in params.items() if values.ndim == 4), ""),
    )


SYSTEM = System(
    neuron="LIF of rate-based backpropagation",
    reset="subtract",
    keep=0.2,
    threshold=1.0,
    first=_first,
    build=build,
    notes=(
        "strides and pools are not in the file, and are read as the official classes have them",
    ),
)
