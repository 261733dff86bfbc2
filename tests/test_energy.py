"""Counts, energy and time of a run, recomputed in plain Python; and that every chip fact has a source."""

import dataclasses
import math
import tomllib
from functools import partial
from importlib import resources
from itertools import pairwise

import numpy as np
import pytest
from nets import synapses
from pydantic import ValidationError

from stl_deploy import chip as chips
from stl_deploy import placement
from stl_deploy.errors import InputError
from stl_deploy.hw_sim import reference
from stl_deploy.hw_sim.counts import Counter
from stl_deploy.hw_sim.energy import assess
from stl_deploy.hw_sim.simulate import energies
from stl_deploy.network import (
    Conv,
    Dense,
    IntegerNetwork,
    LifLayer,
    OrPool,
    Readout,
    in_bounds_synapses,
)

CHIPS = ("ideal", "loihi1", "loihi2")
close = partial(pytest.approx, rel=1e-12, abs=0)  # joules and seconds are far below approx's 1e-12
PROFILES = ("loihi1-spice", "loihi1-nahuku")


def facts(chip):
    """The chip's file, as TOML and nothing more."""
    path = resources.files("stl_deploy") / "chips" / f"{chip}.toml"
    return tomllib.loads(path.read_text("utf-8"))


def lif(name, synapses, input_shape, shape, vth, bias=0):
    channels = shape[0]
    return LifLayer(
        name,
        f"{name}_w",
        synapses,
        input_shape,
        shape,
        np.full(channels, bias, np.int32),
        np.full(shape, vth, np.int32),
        np.ones(channels),
    )


def weights(rng, *shape):
    """Random weights, a third of them zero, which are stored but cost nothing."""
    weight = rng.integers(-20, 40, shape)
    return np.where(rng.random(shape) < 0.33, 0, weight).astype(np.int8)


def tiny(timesteps=3):
    """Strided, padded, dilated, grouped convolution; pool; two dense layers, one with a bias."""
    rng = np.random.default_rng(7)
    conv = Conv(weights(rng, 4, 1, 3, 2), (2, 1), (1, 2), (1, 2), 2)
    return IntegerNetwork(
        "loihi2",
        timesteps,
        (2, 5, 4),
        3,
        (
            lif("lif1", conv, (2, 5, 4), (4, 3, 6), vth=25),
            OrPool("pool1", "pool1_w", (4, 3, 6), (4, 1, 3), (3, 2)),
            lif("lif2", Dense(weights(rng, 5, 12)), (4, 1, 3), (5,), vth=20, bias=-3),
            lif("lif3", Dense(weights(rng, 4, 5)), (5,), (4,), vth=10),
        ),
        Readout(2, 2),
    )


def large(timesteps=2):
    """On Loihi 1: 8 cores, 3 by out-axons, 13 by synapse memory, 1; 7 tiles."""
    rng = np.random.default_rng(8)
    return IntegerNetwork(
        "loihi1",
        timesteps,
        (1, 30, 30),
        1,
        (
            lif(
                "lif1",
                Conv(weights(rng, 8, 1, 3, 3), (1, 1), (1, 1), (1, 1), 1),
                (1, 30, 30),
                (8, 30, 30),
                40,
            ),
            OrPool("pool1", "pool1_w", (8, 30, 30), (8, 15, 15), (2, 2)),
            lif("lif2", Dense(weights(rng, 600, 1800)), (8, 15, 15), (600,), 500),
            lif("lif3", Dense(weights(rng, 10, 600)), (600,), (10,), 30),
        ),
        Readout(10, 1),
    )


def raster(network, samples, density=0.5, seed=3):
    rng = np.random.default_rng(seed)
    size = (samples, network.timesteps, *network.input_shape)
    values = rng.integers(1, network.input_levels + 1, size)
    return np.where(rng.random(size) < density, values, 0).astype(np.uint8)


def counted(network, inputs, batch=2):
    counter = Counter(network)
    for at in range(0, len(inputs), batch):
        part = inputs[at : at + batch]
        counter.add(part, reference.run(network, part))
    return counter.total()


# Synapses and synops


