"""How thresholds come to the chip: fold and profiles, against brute force and the float model."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import combinations

import h5py
import nir
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import stl_deploy
from stl_deploy.chips import bounds, placement
from stl_deploy.chips import facts as chips
from stl_deploy.errors import InputError, LoweringError
from stl_deploy.formats import integer_nir as nir_file
from stl_deploy.formats import nir_io
from stl_deploy.hw_sim import reference
from stl_deploy.ir import nir_graph as G
from stl_deploy.ir import single as single_connections
from stl_deploy.ir.floats import decode
from stl_deploy.ir.network import fan_out
from stl_deploy.ir.nir_graph import KEY
from stl_deploy.ir.synapses import Sparse
from stl_deploy.lower import folding, grouped, rows
from stl_deploy.models.net import infer
from tests.build.float_graphs import residual
from tests.build.floats import dense
from tests.build.floats import graph as graph_of
from tests.build.nets import CONVOLUTIONAL, ZOO, quantized, random_net, random_spikes
from tests.build.random_networks import draw
from tests.build.wires import wires


def simple(theta, kernel):
    """A 3x3 convolution of a 3x3 image into one channel with thresholds ``theta`` [3, 3], and FC."""
    net = random_net("1C3-LIF-FC4-LIF-AvgPool1", shape=(1, 3, 3))
    with torch.no_grad():
        net.get_parameter("conv1.weight").copy_(torch.tensor(kernel)[None, None])
        net.get_parameter("lif1.thresh").copy_(torch.tensor(theta)[None])
    return net


def with_low(*neurons, seed=0):
    """A network with a few thresholds so low that folding cuts their neurons' weights off."""
    net = random_net(CONVOLUTIONAL, seed)
    with torch.no_grad():
        for name, index in neurons:
            net.get_parameter(name)[index] = 0.01
    return net


LOW = (("lif1.thresh", (0, 3, 3)), ("lif2.thresh", (5,)))


# Which lowering is taken, and what is said


@pytest.mark.parametrize(
    ("chip", "lowering", "reason"),
    [
        ("ideal", "native", "ideal holds a threshold for every neuron"),
        ("loihi2", "native", "loihi2 holds a threshold for every neuron"),
        ("loihi1", "grouped", "a core of loihi1 holds 7 distinct thresholds, and up to "),
    ],
)
def test_auto_goes_by_the_chip_and_says_why(chip, lowering, reason):
    got = quantized(chip=chip)
    assert got.lowering == lowering
    assert got.lowering_reason.startswith(reason)


def test_auto_keeps_few_thresholds_as_they_are():
    net = random_net(CONVOLUTIONAL)
    with torch.no_grad():
        for name, value in net.named_parameters():
            if name.endswith("thresh"):
                value.fill_(0.5)
        for name in ("conv1.weight", "fc1.weight"):  # one scale, so one vth
            weight = net.get_parameter(name)
            weight.copy_(torch.sign(weight) * 0.25)
        for name, value in net.named_buffers():
            if name.endswith("running_var"):
                value.fill_(0.25)
        net.get_parameter("bn1.weight").fill_(0.5)
    got = stl_deploy.quantize(stl_deploy.from_torch(net), chip="loihi1")
    assert got.lowering == "native"
    assert "distinct thresholds, and loihi1 holds 7" in got.lowering_reason
    assert got.diagnostics == ()


@pytest.mark.parametrize(("distinct", "lowering"), [(7, "native"), (8, "grouped")])
def test_auto_counts_the_thresholds_of_a_core(distinct, lowering):
    built = dense(np.ones((16, 3)), 1 + np.arange(16) % distinct)
    assert stl_deploy.quantize(built, chip="loihi1").lowering == lowering


@pytest.mark.parametrize("chip", ["ideal", "loihi2"])
def test_profiles_are_for_chips_that_need_them(chip):
    with pytest.raises(InputError, match=f"{chip} holds one for every neuron"):
        quantized(chip=chip, thresholds="grouped")


