"""The reference on graphs against plain Python integers, neuron by neuron and synapse by synapse."""

from __future__ import annotations

import math
import os

import numpy as np
import pytest
import torch

from stl_deploy.chips import facts as chips
from stl_deploy.hw_sim import reference
from stl_deploy.ir.synapses import Conv, Dense, OneToOne, Sparse
from tests.build import random_graphs

GRAPHS = int(os.environ.get("STL_GRAPHS", "6"))
SEED = int(os.environ.get("STL_GRAPHS_SEED", "4100"))


def matrix(synapses, before, shape):
    """The weights [neurons, inputs] as PyTorch's convolution, or the arrays, say."""
    if isinstance(synapses, Conv):
        inputs = torch.eye(math.prod(before), dtype=torch.float64).reshape(-1, *before)
        out = torch.nn.functional.conv2d(
            inputs,
            torch.tensor(synapses.weight.astype(np.float64)),
            None,
            synapses.stride,
            synapses.padding,
            synapses.dilation,
            synapses.groups,
        )
        return out.reshape(len(inputs), -1).T.numpy().astype(int)
    if isinstance(synapses, Dense):
        return synapses.weight.astype(int)
    if isinstance(synapses, OneToOne):
        return np.diag(synapses.weight.astype(int))
    assert isinstance(synapses, Sparse)
    out = np.zeros((math.prod(shape), math.prod(before)), int)
    for row, column, weight in zip(synapses.row, synapses.column, synapses.weight, strict=True):
        out[row, column] = weight
    return out


def wrapped(x):
    """32 bits, two's complement."""
    return (x + 2**31) % 2**32 - 2**31


def left(x, constant):
    """x * (4096 - constant) / 4096 toward zero."""
    kept = abs(x) * (4096 - constant) // 4096
    return -kept if x < 0 else kept


def one_step(u, v, a, p, limit):
    """u, v and spike of one neuron; ``p`` are its parameters as integers."""
    u = (
        left(u, p["du"] + 1) + 64 * a
        if limit is None
        else wrapped(left(u, p["du"] + 1) + wrapped(64 * a))
    )
    if limit is not None and u > limit:
        u -= 2 * limit
    elif limit is not None and u <= -limit:
        u += 2 * limit
    v = left(v, p["dv"]) + u + p["bias"]
    if limit is not None:
        v = min(max(wrapped(v), 1 - limit), limit - 1)
    spike = v > 64 * p["vth"]
    if spike:
        v = v - 64 * p["vth"] if p["reset"] == "subtract" else 0
    return u, v, int(spike)


def by_hand(network, rasters):
    """(spikes, u, v) of every population, of the first sample, as lists of steps."""
    limit = chips.load(network.chip).state_limit
    sent = {}
    for name, port in network.inputs.items():
        x = rasters[name][0].reshape(len(rasters[name][0]), -1).astype(int)
        steps = network.timesteps
        sent[name] = [x[0 if port.held else t].tolist() for t in range(steps)]
    weights = {
        c.key: matrix(c.synapses, network.shape(c.source), network.shape(c.target)).tolist()
        for c in network.connections
    }
    found = {}
    each = {}
    for p in network.populations:
        fields = {
            key: np.broadcast_to(getattr(p.neurons, key), p.shape).reshape(-1).tolist()
            for key in ("du", "dv", "bias", "vth")
        }
        each[p.name] = [
            {key: values[i] for key, values in fields.items()} | {"reset": p.neurons.reset}
            for i in range(p.size)
        ]
        found[p.name] = {"spikes": [], "u": [], "v": []}
    for t in range(network.timesteps):
        for p in network.populations:
            mine = found[p.name]
            us, vs, ss = [], [], []
            for i in range(p.size):
                a = 0
                for c in network.connections:
                    if c.target == p.name and t >= c.delay:
                        source = sent.get(c.source) or found[c.source]["spikes"]
                        row = weights[c.key][i]
                        total = sum(
                            w * x for w, x in zip(row, source[t - c.delay], strict=True) if w
                        )
                        a += total * 2**c.exp
                u, v = (mine["u"][-1][i], mine["v"][-1][i]) if t else (0, 0)
                u, v, s = one_step(u, v, a, each[p.name][i], limit)
                us.append(u)
                vs.append(v)
                ss.append(s)
            mine["u"].append(us)
            mine["v"].append(vs)
            mine["spikes"].append(ss)
    return found


@pytest.mark.parametrize("seed", range(SEED, SEED + GRAPHS))
def test_the_reference_is_what_one_computes_by_hand(seed):
    network, rasters = random_graphs.draw(seed)
    trace = reference.run(network, rasters, states=True)
    for name, want in by_hand(network, rasters).items():
        for key, values in want.items():
            got = getattr(trace.layers[name], key)[0].reshape(network.timesteps, -1)
            np.testing.assert_array_equal(got, values, err_msg=f"{name}: {key}")


def test_random_graphs_have_everything():
    """What the generator promises: every feature turns up, every population works."""
    seen: dict[str, int] = {}

    def count(what, so):
        seen[what] = seen.get(what, 0) + bool(so)

    for seed in range(40):
        network, rasters = random_graphs.draw(seed)
        joins = [[c for c in network.into(n) if c.source != n] for n in network.by_name]
        count("joins", any(len(into) > 1 for into in joins))
        count("two inputs", len(network.inputs) > 1)
        count("loop", any(len(part) > 1 for part in network.parts))
        count("own", any(c.source == c.target for c in network.connections))
        count("delay", any(c.delay and c.source != c.target for c in network.connections))
        count("exponent", any(c.exp for c in network.connections))
        count("fires by itself", any(not network.into(n) for n in network.by_name))
        for port in network.inputs.values():
            count("signed", port.signed)
            count("held", port.held)
            count("graded", port.levels > 1)
        for c in network.connections:
            count(c.synapses.kind, True)
            count(c.precision, True)
        for p in network.populations:
            count(p.kind, True)
            count("subtract", p.neurons.reset == "subtract")
            count("current", p.neurons.has_current)
            count("decays", isinstance(p.neurons.dv, np.ndarray))
            count("biases", np.shape(p.neurons.bias_mant) == p.shape and len(p.shape) > 1)
            rate = random_graphs.sent(network, rasters)[p.name].mean()
            assert not network.into(p.name) or 0.02 <= rate <= 0.6
        assert all(random_graphs.flips(network, rasters, n) for n in network.by_name)
    expected = ["joins", "two inputs", "loop", "own", "delay", "exponent", "fires by itself"]
    expected += [
        "signed",
        "held",
        "graded",
        "conv",
        "dense",
        "one_to_one",
        "sparse",
        "2x8",
        "split",
    ]
    expected += ["lif", "or", "subtract", "current", "decays", "biases"]
    assert {name for name in expected if not seen.get(name)} == set()
