"""Recordings: what the neurons of a network sent in another tool, ``*.npz``, to compare a reading with.

``spikes/<population>`` [N, T, *shape] are the spikes of one population, ``outputs`` [N, T, classes] what left
the network in each step, or [N, classes] what came of all steps. The samples are the first N of a raster, in
its order. A file is untrusted: its arrays are bounded, and nothing in it is unpickled.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stl_deploy.errors import InputError, Problem
from stl_deploy.files import check_readable
from stl_deploy.formats.raster import damage_explained
from stl_deploy.formats.raster_values import array_of
from stl_deploy.ir.floats import FloatNetwork, FloatPopulation

MAX_BYTES = 8 << 30  # of all arrays together, decompressed
SPIKES, OUTPUTS = "spikes/", "outputs"
NAMED = 12  # populations that a message names
SAVE = 'np.savez("recording.npz", **{"spikes/lif1": spikes}), spikes [N, T, *shape]'
PAGE = "docs/recordings.md"

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Recording:
    """What was recorded of N samples over T steps: spikes by population, and what left the network.

    ``where`` is what messages call it: its file.
    """

    where: str
    spikes: Mapping[str, Array]
    outputs: Array | None = None

    @property
    def samples(self) -> int:
        """N."""
        arrays = (*self.spikes.values(), *(() if self.outputs is None else (self.outputs,)))
        return len(arrays[0])

    def first(self, limit: int | None) -> Recording:
        """The first ``limit`` samples."""
        spikes = {name: values[:limit] for name, values in self.spikes.items()}
        return replace(
            self, spikes=spikes, outputs=None if self.outputs is None else self.outputs[:limit]
        )


def load(path: Path) -> Recording:
    """Read a recording. Raises InputError naming everything that is wrong with it."""
    check_readable(path, MAX_BYTES)
    with damage_explained(path, "a recording", f"save {SAVE}; {PAGE}"):
        with zipfile.ZipFile(path) as archive:
            size = sum(info.file_size for info in archive.infolist())
        if size > MAX_BYTES:
            raise ValueError(f"its arrays have {size:,} bytes, limit {MAX_BYTES:,}")
        with np.load(path, allow_pickle=False) as data:
            return of({name: data[name] for name in data.files}, str(path))


def given(what: str | Path | Mapping[str, Any]) -> Recording:
    """That of a file, or of arrays by name. Raises InputError naming everything that is wrong."""
    return load(Path(what)) if isinstance(what, str | Path) else of(what)


def of(arrays: Mapping[str, Any], where: str = "expect") -> Recording:
    """The recording that arrays by name are. Raises InputError naming everything that is wrong."""
    problems = [
        Problem(f"{where}: {key}", "is not part of a recording", f"save {SAVE}; {PAGE}")
        for key in arrays
        if key != OUTPUTS and not key.startswith(SPIKES)
    ]
    if not arrays:
        problems.append(Problem(where, "holds no arrays", f"save {SAVE}; {PAGE}"))
    found = {key: array_of(values, f"{where}: {key}") for key, values in arrays.items()}
    for key, values in found.items():
        least = 2 if key == OUTPUTS else 3
        if (wrong := _wrong(values, least)) is not None:
            problems.append(Problem(f"{where}: {key}", *wrong))
    counts = {len(values) for values in found.values() if values.ndim}
    if len(counts) > 1:
        what = f"holds different numbers of samples: {', '.join(map(str, sorted(counts)))}"
        problems.append(Problem(where, what, "record the same samples of every population"))
    if problems:
        raise InputError(problems)
    spikes = {key.removeprefix(SPIKES): x for key, x in found.items() if key != OUTPUTS}
    return Recording(where, spikes, found.get(OUTPUTS))


def _wrong(values: Array, least: int) -> tuple[str, str] | None:
    """What is wrong with an array of a recording, and the remedy."""
    if values.dtype.kind not in "uifb":
        return f"has type {values.dtype}, not numbers", "save it as uint8 or float32"
    if values.ndim < least:
        axes = "[N, T, *shape]" if least > 2 else "[N, T, classes] or [N, classes]"
        return f"has shape {values.shape}, not {axes}", "keep the axes of samples and steps"
    if not values.size:
        return f"is empty: {values.shape}", "record at least one sample"
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        return "contains NaN or infinite values", "record it again"
    return None


def fitted(recording: Recording, network: FloatNetwork, size: tuple[int, int]) -> Recording:
    """The recording with all spikes as [N, T, *shape] of ``network``; ``size`` is (N, T) of the raster.

    Raises InputError naming every array that is not one of its populations, or has another shape.
    """
    problems: list[Problem] = []
    spikes = {}
    if recording.samples > size[0]:
        what = f"holds {recording.samples:,} samples, the raster {size[0]:,}"
        problems.append(Problem(recording.where, what, "record the samples of the raster"))
    for name, values in recording.spikes.items():
        where = f"{recording.where}: {SPIKES}{name}"
        population = network.by_name.get(name)
        if population is None:
            problems.append(Problem(where, *_unknown(network)))
            continue
        wrong = _misfit(values, population, size[1]) or _not_sent(values, population)
        if wrong is not None:
            problems.append(Problem(where, *wrong))
        else:
            spikes[name] = values.reshape(*values.shape[:2], *population.shape)
    if recording.outputs is not None:
        wrong = _outputs_misfit(recording.outputs, network, size[1])
        problems += [Problem(f"{recording.where}: {OUTPUTS}", *wrong)] if wrong else []
    if problems:
        raise InputError(problems)
    return replace(recording, spikes=spikes)


def _unknown(network: FloatNetwork) -> tuple[str, str]:
    names = [p.name for p in network.populations if p.neurons.fires or p.neurons.graded]
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return "is not a population of the model", f"it has {', '.join(names[:NAMED])}{more}"


def _misfit(values: Array, population: FloatPopulation, steps: int) -> tuple[str, str] | None:
    """Why an array does not have the shape of a population's spikes, and the remedy."""
    shape = population.shape
    wanted = f"[N, {steps}, {', '.join(map(str, shape))}]"
    what = f"has shape {values.shape}, not {wanted}"
    if values.shape[2:] not in (shape, (math.prod(shape),)):
        return what, "record all its neurons, samples first, then steps"
    if values.shape[1] == steps:
        return None
    if values.shape[0] == steps:
        return what, "put samples first: spikes.swapaxes(0, 1)"
    return what, f"record all {steps} steps, or give the raster that was recorded"


