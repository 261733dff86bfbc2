"""The dialect ``portable`` of a NIR graph: the same network in the nodes that most readers know.

``model.nir`` keeps NIR's words for what the chip does. Other tools know fewer words, so that this is
written next to it (docs/nir.md), and read by none of our commands:

- Max pooling is SumPool2d -> LIF with tau = 2 dt and r = 1, which answers one spike with v = 1/2, above
  its threshold of 0.3, and is reset to 0 whenever it held anything.
- A LIF has r = 1; its weights and bias carry what r was, so that dt/tau * (r I) stays what it is.
- One-to-one weights are a Linear with a diagonal, or a Conv2d of 1 x 1, because no other tool reads a
  Scale. A factor of 1 is an edge.
- A convolution has one group; the kernels of several are filled up with zeros.
- A Flatten counts its dimensions from the end, so that one for a batch may stand in front.
- Thresholds of integers stand half a step of v (2^-7) above vth, where no v falls: readers that fire at
  v >= threshold agree with those that follow NIR's v > threshold. Float thresholds stay as they are.
- ``v_reset`` is left out, which NIR reads as 0: readers with nir 1.0.4 know no such entry.
- Of the edges out of a node, those to the nearest nodes come first: Norse runs a graph depth first in
  this order.

What no known tool (``backends/consumers``) can run is refused: a Delay, a second input, neurons that
nothing leads to, neurons without a threshold. So are rules of neurons and readouts that only the metadata of
``model.nir`` say. The matrix of a readout is a Linear or Affine at the end, whose outputs are the votes.
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
from stl_deploy.chips import rules as chip_rules
from stl_deploy.errors import LoweringError, Problem
from stl_deploy.files import write as write_file
from stl_deploy.formats import integer_nir as nir_file
from stl_deploy.formats import integer_readout as readouts
from stl_deploy.formats import integer_rules as rules
from stl_deploy.formats import integer_words as words
from stl_deploy.formats import nir_io
from stl_deploy.ir import nir_graph as G
from stl_deploy.ir import nir_walk as walk
from stl_deploy.ir.float_neurons import FloatNeurons
from stl_deploy.ir.floats import FloatNetwork, decode
from stl_deploy.ir.network import Connection, IntegerNetwork, Population
from stl_deploy.ir.readouts import Readout
from stl_deploy.ir.units import (
    DECAY_BITS,
    DECAY_ONE,
    FORGETS,
    FRACTION_BITS,
    MAX_SIGNED,
    MAX_STEPS,
    UNIT,
)

KEY = "stl_deploy_portable"  # of the JSON string in NIRGraph.metadata
HALF_STEP = 2.0 ** -(FRACTION_BITS + 1)
FLOAT32 = 1 << 24  # integers below it are exact
POOL_TAU = 2 * G.DT
POOL_THRESHOLD = 0.3
MOST_DIAGONAL = 8000  # neurons: a diagonal of 256 MB
SPEC = "use --nir-dialect spec"
Float = NDArray[np.float64]


class PortableMeta(BaseModel):
    """The JSON string of a file in this dialect or in that of ``spinnaker2_nir``, which ``format`` says.

    ``of`` says what it was made from; ``inexact``, by population, why the chip's integers may leave these
    nodes' equations. ``input_levels``, ``signed`` and ``held`` are those of the input (``network.Input``).
    ``reset`` is what all neurons do where the reader has to be told, None where the nodes say it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    format: Literal["stl-deploy/portable", "stl-deploy/spinnaker2"] = "stl-deploy/portable"
    version: Literal[2] = 2
    of: Literal["integer", "float"]
    timesteps: int = Field(ge=1, le=MAX_STEPS)
    input_levels: int = Field(ge=1, le=MAX_SIGNED)
    signed: bool = False
    held: bool = False
    classes: int = Field(ge=1)
    population: int = Field(ge=1)
    inexact: dict[str, str] = Field(default_factory=dict)
    reset: Literal["zero", "subtract"] | None = None

    def text(self) -> str:
        """The JSON string."""
        return self.model_dump_json(exclude_none=True)