def test_the_command_prints_lowering_and_rounding(tmp_path, capfd, monkeypatch):
    from stl_deploy.commands import export

    stl_deploy.save_checkpoint(random_net(), tmp_path / "m.pt")
    out = tmp_path / "o"
    args = ["stl-export", str(tmp_path / "m.pt"), "--target", "loihi", "--chip", "loihi1"]
    monkeypatch.setattr("sys.argv", [*args, "-o", str(out)])
    with pytest.raises(SystemExit) as done:
        export.main()
    assert done.value.code == 0
    text = " ".join(capfd.readouterr().out.split())
    assert "thresholds: grouped, a core of loihi1 holds 7 distinct thresholds" in text
    assert "Thresholds rounded to what a core holds" in text
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["thresholds"]["lowering"] == "grouped"
    rows = {row["name"]: row["thresholds"] for row in manifest["layers"]}
    assert rows["lif1"]["lowering"] == "grouped"
    assert set(rows["lif1"]["rounding"]) == {"changed", "mean", "largest"}
    assert rows["pool1"]["rounding"] is None
    assert "laid onto cores by threshold" in (out / "report.html").read_text()


# Fold


def test_fold_gives_each_layer_one_threshold():
    got = quantized(chip="loihi1", thresholds="fold")
    assert got.lowering == "fold"
    for population in got.weighted:
        assert len(np.unique(population.neurons.vth)) == 1
        assert population.neurons.scale.shape == population.shape
    assert [c.synapses.kind for c in got.connections] == ["sparse", "conv", "dense"]
    assert got.placement is not None
    assert {placed.fullest["thresholds"] for placed in got.placement.layers.values()} == {1}


def test_fold_is_exact_where_nothing_is_rounded():
    """Thresholds a power of two apart and small whole weights: every unit holds them exactly."""
    theta = [[1.0, 2.0, 4.0], [2.0, 8.0, 1.0], [4.0, 1.0, 2.0]]
    kernel = [[1.0, -2.0, 3.0], [4.0, 5.0, -6.0], [7.0, -1.0, 2.0]]
    net = simple(theta, kernel)
    graph = stl_deploy.from_torch(net)
    plain = stl_deploy.quantize(graph, chip="loihi1")
    # The graph has weights times r * dt / tau, which is 1 here.
    thresholds = np.array([theta])
    floats = decode(graph)
    fold = folding.Fold(plain.alone("lif1"), rows.targets(floats)["lif1"], 1.0)
    folded = fold.network(16)
    (population,), (connection,) = folded.populations, folded.connections
    single, neurons = connection.synapses, population.neurons
    assert isinstance(single, Sparse)
    assert (neurons.vth == 15).all()
    np.testing.assert_array_equal(16 * neurons.scale, thresholds)
    weight = single.weight * neurons.scale.ravel()[single.row]
    middle = weight[single.row == 4]  # the one neuron that sees the whole image
    np.testing.assert_array_equal(middle.reshape(3, 3), kernel)
    spikes = random_spikes(net, 50)
    expected = infer(net, torch.from_numpy(spikes), torch.float64)["lif1"].numpy()
    got = plain.changed(population, connection)
    assert 0.1 < expected.mean() < 0.9
    np.testing.assert_array_equal(reference.run(got, spikes).layers["lif1"].spikes, expected)


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), bits=st.integers(7, 8), exp=st.integers(0, 2))
def test_folded_integers_are_the_kernel_in_their_neurons_units(seed, bits, exp):
    net = random_net(CONVOLUTIONAL, seed)
    graph = stl_deploy.from_torch(net)
    options = {"weight_bits": bits, "weight_exp": exp, "thresholds": "fold"}
    got = stl_deploy.quantize(graph, chip="loihi2", **options)
    population, single = got.populations[0], got.connections[0].synapses
    shape, before, qmax = population.shape, got.shape("input"), 2 ** (bits - 1) - 1
    node, lif = graph.nodes["conv1"], graph.nodes["lif1"]
    gain = 1e-4 / lif.tau.flat[0] * lif.r.flat[0]
    theta = np.nextafter(lif.v_threshold, np.inf)
    reference_theta = int(population.neurons.vth.flat[0]) + 1
    at = {}
    for row, column, value in zip(single.row, single.column, single.weight, strict=True):
        at[np.unravel_index(row, shape), np.unravel_index(column, before)] = value
    (padding,) = set(map(int, np.atleast_1d(node.padding)))
    for neuron in np.ndindex(shape):
        unit = theta[neuron] / reference_theta * 2**exp
        o, y, x = neuron
        for c, i, j in np.ndindex(node.weight.shape[1:]):
            source = (c, y + i - padding, x + j - padding)
            if not all(0 <= k < n for k, n in zip(source, before, strict=True)):
                continue
            exact = float(node.weight[o, c, i, j]) * gain / unit
            stored = int(at.pop((neuron, source), 0))
            assert abs(stored - np.clip(exact, -qmax, qmax)) <= 0.5 + 1e-9
    assert not at  # nothing else is stored


