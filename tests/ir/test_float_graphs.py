"""Float networks that branch: decoded from NIR's edges, and run as their equations say."""

from __future__ import annotations

import nir
import numpy as np
import pytest

from stl_deploy.errors import LoweringError
from stl_deploy.ir import cut, execute, floats
from stl_deploy.ir import nir_graph as G

RNG = np.random.default_rng(7)
N, T, SIZE = 5, 9, 6


def lif(size=SIZE, threshold=0.8):
    return G.lif(np.full(size, threshold), tau=2e-4, r=2.0)


def linear(scale=0.6, bias=False):
    weight = RNG.normal(0.2, scale, (SIZE, SIZE))
    return nir.Affine(weight=weight, bias=RNG.normal(0, 0.3, SIZE)) if bias else nir.Linear(weight)


def built(nodes, edges, size=SIZE):
    every = {
        "input": nir.Input({"input": np.array([size])}),
        **nodes,
        "output": nir.Output({"output": np.array([SIZE])}),
    }
    meta = G.FloatMeta(timesteps=T, classes=SIZE, population=1).text()
    pairs = [tuple(edge.split(">")) for edge in edges.split()]
    return nir.NIRGraph(every, pairs, metadata={G.KEY: meta}, type_check=False)


def delay(steps, size=SIZE):
    return nir.Delay(np.full(size, steps * G.DT))


def raster():
    return (RNG.random((N, T, SIZE)) < 0.4).astype(np.uint8)


def stepped(x, rule):
    """Run ``rule(t, fired, fire)`` for each step; ``fire(name, sum)`` steps the neurons of a name."""
    v, fired = {}, {"input": np.zeros((T, N, SIZE))}
    fired["input"][:] = np.moveaxis(x, 1, 0)

    def fire(t, name, total):
        v[name] = 0.5 * v.get(name, 0.0) + total
        spikes = v[name] > 0.8
        v[name] = np.where(spikes, 0, v[name])
        fired.setdefault(name, np.zeros((T, N, SIZE)))[t] = spikes

    for t in range(T):
        rule(t, fired, fire)
    return {name: np.moveaxis(s, 0, 1) for name, s in fired.items() if name != "input"}


def late(fired, name, t, steps):
    return fired[name][t - steps] if t >= steps and name in fired else np.zeros((N, SIZE))


def same(graph, x, rule):
    got, want = execute.run(graph, x), stepped(x, rule)
    assert got.keys() == want.keys()
    for name, spikes in want.items():
        np.testing.assert_array_equal(got[name], spikes)
        assert 0.02 < spikes.mean() < 0.9
    return got


def test_a_residual_add_and_a_skip_without_weights():
    w1, w2, w3 = linear(bias=True), linear(), linear()
    nodes = {"w1": w1, "l1": lif(), "w2": w2, "l2": lif(), "w3": w3, "l3": lif()}
    graph = built(nodes, "input>w1 w1>l1 l1>w2 w2>l2 l2>w3 w3>l3 l1>l3 l3>output")
    network = floats.decode(graph)
    assert [(c.name, c.way.kind) for c in network.into("l3")] == [
        ("w3", "weights"),
        ("l1_l3", "one_to_one"),
    ]
    assert network.output == "l3"

    def rule(t, fired, fire):
        fire(t, "l1", fired["input"][t] @ w1.weight.T + w1.bias)
        fire(t, "l2", fired["l1"][t] @ w2.weight.T)
        fire(t, "l3", fired["l2"][t] @ w3.weight.T + fired["l1"][t])

    same(graph, raster(), rule)


def test_a_sum_of_spikes_through_one_node_has_its_bias_once():
    w1, w2, w3 = linear(bias=True), linear(), linear(bias=True)
    nodes = {"w1": w1, "l1": lif(), "w2": w2, "l2": lif(), "w3": w3, "l3": lif()}
    graph = built(nodes, "input>w1 w1>l1 l1>w2 w2>l2 l2>w3 l1>w3 w3>l3 l3>output")
    network = floats.decode(graph)
    first, second = network.into("l3")
    assert (first.name, first.source, second.name, second.source) == ("w3", "l2", "w3", "l1")
    assert first.way is second.way
    np.testing.assert_array_equal(network.by_name["l3"].bias, w3.bias)

    def rule(t, fired, fire):
        fire(t, "l1", fired["input"][t] @ w1.weight.T + w1.bias)
        fire(t, "l2", fired["l1"][t] @ w2.weight.T)
        fire(t, "l3", (fired["l2"][t] + fired["l1"][t]) @ w3.weight.T + w3.bias)

    same(graph, raster(), rule)


def test_delays_and_factors():
    w1, w2 = linear(), linear()
    factor = nir.Scale(scale=RNG.uniform(0.5, 1.5, SIZE))
    nodes = {"w1": w1, "l1": lif(), "late": delay(2), "w2": w2, "soon": delay(1), "s": factor}
    nodes["l2"] = lif()
    graph = built(nodes, "input>w1 w1>l1 l1>late late>w2 w2>l2 input>soon soon>s s>l2 l2>output")
    assert {c.name: c.delay for c in floats.decode(graph).connections} == {"w1": 0, "w2": 2, "s": 1}

    def rule(t, fired, fire):
        fire(t, "l1", fired["input"][t] @ w1.weight.T)
        total = late(fired, "l1", t, 2) @ w2.weight.T
        fire(t, "l2", total + late(fired, "input", t, 1) * factor.scale)

    same(graph, raster(), rule)


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_what_neurons_send_themselves_arrives_in_the_next_step_at_the_earliest(steps):
    w1, own = linear(0.8), linear(0.3)
    nodes = {"w1": w1, "l1": lif(), "own": own, "late": delay(steps)}
    graph = built(nodes, "input>w1 w1>l1 l1>late late>own own>l1 l1>output")
    assert floats.decode(graph).into("l1")[1].delay == max(steps, 1)

    def rule(t, fired, fire):
        total = fired["input"][t] @ w1.weight.T
        fire(t, "l1", total + late(fired, "l1", t, max(steps, 1)) @ own.weight.T)

    same(graph, raster(), rule)


