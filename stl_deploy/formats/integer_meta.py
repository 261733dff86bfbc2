"""The JSON string of ``model.nir``: what NIR cannot say of an integer network, checked when it is read."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

import nir
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from stl_deploy.errors import InputError, Problem
from stl_deploy.ir import nir_graph as G
from stl_deploy.ir.neurons import MAX_HOLD, MAX_SHIFT, ONCE, Reset
from stl_deploy.ir.notes import Limit, Lowering
from stl_deploy.ir.read_as import ReadAs
from stl_deploy.ir.readouts import Rule
from stl_deploy.ir.slices import WeightPrecision
from stl_deploy.ir.units import FRACTION_BITS, MAX_SIGNED, MAX_STEPS, MAX_UNSIGNED

FORMAT = "stl-deploy/integer"
VERSION: Literal[6] = 6
MOST = 5000  # populations, and connections: their checks grow with the square
Scale = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Meta(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PrecisionMeta(_Meta):
    """See ``notes.Precision``."""

    mode: Literal["proven", "checked"]
    effective_bits: float
    worst_sum: int
    limit: int | None
    calibrated: int = Field(default=0, ge=0)
    connections: dict[str, float] = Field(default_factory=dict)


class RoundingMeta(_Meta):
    """See ``notes.Rounding``."""

    changed: float
    mean: float
    largest: float


class InputMeta(_Meta):
    """See ``network.Input``; its shape is that of the node of this name."""

    name: str
    levels: int = Field(ge=1, le=MAX_SIGNED)
    signed: bool
    held: bool

    @model_validator(mode="after")
    def _fits_a_raster(self) -> InputMeta:
        if self.levels > MAX_UNSIGNED and not self.signed:
            raise ValueError(f"{self.levels} levels without a sign; at most {MAX_UNSIGNED}")
        return self


class GradedMeta(_Meta):
    """See ``neurons.Graded``."""

    shift: int = Field(ge=0, le=MAX_SHIFT)
    levels: int = Field(ge=1, le=MAX_SIGNED)


class PopulationMeta(_Meta):
    """What NIR cannot say of the neurons of this name, but for the arrays of ``integer_rules.py``.

    ``scale`` is that of the channels, or of every neuron; an OR population has none.
    """

    name: str
    kind: Literal["lif", "or"]
    bias_exp: int = Field(default=FRACTION_BITS, ge=0, le=7)
    reset: Reset = "zero"
    reset_current: bool = False
    hold: int = Field(default=0, ge=ONCE, le=MAX_HOLD)
    graded: GradedMeta | None = None
    scale: list[Scale] = Field(default_factory=list)


class ConnectionMeta(_Meta):
    """See ``network.Connection``; ``node`` is the node of its weights.

    Connections of one node have the same weights, and differ in source and delay alone.
    """

    name: str
    source: str
    target: str
    node: str
    exp: int = Field(ge=0, le=7)
    bits: int = Field(ge=1, le=8)
    precision: WeightPrecision
    delay: int = Field(ge=0, le=MAX_STEPS)
    port: int = Field(default=0, ge=0, le=1)


class ReadoutMeta(_Meta):
    """See ``readouts.Readout``; ``node`` is that of its matrix, None where it has none."""

    classes: int = Field(ge=1)
    population: int = Field(ge=1)
    source: str
    rule: Rule = "votes"
    node: str | None = None


class LayerPlacementMeta(_Meta):
    """See ``network.LayerPlacement``."""

    name: str
    first_core: int
    blocks: list[int] = Field(min_length=1)
    bound_by: Limit | None
    fullest: dict[Limit, int]
    total: dict[Limit, int]
    order: list[int] | None = None


class PlacementMeta(_Meta):
    """See ``network.Placement``; its chip is the network's."""

    cores: int
    tiles: int
    chips: int
    layers: list[LayerPlacementMeta]


class IntegerMeta(_Meta):
    """The JSON string of ``model.nir``.

    ``precision`` and ``rounding`` are by population. ``chip_facts`` are those of a chip that does not come
    with the package, as its file has them (``chips/facts.py`` checks them); other files have no such key.
    """

    format: Literal["stl-deploy/integer"] = "stl-deploy/integer"
    version: Literal[6] = VERSION
    chip: str
    timesteps: int = Field(ge=1, le=MAX_STEPS)
    compare: Literal[">"] = ">"
    resets: Literal["same-step, as its population says"] = "same-step, as its population says"
    inputs: list[InputMeta] = Field(min_length=1, max_length=MOST)
    populations: list[PopulationMeta] = Field(min_length=1, max_length=MOST)
    connections: list[ConnectionMeta] = Field(max_length=MOST)
    readout: ReadoutMeta
    lowering: Lowering = "native"
    lowering_reason: str = ""
    precision: dict[str, PrecisionMeta] = Field(default_factory=dict)
    rounding: dict[str, RoundingMeta] = Field(default_factory=dict)
    placement: PlacementMeta | None = None
    diagnostics: list[tuple[str, str, str]] = Field(default_factory=list)
    read_as: tuple[ReadAs, ...] = Field(default=(), max_length=MOST)
    chip_facts: dict[str, Any] | None = None


def holds_integers(graph: nir.NIRGraph) -> bool:
    """Whether ``graph`` says that it is an integer network."""
    data = _json(graph)
    return isinstance(data, dict) and data.get("format") == FORMAT


def _json(graph: nir.NIRGraph) -> Any:
    """What the JSON string of ``graph`` says, None where there is none."""
    text = graph.metadata.get(G.KEY)
    text = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
    try:
        return json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        return None


def read_meta(graph: nir.NIRGraph, where: str) -> IntegerMeta:
    """The checked JSON string of ``graph``. Raises InputError naming every entry that is wrong."""
    data = _json(graph)
    if not holds_integers(graph):
        raise InputError(
            Problem(
                where,
                "is not an integer network (no stl-deploy metadata)",
                "export it first: stl-export MODEL --target nir -o out, then name out/model.nir, not "
                "model.float.nir or a portable file",
            )
        )
    if (version := data.get("version")) != VERSION:
        raise InputError(
            Problem(
                where,
                f"is of version {version!r} of the format; this stl-deploy reads version {VERSION}",
                "install the stl-deploy version that wrote it"
                if isinstance(version, int) and version > VERSION
                else "export the model again (stl-export) with this stl-deploy",
            )
        )
    try:
        return IntegerMeta.model_validate(data)
    except ValidationError as error:
        raise InputError(
            [
                Problem(
                    f"{where}: metadata {'.'.join(map(str, e['loc']))}",
                    e["msg"],
                    "export the model again; was the file changed by hand?",
                )
                for e in error.errors(include_url=False)
            ]
        ) from None
