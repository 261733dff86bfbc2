"""Backend netx: ``network.net`` as stl-export writes it, read by lava-dl's netx and run on Lava."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from stl_deploy.backends import STALL_S, lava_env
from stl_deploy.backends.lava_worker import Arrays, Session
from stl_deploy.errors import LoweringError
from stl_deploy.exporters import loihi_layers, netx
from stl_deploy.files import write as write_file
from stl_deploy.ir.network import IntegerNetwork


def check(network: IntegerNetwork) -> None:
    """Raise LoweringError with everything that Lava or netx cannot carry."""
    if problems := [*loihi_layers.problems(network), *netx.problems(network)]:
        raise LoweringError(problems)


def set_up() -> None:
    """Make Lava's environment. Raises BackendError where that fails."""
    lava_env.python()


def session(network: IntegerNetwork, stall_s: float = STALL_S) -> Session:
    """``network`` ready to run. Raises LoweringError (see ``check``)."""
    check(network)
    return Session("netx", network, stage, unpack, stall_s)


def stage(network: IntegerNetwork, folder: Path) -> list[str]:
    """Write network.net and the script that has netx read it; script and arguments."""
    netx.write(network, folder)
    script = folder / "netx_network.py"
    source = resources.files("stl_deploy.exporters") / "templates" / script.name
    write_file(script, source.read_bytes())
    ((_, given),) = network.inputs.items()
    arguments = [
        str(folder / "network.net"),
        "--lowest",
        str(given.lowest),
        "--levels",
        str(given.levels),
    ]
    held = ["--hold", str(network.timesteps)] if given.held else []
    return [str(script), *arguments, *held]


def unpack(network: IntegerNetwork, found: Arrays) -> Arrays:
    """The trace of the populations: the worker gives that of each layer, by its number."""
    return netx.parts(network, found)
