"""One parity check from files to a verdict: what ``stl-parity`` and the pytest fixture both run.

Three comparisons that must not be confused: float against float (PyTorch and the float NIR graph,
exact), integers against integers (backends and ``hw_sim/reference.py``, exact), and float against
integers (budgets, certificates).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import nir

from stl_deploy import backends
from stl_deploy.backends import STALL_S
from stl_deploy.backends.cluster import connect
from stl_deploy.errors import InputError, Problem
from stl_deploy.formats import integer_nir as nir_file
from stl_deploy.formats import raster as rasters
from stl_deploy.formats import recording as recordings
from stl_deploy.formats.raster import Raster
from stl_deploy.formats.recording import Recording
from stl_deploy.hw_sim.simulate import batch_size
from stl_deploy.importers import read as models
from stl_deploy.importers.given import File, Given, Model, Normalize, Reset, Spikes, Tool
from stl_deploy.ir import nir_graph as G
from stl_deploy.ir.network import IntegerNetwork
from stl_deploy.ir.notes import Diagnostic
from stl_deploy.ir.read_as import ReadAs
from stl_deploy.models.net import STLNet, from_params
from stl_deploy.spread import Spread, Threads
from stl_deploy.verify import against_network, against_recording, reading
from stl_deploy.verify import budgets as B
from stl_deploy.verify.against_float import ParityReport, compare
from stl_deploy.verify.against_network import Itself
from stl_deploy.verify.against_reference import Agreement, measure
from stl_deploy.verify.recorded import Expected

FAR = 0.05  # of a population's spikes that differ with equal inputs; rounding makes less than 0.02
BATCH = 25  # samples; fixed, so that who works on them changes nothing
REFERENCE = "hw_sim/reference.py"
PYTORCH = "PyTorch in float64"
ITSELF = "the network itself, in PyTorch"
GRAPH = "float NIR graph in float64"

# ``watch(what, total, unit)`` shows a bar and gives what is to be called with the amount done.
Watch = Callable[[str, int, str], AbstractContextManager[Callable[[int], None]]]


def unwatched(_what: str, _total: int, _unit: str) -> AbstractContextManager[Callable[[int], None]]:
    """No progress bar."""
    return nullcontext(lambda _done: None)


@dataclass(frozen=True)
class Settings:
    """What is compared: a checkpoint or float graph, model.nir, a raster; and within what limits.

    ``expect`` is a recording of the network in its own tool, on the raster.
    """

    model: Path
    lowered: Path
    data: Path
    backends: tuple[str, ...] = ("hw_sim",)
    limit: int | None = None
    tau: float | None = None
    threshold: float | None = None
    dt: float | None = None
    reset: Reset | None = None
    written_by: Tool | None = None
    spikes: Spikes | None = None
    model_class: str | None = None
    sample_shape: tuple[int, ...] | None = None
    normalize: str | None = None
    expect: Path | None = None
    timeout: float = STALL_S
    dask: str | None = None
    budgets: B.Budgets = field(default_factory=B.Budgets)


@dataclass(frozen=True)
class Outcome:
    """What came out: ``failures`` in words, empty where parity holds.

    ``by_model``: the reference was a PyTorch model, else a float NIR graph; ``notes``: what the user should
    know of it; ``read_as``: how it was read.
    """

    report: ParityReport
    agreements: Mapping[str, Agreement]
    failures: tuple[str, ...]
    budgets: B.Budgets
    by_model: bool
    notes: tuple[Diagnostic, ...] = ()
    read_as: tuple[ReadAs, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether everything agrees as it must."""
        return not self.failures

    @property
    def reference(self) -> str:
        """What the integers are compared with."""
        return PYTORCH if self.by_model else GRAPH

    def to_json(self) -> dict[str, Any]:
        """The object that ``stl-parity --json`` prints."""
        expected = self.report.expected
        return {
            "passed": self.passed,
            **self.report.to_json(),
            "backends": {name: asdict(agreement) for name, agreement in self.agreements.items()},
            "overflows": self.report.overflows,
            "failures": list(self.failures),
            "budgets": self.budgets.to_json(),
            "read_as": [record.model_dump() for record in self.read_as],
            "diagnostics": [asdict(note) for note in self.notes],
            "comparisons": self._comparisons(),
            "expected": None if expected is None else expected.to_json(),
        }

    def _comparisons(self) -> dict[str, Any]:
        """The three comparisons, each with its reference, its rule and whether it holds."""
        differing, itself = self.report.nir_differing, self.report.itself
        return {
            "float_nir": None
            if differing is None
            else {
                "reference": PYTORCH if itself is None else ITSELF,
                "compared": GRAPH,
                "rule": "exact" if itself is None else "exact but for ties",
                "entries": self.report.entries if itself is None else itself.entries,
                "differing": differing,
                "tied": 0 if itself is None else itself.tied,
                "passed": differing == 0,
            },
            "backends": {
                "reference": REFERENCE,
                "compared": list(self.agreements),
                "rule": "exact",
                "passed": all(a.exact for a in self.agreements.values()),
            },
            "float_integer": {
                "reference": self.reference,
                "compared": "integer network",
                "rule": "budgets",
                "passed": not self.budgets.judge(self.report),
            },
        }

    @property
    def text(self) -> str:
        """The verdict for a person: what failed, and where the integers first differ."""
        first = self.report.first_divergence
        lines = [
            f"parity holds on {self.report.samples:,} samples"
            if self.passed
            else f"parity failed on {self.report.samples:,} samples:",
            *(f"  {failure}" for failure in self.failures),
            "No spike differs." if first is None else first.text,
        ]
        return "\n".join(lines)

    def properties(self) -> dict[str, Any]:
        """Figures by dotted name, for a test report."""
        report = self.report
        found: dict[str, Any] = {
            "passed": self.passed,
            "samples": report.samples,
            "accuracy.float": report.accuracy_float,
            "accuracy.lowered": report.accuracy_lowered,
            "prediction_agreement": report.prediction_agreement,
            "float_nir.differing": report.nir_differing,
        }
        if report.expected is not None:
            found["expected.differing"] = report.expected.differing
            found["expected.passed"] = report.expected.passed
        if report.voltages is not None:
            found["readout_voltages.largest_error"] = report.voltages.largest_error
            found["readout_voltages.mean_error"] = report.voltages.mean_error
        for layer in report.layers:
            for key in ("mismatch", "mismatch_forced", "certified", "certified_spiking"):
                found[f"{layer.name}.{key}"] = getattr(layer, key)
        for name, agreement in self.agreements.items():
            found[f"backend.{name}.spike_mismatches"] = agreement.spike_mismatches
            found[f"backend.{name}.state_mismatches"] = agreement.state_mismatches
            found[f"backend.{name}.prediction_mismatches"] = agreement.prediction_mismatches
        if report.first_divergence is not None:
            found["first_divergence"] = report.first_divergence.text
        return {name: value for name, value in found.items() if value is not None}


