"""Networks with other rules than the shipped models, in integers and as plain PyTorch in float32.

Both have the same weights and thresholds, whole numbers, so that they fire alike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stl_deploy.ir.network import Connection, Input, IntegerNetwork, Population
from stl_deploy.ir.neurons import Lif
from stl_deploy.ir.readouts import Readout
from stl_deploy.ir.synapses import Conv, Dense
from stl_deploy.ir.units import DECAY_ONE, FORGETS

Forward = Callable[[Tensor], Tensor]  # of a raster [N, T, ...] to scores [N, classes]


@dataclass(frozen=True)
class Case:
    """A network, the same in float, and spikes for it."""

    network: IntegerNetwork
    floats: Forward
    spikes: NDArray[np.uint8]


def _lif(vth: NDArray[Any] | int, shape: tuple[int, ...], **fields: Any) -> Lif:
    full = np.broadcast_to(np.asarray(vth, np.int32), shape).copy()
    return Lif(full, np.zeros((1,) * len(shape), np.int32), np.ones((1,) * len(shape)), **fields)


def stork(samples: int = 256) -> Case:
    """Speech of 700 channels: 128 CUBA neurons, recurrent with a delay, that rest after a spike.

    Classes are read from the highest voltage of integrators.
    """
    rng = np.random.default_rng(0)
    inputs, hidden, classes, steps, delay = 700, 128, 20, 250, 3
    du, dv, vth = 700, 400, 1800
    w, r, o = (
        rng.integers(low, 41, size).astype(np.int8)
        for low, size in ((-30, (hidden, inputs)), (-40, (hidden,) * 2), (-40, (classes, hidden)))
    )
    network = IntegerNetwork(
        "loihi2",
        steps,
        {"input": Input((inputs,))},
        (
            Population("hidden", (hidden,), _lif(vth, (hidden,), du=du, dv=dv, hold=1)),
            Population("readout", (classes,), _lif(0, (classes,), du=du, dv=dv, fires=False)),
        ),
        (
            Connection("w", "input", "hidden", Dense(w)),
            Connection("r", "hidden", "hidden", Dense(r), delay=delay),
            Connection("o", "hidden", "readout", Dense(o)),
        ),
        Readout(classes, 1, "readout", "max"),
    )
    alpha, beta = (FORGETS - du) / DECAY_ONE, (DECAY_ONE - dv) / DECAY_ONE
    first, back, last = (torch.from_numpy(x.T.astype(np.float32)) for x in (w, r, o))

    def floats(raster: Tensor) -> Tensor:
        x = (raster.transpose(0, 1).to(torch.float32).flatten(0, 1) @ first).unflatten(
            0, (steps, -1)
        )
        i = v = torch.zeros_like(x[0])
        rests = torch.zeros_like(v, dtype=torch.bool)
        sent: list[Tensor] = []
        for t in range(steps):
            i = i * alpha + x[t]
            if t >= delay:
                i = i + sent[t - delay] @ back
            v = torch.where(rests, v, v * beta + i)
            fires = (v > vth) & ~rests
            sent.append(fires.to(torch.float32))
            v, rests = v.masked_fill(fires, 0), fires
        y = (torch.stack(sent).flatten(0, 1) @ last).unflatten(0, (steps, -1))
        i = v = torch.zeros_like(y[0])
        best = torch.full_like(i, -torch.inf)
        for t in range(steps):
            i = i * alpha + y[t]
            v = v * beta + i
            best = torch.maximum(best, v)
        return best

    return Case(network, floats, (rng.random((samples, steps, inputs)) < 0.02).astype(np.uint8))


def tebn(samples: int = 64) -> Case:
    """Images: two convolutions whose sums are multiplied by a gain for each step and channel, and votes."""
    rng = np.random.default_rng(1)
    steps, plane, classes, dv = 6, (32, 32), 10, DECAY_ONE // 2
    widths, thresholds = (3, 64, 64), (60, 420)
    populations, connections, layers, source = [], [], [], "input"
    for i, vth in enumerate(thresholds):
        shape = widths[i + 1], *plane
        weight = rng.integers(-40, 44, (widths[i + 1], widths[i], 3, 3)).astype(np.int8)
        gain = rng.integers(3000, 5000, (steps, shape[0], 1, 1)).astype(np.int16)
        conv = Conv(weight, (1, 1), (1, 1), (1, 1), 1)
        populations.append(Population(f"lif{i}", shape, _lif(vth, shape, dv=dv, gain=gain)))
        connections.append(Connection(f"conv{i}", source, f"lif{i}", conv))
        floats_of = torch.from_numpy(weight.astype(np.float32))
        layers.append((floats_of, torch.from_numpy(gain / np.float32(DECAY_ONE)), vth))
        source = f"lif{i}"
    weight = rng.integers(-40, 41, (classes, widths[-1] * plane[0] * plane[1])).astype(np.int8)
    vth = 4000
    populations.append(Population("out", (classes,), _lif(vth, (classes,), dv=dv)))
    connections.append(Connection("linear", source, "out", Dense(weight)))
    network = IntegerNetwork(
        "loihi2",
        steps,
        {"input": Input((widths[0], *plane))},
        tuple(populations),
        tuple(connections),
        Readout(classes, 1, "out"),
    )
    linear, keep = torch.from_numpy(weight.T.astype(np.float32)), 1 - dv / DECAY_ONE

    def fire(current: Tensor, vth: int) -> Tensor:
        """Spikes for a current [T, N, ...], which is overwritten."""
        v = torch.zeros_like(current[0])
        for step in current:
            v.mul_(keep).add_(step)
            torch.gt(v, vth, out=step)
            v.masked_fill_(step.bool(), 0)
        return current

    def floats(raster: Tensor) -> Tensor:
        x = raster.transpose(0, 1).to(torch.float32).flatten(0, 1)
        for kernel, gains, vth_ in layers:
            x = torch.nn.functional.conv2d(x, kernel, padding=1).unflatten(0, (steps, -1))
            x = fire(x.mul_(gains[:, None]), vth_).flatten(0, 1)
        return fire((x.flatten(1) @ linear).unflatten(0, (steps, -1)), vth).sum(0)

    spikes = rng.random((samples, steps, widths[0], *plane)) < 0.2
    return Case(network, floats, spikes.astype(np.uint8))