def test_single_connections_compute_what_their_convolution_does():
    """The same weights as a convolution and one by one; fan-out and sums too."""
    tried = 0
    for seed in range(8):
        made, _ = draw(seed)
        for connection in made.connections:
            if connection.synapses.kind == "conv":
                plain = replace(connection, exp=2)
                single = replace(plain, synapses=unrolled(made, connection))
                shape = made.shape(connection.source)
                inputs = np.random.default_rng(seed).integers(0, 3, (5, *shape))
                np.testing.assert_array_equal(single.sums(inputs, 2), plain.sums(inputs, 2))
                np.testing.assert_array_equal(fan_out(made, single), fan_out(made, plain))
                tried += 1
    assert tried > 8


def unrolled(network, connection):
    """A convolution as single connections, by the tests' own enumeration."""
    conv, per_group = connection.synapses, connection.synapses.weight.shape[1]
    before, shape = network.shape(connection.source), network.shape(connection.target)
    matrix = np.zeros((math.prod(shape), math.prod(before)), np.int8)
    for source, target in wires(network, connection):
        (c, y, x), (o, i, j) = source, target
        p = (y + conv.padding[0] - i * conv.stride[0]) // conv.dilation[0]
        q = (x + conv.padding[1] - j * conv.stride[1]) // conv.dilation[1]
        row, column = np.ravel_multi_index(target, shape), np.ravel_multi_index(source, before)
        matrix[row, column] = conv.weight[o, c % per_group, p, q]
    row, column = np.nonzero(matrix)
    at = row.astype(np.int32), column.astype(np.int32)
    return Sparse(*at, matrix[row, column], matrix.shape, None)


def test_equal_thresholds_in_a_channel_leave_the_convolution_one():
    net = random_net(CONVOLUTIONAL)
    with torch.no_grad():
        thresh = net.get_parameter("lif1.thresh")
        thresh.copy_(torch.tensor([0.3, 0.5, 0.7, 0.9])[:, None, None].expand(thresh.shape))
    got = stl_deploy.quantize(stl_deploy.from_torch(net), chip="loihi2", thresholds="fold")
    neurons = got.populations[0].neurons
    assert got.connections[0].synapses.kind == "conv"
    assert neurons.scale.shape == (4, 1, 1)
    theta = (neurons.vth[:, 0, 0] + 1) * neurons.scale.ravel()
    np.testing.assert_allclose(theta, [0.3, 0.5, 0.7, 0.9], rtol=1e-6)


def test_the_common_threshold_is_the_one_with_the_least_weight_error():
    """Of all whole numbers in its range, none that was tried errs less, by a loop over neurons."""
    graph = stl_deploy.from_torch(with_low(*LOW, seed=3))
    got = stl_deploy.quantize(graph, chip="ideal", thresholds="fold").by_name["lif2"].neurons
    node, lif = graph.nodes["fc1"], graph.nodes["lif2"]
    gain = 1e-4 / lif.tau.flat[0] * lif.r.flat[0]
    theta = np.nextafter(lif.v_threshold, np.inf)

    def error(common):
        total = 0.0
        for row, one in zip(node.weight.astype(np.float64) * gain, theta, strict=True):
            unit = one / common
            kept = np.clip(np.rint(row / unit), -127, 127) * unit
            total += min(np.linalg.norm(kept - row) / one, 1)
        return total

    chosen = int(got.vth.flat[0]) + 1
    ratio = theta / (np.abs(node.weight * gain).max(axis=1) / 127)
    tried = {math.floor(ratio.min() * 2 ** (i / 4)) for i in range(40)}
    tried = {n for n in tried if ratio.min() - 1 <= n <= np.median(ratio)}
    assert chosen in tried
    assert min(tried) < chosen < max(tried)
    assert error(chosen) == pytest.approx(min(map(error, tried)))


