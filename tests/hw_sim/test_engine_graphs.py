"""The engine on graphs: what joins, loops, waits and is held equals the reference, by every plan."""

import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stl_deploy.hw_sim import engine, plans, proofs, reference
from stl_deploy.ir.network import Connection, Input, IntegerNetwork, Population
from stl_deploy.ir.neurons import Lif, Or
from stl_deploy.ir.readouts import Readout
from stl_deploy.ir.synapses import Conv, Dense, OneToOne
from tests.build import edges, forced, random_graphs, ties
from tests.build.strategies import graphs
from tests.build.traces import assert_same

EXAMPLES = settings(max_examples=200)


def check(network, rasters, seed, states=(False, True)):
    """The engine is the reference, with cores and without, on its own spikes and on others."""
    rng = np.random.default_rng(seed)
    cores = {
        p.name: rng.integers(0, int(rng.integers(1, 5)), p.size)
        for p in network.populations
        if rng.random() < 0.7
    }
    some = {
        p.name: (next(iter(rasters.values())).shape[0], network.timesteps, *p.shape)
        for p in network.populations
    }
    given = {
        n: instead(rng, network.span(n), size) for n, size in some.items() if rng.random() < 0.4
    }
    ready = engine.Engine(network, cores)
    for wanted in states:
        assert_same(ready.run(rasters, wanted), reference.run(network, rasters, wanted, cores))
        want = forced.run(network, rasters, given, wanted, cores=cores)
        got = forced.run(network, rasters, given, wanted, engine.run, cores=cores)
        assert_same(got, want)
    return ready


def instead(rng, span, size):
    """Values that a population of this span could send: spikes as uint8, others as int16."""
    hit = rng.random(size) < 0.3
    if span == (0, 1):
        return hit.astype(np.uint8)
    return (rng.integers(span[0], span[1] + 1, size) * hit).astype(np.int16)


def how(ready):
    """Names of the plans that ran, with what tells them apart."""
    found = []
    for plan in ready._plans.values():
        members = getattr(plan, "members", ())
        plain = getattr(plan, "plain", False) or any(
            getattr(m.neurons, "plain", False) for m in members
        )
        rules = any(type(m.neurons).__name__ == "RuleNeurons" for m in members)
        words = [type(plan).__name__, "plain" * plain, "rules" * rules, "loop" * (len(members) > 1)]
        found.append(" ".join(word for word in words if word))
    return found


@EXAMPLES
@given(graphs(), st.integers(0, 99))
def test_wild_graphs(case, seed):
    check(*case, seed)


@EXAMPLES
@given(graphs(rules=True), st.integers(0, 99))
def test_wild_graphs_of_every_rule(case, seed):
    check(*case, seed)


def test_working_graphs():
    """Graphs whose populations fire and mind their thresholds; every plan runs some, the reference none."""
    used = Counter()
    for seed in range(40):
        network, rasters = random_graphs.draw(seed)
        used.update(how(check(network, rasters, seed)))
    assert used.keys() == {
        "PoolPlan",
        "LifPlan",
        "LifPlan plain",
        "StepPlan",
        "StepPlan plain",
        "StepPlan loop",
    }


def test_graphs_over_the_whole_table():
    """Every rule of neurons and every readout, alone and together; the reference runs no part."""
    used = Counter()
    for seed, network, rasters in random_graphs.over_the_table(40):
        used.update(how(check(network, rasters, seed)))
    assert {"StepPlan rules", "StepPlan rules loop"} <= used.keys()
    assert "NoneType" not in used


@pytest.mark.parametrize("chip", ["ideal", "loihi2"])
def test_registers_at_their_edges(chip):
    network, rasters = edges.network(chip)
    ready = check(network, rasters, 0)
    edges.assert_reached(network, ready.run(rasters, True))
    assert "NoneType" not in how(ready)


@pytest.mark.parametrize("variety", ties.VARIETIES)
def test_the_first_of_equal_classes_is_predicted(variety):
    for kind, chip in itertools.product(ties.KINDS, ["loihi2", "ideal"]):
        network, raster = ties.network(kind, variety, chip), ties.raster()
        assert_same(engine.run(network, raster), reference.run(network, raster))
        did = engine.run(network, raster, states=True)
        classes, tied = ties.decided(network.readout, did.layers["p"].spikes, did.layers["p"].v)
        assert did.predictions.tolist() == classes, kind
        assert tied > 0


# Plans, each where it has to run


def lif(shape, vth=40, **fields):
    return Lif(np.full(shape, vth, np.int32), np.zeros(1, np.int32), np.ones(1), **fields)


