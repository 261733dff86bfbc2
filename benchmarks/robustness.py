"""How far noise on the input, and drift of weights and thresholds, take the runs of docs/learning.md.

    python benchmarks/learning_runs.py -o runs
    python benchmarks/robustness.py runs [--limit 1000] [--write]

Accuracy in float64 and as integers for loihi2, mean and standard deviation over the seeds; every seed has
its own draw of the noise, which is the same for all modes. ``--write`` updates docs/learning.md.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pages
import torch
from learning import COLOURS, mean_and_deviation
from learning_runs import DATA, MODES, batches
from numpy.typing import NDArray
from rich.progress import track

import stl_deploy
from stl_deploy.formats import idx
from stl_deploy.hw_sim.engine import Engine
from stl_deploy.importers import stl
from stl_deploy.ir.network import IntegerNetwork
from stl_deploy.models.net import STLNet, from_params
from stl_deploy.verify import perturb

LEVELS: dict[str, tuple[float, ...]] = {
    "pixel": (0.05, 0.1, 0.2, 0.3),
    "gaussian": (0.1, 0.2, 0.3, 0.4),
    "drop": (0.1, 0.2, 0.4, 0.6),
    "weight drift": (0.05, 0.1, 0.2, 0.4),
    "threshold drift": (0.05, 0.1, 0.2, 0.4),
}
Images = NDArray[np.uint8]
Rasters = list[tuple[torch.Tensor, torch.Tensor]]
Found = dict[
    tuple[str, float, str, str], list[float]
]  # kind, level, mode, arithmetic: of each seed


def noisy(kind: str, level: float, images: Images, labels: Any, steps: int, seed: int) -> Rasters:
    """The test images with noise of one kind on them, batch by batch."""
    rng = np.random.default_rng(seed)
    if kind in ("pixel", "gaussian"):
        images = getattr(perturb, kind)(images, level, rng)
    out = list(batches(images, labels, steps))
    if kind != "drop":
        return out
    return [(torch.from_numpy(perturb.drop(x.numpy(), level, rng)), y) for x, y in out]


def right(model: STLNet | IntegerNetwork, rasters: Rasters) -> float:
    """Accuracy in percent."""
    hits = total = 0
    engine = Engine(model) if isinstance(model, IntegerNetwork) else None
    for raster, labels in rasters:
        if engine is not None:
            found = torch.from_numpy(engine.run(raster.numpy()).predictions)
        else:
            assert isinstance(model, STLNet)
            with torch.inference_mode():
                found = model(raster).argmax(1)
        hits += int((found == labels).sum())
        total += len(labels)
    return 100 * hits / total


def measure(checkpoint: stl.Checkpoint, seed: int, images: Images, labels: Any) -> Iterator[Any]:
    """(kind, level, arithmetic, accuracy) of one run."""
    arch, params = checkpoint.arch, checkpoint.params
    model = from_params(arch, params).double()
    graph = stl_deploy.from_torch(model)
    network = stl_deploy.quantize(graph, "loihi2", clamp_thresholds=True)
    clean = noisy("", 0, images, labels, arch.timesteps, seed)
    for kind, levels in LEVELS.items():
        for level in (0.0, *levels):
            ours, lowered, rasters = model, network, clean
            if level and kind.endswith("drift"):
                of: Any = "weight" if kind.startswith("weight") else "thresh"
                ours = from_params(arch, perturb.drift_params(params, level, of, seed)).double()
                lowered = perturb.drift_network(network, level, of, seed)
            elif level:
                rasters = noisy(kind, level, images, labels, arch.timesteps, seed)
            yield kind, level, "float", right(ours, rasters)
            yield kind, level, "integer", right(lowered, rasters)


def rows_of(found: Found, modes: tuple[str, ...]) -> list[list[str]]:
    """One row a kind and level."""
    rows = []
    for kind, levels in LEVELS.items():
        for level in (0.0, *levels):
            cells = [
                mean_and_deviation(found[kind, level, mode, arithmetic])
                for mode in modes
                for arithmetic in ("float", "integer")
            ]
            rows.append([kind, f"{level:g}", *cells])
    return rows


def draw(found: Found, modes: tuple[str, ...], path: Path) -> None:
    """Accuracy against the level, float and integer."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 2.9), layout="constrained")
    axes = figure.subplots(1, len(LEVELS), sharey=True)
    for axis, (kind, levels) in zip(axes, LEVELS.items(), strict=True):
        x = (0.0, *levels)
        for mode in modes:
            for arithmetic, style in (("float", "-"), ("integer", "--")):
                y = np.array([found[kind, level, mode, arithmetic] for level in x])
                axis.errorbar(
                    x,
                    y.mean(1),
                    y.std(1, ddof=1),
                    color=COLOURS[mode],
                    linestyle=style,
                    capsize=2,
                    label=f"{mode}, {arithmetic}",
                )
        axis.set(title=kind, xlabel="level")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("test accuracy, %")
    axes[0].legend(fontsize=7)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure all, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("runs", type=Path, help="folder of learning_runs.py")
    parser.add_argument("--limit", type=int, default=1000, help="first N test images [1000]")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument(
        "--write", action="store_true", help="update docs/learning.md and its picture"
    )
    args = parser.parse_args()
    images, labels = idx.load(args.data, "test", args.limit)
    found: Found = defaultdict(list)
    paths = [p for mode in MODES for p in sorted(args.runs.glob(f"{mode}-*.pt"))]
    for path in track(paths, "measuring"):
        mode, seed = path.stem.split("-")
        for kind, level, arithmetic, value in measure(stl.read(path), int(seed), images, labels):
            found[kind, level, mode, arithmetic].append(value)
    head = ["noise", "level", *(f"{m}, {a}" for m in MODES for a in ("float", "integer"))]
    note = (
        f"Test accuracy in percent on {len(images):,} images, mean and standard deviation over "
        f"{len(found['pixel', 0.0, MODES[0], 'float'])} seeds:"
    )
    rows = rows_of(found, MODES)
    pages.show(note, head, rows)
    if args.write:
        pages.write("learning.md", "benchmarks/robustness.py", note, head, rows)
        draw(found, MODES, pages.DOCS / "learning-robustness.png")


if __name__ == "__main__":
    main()
