"""Running a network on a whole raster within bounded memory, and what a report says of the run."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stl_deploy.files import atomic
from stl_deploy.hw_sim import engine
from stl_deploy.hw_sim.counts import Counter, Counts
from stl_deploy.hw_sim.energy import Assessment, Energy
from stl_deploy.hw_sim.reference import Trace
from stl_deploy.network import IntArray, IntegerNetwork
from stl_deploy.raster import Source
from stl_deploy.report import Activity

MEMORY = 512 << 20  # bytes that one batch may take, roughly
BYTES_PER_ENTRY = 64  # of the largest layer, all temporaries together


def batch_size(network: IntegerNetwork) -> int:
    """Samples at a time that keep a run of the reference, or of the float model, within MEMORY."""
    largest = max(math.prod(network.input_shape), *(layer.neurons for layer in network.layers))
    return max(1, min(256, MEMORY // (largest * network.timesteps * BYTES_PER_ENTRY)))


@dataclass(frozen=True)
class Run:
    """What a run did, and what that takes by profile."""

    counts: Counts
    energies: dict[str, Energy]


class Recorder:
    """Counts a run, and prices it by every profile or by one.

    Run the network with ``cores``, and use ``add`` on each batch, in order.
    """

    def __init__(self, network: IntegerNetwork, profile: str | None = None) -> None:
        self.counter = Counter(network)
        self.assessment = Assessment(network, profile)

    @property
    def cores(self) -> dict[str, IntArray]:
        """What ``reference.run`` needs."""
        return self.assessment.cores

    def reset(self) -> None:
        """Forget everything taken in."""
        self.counter.reset()
        self.assessment.reset()

    def add(self, inputs: IntArray, trace: Trace) -> None:
        """Take in one batch."""
        self.counter.add(self.assessment.add(inputs, trace), trace)

    def done(self) -> Run:
        """Everything taken in."""
        return Run(self.counter.total(), self.assessment.energies())


class Simulator:
    """A network prepared to run on any number of rasters: placed, wired and planned once.

    Energy and time come by every profile, or by the one named.
    """

    def __init__(self, network: IntegerNetwork, profile: str | None = None) -> None:
        self.network = network
        self.recorder = Recorder(network, profile)
        self.engine = engine.Engine(network, self.recorder.cores)

    def run(
        self,
        raster: Source,
        out: Path | None = None,
        states: bool = False,
        on_progress: Callable[[int], None] | None = None,
    ) -> Run:
        """Run ``raster`` batch by batch, count and price events, and with ``out`` write the whole trace.

        The trace holds ``spikes/<layer>`` uint8 [N, T, *shape], with ``states`` ``v/<layer>`` and
        ``u/<layer>``. ``on_progress(done)`` is called with the number of samples done.
        """
        self.recorder.reset()
        done = 0
        with tempfile.TemporaryDirectory() as folder:
            arrays: dict[str, NDArray[Any]] = {}
            for inputs in raster.batches(engine.batch_size(self.network, states)):
                trace = self.engine.run(inputs, states)
                self.recorder.add(inputs, trace)
                if out is not None:
                    _store(arrays, Path(folder), trace, done, raster.shape[0])
                done += len(inputs)
                if on_progress is not None:
                    on_progress(done)
            if out is not None:
                with atomic(out) as temporary, temporary.open("wb") as file:
                    np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
        return self.recorder.done()


def _store(
    arrays: dict[str, NDArray[Any]], folder: Path, trace: Trace, start: int, samples: int
) -> None:
    """Put a batch into arrays on disk, which need not fit into memory."""
    for name, did in trace.layers.items():
        for kind, part in (("spikes", did.spikes), ("v", did.v), ("u", did.u)):
            if part is None:
                continue
            key = f"{kind}/{name}"
            if key not in arrays:
                arrays[key] = np.lib.format.open_memmap(
                    folder / f"{len(arrays)}.npy", "w+", part.dtype, (samples, *part.shape[1:])
                )
            arrays[key][start : start + len(part)] = part


def summarize(network: IntegerNetwork, done: Run, raster: Source) -> Activity:
    """What the report shows of a run; the first sample is run again for its picture."""
    first = next(raster.first(1).batches(1))
    trace = engine.run(network, first)
    return Activity(
        counts=done.counts,
        energies=done.energies,
        accuracy=accuracy(done.counts, raster),
        sample={"input": first[0]} | {n: did.spikes[0] for n, did in trace.layers.items()},
    )


def accuracy(counts: Counts, raster: Source) -> float | None:
    """Fraction of right predictions, None without labels."""
    if raster.labels is None:
        return None
    return float((counts.predictions == raster.labels).mean())
