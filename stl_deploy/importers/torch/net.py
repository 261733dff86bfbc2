"""Importer of PyTorch networks with snnTorch neurons: modules and forward to a lowered float graph.

The network runs once on a sample and is recorded (``torch_trace.py``); a forward with a loop over time
must do the same at every step. The record becomes a NIR graph, which ``nir_graph.py`` lowers.

snnTorch fires where mem > threshold and resets one step late unless told otherwise. With reset "zero"
a Leaky forgets what it held before the next input arrives, which is a reset in the same step. By
subtraction it takes the threshold, not decayed, from the next step: beta*mem + I - theta. A chip
takes it at once, beta*(mem - theta) + I, so a connection of each neuron to itself of -(1 - beta)*theta
makes up the difference exactly; without a reset, one of beta*theta gives back all that was taken.
"""

from __future__ import annotations

import importlib
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nir
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stl_deploy.errors import InputError, LoweringError, Problem, UncheckedWarning
from stl_deploy.importers.nir import graph as nir_graph
from stl_deploy.importers.torch import check as torch_check
from stl_deploy.importers.torch.trace import MADE_HERE, Call, Trace, Value, record
from stl_deploy.ir import nir_graph as G
from stl_deploy.ir.notes import Diagnostic
from stl_deploy.ir.synapses import Shape

if TYPE_CHECKING:
    from stl_deploy.importers.given import Given

Array = NDArray[Any]
HOW = "pip install 'stl-deploy[snntorch]'"
STEPS = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.AvgPool2d,
    nn.MaxPool2d,
    nn.Flatten,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.Identity,
)
NEURONS = ("Leaky", "Synaptic", "RLeaky", "RSynaptic")
RESETS = ("subtract", "zero", "none")  # by snnTorch's reset_mechanism_val
AXES = "give it as forward takes it: [batch, ...], or with time where it loops over x[t] or x[:, t]"
SAME_STEP = "make the neuron with reset_delay=False, and train with that"


def from_net(net: nn.Module, sample: Tensor, options: nir_graph.Options) -> nir.NIRGraph:
    """The lowered float graph of ``net``. Warns (UncheckedWarning) of layers that could hardly be checked.

    Args:
        net: any module whose neurons are snnTorch's; its parameters are read, and left as they are.
        sample: an input of ``net``, [batch, ...], or with time before or behind the batch where
            ``forward`` takes it apart by x[t] or x[:, t]. Its values are one of the inputs of the check.
        options: timesteps default to the steps of the loop in ``forward``.

    Raises InputError and LoweringError naming everything that is wrong.
    """
    graph, notes = lowered(net, sample, options)
    for note in notes:
        text = f"{note.where}: {note.what} -> {note.remedy}"
        warnings.warn(text, UncheckedWarning, stacklevel=3)
    return graph


def lowered(
    net: nn.Module, sample: Tensor, options: nir_graph.Options
) -> tuple[nir.NIRGraph, tuple[Diagnostic, ...]]:
    """See ``from_net``; and of which layers the check of the graph says little."""
    nir_graph.check(options)
    is_tensor = isinstance(sample, Tensor)
    if not is_tensor or sample.ndim < 2:
        raise InputError(
            Problem(
                "sample",
                "is not a tensor"
                + (f" [batch, ...]: its shape is {tuple(sample.shape)}" if is_tensor else ""),
                AXES,
            )
        )
    neurons = _neurons_of(net)
    _reset(neurons)
    try:
        trace = record(net, sample, _is_neuron, lambda m: type(m) in STEPS)
    except (Exception, SystemExit) as error:  # whatever the user's own code raises
        raise InputError(
            Problem(
                type(net).__name__,
                f"cannot run on a sample of shape {tuple(sample.shape)}: {type(error).__name__}: "
                f"{str(error).splitlines()[0] if str(error) else ''}",
                AXES,
            )
        ) from None
    finally:
        _reset(neurons)
    problems = list(trace.problems)
    if not problems and not trace.calls:
        problems.append(Problem(type(net).__name__, "has no snnTorch neurons that spike"))
    if problems:
        raise LoweringError(problems)
    graph = _Builder(trace, sample).graph(options)
    notes = torch_check.check(
        net, sample, trace, graph, options.levels, lambda m: _reset(_neurons_of(m))
    )
    return graph, (*_one_step(trace, options), *notes)