def test_thresholds_at_or_below_zero_cannot_be_folded():
    net = random_net(CONVOLUTIONAL)
    with torch.no_grad():
        net.get_parameter("lif1.thresh")[1, 2, 3] = 0.0
        net.get_parameter("lif2.thresh")[7] = -0.5
    with pytest.raises(LoweringError) as error:
        stl_deploy.quantize(stl_deploy.from_torch(net), chip="ideal", thresholds="fold")
    first, second = error.value.problems
    assert first.where == "lif1"
    assert "1 of 256 thresholds are not above zero ((1, 2, 3): theta 0)" in first.what
    assert "(7: theta -0.5)" in second.what
    assert "native" in first.remedy


def test_a_fold_that_no_chip_holds_is_refused_before_it_is_made(monkeypatch):
    graph = stl_deploy.from_torch(random_net(CONVOLUTIONAL))
    held = chips.load("loihi2")
    cores = held.limits.cores_per_chip.model_copy(update={"value": 1})
    memory = held.limits.synapse_bytes_per_core.model_copy(update={"value": 4096})
    limits = {"cores_per_chip": cores, "synapse_bytes_per_core": memory}
    tiny = held.model_copy(update={"limits": held.limits.model_copy(update=limits)})
    monkeypatch.setattr(chips, "load", lambda name: tiny)
    monkeypatch.setattr(folding.Fold, "network", None)
    with pytest.raises(LoweringError, match="folding makes 1,936 single connections") as error:
        stl_deploy.quantize(graph, chip="loihi2", thresholds="fold")
    assert "hold 1,560 of 21 bits" in str(error.value)
    monkeypatch.undo()
    monkeypatch.setattr(folding, "MOST", 1000)
    with pytest.raises(LoweringError, match="1,000 are the most that are written"):
        stl_deploy.quantize(graph, chip="ideal", thresholds="fold")


def test_a_fold_that_leaves_too_few_bits_is_refused():
    net = random_net(CONVOLUTIONAL)
    got = stl_deploy.quantize(stl_deploy.from_torch(net), chip="loihi2", thresholds="fold")
    assert any("with fewer than 4 effective weight bits" in d.what for d in got.diagnostics)
    with torch.no_grad():
        net.get_parameter("lif1.thresh")[2, 3, 4] = 1000.0
        net.get_parameter("lif2.thresh")[3] = 1000.0
    with pytest.raises(LoweringError) as error:
        stl_deploy.quantize(stl_deploy.from_torch(net), chip="loihi2", thresholds="fold")
    assert [p.where for p in error.value.problems] == ["lif1", "lif2"]
    assert all("; at least 2 are needed" in p.what for p in error.value.problems)


def test_proven_holds_for_folded_layers():
    """Large biases and weights on loihi1, whose accumulator is the smallest."""
    net = random_net("FC60-LIF-FC20-LIF-AvgPool2", shape=(1, 40, 40))
    with torch.no_grad():
        net.get_parameter("fc1.weight").uniform_(0.1, 1.0)
    options = {"chip": "loihi1", "thresholds": "fold", "overflow": "proven"}
    got = stl_deploy.quantize(stl_deploy.from_torch(net), **options)
    for name, how in got.precision.items():
        assert how.mode == "proven", name
        assert how.worst_sum < 2**15
    full = np.ones((1, 4, 1, 40, 40), np.uint8)
    assert reference.run(got, full).layers["lif1"].overflow.sum() == 0
    plain = stl_deploy.quantize(stl_deploy.from_torch(net), chip="ideal", thresholds="fold")
    assert plain.precision["lif1"].worst_sum > 2**15  # else this shows nothing


def test_a_folded_bias_fits_its_register():
    """One neuron's bias is thousands of times its threshold, which alone would ask for fine units."""
    bias = np.zeros(8)
    bias[3] = 60.0
    built = dense(np.full((8, 4), 0.5), np.full(8, 0.9), bias)
    got = stl_deploy.quantize(built, chip="loihi2", thresholds="fold").populations[0].neurons
    assert 1000 < np.abs(got.bias_mant).max() <= 4095


