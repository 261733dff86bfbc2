"""Quantizing networks that branch: units over all connections, delays, decays and biases per neuron."""

from __future__ import annotations

import nir
import numpy as np
import pytest

from stl_deploy.errors import InputError, LoweringError
from stl_deploy.hw_sim import engine, reference
from stl_deploy.ir import execute, floats, slices
from stl_deploy.ir import nir_graph as G
from stl_deploy.ir.network import Input
from stl_deploy.ir.units import MAX_STEPS
from stl_deploy.lower import calibration
from stl_deploy.lower.quantize import quantize
from stl_deploy.verify.audit import Audit
from tests.build import forced as forced_runs
from tests.build.float_graphs import STEPS, Drawing, draw, residual

SEEDS = range(12)


def forced(network, graph, raster):
    """The share of spikes that differ where every source sends what it does in float, by population."""
    want = execute.run(graph, raster)
    got = forced_runs.run(network, raster, want, by=engine.run).layers
    assert all(0.005 < spikes.mean() < 0.9 for spikes in want.values())
    return {name: np.mean(got[name].spikes != spikes) for name, spikes in want.items()}


def flat(seed=0, size=6):
    return Drawing(np.random.default_rng(seed), (size,))


def into(network, name):
    return {connection.name: connection for connection in network.into(name)}


# All of it


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("make", [residual, draw])
def test_graphs_spike_as_the_float_model(make, seed):
    graph, raster = make(seed)
    if all(s.mean() > 0.005 for s in execute.run(graph, raster).values()):
        wrong = forced(quantize(graph), graph, raster)
        assert max(wrong.values()) < 0.015
        fine = forced(quantize(graph, weight_precision="2x8"), graph, raster)
        assert np.mean(list(fine.values())) < 0.001


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("make", [residual, draw])
def test_graphs_keep_their_form(make, seed):
    """Connections, delays, and what of the neurons is not rounded; and no fault in what is."""
    graph, _ = make(seed)
    known, network = floats.decode(graph), quantize(graph)
    said = {c.key: c.delay for c in known.connections}
    assert {c.key: c.delay for c in network.connections if c.key in said} == said
    extra = {c.source for c in network.connections if c.key not in said}
    assert extra == {p.name for p in network.populations} - set(known.by_name)
    assert network.readout.source == known.output
    for population in known.populations:
        neurons = network.by_name[population.name].neurons
        keep = np.broadcast_to(population.neurons.keep, population.shape)
        assert np.abs((4096 - np.asarray(neurons.dv)) / 4096 - keep).max() <= 0.5001 / 4096
        assert neurons.reset == population.neurons.reset
    assert Audit(graph, network).faults == ()


@pytest.mark.parametrize("chip", ["loihi1", "loihi2"])
@pytest.mark.parametrize("seed", SEEDS)
def test_proven_graphs_never_overflow(chip, seed):
    """Weights that count 2^7 fill the registers; what arrives is anything, and all at once."""
    graph, raster = residual(seed) if chip == "loihi1" else draw(seed)
    options = {"weight_exp": 7, "thresholds": "native"}
    network = quantize(graph, chip, overflow="proven", **options)
    free = quantize(graph, chip, overflow="checked", **options)
    assert all(how.mode == "proven" for how in network.precision.values())
    assert any(how.worst_sum > how.limit for how in free.precision.values())
    for population in network.weighted:
        if not network.into(population.name):
            continue
        alone = network.alone(population.name)
        rng = np.random.default_rng(seed)
        given = {
            name: np.concatenate(
                [
                    rng.integers(0, 2, (20, STEPS, *port.shape)),
                    np.ones((1, STEPS, *port.shape), int),
                ]
            ).astype(np.uint8)
            for name, port in alone.inputs.items()
        }
        assert not reference.run(alone, given).layers[population.name].overflow.any()
    trace = engine.run(network, raster)
    assert not any(did.overflow.any() for did in trace.layers.values())


# Units


