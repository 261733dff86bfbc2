"""CIFAR10-DVS: an image a file, AEDAT 2.0 as published, or AEDAT 4 as tonic distributes it.

The dataset has no split (Li et al. 2017, doi:10.3389/fnins.2017.00309). As in the literature nine of
ten images of every class are for training; which ones is drawn once, by numpy's PCG64.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from stl_deploy.data import aedat, aedat4
from stl_deploy.data.events import (
    Events,
    Listing,
    Split,
    class_files,
    events,
    first_folder,
    in_turn,
)
from stl_deploy.errors import InputError, Problem

SENSOR = (2, 128, 128)
CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
SPLIT_SEED = 0


def listing(folder: Path, split: Split, remedy: str) -> Listing:
    """The images of one split, classes in turn."""
    root = first_folder(folder, ("", "CIFAR10DVS", "extract"), CLASSES[0])
    if root is None:
        raise InputError(Problem(str(folder), f"holds no folder {CLASSES[0]}", remedy))
    found = class_files(root, CLASSES, (".aedat", ".aedat4"), remedy)
    files = list(in_turn([part(f, label, split) for label, f in enumerate(found)]))
    if not files:
        what = f"holds {len(found[0])} images a class, too few to have some for {split}"
        raise InputError(Problem(str(root), what, remedy))
    labels = np.array([label for label, _ in files], np.int64)
    return Listing(labels, lambda i: read(files[i][1]))


def part(files: list[Path], label: int, split: Split) -> list[Path]:
    """The files of class ``label`` that belong to ``split``: floor(9 n / 10) for training."""
    rng = np.random.Generator(np.random.PCG64([SPLIT_SEED, label]))
    order = rng.permutation(len(files))
    cut = 9 * len(files) // 10
    chosen = order[:cut] if split == "train" else order[cut:]
    return [files[i] for i in sorted(chosen)]


def read(path: Path) -> Events:
    """The events of one file. In AEDAT 2.0, bit 0 of an address is 0 for ON, bits 1-7 and 8-14 are
    the pixel; turned as SpikingJelly turns it, (x, y) = (127 - bits 8-14, 127 - bits 1-7)."""
    if path.suffix == ".aedat4":
        return aedat4.read(path).checked(SENSOR)
    t, address, wraps = aedat.read_2(path)
    if (address >> 15).any():
        what = f"holds address {int(address.max())}, a DVS128 has 0..32767"
        raise InputError(Problem(str(path), what, "fetch the file again"))
    x, y = 127 - (address >> 8 & 127), 127 - (address >> 1 & 127)
    return replace(events(path, t, 1 - (address & 1), y, x), wraps=wraps).checked(SENSOR)
