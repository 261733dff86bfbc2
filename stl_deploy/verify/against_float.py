"""Float against integer: spike mismatch per population, certificates, first divergence, predictions.

The reference is the PyTorch model's float32 parameters evaluated in float64. In addition to
the integer network, the float NIR graph (which must agree exactly) and the same model in float32
(which shows how much rounding alone flips) are compared with it. Without a PyTorch model the float
NIR graph is the reference.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import nir
import numpy as np
import torch
from numpy.typing import NDArray

from stl_deploy.errors import InputError, Problem
from stl_deploy.formats.raster import Raster as Recorded
from stl_deploy.hw_sim.engine import Engine
from stl_deploy.hw_sim.reference import Trace
from stl_deploy.importers import stl
from stl_deploy.ir import cut
from stl_deploy.ir import execute as float_exec
from stl_deploy.ir import nir_graph as G
from stl_deploy.ir.arch import Architecture
from stl_deploy.ir.floats import decode
from stl_deploy.ir.network import Input, IntegerNetwork, Raster
from stl_deploy.ir.readouts import Readout
from stl_deploy.ir.synapses import IntArray
from stl_deploy.ir.units import UNIT
from stl_deploy.lower import graded
from stl_deploy.models.net import STLNet, converted, from_params
from stl_deploy.report.numbers import percent
from stl_deploy.spread import Spread, Threads
from stl_deploy.verify import pairs
from stl_deploy.verify.against_network import Itself
from stl_deploy.verify.audit import Audit, Findings
from stl_deploy.verify.divergence import Divergence, differ
from stl_deploy.verify.recorded import Expected

Float = NDArray[np.float64]
Spikes = dict[str, NDArray[Any]]  # uint8, or values that neurons send
Visit = Callable[[Raster, Trace], None]


@dataclass(frozen=True)
class LayerParity:
    """Fractions of a population's N*T*neurons entries that differ from the float64 model.

    ``mismatch``: integer network, errors of earlier populations included; ``mismatch_forced``: this
    population alone, fed with the float model's spikes; ``float32_mismatch``: the PyTorch model in
    float32; ``nir_mismatch``: the float NIR graph. The last two are None without a PyTorch model.

    ``certified``: the fraction of entries whose forced spike is proved equal (``certificates.py``),
    ``certified_spiking`` that of the entries where either side spikes. None where nothing is proved
    of the population, or no side ever spikes.
    """

    name: str
    entries: int
    mismatch: float
    mismatch_forced: float
    float32_mismatch: float | None
    nir_mismatch: float | None
    certified: float | None = None
    certified_spiking: float | None = None


@dataclass(frozen=True)
class Voltages:
    """How far the voltages that the readout reads lie from the float model's, in the float model's units.

    Over all samples, steps and neurons of ``population``, of the integer network as it runs: the largest and
    the mean magnitude of the difference, and the largest magnitude of the float voltage itself.
    """

    population: str
    largest_error: float
    mean_error: float
    largest: float


@dataclass(frozen=True)
class ParityReport:
    """The whole comparison; accuracies are None without labels.

    ``first_divergence`` is None where no spike differs. ``not_certified`` says of populations why not.
    ``nir_differing`` are the entries in which the float NIR graph differs from the PyTorch model, None
    without one; ``overflows`` the neuron steps of the integer network outside a register. ``voltages`` are
    those of the readout, None where it does not read any. ``expected`` is the comparison of the float
    graph with a recording of the network in its own tool, None without one; ``itself`` that with the user's
    own network, which the other figures of a PyTorch model then are about.
    """

    samples: int
    layers: tuple[LayerParity, ...]
    accuracy_float: float | None
    accuracy_lowered: float | None
    prediction_agreement: float
    first_divergence: Divergence | None = None
    not_certified: dict[str, str] = field(default_factory=dict)
    nir_differing: int | None = None
    overflows: int = 0
    voltages: Voltages | None = None
    expected: Expected | None = None
    itself: Expected | None = None

    def with_network(self, itself: Itself | None) -> ParityReport:
        """The report with what came of running the user's own network; None where there is none."""
        if itself is None or itself.expected is None:
            return self
        found = {p.name: p for p in itself.expected.populations}
        layers = tuple(
            replace(
                layer,
                nir_mismatch=found[layer.name].differing / found[layer.name].entries,
                float32_mismatch=None
                if itself.float32 is None
                else itself.float32[layer.name] / found[layer.name].entries,
            )
            if layer.name in found
            else layer
            for layer in self.layers
        )
        differing = itself.expected.differing
        return replace(self, layers=layers, nir_differing=differing, itself=itself.expected)

    def __repr__(self) -> str:
        same = percent(self.prediction_agreement)
        told = f"ParityReport of {self.samples:,} samples: {same} equal predictions"
        if self.accuracy_float is not None and self.accuracy_lowered is not None:
            of_float, of_integers = map(percent, (self.accuracy_float, self.accuracy_lowered))
            told += f", accuracy {of_float} float, {of_integers} integer"
        lines = [
            f"  {layer.name}: {percent(layer.mismatch)} of {layer.entries:,} spikes differ, "
            f"{percent(layer.mismatch_forced)} by this population alone"
            for layer in self.layers
        ]
        return "\n".join([told, *lines])

    @property
    def entries(self) -> int:
        """Samples x steps x neurons of all populations."""
        return sum(layer.entries for layer in self.layers)

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
            "readout_voltages": None if self.voltages is None else asdict(self.voltages),
        }


