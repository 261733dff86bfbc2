"""Importer of NIR graphs by other tools: spiking networks of any form to a lowered float graph.

Between two populations of neurons everything is linear and is multiplied out (``linear.py``), several
paths are added up, nested graphs are laid flat; what leads from neurons back to them is a matrix of its
own. What is left must be a chain of populations, the first behind the input, the last before the output.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import nir
import numpy as np

from stl_deploy.errors import InputError, LoweringError, Problem
from stl_deploy.formats import nir_io
from stl_deploy.formats import portable_nir as nir_portable
from stl_deploy.importers.nir import linear as L
from stl_deploy.importers.nir import neurons as N
from stl_deploy.importers.nir.nodes import (
    GRADED,
    LINEAR,
    SPIKING,
    Array,
    as_image,
    faults,
    flat,
    holds,
    linear_map,
    misfits,
    shape_behind,
)
from stl_deploy.ir import nir_graph as G
from stl_deploy.ir.notes import Diagnostic
from stl_deploy.ir.synapses import Pair, Shape

DEFAULT_STEPS = 4
NAMED = 8  # populations that a note names


@dataclass(frozen=True)
class Options:
    """What NIR does not say.

    dt: seconds of a time step, for neurons with time constants; timesteps: T; classes: the last
    population is read as that many groups of neurons, each voting for a class (default: as many as
    neurons); levels: inputs are whole numbers 0..levels, 1 for spikes.
    """

    dt: float = G.DT
    timesteps: int | None = None
    classes: int | None = None
    levels: int = 1


def read(
    path: Path, options: Options | None = None, graph: nir.NIRGraph | None = None
) -> nir.NIRGraph:
    """The lowered float graph of a NIR file, which may have been read as ``graph`` already.

    Raises InputError for a broken file and LoweringError for a network that no chain can hold, each
    naming everything that it met.
    """
    try:
        return to_float(nir_io.read(path) if graph is None else graph, options)
    except (InputError, LoweringError) as error:
        raise type(error)(
            [
                p
                if p.where.startswith((str(path), "--"))
                else replace(p, where=f"{path}: {p.where}")
                for p in error.problems
            ]
        ) from None


def to_float(graph: nir.NIRGraph, options: Options | None = None) -> nir.NIRGraph:
    """See ``read``; ``graph`` may also hold the nodes of ``graph.py`` that NIR does not know."""
    options = options or Options()
    check(options)
    flow = Flow.of(graph, options)
    return flow.chain()


def notes(graph: nir.NIRGraph, dt: float = G.DT) -> tuple[Diagnostic, ...]:
    """What was assumed in reading ``graph``, which ``to_float`` can lower: a reset that is not stated.

    Neurons that forget v in every step (tau = ``dt``) need none, and files of stl-deploy state theirs.
    """
    if {G.KEY, nir_portable.KEY} & graph.metadata.keys():
        return ()
    nodes, _, _ = flat(graph)
    names = [
        name
        for name, node in nodes.items()
        if isinstance(node, nir.LIF | nir.IF | nir.CubaLIF)
        and "reset" not in node.metadata
        and not (isinstance(node, nir.LIF) and np.all(node.tau == dt))
    ]
    if not names:
        return ()
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return (
        Diagnostic(
            f"population{'s' if len(names) > 1 else ''} {', '.join(names[:NAMED])}{more}",
            "the reset is not stated and is read as in NIR's equations: to v_reset (0) in the step of "
            "the spike. Files of snnTorch and sinabs do not state that their neurons subtract the "
            "threshold by default",
            "import a network of snnTorch by --model-class; otherwise set "
            """metadata["reset"] of these nodes to "zero" or "subtract" (docs/import-nir.md)""",
        ),
    )


def examine(graph: nir.NIRGraph) -> None:
    """Raise InputError, naming all that it meets, for a graph that means nothing to any reader.

    That is less than ``to_float`` asks for: nodes and connections of any kind may be there.
    """
    Flow.of(graph, Options()).examine()


def check(options: Options) -> None:
    """Raise InputError for options out of range."""
    problems = []
    if not (math.isfinite(options.dt) and options.dt > 0):
        problems.append(Problem("--dt", f"{options.dt} is not a time in seconds above zero"))
    for name, value, high in (
        ("--timesteps", options.timesteps, 4096),
        ("--classes", options.classes, L.MAX_NEURONS),
        ("--levels", options.levels, 255),
    ):
        if value is not None and not 1 <= value <= high:
            problems.append(Problem(name, f"{value} is not in 1..{high}"))
    if problems:
        raise InputError(problems)


@dataclass(frozen=True, eq=False)
class Term:
    """What one source contributes: ``way`` of its values, then times ``post`` where that is not None.

    ``weights`` is the name of the last node with weights on the way.
    """

    way: L.Map
    weights: str = ""
    post: Array | None = None


@dataclass(frozen=True, eq=False)
class Sum:
    """What arrives somewhere: the terms of its sources, and a constant, together of ``shape``."""

    shape: Shape
    terms: dict[str, Term]
    constant: Array | None = None


@dataclass(frozen=True, eq=False)
class Population:
    """Neurons and all that they hear; ``window`` is that of an OR pool."""

    name: str
    node: nir.ir.NIRNode
    shape: Shape
    source: str
    way: L.Map
    weights: str
    constant: Array | None
    recurrent: Array | None = None
    recurrent_name: str = ""
    window: Pair | None = None
    made: N.Neurons | None = None

    def flat(self) -> Population:
        """The same with single weights in the place of a convolution, and neurons in a row.

        What an OR pool becomes fires, and forgets, whenever anything arrives.
        """
        if not isinstance(self.way, L.Conv):
            return self
        size = math.prod(self.shape)
        way, bias = L.dense(self.way, self.way.in_shape), self.constant
        if self.made is None:
            node: nir.ir.NIRNode = G.lif(np.full(size, 0.5), tau=2 * G.DT, r=2)
        else:
            node = N.reshaped(self.made, (size,)).node()
        if bias is not None:
            bias = np.repeat(bias, size // len(bias))
        return replace(self, node=node, shape=(size,), way=way, constant=bias, window=None)


@dataclass
class Flow:
    """A graph laid flat, with the shape of what leaves each node."""

    nodes: dict[str, nir.ir.NIRNode]
    edges: list[tuple[str, str]]
    options: Options
    shapes: dict[str, Shape] = field(default_factory=dict)
    broken: list[Problem] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    @classmethod
    def of(cls, graph: nir.NIRGraph, options: Options) -> Flow:
        """The flat graph, its nodes looked at. Raises InputError naming what is broken."""
        nodes, edges, problems = flat(graph)
        flow = cls(nodes, edges, options, broken=problems)
        for name, node in nodes.items():
            flow.broken += [Problem(f"{name}{key}", what) for key, what in faults(node)]
        flow._done()
        ends = {
            kind: [n for n, x in nodes.items() if isinstance(x, kind)]
            for kind in (nir.Input, nir.Output)
        }
        for kind, found in ends.items():
            if len(found) != 1:
                flow.broken.append(
                    Problem("graph", f"has {len(found)} {kind.__name__} nodes; one is needed")
                )
        flow._done()
        return flow

    def _done(self) -> None:
        """Raise what has been collected."""
        if self.broken:
            raise InputError(self.broken)
        if self.problems:
            raise LoweringError(self.problems)

    def examine(self) -> None:
        """See the function of this name."""
        self._spread_shapes()
        self._check_output()
        self._check_ways()
        self._check_cycles()
        self._done()
        arriving: dict[str, Shape] = {}
        for source, target in self.edges:
            shape = self.shapes[source]
            if arriving.setdefault(target, shape) != shape:
                what = f"gets inputs of shapes {arriving[target]} and {shape}"
                self.broken.append(Problem(target, what))
        for name, shape in arriving.items():
            found = misfits(self.nodes[name], shape, self.options.dt)
            self.broken += [Problem(name, what) for what in found]
        self._done()

    def chain(self) -> nir.NIRGraph:
        """The lowered float graph. Raises InputError or LoweringError with everything that is wrong."""
        for name, node in self.nodes.items():
            if isinstance(node, GRADED):
                self.problems.append(
                    Problem(
                        name,
                        f"a {type(node).__name__} does not spike; its output is graded, and a chip's "
                        "readout counts spikes",
                        "leave it out, or put a LIF in its place",
                    )
                )
            elif not isinstance(node, (*SPIKING, *LINEAR, nir.Input)):
                self.problems.append(Problem(name, f"a {type(node).__name__} is not supported"))
        self._done()
        self._spread_shapes()
        self._check_output()
        self._check_cycles()
        self._done()
        # What multiplying out carries past a float64 is named behind it.
        with np.errstate(over="ignore", invalid="ignore"):
            return self._lowered()

    def _lowered(self) -> nir.NIRGraph:
        """The chain of what arrives at the neurons."""
        sums = self._sums()
        found = [
            population
            for name, node in self.nodes.items()
            if isinstance(node, SPIKING) and (population := self._population(name, node, sums))
        ]
        for population in found:
            numbers = (
                *(population.constant, population.recurrent),
                *(v for v in vars(population.way).values() if isinstance(v, np.ndarray)),
                *(v for v in vars(population.node).values() if isinstance(v, np.ndarray)),
            )
            if not all(v is None or np.isfinite(v).all() for v in numbers):
                self.broken.append(
                    Problem(
                        population.name,
                        "its weights and scales, multiplied out, are no finite numbers in float64",
                        "bring weights and thresholds to a range around 1",
                    )
                )
        self._done()
        return self._emit(self._ordered(found, sums))

    # Shapes

    def _spread_shapes(self) -> None:
        """Shapes from the input on, along any edge; nodes that none reaches are named."""
        following = self._following()
        (start,) = (n for n, node in self.nodes.items() if isinstance(node, nir.Input))
        self.shapes[start] = as_image(G.shape_of(self.nodes[start].input_type["input"]))
        pending = deque([start])
        while pending:
            name = pending.popleft()
            for target in following[name]:
                if target in self.shapes:
                    continue
                try:
                    self.shapes[target] = shape_behind(self.nodes[target], self.shapes[name])
                    pending.append(target)
                except (ValueError, OverflowError) as error:
                    self.broken.append(Problem(target, str(error)))
                    self.shapes[target] = ()
        if not self.broken:  # else what lies behind was not looked at
            self.broken += [
                Problem(name, "is not reached from the input")
                for name in self.nodes
                if name not in self.shapes
            ]

    def _check_output(self) -> None:
        """The output's own shape, where it says one, has as many values as what arrives."""
        (end,) = (n for n, node in self.nodes.items() if isinstance(node, nir.Output))
        declared = as_image(G.shape_of(self.nodes[end].output_type["output"]))
        arrives = self.shapes.get(end)
        if arrives and math.prod(declared) != math.prod(arrives):
            self.broken.append(Problem(end, f"is declared as {declared} and gets {arrives}"))

    def _check_ways(self) -> None:
        """Every node is on a way to the output, and no edge stands twice."""
        preceding: dict[str, list[str]] = {name: [] for name in self.nodes}
        for source, target in self.edges:
            preceding[target].append(source)
        pending = [n for n, node in self.nodes.items() if isinstance(node, nir.Output)]
        leading = set(pending)
        while pending:
            new = set(preceding[pending.pop()]) - leading
            leading |= new
            pending += new
        self.broken += [
            Problem(name, "leads to no output")
            for name in self.nodes
            if name in self.shapes and name not in leading
        ]
        # NIR's own reader refuses these, unless told not to check types.
        self.broken += [
            Problem(f"{source} -> {target}", "an edge that stands twice", "write it once")
            for (source, target), times in Counter(self.edges).items()
            if times > 1
        ]

    def _check_cycles(self) -> None:
        """On every cycle something holds a value from one step to the next."""
        at_once = [name for name, node in self.nodes.items() if not holds(node, self.options.dt)]
        self.broken += [
            Problem(name, "lies on a cycle without neurons")
            for name in G.on_cycles(at_once, self.edges)
        ]

    def _following(self) -> dict[str, list[str]]:
        following: dict[str, list[str]] = {name: [] for name in self.nodes}
        for source, target in self.edges:
            following[source].append(target)
        return following

    # What arrives where

    def _sums(self) -> dict[str, Sum]:
        """What arrives at every node, in the order of the edges, with neurons as sources."""
        following = self._following()
        waiting = dict.fromkeys(self.nodes, 0)
        for _, target in self.edges:
            waiting[target] += 1
        arriving: dict[str, list[Sum | None]] = {name: [] for name in self.nodes}
        sums: dict[str, Sum] = {}
        ready: deque[tuple[str, Sum | None]] = deque(
            (name, Sum(self.shapes[name], {name: Term(L.IDENTITY)}))
            for name, node in self.nodes.items()
            if isinstance(node, (nir.Input, *SPIKING))
        )
        while ready:
            name, out = ready.popleft()
            for target in following[name]:
                arriving[target].append(out)
                waiting[target] -= 1
                if waiting[target]:
                    continue
                parts = [part for part in arriving[target] if part is not None]
                whole = len(parts) == len(arriving.pop(target))
                total = self._join(target, parts) if whole else None
                if total is not None:
                    sums[target] = total
                if not isinstance(self.nodes[target], SPIKING):
                    behind = None if total is None else self._behind(target, total)
                    ready.append((target, behind))
        self._done()
        return sums

    def _join(self, name: str, parts: list[Sum]) -> Sum:
        """Several in-edges add up."""
        total = Sum(parts[0].shape, {})
        for part in parts:
            if part.shape != total.shape:
                self.broken.append(
                    Problem(name, f"gets inputs of shapes {total.shape} and {part.shape}")
                )
                return total
            terms = dict(total.terms)
            for source, term in part.terms.items():
                if source not in terms:
                    terms[source] = term
                    continue
                try:
                    if term.post is not None or terms[source].post is not None:
                        raise L.CannotFold("scaled neuron by neuron")
                    way = L.add(terms[source].way, term.way)
                    terms[source] = Term(way, terms[source].weights or term.weights)
                except L.CannotFold as error:
                    self.problems.append(
                        Problem(
                            name, f"hears {source} on two ways that are no single layer: {error}"
                        )
                    )
            constant = part.constant
            if total.constant is not None and constant is not None:
                constant = total.constant + constant
            elif constant is None:
                constant = total.constant
            total = Sum(part.shape, terms, constant)
        return total

    def _behind(self, name: str, total: Sum) -> Sum | None:
        """What leaves a linear node; None where it cannot be said, and the problem is noted."""
        node = self.nodes[name]
        try:
            way, constant, weighted = linear_map(node, total.shape, self.options.dt)
            shape = shape_behind(node, total.shape)
            terms = {}
            for source, term in total.terms.items():
                named = name if weighted or not term.weights else term.weights
                terms[source] = _extended(term, way, named)
            arrived = None if total.constant is None else L.apply(way, total.constant)
        except L.CannotFold as error:
            self.problems.append(
                Problem(
                    name,
                    f"cannot be one layer of weights with what is before it: {error}",
                    "place neurons in between, or fold it before the export",
                )
            )
            return None
        except (ValueError, OverflowError) as error:
            self.broken.append(Problem(name, str(error)))
            return None
        if arrived is not None:
            arrived = arrived.reshape(shape)
        if constant is not None:
            constant = constant.reshape(shape)
            arrived = constant if arrived is None else arrived + constant
        return Sum(shape, terms, arrived)

    # Populations

    def _population(self, name: str, node: Any, sums: dict[str, Sum]) -> Population | None:
        """The neurons of a node with what they hear, or None where a problem is noted."""
        if name not in sums:
            return None  # what it hears could not be said, which is noted
        total = sums[name]
        feeding = [source for source in total.terms if source != name]
        if len(feeding) != 1:
            self.problems.append(
                Problem(
                    name,
                    f"hears {', '.join(sorted(feeding)) or 'nothing but itself'}; a layer hears the one "
                    "before it, and itself",
                    "networks are chains of layers: remove connections that skip one or lead back",
                )
            )
            return None
        (source,) = feeding
        term, own = total.terms[source], total.terms.get(name)
        try:
            if isinstance(node, G.MaxPool2d):
                return self._max_pool(name, node, source, term, total)
            made, why = N.read(node, total.shape, self.options.dt)
            self.problems += [Problem(name, text) for text in why]
            if own is None and (window := self._or_window(made, source, term, total)):
                assert isinstance(term.way, L.Conv)
                return _or_pool(name, source, term.weights, window, term.way.in_shape)
            return (
                None if why else _wired(name, made, source, term, own, total, self.shapes[source])
            )
        except L.CannotFold as error:
            self.problems.append(Problem(name, str(error)))
        except ValueError as error:
            self.broken.append(Problem(name, str(error)))
        return None

    def _max_pool(
        self, name: str, node: G.MaxPool2d, source: str, term: Term, total: Sum
    ) -> Population:
        plain = isinstance(term.way, L.Diagonal) and term.way.trivial and len(total.terms) == 1
        if not plain or total.constant is not None or not self._binary(source):
            raise L.CannotFold(
                "max pooling of values that are not spikes; only spikes can be pooled: place it behind "
                "the neurons, or use average pooling"
            )
        return _or_pool(name, source, f"{name}_sum", node.kernel, node.in_shape)

    def _binary(self, source: str) -> bool:
        return not isinstance(self.nodes[source], nir.Input) or self.options.levels == 1

    def _or_window(self, made: N.Neurons, source: str, term: Term, total: Sum) -> Pair | None:
        """The window of an OR pool, where these neurons fire as soon as one input of theirs does."""
        way = term.way
        if (
            not isinstance(way, L.Conv)
            or way.weight.shape[1] != 1
            or way.groups != way.in_shape[0]
            or len(way.weight) != way.groups
            or way.stride != way.weight.shape[2:]
            or way.padding != (0, 0)
            or way.dilation != (1, 1)
        ):
            return None
        forgets = made.reset == "zero" and not made.cuba
        plain = total.constant is None and term.post is None and not made.leak.any()
        least = way.weight.min()
        alike = least > 0 and way.weight.max() == least
        fires = (made.threshold >= 0).all() and (made.threshold < least * made.gain).all()
        if not (forgets and plain and alike and fires and self._binary(source)):
            return None
        return way.stride

    # The chain

    def _ordered(self, found: list[Population], sums: dict[str, Sum]) -> list[Population]:
        """The populations from the input to the output. Raises LoweringError for anything else."""
        after: dict[str, list[Population]] = {}
        for population in found:
            after.setdefault(population.source, []).append(population)
        for source, several in after.items():
            if len(several) > 1:
                names = ", ".join(p.name for p in several)
                self.problems.append(
                    Problem(source, f"feeds {names}; a layer feeds the one after it alone")
                )
        self._done()
        (at,) = (n for n, node in self.nodes.items() if isinstance(node, nir.Input))
        order: list[Population] = []
        while at in after and len(order) <= len(found):
            order.append(after[at][0])
            at = order[-1].name
        (out,) = (n for n, node in self.nodes.items() if isinstance(node, nir.Output))
        total = sums.get(out)
        term = None if total is None or set(total.terms) != {at} else total.terms[at]
        if not order or len(order) != len(found):
            left = {p.name for p in found} - {p.name for p in order}
            where = ", ".join(sorted(left)) or "graph"
            self.problems.append(Problem(where, "not on a chain from the input to the output"))
        elif (
            term is None
            or not isinstance(term.way, L.Diagonal)
            or not _counts(term.way)
            or (total and total.constant is not None)
        ):
            self.problems.append(
                Problem(
                    out,
                    "what leaves the network is not the spikes of its last neurons but weighted values; "
                    "a chip's readout counts spikes",
                    "end with neurons, or leave out what follows them",
                )
            )
        self._done()
        return order

    def _emit(self, order: list[Population]) -> nir.NIRGraph:
        nodes: dict[str, nir.ir.NIRNode] = {}
        recurrent: G.Recurrent = {}
        taken = {p.name for p in order}
        (start,) = (n for n, node in self.nodes.items() if isinstance(node, nir.Input))
        shape = self.shapes[start]
        for given in order:
            # Behind neurons in a row there are no images.
            population = given.flat() if len(shape) == 1 else given
            weights = population.weights or f"{population.name}_w"
            while weights in taken:
                weights += "_w"
            taken.add(weights)
            for name, node in _weight_nodes(weights, population, shape).items():
                nodes[name] = node
            nodes[population.name] = population.node
            if population.recurrent is not None:
                name = population.recurrent_name or f"{population.name}_rec"
                while name in taken:
                    name += "_rec"
                taken.add(name)
                recurrent[population.name] = name, nir.Linear(weight=population.recurrent)
            shape = population.shape
        classes = self.options.classes or math.prod(shape)
        if math.prod(shape) % classes:
            raise InputError(
                Problem(
                    "--classes", f"{math.prod(shape)} outputs do not divide into {classes} classes"
                )
            )
        meta = G.FloatMeta(
            timesteps=self.options.timesteps or DEFAULT_STEPS,
            input_levels=self.options.levels,
            classes=classes,
            population=math.prod(shape) // classes,
        )
        names = {"input", "output"} & taken
        if names:
            raise InputError(
                [
                    Problem(n, "is the name of neurons or weights; it stands for the graph's end")
                    for n in names
                ]
            )
        made = G.chain_graph(nodes, self.shapes[start], shape, meta.model_dump_json(), recurrent)
        G.verify(made)
        return made


