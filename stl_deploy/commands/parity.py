"""``stl-parity``: how near the integer network is to the float model, and whether backends equal it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stl_deploy.commands.common import (
    Debug,
    Json,
    print_json,
    print_parity,
    progress,
    run,
    say,
    stderr,
    table,
    warn,
)
from stl_deploy.errors import InputError, Problem

if TYPE_CHECKING:
    from stl_deploy.agreement import Agreement
    from stl_deploy.comparison import ParityReport
    from stl_deploy.network import IntegerNetwork
    from stl_deploy.raster import Raster

BACKENDS = ("hw_sim", "lava", "netx")
PLANNED = ("onnx",)


def parity(
    model: Annotated[
        Path, typer.Argument(help="Checkpoint: ours, or a state_dict.", metavar="MODEL.pt")
    ],
    lowered: Annotated[Path, typer.Argument(help="model.nir of stl-export.", metavar="MODEL.nir")],
    data: Annotated[Path, typer.Option("--input", metavar="NPZ", help="Raster (see stl-raster).")],
    backend: Annotated[
        str,
        typer.Option(
            metavar="NAMES", help="Of hw_sim, lava, netx, with commas: what is to equal hw_sim."
        ),
    ] = "hw_sim",
    limit: Annotated[int | None, typer.Option(min=1, help="First N samples only.")] = None,
    max_mismatch: Annotated[
        float | None,
        typer.Option(metavar="R", min=0, max=1, help="Fail above this mismatch of a layer, 0..1."),
    ] = None,
    max_accuracy_drop: Annotated[
        float | None,
        typer.Option(metavar="PCT", min=0, max=100, help="Fail above this drop, in points."),
    ] = None,
    tau: Annotated[
        float | None, typer.Option(help="Decay of an official state_dict. [default: 0.5]")
    ] = None,
    timeout: Annotated[
        float,
        typer.Option(metavar="SECONDS", min=1, help="End a backend that stands still so long."),
    ] = 600,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Compare a float model with its integer network, and the integer network on other backends.

    Spikes are certified, proved equal without running the integers, and the first that differs is
    explained. Exit code 1 means that a backend differs from hw_sim in a spike, u or v, that a budget
    (--max-mismatch, --max-accuracy-drop) is exceeded, or that a certificate is wrong, which is a bug.

    Example: stl-parity model.pt out/model.nir --input test.npz --backend lava,netx --limit 20
    """
    from stl_deploy import lava_backend, lava_env, nir_file
    from stl_deploy import raster as rasters

    names = _backends(backend)
    network = nir_file.read_network(lowered)
    raster = rasters.load(data).first(limit)
    rasters.check_fits(raster, str(data), network)
    if max_accuracy_drop is not None and raster.labels is None:
        raise InputError(
            Problem("--max-accuracy-drop", f"{data} has no labels", "use a raster with labels")
        )
    # What cannot work is said before anything long begins.
    tools = [name for name in names if name in lava_backend.TOOLS]
    for tool in tools:
        lava_backend.check(tool, network)
    if tools:
        lava_env.python()
    report, overflows = _against_float(model, tau, network, raster, as_json)
    agreements = _agreements(names, network, raster, timeout, as_json)
    failures = [
        *_over_budget(report, max_mismatch, max_accuracy_drop),
        *(_difference(name, a) for name, a in agreements.items() if not a.exact),
    ]
    if as_json:
        print_json(_to_json(report, agreements, failures, overflows))
    else:
        _print(report, agreements, overflows)
    for failure in failures:
        stderr.print(f"[bold red]failed[/] {failure}")
    if failures:
        raise typer.Exit(1)


def _backends(text: str) -> list[str]:
    """The names in ``--backend``, each once. Raises InputError for others."""
    names = list(dict.fromkeys(name.strip() for name in text.split(",")))
    there = f"there are {', '.join(BACKENDS)}"
    problems = [
        Problem("--backend", f"{name!r} is not there yet; {there}")
        if name in PLANNED
        else Problem("--backend", f"{name!r} is not one that is known; {there}")
        for name in names
        if name not in BACKENDS
    ]
    if problems:
        raise InputError(problems)
    return names


