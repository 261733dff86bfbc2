"""Graphs in training: each kind of block and of neurons is trained a few steps, exported and run as integers.

In float64 the float graph's spikes are those of the PyTorch network, 0 differing.
"""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch

import stl_deploy
from stl_deploy.commands.train import main
from stl_deploy.errors import InputError, LoweringError
from stl_deploy.formats.raster import Raster
from stl_deploy.importers import stl
from stl_deploy.importers.given import Checkpoint
from stl_deploy.ir import execute
from stl_deploy.ir.arch import Architecture
from stl_deploy.ir.floats import decode
from stl_deploy.models import joint, qat
from stl_deploy.models.net import STLNet, from_params
from stl_deploy.models.train import Settings, Trainer
from stl_deploy.verify.against_float import compare
from tests.build.arch_graphs import Drawn
from tests.build.files import bars, write_images
from tests.build.nets import random_net, random_spikes

IMAGE, VECTOR = (2, 8, 8), (12,)
STEPS, SAMPLES, CLASSES = 5, 24, 4
SYSTEMS = {
    "basic": ("4C3-BN-LIF-4R3-6R3S2-A1-FC8-LIF-AvgPool2", IMAGE),
    "sew": ("4C3-BN-LIF-4SEW3-6SEW3S2-A2-FC4-LIF", IMAGE),
    "preactivated": ("4C3-4PA3-6PA3S2-BN-LIF-A1-FC4-LI[tau=0]-Mean", IMAGE),
    "dense": ("3DB3x2-6C1-BN-LIF-P4-FC4-LIF", IMAGE),
    "dense currents": ("4C3-2DC3x2-BN-LIF-A2-FC4-LI[tau=0]-Mean", IMAGE),
    "tebn": ("4C3-BN-LIF[tau=0.25,gain]-A4-4C3-BN-LIF[tau=0.25,gain]-FC4-LI[tau=0]-Mean", IMAGE),
    "stork": (
        "FC12-LIF[tau=0.9,current=0.8,hold=1,recurrent=3]-FC4-LI[tau=0.95,current=0.8,v0=-0.001]-Max",
        VECTOR,
    ),
    "dale": (
        "FC12-LIF[tau=0.9,current=0.8,current2=0.9,recurrent=3,inhibitory=4]-FC8[inhibitory=4]-"
        "LIF[current=0.5,current2=0.7]-FC4-LI[tau=0.95]-Max",
        VECTOR,
    ),
    "time-based": (
        "4C3-LIF[tau=0.8,current=0.66,reset_current]-A4-FC4-LIF[tau=0.8,current=0.66,reset_current]",
        IMAGE,
    ),
    "adaptive": ("FC12-LIF[adapt=0.3,adapt_keep=0.9]-FC8-LIF[reset=subtract]-AvgPool2", VECTOR),
    "fires once": ("4C3-LIF[tau=1,hold=-1]-P4-FC8-LIF[tau=1,hold=-1]-First2", IMAGE),
}


