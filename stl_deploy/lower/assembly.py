"""The parts of an integer network, population by population."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from stl_deploy.chips import facts as chips
from stl_deploy.errors import Problem
from stl_deploy.ir import nir_graph as G
from stl_deploy.ir.floats import FloatNetwork, FloatPopulation
from stl_deploy.ir.network import Connection, Input, IntegerNetwork, Population
from stl_deploy.ir.neurons import Or
from stl_deploy.ir.notes import Diagnostic, Precision
from stl_deploy.ir.readouts import FloatReadout, Readout
from stl_deploy.ir.synapses import Conv, IntArray
from stl_deploy.lower import calibration, graded, readouts, rules
from stl_deploy.lower.options import Options
from stl_deploy.lower.rows import Target, always
from stl_deploy.lower.units import Fit, Seen

Float = NDArray[np.float64]


class Assembly:
    """A network as far as it is quantized; ``problems`` and ``diagnostics`` collect what was met.

    ``targets`` are the populations of ``floats`` with weights, by name.
    """

    def __init__(
        self,
        floats: FloatNetwork,
        meta: G.FloatMeta,
        targets: Mapping[str, Target],
        options: Options,
        chip: chips.Chip,
    ) -> None:
        self.floats, self.meta, self.targets = floats, meta, targets
        self.options, self.chip = options, chip
        self.inputs = {
            name: Input(shape, meta.input_levels, meta.signed, meta.held)
            for name, shape in floats.inputs.items()
        }
        self.populations: list[Population] = []
        self.connections: list[Connection] = []
        self.precision: dict[str, Precision] = {}
        self.problems: list[Problem] = []
        self.diagnostics: list[Diagnostic] = []
        self.worth: dict[str, Float] = {}  # of one of the values that a population sends
        self.readout = Readout(meta.classes, meta.population, floats.output)

    def quantize(
        self, calib: Mapping[str, IntArray] | None, tell: Callable[[int, str], None]
    ) -> None:
        """Quantize all populations.

        ``calib`` is what each input is given, [N, T, *shape]. ``tell`` is called with the number of parts
        that are done, the float run being the first, and with what is done next.
        """
        seen: dict[str, Seen] = {}
        recording = None
        if calib is not None:
            tell(0, "float model")
            recorded, seen = _recorded(self.floats, calib)
            recording = None if self.options.thresholds == "fold" else recorded
        for index, population in enumerate(self.floats.populations, 1):
            tell(index, population.name)
            if (target := self.targets.get(population.name)) is None:
                self._pool(population)
            else:
                self._fit(target, seen.get(population.name), recording)
        last = next((p for p in self.populations if p.name == self.floats.output), None)
        if self.floats.readout is not None and last is not None:
            self._read_out(self.floats.readout, last)
        if calib is not None:
            self.diagnostics.append(_fitted_to(recording))

    def network(self) -> IntegerNetwork:
        """The whole, as far as it is there."""
        meta = self.meta
        return IntegerNetwork(
            chip=self.chip.name,
            chip_facts=chips.carried(self.chip),
            timesteps=meta.timesteps,
            inputs=self.inputs,
            populations=tuple(self.populations),
            connections=tuple(self.connections),
            readout=self.readout,
            precision=self.precision,
            diagnostics=tuple(self.diagnostics),
            read_as=meta.read_as,
        )

    def _read_out(self, read: FloatReadout, last: Population) -> None:
        """Bring the host's part, which reads ``last``, to whole numbers."""
        worth, steps = self.worth.get(last.name), self.meta.timesteps
        self.readout, problems, notes = readouts.whole(read, last, worth, steps)
        self.problems += problems
        self.diagnostics += notes

    def _fit(
        self,
        target: Target,
        seen: Seen | None,
        recording: calibration.Recording | None,
    ) -> None:
        """Add a population with weights."""
        try:
            target = target.received(self.worth)
        except ValueError as error:
            remedy = "give all neurons of a channel the same time constants"
            self.problems.append(Problem(target.name, str(error), remedy))
            return
        fit = Fit(target, self._sources(target), self.options, self.chip, self.meta.timesteps, seen)
        if self.meta.trained is None:
            alone, how = fit.choose()
        else:
            alone, how = fit.as_trained(np.array(self.meta.trained.scale[target.name]))
        if recording is not None and self._sends_values(target):
            self.diagnostics.append(
                Diagnostic(
                    target.name, "graded values come or go: its weights are rounded to nearest"
                )
            )
        elif recording is not None and not fit.problems:
            alone, how = fit.calibrated(alone, how, _with_always(recording, target))
        if target.neurons.graded:
            largest = None if seen is None else seen.sent
            sending = graded.sending(alone, target, self.chip, largest)
            alone, self.worth[target.name], problems = sending
            self.problems += problems
        if target.always is not None:
            self.populations.append(always(target.always))
        self.populations += alone.populations
        self.connections += alone.connections
        self.precision[target.name] = how
        self.problems += fit.problems
        self.diagnostics += fit.diagnostics

    def _sources(self, target: Target) -> dict[str, Input]:
        """What leads into a population from others, as inputs of a network of it alone."""
        found = {}
        for name in (some.source for some in target.rows if some.source != target.name):
            if name == target.always:
                found[name] = Input((1,))
            elif name in self.inputs:
                found[name] = replace(self.inputs[name], held=False)
            else:
                (low, high), shape = self._span(name), self.floats.shape(name)
                found[name] = Input(shape, high, low < 0)
        return found

    def _sends_values(self, target: Target) -> bool:
        """Whether a population or one of its sources sends values other than spikes."""
        # A source that could not be lowered, which is a problem of its own, has no worth.
        known = self.floats.by_name
        return target.neurons.graded or any(
            rows.source in known and known[rows.source].neurons.graded for rows in target.rows
        )

    def _span(self, name: str) -> tuple[int, int]:
        """The lowest and the highest value that a population sends; spikes where it is not there yet."""
        sent = (p.neurons.span for p in self.populations if p.name == name)
        return next(sent, (0, 1))

    def _pool(self, population: FloatPopulation) -> None:
        """Add the OR that a pool of spikes is."""
        (connection,) = self.floats.into(population.name)
        way = connection.way
        assert way.kind == "window"  # as ``pools`` says
        ones = Conv(
            np.ones((population.shape[0], 1, *way.kernel), np.int8),
            way.kernel,
            (0, 0),
            (1, 1),
            population.shape[0],
        )
        self.populations.append(Population(population.name, population.shape, Or()))
        self.connections.append(
            Connection(way.name, connection.source, population.name, ones, bits=1)
        )


