"""``TARGETS``: what an integer network can be written for. A new target is a module and a line of it."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal, Protocol, cast

from stl_deploy.errors import InputError, Problem

if TYPE_CHECKING:
    from pathlib import Path

    import nir

    from stl_deploy.ir.network import IntegerNetwork
    from stl_deploy.ir.notes import Diagnostic

# Which nodes the network is written in: those that say most, or also those that most readers know, or those
# that py-spinnaker2 takes.
NirDialect = Literal["spec", "portable", "spinnaker2"]


@dataclass(frozen=True)
class Target:
    """What a network is written for.

    Attributes:
        carries: what its files are and who reads them, for ``--help``.
        module, function: what writes them (a ``Writer``), loaded when it is first needed; "" where
            model.nir, from which every other target is made, is all there is.
        packages, extra: what it needs beyond the base install, and the extra that brings them.
    """

    carries: str
    module: str = ""
    function: str = "write"
    packages: tuple[str, ...] = ()
    extra: str = ""


TARGETS: dict[str, Target] = {
    "nir": Target("model.nir alone"),
    "loihi": Target("files for Lava and netx", "stl_deploy.exporters.loihi"),
    "onnx": Target("ONNX models", "stl_deploy.exporters.onnx", packages=("onnx",), extra="onnx"),
}


@dataclass(frozen=True, eq=False)
class Origin:
    """Where a network came from: the lowered float graph and the sha256 of the model's file."""

    graph: nir.NIRGraph | None = None
    source_sha256: str | None = None


class Writer(Protocol):
    """The function of a target."""

    def __call__(
        self, network: IntegerNetwork, folder: Path, origin: Origin
    ) -> tuple[Diagnostic, ...]:
        """Write into ``folder``, which exists and is empty; what was left out is returned.

        Raises LoweringError with everything that the target cannot carry; nothing is written then.
        """


def check(targets: tuple[str, ...]) -> None:
    """Raise InputError for no target, an unknown one, or one whose packages are missing."""
    choose = f"choose from {', '.join(TARGETS)}"
    if not targets:
        raise InputError(Problem("target", "no target given", choose))
    if unknown := [target for target in targets if target not in TARGETS]:
        raise InputError(
            Problem("target", f"{target!r} is not a known target", choose) for target in unknown
        )
    problems = []
    for name in targets:
        entry = TARGETS[name]
        problems += lacking(f"target {name}", entry.packages, entry.extra)
    if problems:
        raise InputError(problems)


def lacking(where: str, packages: tuple[str, ...], extra: str) -> list[Problem]:
    """The packages that are not installed, as one problem that names ``extra``; none if all are."""
    missing = [name for name in packages if find_spec(name) is None]
    remedy = f"pip install 'stl-deploy[{extra}]'"
    return [Problem(where, f"needs the packages {', '.join(missing)}", remedy)] if missing else []


def write(
    network: IntegerNetwork, target: str, folder: Path, origin: Origin | None = None
) -> tuple[Diagnostic, ...]:
    """Write ``network`` for ``target`` below ``folder``; what the user should know is returned.

    Raises LoweringError naming all problems.
    """
    check((target,))
    entry = TARGETS[target]
    if not entry.module:
        return ()
    (folder / target).mkdir()
    writer = cast("Writer", getattr(import_module(entry.module), entry.function))
    return writer(network, folder / target, origin or Origin())