def _against_float(
    model: Path, tau: float | None, network: IntegerNetwork, raster: Raster, quiet: bool
) -> tuple[ParityReport, int]:
    """The comparison with the float model, and the neuron steps outside a register."""
    from stl_deploy import passes
    from stl_deploy.comparison import compare
    from stl_deploy.hw_sim.reference import Trace
    from stl_deploy.hw_sim.simulate import batch_size
    from stl_deploy.importers import stl
    from stl_deploy.models.net import from_params

    steps, classes = network.timesteps, network.readout.classes
    try:
        # The lowered network holds what an official state_dict does not.
        checkpoint = stl.read(model, tau, steps, classes)
    except InputError as error:
        if {p.where for p in error.problems} <= {"--timesteps", "--classes"}:
            what = f"is not what the network was made from, which has T = {steps}"
            raise InputError(
                Problem(str(model), f"{what} and {classes} classes", "export this model")
            ) from None
        raise
    overflows = 0

    def count(_inputs: Any, trace: Trace) -> None:
        nonlocal overflows
        overflows += sum(int(layer.overflow.sum()) for layer in trace.layers.values())

    with progress(quiet) as bar:
        task = bar.add_task("float and integer", total=len(raster.spikes), note="samples")
        report = compare(
            from_params(checkpoint.arch, checkpoint.params),
            passes.lower(stl.to_graph(checkpoint.arch, checkpoint.params)),
            network,
            raster,
            batch=min(25, batch_size(network)),
            visit=count,
            on_progress=lambda done: bar.update(task, completed=done),
        )
    return report, overflows


def _agreements(
    names: list[str], network: IntegerNetwork, raster: Raster, timeout: float, quiet: bool
) -> dict[str, Agreement]:
    """Every backend against the reference."""
    from stl_deploy.agreement import measure

    agreements = {}
    for name in names:
        with progress(quiet) as bar:
            task = bar.add_task(
                name, total=len(raster.spikes) * network.timesteps, note="time steps"
            )

            def show(done: int, bar: Any = bar, task: Any = task) -> None:
                bar.update(task, completed=done)

            agreements[name] = measure(name, network, raster.spikes, stall_s=timeout, on_steps=show)
    return agreements


def _over_budget(
    report: ParityReport, max_mismatch: float | None, max_drop: float | None
) -> list[str]:
    """What exceeds a budget, in words."""
    failures = [
        f"{layer.name}: mismatch {layer.mismatch:.6g} is above --max-mismatch {max_mismatch:g}"
        for layer in report.layers
        if max_mismatch is not None and layer.mismatch > max_mismatch
    ]
    if (
        max_drop is not None
        and report.accuracy_float is not None
        and report.accuracy_lowered is not None
    ):
        # Both are counts of the same samples: in counts, no rounding decides.
        right = [
            round(accuracy * report.samples)
            for accuracy in (report.accuracy_float, report.accuracy_lowered)
        ]
        drop = 100 * (right[0] - right[1]) / report.samples
        if drop > max_drop:
            failures.append(
                f"accuracy drops by {drop:.4g} points, above --max-accuracy-drop {max_drop:g}"
            )
    return failures


def _difference(name: str, agreement: Agreement) -> str:
    text = (
        f"{name} differs from hw_sim in {agreement.spike_mismatches:,} spikes and "
        f"{agreement.state_mismatches:,} states"
    )
    if first := agreement.first:
        text += (
            f"; first {first.kind} of {first.layer} {first.neuron}, sample {first.sample}, "
            f"step {first.step}: {first.got} instead of {first.expected}"
        )
    return text


def _to_json(
    report: ParityReport, agreements: dict[str, Agreement], failures: list[str], overflows: int
) -> dict[str, Any]:
    """The object that ``--json`` prints."""
    return {
        "passed": not failures,
        **report.to_json(),
        "backends": {name: asdict(agreement) for name, agreement in agreements.items()},
        "overflows": overflows,
        "failures": failures,
    }


def _print(report: ParityReport, agreements: dict[str, Agreement], overflows: int) -> None:
    print_parity(report)
    say("")
    table(
        "Backends against hw_sim, the reference",
        ("backend", "spikes", "differing", "u and v", "differing"),
        [
            (
                name,
                f"{a.entries:,}",
                f"{a.spike_mismatches:,}",
                f"{2 * a.entries:,}",
                f"{a.state_mismatches:,}",
            )
            for name, a in agreements.items()
        ],
    )
    if overflows:
        warn(f"{overflows:,} neuron steps left a register: this is no prediction of the chip")


def main() -> None:
    """Entry point."""
    run(parity, "stl-parity")
