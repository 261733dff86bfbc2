"""NeuroBench's metrics of a run, and the 45 nm convention of papers, each as its authors define it.

NeuroBench (Yik et al. 2025; package neurobench 2.3.0): *effective* synaptic operations are non-zero
inputs meeting non-zero weights of a connection layer, biases left out, accumulates (AC) where all inputs are
-1, 0 or 1 and multiply-accumulates (MAC) where they are not; *dense* ones are those of a network in which
every input and weight counts. *Activation sparsity* is the fraction of zero outputs of the spiking layers
over steps and samples, 0 where there are none. *Footprint* is the memory of the parameters, *connection
sparsity* the fraction of weights that are zero; weights that several connections share are there once.

Three things that the integer network holds as connections are none in this definition. Pooling of spikes has
neither weights nor neurons, and neurons that only pass spikes on are no part of the model: connections into
``Or`` populations are left out, and these populations too. The reset of a neuron is a part of the neuron. A
reset that comes a step late is held as a one-to-one connection from a population to itself, so that such
connections are left out of operations and sparsity, and their weights count as parameters of the neurons.

Neurons without a threshold have no activation function: what they send, if anything, is the sum that
arrived. They count for connections and memory, not for activation sparsity. Where a source can send more
than -1, 0 and 1, the operations behind it are multiply-accumulates. A readout's matrix is a connection layer
on the host: its inputs are the votes of a sample, multiplied and accumulated once per inference.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stl_deploy.hw_sim.account.counts import Counts
from stl_deploy.ir import slices
from stl_deploy.ir.network import Connection, IntegerNetwork
from stl_deploy.ir.neurons import Neurons
from stl_deploy.ir.readouts import Readout

# Horowitz 2014, "Computing's energy problem", ISSCC, doi:10.1109/ISSCC.2014.6757323: at 45 nm a 32 bit
# floating-point addition takes 0.9 pJ and a multiplication 3.7 pJ.
AC_PJ, MAC_PJ = 0.9, 4.6


@dataclass(frozen=True)
class Operations:
    """Synaptic operations of one connection, or of the readout's matrix, per inference."""

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


def of_readout(network: IntegerNetwork, counts: Counts) -> Operations | None:
    """The operations of the readout's matrix; None where it has none."""
    matrix = network.readout.matrix
    if matrix is None:
        return None
    effective = float(counts.readout_macs.sum()) / counts.samples
    return Operations(effective_acs=0.0, effective_macs=effective, dense=float(matrix.size))


def metrics(network: IntegerNetwork, counts: Counts) -> NeuroBench:
    """NeuroBench's metrics of a run."""
    done = [*operations(network, counts), of_readout(network, counts)]
    own = {population.name: population for population in network.weighted}
    spiking = {name: population for name, population in own.items() if population.neurons.fires}
    outputs = sum(p.size for p in spiking.values()) * counts.samples * counts.timesteps
    spikes = sum(int(did.spikes.sum()) for did in counts.layers if did.name in spiking)
    held = _distinct([c for c in network.connections if c.target in own])
    layers = [c for c in held if _is_layer(network, c)]
    matrix = np.zeros(0) if network.readout.matrix is None else network.readout.matrix
    stored = sum(c.stored_weights for c in layers) + np.count_nonzero(matrix)
    parameters = [a for p in own.values() for a in _of_neurons(p.neurons)]
    parameters += _of_readout(network.readout)
    return NeuroBench(
        effective_acs=sum(of.effective_acs for of in done if of is not None),
        effective_macs=sum(of.effective_macs for of in done if of is not None),
        dense=sum(of.dense for of in done if of is not None),
        activation_sparsity=1 - spikes / outputs if outputs else 0.0,
        connection_sparsity=1 - stored / (sum(_weights(network, c) for c in layers) + matrix.size),
        footprint_bytes=sum(a.nbytes for c in held for a in c.synapses.arrays)
        + sum(a.nbytes for a in parameters),
    )


def convention_45nm(network: IntegerNetwork, measured: NeuroBench) -> Convention45nm:
    """What papers that count operations at 45 nm would say of a run."""
    matrix = network.readout.matrix
    once = 0 if matrix is None else matrix.size  # the others have a pass in each step
    return Convention45nm(
        snn_j=1e-12 * (AC_PJ * measured.effective_acs + MAC_PJ * measured.effective_macs),
        ann_j=1e-12 * MAC_PJ * (once + (measured.dense - once) / network.timesteps),
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


def _of_neurons(neurons: Neurons) -> Iterator[NDArray[Any]]:
    """What has to be stored of neurons: one number for all of them is no memory.

    What means nothing for them, as a threshold for neurons that never fire, is not stored.
    """
    stored: list[Any] = [neurons.bias_mant, *neurons.decays.values()]
    stored += [neurons.v0, neurons.floor, neurons.gain]
    if neurons.fires:
        stored += [neurons.vth, neurons.adapt]
        stored += [neurons.v_reset] if neurons.reset == "constant" else []
    yield from (values for values in stored if isinstance(values, np.ndarray))


def _of_readout(readout: Readout) -> list[NDArray[Any]]:
    """What the host has to store."""
    stored = (readout.steps, readout.factors, readout.matrix, readout.offset)
    return [np.asarray(values) for values in stored if values is not None]


def _dense(network: IntegerNetwork, connection: Connection) -> int:
    """In-bounds synapses of a connection as if no weight, and no slice of one, were zero."""
    before = network.shape(connection.source)
    return slices.PER_WEIGHT[connection.precision] * connection.synapses.possible(before)
