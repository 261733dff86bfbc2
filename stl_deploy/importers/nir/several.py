"""Neurons that may spike several times in a step, and by their weights never do.

Such neurons subtract their threshold as often as it fits into v. What is left is less than the threshold, so
that a step that adds less than twice the threshold takes away holds one spike at most:

    keep threshold + the most that arrives < 2 threshold

and the neurons are those that subtract once. Others have no counterpart in integers and are refused.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np
from numpy.typing import NDArray

from stl_deploy.errors import LoweringError, Problem
from stl_deploy.ir.floats import FloatConnection, FloatNetwork, FloatPopulation

Float = NDArray[np.float64]
REMEDY = (
    "train it with one spike a step (sinabs spike_fn=SingleSpike, Rockpool max_spikes_per_dt=1) and give "
    "--spikes one"
)


def check(network: FloatNetwork, names: Collection[str]) -> None:
    """Raise LoweringError naming those of ``names`` that may spike more than once in a step."""
    problems = [
        problem
        for population in network.populations
        if population.name in names
        for problem in _more_than_one(network, population)
    ]
    if problems:
        raise LoweringError(problems)


def _more_than_one(network: FloatNetwork, population: FloatPopulation) -> Iterator[Problem]:
    neurons = population.neurons
    threshold = np.broadcast_to(neurons.threshold, population.shape)
    arrives = np.broadcast_to(population.bias, population.shape).astype(np.float64)
    for c in network.into(population.name):
        arrives = arrives + _most(network, c).reshape(population.shape)
    if neurons.has_current:
        lasting = neurons.drive * np.maximum(arrives, 0)
        arrives = lasting / neurons.current
    rises = neurons.gain * arrives + neurons.leak
    room = (2 - neurons.keep) * threshold
    decays = np.all(neurons.keep >= 0) and np.all(neurons.current <= 1) and np.all(threshold > 0)
    over = rises - room
    if decays and (over < 0).all():
        return
    worst = int(np.argmax(over))
    what = (
        f"may spike several times in a step: neuron {worst} may rise by {rises.flat[worst]:.4g}, and one "
        f"spike a step is certain below {room.flat[worst]:.4g}"
    )
    yield Problem(population.name, what, REMEDY)


def _most(network: FloatNetwork, c: FloatConnection) -> Float:
    """The most that arrives [*target] over a connection in one step."""
    shape = network.inputs.get(c.source)
    low, high = 0.0, 1.0
    if shape is None:
        shape = network.by_name[c.source].shape
    elif network.meta is not None:
        high = float(network.meta.input_levels)
        low = -high if network.meta.signed else 0.0
    return c.way.most(shape, low, high)
