"""Files read as the tool computes them that wrote them: by equations of our own, without the tools.

``test_nir_writers.py`` has the tools themselves.
"""

from __future__ import annotations

import json

import nir
import numpy as np
import pytest

import stl_deploy
from stl_deploy.commands import common, export, parity
from stl_deploy.errors import InputError, LoweringError
from stl_deploy.formats import nir_io
from stl_deploy.hw_sim import reference
from stl_deploy.ir import execute as float_exec
from tests.build.nir_graphs import chain

TAU_MEM, TAU_SYN, DT = 6e-3, 4e-3, 1e-3


def rockpool(weight):
    """One layer of LIFTorch as Rockpool writes it."""
    n = len(weight)
    full = {"tau_mem": TAU_MEM, "tau_syn": TAU_SYN, "v_leak": 0.0, "v_threshold": 1.0, "w_in": 1.0}
    full["r"] = TAU_MEM / DT * np.exp(-DT / TAU_MEM)
    node = nir.CubaLIF(**{key: np.full(n, value) for key, value in full.items()})
    return chain(nir.Linear(weight), node, inputs=(weight.shape[1],), outputs=(n,))


def sinabs(weight):
    """One layer of IAF as sinabs writes it."""
    n = len(weight)
    node = nir.IF(r=np.ones(n), v_threshold=np.ones(n))
    return chain(nir.Affine(weight, np.zeros(n)), node, inputs=(weight.shape[1],), outputs=(n,))


def counts(weight, raster, tool):
    """Spikes [N, T, n] of a layer whose neurons send floor(v / threshold)."""
    a, b = (np.exp(-DT / tau) for tau in (TAU_MEM, TAU_SYN)) if tool == "rockpool" else (1.0, 0.0)
    found = np.zeros((*raster.shape[:2], len(weight)))
    for n, sample in enumerate(raster):
        v = u = np.zeros(len(weight))
        for t, x in enumerate(sample):
            u = b * (u + weight @ x) if tool == "rockpool" else weight @ x
            v = a * v + u
            found[n, t] = np.where(v >= 1, np.floor(v), 0)
            v = v - found[n, t]
    return found


GRAPHS = {"rockpool": rockpool, "sinabs": sinabs}


@pytest.mark.parametrize("tool", GRAPHS)
def test_what_the_weights_exclude_never_happens(tool):
    """Every network that is let through sends what it sends in its tool, one spike a step at most."""
    rng = np.random.default_rng(4)
    taken, refused, several = 0, [], 0
    for _ in range(60):
        size = 0.33 if tool == "sinabs" else 0.1
        weight = rng.uniform(-0.3 * size, size, (5, 6)) * rng.uniform(0.5, 1.6)
        raster = (rng.random((4, 30, 6)) < 0.6).astype(np.uint8)
        raster[0] = 1
        theirs = counts(weight, raster, tool)
        try:
            lowered = stl_deploy.from_nir(GRAPHS[tool](weight), written_by=tool, timesteps=30)
        except LoweringError as error:
            refused.append(str(error))
            several += theirs.max() > 1
            continue
        taken += 1
        *_, ours = float_exec.run(lowered, raster).values()
        assert theirs.max() <= 1
        np.testing.assert_array_equal(ours, theirs)
    assert min(taken, len(refused), several) > 5
    assert all("may spike several times in a step" in text for text in refused)


def test_a_voltage_at_the_threshold_is_a_spike():
    """As in both tools; weights are multiples of 1/8, so that voltages of an IF meet the threshold."""
    rng = np.random.default_rng(6)
    weight = rng.integers(-1, 2, (5, 6)) / 8
    raster = (rng.random((10, 30, 6)) < 0.6).astype(np.uint8)
    lowered = stl_deploy.from_nir(sinabs(weight), written_by="sinabs", timesteps=30)
    theirs = counts(weight, raster, "sinabs")
    *_, ours = float_exec.run(lowered, raster).values()
    np.testing.assert_array_equal(ours, theirs)
    layer = reference.run(stl_deploy.quantize(lowered, "ideal"), raster).layers["n1"]
    np.testing.assert_array_equal(layer.spikes, theirs)
    assert theirs.any()


def test_thresholds_of_both_tools_are_met():
    for tool, made in GRAPHS.items():
        lowered = stl_deploy.from_nir(made(np.full((2, 2), 0.01)), written_by=tool, timesteps=3)
        assert (lowered.nodes["n1"].v_threshold == np.nextafter(1, 0)).all()


def test_the_option_goes_from_export_to_parity(tmp_path, capsys, monkeypatch):
    """stl-parity reads the file as the export did; another reading is an error."""
    rng = np.random.default_rng(5)
    monkeypatch.chdir(tmp_path)
    weight = rng.uniform(-0.2, 0.5, (8, 6))
    nir_io.write(rockpool(weight), tmp_path / "net.nir")
    raster = (rng.random((5, 12, 6)) < 0.4).astype(np.uint8)
    np.savez("in.npz", spikes=raster)
    once = np.minimum(counts(weight, raster, "rockpool"), 1)
    words = "net.nir", "--target", "nir", "--eval", "in.npz", "--json", "-o"
    run(export.export, *words, "out", "--written-by", "rockpool", code=1)
    assert "n1: may spike several times" in capsys.readouterr().err
    run(export.export, *words, "out", "--written-by", "rockpool", "--spikes", "one")
    (said,) = json.loads(capsys.readouterr().out)["read_as"]
    assert (said["neuron"], said["dt"], said["reset"]) == ("rockpool.CubaLIF", 1e-3, "subtract")
    assert said["origin"]["spikes"] == "option"
    assert said["origin"].get("dt", "file") == said["origin"].get("reset", "file") == "file"
    run(parity.parity, "net.nir", "out/model.nir", "--input", "in.npz", "--json")
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["passed"]
    other = "--written-by", "sinabs"
    run(parity.parity, "net.nir", "out/model.nir", "--input", "in.npz", *other, code=2)
    said = " ".join(capsys.readouterr().err.split())
    assert "--written-by: sinabs, but out/model.nir was made with rockpool" in said
    graph = stl_deploy.from_nir("net.nir", written_by="rockpool", spikes="one", timesteps=12)
    *_, ours = float_exec.run(graph, raster).values()
    assert (ours != once).mean() < 0.2  # one spike where the tool sends several


def run(command, *words, code=0):
    """A command, which must end with ``code``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["command", *words])
        with pytest.raises(SystemExit) as end:
            common.run(command, "command")
    assert end.value.code == code


@pytest.mark.parametrize("name", ["written_by", "spikes"])
def test_options_that_do_not_exist_or_do_not_apply(name, tmp_path):
    with pytest.raises(InputError, match="that can be chosen -> choose from"):
        stl_deploy.from_nir(sinabs(np.ones((2, 2))), **{name: "snntorch"})
    path = tmp_path / "own.nir"
    nir_io.write(stl_deploy.from_nir(sinabs(np.ones((2, 2))), timesteps=3), path)
    value = {"written_by": "sinabs", "spikes": "one"}[name]
    with pytest.raises(InputError, match="goes with NIR files of other tools"):
        stl_deploy.from_nir(path, **{name: value})


def test_a_tool_that_does_not_write_such_nodes():
    graph = rockpool(np.ones((2, 2)))
    with pytest.raises(InputError, match="n1: is CubaLIF with values that sinabs does not write"):
        stl_deploy.from_nir(graph, written_by="sinabs")
    with pytest.raises(InputError, match="n1: is IF with values that Rockpool does not write"):
        stl_deploy.from_nir(sinabs(np.ones((2, 2))), written_by="rockpool")
