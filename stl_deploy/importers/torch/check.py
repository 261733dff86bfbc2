"""Checks a lowered graph against the network itself: both run on a few inputs and must spike alike.

The record of a forward does not see everything: writes in place, hooks, functions replaced on an instance.
Whatever it misses changes spikes, and what changes spikes is refused here. Every layer of the graph is given
the spikes that the network's own layers gave, so that neurons answer for themselves alone.

A tie is no difference: from the step on where a neuron of the network, given the same, spikes otherwise in
float64 with its threshold moved by a ten-millionth, it does not count. What is left must hold spikes and
silence enough of every layer, or the check says that it proves little.
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

from stl_deploy.errors import LoweringError, Problem
from stl_deploy.importers.nir.graph import Options
from stl_deploy.importers.torch.classes import computes_as
from stl_deploy.importers.torch.families import Family, family_of
from stl_deploy.importers.torch.modules import STEPS as LAYERS
from stl_deploy.importers.torch.readings import Reading, given_back
from stl_deploy.importers.torch.trace import Trace
from stl_deploy.importers.torch.values import Value, tensors
from stl_deploy.ir import cut
from stl_deploy.ir import execute as float_exec
from stl_deploy.ir import nir_graph as G
from stl_deploy.ir.floats import decode
from stl_deploy.ir.notes import Diagnostic

Array = NDArray[Any]
# Random inputs: how many are not 0, and how many times the largest level they are. The second row is for
# layers that hardly spike on the first.
FIRST = ((0.3, 1), (0.8, 1))
MORE = ((1.0, 1), (0.1, 1), (0.5, 4), (0.9, 4), (0.5, 16), (0.9, 1 << 6))
LEAST = 0.01  # of the entries of a layer, how many must be seen to spike, and not to
SAMPLES, STEPS = 4, 8  # samples of a batch that are compared; calls of a forward that is one step
MOVED = 1e-7
RELATIVE = 1e-4  # of the largest value that is read out, by how much float32 may differ
STRANGE = 0.01  # of the spikes of a layer, how many float32's rounding alone may change
REMEDY = (
    "write it with the modules and functions that docs/import-snntorch.md lists, without hooks, writes "
    "into tensors and replaced methods"
)
SAMPLE = (
    "give a sample of real inputs, on which it spikes: from_torch(net, sample), or with --model-class a "
    "function that returns (net, sample)"
)


@dataclass
class _Run:
    """Spikes of every neuron, one array [batch, ...] a call, and what forward gave at each call."""

    spikes: dict[str, list[Array]] = field(default_factory=dict)
    returned: list[list[Array]] = field(default_factory=list)


@dataclass
class _Seen:
    """Of the entries (sample, step, neuron) of a layer, how many counted and spiked, or did not."""

    entries: int = 0
    fired: int = 0
    quiet: int = 0

    @property
    def enough(self) -> bool:
        """Whether a fault of this layer could have shown."""
        return min(self.fired, self.quiet) >= LEAST * self.entries > 0


def check(
    net: nn.Module,
    sample: Tensor,
    trace: Trace,
    graph: nir.NIRGraph,
    options: Options,
    reading: Reading,
    reset: Callable[[nn.Module], None],
) -> tuple[Diagnostic, ...]:
    """Raises LoweringError where ``graph`` does not spike as ``net`` does, on random inputs and the sample.

    Args:
        net: the network, left as it was; trace: its record on ``sample``.
        options: how the graph was made: the values of inputs, and what was done to them.
        reading: what the network returns, of which membranes and what comes behind weights are compared.
        reset: puts the states of a module's neurons to zero.

    Returns layers of which the check says little, as they hardly spiked or hardly did not.
    """
    guard = _Guard(net, trace, graph, reading, reset)
    if options.normalize is not None:
        guard.normalized = _Normalized(guard, sample, options)
    with torch.random.fork_rng(devices=[]):
        for what, given in guard.inputs(sample, options):
            try:
                guard.compare(given, what)
            except LoweringError:
                raise
            except (Exception, SystemExit) as error:  # whatever the user's own code raises
                text = f"{type(error).__name__}: {error}".splitlines()[0]
                said = f"cannot be compared with its graph on {what} ({text})"
                raise LoweringError(_problem(type(net).__name__, said)) from None
    return tuple(
        _little(name, guard.seen[name]) for name in guard.seen if not guard.seen[name].enough
    )


def _little(name: str, seen: _Seen) -> Diagnostic:
    hardly = "spikes" if seen.fired <= seen.quiet else "stays silent"
    weights = " and the weights behind it" if seen.fired <= seen.quiet else ""
    return Diagnostic(
        name,
        f"hardly ever {hardly} when the imported graph is checked against the network, on its sample and "
        f"random inputs, also larger ones: of {seen.entries:,} neuron steps, {seen.fired:,} that can be "
        f"compared spiked and {seen.quiet:,} did not, where {LEAST:.0%} of each is the least; for this "
        f"layer{weights} the check proves little",
        SAMPLE,
    )


class _Guard:
    """What is compared, and what of it has been seen."""

    def __init__(
        self,
        net: nn.Module,
        trace: Trace,
        graph: nir.NIRGraph,
        reading: Reading,
        reset: Callable[[nn.Module], None],
    ) -> None:
        self.net, self.trace, self.graph, self.reset = net, trace, graph, reset
        self.reading = reading
        self.loop = max(len(calls) for calls in trace.calls.values())
        self.whole = next(iter(inputs_of(trace)))
        self.network = decode(graph)
        # What has no threshold in the graph does not spike there; its membrane is compared.
        self.silent = {p.name for p in self.network.populations if not p.neurons.fires}
        self.seen = {name: _Seen() for name in trace.calls if name not in self.silent}
        self.normalized: _Normalized | None = None
        inputs = self.network.inputs
        self.pooled = any(
            self.network.pools(c.target) for c in self.network.connections if c.source in inputs
        )

    def inputs(self, sample: Tensor, options: Options) -> Iterator[tuple[str, list[Tensor]]]:
        """What it is and the input of each call, in whole numbers; larger ones only while a layer hardly
        spikes."""
        steps = G.float_meta(self.graph).timesteps
        once = self.loop > 1 or self.whole.at is not None
        calls = 1 if once else min(STEPS, steps)
        # The OR of a pool of inputs is their maximum for spikes alone.
        binary = bool(((sample == 0) | (sample == 1)).all())
        if (
            bool(sample.any())
            and bool(torch.isfinite(sample).all())
            and (binary or not self.pooled)
        ):
            raw = sample.detach() if self.normalized is None else self.normalized.whole(sample)
            yield "the sample", [raw] * calls
        for seed, (rate, factor) in enumerate(FIRST + MORE):
            if seed >= len(FIRST) and all(seen.enough for seen in self.seen.values()):
                return
            if factor > 1 and self.pooled:
                continue
            draw = torch.Generator().manual_seed(seed)
            given = []
            for _ in range(calls):
                on = torch.rand(sample.shape, generator=draw) < rate
                size = torch.randint(1, options.levels + 1, sample.shape, generator=draw)
                if options.signed:
                    size *= 2 * torch.randint(0, 2, sample.shape, generator=draw) - 1
                given.append((on * size * factor).to(sample.dtype).to(sample.device))
            yield "a random input", given

    def compare(self, given: list[Tensor], what: str) -> None:
        """Run both on ``given``, one tensor a call. Raises LoweringError where spikes differ."""
        raster = raster_of(given, self.graph, self.whole, self.loop)[:SAMPLES]
        if self.normalized is not None:
            given = [self.normalized.apply(x) for x in given]
        own = own_run(self.net, given, self.trace, self.reset)
        steps = {name: np.stack(calls, axis=1) for name, calls in own.spikes.items()}
        self._check_layers(steps, raster.shape[:2], what)
        tied = self._ties(given, own)
        factors = {name: factor(self.trace.modules[name]) for name in steps}
        sent = {name: spikes[: len(raster)] / factors[name] for name, spikes in steps.items()}
        known = {name: spikes for name, spikes in sent.items() if name in self.network.by_name}
        ran = float_exec.trace(
            self.network.cut(known), cut.rasters(self.network.inputs, raster, known)
        )
        found = ran.sent
        problems = [
            Problem(
                name,
                "is run by forward but is not part of the graph, so nothing can be said about it",
                "remove it from forward, or let its output reach what is returned",
            )
            for name in steps
            if name not in found
        ]
        for name in steps.keys() & found.keys() - self.silent:
            want, counted = sent[name], ~tied[name][: len(raster)]
            wrong = (found[name].reshape(want.shape) != want) & counted
            seen, fired = self.seen[name], want != 0
            seen.entries += want.size
            seen.fired += int((fired & counted).sum())
            seen.quiet += int((~fired & counted).sum())
            if wrong.any():
                problems.append(
                    _problem(
                        name,
                        f"{int(wrong.sum())} of {int(counted.sum())} spikes are not those of the network "
                        f"itself on {what}",
                    )
                )
        if problems:
            order = list(self.trace.calls)
            raise LoweringError(sorted(problems, key=lambda problem: order.index(problem.where)))
        _check_returned(own, self.trace, steps)
        if self.reading.at or self.reading.way:
            near = np.zeros(len(raster), np.bool_)
            if self.reading.name not in self.silent:
                near |= tied[self.reading.name][: len(raster)].reshape(len(raster), -1).any(axis=1)
            self._check_reading(own, ran, ~near, what)

    def _check_reading(
        self, own: _Run, ran: float_exec.Ran, counted: NDArray[np.bool_], what: str
    ) -> None:
        """What is returned must be what the graph is read out by, in the samples that are ``counted``."""
        assert self.network.readout is not None
        reading = self.reading
        last = ran.sent[self.network.output]
        want = given_back(reading, self.network.readout, last, ran.v)
        calls = [call[reading.place] for call in own.returned]
        if reading.axis is None:
            given = np.stack(calls, axis=1) if reading.over == "steps" else calls[0]
        else:
            given = np.moveaxis(calls[0], reading.axis, 1)
        given = given[: len(want)].reshape(want.shape)
        wrong = np.abs(given - want) > RELATIVE * max(1.0, float(np.abs(want).max()))
        if wrong[counted].any():
            where = reading.way[-1].name if reading.way else reading.name
            said = f"what is returned on {what} is not what its graph is read out by"
            raise LoweringError(_problem(where, said))

    def _check_layers(self, steps: dict[str, Array], size: tuple[int, ...], what: str) -> None:
        """The layers that run must be those of the record, and as often."""
        problems = [
            _problem(name, f"does not run on {what}")
            for name, module in self.trace.modules.items()
            if name in self.trace.calls.keys() - steps.keys() and family_of(module) is not None
        ]
        problems += [
            _problem(name, f"runs {spikes.shape[1]} times on {what}, for {size[1]} steps")
            for name, spikes in steps.items()
            if spikes.shape[1] != size[1] or len(spikes) < size[0]
        ]
        if problems:
            raise LoweringError(problems)

    def _ties(self, given: list[Tensor], own: _Run) -> dict[str, Array]:
        """Of every layer the entries [N, T, ...] that do not count."""
        differing: list[dict[str, Array]] = []
        for moved in (-MOVED, MOVED):
            with suppress(
                Exception
            ):  # a network that runs in float32 alone has no ties that we know
                copied = doubled(self.net, moved, self.trace)
                self.reset(self.net)  # of which a copy's replaced methods may still be
                other = own_run(copied, given, self.trace, self.reset, own.spikes)
                differing.append(
                    {
                        name: np.stack(other.spikes[name], axis=1) != np.stack(calls, axis=1)
                        for name, calls in own.spikes.items()
                    }
                )
        self.reset(self.net)
        ties = {}
        for name, calls in own.spikes.items():
            by_run = [run[name] for run in differing]
            tied = (
                np.any(by_run, axis=0) if by_run else np.zeros_like(np.stack(calls, axis=1), bool)
            )
            if len(by_run) == 2 and (by_run[0] & by_run[1]).mean() > STRANGE:
                # More than rounding: the copy is another network, and only what the moving did counts.
                tied = by_run[0] != by_run[1]
            ties[name] = np.logical_or.accumulate(tied, axis=1)
        return ties


class _Normalized:
    """From whole numbers in the form of a sample to what the network takes, and back."""

    def __init__(self, guard: _Guard, sample: Tensor, options: Options) -> None:
        assert options.normalize is not None
        self.levels, self.sample = options.levels, sample
        # Where the values of a raster, whose channels come behind batch and time, stand in a sample.
        at = torch.arange(sample.numel(), dtype=torch.float64).reshape(sample.shape)
        found = raster_of([at], guard.graph, guard.whole, guard.loop).astype(np.int64)
        ones = [1] * (found.ndim - 3)
        self.mean, self.std = (torch.empty(sample.numel(), dtype=torch.float64) for _ in range(2))
        for held, values in zip((self.mean, self.std), options.normalize, strict=True):
            channels = np.resize(np.asarray(values), found.shape[2]).reshape(-1, *ones)
            full = np.broadcast_to(channels, found.shape).ravel().copy()
            held[torch.from_numpy(found.ravel())] = torch.from_numpy(full)
        self.mean, self.std = (part.reshape(sample.shape) for part in (self.mean, self.std))

    def apply(self, x: Tensor) -> Tensor:
        """(x/levels - mean)/std."""
        return ((x.cpu().double() / self.levels - self.mean) / self.std).to(self.sample)

    def whole(self, sample: Tensor) -> Tensor:
        """The values of which ``sample`` was made."""
        return (sample.detach().cpu().double() * self.std + self.mean) * self.levels


def inputs_of(trace: Trace) -> Iterator[Value]:
    """What the neurons of a record read of the sample."""

    def under(value: Value) -> Iterator[Value]:
        if value.kind == "input":
            yield value
        for part in value.args:
            yield from under(part)

    for calls in trace.calls.values():
        for call in calls:
            yield from under(call.given)


def _problem(name: str, what: str) -> Problem:
    return Problem(name, f"{what}: forward does something that its record does not explain", REMEDY)


def factor(module: Any) -> float:
    """What the spikes of a neuron are multiplied with."""
    return float(torch.as_tensor(getattr(module, "graded_spikes_factor", 1.0)).detach())


def raster_of(
    given: list[Tensor], graph: nir.NIRGraph, whole: Value, loop: int, batch: int | None = None
) -> Array:
    """What the graph reads, [batch, T, *input shape]; ``batch`` is that of the record, or another."""
    batch = batch or whole.shape[0]
    shape = tuple(int(n) for n in np.ravel(graph.nodes["input"].input_type["input"]))
    moved = [x.detach().cpu().double().numpy() for x in given]
    for move in whole.facts or ():
        moved = [move.apply(x) for x in moved]
    if whole.at is None:
        # One step a call, or the same input at all steps.
        parts = [x.reshape(batch, *shape) for x in moved]
        return np.stack(parts * (loop if len(parts) == 1 else 1), axis=1)
    x = moved[0]
    first = whole.call == 0  # time stands before the batch
    x = x.reshape(-1, batch, *shape).swapaxes(0, 1) if first else x.reshape(batch, -1, *shape)
    return np.ascontiguousarray(x[:, :loop])


def doubled(net: nn.Module, moved: float, trace: Trace) -> nn.Module:
    """A copy in float64 whose thresholds are moved by that fraction."""
    copied = copy.deepcopy(net).double()
    for name, module in copied.named_modules():
        if name in trace.calls:
            family = family_of(module)
            assert family is not None
            family.move(module, 1 + moved)
    for name, module in copied.named_modules():
        leaf = not list(module.children()) or computes_as(module, LAYERS)
        if leaf or name in trace.calls:
            module.register_forward_pre_hook(_to_double)
    return copied


def _to_double(_module: nn.Module, args: Any) -> Any:
    return tuple(x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for x in args)


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """All modules in evaluation mode, without gradients."""
    modes = {module: module.training for module in net.modules()}
    net.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def own_run(
    net: nn.Module,
    given: list[Tensor],
    trace: Trace,
    reset: Callable[[nn.Module], None],
    held: dict[str, list[Array]] | None = None,
) -> _Run:
    """The network's own spikes on ``given``, one tensor a call; ``held`` are handed on in their place."""
    run = _Run()

    def watch(name: str, family: Family | None) -> Any:
        def after(_module: nn.Module, _args: Any, out: Any) -> Any:
            spikes = next(tensors(out))
            calls = run.spikes.setdefault(name, [])
            found = spikes.detach().cpu().double().numpy().copy()
            every = family is not None and family.all_steps(_module)
            calls += [*found] if every else [found]
            if held is None:
                return None
            own = held[name][len(calls) - (len(found) if every else 1) : len(calls)]
            other = torch.as_tensor(np.stack(own) if every else own[0]).to(spikes)
            return (other, *out[1:]) if isinstance(out, tuple) else other

        return after

    handles = [
        m.register_forward_hook(watch(name, family_of(m)))
        for name, m in net.named_modules()
        if name in trace.calls
    ]
    reset(net)
    try:
        with evaluating(net):
            for x in given:
                out = net(x.clone())
                run.returned.append([y.detach().cpu().double().numpy() for y in tensors(out)])
    finally:
        for handle in handles:
            handle.remove()
        reset(net)
    return run


