"""The float side: the PyTorch layers, the lowering and the float executor mean the same network.

The neuron of the official STL-SNN code is written here as three lines of autograd; everything that
is lowered is compared with the PyTorch model evaluated in float64, spike by spike.
"""

import csv
import math
from pathlib import Path

import nir
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import stl_deploy
from stl_deploy.errors import InputError, LoweringError
from stl_deploy.importers import stl
from stl_deploy.ir import execute as float_exec
from stl_deploy.ir import nir_graph as G
from stl_deploy.ir.arch import Architecture
from stl_deploy.lower.graph import lower
from stl_deploy.models import layers, readouts
from stl_deploy.models.net import STLNet, infer
from tests.build.floats import graph as graph_of

REFERENCE = Path(__file__).parents[3] / "shared" / "reference"
needs_reference = pytest.mark.skipif(
    not REFERENCE.is_dir(), reason="the folder of reference traces is not beside the checkout"
)
EXAMPLES = settings(max_examples=150)


# The neuron of the official code


class AtanSpike(torch.autograd.Function):
    """Heaviside (1 at 0) forwards, (alpha/2) / (1 + (pi/2 alpha x)^2) with alpha = 2 backwards."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return (x >= 0).to(x)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad / (1 + (math.pi * x) ** 2)


def official(current, threshold, tau):
    mem, spikes = 0.0, []
    for t in range(current.shape[1]):
        mem = tau * mem + current[:, t]
        spike = AtanSpike.apply(mem - threshold)
        mem = (1 - spike) * mem
        spikes.append(spike)
    return torch.stack(spikes, 1)


@EXAMPLES
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([(1,), (5,), (2, 3, 4)]),
    st.integers(1, 6),
    st.sampled_from([0.0, 0.25, 0.5, 0.9, 1.0]),
)
def test_lif_spikes_and_gradients(seed, shape, steps, tau):
    rng = torch.Generator().manual_seed(seed)
    current = torch.randn(3, steps, *shape, dtype=torch.float64, generator=rng)
    threshold = torch.randn(shape, dtype=torch.float64, generator=rng) * 0.5 + 0.4
    if seed % 3 == 0:  # a threshold that is met exactly
        current[:, 0] = threshold
    weights = torch.randn(current.shape, dtype=torch.float64, generator=rng)
    lif = layers.LIF(shape, tau).double()
    with torch.no_grad():
        lif.thresh.copy_(threshold)
    ours, theirs = current.clone().requires_grad_(), current.clone().requires_grad_()
    their_threshold = threshold.clone().requires_grad_()
    spikes, expected = lif(ours), official(theirs, their_threshold, tau)
    assert torch.equal(spikes, expected)
    assert seed % 3 or spikes[:, 0].all()
    (spikes * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(lif.thresh.grad, their_threshold.grad, rtol=1e-10, atol=1e-10)


def test_lif_by_hand():
    """tau = 1/2: 0.5, 0.75, 0.875 below 1; then 1.4375 fires and nothing of it is left."""
    lif = layers.LIF((1,), 0.5, threshold=1.0)
    current = torch.tensor([0.5, 0.5, 0.5, 1.0, 0.5, 1.0]).reshape(1, -1, 1)
    assert lif(current).flatten().tolist() == [0, 0, 0, 1, 0, 1]


def test_lif_leaves_its_input_alone():
    current = torch.rand(2, 4, 3)
    before = current.clone()
    layers.LIF((3,))(current)
    assert torch.equal(current, before)


def test_batchnorm_in_training_normalises_every_step():
    """As the official code, which calls one BatchNorm2d step by step."""
    x = torch.randn(4, 3, 2, 5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ours, theirs = layers.BatchNorm(2).double(), torch.nn.BatchNorm2d(2).double()
    expected = torch.stack([theirs(x[:, t]) for t in range(3)], 1)
    torch.testing.assert_close(ours(x), expected)
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    ours.eval(), theirs.eval()
    expected = torch.stack([theirs(x[:, t]) for t in range(3)], 1)
    torch.testing.assert_close(ours(x), expected)


def test_readout_is_the_mean_over_population_and_time():
    spikes = torch.zeros(1, 4, 6)
    spikes[0, :2, 2] = 1
    spikes[0, 3, 5] = 1
    rates = readouts.Votes(2)(spikes)
    torch.testing.assert_close(rates, torch.tensor([[0, 2 / 8, 1 / 8]]))


# Passes and executor against the PyTorch model


def tiles(n):
    return st.sampled_from([k for k in range(1, n + 1) if n % k == 0])


@st.composite
def architectures(draw):
    """Two convolutions and two linear layers with everything that may stand between them."""
    shape = (draw(st.integers(1, 4)), draw(st.integers(4, 7)), draw(st.integers(4, 7)))
    specs = []
    plane = shape

    def add(kind, **fields):
        specs.append({"kind": kind, "name": f"{kind}{len(specs)}", **fields})

    def between():
        for _ in range(draw(st.integers(0, 2))):
            add(draw(st.sampled_from(["batchnorm", "dropout"])))
            if specs[-1]["kind"] == "dropout":
                specs[-1]["p"] = 0.5

    tau = st.sampled_from([0.0, 0.25, 0.5, 0.75, 0.9])
    for _ in range(draw(st.integers(0, 2))):
        groups = draw(st.sampled_from([g for g in (1, 2, 3) if plane[0] % g == 0]))
        padding = draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
        room = [min(3, n + 2 * p) for n, p in zip(plane[1:], padding, strict=True)]
        kernel = draw(st.tuples(st.integers(1, room[0]), st.integers(1, room[1])))
        stride = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
        add(
            "conv",
            channels=groups * draw(st.integers(1, 2)),
            kernel=kernel,
            stride=stride,
            padding=padding,
            groups=groups,
            bias=draw(st.booleans()),
        )
        size = [
            (n + 2 * p - k) // s + 1
            for n, p, k, s in zip(plane[1:], padding, kernel, stride, strict=True)
        ]
        plane = (specs[-1]["channels"], *size)
        between()
        add("lif", tau=draw(tau))
        if draw(st.booleans()):
            window = draw(tiles(plane[1])), draw(tiles(plane[2]))
            add("maxpool", kernel=window)
            plane = (plane[0], plane[1] // window[0], plane[2] // window[1])
        if draw(st.booleans()):
            add("dropout", p=0.3)
    for features in (draw(st.integers(1, 9)), 6):
        add("linear", features=features, bias=draw(st.booleans()))
        between()
        add("lif", tau=draw(tau))
    return Architecture.from_dict(
        {
            "input": {"shape": shape, "levels": draw(st.sampled_from([1, 1, 3, 255]))},
            "layers": specs,
            "population": draw(st.sampled_from([1, 2, 3])),
            "timesteps": draw(st.integers(1, 5)),
        }
    )


def random_net(architecture, seed):
    """A network with random parameters; BatchNorm with statistics far from 0 and 1."""
    rng = torch.Generator().manual_seed(seed)
    model = STLNet(architecture).eval()
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith("running_var"):
                value.copy_(torch.rand(value.shape, generator=rng) * 3 + 0.1)
            elif name.endswith("thresh"):
                value.copy_(torch.randn(value.shape, generator=rng) * 0.3 + 0.3)
            elif value.is_floating_point():
                value.copy_(torch.randn(value.shape, generator=rng))
    return model


def random_raster(architecture, seed, samples=3):
    levels = architecture.input.levels
    size = (samples, architecture.timesteps, *architecture.input.shape)
    return np.random.default_rng(seed).integers(0, levels + 1, size).astype(np.uint8)


def lowered(model):
    return lower(stl.to_graph(model.arch, stl.params_of(model)))


def assert_no_mismatch(model, raster):
    expected = infer(model, torch.from_numpy(raster))
    got = float_exec.run(lowered(model), raster)
    assert list(got) == list(expected)
    for name, spikes in expected.items():
        assert got[name].dtype == np.uint8
        assert got[name].shape == spikes.shape
        assert int((got[name] != spikes.numpy()).sum()) == 0, name


@EXAMPLES
@given(architectures(), st.integers(0, 2**31))
def test_lowered_graph_is_the_model(architecture, seed):
    assert_no_mismatch(random_net(architecture, seed), random_raster(architecture, seed))


@EXAMPLES
@given(architectures(), st.integers(0, 2**31))
def test_lowered_graph_holds_nodes_of_nir_alone(architecture, seed):
    model = random_net(architecture, seed)
    graph = stl.to_graph(architecture, stl.params_of(model))
    before = {name: vars(node).copy() for name, node in graph.nodes.items()}
    low = lower(graph)
    assert {type(node).__module__.partition(".")[0] for node in low.nodes.values()} == {"nir"}
    assert G.float_meta(low) == G.float_meta(graph)
    # Nothing is lowered in place.
    assert list(graph.nodes) == list(before)
    for name, node in graph.nodes.items():
        for key, value in vars(node).items():
            assert value is before[name][key], (name, key)


def conv_net(*specs, shape=(2, 6, 6), **fields):
    named = [{"name": f"{spec['kind']}{i}", **spec} for i, spec in enumerate(specs)]
    return Architecture.from_dict(
        {"input": {"shape": shape, **fields}, "layers": named, "population": 1, "timesteps": 4}
    )


CONV = {"kind": "conv", "channels": 3, "kernel": (3, 2), "padding": (1, 0)}
LIF = {"kind": "lif"}
BN = {"kind": "batchnorm"}
POOL = {"kind": "maxpool", "kernel": (2, 1)}
FC = {"kind": "linear", "features": 4}


@pytest.mark.parametrize("tau", [0.0, 0.5, 0.75, 0.875])
def test_thresholds_met_exactly_fire(tau):
    """Weights and thresholds in quarters: many membranes equal their threshold, and >= fires."""
    model = random_net(conv_net(CONV, {**LIF, "tau": tau}, FC, {**LIF, "tau": tau}), 3)
    with torch.no_grad():
        for value in model.parameters():
            value.copy_((value * 4).round() / 4)
    raster = random_raster(model.arch, 5, samples=20)
    assert_no_mismatch(model, raster)
    # The same with > instead of >= is another network: the ties are there.
    graph = lowered(model)
    graph.nodes["lif1"].v_threshold = np.nextafter(graph.nodes["lif1"].v_threshold, np.inf)
    strict = float_exec.run(graph, raster)["lif1"]
    assert (strict != infer(model, torch.from_numpy(raster))["lif1"].numpy()).any()


def kinds(graph):
    """Of the nodes between Input and Output, in their order."""
    return [type(node).__name__ for node in graph.nodes.values()][1:-1]


def test_neurons_of_a_checkpoint_stay_neurons():
    """One weight above every threshold: from another tool that is max pooling, here it is a LIF."""
    one = {"kind": "conv", "channels": 2, "kernel": (1, 1), "padding": (0, 0), "groups": 2}
    model = random_net(conv_net(one, LIF), 0)
    with torch.no_grad():
        model.get_submodule("conv0").weight.fill_(2)
        model.get_submodule("lif1").thresh.fill_(0.5)
    low = lowered(model)
    assert kinds(low) == ["Conv2d", "LIF"]
    again = stl_deploy.from_nir(nir.NIRGraph(low.nodes, low.edges, type_check=False))
    assert kinds(again) == ["SumPool2d", "Threshold"]
    raster = random_raster(model.arch, 0)
    assert_no_mismatch(model, raster)
    spikes = float_exec.run(low, raster)["lif1"]
    np.testing.assert_array_equal(float_exec.run(again, raster)["lif1"], spikes)


def test_pooling_a_binary_input():
    model = random_net(conv_net(POOL, CONV, LIF), 1)
    assert_no_mismatch(model, random_raster(model.arch, 1))


def test_batchnorm_by_hand():
    """2 * (w x + b - 3) / sqrt(3.75 + 0.25) + 5 = w x + b + 2, in the kernel's own dtype or better."""
    graph = graph_of(
        {
            "fc": nir.Affine(weight=np.array([[3.0]]), bias=np.array([7.0])),
            "bn": G.BatchNorm((1,), (1,), *(np.array([x]) for x in (2.0, 5.0, 3.0, 3.75)), 0.25),
            "lif": G.lif(np.array([1.0]), 2 * G.DT, 2.0),
        },
        1,
        1,
    )
    node = lower(graph).nodes["fc"]
    assert (node.weight.tolist(), node.bias.tolist()) == ([[3.0]], [9.0])


