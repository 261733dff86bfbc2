"""Remove Dropout, which does nothing in evaluation."""

from __future__ import annotations

import nir

from stl_deploy.ir import nir_graph as G


def drop_dropout(graph: nir.NIRGraph) -> nir.NIRGraph:
    """The graph without Dropout nodes."""
    kept = {n: node for n, node in G.inner(graph).items() if not isinstance(node, G.Dropout)}
    return G.rebuild(graph, kept)