def _with_always(recording: calibration.Recording, target: Target) -> calibration.Recording:
    """The recording with what a neuron sends that fires in every step, where there is one."""
    if target.always is None:
        return recording
    size = recording.samples, recording.steps, 1
    return recording.with_input(target.always, np.ones(size, np.uint8))


def _fitted_to(recording: calibration.Recording | None) -> Diagnostic:
    """How calibration data was used, as a note that goes with the network."""
    if recording is None:
        return Diagnostic(
            "calib",
            "set scales only: a folded layer's weights are rounded to nearest",
            "use --thresholds native or grouped to have weights and thresholds fitted",
        )
    used = recording.samples
    return Diagnostic("calib", f"weights and thresholds are fitted to {used:,} unlabelled inputs")


def _recorded(
    floats: FloatNetwork, calib: Mapping[str, IntArray]
) -> tuple[calibration.Recording, dict[str, Seen]]:
    """What the float model fires on ``calib``, and how far populations went, by name."""
    largest: dict[str, Float] = {}
    added: dict[str, Float] = {}

    def observe(name: str, out: Float) -> None:
        x = np.abs(np.moveaxis(out, 2, 0)).reshape(out.shape[2], -1).max(axis=1)
        largest[name] = np.maximum(largest.get(name, 0.0), x)
        population = floats.by_name[name]
        if not rules.resets(population.neurons):
            v = rules.added_up(population.neurons, out + population.bias)
            added[name] = np.maximum(added.get(name, 0.0), v)

    recording = calibration.record(floats, calib, observe)
    sent = recording.largest
    return recording, {n: Seen(x, added.get(n), sent.get(n)) for n, x in largest.items()}
