"""Whether two integer networks are the same, array by array."""

from __future__ import annotations

import numpy as np

from stl_deploy.ir.network import IntegerNetwork


def assert_same(a: IntegerNetwork, b: IntegerNetwork) -> None:
    """Fail unless both compute the same from the same numbers.

    Parameters of neurons are compared as broadcast to them.
    """
    for key in ("chip", "chip_facts", "timesteps", "readout", "lowering", "lowering_reason"):
        assert getattr(a, key) == getattr(b, key), key
    assert list(a.inputs.items()) == list(b.inputs.items())
    assert [(p.name, p.shape, p.kind) for p in a.populations] == [
        (p.name, p.shape, p.kind) for p in b.populations
    ]
    for p, q in zip(a.populations, b.populations, strict=True):
        for key, value in vars(p.neurons).items():
            other = getattr(q.neurons, key)
            if isinstance(value, str):
                assert value == other
            else:
                found = (np.broadcast_to(x, p.shape) for x in (value, other))
                np.testing.assert_array_equal(*found, err_msg=f"{p.name}.{key}")
    assert len(a.connections) == len(b.connections)
    for c, d in zip(a.connections, b.connections, strict=True):
        assert (c.key, c.exp, c.bits, c.precision, c.delay) == (
            *(d.key, d.exp, d.bits),
            *(d.precision, d.delay),
        )
        assert (c.synapses.kind, c.synapses.geometry) == (d.synapses.kind, d.synapses.geometry)
        for x, y in zip(c.synapses.arrays, d.synapses.arrays, strict=True):
            assert x.dtype == y.dtype
            np.testing.assert_array_equal(x, y, err_msg=c.name)
