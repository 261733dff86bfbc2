"""Networks of SpikingJelly: the float graph spikes as the network itself does in float64."""

from __future__ import annotations

import hashlib
import importlib
import os
import re
import subprocess
import sys
import warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import stl_deploy
from stl_deploy.backends import tool_env
from stl_deploy.backends.consumers import run as runs
from stl_deploy.errors import BackendError, InputError, LoweringError, UncheckedWarning
from stl_deploy.importers.torch import families, model_class
from stl_deploy.ir import execute as float_exec
from stl_deploy.ir import nir_graph as G
from tests.build import jelly_nets as nets
from tests.build.nets import ROOT
from tests.build.networks import values

PACKAGES = "STL_SPIKINGJELLY"  # where it lies, if not in its environment
PARTS = ("neuron", "layer", "functional", "surrogate")
MODES = ["s", "m"]


def packages_of(environment):
    """The folder of an environment's packages; the environment is made if it is not there."""
    try:
        tool_env.ensure(environment)
    except BackendError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI must run the tools: {error}")
        pytest.skip(str(error))
    (packages,) = environment.folder.glob("lib/python*/site-packages")
    return str(packages)


def environment_of_14():
    """An environment with SpikingJelly 0.0.0.0.14 alone."""
    current = runs.environment("current")
    requirements = (ROOT / "tests" / "build" / "spikingjelly14.txt").read_text("utf-8")
    key = hashlib.sha256((sys.version + requirements).encode()).hexdigest()
    return replace(
        current,
        subject="SpikingJelly 0.0.0.0.14",
        folder=current.cache / f"spikingjelly14-{key[:16]}",
        requirements=lambda: requirements,
    )


@pytest.fixture(scope="module")
def sj():
    """SpikingJelly's modules, of the environment that stl-check runs it in."""
    packages = os.environ.get(PACKAGES) or packages_of(runs.environment("current"))
    sys.path.append(packages)
    found = {
        part: importlib.import_module(f"spikingjelly.activation_based.{part}") for part in PARTS
    }
    yield SimpleNamespace(**found)
    sys.path.remove(packages)


