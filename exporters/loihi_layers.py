"""What Lava and netx make of populations and connections, and what their registers hold.

Lava has no pooling, so the connection into a pool is a convolution of ones, a group a channel, and the pool
is LIF neurons that forget everything and fire above 0. The facts are those of lava-nc 0.10.0, in
lava/proc: lif/models.py, conv/models.py, conv/utils.py, dense/models.py, sparse/models.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from stl_deploy.chips import bounds, rules
from stl_deploy.chips import facts as chips
from stl_deploy.errors import Problem
from stl_deploy.ir import kinds, order, slices
from stl_deploy.ir.network import Connection, IntegerNetwork, Population
from stl_deploy.ir.synapses import Conv

# Lava's Conv keeps groups, kernel size, stride, padding and dilation as int8 and wraps larger ones.
CONV_INT8_MAX = 127
# Lava's Conv wraps its sums into 24 bits (conv/models.py, clamp_precision), the reference does not.
CONV_SUM_LIMIT = 1 << 23
# Lava's Dense and Sparse multiply graded spikes in int32 (dense/models.py, sparse/models.py).
DENSE_SUM_LIMIT = 1 << 31

# What Lava computes with, whatever a chip's file says: lava-nc 0.10.0, lava/proc/lif/models.py (u and v
# are int32 of precision 24, du and dv uint16 of precision 12, both shifted by 6 bits for the fraction)
ARITHMETIC: chips.Arithmetic = "loihi"
EXACTLY = {"fraction_bits": 6, "decay_bits": 12, "state_bits": 24}
# ... and the widest values that its LIF (the same file) and Dense and Conv (8 bits and a sign mode) take.
AT_MOST = {"weight_bits": 8, "threshold_bits": 17, "bias_mant_bits": 13, "bias_exp_bits": 3}

PROCESS_GRAPH = "use the process graph, lava_network.py"
FEWER_BITS = "quantize again with --overflow proven or fewer --weight-bits"


WHO = "Lava"
POPULATIONS = frozenset({"lif", "or"})


def where(connection: Connection) -> str:
    """A connection's place in a message."""
    return f"{connection.name} ({connection.source} to {connection.target})"


def merged_groups(conv: Conv) -> Conv:
    """The same convolution with at most 127 groups, zeros where groups were merged."""
    if conv.groups <= CONV_INT8_MAX:
        return conv
    return regrouped(conv, max(g for g in range(1, CONV_INT8_MAX + 1) if conv.groups % g == 0))


def regrouped(conv: Conv, groups: int) -> Conv:
    """The same convolution with ``groups``, which divides its own, and zeros where groups were merged."""
    if groups == conv.groups:
        return conv
    merged = conv.groups // groups
    outputs, inputs, kh, kw = conv.weight.shape
    weight = np.zeros((outputs, merged, inputs, kh, kw), conv.weight.dtype)
    old_group = np.arange(outputs) // (outputs // conv.groups)
    weight[np.arange(outputs), old_group % merged] = conv.weight
    return replace(conv, weight=weight.reshape(outputs, merged * inputs, kh, kw), groups=groups)


def problems(network: IntegerNetwork) -> list[Problem]:
    """What neither Lava nor netx can carry, the whole network at once."""
    chip, own = chips.load("loihi2"), chips.of(network)
    found: list[Problem] = []
    known = True
    # A network without registers runs as it is when it happens to fit those of the larger chip.
    if bounded := own.arithmetic != "unbounded":
        chip = own
        found += _arithmetic_problems(chip)
    for population in network.populations:
        if unknown := kinds.unsupported(
            network, population, POPULATIONS, SYNAPSES, WHO, kinds.TABLE
        ):
            found += unknown
            known = False
            continue
        found += _neuron_problems(population, chip)
        for connection in network.into(population.name):
            found += _weight_problems(connection, chip)
            found += SYNAPSES[connection.synapses.kind](network, connection)
        if not bounded:
            found += _state_problems(network, population, chip)
    if known:
        found += rules.refused(network)
    return found + list(_loop_problems(network))


def _loop_problems(network: IntegerNetwork) -> Iterator[Problem]:
    ways = [(c.source, c.target, c.delay) for c in network.connections]
    for loop in order.short_loops(list(network.by_name), ways):
        longer = f"lengthen the delay of {network.connections[loop.way].words} by {loop.missing}"
        what = f"{loop.what}; Lava takes a step for each hop"
        yield Problem(", ".join(loop.names), what, f"use --target onnx, or {longer}")


def _arithmetic_problems(chip: chips.Chip) -> Iterator[Problem]:
    """What of ``chip`` is not as Lava computes: its spikes would be those of other registers."""
    remedy = "quantize for --chip loihi1 or loihi2, or use --target onnx, which computes as the chip does"
    if chip.arithmetic != ARITHMETIC:
        what = f"arithmetic {chip.arithmetic!r}; Lava computes {ARITHMETIC!r}"
        yield Problem(f"chip {chip.name}", what, remedy)
    for name, bits in (EXACTLY | AT_MOST).items():
        fact: chips.Count | None = getattr(chip.registers, name)
        held = None if fact is None else fact.value
        if held == bits or (name in AT_MOST and held is not None and held < bits):
            continue
        value = "has no limit" if held is None else f"is {held}"
        rule = "computes with" if name in EXACTLY else "holds at most"
        yield Problem(f"chip {chip.name}", f"{name} {value}; Lava {rule} {bits}", remedy)


