"""``--thresholds fold``: one threshold a layer, each neuron's inputs scaled in its place.

A LIF neuron does not change when its weights, bias and threshold are scaled together. So neuron i
takes the unit ``unit_i = theta_i * 2^exp / theta_ref``, in which its threshold is the whole number
theta_ref, the same in the whole layer. That is exact before the weights are rounded to these units.

A large theta_ref makes fine units, in which the weights of neurons with low thresholds leave the
grid and are cut off at its ends; a small one makes coarse units for all others. It is chosen so that
the error of the weights, relative to the threshold and averaged over the neurons, is least. That is
what folding costs.

A linear layer stays one. A convolution stays one where the thresholds of a channel are equal, else
its neurons have kernels of their own and every synapse becomes a single connection (``Sparse``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from stl_deploy.chips.facts import Chip
from stl_deploy.chips.demand import synapse_bits
from stl_deploy.errors import Problem
from stl_deploy.ir import conv, slices
from stl_deploy.ir.float_chain import FloatLayer
from stl_deploy.ir.chain import LifLayer
from stl_deploy.ir.single import MOST, connections
from stl_deploy.ir.slices import Weights
from stl_deploy.ir.synapses import Kernel, Sparse, Synapses

Float = NDArray[np.float64]
FINENESS = 2**0.25  # the ratio of neighbouring theta_ref that are tried


class Fold:
    """The folded forms of one layer.

    Args:
        plain: the layer quantized as it is.
        floats: the float layer, its thresholds all above zero.
    """

    def __init__(self, plain: LifLayer, floats: FloatLayer) -> None:
        weight = floats.weight
        self.plain = plain
        self.rows = len(weight)
        self.bias = floats.bias
        self.grid = 2.0**plain.exp
        self.qmax = slices.largest(plain.weight_precision, plain.weight_bits)
        self.single: tuple[NDArray[np.int32], NDArray[np.int32], Kernel] | None = None
        self.weight: Float = weight.reshape(self.rows, -1)
        self.threshold = floats.theta.reshape(self.rows, -1)
        if floats.geometry is not None and needs_unrolling(floats):
            (c, h, w), (o, y, x) = plain.input_shape, plain.shape
            row, column, self.weight = conv.unroll(weight, (c, h, w), (o, y, x), *floats.geometry)
            self.single = row, column, Kernel(weight, floats.bias, *floats.geometry)
        else:
            self.threshold = self.threshold[:, :1]

    def _in_units(self, theta_ref: int) -> tuple[Float, Float]:
        """Weights in their neurons' units, not rounded yet, and those units."""
        unit = self.threshold.reshape(-1) * (self.grid / theta_ref)
        unit = unit[:, None] if self.single is None else unit[self.single[0]]
        return self.weight / unit, unit

    def _error(self, theta_ref: int) -> float:
        """Norm of a neuron's weight errors over its threshold, at most 1, mean over the neurons.

        A neuron whose weights err by as much as its threshold is lost, and cannot be lost twice.
        """
        scaled, unit = self._in_units(theta_ref)
        squares = ((np.clip(np.rint(scaled), -self.qmax, self.qmax) - scaled) * unit) ** 2
        theta = self.threshold.reshape(-1)
        if self.single is None:
            total: Float = squares.sum(axis=1)
        else:
            counted = np.bincount(self.single[0], squares, minlength=theta.size)
            total = np.asarray(counted, np.float64)
        return float(np.minimum(np.sqrt(total) / theta, 1).mean())

    def best(self, low: float, high: float) -> int:
        """The theta_ref from ``low`` to ``high`` with the least error, at least 1."""
        steps = max(0, math.floor(math.log(high / low, FINENESS))) if 0 < low < high else 0
        tried = {max(1, math.floor(low * FINENESS**i)) for i in range(steps + 1)}
        return min(sorted(tried), key=self._error)

    def layer(self, theta_ref: int) -> LifLayer:
        """The layer with every threshold at ``theta_ref`` (fires where v >= theta_ref)."""
        scaled, _ = self._in_units(theta_ref)
        kind = slices.kind(self.plain.weight_precision)
        weight = np.clip(np.rint(scaled), -self.qmax, self.qmax).astype(kind)
        scale = self.threshold / theta_ref
        return replace(
            self.plain,
            synapses=self._synapses(weight),
            bias_mant=np.rint(self.bias[:, None] / scale).astype(np.int32).reshape(-1),
            vth=np.full(self.plain.shape, theta_ref - 1, np.int32),
            scale=scale.reshape(-1),
        )

    def _synapses(self, weight: Weights) -> Synapses:
        plain = self.plain.synapses
        if self.single is None or plain.kind == "sparse":
            return replace(plain, weight=weight.reshape(plain.weight.shape))
        stored = weight != 0
        row, column, kernel = self.single
        size = self.plain.neurons, math.prod(self.plain.input_shape)
        return Sparse(row[stored], column[stored], weight[stored], size, kernel)

    def cut_off(self, theta_ref: int) -> int:
        """How many neurons have weights beyond the grid."""
        beyond = np.abs(self._in_units(theta_ref)[0]) >= self.qmax + 0.5
        if self.single is None:
            return int(beyond.any(axis=1).sum()) * (self.plain.neurons // self.rows)
        return len(np.unique(self.single[0][beyond]))


def needs_unrolling(floats: FloatLayer) -> bool:
    """Whether the layer is a convolution into channels whose thresholds differ."""
    flat = floats.theta.reshape(len(floats.theta), -1)
    return floats.geometry is not None and bool((flat != flat[:, :1]).any())


def too_large(
    convolutions: Sequence[FloatLayer],
    weight_bits: int,
    per_weight: int,
    chip: Chip,
) -> list[Problem]:
    """The problem of more single connections than ``chip`` has memory for.

    ``convolutions`` are the layers to unroll; a weight takes up to ``per_weight`` synapses.
    """
    total = written = 0
    for layer in convolutions:
        assert layer.geometry is not None
        every = np.ones(layer.weight.shape, np.bool_)
        total += connections(layer.weight != 0, layer.input_shape, layer.geometry)
        written += connections(every, layer.input_shape, layer.geometry)
    cores, memory = chip.limits.cores_per_chip, chip.limits.synapse_bytes_per_core
    held, holds = MOST, f"{MOST:,} are the most that are written"
    if chip.packing is not None and cores is not None and memory is not None:
        bits = synapse_bits(chip.packing, weight_bits)
        held = cores.value * memory.value * 8 // (bits * per_weight)
        holds = (
            f"the {cores.value * memory.value / 2**20:g} MiB of synapse memory of one {chip.name} "
            f"hold {held:,} of {bits * per_weight} bits"
        )
    if total <= held and written <= MOST:
        return []
    return [
        Problem(
            ", ".join(floats.name for floats in convolutions),
            f"folding makes {total:,} single connections of the convolutions; {holds}",
            f"use --thresholds {instead(chip)}",
        )
    ]


def instead(chip: Chip) -> str:
    """The lowering to take on ``chip`` where folding cannot be had."""
    return "native" if chip.limits.thresholds_per_core is None else "grouped"
