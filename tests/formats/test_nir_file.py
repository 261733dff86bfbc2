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
from stl_deploy.errors import InputError
from stl_deploy.formats import integer_nir as nir_file
from stl_deploy.formats import nir_io
from stl_deploy.hw_sim import reference
from stl_deploy.ir.nir_graph import KEY
from stl_deploy.ir.synapses import Dense
from tests.build.nets import quantized, random_net, random_spikes
from tests.build.networks import chain, lif
from tests.build.same import assert_same
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


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"chip": "loihi1"},
        {"weight_bits": 3, "weight_exp": 2},
        {"chip": "loihi2", "thresholds": "fold"},
        {"weight_precision": "2x8"},
    ],
)
def test_round_trip_is_exact(tmp_path, options):
    before = quantized(**options)
    nir_io.write(nir_file.to_nir(before), tmp_path / "m.nir")
    after = nir_file.read_network(tmp_path / "m.nir")
    assert_same(before, after)
    for key in ("precision", "diagnostics", "placement", "rounding"):
        assert getattr(before, key) == getattr(after, key), key


def test_the_file_is_plain_nir_in_the_documented_units(path):
    graph = nir.read(path)
    lif = nir_file.read_network(path).by_name["lif1"].neurons
    node, conv = graph.nodes["lif1"], graph.nodes["conv1"]
    assert conv.weight.dtype == np.int8
    assert node.v_threshold.dtype == np.int32
    assert (node.tau == 1e-4 * 2).all()
    assert (node.r == 2).all()
    assert not node.v_leak.any()
    assert not node.v_reset.any()
    np.testing.assert_array_equal(conv.bias, lif.bias_mant.reshape(-1))
    meta = json.loads(graph.metadata[KEY])
    assert (meta["format"], meta["version"]) == ("stl-deploy/integer", 6)
    assert meta["inputs"] == [{"name": "input", "levels": 1, "signed": False, "held": False}]
    assert meta["populations"][1] == {
        "name": "pool1",
        "kind": "or",
        "bias_exp": 6,
        "reset": "zero",
        "reset_current": False,
        "hold": 0,
        "graded": None,
        "scale": [],
    }
    assert meta["connections"][0] == {
        "name": "conv1",
        "source": "input",
        "target": "lif1",
        "node": "conv1",
        "exp": 0,
        "bits": 8,
        "precision": "8",
        "delay": 0,
        "port": 0,
    }


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


def entry(where, at, **changes):
    """Other words in an entry of ``populations`` or ``connections``."""

    def change(file):
        rows = json.loads(file[f"node/metadata/{KEY}"][()])[where]
        rows[at].update(changes)
        meta(**{where: rows})(file)

    return change


def first_lif(**changes):
    return entry("populations", 0, **changes)


def first_way(**changes):
    return entry("connections", 0, **changes)


