"""How classes are scored and what is learned from their scores, in PyTorch.

The rules are those of ``ir/readouts.py``: the class with the highest score here is the one that wins there.
Votes are learned from by their squared error, as the official code does, all others by cross-entropy.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from stl_deploy.ir.readouts import Rule


class Votes(nn.Module):
    """Mean over groups of ``population`` neurons and over time: [batch, time, K*P] to [batch, K]."""

    def __init__(self, population: int) -> None:
        super().__init__()
        self.population = population

    def forward(self, spikes: Tensor) -> Tensor:
        """Rates per class, in [0, 1]."""
        return _mean(spikes.flatten(2).mean(1), self.population)

    def loss(self, rates: Tensor, labels: Tensor) -> Tensor:
        """Squared error of the class rates [batch, K] against one-hot targets."""
        return rate_loss(rates, labels)


class Voltages(nn.Module):
    """What v of the last neurons says of each class, [batch, time, K*P] to [batch, K].

    "last", "mean" and "max" are those of a neuron over the steps; a class has the mean of its neurons. By
    "first" a class has the score of its best neuron (``spiked_first``).
    """

    def __init__(self, rule: Rule, population: int) -> None:
        super().__init__()
        self.rule, self.population = rule, population

    def forward(self, spikes: Tensor, v: Tensor) -> Tensor:
        """Scores of the classes for spikes, and for the v that each step leaves."""
        spikes, v = spikes.flatten(2), v.flatten(2)
        if self.rule == "first":
            best = spiked_first(spikes, v)
            return best.reshape(len(v), v.shape[2] // self.population, self.population).amax(2)
        return _mean(OVER_TIME[self.rule](v), self.population)

    def loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of the scores [batch, K]."""
        return functional.cross_entropy(scores, labels)


def spiked_first(spikes: Tensor, v: Tensor) -> Tensor:
    """A score [batch, neurons] that is the higher, the earlier a neuron spiked; of [batch, time, neurons].

    It counts the steps from the first spike on. A share below 1 that grows with v orders neurons that spiked
    in the same step, by the v that this step left, and those that never did, by that of the last step. The
    gradient moves spikes in time: it reaches all steps of a neuron that never spiked, else those up to its
    first spike.
    """
    silent = torch.cumprod(1 - spikes, dim=1)  # 1 as long as it did not spike
    steps = (1 - silent).sum(1)
    before = torch.cat([torch.ones_like(silent[:, :1]), silent[:, :-1]], dim=1)
    at = ((before - silent) * v).sum(1) + silent[:, -1] * v[:, -1]
    return steps + 0.5 + at.atan() / math.pi


def make(rule: Rule, population: int) -> Votes | Voltages:
    """The readout by ``rule`` of classes of ``population`` neurons."""
    return Votes(population) if rule == "votes" else Voltages(rule, population)


def rate_loss(rates: Tensor, labels: Tensor) -> Tensor:
    """Squared error of the class rates [batch, K] against one-hot targets, as the official code."""
    target = functional.one_hot(labels, rates.shape[1]).to(rates.dtype)
    return functional.mse_loss(rates, target)


def _mean(values: Tensor, population: int) -> Tensor:
    """The means [batch, K] of groups of ``population`` among values [batch, K*P]."""
    if not len(values):  # a share of nothing, which avg_pool1d refuses
        return values.reshape(0, values.shape[1] // population)
    return functional.avg_pool1d(values, population)


# What a voltage readout takes of v [batch, time, neurons].
OVER_TIME: dict[str, Callable[[Tensor], Tensor]] = {
    "last": lambda v: v[:, -1],
    "mean": lambda v: v.mean(1),
    "max": lambda v: v.amax(1),
}
