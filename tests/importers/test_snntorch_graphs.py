"""Networks of snnTorch that branch: skips, concatenations, ways back, inputs that are permuted.

Spikes are compared as in ``test_snntorch.py``, layer by layer with the network itself.
"""

from __future__ import annotations

import operator
from collections import Counter

import nir
import numpy as np
import pytest
import snntorch as snn
import torch
from torch import nn

import stl_deploy
from stl_deploy.ir import execute as float_exec
from stl_deploy.ir import floats
from tests.build.torch_nets import agrees, made, raster, refused, spikes_of

HIDDEN = {"beta": 0.5, "init_hidden": True}


def kinds(graph):
    return Counter(type(node).__name__ for node in graph.nodes.values())


def into(graph, name):
    """(source, weights, kind, delay) of all that arrives at a population."""
    found = floats.decode(graph).into(name)
    return [(c.source, c.name, c.way.kind, c.delay) for c in found]


class Residual(nn.Module):
    """Two convolutions with a way around the second; ``join`` says where both meet."""

    one_step = True

    def __init__(self, join, **how):
        super().__init__()
        self.join, how = join, {**HIDDEN, "threshold": 0.4, **how}
        self.c0 = nn.Conv2d(2, 4, 3, padding=1)
        self.l0 = snn.Leaky(**how)
        self.c1 = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.b1 = nn.BatchNorm2d(4)
        self.l1 = snn.Leaky(**how)
        self.side = nn.Conv2d(4, 4, 1)
        self.wide = nn.Conv2d(8, 4, 3, groups=2)
        self.pool = nn.AvgPool2d(2)
        self.l2 = snn.Leaky(**how)
        self.fc = nn.LazyLinear(6)
        self.l3 = snn.Leaky(**how)

    def forward(self, x):
        first = self.l0(self.c0(x))
        second = self.b1(self.c1(first))
        joined = self.join(self, first, second)
        return self.l3(self.fc(joined.flatten(1)))


def sew(add):
    return lambda s, a, b: s.pool(add(s.l1(b), a))


def inside(a, b):
    a += b
    return a


JOINS = {
    "spikes": sew(operator.add),
    "spikes, torch.add": sew(torch.add),
    "spikes, in place": sew(lambda a, b: inside(a.clone(), b)),
    "spikes, sum": sew(lambda a, b: sum([a, b])),
    "currents": lambda s, a, b: s.l1(b + a),
    "currents, projected": lambda s, a, b: s.l1(b + s.side(a)),
    "weighted spikes": lambda s, a, b: s.l2(s.side(s.l1(b)) + 0.5 * a),
    "concatenated": lambda s, a, b: torch.cat([s.l1(b), a], dim=1),
    "concatenated, pooled": lambda s, a, b: s.pool(torch.cat((a, s.l1(b)), -3)),
    "concatenated, convolved": lambda s, a, b: s.l2(s.wide(torch.cat((a, s.l1(b)), 1))),
    "spikes, convolved": lambda s, a, b: s.l2(s.c1(s.l1(b) + a)),
    "currents concatenated": lambda s, a, b: s.l2(torch.cat((b, s.side(a)), 1)),
    "flat, concatenated": lambda s, a, b: torch.cat((s.l1(b).flatten(1), a.flatten(1)), 1),
}


def residual(join, **how):
    net = Residual(JOINS[join], **how)
    with torch.no_grad():
        net(torch.rand(1, 2, 6, 6))  # which sizes the last layer
    for name in "c1", "side":
        getattr(net, name).weight.data *= 1.5
    net.fc.weight.data *= 2
    for m in net.modules():
        if hasattr(m, "reset_mem"):
            m.reset_mem()
    return net


@pytest.mark.parametrize("reset", ["subtract", "zero"])
@pytest.mark.parametrize("join", JOINS)
def test_ways_that_meet(join, reset):
    agrees(
        made(residual, join, gain=2, reset_mechanism=reset), raster((2, 6, 6), samples=10, steps=8)
    )


