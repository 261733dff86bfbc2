"""What is wrong with a network, told by the layer and the class that it is."""

from __future__ import annotations

import traceback
from dataclasses import replace

from torch import Tensor, nn

from stl_deploy.errors import Problem
from stl_deploy.importers.torch.classes import computes_as, neuron_kind, parent
from stl_deploy.importers.torch.modules import STEPS
from stl_deploy.importers.torch.spikingjelly_layers import is_layer

AXES = "give it as forward takes it: [batch, ...], or with time where it loops over x[t] or x[:, t]"


def explained(problem: Problem, module: nn.Module | None) -> Problem:
    """``problem``, which names the class of a layer whose name is a number or whose forward is its own."""
    if module is None or not problem.where:
        return problem
    where, kind = problem.where, type(module).__name__
    if where.rpartition(".")[2].isdigit():
        where = f"{where} ({kind})"
    base = parent(module, STEPS)
    if base is not None and not (computes_as(module, STEPS) or is_layer(module)):
        what = f"its class {kind} overrides forward of nn.{base.__name__}; {problem.what}"
        return Problem(where, what, f"use nn.{base.__name__} with its own forward")
    return replace(problem, where=where)


def not_run(net: nn.Module, sample: Tensor, error: BaseException) -> Problem:
    """That ``net`` fails on ``sample``, and in which of its layers."""
    said = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    names = {id(module): name for name, module in net.named_modules() if name}
    frames = [frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__)]
    inner = next((m for m in reversed(frames) if id(m) in names), None)
    if isinstance(inner, nn.Module) and not getattr(inner, "reset_delay", True):
        what = f"snnTorch's {neuron_kind(inner)} fails with reset_delay=False ({said})"
        remedy = (
            "start it from zeros of its own shape, torch.zeros(batch, neurons), not from the states that "
            "reset_mem() returns"
        )
        return Problem(names[id(inner)], what, remedy)
    within = f" in {names[id(inner)]}" if inner is not None else ""
    what = f"cannot run on a sample of shape {tuple(sample.shape)}{within}: {said}"
    return Problem(type(net).__name__, what, AXES)
