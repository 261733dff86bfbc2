"""How the populations of a network were read, in words: a table, and what nobody had stated."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from stl_deploy.ir.notes import Diagnostic
from stl_deploy.ir.read_as import Origin, Property, ReadAs

LISTED = 2  # populations that a row of the table names
NAMED = 8  # that a note names
MATTERS: frozenset[Property] = frozenset({"reset", "dt", "tau", "timesteps"})  # to a note

# The options that say a property, on the command line and in Python.
OPTIONS: dict[Property, tuple[str, str]] = {
    "reset": ("--reset", "reset="),
    "dt": ("--dt", "dt="),
    "tau": ("--tau", "tau="),
    "timesteps": ("--timesteps", "timesteps="),
}
SUBTRACTS = "snnTorch and sinabs subtract by default (docs/import-nir.md)"


class Cell(NamedTuple):
    """A value, and who said it: "" where the file does."""

    value: str
    mark: str = ""


def table(records: Sequence[ReadAs]) -> tuple[list[str], list[list[Cell]]]:
    """Header and rows; populations that were read alike share a row."""
    shown = [c for c in COLUMNS if c.always or any(c.cell(r).value != "-" for r in records)]
    alike: dict[tuple[Cell, ...], list[str]] = {}
    for r in records:
        alike.setdefault(tuple(c.cell(r) for c in shown), []).append(r.population)
    header = ["population", *(c.title for c in shown)]
    return header, [[Cell(_names(names, LISTED)), *cells] for cells, names in alike.items()]


def assumed(records: Sequence[ReadAs]) -> str:
    """What was assumed, "" where nothing was that matters."""
    words = []
    if resets := [r for r in records if "reset" in r.assumed]:
        how = dict.fromkeys(_reset(r) for r in resets)
        names = _names([r.population for r in resets], NAMED)
        words.append(f"reset of {names} ({'; '.join(how)})")
    for name, title, value in (
        ("dt", "dt", _dt),
        ("tau", "tau", _tau),
        ("timesteps", "T", _timesteps),
        ("spikes", "spikes per step", _spikes),
    ):
        found = dict.fromkeys(value(r) for r in records if name in r.assumed)
        words += [f"{title} ({', '.join(found)})"] if found else []
    return ", ".join(words) if _matter(records, MATTERS) else ""


def note(
    records: Sequence[ReadAs],
    where: str,
    takes: Collection[str] = (),
    python: bool = False,
    unless: frozenset[Property] = frozenset(),
) -> tuple[Diagnostic, ...]:
    """What was assumed of the model ``where``, and how to say it otherwise.

    ``takes`` names the properties that an option can say, ``unless`` those that alone need no note.
    """
    if not _matter(records, MATTERS - unless):
        return ()
    open_ = {name for r in records for name in r.assumed if name in takes}
    options = [words[python] for name, words in OPTIONS.items() if name in open_]
    if "timesteps" in open_ and not python:
        options.append("--eval")
    remedies = [f"otherwise give {_or(options)}"] if options else []
    remedies += [SUBTRACTS] if "reset" in open_ else []
    what = f"assumed, as the model does not say: {assumed(records)}"
    return (Diagnostic(where, what, "; ".join(remedies)),)


def _matter(records: Sequence[ReadAs], properties: frozenset[Property]) -> bool:
    return any(properties.intersection(r.assumed) for r in records)


def _or(words: Sequence[str]) -> str:
    return " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def _names(names: Sequence[str], most: int) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _reset(r: ReadAs) -> str:
    return ", ".join(filter(None, (r.reset, r.when)))


def _dt(r: ReadAs) -> str:
    return "-" if r.dt is None else f"{r.dt:g} s"


def _tau(r: ReadAs) -> str:
    return "-" if r.tau is None else f"{r.tau:g}"


def _timesteps(r: ReadAs) -> str:
    return str(r.timesteps)


def _spikes(r: ReadAs) -> str:
    return "-" if r.spikes is None else str(r.spikes)


def _source(r: ReadAs) -> str:
    return "-" if r.source == r.population else r.source


class Column(NamedTuple):
    """A column of the table; without ``always`` only where a population has a value."""

    title: str
    value: Callable[[ReadAs], str]
    property: Property | None = None
    always: bool = True

    def cell(self, r: ReadAs) -> Cell:
        """The value of a population."""
        value = self.value(r)
        if self.property is None or value == "-":
            return Cell(value)
        return Cell(value, self.mark(r.origin.get(self.property, "file"), self.property))

    @staticmethod
    def mark(who: Origin, what: Property) -> str:
        """How the table says who said a value."""
        return f"--{what}" if who == "option" else "" if who == "file" else who


COLUMNS = (
    Column("neuron", lambda r: r.neuron),
    Column("reset", _reset, "reset"),
    Column("dt", _dt, "dt", always=False),
    Column("tau", _tau, "tau", always=False),
    Column("T", _timesteps, "timesteps"),
    Column("spikes", _spikes, "spikes"),
    Column("from", _source, always=False),
)