def test_two_connections_cannot_be_folded():
    graph, _ = residual(0)
    with pytest.raises(LoweringError) as error:
        stl_deploy.quantize(graph, chip="loihi2", thresholds="fold")
    assert [(p.where, p.what) for p in error.value.problems] == [
        (name, "has 2 connections, which cannot be folded") for name in ("l1", "l2", "l3")
    ]
    assert error.value.problems[0].remedy == "use --thresholds native"


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"tau_syn": 2 * G.DT, "v_leak": 0.0}, "a current behind a convolution"),
        ({"tau_syn": G.DT, "v_leak": 0.1}, "a bias for each neuron behind a convolution"),
    ],
)
def test_what_single_connections_cannot_have(change, what):
    size = (2, 3, 3)
    theta = np.linspace(0.5, 1, 18).reshape(size)
    leak = change["v_leak"] * theta
    cuba = G.cuba_lif(theta, change["tau_syn"], 2 * G.DT, 2.0, 1.0, leak)
    kernel = G.conv2d(np.ones((2, 1, 3, 3)), np.zeros(2), (1, 3, 3), (1, 1), (1, 1))
    built = graph_of({"conv": kernel, "lif": cuba}, (1, 3, 3), size)
    with pytest.raises(LoweringError) as error:
        stl_deploy.quantize(built, chip="ideal", thresholds="fold")
    assert [p.what for p in error.value.problems] == [f"has {what}, which cannot be folded"]
    cuba.v_threshold[:] = 0.7
    assert stl_deploy.quantize(built, chip="ideal", thresholds="fold").lowering == "fold"


def test_a_folded_population_of_single_inputs():
    """A weight into each neuron, thresholds and gains of their own: every neuron has its unit."""
    rng = np.random.default_rng(0)
    weight, theta = rng.uniform(0.5, 2, 9), rng.uniform(0.5, 2, 9)
    step = rng.uniform(0.2, 0.8, 9)
    neurons = G.lif(theta, *G.euler(step, rng.uniform(0.5, 2, 9)))
    built = graph_of({"way": nir.Scale(weight), "lif": neurons}, 9, 9)
    got = stl_deploy.quantize(built, chip="ideal", thresholds="fold")
    (population,), (connection,) = got.populations, got.connections
    assert len(np.unique(population.neurons.vth)) == 1
    exact = weight * G.DT / neurons.tau * neurons.r
    held = connection.synapses.weight * population.neurons.scale
    assert np.abs(held - exact).max() <= 0.501 * population.neurons.scale.max()
    np.testing.assert_allclose(
        (population.neurons.vth + 1) * population.neurons.scale, theta, rtol=1e-9
    )


def test_a_folded_layer_keeps_the_headroom_of_calibration():
    rng = np.random.default_rng(0)
    built = dense(rng.uniform(0.1, 1, (6, 1000)), rng.uniform(0.5, 1, 6))
    calib = (rng.random((4, 4, 1000)) < 0.6).astype(np.uint8)
    options = {"chip": "loihi1", "thresholds": "fold", "overflow": "checked"}
    (connection,) = stl_deploy.quantize(built, calib=calib, **options).connections
    seen = np.abs(connection.sums(calib.reshape(-1, 1000), 1)).max()
    assert 2**13 < seen <= 1.01 * 2**14


def test_netx_is_left_out_and_the_export_says_so(tmp_path):
    manifest = stl_deploy.export(
        quantized(chip="loihi2", thresholds="fold"), "loihi", tmp_path / "o"
    )
    assert "loihi/network.net" not in manifest["files"]
    (note,) = (d for d in manifest["diagnostics"] if "netx" in d["where"])
    assert "lif1): a folded convolution; netx knows no single connections" in note["what"]
    assert "--thresholds native" in note["remedy"]


# The file of a fold


@pytest.fixture(params=[0, 2])
def before(request):
    graph = stl_deploy.from_torch(with_low(*LOW))
    options = {"chip": "loihi2", "thresholds": "fold", "weight_exp": request.param}
    return stl_deploy.quantize(graph, **options)


@pytest.fixture
def path(before, tmp_path):
    nir_io.write(nir_file.to_nir(before), tmp_path / "model.nir")
    return tmp_path / "model.nir"


