"""Reading a float graph, ``model.float.nir`` of stl-export, as untrusted data."""

from __future__ import annotations

from pathlib import Path

import nir
import numpy as np

from stl_deploy.errors import InputError, LoweringError, Problem
from stl_deploy.formats import nir_io
from stl_deploy.ir import floats
from stl_deploy.ir import nir_graph as G
from stl_deploy.ir import nir_walk as walk
from stl_deploy.ir.float_neurons import NEURONS
from stl_deploy.ir.floats import FloatNetwork

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
    """Raise InputError unless every population is a plain LIF with a unit for each of its channels."""
    problems = []
    for population in network.populations:
        name, kind = population.name, population.neurons.kind
        own = any(connection.source == name for connection in network.into(name))
        if not population.neurons.has_state:
            continue
        plain = population.neurons.plain and not population.neurons.v_reset.any()
        if kind != "lif" or own or not plain:
            more = f"{', recurrent' if own else ''}{'' if plain else ', with further rules'}"
            what = f"{kind} neurons{more}"
            problems.append(
                Problem(name, f"has {what}; training on integers supports only plain LIF")
            )
        elif (found := len(trained.scale.get(name, ()))) != population.shape[0]:
            what = f"has {found} units for {population.shape[0]} channels"
            problems.append(Problem(f"metadata.{G.KEY}: {name}", what))
    if problems:
        raise InputError(problems)
