"""The dialect ``portable`` of a NIR graph: the same network in the nodes that most readers know.

``model.nir`` keeps NIR's words for what the chip does. Other tools know fewer words, so that this is
written next to it (docs/nir.md), and read by none of our commands:

- Max pooling is SumPool2d -> LIF with tau = 2 dt and r = 1, which answers one spike with v = 1/2, above its
  threshold of 0.3, and is reset to 0 whenever it held anything.
- A LIF has r = 1; its weights and bias carry what r was, so that dt/tau * (r I) stays what it is.
- A convolution has one group; the kernels of several are filled up with zeros.
- A Flatten counts its dimensions from the end, so that one for a batch may stand in front.
- Thresholds of integers stand half a step of v (2^-7) above vth, where no v falls: readers that fire at
  v >= threshold agree with those that follow NIR's v > threshold. Float thresholds stay as they are.
- ``v_reset`` is left out, which NIR reads as 0: readers with nir 1.0.4 know no such entry.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import h5py
import nir
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from stl_deploy.chips import bounds
from stl_deploy.chips import facts as chips
from stl_deploy.errors import LoweringError, Problem
from stl_deploy.files import write as write_file
from stl_deploy.formats import integer_nir as nir_file
from stl_deploy.formats import nir_io
from stl_deploy.ir import nir_graph as G
from stl_deploy.ir.floats import decode
from stl_deploy.ir.chain import LifLayer
from stl_deploy.ir.network import IntegerNetwork
from stl_deploy.ir.synapses import Shape
from stl_deploy.ir.units import (
    DECAY_BITS,
    DECAY_ONE,
    FORGETS,
    FRACTION_BITS,
    MAX_STEPS,
    UNIT,
)

KEY = "stl_deploy_portable"  # of the JSON string in NIRGraph.metadata
HALF_STEP = 2.0 ** -(FRACTION_BITS + 1)
FLOAT32 = 1 << 24  # integers below it are exact
POOL_TAU = 2 * G.DT
POOL_THRESHOLD = 0.3


class PortableMeta(BaseModel):
    """The JSON string of a portable file.

    ``of`` says what it was made from; ``inexact``, by layer, why the chip's integers may leave these
    nodes' equations.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    format: Literal["stl-deploy/portable"] = "stl-deploy/portable"
    version: Literal[1] = 1
    of: Literal["integer", "float"]
    timesteps: int = Field(ge=1, le=MAX_STEPS)
    input_levels: int = Field(ge=1, le=255)
    classes: int = Field(ge=1)
    population: int = Field(ge=1)
    inexact: dict[str, str] = Field(default_factory=dict)


def from_network(network: IntegerNetwork) -> nir.NIRGraph:
    """The portable graph of ``network``. Raises LoweringError naming all that it cannot say."""
    meta = PortableMeta(
        of="integer",
        timesteps=network.timesteps,
        input_levels=network.input_levels,
        classes=network.readout.classes,
        population=network.readout.population,
        inexact=inexact(network),
    )
    problems = [p for layer in network.lif_layers for p in _unsayable(layer)]
    if problems:
        raise LoweringError(problems)
    return _portable(nir_file.to_nir(network), meta, HALF_STEP)


def from_float(graph: nir.NIRGraph) -> nir.NIRGraph:
    """The portable graph of a lowered float graph. Raises LoweringError naming all it cannot say."""
    known = G.float_meta(graph)
    meta = PortableMeta(
        of="float",
        timesteps=known.timesteps,
        input_levels=known.input_levels,
        classes=known.classes,
        population=known.population,
        inexact=inexact_trained(graph),
    )
    problems = [
        _subtracts(layer.name)
        for layer in decode(graph).layers
        if layer.neurons.reset == "subtract"
    ]
    if problems:
        raise LoweringError(problems)
    return _portable(graph, meta, 0.0)


def inexact(network: IntegerNetwork) -> dict[str, str]:
    """The layers whose integers may leave NIR's equation, or float32's reach, each with the reason.

    Of the others every v is that of NIR's equation, and float32 holds it: a step of decay takes bits
    off the end that are all zero.
    """
    register = chips.of(network).state_limit
    found = {layer.name: _inexact(network, layer, register) for layer in network.lif_layers}
    return {name: why for name, why in found.items() if why}


