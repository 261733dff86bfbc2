"""The audit of a comparison: certificates of every layer, and the first divergence.

``Audit.add`` takes a batch at a time and keeps counts only, so that a run over any number of samples
needs no more memory than one batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import nir
import numpy as np
from numpy.typing import NDArray

from stl_deploy import certificates, divergence, faults
from stl_deploy.certificates import LifCertifier, Verdicts
from stl_deploy.divergence import CertificateError, Divergence
from stl_deploy.errors import Problem
from stl_deploy.network import IntegerNetwork, Layer

Bytes = NDArray[np.uint8]
BUG = "this is a bug, of the run or of the proof: please report it with the model"


class Audit:
    """Certifies a network against a float graph, batch by batch.

    Args:
        graph: the lowered float graph.
        network: the integer network made from it.
        source: the graph before the passes, as the float model is computed.
    """

    def __init__(
        self, graph: nir.NIRGraph, network: IntegerNetwork, source: nir.NIRGraph | None = None
    ) -> None:
        self.network = network
        self.certifiers = certificates.certifiers(network, graph, source)
        self.faults = tuple(
            fault
            for layer in network.lif_layers
            if isinstance(known := self.certifiers[layer.name], LifCertifier)
            for fault in faults.of_network(network, layer, known.floats)
        )
        self.first: Divergence | None = None
        # Of each layer: entries, certified, entries with a spike on either side, certified of those.
        self._counts = {layer.name: np.zeros(4, np.int64) for layer in network.layers}
        self._samples = 0

    @property
    def not_covered(self) -> dict[str, str]:
        """Why a layer is not certified, for those that are not."""
        return {name: why for name, why in self.certifiers.items() if isinstance(why, str)}

    def certified(self, name: str) -> float | None:
        """The certified fraction of a layer's entries; None where nothing certifies it."""
        return self._fraction(name, 0)

    def certified_spiking(self, name: str) -> float | None:
        """The same of entries where either side spikes; None where there are none."""
        return self._fraction(name, 2)

    def _fraction(self, name: str, of: int) -> float | None:
        total, certified = map(int, self._counts[name][of : of + 2])
        return None if isinstance(self.certifiers[name], str) or not total else certified / total

    def add(
        self,
        inputs: Bytes,
        expected: Mapping[str, Bytes],
        forced: Mapping[str, Bytes],
        lowered: Mapping[str, Bytes],
    ) -> None:
        """Audit one batch.

        Args:
            inputs: [N, T, *input_shape]; the rest are spikes uint8 [N, T, *shape] by layer:
            expected: of the float model; forced: of each integer layer on the float model's spikes;
            lowered: of the integer network as it runs.

        Raises:
            CertificateError: a spike contradicts what was proved, or the network's own arithmetic.
        """
        if self.first is None:
            self.first = self._find(inputs, expected, forced, lowered)
        before = inputs
        for layer in self.network.layers:
            certifier = self.certifiers[layer.name]
            if not isinstance(certifier, str):
                want, got = expected[layer.name], forced[layer.name]
                self._certify(layer, certifier.run(before, want), want, got)
            before = expected[layer.name]
        if self.first is not None and self.first.blame == "execution":
            # What the definition of the network's arithmetic says needs no certificate.
            raise CertificateError(
                Problem(self.first.place.layer, self.first.text, BUG), self.first
            )
        self._samples += len(inputs)

    def _certify(self, layer: Layer, verdicts: Verdicts, expected: Bytes, forced: Bytes) -> None:
        """Count one layer's certificates; raise CertificateError where one is wrong."""
        wrong = verdicts.wrong(forced)
        if wrong.any():
            self._refuse(layer, verdicts, wrong)
        certified = verdicts.certified(expected)
        spiking = (expected | forced) != 0
        both = certified & spiking
        counts = [certified.size, *map(np.count_nonzero, (certified, spiking, both))]
        self._counts[layer.name] += np.array(counts, np.int64)

    def _refuse(self, layer: Layer, verdicts: Verdicts, wrong: NDArray[np.bool_]) -> None:
        """Raise CertificateError about the first of the ``wrong`` entries."""
        at = tuple(int(i) for i in np.argwhere(wrong)[0])
        if verdicts.refuted[at]:
            what = "the float voltage that it rests on contradicts the float model's own spike"
        elif verdicts.fires[at]:
            what = "the integer neuron was proved to spike and did not"
        else:
            what = "the integer neuron was proved to stay silent and did not"
        sample, step, *neuron = at
        raise CertificateError(
            Problem(
                layer.name,
                f"{np.count_nonzero(wrong):,} certificates are wrong, the first in sample "
                f"{self._samples + sample}, step {step}, neuron {tuple(neuron)}: {what}."
                + ("" if self.first is None else f" {self.first.text}"),
                BUG,
            ),
            self.first,
        )

    def _find(
        self,
        inputs: Bytes,
        expected: Mapping[str, Bytes],
        forced: Mapping[str, Bytes],
        lowered: Mapping[str, Bytes],
    ) -> Divergence | None:
        """The batch's first divergence, if it has one."""
        place = divergence.find(self.network, expected, lowered)
        if place is None:
            return None
        names = [layer.name for layer in self.network.layers]
        index, sample = names.index(place.layer), place.sample
        before = inputs if index == 0 else expected[names[index - 1]]
        return divergence.explain(
            self.network,
            self.network.layers[index],
            self.certifiers[place.layer],
            replace(place, sample=self._samples + sample),
            before[sample],
            expected[place.layer][sample],
            forced[place.layer][sample],
            lowered[place.layer][sample],
            self.faults,
        )
