"""``stl-export``: a checkpoint to an output folder for one target or several."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stl_deploy import exporters
from stl_deploy.commands.common import (
    Debug,
    Dt,
    Force,
    InputShape,
    Json,
    ModelClass,
    Normalized,
    Readout,
    SampleShape,
    Tau,
    Threshold,
    chip_option,
    complain_diagnostics,
    find_chip,
    print_json,
    print_parity,
    progress,
    run,
    say,
    shape,
    table,
    warn_overflows,
)
from stl_deploy.commands.expected import Expect, itself_words, print_expected
from stl_deploy.commands.reading import Reset, Spikes, WrittenBy, print_reading
from stl_deploy.errors import InputError, LoweringError, Problem
from stl_deploy.exporters import TARGETS, NirDialect
from stl_deploy.ir.slices import WeightPrecision
from stl_deploy.lower.options import Overflow, Skips, Thresholds

if TYPE_CHECKING:
    Target = str
    import nir

    from stl_deploy.hw_sim.simulate import Activity
    from stl_deploy.importers.given import Checkpoint, Live
    from stl_deploy.ir.network import IntegerNetwork, Raster
    from stl_deploy.verify.against_float import ParityReport
    from stl_deploy.verify.against_network import Itself
    from stl_deploy.verify.recorded import Expected
else:
    # The values that typer lists and accepts; of several it takes members of an Enum alone.
    Target = StrEnum("Target", {name: name for name in TARGETS})


def export(
    model: Annotated[
        Path,
        typer.Argument(
            help="Checkpoint (stl-train's or a state_dict), or a NIR file.", metavar="MODEL"
        ),
    ],
    target: Annotated[
        list[Target],
        typer.Option(
            help="What to write; may be given several times. "
            + "; ".join(f"{name}: {entry.carries}" for name, entry in TARGETS.items())
            + "."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", metavar="DIR", help="Output folder. Default: MODEL-export."),
    ] = None,
    chip: Annotated[
        str | None, chip_option("ideal where --target is nir alone, else loihi2")
    ] = None,
    weight_bits: Annotated[
        int | None,
        typer.Option(
            min=2,
            max=8,
            help="Bits of a weight. [default: 8, or what the model was trained on]",
        ),
    ] = None,
    weight_precision: Annotated[
        WeightPrecision,
        typer.Option(
            help="8: one synapse per weight; split: 9 bits, in one of two groups of one sign; 2x8: two "
            "slices, nearly exact at up to twice the synapses. netx supports 8 only."
        ),
    ] = "8",
    weight_exp: Annotated[
        int,
        typer.Option(
            min=0, max=7, help="Weights count 2^E: finer thresholds. netx supports 0 only."
        ),
    ] = 0,
    thresholds: Annotated[
        Thresholds,
        typer.Option(
            help="native: one per neuron; fold: one per layer, inputs scaled instead; grouped: rounded "
            "to the few that a core holds; auto: native where the chip can, else grouped."
        ),
    ] = "auto",
    overflow: Annotated[
        Overflow,
        typer.Option(
            help="proven: no input can overflow; checked: fitted to --calib, and hw_sim flags overflows; "
            "auto: proven where that costs at most one bit."
        ),
    ] = "auto",
    skips: Annotated[
        Skips,
        typer.Option(
            help="How spikes wait that jump over populations: delay: in the synapses; relay: in neurons on "
            "the way, which netx needs; auto: in the synapses where the chip's can wait so long."
        ),
    ] = "auto",
    calib: Annotated[
        Path | None,
        typer.Option(
            metavar="NPZ",
            help="Raster that weights and thresholds are fitted to; labels are not read.",
        ),
    ] = None,
    evaluate: Annotated[
        Path | None,
        typer.Option("--eval", metavar="NPZ", help="Raster to measure parity and energy on."),
    ] = None,
    expect: Expect = None,
    clamp_thresholds: Annotated[
        bool, typer.Option("--clamp-thresholds", help="Move thresholds that the chip cannot hold.")
    ] = False,
    tau: Tau = None,
    threshold: Threshold = None,
    input_shape: InputShape = None,
    timesteps: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="T where MODEL does not say. [default: that of --eval or --calib, else 4]",
        ),
    ] = None,
    classes: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Classes where MODEL does not say. [default: 10; NIR: one per output]",
        ),
    ] = None,
    nir_dialect: Annotated[
        NirDialect,
        typer.Option(
            help="portable: also write model.portable.nir, for Norse and others; spinnaker2: "
            "model.spinnaker2.nir, for py-spinnaker2 (docs/nir.md)."
        ),
    ] = "spec",
    dt: Dt = None,
    reset: Reset = None,
    written_by: WrittenBy = None,
    spikes: Spikes = None,
    levels: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Inputs of another tool's model are 0..L, L at most 255. \\[default: 1, spikes]",
        ),
    ] = None,
    signed: Annotated[
        bool,
        typer.Option("--signed", help="Inputs are -L..L, L being that of --levels, at most 32767."),
    ] = False,
    normalize: Normalized = None,
    readout: Readout = None,
    model_class: ModelClass = None,
    sample_shape: SampleShape = None,
    force: Force = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Quantize a trained spiking network and write it for hardware.

    Example: stl-export model.pt --target loihi --eval test.npz -o out
    For netx, which has no delays: stl-export resnet.nir --target loihi --skips relay
    """
    from stl_deploy.exporters.folder import check_out
    from stl_deploy.exporters.folder import export as write
    from stl_deploy.importers import read as models
    from stl_deploy.importers.given import Given, Normalize
    from stl_deploy.lower.quantize import quantize
    from stl_deploy.report.sections import render

    out = out if out is not None else Path(model.stem + "-export")
    targets = tuple(dict.fromkeys(map(str, target)))
    exporters.check(targets)
    check_out(out, force, [model, calib, evaluate, expect])
    given = Given(
        tau=tau,
        threshold=threshold,
        input_shape=shape(input_shape, "--input-shape", "1,28,28"),
        timesteps=timesteps,
        classes=classes,
        dt=dt,
        reset=reset,
        written_by=written_by,
        spikes=spikes,
        levels=levels,
        signed=signed or None,
        normalize=None if normalize is None else Normalize.parsed(normalize),
        readout=readout,
        model_class=model_class,
        sample_shape=shape(sample_shape),
        raster=evaluate or calib,
    )
    if expect is not None and evaluate is None:
        what = "is what the network sent on a raster, which is missing"
        raise InputError(Problem("--expect", what, "give that raster: --eval NPZ"))
    found = models.read(model, given)
    expected = itself = None
    if evaluate is not None and found.live is not None and found.graph is not None:
        itself = _itself(found.live, found.graph, evaluate, as_json)
        found = replace(found, notes=(*found.notes, *itself.notes))
    if expect is not None and evaluate is not None and found.graph is not None:
        expected = _expected(found.graph, evaluate, expect, as_json)
    if found.network is not None:
        network = found.network
        asked = (
            *(calib, evaluate, weight_bits, weight_exp, thresholds, overflow),
            *(clamp_thresholds, weight_precision, skips, expect),
        )
        _check_unasked(model, network, chip, asked)
    else:
        try:
            assert found.graph is not None
            with _shown(as_json) as tell:
                network = quantize(
                    found.graph,
                    chip or ("ideal" if set(targets) == {"nir"} else "loihi2"),
                    None if calib is None else _spikes(calib, found.graph),
                    weight_bits=weight_bits,
                    weight_exp=weight_exp,
                    thresholds=thresholds,
                    overflow=overflow,
                    clamp_thresholds=clamp_thresholds,
                    weight_precision=weight_precision,
                    skips=skips,
                    on_progress=tell,
                )
        except LoweringError as error:
            raise LoweringError(
                [Problem(f"{model}: {p.where}", p.what, p.remedy) for p in error.problems]
            ) from None
        except InputError as error:
            raise InputError(
                [Problem(OPTIONS.get(p.where, p.where), p.what, p.remedy) for p in error.problems]
            ) from None
    if found.notes:
        # They go into model.nir, so that they stay with what was not checked.
        network = replace(network, diagnostics=(*found.notes, *network.diagnostics))
    activity = parity = None
    if evaluate is not None and found.graph is not None:
        activity, parity = _evaluate(found.checkpoint, found.graph, network, evaluate, as_json)
        parity = replace(parity, expected=expected).with_network(itself)
    manifest = write(
        network,
        targets,
        out,
        graph=found.graph,
        source=model,
        force=force,
        report=lambda: render(model.name, network, activity=activity, parity=parity),
        extra={
            **({} if parity is None else {"parity": parity.to_json()}),
            **({} if expected is None else {"expected": expected.to_json()}),
        },
        nir_dialect=nir_dialect,
    )
    if as_json:
        print_json({"out": str(out), **manifest})
        return
    print_reading(model.name, network.read_as, found.takes)
    _print(out, manifest, parity)
    if activity is not None:
        warn_overflows(activity.counts.overflows)