NODES = "node/nodes"


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (put(f"{NODES}/conv1/weight", np.full((4, 1, 3, 3), 0.5)), "not integers"),
        (put(f"{NODES}/conv1/weight", np.full((4, 1, 3, 3), 300)), "outside -128..127"),
        (put(f"{NODES}/conv1/bias", np.full(4, 0.1)), "bias holds values that are not integers"),
        (put(f"{NODES}/lif1/v_threshold", np.full((4, 8, 8), -1)), "outside 0..131071"),
        (put(f"{NODES}/lif1/v_threshold", np.full((4, 8, 8), np.nan)), "not integers"),
        (put(f"{NODES}/lif1/tau", np.full((4, 8, 8), 1e-4 / 3)), "tau is not dt * 4096 / n"),
        (put(f"{NODES}/lif1/tau", np.full((4, 8, 8), 1e-4)), "tau is not dt * 4096 / n"),
        (put(f"{NODES}/lif1/tau", np.full((4, 8, 8), 3.0001e-4)), "tau contradicts decays"),
        (put(f"{NODES}/lif1/tau", np.full((4, 8, 8), 4e-4)), "r contradicts decays"),
        (put(f"{NODES}/lif1/tau", np.full((4, 8, 8), np.nan)), "tau is not dt * 4096 / n"),
        (put(f"{NODES}/lif1/r", np.full((4, 8, 8), 1.0)), "r contradicts decays"),
        (put(f"{NODES}/lif1/v_reset", np.full((4, 8, 8), 1.0)), "v_reset contradicts the reset"),
        (put(f"{NODES}/lif1/v_leak", np.full((4, 8, 8), 2.0)), "has a bias in conv1; it stands in"),
        (put(f"{NODES}/lif1/v_leak", np.full(7, 2.0)), "nir can read"),
        (put(f"{NODES}/pool1/threshold", np.full((4, 4, 4), 1)), "of an OR population is 0"),
        (put(f"{NODES}/pool1_sum/kernel_size", np.array([1, 2])), "do not tile the plane"),
        (put(f"{NODES}/pool1_sum/padding", np.array([1, 1])), "pool1_sum"),
        (put(f"{NODES}/fc1/weight", np.zeros((20, 7), np.int8)), "does not fit"),
        (put(f"{NODES}/fc1/weight", np.zeros((10, 64), np.int8)), "gives (10,), and lif2 has"),
        (put(f"{NODES}/fc1_flatten/start_dim", 1), "does not flatten everything"),
        (put(f"{NODES}/input/shape", np.array([1, 0, 8])), "an input of shape (1, 0, 8)"),
        (put(f"{NODES}/input/shape", np.array([1, 1 << 20, 1 << 20])), "at most 67,108,864 values"),
        (put(f"{NODES}/output/shape", np.array([7])), "declared as (7,)"),
        (meta(chip="tpu"), "'tpu' is not one of"),
        (meta(version=5), "is of version 5 of the format; this stl-deploy reads version 6"),
        (meta(version=None), "is of version None"),
        (meta(resets="same-step, to zero"), "resets"),
        (meta(surprise=1), "surprise"),
        (
            meta(readout={"classes": 10, "population": 3, "source": "lif2"}),
            "20 outputs for 10 classes",
        ),
        (
            meta(readout={"classes": 4, "population": 64, "source": "lif1"}),
            "end in lif1",
        ),
        (meta(timesteps=0), "timesteps"),
        (meta(inputs=[]), "inputs"),
        (
            meta(inputs=[{"name": "in", "levels": 1, "signed": False, "held": False}]),
            "no such node",
        ),
        (entry("inputs", 0, levels=300), "300 levels without a sign"),
        (entry("inputs", 0, levels=1 << 15, signed=True), "levels"),
        (first_lif(reset="half"), "'zero', 'subtract', 'constant' or 'none'"),
        (first_lif(kind="or"), "is a LIF; it should be Threshold"),
        (first_lif(name="lif2"), "stands twice in the metadata"),
        (first_lif(bias_exp=8), "bias_exp"),
        (first_lif(scale=[1.0]), "1 scales for 4 channels"),
        (first_lif(scale=[1.0, 1.0, 0.0, 1.0]), "scale.2"),
        (entry("populations", 1, reset="subtract"), "an OR population has no scale or bias"),
        (first_way(exp=1), "r contradicts decays of 4096 parts and exp 1"),
        (first_way(bits=3), "conv1.weight spans"),
        (first_way(precision="2x8", bits=4), "2x8 has slices of 8 bits"),
        (first_way(delay=1), "its sources (delays) are input (0), in the metadata input (1)"),
        (first_way(delay=63), "delay"),
        (first_way(source="lif2"), "are input (0), in the metadata lif2 (0)"),
        (first_way(target="pool1"), "leads to lif1, not to pool1"),
        (first_way(target="nowhere"), "not a population of the metadata"),
        (first_way(node="fc1"), "differ in more than source and delay"),
        (first_way(node="lif1"), "is a LIF; it should be Conv2d or"),
        (
            meta(
                precision={
                    "elsewhere": {
                        "mode": "proven",
                        "effective_bits": 8,
                        "worst_sum": 1,
                        "limit": None,
                    }
                }
            ),
            "elsewhere: has notes",
        ),
        (put(f"node/metadata/{KEY}", "[" * 100_000), "no stl-deploy metadata"),
        (put(f"{NODES}/conv1/stride", np.array([0, 0])), "nir can read"),
        (put(f"{NODES}/conv1/input_shape", np.array([9, 9])), "input_shape (9, 9)"),
        (put(f"{NODES}/conv1/weight", np.zeros((4, 3, 3), np.int8)), "conv1"),
        (put(f"{NODES}/lif1/type", "Soma"), "nir can read"),
        (meta(connections=[]), "conv1: is not described in the metadata"),
        (meta(populations=[]), "populations"),
        (put(f"node/metadata/{KEY}", "{"), "no stl-deploy metadata"),
        (
            put("node/edges", np.array([["input", "conv1"], ["conv1", "conv1"]], dtype="S9")),
            "conv1 sends to it, which is not an input or a population",
        ),
    ],
)
def test_contradictions_are_refused(path, change, what):
    edit(path, change)
    assert what in refused(path)


# Currents, recurrence, reset by subtraction


