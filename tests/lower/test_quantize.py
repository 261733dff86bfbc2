"""The quantizer: its grids, its thresholds, and that what it calls proven cannot overflow."""

import math
from dataclasses import replace

import nir
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import stl_deploy
from stl_deploy.chips import bounds
from stl_deploy.chips import facts as chips
from stl_deploy.errors import InputError, LoweringError
from stl_deploy.hw_sim import reference
from stl_deploy.ir import execute as float_exec
from stl_deploy.ir import nir_graph as G
from stl_deploy.ir.network import Input
from stl_deploy.ir.readouts import Readout
from stl_deploy.lower.quantize import quantize
from stl_deploy.lower.units import HEADROOM
from tests.build.floats import conv, deep, dense, graph, lif
from tests.build.nets import random_net, random_spikes

EXAMPLES = settings(max_examples=60)
SEEDS = st.integers(0, 2**32 - 1)
THOUSANDTHS = st.integers(-1500, 1500).map(lambda n: n / 1000)


def only(network):
    """The neurons of the only population, and the connection into it."""
    (population,), (connection,) = network.populations, network.connections
    return population.neurons, connection


def sums(network, population):
    """The largest magnitude that any input can make arrive."""
    low, high = bounds.one_sided_sums(network, population)
    return max(-low.min(), high.max())


def refused(*args, **kwargs):
    with pytest.raises(LoweringError) as caught:
        quantize(*args, **kwargs)
    return caught.value.problems


# The grid


@EXAMPLES
@given(SEEDS, st.integers(2, 8), st.integers(0, 7))
def test_grid_scale_thresholds_and_biases(seed, bits, exp):
    """Where nothing binds: plain units, round to nearest, vth = ceil(theta / scale) - 1."""
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(5, 2, 3, 3)) * 10.0 ** rng.uniform(-3, 3, (5, 1, 1, 1))
    peak = np.abs(weight).max(axis=(1, 2, 3))
    theta = peak[:, None, None] * rng.uniform(-2, 2, (5, 4, 3))
    bias = peak * rng.uniform(-2, 2, 5)
    built = conv(weight, lambda out: theta, bias, (2, 4, 3), padding=(1, 1))
    neurons, way = only(quantize(built, weight_bits=bits, weight_exp=exp))
    qmax = 2 ** (bits - 1) - 1
    ints = way.synapses.weight
    assert ints.dtype == np.int8
    assert np.abs(ints.astype(int)).max(axis=(1, 2, 3)).tolist() == [qmax] * 5
    unit = peak / qmax
    assert np.abs(ints - weight / unit[:, None, None, None]).max() <= 0.5 + 1e-9
    assert neurons.scale.shape == neurons.bias_mant.shape == (5, 1, 1)
    scale, mantissa = neurons.scale.ravel(), neurons.bias_mant.ravel()
    np.testing.assert_allclose(scale, unit / 2**exp, rtol=1e-15)
    expected = [
        [math.ceil(x / s) - 1 for x in plane.ravel()] for plane, s in zip(theta, scale, strict=True)
    ]
    assert neurons.vth.reshape(5, -1).tolist() == expected
    assert np.abs(mantissa * scale - bias).max() <= (scale / 2).max() * 1.0001
    assert (np.abs(mantissa - bias / scale) <= 0.5 + 1e-6).all()
    assert (way.bits, way.exp, neurons.bias_exp, neurons.du) == (bits, exp, 6, 4095)
    assert (way.synapses.stride, way.synapses.padding) == ((1, 1), (1, 1))


