"""Errors that name the place, the value, the limit and the remedy; many at once, never the first alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: ``where`` (file, layer), ``what`` (value and limit), ``remedy``."""

    where: str
    what: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" + (f" -> {self.remedy}" if self.remedy else "")


class StlError(Exception):
    """Base of all errors meant for the user; ``exit_code`` is that of the commands."""

    exit_code = 1

    def __init__(self, problems: Problem | Iterable[Problem]) -> None:
        self.problems = (problems,) if isinstance(problems, Problem) else tuple(problems)
        super().__init__("\n".join(str(p) for p in self.problems))

    def __reduce__(self) -> tuple[Any, ...]:
        """Errors also come from other processes; without this only their text would."""
        return type(self), (self.problems,)


class UncheckedWarning(UserWarning):
    """Something was done, and could be checked only in part."""


class InputError(StlError):
    """Bad usage or bad input: a file that cannot be read, does not fit or is not what it says (exit 2)."""

    exit_code = 2


class LoweringError(StlError):
    """A valid model that cannot be lowered as asked (exit 1)."""

    exit_code = 1


class BackendError(StlError):
    """A tool that was to run the network failed, or could not be set up (exit 1)."""

    exit_code = 1


@contextmanager
def collected(problems: list[Problem]) -> Iterator[None]:
    """Add what is raised inside to ``problems``, so that several parts are looked at."""
    try:
        yield
    except StlError as error:
        problems += error.problems


def expect(
    where: str, value: object, kinds: type | tuple[type, ...], what: str, remedy: str
) -> None:
    """Raise InputError unless the argument ``where`` is one of ``kinds``, which are ``what`` in words."""
    if not isinstance(value, kinds):
        raise InputError(Problem(where, f"is of type {type(value).__name__}, not {what}", remedy))
