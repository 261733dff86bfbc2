"""Budgets of a pyproject.toml: read strictly, judged by hand-made figures, and what the commands say."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import nir
import numpy as np
import pytest

import stl_deploy
from stl_deploy.errors import InputError
from stl_deploy.formats import nir_io
from stl_deploy.formats.checkpoint import save_checkpoint
from stl_deploy.formats.raster import Raster
from stl_deploy.formats.raster import save as save_raster
from stl_deploy.hw_sim.engine import Engine
from stl_deploy.ir import nir_graph as G
from stl_deploy.lower.quantize import quantize
from stl_deploy.verify import against_float as comparison
from stl_deploy.verify import budgets
from stl_deploy.verify import check as parity_check
from stl_deploy.verify.against_float import LayerParity, ParityReport, compare
from tests.build.floats import with_nodes
from tests.build.nets import random_net, random_spikes

LAYERS = (
    LayerParity("lif1", 1000, 0.02, 0.01, 0.0, 0.0, 0.98, 0.9),
    LayerParity("pool1", 1000, 0.03, 0.0, 0.0, 0.0, 1.0, None),
)
REPORT = ParityReport(200, LAYERS, 0.9, 0.885, 0.95, None, {}, 0, 0)


def table(tmp_path, text):
    path = tmp_path / "pyproject.toml"
    path.write_text(text)
    return path


def judge(text, report=REPORT, given=None, tmp_path=None):
    path = table(tmp_path, "[tool.stl-deploy.parity]\n" + text)
    return budgets.merge(budgets.read(path), "p", given or {}).judge(report)


@pytest.mark.parametrize(
    ("text", "failures"),
    [
        ("", []),
        ("max-mismatch = 0.03", []),
        ("max-mismatch = 0.0299", ["pool1: mismatch 0.03 is above max-mismatch (p) 0.0299"]),
        ("max-mismatch-forced = 0.01", []),
        (
            "max-mismatch-forced = 0.005",
            ["lif1: mismatch forced 0.01 is above max-mismatch-forced (p) 0.005"],
        ),
        ("min-certified = 0.98", []),
        ("min-certified = 0.99", ["lif1: certified 0.98 is below min-certified (p) 0.99"]),
        ("min-certified-spiking = 0.9", []),
        (
            "min-certified-spiking = 1",
            ["lif1: certified spiking 0.9 is below min-certified-spiking (p) 1"],
        ),
        ("min-agreement = 0.95", []),
        (
            "min-agreement = 0.96",
            ["same prediction in 0.95 of the samples, below min-agreement (p) 0.96"],
        ),
        ("max-accuracy-drop = 1.5", []),
        (
            "max-accuracy-drop = 1.4",
            ["accuracy drops by 1.5 points, above max-accuracy-drop (p) 1.4"],
        ),
        (
            "max-mismatch = 0.03\n[tool.stl-deploy.parity.layers.lif1]\nmax-mismatch = 0.01",
            ["lif1: mismatch 0.02 is above max-mismatch of lif1 (p) 0.01"],
        ),
        # A layer may also be allowed more than the others.
        (
            "max-mismatch = 0.02\n[tool.stl-deploy.parity.layers.pool1]\nmax-mismatch = 0.03",
            [],
        ),
    ],
)
def test_what_exceeds_a_budget(tmp_path, text, failures):
    assert judge(text, tmp_path=tmp_path) == failures


def test_zero_is_a_budget(tmp_path):
    assert len(judge("max-mismatch = 0", tmp_path=tmp_path)) == 2


def test_the_command_line_wins_also_over_single_layers(tmp_path):
    text = "max-mismatch = 0.001\n[tool.stl-deploy.parity.layers.lif1]\nmax-mismatch = 0.001"
    assert judge(text, given={"max_mismatch": 0.03}, tmp_path=tmp_path) == []
    (failure,) = judge(text, given={"max_mismatch": 0.02}, tmp_path=tmp_path)
    assert failure == "pool1: mismatch 0.03 is above --max-mismatch 0.02"


def test_the_limit_of_the_table_is_about_its_input():
    table = budgets.Table.model_validate(
        {"model": "m.pt", "lowered": "l.nir", "input": "i.npz", "limit": 9}
    )

    def limit(**given):
        return parity_check.settings(table, Path("pyproject.toml"), given).limit

    assert limit() == 9
    assert limit(input="other.npz") is None
    assert limit(input="other.npz", limit=3) == 3


def test_what_is_not_certified_fails_a_budget_of_certificates(tmp_path):
    bare = replace(LAYERS[0], certified=None, certified_spiking=None)
    report = replace(REPORT, layers=(bare,), not_certified={"lif1": "its current has a memory"})
    for name in ("min-certified", "min-certified-spiking"):
        (failure,) = judge(f"{name} = 0", report, tmp_path=tmp_path)
        assert "lif1: not certified (its current has a memory)" in failure


BAD = """
[tool.stl-deploy.partiy]
max-mismatch = 0.1
[tool.stl-deploy.parity]
max-mismach = 0.1
max_mismatch = 0.1
min-certified = "0.9"
max-mismatch-forced = 1.5
min-agreement = nan
max-accuracy-drop = true
limit = 0
backend = 3
model = ""
[tool.stl-deploy.parity.layers.lif1]
max-mismatch = -1
tau = 0.5
"""


def test_everything_wrong_is_said_at_once(tmp_path):
    path = table(tmp_path, BAD)
    with pytest.raises(InputError) as caught:
        budgets.read(path)
    here = f"{path}: [tool.stl-deploy.parity"
    told = {p.where: p for p in caught.value.problems}
    assert {where for where in told if "partiy" not in where} == {
        f"{here}] max-mismach",
        f"{here}] max_mismatch",
        f"{here}] min-certified",
        f"{here}] max-mismatch-forced",
        f"{here}] min-agreement",
        f"{here}] max-accuracy-drop",
        f"{here}] limit",
        f"{here}] backend",
        f"{here}] model",
        f"{here}.layers.lif1] max-mismatch",
        f"{here}.layers.lif1] tau",
    }
    assert len(told) == len(caught.value.problems) == 12
    assert all(p.remedy for p in told.values())
    assert told[f"{here}] max-mismach"].remedy == "did you mean max-mismatch?"
    forced = told[f"{here}] max-mismatch-forced"]
    assert forced.what == "is 1.5; it should be less than or equal to 1"
    assert forced.remedy == "give a fraction, 0 to 1"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("tool = 3", "has no table"),
        ("[tool.other]", "has no table"),
        ("[tool.stl-deploy]", "has no table"),
        ("[tool]\nstl-deploy = 3", "is 3, not a table"),
        ("[tool.stl-deploy]\nparity = 3", "is 3"),
        ("[tool.stl-deploy.parity]\nlayers = 3", "is 3"),
        ("[tool", "is not TOML"),
    ],
)
def test_files_without_a_table(tmp_path, text, what):
    path = table(tmp_path, text)
    with pytest.raises(InputError, match=what):
        budgets.read(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="is not TOML"):
        budgets.read(path)


# The command


@pytest.fixture
def command(command):
    """Run stl-parity: (exit code, stdout, stderr)."""
    return partial(command, "stl-parity")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project folder: model.pt, out/, test.npz of twelve samples, and a pyproject.toml."""
    model = random_net(seed=4)
    save_checkpoint(model, tmp_path / "model.pt")
    graph = stl_deploy.from_torch(model)
    network = quantize(graph, "loihi2", weight_bits=4)
    stl_deploy.export(network, "nir", tmp_path / "out", graph=graph)
    raster = Raster(random_spikes(model, 12), np.arange(12, dtype=np.int64) % 10)
    save_raster(tmp_path / "test.npz", raster, {"made": "for a test"})
    table(tmp_path, PROJECT)
    (tmp_path / "deep" / "er").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "deep" / "er")
    return tmp_path


