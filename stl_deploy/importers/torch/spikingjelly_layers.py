"""Layers of SpikingJelly (``spikingjelly.activation_based.layer``) as the layers of PyTorch that they are.

A layer of step mode "s" takes one step [batch, ...], one of step mode "m" all of them [T, batch, ...], each
on its own. What it computes in a step is the layer of PyTorch that it is made of, with the same tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from stl_deploy.ir.synapses import Shape

LAYERS_OF_SPIKINGJELLY = "spikingjelly.activation_based.layer"
Make = Callable[[Any, Shape], nn.Module]


def _as(cls: type[nn.Module]) -> Make:
    """A module of ``cls`` that shares all that the layer holds."""

    def make(module: nn.Module, _before: Shape) -> nn.Module:
        made = cls.__new__(cls)
        vars(made).update(
            {key: value for key, value in vars(module).items() if key != "_step_mode"}
        )
        return made

    return make


def _identity(_module: nn.Module, _before: Shape) -> nn.Module:
    return nn.Identity()


def _weight_standardized(cls: type[nn.Module]) -> Make:
    """The layer with the weights that it computes from its own."""

    def make(module: Any, before: Shape) -> nn.Module:
        made = _as(cls)(module, before)
        own = {key: value for key, value in module._parameters.items() if key != "gain"}
        with torch.no_grad():
            own["weight"] = nn.Parameter(module.get_weight(), requires_grad=False)
        made._parameters = own
        return made

    return make


def _votes(module: Any, before: Shape) -> nn.Module:
    """The mean of each group of ``voting_size`` neurons."""
    size = module.voting_size
    groups = before[-1] // size
    made = nn.Linear(before[-1], groups, bias=False, dtype=torch.float64)
    with torch.no_grad():
        made.weight.zero_()
        for group in range(groups):
            made.weight[group, group * size : (group + 1) * size] = 1 / size
    return made


LAYERS: dict[str, Make] = {
    "Linear": _as(nn.Linear),
    "Conv1d": _as(nn.Conv1d),
    "Conv2d": _as(nn.Conv2d),
    "BatchNorm1d": _as(nn.BatchNorm1d),
    "BatchNorm2d": _as(nn.BatchNorm2d),
    "ThresholdDependentBatchNorm1d": _as(nn.BatchNorm1d),
    "ThresholdDependentBatchNorm2d": _as(nn.BatchNorm2d),
    "TemporalEffectiveBatchNorm1d": _as(nn.BatchNorm1d),
    "TemporalEffectiveBatchNorm2d": _as(nn.BatchNorm2d),
    "MaxPool2d": _as(nn.MaxPool2d),
    "AvgPool2d": _as(nn.AvgPool2d),
    "AdaptiveAvgPool2d": _as(nn.AdaptiveAvgPool2d),
    "Flatten": _as(nn.Flatten),
    "Dropout": _identity,
    "Dropout2d": _identity,
    "PrintShapeModule": _identity,
    "WSLinear": _weight_standardized(nn.Linear),
    "WSConv2d": _weight_standardized(nn.Conv2d),
    "VotingLayer": _votes,
}


def is_layer(module: nn.Module) -> bool:
    """Whether it is one of these layers, and no subclass."""
    cls = type(module)
    return cls.__module__.startswith(LAYERS_OF_SPIKINGJELLY) and cls.__name__ in LAYERS


def all_steps(module: Any) -> bool:
    """Whether one call is all steps, along axis 0."""
    return is_layer(module) and getattr(module, "step_mode", "s") == "m"


def factors(module: Any) -> list[float] | None:
    """By what a layer multiplies what it gives in each step; None for a layer that does not."""
    if not type(module).__name__.startswith("TemporalEffectiveBatchNorm") or not is_layer(module):
        return None
    return [float(factor) for factor in module.scale.detach().double()]


def plain(module: nn.Module, before: Shape) -> nn.Module:
    """The layer of PyTorch that computes a step, of inputs of the shape ``before`` without batch."""
    return LAYERS[type(module).__name__](module, before) if is_layer(module) else module
