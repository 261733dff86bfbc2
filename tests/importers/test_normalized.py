"""Inputs: numbers that a network was trained on after a normalization, signed ones, frames that are held."""

from __future__ import annotations

import nir
import numpy as np
import pytest
import snntorch as snn
import torch
from torch import nn

import stl_deploy
from stl_deploy.commands import export, parity
from stl_deploy.errors import InputError, LoweringError
from stl_deploy.importers.given import Normalize
from stl_deploy.importers.nir import graph as nir_graph
from stl_deploy.ir import execute as float_exec
from stl_deploy.ir import nir_graph as G
from tests.build import nir_interpreter
from tests.build.nir_graphs import chain, lif
from tests.build.torch_nets import command, made, spikes_of

HOW = {"beta": 0.5, "init_hidden": True, "threshold": 0.5}
CHANNELS = (0.2, 0.6), (0.5, 0.25)


class Padded(nn.Module):
    """Convolutions with a rim of zeros around what they are given."""

    one_step = True

    def __init__(self, neurons):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1), neurons, nn.Conv2d(4, 3, 3, padding=1),
            snn.Leaky(**HOW), nn.Flatten(), nn.Linear(75, 5), snn.Leaky(**HOW),
        )  # fmt: skip

    def forward(self, x):
        return self.body(x)


def images(levels, signed=False, steps=6):
    low = -levels if signed else 0
    return np.random.default_rng(3).integers(low, levels + 1, (8, steps, 2, 5, 5))


def normalized(raster, levels, mean, std):
    mean, std = (np.resize(v, 2).reshape(2, 1, 1) for v in (mean, std))
    return (raster / levels - mean) / std


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("levels", [1, 15])
@pytest.mark.parametrize("normalize", [(0.3, 0.5), CHANNELS])
def test_a_normalization_is_exact_behind_zero_padding(normalize, levels, signed):
    net = made(Padded, snn.Leaky(**HOW), gain=4)
    raster = images(levels, signed)
    want = spikes_of(net, normalized(raster, levels, *normalize), torch.float64)
    sample = torch.tensor(normalized(raster[:2, 0], levels, *normalize), dtype=torch.float32)
    graph = stl_deploy.from_torch(
        net, sample, levels=levels, signed=signed, normalize=normalize, timesteps=6
    )
    got = float_exec.run(graph, raster)
    for name, spikes in want.items():
        assert 0.02 < spikes.mean() < 0.9
        np.testing.assert_array_equal(got[name].reshape(spikes.shape), spikes)
    leak = graph.nodes["body.1"].v_leak.reshape(4, 5, 5)
    assert (np.ptp(leak, axis=(1, 2)) > 0).all()  # the rim has another constant
    meta = G.float_meta(graph)
    assert (meta.input_levels, meta.signed, meta.held) == (levels, signed, False)


def test_the_check_normalizes_too():
    """Given as trained, a network whose normalization is left out spikes otherwise, and is not refused."""
    net = made(Padded, snn.Leaky(**HOW), gain=4)
    raster = images(15)
    sample = torch.tensor(normalized(raster[:2, 0], 15, *CHANNELS), dtype=torch.float32)
    with_it, without = (
        stl_deploy.from_torch(net, sample, levels=15, normalize=how) for how in (CHANNELS, None)
    )
    a, b = (float_exec.run(graph, raster)["body.1"] for graph in (with_it, without))
    assert (a != b).mean() > 0.01


def test_a_constant_of_each_neuron_through_a_current_is_refused():
    synaptic = snn.Synaptic(alpha=0.5, **HOW, reset_mechanism="zero", reset_delay=False)
    net = made(Padded, synaptic)
    with pytest.raises(LoweringError, match="passes through a current") as error:
        stl_deploy.from_torch(net, torch.rand(1, 2, 5, 5), normalize=CHANNELS)
    assert error.value.problems[0].where == "body.1 (Synaptic)"