# What ``quantize`` calls its arguments, and what the command line does.
OPTIONS = {
    name: f"--{name.replace('_', '-')}"
    for name in (
        *("weight_bits", "weight_exp", "weight_precision", "thresholds", "overflow", "calib"),
        *("clamp_thresholds", "skips", "chip"),
    )
}
CHANGE = {"changed": "neurons changed", "mean": "mean change", "largest": "largest change"}


@contextmanager
def _shown(quiet: bool) -> Iterator[Callable[[int, int, str], None]]:
    """A bar for the layers that are quantized, fitted and placed."""
    with progress(quiet) as bar:
        task = bar.add_task("quantizing", total=None, note="")
        yield lambda done, parts, what: bar.update(task, completed=done, total=parts, note=what)


def _check_unasked(
    model: Path, network: IntegerNetwork, chip: str | None, asked: tuple[Any, ...]
) -> None:
    """Raise InputError for options that would quantize integers again."""
    from stl_deploy.chips import facts

    what = []
    if chip is not None and find_chip(chip) != facts.of(network):
        what.append(f"--chip {chip} does not apply to a network for {network.chip}")
    if asked != (None, None, None, 0, "auto", "auto", False, "8", "auto", None):
        what.append("options of quantization, --calib, --eval and --expect do not apply")
    if what:
        raise InputError(
            Problem(
                str(model),
                f"contains integers, which are exported unchanged; {'; '.join(what)}",
                "name the float model: model.float.nir in the same folder, or its source",
            )
        )


