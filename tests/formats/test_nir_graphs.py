"""model.nir of networks that branch: nothing is lost, NIR's own words say it, nothing else gets in."""

from __future__ import annotations

import json
from dataclasses import replace

import nir
import numpy as np
import pytest

from stl_deploy.errors import InputError
from stl_deploy.formats import integer_nir as nir_file
from stl_deploy.formats import nir_io
from stl_deploy.formats import portable_nir as nir_portable
from stl_deploy.hw_sim import reference
from stl_deploy.ir.network import Connection, Input, IntegerNetwork, Population
from stl_deploy.ir.neurons import Lif, Or
from stl_deploy.ir.nir_graph import DT, KEY
from stl_deploy.ir.readouts import Readout
from stl_deploy.ir.synapses import Conv, Dense, OneToOne
from tests.build import nir_interpreter, random_graphs
from tests.build.nets import quantized
from tests.build.same import assert_same

# What single connections were folded from does not matter to random graphs, but to a file it does.
CARRIED = replace(random_graphs.EVERYTHING, sparse=False)


def file_of(network):
    return nir_io.to_hdf5(nir_file.to_nir(network)).getvalue()


def through_a_file(network, path):
    nir_io.write(nir_file.to_nir(network), path)
    return nir_file.read_network(path)


@pytest.mark.parametrize("seed", range(25))
def test_random_graphs_come_back_byte_for_byte(seed, tmp_path):
    network, rasters = random_graphs.draw(seed, CARRIED)
    again = through_a_file(network, tmp_path / "m.nir")
    assert_same(network, again)
    assert file_of(network) == file_of(again) == (tmp_path / "m.nir").read_bytes()
    ran, found = (reference.run(n, rasters, states=True) for n in (network, again))
    for name, layer in ran.layers.items():
        for key in ("spikes", "u", "v", "active", "overflow"):
            np.testing.assert_array_equal(
                getattr(layer, key), getattr(found.layers[name], key), err_msg=f"{name}.{key}"
            )


def exact(network, rng):
    """The network with decays in which nothing is rounded, and resets that NIR's equations can say."""

    def each(shape, *values):
        drawn = rng.choice(values, shape).astype(np.int32)
        return drawn if rng.random() < 0.6 else int(drawn.flat[0])

    changed = []
    for p in network.populations:
        if p.kind == "lif":
            du = each(p.shape, 4095, 2047) if p.neurons.has_current else 4095
            dv = each(p.shape, 0, 2048) if rng.random() < 0.7 else 0
            neurons = replace(p.neurons, du=du, dv=dv, bias_exp=6, reset="zero")
            changed.append(replace(p, neurons=neurons))
    return replace(network.changed(*changed), chip="ideal")


def test_a_reader_that_knows_only_nir_computes_the_same_spikes():
    """The plain interpreter reads nodes and edges, and none of our metadata."""
    features = replace(CARRIED, bias_source=False)
    words = set()
    tried, seed = 0, 0
    while tried < 15:
        assert seed < 300
        network, rasters = random_graphs.draw(seed, features)
        seed += 1
        network = exact(network, np.random.default_rng(seed))
        if nir_portable.inexact(network):
            continue
        graph = nir_file.to_nir(network)
        graph.metadata = {}
        words |= {type(node).__name__ for node in graph.nodes.values()}
        given = network.rasters(random_graphs.named(network, rasters))
        found, _ = nir_interpreter.run(graph, given)
        for name, layer in reference.run(network, rasters).layers.items():
            np.testing.assert_array_equal(found[name], layer.spikes, err_msg=f"{seed} {name}")
        tried += 1
    assert {"Delay", "Scale", "CubaLIF", "LIF", "IF", "SumPool2d", "Conv2d", "Affine"} <= words


# What stands where


def neurons(shape, vth=40, bias=0, **fields):
    shape = (shape,) if isinstance(shape, int) else shape
    bias_mant = np.asarray(bias, np.int32)
    return Lif(np.full(shape, vth, np.int32), bias_mant, np.ones((1,) * len(shape)), **fields)


