"""Networks on Lava, many in one process, compared with the reference.

``STL_LAVA_NETWORKS`` and ``STL_LAVA_SEED`` set how many random networks are drawn, and the first seed.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stl_deploy import backends
from stl_deploy.backends import lava_worker
from stl_deploy.exporters import lava, netx
from stl_deploy.hw_sim import reference
from stl_deploy.ir.network import IntegerNetwork
from stl_deploy.verify import against_reference as agreement
from tests.build.nets import ROOT

NETWORKS = int(os.environ.get("STL_LAVA_NETWORKS", "10"))
SEED = int(os.environ.get("STL_LAVA_SEED", "20230"))
AT_ONCE = 10
TEMPLATES = resources.files("stl_deploy.exporters") / "templates"
Drawn = Mapping[int, tuple[IntegerNetwork, Any]]


def run_many(
    python: Path, tool: str, drawn: Drawn, folder: Path
) -> dict[int, dict[str, NDArray[Any]]]:
    """Every network in one worker: starting one takes longer than running one."""
    module = {"lava": lava, "netx": netx}[tool]
    for seed, (network, spikes) in drawn.items():
        home = folder / str(seed)
        (home / "script").mkdir(parents=True)
        module.write(network, home)
        name = f"{tool}_network.py"
        (home / "script" / name).write_bytes((TEMPLATES / name).read_bytes())
        np.savez(home / "in.npz", **lava_worker.staged(network, spikes))
        if tool == "netx":
            (given,) = network.inputs.values()
            graded = given.levels > 1 or given.signed
            how = given.levels.bit_length() * graded, network.timesteps if given.held else 1
            (home / "how.json").write_text(json.dumps(how))
    (folder / "driver").mkdir()
    driver = shutil.copy(ROOT / "tests" / "build" / "lava_driver.py", folder / "driver")
    homes = [str(folder / str(seed)) for seed in drawn]
    lava_worker.work(tool, [str(python), str(driver), tool, *homes], folder)
    return {
        seed: backends.load(tool).unpack(network, dict(np.load(folder / str(seed) / "out.npz")))
        for seed, (network, _) in drawn.items()
    }


def compared(python: Path, tool: str, drawn: Drawn, folder: Path) -> agreement.Agreement:
    """Everything that these networks do is what the reference does. Returns how much that was."""
    total = agreement.Agreement()
    numbered = list(drawn.items())
    for start in range(0, len(numbered), AT_ONCE):
        part = dict(numbered[start : start + AT_ONCE])
        traces = run_many(python, tool, part, folder / f"{start}")
        for seed, (network, rasters) in part.items():
            expected = reference.run(network, rasters, states=True)
            result = agreement.compare(network, expected, traces[seed])
            assert result.exact, f"seed {seed}: {result}"
            assert result.entries
            assert tool != "lava" or "prediction" in traces[seed]
            total += result
    return total
