"""What a new user is told: said once, with what was assumed, and remedies that are true."""

from __future__ import annotations

import itertools
import json
import warnings

import nir
import numpy as np
import pytest
import snntorch as snn
import torch
from torch import nn

import stl_deploy
from stl_deploy.commands import common, export, hw_sim, parity
from stl_deploy.errors import InputError, LoweringError, Problem, StlError
from stl_deploy.importers.given import Given
from stl_deploy.importers.read import read
from stl_deploy.ir import nir_graph as G

LONGEST = 40  # words of a message


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs a command line in a folder of its own: exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def call(command, *argv: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", [command.__name__, *argv])
        with pytest.raises(SystemExit) as caught:
            command.main()
        out = capsys.readouterr()
        lines = [line.partition("remedy")[0] for line in out.err.splitlines()]
        assert all(len(line.split()) <= LONGEST + 5 for line in lines)
        assert "internal error" not in out.err
        return int(caught.value.code), out.out, " ".join(out.err.split())

    return call


class Net(nn.Module):
    """Two layers of neurons with states of their own; one step a call."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        how = {"beta": 0.5, "init_hidden": True, "reset_mechanism": "zero"}
        self.fc1, self.lif1 = nn.Linear(12, 20), snn.Leaky(**how)
        self.fc2, self.lif2 = nn.Linear(20, 5), snn.Leaky(**how)
        with torch.no_grad():
            self.fc1.weight.mul_(4)
            self.fc2.weight.mul_(4)

    def forward(self, x):
        return self.lif2(self.fc2(self.lif1(self.fc1(x))))


class Two(Net):
    def forward(self, x, mem):  # what two arguments do
        return self.lif2(self.fc2(x + mem))


def lif(size, **fields):
    values = {"tau": 5e-4, "r": 5.0, "v_leak": 0.0, "v_threshold": 1.0, "v_reset": 0.0} | fields
    node = nir.LIF(**{key: np.full(size, value) for key, value in values.items()})
    node.metadata["reset"] = "zero"
    return node


def graph(neurons=None, last=None):
    rng = np.random.default_rng(0)
    nodes = {
        "input": nir.Input({"input": np.array([12])}),
        "fc": nir.Linear(rng.normal(0, 0.5, (20, 12))),
        "lif": lif(20) if neurons is None else neurons,
        "fc2": nir.Linear(rng.normal(0, 0.5, (5, 20))),
        "last": lif(5) if last is None else last,
        "output": nir.Output({"output": np.array([5])}),
    }
    names = list(nodes)
    edges = list(itertools.pairwise(names))
    return nir.NIRGraph(nodes, edges, type_check=False)


def silent():
    """The same graph, whose neurons do not state their reset."""
    made = graph()
    for name in ("lif", "last"):
        made.nodes[name].metadata = {}
    return made


# Said once


def shown(capsys, error):
    common.complain("stl-export", error)
    return capsys.readouterr().err.splitlines()


def test_problems_that_say_the_same_are_said_once(capsys):
    rows = [Problem(f"a.nir: n{i}", "is odd", "mend it") for i in range(10)]
    rows += [Problem("a.nir: m", "is even", "mend it"), Problem("--dt", "is odd", "omit it")]
    assert shown(capsys, StlError(rows)) == [
        "stl-export: 12 problems",
        "  a.nir: n0: is odd",
        "      also: n1, n2, n3, n4, n5, n6, n7, n8 and 1 more",
        "  a.nir: m: is even",
        "      remedy (for these 2): mend it",
        "  --dt: is odd",
        "      remedy: omit it",
    ]
    rows = [Problem("a.nir: n", "is odd"), Problem("b.nir: n", "is odd")]
    assert shown(capsys, StlError(rows))[1:] == ["  a.nir: n: is odd", "      also: b.nir: n"]


def test_notes_that_say_the_same_are_said_once(capsys):
    note = {"what": "decay 0.8 is rounded", "remedy": "train with that value"}
    common.complain_diagnostics([note | {"where": "a"}, note | {"where": "b"}])
    assert capsys.readouterr().err.splitlines() == [
        "note a: decay 0.8 is rounded",
        "      also: b",
        "      remedy: train with that value",
    ]


# Files


def test_a_state_dict_of_snntorch_alone(run, tmp_path):
    torch.save(Net().state_dict(), tmp_path / "net.pt")
    for options in ((), ("--sample-shape", "1,12")):
        code, _, err = run(export, "net.pt", "--target", "nir", *options)
        assert code == 2
        assert "net.pt: is a state_dict of snnTorch" in err
        assert "--model-class MODULE:NAME, with --sample-shape" in err
        assert "1 problem" in err
    with pytest.raises(InputError, match="is a state_dict of snnTorch"):
        stl_deploy.load(tmp_path / "net.pt")
    torch.save({"fc1.weight": torch.zeros(2, 2)}, tmp_path / "other.pt")
    with pytest.raises(InputError, match="is missing"):
        read(tmp_path / "other.pt", Given())


def test_what_is_not_the_file_that_is_asked_for(run, tmp_path):
    torch.save(Net().state_dict(), tmp_path / "net.pt")
    np.savez(tmp_path / "in.npz", spikes=np.zeros((1, 4, 12), np.uint8))
    code, _, err = run(hw_sim, "net.pt", "--input", "in.npz")
    assert code == 2
    assert "net.pt: is a checkpoint, not a NIR file" in err
    assert "export it first: stl-export net.pt --target nir -o out, then name out/model.nir" in err
    code, _, err = run(hw_sim, "in.npz", "--input", "in.npz")
    assert code == 2
    assert "in.npz: contains numpy arrays, as rasters do, not a model" in err
    code, _, err = run(export, "in.npz", "--target", "nir")
    assert code == 2
    assert "in.npz: contains numpy arrays, as rasters do, not a model" in err
    nir.write(tmp_path / "n.nir", graph())
    (tmp_path / "mine.py").write_text(f"from {__name__} import Net\n")
    code, _, err = run(export, "n.nir", "--target", "nir", "--model-class", "mine:Net")
    assert code == 2
    assert "n.nir is a NIR file remedy: omit it" in err or "--sample-shape" in err


def test_files_of_a_newer_version(tmp_path):
    made = stl_deploy.from_nir(graph(), timesteps=4)
    made.metadata[G.KEY] = json.dumps(json.loads(made.metadata[G.KEY]) | {"version": 99})
    nir.write(tmp_path / "new.nir", made)
    with pytest.raises(InputError, match=r"version 99 of the format.* -> install the stl-deploy"):
        stl_deploy.from_nir(tmp_path / "new.nir")
    made.metadata[G.KEY] = json.dumps({"format": "stl-deploy/float", "timesteps": "x"})
    nir.write(tmp_path / "odd.nir", made)
    with pytest.raises(InputError) as caught:
        stl_deploy.from_nir(tmp_path / "odd.nir")
    assert "pydantic" not in str(caught.value)
    assert {p.where.rpartition(".")[2] for p in caught.value.problems} == {
        *("timesteps", "classes", "population")
    }


def test_a_class_that_is_not_there_names_those_that_are(run, tmp_path):
    (tmp_path / "ours.py").write_text("class Net: pass\n\nclass Other: pass\n")
    torch.save({}, tmp_path / "net.pt")
    for name, remedy in (("ours:Nett", "name one of Net"), ("ours", "--model-class ours:Net")):
        code, _, err = run(export, "net.pt", "--target", "nir", "--model-class", name)
        assert (code, remedy in err) == (2, True), err


# What was assumed, and options


def test_steps_that_nobody_said_are_noted(run, tmp_path):
    nir.write(tmp_path / "n.nir", graph())
    for options, noted in (((), True), (("--timesteps", "4"), False)):
        line = ("n.nir", "--target", "nir", "-o", "out", "--force", *options)
        code, _, err = run(export, *line)
        assert "note n.nir: assumed, as the model does not say: " in err
        assert (code, ", T (4), " in err, "--timesteps or --eval" in err) == (0, noted, noted)
    net, sample = Net(), torch.zeros(1, 12)
    with pytest.warns(stl_deploy.errors.UncheckedWarning, match=r"does not say: T \(4\)"):
        stl_deploy.from_torch(net, sample)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "does not say")
        stl_deploy.from_torch(net, sample, timesteps=5)


@pytest.mark.parametrize("said", [("--timesteps", "9"), ("--eval", "nine.npz")])
def test_a_t_that_was_assumed_can_be_said_later(run, tmp_path, said):
    nir.write(tmp_path / "n.nir", silent())
    np.savez(tmp_path / "nine.npz", spikes=np.ones((2, 9, 12), np.uint8))
    assert run(export, "n.nir", "--target", "nir", "-o", "out")[0] == 0
    code, _, err = run(hw_sim, "out/model.nir", "--input", "nine.npz")
    assert (code, "export again with --timesteps 9 (or --eval nine.npz)" in err) == (2, True)
    code, out, _ = run(
        export, "out/model.float.nir", "--target", "nir", "-o", "o2", "--json", *said
    )
    (record, *_) = json.loads(out)["read_as"]
    who = {"--eval": "raster", "--timesteps": "option"}[said[0]]
    assert (code, record["timesteps"], record["origin"]["timesteps"]) == (0, 9, who)
    code, out, err = run(hw_sim, "o2/model.nir", "--input", "nine.npz")
    assert (
        code,
        "assumed when the model was read: reset of lif, last (zero, same step), " in err,
    ) == (0, True)
    for model in ("n.nir", "out/model.float.nir", "o2/model.float.nir"):
        code, out, _ = run(parity, model, "o2/model.nir", "--input", "nine.npz", "--json")
        assert (code, json.loads(out)["read_as"][0]["timesteps"]) == (0, 9)
    line = ("--target", "nir", "-o", "o3")
    code, _, err = run(export, "o2/model.float.nir", *line, "--timesteps", "5")
    stated = "--timesteps: 5, but o2/model.float.nir says 9" in err
    assert (code == 2, stated) == ((True, True) if who == "option" else (False, False))


def test_a_raster_of_too_many_steps_names_no_option_that_was_not_given(run, tmp_path):
    nir.write(tmp_path / "n.nir", graph())
    np.savez(tmp_path / "long.npz", spikes=np.zeros((1, 5000, 12), np.uint8))
    code, _, err = run(export, "n.nir", "--target", "nir", "-o", "out", "--eval", "long.npz")
    assert (code, "--timesteps" in err) == (2, False)
    assert "long.npz: has 5000 time steps; a network has at most 4096" in err


def test_parity_reads_a_model_as_the_export_did(run, tmp_path):
    nir.write(tmp_path / "n.nir", silent())
    np.savez(tmp_path / "x.npz", spikes=np.ones((2, 6, 12), np.uint8))
    how = ("--reset", "subtract", "--dt", "1.5e-4", "--timesteps", "6")
    code, out, _ = run(export, "n.nir", "--target", "nir", "-o", "out", *how)
    assert (code, "--reset" in out, "0.00015 s" in out) == (0, True, True)
    line = ("n.nir", "out/model.nir", "--input", "x.npz")
    code, out, err = run(parity, *line, "--json")
    assert (code, json.loads(out)["diagnostics"]) == (0, [])
    assert {r["origin"]["reset"] for r in json.loads(out)["read_as"]} == {"option"}
    code, _, err = run(parity, *line, "--reset", "zero", "--dt", "1e-4")
    assert code == 2
    assert "--dt: 0.0001, but out/model.nir was made with 0.00015" in err
    assert "--reset: zero, but out/model.nir was made with subtract" in err
    assert run(export, "n.nir", "--target", "nir", "-o", "plain", "--timesteps", "6")[0] == 0
    code, _, err = run(
        parity, "n.nir", "plain/model.nir", "--input", "x.npz", "--reset", "subtract"
    )
    assert (code, "--reset: subtract, but plain/model.nir was made with zero" in err) == (2, True)
    # Another model than that of the export is compared, and the difference is said.
    _, out, err = run(parity, "out/model.float.nir", "plain/model.nir", "--input", "x.npz")
    here = "read with reset subtract, same step, dt = 0.00015 s"
    assert f"note lif, last: {here}; plain/model.nir was made with reset zero, same step" in err


def test_signed_inputs_from_the_command_line(run, tmp_path):
    nir.write(tmp_path / "n.nir", graph())
    signed = ("--signed", "--levels", "100", "--timesteps", "6")
    assert run(export, "n.nir", "--target", "nir", "-o", "out", *signed)[0] == 0
    network = stl_deploy.load("out/model.nir")
    assert (network.inputs["input"].levels, network.inputs["input"].signed) == (100, True)
    spikes = np.random.default_rng(0).integers(-100, 101, (4, 6, 12)).astype(np.int8)
    np.savez(tmp_path / "s.npz", spikes=spikes)
    code, out, _ = run(parity, "n.nir", "out/model.nir", "--input", "s.npz", "--json")
    assert code == 0
    assert max(layer["mismatch_forced"] for layer in json.loads(out)["layers"]) < 0.02
    assert not json.loads(out)["diagnostics"]
    code, _, err = run(
        export, "n.nir", "--target", "nir", "-o", "o2", "--signed", "--levels", "40000"
    )
    assert (code, "--levels: 40000 is not a whole number in 1..32767" in err) == (2, True)
    assert run(export, "n.nir", "--target", "nir", "-o", "plain", "--timesteps", "6")[0] == 0
    code, _, err = run(export, "plain/model.float.nir", "--target", "nir", "--signed", "-o", "o3")
    assert (code, "--signed: True, but plain/model.float.nir says False" in err) == (2, True)


def test_parity_with_other_options_than_the_export_had(run, tmp_path):
    nir.write(tmp_path / "n.nir", graph())
    how = ("--levels", "15", "--normalize", "0.5,0.1")
    line = ("n.nir", "--target", "nir", "-o", "out", "--timesteps", "6", *how)
    assert run(export, *line)[0] == 0
    spikes = np.random.default_rng(0).integers(0, 16, (4, 6, 12)).astype(np.uint8)
    np.savez(tmp_path / "s.npz", spikes=spikes)
    line = ("n.nir", "out/model.nir", "--input", "s.npz")
    hint = "give the --normalize that stl-export was given"
    _, _, err = run(parity, *line)
    assert hint in err


# Python


@pytest.fixture(scope="module")
def made():
    """A float graph, its network and spikes."""
    floats = stl_deploy.from_torch(Net(), torch.zeros(1, 12), timesteps=4)
    spikes = (np.random.default_rng(0).random((3, 4, 12)) < 0.4).astype(np.uint8)
    return floats, stl_deploy.quantize(floats), spikes


@pytest.mark.parametrize(
    ("call", "where"),
    [
        (lambda f, _n, _x: stl_deploy.export(f, "nir", "out"), "network"),
        (lambda _f, n, _x: stl_deploy.export(n, None, "out"), "target"),
        (lambda _f, n, _x: stl_deploy.export(n, "nir", None), "out"),
        (lambda _f, n, _x: stl_deploy.export(n, "nir", "out", graph=Net()), "graph"),
        (lambda f, _n, x: stl_deploy.simulate(f, x), "network"),
        (lambda _f, n, x: stl_deploy.simulate(n, "spikes.npz"), "spikes"),
        (lambda f, n, x: stl_deploy.parity(n, f, x), "network"),
        (lambda _f, n, x: stl_deploy.parity(Net(), n, x), "model"),
        (lambda f, n, x: stl_deploy.parity([f], n, x), "model"),
        (lambda f, _n, x: stl_deploy.parity(f, f, x), "network"),
        (lambda f, n, x: stl_deploy.parity(f, n, x, ["a", "b", "c"]), "labels"),
        (lambda f, n, x: stl_deploy.parity(f, n, x, np.array([0.5, 1, 2])), "labels"),
        (lambda f, _n, x: stl_deploy.quantize(f, calib="calib.npz"), "calib"),
        (lambda f, _n, x: stl_deploy.quantize(f, calib=x * 0.5), "calib"),
        (lambda f, _n, _x: stl_deploy.quantize(f, chip=None), "chip"),
        (lambda *_: stl_deploy.from_nir(None), "source"),
        (lambda *_: stl_deploy.from_nir(graph(), dt="1e-3"), "--dt"),
        (lambda *_: stl_deploy.from_nir(graph(), timesteps="4"), "--timesteps"),
        (lambda *_: stl_deploy.from_nir(graph(), timesteps=4.5), "--timesteps"),
        (lambda *_: stl_deploy.from_torch([Net()], torch.zeros(1, 12)), "model"),
        (lambda *_: stl_deploy.load(None), "path"),
        (lambda *_: stl_deploy.save_checkpoint(Net(), "net.pt"), "model"),
    ],
)
def test_arguments_of_another_type_are_named(made, call, where):
    with pytest.raises(InputError) as caught:
        call(*made)
    assert [p.where for p in caught.value.problems] == [where]
    assert caught.value.problems[0].remedy or where.startswith("--")


@pytest.mark.parametrize("pair", [0.3, (0.1, 0.2, 0.3), "0.1,0.3", ("a", "b"), ([[1]], [[1]]), ()])
def test_a_normalization_that_is_no_pair_of_numbers(pair):
    with pytest.raises(InputError, match=r"^normalize: "):
        stl_deploy.from_nir(graph(), timesteps=4, normalize=pair)


def test_a_float_file_of_ours_keeps_what_it_says(tmp_path, made):
    floats, network, _ = made
    stl_deploy.export(network, "nir", tmp_path / "out", graph=floats)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = stl_deploy.from_nir(tmp_path / "out" / "model.float.nir")
    assert G.float_meta(again) == G.float_meta(floats)
    with pytest.raises(InputError, match=r"contains integers.*stl_deploy.load"):
        stl_deploy.from_nir(tmp_path / "out" / "model.nir")


# Networks


def test_a_forward_with_more_arguments():
    with pytest.raises(LoweringError, match="forward: needs the arguments x, mem"):
        stl_deploy.from_torch(Two(), torch.zeros(1, 12))


@pytest.mark.parametrize(
    ("function", "remedy"),
    [
        (lambda s: torch.softmax(s, 1), "return what goes into it"),
        (lambda s: s @ torch.eye(5), "use nn.Linear"),
        (lambda s: s - s, "a + (-1) * b"),
        (lambda s: torch.cat([s, torch.zeros(1, 5)], dim=1), "torch.cat(..., dim=1)"),
        (torch.relu, "docs/import-snntorch.md"),
    ],
)
def test_functions_that_are_not_known_have_remedies_of_their_own(function, remedy):
    class Ends(Net):
        def forward(self, x):
            return function(super().forward(x))

    with pytest.raises(LoweringError) as caught:
        stl_deploy.from_torch(Ends(), torch.zeros(1, 12))
    assert remedy in str(caught.value)


def test_a_difference_as_the_remedy_says():
    class Difference(Net):
        def forward(self, x):
            spikes = self.lif1(self.fc1(x))
            return self.lif2(self.fc2(spikes) + (-1) * (0.5 * self.fc2(spikes)))

    stl_deploy.from_torch(Difference(), torch.rand(1, 12), timesteps=4)


def test_a_lapicque_whose_membrane_is_read_is_not_told_of_an_option_that_it_lacks():
    class Reads(nn.Module):
        def __init__(self, cls, **more):
            super().__init__()
            self.fc = nn.Linear(12, 5)
            self.lif = cls(beta=0.8, reset_mechanism="zero", **more)

        def forward(self, x):
            mem = self.lif.reset_mem()
            for t in range(4):
                _, mem = self.lif(self.fc(x[t]), mem)
            return mem

    remedies = {}
    for cls in (snn.Leaky, snn.Lapicque):
        with pytest.raises(LoweringError) as caught:
            stl_deploy.from_torch(Reads(cls), torch.zeros(4, 1, 12))
        (problem,) = caught.value.problems
        remedies[cls] = problem.remedy
    assert "reset_delay=False" in remedies[snn.Leaky]
    assert "reset_delay" not in remedies[snn.Lapicque]
    stl_deploy.from_torch(Reads(snn.Leaky, reset_delay=False), torch.rand(4, 1, 12))


@pytest.mark.parametrize(
    ("metadata", "what"),
    [
        ({"reset": "foo"}, "reset 'foo' in its metadata is not one of"),
        ({"stl_deploy": "{nope"}, "metadata.stl_deploy is not valid"),
        ({"stl_deploy": '{"hold": 1000}'}, "hold: Input should be less"),
        ({"stl_deploy.gain": np.ones(20)}, "metadata.stl_deploy.gain is not known"),
        ({"stl_deploy.v0": np.ones(19)}, "has shape (19,), its neurons (20,)"),
        ({"stl_deploy.amplify": np.full((4, 20), np.nan)}, "not a finite number"),
        ({"stl_deploy.current2": np.full(20, 0.5)}, "a second current needs current2 and drive2"),
    ],
)
def test_broken_metadata_of_neurons_are_named(metadata, what):
    neurons = lif(20)
    neurons.metadata |= metadata
    with pytest.raises(InputError) as caught:
        stl_deploy.from_nir(graph(neurons), timesteps=4)
    (problem,) = caught.value.problems
    assert problem.where == "lif"
    assert what in problem.what


def test_rules_of_neurons_at_weights_are_refused():
    given = graph()
    given.nodes["fc"].metadata["stl_deploy"] = '{"hold": 2}'
    with pytest.raises(InputError, match=r"fc: metadata.stl_deploy has rules of neurons"):
        stl_deploy.from_nir(given, timesteps=4)


def test_a_tau_of_zero_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InputError, match="lif: tau is not above zero"):
            stl_deploy.from_nir(graph(lif(20, tau=0.0)), timesteps=4)


def test_voltages_that_are_added_up_at_the_output():
    def li(tau):
        return nir.LI(*(np.full(5, value) for value in (tau, 5.0, 0.0)))

    nodes = {"input": nir.Input({"input": np.array([5])}), "a": li(5e-4), "b": li(1e-3)}
    nodes["output"] = nir.Output({"output": np.array([5])})
    edges = [("input", "a"), ("input", "b"), ("a", "output"), ("b", "output")]
    given = nir.NIRGraph(nodes, edges, type_check=False)
    with pytest.raises(LoweringError) as caught:
        stl_deploy.from_nir(given, timesteps=4)
    assert {p.where for p in caught.value.problems} == {"a", "b"}
    assert all("a readout reads it alone" in p.what for p in caught.value.problems)


def test_two_integrators_as_two_currents_of_a_cubalif():
    """What docs/import-nir.md says instead of two LI in front of a LIF: no spike differs."""
    from stl_deploy.ir import execute

    rng, dt, size = np.random.default_rng(3), 1e-4, 20
    weights = rng.normal(0, 0.6, (2, size, 12))
    (tau1, r1), (tau2, r2), (tau, r) = (1e-3, 4.0), (5e-4, 3.0), (8e-4, 8.0)
    values = {"tau_syn": tau1, "tau_mem": tau, "r": r, "v_leak": 0, "v_threshold": 1, "w_in": r1}
    neurons = nir.CubaLIF(**{k: np.full(size, float(v)) for k, v in values.items()})
    current2, drive2 = np.full(size, dt / tau2), np.full(size, r2 * dt / tau2)
    neurons.metadata |= {"reset": "zero", "stl_deploy.current2": current2}
    neurons.metadata |= {"stl_deploy.drive2": drive2}
    second = nir.Linear(weights[1])
    second.metadata["stl_deploy"] = '{"port": 1}'
    nodes = {"input": nir.Input({"input": np.array([12])}), "a": nir.Linear(weights[0])}
    nodes |= {"b": second, "n": neurons, "output": nir.Output({"output": np.array([size])})}
    edges = [("input", "a"), ("input", "b"), ("a", "n"), ("b", "n"), ("n", "output")]
    made = stl_deploy.from_nir(nir.NIRGraph(nodes, edges, type_check=False), timesteps=40)
    x = (rng.random((5, 40, 12)) < 0.4).astype(np.uint8)
    got = execute.run(made, x)["n"].reshape(5, 40, size)
    li1 = li2 = v = np.zeros((5, size))
    for t in range(40):
        li1 = li1 + dt / tau1 * (r1 * (x[:, t] @ weights[0].T) - li1)
        li2 = li2 + dt / tau2 * (r2 * (x[:, t] @ weights[1].T) - li2)
        v = v + dt / tau * (r * (li1 + li2) - v)
        np.testing.assert_array_equal(got[:, t], v > 1)
        v = np.where(v > 1, 0, v)
    assert 0.05 < got.mean() < 0.95
