"""Placement: which neurons lie on which core of a chip, under every limit of its file.

A core holds neurons of one population. A population is cut into contiguous blocks, each as long as the
limits allow, in the order of ``wiring.py``; cores are numbered in the order of populations and blocks,
tiles and chips are filled in that order. What a block needs:

- *compartments*: its neurons. Synapses that wait take room from them (``waiting_neurons`` in ``facts.py``).
- *synapse memory*: every stored synapse on its own, also of a convolution (kernels are not shared),
  packed as ``[packing]`` of the chip's file says. Weights take their connection's bits, and a delay
  where the connection leads over more hops than one.
- *in-axons*: one for each neuron, of any source, that has a synapse into the block. Several connections
  from one source share it; a population that is a source of its own is one more source.
- *out-axons*: one for each neuron of the block and core that it reaches, of any population; a neuron
  whose spikes are read out has one more, to the host.
- *distinct decays*: the decay constants of a neuron's states, taken together; a core holds a few of them.
- *distinct thresholds*: counted but never the reason for a cut: thresholds of neighbouring neurons
  differ, so that a core would be left with a handful of them. Where the limit shall hold, neurons
  are laid onto cores in another order and thresholds are rounded (``lower/grouped.py``).

Out-axons depend on where the blocks of the targets end, so populations are placed after those that they
lead to. Around a loop there is no such order: its populations are cut again, with as many as the cut
before made necessary, until a cut keeps to what it was made for.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from stl_deploy.chips.demand import Demand, Laid, ranges, steps
from stl_deploy.chips.facts import Chip
from stl_deploy.chips.tables import Packing
from stl_deploy.errors import Problem
from stl_deploy.ir import wiring
from stl_deploy.ir.network import IntegerNetwork, Population
from stl_deploy.ir.notes import Diagnostic, LayerPlacement, Limit, Placement

LIMITS: tuple[Limit, ...] = get_args(Limit)
NAMES: dict[Limit, str] = {
    "compartments": "compartments",
    "synapse_bytes": "synapse memory",
    "in_axons": "in-axons",
    "out_axons": "out-axons",
    "thresholds": "distinct thresholds",
    "decays": "distinct decays",
}
UNITS: dict[Limit, str] = NAMES | {"synapse_bytes": "bytes of synapse memory"}
SHARED: tuple[Limit, ...] = ("thresholds", "decays")  # cores may have the same ones: no total
Int64 = NDArray[np.int64]
_Blocks = tuple[Sequence[int], Sequence[int] | None]
_Cut = dict[str, tuple[Laid, Sequence[int]]]
_Reach = dict[str, Int64]  # of each source, in its shape


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
    """Which core of the population, counted from 0, each neuron lies on: int64 [neurons] in C order."""
    dealt = np.empty(population.size, np.int64)
    for core, neurons in enumerate(by_core(placed, population.size)):
        dealt[neurons] = core
    return wiring.undealt(dealt, population.shape).reshape(-1)


def place(
    network: IntegerNetwork, chip: Chip, spread: Mapping[str, int] | None = None
) -> Placement | None:
    """Place ``network`` on ``chip``; None where the chip has no cores (``ideal``).

    Where a single neuron needs more than a core holds, ``beyond`` says so, and its population is placed
    without that limit. Populations with a ``spread`` above 1 are laid onto cores by threshold: sorted
    within stretches that take about so many cores.
    """
    packing = _packing(chip)
    if packing is None:
        return None
    return _placement(network, chip, *_cut(network, chip, packing, spread or {}))


def rebuild(network: IntegerNetwork, chip: Chip, blocks: Mapping[str, _Blocks]) -> Placement | None:
    """The placement with these blocks (neurons a core) of each population, and their order.

    Raises:
        ValueError: blocks that do not cover a population's neurons once, or need more than a core holds;
            or delays that the chip does not have.
    """
    for problem in chip.delay_problems(network):
        raise ValueError(f"{problem.where}: {problem.what}")
    strict = network.lowering == "grouped"
    for population in network.populations:
        _check_blocks(population, *blocks[population.name])
    placement = _from_blocks(network, chip, blocks)
    for name, placed in () if placement is None else placement.layers.items():
        for limit, held in _held(network, network.by_name[name], chip).items():
            if (strict or limit != "thresholds") and placed.fullest[limit] > held:
                raise ValueError(
                    f"{name}: a core needs {placed.fullest[limit]:,} {UNITS[limit]} and "
                    f"{chip.name} holds {held:,}"
                )
    return placement


def again(network: IntegerNetwork, chip: Chip, placed: Placement) -> Placement | None:
    """``placed`` once more, for a ``network`` with other thresholds."""
    blocks = {name: (on.blocks, on.order) for name, on in placed.layers.items()}
    return _from_blocks(network, chip, blocks)


def by_core(placed: LayerPlacement, neurons: int) -> list[Int64]:
    """The neurons on each core of a population, as numbered in the order of ``wiring.py``."""
    order = np.arange(neurons) if placed.order is None else np.asarray(placed.order)
    return np.split(order, np.cumsum(placed.blocks)[:-1])


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


def _check_blocks(
    population: Population, sizes: Sequence[int], order: Sequence[int] | None
) -> None:
    """Raise ValueError unless ``sizes`` and ``order`` cover the neurons of ``population`` once."""
    if sum(sizes) != population.size or min(sizes) < 1:
        raise ValueError(
            f"{population.name}: blocks of {sum(sizes):,} neurons for a layer of {population.size:,}"
        )
    if order is None:
        return
    if not np.array_equal(np.sort(np.asarray(order)), np.arange(population.size)):
        raise ValueError(f"{population.name}: its order does not name each neuron once")


def _packing(chip: Chip) -> Packing | None:
    """How ``chip`` stores synapses; None where it has no cores."""
    per_chip, per_tile = chip.limits.cores_per_chip, chip.limits.cores_per_tile
    return None if per_chip is None or per_tile is None else chip.packing


def _held(network: IntegerNetwork, population: Population, chip: Chip) -> dict[Limit, int]:
    """``limits`` of a core with neurons of ``population``, whose synapses may wait."""
    held = limits(chip)
    longest = max((steps(network, c) for c in network.into(population.name)), default=0)
    room = chip.waiting_neurons(longest)
    if room is not None:
        # A wait that no core has room for is one of the chip's delay problems.
        held["compartments"] = min(held.get("compartments", room), max(room, 1))
    return held


def _to_host(network: IntegerNetwork) -> _Reach:
    """What each input or population reaches but for cores: the host, from neurons whose spikes it counts."""
    names = [*network.inputs, *network.by_name]
    reach = {name: np.zeros(network.shape(name), np.int64) for name in names}
    reach[network.readout.source] += network.readout.by_spikes
    return reach


def _cut(
    network: IntegerNetwork, chip: Chip, packing: Packing, spread: Mapping[str, int]
) -> tuple[_Cut, _Reach]:
    """The blocks of each population, and how many cores each neuron reaches with them."""
    found: _Cut = {}
    reach = _to_host(network)
    for part in reversed(network.parts):
        found |= _cut_part(network, part, chip, packing, spread, reach)
        for population in part:
            laid, sizes = found[population.name]
            for source, cores in laid.reach(sizes).items():
                reach[source] += cores
    return found, reach


def _cut_part(
    network: IntegerNetwork,
    part: Sequence[Population],
    chip: Chip,
    packing: Packing,
    spread: Mapping[str, int],
    outside: _Reach,
) -> _Cut:
    """The blocks of populations in a loop, or of a single one; ``outside`` is what they reach elsewhere."""
    in_order = {p.name: Laid(network, p, packing) for p in part}
    looped = {p.name for p in part for c in network.into(p.name) if c.source in in_order}
    assumed = {p.name: np.zeros(p.shape, np.int64) for p in part}
    while True:
        found: _Cut = {}
        for p in part:
            reach = outside[p.name] + assumed[p.name]
            demand = Demand(in_order[p.name], _held(network, p, chip), reach)
            found[p.name] = demand.laid, demand.cut()
            if (over := spread.get(p.name, 1)) > 1:
                found[p.name] = demand.by_threshold(found[p.name][1], over)
        inside = {p.name: np.zeros(p.shape, np.int64) for p in part}
        for name in looped:
            laid, sizes = found[name]
            for source, cores in laid.reach(sizes).items():
                if source in inside:
                    inside[source] += cores
        if all((inside[name] <= assumed[name]).all() for name in inside):
            return found
        assumed = {name: np.maximum(assumed[name], inside[name]) for name in inside}


def _from_blocks(
    network: IntegerNetwork, chip: Chip, blocks: Mapping[str, _Blocks]
) -> Placement | None:
    packing = _packing(chip)
    if packing is None:
        return None
    found: _Cut = {}
    reach = _to_host(network)
    for population in network.populations:
        sizes, order = blocks[population.name]
        laid = Laid(network, population, packing, order)
        found[population.name] = laid, sizes
        for source, cores in laid.reach(sizes).items():
            reach[source] += cores
    return _placement(network, chip, found, reach)


def _placement(network: IntegerNetwork, chip: Chip, found: _Cut, reach: _Reach) -> Placement | None:
    per_chip, per_tile = chip.limits.cores_per_chip, chip.limits.cores_per_tile
    if per_chip is None or per_tile is None:
        return None
    layers: dict[str, LayerPlacement] = {}
    beyond = chip.delay_problems(network)
    cores = 0
    for population in network.populations:
        laid, sizes = found[population.name]
        demand = Demand(laid, _held(network, population, chip), reach[population.name])
        on = layers[population.name] = _on_cores(demand, cores, sizes)
        beyond += _beyond(demand, on.fullest, chip)
        cores += on.cores
    return Placement(
        chip=chip.name,
        layers=layers,
        cores=cores,
        tiles=math.ceil(cores / per_tile.value),
        chips=math.ceil(cores / per_chip.value),
        beyond=tuple(beyond),
    )


def _on_cores(demand: Demand, first_core: int, sizes: Sequence[int]) -> LayerPlacement:
    """The population on cores with these blocks."""
    laid = demand.laid
    needs = [
        demand.needs(low, high) | {"thresholds": laid.thresholds(low, high)}
        for low, high in ranges(sizes)
    ]
    reasons = Counter(
        name for low, high in ranges(sizes)[:-1] for name in demand.exceeded(low, high + 1)
    )
    # Of limits that ended as many blocks, the first of LIMITS.
    most = sorted(reasons, key=lambda name: (-reasons[name], LIMITS.index(name)))
    return LayerPlacement(
        first_core=first_core,
        blocks=tuple(sizes),
        bound_by=most[0] if most else None,
        fullest={name: max(n[name] for n in needs) for name in LIMITS},
        total={name: sum(n[name] for n in needs) for name in LIMITS if name not in SHARED},
        order=None if laid.order is None else tuple(laid.order),
    )


def _beyond(demand: Demand, fullest: Mapping[Limit, int], chip: Chip) -> list[Problem]:
    """Neurons that no core can hold, limit by limit; ``fullest`` is what the fullest core needs."""
    problems = []
    name = demand.laid.population.name
    for limit, held in demand.limits.items():
        if limit in demand.held and fullest[limit] > held:
            problems.append(
                Problem(
                    name,
                    f"is recurrent over {demand.laid.population.size:,} neurons, for which a core needs "
                    f"{fullest[limit]:,} {UNITS[limit]}; a core of {chip.name} holds {held:,}",
                    "use a --chip with larger cores, or a smaller layer",
                )
            )
        elif limit in demand.alone and limit not in demand.held:
            alone = demand.alone[limit]
            where = demand.laid.place(int(alone.argmax()))
            problems.append(
                Problem(
                    name,
                    f"neuron {where if len(where) > 1 else where[0]} alone needs "
                    f"{int(alone.max()):,} {UNITS[limit]}; a core of {chip.name} holds "
                    f"{held:,} (too few for {int((alone > held).sum()):,} of {alone.size:,} neurons)",
                    "use a --chip with larger cores, or a network with smaller layers",
                )
            )
    return problems
