"""Calibration: its moments, its rounding, its thresholds, and that it helps on other data."""

from dataclasses import replace

import numpy as np
import pytest

import stl_deploy
from stl_deploy.chips import bounds
from stl_deploy.chips import facts as chips
from stl_deploy.errors import InputError
from stl_deploy.formats import integer_nir as nir_file
from stl_deploy.formats import nir_io
from stl_deploy.formats.raster import Raster
from stl_deploy.hw_sim import reference
from stl_deploy.ir import execute as float_exec
from stl_deploy.ir.conv import convolve
from stl_deploy.ir.network import Connection, Input, IntegerNetwork, Population
from stl_deploy.ir.neurons import Lif
from stl_deploy.ir.readouts import Readout
from stl_deploy.ir.synapses import Conv, Dense
from stl_deploy.lower import calibration
from stl_deploy.verify.against_float import compare
from stl_deploy.verify.audit import Audit
from tests.build import forced as forced_runs
from tests.build.floats import linear
from tests.build.nets import ZOO, ZOO_RASTER, random_net, random_spikes
from tests.build.networks import chain, lif


def mixed(rng, n, inputs, timesteps=4):
    """Correlated binary inputs [n, T, inputs]: five causes, each driving the same many inputs."""
    drives = np.random.default_rng(0).random((5, inputs)) < 0.3
    rates = rng.random((n, 1, 5)) @ drives / 3
    return (rng.random((n, timesteps, inputs)) < rates).astype(np.uint8)


def recorded(inputs, fired):
    """A recording of inputs and of what one population "lif" fired on them."""
    packed = {"lif": np.packbits(fired, axis=-1)}
    return calibration.Recording({"input": inputs}, packed, {"lif": fired.shape[2:]})


def fires(network, vth, inputs):
    """What the only population fires with other thresholds."""
    (population,) = network.populations
    neurons = replace(population.neurons, vth=vth.astype(np.int32))
    changed = network.changed(replace(population, neurons=neurons))
    return reference.run(changed, inputs).layers["lif"].spikes


def same_integers(one, two):
    """Whether two networks have the same weights, thresholds and biases."""
    pairs = zip(one.populations, two.populations, strict=True)
    ways = zip(one.connections, two.connections, strict=True)
    return all(
        np.array_equal(np.broadcast_to(x, a.shape), np.broadcast_to(y, b.shape))
        for a, b in pairs
        for x, y in (
            (a.neurons.vth, b.neurons.vth),
            (a.neurons.bias_mant, b.neurons.bias_mant),
        )
    ) and all(np.array_equal(a.synapses.weight, b.synapses.weight) for a, b in ways)


# Moments


