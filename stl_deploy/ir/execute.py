"""A small executor of float NIR graphs in numpy: what the float graph means, step by step.

A LIF follows NIR's equation by forward Euler with dt = 1e-4:
v = (1 - dt/tau) v + (dt/tau) (v_leak + r I);  spike = v > v_threshold;  v = v_reset where it spikes,
or v - v_threshold with ``reset: "subtract"`` in its metadata. An IF keeps v and adds dt r I. For a
CubaLIF tau is tau_mem, and I = (1 - dt/tau_syn) I + (dt/tau_syn) w_in S. What leads from the neurons
back to them adds the weighted spikes of the step before to the input.

Of a graph that was ``trained`` on integers v is a multiple of 1/64 of a unit, and the first term is
truncated to one, toward zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import nir
import numpy as np
from numpy.typing import NDArray

from stl_deploy.ir import nir_graph as G
from stl_deploy.ir.conv import Pair, convolve

Array = NDArray[Any]


def run(
    graph: nir.NIRGraph,
    raster: Array,
    observe: Callable[[str, Array], None] | None = None,
    forced: Mapping[str, Array] | None = None,
) -> dict[str, NDArray[np.uint8]]:
    """Spikes [N, T, *shape] of every LIF, IF, CubaLIF and Threshold node, in float64.

    Args:
        graph: a lowered float graph (after ``passes.lower``).
        raster: input [N, T, *input_shape].
        observe: called with (name, output [N*T, ...]) of every node with weights in the chain; where
            the neurons behind it hear themselves, that is added.
        forced: spikes [N, T, ...] by node, which what follows is given in the place of the node's own;
            those are still what is returned.
    """
    n, steps = raster.shape[:2]
    x: Array = raster.reshape(n * steps, *raster.shape[2:]).astype(np.float64)
    spikes: dict[str, NDArray[np.uint8]] = {}
    nodes, beside = G.inner(graph), G.recurrent(graph)
    trained = G.float_meta(graph).trained if G.KEY in graph.metadata else None
    before = dict(pairwise(reversed(nodes)))
    for name, node in nodes.items():
        if isinstance(node, G.Neurons):
            own = beside[name][1].weight.astype(np.float64) if name in beside else None
            total = x.reshape(n, steps, *x.shape[1:])
            if trained is not None:
                x = _whole(node, total, np.array(trained.scale[name])).reshape(x.shape)
            else:
                x = _neurons(node, total, own).reshape(x.shape)
            if own is not None and observe is not None and name in before:
                observe(before[name], total.reshape(x.shape))
        else:
            x = _stateless(node, x)
        if isinstance(node, G.Neurons | nir.Threshold):
            spikes[name] = x.astype(np.uint8).reshape(n, steps, *x.shape[1:])
            if forced is not None and name in forced:
                x = forced[name].reshape(x.shape).astype(np.float64)
        elif isinstance(node, nir.Conv2d | nir.Linear | nir.Affine) and observe is not None:
            observed_later = name in [before.get(neurons) for neurons in beside]
            if not observed_later:
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
            return _sum_pool(x, *map(G.pair, (node.kernel_size, node.stride, node.padding)))
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


def _sum_pool(x: Array, kernel: Pair, stride: Pair, padding: Pair) -> Array:
    """The sum over every window of x [N, C, H, W], one place of the window after the other."""
    x = np.pad(x, ((0, 0), (0, 0), *((p, p) for p in padding)))
    rows, columns = (
        (size - k) // s + 1 for size, k, s in zip(x.shape[2:], kernel, stride, strict=True)
    )
    total = np.zeros((*x.shape[:2], rows, columns))
    for i, j in np.ndindex(kernel):
        total += x[:, :, i :: stride[0], j :: stride[1]][:, :, :rows, :columns]
    return total


def _neurons(node: G.Neurons, inputs: Array, own: Array | None) -> Array:
    """Spikes [N, T, *shape] for ``inputs`` of that shape.

    What the neurons hear of themselves through the weights ``own`` is added to ``inputs``, in place.
    """
    cuba = isinstance(node, nir.CubaLIF)
    keep: Array | float
    if isinstance(node, nir.IF):
        keep, gain, leak = 1.0, G.DT * node.r.astype(np.float64), 0.0
    else:
        step = G.DT / (node.tau_mem if cuba else node.tau).astype(np.float64)
        keep, gain, leak = 1 - step, step * node.r, step * node.v_leak
    subtract = G.reset_of(node) == "subtract"
    synapse = G.DT / node.tau_syn.astype(np.float64) if cuba else None
    held = v = s = np.zeros_like(inputs[:, 0])
    spikes = np.zeros_like(inputs)
    for t in range(inputs.shape[1]):
        if own is not None:
            inputs[:, t] += s @ own.T
        current = inputs[:, t]
        if synapse is not None:
            held = (1 - synapse) * held + synapse * node.w_in * current
            current = held
        v = keep * v + gain * current + leak
        s = v > node.v_threshold
        spikes[:, t] = s
        v = np.where(s, v - node.v_threshold if subtract else node.v_reset, v)
    return spikes


def _whole(node: nir.LIF, inputs: Array, scale: Array) -> Array:
    """``_neurons`` for a LIF that was trained on integers; ``scale`` [C] is its unit."""
    step = G.DT / node.tau.astype(np.float64)
    least = scale.reshape(-1, *[1] * (inputs.ndim - 3)) / 64
    kept = np.rint(4096 * (1 - step))
    v = np.zeros_like(inputs[:, 0])
    spikes = np.zeros_like(inputs)
    for t in range(inputs.shape[1]):
        # What comes in is a whole multiple of 64, but for the rounding of a sum of floats.
        v = np.trunc(v * kept / 4096) + np.rint(step * node.r * inputs[:, t] / least)
        spikes[:, t] = s = v * least > node.v_threshold
        v[s] = 0
    return spikes
