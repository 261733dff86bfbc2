"""Networks of SpikingJelly, in the forms that its users write. ``sj`` holds its modules, by name."""

from __future__ import annotations

import torch
from torch import nn


def node(sj, kind="LIFNode", **fields):
    return getattr(sj.neuron, kind)(surrogate_function=sj.surrogate.ATan(), **fields)


class CSNN(nn.Module):
    """The classifier of its tutorials: convolutions, BatchNorm, neurons, max pooling."""

    def __init__(self, sj, mode, kind="LIFNode", steps=5, pool="MaxPool2d", **fields):
        super().__init__()
        self.steps, self.mode = steps, mode
        layer, pools = sj.layer, getattr(sj.layer, pool)
        self.conv_fc = nn.Sequential(
            layer.Conv2d(2, 4, 3, padding=1, bias=False), layer.BatchNorm2d(4),
            node(sj, kind, **fields), pools(2, 2),
            layer.Conv2d(4, 6, 3, padding=1), layer.BatchNorm2d(6), node(sj, kind, **fields),
            layer.Dropout(0.2), pools(2), layer.Flatten(), layer.Linear(24, 12, bias=False),
            node(sj, kind, **fields), layer.Linear(12, 10), node(sj, kind, **fields), layer.VotingLayer(2),
        )  # fmt: skip
        sj.functional.set_step_mode(self, mode)

    def forward(self, x):
        if self.mode == "s":
            return self.conv_fc(x)
        if x.dim() == 4:
            x = x.unsqueeze(0).repeat(self.steps, 1, 1, 1, 1)
        return self.conv_fc(x).mean(0)


class Containers(nn.Module):
    """Layers of PyTorch in containers, and the functions that containers call."""

    def __init__(self, sj, kind="IFNode"):
        super().__init__()
        self.sj = sj
        self.first = sj.layer.SeqToANNContainer(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4))
        self.lif = node(sj, kind, step_mode="m")
        self.rest = sj.layer.MultiStepContainer(
            nn.Flatten(), nn.Linear(144, 12), node(sj, "LIFNode", v_reset=None, decay_input=False)
        )
        self.last = nn.Linear(12, 5)
        self.out = node(sj, "LIFNode", tau=1.5)

    def forward(self, x):
        functional = self.sj.functional
        x = self.rest(self.lif(self.first(x)))
        x = functional.seq_to_ann_forward(x, self.last)
        return functional.multi_step_forward(x, self.out)


class Block(nn.Module):
    """A block of its SEW-ResNet, and one whose shortcut is a convolution."""

    def __init__(self, sj, mode, cnf="ADD", shortcut=False, final=True):
        super().__init__()
        layer, self.cnf, self.mode = sj.layer, cnf, mode
        self.stem = nn.Sequential(
            layer.Conv2d(2, 4, 3, padding=1), layer.BatchNorm2d(4), node(sj, "IFNode")
        )
        self.conv1 = layer.Conv2d(4, 4, 3, padding=1, bias=False)
        self.bn1, self.sn1 = layer.BatchNorm2d(4), node(sj, "IFNode")
        self.conv2 = layer.Conv2d(4, 4, 3, padding=1, bias=False)
        self.bn2, self.sn2 = layer.BatchNorm2d(4), node(sj, "IFNode")
        self.down = None
        if shortcut:
            self.down = nn.Sequential(
                layer.Conv2d(4, 4, 1, bias=False), layer.BatchNorm2d(4), node(sj, "IFNode")
            )
        self.avgpool = layer.AdaptiveAvgPool2d((1, 1))
        self.fc = layer.Linear(4, 6)
        self.out = node(sj, "LIFNode") if final else None
        sj.functional.set_step_mode(self, mode)

    def forward(self, x):
        x = self.stem(x)
        y = self.sn1(self.bn1(self.conv1(x)))
        y = self.sn2(self.bn2(self.conv2(y)))
        identity = x if self.down is None else self.down(x)
        if self.cnf == "ADD":
            y = y + identity
        elif self.cnf == "AND":
            y = identity * y
        else:
            y = identity * (1.0 - y)
        y = torch.flatten(self.avgpool(y), 2 if self.mode == "m" else 1)
        y = self.fc(y)
        return y if self.out is None else self.out(y)


class Loop(nn.Module):
    """Neurons of one step in a loop over time, behind a part that is computed once."""

    def __init__(self, sj, steps=6):
        super().__init__()
        self.sj, self.steps = sj, steps
        self.static = nn.Sequential(sj.layer.Conv2d(2, 3, 3), sj.layer.BatchNorm2d(3))
        self.body = nn.Sequential(
            node(sj, "ParametricLIFNode"),
            sj.layer.Flatten(),
            sj.layer.Linear(108, 6),
            node(sj, v_reset=-0.2),
        )

    def forward(self, x):
        self.sj.functional.reset_net(self)
        x = self.static(x)
        counts = self.body(x)
        for _ in range(1, self.steps):
            counts = counts + self.body(x)
        return counts / self.steps


def dense(sj, mode, kind, size=12, between=20, **fields):
    """Two layers of neurons of one kind."""
    net = nn.Sequential(
        sj.layer.Linear(size, between), node(sj, kind, **fields), sj.layer.Linear(between, 6),
        node(sj, kind, **fields),
    )  # fmt: skip
    for module in net:
        if hasattr(module, "step_mode"):
            module.step_mode = mode
    return net


class Voltage(nn.Module):
    """The last neurons never fire, and their voltage is returned: at the end, or of all steps."""

    def __init__(self, sj, every=False, **fields):
        super().__init__()
        self.every = every
        self.body = dense(sj, "m", "LIFNode")
        self.fc = nn.Linear(6, 4)
        self.out = node(
            sj, v_threshold=float("inf"), step_mode="m", store_v_seq=every, tau=4.0, **fields
        )

    def forward(self, x):
        self.out(self.fc(self.body(x)))
        return self.out.v_seq.mean(0) if self.every else self.out.v


class Normed(nn.Module):
    """BatchNorm whose output is multiplied by a number of each step, and one of thresholds."""

    def __init__(self, sj, steps=6):
        super().__init__()
        layer = sj.layer
        self.effective = layer.TemporalEffectiveBatchNorm1d(steps, 10)
        self.body = nn.Sequential(
            layer.Linear(12, 10), self.effective, node(sj, "LIFNode", v_reset=None),
            layer.Linear(10, 8), layer.ThresholdDependentBatchNorm1d(1.0, 1.0, 8), node(sj, "IFNode"),
            layer.WSLinear(8, 6), node(sj, "LIFNode"),
        )  # fmt: skip
        sj.functional.set_step_mode(self, "m")
        self.effective.scale.data = torch.linspace(0.5, 2.0, steps)

    def forward(self, x):
        return self.body(x)
