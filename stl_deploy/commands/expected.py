"""What commands say of a recording that a reading was compared with (``--expect``)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stl_deploy.commands.common import say, table, warn

if TYPE_CHECKING:
    from stl_deploy.verify.recorded import Expected

Expect = Annotated[
    Path | None,
    typer.Option(
        "--expect",
        metavar="NPZ",
        help="Recording of the network in its own tool on this raster (spikes/NAME, outputs), which "
        "the model as read must equal, e.g. --expect recording.npz (docs/recordings.md).",
    ),
]


def print_expected(expected: Expected) -> None:
    """Every recorded population: entries, what differs, and where first."""
    rows = [
        (
            p.name,
            f"{p.entries:,}",
            f"{p.spikes:,}",
            f"{p.differing:,}",
            f"{p.tied:,}",
            f"{p.cascaded:,}",
            "-" if p.first is None else f"{p.first.sample}, {p.first.step}, {p.first.neuron}",
        )
        for p in expected.populations
    ]
    if rows:
        table(
            f"The model as read and {expected.where}, {expected.samples:,} samples; nothing may differ",
            (
                "population",
                "entries",
                "spikes",
                "differing",
                "ties",
                "cascaded",
                "first: sample, step, neuron",
            ),
            rows,
        )
    if (outputs := expected.outputs) is not None:
        say(
            f"outputs ({outputs.what}): {outputs.differing:,} of {outputs.entries:,} values differ from "
            f"{expected.where}"
        )
    if expected.missing:
        say(f"not recorded: {', '.join(expected.missing)}")
    if expected.silent:
        warn(
            f"{expected.where} has no spike of {', '.join(expected.silent)}, so that it proves "
            "nothing of them: record samples on which they spike"
        )
    if expected.tying:
        warn(
            f"many entries of {', '.join(expected.tying)} are ties and do not count, as where a tool spikes "
            "at v >= threshold, and NIR above it: see ties in docs/recordings.md"
        )


def itself_words(itself: Expected) -> str:
    """What came of running the user's own network."""
    ties = f"; {itself.tied:,} are ties and do not count" if itself.tied else ""
    return (
        f"the float NIR graph differs from {itself.where} in {itself.differing:,} of {itself.entries:,} "
        f"spikes; it must be 0{ties}"
    )
