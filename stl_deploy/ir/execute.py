"""The float network run step by step in float64: what the float graph means.

The equation of the neurons is in ``float_neurons.py``; how populations and connections go together is that of
the integer network (``hw_sim/reference.py``).

Of a network that was ``trained`` on integers every state is a multiple of 1/64 of a unit, and what a step
leaves of it is truncated to one, toward zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import nir
import numpy as np
from numpy.typing import NDArray

from stl_deploy.ir.float_neurons import FloatNeurons
from stl_deploy.ir.floats import FloatConnection, FloatNetwork, FloatPopulation, decode
from stl_deploy.ir.units import DECAY_ONE, UNIT

Array = NDArray[Any]
Float = NDArray[np.float64]
Observe = Callable[[str, Float], None]
# Called with (name of a population, step, v before a reset, the threshold that it must exceed), both
# [N, *shape] in the units of the graph; the threshold of neurons that cannot spike is infinite.
Watch = Callable[[str, int, Float, Float], None]


def run(
    graph: nir.NIRGraph | FloatNetwork,
    raster: Array | Mapping[str, Array],
    observe: Observe | None = None,
) -> dict[str, NDArray[Any]]:
    """What every population sends, [N, T, *shape]: spikes uint8, graded values float64.

    The arguments and errors are those of ``trace``.
    """
    return trace(graph, raster, observe).sent


@dataclass
class Ran:
    """What populations sent, and float64 [N, T, *shape] the v that each step left in the output."""

    sent: dict[str, NDArray[Any]] = field(default_factory=dict)
    v: Float = field(default_factory=lambda: np.zeros(0))


def trace(
    graph: nir.NIRGraph | FloatNetwork,
    raster: Array | Mapping[str, Array],
    observe: Observe | None = None,
    watch: Watch | None = None,
) -> Ran:
    """Run a float network in float64.

    Args:
        graph: a float network, or the lowered graph of one.
        raster: input [N, T, *input_shape], or one for each input by name; a frame that is held in every step
            may be given once.
        observe: called with (name of a population, what arrives at it over all connections, without the
            bias, [N, T, *shape]).
        watch: see ``Watch``.

    Raises LoweringError naming every node that a float network cannot have.
    """
    network = graph if isinstance(graph, FloatNetwork) else decode(graph)
    given = raster if isinstance(raster, Mapping) else dict.fromkeys(network.inputs, raster)
    sent: dict[str, Array] = {
        name: _in_every_step(network, given[name].reshape(*given[name].shape[:2], *shape))
        for name, shape in network.inputs.items()
    }
    size = next(iter(sent.values())).shape[:2]
    ran = Ran()
    for part in network.parts:
        runs = [_run_of(network, population, size) for population in part]
        for run_ in runs:
            run_.watched = watch is not None
            sent[run_.population.name] = run_.sent
            ran.sent[run_.population.name] = run_.sent
        for run_ in runs:
            run_.hear(sent, [population.name for population in part])
        for t in range(size[1]):
            for run_ in runs:
                run_.step(t, sent)
                if watch is not None:
                    v, threshold = run_.compared
                    watch(run_.population.name, t, v * run_.least, threshold * run_.least)
        if observe is not None:
            for run_ in runs:
                observe(run_.population.name, run_.arrived[0])
        for run_ in runs:
            if run_.voltages.size:
                ran.v = run_.voltages
    ran.sent = {population.name: ran.sent[population.name] for population in network.populations}
    return ran


def _in_every_step(network: FloatNetwork, given: Array) -> Array:
    """``given`` [N, T, ...], a frame that is held in as many steps as the network has."""
    meta = network.meta
    if meta is None or not meta.held or given.shape[1] != 1:
        return given
    return np.broadcast_to(given, (len(given), meta.timesteps, *given.shape[2:]))


class _Run:
    """A population on its way through the steps of all samples.

    ``arrived`` float64 [2, N, T, *shape] is what its connections bring to each current, those from outside
    the part that it runs with before the first step, those ``within`` step by step. ``neurons`` are those of
    the population in the units of the state, ``least`` is what 1 of these is in the graph's. Where it is
    ``watched``, ``compared`` are the v and the threshold of its last step.
    """

    least: Float | float = 1.0
    watched = False

    def __init__(
        self,
        network: FloatNetwork,
        population: FloatPopulation,
        size: tuple[int, int],
        neurons: FloatNeurons,
    ) -> None:
        self.network, self.population, self.neurons = network, population, neurons
        shape = (size[0], *population.shape)
        self.arrived = np.zeros((2, *size, *population.shape))
        self.current = self.current2 = np.zeros(shape)
        self.v = np.zeros(shape) if neurons.v0 is None else np.broadcast_to(neurons.v0, shape)
        self.moved = np.zeros(shape)
        self.rest = np.zeros(shape, np.int64)
        self.compared: tuple[Float, Float] = (self.v, self.v)
        self.within: list[FloatConnection] = []
        self.sent = np.zeros((*size, *population.shape), np.float64 if neurons.graded else np.uint8)
        self.voltages = np.zeros(self.sent.shape if population.name == network.output else 0)

    def hear(self, sent: Mapping[str, Array], part: Sequence[str]) -> None:
        """Add up what comes from outside ``part``, all steps at once."""
        samples, steps = self.arrived.shape[1:3]
        for c in self.network.into(self.population.name):
            if c.source in part:
                self.within.append(c)
            elif c.delay < steps:
                early = sent[c.source][:, : steps - c.delay]
                x = early.reshape(-1, *early.shape[2:]).astype(np.float64)
                self.arrived[c.port, :, c.delay :] += c.way.apply(x).reshape(
                    samples, -1, *self.population.shape
                )

    def step(self, t: int, sent: Mapping[str, Array]) -> None:
        """Step ``t``, after those of the populations of the part that stand before this one."""
        total = self.arrived[:, :, t]
        for c in self.within:
            if t >= c.delay:
                x = sent[c.source][:, t - c.delay].astype(np.float64)
                total[c.port] += c.way.apply(x).reshape(total[c.port].shape)
        first, second = total[0] + self.population.bias, total[1]
        neurons = self.population.neurons
        x = self.arriving(t, first, neurons.drive if neurons.has_current else None)
        y = None if neurons.drive2 is None else self.arriving(t, second, neurons.drive2)
        spikes = self.fire(x, y)
        self.sent[:, t] = total[0] if neurons.graded and not neurons.fires else spikes
        if self.voltages.size:
            self.voltages[:, t] = self.v * self.least

    def arriving(self, t: int, total: Float, drive: Float | None) -> Float:
        """What a current gains where ``total`` arrives in step ``t``; a ``drive`` of None is 1."""
        neurons = self.population.neurons
        if neurons.amplify is not None:
            total = total * neurons.amplify[t]
        return total if drive is None else drive * total

    def kept(self, state: Float, share: Float) -> Float:
        """What a step leaves of ``state``."""
        kept: Float = share * state
        return kept

    def fire(self, x: Float, y: Float | None) -> Array:
        """What is sent where the currents gain ``x`` and ``y``."""
        neurons = self.neurons
        if neurons.has_current:
            x = self.kept(self.current, 1 - neurons.current) + x
            self.current = x
        if neurons.current2 is not None and y is not None:
            self.current2 = self.kept(self.current2, 1 - neurons.current2) + y
            x = x + self.current2
        v = self.kept(self.v, neurons.keep) + neurons.gain * x + neurons.leak
        resting = self.rest != 0
        if resting.any():
            v = np.where(resting, self.v, v)
        if neurons.floor is not None:
            v = np.maximum(v, neurons.floor)
        threshold = neurons.threshold + self.moved
        s: NDArray[np.bool_] = (v > threshold) & ~resting & neurons.fires
        if self.watched:
            self.compared = v, np.where(resting | (not neurons.fires), np.inf, threshold)
        self._after(v, s)
        return np.where(s, v, 0.0) if neurons.graded else s

    def _after(self, v: Float, s: NDArray[np.bool_]) -> None:
        """The states after spikes ``s`` at voltages ``v``."""
        neurons = self.neurons
        to = {"zero": neurons.v_reset, "subtract": v - neurons.threshold, "none": v}[neurons.reset]
        self.v = np.where(s, to, v)
        if neurons.reset_current:
            self.current, self.current2 = (
                np.where(s, 0.0, x) for x in (self.current, self.current2)
            )
        if neurons.hold:
            left = np.where(self.rest > 0, self.rest - 1, self.rest)
            self.rest = np.where(s, neurons.hold, left)
        if neurons.adapt is not None:
            step = np.zeros(1) if neurons.adapt_step is None else neurons.adapt_step
            self.moved = self.kept(self.moved, 1 - step) + neurons.adapt * s


class _Whole(_Run):
    """Neurons that were trained on integers; states count 1/64 of ``scale`` [C], their unit."""

    def __init__(
        self,
        network: FloatNetwork,
        population: FloatPopulation,
        size: tuple[int, int],
        scale: Float,
    ) -> None:
        unit = scale.reshape(-1, *[1] * (len(population.shape) - 1))
        super().__init__(network, population, size, whole(population.neurons, unit))
        self.least = unit / UNIT

    def arriving(self, t: int, total: Float, drive: Float | None) -> Float:
        """See ``_Run``. What comes in is a whole multiple of 64, but for the rounding of a sum of floats."""
        neurons = self.population.neurons
        gain = neurons.gain if drive is None else neurons.gain * drive
        gained: Float = np.rint(gain * total / self.least)
        if neurons.amplify is None:
            return gained
        return np.asarray(np.trunc(gained * np.rint(DECAY_ONE * neurons.amplify[t]) / DECAY_ONE))

    def kept(self, state: Float, share: Float) -> Float:
        """See ``_Run``."""
        kept: Float = np.trunc(state * np.rint(DECAY_ONE * share) / DECAY_ONE)
        return kept


def whole(neurons: FloatNeurons, unit: Float) -> FloatNeurons:
    """``neurons`` with v, and all that counts it, in whole 1/64 of ``unit``; currents gain the same."""

    def steps(values: Float | None) -> Float | None:
        return None if values is None else np.rint(values / unit * UNIT)

    return replace(
        neurons,
        gain=np.ones(1),
        leak=np.zeros(1),
        threshold=UNIT * (np.ceil(neurons.theta / unit) - 1),
        v_reset=np.rint(neurons.v_reset / unit * UNIT),
        floor=steps(neurons.floor),
        v0=steps(neurons.v0),
        adapt=steps(neurons.adapt),
    )


def _run_of(network: FloatNetwork, population: FloatPopulation, size: tuple[int, int]) -> _Run:
    trained, neurons = network.trained, population.neurons
    if trained is None or not neurons.has_state:
        return _Run(network, population, size, neurons)
    return _Whole(network, population, size, np.array(trained.scale[population.name]))
