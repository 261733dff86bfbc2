"""What an inference takes in the three modes of learning at equal accuracy.

    python benchmarks/learning_runs.py -o runs
    python benchmarks/learning_energy.py runs [--limit 2000] [--write]

Every run is lowered to loihi2 and runs for 1 to 8 time steps: more steps, more accuracy, more energy.
Energy at an accuracy is read off between those points. It is given by hw_sim's energy model (dynamic, per
inference) and by the convention of papers (45 nm: 0.9 pJ an accumulate, 4.6 pJ a multiply-accumulate).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pages
from learning import COLOURS, mean_and_deviation
from learning_runs import DATA, MODES
from numpy.typing import NDArray
from rich.progress import track

import stl_deploy
from stl_deploy.formats import idx
from stl_deploy.hw_sim.account.neurobench import convention_45nm, metrics
from stl_deploy.hw_sim.engine import Engine
from stl_deploy.hw_sim.simulate import Recorder
from stl_deploy.importers import stl
from stl_deploy.models.net import from_params

ENERGY_MODEL = "loihi2-pilotnet"
STEPS = range(1, 9)


class Point(NamedTuple):
    """One run at one T: accuracy in percent, microjoules and spikes per inference."""

    accuracy: float
    energy_model: float
    convention: float
    spikes: float


def measure(
    checkpoint: stl.Checkpoint, steps: int, images: NDArray[np.uint8], labels: Any
) -> Point:
    """The integer network of a checkpoint, run for ``steps`` steps."""
    arch = checkpoint.arch.model_copy(update={"timesteps": steps})
    graph = stl_deploy.from_torch(from_params(arch, checkpoint.params))
    network = stl_deploy.quantize(graph, "loihi2", clamp_thresholds=True)
    recorder = Recorder(network, ENERGY_MODEL)
    engine = Engine(network, recorder.cores)
    hits = 0
    for start in range(0, len(images), 100):
        part = slice(start, start + 100)
        raster = np.repeat(images[part, None], steps, axis=1)
        trace = engine.run(raster)
        recorder.add(raster, trace)
        hits += int((trace.predictions == labels[part]).sum())
    run = recorder.done()
    bench = metrics(network, run.counts)
    fired = sum(int(layer.spikes.sum()) for layer in run.counts.layers) / len(images)
    return Point(
        100 * hits / len(images),
        1e6 * sum(run.energies[ENERGY_MODEL].by_event_j.values()),
        1e6 * convention_45nm(network, bench).snn_j,
        fired,
    )


def at(points: list[Point], accuracy: float) -> Point | None:
    """Between the first two points of which the second reaches ``accuracy``; None where none does."""
    for before, after in zip([None, *points], points, strict=False):
        if after.accuracy >= accuracy:
            if before is None or after.accuracy == before.accuracy:
                return after
            share = (accuracy - before.accuracy) / (after.accuracy - before.accuracy)
            return Point(*(a + share * (b - a) for a, b in zip(before, after, strict=True)))
    return None


def rows_at(curves: dict[str, list[list[Point]]], accuracy: float) -> list[list[str]]:
    """One row a mode."""
    rows = []
    for mode, runs in curves.items():
        found = [at(points, accuracy) for points in runs]
        reached = [point for point in found if point is not None]
        best = max(point.accuracy for points in runs for point in points)
        cells = ["-"] * 3
        if len(reached) == len(runs):
            columns = list(zip(*reached, strict=True))[1:]
            cells = [
                mean_and_deviation(list(c), d) for c, d in zip(columns, (2, 3, 0), strict=True)
            ]
        rows.append(
            [f"{accuracy:.1f}", mode, *cells, f"{len(reached)} of {len(runs)}", f"{best:.2f}"]
        )
    return rows


def draw(curves: dict[str, list[list[Point]]], path: Path) -> None:
    """Accuracy against energy, by energy model and by convention."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, column, title in zip(axes, (1, 2), (ENERGY_MODEL, "45 nm convention"), strict=True):
        for mode, runs in curves.items():
            for seed, points in enumerate(runs):
                axis.plot(
                    [p[column] for p in points],
                    [p.accuracy for p in points],
                    "o-",
                    markersize=3,
                    color=COLOURS[mode],
                    alpha=0.7,
                    label=mode if seed == 0 else None,
                )
        axis.set(title=title, xlabel="uJ per inference", xscale="log")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("test accuracy, %")
    axes[0].legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure all, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("runs", type=Path, help="folder of learning_runs.py")
    parser.add_argument("--limit", type=int, default=2000, help="first N test images [2000]")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument(
        "--write", action="store_true", help="update docs/learning.md and its picture"
    )
    args = parser.parse_args()
    images, labels = idx.load(args.data, "test", args.limit)
    curves: dict[str, list[list[Point]]] = {mode: [] for mode in MODES}
    paths = [(mode, p) for mode in MODES for p in sorted(args.runs.glob(f"{mode}-*.pt"))]
    for mode, path in track(paths, "measuring"):
        checkpoint = stl.read(path)
        curves[mode].append([measure(checkpoint, t, images, labels) for t in STEPS])
    # The most that every run of a mode reaches: of the two modes that learn weights, and of all.
    reach = {m: min(max(p.accuracy for p in points) for points in curves[m]) for m in MODES}
    both = min(reach["synergistic"], reach["synaptic"])
    # Near the end curves are flat, and where they cross a level says little: so another, below it.
    levels = both, both - 2, min(reach.values())
    rows = [row for level in levels for row in rows_at(curves, np.floor(10 * level) / 10)]
    head = [
        "accuracy, %",
        "learning",
        f"{ENERGY_MODEL}, uJ",
        "45 nm, uJ",
        "spikes",
        "runs that reach it",
        "best, %",
    ]
    note = f"Integers on loihi2, {len(images):,} test images, T = 1 to {STEPS[-1]}, per inference:"
    pages.show(note, head, rows)
    if args.write:
        pages.write("learning.md", "benchmarks/learning_energy.py", note, head, rows)
        draw(curves, pages.DOCS / "learning-energy.png")


if __name__ == "__main__":
    main()
