"""The notation of ``stl-train --arch``: a network in one line, which docs/training.md explains.

Tokens are separated by ``-``. ``128C5-BN-LIF-P14-FC100-LIF-AvgPool10`` is that of the STL-SNN paper; blocks
such as ``64R3S2x2`` stand for several layers, some of which read others than the one before.

Layers are numbered by kind (``conv1``, ``lif1``, ...), which are the official code's module names.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from pydantic import TypeAdapter, ValidationError

from stl_deploy.errors import InputError, Problem
from stl_deploy.ir.arch_layers import INPUT, Layer, Lif, Shape
from stl_deploy.ir.readouts import Rule

KNOWN = (
    "<n>C<k>[S<s>], BN, LIF, P<n>, A<n>, D<p>, FC<n>, <n>R<k>, <n>SEW<k>, <n>PA<k>, <n>DB<k>x<m>, "
    "<n>DC<k>x<m>, and a readout at the end"
)
_LAYER: TypeAdapter[Layer] = TypeAdapter(Layer)
Options = dict[str, Any]


@dataclass
class Read:
    """What a line says: layers as plain data, neurons for each class, and how these are scored."""

    layers: list[dict[str, Any]]
    population: int = 1
    readout: Rule = "votes"


def read(text: str, shape: Shape, tau: float) -> Read:
    """The network of ``text`` for inputs of ``shape``; ``tau`` is that of neurons that say none.

    Raises InputError naming the token.
    """
    tokens = re.split(r"-(?![^\[]*\])", text.strip())
    made = _Builder({INPUT: shape}, tau)
    for index, token in enumerate(tokens):
        made.where = f"architecture token {index + 1} {token!r}"
        if end := re.fullmatch(r"(AvgPool|Last|Mean|Max|First)(\d{0,6})", token):
            if index != len(tokens) - 1:
                raise made.wrong("the readout is not the last token", "move it to the end")
            if end[1] == "AvgPool" and not end[2]:
                raise made.wrong("does not say how many neurons vote for a class", "use AvgPool<n>")
            return Read(made.layers, int(end[2] or 1), RULES[end[1]])
        made.token(token)
    return Read(made.layers)


RULES: dict[str, Rule] = {
    "AvgPool": "votes",
    "Last": "last",
    "Mean": "mean",
    "Max": "max",
    "First": "first",
}


@dataclass
class _Builder:
    """Layers in the making. ``shapes`` are those of what has a name, the last of which is read next."""

    shapes: dict[str, Shape]
    tau: float
    layers: list[dict[str, Any]] = field(default_factory=list)
    kinds: dict[str, str] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    where: str = ""

    @property
    def last(self) -> str:
        """What the next layer reads."""
        return next(reversed(self.shapes))

    @property
    def shape(self) -> Shape:
        """The shape of that."""
        return self.shapes[self.last]

    def wrong(self, what: str, remedy: str = "") -> InputError:
        """The error that names the token."""
        return InputError(Problem(self.where, what, remedy))

    def token(self, token: str) -> None:
        """Add the layers of ``token``."""
        body, bracket, rest = token.partition("[")
        if bracket and not rest.endswith("]"):
            raise self.wrong("has a bracket that is not closed", "close it with ]")
        for pattern, make in TOKENS.items():
            if found := re.fullmatch(pattern, body):
                make(self, found, self._options(rest.removesuffix("]"), make))
                return
        raise self.wrong("is not known", f"use {KNOWN}")

    def _options(self, text: str, make: Make) -> Options:
        """The options in brackets. Raises InputError for those that the token does not have."""
        options: Options = {}
        allowed = OPTIONS.get(make, NEURONS)
        for part in filter(None, (part.strip() for part in text.split(","))):
            key, _, value = part.partition("=")
            if key not in allowed or key in options:
                why = "is there twice" if key in options else "is not an option of it"
                known = ", ".join(sorted(allowed)) or "none"
                raise self.wrong(f"{key!r} {why}", f"options are {known}")
            options[key] = value if "=" in part else True
        return options

    def add(self, kind: str, *inputs: str, **fields: Any) -> str:
        """Add a layer that reads ``inputs``, or the last one; its name."""
        self.counts[PREFIX[kind]] += 1
        name = f"{PREFIX[kind]}{self.counts[PREFIX[kind]]}"
        spec = {"kind": kind, "name": name, **fields}
        if inputs not in ((), (self.last,)):
            spec["inputs"] = inputs
        try:
            layer = _LAYER.validate_python(spec)
            given = layer.joined([self.shapes[at] for at in inputs or (self.last,)])
            self.shapes[name] = layer.output_shape(given)
        except ValidationError as error:
            raise InputError(explained(error, self.where, skip=1)) from None
        except ValueError as error:
            raise self.wrong(str(error)) from None
        self.layers.append(spec)
        self.kinds[name] = kind
        return name

    def conv(self, channels: int, kernel: int, stride: int, *inputs: str, **options: Any) -> str:
        """A convolution with the padding that keeps the plane at stride 1."""
        if kernel % 2 == 0:
            raise self.wrong(f"kernel {kernel} is even", "use an odd kernel (same padding)")
        fields = {"kernel": (kernel, kernel), "padding": (kernel // 2, kernel // 2), **options}
        if stride != 1:
            fields["stride"] = (stride, stride)
        return self.add("conv", *inputs, channels=channels, **fields)

    def neurons(self, options: Options, *inputs: str) -> str:
        """Neurons with a threshold."""
        return self.add("lif", *inputs, **{"tau": self.tau, **_rules(options)})

    def block(self, options: Options, *sizes: int, read: str = "") -> str:
        """A convolution of ``sizes`` (channels, kernel, stride), BatchNorm and neurons."""
        self.conv(*cast(tuple[int, int, int], sizes), *filter(None, [read]))
        self.add("batchnorm")
        return self.neurons(options)

    def current(self) -> str:
        """The name of the current before a block. Raises InputError where there is none."""
        if self.kinds.get(self.last) not in ("conv", "linear", "batchnorm", "add", "concat"):
            raise self.wrong(
                f"{self.last} is no current, which the block begins with", "put <n>C<k> before it"
            )
        return self.last


def _rules(options: Options) -> Options:
    """The fields of neurons that ``options`` say: those of their own spikes stand apart."""
    fields = {
        key: value for key, value in options.items() if key not in ("recurrent", "inhibitory")
    }
    if "recurrent" in options or "inhibitory" in options:
        delay = options.get("recurrent", True)
        own = {} if delay is True else {"delay": delay}
        own |= {key: options[key] for key in ("inhibitory",) if key in options}
        fields["recurrent"] = own
    return fields


def _conv(made: _Builder, token: re.Match[str], options: Options) -> None:
    made.conv(int(token[1]), int(token[2]), int(token[3] or 1), **options)


def _batchnorm(made: _Builder, _token: re.Match[str], options: Options) -> None:
    made.add("batchnorm", **options)


def _lif(made: _Builder, token: re.Match[str], options: Options) -> None:
    silent = {} if token[0] == "LIF" else {"fires": False}
    made.neurons({**options, **silent})


def _pool(made: _Builder, token: re.Match[str], _options: Options) -> None:
    size, shape = int(token[2]), made.shape
    if len(shape) != 3 or size < 1 or shape[1] % size or shape[2] % size:
        raise made.wrong(
            f"a plane {shape[1:]} cannot be tiled into {size}x{size} equal windows",
            "pool to a divisor of its height and width",
        )
    kind = "maxpool" if token[1] == "P" else "avgpool"
    made.add(kind, kernel=(shape[1] // size, shape[2] // size))


def _linear(made: _Builder, token: re.Match[str], options: Options) -> None:
    made.add("linear", features=int(token[1]), **options)


def _dropout(made: _Builder, token: re.Match[str], _options: Options) -> None:
    made.add("dropout", p=float(token[1]))


def _residual(made: _Builder, token: re.Match[str], options: Options) -> None:
    """A residual block, as often as the token says; only the first has the stride."""
    channels, kernel, stride = int(token[1]), int(token[3]), int(token[4] or 1)
    for i in range(int(token[5] or 1)):
        BLOCKS[token[2]](made, channels, kernel, 1 if i else stride, options)


def _basic(made: _Builder, channels: int, kernel: int, stride: int, options: Options) -> None:
    """Currents add up before the second neurons."""
    before = made.last
    made.block(options, channels, kernel, stride)
    made.conv(channels, kernel, 1)
    way = shortcut = made.add("batchnorm")
    if made.shape == made.shapes[before]:
        shortcut = before
    else:
        made.conv(channels, 1, stride, before)
        shortcut = made.add("batchnorm")
    made.add("add", way, shortcut)
    made.neurons(options)


def _sew(made: _Builder, channels: int, kernel: int, stride: int, options: Options) -> None:
    """Spikes add up behind the second neurons."""
    shortcut = before = made.last
    made.block(options, channels, kernel, stride)
    way = made.block(options, channels, kernel, 1)
    if made.shape != made.shapes[before]:
        shortcut = made.block(options, channels, 1, stride, read=before)
    made.add("add", way, shortcut)


def _preactivated(
    made: _Builder, channels: int, kernel: int, stride: int, options: Options
) -> None:
    """BatchNorm and neurons stand before weights, and currents add up."""
    shortcut = before = made.current()
    made.add("batchnorm")
    spikes = made.neurons(options)
    made.block(options, channels, kernel, stride)
    way = made.conv(channels, kernel, 1)
    if made.shape != made.shapes[before]:
        shortcut = made.conv(channels, 1, stride, spikes)
    made.add("add", way, shortcut)


def _dense(made: _Builder, token: re.Match[str], options: Options) -> None:
    """Layers that read the spikes of all before them, from what the block reads on."""
    growth, kernel = int(token[1]), int(token[2])
    parts = [made.last]
    for _ in range(int(token[3])):
        parts.append(made.block(options, growth, kernel, 1))
        made.add("concat", *parts)


BOTTLENECK = 4  # times as many channels behind the 1x1 convolution of a dense layer


def _dense_currents(made: _Builder, token: re.Match[str], options: Options) -> None:
    """Layers that read the currents of all before them, each with a BatchNorm of its own."""
    growth, kernel = int(token[1]), int(token[2])
    parts = [made.current()]
    for _ in range(int(token[3])):
        made.add("batchnorm")
        made.neurons(options)
        made.block(options, BOTTLENECK * growth, 1, 1)
        parts.append(made.conv(growth, kernel, 1))
        made.add("concat", *parts)


Make = Callable[[_Builder, re.Match[str], Options], None]
BLOCKS: dict[str, Callable[[_Builder, int, int, int, Options], None]] = {
    "R": _basic,
    "SEW": _sew,
    "PA": _preactivated,
}
TOKENS: dict[str, Make] = {
    r"(\d{1,6})C(\d{1,3})(?:S(\d{1,3}))?": _conv,
    r"BN": _batchnorm,
    r"LIF|LI": _lif,
    r"([PA])(\d{1,4})": _pool,
    r"FC(\d{1,7})": _linear,
    r"D(0(?:\.\d+)?)": _dropout,
    r"(\d{1,6})(R|SEW|PA)(\d{1,3})(?:S(\d{1,3}))?(?:x(\d{1,2}))?": _residual,
    r"(\d{1,6})DB(\d{1,3})x(\d{1,2})": _dense,
    r"(\d{1,6})DC(\d{1,3})x(\d{1,2})": _dense_currents,
}
NEURONS = frozenset(Lif.model_fields) - {"kind", "name", "inputs", "fires"} | {"inhibitory"}
# What stands in brackets: fields of a layer; of blocks and neurons, those of neurons.
OPTIONS: Mapping[Make, frozenset[str]] = {
    _conv: frozenset({"groups", "bias"}),
    _linear: frozenset({"groups", "bias", "inhibitory"}),
    _batchnorm: frozenset({"eps"}),
    _pool: frozenset(),
    _dropout: frozenset(),
}
PREFIX = {
    "conv": "conv",
    "batchnorm": "bn",
    "lif": "lif",
    "maxpool": "pool",
    "avgpool": "avg",
    "linear": "fc",
    "dropout": "drop",
    "add": "add",
    "concat": "cat",
}


def explained(error: ValidationError, where: str, skip: int = 0) -> list[Problem]:
    """The problems of ``error``, each named by its field in ``where``, ``skip`` levels of it left out."""
    return [
        Problem(
            ".".join([where, *(str(part) for part in e["loc"][skip:])]),
            e["msg"].removeprefix("Value error, "),
        )
        for e in error.errors(include_url=False)
    ]
