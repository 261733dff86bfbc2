"""What py-spinnaker2's importer makes of a NIR file, and the steps of its neurons, from its published source.

An independent reading: it shares no code with ``stl_deploy`` and no code with py-spinnaker2, which is in no
package index. ``populations`` and ``projections`` follow ``spinnaker2.s2_nir`` with ``dt=1e-4``,
``conn_delay=0``, forward Euler, and ``scale_weights`` off or on; ``run`` steps all populations at once, so
that a spike arrives a step after it was sent, in float32.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import nir
import numpy as np
import torch
from numpy.typing import NDArray

DT = 1e-4
NEURONS = (nir.LIF, nir.IF, nir.CubaLIF)
WEIGHTS = (nir.Affine, nir.Linear, nir.Conv2d)
Array = NDArray[np.float32]


class CannotReadError(Exception):
    """What its importer raises."""


class MisfitError(Exception):
    """Weights beyond 8 bits, or that give another number of values than there are neurons."""


@dataclass
class Neurons:
    """The parameters of a population [n], and its state."""

    shape: tuple[int, ...]
    threshold: Array
    keep: Array
    offset: Array
    scale: float
    v: Array = field(default_factory=lambda: np.zeros(0, np.float32))


class Chip:
    """A NIR file on the chip."""

    def __init__(self, path: Path, reset: str, scale_weights: bool = False) -> None:
        self.graph, self.reset = nir.read(path, type_check=False), reset
        self.into: dict[str, list[str]] = {}
        self.out: dict[str, list[str]] = {}
        for source, target in self.graph.edges:
            self.out.setdefault(source, []).append(target)
            self.into.setdefault(target, []).append(source)
        self.populations: dict[str, Neurons] = {}
        self.inputs: list[str] = []
        for name, node in self.graph.nodes.items():
            if isinstance(node, nir.LIF):
                self.populations[name] = self._lif(name, node, scale_weights)
            elif isinstance(node, nir.IF):
                self.populations[name] = _if(node)
            elif isinstance(node, nir.Input):
                if len(node.input_type["input"]) not in (1, 3):
                    raise CannotReadError(f"{name}: neither flat nor an image")
                self.inputs.append(name)
            elif isinstance(node, WEIGHTS):
                around = [*self.into.get(name, []), *self.out.get(name, [])]
                if any(isinstance(self.graph.nodes[other], WEIGHTS) for other in around):
                    raise CannotReadError(f"{name}: two layers of weights in a row")
            elif not isinstance(node, nir.Output | nir.SumPool2d | nir.Flatten):
                raise CannotReadError(f"{name}: {type(node).__name__}")
        self.projections = [
            found for a, b in self.graph.edges if self._sends(a) for found in self._followed(a, b)
        ]

    def _sends(self, name: str) -> bool:
        return isinstance(self.graph.nodes[name], (*NEURONS, nir.Input))

    def _lif(self, name: str, node: nir.LIF, scale_weights: bool) -> Neurons:
        before = [self.graph.nodes[source] for source in self.into.get(name, [])]
        scale = 1.0
        if scale_weights:
            scale = 127.0 / max(np.abs(b.weight).max() for b in before if isinstance(b, WEIGHTS))
        bias = np.zeros(node.v_threshold.shape)
        for b in before:
            if isinstance(b, nir.Affine):
                bias = bias + b.bias
            elif isinstance(b, nir.Conv2d):
                bias = bias + b.bias[:, None, None]
        share = (DT / node.tau).reshape(-1)
        over = scale / (share * node.r.reshape(-1))
        return Neurons(
            node.v_threshold.shape,
            (node.v_threshold.reshape(-1) * over).astype(np.float32),
            (1 - share).astype(np.float32),
            (share * node.v_leak.reshape(-1) * over + bias.reshape(-1) * scale).astype(np.float32),
            scale,
        )

    def _followed(self, source: str, name: str) -> list[tuple[str, str, list[str]]]:
        """(source, target, nodes between them) of what is made of an edge out of neurons or an input."""
        node, nodes = self.graph.nodes[name], self.graph.nodes
        if isinstance(node, NEURONS):
            raise CannotReadError(f"{source} to {name}: neurons without weights between them")
        if isinstance(node, WEIGHTS):
            return [(source, end, [name]) for end in self._ends(name)]
        if not isinstance(node, nir.SumPool2d):
            return []  # dropped without an error
        found = []
        for after in self.out.get(name, []):
            if isinstance(nodes[after], NEURONS):
                found.append((source, after, [name]))
            elif isinstance(nodes[after], nir.Conv2d):
                if np.any(node.kernel_size != node.stride) or np.any(node.padding):
                    raise CannotReadError(f"{name}: windows that do not tile the plane")
                found += [(source, end, [name, after]) for end in self._ends(after)]
            elif isinstance(nodes[after], nir.Flatten):
                for last in self.out.get(after, []):
                    if not isinstance(nodes[last], nir.Affine):
                        raise CannotReadError(
                            f"{last}: not an Affine behind a SumPool2d and a Flatten"
                        )
                    found += [(source, end, [name, last]) for end in self._ends(last)]
            else:
                raise CannotReadError(f"{after}: behind a SumPool2d")
        return found

    def _ends(self, name: str) -> list[str]:
        ends = self.out.get(name, [])
        if not all(isinstance(self.graph.nodes[end], NEURONS) for end in ends):
            raise CannotReadError(f"{name}: weights that do not lead to neurons")
        return ends

    def _sums(self, spikes: Array, target: str, between: list[str]) -> Array:
        """What arrives [n] at the target where its source sends ``spikes`` of its shape."""
        x, scale = torch.from_numpy(spikes)[None], self.populations[target].scale
        for name in between:
            node = self.graph.nodes[name]
            if isinstance(node, nir.SumPool2d):
                size, step, pad = map(tuple, (node.kernel_size, node.stride, node.padding))
                x = torch.nn.functional.avg_pool2d(x, size, step, pad, divisor_override=1)
            elif isinstance(node, nir.Conv2d):
                # Neither groups nor dilation; int8, cut off toward 0.
                weight = torch.from_numpy((node.weight * scale).astype(np.int8).astype(np.float32))
                if weight.shape[1] != x.shape[1]:
                    raise MisfitError(f"{name}: kernels of {weight.shape[1]} channels")
                x = torch.nn.functional.conv2d(
                    x, weight, stride=tuple(node.stride), padding=tuple(node.padding)
                )
            else:
                weight = np.rint(node.weight * scale).astype(np.float32)
                if np.abs(weight).max() > 127:
                    raise MisfitError(f"{name}: weights beyond 127")
                x = x.reshape(1, -1) @ torch.from_numpy(weight.T.copy())
        return x.reshape(-1).numpy()

    def run(self, spikes: NDArray[np.uint8], steps: int) -> dict[str, NDArray[np.uint8]]:
        """What each population sends [steps, *shape] for one sample [T, *shape] of the only input."""
        (port,) = self.inputs
        for p in self.populations.values():
            p.v = np.zeros(p.threshold.shape, np.float32)
        sent = {name: np.zeros(p.shape, np.float32) for name, p in self.populations.items()}
        sent[port] = np.zeros(spikes.shape[1:], np.float32)
        found = {
            name: np.zeros((steps, *p.shape), np.uint8) for name, p in self.populations.items()
        }
        for t in range(steps):
            arriving = {name: p.offset.copy() for name, p in self.populations.items()}
            for source, target, between in self.projections:
                sums = self._sums(sent[source], target, between)
                if sums.shape != arriving[target].shape:
                    raise MisfitError(f"{source} to {target}: {sums.shape}")
                arriving[target] += sums
            for name, p in self.populations.items():
                p.v = p.keep * p.v + arriving[name]
                fires = p.v > p.threshold
                after = p.v - p.threshold if self.reset == "subtract" else np.zeros_like(p.v)
                p.v = np.where(fires, after, p.v)
                sent[name] = fires.astype(np.float32).reshape(p.shape)
                found[name][t] = sent[name]
            now = spikes[t] if t < len(spikes) else np.zeros_like(spikes[0])
            sent[port] = now.astype(np.float32)
        return found


def _if(node: nir.IF) -> Neurons:
    """Neurons that keep all of v; the importer takes r for the whole factor of their input."""
    threshold = (node.v_threshold / node.r).reshape(-1).astype(np.float32)
    ones = np.ones_like(threshold)
    return Neurons(node.v_threshold.shape, threshold, ones, 0 * ones, 1.0)
