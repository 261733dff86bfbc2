"""Chip facts from ``chips/*.toml``: register widths, limits and energy profiles, each with its source."""

from __future__ import annotations

import tomllib
from bisect import bisect_right
from functools import cache
from importlib import resources
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from stl_deploy.errors import InputError, Problem


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Count(_Table):
    """A whole number and where it comes from."""

    value: int
    source: str = Field(min_length=10)


class Quantity(_Table):
    """A measured number and where it comes from."""

    value: float
    source: str = Field(min_length=10)


# "loihi": u wraps once and v saturates at ``state_bits``, sums wrap at 32 bits. "unbounded": neither.
Arithmetic = Literal["loihi", "unbounded"]
# The integer network is defined for these alone (hw_sim/reference.py).
FRACTION_BITS = 6
DECAY_BITS = 12
STATE_BITS_MAX = 31  # states are held in int32


class Registers(_Table):
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


class Ability(_Table):
    """Whether a chip can do something, and where that comes from."""

    value: bool
    source: str = Field(min_length=10)


class Neurons(_Table):
    """What the neurons of a chip can do beyond a leaky integrate-and-fire with reset to zero."""

    subtract_reset: Ability


class Limits(_Table):
    """What one core and one chip hold; a missing one has no limit."""

    cores_per_chip: Count | None = None
    cores_per_tile: Count | None = None
    compartments_per_core: Count | None = None
    synapse_bytes_per_core: Count | None = None
    in_axons_per_core: Count | None = None
    out_axons_per_core: Count | None = None
    thresholds_per_core: Count | None = None


class Packing(_Table):
    """How synapses lie in a core's memory: entries of one axon's synapses, in whole words."""

    synapses_per_entry: Count
    entry_header_bits: Count
    word_bits: Count
    index_bits: Count
    delay_bits: Count
    tag_bits: Count


class Mesh(_Table):
    """The grid of a chip's tiles; tiles fill a column before the next begins."""

    columns: Count
    rows: Count


class Static(_Table):
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


class PilotNet(_Table):
    """A measured network to hold profiles against: its load a step, and what it took."""

    cores: Count
    synops: Quantity
    spikes: Quantity
    updates: Quantity
    step_us: Quantity
    dynamic_uj: Quantity
    total_uj: Quantity


class Update(_Table):
    """Cost of a neuron update: ``always``, more when ``active``, more when it ``spike``s."""

    always: float
    active: float
    spike: float


class Synop(_Table):
    """Cost of a synaptic operation by how the synapses are stored."""

    dense: float
    conv: float
    sparse: float


class Packet(_Table):
    """Cost of a spike packet leaving (``out``) and entering (``in``) a core."""

    out: float
    in_: Annotated[float, Field(alias="in")]


class Hop(_Table):
    """Cost of a packet's way from a tile to the next, by direction."""

    east_west: float
    north_south: float


class Barrier(_Table):
    """Duration of the barrier that ends a time step, by number of tiles in use.

    Between two entries it follows a line, or is a step that begins at an entry.
    """

    tiles: tuple[int, ...]
    us: tuple[float, ...]
    between: Literal["line", "step"]

    def seconds(self, tiles: int) -> float:
        """The duration for so many tiles; outside the table its nearest entry."""
        if self.between == "line":
            return 1e-6 * float(np.interp(tiles, self.tiles, self.us))
        return 1e-6 * self.us[max(bisect_right(self.tiles, tiles) - 1, 0)]


class Profile(_Table):
    """Energy (pJ) and time (ns) by event; ``link_ns`` is how long a packet occupies a link.

    ``extrapolation`` says what a profile rests on that nobody published, None for one published.
    """

    title: str
    source: str = Field(min_length=10)
    extrapolation: str | None = None
    update_pj: Update
    update_ns: Update
    synop_pj: Synop
    synop_ns: Synop
    packet_pj: Packet
    packet_ns: Packet
    hop_pj: Hop
    hop_ns: Hop
    link_ns: float
    barrier: Barrier


