"""Placement: which neurons lie on which core of a chip, under every limit of its file.

A core holds neurons of one layer. A layer is cut into contiguous blocks, each as long as the limits
allow, in the order of ``wiring.py``; cores are numbered in the order of layers and blocks, tiles and
chips are filled in that order. What a block needs:

- *compartments*: its neurons.
- *synapse memory*: every stored synapse on its own, also of a convolution (kernels are not shared),
  packed as ``[packing]`` of the chip's file says. Weights take the layer's ``weight_bits``.
- *in-axons*: one for each neuron before the layer, or of the layer itself, that has a synapse into the
  block.
- *out-axons*: one for each neuron of the block and core that it reaches, of the next layer or of its
  own; a neuron of the last layer has one more, to the host.
- *distinct thresholds*: counted but never the reason for a cut: thresholds of neighbouring neurons
  differ, so that a core would be left with a handful of them. Where the limit shall hold, neurons
  are laid onto cores in another order and thresholds are rounded (``lower/grouped.py``).

Out-axons depend on where the next layer's blocks end, so the last layer is placed first. Those of a
recurrent layer depend on its own blocks too: it is cut again, with as many as the cut before made
necessary, until a cut keeps to what it was made for.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from stl_deploy.chips.facts import Chip, Packing
from stl_deploy.errors import Problem
from stl_deploy.ir import wiring
from stl_deploy.ir.chain import Layer
from stl_deploy.ir.network import IntegerNetwork, Population
from stl_deploy.ir.notes import Diagnostic, LayerPlacement, Limit, Placement

LIMITS: tuple[Limit, ...] = get_args(Limit)
NAMES: dict[Limit, str] = {
    "compartments": "compartments",
    "synapse_bytes": "synapse memory",
    "in_axons": "in-axons",
    "out_axons": "out-axons",
    "thresholds": "distinct thresholds",
}
UNITS: dict[Limit, str] = NAMES | {"synapse_bytes": "bytes of synapse memory"}
Int64 = NDArray[np.int64]
_Blocks = tuple[Sequence[int], Sequence[int] | None]


def limits(chip: Chip) -> dict[Limit, int]:
    """What a core of ``chip`` holds; a limit that is not there is not limited, or not known."""
    facts = {name: getattr(chip.limits, f"{name}_per_core") for name in LIMITS}
    return {name: fact.value for name, fact in facts.items() if fact is not None}


def utilisation(placed: LayerPlacement, chip: Chip) -> dict[Limit, float]:
    """The fullest core's share of each limit; above 1 only for thresholds, or in ``beyond``."""
    return {name: placed.fullest[name] / held for name, held in limits(chip).items()}


def of(network: IntegerNetwork, chip: Chip) -> Placement | None:
    """The placement of ``network`` on ``chip``: the one it carries, or a new one."""
    if network.placement is not None and network.placement.chip == chip.name:
        return network.placement
    return place(network, chip)


def core_of(population: Population, placed: LayerPlacement) -> Int64:
    """Which core of a population, counted from 0, each neuron lies on: int64 [neurons] in C order."""
    dealt = np.empty(population.size, np.int64)
    for core, neurons in enumerate(by_core(placed, population.size)):
        dealt[neurons] = core
    return wiring.undealt(dealt, population.shape).reshape(-1)


def place(
    network: IntegerNetwork, chip: Chip, stretch: Mapping[str, int] | None = None
) -> Placement | None:
    """Place ``network`` on ``chip``; None where the chip has no cores (``ideal``).

    Where a single neuron needs more than a core holds, ``beyond`` says so, and its layer is placed
    without that limit. Layers with a ``stretch`` above 1 are laid onto cores by threshold: sorted
    within stretches that take about so many cores.
    """
    return _placement(network, chip, None, stretch)


