"""The float network run step by step in float64: what the float graph means.

The equation of the neurons is in ``float_neurons.py``; how populations and connections go together is that of
the integer network (``hw_sim/reference.py``).

Of a network that was ``trained`` on integers v is a multiple of 1/64 of a unit, and what a step leaves of
it is truncated to one, toward zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import nir
import numpy as np
from numpy.typing import NDArray

from stl_deploy.ir.floats import FloatConnection, FloatNetwork, FloatPopulation, decode
from stl_deploy.ir.units import DECAY_ONE, UNIT

Array = NDArray[Any]
Float = NDArray[np.float64]
Observe = Callable[[str, Float], None]


def run(
    graph: nir.NIRGraph | FloatNetwork,
    raster: Array | Mapping[str, Array],
    observe: Observe | None = None,
) -> dict[str, NDArray[np.uint8]]:
    """Spikes [N, T, *shape] of every population, in float64.

    Args:
        graph: a float network, or the lowered graph of one.
        raster: input [N, T, *input_shape], or one for each input by name; a frame that is held in every step
            may be given once.
        observe: called with (name of a population, what arrives at it over all connections, without the
            bias, [N, T, *shape]).

    Raises LoweringError naming every node that a float network cannot have.
    """
    network = graph if isinstance(graph, FloatNetwork) else decode(graph)
    given = raster if isinstance(raster, Mapping) else dict.fromkeys(network.inputs, raster)
    sent: dict[str, Array] = {
        name: _in_every_step(network, given[name].reshape(*given[name].shape[:2], *shape))
        for name, shape in network.inputs.items()
    }
    size = next(iter(sent.values())).shape[:2]
    found: dict[str, NDArray[np.uint8]] = {}
    for part in network.parts:
        runs = [_run_of(network, population, size) for population in part]
        for run_ in runs:
            found[run_.population.name] = sent[run_.population.name] = run_.spikes
        for run_ in runs:
            run_.hear(sent, [population.name for population in part])
        for t in range(size[1]):
            for run_ in runs:
                run_.spikes[:, t] = run_.step(t, sent)
        if observe is not None:
            for run_ in runs:
                observe(run_.population.name, run_.arrived)
    return {population.name: found[population.name] for population in network.populations}


def _in_every_step(network: FloatNetwork, given: Array) -> Array:
    """``given`` [N, T, ...], a frame that is held in as many steps as the network has."""
    meta = network.meta
    if meta is None or not meta.held or given.shape[1] != 1:
        return given
    return np.broadcast_to(given, (len(given), meta.timesteps, *given.shape[2:]))


class _Run:
    """A population on its way through the steps of all samples.

    ``arrived`` float64 [N, T, *shape] is what its connections bring, those from outside the part that it runs
    with before the first step, those ``within`` step by step.
    """

    def __init__(
        self, network: FloatNetwork, population: FloatPopulation, size: tuple[int, int]
    ) -> None:
        self.network, self.population = network, population
        self.arrived = np.zeros((*size, *population.shape))
        self.current = self.v = np.zeros((size[0], *population.shape))
        self.within: list[FloatConnection] = []
        self.spikes = np.zeros((*size, *population.shape), np.uint8)

    def hear(self, sent: Mapping[str, Array], part: Sequence[str]) -> None:
        """Add up what comes from outside ``part``, all steps at once."""
        samples, steps = self.arrived.shape[:2]
        for c in self.network.into(self.population.name):
            if c.source in part:
                self.within.append(c)
            elif c.delay < steps:
                early = sent[c.source][:, : steps - c.delay]
                x = early.reshape(-1, *early.shape[2:]).astype(np.float64)
                self.arrived[:, c.delay :] += c.way.apply(x).reshape(
                    samples, -1, *self.population.shape
                )

    def step(self, t: int, sent: Mapping[str, Array]) -> NDArray[np.bool_]:
        """The spikes of step ``t``, after those of the populations of the part that stand before it."""
        total = self.arrived[:, t]
        for c in self.within:
            if t >= c.delay:
                x = sent[c.source][:, t - c.delay].astype(np.float64)
                total += c.way.apply(x).reshape(total.shape)
        return self.fire(total + self.population.bias)

    def fire(self, total: Float) -> NDArray[np.bool_]:
        """The spikes where ``total`` arrives, bias included."""
        neurons = self.population.neurons
        if neurons.has_current:
            total = (1 - neurons.current) * self.current + neurons.drive * total
            self.current = total
        v = neurons.keep * self.v + neurons.gain * total + neurons.leak
        s: NDArray[np.bool_] = v > neurons.threshold
        subtract = neurons.reset == "subtract"
        self.v = np.where(s, v - neurons.threshold if subtract else neurons.v_reset, v)
        return s


class _Whole(_Run):
    """LIF neurons that were trained on integers; ``scale`` [C] is their unit."""

    def __init__(
        self,
        network: FloatNetwork,
        population: FloatPopulation,
        size: tuple[int, int],
        scale: Float,
    ) -> None:
        super().__init__(network, population, size)
        self.least = scale.reshape(-1, *[1] * (len(population.shape) - 1)) / UNIT

    def fire(self, total: Float) -> NDArray[np.bool_]:
        """See ``_Run``."""
        neurons = self.population.neurons
        kept = np.rint(DECAY_ONE * neurons.keep)
        # What comes in is a whole multiple of 64, but for the rounding of a sum of floats.
        v = np.trunc(self.v * kept / DECAY_ONE) + np.rint(neurons.gain * total / self.least)
        s: NDArray[np.bool_] = v * self.least > neurons.threshold
        self.v = np.where(s, 0, v)
        return s


def _run_of(network: FloatNetwork, population: FloatPopulation, size: tuple[int, int]) -> _Run:
    trained = network.trained
    if trained is None or not population.neurons.has_state:
        return _Run(network, population, size)
    return _Whole(network, population, size, np.array(trained.scale[population.name]))
