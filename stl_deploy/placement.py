"""How many cores a network needs at least: compartments and weight memory, layer by layer.

A lower estimate: a convolution stores its kernel once, a dense layer a byte a weight, and no core is
shared between layers. It says nothing of axons, of the packing of synapses or of where cores lie.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from stl_deploy.chip import Chip
from stl_deploy.network import IntegerNetwork, Layer, LifLayer

CORES_PER_TILE = 4  # Davies et al. 2018: 128 cores in 32 tiles


@dataclass(frozen=True)
class CoreEstimate:
    """Cores of each layer by name, in all, and the chips that hold them."""

    layers: dict[str, int]
    cores: int
    chips: int

    @property
    def tiles(self) -> int:
        """Tiles of four cores."""
        return math.ceil(self.cores / CORES_PER_TILE)


def estimate(network: IntegerNetwork, chip: Chip) -> CoreEstimate | None:
    """The least number of cores of ``chip``; None where the chip has no cores (``ideal``)."""
    limits = chip.limits
    if limits.compartments_per_core is None or limits.cores_per_chip is None:
        return None
    layers = {layer.name: _cores(layer, chip) for layer in network.layers}
    cores = sum(layers.values())
    return CoreEstimate(layers, cores, math.ceil(cores / limits.cores_per_chip.value))


def _cores(layer: Layer, chip: Chip) -> int:
    compartments, memory = chip.limits.compartments_per_core, chip.limits.synapse_bytes_per_core
    cores = 1 if compartments is None else math.ceil(layer.neurons / compartments.value)
    if memory is not None and isinstance(layer, LifLayer):
        cores = max(cores, math.ceil(layer.synapses.weight.size / memory.value))
    return cores