def _one_step(trace: Trace, options: nir_graph.Options) -> tuple[Diagnostic, ...]:
    """A note where a loop over time ran once, as it does where batch and time are mixed up."""
    reads = {at for calls in trace.calls.values() for c in calls for at in _steps_read(c.given)}
    if options.timesteps is not None or reads != {0}:
        return ()
    what = (
        "has one step on the axis that forward takes apart as time, so that nothing says how many"
    )
    remedy = f"{AXES}; or say the steps (timesteps=, --timesteps)"
    return (Diagnostic("sample", f"{what} ({nir_graph.DEFAULT_STEPS} are assumed)", remedy),)


def _is_neuron(module: nn.Module) -> bool:
    """Whether it is one of snnTorch's neurons, told by the classes' names and module."""
    return any(
        cls.__name__ == "SpikingNeuron" and cls.__module__.startswith("snntorch.")
        for cls in type(module).__mro__
    )


def _neurons_of(net: nn.Module) -> dict[str, nn.Module]:
    return {name: m for name, m in net.named_modules() if _is_neuron(m)}


def _reset(neurons: dict[str, nn.Module]) -> None:
    for module in neurons.values():
        if callable(getattr(module, "reset_mem", None)):
            module.reset_mem()  # type: ignore[operator]


class _Builder:
    """The NIR graph of a record."""

    def __init__(self, trace: Trace, sample: Tensor) -> None:
        self.trace = trace
        self.sample = sample
        self.nodes: dict[str, nir.ir.NIRNode] = {}
        self.edges: list[tuple[str, str]] = []
        self.made: dict[int, str] = {}
        self.problems: list[Problem] = []
        self.input_shapes: set[Shape] = set()
        self.steps = max(len(calls) for calls in trace.calls.values())

    def graph(self, options: nir_graph.Options) -> nir.NIRGraph:
        """The lowered graph. Raises LoweringError naming everything that is wrong."""
        for name, calls in self.trace.calls.items():
            self._check_calls(name, calls)
        out = self._output()
        if any(len(call.given.shape) < 2 for calls in self.trace.calls.values() for call in calls):
            shape = tuple(self.sample.shape)
            what = f"has the shape {shape}, which leaves nothing beside batch and time"
            self.problems.append(Problem("sample", what, AXES))
        self._done()
        self.nodes["input"] = nir.Input(input_type={"input": np.array([1])})
        for name, calls in self.trace.calls.items():
            self._neuron(name, calls[-1])
        if len(self.input_shapes) > 1:
            listed = ", ".join(map(str, sorted(self.input_shapes)))
            self.problems.append(Problem("input", f"is used in several shapes: {listed}"))
        self._done()
        shape = next(iter(self.input_shapes), ())
        self.nodes["input"] = nir.Input(input_type={"input": np.array(shape)})
        size = self.trace.calls[out][-1].given.shape[1:]
        self.nodes["output"] = nir.Output(output_type={"output": np.array(size)})
        self.edges.append((f"{out}{self._scaled.get(out, '')}", "output"))
        graph = nir.NIRGraph(nodes=self.nodes, edges=self.edges, type_check=False)
        steps = options.timesteps or (self.steps if self.steps > 1 else None)
        return nir_graph.to_float(graph, replace(options, timesteps=steps))

    def _done(self) -> None:
        if self.problems:
            raise LoweringError(self.problems)

    # What a forward does at each step

    def _check_calls(self, name: str, calls: list[Call]) -> None:
        """Every step must be like the others, and states be those of the step before."""
        if len(calls) != self.steps:
            self.problems.append(
                Problem(name, f"runs {len(calls)} times where others run {self.steps} times")
            )
            return
        forms = {_form(call.given, t) for t, call in enumerate(calls)}
        if len(forms) > 1:
            self.problems.append(
                Problem(name, "its input is not computed in the same way at every time step")
            )
        for t, call in enumerate(calls):
            others = {at for at in _steps_read(call.given) if at != t}
            if others:
                self.problems.append(
                    Problem(
                        name,
                        f"at step {t} it reads step {min(others)} of the input",
                        "let step t of the loop read step t of the input, from step 0 on",
                    )
                )
                break
        places = _places(self.trace.modules[name])
        for t, call in enumerate(calls):
            for at, state in zip(places, call.states, strict=True):
                own = state is not None and (state.kind, state.name) == ("neuron", name)
                continued = own and state is not None and (state.at, state.call) == (at, t - 1)
                if not continued and not (t == 0 and state is None):
                    self.problems.append(
                        Problem(
                            name,
                            f"at step {t} its states are not those that it left at the step before",
                            "hand on what the neuron returns, and reset it only before the first step",
                        )
                    )
                    return

    def _output(self) -> str:
        """The neurons whose spikes are returned, those furthest from the input."""
        feeding = {
            name for calls in self.trace.calls.values() for name in _sources(calls[-1].given)
        }
        found = []
        loose: dict[str, list[int]] = {}
        complete: set[str] = set()
        for value in self.trace.returned:
            parts = value.args if value is not None and value.kind == "record" else (value,)
            if all(p is not None and p.kind == "neuron" and p.at == 0 for p in parts):
                names = {p.name for p in parts if p is not None}
                found += sorted(names - feeding) if len(names) == 1 else []
                calls = [p.call for p in parts if p is not None]
                if calls == list(range(self.steps)):
                    complete |= names
                elif value is not None and value.kind != "record":
                    loose.setdefault(parts[0].name, []).extend(calls)  # type: ignore[union-attr]
        if len(set(found)) != 1:
            self.problems.append(
                Problem(
                    "forward",
                    "does not return the spikes of its last neurons, which a chip's readout counts "
                    f"(found: {', '.join(sorted(set(found))) or 'none'})",
                    "let forward return the spikes of the last layer, or torch.stack of them",
                )
            )
            return ""
        name = found[0]
        if name not in complete and loose.get(name) != list(range(self.steps)):
            self.problems.append(
                Problem(
                    "forward",
                    f"does not return the spikes of {name} at all {self.steps} steps in order, all of "
                    "which a chip's readout counts",
                    "return torch.stack of the spikes of every step, or its sum or mean over time",
                )
            )
        return name

    # Nodes

    @property
    def _scaled(self) -> dict[str, str]:
        return {name: ".graded" for name in self.trace.calls if f"{name}.graded" in self.nodes}

    def _node(self, value: Value) -> str:
        """The name of the node whose output ``value`` is; made where there is none yet."""
        if value.kind == "neuron":
            if value.at != 0:
                self.problems.append(
                    Problem(
                        value.name,
                        "its membrane potential or current goes to the next layer; only spikes can",
                        "connect the spikes",
                    )
                )
            return f"{value.name}{self._scaled_name(value.name)}"
        if value.kind == "input":
            self.input_shapes.add(value.shape[1:] if self._batch_first(value) else value.shape)
            return "input"
        if id(value) in self.made:
            return self.made[id(value)]
        name = value.name
        while name in self.nodes or name in self.trace.calls:
            name += "_again"
        self.made[id(value)] = name
        sources = [self._node(part) for part in value.args]
        try:
            node = _op(value) if value.kind == "op" else _module(value)
        except ValueError as error:
            self.problems.append(Problem(value.name, str(error)))
            node = G.Dropout((), ())
        self.nodes[name] = node
        for i, source in enumerate(sources):
            if source in sources[:i]:  # added to itself: an edge counts once
                again = f"{name}.again{i}"
                self.nodes[again] = G.Dropout((), ())
                self.edges += [(source, again), (again, name)]
            else:
                self.edges.append((source, name))
        return name

    def _batch_first(self, value: Value) -> bool:
        return len(value.shape) > 1

    def _scaled_name(self, name: str) -> str:
        return ".graded" if _factor(self.trace.modules[name]) not in (1, None) else ""

    def _neuron(self, name: str, call: Call) -> None:
        """Nodes and edges of one layer of neurons."""
        module = self.trace.modules[name]
        shape = call.given.shape[1:]
        source = self._node(call.given)
        self.edges.append((source, name))
        try:
            node, own = neuron(module, shape)
        except ValueError as error:
            self.problems += [Problem(name, text) for text in str(error).splitlines()]
            node, own = G.Dropout((), ()), None
        self.nodes[name] = node
        if own is not None:
            self._beside(name, f"{name}.reset", nir.Scale(scale=own))
        if type(module).__name__ in ("RLeaky", "RSynaptic"):
            try:
                self._beside(name, f"{name}.recurrent", _recurrent(module, shape))
            except ValueError as error:
                self.problems.append(Problem(f"{name}.recurrent", str(error)))
        if self._scaled_name(name):
            factor = _factor(module)
            self.nodes[f"{name}.graded"] = nir.Scale(scale=np.full(shape, factor))
            self.edges.append((name, f"{name}.graded"))

    def _beside(self, neurons: str, name: str, node: nir.ir.NIRNode) -> None:
        self.nodes[name] = node
        self.edges += [(neurons, name), (name, neurons)]