def settings(
    table: B.Table | None,
    config: Path | None,
    given: Mapping[str, Any],
    name: Callable[[str], str] = str,
) -> Settings:
    """What the table of the file ``config`` says, except where something else is ``given``.

    Args:
        given: by the names of ``budgets.Table``; None stands for nothing.
        name: how messages call one of them, say ``--input``.

    Raises InputError naming everything that is missing or not allowed.
    """
    said = {key: value for key, value in given.items() if value is not None}
    if "layers" in said:
        raise InputError(Problem("layers", "stands in the table alone", f"set [{B.TABLE}.layers]"))
    # typer's own ranges let a NaN through, above which nothing is.
    plain = {B.dashed(k): str(v) if isinstance(v, Path) else v for k, v in said.items()}
    B.validate(plain, "given:")
    base = Path() if config is None else config.parent
    problems = []
    paths = {}
    for key in ("model", "lowered", "input", "expect"):
        if key in said:
            paths[key] = Path(said[key])
        elif table is not None and getattr(table, key) is not None:
            paths[key] = base / getattr(table, key)
        elif key != "expect":
            remedy = f'give it, or set {key} = "..." in [{B.TABLE}] of pyproject.toml'
            problems.append(Problem(name(key), "is missing", remedy))

    def value(key: str) -> Any:
        return said.get(key, None if table is None else getattr(table, key))

    chosen = value("backend")
    where = name("backend") if "backend" in said or config is None else f"{config}: backend"
    names: tuple[str, ...] = ()
    try:
        names = named("hw_sim" if chosen is None else chosen, where)
    except InputError as error:
        problems += error.problems
    if problems:
        raise InputError(problems)
    limits = {key: said.get(key) for key in B.BUDGETS}
    return Settings(
        model=paths["model"],
        lowered=paths["lowered"],
        data=paths["input"],
        backends=names,
        # The table's limit is about the table's input.
        limit=said.get("limit") if "input" in said else value("limit"),
        tau=value("tau"),
        threshold=value("threshold"),
        dt=value("dt"),
        reset=value("reset"),
        written_by=value("written_by"),
        spikes=value("spikes"),
        model_class=value("model_class"),
        sample_shape=tuple(value("sample_shape") or ()) or None,
        normalize=value("normalize"),
        expect=paths.get("expect"),
        timeout=value("timeout") or STALL_S,
        dask=value("dask"),
        budgets=B.merge(table, str(config), limits),
    )