PROJECT = """
[tool.stl-deploy.parity]
model = "model.pt"
lowered = "out/model.nir"
input = "test.npz"
limit = 8
max-mismatch = 0.5
"""


def test_a_project_needs_no_arguments(project, command):
    """Also from a folder below it: paths are the table's."""
    code, out, err = command("--json")
    assert (code, err) == (0, "")
    data = json.loads(out)
    assert (data["samples"], data["passed"]) == (8, True)
    assert data["budgets"] == {"max-mismatch": 0.5, "layers": {}}
    # The command line wins.
    code, out, _ = command("--limit", 5, "--max-mismatch", 0, "--json")
    data = json.loads(out)
    assert (code, data["samples"], data["passed"]) == (1, 5, False)
    assert all("is above --max-mismatch 0" in failure for failure in data["failures"])
    assert data["comparisons"]["float_integer"]["passed"] is False
    assert data["comparisons"]["float_nir"]["passed"] is True


def test_another_file_is_named(project, command):
    other = project / "ci.toml"
    other.write_text(PROJECT.replace("max-mismatch = 0.5", "max-mismatch = 0"))
    assert command()[0] == 0
    code, _, err = command("--config", other)
    assert code == 1
    assert f"is above max-mismatch ({other}) 0" in err
    (project / "none.toml").write_text("")
    code, out, err = command("--config", project / "none.toml")
    assert (code, out) == (2, "")
    assert "has no table [tool.stl-deploy.parity]" in err


