"""What networks of snnTorch return in place of spikes: membranes, and what linear layers make of spikes.

The readout of the graph must give what forward returns, up to the rounding of float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import snntorch as snn
import torch
from torch import nn

import stl_deploy
from stl_deploy.errors import UncheckedWarning
from stl_deploy.ir import execute as float_exec
from stl_deploy.ir import floats
from tests.build.torch_nets import agrees, made, raster, refused, sample_of

STEPS = 15
WEIGHTS = torch.linspace(2, 1, STEPS)[:, None, None]


class Net(nn.Module):
    """fc1 -> lif1 -> fc2 -> lif2, and ``back``, which makes what is returned of spikes and membranes."""

    def __init__(
        self, back: Callable[..., Any], cell: Callable[..., Any] | None, **how: Any
    ) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(12, 20), nn.Linear(20, 6), nn.Linear(6, 5)
        self.lif1 = snn.Leaky(beta=0.8)
        self.lif2 = None if cell is None else cell(beta=0.7, **how)
        self.back = back

    def forward(self, x):
        mem = self.lif1.reset_mem()
        state = () if self.lif2 is None else self.lif2.reset_mem()
        state = state if isinstance(state, tuple) else (state,)
        hidden, out, mems = [], [], []
        for x_t in x:
            spikes, mem = self.lif1(self.fc1(x_t), mem)
            hidden.append(spikes)
            if self.lif2 is not None:
                spikes, *left = self.lif2(self.fc2(spikes), *state)
                state = (spikes, *left) if len(state) > len(left) else tuple(left)
                out.append(spikes)
                mems.append(left[-1])
        return self.back(self, hidden) if self.lif2 is None else self.back(out, mems)


def readout(net: nn.Module, factor: float = 1.0) -> Any:
    """The readout of the graph of ``net``, whose scores are ``factor`` times what ``net`` returns."""
    inputs = raster((12,), samples=8, steps=STEPS)
    graph = stl_deploy.from_torch(net, sample_of(net, inputs))
    network = floats.decode(graph)
    ran = float_exec.trace(network, inputs)
    scores = network.readout.scores(ran.sent[network.output], ran.v)
    with torch.no_grad():
        want = net(torch.tensor(inputs, dtype=torch.float32).transpose(0, 1))
    want = want.double().numpy()
    np.testing.assert_allclose(scores, want * factor, rtol=1e-4, atol=1e-4)
    assert np.ptp(scores, axis=1).min() > 0
    return network


MEMBRANES = {
    "last": (lambda _, m: m[-1], "last", 1),
    "last of a stack": (lambda _, m: torch.stack(m)[-1], "last", 1),
    "batch first": (lambda _, m: torch.stack(m, 1)[:, -1], "last", 1),
    "sum": (lambda _, m: torch.stack(m).sum(0), "mean", 1),
    "mean": (lambda _, m: torch.stack(m, 1).mean(dim=1), "mean", STEPS),
    "added up": (lambda _, m: sum(m), "mean", 1),
    "max": (lambda _, m: torch.max(torch.stack(m), 0)[0], "max", 1),
    "amax": (lambda _, m: torch.stack(m, 1).amax(-2), "max", 1),
}


@pytest.mark.parametrize("how", MEMBRANES)
def test_membranes(how):
    back, rule, factor = MEMBRANES[how]
    network = readout(made(Net, back, snn.Leaky, reset_mechanism="none"), factor)
    assert network.readout.rule == rule
    assert not network.by_name["lif2"].neurons.fires


CELLS = {
    "Leaky, subtract": (snn.Leaky, {}),
    "Leaky, zero at once": (snn.Leaky, {"reset_mechanism": "zero", "reset_delay": False}),
    "Lapicque": (snn.Lapicque, {}),
    "Lapicque, none": (snn.Lapicque, {"reset_mechanism": "none"}),
    "Synaptic, none": (snn.Synaptic, {"alpha": 0.6, "reset_mechanism": "none"}),
    "Synaptic, subtract": (snn.Synaptic, {"alpha": 0.6}),
    "RLeaky, none": (snn.RLeaky, {"linear_features": 6, "reset_mechanism": "none"}),
    "RLeaky, subtract": (snn.RLeaky, {"linear_features": 6}),
}


@pytest.mark.parametrize("cell", CELLS)
def test_membranes_of_neurons_that_reset(cell):
    kind, fields = CELLS[cell]
    readout(made(Net, lambda _, m: m[-1], kind, **fields))


@pytest.mark.parametrize("cell", [snn.Lapicque, snn.RLeaky, snn.Synaptic])
def test_a_membrane_before_a_late_reset_to_zero_is_refused(cell):
    more = {snn.RLeaky: {"linear_features": 6}, snn.Synaptic: {"alpha": 0.6}}.get(cell, {})
    net = made(Net, lambda _, m: m[-1], cell, reset_mechanism="zero", **more)
    assert "its membrane is returned as it is before a reset" in refused(net, torch.rand(9, 1, 12))


LINEAR = {
    "sum": (lambda s, o: torch.stack([s.fc2(x) for x in o]).sum(0), 1),
    "mean": (lambda s, o: torch.stack([s.fc2(x) for x in o]).mean(0), STEPS),
    "of a stack": (lambda s, o: s.fc2(torch.stack(o)).sum(0), 1),
    "of a sum": (lambda s, o: s.fc2(torch.stack(o).sum(0)), 1),
    "of a mean": (lambda s, o: s.fc2(torch.stack(o, 1).mean(1)), STEPS),
    "two": (lambda s, o: s.fc3(s.fc2(torch.stack(o).mean(0))), STEPS),
    "two, one in each step": (lambda s, o: s.fc3(torch.stack([s.fc2(x) for x in o]).sum(0)), 1),
    "added to zeros": (lambda s, o: added(s, o), 1),
    "last": (lambda s, o: s.fc2(o[-1]), 1),
    "weighted": (lambda s, o: (torch.stack([s.fc2(x) for x in o]) * WEIGHTS).sum(0), 1),
    "a step that counts twice": (lambda s, o: s.fc2(o[0]) + s.fc2(o[-1]) + s.fc2(o[-1]), 1),
    "leaky": (lambda s, o: leaky(s, o), 1),
    "max": (lambda s, o: torch.stack([s.fc2(x) for x in o]).max(0).values, 1),
}


def added(net, hidden):
    total = torch.zeros(len(hidden[0]), 6)
    for spikes in hidden:
        total = total + net.fc2(spikes)
    return total


def leaky(net, hidden):
    total = net.fc2(hidden[0])
    for spikes in hidden[1:]:
        total = 0.9 * total + net.fc2(spikes)
    return total


@pytest.mark.parametrize("how", LINEAR)
def test_linear_layers_behind_the_last_spikes(how):
    back, factor = LINEAR[how]
    network = readout(made(Net, back, None), factor)
    assert network.readout.rule == ("max" if how == "max" else "votes")


def test_every_step_of_a_linear_layer():
    inputs = raster((12,), samples=8, steps=STEPS)
    net = made(Net, lambda s, o: torch.stack([s.fc2(x) for x in o]), None)
    network = floats.decode(stl_deploy.from_torch(net, sample_of(net, inputs)))
    assert network.readout.matrix.shape == (6, 20)


def test_every_step_of_a_membrane_is_read_by_its_mean():
    net = made(Net, lambda _, m: torch.stack(m), snn.Leaky, reset_mechanism="none")
    with pytest.warns(UncheckedWarning, match="lif2: the membrane of lif2 is returned as it is"):
        graph = stl_deploy.from_torch(net, torch.rand(9, 2, 12))
    assert floats.decode(graph).readout.rule == "mean"


def test_spikes_come_before_membranes():
    net = made(Net, lambda o, m: (torch.stack(o), torch.stack(m)), snn.Leaky)
    graph = agrees(net, raster((12,)))
    assert floats.decode(graph).readout.rule == "votes"


class Normalized(Net):
    """A batch norm with a mean of its own behind the sum of the linear layer."""

    def __init__(self):
        super().__init__(lambda s, o: s.norm(s.fc2(torch.stack(o).sum(0))), None)
        self.norm = nn.BatchNorm1d(6)


def test_a_batch_norm_behind_the_sum():
    net = made(Normalized)
    with torch.no_grad():
        net.norm.running_mean.copy_(torch.linspace(-2, 3, 6))
    readout(net)


def test_spikes_weighted_by_step():
    net = made(Net, lambda o, _: (torch.stack(o) * WEIGHTS).sum(0), snn.Leaky)
    network = readout(net)
    np.testing.assert_allclose(network.readout.steps, WEIGHTS.flatten().double())


@pytest.mark.parametrize(
    ("back", "text"),
    [
        (
            lambda _, m: (torch.stack(m) * WEIGHTS[:9]).sum(0),
            "weights the membrane of lif2 by step",
        ),
        (lambda _, m: torch.stack(m[5:]).sum(0), "weights the membrane of lif2 by step"),
        (lambda o, _: torch.stack(o).amax(0), "does not return the spikes"),
        (lambda o, m: torch.stack(o) + torch.stack(m), "does not return the spikes"),
        (lambda _, m: torch.cat(m), "does not return the spikes"),
        (lambda _, m: -1.0 * m[-1], "returns the membrane of lif2 times -1"),
        (lambda _, m: -1.0 * torch.stack(m).sum(0), "returns the membrane of lif2 times -1"),
        (lambda o, m: o[-1] + m[-1], "does not return the spikes"),
    ],
)
def test_what_is_no_readout(back, text):
    net = made(Net, back, snn.Leaky, reset_mechanism="none")
    assert text in refused(net, torch.rand(9, 1, 12))


@pytest.mark.parametrize("readout_", ["linear", "membrane"])
def test_what_is_returned_is_compared(readout_):
    """A write that the record does not see changes what is returned."""

    def changed(x):
        x.detach().add_(x)
        return x

    if readout_ == "linear":
        net = made(Net, lambda s, o: changed(s.fc2(torch.stack(o).sum(0))), None)
    else:
        net = made(Net, lambda _, m: changed(m[-1].clone()), snn.Leaky, reset_mechanism="none")
    assert "is not what its graph is read out by" in refused(net, torch.rand(9, 1, 12))


class Step(nn.Module):
    """One step a call, states inside."""

    def __init__(self, membrane):
        super().__init__()
        self.fc1, self.lif1, self.fc2 = (
            nn.Linear(12, 20),
            snn.Leaky(beta=0.8, init_hidden=True),
            nn.Linear(20, 6),
        )
        self.lif2 = snn.Leaky(beta=0.8, init_hidden=True, output=True, reset_mechanism="none")
        self.membrane = membrane

    def forward(self, x):
        x = self.fc2(self.lif1(self.fc1(x)))
        return self.lif2(x)[1] if self.membrane else x


@pytest.mark.parametrize("membrane", [True, False])
def test_a_forward_that_is_one_step(membrane):
    net = made(Step, membrane)
    if not membrane:
        net.lif2 = None
    x = torch.tensor(raster((12,), samples=3)[:, 0], dtype=torch.float32)
    network = floats.decode(stl_deploy.from_torch(net, x, timesteps=5))
    assert network.readout.rule == ("mean" if membrane else "votes")


ONE_STEP = {
    "spikes": lambda s, x: s.lif(s.fc1(x))[0],
    "membrane": lambda s, x: s.lif(s.fc1(x))[1],
    "layers": lambda s, x: s.fc2(s.lif(s.fc1(x))[0]),
}


class Multiple(nn.Module):
    """One step, or all of them, of which ``times`` something is returned."""

    def __init__(self, what, times, loops=False):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(12, 6), nn.Linear(6, 5)
        how = {"init_hidden": True, "output": True, "reset_mechanism": "none"}
        self.lif = snn.Leaky(beta=0.8, threshold=0.5, **how)
        self.what, self.times, self.loops = ONE_STEP[what], times, loops

    def forward(self, x):
        if not self.loops:
            return self.times(self.what(self, x))
        self.lif.reset_mem()
        return torch.stack([self.times(self.what(self, step)) for step in x])


def doubled(y):
    return y + y


@pytest.mark.parametrize("loops", [False, True])
@pytest.mark.parametrize("what", ONE_STEP)
@pytest.mark.parametrize("times", [lambda y: 3 * y, doubled], ids=["3*y", "y+y"])
@pytest.mark.filterwarnings("ignore::stl_deploy.errors.UncheckedWarning")
def test_a_multiple_of_what_is_read_out(what, times, loops):
    """It decides for the same class."""
    inputs = raster((12,), samples=3, steps=4)
    x = torch.tensor(inputs, dtype=torch.float32)
    scores = []
    for factor in (times, lambda y: y):
        net = made(Multiple, what, factor, loops)
        graph = stl_deploy.from_torch(net, x.swapaxes(0, 1) if loops else x[:, 0])
        network = floats.decode(graph)
        ran = float_exec.trace(network, inputs)
        scores.append(network.readout.scores(ran.sent[network.output], ran.v))
    assert np.ptp(scores[0], axis=1).min() > 0
    np.testing.assert_array_equal(*(np.argmax(found, axis=1) for found in scores))


@pytest.mark.parametrize("what", ONE_STEP)
@pytest.mark.parametrize("times", [-1, 0])
def test_a_multiple_that_changes_which_class_is_largest(what, times):
    net = made(Multiple, what, lambda y: times * y)
    text = refused(net, torch.rand(2, 12))
    assert "forward: returns " in text
    assert f"of lif times {times} -> multiply it by a number above 0" in text


@pytest.mark.parametrize("reset", ["subtract", "zero", "none"])
@pytest.mark.parametrize("cell", [snn.Lapicque, snn.Leaky, snn.RLeaky, snn.Synaptic])
def test_every_reset_of_the_last_neurons(cell, reset):
    """As spikes, with snnTorch's own default of a reset that comes a step late."""
    more = {snn.RLeaky: {"linear_features": 6}, snn.Synaptic: {"alpha": 0.6}}.get(cell, {})
    gain = 5 if cell is snn.Lapicque else 2.5
    net = made(Net, lambda o, _: torch.stack(o), cell, gain=gain, reset_mechanism=reset, **more)
    agrees(net, raster((12,), steps=STEPS))
