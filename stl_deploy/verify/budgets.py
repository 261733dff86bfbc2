"""What parity may cost: the table ``[tool.stl-deploy.parity]`` of a pyproject.toml, and its verdict.

The table also names the files, so that neither ``stl-parity`` nor the pytest fixture needs arguments:

    [tool.stl-deploy.parity]
    model = "model.pt"                # paths are relative to the file that holds the table
    lowered = "out/model.nir"
    input = "test.npz"
    max-mismatch = 0.02
    min-agreement = 0.97

    [tool.stl-deploy.parity.layers.lif1]
    max-mismatch = 0.002
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stl_deploy.errors import InputError, Problem
from stl_deploy.files import check_readable

if TYPE_CHECKING:
    from stl_deploy.verify.against_float import LayerParity, ParityReport

TABLE = "tool.stl-deploy.parity"
MAX_BYTES = 16 << 20  # of a pyproject.toml
Fraction = Annotated[
    float, Field(ge=0, le=1, allow_inf_nan=False, description="a fraction, 0 to 1")
]
Text = Annotated[str, Field(min_length=1, description="a text that is not empty")]


def dashed(name: str) -> str:
    """A name as the table and the command line have it."""
    return name.replace("_", "-")


class LayerBudgets(BaseModel):
    """Budgets of one population, or of every one; None sets no limit."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, alias_generator=dashed)
    max_mismatch: Fraction | None = None
    max_mismatch_forced: Fraction | None = None
    min_certified: Fraction | None = None
    min_certified_spiking: Fraction | None = None


class Table(LayerBudgets):
    """The whole table. Names in the file are written with dashes."""

    max_accuracy_drop: (
        Annotated[
            float,
            Field(ge=0, le=100, allow_inf_nan=False, description="percentage points, 0 to 100"),
        ]
        | None
    ) = None
    min_agreement: Fraction | None = None
    model: Text | None = None
    lowered: Text | None = None
    input: Text | None = None
    backend: str | list[str] | None = Field(
        default=None, description='a text such as "hw_sim,lava", or a list of names'
    )
    limit: Annotated[int, Field(ge=1, description="a whole number from 1 on")] | None = None
    tau: (
        Annotated[
            float, Field(ge=0, lt=1, allow_inf_nan=False, description="a number, 0 <= tau < 1")
        ]
        | None
    ) = None
    threshold: (
        Annotated[float, Field(gt=0, allow_inf_nan=False, description="a number above 0")] | None
    ) = None
    dt: (
        Annotated[float, Field(gt=0, allow_inf_nan=False, description="seconds, above 0")] | None
    ) = None
    reset: Literal["zero", "subtract"] | None = None
    written_by: Literal["norse", "rockpool", "sinabs"] | None = None
    spikes: Literal["one", "many"] | None = None
    expect: Text | None = None
    model_class: Text | None = None
    normalize: Text | None = None
    sample_shape: list[Annotated[int, Field(ge=1)]] | None = Field(
        default=None, description="whole numbers from 1 on"
    )
    timeout: (
        Annotated[float, Field(ge=1, allow_inf_nan=False, description="seconds, 1 or more")] | None
    ) = None
    dask: Text | None = None
    layers: dict[str, LayerBudgets] = Field(
        default_factory=dict, description="a table for each population"
    )


OF_A_LAYER = tuple(LayerBudgets.model_fields)
BUDGETS = (*OF_A_LAYER, "max_accuracy_drop", "min_agreement")
# What of a LayerParity each of them is about.
MEASURED = {
    "max_mismatch": "mismatch",
    "max_mismatch_forced": "mismatch_forced",
    "min_certified": "certified",
    "min_certified_spiking": "certified_spiking",
}


@dataclass(frozen=True)
class Limit:
    """A budget, and how the user said it."""

    value: float
    said: str


