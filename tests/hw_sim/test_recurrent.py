"""Currents, recurrent weights and the reset by subtraction, from a float graph to a chip's files.

The float executor against loops over single neurons; the integers that come out against the graph that
went in; and everything behind them on one network.
"""

from __future__ import annotations

import json
import sys

import nir
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import stl_deploy
from stl_deploy.chips import bounds
from stl_deploy.chips import facts as chips
from stl_deploy.commands import hw_sim as cli
from stl_deploy.errors import LoweringError
from stl_deploy.formats import integer_nir as nir_file
from stl_deploy.formats import nir_io
from stl_deploy.formats.raster import Raster, save
from stl_deploy.hw_sim import proofs, reference
from stl_deploy.ir import execute as float_exec
from stl_deploy.ir import nir_graph as G
from stl_deploy.ir.synapses import Dense
from stl_deploy.lower.graph import lower
from tests.build.floats import cuba, random_graph
from tests.build.floats import graph as graph_of
from tests.build.networks import chain, lif

SEEDS = st.integers(0, 2**32 - 1)
DT = 1e-4


def meta(network):
    """The JSON of a float graph for the same input and readout."""
    return G.FloatMeta(
        timesteps=network.timesteps,
        input_levels=network.levels("input"),
        classes=network.readout.classes,
        population=network.readout.population,
    ).model_dump_json()


def as_float(network):
    """The graph of model.nir as a float graph: its integers are its weights and thresholds."""
    graph = nir_file.to_nir(network)
    graph.metadata = {G.KEY: meta(network)}
    for population in network.populations:
        if population.neurons.reset == "subtract":
            graph.nodes[population.name].metadata["reset"] = "subtract"
    return graph


def ways(network, name):
    """The connection into a population from outside, and its recurrent one or None."""
    own = [c for c in network.into(name) if c.source == name]
    (feed,) = (c for c in network.into(name) if c.source != name)
    return feed, own[0] if own else None


def halving(rng, chip, steps, weight_exp):
    """Two flat layers whose every channel uses the whole grid, and nothing of which is rounded.

    Decays halve, so that the six bits below the point hold what seven steps leave.
    """
    layers = []
    for name, inputs, outputs in (("lif1", 7, 9), ("lif2", 9, 4)):
        weight = rng.integers(-127, 128, (outputs, inputs))
        weight[np.arange(outputs), rng.integers(0, inputs, outputs)] = 127
        own = Dense(rng.integers(-127, 128, (outputs, outputs)).astype(np.int8))
        vth = rng.integers(20, 400, outputs) << weight_exp
        bias = rng.integers(-60, 60, outputs) * (rng.random() < 0.5)
        du, heard = int(rng.choice([4095, 2047])), rng.random() < 0.7
        soft = chip != "loihi1" and rng.random() < 0.5
        layers.append(
            lif(
                name,
                Dense(weight.astype(np.int8)),
                vth=vth,
                bias=bias,
                exp=weight_exp,
                du=du,
                recurrent=own if heard else None,
                reset="subtract" if soft else "zero",
            )
        )
    return chain(*layers, chip=chip, steps=steps)


