"""Networks of one rule, quantized, with what both sides send where sources send what they do in float."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import nir
import numpy as np

from stl_deploy.hw_sim import reference
from stl_deploy.ir import execute
from stl_deploy.ir.floats import FloatNetwork
from stl_deploy.ir.network import IntegerNetwork
from stl_deploy.lower.quantize import quantize
from tests.build import forced, rule_floats
from tests.build.nir_of_floats import graph_of


@dataclass(frozen=True, eq=False)
class Ran:
    """``sent`` is that of the float model, what only the integers have included; ``forced`` with states."""

    graph: nir.NIRGraph
    floats: FloatNetwork
    network: IntegerNetwork
    raster: np.ndarray
    sent: dict[str, np.ndarray]
    forced: reference.Trace


@cache
def of(rule: str, read: str = "votes", seed: int = 0) -> Ran:
    """The network of a rule and its runs; nobody may change it."""
    floats, raster = rule_floats.network(rule, seed, read=read)
    network = quantize(floats)
    want = execute.run(floats, raster)
    got = forced.run(network, raster, want, states=True)
    others = {n: did.spikes for n, did in got.layers.items() if n not in want}
    sent = {"input": raster, **want, **others}
    return Ran(graph_of(floats), floats, network, raster, sent, got)
