"""Float layers made by hand, in the units of v."""

from __future__ import annotations

import numpy as np

from stl_deploy.ir.float_chain import FloatLayer
from stl_deploy.ir.float_neurons import FloatNeurons
from stl_deploy.ir.floats import Weights
from stl_deploy.ir.synapses import Geometry, Shape


def float_layer(
    weight: np.ndarray,
    bias: np.ndarray,
    theta: np.ndarray,
    keep: float,
    input_shape: Shape,
    geometry: Geometry | None = None,
) -> FloatLayer:
    """LIF named "lif" with a gain of 1: v = keep v + w x + bias, fires where v >= theta."""
    one = np.ones(1)
    neurons = FloatNeurons(
        kind="lif",
        step=np.full(1, 1 - keep),
        gain=one,
        leak=np.zeros(1),
        threshold=np.nextafter(theta, -np.inf),
        v_reset=np.zeros(1),
        current=one,
        drive=one,
    )
    return FloatLayer(
        "lif", (Weights("w", weight, bias, geometry),), neurons, input_shape, theta.shape
    )
