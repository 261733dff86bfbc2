"""Whatever file a user names as the model: to the lowered float graph, or to the integers it holds."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

from stl_deploy.errors import InputError, Problem
from stl_deploy.importers import IMPORTERS, READ, Importer
from stl_deploy.importers.given import File, Given, Model

MARK = "reset_mechanism_val"  # a buffer of every neuron of snnTorch


def read(path: Path, given: Given) -> Model:
    """Read ``path`` by the first importer of the table that recognises it.

    Raises InputError and LoweringError naming everything that is wrong.
    """
    file = File(path, given)
    importer = of(file)
    if not file.is_nir and importer is not IMPORTERS["model-class"]:
        refuse_snntorch(path)
    _refuse(file.given, importer)
    model = importer.load()(file)
    return replace(
        model, takes=importer.options.union(READ) if model.network is None else frozenset()
    )


def of(file: File) -> Importer:
    """The first importer of the table that recognises a file. Raises InputError for a broken one."""
    return next(entry for entry in IMPORTERS.values() if entry.recognises(file))


def _refuse(given: Given, importer: Importer) -> None:
    """Raise InputError for options that this file has no use for."""
    unused = [
        field.name
        for field in fields(given)
        if field.name not in importer.options.union(READ) and getattr(given, field.name) is not None
    ]
    problems = []
    for name in unused:
        users = ", ".join(entry.what for entry in IMPORTERS.values() if name in entry.options)
        problems.append(Problem(f"--{name.replace('_', '-')}", f"goes with {users}", "omit it"))
    if problems:
        raise InputError(problems)


def refuse_snntorch(path: Path) -> None:
    """Raise InputError, with what is needed, where the names in a file are those of snnTorch's neurons."""
    if any(text.endswith(MARK) for text in File(path, Given()).strings):
        raise InputError(
            Problem(
                str(path),
                "is a state_dict of snnTorch: parameters, which do not say what the network computes",
                "name the class that it belongs to: --model-class MODULE:NAME, with --sample-shape "
                "(in Python from_torch(net, sample); docs/import-snntorch.md)",
            )
        )