def _or_pool(name: str, source: str, weights: str, window: Pair, in_shape: Shape) -> Population:
    """Max pooling of spikes: each window sums them with weight 1, whatever the graph's own scale."""
    way = L.pool(window, window, (0, 0), 1.0, in_shape)
    node = nir.Threshold(threshold=np.full(way.out_shape, 0.5))
    return Population(name, node, way.out_shape, source, way, weights, None, window=window)


def _rows(term: Term, shape: Shape) -> L.Dense:
    """``term`` of a source of ``shape`` as single weights, whose rows take the factors of ``post``."""
    way = L.dense(term.way, shape)
    if term.post is None:
        return way
    return L.Dense(way.weight.astype(np.float64) * term.post.reshape(-1, 1))


def _wired(
    name: str,
    made: N.Neurons,
    source: str,
    term: Term,
    own: Term | None,
    total: Sum,
    source_shape: Shape,
) -> Population:
    """The population with one layer of weights, a bias and weights of its own.

    Raises CannotFold for what these cannot say.
    """
    way, post, constant = term.way, term.post, total.constant
    recurrent = None
    shape = made.shape
    if own is not None:
        # Recurrent weights need neurons in a row, behind single weights. Their rows hold the scale of
        # each neuron; in the thresholds it would change what the recurrent weights mean.
        way, post, recurrent = _rows(term, source_shape), None, _rows(own, shape).weight
        if len(shape) > 1:
            made, shape = N.reshaped(made, (math.prod(shape),)), (math.prod(shape),)
            constant = None if constant is None else constant.reshape(-1)
    if isinstance(way, L.Conv) and way.out_shape != shape:
        made, shape = N.reshaped(made, way.out_shape), way.out_shape
    if isinstance(way, L.Diagonal) and len(shape) == 3:
        way = _depthwise(way, shape)
    elif isinstance(way, L.Diagonal):
        way = L.dense(way, shape)
    if post is not None:
        post = _positive(post.reshape(shape), "its scale")
        gain = made.gain
        made = replace(made.scaled(post), gain=gain)
        constant = None if constant is None else constant.reshape(shape) / post
    uniform = np.ptp(made.gain) <= 1e-12 * np.abs(made.gain).max() and made.gain.flat[0] > 0
    if not uniform and isinstance(way, L.Dense):
        rows = made.gain.reshape(-1, 1)
        way = L.Dense(way.weight.astype(np.float64) * rows)
        recurrent = None if recurrent is None else recurrent * rows
        constant = None if constant is None else constant * made.gain
        made = made.with_unit_gain()
    elif not uniform:
        made = made.scaled(_positive(made.gain, "what its inputs are multiplied with"))
    if not made.cuba and made.leak.any():
        extra = made.leak / made.gain
        constant = extra if constant is None else constant.reshape(shape) + extra
        made = replace(made, leak=np.zeros(shape), same=None)
    if constant is not None and not constant.any():
        constant = None
    if constant is not None and isinstance(way, L.Conv):
        try:
            constant = L.per_channel(constant.reshape(shape), shape, rounding=1e-12)
        except L.CannotFold:
            raise L.CannotFold(
                "its constant input differs between the neurons of a channel; a convolution has one "
                "bias a channel"
            ) from None
    return Population(
        name,
        made.node(),
        shape,
        source,
        way,
        term.weights,
        constant,
        recurrent,
        own.weights if own is not None else "",
        made=made,
    )


