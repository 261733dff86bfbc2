"""A NIR file as the rules look at it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import h5py
import nir
import numpy as np

from stl_deploy.errors import InputError, LoweringError, Problem
from stl_deploy.formats import integer_meta, nir_io
from stl_deploy.formats import integer_nir as nir_file
from stl_deploy.formats import integer_readout as readouts
from stl_deploy.formats import integer_rules as rules
from stl_deploy.formats import portable_nir as nir_portable
from stl_deploy.importers.nir import graph as nir_graph
from stl_deploy.ir import float_neurons
from stl_deploy.ir import nir_graph as G
from stl_deploy.ir.network import IntegerNetwork

NEURONS = (nir.IF, nir.LIF, nir.CubaLIF)
Kind = Literal[
    "integer", "portable integer", "spinnaker2 integer", "float", "portable float", "other"
]


@dataclass(frozen=True)
class File:
    """A graph and what its nodes do not say.

    Attributes:
        kind: what stl-export wrote it as; "other" for anything else.
        stored: by node, the names of its entries in the file.
        inexact: see ``nir_portable.inexact``.
        unsaid: by neurons, their rules that only the metadata say.
        scored: what only the metadata say of the readout.
        unchecked: why ``nir.read`` refuses the file unless told not to check types, else "".
        held: in how many steps the one frame of the input is read; 0 if each step has a frame of its own.
        network: the integer network of ``model.nir``.
    """

    path: Path
    graph: nir.NIRGraph
    kind: Kind = "other"
    stored: dict[str, frozenset[str]] = field(default_factory=dict)
    inexact: dict[str, str] = field(default_factory=dict)
    unsaid: dict[str, list[str]] = field(default_factory=dict)
    scored: tuple[str, ...] = ()
    unchecked: str = ""
    held: int = 0
    network: IntegerNetwork | None = None

    def nodes(self, *kinds: type) -> Iterator[tuple[str, Any]]:
        """(name, node) of every node of these kinds."""
        for name, node in self.graph.nodes.items():
            if isinstance(node, kinds):
                yield name, node

    @cached_property
    def _sources(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for source, target in self.graph.edges:
            found.setdefault(target, []).append(source)
        return found

    def into(self, name: str) -> list[str]:
        """The nodes with an edge to ``name``."""
        return self._sources.get(name, [])

    @property
    def inputs(self) -> list[str]:
        """The nodes of the input."""
        return [name for name, _ in self.nodes(nir.Input)]

    @property
    def starts(self) -> list[str]:
        """The nodes without an edge to them."""
        return [name for name in self.graph.nodes if not self.into(name)]

    @cached_property
    def recurrent(self) -> list[str]:
        """Recurrent nodes: there is a path from them back to themselves."""
        return G.on_cycles(list(self.graph.nodes), self.graph.edges)


def read(path: Path) -> File:
    """Read ``path`` as untrusted data. Raises InputError for a broken file, or one that is not NIR."""
    graph = nir_io.read(path)
    with h5py.File(path, "r") as file:
        group = file.get("node/nodes")
        stored = {
            name: frozenset(node)
            for name, node in (group.items() if isinstance(group, h5py.Group) else ())
            if isinstance(node, h5py.Group)
        }
    if not integer_meta.holds_integers(graph):  # whose loader checks more
        _check(graph, path)
    meaning = _meaning(graph, path)
    return File(path, graph, stored=stored, unchecked=_unchecked(path), **meaning)


def _check(graph: nir.NIRGraph, path: Path) -> None:
    """Raise InputError for a graph of which no tool could be said to run it right."""
    try:
        nir_graph.examine(graph)
    except InputError as error:
        problems = [replace(p, where=f"{path}: {p.where}") for p in error.problems]
        raise InputError(problems) from None
    except (ValueError, TypeError, AttributeError, IndexError, OverflowError) as error:
        # What shapes and types from a broken file can do to arithmetic on them.
        raise InputError(
            Problem(str(path), f"contains an invalid node: {error}", "write it again")
        ) from None


def _unchecked(path: Path) -> str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            nir.read(path)
    except Exception as error:  # whatever nir raises
        return str(error).splitlines()[0] if str(error) else type(error).__name__
    return ""


def _meaning(graph: nir.NIRGraph, path: Path) -> dict[str, Any]:
    """What the metadata make of ``graph``: fields of ``File``."""
    key = nir_portable.KEY
    try:
        meta = nir_portable.read_meta(graph)
        if meta is not None:
            dialect = meta.format.removeprefix("stl-deploy/")
            return {
                "kind": f"{dialect} {meta.of}",
                "inexact": meta.inexact,
                "unsaid": _unsaid(graph),
                "held": meta.timesteps * meta.held,
            }
        key = G.KEY
        if integer_meta.holds_integers(graph):
            network = nir_file.from_nir(graph, str(path))
            return {
                "kind": "integer",
                "inexact": nir_portable.inexact(network),
                "unsaid": {
                    p.name: said for p in network.populations if (said := rules.unsaid(p.neurons))
                },
                "scored": tuple(readouts.unsaid(network.readout)),
                "held": network.timesteps * any(port.held for port in network.inputs.values()),
                "network": network,
            }
        unsaid = _unsaid(graph)
        if G.KEY not in graph.metadata:
            return {"unsaid": unsaid}
        known = G.float_meta(graph)
        return {
            "kind": "float",
            "inexact": nir_portable.inexact_trained(graph),
            "unsaid": unsaid,
            "scored": () if known.readout is None else tuple(_scored(known.readout)),
            "held": known.timesteps * known.held,
        }
    except (ValueError, RecursionError) as error:
        raise InputError(Problem(f"{path}: metadata.{key}", f"is not valid: {error}")) from None
    except LoweringError as error:
        raise InputError([Problem(f"{path}: {p.where}", p.what) for p in error.problems]) from None


def _unsaid(graph: nir.NIRGraph) -> dict[str, list[str]]:
    """By neurons, what their metadata say of them. Raises ValueError for words that are not known."""
    with np.errstate(all="ignore"):  # a tau of 0 and the like
        found = {
            name: nir_portable.float_rules(float_neurons.decode(node))
            for name, node in graph.nodes.items()
            if type(node) in float_neurons.NEURONS
        }
    return {name: said for name, said in found.items() if said}


def _scored(read: G.Read) -> list[str]:
    given = {"steps": read.steps, "factors": read.factors}
    rule = [] if read.rule == "votes" else [read.rule]
    return rule + [name for name, values in given.items() if values is not None]
