"""Whether a backend equals the reference of hw_sim: what neurons send, their states, the predictions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stl_deploy import backends
from stl_deploy.hw_sim import reference
from stl_deploy.hw_sim.reference import LayerTrace, Trace
from stl_deploy.hw_sim.simulate import batch_size
from stl_deploy.ir.network import IntegerNetwork, Raster
from stl_deploy.spread import Spread, Threads

# In the order in which a step computes them. Those that are not u, v and spikes are in the traces of some
# neurons only (``Lif.states``).
KINDS = ("u", "u2", "v", "spikes", "rest", "q")
PREDICTION = "prediction"


@dataclass(frozen=True)
class Difference:
    """One entry that differs: ``neuron`` is its index in the population ``layer``.

    ``kind`` is one of ``KINDS``, or "prediction" of the sample, which has the last step and no neuron.
    """

    layer: str
    kind: str
    sample: int
    step: int
    neuron: tuple[int, ...]
    expected: int
    got: int


@dataclass(frozen=True)
class Agreement:
    """What was compared, and how much of it differed.

    ``entries`` are the spikes, or the values sent instead: N*T*neurons of all populations. ``states`` are
    two for each of them, and more where neurons have more. Predictions are compared where the backend makes
    them. ``first`` is the first difference in the first population that has one.
    """

    entries: int = 0
    states: int = 0
    spike_mismatches: int = 0
    state_mismatches: int = 0
    prediction_mismatches: int = 0
    first: Difference | None = None

    @property
    def exact(self) -> bool:
        """No difference."""
        return not (self.spike_mismatches or self.state_mismatches or self.prediction_mismatches)

    def __add__(self, other: Agreement) -> Agreement:
        return Agreement(
            self.entries + other.entries,
            self.states + other.states,
            self.spike_mismatches + other.spike_mismatches,
            self.state_mismatches + other.state_mismatches,
            self.prediction_mismatches + other.prediction_mismatches,
            self.first or other.first,
        )


def compare(
    network: IntegerNetwork, expected: Trace, got: Mapping[str, NDArray[Any]], first_sample: int = 0
) -> Agreement:
    """Compare a backend's trace (see ``backends.Session``) with the reference's, with states."""
    total = Agreement()
    for name in (population.name for population in network.populations):
        for kind, want in _kept(expected.layers[name]):
            have = got[f"{kind}/{name}"]
            if kind == "spikes" and (bare := got.get(f"bare/{name}")) is not None:
                have = np.where(bare != want, bare, have)
            where = np.argwhere(have != want)
            first = (
                _difference(name, kind, where[0], want, have, first_sample) if len(where) else None
            )
            if kind == "spikes":
                total += Agreement(want.size, spike_mismatches=len(where), first=first)
            else:
                total += Agreement(states=want.size, state_mismatches=len(where), first=first)
    if PREDICTION in got:
        total += _predictions(network, expected.predictions, got[PREDICTION], first_sample)
    return total


def _kept(trace: LayerTrace) -> Iterator[tuple[str, NDArray[Any]]]:
    """What a trace holds, by its kind."""
    held = {"spikes": trace.spikes, "u": trace.u, "v": trace.v, **trace.more}
    for kind in KINDS:
        if (values := held.get(kind)) is not None:
            yield kind, values


def _predictions(
    network: IntegerNetwork, want: NDArray[Any], have: NDArray[Any], first_sample: int
) -> Agreement:
    where = np.flatnonzero(have != want)
    if not len(where):
        return Agreement()
    sample, step = int(where[0]), network.timesteps - 1
    values = int(want[sample]), int(have[sample])
    first = Difference(network.readout.source, PREDICTION, first_sample + sample, step, (), *values)
    return Agreement(prediction_mismatches=len(where), first=first)


def _difference(
    layer: str,
    kind: str,
    index: NDArray[np.int64],
    want: NDArray[Any],
    have: NDArray[Any],
    first_sample: int,
) -> Difference:
    sample, step, *neuron = (int(i) for i in index)
    at = (sample, step, *neuron)
    return Difference(
        layer, kind, first_sample + sample, step, tuple(neuron), int(want[at]), int(have[at])
    )


def measure(
    backend: str,
    network: IntegerNetwork,
    raster: Raster,
    *,
    stall_s: float = backends.STALL_S,
    on_steps: Callable[[int], None] | None = None,
    spread: Spread | None = None,
) -> Agreement:
    """Run ``backend``, one of ``backends.BACKENDS``, on a raster, in batches.

    Those whose batches may be spread are worked on by ``spread``; the others run here, one batch after the
    other. ``on_steps(done)`` is called with the number of time steps done; ``stall_s``: seconds without
    progress after which a backend with a process of its own is ended.

    Raises LoweringError when the backend cannot carry the network, BackendError when it fails.
    """
    tell = on_steps or (lambda _: None)
    entry = backends.BACKENDS[backend]
    samples = len(next(iter(network.rasters(raster).values())))
    batch = max(1, min(entry.batch or samples, batch_size(network)))
    starts = range(0, samples, batch)
    batches = ((start, _part(raster, slice(start, start + batch))) for start in starts)
    # What travels to a cluster cannot tell; here whole batches are told of below.
    job = Check(backend, network, stall_s, None if entry.spreads else tell)
    who = (spread or Threads()) if entry.spreads else Threads(1)
    total = Agreement()
    with closing(who.run(job, batches)) as results:
        for start, found in zip(starts, results, strict=True):
            total += found
            tell(min(start + batch, samples) * network.timesteps)
    return total


def _part(raster: Raster, samples: slice) -> Raster:
    """Some samples of each input."""
    if isinstance(raster, Mapping):
        return {name: values[samples] for name, values in raster.items()}
    return raster[samples]


@dataclass(frozen=True, eq=False)
class Check:
    """A backend against the reference (a ``spread.Job``); ``tell`` is called with the time steps done."""

    backend: str
    network: IntegerNetwork
    stall_s: float
    tell: backends.Steps | None

    def prepare(self) -> Callable[[tuple[int, Raster]], Agreement]:
        """What does one batch: (number of its first sample, inputs)."""
        session = backends.load(self.backend).session(self.network, self.stall_s)

        def check(batch: tuple[int, Raster]) -> Agreement:
            start, inputs = batch
            got = session.run(inputs, self._from(start * self.network.timesteps))
            expected = reference.run(self.network, inputs, states=True)
            return compare(self.network, expected, got, start)

        return check

    def _from(self, before: int) -> backends.Steps | None:
        """What is told of a batch that begins when ``before`` steps are done."""
        tell = self.tell
        return None if tell is None else lambda steps: tell(before + steps)
