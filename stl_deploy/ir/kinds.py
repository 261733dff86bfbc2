"""Tables keyed by a kind of population or synapses, and what it means that one has no entry.

A field of the neurons that somebody does not know is the same case: it is refused, never left out.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from stl_deploy.errors import LoweringError, Problem

if TYPE_CHECKING:
    from stl_deploy.ir.network import IntegerNetwork, Population
    from stl_deploy.ir.neurons import Neurons
    from stl_deploy.ir.readouts import Readout

_T = TypeVar("_T")

# The fields of neurons that everybody who reads them was written for. A new field does not belong here, but
# in what each reader that carries it passes as ``known``: until then the others refuse it.
FIELDS = frozenset({"vth", "bias_mant", "bias_exp", "scale", "du", "dv", "reset"})
RESETS = frozenset({"reset none", "reset constant"})
# What those know who were written for the whole table of rules and readouts; no place for new fields either.
RULES = frozenset(
    {"v_reset", "fires", "reset_current", "hold", "floor", "adapt", "dq", "du2", "gain", "v0"}
    | {"graded"}
)
READOUTS = frozenset(
    f"readout {word}" for word in ("last", "mean", "max", "first", "steps", "factors", "matrix")
)
TABLE = FIELDS | RESETS | RULES | READOUTS


def entry(table: Mapping[str, _T], kind: str, where: str, who: str) -> _T:
    """The entry of ``table`` for ``kind``.

    Raises LoweringError where there is none, naming the population ``where`` and the target or backend
    ``who`` that keeps the table.
    """
    if kind in table:
        return table[kind]
    raise LoweringError(missing(table, kind, where, who))


def missing(table: Collection[str], kind: str, where: str, who: str) -> Problem:
    """The problem of a population whose ``kind`` the table of ``who`` does not know."""
    known = ", ".join(sorted(table))
    return Problem(
        where,
        f"{who} does not support {kind!r}; it supports {known}",
        "choose another target or backend",
    )


def unknown_fields(neurons: Neurons, known: Collection[str] = FIELDS) -> list[str]:
    """The fields of ``neurons`` outside ``known`` that do not hold their default, in their order.

    Resets other than the two that everybody knows count as fields: "reset none" and "reset constant".
    """
    defaults: dict[str, Any] = {field.name: field.default for field in fields(neurons)}
    found = [
        name
        for name, default in defaults.items()
        if name not in known and not np.array_equal(getattr(neurons, name), default)
    ]
    reset = f"reset {neurons.reset}"
    return [reset, *found] if reset in RESETS and reset not in known else found


def features(readout: Readout) -> list[str]:
    """What a readout does besides counting the spikes of each class; ``known`` may hold these words."""
    found = [] if readout.rule == "votes" else [f"readout {readout.rule}"]
    extra = {"steps": readout.steps, "factors": readout.factors, "matrix": readout.matrix}
    return found + [f"readout {name}" for name, value in extra.items() if value is not None]


def unsupported(
    network: IntegerNetwork,
    population: Population,
    neurons: Collection[str],
    synapses: Collection[str],
    who: str,
    known: Collection[str] = FIELDS,
) -> list[Problem]:
    """Why ``who``, which keeps these two tables, cannot carry ``population``; empty where it can.

    Of a population of unknown kind nothing else is asked. ``known`` are the fields that it carries, or
    refuses by itself.
    """
    if population.kind not in neurons:
        return [missing(neurons, population.kind, population.name, who)]
    found = [
        missing(synapses, c.synapses.kind, f"{c.name} ({c.source} to {c.target})", who)
        for c in network.into(population.name)
        if c.synapses.kind not in synapses
    ]
    found += [
        Problem(
            population.name,
            f"{who} does not support the field {name!r} of its neurons",
            "choose another target or backend",
        )
        for name in unknown_fields(population.neurons, known)
    ]
    if population.name == network.readout.source:
        found += [
            Problem(
                population.name,
                f"{who} does not support {name!r}, by which its classes are scored",
                "choose another target or backend",
            )
            for name in features(network.readout)
            if name not in known
        ]
    return found
