"""What a network is trained on: images, a dataset of events, or a recorded raster."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stl_deploy.data.catalogue import EVENT_SETS
from stl_deploy.data.events import Split
from stl_deploy.data.load import Wanted, load
from stl_deploy.errors import InputError, Problem
from stl_deploy.files import sha256
from stl_deploy.formats import idx
from stl_deploy.formats import raster as rasters
from stl_deploy.models.train import Encoding


@dataclass(frozen=True)
class Inputs:
    """``x`` uint8 and ``labels`` int64 [N]: images [N, *shape], or rasters [N, T, *shape] where
    ``encoding`` is recorded; then T is ``timesteps``, and it is None otherwise.

    ``digest`` says what the data is, ``origin`` in words for the checkpoint where it came from.
    ``dataset`` is the one of events that it was, where that is known.
    """

    x: NDArray[np.uint8]
    labels: NDArray[np.int64]
    encoding: Encoding
    levels: int
    digest: str
    origin: dict[str, Any]
    dataset: str | None = None

    @property
    def timesteps(self) -> int | None:
        """T of a recorded raster."""
        return self.x.shape[1] if self.encoding == "recorded" else None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of an input in one step."""
        return self.x.shape[2:] if self.encoding == "recorded" else self.x.shape[1:]


def images(folder: Path, encoding: Encoding, limit: int | None, split: Split = "train") -> Inputs:
    """The images of IDX files."""
    x, labels = idx.load(folder, split, limit)
    digest = sha256(idx.find(folder, split, "images"))
    levels = 255 if encoding == "graded" else 1
    name = f"{len(x)} images of {digest}"
    return Inputs(x, labels, encoding, levels, name, {"images": len(x), "sha256": digest})


def events(
    name: str,
    folder: Path,
    wanted: Wanted,
    on_sample: Callable[[int, int], None] | None = None,
    split: Split = "train",
) -> Inputs:
    """A dataset of events, gathered into frames."""
    made, origin = load(name, folder, split, wanted, on_sample)
    assert made.labels is not None
    spikes = made.only(str(folder)).astype(np.uint8, copy=False)
    digest = f"{len(spikes)} samples of {origin['sha256']['spikes']}"
    return Inputs(spikes, made.labels, "recorded", wanted.levels, digest, origin, name)


def recorded(path: Path, limit: int | None) -> Inputs:
    """A raster file. Raises InputError where it has no labels, or some below zero."""
    made = rasters.load(path).first(limit)
    spikes = made.only(str(path))
    if made.held or spikes.dtype != np.uint8:
        what = "has values with a sign, or one frame for all steps (held)"
        remedy = "train on uint8 spikes [N, T, ...], or train in another tool"
        raise InputError(Problem(str(path), what, remedy))
    if made.labels is None or made.labels.min() < 0:
        what = "holds no labels" if made.labels is None else f"has label {made.labels.min()}"
        raise InputError(Problem(str(path), what, "make one with stl-raster"))
    digest = sha256(path)
    origin = {"samples": len(spikes), "sha256": digest, "raster": path.name}
    name = f"{len(spikes)} samples of {digest}"
    source = _source(path)
    levels = _levels(source.get("levels"), int(spikes.max()))
    dataset = source.get("dataset")
    known = dataset if isinstance(dataset, str) and dataset in EVENT_SETS else None
    return Inputs(
        spikes.astype(np.uint8, copy=False), made.labels, "recorded", levels, name, origin, known
    )


def _source(path: Path) -> dict[str, Any]:
    """What a raster says of its origin; not to be believed."""
    with np.load(path, allow_pickle=False) as data:
        try:
            source = json.loads(str(data["source"]))
        except (KeyError, ValueError, RecursionError):  # none, not JSON, too deep
            return {}
    return source if isinstance(source, dict) else {}


def _levels(said: object, largest: int) -> int:
    """The largest value that inputs may have: as the raster's origin says, else 1 or 255."""
    if isinstance(said, int) and largest <= said <= 255:
        return max(said, 1)
    return 1 if largest <= 1 else 255
