"""Spike rasters: recorded inputs ``*.npz`` with ``spikes`` [N, T, *shape] and ``labels``.

``spikes`` are uint8, or with a sign int8 or int16; other types are read if all values fit
(``raster_values.py``). A network with several inputs reads ``spikes/<input>`` for each. If ``held``
(``held/<input>``) is true, there is one frame [N, 1, *shape], which the network reads in every step.

One step may be laid out in another way than the network's input where no value moves: flat, or with axes of
one (``as_input``). docs/rasters.md says all of that to users.
"""

from __future__ import annotations

import json
import math
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Literal, TypeVar, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stl_deploy.errors import InputError, Problem, collected
from stl_deploy.files import atomic, check_readable
from stl_deploy.formats.raster_values import KINDS, PAGE, array_of, first, labels_of, whole
from stl_deploy.ir import network as integers
from stl_deploy.ir.network import Input, IntegerNetwork
from stl_deploy.ir.synapses import IntArray, Shape

Encoding = Literal["bernoulli", "graded"]
MAX_BYTES = 8 << 30  # of one array, decompressed
SPIKES, HELD = "spikes", "held"
ONLY = ""  # the name of an input that the file does not name
READ_IN_ORDER = (*KINDS, np.dtype(np.bool_))
Labels = NDArray[np.int64] | None


def key(what: str, name: str) -> str:
    """What an array of the input ``name`` is called in the file."""
    return what if name == ONLY else f"{what}/{name}"


@dataclass(frozen=True)
class Raster:
    """Inputs of N samples over T steps: ``spikes`` [N, T, *shape], ``labels`` int64 [N].

    ``spikes`` are those of the only input, or by name those of several. ``held`` names the inputs of one
    frame, [N, 1, *shape] (``ONLY`` for the only one); None where nothing is said about that.
    """

    spikes: integers.Raster
    labels: Labels = None
    held: frozenset[str] | None = None

    @classmethod
    def given(
        cls,
        spikes: ArrayLike | Mapping[str, ArrayLike],
        labels: ArrayLike | None = None,
        where: str = SPIKES,
    ) -> Raster:
        """The raster of arrays, torch tensors or lists, which messages call ``where``.

        Raises InputError for what is not whole numbers.
        """
        by_name = spikes if isinstance(spikes, Mapping) else {ONLY: spikes}
        problems: list[Problem] = []
        found: dict[str, IntArray] = {}
        labelled: Labels = None
        for name, values in by_name.items():
            place = _where(where, name)
            with collected(problems):
                found[name] = whole(array_of(values, place), place)
        if labels is not None:
            with collected(problems):
                labelled = labels_of(labels, "labels")
        if problems:
            raise InputError(problems)
        return cls(found.get(ONLY, found), labelled)

    @property
    def arrays(self) -> dict[str, IntArray]:
        """The spikes by the name of the input."""
        return dict(self.spikes) if isinstance(self.spikes, Mapping) else {ONLY: self.spikes}

    @property
    def shape(self) -> Shape:
        """[N, T, *shape] of the only input, [N, T] of several."""
        return _common(_shapes(self.arrays))

    @property
    def steps(self) -> int | None:
        """T, or None where every input is held."""
        return _steps(_shapes(self.arrays), self.held or frozenset())

    def only(self, where: str) -> IntArray:
        """The spikes of the only input. Raises InputError where there are several."""
        if len(self.arrays) != 1:
            what = f"holds {', '.join(key(SPIKES, name) for name in self.arrays)}; one input is read here"
            raise InputError(Problem(where, what, "save the one as spikes"))
        (spikes,) = self.arrays.values()
        return spikes

    def first(self, limit: int | None) -> Raster:
        """The first ``limit`` samples."""
        given = self.spikes
        some: integers.Raster = (
            {name: x[:limit] for name, x in given.items()}
            if isinstance(given, Mapping)
            else given[:limit]
        )
        return replace(
            self, spikes=some, labels=None if self.labels is None else self.labels[:limit]
        )

    @property
    def shapes(self) -> dict[str, Shape]:
        """[N, T, *shape] by the name of the input."""
        return _shapes(self.arrays)

    def fitting(self, where: str, network: IntegerNetwork) -> Raster:
        """The raster in the shapes of the inputs of ``network``. Raises InputError unless it is an input."""
        return self.as_inputs(where, network.inputs, network.timesteps)

    def as_inputs(self, where: str, inputs: Mapping[str, Input], timesteps: int) -> Raster:
        """The raster in the shapes of ``inputs``, which are read in ``timesteps`` steps.

        Raises InputError unless it is one of them, naming everything that is wrong.
        """
        names, problems = _matched(_shapes(self.arrays), self.held, where, inputs, timesteps)
        found = {}
        for given, name in names.items():
            port, values = inputs[name], self.arrays[given]
            some = _value_problems(values, _where(where, given), (port.lowest, port.levels))
            problems += some
            found[given] = values if problems else laid_out(values, port.shape)
        if problems:
            raise InputError(problems)
        return replace(self, spikes=found.get(ONLY, found))

    def batches(self, size: int) -> Iterator[integers.Raster]:
        """The spikes, ``size`` samples at a time."""
        given = self.spikes
        for start in range(0, self.shape[0], size):
            part = slice(start, start + size)
            if isinstance(given, Mapping):
                yield {name: x[part] for name, x in given.items()}
            else:
                yield given[part]


