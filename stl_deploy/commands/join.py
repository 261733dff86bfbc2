"""``stl-join``: several networks as one that decides by all their votes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stl_deploy.commands.common import (
    CheckpointOut,
    Debug,
    Force,
    Json,
    Tau,
    print_json,
    run,
    say,
    warn,
)
from stl_deploy.errors import InputError, Problem
from stl_deploy.files import check_distinct, check_writable, refuse_existing, sha256

if TYPE_CHECKING:
    from stl_deploy.importers.given import Checkpoint


def join(
    models: Annotated[
        list[Path],
        typer.Argument(
            metavar="MODEL", help="Checkpoints of one architecture, joint ones included."
        ),
    ],
    out: CheckpointOut,
    tau: Tau = None,
    timesteps: Annotated[
        int | None, typer.Option(min=1, help="T of an official state_dict. [default: 4]")
    ] = None,
    classes: Annotated[
        int | None,
        typer.Option(min=1, help="Classes of an official state_dict. [default: 10]"),
    ] = None,
    force: Force = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Join STL-SNNs into one network: they share the input, and each votes with its population.

    Example: stl-join a.pt b.pt c.pt -o joint.pt
    """
    from stl_deploy.formats.checkpoint import save_checkpoint
    from stl_deploy.models import joint
    from stl_deploy.models.net import from_params

    refuse_existing(out, replace=force)
    check_distinct(models, [out])
    check_writable(out)
    checkpoints = _read(models, tau, timesteps, classes)
    sources = [{"file": path.name, "sha256": sha256(path)} for path in models]
    merged = joint.join(checkpoints, [str(path) for path in models])
    if len({source["sha256"] for source in sources}) < len(sources):
        warn("a checkpoint that is given twice votes twice")
    save_checkpoint(from_params(merged.arch, merged.params), out, {"joint": sources}, replace=force)
    record: dict[str, Any] = {
        "out": str(out),
        "members": merged.arch.members,
        "classes": merged.arch.classes,
        "population": merged.arch.population,
        "timesteps": merged.arch.timesteps,
        "sources": sources,
    }
    if as_json:
        print_json(record)
    else:
        say(
            f"{out}: {merged.arch.members} members, {merged.arch.population} neurons vote for each of "
            f"{merged.arch.classes} classes"
        )


def _read(
    models: list[Path], tau: float | None, timesteps: int | None, classes: int | None
) -> list[Checkpoint]:
    """All ``models``. Raises InputError with the problems of all that cannot be read."""
    from stl_deploy.importers import stl

    read: list[Checkpoint] = []
    problems: list[Problem] = []
    for path in models:
        try:
            read.append(stl.read(path, tau, timesteps, classes))
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(dict.fromkeys(problems))
    return read


def main() -> None:
    """Entry point."""
    run(join, "stl-join")
