"""What the cores of a chip need, counted synapse by synapse, and chips with other limits."""

from __future__ import annotations

import math
from collections import Counter, defaultdict

import numpy as np

from stl_deploy.chips import facts as chips
from stl_deploy.chips.facts import Chip, Count
from stl_deploy.chips.placement import UNITS, limits
from stl_deploy.ir.network import IntegerNetwork, Population
from stl_deploy.ir.notes import LayerPlacement, Placement
from tests.build.wires import wires

KINDS = ("compartments", "synapse_bytes", "in_axons", "out_axons")
DISTINCT = ("thresholds", "decays")
TIGHT = {"compartments": 40, "synapse_bytes": 2048, "in_axons": 300, "out_axons": 300}


def chip_with(base: str = "loihi1", **held: int) -> Chip:
    """``base`` with other limits a core, and a few cores a chip."""
    chip = chips.load(base)
    changed = {
        f"{name}_per_core": Count(value=n, source="chosen by a test") for name, n in held.items()
    }
    return chip.model_copy(update={"limits": chip.limits.model_copy(update=changed)})


def core_of(population: Population, placed: LayerPlacement) -> dict[tuple[int, ...], int]:
    """The core of every neuron, by its coordinates: row, column, channel count up in that order."""
    order = sorted(np.ndindex(population.shape), key=lambda at: (*at[1:], at[0]))
    if placed.order is not None:
        order = [order[i] for i in placed.order]
    cores = [placed.first_core + k for k, n in enumerate(placed.blocks) for _ in range(n)]
    assert len(cores) == len(order)
    return dict(zip(order, cores, strict=True))


def axon_bytes(chip: Chip, bits: int, n: int, waits: bool = False) -> int:
    """The bytes of an axon's n synapses, an entry at a time."""
    packing, total = chip.packing, 0
    assert packing is not None
    per_synapse = bits + packing.tag_bits.value + packing.index_bits.value
    per_synapse += packing.delay_bits.value if waits else 0
    while n:
        entry = min(n, 64)
        total += math.ceil((entry * per_synapse + 10) / 64) * 8
        n -= entry
    return total


def by_brute_force(
    network: IntegerNetwork, placed: Placement, chip: Chip
) -> dict[int, dict[str, int]]:
    """What each core needs, synapse by synapse: {core: {limit: n}}."""
    needs: dict[int, dict[str, int]] = defaultdict(lambda: dict.fromkeys((*KINDS, *DISTINCT), 0))
    cores = {p.name: core_of(p, placed.layers[p.name]) for p in network.populations}
    axons = set()
    for c in network.connections:
        entries: Counter[tuple[int, tuple[int, ...], int]] = Counter()
        for k, group in enumerate(c.groups()):
            for source, target in wires(network, group):
                entries[k, source, cores[c.target][target]] += 1
        waits = network.depth is not None and network.waits(c) > 0
        for (_, source, core), n in entries.items():
            needs[core]["synapse_bytes"] += axon_bytes(chip, c.bits, n, waits)
            axons.add((c.source, source, core))
    for source, neuron, core in axons:
        needs[core]["in_axons"] += 1
        if source in cores:
            needs[cores[source][neuron]]["out_axons"] += 1
    for core in cores[network.readout.source].values():
        needs[core]["out_axons"] += 1
    for p in network.populations:
        held: dict[int, tuple[set[int], set[tuple[int, int]]]] = defaultdict(lambda: (set(), set()))
        vth, du, dv = (
            np.broadcast_to(np.asarray(v), p.shape)
            for v in (p.neurons.vth, p.neurons.du, p.neurons.dv)
        )
        for at, core in cores[p.name].items():
            needs[core]["compartments"] += 1
            held[core][0].add(int(vth[at]))
            held[core][1].add((int(du[at]), int(dv[at])))
        for core, (thresholds, decays) in held.items():
            needs[core] |= {"thresholds": len(thresholds), "decays": len(decays)}
    return needs


def room(network: IntegerNetwork, population: Population, chip: Chip) -> int:
    """Neurons for which a core has accumulators: 2^b of them for a wait of at most 2^b - 2 steps."""
    if chip.delays is None or chip.delays.slots_per_core is None or network.depth is None:
        return population.size
    longest, slots = max((network.waits(c) for c in network.into(population.name)), default=0), 1
    while slots - 2 < longest:
        slots *= 2
    return chip.delays.slots_per_core.value // slots


def check(network: IntegerNetwork, placed: Placement, chip: Chip) -> None:
    """What ``placed`` says of each population is what its cores need, and fits where nothing is beyond."""
    assert list(placed.layers) == [p.name for p in network.populations]
    needs, first = by_brute_force(network, placed, chip), 0
    beyond = {(p.where, kind) for p in placed.beyond for kind in KINDS if UNITS[kind] in p.what}
    held = limits(chip)
    for p in network.populations:
        on = placed.layers[p.name]
        assert (on.first_core, sum(on.blocks)) == (first, p.size)
        assert min(on.blocks) >= 1
        each = [needs[core] for core in range(first, first + on.cores)]
        assert on.fullest == {kind: max(n[kind] for n in each) for kind in (*KINDS, *DISTINCT)}
        assert on.total == {kind: sum(n[kind] for n in each) for kind in KINDS}
        for kind in set(held) - {"thresholds"}:
            assert on.fullest[kind] <= held[kind] or (p.name, kind) in beyond
        assert on.fullest["compartments"] <= room(network, p, chip)
        first += on.cores
    assert (placed.cores, placed.tiles) == (first, math.ceil(first / 4))
    assert placed.chips == math.ceil(first / 128)
