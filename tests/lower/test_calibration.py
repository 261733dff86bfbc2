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
from stl_deploy.ir import chain as chain_view
from stl_deploy.ir import execute as float_exec
from stl_deploy.ir.conv import convolve
from stl_deploy.ir.chain import LifLayer
from stl_deploy.ir.synapses import Conv, Dense
from stl_deploy.lower import calibration
from stl_deploy.verify.against_float import compare
from stl_deploy.verify.audit import Audit
from tests.build.floats import linear
from tests.build.nets import ZOO, ZOO_RASTER, random_net, random_spikes
from tests.build.networks import lif


def mixed(rng, n, inputs, timesteps=4):
    """Correlated binary inputs [n, T, inputs]: five causes, each driving the same many inputs."""
    drives = np.random.default_rng(0).random((5, inputs)) < 0.3
    rates = rng.random((n, 1, 5)) @ drives / 3
    return (rng.random((n, timesteps, inputs)) < rates).astype(np.uint8)


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
    layer = lif("lif", conv, (6, 7, 8), vth=rng.integers(20, 200, out.shape[1:]))
    chosen = rng.permutation(5 * out[0, 0].size)[:50]
    columns = calibration._columns(layer, x, chosen)
    rows = weight.reshape(groups, 4 // groups, -1).astype(np.float32)
    got = np.matmul(columns, rows.transpose(0, 2, 1)).transpose(1, 0, 2).reshape(len(chosen), 4)
    want = np.moveaxis(out, 1, 3).reshape(-1, 4)[chosen]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("du", "dv", "hears"), [(4095, 2048, False), (1023, 512, True)])
def test_moments_are_those_of_what_v_adds_up(du, dv, hears):
    """Sample by sample and step by step, with the current, the layer's own spikes and the bias."""
    rng = np.random.default_rng(2)
    inputs = (rng.random((40, 5, 7)) < 0.4).astype(np.uint8)
    fired = (rng.random((40, 5, 3)) < 0.3).astype(np.uint8)
    own = Dense(np.zeros((3, 3), np.int8)) if hears else None
    dense = Dense(np.zeros((3, 7), np.int8))
    layer = lif("lif", dense, (7,), vth=rng.integers(20, 200, (3,)), du=du, dv=dv, recurrent=own)
    packed = {"lif": np.packbits(fired, axis=-1)}
    recording = calibration.Recording(inputs, packed, {"lif": (3,)})
    got = calibration.moments(layer, "", recording)
    seen = []
    for sample, spikes in zip(inputs, fired, strict=True):
        current, v, one = 0, 0, 0
        for t in range(5):
            before = spikes[t - 1] if t else np.zeros(3)
            x = np.concatenate([sample[t], before]) if hears else sample[t]
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
    layer = lif("lif", conv, (1, 9, 9), vth=rng.integers(20, 200, (2, 9, 9)))
    inputs = (rng.random((60, 4, 1, 9, 9)) < 0.5).astype(np.uint8)
    recording = calibration.Recording(inputs, {}, {})
    whole = calibration.moments(layer, "", recording)
    monkeypatch.setattr(calibration, "ROWS", 4000)
    drawn = calibration.moments(layer, "", recording)
    np.testing.assert_array_equal(drawn, calibration.moments(layer, "", recording))
    assert (drawn != whole).any()
    np.testing.assert_allclose(drawn, whole, rtol=0.15)


