"""NIR graphs of other tools, one thing at a time: what is lowered, and what is refused.

The spikes expected are those of ``nir_interpreter.py``, which walks the graph as it is; random graphs are
compared in ``test_nir_interpreter.py``.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import nir
import numpy as np
import pytest
import torch

import stl_deploy
from stl_deploy.commands import export
from stl_deploy.errors import InputError, LoweringError, UncheckedWarning
from stl_deploy.formats import integer_nir as nir_file
from stl_deploy.formats import nir_io
from stl_deploy.formats.raster import Raster
from stl_deploy.importers.nir import graph as nir_graph
from stl_deploy.ir import execute as float_exec
from stl_deploy.ir import nir_graph as G
from stl_deploy.verify import against_float as comparison
from tests.build import nir_interpreter
from tests.build.nets import random_net
from tests.build.nir_graphs import braille, chain, lif


def plainly(graph, raster):
    """Spikes by population, as the interpreter reads the graph."""
    return nir_interpreter.run(graph, raster)[0]


def weights(out=3, inputs=4, seed=0):
    return np.random.default_rng(seed).normal(0, 0.5, (out, inputs))


def problems(graph, **options):
    with pytest.raises((LoweringError, InputError)) as error:
        nir_graph.to_float(graph, nir_graph.Options(**options))
    return error.value


def edges_of(graph, *more, nodes=()):
    graph.nodes |= dict(nodes)
    graph.edges = [*graph.edges, *more]
    return graph


@pytest.mark.parametrize(
    ("graph", "where", "text"),
    [
        (chain(nir.Linear(weights()), lif(3, tau=5e-5)), "n1", "decay 1 - dt/tau is -1, below 0"),
        (
            chain(nir.Linear(weights()), nir.Delay(np.array([3e-4, 3e-4, 2e-4])), lif(3)),
            "n1",
            "a delay of 2 to 3 steps of 0.0001 s",
        ),
        (
            chain(nir.Linear(weights()), nir.Delay(np.full(3, 2.5e-4)), lif(3)),
            "n1",
            "a delay of 2.5 steps of 0.0001 s; all values of a Delay must wait the same whole number",
        ),
        (
            chain(nir.Linear(weights()), nir.Delay(np.full(3, 1e9)), lif(3)),
            "n1",
            "a delay of 1e+13 steps is not in 0..",
        ),
        (
            chain(nir.Affine(weights(), np.ones(3)), nir.Delay(np.full(3, 3e-4)), lif(3)),
            "n1",
            "delays a bias too, which is there from the first step on",
        ),
        (
            edges_of(
                chain(nir.Linear(weights()), lif(3)),
                ("n1", "d"),
                ("d", "e"),
                ("e", "d"),
                ("e", "n1"),
                nodes={"d": nir.Delay(np.full(3, 1e-4)), "e": nir.Scale(np.ones(3))},
            ),
            "d, e",
            "is in a loop without neurons",
        ),
    ],
)
def test_what_cannot_be_lowered_is_named(graph, where, text):
    error = problems(graph)
    assert isinstance(error, LoweringError)
    assert ", ".join(p.where for p in error.problems) == where
    assert text in error.problems[0].what


def test_nodes_that_hold_tensors_of_torch():
    """As sinabs' to_nir and snnTorch's export make them in memory."""
    made = chain(nir.Linear(weights()), lif(3))
    want = stl_deploy.from_nir(made, timesteps=3)
    for node in made.nodes.values():
        for key, value in vars(node).items():
            if isinstance(value, np.ndarray):
                setattr(node, key, torch.tensor(value))
    got = stl_deploy.from_nir(made, timesteps=3)
    raster = (np.random.default_rng(0).random((5, 3, 4)) < 0.5).astype(np.uint8)
    for name, sent in float_exec.run(want, raster).items():
        np.testing.assert_array_equal(float_exec.run(got, raster)[name], sent)
    assert isinstance(made.nodes["n0"].weight, torch.Tensor)


def test_a_float_graph_of_ours_in_memory_is_not_read_again():
    """Its levels and T would be lost."""
    made = stl_deploy.from_nir(chain(nir.Linear(weights()), lif(3)), timesteps=50, levels=255)
    with pytest.raises(InputError, match="is a graph of stl-deploy already"):
        stl_deploy.from_nir(made)


def test_all_problems_at_once():
    graph = chain(
        nir.Linear(weights()), lif(3, tau=2e-5), nir.Linear(weights(3, 3)), lif(3, tau=1e-5)
    )
    assert [p.where for p in problems(graph).problems] == ["n1", "n3"]


BACK, SKIP, SQUARE = nir.Linear(weights(3, 3)), nir.Linear(weights()), nir.Linear(weights(4))
HUGE_POOL = nir.SumPool2d(np.array([10**9, 2]), np.array([1, 1]), np.array([0, 0]))
NO_WINDOW = nir.AvgPool2d(np.array([0, 0]), np.array([1, 1]), np.array([0, 0]))
HUGE_RIM = nir.Conv2d(None, np.ones((1, 1, 3, 3)), 1, 10**5, 1, 1, np.zeros(1))


def two_layers():
    return chain(nir.Linear(weights()), lif(3), nir.Linear(weights(3, 3)), lif(3))


@pytest.mark.parametrize(
    ("graph", "text"),
    [
        (edges_of(two_layers(), ("n3", "m"), ("m", "n1"), nodes={"m": BACK}), "is a loop without a delay"),
        (edges_of(chain(SQUARE, lif(4), outputs=(4,)), ("n0", "n0")), "a cycle without neurons"),
        (edges_of(two_layers(), ("n3", "nowhere")), "there is none"),
        (edges_of(two_layers(), ("n1", "dead"), nodes={"dead": lif(3)}), "dead: leads to no output"),
        (edges_of(two_layers(), nodes={"alone": lif(3)}), "not reached from an input"),
        (edges_of(two_layers(), nodes={"in2": nir.Input({"input": np.array([4])})}), "in2: leads to no"),
        (chain(nir.Linear(weights(3, 5)), lif(3)), "weights of shape (3, 5) for an input of shape (4,)"),
        (chain(nir.Linear(weights() * np.nan), lif(3)), "NaN or infinite"),
        (chain(nir.Linear(weights() * (1 + 2j)), lif(3)), "n0.weight: is complex"),
        (chain(nir.Linear(weights()), lif(3, tau=-1.0)), "tau is not above zero"),
        (chain(nir.Linear(weights()), lif(2)), "has shape (2,), its neurons (3,)"),
        (chain(nir.Linear(weights()), lif(3), inputs=(10**6, 10**6)), "values are accepted"),
        (chain(HUGE_POOL, inputs=(1, 4, 4)), "small whole number"),
        (chain(HUGE_RIM, inputs=(1, 4, 4)), "more than"),
        (chain(NO_WINDOW, inputs=(1, 4, 4)), "kernel_size: [0 0] is below 1"),
        (chain(nir.Linear(weights()), lif(3), outputs=(7,)), "declared as (7,) and gets (3,)"),
        (chain(nir.Linear(1e200 * weights()), nir.Linear(1e200 * weights(3, 3)), lif(3)), "multiplied out"),
        (chain(nir.Linear(1e200 * weights()), nir.Scale(np.full(3, 1e200)), lif(3)), "multiplied out"),
        (chain(nir.Linear(weights()), nir.Linear(weights(3, 3))), "graph: has no neurons"),
    ],
)  # fmt: skip
def test_broken_and_unsupported_graphs_are_refused(graph, text):
    assert text in str(problems(graph))


def named(name):
    """A graph whose weights have that name."""
    graph = chain(nir.Linear(weights()), lif(3))
    graph.nodes[name] = graph.nodes.pop("n0")
    graph.edges = [("in", name), (name, "n1"), ("n1", "out")]
    return graph


def test_names_that_no_file_can_hold(tmp_path):
    for name in ("a/fc", "/", "", ".", "a\0"):
        error = problems(named(name))
        assert isinstance(error, InputError)
        assert [p.where for p in error.problems] == [name]
        assert "none that a NIR file can hold" in error.problems[0].what
        assert "rename" in error.problems[0].remedy
        with pytest.raises(InputError, match="none that a NIR file can hold"):
            nir_io.write(named(name), tmp_path / "no.nir")
        assert not (tmp_path / "no.nir").exists()
    assert [p.where for p in problems(chain(named("a/fc"))).problems] == ["n0.a/fc"]


@pytest.mark.parametrize("names", [["a/fc"], ["a/b/fc"], ["a/fc", "b/fc"]])
def test_files_with_slashes_in_names(names, tmp_path, capsys):
    """Such a file keeps folders in folders; nir alone says KeyError."""
    graph = chain(*[nir.Linear(weights(4)) for _ in names], lif(4), outputs=(4,))
    for i, name in enumerate(names):
        graph.nodes[name] = graph.nodes.pop(f"n{i}")
        graph.edges = [tuple(name if x == f"n{i}" else x for x in edge) for edge in graph.edges]
    nir.write(tmp_path / "net.nir", graph)
    with pytest.raises(InputError) as error:
        stl_deploy.from_nir(tmp_path / "net.nir")
    found = [p.where.rpartition(": ")[2] for p in error.value.problems]
    assert found == ["/".join(name.split("/")[:2]) for name in names]
    assert all("rename the node without '/'" in p.remedy for p in error.value.problems)


def test_an_edge_that_stands_twice_counts_twice():
    graph = chain(nir.Linear(weights(20)), lif(20, np.linspace(0.1, 2, 20)), outputs=(20,))
    twice = edges_of(chain(*list(graph.nodes.values())[1:-1], outputs=(20,)), ("n0", "n1"))
    raster = (np.random.default_rng(0).random((30, 4, 4)) < 0.5).astype(np.uint8)
    expected = plainly(twice, raster)["n1"]
    assert (expected != plainly(graph, raster)["n1"]).any()
    lowered = nir_graph.to_float(twice, nir_graph.Options())
    np.testing.assert_array_equal(float_exec.run(lowered, raster)["n1"], expected)


def test_a_scale_of_all_outputs_alike_changes_no_prediction():
    graph = chain(nir.Linear(weights()), lif(3), nir.Scale(np.full(3, 0.25)))
    assert list(nir_graph.to_float(graph, nir_graph.Options()).nodes)[1:-1] == ["n0", "n1"]


def test_deeply_nested_graphs_are_refused():
    graph = chain(nir.Linear(weights()), lif(3))
    for _ in range(20):
        ends = {
            "input": nir.Input({"input": np.array([4])}),
            "output": nir.Output({"output": np.array([3])}),
        }
        edges = [("input", "g"), ("g", "output")]
        graph = nir.NIRGraph({**ends, "g": graph}, edges, type_check=False)
    assert "deeper than" in str(problems(graph))


# A reset that is not stated


def resetting(first=None, second=None, **fields):
    """Two populations, with what their metadata say of the reset."""
    graph = chain(
        nir.Linear(weights(5)), lif(5, **fields), nir.Linear(weights(3, 5)), lif(3, **fields)
    )
    for name, word in (("n1", first), ("n3", second)):
        if word is not None:
            graph.nodes[name].metadata["reset"] = word
    return graph


@pytest.mark.parametrize(
    ("graph", "names"),
    [
        (resetting(), "n1, n3"),
        (resetting("zero"), "n3"),
        (resetting(second="subtract"), "n1"),
        (resetting("zero", "subtract"), None),
        (resetting("zero", "zero"), None),
        (resetting(tau=G.DT), None),  # v is forgotten in every step, with or without a spike
        (chain(nir.Linear(weights()), nir.Threshold(np.ones(3))), None),
    ],
)
@pytest.mark.parametrize("stored", [False, True])
def test_a_reset_that_is_not_stated_is_noted(graph, names, stored, tmp_path):
    source = graph
    if stored:
        source = tmp_path / "m.nir"
        nir_io.write(graph, source)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made = stl_deploy.from_nir(source)
    (text,) = [str(w.message) for w in caught if w.category is UncheckedWarning]
    assert text.startswith(
        f"{'m.nir' if stored else 'graph'}: assumed, as the model does not say: "
    )
    assert "T (4)" in text
    assert "timesteps=" in text
    said = None if names is None else f"reset of {names} (zero, same step)"
    assert ("reset of" in text, "snnTorch" in text) == (said is not None, said is not None)
    assert said is None or said in text
    assert all(Path(w.filename) == Path(__file__) for w in caught)
    open_ = [r.population for r in stl_deploy.read_as(made) if "reset" in r.assumed]
    assert open_ == ([] if names is None else names.split(", "))


def test_nothing_is_said_where_all_that_matters_is_stated():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stl_deploy.from_nir(resetting("zero", "subtract"), timesteps=5)
        stl_deploy.from_nir(resetting(), timesteps=5, reset="subtract")


def test_a_note_names_few_of_many_populations_also_inside_graphs():
    parts = [node for _ in range(6) for node in (nir.Linear(weights(4)), lif(4))]
    inner = chain(*parts, outputs=(4,))
    graph = chain(inner, *parts, outputs=(4,))
    named = [f"n0.n{i}" for i in (1, 3, 5, 7, 9, 11)] + ["n2", "n4"]
    with pytest.warns(UncheckedWarning, match=f"reset of {', '.join(named)} and 4 more "):
        stl_deploy.from_nir(graph)


def test_how_it_was_read_goes_wherever_the_network_goes(tmp_path, capsys, monkeypatch):
    from stl_deploy.commands import parity

    monkeypatch.chdir(tmp_path)
    raster = np.random.default_rng(0).integers(0, 2, (4, 6, 4)).astype(np.uint8)
    np.savez("in.npz", spikes=raster)
    nir_io.write(resetting(second="subtract"), Path("net.nir"))
    run(export.export, "net.nir", "--target", "nir", "--eval", "in.npz", "-o", "out")
    said = capsys.readouterr()
    assert "How net.nir was read" in said.out
    note = "reset of n1 (zero, same step), dt (0.0001 s), spikes per step (1)"
    assert f"assumed, as the model does not say: {note}" in said.err
    assert "otherwise give --reset or --dt; snnTorch and sinabs subtract by default" in said.err
    network = nir_file.read_network(Path("out/model.nir"))
    first, second = stl_deploy.read_as(network)
    assert (first.reset, first.when, first.timesteps) == ("zero", "same step", 6)
    assert first.origin == {
        **{"reset": "assumed", "when": "assumed", "dt": "assumed"},
        **{"timesteps": "raster", "spikes": "assumed"},
    }
    assert (second.reset, second.origin["reset"]) == ("subtract", "file")
    stored = [first.model_dump(), second.model_dump()]
    assert json.loads(Path("out/manifest.json").read_text())["read_as"] == stored
    report = Path("out/report.html").read_text()
    assert "How the model was read" in report
    assert note in report
    words = "out/model.nir", "--input", "in.npz", "--json"
    for model in ("net.nir", "out/model.float.nir"):
        run(parity.parity, model, *words)
        found = json.loads(capsys.readouterr().out)
        assert found["read_as"] == stored
        assert found["diagnostics"] == []
    # As docs/import-nir.md says: state it, and write the file again.
    graph = nir.read("net.nir")
    for node in graph.nodes.values():
        if isinstance(node, nir.LIF):
            node.metadata["reset"] = "zero"
    nir.write("stated.nir", graph)
    run(export.export, "stated.nir", "--target", "nir", "-o", "again", "--json")
    found = json.loads(capsys.readouterr().out)
    assert {r["origin"]["reset"] for r in found["read_as"]} == {"file"}


def test_a_reset_can_be_given_where_the_file_leaves_it_open():
    """The same network as where the file states it; the graph that was given stays as it was."""
    low = {"v_threshold": 0.1, "tau": 1e-3, "r": 10.0}
    source = resetting("zero", **low)
    given = stl_deploy.from_nir(source, timesteps=6, reset="subtract")
    stated = stl_deploy.from_nir(resetting("zero", "subtract", **low), timesteps=6)
    raster = (np.random.default_rng(0).random((20, 6, 4)) < 0.6).astype(np.uint8)
    got, want = float_exec.run(given, raster), float_exec.run(stated, raster)
    other = float_exec.run(
        stl_deploy.from_nir(resetting("zero", "zero", **low), timesteps=6), raster
    )
    for name, spikes in want.items():
        np.testing.assert_array_equal(got[name], spikes)
    assert (other["n3"] != want["n3"]).any()
    assert "reset" not in source.nodes["n3"].metadata
    assert [r.origin["reset"] for r in stl_deploy.read_as(given)] == ["file", "option"]
    for graph in (resetting("zero", "subtract"), resetting(tau=G.DT)):
        with pytest.raises(InputError, match=r"--reset: subtract, but the file states .*omit it"):
            stl_deploy.from_nir(graph, reset="subtract")
    with pytest.raises(InputError, match="'none' is not a reset that can be chosen"):
        stl_deploy.from_nir(source, reset="none")


def test_time_step():
    """The same decays with another dt; and the other dt means other decays."""
    slow = chain(nir.Linear(weights()), lif(3, tau=2e-3, r=2.0))
    made = stl_deploy.from_nir(slow, dt=1e-3).nodes["n1"]
    plain = stl_deploy.from_nir(chain(nir.Linear(weights()), lif(3))).nodes["n1"]
    np.testing.assert_allclose(made.tau, plain.tau, rtol=1e-15)
    np.testing.assert_array_equal(made.r, plain.r)
    assert stl_deploy.from_nir(slow).nodes["n1"].tau[0] == 2e-3


def test_sequences_are_images_of_one_row():
    rng = np.random.default_rng(1)
    conv = nir.Conv1d(9, rng.normal(0, 0.6, (3, 2, 3)), 2, 1, 1, 1, rng.normal(0, 0.1, 3))
    nodes = conv, lif((3, 5), 0.3), nir.Flatten({"input": np.array([3, 5])}, 0, -1)
    graph = chain(*nodes, nir.Linear(weights(4, 15)), lif(4), inputs=(2, 9), outputs=(4,))
    made = stl_deploy.from_nir(graph, timesteps=6)
    raster = (rng.random((5, 6, 2, 9)) < 0.4).astype(np.uint8)
    spikes = float_exec.run(made, raster.reshape(5, 6, 2, 1, 9))
    expected = plainly(graph, raster)
    assert 0.05 < expected["n1"].mean() < 0.9
    for name, got in spikes.items():
        np.testing.assert_array_equal(got.reshape(expected[name].shape), expected[name])


def test_portable_pooling_is_an_or_pool():
    """SumPool2d -> LIF that fires whenever an input does is max pooling, not weights."""
    shape = (2, 4, 4)
    pool = nir.SumPool2d(np.array([2, 2]), np.array([2, 2]), np.array([0, 0]))
    conv = nir.Conv2d((4, 4), np.ones((2, 2, 1, 1)), 1, 0, 1, 1, np.zeros(2))
    graph = chain(conv, lif(shape), pool, lif((2, 2, 2), 0.9), inputs=shape, outputs=(2, 2, 2))
    assert [type(n).__name__ for n in stl_deploy.from_nir(graph).nodes.values()][3:-1] == [
        "SumPool2d",
        "Threshold",
    ]
    high = chain(conv, lif(shape), pool, lif((2, 2, 2), 1.1), inputs=shape, outputs=(2, 2, 2))
    assert isinstance(stl_deploy.from_nir(high).nodes["n2"], nir.Conv2d)


def conv(weight, plane):
    weight = np.asarray(weight, float)
    return nir.Conv2d(plane, weight, (1, 1), (0, 0), 1, 1, np.zeros(len(weight)))


def flatten(*shape):
    return nir.Flatten({"input": np.array(shape)}, 0, -1)


def two_neurons(where):
    """Behind a convolution: a neuron that any input fires, and one scaled by 8 with a weight back."""
    shape = (2,) if "Flatten" in where else (1, 1, 2)
    one, scale = np.ones(shape), np.reshape([1.0, 8.0], shape)
    back = np.reshape([0.0, -7.5], shape)
    threshold = np.reshape([0.5, 6.0], shape)
    by_r = where.startswith("r ")
    front = {"conv": conv(np.full((1, 1, 1, 1), 8.0 if where == "the way back" else 1.0), (1, 2))}
    if where == "a Scale, then a Flatten":
        front |= {"scale": nir.Scale(scale.reshape(1, 1, 2)), "flat": flatten(1, 1, 2)}
    elif "Flatten" in where:
        front |= {"flat": flatten(1, 1, 2)}
    if where in ("a Scale", "a Flatten, then a Scale"):
        front |= {"scale": nir.Scale(scale)}
    front["lif"] = nir.IF(r=(scale if by_r else one) / G.DT, v_threshold=threshold, v_reset=0 * one)
    ways = {"rec": nir.Scale(back / scale if by_r else back)}
    if where == "the way back":
        ways = {"rec_conv": conv(np.ones((1, 1, 1, 1)), (1, 2)), **ways}
    ends = nir.Input({"input": np.array([1, 1, 2])}), nir.Output({"output": np.array(shape)})
    edges = [*pairwise(["in", *front]), *pairwise(["lif", *ways, "lif"]), ("lif", "out")]
    return nir.NIRGraph({"in": ends[0], **front, **ways, "out": ends[1]}, edges, type_check=False)


@pytest.mark.parametrize(
    "where",
    [
        "a Scale",
        "a Scale, then a Flatten",
        "a Flatten, then a Scale",
        "r of the neurons",
        "r behind a Flatten",
        "the way back",
    ],
)
def test_a_scale_per_neuron_reaches_recurrent_weights(where):
    """By hand: v of the second neuron grows by 8, less 7.5 after a spike, and it fires above 6."""
    raster = np.ones((1, 4, 1, 1, 2), np.uint8)
    right = [[1, 1], [1, 0], [1, 1], [1, 0]]
    graph = two_neurons(where)
    assert plainly(graph, raster)["lif"].reshape(4, 2).tolist() == right
    made = stl_deploy.from_nir(graph, timesteps=4)
    assert float_exec.run(made, raster)["lif"].reshape(4, 2).tolist() == right
    network = stl_deploy.quantize(made, "loihi2", weight_precision="2x8")
    trace = stl_deploy.simulate(network, raster)
    assert trace.layers["lif"].spikes.reshape(4, 2).tolist() == right


@pytest.mark.parametrize("front", ["Conv2d", "SumPool2d", "AvgPool2d and Conv2d"])
@pytest.mark.parametrize("reset", ["zero", "subtract"])
def test_recurrent_neurons_behind_a_flatten(front, reset):
    """They are flat already: the convolution becomes single weights."""
    rng = np.random.default_rng(3)
    pool = "SumPool2d" if front == "SumPool2d" else "AvgPool2d"
    nodes = [getattr(nir, pool)(np.array([2, 2]), np.array([2, 2]), np.array([0, 0]))]
    if front == "Conv2d":
        nodes = [conv(rng.normal(0, 1, (2, 2, 3, 3)), (4, 4))]
    elif front != "SumPool2d":
        nodes.append(conv(rng.normal(0, 1.5, (2, 2, 1, 1)), (2, 2)))
    node = lif(8, rng.uniform(0.4, 0.8, 8))
    node.metadata["reset"] = reset
    graph = chain(*nodes, flatten(2, 2, 2), node, inputs=(2, 4, 4), outputs=(8,))
    name = f"n{len(nodes) + 1}"
    rec = nir.Linear(rng.normal(0, 0.5, (8, 8)))
    edges_of(graph, (name, "rec"), ("rec", name), nodes={"rec": rec})
    raster = (rng.random((20, 8, 2, 4, 4)) < 0.4).astype(np.uint8)
    expected = plainly(graph, raster)[name]
    assert 0.1 < expected.mean() < 0.9
    made = stl_deploy.from_nir(graph, timesteps=8)
    np.testing.assert_array_equal(float_exec.run(made, raster)[name], expected)


ALIKE = {
    "Threshold": nir.Threshold(np.full(8, 0.9)),
    "IF": nir.IF(r=np.ones(8), v_threshold=np.full(8, 0.2), v_reset=np.zeros(8)),
    "LIF": lif(8, 0.9),
}


@pytest.mark.parametrize("kind", ALIKE)
@pytest.mark.parametrize("more", [False, True])
def test_an_or_pool_may_be_flattened_before_its_neurons(kind, more):
    pool = nir.SumPool2d(np.array([2, 2]), np.array([2, 2]), np.array([0, 0]))
    nodes = [pool, flatten(2, 2, 2), ALIKE[kind]]
    if more:
        nodes += [nir.Linear(weights(5, 8)), lif(5)]
    graph = chain(*nodes, inputs=(2, 4, 4), outputs=(5 if more else 8,))
    made = stl_deploy.from_nir(graph, timesteps=6)
    assert [type(n).__name__ for n in list(made.nodes.values())[1:3]] == [
        "SumPool2d",
        "Threshold",
    ]
    raster = (np.random.default_rng(4).random((9, 6, 2, 4, 4)) < 0.2).astype(np.uint8)
    expected = plainly(graph, raster)
    largest = raster.reshape(9, 6, 2, 2, 2, 2, 2).max(axis=(4, 6)).reshape(9, 6, 8)
    np.testing.assert_array_equal(expected["n2"], largest)
    spikes = float_exec.run(made, raster)
    trace = stl_deploy.simulate(stl_deploy.quantize(made, "loihi2"), raster)
    for name in expected:
        np.testing.assert_array_equal(spikes[name].reshape(expected[name].shape), expected[name])
    np.testing.assert_array_equal(trace.layers["n2"].spikes.reshape(largest.shape), largest)


def test_an_or_pool_of_averages_behind_neurons_that_were_laid_flat():
    """One spike of four is enough, although its weight of 1/4 is below the threshold 1/2."""
    pool = nir.AvgPool2d(np.array([2, 2]), np.array([2, 2]), np.array([0, 0]))
    shape = (1, 4, 4)
    graph = chain(
        lif(shape, 0.9),
        pool,
        nir.Threshold(np.full((1, 2, 2), 0.1)),
        inputs=shape,
        outputs=(1, 2, 2),
    )
    back = nir.Scale(np.full(shape, -0.5))
    edges_of(graph, ("n0", "rec"), ("rec", "n0"), nodes={"rec": back})
    raster = (np.random.default_rng(5).random((9, 6, *shape)) < 0.2).astype(np.uint8)
    expected, spikes = plainly(graph, raster), float_exec.run(stl_deploy.from_nir(graph), raster)
    assert 0.1 < expected["n2"].mean() < 0.9
    for name, found in expected.items():
        np.testing.assert_array_equal(spikes[name].reshape(found.shape), found)


@pytest.mark.parametrize("chip", ["ideal", "loihi2"])
def test_our_own_files_come_back(chip, tmp_path):
    """Without their metadata, as any other tool's: the same graph and the same integers."""
    net = random_net()
    graph = stl_deploy.from_torch(net)
    network = stl_deploy.quantize(graph, chip)
    said = {"timesteps": net.arch.timesteps, "classes": net.arch.classes}
    bare = nir.NIRGraph(graph.nodes, graph.edges, type_check=False)
    again = stl_deploy.quantize(stl_deploy.from_nir(bare, **said), chip)
    again, network = replace(again, read_as=()), replace(network, read_as=())
    for out, one in (("a", network), ("b", again)):
        nir_io.write(nir_file.to_nir(one), tmp_path / out)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    integers = nir_file.to_nir(network)
    bare = nir.NIRGraph(integers.nodes, integers.edges, type_check=False)
    other = stl_deploy.quantize(stl_deploy.from_nir(bare, **said), chip)
    for want, got in zip(network.populations, other.populations, strict=True):
        assert (got.name, got.kind) == (want.name, want.kind)
        for key in {"vth", "bias_mant", "dv", "du"} & vars(want.neurons).keys():
            values = getattr(got.neurons, key), getattr(want.neurons, key)
            np.testing.assert_array_equal(*values, key)
    for want, got in zip(network.connections, other.connections, strict=True):
        assert (got.key, got.exp) == (want.key, want.exp)
        np.testing.assert_array_equal(got.synapses.weight, want.synapses.weight)