@dataclass(frozen=True)
class RasterFile:
    """A raster that stays on disk and is read batch by batch: it need not fit into memory.

    ``shapes`` are [N, T, *shape] by the name of the input, in which values are handed out. Values are looked
    at when they are read: they lie within ``spans``, once ``check_fits`` has said which.
    """

    path: Path
    shapes: dict[str, Shape]
    labels: Labels = None
    held: frozenset[str] = frozenset()
    spans: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def shape(self) -> Shape:
        """[N, T, *shape] of the only input, [N, T] of several."""
        return _common(self.shapes)

    @property
    def steps(self) -> int | None:
        """T, or None where every input is held."""
        return _steps(self.shapes, self.held)

    def first(self, limit: int | None) -> RasterFile:
        """The first ``limit`` samples."""
        labels = None if self.labels is None else self.labels[:limit]
        samples = len(range(self.shape[0])[:limit])
        shapes = {name: (samples, *shape[1:]) for name, shape in self.shapes.items()}
        return replace(self, shapes=shapes, labels=labels)

    def fitting(self, where: str, network: IntegerNetwork) -> RasterFile:
        """The raster in the shapes of the inputs, whose values will be checked when they are read.

        Raises InputError unless its shapes are those of the inputs of ``network``.
        """
        names, problems = _matched(self.shapes, self.held, where, network.inputs, network.timesteps)
        if problems:
            raise InputError(problems)
        shapes = {
            given: (*self.shapes[given][:2], *network.shape(name)) for given, name in names.items()
        }
        spans = {given: network.span(name) for given, name in names.items()}
        return replace(self, shapes=shapes, spans=spans)

    def batches(self, size: int) -> Iterator[integers.Raster]:
        """The spikes, ``size`` samples at a time. Raises InputError where they cannot be read."""
        with ExitStack() as stack:
            stack.enter_context(damage_explained(self.path))
            archive = stack.enter_context(zipfile.ZipFile(self.path))
            files = {
                name: stack.enter_context(archive.open(f"{key(SPIKES, name)}.npy"))
                for name in self.shapes
            }
            kinds = {name: _header(file)[2] for name, file in files.items()}
            for start in range(0, self.shape[0], size):
                count = min(size, self.shape[0] - start)
                batch: dict[str, IntArray] = {}
                problems: list[Problem] = []
                for name, file in files.items():
                    batch[name] = _read(file, kinds[name], (count, *self.shapes[name][1:]))
                    where = _where(str(self.path), name)
                    if name in self.spans:
                        problems += _value_problems(batch[name], where, self.spans[name], start)
                if problems:
                    raise InputError(problems)
                yield batch.get(ONLY, batch)


Source = Raster | RasterFile
Fits = TypeVar("Fits", bound=Source)


def _read(file: IO[bytes], kind: np.dtype[Any], shape: Shape) -> IntArray:
    """The next values of an array. Raises EOFError where there are fewer."""
    kind = kind if kind in KINDS else np.dtype(np.uint8)
    size = math.prod(shape)
    values = np.frombuffer(bytearray(file.read(size * kind.itemsize)), kind)
    if values.size < size:
        raise EOFError("spikes end early")
    return values.reshape(shape)


def _shapes(arrays: Mapping[str, IntArray]) -> dict[str, Shape]:
    return {name: x.shape for name, x in arrays.items()}


def _common(shapes: Mapping[str, Shape]) -> Shape:
    """The shape of the only one, (N, T) of several: T is that of those with most steps."""
    if len(shapes) == 1:
        return next(iter(shapes.values()))
    return next(iter(shapes.values()))[0], max(shape[1] for shape in shapes.values())


