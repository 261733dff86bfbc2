"""NIR graphs that branch, one thing at a time; random ones are in ``test_nir_interpreter.py``."""

from __future__ import annotations

from itertools import pairwise

import nir
import numpy as np
import pytest

import stl_deploy
from stl_deploy.errors import LoweringError
from stl_deploy.importers.nir import graph as nir_graph
from stl_deploy.ir import execute as float_exec
from stl_deploy.ir import floats
from stl_deploy.ir import nir_graph as G
from tests.build import forced, nir_interpreter
from tests.build.nir_graphs import braille, lif

RNG = np.random.default_rng(0)


def weights(out, inputs, seed=0):
    return np.random.default_rng(seed).normal(0.1, 0.6, (out, inputs))


def conv(out, inputs, seed=0, kernel=3, bias=0.0):
    weight = np.random.default_rng(seed).normal(0.05, 0.5, (out, inputs, kernel, kernel))
    return nir.Conv2d(None, weight, 1, kernel // 2, 1, 1, np.full(out, bias))


def late(shape, steps):
    return nir.Delay(np.full(shape, steps * G.DT))


def graph(nodes, *edges, inputs=(4,), outputs=(3,)):
    ends = {} if "in" not in {a for way in edges for a in way.split()} else {"in": inputs}
    every = {name: nir.Input({"input": np.array(shape)}) for name, shape in ends.items()}
    every |= nodes | {"out": nir.Output({"output": np.array(outputs)})}
    steps = [way.split() for way in edges]
    pairs = [pair for names in steps for pair in pairwise(names)]
    return nir.NIRGraph(every, pairs, type_check=False)


def same(given, shape=(4,), steps=9, **options):
    """The lowered graph, whose spikes are those that the interpreter reads."""
    raster = (np.random.default_rng(5).random((6, steps, *shape)) < 0.4).astype(np.uint8)
    expected, margin = nir_interpreter.run(given, raster)
    made = nir_graph.to_float(given, nir_graph.Options(timesteps=steps, **options))
    got = float_exec.run(made, raster)
    assert margin > 1e-9
    assert got.keys() == expected.keys()
    for name, spikes in expected.items():
        assert 0.02 < spikes.mean() < 0.98, name
        np.testing.assert_array_equal(got[name].reshape(spikes.shape), spikes, name)
    return made


def refused(given, **options):
    with pytest.raises(LoweringError) as error:
        nir_graph.to_float(given, nir_graph.Options(**options))
    return str(error.value)


def ways(made, name):
    """(source, kind, delay) of all that arrives at a population."""
    found = floats.decode(made).into(name)
    return sorted((c.source, c.way.kind, c.delay) for c in found)


LAYERS = {
    "f1": nir.Linear(weights(3, 4)),
    "a": lif(3, 0.6),
    "f2": nir.Linear(weights(3, 3, 1)),
    "b": lif(3, 0.4),
}


def test_a_skip_from_the_input():
    made = same(graph(LAYERS | {"s": nir.Linear(weights(3, 4, 2))}, "in f1 a f2 b out", "in s b"))
    assert ways(made, "b") == [("a", "weights", 0), ("input", "weights", 0)]


def test_delays_add_up():
    nodes = LAYERS | {"d": late(3, 2), "e": late(3, 1)}
    made = same(graph(nodes, "in f1 a f2 b out", "a d e b", "a d b"))
    assert ways(made, "b") == [
        ("a", "one_to_one", 2),
        ("a", "one_to_one", 3),
        ("a", "weights", 0),
    ]
    assert sorted(n for n in made.nodes if "delay" in n) == ["a_delay2", "a_delay3"]


def test_two_populations_that_send_each_other_spikes():
    back = {"back": nir.Linear(weights(3, 3, 3)), "d": late(3, 1)}
    made = same(graph(LAYERS | back, "in f1 a f2 b out", "b d back a"))
    assert ways(made, "a") == [("b", "weights", 1), ("input", "weights", 0)]
    del back["d"]
    without = refused(graph(LAYERS | back, "in f1 a f2 b out", "b back a"))
    assert "is a loop without a delay" in without
    assert (
        "put a Delay on the way back: of 1 step for --chip ideal, of 2 for other chips" in without
    )


def test_what_neurons_send_themselves_waits_one_step_or_its_delay():
    for steps, delay in ((None, 1), (1, 1), (2, 2)):
        nodes = LAYERS | {"own": nir.Scale(np.full(3, -0.4))}
        nodes |= {} if steps is None else {"d": late(3, steps)}
        made = same(graph(nodes, "in f1 a f2 b out", "b own b" if steps is None else "b d own b"))
        assert ways(made, "b")[-1] == ("b", "one_to_one", delay)


def test_populations_that_are_added_up_share_their_weights():
    """One node with several edges into it, whose bias arrives once."""
    nodes = {
        "f1": nir.Linear(weights(3, 4)),
        "a": lif(3, 0.4),
        "g1": nir.Linear(weights(3, 4, 7)),
        "b": lif(3, 0.4),
        "sum": nir.Affine(weights(3, 3, 1), np.full(3, 0.1)),
        "c": lif(3, 0.3),
    }
    made = same(graph(nodes, "in f1 a sum c out", "in g1 b sum"))
    assert [edge for edge in made.edges if edge[1] == "sum"] == [("a", "sum"), ("b", "sum")]
    assert (floats.decode(made).by_name["c"].bias == 0.1).all()
    late_too = same(graph(nodes | {"d": late(3, 2)}, "in f1 a sum c out", "in g1 b d sum"))
    assert ways(late_too, "c") == [("a", "weights", 0), ("b", "weights", 2)]
    assert sum(isinstance(node, nir.Affine) for node in late_too.nodes.values()) == 1


def test_several_inputs():
    nodes = LAYERS | {
        "x": nir.Input({"input": np.array([4])}),
        "y": nir.Input({"input": np.array([2])}),
        "s": nir.Linear(weights(3, 2, 4)),
    }
    given = graph(nodes, "x f1 a f2 b out", "y s b")
    rng = np.random.default_rng(0)
    rasters = {n: (rng.random((5, 8, k)) < 0.5).astype(np.uint8) for n, k in (("x", 4), ("y", 2))}
    expected, _ = nir_interpreter.run(given, rasters)
    made = nir_graph.to_float(given, nir_graph.Options())
    assert floats.decode(made).inputs == {"x": (4,), "y": (2,)}
    got = float_exec.run(made, rasters)
    for name, spikes in expected.items():
        assert 0.05 < spikes.mean() < 0.95
        np.testing.assert_array_equal(got[name], spikes)


IMAGE = (2, 5, 5)


def residual(**more):
    nodes = {"c1": conv(2, 2), "a": lif(IMAGE, 0.7), "c2": conv(2, 2, 1), "b": lif(IMAGE, 0.6)}
    return nodes | more


def images(nodes, *edges):
    return graph(nodes, *edges, inputs=IMAGE, outputs=IMAGE)


def test_an_identity_around_a_convolution():
    made = same(images(residual(), "in c1 a c2 b out", "a b"), IMAGE)
    assert ways(made, "b") == [("a", "one_to_one", 0), ("a", "weights", 0)]
    (one,) = (c.way.weight for c in floats.decode(made).into("b") if c.way.kind == "one_to_one")
    assert one.shape == IMAGE
    assert (one == 1).all()


def test_a_scale_of_each_neuron_behind_a_convolution_scales_all_that_arrives():
    """v counts other units; the identity is divided by them, the kernel stays one."""
    nodes = residual(s=nir.Scale(RNG.uniform(0.5, 1.5, IMAGE)))
    made = same(images(nodes, "in c1 a c2 s b out", "a b"), IMAGE)
    assert ways(made, "b") == [("a", "one_to_one", 0), ("a", "weights", 0)]
    np.testing.assert_array_equal(made.nodes["c2"].weight, nodes["c2"].weight)
    np.testing.assert_allclose(made.nodes["b"].v_threshold, 0.6 / nodes["s"].scale)


def test_convolutions_that_agree_on_no_unit_become_single_weights():
    scales = {n: nir.Scale(RNG.uniform(0.5, 1.5, IMAGE)) for n in ("s", "t")}
    nodes = residual(c3=conv(2, 2, 2), **scales)
    made = same(images(nodes, "in c1 a c2 s b out", "in c3 t b"), IMAGE)
    assert floats.decode(made).by_name["b"].shape == (50,)
    assert {type(made.nodes[n]).__name__ for n in ("c2", "c3")} == {"Linear"}


@pytest.mark.parametrize("kind", ["IF", "LIF", "Threshold"])
def test_constants_of_each_neuron(kind):
    """A bias in front of a padded convolution is not there at the rim."""
    first = conv(2, 2, 3, 1, bias=0.3)
    nodes = {"c1": first, "c2": conv(2, 2, 1)}
    threshold, zero = np.full(IMAGE, 0.9), np.zeros(IMAGE)
    nodes["a"] = {
        "IF": nir.IF(r=np.full(IMAGE, 1 / G.DT), v_threshold=threshold, v_reset=zero),
        "LIF": lif(IMAGE, 0.9),
        "Threshold": nir.Threshold(threshold),
    }[kind]
    made = same(images(nodes, "in c1 c2 a out"), IMAGE)
    node = made.nodes["a"]
    assert isinstance(node, nir.LIF)
    assert np.ptp(node.v_leak[0]) > 0
    neurons = floats.decode(made).by_name["a"].neurons
    assert np.unique(neurons.step).tolist() == [{"IF": 0, "LIF": 0.5, "Threshold": 1}[kind]]
    keep = neurons.keep
    assert np.unique(keep).tolist() == [{"IF": 1, "LIF": 0.5, "Threshold": 0}[kind]]


def test_a_bias_through_a_current_that_nothing_but_single_weights_feeds():
    """It becomes a layer of weights, because a Scale has no bias."""
    zero = np.zeros(IMAGE)
    cuba = nir.CubaLIF(
        tau_syn=zero + 2e-4, tau_mem=zero + 4e-4, r=zero + 4, v_leak=zero, v_reset=zero,
        v_threshold=zero + 1, w_in=zero + 2,
    )  # fmt: skip
    bn = G.BatchNorm(IMAGE, IMAGE, np.ones(2), np.full(2, 0.2), np.zeros(2), np.ones(2), 0.0)
    nodes = {"c1": conv(2, 2), "a": lif(IMAGE, 0.7), "bn": bn, "b": cuba}
    made = nir_graph.to_float(images(nodes, "in c1 a bn b out"), nir_graph.Options())
    spelled = nir.Conv2d(None, np.ones((2, 1, 1, 1)), 1, 0, 1, 2, np.full(2, 0.2))
    by_hand = images(nodes | {"bn": spelled}, "in c1 a bn b out")
    raster = (np.random.default_rng(5).random((6, 9, *IMAGE)) < 0.4).astype(np.uint8)
    expected = nir_interpreter.run(by_hand, raster)[0]["b"]
    assert 0.05 < expected.mean() < 0.95
    np.testing.assert_array_equal(float_exec.run(made, raster)["b"], expected)


def test_a_pool_that_is_late():
    pool = nir.SumPool2d(np.array([2, 2]), np.array([2, 2]), np.array([0, 0]))
    nodes = {
        "c1": conv(2, 2), "a": lif((2, 4, 4), 1.0), "d": late((2, 4, 4), 2), "p": pool,
        "b": nir.Threshold(np.full((2, 2, 2), 0.5)),
    }  # fmt: skip
    given = graph(nodes, "in c1 a d p b out", inputs=(2, 4, 4), outputs=(2, 2, 2))
    made = same(given, (2, 4, 4))
    assert ways(made, "b") == [("a", "weights", 2)]


def test_paths_that_multiply_are_refused():
    """Each step is two maps that are not one; in a row they are ever more."""
    nodes = {"c0": conv(2, 2), "a": lif(IMAGE, 0.7), "b": lif(IMAGE)}
    edges, before = ["in c0 a"], "a"
    for i in range(8):
        nodes |= {f"c{i}x": conv(2, 2, i, 1), f"d{i}": late(IMAGE, 2**i)}
        nodes[f"s{i}"] = nir.Scale(np.ones(IMAGE))
        edges += [f"{before} c{i}x s{i}", f"{before} d{i} s{i}"]
        before = f"s{i}"
    text = refused(images(nodes, *edges, f"{before} b out"))
    assert "paths, more than 50" in text


@pytest.mark.parametrize("chip", ["ideal", "loihi1", "loihi2"])
def test_recurrent_neurons_with_biases_through_their_currents(chip):
    """The structure of the NIR paper's network for braille, 12-38-7, all layers with a bias."""
    given, raster = braille(biases=True)
    lowered = stl_deploy.from_nir(given, timesteps=raster.shape[1])
    network = stl_deploy.quantize(lowered, chip)
    sources = [name for name in network.by_name if not network.into(name)]
    assert len(sources) == 2  # a population for each bias, which fires in every step
    want = float_exec.run(lowered, raster)
    plain = float_exec.run(stl_deploy.from_nir(braille()[0], timesteps=raster.shape[1]), raster)
    got = stl_deploy.simulate(network, raster).layers
    alone = forced.run(network, raster, want).layers
    for name, spikes in want.items():
        assert 0.02 < spikes.mean() < 0.6
        assert (spikes != plain[name]).mean() > 0.02
        assert (alone[name].spikes != spikes).mean() < 0.02
        assert not got[name].overflow.any()
    assert all(got[name].spikes.all() for name in sources)