def test_a_fold_comes_back_as_it_was(before, path):
    after = nir_file.read_network(path)
    assert any("cuts off weights" in d.what for d in before.diagnostics)
    for p, q in zip(before.weighted, after.weighted, strict=True):
        for key in ("vth", "bias_mant", "scale"):
            a, b = getattr(p.neurons, key), getattr(q.neurons, key)
            np.testing.assert_array_equal(np.broadcast_to(a, p.shape), np.broadcast_to(b, q.shape))
    for c, d in zip(before.connections, after.connections, strict=True):
        np.testing.assert_array_equal(c.synapses.weight, d.synapses.weight)
    a, b = before.connections[0].synapses, after.connections[0].synapses
    assert isinstance(a, Sparse)
    assert isinstance(b, Sparse)
    np.testing.assert_array_equal(a.row, b.row)
    np.testing.assert_array_equal(a.column, b.column)
    for key in ("lowering", "lowering_reason", "placement", "diagnostics"):
        assert getattr(before, key) == getattr(after, key)


def test_nir_alone_says_the_fold_before_rounding(path):
    """Conv2d, Scale and LIF by NIR's equations against the float model: the thresholds moved on.

    The weights are those before rounding. The bias is that of the integers, in v_leak; here it is put back to
    what was rounded.
    """
    graph, net = nir.read(path), with_low(*LOW)
    spikes = random_spikes(net, 20)
    expected = infer(net, torch.from_numpy(spikes), torch.float64)["lif1"].numpy()
    node, lif = graph.nodes["conv1"], graph.nodes["lif1"]
    x = torch.from_numpy(spikes).double().flatten(0, 1)
    assert not node.bias.any()
    scale = graph.nodes["conv1_fold"].scale
    bias = stl_deploy.from_torch(net).nodes["conv1"].bias.astype(np.float64)
    # A step adds dt / tau * v_leak, and dt / tau * r = 1 times what arrives.
    leak = bias.reshape(-1, 1, 1) * scale * lif.r
    assert np.abs(lif.v_leak / lif.r - leak / lif.r).max() <= 0.5 + 1e-9
    weight, bias = torch.from_numpy(node.weight), torch.from_numpy(bias)
    current = torch.nn.functional.conv2d(x, weight, bias, padding=tuple(map(int, node.padding)))
    current = (current.numpy() * scale).reshape(20, 4, *lif.tau.shape)
    v = np.zeros_like(current[:, 0])
    for t in range(4):
        v = v + 1e-4 / lif.tau * (lif.r * current[:, t] - v)
        # vth = theta_ref - 1 is for whole numbers; before rounding theta_ref itself is meant.
        fired = v >= (lif.v_threshold + 1) * (1 - 1e-12)
        v[fired] = 0
        np.testing.assert_array_equal(fired, expected[:, t])


def put(name, value):
    def change(file):
        data = file[name][()]
        del file[name]
        file[name] = value(data)

    return change


TRIPLETS = "node/nodes/conv1/metadata"


def swapped(data):
    data[[0, 1]] = data[[1, 0]]
    return data


def first(to):
    def change(data):
        data[0] = to(data[0])
        return data

    return change


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (put(f"{TRIPLETS}/weight", first(lambda w: w + 2)), "are not its convolution, rounded"),
        (put(f"{TRIPLETS}/weight", first(lambda w: 0)), "out of order, twice, or zero"),
        (put(f"{TRIPLETS}/weight", lambda d: d[:-1]), "differ in length"),
        (put(f"{TRIPLETS}/weight", lambda d: d.astype(float) + 0.5), "not integers"),
        (put(f"{TRIPLETS}/weight", lambda d: d[:, None]), "no array weight"),
        (put(f"{TRIPLETS}/column", swapped), "out of order, twice, or zero"),
        (put(f"{TRIPLETS}/column", first(lambda c: -1)), "outside 0..63"),
        (put(f"{TRIPLETS}/row", lambda d: d + 200), "outside 0..255"),
        (lambda file: file.__delitem__(f"{TRIPLETS}/row"), "no array row"),
        (
            lambda file: file.__delitem__(TRIPLETS),
            "conv1.weight holds values that are not integers",
        ),
        (put("node/nodes/conv1/weight", lambda d: d * 1.5), "not its convolution, rounded"),
        (put("node/nodes/conv1_fold/scale", lambda d: d * 1.5), "contradicts the scales"),
        (put("node/nodes/lif1/v_threshold", lambda d: d + 0.5), "not integers"),
    ],
)
def test_contradictions_are_refused(path, change, what):
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(InputError) as error:
        nir_file.read_network(path)
    assert what in str(error.value)


