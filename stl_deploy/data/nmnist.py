"""N-MNIST: a digit a file, events of 5 bytes: x, y, then polarity (1 bit) and microseconds (23 bits).

Source: https://www.garrickorchard.com/datasets/n-mnist (the layout is described there).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from stl_deploy.data.events import (
    REMEDY,
    Events,
    Listing,
    Split,
    class_files,
    events,
    first_folder,
    in_turn,
    read_bytes,
)
from stl_deploy.errors import InputError, Problem

SENSOR = (2, 34, 34)
CLASSES = tuple("0123456789")
MAX_BYTES = 1 << 26
OVERFLOW_Y = (
    240  # no event, a mark: the clock goes on by 2^13 us from here, as other readers have it
)


def listing(folder: Path, split: Split, remedy: str) -> Listing:
    """The digits of ``folder``/Train or Test, classes in turn."""
    name = split.capitalize()
    root = first_folder(folder, ("", "NMNIST", "extract"), name)
    if root is None:
        raise InputError(Problem(str(folder), f"holds no folder {name}", remedy))
    files = list(in_turn(class_files(root / name, CLASSES, (".bin",), remedy)))
    labels = np.array([label for label, _ in files], np.int64)
    return Listing(labels, lambda i: read(files[i][1]))


def read(path: Path) -> Events:
    """The events of one file. Raises InputError where it is none."""
    raw = read_bytes(path, MAX_BYTES)
    if len(raw) % 5:
        raise InputError(Problem(str(path), f"has {len(raw)} bytes, not a multiple of 5", REMEDY))
    x, y, high, middle, low = np.frombuffer(raw, np.uint8).reshape(-1, 5).T.astype(np.int64)
    mark = y == OVERFLOW_Y
    t = ((high & 127) << 16 | middle << 8 | low) + (np.cumsum(mark) << 13)
    real = ~mark
    return events(path, t[real], (high >> 7)[real], y[real], x[real]).checked(SENSOR)