@settings(max_examples=100)
@given(networks())
def test_any_network_comes_back(case):
    before, raster = case
    with TemporaryDirectory() as folder:
        path = Path(folder) / "m.nir"
        nir_io.write(nir_file.to_nir(before), path)
        after = nir_file.read_network(path)
    assert_same(before, after)
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


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (put(f"{NODES}/rec/weight", np.full((12, 12), 0.5)), "rec.weight holds values that are no"),
        (put(f"{NODES}/rec/weight", np.full((12, 12), 128)), "rec.weight spans 128..128"),
        (
            put(f"{NODES}/rec/weight", np.zeros((12, 11), np.int8)),
            "rec: Linear does not fit an input",
        ),
        (put(f"{NODES}/rec/weight", np.zeros((9, 12), np.int8)), "gives (9,), and lif1 has shape"),
        (put(f"{NODES}/lif1/tau_syn", np.full(12, 1e-4)), "w_in contradicts"),
        (put(f"{NODES}/lif1/tau_syn", np.full(12, 0.9e-4)), "tau_syn is not dt * 4096 / n"),
        (put(f"{NODES}/lif1/tau_mem", np.full(12, 1e-4)), "tau_mem is not dt * 4096 / n, n from 1"),
        (put(f"{NODES}/lif1/w_in", np.full(12, 1.0)), "w_in contradicts"),
        (put(f"{NODES}/lif1/r", np.full(12, 2.0)), "r contradicts"),
        (put(f"{NODES}/lif1/v_reset", np.full(12, 1.0)), "v_reset contradicts the reset"),
        (put(f"{NODES}/lif1/v_leak", np.full(12, 0.3)), "v_leak is not a bias"),
        (put(f"{NODES}/lif1/v_leak", np.full(12, 2.0 * 4096)), "bias spans 4096..4096"),
        (put(f"{NODES}/lif1/v_leak", np.full(12, np.nan)), "v_leak is not a bias"),
        (put(f"{NODES}/lif1/v_threshold", np.full(12, -1)), "v_threshold spans -1..-1"),
        (entry("connections", 1, delay=2), "are lif1 (1), in the metadata lif1 (2)"),
        (entry("connections", 1, node="other"), "other: there is no such node"),
        (entry("connections", 1, exp=2), "rec.weight is not in steps of 2^1, its exp"),
        (meta(chip="loihi1"), "reset 'subtract': a neuron of loihi1 resets to zero"),
        (without_edges(("rec", "lif1")), "rec: leads to nothing, not to lif1"),
        (without_edges(("lif1", "rec")), "rec: its sources (delays) are none"),
        (without_edges(("lif2", "output")), "does not end in lif2"),
        (edges(("rec", "lif2")), "rec: leads to lif1, lif2, not to lif1"),
        (edges(("lif2", "rec")), "rec: its sources (delays) are lif1 (1), lif2 (0)"),
        (edges(("lif1", "lif1")), "lif1 -> lif1: this edge is not described in the metadata"),
        (edges(("lif2", "lif1_w")), "lif1_w: its sources (delays) are input (0), lif2 (0)"),
        (edges(("lif1", "lif2")), "lif1 -> lif2: this edge is not described"),
        (edges(("lif1", "output")), "does not end in lif2 alone"),
        (edges(("output", "lif1")), "output -> lif1: this edge is not described"),
        (edges(("lif2", "lif2_w")), "lif2_w: its sources (delays) are"),
        (edges(("rec", "lif1")), "rec -> lif1: stands twice"),
        (edges(("rec", "nothing")), "nothing: an edge names this node, but there is none"),
        (all_of(without_edges(("rec", "lif1")), edges(("rec", "lif1_w"))), "rec: "),
        (put(f"{NODES}/rec/type", "Threshold"), "nir can read"),
    ],
)
def test_contradictions_of_currents_and_loops_are_refused(newer, change, what):
    edit(newer, change)
    assert what in refused(newer)


def test_a_current_takes_its_bias_from_the_leak_alone(newer):
    graph = nir.read(newer)
    graph.nodes["lif1_w"] = nir.Affine(weight=graph.nodes["lif1_w"].weight, bias=np.ones(12))
    with pytest.raises(InputError, match="and of a CubaLIF or CubaLI as v_leak alone"):
        nir_file.from_nir(graph)


def test_nodes_that_the_metadata_do_not_know_are_refused(newer):
    graph = nir.read(newer)
    graph.nodes["rec2"] = graph.nodes["rec"]
    graph.edges += [("lif1", "rec2"), ("rec2", "lif1")]
    with pytest.raises(InputError, match="rec2: is not described in the metadata"):
        nir_file.from_nir(graph)


def test_all_that_is_off_is_said_at_once(newer):
    edit(newer, all_of(put(f"{NODES}/rec/weight", np.full((12, 12), 0.5)), first_lif(scale=[1.0])))
    edit(newer, put(f"{NODES}/lif2/tau", np.full(6, 1e-4)))
    said = refused(newer)
    assert "rec.weight holds values that are not integers" in said
    assert "1 scales for 12 channels" in said
    assert "lif2: tau is not" in said


@pytest.mark.parametrize("version", [1, 2, 3, 4, 5, 7, "6"])
def test_other_versions_are_refused_with_the_remedy(path, version):
    edit(path, meta(version=version))
    newer = "install the stl-deploy version that wrote it"
    again = "export the model again (stl-export) with this stl-deploy"
    assert (newer if version == 7 else again) in refused(path)


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
