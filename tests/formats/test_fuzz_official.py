"""Damaged official checkpoints, wrapped or in arrays: refused cleanly, as other files (``test_fuzz.py``)."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stl_deploy.commands import export
from tests.build import official_nets as nets
from tests.formats.test_fuzz import MEMORY, N, bytes_changed, json_changed, run, value_like

SIDE = 8
NETS: dict[str, Callable[[], nets.Noting]] = {
    "ltmd.pt": nets.Ltmd,
    "tebn.pt": lambda: nets.Tebn(side=SIDE),
    "preact.pt": nets.RatePreact,
    "sew.pt": nets.RateSew,
}
ARRAYS = ("weights.npy", "weights.json", "recurrent.npy", "readout.npy")
EACH = -(-N // 8)


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small valid files."""
    folder = tmp_path_factory.mktemp("official")
    rng = np.random.default_rng(0)
    for name, make in NETS.items():
        net = nets.drawn(make, torch.rand(8, 1, SIDE, SIDE))
        state = {f"module.{key}": value for key, value in net.state_dict().items()}
        torch.save({"best_net": {"net": state}, "epoch": 3}, folder / name)
    np.save(folder / "weights.npy", rng.random((6, 9)))
    np.save(folder / "recurrent.npy", -rng.random((6, 6)))
    np.save(folder / "readout.npy", rng.random((3, 4)))
    said = {
        "system": "sleep-stdp",
        "timesteps": 5,
        "excitatory": 4,
        "recurrent": "recurrent.npy",
        "readout": "readout.npy",
        "tau_mem": 20,
        "tau_syn": [5.0] * 6,
        "threshold": -52.0,
    }
    (folder / "weights.json").write_text(json.dumps(said), "utf-8")
    return folder


def checkpoint_changed(rng: np.random.Generator, path: Path) -> None:
    data = torch.load(path, weights_only=True)
    state = data["best_net"]["net"]
    key, what = str(rng.choice(list(state))), rng.random()
    if what < 0.15:
        del state[key]
    elif what < 0.3:
        others: list[Any] = [
            {"ema": dict(state)},
            {"x": {"y": {}}},
            {1: dict(state)},
            {"": dict(state)},
        ]
        data |= others[rng.integers(len(others))]
    elif what < 0.4:
        state[str(rng.choice(["module.", "net.x", "module._orig_mod.x", ""]))] = state.pop(key)
    elif what < 0.6:
        shape = tuple(int(n) for n in rng.integers(0, 9, rng.integers(0, 6)))
        state[key] = torch.rand(shape)
    else:
        value = value_like(rng, state[key].numpy())
        numbers = isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "iufbc"
        state[key] = torch.as_tensor(value.copy()) if numbers else str(value)
    torch.save(data, path)


def array_changed(rng: np.random.Generator, path: Path) -> None:
    if rng.random() < 0.3:
        np.save(path, rng.random(tuple(rng.integers(0, 9, rng.integers(0, 4)))))
    else:
        np.save(path, value_like(rng, np.load(path)), allow_pickle=True)


def said_changed(rng: np.random.Generator, path: Path) -> None:
    try:
        path.write_text(json_changed(rng, path.read_bytes()), "utf-8")
    except json.JSONDecodeError:
        path.write_text("{", "utf-8")


CHANGES = {".pt": checkpoint_changed, ".npy": array_changed, ".json": said_changed}


@pytest.mark.parametrize("name", [*NETS, *ARRAYS])
def test_mutated_files(
    name: str,
    originals: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("stl_deploy.report.sections.render", lambda *_args, **_more: "")
    home = tmp_path / "work"
    home.mkdir()
    files = {name} if name in NETS else set(ARRAYS)
    model, out = home / (name if name in NETS else "weights.npy"), home / "out"
    codes: dict[int, int] = {}
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    for seed in range(EACH):
        rng = np.random.default_rng([len(name), sum(map(ord, name)), seed])
        for file in files:
            shutil.copy(originals / file, home / file)
        change = [bytes_changed, CHANGES[Path(name).suffix]][int(rng.random() < 0.7)]
        change(rng, home / name)
        shape = () if name not in NETS else ("--input-shape", f"1,{SIDE},{SIDE}")
        code, _ = run(export.export, model, "--target", "nir", *shape, "-o", out, "--json")
        said = capsys.readouterr()
        assert code in (0, 1, 2), (seed, code, said.err)
        assert "internal error" not in said.err, (seed, said.err)
        assert "Traceback" not in said.err, (seed, said.err)
        assert code == 0 or said.err, seed
        assert {p.name for p in home.iterdir()} - files == ({"out"} if code == 0 else set()), seed
        shutil.rmtree(out, ignore_errors=True)
        codes[code] = codes.get(code, 0) + 1
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - base
    assert grown < MEMORY, f"{grown:,} bytes"
    assert codes.get(2, 0) > 0, codes
