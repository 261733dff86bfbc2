"""Reading an integer network from an untrusted NIR graph, whose form ``integer_nir.py`` describes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import nir
import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

from stl_deploy.chips import facts as chips
from stl_deploy.errors import Problem
from stl_deploy.formats import integer_meta as M
from stl_deploy.formats import integer_readout as readouts
from stl_deploy.formats import integer_rules as rules
from stl_deploy.formats import integer_words as words
from stl_deploy.formats.integer_rules import integers
from stl_deploy.ir import nir_graph as G
from stl_deploy.ir import single, slices
from stl_deploy.ir.network import Connection, Input, Population
from stl_deploy.ir.neurons import Graded, Lif, Neurons, Or, by_channel, of_channels
from stl_deploy.ir.readouts import Readout
from stl_deploy.ir.slices import Weights
from stl_deploy.ir.synapses import Conv, Dense, Kernel, OneToOne, Shape, Sparse, Synapses

MOST_VALUES = 1 << 26  # of an input: nothing else in the file bounds them
BROKEN = (ValueError, TypeError, AttributeError, IndexError, OverflowError, KeyError)
Float = NDArray[np.float64]


@dataclass(frozen=True)
class Given:
    """What is read with a connection: its entry, its node and what stands behind, shapes, and units.

    ``exp`` is what the target counts in; ``scale`` the float value of its units, by neuron.
    """

    entry: M.ConnectionMeta
    node: Any
    behind: Any
    before: Shape
    target: Shape
    exp: int

    def weights(self, values: NDArray[Any]) -> Weights:
        """The weights that ``values`` of the node are. Raises ValueError where they are not integers."""
        entry, shift = self.entry, self.entry.exp - self.exp
        low, high = (0, 1) if entry.bits == 1 else slices.span(entry.precision, entry.bits)
        whole = integers(values, f"{entry.node}.weight", low << shift, high << shift)
        if (whole % (1 << shift)).any():
            raise ValueError(f"{entry.node}.weight is not in steps of 2^{shift}, its exp")
        return (whole >> shift).astype(slices.kind(entry.precision))


def _conv(given: Given) -> Synapses:
    node = given.node
    if node.metadata.keys() & {"row", "column"}:
        return _sparse(given)
    return Conv(given.weights(node.weight), *G.conv_geometry(node), int(node.groups))


def _windows(given: Given) -> Synapses:
    node, entry = given.node, given.entry
    kernel = G.pair(node.kernel_size)
    if G.pair(node.stride) != kernel or G.pair(node.padding) != (0, 0):
        raise ValueError(f"the windows {kernel} of {entry.node} do not tile the plane")
    if entry.exp:
        raise ValueError(f"{entry.node}: windows have exp 0, not {entry.exp}")
    channels = given.before[0]
    ones = np.ones((channels, 1, *kernel), slices.kind(entry.precision))
    return Conv(ones, kernel, (0, 0), (1, 1), channels)


def _dense(given: Given) -> Synapses:
    return Dense(given.weights(given.node.weight))


def _one_to_one(given: Given) -> Synapses:
    return OneToOne(given.weights(given.node.scale).reshape(-1))


# By the node of the weights.
SYNAPSES: dict[type, Callable[[Given], Synapses]] = {
    nir.Conv2d: _conv,
    nir.SumPool2d: _windows,
    nir.Linear: _dense,
    nir.Affine: _dense,
    nir.Scale: _one_to_one,
}


def _sparse(given: Given) -> Sparse:
    """A folded convolution."""
    node, entry = given.node, given.entry
    if not isinstance(given.behind, nir.Scale):
        raise ValueError("a folded convolution is Conv2d -> Scale")
    bias = np.asarray(node.metadata.get("bias"), np.float64)
    if bias.shape != node.weight.shape[:1]:
        raise ValueError(f"{entry.node}: {bias.size} biases in its metadata")
    weight = np.asarray(node.weight, np.float64)
    if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
        raise ValueError(f"{entry.node} contains NaN or infinite values")
    kernel = Kernel(weight, bias, *G.conv_geometry(node), int(node.groups))
    every = np.ones(kernel.weight.shape, np.bool_)
    if single.connections(every, given.before, kernel.geometry) > single.MOST:
        raise ValueError(f"more than {single.MOST:,} single connections")
    size = math.prod(given.target), math.prod(given.before)
    row, column, values = _triplets(given, size)
    return Sparse(row, column, values, size, kernel)


def _triplets(given: Given, size: tuple[int, int]) -> Any:
    """The arrays in the metadata of a folded convolution's node, within their ranges."""
    entry = given.entry
    qmax = slices.largest(entry.precision, entry.bits)
    ranges: dict[str, tuple[npt.DTypeLike, int, int]] = {
        "row": (np.int32, 0, size[0] - 1),
        "column": (np.int32, 0, size[1] - 1),
        "weight": (slices.kind(entry.precision), -qmax, qmax),
    }
    found: list[Any] = []
    for key, (dtype, low, high) in ranges.items():
        array = given.node.metadata.get(key)
        if not isinstance(array, np.ndarray) or array.ndim != 1:
            raise ValueError(f"{entry.node} has no array {key} of single connections")
        found.append(integers(array, f"{entry.node}.{key}", low, high).astype(dtype))
    row, column, weight = found
    if not len(row) == len(column) == len(weight):
        raise ValueError(f"{entry.node}: row, column and weight differ in length")
    place = row.astype(np.int64) * size[1] + column
    if (np.diff(place) <= 0).any() or (weight == 0).any():
        raise ValueError(f"{entry.node}: connections out of order, twice, or zero")
    return row, column, weight