@settings(max_examples=80)
@given(SEEDS, st.sampled_from(["ideal", "loihi1", "loihi2"]), st.integers(1, 7), st.integers(0, 2))
def test_a_graph_of_integers_comes_back_as_these_integers(seed, chip, steps, weight_exp):
    """Weights, biases, decays, thresholds and resets; and the graph in float spikes as they do."""
    rng = np.random.default_rng(seed)
    network = halving(rng, chip, steps, weight_exp)
    graph = as_float(network)
    options = {"weight_exp": weight_exp, "overflow": "checked", "thresholds": "native"}
    quantized = stl_deploy.quantize(graph, chip=chip, **options)
    for want, got in zip(network.populations, quantized.populations, strict=True):
        assert (got.name, got.shape) == (want.name, want.shape)
        for key in ("bias", "vth", "scale", "du", "dv", "reset"):
            both = (getattr(p.neurons, key) for p in (got, want))
            np.testing.assert_array_equal(*both, key)
        for a, b in zip(*(ways(n, want.name) for n in (quantized, network)), strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                np.testing.assert_array_equal(a.synapses.weight, b.synapses.weight)
                assert (a.name, a.exp, a.delay) == (b.name, b.exp, b.delay)
    raster = (rng.random((20, steps, 7)) < 0.5).astype(np.uint8)
    trace = reference.run(quantized, raster)
    spikes = float_exec.run(graph, raster)
    for name, did in trace.layers.items():
        assert not did.overflow.any()
        np.testing.assert_array_equal(spikes[name], did.spikes)


# The float executor


@pytest.mark.parametrize("reset", ["zero", "subtract"])
@pytest.mark.parametrize("kind", ["LIF", "CubaLIF"])
def test_forward_euler_neuron_by_neuron(reset, kind):
    """Every term of NIR's equations, and the spikes of the neurons themselves one step late."""
    rng = np.random.default_rng(0)
    node = cuba(rng, 4)
    p = {key: getattr(node, key).copy() for key in ("tau_syn", "tau_mem", "r", "w_in")}
    if kind == "LIF":
        p["tau_syn"][:], p["w_in"][:] = DT, 1.0
        node = nir.LIF(
            tau=node.tau_mem,
            r=node.r,
            v_leak=node.v_leak,
            v_threshold=node.v_threshold,
            v_reset=node.v_reset,
        )
    node.metadata = {} if reset == "zero" else {"reset": reset}
    own = rng.uniform(-0.6, 0.6, (4, 4))
    graph = graph_of({"lif": node}, 4, 4, {"lif": ("rec", nir.Linear(weight=own))})
    raster = rng.integers(0, 2, (3, 200, 4)).astype(np.uint8)
    spikes = float_exec.run(graph, raster)["lif"]
    assert raster.max() == 1
    for n in range(3):
        i, v, fired = [0.0] * 4, [0.0] * 4, [0] * 4
        for t in range(200):
            heard = [sum(own[k, j] * fired[j] for j in range(4)) for k in range(4)]
            for k in range(4):
                total = raster[n, t, k] + heard[k]
                i[k] += DT / p["tau_syn"][k] * (p["w_in"][k] * total - i[k])
                v[k] += DT / p["tau_mem"][k] * (node.v_leak[k] - v[k] + p["r"][k] * i[k])
                fired[k] = int(v[k] > node.v_threshold[k])
                if fired[k]:
                    v[k] = v[k] - node.v_threshold[k] if reset == "subtract" else node.v_reset[k]
                assert spikes[n, t, k] == fired[k]
    assert 0.05 < spikes.mean() < 0.9


def test_lowering_keeps_recurrent_weights():
    rng = np.random.default_rng(0)
    neurons = G.cuba_lif(np.full(4, 0.5), 2e-4, 3e-4, 3.0, 2.0, np.zeros(4))
    nodes = {
        "scale": G.InputScale((4,), (4,), 7),
        "fc": nir.Linear(weight=rng.normal(size=(4, 4))),
        "drop": G.Dropout((4,), (4,)),
        "lif": neurons,
    }
    graph = graph_of(nodes, 4, 4, {"lif": ("rec", nir.Linear(weight=np.eye(4)))}, levels=7)
    lowered = lower(graph)
    assert set(lowered.nodes) == {"input", "fc", "lif", "rec", "output"}
    assert lowered.nodes["lif"] is neurons
    np.testing.assert_array_equal(lowered.nodes["fc"].weight, nodes["fc"].weight / 7)
    assert {("lif", "rec"), ("rec", "lif")} <= set(lowered.edges)
    assert (lowered.nodes["rec"].weight == np.eye(4)).all()


def test_calibration_sees_what_a_layer_hears_of_itself():
    """Inputs alone give 1; all three neurons fire and are heard with 5 each in the second step."""
    nodes = {"fc": nir.Linear(weight=np.ones((3, 1))), "lif": G.lif(np.full(3, 0.5), 2e-4, 2.0)}
    own = {"lif": ("rec", nir.Linear(weight=np.full((3, 3), 5.0)))}
    graph = graph_of(nodes, 1, 3, own, timesteps=2)
    seen = {}
    raster = np.array([[[1], [1]]], np.uint8)
    float_exec.run(graph, raster, lambda name, x: seen.setdefault(name, []).append(x.copy()))
    assert seen.keys() == {"lif"}
    (total,) = seen["lif"]
    assert total.tolist() == [[[1.0] * 3, [16.0] * 3]]


# Quantization


def test_recurrent_and_forward_weights_share_a_unit():
    """Whichever is larger in a channel reaches the end of the grid; neither is cut off."""
    rng = np.random.default_rng(0)
    graph = random_graph(rng)
    network = stl_deploy.quantize(graph, chip="ideal")
    neurons = network.by_name["lif1"].neurons
    feed, own = (c.synapses.weight for c in ways(network, "lif1"))
    assert (np.abs(np.hstack([feed, own]).astype(int)).max(axis=1) == 127).all()
    assert (np.abs(feed).max(axis=1) < 127).any()
    gain = 0.4 * 1.5 * 0.3 * 2.5
    expected = gain * graph.nodes["rec"].weight / neurons.scale[:, None]
    np.testing.assert_array_equal(own, np.rint(expected))
    bias = 0.3 * graph.nodes["lif1"].v_leak / neurons.scale
    np.testing.assert_array_equal(neurons.bias_mant, np.rint(bias))
    assert (neurons.du, neurons.dv) == (round(4096 * 0.4) - 1, round(4096 * 0.3))


def test_decays_that_are_rounded_are_said():
    network = stl_deploy.quantize(random_graph(np.random.default_rng(0)), chip="ideal")
    said = [d.what for d in network.diagnostics if d.where == "lif1"]
    assert said == [
        "decay 0.7 is rounded to 2867/4096 = 0.69995117",
        "decay of the current 0.6 is rounded to 2458/4096 = 0.60009766",
    ]


@pytest.mark.parametrize("chip", ["ideal", "loihi1", "loihi2"])
@pytest.mark.parametrize("reset", ["zero", "subtract"])
def test_few_spikes_differ_from_float(chip, reset):
    rng = np.random.default_rng(1)
    graph = random_graph(rng)
    if reset == "subtract":
        graph.nodes["lif1"].metadata["reset"] = reset
    raster = (rng.random((100, 6, 40)) < 0.5).astype(np.uint8)
    if (chip, reset) == ("loihi1", "subtract"):
        with pytest.raises(LoweringError) as error:
            stl_deploy.quantize(graph, chip=chip)
        assert str(error.value).startswith("lif1: reset 'subtract': a spike of Intel Loihi (first")
        assert "use --chip ideal or loihi2" in str(error.value)
        return
    # Thresholds rounded for the cores of Loihi 1 are another question.
    network = stl_deploy.quantize(graph, chip=chip, thresholds="native")
    expected = float_exec.run(graph, raster)
    trace = stl_deploy.simulate(network, raster)
    for name, spikes in expected.items():
        assert 0.1 < spikes.mean() < 0.9
        assert (spikes != trace.layers[name].spikes).mean() < 0.03, name


@settings(max_examples=30)
@given(SEEDS, st.sampled_from(["loihi1", "loihi2"]))
def test_proven_networks_never_overflow(seed, chip):
    """Weights, currents and resets that would leave a register, with the worst input all the time."""
    rng = np.random.default_rng(seed)
    neurons, inputs, steps = 40, 500 if chip == "loihi1" else 1800, 6
    sign = rng.choice([-1, 1], (neurons, 1))
    weight, own = (sign * rng.uniform(0.2, 1, (neurons, n)) for n in (inputs, neurons))
    step = rng.choice([1 / 4096, 0.1, 1.0])
    node = cuba(
        rng,
        neurons,
        tau_syn=np.full(neurons, DT / step),
        tau_mem=np.full(neurons, DT / rng.choice([1 / 4096, 0.5, 1.0])),
        r=np.ones(neurons),
        w_in=np.ones(neurons),
        # Against the inputs: the current can be the first to leave its register.
        v_leak=-sign[:, 0] * step * rng.choice([0, inputs / 40]),
        v_reset=np.zeros(neurons),
        v_threshold=step * rng.uniform(0.01, 3, neurons) / 4096,
    )
    if chip == "loihi2" and rng.random() < 0.5:
        node.metadata["reset"] = "subtract"
    nodes = {"fc": nir.Linear(weight=weight), "lif": node}
    recurrent = {"lif": ("rec", nir.Linear(weight=own))}
    graph = graph_of(nodes, inputs, neurons, recurrent, timesteps=steps)
    options = {"overflow": "proven", "weight_bits": 8, "thresholds": "native"}
    try:
        network = stl_deploy.quantize(graph, chip=chip, clamp_thresholds=True, **options)
    except LoweringError as error:  # it would keep too few bits, which is said
        assert "effective weight bits" in str(error)  # noqa: PT017
        return
    (population,) = network.populations
    assert proofs.never_overflows(network, population, steps)
    limit = chips.load(chip).state_limit
    raster = np.ones((3, steps, inputs), np.uint8)
    raster[1, ::2] = 0
    raster[2, :, ::3] = 0
    trace = reference.run(network, raster, states=True).layers["lif"]
    assert not trace.overflow.any()
    for low, high in (
        bounds.current_range(network, population, steps),
        bounds.voltage_range(network, population, steps),
    ):
        assert max(-low.min(), high.max()) < limit


def test_checked_overflow_holds_the_current_to_its_register():
    """A current that forgets nothing adds 300 sums up, each well inside the accumulator."""
    rng = np.random.default_rng(0)
    node = cuba(
        rng,
        5,
        tau_syn=np.full(5, DT * 4096),
        tau_mem=np.full(5, DT),
        r=np.ones(5),
        w_in=np.full(5, 4096.0),
        v_leak=np.zeros(5),
        v_reset=np.zeros(5),
        v_threshold=np.full(5, 400.0),
    )
    nodes = {"fc": nir.Linear(weight=rng.uniform(0.5, 1, (5, 30))), "lif": node}
    graph = graph_of(nodes, 30, 5, timesteps=300)
    raster = np.ones((2, 300, 30), np.uint8)
    network = stl_deploy.quantize(graph, chip="loihi2", overflow="checked", calib=raster)
    assert not stl_deploy.simulate(network, raster).layers["lif"].overflow.any()
    without = stl_deploy.quantize(graph, chip="loihi2", overflow="checked")
    assert stl_deploy.simulate(without, raster).layers["lif"].overflow.any()


def refused(graph, **options):
    with pytest.raises(LoweringError) as error:
        stl_deploy.quantize(graph, **{"chip": "loihi2", **options})
    return [str(problem) for problem in error.value.problems]


def changed(**fields):
    """A graph whose first neurons have other parameters."""
    graph = random_graph(np.random.default_rng(0))
    for key, value in fields.items():
        setattr(graph.nodes["lif1"], key, np.broadcast_to(value, 60).astype(float).copy())
    return graph


RAMP = np.linspace(1e-4, 9e-4, 60)


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"tau_syn": -1e-4}, "lif1: decay 1 - dt/tau_syn ranges from 2 to 2"),
        ({"tau_syn": 5e-5}, "lif1: decay 1 - dt/tau_syn ranges from -1 to -1"),
        ({"w_in": -1.0}, "lif1: w_in * dt / tau_syn * r * dt / tau_mem is not positive"),
    ],
)
def test_what_neurons_with_a_current_cannot_have(fields, what):
    line, *_ = refused(changed(**fields))
    assert line.startswith(what)


