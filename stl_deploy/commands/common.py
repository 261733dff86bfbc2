"""What all commands share: errors without tracebacks, exit codes, tables, progress bars."""

from __future__ import annotations

import functools
import itertools
import json
import math
import signal
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from stl_deploy import chips
from stl_deploy.commands import streams
from stl_deploy.data.catalogue import IMAGES, Name
from stl_deploy.errors import InputError, Problem, StlError
from stl_deploy.ir.readouts import Rule
from stl_deploy.version import __version__

if TYPE_CHECKING:
    from stl_deploy.chips.facts import Chip
    from stl_deploy.verify.against_float import ParityReport

MAX_SAMPLE = 1 << 24  # values of a sample
SHAPES = "1,784 for [batch, ...], or 25,1,784 where forward loops over x[t]"
PLACES = 8  # that a message names
INTERRUPTED = 130  # as shells have it: 128 + SIGINT
EPILOG = (
    "Exit codes: 0 done, 1 the model cannot be lowered as asked or parity failed, 2 bad usage or bad "
    "input. "
    "--version shows the version."
)
DEFAULT_DATA = Path("/usr/share/datasets/fashion-mnist")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing output.")]
Dt = Annotated[
    float | None,
    typer.Option(
        metavar="SECONDS",
        help="Time step of another tool's NIR file, e.g. --dt 1e-3. \\[default: 1e-4]",
    ),
]
ModelClass = Annotated[
    str | None,
    typer.Option(
        metavar="MODULE:NAME",
        help="Your own class or function that makes the PyTorch model, imported and run; MODEL is "
        "its state_dict, e.g. --model-class mynets:Net.",
    ),
]
SampleShape = Annotated[
    str | None,
    typer.Option(
        metavar="N,N,...",
        help="With --model-class: shape of a tensor that forward takes, batch (and time) included, e.g. "
        "--sample-shape 1,784.",
    ),
]
Normalized = Annotated[
    str | None,
    typer.Option(
        "--normalize",
        metavar="MEAN,STD",
        help="The network was trained on (x/levels - MEAN)/STD: two numbers, or the means of all channels "
        "and then their standard deviations.",
    ),
]
Readout = Annotated[
    Rule | None,
    typer.Option(
        help="How another tool's NIR file is read out: last, mean or max of v over time; votes of "
        "spikes, or the first spike. \\[default: votes; last v of neurons without a threshold]",
    ),
]
_RASTER = typer.Option("--input", metavar="NPZ", help="Spike raster, as stl-raster writes it.")
Input = Annotated[Path, _RASTER]
InputOrTable = Annotated[Path | None, _RASTER]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Use the first N samples only.")]
Tau = Annotated[
    float | None,
    typer.Option(
        "--tau",
        help="What a step leaves of v in an official state_dict. \\[default: that of the official code]",
    ),
]
Threshold = Annotated[
    float | None,
    typer.Option(
        "--threshold",
        metavar="V",
        help="Thresholds of an official state_dict that does not hold them. \\[default: 1]",
    ),
]
InputShape = Annotated[
    str | None,
    typer.Option(
        "--input-shape",
        metavar="C,H,W",
        help="Shape of the images that an official state_dict reads. \\[default: that of --eval or --calib, "
        "else that of MNIST or CIFAR]",
    ),
]
CheckpointOut = Annotated[
    Path, typer.Option("-o", "--out", metavar="PT", help="Checkpoint to write.")
]
Dask = Annotated[
    str | None,
    typer.Option(
        "--dask",
        metavar="ADDRESS",
        help="Distribute the samples over the Dask cluster with this scheduler, e.g. "
        "--dask tcp://10.0.0.1:8786 (needs stl-deploy\\[dask]).",
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(
        "--data",
        help="Folder with the files of --dataset. Fashion-MNIST comes with Debian (apt-get install "
        f"dataset-fashion-mnist). \\[default: {DEFAULT_DATA}]",
        metavar="DIR",
        show_default=False,
    ),
]
Dataset = Annotated[
    Name,
    typer.Option(
        "--dataset", help="Whose files --data holds (docs/data.md): IDX images, or events."
    ),
]
Size = Annotated[
    int | None,
    typer.Option(
        "--size", min=1, help="Events: scale frames down to N x N, or N channels.", metavar="N"
    ),
]
Binning = Annotated[
    Literal["count", "time", "window"] | None,
    typer.Option(
        help="Events: frames of equally many events, of equal duration, or of a fixed window of "
        "time (shd). Default: that of the dataset.",
        show_default=False,
    ),
]
Levels = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=255,
        help="Events: cut counts off at N; 1 gives spikes, more a graded input. \\[default: 1]",
        metavar="N",
        show_default=False,
    ),
]

