"""The first divergence: found where it is, taken apart into what it is made of, and planted faults named."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import nir
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import stl_deploy
from stl_deploy.errors import LoweringError
from stl_deploy.formats import integer_nir as nir_file
from stl_deploy.formats.checkpoint import save_checkpoint
from stl_deploy.formats.raster import Raster
from stl_deploy.formats.raster import save as save_raster
from stl_deploy.hw_sim import reference
from stl_deploy.hw_sim.engine import Engine
from stl_deploy.ir import nir_graph as G
from stl_deploy.ir.arch import Architecture
from stl_deploy.ir.floats import decode
from stl_deploy.ir.neurons import Graded
from stl_deploy.ir.synapses import Conv, Dense, Sparse
from stl_deploy.lower.quantize import quantize
from stl_deploy.models.net import STLNet, infer
from stl_deploy.verify import divergence, faults, runs
from stl_deploy.verify import fault as fault_words
from stl_deploy.verify.against_float import compare
from stl_deploy.verify.audit import Audit
from stl_deploy.verify.divergence import CertificateError
from tests.build.floats import graph as graph_of
from tests.build.forced import as_cut, is_cut
from tests.build.forced import run as forced_run
from tests.build.nets import random_net, random_spikes
from tests.build.networks import chain, dense_lif

GRID = 64  # units of the exact network's scale
INPUT = (2, 6, 6)
STEPS = 4


# A model that lies on the grid: its integer network differs nowhere, so that every difference is planted


@pytest.fixture(scope="module")
def exact():
    """(model, graph, network, raster) without any rounding."""
    arch = Architecture.parse("3C3-LIF-P3-FC12-LIF-FC10-LIF", INPUT, timesteps=STEPS)
    rng = np.random.default_rng(5)
    model = STLNet(arch).eval()
    with torch.no_grad():
        for name, value in model.state_dict().items():
            # Eighths, which three halvings bring to single units of the grid.
            if name.endswith("weight"):
                value[:] = torch.from_numpy(rng.integers(-4, 6, value.shape) / 8)
            else:
                value[:] = torch.from_numpy(rng.integers(20, 60, value.shape) / 32)
    graph = stl_deploy.from_torch(model)
    floats = decode(graph)
    network = replace(quantize(graph, "loihi2"), placement=None)
    for population in network.weighted:
        known = floats.by_name[population.name]
        (connection,) = floats.into(population.name)
        vth = (known.neurons.theta * GRID).astype(np.int32) - 1
        neurons = replace(population.neurons, vth=vth, scale=np.full((), 1 / GRID))
        network = network.changed(replace(population, neurons=neurons))
        network = reweighted(network, population.name, connection.way.weight * GRID)
    return model, graph, network, Raster(random_spikes(model, 40, 2))


def feed(network, name):
    """The only connection into a population."""
    (connection,) = network.into(name)
    return connection


def reweighted(network, name, weight):
    connection = feed(network, name)
    synapses = connection.synapses.with_weights(weight.astype(np.int8))
    return network.changed(replace(connection, synapses=synapses))


def changed(network, name, **fields):
    """The network with other neurons in a population."""
    population = network.by_name[name]
    return network.changed(replace(population, neurons=replace(population.neurons, **fields)))


def first(exact, network):
    model, graph, _, data = exact
    return compare(model, graph, network, data, batch=7).first_divergence


def test_nothing_differs_before_a_fault_is_planted(exact):
    model, graph, network, data = exact
    report = compare(model, graph, network, data)
    assert report.first_divergence is None
    for layer in report.layers:
        assert (layer.mismatch, layer.certified, layer.certified_spiking) == (0, 1, 1)


@pytest.mark.parametrize("name", ["lif1", "lif2", "lif3"])
@pytest.mark.parametrize("by", [1, -1])
def test_one_weight_off_by_one(exact, name, by):
    _, _, network, _ = exact
    held = feed(network, name).synapses.weight
    found = None
    for flat in np.random.default_rng(1).permutation(held.size):
        index = tuple(map(int, np.unravel_index(flat, held.shape)))
        weight = held.astype(np.int64)
        weight[index] += by
        found = first(exact, reweighted(network, name, weight))
        if found is not None:
            break
    assert found is not None
    # One unit can also lift the voltage into the last unit below theta, where the integers fire.
    assert found.place.layer == name
    assert found.blame in (("weight",) if by < 0 else ("weight", "threshold"))
    (fault,) = found.faults
    assert (fault.layer, fault.kind, fault.count) == (name, "weight", 1)
    where = (
        f"{index} is {held[index] + by}, not {held[index]} (one too {'high' if by > 0 else 'low'})"
    )
    assert where in fault.text
    assert f"1 of {held.size:,} weights of {feed(network, name).name}" in fault.text
    assert where in found.text
    # The only synapse with an error is the one that was planted.
    (synapse,) = found.synapses
    assert synapse.weight == index
    assert (synapse.held, synapse.exact) == (held[index] + by, held[index])
    assert found.voltages is not None
    assert found.voltages.error == pytest.approx(synapse.error)
    assert found.voltages.contributions["weight"] == pytest.approx(synapse.error)


@pytest.mark.parametrize(
    ("name", "by"), [("lif1", 1), ("lif2", 1), ("lif3", 1), ("lif1", -1), ("lif2", -1)]
)
def test_one_threshold_off_by_one(exact, name, by):
    _, _, network, _ = exact
    whole = network.by_name[name].neurons.vth
    spikes, others = (
        reference.run(changed(network, name, vth=whole + more), exact[3].spikes).layers[name].spikes
        for more in (0, by)
    )
    at = tuple(map(int, np.argwhere((spikes != others).any(axis=(0, 1)))[-1]))
    vth = whole.copy()
    vth[at] += by
    found = first(exact, changed(network, name, vth=vth))
    assert found is not None
    assert (found.place.layer, found.place.neuron, found.blame) == (name, at, "threshold")
    assert found.integer_spike == (by < 0)
    (fault,) = found.faults
    assert (fault.layer, fault.kind, fault.count) == (name, "threshold", 1)
    where = at if len(at) > 1 else at[0]
    held = whole[at]
    assert (
        f"{where} is {held + by}, not {held} (one too {'high' if by > 0 else 'low'})" in fault.text
    )
    assert fault.text in found.text
    assert f"the threshold, which {'raised' if by > 0 else 'lowered'} it by 0.0" in found.text
    assert found.voltages is not None
    assert by * (found.voltages.theta_lowered - found.voltages.theta) > 0
    assert found.voltages.error == pytest.approx(0)
    assert found.synapses == ()


@pytest.mark.parametrize(
    ("turn", "words"),
    [
        (lambda w: w.swapaxes(2, 3), "transposed (rows for columns)"),
        (lambda w: w[:, :, ::-1, ::-1], "mirrored in both directions (a true convolution)"),
        (lambda w: w[:, :, ::-1], "upside down"),
        (lambda w: w[:, :, :, ::-1], "mirrored left to right"),
        (
            lambda w: w.swapaxes(2, 3)[:, :, ::-1, ::-1],
            "transposed and mirrored in both directions",
        ),
    ],
)
def test_a_kernel_that_lies_wrong(exact, turn, words):
    _, _, network, _ = exact
    weight = feed(network, "lif1").synapses.weight
    found = first(exact, reweighted(network, "lif1", turn(weight)))
    assert found is not None
    assert found.place.layer == "lif1"
    (fault,) = found.faults
    assert (fault.layer, fault.kind) == ("lif1", "kernel")
    assert fault.text == f"the weights are those of the float model {words}"
    assert fault.text in found.text
    # One channel of it alone.
    one = weight.copy()
    one[1] = turn(weight)[1]
    (fault,) = first(exact, reweighted(network, "lif1", one)).faults
    assert (
        fault.text
        == f"the weights of 1 of its 3 output channels are those of the float model {words}"
    )


def test_inputs_flattened_in_another_order(exact):
    _, _, network, _ = exact
    connection = feed(network, "lif2")
    weight = connection.synapses.weight.reshape(12, *network.shape(connection.source))
    moved = weight.transpose(0, 2, 3, 1).reshape(12, -1)
    found = first(exact, reweighted(network, "lif2", moved))
    assert found.place.layer == "lif2"
    (fault,) = found.faults
    assert (fault.kind, "with inputs flattened as HWC, not CHW" in fault.text) == ("kernel", True)


def test_weights_that_are_all_too_large(exact):
    _, _, network, _ = exact
    weight = feed(network, "lif1").synapses.weight
    found = first(exact, reweighted(network, "lif1", weight * 2))
    (fault,) = found.faults
    assert (fault.layer, fault.kind) == ("lif1", "input scale")
    assert fault.text == "the weights are 2 times those of the float model"


def test_a_bias_and_a_decay_that_are_off(exact):
    _, _, network, _ = exact
    bias = np.full(12, -1, np.int32)
    found = first(exact, changed(network, "lif2", bias_mant=bias))
    assert (found.place.layer, found.blame) == ("lif2", "bias")
    (fault,) = found.faults
    assert (fault.kind, fault.text) == (
        "bias",
        "12 of 12 biases are not what the float model rounds to: 0 is -1, not 0 (one too low), "
        "1 is -1, not 0 (one too low), 2 is -1, not 0 (one too low), ...",
    )
    blames = set()
    for dv in (2049, 2060, 2100, 2200):
        found = first(exact, changed(network, "lif1", dv=dv))
        assert found.place.layer == "lif1"
        (fault,) = found.faults
        assert (fault.kind, fault.text) == (
            "decay",
            f"dv is {dv} where a decay to 0.5 rounds to 2048",
        )
        blames.add(found.blame)
    assert {"decay"} <= blames <= {"decay", "threshold"}


def moved(values, late):
    out = np.zeros_like(values)
    out[:, max(late, 0) : STEPS + min(late, 0)] = values[:, max(-late, 0) : STEPS - max(late, 0)]
    return out


@pytest.mark.parametrize(("late", "word"), [(1, "late"), (-1, "early")])
@pytest.mark.parametrize("name", ["lif1", "pool1", "lif2"])
def test_a_shifted_time_step(exact, monkeypatch, name, late, word):
    """A layer that runs a step late differs although everything in the network is right."""
    model, graph, network, data = exact

    def run(self, raster, states=False):
        trace = reference.run(self.network, raster)
        sent = self.network.rasters(raster) | {n: x.spikes for n, x in trace.layers.items()}
        source = feed(self.network, name).source
        # This population, and with it those behind it, where they are not given other spikes.
        alone = reference.run(self.network.alone(name), moved(sent[source], late))
        if not is_cut(self.network):
            trace = forced_run(self.network, raster, {name: alone.layers[name].spikes})
        trace.layers[name] = alone.layers[name]
        return trace

    monkeypatch.setattr(Engine, "run", run)
    with pytest.raises(CertificateError) as caught:
        compare(model, graph, network, data)
    found = caught.value.divergence
    assert (found.place.layer, found.blame) == (name, "execution")
    (fault,) = found.faults
    assert (fault.layer, fault.kind) == (name, "time step")
    assert f"one time step {word}" in fault.text
    (problem,) = caught.value.problems
    assert problem.where == name
    assert fault.text in problem.what
    assert "certificates are wrong" in problem.what


def test_a_run_of_the_whole_network_that_differs_from_its_layers(exact, monkeypatch):
    """Forced layers are right, so no certificate is wrong: the definition itself is contradicted."""
    model, graph, network, data = exact
    whole = Engine.run

    def run(self, raster, states=False):
        trace = whole(self, raster, states)
        if not is_cut(self.network):
            trace.layers["lif2"].spikes[3, 1, 6] ^= 1
        return trace

    monkeypatch.setattr(Engine, "run", run)
    with pytest.raises(CertificateError, match="it is not rounding that differs") as caught:
        compare(model, graph, network, data)
    place = caught.value.divergence.place
    assert (place.sample, place.step, place.layer, place.neuron) == (3, 1, "lif2", (6,))


def test_a_transposed_kernel_of_the_run(exact, monkeypatch):
    model, graph, network, data = exact
    turned = reweighted(network, "lif1", feed(network, "lif1").synapses.weight.swapaxes(2, 3))

    def run(self, raster, states=False):
        return reference.run(as_cut(turned, self.network), raster, states)

    monkeypatch.setattr(Engine, "run", run)
    with pytest.raises(CertificateError):
        compare(model, graph, network, data)
    spikes = reference.run(turned, data.spikes[:1]).layers["lif1"].spikes[0]
    sent = {"input": data.spikes[0], "lif1": spikes}
    (fault,) = runs.of_execution(network, "lif1", sent, spikes)
    assert (fault.kind, fault.text) == ("kernel", "it ran as if its kernel were transposed")


# Quantized networks: rounding is no fault, and the account of it adds up

OPTIONS = st.fixed_dictionaries(
    {
        "weight_bits": st.integers(3, 8),
        "weight_exp": st.integers(0, 4),
        "thresholds": st.sampled_from(["native", "fold", "grouped"]),
        "overflow": st.sampled_from(["auto", "proven"]),
        "clamp_thresholds": st.booleans(),
    }
)
TEXTS = ("4C3-BN-LIF-P4-6C3-BN-LIF-P2-FC30-LIF-FC20-LIF-AvgPool2", "FC20-BN-LIF-FC10-LIF")


@settings(max_examples=60)
@given(st.integers(0, 500), st.sampled_from(TEXTS), st.sampled_from(["ideal", "loihi1"]), OPTIONS)
def test_what_the_quantizer_makes_has_no_faults_and_adds_up(seed, text, chip, options):
    model = random_net(text, seed)
    if chip == "ideal" and options["thresholds"] == "grouped":
        chip = "loihi1"
    if options["clamp_thresholds"]:
        with torch.no_grad():
            model.get_submodule("lif1").thresh.view(-1)[:3] = -0.5
    graph = stl_deploy.from_torch(model)
    try:
        network = quantize(graph, chip, **options)
    except LoweringError:
        return
    floats = decode(graph)
    for population in network.populations:
        assert faults.of_network(network, population, floats) == []
    data = random_spikes(model, 10, seed)
    report = compare(model, graph, network, Raster(data), batch=4)
    check_account(model, network, data, report.first_divergence)


def check_account(model, network, data, found):
    """The place by brute force; voltages, contributions and blame from what they must satisfy."""
    expected = {
        name: spikes.numpy().astype(np.uint8)
        for name, spikes in infer(model, torch.from_numpy(data), torch.float64).items()
    }
    trace = reference.run(network, data)
    place = None
    for sample, step in np.ndindex(data.shape[:2]):
        for name in network.by_name:
            want, got = expected[name], trace.layers[name].spikes
            off = np.argwhere(want[sample, step] != got[sample, step])
            if len(off) and place is None:
                place = (sample, step, name, tuple(map(int, off[0])))
    if place is None:
        assert found is None
        return
    assert found is not None
    mine = found.place
    assert (mine.sample, mine.step, mine.layer, mine.neuron) == place
    at = (mine.sample, mine.step, *mine.neuron)
    assert found.float_spike == bool(expected[mine.layer][at]) != found.integer_spike
    x = found.voltages
    assert x is not None
    assert found.integer_spike == (x.v_int > 64 * x.vth) == (x.v_int >= x.fires_from)
    assert x.vth == network.by_name[mine.layer].neurons.vth[mine.neuron]
    assert x.fires_from > 64 * x.vth
    assert found.float_spike == (x.v >= x.theta)
    assert x.margin == abs(x.v - x.theta)
    assert x.error == pytest.approx(x.v_lowered - x.v, abs=1e-12)
    assert sum(x.contributions.values()) == pytest.approx(x.error, abs=1e-9)
    assert abs(x.error) <= x.bound
    history = expected[mine.layer][(mine.sample, slice(mine.step), *mine.neuron)]
    fired = np.flatnonzero(history)
    assert x.reset == (int(fired[-1]) if len(fired) else None)
    if found.blame == "threshold":
        assert (x.v_lowered >= x.theta) == found.float_spike
    else:
        assert (x.v_lowered >= x.theta) == found.integer_spike
        assert abs(x.contributions[found.blame]) == max(
            abs(c) for c in x.contributions.values() if c * x.error > 0
        )
    data = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert (data["sample"], data["step"], data["layer"], tuple(data["neuron"])) == place
    assert data["voltages"]["contributions"] == x.contributions
    assert data["text"] == found.text
    assert f"sample {place[0]}, step {place[1]}, at {place[2]}" in found.text


@pytest.mark.parametrize("thresholds", ["native", "fold"])
def test_all_synapses_together_are_the_weights_contribution(thresholds, monkeypatch):
    monkeypatch.setattr(divergence, "STRONGEST", 10_000)
    seen = set()
    for seed in range(12):
        model = random_net(TEXTS[0], seed)
        graph = stl_deploy.from_torch(model)
        network = quantize(graph, "loihi2", weight_bits=5, thresholds=thresholds)
        data = random_spikes(model, 10, seed)
        found = compare(model, graph, network, Raster(data)).first_divergence
        if found is None or found.blame != "weight":
            continue
        total = sum(synapse.error for synapse in found.synapses)
        assert found.voltages is not None
        assert total == pytest.approx(found.voltages.contributions["weight"], abs=1e-12)
        connection = feed(network, found.place.layer)
        seen.add(type(connection.synapses))
        for synapse in found.synapses:
            assert (synapse.connection, synapse.source) == (connection.name, connection.source)
            assert synapse.held != synapse.exact
            if isinstance(connection.synapses, Conv | Dense):
                assert connection.synapses.weight[synapse.weight] == synapse.held
            if connection.source == "input":
                since = 0 if found.voltages.reset is None else found.voltages.reset + 1
                span = slice(since, found.place.step + 1)
                assert data[(found.place.sample, span, *synapse.input)].sum() == synapse.spikes
        errors = [abs(synapse.error) for synapse in found.synapses]
        assert errors == sorted(errors, reverse=True)
    assert seen & ({Conv} if thresholds == "native" else {Sparse})


def test_single_connections_that_are_off():
    model = random_net(TEXTS[0], 0)
    graph = stl_deploy.from_torch(model)
    network = quantize(graph, "loihi2", thresholds="fold")
    synapses = feed(network, "lif1").synapses
    assert isinstance(synapses, Sparse)
    weight = synapses.weight.copy()
    weight[17] += 1
    broken = network.changed(
        replace(feed(network, "lif1"), synapses=replace(synapses, weight=weight))
    )
    (fault,) = faults.of_network(broken, broken.by_name["lif1"], decode(graph))
    where = int(synapses.row[17]), int(synapses.column[17])
    assert f"{where} is {weight[17]}, not {weight[17] - 1} (one too high)" in fault.text
    assert fault.count == 1


def test_profiles_move_thresholds_and_are_blamed_for_it():
    for seed in range(10, 30):
        model = random_net(TEXTS[0], seed)
        graph = stl_deploy.from_torch(model)
        network = quantize(graph, "loihi1", thresholds="grouped")
        data = Raster(random_spikes(model, 10, seed))
        found = compare(model, graph, network, data).first_divergence
        if found is not None and found.blame == "threshold":
            assert found.faults == ()
            return
    pytest.fail("no threshold was to blame")


def test_several_weights_are_counted_and_some_listed(exact):
    _, _, network, _ = exact
    held = feed(network, "lif2").synapses.weight.astype(np.int64)
    held.reshape(-1)[:20:2] += 3
    (fault,) = first(exact, reweighted(network, "lif2", held)).faults
    assert fault.count == 10
    assert fault.text.startswith(
        "10 of 324 weights of fc1 are not what the float model rounds to: "
    )
    assert fault.text.count("(3 too high)") == fault_words.NAMED
    assert fault.text.endswith(", ...")


def test_faults_of_the_divergent_layer_come_first(exact):
    _, _, network, _ = exact
    weight = feed(network, "lif1").synapses.weight.swapaxes(2, 3)
    vth = network.by_name["lif3"].neurons.vth + 1
    both = changed(reweighted(network, "lif1", weight), "lif3", vth=vth)
    assert [fault.layer for fault in first(exact, both).faults] == ["lif1", "lif3"]


def test_a_layer_without_certificates_still_has_a_first_divergence(exact):
    _, _, network, _ = exact
    vth = network.by_name["lif1"].neurons.vth + 1
    found = first(exact, changed(network, "lif1", vth=vth, graded=Graded(0, 1)))
    assert (found.place.layer, found.blame, found.voltages) == ("lif1", "unknown", None)
    why = "Its voltages are not compared: its neurons send values instead of spikes."
    assert why in found.text
    assert "the float model sends a value, the integer network sends none." in found.text
    assert "Not rounding: lif1: it sends values; the float model sends spikes." in found.text
    assert found.to_json()["voltages"] is None


def test_an_account_begins_after_the_last_spike():
    """By hand: both sides spike in step 0, then 0.3 comes as 15/64, halves, and 0.86 as 55/64."""
    weight = np.array([[1.0, 0.86, 0.3]])
    theta = np.full(1, np.nextafter(1.0, -np.inf))
    nodes = {"fc": nir.Linear(weight=weight), "lif": G.lif(theta, 2e-4, 2.0)}
    graph = graph_of(nodes, 3, 1, timesteps=3)
    layer = dense_lif([[64, 55, 15]], 63, synapse_name="fc", scale=1 / 64)
    network = chain(layer, steps=3)
    inputs = np.array([[[1, 0, 1], [0, 0, 1], [0, 1, 0]]], np.uint8)
    expected = {"lif": np.array([1, 0, 1], np.uint8).reshape(1, 3, 1)}
    ran = {"lif": reference.run(network, inputs).layers["lif"].spikes}
    audit = Audit(graph, network)
    audit.add(inputs, expected, ran, ran)
    found = audit.first
    assert found is not None
    x = found.voltages
    assert x is not None
    assert (found.place.step, x.reset, found.blame) == (2, 0, "weight")
    # One halving since: multiples of 32, and 64 * 63 itself does not fire.
    assert (x.v_int, x.vth, x.fires_from) == (4000, 63, 4064)
    assert x.v == pytest.approx(1.01)
    assert [(s.input, s.held, s.spikes) for s in found.synapses] == [((2,), 15, 1), ((1,), 55, 1)]
    errors = (15 / 64 - 0.3) / 2, 55 / 64 - 0.86
    assert [s.error for s in found.synapses] == pytest.approx(errors)
    assert x.contributions["weight"] == pytest.approx(sum(errors))
    assert "Since its spike in step 0 the float voltage has come to 1.01" in found.text


def test_a_saturating_register_is_blamed():
    """A voltage that the register cuts off, with nothing rounded."""
    weight = np.full((1, 40), 100.0)
    node = nir.Linear(weight=weight)
    theta = np.full(1, np.nextafter(1_000_000.0, -np.inf))
    nodes = {"fc": node, "lif": G.lif(theta, 2e-4, 2.0)}
    graph = graph_of(nodes, 40, 1, timesteps=2, levels=255)
    network = chain(dense_lif(weight, 999_999, synapse_name="fc"), steps=2, levels=255)
    inputs = np.full((1, 2, 40), 255, np.uint8)
    spikes = {"lif": np.ones((1, 2, 1), np.uint8)}
    ran = {"lif": reference.run(network, inputs).layers["lif"].spikes}
    assert not ran["lif"].any()
    audit = Audit(graph, network)
    audit.add(inputs, spikes, ran, ran)
    assert audit.first is not None
    assert audit.first.blame == "register"
    assert audit.first.voltages.v_int < 1 << 23
    assert audit.certified("lif") == 0.0


# The command


@pytest.fixture
def command(command):
    """Run stl-parity: (exit code, stdout, stderr)."""
    return partial(command, "stl-parity")


@pytest.fixture
def files(tmp_path):
    """Checkpoint, lowered network and raster of a model that differs somewhere."""
    model = random_net(seed=4)
    paths = tmp_path / "model.pt", tmp_path / "out", tmp_path / "raster.npz"
    save_checkpoint(model, paths[0])
    graph = stl_deploy.from_torch(model)
    network = quantize(graph, "loihi2", weight_bits=4)
    stl_deploy.export(network, "nir", paths[1], graph=graph)
    save_raster(paths[2], Raster(random_spikes(model, 12)), {"made": "for a test"})
    return paths[0], paths[1] / "model.nir", paths[2]


def test_the_command_reports_certificates_and_the_first_divergence(files, command):
    code, out, _ = command(files[0], files[1], "--input", files[2], "--json")
    data = json.loads(out)
    assert (code, data["passed"]) == (0, True)
    for row in data["layers"]:
        assert 0.5 < row["certified"] <= 1
        assert row["certified_spiking"] is None or 0 < row["certified_spiking"] <= row["certified"]
    found = data["first_divergence"]
    assert {
        "sample",
        "step",
        "layer",
        "neuron",
        "blame",
        "voltages",
        "synapses",
        "faults",
        "text",
    } <= {*found}
    assert {"v", "theta", "v_int", "vth", "margin", "bound", "contributions"} <= {
        *found["voltages"]
    }
    code, text, _ = command(files[0], files[1], "--input", files[2])
    assert code == 0
    assert found["text"] in text
    assert "certified" in text
    assert "of spiking" in text


def test_a_wrong_certificate_fails_the_command(files, command, monkeypatch):
    whole = Engine.run

    def wrong(self, raster, states=False):
        trace = whole(self, raster, states)
        trace.layers["lif2"].spikes[:] ^= is_cut(self.network)
        return trace

    monkeypatch.setattr(Engine, "run", wrong)
    code, out, err = command(files[0], files[1], "--input", files[2], "--json")
    assert (code, out) == (1, "")
    assert "certificates are wrong, the first in sample 0, step 0" in err
    assert "please report it" in err
    assert "Traceback" not in err


def test_a_network_off_by_one_is_named_by_the_command(files, command, tmp_path):
    """From the file alone: a threshold that somebody changed after the export."""
    network = nir_file.read_network(files[1])
    vth = network.by_name["lif1"].neurons.vth.copy()
    vth[2, 3, 4] += 1
    graph = stl_deploy.from_torch(stl_deploy.load(files[0]))
    broken = changed(network, "lif1", vth=vth)
    stl_deploy.export(broken, "nir", tmp_path / "broken", graph=graph)
    path = tmp_path / "broken" / "model.nir"
    data = json.loads(command(files[0], path, "--input", files[2], "--json")[1])
    (fault,) = data["first_divergence"]["faults"]
    assert (fault["layer"], fault["kind"], fault["count"]) == ("lif1", "threshold", 1)
    assert f"(2, 3, 4) is {vth[2, 3, 4]}, not {vth[2, 3, 4] - 1} (one too high)" in fault["text"]


def test_what_truncation_takes_is_the_decays_and_no_registers():
    seen = 0
    for seed in range(8):
        model = random_net("FC20-LIF-FC10-LIF", seed)
        arch = model.arch.model_dump()
        for spec in arch["layers"]:
            spec.update({"tau": 0.3} if spec["kind"] == "lif" else {})
        slow = STLNet(Architecture.from_dict(arch))
        slow.load_state_dict(model.state_dict())
        graph = stl_deploy.from_torch(slow.eval())
        network = quantize(graph, "loihi2", weight_bits=4)
        data = Raster(random_spikes(slow, 20, seed))
        found = compare(slow, graph, network, data).first_divergence
        if found is not None and found.voltages is not None:
            assert found.voltages.contributions["register"] == 0
            seen += found.voltages.contributions["decay"] != 0
    assert seen
