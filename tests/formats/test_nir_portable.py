"""The portable profile: the same equation in other nodes, written beside model.nir."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import h5py
import nir
import numpy as np
import pytest

import stl_deploy
from stl_deploy import from_torch, quantize, simulate
from stl_deploy.errors import InputError, LoweringError
from stl_deploy.formats import integer_nir as nir_file
from stl_deploy.formats import nir_io
from stl_deploy.formats import portable_nir as nir_portable
from stl_deploy.hw_sim import reference
from stl_deploy.ir import execute as float_exec
from stl_deploy.ir import nir_graph as G
from stl_deploy.ir.network import Connection, Input, IntegerNetwork, Population
from stl_deploy.ir.neurons import Graded, Lif
from stl_deploy.ir.readouts import Readout
from stl_deploy.ir.synapses import Conv, Dense, OneToOne
from stl_deploy.lower.graph import lower
from tests.build import nir_cases, nir_interpreter, random_graphs, random_networks
from tests.build.nets import ROOT, random_net, random_spikes


def rng(seed=3):
    return np.random.default_rng(seed)


def spikes_of(trace):
    return {name: layer.spikes for name, layer in trace.layers.items()}


def written(graph, tmp_path):
    path = tmp_path / "p.nir"
    nir_portable.write(graph, path)
    return nir_io.read(path)


@pytest.mark.parametrize("seed", range(12))
def test_where_nothing_is_inexact_the_equations_give_the_integers(seed, tmp_path):
    network, raster = random_networks.draw(seed)
    if nir_portable.inexact(network):
        network = halving(network)
    assert not nir_portable.inexact(network)
    found = float_exec.run(written(nir_portable.from_network(network), tmp_path), raster)
    expected = spikes_of(simulate(network, raster))
    assert set(found) == set(expected)
    for name, spikes in expected.items():
        assert (found[name] == spikes).all(), name


def halving(network):
    """The network with decays that nothing is rounded by in seven steps."""
    changed = []
    for p in network.populations:
        if p.kind == "lif":
            du = 2047 if p.neurons.has_current else 4095
            changed.append(replace(p, neurons=replace(p.neurons, dv=2048, du=du, bias_exp=6)))
    return network.changed(*changed)


NO_WORDS = random_graphs.Features(
    chips=("ideal",),
    inputs=1,
    delays=0,
    loops=False,
    sparse=False,
    bias_source=False,
    bias_per_neuron=False,
    decays_per_neuron=False,
    subtract=False,
)


def without_delays(network):
    """The network with every connection of a population to itself one step late."""
    own = [replace(c, delay=1) for c in network.connections if c.source == c.target]
    return network.changed(*own)


def test_graphs_of_what_the_dialect_says(tmp_path):
    """Joins, one-to-one connections, signs and held frames: the integers by NIR's equations."""
    tried, words, seed, refused = 0, set(), 0, []
    while tried < 12:
        assert seed < 300
        network, rasters = random_graphs.draw(seed, NO_WORDS)
        network, seed = halving(without_delays(network)), seed + 1
        if nir_portable.inexact(network):
            continue
        try:
            made = nir_portable.from_network(network)
        except LoweringError as error:  # of weights that differ within a channel
            refused += error.problems
            continue
        tried += 1
        graph = written(made, tmp_path)
        words |= {type(node).__name__ for node in graph.nodes.values()}
        given = network.rasters(random_graphs.named(network, rasters))["input"]
        found = float_exec.run(graph, given)
        walked, _ = nir_interpreter.run(graph, given)
        for name, layer in reference.run(network, rasters).layers.items():
            np.testing.assert_array_equal(found[name], layer.spikes, err_msg=f"{seed} {name}")
            np.testing.assert_array_equal(walked[name], layer.spikes, err_msg=f"{seed} {name}")
        meta, port = nir_portable.read_meta(graph), network.inputs["input"]
        assert (meta.input_levels, meta.signed, meta.held) == (port.levels, port.signed, port.held)
    assert {"Conv2d", "Linear", "Affine", "LIF", "CubaLIF"} <= words
    assert not {"Scale", "Delay", "Threshold", "IF"} & words
    assert all("for each of" in problem.what for problem in refused)


