"""How importers say that they read the populations of a model, and who stated it."""

from __future__ import annotations

import numpy as np
import pytest
import snntorch as snn
import torch
from torch import nn

import stl_deploy
from stl_deploy.errors import InputError, UncheckedWarning
from stl_deploy.importers.given import Given
from stl_deploy.importers.read import read
from stl_deploy.ir import nir_graph as G
from tests.build.nets import random_net


class Net(nn.Module):
    """Neurons of both resets over time."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(6, 20), nn.Linear(20, 4)
        self.late = snn.Leaky(beta=0.8, threshold=0.3)
        self.now = snn.Leaky(beta=0.8, threshold=0.3, reset_mechanism="zero", reset_delay=False)

    def forward(self, x):
        first, second, out = self.late.reset_mem(), self.now.reset_mem(), []
        for t in range(len(x)):
            spikes, first = self.late(self.first(x[t]), first)
            spikes, second = self.now(self.second(spikes), second)
            out.append(spikes)
        return torch.stack(out)


def told(graph):
    return {r.population: r for r in stl_deploy.read_as(graph)}


SAMPLE = (torch.rand(7, 2, 6, generator=torch.Generator().manual_seed(0)) < 0.5).float()


def test_layers_of_snntorch_by_their_class_and_reset():
    late, now = stl_deploy.read_as(stl_deploy.from_torch(Net(), SAMPLE))
    assert (late.population, late.neuron, late.source) == ("late", "snntorch.Leaky", "late")
    assert (late.reset, late.when) == ("subtract", "next step")
    assert (now.reset, now.when) == ("zero", "same step")
    assert (now.timesteps, now.dt, now.spikes, now.assumed) == (7, None, 1, ())


@pytest.mark.parametrize(
    ("given", "steps", "who"), [(None, 7, "file"), (7, 7, "file"), (9, 9, "option")]
)
def test_the_steps_of_a_loop_are_stated(given, steps, who):
    for record in stl_deploy.read_as(stl_deploy.from_torch(Net(), SAMPLE, timesteps=given)):
        assert (record.timesteps, record.origin["timesteps"]) == (steps, who)


def test_our_checkpoints_state_everything(tmp_path):
    net = random_net("FC12-LIF-FC10-LIF", shape=(1, 4, 4))
    stl_deploy.save_checkpoint(net, tmp_path / "m.pt")
    for graph in (stl_deploy.from_torch(net), read(tmp_path / "m.pt", Given()).graph):
        for record in told(graph).values():
            assert (record.neuron, record.reset, record.when) == ("LIF", "zero", "same step")
            assert (record.timesteps, record.assumed) == (net.arch.timesteps, ())


@pytest.mark.parametrize(
    ("given", "tau", "steps", "origin"),
    [
        ({}, 0.5, 4, {"tau": "assumed", "timesteps": "assumed"}),
        ({"tau": 0.25, "timesteps": 6}, 0.25, 6, {"tau": "option", "timesteps": "option"}),
        ({"raster": "x.npz"}, 0.5, 9, {"tau": "assumed", "timesteps": "raster"}),
    ],
)
def test_what_an_official_state_dict_leaves_open(tmp_path, given, tau, steps, origin):
    np.savez(tmp_path / "x.npz", spikes=np.zeros((1, 9, 16), np.uint8))
    path = tmp_path / "official.pt"
    torch.save(random_net("FC12-LIF-FC10-LIF", shape=(16,)).state_dict(), path)
    if "raster" in given:
        given = {"raster": tmp_path / given["raster"]}
    graph = read(path, Given(**given)).graph
    assert G.float_meta(graph).timesteps == steps
    for record in told(graph).values():
        assert (record.tau, record.timesteps, record.origin) == (tau, steps, origin)


def test_reading_says_nothing_of_graphs_without_it_and_names_other_types():
    graph = stl_deploy.from_torch(random_net("FC12-LIF-FC10-LIF", shape=(1, 4, 4)))
    network = stl_deploy.quantize(graph)
    assert stl_deploy.read_as(network) == stl_deploy.read_as(graph) != ()
    with pytest.raises(InputError, match="source"):
        stl_deploy.read_as("net.nir")


def test_one_step_of_a_forward_leaves_t_open():
    net = nn.Sequential(nn.Linear(6, 9), snn.Leaky(beta=0.5, threshold=0.1, init_hidden=True))
    with pytest.warns(UncheckedWarning, match=r"Sequential: assumed, .*: T \(4\)"):
        (record,) = stl_deploy.read_as(stl_deploy.from_torch(net, SAMPLE[0]))
    assert (record.timesteps, record.assumed) == (4, ("timesteps",))