# What cannot be lowered


def refused(architecture):
    with pytest.raises(LoweringError) as caught:
        lowered(random_net(architecture, 0))
    return caught.value.problems


@pytest.mark.parametrize(
    "specs", [(CONV, LIF, BN, CONV, LIF), (BN, CONV, BN, LIF, POOL, BN, CONV, LIF)]
)
def test_batchnorm_in_front_of_a_padded_convolution(specs):
    """The zeros around its output are no part of it: constant inputs differ at the rim, as v_leak says."""
    model = random_net(conv_net(*specs), 1)
    assert_no_mismatch(model, random_raster(model.arch, 1))
    leaks = [n.v_leak for n in lowered(model).nodes.values() if isinstance(n, nir.LIF)]
    assert any(np.ptp(leak[:1]) > 0 for leak in leaks)


def test_batchnorm_behind_neurons_in_front_of_a_linear_layer():
    model = random_net(conv_net(CONV, LIF, POOL, BN, FC, LIF), 2)
    assert_no_mismatch(model, random_raster(model.arch, 2))


def test_max_pooling_of_currents_is_no_description():
    for specs, what in (((CONV, POOL, LIF), "conv0"), ((POOL, CONV, LIF), "input")):
        with pytest.raises(InputError, match=f"maxpool.: max pooling of {what}, whose values"):
            conv_net(*specs, levels=3)