def graph(populations, *connections, inputs=None, steps=4):
    made = tuple(Population(name, n.vth.shape, n) for name, n in populations.items())
    readout = Readout(made[-1].size, 1, made[-1].name)
    ports = {"input": Input((4,))} if inputs is None else inputs
    return IntegerNetwork("ideal", steps, ports, made, connections, readout)


def dense(name, source, target, shape, low=-90, **fields):
    weight = np.random.default_rng(sum(shape)).integers(low, 90, shape).astype(np.int8)
    return Connection(name, source, target, Dense(weight), **fields)


def image(bias, **fields):
    """A convolution and a one-to-one connection into one population of two channels."""
    kernel = np.random.default_rng(1).integers(-90, 90, (2, 2, 1, 1)).astype(np.int8)
    conv = Conv(kernel, (1, 1), (0, 0), (1, 1), 1)
    way = Connection("conv", "input", "b", conv)
    skip = Connection("skip", "input", "b", OneToOne(np.arange(18).astype(np.int8)))
    ports = {"input": Input((2, 3, 3))}
    return graph({"b": neurons((2, 3, 3), bias=bias, **fields)}, skip, way, inputs=ports)


def test_delays_are_nodes_that_connections_share():
    populations = {"a": neurons(5), "b": neurons(5)}
    network = graph(
        populations,
        dense("in", "input", "a", (5, 4)),
        dense("one", "a", "b", (5, 5), delay=2),
        dense("two", "a", "b", (5, 5), delay=2),
        dense("own", "b", "b", (5, 5), delay=1),
        dense("late", "b", "b", (5, 5), delay=3),
        dense("back", "b", "a", (5, 5), delay=1),
    )
    made = nir_file.to_nir(network)
    delays = {name: node.delay for name, node in made.nodes.items() if isinstance(node, nir.Delay)}
    assert {name: set(delay / DT) for name, delay in delays.items()} == {
        "a_delay2": {2.0},
        "b_delay3": {np.float64(3 * DT) / DT},
        "b_delay1": {1.0},
    }
    edges = set(made.edges)
    assert {("a", "a_delay2"), ("a_delay2", "one"), ("a_delay2", "two")} <= edges
    assert {("b", "own"), ("b", "b_delay3"), ("b_delay3", "late"), ("b_delay1", "back")} <= edges
    assert_same(network, nir_file.from_nir(made))


def test_connections_that_share_their_weights_share_a_node(tmp_path):
    shared = dense("w", "a", "c", (5, 5))
    populations = {name: neurons(5) for name in "abc"}
    network = graph(
        populations,
        dense("in", "input", "a", (5, 4)),
        dense("in", "input", "b", (5, 4)),
        shared,
        replace(shared, source="b", delay=1),
        replace(shared, source="c", delay=1),
    )
    made = nir_file.to_nir(network)
    into = {source for source, target in made.edges if target == "w"}
    assert into == {"a", "b_delay1", "c"}
    # Those that lead elsewhere, or that differ, have nodes of their own.
    assert {"in", "in_2"} <= set(made.nodes)
    other = replace(shared, source="b", synapses=Dense(shared.synapses.weight[::-1].copy()))
    apart = replace(network, connections=(*network.connections[:3], other))
    assert {"w", "w_2"} <= set(nir_file.to_nir(apart).nodes)
    for net in (network, apart):
        assert_same(net, through_a_file(net, tmp_path / "m.nir"))


def test_names_that_nodes_have_already_do_not_matter(tmp_path):
    """A connection may have the name of a population, and a population that of a node of ours."""
    names = ["output", "a_delay1", "w_flatten"]
    populations = {"a": neurons((2, 1, 2))} | {name: neurons(5) for name in names}
    conv = Conv(np.ones((2, 2, 1, 1), np.int8), (1, 1), (0, 0), (1, 1), 1)
    network = graph(
        populations,
        Connection("input", "input", "a", conv),
        dense("w", "a", "output", (5, 4), delay=1),
        dense("a", "output", "a_delay1", (5, 5)),
        dense("output", "a_delay1", "w_flatten", (5, 5)),
        inputs={"input": Input((2, 1, 2))},
    )
    assert_same(network, through_a_file(network, tmp_path / "m.nir"))


