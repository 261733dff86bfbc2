"""Backend hw_sim: the compiled engine that the command of that name runs."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stl_deploy.backends import STALL_S, Steps
from stl_deploy.errors import LoweringError
from stl_deploy.hw_sim.engine import Engine
from stl_deploy.ir import kinds
from stl_deploy.ir.network import IntegerNetwork, Raster

# What the engine has loops for. It leaves other kinds to the reference, which would be compared with itself.
NEURONS = ("lif", "or")
SYNAPSES = ("conv", "dense", "one_to_one", "sparse")


def check(network: IntegerNetwork) -> None:
    """Raise LoweringError naming every population of a kind that the engine does not compute."""
    problems = []
    for population in network.populations:
        problems += kinds.unsupported(network, population, NEURONS, SYNAPSES, "hw_sim", kinds.TABLE)
    if problems:
        raise LoweringError(problems)


def set_up() -> None:
    """Nothing: the engine compiles when it first runs."""


def session(network: IntegerNetwork, _stall_s: float = STALL_S) -> Session:
    """``network`` ready to run. Raises LoweringError (see ``check``)."""
    check(network)
    return Session(network)


class Session:
    """A network in the engine (a ``backends.Session``); several threads may run it at once."""

    def __init__(self, network: IntegerNetwork) -> None:
        self.engine = Engine(network)

    def run(self, raster: Raster, _on_step: Steps | None = None) -> dict[str, NDArray[Any]]:
        """Run a raster [N, T, *input_shape] twice: without states the engine takes other ways.

        Those are the ways of the command; their spikes are ``bare/<layer>``, and the predictions theirs.
        """
        bare, full = self.engine.run(raster), self.engine.run(raster, states=True)
        found: dict[str, NDArray[Any]] = {"prediction": bare.predictions}
        for name, did in full.layers.items():
            found[f"spikes/{name}"], found[f"bare/{name}"] = did.spikes, bare.layers[name].spikes
            found[f"u/{name}"], found[f"v/{name}"] = np.asarray(did.u), np.asarray(did.v)
            found |= {f"{state}/{name}": values for state, values in did.more.items()}
        return found