def test_max_pooling_of_a_graded_input():
    binary = conv_net(POOL, CONV, LIF)
    graded = binary.input.model_copy(update={"levels": 3})
    (problem,) = refused(binary.model_copy(update={"input": graded}))
    assert problem.where == "maxpool0"
    assert "of a graded input, which are not binary spikes" in problem.what


def test_a_graph_whose_shapes_do_not_fit():
    graph = stl.to_graph(conv_net(CONV, LIF), stl.params_of(random_net(conv_net(CONV, LIF), 0)))
    graph.nodes["lif1"] = G.lif(np.ones((1, 2, 3)), 2 * G.DT, 2.0)
    with pytest.raises(InputError, match=r"lif1: .* has shape \(1, 2, 3\), its neurons"):
        lower(graph)


# A file of others


def test_forward_euler_of_the_whole_equation():
    """tau, r, v_leak and v_reset of NIR: v + (dt/tau) (v_leak - v + r I), reset to v_reset."""
    rng = np.random.default_rng(0)
    tau, r, leak, reset, threshold = (
        rng.uniform(*bounds, 4)
        for bounds in ((2e-4, 9e-4), (0.2, 2), (-0.2, 0.2), (-0.5, 0.1), (0.3, 0.9))
    )
    graph = graph_of(
        {"lif": nir.LIF(tau=tau, r=r, v_leak=leak, v_threshold=threshold, v_reset=reset)},
        4,
        4,
    )
    raster = rng.integers(0, 2, (2, 200, 4)).astype(np.uint8)
    spikes = float_exec.run(graph, raster)["lif"]
    for n, k in np.ndindex(2, 4):
        v = 0.0
        for t in range(200):
            v += 1e-4 / tau[k] * (leak[k] - v + r[k] * raster[n, t, k])
            s = v > threshold[k]
            v = reset[k] if s else v
            assert spikes[n, t, k] == s
    assert 0.02 < spikes.mean() < 0.9


