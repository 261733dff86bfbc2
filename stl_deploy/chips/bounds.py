"""How far sums, currents and voltages of a population can go, over all inputs: static worst cases.

The sums are one-sided: everything that pulls a neuron up arrives at once, or everything that pulls it
down, over all connections, whatever their delays. Currents and voltages follow from them over T steps; a
decay keeps the order of two values (truncation toward zero never increases |x|). When the next step begins, a
voltage that did not spike is at most at its threshold, and one that did is what the reset leaves; where
nothing resets it, it adds up. As long as nothing passes a register, that is what the chip does.

Results are int64 and broadcast to the population's shape, as the parameters of neurons do: [C, 1, 1] where
nothing but the thresholds differs within a channel of a population [C, H, W]. What thresholds differ within
such a result is taken at its worst.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from stl_deploy.chips.arithmetic import decay, scaled
from stl_deploy.chips.facts import Chip
from stl_deploy.ir.network import Connection, IntegerNetwork, Population
from stl_deploy.ir.neurons import Each, Neurons, of_channels
from stl_deploy.ir.synapses import IntArray, Shape
from stl_deploy.ir.units import DECAY_BITS, DECAY_ONE, FORGETS, FRACTION_BITS

Int64 = NDArray[np.int64]


def one_sided_sums(
    network: IntegerNetwork, population: Population, port: int | None = None
) -> tuple[Int64, Int64]:
    """(smallest, largest) sum of what any input can make arrive in a step, with ``exp``.

    At the current ``port``, or over all connections, which bounds either.
    """
    low = high = np.zeros((1,) * len(population.shape), np.int64)
    for connection in network.into(population.name):
        if port not in (None, connection.port):
            continue
        least, most = network.span(connection.source)
        weight = connection.synapses.weight.astype(np.int64)
        up, down = (
            of_channels(connection.synapses.row_sums(side(weight, 0)), population.shape)
            for side in (np.maximum, np.minimum)
        )
        low = low + ((least * up + most * down) << connection.exp)
        high = high + ((most * up + least * down) << connection.exp)
    return low, high


def current_range(
    network: IntegerNetwork, population: Population, timesteps: int
) -> tuple[Int64, Int64]:
    """(lower, upper) bound of u, and of a second current, over ``timesteps`` steps."""
    found = [low_high for step in _currents(network, population, timesteps) for low_high in step]
    return _hull(found)


def voltage_range(
    network: IntegerNetwork, population: Population, timesteps: int, anywhere: bool = False
) -> tuple[Int64, Int64]:
    """(lower, upper) bound of v before the floor and the threshold, over ``timesteps`` steps.

    With ``anywhere`` it holds for thresholds anywhere between the population's lowest and highest.
    """
    neurons = population.neurons
    shape = _shape(network, population)
    vth = np.broadcast_to(neurons.vth, population.shape).astype(np.int64) << FRACTION_BITS
    wanted = (1,) * len(shape) if anywhere else shape
    lowest, highest = _within(vth, wanted, np.minimum), _within(vth, wanted, np.maximum)
    bias = neurons.bias if neurons.gain is None else np.zeros((), np.int64)
    zero = np.zeros(shape, np.int64)
    down, up = zero + neurons.v0, zero + neurons.v0
    worst_down, worst_up = np.minimum(down, 0), np.maximum(up, 0)
    q = zero, zero
    for currents in _currents(network, population, timesteps):
        low = decay(down, neurons.dv) + sum(least for least, _ in currents) + bias
        high = decay(up, neurons.dv) + sum(most for _, most in currents) + bias
        worst_down, worst_up = np.minimum(worst_down, low), np.maximum(worst_up, high)
        if neurons.floor is not None:
            low, high = np.maximum(low, neurons.floor), np.maximum(high, neurons.floor)
        resting = (down, up) if neurons.fires and neurons.hold else (low, low)
        down, up = low, high
        if neurons.fires:
            to = _reset(neurons, low, high, lowest, q[0])
            left = high if neurons.reset == "none" else np.minimum(high, highest + q[1])
            down = np.minimum(np.minimum(low, resting[0]), to[0])
            up = np.maximum(np.maximum(left, resting[1]), to[1])
        if neurons.adapts:
            q = _adapted(neurons, q)
    return worst_down, worst_up


def threshold_range(population: Population, timesteps: int) -> tuple[Int64, Int64]:
    """(lower, upper) bound of what is added to thresholds, over ``timesteps`` steps."""
    zero = np.zeros((1,) * len(population.shape), np.int64)
    q = zero, zero
    for _ in range(timesteps if population.neurons.adapts else 0):
        q = _adapted(population.neurons, q)
    return q


def excess(
    network: IntegerNetwork,
    population: Population,
    chip: Chip,
    timesteps: int,
    anywhere: bool = False,
) -> NDArray[np.float64]:
    """Worst case over limit of the registers of ``chip``, float64; above 1 it can overflow.

    ``anywhere``: see ``voltage_range``.
    """
    most: NDArray[np.float64] = np.zeros((1,) * len(population.shape))
    if chip.accumulator_limit is not None:
        for port in (0, 1):
            low, high = one_sided_sums(network, population, port)
            most = np.maximum(most, np.maximum(-low, high) / (chip.accumulator_limit - 1))
    if chip.state_limit is not None:
        for low, high in (
            current_range(network, population, timesteps),
            voltage_range(network, population, timesteps, anywhere),
            threshold_range(population, timesteps),
        ):
            most = np.maximum(most, np.maximum(-low, high) / (chip.state_limit - 1))
    return most


def largest_sum(network: IntegerNetwork, connection: Connection) -> int:
    """Largest |w @ s| that a connection brings any neuron, before its exponent.

    It is that of inputs of one sign for weights of one sign, and so of all partial sums.
    """
    weight = np.abs(connection.synapses.weight.astype(np.int64))
    levels = network.levels(connection.source)
    return levels * int(connection.synapses.row_sums(weight).max(initial=0))


def largest_state(network: IntegerNetwork, population: Population, timesteps: int) -> int:
    """A bound of every state, and of what arrives, over ``timesteps`` steps without registers.

    Coarser than the ranges above, and in Python's integers, which cannot overflow themselves. It holds for
    all rules of neurons.
    """
    n = population.neurons
    bias = _largest(n.bias)
    arriving = [bias if n.gain is not None else 0, 0]
    for c in network.into(population.name):
        arriving[c.port] += largest_sum(network, c) << (c.exp + FRACTION_BITS)
    gain = DECAY_ONE if n.gain is None else _largest(n.gain)
    a, a2 = (sum_ * gain >> DECAY_BITS for sum_ in arriving)
    kept_u, kept_u2 = (FORGETS - _least(du) for du in (n.du, n.du2))
    kept_v, kept_q = (DECAY_ONE - _least(decay) for decay in (n.dv, n.dq))
    # To subtract a threshold below zero adds to v; one that q lowered below zero leaves v down to q.
    added = max(0, -_least(n.vth)) << FRACTION_BITS if n.reset == "subtract" else 0
    if n.gain is None:
        added += bias
    u = u2 = q = 0
    v = max(map(_largest, (n.v0, n.v_reset, n.floor)))
    top = max(v, *arriving)
    for _ in range(timesteps):
        u = (u * kept_u >> DECAY_BITS) + a
        u2 = (u2 * kept_u2 >> DECAY_BITS) + a2
        v = max(v, (v * kept_v >> DECAY_BITS) + u + u2 + added, q)
        q = (q * kept_q >> DECAY_BITS) + _largest(n.adapt)
        top = max(top, u, u2, v, q)
    return top


def _largest(values: Each | IntArray | None) -> int:
    """The largest magnitude, 0 where there are none."""
    return 0 if values is None else max(abs(int(np.min(values))), abs(int(np.max(values))))


def _least(values: Each | None) -> int:
    """The lowest of ``values``, 0 where there are none."""
    return 0 if values is None else int(np.min(values))


def _currents(
    network: IntegerNetwork, population: Population, timesteps: int
) -> Iterator[list[tuple[Int64, Int64]]]:
    """(lower, upper) bound of u in each step, and of a second current where there is one.

    Zero lies between them, as a spike may set currents to it.
    """
    neurons = population.neurons
    decays = [neurons.du] if neurons.du2 is None else [neurons.du, neurons.du2]
    bias = np.zeros((), np.int64) if neurons.gain is None else neurons.bias
    arriving = []
    for port, add in zip(range(len(decays)), (bias, 0), strict=False):
        low, high = one_sided_sums(network, population, port)
        arriving.append(((low << FRACTION_BITS) + add, (high << FRACTION_BITS) + add))
    held = [(np.zeros_like(low), np.zeros_like(low)) for low, _ in arriving]
    for t in range(timesteps):
        for port, (du, (low, high)) in enumerate(zip(decays, arriving, strict=True)):
            if neurons.gain is not None:
                ends = scaled(low, neurons.gain[t]), scaled(high, neurons.gain[t])
                low, high = np.minimum(*ends), np.maximum(*ends)
            least, most = (decay(u, du + 1) for u in held[port])
            held[port] = np.minimum(least + low, 0), np.maximum(most + high, 0)
        yield list(held)


def _hull(ranges: Sequence[tuple[Int64, Int64]]) -> tuple[Int64, Int64]:
    """The range over several."""
    low, high = ranges[0]
    for least, most in ranges[1:]:
        low, high = np.minimum(low, least), np.maximum(high, most)
    return low, high


def _shape(network: IntegerNetwork, population: Population) -> Shape:
    """What the bounds of a population's states broadcast to."""
    n = population.neurons
    sums, _ = one_sided_sums(network, population)
    parameters = [n.bias, n.du, n.dv, n.v_reset, n.v0, n.adapt, n.dq]
    parameters += [given for given in (n.du2, n.floor) if given is not None]
    parameters += [] if n.gain is None else [n.gain[0]]
    return np.broadcast_shapes(sums.shape, *(np.shape(given) for given in parameters))


