"""``--thresholds grouped``: as many distinct thresholds on a core as the chip holds, and no more.

Neurons are laid onto cores by threshold, so that those of one core are near to each other, and each
core's thresholds are rounded to the few values that cost least. The cost of moving a threshold is
the change relative to vth + 1: a neuron does not change when its weights and threshold are scaled
together, so that relative changes compare between neurons.

The finer the thresholds shall be, the more cores a stretch of a population is spread over (``spread``,
see ``placement.py``): an input then goes to more cores, and more axons and memory are needed. Every
population takes the spread with which the sum of the mean changes is least, while the network takes no
more chips than with its neurons in order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from stl_deploy.chips import placement
from stl_deploy.chips.facts import Chip
from stl_deploy.ir import wiring
from stl_deploy.ir.network import IntegerNetwork, Population
from stl_deploy.ir.notes import LayerPlacement, Placement, Rounding

Int64 = NDArray[np.int64]
SPREADS = tuple(1 << k for k in range(7))


def pack(network: IntegerNetwork, chip: Chip) -> IntegerNetwork:
    """``network`` with thresholds rounded and neurons placed so that the rounding is least.

    ``network`` is placed already, in order, and its chip limits the thresholds of a core.
    """
    plain = network.placement
    if plain is None or chip.limits.cores_per_chip is None:
        raise ValueError(f"{chip.name} has no cores")
    names = [population.name for population in network.weighted]
    options: list[_Option] = []
    for spread in SPREADS:
        placed = placement.place(network, chip, dict.fromkeys(names, spread))
        assert placed is not None  # the chip has cores
        _, rounding = _thresholds(network, placed, chip)
        cores = _cores(network, placed)
        options += [_Option(n, spread, cores[n], rounding[n].mean) for n in names]
    budget = left = plain.chips * chip.limits.cores_per_chip.value
    while True:
        chosen = _choose(options, names, left)
        placed = placement.place(network, chip, chosen)
        assert placed is not None
        if placed.cores <= budget or not any(spread > 1 for spread in chosen.values()):
            return _rounded(network, placed, chip)
        # A population's cores depend a little on the spread of its targets: aim lower by what is over.
        left -= placed.cores - budget


@dataclass(frozen=True)
class _Option:
    """A spread of a population: the cores that it takes with its pools (``_cores``), and the mean change."""

    name: str
    spread: int
    cores: int
    change: float


def _cores(network: IntegerNetwork, placed: Placement) -> dict[str, int]:
    """Cores of every weighted population and of the pools whose cores depend on its spread most.

    The more cores its neurons are spread over, the more axons lead out of the pools before it. A pool counts
    once: with the first weighted population that it leads to, or else with the first that leads to it.
    """
    cores = {
        population.name: placed.layers[population.name].cores for population in network.weighted
    }
    for population in network.populations:
        if population.name not in cores:
            behind = _nearest(network, population.name, cores, ahead=True)
            with_it = behind or _nearest(network, population.name, cores, ahead=False)
            if with_it is not None:
                cores[with_it] += placed.layers[population.name].cores
    return cores


def _nearest(
    network: IntegerNetwork, name: str, weighted: Mapping[str, int], ahead: bool
) -> str | None:
    """The first weighted population that a pool leads to (``ahead``), or is led to from, through pools."""
    seen, found = {name}, [name]
    for here in found:
        ways = network.out_of(here) if ahead else network.into(here)
        for other in (way.target if ahead else way.source for way in ways):
            if other in weighted:
                return other
            if other not in seen and other not in network.inputs:
                seen.add(other)
                found.append(other)
    return None


def _choose(options: Sequence[_Option], names: Sequence[str], budget: int) -> dict[str, int]:
    """The spread of each population with the least sum of changes within ``budget`` cores.

    Dynamic programming over the populations; 1 for all where nothing fits.
    """
    # By cores taken: the least sum of changes so far, and the spreads that give it.
    best: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, ())}
    for name in names:
        longer: dict[int, tuple[float, tuple[int, ...]]] = {}
        for taken, (change, spreads) in best.items():
            for option in options:
                cores = taken + option.cores
                if option.name != name or cores > budget:
                    continue
                candidate = change + option.change, (*spreads, option.spread)
                longer[cores] = min(longer.get(cores, candidate), candidate)
        best = longer
    _, _, spreads = min(
        ((change, cores, spreads) for cores, (change, spreads) in best.items()),
        default=(0.0, 0, (1,) * len(names)),
    )
    return dict(zip(names, spreads, strict=True))


def _rounded(network: IntegerNetwork, placed: Placement, chip: Chip) -> IntegerNetwork:
    """``network`` on ``placed``, with the thresholds of each core rounded."""
    populations, rounding = _thresholds(network, placed, chip)
    lowered = replace(
        network.changed(*populations), lowering="grouped", rounding=rounding, placement=None
    )
    return replace(lowered, placement=placement.again(lowered, chip, placed))


def _thresholds(
    network: IntegerNetwork, placed: Placement, chip: Chip
) -> tuple[list[Population], dict[str, Rounding]]:
    """The populations with the thresholds of each core rounded, and what that changed, by name."""
    held = placement.limits(chip)["thresholds"]
    populations: list[Population] = []
    rounding: dict[str, Rounding] = {}
    for population in network.populations:
        neurons = population.neurons
        if neurons.kind == "lif":
            vth, told = _round(population, placed.layers[population.name], held)
            populations.append(replace(population, neurons=replace(neurons, vth=vth)))
            rounding[population.name] = told
    return populations, rounding


def _round(
    population: Population, placed: LayerPlacement, held: int
) -> tuple[NDArray[np.int32], Rounding]:
    """Thresholds of ``population`` with at most ``held`` values on each core, and what that changed."""
    shape = population.shape
    vth = wiring.dealt(np.broadcast_to(population.neurons.vth, shape), shape)
    rounded = np.empty_like(vth)
    for neurons in placement.by_core(placed, population.size):
        rounded[neurons] = nearest(vth[neurons], held)
    change = np.abs(rounded - vth) / (vth + 1)
    moved = float((rounded != vth).mean())
    told = Rounding(moved, float(change.mean()), float(change.max()))
    return wiring.undealt(rounded.astype(np.int32), shape), told


def nearest(vth: Int64, count: int) -> Int64:
    """``vth`` rounded to at most ``count`` of its values, with the least sum of relative changes.

    An optimal clustering in one dimension: clusters are intervals of the sorted values, each takes
    its weighted median, and the ends of the intervals follow from dynamic programming.
    """
    values, position, number = np.unique(vth, return_inverse=True, return_counts=True)
    if len(values) <= count:
        return vth
    cost, median = _intervals(values, number / (values + 1.0))
    # least[j]: the least cost of values 0..j in the clusters so far; starts: where the last began.
    least, starts = cost[0], []
    for _ in range(count - 1):
        # One more cluster, from value i to j, behind the others up to i - 1.
        longer = np.concatenate([[0.0], least[:-1]])[:, None] + cost
        starts.append(longer.argmin(axis=0))
        least = longer.min(axis=0)
    chosen = np.empty_like(values)
    last = len(values) - 1
    for start in reversed([np.zeros(len(values), np.int64), *starts]):
        first = int(start[last])
        chosen[first : last + 1] = values[median[first, last]]
        last = first - 1
        if last < 0:
            break
    return chosen[position]


def _intervals(values: Int64, weight: NDArray[np.float64]) -> tuple[NDArray[np.float64], Int64]:
    """Cost [m, m] of values i..j moved to their weighted median, infinite for i > j, and its index."""
    m = len(values)
    mass = np.concatenate([[0.0], weight.cumsum()])
    moment = np.concatenate([[0.0], (weight * values).cumsum()])
    first, last = np.arange(m)[:, None], np.arange(m)[None, :]
    half = (mass[first] + mass[last + 1]) / 2
    median = np.searchsorted(mass[1:], half.reshape(-1)).reshape(m, m)
    median = np.clip(median, first, np.maximum(first, last))
    below = values[median] * (mass[median] - mass[first]) - (moment[median] - moment[first])
    above = (moment[last + 1] - moment[median]) - values[median] * (mass[last + 1] - mass[median])
    return np.where(first <= last, below + above, np.inf), median