@EXAMPLES
@given(
    SEEDS,
    st.lists(st.integers(-20, 20), min_size=3, max_size=3),
    st.sampled_from(["ideal", "loihi1", "loihi2"]),
    st.booleans(),
)
def test_a_power_of_two_on_a_channel_changes_no_integer(seed, powers, chip, binding):
    """Weights, bias and thresholds of a channel scaled together, also where registers bind."""
    rng = np.random.default_rng(seed)
    low = -1.0 if chip == "ideal" else 0.05
    weight, theta = rng.normal(size=(3, 8)), rng.uniform(low, 2, 3)
    bias = np.clip(rng.normal(size=3) * (60 if binding else 0.3), -60, 60)
    weight[2] *= rng.integers(0, 2)  # now and then a channel without weights
    factor = 2.0 ** np.array(powers)
    scaled = dense(weight * factor[:, None], theta * factor, bias * factor)
    one, a = only(quantize(dense(weight, theta, bias), chip, weight_exp=seed % 3))
    two, b = only(quantize(scaled, chip, weight_exp=seed % 3))
    assert (a.synapses.weight == b.synapses.weight).all()
    assert (one.vth == two.vth).all()
    assert (one.bias_mant == two.bias_mant).all()
    assert (one.scale * factor == two.scale).all()


def test_thresholds_at_and_around_a_grid_point():
    """Units of 1 (the largest weight is 127): v > vth says v >= theta for whole v."""
    theta = [5.0, np.nextafter(5, 6), np.nextafter(5, 4), 5.5, 0.25, 0.0, -0.5, -1.0, -5.0]
    neurons, _ = only(quantize(dense(np.full((9, 1), 127.0), theta)))
    assert neurons.vth.tolist() == [4, 5, 4, 5, 0, -1, -1, -2, -6]


@EXAMPLES
@given(SEEDS, st.integers(1, 5))
def test_integers_are_exact_where_the_exponent_gives_the_halvings_room(seed, timesteps):
    """Weights on the grid, weight_exp = T - 1: any threshold, also <= 0, spikes as in float."""
    rng = np.random.default_rng(seed)
    weight = rng.integers(-127, 128, (6, 5)) / 64.0
    weight[:, 0] = 127 / 64 * rng.choice([-1, 1], 6)
    grid = rng.integers(-300, 300, 6) / 64.0 / 2.0 ** (timesteps - 1)
    theta = np.where(rng.random(6) < 0.5, grid, rng.uniform(-2, 2, 6))
    bias = rng.integers(-100, 100, 6) / 64.0
    built = dense(weight, theta, bias, timesteps=timesteps)
    network = quantize(built, "ideal", weight_exp=timesteps - 1)
    raster = rng.integers(0, 2, (8, timesteps, 5)).astype(np.uint8)
    expected = float_exec.run(built, raster)["lif"]
    assert (reference.run(network, raster).layers["lif"].spikes == expected).all()
    assert only(network)[0].scale.tolist() == [2.0 ** -(6 + timesteps - 1)] * 6


@pytest.mark.parametrize("exp", range(8))
def test_a_weight_exponent_makes_the_threshold_grid_finer(exp):
    theta = np.linspace(0.5, 0.6, 300)
    neurons, _ = only(quantize(dense(np.ones((300, 1)), theta), "loihi2", weight_exp=exp))
    lowered = (neurons.vth + 1) * neurons.scale  # the smallest whole voltage that fires, in float
    assert (lowered >= theta - 1e-12).all()
    assert (lowered - theta < 1 / 127 / 2**exp + 1e-12).all()
    assert len(np.unique(neurons.vth)) >= min(300, 12 * 2**exp)


@EXAMPLES
@given(SEEDS, THOUSANDTHS, THOUSANDTHS, st.integers(0, 2))
def test_a_channel_without_weights_keeps_its_rhythm(seed, bias, theta, exp):
    """Nothing but the bias drives it; compared where no voltage comes near the threshold."""
    voltage, near = 0.0, False
    for _ in range(8):
        voltage = 0.5 * voltage + bias
        near |= abs(voltage - theta) < 0.02 * (abs(theta) + abs(bias))
        voltage = 0.0 if voltage >= theta else voltage
    assume(not near)
    rng = np.random.default_rng(seed)
    weight = np.stack([np.zeros(4), rng.normal(size=4)])
    built = dense(weight, [theta, 0.3], [bias, 0.1], timesteps=8)
    raster = rng.integers(0, 2, (2, 8, 4)).astype(np.uint8)
    expected = float_exec.run(built, raster)["lif"][:, :, 0]
    network = quantize(built, weight_exp=exp)
    assert (reference.run(network, raster).layers["lif"].spikes[:, :, 0] == expected).all()
    assert network.precision["lif"].effective_bits == 8
    if theta > 0:
        on_chip = quantize(built, "loihi1", weight_exp=exp)
        assert (reference.run(on_chip, raster).layers["lif"].spikes[:, :, 0] == expected).all()


