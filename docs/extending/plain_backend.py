"""A backend: every step in plain numpy, for one population after the other."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stl_deploy.backends import STALL_S, Backend, Steps
from stl_deploy.chips import facts as chips
from stl_deploy.errors import LoweringError
from stl_deploy.ir import kinds
from stl_deploy.ir.network import IntegerNetwork, Raster

NEURONS = ("lif", "or")
SYNAPSES = ("conv", "dense", "one_to_one", "sparse")


def check(network: IntegerNetwork) -> None:
    """Raise LoweringError for kinds that this backend does not know."""
    problems = []
    for population in network.populations:
        problems += kinds.unsupported(network, population, NEURONS, SYNAPSES, "backend plain")
    if problems:
        raise LoweringError(problems)


def set_up() -> None:
    """Nothing to prepare."""


def session(network: IntegerNetwork, _stall_s: float = STALL_S) -> Session:
    """``network`` ready to run."""
    check(network)
    return Session(network)


def decayed(x: NDArray[np.int64], constant: Any) -> NDArray[np.int64]:
    """x * (4096 - constant) / 4096, toward zero."""
    return np.sign(x) * ((np.abs(x) * (4096 - constant)) // 4096)


class Session:
    """A network in plain numpy. It has no registers, so it is right where nothing overflows."""

    def __init__(self, network: IntegerNetwork) -> None:
        self.network = network
        self.limit = chips.of(network).state_limit

    def run(self, raster: Raster, on_step: Steps | None = None) -> dict[str, NDArray[Any]]:
        """Run a raster [N, T, *shape], or one by input."""
        sent: dict[str, NDArray[Any]] = dict(self.network.rasters(raster))
        size = next(iter(sent.values())).shape[:2]
        u = {p.name: np.zeros((size[0], *p.shape), np.int64) for p in self.network.populations}
        v = {name: state.copy() for name, state in u.items()}
        found: dict[str, NDArray[Any]] = {}
        for p in self.network.populations:
            sent[p.name] = found[f"spikes/{p.name}"] = np.zeros((*size, *p.shape), np.uint8)
            found[f"u/{p.name}"] = np.zeros((*size, *p.shape), np.int64)
            found[f"v/{p.name}"] = np.zeros((*size, *p.shape), np.int64)
        for t in range(size[1]):
            for p in self.network.populations:
                name, n = p.name, p.neurons
                a = np.zeros((size[0], *p.shape), np.int64)
                for c in self.network.into(name):
                    if t >= c.delay:
                        now = sent[c.source][:, t - c.delay]
                        a += c.sums(now, self.network.levels(c.source)).reshape(a.shape)
                u[name] = decayed(u[name], n.du + 1) + 64 * a
                v[name] = decayed(v[name], n.dv) + u[name] + n.bias
                fires = v[name] > 64 * n.vth.astype(np.int64)
                left = v[name] - 64 * n.vth if n.reset == "subtract" else 0
                v[name] = np.where(fires, left, v[name])
                sent[name][:, t] = fires
                found[f"u/{name}"][:, t], found[f"v/{name}"][:, t] = u[name], v[name]
            if on_step is not None:
                on_step(t + 1)
        return found


ROW = {"plain": Backend("stl_deploy.backends.plain_backend", spreads=True)}
