"""``stl-train``: train an STL-SNN and save it as a checkpoint."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from stl_deploy.commands.common import (
    Binning,
    CheckpointOut,
    Data,
    Dataset,
    Debug,
    Force,
    Json,
    Levels,
    Size,
    Sort,
    asked,
    chip_option,
    data_folder,
    find_chip,
    print_json,
    progress,
    refuse_options_of_the_other,
    run,
    say,
    stderr,
    warn,
    warn_events,
)
from stl_deploy.data.catalogue import EVENT_SETS, IMAGES
from stl_deploy.errors import InputError, LoweringError, Problem
from stl_deploy.files import check_distinct, check_writable, refuse_existing, sha256
from stl_deploy.ir.arch import OFFICIAL_MNIST, Architecture
from stl_deploy.ir.units import MAX_STEPS
from stl_deploy.models import memory

if TYPE_CHECKING:
    from torch import Tensor

    from stl_deploy.data.events import Split
    from stl_deploy.data.load import Wanted
    from stl_deploy.models.inputs import Inputs
    from stl_deploy.models.qat import QatNet
    from stl_deploy.models.train import Epoch

MAX_SEED = 2**63 - 1  # what PyTorch takes
DEFAULT_CHIP = "loihi2"  # of training on integers


def train(
    context: typer.Context,
    out: CheckpointOut,
    dataset: Dataset = "fashion-mnist",
    data: Data = None,
    raster: Annotated[
        Path | None,
        typer.Option(
            metavar="NPZ", help="Train on this raster of stl-raster instead; it gives T and levels."
        ),
    ] = None,
    size: Size = None,
    binning: Binning = None,
    levels: Levels = None,
    sort: Sort = False,
    arch: Annotated[
        str | None,
        typer.Option(
            help="<n>C<k> convolution, BN, LIF, P<s> max pool to s x s, D<p> dropout, FC<n> linear, "
            "<n>R<k> residual block, AvgPool<p> readout of p neurons per class; docs/training.md has all "
            "tokens. Or a FILE.json. Default: that of the dataset (docs/data.md), for images the official "
            "MNIST net.",
            show_default=False,
        ),
    ] = None,
    mode: Annotated[
        Literal["synergistic", "synaptic", "threshold"],
        typer.Option(help="What is learned: weights and thresholds, weights, or thresholds."),
    ] = "synergistic",
    encoding: Annotated[
        Literal["bernoulli", "graded"], typer.Option(help="Images: spikes, or pixels as they are.")
    ] = "bernoulli",
    timesteps: Annotated[
        int | None,
        typer.Option(
            min=1, max=MAX_STEPS, help="Time steps T. [default: 4, events: that of the dataset]"
        ),
    ] = None,
    tau: Annotated[
        float | None,
        typer.Option(
            min=0, max=0.999, help="Decay per step. [default: 0.5, events: that of the dataset]"
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0, max=1e3, help="Initial threshold. [default: 1, events: that of the dataset]"
        ),
    ] = None,
    qat: Annotated[
        bool,
        typer.Option("--qat", help="Fine-tune --init on integers, which are exported unchanged."),
    ] = False,
    init: Annotated[
        Path | None,
        typer.Option(
            metavar="MODEL", help="Checkpoint that --qat starts from; it gives the architecture."
        ),
    ] = None,
    weight_bits: Annotated[
        int | None, typer.Option(min=2, max=8, help="Bits of a weight, with --qat. [default: 8]")
    ] = None,
    chip: Annotated[str | None, chip_option("loihi2, with --qat")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="[default: 24, with --qat 4]")] = None,
    batch: Annotated[
        int | None, typer.Option(min=2, help="[default: 128, events: that of the dataset]")
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Initial rate (Adam, cosine). [default: 2e-3, with --qat 5e-4, events: that of the "
            "dataset]",
        ),
    ] = None,
    flip: Annotated[bool, typer.Option(help="Mirror half of the training images.")] = False,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED)] = 0,
    limit: Annotated[int | None, typer.Option(min=2, help="Use the first N samples only.")] = None,
    evaluate: Annotated[
        bool,
        typer.Option("--eval", help="Measure accuracy on the test split after every epoch."),
    ] = False,
    eval_limit: Annotated[
        int | None, typer.Option(min=1, help="With --eval: use the first N test samples only.")
    ] = None,
    device: Annotated[
        Literal["auto", "cpu", "cuda"],
        typer.Option(help="Where to train; auto uses a GPU if there is one."),
    ] = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    force: Force = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train an STL-SNN; an interrupted run continues with --resume from its last epoch.

    Example: stl-train --arch 24C5-BN-LIF-P14-FC100-LIF-AvgPool10 --epochs 4 -o model.pt

    Example: stl-train --arch 16C3-BN-LIF-16R3-32R3S2-A2-FC10-LI-Mean --epochs 4 -o residual.pt

    Example: stl-train --dataset nmnist --data NMNIST --epochs 30 -o model.pt

    Example: stl-train --qat --init model.pt --weight-bits 4 -o model4.pt

    Example: torchrun --standalone --nproc-per-node 2 --no-python stl-train -o model.pt
    """
    import numpy as np
    import torch

    from stl_deploy.chips import facts
    from stl_deploy.data.load import Wanted
    from stl_deploy.formats import arch_file
    from stl_deploy.formats.checkpoint import save_checkpoint
    from stl_deploy.models import parallel
    from stl_deploy.models.train import Settings, Trainer

    _check_usage(context, qat, init)
    _check_data_usage(dataset, raster, asked(context))
    refuse_existing(out, replace=force)
    snapshot = out.with_suffix(".resume.pt")
    check_writable(out)
    check_writable(snapshot)
    check_distinct([init, raster], [out, snapshot])
    wanted = Wanted(timesteps, size, binning, levels or 1, limit, sort)
    given = _inputs(dataset, data, raster, encoding, wanted, as_json)
    defaults = EVENT_SETS[given.dataset] if given.dataset else None
    model = None
    on = None if init is None else find_chip(chip or DEFAULT_CHIP)
    if init is not None:
        model = _integers(init, weight_bits or 8, chip or DEFAULT_CHIP, given)
        architecture = model.arch
        if given.encoding != "recorded":
            encoding = "graded" if architecture.input.levels > 1 else "bernoulli"
    else:
        arch = arch or (defaults.network(given.shape) if defaults else OFFICIAL_MNIST)
        if arch.endswith(arch_file.SUFFIX):
            architecture = _from_file(Path(arch), given, asked(context))
        else:
            architecture = Architecture.parse(
                arch,
                given.shape,
                levels=given.levels,
                timesteps=given.timesteps or timesteps or 4,
                tau=tau if tau is not None else defaults.tau if defaults else 0.5,
            )
    if flip and len(given.shape) != 3:
        raise InputError(
            Problem("--flip", f"inputs {given.shape} have no left and right", "omit it")
        )
    labels = given.labels
    if labels.max() >= architecture.classes:
        raise InputError(
            Problem(
                "--arch" if init is None else str(init),
                f"distinguishes {architecture.classes} classes, but labels go up to {labels.max()}",
                "end the network with FC<n>-LIF-AvgPool<p>, where n = classes * p",
            )
        )
    usual = defaults.lr if defaults else 2e-3
    if architecture.classes >= 2 * (labels.max() + 1):
        warn(
            f"the network distinguishes {architecture.classes} classes, but labels go up to "
            f"{labels.max()}: end --arch with AvgPool<p> if p neurons vote for each class"
        )
    held_out = None
    if evaluate:
        wanted = replace(wanted, limit=eval_limit)
        tests = _inputs(dataset, data, None, encoding, wanted, as_json, "test")
        held_out = _held_out(tests, architecture)
    settings = Settings(
        mode=mode,
        encoding="recorded" if given.encoding == "recorded" else encoding,
        epochs=epochs or (4 if qat else 24),
        batch=batch or (defaults.batch if defaults else 128),
        lr=lr if lr is not None else 5e-4 if qat else usual,
        seed=seed,
        threshold=threshold if threshold is not None else defaults.threshold if defaults else 1.0,
        flip=flip,
        data=given.digest,
        weight_bits=None if init is None else weight_bits or 8,
        chip="" if on is None else facts.identity(on),
        start="" if init is None else sha256(init),
    )
    where = parallel.device_of(device)
    parallel.ready()
    parallel.check_same("the run", (asdict(settings), architecture.to_dict(), torch.__version__))
    fact = None if on is None else on.limits.thresholds_per_core
    if on is not None and fact is not None:
        warn(
            f"a core of {on.name} holds {fact.value} distinct thresholds, and training on integers "
            "learns one per neuron: the result can be simulated, but loaded onto that chip only if no "
            "core needs more"
        )
    memory.keep()
    trainer = Trainer(architecture, settings, where, model)
    if resume and parallel.from_first(snapshot.exists):
        trainer.resume(snapshot)
    elif resume:
        stderr.print(f"{snapshot} does not exist: training begins at epoch 1", markup=False)
    x, y = torch.from_numpy(np.require(given.x, requirements="W")), torch.from_numpy(labels)
    started = time.monotonic()
    with _resumable(snapshot), progress(as_json) as bar:
        task = bar.add_task("epoch", total=None, note="")

        def show(done: int, total: int, loss: float) -> None:
            bar.update(task, completed=done, total=total, note=f"loss {loss:.4f}")

        for report in trainer.run(x, y, show, held_out):
            trainer.save(snapshot)
            bar.update(task, description=f"epoch {report.epoch + 2}/{settings.epochs}")
            if not as_json:
                stderr.print(_line(report, settings.epochs, time.monotonic() - started))
    record = {
        **({"arch": arch} if init is None else {"init": init.name}),
        "settings": asdict(settings),
        "data": given.origin,
        "torch": str(torch.__version__),
        "device": where.split(":")[0],
        "processes": parallel.world(),
        "history": [asdict(e) for e in trainer.history],
    }
    parallel.from_first(lambda: save_checkpoint(trainer.trained(), out, record, replace=force))
    parallel.from_first(lambda: snapshot.unlink(missing_ok=True))
    last = trainer.history[-1]
    if as_json:
        print_json({"out": str(out), **record})
    else:
        test = last.test_accuracy
        tested = "" if test is None else f", test accuracy {100 * test:.2f} %"
        say(f"{out}: training accuracy {100 * last.accuracy:.2f} %{tested} (last epoch)")