def test_a_sum_of_spikes_is_one_layer_of_weights():
    graph = agrees(made(residual, "spikes", gain=2), raster((2, 6, 6), samples=10, steps=8))
    assert into(graph, "l3") == [
        ("l0", "fc", "weights", 0),
        ("l1", "fc", "weights", 0),
        ("l3", "l3.reset", "one_to_one", 1),
    ]
    assert kinds(graph)["Affine"] == 1
    assert sum(target == "fc" for _, target in graph.edges) == 1  # from the Flatten of both


def test_an_identity_is_a_number_for_each_neuron():
    graph = agrees(made(residual, "currents", gain=2), raster((2, 6, 6), samples=10, steps=8))
    ways = into(graph, "l1")
    assert sorted(ways[:2]) == [("l0", "add_1", "one_to_one", 0), ("l0", "c1", "weights", 0)]
    assert (graph.nodes["add_1"].scale == 1).all()


def test_a_concatenation_splits_weights():
    """Each source has the columns that read it, and no rows of zeros."""
    join = "concatenated, convolved"
    graph = agrees(made(residual, join, gain=2), raster((2, 6, 6), samples=10, steps=8))
    shapes = {c.source: c.way.weight.shape for c in floats.decode(graph).into("l2")}
    assert shapes == {"l0": (4, 4, 3, 3), "l1": (4, 4, 3, 3), "l2": (4, 4, 4)}


def test_spikes_that_are_added_up_cannot_be_counted():
    net = Residual(lambda s, a, b: s.l1(b) + a, **HIDDEN)
    net.forward = lambda x: net.l1(net.c1(s := net.l0(net.c0(x)))) + s
    assert "does not return the spikes of its last neurons" in refused(net, torch.rand(1, 2, 6, 6))


class Late(nn.Module):
    """Neurons with currents, recurrent or not, and any reset."""

    def __init__(self, cell, bias=True, **how):
        super().__init__()
        self.fc = nn.Linear(12, 9, bias=bias)
        size = {"linear_features": 9} if cell is snn.RSynaptic else {}
        self.lif = cell(alpha=torch.linspace(0.2, 0.8, 9), beta=0.8, **size, **how)

    def forward(self, x):
        state = self.lif.reset_mem()
        out = []
        for x_t in x:
            spikes, *left = self.lif(self.fc(x_t), *state)
            state = [spikes, *left] if len(state) == 3 else left
            out.append(spikes)
        return torch.stack(out)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("reset", ["subtract", "none"])
@pytest.mark.parametrize("cell", [snn.Synaptic, snn.RSynaptic])
def test_resets_of_neurons_with_a_current(cell, reset, bias):
    """What makes up for the reset passes through the current, and is taken out a step later."""
    net = made(Late, cell, bias, gain=2, threshold=1.5, reset_mechanism=reset)
    graph = agrees(net, raster((12,), samples=20))
    delays = sorted(c.delay for c in floats.decode(graph).into("lif"))
    assert delays == [0, 1, 2]


@pytest.mark.parametrize("delay", [True, False])
def test_an_rsynaptic_resets_to_zero_a_step_late(delay):
    """It ignores reset_delay=False, and the input of the step after a spike, but not in the current."""
    net = made(
        Late, snn.RSynaptic, gain=2, threshold=1.5, reset_mechanism="zero", reset_delay=delay
    )
    net.lif.reset_mem = lambda: [torch.zeros(1, 9)] * 3
    graph = agrees(net, raster((12,), samples=20))
    assert floats.decode(graph).by_name["lif"].neurons.hold == 1


@pytest.mark.parametrize("reset", ["subtract", "none"])
def test_convolutions_of_recurrent_neurons(reset):
    neurons = snn.RLeaky(
        conv2d_channels=3, kernel_size=3, reset_mechanism=reset, threshold=0.5, **HIDDEN
    )
    net = made(lambda: nn.Sequential(nn.Conv2d(2, 3, 3), neurons), gain=1.5)
    net.one_step = True
    graph = agrees(net, raster((2, 6, 6), samples=10, steps=8))
    assert kinds(graph)["Conv2d"] == 2
    assert [way[2] for way in into(graph, "1")] == ["weights", "one_to_one", "weights"]