def _form(value: Value, t: int) -> Any:
    """How a value is computed, with steps counted from step ``t``."""
    if value.kind == "neuron":
        return "neuron", value.name, value.at, value.call - t
    if value.kind == "input":
        return "input", None if value.at is None else value.at - t, value.call, value.shape
    what = value.name if value.kind == "module" and value.at != MADE_HERE else ""
    fact = value.facts if not isinstance(value.facts, nn.Module) else repr(value.facts)
    return value.kind, what, fact, *(_form(part, t) for part in value.args)


def _steps_read(value: Value) -> set[int]:
    """The time steps of the input that a value is computed from."""
    if value.kind == "input":
        return set() if value.at is None else {value.at}
    return {at for part in value.args for at in _steps_read(part)}


def _sources(value: Value) -> set[str]:
    if value.kind == "neuron":
        return {value.name}
    return {name for part in value.args for name in _sources(part)}


def _factor(module: nn.Module) -> float | None:
    """graded_spikes_factor, None for one that is no single number."""
    factor = torch.as_tensor(getattr(module, "graded_spikes_factor", 1.0)).detach()
    return float(factor) if factor.numel() == 1 else None


def _places(module: nn.Module) -> list[int]:
    """Of each state of a neuron, which of its outputs it is; the spikes come first."""
    keys = [key for key in ("spk", "syn", "mem") if hasattr(module, key)]
    results = ["spk", *(key for key in keys if key != "spk")]
    return [results.index(key) for key in keys]