@pytest.mark.parametrize(("each", "carried"), [([3, 3], True), ([3, 4], False)])
def test_one_to_one_weights_of_an_image_are_a_kernel_if_they_are_a_channels(each, carried):
    """Neither tool has a node for a weight of each neuron of an image."""
    weight = np.array([*each, 5, 5], np.int8)
    ones = Conv(np.ones((2, 1, 1, 1), np.int8), (1, 1), (0, 0), (1, 1), 2)
    neurons = Lif(np.zeros((2, 1, 2), np.int32), np.int32(0), np.ones((2, 1, 1)))
    populations = tuple(Population(name, (2, 1, 2), neurons) for name in "ab")
    connections = (
        Connection("conv", "input", "a", ones),
        Connection("skip", "a", "b", OneToOne(weight)),
    )
    inputs = {"input": Input((2, 1, 2))}
    network = IntegerNetwork("ideal", 4, inputs, populations, connections, Readout(4, 1, "b"))
    if carried:
        node = nir_portable.from_network(network).nodes["skip"]
        np.testing.assert_array_equal(node.weight[:, :, 0, 0], [[6, 0], [0, 10]])
        return
    with pytest.raises(LoweringError, match="skip: factors of its own for each of 4 neurons"):
        nir_portable.from_network(network)


def test_what_no_tool_runs_is_refused_by_name():
    """All at once: a second input, a delay, neurons alone, an image behind flat weights."""
    network = without_words()
    with pytest.raises(LoweringError) as caught:
        nir_portable.from_network(network)
    said = str(caught.value)
    assert "input, input1: are several inputs" in said
    assert "w (input1 to b): has a delay; no tool that is known reads a Delay" in said
    assert "one: nothing leads to it" in said
    assert "x (one to a): gives a flat output, and a has shape (2, 1, 2)" in said
    assert all("--nir-dialect spec" in p.remedy for p in caught.value.problems)


def without_words():
    """A small graph with all that the dialect has no words for."""
    ones = {name: np.ones(shape, np.int8) for name, shape in (("w", (3, 4)), ("x", (4, 1)))}
    conv = Conv(np.ones((2, 2, 1, 1), np.int8), (1, 1), (0, 0), (1, 1), 1)
    shapes = {"one": (1,), "a": (2, 1, 2), "b": (3,)}
    populations = tuple(
        Population(name, shape, Lif(np.zeros(shape, np.int32), np.int32(1), np.ones(1)))
        for name, shape in shapes.items()
    )
    connections = (
        Connection("conv", "input", "a", conv),
        Connection("x", "one", "a", Dense(ones["x"])),
        Connection("fc", "a", "b", Dense(ones["w"])),
        Connection("w", "input1", "b", Dense(ones["w"]), delay=1),
    )
    inputs = {"input": Input((2, 1, 2)), "input1": Input((4,))}
    return IntegerNetwork("ideal", 4, inputs, populations, connections, Readout(3, 1, "b"))


@pytest.mark.parametrize("r", [1.0, 2.0])
def test_a_float_graph_with_an_edge_over_a_layer(r, tmp_path):
    """An edge is a factor of 1, which the neurons' r multiplies."""
    weight = rng().normal(0.3, 0.5, (6, 6))
    nodes = {
        "input": nir.Input({"input": np.array([6])}),
        "fc1": nir.Linear(weight),
        "a": G.lif(np.full(6, 0.4), 2e-4, r),
        "fc2": nir.Linear(weight.T.copy()),
        "b": G.lif(np.full(6, 0.7), 2e-4, r),
        "output": nir.Output({"output": np.array([6])}),
    }
    edges = [*zip(list(nodes), list(nodes)[1:], strict=False), ("a", "b")]
    meta = {G.KEY: G.FloatMeta(timesteps=5, classes=6, population=1).text()}
    graph = nir.NIRGraph(nodes, edges, metadata=meta, type_check=False)
    raster = (rng().random((20, 5, 6)) < 0.5).astype(np.uint8)
    made = written(nir_portable.from_float(graph), tmp_path)
    assert (("a", "b") in made.edges) is (r == 1)
    assert ("a_b" in made.nodes) is (r != 1)
    expected, found = (float_exec.run(g, raster) for g in (graph, made))
    for name in ("a", "b"):
        assert 0 < expected[name].mean() < 1
        np.testing.assert_array_equal(found[name], expected[name])