def test_a_layer_that_hears_itself_over_many_steps(monkeypatch):
    """More steps than are looked at: inputs and own spikes are drawn together."""
    rng = np.random.default_rng(16)
    inputs = (rng.random((50, 6, 4)) < 0.4).astype(np.uint8)
    recording = calibration.Recording(inputs, {"lif": np.packbits(inputs, axis=-1)}, {"lif": (4,)})
    own = Dense(np.zeros((4, 4), np.int8))
    layer = lif(
        "lif",
        Dense(np.zeros((4, 4), np.int8)),
        (4,),
        vth=rng.integers(20, 200, (4,)),
        recurrent=own,
    )
    whole = calibration.moments(layer, "", recording)
    monkeypatch.setattr(calibration, "ROWS", 200)
    np.testing.assert_allclose(
        calibration.moments(layer, "", recording), whole, rtol=0.4, atol=0.05
    )


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
    layer = lif("lif", dense, (15,), vth=rng.integers(20, 200, (9,)), exp=exp)
    layer = replace(layer, vth=np.array([0, 1, 3, 60, 70, 80, 90, 20_000, 110], np.int32) << exp)
    inputs = (rng.random((70, 4, 15)) < 0.3).astype(np.uint8)
    facts = chips.load(chip)
    moved = np.append([-2, -3], rng.integers(-3, 4, 7)).astype(np.int32)
    wanted = replace(layer, vth=layer.vth + (moved << exp))
    fired = reference.run_lif(wanted, inputs, facts).spikes
    recording = calibration.Recording(inputs, {"lif": np.packbits(fired, axis=-1)}, {"lif": (9,)})
    got = calibration.thresholds(layer, facts, 1, "", recording)
    assert got.dtype == np.int32
    low, high = facts.threshold_range
    for i in range(9):
        costs = {}
        window = np.arange(-calibration.WINDOW, calibration.WINDOW + 1)
        for by in {k * 2**e for k in window.tolist() for e in range(exp + 1)}:
            vth = min(max(int(layer.vth[i]) + by, low), high)
            run = reference.run_lif(replace(layer, vth=np.full(9, vth, np.int32)), inputs, facts)
            wrong = int((run.spikes[..., i] != fired[..., i]).sum())
            costs[vth] = wrong, abs(vth - layer.vth[i]), vth
        assert got[i] == min(costs, key=costs.get)
    assert got[7] == 20_000 << exp  # never fires, wherever it stands: it stays


# The whole


def forced(graph, network, inputs):
    """Forced mismatch of every LIF layer."""
    expected, before, out = float_exec.run(graph, inputs), inputs, []
    for layer in network.layers:
        if isinstance(layer, LifLayer):
            spikes = reference.run_layer(network, layer, before).spikes
            out.append(np.mean(spikes != expected[layer.name]))
        before = expected[layer.name]
    return np.array(out)


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
    for a, b in zip(plain.lif_layers, fitted.lif_layers, strict=True):
        np.testing.assert_array_equal(a.scale, b.scale)  # loihi2 binds nowhere here
        assert np.abs(a.vth - b.vth).max() <= calibration.WINDOW
        assert np.abs(b.synapses.weight.astype(int)).max() <= 2 ** (bits - 1) - 1
        assert b.bias_mant.any() == a.bias_mant.any()  # no layer gets a bias that had none


def test_what_is_proven_stays_proven():
    """A unit that binds grows with the fitted weights; thresholds rise no further than v can go."""
    rng = np.random.default_rng(8)
    graph = linear(rng, 3000)
    calib = mixed(rng, 60, 3000)
    facts = chips.load("loihi1")
    plain = stl_deploy.quantize(graph, "loihi1", overflow="proven", thresholds="native")
    fitted = stl_deploy.quantize(graph, "loihi1", calib, overflow="proven", thresholds="native")
    assert plain.precision["lif"].worst_sum > 0.99 * facts.accumulator_limit  # it binds
    (layer,), how = fitted.lif_layers, fitted.precision["lif"]
    low, high = bounds.layer_one_sided_sums(layer, 1)
    assert how.mode == "proven"
    assert not layer.bias_mant.any()  # the layer has none, and gets none
    assert how.worst_sum == max(-low.min(), high.max()) < facts.accumulator_limit
    down, up = bounds.layer_voltage_range(layer, 1, 4)
    assert max(-down.min(), up.max()) < facts.state_limit
    assert (layer.scale >= plain.lif_layers[0].scale).all()
    assert (layer.scale <= 1.02 * plain.lif_layers[0].scale).all()