def test_a_layer_that_is_not_there_and_labels_that_are_missing(project, command):
    table(
        project,
        PROJECT + "max-accuracy-drop = 1\n[tool.stl-deploy.parity.layers.lif9]\nmin-certified = 1",
    )
    raster = Raster(random_spikes(random_net(seed=4), 2))
    save_raster(project / "test.npz", raster, {})
    code, out, err = command()
    assert (code, out) == (2, "")
    assert "2 problems" in err
    assert "no population 'lif9'; it has lif1, pool1, lif2, pool2, lif3, lif4" in err
    assert "has no labels" in err


def test_what_is_missing_is_said_at_once(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(budgets, "find", lambda _start: None)
    code, out, err = command("--backend", "brian")
    assert (code, out) == (2, "")
    assert "4 problems" in err
    for where in ("MODEL.pt", "MODEL.nir", "--input", "--backend"):
        assert f"  {where}: " in err


def test_nan_is_no_budget(project, command):
    code, out, _ = command("--max-mismatch", "nan")
    assert (code, out) == (2, "")
    with pytest.raises(InputError, match="finite"):
        parity_check.settings(
            None,
            None,
            {"model": "a", "lowered": "b", "input": "c", "max_accuracy_drop": float("nan")},
        )


# The three comparisons


def test_the_three_are_named_in_words_and_in_json(project, command):
    code, out, _ = command()
    assert code == 0
    places = [out.index(f"({letter}) ") for letter in "abc"]
    assert places == sorted(places)
    assert "the float NIR graph differs from PyTorch in 0 of " in out
    three = json.loads(command("--json")[1])["comparisons"]
    assert list(three) == ["float_nir", "backends", "float_integer"]
    assert [three[name]["rule"] for name in three] == ["exact", "exact", "budgets"]
    neurons = sum(p.size for p in stl_deploy.load(project / "out" / "model.nir").populations)
    assert three["float_nir"]["entries"] == 8 * 4 * neurons
    assert three["float_nir"]["differing"] == 0
    assert three["backends"]["reference"] == "hw_sim/reference.py"


def test_a_float_graph_that_differs_fails(project, command, monkeypatch):
    """One spike of the graph's run is turned over; the certificates rest on PyTorch's."""
    whole = comparison.float_exec.trace

    def other(graph, inputs):
        ran = whole(graph, inputs)
        ran.sent["lif3"][0, 1, 5] ^= 1
        return ran

    monkeypatch.setattr(comparison.float_exec, "trace", other)
    code, out, err = command("--json")
    data = json.loads(out)
    assert (code, data["passed"]) == (1, False)
    assert data["comparisons"]["float_nir"]["differing"] == 1
    assert data["comparisons"]["float_integer"]["passed"] is True
    assert "the float NIR graph differs from PyTorch in 1 of" in err
    assert "in float64: lif3" in err


@pytest.mark.parametrize(
    ("kind", "with_states"), [("spikes", False), ("spikes", True), ("v", True), ("u", True)]
)
def test_an_engine_that_differs_fails(project, command, monkeypatch, kind, with_states):
    """hw_sim is measured, not taken for granted, with and without states."""
    whole = Engine.run
    seen = []

    def other(self, raster, states=False):
        trace = whole(self, raster, states)
        # The float comparison runs the engine first, twice; there it would be a wrong execution.
        seen.append(states)
        if states == with_states and len(seen) > 2:
            array = getattr(trace.layers["lif2"], kind)
            array[3, 2, 1, 0, 1] ^= 1
        return trace

    monkeypatch.setattr(Engine, "run", other)
    code, out, err = command("--json")
    found = json.loads(out)["backends"]["hw_sim"]
    assert code == 1
    assert found["spike_mismatches"] == (kind == "spikes")
    assert found["state_mismatches"] == (kind != "spikes")
    assert "hw_sim differs from the reference in" in err
    assert f"first {kind} of lif2 (1, 0, 1), sample 3, step 2" in err


def test_a_float_graph_is_a_reference_too(project, command):
    code, by_model, _ = command("--json")
    assert code == 0
    code, by_graph, err = command(project / "out" / "model.float.nir", "--json")
    assert (code, err) == (0, "")
    first, second = json.loads(by_model), json.loads(by_graph)
    assert second["comparisons"]["float_nir"] is None
    assert second["comparisons"]["float_integer"]["reference"] == "float NIR graph in float64"
    for row in second["layers"]:
        assert (row["float32_mismatch"], row["nir_mismatch"]) == (None, None)
    for row in first["layers"]:
        row["float32_mismatch"] = row["nir_mismatch"] = None
        # What float rounding can do is bounded by the terms before folding, which the graph lacks.
    for side in (first, second):
        assert side["first_divergence"]["voltages"].pop("bound") > 0
    for key in ("layers", "accuracy", "prediction_agreement", "first_divergence", "backends"):
        assert first[key] == second[key]
    assert (
        "not compared, the float NIR graph is itself"
        in command(project / "out" / "model.float.nir")[1]
    )


@pytest.fixture
def graph(project):
    """The exported float graph, to be written changed."""
    return nir_io.read(project / "out" / "model.float.nir")


def _reshaped(lif):
    """A LIF whose time constants have another shape, which nir itself would not make."""
    broken = replace(lif)
    broken.tau = lif.tau[:1]
    return broken


def broken_graphs(graph):
    """(what is said, how to break the graph)."""

    def nodes(**changed):
        return with_nodes(graph, **changed)

    lif, conv = graph.nodes["lif1"], graph.nodes["conv1"]
    nan = conv.weight.copy()
    nan[0, 0, 0, 0] = np.nan
    yield "NaN or infinite", nodes(conv1=replace(conv, weight=nan))
    yield "not above zero", nodes(lif1=replace(lif, tau=lif.tau * 0))
    yield "All parameters must have the same shape", nodes(lif1=_reshaped(lif))
    yield "only a readout can read that", nodes(lif1=nir.I(lif.r))


def test_float_graphs_that_make_no_sense(project, command, graph):
    path = project / "broken.nir"
    for what, broken in broken_graphs(graph):
        nir_io.write(broken, path)
        code, out, err = command(path)
        assert (code, out) == (2, ""), err
        assert what in " ".join(err.split()), err
        assert "internal error" not in err


def test_files_that_are_no_float_graph(project, command):
    for path, what in (
        (project / "out" / "model.nir", "is not a float graph"),
        (project / "absent.nir", "does not exist"),
        (Path(__file__), ""),
    ):
        code, out, err = command(path)
        assert (code, out) == (2, "")
        assert what in err
    code, _, err = command(project / "out" / "model.float.nir", "--tau", 0.5)
    assert (code, "goes with a state_dict" in err) == (2, True)


def test_a_float_graph_of_another_network_is_refused(project, command):
    other = random_net("FC20-LIF-AvgPool2")
    stl_graph = stl_deploy.from_torch(other)
    nir_io.write(stl_graph, project / "other.nir")
    code, out, err = command(project / "other.nir")
    assert (code, out) == (2, "")
    assert "are not those of the model" in err


def test_progress_tells_what_is_done(project):
    """Every bar ends at its total and never goes back."""
    from contextlib import contextmanager

    seen = {}

    @contextmanager
    def watch(what, total, unit):
        seen[what, total, unit] = done = []
        yield done.append

    paths = (project / "model.pt", project / "out" / "model.nir", project / "test.npz")
    parity_check.run(parity_check.Settings(*paths), watch)
    assert list(seen) == [("float and integer", 12, "samples"), ("hw_sim", 48, "time steps")]
    for (_, total, _), done in seen.items():
        assert done == sorted(done)
        assert done[-1] == total


def test_a_model_without_certificates_is_compared_by_its_graph():
    """Neurons without a threshold: the graph alone is the reference, and nothing is certified of them."""
    net = random_net("FC20-LIF-FC10-LIF", shape=(1, 4, 4))
    graph = stl_deploy.from_torch(net)
    tau, zero = np.full(10, 2 * G.DT), np.zeros(10)
    graph = with_nodes(graph, lif2=nir.LI(tau=tau, r=np.full(10, 2.0), v_leak=zero))
    meta = G.float_meta(graph).model_copy(update={"readout": G.Read(rule="max")})
    graph.metadata[G.KEY] = meta.text()
    network = quantize(graph, "ideal")
    report = compare(None, graph, network, Raster(random_spikes(net, 10)))
    assert report.nir_differing is None
    assert report.layers[0].certified is not None
    assert report.layers[1].certified is None
    assert 0 <= report.layers[0].mismatch < 0.2
    assert report.not_certified == {"lif2": "its float neurons have no threshold"}