def _op(value: Value) -> nir.ir.NIRNode:
    kind, *facts = value.facts
    if kind == "scale":
        return nir.Scale(scale=np.full(value.shape[1:], facts[0]))
    if kind == "flatten":
        return G.flatten(value.args[0].shape[1:])
    return G.Dropout((), ())  # several in-edges add up


def _module(value: Value) -> nir.ir.NIRNode:
    """The node of a module of torch.nn. Raises ValueError for settings that are not known here."""
    module, before, after = value.facts, value.args[0].shape[1:], value.shape[1:]
    match module:
        case nn.Linear():
            if len(before) != 1:
                raise ValueError(_axes(before, "flatten it first"))
            weight = _array(module.weight)
            if module.bias is None:
                return nir.Linear(weight=weight)
            return nir.Affine(weight=weight, bias=_array(module.bias))
        case nn.Conv1d() | nn.Conv2d():
            if len(before) != (2 if isinstance(module, nn.Conv1d) else 3):
                raise ValueError(_axes(before, "reshape it before the network"))
            return _conv(module)
        case nn.BatchNorm1d() | nn.BatchNorm2d():
            if module.running_mean is None or module.running_var is None:
                raise ValueError("BatchNorm without running statistics differs from input to input")
            ones, zeros = np.ones(module.num_features), np.zeros(module.num_features)
            gamma = ones if module.weight is None else _array(module.weight)
            beta = zeros if module.bias is None else _array(module.bias)
            statistics = _array(module.running_mean), _array(module.running_var)
            return G.BatchNorm(before, after, gamma, beta, *statistics, module.eps)
        case nn.AvgPool2d():
            padding = G.pair(module.padding)
            if module.ceil_mode or module.divisor_override is not None:
                raise ValueError("ceil_mode or divisor_override of a pool are not supported")
            if padding != (0, 0) and not module.count_include_pad:
                raise ValueError("a padded pool with count_include_pad=False is not supported")
            stride = module.kernel_size if module.stride is None else module.stride
            sizes = (np.array(G.pair(v)) for v in (module.kernel_size, stride, padding))
            return nir.AvgPool2d(*sizes)
        case nn.MaxPool2d():
            kernel = G.pair(module.kernel_size)
            stride = kernel if module.stride is None else G.pair(module.stride)
            plain = G.pair(module.padding) == (0, 0) and G.pair(module.dilation) == (1, 1)
            tiles = all(n % k == 0 for n, k in zip(before[1:], kernel, strict=True))
            if stride != kernel or not plain or not tiles:
                raise ValueError(
                    f"max pooling of windows {kernel} that do not tile {before}; they must"
                )
            return G.MaxPool2d(before, after, kernel)
        case nn.Flatten():
            if after != (math.prod(before),):
                raise ValueError(f"flattens {before} to {after}; only a whole sample can be")
            return G.flatten(before)
    return G.Dropout((), ())


