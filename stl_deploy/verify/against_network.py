"""A float graph against the user's own network, which is run on the raster: in float64, and as it is.

The spikes of the network in float64 are a recording without rounding to speak of: with what its layers really
sent, every population of the graph must send the same, but where v meets the threshold to the last digit. As
it is, in float32, the network shows what rounding alone changes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import nir
import numpy as np
from numpy.typing import NDArray

from stl_deploy.importers.given import Live
from stl_deploy.ir.floats import decode
from stl_deploy.ir.notes import Diagnostic
from stl_deploy.spread import Threads
from stl_deploy.verify.against_recording import DOUBLE, SINGLE, Batch, expected, tally_of
from stl_deploy.verify.recorded import Expected

WHERE = "the network itself"
REMEDY = (
    "forward does something that its record does not explain: write it with what "
    "docs/import-snntorch.md lists"
)


@dataclass(frozen=True)
class Itself:
    """What came of it.

    Attributes:
        expected: the graph against the network in float64, or in float32 where it runs in that alone; None
            where it could not be run on this raster.
        float32: by population, in how many entries the network as it is differs from itself in float64; None
            where there is no such copy.
        why: why something of this is None.
    """

    expected: Expected | None
    float32: dict[str, int] | None
    why: str = ""

    @property
    def notes(self) -> tuple[Diagnostic, ...]:
        """What the user should know."""
        if not self.why:
            return ()
        remedy = "give a raster with the steps that forward takes, or a recording: --expect"
        return (Diagnostic(WHERE, self.why, remedy),)


def compare(
    live: Live,
    graph: nir.NIRGraph,
    raster: NDArray[Any],
    *,
    batch: int = 25,
    on_progress: Callable[[int], None] | None = None,
) -> Itself:
    """Run the network on a raster [N, T, *shape] of its lowered float ``graph``, and compare."""
    network = decode(graph)
    runner = _Runner(live, raster, batch)
    try:
        first = runner.run(0)
        unit = SINGLE if runner.only_single else DOUBLE
        total = tally_of(network, unit, runner.batches(first), Threads(), on_progress)
    except _NotRunError as error:
        why = f"cannot be run on the raster ({error}); its float graph stands in for it"
        return Itself(None, None, why)
    found = expected(network, WHERE, total, REMEDY)
    if runner.only_single:
        return Itself(found, None, "does not run in float64; it was compared in float32")
    return Itself(found, dict(runner.float32))


class _NotRunError(Exception):
    """The user's own code failed."""


class _Runner:
    """Runs a network batch by batch, and counts where float32 differs from float64."""

    def __init__(self, live: Live, raster: NDArray[Any], size: int) -> None:
        self.live, self.raster, self.size = live, raster, size
        self.float32: Counter[str] = Counter()
        self.only_single = False

    def run(self, start: int) -> Batch:
        """The batch from sample ``start`` on."""
        inputs = self.raster[start : start + self.size]
        try:
            single, double = self.live.run(inputs)
        except (Exception, SystemExit) as error:  # whatever the user's own code raises
            text = f"{type(error).__name__}: {error}".splitlines()[0]
            raise _NotRunError(text) from error
        if start and (double is None) != self.only_single:
            raise _NotRunError(f"in float64 it fails from sample {start:,} on")
        self.only_single = double is None
        for name, spikes in (double or {}).items():
            self.float32[name] += int(np.count_nonzero(single[name] != spikes))
        return Batch(start, inputs, single if double is None else double)

    def batches(self, first: Batch) -> Iterator[Batch]:
        """All batches, of which the first was run already."""
        yield first
        for start in range(self.size, len(self.raster), self.size):
            yield self.run(start)