def test_all_problems_at_once():
    graph = changed(tau_syn=5e-5, w_in=-1.0)
    graph.nodes["lif2"].tau[:] = 5e-5
    assert [line.split(":")[0] for line in refused(graph)] == ["lif1"] * 2 + ["lif2"]


@pytest.mark.parametrize(
    "fields",
    [
        {"tau_syn": RAMP},
        {"tau_mem": RAMP},
        {"w_in": np.linspace(1, 3, 60)},
        {"v_leak": np.linspace(-1, 1, 60)},
    ],
)
def test_what_may_differ_between_neurons_with_a_current(fields):
    graph = changed(**fields)
    nearly_float(graph)


@pytest.mark.parametrize("name", ["fc1", "rec"])
def test_a_bias_in_front_of_a_current(name):
    """It passes through the current: a population that always fires sends it."""
    graph = changed()
    weight = graph.nodes[name].weight
    graph.nodes[name] = nir.Affine(weight=weight, bias=np.linspace(-0.5, 1, 60))
    network = nearly_float(graph)
    (way,) = network.out_of(f"{name}_bias")
    assert (way.target, way.delay) == ("lif1", 0)
    # Where nothing is kept of the current, it is a bias like any other.
    graph.nodes["lif1"].tau_syn[:] = DT
    network = stl_deploy.quantize(graph, chip="ideal")
    assert network.by_name.keys() == {"lif1", "lif2"}
    assert network.by_name["lif1"].neurons.bias.any()
    graph.nodes[name] = nir.Affine(weight=weight, bias=np.zeros(60))
    graph.nodes["lif1"].tau_syn[:] = 2e-4
    network = stl_deploy.quantize(graph, chip="ideal")
    assert network.by_name.keys() == {"lif1", "lif2"}
    assert network.by_name["lif1"].neurons.du == 2047


