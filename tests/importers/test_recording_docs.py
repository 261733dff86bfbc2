"""The examples of docs/recordings.md run as they stand, each in the environment of its tool."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

import stl_deploy
from stl_deploy.backends import tool_env
from stl_deploy.backends.consumers import run as runs
from stl_deploy.errors import BackendError, UncheckedWarning
from stl_deploy.formats import nir_io
from stl_deploy.formats import recording as recordings
from stl_deploy.verify import against_recording
from tests.build.nets import ROOT

TEXT = (ROOT / "docs" / "recordings.md").read_text("utf-8")
EXAMPLES = dict(re.findall(r"### (\w+)\n(?:(?!###).)*?```python\n(.*?)```", TEXT, re.S))
RECORD = re.search(r"def record.*?\n\n\n", EXAMPLES["snnTorch"], re.S)
START = f"""
import os, sys
sys.path += os.environ["STL_CONSUMER_SITES"].split(os.pathsep)
import numpy as np
import torch
from torch import nn
torch.manual_seed(0)
spikes = (np.random.default_rng(0).random((8, 30, 12)) < 0.3).astype(np.uint8)
x = torch.tensor(spikes).float().swapaxes(0, 1)
def linear(a, b):
    layer = nn.Linear(a, b)
    layer.weight.data.mul_(3)
    return layer
{RECORD[0] if RECORD else ""}
"""
NETS = {
    "SpikingJelly": """
from spikingjelly.activation_based import neuron
net = nn.Sequential(linear(12, 20), neuron.LIFNode(), linear(20, 5), neuron.IFNode()).eval()
""",
    "Norse": """
import nir, norse.torch as norse
from norse.torch.utils import export_nir
def box(n):
    p = norse.LIFBoxParameters(
        tau_mem_inv=torch.full((n,), 300.0), v_leak=torch.zeros(n), v_th=torch.full((n,), 0.6)
    )
    return norse.LIFBoxCell(p, dt=1e-3)
net = norse.SequentialState(linear(12, 20), box(20), linear(20, 5), box(5))
nir.write("net.nir", norse.to_nir(net, x[0], dt=1))
""",
    "sinabs": """
import nir, sinabs.layers as sl
from sinabs.activation import MembraneReset, SingleSpike
from sinabs.nir import to_nir
how = dict(spike_fn=SingleSpike, reset_fn=MembraneReset(), num_timesteps=30)
net = nn.Sequential(
    linear(12, 20), sl.IAFSqueeze(**how), linear(20, 5), sl.IAFSqueeze(**how)
)
nir.write("net.nir", to_nir(net, torch.zeros(30, 12)))
net = net.apply(lambda m: m.reset_states() if hasattr(m, "reset_states") else None)
""",
}
ENVIRONMENTS = {"SpikingJelly": "current", "Norse": "current", "sinabs": "nir104"}
DT = {"Norse": 1e-3, "sinabs": 1e-4}


def test_every_tool_has_an_example():
    assert set(EXAMPLES) == {"snnTorch", *NETS}
    assert RECORD is not None


def test_snntorch(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "page"}
    exec(compile(EXAMPLES["snnTorch"], "page", "exec"), names)
    recorded = recordings.load(Path("recording.npz"))
    assert {name: x.shape for name, x in recorded.spikes.items()} == {
        "1": (8, 30, 20),
        "3": (8, 30, 5),
    }
    spikes = np.load("test.npz")["spikes"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UncheckedWarning)  # it is not trained, and hardly spikes
        graph = stl_deploy.from_torch(names["net"], names["torch"].ones(2, 12), timesteps=30)
    found = against_recording.compare(graph, spikes, recorded)
    assert found.passed
    assert found.populations[0].spikes > 0


@pytest.mark.parametrize("tool", NETS)
def test_other_tools(tool, tmp_path):
    try:
        python = tool_env.ensure(runs.environment(ENVIRONMENTS[tool]))
    except BackendError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI must run the tools: {error}")
        pytest.skip(str(error))
    sites = [p for p in sys.path if Path(p).name in ("site-packages", "dist-packages")]
    subprocess.run(
        [python, "-c", START + NETS[tool] + EXAMPLES[tool]],
        env={
            **{k: v for k, v in os.environ.items() if not k.startswith("PYTHON")},
            "OMP_NUM_THREADS": "1",
            "STL_CONSUMER_SITES": os.pathsep.join(sites),
        },
        cwd=tmp_path,
        check=True,
    )
    recorded = recordings.load(tmp_path / "recording.npz")
    assert {x.shape for x in recorded.spikes.values()} == {(8, 30, 20), (8, 30, 5)}
    assert all(0 < x.sum() < x.size for x in recorded.spikes.values())
    if tool in DT:
        spikes = (np.random.default_rng(0).random((8, 30, 12)) < 0.3).astype(np.uint8)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UncheckedWarning)  # Norse's Input counts the batch
            graph = stl_deploy.from_nir(
                nir_io.read(tmp_path / "net.nir"), dt=DT[tool], timesteps=30, reset="zero"
            )
        found = against_recording.compare(graph, spikes, recorded)
        assert found.passed
        assert len(found.populations) == 2