def _inexact(network: IntegerNetwork, layer: LifLayer, register: int | None) -> str:
    """Why ``layer`` may leave NIR's equation, "" where it cannot. States count steps of 1/64.

    Inputs are multiples of 2^(6+exp) steps, a bias of 2^bias_exp; keeping 1/2 of v costs a bit every
    time, 3/4 two.
    """
    steps, levels = network.timesteps, network.input_limit(layer)
    spare = FRACTION_BITS + layer.exp
    if layer.bias_mant.any():
        spare = min(spare, layer.bias_exp)
    kept_u, kept_v = FORGETS - layer.du, DECAY_ONE - layer.dv
    needed = max(_bits(kept_v), _bits(kept_u)) * (steps - 1)
    if needed > spare:
        return (
            f"{steps} steps of its decay (du {layer.du}, dv {layer.dv}) need {needed} bits below its "
            f"inputs, of which the integers keep {spare}"
        )
    if layer.dv & (layer.dv - 1) or (layer.du + 1) & layer.du:
        return (
            f"a step keeps {kept_u}/{DECAY_ONE} of u and {kept_v}/{DECAY_ONE} of v, whose inverse "
            "time constants are not powers of two, so that the weights and v are rounded"
        )
    spans = (
        bounds.layer_current_range(layer, levels, steps),
        bounds.layer_voltage_range(layer, levels, steps),
    )
    largest = max(int(np.abs(side).max()) for span in spans for side in span)
    limit = FLOAT32 << (spare - needed)
    limit = limit if register is None else min(limit, register)
    if largest >= limit:
        return f"u or v may reach {largest} steps of 1/{UNIT}, beyond {limit - 1}"
    if int(np.abs(layer.vth.astype(np.int64)).max()) >= FLOAT32 >> (FRACTION_BITS + 1):
        return f"float32 has no half step next to a vth of {FLOAT32 >> (FRACTION_BITS + 1)} or more"
    return ""


def inexact_trained(graph: nir.NIRGraph) -> dict[str, str]:
    """The same of a float graph that was trained on integers, whose v truncates; empty for others."""
    meta = G.float_meta(graph)
    if meta.trained is None:
        return {}
    found = {}
    for layer in decode(graph).layers:
        kept = np.unique(np.rint(DECAY_ONE * layer.neurons.keep)).astype(int)
        needed = max(map(_bits, kept.tolist())) * (meta.timesteps - 1)
        if layer.neurons.has_state and needed > FRACTION_BITS:
            found[layer.name] = (
                f"trained on integers: {meta.timesteps} steps of its decay need {needed} bits "
                f"below its inputs, of which its v keeps {FRACTION_BITS}"
            )
    return found


def _bits(kept: int) -> int:
    """How many bits a multiplication by kept/4096 adds below the point."""
    return 0 if kept == 0 else DECAY_BITS - ((kept & -kept).bit_length() - 1)


def _unsayable(layer: LifLayer) -> Iterator[Problem]:
    if layer.reset == "subtract":
        yield _subtracts(layer.name)
    if layer.synapses.kind == "sparse":
        yield Problem(
            layer.name,
            "is a folded convolution, whose single connections no node of NIR can express",
            "use --thresholds native, or --nir-dialect spec",
        )


def _subtracts(name: str) -> Problem:
    return Problem(
        name,
        "resets by subtraction, which NIR's equations cannot express",
        "use --nir-dialect spec, whose metadata states it",
    )


def _portable(graph: nir.NIRGraph, meta: PortableMeta, above: float) -> nir.NIRGraph:
    nodes, recurrent = G.inner(graph), G.recurrent(graph)
    gains: dict[str, NDArray[np.float64]] = {}
    problems: list[Problem] = []
    shape, weights = G.in_shape(graph), ""
    out: dict[str, nir.ir.NIRNode] = {}
    shapes: dict[str, Shape] = {}
    for name, node in nodes.items():
        shapes[name] = shape
        out[name] = _reworded(node, shape, above)
        shape = G.node_output(name, node, shape)
        if isinstance(node, nir.LIF) and (node.r != 1).any():
            try:
                gains[weights] = _by_channel(node.r, nodes.get(weights))
            except ValueError as error:
                problems.append(Problem(name, str(error), "use --nir-dialect spec"))
            if name in recurrent:
                gains[recurrent[name][0]] = node.r.astype(np.float64)
        weights = name
    if problems:
        raise LoweringError(problems)
    out = {name: _scaled(node, gains.get(name), shapes[name]) for name, node in out.items()}
    own = {
        neurons: (name, _scaled(node, gains.get(name), shapes[neurons]))
        for neurons, (name, node) in recurrent.items()
    }
    made = G.chain_graph(out, G.in_shape(graph), shape, "", own)
    made.metadata = {KEY: meta.model_dump_json()}
    return made