def _from_file(path: Path, given: Inputs, asked: Collection[str]) -> Architecture:
    """The network of ``path``, for the inputs that are given."""
    from stl_deploy.formats import arch_file

    read = arch_file.read(path)
    problems = [
        Problem(option, f"comes from {path}", "omit it, or change the file")
        for option in ("--tau", "--timesteps")
        if option.removeprefix("--") in asked
    ]
    sizes = {
        "input.shape": (read.input.shape, given.shape),
        "input.levels": (read.input.levels, given.levels),
        "timesteps": (read.timesteps, given.timesteps or read.timesteps),
    }
    problems += [
        Problem(f"{path}.{name}", f"is {says}, the data has {has}", f"write {has}")
        for name, (says, has) in sizes.items()
        if says != has
    ]
    if read.quantized is not None or read.members is not None:
        what = "describes integers, or several networks"
        remedy = "train one in floating point first (--qat and stl-join make those)"
        problems.append(Problem(str(path), what, remedy))
    if problems:
        raise InputError(problems)
    return read


def _line(report: Epoch, epochs: int, seconds: float) -> str:
    """What is printed after an epoch."""
    line = (
        f"epoch {report.epoch + 1:3}/{epochs}  loss {report.loss:.4f}  "
        f"training accuracy {100 * report.accuracy:.2f} %  "
    )
    if report.test_accuracy is not None and report.test_rates is not None:
        rates = ", ".join(f"{name} {100 * r:.2f} %" for name, r in report.test_rates.items())
        line += f"test accuracy {100 * report.test_accuracy:.2f} %  firing {rates}  "
    return f"{line}{seconds:.0f} s"


