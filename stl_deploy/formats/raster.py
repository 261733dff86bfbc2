"""Spike rasters: recorded inputs ``*.npz`` with ``spikes`` uint8 [N, T, *shape] and ``labels``."""

from __future__ import annotations

import json
import math
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

from stl_deploy.errors import InputError, Problem
from stl_deploy.files import atomic, check_readable
from stl_deploy.ir.network import IntegerNetwork

Encoding = Literal["bernoulli", "graded"]
MAX_BYTES = 8 << 30  # of one array, decompressed
SPIKES = "spikes.npy"  # the member of the file that may be larger than that


@dataclass(frozen=True)
class Raster:
    """Inputs of N samples over T steps: ``spikes`` uint8 [N, T, *shape], ``labels`` int64 [N]."""

    spikes: NDArray[np.uint8]
    labels: NDArray[np.int64] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """[N, T, *shape]."""
        return self.spikes.shape

    def first(self, limit: int | None) -> Raster:
        """The first ``limit`` samples."""
        return Raster(self.spikes[:limit], None if self.labels is None else self.labels[:limit])

    def fitting(self, where: str, network: IntegerNetwork) -> Raster:
        """The raster. Raises InputError unless its spikes are an input of ``network``."""
        check_input(self, where, network.input_shape, network.timesteps, network.input_levels)
        return self

    def batches(self, size: int) -> Iterator[NDArray[np.uint8]]:
        """The spikes, ``size`` samples at a time."""
        for start in range(0, len(self.spikes), size):
            yield self.spikes[start : start + size]


@dataclass(frozen=True)
class RasterFile:
    """A raster that stays on disk and is read batch by batch: it need not fit into memory.

    Its values are looked at when they are read: they lie in 0..``levels``, once ``check_fits`` has
    said which.
    """

    path: Path
    shape: tuple[int, ...]
    labels: NDArray[np.int64] | None = None
    levels: int = 255

    def first(self, limit: int | None) -> RasterFile:
        """The first ``limit`` samples."""
        labels = None if self.labels is None else self.labels[:limit]
        samples = len(range(self.shape[0])[:limit])
        return replace(self, shape=(samples, *self.shape[1:]), labels=labels)

    def fitting(self, where: str, network: IntegerNetwork) -> RasterFile:
        """The raster, whose values will be checked when they are read.

        Raises InputError unless its shape is one of the inputs of ``network``.
        """
        if problems := _shape_problems(self.shape, where, network.input_shape, network.timesteps):
            raise InputError(problems)
        return replace(self, levels=network.input_levels)

    def batches(self, size: int) -> Iterator[NDArray[np.uint8]]:
        """The spikes, ``size`` samples at a time. Raises InputError where they cannot be read."""
        with _damage_explained(self.path), _open_spikes(self.path) as file:
            _header(file)
            for start in range(0, self.shape[0], size):
                shape = (min(size, self.shape[0] - start), *self.shape[1:])
                batch = np.frombuffer(bytearray(file.read(math.prod(shape))), np.uint8)
                if batch.size < math.prod(shape):
                    raise EOFError("spikes end early")
                batch = batch.reshape(shape)
                if problems := _value_problems(batch, str(self.path), self.levels):
                    raise InputError(problems)
                yield batch


Source = Raster | RasterFile


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
    with _damage_explained(path):
        _check_sizes(path)
        with np.load(path, allow_pickle=False) as data:
            arrays = {key: data[key] for key in ("spikes", "labels") if key in data.files}
            keys = list(data.files)
    if "spikes" not in arrays:
        raise InputError(
            Problem(
                str(path), f"holds no array 'spikes' (only {', '.join(keys)})", "see stl-raster"
            )
        )
    spikes, labels = arrays["spikes"], arrays.get("labels")
    _check_arrays(path, spikes.shape, spikes.dtype, labels)
    return Raster(
        spikes.astype(np.uint8, copy=False), None if labels is None else labels.astype(np.int64)
    )


