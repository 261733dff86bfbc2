"""What plans are made of: a population with what is wanted of it, and its neurons as kernels read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stl_deploy.chips import facts as chips
from stl_deploy.hw_sim import kernels, proofs
from stl_deploy.hw_sim.compiled import LANES
from stl_deploy.hw_sim.layouts import memory_order
from stl_deploy.ir.network import Connection, IntegerNetwork, Population
from stl_deploy.ir.synapses import IntArray, Shape
from stl_deploy.ir.units import DECAY_ONE, FORGETS, FRACTION_BITS

Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class Done:
    """Where a run writes what a population does, all ``states`` [N, T, neurons] that are wanted by name."""

    did: kernels.Did
    states: Mapping[str, IntArray]

    def of(self, some: slice) -> Done:
        """Where the results of some samples go."""
        states = {name: values[some] for name, values in self.states.items()}
        return Done(kernels.Did(*(array[some] for array in self.did)), states)


@dataclass(frozen=True)
class Case:
    """A population to plan for: of which network, for how many steps, and what is wanted of it."""

    network: IntegerNetwork
    population: Population
    steps: int
    states: bool
    cores: IntArray | None

    @property
    def into(self) -> tuple[Connection, ...]:
        """The connections into the population."""
        return self.network.into(self.population.name)

    def comes_at_once(self, connection: Connection) -> bool:
        """Whether each step of its source, from outside, is heard in the same step."""
        source = connection.source
        held = source in self.network.inputs and self.network.inputs[source].held
        return not held and not connection.delay and source != self.population.name


def core_count(cores: IntArray | None) -> int:
    """How many cores ``cores`` names; one where none are named."""
    return 1 if cores is None else int(cores.max()) + 1


def keeps_states(network: IntegerNetwork, population: Population, states: bool) -> bool:
    """Whether u, v and the rest of a population are kept: where ``states``, and where a readout needs v."""
    return states or (network.readout.by_voltage and network.readout.source == population.name)


@dataclass(frozen=True)
class Runs:
    """Runs of neurons that lie together in memory and on one core."""

    first: Int64
    length: Int64
    core: Int64

    @classmethod
    def of(cls, case: Case, starts: Int64) -> Runs:
        """Runs that begin at ``starts`` and wherever the core changes."""
        population = case.population
        core = np.zeros(population.size, np.int64)
        if case.cores is not None:
            core = memory_order(np.asarray(case.cores, np.int64), population.shape)
        first = np.union1d(starts, np.flatnonzero(np.diff(core)) + 1)
        return cls(first, np.diff(first, append=population.size), core[first])


def own_ways(case: Case) -> list[Connection]:
    """The way, none or one, by which kernels bring neurons their own spikes one to one."""
    ways = [
        c
        for c in case.into
        if c.source == case.population.name
        and c.synapses.kind == "one_to_one"
        and 0 <= c.exp < proofs.SHIFTS
    ]
    return ways[:1]


def lif_neurons(
    case: Case, pieces: kernels.Pieces, blocks: Int64, plain: bool, exp: int
) -> tuple[kernels.Neurons, Int64 | None]:
    """The neurons in ``pieces``, whose blocks begin at ``blocks``, with sums that count 2^exp.

    Also the neurons of each core where all are active in every step, else None.
    """
    population, chip = case.population, chips.of(case.network)
    shape, neurons = population.shape, population.neurons
    runs = Runs.of(case, blocks)
    # A bias keeps a neuron busy in every step: then there is nothing to count.
    busy = np.bincount(runs.core, runs.length).astype(np.int64) if neurons.bias.all() else None
    kind = np.int32 if plain else np.int64
    far = np.iinfo(kind)
    threshold = np.clip(neurons.vth.astype(np.int64) << FRACTION_BITS, far.min, far.max)
    own = own_ways(case)
    sent = np.zeros(population.size if plain else 0, kind)
    for c in own:
        sent = memory_order(c.synapses.weight.astype(np.int64), shape) << c.exp
        sent = (sent << FRACTION_BITS if plain else sent).astype(kind)
    v_keep = DECAY_ONE - np.asarray(neurons.dv, np.int64)
    ends = np.append(blocks, population.size)
    made = kernels.Neurons(
        bias=of_each(neurons.bias, shape).astype(kind),
        threshold=of_each(threshold, shape).astype(kind),
        u_keep=one_or_each(FORGETS - np.asarray(neurons.du, np.int64), shape),
        v_keep=of_each(v_keep, shape).astype(kind) if plain else one_or_each(v_keep, shape),
        own=sent,
        delay=own[0].delay if own else 0,
        exp=exp,
        limit=chip.state_limit or 0,
        too_large=1 << 62 if chip.accumulator_limit is None else chip.accumulator_limit,
        subtract=neurons.reset == "subtract",
        halves=bool((v_keep == DECAY_ONE // 2).all()),
        bare=not own and neurons.reset == "zero",
        pieces=pieces,
        block_run=np.searchsorted(runs.first, ends).astype(np.int64) * (busy is None),
        run_first=runs.first,
        run_length=runs.length,
        run_core=runs.core,
    )
    return made, busy


def of_each(values: Any, shape: Shape) -> NDArray[Any]:
    """One value for each neuron, in memory order."""
    return memory_order(np.broadcast_to(values, shape), shape)


def one_or_each(values: Int64, shape: Shape) -> Int64:
    """The one value that all neurons have, or one for each in memory order."""
    same = (values == values.flat[0]).all()
    # A copy: numba would compile everything again for an array that cannot be written to.
    return values.reshape(-1)[:1].copy() if same else of_each(values, shape).copy()


def takes_the_plain_step(case: Case, pieces: kernels.Pieces) -> bool:
    """Whether the plain step does all that is wanted, with as many neurons in a piece as it takes at once."""
    if case.states or pieces.length.min() < LANES:
        return False
    return proofs.takes_the_plain_step(case.network, case.population, case.steps)
