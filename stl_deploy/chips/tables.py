"""The tables of a chip file, and what their values may be."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from stl_deploy.ir.neurons import MAX_HOLD

# Nothing that a terminal would obey.
Text = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")]
Source = Annotated[
    str, Field(min_length=10, max_length=2000, pattern=r"^[^\x00-\x08\x0b-\x1f\x7f-\x9f]*$")
]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
# Energies in pJ, times in ns or us, power in W: wide enough for any chip, and sums stay finite.
Amount = Annotated[float, Field(strict=True, ge=0, le=1e12, allow_inf_nan=False)]


class Table(BaseModel):
    """A table of a chip file; ``RANGES`` bounds the values of its counts."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    RANGES: ClassVar[Mapping[str, tuple[int, int]]] = {}

    @model_validator(mode="after")
    def _within(self) -> Self:
        facts = {name: getattr(self, name) for name in self.RANGES}
        if outside := [
            f"{name} {fact.value} is not in {self.RANGES[name][0]}..{self.RANGES[name][1]}"
            for name, fact in facts.items()
            if fact is not None and not self.RANGES[name][0] <= fact.value <= self.RANGES[name][1]
        ]:
            raise ValueError("; ".join(outside))
        return self


class Count(Table):
    """A whole number and where it comes from."""

    value: int = Field(strict=True, ge=-(1 << 31), lt=1 << 31)
    source: Source


class Quantity(Table):
    """A measured number and where it comes from."""

    value: Amount
    source: Source


# "loihi": u wraps once and v saturates at ``state_bits``, sums wrap at 32 bits. "unbounded": neither.
Arithmetic = Literal["loihi", "unbounded"]
# The integer network is defined for these alone (hw_sim/reference.py).
FRACTION_BITS = 6
DECAY_BITS = 12
STATE_BITS_MAX = 31  # states are held in int32


class Registers(Table):
    """Widths in bits; a missing one has no limit (chip ``ideal``).

    ``fraction_bits`` are those of u and v below a weight's unit.
    """

    weight_bits: Count
    fraction_bits: Count
    decay_bits: Count
    state_bits: Count | None = None
    threshold_bits: Count | None = None
    bias_mant_bits: Count | None = None
    bias_exp_bits: Count | None = None
    weight_exp_max: Count | None = None
    accumulator_bits: Count | None = None
    graded_spike_bits: Count | None = None

    # What int8 weights, int32 thresholds and the exponents of model.nir can hold; and sums (with the
    # fraction) and biases so small that no wrap at 32 bits goes unnoticed.
    RANGES = {
        "weight_bits": (2, 8),
        "threshold_bits": (1, 31),
        "bias_mant_bits": (1, 24),
        "bias_exp_bits": (0, 3),
        "weight_exp_max": (0, 7),
        "accumulator_bits": (1, 25),
        "graded_spike_bits": (0, 64),
    }


class Ability(Table):
    """Whether a chip can do something, and where that comes from."""

    value: bool = Field(strict=True)
    source: Source


class Support(Table):
    """Whether neurons of a chip have the rules of ``chips/rules.py``, and where that comes from.

    "refused": only those that other facts name. "assumed": a program of the neurons could, and none is known
    to. "carried": all.
    """

    value: Literal["refused", "assumed", "carried"]
    source: Source


class Neurons(Table):
    """What the neurons of a chip can do beyond a leaky integrate-and-fire with reset to zero.

    ``hold_max`` are the steps for which v may rest after a spike. Where a fact is missing, neurons cannot do
    what it is about.
    """

    subtract_reset: Ability
    rules: Support | None = None
    hold_max: Count | None = None

    RANGES = {"hold_max": (0, MAX_HOLD)}


class Limits(Table):
    """What one core and one chip hold; a missing one has no limit."""

    cores_per_chip: Count | None = None
    cores_per_tile: Count | None = None
    compartments_per_core: Count | None = None
    synapse_bytes_per_core: Count | None = None
    in_axons_per_core: Count | None = None
    out_axons_per_core: Count | None = None
    thresholds_per_core: Count | None = None
    decays_per_core: Count | None = None

    RANGES = dict.fromkeys(
        (
            *("cores_per_chip", "cores_per_tile", "compartments_per_core"),
            *("synapse_bytes_per_core", "in_axons_per_core", "out_axons_per_core"),
            *("thresholds_per_core", "decays_per_core"),
        ),
        (1, (1 << 31) - 1),
    )


