"""``hw_sim``: run an integer network bit for bit, with counts, energy and time."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from stl_deploy.backends.cluster import connect
from stl_deploy.commands.common import (
    Dask,
    Debug,
    Force,
    Input,
    Json,
    Limit,
    print_json,
    progress,
    run,
    say,
    table,
    warn,
    warn_overflows,
)
from stl_deploy.errors import InputError, Problem
from stl_deploy.files import check_distinct, check_writable, refuse_existing, write

if TYPE_CHECKING:
    from stl_deploy.hw_sim.account.counts import Counts
    from stl_deploy.hw_sim.account.energy import Bound, Energy
    from stl_deploy.hw_sim.account.traffic import Traffic
    from stl_deploy.hw_sim.account.unpriced import Unpriced
    from stl_deploy.ir.network import IntegerNetwork
    from stl_deploy.spread import Spread


def simulate(
    model: Annotated[Path, typer.Argument(help="model.nir of stl-export.", metavar="MODEL.nir")],
    data: Input,
    energy_model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Price events by this energy model only. Default: by all."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="NPZ", help="Write the spikes of every population.")
    ] = None,
    states: Annotated[
        bool, typer.Option("--states", help="With --out: write u, v and other states too.")
    ] = False,
    report: Annotated[Path | None, typer.Option(metavar="HTML", help="Write a report.")] = None,
    limit: Limit = None,
    dask: Dask = None,
    force: Force = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Simulate a network in its exact integers and estimate energy and time per inference.

    Example: hw_sim out/model.nir --input test.npz --report report.html
    """
    from stl_deploy.chips import facts as chips
    from stl_deploy.formats import integer_nir as nir_file
    from stl_deploy.formats import raster as rasters
    from stl_deploy.hw_sim import simulate as sim
    from stl_deploy.hw_sim.account.energy import unscheduled
    from stl_deploy.report import reading
    from stl_deploy.report.sections import render

    if states and out is None:
        raise InputError(Problem("--states", "needs --out", "name a trace file with --out"))
    check_distinct((model, data), (out, report))
    for path in (out, report):
        if path is not None:
            refuse_existing(path, replace=force)
            check_writable(path)
    network = nir_file.read_network(model)
    models = chips.profiles(chips.of(network))
    if energy_model is not None and energy_model not in models:
        what = f"{energy_model!r} is not one of {', '.join(models)}"
        raise InputError(Problem("--energy-model", what))
    raster = rasters.check_fits(rasters.stream(data).first(limit), str(data), network)
    with _spread(dask) as spread, progress(as_json) as bar:
        task = bar.add_task("simulate", total=raster.shape[0], note="samples")
        done = sim.Simulator(network, energy_model=energy_model).run(
            raster, out, states, lambda n: bar.update(task, completed=n), spread, replace=force
        )
    activity, counts = sim.summarize(network, done, raster), done.counts
    if assumed := reading.assumed(network.read_as):
        warn(f"{model}: assumed when the model was read: {assumed}")
    if (problem := unscheduled(network)) is not None:
        warn(str(problem))
    if report is not None:
        text = render(model.name, network, activity=activity)
        write(report, text.encode(errors="backslashreplace"), replace=force)
    result = to_json(network, counts, activity.energies, activity.accuracy)
    if as_json:
        print_json(result)
    else:
        _print(model, result, counts, activity.energies)
        if report is not None:
            say(f"report: {report}")


def _spread(address: str | None) -> AbstractContextManager[Spread | None]:
    """The Dask cluster at ``address``; None for this process."""
    if address is None:
        return nullcontext(None)
    return connect(address)