def nearly_float(graph):
    """The integer network of ``graph``, few of whose spikes differ from it."""
    raster = (np.random.default_rng(1).random((50, 6, 40)) < 0.5).astype(np.uint8)
    network = stl_deploy.quantize(graph, chip="ideal")
    got, want = stl_deploy.simulate(network, raster).layers, float_exec.run(graph, raster)
    for name, spikes in want.items():
        assert 0.05 < spikes.mean() < 0.95
        assert (got[name].spikes != spikes).mean() < 0.03, name
    return network


def image_graph(kernel, node):
    conv = G.conv2d(kernel, np.zeros(2), (1, 3, 3), (1, 1), (0, 0))
    nodes = {"conv": conv, "lif": node, "flat": G.flatten((2, 2, 2))}
    nodes |= {"fc": nir.Linear(weight=np.ones((3, 8))), "out": G.lif(np.ones(3), 2e-4, 2.0)}
    return graph_of(nodes, (1, 3, 3), 3, timesteps=3)


def image_neurons(leak):
    """Neurons (2, 2, 2) with a current and this v_leak."""
    rng = np.random.default_rng(0)
    threshold = rng.uniform(0.5, 1, (2, 2, 2))
    return G.cuba_lif(threshold, tau_syn=2e-4, tau_mem=2e-4, r=2.0, w_in=2.0, v_leak=leak)


