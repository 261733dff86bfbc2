"""Files that several tests share."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import Phase, settings

from stl_deploy.backends import lava_env, lava_worker
from stl_deploy.errors import StlError
from stl_deploy.formats.checkpoint import save_checkpoint
from stl_deploy.formats.raster import Raster
from stl_deploy.formats.raster import save as save_raster
from stl_deploy.models.net import STLNet
from tests.build.nets import random_net, random_spikes

# A net as small as those of the tests takes several times longer on two threads than on one, here and
# in commands that run in processes of their own; and `pytest -n auto` uses every core anyway.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)
# Processes that tests start keep what they compile: otherwise each compiles every module again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Shrinking an example can take five minutes, and a failing test should end within one. Hypothesis does
# not shrink what it takes from its database, so the profile that shrinks finds its examples anew.
FOUND = (Phase.explicit, Phase.generate)
settings.register_profile("plain", settings(), deadline=None, phases=(*FOUND, Phase.reuse))
settings.register_profile("shrink", settings(), deadline=None, phases=(*FOUND, Phase.shrink))
settings.load_profile("plain")


@pytest.fixture
def net() -> STLNet:
    return random_net()


@pytest.fixture
def model(net: STLNet, tmp_path: Path) -> Path:
    """A checkpoint of ``net``."""
    path = tmp_path / "model.pt"
    save_checkpoint(net, path)
    return path


@pytest.fixture
def raster(net: STLNet, tmp_path: Path) -> Path:
    """A labelled raster of twelve samples for ``net``."""
    path = tmp_path / "raster.npz"
    labels = np.arange(12, dtype=np.int64) % 10
    save_raster(path, Raster(random_spikes(net, 12), labels), {"made": "for a test"})
    return path


@pytest.fixture
def command(monkeypatch, capfd):
    """Run a command of ours by name in this process: (exit code, stdout, stderr)."""
    scripts = distribution("stl-deploy").entry_points.select(group="console_scripts")

    def run(name, *args):
        main = scripts[name].load()
        monkeypatch.setattr(sys, "argv", [name, *map(str, args)])
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capfd.readouterr()
        return stop.value.code, out, err

    return run


@pytest.fixture(scope="session")
def python() -> Path:
    """The Python of the Lava environment, made when it is not there."""
    try:
        return lava_env.python()
    except StlError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI must run Lava: {error}")
        pytest.skip(str(error))


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder whose name leaves room for those of Lava's sockets, however often pytest has run."""
    with tempfile.TemporaryDirectory(dir=lava_worker._short_folder()) as folder:
        yield Path(folder)
