"""The float NIR graph: NIR's own nodes, and those that lowering removes before it is written.

NIR 1.0 knows no BatchNorm, Dropout, MaxPool, concatenation or population readout. Importers put them into
the graph as the node classes here; ``lower/flow.py`` folds, drops or lowers each. What NIR cannot say stands
as one JSON string in the graph's metadata, the reset by subtraction as ``reset: "subtract"`` in the metadata
of the neurons, and other rules of neurons next to it (``nir_words.py``). A Linear or Affine between the last
neurons and the Output is the matrix of a readout.

What neurons send themselves arrives one step later, or as late as a Delay on that way says. Every other loop
has a Delay of at least one step.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, Literal, TypeAlias, cast, get_args

import nir
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from stl_deploy.errors import InputError, Problem
from stl_deploy.ir.read_as import ReadAs
from stl_deploy.ir.readouts import Rule
from stl_deploy.ir.synapses import Pair, Shape
from stl_deploy.ir.units import MAX_SIGNED, MAX_STEPS, MAX_UNSIGNED

KEY = "stl_deploy"  # of the JSON string in NIRGraph.metadata
DT = 1e-4  # the time step that NIR's readers assume
NEWEST = 5  # version of the JSON string of a float graph
RULES = 4  # the first version with all rules of neurons and readouts
Stated = Literal["zero", "subtract", "none"]  # resets that a node states
Array = NDArray[Any]
Neurons: TypeAlias = nir.LIF | nir.IF | nir.CubaLIF


class Trained(BaseModel):
    """The numbers of the graph are whole ones times a unit, from training on integers.

    ``scale`` holds, by the name of the neurons, the unit of each output channel: of weights, biases and
    thresholds; v counts 1/64 of it, and a decay truncates toward zero. ``weight_bits`` is the grid.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    weight_bits: int = Field(ge=2, le=8)
    scale: dict[str, list[Annotated[float, Field(gt=0, allow_inf_nan=False)]]]


Finite = Annotated[float, Field(allow_inf_nan=False)]


class Read(BaseModel):
    """How classes are scored, as ``readouts.Readout`` has it; a matrix on counts is a node of the graph."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    rule: Rule = "votes"
    steps: tuple[Finite, ...] | None = None
    factors: tuple[Finite, ...] | None = None


class FloatMeta(BaseModel):
    """The JSON string of a float graph.

    ``input_levels``, ``signed`` and ``held`` are those of its input (``network.Input``). Version 2 has
    ``trained``; version 3 may have it, and is signed or held. Version 4 may have all of them and ``readout``,
    without which spikes vote; its nodes may be any that ``FloatNeurons`` and ``FloatReadout`` can say.
    Version 5 may have ``read_as`` too: how its populations were read from the file that it was made of.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    format: str = Field(default="stl-deploy/float", pattern="^stl-deploy/float$")
    version: int = Field(default=1, ge=1, le=NEWEST)
    timesteps: int = Field(ge=1, le=MAX_STEPS)
    input_levels: int = Field(default=1, ge=1, le=MAX_SIGNED)
    signed: bool = False
    held: bool = False
    classes: int = Field(ge=1)
    population: int = Field(ge=1)
    trained: Trained | None = None
    readout: Read | None = None
    read_as: tuple[ReadAs, ...] = ()

    @model_validator(mode="after")
    def _versioned(self) -> FloatMeta:
        if self.version < RULES and self.readout is not None:
            raise ValueError(f"version {self.version} with a readout")
        if self.version < NEWEST and self.read_as:
            raise ValueError(f"version {self.version} with read_as")
        if self.version <= 3 and (self.version == 3) != (self.signed or self.held):
            raise ValueError(
                f"version {self.version} {'without' if self.version == 3 else 'with'} signed or held"
            )
        if self.version < 3 and (self.version == 2) != (self.trained is not None):
            raise ValueError(
                f"version {self.version} {'without' if self.version == 2 else 'with'} trained"
            )
        if self.input_levels > MAX_UNSIGNED and not self.signed:
            raise ValueError(f"{self.input_levels} levels without a sign; at most {MAX_UNSIGNED}")
        return self

    def text(self) -> str:
        """The string."""
        newer = {"signed", "held"} if self.version < 3 else set()
        newer |= set() if self.read_as else {"read_as"}
        return self.model_dump_json(exclude_none=True, exclude=newer)


