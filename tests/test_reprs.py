"""What a notebook shows of networks, traces and reports: a few lines, whatever their size."""

from __future__ import annotations

import numpy as np
import pytest

import stl_deploy
from stl_deploy.errors import InputError
from tests.build.nets import random_net, random_spikes

LAYERS = "-".join(["FC8-LIF"] * 20)


@pytest.fixture(scope="module")
def made():
    net = random_net("4C3-BN-LIF-P4-FC20-LIF-AvgPool2", shape=(1, 8, 8))
    graph = stl_deploy.from_torch(net)
    return net, graph, stl_deploy.quantize(graph, "loihi2"), random_spikes(net, 3)


def test_a_network(made):
    _, _, network, _ = made
    assert repr(network) == (
        "IntegerNetwork for loihi2, 4 steps, 10 classes: input (1, 8, 8), lif1 (4, 8, 8), "
        "pool1 (4, 4, 4), lif2 (20,)"
    )
    deep = random_net(f"{LAYERS}-AvgPool2", shape=(8,))
    text = repr(stl_deploy.quantize(stl_deploy.from_torch(deep)))
    assert "lif10 (8,), 9 more, lif20 (8,)" in text
    assert len(text) < 300


def test_a_trace(made):
    _, _, network, spikes = made
    trace = stl_deploy.simulate(network, spikes, states=True)
    lines = repr(trace).splitlines()
    assert lines[0] == "Trace of 3 samples, predictions (3,)"
    fired = np.count_nonzero(trace.layers["lif1"].spikes)
    assert lines[1] == (
        f"  lif1: LayerTrace(spikes (3, 4, 4, 8, 8): {fired:,} are not 0, 0 overflows, with u, v)"
    )
    assert len(lines) == 1 + len(network.populations)
    plain = stl_deploy.simulate(network, spikes).layers["lif2"]
    assert repr(plain).endswith("0 overflows)")


def test_a_report(made):
    net, _, network, spikes = made
    report = stl_deploy.parity(net, network, spikes, [0, 1, 2])
    lines = repr(report).splitlines()
    assert lines[0].startswith("ParityReport of 3 samples: ")
    assert "equal predictions, accuracy" in lines[0]
    assert lines[1].startswith("  lif1: ")
    assert "of 3,072 spikes differ" in lines[1]
    assert len(lines) == 1 + len(report.layers)
    assert "accuracy" not in repr(stl_deploy.parity(net, network, spikes))


def test_a_model_is_not_quantized_without_its_graph(made):
    net, *_ = made
    with pytest.raises(
        InputError, match=r"is of type STLNet, .* give the graph that from_torch\(model\)"
    ):
        stl_deploy.quantize(net)
