"""What the user said about a model file, the file itself, and the model that comes out."""

from __future__ import annotations

import pickletools
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import nir
import numpy as np
from numpy.typing import NDArray

from stl_deploy.errors import InputError, Problem
from stl_deploy.formats import nir_io, signatures
from stl_deploy.formats import raster as rasters
from stl_deploy.ir.arch import Architecture
from stl_deploy.ir.network import IntegerNetwork
from stl_deploy.ir.notes import Diagnostic
from stl_deploy.ir.read_as import Origin, Property
from stl_deploy.ir.readouts import Rule
from stl_deploy.ir.units import MAX_STEPS

Params = dict[str, NDArray[Any]]
Sent = dict[str, NDArray[Any]]  # spikes [N, T, *shape] by population
Numbers = float | Sequence[float]
Reset = Literal["zero", "subtract"]  # what a user can say of neurons whose file leaves it open
Spikes = Literal["one", "many"]  # in a step
Tool = Literal["norse", "rockpool", "sinabs"]  # whose NIR files are read as it computes them
MAX_NAMES = 1 << 24  # bytes of a checkpoint that are searched for names
EXAMPLE = "(0.5, 0.5), or (means, deviations) of all channels"


@dataclass(frozen=True)
class Checkpoint:
    """An STL-SNN: its description and its parameters, checked against each other.

    ``origin`` says who stated what the file does not; empty where it states everything.
    ``notes`` is what the user should know of how they were found in a file.
    """

    arch: Architecture
    params: Params
    origin: Mapping[Property, Origin] = field(default_factory=dict)
    notes: tuple[Diagnostic, ...] = ()


class Normalize(NamedTuple):
    """What a network was trained on: (x/levels - mean)/std, with one number each, or one per channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def given(cls, pair: object) -> Normalize:
        """From (mean, std). Raises InputError for anything else."""
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            what = f"{pair!r} is not (mean, std)"
            raise InputError(Problem("normalize", what, f"give e.g. normalize={EXAMPLE}"))
        return cls.of(*pair)

    @classmethod
    def of(cls, mean: Numbers, std: Numbers, where: str = "normalize") -> Normalize:
        """From numbers or sequences of them. Raises InputError for others."""
        try:
            means, deviations = (np.atleast_1d(np.asarray(n, np.float64)) for n in (mean, std))
        except (TypeError, ValueError):
            means = deviations = np.zeros((0, 0))
        if means.ndim > 1 or deviations.ndim > 1 or not means.size:
            what = f"{mean!r}, {std!r} are not numbers, or sequences of numbers"
            raise InputError(Problem(where, what, f"give e.g. {EXAMPLE}"))
        made = cls(tuple(means.tolist()), tuple(deviations.tolist()))
        if not (len(made.mean) == len(made.std) and np.isfinite([*made.mean, *made.std]).all()):
            what = f"{made.mean}, {made.std} are not as many finite means as standard deviations"
            raise InputError(Problem(where, what, "give one of each, or one of each per channel"))
        if min(made.std) <= 0:
            raise InputError(
                Problem(where, f"the standard deviation {min(made.std):g} is not above 0")
            )
        return made

    @classmethod
    def parsed(cls, text: str) -> Normalize:
        """From "MEAN,STD"; of channels, all means first. Raises InputError."""
        try:
            numbers = [float(part) for part in text.split(",")]
        except ValueError:
            numbers = []
        if not numbers or len(numbers) % 2:
            what = f"{text!r} is not MEAN,STD"
            remedy = "give two numbers, or all means of the channels, then all standard deviations"
            raise InputError(Problem("--normalize", what, remedy))
        half = len(numbers) // 2
        return cls.of(numbers[:half], numbers[half:], "--normalize")


@dataclass(frozen=True)
class Given:
    """What the user said in addition to the file; None where nothing. ``raster`` is one that will be run."""

    tau: float | None = None
    timesteps: int | None = None
    classes: int | None = None
    dt: float | None = None
    reset: Reset | None = None
    written_by: Tool | None = None
    spikes: Spikes | None = None
    levels: int | None = None
    signed: bool | None = None
    normalize: Normalize | None = None
    readout: Rule | None = None
    model_class: str | None = None
    sample_shape: tuple[int, ...] | None = None
    threshold: float | None = None
    input_shape: tuple[int, ...] | None = None
    raster: Path | None = None

    @property
    def steps(self) -> int | None:
        """T of a model whose file does not say: what was given, else that of the raster.

        Raises InputError for a raster of more steps than any network has.
        """
        if self.timesteps is not None or self.raster is None:
            return self.timesteps
        steps = rasters.stream(self.raster).steps
        if steps is not None and steps > MAX_STEPS:
            what = f"has {steps} time steps; a network has at most {MAX_STEPS}"
            raise InputError(Problem(str(self.raster), what, "make one of fewer steps"))
        return steps

    @property
    def steps_from(self) -> Origin:
        """Who said ``steps``."""
        if self.timesteps is not None:
            return "option"
        return "assumed" if self.steps is None else "raster"


@dataclass(frozen=True)
class File:
    """A model file, and what was given with it."""

    path: Path
    given: Given

    @property
    def is_nir(self) -> bool:
        """Whether its first bytes say that it is a NIR file; where they say nothing, its name."""
        return signatures.is_nir(self.path)

    @cached_property
    def graph(self) -> nir.NIRGraph:
        """The graph of a NIR file. Raises InputError for a broken one."""
        return nir_io.read(self.path)

    @cached_property
    def strings(self) -> frozenset[str]:
        """All texts in a checkpoint, names of parameters among them. Nothing is unpickled."""
        with (
            suppress(Exception),
            zipfile.ZipFile(self.path) as archive,
        ):  # whatever a broken one raises
            for info in archive.infolist():
                if info.filename.endswith("/data.pkl") and info.file_size <= MAX_NAMES:
                    data = archive.read(info)
                    return frozenset(
                        text for _, text, _ in pickletools.genops(data) if isinstance(text, str)
                    )
        return frozenset()

    def agree(self, **held: Any) -> None:
        """Raise InputError where an option contradicts what the file says."""
        problems = [
            Problem(
                f"--{name}", f"{getattr(self.given, name)}, but {self.path} says {value}", "omit it"
            )
            for name, value in held.items()
            if getattr(self.given, name) not in (None, value)
        ]
        if problems:
            raise InputError(problems)


class Live(Protocol):
    """A network that runs in the tool that it was made with."""

    def run(self, raster: NDArray[Any]) -> tuple[Sent, Sent | None]:
        """Spikes [N, T, *shape] of its populations, as it is and in float64, None where it cannot be.

        Raises ValueError where it does not take a raster [N, T, *input shape] of these steps.
        """


@dataclass(frozen=True, eq=False)
class Model:
    """A model that was read: its lowered float ``graph``, None where the file holds integers.

    ``checkpoint`` is that of an STL-SNN, ``network`` that of a model.nir; ``notes`` are what the user should
    know of the import; ``takes`` are the fields of ``Given`` that can say what the file leaves open. ``live``
    is the user's own network, None where there is none to run.
    """

    graph: nir.NIRGraph | None = None
    checkpoint: Checkpoint | None = None
    network: IntegerNetwork | None = None
    notes: tuple[Diagnostic, ...] = ()
    takes: frozenset[str] = frozenset()
    live: Live | None = None