def data(shape):
    """Rasters in which a class has more spikes in one part, and labels."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, SAMPLES)
    x = rng.random((SAMPLES, STEPS, *shape))
    x[np.arange(SAMPLES), :, ..., labels] *= 0.5
    return torch.from_numpy((x < 0.4).astype(np.uint8)), torch.from_numpy(labels)


def trained(text, shape, **settings):
    arch = Architecture.parse(text, shape, timesteps=STEPS)
    given = {"encoding": "recorded", "epochs": 1, "batch": 12, "threshold": 0.3, **settings}
    return Trainer(arch, Settings(**given))


@pytest.mark.parametrize(("text", "shape"), SYSTEMS.values(), ids=list(SYSTEMS))
def test_a_trained_graph_is_what_is_exported(text, shape, tmp_path):
    t = trained(text, shape)
    x, y = data(shape)
    before = {name: value.clone() for name, value in t.model.named_parameters()}
    (report,) = t.run(x, y, held_out=(x, y))
    fire = {s.name for s in t.model.arch.layers if s.kind == "lif" and s.fires}
    assert set(report.rates) == set(report.test_rates) == set(report.thresholds) == fire
    assert all(not torch.equal(v, before[name]) for name, v in t.model.named_parameters())

    stl_deploy.save_checkpoint(t.trained(), tmp_path / "model.pt")
    read = stl.read(tmp_path / "model.pt")
    assert read.arch == t.model.arch
    net = from_params(read.arch, read.params).double()
    with torch.no_grad():
        sent, v = net.trace(x)
        classes = net(x).argmax(1).numpy()
        # What is counted while it learns is what its populations send.
        rates = {n: s.double().mean().item() for n, s in t.model.eval().run(x).items() if n in fire}
    assert report.test_rates == pytest.approx(rates)
    graph = stl_deploy.from_torch(net)
    ran = execute.trace(graph, x.numpy())
    assert sum(int((ran.sent[n] != s.numpy()).sum()) for n, s in sent.items()) == 0
    assert sum(float(s.sum()) for s in sent.values()) > 0
    readout = decode(graph).readout
    if v is not None:
        last = read.arch.layers[-1].name
        np.testing.assert_allclose(ran.v.reshape(v.shape), v.numpy(), rtol=0, atol=1e-12)
        np.testing.assert_array_equal(readout.predict(ran.sent[last], ran.v), classes)

    network = stl_deploy.quantize(graph, chip="ideal")
    assert network.readout.rule == read.arch.readout
    report = compare(net, graph, network, Raster(x.numpy(), y.numpy()))
    assert report.nir_differing == 0
    assert report.accuracy_float == (classes == y.numpy()).mean()
    # Weights of 8 bits and more: what rounding changes where all before it is equal.
    assert max(layer.mismatch_forced for layer in report.layers) < 0.02


@pytest.mark.parametrize("seed", range(8))
def test_random_graphs(seed):
    arch = Drawn(seed).architecture()
    net = random_net(arch, seed).double()
    x = random_spikes(net, 3, seed)
    with torch.no_grad():
        sent = net.run(torch.from_numpy(x))
    edges = stl.to_graph(arch, stl.params_of(net)).edges
    assert len(set(edges)) == len(edges)  # which NIR's readers may count once
    graph = stl_deploy.from_torch(net)
    got = execute.run(graph, x)
    assert sum(int((got[n] != s.numpy()).sum()) for n, s in sent.items()) == 0
    assert Architecture.from_dict(arch.to_dict()) == arch
    stl_deploy.quantize(graph, chip="ideal")


def test_a_graph_goes_on_where_it_was_cut_off(tmp_path):
    text, shape = SYSTEMS["stork"]
    x, y = data(shape)
    runs = [trained(text, shape, epochs=2) for _ in range(3)]
    whole, first, second = runs
    list(whole.run(x, y))
    next(iter(first.run(x, y)))
    first.save(tmp_path / "s.pt")
    second.resume(tmp_path / "s.pt")
    assert len(list(second.run(x, y))) == 1
    expected, got = whole.model.state_dict(), second.model.state_dict()
    assert all(torch.equal(value, got[name]) for name, value in expected.items())
    assert second.history == whole.history


@pytest.mark.parametrize("text", ["4C3-BN-LIF-4R3-FC4-LIF", "FC8-LIF-FC4-LI-Max"])
def test_what_has_no_members(text):
    arch = Architecture.parse(text, IMAGE)
    nets = [Checkpoint(arch, stl.params_of(STLNet(arch))) for _ in range(2)]
    what = "add1: joins layers" if "R3" in text else "readout: classes are read by max"
    with pytest.raises(InputError, match=f"network 1: {what}") as caught:
        joint.join(nets)
    assert len(caught.value.problems) == 2


def test_what_is_not_trained_on_integers():
    arch = Architecture.parse("4C3-BN-LIF-A8-4R3-A4-FC4[inhibitory=1]-LI-Mean", IMAGE)
    with pytest.raises(LoweringError) as caught:
        qat.from_checkpoint(Checkpoint(arch, stl.params_of(STLNet(arch))), 8, "ideal")
    told = [(problem.where, problem.what) for problem in caught.value.problems]
    what = "average pooling cannot be trained on integers"
    assert told == [("avg1", what), ("avg2", what)]


def test_an_architecture_from_a_file(tmp_path, monkeypatch, capsys):
    write_images(tmp_path, *bars())
    arch = Architecture.parse("3C3-BN-LIF-3R3-FC10-LI-Mean", (1, 6, 6), timesteps=3)
    path, out = tmp_path / "net.json", tmp_path / "model.pt"
    path.write_text(json.dumps(arch.to_dict()))
    args = ("--data", tmp_path, "--arch", path, "--epochs", 1, "-o", out)
    assert command(monkeypatch, *args) == 0
    assert stl.read(out).arch == arch
    capsys.readouterr()
    assert command(monkeypatch, *args, "--force", "--timesteps", 4) == 2
    assert "--timesteps: comes from" in capsys.readouterr().err
    path.write_text(json.dumps(arch.to_dict() | {"input": {"shape": [1, 8, 8]}}))
    assert command(monkeypatch, *args, "--force") == 2
    assert "is (1, 8, 8), the data has (1, 6, 6)" in " ".join(capsys.readouterr().err.split())
    path.write_text("{")
    assert command(monkeypatch, *args, "--force") == 2
    assert "is not JSON" in capsys.readouterr().err


def command(monkeypatch, *args):
    monkeypatch.setattr(sys, "argv", ["stl-train", *map(str, args)])
    with pytest.raises(SystemExit) as stop:
        main()
    return stop.value.code
