"""What each way of lowering thresholds costs the shipped model: accuracy, mismatch, cores, memory.

    python benchmarks/thresholds.py [--limit 1000] [--raster test.npz]

Without ``--raster`` the 500 shipped test images; ``stl-raster --split test --seed 0 --timesteps 4``
makes one of all 10,000. Prints the tables of docs/thresholds.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.progress import track

import stl_deploy
from stl_deploy.formats import raster as rasters
from stl_deploy.verify.against_float import compare

ZOO = Path(__file__).resolve().parents[1] / "models" / "zoo"
LOWERED = (
    ("loihi2", "native"),
    ("loihi2", "fold"),
    ("loihi1", "grouped"),
    ("loihi1", "fold"),
)


def main() -> None:
    """Quantize the shipped model in every way and compare each with the float model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit", type=int, help="first N samples only")
    parser.add_argument("--raster", type=Path, default=ZOO / "fashion-mnist-test500.npz")
    options = parser.parse_args()
    raster = rasters.load(options.raster).first(options.limit)
    model = stl_deploy.load(ZOO / "fashion-stl.pt")
    graph = stl_deploy.from_torch(model)
    rows, forced, rounding = [], [], []
    for chip, thresholds in track(LOWERED, "lowering"):
        network = stl_deploy.quantize(graph, chip=chip, thresholds=thresholds)
        report = compare(model, graph, network, raster)
        placed = network.placement
        assert placed is not None
        memory = sum(layer.total["synapse_bytes"] for layer in placed.layers.values())
        distinct = max(layer.fullest["thresholds"] for layer in placed.layers.values())
        bits = min(how.effective_bits for how in network.precision.values())
        rows.append(
            f"| {chip} | {thresholds} | {100 * (report.accuracy_lowered or 0):.2f} % | "
            f"{100 * report.prediction_agreement:.2f} % | {distinct} | {bits:.2f} | "
            f"{placed.cores} | {memory / 2**20:.1f} MiB |"
        )
        lif = [layer for layer in report.layers if layer.name in network.precision]
        forced.append(
            f"| {chip} | {thresholds} | "
            + " | ".join(f"{100 * r.mismatch:.3f} / {100 * r.mismatch_forced:.3f} %" for r in lif)
            + " |"
        )
        rounding += [
            f"| {name} | {100 * told.changed:.1f} % | {100 * told.mean:.2f} % | "
            f"{100 * told.largest:.1f} % | {placed.layers[name].cores} |"
            for name, told in network.rounding.items()
        ]
    names = [population.name for population in network.weighted]
    print(f"\n{len(raster.spikes):,} samples, float {100 * (report.accuracy_float or 0):.2f} %\n")
    head = "chip", "thresholds", "accuracy", "same prediction", "per core", "fewest bits", "cores"
    print("|", " | ".join((*head, "synapses")), "|")
    print("| --- " * 8 + "|", *rows, sep="\n")
    print("\n| chip | thresholds |", " | ".join(names), "|")
    print("| --- " * (2 + len(names)) + "|", *forced, sep="\n")
    print("\n| layer | changed | mean | largest | cores |")
    print("| --- " * 5 + "|", *rounding, sep="\n")


if __name__ == "__main__":
    main()
