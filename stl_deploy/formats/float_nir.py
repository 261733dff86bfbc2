"""Reading a float graph, ``model.float.nir`` of stl-export, as untrusted data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import nir
import numpy as np

from stl_deploy.errors import InputError, LoweringError, Problem
from stl_deploy.formats import nir_io
from stl_deploy.ir import floats
from stl_deploy.ir import nir_graph as G
from stl_deploy.ir import nir_walk as walk
from stl_deploy.ir.float_neurons import NEURONS, FloatNeurons
from stl_deploy.ir.floats import FloatNetwork
from stl_deploy.ir.units import DECAY_ONE, FORGETS, MAX_SIGNED

NEAR = 1e-6  # of 1/4096: how near to a whole number of them a decay of a graph is

REMEDY = "name model.float.nir of stl-export, or the checkpoint"


def read(path: Path) -> nir.NIRGraph:
    """A lowered float graph that ``ir/execute.py`` can run.

    Raises InputError naming every node that it cannot.
    """
    return check(path, nir_io.read(path))


def check(path: Path, graph: nir.NIRGraph) -> nir.NIRGraph:
    """``graph``, which was read from ``path``. Raises InputError as ``read`` does."""
    try:
        G.float_meta(graph)
    except InputError as error:
        raise InputError(
            [Problem(f"{path}: {p.where}", p.what, p.remedy or REMEDY) for p in error.problems]
        ) from None
    problems = []
    try:
        problems += [
            Problem(f"{path}: {name}", f"a {type(node).__name__} is not allowed in a float graph")
            for name, node in graph.nodes.items()
            if type(node) not in (*floats.KNOWN, nir.Input, nir.Output)
        ]
        if not problems:
            problems += _parameters(path, graph)
        if not problems:
            decoded = floats.decode(graph)
            if decoded.trained is not None:
                check_trained(decoded, decoded.trained)
    except (InputError, LoweringError) as error:
        problems += [Problem(f"{path}: {p.where}", p.what, p.remedy) for p in error.problems]
    except (ValueError, TypeError, AttributeError, IndexError, OverflowError) as error:
        # What shapes and types from a broken file can do to arithmetic on them.
        problems.append(Problem(str(path), f"contains an invalid node: {error}"))
    if problems:
        raise InputError(problems)
    return _with_shapes(graph)


def _with_shapes(graph: nir.NIRGraph) -> nir.NIRGraph:
    """``graph`` with the shapes that a file may leave out, and that nir cannot write as left out."""
    nodes: dict[str, nir.ir.NIRNode] = dict(graph.nodes)
    for name, node, before, _ in walk.shaped(graph):
        if isinstance(node, nir.Conv2d) and node.input_shape is None:
            stride, padding, dilation = G.conv_geometry(node)
            groups = int(node.groups)
            said = node.metadata
            node = G.conv2d(node.weight, node.bias, before, stride, padding, groups, dilation)
            node.metadata = said
        elif isinstance(node, nir.Flatten) and node.input_type["input"] is None:
            node = G.flatten(before)
        nodes[name] = node
    return nir.NIRGraph(nodes, graph.edges, metadata=graph.metadata, type_check=False)


def _parameters(path: Path, graph: nir.NIRGraph) -> list[Problem]:
    """What is wrong with the numbers of a graph whose shapes fit."""
    problems = []
    for name, node, _, shape in walk.shaped(graph):
        names = NEURONS[type(node)].parameters if type(node) in NEURONS else ()
        values = {key: np.asarray(getattr(node, key)) for key in names}
        problems += [
            Problem(f"{path}: {name}.{key}", f"has shape {value.shape}, its neurons {shape}")
            for key, value in values.items()
            if value.shape != shape
        ]
        problems += [
            Problem(f"{path}: {name}.{key}", "is not above zero everywhere")
            for key, value in values.items()
            if key.startswith("tau") and not (value > 0).all()
        ]
    for name, node in graph.nodes.items():
        for key, value in vars(node).items():
            if isinstance(value, np.ndarray) and not _numbers(value):
                problems.append(Problem(f"{path}: {name}.{key}", "contains NaN or infinite values"))
    return problems


def _numbers(value: np.ndarray) -> bool:
    return value.dtype.kind in "iufb" and bool(np.isfinite(value).all())


def check_trained(network: FloatNetwork, trained: G.Trained) -> None:
    """Raise InputError unless every population is one that training on integers knows.

    It has a unit for each of its channels, decays and gains in whole 1/4096, and sends spikes.
    """
    problems = []
    for population in network.populations:
        name, neurons = population.name, population.neurons
        if not neurons.has_state:
            continue
        problems += [
            Problem(name, f"has {what}", "name the checkpoint that stl-train --qat wrote")
            for what in _inexact(neurons)
        ]
        if (found := len(trained.scale.get(name, ()))) != population.shape[0]:
            what = f"has {found} units for {population.shape[0]} channels"
            problems.append(Problem(f"metadata.{G.KEY}: {name}", what))
    if problems:
        raise InputError(problems)


def _inexact(neurons: FloatNeurons) -> Iterator[str]:
    """What neurons have that training on integers does not know, or would have rounded."""
    if neurons.graded:
        yield "graded values, which training on integers does not know"
    # What a step leaves, and the least and most of it in 1/4096.
    shares = {
        "decay of v": (neurons.keep, 1, DECAY_ONE),
        "decay of the current": (1 - neurons.current, 0, FORGETS),
    }
    if neurons.current2 is not None:
        shares["decay of the second current"] = (1 - neurons.current2, 0, FORGETS)
    if neurons.adapt_step is not None:
        shares["decay of the threshold"] = (1 - neurons.adapt_step, 1, DECAY_ONE)
    if neurons.amplify is not None:
        shares["gain"] = (neurons.amplify, -MAX_SIGNED, MAX_SIGNED)
    for what, (share, low, high) in shares.items():
        steps = DECAY_ONE * share
        whole = np.abs(steps - np.rint(steps)) < NEAR
        if not (whole & (np.rint(steps) >= low) & (np.rint(steps) <= high)).all():
            yield (
                f"a {what} other than {low}/{DECAY_ONE}, {low + 1}/{DECAY_ONE}, ... {high}/{DECAY_ONE}"
            )
