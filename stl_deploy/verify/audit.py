"""The audit of a comparison: certificates of every population, and the first divergence.

It goes batch by batch and keeps counts only, so that a run over any number of samples needs no more
memory than one batch. ``Audit.examine`` may run anywhere and in any order; ``Audit.take`` adds up what
it found, in the order of the samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import nir
import numpy as np
from numpy.typing import NDArray

from stl_deploy.errors import Problem
from stl_deploy.ir.floats import decode
from stl_deploy.ir.network import IntegerNetwork, Raster
from stl_deploy.ir.synapses import Shape
from stl_deploy.verify import certificates, divergence, faults
from stl_deploy.verify.certificates import Verdicts
from stl_deploy.verify.divergence import CertificateError, Divergence, Place

Bytes = NDArray[np.uint8]
Counts = NDArray[np.int64]
BUG = "this is a bug, of the run or of the proof: please report it with the model"


@dataclass(frozen=True, eq=False)
class Evidence:
    """A batch's first divergence: where, counted from the batch's first sample, and that sample.

    ``sent`` is what the population and each of its sources send in the float model, [T, *shape], in the
    integer network where that is values;
    ``forced`` and ``lowered`` are its spikes uint8 [T, *shape], as in ``Audit.examine``.
    """

    place: Place
    sent: dict[str, NDArray[Any]]
    forced: Bytes
    lowered: Bytes


@dataclass(frozen=True)
class Contradiction:
    """The first of ``count`` spikes of a population that are not what was proved; sample as in Evidence."""

    layer: str
    count: int
    sample: int
    step: int
    neuron: Shape
    what: str


@dataclass(frozen=True, eq=False)
class Findings:
    """What ``Audit.examine`` found in a batch.

    ``counts`` int64 [4] of each certified population: entries, certified, entries with a spike on either
    side, certified of those.
    """

    samples: int
    counts: dict[str, Counts]
    first: Evidence | None
    contradiction: Contradiction | None


class Audit:
    """Certifies a network against a float graph, batch by batch.

    Args:
        graph: the lowered float graph.
        network: the integer network made from it.
        source: the graph before it was lowered, as the float model is computed.
    """

    def __init__(
        self, graph: nir.NIRGraph, network: IntegerNetwork, source: nir.NIRGraph | None = None
    ) -> None:
        self.network = network
        self.certifiers = certificates.certifiers(network, graph, source)
        floats = decode(graph)
        self.faults = tuple(
            fault
            for population in network.populations
            if certificates.comparable(network, population, floats)
            for fault in faults.of_network(network, population, floats)
        )
        self.first: Divergence | None = None
        self._counts = {p.name: np.zeros(4, np.int64) for p in network.populations}
        self._samples = 0

    @property
    def not_covered(self) -> dict[str, str]:
        """Why a population is not certified, for those that are not."""
        return {name: why for name, why in self.certifiers.items() if isinstance(why, str)}

    def certified(self, name: str) -> float | None:
        """The certified fraction of a population's entries; None where nothing certifies it."""
        return self._fraction(name, 0)

    def certified_spiking(self, name: str) -> float | None:
        """The same of entries where either side spikes; None where there are none."""
        return self._fraction(name, 2)

    def _fraction(self, name: str, of: int) -> float | None:
        total, certified = map(int, self._counts[name][of : of + 2])
        return None if isinstance(self.certifiers[name], str) or not total else certified / total

    def add(
        self,
        inputs: Raster,
        expected: Mapping[str, Bytes],
        forced: Mapping[str, Bytes],
        lowered: Mapping[str, Bytes],
    ) -> None:
        """Audit one batch: ``take`` of what ``examine`` finds in it."""
        self.take(self.examine(inputs, expected, forced, lowered))

    def examine(
        self,
        inputs: Raster,
        expected: Mapping[str, Bytes],
        forced: Mapping[str, Bytes],
        lowered: Mapping[str, Bytes],
    ) -> Findings:
        """What is found in one batch; nothing here is changed by it, so batches may run at once.

        Args:
            inputs: the raster of the batch; the rest are spikes uint8 [N, T, *shape] by population:
            expected: of the float model; forced: of each integer population on the float model's spikes;
            lowered: of the integer network as it runs.
        """
        counts: dict[str, Counts] = {}
        contradiction: Contradiction | None = None
        # What the float model does not have, a relay say, sends what follows from the float spikes.
        sent = {**self.network.rasters(inputs), **forced, **expected}
        for name, certifier in self.certifiers.items():
            if isinstance(certifier, str):
                continue
            want, got = expected[name], forced[name]
            verdicts = certifier.run(sent, want)
            counts[name] = _count(verdicts, want, got)
            contradiction = contradiction or _contradicted(name, verdicts, got)
        first = self._find(sent, expected, forced, lowered)
        samples = len(next(iter(expected.values())))
        return Findings(samples, counts, first, contradiction)

    def take(self, found: Findings) -> None:
        """Add up what was found in the next batch.

        Raises:
            CertificateError: a spike contradicts what was proved, or the network's own arithmetic.
        """
        if self.first is None and found.first is not None:
            self.first = self._explain(found.first)
        if found.contradiction is not None:
            self._refuse(found.contradiction)
        if self.first is not None and self.first.blame == "execution":
            # What the definition of the network's arithmetic says needs no certificate.
            raise CertificateError(
                Problem(self.first.place.layer, self.first.text, BUG), self.first
            )
        for name, counts in found.counts.items():
            self._counts[name] += counts
        self._samples += found.samples

    def _refuse(self, wrong: Contradiction) -> None:
        """Raise CertificateError about a contradiction."""
        raise CertificateError(
            Problem(
                wrong.layer,
                f"{wrong.count:,} certificates are wrong, the first in sample "
                f"{self._samples + wrong.sample}, step {wrong.step}, neuron {wrong.neuron}: "
                f"{wrong.what}." + ("" if self.first is None else f" {self.first.text}"),
                BUG,
            ),
            self.first,
        )

    def _find(
        self,
        sent: Mapping[str, NDArray[Any]],
        expected: Mapping[str, Bytes],
        forced: Mapping[str, Bytes],
        lowered: Mapping[str, Bytes],
    ) -> Evidence | None:
        """The batch's first divergence, if it has one."""
        place = divergence.find(self.network, expected, lowered)
        if place is None:
            return None
        sources = {place.layer, *(c.source for c in self.network.into(place.layer))}
        if not isinstance(certifier := self.certifiers[place.layer], str):
            sources |= {c.source for c in certifier.floats.into(place.layer)}
        # Values that were sent may differ a little without a spike that does: what came is what was sent.
        graded = {p.name for p in self.network.populations if p.neurons.graded is not None}
        sent = {**sent, **{name: lowered[name] for name in graded & sources}}
        # Copies: a view would keep the whole batch.
        forced_here, lowered_here = (
            spikes[place.layer][place.sample].copy() for spikes in (forced, lowered)
        )
        here = {name: sent[name][place.sample].copy() for name in sources}
        return Evidence(place, here, forced_here, lowered_here)

    def _explain(self, evidence: Evidence) -> Divergence:
        """Take the first divergence apart."""
        place = evidence.place
        return divergence.explain(
            self.network,
            self.certifiers[place.layer],
            replace(place, sample=self._samples + place.sample),
            evidence.sent,
            evidence.forced,
            evidence.lowered,
            self.faults,
        )


def _count(verdicts: Verdicts, expected: Bytes, forced: Bytes) -> Counts:
    """Entries, certified, entries with a spike on either side, certified of those."""
    certified = verdicts.certified(expected)
    spiking = (expected | forced) != 0
    numbers = map(np.count_nonzero, (certified, spiking, certified & spiking))
    return np.array([certified.size, *numbers], np.int64)


def _contradicted(layer: str, verdicts: Verdicts, forced: Bytes) -> Contradiction | None:
    """The first of the entries whose spike in ``forced`` is not what was proved."""
    wrong = verdicts.wrong(forced)
    if not wrong.any():
        return None
    at = tuple(int(i) for i in np.argwhere(wrong)[0])
    if verdicts.refuted[at]:
        what = "the float voltage that it rests on contradicts the float model's own spike"
    elif verdicts.fires[at]:
        what = "the integer neuron was proved to spike and did not"
    else:
        what = "the integer neuron was proved to stay silent and did not"
    sample, step, *neuron = at
    return Contradiction(layer, int(np.count_nonzero(wrong)), sample, step, tuple(neuron), what)
