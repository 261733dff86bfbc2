"""What neurons need of a core: compartments, synapse memory, axons and profiles; and blocks that fit."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stl_deploy.chips.tables import Packing
from stl_deploy.ir import wiring
from stl_deploy.ir.network import Connection, IntegerNetwork, Population
from stl_deploy.ir.notes import Limit

Int64 = NDArray[np.int64]


def synapse_bits(packing: Packing, weight_bits: int, waits: bool = False) -> int:
    """Bits of one synapse; of one that ``waits`` with its delay."""
    delay = packing.delay_bits.value if waits else 0
    return weight_bits + delay + packing.tag_bits.value + packing.index_bits.value


def packed_bytes(packing: Packing, weight_bits: int, largest: int, waits: bool = False) -> Int64:
    """Bytes that an axon's n synapses on one core take, int64 [largest + 1] for n = 0..largest."""
    bits = synapse_bits(packing, weight_bits, waits)
    full, rest = np.divmod(np.arange(largest + 1), packing.synapses_per_entry.value)
    word, header = packing.word_bits.value, packing.entry_header_bits.value

    def words(n: Int64 | int) -> Int64:
        return np.asarray(-(-(n * bits + header) // word), np.int64)

    total = full * words(packing.synapses_per_entry.value) + np.where(rest > 0, words(rest), 0)
    return np.asarray(total * (word // 8), np.int64)


def ranges(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """(first, after the last) of each block."""
    ends = np.cumsum(sizes).tolist()
    return list(zip([0, *ends[:-1]], ends, strict=True))


def steps(network: IntegerNetwork, connection: Connection) -> int:
    """Steps that the synapses of ``connection`` wait; 0 where the depths of no chip serve the network."""
    return 0 if network.depth is None else network.waits(connection)


class _Source:
    """The synapses that lead from one source into a population: an axon for each of its neurons.

    An axon has entries of its own for each connection and each group of its synapses.
    """

    def __init__(
        self,
        network: IntegerNetwork,
        ways: Sequence[Connection],
        packing: Packing,
        order: Sequence[int] | None,
    ) -> None:
        self.name = ways[0].source
        self.shape = network.shape(self.name)
        target = network.by_name[ways[0].target]
        where = self.shape, target.shape, order
        alone = len(ways) == 1
        self.any = (
            wiring.of(ways[0].synapses, *where)
            if alone
            else wiring.together([way.synapses for way in ways], *where)
        )
        # The wiring of each group, the bytes of n of its synapses, and the bits of one.
        self.groups: list[tuple[wiring.Wiring, Int64, int]] = []
        for way in ways:
            form = way.bits, steps(network, way) > 0
            table = packed_bytes(packing, form[0], target.size, form[1])
            for group in way.groups():
                whole = alone and group is way
                held = self.any if whole else wiring.of(group.synapses, *where)
                self.groups.append((held, table, synapse_bits(packing, *form)))

    def needs(self, low: int, high: int) -> tuple[int, int]:
        """Bytes and axons of the synapses into neurons low..high-1."""
        counts = [held.counts(low, high) for held, _, _ in self.groups]
        memory = sum(
            int(table[n].sum()) for n, (_, table, _) in zip(counts, self.groups, strict=True)
        )
        # What the groups have is one axon all the same.
        union = counts[0] if len(counts) == 1 else self.any.counts(low, high)
        return memory, int(np.count_nonzero(union))


class Laid:
    """A population's neurons as they are laid onto cores, and what they need there, but for out-axons.

    With an ``order`` (of the neurons as numbered in ``wiring.py``) they are numbered in that.
    """

    def __init__(
        self,
        network: IntegerNetwork,
        population: Population,
        packing: Packing,
        order: Sequence[int] | None = None,
    ) -> None:
        self.network, self.population = network, population
        self.packing, self.order = packing, order
        into: dict[str, list[Connection]] = {}
        for connection in network.into(population.name):
            into.setdefault(connection.source, []).append(connection)
        self.sources = [_Source(network, ways, packing, order) for ways in into.values()]
        neurons = population.neurons
        self.vth = self.numbered(neurons.vth)
        # Before each neuron, the last one with the same decays, -1 where there is none.
        decays = [self.numbered(each) for each in neurons.decays.values()]
        together = np.unique(np.stack(decays, axis=1), axis=0, return_inverse=True)[1]
        self.same = _last_equal(together.reshape(-1))

    def numbered(self, values: ArrayLike) -> Int64:
        """``values``, broadcastable to the population's shape, of the neurons as they are numbered."""
        shape = self.population.shape
        flat = wiring.dealt(np.broadcast_to(np.asarray(values), shape), shape)
        return flat if self.order is None else flat[np.asarray(self.order)]

    def place(self, neuron: int) -> tuple[int, ...]:
        """Where a neuron is in the population's shape."""
        dealt = neuron if self.order is None else self.order[neuron]
        return wiring.coordinates(dealt, self.population.shape)

    @cached_property
    def bits(self) -> Int64:
        """Of the synapses into each neuron, int64 [neurons], without what packing adds."""
        total = np.zeros(self.population.size, np.int64)
        for source in self.sources:
            for held, _, bits in source.groups:
                total += held.fan_in() * bits
        return total

    @cached_property
    def alone(self) -> dict[Limit, Int64]:
        """What every neuron would need on a core of its own."""
        memory, axons = np.zeros((2, self.population.size), np.int64)
        for source in self.sources:
            axons += source.any.fan_in()
            for held, table, _ in source.groups:
                memory += held.fan_in() * table[1]
        ones = np.ones_like(axons)
        return {"compartments": ones, "synapse_bytes": memory, "in_axons": axons, "decays": ones}

    def needs(self, low: int, high: int) -> dict[Limit, int]:
        """What neurons low..high-1 need on one core, but for their thresholds."""
        each = [source.needs(low, high) for source in self.sources]
        return {
            "compartments": high - low,
            "synapse_bytes": sum(memory for memory, _ in each),
            "in_axons": sum(axons for _, axons in each),
            "decays": int(np.count_nonzero(self.same[low:high] < low)),
        }

    def thresholds(self, low: int, high: int) -> int:
        """How many distinct thresholds neurons low..high-1 have."""
        return len(np.unique(self.vth[low:high]))

    def reach(self, sizes: Sequence[int]) -> dict[str, Int64]:
        """How many of the cores with these blocks each neuron of each source reaches, in its shape."""
        found = {}
        for source in self.sources:
            found[source.name] = np.zeros(source.shape, np.int64)
            for low, high in ranges(sizes):
                source.any.mark(low, high, found[source.name])
        return found


class Demand:
    """What blocks of a population's neurons need, with those limits of a core that can be kept.

    ``limits`` are those of a core. ``reach`` [*shape] is how many cores each neuron reaches, the host
    included.
    """

    def __init__(self, laid: Laid, limits: Mapping[Limit, int], reach: Int64) -> None:
        self.laid, self.limits, self.reach = laid, limits, reach
        fan_out = laid.numbered(reach)
        self.alone: dict[Limit, Int64] = laid.alone | {"out_axons": fan_out}
        # A limit that a single neuron exceeds cannot be kept by any cut.
        self.held = {
            name: limits[name]
            for name, alone in self.alone.items()
            if name in limits and alone.max() <= limits[name]
        }
        self.out_axons = np.concatenate([[0], fan_out.cumsum()])
        self.bits = np.concatenate([[0], laid.bits.cumsum()])

    def needs(self, low: int, high: int) -> dict[Limit, int]:
        """What neurons low..high-1 need on one core, but for their thresholds."""
        out = int(self.out_axons[high] - self.out_axons[low])
        return self.laid.needs(low, high) | {"out_axons": out}

    def exceeded(self, low: int, high: int) -> list[Limit]:
        """The limits that neurons low..high-1 exceed on one core, of those that can be kept."""
        needs = self.needs(low, high)
        return [name for name, held in self.held.items() if needs[name] > held]

    def cut(self, low: int = 0, end: int | None = None, most: int | None = None) -> tuple[int, ...]:
        """Neurons low..end-1 in blocks, each the longest that the limits (and ``most``) allow."""
        sizes: list[int] = []
        end = self.laid.population.size if end is None else end
        while low < end:
            last = min(self._longest(low), end, low + (most or end))
            longer, too_long = range(low + 2, last + 1), partial(self._too_long, low)
            # Most blocks are about as long as the one before.
            sizes.append(1 + _first(longer, too_long, sizes[-1] - 1 if sizes else 0))
            low += sizes[-1]
        return tuple(sizes)

    def by_threshold(self, sizes: Sequence[int], over: int) -> tuple[Laid, tuple[int, ...]]:
        """The population by threshold, within stretches of about ``over`` of the blocks ``sizes``.

        Each stretch is cut into at least ``over`` blocks of one length, or into as many as give
        every distinct threshold a place.
        """
        vth, laid = self.laid.vth, self.laid
        stretches = [int(part.sum()) for part in np.array_split(sizes, max(1, len(sizes) // over))]
        order = np.concatenate(
            [low + np.argsort(vth[low:high], kind="stable") for low, high in ranges(stretches)]
        )
        by_vth = Laid(laid.network, laid.population, laid.packing, tuple(order.tolist()))
        demand = Demand(by_vth, self.limits, self.reach)
        found: list[int] = []
        for low, high in ranges(stretches):
            wanted = math.ceil(laid.thresholds(low, high) / self.limits["thresholds"])
            cores = min(max(over, len(sizes) // len(stretches)), wanted)
            found += demand.cut(low, high, math.ceil((high - low) / cores))
        return by_vth, tuple(found)

    def _longest(self, low: int) -> int:
        """An end that no block from ``low`` goes beyond, by sums alone: headers and padding add."""
        size = self.laid.population.size
        most = low + self.held.get("compartments", size)
        if "out_axons" in self.held:
            most = min(most, _last(self.out_axons, low, self.held["out_axons"]))
        if "synapse_bytes" in self.held:
            most = min(most, _last(self.bits, low, 8 * self.held["synapse_bytes"]))
        return min(most, size)

    def _too_long(self, low: int, high: int) -> bool:
        return bool(self.exceeded(low, high))


def _last(sums: Int64, low: int, held: int) -> int:
    """The last index where the running ``sums`` lie at most ``held`` above that at ``low``."""
    return int(np.searchsorted(sums, sums[low] + held, "right")) - 1


def _first(values: Sequence[int], holds: Callable[[int], bool], guess: int) -> int:
    """The index of the first of ``values`` for which something holds, their number where there is none.

    It holds for all behind that one. The search starts at the index ``guess`` and takes larger and larger
    strides from there, until it can bisect.
    """
    low, high, stride = 0, len(values), 1
    at = guess = min(guess, high)
    while at < high:
        if holds(values[at]):
            high = at
        else:
            low = at + 1
            at, stride = at + stride, 2 * stride
    at, stride = guess - 1, 1
    while low <= at:
        if holds(values[at]):
            high = at
            at, stride = at - stride, 2 * stride
        else:
            low = at + 1
    return bisect_left(values, True, low, high, key=holds)


def _last_equal(values: NDArray[np.integer]) -> Int64:
    """The index of the last equal value before each, int64 [n]; -1 where there is none."""
    order = np.argsort(values, kind="stable")
    last = np.full(len(values), -1, np.int64)
    equal = values[order[1:]] == values[order[:-1]]
    last[order[1:][equal]] = order[:-1][equal]
    return last
