"""Every rule of neurons passes the lowering of a graph, its files, and reading without our metadata."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import nir
import numpy as np
import pytest

from stl_deploy.errors import LoweringError
from stl_deploy.formats import float_nir, nir_io
from stl_deploy.importers.nir import graph as nir_graph
from stl_deploy.ir import execute, floats
from stl_deploy.ir import nir_graph as G
from stl_deploy.ir import nir_words as words
from stl_deploy.ir.float_neurons import decode
from stl_deploy.lower.graph import lower
from tests.build import rule_floats
from tests.build.nir_of_floats import graph_of

STEPS = rule_floats.STEPS


def assert_runs_as(graph: nir.NIRGraph, known: floats.FloatNetwork, raster: np.ndarray) -> None:
    """The graph sends what ``known`` sends, and scores its classes alike."""
    got = floats.decode(graph)
    want, found = execute.trace(known, raster), execute.trace(got, raster)
    assert got.readout is not None
    assert known.readout is not None
    for name, sent in want.sent.items():
        np.testing.assert_allclose(found.sent[name].reshape(sent.shape), sent, rtol=1e-9, atol=1e-9)
    scores = known.readout.scores(want.sent[known.output], want.v)
    assert scores.any()
    theirs = got.readout.scores(found.sent[got.output], found.v)
    np.testing.assert_allclose(theirs, scores, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("rule", rule_floats.RULES)
def test_a_rule_passes_files_and_lowering(rule: str, tmp_path: Any) -> None:
    read = {"zero": "votes", "constant": "mean", "none": "first", "gain": "max"}.get(rule, "last")
    known, raster = rule_floats.network(rule, read=read)
    graph = graph_of(known)
    assert_runs_as(graph, known, raster)
    nir_io.write(graph, tmp_path / "a.nir")
    assert_runs_as(float_nir.read(tmp_path / "a.nir"), known, raster)
    assert_runs_as(lower(graph), known, raster)
    del graph.metadata[G.KEY]
    options = nir_graph.Options(timesteps=STEPS, readout=read)  # type: ignore[arg-type]
    assert_runs_as(nir_graph.to_float(graph, options), known, raster)


SIZE = (2, 5, 5)


def image(scale: Any, **fields: Any) -> nir.NIRGraph:
    """Input -> convolution -> a scale -> LIF with further ``fields`` -> output."""
    rng = np.random.default_rng(1)
    lif = replace(decode(G.lif(np.full(SIZE, 0.7), 2e-4, 2)), **fields)
    nodes = {
        "input": nir.Input({"input": np.array(SIZE)}),
        "conv": G.conv2d(rng.normal(0.2, 0.5, (2, 2, 3, 3)), np.zeros(2), SIZE, (1, 1), (1, 1)),
        "scale": nir.Scale(np.broadcast_to(scale, SIZE).copy()),
        "lif": lif.node(),
        "output": nir.Output({"output": np.array(SIZE)}),
    }
    names = list(nodes)
    return nir.NIRGraph(nodes, list(pairwise(names)), type_check=False)


OF_EACH = np.random.default_rng(2).uniform(0.5, 2, SIZE)
PLANE = (np.random.default_rng(3).random((4, STEPS, *SIZE)) < 0.4).astype(np.uint8)


@pytest.mark.parametrize(
    "fields",
    [
        {"v_reset": np.full(SIZE, -0.4)},
        {"floor": np.full((1, 1, 1), -0.2), "reset": "subtract"},
        {"v0": np.full((2, 1, 1), 0.5)},
        {"adapt": np.full(SIZE, 0.3), "adapt_step": np.full((1, 1, 1), 0.25)},
        {"hold": 2, "amplify": np.linspace(0.5, 1.5, STEPS)},
    ],
    ids=str,
)
@pytest.mark.parametrize("rule", ["votes", "last", "max"])
def test_values_of_v_take_the_units_of_their_neurons(fields: dict[str, Any], rule: str) -> None:
    """A scale of each neuron behind a convolution becomes the unit of v, and of all that is compared to it.

    What v is in these units is told to the readout.
    """
    options = nir_graph.Options(timesteps=STEPS, readout=rule)  # type: ignore[arg-type]
    got = floats.decode(nir_graph.to_float(image(OF_EACH, **fields), options))
    plain = nir_graph.to_float(image(1.0, **fields), options)
    plain.nodes["lif"].r = plain.nodes["lif"].r * OF_EACH
    known = floats.decode(plain)
    want, found = execute.trace(known, PLANE), execute.trace(got, PLANE)
    np.testing.assert_array_equal(found.sent["lif"], want.sent["lif"])
    assert want.sent["lif"].any()
    scores = known.readout.scores(want.sent["lif"], want.v)
    np.testing.assert_allclose(got.readout.scores(found.sent["lif"], found.v), scores, atol=1e-9)
    if rule != "votes":
        np.testing.assert_allclose(got.readout.factors, OF_EACH.reshape(-1))


def test_what_would_change_what_is_sent_or_compared_is_refused() -> None:
    for fields in ({"graded": True}, {"graded": True, "fires": False}):
        with pytest.raises(LoweringError, match=r"lif: .*it sends values, which others receive"):
            nir_graph.to_float(image(OF_EACH, **fields))
    with pytest.raises(LoweringError, match=r"lif: .*voltages do not compare"):
        nir_graph.to_float(image(OF_EACH), nir_graph.Options(readout="first"))


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"current2": np.full(SIZE, 1.5), "drive2": np.ones(SIZE)}, "current2 is 1.5, not in 0 to 1"),
        ({"adapt": np.ones(SIZE), "adapt_step": np.full(SIZE, -1)}, "adapt_step is -1, not in 0 to 1"),
        ({"amplify": np.ones(4), "leak": np.ones(SIZE)}, "v_leak is not zero (2)"),
    ],
)  # fmt: skip
def test_what_no_neurons_have_is_named(fields: dict[str, Any], what: str) -> None:
    with pytest.raises(LoweringError) as error:
        nir_graph.to_float(image(1.0, **fields))
    (problem,) = error.value.problems
    assert problem.where == "lif"
    assert problem.what.startswith(what)


def test_a_second_current_has_no_bias() -> None:
    graph = graph_of(rule_floats.network("second current")[0])
    given = graph.nodes["a_w2"]
    graph.nodes["a_w2"] = nir.Affine(given.weight, np.ones(len(given.weight)))
    words.say(graph.nodes["a_w2"], port=1)
    with pytest.raises(LoweringError, match="a_w2: has a bias, and leads to a second current"):
        nir_graph.to_float(graph)
