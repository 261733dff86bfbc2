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


class Fire(torch.autograd.Function):
    """1 where x > 0, or where x is 0 too if that is ``reached``; a triangle is its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, reached: bool) -> Tensor:
        ctx.save_for_backward(x)
        return (x >= 0 if reached else x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return grad[0] * (1 - x.abs()).clamp(0), None


def fire(x: Tensor, reached: bool = False) -> Tensor:
    return Fire.apply(x, reached)  # type: ignore[no-any-return, no-untyped-call]


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
        self.s = fire(self.u - torch.tanh(self.w))
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


class Tebn(Noting):
    """TEBN's VGG: numbered layers, a missing number being an average pool."""

    def __init__(self, channels: int = 1, side: int = 28) -> None:
        super().__init__()
        sizes = {0: (channels, 6), 1: (6, 6), 3: (6, 8), 4: (8, 8)}
        self.features = nn.ModuleDict({str(i): WeightedLayer(*size) for i, size in sizes.items()})
        flat = 8 * (side // 4) ** 2
        self.classifier = nn.ModuleDict(
            {"0": Named("module", nn.Linear(flat, 40)), "1": Named("module", nn.Linear(40, 100))}
        )

    def forward(self, x: Tensor) -> Tensor:
        s = x.expand(T, *x.shape)
        before = None
        for name, one in self.features.items():
            if before is not None and int(name) == int(before) + 2:
                s = nn.functional.avg_pool2d(s.flatten(0, 1), 2).unflatten(0, (T, -1))
            assert isinstance(one, WeightedLayer)
            s = one(s, lambda *what, name=name: self.note(f"features.{name}.act", *what))
            before = name
        s = nn.functional.avg_pool2d(s.flatten(0, 1), 2).flatten(1)
        for one in self.classifier.values():
            s = one(s)
        return nn.functional.avg_pool1d(s[:, None], 10)[:, 0].unflatten(0, (T, -1)).mean(0)


class WeightedLayer(nn.Module):
    """v = tau v + p[t] BN(conv(s)), s = v > 1."""

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.fwd = Named("module", nn.Conv2d(channels, size, 3, padding=1))
        self.bn = nn.Module()
        self.bn.bn = nn.BatchNorm3d(size)
        self.bn.p = nn.Parameter(torch.empty(T, 1, 1, 1, 1).uniform_(0.7, 1.5))

    def forward(self, s: Tensor, note: Callable[..., Tensor]) -> Tensor:
        y = self.fwd(s.flatten(0, 1)).unflatten(0, (T, -1))
        y = self.bn.bn(y.permute(1, 2, 0, 3, 4)).permute(2, 0, 1, 3, 4) * self.bn.p
        v: Any = 0.0
        sent = []
        for t in range(T):
            v = 0.25 * v + y[t]
            sent.append(note(v, 1.0, fire(v - 1)))
            v = v * (1 - sent[-1])
        return torch.stack(sent)


class RateBased(Noting):
    """What the four families of rate-based backpropagation share."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.classifier = nn.Sequential(nn.Linear(size, 10))
        self.v: dict[str, Any] = {}

    def lif(self, name: str, current: Tensor) -> Tensor:
        v = self.v.get(name, 0.0)
        h = v - v / 1.25 + current
        s = fire(h - 1, reached=True)
        self.v[name] = h - s
        return self.note(name, h, 1.0, s)

    def features(self, x: Tensor) -> Tensor:
        """The last spikes [N, C, H, W] of a step."""
        raise NotImplementedError

    def read(self, y: Tensor) -> Tensor:
        return self.classifier(y.mean((2, 3)))  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        self.v = {}
        return torch.stack([self.read(self.features(x)) for _ in range(T)]).mean(0)


def conv3(channels: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, size, 3, stride, 1, bias=False)


class RateVgg(RateBased):
    """``feature.N``: two layers, a pool, one layer, a pool, and a classifier of all values."""

    def __init__(self, channels: int = 1, side: int = 28) -> None:
        super().__init__(10 * (side // 4) ** 2)
        self.feature = nn.ModuleDict()
        for number, a, b in ((0, channels, 6), (3, 6, 8), (7, 8, 10)):
            self.feature[str(number)], self.feature[str(number + 1)] = (
                conv3(a, b),
                nn.BatchNorm2d(b),
            )

    def features(self, x: Tensor) -> Tensor:
        f = self.feature
        for number in (0, 3, 7):
            x = self.lif(f"feature.{number + 2}", f[str(number + 1)](f[str(number)](x)))
            x = nn.functional.avg_pool2d(x, 2) if number else x
        return x

    def read(self, y: Tensor) -> Tensor:
        return self.classifier(y.flatten(1))  # type: ignore[no-any-return]


class Block(nn.Module):
    """The modules of a BasicBlock or, ``before`` weights, of a pre-activation block."""

    def __init__(self, channels: int, size: int, stride: int, before: bool = False) -> None:
        super().__init__()
        self.conv1, self.bn1 = (
            conv3(channels, size, stride),
            nn.BatchNorm2d(channels if before else size),
        )
        self.conv2, self.bn2 = conv3(size, size), nn.BatchNorm2d(size)
        self.shortcut = nn.Sequential()
        if stride > 1 or channels != size:
            self.shortcut.append(nn.Conv2d(channels, size, 1, stride, bias=False))
            if not before:
                self.shortcut.append(nn.BatchNorm2d(size))


SIZES = {"layer1.0": (6, 6, 1), "layer1.1": (6, 6, 1), "layer2.0": (6, 8, 2)}


class RateResNet(RateBased):
    def __init__(self, channels: int = 1, before: bool = False) -> None:
        super().__init__(8)
        self.before = before
        self.conv0 = nn.Sequential(conv3(channels, 6), *([] if before else [nn.BatchNorm2d(6)]))
        one = [Block(*SIZES[name], before) for name in SIZES]
        self.layer1, self.layer2 = nn.Sequential(*one[:2]), nn.Sequential(one[2])
        if before:
            self.bn = nn.BatchNorm2d(8)

    def features(self, x: Tensor) -> Tensor:
        x = self.conv0(x)
        x = nn.functional.max_pool2d(x, 2) if self.before else self.lif("conv0.neurons", x)
        for name in SIZES:
            x = (self.pre if self.before else self.basic)(name, x)
        return self.lif("bn.neurons", self.bn(x)) if self.before else x

    def basic(self, name: str, x: Tensor) -> Tensor:
        b: Any = self.get_submodule(name)
        y = self.lif(f"{name}.neurons1", b.bn1(b.conv1(x)))
        return self.lif(f"{name}.neurons2", b.bn2(b.conv2(y)) + b.shortcut(x))

    def pre(self, name: str, x: Tensor) -> Tensor:
        b: Any = self.get_submodule(name)
        s = self.lif(f"{name}.neurons1", b.bn1(x))
        y = b.conv2(self.lif(f"{name}.neurons2", b.bn2(b.conv1(s))))
        return y + (b.shortcut(s) if len(b.shortcut) else x)


class RatePreact(RateResNet):
    def __init__(self) -> None:
        super().__init__(before=True)


class RateSew(RateBased):
    def __init__(self, channels: int = 1) -> None:
        super().__init__(8)
        self.conv0 = nn.Sequential(conv3(channels, 6), nn.BatchNorm2d(6))
        one = [self._block(*SIZES[name]) for name in SIZES]
        self.layer1, self.layer2 = nn.Sequential(*one[:2]), nn.Sequential(one[2])

    @staticmethod
    def _block(channels: int, size: int, stride: int) -> nn.Module:
        block = nn.ModuleDict(
            {
                "convNeuron1": nn.Sequential(conv3(channels, size, stride), nn.BatchNorm2d(size)),
                "convNeuron2": nn.Sequential(conv3(size, size), nn.BatchNorm2d(size)),
            }
        )
        if stride > 1:
            short = nn.Conv2d(channels, size, 1, stride, bias=False)
            block["shortcut"] = nn.Sequential(short, nn.BatchNorm2d(size))
        return block

    def features(self, x: Tensor) -> Tensor:
        x = self.lif("conv0.neurons", self.conv0(x))
        for name in SIZES:
            b: Any = self.get_submodule(name)
            y = x
            for half in ("convNeuron1", "convNeuron2"):
                y = self.lif(f"{name}.{half}.neurons", b[half](y))
            if "shortcut" in b:
                x = self.lif(f"{name}.shortcut.neurons", b["shortcut"](x))
            x = y + x
        return x


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
