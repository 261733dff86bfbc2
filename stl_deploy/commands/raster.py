"""``stl-raster``: images to a recorded spike raster."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from stl_deploy.commands.common import (
    DEFAULT_DATA,
    Data,
    Debug,
    Force,
    Json,
    print_json,
    refuse_existing,
    run,
    say,
)


def raster(
    out: Annotated[Path, typer.Option("-o", "--out", help="Raster to write.", metavar="NPZ")],
    data: Data = DEFAULT_DATA,
    split: Annotated[Literal["train", "test"], typer.Option(help="Which images.")] = "test",
    encoding: Annotated[
        Literal["bernoulli", "graded"],
        typer.Option(help="Spikes with P = pixel/255, or the pixels themselves."),
    ] = "bernoulli",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the Bernoulli draw.")] = 0,
    timesteps: Annotated[int, typer.Option(min=1, max=4096, help="Time steps T.")] = 4,
    limit: Annotated[int | None, typer.Option(min=1, help="First N images only.")] = None,
    force: Force = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Encode images as a raster [N, T, 1, H, W] with labels, the input of every other command.

    Example: stl-raster --split test --seed 0 --timesteps 4 -o test.npz
    """
    from stl_deploy import idx
    from stl_deploy import raster as rasters
    from stl_deploy.files import check_writable, sha256

    refuse_existing(out, force)
    check_writable(out)
    images, labels = idx.load(data, split, limit)
    spikes = rasters.encode(images, timesteps, encoding, seed)
    source = {
        "encoding": encoding,
        "seed": seed,
        "split": split,
        "images": len(images),
        "sha256": {part: sha256(idx.find(data, split, part)) for part in ("images", "labels")},
    }
    rasters.save(out, rasters.Raster(spikes, labels), source)
    rate = float((spikes > 0).mean())
    if as_json:
        print_json({"out": str(out), "shape": list(spikes.shape), "rate": rate, **source})
    else:
        say(
            f"{out}: {len(spikes)} {split} images, {timesteps} steps, {encoding}, seed {seed}, "
            f"{100 * rate:.1f} % of the entries are not zero"
        )


def main() -> None:
    """Entry point."""
    run(raster, "stl-raster")