def _steps(shapes: Mapping[str, Shape], held: frozenset[str]) -> int | None:
    return next((shape[1] for name, shape in shapes.items() if name not in held), None)


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


def save(path: Path, raster: Raster, source: dict[str, Any], *, replace: bool = True) -> None:
    """Write a raster; ``source`` (seed, encoding, sha256 of the images ...) goes in as JSON.

    Raises InputError when ``path`` cannot be written, and without ``replace`` when it exists.
    """
    arrays: dict[str, Any] = {key(SPIKES, name): x for name, x in raster.arrays.items()}
    arrays |= {key(HELD, name): np.array(True) for name in sorted(raster.held or ())}
    arrays["source"] = np.array(json.dumps(source))
    if raster.labels is not None:
        arrays["labels"] = raster.labels
    with atomic(path, replace=replace) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)


def load(path: Path) -> Raster:
    """Read and check a raster. Raises InputError naming everything that is wrong with it."""
    check_readable(path, MAX_BYTES)
    with damage_explained(path):
        _check_sizes(path, ())
        with np.load(path, allow_pickle=False) as data:
            names = _inputs(data.files)
            if not names:
                raise InputError(_no_spikes(path, data.files))
            arrays = {name: data[key(SPIKES, name)] for name in names}
            labels = data["labels"] if "labels" in data.files else None
            held = _held(path, data, names)
    found: dict[str, IntArray] = {}
    problems: list[Problem] = []
    with collected(problems):
        labels = _checked(path, _shapes(arrays), labels, held)
    for name, values in arrays.items():
        with collected(problems):
            found[name] = whole(values, f"{path}: {key(SPIKES, name)}")
    if problems:
        raise InputError(problems)
    return Raster(found.get(ONLY, found), labels, held)


def stream(path: Path) -> Raster | RasterFile:
    """As ``load``, but the spikes are left on disk where they can be read in order."""
    check_readable(path, MAX_BYTES)
    with damage_explained(path):
        with zipfile.ZipFile(path) as archive:
            members = [n.removesuffix(".npy") for n in archive.namelist() if n.endswith(".npy")]
            names = _inputs(members)
            shapes: dict[str, Shape] = {}
            for name in names:
                with archive.open(f"{key(SPIKES, name)}.npy") as file:
                    shapes[name], fortran, kind = _header(file)
                if fortran or kind not in READ_IN_ORDER:
                    return load(path)
        if not names:
            return load(path)
        _check_sizes(path, [f"{key(SPIKES, name)}.npy" for name in names])
        with np.load(path, allow_pickle=False) as data:
            labels = data["labels"] if "labels" in data.files else None
            held = _held(path, data, names)
    return RasterFile(path, shapes, _checked(path, shapes, labels, held), held)


def _inputs(keys: list[str]) -> list[str]:
    """The inputs of a file: ``ONLY`` where it has ``spikes``, else the names in ``spikes/<name>``."""
    if SPIKES in keys:
        return [ONLY]
    return [k.removeprefix(f"{SPIKES}/") for k in keys if k.startswith(f"{SPIKES}/")]


def _no_spikes(path: Path, keys: list[str]) -> Problem:
    what = f"holds no array 'spikes' or 'spikes/<input>' (only {', '.join(keys)})"
    return Problem(str(path), what, f"save the array as {SPIKES} ({PAGE})")


def _held(path: Path, data: Any, names: list[str]) -> frozenset[str]:
    """The inputs that are held. Raises InputError for what is not one true or false each."""
    found = {name: data[key(HELD, name)] for name in names if key(HELD, name) in data.files}
    problems = [
        Problem(f"{path}: {key(HELD, name)}", f"is {value.dtype} {value.shape}, not true or false")
        for name, value in found.items()
        if value.shape != () or value.dtype != np.bool_
    ]
    if problems:
        raise InputError(problems)
    return frozenset(name for name, value in found.items() if value)


def _header(file: IO[bytes]) -> tuple[Shape, bool, np.dtype[Any]]:
    """Shape, Fortran order and type of the array that ``file`` goes on with."""
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(file)
    raise ValueError(f"array format {version} is not known")