def _axes(before: Shape, remedy: str) -> str:
    text = "reads an input of shape"
    return (
        f"{text} {before}, batch (and time) left out; {remedy}, or is that an axis of the sample?"
    )


def _conv(module: nn.Conv1d | nn.Conv2d) -> nir.ir.NIRNode:
    if module.padding_mode != "zeros":
        raise ValueError(f"padding_mode {module.padding_mode!r}; only zeros can be padded")
    weight = _array(module.weight)
    bias = np.zeros(len(weight), weight.dtype) if module.bias is None else _array(module.bias)
    flat = isinstance(module, nn.Conv1d)
    padding: Any = module.padding
    if not isinstance(padding, str):
        padding = int(padding[0]) if flat else tuple(map(int, padding))
    stride, dilation = module.stride, module.dilation
    return (nir.Conv1d if flat else nir.Conv2d)(
        input_shape=None,
        weight=weight,
        stride=int(stride[0]) if flat else tuple(map(int, stride)),
        padding=padding,
        dilation=int(dilation[0]) if flat else tuple(map(int, dilation)),
        groups=module.groups,
        bias=bias,
    )


def neuron(module: Any, shape: Shape) -> tuple[G.Neurons, Array | None]:
    """A snnTorch layer as a node, and what each neuron adds to itself after a spike, None for nothing.

    Raises ValueError with everything that cannot be lowered exactly, one a line.
    """
    kind = type(module).__name__
    if kind not in NEURONS:
        raise ValueError(f"a {kind} of snnTorch is not supported; {', '.join(NEURONS)} are")
    theta, beta = _full(module.threshold, shape), np.clip(_full(module.beta, shape), 0, 1)
    current = "Synaptic" in kind
    alpha = np.clip(_full(module.alpha, shape), 0, 1) if current else np.zeros(shape)
    reset = RESETS[int(module.reset_mechanism_val)]
    wrong = _strange(module, reset, theta, alpha, beta, current)
    own: Array | None = None
    convolves = isinstance(getattr(module, "recurrent", None), nn.Conv2d)
    if reset != "zero" and convolves:
        wrong.append(
            f"reset_mechanism={reset!r} of a {kind} with conv2d_channels is not supported: what makes "
            "up for its reset is no convolution; use reset_mechanism='zero' with reset_delay=False"
        )
    if reset == "subtract":
        if not module.reset_delay:
            wrong.append(
                "reset by subtraction with reset_delay=False: snnTorch then fires by another rule "
                "while a neuron is still above its threshold after a reset; train with the default, "
                "reset_delay=True, which is exact"
            )
        if (theta < 0).any():
            wrong.append(
                "thresholds below 0 with a reset by subtraction: snnTorch resets at step 0"
            )
        own = -(1 - beta) * theta
    elif reset == "none":
        own = beta * theta
    elif module.reset_delay and kind != "Leaky":
        wrong.append(
            f"a {kind} with reset_mechanism='zero' ignores the input of the step after a spike; "
            f"{SAME_STEP}"
        )
    elif not module.reset_delay and (theta < 0).any():
        wrong.append("thresholds below 0 with reset_delay=False, where snnTorch resets twice")
    if own is not None and not own.any():
        own = None
    if own is not None and current and (alpha != 0).any():
        wrong.append(
            f"reset_mechanism={reset!r} of neurons with a current is not a chip's reset, and what "
            "would make up for it would pass through the current; use reset_mechanism='zero' with "
            "reset_delay=False"
        )
    if wrong:
        raise ValueError("\n".join(wrong))
    node: G.Neurons
    if current:
        (tau_mem, r), (tau_syn, w_in) = (G.euler(1 - x, np.ones(shape)) for x in (beta, alpha))
        node = nir.CubaLIF(
            tau_syn=tau_syn,
            tau_mem=tau_mem,
            r=r,
            v_leak=np.zeros(shape),
            v_reset=np.zeros(shape),
            v_threshold=theta,
            w_in=w_in,
        )
    elif (beta == 1).all():
        node = G.integrate_and_fire(theta)
    else:
        tau, r = G.euler(1 - beta, np.ones(shape))
        node = G.lif(theta, tau=tau, r=r)
    if reset != "zero":
        node.metadata["reset"] = "subtract"
    return node, own


