"""Which known class a module computes as: its own, or the one that it inherits all that runs from.

A subclass that only initialises its parameters otherwise, and the classes that parametrizations of PyTorch
make (weight_norm, orthogonal, ...), run the ``forward`` of their parent: in evaluation ``module.weight`` is
the weight. One that overrides what runs computes something else, and is named in the refusal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

RUNS = ("__call__", "forward", "_conv_forward")  # of a module of torch.nn
# What a subclass of a neuron may define without changing what the neuron computes.
QUIET = {"__init__", "__repr__", "extra_repr", "__doc__", "__module__", "__qualname__", "__dict__"}
QUIET |= {"__annotations__", "__weakref__", "__firstlineno__", "__static_attributes__"}
OWN = "snntorch."


def parent(module: nn.Module, known: Sequence[type[nn.Module]]) -> type[nn.Module] | None:
    """The class of ``known`` that a module is or derives from; None where there is none."""
    return next((cls for cls in type(module).__mro__ if cls in known), None)


def computes_as(module: nn.Module, known: Sequence[type[nn.Module]]) -> bool:
    """Whether a module runs what one of the classes ``known`` runs."""
    base: Any = parent(module, known)
    return (
        base is not None
        and "forward" not in vars(module)
        and all(getattr(type(module), name, None) is getattr(base, name, None) for name in RUNS)
    )


def neuron_kind(module: nn.Module) -> str:
    """The name of the class of snnTorch that a neuron is or derives from; of others, their own."""
    found = (cls for cls in type(module).__mro__ if cls.__module__.startswith(OWN))
    return next(found, type(module)).__name__


def overridden(module: nn.Module) -> list[str]:
    """What a subclass of a neuron of snnTorch defines anew of what the neuron runs."""
    names: set[str] = set()
    for cls in type(module).__mro__:
        if cls.__module__.startswith(OWN):
            return sorted(name for name in names - QUIET if hasattr(cls, name))
        names |= vars(cls).keys()
    return []
