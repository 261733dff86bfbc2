"""Importer of PyTorch networks with snnTorch neurons: modules and forward to a lowered float graph.

The network runs once on a sample and is recorded (``trace.py``); a forward with a loop over time must do
the same at every step. The record becomes a NIR graph of the nodes in ``modules.py``, which is lowered.
"""

from __future__ import annotations

import inspect
import warnings
from dataclasses import replace
from typing import Any, NamedTuple

import nir
import numpy as np
from torch import Tensor, nn

from stl_deploy.errors import InputError, LoweringError, Problem, UncheckedWarning
from stl_deploy.importers.nir import graph as nir_graph
from stl_deploy.importers.torch import check as torch_check
from stl_deploy.importers.torch import spikingjelly
from stl_deploy.importers.torch.classes import computes_as, neuron_kind
from stl_deploy.importers.torch.explained import AXES, explained, not_run
from stl_deploy.importers.torch.families import family_of, is_neuron, reset
from stl_deploy.importers.torch.live import Live
from stl_deploy.importers.torch.modules import (
    RECURRENT,
    STEPS,
    WHY,
    Neurons,
    are_spikes,
    factor_of,
    is_not,
    recurrent,
    stateless,
    why_not,
)
from stl_deploy.importers.torch.neurons import READ_AS, neurons
from stl_deploy.importers.torch.readings import Reading, matrix, of_several, read
from stl_deploy.importers.torch.spikingjelly_layers import is_layer
from stl_deploy.importers.torch.trace import Call, Trace, record
from stl_deploy.importers.torch.values import MADE_HERE, Value
from stl_deploy.ir import nir_graph as G
from stl_deploy.ir.notes import Diagnostic
from stl_deploy.ir.synapses import Shape

VARIABLE = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD


def from_net(net: nn.Module, sample: Tensor, options: nir_graph.Options) -> nir.NIRGraph:
    """The lowered float graph of ``net``. Warns (UncheckedWarning) of layers that could hardly be checked.

    Args:
        net: any module whose neurons are snnTorch's; its parameters are read, and left as they are.
        sample: an input of ``net``, [batch, ...], or with time before or behind the batch where
            ``forward`` takes it apart by x[t] or x[:, t]. Its values are one of the inputs of the check.
        options: timesteps default to the steps of the loop in ``forward``.

    Raises InputError and LoweringError naming everything that is wrong.
    """
    found = lowered(net, sample, options)
    for note in found.notes:
        text = f"{note.where}: {note.what} -> {note.remedy}"
        warnings.warn(text, UncheckedWarning, stacklevel=3)
    return found.graph


class Lowered(NamedTuple):
    """The float graph of a network, ``notes`` on what was hardly checked, and the network itself to run."""

    graph: nir.NIRGraph
    notes: tuple[Diagnostic, ...]
    live: Live


def lowered(net: nn.Module, sample: Tensor, options: nir_graph.Options) -> Lowered:
    """See ``from_net``; and of which layers the check of the graph says little."""
    try:
        return _lowered(net, sample, options)
    except (InputError, LoweringError) as error:
        named = dict(net.named_modules()) if isinstance(net, nn.Module) else {}
        raise type(error)([explained(p, named.get(p.where)) for p in error.problems]) from None


def _lowered(net: nn.Module, sample: Tensor, options: nir_graph.Options) -> Lowered:
    """See ``lowered``."""
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
    if wrong := _arguments(net):
        raise LoweringError(wrong)
    if others := [*_all_at_once(net), *spikingjelly.all_at_once(net)]:
        raise LoweringError(others)
    reset(net)
    try:
        trace = record(net, sample, lambda m: computes_as(m, STEPS) or is_layer(m))
    except (Exception, SystemExit) as error:  # whatever the user's own code raises
        raise InputError(not_run(net, sample, error)) from None
    finally:
        reset(net)
    problems = list(trace.problems)
    if not problems and not trace.calls:
        problems.append(
            Problem(type(net).__name__, "has no neurons of snnTorch or SpikingJelly that spike")
        )
    if problems:
        raise LoweringError(problems)
    builder = _Builder(trace, sample)
    # In training, parametrizations such as spectral_norm change with every look at a weight.
    with torch_check.evaluating(net):
        graph = builder.graph(options)
    assert builder.reading is not None
    notes = torch_check.check(net, sample, trace, graph, options, builder.reading, reset)
    live = Live(net, sample, trace, graph, options, reset)
    every = (*_one_step(trace, options), *_mean(builder.reading, options), *notes)
    return Lowered(graph, every, live)


