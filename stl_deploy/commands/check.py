"""``stl-check``: which tools run a NIR file exactly, differently, or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stl_deploy.commands.common import Debug, Json, print_json, run, say, table
from stl_deploy.errors import InputError, LoweringError, Problem

if TYPE_CHECKING:
    from stl_deploy.backends.consumers import Answer
    from stl_deploy.backends.consumers.file import File

SHOWN = 4  # names of nodes in a line
LIMIT = 10  # samples of --input
EXPORT = "export with --nir-dialect {}, or see docs/nir.md"


@dataclass(frozen=True)
class Ran:
    """By tool, what it raised (``error``) and how many entries of spiking nodes differ (``nodes``).

    ``impossible`` says why nothing was run.
    """

    seen: dict[str, dict[str, Any]] = field(default_factory=dict)
    impossible: tuple[Problem, ...] = ()

    def answer(self, answer: Answer) -> Answer:
        """``answer``, with what was seen of its tool."""
        row = self.seen.get(answer.consumer.name)
        return answer if row is None else answer.after(row["error"], row["nodes"])


def check(
    file: Annotated[
        Path | None, typer.Argument(help="Any NIR file.", metavar="FILE.nir", show_default=False)
    ] = None,
    need: Annotated[
        str, typer.Option(metavar="NAMES", help="Exit with 1 unless these tools run it exactly.")
    ] = "",
    raster: Annotated[
        Path | None,
        typer.Option(
            "--input", metavar="NPZ", help="Spike raster to run it on in the tools that read it."
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="First N samples of --input (10).", show_default=False),
    ] = None,
    rules: Annotated[
        bool, typer.Option("--rules", help="Print all rules as Markdown and nothing else.")
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Say whether Norse, snnTorch, SpikingJelly and others run a NIR file exactly.

    Example: stl-check out/model.portable.nir --need norse
    """
    from stl_deploy.backends import consumers
    from stl_deploy.backends.consumers.file import read

    _usage(file, need, raster, limit, rules, as_json)
    if rules:
        print(consumers.markdown(), end="")
        return
    if file is None:
        raise InputError(Problem("FILE.nir", "is missing", "name a NIR file, or ask for --rules"))
    needed = _known(need)
    found = read(file)
    answers = consumers.check(found)
    ran = Ran()
    if raster is not None:
        ran = _run(file, found, answers, raster, limit or LIMIT)
        answers = [ran.answer(answer) for answer in answers]
    if as_json:
        rows = [{**a.to_json(), "run": ran.seen.get(a.consumer.name)} for a in answers]
        not_run = [str(p) for p in ran.impossible]
        print_json({"file": str(file), "kind": found.kind, "not_run": not_run, "consumers": rows})
    else:
        _print(file, found, answers, ran)
    problems = [
        p for a in answers if a.consumer.name in needed for p in _problems(a, file, found.kind, ran)
    ]
    if problems:
        raise LoweringError(problems)


def _usage(
    file: Path | None,
    need: str,
    raster: Path | None,
    limit: int | None,
    rules: bool,
    as_json: bool,
) -> None:
    """Raise InputError for options that would have no effect, all at once."""
    problems = []
    if rules:
        given = {
            "FILE.nir": file is not None,
            "--need": bool(need),
            "--input": raster is not None,
            "--limit": limit is not None,
            "--json": as_json,
        }
        problems = [
            Problem(name, "has no effect with --rules", "omit one of them")
            for name, named in given.items()
            if named
        ]
    elif limit is not None and raster is None:
        problems = [Problem("--limit", "has no effect without --input", "name a raster")]
    if problems:
        raise InputError(problems)


def _problems(answer: Answer, file: Path, file_kind: str, ran: Ran) -> Iterator[Problem]:
    """Why a tool does not run the file exactly, or was not seen to though that was asked for."""
    where = f"{file}: {answer.consumer.title} {answer.consumer.version}"
    if answer.verdict != "exact":
        what = f"{_word(answer)}: {answer.reasons[0].text}"
        own = file_kind in ("integer", "float")
        remedy = EXPORT.format(_dialect(answer)) if own else "see docs/nir.md"
        if answer.contradicted:
            remedy = "report it with the file and the raster"
        yield Problem(where, what, remedy)
    elif ran.impossible:
        what = f"was not run: {ran.impossible[0]}"
        yield Problem(where, what, "omit --input to rely on the rules alone")


def _dialect(answer: Answer) -> str:
    """The dialect that is meant for a tool."""
    return "spinnaker2" if answer.consumer.name == "spinnaker2" else "portable"


def _known(names: str) -> list[str]:
    from stl_deploy.backends.consumers.rules import CONSUMERS

    asked = [name.strip() for name in names.split(",") if name.strip()]
    for name in asked:
        if name not in CONSUMERS:
            raise InputError(Problem("--need", f"{name!r} is not one of {', '.join(CONSUMERS)}"))
    return asked


def _word(answer: Answer) -> str:
    return {
        "exact": "exactly",
        "unknown": "not tried",
        "differs": "differently",
        "unreadable": "cannot read",
    }[answer.verdict.value]


def _print(file: Path, found: File, answers: list[Answer], ran: Ran) -> None:
    header = ["tool", "version", "runs it"]
    rows = [[a.consumer.title, a.consumer.version, _word(a)] for a in answers]
    if ran.seen:
        header.append("spikes that differ")
        for row, answer in zip(rows, answers, strict=True):
            row.append(_outcome(ran.seen.get(answer.consumer.name)))
    table(f"{file} ({found.kind})", header, rows)
    for problem in ran.impossible:
        say(f"not run: {problem}")
    for answer in answers:
        if answer.reasons:
            say(f"{answer.consumer.title}: {answer.consumer.call}")
        for reason in answer.reasons:
            named = ", ".join(reason.nodes[:SHOWN]) + (", ..." if len(reason.nodes) > SHOWN else "")
            mark = {"exact": "mind", "unknown": "not tried"}.get(reason.verdict.value, "why")
            say(f"  {mark}: {reason.text}" + (f" ({named})" if named else ""))


def _outcome(seen: dict[str, Any] | None) -> str:
    if seen is None:
        return "-"
    if seen["error"] is not None:
        return "error"
    return "no output to compare" if seen["mismatches"] is None else f"{seen['mismatches']:,}"


def _run(file: Path, found: File, answers: list[Answer], raster: Path, limit: int) -> Ran:
    """Run the file in the tools that read it, or say why there is nothing to compare them with."""
    from stl_deploy.backends.consumers import run as runs
    from stl_deploy.formats import raster as rasters

    try:
        spikes = runs.steps(found, rasters.load(raster).first(limit).only(str(raster)))
        expected = runs.expected(found, spikes)
    except LoweringError as error:
        return Ran(impossible=error.problems)
    tools = [
        answer.consumer
        for answer in answers
        if answer.consumer.environment and answer.verdict != "unreadable"
    ]
    results = runs.run([runs.Job(consumer, file, spikes) for consumer in tools])
    seen: dict[str, dict[str, Any]] = {}
    for consumer, result in zip(tools, results, strict=True):
        counts = result.mismatches(expected)
        total = None if counts is None else sum(counts.values())
        seen[consumer.name] = {"error": result.error, "mismatches": total, "nodes": counts}
    return Ran(seen)


def main() -> None:
    """Entry point."""
    run(check, "stl-check")
