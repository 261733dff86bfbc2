"""A split of an event dataset as a recorded raster."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stl_deploy.data.binning import Binning, Frames, Tally
from stl_deploy.data.catalogue import EVENT_SETS, EventSet
from stl_deploy.data.events import Split
from stl_deploy.errors import InputError, Problem
from stl_deploy.formats import raster as rasters


@dataclass(frozen=True)
class Wanted:
    """What is asked for; None is the default of the dataset. ``sort``: events of any order are sorted."""

    timesteps: int | None = None
    size: int | None = None
    binning: Binning | None = None
    levels: int = 1
    limit: int | None = None
    sort: bool = False


def frames(dataset: EventSet, wanted: Wanted) -> Frames:
    """How events of ``dataset`` become frames. Raises InputError for what it cannot have."""
    binning = wanted.binning or dataset.binning
    if binning == "window" and not dataset.window:
        raise InputError(
            Problem("--binning", f"{dataset.title} has no window of time", "use count or time")
        )
    shape = dataset.shape(wanted.size)
    steps = wanted.timesteps or dataset.timesteps
    return Frames(dataset.sensor, shape, steps, binning, wanted.levels, dataset.window)


def load(
    name: str,
    folder: Path,
    split: Split,
    wanted: Wanted,
    on_sample: Callable[[int, int], None] | None = None,
) -> tuple[rasters.Raster, dict[str, Any]]:
    """The first samples of a split as a raster, and its origin, for ``raster.save``.

    ``on_sample(done, total)`` reports progress. Raises InputError naming the file that is wrong.
    """
    dataset = EVENT_SETS[name]
    how = frames(dataset, wanted)
    listing = dataset.listing(folder, split)
    total = len(listing.labels[: wanted.limit])
    if total * how.entries > rasters.MAX_BYTES:
        what = f"{total} samples of {how.timesteps} x {how.shape} make {total * how.entries} bytes"
        remedy = "give a smaller --size, fewer --timesteps or --limit"
        raise InputError(
            Problem(str(folder), f"{what}, more than {rasters.MAX_BYTES}", remedy),
        )
    spikes = np.empty((total, how.timesteps, *how.shape), np.uint8)
    tally = Tally()
    for i in range(total):
        spikes[i], one = how.make(listing.read(i).in_order(wanted.sort))
        tally += one
        if on_sample is not None:
            on_sample(i + 1, total)
    labels = listing.labels[:total]
    source = {
        "dataset": name,
        "split": split,
        "samples": total,
        "binning": how.binning,
        "levels": how.levels,
        **asdict(tally),
        "sha256": {"spikes": _digest(spikes), "labels": _digest(labels)},
    }
    return rasters.Raster(spikes, labels), source


def _digest(array: NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()
