"""Time and memory of ``stl-export`` on a network of the official MNIST size.

    python benchmarks/export_official.py [--repeat 3] [--target nir] [--chip ideal]

Random but sensible parameters (unit-variance weights for the fan-in, thresholds around 1), 127,588
neurons, 13.5 M weights. Prints the median and spread of the wall time and the largest resident memory
of the command, process start and imports included.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from stl_deploy.formats.checkpoint import save_checkpoint
from stl_deploy.ir.arch import OFFICIAL_MNIST, Architecture
from stl_deploy.models.net import STLNet

LIMIT_S, LIMIT_GIB = 30, 2


def official(path: Path) -> None:
    """Write a checkpoint of the official architecture with random parameters."""
    torch.manual_seed(0)
    net = STLNet(Architecture.parse(OFFICIAL_MNIST))
    with torch.no_grad():
        for name, value in net.state_dict().items():
            if name.endswith("thresh"):
                value.normal_(1.0, 0.17).clamp_(min=0.05)
            elif name.endswith("running_var"):
                value.uniform_(0.5, 2.0)
            elif name.endswith("running_mean"):
                value.normal_(0.0, 0.2)
    neurons = sum(p.numel() for n, p in net.named_parameters() if n.endswith("thresh"))
    weights = sum(p.numel() for n, p in net.named_parameters() if p.dim() > 1 and "thresh" not in n)
    print(f"{OFFICIAL_MNIST}: {neurons:,} neurons, {weights:,} weights")
    save_checkpoint(net, path)


def main() -> None:
    """Run the command several times and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--target", default="nir")
    parser.add_argument("--chip", default="ideal")
    args = parser.parse_args()
    repeat, what = args.repeat, ["--target", args.target, "--chip", args.chip]
    times = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = folder / "official.pt"
        official(model)
        script = "from stl_deploy.commands.export import main; main()"
        for i in range(repeat):
            start = time.perf_counter()
            subprocess.run(
                [sys.executable, "-c", script, model, *what, "-o", folder / str(i)],
                check=True,
                stdout=subprocess.DEVNULL,
            )
            times.append(time.perf_counter() - start)
        size = sum(f.stat().st_size for f in (folder / "0").rglob("*") if f.is_file())
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(
        f"stl-export {' '.join(what)}: median {statistics.median(times):.1f} s "
        f"({min(times):.1f} to {max(times):.1f} over {repeat} runs, limit {LIMIT_S} s), "
        f"{memory:.2f} GiB resident (limit {LIMIT_GIB} GiB), {os.cpu_count()} cores, "
        f"{size / 2**20:.0f} MiB written"
    )


if __name__ == "__main__":
    main()