def compare(
    model: STLNet | None,
    graph: nir.NIRGraph,
    network: IntegerNetwork,
    raster: Recorded,
    *,
    batch: int = 50,
    visit: Visit | None = None,
    cores: Mapping[str, IntArray] | None = None,
    on_progress: Callable[[int], None] | None = None,
    spread: Spread | None = None,
) -> ParityReport:
    """Compare ``model``, its lowered float ``graph`` and ``network`` on ``raster``.

    Without a model the graph itself is the reference. ``visit(inputs, trace)`` is called with every batch
    of the integer run, so that whoever counts events need not run the network again, with active neurons
    by ``cores`` (see ``reference.run``); ``on_progress(done)`` with the number of samples done. Batches
    are worked on by ``spread``, by default on all cores; the report does not depend on it.

    Raises CertificateError when a spike contradicts what was proved of it: a bug, and no statistic.
    """
    _check_same(model, graph, network)
    job = Comparison.of(model, graph, network, cores, keep=visit is not None)
    audit = Audit(graph, network, job.source)
    total = Tally()
    labels = raster.labels
    batches = (
        (inputs, None if labels is None else labels[batch * i : batch * (i + 1)])
        for i, inputs in enumerate(raster.batches(batch))
    )
    with closing((spread or Threads()).run(job, batches)) as results:
        for inputs, found in zip(raster.batches(batch), results, strict=True):
            audit.take(found.findings)
            total.add(found.tally)
            if visit is not None and found.trace is not None:
                visit(inputs, found.trace)
            if on_progress is not None:
                on_progress(total.samples)
    labelled = raster.labels is not None
    return ParityReport(
        samples=total.samples,
        layers=tuple(_layer(name, n, audit, model is not None) for name, n in total.layers.items()),
        accuracy_float=total.right_float / total.samples if labelled else None,
        accuracy_lowered=total.right_lowered / total.samples if labelled else None,
        prediction_agreement=total.same / total.samples,
        first_divergence=audit.first,
        not_certified=audit.not_covered,
        nir_differing=None
        if model is None
        else sum(layer.float_nir for layer in total.layers.values()),
        overflows=total.overflows,
        voltages=total.voltages.of(network.readout.source),
    )


@dataclass
class LayerTally:
    """Entries of a population, and how many differ from the reference, by what is compared with it."""

    entries: int = 0
    cascaded: int = 0
    forced: int = 0
    float32: int = 0
    float_nir: int = 0

    def add(self, other: LayerTally) -> None:
        """Add another batch's."""
        for part in fields(self):
            setattr(self, part.name, getattr(self, part.name) + getattr(other, part.name))


@dataclass
class VoltageTally:
    """Voltages that the readout reads: how many, their errors added up and at most, and their magnitude."""

    entries: int = 0
    total: float = 0.0
    largest_error: float = 0.0
    largest: float = 0.0

    @classmethod
    def between(cls, expected: Float, got: Float) -> VoltageTally:
        """Of voltages [N, T, *shape] in the float model, and of the integer network in its units."""
        errors = np.abs(got - expected)
        most = float(errors.max(initial=0)), float(np.abs(expected).max(initial=0))
        return cls(errors.size, float(errors.sum()), *most)

    def add(self, other: VoltageTally) -> None:
        """Add another batch's."""
        self.entries += other.entries
        self.total += other.total
        self.largest_error = max(self.largest_error, other.largest_error)
        self.largest = max(self.largest, other.largest)

    def of(self, population: str) -> Voltages | None:
        """What they come to; None where there were none."""
        if not self.entries:
            return None
        mean = self.total / self.entries
        return Voltages(population, self.largest_error, mean, self.largest)


