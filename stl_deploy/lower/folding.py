"""``--thresholds fold``: one threshold a layer, each neuron's inputs scaled in its place.

A LIF neuron does not change when its weights, bias and threshold are scaled together. So neuron i
takes the unit ``unit_i = theta_i * 2^exp / theta_ref``, in which its threshold is the whole number
theta_ref, the same in the whole layer. That is exact before the weights are rounded to these units.

A large theta_ref makes fine units, in which the weights of neurons with low thresholds leave the
grid and are cut off at its ends; a small one makes coarse units for all others. It is chosen so that
the error of the weights, relative to the threshold and averaged over the neurons, is least. That is
what folding costs.

All-to-all weights stay what they are. A convolution does so where the thresholds of a channel are equal, else
its neurons have kernels of their own and every synapse becomes a single connection (``Sparse``).
A population into which several connections lead is not folded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stl_deploy.chips.demand import synapse_bits
from stl_deploy.chips.facts import Chip
from stl_deploy.errors import Problem
from stl_deploy.ir import conv, slices
from stl_deploy.ir.network import IntegerNetwork
from stl_deploy.ir.single import MOST, connections
from stl_deploy.ir.slices import Weights
from stl_deploy.ir.synapses import Kernel, Shape, Sparse, Synapses
from stl_deploy.ir.units import FORGETS
from stl_deploy.lower import rules
from stl_deploy.lower.checks import NAMED
from stl_deploy.lower.integers import with_neurons
from stl_deploy.lower.options import Options
from stl_deploy.lower.rows import Target

Float = NDArray[np.float64]
FINENESS = 2**0.25  # the ratio of neighbouring theta_ref that are tried


class Fold:
    """The folded forms of one population.

    Args:
        plain: the network of the population as it is.
        target: the float population, its thresholds all above zero, with one connection.
        grid: what the weights count times a unit of thresholds.
    """

    def __init__(self, plain: IntegerNetwork, target: Target, grid: float) -> None:
        (rows,), (connection,) = target.rows, plain.connections
        self.plain, self.target, self.grid = plain, target, grid
        self.qmax = slices.largest(connection.precision, connection.bits)
        self.single: tuple[NDArray[np.int32], NDArray[np.int32], Kernel] | None = None
        count = target.channels if rows.kind == "conv" else target.size
        self.weight: Float = rows.weight.reshape(count, -1)
        self.threshold = target.theta.reshape(count, -1)
        self.bias = np.broadcast_to(target.bias, target.shape).reshape(count, -1)
        if rows.geometry is not None and needs_unrolling(target):
            (c, h, w), (o, y, x) = plain.shape(rows.source), target.shape
            row, column, self.weight = conv.unroll(
                rows.weight, (c, h, w), (o, y, x), *rows.geometry
            )
            self.single = row, column, Kernel(rows.weight, self.bias[:, 0], *rows.geometry)
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

    def network(self, theta_ref: int) -> IntegerNetwork:
        """The population with every threshold at ``theta_ref`` (fires where v >= theta_ref)."""
        (connection,) = self.plain.connections
        scaled, _ = self._in_units(theta_ref)
        weight = np.clip(np.rint(scaled), -self.qmax, self.qmax)
        whole = weight.astype(slices.kind(connection.precision))
        scale = self.threshold / theta_ref
        shape = self.target.shape
        synapses = self._synapses(connection.synapses, whole)
        return with_neurons(
            self.plain.changed(replace(connection, synapses=synapses)),
            bias_mant=_full(np.rint(self.bias / scale).astype(np.int32), shape),
            vth=np.full(shape, theta_ref - 1, np.int32),
            scale=_full(scale, shape) * self.target.gain,
        )

    def _synapses(self, plain: Synapses, weight: Weights) -> Synapses:
        if self.single is None:
            return plain.with_weights(weight.reshape(plain.weight.shape))
        stored = weight != 0
        row, column, kernel = self.single
        size = self.target.size, self.plain.size(self.target.rows[0].source)
        return Sparse(row[stored], column[stored], weight[stored], size, kernel)

    def cut_off(self, theta_ref: int) -> int:
        """How many neurons have weights beyond the grid."""
        beyond = np.abs(self._in_units(theta_ref)[0]) >= self.qmax + 0.5
        if self.single is None:
            return int(beyond.any(axis=1).sum()) * (self.target.size // len(self.weight))
        return len(np.unique(self.single[0][beyond]))


def _full(values: NDArray[Any], shape: Shape) -> NDArray[Any]:
    """Values [C, 1] of channels or [neurons] of neurons, in any shape, broadcastable to ``shape``."""
    if values.size == math.prod(shape):
        return values.reshape(shape)
    return values.reshape(-1, *[1] * (len(shape) - 1))


def needs_unrolling(target: Target) -> bool:
    """Whether a convolution leads into channels whose thresholds differ."""
    flat = target.theta.reshape(target.channels, -1)
    kernels = any(rows.kind == "conv" for rows in target.rows)
    return kernels and bool((flat != flat[:, :1]).any())


def problems(
    targets: Sequence[Target], shapes: Mapping[str, Shape], options: Options, chip: Chip
) -> list[Problem]:
    """Why ``fold`` cannot be had: what cannot be scaled neuron by neuron, or too many connections.

    ``shapes`` are those of the sources.
    """
    found: list[Problem] = []
    unrolled: list[Target] = []
    remedy = f"use --thresholds {instead(chip)}"
    for target in targets:
        if unfit := _unfit(target):
            found.append(Problem(target.name, f"{unfit}, which cannot be folded", remedy))
        elif needs_unrolling(target):
            unrolled.append(target)
        low = target.theta <= 0
        if low.any():
            where = [tuple(map(int, index)) for index in np.argwhere(low)[:NAMED]]
            listed = ", ".join(
                f"{index if len(index) > 1 else index[0]}: theta {target.theta[index]:.4g}"
                for index in where
            ) + (", ..." if low.sum() > NAMED else "")
            what = (
                f"{low.sum()} of {low.size} thresholds are not above zero ({listed}), and no "
                "scaling of the inputs makes them another one"
            )
            found.append(Problem(target.name, what, remedy))
    per_weight = slices.PER_WEIGHT[options.weight_precision]
    return found + too_large(unrolled, shapes, options.weight_bits, per_weight, chip)


def _unfit(target: Target) -> str:
    """What of a population cannot be folded, "" where it can."""
    if added := rules.extra(target.neurons):
        return f"has {' and '.join(added)}"
    if len(target.rows) != 1:
        return f"has {len(target.rows)} connections" if target.rows else "has no connections"
    if not needs_unrolling(target):
        return ""
    if np.any(np.asarray(target.du) != FORGETS):
        return "has a current behind a convolution"
    if target.bias.shape[1:] != (1,) * (len(target.shape) - 1):
        return "has a bias for each neuron behind a convolution"
    return ""


def too_large(
    convolutions: Sequence[Target],
    shapes: Mapping[str, Shape],
    weight_bits: int,
    per_weight: int,
    chip: Chip,
) -> list[Problem]:
    """The problem of more single connections than ``chip`` has memory for.

    ``convolutions`` are the populations to unroll; a weight takes up to ``per_weight`` synapses.
    """
    total = written = 0
    for target in convolutions:
        (rows,) = target.rows
        assert rows.geometry is not None
        every, shape = np.ones(rows.weight.shape, np.bool_), shapes[rows.source]
        total += connections(rows.weight != 0, shape, rows.geometry)
        written += connections(every, shape, rows.geometry)
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
            ", ".join(target.name for target in convolutions),
            f"folding makes {total:,} single connections of the convolutions; {holds}",
            f"use --thresholds {instead(chip)}",
        )
    ]


def instead(chip: Chip) -> str:
    """The lowering to take on ``chip`` where folding cannot be had."""
    return "native" if chip.limits.thresholds_per_core is None else "grouped"
