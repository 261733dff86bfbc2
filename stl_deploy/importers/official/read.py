"""Official checkpoints to float graphs: what their files lack is taken from options, or assumed and said."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import TypeVar, cast

import nir

from stl_deploy.errors import InputError, LoweringError, Problem
from stl_deploy.formats import raster as rasters
from stl_deploy.formats.checkpoint import read_tensors
from stl_deploy.formats.state import arrays, unwrapped
from stl_deploy.importers.given import File, Given, Model
from stl_deploy.importers.nir.graph import Options, to_float
from stl_deploy.importers.official import SYSTEMS
from stl_deploy.importers.official.draft import Array, Draft
from stl_deploy.importers.official.system import GROUPS, Said, System
from stl_deploy.importers.records import record
from stl_deploy.ir.float_neurons import decode
from stl_deploy.ir.notes import Diagnostic
from stl_deploy.ir.read_as import Origin, Property, ReadAs
from stl_deploy.ir.synapses import Shape

T = TypeVar("T")
STEPS = 4  # of all official configurations
CLASSES = 10
CARRIER = "none: it carries currents"
PIXELS = 255
# Of images whose size nothing says, by their channels: those of (Fashion-)MNIST and of CIFAR.
PLANES = {1: (28, 28), 3: (32, 32)}


def read_model(file: File) -> Model:
    """The lowered graph, and what was assumed. Raises InputError and LoweringError with every problem."""
    known = next(one for one in SYSTEMS.values() if one.recognises(file.strings))
    if known.missing:
        raise InputError(
            Problem(
                str(file.path),
                f"is {known.what}; {known.missing} are not in this file",
                "export the live network: write it as a NIR graph in Python, for stl_deploy.from_nir "
                "(docs/official.md)",
            )
        )
    module = import_module(f"{__package__}.{known.module}")
    system = cast(System, module.SYSTEM)
    state = unwrapped(file.path, read_tensors(file.path))
    params = arrays(file.path, state.tensors)
    reading = _Reading(file, system, params)
    try:
        graph = reading.graph()
    except LoweringError as error:
        raise LoweringError(
            [Problem(f"{file.path}: {p.where}", p.what, p.remedy) for p in error.problems]
        ) from None
    read_as = Diagnostic(str(file.path), f"is read as {known.what}")
    return Model(graph, notes=(*state.notes(str(file.path)), read_as, *reading.notes()))


class _Reading:
    """A file on its way to a graph; ``assumed`` is what nobody said, in words."""

    def __init__(self, file: File, system: System, params: dict[str, Array]) -> None:
        self.file, self.system, self.params = file, system, params
        self.assumed: dict[str, str] = {}
        _check(file.given)

    def graph(self) -> nir.NIRGraph:
        """The lowered graph with how it was read."""
        given, system = self.file.given, self.system
        draft = Draft(self.file.path, self.params)
        levels = self._or(given.levels, PIXELS, "--levels", f"pixels 0..{PIXELS}")
        keep = system.keep if given.tau is None else given.tau
        threshold = 0.0
        if system.threshold is not None:
            words = f"thresholds of {system.threshold:g}"
            threshold = self._or(given.threshold, system.threshold, "--threshold", words)
        if given.normalize is None:
            self.assumed["--normalize"] = "inputs that were not normalized"
        (steps, _), shape = self._steps(), self._shape()
        at = draft.input(shape, levels, given.normalize)
        said = Said(at, keep, threshold, steps, given.classes or CLASSES)
        graph = draft.graph(system.build(draft, said))
        if given.classes is None and GROUPS in draft.nodes:
            self.assumed["--classes"] = f"{CLASSES} classes, each the mean of a group of outputs"
        options = Options(timesteps=steps, classes=given.classes, levels=levels)
        return to_float(graph, options, tuple(self._records(draft, said)))

    def notes(self) -> tuple[Diagnostic, ...]:
        """What was assumed."""
        found = [Diagnostic(str(self.file.path), what) for what in self.system.notes]
        if self.assumed:
            what = f"is assumed, as the file does not say: {'; '.join(self.assumed.values())}"
            remedy = f"say otherwise by {', '.join(self.assumed)}"
            found.append(Diagnostic(str(self.file.path), what, remedy))
        return tuple(found)

    def _or(self, value: T | None, default: T, option: str, words: str) -> T:
        """``value``, or ``default``, which is noted as assumed."""
        if value is not None:
            return value
        self.assumed[option] = words
        return default

    def _steps(self) -> tuple[int, Origin]:
        """T, and who says it."""
        held = self.system.steps(self.params)
        if held is not None:
            self.file.agree(timesteps=held)
            return held, "file"
        given = self.file.given
        return given.steps or STEPS, given.steps_from

    def _shape(self) -> Shape:
        """The shape of the input, whose channels the first weights have."""
        given, key = self.file.given, self.system.first(self.params)
        where = f"{self.file.path}: {key}"
        first = self.params.get(key)
        if first is None or first.ndim != 4:
            what = "is missing" if first is None else f"has shape {first.shape}, not (O, C, kh, kw)"
            raise InputError(Problem(where, what))
        channels = first.shape[1]
        shape = given.input_shape
        if shape is None and given.raster is not None:
            (found, *others) = rasters.stream(given.raster).shapes.values()
            shape = None if others else found[2:]
        if shape is None:
            if channels not in PLANES:
                what = f"reads {channels} channels, and nothing says how large their planes are"
                raise InputError(Problem(where, what, "give --input-shape C,H,W"))
            shape = (channels, *PLANES[channels])
            self.assumed["--input-shape"] = f"an input of shape {shape}"
        if len(shape) != 3 or shape[0] != channels:
            what = f"reads {channels} channels of a plane, and the input has shape {shape}"
            raise InputError(Problem(where, what, f"give --input-shape {channels},H,W"))
        return shape

    def _records(self, draft: Draft, said: Said) -> Iterator[ReadAs]:
        """How the populations were read; the class says their reset."""
        tau: Origin = "assumed" if self.file.given.tau is None else "option"
        origin: dict[Property, Origin] = {"tau": tau, "timesteps": self._steps()[1]}
        for name, rules in draft.populations.items():
            neurons = rules.neurons((1,))
            yield record(name, neurons, self.system.neuron, said.timesteps, origin, tau=said.keep)
        for name in draft.carriers:
            neurons = decode(draft.nodes[name])
            yield record(name, neurons, CARRIER, said.timesteps, origin)


def _check(given: Given) -> None:
    """Raise InputError for options out of range, all at once."""
    problems = []
    if given.tau is not None and not 0 <= given.tau < 1:
        what = f"{given.tau:g} is not in 0 <= tau < 1: it is what a step leaves of v"
        remedy = f"give 1 - 1/tau, here {1 - 1 / given.tau:g}" if given.tau > 1 else ""
        problems.append(Problem("--tau", what, remedy))
    if given.threshold is not None and not 0 < given.threshold < 1e30:
        problems.append(Problem("--threshold", f"{given.threshold:g} is not above 0"))
    if problems:
        raise InputError(problems)
