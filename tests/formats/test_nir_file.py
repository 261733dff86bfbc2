"""model.nir: what goes in comes out, and nothing else gets in."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import h5py
import nir
import numpy as np
import pytest
from hypothesis import given, settings

import stl_deploy
from stl_deploy.errors import InputError, LoweringError
from stl_deploy.formats import integer_nir as nir_file
from stl_deploy.formats import nir_io
from stl_deploy.hw_sim import reference
from stl_deploy.ir import chain as chain_view
from stl_deploy.ir.chain import LifLayer
from stl_deploy.ir.nir_graph import KEY
from stl_deploy.ir.synapses import Dense
from tests.build.nets import quantized, random_net, random_spikes
from tests.build.networks import chain, lif
from tests.build.strategies import networks


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "model.nir"
    nir_io.write(nir_file.to_nir(quantized(chip="loihi2")), file)
    return file


def refused(path):
    with pytest.raises(InputError) as error:
        nir_file.read_network(path)
    return str(error.value)


@pytest.mark.parametrize("options", [{}, {"chip": "loihi1"}, {"weight_bits": 3, "weight_exp": 2}])
def test_round_trip_is_exact(tmp_path, options):
    before = quantized(**options)
    nir_io.write(nir_file.to_nir(before), tmp_path / "m.nir")
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
    # What readers of version 1 know, and refuse anything else.
    known = "name kind weights du dv exp bias_exp weight_bits scale precision rounding folded"
    assert all(row.keys() == set(known.split()) for row in meta["layers"])


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
        (meta(version=2), "version 2 resets 'same-step, as its layer says'"),
        (meta(version=3), "version"),
        (meta(reset="same-step, as its layer says"), "version 1 resets 'same-step, to zero'"),
        (meta(surprise=1), "surprise"),
        (meta(population=3), "20 outputs for 10 classes of 3"),
        (meta(timesteps=0), "timesteps"),
        (layer_meta(du=0), "a LIF has du = 4095"),
        (layer_meta(dv=0), "in version 1 a LIF has du = 4095, resets to zero, leaks"),
        (layer_meta(reset="subtract"), "a LIF has du = 4095, resets to zero"),
        (layer_meta(recurrent="rec"), "is not recurrent and is not calibrated"),
        (
            layer_meta(
                precision={
                    "mode": "proven",
                    "effective_bits": 8,
                    "worst_sum": 1,
                    "limit": None,
                    "calibrated": 5,
                }
            ),
            "is not calibrated",
        ),
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


# Currents, recurrence, reset by subtraction


def equal(before, after):
    """Whether two networks are the same, array by array."""
    assert len(before.layers) == len(after.layers)
    for a, b in zip(before.layers, after.layers, strict=True):
        assert type(a) is type(b)
        for key, value in vars(a).items():
            if key in ("synapses", "recurrent") and value is not None:
                assert vars(value).keys() == vars(getattr(b, key)).keys()
                for k, v in vars(value).items():
                    np.testing.assert_array_equal(v, getattr(getattr(b, key), k), k)
            else:
                np.testing.assert_array_equal(value, getattr(b, key), key)


@settings(max_examples=100)
@given(networks())
def test_any_network_comes_back(case):
    before, raster = case
    layers = [
        replace(n, dv=max(n.dv, n.du < 4095)) if isinstance(n, LifLayer) else n
        for n in before.layers
    ]
    before = chain_view.with_layers(before, tuple(layers))
    with TemporaryDirectory() as folder:
        path = Path(folder) / "m.nir"
        nir_io.write(nir_file.to_nir(before), path)
        after = nir_file.read_network(path)
        version = json.loads(nir_io.read(path).metadata[KEY])["version"]
    equal(before, after)
    plain = all(
        n.du == 4095 and n.dv and n.recurrent is None and n.reset == "zero"
        for n in before.lif_layers
    )
    assert version == (1 if plain else 2)
    ran = reference.run(before, raster).predictions
    np.testing.assert_array_equal(reference.run(after, raster).predictions, ran)


def remembering():
    """Two flat layers: a current, weights of its own and a soft reset; then a plain one."""
    rng = np.random.default_rng(3)

    def drawn(name, inputs, outputs, vth, **fields):
        weight = Dense(rng.integers(-50, 80, (outputs, inputs)).astype(np.int8))
        bias = rng.integers(-20, 20, outputs)
        vth = rng.integers(vth // 2, vth, outputs)
        return lif(name, weight, vth=vth, bias=bias, **fields)

    own = Dense(rng.integers(-60, 60, (12, 12)).astype(np.int8))
    first = drawn("lif1", 9, 12, 400, du=2047, exp=1, recurrent=own, recurrent_name="rec")
    return chain(replace(first, reset="subtract"), drawn("lif2", 12, 6, 150), steps=5)


@pytest.fixture
def newer(tmp_path):
    file = tmp_path / "model.nir"
    nir_io.write(nir_file.to_nir(remembering()), file)
    return file


def test_a_reader_of_currents_and_recurrence_computes_the_same_spikes(newer):
    """NIR's equations by forward Euler, 1e-4 a step, and the edges of the graph, one step late."""
    graph, net = nir.read(newer), nir_file.read_network(newer)
    assert sorted(map(tuple, graph.edges)) == [
        ("input", "lif1_w"),
        ("lif1", "lif2_w"),
        ("lif1", "rec"),
        ("lif1_w", "lif1"),
        ("lif2", "output"),
        ("lif2_w", "lif2"),
        ("rec", "lif1"),
    ]
    raster = (np.random.default_rng(0).random((20, 5, 9)) < 0.5).astype(np.uint8)
    trace = reference.run(net, raster, states=True)
    node, weight, own = (graph.nodes[name] for name in ("lif1", "lif1_w", "rec"))
    assert (node.tau_syn == 2e-4).all()
    assert own.weight.dtype == np.int8
    i = v = s = np.zeros((20, 12))
    for t in range(5):
        inputs = raster[:, t] @ weight.weight.astype(float).T + s @ own.weight.astype(float).T
        i = i + 1e-4 / node.tau_syn * (node.w_in * inputs - i)
        v = v + 1e-4 / node.tau_mem * (node.v_leak - v + node.r * i)
        s = (v > node.v_threshold).astype(float)
        v = v - s * node.v_threshold  # what the metadata says
        np.testing.assert_array_equal(s, trace.layers["lif1"].spikes[:, t])
        np.testing.assert_array_equal(64 * v, trace.layers["lif1"].v[:, t])
        np.testing.assert_array_equal(64 * node.r * i / 2, trace.layers["lif1"].u[:, t])
    assert 0.1 < trace.layers["lif1"].spikes.mean() < 0.9
    assert isinstance(graph.nodes["lif2"], nir.LIF)


