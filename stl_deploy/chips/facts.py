"""Chip facts from TOML files: register widths, limits and energy models, each number with its source.

A chip is one of ``chips/*.toml``, which ``load`` finds by name, or any other file of the same form, which
``read`` checks as untrusted data. A network for such a chip carries its facts, and ``of`` finds them.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from bisect import bisect_right
from collections.abc import Mapping
from functools import cache, lru_cache
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from stl_deploy.chips import names as names
from stl_deploy.errors import InputError, Problem
from stl_deploy.files import check_readable
from stl_deploy.ir import order
from stl_deploy.ir.network import IntegerNetwork

MAX_BYTES = 1 << 16  # of a chip file
MAX_SHOWN = 40  # characters of a wrong value in a message

# Nothing that a terminal would obey.
Text = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")]
Source = Annotated[
    str, Field(min_length=10, max_length=2000, pattern=r"^[^\x00-\x08\x0b-\x1f\x7f-\x9f]*$")
]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
# Energies in pJ, times in ns or us, power in W: wide enough for any chip, and sums stay finite.
Amount = Annotated[float, Field(strict=True, ge=0, le=1e12, allow_inf_nan=False)]


class _Table(BaseModel):
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


class Count(_Table):
    """A whole number and where it comes from."""

    value: int = Field(strict=True, ge=-(1 << 31), lt=1 << 31)
    source: Source


class Quantity(_Table):
    """A measured number and where it comes from."""

    value: Amount
    source: Source


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


class Ability(_Table):
    """Whether a chip can do something, and where that comes from."""

    value: bool = Field(strict=True)
    source: Source


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
    decays_per_core: Count | None = None

    RANGES = dict.fromkeys(
        (
            *("cores_per_chip", "cores_per_tile", "compartments_per_core"),
            *("synapse_bytes_per_core", "in_axons_per_core", "out_axons_per_core"),
            *("thresholds_per_core", "decays_per_core"),
        ),
        (1, (1 << 31) - 1),
    )


class Delays(_Table):
    """How long synapses can wait.

    ``steps_max`` is the longest wait, in steps. ``slots_per_core`` are the accumulators that a core has
    for what is on its way; None where they do not limit its neurons (see ``Chip.waiting_neurons``).
    """

    steps_max: Count
    slots_per_core: Count | None = None

    RANGES = {"steps_max": (0, 1 << 16), "slots_per_core": (2, (1 << 31) - 1)}


class Packing(_Table):
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


class Mesh(_Table):
    """The grid of a chip's tiles; tiles fill a column before the next begins."""

    columns: Count
    rows: Count

    RANGES = {"columns": (1, 1024), "rows": (1, 1024)}


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

    always: Amount
    active: Amount
    spike: Amount


class Synop(_Table):
    """Cost of a synaptic operation by how the synapses are stored."""

    dense: Amount
    conv: Amount
    sparse: Amount


class Packet(_Table):
    """Cost of a spike packet leaving (``out``) and entering (``in``) a core."""

    out: Amount
    in_: Annotated[Amount, Field(alias="in")]


class Hop(_Table):
    """Cost of a packet's way from a tile to the next, by direction."""

    east_west: Amount
    north_south: Amount


class Barrier(_Table):
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


class Profile(_Table):
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


