"""That a model is read as it was when its integer network was made: by the same dt, tau and reset."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from stl_deploy.errors import InputError, Problem
from stl_deploy.importers.given import Tool
from stl_deploy.ir.network import IntegerNetwork
from stl_deploy.ir.notes import Diagnostic
from stl_deploy.ir.read_as import ReadAs

KNOWN = (
    "tau",
    "dt",
    "reset",
    "written_by",
    "spikes",
)  # options that a network knows of the model that it was made of
NAMED = 8  # populations that a note names


def settled(
    given: Mapping[str, Any], network: IntegerNetwork, path: Path, takes: frozenset[str]
) -> dict[str, Any]:
    """The options of ``KNOWN``: ``given``, or where None those of the export, if the model ``takes`` them.

    ``path`` is that of the network. Raises InputError for those that contradict it.
    """
    values = {
        "tau": (record.tau for record in network.read_as),
        "dt": (record.dt for record in network.read_as),
        "reset": map(_open_reset, network.read_as),
        "written_by": map(_tool, network.read_as),
        "spikes": map(_spikes, network.read_as),
    }
    found = {name: next((v for v in of if v is not None), None) for name, of in values.items()}
    problems = [
        Problem(
            option := f"--{name.replace('_', '-')}",
            f"{given[name]}, but {path} was made with {found[name]}",
            f"omit it, or export again with {option} {given[name]}",
        )
        for name in KNOWN
        if None not in (given[name], found[name]) and given[name] != found[name]
    ]
    if problems:
        raise InputError(problems)
    # What was assumed then is assumed again.
    said = {n for r in network.read_as for n, who in r.origin.items() if who == "option"}
    chosen = takes & {"written_by", *said}
    return {n: found[n] if given[n] is None and n in chosen else given[n] for n in KNOWN}


def _open_reset(record: ReadAs) -> str | None:
    """How a population was read that does not state its reset, in the words of the option."""
    if record.origin.get("reset", "file") == "file":
        return None
    return "subtract" if record.reset == "subtract" else "zero"


def _tool(record: ReadAs) -> str | None:
    """The tool whose file it was read from, where the user said that."""
    tool = record.neuron.partition(".")[0]
    return tool if tool in get_args(Tool) else None


def _spikes(record: ReadAs) -> str | None:
    """How many spikes a step the user said it sends; where the weights decide, nobody need say it again."""
    return "one" if record.origin.get("spikes") == "option" else None


def differences(
    model: tuple[ReadAs, ...], network: IntegerNetwork, path: Path
) -> tuple[Diagnostic, ...]:
    """A note of populations that are read as other neurons than those the network at ``path`` was made of."""
    made = {record.population: record for record in network.read_as}
    found: dict[tuple[str, str], list[str]] = {}
    for record in model:
        other = made.get(record.population)
        if other is not None and _words(record, other) != _words(other, record):
            words = _words(record, other), _words(other, record)
            found.setdefault(words, []).append(record.population)
    return tuple(
        Diagnostic(
            ", ".join(names[:NAMED])
            + (f" and {len(names) - NAMED} more" if len(names) > NAMED else ""),
            f"read with {here}; {path} was made with {there}",
            "compare it with the model that was exported",
        )
        for (here, there), names in found.items()
    )


def _words(record: ReadAs, other: ReadAs) -> str:
    """What spikes do, and what a step takes where ``other`` says that too."""
    words = [f"reset {record.reset}", record.when]
    if None not in (record.dt, other.dt):
        words.append(f"dt = {record.dt:g} s")
    return ", ".join(filter(None, words))


def shown(model: tuple[ReadAs, ...], network: IntegerNetwork) -> tuple[ReadAs, ...]:
    """How the model was read, T being the network's and said by whom that was said."""
    said = {r.population: r.origin["timesteps"] for r in network.read_as if "timesteps" in r.origin}
    return tuple(
        r.model_copy(update={"origin": {**r.origin, "timesteps": said.get(r.population, "file")}})
        for r in model
    )