def _reworded(node: nir.ir.NIRNode, shape: Shape, above: float) -> nir.ir.NIRNode:
    """``node`` as the dialect has it; the weights are not scaled yet."""
    match node:
        case nir.Flatten():
            out = nir.Flatten({"input": np.array(shape)}, -len(shape), -1)
            out.output_type = {"output": np.array([math.prod(shape)])}
            return out
        case nir.Threshold():
            return G.lif(np.full(shape, POOL_THRESHOLD), POOL_TAU, 1.0)
        case nir.LIF():
            threshold = node.v_threshold.astype(np.float64) + above
            return replace(node, r=np.ones(shape), v_threshold=threshold)
        case nir.CubaLIF():
            return replace(node, v_threshold=node.v_threshold.astype(np.float64) + above)
    return node


def _by_channel(r: NDArray[Any], node: nir.ir.NIRNode | None) -> NDArray[np.float64]:
    """r [O] for the outputs of the weights ``node``. Raises ValueError where they cannot take it."""
    if not isinstance(node, nir.Conv2d | nir.Affine | nir.Linear):
        raise ValueError("has an r other than 1 and no weights before it that could carry it")
    flat = r.astype(np.float64).reshape(len(node.weight), -1)
    if (flat != flat[:, :1]).any():
        raise ValueError("r differs within a channel, whose weights are shared")
    channels: NDArray[np.float64] = flat[:, 0]
    return channels


def _scaled(node: nir.ir.NIRNode, gain: NDArray[np.float64] | None, shape: Shape) -> nir.ir.NIRNode:
    """Weights times ``gain`` [O], in a float type: not every reader takes integers."""
    if not isinstance(node, nir.Conv2d | nir.Affine | nir.Linear):
        return node
    by = np.ones(len(node.weight)) if gain is None else gain
    weight = node.weight * by.reshape(-1, *[1] * (node.weight.ndim - 1))
    short = weight.astype(np.float32)
    weight = short if (short == weight).all() else weight
    if isinstance(node, nir.Linear):
        return nir.Linear(weight=weight)
    bias = np.asarray(node.bias, np.float64) * by
    if isinstance(node, nir.Affine):
        return nir.Affine(weight=weight, bias=bias)
    stride, padding, dilation = G.conv_geometry(node)
    weight = _one_group(weight, int(node.groups))
    return G.conv2d(weight, bias, shape, stride, padding, 1, dilation)


def _one_group(weight: NDArray[Any], groups: int) -> NDArray[Any]:
    """The kernels [O, C/groups, kh, kw] as [O, C, kh, kw], zero for the channels of other groups."""
    outputs, per_group = weight.shape[:2]
    full = np.zeros((outputs, per_group * groups, *weight.shape[2:]), weight.dtype)
    for group in range(groups):
        rows = slice(group * outputs // groups, (group + 1) * outputs // groups)
        full[rows, group * per_group : (group + 1) * per_group] = weight[rows]
    return full


def write(graph: nir.NIRGraph, path: Path) -> None:
    """Write a portable graph, whole or not at all, without a ``v_reset`` that is 0."""
    memory = nir_io.to_hdf5(graph)
    with h5py.File(memory, "r+") as file:
        for node in file["node/nodes"].values():
            if "v_reset" in node and not np.any(node["v_reset"][()]):
                del node["v_reset"]
    write_file(path, memory.getvalue())


def write_beside(network: IntegerNetwork, graph: nir.NIRGraph | None, folder: Path) -> None:
    """Write model.portable.nir and, of a lowered float graph, model.float.portable.nir.

    Raises LoweringError naming all that the dialect cannot say.
    """
    write(from_network(network), folder / "model.portable.nir")
    if graph is not None:
        write(from_float(graph), folder / "model.float.portable.nir")


def read_meta(graph: nir.NIRGraph) -> PortableMeta | None:
    """The JSON string of a portable graph; None for any other. Raises ValueError for a broken one."""
    text = graph.metadata.get(KEY)
    if text is None:
        return None
    text = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
    if not isinstance(text, str):
        raise ValueError("not a string")
    return PortableMeta.model_validate(json.loads(text))
