"""``hw_sim``: run an integer network bit for bit, with counts, energy and time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stl_deploy.commands.common import (
    Debug,
    Force,
    Json,
    print_json,
    progress,
    refuse_existing,
    run,
    say,
    table,
    warn,
    warn_overflows,
)
from stl_deploy.errors import InputError, Problem

if TYPE_CHECKING:
    from stl_deploy.hw_sim.counts import Counts
    from stl_deploy.hw_sim.energy import Energy
    from stl_deploy.network import IntegerNetwork


def simulate(
    model: Annotated[Path, typer.Argument(help="model.nir of stl-export.", metavar="MODEL.nir")],
    data: Annotated[Path, typer.Option("--input", metavar="NPZ", help="Raster (see stl-raster).")],
    profile: Annotated[str | None, typer.Option(help="One energy profile; default all.")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="NPZ", help="Write the spikes of every layer.")
    ] = None,
    states: Annotated[bool, typer.Option("--states", help="Write u and v too (--out).")] = False,
    report: Annotated[Path | None, typer.Option(metavar="HTML", help="Write a report.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="First N samples only.")] = None,
    force: Force = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Simulate a network in its exact integers and estimate energy and time per inference.

    Example: hw_sim out/model.nir --input test.npz --report report.html
    """
    from stl_deploy import chip as chips
    from stl_deploy import nir_file
    from stl_deploy import raster as rasters
    from stl_deploy.files import atomic, check_distinct, check_writable
    from stl_deploy.hw_sim import simulate as sim
    from stl_deploy.report import render

    if profile is not None and profile not in chips.profiles():
        raise InputError(
            Problem("--profile", f"{profile!r} is not one of {', '.join(chips.profiles())}")
        )
    if states and out is None:
        raise InputError(Problem("--states", "goes with --out", "name a trace file with --out"))
    check_distinct((model, data), (out, report))
    for path in (out, report):
        if path is not None:
            refuse_existing(path, force)
            check_writable(path)
    network = nir_file.read_network(model)
    raster = rasters.check_fits(rasters.stream(data).first(limit), str(data), network)
    with progress(as_json) as bar:
        task = bar.add_task("simulate", total=raster.shape[0], note="samples")
        counts = sim.run(
            network, raster, out, states, lambda done: bar.update(task, completed=done)
        )
    activity = sim.summarize(network, counts, raster, profile)
    if report is not None:
        with atomic(report) as temporary:
            temporary.write_text(render(model.name, network, activity=activity), "utf-8")
    result = to_json(network, counts, activity.energies, activity.accuracy)
    if as_json:
        print_json(result)
    else:
        _print(model, result, counts, activity.energies)
        if report is not None:
            say(f"report: {report}")


def to_json(
    network: IntegerNetwork,
    counts: Counts,
    energies: dict[str, Energy],
    accuracy: float | None,
) -> dict[str, Any]:
    """The object that ``--json`` prints: totals over all samples, energy and time per inference."""
    from stl_deploy import chip as chips
    from stl_deploy import placement

    placed = placement.of(network, chips.load(network.chip))
    return {
        "samples": counts.samples,
        "timesteps": counts.timesteps,
        "physical_steps": counts.physical_steps,
        "chip": network.chip,
        "layers": [
            {
                "name": c.name,
                "spikes": int(c.spikes.sum()),
                "synops": int(c.synops.sum()),
                "updates": c.neurons * counts.physical_steps,
                "active_updates": int(c.active.sum()),
                "overflows": int(c.overflow.sum()),
                "cores": None if placed is None else placed.layers[c.name].cores,
            }
            for c in counts.layers
        ],
        "profiles": {
            name: {
                "energy_j": {
                    "dynamic": e.dynamic_j,
                    "static": e.static_j,
                    "io": None,
                    "total": e.total_j,
                    "by_event": e.by_event_j,
                    "by_layer": e.by_layer_j,
                },
                "time_s": {
                    "per_inference": e.time_s,
                    "latency": e.latency_s,
                    "per_step": list(e.per_step_s),
                },
                "cores": e.cores,
                "beyond": list(e.beyond),
            }
            for name, e in energies.items()
        },
        "predictions": counts.predictions.tolist(),
        "accuracy": accuracy,
    }


def _print(
    model: Path, result: dict[str, Any], counts: Counts, energies: dict[str, Energy]
) -> None:
    n = result["samples"]
    table(
        f"{model} on {result['chip']}, mean per inference over {n:,} samples of "
        f"{result['timesteps']} steps ({result['physical_steps']:,} physical)",
        ("layer", "spikes", "synops", "updates", "active", "cores"),
        [
            (
                row["name"],
                f"{row['spikes'] / n:,.1f}",
                f"{row['synops'] / n:,.0f}",
                f"{row['updates'] / n:,.0f}",
                f"{100 * row['active_updates'] / row['updates']:.1f} %",
                "-" if row["cores"] is None else str(row["cores"]),
            )
            for row in result["layers"]
        ],
    )
    if energies:
        _print_energies(energies)
    warn_overflows(counts.overflows)
    if result["accuracy"] is not None:
        say(f"accuracy: {100 * result['accuracy']:.2f} % of {n:,} samples")


def _print_energies(energies: dict[str, Energy]) -> None:
    def joules(value: float | None) -> str:
        return "-" if value is None else f"{1e6 * value:,.3f} uJ"

    events = list(next(iter(energies.values())).by_event_j)
    rows = [(event, *(joules(e.by_event_j[event]) for e in energies.values())) for event in events]
    rows += [
        ("dynamic", *(joules(e.dynamic_j) for e in energies.values())),
        ("static", *(joules(e.static_j) for e in energies.values())),
        ("I/O", *("not in profile" for _ in energies)),
        ("total", *(joules(e.total_j) for e in energies.values())),
        ("time per inference", *(f"{1e6 * e.time_s:,.1f} us" for e in energies.values())),
        ("latency, T + D steps", *(f"{1e6 * e.latency_s:,.1f} us" for e in energies.values())),
        ("cores of Loihi 1", *(str(e.cores) for e in energies.values())),
    ]
    table("Energy and time per inference, as Loihi 1 would take them", ("", *energies), rows)
    for problem in dict.fromkeys(p for e in energies.values() for p in e.beyond):
        warn(f"energy and time are those of larger cores than there are: {problem}")


def main() -> None:
    """Entry point."""
    run(simulate, "hw_sim")
