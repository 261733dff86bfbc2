"""``stl-train``: train an STL-SNN and save it as a checkpoint."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from stl_deploy.arch import OFFICIAL_MNIST, Architecture
from stl_deploy.commands.common import (
    DEFAULT_DATA,
    Data,
    Debug,
    Force,
    Json,
    print_json,
    progress,
    refuse_existing,
    run,
    say,
    stderr,
)
from stl_deploy.errors import InputError, Problem


def train(
    out: Annotated[Path, typer.Option("-o", "--out", help="Checkpoint to write.", metavar="PT")],
    data: Data = DEFAULT_DATA,
    arch: Annotated[
        str,
        typer.Option(
            help="<n>C<k> convolution, BN, LIF, P<s> max pool to s x s, D<p> dropout, FC<n> linear, "
            "AvgPool<p> readout of p neurons a class. Default: the official MNIST net.",
            show_default=False,
        ),
    ] = OFFICIAL_MNIST,
    mode: Annotated[
        Literal["synergistic", "synaptic", "threshold"],
        typer.Option(help="What is learned: weights and thresholds, weights, or thresholds."),
    ] = "synergistic",
    encoding: Annotated[
        Literal["bernoulli", "graded"], typer.Option(help="Input: spikes, or pixels as they are.")
    ] = "bernoulli",
    timesteps: Annotated[int, typer.Option(min=1, help="Time steps T.")] = 4,
    tau: Annotated[float, typer.Option(min=0, max=0.999, help="Decay per step.")] = 0.5,
    threshold: Annotated[float, typer.Option(min=0, max=1e3, help="Initial threshold.")] = 1.0,
    epochs: Annotated[int, typer.Option(min=1)] = 24,
    batch: Annotated[int, typer.Option(min=2)] = 128,
    lr: Annotated[
        float, typer.Option(min=0, max=1, help="Initial learning rate (Adam, cosine).")
    ] = 2e-3,
    flip: Annotated[bool, typer.Option(help="Mirror half of the training images.")] = False,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    limit: Annotated[int | None, typer.Option(min=2, help="Use the first N images only.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    force: Force = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train an STL-SNN; an interrupted run continues with --resume from its last epoch.

    Example: stl-train --arch 24C5-BN-LIF-P14-FC100-LIF-AvgPool10 --epochs 4 -o model.pt
    """
    import numpy as np
    import torch

    from stl_deploy import idx
    from stl_deploy.checkpoint import save_checkpoint
    from stl_deploy.files import check_writable, sha256
    from stl_deploy.models.train import Settings, Trainer

    refuse_existing(out, force)
    snapshot = out.with_suffix(".resume.pt")
    check_writable(snapshot)
    check_writable(out)
    images, labels = idx.load(data, "train", limit)
    architecture = Architecture.parse(
        arch,
        (images.shape[1], images.shape[2], images.shape[3]),
        levels=255 if encoding == "graded" else 1,
        timesteps=timesteps,
        tau=tau,
    )
    if labels.max() >= architecture.classes:
        raise InputError(
            Problem(
                "--arch",
                f"{arch} tells {architecture.classes} classes apart, the labels go up to "
                f"{labels.max()}",
                "let FC<n>-LIF-AvgPool<p> end it, with n = classes * p",
            )
        )
    digest = sha256(idx.find(data, "train", "images"))
    settings = Settings(
        mode=mode,
        encoding=encoding,
        epochs=epochs,
        batch=batch,
        lr=lr,
        seed=seed,
        threshold=threshold,
        flip=flip,
        data=f"{len(images)} images of {digest}",
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    trainer = Trainer(architecture, settings, device)
    if resume and snapshot.exists():
        trainer.resume(snapshot)
    elif resume:
        stderr.print(f"{snapshot}: none there, so training begins at epoch 1", markup=False)
    x, y = torch.from_numpy(np.array(images)), torch.from_numpy(labels)
    started = time.monotonic()
    with _resumable(snapshot), progress(as_json) as bar:
        task = bar.add_task("epoch", total=None, note="")

        def show(done: int, total: int, loss: float) -> None:
            bar.update(task, completed=done, total=total, note=f"loss {loss:.4f}")

        for report in trainer.run(x, y, show):
            trainer.save(snapshot)
            bar.update(task, description=f"epoch {report.epoch + 2}/{epochs}")
            if not as_json:
                stderr.print(
                    f"epoch {report.epoch + 1:3}/{epochs}  loss {report.loss:.4f}  "
                    f"training accuracy {100 * report.accuracy:.2f} %  "
                    f"{time.monotonic() - started:.0f} s"
                )
    record = {
        "arch": arch,
        "settings": asdict(settings),
        "data": {"images": len(images), "sha256": digest},
        "torch": str(torch.__version__),
        "history": [asdict(e) for e in trainer.history],
    }
    save_checkpoint(trainer.model, out, record)
    snapshot.unlink(missing_ok=True)
    last = trainer.history[-1]
    if as_json:
        print_json({"out": str(out), **record})
    else:
        say(f"{out}: training accuracy {100 * last.accuracy:.2f} % (last epoch)")


@contextmanager
def _resumable(snapshot: Path) -> Iterator[None]:
    """An interruption says how to go on from the last finished epoch."""
    try:
        yield
    except KeyboardInterrupt:
        if snapshot.exists():
            stderr.print(f"the finished epochs are in {snapshot}; --resume continues from there")
        raise


def main() -> None:
    """Entry point."""
    run(train, "stl-train")
