"""A graph as the strict chain of layers that netx builds: one layer for all populations of a depth.

netx connects each layer to the one before and to no other, and knows no concatenation. So what skips layers
is carried through them by relays (``lower/relays.py``), and all populations of one depth, relays included,
are channels of one convolution where their planes agree, else neurons of one dense layer. From a dense layer
on all layers are dense. A layer has one decay of currents and one of voltages. A relay fires and is reset
in one step, whatever the decay of its voltage; a current it must forget.

One-to-one weights of a skip are often wider than the 8 bits of a layer. Then a relay stands there several
times, and their weights add up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stl_deploy.exporters import loihi_layers
from stl_deploy.ir import conv
from stl_deploy.ir.network import Connection, IntegerNetwork, Population
from stl_deploy.ir.neurons import by_channel, shared
from stl_deploy.ir.synapses import Conv, Dense, OneToOne, Shape
from stl_deploy.ir.units import FORGETS

# Entries of a matrix that convolutions are unrolled to: 64 MB in Lava's int32.
MOST_ENTRIES = 1 << 24
WEIGHTS = -128, 127
# Relays that may stand in the place of one, for a weight of up to 32 * 127.
MOST_COPIES = 32
Ints = NDArray[np.integer[Any]]


class Unfit(Exception):
    """Populations ``names`` that cannot share a layer, and what to do; its text says why."""

    def __init__(self, names: Sequence[str], why: str, remedy: str) -> None:
        super().__init__(why)
        self.names, self.remedy = names, remedy


def copies(connection: Connection) -> int:
    """How many times the source of one-to-one weights has to stand in a layer of 8 bits."""
    largest = int(np.abs(connection.synapses.weight.astype(np.int64)).max(initial=0))
    return max(1, -(-largest // WEIGHTS[1]))


def has_copies(network: IntegerNetwork, name: str) -> bool:
    """Whether a population is cheap to have twice: a relay, or one that nothing leads into."""
    if name in network.inputs:
        return False
    into = network.into(name)
    return not into or (
        network.by_name[name].kind == "or"
        and len(into) == 1
        and into[0].synapses.kind == "one_to_one"
        and bool((into[0].synapses.weight == 1).all())
    )


def narrowed(network: IntegerNetwork) -> IntegerNetwork:
    """``network`` with weights of 8 bits, and more relays where those from one were wider."""
    populations, connections = list(network.populations), list[Connection]()
    taken = {*network.inputs, *network.by_name}
    same: dict[str, list[str]] = {}  # a population and its copies, by its name
    for c in network.connections:
        if c.precision == "8":
            connections.append(c)
            continue
        left = c.synapses.weight.astype(np.int64)
        for i in range(copies(c)):
            named = same.setdefault(c.source, [c.source])
            if i == len(named):
                name = f"{c.source}_copy{i}"
                while name in taken:
                    name += "_"
                taken.add(name)
                named.append(name)
                place = populations.index(network.by_name[c.source])
                populations.insert(place, replace(network.by_name[c.source], name=name))
                connections += [replace(way, target=name) for way in network.into(c.source)]
            part = np.clip(left, -WEIGHTS[1], WEIGHTS[1])
            left = left - part
            weights = OneToOne(part.astype(np.int8))
            one = replace(c, source=named[i], synapses=weights, bits=8, precision="8")
            connections.append(one)
    return replace(network, populations=tuple(populations), connections=tuple(connections))


@dataclass(frozen=True)
class Block:
    """A population within a layer, from its channel or neuron ``start`` on."""

    population: Population
    start: int


@dataclass(frozen=True, eq=False)
class Layer:
    """Neurons of one depth, and all that leads into them, from the whole layer before."""

    blocks: tuple[Block, ...]
    shape: Shape
    synapses: Conv | Dense
    du: int
    dv: int

    @property
    def names(self) -> list[str]:
        """Those of its populations."""
        return [block.population.name for block in self.blocks]

    @property
    def vth(self) -> NDArray[np.int32]:
        """int32 of its shape."""
        return self._joined(lambda p: np.broadcast_to(p.neurons.vth, p.shape))

    @property
    def bias_mant(self) -> NDArray[np.int32]:
        """int32 [C], one for each channel of planes or each neuron of a flat layer."""
        if len(self.shape) == 1:
            return self._joined(lambda p: np.broadcast_to(p.neurons.bias_mant, p.shape))
        each = [by_channel(b.population.neurons.bias_mant, b.population.shape) for b in self.blocks]
        return np.concatenate(each).astype(np.int32)

    def _joined(self, of: Callable[[Population], Ints]) -> NDArray[np.int32]:
        flat = [of(block.population).reshape(-1) for block in self.blocks]
        return np.concatenate(flat).astype(np.int32).reshape(self.shape)

    def part(self, block: Block, values: Ints) -> Ints:
        """What belongs to a block of ``values`` [N, T, *shape]."""
        size = block.population.shape
        count = size[0] if len(self.shape) > 1 else math.prod(size)
        own = values[:, :, block.start : block.start + count]
        return own.reshape(*values.shape[:2], *size)


def layers(network: IntegerNetwork) -> list[Layer]:
    """The layers, of a network with one input in which no connection waits or delays.

    Raises Unfit where populations of a depth cannot share a layer.
    """
    depth = network.depth or {}
    (name, given), *_ = network.inputs.items()
    before: dict[str, int] = {name: 0}
    shape, found = given.shape, list[Layer]()
    for level in range(1, network.hops + 1):
        populations = [p for p in network.populations if depth[p.name] == level]
        decays = _decays(network, populations)
        blocks, made, synapses = _planes(network, populations, before, shape) or _flat(
            network, populations, before, shape
        )
        found.append(Layer(blocks, made, synapses, *decays))
        before, shape = {b.population.name: b.start for b in blocks}, made
    return found


def _decays(network: IntegerNetwork, populations: Sequence[Population]) -> tuple[int, int]:
    """The decays (du, dv) of a layer of these populations."""
    named: dict[tuple[int, int], list[str]] = {}
    for p in populations:
        pair = shared(p.neurons.du), shared(p.neurons.dv)
        assert pair[0] is not None  # netx._structure
        assert pair[1] is not None
        if not _forgets_anyhow(network, p):
            named.setdefault((pair[0], pair[1]), []).append(p.name)
    (decays, _), *others = named.items() or [((FORGETS, FORGETS), [])]
    if others:
        names = [name for group in named.values() for name in group]
        why = "lie at one depth and differ in their decays, of which netx has one a layer"
        raise Unfit(names, why, loihi_layers.PROCESS_GRAPH)
    relays = [p.name for p in populations if p.kind == "or"]
    if decays[0] != FORGETS and relays:
        names = [*named[decays], *relays]
        why = "lie at one depth, where spikes can be passed on only by neurons without a current"
        raise Unfit(names, why, loihi_layers.PROCESS_GRAPH)
    return decays


def _forgets_anyhow(network: IntegerNetwork, population: Population) -> bool:
    """Whether neurons that fire where anything arrives never have a voltage left to decay."""
    return population.kind == "or" and all(
        network.span(c.source)[0] == 0 and c.synapses.weight.min(initial=0) >= 0
        for c in network.into(population.name)
    )


Made = tuple[tuple[Block, ...], Shape, "Conv | Dense"]


def _planes(
    network: IntegerNetwork,
    populations: Sequence[Population],
    before: dict[str, int],
    shape: Shape,
) -> Made | None:
    """The layer as a convolution of a layer of ``shape``, None where it is none."""
    planes = {p.shape[1:] for p in populations}
    if len(shape) != 3 or len(planes) > 1 or any(len(p.shape) != 3 for p in populations):
        return None
    into = [c for p in populations for c in network.into(p.name)]
    kernels = [FORMS[c.synapses.kind].kernel(network, c) for c in into]
    convs = [kernel for kernel in kernels if kernel is not None]
    if len(convs) < len(into) or len({one.stride for one in convs}) != 1:
        return None
    (plane,) = planes
    starts = _starts([p.shape[0] for p in populations])
    blocks = tuple(map(Block, populations, starts))
    made = sum(p.shape[0] for p in populations), *plane
    if len(convs) == 1 and convs[0].weight.shape[0] == made[0] and len(before) == 1:
        return blocks, made, loihi_layers.merged_groups(convs[0])
    axes = [_axis(convs, axis, shape[axis + 1], plane[axis]) for axis in (0, 1)]
    if max(max(axis.size, axis.padding) for axis in axes) > loihi_layers.CONV_INT8_MAX:
        return None
    weight = np.zeros((made[0], shape[0], *(axis.size for axis in axes)), np.int64)
    place = {b.population.name: b.start for b in blocks}
    for c, one in zip(into, convs, strict=True):
        taps = [axis.taps(one, i) for i, axis in enumerate(axes)]
        full = loihi_layers.regrouped(one, 1).weight
        outputs = place[c.target] + np.arange(full.shape[0])
        inputs = before[c.source] + np.arange(full.shape[1])
        weight[np.ix_(outputs, inputs, *taps)] += full
    padding, dilation = [axis.padding for axis in axes], [axis.dilation for axis in axes]
    pairs = (padding[0], padding[1]), (dilation[0], dilation[1])
    return blocks, made, Conv(_narrow(populations, weight), convs[0].stride, *pairs, 1)


@dataclass(frozen=True)
class _Axis:
    """An axis of a kernel that others are laid into."""

    size: int
    padding: int
    dilation: int

    def taps(self, one: Conv, axis: int) -> Ints:
        """Where the taps of ``one`` lie in it."""
        places = np.arange(one.weight.shape[2 + axis]) * one.dilation[axis] - one.padding[axis]
        return (places + self.padding) // self.dilation


def _axis(convs: Sequence[Conv], axis: int, inputs: int, outputs: int) -> _Axis:
    """The least axis that all of these can be laid into, from ``inputs`` values to ``outputs``."""
    same = {(one.weight.shape[2 + axis], one.padding[axis], one.dilation[axis]) for one in convs}
    if len(same) == 1:
        return _Axis(*same.pop())
    padding = max(p for _, p, _ in same)
    reach = max((k - 1) * d - p for k, p, d in same) + padding + 1
    # As few outputs as are wanted: taps of zero at the end take away those that are too many.
    stride = convs[0].stride[axis]
    return _Axis(max(reach, inputs + 2 * padding - stride * outputs + 1), padding, 1)


def _flat(
    network: IntegerNetwork,
    populations: Sequence[Population],
    before: dict[str, int],
    shape: Shape,
) -> Made:
    """The layer as a dense one behind a layer of ``shape``, flattened."""
    starts = _starts([p.size for p in populations])
    blocks = tuple(map(Block, populations, starts))
    size = sum(p.size for p in populations), math.prod(shape)
    into = [c for p in populations for c in network.into(p.name)]
    names = [p.name for p in populations]
    if any(c.synapses.kind != "dense" for c in into) and math.prod(size) > MOST_ENTRIES:
        why = (
            f"would be a dense layer of {size[0]:,} x {size[1]:,} in netx, which has no skips; "
            f"at most {MOST_ENTRIES:,} weights are written"
        )
        raise Unfit(names, why, loihi_layers.PROCESS_GRAPH)
    if len(into) == 1 and into[0].synapses.weight.shape == size:
        return blocks, size[:1], Dense(FORMS[into[0].synapses.kind].matrix(network, into[0]))
    plane = math.prod(shape[1:]) if len(shape) == 3 else 1
    matrix = np.zeros(size, np.int64)
    for block in blocks:
        rows = slice(block.start, block.start + block.population.size)
        for c in network.into(block.population.name):
            first = before[c.source] * plane
            columns = slice(first, first + network.size(c.source))
            matrix[rows, columns] += FORMS[c.synapses.kind].matrix(network, c)
    return blocks, size[:1], Dense(_narrow(populations, matrix))


def _starts(sizes: Sequence[int]) -> list[int]:
    return [sum(sizes[:i]) for i in range(len(sizes))]


def _narrow(populations: Sequence[Population], weight: Ints) -> NDArray[np.int8]:
    """``weight`` as int8. Raises Unfit where connections from one source add up to more."""
    low, high = int(weight.min(initial=0)), int(weight.max(initial=0))
    if low < WEIGHTS[0] or high > WEIGHTS[1]:
        why = f"connections from one source add up to weights {low} to {high}; netx has 8 bits"
        raise Unfit([p.name for p in populations], why, loihi_layers.PROCESS_GRAPH)
    return weight.astype(np.int8)


@dataclass(frozen=True)
class Form:
    """How netx has one kind of synapses: as a kernel, where they are one, and as a matrix.

    ``refused`` says why it has them in no way, with the remedy.
    """

    kernel: Callable[[IntegerNetwork, Connection], Conv | None]
    matrix: Callable[[IntegerNetwork, Connection], Any]
    refused: tuple[str, str] | None = None


def _own_kernel(_network: IntegerNetwork, connection: Connection) -> Conv | None:
    given: Any = connection.synapses
    kernel: Conv = given
    return kernel


def _no_kernel(_network: IntegerNetwork, _connection: Connection) -> Conv | None:
    return None


def _tap(network: IntegerNetwork, connection: Connection) -> Conv | None:
    """A weight for each channel, of one tap, where it is the same in all of the channel."""
    shape = network.shape(connection.target)
    if shape != network.shape(connection.source) or len(shape) != 3:
        return None
    try:
        each = by_channel(connection.synapses.weight.reshape(shape), shape)
    except ValueError:
        return None
    return Conv(each.reshape(-1, 1, 1, 1), (1, 1), (0, 0), (1, 1), shape[0])


def _own_matrix(_network: IntegerNetwork, connection: Connection) -> Any:
    return connection.synapses.weight


def _diagonal(_network: IntegerNetwork, connection: Connection) -> Any:
    return np.diag(connection.synapses.weight)


def _unrolled(network: IntegerNetwork, connection: Connection) -> Any:
    kernel: Any = connection.synapses
    (c, h, w), (o, y, x) = network.shape(connection.source), network.shape(connection.target)
    row, column, weight = conv.unroll(kernel.weight, (c, h, w), (o, y, x), *kernel.geometry)
    matrix = np.zeros((o * y * x, c * h * w), kernel.weight.dtype)
    matrix[row, column] = weight
    return matrix


FORMS: dict[str, Form] = {
    "conv": Form(_own_kernel, _unrolled),
    "dense": Form(_no_kernel, _own_matrix),
    "one_to_one": Form(_tap, _diagonal),
    "sparse": Form(
        _no_kernel,
        _own_matrix,
        (
            "a folded convolution; netx knows no single connections",
            "quantize with --thresholds native",
        ),
    ),
}
