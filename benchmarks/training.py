"""Training on a CPU: the compiled LIF loops against PyTorch's operations, and snnTorch's neuron.

    python benchmarks/training.py [--repeats 7] [--threads 1] [--give-back]

Every repeat trains one batch of 128 in each way, one after the other, so that a busy machine is busy for
all. Printed are seconds, and the ratio to PyTorch's operations within the same repeat: median and range.
``peer`` is the same network with snnTorch's Leaky neuron (reset "zero", one threshold a layer) in a loop
over time, where that package is installed. All keep their memory as ``stl-train`` does, unless
``--give-back`` asks for what glibc does by itself.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import pages
import torch
from torch import Tensor, nn

from stl_deploy.ir.arch import Architecture
from stl_deploy.models import layers, memory
from stl_deploy.models.net import STLNet
from stl_deploy.models.readouts import rate_loss
from stl_deploy.models.train import encode

ARCH = "24C5-BN-LIF-P14-32C5-BN-LIF-P7-FC256-LIF-FC100-LIF-AvgPool10"
BATCH, STEPS = 128, 4


def ours(graded: bool, compiled: bool) -> Callable[[], None]:
    """One step of training of our network, with or without the compiled loops."""
    torch.manual_seed(0)
    model = STLNet(Architecture.parse(ARCH, levels=255 if graded else 1), threshold=1.0)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    images, labels = batch()
    use = layers._compiled

    def step() -> None:
        layers._compiled = use if compiled else lambda *_: False
        kind: Any = "graded" if graded else "bernoulli"
        raster = encode(images, STEPS, kind, torch.Generator().manual_seed(0))
        learn(optimizer, rate_loss(model(raster), labels))
        layers._compiled = use

    return step


def peer(graded: bool) -> Callable[[], None]:
    """One step of training with snnTorch's neurons."""
    import snntorch
    from snntorch import surrogate, utils

    torch.manual_seed(0)
    spec = Architecture.parse(ARCH, levels=255 if graded else 1)

    def leaky() -> nn.Module:
        atan = surrogate.atan()
        return snntorch.Leaky(0.5, spike_grad=atan, reset_mechanism="zero", init_hidden=True)

    model = nn.Sequential(
        nn.Conv2d(1, 24, 5, padding=2, bias=False),
        nn.BatchNorm2d(24),
        leaky(),
        nn.MaxPool2d(2),
        nn.Conv2d(24, 32, 5, padding=2, bias=False),
        nn.BatchNorm2d(32),
        leaky(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(1568, 256, bias=False),
        leaky(),
        nn.Linear(256, 100, bias=False),
        leaky(),
    )
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    images, labels = batch()

    def step() -> None:
        utils.reset(model)
        kind: Any = "graded" if graded else "bernoulli"
        raster = encode(images, STEPS, kind, torch.Generator().manual_seed(0)).float()
        raster = raster / spec.input.levels
        spikes = torch.stack([model(raster[:, t]) for t in range(STEPS)], 1)
        learn(optimizer, rate_loss(spikes.mean(1).unflatten(1, (10, 10)).mean(2), labels))

    return step


def batch() -> tuple[Tensor, Tensor]:
    """Images and labels."""
    rng = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (BATCH, 1, 28, 28), dtype=torch.uint8, generator=rng)
    return images, torch.randint(0, 10, (BATCH,), generator=rng)


def learn(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """A step of the optimizer."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def timed(step: Callable[[], None]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def main() -> None:
    """Interleave, repeat, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--give-back", action="store_true", help="without stl-train's models/memory.py"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if not args.give_back:
        memory.keep()
    rows = []
    for encoding in ("bernoulli", "graded"):
        graded = encoding == "graded"
        ways = {"PyTorch's operations": ours(graded, False), "compiled": ours(graded, True)}
        if find_spec("snntorch"):
            ways["snnTorch"] = peer(graded)
        for step in ways.values():  # compile, and let memory grow
            timed(step), timed(step)
        seconds = np.array([[timed(s) for s in ways.values()] for _ in range(args.repeats)])
        for at, name in enumerate(ways):
            ratio = seconds[:, at] / seconds[:, 0]
            rows.append(
                [
                    encoding,
                    name,
                    f"{np.median(seconds[:, at]):.3f}",
                    f"{np.median(ratio):.2f} ({ratio.min():.2f} .. {ratio.max():.2f})",
                ]
            )
    note = f"A batch of {BATCH}, T = {STEPS}, {args.threads} thread(s), {args.repeats} repeats"
    pages.show(note, ["input", "neurons", "seconds", "of PyTorch's operations"], rows)


if __name__ == "__main__":
    main()