def _reset(
    neurons: Neurons, low: Int64, high: Int64, lowest: Int64, q: Int64
) -> tuple[Int64 | Each, Int64 | Each]:
    """(lower, upper) bound of what a spike leaves of v, which was between ``low`` and ``high``.

    ``lowest`` is that of the thresholds, ``q`` the lowest of what was added to them.
    """
    if neurons.reset == "none":
        return low, high
    if neurons.reset == "subtract":
        # A spike exceeds its threshold by more than what was added to that.
        return np.minimum(q, 0), np.maximum(high - lowest, 0)
    value = 0 if neurons.reset == "zero" else neurons.v_reset
    return value, value


def _adapted(neurons: Neurons, q: tuple[Int64, Int64]) -> tuple[Int64, Int64]:
    """(lower, upper) bound of what is added to thresholds, a step later."""
    low, high = (decay(value, neurons.dq) for value in q)
    return low + np.minimum(neurons.adapt, 0), high + np.maximum(neurons.adapt, 0)


def _within(values: IntArray, shape: Shape, side: np.ufunc) -> Int64:
    """The lowest or highest of ``values`` among those that share a value of ``shape``."""
    axes = tuple(axis for axis, size in enumerate(shape) if size < values.shape[axis])
    return np.asarray(side.reduce(values, axis=axes, keepdims=True), np.int64)
