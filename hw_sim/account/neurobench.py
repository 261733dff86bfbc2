"""NeuroBench's metrics of a run, and the 45 nm convention of papers, each as its authors define it.

NeuroBench (Yik et al. 2025; package neurobench 2.3.0): *effective* synaptic operations are non-zero
inputs meeting non-zero weights of a connection layer, biases left out, accumulates (AC) where all inputs are
-1, 0 or 1 and multiply-accumulates (MAC) where they are not; *dense* ones are those of a network in which
every input and weight counts. *Activation sparsity* is the fraction of zero outputs of the spiking layers
over steps and samples. *Footprint* is the memory of the parameters, *connection sparsity* the fraction of
weights that are zero; weights that several connections share are there once.

Three things that the integer network holds as connections are none in this definition. Pooling of spikes has
neither weights nor neurons, and neurons that only pass spikes on are no part of the model: connections into
``Or`` populations are left out, and these populations too. The reset of a neuron is a part of the neuron. A
reset that comes a step late is held as a one-to-one connection from a population to itself, so that such
connections are left out of operations and sparsity, and their weights count as parameters of the neurons.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from stl_deploy.hw_sim.account.counts import Counts
from stl_deploy.ir import slices
from stl_deploy.ir.network import Connection, IntegerNetwork, Population
from stl_deploy.ir.synapses import IntArray

# Horowitz 2014, "Computing's energy problem", ISSCC, doi:10.1109/ISSCC.2014.6757323: at 45 nm a 32 bit
# floating-point addition takes 0.9 pJ and a multiplication 3.7 pJ.
AC_PJ, MAC_PJ = 0.9, 4.6


@dataclass(frozen=True)
class Operations:
    """Synaptic operations of one connection per inference."""

    effective_acs: float
    effective_macs: float
    dense: float


@dataclass(frozen=True)
class NeuroBench:
    """Synaptic operations per inference, fractions, bytes."""

    effective_acs: float
    effective_macs: float
    dense: float
    activation_sparsity: float
    connection_sparsity: float
    footprint_bytes: int


@dataclass(frozen=True)
class Convention45nm:
    """Joules per inference by operation counts alone: no memory, routing, neuron or static energy.

    ``snn_j`` prices effective ACs and MACs, ``ann_j`` one dense pass of the same connections in MACs.
    """

    snn_j: float
    ann_j: float


def operations(network: IntegerNetwork, counts: Counts) -> list[Operations | None]:
    """The operations of each connection, in the order of the network's; None where it is left out."""
    found: list[Operations | None] = []
    for connection, did in zip(network.connections, counts.connections, strict=True):
        if not _is_layer(network, connection):
            found.append(None)
            continue
        effective = float(did.synops.sum()) / counts.samples
        graded = network.levels(connection.source) > 1
        found.append(
            Operations(
                effective_acs=0.0 if graded else effective,
                effective_macs=effective if graded else 0.0,
                dense=float(_dense(network, connection) * counts.timesteps),
            )
        )
    return found


def metrics(network: IntegerNetwork, counts: Counts) -> NeuroBench:
    """NeuroBench's metrics of a run."""
    done = [of for of in operations(network, counts) if of is not None]
    spiking = {population.name: population for population in network.weighted}
    outputs = sum(p.size for p in spiking.values()) * counts.samples * counts.timesteps
    spikes = sum(int(did.spikes.sum()) for did in counts.layers if did.name in spiking)
    held = _distinct([c for c in network.connections if c.target in spiking])
    layers = [c for c in held if _is_layer(network, c)]
    return NeuroBench(
        effective_acs=sum(of.effective_acs for of in done),
        effective_macs=sum(of.effective_macs for of in done),
        dense=sum(of.dense for of in done),
        activation_sparsity=1 - spikes / outputs,
        connection_sparsity=1
        - sum(c.stored_weights for c in layers) / sum(_weights(network, c) for c in layers),
        footprint_bytes=sum(a.nbytes for c in held for a in c.synapses.arrays)
        + sum(a.nbytes for p in spiking.values() for a in _parameters(p)),
    )


def convention_45nm(network: IntegerNetwork, measured: NeuroBench) -> Convention45nm:
    """What papers that count operations at 45 nm would say of a run."""
    return Convention45nm(
        snn_j=1e-12 * (AC_PJ * measured.effective_acs + MAC_PJ * measured.effective_macs),
        ann_j=1e-12 * MAC_PJ * measured.dense / network.timesteps,
    )


def _is_layer(network: IntegerNetwork, connection: Connection) -> bool:
    """Whether it is a connection layer by NeuroBench's definition."""
    resets = connection.synapses.kind == "one_to_one" and connection.source == connection.target
    return network.by_name[connection.target].kind != "or" and not resets


def _distinct(connections: Sequence[Connection]) -> list[Connection]:
    """The first of all connections that share their weights: they have one name, and the same in it."""
    found: list[Connection] = []
    for c in connections:
        alike = (other for other in found if other.name == c.name)
        if not any(_share(other, c) for other in alike):
            found.append(c)
    return found


def _share(a: Connection, b: Connection) -> bool:
    """Whether two connections of one name hold the same weights."""
    return a.synapses is b.synapses or (
        a.synapses.kind == b.synapses.kind
        and len(a.synapses.arrays) == len(b.synapses.arrays)
        and all(map(np.array_equal, a.synapses.arrays, b.synapses.arrays))
    )


def _weights(network: IntegerNetwork, connection: Connection) -> int:
    """Weights that could be stored: in a folded convolution every in-bounds synapse has its own.

    Both slices of a weight count where it has two.
    """
    before = network.shape(connection.source)
    return slices.PER_WEIGHT[connection.precision] * connection.synapses.parameters(before)


def _parameters(population: Population) -> Iterator[IntArray]:
    """What has to be stored of neurons: one number for all of them is no memory."""
    neurons = population.neurons
    for values in (neurons.bias_mant, neurons.vth, neurons.du, neurons.dv):
        if isinstance(values, np.ndarray):
            yield values


def _dense(network: IntegerNetwork, connection: Connection) -> int:
    """In-bounds synapses of a connection as if no weight, and no slice of one, were zero."""
    before = network.shape(connection.source)
    return slices.PER_WEIGHT[connection.precision] * connection.synapses.possible(before)
