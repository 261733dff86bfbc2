"""One ONNX graph in the making: nodes, constants, inputs and outputs under names that never clash.

A value is called ``<kind>/<layer>``, with a prefix in the body of a Scan, whose names must differ from
those around it. No kind has a slash, so layers may be called anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

# The oldest set with every operator in the form used here; onnxruntime reads it since 1.12.
OPSET = 17
IR_VERSION = 8
# A file of protocol buffers holds 2 GiB; the rest is for names and nodes.
FILE_BYTES_MAX = (1 << 31) - (1 << 24)

Dimension = int | str


class Builder:
    """Collects a graph; every method gives the name of the value that it made."""

    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []

    def name(self, kind: str, layer: str = "") -> str:
        """The name of a value of ``layer``, or of the whole graph."""
        return self.prefix + (f"{kind}/{layer}" if layer else kind)

    def op(self, operator: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        """A node with one output, called ``name`` as the node is."""
        self.nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name

    def constant(self, name: str, values: NDArray[Any] | np.generic) -> str:
        """A constant; the same name stands for the same values."""
        if name not in self.constants:
            # ONNX is little-endian and knows no strides.
            self.constants[name] = numpy_helper.from_array(
                np.array(values, order="C"),  # keeps what has no dimension so
                name,
            )
        return name

    def number(self, value: int, kind: type[np.generic] = np.int64) -> str:
        """A single number of the type of what it meets."""
        return self.constant(self.name(f"{np.dtype(kind).name}.{value}"), kind(value))

    def shape(self, sizes: Sequence[int]) -> str:
        """The shape that a Reshape takes; 0 keeps a dimension."""
        listed = "x".join(map(str, sizes))
        return self.constant(self.name(f"shape.{listed}"), np.array(sizes, np.int64))

    def cast(self, value: str, kind: type[np.generic], name: str) -> str:
        """``value`` in another type."""
        to = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
        return self.op("Cast", [value], name, to=to)

    def input(self, name: str, kind: type[np.generic], sizes: Sequence[Dimension]) -> str:
        """An input of the graph."""
        self.inputs.append(value_info(name, kind, sizes))
        return name

    def output(self, name: str, kind: type[np.generic], sizes: Sequence[Dimension]) -> str:
        """An output of the graph."""
        self.outputs.append(value_info(name, kind, sizes))
        return name

    def graph(self, name: str) -> onnx.GraphProto:
        """Everything collected."""
        constants = list(self.constants.values())
        return helper.make_graph(self.nodes, name, self.inputs, self.outputs, constants)


def too_large(size: int) -> str:
    """Why ``size`` bytes are refused."""
    return f"weights and thresholds take {size:,} bytes; an ONNX file holds {FILE_BYTES_MAX:,}"


def value_info(
    name: str, kind: type[np.generic], sizes: Sequence[Dimension]
) -> onnx.ValueInfoProto:
    """Name, type and shape of an input or output; a text is a dimension that is not fixed."""
    element = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    return helper.make_tensor_value_info(name, element, list(sizes))