def rebuild(network: IntegerNetwork, chip: Chip, blocks: Mapping[str, _Blocks]) -> Placement | None:
    """The placement with these blocks (neurons a core) of each layer, and their order.

    Raises:
        ValueError: blocks that do not cover a layer's neurons once, or need more than a core holds.
    """
    strict = network.lowering == "grouped"
    for layer in network.layers:
        _check_blocks(layer, *blocks[layer.name])
    placement = _placement(network, chip, blocks)
    for name, placed in () if placement is None else placement.layers.items():
        for limit, held in limits(chip).items():
            if (strict or limit != "thresholds") and placed.fullest[limit] > held:
                raise ValueError(
                    f"{name}: a core needs {placed.fullest[limit]:,} {UNITS[limit]} and "
                    f"{chip.name} holds {held:,}"
                )
    return placement


def again(network: IntegerNetwork, chip: Chip, placed: Placement) -> Placement | None:
    """``placed`` once more, for a ``network`` with other thresholds."""
    blocks = {name: (on.blocks, on.order) for name, on in placed.layers.items()}
    return _placement(network, chip, blocks)


def by_core(placed: LayerPlacement, neurons: int) -> list[Int64]:
    """The neurons on each core of a layer, as numbered in the order of ``wiring.py``."""
    order = np.arange(neurons) if placed.order is None else np.asarray(placed.order)
    return np.split(order, np.cumsum(placed.blocks)[:-1])


def _check_blocks(layer: Layer, sizes: Sequence[int], order: Sequence[int] | None) -> None:
    """Raise ValueError unless ``sizes`` and ``order`` cover the neurons of ``layer`` once."""
    if sum(sizes) != layer.neurons or min(sizes) < 1:
        raise ValueError(
            f"{layer.name}: blocks of {sum(sizes):,} neurons for a layer of {layer.neurons:,}"
        )
    if order is None:
        return
    if not np.array_equal(np.sort(np.asarray(order)), np.arange(layer.neurons)):
        raise ValueError(f"{layer.name}: its order does not name each neuron once")


def _placement(
    network: IntegerNetwork,
    chip: Chip,
    blocks: Mapping[str, _Blocks] | None,
    stretch: Mapping[str, int] | None = None,
) -> Placement | None:
    per_chip, per_tile = chip.limits.cores_per_chip, chip.limits.cores_per_tile
    if per_chip is None or per_tile is None or chip.packing is None:
        return None
    # To the host each neuron of the last layer goes once.
    reach = np.ones(network.layers[-1].shape, np.int64)
    found: list[tuple[_Demand, tuple[int, ...]]] = []
    for layer in reversed(network.layers):
        fan_out = wiring.dealt(reach, layer.shape)
        if blocks is None:
            over = (stretch or {}).get(layer.name, 1)
            demand, sizes = _cut(layer, chip, chip.packing, fan_out, over)
        else:
            sizes, order = blocks[layer.name]
            own = _own_reach(layer, sizes, order)
            demand = _Demand(layer, chip, chip.packing, fan_out + own, order)
        found.insert(0, (demand, tuple(sizes)))
        reach = demand.reach(sizes)
    layers: dict[str, LayerPlacement] = {}
    cores = 0
    for demand, sizes in found:
        layers[demand.layer.name] = demand.placed(cores, sizes)
        cores += len(sizes)
    return Placement(
        chip=chip.name,
        layers=layers,
        cores=cores,
        tiles=math.ceil(cores / per_tile.value),
        chips=math.ceil(cores / per_chip.value),
        beyond=tuple(
            problem
            for demand, _ in found
            for problem in demand.beyond(layers[demand.layer.name].fullest)
        ),
    )


