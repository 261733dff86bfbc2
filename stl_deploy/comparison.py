"""Float against integer: spike mismatch per layer, certificates, first divergence, predictions.

The reference is the PyTorch model's float32 parameters evaluated in float64. Beside the integer
network stand the float NIR graph (which must agree exactly) and the same model in float32 (which
shows how much rounding alone flips).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import nir
import numpy as np
from numpy.typing import NDArray

from stl_deploy import float_exec
from stl_deploy.errors import InputError, Problem
from stl_deploy.network import IntArray, IntegerNetwork
from stl_deploy.raster import Raster

if TYPE_CHECKING:
    from stl_deploy.audit import Audit
    from stl_deploy.divergence import Divergence
    from stl_deploy.hw_sim.engine import Engine
    from stl_deploy.hw_sim.reference import Trace
    from stl_deploy.models.net import STLNet

Spikes = dict[str, NDArray[np.uint8]]
Visit = Callable[[NDArray[np.uint8], "Trace"], None]


@dataclass(frozen=True)
class LayerParity:
    """Fractions of a layer's N*T*neurons entries that differ from the float64 model.

    ``mismatch``: integer network, errors of earlier layers included; ``mismatch_forced``: this
    layer alone, fed with the float model's spikes; ``float32_mismatch``: the PyTorch model in
    float32; ``nir_mismatch``: the float NIR graph.

    ``certified``: the fraction of entries whose forced spike is proved equal (``certificates.py``),
    ``certified_spiking`` that of the entries where either side spikes. None where nothing is proved
    of the layer, or no side ever spikes.
    """

    name: str
    entries: int
    mismatch: float
    mismatch_forced: float
    float32_mismatch: float
    nir_mismatch: float
    certified: float | None = None
    certified_spiking: float | None = None


@dataclass(frozen=True)
class ParityReport:
    """The whole comparison; accuracies are None without labels.

    ``first_divergence`` is None where no spike differs. ``not_certified`` says of layers why not.
    """

    samples: int
    layers: tuple[LayerParity, ...]
    accuracy_float: float | None
    accuracy_lowered: float | None
    prediction_agreement: float
    first_divergence: Divergence | None = None
    not_certified: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain data with the keys that scripts use."""
        return {
            "samples": self.samples,
            "accuracy": {"float": self.accuracy_float, "lowered": self.accuracy_lowered},
            "prediction_agreement": self.prediction_agreement,
            "layers": [vars(layer) for layer in self.layers],
            "first_divergence": None
            if self.first_divergence is None
            else self.first_divergence.to_json(),
            "not_certified": self.not_certified,
        }


def compare(
    model: STLNet,
    graph: nir.NIRGraph,
    network: IntegerNetwork,
    raster: Raster,
    *,
    batch: int = 50,
    visit: Visit | None = None,
    cores: Mapping[str, IntArray] | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> ParityReport:
    """Compare ``model``, its lowered float ``graph`` and ``network`` on ``raster``.

    ``visit(inputs, trace)`` is called with every batch of the integer run, so that whoever counts
    events need not run the network again, with active neurons by ``cores`` (see ``reference.run``);
    ``on_progress(done)`` with the number of samples done.

    Raises CertificateError when a spike contradicts what was proved of it: a bug, and no statistic.
    """
    import torch

    from stl_deploy.audit import Audit
    from stl_deploy.hw_sim.engine import Engine
    from stl_deploy.importers import stl
    from stl_deploy.models.net import infer

    _check_same(model, network)
    engine = Engine(network, cores)
    audit = Audit(graph, network, stl.to_graph(model.arch, stl.params_of(model)))
    tallies: dict[str, NDArray[np.int64]] = {}
    entries: dict[str, int] = {}
    hits = np.zeros(3, np.int64)
    for start in range(0, len(raster.spikes), batch):
        inputs = raster.spikes[start : start + batch]
        tensor = torch.from_numpy(inputs)
        double = _numpy(infer(model, tensor, torch.float64))
        others = [_numpy(infer(model, tensor, torch.float32)), float_exec.run(graph, inputs)]
        trace, forced = _integer(engine, inputs, double)
        lowered = {name: did.spikes for name, did in trace.layers.items()}
        audit.add(inputs, double, forced, lowered)
        for name, expected in double.items():
            differing = [
                np.count_nonzero(got[name] != expected) for got in (lowered, forced, *others)
            ]
            tallies[name] = tallies.get(name, np.zeros(4, np.int64)) + differing
            entries[name] = entries.get(name, 0) + expected.size
        want = network.readout.predict(double[network.layers[-1].name])
        hits[2] += np.count_nonzero(want == trace.predictions)
        if raster.labels is not None:
            labels = raster.labels[start : start + batch]
            hits[0] += np.count_nonzero(want == labels)
            hits[1] += np.count_nonzero(trace.predictions == labels)
        if visit is not None:
            visit(inputs, trace)
        if on_progress is not None:
            on_progress(start + len(inputs))
    n = len(raster.spikes)
    labelled = raster.labels is not None
    return ParityReport(
        samples=n,
        layers=tuple(
            _layer(name, tallies[name] / entries[name], entries[name], audit) for name in tallies
        ),
        accuracy_float=float(hits[0] / n) if labelled else None,
        accuracy_lowered=float(hits[1] / n) if labelled else None,
        prediction_agreement=float(hits[2] / n),
        first_divergence=audit.first,
        not_certified=audit.not_covered,
    )


def _layer(name: str, fractions: NDArray[np.float64], entries: int, audit: Audit) -> LayerParity:
    mismatch, forced, float32, lowered_float = map(float, fractions)
    return LayerParity(
        name,
        entries,
        mismatch,
        forced,
        float32,
        lowered_float,
        audit.certified(name),
        audit.certified_spiking(name),
    )


def _check_same(model: STLNet, network: IntegerNetwork) -> None:
    """Raise InputError unless the network has the model's layers."""
    shapes = model.arch.shapes
    mine = {layer.name: layer.shape for layer in network.layers}
    theirs = {name: shape for name, shape in shapes.items() if name in mine}
    if mine != theirs or model.arch.timesteps != network.timesteps:
        raise InputError(
            Problem("network", f"its layers {mine} are not those of the model, {shapes}")
        )


def _integer(engine: Engine, inputs: NDArray[np.uint8], expected: Spikes) -> tuple[Trace, Spikes]:
    """The integer run, and each layer's spikes when it is fed with the float model's instead."""
    trace = engine.run(inputs)
    forced: Spikes = {}
    before: NDArray[np.uint8] = inputs
    for layer in engine.network.layers:
        forced[layer.name] = engine.run_layer(layer, before).spikes
        before = expected[layer.name]
    return trace, forced


def _numpy(spikes: dict[str, Any]) -> Spikes:
    return {name: tensor.numpy().astype(np.uint8) for name, tensor in spikes.items()}
