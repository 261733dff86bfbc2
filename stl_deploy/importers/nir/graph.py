"""Importer of NIR graphs by other tools: spiking networks of any form to a lowered float graph.

Between two populations of neurons everything is linear and is multiplied out (``linear.py``), several
paths are added up, nested graphs are laid flat. What is left are populations and connections of any form:
skips, delays, ways back. Two populations that send each other spikes need a Delay on the way back, which
says whose spikes come first. The spikes of one population leave the network.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import nir
import numpy as np

from stl_deploy.errors import InputError, LoweringError, Problem
from stl_deploy.formats import nir_io
from stl_deploy.formats import portable_nir as nir_portable
from stl_deploy.importers.given import File, Model, Normalize, Reset, Spikes, Tool
from stl_deploy.importers.nir import inputs, several, stated, written
from stl_deploy.importers.nir.nodes import faults, flat, misfits
from stl_deploy.ir import floats
from stl_deploy.ir import nir_graph as G
from stl_deploy.ir.notes import Diagnostic
from stl_deploy.ir.read_as import Origin, ReadAs
from stl_deploy.ir.readouts import Rule
from stl_deploy.ir.synapses import Shape
from stl_deploy.ir.units import MAX_SIGNED, MAX_STEPS, MAX_UNSIGNED
from stl_deploy.lower.ends import Wanted, classes_of
from stl_deploy.lower.flow import Flow
from stl_deploy.lower.graph import lowered
from stl_deploy.lower.linear import MAX_NEURONS
from stl_deploy.lower.nodes import Reading

DEFAULT_STEPS = 4


@dataclass(frozen=True)
class Options:
    """What NIR does not say.

    dt: seconds of a time step, for neurons with time constants; reset: of populations that do not state
    theirs; written_by: the tool whose file is read as it computes it; spikes: how many a neuron can send in
    a step; timesteps: T, and ``steps_from`` who said so; classes: the last population is read as that many
    groups of neurons, each voting for a class (default: as many as neurons); levels: inputs are whole
    numbers 0..levels, 1 for spikes, signed: -levels..levels;
    normalize: what was done to them before the network; held: one frame is read in every step.
    readout: the rule by which classes are scored (default: the last v of neurons without a threshold, else
    votes); steps: the weight of each step in votes.
    """

    dt: float | None = None
    reset: Reset | None = None
    written_by: Tool | None = None
    spikes: Spikes | None = None
    timesteps: int | None = None
    steps_from: Origin = "option"
    classes: int | None = None
    levels: int = 1
    signed: bool = False
    normalize: Normalize | None = None
    held: bool = False
    readout: Rule | None = None
    steps: tuple[float, ...] | None = None


def read_model(file: File) -> Model:
    """The lowered graph of a file, and what was assumed of it. Raises as ``read`` does."""
    given, graph = file.given, file.graph
    if nir_portable.KEY in graph.metadata:
        # It reads like any other graph, but its max pooling and thresholds are stand-ins.
        raise InputError(
            Problem(
                str(file.path),
                "is a portable file, written for other tools",
                "name the model.nir or model.float.nir that stl-export wrote next to it",
            )
        )
    options = Options(
        dt=given.dt,
        reset=given.reset,
        written_by=given.written_by,
        spikes=given.spikes,
        timesteps=given.steps,
        steps_from=given.steps_from,
        classes=given.classes,
        levels=given.levels or 1,
        signed=bool(given.signed),
        normalize=given.normalize,
        readout=given.readout,
    )
    made = read(file.path, options, graph)
    return Model(made, notes=notes(graph, made, options))


def read(
    path: Path,
    options: Options | None = None,
    graph: nir.NIRGraph | None = None,
    read_as: tuple[ReadAs, ...] | None = None,
) -> nir.NIRGraph:
    """The lowered float graph of a NIR file, which may have been read as ``graph`` already.

    ``read_as`` says how its populations were read; None where that is NIR itself.
    Raises InputError for a broken file and LoweringError for a network that cannot be lowered, each
    naming everything that it met.
    """
    try:
        return to_float(nir_io.read(path) if graph is None else graph, options, read_as)
    except (InputError, LoweringError) as error:
        raise type(error)(
            [
                p
                if p.where.startswith((str(path), "--"))
                else replace(p, where=f"{path}: {p.where}")
                for p in error.problems
            ]
        ) from None


def to_float(
    graph: nir.NIRGraph, options: Options | None = None, read_as: tuple[ReadAs, ...] | None = None
) -> nir.NIRGraph:
    """See ``read``; ``graph`` may also hold the nodes of ``ir/nir_graph.py`` that NIR does not know.

    ``read_as`` says how its populations were read; None where that is NIR itself.
    """
    options = options or Options()
    check(options)
    asked = options
    graph, options = _as_written(graph, options)
    flow = _flow(graph, options)
    wanted = Wanted(options.readout, options.classes)
    made = lowered(flow, wanted)
    classes = classes_of(made.outputs, wanted)
    steps = None if options.steps is None else G.Read(steps=options.steps)
    timesteps = options.timesteps or DEFAULT_STEPS
    if read_as is None:
        read_as = stated.records(
            flat(graph)[0],
            made.nodes,
            dt=asked.dt,
            step=options.dt,
            reset=asked.reset,
            timesteps=timesteps,
            steps_from="assumed" if options.timesteps is None else options.steps_from,
            ours=stated.is_ours(graph),
            spikes=asked.spikes,
            tool=options.written_by,
        )
    records = {record.population: record for record in read_as}
    meta = G.FloatMeta(
        version=G.NEWEST,
        timesteps=timesteps,
        input_levels=options.levels,
        signed=options.signed,
        held=options.held,
        classes=classes,
        population=made.outputs // classes,
        readout=steps,
        read_as=tuple(records[name] for name in made.nodes if name in records),
    )
    result = made.graph(meta)
    if options.spikes == "many":
        fire = [name for name, node in flat(graph)[0].items() if stated.fires(node)]
        several.check(floats.decode(result), fire)
    return result


def _as_written(graph: nir.NIRGraph, options: Options) -> tuple[nir.NIRGraph, Options]:
    """``graph`` as the tool computes it that wrote it, with the options that this comes with."""
    if options.written_by is None:
        return graph, options
    reading = written.read(graph, options.written_by, options.dt)
    nodes = flat(reading.graph)[0].values()
    is_open = any(stated.leaves_open(node, reading.dt) for node in nodes)
    return reading.graph, replace(
        options,
        dt=reading.dt,
        reset=reading.reset if options.reset is None and is_open else options.reset,
        spikes=options.spikes or reading.spikes,
    )


def _flow(graph: nir.NIRGraph, options: Options) -> Flow:
    """The graph laid flat, its nodes looked at. Raises InputError naming what is broken."""
    nodes, edges, problems = flat(graph)
    binary = options.levels == 1 and not options.signed
    dt = G.DT if options.dt is None else options.dt
    if not problems:
        nodes = stated.with_reset(nodes, options.reset, dt, stated.is_ours(graph))
    flow = Flow(nodes, edges, Reading(dt, binary), broken=problems)
    for name, node in nodes.items():
        if not isinstance(node, nir.Input | nir.Output):
            flow.broken += [Problem(f"{name}{key}", what) for key, what in faults(node)]
    if not flow.broken:
        steps = inputs.of_one_step(nodes, edges)
        flow = replace(flow, nodes=steps.nodes, dropped=frozenset(steps.dropped.values()))
        flow.broken += inputs.misfits(flow.nodes, edges)
    for name, node in flow.nodes.items():
        if isinstance(node, nir.Input | nir.Output):
            flow.broken += [Problem(f"{name}{key}", what) for key, what in faults(node)]
    flow.done()
    for kind in (nir.Input, nir.Output):
        found = sum(isinstance(node, kind) for node in nodes.values())
        if found < 1 or (found > 1 and kind is nir.Output):
            flow.broken.append(
                Problem("graph", f"has {found} {kind.__name__} nodes; one is needed")
            )
    flow.done()
    return flow if options.normalize is None else _normalized(flow, options, options.normalize)


def _normalized(flow: Flow, options: Options, how: Normalize) -> Flow:
    """``flow`` with what was done to inputs behind each of them. Raises InputError where it does not fit."""
    nodes, edges = dict(flow.nodes), flow.edges
    for name in flow.inputs:
        shape = G.shape_of(nodes[name].input_type["input"])
        divided, normalized = f"{name}.levels", f"{name}.normalized"
        nodes[divided] = G.InputScale(shape, shape, options.levels)
        nodes[normalized] = normalizing(shape, how)
        edges = [(normalized if a == name else a, b) for a, b in edges]
        edges += [(name, divided), (divided, normalized)]
    return replace(flow, nodes=nodes, edges=edges)


def normalizing(shape: Shape, how: Normalize) -> G.BatchNorm:
    """(x - mean) / std of an input of ``shape``. Raises InputError for another number of channels."""
    if len(how.mean) not in (1, shape[0]):
        what = f"{len(how.mean)} means for the {shape[0]} channels of an input of shape {shape}"
        raise InputError(Problem("--normalize", what, "give one, or one for each channel"))
    mean, std = (np.resize(np.asarray(v), shape[0]) for v in how)
    zeros, ones = np.zeros(shape[0]), np.ones(shape[0])
    return G.BatchNorm(shape, shape, 1 / std, zeros, mean, ones, 0.0)


def notes(
    graph: nir.NIRGraph, lowered: nir.NIRGraph, options: Options | None = None
) -> tuple[Diagnostic, ...]:
    """What was assumed in reading ``graph`` as ``lowered`` in addition to what ``read_as`` says."""
    options = options or Options()
    return _writer(graph, options) + _axes(graph) + _readouts(graph, lowered, options)


def _writer(graph: nir.NIRGraph, options: Options) -> tuple[Diagnostic, ...]:
    """The tool that the names in a graph are those of, where it is read by NIR's equations."""
    tool = None if options.written_by is not None else written.likely(graph)
    if tool is None:
        return ()
    what = f"has the names of a file by {tool.capitalize()}, and is read by NIR's equations"
    remedy = f"give --written-by {tool} if it is one (in Python written_by=...)"
    return (Diagnostic("graph", what, remedy),)