def _cut(
    layer: Layer, chip: Chip, packing: Packing, fan_out: Int64, over: int
) -> tuple[_Demand, Sequence[int]]:
    """The blocks of a layer that reaches ``fan_out`` cores of the next one, and what they need."""
    assumed = np.zeros_like(fan_out)
    while True:
        demand = _Demand(layer, chip, packing, fan_out + assumed)
        sizes: Sequence[int] = demand.cut()
        if over > 1:
            demand, sizes = demand.by_threshold(sizes, over)
        own = _own_reach(layer, sizes, demand.order)
        if (own <= assumed).all():
            break
        assumed = np.maximum(assumed, own)
    if (own < assumed).any():
        demand = _Demand(layer, chip, packing, fan_out + own, demand.order)
    return demand, sizes


def _own_reach(layer: Layer, sizes: Sequence[int], order: Sequence[int] | None) -> Int64:
    """How many cores of its own layer, with these blocks, each neuron reaches, as they are dealt."""
    reach = np.zeros(layer.neurons, np.int64)
    if (own := wiring.own(layer, order)) is not None:
        for low, high in _ranges(sizes):
            own.mark(low, high, reach)
    return wiring.dealt(reach, layer.shape)


def synapse_bits(packing: Packing, weight_bits: int) -> int:
    """Bits of one synapse."""
    return (
        weight_bits + packing.delay_bits.value + packing.tag_bits.value + packing.index_bits.value
    )


def more_than_one_chip(
    placement: Placement, chip: Chip, fewer: str = "fewer --weight-bits"
) -> Diagnostic:
    """What a network needs that one ``chip`` does not hold, in numbers; ``fewer`` is what would help."""
    most, placed = max(placement.layers.items(), key=lambda item: item[1].cores)
    memory = sum(layer.total["synapse_bytes"] for layer in placement.layers.values())
    why = "" if placed.bound_by is None else f", bound by {NAMES[placed.bound_by]}"
    per_chip = chip.limits.cores_per_chip
    return Diagnostic(
        "placement",
        f"needs {placement.cores:,} cores with {memory / 2**20:,.1f} MiB of synapses, that is "
        f"{placement.chips:,} chips; one {chip.name} has {per_chip and per_chip.value} cores. Most "
        f"take the neurons of {most}: {placed.cores:,}{why}",
        f"for one chip, use fewer channels or neurons, or {fewer}",
    )


