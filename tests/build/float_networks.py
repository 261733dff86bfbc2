"""Float networks by hand, and such as an integer network could be the rounding of."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from stl_deploy.ir.float_neurons import FloatNeurons
from stl_deploy.ir.floats import (
    FloatConnection,
    FloatNetwork,
    FloatPopulation,
    OneToOne,
    Way,
    Weights,
)
from stl_deploy.ir.network import Connection, IntegerNetwork, Population
from stl_deploy.ir.synapses import Geometry, Shape

ONE, ZERO = np.ones(1), np.zeros(1)


def neurons(theta: np.ndarray, keep: Any, gain: Any = 1.0, **fields: Any) -> FloatNeurons:
    """LIF: v = keep v + gain (w x + bias) + leak, fires where v >= theta."""
    given = {
        "kind": "lif",
        "step": 1 - np.asarray(keep, np.float64),
        "gain": np.asarray(gain, np.float64),
        "leak": ZERO,
        "threshold": np.nextafter(theta, -np.inf),
        "v_reset": ZERO,
        "current": ONE,
        "drive": ONE,
    }
    return FloatNeurons(**(given | fields))


def single(
    weight: np.ndarray,
    bias: np.ndarray,
    theta: np.ndarray,
    keep: float,
    input_shape: Shape,
    geometry: Geometry | None = None,
) -> FloatNetwork:
    """One population "lif" behind weights "lif_w" of an input "input"."""
    shape = theta.shape
    way = Weights("lif_w", weight, bias, geometry)
    population = FloatPopulation(
        "lif", shape, neurons(theta, keep), bias.reshape(-1, *[1] * (len(shape) - 1))
    )
    return FloatNetwork(
        {"input": input_shape}, (population,), (FloatConnection("input", "lif", way),), "lif", None
    )


def near(
    rng: np.random.Generator, network: IntegerNetwork, noise: float = 0.5
) -> tuple[IntegerNetwork, FloatNetwork]:
    """``network`` in units of its own, and a float network that it could be the rounding of.

    Weights and biases lie within ``noise`` of the integers, thresholds within one; decays within half a step;
    values of v and gains within ``noise`` of a unit. What neurons remember of a current is the integers' own.
    """
    populations, known, connections = [], [], []
    for p in network.populations:
        worth = rng.uniform(0.01, 2, (p.shape[0], *[1] * (len(p.shape) - 1)))
        changed, float_neurons, bias = _population(rng, p, worth, noise)
        populations.append(changed)
        known.append(FloatPopulation(p.name, p.shape, float_neurons, bias))
        worth = worth if p.kind == "lif" else np.ones_like(worth)
        for c in network.into(p.name):
            way = _way(rng, network, c, worth, noise if p.kind == "lif" else 0)
            connections.append(FloatConnection(c.source, c.target, way, c.delay, c.port))
    inputs = {name: port.shape for name, port in network.inputs.items()}
    floats = FloatNetwork(inputs, tuple(known), tuple(connections), network.readout.source, None)
    return network.changed(*populations), floats


def _population(
    rng: np.random.Generator, p: Population, worth: np.ndarray, noise: float
) -> tuple[Population, FloatNeurons, np.ndarray]:
    """The population with scales, its float neurons and bias, for weights that are ``worth`` so much."""
    mine = p.neurons
    if mine.kind == "or":
        return p, neurons(np.full(p.shape, 0.5), 0.0, kind="threshold"), ZERO
    gain = rng.choice([np.ones(p.shape), rng.uniform(0.5, 2, p.shape)])
    scale = worth * gain
    held = np.broadcast_to(mine.bias / 64, p.shape)
    bias = (held + rng.uniform(-noise, noise, p.shape) * (held != 0)) * worth
    theta = (mine.vth + rng.uniform(0, 1, p.shape)) * scale
    keep = 1 - np.asarray(mine.dv) / 4096
    if rng.random() < 0.5:
        keep = np.clip(keep + rng.uniform(-noise, noise) / 4096, 0, 1)
    currents: dict[str, Any] = {}
    if mine.has_current:
        drop = np.asarray(mine.du) + 1
        currents = {"kind": "cuba", "current": drop / 4096}
    if mine.du2 is not None:
        currents |= {"current2": (np.asarray(mine.du2) + 1) / 4096 + np.zeros(1), "drive2": ONE}
    rules = {**currents, **_rules(rng, mine, p.shape, scale / 64, noise)}
    made = neurons(theta, keep, gain, **rules)
    return replace(p, neurons=replace(mine, scale=scale)), made, bias


def _rules(
    rng: np.random.Generator, mine: Any, shape: Shape, unit: np.ndarray, noise: float
) -> dict[str, Any]:
    """What else the float neurons do; ``unit`` is that of v."""

    def of_v(values: Any) -> np.ndarray:
        return (np.asarray(values) + rng.uniform(-noise, noise, shape)) * unit

    subtracts = mine.reset in ("subtract", "none")
    found: dict[str, Any] = {"reset": mine.reset if subtracts else "zero"}
    if mine.reset == "constant":
        found["v_reset"] = of_v(mine.v_reset)
    if np.any(mine.v0):
        found["v0"] = of_v(mine.v0)
    if mine.floor is not None:
        found["floor"] = of_v(mine.floor)
    if mine.adapts:
        step = np.clip(np.asarray(mine.dq) / 4096 + rng.uniform(-noise, noise) / 8192, 0, 1)
        found |= {"adapt": of_v(mine.adapt), "adapt_step": step + ZERO}
    if mine.gain is not None:
        spread = rng.uniform(-noise, noise, mine.gain.shape)
        found["amplify"] = (mine.gain + spread) / 4096
    return found | {"hold": mine.hold, "reset_current": mine.reset_current}


def _way(
    rng: np.random.Generator,
    network: IntegerNetwork,
    c: Connection,
    worth: np.ndarray,
    noise: float,
) -> Way:
    """A float connection whose weights, of which one is ``worth`` so much, lie near those of ``c``."""
    held, shape = c.synapses.weight, network.shape(c.target)
    if c.synapses.kind == "sparse":
        # Every synapse is between two neurons of its own.
        held = c.synapses.matrix.toarray()
    exact = held + rng.uniform(-noise, noise, held.shape) * (held != 0)
    exact = exact * 2.0**c.exp
    if c.synapses.kind == "one_to_one":
        return OneToOne(c.name, exact.reshape(shape) * worth)
    if c.synapses.kind == "conv":
        rows = worth.reshape(-1, 1, 1, 1)
    else:
        rows = np.broadcast_to(worth, shape).reshape(-1, 1)
    return Weights(c.name, exact * rows, None, c.synapses.geometry)
