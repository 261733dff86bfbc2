"""Whether two integer networks are the same, array by array."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stl_deploy.ir.network import IntegerNetwork
from stl_deploy.ir.neurons import Graded
from stl_deploy.ir.synapses import Shape


def assert_same(a: IntegerNetwork, b: IntegerNetwork) -> None:
    """Fail unless both compute the same from the same numbers.

    Parameters of neurons are compared as broadcast to them.
    """
    for key in ("chip", "chip_facts", "timesteps", "lowering", "lowering_reason"):
        assert getattr(a, key) == getattr(b, key), key
    for key, value in vars(a.readout).items():
        np.testing.assert_array_equal(value, getattr(b.readout, key), err_msg=f"readout.{key}")
    assert list(a.inputs.items()) == list(b.inputs.items())
    assert [(p.name, p.shape, p.kind) for p in a.populations] == [
        (p.name, p.shape, p.kind) for p in b.populations
    ]
    for p, q in zip(a.populations, b.populations, strict=True):
        for key, value in vars(p.neurons).items():
            other = getattr(q.neurons, key)
            if key == "gain" and value is not None:
                value, other = (_by_neuron(x, p.shape) for x in (value, other))
                np.testing.assert_array_equal(value, other, err_msg=f"{p.name}.{key}")
            elif value is None or isinstance(value, str | Graded):
                assert value == other, f"{p.name}.{key}"
            else:
                found = (np.broadcast_to(x, p.shape) for x in (value, other))
                np.testing.assert_array_equal(*found, err_msg=f"{p.name}.{key}")
    assert len(a.connections) == len(b.connections)
    for c, d in zip(a.connections, b.connections, strict=True):
        for key in ("key", "exp", "bits", "precision", "delay", "port"):
            assert getattr(c, key) == getattr(d, key), f"{c.name}.{key}"
        assert (c.synapses.kind, c.synapses.geometry) == (d.synapses.kind, d.synapses.geometry)
        for x, y in zip(c.synapses.arrays, d.synapses.arrays, strict=True):
            assert x.dtype == y.dtype
            np.testing.assert_array_equal(x, y, err_msg=c.name)


def _by_neuron(gain: NDArray[np.int16], shape: Shape) -> NDArray[np.int16]:
    """A gain [T, ...] for each neuron: [T, *shape]."""
    return np.stack([np.broadcast_to(step, shape) for step in gain])