@pytest.mark.parametrize("side", [-np.inf, None])
def test_parameters_of_single_precision_are_widened_first(side):
    """Thresholds at and just below the voltage that double precision reaches in step 4."""
    rng = np.random.default_rng(2)
    tau, r = (rng.uniform(*bounds, 50).astype(np.float32) for bounds in ((2e-4, 9e-4), (0.5, 2)))
    step = 1e-4 / tau.astype(np.float64)
    gain = step * r.astype(np.float64)
    v = np.zeros(50)
    for _ in range(4):
        v = (1 - step) * v + gain
    at = v if side is None else np.nextafter(v, side)
    zero = np.zeros(50, np.float32)
    node = nir.LIF(tau=tau, r=r, v_leak=zero, v_threshold=at, v_reset=zero)
    graph = graph_of({"lif": node}, 50, 50)
    spikes = float_exec.run(graph, np.ones((1, 4, 50), np.uint8))["lif"]
    assert (spikes[0, :3] == 0).all()
    assert (spikes[0, 3] == (side is not None)).all()


@needs_reference
def test_norse():
    """The file's float neuron, input to spike in the same step, as Norse ran it."""
    with (REFERENCE / "lif_norse.csv").open(newline="") as file:
        table = [[float(x) for x in row] for row in csv.reader(file)]
    raster = np.array([row[0] for row in table]).reshape(1, -1, 1)
    spikes = float_exec.run(nir.read(REFERENCE / "lif_norse.nir"), raster)
    fired = [i for i, row in enumerate(table) if row[2]]
    assert fired == [460, 510, 710, 760]
    assert np.flatnonzero(spikes["1"]).tolist() == fired


