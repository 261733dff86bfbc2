"""A float graph against a recording of the network in its own tool, population by population.

Every population is given what its sources were recorded to send, so that it answers for itself; those that
were not recorded run from what they are given. Where nothing differs in this way, nothing differs where the
graph runs from the raster alone.

A difference is a tie where v is no further from the threshold than rounding in the other tool may move it.
What that may be is the sum of magnitudes of everything that v was made of, times a rounding of its numbers:
the graph is run again with the magnitudes of all weights on those of all values. From a tie on, a neuron
does not count in that sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

import nir
import numpy as np
from numpy.typing import NDArray

from stl_deploy.formats.recording import Recording, fitted
from stl_deploy.ir import cut
from stl_deploy.ir import execute as float_exec
from stl_deploy.ir.float_neurons import FloatNeurons
from stl_deploy.ir.floats import FloatNetwork, FloatPopulation, Way, decode
from stl_deploy.ir.network import Raster
from stl_deploy.spread import Spread, Threads
from stl_deploy.verify.recorded import (
    OTHER,
    Expected,
    Miss,
    OutputMiss,
    RecordedOutputs,
    RecordedPopulation,
)

Array = NDArray[Any]
Float = NDArray[np.float64]
Sent = Mapping[str, Array]

SINGLE, DOUBLE = 2.0**-24, 2.0**-53  # half a unit in the last place of float32 and float64
ROUNDINGS = (
    16  # of each number that v is made of: of the weight, of products, of a sum in any order
)
VALUES = 1e-4  # of the largest value, by how much values that are no spikes may differ in float32
COUNTS = 1e-6  # the same of numbers of spikes, which may be a mean
BETTER = 10  # times fewer entries differ with another reset, where that explains a difference


@dataclass
class Count:
    """Of a population in some samples: see ``RecordedPopulation``; ``otherwise`` with the other reset."""

    entries: int = 0
    spikes: int = 0
    most: float = 0.0
    differing: int = 0
    tied: int = 0
    cascaded: int = 0
    first: Miss | None = None
    otherwise: int | None = None
    first_differing: int = 0

    def add(self, other: Count) -> None:
        """Add those of later samples."""
        if self.first is None and other.first is not None:
            self.first, self.otherwise = other.first, other.otherwise
            self.first_differing = other.differing
        self.most = max(self.most, other.most)
        for name in ("entries", "spikes", "differing", "tied", "cascaded"):
            setattr(self, name, getattr(self, name) + getattr(other, name))


@dataclass
class Tally:
    """Of some samples: populations by name, and outputs by what they may be."""

    samples: int = 0
    populations: dict[str, Count] = field(default_factory=dict)
    outputs: dict[str, OutputCount] = field(default_factory=dict)

    def add(self, other: Tally) -> None:
        """Add that of later samples."""
        self.samples += other.samples
        for name, count in other.populations.items():
            self.populations.setdefault(name, Count()).add(count)
        for name, values in other.outputs.items():
            self.outputs.setdefault(name, OutputCount()).add(values)


@dataclass
class OutputCount:
    """Of what left the network: values, and how many differ."""

    entries: int = 0
    differing: int = 0
    first: OutputMiss | None = None

    def add(self, other: OutputCount) -> None:
        """Add those of later samples."""
        self.first = self.first or other.first
        self.entries += other.entries
        self.differing += other.differing


def check(graph: nir.NIRGraph, raster: Raster, recording: Recording) -> Recording:
    """The recording, with spikes in the shapes of the populations of a lowered float graph.

    ``raster`` is what was recorded. Raises InputError where they do not go together.
    """
    network = decode(graph)
    return fitted(recording, network, _extent(network, raster))


def compare(
    graph: nir.NIRGraph,
    raster: Raster,
    recording: Recording,
    *,
    batch: int = 25,
    on_progress: Callable[[int], None] | None = None,
    spread: Spread | None = None,
) -> Expected:
    """Compare a lowered float graph, on the raster that was recorded, with the recording.

    ``raster`` is [N, T, *shape], or one for each input by name, checked before. ``on_progress(done)`` is
    called with the number of samples done. Raises InputError where the recording does not fit.
    """
    network = decode(graph)
    fitting = check(graph, raster, recording)
    batches = _batches(raster, fitting, batch)
    total = tally_of(network, SINGLE, batches, spread or Threads(), on_progress)
    return expected(network, recording.where, total)


def tally_of(
    network: FloatNetwork,
    unit: float,
    batches: Iterator[Batch],
    spread: Spread,
    on_progress: Callable[[int], None] | None = None,
) -> Tally:
    """All batches compared; ``unit`` is half a unit in the last place of the numbers that were recorded."""
    total = Tally()
    with closing(spread.run(Comparison(network, unit), batches)) as results:
        for tally in results:
            total.add(tally)
            if on_progress is not None:
                on_progress(total.samples)
    return total


def _extent(network: FloatNetwork, raster: Raster) -> tuple[int, int]:
    """(N, T) of a raster; T of one that is held is that of the network."""
    array = next(iter(raster.values())) if isinstance(raster, Mapping) else raster
    held = network.meta is not None and network.meta.held
    steps = network.meta.timesteps if network.meta is not None and held else array.shape[1]
    return len(array), steps


@dataclass(frozen=True, eq=False)
class Batch:
    """Some samples from number ``start`` on: what was given, and what was recorded."""

    start: int
    inputs: Raster
    spikes: Sent
    outputs: Array | None = None


def _batches(raster: Raster, recording: Recording, size: int) -> Iterator[Batch]:
    for start in range(0, recording.samples, size):
        part = slice(start, min(start + size, recording.samples))
        inputs: Raster = (
            {name: x[part] for name, x in raster.items()}
            if isinstance(raster, Mapping)
            else raster[part]
        )
        spikes = {name: values[part] for name, values in recording.spikes.items()}
        outputs = None if recording.outputs is None else recording.outputs[part]
        yield Batch(start, inputs, spikes, outputs)


def expected(network: FloatNetwork, where: str, total: Tally, remedy: str = "") -> Expected:
    """The result of all batches; see ``Expected``."""
    meta = network.meta
    read = {} if meta is None else {record.population: record for record in meta.read_as}
    populations = []
    for population in network.populations:
        name, neurons = population.name, population.neurons
        if name not in total.populations:
            continue
        count = total.populations[name]
        better = count.otherwise is not None and (BETTER * count.otherwise <= count.first_differing)
        populations.append(
            RecordedPopulation(
                name,
                count.entries,
                count.spikes,
                count.most,
                count.differing,
                count.tied,
                count.cascaded,
                count.first,
                read.get(name),
                OTHER[neurons.reset] if better else None,
            )
        )
    missing = tuple(
        p.name
        for p in network.populations
        if p.name not in total.populations and p.neurons.fires and not network.pools(p.name)
    )
    outputs = None
    if total.outputs:
        what, values = min(total.outputs.items(), key=lambda item: item[1].differing)
        outputs = RecordedOutputs(what, values.entries, values.differing, values.first)
    return Expected(where, total.samples, tuple(populations), outputs, missing, remedy)


@dataclass(frozen=True, eq=False)
class Comparison:
    """What is compared with a recording in numbers of half a unit in the last place ``unit`` (a Job)."""

    network: FloatNetwork
    unit: float

    def prepare(self) -> Callable[[Batch], Tally]:
        """What does one batch."""
        return self

    def __call__(self, batch: Batch) -> Tally:
        """Compare one batch."""
        network = self.network
        given = cut.rasters(network.inputs, batch.inputs, batch.spikes)
        ran = float_exec.trace(network.cut(batch.spikes), given)
        wrong = {
            name: differs(network.by_name[name].neurons, ran.sent[name], values)
            for name, values in batch.spikes.items()
        }
        tally = Tally(samples=_length(batch.inputs))
        counts = tally.populations
        for name, values in batch.spikes.items():
            most = float(np.abs(values).max(initial=0))
            counts[name] = Count(values.size, int(np.count_nonzero(values)), most)
        differing = [name for name, entries in wrong.items() if entries.any()]
        if differing:
            everything = {**ran.sent, **batch.spikes}
            self._account(batch, everything, differing, wrong, counts)
        if batch.outputs is not None:
            near = wrong.get(network.output)
            left = np.zeros(tally.samples, np.bool_) if near is None else _any(near)
            tally.outputs = _outputs(network, ran, batch, left)
        return tally

    def _account(
        self,
        batch: Batch,
        sent: Sent,
        names: list[str],
        wrong: Mapping[str, NDArray[np.bool_]],
        counts: Mapping[str, Count],
    ) -> None:
        """Tell ties from differences in populations that have either."""
        network, inputs = self.network, batch.inputs
        seen, sizes = _Seen(), _Seen()
        got = float_exec.trace(*_part(network, names, inputs, sent), watch=seen).sent
        float_exec.trace(*_part(_magnitudes(network), names, inputs, sent, _size), watch=sizes)
        alone = float_exec.run(network, inputs)
        for name in names:
            count, population, want = counts[name], network.by_name[name], batch.spikes[name]
            neurons = population.neurons
            count.cascaded = int(differs(neurons, alone[name], want).sum())
            v, threshold = seen.of(name)
            rounding = ROUNDINGS * self.unit * sizes.of(name)[0]
            tied, first = _ties(wrong[name], want, np.abs(v - threshold) <= rounding)
            left = wrong[name] & ~tied
            count.tied, count.differing = int(tied.sum()), int(left.sum())
            if first is None:
                continue
            sample, step, *place = first
            limit = float(threshold[first])
            count.first = Miss(
                batch.start + sample,
                step,
                tuple(place),
                float(want[first]),
                float(got[name][first]),
                float(v[first]),
                None if np.isinf(limit) else limit,
            )
            if neurons.reset in OTHER:
                other = replace(neurons, reset=OTHER[neurons.reset])
                tried = _with(network, replace(population, neurons=other))
                found = float_exec.run(*_part(tried, [name], inputs, sent))[name]
                count.otherwise = int((differs(other, found, want) & ~tied).sum())


class _Seen:
    """What ``float_exec.Watch`` is told: v before resets, and thresholds, by population."""

    def __init__(self) -> None:
        self.steps: dict[str, list[tuple[Float, Float]]] = {}

    def __call__(self, name: str, _step: int, v: Float, threshold: Float) -> None:
        self.steps.setdefault(name, []).append((v, np.broadcast_to(threshold, v.shape)))

    def of(self, name: str) -> tuple[Float, Float]:
        """v and thresholds [N, T, *shape] of a population."""
        v, thresholds = (np.stack(parts, axis=1) for parts in zip(*self.steps[name], strict=True))
        return v, thresholds


def differs(neurons: FloatNeurons, got: Array, want: Array) -> NDArray[np.bool_]:
    """Entries in which neurons did not send what was recorded; values may differ by rounding."""
    if not neurons.graded:
        return np.asarray(got != want)
    return np.asarray(np.abs(got - want) > VALUES * np.abs(want).max(initial=0))


def _ties(
    wrong: NDArray[np.bool_], want: Array, near: NDArray[np.bool_]
) -> tuple[NDArray[np.bool_], tuple[int, ...] | None]:
    """Which entries do not count, and the first that is wrong and no tie; all are [N, T, *shape].

    A neuron does not count from its first difference on where that is ``near`` its threshold. Several spikes
    in a step are none of rounding's making.
    """
    earliest = wrong & (np.cumsum(wrong, axis=1) == 1)
    tie = earliest & near & (np.abs(want) <= 1)
    tied = np.logical_or.accumulate(tie, axis=1)
    found = np.argwhere(earliest & ~tie)
    return tied, tuple(int(i) for i in found[0]) if len(found) else None


def _part(
    network: FloatNetwork,
    names: list[str],
    inputs: Raster,
    sent: Sent,
    made: Callable[[Array], Array] = np.asarray,
) -> tuple[FloatNetwork, dict[str, Array]]:
    """The populations ``names`` alone, given what inputs and all populations sent; ``made`` of each."""
    whole = network.cut(network.by_name)
    part = replace(
        whole,
        populations=tuple(p for p in whole.populations if p.name in names),
        connections=tuple(c for c in whole.connections if c.target in names),
    )
    given = cut.rasters(network.inputs, inputs, sent)
    return part, {name: made(values) for name, values in given.items()}


def _size(values: Array) -> Array:
    return np.abs(values.astype(np.float64))  # -128 has no magnitude in int8


def _with(network: FloatNetwork, population: FloatPopulation) -> FloatNetwork:
    """The network with ``population`` in the place of the one of its name."""
    populations = (population if p.name == population.name else p for p in network.populations)
    return replace(network, populations=tuple(populations))


def _magnitudes(network: FloatNetwork) -> FloatNetwork:
    """The network of magnitudes: v of its neurons, which never spike, bounds all that v was made of.

    Every step counts the threshold once, in the place of what v was before it.
    """
    return replace(
        network,
        populations=tuple(
            replace(p, bias=np.abs(p.bias), neurons=_magnitude(p.neurons))
            for p in network.populations
        ),
        connections=tuple(replace(c, way=_positive(c.way)) for c in network.connections),
        meta=None if network.meta is None else network.meta.model_copy(update={"trained": None}),
    )


def _positive(way: Way) -> Way:
    return way if way.kind == "window" else replace(way, weight=np.abs(way.weight))


def _magnitude(neurons: FloatNeurons) -> FloatNeurons:
    def size(values: Float | None) -> Float | None:
        return None if values is None else np.abs(values)

    return replace(
        neurons,
        gain=np.abs(neurons.gain),
        leak=np.abs(neurons.leak) + np.abs(neurons.threshold),
        drive=np.abs(neurons.drive),
        drive2=size(neurons.drive2),
        v0=size(neurons.v0),
        amplify=size(neurons.amplify),
        fires=False,
        graded=False,
        floor=None,
        reset="none",
        hold=0,
        adapt=None,
        adapt_step=None,
    )


# What leaves the network


def _outputs(
    network: FloatNetwork, ran: float_exec.Ran, batch: Batch, left_out: NDArray[np.bool_]
) -> dict[str, OutputCount]:
    """What the outputs of a batch may be, with how many differ, but for the samples ``left_out``."""
    want = np.asarray(batch.outputs, np.float64)
    by_step = want.ndim > 2
    want = want.reshape(*want.shape[:2], -1) if by_step else want
    counts = {}
    for what, (values, limit) in _readings(network, ran, by_step).items():
        for kind, some in _widths(network, values).items():
            if some.shape != want.shape:
                continue
            wrong = np.abs(some - want) > limit * max(1.0, float(np.abs(want).max()))
            wrong[left_out] = False
            kept = (~left_out).sum() * int(np.prod(want.shape[1:]))
            counts[f"{what}{kind}"] = OutputCount(
                int(kept), int(wrong.sum()), _first_output(wrong, want, some, batch.start)
            )
    return counts


def _readings(
    network: FloatNetwork, ran: float_exec.Ran, by_step: bool
) -> dict[str, tuple[Float, float]]:
    """What may be recorded of the last population or the matrix behind it, and how far it may differ.

    Values are [N, T, n], or where not ``by_step`` [N, n], n being neurons or classes.
    """
    read = network.readout
    sent = ran.sent[network.output]
    voltages = read is not None and read.by_voltage and read.rule != "first"
    flat = (ran.v if voltages else sent).reshape(*sent.shape[:2], -1).astype(np.float64)
    limit = VALUES if voltages else COUNTS
    if read is not None and read.factors is not None:
        flat = flat * read.factors
    if read is not None and read.matrix is not None:
        flat = flat @ read.matrix.T + (0.0 if read.offset is None else read.offset)
        limit = VALUES
    if by_step:
        return {"of each step": (flat, limit)}
    rule = "votes" if read is None else read.rule
    if rule == "last":
        return {"of the last step": (flat[:, -1], limit)}
    if rule == "max":
        return {"highest of all steps": (flat.max(axis=1), limit)}
    if read is not None and read.steps is not None:
        weights = np.array(read.steps[: flat.shape[1]])
        return {"weighted sum over steps": (np.einsum("t,nti->ni", weights, flat), limit)}
    return {
        "sum over steps": (flat.sum(axis=1), limit),
        "mean over steps": (flat.mean(axis=1), limit),
    }


def _widths(network: FloatNetwork, values: Float) -> dict[str, Float]:
    """Values of neurons, and what they come to by class where several vote for one."""
    read = network.readout
    if read is None or read.matrix is not None or read.population == 1:
        return {"": values}
    grouped = values.reshape(*values.shape[:-1], read.classes, read.population).sum(axis=-1)
    return {"": values, ", added up by class": grouped}


def _first_output(
    wrong: NDArray[np.bool_], want: Float, got: Float, start: int
) -> OutputMiss | None:
    found = np.argwhere(wrong)
    if not len(found):
        return None
    at = tuple(int(i) for i in found[0])
    step = at[1] if len(at) > 2 else None
    return OutputMiss(start + at[0], step, at[-1], float(want[at]), float(got[at]))


def _any(wrong: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Of each sample, whether anything is wrong."""
    return np.asarray(wrong.reshape(len(wrong), -1).any(axis=1))


def _length(raster: Raster) -> int:
    return len(next(iter(raster.values())) if isinstance(raster, Mapping) else raster)