def edges(*pairs):
    def change(file):
        kept = [tuple(map(bytes.decode, edge)) for edge in file["node/edges"][()]]
        del file["node/edges"]
        file["node/edges"] = np.array([*kept, *pairs], dtype="S9")

    return change


def without_edges(*pairs):
    def change(file):
        kept = [tuple(map(bytes.decode, edge)) for edge in file["node/edges"][()]]
        del file["node/edges"]
        file["node/edges"] = np.array([e for e in kept if e not in pairs], dtype="S9")

    return change


def all_of(*changes):
    def change(file):
        for one in changes:
            one(file)

    return change


OLD = meta(version=1, reset="same-step, to zero")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (put(f"{NODES}/rec/weight", np.full((12, 12), 0.5)), "rec.weight holds values that are no"),
        (put(f"{NODES}/rec/weight", np.full((12, 12), 128)), "rec.weight spans 128..128"),
        (put(f"{NODES}/rec/weight", np.zeros((12, 11), np.int8)), "lif1 needs (12, 12)"),
        (put(f"{NODES}/rec/weight", np.zeros((9, 12), np.int8)), "lif1 needs (12, 12)"),
        (put(f"{NODES}/lif1/tau_syn", np.full(12, 1e-4)), "tau_syn contradicts"),
        (put(f"{NODES}/lif1/tau_mem", np.full(12, 1e-4)), "tau_mem contradicts"),
        (put(f"{NODES}/lif1/w_in", np.full(12, 1.0)), "w_in contradicts"),
        (put(f"{NODES}/lif1/r", np.full(12, 2.0)), "r contradicts"),
        (put(f"{NODES}/lif1/v_reset", np.full(12, 1.0)), "v_reset contradicts"),
        (put(f"{NODES}/lif1/v_leak", np.full(12, 0.3)), "v_leak is not a bias"),
        (put(f"{NODES}/lif1/v_leak", np.full(12, 2.0 * 4096)), "bias spans 4096..4096"),
        (put(f"{NODES}/lif1/v_leak", np.full(12, np.nan)), "v_leak is not a bias"),
        (put(f"{NODES}/lif1/v_threshold", np.full(12, -1)), "v_threshold spans -1..-1"),
        (layer_meta(du=4095), "is a CubaLIF, with du 4095 not a LIF"),
        (layer_meta(du=2046), "tau_syn contradicts the metadata (du 2046"),
        (layer_meta(dv=0), "dv 0"),
        (layer_meta(recurrent=None), "is recurrent through rec, in the metadata through none"),
        (layer_meta(recurrent="other"), "through rec, in the metadata through other"),
        (layer_meta(reset="half"), "'zero' or 'subtract'"),
        (OLD, "lif1: in version 1 a LIF has du = 4095"),
        (meta(version=1), "version 1 resets 'same-step, to zero'"),
        (meta(chip="loihi1"), "reset 'subtract': a neuron of loihi1 resets to zero"),
        (without_edges(("rec", "lif1")), "branches or joins"),
        (without_edges(("lif1", "rec")), "rec -> lif1: branches or joins"),
        (without_edges(("lif1", "rec"), ("rec", "lif1")), "rec: not on a chain"),
        (edges(("rec", "lif2")), "branches or joins"),
        (edges(("lif2", "rec")), "branches or joins"),
        (edges(("lif1", "lif1")), "lif1 -> lif1: branches or joins"),
        (edges(("lif2", "lif1_w")), "branches or joins"),
        (all_of(without_edges(("rec", "lif1")), edges(("rec", "lif1_w"))), "branches or joins"),
        (
            all_of(
                without_edges(("rec", "lif1"), ("lif1", "rec")),
                edges(("rec", "lif2"), ("lif2", "rec")),
                put(f"{NODES}/rec/weight", np.zeros((6, 6), np.int8)),
            ),
            "is recurrent through no node, in the metadata through rec",
        ),
        (put(f"{NODES}/rec/type", "Threshold"), "nir can read"),
    ],
)
def test_contradictions_of_the_newer_kind_are_refused(newer, change, what):
    edit(newer, change)
    assert what in refused(newer)


