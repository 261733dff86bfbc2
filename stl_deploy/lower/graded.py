"""Values that neurons send instead of spikes: by how much they are shifted, and what one of them is worth."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stl_deploy.chips import bounds
from stl_deploy.chips.facts import Chip
from stl_deploy.errors import Problem
from stl_deploy.ir.float_neurons import FloatNeurons
from stl_deploy.ir.network import IntegerNetwork, Population
from stl_deploy.ir.neurons import MAX_SHIFT, Graded
from stl_deploy.ir.units import MAX_SIGNED, MAX_UNSIGNED, UNIT
from stl_deploy.lower import rules
from stl_deploy.lower.integers import with_neurons
from stl_deploy.lower.rows import Target

Float = NDArray[np.float64]
HEADROOM = 2.0  # the largest value that can be sent over the largest seen in calibration


def levels(chip: Chip) -> int:
    """The largest value that is sent: all of its 16 bits, or 8 where they add up in an accumulator."""
    return MAX_SIGNED if chip.accumulator_limit is None else MAX_UNSIGNED


def sending(
    network: IntegerNetwork, target: Target, chip: Chip, seen: float | None
) -> tuple[IntegerNetwork, Float, list[Problem]]:
    """``network``, of ``target`` alone, that sends values, and what one is worth in the float network.

    Args:
        network: without graded values.
        seen: the largest magnitude that the float population sent, None where there is no data.

    Returns:
        The network; the worth [1] or [neurons]; problems.
    """
    (population,) = network.populations
    most = levels(chip)
    largest = _largest(network)
    if seen is not None:
        least = worth(population, target.neurons, 0).min()
        largest = min(largest, HEADROOM * seen / float(least))
    shift, problems = 0, []
    while int(largest) >> shift > most:
        shift += 1
    if shift > MAX_SHIFT:
        what = f"sends values up to {largest:.3g}, which {MAX_SHIFT} bits of shift leave above {most:,}"
        problems = [Problem(target.name, what, "give --calib, or train with smaller values")]
        shift = MAX_SHIFT
    most = min(most, max(1, int(largest) >> shift))
    sent = with_neurons(network, graded=Graded(shift, most))
    return sent, worth(population, target.neurons, shift), problems


def excess(network: IntegerNetwork, chip: Chip) -> float:
    """The largest value of the only population over the largest that can be shifted to what is sent."""
    return _largest(network) / (levels(chip) << MAX_SHIFT)


def _largest(network: IntegerNetwork) -> float:
    """A bound of the magnitude of what the only population sends, before it is shifted."""
    (population,) = network.populations
    if population.neurons.fires:
        low, high = bounds.voltage_range(network, population, network.timesteps)
    else:
        low, high = bounds.one_sided_sums(network, population)
    return float(max(-low.min(), high.max(), 0))


def worth(population: Population, known: FloatNeurons, shift: int) -> Float:
    """What one of the values that ``population`` sends, shifted so far, is worth in float: [neurons or 1]."""
    if known.fires:
        unit = population.neurons.scale / UNIT
    else:
        unit = population.neurons.scale / (known.total_gain * rules.common_gain(known))
    found = np.broadcast_to(unit * 2.0**shift, population.shape).reshape(-1)
    return found[:1] if not np.ptp(found) else found