def _axes(graph: nir.NIRGraph) -> tuple[Diagnostic, ...]:
    """Notes of the Inputs that count batch or time, which were read as one step."""
    nodes, edges, _ = flat(graph)
    read = inputs.of_one_step(nodes, edges)
    found = []
    for name, axes in read.dropped.items():
        declared, step = (G.shape_of(n[name].input_type["input"]) for n in (nodes, read.nodes))
        what = f"the shape {declared} counts batch or time; a step is read as {step}"
        remedy = "nothing need be done if that is so; else correct the Input in the file"
        if math.prod(axes) > 1:
            found.append(Diagnostic(f"input {name}", what, remedy))
    return tuple(found)


def _readouts(
    graph: nir.NIRGraph, lowered: nir.NIRGraph, options: Options
) -> tuple[Diagnostic, ...]:
    """The readout that was taken, where spikes of the last neurons do not vote and nothing was said."""
    read = floats.decode(lowered).readout
    if read is None or options.readout is not None or options.steps is not None:
        return ()
    own = (
        read.source in flat(graph)[0]
    )  # else a population that was put there to compute the output
    taken = None
    if read.matrix is not None:
        taken = "weights follow the last neurons; classes are read from their mean output over time"
    elif read.by_voltage:
        when = {"last": "after the last step", "mean": "averaged over time"}[read.rule]
        what = "v of neurons without a threshold" if own else "values, not spikes"
        taken = f"the network's output is {what}; classes are read from it {when}"
    if taken is None:
        return ()
    remedy = "choose another by --readout last, mean or max (in Python readout=...)"
    where = f"readout of {read.source}" if own else "readout"
    return (Diagnostic(where, taken, remedy),)