@dataclass(eq=False)
class _Foreign(nir.ir.NIRNode):  # type: ignore[misc]
    """A node outside NIR; ``in_shape`` and ``out_shape`` are those of one sample and step."""

    in_shape: Shape
    out_shape: Shape

    def __post_init__(self) -> None:
        self.input_type = {"input": np.array(self.in_shape)}
        self.output_type = {"output": np.array(self.out_shape)}


@dataclass(eq=False)
class BatchNorm(_Foreign):
    """y = gamma * (x - mean) / sqrt(var + eps) + beta over axis 0, the same at every step."""

    gamma: Array
    beta: Array
    mean: Array
    var: Array
    eps: float


@dataclass(eq=False)
class Dropout(_Foreign):
    """Identity in evaluation."""


@dataclass(eq=False)
class MaxPool2d(_Foreign):
    """Maximum over windows of ``kernel`` that tile the plane."""

    kernel: Pair


@dataclass(eq=False)
class InputScale(_Foreign):
    """y = x / levels: integers 0..levels read as 0..1."""

    levels: int


@dataclass(eq=False)
class Place(_Foreign):
    """A part of a concatenation: channels ``first`` and following of the output, all others 0."""

    first: int


@dataclass(eq=False)
class Shift(_Foreign):
    """y = x + values, which have the full shape: a bias for each value."""

    values: Array


def conv2d(
    weight: Array,
    bias: Array,
    in_shape: Shape,
    stride: Pair,
    padding: Pair,
    groups: int = 1,
    dilation: Pair = (1, 1),
) -> nir.Conv2d:
    """``nir.Conv2d`` with the types it ought to infer (nir 1.0.8 errs for non-square kernels)."""
    node = nir.Conv2d(
        input_shape=None,
        weight=weight,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=bias,
    )
    node.input_shape = in_shape[1:]
    size = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, p, d, k, s in zip(
            in_shape[1:], padding, dilation, weight.shape[2:], stride, strict=True
        )
    ]
    node.input_type = {"input": np.array(in_shape)}
    node.output_type = {"output": np.array([weight.shape[0], *size])}
    return node


