"""What is compared between a backend and the reference: everything sent, every state, the predictions."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from stl_deploy.hw_sim import reference
from stl_deploy.verify import against_reference, check
from tests.build import random_graphs


def drawn():
    """A graph in which populations have all states, and one sends values."""
    for seed in range(500):
        network, rasters = random_graphs.draw(seed, random_graphs.TABLE)
        states = {name for p in network.populations for name in p.neurons.states}
        graded = [p.name for p in network.populations if p.neurons.graded is not None]
        if states == {"u2", "q", "rest"} and graded:
            return network, rasters, graded[0]
    raise AssertionError("no such graph")


@pytest.fixture(scope="module")
def compared():
    """A network, what the reference did, and the same as a backend tells it."""
    network, rasters, graded = drawn()
    trace = reference.run(network, rasters, states=True)
    got = {"prediction": trace.predictions}
    for name, did in trace.layers.items():
        got |= {f"spikes/{name}": did.spikes, f"u/{name}": did.u, f"v/{name}": did.v}
        got |= {f"{state}/{name}": values for state, values in did.more.items()}
    return network, trace, got, graded


@pytest.fixture
def case(compared):
    network, trace, got, graded = compared
    return network, trace, copy.deepcopy(got), graded


def test_all_of_it_is_counted(case):
    network, trace, got, _ = case
    found = against_reference.compare(network, trace, got)
    states = sum(values.size for key, values in got.items() if not key.startswith("spikes/"))
    assert found == against_reference.Agreement(
        sum(did.spikes.size for did in trace.layers.values()), states - len(trace.predictions)
    )
    assert found.exact


@pytest.mark.parametrize("state", ["u", "v", "u2", "q", "rest"])
def test_one_entry_of_any_state_is_seen(case, state):
    network, trace, got, _ = case
    name = next(key for key in got if key.startswith(f"{state}/")).removeprefix(f"{state}/")
    neuron = (0,) * len(network.shape(name))
    got[f"{state}/{name}"][(1, 1, *neuron)] += 1
    found = against_reference.compare(network, trace, got, first_sample=10)
    assert (found.spike_mismatches, found.state_mismatches, found.exact) == (0, 1, False)
    assert found.first is not None
    assert (found.first.layer, found.first.kind, found.first.sample) == (name, state, 11)
    assert found.first.got - found.first.expected == 1


def test_a_value_that_is_sent_counts_whole(case):
    network, trace, got, name = case
    at = tuple(np.argwhere(np.abs(trace.layers[name].spikes) > 1)[0])
    got[f"spikes/{name}"][at] -= 1
    found = against_reference.compare(network, trace, got)
    assert (found.spike_mismatches, found.state_mismatches) == (1, 0)


def test_a_prediction_is_compared_where_there_is_one(case):
    network, trace, got, _ = case
    got["prediction"][1] += 1
    found = against_reference.compare(network, trace, got, first_sample=4)
    assert (found.prediction_mismatches, found.state_mismatches, found.exact) == (1, 0, False)
    assert found.first is not None
    assert (found.first.layer, found.first.kind) == (network.readout.source, "prediction")
    assert found.first.sample == 5
    assert "1 predictions; first prediction" in check._difference("lava", found)
    del got["prediction"]
    assert against_reference.compare(network, trace, got).exact


def test_a_state_that_a_backend_leaves_out_is_no_agreement(case):
    network, trace, got, _ = case
    name = next(key for key in got if key.startswith("rest/"))
    del got[name]
    with pytest.raises(KeyError, match=name):
        against_reference.compare(network, trace, got)