def _strange(
    module: Any, reset: str, theta: Array, alpha: Array, beta: Array, current: bool
) -> list[str]:
    """Settings of a neuron that no chip has."""
    wrong = []
    for key in ("inhibition", "state_quant"):
        if getattr(module, key, False):
            wrong.append(f"{key} is set, which no chip has")
    size = torch.logspace(-6, 3, 400)
    probe = torch.cat([-size, torch.zeros(1), size])
    fired = module.spike_grad(probe).detach().double()
    for x, y in zip(probe.tolist(), fired.tolist(), strict=True):
        if y != (x > 0):
            wrong.append(f"its spike function gives {y:.6g} for {x:.6g}, not spikes above 0")
            break
    made = {"_base_sub": "subtract", "_base_zero": "zero", "_base_int": "none"}
    used = made.get(getattr(module.state_function, "__name__", ""))
    if used != reset:
        wrong.append(
            f"is made with reset_mechanism={used!r}, and the state_dict says {reset!r}; make it with that"
        )
    factor = _factor(module)
    if type(module).__name__ in ("RLeaky", "RSynaptic") and factor != 1:
        wrong.append("graded_spikes_factor of neurons that hear themselves is not supported")
    if factor is None:
        wrong.append(
            "graded_spikes_factor is not one number for all neurons; only that is supported"
        )
    elif factor <= 0:
        wrong.append("graded_spikes_factor is not above zero")
    for key, values in (("threshold", theta), ("beta", beta), ("alpha", alpha)):
        if not np.isfinite(values).all():
            wrong.append(f"{key} holds what is no finite number")
    ends = (beta == 1).any() and (current or not (beta == 1).all())
    if ends or (alpha == 1).any():
        wrong.append(
            "a decay of 1 (no leak) of a current, of neurons with one, or of some of the neurons only"
        )
    return wrong


