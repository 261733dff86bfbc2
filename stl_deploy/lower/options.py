"""What a user may choose when a network is quantized, and which choices contradict each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from stl_deploy.errors import InputError, Problem
from stl_deploy.ir import slices
from stl_deploy.ir.slices import WeightPrecision

if TYPE_CHECKING:
    from stl_deploy.chips import facts as chips

Overflow = Literal["auto", "proven", "checked"]
Thresholds = Literal["auto", "native", "fold", "grouped"]
Skips = Literal["auto", "delay", "relay"]


@dataclass(frozen=True)
class Options:
    """What the user may choose; the defaults are those of ``stl-export``."""

    weight_bits: int = 8
    weight_exp: int = 0
    thresholds: Thresholds = "auto"
    overflow: Overflow = "auto"
    clamp_thresholds: bool = False
    weight_precision: WeightPrecision = "8"
    skips: Skips = "auto"

    @property
    def qmax(self) -> int:
        """The end of the weight grid."""
        return slices.largest(self.weight_precision, self.weight_bits)


def check_options(options: Options, chip: chips.Chip, calib: bool) -> None:
    """Raise InputError for options out of range, or that contradict each other or the chip."""
    problems = _precision_problems(options, chip, calib)
    fact = chip.registers.weight_exp_max
    for name, value, low, high in (
        ("weight_bits", options.weight_bits, 2, chip.registers.weight_bits.value),
        ("weight_exp", options.weight_exp, 0, 7 if fact is None else fact.value),
    ):
        if not isinstance(value, int) or not low <= value <= high:
            problems.append(Problem(name, f"{value} is not a whole number in {low}..{high}"))
    for name, choice, choices in (
        ("overflow", options.overflow, get_args(Overflow)),
        ("thresholds", options.thresholds, get_args(Thresholds)),
        ("skips", options.skips, get_args(Skips)),
    ):
        if choice not in choices:
            problems.append(Problem(name, f"{choice!r} is not one of {', '.join(choices)}"))
    if options.thresholds == "grouped" and chip.limits.thresholds_per_core is None:
        problems.append(
            Problem(
                "thresholds",
                f"grouped serves chips that hold few thresholds a core; {chip.name} holds one for "
                "every neuron",
                "use --thresholds native",
            )
        )
    if problems:
        raise InputError(problems)


def _precision_problems(options: Options, chip: chips.Chip, calib: bool) -> list[Problem]:
    """Why a weight precision is not one, or does not go with the other options or the chip."""
    given, where = options.weight_precision, "weight_precision"
    if given not in slices.PRECISIONS:
        what = f"{given!r} is not one of {', '.join(slices.PRECISIONS)}"
        return [Problem(where, what)]
    problems = [
        Problem(where, what, "omit that option, or use --weight-precision split")
        for what in slices.contradictions(given, options.weight_bits, options.weight_exp)
    ]
    exponents = chip.registers.weight_exp_max
    needed = max(group.exp for group in slices.GROUPS[given])
    if exponents is not None and exponents.value < needed:
        what = (
            f"{given} needs the weight exponent {needed}; {chip.name} has up to {exponents.value}"
        )
        problems.append(Problem(where, what, "use --weight-precision split"))
    limited = chip.accumulator_limit is not None
    if given == "2x8" and options.overflow == "checked" and limited and not calib:
        problems.append(
            Problem(
                where,
                f"2x8 with overflow checked: without data the full grid overflows {chip.name}",
                "give --calib, or use --overflow proven",
            )
        )
    return problems
