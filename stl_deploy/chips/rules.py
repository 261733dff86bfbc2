"""Which rules of neurons a chip carries, and what of a network it refuses or is only *assumed* to do.

A rule is what neurons do beyond a leaky integrate-and-fire that a spike sets to zero or lowers by its
threshold (docs/numerics.md has the table). A chip's file says where its neurons have them (``[neurons]``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from stl_deploy.chips import facts
from stl_deploy.chips.facts import Chip
from stl_deploy.errors import Problem
from stl_deploy.ir.network import IntegerNetwork, Population
from stl_deploy.ir.neurons import ONCE, Neurons

HOLD = "hold"
GRADED = "graded output"
RESETS = {"constant": "reset to a constant", "none": "no reset"}
# The rules by the words that messages, manifests and reports have for them.
RULES: dict[str, Callable[[Neurons], bool]] = {
    "gain for each step": lambda n: n.gain is not None,
    "second current": lambda n: n.du2 is not None,
    HOLD: lambda n: n.fires and n.hold > 0,
    "hold for all remaining steps": lambda n: n.fires and n.hold == ONCE,
    "floor of v": lambda n: n.floor is not None,
    "no threshold": lambda n: not n.fires,
    "adaptive threshold": lambda n: n.fires and n.adapts,
    GRADED: lambda n: n.graded is not None,
    RESETS["constant"]: lambda n: n.fires and n.reset == "constant",
    RESETS["none"]: lambda n: n.fires and n.reset == "none",
    "reset of the current": lambda n: n.fires and n.reset_current,
    "initial v": lambda n: bool(np.any(np.asarray(n.v0) != 0)),
}
OF_V = ("v_reset", "floor", "adapt", "v0")  # fields that count 1/64 of a unit of vth


def words(neurons: Neurons) -> list[str]:
    """The rules that ``neurons`` have, in the words of ``RULES``; empty for those of any chip."""
    return [word for word, has in RULES.items() if has(neurons)]


def refused(network: IntegerNetwork) -> list[Problem]:
    """What the chip of ``network`` does not do of what its neurons do, or has no room for.

    Covers ``Chip.reset_problems``. Empty where the chip carries everything, or is assumed to.
    """
    chip = facts.of(network)
    return [
        problem
        for population in network.populations
        for problem in (*on(chip, population), *_outside(chip, population))
    ]


def on(chip: Chip, population: Population) -> list[Problem]:
    """Which rules of ``population`` no neuron of ``chip`` has."""
    neurons, name = population.neurons, population.name
    found = [] if not neurons.fires else chip.reset_problems(name, neurons.reset)
    said = {RESETS.get(neurons.reset)} if found else set()
    return found + problems(chip, name, [w for w in words(neurons) if w not in said], neurons.hold)


def problems(chip: Chip, name: str, rules: Iterable[str], hold: int = 0) -> list[Problem]:
    """Which of ``rules``, in the words of ``RULES``, neurons of ``chip`` do not have; ``hold`` is theirs."""
    if chip.rules != "refused":
        return []
    found = []
    for rule in rules:
        if rule != HOLD:
            found.append(
                Problem(name, f"{rule}: neurons of {chip.title} cannot do that", _remedy())
            )
        elif hold > chip.hold_max:
            what = f"{rule} {hold}; after a spike v of {chip.title} rests for at most {chip.hold_max} steps"
            found.append(Problem(name, what, _remedy()))
    return found


def unable(network: IntegerNetwork, chip: Chip) -> list[str]:
    """What ``network``, made for any chip, asks of inputs and neurons that ``chip`` does not do.

    One sentence for each rule, with the names of all that have it.
    """
    each = [
        (name, chip.input_problems(port.levels, port.signed))
        for name, port in network.inputs.items()
    ]
    each += [(population.name, on(chip, population)) for population in network.populations]
    names: dict[str, list[str]] = {}
    for name, problems in each:
        for problem in problems:
            names.setdefault(problem.what, []).append(name)
    return [f"{', '.join(having)}: {what}" for what, having in names.items()]


def assumed(network: IntegerNetwork, chip: Chip | None = None) -> dict[str, list[str]]:
    """The rules of each population that a chip carries only if somebody writes a program for it.

    The chip is the network's own where none is named. No published program of such neurons is known to
    compute what this network does. Populations without such rules are left out.
    """
    if (chip or facts.of(network)).rules != "assumed":
        return {}
    found = {population.name: words(population.neurons) for population in network.populations}
    return {name: rules for name, rules in found.items() if rules}


def _outside(chip: Chip, population: Population) -> Iterator[Problem]:
    """Values that the registers of ``chip`` do not hold."""
    neurons, limit = population.neurons, chip.state_limit
    if limit is not None:
        for field in OF_V:
            value = getattr(neurons, field)
            if (
                value is not None
                and (most := int(np.abs(np.asarray(value, np.int64)).max())) >= limit
            ):
                what = f"{field} of {most:,}; v of {chip.name} reaches {limit - 1:,}"
                yield Problem(population.name, what, "use --chip ideal, or smaller values")
    payload = chip.registers.graded_spike_bits
    if neurons.graded is None or payload is None or not payload.value:
        return
    bits = neurons.graded.levels.bit_length() + (neurons.span[0] < 0)
    if bits > payload.value:
        what = f"sends values of {bits} bits; spikes of {chip.name} carry {payload.value}"
        yield Problem(population.name, what, "send fewer levels, or use another --chip")


def _remedy() -> str:
    able = [name for name in facts.names() if facts.load(name).rules != "refused"]
    return f"use --chip {' or '.join(able)}, or train neurons without it"
