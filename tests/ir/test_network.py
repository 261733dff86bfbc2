"""The graph of an integer network: what leads where, and what a population needs to run alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import stl_deploy
from stl_deploy.errors import InputError
from stl_deploy.hw_sim import reference
from stl_deploy.ir import slices
from stl_deploy.ir.network import (
    Connection,
    Input,
    IntegerNetwork,
    Population,
    fan_out,
    synapse_count,
)
from stl_deploy.ir.neurons import Lif, by_channel, of_channels, shared
from stl_deploy.ir.readouts import Readout
from stl_deploy.ir.synapses import Conv, Dense, OneToOne
from tests.build import forced, random_graphs


def population(name, size=3):
    zero = np.zeros(size, np.int32)
    return Population(name, (size,), Lif(zero, zero, np.ones(size)))


def dense(name, source, target, delay=0):
    return Connection(name, source, target, Dense(np.eye(3, dtype=np.int8)), delay=delay)


def residual(**fields):
    return IntegerNetwork(
        "loihi2",
        4,
        fields.pop("inputs", {"input": Input((3,))}),
        tuple(population(name) for name in "abc"),
        (
            dense("w1", "input", "a"),
            dense("w2", "a", "b"),
            dense("w3", "b", "c"),
            Connection("skip", "a", "c", OneToOne(np.array([1, 0, 2], np.int8))),
        ),
        Readout(3, 1, "c"),
        **fields,
    )


def test_a_skip_waits_for_the_population_that_it_jumps_over():
    network = residual()
    assert network.depth == {"input": 0, "a": 1, "b": 2, "c": 3}
    assert network.hops == 3
    assert [network.waits(c) for c in network.connections] == [0, 0, 0, 1]
    assert [c.name for c in network.into("c")] == ["w3", "skip"]
    assert [c.name for c in network.out_of("a")] == ["w2", "skip"]
    assert [synapse_count(network, c) for c in network.connections] == [3, 3, 3, 2]
    assert fan_out(network, network.into("c")[1]).tolist() == [1, 0, 1]


def test_without_depths_nothing_can_be_scheduled():
    network = residual()
    back = dense("back", "c", "a", delay=1)
    network = replace(network, connections=(*network.connections, back))
    assert network.depth is None
    assert [[p.name for p in part] for part in network.parts] == [["a", "b", "c"]]
    with pytest.raises(ValueError, match="fewer steps of delay than hops"):
        network.waits(back)
    slower = replace(network, connections=(*network.connections[:-1], replace(back, delay=3)))
    assert slower.waits(slower.connections[-1]) == 0


def test_a_population_alone_does_what_it_does_in_the_network():
    for seed in range(6):
        network, rasters = random_graphs.draw(seed)
        values = random_graphs.sent(network, rasters)
        for name in network.by_name:
            want = values[name]
            np.testing.assert_array_equal(random_graphs.alone(network, name, values).spikes, want)


def test_a_network_that_is_cut_hears_what_is_given():
    """Populations that are all given the spikes that they fire anyway fire the same."""
    for seed in range(6):
        network, rasters = random_graphs.draw(seed)
        trace = reference.run(network, rasters, states=True)
        fired = {name: did.spikes for name, did in trace.layers.items()}
        again = forced.run(network, rasters, fired, states=True)
        for name, did in again.layers.items():
            np.testing.assert_array_equal(did.v, trace.layers[name].v)
    network, rasters = random_graphs.draw(3)
    nothing = {name: np.zeros_like(spikes) for name, spikes in fired_of(network, rasters).items()}
    silent = forced.run(network, rasters, nothing)
    for name in network.by_name:
        heard = network.cut(network.by_name)
        assert all(c.source in heard.inputs for c in heard.into(name))
        bare = replace(
            network, connections=tuple(c for c in network.connections if c.source in rasters)
        )
        without = reference.run(bare, rasters).layers[name].spikes
        np.testing.assert_array_equal(silent.layers[name].spikes, without)


def fired_of(network, rasters):
    return {n: did.spikes for n, did in reference.run(network, rasters).layers.items()}


def test_rasters_by_input():
    network = residual(inputs={"input": Input((3,), 7, held=True)})
    frame = np.arange(6).reshape(2, 1, 3)
    (given,) = network.rasters(frame).values()
    assert given.shape == (2, 4, 3)
    assert (given == frame).all()
    with pytest.raises(ValueError, match="input: 4 steps, not 1"):
        network.rasters(np.zeros((2, 4, 3), np.uint8))
    with pytest.raises(ValueError, match="rasters are needed for input"):
        network.rasters({"other": frame})
    two = residual(inputs={"input": Input((3,)), "side": Input((3,))})
    with pytest.raises(ValueError, match="as many samples are needed of each input"):
        two.rasters({"input": np.zeros((3, 4, 3)), "side": np.zeros((8, 4, 3))})
    with pytest.raises(InputError, match="different numbers of samples: 3 of input, 8 of side"):
        stl_deploy.simulate(
            two,
            {"input": np.zeros((3, 4, 3), np.uint8), "side": np.zeros((8, 4, 3), np.uint8)},
        )
    assert Input((3,), 7, signed=True).lowest == -7
    assert network.span("input") == (0, 7)
    assert network.span("a") == (0, 1)


def test_groups_of_a_connection_add_up():
    weight = np.array([[300, -5], [-128, 127]], np.int16)
    for precision, bits in (("2x8", 8), ("split", 8)):
        given = np.clip(weight, -255, 255) if precision == "split" else weight
        c = Connection("w", "a", "b", Dense(given), 2 * (precision == "split"), bits, precision)
        total = sum(g.sums(np.eye(2, dtype=np.uint8), 1) for g in c.groups())
        np.testing.assert_array_equal(total, c.sums(np.eye(2, dtype=np.uint8), 1))
        assert c.stored_weights == slices.synapses(given, precision).sum()
    kernel = Conv(np.ones((1, 1, 2, 2), np.int8), (2, 2), (0, 0), (1, 1), 1)
    assert Connection("w", "a", "b", kernel, bits=1).grid_bits == 1


def test_parameters_for_all_for_channels_and_for_each():
    assert shared(7) == 7
    assert shared(np.array([7, 7])) == 7
    assert shared(np.array([7, 8])) is None
    assert of_channels(np.arange(2), (2, 3, 3)).shape == (2, 1, 1)
    assert of_channels(np.arange(18), (2, 3, 3)).shape == (2, 3, 3)
    each = np.broadcast_to(np.array([1, 2]).reshape(2, 1, 1), (2, 3, 3))
    assert by_channel(each, (2, 3, 3)).tolist() == [1, 2]
    with pytest.raises(ValueError, match="differs between the neurons of a channel"):
        by_channel(np.arange(18).reshape(2, 3, 3), (2, 3, 3))


def test_changed_replaces_by_name():
    network = residual()
    a = replace(network.by_name["a"], neurons=replace(network.by_name["a"].neurons, dv=7))
    skip = replace(network.connections[3], delay=2)
    other = network.changed(a, skip)
    assert other.by_name["a"].neurons.dv == 7
    assert other.into("c")[1].delay == 2
    assert other.into("c")[0] is network.into("c")[0]