def test_a_connection_outside_the_kernel_is_refused(path):
    """The first row sees the corner of the image; move its last connection to the far end."""
    with h5py.File(path, "r+") as file:
        row, column = file[f"{TRIPLETS}/row"][()], file[f"{TRIPLETS}/column"][()]
        column[np.flatnonzero(row == 0)[-1]] = 63
        file[f"{TRIPLETS}/column"][...] = column
    with pytest.raises(InputError, match="is not one of its convolution's"):
        nir_file.read_network(path)


def test_a_file_of_too_many_connections_is_refused_unread(path, monkeypatch):
    monkeypatch.setattr(single_connections, "MOST", 1000)
    monkeypatch.setattr(single_connections.conv, "unroll", None)
    with pytest.raises(InputError, match="more than 1,000 single connections"):
        nir_file.read_network(path)


# Profiles


@settings(max_examples=200)
@given(
    vth=st.lists(st.integers(0, 60), min_size=1, max_size=12),
    count=st.integers(1, 5),
)
def test_rounding_costs_no_more_than_any_other_choice(vth, count):
    """Against every choice of ``count`` of the values, each neuron going to the nearest of them."""
    vth = np.array(vth)
    rounded = grouped.nearest(vth, count)
    assert len(np.unique(rounded)) <= count
    assert set(rounded) <= set(vth)
    for value in np.unique(vth):  # equal thresholds stay equal
        assert len(np.unique(rounded[vth == value])) == 1
    cost = (np.abs(rounded - vth) / (vth + 1)).sum()
    values = np.unique(vth)
    best = min(
        (np.abs(np.array(kept)[:, None] - vth).min(axis=0) / (vth + 1)).sum()
        for kept in combinations(values, min(count, len(values)))
    )
    assert cost == pytest.approx(best)


@settings(max_examples=10)
@given(seed=st.integers(0, 10**6))
def test_no_core_gets_more_thresholds_than_it_holds(seed):
    before = quantized(seed=seed, chip="loihi1", thresholds="native")
    after = quantized(seed=seed, chip="loihi1", thresholds="grouped")
    assert after.placement is not None
    for a, b in zip(before.weighted, after.weighted, strict=True):
        placed, was, now = after.placement.layers[b.name], a.neurons.vth, b.neurons.vth
        flat = np.moveaxis(now, 0, -1).reshape(-1) if now.ndim > 1 else now
        cores = placement.by_core(placed, b.size)
        assert np.array_equal(np.sort(np.concatenate(cores)), np.arange(b.size))
        assert max(len(np.unique(flat[core])) for core in cores) <= 7
        change = np.abs(now.astype(int) - was) / (was + 1)
        told = after.rounding[b.name]
        assert told.changed == (now != was).mean()
        assert (told.mean, told.largest) == pytest.approx((change.mean(), change.max()))
    for a, b in zip(before.connections, after.connections, strict=True):
        np.testing.assert_array_equal(a.synapses.weight, b.synapses.weight)


def test_profiles_round_less_than_neurons_in_order_and_take_no_more_chips():
    graph = stl_deploy.from_torch(stl_deploy.load(ZOO))
    plain = stl_deploy.quantize(graph, chip="loihi1", thresholds="native")
    packed = stl_deploy.quantize(graph, chip="loihi1")
    assert deterministic(packed, graph)
    in_order = grouped._rounded(plain, plain.placement, chips.load("loihi1"))
    for name, told in packed.rounding.items():
        assert told.mean < 0.6 * in_order.rounding[name].mean
    assert packed.placement.chips == plain.placement.chips == 1
    assert packed.placement.cores <= 128


def deterministic(packed, graph):
    again = stl_deploy.quantize(graph, chip="loihi1")
    return all(
        np.array_equal(a.neurons.vth, b.neurons.vth)
        for a, b in zip(packed.weighted, again.weighted, strict=True)
    ) and (packed.placement, packed.rounding) == (again.placement, again.rounding)