@pytest.mark.parametrize("precision", ["split", "2x8"])
def test_finer_weights_are_carried_whole(precision, tmp_path):
    model = random_net()
    network = quantize(from_torch(model), chip="ideal", weight_precision=precision)
    raster = random_spikes(model, 3)
    found = float_exec.run(written(nir_portable.from_network(network), tmp_path), raster)
    for name, spikes in spikes_of(simulate(network, raster)).items():
        assert (found[name] == spikes).all(), name


@pytest.mark.parametrize(
    ("changes", "steps", "why"),
    [
        ({"dv": 1500}, 5, "need"),
        ({"dv": 2048}, 8, "8 steps of its decay (du 4095, dv 2048) need 7 bits"),
        ({"dv": 2048, "bias": True, "bias_exp": 3}, 5, "need 4 bits below its inputs"),
        ({"du": 1023}, 4, ""),
        ({"du": 1023}, 5, "need 8 bits"),
        ({"dv": 1500}, 1, "not powers of two"),
        ({"exp": 7, "vth": 1000}, 5, "u or v may reach"),
        ({"vth": 1 << 17}, 4, "float32 has no half step"),
        ({}, 7, ""),
    ],
)
def test_what_may_leave_the_equation_is_named(changes, steps, why):
    layer = nir_cases.dense(rng(), 200, 20, **changes)
    found = nir_portable.inexact(nir_cases.network(layer, steps=steps))
    assert (why in found["lif1"]) if why else not found


def test_what_is_named_inexact_can_differ():
    layer = nir_cases.dense(rng(), 12, 300, du=3000, dv=100, vth=900)
    network = nir_cases.network(layer, steps=40)
    assert nir_portable.inexact(network)
    raster = (rng().random((20, 40, 12)) < 0.5).astype(np.uint8)
    found = float_exec.run(nir_portable.from_network(network), raster)["lif1"]
    assert (found != simulate(network, raster).layers["lif1"].spikes).any()


def test_a_float_graph_says_the_same_in_both_profiles(tmp_path):
    model = random_net()
    graph, raster = lower(from_torch(model)), random_spikes(model, 8)
    expected = float_exec.run(graph, raster)
    found = float_exec.run(written(nir_portable.from_float(graph), tmp_path), raster)
    assert all((found[name] == expected[name]).all() for name in expected)
    assert all(0 < s.mean() < 1 for s in expected.values())


@pytest.mark.parametrize(("steps", "exact"), [(7, True), (8, False)])
def test_a_float_graph_trained_on_integers(steps, exact, tmp_path):
    """Its v truncates, which the portable nodes do not; where there is nothing to truncate they agree."""
    network = nir_cases.network(nir_cases.dense(rng(), 12, 20), steps=steps)
    raster = (rng().random((20, steps, 12)) < 0.5).astype(np.uint8)
    graph = nir_file.to_nir(network)
    trained = G.Trained(weight_bits=8, scale={"lif1": [1.0] * 20})
    meta = G.FloatMeta(version=2, timesteps=steps, classes=20, population=1, trained=trained)
    graph.metadata = {G.KEY: meta.text()}
    made = written(nir_portable.from_float(graph), tmp_path)
    assert (nir_portable.read_meta(made).inexact == {}) is exact
    assert (nir_portable.inexact_trained(graph) == {}) is exact
    if exact:
        expected = float_exec.run(graph, raster)["lif1"]
        assert (float_exec.run(made, raster)["lif1"] == expected).all()
        assert (expected == simulate(network, raster).layers["lif1"].spikes).all()


