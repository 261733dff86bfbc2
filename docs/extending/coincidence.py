"""A kind of neurons: they fire where at least ``least`` arrives in one step, and forget it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from stl_deploy.exporters import onnx_neurons
from stl_deploy.exporters.onnx_graph import Builder
from stl_deploy.ir import kinds
from stl_deploy.ir.network import IntegerNetwork, Population
from stl_deploy.ir.neurons import Or
from stl_deploy.ir.units import UNIT


@dataclass(frozen=True, eq=False)
class Coincidence(Or):
    """They answer as the LIF that they are on a chip: a threshold of ``least`` - 1, and nothing kept."""

    least: int = 2

    kind: ClassVar[Literal["coincidence"]] = "coincidence"  # type: ignore[assignment]

    @property
    def vth(self) -> NDArray[np.int32]:
        """One below ``least`` for all: the compare is strict."""
        return np.asarray(self.least - 1, np.int32)


def _onnx(
    b: Builder, population: Population, sums: onnx_neurons.Sums, network: IntegerNetwork
) -> str:
    """u is a; v is a where they do not fire, else 0. The next step forgets both: a is below 4096 then."""
    (a,) = sums
    name, state = population.name, onnx_neurons.state_type(network)
    most = b.number((population.neurons.least - 1) * UNIT)  # type: ignore[union-attr]
    fires = b.op("Greater", [a, most], b.name("fires", name))
    v = b.op("Where", [fires, b.number(0), a], b.name("wide_v", name))
    b.cast(a, state, b.name("u", name))
    b.cast(v, state, b.name("v", name))
    return b.cast(fires, np.uint8, b.name("spikes", name))


FIELDS = kinds.FIELDS | {"least"}
ROW = {"coincidence": onnx_neurons.Form(_onnx, remembers=False, fields=FIELDS)}