def _held_out(given: Inputs, arch: Architecture) -> tuple[Tensor, Tensor]:
    """Test inputs and labels, which ``arch`` can be measured on."""
    import numpy as np
    import torch

    if given.shape != arch.input.shape or given.labels.max() >= arch.classes:
        raise InputError(
            Problem(
                "--data",
                f"test inputs {given.shape} with labels up to {given.labels.max()} are not for a "
                f"network of input {arch.input.shape} and {arch.classes} classes",
                "omit --eval, or give a --data whose splits match",
            )
        )
    return torch.from_numpy(np.require(given.x, requirements="W")), torch.from_numpy(given.labels)


GIVEN = {"arch": "--arch", "tau": "--tau", "timesteps": "--timesteps", "encoding": "--encoding"}
GIVEN |= {"threshold": "--threshold"}


def _check_usage(context: typer.Context, qat: bool, init: Path | None) -> None:
    """Raise InputError for options that do not go together."""
    given = asked(context)
    problems = []
    if qat and init is None:
        problems.append(
            Problem("--qat", "starts from a trained network", "name its checkpoint with --init")
        )
    if qat:
        problems += [
            Problem(GIVEN[name], "comes from the checkpoint of --init", "omit it")
            for name in given
            if name in GIVEN
        ]
    else:
        problems += [
            Problem(option, "has no effect without --qat", "give --qat, or omit it")
            for name, option in (
                ("init", "--init"),
                ("weight_bits", "--weight-bits"),
                ("chip", "--chip"),
            )
            if name in given
        ]
    if "eval_limit" in given and "evaluate" not in given:
        problems.append(
            Problem("--eval-limit", "has no effect without --eval", "give --eval, or omit it")
        )
    if problems:
        raise InputError(problems)