@dataclass
class Tally:
    """Counts of some samples: right predictions, equal ones, neuron steps with overflow, populations.

    ``voltages`` are those that the readout reads.
    """

    samples: int = 0
    right_float: int = 0
    right_lowered: int = 0
    same: int = 0
    overflows: int = 0
    layers: dict[str, LayerTally] = field(default_factory=dict)
    voltages: VoltageTally = field(default_factory=VoltageTally)

    def add(self, other: Tally) -> None:
        """Add another batch's."""
        self.samples += other.samples
        self.right_float += other.right_float
        self.right_lowered += other.right_lowered
        self.same += other.same
        self.overflows += other.overflows
        self.voltages.add(other.voltages)
        for name, counts in other.layers.items():
            self.layers.setdefault(name, LayerTally()).add(counts)


@dataclass(frozen=True, eq=False)
class Found:
    """What one batch gave; ``trace`` is the integer run where it was asked for."""

    tally: Tally
    findings: Findings
    trace: Trace | None


@dataclass(frozen=True, eq=False)
class Comparison:
    """What is compared, as plain data for whoever works on the batches (a ``spread.Job``).

    ``arch`` and ``params`` make the PyTorch model, None where there is none; ``source`` is its graph
    before it is lowered. ``keep``: the integer traces are wanted.
    """

    arch: Architecture | None
    params: dict[str, NDArray[Any]] | None
    graph: nir.NIRGraph
    source: nir.NIRGraph | None
    network: IntegerNetwork
    cores: Mapping[str, IntArray] | None
    keep: bool

    @classmethod
    def of(
        cls,
        model: STLNet | None,
        graph: nir.NIRGraph,
        network: IntegerNetwork,
        cores: Mapping[str, IntArray] | None,
        keep: bool,
    ) -> Comparison:
        """See ``compare``."""
        if model is None:
            return cls(None, None, graph, None, network, cores, keep)
        params = stl.params_of(model)
        source = stl.to_graph(model.arch, params)
        return cls(model.arch, params, graph, source, network, cores, keep)

    def prepare(self) -> Comparer:
        """What does one batch."""
        return Comparer(self)


class Comparer:
    """Compares batches, each on its own; several at once, too."""

    def __init__(self, job: Comparison) -> None:
        self.job, self.network = job, job.network
        self.engine = Engine(job.network, job.cores)
        floats = self.decoded = decode(job.graph)
        # Without one of its own the float side is scored as the integers are.
        self.floats: Readout = floats.readout or job.network.readout
        self.names = [name for name in job.network.by_name if name in floats.by_name]
        self.forced = Engine(job.network.cut(self.names))
        self.audit = Audit(job.graph, job.network, job.source)
        self.models: tuple[STLNet, ...] = ()
        if job.arch is not None and job.params is not None:
            model = from_params(job.arch, job.params)
            self.models = tuple(converted(model, t) for t in (torch.float64, torch.float32))

    def __call__(self, batch: tuple[Raster, NDArray[np.int64] | None]) -> Found:
        """Compare one batch: its raster and labels [N]."""
        inputs, labels = batch
        expected, others, v = self._floats(inputs)
        want = self._predicted(expected, v)
        expected = {name: self._sent(name, values) for name, values in expected.items()}
        trace = self.engine.run(inputs)
        given = cut.rasters(self.network.inputs, inputs, {n: expected[n] for n in self.names})
        lowered, forced = (
            {name: did.spikes for name, did in done.layers.items()}
            for done in (trace, self.forced.run(given))
        )
        runs = {"cascaded": lowered, "forced": forced, **others}
        got = trace.predictions
        tally = Tally(
            samples=len(got),
            right_float=0 if labels is None else int(np.count_nonzero(want == labels)),
            right_lowered=0 if labels is None else int(np.count_nonzero(got == labels)),
            same=int(np.count_nonzero(want == got)),
            overflows=sum(int(did.overflow.sum()) for did in trace.layers.values()),
            layers={
                name: LayerTally(
                    spikes.size,
                    **{
                        what: int(np.count_nonzero(differ(run[name], spikes)))
                        for what, run in runs.items()
                    },
                )
                for name, spikes in ((n, expected[n]) for n in self.names)
            },
            voltages=self._voltages(trace, v),
        )
        findings = self.audit.examine(inputs, expected, forced, lowered)
        return Found(tally, findings, trace if self.job.keep else None)

    def _predicted(self, expected: Spikes, v: Float | None) -> NDArray[np.int64]:
        """The float model's predictions, for what its populations send and the v that each step left."""
        sent = expected[self.network.readout.source]
        return self.floats.predict(sent, None if v is None else v.reshape(sent.shape))

    def _sent(self, name: str, values: NDArray[Any]) -> NDArray[Any]:
        """What a float population sends, in the whole numbers in which its integer self would send it."""
        population = self.network.by_name.get(name)
        sends = None if population is None else population.neurons.graded
        if population is None or sends is None:
            return values
        worth = graded.worth(population, self.decoded.by_name[name].neurons, sends.shift)
        whole = np.rint(values.reshape(*values.shape[:2], -1) / worth)
        return whole.clip(-sends.levels, sends.levels).astype(np.int16).reshape(values.shape)

    def _voltages(self, trace: Trace, v: Float | None) -> VoltageTally:
        """How the voltages that the readout reads differ."""
        source = self.network.by_name[self.network.readout.source]
        whole = trace.layers[source.name].v
        if v is None or whole is None or not self.network.readout.by_voltage:
            return VoltageTally()
        unit = np.broadcast_to(source.neurons.scale / UNIT, source.shape)
        return VoltageTally.between(v.reshape(whole.shape), whole * unit)

    def _floats(self, inputs: Raster) -> tuple[Spikes, dict[str, Spikes], Float | None]:
        """The reference's spikes, those of what else runs in float, and the v that the readout needs."""
        given = self.network.rasters(inputs)
        ran = float_exec.trace(self.job.graph, given)
        graph, v = ran.sent, ran.v if self.floats.by_voltage else None
        if not self.models:
            return graph, {}, v
        (only,) = given.values()
        with _one_thread(), torch.inference_mode():
            (double, v_double), (single, _) = (m.trace(torch.from_numpy(only)) for m in self.models)
        others = {"float32": _numpy(single), "float_nir": graph}
        return _numpy(double), others, v if v_double is None else v_double.numpy()


