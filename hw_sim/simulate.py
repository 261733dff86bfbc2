"""Running a network on a whole raster within bounded memory, and what a report says of the run."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stl_deploy import chip as chips
from stl_deploy import placement
from stl_deploy.files import atomic
from stl_deploy.hw_sim import engine
from stl_deploy.hw_sim.counts import Counter, Counts
from stl_deploy.hw_sim.energy import Energy, assess
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


def run(
    network: IntegerNetwork,
    raster: Source,
    out: Path | None = None,
    states: bool = False,
    on_progress: Callable[[int], None] | None = None,
) -> Counts:
    """Run ``raster`` batch by batch, count events, and with ``out`` write the whole trace.

    The trace holds ``spikes/<layer>`` uint8 [N, T, *shape], with ``states`` ``v/<layer>`` and
    ``u/<layer>``.
    """
    counter = Counter(network)
    with tempfile.TemporaryDirectory() as folder:
        arrays: dict[str, NDArray[Any]] = {}

        def visit(start: int, inputs: IntArray, trace: Trace) -> None:
            counter.add(inputs, trace)
            if out is not None:
                _store(arrays, Path(folder), trace, start, raster.shape[0])
            if on_progress is not None:
                on_progress(start + len(inputs))

        engine.in_batches(
            network, raster.batches(engine.batch_size(network, states)), visit, states
        )
        if out is not None:
            with atomic(out) as temporary, temporary.open("wb") as file:
                np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    return counter.total()


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


def energies(
    network: IntegerNetwork, counts: Counts, profile: str | None = None
) -> dict[str, Energy]:
    """Energy and time by every profile, or by one."""
    wanted = {name: p for name, p in chips.profiles().items() if profile in (None, name)}
    # Placing takes seconds where the network is large: once a chip, not once a profile.
    on = {
        name: replace(network, placement=placement.of(network, chip))
        for name, chip in {chip.name: chip for chip, _ in wanted.values()}.items()
    }
    return {
        name: assess(on[chip.name], counts, chip, facts) for name, (chip, facts) in wanted.items()
    }


def summarize(
    network: IntegerNetwork, counts: Counts, raster: Source, profile: str | None = None
) -> Activity:
    """What the report shows of a run; the first sample is run again for its picture."""
    first = next(raster.first(1).batches(1))
    trace = engine.run(network, first)
    return Activity(
        counts=counts,
        energies=energies(network, counts, profile),
        accuracy=accuracy(counts, raster),
        sample={"input": first[0]} | {n: did.spikes[0] for n, did in trace.layers.items()},
    )


def accuracy(counts: Counts, raster: Source) -> float | None:
    """Fraction of right predictions, None without labels."""
    if raster.labels is None:
        return None
    return float((counts.predictions == raster.labels).mean())