def to_json(
    network: IntegerNetwork,
    counts: Counts,
    energies: dict[str, Energy],
    accuracy: float | None,
) -> dict[str, Any]:
    """The object that ``--json`` prints: totals over all samples, energy and time per inference."""
    from stl_deploy.chips import facts as chips
    from stl_deploy.chips import placement, rules
    from stl_deploy.hw_sim.account import neurobench
    from stl_deploy.ir.network import synapse_count
    from stl_deploy.report.rows import neuron_words, readout_row

    bench, matrix = neurobench.metrics(network, counts), neurobench.of_readout(network, counts)
    traffic = {e.traffic.placed.chip: e.traffic for e in energies.values()}
    placed, assumed = placement.of(network, chips.of(network)), rules.assumed(network)
    return {
        "samples": counts.samples,
        "timesteps": counts.timesteps,
        "physical_steps": counts.physical_steps,
        "chip": network.chip,
        "layers": [
            {
                "name": c.name,
                "neuron": neuron_words(network.by_name[c.name]),
                "assumed": assumed.get(c.name, []),
                "spikes": int(c.spikes.sum()),
                "synops": int(c.synops.sum()),
                "updates": c.neurons * counts.physical_steps,
                "active_updates": int(c.active.sum()),
                "overflows": int(c.overflow.sum()),
                "cores": None if placed is None else placed.layers[c.name].cores,
            }
            for c in counts.layers
        ],
        "connections": [
            {
                "name": c.name,
                "source": c.source,
                "target": c.target,
                "delay": c.delay,
                "waits": None if network.depth is None else network.waits(c),
                "synapses": synapse_count(network, c),
                "synops": int(did.synops.sum()),
                "neurobench": None if of is None else vars(of),
            }
            for c, did, of in zip(
                network.connections,
                counts.connections,
                neurobench.operations(network, counts),
                strict=True,
            )
        ],
        "readout": readout_row(network.readout)
        | {"neurobench": None if matrix is None else vars(matrix)},
        "profiles": {name: _energy_json(e) for name, e in energies.items()},
        "traffic": {chip: _traffic_json(t) for chip, t in traffic.items()},
        "neurobench": vars(bench),
        "convention_45nm": vars(neurobench.convention_45nm(network, bench)),
        "predictions": counts.predictions.tolist(),
        "accuracy": accuracy,
    }


def _energy_json(e: Energy) -> dict[str, Any]:
    """Energy and time by one energy model; ``io`` is null because nobody has published its cost.

    ``left_out`` is not contained in the figures; ``unable`` and ``assumed`` are, without a cost of their own.
    """
    return {
        "energy_j": {
            "dynamic": e.dynamic_j,
            "static": e.static_j,
            "static_range": e.static_range_j,
            "io": None,
            "total": e.total_j,
            "by_event": e.by_event_j,
            "by_layer": e.by_layer_j,
            "by_layer_event": e.by_layer_event_j,
            "per_step": list(e.per_step_j),
        },
        "time_s": {
            "per_inference": e.time_s,
            "latency": e.latency_s,
            "per_step": list(e.per_step_s),
        },
        "bounds": [vars(bound) for bound in e.bounds],
        "step_bounds": [vars(bound) for bound in e.step_bounds],
        "chip": e.traffic.placed.chip,
        "cores": e.cores,
        "extrapolation": e.extrapolation,
        "beyond": list(e.beyond),
        "left_out": list(e.unpriced.left_out),
        "unable": list(e.unpriced.unable),
        "assumed": list(e.unpriced.assumed),
    }


def _traffic_json(traffic: Traffic) -> dict[str, Any]:
    """Totals of every core and of every link that carried anything, over all samples and steps."""
    mesh, tiles = traffic.mesh, traffic.mesh.tile(np.arange(traffic.placed.cores))
    columns, rows = mesh.position(tiles)
    counters = ("neurons", "active", "spikes", "synops", "packets_in", "packets_out")
    return {
        "tiles": {"columns": mesh.columns, "rows": mesh.rows, "chips": mesh.chips},
        "cores": [
            {
                "core": core,
                "layer": traffic.layer_of(core),
                "tile": int(tiles[core]),
                "column": int(columns[core]),
                "row": int(rows[core]),
            }
            | {name: int(getattr(traffic, name)[core]) for name in counters}
            for core in range(traffic.placed.cores)
        ],
        "links": [vars(link) | {"packets": packets} for link, packets in traffic.links],
        "host_packets": {"in": traffic.in_from_host, "out": traffic.out_to_host},
        "host_reads": traffic.host_reads,
    }


