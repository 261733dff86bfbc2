"""Fold BatchNorm into the convolution or linear layer before it.

    gamma * (W x + b - mean) / sqrt(var + eps) + beta  =  W' x + b'
    with  k = gamma / sqrt(var + eps),  W' = k W  (per output channel),  b' = k (b - mean) + beta

The official code normalises every time step by itself; in evaluation all steps use the same running
statistics, so that one folded weight serves them all. Computed in float64.
"""

from __future__ import annotations

import nir
import numpy as np

from stl_deploy.errors import LoweringError, Problem
from stl_deploy.ir import nir_graph as G


def fold_batchnorm(graph: nir.NIRGraph) -> nir.NIRGraph:
    """The graph without BatchNorm nodes. Raises LoweringError for one with no weights before it."""
    nodes: dict[str, nir.ir.NIRNode] = {}
    problems: list[Problem] = []
    before = "input"
    for name, node in G.inner(graph).items():
        if not isinstance(node, G.BatchNorm):
            nodes[name] = node
            before = name
        elif isinstance(nodes.get(before), nir.Conv2d | nir.Linear | nir.Affine):
            nodes[before] = folded(nodes[before], node)
        else:
            problems.append(
                Problem(
                    name,
                    f"BatchNorm follows {before}, which has no weights to fold it into",
                    "place it behind a convolution or linear layer",
                )
            )
    if problems:
        raise LoweringError(problems)
    return G.rebuild(graph, nodes)


def folded(node: nir.ir.NIRNode, norm: G.BatchNorm) -> nir.ir.NIRNode:
    """``node`` and the BatchNorm behind it as one node of the same kind (Linear becomes Affine)."""
    k = norm.gamma.astype(np.float64) / np.sqrt(norm.var.astype(np.float64) + norm.eps)
    weight = node.weight * k.reshape(-1, *[1] * (node.weight.ndim - 1))
    bias = node.bias.astype(np.float64) if hasattr(node, "bias") else 0.0
    bias = k * (bias - norm.mean.astype(np.float64)) + norm.beta
    if isinstance(node, nir.Conv2d):
        stride, padding, dilation = G.conv_geometry(node)
        shape = G.shape_of(node.input_type["input"])
        return G.conv2d(weight, bias, shape, stride, padding, node.groups, dilation)
    return nir.Affine(weight=weight, bias=bias)
