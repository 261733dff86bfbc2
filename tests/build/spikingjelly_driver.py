"""What SpikingJelly makes of event files, in a process of its own.

Arguments: the packages it lies in (of the environment of stl_deploy/backends/consumers), a folder with
*.aedat2 and *.aedat31, T's with commas, and the file to write. Its datasets import torchvision, which is not
there and does nothing here: names of it are empty classes.
"""

from __future__ import annotations

import sys
import types
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np

ABSENT = ("torchvision", "torchaudio", "tqdm", "matplotlib")


def empty(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (), {})


class Empty(MetaPathFinder, Loader):
    """Finds every module of what is absent, with an empty class for whatever is taken from it."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ABSENT:
            return ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        module = types.ModuleType(spec.name)
        module.__getattr__ = empty
        module.__path__ = []
        return module

    def exec_module(self, module):
        pass


def main(packages, folder, steps, out):
    sys.path.append(packages)
    sys.meta_path.append(Empty())
    from spikingjelly.datasets import cifar10_dvs, utils

    found = {}
    for path in sorted(Path(folder).iterdir()):
        if path.suffix not in (".aedat2", ".aedat31"):
            continue
        read = cifar10_dvs._load_origin_data if path.suffix == ".aedat2" else utils.load_aedat_v3
        events = read(str(path))
        events = {key: np.asarray(values).astype(np.int64) for key, values in events.items()}
        for key in "txyp":
            found[f"{path.name}/{key}"] = events[key]
        for by in ("number", "time"):
            for n in steps.split(","):
                found[f"{path.name}/{by}/{n}"] = utils.integrate_events_by_fixed_frames_number(
                    events, by, int(n), 128, 128
                )
    np.savez(out, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