def packed_bytes(packing: Packing, weight_bits: int, largest: int) -> Int64:
    """Bytes that an axon's n synapses on one core take, int64 [largest + 1] for n = 0..largest."""
    bits = synapse_bits(packing, weight_bits)
    full, rest = np.divmod(np.arange(largest + 1), packing.synapses_per_entry.value)
    word, header = packing.word_bits.value, packing.entry_header_bits.value

    def words(n: Int64 | int) -> Int64:
        return np.asarray(-(-(n * bits + header) // word), np.int64)

    total = full * words(packing.synapses_per_entry.value) + np.where(rest > 0, words(rest), 0)
    return np.asarray(total * (word // 8), np.int64)


class _Demand:
    """What blocks of one layer's neurons need; ``fan_out`` are the cores that each neuron reaches.

    With an ``order`` the neurons are numbered in that.
    """

    def __init__(
        self,
        layer: Layer,
        chip: Chip,
        packing: Packing,
        fan_out: Int64,
        order: Sequence[int] | None = None,
    ) -> None:
        self.layer, self.chip, self.packing, self.order = layer, chip, packing, order
        self.in_order_fan_out = fan_out
        self.fan_out = fan_out if order is None else fan_out[np.asarray(order)]
        self.wiring, self.own = wiring.of(layer, order), wiring.own(layer, order)
        # An axon has entries of its own for each group of synapses, and is one axon all the same.
        self.groups = [(self.wiring, self.own)]
        if layer.weight_precision != "8":
            each = layer.groups()
            self.groups = [(wiring.of(one, order), wiring.own(one, order)) for one in each]
        self.bytes = packed_bytes(packing, layer.weight_bits, layer.neurons)
        self.synapse_bits = synapse_bits(packing, layer.weight_bits)
        self.out_axons = np.concatenate([[0], self.fan_out.cumsum()])
        self.synapses = np.concatenate([[0], self._fan_in(self.groups).cumsum()])
        self.vth = wiring.dealt(layer.vth, layer.shape)
        self.vth = self.vth if order is None else self.vth[np.asarray(order)]
        held = {name: n for name, n in limits(chip).items() if name != "thresholds"}
        # A limit that a single neuron exceeds cannot be kept by any cut.
        self.held = {name: n for name, n in held.items() if self.alone[name].max() <= n}

    @cached_property
    def alone(self) -> dict[Limit, Int64]:
        """What every neuron would need on a core of its own, but for its threshold."""
        fan_in = self._fan_in([(self.wiring, self.own)])
        return {
            "compartments": np.ones_like(fan_in),
            "synapse_bytes": self._fan_in(self.groups) * self.bytes[1],
            "in_axons": fan_in,
            "out_axons": self.fan_out,
        }

    def needs(self, low: int, high: int) -> dict[Limit, int]:
        """What neurons low..high-1 need on one core, but for their thresholds."""
        counts = [self._counts(*group, low, high) for group in self.groups]
        return {
            "compartments": high - low,
            "synapse_bytes": sum(int(self.bytes[n].sum()) for n in counts),
            "in_axons": int(np.count_nonzero(sum(counts[1:], counts[0]))),
            "out_axons": int(self.out_axons[high] - self.out_axons[low]),
        }

    @staticmethod
    def _counts(into: wiring.Wiring, own: wiring.Wiring | None, low: int, high: int) -> wiring.Int:
        """Synapses of each input, and of each neuron of the layer itself, into neurons low..high-1."""
        counts = into.counts(low, high).reshape(-1)
        return counts if own is None else np.concatenate([counts, own.counts(low, high)])

    @staticmethod
    def _fan_in(groups: Sequence[tuple[wiring.Wiring, wiring.Wiring | None]]) -> Int64:
        """Synapses of every neuron in these groups."""
        each = [into.fan_in() + (0 if own is None else own.fan_in()) for into, own in groups]
        return np.asarray(sum(each[1:], each[0]), np.int64)

    def exceeded(self, needs: Mapping[Limit, int]) -> list[Limit]:
        """The limits that ``needs`` exceed."""
        return [name for name, held in self.held.items() if needs[name] > held]

    def by_threshold(self, sizes: Sequence[int], over: int) -> tuple[_Demand, list[int]]:
        """The layer by threshold, within stretches of about ``over`` of the blocks ``sizes``.

        Each stretch is cut into at least ``over`` blocks of one length, or into as many as give
        every distinct threshold a place.
        """
        stretches = [int(part.sum()) for part in np.array_split(sizes, max(1, len(sizes) // over))]
        order = np.concatenate(
            [
                low + np.argsort(self.vth[low:high], kind="stable")
                for low, high in _ranges(stretches)
            ]
        )
        sorted_ = _Demand(
            self.layer, self.chip, self.packing, self.in_order_fan_out, tuple(order.tolist())
        )
        held = limits(self.chip)["thresholds"]
        found: list[int] = []
        for low, high in _ranges(stretches):
            distinct = len(np.unique(self.vth[low:high]))
            cores = min(max(over, len(sizes) // len(stretches)), math.ceil(distinct / held))
            found += sorted_.cut(low, high, math.ceil((high - low) / cores))
        return sorted_, found

    def cut(self, low: int = 0, end: int | None = None, most: int | None = None) -> tuple[int, ...]:
        """Neurons low..end-1 in blocks, each the longest that the limits (and ``most``) allow."""
        sizes: list[int] = []
        end = self.layer.neurons if end is None else end
        while low < end:
            last = min(self._longest(low), end, low + (most or end))
            # A longer block needs no less of anything, so the first that is too long can be bisected.
            longer = range(low + 2, last + 1)
            sizes.append(1 + bisect_left(longer, True, key=partial(self._too_long, low)))
            low += sizes[-1]
        return tuple(sizes)

    def _longest(self, low: int) -> int:
        """An end that no block from ``low`` goes beyond, by sums alone: headers and padding add."""
        most = low + self.held.get("compartments", self.layer.neurons)
        if "out_axons" in self.held:
            most = min(most, _last(self.out_axons, low, self.held["out_axons"]))
        if "synapse_bytes" in self.held:
            synapses = 8 * self.held["synapse_bytes"] // self.synapse_bits
            most = min(most, _last(self.synapses, low, synapses))
        return min(most, self.layer.neurons)

    def _too_long(self, low: int, high: int) -> bool:
        return bool(self.exceeded(self.needs(low, high)))

    def reach(self, sizes: Sequence[int]) -> Int64:
        """How many of the cores with these blocks each input neuron reaches, int64 of its shape."""
        reach = np.zeros(self.layer.input_shape, np.int64)
        for low, high in _ranges(sizes):
            self.wiring.mark(low, high, reach)
        return reach

    def placed(self, first_core: int, sizes: Sequence[int]) -> LayerPlacement:
        """The layer on cores with these blocks."""
        needs = [self.needs(low, high) for low, high in _ranges(sizes)]
        distinct = [len(np.unique(self.vth[low:high])) for low, high in _ranges(sizes)]
        reasons = Counter(
            name
            for low, high in list(_ranges(sizes))[:-1]
            for name in self.exceeded(self.needs(low, high + 1))
        )
        # Of limits that ended as many blocks, the first of LIMITS.
        most = sorted(reasons, key=lambda name: (-reasons[name], LIMITS.index(name)))
        fullest: dict[Limit, int] = {name: max(n[name] for n in needs) for name in needs[0]}
        return LayerPlacement(
            first_core=first_core,
            blocks=tuple(sizes),
            bound_by=most[0] if most else None,
            fullest=fullest | {"thresholds": max(distinct)},
            total={name: sum(n[name] for n in needs) for name in needs[0]},
            order=None if self.order is None else tuple(self.order),
        )

    def beyond(self, fullest: Mapping[Limit, int]) -> list[Problem]:
        """Neurons that no core can hold, limit by limit; ``fullest`` is what the fullest core needs."""
        problems = []
        for name, held in limits(self.chip).items():
            if name == "thresholds":
                continue
            if name in self.held:
                if fullest[name] > held:
                    problems.append(self._beyond_by_itself(name, fullest[name], held))
                continue
            alone = self.alone[name]
            worst = int(alone.argmax())
            worst = worst if self.order is None else self.order[worst]
            where = wiring.coordinates(worst, self.layer.shape)
            problems.append(
                Problem(
                    self.layer.name,
                    f"neuron {where if len(where) > 1 else where[0]} alone needs "
                    f"{int(alone.max()):,} {UNITS[name]}; a core of {self.chip.name} holds "
                    f"{held:,} (too few for {int((alone > held).sum()):,} of {alone.size:,} neurons)",
                    "use a --chip with larger cores, or a network with smaller layers",
                )
            )
        return problems

    def _beyond_by_itself(self, name: Limit, needed: int, held: int) -> Problem:
        """The problem of a layer that is cut into so many cores that it cannot reach them all."""
        return Problem(
            self.layer.name,
            f"is recurrent over {len(self.fan_out):,} neurons, for which a core needs {needed:,} "
            f"{UNITS[name]}; a core of {self.chip.name} holds {held:,}",
            "use a --chip with larger cores, or a smaller layer",
        )


def _ranges(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """(first, after the last) of each block."""
    ends = np.cumsum(sizes).tolist()
    return list(zip([0, *ends[:-1]], ends, strict=True))


def _last(sums: Int64, low: int, held: int) -> int:
    """The last index where the running ``sums`` lie at most ``held`` above that at ``low``."""
    return int(np.searchsorted(sums, sums[low] + held, "right")) - 1
