"""Reading a float graph, ``model.float.nir`` of stl-export, as untrusted data."""

from __future__ import annotations

from pathlib import Path

import nir
import numpy as np

from stl_deploy.errors import InputError, LoweringError, Problem
from stl_deploy.formats import nir_io
from stl_deploy.ir import nir_graph as G

RUNS = (
    nir.Conv2d,
    nir.SumPool2d,
    nir.Flatten,
    nir.Affine,
    nir.Linear,
    nir.LIF,
    nir.IF,
    nir.CubaLIF,
    nir.Threshold,
)
NEURONS = {
    nir.LIF: ("tau", "r", "v_leak", "v_reset", "v_threshold"),
    nir.IF: ("r", "v_reset", "v_threshold"),
    nir.CubaLIF: ("tau_mem", "tau_syn", "r", "w_in", "v_leak", "v_reset", "v_threshold"),
    nir.Threshold: ("threshold",),
}


def read(path: Path) -> nir.NIRGraph:
    """A lowered float graph that ``float_exec`` can run.

    Raises InputError naming every node that it cannot.
    """
    return check(path, nir_io.read(path))


def check(path: Path, graph: nir.NIRGraph) -> nir.NIRGraph:
    """``graph``, which was read from ``path``. Raises InputError as ``read`` does."""
    try:
        G.float_meta(graph)
    except InputError as error:
        raise InputError(
            [
                Problem(
                    f"{path}: {p.where}",
                    "is not that of a float graph",
                    "name model.float.nir of stl-export, or the checkpoint",
                )
                for p in error.problems
            ]
        ) from None
    problems = []
    try:
        nodes = G.inner(graph) | dict(G.recurrent(graph).values())
        problems += [
            Problem(f"{path}: {name}", f"a {type(node).__name__} is not allowed in a float graph")
            for name, node in nodes.items()
            if not isinstance(node, RUNS)
        ]
        if not problems:
            G.verify(graph)
            problems += _parameters(path, graph)
            if (known := G.float_meta(graph).trained) is not None:
                check_trained(graph, known)
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
    nodes: dict[str, nir.ir.NIRNode] = {}
    shape = G.in_shape(graph)
    for name, node in G.inner(graph).items():
        after = G.node_output(name, node, shape)
        if isinstance(node, nir.Conv2d) and node.input_shape is None:
            stride, padding, dilation = G.conv_geometry(node)
            groups = int(node.groups)
            node = G.conv2d(node.weight, node.bias, shape, stride, padding, groups, dilation)
        elif isinstance(node, nir.Flatten) and node.input_type["input"] is None:
            node = G.flatten(shape)
        nodes[name], shape = node, after
    return G.rebuild(graph, nodes)


def _parameters(path: Path, graph: nir.NIRGraph) -> list[Problem]:
    """What is wrong with the numbers of a graph whose shapes fit."""
    problems = []
    shape = G.in_shape(graph)
    for name, node in G.inner(graph).items():
        shape = G.node_output(name, node, shape)
        names = NEURONS.get(type(node), ())
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
    everything = G.inner(graph) | dict(G.recurrent(graph).values())
    for name, node in everything.items():
        for key, value in vars(node).items():
            if isinstance(value, np.ndarray) and not _numbers(value):
                problems.append(Problem(f"{path}: {name}.{key}", "contains NaN or infinite values"))
    return problems


def _numbers(value: np.ndarray) -> bool:
    return value.dtype.kind in "iufb" and bool(np.isfinite(value).all())


def check_trained(graph: nir.NIRGraph, trained: G.Trained) -> None:
    """Raise InputError unless every population is a plain LIF with a unit for each of its channels."""
    problems = []
    shape = G.in_shape(graph)
    recurrent = G.recurrent(graph)
    for name, node in G.inner(graph).items():
        shape = G.node_output(name, node, shape)
        if isinstance(node, nir.CubaLIF | nir.IF) or name in recurrent:
            what = ("a recurrent " if name in recurrent else "a ") + type(node).__name__
            problems.append(
                Problem(name, f"is {what}; training on integers supports only plain LIF")
            )
        elif isinstance(node, nir.LIF) and len(trained.scale.get(name, ())) != shape[0]:
            found = len(trained.scale.get(name, ()))
            problems.append(
                Problem(f"metadata.{G.KEY}: {name}", f"has {found} units for {shape[0]} channels")
            )
    if problems:
        raise InputError(problems)