def test_two_populations_in_a_loop():
    w1, w2, back = linear(), linear(), linear(0.4)
    nodes = {"w1": w1, "l2": lif(), "w2": w2, "back": back, "late": delay(1), "l1": lif()}
    loop = "input>w1 w1>l1 l1>w2 w2>l2 l2>{} back>l1 l2>output"
    graph = built(nodes, loop.format("late late>back"))
    assert [p.name for p in floats.decode(graph).populations] == ["l1", "l2"]
    assert [[p.name for p in part] for part in floats.decode(graph).parts] == [["l1", "l2"]]

    def rule(t, fired, fire):
        fire(t, "l1", fired["input"][t] @ w1.weight.T + late(fired, "l2", t, 1) @ back.weight.T)
        fire(t, "l2", fired["l1"][t] @ w2.weight.T)

    same(graph, raster(), rule)
    nodes.pop("late")
    with pytest.raises(LoweringError, match="l2, l1: is a loop without a delay") as caught:
        floats.decode(built(nodes, loop.format("back")))
    assert "of 1 step for --chip ideal, of 2 for other chips" in str(caught.value)


def test_two_inputs_by_name():
    w1, w2 = linear(), linear()
    nodes = {"side": nir.Input({"input": np.array([SIZE])}), "w1": w1, "w2": w2, "l1": lif()}
    graph = built(nodes, "input>w1 w1>l1 side>w2 w2>l1 l1>output")
    x, y = raster(), raster()
    got = execute.run(graph, {"input": x, "side": y})["l1"]

    def rule(t, fired, fire):
        fire(t, "l1", x[:, t] @ w1.weight.T + y[:, t] @ w2.weight.T)

    np.testing.assert_array_equal(got, stepped(x, rule)["l1"])


def test_a_graph_that_is_cut_hears_what_is_given():
    w1, w2, own = linear(), linear(), linear(0.3)
    nodes = {"w1": w1, "l1": lif(), "own": own, "w2": w2, "l2": lif()}
    graph = built(nodes, "input>w1 w1>l1 l1>own own>l1 l1>w2 w2>l2 l2>output")
    x, other = raster(), raster()
    network = floats.decode(graph)
    forced = execute.run(network.cut(["l1"]), cut.rasters(network.inputs, x, {"l1": other}))

    def rule(t, fired, fire):
        back = other[:, t - 1] @ own.weight.T if t else 0
        fire(t, "l1", x[:, t] @ w1.weight.T + back)
        fire(t, "l2", other[:, t] @ w2.weight.T)

    want = stepped(x, rule)
    for name, spikes in execute.run(graph, x).items():
        np.testing.assert_array_equal(forced[name], want[name])
        assert (spikes != forced[name]).any()


@pytest.mark.parametrize(
    ("nodes", "edges", "what"),
    [
        ({"w": linear(), "l": lif()}, "input>w w>l", "output: no edge leads to this node"),
        ({"w": linear(), "l": lif()}, "input>w w>l w>output", "w: is followed by more weights"),
        ({"l": lif()}, "input>l l>x l>output", "x: an edge names this node"),
        (
            {"w": nir.Linear(np.ones((SIZE - 1, SIZE))), "l": lif()},
            "input>w w>l l>output",
            r"l: LIF does not fit an input of shape \(5,\)",
        ),
        (
            {"w": nir.Linear(np.ones((SIZE - 1, SIZE))), "l": lif()},
            "input>w w>l input>l l>output",
            r"l: adds up values of the shapes \(5,\) and \(6,\)",
        ),
        ({"w": linear(), "l": lif()}, "input>l w>w l>output", "w: is in a loop without neurons"),
        (
            {"d": nir.Delay(np.arange(SIZE) * G.DT), "l": lif()},
            "input>d d>l l>output",
            "d: delays of 0 to 5 steps",
        ),
    ],
)
def test_what_has_no_place_is_named(nodes, edges, what):
    with pytest.raises(LoweringError, match=what):
        floats.decode(built(nodes, edges))


def test_magnitudes_add_up_over_what_arrives():
    w1, w2 = linear(bias=True), linear()
    nodes = {"w1": w1, "l1": lif(), "w2": w2, "s": nir.Scale(np.full(SIZE, -2.0)), "l2": lif()}
    graph = built(nodes, "input>w1 w1>l1 l1>w2 w2>l2 l1>s s>l2 input>l2 l2>output")
    got = floats.magnitudes(graph)
    np.testing.assert_allclose(got["l1"], abs(w1.weight).sum(axis=1) + abs(w1.bias))
    np.testing.assert_allclose(got["l2"], abs(w2.weight).sum(axis=1) + 2 + 1)