def _spikes(path: Path, graph: nir.NIRGraph) -> Raster:
    """The spikes of a raster that ``graph`` reads; its labels are not looked at."""
    from stl_deploy.formats import raster as rasters
    from stl_deploy.ir import nir_graph as G
    from stl_deploy.ir.floats import decode
    from stl_deploy.ir.network import Input

    meta = G.float_meta(graph)
    raster = replace(rasters.load(path), labels=None)
    inputs = {
        name: Input(shape, meta.input_levels, meta.signed, meta.held)
        for name, shape in decode(graph).inputs.items()
    }
    return raster.as_inputs(str(path), inputs, meta.timesteps).spikes


def _itself(live: Live, graph: nir.NIRGraph, raster: Path, quiet: bool) -> Itself:
    """The model as it was read, against the user's own network. Raises ReadingError where they differ."""
    from stl_deploy.verify.against_network import compare

    spikes = _spikes(raster, graph)
    assert not isinstance(spikes, Mapping)  # a network of PyTorch has one input
    with progress(quiet) as bar:
        task = bar.add_task("the network itself", total=len(spikes), note="samples")
        itself = compare(
            live, graph, spikes, on_progress=lambda done: bar.update(task, completed=done)
        )
    if itself.expected is not None:
        itself.expected.check()
        if not quiet:
            say(itself_words(itself.expected))
    return itself


def _expected(graph: nir.NIRGraph, raster: Path, recording: Path, quiet: bool) -> Expected:
    """The model as it was read, against a recording. Raises ReadingError where they differ."""
    from stl_deploy.formats import recording as recordings
    from stl_deploy.verify.against_recording import compare

    spikes, recorded = _spikes(raster, graph), recordings.load(recording)
    with progress(quiet) as bar:
        task = bar.add_task("float and recording", total=recorded.samples, note="samples")
        expected = compare(
            graph, spikes, recorded, on_progress=lambda done: bar.update(task, completed=done)
        )
    if not quiet:
        print_expected(expected)
    expected.check()
    return expected


def _evaluate(
    checkpoint: Checkpoint | None,
    graph: nir.NIRGraph,
    network: IntegerNetwork,
    path: Path,
    quiet: bool,
) -> tuple[Activity, ParityReport]:
    """Parity and activity on the raster at ``path``."""
    from stl_deploy.formats import raster as rasters
    from stl_deploy.hw_sim.simulate import Recorder, batch_size, summarize
    from stl_deploy.models.net import from_params
    from stl_deploy.verify.against_float import compare

    raster = rasters.check_fits(rasters.load(path), str(path), network)
    recorder = Recorder(network)
    with progress(quiet) as bar:
        task = bar.add_task("float and integer", total=raster.shape[0], note="samples")
        parity = compare(
            None if checkpoint is None else from_params(checkpoint.arch, checkpoint.params),
            graph,
            network,
            raster,
            batch=min(25, batch_size(network)),
            visit=recorder.add,
            cores=recorder.cores,
            on_progress=lambda done: bar.update(task, completed=done),
        )
    return summarize(network, recorder.done(), raster), parity


