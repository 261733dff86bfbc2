"""Reading what stl-export wrote: ``model.nir``, its integers, and ``model.float.nir``."""

from __future__ import annotations

from stl_deploy.formats import float_nir, integer_nir
from stl_deploy.importers.given import File, Model
from stl_deploy.ir import nir_graph as G


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
    """The float graph. Raises InputError naming everything that is off."""
    graph = float_nir.check(file.path, file.graph)
    meta = G.float_meta(graph)
    file.agree(
        timesteps=meta.timesteps,
        classes=meta.classes,
        levels=meta.input_levels,
        signed=meta.signed,
        readout="votes" if meta.readout is None else meta.readout.rule,
    )
    return Model(graph)
