"""Networks that decide together are the sum of their votes, spike for spike, on every way to the chip."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

import stl_deploy
from stl_deploy.errors import InputError, LoweringError
from stl_deploy.files import sha256
from stl_deploy.formats.checkpoint import read_tensors, save_checkpoint
from stl_deploy.formats.raster import Raster
from stl_deploy.formats.raster import save as save_raster
from stl_deploy.hw_sim.simulate import Simulator
from stl_deploy.importers import stl
from stl_deploy.ir import execute as float_exec
from stl_deploy.ir.arch import Architecture
from stl_deploy.ir.conv import convolve
from stl_deploy.ir.network import synapse_count
from stl_deploy.lower.graph import lower
from stl_deploy.models import joint, layers, qat
from stl_deploy.models.net import STLNet, from_params, infer
from stl_deploy.verify import against_reference
from tests.build.nets import ROOT, SMALL, random_net, random_spikes

IN_GROUPS = Architecture.from_dict(
    {
        "input": {"shape": (2, 8, 8)},
        "layers": [
            {"kind": "conv", "name": "a", "channels": 4, "kernel": (3, 3), "padding": (1, 1)}
            | {"groups": 2, "bias": True},
            {"kind": "lif", "name": "b"},
            {"kind": "conv", "name": "c", "channels": 6, "kernel": (3, 3), "padding": (0, 0)}
            | {"groups": 2, "stride": (2, 2)},
            {"kind": "lif", "name": "d", "tau": 0.25},
            {"kind": "linear", "name": "e", "features": 12, "groups": 3, "bias": True},
            {"kind": "lif", "name": "f"},
            {"kind": "linear", "name": "g", "features": 20, "groups": 2},
            {"kind": "lif", "name": "h"},
        ],
        "population": 4,
    }
)
MEMBERS = {
    "convolutions": SMALL,
    "linear": "FC30-LIF-FC24-LIF-FC20-LIF-AvgPool2",
    "one layer": "FC30-LIF-AvgPool3",
    "batchnorm last": "4C3-LIF-P4-D0.3-FC20-BN-LIF-AvgPool2",
    "convolution last": "6C3-BN-LIF-P4-10C3-BN-LIF-AvgPool32",
    "in groups": IN_GROUPS,
}
M = 3


def checkpoint(net: STLNet) -> stl.Checkpoint:
    return stl.Checkpoint(net.arch, stl.params_of(net))


def model(joined: stl.Checkpoint) -> STLNet:
    return from_params(joined.arch, joined.params)


def beside(parts: list[np.ndarray], population: int | None) -> np.ndarray:
    """Spikes [N, T, ...] of members as the joint network has them; of its readout with ``population``."""
    if population is None:
        return np.concatenate(parts, axis=2)
    flat = [part.reshape(*part.shape[:2], -1) for part in parts]
    classes = flat[0].shape[2] // population
    of_class = [
        part[..., k * population : (k + 1) * population] for k in range(classes) for part in flat
    ]
    whole = np.concatenate(of_class, axis=2)
    shape = parts[0].shape
    return whole.reshape(*shape[:2], len(parts) * shape[2], *shape[3:])


@pytest.fixture(params=MEMBERS, scope="module")
def nets(request):
    return [random_net(MEMBERS[request.param], seed=seed) for seed in range(M)]


@pytest.fixture
def joined(nets):
    return joint.join([checkpoint(net) for net in nets])


def test_every_spike_is_a_members_and_rates_are_their_mean(nets, joined):
    spikes = torch.from_numpy(random_spikes(nets[0], 20))
    whole = infer(model(joined), spikes)
    alone = [infer(net, spikes) for net in nets]
    arch = nets[0].arch
    last = arch.layers[-1].name
    for name in whole:
        parts = [part[name].numpy() for part in alone]
        expected = beside(parts, arch.population if name == last else None)
        assert 0 < expected.mean() < 1, name
        np.testing.assert_array_equal(whole[name].numpy(), expected, name)
    # Votes are whole numbers, so that their sum is exact.
    votes = [part[last].flatten(2).sum(1).reshape(20, -1, arch.population).sum(2) for part in alone]
    together = whole[last].flatten(2).sum(1).reshape(20, arch.classes, -1).sum(2)
    assert torch.equal(together, sum(votes))
    rates = model(joined).double()(spikes)
    mean = torch.stack([net.double()(spikes) for net in nets]).mean(0)
    assert joined.arch.population == M * arch.population
    torch.testing.assert_close(rates, mean, rtol=0, atol=1e-15)


def test_the_float_graph_spikes_as_the_model(joined):
    net = model(joined)
    spikes = random_spikes(net, 10)
    graph = float_exec.run(lower(stl_deploy.from_torch(net)), spikes)
    for name, expected in infer(net, torch.from_numpy(spikes)).items():
        np.testing.assert_array_equal(graph[name], expected.numpy(), name)


def test_members_come_out_as_they_went_in(nets, joined):
    for index, net in enumerate(nets):
        alone = joint.member(joined, index)
        plain = joint._plain(checkpoint(net))
        assert alone.arch == plain.arch
        assert alone.params.keys() == plain.params.keys()
        for key, value in plain.params.items():
            np.testing.assert_array_equal(alone.params[key], value, key)
        spikes = torch.from_numpy(random_spikes(net, 5))
        assert torch.equal(model(alone).double()(spikes), net.double()(spikes))
    with pytest.raises(InputError, match=r"3 is none of 0\.\.2"):
        joint.member(joined, M)


def test_a_joint_network_brings_its_members(nets, joined):
    a, b, c = map(checkpoint, nets)
    for again in (joint.join([joint.join([a, b]), c]), joint.join([a, joint.join([b, c])])):
        assert again.arch == joined.arch
        for key, value in joined.params.items():
            np.testing.assert_array_equal(again.params[key], value, key)


@pytest.mark.parametrize("chip", ["ideal", "loihi2"])
def test_integers_synapses_and_events_are_those_of_the_members(nets, joined, chip):
    """A unit per channel: what a member becomes does not depend on who decides with it."""
    spikes = random_spikes(nets[0], 10)
    net = model(joined)
    networks = [stl_deploy.quantize(stl_deploy.from_torch(n), chip=chip) for n in (net, *nets)]
    traces = [stl_deploy.simulate(network, spikes, states=True) for network in networks]
    counts = [Simulator(network).run(Raster(spikes)).counts for network in networks]
    population = nets[0].arch.population
    for at, name in enumerate(networks[0].by_name):
        last = name == networks[0].readout.source
        for what in ("spikes", "v", "u"):
            whole, *parts = (getattr(trace.layers[name], what) for trace in traces)
            if whole is not None:
                expected = beside(parts, population if last else None)
                np.testing.assert_array_equal(whole, expected, f"{name} {what}")
        whole, *parts = (
            sum(synapse_count(network, c) for c in network.into(name)) for network in networks
        )
        assert whole == sum(parts), name
        for what in ("synops", "spikes", "active"):
            whole, *parts = (getattr(count.layers[at], what) for count in counts)
            np.testing.assert_array_equal(whole, np.sum(parts, axis=0), f"{name} {what}")


def test_placement_stores_no_synapse_between_members(nets, joined):
    """A core takes what the members take together, but for bits that number more neurons."""
    networks = [
        stl_deploy.quantize(stl_deploy.from_torch(net), chip="loihi2")
        for net in (model(joined), *nets)
    ]
    for name in networks[0].by_name:
        whole, *parts = (network.placement.layers[name] for network in networks)
        assert len(whole.blocks) == 1
        for limit in ("synapse_bytes", "compartments", "in_axons"):
            together = sum(part.fullest[limit] for part in parts)
            assert whole.fullest[limit] <= 1.1 * together, (name, limit)


@pytest.mark.parametrize("bits", [8, 3])
def test_calibration_connects_no_members(bits):
    nets = [random_net(seed=seed) for seed in range(M)]
    graph = stl_deploy.from_torch(model(joint.join([checkpoint(net) for net in nets])))
    network = stl_deploy.quantize(
        graph, chip="loihi2", weight_bits=bits, calib=random_spikes(nets[0], 40)
    )
    held = {c.name: c.synapses.weight for c in network.connections}
    for name in ("fc1", "fc2"):
        absent = graph.nodes[name].weight == 0
        assert absent.sum() > 3000
        assert not held[name][absent].any()


# All tools


@pytest.mark.parametrize("kind", ["convolutions", "in groups", "convolution last"])
def test_every_target_and_backend_has_the_same_spikes(python, command, tmp_path, kind):
    nets = [random_net(MEMBERS[kind], seed=seed) for seed in range(M)]
    for name, net in zip("abc", nets, strict=True):
        save_checkpoint(net, tmp_path / f"{name}.pt")
    files = [tmp_path / f"{name}.pt" for name in "abc"]
    out, raster = tmp_path / "joint.pt", tmp_path / "raster.npz"
    spikes = random_spikes(nets[0], 4)
    save_raster(raster, Raster(spikes, np.arange(4, dtype=np.int64)), {})
    assert command("stl-join", *files, "-o", out)[0] == 0
    targets = ("--target", "nir", "--target", "loihi", "--target", "onnx", "--chip", "loihi2")
    code, _, err = command("stl-export", out, *targets, "-o", tmp_path / "out")
    assert code == 0, err
    assert (tmp_path / "out/loihi/network.net").exists()
    lowered = tmp_path / "out/model.nir"
    backends = "hw_sim,lava,netx,onnx"
    code, text, err = command(
        "stl-parity", out, lowered, "--input", raster, "--backend", backends, "--json"
    )
    assert (code, err) == (0, "")
    data = json.loads(text)
    assert data["passed"]
    entries = 4 * 4 * sum(p.size for p in stl_deploy.load(lowered).populations)
    exact = asdict(against_reference.Agreement(entries, states=2 * entries))
    assert data["backends"] == dict.fromkeys(backends.split(","), exact)


# Trained on integers


def trained(seed: int) -> STLNet:
    return qat.from_checkpoint(checkpoint(random_net(seed=seed)), 4, "loihi2").frozen()


def test_members_trained_on_integers(tmp_path):
    nets = [trained(seed) for seed in range(2)]
    joined = joint.join([checkpoint(net) for net in nets])
    save_checkpoint(model(joined), tmp_path / "joint.pt")
    read = stl.read(tmp_path / "joint.pt")
    assert read.arch == joined.arch
    network = stl_deploy.quantize(stl_deploy.from_torch(model(read)), chip="loihi2")
    spikes = random_spikes(nets[0], 8)
    trace = stl_deploy.simulate(network, spikes)
    for name, expected in infer(model(read), torch.from_numpy(spikes)).items():
        np.testing.assert_array_equal(trace.layers[name].spikes, expected.numpy(), name)
    alone = [infer(net, torch.from_numpy(spikes))["lif4"].numpy() for net in nets]
    np.testing.assert_array_equal(trace.layers["lif4"].spikes, beside(alone, 2))


def test_training_on_integers_would_connect_members():
    nets = [checkpoint(random_net(seed=seed)) for seed in range(2)]
    with pytest.raises(LoweringError, match="train each on integers, then join"):
        qat.from_checkpoint(joint.join(nets), 4, "loihi2")


def test_linear_layers_in_groups_train_on_integers():
    net = random_net(IN_GROUPS)
    frozen = qat.from_checkpoint(checkpoint(net), 8, "loihi2").frozen()
    assert frozen.get_submodule("e").weight.shape == (12, 18)
    spikes = random_spikes(net, 8)
    network = stl_deploy.quantize(stl_deploy.from_torch(frozen), chip="loihi2")
    trace = stl_deploy.simulate(network, spikes)
    for name, expected in infer(frozen, torch.from_numpy(spikes)).items():
        np.testing.assert_array_equal(trace.layers[name].spikes, expected.numpy(), name)


# The layer


@pytest.mark.parametrize("bias", [False, True])
def test_a_linear_layer_in_groups_is_a_convolution_of_one_pixel(bias):
    """PyTorch's own grouped convolution, forward and backward."""
    torch.manual_seed(0)
    layer = layers.Linear(12, 8, bias=bias, groups=4).double()
    assert layer.weight.shape == (8, 3)
    x = torch.rand(2, 5, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    expected = torch.nn.functional.conv2d(
        x.reshape(10, 12, 1, 1), layer.weight[:, :, None, None], layer.bias, groups=4
    ).reshape(2, 5, 8)
    torch.testing.assert_close(layer(x), expected)
    (got,) = torch.autograd.grad(layer(x).square().sum(), layer.weight)
    (want,) = torch.autograd.grad(expected.square().sum(), layer.weight)
    torch.testing.assert_close(got, want)


def test_without_groups_weights_are_the_same():
    rng = np.random.default_rng(0)
    weight, x = rng.normal(size=(6, 2, 3, 3)), rng.normal(size=(2, 4, 5, 5))
    geometry = (1, 1), (1, 1), (1, 1)
    full = stl.ungrouped(weight, 2)
    np.testing.assert_allclose(convolve(x, full, *geometry, 1), convolve(x, weight, *geometry, 2))
    np.testing.assert_array_equal(stl.grouped(full, 2), weight)


# What is refused


def test_all_differences_are_named(command, tmp_path):
    texts = {
        "a": SMALL,
        "b": SMALL.replace("6C3", "8C5").replace("AvgPool2", "AvgPool4"),
        "c": SMALL.removesuffix("-FC20-LIF-AvgPool2") + "-AvgPool3",
    }
    for name, text in texts.items():
        net = random_net(text)
        if name == "c":
            taus = [
                layer.model_copy(update={"tau": 0.25}) if layer.name == "lif1" else layer
                for layer in net.arch.layers
            ]
            changed = {"layers": tuple(taus), "timesteps": 6}
            changed["input"] = net.arch.input.model_copy(update={"levels": 255})
            net.arch = net.arch.model_copy(update=changed)
        save_checkpoint(net, tmp_path / f"{name}.pt")
    files = [tmp_path / f"{name}.pt" for name in texts]
    code, out, err = command("stl-join", *files, "-o", tmp_path / "joint.pt")
    assert (code, out) == (2, "")
    for what in (
        "b.pt: conv2.channels: 8, but",
        "b.pt: conv2.kernel: [5, 5], but",
        "b.pt: conv2.padding: [2, 2], but",
        "b.pt: population: 4, but",
        "c.pt: lif1.tau: 0.25, but",
        "c.pt: timesteps: 6, but",
        "c.pt: input levels: 255, but",
        "c.pt: layer 11: is not there, but",
    ):
        assert what in err, what
    assert "a.pt has" in err
    assert not (tmp_path / "joint.pt").exists()


def test_integers_and_floats_do_not_mix():
    floats = random_net(seed=0)
    with pytest.raises(InputError, match=r"weight bits \(trained on integers\): 4, but"):
        joint.join([checkpoint(floats), checkpoint(trained(1))])


def test_one_network_decides_alone():
    with pytest.raises(InputError, match="1 given; 2 to 1024 decide together"):
        joint.join([checkpoint(random_net())])
    with pytest.raises(InputError, match="is one alone"):
        joint.member(checkpoint(random_net()), 0)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("BN-FC20-LIF-AvgPool2", "bn1.*members cannot share it"),
        ("LIF-FC20-LIF-AvgPool2", "lif1.*members cannot share it"),
        ("10C3-LIF-AvgPool32", "lif1: 32 neurons vote for a class, not a multiple of"),
    ],
)
def test_what_cannot_be_joined(text, what):
    nets = [checkpoint(random_net(text, seed=seed)) for seed in range(2)]
    with pytest.raises(InputError, match=what):
        joint.join(nets)


