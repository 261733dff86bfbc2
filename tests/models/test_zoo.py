"""The shipped model and raster: what the README and the model card say of them."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import torch

import stl_deploy
from stl_deploy.chips import facts as chips
from stl_deploy.formats import integer_nir as nir_file
from stl_deploy.formats import nir_io, raster
from stl_deploy.hw_sim import reference
from stl_deploy.importers import stl
from stl_deploy.models import joint as joint_of
from tests.build.nets import ZOO, ZOO_RASTER

QAT_CARD = ZOO.with_name("fashion-stl-qat.md")


@pytest.fixture(scope="module")
def shipped():
    return raster.load(ZOO_RASTER)


@pytest.fixture(scope="module")
def model():
    return stl_deploy.load(ZOO)


@pytest.fixture(scope="module")
def network(model):
    return stl_deploy.quantize(stl_deploy.from_torch(model), chip="loihi2")


@pytest.fixture(scope="module")
def report(model, network, shipped):
    return stl_deploy.parity(model, network, shipped.spikes, shipped.labels)


def test_files_are_small_and_what_they_say(shipped):
    assert ZOO.stat().st_size <= 3 << 20
    assert shipped.spikes.shape == (500, 4, 1, 28, 28)
    assert set(np.unique(shipped.spikes)) == {0, 1}
    with np.load(ZOO_RASTER) as file:
        source = json.loads(str(file["source"]))
    assert (source["split"], source["seed"], source["encoding"]) == ("test", 0, "bernoulli")


def test_cards_name_all_files_as_they_are():
    cards = "".join(path.read_text("utf-8") for path in sorted(ZOO.parent.glob("fashion-*.md")))
    files = [*ZOO.parent.glob("*.pt"), *ZOO.parent.glob("*.npz")]
    assert len(files) == 11
    for path in files:
        assert path.stat().st_size <= 3_000_000
        assert hashlib.sha256(path.read_bytes()).hexdigest() in cards


def accuracy(name):
    """Of a shipped model with graded input on 300 test images, in PyTorch."""
    graded = raster.load(ZOO.with_name("fashion-mnist-graded-test500.npz")).first(300)
    model = stl_deploy.load(ZOO.with_name(f"{name}.pt"))
    with torch.inference_mode():
        found = model(torch.from_numpy(graded.spikes)).argmax(1).numpy()
    return (found == graded.labels).mean()


@pytest.mark.parametrize(
    ("name", "least"),
    [("stl-graded", 0.90), ("synergistic", 0.88), ("synaptic", 0.88), ("joint", 0.89)],
)
def test_models_of_graded_input_are_as_good_as_their_cards_say(name, least):
    assert accuracy(f"fashion-{name}") >= least


def test_the_joint_model_is_the_synergistic_one_and_another():
    joint = stl.read(ZOO.with_name("fashion-joint.pt"))
    alone = stl.read(ZOO.with_name("fashion-synergistic.pt"))
    first = joint_of.member(joint, 0)
    assert first.arch == alone.arch
    for key, value in alone.params.items():
        np.testing.assert_array_equal(first.params[key], value)
    assert any((joint_of.member(joint, 1).params[k] != v).any() for k, v in alone.params.items())


def test_the_synaptic_twin_has_one_threshold():
    params = stl.read(ZOO.with_name("fashion-synaptic.pt")).params
    found = [value for key, value in params.items() if key.endswith(".thresh")]
    assert len(found) == 4
    assert all((value == 1).all() for value in found)


def test_the_float_graph_has_exactly_the_spikes_of_the_model(report):
    assert [layer.nir_mismatch for layer in report.layers] == [0.0] * 6


def test_integers_are_near_the_float_model(report):
    assert report.accuracy_float is not None
    assert report.accuracy_lowered is not None
    assert abs(report.accuracy_float - report.accuracy_lowered) <= 0.01
    assert report.prediction_agreement >= 0.97
    for layer in report.layers:
        assert layer.mismatch <= 0.02, layer
        assert layer.mismatch_forced <= 0.0015, layer
        assert layer.float32_mismatch <= 1e-5, layer


@pytest.mark.parametrize("bits", [8, 6, 4])
def test_fewer_bits_are_further_away_and_never_overflow(model, shipped, bits):
    network = stl_deploy.quantize(stl_deploy.from_torch(model), chip="loihi2", weight_bits=bits)
    trace = stl_deploy.simulate(network, shipped.spikes[:100])
    assert all(not did.overflow.any() for did in trace.layers.values())
    right = (trace.predictions == shipped.labels[:100]).mean()
    assert right >= {8: 0.85, 6: 0.85, 4: 0.75}[bits]


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
def test_models_trained_on_integers_are_their_integer_networks(shipped, bits):
    path = ZOO.with_name(f"fashion-stl-q{bits}.pt")
    assert hashlib.sha256(path.read_bytes()).hexdigest() in QAT_CARD.read_text("utf-8")
    model = stl_deploy.load(path)
    network = stl_deploy.quantize(stl_deploy.from_torch(model), chip="loihi2", overflow="proven")
    weighted = [c for p in network.weighted for c in network.into(p.name)]
    assert {c.bits for c in weighted} == {bits}
    report = stl_deploy.parity(model, network, shipped.spikes[:60], shipped.labels[:60])
    for layer in report.layers:
        assert (layer.mismatch, layer.float32_mismatch, layer.nir_mismatch) == (0, 0, 0)
        assert layer.certified == 1
    assert report.accuracy_lowered >= 0.8


def test_chips_with_wide_enough_registers_agree_bit_for_bit(model, network, shipped):
    ideal = stl_deploy.quantize(stl_deploy.from_torch(model), chip="ideal")
    one, two = (stl_deploy.simulate(n, shipped.spikes[:50], states=True) for n in (network, ideal))
    for name, did in one.layers.items():
        for kind in ("spikes", "u", "v"):
            np.testing.assert_array_equal(getattr(did, kind), getattr(two.layers[name], kind))


def test_the_file_carries_the_whole_network(network, shipped, tmp_path):
    nir_io.write(nir_file.to_nir(network), tmp_path / "m.nir")
    again = nir_file.read_network(tmp_path / "m.nir")
    a, b = (reference.run(n, shipped.spikes[:20], states=True) for n in (network, again))
    for name, did in a.layers.items():
        np.testing.assert_array_equal(did.v, b.layers[name].v)
    assert set(chips.names()) == {"ideal", "loihi1", "loihi2"}
