"""Fold the scale of a graded input (x / levels) into the first weights, so that integers come in."""

from __future__ import annotations

import nir
import numpy as np

from stl_deploy.errors import LoweringError, Problem
from stl_deploy.ir import nir_graph as G


def fold_input_scale(graph: nir.NIRGraph) -> nir.NIRGraph:
    """The graph without InputScale. Raises LoweringError when no weights follow it."""
    nodes: dict[str, nir.ir.NIRNode] = {}
    scale: G.InputScale | None = None
    for name, node in G.inner(graph).items():
        if isinstance(node, G.InputScale):
            scale = node
        elif scale is None or isinstance(node, nir.Flatten):
            nodes[name] = node
        else:
            nodes[name] = _scaled(name, node, scale.levels)
            scale = None
    return G.rebuild(graph, nodes)


def _scaled(name: str, node: nir.ir.NIRNode, levels: int) -> nir.ir.NIRNode:
    if isinstance(node, nir.Conv2d):
        stride, padding, dilation = G.conv_geometry(node)
        shape = G.shape_of(node.input_type["input"])
        weight = node.weight.astype(np.float64) / levels
        return G.conv2d(weight, node.bias, shape, stride, padding, node.groups, dilation)
    if isinstance(node, nir.Affine):
        return nir.Affine(weight=node.weight.astype(np.float64) / levels, bias=node.bias)
    if isinstance(node, nir.Linear):
        return nir.Linear(weight=node.weight.astype(np.float64) / levels)
    raise LoweringError(
        Problem(
            name,
            f"{type(node).__name__} reads a graded input directly",
            "let the network begin with a convolution or linear layer",
        )
    )