def _arguments(net: nn.Module) -> list[Problem]:
    """Why forward cannot be called with the sample alone."""
    try:
        parameters = inspect.signature(net.forward).parameters.values()
    except (TypeError, ValueError):
        return []  # it says nothing
    named = inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD
    places = [p for p in parameters if p.kind not in named]
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in VARIABLE]
    if places and len(needed) <= 1 and needed in ([], [places[0].name]):
        return []
    takes = f"needs the arguments {', '.join(needed)}" if needed else "takes no argument"
    what = f"{takes}; it is called with the sample alone"
    remedy = "let it take the sample, and give other arguments a default"
    return [Problem("forward", what, remedy)]


def _one_step(trace: Trace, options: nir_graph.Options) -> tuple[Diagnostic, ...]:
    """A note where a loop ran once, as also happens where batch and time are mixed up."""
    if options.timesteps is not None or max(map(len, trace.calls.values())) > 1:
        return ()
    reads = {at for calls in trace.calls.values() for c in calls for at in _steps_read(c.given)}
    if reads != {0}:
        return ()
    what = (
        "has one step on the axis that forward takes apart as time, so that nothing says how many"
    )
    remedy = f"{AXES}; or say the steps (timesteps=, --timesteps)"
    return (Diagnostic("sample", f"{what} ({nir_graph.DEFAULT_STEPS} are assumed)", remedy),)


def _mean(reading: Reading, options: nir_graph.Options) -> tuple[Diagnostic, ...]:
    """A note where forward leaves it open what is made of a membrane over time."""
    if not reading.at or reading.over != "steps" or options.readout is not None:
        return ()
    what = "is returned as it is in every step; its mean over time is read"
    remedy = "let forward return its last step, or its sum, mean or maximum over time"
    return (Diagnostic(reading.name, f"the membrane of {reading.name} {what}", remedy),)


