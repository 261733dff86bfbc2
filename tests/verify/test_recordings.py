"""Recordings (``--expect``): the right reading passes, another one fails and names its first neuron."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import nir
import numpy as np
import pytest
import torch

import stl_deploy
from stl_deploy.commands.expected import print_expected
from stl_deploy.errors import InputError
from stl_deploy.formats import nir_io
from stl_deploy.formats import raster as rasters
from stl_deploy.formats import recording as recordings
from stl_deploy.ir import execute as float_exec
from stl_deploy.ir.floats import decode
from stl_deploy.verify import against_recording
from stl_deploy.verify.recorded import ReadingError
from tests.build import float_graphs, rule_floats, rule_runs
from tests.build.nir_graphs import chain

DT, STEPS, SAMPLES = 1e-4, 12, 6


class Net:
    """Two layers of LIF neurons behind weights, in float32, by an account of its own."""

    def __init__(self, reset: str, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.reset = reset
        self.weights = [rng.normal(0, 0.6, size).astype(np.float32) for size in ((9, 7), (5, 9))]
        self.biases = [rng.normal(0, 0.1, n).astype(np.float32) for n in (9, 5)]
        self.keep, self.theta = np.float32(0.75), np.float32(1.0)

    def run(self, spikes: np.ndarray) -> dict[str, np.ndarray]:
        """Spikes [N, T, n] of both layers."""
        x, sent = spikes.astype(np.float32), {}
        for name, weight, bias in zip(("1", "3"), self.weights, self.biases, strict=False):
            v = np.zeros((len(x), len(bias)), np.float32)
            out = np.zeros((*x.shape[:2], len(bias)), np.uint8)
            for t in range(x.shape[1]):
                v = self.keep * v + (x[:, t] @ weight.T + bias)
                out[:, t] = fired = v > self.theta
                v = np.where(fired, v - self.theta if self.reset == "subtract" else 0, v)
                v = v.astype(np.float32)
            sent[name] = out
            x = out.astype(np.float32)
        return sent

    def graph(self) -> nir.NIRGraph:
        """The same for NIR, which does not say the reset."""
        nodes: dict[str, nir.ir.NIRNode] = {"input": nir.Input({"input": np.array([7])})}
        tau = DT / (1 - float(self.keep))
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            one = np.ones(len(bias))
            nodes[str(2 * i)] = nir.Affine(weight, bias)
            lif = nir.LIF(tau=tau * one, r=tau / DT * one, v_leak=0 * one, v_threshold=one)
            nodes[str(2 * i + 1)] = lif
        nodes["output"] = nir.Output({"output": np.array([5])})
        names = list(nodes)
        return nir.NIRGraph(nodes=nodes, edges=list(pairwise(names)))


def spikes_of(seed: int = 1, samples: int = SAMPLES) -> np.ndarray:
    return (np.random.default_rng(seed).random((samples, STEPS, 7)) < 0.5).astype(np.uint8)


def read(net: Net, reset: str = "zero") -> nir.NIRGraph:
    graph = net.graph()
    for name in ("1", "3"):
        graph.nodes[name].metadata["reset"] = reset
    return stl_deploy.from_nir(graph, dt=DT, timesteps=STEPS)


def named(sent: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {f"spikes/{name}": values for name, values in sent.items()}


def compared(graph, spikes, arrays, **kwargs):
    return against_recording.compare(graph, spikes, recordings.of(arrays), **kwargs)


@pytest.mark.parametrize("reset", ["zero", "subtract"])
@pytest.mark.parametrize("batch", [2, 25])
def test_a_right_recording_passes_with_nothing_that_differs(reset, batch):
    net, spikes = Net(reset), spikes_of()
    sent = net.run(spikes)
    found = compared(read(net, reset), spikes, named(sent), batch=batch)
    assert found.passed
    assert found.samples == SAMPLES
    assert [(p.name, p.entries, p.spikes) for p in found.populations] == [
        (name, values.size, int(values.sum())) for name, values in sent.items()
    ]
    assert found.differing == found.tied == 0
    assert all(p.cascaded == 0 for p in found.populations)
    assert all(0.05 < p.spikes / p.entries < 0.9 for p in found.populations)
    assert found.missing == found.silent == ()


@pytest.mark.parametrize("reached", [False, True])
def test_another_compare_hides_in_ties_and_is_warned_of(reached, capsys):
    """Weights are multiples of 1/4, and the tool spikes at v >= threshold where ``reached``."""
    rng = np.random.default_rng(3)
    weight, spikes = rng.integers(-4, 9, (6, 7)) / 4, spikes_of()
    sent, v = np.zeros((*spikes.shape[:2], 6)), np.zeros((len(spikes), 6))
    for t in range(STEPS):
        v = v + spikes[:, t] @ weight.T
        sent[:, t] = v >= 1 if reached else v > 1
        v = v - sent[:, t]
    node = nir.IF(r=np.ones(6), v_threshold=np.ones(6))
    graph = chain(nir.Linear(weight), node, inputs=(7,), outputs=(6,))
    read_so = stl_deploy.from_nir(graph, reset="subtract", timesteps=STEPS)
    found = compared(read_so, spikes, {"spikes/n1": sent})
    assert found.passed
    assert found.tying == (("n1",) if reached else ())
    print_expected(found)
    assert ("v >= threshold" in " ".join(capsys.readouterr().err.split())) == reached


@pytest.mark.parametrize("reset", ["zero", "subtract"])
@pytest.mark.parametrize("batch", [1, 25])
def test_the_other_reset_fails_and_the_first_neuron_is_where_brute_force_finds_it(reset, batch):
    other = {"zero": "subtract", "subtract": "zero"}[reset]
    net, spikes = Net(reset), spikes_of()
    want, got = net.run(spikes), Net(other).run(spikes)
    found = compared(read(net, other), spikes, named(want), batch=batch)
    assert not found.passed
    first, second = found.populations
    # The first layer is fed by the raster on both sides.
    assert first.differing == first.cascaded == int((want["1"] != got["1"]).sum())
    assert second.cascaded == int((want["3"] != got["3"]).sum())
    sample, step, neuron = (int(i) for i in np.argwhere(want["1"] != got["1"])[0])
    miss = first.first
    assert (miss.sample, miss.step, miss.neuron) == (sample, step, (neuron,))
    assert (miss.recorded, miss.gives) == (
        want["1"][sample, step, neuron],
        got["1"][sample, step, neuron],
    )
    assert (miss.v > miss.threshold) == bool(miss.gives)
    # Each population answers for itself: the second was given what the first was recorded to send.
    alone = Net(other)
    alone.weights, alone.biases = alone.weights[1:], alone.biases[1:]
    assert second.differing == int((want["3"] != alone.run(want["1"])["1"]).sum())
    assert first.reset == second.reset == reset
    problem = next(found.problems())
    assert problem.where == "1"
    assert f"sample {sample}, step {step}, neuron ({neuron})" in problem.what
    assert problem.remedy.startswith(
        f"with reset {reset} far fewer differ, but the model states {other}"
    )


def test_voltages_of_a_miss_are_those_of_the_reading():
    net, spikes = Net("subtract"), spikes_of()
    miss = compared(read(net), spikes, named(net.run(spikes))).populations[0].first
    v, (k,) = 0.0, miss.neuron
    for t in range(miss.step + 1):
        v = 0.75 * v + spikes[miss.sample, t] @ net.weights[0][k].astype(float) + net.biases[0][k]
        before, v = v, 0.0 if v > 1 else v
    assert miss.v == pytest.approx(before, abs=1e-9)
    assert miss.threshold == 1.0


def test_what_rounding_decides_is_a_tie_and_does_not_count():
    """A neuron of ten inputs of 0.1 reaches 1 by the order of the sum."""
    one = np.ones(1)
    nodes = {
        "input": nir.Input({"input": np.array([10])}),
        "fc": nir.Affine(np.full((1, 10), 0.1), np.zeros(1)),
        "lif": nir.LIF(tau=DT * one, r=one, v_leak=0 * one, v_threshold=one),
        "output": nir.Output({"output": np.array([1])}),
    }
    nodes["lif"].metadata["reset"] = "zero"
    names = list(nodes)
    graph = stl_deploy.from_nir(nir.NIRGraph(nodes=nodes, edges=list(pairwise(names))), timesteps=4)
    spikes = np.ones((2, 4, 10), np.uint8)
    spikes[1, :, 5:] = 0  # half of it
    ours = float_exec.run(graph, spikes)["lif"]
    theirs = ours.copy()
    theirs[0, 1] = 1 - theirs[0, 1]
    found = compared(graph, spikes, {"spikes/lif": theirs})
    assert found.passed
    assert (found.populations[0].tied, found.differing) == (3, 0)  # steps 1 to 3 of this sample
    theirs[1, 2] = 1 - theirs[1, 2]
    found = compared(graph, spikes, {"spikes/lif": theirs})
    assert not found.passed
    assert (found.populations[0].first.sample, found.populations[0].first.step) == (1, 2)


def test_one_spike_too_many_is_seen():
    net, spikes = Net("zero"), spikes_of()
    sent = net.run(spikes)
    quiet = np.argwhere(sent["3"] == 0)[-1]
    sent["3"][tuple(quiet)] = 1
    found = compared(read(net), spikes, named(sent))
    assert [p.differing for p in found.populations] == [0, 1]
    assert found.populations[1].first.neuron == (quiet[2],)


def test_several_spikes_in_a_step_are_named():
    net, spikes = Net("zero"), spikes_of()
    sent = net.run(spikes)
    sent["1"] = sent["1"] * 3
    (problem, *_) = compared(read(net), spikes, named(sent)).problems()
    assert "up to 3 spikes in a step" in problem.remedy


def test_fewer_populations_and_samples():
    net, spikes = Net("zero"), spikes_of()
    last = net.run(spikes)["3"][:4]
    found = compared(read(net), spikes, {"spikes/3": last})
    assert found.passed
    assert found.samples == 4
    assert found.missing == ("1",)
    (problem,) = compared(read(net, "subtract"), spikes, {"spikes/3": last}).problems()
    assert problem.where == "3"


@pytest.mark.parametrize("made", ["steps", "sum", "mean"])
def test_outputs(made):
    net, spikes = Net("subtract"), spikes_of()
    last = net.run(spikes)["3"].astype(np.float32)
    outputs = {"steps": last, "sum": last.sum(1), "mean": last.mean(1)}[made]
    right, wrong = (
        compared(read(net, reset), spikes, {"outputs": outputs}) for reset in ("subtract", "zero")
    )
    assert right.passed
    assert right.outputs.entries == outputs.size
    assert made in right.outputs.what.replace("each step", "steps")
    assert not wrong.passed
    (problem,) = wrong.problems()
    assert problem.where == "outputs"
    assert "sample 0" in problem.what


@pytest.mark.parametrize(
    ("rule", "what"), [("last", "last step"), ("max", "highest"), ("mean", "mean")]
)
def test_outputs_that_are_voltages(rule, what):
    rng = np.random.default_rng(3)
    weight = rng.normal(0, 1, (4, 7)).astype(np.float32)
    one = np.ones(4)
    nodes = {
        "input": nir.Input({"input": np.array([7])}),
        "fc": nir.Affine(weight, np.zeros(4)),
        "li": nir.LI(tau=4 * DT * one, r=4 * one, v_leak=0 * one),
        "output": nir.Output({"output": np.array([4])}),
    }
    names = list(nodes)
    edges = list(pairwise(names))
    graph = stl_deploy.from_nir(
        nir.NIRGraph(nodes=nodes, edges=edges), dt=DT, timesteps=STEPS, readout=rule
    )
    spikes = spikes_of()
    v, steps = np.zeros((SAMPLES, 4), np.float32), []
    for t in range(STEPS):
        v = np.float32(0.75) * v + spikes[:, t].astype(np.float32) @ weight.T
        steps.append(v)
    by_step = np.stack(steps, axis=1)
    every = {"last": by_step[:, -1], "max": by_step.max(1), "mean": by_step.mean(1)}
    assert compared(graph, spikes, {"outputs": by_step}).passed
    found = compared(graph, spikes, {"outputs": every[rule]})
    assert found.passed
    assert what in found.outputs.what
    for other in every.keys() - {rule}:
        assert not compared(graph, spikes, {"outputs": every[other]}).passed
    by_step[3, 2, 1] += 0.01
    missed = compared(graph, spikes, {"outputs": by_step}).outputs.first
    assert (missed.sample, missed.step, missed.place) == (3, 2, 1)


WRONG = {
    "unknown": (
        {"spikes/lif9": np.zeros((6, 12, 9))},
        "is not a population of the model",
        "it has 1, 3",
    ),
    "shape": ({"spikes/1": np.zeros((6, 12, 8))}, r"not \[N, 12, 9\]", "samples first"),
    "swapped": ({"spikes/1": np.zeros((12, 6, 9))}, "has shape", "swapaxes"),
    "steps": ({"spikes/1": np.zeros((6, 11, 9))}, "has shape", "all 12 steps"),
    "samples": ({"spikes/1": np.zeros((7, 12, 9))}, "holds 7 samples, the raster 6", "record"),
    "counts": (
        {"spikes/1": np.zeros((6, 12, 9)), "spikes/3": np.zeros((5, 12, 5))},
        "5, 6",
        "same",
    ),
    "key": ({"lif1": np.zeros((6, 12, 9))}, "is not part of a recording", "np.savez"),
    "type": ({"spikes/1": np.full((6, 12, 9), "a")}, "has type", "uint8"),
    "nan": ({"spikes/1": np.full((6, 12, 9), np.nan)}, "NaN", "record"),
    "halves": ({"spikes/1": np.full((6, 12, 9), 0.5)}, "holds 0.5", "amplitude"),
    "negative": ({"spikes/1": np.full((6, 12, 9), -1)}, "holds -1", "send"),
    "axes": ({"spikes/1": np.zeros((6, 12))}, r"not \[N, T, \*shape\]", "axes"),
    "outputs": ({"outputs": np.zeros((6, 4))}, r"not \[N, 5\]", "class"),
    "outputs, steps": ({"outputs": np.zeros((12, 6, 5))}, r"not \[N, 12, 5\]", "swapaxes"),
    "empty": ({"spikes/1": np.zeros((0, 12, 9))}, "is empty", "one sample"),
    "nothing": ({}, "holds no arrays", "np.savez"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_does_not_fit_is_named(kind, tmp_path):
    arrays, what, remedy = WRONG[kind]
    path = tmp_path / "recording.npz"
    np.savez(path, **arrays)
    with pytest.raises(InputError, match=what) as caught:
        against_recording.compare(read(Net("zero")), spikes_of(), recordings.load(path))
    assert any(remedy in problem.remedy for problem in caught.value.problems)


def test_everything_that_is_wrong_is_named_at_once():
    arrays = {
        "spikes/9": np.zeros((6, 12, 9)),
        "spikes/3": np.zeros((6, 12, 8)),
        "outputs": np.zeros((6, 9)),
    }
    with pytest.raises(InputError) as caught:
        compared(read(Net("zero")), spikes_of(), arrays)
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize("damage", ["cut", "pickle", "text"])
def test_a_damaged_file_is_an_error(tmp_path, damage):
    path = tmp_path / "recording.npz"
    np.savez(path, **{"spikes/1": np.zeros((6, 12, 9))})
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-40])
    elif damage == "text":
        path.write_text("spikes")
    else:
        np.savez(path, **{"spikes/1": np.array([{}], dtype=object)})
    with pytest.raises(InputError, match="is not a recording"):
        recordings.load(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """net.nir, its raster, and recordings of both resets."""
    spikes = spikes_of()
    nir_io.write(Net("zero").graph(), tmp_path / "net.nir")
    rasters.save(tmp_path / "test.npz", rasters.Raster(spikes), {})
    for reset in ("zero", "subtract"):
        np.savez(tmp_path / f"{reset}.npz", **named(Net(reset).run(spikes)))
    return tmp_path


@pytest.fixture
def here(folder, monkeypatch) -> Path:
    monkeypatch.chdir(folder)
    return folder


EXPORT = ("stl-export", "net.nir", "--target", "nir", "--eval", "test.npz", "-o", "out")
PARITY = ("stl-parity", "net.nir", "out/model.nir", "--input", "test.npz")


def test_an_export_says_what_came_of_it(command, here):
    code, out, _ = command(*EXPORT, "--expect", "zero.npz")
    assert code == 0
    assert "The model as read and zero.npz, 6 samples" in out
    manifest = json.loads(Path("out/manifest.json").read_text())
    expected = manifest["expected"]
    assert (expected["passed"], expected["samples"], expected["not_recorded"]) == (True, 6, [])
    assert [p["differing"] for p in expected["populations"]] == [0, 0]
    assert "zero.npz" in Path("out/report.html").read_text()
    code, out, _ = command(*EXPORT, "--force", "--json", "--expect", "zero.npz")
    assert json.loads(out)["expected"] == expected
    code, *_ = command(*EXPORT, "--force")
    assert "expected" not in json.loads(Path("out/manifest.json").read_text())


@pytest.mark.parametrize("json_too", [(), ("--json",)])
def test_an_export_that_differs_writes_nothing_and_names_the_neuron(command, here, json_too):
    before = sorted(here.iterdir())
    code, out, err = command(*EXPORT, "--expect", "subtract.npz", *json_too)
    assert code == 1
    assert sorted(here.iterdir()) == before
    miss = compared(read(Net("zero")), spikes_of(), named(Net("subtract").run(spikes_of())))
    first = miss.populations[0].first
    assert first.text in err
    assert "1: " in err
    assert "--reset subtract" in err
    assert bool(out) != bool(json_too)


def test_parity_fails_where_the_recording_differs(command, here):
    assert command(*EXPORT)[0] == 0
    code, out, _ = command(*PARITY, "--expect", "zero.npz", "--json")
    assert (code, json.loads(out)["expected"]["passed"]) == (0, True)
    code, out, err = command(*PARITY, "--expect", "subtract.npz")
    assert code == 1
    assert "The model as read and subtract.npz" in out
    assert "failed 1: " in err.replace("\n", " ")
    code, out, _ = command(*PARITY, "--expect", "subtract.npz", "--json", "--limit", "2")
    found = json.loads(out)
    assert (code, found["passed"], found["expected"]["samples"]) == (1, False, 2)
    assert found["expected"]["populations"][0]["first"]["sample"] == 0
    code, out, _ = command(*PARITY, "--json")
    assert (code, json.loads(out)["expected"]) == (0, None)


def test_a_recording_goes_with_the_raster_and_a_float_model(command, here):
    code, _, err = command("stl-export", "net.nir", "--target", "nir", "--expect", "zero.npz")
    assert (code, "--eval" in err) == (2, True)
    assert command(*EXPORT)[0] == 0
    args = ("stl-export", "out/model.nir", "--target", "nir", "--eval", "test.npz", "-o", "again")
    code, _, err = command(*args, "--expect", "zero.npz")
    assert (code, "--expect do not apply" in err) == (2, True)
    Path("no.npz").write_text("{}")
    code, _, err = command(*EXPORT, "--force", "--expect", "no.npz")
    assert (code, "is not a recording" in err) == (2, True)


def test_in_python(folder):
    net, spikes = Net("zero"), spikes_of()
    graph = read(net)
    network = stl_deploy.quantize(graph, chip="ideal")
    arrays = named(net.run(spikes))
    for expect in (arrays, folder / "zero.npz", str(folder / "zero.npz")):
        report = stl_deploy.parity(graph, network, spikes, expect=expect)
        report.expected.check()
    report = stl_deploy.parity(graph, network, spikes, expect=folder / "subtract.npz")
    assert not report.expected.passed
    with pytest.raises(ReadingError, match="sample 0"):
        report.expected.check()
    assert stl_deploy.parity(graph, network, spikes).expected is None


@pytest.mark.parametrize("kind", [bool, np.int64, np.float16, np.float64, torch.tensor, list])
def test_numbers_of_any_kind(kind):
    net, spikes = Net("zero"), spikes_of()
    sent = net.run(spikes)["1"]
    values = {torch.tensor: torch.tensor, list: np.ndarray.tolist}.get(
        kind, lambda x: x.astype(kind)
    )(sent)
    assert compared(read(net), spikes, {"spikes/1": values}).passed
    assert not compared(read(net, "subtract"), spikes, {"spikes/1": values}).passed


def test_a_flat_recording_of_an_image_is_the_same():
    rng = np.random.default_rng(5)
    nodes = {
        "input": nir.Input({"input": np.array([1, 6, 6])}),
        "conv": nir.Conv2d((6, 6), rng.normal(0, 1, (2, 1, 3, 3)), 1, 1, 1, 1, np.zeros(2)),
        "lif": nir.LIF(
            *(np.full((2, 6, 6), x) for x in (2e-4, 2.0, 0.0, 1.0)), metadata={"reset": "zero"}
        ),
        "output": nir.Output({"output": np.array([2, 6, 6])}),
    }
    graph = stl_deploy.from_nir(
        nir.NIRGraph(nodes=nodes, edges=list(pairwise(nodes))), timesteps=STEPS
    )
    spikes = (rng.random((3, STEPS, 1, 6, 6)) < 0.4).astype(np.uint8)
    sent = float_exec.run(graph, spikes)["lif"]
    for values in (sent, sent.reshape(3, STEPS, -1)):
        assert compared(graph, spikes, {"spikes/lif": values}).passed
    wrong = sent.copy()
    wrong[1, 4, 1, 2, 3] ^= 1
    (population,) = compared(graph, spikes, {"spikes/lif": wrong}).populations
    assert (population.first.sample, population.first.step) == (1, 4)
    assert population.first.neuron == (1, 2, 3)


RUNS = [
    *((f"graph {seed}", lambda seed=seed: float_graphs.draw(seed)) for seed in range(6)),
    *((rule, lambda rule=rule: ran_of(rule)) for rule in rule_floats.RULES),
]


def ran_of(rule: str) -> tuple[nir.NIRGraph, np.ndarray]:
    """The float graph and raster of a rule of neurons."""
    ran = rule_runs.of(rule)
    return ran.graph, ran.raster


@pytest.mark.parametrize("made", [run for _, run in RUNS], ids=[name for name, _ in RUNS])
def test_every_rule_and_graph_equals_what_it_sends(made):
    """Skips, loops, delays, rules of neurons; a planted spike is found where it is."""
    graph, inputs = made()
    network = decode(graph)
    sent = float_exec.run(graph, inputs)
    seen: dict[str, list[np.ndarray]] = {}

    def watch(name, _step, v, threshold):
        seen.setdefault(name, []).append(v > threshold)

    float_exec.trace(graph, inputs, watch=watch)
    arrays = {}
    for population in network.populations:
        name = population.name
        if not population.neurons.fires:
            continue
        np.testing.assert_array_equal(np.stack(seen[name], axis=1), sent[name] != 0)
        arrays[f"spikes/{name}"] = sent[name]
    assert compared(graph, inputs, arrays).passed
    key, name = next((k, k.removeprefix("spikes/")) for k in arrays if not graded(network, k))
    planted = arrays[key].copy()
    at = tuple(np.argwhere(planted == 0)[-1])
    planted[at] = 3  # more than rounding makes
    found = compared(graph, inputs, {**arrays, key: planted})
    assert not found.passed
    first = next(p for p in found.populations if p.name == name).first
    assert (first.sample, first.step, *first.neuron) == at


def graded(network, key):
    return network.by_name[key.removeprefix("spikes/")].neurons.graded


def test_broken_bytes_end_in_an_error_of_ours(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "recording.npz"
    np.savez_compressed(path, **named(Net("zero").run(spikes_of())))
    whole, graph = path.read_bytes(), read(Net("zero"))
    places: list[str] = []
    for _ in range(300):
        data = bytearray(whole)
        for at in rng.integers(0, len(data), rng.integers(1, 6)):
            data[at] = rng.integers(256)
        path.write_bytes(bytes(data))
        try:
            against_recording.check(graph, spikes_of(), recordings.load(path))
        except InputError as error:
            places += [problem.where for problem in error.problems]
    assert len(places) > 100
    assert all(str(path) in place for place in places)


def test_the_table_of_a_project(command, here):
    assert command(*EXPORT)[0] == 0
    table = '[tool.stl-deploy.parity]\nmodel = "net.nir"\nlowered = "out/model.nir"\ninput = "test.npz"\n'
    for reset, code in (("zero", 0), ("subtract", 1)):
        Path("pyproject.toml").write_text(f'{table}expect = "{reset}.npz"\n')
        assert command("stl-parity")[0] == code
