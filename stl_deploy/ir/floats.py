"""The float network: a lowered NIR graph, decoded once for everybody who runs, rounds or proves it.

A network is a row of populations. What stands between two is what ``WAYS`` knows of NIR's nodes without
neurons; the neurons are in ``float_neurons.py``. Names are those of the graph's nodes, and so those of the
integer network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import nir
import numpy as np
from numpy.typing import NDArray

from stl_deploy.errors import LoweringError, Problem
from stl_deploy.ir import conv
from stl_deploy.ir import nir_graph as G
from stl_deploy.ir.float_neurons import NEURONS, FloatNeurons
from stl_deploy.ir.float_neurons import decode as decode_neurons
from stl_deploy.ir.synapses import Geometry, Pair, Shape

Float = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Weights:
    """Weights and bias [O] of the graph, float64; ``geometry`` is None for all-to-all weights [O, I]."""

    name: str
    weight: Float
    bias: Float | None
    geometry: Geometry | None

    kind: ClassVar[Literal["weights"]] = "weights"

    def apply(self, x: Float) -> Float:
        """The weighted sums of x [N, *input_shape]."""
        return self.sums(x, self.weight, self.bias)

    def sums(self, x: Float, weight: Float, bias: Float | None = None) -> Float:
        """The same with ``weight``, and ``bias``, in the place of its own."""
        if self.geometry is None:
            product: Float = x.reshape(len(x), -1) @ weight.T
            return product if bias is None else product + bias
        out: Float = conv.convolve(x, weight, *self.geometry)
        if bias is not None:
            out += bias[:, None, None]
        return out


@dataclass(frozen=True, eq=False)
class Window:
    """Sums over windows of every channel."""

    name: str
    channels: int
    kernel: Pair
    stride: Pair
    padding: Pair

    kind: ClassVar[Literal["window"]] = "window"

    @property
    def tiles(self) -> bool:
        """Whether windows neither overlap nor reach over the rim."""
        return self.stride == self.kernel and self.padding == (0, 0)

    def apply(self, x: Float) -> Float:
        """The sums of x [N, C, H, W], one place of the window after the other."""
        x = np.pad(x, ((0, 0), (0, 0), *((p, p) for p in self.padding)))
        rows, columns = (
            (size - k) // s + 1
            for size, k, s in zip(x.shape[2:], self.kernel, self.stride, strict=True)
        )
        total = np.zeros((*x.shape[:2], rows, columns))
        for i, j in np.ndindex(self.kernel):
            total += x[:, :, i :: self.stride[0], j :: self.stride[1]][:, :, :rows, :columns]
        return total


Way = Weights | Window


@dataclass(frozen=True, eq=False)
class FloatLayer:
    """A population and what leads to it.

    Attributes:
        name: of the neurons.
        ways: what the spikes before pass through, first to last.
        neurons: what they arrive at.
        input_shape, shape: of the population before and of this one, without batch and time.
        own, own_name: weights [neurons, neurons] from the population back to it, in the graph's units.
    """

    name: str
    ways: tuple[Way, ...]
    neurons: FloatNeurons
    input_shape: Shape
    shape: Shape
    own: Float | None = None
    own_name: str = ""

    @property
    def kind(self) -> Literal["lif", "or_pool", "other"]:
        """As that of an integer layer; "other" for what no integer layer is."""
        first = self.ways[0] if len(self.ways) == 1 else None
        if isinstance(first, Weights) and self.neurons.has_state:
            return "lif"
        return "or_pool" if isinstance(first, Window) and self._pools(first) else "other"

    def _pools(self, window: Window) -> bool:
        """Whether the neurons fire exactly where an input of their window does."""
        theta = self.neurons.threshold
        alone = not self.neurons.has_state and self.own is None
        return alone and window.tiles and bool(((theta >= 0) & (theta < 1)).all())

    @property
    def weights(self) -> Weights:
        """The weights of a layer of kind "lif"."""
        (way,) = self.ways
        assert isinstance(way, Weights)
        return way

    @property
    def window(self) -> Window:
        """The window of a layer of kind "or_pool"."""
        (way,) = self.ways
        assert isinstance(way, Window)
        return way

    # A layer of kind "lif" whose neurons have the same constants, in the units of v:
    # v = keep * v + (w x + bias), fires where v >= theta.

    @property
    def geometry(self) -> Geometry | None:
        """Where the weights go; None for all-to-all."""
        return self.weights.geometry

    @property
    def gain(self) -> float:
        """What v gains for each unit of the graph's sums."""
        return float(self.neurons.total_gain.flat[0])

    @property
    def keep(self) -> float:
        """What a step leaves of v."""
        return float(self.neurons.keep.flat[0])

    @cached_property
    def weight(self) -> Float:
        """[O, ...] with the gain."""
        return self.weights.weight * self.gain

    @cached_property
    def bias(self) -> Float:
        """[O] with the gain, and the leak of each channel's first neuron."""
        channels = len(self.weight)
        given = self.weights.bias
        bias: Float = np.zeros(channels) if given is None else given * self.gain
        if self.neurons.leak.any():
            leak = np.broadcast_to(self.neurons.leak, self.shape).reshape(channels, -1)
            bias = bias + leak[:, 0]
        return bias

    @property
    def theta(self) -> Float:
        """The thresholds, of the population's shape."""
        return self.neurons.theta

    @cached_property
    def recurrent(self) -> Float | None:
        """The weights from the population back to it, with the gain."""
        return None if self.own is None else self.own * self.gain

    def describe(self) -> str:
        """Of a layer of kind "other": the neurons, and what is before them."""
        before = " and ".join(way.kind for way in self.ways) or "nothing"
        return f"it is a {self.neurons.kind} behind {before}"