def examine(graph: nir.NIRGraph) -> None:
    """Raise InputError, naming all that it meets, for a graph that means nothing to any reader.

    That is less than ``to_float`` asks for: nodes and connections of any kind may be there.
    """
    flow = _flow(graph, Options())
    flow.spread_shapes()
    flow.check_output()
    flow.broken += _without_end(flow)
    flow.check_cycles()
    flow.done()
    arriving: dict[str, Shape] = {}
    for source, target in flow.edges:
        shape = flow.shapes[source]
        if arriving.setdefault(target, shape) != shape:
            what = f"gets inputs of shapes {arriving[target]} and {shape}"
            flow.broken.append(Problem(target, what))
    for name, shape in arriving.items():
        found = misfits(flow.nodes[name], shape, flow.reading)
        flow.broken += [Problem(name, what) for what in found]
    flow.done()


def _without_end(flow: Flow) -> list[Problem]:
    """Nodes that are on no way to the output, and edges that stand twice."""
    preceding: dict[str, list[str]] = {name: [] for name in flow.nodes}
    for source, target in flow.edges:
        preceding[target].append(source)
    pending = [flow.end]
    leading = set(pending)
    while pending:
        new = set(preceding[pending.pop()]) - leading
        leading |= new
        pending += new
    found = [
        Problem(name, "leads to no output")
        for name in flow.nodes
        if name in flow.shapes and name not in leading
    ]
    # NIR's own reader refuses these, unless told not to check types.
    twice = [
        Problem(f"{source} -> {target}", "an edge that stands twice", "write it once")
        for (source, target), times in Counter(flow.edges).items()
        if times > 1
    ]
    return found + twice


def check(options: Options) -> None:
    """Raise InputError for options out of range."""
    problems = []
    if options.readout not in (None, *get_args(Rule)):
        what = f"{options.readout!r} is not a known readout"
        problems.append(Problem("--readout", what, f"choose from {', '.join(get_args(Rule))}"))
    dt = G.DT if options.dt is None else options.dt
    if not (isinstance(dt, int | float) and math.isfinite(dt) and dt > 0):
        problems.append(Problem("--dt", f"{dt} is not a time in seconds above zero"))
    for name, kind, word, known in (
        ("--reset", "reset", options.reset, get_args(Reset)),
        ("--spikes", "number of spikes", options.spikes, get_args(Spikes)),
        ("--written-by", "tool", options.written_by, get_args(Tool)),
    ):
        if word not in (None, *known):
            what = f"{word!r} is not a {kind} that can be chosen"
            problems.append(Problem(name, what, f"choose from {', '.join(known)}"))
    for name, value, high in (
        ("--timesteps", options.timesteps, MAX_STEPS),
        ("--classes", options.classes, MAX_NEURONS),
        ("--levels", options.levels, MAX_SIGNED if options.signed else MAX_UNSIGNED),
    ):
        if value is None and name != "--levels":
            continue
        if not (isinstance(value, int | np.integer) and 1 <= value <= high):
            problems.append(Problem(name, f"{value!r} is not a whole number in 1..{high}"))
    if problems:
        raise InputError(problems)
