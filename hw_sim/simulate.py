"""Running a network on a whole raster within bounded memory, and what a report says of the run."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Generator
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stl_deploy.files import atomic, refusals
from stl_deploy.formats.raster import Source
from stl_deploy.hw_sim import engine
from stl_deploy.hw_sim.account.counts import Counter, Counts
from stl_deploy.hw_sim.account.energy import Assessment, Energy
from stl_deploy.hw_sim.account.work import BatchWork
from stl_deploy.hw_sim.reference import LayerTrace, Trace
from stl_deploy.ir.network import IntegerNetwork, Raster
from stl_deploy.ir.readouts import Readout
from stl_deploy.ir.synapses import IntArray
from stl_deploy.spread import Spread

MEMORY = 512 << 20  # bytes that one batch may take, roughly
SPREAD_BATCH = 1 << 6  # samples that one of many workers takes at a time
BYTES_PER_ENTRY = 1 << 6  # of the largest population, all temporaries together


def batch_size(network: IntegerNetwork) -> int:
    """Samples at a time that keep a run of the reference, or of the float model, within MEMORY."""
    largest = max(network.size(name) for name in (*network.inputs, *network.by_name))
    return max(1, min(256, MEMORY // (largest * network.timesteps * BYTES_PER_ENTRY)))


@dataclass(frozen=True)
class Run:
    """What a run did, and what that takes by energy model."""

    counts: Counts
    energies: dict[str, Energy]


@dataclass(frozen=True)
class Activity:
    """A run of the network: counts, energies by energy model, accuracy (None without labels).

    ``sample`` holds what inputs and populations sent for the first sample, [T, *shape] by name, inputs first;
    populations that never send anything are left out.
    """

    counts: Counts
    energies: dict[str, Energy]
    accuracy: float | None
    sample: dict[str, IntArray]


class Recorder:
    """Counts a run, and prices it by every energy model or by one.

    Run the network with ``cores``, and use ``add`` on each batch, in order.
    """

    def __init__(self, network: IntegerNetwork, energy_model: str | None = None) -> None:
        self.counter = Counter(network)
        self.assessment = Assessment(network, energy_model)

    @property
    def cores(self) -> dict[str, IntArray]:
        """What ``reference.run`` needs."""
        return self.assessment.cores

    def reset(self) -> None:
        """Forget everything taken in."""
        self.counter.reset()
        self.assessment.reset()

    def add(self, inputs: Raster, trace: Trace) -> None:
        """Take in one batch."""
        self.counter.add(self.assessment.add(inputs, trace), trace)

    def take(self, works: list[BatchWork], trace: Trace) -> None:
        """Take in one batch whose work ``assessment.work`` has counted."""
        self.counter.add(self.assessment.take(works), trace)

    def done(self) -> Run:
        """Everything taken in."""
        return Run(self.counter.total(), self.assessment.energies())


class Simulator:
    """A network prepared to run on any number of rasters: placed, wired and planned once.

    Energy and time come by every energy model, or by the one named.
    """

    def __init__(self, network: IntegerNetwork, energy_model: str | None = None) -> None:
        self.network, self.energy_model = network, energy_model
        self.recorder = Recorder(network, energy_model)
        self.engine = engine.Engine(network, self.recorder.cores)

    def run(
        self,
        raster: Source,
        out: Path | None = None,
        states: bool = False,
        on_progress: Callable[[int], None] | None = None,
        spread: Spread | None = None,
        *,
        replace: bool = True,
    ) -> Run:
        """Run ``raster`` batch by batch, count and price events, and with ``out`` write the whole trace.

        The trace holds ``spikes/<population>`` [N, T, *shape], uint8, or int16 values where neurons send
        these; with ``states`` also ``v/``, ``u/`` and the others of ``Lif.states``. ``on_progress(done)`` is
        called with the number of samples done. With ``spread`` others run and count the batches; they are
        priced here, in order, and nothing changes. Raises InputError without ``replace`` when ``out``
        exists by the end.
        """
        self.recorder.reset()
        done = 0
        with nullcontext("") if out is None else tempfile.TemporaryDirectory() as folder:
            files: dict[str, Path] = {}
            traces = (
                self._here(raster, states)
                if spread is None
                else self._elsewhere(spread, raster, states, out is not None)
            )
            with closing(traces):
                for trace in traces:
                    if out is not None:
                        _store(files, Path(folder), trace, states, raster.shape[0])
                    done += len(trace.predictions)
                    if on_progress is not None:
                        on_progress(done)
            if out is not None:
                arrays: dict[str, Any] = {k: np.load(f, mmap_mode="r") for k, f in files.items()}
                with atomic(out, replace=replace) as temporary, temporary.open("wb") as file:
                    np.savez_compressed(file, **arrays)
        return self.recorder.done()

    def _here(self, raster: Source, states: bool) -> Generator[Trace]:
        """Run and record batch by batch."""
        for inputs in raster.batches(engine.batch_size(self.network, states)):
            trace = self.engine.run(inputs, states)
            self.recorder.add(inputs, trace)
            yield trace

    def _elsewhere(
        self, spread: Spread, raster: Source, states: bool, keep: bool
    ) -> Generator[Trace]:
        """Have batches run and counted, and record them in order."""
        size = min(SPREAD_BATCH, engine.batch_size(self.network, states))
        job = Batches(self.network, self.energy_model, states, keep)
        with closing(spread.run(job, raster.batches(size))) as results:
            for works, trace in results:
                self.recorder.take(works, trace)
                yield trace


@dataclass(frozen=True, eq=False)
class Batches:
    """Batches to run and to count the work of (a ``spread.Job``); ``keep``: spikes and states return."""

    network: IntegerNetwork
    energy_model: str | None
    states: bool
    keep: bool

    def prepare(self) -> Callable[[Raster], tuple[list[BatchWork], Trace]]:
        """What does one batch of inputs: its work by chip, and the trace."""
        work = Recorder(self.network, self.energy_model).assessment.work
        ready = engine.Engine(self.network, work.cores)

        def do(inputs: Raster) -> tuple[list[BatchWork], Trace]:
            trace = ready.run(inputs, self.states)
            works = work.count(inputs, trace)
            return works, trace if self.keep else _counts_only(trace, self.network.readout)

        return do


def _counts_only(trace: Trace, readout: Readout) -> Trace:
    """The trace without what is as large as the network; with the votes that a matrix weighs."""
    none = np.zeros((len(trace.predictions), 1, 0), np.uint8)
    kept = readout.source if readout.matrix is not None else None
    layers = {
        name: LayerTrace(did.spikes if name == kept else none, did.active, did.overflow)
        for name, did in trace.layers.items()
    }
    return Trace(layers, trace.predictions)


def _store(files: dict[str, Path], folder: Path, trace: Trace, states: bool, samples: int) -> None:
    """Append a batch to npy files of ``samples`` in all, which need not fit into memory.

    A trace may have v without ``states``, because the readout needs it. The files are written and not
    mapped: a full disk ends a process that writes to a mapped file.
    """
    for name, did in trace.layers.items():
        kept = {"v": did.v, "u": did.u, **did.more} if states else {}
        for kind, part in {"spikes": did.spikes, **kept}.items():
            if part is None:
                continue
            key = f"{kind}/{name}"
            path = files.setdefault(key, folder / f"{len(files)}.npy")
            with refusals(path), path.open("ab") as file:
                if file.tell() == 0:
                    header = np.lib.format.header_data_from_array_1_0(part)
                    header["shape"] = (samples, *part.shape[1:])
                    np.lib.format.write_array_header_1_0(file, header)
                file.write(part.tobytes())


def summarize(network: IntegerNetwork, done: Run, raster: Source) -> Activity:
    """What the report shows of a run; the first sample is run again for its picture."""
    first = next(raster.first(1).batches(1))
    trace = engine.run(network, first)
    silent = [p.name for p in network.populations if p.neurons.span == (0, 0)]
    spikes = {name: did.spikes for name, did in trace.layers.items() if name not in silent}
    sent = network.rasters(first) | spikes
    return Activity(
        counts=done.counts,
        energies=done.energies,
        accuracy=accuracy(done.counts, raster),
        sample={name: values[0] for name, values in sent.items()},
    )


def accuracy(counts: Counts, raster: Source) -> float | None:
    """Fraction of right predictions, None without labels."""
    if raster.labels is None:
        return None
    return float((counts.predictions == raster.labels).mean())
