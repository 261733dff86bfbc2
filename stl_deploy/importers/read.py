"""Whatever file a user names as the model: to the lowered float graph, or to the integers it holds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nir

from stl_deploy.errors import InputError, Problem
from stl_deploy.formats import nir_io

if TYPE_CHECKING:
    from stl_deploy.importers.stl import Checkpoint
    from stl_deploy.ir.network import IntegerNetwork
    from stl_deploy.ir.notes import Diagnostic
from stl_deploy.importers.given import Given


@dataclass(frozen=True, eq=False)
class Model:
    """A model that was read: its lowered float ``graph``, None where the file holds integers.

    ``checkpoint`` is that of an STL-SNN, ``network`` that of a model.nir; ``notes`` are what the user should
    know of the import.
    """

    graph: nir.NIRGraph | None = None
    checkpoint: Checkpoint | None = None
    network: IntegerNetwork | None = None
    notes: tuple[Diagnostic, ...] = ()


def read(path: Path, given: Given) -> Model:
    """Read a checkpoint, a NIR file of any tool, or one that stl-export wrote.

    Raises InputError and LoweringError naming everything that is wrong.
    """
    if given.model_class is not None:
        from stl_deploy.importers.torch import net as torch_net

        _refuse(given, "NIR files", ("dt",))
        _refuse(given, "a state_dict of STL-SNN", ("tau",))
        graph, notes = torch_net.read(path, given.model_class, given)
        return Model(graph, notes=notes)
    if path.suffix == ".nir":
        return _nir(path, given)
    from stl_deploy.importers import stl
    from stl_deploy.lower.chain import lower

    _refuse(given, "NIR files of other tools", ("dt", "levels"))
    _refuse(given, "--model-class", ("sample_shape",))
    checkpoint = stl.read(path, given.tau, given.timesteps, given.classes)
    return Model(lower(stl.to_graph(checkpoint.arch, checkpoint.params)), checkpoint)


def _nir(path: Path, given: Given) -> Model:
    from stl_deploy.formats import float_nir as float_file
    from stl_deploy.formats import integer_nir as nir_file
    from stl_deploy.formats import portable_nir as nir_portable
    from stl_deploy.importers.nir import graph as nir_graph
    from stl_deploy.ir import nir_graph as G

    _refuse(given, "a state_dict", ("tau",))
    _refuse(given, "--model-class", ("sample_shape",))
    graph = nir_io.read(path)
    if nir_portable.KEY in graph.metadata:
        # It reads like any other graph, but its max pooling and thresholds are stand-ins.
        raise InputError(
            Problem(
                str(path),
                "is a portable file, written for other tools",
                "name the model.nir or model.float.nir that stl-export wrote beside it",
            )
        )
    if G.KEY not in graph.metadata:
        options = nir_graph.Options(
            dt=G.DT if given.dt is None else given.dt,
            timesteps=given.steps,
            classes=given.classes,
            levels=given.levels or 1,
        )
        lowered = nir_graph.read(path, options, graph)
        return Model(lowered, notes=nir_graph.notes(graph, options.dt))
    _refuse(given, "NIR files of other tools", ("dt",))
    if nir_file.holds_integers(graph):
        network = nir_file.from_nir(graph, str(path))
        steps, classes = network.timesteps, network.readout.classes
        _agree(path, given, timesteps=steps, classes=classes, levels=network.input_levels)
        return Model(network=network)
    graph = float_file.check(path, graph)
    meta = G.float_meta(graph)
    steps, classes = meta.timesteps, meta.classes
    _agree(path, given, timesteps=steps, classes=classes, levels=meta.input_levels)
    return Model(graph)


def _refuse(given: Given, what: str, names: tuple[str, ...]) -> None:
    """Raise InputError for options that this file has no use for."""
    problems = [
        Problem(f"--{name.replace('_', '-')}", f"goes with {what}", "leave it out")
        for name in names
        if getattr(given, name) is not None
    ]
    if problems:
        raise InputError(problems)


def _agree(path: Path, given: Given, **held: Any) -> None:
    """Raise InputError where an option contradicts what the file says."""
    problems = [
        Problem(f"--{name}", f"{getattr(given, name)}, but {path} says {value}", "leave it out")
        for name, value in held.items()
        if getattr(given, name) not in (None, value)
    ]
    if problems:
        raise InputError(problems)
