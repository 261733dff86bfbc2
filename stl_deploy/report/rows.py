"""The network in rows: its populations and its connections, in words and numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stl_deploy.chips import rules
from stl_deploy.ir.kinds import entry
from stl_deploy.ir.network import Connection, Input, IntegerNetwork, Population, synapse_count
from stl_deploy.ir.neurons import Neurons
from stl_deploy.ir.notes import Precision
from stl_deploy.ir.readouts import Readout
from stl_deploy.ir.synapses import Conv, Dense, Kernel, OneToOne, Sparse


@dataclass(frozen=True)
class PopulationRow:
    """A row of the table of populations; None where a column does not apply.

    ``weights`` are the non-zero numbers stored of all connections into it, ``synapses`` those that they make.
    ``assumed`` are rules of its neurons that nobody has published a program of the chip for.
    """

    population: Population
    kind: str
    weights: int | None
    synapses: int
    precision: Precision | None
    thresholds: NDArray[np.int32] | None
    assumed: list[str]


@dataclass(frozen=True)
class ConnectionRow:
    """A row of the table of connections; ``effective_bits`` is None where they are not known."""

    connection: Connection
    kind: str
    weights: int
    synapses: int
    effective_bits: float | None


def populations(network: IntegerNetwork) -> list[PopulationRow]:
    """The rows of all populations. Raises LoweringError for a kind that there are no words for."""
    return [population_row(network, population) for population in network.populations]


def connections(network: IntegerNetwork) -> list[ConnectionRow]:
    """The rows of all connections, in the order of the populations that they lead into."""
    return [
        ConnectionRow(
            connection=c,
            kind=", ".join(words(c)),
            weights=c.stored_weights,
            synapses=synapse_count(network, c),
            effective_bits=effective_bits(network, c),
        )
        for population in network.populations
        for c in network.into(population.name)
    ]


def effective_bits(network: IntegerNetwork, c: Connection) -> float | None:
    """The effective bits of a connection's worst channel; None where they were not noted."""
    precision = network.precision.get(c.target)
    if precision is None:
        return None
    into = network.into(c.target)
    if len(into) == 1:
        return precision.effective_bits
    once = sum(other.name == c.name for other in into) == 1
    return precision.connections.get(c.name if once else f"{c.name} ({c.source})")


def inputs(network: IntegerNetwork) -> list[str]:
    """Each input in words; its name where there are several."""
    several = len(network.inputs) > 1
    return [
        (f"{name} " if several else "input ") + input_words(port)
        for name, port in network.inputs.items()
    ]


def input_words(port: Input) -> str:
    """Shape and values of an input."""
    values = "binary" if (port.lowest, port.levels) == (0, 1) else ""
    values = values or (
        f"{port.lowest:,} to {port.levels:,}" if port.signed else f"graded 0 to {port.levels:,}"
    )
    held = ", the same in every step" if port.held else ""
    return f"{_times(port.shape)}, {values}{held}"


def readout_words(readout: Readout) -> str:
    """How classes are scored."""
    said = {
        "votes": "the most spikes, or sum of values sent",
        "last": "v of the last step",
        "mean": "the mean of v over all steps",
        "max": "the highest v of all steps",
        "first": "the first spike, then the highest v",
    }[readout.rule]
    more = {
        "steps": "weighted by step",
        "factors": "with a factor for each neuron",
        "matrix": "through a matrix",
        "offset": "with an offset",
    }
    found = [words for name, words in more.items() if getattr(readout, name) is not None]
    return ", ".join([said, *found])


def readout_row(readout: Readout) -> dict[str, Any]:
    """What manifests and ``--json`` say of a readout."""
    return {
        "source": readout.source,
        "classes": readout.classes,
        "rule": readout.rule,
        "words": readout_words(readout),
    }


def neuron_words(population: Population) -> str:
    """The neurons of a population with all their rules."""
    return ", ".join(entry(NEURONS, population.kind, population.name, "the report")(population))


def _lif_neurons(population: Population) -> list[str]:
    neurons = population.neurons
    kind = "LIF" if neurons.fires else "integrator"
    current = ["current"] if neurons.has_current else []
    resets = {"zero": ["reset to zero"], "subtract": ["soft reset"]}
    reset = resets.get(neurons.reset, []) if neurons.fires else []
    return [kind, *current, *reset, *(word for word in _rules(neurons) if word != "no threshold")]


