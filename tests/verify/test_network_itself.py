"""The user's own network on the raster, in float32 and float64: in whatever form its forward takes it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import snntorch as snn
import torch
from torch import nn

import stl_deploy
from stl_deploy.errors import UncheckedWarning
from stl_deploy.importers.given import Normalize
from stl_deploy.importers.nir.graph import Options
from stl_deploy.importers.torch.net import lowered
from stl_deploy.verify import against_network
from stl_deploy.verify.recorded import ReadingError
from tests.build.torch_nets import made, raster, spikes_of

STEPS = 15


class Form(nn.Module):
    """Two layers; ``step`` is what all forms of forward do in a step."""

    one_step = False

    def __init__(self, beta: float = 0.8) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(12, 20), snn.Leaky(beta=beta)
        self.fc2, self.lif2 = nn.Linear(20, 6), snn.Leaky(beta=beta, reset_mechanism="zero")

    def states(self) -> list[torch.Tensor]:
        return [self.lif1.init_leaky(), self.lif2.init_leaky()]

    def step(self, x: torch.Tensor, mem: list[torch.Tensor]) -> torch.Tensor:
        spikes, mem[0] = self.lif1(self.fc1(x), mem[0])
        spikes, mem[1] = self.lif2(self.fc2(spikes), mem[1])
        return spikes


class TimeFirst(Form):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mem = self.states()
        return torch.stack([self.step(x[t], mem) for t in range(len(x))])


class BatchFirst(Form):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mem = self.states()
        return torch.stack([self.step(x[:, t], mem) for t in range(x.shape[1])], dim=1)


class Permuted(TimeFirst):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.transpose(0, 1))


class Flat(TimeFirst):
    """Images, which each step flattens."""

    def step(self, x: torch.Tensor, mem: list[torch.Tensor]) -> torch.Tensor:
        return super().step(x.flatten(1), mem)


class Written(TimeFirst):
    """The number of steps and samples stands in the code."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.reshape(STEPS, 2, 12))


