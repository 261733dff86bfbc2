"""Networks of snnTorch: the float graph spikes as the network itself does, and so nearly do the integers.

snnTorch computes in float32 and the float graph in float64, so a spike may differ where a membrane
potential comes within float32's rounding of its threshold: a tie. A sample has one where snnTorch itself,
run in float32 and in float64, gives different spikes; without one, nothing may differ.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import snntorch as snn
import torch
from torch import nn

import stl_deploy
from stl_deploy.commands import export, parity
from stl_deploy.errors import LoweringError, UncheckedWarning
from stl_deploy.importers.torch import check as torch_check
from stl_deploy.ir import execute as float_exec
from stl_deploy.ir import nir_graph as G
from tests.build.torch_nets import agrees, command, made, raster, refused, sample_of, spikes_of

RESETS = [("subtract", True), ("zero", True), ("zero", False), ("none", True)]


def spread(*shape, low=0.2, high=1.0):
    return torch.rand(shape) * (high - low) + low


class Dense(nn.Module):
    """A loop over time; thresholds of each neuron and betas, all learned."""

    def __init__(self, reset="subtract", delay=True, beta=0.8):
        super().__init__()
        how = {"reset_mechanism": reset, "reset_delay": delay, "learn_threshold": True}
        self.fc1 = nn.Linear(12, 20)
        self.bn = nn.BatchNorm1d(20)
        self.lif1 = snn.Leaky(beta=torch.tensor(beta), threshold=spread(20), learn_beta=True, **how)
        self.drop = nn.Dropout(0.3)
        self.fc2 = nn.Linear(20, 6, bias=False)
        self.lif2 = snn.Leaky(beta=0.6, threshold=spread(6), **how)

    def forward(self, x):
        mem1, mem2 = self.lif1.reset_mem(), self.lif2.reset_mem()
        first, out = [], []
        for t in range(x.size(0)):
            spikes, mem1 = self.lif1(self.bn(self.fc1(x[t])), mem1)
            first.append(spikes)
            spikes, mem2 = self.lif2(self.drop(self.fc2(spikes)), mem2)
            out.append(spikes)
        return torch.stack(out), torch.stack(first)


class Image(nn.Module):
    """Convolutions, BatchNorm, both pools; one step a call, states inside."""

    one_step = True

    def __init__(self, reset="zero", delay=True):
        super().__init__()
        how = {"reset_mechanism": reset, "reset_delay": delay, "init_hidden": True}
        self.body = nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.AvgPool2d(2),
            snn.Leaky(beta=0.7, threshold=spread(4, 4, 4), **how), nn.MaxPool2d(2),
            nn.Conv2d(4, 6, (2, 1), bias=False),
            snn.Leaky(beta=0.5, threshold=spread(6, 1, 1, low=0.1, high=0.4), **how),
            nn.Flatten(), nn.Linear(12, 5), snn.Leaky(beta=0.9, threshold=spread(5), **how),
        )  # fmt: skip

    def forward(self, x):
        return self.body(x)


class Flattened(nn.Module):
    """A convolution that is flattened before the neurons, which may be recurrent."""

    def __init__(self, recurrent, reset="subtract", pool=False):
        super().__init__()
        how = {"beta": 0.75, "threshold": spread(24), "reset_mechanism": reset}
        pools = [nn.AvgPool2d(2), nn.Conv2d(2, 6, 3)] if pool else [nn.Conv2d(2, 6, 3, stride=3)]
        self.front = nn.Sequential(*pools, nn.Flatten())
        self.lif = snn.RLeaky(linear_features=24, **how) if recurrent else snn.Leaky(**how)

    def forward(self, x):
        first = self.lif.reset_mem()
        states = first if isinstance(first, tuple) else (first,)
        out = []
        for x_t in x:
            found = self.lif(self.front(x_t), *states)
            states = found[-len(states) :]
            out.append(found[0])
        return torch.stack(out)


class Recurrent(nn.Module):
    def __init__(self, reset="subtract", delay=True, one_to_one=False):
        super().__init__()
        how = {"reset_mechanism": reset, "reset_delay": delay, "threshold": spread(9)}
        links = {"all_to_all": False, "V": spread(9)} if one_to_one else {"linear_features": 9}
        self.fc = nn.Linear(12, 9)
        self.lif = snn.RLeaky(beta=0.75, **links, **how)

    def forward(self, x):
        spikes, mem = self.lif.reset_mem()
        out = []
        for t in range(len(x)):
            spikes, mem = self.lif(self.fc(x[t]), spikes, mem)
            out.append(spikes)
        return torch.stack(out)


class Current(nn.Module):
    def __init__(self, reset="zero", delay=False):
        super().__init__()
        self.fc = nn.Linear(12, 9, bias=False)
        self.lif = snn.Synaptic(
            alpha=0.6, beta=0.8, threshold=spread(9), reset_mechanism=reset, reset_delay=delay
        )

    def forward(self, x):
        syn, mem = self.lif.reset_mem()
        out = []
        for x_t in x:
            spikes, syn, mem = self.lif(self.fc(x_t), syn, mem)
            out.append(spikes)
        return torch.stack(out)


@pytest.mark.parametrize(("reset", "delay"), RESETS)
def test_dense_layers(reset, delay):
    agrees(made(Dense, reset, delay), raster((12,)))


@pytest.mark.parametrize(("reset", "delay"), RESETS)
def test_images(reset, delay):
    """A reset that takes ways of neurons back to themselves takes one number for each neuron."""
    graph = agrees(made(Image, reset, delay), raster((2, 8, 8)))
    kinds = Counter(type(node).__name__ for node in graph.nodes.values())
    assert kinds["Conv2d"] == 2
    assert kinds["Scale"] == (0 if reset == "zero" else 3)


@pytest.mark.parametrize("one_to_one", [False, True])
@pytest.mark.parametrize(("reset", "delay"), [("subtract", True), ("zero", False), ("none", True)])
def test_recurrent_layers(reset, delay, one_to_one):
    agrees(made(Recurrent, reset, delay, one_to_one), raster((12,)))


@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize(
    ("recurrent", "reset"), [(False, "subtract"), (True, "subtract"), (True, "none")]
)
def test_recurrent_weights_behind_a_flattened_convolution(recurrent, reset, pool):
    agrees(made(Flattened, recurrent, reset, pool), raster((2, 8, 8) if pool else (2, 6, 6)))


def test_currents():
    agrees(made(Current), raster((12,)))


@pytest.mark.parametrize("reset", ["subtract", "zero", "none"])
def test_no_leak(reset):
    """beta = 1, and beyond it, where snnTorch clips: integrate-and-fire."""
    graph = agrees(made(Dense, reset, beta=1.2), raster((12,)))
    assert type(graph.nodes["lif1"]).__name__ == "IF"


def test_steps_and_readout():
    net = made(Dense)
    graph = stl_deploy.from_torch(net, torch.zeros(7, 1, 12), classes=3)
    meta = G.float_meta(graph)
    assert (meta.timesteps, meta.classes, meta.population) == (7, 3, 2)


def test_graded_spikes_scale_what_follows():
    net = made(Dense, "zero")
    net.lif1.graded_spikes_factor.fill_(0.5)
    inputs = raster((12,))
    want = spikes_of(net, inputs)
    got = float_exec.run(stl_deploy.from_torch(net, sample_of(net, inputs)), inputs)
    np.testing.assert_array_equal(got["lif1"], want["lif1"] * 2)
    np.testing.assert_array_equal(got["lif2"], want["lif2"])


def test_integers_within_budgets():
    """All resets of dense layers, 8 bits: few spikes differ on the float model's own inputs."""
    for reset, delay in RESETS:
        net, inputs = made(Dense, reset, delay), raster((12,), 100)
        graph = stl_deploy.from_torch(net, sample_of(net, inputs), timesteps=15)
        network = stl_deploy.quantize(graph, "loihi2")
        report = stl_deploy.parity(graph, network, inputs)
        assert max(layer.mismatch_forced for layer in report.layers) < 0.02, reset


