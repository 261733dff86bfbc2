"""Weights in .npy files: neuronal competition groups and sleep-based STDP against their equations."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import stl_deploy
from stl_deploy.commands import export, parity
from stl_deploy.errors import InputError
from stl_deploy.formats import weights_npy
from stl_deploy.importers import read as models
from stl_deploy.importers.given import Given
from stl_deploy.ir import execute, floats
from stl_deploy.ir import nir_graph as G
from tests.build import seeds
from tests.build.onnx_models import compared
from tests.build.seeds import Ran
from tests.seeds import test_ncg, test_sleep

Made = tuple[dict[str, Any], np.ndarray, Ran]


def ncg(folder: Path) -> Made:
    system, x, ran = seeds.working(0, lambda rng: test_ncg.drawn(rng, 5, 1.5))
    np.save(folder / "weights.npy", system.weight)
    np.save(folder / "features.npy", system.kernel)
    said = {
        "system": "ncg",
        "threshold": system.last.tolist(),
        "timesteps": x.shape[1],
        "features": {"weights": "features.npy", "threshold": system.theta},
        "input_shape": list(x.shape[2:]),
    }
    return said, x, ran


def sleep(folder: Path) -> Made:
    system, x, ran = seeds.working(0, test_sleep.drawn)
    np.save(folder / "weights.npy", system.into)
    np.save(folder / "recurrent.npy", system.between)
    np.save(folder / "readout.npy", system.matrix)
    said = {
        "system": "sleep-stdp",
        "timesteps": x.shape[1],
        "excitatory": test_sleep.E,
        "recurrent": "recurrent.npy",
        "readout": "readout.npy",
        "tau_mem": system.tm.tolist(),
        "tau_syn": system.ts.tolist(),
        "threshold": system.theta.tolist(),
        "resistance": system.r.tolist(),
    }
    return said, x, ran


def saved(
    folder: Path, make: Callable[[Path], Made], **changes: Any
) -> tuple[Path, np.ndarray, Ran]:
    said, x, ran = make(folder)
    kept = {key: value for key, value in (said | changes).items() if value is not None}
    (folder / "weights.json").write_text(json.dumps(kept), "utf-8")
    return folder / "weights.npy", x, ran


def imported(path: Path, **given: Any) -> Any:
    graph = models.read(path, Given(**given)).graph
    assert graph is not None
    return graph


NAMES = {"both": "neurons"}


@pytest.mark.parametrize("make", [ncg, sleep])
def test_spikes_and_classes(tmp_path: Path, make: Callable[[Path], Made]) -> None:
    path, x, ran = saved(tmp_path, make)
    graph = imported(path)
    got, network = execute.trace(graph, x), floats.decode(graph)
    for name, sent in ran.spikes.items():
        np.testing.assert_array_equal(got.sent[NAMES.get(name, name)], sent, err_msg=name)
    assert network.readout is not None
    classes = network.readout.predict(got.sent[network.output], got.v)
    np.testing.assert_array_equal(classes, ran.classes)
    assert {one.population for one in G.float_meta(graph).read_as} == set(got.sent)


@pytest.mark.parametrize("make", [ncg, sleep])
def test_in_whole_numbers(tmp_path: Path, make: Callable[[Path], Made]) -> None:
    path, x, _ = saved(tmp_path, make)
    network = stl_deploy.quantize(imported(path), "ideal")
    assert compared(network, x[:1]).exact


def test_a_last_layer_alone_reads_a_row(tmp_path: Path) -> None:
    path, _, _ = saved(tmp_path, ncg, features=None, input_shape=None, threshold=3)
    network = floats.decode(imported(path))
    assert network.inputs == {"input": (16,)}
    np.testing.assert_array_equal(network.by_name["last"].neurons.threshold, 3.0)


def test_by_the_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, x, _ = saved(tmp_path, ncg)
    np.savez(tmp_path / "test.npz", spikes=x[:2])
    monkeypatch.chdir(tmp_path)
    for command, *words in (
        (export, str(path), "--target", "nir", "--eval", "test.npz", "-o", "out"),
        (parity, str(path), "out/model.nir", "--input", "test.npz"),
    ):
        monkeypatch.setattr("sys.argv", [command.__name__, *map(str, words), "--json"])
        with pytest.raises(SystemExit) as caught:
            command.main()
        out = capsys.readouterr()
        assert caught.value.code == 0, out.err


@pytest.mark.parametrize(
    ("make", "changes", "what"),
    [
        (ncg, {"system": "other"}, r"weights.json: .*'ncg', 'sleep-stdp'"),
        (ncg, {"threshold": [1.0]}, r"weights.json.threshold: has 1 numbers for 30 neurons"),
        (ncg, {"threshold": -1.0}, r"weights.json.ncg.threshold|weights.json.threshold"),
        (ncg, {"neurons_per_class": 7}, "30 rows, which do not divide into groups of 7"),
        (ncg, {"input_shape": None}, r"weights.json.input_shape: is missing; .* --input-shape C,H,W"),
        (ncg, {"input_shape": [2, 13, 13]}, r"pool: pools windows of 4 of a plane \(9, 9\)"),
        (ncg, {"input_shape": [3, 12, 12]}, r"features.weights: "),
        (ncg, {"features": {"weights": "../features.npy", "threshold": 1}}, "weights.json.features.weights"),
        (ncg, {"more": 1}, r"weights.json.more: Extra"),
        (sleep, {"excitatory": 99}, r"readout.npy: has shape .* 99"),
        (sleep, {"tau_mem": 0.5}, r"weights.json.tau_mem"),
        (sleep, {"recurrent": "weights.npy"}, r"weights.npy: has shape \(28, 36\), expected \(28, 28\)"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(
    tmp_path: Path, make: Callable[[Path], Made], changes: dict[str, Any], what: str
) -> None:
    path, _, _ = saved(tmp_path, make, **changes)
    with pytest.raises(InputError, match=what):
        imported(path)


def test_options_that_contradict_the_file(tmp_path: Path) -> None:
    path, _, _ = saved(tmp_path, ncg)
    with pytest.raises(InputError, match=r"--timesteps: 5, but .* says 12"):
        imported(path, timesteps=5)
    with pytest.raises(InputError, match=r"--tau: goes with"):
        imported(path, tau=0.5)


def test_weights_alone(tmp_path: Path) -> None:
    np.save(tmp_path / "weights.npy", np.ones((5, 3)))
    with pytest.raises(InputError, match=r"thresholds .* expected in weights.json"):
        imported(tmp_path / "weights.npy")


def test_arrays_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "weights.npy"
    np.save(path, np.ones((30, 4)))
    whole = path.read_bytes()
    kinds: dict[str, Any] = {
        "objects": np.array([{}, []], object),
        "texts": np.array([["a"]]),
        "complex": np.ones((2, 2), complex),
        "rank": np.ones(3),
        "nan": np.full((2, 2), np.nan),
        "empty": np.ones((0, 3)),
    }
    for name, values in kinds.items():
        np.save(path, values, allow_pickle=True)
        with pytest.raises(InputError, match=r"weights.npy"):
            weights_npy.array(path, 2)
        assert name
    huge = whole.replace(b"(30, 4)", b"(30, 9)")
    for broken in (
        whole[:60],
        whole[:-8],
        huge,
        b"\x93NUMPY",
        b"PK\x03\x04",
        whole[:9] + b"\xff" * 99,
    ):
        path.write_bytes(broken)
        with pytest.raises(InputError, match=r"weights.npy"):
            weights_npy.array(path, 2)