def test_connected_members_do_not_come_out():
    joined = joint.join([checkpoint(random_net(seed=seed)) for seed in range(2)])
    weight = joined.params["fc2.weight"].copy()
    weight[0, -1] = 1
    with pytest.raises(InputError, match=r"fc2\.weight: connects members"):
        joint.member(replace(joined, params=joined.params | {"fc2.weight": weight}), 0)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"members": 5}, "groups of conv2: 3 does not divide into 5 members"),
        ({"members": 5}, "population: 6 does not divide into 5 members"),
        ({"members": 1}, "greater than or equal to 2"),
        ({"groups": 7}, "72 in and 90 out features do not divide into 7 groups"),
        ({"groups": 0}, "greater than 0"),
    ],
)
def test_descriptions_that_contradict_themselves(change, what):
    joined = joint.join([checkpoint(random_net(seed=seed)) for seed in range(M)])
    data = joined.arch.to_dict()
    if "groups" in change:
        data["layers"][8]["groups"] = change["groups"]
    else:
        data |= change
    with pytest.raises(InputError, match=re.escape(what)):
        Architecture.from_dict(data)


def test_a_few_numbers_cannot_ask_for_a_large_matrix():
    size = 1 << 16
    data = {
        "input": {"shape": (size,)},
        "layers": [
            {"kind": "linear", "name": "a", "features": size, "groups": size},
            {"kind": "lif", "name": "b"},
        ],
        "population": 1,
    }
    with pytest.raises(InputError, match="with zeros between its groups"):
        Architecture.from_dict(data)