def _lif(reader: Reader, entry: M.PopulationMeta, node: Any) -> Neurons:
    exp, shape, chip = reader.exp[entry.name], reader.shapes[entry.name], reader.chip
    du, dv = words.decays(node, exp)
    fires, constant = words.fires(node), entry.reset == "constant"
    v_reset = words.resets_to(node, fires and constant)
    if entry.reset != "zero" and not chip.neurons.subtract_reset.value:
        raise ValueError(f"reset {entry.reset!r}: a neuron of {chip.name} resets to zero")
    said = rules.native(fires, entry.reset)
    fields = rules.read(node, shape, chip, said, reader.meta.timesteps)
    span = rules.ranges(chip)
    if fires:
        fields["vth"] = integers(node.v_threshold, "v_threshold", *span["vth"])
    if "v_reset" in said:
        fields["v_reset"] = rules.each(integers(v_reset, "v_reset", *span["v_reset"]), shape)
    mant = _mantissas(reader, entry, node, dv)
    bias = integers(mant, "bias", *chip.bias_mant_range).astype(np.int32)
    scale = np.array(entry.scale, np.float64)
    if len(scale) not in (shape[0], math.prod(shape)):
        raise ValueError(f"{scale.size} scales for {shape[0]} channels of {shape}")
    vth = np.broadcast_to(fields.pop("vth", 0), shape).astype(np.int32)
    return Lif(
        vth=vth,
        bias_mant=_by_channel(bias),
        scale=of_channels(scale, shape),
        bias_exp=entry.bias_exp,
        du=rules.each(du, shape),
        dv=rules.each(dv, shape),
        reset=entry.reset,
        fires=fires,
        reset_current=entry.reset_current,
        hold=entry.hold,
        graded=None if entry.graded is None else Graded(**vars(entry.graded)),
        **fields,
    )


def _mantissas(
    reader: Reader, entry: M.PopulationMeta, node: Any, dv: NDArray[np.int64]
) -> NDArray[np.float64]:
    """The bias of the neurons, by neuron: from the weights that have one, else from v_leak."""
    shape = node.r.shape
    found = {name: bias for name, bias in reader.biases[entry.name].items() if bias.any()}
    leak = np.asarray(getattr(node, "v_leak", np.zeros(1)), np.float64)
    if not found:
        none = isinstance(node, nir.IF | nir.I)
        return np.zeros(shape) if none else words.leaked(node, dv, entry.bias_exp)
    if len(found) > 1 or leak.any() or words.has_current(node):
        raise ValueError(
            f"has a bias in {', '.join(found)}; it stands in one node of weights, or as v_leak, "
            "and of a CubaLIF or CubaLI as v_leak alone"
        )
    (bias,) = found.values()
    mant = words.from_weights(bias, reader.exp[entry.name], entry.bias_exp)
    full = mant.reshape(-1, *[1] * (len(shape) - 1)) if len(mant) == shape[0] else mant
    return np.broadcast_to(full, shape) if full.ndim == len(shape) else full.reshape(shape)


def _or(reader: Reader, entry: M.PopulationMeta, node: Any) -> Neurons:
    if np.any(node.threshold != 0):
        raise ValueError("the threshold of an OR population is 0")
    if entry != M.PopulationMeta(name=entry.name, kind="or") or node.metadata:
        raise ValueError("an OR population has no scale or bias, and resets to zero")
    if any(bias.any() for bias in reader.biases[entry.name].values()):
        raise ValueError("an OR population has no bias")
    return Or()