class OneStep(nn.Module):
    one_step = True

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(12, 20), snn.Leaky(beta=0.8, init_hidden=True)
        self.fc2, self.lif2 = nn.Linear(20, 6), snn.Leaky(beta=0.8, init_hidden=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lif2(self.fc2(self.lif1(self.fc1(x))))


class Held(Form):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mem = self.states()
        return torch.stack([self.step(x, mem) for _ in range(STEPS)])


def in_form(kind: type[nn.Module], inputs: np.ndarray) -> torch.Tensor:
    """Two samples as forward takes them."""
    x = torch.tensor(inputs[:2], dtype=torch.float32)
    if kind in (BatchFirst, Permuted):
        return x
    if kind is OneStep or kind is Held:
        return x[:, 0]
    if kind is Flat:
        return x.transpose(0, 1).reshape(STEPS, 2, 1, 3, 4)
    return x.transpose(0, 1)


@pytest.mark.parametrize("kind", [TimeFirst, BatchFirst, Permuted, Flat, Written, OneStep, Held])
@pytest.mark.parametrize("samples", [1, 30])
def test_forms_of_forward(kind, samples):
    net, inputs = made(kind), raster((12,), samples, STEPS)
    if kind is Held:
        inputs = inputs[:, :1]
    sample = in_form(kind, raster((12,), 2, STEPS, seed=5))
    found = lowered(net, sample, Options(timesteps=STEPS))
    single, double = found.live.run(inputs)
    as_time_first = made(TimeFirst)
    as_time_first.load_state_dict(net.state_dict())
    if kind is OneStep:
        as_time_first = net
    every = np.broadcast_to(inputs, (samples, STEPS, 12)).copy()
    for dtype, got in ((torch.float32, single), (torch.float64, double)):
        want = spikes_of(as_time_first, every, dtype)
        assert set(got) == set(want)
        for name, spikes in want.items():
            assert 0.02 < spikes.mean() < 0.9
            np.testing.assert_array_equal(got[name], spikes)
    itself = against_network.compare(found.live, found.graph, inputs, batch=7)
    assert itself.why == ""
    assert itself.expected.passed
    assert (itself.expected.samples, itself.expected.entries) == (samples, samples * STEPS * 26)
    assert itself.expected.differing == 0
    assert found.live.wide == (kind is not Written)


@pytest.mark.parametrize("kind", [TimeFirst, BatchFirst, Permuted, OneStep])
def test_another_number_of_steps_than_that_of_the_sample(kind):
    net, inputs = made(kind), raster((12,), 5, 9)
    found = lowered(net, in_form(kind, raster((12,), 2, STEPS)), Options(timesteps=9))
    itself = against_network.compare(found.live, found.graph, inputs)
    assert itself.expected.passed
    assert itself.expected.entries == 5 * 9 * 26


@pytest.mark.parametrize("kind", [Written, Held])
def test_a_forward_that_takes_no_such_raster_is_told(kind):
    inputs = raster((12,), 5, 9)[:, : 1 if kind is Held else None]
    found = lowered(made(kind), in_form(kind, raster((12,), 2, STEPS)), Options(timesteps=9))
    itself = against_network.compare(found.live, found.graph, inputs)
    assert itself.expected is itself.float32 is None
    (note,) = itself.notes
    assert "cannot be run on the raster" in note.what
    assert "15" in note.what


def test_normalized_inputs():
    net, inputs = made(TimeFirst, gain=4), raster((12,), 8, STEPS) * 3
    options = Options(timesteps=STEPS, levels=4, normalize=Normalize.of(0.3, 0.5))
    found = lowered(net, in_form(TimeFirst, inputs), options)
    single, _ = found.live.run(inputs)
    want = spikes_of(net, (inputs / 4 - 0.3) / 0.5)
    for name, spikes in want.items():
        np.testing.assert_array_equal(single[name], spikes)
    assert against_network.compare(found.live, found.graph, inputs).expected.passed


def test_another_graph_fails_and_names_the_neuron():
    net, inputs = made(TimeFirst), raster((12,), 8, STEPS)
    found = lowered(net, in_form(TimeFirst, inputs), Options(timesteps=STEPS))
    found.graph.nodes["lif2"].v_threshold = found.graph.nodes["lif2"].v_threshold + 0.3
    itself = against_network.compare(found.live, found.graph, inputs)
    first, second = itself.expected.populations
    assert (first.differing, first.first) == (0, None)
    assert second.differing > 0
    with pytest.raises(
        ReadingError, match="spikes differ from the network itself; sample"
    ) as caught:
        itself.expected.check()
    assert caught.value.problems[0].where == "lif2"


def test_what_float32_changes_is_counted_and_no_difference_of_the_graph():
    """Sums of tenths reach the threshold or not by the order of their rounding."""
    net = made(TimeFirst, 0.5, gain=1)
    with torch.no_grad():
        for layer in (net.fc1, net.fc2):
            layer.weight.copy_(torch.full_like(layer.weight, 0.1))
            layer.bias.zero_()
    inputs = raster((12,), 25, STEPS)
    found = lowered(net, in_form(TimeFirst, inputs), Options(timesteps=STEPS))
    itself = against_network.compare(found.live, found.graph, inputs)
    # In float32 the order of a sum hangs on the layout of the input too: both runs are the network's own.
    single, double = found.live.run(inputs)
    assert itself.float32 == {n: int((single[n] != double[n]).sum()) for n in single}
    assert sum(itself.float32.values()) > 0
    for name, want in spikes_of(net, inputs, torch.float64).items():
        np.testing.assert_array_equal(double[name], want)
    assert itself.expected.passed


class InSingle(TimeFirst):
    """A network that takes no float64."""

    def step(self, x: torch.Tensor, mem: list[torch.Tensor]) -> torch.Tensor:
        if mem[0].dtype == torch.float64 or self.fc1.weight.dtype == torch.float64:
            raise RuntimeError("no float64 here")
        return super().step(x, mem)


def test_a_network_that_runs_in_float32_alone():
    net, inputs = made(InSingle), raster((12,), 8, STEPS)
    found = lowered(net, in_form(TimeFirst, inputs), Options(timesteps=STEPS))
    itself = against_network.compare(found.live, found.graph, inputs)
    assert itself.expected.passed
    assert itself.float32 is None
    assert "does not run in float64" in itself.notes[0].what


def test_on_the_command_line(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    net, inputs = made(TimeFirst), raster((12,), 20, STEPS)
    torch.save(net.state_dict(), "net.pt")
    np.savez("in.npz", spikes=inputs)
    said = ("net.pt", "--model-class", f"{__name__}:TimeFirst", "--sample-shape", "15,1,12")
    args = ("stl-export", *said, "--target", "nir", "--eval", "in.npz", "-o", "out")
    code, out, _ = command(*args)
    assert code == 0
    assert "differs from the network itself in 0 of 7,800 spikes; it must be 0" in out
    layers = json.loads(Path("out/manifest.json").read_text())["parity"]["layers"]
    assert [(la["float32_mismatch"], la["nir_mismatch"]) for la in layers] == [(0, 0), (0, 0)]
    args = ("stl-parity", said[0], "out/model.nir", *said[1:], "--input", "in.npz")
    code, out, _ = command(*args)
    assert code == 0
    assert (
        "(a) Float against float: the float NIR graph differs from the network itself in 0" in out
    )
    code, out, _ = command(*args, "--json", "--limit", "4")
    found = json.loads(out)["comparisons"]["float_nir"]
    assert found == {
        "reference": "the network itself, in PyTorch",
        "compared": "float NIR graph in float64",
        "rule": "exact but for ties",
        "entries": 4 * STEPS * 26,
        "differing": 0,
        "tied": 0,
        "passed": True,
    }


def test_a_network_that_differs_on_the_command_line(command, tmp_path, monkeypatch):
    """What differs on the raster alone, which the check at import does not see."""
    monkeypatch.chdir(tmp_path)
    net, inputs = made(TimeFirst), raster((12,), 20, STEPS)
    torch.save(net.state_dict(), "net.pt")
    np.savez("in.npz", spikes=inputs)
    said = ("net.pt", "--model-class", f"{__name__}:TimeFirst", "--sample-shape", "15,1,12")
    assert command("stl-export", *said, "--target", "nir", "-o", "out")[0] == 0
    ran = against_network.Batch

    def late(start, inputs, spikes):
        return ran(start, inputs, {**spikes, "lif2": np.roll(spikes["lif2"], 1, axis=1)})

    monkeypatch.setattr(against_network, "Batch", late)
    parity = ("stl-parity", said[0], "out/model.nir", *said[1:], "--input", "in.npz")
    code, _, err = command(*parity)
    assert code == 1
    assert "lif2: " in err
    assert "differ from the network itself; sample 0" in err
    code, _, err = command("stl-export", *said, "--target", "nir", "--eval", "in.npz", "-o", "no")
    assert code == 1
    assert "lif2: " in err
    assert not Path("no").exists()


def test_in_python():
    net, inputs = made(TimeFirst), raster((12,), 20, STEPS)
    sample = in_form(TimeFirst, inputs)
    network = stl_deploy.quantize(stl_deploy.from_torch(net, sample, timesteps=STEPS), chip="ideal")
    report = stl_deploy.parity(net, network, inputs, sample=sample)
    assert report.itself.passed
    assert report.nir_differing == 0
    assert [layer.float32_mismatch for layer in report.layers] == [0, 0]
    held = made(Held)
    image = inputs[:, :1]
    network = stl_deploy.quantize(stl_deploy.from_torch(held, sample[0], timesteps=9), chip="ideal")
    with pytest.warns(UncheckedWarning, match="cannot be run on the raster"):
        report = stl_deploy.parity(held, network, image, sample=sample[0])
    assert report.itself is None


class Talking(TimeFirst):
    """Prints, and ends the process after so many calls."""

    calls = 1 << 30

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        print("forward was here")
        self.calls -= 1
        if self.calls < 0:
            raise SystemExit("no more")
        return super().forward(x)


def test_a_network_that_prints_or_ends_the_process(capsys):
    net, inputs = made(Talking), raster((12,), 60, STEPS)
    found = lowered(net, in_form(TimeFirst, inputs), Options(timesteps=STEPS))
    capsys.readouterr()
    assert against_network.compare(found.live, found.graph, inputs).expected.passed
    out, err = capsys.readouterr()
    assert "forward was here" in err
    assert out == ""
    net.calls = 1  # the second batch is one too many
    itself = against_network.compare(found.live, found.graph, inputs)
    assert itself.expected is None
    assert "SystemExit: no more" in itself.why
