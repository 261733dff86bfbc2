"""Reading what stl-export wrote: ``model.nir``, its integers, and ``model.float.nir``."""

from __future__ import annotations

import nir

from stl_deploy.errors import InputError, Problem
from stl_deploy.formats import float_nir, integer_nir
from stl_deploy.importers.given import File, Model
from stl_deploy.ir import nir_graph as G
from stl_deploy.ir.read_as import Origin
from stl_deploy.ir.units import MAX_STEPS

# Who may have said T where another can be given later: nobody, or the raster of an export.
OPEN: frozenset[Origin] = frozenset({"assumed", "raster"})


def read_integers(file: File) -> Model:
    """The integer network. Raises InputError naming everything that is off."""
    network = integer_nir.from_nir(file.graph, str(file.path))
    file.agree(
        timesteps=network.timesteps,
        classes=network.readout.classes,
        levels=max(port.levels for port in network.inputs.values()),
        signed=any(port.signed for port in network.inputs.values()),
    )
    return Model(network=network)


def read_float(file: File) -> Model:
    """The float graph, with T of the user's where its own was not stated.

    Raises InputError naming everything that is off.
    """
    graph = float_nir.check(file.path, file.graph)
    meta = G.float_meta(graph)
    said = {who.origin.get("timesteps", "file") for who in meta.read_as}
    is_open = bool(said) and said <= OPEN
    file.agree(
        **({} if is_open else {"timesteps": meta.timesteps}),
        classes=meta.classes,
        levels=meta.input_levels,
        signed=meta.signed,
        readout="votes" if meta.readout is None else meta.readout.rule,
    )
    steps = file.given.steps if is_open else None
    return Model(graph if steps is None else _lasting(file, graph, steps))


def _lasting(file: File, graph: nir.NIRGraph, steps: int) -> nir.NIRGraph:
    """``graph`` with T = ``steps``. Raises InputError where something in it is of each step."""
    meta, who = G.float_meta(graph), file.given.steps_from
    if steps > MAX_STEPS:
        raise InputError(Problem("--timesteps", f"{steps} is not a whole number in 1..{MAX_STEPS}"))
    read_as = [
        r.model_copy(update={"timesteps": steps, "origin": {**r.origin, "timesteps": who}})
        for r in meta.read_as
    ]
    new = meta.model_copy(update={"timesteps": steps, "read_as": tuple(read_as)})
    made = nir.NIRGraph(graph.nodes, graph.edges, metadata={G.KEY: new.text()}, type_check=False)
    return float_nir.check(file.path, made)
