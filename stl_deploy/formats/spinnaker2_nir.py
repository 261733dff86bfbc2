"""The dialect ``spinnaker2`` of a NIR graph: an integer network as the importer of py-spinnaker2 takes it.

What is known of that importer (``spinnaker2.s2_nir.from_nir``) was read in its published source; docs/nir.md
says which. It makes a population of every neuron node, a projection of every way through weights, and
drops other ways without an error. What it asks for, and how it is met here:

- Weights are 8-bit integers from -127 to 127, those of the network. What ``r`` was stays in the neurons,
  whose thresholds the importer divides by dt/tau * r.
- A LIF is v = (1 - dt/tau) v + input, as NIR has it with forward Euler and dt = 1e-4. Neurons that never
  leak are a LIF with a very long tau, because the importer gives the r of an IF another meaning.
- It follows a Flatten only behind a SumPool2d and in front of an Affine. So a SumPool2d of 1 x 1, which
  changes nothing, precedes each Flatten, and weights behind it are an Affine.
- Max pooling is SumPool2d -> LIF with tau = dt, which keeps nothing of v, r = 1 and a threshold of 1/2.
- One-to-one weights are a Linear with a diagonal or a Conv2d of 1 x 1, also where their factor is 1.
- It reads neither groups nor dilation: kernels are filled up with zeros.
- One reset, to 0 or by subtraction of the threshold, is chosen for all neurons when the file is read. The
  metadata of each node state it too.
- Neurons fire at v > threshold. With the reset to 0, thresholds stand half a step of v higher, so that
  v >= threshold gives the same spikes; what is subtracted has to be exact.
- A spike needs one step for every connection, and no connection has another delay. So all ways to a
  population must be equally long, and its spikes come as many steps later as it is deep.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import nir
import numpy as np
from numpy.typing import NDArray

from stl_deploy.errors import LoweringError, Problem
from stl_deploy.formats import integer_nir as nir_file
from stl_deploy.formats import integer_words as words
from stl_deploy.formats import portable_nir as portable
from stl_deploy.ir import nir_graph as G
from stl_deploy.ir import nir_walk as walk
from stl_deploy.ir.network import IntegerNetwork, Population
from stl_deploy.ir.notes import Diagnostic

NAME = "model.spinnaker2.nir"
MOST = 127  # of a weight
POOL_THRESHOLD = 0.5  # between no spike and one
RESETS: tuple[Literal["zero", "subtract"], ...] = ("zero", "subtract")
SUBTRACTS = frozenset({"reset by subtraction"})
SPEC = portable.SPEC


def from_network(network: IntegerNetwork) -> nir.NIRGraph:
    """The graph of ``network`` in this dialect. Raises LoweringError naming all that it cannot say."""
    problems = nir_file.unsupported(network)
    if not problems:
        problems = [
            *portable.one_input(list(network.inputs)),
            *(p for name in network.by_name for p in portable.unsayable(network, name, SUBTRACTS)),
            *portable.unread(network.readout),
        ]
    if not problems:
        problems = [*_inputs(network), *_resets(network), *_ways(network), *_readout(network)]
        problems += [p for population in network.populations for p in _inside(network, population)]
    if problems:
        raise LoweringError(problems)
    (port,) = network.inputs.values()
    reset = _reset(network)
    meta = portable.PortableMeta(
        format="stl-deploy/spinnaker2",
        of="integer",
        timesteps=network.timesteps,
        input_levels=port.levels,
        signed=port.signed,
        held=port.held,
        classes=network.readout.classes,
        population=network.readout.population,
        inexact=portable.inexact(network),
        reset=reset,
    )
    return _Rewriting(nir_file.to_nir(network), reset).graph(meta)


def notes(network: IntegerNetwork) -> list[Diagnostic]:
    """The populations that act before their inputs arrive, whose spikes on the chip may be others."""
    depth, found = network.depth or {}, []
    for p in network.weighted:
        steps = f"{depth[p.name]} step{'s' if depth[p.name] > 1 else ''}"
        late = f"before the first input of py-spinnaker2, which arrives {steps} late"
        what = ""
        if p.neurons.bias.any():
            what = f"its bias acts {late}"
        elif (p.neurons.vth < 0).any():
            what = f"its neurons fire without input, also {late}"
        if what:
            remedy = "compare the accuracy on the chip; the first steps differ"
            found.append(Diagnostic(p.name, what, remedy))
    return found


def _reset(network: IntegerNetwork) -> Literal["zero", "subtract"]:
    """The reset of all neurons."""
    subtracts = any(p.neurons.reset == "subtract" for p in network.weighted)
    return "subtract" if subtracts else "zero"


def _inputs(network: IntegerNetwork) -> Iterator[Problem]:
    for name, port in network.inputs.items():
        if port.levels > 1 or port.signed:
            low = -port.levels if port.signed else 0
            what = f"is graded ({low}..{port.levels}); py-spinnaker2 takes times of spikes"
            yield Problem(
                name, what, "encode the input as spikes (stl-raster --encoding bernoulli)"
            )
        if len(port.shape) not in (1, 3):
            what = f"has shape {port.shape}; py-spinnaker2 takes flat inputs and images [C, H, W]"
            yield Problem(name, what, SPEC)


def _resets(network: IntegerNetwork) -> Iterator[Problem]:
    """Resets that the reader cannot be told; it is told one for all neurons."""
    kinds = {p.name: p.neurons.reset for p in network.weighted}
    for name, kind in kinds.items():
        if kind not in RESETS:
            what = "resets v to other than 0; py-spinnaker2 resets to 0 or subtracts the threshold"
            yield Problem(name, what, SPEC)
    if len({kind for kind in kinds.values() if kind in RESETS}) > 1:
        first, second = ([n for n, kind in kinds.items() if kind == r] for r in RESETS)
        what = (
            f"{', '.join(first)} reset to 0, {', '.join(second)} by subtraction; py-spinnaker2 "
            "has one reset for all neurons"
        )
        yield Problem("reset", what, SPEC)


def _ways(network: IntegerNetwork) -> Iterator[Problem]:
    if network.depth is None:
        what = (
            "has a loop of fewer steps of delay than connections; each takes py-spinnaker2 a step"
        )
        yield Problem("network", what, SPEC)
        return
    for c in network.connections:
        if waits := network.waits(c):
            steps = f"{waits} step{'s' if waits > 1 else ''}"
            what = f"is {steps} shorter than other ways to {c.target}; py-spinnaker2 knows no delay"
            yield Problem(c.words, what, "use --skips relay")


def _readout(network: IntegerNetwork) -> Iterator[Problem]:
    if network.readout.matrix is not None:
        what = (
            "is a matrix behind the last neurons; py-spinnaker2 takes weights in front of neurons"
        )
        yield Problem("readout", what, SPEC)


def _inside(network: IntegerNetwork, population: Population) -> Iterator[Problem]:
    """What of a population and its synapses has no place in py-spinnaker2."""
    into, name = network.into(population.name), population.name
    exp = words.base(network, population)
    kernels = [c for c in into if _is_kernel(network, c.source, population, c.synapses.kind)]
    if kernels and population.neurons.has_current:
        what = "has a current behind a convolution; py-spinnaker2 has no such neurons"
        yield Problem(name, what, SPEC)
    if kernels and len(kernels) < len(into):
        what = "has convolutions and other connections; no public source says that py-spinnaker2 adds them"
        yield Problem(name, what, SPEC)
    for c in into:
        stored = words.stored(c, exp)
        if (most := int(np.abs(stored.astype(int)).max(initial=0))) > MOST:
            what = f"has a weight of size {most}; py-spinnaker2 takes -{MOST}..{MOST}"
            remedy = "use --weight-bits 7" if most == MOST + 1 else "use --weight-precision 8"
            yield Problem(c.words, what, remedy)
        before = network.shape(c.source)
        if c.synapses.kind == "dense" and len(before) not in (1, 3):
            what = f"takes values of shape {before}; py-spinnaker2 flattens images [C, H, W] alone"
            yield Problem(c.words, what, SPEC)
        if c.synapses.kind == "conv" and len(set(c.synapses.geometry[0])) > 1:
            what = f"has strides {c.synapses.geometry[0]}; py-spinnaker2 may swap them"
            yield Problem(c.words, what, f"use the same stride both ways, or {SPEC}")


def _is_kernel(network: IntegerNetwork, source: str, target: Population, kind: str) -> bool:
    """Whether a connection is written as a Conv2d."""
    if target.kind == "or" and kind == "conv":
        return False  # windows that are counted
    return kind == "conv" or (kind == "one_to_one" and len(network.shape(source)) > 1)


class _Rewriting:
    """A graph on its way to the dialect."""

    def __init__(self, graph: nir.NIRGraph, reset: Literal["zero", "subtract"]) -> None:
        self.graph_, self.reset = graph, reset
        self.shapes, self.before = walk.shapes(graph), walk.before(graph)
        self.nodes: dict[str, nir.ir.NIRNode] = {}
        self.problems: list[Problem] = []

    def graph(self, meta: portable.PortableMeta) -> nir.NIRGraph:
        """The graph in the dialect. Raises LoweringError naming what it has no words for."""
        self.nodes = {name: self._reworded(name, n) for name, n in self.graph_.nodes.items()}
        if self.problems:
            raise LoweringError(self.problems)
        edges = list(self.graph_.edges)
        flattens = [name for name, node in self.nodes.items() if isinstance(node, nir.Flatten)]
        for name in flattens:
            edges = self._pooled(name, edges)
        return nir.NIRGraph(
            self.nodes, edges, metadata={portable.KEY: meta.text()}, type_check=False
        )

    def _pooled(self, flatten: str, edges: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """``edges`` with a SumPool2d of one value in front of a Flatten."""
        name, number = f"{flatten}_pool", 1
        while name in self.nodes:
            number += 1
            name = f"{flatten}_pool_{number}"
        self.nodes[name] = G.sum_pool((1, 1), self.shapes[self.before[flatten][0]])
        return [(a, name if b == flatten else b) for a, b in edges] + [(name, flatten)]

    def _reworded(self, name: str, node: nir.ir.NIRNode) -> nir.ir.NIRNode:
        """``node`` as the dialect has it."""
        match node:
            case nir.Threshold():
                return self._neurons(G.lif(np.full(self.shapes[name], POOL_THRESHOLD), G.DT, 1.0))
            case nir.IF():
                gain = node.r * G.DT * words.NO_LEAK
                made = G.lif(node.v_threshold.astype(np.float64), G.DT * words.NO_LEAK, gain)
                return self._neurons(self._raised(made))
            case nir.LIF() | nir.CubaLIF():
                return self._neurons(self._raised(node))
            case nir.Scale():
                return self._diagonal(name, node.scale.astype(np.float64))
            case nir.Conv2d():
                return self._kernel(name, node)
            case nir.Affine() | nir.Linear():
                return self._weights(name, node)
        return node

    def _raised(self, node: Any) -> Any:
        """Neurons with thresholds where v is not; what is subtracted stays as it is."""
        above = portable.HALF_STEP if self.reset == "zero" else 0.0
        return replace(node, v_threshold=node.v_threshold.astype(np.float64) + above)

    def _neurons(self, node: Any) -> Any:
        node.metadata = {"reset": self.reset}
        return node

    def _diagonal(self, name: str, factor: NDArray[np.float64]) -> nir.ir.NIRNode:
        """What multiplies each value by its ``factor``."""
        if factor.ndim == 1 and len(factor) <= portable.MOST_DIAGONAL:
            return nir.Linear(weight=portable.short(np.diag(factor)))
        try:
            channels = portable.by_channel(factor, factor.shape[0])
        except ValueError:
            channels = None
        if channels is None or factor.ndim != 3:
            what = f"factors of its own for each of {factor.size} neurons of shape {factor.shape}"
            self.problems.append(Problem(name, f"{what}; py-spinnaker2 has no such weights", SPEC))
            return nir.Scale(scale=factor)
        kernel = portable.short(np.diag(channels)[:, :, None, None])
        return G.conv2d(kernel, np.zeros(len(kernel)), factor.shape, (1, 1), (0, 0))

    def _kernel(self, name: str, node: nir.Conv2d) -> nir.Conv2d:
        stride, padding, dilation = G.conv_geometry(node)
        weight = portable.one_group(portable.short(node.weight), int(node.groups))
        before = self.shapes[self.before[name][0]]
        bias = np.asarray(node.bias, np.float64)
        return G.conv2d(_spread(weight, dilation), bias, before, stride, padding)

    def _weights(self, name: str, node: nir.Affine | nir.Linear) -> nir.ir.NIRNode:
        weight = portable.short(node.weight)
        behind_flatten = isinstance(self.graph_.nodes[self.before[name][0]], nir.Flatten)
        bias = getattr(node, "bias", None)
        if bias is None and not behind_flatten:
            return nir.Linear(weight=weight)
        return nir.Affine(weight=weight, bias=np.zeros(len(weight)) if bias is None else bias)


def _spread(weight: NDArray[Any], dilation: tuple[int, int]) -> NDArray[Any]:
    """Kernels [O, C, kh, kw] with the zeros that ``dilation`` leaves out."""
    if dilation == (1, 1):
        return weight
    size = [d * (k - 1) + 1 for d, k in zip(dilation, weight.shape[2:], strict=True)]
    spread = np.zeros((*weight.shape[:2], *size), weight.dtype)
    spread[:, :, :: dilation[0], :: dilation[1]] = weight
    return spread


def write_beside(network: IntegerNetwork, folder: Path) -> list[Diagnostic]:
    """Write model.spinnaker2.nir, and give the notes on it.

    Raises LoweringError naming all that the dialect cannot say.
    """
    portable.write(from_network(network), folder / NAME)
    return notes(network)
