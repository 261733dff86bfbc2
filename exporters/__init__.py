"""Targets: name -> (module, function) that writes an integer network into a folder of its own."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from stl_deploy.errors import InputError, Problem
from stl_deploy.ir.network import IntegerNetwork
from stl_deploy.ir.notes import Diagnostic

if TYPE_CHECKING:
    import nir

# Which nodes model.nir is written in: those that say most, or also those that most readers know.
NirDialect = Literal["spec", "portable"]
# ``nir`` has no writer of its own: model.nir is what every other target is made from.
TARGETS: dict[str, tuple[str, str] | None] = {
    "nir": None,
    "loihi": ("stl_deploy.exporters.loihi", "write"),
    "onnx": ("stl_deploy.exporters.onnx", "write"),
}
# What a target needs beyond the base install: its packages, and the extra that brings them.
NEEDS: dict[str, tuple[tuple[str, ...], str]] = {"onnx": (("onnx",), "onnx")}


@dataclass(frozen=True, eq=False)
class Origin:
    """Where a network came from: the lowered float graph and the sha256 of the model's file."""

    graph: nir.NIRGraph | None = None
    source_sha256: str | None = None


def check(targets: tuple[str, ...]) -> None:
    """Raise InputError for no target, one that there is not, or one whose packages are missing."""
    if not targets:
        raise InputError(Problem("target", f"none given; there are {', '.join(sorted(TARGETS))}"))
    for target in targets:
        if target not in TARGETS:
            raise InputError(
                Problem("target", f"{target!r} is not one of {', '.join(sorted(TARGETS))}")
            )
        if target in NEEDS:
            require(f"target {target}", *NEEDS[target])


def require(where: str, packages: tuple[str, ...], extra: str) -> None:
    """Raise InputError naming ``extra`` unless all ``packages`` are installed."""
    if missing := [name for name in packages if find_spec(name) is None]:
        remedy = f"pip install 'stl-deploy[{extra}]'"
        raise InputError(Problem(where, f"needs the packages {', '.join(missing)}", remedy))


def write(
    network: IntegerNetwork, target: str, folder: Path, origin: Origin | None = None
) -> tuple[Diagnostic, ...]:
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
        network, folder / target, origin or Origin()
    )
    return notes
