"""The engine as a backend: with u and v and without it takes different ways, and both count."""

from __future__ import annotations

import numpy as np
import pytest

from stl_deploy import from_torch, quantize
from stl_deploy.backends import hw_sim
from stl_deploy.hw_sim import reference
from stl_deploy.hw_sim.engine import Engine
from stl_deploy.verify import against_reference
from tests.build import random_graphs
from tests.build.nets import random_net, random_spikes


@pytest.fixture(scope="module")
def small():
    net = random_net()
    return quantize(from_torch(net), chip="loihi2"), random_spikes(net, 30)


@pytest.mark.parametrize("wrong", [None, False, True])
def test_a_wrong_spike_is_seen_whichever_way_it_comes(small, monkeypatch, wrong):
    """``wrong``: the way, by whether states were asked for, that turns one spike round."""
    network, raster = small
    run, last = Engine.run, network.readout.source

    def turned(self, inputs, states=False, **rest):
        trace = run(self, inputs, states=states, **rest)
        if states == wrong and len(inputs) == 5:  # the second batch
            trace.layers[last].spikes[2, 1, 3] ^= 1
        return trace

    monkeypatch.setattr(Engine, "run", turned)
    told = []
    found = against_reference.measure("hw_sim", network, raster, on_steps=told.append)
    assert told == [25 * network.timesteps, 30 * network.timesteps]
    assert found.entries == 30 * network.timesteps * sum(p.size for p in network.populations)
    assert (found.spike_mismatches, found.state_mismatches) == (int(wrong is not None), 0)
    if wrong is not None:
        assert found.first is not None
        assert (found.first.layer, found.first.sample, found.first.step) == (last, 27, 1)
        assert found.first.neuron == np.unravel_index(3, network.shape(last))


@pytest.mark.parametrize("seed", range(8))
def test_sessions_return_every_state_and_the_predictions(seed):
    network, rasters = random_graphs.draw(seed, random_graphs.TABLE)
    found = hw_sim.session(network).run(rasters)
    want = reference.run(network, rasters, states=True)
    np.testing.assert_array_equal(found["prediction"], want.predictions)
    for name, did in want.layers.items():
        kept = {"spikes": did.spikes, "bare": did.spikes, "u": did.u, "v": did.v, **did.more}
        for kind, values in kept.items():
            np.testing.assert_array_equal(found[f"{kind}/{name}"], values, err_msg=f"{kind}/{name}")