def _all_at_once(net: nn.Module) -> list[Problem]:
    """Neurons of snnTorch that are none of its steps in time."""
    return [
        why_not(name, neuron_kind(m))
        for name, m in net.named_modules()
        if any(cls.__module__.startswith("snntorch.") for cls in type(m).__mro__)
        and neuron_kind(m) in WHY
        and not is_neuron(m)
    ]


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
        self.reading: Reading | None = None
        self.factors: dict[str, list[float]] = {}  # of what arrives at neurons, where steps differ

    def graph(self, options: nir_graph.Options) -> nir.NIRGraph:
        """The lowered graph. Raises LoweringError naming everything that is wrong."""
        for name, calls in self.trace.calls.items():
            self._take_factors(name, calls)
            self._check_calls(name, calls)
        out = self._output()
        self.reading = out
        if self.factors and options.timesteps not in (None, self.steps):
            what = f"multiplies the input of neurons by numbers for {self.steps} steps"
            remedy = f"say {self.steps} steps (timesteps=, --timesteps)"
            self.problems.append(Problem("forward", what, remedy))
        if any(len(call.given.shape) < 2 for calls in self.trace.calls.values() for call in calls):
            shape = tuple(self.sample.shape)
            what = f"has the shape {shape}, which leaves nothing in addition to batch and time"
            self.problems.append(Problem("sample", what, AXES))
        self._done()
        self.nodes["input"] = nir.Input(input_type={"input": np.array([1])})
        for name, calls in self.trace.calls.items():
            self._neuron(name, calls[-1], out is not None and out.at > 0 and out.name == name)
        if len(self.input_shapes) > 1:
            listed = ", ".join(map(str, sorted(self.input_shapes)))
            self.problems.append(Problem("input", f"is used in several shapes: {listed}"))
        self._done()
        shape = next(iter(self.input_shapes), ())
        self.nodes["input"] = nir.Input(input_type={"input": np.array(shape)})
        assert out is not None
        end, size = self._read_out(out)
        self.nodes["output"] = nir.Output(output_type={"output": np.array(size)})
        self.edges.append((end, "output"))
        graph = nir.NIRGraph(nodes=self.nodes, edges=self.edges, type_check=False)
        steps = options.timesteps or (self.steps if self.steps > 1 else None)
        how = replace(options, timesteps=steps, held=self._held(), **self._rule(out, options))
        said = options.steps_from if options.timesteps else "assumed"
        steps_from = "file" if steps == self.steps > 1 else said  # a loop says it
        read_as = tuple(
            READ_AS[family.name](
                name,
                module,
                silent=name == out.name and out.at > 0,
                timesteps=steps or nir_graph.DEFAULT_STEPS,
                steps_from=steps_from,
            )
            for name, module in self.trace.modules.items()
            if name in self.trace.calls and (family := family_of(module))
        )
        return nir_graph.to_float(graph, how, read_as)

    def _read_out(self, out: Reading) -> tuple[str, Shape]:
        """The node before the output, made where there is none, and its shape."""
        source = f"{out.name}{self._scaled.get(out.name, '')}"
        if not out.way:
            return source, out.shape
        weight, offset = matrix(out)
        name = out.way[-1].name
        while name in self.nodes or name in self.trace.calls:
            name += "_again"
        self.nodes[name] = nir.Affine(weight=weight, bias=offset)
        self.edges.append((source, name))
        return name, offset.shape

    def _rule(self, out: Reading, options: nir_graph.Options) -> dict[str, Any]:
        """How the end of the graph is read, as options say it."""
        if options.readout is not None and out.over == "steps":
            return {}
        if out.at:
            return {"readout": out.rule(self.steps)}
        if out.over == "max":
            return {"readout": "max"}
        steps = None if out.every(self.steps) else out.by_step(self.steps)
        return {"readout": "votes", "steps": steps}

    def _held(self) -> bool:
        """Whether every step of a loop over time reads the same frame."""
        read = {at for calls in self.trace.calls.values() for c in calls for at in _read(c.given)}
        return self.steps > 1 and read == {None}

    def _done(self) -> None:
        if self.problems:
            raise LoweringError(self.problems)

    # What a forward does at each step

    def _take_factors(self, name: str, calls: list[Call]) -> None:
        """Set aside by what each step multiplies the input of neurons, where steps differ in it alone."""
        family = family_of(self.trace.modules[name])
        if family is None or not family.amplifies or not all(_is_scaled(c.given) for c in calls):
            return
        factors = [float(call.given.facts[1]) for call in calls]
        if len(set(factors)) > 1:
            self.factors[name] = factors
            calls[:] = [Call(call.given.args[0], call.states) for call in calls]

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
                            "pass the state the neuron returns to its next call; reset it only before "
                            "the first step",
                        )
                    )
                    return

    def _output(self) -> Reading | None:
        """What is returned of the neurons furthest from the input: spikes where there are any."""
        feeding = {
            name for calls in self.trace.calls.values() for name in _sources(calls[-1].given)
        }
        every = [read(value, self.steps) for value in self.trace.returned]
        found = [replace(r, place=i) for i, r in enumerate(every) if r is not None]
        last = [r for r in found if r.name not in feeding]
        spikes = [r for r in last if r.at == 0 and not r.way and r.over != "max"]
        problem = self._incomplete(spikes)
        if spikes and problem is None:
            whole = [r for r in spikes if list(r.factors) == list(range(self.steps))]
            return (whole or spikes)[0]
        others = [r for r in last if (r.at != 0 or r.way) and r.over != "cat"]
        if others:
            wrong = self._not_read(others)
            self.problems += [Problem("forward", *wrong)] if wrong else []
            return others[0]
        if not found and (made := self._added_up()) is not None:
            return made
        self.problems.append(problem or Problem("forward", *self._nothing(last)))
        return None

    def _added_up(self) -> Reading | None:
        """What is returned of the spikes of several layers, read of neurons that are made for it."""
        for i, value in enumerate(self.trace.returned):
            made = of_several(value, self.steps)
            if made is not None:
                name = "readout"
                while name in self.trace.modules:
                    name += "_again"
                self.trace.calls[name] = [Call(part, ()) for part in made[1]]
                self.trace.modules[name] = nn.Identity()
                return replace(made[0], name=name, place=i)
        return None

    def _nothing(self, last: list[Reading]) -> tuple[str, str]:
        names = ", ".join(sorted({r.name for r in last})) or "none"
        return (
            "does not return the spikes of its last neurons, their membrane, or what linear layers make of "
            f"their spikes (found: {names})",
            "let forward return the spikes of the last layer, or torch.stack of them",
        )

    def _incomplete(self, spikes: list[Reading]) -> Problem | None:
        """What is wrong with the spikes that are returned."""
        names = {r.name for r in spikes}
        if len(names) != 1:
            listed = ", ".join(sorted(names)) or "none"
            what = "does not return the spikes of its last neurons, which a chip's readout counts "
            remedy = "let forward return the spikes of the last layer, or torch.stack of them"
            return Problem("forward", f"{what}(found: {listed})", remedy)
        if wrong := self._not_positive(spikes[0], "the spikes"):
            return Problem("forward", *wrong)
        steps = list(range(self.steps))
        # Spikes may also come one step a tensor.
        single = [step for r in spikes if r.over == "sum" for step in r.factors]
        if single == steps or any(list(r.factors) == steps for r in spikes):
            return None
        return Problem(
            "forward",
            f"does not return the spikes of {names.pop()} at all {self.steps} steps in order, all of "
            "which a chip's readout counts",
            "return torch.stack of the spikes of every step, or its sum or mean over time",
        )

    def _not_positive(self, out: Reading, what: str) -> tuple[str, str] | None:
        """That a single number, by which all of ``what`` is multiplied, changes which class is largest."""
        (factor, *others) = set(out.factors.values())
        if factor > 0 or others or (not out.at and self.steps > 1):
            return None
        remedy = "multiply it by a number above 0, or take the smallest outside the network"
        return (
            f"returns {what} {'the spikes of ' if out.way else 'of '}{out.name} times {factor:g}",
            remedy,
        )

    def _not_read(self, others: list[Reading]) -> tuple[str, str] | None:
        """Why what is returned, which is not spikes, is no readout."""
        first = others[0]
        if any(
            (r.name, r.at, len(r.way)) != (first.name, first.at, len(first.way)) for r in others
        ):
            names = ", ".join(sorted({r.name for r in others}))
            return f"returns several things to read out ({names})", "let it return one of them"
        module = self.trace.modules[first.name]
        if first.at and first.at != _places(module)[-1]:
            return f"returns the current of {first.name}", "let it return the membrane or spikes"
        if first.at and first.way:
            what = f"returns what layers make of the membrane of {first.name}"
            return what, "let it return the membrane, or give the layers spikes"
        if wrong := self._not_positive(
            first, "what layers make of" if first.way else "the membrane"
        ):
            return wrong
        if first.at and first.rule(self.steps) is None:
            what = f"weights the membrane of {first.name} by step"
            return what, "return its last step, or its sum, mean or maximum over time"
        if first.over == "max" and not first.every(self.steps):
            return "takes the maximum of some steps only", "take that of all steps"
        if not np.isclose(sum(first.factors.values()), 0):
            return None
        return "weights steps with numbers whose sum is 0", "let their sum be another"

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
            return self._input(value)
        if value.kind == "record":
            self.problems.append(
                Problem(
                    "forward",
                    "stacks or concatenates tensors along batch or time in front of a layer",
                    "give the layer one step at a time; channels are joined by torch.cat(..., dim=1)",
                )
            )
            return "input"
        if id(value) in self.made:
            return self.made[id(value)]
        name = value.name
        while name in self.nodes or name in self.trace.calls:
            name += "_again"
        self.made[id(value)] = name
        sources = [self._node(part) for part in value.args]
        self.problems += self._logic(value)
        try:
            node = stateless(value)
        except ValueError as error:
            self.problems.append(Problem(value.name, str(error)))
            node = G.Dropout((), ())
        self.nodes[name] = node
        starts = np.cumsum([0, *(part.shape[1] for part in value.args)]) if _joins(value) else None
        for i, source in enumerate(sources):
            if starts is not None:
                self._part(name, i, source, value, int(starts[i]))
            elif source in sources[:i]:  # added to itself: an edge counts once
                again = f"{name}.again{i}"
                self.nodes[again] = G.Dropout((), ())
                self.edges += [(source, again), (again, name)]
            else:
                self.edges.append((source, name))
        return name

    def _logic(self, value: Value) -> list[Problem]:
        """What is wrong with a product, which must be of spikes, and with 1 - x outside of one."""
        if value.kind != "op":
            return []
        remedy = "multiply spikes with spikes, or with 1 - spikes"
        if value.facts[0] == "and":
            made = {name for part in value.args for name in _sources(part)}
            scaled = any(self._scaled_name(name) for name in made)
            if scaled or not all(map(are_spikes, value.args)):
                return [Problem("forward", "multiplies tensors that are not spikes", remedy)]
        elif any(map(is_not, value.args)):
            return [Problem("forward", "computes 1 - x outside of a product of spikes", remedy)]
        return []

    def _input(self, value: Value) -> str:
        """The input, whose values must come in the order of the sample's."""
        self.input_shapes.add(value.shape[1:] if len(value.shape) > 1 else value.shape)
        if value.at is None and not all(moved.ordered for moved in value.facts or ()):
            what = "reads the values of a sample in another order than they are given in"
            remedy = "permute them before the network, and give rasters in that order too"
            problem = Problem("input", what, remedy)
            self.problems += [problem] if problem not in self.problems else []
        return "input"

    def _part(self, name: str, i: int, source: str, value: Value, first: int) -> None:
        """A part of a concatenation, from channel ``first`` on."""
        part = f"{name}.part{i}"
        before = value.args[i].shape[1:]
        self.nodes[part] = G.Place(before, value.shape[1:], first)
        self.edges += [(source, part), (part, name)]

    def _scaled_name(self, name: str) -> str:
        return ".graded" if factor_of(self.trace.modules[name]) not in (1, None) else ""

    def _neuron(self, name: str, call: Call, membrane: bool) -> None:
        """Nodes and edges of one layer of neurons; its ``membrane`` may be read out."""
        module = self.trace.modules[name]
        shape = call.given.shape[1:]
        source = self._node(call.given)
        self.edges.append((source, name))
        made = Neurons(G.Dropout((), ()), {})
        try:
            made = neurons(name, module, shape, membrane, self.factors.get(name))
        except LoweringError as error:
            self.problems += error.problems
        except ValueError as error:
            self.problems.append(Problem(name, str(error)))
        self.nodes[name] = made.node
        for delay, weight in made.own.items():
            self._connect_back(
                name, f"{name}.reset{delay if delay > 1 else ''}", nir.Scale(scale=weight), delay
            )
        if neuron_kind(module) in RECURRENT:
            try:
                self._connect_back(name, f"{name}.recurrent", recurrent(module, shape))
            except ValueError as error:
                self.problems.append(Problem(f"{name}.recurrent", str(error)))
        if self._scaled_name(name):
            factor = factor_of(module)
            self.nodes[f"{name}.graded"] = nir.Scale(scale=np.full(shape, factor))
            self.edges.append((name, f"{name}.graded"))

    def _connect_back(self, neurons: str, name: str, node: nir.ir.NIRNode, delay: int = 1) -> None:
        """A way from neurons back to them, on which spikes need ``delay`` steps, one without a Delay."""
        self.nodes[name] = node
        source = neurons
        if delay > 1:
            source = f"{name}.late"
            shape = self.trace.calls[neurons][-1].given.shape[1:]
            self.nodes[source] = nir.Delay(delay=np.full(shape, delay * G.DT))
            self.edges.append((neurons, source))
        self.edges += [(source, name), (name, neurons)]


