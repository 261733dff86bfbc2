"""``BACKENDS``: tools that run a network and are compared with the reference.

A new backend is a module, which offers what ``Module`` says, and a line of the table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, cast

from stl_deploy.errors import InputError, LoweringError, Problem
from stl_deploy.exporters import lacking

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stl_deploy.ir.network import IntegerNetwork, Raster

STALL_S = 600.0  # without any progress until a backend is ended
Steps = Callable[[int], None]


@dataclass(frozen=True)
class Backend:
    """Where a backend is and what it needs.

    Attributes:
        module: a ``Module``, loaded when the backend is first asked for.
        packages, extra: what it needs beyond the base install, and the extra that brings them.
        batch: samples that it runs at a time, at most; None for all, as far as memory allows.
        spreads: its batches may be worked on at once, by threads here or by a cluster's workers.
    """

    module: str
    packages: tuple[str, ...] = ()
    extra: str = ""
    batch: int | None = 25
    spreads: bool = False


BACKENDS: dict[str, Backend] = {
    "hw_sim": Backend("stl_deploy.backends.hw_sim", spreads=True),
    "lava": Backend("stl_deploy.backends.lava", batch=None),
    "netx": Backend("stl_deploy.backends.netx", batch=None),
    "onnx": Backend("stl_deploy.backends.onnx", ("onnx", "onnxruntime"), "onnx"),
}


class Session(Protocol):
    """A network ready to run."""

    def run(self, raster: Raster, on_step: Steps | None = None, /) -> dict[str, NDArray[Any]]:
        """Run whole numbers that the network's inputs read: [N, T, *shape], by name where there are several.

        ``on_step`` is called with the number of time steps done, where the backend knows it.

        Returns ``spikes/<layer>``, ``u/<layer>``, ``v/<layer>`` (after the reset) and the others of
        ``Lif.states`` [N, T, *shape], and ``bare/<layer>`` where spikes are computed in another way when
        nobody asks for states. ``prediction`` [N] is there where the tool scores classes itself. Raises
        BackendError where the tool fails.
        """


class Module(Protocol):
    """What the module of a backend offers."""

    def check(self, network: IntegerNetwork) -> None:
        """Raise LoweringError with everything that the backend cannot carry. Takes no time."""

    def set_up(self) -> None:
        """Prepare what takes long the first time, say an environment. Raises BackendError."""

    def session(self, network: IntegerNetwork, stall_s: float = STALL_S, /) -> Session:
        """``network`` ready to run; checks it. ``stall_s``: seconds without progress until it is ended."""


def load(name: str) -> Module:
    """The module of a backend. Raises InputError naming the extra where packages are missing."""
    entry = BACKENDS[name]
    if problems := lacking(f"backend {name}", entry.packages, entry.extra):
        raise InputError(problems)
    return cast("Module", import_module(entry.module))


def check(names: Sequence[str], network: IntegerNetwork) -> None:
    """Raise InputError for missing packages, else LoweringError for all that cannot be carried."""
    missing: list[Problem] = []
    refused: list[Problem] = []
    for name in names:
        try:
            load(name).check(network)
        except InputError as error:
            missing += error.problems
        except LoweringError as error:
            refused += error.problems
    if missing:
        raise InputError(missing)
    if refused:
        raise LoweringError(dict.fromkeys(refused))  # what lava and netx share is said once