def from_network(network: IntegerNetwork) -> nir.NIRGraph:
    """The portable graph of ``network``. Raises LoweringError naming all that it cannot say."""
    problems = nir_file.unsupported(network)
    if not problems:
        problems = list(one_input(list(network.inputs)))
        problems += [p for name in network.by_name for p in unsayable(network, name)]
        problems += unread(network.readout)
    if problems:
        raise LoweringError(problems)
    (port,) = network.inputs.values()
    readout = network.readout
    meta = PortableMeta(
        of="integer",
        timesteps=network.timesteps,
        input_levels=port.levels,
        signed=port.signed,
        held=port.held,
        classes=readout.classes,
        population=readout.population if readout.matrix is None else 1,
        inexact=inexact(network),
    )
    return _Rewriting(nir_file.to_nir(network), HALF_STEP).graph(meta)


def from_float(graph: nir.NIRGraph) -> nir.NIRGraph:
    """The portable graph of a lowered float graph. Raises LoweringError naming all it cannot say."""
    known, network = G.float_meta(graph), decode(graph)
    meta = PortableMeta(
        of="float",
        timesteps=known.timesteps,
        input_levels=known.input_levels,
        signed=known.signed,
        held=known.held,
        classes=known.classes,
        population=1 if _ends_in_a_matrix(network) else known.population,
        inexact=inexact_trained(graph),
    )
    problems = list(one_input(list(network.inputs)))
    for p in network.populations:
        problems += [_ruled(p.name, rule) for rule in float_rules(p.neurons)]
        problems += [] if p.neurons.fires else [_silent(p.name)]
    problems += [] if network.readout is None else unread(network.readout)
    problems += [_delays(name) for name, n in graph.nodes.items() if isinstance(n, nir.Delay)]
    if problems:
        raise LoweringError(problems)
    return _Rewriting(graph, 0.0).graph(meta)


def _ends_in_a_matrix(network: FloatNetwork) -> bool:
    return network.readout is not None and network.readout.matrix is not None


def inexact(network: IntegerNetwork) -> dict[str, str]:
    """The populations whose integers may leave NIR's equation, or float32's reach, each with the reason.

    Of the others every v is that of NIR's equation, and float32 holds it: a step of decay takes bits
    off the end that are all zero.
    """
    register = chips.of(network).state_limit
    found = {p.name: INEXACT[p.kind](network, p, register) for p in network.populations}
    return {name: why for name, why in found.items() if why}


def _inexact_or(network: IntegerNetwork, population: Population, _register: int | None) -> str:
    """Why an OR population may leave a threshold of 0: what is below it is kept in part."""
    low, _ = bounds.one_sided_sums(network, population)
    return "more than nothing may be taken off what it pools" if (low < 0).any() else ""


