"""Checkpoints: ours and the official code's, and everything that must be refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import stl_deploy
from stl_deploy.errors import InputError
from stl_deploy.formats.checkpoint import FORMAT, save_checkpoint
from stl_deploy.importers import stl
from stl_deploy.ir.arch import OFFICIAL_MNIST, Architecture
from stl_deploy.models.net import STLNet, from_params, infer
from tests.build.nets import random_net, random_spikes


def refused(path, **kwargs) -> str:
    with pytest.raises(InputError) as error:
        stl.read(path, **kwargs)
    return str(error.value)


def changed(net, path, **entries):
    """A checkpoint of ``net`` with entries of its state_dict replaced; None removes one."""
    state = {k: v.clone() for k, v in net.state_dict().items()}
    for key, value in entries.items():
        name = key.replace("__", ".")
        if value is None:
            del state[name]
        else:
            state[name] = value
    torch.save(
        {"format": FORMAT, "arch": net.arch.model_dump(mode="json"), "state_dict": state}, path
    )
    return path


def test_our_checkpoint_comes_back_as_it_was(net, model):
    checkpoint = stl.read(model)
    assert checkpoint.arch == net.arch
    again = from_params(checkpoint.arch, checkpoint.params)
    spikes = torch.from_numpy(random_spikes(net, 3))
    for name, expected in infer(net, spikes).items():
        assert torch.equal(infer(again, spikes)[name], expected)


def test_official_state_dict_bare_and_wrapped(tmp_path):
    net = random_net(
        OFFICIAL_MNIST.replace("128C5", "6C5").replace("2048", "64"), shape=(1, 28, 28)
    )
    for name, data in (
        ("bare", net.state_dict()),
        ("wrapped", {"state_dict": net.state_dict(), "epoch": 3}),
        ("parallel", {f"module.{k}": v for k, v in net.state_dict().items()}),
    ):
        torch.save(data, tmp_path / f"{name}.pt")
        checkpoint = stl.read(tmp_path / f"{name}.pt")
        assert checkpoint.arch == net.arch, name
        assert set(checkpoint.params) == set(stl.expected_shapes(net.arch))


def test_official_names_shapes_and_size():
    arch = Architecture.parse(OFFICIAL_MNIST)
    shapes = stl.expected_shapes(arch)
    assert shapes["lif1.thresh"] == (128, 28, 28)
    assert shapes["fc1.weight"] == (2048, 128 * 7 * 7)
    assert sum(np.prod(s) for n, s in shapes.items() if n.endswith("thresh")) == 127_588
    assert (arch.classes, arch.population) == (10, 10)


def test_tau_and_timesteps_complete_an_official_state_dict(tmp_path):
    net = random_net("4C3-BN-LIF-P4-FC20-LIF-AvgPool2")
    torch.save(net.state_dict(), tmp_path / "m.pt")
    arch = stl.read(tmp_path / "m.pt", tau=0.25, timesteps=7).arch
    assert arch.timesteps == 7
    assert {layer.tau for layer in arch.layers if layer.kind == "lif"} == {0.25}


def test_a_contradiction_with_our_checkpoint_is_refused(model):
    message = refused(model, tau=0.25, timesteps=9)
    assert "--timesteps: 9" in message
    assert "--tau: 0.25" in message


def test_pickled_module_is_refused_and_never_run(tmp_path):
    torch.save(random_net(), tmp_path / "m.pt")
    message = refused(tmp_path / "m.pt")
    assert "pickled Python objects" in message
    assert "state_dict()" in message


class _Bomb:
    def __reduce__(self):
        return (open, ("/nonexistent/stl-deploy-was-here", "w"))


def test_code_in_a_checkpoint_is_not_executed(tmp_path):
    torch.save({"format": FORMAT, "x": _Bomb()}, tmp_path / "m.pt")
    assert "never loaded" in refused(tmp_path / "m.pt")


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.99])
def test_truncated_file(model, keep):
    data = model.read_bytes()
    model.write_bytes(data[: int(keep if keep >= 1 or keep == 0 else keep * len(data))])
    assert str(model) in refused(model)


@pytest.mark.parametrize("content", [b"hello", b"PK\x03\x04" + b"\0" * 300, b"\x80\x02}q\x00."])
def test_not_a_checkpoint(tmp_path, content):
    (tmp_path / "m.pt").write_bytes(content)
    refused(tmp_path / "m.pt")


def test_missing_file_and_folder(tmp_path):
    assert "does not exist" in refused(tmp_path / "none.pt")
    assert "is a folder" in refused(tmp_path)


def test_every_problem_is_named_at_once(net, tmp_path):
    nan = net.conv1.weight.detach().clone()
    nan[0, 0, 0, 0] = float("nan")
    path = changed(
        net,
        tmp_path / "m.pt",
        conv1__weight=nan,
        fc1__weight=torch.full((30, 24), float("inf")),
        bn1__running_var=-torch.ones(4),
        lif1__thresh=torch.ones(4, 8, 8, dtype=torch.int64),
    )
    message = refused(path)
    assert "conv1.weight: 1 of 36 values are NaN or infinite" in message
    assert "fc1.weight: 720 of 720 values are NaN or infinite" in message
    assert "bn1.running_var: holds negative variances" in message
    assert "lif1.thresh: has type torch.int64" in message


def test_missing_extra_and_misshapen_keys_at_once(net, tmp_path):
    path = changed(
        net, tmp_path / "m.pt", conv2__weight=None, lif2__thresh=torch.ones(6), odd=torch.ones(2)
    )
    message = refused(path)
    assert "conv2.weight: is missing; expected shape (6, 4, 3, 3)" in message
    assert "lif2.thresh: has shape (6,), expected (6, 4, 4)" in message
    assert "odd: of shape (2,) belongs to no layer" in message


def test_a_tensor_that_claims_more_than_it_stores(net, tmp_path):
    path = changed(net, tmp_path / "m.pt", fc1__weight=torch.ones(1).expand(30, 24))
    assert "fc1.weight: claims (30, 24) but stores less" in refused(path)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        ({"format": "stl-deploy/9", "arch": {}}, "this version reads 'stl-deploy/1'"),
        ({"format": FORMAT, "arch": {}, "state_dict": {}}, "arch"),
        ({"format": FORMAT, "arch": {"layers": [{"kind": "pooling"}]}}, "layers"),
        ({}, "state_dict: is missing or empty"),
        ({"weight": torch.ones(2)}, "neither a stl-deploy checkpoint nor an official"),
        ([torch.ones(2)], "holds a list, not a dictionary"),
        ({"conv1.weight": torch.ones(2, 1, 3, 3), "fc1.weight": torch.ones(10, 8)}, "lif1.thresh"),
    ],
)
def test_strange_contents(tmp_path, data, what):
    torch.save(data, tmp_path / "m.pt")
    assert what in refused(tmp_path / "m.pt")


def test_official_pool_that_no_shape_explains(tmp_path):
    state = random_net("4C3-BN-LIF-P4-FC20-LIF-AvgPool2").state_dict()
    state["fc1.weight"] = torch.ones(20, 60)
    torch.save(state, tmp_path / "m.pt")
    assert "no square pooling of lif1" in refused(tmp_path / "m.pt")


def test_official_classes(tmp_path):
    torch.save(random_net("FC21-LIF-AvgPool3", shape=(5,)).state_dict(), tmp_path / "m.pt")
    assert "--classes" in refused(tmp_path / "m.pt")
    assert stl.read(tmp_path / "m.pt", classes=7).arch.population == 3


def test_double_and_half_precision_keep_their_values(tmp_path):
    net = random_net()
    for dtype in (torch.float64, torch.float16):
        save_checkpoint(STLNet(net.arch).to(dtype), tmp_path / "m.pt")
        params = stl.read(tmp_path / "m.pt").params
        wide = np.float64 if dtype == torch.float64 else np.float32
        assert {p.dtype for p in params.values()} == {np.dtype(wide)}


def test_load_and_from_torch(model, net):
    loaded = stl_deploy.load(model)
    assert isinstance(loaded, STLNet)
    graph = stl_deploy.from_torch(loaded)
    assert list(graph.nodes)[1:4] == ["conv1", "lif1", "pool1_sum"]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("128X5", "token 1 '128X5'"),
        ("4C4-LIF", "kernel 4 is even"),
        ("4C3-LIF-P3-FC10-LIF", "cannot be tiled"),
        ("FC10", "not a LIF"),
        ("AvgPool2-FC10-LIF", "not the last token"),
        ("FC10-LIF-AvgPool3", "do not divide into populations"),
        ("FC10-LIF-4C3-LIF", "needs an input (C, H, W)"),
    ],
)
def test_architecture_text_is_checked(text, what):
    with pytest.raises(InputError) as error:
        Architecture.parse(text, (1, 8, 8))
    assert what in str(error.value)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda s: s.pop("conv1.weight"), "conv1.weight: is missing"),
        (lambda s: s.update({"lif2.thresh": torch.ones(6, 9, 9)}), "no pooling of the (8, 8)"),
        (lambda s: s.update({"conv1.weight": torch.ones(4, 1, 2, 2)}), "has a 2x2 kernel"),
        (lambda s: s.update({1: torch.ones(2)}), "1: is a key of type int"),
        (lambda s: s.update({"x": torch.ones(2, device="meta")}), "x: is a meta tensor"),
    ],
)
def test_broken_official_state_dicts_are_explained(tmp_path, change, what):
    state = dict(random_net().state_dict())
    change(state)
    torch.save(state, tmp_path / "m.pt")
    assert what in refused(tmp_path / "m.pt")


@pytest.mark.parametrize("tau", [float("nan"), -0.1, 1.0, float("inf")])
def test_tau_out_of_range_is_named(model, tau):
    assert refused(model, tau=tau).startswith("--tau: ")


def test_classes_that_contradict_our_checkpoint(model):
    assert "--classes: 7" in refused(model, classes=7)