@dataclass(frozen=True, eq=False)
class FloatNetwork:
    """The populations in order, and what the graph's metadata says (None where there is none).

    ``rest`` names what follows the last population and leads nowhere.
    """

    input_shape: Shape
    layers: tuple[FloatLayer, ...]
    meta: G.FloatMeta | None
    rest: tuple[str, ...] = ()

    @property
    def trained(self) -> G.Trained | None:
        """The units of a network that was trained on integers."""
        return None if self.meta is None else self.meta.trained

    @cached_property
    def by_name(self) -> dict[str, FloatLayer]:
        """The layers by the name of their neurons."""
        return {layer.name: layer for layer in self.layers}


def _conv(name: str, node: nir.Conv2d, _shape: Shape) -> Weights:
    geometry = Geometry(*G.conv_geometry(node), int(node.groups))
    return Weights(name, _float(node.weight), _float(node.bias), geometry)


def _dense(name: str, node: nir.Linear | nir.Affine, _shape: Shape) -> Weights:
    bias = _float(node.bias) if hasattr(node, "bias") else None
    return Weights(name, _float(node.weight), bias, None)


def _window(name: str, node: nir.SumPool2d, shape: Shape) -> Window:
    return Window(name, shape[0], *map(G.pair, (node.kernel_size, node.stride, node.padding)))


def _float(values: NDArray[Any]) -> Float:
    return values.astype(np.float64, copy=False)


WAYS: dict[type, Callable[[str, Any, Shape], Way | None]] = {
    nir.Conv2d: _conv,
    nir.Linear: _dense,
    nir.Affine: _dense,
    nir.SumPool2d: _window,
    nir.Flatten: lambda _name, _node, _shape: (
        None
    ),  # all-to-all weights take their inputs in C order
}
KNOWN = (*WAYS, *NEURONS)


def decode(graph: nir.NIRGraph) -> FloatNetwork:
    """The float network of a lowered graph.

    Raises LoweringError naming every node that has no place in one, and InputError for broken metadata.
    """
    meta = G.float_meta(graph) if G.KEY in graph.metadata else None
    own = G.recurrent(graph)
    layers: list[FloatLayer] = []
    ways: list[Way] = []
    problems: list[Problem] = []
    before = G.in_shape(graph)
    for name, node, shape in shaped(graph, problems):
        if type(node) in WAYS:
            way = WAYS[type(node)](name, node, shape)
            ways += [] if way is None else [way]
        elif type(node) in NEURONS:
            back, linear = own.get(name, ("", None))
            if linear is not None:
                problems += G.recurrent_problems(name, back, linear, shape)
            weight = None if linear is None else _float(linear.weight)
            neurons = decode_neurons(node)
            layers.append(FloatLayer(name, tuple(ways), neurons, before, shape, weight, back))
            ways, before = [], shape
        else:
            what = f"a {type(node).__name__} has no place in a lowered float graph"
            problems.append(Problem(name, what, "lower the graph first (from_torch, from_nir)"))
    if problems:
        raise LoweringError(problems)
    return FloatNetwork(G.in_shape(graph), tuple(layers), meta, tuple(way.name for way in ways))


def shaped(
    graph: nir.NIRGraph, problems: Sequence[Problem] = ()
) -> Iterator[tuple[str, nir.ir.NIRNode, Shape]]:
    """Name, node and output shape of every node between input and output.

    Raises LoweringError for a node that does not fit the one before it, with the ``problems`` so far.
    """
    shape = G.in_shape(graph)
    for name, node in G.inner(graph).items():
        try:
            shape = G.node_output(name, node, shape)
        except ValueError as error:
            what = str(error).removeprefix(f"{name}: ")
            raise LoweringError([*problems, Problem(name, what)]) from None
        yield name, node, shape


def magnitudes(graph: nir.NIRGraph) -> dict[str, Float]:
    """Of every population, the largest sum of magnitudes [O] that a step of ``graph`` can add up.

    Rounding errors grow with this and not with the sum itself. For a model with BatchNorm this is
    that of the graph *before* it is lowered, whose terms cancel when they are folded.
    """
    largest: dict[str, Float] = {}
    peak: Float = np.array([float(G.float_meta(graph).input_levels)])
    for name, node, shape in shaped(graph):
        way = WAYS[type(node)](name, node, shape) if type(node) in WAYS else None
        if isinstance(way, Weights):
            weight = np.abs(way.weight)
            bias = 0.0 if way.bias is None else np.abs(way.bias)
            peak = weight.reshape(len(weight), -1).sum(axis=1) * peak.max() + bias
        elif isinstance(way, Window):
            peak = peak * float(np.prod(way.kernel))
        elif isinstance(node, G.BatchNorm):
            k = np.abs(node.gamma) / np.sqrt(node.var.astype(np.float64) + node.eps)
            peak = k * (peak + np.abs(node.mean)) + np.abs(node.beta)
        elif isinstance(node, G.InputScale):
            peak = peak / node.levels
        elif type(node) in NEURONS:
            largest[name] = peak
            peak = np.ones(1)
    return largest
