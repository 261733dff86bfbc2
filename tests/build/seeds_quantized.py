"""Float networks of other authors' systems in whole numbers: every backend computes the same of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

import stl_deploy
from stl_deploy.hw_sim import engine, reference
from stl_deploy.ir import nir_graph as G
from stl_deploy.ir.floats import FloatNetwork
from stl_deploy.ir.network import IntegerNetwork
from tests.build.onnx_models import compared
from tests.build.traces import assert_same

CHIPS = ("ideal", "loihi2")


def quantized(network: FloatNetwork, x: NDArray[Any], chip: str) -> IntegerNetwork:
    """``network`` at 8 bits, for inputs such as ``x``."""
    read = network.readout
    assert read is not None
    signed, levels = bool(x.min() < 0), int(np.abs(x).max())
    meta = G.FloatMeta(
        version=3 if signed else 1,
        timesteps=x.shape[1],
        input_levels=levels,
        signed=signed,
        classes=read.classes,
        population=read.population,
    )
    return stl_deploy.quantize(replace(network, meta=meta), chip)


def same_everywhere(network: FloatNetwork, x: NDArray[Any], chip: str) -> IntegerNetwork:
    """Assert that the engine and ONNX equal the reference in spikes, states and classes."""
    found = quantized(network, x, chip)
    x = x[:2] if x.min() < 0 else x[:2].astype(np.uint8)
    want = reference.run(found, x, states=True)
    assert_same(engine.run(found, x, states=True), want)
    assert compared(found, x).exact
    for population in found.populations:
        spikes = want.layers[population.name].spikes
        assert spikes.any() or population.neurons.span == (0, 0), population.name
    return found
