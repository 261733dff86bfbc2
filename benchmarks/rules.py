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
from stl_deploy.ir.neurons import ONCE, Lif
from stl_deploy.ir.readouts import Readout
from stl_deploy.ir.synapses import Conv, Dense
from stl_deploy.ir.units import DECAY_ONE, FORGETS, FRACTION_BITS

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


def residual(samples: int = 64) -> Case:
    """Images: a residual block of convolutions whose neurons subtract their thresholds, and votes."""
    rng = np.random.default_rng(2)
    steps, plane, width, classes, dv = 6, (32, 32), 32, 10, DECAY_ONE // 2
    shape = width, *plane
    kernels = {
        "stem": rng.integers(-40, 50, (width, 3, 3, 3)).astype(np.int8),
        "first": rng.integers(-30, 32, (width, width, 3, 3)).astype(np.int8),
        "second": rng.integers(-30, 32, (width, width, 3, 3)).astype(np.int8),
        "skip": rng.integers(-30, 40, (width, width, 1, 1)).astype(np.int8),
    }
    ways = {
        "stem": ("input", "a"),
        "first": ("a", "b"),
        "second": ("b", "c"),
        "skip": ("a", "c"),
    }
    thresholds = {"a": 70, "b": 200, "c": 250}
    weight = rng.integers(-40, 41, (classes, width * plane[0] * plane[1])).astype(np.int8)
    vth = 3000
    network = IntegerNetwork(
        "loihi2",
        steps,
        {"input": Input((3, *plane))},
        (
            *(
                Population(name, shape, _lif(th, shape, dv=dv, reset="subtract"))
                for name, th in thresholds.items()
            ),
            Population("out", (classes,), _lif(vth, (classes,), dv=dv)),
        ),
        (
            *(Connection(name, *ways[name], _same(kernel)) for name, kernel in kernels.items()),
            Connection("linear", "c", "out", Dense(weight)),
        ),
        Readout(classes, 1, "out"),
    )
    floats_of = {
        name: torch.from_numpy(kernel.astype(np.float32)) for name, kernel in kernels.items()
    }
    linear, keep = torch.from_numpy(weight.T.astype(np.float32)), 1 - dv / DECAY_ONE

    def conv(name: str, x: Tensor) -> Tensor:
        return torch.nn.functional.conv2d(x, floats_of[name], padding=floats_of[name].shape[2] // 2)

    def fire(x: Tensor, th: int, subtract: bool = True) -> Tensor:
        current = x.unflatten(0, (steps, -1))
        v = torch.zeros_like(current[0])
        for step in current:
            v.mul_(keep).add_(step)
            torch.gt(v, th, out=step)
            if subtract:
                v.sub_(step, alpha=th)
            else:
                v.masked_fill_(step.bool(), 0)
        return x

    def floats(raster: Tensor) -> Tensor:
        x = raster.transpose(0, 1).to(torch.float32).flatten(0, 1)
        a = fire(conv("stem", x), thresholds["a"])
        b = fire(conv("first", a), thresholds["b"])
        c = fire(conv("second", b).add_(conv("skip", a)), thresholds["c"])
        return fire(c.flatten(1) @ linear, vth, False).unflatten(0, (steps, -1)).sum(0)

    spikes = rng.random((samples, steps, 3, *plane)) < 0.2
    return Case(network, floats, spikes.astype(np.uint8))


def _same(kernel: NDArray[np.int8]) -> Conv:
    """A convolution that keeps the plane."""
    size = kernel.shape[2] // 2
    return Conv(kernel, (1, 1), (size, size), (1, 1), 1)


def _speech(
    seed: int,
    vth: int,
    fields: dict[str, Any],
    floats: Callable[[Tensor, Tensor | None], Tensor],
    samples: int,
) -> Case:
    """700 channels, 256 neurons with ``fields``, and votes.

    Those with a second current get weights below zero on its port. ``floats`` takes the sums [T, N, neurons]
    of both currents to spikes.
    """
    rng = np.random.default_rng(seed)
    inputs, hidden, classes, steps, dv, last_vth = 700, 256, 20, 100, 600, 250
    up, down = rng.integers(0, 41, (hidden, inputs)), rng.integers(-36, 1, (hidden, inputs))
    up, down = (w.astype(np.int8) for w in (up, down))
    two = "du2" in fields
    if not two:
        up = (up + down).astype(np.int8)
    ways = [Connection("up", "input", "hidden", Dense(up))]
    if two:
        ways.append(Connection("down", "input", "hidden", Dense(down), port=1))
    last = rng.integers(-40, 44, (classes, hidden)).astype(np.int8)
    network = IntegerNetwork(
        "loihi2",
        steps,
        {"input": Input((inputs,))},
        (
            Population("hidden", (hidden,), _lif(vth, (hidden,), dv=dv, **fields)),
            Population("out", (classes,), _lif(last_vth, (classes,), dv=dv)),
        ),
        (*ways, Connection("last", "hidden", "out", Dense(last))),
        Readout(classes, 1, "out"),
    )
    first, other, end = (torch.from_numpy(w.T.astype(np.float32)) for w in (up, down, last))
    keep = 1 - dv / DECAY_ONE

    def forward(raster: Tensor) -> Tensor:
        x = raster.transpose(0, 1).to(torch.float32).flatten(0, 1)
        sums = (x @ first).unflatten(0, (steps, -1))
        below = (x @ other).unflatten(0, (steps, -1)) if two else None
        y = (floats(sums, below).flatten(0, 1) @ end).unflatten(0, (steps, -1))
        v, votes = torch.zeros_like(y[0]), torch.zeros_like(y[0])
        for step in y:
            v.mul_(keep).add_(step)
            fires = v > last_vth
            votes += fires
            v.masked_fill_(fires, 0)
        return votes

    spikes = rng.random((samples, steps, inputs)) < 0.03
    return Case(network, forward, spikes.astype(np.uint8))


def dale(samples: int = 256) -> Case:
    """A current from weights above zero and one from those below, with decays of their own."""
    du, du2, vth, keep = 700, 760, 1500, 1 - 600 / DECAY_ONE

    def floats(above: Tensor, below: Tensor | None) -> Tensor:
        assert below is not None
        i = j = v = torch.zeros_like(above[0])
        for step, other in zip(above, below, strict=True):
            i = i * ((FORGETS - du) / DECAY_ONE) + step
            j = j * ((FORGETS - du2) / DECAY_ONE) + other
            v = v * keep + i + j
            torch.gt(v, vth, out=step)
            v = v.masked_fill(step.bool(), 0)
        return above

    return _speech(3, vth, {"du": du, "du2": du2}, floats, samples)


def adaptive(samples: int = 256) -> Case:
    """Thresholds that rise with every spike and fall again."""
    dq, adapt, vth, keep = 80, 60, 250, 1 - 600 / DECAY_ONE

    def floats(above: Tensor, _below: Tensor | None) -> Tensor:
        v = q = torch.zeros_like(above[0])
        for step in above:
            v = v * keep + step
            torch.gt(v, vth + q, out=step)
            v = v.masked_fill(step.bool(), 0)
            q = q * (1 - dq / DECAY_ONE) + adapt * step
        return above

    return _speech(6, vth, {"dq": dq, "adapt": adapt * (1 << FRACTION_BITS)}, floats, samples)


def once(samples: int = 256) -> Case:
    """Neurons that spike once."""
    vth, keep = 250, 1 - 600 / DECAY_ONE

    def floats(above: Tensor, _below: Tensor | None) -> Tensor:
        v = torch.zeros_like(above[0])
        rests = torch.zeros_like(v, dtype=torch.bool)
        for step in above:
            v = torch.where(rests, v, v * keep + step)
            fires = (v > vth) & ~rests
            v = v.masked_fill(fires, 0)
            rests |= fires
            step.copy_(fires)
        return above

    return _speech(5, vth, {"hold": ONCE}, floats, samples)


CASES: dict[str, Callable[[], Case]] = {
    "stork": stork,
    "tebn": tebn,
    "residual": residual,
    "dale": dale,
    "adaptive": adaptive,
    "once": once,
}