def test_a_recurrent_network_with_currents_from_file_to_parity(tmp_path, capsys, monkeypatch):
    """stl-export, hw_sim and stl-parity on another tool's file; its float spikes are the plain reading's."""
    from stl_deploy.commands import hw_sim as cli
    from stl_deploy.commands import parity

    monkeypatch.chdir(tmp_path)
    graph, raster = braille()
    nir_io.write(graph, Path("braille.nir"))
    np.savez("in.npz", spikes=raster)
    run(
        export.export,
        "braille.nir",
        "--target",
        "loihi",
        "--calib",
        "in.npz",
        "-o",
        "out",
        "--json",
    )
    manifest = json.loads(capsys.readouterr().out)
    assert (manifest["timesteps"], manifest["chip"]) == (40, "loihi2")
    run(cli.simulate, "out/model.nir", "--input", "in.npz", "--out", "trace.npz", "--json")
    words = "braille.nir", "out/model.nir", "--input", "in.npz", "--max-mismatch-forced", "0.04"
    run(parity.parity, *words, "--json")
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["passed"]
    assert report["prediction_agreement"] > 0.8
    expected = plainly(graph, raster)
    made = float_exec.run(stl_deploy.from_nir(graph), raster)
    for name in ("lif1.lif", "lif2"):
        assert 0.02 < expected[name].mean() < 0.6
        np.testing.assert_array_equal(made[name], expected[name])
    # Integers are written again as they are, and the float graph gives the same ones.
    run(export.export, "out/model.nir", "--target", "nir", "-o", "again", "--json")
    said = "--target", "nir", "--chip", "loihi2", "--calib", "in.npz", "--json"
    run(export.export, "out/model.float.nir", *said, "-o", "third")
    first = Path("out/model.nir").read_bytes()
    assert first == Path("again/model.nir").read_bytes() == Path("third/model.nir").read_bytes()