# The command and its page


def test_the_command_says_what_it_joined(command, tmp_path):
    files = [tmp_path / f"{name}.pt" for name in "abc"]
    for seed, file in enumerate(files):
        save_checkpoint(random_net(seed=seed), file)
    out = tmp_path / "joint.pt"
    code, text, err = command("stl-join", *files, "-o", out, "--json")
    assert (code, err) == (0, "")
    sources = [{"file": file.name, "sha256": sha256(file)} for file in files]
    assert json.loads(text) == {
        "out": str(out),
        "members": 3,
        "classes": 10,
        "population": 6,
        "timesteps": 4,
        "sources": sources,
    }
    assert read_tensors(out)["training"] == {"joint": sources}
    # Groups are stored as such: only the last layer has zeros.
    assert out.stat().st_size < sum(file.stat().st_size for file in files) + 4 * 2 * 3600
    assert command("stl-join", *files, "-o", out)[0] == 2
    code, text, _ = command("stl-join", *files, "-o", out, "--force")
    assert (code, text) == (0, f"{out}: 3 members, 6 neurons vote for each of 10 classes\n")
    code, _, err = command("stl-join", files[0], files[0], "-o", out, "--force")
    assert code == 0
    assert "given twice votes twice" in err


def test_official_state_dicts_join(command, tmp_path):
    """What they do not store is given, as to stl-export."""
    nets = [random_net("4C3-BN-LIF-P4-FC30-LIF-FC20-LIF-AvgPool4", seed=seed) for seed in range(2)]
    for seed, net in enumerate(nets):
        torch.save(net.state_dict(), tmp_path / f"{seed}.pt")
    out = tmp_path / "joint.pt"
    given = ("--tau", 0.25, "--timesteps", 6, "--classes", 5)
    code, _, err = command("stl-join", tmp_path / "0.pt", tmp_path / "1.pt", "-o", out, *given)
    assert (code, err) == (0, "")
    arch = stl.read(out).arch
    assert (arch.timesteps, arch.classes, arch.population) == (6, 5, 8)
    assert {layer.tau for layer in arch.layers if layer.kind == "lif"} == {0.25}
    code, _, err = command("stl-join", out, out, "-o", tmp_path / "again.pt", "--timesteps", 3)
    assert code == 2
    assert "omit the option" in err


def test_files_that_cannot_be_read_are_all_named(command, tmp_path):
    (tmp_path / "a.pt").write_text("no checkpoint")
    code, _, err = command(
        "stl-join", tmp_path / "a.pt", tmp_path / "b.pt", "-o", tmp_path / "c.pt"
    )
    assert code == 2
    assert "a.pt: is a text file" in err
    assert "b.pt: does not exist" in err


def test_the_example_of_the_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    net = random_net()
    for seed, name in enumerate("abc"):
        save_checkpoint(random_net(seed=seed), tmp_path / f"{name}.pt")
    save_raster(tmp_path / "test.npz", Raster(random_spikes(net, 10), np.arange(10)), {})
    text = (ROOT / "docs" / "joint.md").read_text("utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", text, re.S)
    exec(compile(example, "joint", "exec"), {"__name__": "joint"})
    shown = capsys.readouterr().out
    assert len(re.findall(r"^member [012]: \d", shown, re.M)) == 3
    assert re.search(r"^together: \d", shown, re.M)