def test_a_current_takes_its_bias_from_the_leak_alone(newer):
    graph = nir.read(newer)
    graph.nodes["lif1_w"] = nir.Affine(weight=graph.nodes["lif1_w"].weight, bias=np.ones(12))
    with pytest.raises(InputError, match="lif1_w has a bias; that of a CubaLIF is its v_leak"):
        nir_file.from_nir(graph)


def test_two_nodes_cannot_be_heard_at_once(newer):
    graph = nir.read(newer)
    graph.nodes["rec2"] = graph.nodes["rec"]
    graph.edges += [("lif1", "rec2"), ("rec2", "lif1")]
    with pytest.raises(InputError, match="branches or joins"):
        nir_file.from_nir(graph)


def test_neurons_are_recurrent_through_a_linear_node_alone(newer):
    graph = nir.read(newer)
    weight = graph.nodes["rec"].weight
    for node in (nir.Affine(weight=weight, bias=np.zeros(12)), nir.Scale(scale=np.ones(12))):
        graph.nodes["rec"] = node
        with pytest.raises(InputError, match="branches or joins"):
            nir_file.from_nir(graph)


def test_what_nir_cannot_say_is_not_written():
    net = remembering()
    first, second = net.layers
    image = replace(second, shape=(6, 1, 1), recurrent=Dense(np.zeros((6, 6), np.int8)))
    broken = chain_view.with_layers(net, (replace(first, dv=0), image))
    with pytest.raises(LoweringError) as error:
        nir_file.to_nir(broken)
    assert [p.where for p in error.value.problems] == ["lif1", "lif2"]
    assert "dv 0" in str(error.value)
    assert "is recurrent and has shape (6, 1, 1)" in str(error.value)
    pool = chain_view.with_layers(net, (first, replace(second, du=0)))
    assert nir_file.from_nir(nir_file.to_nir(pool)).layers[1].du == 0


