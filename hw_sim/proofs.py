"""What no input can do to a population: the proofs by which the engine takes narrow integers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stl_deploy.chips import bounds
from stl_deploy.chips import facts as chips
from stl_deploy.ir.network import Connection, IntegerNetwork, Population
from stl_deploy.ir.units import DECAY_ONE, FORGETS, FRACTION_BITS

Int64 = NDArray[np.int64]

WORD = 1 << 31  # what integers of 32 bits do not reach
SHIFTS = np.iinfo(np.int64).bits  # no integer can be shifted by so many
MOST_EXP = 16  # bounds of sums times 2^exp stay within 64 bits up to here
KINDS = (np.dtype(np.int8), np.dtype(np.int16))  # of weights


def fits_32_bits(network: IntegerNetwork, connection: Connection) -> bool:
    """Whether no sum of what the source can send, and no part of one, can pass 32 bits before ``exp``."""
    known = connection.synapses.weight.dtype in KINDS and 0 <= connection.exp < SHIFTS
    return known and bounds.largest_sum(network, connection) < WORD


def total_fits_32_bits(network: IntegerNetwork, population: Population) -> bool:
    """Whether no sum over all connections into a population can pass 32 bits, ``exp`` included."""
    into = network.into(population.name)
    return sum(bounds.largest_sum(network, c) << c.exp for c in into) < WORD


def takes_the_plain_step(network: IntegerNetwork, population: Population, steps: int) -> bool:
    """Whether ``lanes.step`` does all that a population can need in so many steps."""
    neurons = population.neurons
    if neurons.has_current or not never_overflows(network, population, steps):
        return False
    if neurons.reset == "zero":
        return True
    _, up = bounds.voltage_range(network, population, steps)
    return int(up.max()) - (int(neurons.vth.min()) << FRACTION_BITS) < WORD


def never_overflows(network: IntegerNetwork, population: Population, steps: int) -> bool:
    """Whether no input of so many steps can bring a register to its limit, or past 32 bits.

    Such a population neither wraps nor saturates nor counts overflow.
    """
    chip, neurons = chips.of(network), population.neurons
    if not (_within(neurons.du, FORGETS) and _within(neurons.dv, DECAY_ONE)):
        return False
    if not all(0 <= c.exp <= MOST_EXP for c in network.into(population.name)):
        return False
    register = WORD if chip.state_limit is None else min(chip.state_limit, WORD)
    accumulator = register if chip.accumulator_limit is None else chip.accumulator_limit
    worst = _largest(bounds.one_sided_sums(network, population))
    if worst >= accumulator or worst << FRACTION_BITS >= register:
        return False
    current = _largest(bounds.current_range(network, population, steps))
    voltage = _largest(bounds.voltage_range(network, population, steps))
    return max(current, voltage, int(np.abs(neurons.bias).max())) < register


def _within(values: int | NDArray[np.int32], most: int) -> bool:
    return bool(np.min(values) >= 0 and np.max(values) <= most)


def _largest(span: tuple[Int64, Int64]) -> int:
    """The largest magnitude between lower bounds of at most and upper bounds of at least zero."""
    return max(-int(span[0].min()), int(span[1].max()))