def _counts(way: L.Diagonal) -> bool:
    """Whether values so scaled are counts of spikes still, of all neurons alike."""
    scale = np.asarray(way.scale)
    return bool(np.ptp(scale) == 0 and scale.flat[0] > 0)


def _positive(factor: Array, what: str) -> Array:
    if not (factor > 0).all() or not np.isfinite(factor).all():
        raise L.CannotFold(f"{what} is not above zero everywhere, behind a convolution")
    return factor


def _depthwise(way: L.Diagonal, shape: Shape) -> L.Conv:
    """Every channel by itself: what neurons hear of neurons right before them."""
    factor = L.per_channel(way.scale, shape)
    weight = factor.astype(np.float64).reshape(-1, 1, 1, 1)
    return L.conv(weight, (1, 1), (0, 0), (1, 1), shape[0], shape)


def _weight_nodes(name: str, population: Population, shape: Shape) -> dict[str, nir.ir.NIRNode]:
    """The nodes of one layer of weights behind a population of ``shape``."""
    way, bias = population.way, population.constant
    if isinstance(way, L.Conv) and population.window is not None:
        return {name: G.sum_pool(population.window, way.in_shape)}
    if isinstance(way, L.Conv):
        if bias is None:
            bias = np.zeros(len(way.weight), way.weight.dtype)
        geometry = way.stride, way.padding, way.groups, way.dilation
        return {name: G.conv2d(way.weight, bias, way.in_shape, *geometry)}
    assert isinstance(way, L.Dense)
    nodes: dict[str, nir.ir.NIRNode] = {}
    if len(shape) > 1:
        nodes[f"{name}_flatten"] = G.flatten(shape)
    nodes[name] = (
        nir.Linear(weight=way.weight)
        if bias is None
        else nir.Affine(weight=way.weight, bias=bias.reshape(-1))
    )
    return nodes


def _extended(term: Term, way: L.Map, weights: str) -> Term:
    """``term`` with one more map behind it."""
    if term.post is not None:
        if isinstance(way, L.Diagonal):
            return Term(term.way, weights, term.post * way.scale)
        raise L.CannotFold("a scale that differs within a channel is followed by weights")
    if isinstance(term.way, L.Conv) and isinstance(way, L.Diagonal):
        try:
            return Term(L.after(term.way, way), weights)
        except L.CannotFold:
            size = math.prod(term.way.out_shape)
            return Term(term.way, weights, np.broadcast_to(way.scale, (size,)))
    return Term(L.after(term.way, way), weights)