def stream(path: Path) -> Raster | RasterFile:
    """As ``load``, but the spikes are left on disk where they can be read in order."""
    check_readable(path, MAX_BYTES)
    with _damage_explained(path):
        with zipfile.ZipFile(path) as archive:
            if SPIKES not in archive.namelist():
                return load(path)
            with archive.open(SPIKES) as file:
                shape, fortran, dtype = _header(file)
            if fortran or dtype not in (np.uint8, np.bool_):
                return load(path)
        _check_sizes(path, but=SPIKES)
        with np.load(path, allow_pickle=False) as data:
            labels = data["labels"] if "labels" in data.files else None
    _check_arrays(path, shape, dtype, labels)
    return RasterFile(path, shape, None if labels is None else labels.astype(np.int64))


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, Fortran order and type of the array that ``file`` goes on with."""
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(file)
    raise ValueError(f"array format {version} is not known")


@contextmanager
def _open_spikes(path: Path) -> Iterator[IO[bytes]]:
    with zipfile.ZipFile(path) as archive, archive.open(SPIKES) as file:
        yield file


@contextmanager
def _damage_explained(path: Path) -> Iterator[None]:
    """What reading a broken file raises, as InputError."""
    try:
        yield
    except MemoryError:
        raise InputError(Problem(str(path), "claims an array larger than the memory")) from None
    except (
        *(ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error),
        RuntimeError,  # of zipfile, for archives that are encrypted or packed in other ways
        *(SyntaxError, tokenize.TokenError),  # of numpy, which parses a header as Python
    ) as error:
        raise InputError(
            Problem(str(path), f"is not a raster: {error}", "make one with stl-raster")
        ) from None


def _check_arrays(
    path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], labels: NDArray[Any] | None
) -> None:
    """Raise InputError unless spikes of this shape and type, and the labels, make a raster."""
    problems: list[Problem] = []
    if len(shape) < 3:
        problems.append(Problem(f"{path}: spikes", f"has shape {shape}, not [N, T, ...]"))
    if dtype not in (np.uint8, np.bool_):
        problems.append(Problem(f"{path}: spikes", f"has type {dtype}, not uint8", "convert it"))
    if 0 in shape:
        problems.append(Problem(f"{path}: spikes", f"is empty: {shape}"))
    whole = labels is not None and labels.dtype.kind in "iu" and (labels < 2**31).all()
    if labels is not None and (labels.shape != shape[:1] or not whole):
        problems.append(
            Problem(f"{path}: labels", f"{labels.dtype} {labels.shape}, not int64 {shape[:1]}")
        )
    if problems:
        raise InputError(problems)


def check_fits(raster: Source, where: str, network: IntegerNetwork) -> Source:
    """The raster, an input of ``network``, labels included. Raises InputError unless it is one.

    The values of a RasterFile are looked at when they are read.
    """
    raster = raster.fitting(where, network)
    classes, labels = network.readout.classes, raster.labels
    if labels is None:
        return raster
    if labels.shape != raster.shape[:1]:
        raise InputError(Problem(where, f"labels {labels.shape} for {raster.shape[0]} samples"))
    if ((labels < 0) | (labels >= classes)).any():
        raise InputError(
            Problem(where, f"labels {labels.min()}..{labels.max()} for {classes} classes")
        )
    return raster


def check_input(
    raster: Raster, where: str, shape: tuple[int, ...], timesteps: int, levels: int
) -> None:
    """Raise InputError unless the spikes are whole numbers [N, ``timesteps``, *``shape``] in
    0..``levels``."""
    spikes = raster.spikes
    if not isinstance(spikes, np.ndarray) or spikes.dtype.kind not in "uib":
        kind = getattr(spikes, "dtype", type(spikes).__name__)
        raise InputError(Problem(where, f"is {kind}, not an array of whole numbers", "use uint8"))
    if problems := _shape_problems(spikes.shape, where, shape, timesteps) + _value_problems(
        spikes, where, levels
    ):
        raise InputError(problems)


def _shape_problems(
    size: tuple[int, ...], where: str, shape: tuple[int, ...], timesteps: int
) -> list[Problem]:
    """What is wrong with a raster of ``size``, which should be [N, ``timesteps``, *``shape``]."""
    if len(size) < 2 or size[2:] != shape:
        return [Problem(where, f"has inputs {size[2:]}, the network reads {shape}")]
    if size[1] != timesteps:
        return [
            Problem(
                where,
                f"has {size[1]} time steps, the network was made for {timesteps}",
                f"make it with stl-raster --timesteps {timesteps}",
            )
        ]
    return []


def _value_problems(spikes: NDArray[Any], where: str, levels: int) -> list[Problem]:
    """What is wrong with spikes that should lie in 0..``levels``."""
    if not spikes.size:
        return [Problem(where, f"is empty: {spikes.shape}")]
    if spikes.min() < 0 or spikes.max() > levels:
        return [
            Problem(
                where,
                f"holds values {spikes.min()}..{spikes.max()}, the network reads 0..{levels}",
                "encode it as the network was trained (--encoding)",
            )
        ]
    return []


def _check_sizes(path: Path, but: str = "") -> None:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.file_size > MAX_BYTES and info.filename != but:
                raise ValueError(f"{info.filename} has {info.file_size} bytes, limit {MAX_BYTES}")