def _inexact_lif(network: IntegerNetwork, population: Population, register: int | None) -> str:
    """Why LIF neurons may leave NIR's equation, "" where they cannot. States count steps of 1/64.

    Inputs are multiples of 2^(6+exp) steps, a bias of 2^bias_exp; keeping 1/2 of v costs a bit every
    time, 3/4 two.
    """
    neurons, steps = population.neurons, network.timesteps
    spare = FRACTION_BITS + words.base(network, population)
    if neurons.bias.any():
        spare = min(spare, neurons.bias_exp)
    if neurons.reset == "constant" and (after := np.asarray(neurons.v_reset)).any():
        lowest = int(np.bitwise_or.reduce(np.abs(after), axis=None))
        spare = min(spare, (lowest & -lowest).bit_length() - 1)
    du, dv = (np.broadcast_to(values, population.shape) for values in (neurons.du, neurons.dv))
    kept_u, kept_v = FORGETS - du, DECAY_ONE - dv
    needed = np.maximum(_bits(kept_v), _bits(kept_u)) * (steps - 1)
    worst = int(needed.argmax())
    most = int(needed.flat[worst])
    if most > spare:
        return (
            f"{steps} steps of its decay (du {du.flat[worst]}, dv {dv.flat[worst]}) need {most} bits below "
            f"its inputs, of which the integers keep {spare}"
        )
    rounded = np.flatnonzero((dv & (dv - 1)) | ((du + 1) & du))
    if rounded.size:
        u, v = kept_u.flat[rounded[0]], kept_v.flat[rounded[0]]
        return (
            f"a step keeps {u}/{DECAY_ONE} of u and {v}/{DECAY_ONE} of v, whose inverse "
            "time constants are not powers of two, so that the weights and v are rounded"
        )
    spans = (
        bounds.current_range(network, population, steps),
        bounds.voltage_range(network, population, steps),
    )
    largest = max(int(np.abs(side).max()) for span in spans for side in span)
    limit = FLOAT32 << (spare - most)
    limit = limit if register is None else min(limit, register)
    if largest >= limit:
        return f"u or v may reach {largest} steps of 1/{UNIT}, beyond {limit - 1}"
    if int(np.abs(neurons.vth.astype(np.int64)).max()) >= FLOAT32 >> (FRACTION_BITS + 1):
        return f"float32 has no half step next to a vth of {FLOAT32 >> (FRACTION_BITS + 1)} or more"
    return ""


INEXACT = {"lif": _inexact_lif, "or": _inexact_or}


def inexact_trained(graph: nir.NIRGraph) -> dict[str, str]:
    """The same of a float graph that was trained on integers, whose v truncates; empty for others."""
    meta = G.float_meta(graph)
    if meta.trained is None:
        return {}
    found = {}
    for population in decode(graph).populations:
        shares = population.neurons.keep, 1 - population.neurons.current
        kept = [np.rint(DECAY_ONE * share).astype(np.int64) for share in shares]
        needed = max(int(_bits(steps).max()) for steps in kept) * (meta.timesteps - 1)
        if population.neurons.has_state and needed > FRACTION_BITS:
            found[population.name] = (
                f"trained on integers: {meta.timesteps} steps of its decays need {needed} bits "
                f"below its inputs, of which its v keeps {FRACTION_BITS}"
            )
    return found


def _bits(kept: NDArray[Any]) -> NDArray[np.int64]:
    """How many bits a multiplication by kept/4096 adds below the point."""
    lowest = np.where(kept == 0, DECAY_ONE, kept & -kept)
    return DECAY_BITS - np.round(np.log2(lowest)).astype(np.int64)


def one_input(names: list[str]) -> Iterator[Problem]:
    """The problem of several inputs."""
    if len(names) > 1:
        what = "are several inputs; no tool that is known runs a graph with more than one"
        yield Problem(", ".join(names), what, SPEC)


def unsayable(
    network: IntegerNetwork, name: str, said: frozenset[str] = frozenset()
) -> Iterator[Problem]:
    """What of a population, and of the connections into it, the dialect has no words for.

    ``said`` are rules of neurons that it can express in addition to those of NIR.
    """
    population, into = network.by_name[name], network.into(name)
    for rule in rules.unsaid(population.neurons):
        if rule not in said:
            yield _ruled(name, rule)
    if not population.neurons.fires:
        yield _silent(name)
    if not into:
        what = "nothing leads to it; no tool that is known runs such neurons"
        yield Problem(name, what, SPEC)
    for c in into:
        if c.synapses.kind == "sparse":
            yield Problem(
                name,
                "is a folded convolution, whose single connections no node of NIR can express",
                "use --thresholds native, or --nir-dialect spec",
            )
        if c.delay > int(c.source == c.target):
            yield _delays(f"{c.name} ({c.source} to {c.target})")
        if len(population.shape) > 1 and not _keeps_shape(network, c, population):
            what = f"gives a flat output, and {name} has shape {population.shape}"
            yield Problem(f"{c.name} ({c.source} to {name})", what, SPEC)