def test_a_normalization_of_a_nir_graph():
    """As the interpreter reads a graph that has it in nodes of its own."""
    rng = np.random.default_rng(0)
    weight = rng.normal(0, 0.5, (3, 4))
    plain = chain(nir.Linear(weight), lif(3))
    scale, shift = nir.Scale(np.full(4, 1 / 0.5 / 7)), nir.Affine(np.eye(4), np.full(4, -0.4 / 0.5))
    spelled = chain(scale, shift, nir.Linear(weight), lif(3))
    raster = rng.integers(0, 8, (6, 9, 4))
    want = nir_interpreter.run(spelled, raster)[0]["n3"]
    graph = stl_deploy.from_nir(plain, levels=7, normalize=(0.4, 0.5))
    assert 0.05 < want.mean() < 0.9
    np.testing.assert_array_equal(float_exec.run(graph, raster)["n1"], want)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("0.5", "'0.5' is not MEAN,STD"),
        ("a,b", "'a,b' is not MEAN,STD"),
        ("0.5,0.1,2", "'0.5,0.1,2' is not MEAN,STD"),
        ("0.5,0", "the standard deviation 0 is not above 0"),
        ("0.5,nan", "not as many finite means"),
    ],
)
def test_numbers_that_are_no_normalization(text, what):
    with pytest.raises(InputError, match=what) as error:
        Normalize.parsed(text)
    assert error.value.problems[0].where == "--normalize"


def test_a_mean_of_each_channel():
    assert Normalize.parsed("0.1,0.2,0.3,1,2,3") == ((0.1, 0.2, 0.3), (1, 2, 3))
    options = nir_graph.Options(normalize=Normalize.of((0.1, 0.2, 0.3), (1, 2, 3)))
    with pytest.raises(InputError, match="3 means for the 4 channels of an input of shape"):
        nir_graph.to_float(chain(nir.Linear(np.ones((3, 4))), lif(3)), options)


class Static(nn.Module):
    """One frame, read in every step of a loop."""

    def __init__(self, late=False):
        super().__init__()
        self.fc, self.lif = nn.Linear(12, 8), snn.Leaky(beta=0.8)
        self.late = late

    def forward(self, x):
        mem, out = self.lif.reset_mem(), []
        for t in range(7):
            spikes, mem = self.lif(self.fc(x[t] if self.late else x), mem)
            out.append(spikes)
        return torch.stack(out)


def test_a_frame_that_every_step_reads_is_held():
    net = made(Static, gain=1.5)
    frames = np.random.default_rng(1).random((9, 1, 12)) < 0.4
    graph = stl_deploy.from_torch(net, torch.tensor(frames[:2, 0], dtype=torch.float32))
    meta = G.float_meta(graph)
    assert (meta.held, meta.timesteps) == (True, 7)
    with torch.no_grad():
        want = net.double()(torch.tensor(frames[:, 0], dtype=torch.float64)).swapaxes(0, 1)
    got = float_exec.run(graph, frames)["lif"]
    assert got.shape == (9, 7, 8)
    assert 0.02 < got.mean() < 0.9
    np.testing.assert_array_equal(got, want)
    network = stl_deploy.quantize(graph, "loihi2")
    assert network.inputs["input"].held


def test_a_frame_of_each_step_is_not_held():
    net = made(Static, late=True)
    assert not G.float_meta(stl_deploy.from_torch(net, torch.rand(7, 1, 12))).held


def padded():
    return made(Padded, snn.Leaky(**HOW), gain=4)


def test_a_normalized_network_on_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.save(padded().state_dict(), "net.pt")
    np.savez("in.npz", spikes=images(15).astype(np.uint8))
    said = ["--model-class", f"{__name__}:padded", "--sample-shape", "1,2,5,5"]
    said += ["--normalize", "0.2,0.6,0.5,0.25"]
    words = ["net.pt", *said, "--target", "nir", "--timesteps", "6", "--levels", "15", "-o", "out"]
    assert command(export.export, *words) == 0
    words = ["net.pt", "out/model.nir", *said, "--input", "in.npz"]
    assert command(parity.parity, *words, "--max-mismatch-forced", "0.05") == 0
    said[-1] = "0,0,1,1"  # another network
    words = ["net.pt", "out/model.nir", *said, "--input", "in.npz"]
    assert command(parity.parity, *words, "--max-mismatch-forced", "0.05") == 1