def _is_scaled(value: Value) -> bool:
    return value.kind == "op" and bool(value.facts[0] == "scale")


def _form(value: Value, t: int) -> Any:
    """How a value is computed, with steps counted from step ``t``."""
    if value.kind == "neuron":
        return "neuron", value.name, value.at, value.call - t
    if value.kind == "input":
        at = None if value.at is None else value.at - t
        return "input", at, value.call, value.shape, value.facts
    what = value.name if value.kind == "module" and value.at != MADE_HERE else ""
    fact = value.facts if not isinstance(value.facts, nn.Module) else repr(value.facts)
    return value.kind, what, fact, *(_form(part, t) for part in value.args)


def _read(value: Value) -> set[int | None]:
    """The time steps of the input that a value is computed from; None for a whole sample."""
    if value.kind == "input":
        return {value.at}
    return {at for part in value.args for at in _read(part)}


def _steps_read(value: Value) -> set[int]:
    return {at for at in _read(value) if at is not None}


def _joins(value: Value) -> bool:
    return value.kind == "op" and bool(value.facts[0] == "cat")


def _sources(value: Value) -> set[str]:
    if value.kind == "neuron":
        return {value.name}
    return {name for part in value.args for name in _sources(part)}


def _places(module: nn.Module) -> list[int]:
    """Of each state of a neuron, which of its outputs it is; the spikes come first."""
    family = family_of(module)
    keys = [] if family is None else family.held(module)
    results = ["spk", *(key for key in keys if key != "spk")]
    return [results.index(key) for key in keys]
