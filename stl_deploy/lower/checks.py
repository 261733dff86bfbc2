"""Which float populations can become integer ones: all problems of a network at once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from stl_deploy.errors import LoweringError, Problem
from stl_deploy.ir.float_neurons import Float, FloatNeurons
from stl_deploy.ir.floats import FloatNetwork, FloatPopulation
from stl_deploy.ir.units import DECAY_ONE, FORGETS, MAX_STEPS
from stl_deploy.lower import rules

NAMED = 5  # neurons that a message lists before it says "..."
GAIN = {"lif": "r * dt / tau", "if": "r * dt", "cuba": "w_in * dt / tau_syn * r * dt / tau_mem"}
KNOWN = (
    "what can be lowered is convolution or linear -> LIF, IF or CubaLIF, and max pooling of spikes"
)


def check(network: FloatNetwork) -> None:
    """Raise LoweringError naming everything of ``network`` that no integer network can have."""
    problems = [
        problem for population in network.populations for problem in _problems(network, population)
    ]
    problems += [
        Problem(
            connection.name,
            f"delays by {connection.delay} steps; no sample has more than {MAX_STEPS}",
            "shorten the delay",
        )
        for connection in network.connections
        if connection.delay > MAX_STEPS
    ]
    if problems:
        raise LoweringError(problems)


def decays(neurons: FloatNeurons) -> tuple[Float, Float]:
    """The decay constants du and dv, whole numbers, broadcastable to the neurons."""
    du = np.clip(np.rint(DECAY_ONE * neurons.current) - 1, 0, FORGETS)
    # dv = 0 would be no leak, which an IF has, and 4096 does not fit 12 bits; what rounding changes is
    # reported.
    leaky = np.clip(np.rint(DECAY_ONE * neurons.step), 1, FORGETS)
    dv = np.where(neurons.step == 0, 0, leaky)
    return du, dv


def _problems(network: FloatNetwork, population: FloatPopulation) -> Iterator[Problem]:
    windows = [c.way for c in network.into(population.name) if c.way.kind == "window"]
    if population.neurons.has_state and not windows:
        yield from _of_neurons(network, population)
    elif not network.pools(population.name):
        yield from _of_form(network, population)


def _of_form(network: FloatNetwork, population: FloatPopulation) -> Iterator[Problem]:
    """Why a population is neither neurons behind weights nor a pool."""
    into, neurons = network.into(population.name), population.neurons
    way = into[0].way if len(into) == 1 and not into[0].delay else None
    if way is not None and way.kind == "window" and not neurons.has_state:
        if not way.tiles:
            yield Problem(way.name, "pooling windows overlap or are padded")
        else:
            yield Problem(population.name, "does not fire as soon as one input of its window does")
    else:
        follows = " and ".join(c.name for c in into) or "nothing"
        yield Problem(population.name, f"a {neurons.kind} population follows {follows}; {KNOWN}")


def _of_neurons(network: FloatNetwork, population: FloatPopulation) -> Iterator[Problem]:
    """What neurons behind weights cannot have."""
    neurons, name = population.neurons, population.name
    if neurons.step.min() < 0 or neurons.step.max() > 1:
        yield _decay(name, "tau", neurons.step, "[0, 1]")
    if neurons.current.min() <= 0 or neurons.current.max() > 1:
        yield _decay(name, "tau_syn", neurons.current, "[0, 1)")
    if not neurons.total_gain.min() > 0:
        yield Problem(name, f"{GAIN[neurons.kind]} is not positive")
    yield from rules.problems(network, population)


def _decay(name: str, tau: str, share: Float, within: str) -> Problem:
    decay = 1 - share
    return Problem(
        name,
        f"decay 1 - dt/{tau} ranges from {decay.min():g} to {decay.max():g}; a decay lies in {within}",
        f"give every neuron a {tau} of at least one time step",
    )
