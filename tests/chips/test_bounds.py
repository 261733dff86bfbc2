"""The static worst cases of sums, currents and voltages: no input passes them, and some reach them."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stl_deploy.chips import arithmetic, bounds
from stl_deploy.chips import facts as chips
from stl_deploy.hw_sim import reference
from stl_deploy.ir.network import Connection, Input, IntegerNetwork, Population
from stl_deploy.ir.neurons import Lif, Or
from stl_deploy.ir.readouts import Readout
from stl_deploy.ir.synapses import Conv, Dense, OneToOne
from tests.build import random_graphs

EXAMPLES = settings(max_examples=60)
SEEDS = st.integers(0, 2**32 - 1)
NEURONS = 3


def network_of(neurons, connections, shape=(NEURONS,), steps=4, **inputs):
    """A population "n" with ``connections`` of (source, synapses, exp, delay)."""
    made = [
        Connection(f"w{i}", source, "n", synapses, exp, delay=delay)
        for i, (source, synapses, exp, delay) in enumerate(connections)
    ]
    population = Population("n", shape, neurons)
    readout = Readout(population.size, 1, "n")
    return IntegerNetwork("ideal", steps, inputs, (population,), tuple(made), readout)


def drawn(rng, steps):
    """Three inputs (spikes, levels, signed levels), a loop, and anything at random."""
    reach, shape = 127 * 4, (NEURONS,)
    inputs = {
        "spikes": Input((4,)),
        "levels": Input((2,), int(rng.integers(2, 256))),
        "signed": Input(shape, int(rng.integers(1, 128)), signed=True),
    }

    def weights(n):
        return rng.integers(-127, 128, (NEURONS, n)).astype(np.int8)

    given = [
        ("spikes", Dense(weights(4)), int(rng.integers(0, 3)), int(rng.integers(0, 3))),
        ("levels", Dense(weights(2)), 0, 0),
        ("signed", OneToOne(weights(1)[:, 0]), int(rng.integers(0, 3)), 0),
        ("n", Dense(weights(NEURONS)), 0, int(rng.integers(1, 3))),
    ]
    given = [one for one in given if rng.random() < 0.6] or given[:1]
    low = 0 if rng.random() < 0.5 else -reach
    neurons = Lif(
        rng.integers(low, reach, shape).astype(np.int32),
        rng.integers(-reach, reach, shape if rng.random() < 0.7 else ()).astype(np.int32),
        np.ones(()),
        int(rng.integers(0, 8)),
        each(rng, [4095, 4095, 0, 1000, 4094]),
        each(rng, [0, 1, 163, 2048, 4095]),
        rng.choice(["zero", "subtract"]),
    )
    used = {source: inputs[source] for source, *_ in given if source in inputs}
    return network_of(neurons, given, steps=steps, **(used or {"spikes": inputs["spikes"]}))


def each(rng, values):
    """One of ``values`` for all, or for each neuron."""
    if rng.random() < 0.5:
        return int(rng.choice(values))
    return rng.choice(values, NEURONS).astype(np.int32)


def patterns(network, rng):
    """Rasters by input [N, T, ...]: random ones, and those that drive a neuron furthest up or down.

    All that pulls a neuron up, all that pulls it down, one after the other, and changing at random.
    """
    sides = []
    for neuron in range(NEURONS):
        for up in (True, False):
            side = {}
            for name, port in network.inputs.items():
                row = np.zeros(port.shape, np.int64)
                for connection in network.out_of(name):
                    weight = connection.synapses.weight.astype(np.int64)
                    one = connection.synapses.kind == "one_to_one"
                    row += weight * (np.arange(NEURONS) == neuron) if one else weight[neuron]
                driven = row > 0 if up else row < 0
                side[name] = np.where(driven, port.levels, np.where(row == 0, 0, port.lowest))
            sides.append(side)
    samples = {name: [] for name in network.inputs}
    steps = network.timesteps
    for name, port in network.inputs.items():
        kept = samples[name]
        kept += list(rng.integers(port.lowest, port.levels + 1, (10, steps, *port.shape)))
        for neuron in range(NEURONS):
            up, down = sides[2 * neuron][name], sides[2 * neuron + 1][name]
            kept += [np.stack([up] * steps), np.stack([down] * steps)]
            for at in range(steps):
                kept.append(np.stack([down if t < at else up for t in range(steps)]))
                kept.append(np.stack([up if t < at else down for t in range(steps)]))
    return {name: np.stack(kept) for name, kept in samples.items()}


def voltages(network, raster):
    """a, u, and v before the threshold, [N, T, neurons], without any limit."""
    (population,) = network.populations
    neurons = population.neurons
    count = len(next(iter(raster.values())))
    fired = np.zeros((count, network.timesteps, population.size), np.int64)
    u = v = np.zeros((count, population.size), np.int64)
    sums, currents, before = [], [], []
    for t in range(network.timesteps):
        a = np.zeros_like(v)
        for c in network.into("n"):
            if t >= c.delay:
                sent = fired if c.source == "n" else raster[c.source]
                a = a + c.sums(sent[:, t - c.delay], network.levels(c.source))
        u, _ = arithmetic.step_current(u, a, neurons.du, None)
        v, _ = arithmetic.step_voltage(v, u, neurons.bias, neurons.dv, None)
        for trace, value in ((sums, a), (currents, u), (before, v)):
            trace.append(value)
        v, s = arithmetic.fire(v, neurons.vth, neurons.reset)
        fired[:, t] = s
    return np.stack(sums, 1), np.stack(currents, 1), np.stack(before, 1)


@EXAMPLES
@given(SEEDS, st.integers(1, 6))
def test_bounds_are_sound(seed, steps):
    """No input passes them, and those made for it reach the sums and currents exactly.

    Where neurons send spikes to themselves, not all of them can fire at will, and what is delayed arrives
    late.
    """
    rng = np.random.default_rng(seed)
    network = drawn(rng, steps)
    (population,) = network.populations
    neurons = population.neurons
    raster = patterns(network, rng)
    a, u, v = voltages(network, raster)
    sums = bounds.one_sided_sums(network, population)
    currents = bounds.current_range(network, population, steps)
    voltage = bounds.voltage_range(network, population, steps)
    for values, (low, high) in ((a, sums), (u, currents), (v, voltage)):
        assert (values.min(axis=(0, 1)) >= low).all()
        assert (values.max(axis=(0, 1)) <= high).all()
    at_once = all(c.source != "n" and not c.delay for c in network.connections)
    if at_once:
        for values, (low, high) in ((a, sums), (u, currents)):
            assert (np.minimum(values.min(axis=(0, 1)), 0) == low).all()
            assert (np.maximum(values.max(axis=(0, 1)), 0) == high).all()
        low_bias = np.broadcast_to((neurons.bias <= 0) & (neurons.vth >= 0), NEURONS)
        assert (np.minimum(v.min(axis=(0, 1)), 0) == voltage[0])[low_bias].all()
    lowest, highest = bounds.voltage_range(network, population, steps, anywhere=True)
    assert (lowest <= voltage[0]).all()
    assert (highest >= voltage[1]).all()
    vth = rng.integers(neurons.vth.min(), neurons.vth.max() + 1, NEURONS).astype(np.int32)
    moved = network.changed(replace(population, neurons=replace(neurons, vth=vth)))
    v = voltages(moved, raster)[2]
    assert (v.max(axis=(0, 1)) <= highest).all()
    top = bounds.largest_state(network, population, steps)
    assert max(np.abs(u).max(), np.abs(v).max()) <= top


@pytest.mark.parametrize("seed", range(12))
def test_the_largest_state_holds_for_every_rule(seed):
    network, rasters = random_graphs.draw(seed, UNBOUNDED)
    trace = reference.run(network, rasters, states=True)
    for population in network.populations:
        did, top = trace.layers[population.name], 0
        for name, values in {"u": did.u, "v": did.v, **did.more}.items():
            if name != "rest":
                top = max(top, int(np.abs(values).max()))
        assert top <= bounds.largest_state(network, population, network.timesteps)


def with_rules(rng, network):
    """``network`` with some of the rules of neurons, and a second current that half the ways lead to."""
    (population,) = network.populations

    def of_v():
        return each(rng, list(rng.integers(-(1 << 17), 1 << 17, 5)))

    may = {
        "reset": str(rng.choice(["none", "constant"])),
        "hold": int(rng.choice([-1, 1, 2])),
        "floor": of_v(),
        "adapt": of_v(),
        "du2": each(rng, [4095, 0, 1000]),
        "gain": rng.integers(-8000, 16_000, (network.timesteps, 1)).astype(np.int16),
        "v0": of_v(),
        "fires": all(c.source != "n" for c in network.connections) and bool(rng.random() < 0.5),
        "reset_current": True,
    }
    fields = {name: value for name, value in may.items() if rng.random() < 0.4}
    if "fires" in fields and any(c.source == "n" for c in network.connections):
        del fields["fires"]
    fields |= {"v_reset": of_v(), "dq": each(rng, [0, 100, 4095])}
    network = network.changed(replace(population, neurons=replace(population.neurons, **fields)))
    second = [replace(c, port=int(rng.random() < 0.5)) for c in network.connections]
    return network.changed(*second) if "du2" in fields else network


@EXAMPLES
@given(SEEDS, st.integers(1, 6))
def test_bounds_are_sound_for_every_rule(seed, steps):
    """Inputs that drive neurons as far as they go, and the states that these then have."""
    rng = np.random.default_rng(seed)
    network = with_rules(rng, drawn(rng, steps))
    (population,) = network.populations
    neurons = population.neurons
    did = reference.run(network, patterns(network, rng), states=True).layers["n"]
    currents = bounds.current_range(network, population, steps)
    states = {"u": (did.u, currents), "q": (None, bounds.threshold_range(population, steps))}
    states["u2"] = None, currents
    if neurons.reset != "subtract" or (neurons.vth >= 0).all():
        low, high = bounds.voltage_range(network, population, steps)
        ends = [neurons.v_reset] if neurons.reset == "constant" else []
        # v above a threshold that adaptation has lowered falls below zero with the whole threshold taken.
        ends += (
            [bounds.threshold_range(population, steps)[0]] if neurons.reset == "subtract" else []
        )
        ends += [] if neurons.floor is None else [neurons.floor]
        ends = [np.broadcast_to(x, NEURONS) for x in ends]
        states["v"] = (
            did.v,
            (
                np.min(np.broadcast_arrays(low, *ends), axis=0),
                np.max(np.broadcast_arrays(high, *ends), axis=0),
            ),
        )
    for name, (values, (low, high)) in states.items():
        values = did.more.get(name, values)
        if values is not None:
            assert (values.min(axis=(0, 1)) >= low).all(), name
            assert (values.max(axis=(0, 1)) <= high).all(), name


@pytest.mark.parametrize("seed", range(12))
def test_what_is_proved_does_not_overflow(seed):
    network, rasters = random_graphs.draw(seed, replace(random_graphs.TABLE, chips=("loihi2",)))
    trace, chip = reference.run(network, rasters), chips.of(network)
    for population in network.populations:
        if (bounds.excess(network, population, chip, network.timesteps) <= 1).all():
            assert not trace.layers[population.name].overflow.any()


def test_v_leaves_its_register_before_it_meets_the_floor():
    bias = np.full(1, -4000, np.int32)
    neurons = Lif(np.full(1, 100), bias, np.ones(1), bias_exp=7, du=2047, floor=-1000)
    ways = [("input", Dense(np.full((1, 8), -121, np.int8)), 6, 0)]
    network = replace(network_of(neurons, ways, (1,), 20, input=Input((8,))), chip="loihi2")
    (population,), chip = network.populations, chips.of(network)
    layer = reference.run(network, np.ones((1, 20, 8), np.uint8), states=True).layers["n"]
    assert layer.overflow.any()
    assert layer.v.min() == bounds.voltage_range(network, population, 20)[0].min() == -1000
    low, high = bounds.current_range(network, population, 20)
    assert max(-low.min(), high.max()) < chip.state_limit
    assert bounds.excess(network, population, chip, 20).max() > 1


UNBOUNDED = replace(random_graphs.TABLE, chips=("ideal",))


def dense(*rows):
    return Dense(np.array(rows, np.int8))


def each_of(*values):
    return np.array(values, np.int32)


def by_hand(**fields):
    """2 x 3 from outside, 5 from inside; u halves; a spike takes 4 of v, which stays else."""
    given = {"du": 2047, "dv": 0, "reset": "subtract"} | fields
    neurons = Lif(each_of(4, 4), np.zeros((), np.int32), np.ones(()), **given)
    connections = [("x", dense([2, -1], [0, 1]), 1, 0), ("n", dense([5, -3], [1, 0]), 1, 1)]
    return network_of(neurons, connections, (2,), x=Input((2,), 3))


def test_recurrent_neurons_by_hand():
    network = by_hand()
    (population,) = network.populations
    low, high = bounds.one_sided_sums(network, population)
    assert low.tolist() == [-12, 0]
    assert high.tolist() == [22, 8]
    low, high = bounds.current_range(network, population, 3)
    assert (low / 64).tolist() == [-21, 0]
    assert (high / 64).tolist() == [22 + 11 + 5.5, 8 + 4 + 2]
    low, high = bounds.voltage_range(network, population, 2)
    assert (low / 64).tolist() == [-12 - 18, 0]
    # 22, of which a spike leaves 18, and 33 more; 8, 4, 12 more.
    assert (high / 64).tolist() == [18 + 33, 4 + 12]
    reset = by_hand(reset="zero")
    _, high = bounds.voltage_range(reset, reset.populations[0], 2)
    assert (high / 64).tolist() == [4 + 33, 4 + 12]


def test_decays_of_each_neuron_by_hand():
    """The first current halves, the second is forgotten; the first voltage stays, the second halves."""
    network = by_hand(du=each_of(2047, 4095), dv=each_of(0, 2048))
    (population,) = network.populations
    _, high = bounds.current_range(network, population, 3)
    assert (high / 64).tolist() == [22 + 11 + 5.5, 8]
    low, _ = bounds.voltage_range(network, population, 2)
    assert (low / 64).tolist() == [-12 - 18, 0]


def test_signed_inputs_pull_both_ways():
    """-7..7 times 3 and -2; spikes times 5 and -1."""
    neurons = Lif(each_of(1, 1), np.zeros((), np.int32), np.ones(()))
    connections = [
        ("x", OneToOne(np.array([3, -2], np.int8)), 0, 0),
        ("y", dense([5], [-1]), 2, 4),
    ]
    network = network_of(neurons, connections, (2,), x=Input((2,), 7, True), y=Input((1,)))
    low, high = bounds.one_sided_sums(network, network.populations[0])
    assert low.tolist() == [-21, -14 - 4]
    assert high.tolist() == [21 + 20, 14]
    assert [bounds.largest_sum(network, c) for c in network.connections] == [21, 5]


def test_voltage_bound_is_reached():
    """v rests exactly at the threshold, decays, and everything fires: 64 (100 / 2 + 160) with a bias."""
    neurons = Lif(each_of(100), each_of(10), np.ones(()), dv=2048)
    network = network_of(neurons, [("x", dense([90, 70]), 0, 0)], (1,), 2, x=Input((2,)))
    _, _, v = voltages(network, {"x": np.array([[[1, 0], [1, 1]]])})
    assert v.ravel().tolist() == [64 * 100, 64 * 50 + 64 * 170]
    _, up = bounds.voltage_range(network, network.populations[0], 2)
    assert up.tolist() == [64 * 220]


@pytest.mark.parametrize("per_neuron", [False, True])
def test_channels_share_a_bound_unless_their_neurons_differ(per_neuron):
    """A kernel and one threshold a neuron: as few numbers as channels, at the worst threshold."""
    shape = (2, 3, 3)
    vth = np.arange(18, dtype=np.int32).reshape(shape)
    bias = vth * 0 + 1 if per_neuron else np.ones((2, 1, 1), np.int32)
    weight = np.array([[[[2]]], [[[-3]]]], np.int8)
    conv = Conv(weight, (1, 1), (0, 0), (1, 1), 1)
    network = network_of(
        Lif(vth, bias, np.ones(())), [("x", conv, 0, 0)], shape, x=Input((1, 3, 3))
    )
    (population,) = network.populations
    low, high = bounds.one_sided_sums(network, population)
    assert (low.shape, high.ravel().tolist()) == ((2, 1, 1), [2, 0])
    _, up = bounds.voltage_range(network, population, 2)
    assert up.shape == (shape if per_neuron else (2, 1, 1))
    # It is the highest threshold of a channel that leaves most of v, as far as inputs can lift it.
    assert (np.broadcast_to(up, shape)[:, 2, 2] / 64).tolist() == [1.5 + 3, 0.5 + 1]
    assert bounds.excess(network, population, chips.load("loihi1"), 2).shape == up.shape


def test_populations_that_nothing_leads_into():
    """A source that fires every step by its bias, and a pool."""
    always = Lif(np.zeros((), np.int32), np.ones((), np.int32), np.ones(()), du=4095, dv=4095)
    network = network_of(always, [], (1,), x=Input((1,)))
    (population,) = network.populations
    assert [side.tolist() for side in bounds.one_sided_sums(network, population)] == [[0], [0]]
    _, up = bounds.voltage_range(network, population, 3)
    assert up.tolist() == [64]
    assert reference.run(network, np.zeros((1, 4, 1), np.uint8)).layers["n"].spikes.all()
    ones = Conv(np.ones((1, 1, 2, 2), np.int8), (2, 2), (0, 0), (1, 1), 1)
    pool = network_of(Or(), [("x", ones, 0, 0)], (1, 2, 2), x=Input((1, 4, 4)))
    _, up = bounds.voltage_range(pool, pool.populations[0], 3)
    assert up.tolist() == [[[4 * 64]]]


def test_a_threshold_that_moves_up_holds_more():
    """50 a step: a spike, then 50 and 100, which 4 + 100 hold; 150 spikes."""
    neurons = Lif(each_of(4), np.zeros((), np.int32), np.ones(()), dv=0, adapt=6400)
    network = network_of(neurons, [("x", dense([50]), 0, 0)], (1,), 4, x=Input((1,)))
    v = reference.run(network, np.ones((1, 4, 1), np.uint8), states=True).layers["n"].v
    assert (v.ravel() / 64).tolist() == [0, 50, 100, 0]
    _, up = bounds.voltage_range(network, network.populations[0], 4)
    assert up.tolist() == [64 * (4 + 3 * 50)]


def test_what_nothing_resets_adds_up():
    neurons = Lif(each_of(4), each_of(-1), np.ones(()), dv=0, reset="none", v0=64)
    network = network_of(neurons, [("x", dense([50]), 0, 0)], (1,), 4, x=Input((1,)))
    low, up = bounds.voltage_range(network, network.populations[0], 4)
    assert (low.tolist(), up.tolist()) == ([64 * -3], [64 * (1 + 4 * 49)])