def _keeps_shape(network: IntegerNetwork, c: Connection, population: Population) -> bool:
    if c.synapses.kind == "one_to_one":
        return network.shape(c.source) == population.shape
    return c.synapses.kind != "dense"


def float_rules(neurons: FloatNeurons) -> list[str]:
    """The rules of float neurons that NIR's equations cannot express."""
    fires = neurons.fires
    found = {
        "reset by subtraction": fires and neurons.reset == "subtract",
        chip_rules.RESETS["none"]: fires and neurons.reset == "none",
        "reset of the current": fires and neurons.reset_current,
        chip_rules.HOLD: fires and neurons.hold != 0,
        "floor of v": neurons.floor is not None,
        "initial v": neurons.v0 is not None,
        "adaptive threshold": neurons.adapt is not None,
        "second current": neurons.current2 is not None,
        "gain for each step": neurons.amplify is not None,
        chip_rules.GRADED: neurons.graded,
    }
    return [rule for rule, has in found.items() if has]


def _ruled(name: str, rule: str) -> Problem:
    what = f"{rule}: NIR's equations cannot express it"
    return Problem(name, what, f"{SPEC}, whose metadata states it")


def _silent(name: str) -> Problem:
    what = "has no threshold; no tool that is known runs such neurons"
    return Problem(name, what, SPEC)


def unread(readout: Readout) -> Iterator[Problem]:
    """What no node says of how classes are read."""
    for word in readouts.unsaid(readout):
        what = f"classes are scored by {word}, which no node of NIR says"
        yield Problem("readout", what, f"{SPEC}, whose metadata states it")


def _delays(name: str) -> Problem:
    return Problem(name, "has a delay; no tool that is known reads a Delay", SPEC)


