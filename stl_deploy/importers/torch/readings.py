"""What a forward returns, as a sum, a mean or a maximum over time of what its last neurons did.

A returned tensor is taken apart into terms: what neurons gave in a step (their spikes or their membrane),
through linear modules, times a number. Where all terms are of the same neurons and modules, they are a
readout.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from stl_deploy.importers.torch.values import Value
from stl_deploy.ir.readouts import FloatReadout, Rule
from stl_deploy.ir.synapses import Shape

Array = NDArray[Any]
Float = NDArray[np.float64]
LINEAR = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.Flatten,
)
SILENT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.Identity)
Over = Literal["steps", "cat", "sum", "max"]


@dataclass(frozen=True, eq=False)
class Term:
    """``factor`` times what ``neurons`` gave, through ``way``; ``constants`` of it times their biases."""

    neurons: Value
    way: tuple[Value, ...] = ()
    factor: float = 1.0
    constants: tuple[float, ...] = ()

    def times(self, factor: float) -> Term:
        """The term ``factor`` times."""
        constants = tuple(factor * c for c in self.constants)
        return Term(self.neurons, self.way, factor * self.factor, constants)

    def through(self, value: Value, biases: float) -> Term:
        """The term behind one more module, of whose bias it brings so many."""
        return Term(self.neurons, (*self.way, value), self.factor, (*self.constants, biases))


@dataclass(frozen=True, eq=False)
class Reading:
    """What a returned tensor says of ``name``.

    Attributes:
        at: which output of the neurons it is; 0 for spikes.
        shape: of the neurons, without batch.
        way: the modules between them and what is returned.
        factors: by step.
        constants: by module of ``way``, how often its bias comes in.
        over: "steps" where each step is returned on its own, "cat" where all stand along the batch.
        axis: of time in the returned tensor, None where there is none.
        place: of the tensor among those that are returned.
    """

    name: str
    at: int
    shape: Shape
    way: tuple[Value, ...]
    factors: Mapping[int, float]
    constants: tuple[float, ...]
    over: Over
    axis: int | None = None
    place: int = 0

    def every(self, steps: int) -> bool:
        """Whether all steps count, all alike."""
        whole = list(self.factors) == list(range(steps))
        return whole and len(set(self.factors.values())) == 1 and self.factors[0] > 0

    def by_step(self, steps: int) -> tuple[float, ...]:
        """The factors of all steps."""
        return tuple(self.factors.get(step, 0.0) for step in range(steps))

    def rule(self, steps: int) -> Rule | None:
        """That of a membrane; None where there is none."""
        if self.over == "max":
            return "max" if self.every(steps) else None
        if list(self.factors) == [steps - 1] and self.factors[steps - 1] > 0:
            return "last" if steps > 1 else "mean"
        return "mean" if self.every(steps) else None


def read(value: Value | None, steps: int) -> Reading | None:
    """How ``value`` comes from neurons; None where it comes from something else, or not in one way.

    ``steps`` are those of a forward; of one that is a single step, every call gives one.
    """
    if value is None:
        return None
    over: Over = "sum" if steps > 1 or value.kind == "record" else "steps"
    axis = None
    if value.kind == "record" and value.at is not None:
        over, axis = "steps", value.at
    elif value.kind == "record":
        over = {None: "cat", "max": "max"}.get(value.facts, "sum")  # type: ignore[assignment]
    terms = _terms(value, outer=True)
    if not terms or len({_form(term) for term in terms}) > 1:
        return None
    if over != "sum" and value.kind == "record":
        calls = [{term.neurons.call for term in _terms(part)} for part in value.args]
        if sum(map(len, calls)) > len(calls) or len(set.union(*calls)) < len(calls):
            return None  # a part that is no single step, or a step that comes twice
    factors: dict[int, float] = {}
    constants = np.zeros(len(terms[0].way))
    for term in terms:
        step = term.neurons.call
        factors[step] = factors.get(step, 0.0) + term.factor
        constants += term.constants
    last = terms[-1]
    shape = last.neurons.shape[1:]
    found = tuple(float(c) for c in constants)
    return Reading(
        last.neurons.name, last.neurons.at or 0, shape, last.way, factors, found, over, axis
    )


def _form(term: Term) -> Any:
    """What terms of one readout have in common."""
    ways = tuple(id(v.facts) if v.kind == "module" else repr(v.facts) for v in term.way)
    return term.neurons.name, term.neurons.at, ways


def _terms(value: Value, outer: bool = False) -> list[Term]:
    """The terms of which ``value`` is the sum; none where it is not one."""
    if value.kind == "neuron":
        return [Term(value)]
    if value.kind == "record" and value.at is not None and not outer:
        return []  # steps that are no sum
    parts = [_terms(part) for part in value.args]
    if not parts or not all(parts):
        return []
    flat = [term for part in parts for term in part]
    if value.kind == "record" and (outer or value.facts != "max"):
        share = 1 / len(parts) if value.facts == "mean" else 1.0
        return [term.times(share) for term in flat]
    if value.kind == "module" and isinstance(value.facts, SILENT):
        return flat
    if value.kind == "module" and isinstance(value.facts, LINEAR):
        return [term.through(value, float(i == 0)) for i, term in enumerate(flat)]
    if value.kind != "op":
        return []
    kind, *facts = value.facts
    if kind == "add":
        return flat
    if kind == "scale":
        return [term.times(facts[0]) for term in flat]
    if kind == "flatten":
        return [term.through(value, float(i == 0)) for i, term in enumerate(flat)]
    return []


def of_several(value: Value | None, steps: int) -> tuple[Reading, tuple[Value, ...]] | None:
    """How ``value`` is read of neurons without memory, and what these are given in each step.

    Those are not the network's: a value that comes from the spikes of several layers, such as of a block that
    adds its input to them, has none of its own. None where it comes in another way.
    """
    if value is None:
        return None
    parts = value.args if value.kind == "record" else (value,)
    if len(parts) != steps or not all(_from_several(part) for part in parts):
        return None
    factors = dict.fromkeys(range(steps), 1 / steps if value.facts == "mean" else 1.0)
    over: Over = "steps"
    if value.kind == "record" and value.at is None:
        over = {None: "cat", "max": "max"}.get(value.facts, "sum")  # type: ignore[assignment]
    if over == "cat":
        return None
    axis = value.at if value.kind == "record" else None
    return Reading("", 1, parts[0].shape[1:], (), factors, (), over, axis), parts


def _from_several(value: Value) -> bool:
    """Whether a linear layer makes a value of one step of the spikes of several layers, or of products."""
    names = _spikes_of(value) if _has_weights(value) else set()
    return len({name for name, _ in names}) > 1 or any(product for _, product in names)


def _has_weights(value: Value) -> bool:
    """Whether a linear layer stands between a value and the neurons before it."""
    own = value.kind == "module" and isinstance(value.facts, nn.Linear)
    return own or any(map(_has_weights, value.args))


def _spikes_of(value: Value) -> set[tuple[str, bool]]:
    """The layers in whose spikes a value is linear, and the products of spikes; none where it is not."""
    if value.kind == "neuron":
        return {(value.name, False)} if value.at == 0 else set()
    if value.kind == "op" and value.facts[0] == "and":
        return {(value.name, True)}
    linear = value.kind == "op" and value.facts[0] in ("add", "scale", "flatten")
    if not linear and not (value.kind == "module" and isinstance(value.facts, (*LINEAR, *SILENT))):
        return set()
    parts = [_spikes_of(part) for part in value.args]
    return set.union(*parts) if all(parts) else set()


# The modules as a matrix


def matrix(reading: Reading) -> tuple[Float, Float]:
    """The weights [classes, neurons] and offset [classes] of ``way`` in a step that counts once.

    Biases that come in once for all steps, as behind a sum over time, count a part in each.
    """
    total = sum(reading.factors.values())
    shares = [constant / total for constant in reading.constants]
    if len(reading.way) == 1 and isinstance(reading.way[0].facts, nn.Linear):
        module = reading.way[0].facts
        weight = _array(module.weight)
        bias = np.zeros(len(weight)) if module.bias is None else _array(module.bias)
        return weight, bias * shares[0]
    size = int(np.prod(reading.shape))
    with torch.no_grad():
        every = torch.eye(size, dtype=torch.float64).reshape(size, *reading.shape)
        found = _through(reading.way, every, [0.0] * len(shares)).reshape(size, -1).T
        none = torch.zeros(1, *reading.shape, dtype=torch.float64)
        offset = _through(reading.way, none, shares).reshape(-1)
    return found.numpy().copy(), offset.numpy().copy()


def _through(way: tuple[Value, ...], x: torch.Tensor, shares: Sequence[float]) -> torch.Tensor:
    """``x`` through all of ``way``, with such shares of the constants of each module."""
    for value, share in zip(way, shares, strict=True):
        if value.kind == "op":
            x = x.flatten(1)
            continue
        module = copy.deepcopy(value.facts).double().eval().cpu()
        for name in ("bias", "running_mean"):
            if getattr(module, name, None) is not None:
                getattr(module, name).data.mul_(share)
        x = module(x)
    return x


def _array(value: torch.Tensor) -> Float:
    return value.detach().cpu().double().numpy().copy()


# What is returned, of what the graph gives


def given_back(reading: Reading, readout: FloatReadout, sent: Array, v: Array) -> Float:
    """What forward returns, where the neurons that ``readout`` reads gave ``sent`` and v [N, T, ...].

    It is [N, classes], or [N, T, classes] where each step is returned.
    """
    given = v if readout.by_voltage else sent
    flat = given.reshape(*given.shape[:2], -1).astype(np.float64)
    if readout.factors is not None:
        flat = flat * readout.factors
    if readout.matrix is not None:
        offset = 0.0 if readout.offset is None else readout.offset
        flat = flat @ readout.matrix.T + offset
    by_step = np.array(reading.by_step(flat.shape[1]))
    if reading.over == "steps" and len(reading.factors) == 1:
        by_step = np.full(flat.shape[1], reading.factors[0])  # forward is one step
    if reading.over == "max":
        highest: Float = (flat * by_step[:, None]).max(axis=1)
        return highest
    if reading.over == "sum":
        total: Float = np.einsum("t,nti->ni", by_step, flat)
        return total
    each: Float = flat * by_step[:, None]
    return each