@contextmanager
def damage_explained(
    path: Path, kind: str = "a raster", remedy: str = f"make one with stl-raster ({PAGE})"
) -> Iterator[None]:
    """What reading a broken NPZ file raises, as InputError: that it is not of this ``kind``."""
    try:
        yield
    except InputError:
        raise
    except MemoryError:
        raise InputError(Problem(str(path), "claims an array larger than the memory")) from None
    except (
        *(ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error),
        RuntimeError,  # of zipfile, for archives that are encrypted or packed in other ways
        *(SyntaxError, tokenize.TokenError),  # of numpy, which parses a header as Python
    ) as error:
        raise InputError(Problem(str(path), f"is not {kind}: {error}", remedy)) from None


def _checked(
    path: Path, shapes: Mapping[str, Shape], labels: NDArray[Any] | None, held: frozenset[str]
) -> Labels:
    """The labels. Raises InputError unless spikes of these shapes, and the labels, make a raster."""
    problems: list[Problem] = []
    for name, shape in shapes.items():
        where = f"{path}: {key(SPIKES, name)}"
        if len(shape) < 3:
            remedy = f"add the axes of samples and of time steps ({PAGE})"
            problems.append(Problem(where, f"has shape {shape}, not [N, T, ...]", remedy))
        if 0 in shape:
            problems.append(Problem(where, f"is empty: {shape}"))
        if name in held and shape[1:2] != (1,):
            what = f"is held, and has {shape[1:2]} steps; one frame is held"
            problems.append(Problem(where, what, f"save it without {key(HELD, name)}"))
    samples = {shape[:1] for shape in shapes.values()}
    if len(samples) > 1:
        counts = ", ".join(f"{shape[:1]} of {name}" for name, shape in shapes.items())
        problems.append(Problem(str(path), f"holds different numbers of samples: {counts}"))
    count, checked = next(iter(shapes.values()))[:1], None
    if labels is not None:
        where = f"{path}: labels"
        with collected(problems):
            checked = labels_of(labels, where)
            if checked.shape != count:
                remedy = "give one label for each sample"
                what = f"has shape {checked.shape} for samples {count}"
                problems.append(Problem(where, what, remedy))
    if problems:
        raise InputError(problems)
    return checked


def check_fits(raster: Fits, where: str, network: IntegerNetwork) -> Fits:
    """The raster in the shapes of the inputs of ``network``, with labels of its classes.

    Raises InputError unless it is an input. The values of a RasterFile are looked at when they are read.
    """
    raster = cast(Fits, raster.fitting(where, network))
    classes, labels = network.readout.classes, raster.labels
    if labels is None:
        return raster
    if labels.shape != raster.shape[:1]:
        what = f"labels {labels.shape} for {raster.shape[0]} samples"
        raise InputError(Problem(where, what, "give one label for each sample"))
    beyond = (labels < 0) | (labels >= classes)
    if beyond.any():
        what = f"labels {labels.min()}..{labels.max()} for {classes} classes"
        remedy = f"give labels from 0 to {classes - 1}; {first('labels', labels, beyond)}"
        raise InputError(Problem(where, what, remedy))
    return raster


def _where(where: str, name: str) -> str:
    return where if name == ONLY else f"{where}: {key(SPIKES, name)}"


def _matched(
    shapes: Mapping[str, Shape],
    held: frozenset[str] | None,
    where: str,
    inputs: Mapping[str, Input],
    timesteps: int,
) -> tuple[dict[str, str], list[Problem]]:
    """The input that each name of a raster stands for, and what is wrong with their shapes [N, T, ...]."""
    names = {name: name for name in shapes}
    if ONLY in shapes and len(inputs) == 1:
        names = {ONLY: next(iter(inputs))}
    if set(names.values()) != set(inputs):
        has = ", ".join(key(SPIKES, name) for name in shapes)
        what = f"has {has}, the network reads {', '.join(inputs)}"
        wanted = ", ".join(key(SPIKES, name) for name in inputs)
        remedy = f"save {wanted}; in Python give a dictionary by these names"
        return {}, [Problem(where, what, remedy)]
    problems: list[Problem] = []
    samples = {name: shape[0] for name, shape in shapes.items() if shape}
    if len(set(samples.values())) > 1:
        counts = ", ".join(f"{count} of {name}" for name, count in samples.items())
        what = f"has different numbers of samples: {counts}"
        problems.append(Problem(where, what, "give as many samples of each input"))
    for given, name in names.items():
        said = None if held is None else given in held
        place = _where(where, given)
        problems += _shape_problems(shapes[given], place, inputs[name], said, timesteps)
    return names, problems


