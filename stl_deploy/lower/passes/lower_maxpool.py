"""Lower max pooling of binary spikes to SumPool2d -> Threshold(0.5), which is exact.

The maximum of zeros and ones is 1 where their sum is at least 1. ``pool1`` becomes ``pool1_sum`` and
``pool1``; the latter carries the spikes.
"""

from __future__ import annotations

import nir
import numpy as np

from stl_deploy.errors import LoweringError, Problem
from stl_deploy.ir import nir_graph as G


def lower_maxpool(graph: nir.NIRGraph) -> nir.NIRGraph:
    """The graph without MaxPool2d. Raises LoweringError for one that does not pool spikes."""
    nodes: dict[str, nir.ir.NIRNode] = {}
    problems: list[Problem] = []
    before, binary = "the input", G.float_meta(graph).input_levels == 1
    for name, node in G.inner(graph).items():
        if isinstance(node, G.MaxPool2d):
            if not binary:
                problems.append(
                    Problem(
                        name,
                        f"pools the values of {before}, which are not binary spikes",
                        "pool behind a LIF, or use a strided convolution",
                    )
                )
            nodes[f"{name}_sum"] = G.sum_pool(node.kernel, node.in_shape)
            nodes[name] = nir.Threshold(threshold=np.full(node.out_shape, 0.5))
        else:
            nodes[name] = node
            binary = isinstance(node, G.Neurons | nir.Threshold)
        before = name
    if problems:
        raise LoweringError(problems)
    return G.rebuild(graph, nodes)