def test_a_folded_convolution_has_no_current(tmp_path):
    folded = quantized(chip="loihi2", thresholds="fold")
    current = replace(folded.layers[0], du=100)
    with pytest.raises(LoweringError, match="folded convolution into neurons with a current"):
        nir_file.to_nir(chain_view.with_layers(folded, (current, *folded.layers[1:])))
    graph = nir_file.to_nir(folded)
    lif = graph.nodes["lif1"]
    gain = 4096 / 101
    graph.nodes["lif1"] = nir.CubaLIF(
        tau_syn=np.full_like(lif.tau, 1e-4 * gain),
        tau_mem=lif.tau,
        r=lif.r,
        v_leak=lif.v_leak,
        v_reset=lif.v_reset,
        v_threshold=lif.v_threshold,
        w_in=np.full_like(lif.tau, gain),
    )
    data = json.loads(graph.metadata[KEY])
    data |= {"version": 2, "reset": "same-step, as its layer says"}
    data["layers"][0]["du"] = 100
    graph.metadata[KEY] = json.dumps(data)
    with pytest.raises(InputError, match="du 100: the neurons of a folded convolution have no cur"):
        nir_file.from_nir(graph)


def test_an_or_pool_has_none_of_it(path):
    def change(file):
        layers = json.loads(file[f"node/metadata/{KEY}"][()])["layers"]
        layers[1].update(reset="subtract", recurrent=None)
        meta(layers=layers, version=2, reset="same-step, as its layer says")(file)

    edit(path, change)
    assert "pool1: an OR pool has no current" in refused(path)


def test_links_out_of_the_file_are_refused(path, tmp_path):
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["x"] = np.arange(3)

    def change(file):
        file["node/nodes/evil"] = h5py.ExternalLink(str(secret), "/x")

    edit(path, change)
    assert "a link" in refused(path)


@pytest.mark.parametrize("kind", ["virtual", "external"])
def test_data_that_stand_in_another_file_are_refused(path, tmp_path, kind):
    """Weights of the right shape, so that nothing but where they stand tells them apart."""
    other = tmp_path / "other.h5"

    def change(file):
        weight = file[f"{NODES}/fc1/weight"][()]
        del file[f"{NODES}/fc1/weight"]
        if kind == "external":
            other.write_bytes(weight.tobytes())
            file[f"{NODES}/fc1"].create_dataset(
                "weight", weight.shape, weight.dtype, external=[(str(other), 0, weight.nbytes)]
            )
            return
        with h5py.File(other, "w") as source:
            source["x"] = weight
        layout = h5py.VirtualLayout(weight.shape, weight.dtype)
        layout[:] = h5py.VirtualSource(other, "x", weight.shape)
        file[f"{NODES}/fc1"].create_virtual_dataset("weight", layout)

    edit(path, change)
    assert "fc1/weight: refers to other files" in refused(path)


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
    nir_io.write(stl_deploy.from_torch(random_net()), tmp_path / "f.nir")
    assert "not model.float.nir" in refused(tmp_path / "f.nir")