def _check_returned(run: _Run, trace: Trace, steps: dict[str, Array]) -> None:
    """What forward returns must be the spikes that the record says, at every call."""
    for call, returned in enumerate(run.returned):
        if len(returned) != len(trace.returned):
            what = (
                f"returns {len(returned)} tensors, and {len(trace.returned)} when it was recorded"
            )
            raise LoweringError(_problem("forward", what))
        for value, got in zip(trace.returned, returned, strict=True):
            if value is None:
                continue
            parts = value.args if value.kind == "record" else (value,)
            if not parts or any(p.kind != "neuron" or p.at != 0 for p in parts):
                continue
            spikes = np.stack([steps[p.name][:, p.call + call] for p in parts])
            forms = _forms(value, spikes)
            if not any(got.size == f.size and np.allclose(got.ravel(), f.ravel()) for f in forms):
                raise LoweringError(
                    _problem(parts[0].name, "what is returned is not its spikes of all steps")
                )


def _forms(value: Value, spikes: Array) -> list[Array]:
    """``spikes`` [parts, batch, ...] as the record says that they are returned."""
    if value.kind == "neuron":
        return [spikes[0]]
    if value.at is not None:
        return [np.moveaxis(spikes, 0, value.at)]
    return [spikes.sum(0), spikes.mean(0), spikes.reshape(-1, *spikes.shape[2:])]