Sort = Annotated[
    bool,
    typer.Option(
        "--sort",
        help="Events: sort them by time, whatever their order in the file. Those at most 1 ms late always "
        "are.",
    ),
]

# Lines are wrapped at words on a terminal, and never in a pipe.
stdout = Console(highlight=False, soft_wrap=not streams.is_terminal(sys.stdout))
stderr = Console(stderr=True, highlight=False, soft_wrap=not streams.is_terminal(sys.stderr))


def chip_option(default: str) -> Any:
    """The option --chip of a command: a chip of ours by name, or any chip file."""
    return typer.Option(
        "--chip",
        metavar="NAME|TOML",
        help=f"Whose registers and limits apply: {', '.join(chips.names())}, or the path of your own chip "
        f"file (docs/chips.md). Default: {default}.",
        show_default=False,
    )


def find_chip(given: str) -> Chip:
    """The chip of --chip. Raises InputError under that name where there is none."""
    from stl_deploy.chips import facts

    try:
        return facts.find(given)
    except InputError as error:
        raise InputError(
            replace(p, where="--chip") if p.where == "chip" else p for p in error.problems
        ) from None


def run(command: Callable[..., None], name: str) -> NoReturn:
    """Run one command line: 0 done, 1 cannot be lowered, 2 bad usage or input; no tracebacks."""
    app = typer.Typer(
        add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown"
    )

    @functools.wraps(command)
    def interruptible(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except KeyboardInterrupt:
            stderr.print(f"{name}: interrupted; nothing half-written was left behind")
            raise typer.Exit(INTERRUPTED) from None

    app.command(epilog=EPILOG)(interruptible)
    streams.prepare()
    # A polite kill runs the same clean-up as Ctrl-C.
    signal.signal(signal.SIGTERM, _interrupt)
    code = _code(app, name)
    if (failed := streams.failure()) is not None:
        stderr.print(
            f"{name}: stdout: cannot be written: {failed.strerror or failed}", markup=False
        )
        code = code or InputError.exit_code
    sys.exit(code)


def _code(app: typer.Typer, name: str) -> int:
    """The exit code of a command line that is run; what goes wrong is said on stderr."""
    debug = "--debug" in sys.argv
    if sys.argv[1:] == ["--version"]:
        print(f"{name} (stl-deploy) {__version__}")
        return 0
    try:
        app(prog_name=name)
    except SystemExit as stop:  # typer's end, in any case
        return int(stop.code or 0)
    except StlError as error:
        if debug:
            raise
        complain(name, error)
        return error.exit_code
    except MemoryError:
        stderr.print(f"{name}: out of memory; use fewer samples (--limit) or a larger machine")
        return 1
    except OSError as error:
        if debug:
            raise
        stderr.print(f"{name}: {error.filename or 'file system'}: {error.strerror or error}")
        return 2
    except Exception as error:
        if debug:
            raise
        stderr.print(
            f"{name}: internal error: {type(error).__name__}: {escape(str(error))}\n"
            "This is a bug in stl-deploy. Please report it with the output of the same command "
            "and --debug.",
            soft_wrap=True,
        )
        return 1
    return 0


def _interrupt(_signal: int, _frame: object) -> None:
    raise KeyboardInterrupt


def shape(
    text: str | None, option: str = "--sample-shape", example: str = SHAPES
) -> tuple[int, ...] | None:
    """The numbers of an option such as 1,28,28. Raises InputError for anything else."""
    if text is None:
        return None
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError:
        found = ()
    what = ""
    if not found or min(found) < 1:
        what = f"{text!r} is not a list of positive integers separated by commas"
    elif len(found) == 1:
        what = f"{text!r} has one axis; more are needed"
    elif math.prod(found) > MAX_SAMPLE:
        what = f"{text!r} has {math.prod(found):,} values; the limit is {MAX_SAMPLE:,}"
    if what:
        raise InputError(Problem(option, what, f"e.g. {example}"))
    return found


def complain(name: str, error: StlError) -> None:
    """Print every problem of ``error`` on stderr, one per line, with the remedy below it."""
    count = len(set(error.problems))
    stderr.print(f"[bold red]{name}: {count} problem{'s' if count != 1 else ''}[/]")
    _list(
        _together(error.problems), lambda row: f"  [bold]{escape(row.where)}[/]: {escape(row.what)}"
    )


def _together(rows: Iterable[Problem]) -> list[tuple[Problem, str]]:
    """``rows``, those that say the same of several places once, and the other places as a list."""
    places: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        places.setdefault((row.what, row.remedy), []).append(row.where)
    made = []
    for (what, remedy), names in places.items():
        first, *others = dict.fromkeys(names)
        file = first.rpartition(": ")[0]
        if all(name.startswith(f"{file}: ") for name in others):
            others = [name.removeprefix(f"{file}: ") for name in others]
        more = f" and {len(others) - PLACES} more" if len(others) > PLACES else ""
        made.append((Problem(first, what, remedy), ", ".join(others[:PLACES]) + more))
    return made


def _list(rows: Sequence[tuple[Problem, str]], line: Callable[[Problem], str]) -> None:
    """Print rows on stderr, and a remedy that several share once, below the last of them."""
    for remedy, group in itertools.groupby(rows, lambda row: row[0].remedy):
        shown = list(group)
        for row, others in shown:
            stderr.print(line(row))
            if others:
                stderr.print(f"      also: {escape(others)}")
        if remedy:
            these = f" (for these {len(shown)})" if len(shown) > 1 else ""
            stderr.print(f"      remedy{these}: {escape(remedy)}")


def say(text: str) -> None:
    """One line on stdout."""
    stdout.print(text, markup=False)


def warn(text: str) -> None:
    """One line on stderr."""
    stderr.print(f"[yellow]warning[/] {escape(text)}")


def warn_overflows(overflows: Mapping[str, int]) -> None:
    """Say on stderr which populations left their registers, and how often."""
    if not overflows:
        return
    where = ", ".join(f"{name} {n:,}" for name, n in overflows.items())
    warn(
        f"registers overflowed ({where} neuron steps): these results differ from the float "
        "model by more than rounding; export with --overflow proven or with --calib"
    )


def warn_events(origin: Mapping[str, Any]) -> None:
    """Say on stderr what was done to the events of a dataset, by the counts in the raster's ``origin``."""
    for key, what in {
        "late": "events come after the window and are left out",
        "early": "events come before the window and are left out",
        "reordered": "events stood behind a later one in their file; they were sorted by time",
    }.items():
        if origin.get(key):
            warn(f"{origin[key]:,} of {origin['events']:,} {what}")
    if wrapped := origin.get("wrapped"):
        warn(f"clocks wrapped around {wrapped:,} times; times go on there")
    if empty := origin.get("empty"):
        warn(f"{empty:,} of {origin['samples']:,} samples have no events; their frames are zeros")


def percent(fraction: float | None) -> str:
    """A fraction as a percentage, fine enough for small mismatches; only zero is 0, only one 100.

    None, what was not measured, is a dash.
    """
    if fraction is None:
        return "-"
    if 0 < fraction < 5e-7:
        return "< 0.0001 %"
    if 1 - 5e-7 < fraction < 1:
        return "> 99.9999 %"
    return "0" if fraction == 0 else f"{100 * fraction:.4f} %"


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on stdout: first column left, the others right; never narrower than its content."""
    grid = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1))
    for i, name in enumerate(header):
        grid.add_column(name, justify="left" if i == 0 else "right", no_wrap=True)
    for row in rows:
        grid.add_row(*row)
    # Rich would cut cells to the terminal's width, which in a pipe it takes for 80 columns.
    needed = Measurement.get(stdout, stdout.options.update(max_width=1000), grid).maximum
    say(title)
    Console(highlight=False, width=max(needed, stdout.width)).print(grid, crop=False)
    stdout.print()


def print_parity(parity: ParityReport) -> None:
    """Mismatch and certificates of every population, accuracies, agreement, first divergence."""
    own = parity.nir_differing is not None  # else the graph that was read is all there is
    reference = "the float64 model" if own else "the model as read, in float64"
    table(
        f"Spike mismatch against {reference}, {parity.samples:,} samples",
        ("population", "integer", "forced", "certified", "of spiking", "float32", "float NIR"),
        [
            (
                layer.name,
                percent(layer.mismatch),
                percent(layer.mismatch_forced),
                percent(layer.certified),
                percent(layer.certified_spiking),
                percent(layer.float32_mismatch),
                percent(layer.nir_mismatch),
            )
            for layer in parity.layers
        ],
    )
    if parity.accuracy_float is not None and parity.accuracy_lowered is not None:
        say(
            f"accuracy: float {100 * parity.accuracy_float:.2f} %, "
            f"integer {100 * parity.accuracy_lowered:.2f} %"
        )
    say(f"same prediction: {100 * parity.prediction_agreement:.2f} % of the samples")
    if (v := parity.voltages) is not None:
        say(
            f"voltages of {v.population}, which the readout reads: largest error {v.largest_error:.4g}, mean "
            f"{v.mean_error:.4g}; the largest float voltage is {v.largest:.4g}"
        )
    for row, others in _together(Problem(n, why) for n, why in parity.not_certified.items()):
        say(f"not certified: {row.where}{', ' if others else ''}{others}: {row.what}")
    say("")
    if parity.first_divergence is None:
        say("No spike differs.")
    else:
        say(parity.first_divergence.text)


def complain_diagnostics(diagnostics: Sequence[Mapping[str, str]]) -> None:
    """Print what the user should know, on stderr, each with its remedy."""
    rows = _together(Problem(d["where"], d["what"], d["remedy"]) for d in diagnostics)
    _list(rows, lambda row: f"[yellow]note[/] {escape(row.where)}: {escape(row.what)}")


def print_json(data: Any) -> None:
    """One JSON object on stdout."""
    sys.stdout.write(json.dumps(data, allow_nan=False) + "\n")


def asked(context: typer.Context) -> list[str]:
    """The parameters that were given on the command line, in the order of the help."""
    # By name: typer brings a click of its own, or not.
    sources = {name: context.get_parameter_source(name) for name in context.params}
    given = {name for name, source in sources.items() if source and source.name != "DEFAULT"}
    return [parameter.name for parameter in context.command.params if parameter.name in given]


def data_folder(dataset: str, data: Path | None) -> Path:
    """The folder of --data. Raises InputError where it must be given."""
    if data is None and dataset != "fashion-mnist":
        raise InputError(
            Problem(
                "--data", f"is required with --dataset {dataset}", "name the folder of its files"
            )
        )
    return data or DEFAULT_DATA


def refuse_options_of_the_other(
    dataset: str, given: Collection[str], of_images: Collection[str] = ("encoding",)
) -> None:
    """Raise InputError for options that images have and events lack, or the other way round."""
    foreign = {"size", "binning", "levels", "sort"} if dataset in IMAGES else set(of_images)
    remedies = {"encoding": "omit it; --levels gives graded input"}
    problems = [
        Problem(
            f"--{name}",
            f"does not go with --dataset {dataset}",
            remedies.get(name, "omit it"),
        )
        for name in sorted(foreign.intersection(given))
    ]
    if problems:
        raise InputError(problems)


@contextmanager
def progress(quiet: bool = False) -> Iterator[Progress]:
    """A progress bar on a terminal's stderr, nothing in a pipe."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=stderr,
        disable=quiet or not stderr.is_terminal,
        transient=True,
    ) as bar:
        yield bar
