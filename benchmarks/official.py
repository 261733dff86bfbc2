"""Accuracy of official classes in whole numbers: train, export as a user would, compare.

    python benchmarks/official.py --data DIR [--only ltmd] [--seconds 240] [--images 1000] [-o OUT]

Trains the small equivalents of LTMD, TEBN and rate-based backpropagation in
``tests/build/official_nets.py`` on the normalized pixels of Fashion-MNIST, on one thread, saves each as its
official script does, and runs stl-export and stl-parity on the file. Prints the accuracy of the network
itself in float64, of the float graph and of the integers, and how many entries differ between backends.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from stl_deploy.formats import idx  # noqa: E402
from tests.build import official_nets as nets  # noqa: E402

MEAN, STD = 0.2860, 0.3530
BATCH, RATE = 64, 3e-3
LEAST = 0.02  # of LTMD's w: chips hold no thresholds below zero
# The class, the key that its script saves the state_dict under, and a factor of its scores in the loss.
CASES: dict[str, tuple[Callable[[], nets.Noting], str, float]] = {
    "ltmd": (lambda: nets.Ltmd(first=12, growth=8), "state_dict", 10.0),
    "tebn": (nets.Tebn, "model", 1.0),
    "rate-based": (nets.RateResNet, "best_net", 1.0),
}


def normalized(pixels: NDArray[Any]) -> Tensor:
    """Pixels 0..255 as the networks take them, float32."""
    return (torch.from_numpy(pixels.astype(np.float32)) / 255 - MEAN) / STD


def train(name: str, data: Path, seconds: float) -> nets.Noting:
    """A network that was trained for so long."""
    images, labels = idx.load(data, "train")
    make, _, factor = CASES[name]
    net = nets.drawn(make, normalized(images[:64]))
    net.note = lambda _name, _h, _theta, sent: sent  # type: ignore[method-assign]
    net.train()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            module.momentum = 0.1
    optimizer = torch.optim.Adam(net.parameters(), RATE)
    rng, start, share = np.random.default_rng(0), time.monotonic(), 0.0
    while share < 1:
        for group in optimizer.param_groups:
            group["lr"] = RATE * max(0.02, 1 - share)
        batch = rng.integers(0, len(images), BATCH)
        scores = net(normalized(images[batch])) * factor
        loss = nn.functional.cross_entropy(scores, torch.from_numpy(labels[batch]))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        with torch.no_grad():
            for module in net.modules():
                if isinstance(module, nets.Threshold):
                    module.w.clamp_(min=LEAST)
        share = (time.monotonic() - start) / seconds
    return net.eval()


def accuracy(net: nets.Noting, data: Path, images: int) -> float:
    """That of the network itself in float64, in percent."""
    pixels, labels = idx.load(data, "test", images)
    double = net.double()
    with torch.no_grad():
        parts = [double(normalized(part).double()) for part in np.array_split(pixels, images // 50)]
    return 100 * float((torch.cat(parts).argmax(1).numpy() == labels).mean())


def told(command: str, *args: object) -> dict[str, Any]:
    """What a command of the package prints with --json."""
    where = Path(sys.executable).parent / command
    line = [str(where), *map(str, args), "--json"]
    done = subprocess.run(line, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(line)}\n{done.stderr}")
    return dict(json.loads(done.stdout))


def main() -> None:
    """Train, export and compare every class that is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of Fashion-MNIST's files")
    parser.add_argument("--only", choices=tuple(CASES))
    parser.add_argument("--seconds", type=float, default=240)
    parser.add_argument("--images", type=int, default=1000, help="of the test set")
    parser.add_argument("--limit", type=int, default=4, help="samples that Lava runs")
    parser.add_argument("-o", "--out", type=Path, default=Path("official-accuracy"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(exist_ok=True)
    raster = args.out / f"graded{args.images}.npz"
    if not raster.exists():
        what = ("--data", args.data, "--encoding", "graded", "--timesteps", nets.T)
        told("stl-raster", *what, "--limit", args.images, "-o", raster)
    for name in [args.only] if args.only else CASES:
        net, file = train(name, args.data, args.seconds), args.out / f"{name}.pt"
        state = {f"module.{key}": value for key, value in net.state_dict().items()}
        torch.save({CASES[name][1]: state, "epoch": 1}, file)
        itself = accuracy(net, args.data, args.images)
        out = args.out / name
        targets = [word for target in ("nir", "onnx", "loihi") for word in ("--target", target)]
        how = ("--timesteps", nets.T, "--input-shape", "1,28,28", "--normalize", f"{MEAN},{STD}")
        exported = told("stl-export", file, *targets, *how, "--eval", raster, "-o", out, "--force")
        measured = exported["parity"]["accuracy"]
        where = ("--input", raster, "--limit", args.limit, "--backend", "hw_sim,onnx,lava")
        backends = told("stl-parity", file, out / "model.nir", *where, *how[4:])["backends"]
        differ = {n: b["spike_mismatches"] + b["state_mismatches"] for n, b in backends.items()}
        words = ", ".join(f"{n} {count}" for n, count in differ.items())
        print(
            f"{name}: {itself:.2f} % itself in float64, {measured['float']} float graph, "
            f"{measured['lowered']} integers; entries that differ: {words}",
            flush=True,
        )


if __name__ == "__main__":
    main()