# The compiled loops of LIF against PyTorch's operations


def plain_steps(monkeypatch):
    """Let ``layers.LIF`` run PyTorch's operations."""
    monkeypatch.setattr(layers, "_compiled", lambda *_: False)


def both_ways(monkeypatch, dtype, batch, constant):
    """Spikes, membranes' gradients and thresholds' gradients, compiled and not."""
    rng = torch.Generator().manual_seed(batch)
    shape, steps = (3, 5, 7), 5
    current = torch.randn(batch, 1 if constant else steps, *shape, dtype=dtype, generator=rng)
    threshold = torch.randn(shape, dtype=dtype, generator=rng)  # some below zero
    current[0, 0, 0] = threshold[0]  # ties
    weights = torch.randn(batch, steps, *shape, dtype=dtype, generator=rng)
    results = []
    for way in ("compiled", "plain"):
        with monkeypatch.context() as patch:
            if way == "plain":
                plain_steps(patch)
            lif = layers.LIF(shape, 0.3).to(dtype)
            with torch.no_grad():
                lif.thresh.copy_(threshold)
            x = current.clone().requires_grad_()
            spikes = lif(x.expand(-1, steps, *shape))
            (spikes * weights).sum().backward()
            results.append((spikes.detach(), x.grad, lif.thresh.grad))
    return results


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("batch", [1, 2, 9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_compiled_lif_is_that_of_pytorch(monkeypatch, dtype, batch, constant):
    ours, theirs = both_ways(monkeypatch, dtype, batch, constant)
    assert torch.equal(ours[0], theirs[0])
    assert 0.1 < ours[0].mean() < 0.9
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {}
    torch.testing.assert_close(ours[1], theirs[1], **tolerance)
    torch.testing.assert_close(ours[2], theirs[2], **tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_compiled_membranes_are_those_of_pytorch_bit_for_bit(dtype):
    from stl_deploy.models import lif_cpu

    rng = torch.Generator().manual_seed(0)
    current = torch.randn(4, 30, 200, dtype=dtype, generator=rng)
    threshold = torch.rand(200, dtype=dtype, generator=rng)
    ours = lif_cpu.forward(current, threshold, 0.7, 30)
    for a, b in zip(ours, layers._lif_steps(current, threshold, 0.7), strict=True):
        assert torch.equal(a, b)


def test_compiled_lif_is_what_runs_on_a_cpu(monkeypatch):
    def fail(*_):
        raise AssertionError("PyTorch's operations run")

    monkeypatch.setattr(layers, "_lif_steps", fail)
    layers.LIF((3,))(torch.rand(2, 4, 3, requires_grad=True)).sum().backward()


def test_what_is_the_same_at_every_step_is_computed_once():
    """A graded input: convolution and BatchNorm see one step, and results are those of all steps."""
    torch.manual_seed(0)
    x = torch.rand(6, 1, 2, 8, 8)
    conv, ours, theirs = layers.Conv2d(2, 3, 3), layers.BatchNorm(3), layers.BatchNorm(3)
    once, all_steps = x.expand(-1, 5, -1, -1, -1), x.repeat(1, 5, 1, 1, 1)
    seen = []
    hook = torch.nn.functional.conv2d
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conv, "_conv_forward", lambda i, w, b: seen.append(len(i)) or hook(i, w, b))
        a, b = ours(conv(once)), theirs(conv(all_steps))
    assert seen == [6, 30]
    assert a.stride(1) == 0
    torch.testing.assert_close(a, b)
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    assert ours.num_batches_tracked == theirs.num_batches_tracked == 5
    ours.eval(), theirs.eval()
    torch.testing.assert_close(ours(conv(once)), theirs(conv(all_steps)))