def run(command, *words):
    """A command, which must succeed."""
    from stl_deploy.commands import common

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["command", *words])
        with pytest.raises(SystemExit) as end:
            common.run(command, "command")
    assert end.value.code == 0


@pytest.mark.parametrize("dt", [G.DT, 2 * G.DT])  # with DT the node is kept as it is
def test_an_r_of_1_counts_whole_inputs_only_where_all_neurons_have_it(dt):
    """r = 1 everywhere is how other tools write v + I; among other values it is NIR's own r."""
    node = nir.IF(r=np.array([1.0, 1e4, 3e4]), v_threshold=np.full(3, 0.5), v_reset=np.zeros(3))
    graph = chain(nir.Linear(np.ones((3, 4))), node)
    raster = np.ones((1, 6, 4), np.uint8)
    made = stl_deploy.from_nir(graph, dt=dt, timesteps=6)
    # Four inputs a step add 4 dt r: less than 0.001 to the first neuron, 4 and more to the others.
    expected = np.broadcast_to([0, 1, 1], (1, 6, 3))
    np.testing.assert_array_equal(float_exec.run(made, raster)["n1"], expected)
    node.r = np.ones(3)
    made = stl_deploy.from_nir(graph, dt=dt, timesteps=6)
    assert float_exec.run(made, raster)["n1"].all()


