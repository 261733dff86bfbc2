"""Targets: name -> (module, function) that writes an integer network into a folder of its own."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from stl_deploy.errors import InputError, Problem
from stl_deploy.network import Diagnostic, IntegerNetwork

# ``nir`` has no writer of its own: model.nir is what every other target is made from.
TARGETS: dict[str, tuple[str, str] | None] = {
    "nir": None,
    "loihi": ("stl_deploy.exporters.loihi", "write"),
}


def check(targets: tuple[str, ...]) -> None:
    """Raise InputError for no target, or one that there is not."""
    if not targets:
        raise InputError(Problem("target", f"none given; there are {', '.join(sorted(TARGETS))}"))
    for target in targets:
        if target not in TARGETS:
            raise InputError(
                Problem("target", f"{target!r} is not one of {', '.join(sorted(TARGETS))}")
            )


def write(network: IntegerNetwork, target: str, folder: Path) -> tuple[Diagnostic, ...]:
    """Write ``network`` for ``target`` below ``folder``; what the user should know is returned.

    Raises LoweringError naming all problems.
    """
    check((target,))
    writer = TARGETS[target]
    if writer is None:
        return ()
    module, function = writer
    (folder / target).mkdir()
    notes: tuple[Diagnostic, ...] = getattr(import_module(module), function)(
        network, folder / target
    )
    return notes