def _recurrent(module: Any, shape: Shape) -> nir.ir.NIRNode:
    """What neurons hear of themselves, as a node."""
    inner = module.recurrent
    if isinstance(inner, nn.Linear):
        weight, bias = _array(inner.weight), inner.bias
        if bias is None:
            return nir.Linear(weight=weight)
        return nir.Affine(weight=weight, bias=_array(bias))
    if isinstance(inner, nn.Conv2d):
        return _conv(inner)
    if hasattr(inner, "V"):
        return nir.Scale(scale=_full(inner.V, shape))
    raise ValueError(f"a {type(inner).__name__} is not supported as recurrent connections")


def _full(value: Any, shape: Shape) -> Array:
    """A parameter as float64 of the population's shape, as PyTorch would broadcast it to a batch."""
    array = torch.as_tensor(value).detach().cpu().double().numpy()
    try:
        full: Array = np.broadcast_to(array, (1, *shape))[0].copy()
    except ValueError:
        raise ValueError(
            f"a parameter of shape {array.shape} does not fit neurons of {shape}"
        ) from None
    return full


def _array(value: Tensor) -> Array:
    return value.detach().cpu().numpy().copy()


def read(path: Path, model_class: str, given: Given) -> tuple[nir.NIRGraph, tuple[Diagnostic, ...]]:
    """The graph of a state_dict in ``path`` and the class (or function) ``package.module:Name``.

    With it come the layers that could hardly be checked. The class is imported, from the current folder
    too, and called without arguments: it is code that the user names, and is run.

    Raises InputError and LoweringError naming everything that is wrong.
    """
    from stl_deploy.formats.checkpoint import read_tensors

    made = made_by(model_class)
    net, sample = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(net, nn.Module):
        raise InputError(
            Problem(f"--model-class {model_class}", f"gives a {type(net).__name__}, no nn.Module")
        )
    if given.sample_shape is not None:
        sample = torch.rand(given.sample_shape, generator=torch.Generator().manual_seed(0))
    if sample is None:
        raise InputError(
            Problem(
                "--sample-shape",
                "is needed: the shape of what forward takes, batch included, and time where it loops over it",
                "give e.g. --sample-shape 1,784, or name a function that returns (net, sample)",
            )
        )
    data = read_tensors(path)
    state = data.get("state_dict", data)
    try:
        with redirect_stdout(sys.stderr):
            net.load_state_dict(state)
    except (Exception, SystemExit) as error:
        lines = [line.strip() for line in str(error).splitlines()[1:]] or [str(error)]
        raise InputError(
            [
                Problem(f"{path}: state_dict", line, f"is it that of {model_class}?")
                for line in lines
            ]
        ) from None
    options = nir_graph.Options(
        timesteps=given.steps, classes=given.classes, levels=given.levels or 1
    )
    try:
        with redirect_stdout(sys.stderr):
            return lowered(net, sample, options)
    except (InputError, LoweringError) as error:
        where = {"sample": "--sample-shape"} if given.sample_shape is not None else {}
        raise type(error)(
            [replace(p, where=where.get(p.where, f"{path}: {p.where}")) for p in error.problems]
        ) from None


@contextmanager
def _current_folder() -> Iterator[None]:
    """Modules of the current folder can be imported, as with ``python -m``."""
    folder = os.getcwd()
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        if folder in sys.path:
            sys.path.remove(folder)


def made_by(model_class: str) -> Any:
    """What ``package.module:Name`` gives, called without arguments. Raises InputError."""
    where = f"--model-class {model_class}"
    # What the user's code prints is no part of a command's result.
    name, _, attribute = model_class.partition(":")
    if not name or not attribute:
        raise InputError(Problem(where, "is not of the form package.module:Class"))
    try:
        with redirect_stdout(sys.stderr), _current_folder():
            maker: Callable[[], Any] = getattr(importlib.import_module(name), attribute)
            return maker()
    except ImportError as error:
        remedy = "is it in the current folder, or on PYTHONPATH?"
        remedy = HOW if (error.name or "").startswith("snntorch") else remedy
        raise InputError(Problem(where, f"cannot be imported: {error}", remedy)) from None
    except (Exception, SystemExit) as error:  # whatever the user's own code raises
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InputError(
            Problem(where, f"fails: {text}", "let it be callable without arguments")
        ) from None
