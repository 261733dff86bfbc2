"""stl-check on files that are broken, and on files that it runs: what was seen counts before the rules."""

from __future__ import annotations

import json
import warnings

import nir
import numpy as np
import pytest

from stl_deploy.backends import consumers
from stl_deploy.backends.consumers import file as consumer_file
from stl_deploy.backends.consumers import run as runs
from stl_deploy.backends.consumers.rules import CONSUMERS, Verdict
from stl_deploy.errors import InputError, LoweringError
from stl_deploy.formats import nir_io
from stl_deploy.formats import portable_nir as nir_portable
from stl_deploy.hw_sim import reference
from stl_deploy.ir import nir_graph as G
from stl_deploy.ir import nir_words
from tests.build import nir_cases, nir_interpreter

CHAIN = [("input", "fc"), ("fc", "lif"), ("lif", "output")]


def lif(n=4, **values):
    node = G.lif(np.full(n, 0.4), 2 * G.DT, 1.0)
    for key, value in values.items():
        setattr(node, key, value)
    return node


def nodes(**others):
    """Those of input -> fc -> lif -> output, three inputs and four neurons."""
    weight = np.random.default_rng(3).normal(0.4, 0.6, (4, 3))
    made = {
        "input": nir.Input({"input": np.array([3])}),
        "fc": nir.Linear(weight),
        "lif": lif(),
        "output": nir.Output({"output": np.array([4])}),
    }
    return {name: node for name, node in {**made, **others}.items() if node is not None}


def square(n=4):
    return nir.Linear(np.full((n, n), 0.1))


def inside(edges=None, **others):
    """A graph of one node, to lie in another."""
    made = {
        "input": nir.Input({"input": np.array([3])}),
        "fc": square(3),
        "output": nir.Output({"output": np.array([3])}),
        **others,
    }
    return nir.NIRGraph(made, edges or [("input", "fc"), ("fc", "output")], type_check=False)


def written(tmp_path, nodes, edges=CHAIN):
    path = tmp_path / "m.nir"
    nir_io.write(nir.NIRGraph(nodes, edges, metadata={}, type_check=False), path)
    return path


def changed(**others):
    return nodes(**others), CHAIN


