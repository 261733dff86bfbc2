"""model.nir: what goes in comes out, and nothing else gets in."""

from __future__ import annotations

import json

import h5py
import nir
import numpy as np
import pytest
from nets import random_net, random_spikes

import stl_deploy
from stl_deploy import nir_file
from stl_deploy.errors import InputError
from stl_deploy.graph import KEY
from stl_deploy.network import LifLayer


def network(text="4C3-BN-LIF-P4-FC20-LIF-AvgPool2", seed=0, **options):
    net = random_net(text, seed)
    return stl_deploy.quantize(stl_deploy.from_torch(net), **options)


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "model.nir"
    nir_file.write(nir_file.to_nir(network(chip="loihi2")), file)
    return file


def refused(path):
    with pytest.raises(InputError) as error:
        nir_file.read_network(path)
    return str(error.value)


@pytest.mark.parametrize("options", [{}, {"chip": "loihi1"}, {"weight_bits": 3, "weight_exp": 2}])
def test_round_trip_is_exact(tmp_path, options):
    before = network(**options)
    nir_file.write(nir_file.to_nir(before), tmp_path / "m.nir")
    after = nir_file.read_network(tmp_path / "m.nir")
    for a, b in zip(before.layers, after.layers, strict=True):
        for key, value in vars(a).items():
            if key == "synapses":
                for k, v in vars(value).items():
                    np.testing.assert_array_equal(v, getattr(b.synapses, k))
            else:
                np.testing.assert_array_equal(value, getattr(b, key), key)
    for key in ("chip", "timesteps", "input_shape", "readout", "precision", "diagnostics"):
        assert getattr(before, key) == getattr(after, key), key


def test_the_file_is_plain_nir_in_the_documented_units(path):
    graph = nir.read(path)
    net = nir_file.read_network(path)
    lif = net.layers[0]
    assert isinstance(lif, LifLayer)
    node, conv = graph.nodes["lif1"], graph.nodes["conv1"]
    assert conv.weight.dtype == np.int8
    assert node.v_threshold.dtype == np.int32
    assert (node.tau == 1e-4 * 2).all()
    assert (node.r == 2).all()
    assert not node.v_leak.any()
    assert not node.v_reset.any()
    np.testing.assert_array_equal(conv.bias, lif.bias_mant)
    meta = json.loads(graph.metadata[KEY])
    assert (meta["format"], meta["version"]) == ("stl-deploy/integer", 1)


def test_a_reader_that_knows_only_nir_computes_the_same_spikes(path):
    """NIR's equation by forward Euler on the file's arrays, without our metadata or simulator."""
    graph, net = nir.read(path), nir_file.read_network(path)
    spikes = random_spikes(random_net("4C3-BN-LIF-P4-FC20-LIF-AvgPool2"), 20)
    ours = stl_deploy.simulate(net, spikes)
    import torch

    x = torch.from_numpy(spikes).double()
    for name, weights in (("lif1", "conv1"), ("pool1", None), ("lif2", "fc1")):
        if weights is None:
            x = torch.nn.functional.max_pool2d(x.flatten(0, 1), 2).unflatten(0, x.shape[:2])
        else:
            node, lif = graph.nodes[weights], graph.nodes[name]
            w = torch.from_numpy(node.weight.astype(np.float64))
            flat = x.flatten(0, 1)
            if w.dim() == 4:
                pad = tuple(map(int, node.padding))
                current = torch.nn.functional.conv2d(
                    flat, w, torch.from_numpy(node.bias), padding=pad
                )
            else:
                current = flat.flatten(1) @ w.T
            current = current.unflatten(0, x.shape[:2])
            v, out = torch.zeros_like(current[:, 0]), []
            for t in range(current.shape[1]):
                step = 1e-4 / torch.from_numpy(lif.tau)
                v = v + step * (torch.from_numpy(lif.r) * current[:, t] - v)
                s = v > torch.from_numpy(lif.v_threshold)
                v = torch.where(s, torch.zeros_like(v), v)
                out.append(s.double())
            x = torch.stack(out, 1)
        np.testing.assert_array_equal(x.numpy(), ours.layers[name].spikes)


def edit(path, change):
    with h5py.File(path, "r+") as file:
        change(file)


