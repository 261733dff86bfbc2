"""Passes on the float NIR graph: plain functions graph -> graph, in the order of ``PIPELINE``."""

from __future__ import annotations

from collections.abc import Callable

import nir

from stl_deploy.errors import LoweringError, Problem
from stl_deploy.ir import nir_graph as G
from stl_deploy.lower.passes.drop_dropout import drop_dropout
from stl_deploy.lower.passes.fold_batchnorm import fold_batchnorm
from stl_deploy.lower.passes.fold_input_scale import fold_input_scale
from stl_deploy.lower.passes.lower_maxpool import lower_maxpool

Pass = Callable[[nir.NIRGraph], nir.NIRGraph]

PIPELINE: tuple[Pass, ...] = (drop_dropout, fold_batchnorm, fold_input_scale, lower_maxpool)


def lower(graph: nir.NIRGraph) -> nir.NIRGraph:
    """Run the pipeline; the graph is verified before and after each pass.

    Raises LoweringError that names the passes already run.
    """
    done: list[str] = []
    G.verify(graph)
    for step in PIPELINE:
        try:
            graph = step(graph)
            G.verify(graph)
        except LoweringError as error:
            before = ", ".join(done) or "none"
            raise LoweringError(
                [
                    Problem(
                        p.where, f"{p.what} (pass {step.__name__}; run before: {before})", p.remedy
                    )
                    for p in error.problems
                ]
            ) from None
        done.append(step.__name__)
    return graph