def test_the_words_of_the_profile(tmp_path):
    network = quantize(from_torch(random_net()), chip="loihi2")
    graph = written(nir_portable.from_network(network), tmp_path)
    kinds = {type(node) for node in graph.nodes.values()}
    assert nir.Threshold not in kinds
    for population in network.weighted:
        node = graph.nodes[population.name]
        assert (node.r == 1).all()
        assert (node.v_threshold == population.neurons.vth + 1 / 128).all()
        assert (node.v_threshold.astype(np.float32) == node.v_threshold).all()
        (connection,) = network.into(population.name)
        weight = graph.nodes[connection.name].weight
        assert weight.dtype == np.float32
        assert (weight == 2.0 * connection.synapses.weight).all()
    assert graph.nodes["fc1_flatten"].start_dim == -3
    with h5py.File(tmp_path / "p.nir") as file:
        assert all("v_reset" not in node for node in file["node/nodes"].values())
    meta = nir_portable.read_meta(graph)
    assert (meta.of, meta.timesteps, meta.inexact) == ("integer", 4, {})
    # NIR's own reader takes it with its check of types.
    assert set(nir.read(tmp_path / "p.nir").nodes) == set(graph.nodes)


def test_a_reset_that_is_not_zero_stays(tmp_path):
    graph = nir_portable.from_network(nir_cases.network(nir_cases.dense(rng(), 5, 6)))
    graph.nodes["lif1"].v_reset = np.full(6, 2.5)
    assert (written(graph, tmp_path).nodes["lif1"].v_reset == 2.5).all()


def test_what_it_cannot_say_is_named_all_at_once():
    first = nir_cases.dense(rng(), 5, 6, name="a", reset="subtract")
    second = nir_cases.dense(rng(), 6, 4, name="b", reset="subtract")
    with pytest.raises(LoweringError) as caught:
        nir_portable.from_network(nir_cases.network(first, second))
    assert [p.where for p in caught.value.problems] == ["a", "b"]
    assert "--nir-dialect spec" in caught.value.problems[0].remedy


def test_an_r_that_weights_cannot_carry_is_refused():
    layer = nir_cases.conv(rng(), 2, 3, (3, 3))
    graph = nir_file.to_nir(nir_cases.network(layer))
    graph.nodes["lif1"].r = rng().random(layer.shape) + 1
    meta = G.FloatMeta(timesteps=5, classes=3, population=36)
    graph.metadata = {G.KEY: meta.text()}
    with pytest.raises(LoweringError, match="r differs within a channel"):
        nir_portable.from_float(graph)


def test_a_folded_convolution_is_refused():
    network, _ = random_networks.draw(0, process_graph=True)
    with pytest.raises(LoweringError, match="single connections no node of NIR can express"):
        nir_portable.from_network(network)


# The commands


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "o"
    graph = lower(from_torch(random_net()))
    network = quantize(graph)
    stl_deploy.export(network, "nir", out, graph=graph, nir_dialect="portable")
    return out


def test_export_writes_it_beside_and_names_it(command, model, raster, tmp_path):
    out = tmp_path / "o"
    args = (model, "--target", "nir", "--nir-dialect", "portable", "-o", out)
    assert command("stl-export", *args)[0] == 0
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["nir_dialect"] == "portable"
    names = {"model.nir", "model.float.nir", "model.portable.nir", "model.float.portable.nir"}
    assert names <= set(manifest["files"])
    code, _, err = command("hw_sim", out / "model.portable.nir", "--input", raster)
    assert code == 2
    assert "is not an integer network" in err


def test_the_usual_export_writes_none(command, model, tmp_path):
    out = tmp_path / "o"
    assert command("stl-export", model, "--target", "nir", "-o", out)[0] == 0
    assert not list(out.glob("*portable*"))
    assert json.loads((out / "manifest.json").read_text())["nir_dialect"] == "spec"


def test_an_export_that_it_cannot_say_leaves_nothing(command, model, tmp_path):
    args = ("--target", "loihi", "--thresholds", "fold", "--nir-dialect", "portable")
    code, _, err = command("stl-export", model, *args, "-o", tmp_path / "o")
    assert code == 1
    assert "single connections" in err
    assert not (tmp_path / "o").exists()


def test_check_in_json(exported, command):
    path = exported / "model.portable.nir"
    code, out, err = command("stl-check", path, "--json")
    assert (code, err) == (0, "")
    data = json.loads(out)
    assert data["kind"] == "portable integer"
    verdicts = {row["name"]: row["verdict"] for row in data["consumers"]}
    assert verdicts["norse"] == "exact"
    assert verdicts["snntorch"] == verdicts["lava-dl"] == "unreadable"
    for row in data["consumers"]:
        assert set(row) == {"name", "version", "verdict", "seen", "call", "reasons", "run"}
        assert row["run"] is None


