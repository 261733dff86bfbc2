"""``stl-parity``: how near the integer network is to the float model, and whether backends equal it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stl_deploy.backends import BACKENDS
from stl_deploy.commands.common import (
    Dask,
    Debug,
    Dt,
    InputOrTable,
    Json,
    Limit,
    ModelClass,
    Normalized,
    SampleShape,
    Tau,
    Threshold,
    complain_diagnostics,
    print_json,
    print_parity,
    progress,
    run,
    say,
    shape,
    stderr,
    table,
    warn,
)
from stl_deploy.commands.expected import Expect, itself_words, print_expected
from stl_deploy.commands.reading import Reset, Spikes, WrittenBy, print_reading

if TYPE_CHECKING:
    from stl_deploy.verify.budgets import Table
    from stl_deploy.verify.check import Outcome, Watch

ARGUMENTS = {"model": "MODEL.pt", "lowered": "MODEL.nir"}


def _rate(text: str) -> Any:
    """An option for a fraction."""
    return typer.Option(metavar="R", min=0, max=1, help=text)


def parity(
    model: Annotated[
        Path | None,
        typer.Argument(
            help="Checkpoint (stl-train's or a state_dict), model.float.nir, or NIR file of another tool.",
            metavar="[MODEL.pt|FLOAT.nir]",
            show_default=False,
        ),
    ] = None,
    lowered: Annotated[
        Path | None,
        typer.Argument(help="model.nir of stl-export.", metavar="[MODEL.nir]", show_default=False),
    ] = None,
    data: InputOrTable = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="PYPROJECT",
            help="File whose table \\[tool.stl-deploy.parity] gives everything not given here, e.g. "
            "--config ci/pyproject.toml. Default: the nearest pyproject.toml.",
        ),
    ] = None,
    backend: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help=f"What must equal the reference in every spike, u and v: {', '.join(BACKENDS)}; several "
            "with commas, e.g. --backend hw_sim,lava. [default: hw_sim]",
        ),
    ] = None,
    expect: Expect = None,
    limit: Limit = None,
    max_mismatch: Annotated[
        float | None, _rate("Fail above this mismatch of a layer, e.g. --max-mismatch 0.02.")
    ] = None,
    max_mismatch_forced: Annotated[
        float | None, _rate("Fail above this mismatch of a layer on the float model's spikes.")
    ] = None,
    min_certified: Annotated[
        float | None, _rate("Fail below this certified fraction of a layer, e.g. 0.99.")
    ] = None,
    min_certified_spiking: Annotated[
        float | None, _rate("The same for entries where either side spikes, e.g. 0.97.")
    ] = None,
    min_agreement: Annotated[
        float | None, _rate("Fail below this fraction of equal predictions, e.g. 0.97.")
    ] = None,
    max_accuracy_drop: Annotated[
        float | None,
        typer.Option(metavar="PCT", min=0, max=100, help="Fail above this drop, in points."),
    ] = None,
    tau: Tau = None,
    threshold: Threshold = None,
    dt: Dt = None,
    reset: Reset = None,
    written_by: WrittenBy = None,
    spikes: Spikes = None,
    normalize: Normalized = None,
    model_class: ModelClass = None,
    sample_shape: SampleShape = None,
    timeout: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            min=1,
            help="Stop a backend that makes no progress for so long. [default: 600]",
        ),
    ] = None,
    dask: Dask = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Compare float with float, integers with integers, and float with integers.

    (a) The float NIR graph with the PyTorch model: exact. (b) Integer backends with the reference: exact
    in every spike, u and v. (c) The integer network with the float model: within budgets; spikes are
    certified, proved equal without running the integers, and the first that differs is explained.

    What is not given comes from the table \\[tool.stl-deploy.parity] of pyproject.toml. Exit code 1 means
    that (a) or (b) differs, that a budget is exceeded, or that a certificate is wrong, which is a bug.

    Example: stl-parity model.pt out/model.nir --input test.npz --backend lava,netx --limit 20
    """
    from stl_deploy.verify import check as parity_check

    table, config = _table(config)
    settings = parity_check.settings(
        table,
        config,
        {
            "model": model,
            "lowered": lowered,
            "input": data,
            "expect": expect,
            "backend": backend,
            "limit": limit,
            "tau": tau,
            "threshold": threshold,
            "dt": dt,
            "reset": reset,
            "written_by": written_by,
            "spikes": spikes,
            "normalize": normalize,
            "model_class": model_class,
            "sample_shape": list(shape(sample_shape) or ()) or None,
            "timeout": timeout,
            "dask": dask,
            "max_mismatch": max_mismatch,
            "max_mismatch_forced": max_mismatch_forced,
            "min_certified": min_certified,
            "min_certified_spiking": min_certified_spiking,
            "min_agreement": min_agreement,
            "max_accuracy_drop": max_accuracy_drop,
        },
        lambda key: ARGUMENTS.get(key, f"--{key}"),
    )
    outcome = parity_check.run(settings, _watch(as_json))
    if as_json:
        print_json(outcome.to_json())
    else:
        print_reading(settings.model.name, outcome.read_as)
        _print(outcome)
    for failure in outcome.failures:
        stderr.print("[bold red]failed[/]", end=" ")
        stderr.print(failure, markup=False)
    if not outcome.passed:
        raise typer.Exit(1)


def _table(config: Path | None) -> tuple[Table | None, Path | None]:
    """The table of the file that was named, or of the nearest that may have one, and that file."""
    from stl_deploy.verify import budgets

    path = config or budgets.find(Path.cwd())
    if path is None:
        return None, None
    found = budgets.read(path, required=config is not None)
    return found, path if found is not None else None


def _watch(quiet: bool) -> Watch:
    """Progress bars on a terminal."""

    @contextmanager
    def watch(what: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        with progress(quiet) as bar:
            task = bar.add_task(what, total=total, note=unit)
            yield lambda done: bar.update(task, completed=done)

    return watch


def _print(outcome: Outcome) -> None:
    """The three comparisons, each under its name."""
    report = outcome.report
    complain_diagnostics([asdict(note) for note in outcome.notes])
    if report.expected is not None:
        print_expected(report.expected)
    if report.nir_differing is None:
        say("(a) Float against float: not compared, the float NIR graph is itself the reference")
    elif report.itself is not None:
        say(f"(a) Float against float: {itself_words(report.itself)}")
    else:
        say(
            "(a) Float against float: the float NIR graph differs from PyTorch in "
            f"{report.nir_differing:,} of {report.entries:,} spikes, both in float64; it must be 0"
        )
    say("")
    table(
        "(b) Integers against integers: backends and the reference; nothing may differ",
        ("backend", "spikes", "differing", "states", "differing", "predictions differing"),
        [
            (
                name,
                f"{a.entries:,}",
                f"{a.spike_mismatches:,}",
                f"{a.states:,}",
                f"{a.state_mismatches:,}",
                f"{a.prediction_mismatches:,}",
            )
            for name, a in outcome.agreements.items()
        ],
    )
    limits = outcome.budgets.to_json()
    bare = limits == {"layers": {}}
    say(
        f"(c) Float against integers: {outcome.reference} and the integer network; "
        + ("no budget is set" if bare else f"budgets {limits}")
    )
    print_parity(report)
    if report.overflows:
        warn(
            f"registers overflowed in {report.overflows:,} neuron steps: this does not predict the chip"
        )


def main() -> None:
    """Entry point."""
    run(parity, "stl-parity")
