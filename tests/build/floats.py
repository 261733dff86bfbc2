"""Float graphs by hand: NIR with what this project notes of a network, as passes and quantize take it."""

from __future__ import annotations

import math
from typing import Any

import nir
import numpy as np

from stl_deploy.ir import nir_graph as G
from stl_deploy.ir import nir_walk as walk

# By the name of the neurons, the node that leads from them back to them, and its name.
Recurrent = dict[str, tuple[str, nir.Linear]]
Shape = int | tuple[int, ...]


def graph(
    nodes: dict[str, nir.ir.NIRNode],
    inputs: Shape,
    outputs: Shape,
    recurrent: Recurrent | None = None,
    timesteps: int = 4,
    levels: int = 1,
    **meta: Any,
) -> nir.NIRGraph:
    """Nodes in order, which fit each other; every neuron of the last is a class of its own."""
    before, after = ((n,) if isinstance(n, int) else n for n in (inputs, outputs))
    said = G.FloatMeta(
        timesteps=timesteps, input_levels=levels, classes=math.prod(after), population=1, **meta
    )
    built = with_ways_back(G.chain_graph(nodes, before, after, said.text()), recurrent or {})
    walk.shapes(built)  # raises where nodes do not fit
    return built


def with_ways_back(graph: nir.NIRGraph, recurrent: Recurrent) -> nir.NIRGraph:
    """``graph`` with nodes, each by its name, that lead from neurons back to them."""
    nodes = graph.nodes | dict(recurrent.values())
    ways = [way for n, (name, _) in recurrent.items() for way in ((n, name), (name, n))]
    return nir.NIRGraph(nodes, [*graph.edges, *ways], metadata=graph.metadata, type_check=False)


def with_nodes(graph: nir.NIRGraph, **nodes: nir.ir.NIRNode) -> nir.NIRGraph:
    """``graph`` with other nodes in the place of those of their names."""
    every = graph.nodes | nodes
    return nir.NIRGraph(every, graph.edges, metadata=graph.metadata, type_check=False)


def lif(theta, tau=0.5):
    """Fires at v >= theta: the float graph holds the number below theta behind NIR's strict >."""
    theta = np.nextafter(np.asarray(theta, np.float64), -np.inf)
    return G.lif(theta, G.DT / (1 - tau), 1 / (1 - tau))


def cuba(rng, n, **fields):
    """Neurons with parameters of their own."""
    drawn = {
        "tau_syn": rng.uniform(1e-4, 6e-4, n),
        "tau_mem": rng.uniform(2e-4, 9e-4, n),
        "r": rng.uniform(0.5, 2, n),
        "v_leak": rng.uniform(-0.2, 0.2, n),
        "v_reset": rng.uniform(-0.5, 0.1, n),
        "v_threshold": rng.uniform(0.3, 0.9, n),
        "w_in": rng.uniform(0.5, 1.5, n),
    }
    return nir.CubaLIF(**(drawn | fields))


def dense(weight, theta, bias=None, tau=0.5, **fields):
    """One linear layer ``fc`` and its neurons ``lif``."""
    weight = np.asarray(weight, np.float64)
    theta = np.broadcast_to(np.asarray(theta, np.float64), len(weight))
    bias = np.zeros(len(weight)) if bias is None else np.asarray(bias, np.float64)
    nodes = {"fc": nir.Affine(weight=weight, bias=bias), "lif": lif(theta, tau)}
    return graph(nodes, weight.shape[1:], (len(weight),), **fields)


def conv(weight, theta, bias, in_shape, stride=(1, 1), padding=(0, 0), **fields):
    """One convolution ``conv`` and its neurons ``lif``; ``theta`` may be a function of the shape."""
    node = G.conv2d(weight, bias, in_shape, stride, padding)
    out = G.node_output("conv", node, in_shape)
    theta = theta(out) if callable(theta) else np.full(out, theta)
    return graph({"conv": node, "lif": lif(theta)}, in_shape, out, **fields)


def deep(rng, levels=1, bias=0.3, theta=(0.1, 1.5), **fields):
    """Convolution with strides, pool, two linear layers; all parameters at random."""
    uniform = rng.uniform
    return graph(
        {
            "conv1": G.conv2d(
                rng.normal(size=(4, 2, 3, 2)), uniform(-bias, bias, 4), (2, 6, 7), (1, 2), (1, 0)
            ),
            "lif1": lif(uniform(*theta, (4, 6, 3))),
            "pool1_sum": G.sum_pool((2, 3), (4, 6, 3)),
            "pool1": nir.Threshold(threshold=np.full((4, 3, 1), 0.5)),
            "flat": G.flatten((4, 3, 1)),
            "fc1": nir.Affine(weight=rng.normal(size=(9, 12)), bias=uniform(-bias, bias, 9)),
            "lif2": lif(uniform(*theta, 9)),
            "fc2": nir.Linear(weight=rng.normal(size=(5, 9))),
            "lif3": lif(uniform(*theta, 5)),
        },
        (2, 6, 7),
        (5,),
        levels=levels,
        **fields,
    )


def linear(rng, inputs, timesteps=4, recurrent=None):
    """A linear layer and its neurons, as a float graph."""
    weight = rng.normal(size=(12, inputs))
    nodes = {
        "fc": nir.Linear(weight=weight),
        "lif": G.lif(rng.uniform(1, 4, 12), G.DT * 2, 2.0),
    }
    own = None if recurrent is None else {"lif": ("own", nir.Linear(weight=recurrent))}
    return graph(nodes, inputs, 12, own, timesteps=timesteps)


def random_graph(rng, neurons=60, inputs=40, steps=6, scale=1.0):
    """A recurrent layer with a current, and a plain one behind it; any numbers."""
    nodes = {
        "fc1": nir.Linear(weight=scale * rng.normal(size=(neurons, inputs))),
        "lif1": cuba(
            rng,
            neurons,
            tau_syn=np.full(neurons, G.DT / 0.4),
            tau_mem=np.full(neurons, G.DT / 0.3),
            r=np.full(neurons, 2.5),
            w_in=np.full(neurons, 1.5),
            v_leak=rng.normal(size=neurons),
            v_reset=np.zeros(neurons),
            v_threshold=scale * rng.uniform(1, 6, neurons),
        ),
        "fc2": nir.Affine(weight=rng.normal(size=(10, neurons)), bias=rng.normal(size=10)),
        "lif2": G.lif(rng.uniform(1, 4, 10), tau=2e-4, r=2.0),
    }
    own = scale * rng.normal(size=(neurons, neurons)) / 3
    own[:5] *= 9
    recurrent = {"lif1": ("rec", nir.Linear(weight=own))}
    return graph(nodes, inputs, 10, recurrent, timesteps=steps)