@pytest.mark.parametrize("network", [tiny(), large()], ids=["tiny", "large"])
def test_synapses_that_leave_a_neuron(network):
    for layer in network.layers:
        expected = np.zeros(layer.input_shape, np.int64)
        if layer.neurons == 600:
            expected += np.count_nonzero(layer.synapses.weight, axis=0).reshape(layer.input_shape)
        else:
            for source, _ in synapses(layer):
                expected[source] += 1
        got = in_bounds_synapses(layer)
        assert got.dtype == np.int64
        assert (got == expected).all(), layer.name


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("stride", [(1, 1), (2, 3)])
@pytest.mark.parametrize("padding", [(0, 0), (2, 1)])
@pytest.mark.parametrize("dilation", [(1, 1), (1, 2)])
def test_synapses_that_leave_a_neuron_of_a_convolution(groups, stride, padding, dilation):
    rng = np.random.default_rng(groups)
    conv = Conv(weights(rng, 8, 4 // groups, 3, 2), stride, padding, dilation, groups)
    size = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, p, d, k, s in zip((7, 6), padding, dilation, (3, 2), stride, strict=True)
    ]
    layer = lif("lif", conv, (4, 7, 6), (8, *size), 1)
    expected = np.zeros((4, 7, 6), np.int64)
    for source, _ in synapses(layer):
        expected[source] += 1
    assert (in_bounds_synapses(layer) == expected).all()


def test_counts_by_brute_force():
    """Every spike at every synapse, one at a time; a graded input is one event whatever its value."""
    network = tiny()
    inputs = raster(network, 5)
    trace = reference.run(network, inputs, states=True)
    counts = counted(network, inputs)
    assert (counts.samples, counts.timesteps, counts.hops, counts.physical_steps) == (5, 3, 4, 19)
    assert (counts.predictions == trace.predictions).all()
    source = inputs
    for layer, did in zip(network.layers, counts.layers, strict=True):
        wires = list(synapses(layer))
        spikes = trace.layers[layer.name].spikes
        assert (did.name, did.neurons) == (layer.name, math.prod(layer.shape))
        for n, t in np.ndindex(5, 3):
            assert did.inputs[n, t] == sum(1 for x in source[n, t].flat if x), layer.name
            assert did.synops[n, t] == sum(1 for i, _ in wires if source[n, t][i]), layer.name
            assert did.spikes[n, t] == sum(map(int, spikes[n, t].flat)), layer.name
            assert did.active[n, t] == trace.layers[layer.name].active[n, t]
            assert did.overflow[n, t] == 0
        assert did.spikes.sum() > 0
        source = spikes
    # The bias keeps all five neurons of lif2 busy in every step.
    assert (counts.layers[2].active == 5).all()
    assert counts.overflows == {}


def test_batches_do_not_change_counts():
    network = tiny()
    inputs = raster(network, 7)
    one, two = counted(network, inputs, 7), counted(network, inputs, 3)
    for a, b in zip(one.layers, two.layers, strict=True):
        for field in ("inputs", "synops", "active", "spikes", "overflow"):
            assert (getattr(a, field) == getattr(b, field)).all()
    assert (one.predictions == two.predictions).all()


def test_overflows_are_named():
    layer = lif("wide", Dense(np.full((2, 300), 127, np.int8)), (300,), (2,), vth=1)
    network = IntegerNetwork("loihi1", 2, (300,), 1, (layer,), Readout(2, 1))
    inputs = np.ones((3, 2, 300), np.uint8)
    inputs[0] = 0
    assert counted(network, inputs).overflows == {"wide": 8}


# Energy and time


def barrier_us(table, tiles):
    """Between two entries of the table in proportion, at its ends its ends."""
    points = list(zip(table["tiles"], table["us"], strict=True))
    if tiles <= points[0][0]:
        return points[0][1]
    for (low, a), (high, b) in pairwise(points):
        if tiles <= high:
            return a + (b - a) * (tiles - low) / (high - low)
    return points[-1][1]


def by_hand(network, counts, profile):
    """Joules by event and layer, and seconds of every physical step, in loops."""
    table = facts("loihi1")
    cost = table["profiles"][profile]
    placed = placement.place(network, chips.load("loihi1"))  # tests/test_placement.py
    on = [placed.layers[layer.name] for layer in network.layers]
    cores = [layer.cores for layer in on]
    samples, steps, hops = counts.samples, counts.timesteps, len(network.layers)
    physical = samples * steps + hops
    energy, times = {}, [0.0] * physical
    for i, (layer, did) in enumerate(zip(network.layers, counts.layers, strict=True)):
        # An OR pool stores its ones as a convolution does.
        kind = "dense" if isinstance(getattr(layer, "synapses", None), Dense) else "conv"
        neurons = math.prod(layer.shape)
        sends = on[i].total["out_axons"] / neurons
        receives = on[i].total["in_axons"] / math.prod(layer.input_shape)
        picojoule = dict.fromkeys(
            ("neuron update", "neuron spike", "synop", "packet out", "packet in"), 0.0
        )
        for step in range(physical):
            # Layer i works i + 1 hops behind; before and after its samples there are no events.
            k = step - (i + 1)
            at = (k // steps, k % steps) if 0 <= k < samples * steps else None
            active, spikes, synops, inputs = (
                int(x[at]) if at else 0 for x in (did.active, did.spikes, did.synops, did.inputs)
            )
            picojoule["neuron update"] += cost["update_pj"]["always"] * neurons
            picojoule["neuron update"] += cost["update_pj"]["active"] * active
            picojoule["neuron spike"] += cost["update_pj"]["spike"] * spikes
            picojoule["synop"] += cost["synop_pj"][kind] * synops
            picojoule["packet out"] += cost["packet_pj"]["out"] * spikes * sends
            picojoule["packet in"] += cost["packet_pj"]["in"] * inputs * receives
            ns = cost["update_ns"]
            generate = (
                ns["always"] * neurons
                + ns["active"] * active
                + ns["spike"] * spikes
                + cost["packet_ns"]["out"] * spikes * sends
            ) / cores[i]
            receive = (
                cost["packet_ns"]["in"] * inputs * receives + cost["synop_ns"][kind] * synops
            ) / cores[i]
            times[step] = max(times[step], generate, receive)
        energy[layer.name] = {event: 1e-12 * pj / samples for event, pj in picojoule.items()}
    tiles = math.ceil(sum(cores) / 4)
    barrier = barrier_us(cost["barrier"], tiles)
    return energy, [1e-9 * ns + 1e-6 * barrier for ns in times], sum(cores)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize(
    ("network", "samples", "cores"), [(tiny(), 5, 4), (large(), 2, 30)], ids=["tiny", "large"]
)
def test_energy_and_time_by_hand(network, samples, cores, profile):
    inputs = raster(network, samples)
    counts = counted(network, inputs)
    assert all(did.spikes.sum() > 0 for did in counts.layers)
    got = energies(network, counts, profile)
    assert list(got) == [profile]
    got = got[profile]
    energy, times, total_cores = by_hand(network, counts, profile)
    assert got.cores == total_cores == cores
    for layer, events in energy.items():
        assert got.by_layer_j[layer] == close(sum(events.values()))
    for event in got.by_event_j:
        assert got.by_event_j[event] == close(sum(events[event] for events in energy.values()))
    assert set(got.by_event_j) == set(next(iter(energy.values())))
    assert got.dynamic_j == close(sum(got.by_layer_j.values()))
    steps = network.timesteps
    assert got.time_s == close(sum(times) / samples)
    mean = sum(times) / len(times)
    assert got.latency_s == close(mean * (steps + len(network.layers)))
    for t in range(steps):
        of_phase = times[t::steps]
        assert got.per_step_s[t] == close(sum(of_phase) / len(of_phase))
    assert len(got.per_step_s) == steps
    static = facts("loihi1")["static"]
    watt = (static["core_watt_low"]["value"] + static["core_watt_high"]["value"]) / 2
    assert got.static_j == close(watt * total_cores * got.time_s)
    assert got.total_j == close(got.dynamic_j + got.static_j)


def test_one_neuron_with_pencil_and_paper():
    """One spike in, one out, in the first of two steps: five events of the Nahuku profile.

    Three physical steps (2 + 1 hop), one core. Step 1 (0-based) has everything; each other step has
    the neuron's 6 ns and the barrier of 600 ns.
    """
    layer = lif("one", Dense(np.array([[5]], np.int8)), (1,), (1,), vth=0)
    network = IntegerNetwork("loihi1", 2, (1,), 1, (layer,), Readout(1, 1))
    counts = counted(network, np.array([[[1], [0]]], np.uint8))
    got = energies(network, counts, "loihi1-nahuku")["loihi1-nahuku"]
    assert got.by_event_j == close(
        {
            "neuron update": (3 * 51.2 + 21.6) * 1e-12,
            "neuron spike": 69.3e-12,
            "synop": 35.5e-12,
            "packet out": 111e-12,
            "packet in": 0.0,
        }
    )
    busy = 6.0 + 3.7 + 30.0 + 5.1
    assert got.per_step_s == close((606e-9, (600 + busy) * 1e-9))
    assert got.time_s == close((3 * 600 + 2 * 6 + busy) * 1e-9)
    assert got.latency_s == close(got.time_s)


def test_silence_costs_updates_alone():
    network = dataclasses.replace(tiny(), layers=tiny().layers[:2], readout=Readout(12, 1))
    counts = counted(network, np.zeros((2, 3, 2, 5, 4), np.uint8))
    for got in energies(network, counts).values():
        spent = {event for event, joule in got.by_event_j.items() if joule}
        assert spent == {"neuron update"}
        assert len(set(got.per_step_s)) == 1


def test_all_profiles_at_once():
    network = tiny()
    counts = counted(network, raster(network, 2))
    assert set(energies(network, counts)) == set(PROFILES) == set(chips.profiles())


def test_a_chip_without_cores_has_no_energy():
    network = tiny()
    counts = counted(network, raster(network, 1))
    _, profile = chips.profiles()[PROFILES[0]]
    with pytest.raises(ValueError, match="ideal has no cores"):
        assess(network, counts, chips.load("ideal"), profile)


# Chip files


def test_the_chips_there_are():
    assert chips.names() == CHIPS


@pytest.mark.parametrize("chip", CHIPS)
def test_every_number_has_a_source(chip):
    table = facts(chip)
    assert {k for k, v in table.items() if not isinstance(v, dict)} == {"name", "title"}
    assert table["name"] == chip
    for section in table.keys() - {"name", "title", "profiles"}:
        for key, entry in table[section].items():
            assert set(entry) == {"value", "source"}, f"{section}.{key}"
            assert isinstance(entry["value"], int | float)
            assert len(entry["source"].split()) >= 3, f"{section}.{key}"
    for name, profile in table.get("profiles", {}).items():
        assert len(profile["source"].split()) >= 3, name
        assert all(isinstance(v, str | dict) for v in profile.values()), name


@pytest.mark.parametrize("chip", CHIPS)
def test_the_model_reads_what_the_file_says(chip):
    table, loaded = facts(chip), chips.load(chip)
    for section in ("registers", "limits"):
        values = getattr(loaded, section).model_dump(exclude_none=True)
        assert values == table[section]
    assert set(loaded.profiles) == set(table.get("profiles", {}))


def test_registers():
    ideal, one, two = (chips.load(name) for name in CHIPS)
    assert (ideal.state_limit, ideal.accumulator_limit) == (None, None)
    assert ideal.threshold_range == ideal.bias_mant_range == (-(2**31), 2**31 - 1)
    assert (one.state_limit, one.accumulator_limit) == (2**23, 2**15)
    assert (two.state_limit, two.accumulator_limit) == (2**23, 2**17)
    for chip in (one, two):
        assert chip.threshold_range == (0, 131071)
        assert chip.bias_mant_range == (-4096, 4095)


@pytest.mark.parametrize("section", ["registers", "limits", "static"])
def test_a_number_without_a_source_is_refused(section):
    table = facts("loihi1")
    key = next(iter(table[section]))
    for broken in ({"value": 8}, {"value": 8, "source": ""}, 8):
        changed = table | {section: table[section] | {key: broken}}
        with pytest.raises(ValidationError, match=key):
            chips.Chip.model_validate(changed)
    profile = dict(table["profiles"]["loihi1-spice"])
    del profile["source"]
    with pytest.raises(ValidationError, match="source"):
        chips.Chip.model_validate(table | {"profiles": {"x": profile}})


@pytest.mark.parametrize("name", ["loihi3", "", "../loihi1", "Loihi1"])
def test_unknown_chip(name):
    with pytest.raises(InputError, match="is not one of ideal, loihi1, loihi2") as caught:
        chips.load(name)
    assert repr(name) in str(caught.value)
    assert caught.value.exit_code == 2
