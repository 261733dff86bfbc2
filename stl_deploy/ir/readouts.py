"""The host's part: from what the last neurons did to a class, in whole numbers or in float."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray

Rule = Literal["votes", "last", "mean", "max", "first"]
Int64 = NDArray[np.int64]
Numbers = NDArray[Any]  # of a readout's kind
MAX_FACTOR = 1 << 20  # of a voltage or a step: sums over all steps stay within 64 bits


@dataclass(frozen=True, eq=False)
class Readout:
    """How classes are scored. The first class with the highest score is the prediction.

    Class k is that of neurons k*population .. (k+1)*population-1 of ``source``. Its score is the sum over
    them of what ``rule`` says of each neuron: what it sent, added up over the steps ("votes"), or the v that
    a step leaves: in the last step, its sum over all, the highest ("last", "mean", "max"). By "first" the
    class of the neuron that spiked first wins: of several the one with the largest v after that step, then
    the one with the lowest index. Neurons that never spiked come behind, by the v of the last step.

    Attributes:
        steps: whole weight of each step [T] in the votes.
        factors: int64 [neurons], by which the voltages of neurons are multiplied, so that they compare.
        matrix: int64 [classes, neurons], which weighs the votes of neurons; each neuron then speaks for all
            classes, and ``population`` means nothing.
        offset: int64 [classes], added to the score of a class in every step, beside a matrix.
    """

    classes: int
    population: int
    source: str = ""
    rule: Rule = "votes"
    steps: tuple[float, ...] | None = None
    factors: Numbers | None = None
    matrix: Numbers | None = None
    offset: Numbers | None = None

    kind: ClassVar[type] = np.int64

    def __post_init__(self) -> None:
        """Raise ValueError for what contradicts itself."""
        if self.rule not in get_args(Rule):
            raise ValueError(f"no readout is by {self.rule!r}; choose from {get_args(Rule)}")
        votes = self.rule == "votes"
        wrong = {
            "steps": self.steps is not None and not votes,
            "matrix": self.matrix is not None and not votes,
            "factors": self.factors is not None and self.rule not in ("last", "mean", "max"),
            "offset": self.offset is not None and self.matrix is None,
        }
        if names := [name for name, bad in wrong.items() if bad]:
            raise ValueError(f"a readout by {self.rule!r} has no {' and '.join(names)}")
        if self.kind is np.int64:
            self._check_whole()

    def _check_whole(self) -> None:
        given = {name: getattr(self, name) for name in ("steps", "factors", "matrix", "offset")}
        for name, values in given.items():
            if values is not None and (np.asarray(values) % 1 != 0).any():
                raise ValueError(f"{name}: a network of integers is read out in whole numbers")
        large = [np.abs(x).max() for x in (self.steps, self.factors) if x is not None]
        if large and max(large) > MAX_FACTOR:
            raise ValueError(f"a factor of {max(large)}; {MAX_FACTOR} is the largest")

    @property
    def by_voltage(self) -> bool:
        """Whether v of the source is needed."""
        return self.rule != "votes"

    @property
    def by_spikes(self) -> bool:
        """Whether what the source sends is needed."""
        return self.rule in ("votes", "first")

    def reads(self, timesteps: int) -> int:
        """How often the host reads v of each neuron in a sample of so many steps.

        By "first" that is once, after its first spike, or after the last step where it has none.
        """
        return {"votes": 0, "first": 1, "last": 1, "mean": timesteps, "max": timesteps}[self.rule]

    def fits(self, neurons: int) -> bool:
        """Whether a source of so many neurons can be read out."""
        if self.matrix is not None:
            return self.matrix.shape == (self.classes, neurons)
        return neurons == self.classes * self.population

    def misfit(self, neurons: int, timesteps: int) -> str | None:
        """Why a source of so many neurons cannot be read out for so many steps; None where it can."""
        if not self.fits(neurons):
            return f"{neurons} neurons; the readout is of {self._size()}"
        if self.factors is not None and self.factors.shape != (neurons,):
            return f"{self.factors.size} factors for {neurons} neurons"
        if self.offset is not None and self.offset.shape != (self.classes,):
            return f"{self.offset.size} offsets for {self.classes} classes"
        if self.steps is not None and len(self.steps) < timesteps:
            return f"weights of {len(self.steps)} steps; {timesteps} are needed"
        return None

    def _size(self) -> str:
        if self.matrix is not None:
            return f"{list(self.matrix.shape)} [classes, neurons], for {self.classes} classes"
        return f"{self.classes} classes of {self.population}"

    def scores(self, sent: Numbers, v: Numbers | None = None) -> Numbers:
        """[N, classes] for what the source sent, and v after each step, both [N, T, ...].

        Raises ValueError where v is needed and not given.
        """
        sent = sent.reshape(*sent.shape[:2], -1)
        if self.rule == "votes":
            return self._votes(sent)
        if v is None:
            raise ValueError(f"a readout by {self.rule!r} needs v")
        v = v.reshape(sent.shape)
        if self.rule == "first":
            best: Int64 = self._grouped(_ranks(sent, v)).max(axis=2)
            return best
        v = v.astype(self.kind)
        value = {"last": v[:, -1], "mean": v.sum(axis=1), "max": v.max(axis=1)}[self.rule]
        return self._sums(value if self.factors is None else value * self.factors)

    def predict(self, sent: Numbers, v: Numbers | None = None) -> Int64:
        """Class of each sample, the first of those with the highest score."""
        best: Int64 = self.scores(sent, v).argmax(axis=1)
        return best

    def multiplications(self, sent: Numbers) -> Int64:
        """Votes other than 0 that meet weights of the matrix other than 0, [N], for ``sent`` [N, T, ...]."""
        if self.matrix is None:
            return np.zeros(len(sent), np.int64)
        counts = self._counts(sent.reshape(*sent.shape[:2], -1))
        met: Int64 = (counts != 0) @ np.count_nonzero(self.matrix, axis=0)
        return met

    def _counts(self, sent: Numbers) -> Numbers:
        if self.steps is None:
            return np.asarray(sent.sum(axis=1, dtype=self.kind))
        weights: Numbers = np.array(self.steps[: sent.shape[1]], self.kind)
        return np.asarray(np.einsum("t,nti->ni", weights, sent.astype(self.kind)))

    def _votes(self, sent: Numbers) -> Numbers:
        counts = self._counts(sent)
        if self.matrix is None:
            return self._sums(counts)
        times = sent.shape[1] if self.steps is None else sum(self.steps[: sent.shape[1]])
        offset = 0 if self.offset is None else self.offset * times
        return np.asarray(counts @ self.matrix.T + offset)

    def _sums(self, values: Numbers) -> Numbers:
        return np.asarray(self._grouped(values).sum(axis=2))

    def _grouped(self, values: Numbers) -> Numbers:
        return values.reshape(len(values), self.classes, self.population)


@dataclass(frozen=True, eq=False)
class FloatReadout(Readout):
    """The same of a float network, in float64."""

    kind: ClassVar[type] = np.float64


def _ranks(sent: Numbers, v: Numbers) -> Int64:
    """int64 [N, neurons]: how many neurons come behind each, by first spike, then v, then index."""
    samples, steps, neurons = sent.shape
    fired = sent != 0
    never = ~fired.any(axis=1)
    first = np.where(never, steps, fired.argmax(axis=1))
    at = np.take_along_axis(v, np.minimum(first, steps - 1)[:, None], axis=1)[:, 0]
    index = np.broadcast_to(np.arange(neurons), (samples, neurons))
    order = np.lexsort((index, -at, first), axis=1)
    ranks = np.empty((samples, neurons), np.int64)
    np.put_along_axis(ranks, order, np.arange(neurons, 0, -1)[None] - 1, axis=1)
    return ranks