def sum_pool(kernel: Pair, in_shape: Shape) -> nir.SumPool2d:
    """``nir.SumPool2d`` over windows that tile the plane."""
    node = nir.SumPool2d(
        kernel_size=np.array(kernel), stride=np.array(kernel), padding=np.array((0, 0))
    )
    node.input_type = {"input": np.array(in_shape)}
    node.output_type = {
        "output": np.array([in_shape[0], in_shape[1] // kernel[0], in_shape[2] // kernel[1]])
    }
    return node


def flatten(in_shape: Shape) -> nir.Flatten:
    """``nir.Flatten`` of everything (NIR's shapes have no batch)."""
    return nir.Flatten(start_dim=0, end_dim=-1, input_type={"input": np.array(in_shape)})


def euler(step: Array, gain: Array) -> tuple[Array, Array]:
    """tau and r of a LIF whose step keeps 1 - ``step`` of v and adds ``gain`` times the input.

    Of the float64s next to DT / step and gain * tau / DT those that give ``gain`` back as it is: weights that
    are whole numbers meet thresholds exactly, and a last bit would then decide. Arrays of one shape,
    ``step`` above 0.
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        best = DT / step, gain / (DT / (DT / step))
        error = np.full(step.shape, np.inf), np.full(step.shape, np.inf)
        for tau in _neighbours(best[0]):
            for r in _neighbours(gain / (DT / tau)):
                new = abs(DT / tau * r - gain), abs((1 - DT / tau) - (1 - step))
                better = (new[0] < error[0]) | ((new[0] == error[0]) & (new[1] < error[1]))
                best = np.where(better, tau, best[0]), np.where(better, r, best[1])
                error = np.where(better, new[0], error[0]), np.where(better, new[1], error[1])
    return best


def over_dt(gain: Array) -> Array:
    """r of an IF whose step adds ``gain`` times the input: of the float64s next to it that give it back."""
    best = gain / DT
    error = abs(DT * best - gain)
    for r in _neighbours(gain / DT):
        new = abs(DT * r - gain)
        best, error = np.where(new < error, r, best), np.minimum(new, error)
    return best


def _neighbours(values: Array) -> list[Array]:
    """``values``, and the two float64s above and below each."""
    up, down = np.nextafter(values, np.inf), np.nextafter(values, -np.inf)
    return [values, up, down, np.nextafter(up, np.inf), np.nextafter(down, -np.inf)]


def lif(threshold: Array, tau: Array | float, r: Array | float) -> nir.LIF:
    """``nir.LIF`` with v_leak = v_reset = 0; every parameter gets the threshold's full shape."""
    shape = threshold.shape
    return nir.LIF(
        tau=np.broadcast_to(np.asarray(tau, np.float64), shape).copy(),
        r=np.broadcast_to(np.asarray(r, np.float64), shape).copy(),
        v_leak=np.zeros(shape),
        v_reset=np.zeros(shape),
        v_threshold=threshold,
    )


def integrate_and_fire(threshold: Array, gain: float = 1.0) -> nir.IF:
    """``nir.IF`` with v_reset = 0 whose step adds ``gain`` times the input: r = gain / dt."""
    shape = threshold.shape
    return nir.IF(r=np.full(shape, gain / DT), v_threshold=threshold, v_reset=np.zeros(shape))


def cuba_lif(
    threshold: Array, tau_syn: float, tau_mem: float, r: float, w_in: float, v_leak: Array
) -> nir.CubaLIF:
    """``nir.CubaLIF`` with v_reset = 0; every parameter gets the threshold's full shape."""
    shape = threshold.shape
    return nir.CubaLIF(
        tau_syn=np.full(shape, tau_syn),
        tau_mem=np.full(shape, tau_mem),
        r=np.full(shape, r),
        v_leak=np.broadcast_to(v_leak, shape).copy(),
        v_reset=np.zeros(shape),
        v_threshold=threshold,
        w_in=np.full(shape, w_in),
    )


def reset_of(node: Neurons) -> Stated:
    """What a spike does to v: ``reset`` of the node's metadata, "zero" (to v_reset) without.

    NIR's equations cannot say "subtract" (v_threshold). Raises ValueError for anything else.
    """
    word = node.metadata.get("reset", "zero")
    word = word.decode("utf-8", "replace") if isinstance(word, bytes) else word
    for known in get_args(Stated):
        if isinstance(word, str) and word == known:
            return cast(Stated, known)
    raise ValueError(f"reset {word!r} in its metadata is not one of {', '.join(get_args(Stated))}")


def chain_graph(
    nodes: dict[str, nir.ir.NIRNode], in_shape: Shape, out_shape: Shape, meta: str
) -> nir.NIRGraph:
    """A graph Input -> nodes in order -> Output with ``meta`` as its JSON string."""
    every = {
        "input": nir.Input(input_type={"input": np.array(in_shape)}),
        **nodes,
        "output": nir.Output(output_type={"output": np.array(out_shape)}),
    }
    return nir.NIRGraph(
        nodes=every, edges=list(pairwise(every)), metadata={KEY: meta}, type_check=False
    )


def on_cycles(names: Sequence[str], edges: Iterable[tuple[str, str]]) -> list[str]:
    """Those of ``names`` that edges among them lead from back to themselves, in their order."""
    if not names:
        return []
    number = {name: i for i, name in enumerate(names)}
    among = [(number[a], number[b]) for a, b in edges if a in number and b in number]
    ends = np.array(among, int).reshape(-1, 2)
    size = (len(names), len(names))
    links = coo_array((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=size)
    _, of = connected_components(links, connection="strong")
    loops = set(ends[ends[:, 0] == ends[:, 1], 0].tolist())
    several = np.bincount(of)[of] > 1
    return [name for i, name in enumerate(names) if several[i] or i in loops]


def in_shape(graph: nir.NIRGraph) -> Shape:
    """Shape of one step's input."""
    (node,) = (n for n in graph.nodes.values() if isinstance(n, nir.Input))
    return shape_of(node.input_type["input"])


def shape_of(value: Any) -> Shape:
    """A NIR type's entry as a tuple of ints."""
    return tuple(int(n) for n in np.atleast_1d(value))


def node_output(name: str, node: nir.ir.NIRNode, shape: Shape) -> Shape:
    """Output shape of ``node`` for an input of ``shape``. Raises ValueError naming both."""
    problem = ValueError(f"{name}: {type(node).__name__} does not fit an input of shape {shape}")
    match node:
        case _Foreign():
            if node.in_shape != shape:
                raise problem
            return node.out_shape
        case nir.Conv2d():
            if node.weight.ndim != 4:
                raise ValueError(f"{name}: the kernel has shape {node.weight.shape}, not rank 4")
            out_channels, per_group, kh, kw = node.weight.shape
            if node.input_shape is not None and shape_of(node.input_shape) != shape[1:]:
                raise ValueError(
                    f"{name}: input_shape {shape_of(node.input_shape)} for an input {shape}"
                )
            if (
                len(shape) != 3
                or shape[0] != per_group * node.groups
                or node.bias.shape != (out_channels,)
            ):
                raise problem
            return (out_channels, *plane(shape, (kh, kw), *conv_geometry(node)))
        case nir.SumPool2d() | nir.AvgPool2d():
            if len(shape) != 3:
                raise problem
            kernel, stride, padding = (
                pair(v) for v in (node.kernel_size, node.stride, node.padding)
            )
            return (shape[0], *plane(shape, kernel, stride, padding, (1, 1)))
        case nir.Flatten():
            return (math.prod(shape),)
        case nir.Linear() | nir.Affine():
            if shape != node.weight.shape[1:]:
                raise problem
            return (node.weight.shape[0],)
        case nir.Scale():
            if shape != node.scale.shape:
                raise problem
            return shape
        case nir.LIF() | nir.IF() | nir.CubaLIF():
            if shape != node.v_threshold.shape:
                raise problem
            try:
                reset_of(node)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
            return shape
        case nir.Threshold():
            if shape != node.threshold.shape:
                raise problem
            return shape
        case nir.LI() | nir.CubaLI() | nir.I():
            if shape != node.r.shape:
                raise problem
            return shape
        case nir.Delay():
            if np.size(node.delay) != 1 and np.shape(node.delay) != shape:
                raise problem
            return shape
        case nir.Output():
            if (declared := shape_of(node.output_type["output"])) != shape:
                raise ValueError(f"{name}: declared as {declared}, but what arrives has {shape}")
            return shape
    raise ValueError(f"{name}: {type(node).__name__} is not supported")


def plane(shape: Shape, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair) -> Pair:
    """Height and width after a window operation on (C, H, W)."""
    if min(*kernel, *stride, *dilation) < 1 or min(padding) < 0:
        raise ValueError(f"kernel {kernel}, stride {stride}, padding {padding}, {dilation=}")
    h, w = (
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(shape[1:], kernel, stride, padding, dilation, strict=True)
    )
    if min(h, w) < 1:
        raise ValueError(f"a {kernel} window does not fit into {shape}")
    return h, w


def conv_geometry(node: nir.Conv2d) -> tuple[Pair, Pair, Pair]:
    """(stride, padding, dilation) of a NIR convolution as pairs; "same" and "valid" resolved."""
    stride, dilation = pair(node.stride), pair(node.dilation)
    padding = node.padding.decode() if isinstance(node.padding, bytes) else node.padding
    if isinstance(padding, str):
        if padding == "valid":
            return stride, (0, 0), dilation
        reach = [d * (k - 1) for d, k in zip(dilation, node.weight.shape[2:], strict=True)]
        if padding != "same" or any(r % 2 for r in reach) or stride != (1, 1):
            raise ValueError(f"padding {padding!r} of a {node.weight.shape[2:]} kernel")
        return stride, (reach[0] // 2, reach[1] // 2), dilation
    return stride, pair(padding), dilation


def pair(value: Any) -> Pair:
    """A number or two as a pair of ints."""
    values = [int(v) for v in np.atleast_1d(value).ravel()]
    if len(values) not in (1, 2):
        raise ValueError(f"{value!r} is not one number or two")
    return values[0], values[-1]


def float_meta(graph: nir.NIRGraph) -> FloatMeta:
    """The checked JSON string of a float graph. Raises InputError when it is missing or wrong."""
    text = graph.metadata.get(KEY)
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    if not isinstance(text, str):
        raise InputError(
            Problem(f"metadata.{KEY}", "is missing: not a graph written by stl-deploy")
        )
    where = f"metadata.{KEY}"
    try:
        data = json.loads(text)
        version = data.get("version") if isinstance(data, dict) else None
        if isinstance(version, int) and version > NEWEST:
            what = f"is of version {version} of the format; this stl-deploy reads up to {NEWEST}"
            raise InputError(Problem(where, what, "install the stl-deploy version that wrote it"))
        return FloatMeta.model_validate(data)
    except ValidationError as error:
        raise InputError(
            Problem(".".join(map(str, (where, *e["loc"]))), f"is not valid: {e['msg']}")
            for e in error.errors(include_url=False)
        ) from None
    except (ValueError, RecursionError) as error:
        raise InputError(Problem(where, f"is not valid: {error}")) from None
