"""Networks of SpikingJelly run on the raster themselves: both step modes, and a frame that is repeated."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stl_deploy.importers.nir.graph import Options
from stl_deploy.importers.torch.net import lowered
from stl_deploy.verify import against_network
from tests.build import jelly_nets as nets
from tests.build.networks import values
from tests.importers.test_spikingjelly import made, sj, spikes_of

__all__ = ["sj"]  # a fixture
STEPS = 5


@pytest.mark.parametrize("kind", ["LIFNode", "IFNode"])
@pytest.mark.parametrize("form", ["s", "m", "held"])
def test_a_classifier(sj, form, kind):
    one_step, held = form == "s", form == "held"
    net = made(nets.CSNN(sj, "s" if one_step else "m", kind))
    x = values((30, STEPS, 2, 8, 8), 0.4, seed=1)
    if held:
        x = np.repeat(x[:, :1], STEPS, axis=1)
    given = torch.tensor(x[:2]).float()
    sample = given[:, 0] if one_step or held else given.transpose(0, 1)
    found = lowered(net, sample, Options(timesteps=STEPS))
    inputs = x[:, :1] if held else x
    _, double = found.live.run(inputs)
    want = spikes_of(net, sj, x.astype(np.float64), one_step, held)
    assert set(double) == set(want)
    for name, spikes in want.items():
        np.testing.assert_array_equal(double[name].reshape(spikes.shape), spikes)
        assert 0.01 < spikes.mean() < 0.95
    itself = against_network.compare(found.live, found.graph, inputs)
    assert itself.why == ""
    assert itself.expected.passed
    assert itself.expected.entries == sum(spikes.size for spikes in want.values())