def conv(rng, outputs, inputs, kernel=3, low=-20, high=30):
    weight = rng.integers(low, high, (outputs, inputs, kernel, kernel)).astype(np.int8)
    return Conv(weight, (1, 1), (kernel // 2,) * 2, (1, 1), 1)


def graph(inputs, populations, connections, chip="loihi2", steps=6):
    last = populations[-1]
    return IntegerNetwork(
        chip,
        steps,
        inputs,
        tuple(populations),
        tuple(connections),
        Readout(last.size, 1, last.name),
    )


def rasters_of(rng, network, samples=5, density=0.4):
    found = {}
    for name, port in network.inputs.items():
        size = samples, 1 if port.held else network.timesteps, *port.shape
        drawn = rng.integers(port.lowest, port.levels + 1, size) * (rng.random(size) < density)
        found[name] = drawn.astype(np.int16)
    return found


def fires(network, rasters, low=0.02, high=0.7):
    rates = {n: did.spikes.mean() for n, did in reference.run(network, rasters).layers.items()}
    assert all(low < rate < high for rate in rates.values()), rates


PLANE = (16, 5, 6)


@pytest.mark.parametrize("delay", [1, 2, 4, 9])
@pytest.mark.parametrize("reset", ["zero", "subtract"])
@pytest.mark.parametrize("together", [None, 1, 2])
def test_neurons_that_hear_themselves(delay, reset, together, monkeypatch):
    """In the plain step, also where the sums of a sample come in parts; own weights differ."""
    rng = np.random.default_rng(delay)
    own = OneToOne(rng.integers(-128, 60, 480).astype(np.int8))
    network = graph(
        {"in": Input((3, 5, 6))},
        [Population("a", PLANE, lif(PLANE, reset=reset))],
        [
            Connection("w", "in", "a", conv(rng, 16, 3)),
            Connection("own", "a", "a", own, exp=1, delay=delay),
        ],
    )
    if together:
        monkeypatch.setattr(plans, "_together", lambda samples, steps, size: together)
    rasters = rasters_of(rng, network)
    fires(network, rasters)
    assert set(how(check(network, rasters, delay))) == {"LifPlan plain", "StepPlan"}
    silent = network.changed(
        replace(network.connections[1], synapses=own.with_weights(own.weight * 0))
    )
    spikes = [reference.run(n, rasters).layers["a"].spikes for n in (network, silent)]
    assert (spikes[0] != spikes[1]).any() == (delay < network.timesteps)


def test_a_reset_that_leaves_more_than_32_bits():
    """A threshold of -2^30 is taken off a voltage of 2^30, whose half is needed in the step after."""
    weight = np.tile(np.array([[127, -128]], np.int8), (40, 1))
    neurons = lif((40,), -(1 << 24), reset="subtract")
    network = graph(
        {"in": Input((2,))},
        [Population("a", (40,), neurons)],
        [Connection("w", "in", "a", Dense(weight), exp=10)],
        chip="ideal",
        steps=40,
    )
    (population,) = network.populations
    assert proofs.never_overflows(network, population, 40)
    assert not proofs.takes_the_plain_step(network, population, 40)
    raster = np.zeros((1, 40, 2), np.int16)
    raster[:, :30, 0] = raster[:, 30:, 1] = 1
    assert reference.run(network, raster).layers["a"].spikes.all()
    check(network, {"in": raster}, 0)


@pytest.mark.parametrize("delays", [(0, 0), (0, 2), (3, 1), (7, 0)])
@pytest.mark.parametrize("current", [4095, 1000])
def test_ways_that_join(delays, current):
    """A block of a residual network: a way of two convolutions and one past them, of another exponent."""
    rng = np.random.default_rng(current)
    network = graph(
        {"in": Input((3, 5, 6))},
        [
            Population("a", PLANE, lif(PLANE)),
            Population("b", PLANE, lif(PLANE, 60)),
            Population("c", PLANE, lif(PLANE, 60, du=current)),
        ],
        [
            Connection("w", "in", "a", conv(rng, 16, 3)),
            Connection("x", "a", "b", conv(rng, 16, 16, low=-10, high=12)),
            Connection("y", "b", "c", conv(rng, 16, 16, low=-10, high=12), delay=delays[0]),
            Connection("z", "a", "c", OneToOne(np.full(480, 40, np.int8)), exp=1, delay=delays[1]),
        ],
    )
    rasters = rasters_of(rng, network)
    fires(network, rasters)
    ready = check(network, rasters, 0)
    assert how(ready)[2] == ("StepPlan plain" if current == 4095 else "StepPlan")


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("delay", [1, 3])
@pytest.mark.parametrize("exp", [0, 2, 30])
def test_recurrent_convolutions(kernel, delay, exp):
    """Own spikes through a kernel; at 2^30 sums need 64 bits."""
    rng = np.random.default_rng(exp)
    network = graph(
        {"in": Input((3, 5, 6))},
        [Population("a", PLANE, lif(PLANE))],
        [
            Connection("w", "in", "a", conv(rng, 16, 3)),
            Connection("r", "a", "a", conv(rng, 16, 16, kernel, -30, 20), exp=exp, delay=delay),
            Connection("own", "a", "a", OneToOne(np.full(480, -30, np.int8)), delay=2),
        ],
        chip="ideal",
    )
    rasters = rasters_of(rng, network)
    fires(network, rasters)
    check(network, rasters, 0)
    (member,) = engine.Engine(network)._plan(0, 6, False).members
    assert member.sums.narrow == (exp < 30)


@pytest.mark.parametrize("seed", range(4))
def test_loops(seed):
    """Two populations that inhibit each other, one of which several ways lead back to."""
    rng = np.random.default_rng(seed)
    flat = (30,)
    network = graph(
        {"in": Input((3, 5, 6)), "frame": Input(flat, 100, signed=True, held=True)},
        [Population("a", PLANE, lif(PLANE)), Population("b", flat, lif(flat, 200, du=3000))],
        [
            Connection("w", "in", "a", conv(rng, 16, 3)),
            Connection("x", "a", "b", Dense(rng.integers(-20, 20, (30, 480)).astype(np.int8))),
            Connection("f", "frame", "b", OneToOne(rng.integers(-9, 9, 30).astype(np.int8))),
            Connection(
                "y", "b", "a", Dense(rng.integers(-9, 5, (480, 30)).astype(np.int8)), delay=1
            ),
            Connection(
                "z", "b", "a", Dense(rng.integers(-9, 5, (480, 30)).astype(np.int8)), delay=3
            ),
            Connection("r", "b", "b", OneToOne(np.full(30, -50, np.int8)), delay=1),
            Connection("s", "b", "b", OneToOne(np.full(30, 25, np.int8)), delay=2),
        ],
    )
    rasters = rasters_of(rng, network)
    fires(network, rasters)
    ready = check(network, rasters, seed)
    assert set(how(ready)) == {"StepPlan loop"}


@pytest.mark.parametrize("reading", ["dense", "conv"])
@pytest.mark.parametrize(
    ("levels", "signed"),
    [(1, True), (255, False), (100, True), (256, False), (32_767, True), (32_768, False)],
)
@pytest.mark.parametrize("held", [False, True])
def test_inputs_of_every_kind(reading, levels, signed, held):
    """Values of 8 and 16 bits, of either sign, and frames; beyond 16 bits the reference runs."""
    rng = np.random.default_rng(levels)
    weight = rng.integers(-20, 30, (40, 90)).astype(np.int8)
    synapses = conv(rng, 16, 3) if reading == "conv" else Dense(weight)
    shape = PLANE if reading == "conv" else (40,)
    network = graph(
        {"in": Input((3, 5, 6), levels, signed, held)},
        [Population("a", shape, lif(shape, 100 * min(levels, 500), du=4095))],
        [Connection("w", "in", "a", synapses)],
        chip="ideal",
    )
    rasters = rasters_of(rng, network)
    rasters["in"] = rasters["in"].astype(np.int64)
    rasters["in"].flat[0] = levels
    check(network, rasters, 0)
    if levels == 1:
        # A value that is in the range of spikes, but not of this input.
        rasters["in"].flat[0] = 2
        check(network, rasters, 0)


def test_spikes_instead_that_are_none():
    """What is given may be any numbers; the engine leaves what hears of them to the reference."""
    rng = np.random.default_rng(0)
    network, rasters = random_graphs.draw(1)
    for name in network.by_name:
        size = next(iter(rasters.values())).shape[0], network.timesteps, *network.shape(name)
        for instead in (rng.integers(-3, 4, size), rng.random(size) < 0.3):
            want = forced.run(network, rasters, {name: instead}, True)
            assert_same(forced.run(network, rasters, {name: instead}, True, engine.run), want)


def test_a_pool_is_one_only_with_ones_that_tile_its_source():
    """Other kernels before neurons that fire where anything arrives run by another plan."""
    ones = Conv(np.ones((3, 1, 2, 2), np.int8), (2, 2), (0, 0), (1, 1), 3)
    network = graph(
        {"in": Input((3, 4, 6))},
        [Population("a", (3, 2, 3), Or())],
        [Connection("w", "in", "a", ones)],
        steps=3,
    )
    rng = np.random.default_rng(0)
    rasters = rasters_of(rng, network)
    assert how(check(network, rasters, 0)) == ["PoolPlan", "LifPlan"]
    (way,) = network.connections
    weight = ones.weight.copy()
    weight[1, 0, 1, 0] = -1
    for other in (
        replace(way, synapses=ones.with_weights(weight)),
        replace(way, exp=1),
        replace(way, delay=1),
    ):
        assert "PoolPlan" not in how(check(network.changed(other), rasters, 0))
    signed = replace(network, inputs={"in": Input((3, 4, 6), 1, signed=True)})
    assert "PoolPlan" not in how(check(signed, rasters_of(rng, signed), 0))
    # 2 * 2 values of 8192 pass the accumulator of Loihi 1.
    large = replace(network, inputs={"in": Input((3, 4, 6), 8192)}, chip="loihi1")
    rasters = {"in": np.full((1, 3, 3, 4, 6), 8192, np.int16)}
    assert reference.run(large, rasters).layers["a"].overflow.all()
    assert "PoolPlan" not in how(check(large, rasters, 0))
