"""Spike rasters: recorded inputs ``*.npz`` with ``spikes`` uint8 [N, T, *shape] and ``labels``."""

from __future__ import annotations

import json
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from stl_deploy.errors import InputError, Problem
from stl_deploy.files import atomic, check_readable
from stl_deploy.network import IntegerNetwork

Encoding = Literal["bernoulli", "graded"]
MAX_BYTES = 8 << 30  # of one array, decompressed


@dataclass(frozen=True)
class Raster:
    """Inputs of N samples over T steps: ``spikes`` uint8 [N, T, *shape], ``labels`` int64 [N]."""

    spikes: NDArray[np.uint8]
    labels: NDArray[np.int64] | None = None

    def first(self, limit: int | None) -> Raster:
        """The first ``limit`` samples."""
        return Raster(self.spikes[:limit], None if self.labels is None else self.labels[:limit])


def encode(
    images: NDArray[np.uint8], timesteps: int, encoding: Encoding, seed: int
) -> NDArray[np.uint8]:
    """Images [N, *shape] to a raster [N, T, *shape].

    ``bernoulli``: a spike with probability pixel/255 at every step, numpy's PCG64 with ``seed``,
    drawn image by image, so that the first images do not depend on how many follow. ``graded``: the
    pixel's value at every step.
    """
    if encoding == "graded":
        return np.repeat(images[:, None], timesteps, axis=1)
    rng = np.random.Generator(np.random.PCG64(seed))
    out = np.empty((len(images), timesteps, *images.shape[1:]), np.uint8)
    for image, spikes in zip(images, out, strict=True):
        spikes[:] = rng.random(spikes.shape) * 255 < image
    return out


def save(path: Path, raster: Raster, source: dict[str, Any]) -> None:
    """Write a raster; ``source`` (seed, encoding, sha256 of the images ...) goes in as JSON."""
    arrays: dict[str, Any] = {"spikes": raster.spikes, "source": np.array(json.dumps(source))}
    if raster.labels is not None:
        arrays["labels"] = raster.labels
    with atomic(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)


def load(path: Path) -> Raster:
    """Read and check a raster. Raises InputError naming everything that is wrong with it."""
    check_readable(path, MAX_BYTES)
    try:
        _check_sizes(path)
        with np.load(path, allow_pickle=False) as data:
            arrays = {key: data[key] for key in ("spikes", "labels") if key in data.files}
            keys = list(data.files)
    except MemoryError:
        raise InputError(Problem(str(path), "claims an array larger than the memory")) from None
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(
            Problem(str(path), f"is not a raster: {error}", "make one with stl-raster")
        ) from None
    if "spikes" not in arrays:
        raise InputError(
            Problem(
                str(path), f"holds no array 'spikes' (only {', '.join(keys)})", "see stl-raster"
            )
        )
    spikes, labels = arrays["spikes"], arrays.get("labels")
    problems: list[Problem] = []
    if spikes.ndim < 3:
        problems.append(Problem(f"{path}: spikes", f"has shape {spikes.shape}, not [N, T, ...]"))
    if spikes.dtype not in (np.uint8, np.bool_):
        problems.append(
            Problem(f"{path}: spikes", f"has type {spikes.dtype}, not uint8", "convert it")
        )
    if 0 in spikes.shape:
        problems.append(Problem(f"{path}: spikes", f"is empty: {spikes.shape}"))
    whole = labels is not None and labels.dtype.kind in "iu" and (labels < 2**31).all()
    if labels is not None and (labels.shape != spikes.shape[:1] or not whole):
        problems.append(
            Problem(
                f"{path}: labels", f"{labels.dtype} {labels.shape}, not int64 {spikes.shape[:1]}"
            )
        )
    if problems:
        raise InputError(problems)
    return Raster(
        spikes.astype(np.uint8, copy=False), None if labels is None else labels.astype(np.int64)
    )


def check_fits(raster: Raster, where: str, network: IntegerNetwork) -> None:
    """Raise InputError unless ``raster`` is an input of ``network``, labels included."""
    check_input(raster, where, network.input_shape, network.timesteps, network.input_levels)
    classes, labels = network.readout.classes, raster.labels
    if labels is None:
        return
    if labels.shape != raster.spikes.shape[:1]:
        raise InputError(Problem(where, f"labels {labels.shape} for {len(raster.spikes)} samples"))
    if ((labels < 0) | (labels >= classes)).any():
        raise InputError(
            Problem(where, f"labels {labels.min()}..{labels.max()} for {classes} classes")
        )


def check_input(
    raster: Raster, where: str, shape: tuple[int, ...], timesteps: int, levels: int
) -> None:
    """Raise InputError unless the spikes are whole numbers [N, ``timesteps``, *``shape``] in
    0..``levels``."""
    spikes = raster.spikes
    problems: list[Problem] = []
    if not isinstance(spikes, np.ndarray) or spikes.dtype.kind not in "uib":
        kind = getattr(spikes, "dtype", type(spikes).__name__)
        raise InputError(Problem(where, f"is {kind}, not an array of whole numbers", "use uint8"))
    if spikes.ndim < 2 or spikes.shape[2:] != shape:
        problems.append(Problem(where, f"has inputs {spikes.shape[2:]}, the network reads {shape}"))
    elif spikes.shape[1] != timesteps:
        problems.append(
            Problem(
                where,
                f"has {spikes.shape[1]} time steps, the network was made for {timesteps}",
                f"make it with stl-raster --timesteps {timesteps}",
            )
        )
    if not spikes.size:
        problems.append(Problem(where, f"is empty: {spikes.shape}"))
    elif spikes.min() < 0 or spikes.max() > levels:
        problems.append(
            Problem(
                where,
                f"holds values {spikes.min()}..{spikes.max()}, the network reads 0..{levels}",
                "encode it as the network was trained (--encoding)",
            )
        )
    if problems:
        raise InputError(problems)


def _check_sizes(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.file_size > MAX_BYTES:
                raise ValueError(f"{info.filename} has {info.file_size} bytes, limit {MAX_BYTES}")
