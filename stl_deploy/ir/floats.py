"""The layers of a float graph in float64: weights, biases, thresholds, decay; and how large sums get.

Names are those of the populations (LIF and Threshold nodes), as in the integer network.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import nir
import numpy as np
from numpy.typing import NDArray

from stl_deploy.ir import nir_graph as G
from stl_deploy.ir.synapses import Pair, Shape

Float = NDArray[np.float64]
EXACT = 7  # steps in which halving v loses none of its six fractional bits
Weights = nir.Conv2d | nir.Linear | nir.Affine


@dataclass(frozen=True, eq=False)
class FloatLayer:
    """Weights and the LIF behind them: v = keep * v + (w x + bias), fires where v >= threshold.

    ``weight`` [O, ...] and ``bias`` [O] include the LIF's gain; ``threshold`` has the population's
    shape. ``node`` says where the weights go.
    """

    name: str
    node: nir.ir.NIRNode
    weight: Float
    bias: Float
    threshold: Float
    keep: float
    input_shape: Shape

    kind: ClassVar[Literal["lif"]] = "lif"


@dataclass(frozen=True)
class FloatPool:
    """Max pooling of spikes: fires where any input of a window of ``kernel`` does."""

    name: str
    kernel: Pair
    input_shape: Shape

    kind: ClassVar[Literal["or_pool"]] = "or_pool"


def read(graph: nir.NIRGraph) -> dict[str, FloatLayer | FloatPool | str]:
    """Every population of a lowered graph; a text says what of it is not understood here."""
    out: dict[str, FloatLayer | FloatPool | str] = {}
    meta = G.float_meta(graph)
    shape = population = G.in_shape(graph)
    before: nir.ir.NIRNode | None = None
    for name, node in G.inner(graph).items():
        shape = G.node_output(name, node, shape)
        match node:
            case nir.Flatten():
                continue
            case nir.Conv2d() | nir.Linear() | nir.Affine() | nir.SumPool2d() if before is None:
                before = node
                continue
            case nir.LIF() | nir.IF() if isinstance(before, Weights):
                out[name] = _lif(name, node, before, population)
                if meta.trained is not None and not _halves(node, meta.timesteps):
                    out[name] = "it was trained on integers, and its decay truncates as theirs does"
            case nir.Threshold() if isinstance(before, nir.SumPool2d):
                out[name] = _pool(name, node, before, population)
            case _:
                what = "nothing" if before is None else f"a {type(before).__name__}"
                out[name] = f"it is a {type(node).__name__} behind {what}"
        before, population = None, shape
    return out


def _halves(node: nir.LIF, timesteps: int) -> bool:
    """Whether a step halves v and so many steps lose none of its six fractional bits."""
    return bool((np.rint(4096 * G.DT / node.tau) == 2048).all()) and timesteps <= EXACT


def _lif(
    name: str, node: nir.LIF | nir.IF, source: nir.ir.NIRNode, input_shape: Shape
) -> FloatLayer | str:
    if isinstance(node, nir.IF):
        step, gain, leaks = np.zeros(1), G.DT * node.r.astype(np.float64), False
    else:
        step = G.DT / node.tau.astype(np.float64)
        gain, leaks = step * node.r, bool((node.v_leak != 0).any())
    if leaks or (node.v_reset != 0).any():
        return "v_leak or v_reset is not zero"
    if np.ptp(step) != 0 or np.ptp(gain) != 0:
        return "its neurons have different time constants"
    weight = source.weight.astype(np.float64) * gain.flat[0]
    bias = source.bias if hasattr(source, "bias") else np.zeros(len(weight))
    return FloatLayer(
        name=name,
        node=source,
        weight=weight,
        bias=bias.astype(np.float64) * gain.flat[0],
        # The graph holds nextafter(theta, -inf) behind NIR's strict >.
        threshold=np.nextafter(node.v_threshold.astype(np.float64), np.inf),
        keep=float(1 - step.flat[0]),
        input_shape=input_shape,
    )


def _pool(
    name: str, node: nir.Threshold, source: nir.SumPool2d, input_shape: Shape
) -> FloatPool | str:
    kernel = G.pair(source.kernel_size)
    if G.pair(source.stride) != kernel or G.pair(source.padding) != (0, 0):
        return "its windows overlap or are padded"
    if not ((node.threshold >= 0) & (node.threshold < 1)).all():
        return "it does not fire as soon as one input does"
    return FloatPool(name, kernel, input_shape)


def magnitudes(graph: nir.NIRGraph) -> dict[str, Float]:
    """Of every LIF, the largest sum of magnitudes [O] that a step of ``graph`` can add up.

    Rounding errors grow with this and not with the sum itself. For a model with BatchNorm this is
    that of the graph *before* the passes, whose terms cancel when they are folded.
    """
    largest: dict[str, Float] = {}
    levels = float(G.float_meta(graph).input_levels)
    peak: Float = np.array([levels])
    for name, node in G.inner(graph).items():
        match node:
            case nir.Conv2d() | nir.Linear() | nir.Affine():
                weight = np.abs(node.weight.astype(np.float64))
                bias = np.abs(node.bias.astype(np.float64)) if hasattr(node, "bias") else 0.0
                peak = weight.reshape(len(weight), -1).sum(axis=1) * peak.max() + bias
            case G.BatchNorm():
                k = np.abs(node.gamma) / np.sqrt(node.var.astype(np.float64) + node.eps)
                peak = k * (peak + np.abs(node.mean)) + np.abs(node.beta)
            case G.InputScale():
                peak = peak / node.levels
            case nir.SumPool2d():
                peak = peak * float(np.prod(G.pair(node.kernel_size)))
            case nir.LIF() | nir.IF():
                largest[name] = peak
                peak = np.ones(1)
            case nir.Threshold():
                peak = np.ones(1)
    return largest
