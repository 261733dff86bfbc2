"""Checks a lowered graph against the network itself: both run on a few random inputs and must spike alike.

The record of a forward does not see everything: writes in place, hooks, functions replaced on an instance.
Whatever it misses changes spikes, and what changes spikes is refused here. A tie is no difference: from the
step on where the network's own spikes change in float64, with thresholds moved by a ten-millionth, a sample
does not count.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import nir
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stl_deploy import float_exec
from stl_deploy import graph as G
from stl_deploy.errors import LoweringError, Problem
from stl_deploy.importers.torch_trace import Trace, Value, tensors

Array = NDArray[Any]
RASTERS = (0.3, 0.8)  # how many of the inputs are not 0, one raster each
SAMPLES, STEPS = 4, 8  # samples of a batch that are compared; calls of a forward that is one step
MOVED = 1e-7
REMEDY = (
    "write it with the modules and functions that docs/import-snntorch.md lists, without hooks, writes "
    "into tensors and replaced methods"
)


@dataclass
class _Run:
    """Spikes of every neuron, one array [batch, ...] a call, and what forward gave at each call."""

    spikes: dict[str, list[Array]] = field(default_factory=dict)
    returned: list[list[Array]] = field(default_factory=list)


def check(
    net: nn.Module,
    sample: Tensor,
    trace: Trace,
    graph: nir.NIRGraph,
    levels: int,
    reset: Callable[[nn.Module], None],
) -> None:
    """Raises LoweringError where ``graph`` does not spike as ``net`` does on random inputs.

    Args:
        net: the network, left as it was; trace: its record on ``sample``.
        levels: inputs are whole numbers 0..levels.
        reset: puts the states of a module's neurons to zero.
    """
    loop = max(len(calls) for calls in trace.calls.values())
    whole = next(iter(_inputs(trace)))
    calls = 1 if loop > 1 or whole.at is not None else min(STEPS, G.float_meta(graph).timesteps)
    with torch.random.fork_rng(devices=[]):
        for seed, rate in enumerate(RASTERS):
            draw = torch.Generator().manual_seed(seed)
            given = []
            for _ in range(calls):
                on = torch.rand(sample.shape, generator=draw) < rate
                size = torch.randint(1, levels + 1, sample.shape, generator=draw)
                given.append((on * size).to(sample.dtype).to(sample.device))
            try:
                _compare(net, given, trace, graph, reset, (whole, loop))
            except LoweringError:
                raise
            except (Exception, SystemExit) as error:  # whatever the user's own code raises
                text = f"{type(error).__name__}: {error}".splitlines()[0]
                what = f"cannot be compared with its graph on another input ({text})"
                raise LoweringError(_problem(type(net).__name__, what)) from None


def _inputs(trace: Trace) -> Iterator[Value]:
    def under(value: Value) -> Iterator[Value]:
        if value.kind == "input":
            yield value
        for part in value.args:
            yield from under(part)

    for calls in trace.calls.values():
        for call in calls:
            yield from under(call.given)


def _compare(
    net: nn.Module,
    given: list[Tensor],
    trace: Trace,
    graph: nir.NIRGraph,
    reset: Callable[[nn.Module], None],
    form: tuple[Value, int],
) -> None:
    whole, loop = form
    own = _run(net, given, trace, reset)
    steps = {name: np.stack(calls, axis=1) for name, calls in own.spikes.items()}
    raster = _raster(given, graph, whole, loop)
    raster = raster[:SAMPLES]
    until = np.full(len(raster), raster.shape[1])
    for moved in (-MOVED, MOVED):
        with suppress(Exception):  # a network that runs in float32 alone has no ties that we know
            other = _run(_doubled(net, moved, trace), given, trace, reset)
            for name, spikes in steps.items():
                differs = (spikes != np.stack(other.spikes[name], axis=1))[: len(raster)]
                tied = differs.reshape(*differs.shape[:2], -1).any(axis=2)
                first = np.where(tied.any(axis=1), tied.argmax(axis=1), tied.shape[1])
                until = np.minimum(until, first)
    found = float_exec.run(graph, raster)
    if not until.any():
        until[:] = raster.shape[
            1
        ]  # ties everywhere, as whole numbers have them; then nothing is excused
    counted = np.arange(raster.shape[1]) < until[:, None]
    for name in [n for n in found if n in steps]:
        want = steps[name][: len(raster)]
        if want.shape[:2] != raster.shape[:2]:
            raise LoweringError(_problem(name, f"runs {want.shape[1]} times on another input"))
        got = found[name].reshape(want.shape) * _factor(trace.modules[name])
        wrong = (got != want).reshape(*counted.shape, -1) & counted[:, :, None]
        if wrong.any():
            raise LoweringError(
                _problem(
                    name,
                    f"{int(wrong.sum())} of {wrong.size} spikes are not those of the network itself "
                    "on a random input",
                )
            )
    _check_returned(own, trace, steps)


def _problem(name: str, what: str) -> Problem:
    return Problem(name, f"{what}: forward does something that its record does not explain", REMEDY)


def _factor(module: Any) -> float:
    return float(torch.as_tensor(getattr(module, "graded_spikes_factor", 1.0)).detach())


def _raster(given: list[Tensor], graph: nir.NIRGraph, whole: Value, loop: int) -> Array:
    """What the graph reads, [batch, T, *input shape]."""
    shape = tuple(int(n) for n in np.ravel(graph.nodes["input"].input_type["input"]))
    if whole.at is None:
        # One step a call, or the same input at all steps.
        parts = [x.detach().cpu().double().numpy() for x in given]
        parts = [x.reshape(whole.shape[0], *shape) for x in parts]
        return np.stack(parts * (loop if len(parts) == 1 else 1), axis=1)
    x = given[0].detach().cpu().double().numpy()
    batch = whole.shape[0]
    first = whole.call == 0  # time stands before the batch
    x = x.reshape(-1, batch, *shape).swapaxes(0, 1) if first else x.reshape(batch, -1, *shape)
    return np.ascontiguousarray(x[:, :loop])


def _doubled(net: nn.Module, moved: float, trace: Trace) -> nn.Module:
    """A copy in float64 whose thresholds are moved by that fraction."""
    copied = copy.deepcopy(net).double()
    for name, module in copied.named_modules():
        if name in trace.calls:
            any_module: Any = module
            any_module.threshold.data.mul_(1 + moved)
            own = any_module.spike_grad
            any_module.spike_grad = lambda x, own=own: own(x).to(x.dtype)
    for module in copied.modules():
        if not list(module.children()) or isinstance(getattr(module, "threshold", None), Tensor):
            module.register_forward_pre_hook(_to_double)
    return copied


def _to_double(_module: nn.Module, args: Any) -> Any:
    return tuple(x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for x in args)


@contextmanager
def _evaluating(net: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in net.modules()}
    net.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _run(
    net: nn.Module, given: list[Tensor], trace: Trace, reset: Callable[[nn.Module], None]
) -> _Run:
    """The network's own spikes on ``given``, one tensor a call."""
    run = _Run()

    def watch(name: str) -> Any:
        def after(_module: nn.Module, _args: Any, out: Any) -> None:
            spikes = next(tensors(out)).detach().cpu().double().numpy().copy()
            run.spikes.setdefault(name, []).append(spikes)

        return after

    handles = [
        m.register_forward_hook(watch(name))
        for name, m in net.named_modules()
        if name in trace.calls
    ]
    reset(net)
    try:
        with _evaluating(net):
            for x in given:
                out = net(x.clone())
                run.returned.append([y.detach().cpu().double().numpy() for y in tensors(out)])
    finally:
        for handle in handles:
            handle.remove()
        reset(net)
    return run


def _check_returned(run: _Run, trace: Trace, steps: dict[str, Array]) -> None:
    """What forward returns must be the spikes that the record says."""
    for returned in run.returned[:1]:
        for value, got in zip(trace.returned, returned, strict=False):
            if value is None:
                continue
            parts = value.args if value.kind == "record" else (value,)
            if not parts or any(p.kind != "neuron" or p.at != 0 for p in parts):
                continue
            spikes = np.stack([steps[p.name][:, p.call] for p in parts])
            forms = [spikes, spikes.swapaxes(0, 1), spikes[0], spikes.sum(0), spikes.mean(0)]
            forms.append(spikes.reshape(-1, *spikes.shape[2:]))
            if not any(got.size == f.size and np.allclose(got.ravel(), f.ravel()) for f in forms):
                raise LoweringError(
                    _problem(parts[0].name, "what is returned is not its spikes of all steps")
                )
