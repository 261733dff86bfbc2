"""The libraries whose neurons are known, told by the names of classes and of their modules.

Nothing of them is imported: who has such a network has its library.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Family:
    """How the neurons of a library are run.

    Attributes:
        name: of the library.
        is_neuron: whether a module is one of its neurons.
        states: the attributes that hold their states, in the order that forward takes them.
        reset: puts the states of a neuron to those before the first step.
        move: multiplies the threshold of a neuron, of a copy in float64.
        all_steps: whether one call of a neuron is all steps, along axis 0.
        amplifies: whether the node of its neurons takes all that they do from what arrives in a step, so
            that this may be multiplied by a number of the step.
    """

    name: str
    is_neuron: Callable[[nn.Module], bool]
    states: tuple[str, ...]
    reset: Callable[[Any], None]
    move: Callable[[Any, float], None]
    all_steps: Callable[[Any], bool]
    amplifies: bool

    def held(self, module: nn.Module) -> tuple[str, ...]:
        """Those of ``states`` that a neuron has."""
        return tuple(key for key in self.states if hasattr(module, key))


def _is_snntorch(module: nn.Module) -> bool:
    return any(
        cls.__name__ == "SpikingNeuron" and cls.__module__.startswith("snntorch.")
        for cls in type(module).__mro__
    )


def _reset_snntorch(module: Any) -> None:
    if callable(getattr(module, "reset_mem", None)):
        module.reset_mem()


def _move_snntorch(module: Any, factor: float) -> None:
    module.threshold.data.mul_(factor)
    own = module.spike_grad
    module.spike_grad = lambda x, own=own: own(x).to(x.dtype)


NEURONS_OF_SPIKINGJELLY = "spikingjelly.activation_based.neuron"


def _is_spikingjelly(module: nn.Module) -> bool:
    return any(cls.__module__.startswith(NEURONS_OF_SPIKINGJELLY) for cls in type(module).__mro__)


def _reset_spikingjelly(module: Any) -> None:
    if callable(getattr(module, "reset", None)):
        module.reset()


def _move_spikingjelly(module: Any, factor: float) -> None:
    threshold = module.v_threshold
    if isinstance(threshold, Tensor):
        with torch.no_grad():
            threshold.mul_(factor)
    else:
        module.v_threshold = threshold * factor


FAMILIES = (
    Family(
        "snnTorch",
        _is_snntorch,
        ("spk", "syn_exc", "syn_inh", "syn", "mem"),
        _reset_snntorch,
        _move_snntorch,
        lambda module: False,
        False,
    ),
    Family(
        "SpikingJelly",
        _is_spikingjelly,
        ("v",),
        _reset_spikingjelly,
        _move_spikingjelly,
        lambda module: module.step_mode == "m",
        True,
    ),
)


def family_of(module: nn.Module) -> Family | None:
    """The library of a neuron; None for any other module."""
    return next((family for family in FAMILIES if family.is_neuron(module)), None)


def is_neuron(module: nn.Module) -> bool:
    """Whether it is a neuron of a library that is known."""
    return family_of(module) is not None


def neurons_of(net: nn.Module) -> dict[str, nn.Module]:
    """The neurons of a network, by name."""
    return {name: module for name, module in net.named_modules() if is_neuron(module)}


def reset(net: nn.Module) -> None:
    """Put the states of all neurons of a network to those before the first step."""
    for module in neurons_of(net).values():
        family = family_of(module)
        assert family is not None
        family.reset(module)
