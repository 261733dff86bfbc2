"""Tables keyed by a kind of population or synapses, and what it means that one has no entry."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, TypeVar

from stl_deploy.errors import LoweringError, Problem

if TYPE_CHECKING:
    from stl_deploy.ir.network import Layer

_T = TypeVar("_T")


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


def unsupported(
    layer: Layer, populations: Collection[str], synapses: Collection[str], who: str
) -> list[Problem]:
    """Why ``who``, which keeps these two tables, cannot carry ``layer``; empty where it can.

    Of a population of unknown kind nothing else is asked.
    """
    if layer.kind not in populations:
        return [missing(populations, layer.kind, layer.name, who)]
    if layer.synapses.kind not in synapses:
        return [missing(synapses, layer.synapses.kind, layer.name, who)]
    return []