def test_a_channel_of_zeros_alone():
    """No weights, no bias, theta = 0: fires at v >= 0, which is always."""
    network = quantize(dense(np.zeros((1, 2)), 0.0))
    spikes = reference.run(network, np.zeros((1, 4, 2), np.uint8)).layers["lif"].spikes
    assert spikes.ravel().tolist() == [1, 1, 1, 1]
    assert only(network)[0].scale.tolist() == [1.0]


def test_structure_of_the_network():
    network = quantize(deep(np.random.default_rng(0), timesteps=5), "loihi2")
    assert [(p.name, p.kind, p.shape) for p in network.populations] == [
        ("lif1", "lif", (4, 6, 3)),
        ("pool1", "or", (4, 3, 1)),
        ("lif2", "lif", (9,)),
        ("lif3", "lif", (5,)),
    ]
    assert [c.key for c in network.connections] == [
        ("conv1", "input", "lif1"),
        ("pool1_sum", "lif1", "pool1"),
        ("fc1", "pool1", "lif2"),
        ("fc2", "lif2", "lif3"),
    ]
    one, pool, *_ = (connection.synapses for connection in network.connections)
    assert (one.stride, one.padding) == ((1, 2), (1, 0))
    assert (pool.stride, pool.groups, pool.weight.shape) == ((2, 3), 4, (4, 1, 2, 3))
    assert (pool.weight == 1).all()
    assert network.populations[3].neurons.bias_mant.tolist() == [0] * 5
    assert network.timesteps == 5
    assert vars(network.readout) == vars(Readout(5, 1, "lif3"))
    assert network.inputs == {"input": Input((2, 6, 7))}


@EXAMPLES
@given(SEEDS, st.floats(0.05, 20))
def test_gain_of_the_neuron_scales_weights_and_bias(seed, gain):
    """v' = keep v + gain (w x + b) is the same neuron as gain = 1 with weights and bias scaled."""
    rng = np.random.default_rng(seed)
    weight, bias, theta = rng.normal(size=(3, 4)), rng.normal(size=3), rng.uniform(0.1, 1, 3)
    plain = dense(weight * gain, theta, bias * gain)
    other = dense(weight, theta, bias)
    other.nodes["lif"] = G.lif(other.nodes["lif"].v_threshold, 2 * G.DT, 2 * gain)
    (one, a), (two, b) = only(quantize(plain)), only(quantize(other))
    assert (a.synapses.weight == b.synapses.weight).all()
    np.testing.assert_allclose(one.scale, two.scale, rtol=1e-12)


# Decay


@pytest.mark.parametrize("tau", [1 / 4096, 0.25, 0.5, 0.75, 3687 / 4096, 4095 / 4096])
def test_tau_on_the_grid(tau):
    assert only(quantize(dense([[1.0]], 0.5, tau=tau), "loihi2"))[0].dv == 4096 - round(4096 * tau)


@pytest.mark.parametrize(
    ("tau", "dv"), [(0.9, 410), (0.3, 2867), (0.0, 4095), (1 - 1e-5, 1), (0.49999, 2048)]
)
def test_tau_off_the_grid_is_rounded_and_said(tau, dv):
    network = quantize(dense([[1.0]], 0.5, tau=tau))
    assert only(network)[0].dv == dv
    (said,) = network.diagnostics
    assert said.where == "lif"
    assert f"is rounded to {4096 - dv}/4096" in said.what


def test_decays_that_no_chip_has_are_named():
    built = deep(np.random.default_rng(0))
    for name in ("lif1", "lif3"):
        built.nodes[name].tau.flat[0] = G.DT / 2
    built.nodes["lif2"].tau[:] = -1e-4
    problems = refused(built)
    assert [p.where for p in problems if "a decay lies in [0, 1]" in p.what] == [
        "lif1",
        "lif2",
        "lif3",
    ]