def test_check_in_words(exported, command):
    code, out, _ = command("stl-check", exported / "model.nir")
    assert code == 0
    rows = {line.split()[0]: line.split()[2:] for line in out.splitlines()[3:11]}
    assert rows["Norse"] == ["cannot", "read"]
    assert "  why: it takes r for 1 (lif1, lif2, lif3, lif4)" in out


@pytest.mark.parametrize("name", ["model.portable.nir", "model.float.portable.nir"])
def test_a_portable_file_is_no_model(exported, command, raster, tmp_path, name):
    args = (exported / name, "--target", "nir", "-o", tmp_path / "o")
    code, _, err = command("stl-export", *args)
    assert code == 2
    assert "is a portable file" in err
    assert "model.float.nir" in err
    code, _, err = command("stl-parity", exported / name, exported / "model.nir", "--input", raster)
    assert code == 2
    assert "is a portable file" in err


def test_a_portable_file_is_not_to_be_exported_again(exported, command):
    code, _, err = command("stl-check", exported / "model.portable.nir", "--need", "snntorch")
    assert code == 1
    assert "see docs/nir.md" in err
    assert "--nir-dialect" not in err


def test_check_can_insist(exported, command):
    assert command("stl-check", exported / "model.portable.nir", "--need", "norse")[0] == 0
    code, _, err = command("stl-check", exported / "model.nir", "--need", "norse,snntorch")
    assert code == 1
    assert "Norse 1.1.0: cannot read: it does not support this node" in err
    assert "snnTorch 1.0.0" in err


@pytest.mark.parametrize(
    ("args", "what"),
    [
        (("--need", "brian"), "'brian' is not one of norse, "),
        ((), "is missing"),
        (
            ("--rules", "--need", "norse", "--json"),
            "--need: has no effect with --rules\n      also: --json",
        ),
        (("x.nir", "--limit", "3"), "--limit: has no effect without --input"),
        ((ROOT / "Makefile",), "is a text file"),
        ((ROOT / "nothing.nir",), "does not exist"),
    ],
)
def test_check_refuses_what_it_cannot_look_at(command, exported, args, what):
    if args and args[0] == "--need":
        args = (exported / "model.nir", *args)
    code, out, err = command("stl-check", *args)
    assert (code, out) == (2, "")
    assert what in err
    assert "internal error" not in err


def test_broken_files_are_refused_or_answered(tmp_path):
    """Arrays of other shapes and types, entries that are gone, edges to nowhere: seeded, never a crash."""
    from stl_deploy.backends import consumers
    from stl_deploy.backends.consumers import file as consumer_file

    flat = nir_cases.dense(rng(), 108, 4, name="lif2", du=2047)
    layers = nir_cases.conv(rng(), 2, 3, (3, 3)), replace(flat, input_shape=(3, 6, 6))
    path = tmp_path / "m.nir"
    nir_portable.write(nir_portable.from_network(nir_cases.network(*layers)), path)
    source = path.read_bytes()
    drawn, refused, answered = rng(11), 0, 0
    for _ in range(100):
        path.write_bytes(source)
        with h5py.File(path, "r+") as file:
            _mutate(drawn, file)
        try:
            answers = consumers.check(consumer_file.read(path))
            assert len(answers) == len(consumers.CONSUMERS)
            answered += 1
        except InputError:
            refused += 1
    assert refused > 20
    assert answered > 5


def _mutate(rng, file):
    names = []
    file.visititems(lambda name, item: names.append(name) if hasattr(item, "dtype") else None)
    name = rng.choice([n for n in names if n != "version"])
    old = file[name][()]
    del file[name]
    choices = [None, -1, np.zeros(0), np.full((2, 2), np.nan), np.array([[1.5]]), "word", 1 << 62]
    if isinstance(old, np.ndarray) and old.dtype.kind == "f":
        choices += [old[..., None], -old, old.ravel()[:1], old.astype(np.int64)]
    new = choices[rng.integers(len(choices))]
    if new is not None:
        file[name] = new


