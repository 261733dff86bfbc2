"""The network of the NIR paper for braille, 12-38-7, in every form that its files have, with drawn weights.

The recurrent layer is a graph in the graph or flat, with biases or without. Neurons reset to 0 or subtract
the threshold; no file states which.
"""

from __future__ import annotations

import itertools

import nir
import numpy as np
import pytest

import stl_deploy
from stl_deploy.commands import export
from stl_deploy.errors import UncheckedWarning
from stl_deploy.formats import nir_io
from stl_deploy.ir import execute as float_exec
from tests.build.nir_graphs import braille
from tests.importers.test_written_by import run

FORMS = list(itertools.product((False, True), (False, True), ("zero", "subtract")))


def steps(graph, raster, reset):
    """Spikes [N, T, n] of both layers, step by step, after the equations of the paper; no other code."""
    nodes = dict(graph.nodes)
    inner = (
        nodes.pop("lif1").nodes
        if "lif1" in nodes
        else {k[5:]: nodes[k] for k in nodes if "lif1" in k}
    )
    layers = [(nodes["fc1"], inner["lif"], inner["w_rec"]), (nodes["fc2"], nodes["lif2"], None)]
    found = [np.zeros((*raster.shape[:2], len(fc.bias)), np.uint8) for fc, _, _ in layers]
    for n, sample in enumerate(raster):
        state = [[np.zeros(len(fc.bias)) for _ in range(3)] for fc, _, _ in layers]
        for t, x in enumerate(sample.astype(float)):
            for (fc, lif, rec), s, out in zip(layers, state, found, strict=True):
                total = fc.weight.astype(float) @ x + fc.bias
                if rec is not None:
                    total = total + rec.weight.astype(float) @ s[2] + rec.bias
                s[0] = s[0] + 1e-4 / lif.tau_syn * (lif.w_in * total - s[0])
                s[1] = s[1] + 1e-4 / lif.tau_mem * (lif.r * s[0] - s[1])
                s[2] = (s[1] > lif.v_threshold).astype(float)
                s[1] = s[1] - lif.v_threshold * s[2] if reset == "subtract" else s[1] * (1 - s[2])
                out[n, t] = x = s[2]
    return found


@pytest.mark.parametrize(("flat", "biases", "reset"), FORMS)
def test_its_spikes_are_those_of_the_equations(flat, biases, reset, tmp_path):
    graph, raster = braille(biases=biases, reset=reset, flat=flat)
    path = tmp_path / "braille.nir"
    nir_io.write(graph, path)
    want = steps(graph, raster, reset)
    lowered = stl_deploy.from_nir(path, timesteps=raster.shape[1])
    got = float_exec.run(lowered, raster)
    for name, spikes in zip(("lif1.lif", "lif2"), want, strict=True):
        assert 0.02 < spikes.mean() < 0.6
        np.testing.assert_array_equal(got[name], spikes)
    other = steps(graph, raster, "zero" if reset == "subtract" else "subtract")
    assert all((a != b).mean() > 0.02 for a, b in zip(want, other, strict=True))


@pytest.mark.parametrize("flat", [False, True])
def test_a_file_that_does_not_state_its_reset_is_not_silent(flat, tmp_path):
    graph, raster = braille(reset=None, flat=flat)
    path = tmp_path / "braille.nir"
    nir_io.write(graph, path)
    assert not any(node.metadata for node in nir.read(path).nodes.values())
    with pytest.warns(UncheckedWarning, match="reset"):
        lowered = stl_deploy.from_nir(path, timesteps=raster.shape[1])
    got = float_exec.run(lowered, raster)
    np.testing.assert_array_equal(got["lif2"], steps(graph, raster, "zero")[1])


@pytest.mark.parametrize("flat", [False, True])
def test_its_recording_passes_with_its_own_reset_alone(flat, tmp_path, monkeypatch, capsys):
    """stl-export --reset and --expect; the other reset fails loudly, and names the first neuron."""
    monkeypatch.chdir(tmp_path)
    graph, raster = braille(reset=None, flat=flat)
    nir_io.write(graph, tmp_path / "braille.nir")
    np.savez("in.npz", spikes=raster)
    words = (
        "braille.nir",
        "--target",
        "nir",
        "--eval",
        "in.npz",
        "--expect",
        "recorded.npz",
        "--force",
    )
    for reset, other in (("zero", "subtract"), ("subtract", "zero")):
        hidden, last = steps(graph, raster, reset)
        np.savez("recorded.npz", **{"spikes/lif1.lif": hidden, "spikes/lif2": last})
        run(export.export, *words, "-o", "out", "--reset", reset)
        said = capsys.readouterr()
        assert "nothing may differ" in said.out
        run(export.export, *words, "-o", "out", "--reset", other, code=1)
        said = " ".join(capsys.readouterr().err.split())
        assert "lif1.lif" in said
        assert "neuron" in said