def _not_sent(values: Array, population: FloatPopulation) -> tuple[str, str] | None:
    """Why a population cannot have sent such values."""
    if population.neurons.graded:
        return None
    if not population.neurons.fires:
        return "is a population without a threshold", "record outputs instead"
    if values.dtype.kind == "f" and (values != np.rint(values)).any():
        value = float(values[values != np.rint(values)].flat[0])
        return f"holds {value:g}, not numbers of spikes", "divide spikes by their amplitude"
    if values.min() < 0:
        return f"holds {values.min():g}, not numbers of spikes", "record what its neurons send"
    return None


def widths(network: FloatNetwork) -> tuple[int, ...]:
    """How many values may leave a network in a step: one per class, or one per neuron of the readout."""
    readout, neurons = network.readout, network.by_name[network.output].size
    if readout is None:
        return (neurons,)
    return tuple(
        dict.fromkeys((readout.classes, *(() if readout.matrix is not None else (neurons,))))
    )


def _outputs_misfit(values: Array, network: FloatNetwork, steps: int) -> tuple[str, str] | None:
    """Why an array is not what leaves the network."""
    width, wanted = math.prod(values.shape[2:]), widths(network)
    some = " or ".join(map(str, wanted))
    if values.ndim == 2:
        if values.shape[1] in wanted:
            return None
        return f"has shape {values.shape}, not [N, {some}]", "record one value per class"
    what = f"has shape {values.shape}, not [N, {steps}, {some}]"
    if width not in wanted:
        return what, "record one value per step and class"
    if values.shape[1] == steps:
        return None
    swap = values.shape[0] == steps
    return what, "put samples first: outputs.swapaxes(0, 1)" if swap else "record all steps"
