"""docs/recipes on the official code of published systems: every block runs, on files as their scripts save them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stl_deploy.ir import execute, floats
from tests.build import seeds
from tests.build.nets import ROOT
from tests.build.seeds import Ran
from tests.seeds import test_stork

FOLDER = ROOT / "docs" / "recipes"


def bare(text: str) -> str:
    """``text`` without the spaces at the ends of lines."""
    return "\n".join(line.rstrip() for line in text.splitlines())


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Any, capfd: Any) -> Any:
    """Run the blocks of a page in their order, with ``given`` names; returns the names that it leaves.

    Text blocks are what the block before has printed.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")

    def blocks(page: str, **given: Any) -> dict[str, Any]:
        said, text = "", (FOLDER / f"{page}.md").read_text("utf-8")
        for language, block in re.findall(r"^```(\w+)\n(.*?)^```", text, re.M | re.S):
            if language == "python":
                exec(compile(block, page, "exec"), given)
                said = capfd.readouterr().out
            elif language == "sh":
                ran = [command(*line.split()) for line in block.splitlines()]
                assert all(code == 0 for code, _, _ in ran), ran
                said = "".join(out + err for _, out, err in ran)
            elif language == "text":
                assert bare(block) in bare(said), said
        return given

    return blocks


# stork: a recurrent convolution, and behind it 24 excitatory and 6 inhibitory neurons.


def test_the_network_of_stork(run: Any) -> None:
    con, x, ran = seeds.working(2, _stork)
    torch.save({f"{n}.op.weight": torch.from_numpy(w) for n, w in con.items()}, "best.pth")
    np.savez("sounds.npz", spikes=x)
    page = run("stork")
    network, late = floats.decode(page["float_graph"]), test_stork.LATE
    got = execute.trace(network, page["raster"])
    steps = page["raster"].shape[1]
    for deep, name in enumerate(("layer1", "both"), 1):
        expected = ran.spikes[name][:, late * deep :][:, :steps]
        np.testing.assert_array_equal(got.sent[name], expected.reshape(got.sent[name].shape))
    assert network.readout is not None
    last = got.sent[network.output], got.v
    np.testing.assert_allclose(network.readout.scores(*last), ran.scores, 1e-9, 1e-12)
    np.testing.assert_array_equal(network.readout.predict(*last), ran.classes)
    assert len(set(ran.classes)) > 1
    assert ran.watch is not None
    assert ran.watch.least > seeds.NEAR


def _stork(rng: np.random.Generator) -> tuple[dict[str, np.ndarray], np.ndarray, Ran]:
    """The weights in the order of connections, sounds, and what stork's equations give in as many steps."""
    e, i = 24, 6
    con = {
        "con1": seeds.weights(rng, (5, 1, 7), 3.0, 25, mean=0.8),
        "con2": seeds.weights(rng, (5, 5, 3), 1.5, 25),
    }
    sizes = [((e, 80), 0.5), ((i, 80), 0.5), ((e, e), 0.4), ((i, e), 0.4), ((e, i), 1.5), ((i, i), 1.5)]
    for number, (size, spread) in enumerate(sizes, 3):
        con[f"con{number}"] = np.abs(seeds.weights(rng, size, spread, 25))
    con["con9"] = test_stork.balanced(rng, e)
    into, from_e, from_i = (
        np.concatenate([con[f"con{n}"], con[f"con{n + 1}"]]) for n in (3, 5, 7)
    )
    weight = {
        ("input", "layer1", 0): con["con1"][:, :, None],
        ("layer1", "layer1", 0): con["con2"][:, :, None],
        ("layer1", "both", 0): into,
        ("both", "both", 0): np.pad(from_e, ((0, 0), (0, i))),
        ("both", "both", 1): np.pad(-from_i, ((0, 0), (e, 0))),
        ("both", "out", 0): np.pad(con["con9"], ((0, 0), (0, i))),
    }
    currents = test_stork.DS, float(np.exp(-test_stork.STEP / 20e-3))
    groups = {"layer1": ((5, 1, 16), currents[:1]), "both": ((e + i,), currents)}
    x = test_stork.sounds(rng)
    system = test_stork.System(groups, weight, {"layer1": 1})
    return con, x, test_stork.theirs(system, x[:, :, None, None], test_stork.T)