@pytest.mark.parametrize("kind", [np.int8, np.int16])
def test_the_neurons_carry_the_smallest_exponent(kind, tmp_path):
    precision = "8" if kind == np.int8 else "split"
    large = dense("large", "input", "a", (5, 4), exp=7)
    split = replace(large, synapses=Dense(large.synapses.weight.astype(kind)), precision=precision)
    network = graph({"a": neurons(5)}, split, dense("small", "a", "a", (5, 5), exp=2, delay=1))
    made = nir_file.to_nir(network)
    assert (made.nodes["a"].r == 2 * 4).all()
    assert made.nodes["small"].weight.dtype == np.int8
    assert made.nodes["large"].weight.dtype == np.int32
    np.testing.assert_array_equal(
        made.nodes["large"].weight, large.synapses.weight.astype(int) << 5
    )
    assert_same(network, through_a_file(network, tmp_path / "m.nir"))


PER_CHANNEL = np.array([3, -2], np.int32).reshape(2, 1, 1)
PER_NEURON = np.arange(-9, 9, dtype=np.int32).reshape(2, 3, 3)


@pytest.mark.parametrize(
    ("network", "kind", "where"),
    [
        (image(PER_CHANNEL), nir.LIF, "conv"),
        (image(PER_NEURON), nir.LIF, "v_leak"),
        (image(PER_CHANNEL, du=100), nir.CubaLIF, "v_leak"),
        (image(PER_CHANNEL, dv=0), nir.IF, "conv"),
        (image(0, dv=0), nir.IF, None),
        (image(PER_NEURON, dv=0), nir.LIF, "v_leak"),
        (image(PER_NEURON, du=100, dv=0), nir.CubaLIF, "v_leak"),
        (
            graph({"a": neurons(5, bias=np.arange(5))}, dense("w", "input", "a", (5, 4))),
            nir.LIF,
            "w",
        ),
        (
            graph({"a": neurons(5, bias=np.arange(5))}, dense("w", "input", "a", (5, 4), delay=1)),
            nir.LIF,
            "v_leak",
        ),
        (graph({"a": neurons(5, bias=7)}), nir.LIF, "v_leak"),
    ],
)
def test_the_bias_stands_where_nir_adds_it_to_v(network, kind, where, tmp_path):
    made = nir_file.to_nir(network)
    (population,) = network.populations
    node = made.nodes[population.name]
    assert type(node) is kind
    held = {name for name, n in made.nodes.items() if np.any(getattr(n, "bias", 0))}
    if np.any(getattr(node, "v_leak", 0)):
        held.add("v_leak")
    assert held == ({where} if where else set())
    assert_same(network, through_a_file(network, tmp_path / "m.nir"))
    # By the equation alone.
    x = (np.random.default_rng(0).random((20, 4, *network.shape("input"))) < 0.5).astype(np.uint8)
    if not network.into(population.name):
        return
    quarter = graph_of(network, du=2047) if kind is nir.CubaLIF else network
    made, ran = nir_file.to_nir(quarter), reference.run(quarter, x)
    made.metadata = {}
    spikes, _ = nir_interpreter.run(made, x)
    expected = ran.layers[population.name].spikes
    assert 0 < expected.mean() < 1
    np.testing.assert_array_equal(spikes[population.name], expected)


def graph_of(network, **fields):
    """The network with other parameters of its neurons."""
    return network.changed(
        *(replace(p, neurons=replace(p.neurons, **fields)) for p in network.populations)
    )