@pytest.mark.parametrize("chip", ["ideal", "loihi1", "loihi2"])
def test_an_identity_leaves_the_convolution_its_bits(chip):
    for seed in range(4):
        graph, _ = residual(seed)
        network = quantize(graph, chip, thresholds="native")
        ways, bits = into(network, "l2"), network.precision["l2"].connections
        assert bits.keys() == ways.keys() == {"l1_l2_w", "l0_l2"}
        assert bits["l1_l2_w"] >= 7.9
        assert network.precision["l2"].effective_bits >= 7.9
        skip = ways["l0_l2"]
        assert (skip.precision, skip.exp, skip.synapses.kind) == ("2x8", 0, "one_to_one")
        assert (ways["l1_l2_w"].precision, ways["l1_l2_w"].bits) == ("8", 8)
        scale = np.broadcast_to(network.by_name["l2"].neurons.scale, (4, 6, 6)).ravel()
        weight = skip.synapses.weight * scale
        assert np.abs(weight - 1).max() <= 0.5001 * scale.max()


def skip_of(weight, **options):
    """A dense connection with a largest weight of 1, and one of single weights ``weight``."""
    made = flat()
    made.neurons("a", (6,), False, False, False)
    made.way("input", "a", made.dense("input", 6))
    made.neurons("b", (6,), False, False, False)
    dense = made.dense("a", 6)
    dense.weight[:] /= np.abs(dense.weight).max(axis=1, keepdims=True)
    made.way("a", "b", dense)
    made.way("a", "b", nir.Scale(np.full(6, weight)))
    network = quantize(made.graph("b"), **options)
    ways = network.into("b")
    assert [c.synapses.kind for c in ways] == ["dense", "one_to_one"]
    return network, *ways


@pytest.mark.parametrize("exp", [0, 2])
@pytest.mark.parametrize(
    ("weight", "precision"), [(0.5, "8"), (1.0, "8"), (1.01, "2x8"), (30.0, "2x8")]
)
def test_a_single_weight_takes_the_finer_grid_only_beyond_the_other(exp, weight, precision):
    network, dense, single = skip_of(weight, weight_exp=exp)
    assert (dense.precision, dense.exp) == ("8", exp)
    assert single.precision == precision
    assert single.exp == (exp if precision == "8" else 0)
    scale = network.by_name["b"].neurons.scale
    held = single.synapses.weight * scale * 2.0**single.exp
    assert np.abs(held - weight).max() <= 0.501 * scale.max() * 2**single.exp
    assert np.abs(dense.synapses.weight).max(axis=1).tolist() == [127] * 6
    bits = network.precision["b"].connections
    assert bits["a_b_w"] == pytest.approx(dense_bits(dense))


def test_a_single_weight_beyond_the_finer_grid_widens_the_unit():
    """Next to weights that count 2^7 it hardly reaches further than theirs."""
    network, dense, single = skip_of(2.0, weight_exp=7)
    assert single.synapses.weight.tolist() == [127] * 6
    largest = np.abs(dense.synapses.weight).max(axis=1).tolist()
    assert largest == [round(16319 / 2 / 128)] * 6
    assert network.precision["b"].effective_bits == dense_bits(dense)
    with pytest.raises(LoweringError, match=r"next to .* 1 it has a weight of 30 into a single"):
        skip_of(30.0, weight_exp=7)


def dense_bits(connection):
    largest = np.abs(connection.synapses.weight.astype(int)).max(axis=1).min()
    return np.log2(largest + 1) + 1


def test_one_name_for_two_connections():
    """What two sources send over the same weights: told by the source."""
    made = flat()
    for name in ("a", "b", "c"):
        made.neurons(name, (6,), False, False, False)
    made.way("input", "a", made.dense("input", 6))
    made.way("input", "b", made.dense("input", 6))
    made.way("a", "c", made.dense("a", 6, bias=0.2))
    made.edges.append(("b", "a_c_w"))
    network = quantize(made.graph("c"))
    found = network.precision["c"].connections
    assert found == {"a_c_w (a)": 8.0, "a_c_w (b)": 8.0}
    graph, raster = made.graph("c"), made.raster()
    assert max(forced(network, graph, raster).values()) < 0.015
    one, two = network.into("c")
    np.testing.assert_array_equal(one.synapses.weight, two.synapses.weight)