@dataclass(frozen=True)
class Budgets:
    """All limits by name, ``layers`` those of single populations, which take precedence."""

    overall: Mapping[str, Limit] = field(default_factory=dict)
    layers: Mapping[str, Mapping[str, Limit]] = field(default_factory=dict)

    def of(self, layer: str, name: str) -> Limit | None:
        """The limit ``name`` of a population."""
        return self.layers.get(layer, {}).get(name) or self.overall.get(name)

    def to_json(self) -> dict[str, Any]:
        """Names as in the table, and the limits."""

        def plain(limits: Mapping[str, Limit]) -> dict[str, Any]:
            return {dashed(name): limit.value for name, limit in limits.items()}

        layers = {name: plain(limits) for name, limits in self.layers.items()}
        return plain(self.overall) | {"layers": layers}

    def check(self, network_layers: list[str], has_labels: bool, data: str) -> None:
        """Raise InputError for a budget of a population that is not there, or one that needs labels."""
        problems = [
            Problem(
                next(iter(limits.values())).said if limits else f"[{TABLE}.layers.{name}]",
                f"the network has no population {name!r}; it has {', '.join(network_layers)}",
                "name one of these",
            )
            for name, limits in self.layers.items()
            if name not in network_layers
        ]
        drop = self.overall.get("max_accuracy_drop")
        if drop is not None and not has_labels:
            problems.append(Problem(drop.said, f"{data} has no labels", "use a raster with labels"))
        if problems:
            raise InputError(problems)

    def judge(self, report: ParityReport) -> list[str]:
        """What exceeds a budget, in words."""
        failures = [
            failure
            for layer in report.layers
            for name in OF_A_LAYER
            if (limit := self.of(layer.name, name)) is not None
            and (failure := _of_layer(layer, name, limit, report.not_certified))
        ]
        if (limit := self.overall.get("max_accuracy_drop")) is not None:
            drop = accuracy_drop(report)
            if drop is None:
                failures.append(f"accuracy is not known, and {limit.said} is {limit.value:g}")
            elif drop > limit.value:
                failures.append(
                    f"accuracy drops by {drop:.4g} points, above {limit.said} {limit.value:g}"
                )
        limit = self.overall.get("min_agreement")
        if limit is not None and report.prediction_agreement < limit.value:
            failures.append(
                f"same prediction in {report.prediction_agreement:.6g} of the samples, below "
                f"{limit.said} {limit.value:g}"
            )
        return failures


def _of_layer(
    layer: LayerParity, name: str, limit: Limit, not_certified: Mapping[str, str]
) -> str | None:
    """How a population exceeds one of its budgets, None if it does not."""
    measured = MEASURED[name]
    got: float | None = getattr(layer, measured)
    what = f"{layer.name}: {measured.replace('_', ' ')}"
    if got is None:
        # A layer without a spike on either side has none to certify; one that is not covered fails.
        why = not_certified.get(layer.name)
        said = f"{limit.said} {limit.value:g}"
        return None if why is None else f"{layer.name}: not certified ({why}), against {said}"
    if name.startswith("max"):
        return (
            f"{what} {got:.6g} is above {limit.said} {limit.value:g}" if got > limit.value else None
        )
    return f"{what} {got:.6g} is below {limit.said} {limit.value:g}" if got < limit.value else None


def accuracy_drop(report: ParityReport) -> float | None:
    """Float accuracy minus that of the integers, in points; None without labels."""
    if report.accuracy_float is None or report.accuracy_lowered is None:
        return None
    # Both are counts of the same samples: in counts, no rounding decides.
    right = [
        round(accuracy * report.samples)
        for accuracy in (report.accuracy_float, report.accuracy_lowered)
    ]
    return 100 * (right[0] - right[1]) / report.samples


# Reading


def find(start: Path) -> Path | None:
    """The nearest pyproject.toml in ``start`` or a folder above it."""
    for folder in (start, *start.parents):
        if (folder / "pyproject.toml").is_file():
            return folder / "pyproject.toml"
    return None


