"""Small networks with the names of official classes, written from their equations, and how scripts save them.

Every class runs [N, C, H, W] held over its time steps, and notes the spikes of all its neurons by the names
that the importer gives them: ``spikes`` holds [N, T, ...].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

T = 4


class Noting(nn.Module):
    """A network whose neurons note what they send."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: dict[str, list[Tensor]] = {}
        self.near = np.inf

    def note(self, name: str, h: Tensor, theta: Any, sent: Tensor) -> Tensor:
        """Remember what the neurons ``name`` sent, and how near h came to theta."""
        self.sent.setdefault(name, []).append(sent.detach())
        self.near = min(self.near, float((h - theta).abs().min()))
        return sent

    @property
    def spikes(self) -> dict[str, np.ndarray]:
        """[N, T, ...] of what was sent since ``fresh``."""
        return {name: torch.stack(sent, 1).numpy() for name, sent in self.sent.items()}

    def fresh(self) -> None:
        """Forget what was sent."""
        self.sent, self.near = {}, np.inf


class Named(nn.Module):
    """A module within another, whose attribute of that name it is."""

    def __init__(self, inner: str, module: nn.Module) -> None:
        super().__init__()
        self.add_module(inner, module)
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return getattr(self, self.inner)(x)  # type: ignore[no-any-return]


def layer(module: nn.Module) -> Named:
    return Named("layer", module)


def normed(channels: int) -> Named:
    return Named("bn", nn.BatchNorm2d(channels))


class Threshold(nn.Module):
    """LTMD's neurons: u = tau u (1 - s) + I, s = u - tanh(w) > 0."""

    def __init__(self, w: float = 1.0) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(w))
        self.u: Any = 0.0
        self.s: Any = 0.0

    def forward(self, current: Tensor) -> Tensor:
        self.u = 0.25 * self.u * (1 - self.s) + current
        self.s = (self.u - torch.tanh(self.w) > 0).to(current.dtype)
        return self.s


class DenseLayer(nn.Module):
    def __init__(self, channels: int, growth: int, wide: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = normed(channels), layer(nn.Conv2d(channels, wide, 1, bias=False))
        self.spikeA, self.spikeB = Threshold(0.4), Threshold(0.5)
        self.spike1, self.spike2 = self.spikeA, self.spikeB
        self.norm2 = normed(wide)
        self.conv2 = layer(nn.Conv2d(wide, growth, 3, padding=1, bias=False))


class Transition(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.spike, self.norm = Threshold(0.5), normed(channels)
        self.conv = layer(nn.Conv2d(channels, channels // 2, 1, bias=False))


class Ltmd(Noting):
    """LTMD's DenseNet."""

    def __init__(
        self, channels: int = 1, first: int = 6, growth: int = 4, blocks: tuple[int, ...] = (2, 2)
    ) -> None:
        super().__init__()
        features: dict[str, nn.Module] = {
            "conv0": layer(nn.Conv2d(channels, first, 3, padding=1, bias=False)),
            "norm0": normed(first),
            "pool0": layer(nn.Conv2d(first, first, 3, stride=2, padding=1, bias=False)),
        }
        size = first
        for b, layers in enumerate(blocks, 1):
            inside = nn.ModuleDict()
            for i in range(1, layers + 1):
                inside[f"denselayer{i}"] = DenseLayer(size, growth, 2 * growth)
                size += growth
            features[f"denseblock{b}"] = inside
            if b < len(blocks):
                features[f"transition{b}"] = Transition(size)
                size //= 2
        features["norm5"] = normed(size)
        self.features = nn.ModuleDict(features)
        self.blocks = blocks
        self.spike, self.spike1 = Threshold(0.5), Threshold(0.3)
        self.classifier1, self.classifier2 = layer(nn.Linear(size, 20)), layer(nn.Linear(20, 10))
        self.lateralfc1, self.lateralfc2 = (
            layer(nn.Conv1d(1, 1, 5, padding=2, bias=False)) for _ in range(2)
        )
        self.outspike1, self.outspike2 = Threshold(0.1), Threshold(0.05)

    def fire(self, name: str, current: Tensor) -> Tensor:
        neurons = self.get_submodule(name)
        sent = neurons(current)
        assert isinstance(neurons, Threshold)
        return self.note(name, neurons.u, torch.tanh(neurons.w), sent)

    def emit(self, stage: int, x: Tensor) -> Tensor:
        y = getattr(self, f"classifier{stage}")(x)
        y = y + getattr(self, f"lateralfc{stage}")(y[:, None])[:, 0]
        neurons = getattr(self, f"outspike{stage}")
        neurons(y)
        sent = neurons.u * neurons.s
        return self.note(f"outspike{stage}", neurons.u, torch.tanh(neurons.w), sent)

    def step(self, x: Tensor) -> Tensor:
        f = self.features
        c = f["pool0"](f["norm0"](f["conv0"](x)))
        for b, layers in enumerate(self.blocks, 1):
            for i in range(1, layers + 1):
                name = f"features.denseblock{b}.denselayer{i}"
                one = f[f"denseblock{b}"][f"denselayer{i}"]
                new = one.conv1(self.fire(f"{name}.spike1", one.norm1(c)))
                new = one.conv2(self.fire(f"{name}.spike2", one.norm2(new)))
                c = torch.cat([c, new], 1)
            if b < len(self.blocks):
                one = f[f"transition{b}"]
                c = one.conv(one.norm(self.fire(f"features.transition{b}.spike", c)))
                c = nn.functional.avg_pool2d(c, 2)
        y = self.fire("spike", f["norm5"](c)).mean((2, 3))
        return self.emit(2, self.emit(1, self.fire("spike1", y)))

    def forward(self, x: Tensor) -> Tensor:
        for module in self.modules():
            if isinstance(module, Threshold):
                module.u = module.s = 0.0
        return torch.stack([self.step(x) for _ in range(T)]).mean(0)


def drawn(make: Callable[[], Noting], x: Tensor, seed: int = 0, rounds: int = 8) -> Noting:
    """A network whose BatchNorm statistics come from ``x``, so that all of its neurons fire now and then."""
    torch.manual_seed(seed)
    net = make()
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
                module.momentum = None  # the mean over all that it sees
                module.weight.uniform_(0.6, 1.4)
                module.bias.uniform_(-0.2, 0.5)
        net.train()
        for _ in range(rounds):
            net(x)
    net.eval()
    net.fresh()
    return net