class Chip(_Table):
    """One chip file."""

    name: str
    title: str
    arithmetic: Arithmetic
    registers: Registers
    neurons: Neurons
    limits: Limits
    packing: Packing | None = None
    mesh: Mesh | None = None
    pilotnet: PilotNet | None = None
    static: Static | None = None
    profiles: dict[str, Profile] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _computable(self) -> Chip:
        """Widths are those of the chip's arithmetic, and of the integer network's definition."""
        registers, bits = self.registers, self.registers.state_bits
        if (self.arithmetic == "loihi") != (bits is not None):
            raise ValueError(
                f"arithmetic {self.arithmetic!r} with state_bits {bits and bits.value}"
            )
        if bits is not None and not 2 <= bits.value <= STATE_BITS_MAX:
            raise ValueError(f"state_bits {bits.value} is not in 2..{STATE_BITS_MAX}")
        for name, only in (("fraction_bits", FRACTION_BITS), ("decay_bits", DECAY_BITS)):
            if (value := getattr(registers, name).value) != only:
                raise ValueError(f"{name} {value}; networks are defined for {only}")
        return self

    def input_problems(self, levels: int) -> list[Problem]:
        """Why inputs 0..``levels`` cannot come in; none where they can."""
        payload = self.registers.graded_spike_bits
        if levels == 1 or payload is None or payload.value:
            return []
        return [
            Problem(
                "input",
                f"graded 0..{levels}, but {self.name} knows binary spikes only",
                "use another --chip, or train with --encoding bernoulli",
            )
        ]

    def reset_problems(self, layer: str, reset: str) -> list[Problem]:
        """Why the neurons of ``layer`` cannot have this ``reset``; empty where they can."""
        if reset == "zero" or self.neurons.subtract_reset.value:
            return []
        able = [name for name in names() if load(name).neurons.subtract_reset.value]
        return [
            Problem(
                layer,
                f"reset {reset!r}: a spike of {self.title} sets v to zero, and nothing else",
                f"use --chip {' or '.join(able)}, or train with a reset to zero",
            )
        ]

    @property
    def state_limit(self) -> int | None:
        """M: u and v lie within -M .. M. None without limit."""
        bits = self.registers.state_bits
        return None if bits is None else 1 << (bits.value - 1)

    @property
    def accumulator_limit(self) -> int | None:
        """|a_in| stays below this. None without limit."""
        bits = self.registers.accumulator_bits
        return None if bits is None else 1 << bits.value

    @property
    def threshold_range(self) -> tuple[int, int]:
        """Smallest and largest vth that the register holds (int32 in the file without a register)."""
        bits = self.registers.threshold_bits
        return (-(1 << 31), (1 << 31) - 1) if bits is None else (0, (1 << bits.value) - 1)

    @property
    def bias_mant_range(self) -> tuple[int, int]:
        """Smallest and largest bias mantissa."""
        bits = self.registers.bias_mant_bits
        half = 1 << ((32 if bits is None else bits.value) - 1)
        return (-half, half - 1)


@cache
def names() -> tuple[str, ...]:
    """Names of the chips that have a file."""
    folder = resources.files("stl_deploy.chips")
    return tuple(
        sorted(f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml"))
    )


@cache
def load(name: str) -> Chip:
    """The chip called ``name``. Raises InputError listing those there are."""
    if name not in names():
        raise InputError(Problem("chip", f"{name!r} is not one of {', '.join(names())}"))
    text = (resources.files("stl_deploy.chips") / f"{name}.toml").read_text("utf-8")
    return Chip.model_validate(tomllib.loads(text))


@cache
def profiles() -> dict[str, tuple[Chip, Profile]]:
    """All energy profiles by name, with the chip that each belongs to."""
    chips = [load(name) for name in names()]
    return {name: (chip, p) for chip in chips for name, p in chip.profiles.items()}