def named(names: str | list[str], where: str) -> tuple[str, ...]:
    """The backends in a text with commas, or a list, each once. Raises InputError for unknown ones."""
    parts = names.split(",") if isinstance(names, str) else names
    found = tuple(dict.fromkeys(name.strip() for name in parts))
    choose = f"choose from {', '.join(backends.BACKENDS)}"
    problems = [
        Problem(where, f"{name!r} is not a known backend", choose)
        for name in found
        if name not in backends.BACKENDS
    ]
    if problems or not found:
        raise InputError(problems or Problem(where, "no backend given", choose))
    return found


def run(what: Settings, watch: Watch = unwatched) -> Outcome:
    """Compare, and judge by the budgets.

    Raises InputError, LoweringError, BackendError, CertificateError.
    """
    network = nir_file.read_network(what.lowered)
    raster = rasters.check_fits(rasters.load(what.data).first(what.limit), str(what.data), network)
    names = [population.name for population in network.populations]
    what.budgets.check(names, raster.labels is not None, str(what.data))
    found = _floats(what, network)
    graph, checkpoint = found.graph, found.checkpoint
    assert graph is not None
    model = None if checkpoint is None else from_params(checkpoint.arch, checkpoint.params)
    recording = None
    if what.expect is not None:
        recording = against_recording.check(
            graph, raster.spikes, recordings.load(what.expect).first(what.limit)
        )
    # What cannot work is said before anything long begins.
    backends.check(what.backends, network)
    for name in what.backends:
        backends.load(name).set_up()
    with _spread(what.dask) as spread:
        expected = _expected(graph, recording, raster, spread, watch)
        report = _against_float(model, graph, network, raster, spread, watch)
        report = replace(report, expected=expected)
        agreements = _agreements(what, network, raster, spread, watch)
    itself = _itself(found, raster, watch)
    report = report.with_network(itself)
    failures = (
        *(() if expected is None else map(str, expected.problems())),
        *_float_differs(report),
        *(_difference(name, a) for name, a in agreements.items() if not a.exact),
        *what.budgets.judge(report),
    )
    own = () if itself is None else itself.notes
    read_as = G.float_meta(graph).read_as
    notes = (
        *found.notes,
        *own,
        *reading.differences(read_as, network, what.lowered),
        *_far(what, found, report),
    )
    return Outcome(
        report,
        agreements,
        failures,
        what.budgets,
        model is not None,
        notes,
        reading.shown(read_as, network),
    )


def _spread(address: str | None) -> AbstractContextManager[Spread]:
    """Who works on the batches: this machine, or a Dask cluster."""
    return nullcontext(Threads()) if address is None else connect(address)