def read(path: Path, required: bool = True) -> Table | None:
    """The table in ``path``; None where there is none, which with ``required`` is an error.

    Raises InputError naming every key that is not known and every value that is not allowed.
    """
    empty = path.is_file() and not path.stat().st_size  # no table, but nothing wrong with it
    if not empty:
        check_readable(path, MAX_BYTES)
    try:
        document = tomllib.loads(path.read_bytes().decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(Problem(str(path), f"is not TOML: {error}", "correct it")) from None
    tools = document.get("tool", {})
    ours = tools.get("stl-deploy") if isinstance(tools, dict) else None
    if ours is None:
        if required:
            raise InputError(
                Problem(str(path), f"has no table [{TABLE}]", "see docs/parity.md for an example")
            )
        return None
    problems = _unknown_tools(path, ours)
    table = None
    try:
        table = validate(ours["parity"], f"{path}: [{TABLE}]") if "parity" in ours else None
    except InputError as error:
        problems += error.problems
    if table is None and required and not problems:
        problems.append(Problem(str(path), f"has no table [{TABLE}]", "see docs/parity.md"))
    if problems:
        raise InputError(problems)
    return table


def _unknown_tools(path: Path, ours: Any) -> list[Problem]:
    """A misspelt table would silently check nothing."""
    if not isinstance(ours, dict):
        raise InputError(Problem(f"{path}: tool.stl-deploy", f"is {ours!r}, not a table"))
    return [
        Problem(f"{path}: [tool.stl-deploy] {key}", "is not known", "the only table is parity")
        for key in ours
        if key != "parity"
    ]


def validate(values: Any, where: str) -> Table:
    """A table from plain data, names with dashes.

    Raises InputError with everything that is wrong, at ``where``.
    """
    try:
        return Table.model_validate(values)
    except ValidationError as error:
        problems: dict[str, Problem] = {}
        for e in error.errors(include_url=False):
            problem = _problem(where, e)
            problems.setdefault(problem.where, problem)  # one of each key, though unions say more
        raise InputError(problems.values()) from None


def _problem(where: str, error: Mapping[str, Any]) -> Problem:
    """One error of pydantic's as a Problem."""
    path = [str(part) for part in error["loc"]]
    fields, key = Table.model_fields, path[0] if path else ""
    if key == "layers" and len(path) > 2:
        fields, key = LayerBudgets.model_fields, path[2]
        where, path = f"{where[:-1]}.layers.{path[1]}]", path[2:]
    place = f"{where} {key}" if key else where
    known = sorted(map(dashed, fields))
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(dashed(key), known, 1)
        remedy = f"did you mean {near[0]}?" if near else "remove it"
        return Problem(place, f"is not known; choose from {', '.join(known)}", remedy)
    about = fields.get(key.replace("-", "_"))
    limit = None if about is None else _described(about)
    value = _short(error["input"])
    what = error["msg"].replace("Input should", "it should")
    return Problem(place, f"is {value}; {what}", f"give {limit}" if limit else "")


def _described(about: Any) -> str | None:
    """The description of a field; that of an optional one is one level down."""
    if about.description:
        return str(about.description)
    for part in getattr(about.annotation, "__args__", ()):
        for extra in getattr(part, "__metadata__", ()):
            if getattr(extra, "description", None):
                return str(extra.description)
    return None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def merge(table: Table | None, config: str, given: Mapping[str, float | None]) -> Budgets:
    """The budgets of a table in the file ``config``, and of the command line, which wins.

    ``given`` holds what was given there, by the names of BUDGETS; a limit for all layers goes before the
    table's for single ones.
    """
    told = {name: value for name, value in given.items() if value is not None}
    overall: dict[str, Limit] = {}
    layers: dict[str, dict[str, Limit]] = {}
    if table is not None:
        for name in BUDGETS:
            if (value := getattr(table, name)) is not None:
                overall[name] = Limit(value, f"{dashed(name)} ({config})")
        for layer, limits in table.layers.items():
            layers[layer] = {
                name: Limit(value, f"{dashed(name)} of {layer} ({config})")
                for name in OF_A_LAYER
                if (value := getattr(limits, name)) is not None and name not in told
            }
    overall |= {name: Limit(value, f"--{dashed(name)}") for name, value in told.items()}
    return Budgets(overall, layers)
