"""Compare the three modes of learning: accuracy, firing rates by layer and epoch, learned thresholds.

    python benchmarks/learning_runs.py -o runs
    python benchmarks/learning.py runs [--write]

``--write`` puts the tables into docs/learning.md and the pictures next to it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pages
from learning_runs import DATA, MODES, measure

from stl_deploy.formats import idx
from stl_deploy.importers import stl
from stl_deploy.models import joint
from stl_deploy.models.net import from_params

COLOURS: dict[str, str] = dict(zip(MODES, ("tab:blue", "tab:orange", "tab:green"), strict=True))
Histories = dict[str, list[list[dict[str, Any]]]]


def read(folder: Path) -> Histories:
    """What every epoch of every run measured, by mode and in the order of seeds."""
    return {
        mode: [json.loads(p.read_text())["history"] for p in sorted(folder.glob(f"{mode}-*.json"))]
        for mode in MODES
    }


def mean_and_deviation(values: list[float], digits: int = 2) -> str:
    """Mean, and standard deviation of a sample."""
    return f"{np.mean(values):.{digits}f} +- {np.std(values, ddof=1):.{digits}f}"


def accuracy_rows(runs: Histories) -> list[list[str]]:
    """One row a mode: accuracy, and the firing rate of every layer, at the end."""
    rows = []
    for mode, histories in runs.items():
        last = [history[-1] for history in histories]
        rates = [[100 * end["rates"][layer] for end in last] for layer in last[0]["rates"]]
        rows.append(
            [
                mode,
                " / ".join(f"{100 * end['test']:.2f}" for end in last),
                mean_and_deviation([100 * end["test"] for end in last]),
                mean_and_deviation([100 * end["accuracy"] for end in last]),
                *(mean_and_deviation(rate, 1) for rate in rates),
            ]
        )
    return rows


def threshold_rows(runs: Histories) -> list[list[str]]:
    """One row a mode that learns thresholds and layer: what they are at the end, over all seeds."""
    rows = []
    for mode in ("synergistic", "threshold"):
        last = [history[-1]["thresholds"] for history in runs[mode]]
        for layer in last[0]:
            quantiles = np.mean([end[layer] for end in last], axis=0)
            rows.append([mode, layer, *(f"{q:.3f}" for q in quantiles)])
    return rows


def joint_rows(folder: Path, runs: Histories, data: Path) -> list[list[str]]:
    """Accuracy of the first two, three, ... runs of a mode deciding together, next to their best one."""
    held_out = idx.load(data, "test")
    rows = []
    for mode in ("synergistic", "synaptic"):
        checkpoints = [stl.read(path) for path in sorted(folder.glob(f"{mode}-*.pt"))]
        alone = [100 * history[-1]["test"] for history in runs[mode]]
        for count in range(2, len(checkpoints) + 1):
            together = joint.join(checkpoints[:count])
            model = from_params(together.arch, together.params)
            accuracy = 100 * measure(model, *held_out)["test"]
            best = max(alone[:count])
            row = [mode, f"{count}", f"{best:.2f}", f"{accuracy:.2f}", f"{accuracy - best:+.2f}"]
            rows.append(row)
    return rows


def draw_epochs(runs: Histories, path: Path) -> None:
    """Test accuracy, and firing rate of every layer, against the epoch: each seed and the mean."""
    from matplotlib.figure import Figure

    layers = list(runs[MODES[0]][0][0]["rates"])
    figure = Figure(figsize=(11, 5.6), layout="constrained")
    axes = figure.subplots(2, (len(layers) + 3) // 2, squeeze=False).flatten()
    for at, title in enumerate(["test accuracy, %", *(f"{x}: spikes/step, %" for x in layers)]):
        for mode, histories in runs.items():
            lines = 100 * np.array(
                [[e["rates"][layers[at - 1]] if at else e["test"] for e in h] for h in histories]
            )
            epochs = np.arange(lines.shape[1])
            axes[at].plot(epochs, lines.T, color=COLOURS[mode], alpha=0.3, linewidth=0.8)
            axes[at].plot(epochs, lines.mean(0), color=COLOURS[mode], label=mode)
        axes[at].set(title=title, xlabel="epoch")
        axes[at].grid(alpha=0.3)
    axes[0].legend()
    close, *unused = axes[len(layers) + 1 :]
    for mode in ("synergistic", "synaptic"):
        lines = 100 * np.array([[epoch["test"] for epoch in h[1:]] for h in runs[mode]])
        epochs = np.arange(1, lines.shape[1] + 1)
        close.plot(epochs, lines.T, color=COLOURS[mode], alpha=0.3, linewidth=0.8)
        close.plot(epochs, lines.mean(0), color=COLOURS[mode])
    close.set(title="test accuracy, %: closer", xlabel="epoch")
    close.grid(alpha=0.3)
    for axis in unused:
        axis.set_axis_off()
    figure.savefig(path, dpi=110)


def draw_thresholds(folder: Path, path: Path) -> None:
    """Learned thresholds of every layer, all seeds together."""
    from matplotlib.figure import Figure

    found: dict[str, dict[str, list[Any]]] = {}
    for mode in ("synergistic", "threshold"):
        for checkpoint in sorted(folder.glob(f"{mode}-*.pt")):
            for key, value in stl.read(checkpoint).params.items():
                if key.endswith(".thresh"):
                    of_layer = found.setdefault(key.removesuffix(".thresh"), {})
                    of_layer.setdefault(mode, []).append(value.flatten())
    figure = Figure(figsize=(11, 2.8), layout="constrained")
    axes = figure.subplots(1, len(found))
    for axis, (layer, by_mode) in zip(axes, found.items(), strict=True):
        for mode, values in by_mode.items():
            axis.hist(
                np.concatenate(values),
                bins=60,
                density=True,
                alpha=0.6,
                color=COLOURS[mode],
                label=mode,
            )
        axis.axvline(1, color="black", linewidth=0.8, linestyle="--")
        axis.set(title=layer, xlabel="threshold", yscale="log")
    axes[-1].legend(loc="upper right")
    figure.savefig(path, dpi=110)


def main() -> None:
    """Print and write the comparison."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("runs", type=Path, help="folder of learning_runs.py")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--write", action="store_true", help="update docs/learning.md and pictures")
    args = parser.parse_args()
    runs = read(args.runs)
    one = runs[MODES[0]][0]
    note = (
        f"{len(runs[MODES[0]])} seeds, {len(one) - 1} epochs each; test accuracy on all 10,000 images, mean "
        "and standard deviation, in percent; firing rates in percent of neurons and steps:"
    )
    head = ["learning", "seeds", "test", "training", *one[-1]["rates"]]
    rows = accuracy_rows(runs)
    pages.show(note, head, rows)
    about = "Quantiles of the learned thresholds (1 before), mean over seeds:"
    head2 = ["learning", "layer", "least", "5 %", "median", "95 %", "most"]
    rows2 = threshold_rows(runs)
    pages.show(about, head2, rows2)
    also = "Networks deciding together (stl-join), the first seeds of each mode, test accuracy in percent:"
    head3 = ["learning", "members", "best member", "together", "ahead by"]
    rows3 = joint_rows(args.runs, runs, args.data)
    pages.show(also, head3, rows3)
    if args.write:
        pages.write("learning.md", "benchmarks/learning.py", note, head, rows)
        pages.write("learning.md", "benchmarks/learning.py joint", also, head3, rows3)
        pages.write("learning.md", "benchmarks/learning.py thresholds", about, head2, rows2)
        draw_epochs(runs, pages.DOCS / "learning-epochs.png")
        draw_thresholds(args.runs, pages.DOCS / "learning-thresholds.png")


if __name__ == "__main__":
    main()