def _or_neurons(_: Population) -> list[str]:
    return ["OR of all inputs"]


def _rules(neurons: Neurons) -> list[str]:
    """What neurons do beyond leaking, firing, and a reset to zero or by subtraction."""
    steps = f"{rules.HOLD} of {neurons.hold} {'step' if neurons.hold == 1 else 'steps'}"
    return [steps if word == rules.HOLD else word for word in rules.words(neurons)]


# Words for the neurons of each kind.
NEURONS: dict[str, Callable[[Population], list[str]]] = {"lif": _lif_neurons, "or": _or_neurons}


def population_row(network: IntegerNetwork, population: Population) -> PopulationRow:
    """The row of one population."""
    said, own = entry(KINDS, population.kind, population.name, "the report")(network, population)
    assumed = _rules(population.neurons) if population.name in rules.assumed(network) else []
    into = network.into(population.name)
    return PopulationRow(
        population=population,
        kind=", ".join(word for word in said if word not in assumed),
        weights=sum(c.stored_weights for c in into) if own else None,
        synapses=sum(synapse_count(network, c) for c in into),
        precision=network.precision.get(population.name),
        thresholds=np.unique(population.neurons.vth) if own and population.neurons.fires else None,
        assumed=assumed,
    )


def _lif(network: IntegerNetwork, population: Population) -> tuple[list[str], bool]:
    """What is unusual about LIF neurons and integrators."""
    neurons = population.neurons
    said = ["current"] if neurons.has_current else []
    said += ["soft reset"] if neurons.fires and neurons.reset == "subtract" else []
    said += _rules(neurons)
    decays = neurons.decays.values()
    said += ["own decays"] if any(np.unique(decay).size > 1 for decay in decays) else []
    said += (
        ["recurrent"] if any(c.source == c.target for c in network.into(population.name)) else []
    )
    return said, True


def _or(network: IntegerNetwork, population: Population) -> tuple[list[str], bool]:
    """A pool, or a relay."""
    into = network.into(population.name)
    if len(into) == 1 and into[0].synapses.kind == "conv":
        return [f"OR pool {_times(into[0].synapses.weight.shape[2:])}"], False
    if len(into) == 1 and into[0].synapses.kind == "one_to_one":
        return ["relay"], False
    return ["OR"], False


# Words for a population's kind, and whether its weights and thresholds are its own.
KINDS: dict[str, Callable[[IntegerNetwork, Population], tuple[list[str], bool]]] = {
    "lif": _lif,
    "or": _or,
}


def words(c: Connection) -> list[str]:
    """Words for a connection's synapses. Raises LoweringError for a kind that there are none for."""
    return entry(SYNAPSES, c.synapses.kind, c.name, "the report")(c.synapses)


def _dense_words(_synapses: Dense) -> list[str]:
    return ["dense"]


def _one_to_one_words(_synapses: OneToOne) -> list[str]:
    return ["one-to-one"]


def _conv_words(conv: Conv | Kernel) -> list[str]:
    said = [f"conv {_times(conv.weight.shape[2:])}"]
    if conv.stride != (1, 1):
        said.append(f"stride {_pair(conv.stride)}")
    if conv.padding != (0, 0):
        said.append(f"padding {_pair(conv.padding)}")
    if conv.dilation != (1, 1):
        said.append(f"dilation {_pair(conv.dilation)}")
    if conv.groups != 1:
        said.append(f"{conv.groups} groups")
    return said


def _sparse_words(synapses: Sparse) -> list[str]:
    first, *rest = _conv_words(synapses.kernel)
    return [f"folded {first}", *rest]


SYNAPSES: dict[str, Callable[[Any], list[str]]] = {
    "conv": _conv_words,
    "dense": _dense_words,
    "one_to_one": _one_to_one_words,
    "sparse": _sparse_words,
}


def _times(sizes: Sequence[int]) -> str:
    return "\N{MULTIPLICATION SIGN}".join(map(str, sizes))


def _pair(pair: tuple[int, int]) -> str:
    return str(pair[0]) if pair[0] == pair[1] else _times(pair)