def test_neurons_of_which_some_leak_are_told_apart(tmp_path):
    dv = np.array([0, 1, 163, 2048, 4095], np.int32)
    du = np.array([4095, 0, 1, 2047, 4094], np.int32)
    for fields in ({"dv": dv}, {"dv": dv, "du": du}, {"dv": 0, "du": du}, {"dv": 3, "du": 7}):
        network = graph({"a": neurons(5, **fields)}, dense("w", "input", "a", (5, 4)))
        again = through_a_file(network, tmp_path / "m.nir")
        assert_same(network, again)
        for key, value in fields.items():
            assert type(getattr(again.populations[0].neurons, key)) is type(value)


def test_neurons_that_never_leak_keep_v_as_it_is():
    """Next to neurons that leak, and with a bias, an IF has no word for them."""
    dv = np.array([0, 0, 2048, 0, 0], np.int32)
    network = graph(
        {"a": neurons(5, vth=3000, bias=np.array([1, -1, 2, 0, 3]), dv=dv)},
        dense("w", "input", "a", (5, 4), delay=1),
        steps=64,
    )
    x = (np.random.default_rng(0).random((9, 64, 4)) < 0.5).astype(np.uint8)
    made = nir_file.to_nir(network)
    assert isinstance(made.nodes["a"], nir.LIF)
    made.metadata = {}
    spikes, _ = nir_interpreter.run(made, x)
    expected = reference.run(network, x).layers["a"].spikes
    assert expected[..., [0, 1, 3, 4]].any()
    np.testing.assert_array_equal(spikes["a"][..., [0, 1, 3, 4]], expected[..., [0, 1, 3, 4]])


def test_what_has_another_shape_is_taken_in_c_order(tmp_path):
    """A source that fires in every step leads to an image, flat as it is."""
    conv = Conv(np.ones((2, 2, 1, 1), np.int8), (1, 1), (0, 0), (1, 1), 1)
    network = graph(
        {"one": neurons(1, vth=0, bias=1, dv=4095), "a": neurons((2, 3, 3))},
        Connection("conv", "input", "a", conv),
        dense("one", "one", "a", (18, 1)),
        inputs={"input": Input((2, 3, 3))},
    )
    assert_same(network, through_a_file(network, tmp_path / "m.nir"))
    assert nir_file.to_nir(network).nodes["one_2"].weight.shape == (18, 1)


def test_a_relay_is_a_threshold_behind_a_scale(tmp_path):
    network = graph(
        {"a": neurons(5), "relay": neurons(5), "b": neurons(5)},
        dense("in", "input", "a", (5, 4)),
        Connection("hop", "a", "relay", OneToOne(np.ones(5, np.int8)), bits=1),
        dense("w", "relay", "b", (5, 5)),
    )
    network = network.changed(Population("relay", (5,), Or()))
    made = nir_file.to_nir(network)
    assert isinstance(made.nodes["relay"], nir.Threshold)
    assert (made.nodes["hop"].scale == 1).all()
    assert_same(network, through_a_file(network, tmp_path / "m.nir"))


def test_inputs_say_their_levels_sign_and_whether_they_are_held(tmp_path):
    ports = {"input": Input((4,), 32767, True), "frame": Input((4,), 255, held=True)}
    ways = [dense(name, name, "a", (5, 4)) for name in ports]
    network = graph({"a": neurons(5)}, *ways, inputs=ports)
    assert through_a_file(network, tmp_path / "m.nir").inputs == ports


def test_a_folded_convolution_may_have_a_current(tmp_path):
    folded = quantized(chip="loihi2", thresholds="fold")
    (lif,) = (p for p in folded.populations if p.name == "lif1")
    current = folded.changed(replace(lif, neurons=replace(lif.neurons, du=100)))
    current = replace(current, placement=None)
    made = nir_file.to_nir(current)
    assert isinstance(made.nodes["lif1"], nir.CubaLIF)
    assert not made.nodes["conv1"].bias.any()
    assert_same(current, through_a_file(current, tmp_path / "m.nir"))


# What contradicts


