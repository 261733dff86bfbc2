"""A small executor of float NIR graphs in numpy: what the float graph means, step by step.

A LIF follows NIR's equation by forward Euler with dt = 1e-4:
v = (1 - dt/tau) v + (dt/tau) (v_leak + r I);  spike = v > v_threshold;  v = v_reset where it spikes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import nir
import numpy as np
from numpy.typing import NDArray

from stl_deploy import graph as G
from stl_deploy.conv import convolve
from stl_deploy.errors import LoweringError, Problem

Array = NDArray[Any]


def run(
    graph: nir.NIRGraph,
    raster: Array,
    observe: Callable[[str, Array], None] | None = None,
) -> dict[str, NDArray[np.uint8]]:
    """Spikes [N, T, *shape] of every LIF and Threshold node, in float64.

    Args:
        graph: a lowered float graph (after ``passes.lower``).
        raster: input [N, T, *input_shape].
        observe: called with (name, output [N*T, ...]) of every node with weights.
    """
    if beside := G.recurrent(graph):
        raise LoweringError([Problem(name, "recurrent nodes cannot be run yet") for name in beside])
    n, steps = raster.shape[:2]
    x: Array = raster.reshape(n * steps, *raster.shape[2:]).astype(np.float64)
    spikes: dict[str, NDArray[np.uint8]] = {}
    for name, node in G.inner(graph).items():
        if isinstance(node, nir.LIF):
            x = _lif(node, x.reshape(n, steps, *x.shape[1:])).reshape(x.shape)
        else:
            x = _stateless(node, x)
        if isinstance(node, nir.LIF | nir.Threshold):
            spikes[name] = x.astype(np.uint8).reshape(n, steps, *x.shape[1:])
        elif observe is not None and isinstance(node, nir.Conv2d | nir.Linear | nir.Affine):
            observe(name, x)
    return spikes


def _stateless(node: nir.ir.NIRNode, x: Array) -> Array:
    match node:
        case nir.Conv2d():
            stride, padding, dilation = G.conv_geometry(node)
            weight = node.weight.astype(np.float64)
            out: Array = convolve(x, weight, stride, padding, dilation, int(node.groups))
            out += node.bias.astype(np.float64)[:, None, None]
            return out
        case nir.SumPool2d():
            kernel = G.pair(node.kernel_size)
            ones = np.ones((x.shape[1], 1, *kernel))
            return convolve(x, ones, G.pair(node.stride), G.pair(node.padding), groups=x.shape[1])
        case nir.Flatten():
            return x.reshape(len(x), -1)
        case nir.Affine():
            affine: Array = x @ node.weight.astype(np.float64).T + node.bias
            return affine
        case nir.Linear():
            product: Array = x @ node.weight.astype(np.float64).T
            return product
        case nir.Threshold():
            fired: Array = (x > node.threshold).astype(np.float64)
            return fired
    raise TypeError(f"cannot run {type(node).__name__}")


def _lif(node: nir.LIF, current: Array) -> Array:
    step = G.DT / node.tau.astype(np.float64)
    keep, gain, leak = 1 - step, step * node.r, step * node.v_leak
    v = np.zeros_like(current[:, 0])
    spikes = np.zeros_like(current)
    for t in range(current.shape[1]):
        v = keep * v + gain * current[:, t] + leak
        s = v > node.v_threshold
        spikes[:, t] = s
        v = np.where(s, node.v_reset, v)
    return spikes
