"""The Lava process graph: a standalone script and the arrays that it hands to Lava's processes.

``lava_network.py`` is a fixed file (templates/lava_network.py). ``lava_params.npz`` holds what lava-nc
0.10.0 takes, with populations (C, H, W) as (W, H, C). Of population i, int32 of its shape: ``p<i>/vth``,
``p<i>/bias_mant``, ``p<i>/du`` and ``p<i>/dv``, and where its neurons have the rule ``v_reset``, ``floor``,
``adapt``, ``dq``, ``du2``, ``v0`` and ``gain`` [T, ...]. Of the readout, int64 where it has them: ``r/steps``
[T], ``r/factors`` [neurons], ``r/matrix`` [classes, neurons] and ``r/offset`` [classes], with neurons in the
model's own order. Of connection i:

- Conv: ``c<i>/weight`` int32 [O, kw, kh, C/groups], spatially flipped because lava/proc/conv/utils.py
  convolves where PyTorch correlates, and times 2^exp because Conv ignores exponents. It does not look
  at the size of weights either, so that it holds w of any precision, all groups in one.
- all others: ``c<i>/weight/<g>`` int32, for each group g of synapses (``slices.py``) that holds anything,
  all into the same neurons: 2 w where signs are mixed, because such a matrix keeps even weights only
  (lava/utils/weightutils.py), with ``weight_exp`` = exp - 1, which Dense and Sparse apply after the sum
  (lava/proc/dense/models.py, lava/proc/sparse/models.py), so that nothing is lost; w where they are not.
  Dense: [neurons, inputs]. Sparse: each single synapse [n], with ``c<i>/row/<g>`` (neuron) and
  ``c<i>/column/<g>`` (input) int32. Neurons and inputs count in the order W, H, C.

``network`` is a JSON string with the rest.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stl_deploy.errors import LoweringError
from stl_deploy.exporters import loihi_layers
from stl_deploy.files import atomic
from stl_deploy.files import write as write_file
from stl_deploy.ir import slices
from stl_deploy.ir.network import Connection, Input, IntegerNetwork, Population
from stl_deploy.ir.slices import Sign
from stl_deploy.ir.synapses import Shape

FORMAT = "stl-deploy-lava/5"
Described = tuple[dict[str, Any], dict[str, Any]]


def write(network: IntegerNetwork, folder: Path) -> None:
    """Write lava_network.py and lava_params.npz. Raises LoweringError with all problems."""
    if problems := loihi_layers.problems(network):
        raise LoweringError(problems)
    arrays = params(network)
    script = resources.files("stl_deploy.exporters") / "templates" / "lava_network.py"
    write_file(folder / "lava_network.py", script.read_bytes())
    # numpy gives its zip entries the time 1980-01-01, so equal arrays make equal bytes.
    with atomic(folder / "lava_params.npz") as temporary:
        np.savez_compressed(temporary, **arrays)


def params(network: IntegerNetwork) -> dict[str, Any]:
    """The arrays of lava_params.npz."""
    arrays: dict[str, Any] = {}
    connections = []
    for i, connection in enumerate(network.connections):
        described, own = _connection(network, connection)
        connections.append(described)
        arrays |= {f"c{i}/{key}": array for key, array in own.items()}
    for i, population in enumerate(network.populations):
        arrays |= {
            f"p{i}/{key}": array for key, array in _neurons(population, network.timesteps).items()
        }
    readout, own = _readout(network)
    arrays |= {f"r/{key}": array for key, array in own.items()}
    description = {
        "format": FORMAT,
        "chip": network.chip,
        "timesteps": network.timesteps,
        "inputs": [_input(name, given) for name, given in network.inputs.items()],
        "populations": [_population(network, population) for population in network.populations],
        "connections": connections,
        "readout": readout,
    }
    return {"network": np.array(json.dumps(description, sort_keys=True)), **arrays}


def _input(name: str, given: Input) -> dict[str, Any]:
    span = {"lowest": given.lowest, "levels": given.levels, "held": given.held}
    return {"name": name, "shape": given.shape, **span}


def _population(network: IntegerNetwork, population: Population) -> dict[str, Any]:
    depth = network.depth
    assert depth is not None  # loihi_layers.problems
    neurons = population.neurons
    graded = neurons.graded
    return {
        "name": population.name,
        "shape": population.shape,
        "depth": depth[population.name],
        "bias_exp": neurons.bias_exp,
        "reset": neurons.reset,
        "fires": neurons.fires,
        "reset_current": neurons.reset_current,
        "hold": neurons.hold,
        "graded": None if graded is None else {"shift": graded.shift, "levels": graded.levels},
        "span": network.span(population.name),
        "arrays": list(_fields(population)),
        "states": neurons.states,
    }


def _fields(population: Population) -> Iterator[str]:
    """The parameters that the neurons of a population need."""
    neurons = population.neurons
    yield from ("vth", "bias_mant", "du", "dv")
    if neurons.reset == "constant":
        yield "v_reset"
    if neurons.floor is not None:
        yield "floor"
    if neurons.adapts:
        yield from ("adapt", "dq")
    if neurons.du2 is not None:
        yield "du2"
    if np.any(neurons.v0):
        yield "v0"
    if neurons.gain is not None:
        yield "gain"


def _neurons(population: Population, timesteps: int) -> dict[str, NDArray[np.int32]]:
    """The arrays of a population; a gain has one for each step."""

    def reversed_axes(values: Any) -> NDArray[np.int32]:
        return np.broadcast_to(values, population.shape).astype(np.int32).T

    found = {}
    for name in _fields(population):
        values = getattr(population.neurons, name)
        if name == "gain":
            found[name] = np.stack([reversed_axes(step) for step in values[:timesteps]])
        else:
            found[name] = reversed_axes(values)
    return found


def _readout(network: IntegerNetwork) -> Described:
    """What the host does with what the neurons of a population sent, and its arrays."""
    readout = network.readout
    extra = {
        "steps": readout.steps and readout.steps[: network.timesteps],
        "factors": readout.factors,
        "matrix": readout.matrix,
        "offset": readout.offset,
    }
    arrays = {name: np.array(given, np.int64) for name, given in extra.items() if given is not None}
    described = {
        name: getattr(readout, name) for name in ("classes", "population", "source", "rule")
    }
    return described | {"arrays": list(arrays)}, arrays


def _connection(network: IntegerNetwork, connection: Connection) -> Described:
    """What ``network`` says of a connection, and its arrays."""
    described = {
        "name": connection.name,
        "source": connection.source,
        "target": connection.target,
        "kind": PROCESSES[connection.synapses.kind].name,
        "delay": connection.delay,
        "waits": network.waits(connection),
        "port": connection.port,
        "synapse_groups": [],
    }
    more, arrays = PROCESSES[connection.synapses.kind].describe(network, connection)
    return described | more, arrays


def _conv(_network: IntegerNetwork, connection: Connection) -> Described:
    """Lava wants (W, H)."""
    given: Any = connection.synapses
    conv = loihi_layers.merged_groups(given)
    pairs = {key: getattr(conv, key)[::-1] for key in ("stride", "padding", "dilation")}
    weight = conv.weight.astype(np.int32)[:, :, ::-1, ::-1].transpose(0, 3, 2, 1) << connection.exp
    return {"groups": conv.groups, **pairs}, {"weight": weight}


def _groups(connection: Connection) -> list[tuple[Sign, Connection]]:
    """The groups of synapses that hold any weight, each with its sign."""
    each = zip(slices.GROUPS[connection.precision], connection.groups(), strict=True)
    return [(group.sign, one) for group, one in each if one.synapses.weight.any()]


def _group(sign: Sign, one: Connection) -> dict[str, Any]:
    """How Lava is told of a group."""
    return {"sign": sign.upper(), "weight_exp": one.exp - (sign == "mixed")}


def _doubled(sign: Sign, weight: NDArray[Any]) -> NDArray[np.int32]:
    return weight.astype(np.int32) * (2 if sign == "mixed" else 1)


def _dense(network: IntegerNetwork, connection: Connection) -> Described:
    groups = _groups(connection)
    ends = connection.target, connection.source
    place = np.ix_(*(np.argsort(_reversed(network.shape(end))) for end in ends))
    arrays: dict[str, Any] = {
        f"weight/{g}": _doubled(sign, one.synapses.weight[place])
        for g, (sign, one) in enumerate(groups)
    }
    return {"synapse_groups": [_group(*group) for group in groups]}, arrays


def _single(network: IntegerNetwork, connection: Connection) -> Described:
    groups, arrays = _groups(connection), {}
    source, target = network.shape(connection.source), network.shape(connection.target)
    for g, (sign, one) in enumerate(groups):
        weight = one.synapses.weight
        row, column = one.synapses.entries(source, target)
        arrays[f"weight/{g}"] = _doubled(sign, weight[weight != 0])
        arrays[f"row/{g}"] = _reversed(target)[row]
        arrays[f"column/{g}"] = _reversed(source)[column]
    return {"synapse_groups": [_group(*group) for group in groups]}, arrays


@dataclass(frozen=True)
class Process:
    """Which process of Lava carries a kind of synapses, and what it is told of a connection."""

    name: str
    describe: Callable[[IntegerNetwork, Connection], Described]


PROCESSES: dict[str, Process] = {
    "conv": Process("conv", _conv),
    "dense": Process("dense", _dense),
    "one_to_one": Process("sparse", _single),
    "sparse": Process("sparse", _single),
}


def _reversed(shape: Shape) -> NDArray[np.int32]:
    """The place of each neuron, in C order of ``shape``, when all axes are reversed."""
    place = np.arange(math.prod(shape), dtype=np.int32).reshape(shape[::-1])
    return place.T.reshape(-1)
