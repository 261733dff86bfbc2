"""Networks of snnTorch for tests: made to spike, run on a raster, and compared with their graphs."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import snntorch as snn
import torch
from torch import nn

import stl_deploy
from stl_deploy.commands import common
from stl_deploy.errors import InputError, LoweringError
from stl_deploy.ir import execute as float_exec
from tests.build.networks import values


def made(cls, *args, seed=0, gain=2.5, **kwargs):
    """A network with weights, statistics and thresholds that make it spike, in evaluation mode."""
    torch.manual_seed(seed)
    net = cls(*args, **kwargs)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                module.weight *= gain
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.running_var.uniform_(0.5, 1.5)
                module.running_mean.uniform_(-0.2, 0.2)
    return net.eval()


def raster(shape, samples=40, steps=15, seed=1):
    return values((samples, steps, *shape), 0.4, seed=seed)


def spikes_of(net, inputs, dtype=torch.float32):
    """Spikes [N, T, ...] of every neuron layer in order, from hooks on the layers themselves."""
    found = {}
    hooks = [
        m.register_forward_hook(
            lambda m, a, out, name=n: found.setdefault(name, []).append(
                (out[0] if isinstance(out, tuple) else out).detach().double().numpy().copy()
            )
        )
        for n, m in net.named_modules()
        if isinstance(m, snn.SpikingNeuron)
    ]
    net = net.to(dtype)
    layers = [m for m in net.modules() if isinstance(m, snn.SpikingNeuron)]
    own = [m.spike_grad for m in layers]
    for m in layers:  # snnTorch's own give float32 whatever comes in
        m.spike_grad = lambda x: (x > 0).to(x.dtype)
    x = torch.tensor(inputs, dtype=dtype).transpose(0, 1)
    with torch.no_grad():
        if getattr(net, "one_step", False):
            for m in layers:
                m.reset_mem()
            for step in x:
                net(step)
        else:
            net(x)
    for hook in hooks:
        hook.remove()
    net.to(torch.float32)
    for m, spike_grad in zip(layers, own, strict=True):
        m.spike_grad = spike_grad
    return {name: np.stack(steps, axis=1) for name, steps in found.items()}


def sample_of(net, inputs):
    x = torch.tensor(inputs[:2], dtype=torch.float32)
    return x[:, 0] if getattr(net, "one_step", False) else x.transpose(0, 1)


def agrees(net, inputs):
    """The float graph of ``net``, after a check that it spikes as ``net`` does in every layer."""
    single, double = (spikes_of(net, inputs, t) for t in (torch.float32, torch.float64))
    graph = stl_deploy.from_torch(net, sample_of(net, inputs), timesteps=inputs.shape[1])
    got = float_exec.run(graph, inputs)
    assert set(single) <= set(got)
    for name, want in single.items():
        assert 0.02 < want.mean() < 0.9, name
        tied = (want != double[name]).any(axis=tuple(range(1, want.ndim)))
        assert not tied.any(), "choose another seed: a tie"
        np.testing.assert_array_equal(got[name].reshape(want.shape), want, name)
    return graph


def refused(net, sample):
    with pytest.raises((LoweringError, InputError)) as error:
        stl_deploy.from_torch(net, sample)
    return str(error.value)


def command(function, *words):
    """The exit code of a command of ours."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["command", *words])
        with pytest.raises(SystemExit) as end:
            common.run(function, "command")
    return end.value.code
