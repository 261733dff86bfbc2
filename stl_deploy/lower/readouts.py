"""The host's part in whole numbers: weights of steps, units of voltages, a matrix on counts."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stl_deploy.errors import Problem
from stl_deploy.ir.network import Population
from stl_deploy.ir.notes import Diagnostic
from stl_deploy.ir.readouts import MAX_FACTOR, FloatReadout, Readout

Float = NDArray[np.float64]
Int64 = NDArray[np.int64]
STEPS_MOST = 1 << 15  # of a weight of a step that is no whole number
SUMS_MOST = 1 << 61  # of a score
LEAST_BITS = 15  # of the largest number of a matrix, besides its sign
DENOMINATORS = range(1, 1025)  # that are tried, of the smallest weight
NEAR = 1e-9  # relative: numbers that are whole but for rounding


class Whole(NamedTuple):
    """Whole numbers, and how far one of them is off at most, relative to the largest."""

    values: Int64
    error: float


def whole(
    read: FloatReadout, population: Population, worth: Float | None, timesteps: int
) -> tuple[Readout, list[Problem], list[Diagnostic]]:
    """The readout ``read`` in whole numbers.

    Args:
        read: of the float network.
        population: what it reads, in integers.
        worth: of one of the values that the population sends, [neurons or 1]; None for spikes.
        timesteps: of a sample.

    Returns:
        The readout, problems, and what was rounded.
    """
    problems: list[Problem] = []
    notes: list[Diagnostic] = []
    name = population.name

    def rounded(what: str, given: Any, most: int) -> Int64:
        found = ratio(np.asarray(given, np.float64), most)
        if found.error > NEAR:
            said = f"{what} are rounded to whole numbers, by up to {found.error:.2g} of the largest"
            notes.append(Diagnostic(name, said))
        return found.values

    fields: dict[str, Any] = {}
    steps = timesteps
    if read.steps is not None:
        fields["steps"] = tuple(rounded("weights of steps", read.steps, STEPS_MOST).tolist())
        steps = sum(map(abs, fields["steps"]))
    if read.rule == "votes":
        weights = _votes(read, population, worth)
        if weights is not None:
            levels = max(map(abs, population.neurons.span))
            most = SUMS_MOST // max(1, levels * steps * (population.size + 1))
            if most < 1 << LEAST_BITS:
                what = f"counts up to {levels * steps:,} leave fewer than {LEAST_BITS} bits for a matrix"
                problems.append(Problem(name, what, "use fewer time steps or smaller step weights"))
            table = rounded("numbers of the readout", weights, max(1, min(MAX_FACTOR, most)))
            fields |= {"matrix": table[:, :-1], "offset": table[:, -1]}
            if read.offset is None:
                del fields["offset"]
    else:
        scale = np.broadcast_to(population.neurons.scale, population.shape).reshape(-1)
        factors = scale if read.factors is None else scale * read.factors
        same = np.ptp(factors) <= NEAR * np.abs(factors).max()
        if read.rule == "first":
            if not same:
                what = (
                    "is read by its first spikes and v, and its neurons count v in different units"
                )
                problems.append(Problem(name, what, "give its neurons the same time constants"))
        elif not same or factors.flat[0] < 0:
            fields["factors"] = rounded("factors of voltages", factors, MAX_FACTOR)
    return (
        Readout(read.classes, read.population, name, read.rule, **fields),
        problems,
        notes,
    )


def _votes(read: FloatReadout, population: Population, worth: Float | None) -> Float | None:
    """[classes, neurons + 1], weights of counts and the offset; None where each counts 1."""
    unequal = worth is not None and np.ptp(worth) > NEAR * np.abs(worth).max()
    matrix = read.matrix
    if matrix is None and not unequal:
        return None
    if matrix is None:
        # A neuron speaks for its class alone.
        matrix = np.kron(np.eye(read.classes), np.ones(read.population))
    offset = np.zeros(read.classes) if read.offset is None else read.offset
    values = matrix * (1.0 if worth is None else worth)
    return np.concatenate([values, offset[:, None]], axis=1)


def ratio(exact: Float, most: int) -> Whole:
    """Whole numbers in the ratio of ``exact``: the smallest where there are such, else up to ``most``."""
    largest = float(np.abs(exact).max(initial=0))
    if not largest:
        return Whole(np.zeros(exact.shape, np.int64), 0.0)
    smallest = float(np.abs(exact[exact != 0]).min())
    for times in DENOMINATORS:
        steps = exact / smallest * times
        near = np.rint(steps)
        if (np.abs(steps - near) <= NEAR * np.abs(steps)).all() and np.abs(near).max() <= most:
            return Whole(near.astype(np.int64), 0.0)
    steps = exact / largest * most
    near = np.rint(steps)
    return Whole(near.astype(np.int64), float(np.abs(steps - near).max()) / most)