# Overflow


def patterns(weight, levels, timesteps, rng):
    """Rasters [N, T, inputs]: random ones, and for each neuron the inputs that drive it furthest.

    All inputs with positive weights, all with negative, each alone, one after the other, and
    changing at random from step to step.
    """
    rows = weight.reshape(len(weight), -1)
    samples = [rng.integers(0, levels + 1, (timesteps, rows.shape[1])) for _ in range(10)]
    for row in rows:
        up, down = (row > 0) * levels, (row < 0) * levels
        samples += [np.tile(up, (timesteps, 1)), np.tile(down, (timesteps, 1))]
        for at in range(timesteps):
            samples.append(np.stack([down if t < at else up for t in range(timesteps)]))
            samples.append(np.stack([up if t < at else down for t in range(timesteps)]))
        for _ in range(5):
            part = (rng.random((timesteps, len(row))) < 0.5) * up
            part[-1] = up
            samples.append(part)
    return np.stack(samples).astype(np.uint8)


@EXAMPLES
@given(SEEDS, st.sampled_from(["loihi1", "loihi2"]), st.sampled_from([0.5, 0.875]))
def test_proven_networks_never_overflow(seed, chip, tau):
    """Layers whose plain weights would overflow, driven by the worst inputs there are."""
    rng = np.random.default_rng(seed)
    inputs = 700 if chip == "loihi1" else 2500
    weight = rng.uniform(-1, 1, (3, inputs)) + np.array([[rng.choice([-1, 1])], [0], [0.3]])
    theta, bias = rng.uniform(0.5, 300, 3), rng.normal(size=3) * rng.choice([0, 100])
    built = dense(weight, theta, bias, tau, timesteps=5)
    network = quantize(built, chip, overflow="proven")
    (_, way), how = only(network), network.precision["lif"]
    plain = quantize(built, chip, overflow="checked").precision["lif"]
    assert bias.any() or plain.worst_sum > plain.limit
    assert how.mode == "proven"
    assert how.worst_sum == sums(network, network.populations[0]) < how.limit
    assert how.limit == {"loihi1": 1 << 15, "loihi2": 1 << 17}[chip]
    raster = patterns(way.synapses.weight, 1, 5, rng)
    trace = reference.run(network, raster).layers["lif"]
    assert not trace.overflow.any()
    # The chip's registers are never felt.
    free = reference.run(replace(network, chip="ideal"), raster).layers["lif"]
    assert (free.spikes == trace.spikes).all()


@EXAMPLES
@given(SEEDS, st.sampled_from(["loihi1", "loihi2"]))
def test_proven_deep_networks_never_overflow(seed, chip):
    rng = np.random.default_rng(seed)
    levels = 1 if chip == "loihi1" else 255
    network = quantize(deep(rng, levels), chip, overflow="proven")
    for population in network.weighted:
        alone = network.alone(population.name)
        ((source, given),) = alone.inputs.items()
        size = (30, network.timesteps, *given.shape)
        raster = rng.integers(0, given.levels + 1, size).astype(np.uint8)
        raster[0] = given.levels
        trace = reference.run(alone, {source: raster}).layers[population.name]
        assert not trace.overflow.any()
    trace = reference.run(network, rng.integers(0, levels + 1, (5, 4, 2, 6, 7)).astype(np.uint8))
    assert not any(did.overflow.any() for did in trace.layers.values())


def test_proven_thresholds_and_leak_count():
    """A weak leak and a large threshold: the sums fit, but voltages could pass 24 bits."""
    weight = np.full((1, 1000), 1.0)
    built = dense(weight, 800.0, tau=0.875, timesteps=8)
    plain = quantize(built, "loihi2", overflow="checked")
    raster = np.ones((1, 8, 1000), np.uint8)
    raster[:, :3, 210:] = 0
    assert plain.precision["lif"].worst_sum == 127_000
    assert reference.run(plain, raster).layers["lif"].overflow.sum() > 0
    proven = quantize(built, "loihi2", overflow="proven")
    assert proven.precision["lif"].worst_sum < 127_000
    assert reference.run(proven, raster).layers["lif"].overflow.sum() == 0