@pytest.mark.parametrize("chip", ["ideal", "loihi1", "loihi2"])
def test_integrate_and_fire_in_integers(chip):
    """Whole weights and thresholds: nothing is rounded, so the integers spike as the graph reads."""
    rng = np.random.default_rng(2)
    matrix = rng.integers(-127, 128, (6, 4)).astype(float)
    matrix[:, 0] = 127
    node = nir.IF(
        r=np.full(6, 1e4), v_threshold=rng.integers(100, 500, 6) + 0.5, v_reset=np.zeros(6)
    )
    graph = chain(nir.Linear(matrix), node, outputs=(6,))
    raster = (rng.random((20, 12, 4)) < 0.5).astype(np.uint8)
    network = stl_deploy.quantize(stl_deploy.from_nir(graph, timesteps=12), chip)
    (neurons,) = (population.neurons for population in network.populations)
    assert (neurons.dv, neurons.du) == (0, 4095)
    expected = plainly(graph, raster)["n1"]
    assert 0.05 < expected.mean() < 0.9
    trace = stl_deploy.simulate(network, raster)
    np.testing.assert_array_equal(trace.layers["n1"].spikes, expected)
    report = comparison.compare(
        None, stl_deploy.from_nir(graph, timesteps=12), network, Raster(raster)
    )
    assert (report.layers[0].mismatch, report.layers[0].certified) == (0, 1)
    again = nir_file.from_nir(nir_file.to_nir(network))
    (read,) = (population.neurons for population in again.populations)
    assert read.dv == 0
    np.testing.assert_array_equal(read.vth, neurons.vth)