def loop():
    """Two populations that lead to each other, and a way that skips the first."""
    return graph(
        {"a": neurons(5), "b": neurons(5)},
        dense("in", "input", "a", (5, 4)),
        dense("ab", "a", "b", (5, 5)),
        dense("ba", "b", "a", (5, 5), delay=2),
        Connection("one", "a", "b", OneToOne(np.full(5, 64, np.int8)), 1, delay=1),
    )


def said(made):
    with pytest.raises(InputError) as error:
        nir_file.from_nir(made)
    return str(error.value)


def with_delay(delay):
    def change(made):
        made.nodes["b_delay2"] = nir.Delay(np.asarray(delay, np.float64))

    return change


def with_edges(*new, without=()):
    def change(made):
        made.edges = [*(edge for edge in made.edges if edge not in without), *new]

    return change


def entry(where, at, **changes):
    def change(made):
        data = json.loads(made.metadata[KEY])
        data[where][at].update(changes)
        made.metadata[KEY] = json.dumps(data)

    return change


def with_scale(values):
    def change(made):
        made.nodes["one"] = nir.Scale(np.asarray(values))

    return change


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (with_delay(np.full(5, 3 * DT)), "its sources (delays) are b (3), in the metadata b (2)"),
        (with_delay(np.full(5, 2.5 * DT)), "is not a delay of whole steps"),
        (with_delay([2 * DT, 2 * DT, 2 * DT, 2 * DT, DT]), "is not a delay of whole steps"),
        (with_delay(np.full(5, -2 * DT)), "is not a delay of whole steps"),
        (with_delay(np.full(4, 2 * DT)), "is not a delay of whole steps"),
        (with_delay(np.full(5, np.nan)), "ba: "),
        (with_delay(np.zeros(0)), "ba: "),
        (with_scale(np.full(5, 129)), "one.weight is not in steps of 2^1, its exp"),
        (with_scale(np.full(5, 0.5)), "values that are not integers"),
        (with_scale(np.full(5, 512)), "one.weight spans 512..512, outside -256..254"),
        (with_scale(np.full(6, 64)), "Scale does not fit an input of shape (5,)"),
        (with_edges(("input", "a")), "input -> a: this edge is not described"),
        (with_edges(("input", "b_delay2")), "b_delay2 delays something other than"),
        (with_edges(without=[("b", "b_delay2")]), "b_delay2 delays something other than"),
        (with_edges(("a_delay1", "ab")), "its sources (delays) are a (0), a (1)"),
        (with_edges(("ab", "a")), "ab: leads to b, a, not to b"),
        (entry("connections", 2, delay=0), "in the metadata b (0)"),
        (entry("connections", 3, exp=0), "one.weight spans 128..128, outside -128..127"),
        (entry("connections", 3, source="input"), "are a (1), in the metadata input (1)"),
        (entry("connections", 1, name="in", source="input", node="in"), "differ in more than"),
        (entry("populations", 0, kind="or"), "is a LIF; it should be Threshold"),
    ],
)
def test_what_contradicts_is_refused(change, what):
    made = nir_file.to_nir(loop())
    change(made)
    assert what in said(made)


def test_an_order_that_no_step_has_is_refused():
    """Edges and entries agree, but a population would need what is computed after it."""
    made = nir_file.to_nir(loop())
    data = json.loads(made.metadata[KEY])
    data["populations"].reverse()
    made.metadata[KEY] = json.dumps(data)
    assert "leads back from a to b without a delay" in said(made)


def test_names_of_notes_are_checked():
    made = nir_file.to_nir(loop())
    data = json.loads(made.metadata[KEY])
    data["rounding"] = {"c": {"changed": 0, "mean": 0, "largest": 0}}
    made.metadata[KEY] = json.dumps(data)
    assert "c: has notes in the metadata, but is not a population or connection" in said(made)


@pytest.mark.parametrize("what", ["populations", "connections"])
def test_entries_without_end_are_refused(what):
    made = nir_file.to_nir(loop())
    data = json.loads(made.metadata[KEY])
    data[what] = data[what][:1] * 5001
    made.metadata[KEY] = json.dumps(data)
    assert "at most 5000 items" in said(made)