def test_a_trained_network():
    """Thresholds of each neuron and betas that training has moved; task: which half is brighter."""
    torch.manual_seed(0)
    net = Dense("subtract")
    x = (torch.rand(15, 200, 12) < torch.linspace(0.1, 0.7, 12)).float()
    flip = torch.arange(200) % 2 == 0
    x[:, flip] = x[:, flip].flip(-1)
    before = net.lif1.threshold.detach().clone(), net.lif1.beta.detach().clone()
    optimizer = torch.optim.Adam(net.parameters(), 0.02)
    for _ in range(25):
        net.train()
        out, _ = net(x)
        loss = nn.functional.cross_entropy(out.sum(0), flip.long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (net.lif1.threshold != before[0]).all()
    assert net.lif1.beta != before[1]
    net.eval()
    inputs = x.transpose(0, 1).numpy().astype(np.uint8)
    with torch.no_grad():
        accuracy = (net(x)[0].sum(0).argmax(1) == flip.long()).float().mean()
    assert accuracy > 0.9
    single, double = (spikes_of(net, inputs, t) for t in (torch.float32, torch.float64))
    graph = stl_deploy.from_torch(net, sample_of(net, inputs))
    got = float_exec.run(graph, inputs)
    for name, want in single.items():
        fine = (want == double[name]).all(axis=(1, 2))
        assert fine.mean() > 0.9
        np.testing.assert_array_equal(got[name][fine], want[fine], name)
    network = stl_deploy.quantize(graph, "loihi2")
    assert stl_deploy.parity(graph, network, inputs).prediction_agreement > 0.9


# What cannot be had


class Small(nn.Module):
    """fc -> neurons, with any forward."""

    def __init__(self, forward=None, neurons=None, **fields):
        super().__init__()
        self.fc = nn.Linear(4, 3)
        self.lif = neurons or snn.Leaky(beta=0.5, init_hidden=True)
        self.code = forward
        for name, value in fields.items():
            setattr(self, name, value)

    def forward(self, x):
        return self.lif(self.fc(x)) if self.code is None else self.code(self, x)


SOME = torch.tensor([1, 0.5, 0.5])
ALWAYS = {"beta": 0.5, "init_hidden": True}


@pytest.mark.parametrize(
    ("net", "text"),
    [
        (Small(lambda s, x: s.lif(torch.relu(s.fc(x)))), "relu of a tensor"),
        (Small(lambda s, x: s.lif(s.act(s.fc(x))), act=nn.ReLU()), "act: relu of a tensor"),
        (Small(lambda s, x: s.lif(s.fc(x)) if x.sum() > 0 else x), "looks at values of a tensor"),
        (Small(lambda s, x: s.lif(s.fc(torch.bernoulli(x)))), "bernoulli of a tensor"),
        (Small(lambda s, x: s.lif(s.fc(x) * s.fc(x))), "mul"),
        (Small(lambda s, x: s.lif(nn.functional.linear(x, s.fc.weight))), "linear of a tensor"),
        (Small(lambda s, x: (s.lif(s.fc(x)), x)[1]), "does not return the spikes"),
        (Small(lambda s, x: s.fc(x)), "has no neurons of snnTorch or SpikingJelly that spike"),
        (Small(lambda s, x: s.lif(s.fc(x + 1))), "add"),
        (Small(neurons=snn.Leaky(**ALWAYS, inhibition=True)), "inhibition is set"),
        (Small(neurons=snn.Leaky(**ALWAYS, spike_grad=torch.sigmoid)), "not spikes above 0"),
        (Small(neurons=snn.Leaky(**ALWAYS, reset_delay=False)), "fires by another rule"),
        (Small(neurons=snn.Leaky(**ALWAYS, threshold=-0.1)), "thresholds below 0"),
        (Small(neurons=snn.Synaptic(alpha=1.0, **ALWAYS)), "alpha is 1"),
        (Small(neurons=snn.Synaptic(alpha=0.5, threshold=-0.1, **ALWAYS, reset_mechanism="zero")), "below 0"),
        (Small(neurons=snn.Alpha(alpha=0.6, **ALWAYS)), "use a Synaptic"),
        (Small(neurons=snn.LeakyParallel(3, 3, beta=0.5)), "use a Leaky in a loop over time"),
        (Small(lambda s, x: s.lif(s.fc(torch.cat([x, x], 0)))), "along batch or time"),
        (Small(lambda s, x: (s.lif(s.fc(x)), s.lif.reset_mem(), s.lif(s.fc(x)))[2]), "its states"),
        (Small(lambda s, x: s.lif(s.lif(s.fc(x)))), "not computed in the same way"),
        (Small(lambda s, x: s.lif(s.fc(x, 5))), "cannot run on a sample of shape (1, 4) in fc: TypeError"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_refused(net, text):
    assert text in refused(net, torch.rand(1, 4))


def test_max_pooling_of_currents_is_refused():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2), snn.Leaky(beta=0.5, init_hidden=True))
    assert "max pooling of the values of 0, which are not binary spikes" in refused(
        net, torch.rand(1, 1, 8, 8)
    )


def test_a_state_dict_that_says_another_reset():
    net = Small(neurons=snn.Leaky(**ALWAYS, reset_mechanism="zero"))
    net.load_state_dict(Small(neurons=snn.Leaky(**ALWAYS)).state_dict())
    assert "the state_dict says 'subtract'" in refused(net, torch.rand(1, 4))


def test_all_problems_at_once_and_the_net_is_left_as_it_was():
    net = nn.Sequential(
        nn.Linear(4, 3),
        snn.Leaky(**ALWAYS, inhibition=True),
        nn.Linear(3, 2),
        snn.Alpha(alpha=0.6, **ALWAYS),
    ).train()
    text = refused(net, torch.rand(1, 4))
    assert "1 (Leaky): inhibition" in text
    assert "3 (Alpha): an Alpha" in text
    assert net.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


# A forward that the record does not see whole


class Loop(nn.Module):
    """f1 -> l1 -> f2 -> l2 over time; ``first`` makes the input of l1, ``back`` what is returned."""

    def __init__(self, first, back=torch.stack, steps=range(10)):
        super().__init__()
        self.f1, self.g, self.f2 = nn.Linear(20, 30), nn.Linear(20, 30), nn.Linear(30, 8)
        self.bn = nn.ModuleList()
        for t in range(10):
            setattr(self, f"bn{t}", nn.BatchNorm1d(30))
        self.l1 = snn.Leaky(beta=0.75, threshold=0.5)
        self.l2 = snn.Leaky(beta=0.75, threshold=0.5)
        self.first, self.back, self.steps = first, back, steps

    def forward(self, x):
        m1, m2, out = self.l1.reset_mem(), self.l2.reset_mem(), []
        for t in self.steps:
            s1, m1 = self.l1(self.first(self, x, t), m1)
            s2, m2 = self.l2(self.f2(s1), m2)
            out.append(s2)
        return self.back(out)


def loop(*args, **kwargs):
    return made(Loop, *args, gain=1.5, **kwargs)


SAMPLE = torch.zeros(10, 2, 20)
GUARD = "forward does something that its record does not explain"


def plain(s, x, t):
    return s.f1(x[t])


def after(change):
    """The input of l1, after ``change`` has done something with it."""

    def first(s, x, t):
        c = s.f1(x[t])
        new = change(c)
        return c if new is None else new

    return first


def sets_zero(c):
    c[:, 0:10] = 0.0


def adds_to_a_view(c):
    c.view(-1, 30).add_(c)


def adds_to_what_is_detached(c):
    c.detach().add_(c)


@pytest.mark.parametrize(
    ("first", "text"),
    [
        (lambda s, x, t: (s.f1 if t < 5 else s.g)(x[t]), "not computed in the same way"),
        (lambda s, x, t: getattr(s, f"bn{t}")(s.f1(x[t])), "not computed in the same way"),
        (after(sets_zero), "writes into a tensor"),
        (after(adds_to_a_view), GUARD),
        (after(adds_to_what_is_detached), GUARD),
        (after(lambda c: torch.add(c, c, alpha=2)), "add of a tensor"),
        (lambda s, x, t: s.f1(x[t - 1]), "at step 0 it reads step -1"),
        (lambda s, x, t: s.f1(x[t]) + s.g(x[t - 1]), "at step 0 it reads step -1"),
        (after(lambda c: c.to(torch.int32).float()), "to of a tensor"),
        (after(lambda c: torch.div(c, 2, rounding_mode="floor")), "div of a tensor"),
        (after(lambda c: torch.dropout(c, 0.5, True)), "dropout of a tensor"),
    ],
)
def test_what_the_record_would_miss(first, text):
    assert text in refused(loop(first), SAMPLE)


def test_steps_of_the_input_that_are_left_out():
    assert "at step 0 it reads step 5" in refused(loop(plain, steps=range(5, 10)), SAMPLE)


def in_loop_agrees(net):
    """The graph of a Loop, whose spikes are the network's own on every sample without a tie."""
    inputs = raster((20,), 20, 10)
    single, double = (spikes_of(net, inputs, t) for t in (torch.float32, torch.float64))
    got = float_exec.run(stl_deploy.from_torch(net, SAMPLE), inputs)
    for name, want in single.items():
        fine = (want == double[name]).all(axis=(1, 2))
        assert fine.mean() > 0.9
        assert want.mean() > 0.02
        np.testing.assert_array_equal(got[name][fine], want[fine], name)


@pytest.mark.parametrize(
    "first",
    [
        lambda s, x, t: s.f1(x[t] + x[t]),
        after(lambda c: c + c),
        after(lambda c: c + c + c),
        lambda s, x, t: s.f1(x[t]) + s.g(x[t]) + s.g(x[t]),
        lambda s, x, t: s.f1(x[t].float().double().to(s.f1.weight.dtype)),
    ],
)
def test_what_is_added_to_itself_counts_twice(first):
    in_loop_agrees(loop(first))


@pytest.mark.parametrize(
    "back",
    [
        torch.stack,
        list,
        lambda o: torch.stack(o, 1),
        lambda o: torch.stack(o, dim=1).sum(1),
        lambda o: torch.stack(o).mean(0),
        lambda o: (torch.stack(o), o[-1]),
    ],
)
def test_readouts_of_all_steps(back):
    in_loop_agrees(loop(plain, back))


@pytest.mark.parametrize(
    "back",
    [
        lambda o: o[-1],
        lambda o: torch.stack(o[5:]),
        lambda o: torch.stack(o[::-1]),
        lambda o: o[5:],
        lambda o: torch.stack(o[5:]).sum(0),
    ],
)
def test_readouts_of_some_steps(back):
    assert "at all 10 steps in order" in refused(loop(plain, back), SAMPLE)


def test_a_readout_over_the_wrong_axis():
    assert "sum of a tensor" in refused(loop(plain, lambda o: torch.stack(o, 1).sum(0)), SAMPLE)


def test_hooks_and_methods_replaced_are_seen():
    net = loop(plain)
    net.f1.register_forward_hook(lambda m, a, out: out + 0.5)
    assert f"l1: {GUARD}".split(":")[0] in (text := refused(net, SAMPLE))
    assert GUARD in text
    net = loop(plain)
    net.l1.register_forward_hook(lambda m, a, out: (1 - out[0], out[1]))
    assert GUARD in refused(net, SAMPLE)
    net = loop(plain)
    own = net.l2.forward
    net.l2.forward = lambda x, mem: own(x * 1.5, mem)
    text = refused(net, SAMPLE)
    assert text.startswith("l2: ")
    assert "spikes are not those of the network itself" in text


def test_the_check_leaves_the_generator_and_the_net_alone():
    net = loop(plain).train()
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    stl_deploy.from_torch(net, SAMPLE)
    assert torch.equal(torch.rand(3), want)
    assert net.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_pools_given_by_position():
    def pooled(*how):
        return Small(
            lambda s, x: s.lif(s.fc(torch.nn.functional.avg_pool2d(x, *how).flatten(1))),
            fc=nn.Linear(18, 3),
        )

    stl_deploy.from_torch(pooled(2), torch.rand(1, 2, 6, 6), timesteps=4)
    text = refused(pooled(2, 2, 0, False, True, 3), torch.rand(1, 2, 6, 6))
    assert "divisor_override" in text


def test_a_spike_function_that_is_a_step_elsewhere():
    far = Small(neurons=snn.Leaky(**ALWAYS, spike_grad=lambda x: ((x > 0) & (x < 50)).float()))
    assert "its spike function gives 0 for 5" in refused(far, torch.rand(1, 4))


def test_graded_factors_of_each_neuron(recwarn):
    net = loop(plain)
    net.l1.graded_spikes_factor = torch.rand(30)
    assert "l1: graded_spikes_factor is not one number" in refused(net, SAMPLE)
    net = loop(plain)
    net.l1.graded_spikes_factor = nn.Parameter(torch.tensor(0.5))
    stl_deploy.from_torch(net, SAMPLE)
    assert not [w for w in recwarn if "requires_grad" in str(w.message)]


# The command line


class Talking(Dense):
    def __init__(self):
        super().__init__()
        print("hello")

    def forward(self, x):
        print("running")
        return super().forward(x)


class Leaving(nn.Module):
    def __init__(self):
        super().__init__()
        sys.exit(0)


class LeavingLater(Dense):
    def forward(self, x):
        sys.exit(0)


def test_a_class_that_prints_or_ends_the_process(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(made(Dense).state_dict(), "net.pt")
    words = ["net.pt", "--sample-shape", "15,1,12", "--target", "nir", "--json", "-o", "out"]
    assert command(export.export, *words, "--model-class", f"{__name__}:Talking") == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["timesteps"] == 15
    assert "hello" in said.err
    assert "running" in said.err
    for name in ("Leaving", "LeavingLater"):
        assert command(export.export, *words[:-1], "no", "--model-class", f"{__name__}:{name}") == 2
        assert "SystemExit" in capsys.readouterr().err


def test_a_state_dict_and_a_class_on_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    net, inputs = made(Dense), raster((12,), 20)
    torch.save(net.state_dict(), "net.pt")
    np.savez("in.npz", spikes=inputs)
    said = ["--model-class", f"{__name__}:Dense", "--sample-shape", "15,1,12"]
    assert command(export.export, "net.pt", *said, "--target", "nir", "-o", "out", "--json") == 0
    assert json.loads(capsys.readouterr().out)["timesteps"] == 15
    words = (
        "net.pt",
        "out/model.nir",
        "--input",
        "in.npz",
        "--max-mismatch-forced",
        "0.02",
        "--json",
    )
    assert command(parity.parity, *words, *said) == 0
    assert json.loads(capsys.readouterr().out)["passed"]
    for wrong, text in (
        (["--model-class", "nowhere:Net"], "cannot be imported"),
        (["--model-class", "Dense"], "not of the form package.module:Class"),
        (["--model-class", f"{__name__}:made"], "made needs arguments: cls"),
        (["--model-class", f"{__name__}:Dense"], "--sample-shape"),
        (["--model-class", f"{__name__}:Current", "--sample-shape", "15,1,12"], "Unexpected key"),
        ([*said[:2], "--sample-shape", "15,x"], "not a list of positive integers"),
        ([*said, "--dt", "1e-3"], "--dt"),
    ):
        assert command(export.export, "net.pt", *wrong, "--target", "nir", "-o", "no") == 2
        assert text in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


# What the check of the graph sees


def unchecked(net, sample, **options):
    """The warnings of an import, by layer."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        stl_deploy.from_torch(net, sample, **options)
    texts = [str(w.message) for w in found if w.category is UncheckedWarning]
    return {text.partition(":")[0]: text for text in texts}


def stretched(net):
    """A fault that no record sees: what l1 hears is half as much again."""
    own = net.l1.forward
    net.l1.forward = lambda x, mem: own(x * 1.5, mem)
    return net


def test_a_layer_that_never_spikes_is_named():
    net = loop(plain)
    assert not unchecked(net, SAMPLE)
    with torch.no_grad():
        net.f2.weight.copy_(-net.f2.weight.abs())
        net.f2.bias.fill_(-1)
    (text,) = (found := unchecked(net, SAMPLE)).values()
    assert list(found) == ["l2"]
    assert "hardly ever spikes" in text
    assert "0 that can be compared spiked" in text
    assert "give a sample of real inputs" in text


def test_a_layer_that_never_rests_is_named():
    net = loop(plain)
    with torch.no_grad():
        net.f2.weight.zero_()
        net.f2.bias.fill_(9)
    assert "hardly ever stays silent" in unchecked(net, SAMPLE)["l2"]


def test_larger_inputs_for_layers_that_hardly_spike(monkeypatch):
    """A threshold far above what spikes reach: only larger inputs show the fault."""

    def far():
        net = loop(plain)
        net.l1.threshold.fill_(20)
        return net

    assert not unchecked(far(), SAMPLE)
    assert "l1: " in refused(stretched(far()), SAMPLE)
    monkeypatch.setattr(torch_check, "MORE", ())
    assert "l1" in unchecked(stretched(far()), SAMPLE)


def test_a_sample_that_makes_it_spike():
    """Neurons that only one pattern reaches, as the sample holds it."""

    def picky():
        net = loop(plain)
        with torch.no_grad():
            net.f1.weight.fill_(-50)
            net.f1.weight[:, :10] = 1
            net.f1.bias.zero_()
        net.l1.threshold.fill_(
            32
        )  # of 10 a step with beta = 0.75, at the sixth; of 15 at the third
        return net

    pattern = torch.zeros(10, 2, 20)
    pattern[:, :, :10] = 1
    assert "l1" in unchecked(picky(), SAMPLE)
    assert "l1" not in unchecked(picky(), pattern)
    assert "network itself on the sample" in refused(stretched(picky()), pattern)


@pytest.mark.parametrize("beta", [0.5, 0.8, 0.95, 1.0])
@pytest.mark.parametrize("reset", ["subtract", "zero", "none"])
def test_whole_numbers_meet_thresholds_exactly(reset, beta):
    """Ties from the first step on, in every sample: mem is 1, which is not above 1."""
    net = whole(beta, reset)
    assert not unchecked(net, SAMPLE)
    inputs = raster((20,), 20, 10)
    want = spikes_of(net, inputs)
    got = float_exec.run(stl_deploy.from_torch(net, SAMPLE), inputs)
    for name in want:
        assert 0.02 < want[name].mean() < 0.95
        differing = (got[name] != want[name]).mean()
        # What makes up for a late reset is rounded, and may fall on either side.
        assert differing == 0 if reset == "zero" or beta in (0.5, 1) else differing < 0.02
    assert "l1: " in refused(stretched(whole(beta, reset)), SAMPLE)


def whole(beta, reset):
    net = loop(plain)
    how = {"beta": beta, "threshold": 1.0, "reset_mechanism": reset}
    net.l1, net.l2 = snn.Leaky(**how), snn.Leaky(**how)
    with torch.no_grad():
        for module in (net.f1, net.f2):
            module.weight.copy_(torch.randint(-2, 3, module.weight.shape))
            module.bias.zero_()
    return net


def test_a_step_of_the_float_graph_adds_its_input_as_it_is():
    betas = np.random.default_rng(0).random(20_000)
    for beta in (betas, betas.astype(np.float32).astype(np.float64)):
        for gain in (1.0, 0.5):
            tau, r = G.euler(1 - beta, np.full(beta.shape, gain))
            np.testing.assert_array_equal(G.DT / tau * r, gain)
            np.testing.assert_allclose(1 - G.DT / tau, beta, rtol=0, atol=4e-16)


def tenths():
    """Weights and thresholds that float32 rounds: sums meet a threshold or not by the order of terms."""
    net = loop(plain)
    net.l1, net.l2 = (snn.Leaky(beta=0.9, threshold=0.3, reset_mechanism="zero") for _ in "12")
    with torch.no_grad():
        for module in (net.f1, net.f2):
            module.weight.copy_(torch.randint(-2, 4, module.weight.shape) / 10)
            module.bias.zero_()
    return net


def test_ties_of_float32():
    """Layers behind a tie answer for themselves, on the spikes that snnTorch gave them."""
    inputs = raster((20,), 20, 10)
    single, double = (spikes_of(tenths(), inputs, t) for t in (torch.float32, torch.float64))
    assert all((single[name] != double[name]).any() for name in single)
    assert not unchecked(tenths(), SAMPLE)
    assert "l1: " in refused(stretched(tenths()), SAMPLE)
    net = tenths()
    net.f2.register_forward_hook(lambda m, a, out: out * 1.2)
    assert "l2: " in refused(net, SAMPLE)


def test_a_tie_excuses_one_neuron(monkeypatch):
    """With thresholds moved so far that neurons tie often, the others are still compared."""
    monkeypatch.setattr(torch_check, "MOVED", 0.05)
    assert not unchecked(loop(plain), SAMPLE)
    assert "l1: " in refused(stretched(loop(plain)), SAMPLE)
    every = lambda self, given, own: {n: np.ones((2, 10, 1), bool) for n in own.spikes}  # noqa: E731
    monkeypatch.setattr(torch_check._Guard, "_ties", every)
    assert "0 that can be compared spiked and 0 did not" in unchecked(loop(plain), SAMPLE)["l1"]


def test_layers_that_are_not_in_the_graph(monkeypatch):
    trace = float_exec.trace

    def without(*args, **kwargs):
        found = trace(*args, **kwargs)
        del found.sent["l1"]
        return found

    monkeypatch.setattr(torch_check.float_exec, "trace", without)
    assert "l1: is run by forward but is not part of the graph" in refused(loop(plain), SAMPLE)


@pytest.mark.parametrize(("later", "text"), [(0, "does not run on a"), (5, "runs 5 times on a")])
def test_layers_that_run_less_often_later(later, text):
    """What forward does when it is called again is not what was recorded."""

    class Fewer:
        calls = 0

        def __iter__(self):
            self.calls += 1
            return iter(range(10 if self.calls == 1 else later))

    found = refused(loop(plain, list, steps=Fewer()), SAMPLE)
    assert f"l1: {text}" in found
    assert f"l2: {text}" in found


def batch_first(s, x, t):
    return s.f1(x[:, t])


def by_unbind(s, x, t):
    return s.f1(x.unbind(1)[t])


@pytest.mark.parametrize("first", [batch_first, by_unbind])
@pytest.mark.parametrize("batch", [1, 3, 10])
def test_forwards_with_the_batch_first(first, batch):
    net, sample = loop(first, lambda o: torch.stack(o, 1)), torch.zeros(batch, 10, 20)
    assert not unchecked(net, sample)
    inputs = raster((20,), 20, 10)
    got = float_exec.run(stl_deploy.from_torch(net, sample), inputs)
    want = spikes_of(loop(plain), inputs)  # the same weights, time first
    for name in want:
        np.testing.assert_array_equal(got[name], want[name], name)
    assert "l1: " in refused(stretched(net), sample)


@pytest.mark.parametrize("step", [0, 9])
def test_a_fault_of_one_step_with_the_batch_first(step):
    net = loop(batch_first, lambda o: torch.stack(o, 1))
    calls = []

    def hook(module, args, out):
        calls.append(0)
        return out + 0.5 * ((len(calls) - 1) % 10 == step)

    net.f1.register_forward_hook(hook)
    assert "l1: " in refused(net, torch.zeros(3, 10, 20))


def test_a_raster_with_its_axes_mixed_up_is_seen(monkeypatch):
    """A planted fault of the check's own, where time and batch are as long."""
    monkeypatch.setattr(
        torch_check, "raster_of", lambda given, *_: given[0].double().numpy().swapaxes(0, 1)
    )
    net = loop(batch_first, lambda o: torch.stack(o, 1))
    assert "l1: " in refused(net, torch.zeros(10, 10, 20))


def test_larger_levels_are_tried():
    """What happens to inputs above 1 alone shows where there are any."""
    net = loop(plain)
    net.f1.register_forward_hook(lambda m, a, out: out + (a[0] > 1).float().sum(-1, keepdim=True))
    stl_deploy.from_torch(net, SAMPLE)
    with pytest.raises(LoweringError, match=r"l1: .*not those of the network itself"):
        stl_deploy.from_torch(net, SAMPLE, levels=3)
    stl_deploy.from_torch(loop(plain), SAMPLE, levels=3)


def test_inputs_of_a_pool_stay_spikes():
    """Larger inputs would be no OR; a silent layer behind a pool is named, and nothing is refused."""
    net = nn.Sequential(
        nn.MaxPool2d(2), nn.Conv2d(1, 2, 2), snn.Leaky(beta=0.5, threshold=9.0, init_hidden=True)
    )
    with torch.no_grad():
        net[1].weight.fill_(0.2)
    assert set(unchecked(net, 100 * torch.rand(1, 1, 6, 6))) == {"2", "Sequential"}


def doubled(spikes):
    spikes.detach().add_(spikes)
    return spikes


@pytest.mark.parametrize(
    "back",
    [
        lambda o: doubled(torch.stack(o)),
        lambda o: doubled(torch.stack(o, 1)),
        lambda o: doubled(torch.stack(o).sum(0)),
        lambda o: doubled(torch.stack(o, 1).mean(1)),
        lambda o: (torch.stack(o), doubled(o[-1].clone())),
    ],
)
def test_what_is_returned_is_compared(back):
    assert "l2: what is returned is not its spikes" in refused(loop(plain, back), SAMPLE)


def test_what_is_returned_is_compared_at_every_call():
    """One step a call, four for the first input after that of the record; the fault comes with the third."""
    net = Small(lambda s, x: s.later(s.lif(s.fc(x))), neurons=snn.Leaky(**ALWAYS, threshold=0.1))
    calls = []

    def later(spikes):
        calls.append(0)
        return doubled(spikes) if (len(calls) - 2) % 4 == 2 else spikes

    net.later = later
    assert "lif: what is returned is not its spikes" in refused(net, torch.zeros(2, 4))


def test_a_sample_of_the_wrong_axes():
    net = loop(plain, steps=range(1))
    assert "nothing says how many" in unchecked(net, torch.zeros(1, 5, 20))["sample"]
    assert "sample" not in unchecked(net, torch.zeros(1, 5, 20), timesteps=7)
    text = refused(loop(plain), torch.zeros(10, 20))
    assert (
        "sample: has the shape (10, 20), which leaves nothing in addition to batch and time" in text
    )
    assert "its shape is (20,)" in refused(loop(plain), torch.zeros(20))
    assert "sample: is not a tensor -> " in refused(loop(plain), [1, 2])
    text = refused(loop(plain), torch.zeros(10, 2, 3, 20))
    assert "f1: reads an input of shape (3, 20), batch (and time) left out" in text
    net = nn.Sequential(nn.Conv2d(1, 2, 3), snn.Leaky(**ALWAYS))
    assert "0 (Conv2d): reads an input of shape (8, 8)" in refused(net, torch.zeros(1, 8, 8))


# The installed command


QUIET = """
import snntorch as snn
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 3)
        self.lif = snn.Leaky(beta=0.5, threshold=1e6, init_hidden=True, reset_mechanism="zero")

    def forward(self, x):
        return self.lif(self.fc(x))
"""


def test_a_class_in_the_current_folder(tmp_path):
    (tmp_path / "own_nets.py").write_text(QUIET)
    (tmp_path / "json.py").write_text("raise SystemExit('the standard library is not shadowed')")
    torch.save(Small().fc.state_dict(), tmp_path / "fc.pt")
    state = {f"fc.{k}": v for k, v in Small().fc.state_dict().items()}
    net = snn.Leaky(beta=0.5, threshold=1e6, init_hidden=True, reset_mechanism="zero")
    torch.save(state | {f"lif.{k}": v for k, v in net.state_dict().items()}, tmp_path / "net.pt")
    words = [Path(sys.executable).with_name("stl-export"), "net.pt", "--target", "nir", "-o", "out"]
    words += ["--model-class", "own_nets:Net", "--sample-shape", "1,4", "--json"]
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    ended = subprocess.run(words, cwd=tmp_path, env=clean, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    (note,) = [d for d in json.loads(ended.stdout)["diagnostics"] if "hardly ever" in d["what"]]
    assert note["where"] == "lif"
    network = stl_deploy.load(tmp_path / "out" / "model.nir")
    assert next(d.what for d in network.diagnostics if d.where == "lif") == note["what"]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "'' is not a list of positive integers"),
        ("0,4", "'0,4' is not a list of positive integers"),
        ("1.5,4", "'1.5,4' is not a list of positive integers"),
        ("(1,4)", "'(1,4)' is not a list of positive integers"),
        ("4", "'4' has one axis"),
        ("99999,99999", "9,999,800,001 values; the limit is 16,777,216"),
    ],
)
def test_shapes_on_the_command_line(text, what, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["net.pt", "--target", "nir", "--model-class", f"{__name__}:Dense"]
    assert command(export.export, *words, "--sample-shape", text) == 2
    assert what in (said := capsys.readouterr().err)
    assert "--sample-shape: " in said
    assert "e.g. 1,784" in said