# The choice between proven and checked


def wide(inputs):
    """One neuron, ``inputs`` equal weights k and a threshold of 0: sum k * inputs, v below twice that."""
    return dense(np.ones((1, inputs)), 1e-3)


@pytest.mark.parametrize("overflow", ["checked", "auto"])
def test_checked_networks_flag_their_overflow(overflow):
    network = quantize(wide(4000), "loihi2", overflow=overflow)
    how = network.precision["lif"]
    assert (how.mode, how.worst_sum, how.limit) == ("checked", 127 * 4000, 1 << 17)
    assert how.effective_bits == 8
    raster = np.zeros((2, 4, 4000), np.uint8)
    raster[0, 1] = 1
    raster[1, :, :1000] = 1
    overflow = reference.run(network, raster).layers["lif"].overflow
    assert overflow.tolist() == [[0, 1, 0, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize(
    ("inputs", "mode", "weight"),
    [
        (1032, "proven", 127),  # 127 * 1032 = 131064 < 2^17
        (1033, "proven", 126),
        (2080, "proven", 63),  # 63 * 2080 = 131040, exactly one bit less
        (2081, "checked", 127),  # 63 * 2081 = 131103 does not fit
    ],
)
def test_auto_pays_one_bit_for_a_proof(inputs, mode, weight):
    network = quantize(wide(inputs), "loihi2")
    how = network.precision["lif"]
    assert (how.mode, int(only(network)[1].synapses.weight.max())) == (mode, weight)
    assert how.effective_bits == pytest.approx(math.log2(weight + 1) + 1, abs=1e-12)
    if mode == "proven":
        assert network.diagnostics == ()
        return
    (said,) = network.diagnostics
    assert said.where == "lif"
    assert f"{127 * inputs:,} (limit {1 << 17:,})" in said.what
    assert "without calibration data" in said.what
    assert "--calib" in said.remedy
    forced = quantize(wide(inputs), "loihi2", overflow="proven").precision["lif"]
    assert forced.mode == "proven"
    assert 6.9 < forced.effective_bits < 7


def test_no_limit_no_cost():
    network = quantize(wide(5000), "ideal")
    how = network.precision["lif"]
    assert (how.mode, how.effective_bits, how.limit) == ("proven", 8.0, None)
    assert network.diagnostics == ()


@settings(max_examples=10)
@given(SEEDS, st.sampled_from(["loihi1", "loihi2"]), st.integers(0, 3))
def test_calibration_leaves_headroom(seed, chip, exp):
    rng = np.random.default_rng(seed)
    inputs = 500 if chip == "loihi1" else 1000
    weight = np.abs(rng.normal(size=(3, inputs))) * rng.choice([-1, 1], (3, 1))
    built = dense(weight, rng.uniform(0.5, 5, 3), rng.normal(size=3))
    calib = (rng.random((4, 4, inputs)) < rng.uniform(0.15, 0.9)).astype(np.uint8)
    network = quantize(built, chip, calib, overflow="checked", weight_exp=exp)
    (neurons, way), levels = only(network), 1
    limit = chips.load(chip).accumulator_limit
    a = np.abs(way.sums(calib.reshape(-1, inputs), levels)).max(axis=0)
    plain, _ = only(quantize(built, chip, overflow="checked", weight_exp=exp))
    grown = neurons.scale > plain.scale * (1 + 1e-12)
    # Rounding of the weights moves a sum a little.
    assert (a <= limit / HEADROOM * 1.05).all()
    assert (a[grown] >= limit / HEADROOM * 0.95).all()
    assert (neurons.scale == plain.scale)[~grown].all()
    assert not reference.run(network, calib).layers["lif"].overflow.any()


@pytest.mark.parametrize("gain", [0.04, 1.0, 8.0])
def test_calibration_sees_the_sums_that_the_neuron_gets(gain):
    calib = np.ones((1, 4, 400), np.uint8)
    scales = []
    for weight, factor in ((np.ones((1, 400)) * gain, 1.0), (np.ones((1, 400)), gain)):
        built = dense(weight, np.array([1000.0 * gain]))
        built.nodes["lif"] = G.lif(built.nodes["lif"].v_threshold, 2 * G.DT, 2 * factor)
        scales.append(only(quantize(built, "loihi1", calib, overflow="checked"))[0].scale)
    np.testing.assert_allclose(scales[0], scales[1], rtol=1e-12)
    assert scales[0] > 1.01 * gain / 127  # calibration binds


def test_calibration_binds_and_is_seen_by_later_layers():
    """The second layer is calibrated on the spikes of the first, in float."""
    nodes = {
        "fc1": nir.Linear(weight=np.eye(1200)),
        "lif1": lif(np.where(np.arange(1200) < 600, 0.5, 2.0)),
        "fc2": nir.Linear(weight=np.ones((1, 1200))),
        "lif2": lif(np.array([10.0])),
    }
    built = graph(nodes, (1200,), (1,), timesteps=2)
    calib = np.ones((1, 2, 1200), np.uint8)
    network = quantize(built, "loihi2", calib, overflow="checked")
    # Step 1: 600 neurons fire; 1.0 + 0.5 < 2.0, so the others stay silent in step 2 as well.
    spikes = float_exec.run(built, calib)
    assert spikes["lif1"].sum(axis=2).tolist() == [[600, 600]]
    unit = HEADROOM * 600 / (1 << 17)
    assert unit > 1 / 127  # calibration binds
    assert network.populations[1].neurons.scale[0] == pytest.approx(unit)
    assert network.connections[1].synapses.weight.max() == round(1 / unit)


def test_calibration_of_another_shape():
    with pytest.raises(InputError, match=r"calib.*\(1, 4, 3\).*\(2,\)"):
        quantize(dense(np.ones((1, 2)), 1.0), calib=np.zeros((1, 4, 3), np.uint8))


# Too little precision


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_effective_bits(bits):
    """A bias that takes the weights' bits away; at least min(4, B) must be left."""
    least = min(4, bits)
    enough = 2 ** (least - 1) - 1  # the largest integer that still has ``least`` bits
    unit = 1.0 / enough
    kept = dense([[1.0]], 1.0, [4095 * unit * 0.999])
    network = quantize(kept, "loihi2", weight_bits=bits, overflow="checked")
    assert least <= network.precision["lif"].effective_bits < least + 0.01
    notes = [d.what for d in network.diagnostics if "effective weight bits" in d.what]
    assert len(notes) == (bits - least > 2)
    assert all(
        "keeps 4.00 of 8 effective weight bits: next to weights up to 1 " in n for n in notes
    )
    lost = dense([[1.0]], 1.0, [4095 / (enough - 0.51)])
    if enough == 1:
        lost = dense([[1.0]], 1.0, [4095 * 2.01])
    (problem,) = refused(lost, "loihi2", weight_bits=bits, overflow="checked")
    assert problem.where == "lif"
    left = math.log2(enough) + 1 if enough > 1 else 1
    assert f"keeps {left:.2f} effective weight bits, at least {least}" in problem.what
    assert quantize(lost, "ideal", weight_bits=bits).precision["lif"].effective_bits == bits


def test_effective_bits_are_those_of_the_worst_channel_with_weights():
    weight = np.array([[1.0, 0.5], [1.0, -1.0], [0.0, 0.0]])
    network = quantize(dense(weight, 1.0, [0.0, 4095 / 20, 3.0]), "loihi2")
    assert np.abs(only(network)[1].synapses.weight).max(axis=1).tolist() == [127, 20, 0]
    assert network.precision["lif"].effective_bits == math.log2(21) + 1


def test_biases_and_thresholds_fit_their_registers():
    network = quantize(dense([[1.0], [1.0]], [0.5, 1e4], [-80.0, 0.0]), "loihi2")
    neurons, way = only(network)
    assert neurons.bias_mant.tolist() == [-4095, 0]
    assert 131000 < neurons.vth[1] <= 131071
    assert way.synapses.weight.ravel().tolist() == [51, 13]


# Thresholds that a register cannot hold

NEGATIVE = [0.5, -0.01, -0.11, 1.0, -2.0]


def test_thresholds_of_zero_and_less_on_the_ideal_machine():
    neurons, _ = only(quantize(dense(np.full((6, 1), 127.0), [*NEGATIVE, 0.0]), "ideal"))
    assert neurons.vth.tolist() == [0, -1, -1, 0, -3, -1]


@pytest.mark.parametrize("chip", ["loihi1", "loihi2"])
def test_thresholds_of_zero_and_less_on_a_chip(chip):
    (problem,) = refused(dense(np.full((5, 1), 127.0), NEGATIVE), chip)
    assert problem.where == "lif"
    assert problem.what.startswith(
        f"3 of 5 thresholds do not fit {chip}'s register 0..131071 "
        "(1: theta -0.01 -> vth -1, 2: theta -0.11 -> vth -1, 4: theta -2 -> vth -3)"
    )
    assert "--clamp-thresholds" in problem.remedy
    assert "--chip ideal" in problem.remedy


def test_only_so_many_neurons_are_named():
    theta = np.linspace(-1, 0.99, 12).reshape(1, 3, 4)
    built = conv(np.full((1, 1, 1, 1), 127.0), lambda out: theta, np.zeros(1), (1, 3, 4))
    (problem,) = refused(built, "loihi2")
    assert problem.what.startswith("6 of 12 thresholds")
    assert problem.what.count("theta") == 5
    assert "(0, 0, 1): theta -0.8191 -> vth -1" in problem.what
    assert problem.what.endswith(", ...)")


def test_clamping_is_reported():
    built = dense(np.full((5, 1), 127.0), NEGATIVE)
    network = quantize(built, "loihi2", clamp_thresholds=True)
    assert only(network)[0].vth.tolist() == [0, 0, 0, 0, 0]
    said, coarse = network.diagnostics
    assert "bits, and 4 are wanted" in coarse.what
    assert said.where == "lif"
    assert said.what.startswith("3 of 5 thresholds do not fit loihi2's register 0..131071 and were")
    assert "4: theta -2 -> vth -3" in said.what


def test_clamping_from_above():
    """A threshold too large for the register costs weight bits, or with clamping is moved."""
    built = dense([[1.0]], 1e5)
    (problem,) = refused(built, "loihi2")
    assert "effective weight bits" in problem.what
    network = quantize(built, "loihi2", clamp_thresholds=True, overflow="checked")
    assert only(network)[0].vth.tolist() == [131071]
    assert only(network)[1].synapses.weight.tolist() == [[127]]
    assert "1 of 1 thresholds" in network.diagnostics[0].what


def test_nothing_to_clamp_nothing_said():
    network = quantize(dense([[1.0]], 0.5), "loihi2", clamp_thresholds=True)
    assert network.diagnostics == ()


# Several problems, options, chips


def test_every_layer_with_a_problem_is_named():
    rng = np.random.default_rng(0)
    built = deep(rng, levels=3, theta=(-1.0, -0.5))
    problems = refused(built, "loihi1")
    assert [p.where for p in problems] == ["input", "lif1", "lif2", "lif3"]
    assert "graded 0..3, but loihi1 knows binary spikes only" in problems[0].what
    assert "72 of 72 thresholds" in problems[1].what
    assert "--encoding bernoulli" in problems[0].remedy


def test_thresholds_and_precision_of_one_layer():
    problems = refused(dense([[1.0], [1.0]], [-1.0, 1.0], [0.0, 4e4]), "loihi2")
    assert len(problems) == 2
    assert {p.where for p in problems} == {"lif"}
    text = " ".join(p.what for p in problems)
    assert "1 of 2 thresholds" in text
    assert "effective weight bits" in text


def test_graded_input_where_the_chip_knows_it():
    built = dense(np.ones((1, 300)), 10.0, levels=255)
    for chip in ("ideal", "loihi2"):
        network = quantize(built, chip, overflow="proven" if chip == "ideal" else "checked")
        assert network.inputs["input"].levels == 255
        assert network.precision["lif"].worst_sum == 127 * 300 * 255
    (problem,) = refused(built, "loihi1", overflow="checked")
    assert problem.where == "input"


def test_levels_count_at_the_first_layer_alone():
    network = quantize(deep(np.random.default_rng(1), levels=200), "ideal")
    for population, levels in zip(network.weighted, (200, 1, 1), strict=True):
        (connection,) = network.into(population.name)
        assert network.levels(connection.source) == levels
        assert network.precision[population.name].worst_sum == sums(network, population)


@pytest.mark.parametrize(
    "wrong",
    [
        {"weight_bits": 1},
        {"weight_bits": 9},
        {"weight_exp": -1},
        {"weight_exp": 8},
        {"chip": "loihi9"},
    ],
)
def test_options_out_of_range(wrong):
    with pytest.raises(InputError) as caught:
        quantize(dense([[1.0]], 0.5), **wrong)
    assert str(next(iter(wrong.values()))) in str(caught.value)


def test_both_wrong_options_are_named():
    with pytest.raises(InputError) as caught:
        quantize(dense([[1.0]], 0.5), weight_bits=1, weight_exp=9)
    assert [p.where for p in caught.value.problems] == ["weight_bits", "weight_exp"]


def test_many_thresholds_on_loihi1():
    theta = np.linspace(0.1, 1, 20)
    (said,) = quantize(dense(np.ones((20, 1)), theta), "loihi1", thresholds="native").diagnostics
    assert said.what.startswith("a core gets 20 distinct thresholds; one of loihi1 holds 7")
    assert quantize(dense(np.ones((20, 1)), theta), "loihi2").diagnostics == ()
    assert quantize(dense(np.ones((20, 1)), 0.5), "loihi1").diagnostics == ()


@pytest.mark.parametrize(
    ("names", "where"),
    [
        (("fc", "fc2", "lif"), "fc2"),
        (("pool", "lif"), "lif"),
    ],
)
def test_chains_that_cannot_be_lowered(names, where):
    nodes = {
        "fc": nir.Linear(weight=np.eye(4)),
        "fc2": nir.Linear(weight=np.eye(4)),
        "lif": lif(np.ones(4)),
    }
    shape = (4,)
    if "pool" in names:
        nodes |= {"pool": G.sum_pool((2, 2), (1, 2, 2)), "lif": lif(np.ones((1, 1, 1)))}
        shape = (1, 2, 2)
    out = (1, 1, 1) if "pool" in names else (4,)
    built = graph({name: nodes[name] for name in names}, shape, out)
    assert where in [p.where for p in refused(built)]


def test_overlapping_pools_are_refused():
    pool = G.sum_pool((2, 2), (1, 4, 4))
    pool.stride = np.array((1, 1))
    nodes = {"pool": pool, "spikes": nir.Threshold(threshold=np.full((1, 3, 3), 0.5))}
    (problem,) = refused(graph(nodes, (1, 4, 4), (1, 3, 3)))
    assert problem.where == "pool"
    assert "overlap" in problem.what


def test_a_reset_to_a_constant_counts_v():
    built = dense([[1.0]], 0.5)
    built.nodes["lif"].v_reset = np.array([0.1])
    neurons = quantize(built).by_name["lif"].neurons
    assert neurons.reset == "constant"
    assert neurons.v_reset == round(0.1 * 64 / float(neurons.scale.reshape(-1)[0]))


@pytest.mark.parametrize("calib", [False, True])
def test_progress_names_every_part_in_order(calib):
    net = random_net()
    told = []
    quantize(
        stl_deploy.from_torch(net),
        "loihi2",
        random_spikes(net, 4) if calib else None,
        on_progress=lambda *part: told.append(part),
    )
    names = ["float model"] * calib + [
        "lif1",
        "pool1",
        "lif2",
        "pool2",
        "lif3",
        "lif4",
        "placement",
    ]
    assert [what for _, _, what in told] == names
    assert [done for done, _, _ in told] == list(range(1 - calib, 8))
    assert {every for _, every, _ in told} == {8}
