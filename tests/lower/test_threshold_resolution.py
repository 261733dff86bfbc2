"""A note where the thresholds of a layer come to few whole numbers, next to large weights."""

from __future__ import annotations

import json

import pytest
import torch

import stl_deploy
from tests.build.nets import ZOO, random_net

ARCH = "2C3-LIF-FC40-LIF-AvgPool4"


def scaled(factor, name="conv1.weight", spread=None):
    """A network whose first weights are ``factor`` times as large, under BatchNorm."""
    net = random_net(ARCH, shape=(1, 6, 6))
    with torch.no_grad():
        net.get_parameter(name).mul_(factor)
        if spread is not None:
            theta = net.get_parameter("lif1.thresh")
            theta.copy_(torch.linspace(1, 1 + spread, theta.numel()).reshape(theta.shape))
    return net


def quantized(net, chip="loihi2", **options):
    return stl_deploy.quantize(stl_deploy.from_torch(net), chip, **options)


def notes(net, **options):
    network = quantized(net, **options)
    return {d.where: d for d in network.diagnostics if "thresholds from" in d.what}


def test_thresholds_that_all_come_to_one_number(tmp_path):
    found = notes(scaled(1e30))
    assert list(found) == ["lif1"]
    assert "keep 0.00 bits, and 4 are wanted: on loihi2 all are 0" in found["lif1"].what
    assert "train with smaller weights" in found["lif1"].remedy
    network = quantized(scaled(1e30))
    manifest = stl_deploy.export(network, "nir", tmp_path / "out")
    assert any("keep 0.00 bits" in d["what"] for d in manifest["diagnostics"])
    written = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert written["diagnostics"] == manifest["diagnostics"]


def test_the_note_says_how_many_are_left():
    found = notes(scaled(30))
    assert "whole numbers are left, next to weights up to" in found["lif1"].what


@pytest.mark.parametrize("factor", [1, 30, 1e30])
def test_one_threshold_of_a_layer_is_nothing_that_can_be_lost(factor):
    assert notes(scaled(factor, spread=0)) == {}
    assert notes(scaled(factor, spread=1e-7)) == {}


def test_a_span_that_is_small_is_told_as_well():
    assert notes(scaled(1, spread=0.5)) == {}
    assert list(notes(scaled(1, spread=0.01))) == ["lif1"]


def test_options_that_make_steps_finer():
    assert "lif1" in notes(scaled(1), weight_bits=2)
    assert notes(scaled(1), weight_bits=8) == {}


@pytest.mark.parametrize("path", sorted(ZOO.parent.glob("*.pt")), ids=lambda path: path.stem)
def test_the_shipped_models_have_none(path):
    assert notes(stl_deploy.load(path)) == {}
