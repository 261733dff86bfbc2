"""The JSON string of ``model.nir``: what NIR cannot say of an integer network, checked when it is read."""

from __future__ import annotations

import json
from typing import Any, Literal

import nir
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from stl_deploy.errors import InputError, Problem
from stl_deploy.ir import nir_graph as G
from stl_deploy.ir.neurons import Reset
from stl_deploy.ir.notes import (
    Limit,
    Lowering,
)
from stl_deploy.ir.slices import WeightPrecision
from stl_deploy.ir.units import FORGETS, FRACTION_BITS, MAX_STEPS

FORMAT = "stl-deploy/integer"
ResetText = Literal["same-step, to zero", "same-step, as its layer says"]
RESETS: dict[int, ResetText] = {
    1: "same-step, to zero",
    2: "same-step, as its layer says",
    3: "same-step, as its layer says",
}
Version = Literal[1, 2, 3]


class _Meta(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PrecisionMeta(_Meta):
    """See ``network.Precision``."""

    mode: Literal["proven", "checked"]
    effective_bits: float
    worst_sum: int
    limit: int | None
    calibrated: int = Field(default=0, ge=0)
    connections: dict[str, float] = Field(default_factory=dict)

    @model_serializer(mode="wrap")
    def _as_old_as_possible(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        row: dict[str, Any] = write(self)
        if not self.calibrated:
            del row["calibrated"]
        if not self.connections:
            del row["connections"]
        return row


class RoundingMeta(_Meta):
    """See ``network.Rounding``."""

    changed: float
    mean: float
    largest: float


class LayerMeta(_Meta):
    """What NIR cannot say of a layer; ``weights`` names its weight (or SumPool2d) node.

    ``folded`` says that the weight node carries single connections. ``recurrent`` names the node from
    the neurons back to them. Files of version 1 do not have it, nor ``reset``; files before version 3
    have no ``weight_precision``.
    """

    name: str
    kind: Literal["lif", "or_pool"]
    weights: str
    du: int = Field(default=FORGETS, ge=0, le=FORGETS)
    dv: int = Field(default=FORGETS, ge=0, le=FORGETS)
    exp: int = Field(default=0, ge=0, le=7)
    bias_exp: int = Field(default=FRACTION_BITS, ge=0, le=7)
    weight_bits: int = Field(default=8, ge=2, le=8)
    scale: list[float] = Field(default_factory=list)
    precision: PrecisionMeta | None = None
    rounding: RoundingMeta | None = None
    folded: bool = False
    recurrent: str | None = None
    reset: Reset = "zero"
    weight_precision: WeightPrecision = "8"

    @property
    def version(self) -> Version:
        """The version of the file that can say this."""
        if self.weight_precision != "8":
            return 3
        plain = (
            self.du == FORGETS and self.dv > 0 and self.recurrent is None and self.reset == "zero"
        )
        rounded = self.precision is None or not self.precision.calibrated
        return 1 if plain and rounded else 2

    @model_serializer(mode="wrap")
    def _as_old_as_possible(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        row: dict[str, Any] = write(self)
        if self.version == 1:
            del row["recurrent"], row["reset"]
        if self.version < 3:
            del row["weight_precision"]
        return row


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

    ``chip_facts`` are those of a chip that does not come with the package, as its file has them
    (``chips/facts.py`` checks them); a file for another chip has no such key.
    """

    format: Literal["stl-deploy/integer"] = "stl-deploy/integer"
    version: Version = 1
    chip: str
    timesteps: int = Field(ge=1, le=MAX_STEPS)
    reset: ResetText = "same-step, to zero"
    compare: Literal[">"] = ">"
    input_levels: int = Field(ge=1, le=255)
    classes: int = Field(ge=1)
    population: int = Field(ge=1)
    readout: Literal["mean over population and time"] = "mean over population and time"
    lowering: Lowering = "native"
    lowering_reason: str = ""
    layers: list[LayerMeta]
    placement: PlacementMeta | None = None
    diagnostics: list[tuple[str, str, str]] = Field(default_factory=list)
    chip_facts: dict[str, Any] | None = None

    @model_serializer(mode="wrap")
    def _as_old_as_possible(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        row: dict[str, Any] = write(self)
        if self.chip_facts is None:
            del row["chip_facts"]
        return row

    @model_validator(mode="after")
    def _says_what_it_can(self) -> IntegerMeta:
        if self.reset != RESETS[self.version]:
            raise ValueError(f"version {self.version} resets {RESETS[self.version]!r}")
        for layer in self.layers:
            if layer.version > max(self.version, 2):
                raise ValueError(f"{layer.name}: before version 3 weights have precision '8'")
            if layer.version > self.version:
                raise ValueError(
                    f"{layer.name}: in version 1 a LIF has du = {FORGETS}, resets to zero, leaks, is "
                    "not recurrent and is not calibrated"
                )
        return self


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
                "give the model.nir that stl-export wrote, not model.float.nir or a portable one",
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
                    "written by another version of stl-deploy?",
                )
                for e in error.errors(include_url=False)
            ]
        ) from None
