"""Readouts of every kind, and networks in whose runs two classes are often equally good."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stl_deploy.ir.network import Connection, Input, IntegerNetwork, Population
from stl_deploy.ir.neurons import Graded, Lif
from stl_deploy.ir.readouts import MAX_FACTOR, Readout
from stl_deploy.ir.synapses import Dense

CLASSES, EACH, STEPS = 3, 2, 5
NEURONS = CLASSES * EACH
FACTORS = np.array([3, 1, 1, 3, 2, MAX_FACTOR])
WEIGHTS = (4.0, 0.0, -2.0, 1.0, float(MAX_FACTOR))
MATRIX = np.array([[1, -1, 2, 0, 1, 1], [0, 1, 0, 1, -1, 0], [1, 0, -1, 2, 0, 1]])
OFFSET = np.array([1, 1, 0])
FAR = (1 << 53) + np.array([0, 1, 1])  # one apart where float64 counts by two
VARIETIES: dict[str, dict[str, Any]] = {
    "votes": {},
    "weighted steps": {"steps": WEIGHTS},
    "matrix": {"matrix": MATRIX},
    "matrix and offset": {"matrix": MATRIX, "offset": OFFSET},
    "matrix, offset, steps": {"matrix": MATRIX, "offset": OFFSET, "steps": WEIGHTS},
    "beyond float": {"matrix": MATRIX, "offset": FAR},
    **{rule: {"rule": rule} for rule in ("last", "mean", "max", "first")},
    **{f"{rule}, factors": {"rule": rule, "factors": FACTORS} for rule in ("last", "mean", "max")},
}
ZERO, ONE = np.zeros(1, np.int32), np.ones(1)
KINDS = {
    "spikes": Lif(np.full(NEURONS, 1, np.int32), ZERO, ONE, dv=2048),
    "graded": Lif(
        np.full(NEURONS, -1, np.int32), ZERO, ONE, dv=0, reset="none", graded=Graded(6, 2)
    ),
    "integrators": Lif(np.zeros(NEURONS, np.int32), ZERO, ONE, fires=False),
}


def readout(variety: str) -> Readout:
    """One of the varieties, of the population "p"."""
    return Readout(CLASSES, EACH, "p", **VARIETIES[variety])


def network(kind: str, variety: str, chip: str) -> IntegerNetwork:
    """Two inputs into the neurons of ``kind``, some of which hear the same."""
    weight = np.array([[2, -1], [-1, 2], [2, -1], [1, 1], [0, 1], [2, 0]], np.int16)
    return IntegerNetwork(
        chip,
        STEPS,
        {"input": Input((2,))},
        (Population("p", (NEURONS,), KINDS[kind]),),
        (Connection("w", "input", "p", Dense(weight), precision="split"),),
        readout(variety),
    )


def raster() -> NDArray[np.uint8]:
    """Spikes of 200 samples for these networks."""
    return (np.random.default_rng(0).random((200, STEPS, 2)) < 0.4).astype(np.uint8)


def scores(read: Readout, sent: list[list[int]], v: list[list[int]]) -> list[Any]:
    """How good each class is in one sample, in Python's integers; by "first" the best of its neurons."""
    steps, neurons = range(len(sent)), range(NEURONS)
    of_class = [range(k * read.population, (k + 1) * read.population) for k in range(read.classes)]
    if read.rule == "first":

        def place(i: int) -> tuple[int, int]:
            first = next((t for t in steps if sent[t][i]), len(steps))
            return -first, v[min(first, len(steps) - 1)][i]

        return [max(map(place, some)) for some in of_class]
    weights = [1] * len(steps) if read.steps is None else [int(x) for x in read.steps]
    value = {
        "votes": lambda i: sum(weights[t] * sent[t][i] for t in steps),
        "last": lambda i: v[-1][i],
        "mean": lambda i: sum(v[t][i] for t in steps),
        "max": lambda i: max(v[t][i] for t in steps),
    }[read.rule]
    if read.matrix is not None:
        offset = [0] * read.classes if read.offset is None else read.offset.tolist()
        return [
            sum(w * value(i) for w, i in zip(row, neurons, strict=True)) + offset[k] * sum(weights)
            for k, row in enumerate(read.matrix.tolist())
        ]
    factors = [1] * NEURONS if read.factors is None else read.factors.tolist()
    return [sum(value(i) * factors[i] for i in some) for some in of_class]


def decided(read: Readout, sent: NDArray[Any], v: NDArray[Any] | None) -> tuple[list[int], int]:
    """The class of each sample, the first of the best ones, and in how many samples there are several.

    By "first" a neuron of a lower index comes before, so that the lower class does.
    """
    v = np.zeros(sent.shape, np.int64) if v is None else v
    found = [scores(read, *one) for one in zip(sent.tolist(), v.tolist(), strict=True)]
    return [x.index(max(x)) for x in found], sum(x.count(max(x)) > 1 for x in found)
