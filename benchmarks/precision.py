"""What each dial of precision costs the shipped model: mismatch, accuracy, synapses, memory, energy.

Rows are the weight precisions "split" and "2x8" and the bits of plain weights, each with and without
calibration, against the float model; and the models trained on integers, each against its own PyTorch model.

    stl-raster --split train --seed 1 --timesteps 4 --limit 1000 -o calib.npz
    stl-raster --split test --seed 0 --timesteps 4 -o test.npz
    python benchmarks/precision.py --calib calib.npz --raster test.npz [--limit 500] [--write]

``--write`` puts the table into docs/precision.md and the picture into docs/precision.png.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nir
import numpy as np
import pages
import torch
from numpy.typing import NDArray
from rich.progress import track

import stl_deploy
from stl_deploy.formats import raster as rasters
from stl_deploy.hw_sim.engine import Engine
from stl_deploy.hw_sim.simulate import Recorder
from stl_deploy.ir import cut
from stl_deploy.ir import execute as float_exec
from stl_deploy.ir.floats import decode
from stl_deploy.ir.network import IntegerNetwork, synapse_count
from stl_deploy.models.net import STLNet

ROOT = Path(__file__).resolve().parents[1]
ZOO = ROOT / "models" / "zoo"
BITS = range(8, 1, -1)
# Weights by name, as ``quantize`` is asked for them; the picture shows those of BITS.
WEIGHTS: dict[str, dict[str, Any]] = {f"{bits} bit": {"weight_bits": bits} for bits in BITS}
WEIGHTS |= {precision: {"weight_precision": precision} for precision in ("split", "2x8")}
KINDS = "plain", "calibrated"
IN_TABLE = ("8 bit", "split", "2x8", "4 bit")
FLOORS = ("8 bit", "4 bit")  # of which the first layer is also run alone
CHIP, ENERGY_MODEL = "loihi2", "loihi2-pilotnet"
Spikes = dict[str, NDArray[np.uint8]]


class Measured:
    """One network's counts of differing entries, right predictions and energy, batch by batch.

    ``floor`` counts what differs when only the first layer is integer and the rest is float.
    """

    def __init__(self, network: IntegerNetwork, full: bool) -> None:
        self.network, self.full = network, full
        self.recorder = Recorder(network, ENERGY_MODEL) if full else None
        self.engine = Engine(network, None if self.recorder is None else self.recorder.cores)
        self.cut = Engine(network.cut(network.by_name))
        self.forced = dict.fromkeys((p.name for p in network.weighted), 0)
        self.cascaded, self.floor = dict(self.forced), dict(self.forced)
        self.right = self.floor_right = self.samples = 0

    def take(
        self,
        inputs: NDArray[np.uint8],
        labels: NDArray[np.int64],
        want: Spikes,
        graph: nir.NIRGraph | None = None,
    ) -> None:
        """Run one batch, whose float spikes are ``want``; a floor is measured with the float ``graph``."""
        trace = self.engine.run(inputs)
        given = self.cut.run(cut.rasters(self.network.inputs, inputs, want))
        for name in self.forced:
            self.forced[name] += differing(given.layers[name].spikes, want[name])
            self.cascaded[name] += differing(trace.layers[name].spikes, want[name])
        self.samples += len(inputs)
        self.right += int((trace.predictions == labels).sum())
        if self.recorder is None:
            return
        self.recorder.add(inputs, trace)
        if graph is None:
            return
        first = self.network.populations[0].name
        sent = {first: trace.layers[first].spikes}
        floats = decode(graph)
        mixed = float_exec.run(floats.cut(sent), cut.rasters(floats.inputs, inputs, sent))
        mixed[first] = trace.layers[first].spikes
        for name in self.floor:
            self.floor[name] += differing(mixed[name], want[name])
        votes = self.network.readout.predict(mixed[self.network.readout.source])
        self.floor_right += int((votes == labels).sum())

    def percent(self, counts: dict[str, int]) -> list[float]:
        """Mismatch of every LIF layer, percent."""
        steps = self.samples * self.network.timesteps
        sizes = {p.name: p.size for p in self.network.weighted}
        return [100 * count / (steps * sizes[name]) for name, count in counts.items()]


def differing(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> int:
    """Entries in which two layers' spikes differ."""
    return int(np.count_nonzero(a != b))


@dataclass(frozen=True)
class Row:
    """A row of the table; mismatches in percent by layer, memory in MiB, energy in uJ."""

    name: str
    forced: list[float] | None
    cascaded: list[float]
    accuracy: float
    synapses: int | None = None
    memory: float | None = None
    cores: int | None = None
    energy: float | None = None

    def cells(self) -> list[str]:
        """As text."""
        forced = (
            ["-", "-"]
            if self.forced is None
            else [percents(self.forced), percents([float(np.mean(self.forced))], 4)]
        )
        return [
            self.name,
            *forced,
            percents(self.cascaded),
            f"{self.accuracy:.2f}",
            "-" if self.synapses is None else f"{self.synapses:,}",
            "-" if self.memory is None else f"{self.memory:.1f}",
            "-" if self.cores is None else f"{self.cores}",
            "-" if self.energy is None else f"{self.energy:.1f}",
        ]


def percents(values: list[float], digits: int = 3) -> str:
    """With so many digits; only zero is 0."""
    return " / ".join(f"{x:.{digits}f}" if x else "0" for x in values)