def test_a_concatenation():
    """Zero columns of weights where the other source feeds: no synapses, and units of their own."""
    made = flat(3)
    for name in ("a", "b"):
        made.neurons(name, (6,), False, False, False)
        made.way("input", name, made.dense("input", 6))
    made.neurons("c", (6,), False, False, False)
    first, second = made.dense("a", 6), made.dense("b", 6)
    first.weight[3:], second.weight[:3] = 0, 0
    second.weight[3:] *= 100
    made.nodes["c"].v_threshold[3:] *= 100
    made.way("a", "c", first)
    made.way("b", "c", second)
    graph = made.graph("c")
    network = quantize(graph)
    assert network.precision["c"].connections == {"a_c_w": 8.0, "b_c_w": 8.0}
    assert [c.stored_weights for c in network.into("c")] == [18, 18]
    assert max(forced(network, graph, made.raster()).values()) < 0.015


# Decays, gains, biases


def test_decays_of_each_neuron():
    made = flat()
    made.neurons("a", (6,), True, True, False)
    made.way("input", "a", made.dense("input", 6))
    graph = made.graph("a")
    graph.nodes["a"].tau_mem[0] = G.DT / 0.5
    network = quantize(graph)
    (population,) = network.populations
    neurons = population.neurons
    step, share = G.DT / graph.nodes["a"].tau_mem, G.DT / graph.nodes["a"].tau_syn
    assert neurons.dv.dtype == neurons.du.dtype == np.int32
    assert neurons.dv.tolist() == np.rint(4096 * step).tolist()
    assert neurons.du.tolist() == (np.rint(4096 * share) - 1).tolist()
    decay, current = (d for d in network.diagnostics)
    assert decay.what.startswith("decay of 5 of 6 neurons, from ")
    assert current.what.startswith("decay of the current of 6 of 6 neurons, from ")
    assert max(forced(network, graph, made.raster()).values()) < 0.015


def test_decays_that_agree_are_one_number():
    """Of all neurons, or of those of a channel."""
    made = Drawing(np.random.default_rng(0), (2, 4, 4))
    made.neurons("a", (3, 4, 4), False, False, False)
    made.way("input", "a", made.conv("input", 3, 3))
    graph = made.graph("a")
    assert isinstance(quantize(graph).populations[0].neurons.dv, int)
    graph.nodes["a"].tau = graph.nodes["a"].tau * np.array([1, 1.5, 2])[:, None, None]
    graph.nodes["a"].r = graph.nodes["a"].tau / G.DT
    assert quantize(graph).populations[0].neurons.dv.shape == (3, 1, 1)


def test_gains_of_each_neuron():
    """Neurons whose inputs count differently are those whose thresholds do."""
    made = Drawing(np.random.default_rng(0), (2, 4, 4))
    made.neurons("a", (3, 4, 4), False, False, False)
    made.way("input", "a", made.conv("input", 3, 3, bias=0.2))
    plain = made.graph("a")
    plain.nodes["a"].v_leak[:] = 0.3
    gain = 2.0 ** made.rng.integers(-3, 4, (3, 4, 4))
    other = made.graph("a")
    node = other.nodes["a"]
    other.nodes["a"] = nir.LIF(
        tau=node.tau,
        r=node.r * gain,
        v_leak=node.v_leak * gain,
        v_reset=node.v_reset,
        v_threshold=node.v_threshold * gain,
    )
    one, two = quantize(plain), quantize(other)
    a, b = one.populations[0].neurons, two.populations[0].neurons
    np.testing.assert_array_equal(
        one.connections[0].synapses.weight, two.connections[0].synapses.weight
    )
    assert np.abs(a.vth - b.vth).max() <= 1  # nextafter is taken before the division
    np.testing.assert_array_equal(*np.broadcast_arrays(a.bias, b.bias))
    np.testing.assert_allclose(a.scale * gain, b.scale)
    assert max(forced(two, other, made.raster()).values()) < 0.015


def test_a_bias_of_each_neuron():
    made = Drawing(np.random.default_rng(0), (2, 4, 4))
    made.neurons("a", (3, 4, 4), False, False, False)
    made.way("input", "a", made.conv("input", 3, 3, bias=0.2))
    graph = made.graph("a")
    step = G.DT / graph.nodes["a"].tau
    leak = made.rng.normal(0, 0.3, (3, 4, 4))
    graph.nodes["a"].v_leak = leak / step
    network = quantize(graph)
    neurons = network.populations[0].neurons
    exact = leak + graph.nodes["input_a_w"].bias[:, None, None]
    assert neurons.bias_mant.shape == (3, 4, 4)
    assert np.abs(neurons.bias_mant * neurons.scale - exact).max() <= 0.501 * neurons.scale.max()
    assert max(forced(network, graph, made.raster()).values()) < 0.015
    graph.nodes["a"].v_leak = np.full((3, 4, 4), 0.4)
    assert quantize(graph).populations[0].neurons.bias_mant.shape == (3, 1, 1)