def test_thresholds_stay_where_the_voltage_could_overflow(monkeypatch):
    """A correction that lifts v's bound over 24 bits is not made; another one in the layer is."""

    def raised(layer, *_):
        return layer.vth + np.where(np.arange(12) == 3, 130_000, 1).astype(np.int32)

    rng = np.random.default_rng(9)
    graph, calib = linear(rng, 3000), mixed(rng, 20, 3000)
    graph.nodes["fc"].weight[:] = np.abs(graph.nodes["fc"].weight)
    monkeypatch.setattr(calibration, "thresholds", lambda layer, *_: layer.vth)
    (before,) = stl_deploy.quantize(graph, "loihi2", calib, overflow="proven").lif_layers
    monkeypatch.setattr(calibration, "thresholds", raised)
    (after,) = stl_deploy.quantize(graph, "loihi2", calib, overflow="proven").lif_layers
    assert (after.vth - before.vth).tolist() == [1, 1, 1, 0, *[1] * 8]


def test_a_layer_that_hears_itself():
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
    before, after = plain.lif_layers[0].recurrent, fitted.lif_layers[0].recurrent
    assert np.abs(after.weight).max() <= 7
    assert (after.weight != before.weight).any()


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
    for a, b in zip(one.lif_layers, read.lif_layers, strict=True):
        np.testing.assert_array_equal(a.synapses.weight, b.synapses.weight)
        np.testing.assert_array_equal(a.vth, b.vth)
    for a, b in zip(one.lif_layers, two.lif_layers, strict=True):
        np.testing.assert_array_equal(a.synapses.weight, b.synapses.weight)
        np.testing.assert_array_equal(a.vth, b.vth)
        np.testing.assert_array_equal(a.bias_mant, b.bias_mant)


def test_parity_certifies_it_and_finds_no_fault():
    """Fitted weights are no faults, a wrong decay still is; certificates are sound (else an error)."""
    net = random_net()
    graph, spikes = stl_deploy.from_torch(net), random_spikes(net, 60)
    network = stl_deploy.quantize(graph, "loihi2", spikes[:40], weight_bits=4)
    assert Audit(graph, network).faults == ()
    report = compare(net, graph, network, Raster(spikes))
    assert all(layer.certified > 0.3 for layer in report.layers)
    assert report.first_divergence is not None
    assert "This layer was fitted to calibration data" in report.first_divergence.text
    first = network.lif_layers[0]
    wrong = chain_view.with_layers(network, (replace(first, dv=2000), *network.layers[1:]))
    assert [fault.kind for fault in Audit(graph, wrong).faults] == ["decay"]


def test_no_more_samples_than_said_are_looked_at(monkeypatch):
    monkeypatch.setattr(calibration, "SAMPLES", 50)
    rng = np.random.default_rng(12)
    graph, calib = linear(rng, 20), mixed(rng, 90, 20)
    whole, first = (stl_deploy.quantize(graph, "ideal", part) for part in (calib, calib[:50]))
    assert whole.diagnostics == first.diagnostics
    (a,), (b,) = whole.lif_layers, first.lif_layers
    np.testing.assert_array_equal(a.synapses.weight, b.synapses.weight)
    np.testing.assert_array_equal(a.vth, b.vth)


def test_folded_layers_are_not_fitted_and_say_so():
    rng = np.random.default_rng(13)
    graph, calib = linear(rng, 20), mixed(rng, 30, 20)
    plain, told = (
        stl_deploy.quantize(graph, "loihi2", c, thresholds="fold") for c in (None, calib)
    )
    (a,), (b,) = plain.lif_layers, told.lif_layers
    np.testing.assert_array_equal(a.synapses.weight, b.synapses.weight)
    assert any("rounded to nearest" in note.what for note in told.diagnostics)


def test_thresholds_outside_the_register_are_still_refused():
    """The correction does not hide them: plain quantization names them first."""
    rng = np.random.default_rng(14)
    graph = linear(rng, 20)
    graph.nodes["lif"].v_threshold[5] = -1.0
    calib = mixed(rng, 10, 20)
    with pytest.raises(stl_deploy.errors.LoweringError, match=r"5: theta -1"):
        stl_deploy.quantize(graph, "loihi2", calib)
    (layer,) = stl_deploy.quantize(graph, "loihi2", calib, clamp_thresholds=True).lif_layers
    assert layer.vth.min() >= 0


def test_calibration_without_samples_is_refused():
    with pytest.raises(InputError, match="calib: holds no samples"):
        stl_deploy.quantize(
            linear(np.random.default_rng(15), 20), calib=np.zeros((0, 4, 20), np.uint8)
        )
