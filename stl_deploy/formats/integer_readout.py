"""The readout of an integer network in a NIR graph.

A matrix is a Linear between the last neurons and the Output, an Affine where it has an offset. The weights
of steps and the factors of neurons are int64 arrays ``steps`` [T] and ``factors`` [neurons] in the
``metadata`` of the Output. The rule is in the JSON string.
"""

from __future__ import annotations

import math
from typing import Any

import nir
import numpy as np
from numpy.typing import NDArray

from stl_deploy.chips import facts as chips
from stl_deploy.errors import Problem
from stl_deploy.formats import integer_meta as M
from stl_deploy.formats.integer_rules import integers
from stl_deploy.ir import kinds
from stl_deploy.ir.network import IntegerNetwork, Population
from stl_deploy.ir.readouts import MAX_FACTOR, Readout

MAX_WEIGHT = 1 << 40  # of a matrix and its offset
SCORES = float(1 << 62)  # what scores stay below
UNBOUNDED = 1 << 31  # that v of a chip without registers is taken to stay below
REMEDY = "divide the weights of the readout by a common factor"


def node(readout: Readout) -> nir.Linear | nir.Affine | None:
    """The matrix of ``readout``, None where it has none."""
    if readout.matrix is None:
        return None
    matrix = readout.matrix.astype(np.int64)
    if readout.offset is None:
        return nir.Linear(weight=matrix)
    return nir.Affine(weight=matrix, bias=readout.offset.astype(np.int64))


def arrays(readout: Readout) -> dict[str, NDArray[np.int64]]:
    """The arrays of the output's node."""
    found = {"steps": readout.steps, "factors": readout.factors}
    return {name: np.asarray(x).astype(np.int64) for name, x in found.items() if x is not None}


def unsaid(readout: Readout) -> list[str]:
    """What of a readout stands in the metadata alone: rules and fields of ``Readout``."""
    words = (word.removeprefix("readout ") for word in kinds.features(readout))
    return [word for word in words if word != "matrix"]


def problems(network: IntegerNetwork) -> list[Problem]:
    """Why a file cannot hold the readout of ``network``."""
    readout, population = network.readout, network.by_name[network.readout.source]
    try:
        for name, most in (("matrix", MAX_WEIGHT), ("offset", MAX_WEIGHT)):
            if (values := getattr(readout, name)) is not None:
                integers(values, name, -most, most)
        for name, values in (("steps", readout.steps), ("factors", readout.factors)):
            if values is not None:
                integers(np.asarray(values), name, -MAX_FACTOR, MAX_FACTOR)
        check(readout, population, chips.of(network), network.timesteps)
    except ValueError as error:
        return [Problem("readout", str(error), REMEDY)]
    return []


def read(
    meta: M.ReadoutMeta,
    matrix: nir.Linear | nir.Affine | None,
    output: nir.Output,
    population: Population,
    chip: chips.Chip,
    timesteps: int,
) -> Readout:
    """The readout. Raises ValueError for what is not an integer, out of its range, or contradicts."""
    if strange := sorted(map(str, output.metadata.keys() - {"steps", "factors"})):
        raise ValueError(
            f"the output's metadata has {strange[0][:40]!r}, not steps or factors alone"
        )
    found: dict[str, Any] = {}
    for name, array in output.metadata.items():
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "iu" or array.ndim != 1:
            raise ValueError(f"{name} in the output's metadata is not a row of integers")
        found[name] = integers(array, name, -MAX_FACTOR, MAX_FACTOR)
    if matrix is not None:
        found["matrix"] = integers(matrix.weight, "matrix", -MAX_WEIGHT, MAX_WEIGHT)
    if isinstance(matrix, nir.Affine):
        found["offset"] = integers(matrix.bias, "offset", -MAX_WEIGHT, MAX_WEIGHT)
    if "steps" in found:
        found["steps"] = tuple(found["steps"].tolist())
    readout = Readout(meta.classes, meta.population, meta.source, meta.rule, **found)
    check(readout, population, chip, timesteps)
    return readout


def check(readout: Readout, population: Population, chip: chips.Chip, timesteps: int) -> None:
    """Raise ValueError for a readout that does not fit its source, or whose scores may leave 64 bits."""
    size = population.size
    if not readout.fits(size):
        what = f"{size} outputs for {readout.classes} classes of {readout.population}"
        if readout.matrix is not None:
            what = (
                f"a matrix {readout.matrix.shape} for {size} outputs and {readout.classes} classes"
            )
        raise ValueError(what)
    if readout.offset is not None and readout.offset.shape != (readout.classes,):
        raise ValueError(f"offsets of shape {readout.offset.shape} for {readout.classes} classes")
    if readout.steps is not None and len(readout.steps) != timesteps:
        raise ValueError(f"weights of {len(readout.steps)} steps, and the network runs {timesteps}")
    if readout.factors is not None and readout.factors.shape != (size,):
        raise ValueError(f"factors of shape {readout.factors.shape} for {size} outputs")
    if (most := _largest(readout, population, chip, timesteps)) >= SCORES:
        raise ValueError(f"its scores may reach {most:.3g}, beyond {SCORES:.3g}")


def _largest(readout: Readout, population: Population, chip: chips.Chip, timesteps: int) -> float:
    """No score is larger."""
    if readout.rule == "first":
        return population.size
    if readout.rule == "votes":
        weights = [1] * timesteps if readout.steps is None else readout.steps
        total = math.fsum(map(abs, weights))
        count = total * max(map(abs, population.neurons.span))
        if readout.matrix is None:
            return count * readout.population
        rows = np.abs(readout.matrix).sum(axis=1, dtype=np.float64) * count
        offset = (
            0.0 if readout.offset is None else np.abs(readout.offset).astype(np.float64) * total
        )
        return float((rows + offset).max())
    largest = UNBOUNDED if chip.state_limit is None else chip.state_limit
    steps = timesteps if readout.rule == "mean" else 1
    factor = np.ones(1) if readout.factors is None else np.abs(readout.factors)
    return float(factor.max()) * largest * steps * readout.population