class Chip(_Table):
    """One chip file."""

    name: Name
    title: Text
    arithmetic: Arithmetic
    registers: Registers
    neurons: Neurons
    limits: Limits
    delays: Delays | None = None
    packing: Packing | None = None
    mesh: Mesh | None = None
    pilotnet: PilotNet | None = None
    static: Static | None = None
    profiles: dict[Name, Profile] = Field(default_factory=dict, max_length=16)

    @model_validator(mode="after")
    def _computable(self) -> Chip:
        """Widths are those of the chip's arithmetic, and of the integer network's definition."""
        registers, bits = self.registers, self.registers.state_bits
        if (self.arithmetic == "loihi") != (bits is not None):
            raise ValueError(
                f"arithmetic {self.arithmetic!r} with state_bits {bits and bits.value}"
            )
        if bits is not None and not 2 <= bits.value <= STATE_BITS_MAX:
            raise ValueError(f"registers: state_bits {bits.value} is not in 2..{STATE_BITS_MAX}")
        for name, only in (("fraction_bits", FRACTION_BITS), ("decay_bits", DECAY_BITS)):
            if (value := getattr(registers, name).value) != only:
                raise ValueError(f"{name} {value}; networks are defined for {only}")
        return self

    @model_validator(mode="after")
    def _notices_overflow(self) -> Self:
        """What wraps at 32 bits has limits below, so that hw_sim can count what passes them."""
        held = self.registers.accumulator_bits, self.registers.bias_mant_bits
        if self.arithmetic == "loihi" and None in held:
            raise ValueError("arithmetic 'loihi' needs accumulator_bits and bias_mant_bits")
        return self

    @model_validator(mode="after")
    def _stores_delays(self) -> Self:
        """A synapse has room for the longest delay, and a core for a neuron that waits so long."""
        if self.delays is None:
            return self
        most, slots = self.delays.steps_max.value, self.delays.slots_per_core
        if self.packing is not None and most >> self.packing.delay_bits.value:
            raise ValueError(
                f"delays: steps_max {most} needs more bits than packing: delay_bits "
                f"{self.packing.delay_bits.value}"
            )
        if slots is not None and self.waiting_neurons(most) == 0:
            raise ValueError(
                f"delays: slots_per_core {slots.value} is too few for steps_max {most}"
            )
        return self

    @model_validator(mode="after")
    def _priceable(self) -> Self:
        """Energy models price what happens on cores and between tiles."""
        needed = {
            "limits.cores_per_chip": self.limits.cores_per_chip,
            "limits.cores_per_tile": self.limits.cores_per_tile,
            "packing": self.packing,
            "mesh": self.mesh,
        }
        missing = [name for name, facts in needed.items() if facts is None]
        if self.profiles and missing:
            raise ValueError(f"energy models (profiles) need {', '.join(missing)}")
        return self

    def input_problems(self, levels: int, signed: bool = False) -> list[Problem]:
        """Why inputs 0..``levels``, or ``signed`` ones, cannot come in; none where they can."""
        payload = self.registers.graded_spike_bits
        if (levels == 1 and not signed) or payload is None or payload.value:
            return []
        return [
            Problem(
                "input",
                f"graded {-levels if signed else 0}..{levels}, but {self.name} knows binary spikes only",
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

    def delay_problems(self, network: IntegerNetwork) -> list[Problem]:
        """What ``network`` asks of delays that this chip does not have; empty where it has them.

        A spike takes a step for each hop, so that a connection over several hops waits; around a loop,
        steps of delay have to make up for the hops.
        """
        most = self.delay_max
        if most is None:
            return []
        if network.depth is None:
            ways = [(c.source, c.target, c.delay) for c in network.connections]
            return [
                Problem(
                    ", ".join(loop),
                    f"a loop has fewer steps of delay than hops; a spike of {self.name} needs a step for "
                    "each hop",
                    "lengthen the delays on its way, or use --chip ideal",
                )
                for loop in order.too_short(list(network.by_name), ways)
            ]
        can = f"its synapses wait at most {most} steps" if most else "it has no synaptic delays"
        return [
            Problem(
                connection.name,
                f"spikes from {connection.source} to {connection.target} wait {wait:,} steps on "
                f"{self.name}; {can}",
                "use --skips relay, or --chip ideal",
            )
            for connection in network.connections
            if (wait := network.waits(connection)) > most
        ]

    @property
    def delay_max(self) -> int | None:
        """The most steps that a synapse can wait; 0 without delays, None without limit.

        Only an unbounded machine whose synapses are not laid into a memory has no limit; every other chip
        that states no delays has none.
        """
        if self.delays is not None:
            return self.delays.steps_max.value
        return None if self.arithmetic == "unbounded" and self.packing is None else 0

    def waiting_neurons(self, steps: int) -> int | None:
        """Neurons whose synapses wait up to so many steps that a core has room for; None without limit.

        A neuron takes a power of two of slots, one of which is the present, and one is left free.
        """
        slots = None if self.delays is None else self.delays.slots_per_core
        return None if slots is None else slots.value >> (steps + 1).bit_length()

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
def load(name: str) -> Chip:
    """The chip called ``name`` of those that come with the package. Raises InputError listing them."""
    if name not in names():
        raise InputError(
            Problem(
                "chip",
                f"{name!r} is not one of {', '.join(names())}",
                "name one of them, or the path of a chip file (docs/chips.md)",
            )
        )
    text = (resources.files("stl_deploy.chips") / f"{name}.toml").read_text("utf-8")
    return Chip.model_validate(tomllib.loads(text))


def find(given: str | Path) -> Chip:
    """The chip of that name, or of the TOML file at that path; a name goes before a file.

    Raises InputError for a name that is not known, or a file that ``read`` refuses.
    """
    if isinstance(given, str) and given in names():
        return load(given)
    path = Path(given)
    if isinstance(given, Path) or path.suffix == ".toml" or len(path.parts) > 1 or path.is_file():
        return read(path)
    return load(str(given))


def read(path: Path) -> Chip:
    """The chip of a TOML file, read as untrusted data. Raises InputError naming all that is wrong."""
    check_readable(path, MAX_BYTES)
    try:
        data = tomllib.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(Problem(str(path), f"is not a TOML file: {error}")) from None
    except OSError as error:
        raise InputError(Problem(str(path), f"cannot be read: {error.strerror}")) from None
    return check(data, str(path))


def check(data: Any, where: str) -> Chip:
    """The chip that these untrusted facts describe.

    Raises InputError naming ``where``, every key that is wrong and its value. A name of ``names()`` is
    for exactly those facts.
    """
    try:
        chip = Chip.model_validate(data)
    except ValidationError as error:
        raise InputError(_explain(error, where)) from None
    if chip.name in names() and chip != load(chip.name):
        what = f"{chip.name!r} is a chip of stl-deploy, and its facts are others"
        raise InputError(Problem(f"{where}: name", what, "give your chip a name of its own"))
    return chip


def carried(chip: Chip) -> str | None:
    """What a network for ``chip`` has as ``chip_facts``: None where the name says everything."""
    return None if chip.name in names() else chip.model_dump_json(by_alias=True, exclude_none=True)


def identity(chip: Chip) -> str:
    """A name that stands for exactly these facts: with a digest where the chip is not one of ``names()``."""
    facts = carried(chip)
    if facts is None:
        return chip.name
    return f"{chip.name} sha256:{hashlib.sha256(facts.encode()).hexdigest()}"


def of(network: IntegerNetwork) -> Chip:
    """The chip of ``network``, by name or from the facts that it carries."""
    if network.chip_facts is None:
        return load(network.chip)
    return _carried(network.chip, network.chip_facts)


@lru_cache(maxsize=16)
def _carried(name: str, facts: str) -> Chip:
    chip = check(json.loads(facts), "chip_facts")
    if chip.name != name:
        raise InputError(Problem("chip_facts", f"are those of {chip.name!r}, not of {name!r}"))
    return chip


@cache
def _shipped_profiles() -> dict[str, tuple[Chip, Profile]]:
    found: dict[str, tuple[Chip, Profile]] = {}
    for chip in map(load, names()):
        for name, profile in chip.profiles.items():
            found[name if name not in found else f"{chip.name}/{name}"] = chip, profile
    return found


def profiles(own: Chip | None = None) -> dict[str, tuple[Chip, Profile]]:
    """All energy models by name, with the chip that each belongs to, those of the chip ``own`` included.

    Where two chips have one of the same name, that of the later chip is called CHIP/NAME.
    """
    found = dict(_shipped_profiles())
    if own is not None and own.name not in names():
        for name, profile in own.profiles.items():
            found[f"{own.name}/{name}" if name in found else name] = (own, profile)
    return found


def _explain(error: ValidationError, where: str) -> list[Problem]:
    """Every error with its key, and its value where that is a plain one."""
    problems = []
    for e in error.errors(include_url=False):
        key, given = ".".join(str(part) for part in e["loc"]), e["input"]
        what = e["msg"].removeprefix("Value error, ")
        if isinstance(given, str | int | float):
            shown = repr(given)
            what += f", not {shown if len(shown) <= MAX_SHOWN else shown[:MAX_SHOWN] + '...'}"
        problems.append(Problem(f"{where}: {key}" if key else where, what))
    return problems
