"""Noise on what a network reads, and drift of what it holds: how robust is it?

Input noise acts on images, before they are encoded (``pixel``, ``gaussian``), or on a raster, where every
event may be lost (``drop``). Drift multiplies every weight or threshold by max(0, 1 + sigma * N(0, 1)), drawn
once for each value: what a chip's devices do, in a float model or in the integers of a network.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from stl_deploy.ir import slices
from stl_deploy.ir.network import Connection, IntegerNetwork, Population

Noise = Literal["pixel", "gaussian", "drop"]
VTH_MAX = (1 << 31) - 1  # of int32; a chip's own limit is below it


def pixel(images: NDArray[np.uint8], share: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Bernoulli noise: each value of uint8 [N, ...] is, with probability ``share``, 0 or 255 instead."""
    hit = rng.random(images.shape) < share
    other = np.where(rng.random(images.shape) < 0.5, np.uint8(255), np.uint8(0))
    return np.where(hit, other, images)


def gaussian(
    images: NDArray[np.uint8], sigma: float, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Normal noise of ``sigma`` times the range on uint8 [N, ...], rounded and cut to 0..255."""
    noisy = images + rng.normal(0, 255 * sigma, images.shape)
    return np.rint(noisy).clip(0, 255).astype(np.uint8)


def drop(raster: NDArray[np.uint8], share: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Every event of a raster [N, T, ...] is lost with probability ``share``, a graded one as a whole."""
    return raster * (rng.random(raster.shape) >= share)


def drift_params(
    params: dict[str, NDArray[Any]], sigma: float, of: Literal["weight", "thresh"], seed: int
) -> dict[str, NDArray[Any]]:
    """Parameters of a float model whose ``conv``/``fc`` weights, or ``lif`` thresholds, drift."""
    rng = np.random.default_rng(seed)
    out = dict(params)
    for key, value in params.items():
        # A one-dimensional weight is BatchNorm's: no synapse.
        if key.endswith(f".{of}") and (of == "thresh" or value.ndim > 1):
            out[key] = (value * _factors(value.shape, sigma, rng)).astype(value.dtype)
    return out


def drift_network(
    network: IntegerNetwork, sigma: float, of: Literal["weight", "thresh"], seed: int
) -> IntegerNetwork:
    """An integer network whose stored weights, or thresholds, drift and are rounded again.

    Weights stay on their grid and thresholds within int32. What is zero is no synapse, and stays zero.
    Placement and lowering are those of the network.
    """
    rng = np.random.default_rng(seed)
    moved: list[Population | Connection] = []
    weights: dict[str, NDArray[Any]] = {}  # connections of one name share them
    for population in network.weighted:
        neurons = population.neurons
        if of == "thresh" and neurons.kind == "lif":
            vth = _moved(neurons.vth, VTH_MAX, sigma, rng)
            moved.append(replace(population, neurons=replace(neurons, vth=vth)))
        elif of == "weight":
            for c in network.into(population.name):
                most = slices.largest(c.precision, c.bits)
                if c.name not in weights:
                    weights[c.name] = _moved(c.synapses.weight, most, sigma, rng)
                moved.append(replace(c, synapses=c.synapses.with_weights(weights[c.name])))
    return network.changed(*moved)


def _factors(shape: tuple[int, ...], sigma: float, rng: np.random.Generator) -> NDArray[np.float64]:
    return np.maximum(0, 1 + sigma * rng.standard_normal(shape))


def _moved(values: NDArray[Any], most: int, sigma: float, rng: np.random.Generator) -> NDArray[Any]:
    """Whole numbers that drift, at most as large as ``most``."""
    noisy = np.rint(values * _factors(values.shape, sigma, rng))
    return noisy.clip(-most, most).astype(values.dtype)
