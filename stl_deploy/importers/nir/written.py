"""NIR files whose equations are not those of the tool that wrote them, read as the tool computes them.

A file does not say who wrote it. So the user says it (``--written-by``), and gets what the tool does unless
its network was told otherwise (docs/import-nir.md). Every reading is a graph that NIR's own equations
run, by forward Euler with the ``dt`` that comes with it.

- sinabs: v = a v + (1 - a) r I with a = exp(-1/tau), tau in steps; an IF as it stands. Neurons subtract their
  threshold, several times a step, from v >= threshold on.
- Rockpool: u = b (u + I), v = a v + u with a, b = exp(-dt/tau), where r = tau/dt exp(-dt/tau) gives dt.
  Neurons subtract their threshold, several times a step, from v >= threshold on.
- Norse: inputs count whole where w_in is 1, v begins at v_leak, and neurons reset to v_reset.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import nir
import numpy as np
from numpy.typing import NDArray
from scipy.special import lambertw

from stl_deploy.errors import InputError, Problem
from stl_deploy.importers.given import Reset, Spikes, Tool
from stl_deploy.importers.nir.nodes import faults, flat
from stl_deploy.ir import nir_graph as G

Float = NDArray[np.float64]
CLOSE = 1e-3  # of time steps that neurons agree on; a file has float32


@dataclass(frozen=True)
class Reading:
    """A graph in NIR's own terms, with the ``dt`` that its neurons are read by.

    ``reset`` and ``spikes`` are what its neurons do where nobody says otherwise.
    """

    graph: nir.NIRGraph
    dt: float
    reset: Reset
    spikes: Spikes


def read(graph: nir.NIRGraph, tool: Tool, dt: float | None) -> Reading:
    """``graph`` as ``tool`` computes it; ``dt`` is what the user said.

    Raises InputError for a graph that the tool does not write, or without a dt that is needed.
    """
    nodes, edges, problems = flat(graph)
    for name, node in _neurons(nodes):
        problems += [Problem(f"{name}{key}", what) for key, what in faults(node)]
    if problems:
        raise InputError(problems)
    try:
        with np.errstate(all="ignore"):  # what is not finite is found where the graph is lowered
            made = TOOLS[tool](nodes, dt)
    except (ValueError, TypeError, AttributeError) as error:
        # What shapes from a broken file can do to arithmetic on them.
        raise InputError(Problem("graph", f"contains an invalid node: {error}")) from None
    reread = nir.NIRGraph({**nodes, **made.nodes}, edges, metadata=graph.metadata, type_check=False)
    return Reading(reread, made.dt, made.reset, made.spikes)


def likely(graph: nir.NIRGraph) -> Tool | None:
    """The tool that the names in a graph are those of; None where they say nothing.

    Rockpool names nodes by place and class, such as "1_LIFTorch". sinabs, Norse and snnTorch take the names
    of modules, so that nothing tells them apart.
    """
    neurons = [name for name, node in flat(graph)[0].items() if isinstance(node, NEURONS)]
    named = [name for name in neurons if name.split("_")[-1].startswith(("LIF", "ExpSyn"))]
    torches = all(name.endswith("Torch") and name.split("_")[0].isdigit() for name in neurons)
    return "rockpool" if named and torches else None


@dataclass(frozen=True)
class _Made:
    """The nodes that are others, and the rest of a ``Reading``."""

    nodes: dict[str, nir.ir.NIRNode]
    dt: float
    reset: Reset
    spikes: Spikes


Nodes = dict[str, nir.ir.NIRNode]
NEURONS = (nir.LIF, nir.IF, nir.CubaLIF, nir.LI, nir.CubaLI, nir.I)


def _sinabs(nodes: Nodes, dt: float | None) -> _Made:
    """Time constants count steps, whatever ``dt`` is."""
    step = G.DT if dt is None else dt
    made: Nodes = {}
    for name, node in _neurons(nodes):
        if isinstance(node, nir.CubaLIF | nir.CubaLI):
            raise InputError(_unwritten(name, node, "sinabs"))
        changes = _reached(node)
        if isinstance(node, nir.LIF | nir.LI):
            changes["tau"] = step / -np.expm1(-1 / _array(node.tau))
        made[name] = _with(node, **changes)
    return _Made(made, step, "subtract", "many")


def _rockpool(nodes: Nodes, dt: float | None) -> _Made:
    """dt is in r of every node."""
    steps: dict[str, Float] = {}
    made: Nodes = {}
    for name, node in _neurons(nodes):
        if isinstance(node, nir.IF | nir.I) or np.any(node.v_leak):
            raise InputError(_unwritten(name, node, "Rockpool"))
        tau = _array(node.tau_mem if hasattr(node, "tau_mem") else node.tau)
        steps[name] = tau * lambertw((1 / _array(node.r)).tolist()).real
    step = _one_step(steps, dt)
    for name, node in _neurons(nodes):
        tau = _array(node.tau_mem if hasattr(node, "tau_mem") else node.tau)
        kept = step / -np.expm1(-step / tau)
        if not hasattr(node, "tau_mem"):
            made[name] = _with(node, tau=kept, r=kept / step, **_reached(node))
            continue
        stays = np.exp(-step / _array(node.tau_syn))
        drive = 1 / (1 - stays)  # tau_syn / dt
        made[name] = _with(
            node,
            tau_mem=kept,
            r=kept / step,
            tau_syn=step * drive,
            w_in=stays * drive,
            **_reached(node),
        )
    return _Made(made, step, "subtract", "many")


def _one_step(steps: dict[str, Float], dt: float | None) -> float:
    """The time step of all nodes. Raises InputError where they, or the user, disagree."""
    found = {name: float(np.median(values)) for name, values in steps.items()}
    problems = [
        Problem(name, "r is not tau/dt exp(-dt/tau), which Rockpool writes", "omit --written-by")
        for name, values in steps.items()
        if not (np.isfinite(values).all() and np.allclose(values, found[name], rtol=CLOSE, atol=0))
    ]
    step = next(iter(found.values()), G.DT if dt is None else dt)
    for name, value in found.items():
        if not problems and abs(value / step - 1) > CLOSE:
            problems.append(Problem(name, f"has a dt of {value:g}, others have {step:g}"))
    if dt is not None and not problems and abs(dt / step - 1) > CLOSE:
        problems.append(Problem("--dt", f"{dt:g}, but the file says {step:g}", "omit it"))
    if problems:
        raise InputError(problems)
    return float(f"{step:.4g}") if dt is None else dt


def _norse(nodes: Nodes, dt: float | None) -> _Made:
    """Time constants are in seconds, where to_nir was given dt=1."""
    timed = [name for name, node in _neurons(nodes) if not isinstance(node, nir.IF | nir.I)]
    if dt is None and timed:
        what = f"is needed for a file of Norse, whose neurons ({timed[0]}) count seconds"
        raise InputError(Problem("--dt", what, "give the dt of its cells, 1e-3 by default"))
    step = G.DT if dt is None else dt
    made: Nodes = {}
    for name, node in _neurons(nodes):
        if isinstance(node, nir.IF | nir.I):
            continue
        changes: dict[str, Any] = {}
        if isinstance(node, nir.CubaLIF | nir.CubaLI) and np.all(_array(node.w_in) == 1):
            changes["w_in"] = _array(node.tau_syn) / step
        made[name] = _with(node, **changes)
        if np.any(node.v_leak):
            made[name].metadata[f"{G.KEY}.v0"] = np.atleast_1d(_array(node.v_leak))
    return _Made(made, step, "zero", "one")


TOOLS: dict[Tool, Callable[[Nodes, float | None], _Made]] = {
    "norse": _norse,
    "rockpool": _rockpool,
    "sinabs": _sinabs,
}


def _neurons(nodes: Nodes) -> Iterator[tuple[str, Any]]:
    for name, node in nodes.items():
        if isinstance(node, NEURONS):
            yield name, node


def _reached(node: nir.ir.NIRNode) -> dict[str, Float]:
    """The threshold of neurons that spike where v >= threshold; NIR's compare is strict."""
    if not hasattr(node, "v_threshold"):
        return {}
    return {"v_threshold": np.nextafter(_array(node.v_threshold), -np.inf)}


def _unwritten(name: str, node: nir.ir.NIRNode, title: str) -> Problem:
    what = f"is {type(node).__name__} with values that {title} does not write"
    return Problem(name, what, "omit --written-by, or name another tool")


def _array(values: Any) -> Float:
    return np.asarray(values, np.float64)


def _with(node: Any, **changes: Float) -> Any:
    """A copy of ``node`` with other parameters and metadata of its own."""
    made = copy.copy(node)
    made.metadata = dict(node.metadata)
    for key, values in changes.items():
        setattr(made, key, values)
    return made