class Betas(nn.Module):
    """Decays of each neuron, of which some do not leak."""

    def __init__(self, cell, betas, **how):
        super().__init__()
        self.fc, self.lif = nn.Linear(12, 8), cell(beta=betas, learn_beta=True, **how)

    def forward(self, x):
        state, out = self.lif.reset_mem(), []
        state = [state] if isinstance(state, torch.Tensor) else list(state)
        for x_t in x:
            spikes, *state = self.lif(self.fc(x_t), *state)
            out.append(spikes)
        return torch.stack(out)


@pytest.mark.parametrize("cell", [snn.Leaky, snn.Synaptic])
def test_decays_of_each_neuron(cell):
    betas = torch.tensor([1.0, 0.9, 0.5, 0.0, 1.0, 0.3, 0.99, 0.75])
    how = {"alpha": 0.5} if cell is snn.Synaptic else {}
    graph = agrees(made(Betas, cell, betas, threshold=2.0, **how), raster((12,), samples=20))
    keep = floats.decode(graph).by_name["lif"].neurons.keep
    np.testing.assert_allclose(keep, betas, rtol=1e-6)
    assert keep[0] == 1


class Axes(nn.Module):
    """fc -> neurons over time; ``seen`` brings time to the front."""

    def __init__(self, seen):
        super().__init__()
        self.seen, self.fc = seen, nn.Linear(12, 8)
        self.lif = snn.Leaky(beta=0.7)

    def forward(self, x):
        x, mem, out = self.seen(x), self.lif.reset_mem(), []
        for t in range(x.size(0)):
            spikes, mem = self.lif(self.fc(x[t].flatten(1)), mem)
            out.append(spikes)
        return torch.stack(out)


@pytest.mark.parametrize(
    ("seen", "front"),
    [
        (lambda x: x.permute(1, 0, 2), lambda x: x),
        (lambda x: x.transpose(0, 1), lambda x: x),
        (lambda x: torch.swapaxes(x, 0, 1), lambda x: x),
        (lambda x: x.movedim(2, 0), lambda x: np.moveaxis(x, 1, 2)),
        (lambda x: x.squeeze(2).transpose(0, 1), lambda x: x[:, :, None]),
        (lambda x: x.transpose(0, 1).unsqueeze(2), lambda x: x),
        (lambda x: x.permute(2, 0, 1, 3).flatten(2), lambda x: x.reshape(*x.shape[:2], 3, 4).swapaxes(1, 2)),
        (lambda x: x.view(-1, 15, 12).transpose(0, 1), lambda x: x.reshape(len(x), -1)),
    ],
)  # fmt: skip
def test_inputs_whose_axes_are_moved(seen, front):
    """``front`` brings a raster [N, T, 12] to the form that the network takes."""
    net, inputs = made(Axes, seen), raster((12,), samples=10)
    given = front(inputs)
    plain = made(Axes, lambda x: x)
    plain.load_state_dict(net.state_dict())
    want = spikes_of(plain, inputs)["lif"]
    graph = stl_deploy.from_torch(net, torch.tensor(given[:2], dtype=torch.float32))
    assert stl_deploy.ir.nir_graph.float_meta(graph).timesteps == inputs.shape[1]
    shape = tuple(graph.nodes["input"].input_type["input"])
    got = float_exec.run(graph, inputs.reshape(*inputs.shape[:2], *shape))["lif"]
    assert 0.05 < want.mean() < 0.9
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    ("seen", "text"),
    [
        (lambda x: x.permute(1, 0, 3, 2), "permute of a tensor that depends on the input"),
        (lambda x: x.flip(0), "flip of a tensor"),
    ],
)
def test_values_in_another_order_are_refused(seen, text):
    assert text in refused(Axes(seen), torch.rand(2, 5, 3, 4))


def test_an_image_whose_channels_stand_last_is_refused():
    body = nn.Sequential(nn.Conv2d(2, 3, 3), snn.Leaky(**HIDDEN))

    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = body

        def forward(self, x):
            return self.body(x.permute(0, 3, 1, 2))

    text = refused(Last(), torch.rand(1, 6, 6, 2))
    assert "in another order than they are given in" in text
    assert isinstance(stl_deploy.from_torch(body, torch.rand(1, 2, 6, 6)), nir.NIRGraph)