def put(name, value):
    def change(file):
        del file[name]
        file[name] = value

    return change


def meta(**changes):
    def change(file):
        name = f"node/metadata/{KEY}"
        data = json.loads(file[name][()])
        del file[name]
        file[name] = json.dumps({**data, **changes})

    return change


def layer_meta(**changes):
    def change(file):
        layers = json.loads(file[f"node/metadata/{KEY}"][()])["layers"]
        layers[0].update(changes)
        meta(layers=layers)(file)

    return change


NODES = "node/nodes"


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (put(f"{NODES}/conv1/weight", np.full((4, 1, 3, 3), 0.5)), "not integers"),
        (put(f"{NODES}/conv1/weight", np.full((4, 1, 3, 3), 300)), "outside -128..127"),
        (put(f"{NODES}/conv1/bias", np.full(4, 0.1)), "bias holds values that are not integers"),
        (put(f"{NODES}/lif1/v_threshold", np.full((4, 8, 8), -1)), "outside 0..131071"),
        (put(f"{NODES}/lif1/v_threshold", np.full((4, 8, 8), np.nan)), "not integers"),
        (put(f"{NODES}/lif1/tau", np.full((4, 8, 8), 3e-4)), "tau contradicts"),
        (put(f"{NODES}/lif1/r", np.full((4, 8, 8), 1.0)), "r contradicts"),
        (put(f"{NODES}/lif1/v_reset", np.full((4, 8, 8), 1.0)), "v_reset contradicts"),
        (put(f"{NODES}/pool1/threshold", np.full((4, 4, 4), 1)), "threshold of an OR pool is 0"),
        (put(f"{NODES}/fc1/weight", np.zeros((20, 7), np.int8)), "does not fit"),
        (meta(chip="tpu"), "'tpu' is not one of"),
        (meta(version=2), "version"),
        (meta(surprise=1), "surprise"),
        (meta(population=3), "20 outputs for 10 classes of 3"),
        (meta(timesteps=0), "timesteps"),
        (layer_meta(du=0), "a LIF has du = 4095"),
        (layer_meta(dv=0), "a LIF has du = 4095"),
        (layer_meta(scale=[1.0]), "1 scales for 4 channels"),
        (put(f"node/metadata/{KEY}", "[" * 100_000), "no stl-deploy metadata"),
        (put(f"{NODES}/conv1/stride", np.array([0, 0])), "nir can read"),
        (put(f"{NODES}/conv1/input_shape", np.array([9, 9])), "input_shape (9, 9)"),
        (put(f"{NODES}/conv1/weight", np.zeros((4, 3, 3), np.int8)), "conv1"),
        (put(f"{NODES}/lif1/type", "Soma"), "nir can read"),
        (meta(layers=[]), "is not described in the metadata"),
        (put(f"node/metadata/{KEY}", "{"), "no stl-deploy metadata"),
        (
            put("node/edges", np.array([["input", "conv1"], ["conv1", "conv1"]], dtype="S9")),
            "chain",
        ),
    ],
)
def test_contradictions_are_refused(path, change, what):
    edit(path, change)
    assert what in refused(path)


def test_links_out_of_the_file_are_refused(path, tmp_path):
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["x"] = np.arange(3)

    def change(file):
        file["node/nodes/evil"] = h5py.ExternalLink(str(secret), "/x")

    edit(path, change)
    assert "a link" in refused(path)


def test_a_huge_unwritten_dataset_is_refused_before_it_is_read(path):
    def change(file):
        del file[f"{NODES}/fc1/weight"]
        file.create_dataset(
            f"{NODES}/fc1/weight", shape=(1 << 20, 1 << 20), chunks=(64, 64), dtype="i1"
        )

    edit(path, change)
    assert "limit" in refused(path)


@pytest.mark.parametrize("keep", [0, 10, 0.3, 0.9])
def test_truncated_or_foreign_files(path, keep):
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data) if keep < 1 else keep)])
    assert str(path) in refused(path)


def test_a_float_graph_is_told_apart(tmp_path):
    nir_file.write(stl_deploy.from_torch(random_net()), tmp_path / "f.nir")
    assert "not model.float.nir" in refused(tmp_path / "f.nir")