def ruled(readout=None, **fields):
    """One flat population."""
    population = Population("a", (6,), nir_cases.neurons(6, **fields))
    way = nir_cases.way(rng(), "input", "a", 5, 6, port=int("du2" in fields))
    readout = Readout(6, 1, "a") if readout is None else readout
    return IntegerNetwork("ideal", 3, {"input": Input((5,))}, (population,), (way,), readout)


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"reset": "subtract"}, "a: reset by subtraction"),
        ({"reset": "none"}, "a: no reset"),
        ({"reset_current": True, "du": 7}, "a: reset of the current"),
        ({"hold": 2}, "a: hold: NIR's equations cannot express it"),
        ({"hold": -1}, "a: hold for all remaining steps"),
        ({"floor": -64}, "a: floor of v"),
        ({"adapt": 64}, "a: adaptive threshold"),
        ({"du2": 7}, "a: second current"),
        ({"gain": np.full(3, 4000, np.int16)}, "a: gain for each step"),
        ({"v0": 64}, "a: initial v"),
        ({"graded": Graded(4, 9)}, "a: graded output"),
        ({"fires": False}, "a: has no threshold; no tool that is known runs such neurons"),
        ({"readout": Readout(6, 1, "a", "last")}, "readout: classes are scored by last"),
        ({"readout": Readout(6, 1, "a", steps=(3, 2, 1))}, "readout: classes are scored by steps"),
    ],
)
def test_what_the_metadata_alone_say_is_refused_by_its_name(fields, what):
    with pytest.raises(LoweringError) as error:
        nir_portable.from_network(ruled(**fields))
    assert what in str(error.value)
    assert "--nir-dialect spec" in str(error.value)
    nir_file.to_nir(ruled(**fields))  # the remedy


@pytest.mark.parametrize("shape", [(6,), (2, 1, 3)])
def test_a_matrix_is_said_by_the_last_node(shape, tmp_path):
    matrix, offset = rng().integers(-50, 50, (3, 6)), np.array([7, 0, -9])
    readout = Readout(3, 2, "a", "votes", None, None, matrix, offset)
    network = ruled(readout, dv=0)
    if len(shape) > 1:
        conv = Conv(
            rng().integers(-50, 90, (2, 1, 1, 1)).astype(np.int8), (1, 1), (0, 0), (1, 1), 1
        )
        made = Population(
            "a", shape, replace(nir_cases.neurons(6), vth=np.full(shape, 40, np.int32))
        )
        made = replace(made, neurons=replace(made.neurons, bias_mant=np.zeros((), np.int32)))
        made = replace(made, neurons=replace(made.neurons, scale=np.ones((2, 1, 1))))
        ports = {"input": Input((1, 1, 3))}
        ways = (Connection("w", "input", "a", conv),)
        network = replace(network, inputs=ports, populations=(made,), connections=ways)
    graph = written(nir_portable.from_network(network), tmp_path)
    meta = nir_portable.read_meta(graph)
    assert (meta.classes, meta.population, meta.inexact) == (3, 1, {})
    raster = rng().integers(0, 2, (20, 3, *network.shape("input"))).astype(np.uint8)
    spikes, _ = nir_interpreter.run(graph, raster)
    sums = spikes["a"].reshape(20, 3, -1).sum(axis=1)
    node = graph.nodes["readout"]
    votes = sums @ node.weight.T + 3 * node.bias
    ran = reference.run(network, raster)
    assert 0 < ran.layers["a"].spikes.mean() < 1
    np.testing.assert_array_equal(votes.argmax(axis=1), ran.predictions)


def test_a_constant_reset_may_leave_what_the_equations_keep():
    constant = {"reset": "constant", "dv": 2048}
    assert nir_portable.inexact(ruled(v_reset=-64, **constant)) == {}
    why = nir_portable.inexact(ruled(v_reset=-62, **constant))["a"]
    assert "need 2 bits below its inputs, of which the integers keep 1" in why
    graph = nir_portable.from_network(ruled(v_reset=-64, **constant))
    assert (graph.nodes["a"].v_reset == -1).all()
