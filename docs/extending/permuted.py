"""A kind of synapses: each neuron receives the one input that ``order`` names, with its own weight."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from stl_deploy.exporters import onnx_sums
from stl_deploy.exporters.onnx_graph import Builder
from stl_deploy.exporters.onnx_sums import Arriving
from stl_deploy.ir.synapses import IntArray, OneToOne, Shape


@dataclass(frozen=True, eq=False)
class Permuted:
    """Weight [n] of the synapse from input ``order[i]`` to neuron i, both in C order."""

    weight: NDArray[np.int8]
    order: NDArray[np.int32]

    kind: Literal["permuted"] = "permuted"

    def sums(self, values: IntArray, levels: int = 1) -> NDArray[np.int64]:
        """The weighted inputs [N, n]."""
        return OneToOne(self.weight).sums(values.reshape(len(values), -1)[:, self.order], levels)

    def row_sums(self, values: NDArray[np.int64]) -> NDArray[np.int64]:
        """``values`` of the stored weights, for each neuron."""
        return values

    def with_weights(self, weight: NDArray[Any]) -> Permuted:
        """The same synapses with other weights."""
        return replace(self, weight=weight)


def _onnx(b: Builder, permuted: Permuted, x: Arriving) -> str:
    """The inputs in another order, then each times its weight, in int64."""
    flat = b.op("Reshape", [x.value, b.shape((0, len(permuted.order)))], x.name(b, "flat"))
    order = b.constant(x.name(b, "order"), permuted.order)
    picked = b.op("Gather", [flat, order], x.name(b, "picked"), axis=1)
    wide = b.cast(picked, np.int64, x.name(b, "wide"))
    weight = b.constant(x.name(b, "weight"), permuted.weight.astype(np.int64))
    each = b.op("Mul", [wide, weight], x.name(b, "each"))
    return b.op("Reshape", [each, b.shape((0, *x.shape))], x.name(b, "shaped"))


def _numbers(permuted: Permuted, _shape: Shape) -> int:
    return 12 * permuted.weight.size


ROW = {"permuted": onnx_sums.Form(_onnx, _numbers)}
