"""Train the runs that docs/learning.md compares: three modes of learning, several seeds, one budget.

    python benchmarks/learning_runs.py -o runs [--seeds 3] [--epochs 12] [--jobs 2] [--data DIR]

Every run leaves ``MODE-SEED.pt`` and ``MODE-SEED.json`` with its epochs; what is there already is not
trained again, so that an interrupted command continues with the runs that are missing.
``benchmarks/learning.py``, ``learning_energy.py`` and ``robustness.py`` read the folder.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

import stl_deploy
from stl_deploy.formats import idx
from stl_deploy.ir.arch import Architecture, Lif
from stl_deploy.models.layers import LIF
from stl_deploy.models.net import STLNet
from stl_deploy.models.train import Mode, Settings, Trainer

ARCH = "16C5-BN-LIF-P14-32C5-BN-LIF-P7-FC120-LIF-FC100-LIF-AvgPool10"
MODES: tuple[Mode, ...] = ("synergistic", "synaptic", "threshold")
DATA = Path("/usr/share/datasets/fashion-mnist")


def train(
    mode: Mode, seed: int, epochs: int, data: Path, out: Path, limit: int | None = None
) -> str:
    """One run on one thread: the checkpoint and what every epoch measured."""
    torch.set_num_threads(1)
    name = f"{mode}-{seed}"
    images, labels = idx.load(data, "train", limit)
    held_out = idx.load(data, "test", limit)
    arch = Architecture.parse(ARCH, images.shape[1:], levels=255)
    settings = Settings(mode, "graded", epochs, seed=seed, flip=True)
    trainer = Trainer(arch, settings)
    x, y = torch.from_numpy(np.array(images)), torch.from_numpy(labels)
    history = [{"epoch": 0, **measure(trainer.model, *held_out)}]
    for epoch in trainer.run(x, y):
        history.append({**asdict(epoch), "epoch": epoch.epoch + 1})
        history[-1] |= measure(trainer.model, *held_out)
        print(f"{name} epoch {epoch.epoch + 1}: {100 * history[-1]['test']:.2f} %", flush=True)
    record = {"arch": ARCH, "settings": asdict(settings), "torch": str(torch.__version__)}
    stl_deploy.save_checkpoint(trainer.model, out / f"{name}.pt", record)
    (out / f"{name}.json").write_text(json.dumps({**record, "history": history}, indent=1) + "\n")
    return name


def measure(model: STLNet, images: Any, labels: Any) -> dict[str, Any]:
    """Test accuracy, mean rate of every LIF layer on the test images, and its thresholds."""
    model.eval()
    right = 0
    spikes = {layer.name: 0.0 for layer in model.arch.layers if isinstance(layer, Lif)}
    with torch.inference_mode():
        for batch, wanted in batches(images, labels, model.arch.timesteps):
            out = model.run(batch)
            rates = model.readout(out[model.arch.layers[-1].name])
            right += int((rates.argmax(1) == wanted).sum())
            for layer in spikes:
                spikes[layer] += float(out[layer].mean()) * len(batch) / len(images)
    thresholds = {
        name: [round(float(q), 5) for q in np.quantile(m.thresh.detach(), [0, 0.05, 0.5, 0.95, 1])]
        for name, m in model.named_modules()
        if isinstance(m, LIF)
    }
    return {"test": right / len(images), "rates": spikes, "thresholds": thresholds}


def batches(
    images: Any, labels: Any, steps: int, size: int = 250
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Rasters of graded input, the same at every step, and labels."""
    for start in range(0, len(images), size):
        x = torch.from_numpy(np.array(images[start : start + size]))
        yield (
            x.unsqueeze(1).expand(-1, steps, *x.shape[1:]),
            torch.from_numpy(labels[start : start + size]),
        )


def main() -> None:
    """Train what is missing."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--limit", type=int, help="first N images only, to try the command")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    wanted = [(mode, seed) for seed in range(args.seeds) for mode in MODES]
    missing = [(m, s) for m, s in wanted if not (args.out / f"{m}-{s}.json").exists()]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.jobs, mp_context=spawn) as pool:
        how = args.epochs, args.data, args.out, args.limit
        jobs = [pool.submit(train, mode, seed, *how) for mode, seed in missing]
        for job in as_completed(jobs):
            Console().print(f"{job.result()} done")


if __name__ == "__main__":
    main()
