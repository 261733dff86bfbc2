"""Spiking Heidelberg Digits: spoken digits as spikes of 700 channels of a cochlea, an HDF5 file a split.

``spikes/times`` (seconds) and ``spikes/units`` (channel) hold an array for every sample, ``labels``
the digit, 0..9 English, 10..19 German. Source: https://zenkelab.org/resources/spiking-heidelberg-datasets-shd/
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np

from stl_deploy.data.events import Events, Listing, Split, events, first_folder
from stl_deploy.errors import InputError, Problem
from stl_deploy.files import check_readable

CHANNELS = 700
CLASSES = 20
MAX_BYTES = 4 << 30
MAX_SAMPLES = 1 << 20
MAX_SPIKES = 1 << 24  # of one sample
MAX_SECONDS = 1e6  # before and after zero
AGAIN = "fetch the file again"  # one has all samples of a split
FIELDS = ("spikes/times", "spikes/units")


def listing(folder: Path, split: Split, remedy: str) -> Listing:
    """The samples of shd_train.h5 or shd_test.h5, in the order of the file."""
    name = f"shd_{split}.h5"
    root = first_folder(folder, ("", "SHD", "extract"), name)
    if root is None:
        raise InputError(Problem(str(folder), f"holds no {name}", remedy))
    path = root / name
    check_readable(path, MAX_BYTES)
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise InputError(Problem(str(path), f"cannot be read: {error}", AGAIN)) from None
    try:
        labels, times, units = (_plain(file, key) for key in ("labels", *FIELDS))
        return _checked(path, labels[()], times, units)
    except (OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
        file.close()
        raise InputError(Problem(str(path), f"cannot be read: {error}", AGAIN)) from None
    except InputError:
        file.close()
        raise


def _plain(file: h5py.File, key: str) -> Any:
    """A one-dimensional array that lies in this file. Raises ValueError for anything else."""
    item: Any = file
    for name in key.split("/"):
        if not isinstance(item, h5py.Group) or name not in item:
            raise ValueError(f"{key} is missing")
        if not isinstance(item.get(name, getlink=True), h5py.HardLink):
            raise ValueError(f"{key} points elsewhere")
        item = item[name]
    if not isinstance(item, h5py.Dataset) or item.external or item.is_virtual or item.ndim != 1:
        raise ValueError(f"{key} is not a plain list")
    if len(item) > MAX_SAMPLES:
        raise ValueError(f"{key} claims {len(item)} samples, more than {MAX_SAMPLES}")
    if key in FIELDS and h5py.check_vlen_dtype(item.dtype) is None:
        raise ValueError(f"{key} holds {item.dtype}, not an array for each sample")
    return item


def _checked(path: Path, labels: Any, times: Any, units: Any) -> Listing:
    lengths = len(labels), len(times), len(units)
    problems = []
    if len(set(lengths)) != 1 or not len(labels):
        what = "holds {} labels, {} arrays of times and {} of units".format(*lengths)
        problems.append(Problem(str(path), what, AGAIN))
    if labels.dtype.kind not in "iu":
        problems.append(Problem(f"{path}: labels", f"have type {labels.dtype}", AGAIN))
    elif len(labels) and (labels.min() < 0 or labels.max() >= CLASSES):
        what = f"{labels.min()}..{labels.max()}, allowed are 0..{CLASSES - 1}"
        problems.append(Problem(f"{path}: labels", what, AGAIN))
    if problems:
        raise InputError(problems)

    def read(i: int) -> Events:
        where = f"{path}, sample {i}"
        try:
            return _events(where, times[i], units[i])
        except (OSError, ValueError, RuntimeError) as error:
            raise InputError(Problem(where, f"cannot be read: {error}", AGAIN)) from None

    return Listing(labels.astype(np.int64), read)


def _events(where: str, seconds: Any, units: Any) -> Events:
    """One sample's spikes. They are a set: their order in the file says nothing, and it may be empty."""
    if len(seconds) != len(units) or len(units) > MAX_SPIKES:
        what = f"has {len(seconds)} times for {len(units)} units, at most {MAX_SPIKES}"
        raise InputError(Problem(where, what, AGAIN))
    t = np.asarray(seconds, np.float64)
    if not (np.abs(t) < MAX_SECONDS).all() or np.asarray(units).dtype.kind not in "iu":
        what = f"has times that are not finite or beyond {MAX_SECONDS:g} s, or units that are not whole"
        raise InputError(Problem(where, what, AGAIN))
    order = np.argsort(t, kind="stable")
    microseconds = np.rint(t * 1e6)[order]
    sample = events(where, microseconds, np.asarray(units)[order])
    return sample.checked((CHANNELS,)) if len(sample) else sample