def _neuron_problems(population: Population, chip: chips.Chip) -> Iterator[Problem]:
    registers, neurons = chip.registers, population.neurons
    requantize = f"quantize for chip {chip.name}"
    decays, decay_remedy = (1 << registers.decay_bits.value) - 1, "use a decay that 12 bits hold"
    clamp = f"{requantize} with --clamp-thresholds"
    # Without a threshold vth means nothing.
    vth = neurons.vth if neurons.fires else 0
    for what, values, low, high, remedy in (
        ("threshold vth", vth, *chip.threshold_range, clamp),
        ("bias mantissa", neurons.bias_mant, *chip.bias_mant_range, requantize),
        ("bias exponent", neurons.bias_exp, 0, _field(registers.bias_exp_bits), requantize),
        ("current decay du", neurons.du, 0, decays, decay_remedy),
        ("voltage decay dv", neurons.dv, 0, decays, decay_remedy),
    ):
        yield from _outside(population.name, what, values, (low, high), chip, remedy)


def _weight_problems(connection: Connection, chip: chips.Chip) -> Iterator[Problem]:
    registers = chip.registers
    requantize, place = f"quantize for chip {chip.name}", where(connection)
    weights = slices.span(connection.precision, registers.weight_bits.value)
    exponents = 0, registers.weight_exp_max.value if registers.weight_exp_max else 0
    yield from _outside(place, "weight", connection.synapses.weight, weights, chip, requantize)
    yield from _outside(place, "weight exponent", connection.exp, exponents, chip, requantize)


def _outside(
    place: str, what: str, values: Any, within: tuple[int, int], chip: chips.Chip, remedy: str
) -> Iterator[Problem]:
    """The worst of ``values`` where some do not lie ``within`` a register."""
    array, (low, high) = np.asarray(values), within
    outside = array[(array < low) | (array > high)]
    if outside.size:
        count = f"{outside.size} of {array.size}, " if array.size > 1 else ""
        worst = outside.flat[np.argmax(np.abs(outside.astype(np.int64)))]
        what = f"{what} {worst} is outside {low}..{high} ({count}{chip.title})"
        yield Problem(place, what, remedy)


def _field(bits: chips.Count | None) -> int:
    """Largest value of an unsigned register."""
    return (1 << bits.value) - 1 if bits else 0


def _sum_problems(network: IntegerNetwork, connection: Connection) -> Iterator[Problem]:
    """Sums that leave the 32 bits of Lava's Dense and Sparse."""
    # What a group adds up is twice as large where signs are mixed (lava.py), and then shifted.
    most = max(
        2 * bounds.largest_sum(network, group) << (group.exp - connection.exp)
        for group in connection.groups()
    )
    if most >= DENSE_SUM_LIMIT:
        worst = bounds.largest_sum(network, connection)
        process = "Dense" if connection.synapses.kind == "dense" else "Sparse"
        what = f"a sum can reach {worst}; Lava's {process} adds in 32 bits"
        yield Problem(where(connection), what, FEWER_BITS)


def _conv_problems(network: IntegerNetwork, connection: Connection) -> Iterator[Problem]:
    conv: Any = connection.synapses
    for what, pair in (
        ("kernel", conv.weight.shape[2:]),
        ("stride", conv.stride),
        ("padding", conv.padding),
        ("dilation", conv.dilation),
    ):
        if max(pair) > CONV_INT8_MAX:
            limit = f"Lava's Conv counts to {CONV_INT8_MAX}"
            yield Problem(where(connection), f"{what} {tuple(pair)}: {limit}", "use a smaller one")
    worst = bounds.largest_sum(network, connection) << max(connection.exp, 0)
    if worst >= CONV_SUM_LIMIT:
        what = f"a sum can reach {worst}; Lava's Conv wraps at {CONV_SUM_LIMIT}"
        yield Problem(where(connection), what, FEWER_BITS)


def _state_problems(
    network: IntegerNetwork, population: Population, chip: chips.Chip
) -> Iterator[Problem]:
    """An ideal chip never overflows, Loihi's registers do: only what provably fits may go."""
    neurons, into = population.neurons, network.into(population.name)
    # Exponents and decays outside their fields are named as such.
    lowest = np.min(neurons.du), np.min(neurons.dv), neurons.bias_exp, *(c.exp for c in into)
    if chip.state_limit is None or min(lowest) < 0:
        return
    top = bounds.largest_state(network, population, network.timesteps)
    if top >= chip.state_limit:
        yield Problem(
            population.name,
            f"a state can reach {top}; {chip.title} holds {chip.state_limit - 1}",
            f"quantize for chip {chip.name}",
        )


# What Lava cannot carry of a connection, by the kind of its synapses; lava.py writes the same kinds.
SYNAPSES: dict[str, Callable[[IntegerNetwork, Connection], Iterator[Problem]]] = {
    "conv": _conv_problems,
    "dense": _sum_problems,
    "one_to_one": _sum_problems,
    "sparse": _sum_problems,
}