@pytest.mark.parametrize("calib", [False, True])
def test_a_bias_through_a_current(calib):
    """It comes from a neuron that fires in every step, over the units of the others."""
    made = flat(5)
    made.neurons("a", (6,), False, True, False)
    made.way("input", "a", made.dense("input", 6, bias=0.3))
    graph, raster = made.graph("a"), made.raster()
    bias = graph.nodes["input_a_w"].bias
    bias[0] = 40.0  # beyond the grid of the weights
    network = quantize(graph, calib=raster if calib else None)
    assert [p.name for p in network.populations] == ["input_a_w_bias", "a"]
    assert [c.key for c in network.connections] == [
        ("input_a_w", "input", "a"),
        ("input_a_w_bias_w", "input_a_w_bias", "a"),
    ]
    always = engine.run(network, raster).layers["input_a_w_bias"].spikes
    assert (always == 1).all()
    neurons, way = network.by_name["a"].neurons, network.connections[1]
    assert (way.delay, way.precision, way.synapses.weight.shape) == (0, "2x8", (6, 1))
    gain = floats.decode(graph).by_name["a"].neurons.total_gain
    exact = bias * np.broadcast_to(gain, 6)
    assert np.abs(way.synapses.weight[:, 0] * neurons.scale - exact).max() <= neurons.scale.max()
    assert not neurons.bias_mant.any()
    assert network.precision["a"].connections.keys() == {"input_a_w"}
    graph.nodes["a"].v_threshold[0] = 60.0
    assert max(forced(quantize(graph), graph, raster).values()) < 0.015


def test_a_bias_through_a_current_counts_as_seen():
    """It takes a part of the accumulator, half of which is left free."""
    made = Drawing(np.random.default_rng(0), (1500,))
    made.neurons("a", (4,), False, True, False)
    made.way("input", "a", made.dense("input", 4))
    weight = made.nodes["input_a_w"]
    weight.weight[:] = np.abs(weight.weight) * 40
    weight.bias[:] = weight.weight.sum(axis=1) / 4
    graph, raster = made.graph("a"), made.raster(4, 0.2)
    network = quantize(graph, "loihi1", raster, overflow="checked", thresholds="native")
    given = {"input": raster.reshape(-1, 1500), "input_a_w_bias": np.ones((24, 1), np.uint8)}
    arrived = sum(c.sums(given[c.source], 1) for c in network.into("a"))
    # Rounding of the weights moves a sum a little.
    assert 0.4 * (1 << 15) < np.abs(arrived).max() < 0.52 * (1 << 15)


def test_names_of_the_bias_are_free():
    made = flat(5)
    made.neurons("input_a_w_bias", (6,), False, False, False)
    made.way("input", "input_a_w_bias", made.dense("input", 6))
    made.neurons("a", (6,), False, True, False)
    made.way("input", "a", made.dense("input", 6, bias=0.3))
    made.way("input_a_w_bias", "a", made.dense("input", 6))
    network = quantize(made.graph("a"))
    assert [p.name for p in network.populations] == ["input_a_w_bias", "input_a_w_bias_", "a"]


def test_a_bias_of_two_populations():
    """One node of weights leads to both: each has a neuron that its bias comes from."""
    made = flat(5)
    made.neurons("a", (6,), False, True, False)
    made.neurons("b", (6,), True, True, False)
    made.way("input", "a", made.dense("input", 6, bias=0.3))
    made.edges.append(("input_a_w", "b"))
    made.neurons("c", (6,), False, False, False)
    made.way("a", "c", made.dense("a", 6))
    made.way("b", "c", made.dense("b", 6))
    graph, raster = made.graph("c"), made.raster()
    network = quantize(graph)
    names = ["input_a_w_bias", "a", "input_a_w_bias_", "b", "c"]
    assert [p.name for p in network.populations] == names
    assert max(forced(network, graph, raster).values()) < 0.015


# Inputs


