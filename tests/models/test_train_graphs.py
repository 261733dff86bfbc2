"""Graphs in training: each kind of block and of neurons is trained a few steps, exported and run as integers.

In float64 the float graph's spikes are those of the PyTorch network, 0 differing.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

import stl_deploy
from stl_deploy.formats import checkpoint
from stl_deploy.hw_sim.engine import Engine
from stl_deploy.importers import stl
from stl_deploy.ir import execute
from stl_deploy.ir.arch import Architecture
from stl_deploy.models.net import from_params
from stl_deploy.models.train import Settings, Trainer
from stl_deploy.ir.floats import decode

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
    found = Engine(network).run(x.numpy())
    assert network.readout.rule == read.arch.readout
    assert found.predictions.shape == (SAMPLES,)