HEAD = (
    "weights",
    "forced, %",
    "mean, %",
    "cascaded, %",
    "accuracy, %",
    "synapses",
    "memory, MiB",
    "cores",
    "dynamic, uJ",
)


def row_of(name: str, done: Measured) -> Row:
    """The network's row."""
    assert done.recorder is not None
    placed = done.network.placement
    assert placed is not None
    energy = done.recorder.done().energies[ENERGY_MODEL]
    return Row(
        name,
        done.percent(done.forced),
        done.percent(done.cascaded),
        100 * done.right / done.samples,
        sum(synapse_count(done.network, c) for c in done.network.connections),
        sum(layer.total["synapse_bytes"] for layer in placed.layers.values()) / 2**20,
        placed.cores,
        1e6 * sum(energy.by_event_j.values()),
    )


def floor_of(name: str, done: Measured) -> Row:
    """The row of its first layer alone."""
    right = 100 * done.floor_right / done.samples
    return Row(f"{name}, first layer only", None, done.percent(done.floor), right)


def trained(raster: rasters.Raster) -> list[Row]:
    """The rows of the shipped models that were trained on integers, each against itself in PyTorch."""
    rows = []
    for path in sorted(ZOO.glob("fashion-stl-q?.pt"), reverse=True):
        model = stl_deploy.load(path)
        assert isinstance(model, STLNet)
        done = Measured(stl_deploy.quantize(stl_deploy.from_torch(model), CHIP), True)
        for start in track(range(0, len(raster.spikes), 50), path.stem):
            inputs, labels = raster.spikes[start : start + 50], raster.labels[start : start + 50]
            with torch.inference_mode():
                spikes = model.run(torch.from_numpy(inputs))
            want = {name: s.numpy().astype(np.uint8) for name, s in spikes.items()}
            done.take(inputs, labels, want)
        rows.append(row_of(f"{path.stem[-1]} bit, trained", done))
    return rows


def draw(means: dict[tuple[str, str], tuple[float, float]], path: Path) -> None:
    """Mismatch against bits: forced (mean over layers) and cascaded (last layer)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots(1, 2, sharex=True)
    bits = sorted(BITS)
    for at, title in enumerate(("forced, mean of the layers", "cascaded, last layer")):
        for kind, style in (("plain", "o--"), ("calibrated", "o-")):
            axes[at].semilogy(bits, [means[f"{b} bit", kind][at] for b in bits], style, label=kind)
        axes[at].set(title=title, xlabel="bits of a weight", ylabel="mismatch, %", xticks=bits)
        axes[at].grid(alpha=0.3)
    axes[0].legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Quantize the shipped model in every way, run all on the same batches, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--calib", type=Path, required=True, help="unlabelled inputs")
    parser.add_argument("--raster", type=Path, required=True, help="labelled, other inputs")
    parser.add_argument("--limit", type=int, help="first N samples only")
    parser.add_argument("--write", action="store_true", help="update docs/precision.md and .png")
    options = parser.parse_args()
    raster = rasters.load(options.raster).first(options.limit)
    calib = rasters.load(options.calib).spikes
    if raster.labels is None:
        parser.error(f"{options.raster} has no labels")
    graph = stl_deploy.from_torch(stl_deploy.load(ZOO / "fashion-stl.pt"))
    runs: dict[tuple[str, str], Measured] = {}
    for name, asked in track(WEIGHTS.items(), "quantizing"):
        for kind, data in zip(KINDS, (None, calib), strict=True):
            network = stl_deploy.quantize(graph, CHIP, data, **asked)
            runs[name, kind] = Measured(network, name in IN_TABLE)
    network = runs["8 bit", "plain"].network
    right = 0
    for start in track(range(0, len(raster.spikes), 50), "running"):
        part = slice(start, start + 50)
        inputs, labels = raster.spikes[part], raster.labels[part]
        want = float_exec.run(graph, inputs)
        right += int((network.readout.predict(want[network.readout.source]) == labels).sum())
        for (name, _), done in runs.items():
            done.take(inputs, labels, want, graph if name in FLOORS else None)
    rows = []
    for name, kind in ((name, kind) for name in IN_TABLE for kind in KINDS):
        rows.append(row_of(f"{name}, {kind}", runs[name, kind]))
        if name in FLOORS:
            rows.append(floor_of(f"{name}, {kind}", runs[name, kind]))
    rows += trained(raster)
    note = (
        f"{len(raster.spikes):,} test images, float {100 * right / len(raster.spikes):.2f} %, "
        f"{len(calib):,} images for calibration, chip {CHIP}, energy by {ENERGY_MODEL}; layers "
        f"{', '.join(p.name for p in network.weighted)}:"
    )
    cells = [row.cells() for row in rows]
    pages.show(note, HEAD, cells)
    means: dict[tuple[str, str], tuple[float, float]] = {}
    for key, done in runs.items():
        means[key] = float(np.mean(done.percent(done.forced))), done.percent(done.cascaded)[-1]
        forced, last = means[key]
        accuracy = 100 * done.right / done.samples
        print(f"{key[0]} {key[1]}: forced {forced:.4f} %, last {last:.3f} %, {accuracy:.2f} %")
    if options.write:
        pages.write("precision.md", "benchmarks/precision.py", note, HEAD, cells)
        draw(means, pages.DOCS / "precision.png")


if __name__ == "__main__":
    main()