def test_signed_and_held_inputs():
    made = flat(1)
    made.neurons("a", (6,), False, False, False)
    made.way("input", "a", made.dense("input", 6, bias=0.1))
    made.nodes["a"].v_threshold[:] *= 30
    graph = made.graph("a", version=3, signed=True, held=True, input_levels=100)
    network = quantize(graph)
    assert network.inputs == {"input": Input((6,), 100, True, True)}
    top = np.abs(network.connections[0].synapses.weight.astype(int)).sum(axis=1).max()
    assert network.precision["a"].worst_sum == 100 * top
    raster = made.rng.integers(-100, 101, (20, 1, 6)).astype(np.int16)
    fitted = quantize(graph, calib=raster, weight_bits=4)
    assert fitted.precision["a"].calibrated == 20
    sent = made.graph("a", version=3, signed=True, input_levels=100)
    again = quantize(sent, calib=np.repeat(raster, STEPS, axis=1), weight_bits=4)
    (one,), (two,) = fitted.connections, again.connections
    np.testing.assert_array_equal(one.synapses.weight, two.synapses.weight)
    vth = [network.populations[0].neurons.vth for network in (fitted, again)]
    np.testing.assert_array_equal(*vth)
    with pytest.raises(LoweringError, match=r"graded -100\.\.100, but loihi1"):
        quantize(graph, "loihi1")


def test_a_raster_for_each_input():
    made = flat(2)
    made.nodes["other"] = nir.Input({"input": np.array([4])})
    made.shapes["other"] = (4,)
    made.neurons("a", (6,), False, False, False)
    made.way("input", "a", made.dense("input", 6))
    made.way("other", "a", made.dense("other", 6), 2)
    graph = made.graph("a")
    rng = np.random.default_rng(0)
    calib = {
        n: (rng.random((20, STEPS, k)) < 0.4).astype(np.uint8)
        for n, k in (("input", 6), ("other", 4))
    }
    network = quantize(graph, calib=calib)
    assert list(network.inputs) == ["input", "other"]
    assert max(forced(network, graph, calib).values()) < 0.015
    with pytest.raises(
        InputError, match=r"calib: has spikes, the network reads input, other .* a dictionary"
    ):
        quantize(graph, calib=calib["input"])
    with pytest.raises(
        InputError, match=r"calib: spikes/input: has shape .*, the network reads \[N, 6, 6\]"
    ):
        quantize(graph, calib={"input": calib["other"], "other": calib["other"]})


# Calibration


@pytest.mark.parametrize("bits", [8, 4])
def test_calibration_helps_on_other_data(bits):
    before, after = [], []
    for make, seed in ((residual, 0), (residual, 1), (draw, 3), (draw, 5)):
        graph, raster = make(seed, samples=400)
        plain = quantize(graph, weight_bits=bits)
        fitted = quantize(graph, calib=raster[:200], weight_bits=bits)
        before += forced(plain, graph, raster[200:]).values()
        after += forced(fitted, graph, raster[200:]).values()
    assert np.mean(after) < 0.8 * np.mean(before)


def test_single_weights_are_not_fitted():
    made = Drawing(np.random.default_rng(0), (2, 4, 4))
    made.neurons("a", (3, 4, 4), False, False, False)
    made.way("input", "a", made.conv("input", 3, 3))
    made.neurons("b", (3, 4, 4), False, False, False)
    made.way("input", "b", made.conv("input", 3, 3))
    made.way("a", "b", None)
    graph, raster = made.graph("b"), made.raster()
    network = quantize(graph, calib=raster, weight_bits=4)
    assert [d.where for d in network.diagnostics if "nearest" in d.what] == []
    plain = quantize(graph, weight_bits=4)
    for name, same in (("input_b_w", False), ("a_b", True)):
        one, two = into(network, "b")[name], into(plain, "b")[name]
        assert (one.synapses.weight == two.synapses.weight).all() == same


def test_too_many_columns_are_rounded_to_nearest(monkeypatch):
    monkeypatch.setattr(calibration, "COLUMNS", 11)
    graph, raster = residual(0)
    plain, fitted = quantize(graph), quantize(graph, calib=raster)
    said = {d.where: d.what for d in fitted.diagnostics if "rounded to nearest" in d.what}
    assert set(said) == {"l0", "l1", "l2", "l3", "l4"}
    assert said["l1"].startswith("has 38 inputs to a neuron, of which 11 can be fitted")
    for a, b in zip(plain.connections, fitted.connections, strict=True):
        np.testing.assert_array_equal(a.synapses.weight, b.synapses.weight)