@settings(max_examples=60)
@given(
    table=st.lists(
        st.lists(st.tuples(st.integers(1, 9), st.integers(0, 20)), min_size=1, max_size=4),
        min_size=1,
        max_size=3,
    ),
    budget=st.integers(1, 24),
)
def test_spreads_are_chosen_as_a_search_of_all_would(table, budget):
    names = [f"lif{i}" for i in range(len(table))]
    options = [
        grouped._Option(name, 2**k, cores, change / 7)
        for name, row in zip(names, table, strict=True)
        for k, (cores, change) in enumerate(row)
    ]
    chosen = grouped._choose(options, names, budget)
    assert list(chosen) == names

    def total(pick):
        rows = [table[i][k] for i, k in enumerate(pick)]
        return sum(change / 7 for _, change in rows), sum(cores for cores, _ in rows)

    fits = [pick for pick in np.ndindex(*(len(row) for row in table)) if total(pick)[1] <= budget]
    if not fits:
        assert set(chosen.values()) == {1}
        return
    mine = tuple(int(math.log2(chosen[name])) for name in names)
    assert mine in fits
    assert total(mine)[0] == pytest.approx(min(total(pick)[0] for pick in fits))


@pytest.mark.parametrize("cores", range(20, 70, 4))
def test_profiles_keep_to_the_chips_that_are_there(cores):
    """Also where the cores of a layer depend on the next one's spread, so that the first try fails."""
    text = "4C3-BN-LIF-P4-FC40-LIF-FC60-LIF-AvgPool6"
    before = quantized(text, chip="loihi1", thresholds="native")
    chip = chips.load("loihi1")
    facts = chip.limits.model_copy(
        update={
            "cores_per_chip": chip.limits.cores_per_chip.model_copy(update={"value": cores}),
            "out_axons_per_core": chip.limits.out_axons_per_core.model_copy(update={"value": 30}),
        }
    )
    small = chip.model_copy(update={"limits": facts})
    before = replace(before, placement=placement.place(before, small))
    after = grouped.pack(before, small)
    assert after.placement.chips == before.placement.chips
    assert after.placement.cores <= cores * before.placement.chips
    assert after.lowering == "grouped"


def test_a_core_with_too_many_thresholds_is_refused(tmp_path):
    file = tmp_path / "m.nir"
    nir_io.write(nir_file.to_nir(quantized(chip="loihi1", thresholds="grouped")), file)
    with h5py.File(file, "r+") as opened:
        vth = opened["node/nodes/lif1/v_threshold"]
        vth[...] = np.arange(vth.size).reshape(vth.shape)
    with pytest.raises(InputError, match="distinct thresholds and loihi1 holds 7"):
        nir_file.read_network(file)


@pytest.mark.parametrize(
    ("layer", "order", "what"),
    [
        (0, [0] * 256, "lif1: its order does not name each neuron once"),
        (0, list(range(255)), "lif1: its order does not name each neuron once"),
        (0, list(range(256))[::-1], "distinct thresholds and loihi1 holds 7"),
        (1, [0], "pool1: its order does not name each neuron once"),
    ],
)
def test_a_wrong_order_is_refused(tmp_path, layer, order, what):
    file = tmp_path / "m.nir"
    nir_io.write(nir_file.to_nir(quantized(chip="loihi1", thresholds="grouped")), file)
    with h5py.File(file, "r+") as opened:
        meta = json.loads(opened[f"node/metadata/{KEY}"][()])
        meta["placement"]["layers"][layer]["order"] = order
        del opened[f"node/metadata/{KEY}"]
        opened[f"node/metadata/{KEY}"] = json.dumps(meta)
    with pytest.raises(InputError) as error:
        nir_file.read_network(file)
    assert what in str(error.value)


def test_rounding_up_cannot_break_the_proof():
    """A neuron with a low threshold takes a high one of its layer, and its voltage does not decay."""
    theta = np.array([0.5, 1000.0] * 8)
    built = dense(np.ones((16, 250)), theta, tau=4095 / 4096, timesteps=6)
    options = {"chip": "loihi1", "overflow": "proven"}
    worst = {}
    for how in ("native", "auto"):
        network = stl_deploy.quantize(built, thresholds=how, **options)
        (population,) = network.populations
        vth = population.neurons.vth
        neurons = replace(population.neurons, vth=np.full_like(vth, vth.max()))
        moved = replace(population, neurons=neurons)
        worst[how] = bounds.voltage_range(network.changed(moved), moved, 6)[1].max()
    assert worst["auto"] < 2**23 <= worst["native"]