class Delays(Table):
    """How long synapses can wait.

    ``steps_max`` is the longest wait, in steps. ``slots_per_core`` are the accumulators that a core has
    for what is on its way; None where they do not limit its neurons (see ``Chip.waiting_neurons``).
    """

    steps_max: Count
    slots_per_core: Count | None = None

    RANGES = {"steps_max": (0, 1 << 16), "slots_per_core": (2, (1 << 31) - 1)}


class Packing(Table):
    """How synapses lie in a core's memory: entries of one axon's synapses, in whole words.

    ``delay_bits`` are those of a synapse that waits; others store none.
    """

    synapses_per_entry: Count
    entry_header_bits: Count
    word_bits: Count
    index_bits: Count
    delay_bits: Count
    tag_bits: Count

    RANGES = {
        "synapses_per_entry": (1, 1 << 16),
        "entry_header_bits": (0, 1 << 16),
        "word_bits": (1, 1 << 16),
        "index_bits": (0, 64),
        "delay_bits": (0, 64),
        "tag_bits": (0, 64),
    }


class Mesh(Table):
    """The grid of a chip's tiles; tiles fill a column before the next begins."""

    columns: Count
    rows: Count

    RANGES = {"columns": (1, 1024), "rows": (1, 1024)}


class Static(Table):
    """Static power, the two ends of what was measured: of every core in use, or of every chip."""

    core_watt_low: Quantity | None = None
    core_watt_high: Quantity | None = None
    chip_watt_low: Quantity | None = None
    chip_watt_high: Quantity | None = None

    def watt(self, cores: int, chips: int) -> tuple[float, float]:
        """The two ends for so many cores in use on so many chips."""

        def total(core: Quantity | None, chip: Quantity | None) -> float:
            return (core.value * cores if core else 0.0) + (chip.value * chips if chip else 0.0)

        return (
            total(self.core_watt_low, self.chip_watt_low),
            total(self.core_watt_high, self.chip_watt_high),
        )


class PilotNet(Table):
    """A measured network to hold profiles against: its load a step, and what it took."""

    cores: Count
    synops: Quantity
    spikes: Quantity
    updates: Quantity
    step_us: Quantity
    dynamic_uj: Quantity
    total_uj: Quantity


class Update(Table):
    """Cost of a neuron update: ``always``, more when ``active``, more when it ``spike``s."""

    always: Amount
    active: Amount
    spike: Amount


class Synop(Table):
    """Cost of a synaptic operation by how the synapses are stored."""

    dense: Amount
    conv: Amount
    sparse: Amount


class Packet(Table):
    """Cost of a spike packet leaving (``out``) and entering (``in``) a core."""

    out: Amount
    in_: Annotated[Amount, Field(alias="in")]


class Hop(Table):
    """Cost of a packet's way from a tile to the next, by direction."""

    east_west: Amount
    north_south: Amount


class Barrier(Table):
    """Duration of the barrier that ends a time step, by number of tiles in use.

    Between two entries it follows a line, or is a step that begins at an entry.
    """

    tiles: tuple[Annotated[int, Field(strict=True, ge=1, lt=1 << 31)], ...] = Field(
        min_length=1, max_length=1024
    )
    us: tuple[Amount, ...]
    between: Literal["line", "step"]

    @model_validator(mode="after")
    def _is_a_table(self) -> Self:
        if len(self.us) != len(self.tiles):
            raise ValueError(f"{len(self.tiles)} numbers of tiles for {len(self.us)} durations")
        if any(b <= a for a, b in pairwise(self.tiles)):
            raise ValueError(f"tiles {list(self.tiles)} do not increase")
        return self

    def seconds(self, tiles: int) -> float:
        """The duration for so many tiles; outside the table its nearest entry."""
        if self.between == "line":
            return 1e-6 * float(np.interp(tiles, self.tiles, self.us))
        return 1e-6 * self.us[max(bisect_right(self.tiles, tiles) - 1, 0)]


class Profile(Table):
    """Energy (pJ) and time (ns) by event; ``link_ns`` is how long a packet occupies a link.

    ``extrapolation`` says what a profile rests on that nobody published, None for one published.
    """

    title: Text
    source: Source
    extrapolation: Source | None = None
    update_pj: Update
    update_ns: Update
    synop_pj: Synop
    synop_ns: Synop
    packet_pj: Packet
    packet_ns: Packet
    hop_pj: Hop
    hop_ns: Hop
    link_ns: Amount
    barrier: Barrier
