"""Networks of SpikingJelly: the float graph spikes as the network itself does in float64."""

from __future__ import annotations

import importlib
import os
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import stl_deploy
from stl_deploy.backends import tool_env
from stl_deploy.backends.consumers import run as runs
from stl_deploy.errors import BackendError
from stl_deploy.importers.torch import families
from stl_deploy.ir import execute as float_exec
from stl_deploy.ir import nir_graph as G
from tests.build import jelly_nets as nets
from tests.build.networks import values

PACKAGES = "STL_SPIKINGJELLY"  # where it lies, if not in its environment
PARTS = ("neuron", "layer", "functional", "surrogate")
MODES = ["s", "m"]


@pytest.fixture(scope="module")
def sj():
    """SpikingJelly's modules, of the environment that stl-check runs it in."""
    packages = os.environ.get(PACKAGES)
    if packages is None:
        try:
            tool_env.ensure(runs.environment("current"))
        except BackendError as error:
            if os.environ.get("CI") == "true":
                pytest.fail(f"CI must run the tools: {error}")
            pytest.skip(str(error))
        (packages,) = map(str, runs.environment("current").folder.glob("lib/python*/site-packages"))
    sys.path.append(packages)
    found = {
        part: importlib.import_module(f"spikingjelly.activation_based.{part}") for part in PARTS
    }
    yield SimpleNamespace(**found)
    sys.path.remove(packages)


def made(net, seed=0, gain=4.0):
    """``net`` with weights and statistics that make it spike."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                module.reset_parameters()
                module.weight *= gain
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.running_var.uniform_(0.1, 0.4)
                module.running_mean.uniform_(-0.2, 0.1)
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.1, 0.3)
    return net.eval()


def spikes_of(net, sj, x, one_step, held):
    """What the neurons of ``net`` send in float64 [N, T, ...], of x [N, T, ...]."""
    found = {}
    hooks = [
        module.register_forward_hook(
            lambda module, args, out, name=name: found.setdefault(name, []).extend(
                out.double() if module.step_mode == "m" else [out.double()]
            )
        )
        for name, module in families.neurons_of(net).items()
    ]
    net.double()
    sj.functional.reset_net(net)
    given = torch.tensor(x).transpose(0, 1)
    with torch.no_grad():
        for part in given if one_step else [given[0] if held else given]:
            net(part)
    for hook in hooks:
        hook.remove()
    net.float()
    sj.functional.reset_net(net)
    return {name: torch.stack(steps, 1).numpy() for name, steps in found.items()}


def agrees(net, sj, shape, one_step=False, held=False, steps=6, samples=30, seed=1, **options):
    """The float graph of ``net``, each layer of which spikes as it does, and is seen to spike."""
    x = values((samples, steps, *shape), 0.4, seed=seed).astype(np.float64)
    if held:
        x = np.repeat(x[:, :1], steps, axis=1)
    given = torch.tensor(x[:2], dtype=torch.float32)
    sample = given[:, 0] if one_step or held else given.transpose(0, 1)
    graph = stl_deploy.from_torch(net, sample, timesteps=steps, **options)
    want = spikes_of(net, sj, x, one_step, held)
    got = float_exec.run(graph, x)
    assert set(want) <= set(got)
    for name, spikes in want.items():
        assert 0.01 < spikes.mean() < 0.95, (name, spikes.mean())
        differ = int((got[name].reshape(spikes.shape) != spikes).sum())
        assert differ == 0, (name, differ)
    return graph


@pytest.mark.parametrize("kind", ["LIFNode", "IFNode"])
@pytest.mark.parametrize("mode", MODES)
def test_a_classifier(sj, mode, kind):
    net = made(nets.CSNN(sj, mode, kind))
    graph = agrees(net, sj, (2, 8, 8), one_step=mode == "s", steps=5)
    assert G.float_meta(graph).classes == 5


def test_a_frame_that_is_repeated(sj):
    graph = agrees(made(nets.CSNN(sj, "m", "IFNode")), sj, (2, 8, 8), held=True, steps=5)
    assert G.float_meta(graph).held


FIELDS = {
    "IFNode": [{}, {"v_reset": None}, {"v_threshold": 0.7, "v_reset": -0.3}],
    "LIFNode": [
        {"tau": 1.6, "decay_input": decay, "v_reset": reset}
        for decay in (True, False)
        for reset in (0.0, None, 0.15, -0.25)
    ],
    "ParametricLIFNode": [{"decay_input": True}, {"decay_input": False, "v_reset": None}],
    "KLIFNode": [
        {"scale_reset": scaled, "v_reset": reset}
        for scaled in (True, False)
        for reset in (0.0, None, 0.1)
    ],
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("kind", "fields"), [(kind, fields) for kind, every in FIELDS.items() for fields in every]
)
def test_neurons(sj, kind, fields, mode):
    net = made(nets.dense(sj, mode, kind, **fields))
    with torch.no_grad():
        for module in net:
            if kind == "ParametricLIFNode" and hasattr(module, "w"):
                module.w.fill_(0.4)
            if kind == "KLIFNode" and hasattr(module, "k"):
                module.k.fill_(1.3)
    agrees(net, sj, (12,), one_step=mode == "s")


@pytest.mark.parametrize("kind", ["LIFNode", "IFNode"])
def test_containers(sj, kind):
    agrees(made(nets.Containers(sj, kind)), sj, (2, 8, 8))


@pytest.mark.parametrize("cnf", ["ADD", "AND", "IAND"])
@pytest.mark.parametrize("shortcut", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_a_block_of_spikes(sj, mode, shortcut, cnf):
    net = made(nets.Block(sj, mode, cnf, shortcut), gain=6.0)
    net.fc.weight.data *= 6
    net.fc.bias.data += 1
    agrees(net, sj, (2, 6, 6), one_step=mode == "s")


def test_a_loop_behind_a_part_that_is_computed_once(sj):
    agrees(made(nets.Loop(sj)), sj, (2, 8, 8), held=True)
