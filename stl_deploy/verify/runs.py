"""A population that ran otherwise than it is defined, and what mistake in running it explains that.

Each mistake is tried: the population is run again as it would be, as if its inputs had come a time step late
say, and what it then sends is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stl_deploy.hw_sim import reference
from stl_deploy.ir import cut
from stl_deploy.ir.kinds import entry
from stl_deploy.ir.network import IntegerNetwork, Population
from stl_deploy.ir.neurons import MAX_HOLD, ONCE
from stl_deploy.ir.slices import Weights
from stl_deploy.ir.units import DECAY_ONE, FORGETS
from stl_deploy.verify.fault import Fault, Kind

# What inputs and populations send in a sample, [T, *shape] by name.
Sent = Mapping[str, NDArray[Any]]
# What a mistake is called, its kind, and the network and what is sent that it would have run with.
Runs = Iterator[tuple[str, Kind, IntegerNetwork, Sent]]


def run_alone(network: IntegerNetwork, name: str, sent: Sent) -> NDArray[np.uint8]:
    """The spikes [T, *shape] of a population by definition, for what its sources and it send [T, ...]."""
    alone = network.alone(name).cut([name])
    # What is held was repeated for every step already.
    inputs = {source: replace(port, held=False) for source, port in alone.inputs.items()}
    given = {source: values[None] for source, values in sent.items() if source in inputs}
    given[cut.given(name)] = sent[name][None]
    found: NDArray[np.uint8] = (
        reference.run(replace(alone, inputs=inputs), given).layers[name].spikes[0]
    )
    return found


def of_execution(
    network: IntegerNetwork, name: str, sent: Sent, spikes: NDArray[np.uint8]
) -> list[Fault]:
    """What explains that population ``name`` gave ``spikes`` [T, *shape].

    For one sample, whose spikes are not those of the definition (``hw_sim/reference.py``); ``sent`` is what
    its sources, and it itself, send.
    """
    right = run_alone(network, name, sent)
    wrong = int(np.count_nonzero(right != spikes))
    for late, word in ((1, "late"), (-1, "early")):
        if np.array_equal(_moved(right, late), spikes):
            text = f"its spikes came one time step {word}"
            return [Fault(name, "time step", wrong, text)]
    for text, kind, tried, seen in _runs(network, name, sent):
        if np.array_equal(run_alone(tried, name, seen), spikes):
            return [Fault(name, kind, wrong, text)]
    return []


def _runs(network: IntegerNetwork, name: str, sent: Sent) -> Runs:
    """Mistakes in running a population: what to call it, the network and what is sent in it."""
    into = network.into(name)
    for late, word in ((1, "late"), (-1, "early")):
        moved = {source: _moved(values, late) for source, values in sent.items()}
        yield f"it ran as if its inputs came one time step {word}", "time step", network, moved
    for c in into if len(into) > 1 else ():
        least = 1 if c.source == name else 0
        for by, word in ((1, "late"), (-1, "early")):
            if c.delay + by >= least:
                tried = network.changed(replace(c, delay=c.delay + by))
                yield (
                    f"it ran as if connection {c.name} were one time step {word}",
                    "delay",
                    tried,
                    sent,
                )
    for a, b in combinations(into, 2):
        if (
            a.synapses.kind == b.synapses.kind
            and a.synapses.weight.shape == b.synapses.weight.shape
        ):
            tried = network.changed(
                replace(a, synapses=b.synapses, exp=b.exp),
                replace(b, synapses=a.synapses, exp=a.exp),
            )
            text = f"it ran as if the weights of {a.name} and {b.name} were exchanged"
            yield text, "connection", tried, sent
    for c in into:
        for called, weight in entry(TURNS, c.synapses.kind, name, "the search for faults")(
            c.synapses.weight
        ):
            turned = network.changed(replace(c, synapses=c.synapses.with_weights(weight)))
            whose = "its kernel" if len(into) == 1 else f"the kernel of {c.name}"
            yield f"it ran as if {whose} were {called}", "kernel", turned, sent
    population = network.by_name[name]
    if population.kind == "lif":
        for text, kind, fields in _neurons(population, network.timesteps):
            neurons = replace(population.neurons, **fields)
            tried = network.changed(replace(population, neurons=neurons))
            yield f"it ran as if {text}", kind, tried, sent
        if population.neurons.du2 is not None:
            crossed = network.changed(*(replace(c, port=1 - c.port) for c in into))
            yield "it ran as if its currents were exchanged", "port", crossed, sent


def _neurons(population: Population, steps: int) -> Iterator[tuple[str, Kind, dict[str, Any]]]:
    """Mistakes with the rules of neurons: what to call one, its kind, and the fields with it."""
    n = population.neurons
    if n.reset != "zero":
        yield "spikes set v to 0", "reset", {"reset": "zero", "v_reset": 0}
    if n.reset_current:
        yield "spikes left its currents as they are", "reset", {"reset_current": False}
    elif n.has_current:
        yield "spikes set its currents to 0", "reset", {"reset_current": True}
    if n.hold:
        yield "it never rested", "hold", {"hold": 0}
    for by, word in ((1, "longer"), (-1, "shorter")):
        if n.hold != ONCE and n.hold and 0 < n.hold + by <= MAX_HOLD:
            yield f"it rested one step {word}", "hold", {"hold": n.hold + by}
    if n.floor is not None:
        yield "it had no floor", "floor", {"floor": None}
    if np.any(n.v0):
        yield "it started from 0", "start", {"v0": 0}
    if n.adapts:
        yield "its threshold did not move", "adaptive threshold", {"adapt": 0, "dq": 0}
    if n.gain is not None:
        yield "it had no gain", "gain", {"gain": np.full_like(n.gain, DECAY_ONE)}
        for late, word in ((1, "late"), (-1, "early")):
            moved = np.roll(n.gain[:steps], late, axis=0)
            yield f"its gains came one time step {word}", "gain", {"gain": moved}
    for name in ("du", "dv", "du2", "dq"):
        value = getattr(n, name)
        used = {"du": np.any(np.asarray(n.du) != FORGETS), "dq": n.adapts}.get(name, True)
        for by in (1, -1) if value is not None and used else ():
            moved = np.clip(np.asarray(value) + by, 0, FORGETS).astype(np.int32)
            far = "one more" if by > 0 else "one less"
            yield f"{name} were {far}", "decay", {name: moved}


def _turns_of_kernel(weight: Weights) -> Iterator[tuple[str, Weights]]:
    yield "mirrored in both directions", weight[:, :, ::-1, ::-1]
    if weight.shape[2] == weight.shape[3]:
        yield "transposed", weight.swapaxes(2, 3)


def _none(*_: object) -> Iterator[Any]:
    return iter(())


# Mistakes with the weights of synapses, by their kind.
TURNS: dict[str, Callable[[Weights], Iterator[tuple[str, Weights]]]] = {
    "conv": _turns_of_kernel,
    "dense": _none,
    "sparse": _none,
    "one_to_one": _none,
}


def _moved(values: NDArray[Any], late: int) -> NDArray[Any]:
    """Steps [T, ...] moved by one; nothing comes in from outside."""
    out = np.zeros_like(values)
    if late > 0:
        out[1:] = values[:-1]
    else:
        out[:-1] = values[1:]
    return out