def _print(out: Path, manifest: dict[str, Any], parity: ParityReport | None) -> None:
    """The network, its precision, lowering and placement, and parity, for a person."""
    rows = [
        (
            row["name"],
            f"{row['neurons']:,}",
            f"{row['synapses']:,}",
            f"{row['precision']['effective_bits']:.2f} of {row['grid_bits']:.3g}"
            if row["precision"]
            else "1",
            f"{row['thresholds']['distinct']:,} in {row['thresholds']['min']}.."
            f"{row['thresholds']['max']}",
            row["precision"]["mode"] if row["precision"] else "-",
        )
        for row in manifest["layers"]
    ]
    table(
        f"{manifest['source']['file']} for {manifest['chip']}, T = {manifest['timesteps']}",
        ("population", "neurons", "synapses", "bits", "thresholds", "overflow"),
        rows,
    )
    if not _is_chain(manifest):
        _print_connections(manifest)
    _print_precision(manifest)
    _print_lowering(manifest)
    if manifest["cores"] is not None:
        _print_placement(manifest)
    complain_diagnostics(manifest["diagnostics"])
    if parity is not None:
        print_parity(parity)
    say(f"written: {out}/ ({', '.join([*manifest['files'], 'manifest.json'])})")
    say(f"report: {out / 'report.html'}")


def _is_chain(manifest: dict[str, Any]) -> bool:
    """Whether a connection leads from each population to the next, and no other."""
    names = [*manifest["inputs"], *(row["name"] for row in manifest["layers"])]
    ways = [(c["source"], c["target"], c["delay"]) for c in manifest["connections"]]
    return ways == [(a, b, 0) for a, b in itertools.pairwise(names)]


def _print_connections(manifest: dict[str, Any]) -> None:
    """What leads where, how late and how precisely."""
    table(
        "Connections",
        ("connection", "from", "to", "kind", "delay", "synapses", "bits"),
        [
            (
                c["name"],
                c["source"],
                c["target"],
                c["kind"].replace("_", "-"),
                str(c["delay"]) if c["delay"] else "-",
                f"{c['synapses']:,}",
                f"{c['weight_bits']} at {c['precision']}"
                if c["effective_bits"] is None
                else f"{c['effective_bits']:.2f} at {c['precision']}",
            )
            for c in manifest["connections"]
        ],
    )


PRECISIONS = {
    "split": "positive and negative weights in two groups of one sign",
    "2x8": "weights in two slices of 8 bits, one synapse per slice",
}


def _print_precision(manifest: dict[str, Any]) -> None:
    """How weights are stored where that was asked for, and what it takes."""
    cost = manifest["weights"]
    what = "; ".join(words for name, words in PRECISIONS.items() if name in cost["precision"])
    if not what:
        return
    memory = cost["synapse_bytes"]
    cores = "" if memory is None else f" in {memory / 2**20:,.1f} MiB, {manifest['cores']:,} cores"
    say(f"weights: {cost['precision']}, {what}: {cost['synapses']:,} synapses{cores}")


def _print_lowering(manifest: dict[str, Any]) -> None:
    """How thresholds were lowered, why, and what rounding them changed."""
    how = manifest["thresholds"]
    say(f"thresholds: {how['lowering']}, {how['reason']}")
    rows = [
        (row["name"], *(f"{100 * row['thresholds']['rounding'][key]:.3g} %" for key in CHANGE))
        for row in manifest["layers"]
        if row["thresholds"]["rounding"] is not None
    ]
    if rows:
        table("Thresholds rounded to what a core holds", ("population", *CHANGE.values()), rows)


def _print_placement(manifest: dict[str, Any]) -> None:
    """Cores by population, what bound them, and how full the fullest core is."""
    from stl_deploy.chips.placement import NAMES

    held = list(manifest["layers"][0]["placement"]["utilisation"])
    short = {
        "compartments": "comp.",
        "synapse_bytes": "memory",
        "in_axons": "in-ax.",
        "out_axons": "out-ax.",
        "thresholds": "vth",
        "decays": "decays",
    }
    table(
        f"Placement: {_count(manifest, 'cores')}, {_count(manifest, 'tiles')}, "
        f"{_count(manifest, 'chips')}; "
        "how full the fullest is",
        ("name", "cores", "bound by", *(short.get(name, NAMES[name]) for name in held)),
        [
            (
                row["name"],
                f"{row['cores']:,}",
                NAMES.get(row["placement"]["bound_by"], "-"),
                *(f"{100 * row['placement']['utilisation'][name]:,.0f} %" for name in held),
            )
            for row in manifest["layers"]
        ],
    )


def _count(manifest: dict[str, Any], kind: str) -> str:
    """How many there are, in words."""
    count = manifest[kind]
    return f"{count:,} {kind.removesuffix('s') if count == 1 else kind}"


def main() -> None:
    """Entry point."""
    run(export, "stl-export")