Decode = Callable[["Reader", M.PopulationMeta, Any], Neurons]
# By kind, the nodes that neurons may be, a parameter that has their shape, and what reads them.
NEURONS: dict[str, tuple[tuple[type, ...], str, Decode]] = {
    "lif": ((nir.LIF, nir.IF, nir.CubaLIF, nir.LI, nir.I, nir.CubaLI), "r", _lif),
    "or": ((nir.Threshold,), "threshold", _or),
}


def _by_channel(values: NDArray[np.int32]) -> NDArray[np.int32]:
    try:
        return of_channels(by_channel(values, values.shape), values.shape)
    except ValueError:
        return values


class Reader:
    """A graph and its JSON on the way to a network; ``problems`` collects all that is off."""

    def __init__(self, graph: nir.NIRGraph, meta: M.IntegerMeta, chip: chips.Chip) -> None:
        self.graph, self.meta, self.chip = graph, meta, chip
        self.problems: list[Problem] = []
        self.inputs: dict[str, Input] = {}
        self.populations: list[Population] = []
        self.readout: Readout | None = None
        self.shapes: dict[str, Shape] = {}
        self.exp: dict[str, int] = {}
        self.biases: dict[str, dict[str, Float]] = {p.name: {} for p in meta.populations}
        self.synapses: dict[str, Synapses] = {}  # by node
        self.edges: set[tuple[str, str]] = set()  # that the JSON accounts for
        self.before: dict[str, list[str]] = {name: [] for name in graph.nodes}
        self.after: dict[str, list[str]] = {name: [] for name in graph.nodes}

    @contextmanager
    def _noted(self, where: str) -> Iterator[None]:
        """Note as a problem of ``where`` what shapes, types and numbers from a file can raise."""
        try:
            yield
        except BROKEN as error:
            self.problems.append(Problem(where, str(error) or type(error).__name__))

    def read(self) -> list[Connection]:
        """The connections; inputs and populations are in the attributes. None of it counts with problems."""
        for step in (
            self._edges,
            self._inputs,
            self._shapes,
            self._ways,
            self._neurons,
            self._rest,
        ):
            step()
            if self.problems and step != self._ways:
                return []
        return [
            Connection(
                entry.name,
                entry.source,
                entry.target,
                self.synapses[entry.node],
                entry.exp,
                entry.bits,
                entry.precision,
                entry.delay,
                entry.port,
            )
            for entry in self.meta.connections
        ]

    def _edges(self) -> None:
        seen: set[tuple[str, str]] = set()
        for edge in self.graph.edges:
            source, target = edge
            for name in {source, target} - set(self.graph.nodes):
                self.problems.append(Problem(name, "an edge names this node, but there is none"))
            if edge in seen:
                self.problems.append(Problem(f"{source} -> {target}", "stands twice"))
            seen.add((source, target))
            self.before.setdefault(target, []).append(source)
            self.after.setdefault(source, []).append(target)

    def _inputs(self) -> None:
        for entry in self.meta.inputs:
            with self._noted(entry.name):
                node = self._node(entry.name, nir.Input)
                shape = G.shape_of(node.input_type["input"])
                if not shape or min(shape) < 1 or math.prod(shape) > MOST_VALUES:
                    raise ValueError(f"an input of shape {shape}; at most {MOST_VALUES:,} values")
                self._named(entry.name, shape)
                self.inputs[entry.name] = Input(shape, entry.levels, entry.signed, entry.held)

    def _shapes(self) -> None:
        for entry in self.meta.populations:
            with self._noted(entry.name):
                kinds, parameter, _ = NEURONS[entry.kind]
                node = self._node(entry.name, *kinds)
                shape = np.shape(getattr(node, parameter))
                if not shape or 0 in shape:
                    raise ValueError(f"neurons of shape {shape}")
                self._named(entry.name, shape)

    def _named(self, name: str, shape: Shape) -> None:
        if name in self.shapes:
            raise ValueError("stands twice in the metadata")
        self.shapes[name] = shape

    def _node(self, name: str, *kinds: type) -> Any:
        """The node of this name. Raises ValueError unless it is of one of ``kinds``."""
        node = self.graph.nodes.get(name)
        if not isinstance(node, kinds):
            found = "there is no such node" if node is None else f"is a {type(node).__name__}"
            raise ValueError(f"{found}; it should be {' or '.join(k.__name__ for k in kinds)}")
        return node

    def _ways(self) -> None:
        """The synapses of every node of weights."""
        by_node: dict[str, list[M.ConnectionMeta]] = {}
        least: dict[str, int] = {}
        for entry in self.meta.connections:
            by_node.setdefault(entry.node, []).append(entry)
            least[entry.target] = min(entry.exp, least.get(entry.target, entry.exp))
        lif = {entry.name for entry in self.meta.populations if entry.kind != "or"}
        self.exp = {p.name: least.get(p.name, 0) * (p.name in lif) for p in self.meta.populations}
        for name, entries in by_node.items():
            with self._noted(name):
                self._way(name, entries)

    def _way(self, name: str, entries: list[M.ConnectionMeta]) -> None:
        """The synapses of node ``name``. Raises ValueError where graph and ``entries`` contradict."""
        first = entries[0]
        sources = {"source": first.source, "delay": first.delay}
        if any(e.model_copy(update=sources) != first for e in entries):
            raise ValueError("connections of one node differ in more than source and delay")
        if first.target not in self.exp:
            raise ValueError(f"leads to {first.target}, which is not a population of the metadata")
        wrong = slices.contradictions(first.precision, first.bits, first.exp)
        if wrong:
            raise ValueError(f"precision {'; '.join(wrong)}")
        node = self._node(name, *SYNAPSES)
        before, flat = self._sources(name, entries)
        inside = (math.prod(before),) if flat else before
        behind, given = self._target(name, first.target), G.node_output(name, node, inside)
        target = self.shapes[first.target]
        if behind is not None:
            given = G.node_output(name, behind, given)
        # What weights from everything to everything give is taken in C order.
        free = isinstance(node, nir.Linear | nir.Affine | nir.Scale) and behind is None
        if math.prod(given) != math.prod(target) or not (free or given == target):
            raise ValueError(f"gives {given}, and {first.target} has shape {target}")
        read = Given(first, node, behind, before, target, self.exp[first.target])
        synapses = SYNAPSES[type(node)](read)
        if (behind is None) != (synapses.kind != "sparse"):
            raise ValueError("a Scale stands behind a folded convolution, and nowhere else")
        self.synapses[name] = synapses
        bias = np.asarray(getattr(node, "bias", np.zeros(1)), np.float64)
        if not np.isfinite(bias).all() or (bias.any() and bias.shape != (given[0],)):
            raise ValueError("its bias is not one number for each output")
        self.biases[first.target][name] = bias

    def _sources(self, name: str, entries: list[M.ConnectionMeta]) -> tuple[Shape, bool]:
        """The shape of what is sent to node ``name``, and whether it is flattened on its way."""
        sent, flat = self.before[name], False
        if len(sent) == 1 and isinstance(self.graph.nodes[sent[0]], nir.Flatten):
            flat = True
            self._flattens(sent[0], name)
            self.edges.add((sent[0], name))
            name, sent = sent[0], self.before[sent[0]]
        target = entries[0].target
        found = sorted(self._delayed(source, target) for source in sent)
        self.edges |= {(source, name) for source in sent}
        expected = sorted((entry.source, entry.delay) for entry in entries)
        if found != expected:
            said = ", ".join(f"{source} ({delay})" for source, delay in expected)
            are = ", ".join(f"{source} ({delay})" for source, delay in found) or "none"
            raise ValueError(f"its sources (delays) are {are}, in the metadata {said}")
        shapes = {self.shapes[source] for source, _ in found}
        if len(shapes) != 1:
            raise ValueError("its sources differ in shape")
        return shapes.pop(), flat

    def _flattens(self, flat: str, name: str) -> None:
        node: Any = self.graph.nodes[flat]
        rank = len(self.shapes.get(self._root(self.before[flat][0]), ()))
        ends = {int(node.start_dim) % max(rank, 1), int(node.end_dim) % max(rank, 1)}
        if self.after[flat] != [name] or ends != {0, max(rank - 1, 0)}:
            raise ValueError(f"{flat} does not flatten everything for {name} alone")

    def _root(self, name: str) -> str:
        """What a Delay delays; ``name`` where it is none."""
        delays = isinstance(self.graph.nodes[name], nir.Delay) and self.before[name]
        return self.before[name][0] if delays else name

    def _delayed(self, name: str, target: str) -> tuple[str, int]:
        """The source, and how late it arrives, of what comes from node ``name``."""
        node: Any = self.graph.nodes[name]
        if not isinstance(node, nir.Delay):
            if name not in self.shapes:
                raise ValueError(f"{name} sends to it, which is not an input or a population")
            return name, int(name == target)
        if len(self.before[name]) != 1 or self.before[name][0] not in self.shapes:
            raise ValueError(f"{name} delays something other than an input or a population")
        (source,) = self.before[name]
        seconds = np.asarray(node.delay, np.float64)
        steps = int(np.rint(seconds.flat[0] / G.DT))
        if steps < 1 or (seconds != steps * G.DT).any() or seconds.shape != self.shapes[source]:
            raise ValueError(f"{name} is not a delay of whole steps, the same for all of {source}")
        self.edges.add((source, name))
        return source, steps

    def _target(self, name: str, target: str) -> Any:
        """The Scale behind a folded convolution, None behind other weights."""
        behind, at = None, name
        if len(self.after[name]) == 1 and self.after[name][0] not in self.shapes:
            (at,) = self.after[name]
            behind = self._node(at, nir.Scale)
            if self.before[at] != [name]:
                raise ValueError(f"{at} is not behind {name} alone")
            self.edges.add((name, at))
        if self.after[at] != [target]:
            raise ValueError(f"leads to {', '.join(self.after[at]) or 'nothing'}, not to {target}")
        self.edges.add((at, target))
        return behind

    def _neurons(self) -> None:
        for entry in self.meta.populations:
            with self._noted(entry.name):
                _, _, decode = NEURONS[entry.kind]
                neurons = decode(self, entry, self.graph.nodes[entry.name])
                self.populations.append(Population(entry.name, self.shapes[entry.name], neurons))
        for way in self.meta.connections:
            synapses: Any = self.synapses.get(way.node)
            if synapses is not None and synapses.kind == "sparse":
                with self._noted(way.node):
                    self._folded(way, synapses)

    def _folded(self, entry: M.ConnectionMeta, synapses: Sparse) -> None:
        """Raise ValueError unless single connections are their convolution in the neurons' units."""
        (population,) = (p for p in self.populations if p.name == entry.target)
        scale = np.broadcast_to(population.neurons.scale, population.shape)
        (behind,) = self.after[entry.node]
        factor = cast(nir.Scale, self.graph.nodes[behind]).scale
        exact = factor * scale * 2.0 ** self.exp[entry.target]
        if not np.allclose(exact, 1, rtol=1e-9, atol=0):
            raise ValueError(f"{behind} contradicts the scales in the metadata")
        single.check(
            synapses,
            self.shapes[entry.source],
            population.shape,
            scale.reshape(-1) * 2.0**entry.exp,
            slices.largest(entry.precision, entry.bits),
        )

    def _readout(self) -> Readout:
        """The readout. Raises ValueError where the output and what leads to it say something else."""
        meta = self.meta.readout
        outputs = {n: node for n, node in self.graph.nodes.items() if isinstance(node, nir.Output)}
        found = [p for p in self.populations if p.name == meta.source]
        if len(outputs) != 1 or not found:
            what = f"{len(outputs)} outputs, and {len(found)} populations {meta.source!r}"
            raise ValueError(f"{what}; there should be one of each")
        ((end, output),) = outputs.items()
        (population,) = found
        at, shape, matrix = end, population.shape, None
        if meta.node is not None:
            matrix = self._node(meta.node, nir.Linear, nir.Affine)
            at, shape = self._matrix(meta.node, end, shape)
        if self.before[at] != [meta.source]:
            raise ValueError(f"the graph does not end in {meta.source} alone")
        self.edges.add((meta.source, at))
        G.node_output(end, output, shape)
        return readouts.read(meta, matrix, output, population, self.chip, self.meta.timesteps)

    def _matrix(self, name: str, end: str, shape: Shape) -> tuple[str, Shape]:
        """The node that the neurons lead to on their way to the matrix, and the shape behind it."""
        if self.before[end] != [name] or self.after[name] != [end]:
            raise ValueError(f"{name} does not lead to {end} alone")
        self.edges.add((name, end))
        sent = self.before[name]
        if len(sent) != 1 or not isinstance(self.graph.nodes[sent[0]], nir.Flatten):
            return name, G.node_output(name, self.graph.nodes[name], shape)
        self._flattens(sent[0], name)
        self.edges.add((sent[0], name))
        return sent[0], G.node_output(name, self.graph.nodes[name], (math.prod(shape),))

    def _rest(self) -> None:
        """Output and readout, and whatever the metadata do not account for."""
        with self._noted("readout"):
            self.readout = self._readout()
        known = {name for edge in self.edges for name in edge} | set(self.shapes)
        for name in self.graph.nodes.keys() - known:
            self.problems.append(Problem(name, "is not described in the metadata"))
        for source, target in set(self.graph.edges) - self.edges:
            if {source, target} <= known:
                what = "this edge is not described in the metadata"
                self.problems.append(Problem(f"{source} -> {target}", what))
        named = {*self.biases, *(entry.name for entry in self.meta.connections)}
        for key in (self.meta.precision | self.meta.rounding).keys() - named:
            what = "has notes in the metadata, but is not a population or connection"
            self.problems.append(Problem(key, what))
