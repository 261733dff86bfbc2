"""Chip facts from TOML files: register widths, limits and energy models, each number with its source.

A chip is one of ``chips/*.toml``, which ``load`` finds by name, or any other file of the same form, which
``read`` checks as untrusted data. A network for such a chip carries its facts, and ``of`` finds them.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from functools import cache, lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from stl_deploy.chips import names as names
from stl_deploy.chips.tables import (
    DECAY_BITS,
    FRACTION_BITS,
    STATE_BITS_MAX,
    Delays,
    Limits,
    Mesh,
    Name,
    Neurons,
    Packing,
    PilotNet,
    Registers,
    Static,
    Table,
    Text,
)
from stl_deploy.chips.tables import Arithmetic as Arithmetic
from stl_deploy.chips.tables import Count as Count
from stl_deploy.chips.tables import Profile as Profile
from stl_deploy.errors import InputError, Problem, expect
from stl_deploy.files import check_readable
from stl_deploy.ir import order
from stl_deploy.ir.network import IntegerNetwork

MAX_BYTES = 1 << 16  # of a chip file
MAX_SHOWN = 40  # characters of a wrong value in a message


class Chip(Table):
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
                "use another --chip, or train on spikes (in stl-train --encoding bernoulli)",
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
                    ", ".join(loop.names),
                    f"{loop.what}; a spike of {self.name} needs a step for each hop",
                    f"lengthen the delay of {network.connections[loop.way].words} by {loop.missing}, or use "
                    "--chip ideal",
                )
                for loop in order.short_loops(list(network.by_name), ways)
            ]
        steps = f"{most} step{'s' if most > 1 else ''}"
        can = f"its synapses wait at most {steps}" if most else "it has no synaptic delays"
        return [
            Problem(
                connection.name,
                f"spikes from {connection.source} to {connection.target} wait {wait:,} steps on "
                f"{self.name}; {can}",
                "use --skips auto, or --chip ideal",
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
    def rules(self) -> Literal["refused", "assumed", "carried"]:
        """Whether its neurons have the rules of ``chips/rules.py``; ``hold_max`` may name more."""
        return "refused" if self.neurons.rules is None else self.neurons.rules.value

    @property
    def hold_max(self) -> int:
        """Steps for which v may rest after a spike, where ``rules`` are refused."""
        return 0 if self.neurons.hold_max is None else self.neurons.hold_max.value

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
    expect("chip", given, (str, Path), "a name or a path", f"name one of {', '.join(names())}")
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