def _check_data_usage(dataset: str, raster: Path | None, given: Collection[str]) -> None:
    """Raise InputError for options that say what to train on and do not go together."""
    if raster is None:
        refuse_options_of_the_other(dataset, given)
        return
    foreign = ("dataset", "data", "size", "binning", "levels", "sort", "encoding", "timesteps")
    problems = [
        Problem(f"--{name}", "comes from the raster of --raster", "omit it")
        for name in foreign
        if name in given
    ]
    if "evaluate" in given:
        problems.append(
            Problem("--eval", "has no test split with --raster", "use hw_sim on a test raster")
        )
    if problems:
        raise InputError(problems)


def _inputs(
    dataset: str,
    data: Path | None,
    raster: Path | None,
    encoding: Literal["bernoulli", "graded"],
    wanted: Wanted,
    quiet: bool,
    split: Split = "train",
) -> Inputs:
    """What is trained on, or tested with."""
    from stl_deploy.models import inputs

    if raster is not None:
        return inputs.recorded(raster, wanted.limit)
    folder = data_folder(dataset, data)
    if dataset in IMAGES:
        return inputs.images(folder, encoding, wanted.limit, split)
    with progress(quiet) as bar:
        task = bar.add_task("sample", total=None, note="")
        given = inputs.events(
            dataset,
            folder,
            wanted,
            lambda done, total: bar.update(task, completed=done, total=total),
            split,
        )
    warn_events(given.origin)
    return given


def _integers(init: Path, bits: int, chip: str, given: Inputs) -> QatNet:
    """What training on integers begins with."""
    from stl_deploy.importers import stl
    from stl_deploy.models import qat

    checkpoint = stl.read(init)
    if checkpoint.arch.quantized is not None:
        raise InputError(
            Problem(str(init), "is already trained on integers", "name the float checkpoint")
        )
    arch = checkpoint.arch
    reads, has = f"{arch.input.shape}", f"{given.shape}"
    if given.encoding == "recorded":
        reads += f" in {arch.timesteps} steps up to {arch.input.levels}"
        has += f" in {given.timesteps} steps up to {given.levels}"
    if reads != has:
        what = f"reads {reads}, the images are {has}"
        raise InputError(Problem(str(init), what, "give the --data it was trained on"))
    try:
        return qat.from_checkpoint(checkpoint, bits, chip)
    except LoweringError as error:
        raise LoweringError(
            [Problem(f"{init}: {p.where}", p.what, p.remedy) for p in error.problems]
        ) from None


@contextmanager
def _resumable(snapshot: Path) -> Iterator[None]:
    """An interruption says how to go on from the last finished epoch."""
    try:
        yield
    except KeyboardInterrupt:
        if snapshot.exists():
            stderr.print(f"the finished epochs are in {snapshot}; resume with --resume")
        raise


@functools.wraps(train)
def _in_every_process(**options: Any) -> None:
    from stl_deploy.models import parallel

    with parallel.joined(options["device"]):
        train(**options)


def main() -> None:
    """Entry point."""
    if os.environ.get("RANK", "0") != "0":
        from stl_deploy.models import parallel

        parallel.only_first_speaks()
    run(_in_every_process, "stl-train")


if __name__ == "__main__":
    main()
