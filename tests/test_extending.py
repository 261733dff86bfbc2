"""The worked examples of docs/extending.md: each runs, and the page shows what the files say."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from dataclasses import replace

import numpy as np
import pytest

import stl_deploy
from stl_deploy import backends, exporters, importers
from stl_deploy.backends import onnx as onnx_backend
from stl_deploy.chips import facts as chips
from stl_deploy.errors import InputError, LoweringError
from stl_deploy.exporters import onnx_limits, onnx_neurons, onnx_sums
from stl_deploy.formats.integer_nir import to_nir
from stl_deploy.hw_sim import engine, reference
from stl_deploy.ir import execute
from stl_deploy.ir.network import Connection
from stl_deploy.verify import against_reference as agreement
from tests.build import random_graphs
from tests.build.nets import ROOT, quantized
from tests.build.networks import chain, dense_lif, raster

EXAMPLES = ROOT / "docs" / "extending"
FEATURES = replace(random_graphs.EVERYTHING, chips=("loihi2",), loops=False)


def example(name, monkeypatch, package=""):
    """An example as the module that it would be in ``package``."""
    full = f"{package}.{name}" if package else name
    spec = importlib.util.spec_from_file_location(full, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, full, module)
    spec.loader.exec_module(module)
    return module


def add(monkeypatch, table, rows):
    for key, row in rows.items():
        monkeypatch.setitem(table, key, row)


def test_a_target(monkeypatch, tmp_path):
    module = example("json_target", monkeypatch, "stl_deploy.exporters")
    add(monkeypatch, exporters.TARGETS, module.ROW)
    network, _ = random_graphs.draw(1, FEATURES)
    manifest = stl_deploy.export(network, "json", tmp_path / "out")
    said = json.loads((tmp_path / "out" / "json" / "network.json").read_text("utf-8"))
    assert "json/network.json" in manifest["files"]
    assert [row["name"] for row in said["populations"]] == list(network.by_name)
    for row, connection in zip(said["connections"], network.connections, strict=True):
        assert (row["from"], row["delay"]) == (connection.source, connection.delay)
        np.testing.assert_array_equal(row["weight"], connection.synapses.weight)


def test_a_backend(monkeypatch):
    module = example("plain_backend", monkeypatch, "stl_deploy.backends")
    add(monkeypatch, backends.BACKENDS, module.ROW)
    seen = 0
    for seed in range(4):
        network, rasters = random_graphs.draw(seed, replace(FEATURES, chips=("ideal",)))
        given = random_graphs.named(network, rasters)
        want = reference.run(network, given, states=True)
        got = backends.load("plain").session(network).run(given)
        result = agreement.compare(network, want, got)
        assert result.exact, result
        seen += result.entries
    assert seen > 1000


def test_an_importer(monkeypatch, tmp_path):
    module = example("snn_json", monkeypatch, "stl_deploy.importers")
    rows = module.ROW | importers.IMPORTERS  # above the one that takes every file
    monkeypatch.setattr(importers, "IMPORTERS", rows)
    for user in (m for n, m in sys.modules.items() if n.startswith("stl_deploy.importers.")):
        if getattr(user, "IMPORTERS", None) is not None:
            monkeypatch.setattr(user, "IMPORTERS", rows)
    path = tmp_path / "net.snn.json"
    layers = [
        {"weight": [[0.5, 0.5], [1.0, -1.0]], "decay": 0.5, "threshold": 1.0},
        {"weight": [[1.0, 1.0]], "decay": 0.0, "threshold": 1.0},
    ]
    path.write_text(json.dumps({"timesteps": 3, "layers": layers}), "utf-8")
    graph = importers_read(path)
    x = np.array([[[1, 1], [1, 0], [1, 0]]], np.uint8)
    got = execute.run(graph, x)
    assert got["lif1"][0].tolist() == [[1, 0], [0, 1], [0, 1]]  # at the threshold, not above it
    assert got["lif2"][0].tolist() == [[1], [1], [1]]
    assert [(r.source, r.assumed) for r in stl_deploy.read_as(graph)] == [
        ("layers.0", ()),
        ("layers.1", ()),
    ]
    path.write_text(json.dumps({"timesteps": 0, "layers": layers}), "utf-8")
    with pytest.raises(InputError, match=r"net\.snn\.json: timesteps"):
        importers_read(path)


def importers_read(path):
    from stl_deploy.importers.given import Given
    from stl_deploy.importers.read import read

    return read(path, Given()).graph


def test_a_chip(tmp_path):
    chip = chips.find(EXAMPLES / "half.toml")
    assert (chip.name, chip.limits.cores_per_chip.value) == ("half", 64)
    network = quantized(chip=EXAMPLES / "half.toml")
    assert network.chip == "half"
    stl_deploy.export(network, "loihi", tmp_path / "out")
    assert stl_deploy.load(tmp_path / "out" / "model.nir").chip == "half"


def permuted(module):
    """A chain whose last population also receives the inputs in another order."""
    rng = np.random.default_rng(0)
    weight = rng.integers(-20, 30, (6, 6))
    network = chain(dense_lif(weight, 40, name="a"), dense_lif(weight, 40, name="b"), chip="loihi2")
    order = rng.permutation(6).astype(np.int32)
    made = module.Permuted(np.full(6, 35, np.int8), order)
    more = Connection("shuffled", "input", "b", made, delay=1)
    return replace(network, connections=(*network.connections, more))


def test_a_kind_of_synapses(monkeypatch):
    module = example("permuted", monkeypatch)
    network = permuted(module)
    x = raster(network, samples=4)
    want = reference.run(network, x, states=True)
    without = replace(network, connections=network.connections[:-1])
    assert (reference.run(without, x).layers["b"].spikes != want.layers["b"].spikes).any()
    assert (engine.run(network, x).layers["b"].spikes == want.layers["b"].spikes).all()
    (problem,) = onnx_limits.problems(network)
    assert "ONNX does not support 'permuted'" in str(problem)
    with pytest.raises(LoweringError, match=r"does not support 'permuted'"):
        to_nir(network)
    add(monkeypatch, onnx_sums.SYNAPSES, module.ROW)
    got = onnx_backend.Session(network).run(x)
    assert agreement.compare(network, want, got).exact


def test_a_kind_of_neurons(monkeypatch):
    module = example("coincidence", monkeypatch)
    rng = np.random.default_rng(1)
    network = chain(dense_lif(rng.integers(0, 2, (5, 8)), 0, name="a"), chip="loihi2", steps=6)
    a = replace(network.by_name["a"], neurons=module.Coincidence(3))
    network = network.changed(a)
    x = raster(network, samples=5)
    want = reference.run(network, x, states=True)
    heard = x.reshape(-1, 8).astype(int) @ network.connections[0].synapses.weight.T
    np.testing.assert_array_equal(want.layers["a"].spikes.reshape(-1, 5), heard >= 3)
    assert 0.1 < want.layers["a"].spikes.mean() < 0.9
    (problem,) = onnx_limits.problems(network)
    assert "ONNX does not support 'coincidence'" in str(problem)
    add(monkeypatch, onnx_neurons.POPULATIONS, module.ROW)
    got = onnx_backend.Session(network).run(x)
    assert agreement.compare(network, want, got).exact


def test_the_page_shows_the_examples():
    text = (ROOT / "docs" / "extending.md").read_text("utf-8")
    named = set(re.findall(r"\(extending/(\w+\.\w+)\)", text))
    assert named == {path.name for path in EXAMPLES.iterdir() if path.is_file()}
    for block in re.findall(r"```(?:python|toml)\n# extending/(\S+)\n(.*?)```", text, re.S):
        name, code = block
        source = (EXAMPLES / name).read_text("utf-8")
        for part in code.split("\n...\n"):
            assert part.strip("\n") in source, f"{name}: {part}"