def test_convolutions_have_currents_too():
    kernel = np.random.default_rng(0).normal(size=(2, 1, 2, 2))
    leak = np.array([0.5, -0.25]).reshape(2, 1, 1)
    graph = image_graph(kernel, image_neurons(leak))
    raster = (np.random.default_rng(1).random((50, 3, 1, 3, 3)) < 0.5).astype(np.uint8)
    network = stl_deploy.quantize(graph, chip="loihi2")
    neurons = network.populations[0].neurons
    assert (neurons.du, neurons.reset) == (2047, "zero")
    bias = np.rint(np.array([0.25, -0.125]) / neurons.scale.ravel())
    np.testing.assert_array_equal(neurons.bias_mant.ravel(), bias)
    got = stl_deploy.simulate(network, raster).layers["lif"].spikes
    assert (got != float_exec.run(graph, raster)["lif"]).mean() < 0.01
    assert 0.1 < got.mean() < 0.9
    back = nir_file.from_nir(nir_file.to_nir(network))
    np.testing.assert_array_equal(back.populations[0].neurons.bias, neurons.bias)


def test_what_a_convolution_can_and_cannot_have():
    kernel = np.random.default_rng(0).normal(size=(2, 1, 2, 2))
    uneven = image_graph(kernel, image_neurons(np.arange(8.0).reshape(2, 2, 2) / 8))
    assert stl_deploy.quantize(uneven, chip="loihi2").by_name["lif"].neurons.bias.shape == (2, 2, 2)
    (line,) = refused(image_graph(kernel, image_neurons(0.0)), thresholds="fold")
    assert line.startswith("lif: has a current behind a convolution, which cannot be folded")
    back = image_graph(kernel, image_neurons(0.0))
    back.nodes["rec"] = nir.Linear(weight=np.eye(8))
    back.edges += [("lif", "rec"), ("rec", "lif")]
    (line,) = refused(back)
    assert line == "rec: Linear does not fit an input of shape (2, 2, 2)"


