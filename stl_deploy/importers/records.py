"""``ReadAs`` of a population, from its neurons in the float graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from stl_deploy.ir.float_neurons import FloatNeurons
from stl_deploy.ir.read_as import Origin, Property, ReadAs


def record(
    population: str,
    neurons: FloatNeurons,
    neuron: str,
    timesteps: int,
    origin: Mapping[Property, Origin],
    source: str = "",
    v_reset: Any = 0.0,
    dt: float | None = None,
    tau: float | None = None,
) -> ReadAs:
    """How ``population`` was read, a reset of which comes in the step of the spike.

    ``neuron`` and ``v_reset`` are in the words and units of the file, in which it is called ``source``
    (default: as the population).
    """
    resets = neurons.fires and neurons.reset != "none"
    sends = neurons.fires and not neurons.graded
    values = np.unique(np.asarray(v_reset))
    to = "zero" if not values.any() else f"to {values[0]:g}" if len(values) == 1 else "to v_reset"
    kept = {"dt": dt, "tau": tau, "reset": resets or None, "when": resets or None}
    return ReadAs(
        population=population,
        neuron=neuron,
        reset={"zero": to}.get(neurons.reset, neurons.reset) if resets else "none",
        when=_when(neurons) if resets else "",
        dt=dt,
        tau=tau,
        timesteps=timesteps,
        spikes=1 if sends else None,
        source=source or population,
        origin={
            name: who
            for name, who in origin.items()
            if kept.get(name, True) is not None and (name != "spikes" or sends)
        },
    )


def _when(neurons: FloatNeurons) -> str:
    """When a spike resets, and how long neurons rest after it."""
    rests = {0: "", -1: ", then rests"}.get(neurons.hold, f", rests {neurons.hold}")
    return f"same step{rests}"
