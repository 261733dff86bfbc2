"""Every shipped model through every target: integers agree bit for bit, and with the float model nearly."""

from __future__ import annotations

import json

import pytest

import stl_deploy
from stl_deploy.models.net import STLNet
from tests.build.nets import ROOT

ZOO = ROOT / "models" / "zoo"
MODELS = sorted(ZOO.glob("*.pt"))
RASTERS = {1: "fashion-mnist-test500.npz", 255: "fashion-mnist-graded-test500.npz"}
TARGETS = ("nir", "loihi", "onnx")
BACKENDS = ("hw_sim", "lava", "netx", "onnx")


def test_there_are_models():
    assert len(MODELS) >= 3


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_a_model_is_the_same_on_every_target(python, command, tmp_path, path):
    model = stl_deploy.load(path)
    assert isinstance(model, STLNet)
    raster = ZOO / RASTERS[model.arch.input.levels]
    out = tmp_path / "out"
    targets = [word for target in TARGETS for word in ("--target", target)]
    code, _, err = command("stl-export", path, *targets, "-o", out)
    assert code == 0, err
    asked = ["--input", raster, "--limit", 4, "--backend", ",".join(BACKENDS), "--json"]
    code, text, err = command("stl-parity", path, out / "model.nir", *asked)
    assert code == 0, err
    report = json.loads(text)
    assert report["passed"]
    assert set(report["backends"]) == set(BACKENDS)
    for name, found in report["backends"].items():
        assert found["entries"] > 4 * 4 * 10_000, name
        assert (found["spike_mismatches"], found["state_mismatches"]) == (0, 0), name
    first = report["layers"][0]["name"]
    for layer in report["layers"]:
        graded = model.arch.input.levels > 1 and layer["name"] == first
        # Weights of 8 bits meet inputs of 8 bits: sums lie closer together than among spikes.
        most = 0 if model.arch.quantized else 0.01 if graded else 0.0015
        assert layer["mismatch_forced"] <= most, layer
        assert layer["float32_mismatch"] <= 1e-4, layer