class _Rewriting:
    """A graph on its way to the dialect; thresholds are put ``above`` higher."""

    def __init__(self, graph: nir.NIRGraph, above: float) -> None:
        self.old, self.above = graph, above
        self.before, self.shapes = walk.before(graph), walk.shapes(graph)
        self.nodes: dict[str, nir.ir.NIRNode] = dict(graph.nodes)
        self.gains: dict[str, Float] = {}  # by node, what its outputs are multiplied by
        self.edges = list(graph.edges)
        self.problems: list[Problem] = []

    def graph(self, meta: PortableMeta) -> nir.NIRGraph:
        """The graph in the dialect. Raises LoweringError naming what it has no words for."""
        for name, node in self.old.nodes.items():
            if isinstance(node, nir.LIF) and (node.r != 1).any():
                self._without_r(name, node.r.astype(np.float64))
        for name, node in self.old.nodes.items():
            self.nodes[name] = self._reworded(name, node)
        if self.problems:
            raise LoweringError(self.problems)
        metadata = {KEY: meta.text()}
        return nir.NIRGraph(self.nodes, self._ordered(), metadata=metadata, type_check=False)

    def _without_r(self, name: str, r: Float) -> None:
        """Leave the factor ``r`` of the neurons to what leads to them."""
        for source in self.before[name]:
            node = self.old.nodes[source]
            if isinstance(node, nir.SumPool2d):
                what = "has an r other than 1 and no weights before it that could carry it"
                self.problems.append(Problem(name, what, SPEC))
            elif isinstance(node, nir.Conv2d | nir.Affine | nir.Linear | nir.Scale):
                known = self.gains.setdefault(source, r)
                if (known != r).any():
                    what = (
                        f"weights that it shares with other neurons ({source}) cannot carry its r"
                    )
                    self.problems.append(Problem(name, what, SPEC))
            else:
                self._between(source, name, r)

    def _between(self, source: str, target: str, factor: Float) -> None:
        """Put a factor for each value onto an edge."""
        name, number = f"{source}_{target}", 1
        while name in self.nodes:
            number += 1
            name = f"{source}_{target}_{number}"
        at = self.edges.index((source, target))
        self.edges[at : at + 1] = [(source, name), (name, target)]
        self.nodes[name] = self._diagonal(target, factor)

    def _diagonal(self, where: str, factor: Float) -> nir.ir.NIRNode:
        """What multiplies each value by its ``factor``."""
        if factor.ndim == 1 and len(factor) <= MOST_DIAGONAL:
            return nir.Linear(weight=short(np.diag(factor)))
        try:
            channels = by_channel(factor, factor.shape[0])
        except ValueError:
            channels = None
        if channels is None or factor.ndim != 3:
            what = f"factors of its own for each of {factor.size} neurons of shape {factor.shape}"
            self.problems.append(Problem(where, f"{what}, which most tools have no node for", SPEC))
            return nir.Scale(scale=factor)
        kernel = short(np.diag(channels)[:, :, None, None])
        return G.conv2d(kernel, np.zeros(len(kernel)), factor.shape, (1, 1), (0, 0))

    def _reworded(self, name: str, node: nir.ir.NIRNode) -> nir.ir.NIRNode:
        """``node`` as the dialect has it."""
        shape = self.shapes[name]
        match node:
            case nir.Flatten():
                before = self.shapes[self.before[name][0]]
                out = nir.Flatten({"input": np.array(before)}, -len(before), -1)
                out.output_type = {"output": np.array([math.prod(before)])}
                return out
            case nir.Threshold():
                return G.lif(np.full(shape, POOL_THRESHOLD), POOL_TAU, 1.0)
            case nir.LIF():
                threshold = node.v_threshold.astype(np.float64) + self.above
                return replace(node, r=np.ones(shape), v_threshold=threshold)
            case nir.CubaLIF():
                return replace(node, v_threshold=node.v_threshold.astype(np.float64) + self.above)
            case nir.Scale():
                gain = self.gains.get(name, np.ones(shape))
                return self._diagonal(name, node.scale.astype(np.float64) * gain)
            case nir.Conv2d() | nir.Affine() | nir.Linear():
                return self._scaled(name, node)
        return node

    def _scaled(self, name: str, node: Any) -> nir.ir.NIRNode:
        """Weights times their gain, in a float type: not every reader takes integers."""
        by = np.ones(len(node.weight))
        if name in self.gains:
            try:
                by = by_channel(self.gains[name], len(node.weight))
            except ValueError as error:
                self.problems.append(Problem(name, str(error), SPEC))
        weight = short(node.weight * by.reshape(-1, *[1] * (node.weight.ndim - 1)))
        if isinstance(node, nir.Linear):
            return nir.Linear(weight=weight)
        bias = np.asarray(node.bias, np.float64) * by
        if isinstance(node, nir.Affine):
            return nir.Affine(weight=weight, bias=bias)
        stride, padding, dilation = G.conv_geometry(node)
        weight = one_group(weight, int(node.groups))
        before = self.shapes[self.before[name][0]]
        return G.conv2d(weight, bias, before, stride, padding, 1, dilation)

    def _ordered(self) -> list[tuple[str, str]]:
        """The edges, out of each node first those to what lies closest behind it."""
        reached = {name: 0 for name, node in self.nodes.items() if isinstance(node, nir.Input)}
        left = list(self.edges)
        while True:
            new = [(a, b) for a, b in left if a in reached]
            if not new:
                break
            left = [edge for edge in left if edge not in set(new)]
            reached = {b: reached[a] + 1 for a, b in new} | reached
        return sorted(self.edges, key=lambda edge: reached.get(edge[1], 0))


def short(weight: NDArray[Any]) -> NDArray[Any]:
    """``weight`` in float32 where that loses nothing."""
    short = weight.astype(np.float32)
    return short if (short == weight).all() else weight


def by_channel(values: NDArray[Any], channels: int) -> Float:
    """One value for each of ``channels`` outputs. Raises ValueError where they differ within one."""
    flat = values.astype(np.float64).reshape(channels, -1)
    if (flat != flat[:, :1]).any():
        raise ValueError("r differs within a channel, whose weights are shared")
    first: Float = flat[:, 0]
    return first


def one_group(weight: NDArray[Any], groups: int) -> NDArray[Any]:
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
