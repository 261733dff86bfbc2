"""Backend lava: the network as Lava's process graph, ``lava_network.py`` as stl-export writes it."""

from __future__ import annotations

from pathlib import Path

from stl_deploy.backends import STALL_S, lava_env
from stl_deploy.backends.lava_worker import Arrays, Session
from stl_deploy.errors import LoweringError
from stl_deploy.exporters import lava, loihi_layers
from stl_deploy.ir.network import IntegerNetwork


def check(network: IntegerNetwork) -> None:
    """Raise LoweringError with everything that Lava cannot carry."""
    if problems := loihi_layers.problems(network):
        raise LoweringError(problems)


def set_up() -> None:
    """Make Lava's environment. Raises BackendError where that fails."""
    lava_env.python()


def session(network: IntegerNetwork, stall_s: float = STALL_S) -> Session:
    """``network`` ready to run. Raises LoweringError (see ``check``)."""
    check(network)
    return Session("lava", network, stage, unpack, stall_s)


def stage(network: IntegerNetwork, folder: Path) -> list[str]:
    """Write the process graph; the worker's script and arguments."""
    lava.write(network, folder)
    return [str(folder / "lava_network.py")]


def unpack(_network: IntegerNetwork, found: Arrays) -> Arrays:
    """The trace: the worker's names are those of the populations."""
    return found