@pytest.mark.parametrize(
    ("stride", "padding", "dilation", "groups"),
    [((1, 1), (0, 0), (1, 1), 1), ((2, 1), (1, 2), (1, 2), 2)],
)
def test_columns_are_what_a_kernel_sees(stride, padding, dilation, groups):
    rng = np.random.default_rng(1)
    weight = rng.integers(-9, 9, (4, 6 // groups, 3, 2)).astype(np.int8)
    x = rng.random((5, 6, 7, 8)).astype(np.float32)
    out = convolve(x, weight.astype(np.float32), stride, padding, dilation, groups)
    conv = Conv(weight, stride, padding, dilation, groups)
    chosen = rng.permutation(5 * out[0, 0].size)[:50]
    way = Connection("w", "input", "lif", conv)
    columns = calibration._columns(way, out.shape[1:], x, chosen)
    rows = weight.reshape(groups, 4 // groups, -1).astype(np.float32)
    got = np.matmul(columns, rows.transpose(0, 2, 1)).transpose(1, 0, 2).reshape(len(chosen), 4)
    want = np.moveaxis(out, 1, 3).reshape(-1, 4)[chosen]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("du", "dv", "own"), [(4095, 2048, False), (1023, 512, True)])
def test_moments_are_those_of_what_v_adds_up(du, dv, own):
    """Sample by sample and step by step, with the current, the population's own spikes and the bias."""
    rng = np.random.default_rng(2)
    inputs = (rng.random((40, 5, 7)) < 0.4).astype(np.uint8)
    fired = (rng.random((40, 5, 3)) < 0.3).astype(np.uint8)
    back = Dense(np.zeros((3, 3), np.int8)) if own else None
    dense = Dense(np.zeros((3, 7), np.int8))
    network = chain(lif("lif", dense, (7,), du=du, dv=dv, recurrent=back))
    recording = recorded(inputs, fired)
    got = calibration.moments(network, network.connections, recording)
    seen = []
    for sample, spikes in zip(inputs, fired, strict=True):
        current, v, one = 0, 0, 0
        for t in range(5):
            before = spikes[t - 1] if t else np.zeros(3)
            x = np.concatenate([sample[t], before]) if own else sample[t]
            current = current * (4095 - du) / 4096 + x
            v, one = v * (4096 - dv) / 4096 + current, one * (4096 - dv) / 4096 + 1
            seen.append(np.append(v, one))
    seen = np.array(seen)
    n = seen.shape[1]
    want = seen.T @ seen / len(seen) * np.where(np.eye(n), 1, 200 / (200 + n))
    np.testing.assert_allclose(got, want[None], rtol=1e-5)


def test_patches_beyond_the_budget_are_drawn(monkeypatch):
    """Fewer patches give nearly the same moments, and the same ones each time."""
    rng = np.random.default_rng(3)
    conv = Conv(np.zeros((2, 1, 3, 3), np.int8), (1, 1), (1, 1), (1, 1), 1)
    network = chain(lif("lif", conv, (1, 9, 9)))
    inputs = (rng.random((60, 4, 1, 9, 9)) < 0.5).astype(np.uint8)
    case = network, network.connections, calibration.Recording({"input": inputs}, {}, {})
    whole = calibration.moments(*case)
    monkeypatch.setattr(calibration, "ROWS", 4000)
    drawn = calibration.moments(*case)
    np.testing.assert_array_equal(drawn, calibration.moments(*case))
    assert (drawn != whole).any()
    np.testing.assert_allclose(drawn, whole, rtol=0.15)


def test_a_recurrent_population_over_many_steps(monkeypatch):
    """More steps than are looked at: inputs and own spikes are drawn together."""
    rng = np.random.default_rng(16)
    inputs = (rng.random((50, 6, 4)) < 0.4).astype(np.uint8)
    square = Dense(np.zeros((4, 4), np.int8))
    network = chain(lif("lif", square, (4,), recurrent=square))
    case = network, network.connections, recorded(inputs, inputs)
    whole = calibration.moments(*case)
    monkeypatch.setattr(calibration, "ROWS", 200)
    np.testing.assert_allclose(calibration.moments(*case), whole, rtol=0.4, atol=0.05)


def test_moments_over_several_connections():
    """A kernel of two groups and one of a single group, two steps late: patch after patch."""
    rng = np.random.default_rng(20)
    near, far = ((rng.random((20, 5, c, 6, 6)) < 0.4).astype(np.uint8) for c in (4, 3))
    one = Conv(np.zeros((4, 2, 3, 3), np.int8), (1, 1), (1, 1), (1, 1), 2)
    two = Conv(np.zeros((4, 3, 1, 1), np.int8), (1, 1), (0, 0), (1, 1), 1)
    into = (
        Connection("one", "near", "lif", one),
        Connection("two", "far", "lif", two, delay=2),
    )
    each = np.array([1024, 2048, 2048, 3072], np.int32).reshape(4, 1, 1)
    neurons = Lif(np.zeros((4, 6, 6), np.int32), np.zeros(()), np.ones(()), dv=each)
    inputs = {"near": Input((4, 6, 6)), "far": Input((3, 6, 6))}
    population = Population("lif", (4, 6, 6), neurons)
    network = IntegerNetwork("ideal", 5, inputs, (population,), into, Readout(1, 144, "lif"))
    got = calibration.moments(
        network, into, calibration.Recording({"near": near, "far": far}, {}, {})
    )
    late = np.concatenate([0 * far[:, :2], far[:, :-2]], axis=1)

    def traced(x):
        v = np.zeros(x[:, 0].shape)
        return np.stack([v := v / 2 + x[:, t] for t in range(5)], axis=1)

    a, b, ones = traced(near), traced(late), traced(np.ones((20, 5)))
    padded = np.pad(a, ((0, 0), (0, 0), (0, 0), (1, 1), (1, 1)))
    for group in range(2):
        seen = np.stack(
            [
                np.concatenate(
                    [
                        padded[n, t, 2 * group : 2 * group + 2, y : y + 3, x : x + 3].ravel(),
                        b[n, t, :, y, x],
                        ones[n, t : t + 1],
                    ]
                )
                for n, t, y, x in np.ndindex(20, 5, 6, 6)
            ]
        )
        rows, columns = seen.shape
        trust = np.where(np.eye(columns), 1, rows / (rows + columns))
        np.testing.assert_allclose(got[group], seen.T @ seen / rows * trust, rtol=1e-4)


# Rounding


def sequential(exact, second, order, most):
    """Column by column, the free ones solved for anew each time: the definition, without a factor."""
    left, done = exact.copy(), np.zeros_like(exact)
    for at, j in enumerate(order):
        done[:, j] = np.clip(np.rint(left[:, j]), -most, most)
        free = order[at + 1 :]
        if len(free):
            pull = np.linalg.solve(second[np.ix_(free, free)], second[free, j])
            left[:, free] += np.outer(left[:, j] - done[:, j], pull)
    return done


def test_compensation_is_column_by_column():
    """Over several blocks, against the definition; damping counts."""
    rng = np.random.default_rng(4)
    n = calibration.BLOCK + 40
    x = mixed(rng, 400, n)[:, 0] + 0.1 * rng.random((400, n))
    second = x.T @ x / len(x)
    exact = rng.normal(size=(5, n)) * 3
    got = calibration.compensate(exact, second, np.ones(n), np.full(n, 7.0))
    damped = second + calibration.DAMPING * np.trace(second) / n * np.eye(n)
    order = [*np.argsort(-np.diag(second)[:-1], kind="stable"), n - 1]
    assert np.abs(got).max() == 7
    np.testing.assert_array_equal(got, sequential(exact, damped, order, 7))


def test_without_correlation_it_is_rounding_to_nearest():
    exact = np.random.default_rng(5).normal(size=(4, 300)) * 5
    got = calibration.compensate(exact, np.eye(300), np.ones(300), np.full(300, np.inf))
    np.testing.assert_array_equal(got, np.rint(exact))


def test_a_weight_that_is_no_synapse_stays_none():
    """And what the others leave behind is still made up for."""
    rng = np.random.default_rng(7)
    x = mixed(rng, 2000, 60)[:, 0].astype(float)
    absent = rng.random((50, 60)) < 0.5
    exact = np.where(absent, 0.0, rng.normal(size=(50, 60)) * 3)
    got = calibration.compensate(exact, x.T @ x / len(x), np.ones(60), np.full(60, 127.0))
    absent[:, -1] = False
    assert not got[absent].any()
    other = mixed(rng, 2000, 60)[:, 0]
    errors = [np.mean(((w - exact) @ other.T) ** 2) for w in (got, np.rint(exact))]
    assert errors[0] < 0.7 * errors[1]


def test_compensation_lowers_the_error_of_sums():
    rng = np.random.default_rng(6)
    x = mixed(rng, 2000, 60)[:, 0].astype(float)
    exact = rng.normal(size=(50, 60)) * 20
    got = calibration.compensate(exact, x.T @ x / len(x), np.ones(60), np.full(60, 127.0))
    other = mixed(rng, 2000, 60)[:, 0]
    errors = [np.mean(((w - exact) @ other.T) ** 2) for w in (got, np.rint(exact))]
    assert errors[0] < 0.8 * errors[1]


# Thresholds


@pytest.mark.parametrize(("chip", "exp"), [("ideal", 0), ("loihi2", 0), ("loihi2", 2)])
def test_no_threshold_of_the_window_agrees_more_often(chip, exp):
    rng = np.random.default_rng(7)
    dense = Dense(rng.integers(-20, 60, (9, 15)).astype(np.int8))
    vth = np.array([0, 1, 3, 60, 70, 80, 90, 20_000, 110], np.int32) << exp
    network = chain(lif("lif", dense, (15,), vth=vth, exp=exp), chip=chip)
    inputs = (rng.random((70, 4, 15)) < 0.3).astype(np.uint8)
    facts = chips.load(chip)
    moved = np.append([-2, -3], rng.integers(-3, 4, 7)).astype(np.int32)
    fired = fires(network, vth + (moved << exp), inputs)
    got = calibration.thresholds(network, facts, recorded(inputs, fired))
    assert got.dtype == np.int32
    low, high = facts.threshold_range
    for i in range(9):
        costs = {}
        window = np.arange(-calibration.WINDOW, calibration.WINDOW + 1)
        for by in {k * 2**e for k in window.tolist() for e in range(exp + 1)}:
            tried = min(max(int(vth[i]) + by, low), high)
            spikes = fires(network, np.full(9, tried), inputs)
            wrong = int((spikes[..., i] != fired[..., i]).sum())
            costs[tried] = wrong, abs(tried - vth[i]), tried
        assert got[i] == min(costs, key=costs.get)
    assert got[7] == 20_000 << exp  # never fires, wherever it stands: it stays


# The whole


def forced(graph, network, inputs):
    """Forced mismatch of every population with weights."""
    expected = float_exec.run(graph, inputs)
    did = forced_runs.run(network, inputs, expected).layers
    return np.array([np.mean(did[p.name].spikes != expected[p.name]) for p in network.weighted])


@pytest.mark.parametrize("bits", [8, 4])
def test_the_shipped_model_on_other_images(bits):
    graph = stl_deploy.from_torch(stl_deploy.load(ZOO))
    with np.load(ZOO_RASTER) as file:
        spikes = file["spikes"]
    plain = stl_deploy.quantize(graph, chip="loihi2", weight_bits=bits)
    fitted = stl_deploy.quantize(graph, "loihi2", spikes[:200], weight_bits=bits)
    before, after = (forced(graph, network, spikes[200:300]) for network in (plain, fitted))
    assert after.mean() < 0.75 * before.mean()
    assert (after < before).all()
    for p, q in zip(plain.weighted, fitted.weighted, strict=True):
        a, b = p.neurons, q.neurons
        np.testing.assert_array_equal(a.scale, b.scale)  # loihi2 binds nowhere here
        assert np.abs(a.vth - b.vth).max() <= calibration.WINDOW
        assert b.bias_mant.any() == a.bias_mant.any()  # none gets a bias that had none
    for connection in fitted.connections:
        assert np.abs(connection.synapses.weight.astype(int)).max() <= 2 ** (bits - 1) - 1


def test_what_is_proven_stays_proven():
    """A unit that binds grows with the fitted weights; thresholds rise no further than v can go."""
    rng = np.random.default_rng(8)
    graph = linear(rng, 3000)
    calib = mixed(rng, 60, 3000)
    facts = chips.load("loihi1")
    plain = stl_deploy.quantize(graph, "loihi1", overflow="proven", thresholds="native")
    fitted = stl_deploy.quantize(graph, "loihi1", calib, overflow="proven", thresholds="native")
    assert plain.precision["lif"].worst_sum > 0.99 * facts.accumulator_limit  # it binds
    (population,), how = fitted.populations, fitted.precision["lif"]
    low, high = bounds.one_sided_sums(fitted, population)
    assert how.mode == "proven"
    assert not population.neurons.bias_mant.any()  # it has none, and gets none
    assert how.worst_sum == max(-low.min(), high.max()) < facts.accumulator_limit
    down, up = bounds.voltage_range(fitted, population, 4)
    assert max(-down.min(), up.max()) < facts.state_limit
    before, after = plain.populations[0].neurons.scale, population.neurons.scale
    assert (before <= after).all()
    assert (after <= 1.02 * before).all()


def test_thresholds_stay_where_the_voltage_could_overflow(monkeypatch):
    """A correction that lifts v's bound over 24 bits is not made; another one is."""

    def as_it_is(network, *_):
        return network.populations[0].neurons.vth

    def raised(network, *_):
        return as_it_is(network) + np.where(np.arange(12) == 3, 130_000, 1).astype(np.int32)

    rng = np.random.default_rng(9)
    graph, calib = linear(rng, 3000), mixed(rng, 20, 3000)
    graph.nodes["fc"].weight[:] = np.abs(graph.nodes["fc"].weight)
    monkeypatch.setattr(calibration, "thresholds", as_it_is)
    (before,) = stl_deploy.quantize(graph, "loihi2", calib, overflow="proven").populations
    monkeypatch.setattr(calibration, "thresholds", raised)
    (after,) = stl_deploy.quantize(graph, "loihi2", calib, overflow="proven").populations
    assert (after.neurons.vth - before.neurons.vth).tolist() == [1, 1, 1, 0, *[1] * 8]


def test_recurrent_weights_are_fitted_too():
    rng = np.random.default_rng(10)
    graph = linear(rng, 40, recurrent=rng.normal(size=(12, 12)))
    plain = stl_deploy.quantize(graph, "loihi2", weight_bits=4)
    fitted = stl_deploy.quantize(graph, "loihi2", mixed(rng, 600, 40), weight_bits=4)
    other = mixed(np.random.default_rng(11), 600, 40)
    expected = float_exec.run(graph, other)["lif"]
    wrong = [
        np.mean(stl_deploy.simulate(network, other).layers["lif"].spikes != expected)
        for network in (plain, fitted)
    ]
    assert wrong[1] < 0.8 * wrong[0]
    (_, before), (_, after) = plain.connections, fitted.connections
    assert after.source == "lif"
    assert np.abs(after.synapses.weight).max() <= 7
    assert (after.synapses.weight != before.synapses.weight).any()


def test_it_is_an_ordinary_network_made_the_same_way_twice(tmp_path):
    net = random_net()
    spikes = random_spikes(net, 40)
    graph = stl_deploy.from_torch(net)
    one, two = (stl_deploy.quantize(graph, "loihi2", spikes) for _ in range(2))
    files = [tmp_path / "one.nir", tmp_path / "two.nir"]
    for network, path in zip((one, two), files, strict=True):
        nir_io.write(nir_file.to_nir(network), path)
    read = nir_file.read_network(files[0])
    assert read.diagnostics == one.diagnostics
    assert read.precision == one.precision
    assert "fitted to 40 unlabelled inputs" in " ".join(note.what for note in read.diagnostics)
    assert same_integers(one, read)
    assert same_integers(one, two)


def test_parity_certifies_it_and_finds_no_fault():
    """Fitted weights are no faults, a wrong decay still is; certificates are sound (else an error)."""
    net = random_net()
    graph, spikes = stl_deploy.from_torch(net), random_spikes(net, 60)
    network = stl_deploy.quantize(graph, "loihi2", spikes[:40], weight_bits=4)
    assert Audit(graph, network).faults == ()
    report = compare(net, graph, network, Raster(spikes))
    assert all(layer.certified > 0.3 for layer in report.layers)
    assert report.first_divergence is not None
    assert "This population was fitted to calibration data" in report.first_divergence.text
    first = network.populations[0]
    wrong = network.changed(replace(first, neurons=replace(first.neurons, dv=2000)))
    assert [fault.kind for fault in Audit(graph, wrong).faults] == ["decay"]


def test_no_more_samples_than_said_are_looked_at(monkeypatch):
    monkeypatch.setattr(calibration, "SAMPLES", 50)
    rng = np.random.default_rng(12)
    graph, calib = linear(rng, 20), mixed(rng, 90, 20)
    whole, first = (stl_deploy.quantize(graph, "ideal", part) for part in (calib, calib[:50]))
    assert whole.diagnostics == first.diagnostics
    assert same_integers(whole, first)


def test_folded_layers_are_not_fitted_and_say_so():
    rng = np.random.default_rng(13)
    graph, calib = linear(rng, 20), mixed(rng, 30, 20)
    plain, told = (
        stl_deploy.quantize(graph, "loihi2", c, thresholds="fold") for c in (None, calib)
    )
    assert same_integers(plain, told)
    assert any("rounded to nearest" in note.what for note in told.diagnostics)


def test_thresholds_outside_the_register_are_still_refused():
    """The correction does not hide them: plain quantization names them first."""
    rng = np.random.default_rng(14)
    graph = linear(rng, 20)
    graph.nodes["lif"].v_threshold[5] = -1.0
    calib = mixed(rng, 10, 20)
    with pytest.raises(stl_deploy.errors.LoweringError, match=r"5: theta -1"):
        stl_deploy.quantize(graph, "loihi2", calib)
    network = stl_deploy.quantize(graph, "loihi2", calib, clamp_thresholds=True)
    assert network.populations[0].neurons.vth.min() >= 0


def test_calibration_without_samples_is_refused():
    with pytest.raises(InputError, match="calib: is empty"):
        stl_deploy.quantize(
            linear(np.random.default_rng(15), 20), calib=np.zeros((0, 4, 20), np.uint8)
        )
