"""``--thresholds fold``: one threshold a layer, each neuron's inputs scaled in its place.

A LIF neuron does not change when its weights, bias and threshold are scaled together. So neuron i
takes the unit ``unit_i = theta_i * 2^exp / theta_ref``, in which its threshold is the whole number
theta_ref, the same in the whole layer. That is exact before the weights are rounded to these units.

theta_ref is the largest whole number for which no neuron's unit falls below the least that
quantization allows its channel (``least``: the weight grid, the registers and, where overflow is
proven, the accumulator). The neuron with the lowest threshold for its weights takes it; the weights
of the others use less of the grid, which is what folding costs.

A linear layer stays one. A convolution stays one where the thresholds of a channel are equal, else
its neurons have kernels of their own and every synapse becomes a single connection (``Sparse``).
"""

from __future__ import annotations

import math
from dataclasses import replace

import nir
import numpy as np
from numpy.typing import NDArray

from stl_deploy import conv
from stl_deploy import graph as G
from stl_deploy.chip import Chip
from stl_deploy.errors import Problem
from stl_deploy.network import LifLayer, Sparse
from stl_deploy.placement import synapse_bits

Float = NDArray[np.float64]
MOST = 1 << 25  # single connections where the chip itself sets no limit


class Fold:
    """The folded forms of one layer; ``plain`` is the same layer quantized as it is."""

    def __init__(self, plain: LifLayer, node: nir.ir.NIRNode, weight: Float, bias: Float) -> None:
        self.plain = plain
        self.weight = weight
        self.rows = len(weight)
        self.bias = bias
        self.synapses: tuple[NDArray[np.int32], NDArray[np.int32], Float] | None = None
        self.node = node

    def unroll(self, threshold: Float) -> None:
        """Give each neuron its own kernel, where the thresholds of a channel differ."""
        if not needs_unrolling(self.node, threshold):
            return
        geometry = G.conv_geometry(self.node)
        before, after = self.plain.input_shape, self.plain.shape
        c, h, w = before
        o, y, x = after
        self.synapses = conv.unroll(
            self.weight, (c, h, w), (o, y, x), *geometry, int(self.node.groups)
        )

    def layer(self, threshold: Float, theta_ref: int) -> LifLayer:
        """The layer with every threshold at ``theta_ref`` (fires where v >= theta_ref).

        ``threshold`` is float64 of the population's shape, all above zero.
        """
        scale = threshold.reshape(self.rows, -1) / theta_ref
        vth = np.full(self.plain.shape, theta_ref - 1, np.int32)
        if self.synapses is None:
            scale = scale[:, 0]
            unit = (scale * 2.0**self.plain.exp).reshape(-1, *[1] * (self.weight.ndim - 1))
            weight = np.rint(self.weight / unit).astype(np.int8)
            synapses = replace(self.plain.synapses, weight=weight)
        else:
            row, column, values = self.synapses
            weight = np.rint(values / (scale.reshape(-1)[row] * 2.0**self.plain.exp)).astype(
                np.int8
            )
            stored = weight != 0
            size = self.plain.neurons, math.prod(self.plain.input_shape)
            synapses = Sparse(row[stored], column[stored], weight[stored], size)
        bias = self.bias.reshape(-1, *[1] * (scale.ndim - 1)) / scale
        return replace(
            self.plain,
            synapses=synapses,
            bias_mant=np.rint(bias).astype(np.int32).reshape(-1),
            vth=vth,
            scale=scale.reshape(-1),
        )


def needs_unrolling(node: nir.ir.NIRNode, threshold: Float) -> bool:
    """Whether ``node`` is a convolution into channels whose thresholds differ."""
    flat = threshold.reshape(len(threshold), -1)
    return isinstance(node, nir.Conv2d) and bool((flat != flat[:, :1]).any())


def too_large(connections: dict[str, int], weight_bits: int, chip: Chip) -> list[Problem]:
    """The problem of more single ``connections`` (by layer) than ``chip`` has memory for."""
    total = sum(connections.values())
    cores, memory = chip.limits.cores_per_chip, chip.limits.synapse_bytes_per_core
    if chip.packing is None or cores is None or memory is None:
        held, holds = MOST, f"{MOST:,} are the most that are written"
    else:
        bits = synapse_bits(chip.packing, weight_bits)
        held = cores.value * memory.value * 8 // bits
        holds = (
            f"the {cores.value * memory.value / 2**20:g} MiB of synapse memory of one {chip.name} "
            f"hold {held:,} of {bits} bits"
        )
    if total <= held:
        return []
    return [
        Problem(
            ", ".join(connections),
            f"folding makes {total:,} single connections of the convolutions; {holds}",
            "use --thresholds native or profiles",
        )
    ]
