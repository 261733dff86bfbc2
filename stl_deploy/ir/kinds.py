"""Tables keyed by a kind of population or synapses, and what it means that one has no entry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from stl_deploy.errors import LoweringError, Problem

_T = TypeVar("_T")


def entry(table: Mapping[str, _T], kind: str, where: str, who: str) -> _T:
    """The entry of ``table`` for ``kind``.

    Raises LoweringError where there is none, naming the population ``where`` and the target or backend
    ``who`` that keeps the table.
    """
    if kind in table:
        return table[kind]
    raise LoweringError(missing(table, kind, where, who))


def missing(table: Mapping[str, object], kind: str, where: str, who: str) -> Problem:
    """The problem of a population whose ``kind`` the table of ``who`` does not know."""
    known = ", ".join(sorted(table))
    return Problem(
        where, f"{who} does not support {kind!r}; it supports {known}", "use another target"
    )
