"""What came of comparing a float graph with a recording of the network in its own tool, in figures and words.

``against_recording.py`` compares; here are its results, as data, as JSON and as failures.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from stl_deploy.errors import Problem, StlError
from stl_deploy.ir.float_neurons import FloatReset
from stl_deploy.ir.read_as import Property, ReadAs
from stl_deploy.ir.synapses import Shape

PAGE = "docs/recordings.md"
TIED = 50  # one tie in so many entries is more than rounding makes
# Of how a population was read, what a message says.
SAID: tuple[Property, ...] = ("reset", "when", "dt", "spikes")
OTHER: dict[str, FloatReset] = {"zero": "subtract", "subtract": "zero"}


class ReadingError(StlError):
    """The float graph is not the network that was recorded (exit 1)."""

    exit_code = 1


@dataclass(frozen=True)
class Miss:
    """An entry that differs: ``recorded`` of a neuron, and what the reading ``gives``.

    ``v`` and ``threshold`` are those of the reading in this step, before a reset; the threshold is None of
    neurons that rest.
    """

    sample: int
    step: int
    neuron: Shape
    recorded: float
    gives: float
    v: float
    threshold: float | None

    @property
    def text(self) -> str:
        """In words."""
        limit = "it rests" if self.threshold is None else f"threshold {self.threshold:.6g}"
        where = ", ".join(map(str, self.neuron))
        return (
            f"sample {self.sample}, step {self.step}, neuron ({where}): recorded {self.recorded:g}, here "
            f"{self.gives:g} (v {self.v:.6g}, {limit})"
        )


@dataclass(frozen=True)
class RecordedPopulation:
    """One population, which was given what its sources were recorded to send.

    Attributes:
        entries: samples x steps x neurons that were recorded.
        spikes: of them, how many are not 0; ``most`` is the largest.
        differing: entries in which the reading differs, from the first difference of a neuron on.
        tied: entries that do not count: at the first difference of their neuron v was as near to the
            threshold as rounding in the other tool may move it.
        cascaded: entries that differ where the reading runs from the raster alone.
        first: the first difference that is not a tie.
        read: how the population was read, None where nobody noted it.
        reset: another reset, with which this population would differ far less.
    """

    name: str
    entries: int
    spikes: int
    most: float
    differing: int
    tied: int
    cascaded: int
    first: Miss | None
    read: ReadAs | None
    reset: str | None = None

    @property
    def how(self) -> str:
        """How it was read, and what of that was assumed."""
        if self.read is None:
            return ""
        words: dict[Property, str] = {
            "reset": f"reset {self.read.reset}",
            "when": self.read.when,
            "dt": "" if self.read.dt is None else f"dt {self.read.dt:g}",
            "spikes": "" if self.read.spikes is None else f"{self.read.spikes} per step",
        }
        said = [
            f"{words[name]} (assumed)" if name in self.read.assumed else words[name]
            for name in SAID
            if words[name]
        ]
        return f"{self.read.neuron}: {', '.join(said)}"

    def problem(self, where: str, missing: tuple[str, ...], remedy: str) -> Problem | None:
        """What is wrong, None where nothing is; see ``Expected``."""
        if self.first is None:
            return None
        what = (
            f"{self.differing:,} of {self.entries:,} spikes differ from {where}; {self.first.text}"
        )
        if self.how:
            what += f". Read as {self.how}"
        return Problem(self.name, what, remedy or self._remedy(missing))

    def _remedy(self, missing: tuple[str, ...]) -> str:
        limit = 1 if self.read is None else self.read.spikes
        if limit is not None and self.most > limit:
            return (
                f"the recording has up to {self.most:g} spikes in a step: train or record with one spike "
                "per step at most"
            )
        if self.reset is not None:
            better = f"with reset {self.reset} far fewer differ"
            if self.read is not None and self.read.origin.get("reset", "file") == "file":
                return f"{better}, but the model states {self.read.reset}: is this its recording?"
            return f"{better}: give --reset {self.reset}"
        if missing:
            return f"record {', '.join(missing)} too: rounding there may explain it ({PAGE})"
        return f"try what a file may leave open, such as --dt, --reset or --written-by: {PAGE}"


@dataclass(frozen=True)
class OutputMiss:
    """A value that differs: of ``place`` (a class or neuron) in a ``step``, None for all steps together."""

    sample: int
    step: int | None
    place: int
    recorded: float
    gives: float

    @property
    def text(self) -> str:
        """In words."""
        step = "" if self.step is None else f", step {self.step}"
        return (
            f"sample {self.sample}{step}, output {self.place}: recorded {self.recorded:.6g}, here "
            f"{self.gives:.6g}"
        )


@dataclass(frozen=True)
class RecordedOutputs:
    """What left the network: ``what`` it was taken for, and how many of the ``entries`` differ."""

    what: str
    entries: int
    differing: int
    first: OutputMiss | None

    def problem(self, where: str, missing: tuple[str, ...], remedy: str) -> Problem | None:
        """What is wrong, None where nothing is; see ``Expected``."""
        if self.first is None:
            return None
        remedy = remedy or f"see {PAGE}, and --readout for how outputs are read"
        if missing:
            names = ", ".join(missing)
            remedy = f"record the spikes of {names} too, which shows where the reading parts"
        what = f"{self.differing:,} of {self.entries:,} values ({self.what}) differ from {where}"
        return Problem("outputs", f"{what}; {self.first.text}", remedy)


@dataclass(frozen=True)
class Expected:
    """The whole comparison with the recording ``where``.

    ``missing`` are populations that it lacks; ``remedy`` is what helps where something differs, empty where
    that depends on what differs.
    """

    where: str
    samples: int
    populations: tuple[RecordedPopulation, ...]
    outputs: RecordedOutputs | None
    missing: tuple[str, ...] = ()
    remedy: str = ""

    @property
    def passed(self) -> bool:
        """Whether nothing differs but ties."""
        return not any(True for _ in self.problems())

    @property
    def differing(self) -> int:
        """Spikes that differ and are not ties, of all populations."""
        return sum(population.differing for population in self.populations)

    @property
    def tied(self) -> int:
        """Entries that do not count, of all populations."""
        return sum(population.tied for population in self.populations)

    @property
    def entries(self) -> int:
        """Recorded spikes and silences of all populations."""
        return sum(population.entries for population in self.populations)

    @property
    def silent(self) -> tuple[str, ...]:
        """Populations that were recorded without a single spike, so that little is known of them."""
        return tuple(population.name for population in self.populations if not population.spikes)

    @property
    def tying(self) -> tuple[str, ...]:
        """Populations with more ties than rounding makes, so that they may spike by another compare."""
        return tuple(p.name for p in self.populations if p.tied * TIED > p.entries)

    def problems(self) -> Iterator[Problem]:
        """What is wrong, population by population."""
        for part in (*self.populations, *(() if self.outputs is None else (self.outputs,))):
            if (problem := part.problem(self.where, self.missing, self.remedy)) is not None:
                yield problem

    def check(self) -> None:
        """Raise ReadingError unless it passed."""
        if problems := list(self.problems()):
            raise ReadingError(problems)

    def to_json(self) -> dict[str, Any]:
        """Plain data with the keys that scripts use."""
        return {
            "recording": self.where,
            "passed": self.passed,
            "samples": self.samples,
            "populations": [
                {
                    "name": p.name,
                    "entries": p.entries,
                    "spikes": p.spikes,
                    "differing": p.differing,
                    "tied": p.tied,
                    "cascaded": p.cascaded,
                    "first": None if p.first is None else asdict(p.first),
                }
                for p in self.populations
            ],
            "outputs": None if self.outputs is None else asdict(self.outputs),
            "not_recorded": list(self.missing),
        }
