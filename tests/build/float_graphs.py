"""Float networks that branch, as NIR graphs in which every population works."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import nir
import numpy as np
from numpy.typing import NDArray

from stl_deploy.ir import nir_graph as G

Shape = tuple[int, ...]
STEPS, SAMPLES = 6, 30


@dataclass
class Drawing:
    """A graph in the making: ``shapes`` are those of the input and of the populations so far."""

    rng: np.random.Generator
    shape: Shape
    nodes: dict[str, nir.ir.NIRNode] = field(default_factory=dict)
    edges: list[tuple[str, str]] = field(default_factory=list)
    shapes: dict[str, Shape] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.nodes["input"] = nir.Input({"input": np.array(self.shape)})
        self.shapes["input"] = self.shape

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def way(self, source: str, target: str, node: nir.ir.NIRNode | None, delay: int = 0) -> None:
        """Lead from a source to a population over ``node``, or directly, ``delay`` steps later."""
        before = source
        if delay:
            before = self._next(
                source, f"{source}_{target}_late", nir.Delay(self._late(source, delay))
            )
        if isinstance(node, nir.Affine | nir.Linear) and len(self.shapes[source]) > 1:
            before = self._next(before, f"{source}_{target}_flat", G.flatten(self.shapes[source]))
        if node is not None:
            before = self._next(before, f"{source}_{target}_w", node)
        self.edges.append((before, target))

    def conv(
        self, source: str, outputs: int, kernel: int, stride: int = 1, bias: float = 0.0
    ) -> Any:
        """A convolution that keeps the plane, or takes every other place of it."""
        shape = self.shapes[source]
        weight = self._weights(outputs, shape[0], kernel, kernel)
        pad = kernel // 2, kernel // 2
        b = self.rng.normal(0, bias, outputs)
        return G.conv2d(weight, b, shape, (stride, stride), pad)

    def dense(self, source: str, outputs: int, bias: float = 0.0) -> nir.Affine:
        weight = self._weights(outputs, math.prod(self.shapes[source]))
        return nir.Affine(weight=weight, bias=self.rng.normal(0, bias, outputs))

    def neurons(self, name: str, shape: Shape, each: bool, current: bool, subtract: bool) -> None:
        """LIF or CubaLIF neurons, with time constants of their own if ``each``."""
        rng = self.rng
        size: Shape = shape if each else (1,) * len(shape)
        step = np.broadcast_to(rng.uniform(0.3, 0.8, size), shape)
        theta = rng.uniform(0.4, 1.2, shape)
        node: Any
        if current:
            share = np.broadcast_to(rng.uniform(0.4, 0.9, size), shape)
            node = nir.CubaLIF(
                tau_mem=G.DT / step,
                tau_syn=G.DT / share,
                r=1 / step,
                w_in=1 / share,
                v_leak=np.zeros(shape),
                v_reset=np.zeros(shape),
                v_threshold=theta,
            )
        else:
            node = G.lif(theta, *G.euler(step, np.ones(shape)))
        if subtract:
            node.metadata["reset"] = "subtract"
        self.nodes[name], self.shapes[name] = node, shape

    def graph(self, output: str, **meta: Any) -> nir.NIRGraph:
        """The graph, which gives the spikes of ``output``."""
        size = math.prod(self.shapes[output])
        self.nodes["output"] = nir.Output({"output": np.array(self.shapes[output])})
        said = G.FloatMeta(timesteps=STEPS, classes=size, population=1, **meta).text()
        edges = [*self.edges, (output, "output")]
        return nir.NIRGraph(dict(self.nodes), edges, metadata={G.KEY: said}, type_check=False)

    def raster(self, samples: int = SAMPLES, density: float = 0.4) -> NDArray[np.uint8]:
        size = samples, STEPS, *self.shape
        return (self.rng.random(size) < density).astype(np.uint8)

    def _next(self, before: str, name: str, node: nir.ir.NIRNode) -> str:
        while name in self.nodes:
            name += "_"
        self.nodes[name] = node
        self.edges.append((before, name))
        return name

    def _late(self, source: str, delay: int) -> NDArray[np.float64]:
        return np.full(self.shapes[source], delay * G.DT)

    def _weights(self, *size: int) -> NDArray[np.float64]:
        inputs = math.prod(size[1:])
        return self.rng.normal(0.4 / inputs, 1.3 / math.sqrt(inputs), size)


def residual(
    seed: int, samples: int = SAMPLES, **meta: Any
) -> tuple[nir.NIRGraph, NDArray[np.uint8]]:
    """A block with an identity skip, one with a projection, and a linear layer; hard reset."""
    made = Drawing(np.random.default_rng(seed), (2, 6, 6))
    made.neurons("l0", (4, 6, 6), False, False, False)
    made.way("input", "l0", made.conv("input", 4, 3, bias=0.1))
    made.neurons("l1", (4, 6, 6), False, False, False)
    made.way("l0", "l1", made.conv("l0", 4, 3))
    made.way("input", "l1", made.conv("input", 4, 1))
    made.neurons("l2", (4, 6, 6), False, False, False)
    made.way("l1", "l2", made.conv("l1", 4, 3, bias=0.1))
    made.way("l0", "l2", None)
    made.neurons("l3", (6, 3, 3), False, False, False)
    made.way("l2", "l3", made.conv("l2", 6, 3, stride=2))
    made.way("l0", "l3", made.conv("l0", 6, 1, stride=2))
    made.neurons("l4", (8,), False, False, False)
    made.way("l3", "l4", made.dense("l3", 8, bias=0.1))
    return made.graph("l4", **meta), made.raster(samples)


def draw(seed: int, samples: int = SAMPLES, **meta: Any) -> tuple[nir.NIRGraph, NDArray[np.uint8]]:
    """A plane of populations that skip and wait, and flat ones behind them with a loop; all at random."""
    made = Drawing(np.random.default_rng(seed), (2, 6, 6))
    rng = made.rng

    def neurons(name: str, shape: Shape) -> None:
        made.neurons(name, shape, made.chance(0.4), made.chance(0.3), made.chance(0.3))

    def late() -> int:
        return int(rng.integers(1, 4)) if made.chance(0.3) else 0

    neurons("p0", (3, 6, 6))
    made.way("input", "p0", made.conv("input", 3, 3, bias=0.2), late())
    if made.chance(0.3):
        made.way("p0", "p0", nir.Scale(rng.uniform(-1.5, -0.5, (3, 6, 6))))
    neurons("p1", (3, 6, 6))
    made.way("p0", "p1", made.conv("p0", 3, 3, bias=0.2))
    if made.chance(0.7):
        made.way("p0", "p1", None, late())
    if made.chance(0.5):
        made.way("input", "p1", made.conv("input", 3, 1), late())
    neurons("p2", (7,))
    made.way("p1", "p2", made.dense("p1", 7, bias=0.2))
    if made.chance(0.5):
        made.way("p0", "p2", made.dense("p0", 7), late())
    neurons("p3", (7,))
    made.way("p2", "p3", made.dense("p2", 7, bias=0.2))
    if made.chance(0.5):
        made.way("p2", "p3", None, late())
    if made.chance(0.6):
        made.way("p3", "p3", made.dense("p3", 7))
    if made.chance(0.6):
        made.way("p3", "p2", made.dense("p3", 7), int(rng.integers(2, 4)))
    return made.graph("p3", **meta), made.raster(samples)