def _shape_problems(
    size: Shape, where: str, port: Input, held: bool | None, timesteps: int
) -> list[Problem]:
    """What is wrong with a raster of ``size``; ``held`` is what is said of it, None for nothing."""
    steps = 1 if port.held else timesteps
    if (remedy := _other_axes(size, port.shape, steps)) is not None:
        what = (
            f"has shape {size}, the network reads [N, {', '.join(map(str, (steps, *port.shape)))}]"
        )
        return [Problem(where, what, remedy)]
    if port.held and (size[1] != 1 or held is False):
        what = f"has {size[1]} time steps, the network reads one frame in every step (held)"
        return [
            Problem(
                where,
                what,
                "make it with stl-raster --held, or save its first step, spikes[:, :1], with held = True",
            )
        ]
    if held and not port.held:
        what = f"is one frame (held), the network reads one in each of {timesteps} steps"
        remedy = (
            f"save np.repeat(spikes, {timesteps}, axis=1) without held, or make it with stl-raster "
            f"--timesteps {timesteps} --encoding graded"
        )
        return [Problem(where, what, remedy)]
    if not port.held and size[1] != timesteps:
        return [
            Problem(
                where,
                f"has {size[1]} time steps, the network was made for {timesteps}",
                f"give a raster of {timesteps} steps, or if the model does not say its steps, export again "
                f"with --timesteps {size[1]} (or --eval {where})",
            )
        ]
    return []


def as_input(size: Shape, shape: Shape) -> bool:
    """Whether a step of ``size`` is one of ``shape`` with every value in its place, in C order.

    They differ in axes of one, or but for these one of them is flat.
    """
    given, read = ([n for n in axes if n != 1] for axes in (size, shape))
    flat = min(len(given), len(read)) < 2
    return given == read or (flat and math.prod(size) == math.prod(shape))


def laid_out(values: IntArray, shape: Shape) -> IntArray:
    """``values`` [N, T, ...] as [N, T, *shape]."""
    return values if values.shape[2:] == shape else values.reshape(*values.shape[:2], *shape)


def _other_axes(size: Shape, shape: Shape, steps: int) -> str | None:
    """What to do about a raster of ``size`` whose axes are not [N, ``steps``, *``shape``]; None: nothing.

    Another number of steps alone is not about axes.
    """
    fits = len(size) > 2 and as_input(size[2:], shape)
    if fits and size[1] == steps:
        return None
    untimed = len(size) > 1 and (size[1:] == shape or (not fits and as_input(size[1:], shape)))
    if untimed and size[0] == steps:
        return "add the axis of samples: spikes[None]"
    if fits and size[0] == steps:
        return "samples come first: give spikes.swapaxes(0, 1)"
    if untimed:
        add = "spikes[:, None]" if steps == 1 else f"np.repeat(spikes[:, None], {steps}, axis=1)"
        return f"add the axis of time: {add}, or encode each step by stl-raster ({PAGE})"
    if fits:
        return None
    if len(size) > 3 and (size[-1], *size[2:-1]) == shape:
        return "channels come first: give np.moveaxis(spikes, -1, 2)"
    what = f"{shape}" if len(shape) == 1 else f"{shape} or ({math.prod(shape)},)"
    return f"give samples, steps, and {what} values in each ({PAGE})"


def _value_problems(
    spikes: NDArray[Any], where: str, span: tuple[int, int], start: int = 0
) -> list[Problem]:
    """What is wrong with spikes [N, ...] that should lie within ``span``; the first is sample ``start``."""
    if not spikes.size:
        return [Problem(where, f"is empty: {spikes.shape}", "give at least one sample")]
    low, high = span
    least, most = int(spikes.min()), int(spikes.max())
    if low <= least and most <= high:
        return []
    remedy = "encode it as the network was trained (--encoding)"
    if least < 0 <= low:
        remedy = (
            "give values from 0, or import a model that reads a sign with --signed (signed=True)"
        )
    elif high == 1 and low == 0:
        remedy = "give spikes 0 and 1, or import a model that reads counts with --levels (levels=N)"
    at = first("spikes", spikes, (spikes < low) | (spikes > high), start)
    what = f"holds values {least}..{most}, the network reads {low}..{high}; {at}"
    return [Problem(where, what, remedy)]


def _check_sizes(path: Path, but: tuple[str, ...] | list[str]) -> None:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.file_size > MAX_BYTES and info.filename not in but:
                raise ValueError(f"{info.filename} has {info.file_size} bytes, limit {MAX_BYTES}")