_alone = threading.Lock()
_inside = 0
_threads_before = 1


@contextmanager
def _one_thread() -> Iterator[None]:
    """PyTorch on one thread: batches run at once already, and float32 sums hang on how many there are."""
    global _inside, _threads_before
    with _alone:
        if not _inside:
            _threads_before = torch.get_num_threads()
            torch.set_num_threads(1)
        _inside += 1
    try:
        yield
    finally:
        with _alone:
            _inside -= 1
            if not _inside:
                torch.set_num_threads(_threads_before)


def _layer(name: str, counts: LayerTally, audit: Audit, by_model: bool) -> LayerParity:
    n = counts.entries
    return LayerParity(
        name=name,
        entries=n,
        mismatch=counts.cascaded / n,
        mismatch_forced=counts.forced / n,
        float32_mismatch=counts.float32 / n if by_model else None,
        nir_mismatch=counts.float_nir / n if by_model else None,
        certified=audit.certified(name),
        certified_spiking=audit.certified_spiking(name),
    )


def _check_same(model: STLNet | None, graph: nir.NIRGraph, network: IntegerNetwork) -> None:
    """Raise InputError unless the network has the float side's inputs, populations, steps and classes."""
    floats, meta = decode(graph), G.float_meta(graph)
    mine = {
        population.name: population.shape
        for population in network.populations
        if population.name in floats.by_name or not pairs.passes_on(network, population.name)
    }
    if model is not None:
        shapes, steps = model.arch.shapes, model.arch.timesteps
        theirs = {name: shape for name, shape in shapes.items() if name in mine}
    else:
        theirs = shapes = {population.name: population.shape for population in floats.populations}
        steps = meta.timesteps
        read = dict(network.inputs)
        values = meta.input_levels, meta.signed, meta.held
        meant = {name: Input(shape, *values) for name, shape in floats.inputs.items()}
        if read != meant or network.readout.classes != meta.classes:
            raise InputError(
                Problem(
                    "network",
                    f"it reads {_inputs(read)} into {network.readout.classes} classes, the float graph "
                    f"{_inputs(meant)} into {meta.classes}",
                    "compare it with the graph that it was made from",
                )
            )
    if mine != theirs or steps != network.timesteps:
        raise InputError(
            Problem("network", f"its populations {mine} are not those of the model, {shapes}")
        )


def _inputs(ports: Mapping[str, Input]) -> str:
    """Inputs in words, with their names where there are several."""
    words = [
        f"{port.lowest}..{port.levels} of shape {port.shape}"
        + (", held" if port.held else "")
        + (f" as {name}" if len(ports) > 1 else "")
        for name, port in ports.items()
    ]
    return " and ".join(words)


def _numpy(spikes: dict[str, Any]) -> Spikes:
    return {name: tensor.numpy().astype(np.uint8) for name, tensor in spikes.items()}
