"""Whether two traces of the simulator are the same."""

from __future__ import annotations

FIELDS = ("spikes", "active", "overflow", "u", "v", "active_by_core")


def assert_same(got, want):
    assert got.layers.keys() == want.layers.keys()
    for name, did in want.layers.items():
        assert_layer(got.layers[name], did, name)
    assert (got.predictions == want.predictions).all()


def assert_layer(got, want, name=""):
    for field in FIELDS:
        a, b = getattr(got, field), getattr(want, field)
        assert (a is None) == (b is None), (name, field)
        if b is not None:
            assert (a.shape, a.dtype) == (b.shape, b.dtype), (name, field)
            assert (a == b).all(), (name, field)
    assert got.more.keys() == want.more.keys(), name
    for state, b in want.more.items():
        a = got.more[state]
        assert (a.shape, a.dtype) == (b.shape, b.dtype), (name, state)
        assert (a == b).all(), (name, state)
