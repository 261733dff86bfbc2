"""What a NIR file states of its neurons, and how those were read of which it leaves something open.

NIR's equations reset v to ``v_reset`` in the step of a spike. Tools whose neurons subtract the threshold
write the same file, so that a reset counts as stated only where a node's metadata say it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import nir
import numpy as np

from stl_deploy.errors import InputError, Problem
from stl_deploy.formats import portable_nir as nir_portable
from stl_deploy.importers.given import Reset, Spikes, Tool
from stl_deploy.importers.records import record
from stl_deploy.ir import nir_graph as G
from stl_deploy.ir.float_neurons import NEURONS, decode
from stl_deploy.ir.read_as import Origin, Property, ReadAs

SPIKES: dict[Spikes | None, Origin] = {"one": "option", "many": "file"}  # who says that one is sent
Nodes = Mapping[str, nir.ir.NIRNode]


def is_ours(graph: nir.NIRGraph) -> bool:
    """Whether stl-deploy wrote it: then it states dt, and every reset that is not NIR's."""
    return bool({G.KEY, nir_portable.KEY} & graph.metadata.keys())


def fires(node: nir.ir.NIRNode) -> bool:
    """Whether these are neurons with a threshold of their own; a Threshold stands for a pool."""
    return isinstance(node, nir.LIF | nir.IF | nir.CubaLIF)


def leaves_open(node: nir.ir.NIRNode, dt: float) -> bool:
    """Whether a spike of these neurons resets v, and the node does not say how.

    It does not matter to neurons that forget v in every step (tau = ``dt``).
    """
    if not fires(node) or "reset" in node.metadata:
        return False
    return not (isinstance(node, nir.LIF) and np.all(node.tau == dt))


def with_reset(
    nodes: Nodes, reset: Reset | None, dt: float, ours: bool
) -> dict[str, nir.ir.NIRNode]:
    """``nodes``, those that leave their reset open with the one that the user said.

    Raises InputError where none does.
    """
    if reset is None:
        return dict(nodes)
    found = [] if ours else [name for name, node in nodes.items() if leaves_open(node, dt)]
    if not found:
        what = f"{reset}, but the file states the reset of all its populations"
        raise InputError(Problem("--reset", what, "omit it"))
    made: dict[str, nir.ir.NIRNode] = dict(nodes)
    for name in found:
        made[name] = copy.copy(nodes[name])
        made[name].metadata = {**nodes[name].metadata, "reset": reset}
    return made


def records(
    nodes: Nodes,
    lowered: Nodes,
    *,
    dt: float | None,
    reset: Reset | None,
    timesteps: int,
    steps_from: Origin,
    ours: bool,
    step: float | None = None,
    spikes: Spikes | None = None,
    tool: Tool | None = None,
) -> tuple[ReadAs, ...]:
    """How the populations of a graph ``lowered`` were read from ``nodes``, as they stand in the file.

    ``dt``, ``reset``, ``spikes`` and ``tool``, which wrote the file, are what the user said; None: nothing.
    ``step`` is the dt that they were read by. What follows from the tool counts as said by its file, and that
    neurons send one spike too where their weights leave no room for several.
    """
    step = dt if step is None else step
    prefix = "" if tool is None else f"{tool}."
    nobody: Origin = "file" if ours or tool is not None else "assumed"
    made = []
    for name, node in nodes.items():
        if type(node) not in NEURONS or type(lowered.get(name)) not in NEURONS:
            continue
        said: Origin = "file"
        if not ours and leaves_open(node, G.DT if step is None else step):
            said = nobody if reset is None else "option"
        origin: dict[Property, Origin] = {
            "reset": said,
            "when": said,
            "dt": nobody if dt is None else "option",
            "timesteps": steps_from,
            "spikes": SPIKES.get(spikes, nobody),
        }
        made.append(
            record(
                name,
                decode(lowered[name]),
                f"{prefix}{type(node).__name__}",
                timesteps,
                origin,
                v_reset=getattr(node, "v_reset", 0.0),
                dt=(G.DT if step is None else step) if _takes_time(node) else None,
            )
        )
    return tuple(made)


def _takes_time(node: Any) -> bool:
    """Whether neurons have something that ``dt`` is multiplied with."""
    counts = isinstance(node, nir.IF | nir.I) and np.all(np.asarray(node.r) == 1)
    return not (counts or isinstance(node, nir.Threshold))
