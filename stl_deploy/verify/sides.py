"""Both sides of a population in numbers: its float neurons and its integer ones, voltages in float units."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stl_deploy.ir.float_neurons import FloatNeurons
from stl_deploy.ir.kinds import FIELDS, RESETS, unknown_fields
from stl_deploy.ir.neurons import Neurons
from stl_deploy.ir.units import DECAY_ONE, FORGETS, UNIT
from stl_deploy.verify.intervals import Kind, Side

Float = NDArray[np.float64]
Each = Callable[
    [Any], Float
]  # of values that broadcast to a population, one for each neuron: [neurons]
KNOWN = (
    FIELDS
    | RESETS
    | {"v_reset", "reset_current", "hold", "floor", "adapt", "dq", "du2", "gain", "v0"}
)
KNOWN_FLOAT = frozenset(
    {"kind", "step", "gain", "leak", "threshold", "v_reset", "current", "drive", "reset", "fires"}
    | {"reset_current", "hold", "floor", "v0", "adapt", "adapt_step", "current2", "drive2"}
    | {"amplify", "graded"}
)
LEFT_OUT = {"fires": "have no threshold", "graded": "send values instead of spikes"}


def of_floats(neurons: FloatNeurons, each: Each) -> Side:
    """The float side; ``bias`` is v_leak, which passes through no current."""
    rises = neurons.adapt is not None
    return Side(
        keep=each(neurons.keep),
        first=each(1 - neurons.current if neurons.has_current else 0.0),
        second=each(0.0 if neurons.current2 is None else 1 - neurons.current2),
        bias=each(neurons.leak),
        start=each(_or(neurons.v0, 0.0)),
        reset=each(neurons.v_reset),
        drop=each(neurons.threshold if neurons.reset == "subtract" else 0.0),
        floor=each(_or(neurons.floor, -np.inf)),
        rise=each(_or(neurons.adapt, 0.0)),
        rise_keep=each(1 - _or(neurons.adapt_step, 0.0) if rises else 0.0),
    )


def of_integers(neurons: Neurons, each: Each, unit: Float) -> Side:
    """The integer side, with what is added to v; ``unit`` [neurons] is one of v in float units."""
    subtracts, constant = neurons.reset == "subtract", neurons.reset == "constant"
    second = FORGETS if neurons.du2 is None else neurons.du2
    return Side(
        keep=(DECAY_ONE - each(neurons.dv)) / DECAY_ONE,
        first=(FORGETS - each(neurons.du)).astype(np.int64),
        second=(FORGETS - each(second)).astype(np.int64),
        bias=each(neurons.bias if neurons.gain is None else 0) * unit,
        start=each(neurons.v0) * unit,
        reset=each(neurons.v_reset if constant else 0) * unit,
        drop=each(neurons.vth if subtracts else 0) * UNIT * unit,
        floor=each(-np.inf if neurons.floor is None else neurons.floor) * unit,
        rise=each(neurons.adapt) * unit,
        rise_keep=(DECAY_ONE - each(neurons.dq)) / DECAY_ONE * neurons.adapts,
    )


def kind(neurons: FloatNeurons | Neurons) -> Kind:
    """What spikes do on a side."""
    keeps = neurons.reset in ("subtract", "none")
    return Kind(keeps, bool(neurons.reset_current), int(neurons.hold))


def through_currents(neurons: Neurons, floats: FloatNeurons) -> bool:
    """Whether what arrives on either side is remembered, or multiplied in each step, before it reaches v."""
    remembers = floats.has_current and bool((floats.current != 1).any())
    more = remembers or floats.current2 is not None or floats.amplify is not None
    return more or neurons.has_current or neurons.gain is not None


def rises(neurons: Neurons, floats: FloatNeurons) -> bool:
    """Whether the threshold moves on either side."""
    return neurons.adapts or floats.adapt is not None


def left_out(neurons: Neurons) -> Iterator[str]:
    """In words, what of integer neurons these sides do not say."""
    for name in unknown_fields(neurons, KNOWN):
        yield (
            f"its neurons {LEFT_OUT[name]}" if name in LEFT_OUT else f"its {name} is not known here"
        )


def left_out_of_floats(neurons: FloatNeurons) -> Iterator[str]:
    """The same of float neurons."""
    left = [what for name, what in LEFT_OUT.items() if getattr(neurons, name) != (name == "fires")]
    if left:
        yield f"its float neurons {' and '.join(left)}"
    for field in fields(neurons):
        value, default = getattr(neurons, field.name), np.asarray(field.default)
        if field.name not in KNOWN_FLOAT and not np.array_equal(value, default):
            yield f"the {field.name} of its float neurons is not known here"


def _or(values: Float | None, otherwise: float) -> Any:
    return otherwise if values is None else values