def made(net, seed=0, gain=6.0):
    """``net`` with weights and statistics that make it spike."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                module.reset_parameters()
                module.weight *= gain
                if module.bias is not None:
                    module.bias += 0.3
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


def is_old(sj):
    """Whether it is 0.0.0.0.14, whose neurons are fewer."""
    return not hasattr(sj.neuron, "CUBALIFNode")


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
    "SimpleIFNode": [{"v_reset": None}],
    "SimpleLIFNode": [{"tau": 3.0, "decay_input": False, "v_reset": 0.1}],
    "HalfThresholdIFNode": [{"v_threshold": 1.5}],
    "OTTTLIFNode": [{"tau": 2.5}],
    "SLTTLIFNode": [{"tau": 1.8}],
    "CUBALIFNode": [{"c_decay": 0.3, "v_decay": 0.9, "v_threshold": 0.8}],
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
    if is_old(sj) and (
        not hasattr(sj.neuron, kind) or (kind == "KLIFNode" and fields["v_reset"] is None)
    ):
        pytest.skip("not in this version")
    if kind in ("OTTTLIFNode", "SLTTLIFNode") and mode == "m":
        pytest.skip("runs one step a call")
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
    net = made(nets.Block(sj, mode, cnf, shortcut))
    net.fc.weight.data *= 6
    net.fc.bias.data += 1
    agrees(net, sj, (2, 6, 6), one_step=mode == "s")


def test_a_loop_behind_a_part_that_is_computed_once(sj):
    agrees(made(nets.Loop(sj)), sj, (2, 8, 8), held=True)


@pytest.mark.parametrize("reset", [None, 0.0, -0.2])
@pytest.mark.parametrize("mode", MODES)
def test_thresholds_and_offsets_of_channels(sj, mode, reset):
    if is_old(sj):
        pytest.skip("not in this version")
    layers = sj.layer.Conv2d(2, 3, 3), sj.layer.Linear(108, 6)
    aware = [
        sj.neuron.ActivationAwareIFNode(
            torch.linspace(0.5, 1.5, size),
            torch.linspace(-0.2, 0.3, size),
            channel_dim=1,
            v_reset=reset,
        )
        for size in (3, 6)
    ]
    net = made(nn.Sequential(layers[0], aware[0], sj.layer.Flatten(), layers[1], aware[1]))
    sj.functional.set_step_mode(net, mode)
    agrees(net, sj, (2, 8, 8), one_step=mode == "s")


def test_thresholds_of_neurons(sj):
    """A tensor that fits, where the class takes one."""
    if is_old(sj):
        pytest.skip("not in this version")
    net = made(nets.dense(sj, "m", "SimpleLIFNode", tau=2.0, decay_input=True))
    net[1].v_threshold = torch.linspace(0.3, 1.2, 20)
    agrees(net, sj, (12,))
    net[1].v_threshold = torch.ones(7)
    with pytest.raises((LoweringError, InputError)):
        stl_deploy.from_torch(net, torch.rand(6, 2, 12))


@pytest.mark.parametrize("every", [False, True])
def test_a_voltage(sj, every):
    net = made(nets.Voltage(sj, every))
    x = values((20, 6, 12), 0.4, seed=3)
    sample = torch.tensor(x, dtype=torch.float32).transpose(0, 1)
    graph = stl_deploy.from_torch(net, sample)
    meta = G.float_meta(graph)
    assert (meta.readout.rule, meta.timesteps) == ("mean" if every else "last", 6)
    with torch.no_grad():
        want = net.double()(sample.double()).numpy()
    v = float_exec.trace(graph, x.astype(np.float64)).v
    np.testing.assert_allclose(v.mean(1) if every else v[:, -1], want, atol=1e-9)


def test_weights_after_the_last_neurons(sj):
    """The mean over time of what they give is returned."""

    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.fc = nets.dense(sj, "m", "IFNode"), sj.layer.Linear(6, 3, step_mode="m")

        def forward(self, x):
            return self.fc(self.body(x)).mean(0)

    net = made(Mean())
    graph = agrees(net, sj, (12,))
    assert G.float_meta(graph).classes == 3


@pytest.mark.parametrize("cnf", ["ADD", "IAND"])
@pytest.mark.parametrize("how", ["steps", "mean"])
@pytest.mark.parametrize("mode", MODES)
def test_a_block_that_is_read_out(sj, mode, how, cnf):
    """As SEW-ResNet ends: a linear layer behind the sum of two layers of spikes."""
    if (mode, how) == ("s", "mean"):
        pytest.skip("is returned step by step")

    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = nets.Block(sj, mode, cnf, final=False)

        def forward(self, x):
            return self.block(x).mean(0) if how == "mean" else self.block(x)

    net = made(Whole())
    graph = agrees(net, sj, (2, 6, 6), one_step=mode == "s")
    meta = G.float_meta(graph)
    assert (meta.readout.rule, meta.classes) == ("mean", 6)
    x = values((10, 6, 2, 6, 6), 0.4, seed=5)
    sj.functional.reset_net(net.double())
    given = torch.tensor(x, dtype=torch.float64).transpose(0, 1)
    with torch.no_grad():
        want = [net(step) for step in given] if mode == "s" else net(given)
    got = float_exec.trace(graph, x.astype(np.float64)).v
    if how == "mean":
        np.testing.assert_allclose(got.mean(1), want.numpy(), atol=1e-9)
    else:
        want = torch.stack(want) if mode == "s" else want
        np.testing.assert_allclose(got, want.transpose(0, 1).numpy(), atol=1e-9)
    assert stl_deploy.quantize(graph, chip="ideal").timesteps == 6


def test_batch_norms_of_its_own(sj):
    if is_old(sj):
        pytest.skip("tests of its own are in the newer version")
    agrees(made(nets.Normed(sj), seed=1), sj, (12,))


def test_factors_by_step_need_their_steps(sj):
    if is_old(sj):
        pytest.skip("tests of its own are in the newer version")
    sample = torch.rand(6, 2, 12)
    with pytest.raises(LoweringError, match="for 6 steps -> say 6 steps"):
        stl_deploy.from_torch(made(nets.Normed(sj)), sample, timesteps=5)


def dense_of(sj, between, mode="m"):
    return nn.Sequential(
        sj.layer.Linear(12, 8), between, sj.layer.Linear(8, 4), nets.node(sj, step_mode="m")
    )


def subclass(sj, **methods):
    return type("Mine", (sj.neuron.LIFNode,), methods)(step_mode="m")


REFUSED = {
    "QIFNode charges by an equation that is not linear in v": lambda sj: sj.neuron.QIFNode(
        step_mode="m"
    ),
    "EIFNode charges by an equation that is not linear": lambda sj: sj.neuron.EIFNode(
        step_mode="m"
    ),
    "IzhikevichNode charges": lambda sj: sj.neuron.IzhikevichNode(step_mode="m"),
    "LIAFNode sends several spikes a step, or numbers": lambda sj: sj.neuron.LIAFNode(
        torch.relu, False, step_mode="m"
    ),
    "PSN computes a step from several steps of its input": lambda sj: sj.neuron.PSN(6),
    "SlidingPSN computes a step from several": lambda sj: sj.neuron.SlidingPSN(2, step_mode="m"),
    "GatedLIFNode weights its input": lambda sj: sj.neuron.GatedLIFNode(6, step_mode="m"),
    "TernaryLIFNode sends spikes of -1": lambda sj: sj.neuron.TernaryLIFNode(step_mode="m"),
    "ComplementaryLIFNode has two states": lambda sj: sj.neuron.ComplementaryLIFNode(step_mode="m"),
    "RAFNode has two states that drive each other": lambda sj: sj.neuron.RAFNode(step_mode="m"),
    "ILIFNode sends several spikes a step": lambda sj: sj.neuron.ILIFNode(step_mode="m"),
    "NonSpikingLIFNode returns its voltage": lambda sj: sj.neuron.NonSpikingLIFNode(),
    "Mine changes what a neuron of SpikingJelly computes": lambda sj: subclass(
        sj, single_step_forward=lambda self, x: x
    ),
    "its surrogate function gives 0.": lambda sj: sj.neuron.LIFNode(
        surrogate_function=sj.surrogate.ATan(spiking=False), step_mode="m"
    ),
    "runs all steps at once": lambda sj: sj.neuron.LIFNode(step_mode="s"),
    "group_norm of a tensor": lambda sj: sj.layer.GroupNorm(2, 8, step_mode="m"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_has_no_exact_graph_is_refused(sj, why):
    name = why.split()[0]
    absent = name == "LIAFNode" or not hasattr(sj.neuron, name)  # which 0.0.0.0.14 cannot make
    if is_old(sj) and name.endswith(("Node", "PSN")) and absent:
        pytest.skip("not in this version")
    with pytest.raises(LoweringError) as error:
        stl_deploy.from_torch(made(dense_of(sj, REFUSED[why](sj))), torch.rand(6, 2, 12))
    assert why in str(error.value)


def test_a_subclass_that_computes_nothing_else(sj):
    mine = subclass(
        sj, __init__=lambda self, step_mode: sj.neuron.LIFNode.__init__(self, 3.0, step_mode="m")
    )
    agrees(made(dense_of(sj, mine)), sj, (12,))


@pytest.mark.parametrize("reset", [0.0, None, -0.5])
@pytest.mark.parametrize(
    ("kind", "fields", "drawn"), [("IFNode", {}, (-3, 4)), ("LIFNode", {"tau": 2.0}, (-2, 5))]
)
def test_a_voltage_at_the_threshold_fires(sj, kind, fields, drawn, reset):
    """Weights are multiples of 1/4, so that voltages meet thresholds exactly; snnTorch would not fire."""
    net = nets.dense(sj, "m", kind, v_reset=reset, **fields)
    torch.manual_seed(0)
    with torch.no_grad():
        for module in net:
            if isinstance(module, nn.Linear):
                module.weight.copy_(torch.randint(*drawn, module.weight.shape) / 4)
                module.bias.zero_()
    graph = agrees(net.eval(), sj, (12,))
    x = values((30, 6, 12), 0.4, seed=1).astype(np.float64)
    met = float_exec.run(graph, x)
    strict = float_exec.run(raised(graph), x)
    assert all(strict[name].sum() < met[name].sum() for name in met)


def raised(graph):
    """The graph with the thresholds that a compare by > would have."""
    for node in graph.nodes.values():
        if hasattr(node, "v_threshold"):
            node.v_threshold = np.nextafter(node.v_threshold, np.inf)
    return graph


def front(sj, layers, after, last="IFNode"):
    """A network whose first layers are these, for inputs of 2 x 8 x 8."""
    body = [
        *layers,
        nets.node(sj, last),
        sj.layer.Flatten(),
        sj.layer.Linear(after, 6),
        nets.node(sj, last),
    ]
    return nn.Sequential(*body)


LAYERS = {
    "average pool": lambda sj: ([sj.layer.Conv2d(2, 3, 3), sj.layer.AvgPool2d(2)], 27),
    "adaptive pool": lambda sj: ([sj.layer.Conv2d(2, 3, 3), sj.layer.AdaptiveAvgPool2d((3, 2))], 18),
    "stride": lambda sj: ([sj.layer.Conv2d(2, 4, 3, stride=2, padding=1, groups=2)], 64),
    "printed": lambda sj: ([sj.layer.PrintShapeModule(), sj.layer.Conv2d(2, 3, 3)], 108),
    "standardized": lambda sj: ([sj.layer.WSConv2d(2, 3, 3)], 108),
    "max pool": lambda sj: (
        [sj.layer.Conv2d(2, 3, 3), nets.node(sj, "IFNode"), sj.layer.MaxPool2d(2)], 27,
    ),
    "dropout": lambda sj: ([sj.layer.Conv2d(2, 3, 3), sj.layer.Dropout2d(0.5)], 108),
    "of PyTorch": lambda sj: (
        [sj.layer.SeqToANNContainer(nn.Conv2d(2, 3, 3), nn.AvgPool2d(2), nn.Dropout2d())], 27,
    ),
    "stateless container": lambda sj: (
        [sj.layer.StepModeContainer(False, "s", nn.Conv2d(2, 3, 3), nn.AvgPool2d(2))], 27,
    ),
    "stateful container": lambda sj: (
        [sj.layer.StepModeContainer(True, "s", nn.Conv2d(2, 3, 3), nets.node(sj, "IFNode"))], 108,
    ),
}  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("which", LAYERS)
def test_layers(sj, which, mode):
    if which == "of PyTorch" and mode == "s":
        pytest.skip("a container of all steps")
    if is_old(sj) and which in ("standardized", "stateless container", "stateful container"):
        pytest.skip("not in this version, or made otherwise")
    net = made(front(sj, *LAYERS[which](sj)))
    sj.functional.set_step_mode(net, mode)
    agrees(net, sj, (2, 8, 8), one_step=mode == "s")


def test_a_pool_whose_windows_differ(sj):
    layers = [sj.layer.Conv2d(2, 3, 3), sj.layer.AdaptiveAvgPool2d(4)]
    with pytest.raises(LoweringError, match="of which no windows are alike"):
        stl_deploy.from_torch(made(front(sj, layers, 48)), torch.rand(2, 2, 8, 8))


def test_a_reset_between_steps_is_refused(sj):
    class Forgets(nets.Loop):
        def forward(self, x):
            counts = super().forward(x)
            self.body[0].reset()
            return counts + self.body(self.static(x))

    with pytest.raises(
        LoweringError, match="its states are not those that it left at the step before"
    ):
        stl_deploy.from_torch(made(Forgets(sj)), torch.rand(2, 2, 8, 8))


def test_a_reset_inside_of_forward_is_no_obstacle(sj):
    """And states that are left from another run do not come in."""
    net = made(nets.dense(sj, "m", "LIFNode"))
    x = (torch.rand(6, 2, 12, generator=torch.Generator().manual_seed(1)) < 0.4).float()
    net(x)
    agrees(net, sj, (12,))


def test_products_are_of_spikes(sj):
    class Gated(nn.Module):
        def __init__(self, other):
            super().__init__()
            self.body = nets.dense(sj, "m", "IFNode")
            self.out, self.other = nets.node(sj, step_mode="m"), other
            self.fc = sj.layer.Linear(12, 6, step_mode="m")

        def forward(self, x):
            return self.out(self.other(self.body(x), self.fc(x)))

    x = torch.rand(6, 2, 12)
    with pytest.raises(LoweringError, match="multiplies tensors that are not spikes"):
        stl_deploy.from_torch(made(Gated(lambda spikes, other: spikes * other)), x)
    with pytest.raises(LoweringError, match="computes 1 - x outside of a product of spikes"):
        stl_deploy.from_torch(made(Gated(lambda spikes, other: (1 - spikes) + other)), x)


def test_the_old_package_is_refused_by_name():
    old = type("LIFNode", (nn.Module,), {"__module__": "spikingjelly.clock_driven.neuron"})
    with pytest.raises(LoweringError, match="is a LIFNode of spikingjelly"):
        stl_deploy.from_torch(nn.Sequential(old()), torch.rand(2, 3))


def test_integers(sj):
    """The classifier and a block with a product, down to the integers of a chip."""
    for net in (nets.CSNN(sj, "m", "IFNode"), nets.Block(sj, "m", "IAND")):
        shape = (2, 8, 8) if isinstance(net, nets.CSNN) else (2, 6, 6)
        graph = agrees_on_spikes(made(net), shape)
        network = stl_deploy.quantize(graph, chip="ideal")
        assert network.timesteps == 6


def agrees_on_spikes(net, shape):
    sample = torch.tensor(values((6, 2, *shape), 0.4, seed=2), dtype=torch.float32)
    return stl_deploy.from_torch(net, sample)


def test_how_it_was_read(sj):
    """Every population says its neuron, its reset, and where T is from."""
    neurons = [
        nets.node(sj, "LIFNode", v_reset=None, step_mode="m"),
        nets.node(sj, "IFNode", v_reset=-0.5, step_mode="m"),
        nets.node(sj, "ParametricLIFNode", step_mode="m"),
    ]
    parts = [part for node in neurons for part in (sj.layer.Linear(6, 6, step_mode="m"), node)]
    graph = stl_deploy.from_torch(made(nn.Sequential(*parts)), torch.rand(4, 2, 6))
    found = G.float_meta(graph).read_as
    assert [(r.neuron, r.reset, r.when, r.timesteps, r.spikes) for r in found] == [
        ("spikingjelly.LIFNode", "subtract", "same step", 4, 1),
        ("spikingjelly.IFNode", "to -0.5", "same step", 4, 1),
        ("spikingjelly.ParametricLIFNode", "zero", "same step", 4, 1),
    ]
    graph = stl_deploy.from_torch(made(nets.Voltage(sj)), torch.rand(4, 2, 12))
    assert G.float_meta(graph).read_as[-1].reset == "none"


def test_the_recipe(sj, tmp_path, monkeypatch, command):
    """Its code and its command, as they stand."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "mynets", raising=False)
    text = (ROOT / "docs" / "recipes" / "spikingjelly.md").read_text("utf-8")
    first, *others = re.findall(r"```python\n(.*?)```", text, re.S)
    (tmp_path / "mynets.py").write_text(first)
    names = {"__name__": "recipe"}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UncheckedWarning)
        exec(compile("\n".join([first, *others]), "recipe", "exec"), names)
    assert all(0.01 < layer.spikes.mean() < 0.9 for layer in names["trace"].layers.values())
    (words,) = re.findall(r"stl-export (csnn\.pt .*?)\n", text)
    code, out, err = command("stl-export", *words.split())
    sys.modules.pop("mynets", None)  # other pages have one of that name
    assert code == 0, err
    assert "spikingjelly.LIFNode" in out
    assert (tmp_path / "out" / "model.nir").exists()


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    (tmp_path / "usesjelly.py").write_text("import spikingjelly.nowhere.at_all\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "spikingjelly", None)
    with pytest.raises(InputError, match=r"cannot be imported: .* -> pip install spikingjelly"):
        model_class.made_by("usesjelly:Net")


def test_the_older_version(sj):
    """All of this, in 0.0.0.0.14; its neurons are fewer."""
    if PACKAGES in os.environ:
        return
    packages = packages_of(environment_of_14())
    words = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-W",
        "ignore",
        __file__,
    ]
    ran = subprocess.run(
        words, cwd=ROOT, env={**os.environ, PACKAGES: packages}, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stdout[-3000:]
    assert int(re.search(r"(\d+) passed", ran.stdout)[1]) > 60
