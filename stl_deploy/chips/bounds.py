"""How far sums, currents and voltages of a population can go, over all inputs: static worst cases.

The sums are one-sided: everything that pulls a neuron up arrives at once, or everything that pulls it
down, over all connections, whatever their delays. Currents and voltages follow from them over T steps; a
decay keeps the order of two values (truncation toward zero never increases |x|). Downwards v only decays.
Upwards, when the next step begins, a voltage that did not spike is at most vth << 6 and what adaptation adds;
one that did is what its reset leaves. Without a reset or a threshold, v is what it was. As long as nothing
passes a register, that is what the chip does.

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

    Of one current, or of either.
    """
    if port is None:
        ports = {c.port for c in network.into(population.name)} | {0}
        each = [one_sided_sums(network, population, port) for port in sorted(ports)]
        return _hull(each)
    low = high = np.zeros((1,) * len(population.shape), np.int64)
    for connection in network.into(population.name):
        if connection.port != port:
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
    """(lower, upper) bound of either current over ``timesteps`` steps."""
    steps = _currents(network, population, timesteps)
    return _hull([current for currents in steps for current in currents])


def voltage_range(
    network: IntegerNetwork, population: Population, timesteps: int, anywhere: bool = False
) -> tuple[Int64, Int64]:
    """(lower, upper) bound of v before the threshold, over ``timesteps`` steps.

    With ``anywhere`` it holds for thresholds anywhere between the population's lowest and highest.
    """
    down, up = _before_floor(network, population, timesteps, anywhere)
    floor = population.neurons.floor
    if floor is None:
        return down, up
    lowest = np.minimum(floor, np.minimum(population.neurons.v0, 0))
    return np.maximum(down, lowest), np.maximum(up, floor)


def _before_floor(
    network: IntegerNetwork, population: Population, timesteps: int, anywhere: bool
) -> tuple[Int64, Int64]:
    """The same before the floor, where v must already be within the register."""
    n = population.neurons
    sums, _ = one_sided_sums(network, population)
    gain = None if n.gain is None else n.gain[0]
    given = n.bias, n.du, n.dv, n.du2, n.dq, n.v0, n.v_reset, n.floor, n.adapt, gain
    shape = np.broadcast_shapes(sums.shape, *(np.shape(x) for x in given if x is not None))
    vth = np.broadcast_to(n.vth, population.shape).astype(np.int64) << FRACTION_BITS
    wanted = (1,) * len(shape) if anywhere else shape
    thresholds = _within(vth, wanted, np.minimum), _within(vth, wanted, np.maximum)
    down = up = np.zeros(shape, np.int64) + n.v0
    worst_down, worst_up = np.minimum(down, 0), np.maximum(up, 0)
    lowered = raised = np.zeros((), np.int64)  # bounds of q
    bias = n.bias if n.gain is None else 0
    for t, currents in enumerate(_currents(network, population, timesteps)):
        left_down, left_up = down, up
        if t and n.fires and n.reset != "none":
            left_down, left_up = _left(n, down, up, thresholds, (lowered, raised))
            lowered = decay(lowered, n.dq) + np.minimum(n.adapt, 0)
            raised = decay(raised, n.dq) + np.maximum(n.adapt, 0)
        down = decay(left_down, n.dv) + sum(low for low, _ in currents) + bias
        up = decay(left_up, n.dv) + sum(high for _, high in currents) + bias
        if n.hold:
            down, up = np.minimum(down, left_down), np.maximum(up, left_up)
        worst_down, worst_up = np.minimum(worst_down, down), np.maximum(worst_up, up)
        if n.floor is not None:
            down, up = np.maximum(down, n.floor), np.maximum(up, n.floor)
    return worst_down, worst_up


def _left(
    n: Neurons, down: Int64, up: Int64, thresholds: tuple[Int64, Int64], q: tuple[Int64, Int64]
) -> tuple[Int64, Int64]:
    """(lower, upper) bound of v after its reset, for those before it, of the threshold and of q; around 0."""
    lowest, highest = thresholds
    left = np.minimum(up, highest + q[1])
    down = np.minimum(down, 0)
    if n.reset == "subtract":
        left = np.maximum(left, up - lowest)
        down = np.minimum(down, q[0])
    if n.reset == "constant":
        left, down = np.maximum(left, n.v_reset), np.minimum(down, n.v_reset)
    return down, np.maximum(left, 0)


def threshold_range(population: Population, timesteps: int) -> tuple[Int64, Int64]:
    """(lower, upper) bound of what is added to thresholds, over ``timesteps`` steps."""
    n = population.neurons
    low = high = np.zeros((1,) * len(population.shape), np.int64)
    for _ in range(timesteps if n.adapts else 0):
        low = decay(low, n.dq) + np.minimum(n.adapt, 0)
        high = decay(high, n.dq) + np.maximum(n.adapt, 0)
    return low, high


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
        low, high = one_sided_sums(network, population)
        most = np.maximum(-low, high) / (chip.accumulator_limit - 1)
    if chip.state_limit is not None:
        for low, high in (
            current_range(network, population, timesteps),
            _before_floor(network, population, timesteps, anywhere),
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
    """(lower, upper) bound of each current in each step."""
    n = population.neurons
    decays = [n.du] if n.du2 is None else [n.du, n.du2]
    sums = [one_sided_sums(network, population, port) for port in range(len(decays))]
    found = [(np.zeros_like(low), np.zeros_like(low)) for low, _ in sums]
    for t in range(timesteps):
        for port, (du, sides) in enumerate(zip(decays, sums, strict=True)):
            low, high = (side << FRACTION_BITS for side in sides)
            if n.gain is not None:
                bias = n.bias if port == 0 else np.zeros((), np.int64)
                ends = [scaled(side + bias, n.gain[t]) for side in (low, high)]
                low, high = np.minimum(*ends), np.maximum(*ends)
            least, most = found[port]
            if n.reset_current:
                least, most = np.minimum(least, 0), np.maximum(most, 0)
            found[port] = decay(least, du + 1) + low, decay(most, du + 1) + high
        yield list(found)


def _hull(ranges: Sequence[tuple[Int64, Int64]]) -> tuple[Int64, Int64]:
    """The lowest and the highest of several bounds, and of 0."""
    low = high = np.zeros_like(ranges[0][0])
    for least, most in ranges:
        low, high = np.minimum(low, least), np.maximum(high, most)
    return low, high


def _within(values: IntArray, shape: Shape, side: np.ufunc) -> Int64:
    """The lowest or highest of ``values`` among those that share a value of ``shape``."""
    axes = tuple(axis for axis, size in enumerate(shape) if size < values.shape[axis])
    return np.asarray(side.reduce(values, axis=axes, keepdims=True), np.int64)