def test_what_cannot_be_heard():
    graph = random_graph(np.random.default_rng(0))
    (line,) = refused(graph, thresholds="fold")
    assert line.startswith("lif1: has 2 connections, which cannot be folded")
    graph.nodes["rec"] = nir.Linear(weight=np.eye(59))
    assert refused(graph) == ["rec: Linear does not fit an input of shape (60,)"]
    graph = random_graph(np.random.default_rng(0))
    graph.nodes["lif2"].metadata["reset"] = "delayed"
    (line,) = refused(graph)
    assert line.startswith("lif2: reset 'delayed' in its metadata is not one of zero, subtract")


@pytest.mark.parametrize("reset", [b"subtract", "subtract", "zero", b"zero", None])
def test_how_the_reset_is_written(reset, tmp_path):
    graph = random_graph(np.random.default_rng(0))
    if reset is not None:
        graph.nodes["lif1"].metadata["reset"] = reset
    if not isinstance(reset, bytes):  # as nir reads it from a file
        nir_io.write(graph, tmp_path / "float.nir")
        graph = nir_io.read(tmp_path / "float.nir")
    neurons = stl_deploy.quantize(graph, chip="loihi2").populations[0].neurons
    assert neurons.reset == ("subtract" if "subtract" in str(reset) else "zero")


# All of it


@pytest.mark.parametrize("chip", ["loihi1", "loihi2"])
def test_from_float_to_the_files_of_a_chip(chip, tmp_path, capsys, monkeypatch):
    rng = np.random.default_rng(2)
    graph = random_graph(rng)
    if chip == "loihi2":
        graph.nodes["lif1"].metadata["reset"] = "subtract"
    network = stl_deploy.quantize(graph, chip=chip)
    out = tmp_path / "out"
    manifest = stl_deploy.export(network, "loihi", out, graph=graph)
    row = manifest["layers"][0]
    neurons = network.populations[0].neurons
    feed, own = (c.synapses.weight for c in ways(network, "lif1"))
    stored = np.count_nonzero(feed) + np.count_nonzero(own)
    assert row["synapses"] == stored
    assert (row["recurrent"], row["decays"]) == (True, {"du": neurons.du, "dv": neurons.dv})
    assert row["reset"] == ("subtract" if chip == "loihi2" else "zero")
    assert not (out / "loihi" / "network.net").exists()
    assert (out / "loihi" / "lava_params.npz").exists()
    report = (out / "report.html").read_text("utf-8")
    assert f"current, {'soft reset, ' * (chip == 'loihi2')}recurrent" in report
    raster = (rng.random((7, 6, 40)) < 0.5).astype(np.uint8)
    read = nir_file.read_network(out / "model.nir")
    want = reference.run(network, raster)
    got = stl_deploy.simulate(read, raster)
    for name, did in want.layers.items():
        np.testing.assert_array_equal(got.layers[name].spikes, did.spikes)
    floating = nir_io.read(out / "model.float.nir")
    expected = float_exec.run(graph, raster)
    for name, spikes in float_exec.run(floating, raster).items():
        np.testing.assert_array_equal(spikes, expected[name])
    save(tmp_path / "in.npz", Raster(raster), {})
    capsys.readouterr()
    arguments = ["hw_sim", str(out / "model.nir"), "--input", str(tmp_path / "in.npz"), "--json"]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert not left.value.code
    data = json.loads(capsys.readouterr().out)
    met = want.layers["lif1"].spikes.sum(axis=(0, 1)) @ (own != 0).sum(axis=0)
    met += raster.sum(axis=(0, 1), dtype=int) @ (feed != 0).sum(axis=0)
    assert data["layers"][0]["synops"] == met