# Skips and refusals


def test_skips_wait_in_synapses_or_in_relays():
    graph, raster = residual(0)
    want = engine.run(quantize(graph, thresholds="native"), raster).layers
    for chip, skips, relays in (
        ("loihi2", "auto", 0),
        ("loihi2", "delay", 0),
        ("loihi1", "relay", 3),
        ("ideal", "relay", 3),
    ):
        network = quantize(graph, chip, skips=skips, thresholds="native")
        assert len(network.populations) == 5 + relays
        got = engine.run(network, raster).layers
        for name in want:
            np.testing.assert_array_equal(got[name].spikes, want[name].spikes)
    with pytest.raises(InputError, match="skips: 'none' is not one of auto, delay, relay"):
        quantize(graph, skips="none")


def test_a_delay_beyond_what_is_kept_is_named():
    made = flat()
    made.neurons("a", (6,), False, False, False)
    made.way("input", "a", made.dense("input", 6), MAX_STEPS + 1)
    with pytest.raises(LoweringError, match="input_a_w: delays by 4097 steps; no sample has more"):
        quantize(made.graph("a"))


def test_neurons_behind_the_input_alone():
    """Each value into the neuron in its place, without a node of weights."""
    made = flat()
    made.neurons("a", (6,), False, False, False)
    made.way("input", "a", None)
    made.nodes["a"].v_threshold[:] = np.linspace(0.4, 1.4, 6)
    network = quantize(made.graph("a"), "loihi2")
    (way,) = network.connections
    assert (way.name, way.synapses.kind, way.precision) == ("input_a", "one_to_one", "8")
    assert way.synapses.weight.tolist() == [127] * 6
    assert network.precision["a"].effective_bits == 8
    graph, raster = made.graph("a"), made.raster()
    assert max(forced(network, graph, raster).values()) < 0.02


def test_a_trained_graph_that_branches():
    """The integers of every connection, each on its channel's unit; others are named."""
    made, rng = flat(), np.random.default_rng(0)
    made.neurons("a", (6,), False, False, False)
    whole, skip = rng.integers(-7, 8, (6, 6)), rng.integers(1, 8, 6)
    unit = np.full(6, 1 / 64)
    node = made.nodes["a"]
    made.nodes["a"] = G.lif(19 * unit, 2 * G.DT, 2.0)
    made.way("input", "a", nir.Linear(weight=whole * unit[:, None]))
    made.way("input", "a", nir.Scale(skip * unit))
    trained = G.Trained(weight_bits=4, scale={"a": unit.tolist()})
    graph = made.graph("a", version=2, trained=trained)
    network = quantize(graph, "loihi2")
    one, two = network.into("a")
    assert (one.synapses.weight == whole).all()
    assert (two.synapses.weight == skip).all()
    assert (one.bits, two.bits, node.r.shape) == (4, 4, (6,))
    assert network.by_name["a"].neurons.vth.tolist() == [19] * 6
    raster = made.raster()
    want = execute.run(graph, raster)["a"]
    np.testing.assert_array_equal(engine.run(network, raster).layers["a"].spikes, want)
    # Spikes that are added as they are may have the finer grid of two slices; other weights may not.
    most = slices.largest("2x8", slices.SLICE_BITS)
    graph.nodes["input_a_w_"].scale[2] = most * unit[0]
    (two,) = (c for c in quantize(graph, "loihi2").into("a") if c.name == "input_a_w_")
    assert two.synapses.weight.tolist() == [most if i == 2 else k for i, k in enumerate(skip)]
    graph.nodes["input_a_w_"].scale[2] = (most + 1) * unit[0]
    with pytest.raises(LoweringError, match=f"its weight input_a_w_ .* at most {most:,}"):
        quantize(graph, "loihi2")
    graph.nodes["input_a_w_"].scale[2] = unit[0]
    graph.nodes["input_a_w"].weight[1, 1] = 8 * unit[0]
    with pytest.raises(LoweringError, match="its weight input_a_w goes from -7 to 8; at most 7"):
        quantize(graph, "loihi2")