LOOP = [("input", "fc"), ("fc", "a"), ("a", "b"), ("b", "a"), ("b", "lif"), ("lif", "output")]
BROKEN = {
    "empty": (({}, []), "has 0 Input nodes"),
    "no edges": ((nodes(), []), "fc: is not reached from an input"),
    "weights": (changed(fc=nir.Linear(np.ones((4, 5)))), "weights of shape (4, 5)"),
    "bias": (changed(fc=nir.Affine(np.ones((4, 3)), np.ones(3))), "a bias of shape (3,)"),
    "neurons": (changed(lif=lif(5)), "lif: tau has shape (5,), its neurons (4,)"),
    "threshold": (changed(lif=lif(v_threshold=np.ones(3))), "All parameters must have the same shape"),
    "leaky": (
        changed(lif=nir.LI(np.ones(3), np.ones(3), np.zeros(3))),
        "lif: tau has shape (3,), its neurons (4,)",
    ),
    "scale": (
        changed(
            fc=nir.Scale(np.ones(5)), lif=lif(3), output=nir.Output({"output": np.array([3])})
        ),
        "scale has shape (5,)",
    ),
    "tau 0": (changed(lif=lif(tau=np.array([1e-4, 0, 1e-4, 1e-4]))), "tau is not above zero"),
    "tau below 0": (changed(lif=lif(tau=np.full(4, -1e-4))), "tau is not above zero"),
    "delay below 0": (
        (nodes(d=nir.Delay(np.full(4, -1e-4))), [*CHAIN[:2], ("lif", "d"), ("d", "output")]),
        "d: delay is below zero",
    ),
    "part flattened": (
        (nodes(input=nir.Input({"input": np.array([3, 1, 2])}),
               flat=nir.Flatten({"input": np.array([3, 1, 2])}, 2, -1),
               fc=nir.Linear(np.ones((4, 6)))),
         [("input", "flat"), ("flat", "fc"), *CHAIN[1:]]),
        "flat: flattens dimensions 2 to -1 of (3, 1, 2)",
    ),
    "not finite": (changed(lif=lif(r=np.full(4, np.nan))), "lif.r: contains NaN or infinite values"),
    "reset": (changed(lif=lif(metadata={"reset": "half"})), "lif: reset 'half'"),
    "output shape": (
        changed(output=nir.Output({"output": np.array([5])})),
        "output: is declared as (5,) and gets (4,)",
    ),
    "edge to nowhere": ((nodes(), [*CHAIN, ("lif", "x")]), "x: an edge names this node"),
    "edge twice": ((nodes(), [*CHAIN, CHAIN[1]]), "fc -> lif: an edge that stands twice"),
    "alone": ((nodes(fc2=square()), CHAIN), "fc2: is not reached"),
    "dead end": ((nodes(fc2=square()), [*CHAIN, ("lif", "fc2")]), "fc2: leads to no output"),
    "output apart": ((nodes(), CHAIN[:2]), "output: is not reached"),
    "two outputs": (
        (nodes(b=nir.Output({"output": np.array([4])})), [*CHAIN, ("lif", "b")]),
        "has 2 Output nodes",
    ),
    "cycle": ((nodes(a=square(), b=square()), LOOP), "a: lies on a cycle without neurons"),
    "self edge": ((nodes(), [*CHAIN, ("fc", "fc")]), "fc: lies on a cycle"),
    "square self edge": (
        (nodes(a=square()), [("input", "fc"), ("fc", "a"), ("a", "a"), ("a", "lif"), CHAIN[2]]),
        "a: lies on a cycle without neurons",
    ),
    "sum": (
        (nodes(a=nir.Linear(np.ones((5, 3)))), [*CHAIN, ("input", "a"), ("a", "lif")]),
        "lif: gets inputs of shapes (4,) and (5,)",
    ),
    "input receives": ((nodes(a=nir.Linear(np.ones((3, 4)))), [*CHAIN, ("lif", "a"), ("a", "input")]),
        "input: is an input, but receives a"),
    "output feeds": ((nodes(a=square()), [*CHAIN, ("output", "a"), ("a", "lif")]),
        "output: is an output, but feeds a"),
    "nested weights": (
        (nodes(a=inside(fc=square(2))), [("input", "a"), ("a", "fc"), *CHAIN[1:]]),
        "type mismatch: input.output: [[3]] -> fc.input: [[2]]",
    ),
    "nested edge": (
        (nodes(a=inside([("input", "fc"), ("fc", "y")])), [("input", "a"), ("a", "fc"), *CHAIN[1:]]),
        "destination node 'y'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_refused_before_any_tool_is_judged(name, tmp_path, command):
    made, what = BROKEN[name]
    path = written(tmp_path, *made)
    code, out, err = command("stl-check", path, "--need", "norse")
    assert (code, out) == (2, "")
    assert what in err
    assert str(path) in err
    assert "Warning" not in err


def test_every_broken_file_has_one_fault(tmp_path):
    """The file that they were made of is sound, and a Delay makes a sound cycle."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert consumer_file.read(written(tmp_path, nodes())).kind == "other"
        delayed = nodes(a=square(), b=nir.Delay(np.full(4, G.DT)))
        assert consumer_file.read(written(tmp_path, delayed, LOOP)).recurrent == ["a", "b"]
    delayed["b"].delay = np.zeros(4)
    with pytest.raises(InputError, match="cycle without neurons"):
        consumer_file.read(written(tmp_path, delayed, LOOP))


# Runs


def conv_net(**others):
    """A sequence [2, 8] through Conv1d, neurons and Linear."""
    conv = nir.Conv1d(
        8, np.random.default_rng(5).normal(0.3, 0.5, (3, 2, 3)), 1, 1, 1, 1, np.zeros(3)
    )
    return {
        "input": nir.Input({"input": np.array([2, 8])}),
        "conv": conv,
        "lif1": lif((3, 8)),
        "flat": nir.Flatten({"input": np.array([3, 8])}, 0, -1),
        "fc": nir.Linear(np.random.default_rng(6).normal(0.1, 0.3, (4, 24))),
        "lif": lif(),
        "output": nir.Output({"output": np.array([4])}),
        **others,
    }


def pooled():
    """An image [1, 4, 4] through neurons, AvgPool2d and Linear."""
    return {
        "input": nir.Input({"input": np.array([1, 4, 4])}),
        "conv": nir.Conv2d((4, 4), np.full((2, 1, 1, 1), 0.9), 1, 0, 1, 1, np.zeros(2)),
        "lif1": lif((2, 4, 4)),
        "pool": nir.AvgPool2d(np.array([2, 2]), np.array([2, 2]), np.array([0, 0])),
        "flat": nir.Flatten({"input": np.array([2, 2, 2])}, -3, -1),
        "fc": nir.Linear(np.random.default_rng(6).normal(0.4, 0.5, (4, 8))),
        "lif": lif(),
        "output": nir.Output({"output": np.array([4])}),
    }


def in_order(nodes):
    return list(zip(list(nodes), list(nodes)[1:], strict=False))


ones = np.ones(1)
NOT_CHAINS = {
    "average": (pooled(), in_order(pooled())),
    "sequence": (conv_net(), in_order(conv_net())),
    "scale": (
        nodes(s=nir.Scale(np.array([0.5, 1, 2, 3]))),
        [CHAIN[0], ("fc", "s"), ("s", "lif"), CHAIN[2]],
    ),
    "nested": (nodes(a=inside()), [("input", "a"), ("a", "fc"), *CHAIN[1:]]),
    "affine back": (
        nodes(a=nir.Affine(np.full((4, 4), 0.3), np.full(4, -0.1))),
        [*CHAIN, ("lif", "a"), ("a", "lif")],
    ),
    "self edge": (nodes(), [*CHAIN, ("lif", "lif")]),
    "one value for all": (
        nodes(lif=nir.LIF(2e-4 * ones, ones, 0 * ones, 0.4 * ones, 0 * ones)),
        CHAIN,
    ),
    "if of others": (nodes(lif=nir.IF(np.ones(4), np.ones(4), np.zeros(4))), CHAIN),
}


def raster(path, shape, n=5):
    spikes = (np.random.default_rng(1).random((n, 6, *shape)) < 0.5).astype(np.uint8)
    out = path.parent / "r.npz"
    np.savez(out, spikes=spikes)
    return out, spikes


def in_shape(nodes):
    return tuple(int(n) for n in nodes["input"].input_type["input"])


@pytest.mark.parametrize("name", NOT_CHAINS)
def test_what_is_no_chain_yet_is_run_as_the_importer_reads_it(name, tmp_path):
    """Its spikes are those of a plain walk over the graph."""
    made, edges = NOT_CHAINS[name]
    path = written(tmp_path, made, edges)
    _, spikes = raster(path, in_shape(made))
    got = runs.expected(consumer_file.read(path), spikes)
    graph = nir_io.read(path)
    walked, _ = nir_interpreter.run(graph, spikes)
    assert list(got)[-1] == "lif"
    for key, found in got.items():
        assert 0 < found.mean() < 1
        np.testing.assert_array_equal(found.reshape(walked[key].shape), walked[key])


def fake(monkeypatch, path, spikes, **outcomes):
    """Tools that give what is expected of the file, but for those named: errors, or spikes changed."""
    right = runs.expected(consumer_file.read(path), spikes)
    last = list(right)[-1]

    def seen(outcome):
        if isinstance(outcome, str):
            return runs.Seen(error=outcome)
        values = {key: value.astype(np.float32) for key, value in right.items()}
        output = values[last] if outcome is None else outcome(values[last].copy())
        return runs.Seen(output=output, spikes={**values, last: output})

    monkeypatch.setattr(
        runs, "run", lambda jobs: [seen(outcomes.get(job.consumer.name)) for job in jobs]
    )


def flipped(values):
    values.flat[:3] = 1 - values.flat[:3]
    return values


@pytest.mark.parametrize(
    ("outcome", "verdict", "word", "why"),
    [
        (flipped, "differs", "differently", "3 spikes differ, against the rules"),
        ("ValueError: no", "unreadable", "cannot", "this run failed: ValueError: no, against"),
        (lambda values: values[..., 1:], "differs", "differently", "not the values of the graph"),
    ],
)
def test_what_was_seen_counts_before_the_rules(
    outcome, verdict, word, why, tmp_path, monkeypatch, command
):
    path = written(tmp_path, nodes())
    where, spikes = raster(path, (3,))
    fake(monkeypatch, path, spikes, norse=outcome)
    code, out, _ = command("stl-check", path, "--input", where, "--json")
    assert code == 0
    data = json.loads(out)
    rows = {row["name"]: row for row in data["consumers"]}
    assert data["not_run"] == []
    assert rows["norse"]["verdict"] == rows["norse"]["reasons"][0]["verdict"] == verdict
    assert why in rows["norse"]["reasons"][0]["why"]
    assert rows["snntorch"]["verdict"] == "exact"
    assert rows["snntorch"]["run"]["mismatches"] == 0
    code, out, err = command("stl-check", path, "--input", where, "--need", "norse,snntorch")
    assert code == 1
    lines = {line.split()[0]: line.split()[2] for line in out.splitlines()[3:11]}
    assert lines["Norse"] == word
    assert lines["snnTorch"] == "exactly"
    assert f"  why: {why}" in out.replace("what comes out in this run are ", "")
    assert why in err
    assert "report it with the file and the raster" in err
    assert "snnTorch" not in err


def test_a_run_never_makes_the_rules_better(tmp_path):
    path = written(tmp_path, nodes(lif=lif(r=np.full(4, 2.0))))
    answers = consumers.check(consumer_file.read(path), [CONSUMERS["norse"], CONSUMERS["spyx"]])
    assert [answer.verdict for answer in answers] == [Verdict.DIFFERS, Verdict.DIFFERS]
    for answer in answers:
        assert answer.after(None, {"lif": 0}) == answer
        assert answer.after(None, {"lif": 7}) == answer
        assert answer.after("no", None).verdict == Verdict.UNREADABLE


def test_nodes_that_nobody_tried_are_not_said_to_break_a_rule(tmp_path):
    path = written(tmp_path, nodes(lif=nir.IF(np.ones(4), np.ones(4), np.zeros(4))))
    (answer,) = consumers.check(consumer_file.read(path), [CONSUMERS["norse"]])
    assert answer.verdict == Verdict.UNKNOWN
    assert answer.after(None, {"lif": 0}).verdict == Verdict.UNKNOWN
    seen = answer.after(None, {"lif": 2})
    assert (seen.verdict, seen.contradicted) == (Verdict.DIFFERS, False)
    assert seen.reasons[0].why == "2 spikes differ"


SKIPS = [*CHAIN[:2], ("lif", "fc2"), ("fc2", "lif2"), ("fc", "lif2"), ("lif2", "output")]


def test_a_connection_that_skips_a_layer_is_run(tmp_path):
    path = written(tmp_path, nodes(fc2=square(), lif2=lif()), SKIPS)
    _, spikes = raster(path, (3,))
    walked, _ = nir_interpreter.run(nir_io.read(path), spikes)
    got = runs.expected(consumer_file.read(path), spikes)
    assert got.keys() == walked.keys()
    for name, found in got.items():
        assert 0 < found.mean() < 1
        np.testing.assert_array_equal(found, walked[name])


def test_two_inputs_are_judged_and_not_run(tmp_path, command):
    """A tool is given one raster."""
    made = nodes(b=nir.Input({"input": np.array([3])}))
    path = written(tmp_path, made, [*CHAIN, ("b", "fc")])
    where, _ = raster(path, (3,))
    code, out, _ = command("stl-check", path, "--input", where)
    assert code == 0
    assert "has 2 inputs; tools are given one" in out
    assert "a graph must have one input (input, b)" in out or "one input (b, input)" in out


def test_what_has_no_reference_is_said_beside_the_table(tmp_path, command):
    """Decays below 0, in front of weights: Norse runs them."""
    fc2 = nir.Linear(np.ones((2, 4)))
    output = nir.Output({"output": np.array([2])})
    made = nodes(lif=lif(tau=np.full(4, 5e-5)), fc2=fc2, output=output)
    path = written(tmp_path, made, in_order(["input", "fc", "lif", "fc2", "output"]))
    where, spikes = raster(path, (3,))
    with pytest.raises(LoweringError):
        runs.expected(consumer_file.read(path), spikes)
    code, out, _ = command("stl-check", path, "--input", where)
    assert code == 0
    assert "spikes that differ" not in out
    assert "not run: lif: decay 1 - dt/tau is -1" in out
    code, out, _ = command("stl-check", path, "--input", where, "--json")
    data = json.loads(out)
    assert "lif: decay 1 - dt/tau is -1" in data["not_run"][0]
    assert all(row["run"] is None for row in data["consumers"])
    assert command("stl-check", path, "--need", "norse")[0] == 0
    code, _, err = command("stl-check", path, "--input", where, "--need", "norse")
    assert code == 1
    assert "Norse 1.1.0: was not run: lif: decay 1 - dt/tau is -1" in err


def test_weights_behind_the_last_neurons_are_compared_with_what_leaves_them(tmp_path):
    fc2 = nir.Affine(np.arange(8.0).reshape(2, 4), np.ones(2))
    made = nodes(fc2=fc2, output=nir.Output({"output": np.array([2])}))
    path = written(tmp_path, made, in_order(["input", "fc", "lif", "fc2", "output"]))
    _, spikes = raster(path, (3,))
    found = runs.expected(consumer_file.read(path), spikes)
    *_, last = found.values()
    np.testing.assert_allclose(last, nir_interpreter.outputs(nir_io.read(path), spikes))
    assert np.ptp(last) > 0


def test_a_graph_without_neurons_is_not_compared(tmp_path):
    output = nir.Output({"output": np.array([4])})
    made = nodes(lif=None, output=output)
    path = written(tmp_path, made, in_order(["input", "fc", "output"]))
    _, spikes = raster(path, (3,))
    with pytest.raises(LoweringError, match="graph: has no neurons"):
        runs.expected(consumer_file.read(path), spikes)


def test_a_raster_of_another_shape_is_refused(tmp_path, command):
    path = written(tmp_path, nodes())
    where, _ = raster(path, (4,))
    code, out, err = command("stl-check", path, "--input", where)
    assert (code, out) == (2, "")
    assert "has inputs of shape (4,), the graph (3,)" in err
    assert "docs/rasters.md" in err


def test_a_raster_with_axes_of_one_is_laid_out_as_the_graph_reads_it(tmp_path):
    file = consumer_file.read(written(tmp_path, nodes()))
    spikes = np.arange(12, dtype=np.uint8).reshape(2, 2, 1, 3)
    np.testing.assert_array_equal(runs.steps(file, spikes), spikes.reshape(2, 2, 3))


# What only the metadata say


def ruled_file(tmp_path, readout=None, arrays=None, **words):
    """A float graph whose neurons have rules in their metadata."""
    made = nodes()
    each = {
        name: np.broadcast_to(x, np.shape(x) or (4,)).copy() for name, x in (arrays or {}).items()
    }
    nir_words.say(made["lif"], each, **words)
    chain = {name: made[name] for name in ("fc", "lif")}
    meta = G.FloatMeta(version=4, timesteps=3, classes=4, population=1, readout=readout)
    path = tmp_path / "m.nir"
    nir_io.write(G.chain_graph(chain, (3,), (4,), meta.text()), path)
    return path


@pytest.mark.parametrize(
    ("said", "rules"),
    [
        ({}, []),
        ({"hold": 2}, ["hold"]),
        ({"reset_current": True, "arrays": {"v0": [0.5]}}, ["reset of the current", "initial v"]),
        ({"arrays": {"floor": [-1.0]}}, ["floor of v"]),
        ({"arrays": {"amplify": np.ones(3)}}, ["gain for each step"]),
        ({"arrays": {"adapt": [0.1], "adapt_step": [0.1]}}, ["adaptive threshold"]),
        ({"arrays": {"current2": [0.5], "drive2": [1.0]}}, ["second current"]),
    ],
)
def test_rules_of_float_graphs_are_named(tmp_path, said, rules):
    file = consumer_file.read(ruled_file(tmp_path, **said))
    assert file.unsaid == ({"lif": rules} if rules else {})
    (answer,) = consumers.check(file, [CONSUMERS["norse"]])
    reasons = [r for r in answer.reasons if "only the metadata say, such as" in r.why]
    assert [(r.verdict, r.nodes, list(r.names)) for r in reasons] == [
        (Verdict.DIFFERS, ("lif",), rules) for _ in rules[:1]
    ]
    for rule in rules[:1]:
        (reason,) = answer.to_json()["reasons"][:1]
        assert reason["names"] == rules
        with pytest.raises(LoweringError) as error:
            nir_portable.from_float(file.graph)
        assert f"lif: {rule}: NIR's equations cannot express it" in str(error.value)


def test_readouts_that_only_the_metadata_say_are_named(tmp_path, command):
    path = ruled_file(tmp_path, readout=G.Read(rule="last", factors=(1.0, 2.0, 3.0, 4.0)))
    code, text, _ = command("stl-check", path)
    assert code == 0
    said = "only the metadata say how its outputs are made classes: last, factors (output)"
    assert said in " ".join(text.split())
    with pytest.raises(LoweringError, match="readout: classes are scored by last"):
        nir_portable.from_float(nir_io.read(path))


def test_the_rules_of_integers_are_named(tmp_path, command):
    cases = nir_cases.build(tmp_path)
    file = consumer_file.read(cases["rules in the metadata"].path)
    assert file.unsaid == {"a": ["adaptive threshold"]}
    assert consumer_file.read(cases["scored by v"].path).scored == ("mean",)
    code, text, _ = command("stl-check", cases["rules in the metadata"].path)
    assert code == 0
    assert "such as a reset by subtraction: adaptive threshold (a)" in " ".join(text.split())


def test_what_integers_give_at_the_output(tmp_path):
    cases = nir_cases.build(tmp_path)
    case = cases["integrators"]
    ran = reference.run(case.network, case.spikes, states=True).layers["b"]
    found = runs.of_network(case.network, case.spikes)
    assert list(found) == ["a", "b"]
    np.testing.assert_array_equal(found["b"], ran.v / 64)
    case = cases["matrix"]
    found = runs.of_network(case.network, case.spikes)
    votes = found["readout matrix"].sum(axis=1)
    assert list(found) == ["a", "b", "readout matrix"]
    ran = reference.run(case.network, case.spikes)
    np.testing.assert_array_equal(votes.argmax(axis=1), ran.predictions)
