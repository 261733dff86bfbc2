"""What no input can do to a population: the proofs by which the engine takes narrow integers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stl_deploy.chips import bounds
from stl_deploy.chips import facts as chips
from stl_deploy.ir.network import Connection, IntegerNetwork, Population
from stl_deploy.ir.units import DECAY_BITS, DECAY_ONE, FORGETS, FRACTION_BITS

Int64 = NDArray[np.int64]

WORD = 1 << 31  # what integers of 32 bits do not reach
ROOM = WORD >> 2
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


def rules_fit_32_bits(network: IntegerNetwork, population: Population, steps: int) -> bool:
    """Whether the kernel of ``rules.py`` computes in 32 bits what the reference does in 64.

    Where a chip has registers, what passes 32 bits wraps in the reference too. What neither wraps there nor
    is kept in a register stays below ROOM, so that two of them can be added.
    """
    n, limit = population.neurons, chips.of(network).state_limit
    into = network.into(population.name)
    if not (_within(n.du, FORGETS) and _within(n.dv, DECAY_ONE)):
        return False
    if not all(0 <= c.exp <= MOST_EXP for c in into):
        return False
    sums = sum(bounds.largest_sum(network, c) << c.exp for c in into) << FRACTION_BITS
    arriving = sums + int(np.abs(n.bias).max())
    gain = DECAY_ONE if n.gain is None else int(np.abs(n.gain.astype(np.int64)).max())
    fields = (n.v0, n.v_reset, n.adapt, 0 if n.floor is None else n.floor)
    given = max(int(np.abs(np.asarray(values, np.int64)).max()) for values in fields)
    lowest = int(n.vth.min()) << FRACTION_BITS
    most = bounds.largest_state(network, population, steps) if limit is None else limit
    return max(arriving, arriving * gain >> DECAY_BITS, given, most, -lowest) < ROOM


def rules_never_overflow(network: IntegerNetwork, population: Population, steps: int) -> bool:
    """``never_overflows`` for neurons with any of the rules; not shown of those with a floor.

    The bounds are those of v above its floor, and registers saturate before.
    """
    limit = chips.of(network).state_limit
    if limit is None:
        return True
    if population.neurons.floor is not None:
        return False
    q = _largest(bounds.threshold_range(population, steps))
    return q < limit and never_overflows(network, population, steps)


def _within(values: int | NDArray[np.int32], most: int) -> bool:
    return bool(np.min(values) >= 0 and np.max(values) <= most)


def _largest(span: tuple[Int64, Int64]) -> int:
    """The largest magnitude between lower bounds of at most and upper bounds of at least zero."""
    return max(-int(span[0].min()), int(span[1].max()))