def _print(
    model: Path, result: dict[str, Any], counts: Counts, energies: dict[str, Energy]
) -> None:
    n = result["samples"]
    table(
        f"{model} on {result['chip']}, mean per inference over {n:,} samples of "
        f"{result['timesteps']} steps ({result['physical_steps']:,} physical)",
        ("population", "spikes", "synops", "updates", "active", "cores"),
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
        _print_energies(energies, result["chip"])
    _print_neurobench(result)
    warn_overflows(counts.overflows)
    if result["accuracy"] is not None:
        say(f"accuracy: {100 * result['accuracy']:.2f} % of {n:,} samples")


def _print_energies(energies: dict[str, Energy], chip: str) -> None:
    """All energy models side by side, each under the chip it describes; ``chip`` is the network's."""

    def joules(value: float | None) -> str:
        return "-" if value is None else f"{1e6 * value:,.3f} uJ"

    def seconds(value: float) -> str:
        return f"{1e6 * value:,.1f} us"

    columns = list(energies.values())
    of = [e.traffic.placed.chip for e in columns]
    rows = [("chip", *of)]
    rows += [
        (event, *(joules(e.by_event_j[event]) for e in columns)) for event in columns[0].by_event_j
    ]
    rows += [
        ("dynamic", *(joules(e.dynamic_j) for e in columns)),
        ("static", *(joules(e.static_j) for e in columns)),
        ("I/O", *("not published" for _ in columns)),
        ("total without I/O", *(joules(e.total_j) for e in columns)),
        ("time per inference", *(seconds(e.time_s) for e in columns)),
        ("latency, T + D steps", *(seconds(e.latency_s) for e in columns)),
        ("slowest in most steps", *(_bound(e.bounds[0]) for e in columns)),
        ("cores", *(str(e.cores) for e in columns)),
    ]
    if any(words := [e.unpriced.in_a_word for e in columns]):
        rows.append(("rules of this network", *(word or "priced" for word in words)))
    table("Energy and time per inference, as these chips would take them", ("", *energies), rows)
    if others := list(dict.fromkeys(name for name in of if name != chip)):
        say(
            f"The network is lowered to {chip}: the columns of {' and '.join(others)} price its events "
            f"on another chip and do not estimate {chip}."
        )
    for name, e in energies.items():
        if e.extrapolation is not None:
            say(f"{name} is an extrapolation: {e.extrapolation}")
    for name, unpriced in dict(zip(of, (e.unpriced for e in columns), strict=True)).items():
        _say_unpriced(name, unpriced)
    if left_out := columns[0].unpriced.left_out:
        say(f"Not priced, in energy or time: {'; '.join(left_out)}")
    for problem in dict.fromkeys(p for e in columns for p in e.beyond):
        warn(f"energy and time are those of larger cores than there are: {problem}")


def _say_unpriced(chip: str, unpriced: Unpriced) -> None:
    """What the figures of a chip price that it does not do, or is only assumed to do."""
    for sentence in unpriced.unable:
        say(f"Priced, although {chip} cannot run it: {sentence}")
    for sentence in unpriced.assumed:
        say(
            f"Assumed: {chip} needs a neuron program for {sentence}. Such neurons are priced like neurons "
            "without these rules."
        )


def _bound(bound: Bound) -> str:
    return bound.part if bound.core is None else f"core {bound.core} of {bound.layer}, {bound.part}"


def _print_neurobench(result: dict[str, Any]) -> None:
    """NeuroBench's metrics, and the convention of papers, which estimates no chip."""
    bench, at_45nm = result["neurobench"], result["convention_45nm"]
    say(
        f"NeuroBench: {bench['effective_acs']:,.0f} effective ACs, "
        f"{bench['effective_macs']:,.0f} effective MACs, {bench['dense']:,.0f} dense; activation "
        f"sparsity {bench['activation_sparsity']:.4f}, connection sparsity "
        f"{bench['connection_sparsity']:.4f}, footprint {bench['footprint_bytes']:,} bytes"
    )
    say(
        f"45 nm convention of papers (0.9 pJ per AC, 4.6 pJ per MAC, nothing else): "
        f"{1e6 * at_45nm['snn_j']:,.3f} uJ, {1e6 * at_45nm['ann_j']:,.3f} uJ as one dense pass in MACs; "
        "for comparison with papers only, not an estimate of any chip"
    )


def main() -> None:
    """Entry point."""
    run(simulate, "hw_sim")
