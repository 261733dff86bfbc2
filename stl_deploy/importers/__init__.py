"""Importers: a model file to a lowered float graph, or to the integers that it holds.

A further importer is a file with a function ``(File) -> Model`` and a line of ``IMPORTERS``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import cast

from stl_deploy.formats import integer_meta
from stl_deploy.importers.given import File, Model
from stl_deploy.importers.official import ANY, SYSTEMS, Official
from stl_deploy.ir.nir_graph import KEY

READ = "timesteps", "classes", "raster"  # what any importer has a use for
Reader = Callable[[File], Model]


@dataclass(frozen=True)
class Importer:
    """One kind of model file.

    Attributes:
        what: the files, in words.
        recognises: whether a file is one, no earlier entry of the table having recognised it.
        reader: ``module:function`` below this package, loaded when it is needed.
        options: the fields of ``Given`` that it has a use for, in addition to those that all have.
    """

    what: str
    recognises: Callable[[File], bool]
    reader: str
    options: frozenset[str] = frozenset()

    def load(self) -> Reader:
        """The function that reads a file."""
        module, _, function = self.reader.partition(":")
        return cast(Reader, getattr(import_module(f"{__name__}.{module}"), function))


def _official(system: Official) -> Importer:
    """The entry of a system whose official checkpoints are read."""
    return Importer(
        system.what,
        lambda file: system.recognises(file.strings),
        "official.read:read_model",
        frozenset({*ANY, *system.options} if not system.missing else ()),
    )


IMPORTERS: dict[str, Importer] = {
    "model-class": Importer(
        "--model-class",
        lambda file: file.given.model_class is not None,
        "torch.model_class:read_model",
        frozenset({"model_class", "sample_shape", "levels", "signed", "normalize"}),
    ),
    "integer": Importer(
        "model.nir",
        lambda file: file.is_nir and integer_meta.holds_integers(file.graph),
        "own:read_integers",
        frozenset({"levels", "signed"}),
    ),
    "float": Importer(
        "model.float.nir",
        lambda file: file.is_nir and KEY in file.graph.metadata,
        "own:read_float",
        frozenset({"levels", "signed", "readout"}),
    ),
    "nir": Importer(
        "NIR files of other tools",
        lambda file: file.is_nir,
        "nir.graph:read_model",
        frozenset(
            {"dt", "reset", "written_by", "spikes", "levels", "signed", "normalize", "readout"}
        ),
    ),
    "arrays": Importer(
        "weights.npy",
        lambda file: file.path.suffix == ".npy",
        "official.arrays:read_model",
        frozenset({"input_shape"}),
    ),
    **{name: _official(system) for name, system in SYSTEMS.items()},
    "stl": Importer(
        "a state_dict of STL-SNN",
        lambda file: True,
        "stl:read_model",
        frozenset({"tau"}),
    ),
}