def _floats(what: Settings, network: IntegerNetwork) -> Model:
    """The model with its float NIR graph, read as the network says that it was."""
    steps, classes = network.timesteps, network.readout.classes
    words: dict[str, Any] = {name: getattr(what, name) for name in reading.KNOWN}
    known = models.of(File(what.model, Given(model_class=what.model_class))).options
    said = Given(
        **reading.settled(words, network, what.lowered, known),
        threshold=what.threshold,
        model_class=what.model_class,
        sample_shape=what.sample_shape,
        normalize=None if what.normalize is None else Normalize.parsed(what.normalize),
    )
    # The lowered network holds what an official state_dict or another tool's file does not.
    ports = list(network.inputs.values())
    held: dict[str, Any] = {
        "levels": max(port.levels for port in ports),
        "signed": any(port.signed for port in ports),
        "readout": network.readout.rule if network.readout.by_voltage else None,
        "input_shape": ports[0].shape,
    }
    more = {name: value for name, value in held.items() if name in known}
    try:
        found = models.read(what.model, replace(said, timesteps=steps, classes=classes, **more))
    except InputError as error:
        unsaid = {"timesteps", "classes", "levels", "signed"}
        unsaid |= {name for name, value in words.items() if value is None}
        if {p.where for p in error.problems} <= {f"--{name}" for name in unsaid}:
            text = f"is not what the network was made from, which has T = {steps}"
            raise InputError(
                Problem(str(what.model), f"{text} and {classes} classes", "export this model")
            ) from None
        raise
    if found.graph is None:
        raise InputError(
            Problem(
                str(what.model),
                "is not a float graph: it contains integers",
                "name model.float.nir, or the model that was exported",
            )
        )
    return found


def _far(what: Settings, found: Model, report: ParityReport) -> tuple[Diagnostic, ...]:
    """A note where the integers are those of another network, if options could have made them so."""
    worst = max(report.layers, key=lambda layer: layer.mismatch_forced)
    if worst.mismatch_forced <= FAR:
        return ()
    options = sorted(found.takes & {"normalize", "threshold"})
    if not options:
        return ()
    return (
        Diagnostic(
            worst.name,
            f"{worst.mismatch_forced:.0%} of its spikes differ with equal inputs, far more than rounding "
            "does; perhaps it was exported with other options",
            f"give the {' and '.join(f'--{name}' for name in options)} that stl-export was given",
        ),
    )


def _expected(
    graph: nir.NIRGraph,
    recording: Recording | None,
    raster: Raster,
    spread: Spread,
    watch: Watch,
) -> Expected | None:
    """The float graph against a recording."""
    if recording is None:
        return None
    with watch("float and recording", recording.samples, "samples") as tell:
        return against_recording.compare(
            graph, raster.spikes, recording, on_progress=tell, spread=spread
        )


def _itself(found: Model, raster: Raster, watch: Watch) -> Itself | None:
    """The float graph against the user's own network, None where there is none."""
    if found.live is None:
        return None
    assert found.graph is not None
    with watch("the network itself", raster.shape[0], "samples") as tell:
        only = raster.only("the raster")
        return against_network.compare(found.live, found.graph, only, on_progress=tell)


def _against_float(
    model: STLNet | None,
    graph: nir.NIRGraph,
    network: IntegerNetwork,
    raster: Raster,
    spread: Spread,
    watch: Watch,
) -> ParityReport:
    """The comparisons that a float model is part of."""
    batch = min(BATCH, batch_size(network))
    with watch("float and integer", raster.shape[0], "samples") as tell:
        return compare(model, graph, network, raster, batch=batch, on_progress=tell, spread=spread)


def _agreements(
    what: Settings, network: IntegerNetwork, raster: Raster, spread: Spread, watch: Watch
) -> dict[str, Agreement]:
    """Every backend against the reference."""
    agreements = {}
    for name in what.backends:
        with watch(name, raster.shape[0] * network.timesteps, "time steps") as tell:
            agreements[name] = measure(
                name, network, raster.spikes, stall_s=what.timeout, on_steps=tell, spread=spread
            )
    return agreements


def _float_differs(report: ParityReport) -> list[str]:
    """What the float NIR graph does otherwise than PyTorch, which is to be nothing."""
    if report.itself is not None:
        return [str(problem) for problem in report.itself.problems()]
    if not report.nir_differing:
        return []
    where = [layer.name for layer in report.layers if layer.nir_mismatch]
    return [
        f"the float NIR graph differs from PyTorch in {report.nir_differing:,} of "
        f"{report.entries:,} spikes, in float64: {', '.join(where)}"
    ]


def _difference(name: str, agreement: Agreement) -> str:
    text = (
        f"{name} differs from the reference in "
        f"{agreement.spike_mismatches:,} spikes and "
        f"{agreement.state_mismatches:,} states"
    )
    if agreement.prediction_mismatches:
        text += f" and {agreement.prediction_mismatches:,} predictions"
    if first := agreement.first:
        text += (
            f"; first {first.kind} of {first.layer} {first.neuron}, sample {first.sample}, "
            f"step {first.step}: {first.got} instead of {first.expected}"
        )
    return text
