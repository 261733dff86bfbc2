"""How a model was read, for a person: a table, and a note of what was assumed."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from stl_deploy.commands.common import complain_diagnostics, table

if TYPE_CHECKING:
    from typing import Literal

    from stl_deploy.ir.read_as import ReadAs

    Word = Literal["zero", "subtract"]
    ToolName = Literal["norse", "rockpool", "sinabs"]
    Count = Literal["one", "many"]
else:
    from enum import StrEnum

    Word = StrEnum("Word", {"zero": "zero", "subtract": "subtract"})
    ToolName = StrEnum("ToolName", {name: name for name in ("norse", "rockpool", "sinabs")})
    Count = StrEnum("Count", {"one": "one", "many": "many"})

Reset = Annotated[
    Word | None,
    typer.Option(
        help="What a spike does to v in another tool's NIR file, for populations that do not state it: "
        "zero sets it to v_reset, subtract takes the threshold. \\[default: zero]",
    ),
]

WrittenBy = Annotated[
    ToolName | None,
    typer.Option(
        help="Tool that wrote the NIR file, which is then read as this tool computes it: time constants, "
        "reset and spikes per step (docs/import-nir.md). \\[default: NIR's equations]",
    ),
]
Spikes = Annotated[
    Count | None,
    typer.Option(
        help="Spikes that neurons of another tool's NIR file can send in a step; many is refused unless the "
        "weights exclude it. \\[default: one; many with --written-by sinabs or rockpool]",
    ),
]


def print_reading(where: str, records: Sequence[ReadAs], takes: Collection[str] = ()) -> None:
    """How the model ``where`` was read; ``takes`` names the options that can say it otherwise."""
    from stl_deploy.report import reading

    if not records:
        return
    header, rows = reading.table(records)
    lines = [["\n".join(filter(None, cell)) for cell in row] for row in rows]
    table(f"How {where} was read", header, lines)
    complain_diagnostics([asdict(note) for note in reading.note(records, where, takes)])
