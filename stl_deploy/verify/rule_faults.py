"""Faults of the rules of neurons: what a population does otherwise than its float neurons, of any cause."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stl_deploy.ir.float_neurons import FloatNeurons
from stl_deploy.ir.floats import FloatPopulation
from stl_deploy.ir.network import Population
from stl_deploy.ir.neurons import ONCE, Neurons
from stl_deploy.ir.units import DECAY_ONE, FORGETS, UNIT
from stl_deploy.lower import rules
from stl_deploy.verify import fault
from stl_deploy.verify.fault import Fault, Kind

Float = NDArray[np.float64]
RESETS = {
    "zero": "sets v to 0",
    "constant": "sets v to a constant",
    "subtract": "subtracts the threshold from v",
    "none": "leaves v as it is",
}


class Value(NamedTuple):
    """A value of v among the parameters: its fault, what it is called, and that of float neurons, if any."""

    kind: Kind
    called: str
    exact: Callable[[FloatNeurons], Float | None]


def _v_reset(neurons: FloatNeurons) -> Float | None:
    return neurons.v_reset if rules.reset(neurons) == "constant" else None


def _adapt(neurons: FloatNeurons) -> Float | None:
    return neurons.adapt if neurons.fires else None


VALUES = {
    "v_reset": Value("reset", "voltages that a spike sets", _v_reset),
    "v0": Value("start", "voltages before the first step", lambda neurons: neurons.v0),
    "floor": Value("floor", "lowest voltages", lambda neurons: neurons.floor),
    "adapt": Value("adaptive threshold", "rises of the threshold after a spike", _adapt),
}


class Decay(NamedTuple):
    """A decay besides that of v: what float neurons take in a step, None without it; the least constant."""

    called: str
    share: Callable[[FloatNeurons], Float | None]
    least: int


def _current(neurons: FloatNeurons) -> Float | None:
    return neurons.current if neurons.has_current else np.ones(1)


def _rise(neurons: FloatNeurons) -> Float | None:
    there = neurons.fires and neurons.adapt is not None and neurons.adapt.any()
    return neurons.adapt_step if there else None


DECAYS = {
    "du": Decay("the current", _current, -1),
    "du2": Decay("the second current", lambda neurons: neurons.current2, -1),
    "dq": Decay("the threshold's rise", _rise, 0),
}


def of(population: Population, known: FloatPopulation) -> Iterator[Fault]:
    """The faults of the rules of ``population``, whose neurons are of kind "lif"."""
    mine, theirs = population.neurons, known.neurons
    for kind, text in _kinds(mine, theirs):
        yield Fault(population.name, kind, 1, text)
    for name in VALUES:
        yield from _values(population, known, name)
    for name in DECAYS:
        yield from _decays(population, known, name)
    yield from _gains(population, theirs)


def _kinds(mine: Neurons, theirs: FloatNeurons) -> Iterator[tuple[Kind, str]]:
    """What is the same for all neurons."""
    if mine.fires != theirs.fires:
        has, has_not = ("has a threshold", "does not")
        yield (
            "threshold",
            f"it {has}; the float model {has_not}"
            if mine.fires
            else ("it has no threshold; the float model does"),
        )
        return
    if (mine.graded is not None) != theirs.graded:
        sends = ("values", "spikes") if mine.graded is not None else ("spikes", "values")
        yield "output", f"it sends {sends[0]}; the float model sends {sends[1]}"
    if not theirs.fires:
        return
    reset = rules.reset(theirs)
    if mine.reset != reset:
        what = f"a spike {RESETS[mine.reset]}; in the float model it {RESETS[reset]}"
        yield "reset", what
    remembers = mine.has_current
    if remembers and mine.reset_current != theirs.reset_current:
        does = ("sets", "leaves") if mine.reset_current else ("leaves", "sets")
        text = f"a spike {_of_current(does[0])}; in the float model it {_of_current(does[1])}"
        yield "reset", text
    if mine.hold != theirs.hold:
        yield "hold", f"it rests {_steps(mine.hold)} after a spike, not {_steps(theirs.hold)}"


def _of_current(does: str) -> str:
    return "sets the currents to 0" if does == "sets" else "leaves the currents as they are"


def _steps(hold: int) -> str:
    if hold == ONCE:
        return "for good"
    return f"{hold} step{'' if hold == 1 else 's'}"


def _values(population: Population, known: FloatPopulation, name: str) -> Iterator[Fault]:
    """Values of v that are not the nearest; none is as good as zero, except for a floor."""
    kind, called, exact = VALUES[name]
    held, meant = getattr(population.neurons, name), exact(known.neurons)
    if name == "v_reset" and population.neurons.reset != rules.reset(known.neurons):
        return  # which is a fault of its own
    if name == "floor" and (held is None) != (meant is None):
        there, lacks = ("the float model", "it") if held is None else ("it", "the float model")
        yield Fault(population.name, kind, 1, f"{there} has a lowest voltage; {lacks} has none")
        return
    if held is None:
        return
    unit = population.neurons.scale / UNIT
    wanted = np.clip((0.0 if meant is None else meant) / unit, -rules.WIDEST, rules.WIDEST)
    yield from _off(population, kind, called, held, wanted)


def _decays(population: Population, known: FloatPopulation, name: str) -> Iterator[Fault]:
    """Decays that are not the nearest."""
    called, share, least = DECAYS[name]
    held, meant = getattr(population.neurons, name), share(known.neurons)
    if held is None or meant is None:
        if (held is None) != (meant is None) and name == "du2":
            there, lacks = ("the float model", "it") if held is None else ("it", "the float model")
            text = f"{there} has a second current; {lacks} has none"
            yield Fault(population.name, "decay", 1, text)
        return
    wanted = np.clip(DECAY_ONE * meant + least, 0, FORGETS)
    yield from _off(population, "decay", f"decays ({name}) of {called}", held, wanted)


def _off(
    population: Population, kind: Kind, called: str, held: Any, wanted: NDArray[Any]
) -> Iterator[Fault]:
    """The fault that some values are not the nearest; one that all neurons share counts once."""
    full = np.broadcast_to(held, population.shape)
    exact = np.broadcast_to(wanted, population.shape)
    wrong = fault.off(full, exact)
    if not wrong.any():
        return
    if np.ptp(full) == 0 and np.ptp(exact) == 0:
        one, other, count = int(full.flat[0]), round(float(exact.flat[0])), 1
        far = fault.by(one, other, "high", "low")
        text = f"the {called} are {one:,}, not {other:,} ({far})"
    else:
        count = int(wrong.sum())
        rows = [(i, int(full[i]), round(float(exact[i]))) for i in fault.indices(wrong)]
        text = fault.listed(count, wrong.size, called, rows)
    yield Fault(population.name, kind, count, text)


def _gains(population: Population, theirs: FloatNeurons) -> Iterator[Fault]:
    """Gains that are not the nearest, or those of another step."""
    held, meant = population.neurons.gain, theirs.amplify
    if held is None or meant is None:
        if (held is None) != (meant is None):
            there, lacks = ("the float model", "it") if held is None else ("it", "the float model")
            text = f"{there} has a gain for each step; {lacks} has none"
            yield Fault(population.name, "gain", 1, text)
        return
    steps = min(len(held), len(meant))
    exact = meant[:steps] / rules.common_gain(theirs) * DECAY_ONE
    whole = _like(held[:steps].astype(np.int64), exact)
    whole, exact = np.broadcast_arrays(whole, _like(exact, held))
    wrong = fault.off(whole, exact)
    if not wrong.any():
        return
    count = int(wrong.sum())
    for late, word in ((1, "later"), (-1, "earlier")):
        kept = slice(max(late, 0), steps + min(late, 0))
        moved = np.roll(exact, late, axis=0)[kept]
        if steps > 2 and not fault.off(whole[kept], moved).any():
            text = f"the gains are those of the float model, one time step {word}"
            yield Fault(population.name, "gain", count, text)
            return
    rows = [(i, int(whole[i]), round(float(exact[i]))) for i in fault.indices(wrong)]
    text = fault.listed(count, wrong.size, "gains (step, ...)", rows)
    yield Fault(population.name, "gain", count, text)


def _like(values: NDArray[Any], other: NDArray[Any]) -> NDArray[Any]:
    """Values [T, ...] with as many dimensions behind T as ``other``, or more."""
    missing = other.ndim - values.ndim
    return values.reshape(len(values), *[1] * max(missing, 0), *values.shape[1:])
