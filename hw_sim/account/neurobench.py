"""NeuroBench's metrics of a run, and the 45 nm convention of papers, each as its authors define it.

NeuroBench (Yik et al. 2025; package neurobench 2.3.0): *effective* synaptic operations are non-zero
inputs meeting non-zero weights of a connection layer, biases left out, accumulates (AC) where the
input is binary and multiply-accumulates (MAC) where it is not; *dense* ones are those of a network in
which every input and weight counts. *Activation sparsity* is the fraction of zero outputs of the
spiking layers over steps and samples. *Footprint* is the memory of the parameters. Pooling of spikes
has neither weights nor neurons in this definition, so OR pools are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from stl_deploy.hw_sim.account.counts import Counts
from stl_deploy.ir import slices
from stl_deploy.ir.chain import LifLayer
from stl_deploy.ir.network import IntegerNetwork
from stl_deploy.ir.synapses import IntArray

# Horowitz 2014, "Computing's energy problem", ISSCC, doi:10.1109/ISSCC.2014.6757323: at 45 nm a 32 bit
# floating-point addition takes 0.9 pJ and a multiplication 3.7 pJ.
AC_PJ, MAC_PJ = 0.9, 4.6


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

    ``snn_j`` prices effective ACs and MACs, ``ann_j`` one dense pass of the same layers in MACs.
    """

    snn_j: float
    ann_j: float


def metrics(network: IntegerNetwork, counts: Counts) -> NeuroBench:
    """NeuroBench's metrics of a run."""
    of = {did.name: did for did in counts.layers}
    lif = network.lif_layers
    synops = {layer.name: float(of[layer.name].synops.sum()) / counts.samples for layer in lif}
    first = network.layers[0].name
    graded = 0.0
    if network.input_levels > 1 and first in synops:  # recurrent inputs are binary
        graded = synops[first] - float(of[first].recurrent.sum()) / counts.samples
    outputs = sum(layer.neurons for layer in lif) * counts.samples * counts.timesteps
    spikes = sum(int(of[layer.name].spikes.sum()) for layer in lif)
    weights = sum(map(_weights, lif))
    stored = sum(layer.stored_weights for layer in lif)
    return NeuroBench(
        effective_acs=sum(synops.values()) - graded,
        effective_macs=graded,
        dense=float(sum(map(_dense, lif)) * counts.timesteps),
        activation_sparsity=1 - spikes / outputs,
        connection_sparsity=1 - stored / weights,
        footprint_bytes=sum(array.nbytes for layer in lif for array in _arrays(layer)),
    )


def convention_45nm(network: IntegerNetwork, measured: NeuroBench) -> Convention45nm:
    """What papers that count operations at 45 nm would say of a run."""
    return Convention45nm(
        snn_j=1e-12 * (AC_PJ * measured.effective_acs + MAC_PJ * measured.effective_macs),
        ann_j=1e-12 * MAC_PJ * measured.dense / network.timesteps,
    )


def _weights(layer: LifLayer) -> int:
    """Weights that could be stored: in a folded convolution every in-bounds synapse has its own.

    Both slices of a weight count where it has two.
    """
    per_weight = slices.PER_WEIGHT[layer.weight_precision]
    return per_weight * (layer.synapses.parameters(layer.input_shape) + _recurrent(layer))


def _recurrent(layer: LifLayer) -> int:
    """Recurrent synapses of a layer as if no weight were zero."""
    return 0 if layer.recurrent is None else layer.recurrent.possible(layer.shape)


def _arrays(layer: LifLayer) -> Iterator[IntArray]:
    """What has to be stored of a layer."""
    yield from (*layer.synapses.arrays, layer.bias_mant, layer.vth)
    if layer.recurrent is not None:
        yield from layer.recurrent.arrays


def _dense(layer: LifLayer) -> int:
    """In-bounds synapses of a layer as if no weight, and no slice of one, were zero."""
    per_weight = slices.PER_WEIGHT[layer.weight_precision]
    return per_weight * (layer.synapses.possible(layer.input_shape) + _recurrent(layer))
