"""Tables that a benchmark writes into a page of docs/, between two marks of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

DOCS = Path(__file__).resolve().parents[1] / "docs"
END = "<!-- end of table -->"


def write(
    page: str, mark: str, note: str, head: Sequence[str], rows: Sequence[Sequence[str]]
) -> None:
    """Put a table, with ``note`` above it, between ``<!-- table: mark -->`` and the next END of ``page``."""
    path, begin = DOCS / page, f"<!-- table: {mark} -->"
    text = path.read_text()
    start = text.index(begin)
    end = text.index(END, start)
    lines = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    path.write_text(text[:start] + "\n".join([begin, note, "", *lines, ""]) + text[end:])


def show(note: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """The same on the terminal."""
    table = Table(*head, title=note)
    for row in rows:
        table.add_row(*row)
    Console(width=160).print(table)
