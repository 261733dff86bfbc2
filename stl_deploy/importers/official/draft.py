"""A float graph in the making, from the tensors of a state_dict whose class is known.

A system (``ltmd.py`` and the like) says in which order its class runs what. Each call here takes the tensors
that it needs by their names, checks their shapes and adds a node. Names that nothing took in the end belong
to no layer, and are an error: the class is then another than the one that was recognised.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import nir
import numpy as np
from numpy.typing import NDArray

from stl_deploy.errors import InputError, Problem
from stl_deploy.importers.given import Normalize
from stl_deploy.importers.nir.graph import normalizing
from stl_deploy.ir import nir_graph as G
from stl_deploy.ir.float_neurons import FloatNeurons, FloatReset
from stl_deploy.ir.neurons import ONCE
from stl_deploy.ir.synapses import Shape
from stl_deploy.lower.flow import Flow
from stl_deploy.lower.linear import check_size
from stl_deploy.lower.nodes import Reading

Array = NDArray[Any]
EPS = 1e-5  # of a BatchNorm: PyTorch's default, which no official code changes


class At(NamedTuple):
    """The values that leave a node, of ``shape``."""

    node: str
    shape: Shape


@dataclass(frozen=True)
class Rules:
    """Neurons of a system: v = ``keep`` v + I, a spike where v > ``threshold`` (>= if ``reached``).

    ``gains`` [T] multiply what arrives in each step; ``graded`` neurons send v instead of spikes; ``once``:
    they fire once, and then keep v.
    """

    keep: float
    threshold: Array | float
    reset: FloatReset = "zero"
    reached: bool = False
    gains: Array | None = None
    graded: bool = False
    once: bool = False

    def neurons(self, shape: Shape) -> FloatNeurons:
        """A population of ``shape``."""
        theta = np.asarray(self.threshold, np.float64)
        theta = np.nextafter(theta, -np.inf) if self.reached else theta
        gains = None if self.gains is None else self.gains.reshape(-1, *[1] * len(shape))
        one = np.ones(shape)
        return FloatNeurons(
            kind="lif",
            step=one * (1 - self.keep),
            gain=one,
            leak=0 * one,
            threshold=one * theta,
            v_reset=0 * one,
            current=one,
            drive=one,
            reset="none" if self.once else self.reset,
            hold=ONCE if self.once else 0,
            amplify=gains,
            graded=self.graded,
        )


@dataclass
class Draft:
    """Nodes and edges from the input on.

    ``params`` are those of the file at ``path``; ``populations`` are the names of all neurons of the class,
    ``carriers`` those of neurons that only carry currents, which the class does not have.
    """

    path: Path
    params: dict[str, Array]
    nodes: dict[str, nir.ir.NIRNode] = field(default_factory=dict)
    edges: list[tuple[str, str]] = field(default_factory=list)
    used: set[str] = field(default_factory=set)
    populations: dict[str, Rules] = field(default_factory=dict)
    carriers: list[str] = field(default_factory=list)

    def has(self, key: str) -> bool:
        """Whether the file has this tensor."""
        return key in self.params

    def linear_layers(self, prefix: str = "") -> list[str]:
        """The linear layers with this prefix, in the order of the file. Raises InputError where none is."""
        names = [
            key.removesuffix(".weight")
            for key, values in self.params.items()
            if key.startswith(prefix) and key.endswith(".weight") and values.ndim == 2
        ]
        if not names:
            what = f"has no linear layer {prefix}".rstrip()
            raise InputError(Problem(str(self.path), f"{what} behind its neurons"))
        return names

    def take(self, key: str, *shape: int) -> Array:
        """A tensor of the file in float64, of ``shape`` where one is given. Raises InputError for another."""
        where = f"{self.path}: {key}"
        if key not in self.params:
            raise InputError(Problem(where, "is missing"))
        values = self.params[key]
        if shape and values.shape != shape:
            what = f"has shape {values.shape}, expected {shape}"
            raise InputError(Problem(where, what, "give the input's as --input-shape C,H,W"))
        self.used.add(key)
        return values.astype(np.float64)

    def put(self, name: str, node: nir.ir.NIRNode, *sources: At) -> str:
        """A node behind ``sources``, which add up."""
        while name in self.nodes:
            name += "_"
        self.nodes[name] = node
        self.edges += [(source.node, name) for source in sources]
        return name

    def input(self, shape: Shape, levels: int, how: Normalize | None) -> At:
        """The input as the class receives it: x / levels, normalized where that was said."""
        at = At(self.put("input", nir.Input(input_type={"input": np.array(shape)})), shape)
        if levels == 1 and how is None:
            return at
        scale = G.InputScale(shape, shape, levels)
        at = At(self.put("input.levels", scale, at), shape)
        if how is None:
            return at
        return At(self.put("input.normalized", normalizing(shape, how), at), shape)

    def conv(self, at: At, key: str, stride: int = 1) -> At:
        """The convolution ``key``, padded so that a stride of 1 keeps the plane."""
        weight = self.take(f"{key}.weight")
        if weight.ndim != 4 or len(at.shape) != 3 or weight.shape[1] != at.shape[0]:
            what = f"has shape {weight.shape}, and reads an input of shape {at.shape}"
            raise InputError(Problem(f"{self.path}: {key}.weight", what))
        if weight.shape[2] % 2 == 0 or weight.shape[3] % 2 == 0:
            what = f"has a kernel of {weight.shape[2]} x {weight.shape[3]}; odd ones are expected"
            raise InputError(Problem(f"{self.path}: {key}.weight", what))
        bias = np.zeros(len(weight))
        if self.has(f"{key}.bias"):
            bias = self.take(f"{key}.bias", len(weight))
        pads = weight.shape[2] // 2, weight.shape[3] // 2
        return self.convolved(at, key, weight, stride, pads, bias)

    def convolved(
        self,
        at: At,
        name: str,
        weight: Array,
        stride: int,
        pads: tuple[int, int],
        bias: Array | None = None,
    ) -> At:
        """A convolution with these weights [O, C, kh, kw]. Raises InputError where they do not fit."""
        made = np.zeros(len(weight)) if bias is None else bias
        try:
            node = G.conv2d(weight, made, at.shape, (stride, stride), pads)
            shape = G.node_output(name, node, at.shape)
            check_size(shape)
        except ValueError as error:
            raise InputError(Problem(f"{self.path}: {name}", str(error))) from None
        return At(self.put(name, node, at), shape)

    def carried(self, at: At, name: str) -> At:
        """The same values, carried by neurons that send what arrives.

        They are needed where two convolutions follow each other and the second pads with zeros what the first
        gives. A constant, which such neurons do not send, goes past them.
        """
        constant = self._constant(at)
        one = np.ones(at.shape)
        node = FloatNeurons(
            kind="lif",
            step=one,
            gain=one,
            leak=0 * one,
            threshold=0 * one,
            v_reset=0 * one,
            current=one,
            drive=one,
            fires=False,
            graded=True,
        ).node()
        plain = self.shift(at, f"{name}.plain", -constant)
        self.carriers.append(self.put(f"{name}.carried", node, plain))
        return self.shift(At(self.carriers[-1], at.shape), f"{name}.constant", constant)

    def _constant(self, at: At) -> Array:
        """What arrives there without any input or spike."""
        end = nir.Output(output_type={"output": np.array(at.shape)})
        flow = Flow({**self.nodes, "": end}, [*self.edges, (at.node, "")], Reading())
        flow.spread_shapes()
        found = flow.sums()[""].constant
        return np.zeros(at.shape) if found is None else found.reshape(at.shape)

    def norm(self, at: At, key: str) -> At:
        """The BatchNorm ``key`` with its running statistics."""
        channels = at.shape[0]
        gamma, beta = np.ones(channels), np.zeros(channels)
        if self.has(f"{key}.weight") or self.has(f"{key}.bias"):
            gamma = self.take(f"{key}.weight", channels)
            beta = self.take(f"{key}.bias", channels)
        mean = self.take(f"{key}.running_mean", channels)
        var = self.take(f"{key}.running_var", channels)
        node = G.BatchNorm(at.shape, at.shape, gamma, beta, mean, var, EPS)
        return At(self.put(key, node, at), at.shape)

    def average(self, at: At, window: tuple[int, int], name: str) -> At:
        """Means over windows that tile the plane. Raises InputError for others."""
        if any(n % k for n, k in zip(at.shape[1:], window, strict=True)):
            what = f"averages windows {window} of a plane {at.shape[1:]}, which do not tile it"
            remedy = "give the input's shape as --input-shape C,H,W"
            raise InputError(Problem(f"{self.path}: {name}", what, remedy))
        if window == (1, 1):
            return at
        kernel = np.array(window)
        node = nir.AvgPool2d(kernel_size=kernel, stride=kernel, padding=np.zeros(2, int))
        return At(self.put(name, node, at), G.node_output(name, node, at.shape))

    def global_average(self, at: At, name: str) -> At:
        """The mean of each channel [C]."""
        height, width = at.shape[1:]
        return self.flat(self.average(at, (height, width), name), f"{name}.flat")

    def flat(self, at: At, name: str) -> At:
        """The values in a row."""
        if len(at.shape) == 1:
            return at
        return At(self.put(name, G.flatten(at.shape), at), (math.prod(at.shape),))

    def linear(self, at: At, key: str) -> At:
        """The linear layer ``key``."""
        weight = self.take(f"{key}.weight")
        if weight.ndim != 2 or weight.shape[1] != math.prod(at.shape):
            what = f"has shape {weight.shape}, and reads {math.prod(at.shape)} values {at.shape}"
            remedy = "give the input's shape as --input-shape C,H,W"
            raise InputError(Problem(f"{self.path}: {key}.weight", what, remedy))
        bias = self.take(f"{key}.bias", len(weight)) if self.has(f"{key}.bias") else None
        return self.dense(at, key, weight, bias)

    def dense(self, at: At, name: str, weight: Array, bias: Array | None = None) -> At:
        """Weights [O, I], and a bias [O]."""
        at = self.flat(at, f"{name}.flat")
        made = nir.Linear(weight) if bias is None else nir.Affine(weight, bias)
        return At(self.put(name, made, at), (len(weight),))

    def add(self, name: str, *parts: At) -> At:
        """The sum of ``parts``. Raises InputError where their shapes differ."""
        shapes = {part.shape for part in parts}
        if len(shapes) > 1:
            what = f"adds up values of shapes {' and '.join(map(str, shapes))}"
            raise InputError(Problem(f"{self.path}: {name}", what))
        return At(self.put(name, G.Dropout(parts[0].shape, parts[0].shape), *parts), parts[0].shape)

    def concat(self, name: str, parts: Sequence[At]) -> At:
        """``parts`` behind each other along the channels."""
        shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
        first, placed = 0, []
        for i, part in enumerate(parts):
            node = G.Place(part.shape, shape, first)
            placed.append(At(self.put(f"{name}.part{i}", node, part), shape))
            first += part.shape[0]
        return self.add(name, *placed)

    def shift(self, at: At, name: str, values: Array) -> At:
        """``values`` of the full shape added; nothing where they are 0."""
        if not values.any():
            return at
        return At(self.put(name, G.Shift(at.shape, at.shape, values), at), at.shape)

    def corner(self, at: At, name: str, size: int, which: int) -> At:
        """Of each window of ``size`` x ``size`` values, the one at place ``which``."""
        channels = at.shape[0]
        kernel = np.zeros((channels, 1, size, size))
        kernel[:, 0, which // size, which % size] = 1
        pads = 0, 0
        node = G.conv2d(kernel, np.zeros(channels), at.shape, (size, size), pads, channels)
        return At(self.put(name, node, at), G.node_output(name, node, at.shape))

    def scaled(self, at: At, name: str, factor: float) -> At:
        """All values times ``factor``."""
        return At(self.put(name, nir.Scale(np.full(at.shape, factor)), at), at.shape)

    def above_zero(self, at: At, name: str) -> At:
        """Neurons without memory that send what arrives where it is above 0."""
        made = self.put(name, Rules(0.0, 0.0, graded=True).neurons(at.shape).node(), at)
        self.carriers.append(made)
        return At(made, at.shape)

    def spikes(self, at: At, name: str, rules: Rules) -> At:
        """Neurons."""
        made = self.put(name, rules.neurons(at.shape).node(), at)
        self.populations[made] = rules
        return At(made, at.shape)

    def graph(self, end: At) -> nir.NIRGraph:
        """The graph that ends with ``end``. Raises InputError naming the tensors that nothing took."""
        problems = [
            Problem(f"{self.path}: {key}", f"of shape {values.shape} belongs to no layer")
            for key, values in self.params.items()
            if key not in self.used
        ]
        if problems:
            raise InputError(problems)
        self.put("output", nir.Output(output_type={"output": np.array(end.shape)}), end)
        return nir.NIRGraph(self.nodes, self.edges, type_check=False)
