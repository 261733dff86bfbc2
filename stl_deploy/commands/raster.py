"""``stl-raster``: images or events to a recorded spike raster."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from stl_deploy.commands.common import (
    Binning,
    Data,
    Dataset,
    Debug,
    Force,
    Json,
    Levels,
    Limit,
    Size,
    Sort,
    asked,
    data_folder,
    print_json,
    progress,
    refuse_options_of_the_other,
    run,
    say,
    warn_events,
)
from stl_deploy.data.catalogue import IMAGES
from stl_deploy.errors import InputError, Problem
from stl_deploy.files import check_writable, refuse_existing, sha256
from stl_deploy.ir.units import MAX_STEPS

if TYPE_CHECKING:
    from stl_deploy.formats.raster import Encoding, Raster

IMAGE_STEPS = 4


def raster(
    context: typer.Context,
    out: Annotated[Path, typer.Option("-o", "--out", help="Raster to write.", metavar="NPZ")],
    dataset: Dataset = "fashion-mnist",
    data: Data = None,
    split: Annotated[
        Literal["train", "test"], typer.Option(help="Which samples to take.")
    ] = "test",
    encoding: Annotated[
        Literal["bernoulli", "graded"],
        typer.Option(help="Images: spikes with P = pixel/255, or the pixels themselves."),
    ] = "bernoulli",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the Bernoulli draw.")] = 0,
    timesteps: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MAX_STEPS,
            help=f"Time steps T. Default: {IMAGE_STEPS} for images, else that of the dataset.",
            show_default=False,
        ),
    ] = None,
    held: Annotated[
        bool,
        typer.Option(
            "--held", help="Images, --encoding graded: one frame, which is read in every step."
        ),
    ] = False,
    size: Size = None,
    binning: Binning = None,
    levels: Levels = None,
    sort: Sort = False,
    limit: Limit = None,
    force: Force = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Encode images, or gather events, as a raster [N, T, *shape] with labels, the input of every
    other command.

    Example: stl-raster --split test --seed 0 --timesteps 4 -o test.npz

    Example: stl-raster --dataset nmnist --data NMNIST --split test -o test.npz
    """
    from stl_deploy.data.load import Wanted
    from stl_deploy.formats import raster as rasters

    refuse_options_of_the_other(dataset, asked(context), ("encoding", "seed", "held"))
    _check_held(held, encoding, timesteps)
    folder = data_folder(dataset, data)
    refuse_existing(out, replace=force)
    check_writable(out)
    if dataset in IMAGES:
        steps = 1 if held else timesteps or IMAGE_STEPS
        made, source = _images(folder, split, encoding, seed, steps, limit)
        made = replace(made, held=frozenset({rasters.ONLY}) if held else None)
        how = f"{encoding}, held" if held else f"{encoding}, seed {seed}"
    else:
        wanted = Wanted(timesteps, size, binning, levels or 1, limit, sort)
        made, source = _events(dataset, folder, split, wanted, as_json)
        how = f"frames by {source['binning']}"
    rasters.save(out, made, source, replace=force)
    rate = float((made.only(str(out)) != 0).mean())
    if as_json:
        print_json({"out": str(out), "shape": list(made.shape), "rate": rate, **source})
    else:
        what = "images" if dataset in IMAGES else "samples"
        say(
            f"{out}: {len(made.spikes)} {split} {what}, {made.shape[1]} steps, {how}, "
            f"{100 * rate:.1f} % of the entries are nonzero"
        )


def _check_held(held: bool, encoding: Encoding, timesteps: int | None) -> None:
    """Raise InputError for options that contradict --held, all at once."""
    problems = []
    if held and encoding != "graded":
        what = f"holds one frame, and --encoding {encoding} draws one for every step"
        problems.append(Problem("--held", what, "add --encoding graded"))
    if held and timesteps is not None:
        what = "has no effect with --held: the network says how often it reads the frame"
        problems.append(Problem("--timesteps", what, "omit it"))
    if problems:
        raise InputError(problems)


def _images(
    folder: Path, split: str, encoding: Encoding, seed: int, timesteps: int, limit: int | None
) -> tuple[Raster, dict[str, Any]]:
    """Images of IDX files, encoded."""
    from stl_deploy.formats import idx
    from stl_deploy.formats import raster as rasters

    which: idx.Split = "train" if split == "train" else "test"
    images, labels = idx.load(folder, which, limit)
    spikes = rasters.encode(images, timesteps, encoding, seed)
    source = {
        "encoding": encoding,
        "seed": seed,
        "split": split,
        "images": len(images),
        "sha256": {part: sha256(idx.find(folder, which, part)) for part in ("images", "labels")},
    }
    return rasters.Raster(spikes, labels), source


def _events(
    dataset: str, folder: Path, split: str, wanted: Any, quiet: bool
) -> tuple[Raster, dict[str, Any]]:
    """Events of a dataset, gathered into frames."""
    from stl_deploy.data.load import load

    with progress(quiet) as bar:
        task = bar.add_task("sample", total=None, note="")
        made, source = load(
            dataset,
            folder,
            "train" if split == "train" else "test",
            wanted,
            lambda done, total: bar.update(task, completed=done, total=total),
        )
    warn_events(source)
    return made, source


def main() -> None:
    """Entry point."""
    run(raster, "stl-raster")
