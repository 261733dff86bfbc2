"""The float network run step by step in float64: what the float graph means.

The equation of the neurons is in ``float_neurons.py``. Weights from the neurons back to them add the
weighted spikes of the step before to the input.

Of a network that was ``trained`` on integers v is a multiple of 1/64 of a unit, and what a step leaves of
it is truncated to one, toward zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import nir
import numpy as np
from numpy.typing import NDArray

from stl_deploy.ir.float_neurons import FloatNeurons
from stl_deploy.ir.floats import FloatLayer, FloatNetwork, decode
from stl_deploy.ir.units import DECAY_ONE, UNIT

Array = NDArray[Any]
Float = NDArray[np.float64]
Observe = Callable[[str, Float], None]


def run(
    graph: nir.NIRGraph | FloatNetwork,
    raster: Array,
    observe: Observe | None = None,
    forced: Mapping[str, Array] | None = None,
) -> dict[str, NDArray[np.uint8]]:
    """Spikes [N, T, *shape] of every population, in float64.

    Args:
        graph: a float network, or the lowered graph of one.
        raster: input [N, T, *input_shape].
        observe: called with (name, output [N*T, ...]) of all weights in the row of populations; where the
            neurons behind them are recurrent, their recurrent input is included.
        forced: spikes [N, T, ...] by population, which what follows is given in the place of the
            population's own; those are still what is returned.

    Raises LoweringError naming every node that a float network cannot have.
    """
    network = graph if isinstance(graph, FloatNetwork) else decode(graph)
    size = raster.shape[:2]
    x: Float = raster.reshape(math.prod(size), *raster.shape[2:]).astype(np.float64)
    spikes: dict[str, NDArray[np.uint8]] = {}
    for layer in network.layers:
        fired = _layer(network, layer, x, size, observe)
        spikes[layer.name] = fired.astype(np.uint8)
        if forced is not None and layer.name in forced:
            fired = forced[layer.name].astype(np.float64)
        x = fired.reshape(math.prod(size), *layer.shape)
    return spikes


def _layer(
    network: FloatNetwork,
    layer: FloatLayer,
    x: Float,
    size: tuple[int, int],
    observe: Observe | None,
) -> Float:
    """Spikes [N, T, *shape] of one layer for its inputs x [N*T, *input_shape]."""
    observed = ""
    for way in layer.ways:
        x = way.apply(x)
        if way.kind == "weights" and observe is not None:
            if layer.own is not None and way is layer.ways[-1]:
                observed = way.name
            else:
                observe(way.name, x)
    total = x.reshape(*size, *layer.shape)
    if network.trained is not None and layer.neurons.has_state:
        spikes = _whole(layer.neurons, total, np.array(network.trained.scale[layer.name]))
    else:
        spikes = _neurons(layer.neurons, total, layer.own)
    if observed and observe is not None:
        observe(observed, total.reshape(math.prod(size), *layer.shape))
    return spikes


def _neurons(neurons: FloatNeurons, inputs: Float, own: Float | None) -> Float:
    """Spikes [N, T, *shape] for ``inputs`` of that shape.

    The recurrent input, through the weights ``own``, is added to ``inputs`` in place.
    """
    subtract = neurons.reset == "subtract"
    left = 1 - neurons.current
    held = v = np.zeros_like(inputs[:, 0])
    s: NDArray[Any] = np.zeros_like(v)
    spikes = np.zeros_like(inputs)
    for t in range(inputs.shape[1]):
        if own is not None:
            inputs[:, t] += s @ own.T
        current = inputs[:, t]
        if neurons.has_current:
            held = current = left * held + neurons.drive * current
        v = neurons.keep * v + neurons.gain * current + neurons.leak
        s = v > neurons.threshold
        spikes[:, t] = s
        v = np.where(s, v - neurons.threshold if subtract else neurons.v_reset, v)
    return spikes


def _whole(neurons: FloatNeurons, inputs: Float, scale: Float) -> Float:
    """``_neurons`` for LIF that were trained on integers; ``scale`` [C] is their unit."""
    least = scale.reshape(-1, *[1] * (inputs.ndim - 3)) / UNIT
    kept = np.rint(DECAY_ONE * neurons.keep)
    v = np.zeros_like(inputs[:, 0])
    spikes = np.zeros_like(inputs)
    for t in range(inputs.shape[1]):
        # What comes in is a whole multiple of 64, but for the rounding of a sum of floats.
        v = np.trunc(v * kept / DECAY_ONE) + np.rint(neurons.gain * inputs[:, t] / least)
        spikes[:, t] = s = v * least > neurons.threshold
        v[s] = 0
    return spikes
