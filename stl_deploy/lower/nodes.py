"""What lowering knows of each node: the spiking ones, and the linear ones as maps (``linear.py``).

A further linear node is an entry of ``LINEAR``; further neurons are an entry of ``NEURONS`` in
``ir/float_neurons.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import nir
import numpy as np
from numpy.typing import NDArray

from stl_deploy.ir import nir_graph as G
from stl_deploy.ir import nir_words as words
from stl_deploy.ir.float_neurons import NEURONS, Float, FloatNeurons, decode
from stl_deploy.ir.synapses import Pair, Shape
from stl_deploy.ir.units import MAX_STEPS
from stl_deploy.lower import linear as L

Array = NDArray[Any]
SPIKING = (*NEURONS, G.MaxPool2d)
WHOLE = 1e-6  # of a step: by how much a delay in seconds may miss a whole number of steps


@dataclass(frozen=True)
class Reading:
    """How the nodes of a graph are meant.

    Attributes:
        dt: seconds of a time step.
        binary: inputs are spikes, and not whole numbers of more values than 0 and 1.
        foreign: the graph comes from another tool. An input [C, L] is then an image [C, 1, L], an IF
            with r = 1 adds its input as it is, and neurons of any kind that fire as soon as one input of
            a window does are an OR pool.
    """

    dt: float = G.DT
    binary: bool = True
    foreign: bool = True


class Linear(NamedTuple):
    """A linear node for an input of some shape: a map, then a constant of its output's shape.

    ``weighted``: whether the node gives the layer of weights its name. ``divisor`` divides what comes out,
    which comes ``delay`` steps later, and among zeros where there is a ``place``. ``port`` is that of the
    neurons at which it arrives.
    """

    way: L.Map
    out_shape: Shape
    constant: Array | None = None
    weighted: bool = False
    divisor: int = 1
    delay: int = 0
    place: L.Place | None = None
    port: int = 0


def as_image(shape: Shape) -> Shape:
    """Sequences [C, L] are read as images [C, 1, L]."""
    return (shape[0], 1, shape[1]) if len(shape) == 2 else shape


def holds(node: nir.ir.NIRNode, dt: float) -> bool:
    """Whether what leaves ``node`` is, round a cycle, that of a step before."""
    if isinstance(node, nir.Delay):
        return bool((np.rint(np.asarray(node.delay, np.float64) / dt) >= 1).all())
    return isinstance(node, SPIKING)


def shape_behind(node: nir.ir.NIRNode, shape: Shape) -> Shape:
    """Shape of what leaves ``node`` for an input of ``shape``. Raises ValueError where it does not fit."""
    if isinstance(node, G.MaxPool2d | G.Place):
        if node.in_shape != shape:
            raise ValueError(f"a node for {node.in_shape} gets an input of shape {shape}")
        return node.out_shape
    known = SHAPES.get(type(node))
    return shape if known is None else known(node, shape)


def linear(node: nir.ir.NIRNode, shape: Shape, reading: Reading) -> Linear:
    """What a node of ``LINEAR`` does to an input of ``shape``.

    Raises ValueError for parameters that do not fit, CannotFold for what is not linear.
    """
    said = words.read(node)
    if said != words.Words(port=said.port):
        raise ValueError(f"metadata.{G.KEY} has rules of neurons, and this is none")
    return LINEAR[type(node)](node, shape, reading)._replace(port=said.port)


def parameter(node: Any, key: str, shape: Shape) -> Float:
    """A parameter as float64 of the full ``shape`` of its neurons; a single value serves for all."""
    value = np.asarray(getattr(node, key), np.float64)
    squeezed = tuple(n for n in shape if n != 1)
    if value.size != 1 and tuple(n for n in value.shape if n != 1) != squeezed:
        raise ValueError(f"{key} has shape {value.shape}, its neurons {shape}")
    if key.startswith("tau") and not (value > 0).all():
        raise ValueError(f"{key} is not above zero everywhere ({span(value)})")
    full = value.reshape(-1) if value.size == 1 else value.reshape(shape)
    return np.broadcast_to(full, shape).copy()


def span(values: Array) -> str:
    """The range of ``values`` in words."""
    low, high = float(values.min()), float(values.max())
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


class Read(NamedTuple):
    """Neurons with arrays of their full shape and a ``drive`` of 1; ``kept`` is the node they came from.

    That is None where the node cannot stay in a lowered graph as it is. ``wrong``: what of them no chip has.
    """

    neurons: FloatNeurons
    kept: nir.ir.NIRNode | None
    wrong: list[str]


def read_neurons(node: nir.ir.NIRNode, shape: Shape, reading: Reading) -> Read:
    """The neurons of ``node``, of ``shape``. Raises ValueError for parameters that do not fit."""
    parameters = NEURONS[type(node)].parameters
    values = {key: parameter(node, key, shape) for key in parameters}
    made = decode(node, values, reading.dt).reshaped(shape)
    if made.drive2 is None:
        made = replace(made, gain=made.total_gain, drive=np.ones(shape))
    elif (made.drive > 0).all():
        second = made.drive2 / made.drive
        made = replace(made, gain=made.total_gain, drive=np.ones(shape), drive2=second)
    counts = made.kind == "if" and reading.foreign and bool((values["r"] == 1).all())
    if counts:
        # Norse, sinabs, spyx and snnTorch write and read r = 1 for v + I; by NIR's equation, as
        # SpikingJelly writes it, that is r = 1/dt.
        made = replace(made, gain=np.ones(shape))
    wrong = [
        f"{name} is {span(share)}, not in 0 to 1"
        for name, share in (("current2", made.current2), ("adapt_step", made.adapt_step))
        if share is not None and (share.min() < 0 or share.max() > 1)
    ]
    if made.amplify is not None and made.leak.any():
        why = "the gain of each step would multiply it too; put it into the bias of the weights"
        wrong.append(f"v_leak is not zero ({span(values['v_leak'])}), but {why}")
    for tau in (key for key in parameters if key.startswith("tau")):
        decay = 1 - reading.dt / values[tau]
        if decay.min() < 0:
            wrong.append(
                f"decay 1 - dt/{tau} is {span(decay)}, below 0 for dt = {reading.dt:g}; give the time "
                "step that the model was trained with as --dt"
            )
    whole = all(np.shape(getattr(node, key)) == shape for key in parameters)
    elsewhere = not made.has_current and bool(made.leak.any())  # a leak that goes into the bias
    keeps = reading.dt == G.DT and whole and not elsewhere and not counts and made.has_state
    return Read(made, node if keeps else None, wrong)


def _dense(node: nir.Linear | nir.Affine, shape: Shape, _reading: Reading) -> Linear:
    bias = getattr(node, "bias", None)
    if bias is not None and bias.shape != (len(node.weight),):
        raise ValueError(f"a bias of shape {bias.shape} for {len(node.weight)} outputs")
    return Linear(L.Dense(node.weight), _dense_shape(node, shape), bias, weighted=True)


def _dense_shape(node: nir.Linear | nir.Affine, shape: Shape) -> Shape:
    if node.weight.ndim != 2 or shape != node.weight.shape[1:]:
        raise ValueError(f"weights of shape {node.weight.shape} for an input of shape {shape}")
    return (node.weight.shape[0],)


def _conv(node: nir.Conv1d | nir.Conv2d, shape: Shape, _reading: Reading) -> Linear:
    way = _conv_of(node, shape)
    if node.bias.shape != (len(way.weight),):
        raise ValueError(f"a bias of shape {node.bias.shape} for {len(way.weight)} channels")
    full = np.broadcast_to(node.bias.reshape(-1, 1, 1), way.out_shape)
    return Linear(way, way.out_shape, full if node.bias.any() else None, weighted=True)


def _conv_of(node: nir.Conv1d | nir.Conv2d, shape: Shape) -> L.Conv:
    """The convolution; a Conv1d is one of [C, 1, L]. Raises ValueError where it does not fit."""
    flat = isinstance(node, nir.Conv1d)
    rank = 3 if flat else 4
    if node.weight.ndim != rank:
        raise ValueError(f"the kernel has shape {node.weight.shape}, not rank {rank}")
    weight = node.weight[:, :, None] if flat else node.weight
    stride, dilation = (
        (1, G.pair(v)[0]) if flat else G.pair(v) for v in (node.stride, node.dilation)
    )
    padding = node.padding.decode() if isinstance(node.padding, bytes) else node.padding
    if not isinstance(padding, str):
        padding = (0, G.pair(padding)[0]) if flat else G.pair(padding)
    elif padding == "same":
        weight, padding, dilation = _same(weight, stride, dilation)
    elif padding == "valid":
        padding = (0, 0)
    else:
        raise ValueError(f"padding {padding!r} is not 'same', 'valid' or a number")
    return L.conv(weight, stride, padding, dilation, G.pair(node.groups)[0], shape)


def _same(weight: Array, stride: Pair, dilation: Pair) -> tuple[Array, Pair, Pair]:
    """Kernel, padding and dilation of a convolution whose outputs are as many as its inputs.

    Where that takes an odd number of zeros, PyTorch puts one more behind the input than before it. A kernel
    with one more row or column of zeros in front needs as many on both sides.
    """
    if stride != (1, 1):
        raise ValueError(
            f"padding 'same' with strides {stride}; it is defined for strides of 1 only"
        )
    padding, steps = [], []
    for axis, step in zip((2, 3), dilation, strict=True):
        reach = step * (weight.shape[axis] - 1)
        if reach % 2:
            size = list(weight.shape)
            size[axis] = reach + 2
            wider = np.zeros(size, weight.dtype)
            np.moveaxis(wider, axis, 0)[1::step] = np.moveaxis(weight, axis, 0)
            weight, reach, step = wider, reach + 1, 1
        padding.append(reach // 2)
        steps.append(step)
    return weight, (padding[0], padding[1]), (steps[0], steps[1])


def _pool(node: nir.SumPool2d | nir.AvgPool2d, shape: Shape, _reading: Reading) -> Linear:
    way = _pool_of(node, shape)
    return Linear(way, way.out_shape)


def _pool_of(node: nir.SumPool2d | nir.AvgPool2d, shape: Shape) -> L.Conv:
    kernel, stride, padding = (G.pair(v) for v in (node.kernel_size, node.stride, node.padding))
    # As in PyTorch by default, zeros of the padding count in an average.
    value = 1.0 if isinstance(node, nir.SumPool2d) else 1 / math.prod(kernel)
    return L.pool(kernel, stride, padding, value, shape)


def _scale(node: nir.Scale, shape: Shape, _reading: Reading) -> Linear:
    return Linear(L.Diagonal(parameter(node, "scale", shape).reshape(-1)), shape)


def _batchnorm(node: G.BatchNorm, shape: Shape, _reading: Reading) -> Linear:
    """gamma * (x - mean) / sqrt(var + eps) + beta, the same running statistics at every step."""
    k = node.gamma.astype(np.float64) / np.sqrt(node.var.astype(np.float64) + node.eps)
    ones = [1] * (len(shape) - 1)
    constant = (node.beta - k * node.mean).reshape(-1, *ones)
    scale = np.broadcast_to(k.reshape(-1, *ones), shape)
    return Linear(L.Diagonal(scale.reshape(-1)), shape, np.broadcast_to(constant, shape))


def _input_scale(node: G.InputScale, shape: Shape, _reading: Reading) -> Linear:
    return Linear(L.IDENTITY, shape, divisor=node.levels)


def _flatten(node: nir.Flatten, shape: Shape, _reading: Reading) -> Linear:
    return Linear(L.IDENTITY, _flattened(node, shape))


def _flattened(node: nir.Flatten, shape: Shape) -> Shape:
    """All of ``shape`` in a row; the dimensions may be counted with one for a batch or without."""
    ranks = {len(shape), 2 if len(shape) == 3 and shape[1] == 1 else len(shape)}
    start, end = node.start_dim, node.end_dim
    begins = {0, 1} | {-rank for rank in ranks}
    ends = {-1} | {rank - 1 for rank in ranks} | ranks
    if len(shape) > 1 and (start not in begins or end not in ends):
        raise ValueError(f"flattens dimensions {start} to {end} of {shape}, not all of them")
    return (math.prod(shape),)


def _place(node: G.Place, shape: Shape, _reading: Reading) -> Linear:
    area = math.prod(shape[1:])
    place = L.Place(node.first * area, math.prod(shape), math.prod(node.out_shape))
    return Linear(L.IDENTITY, node.out_shape, place=place)


def _shift(node: G.Shift, shape: Shape, _reading: Reading) -> Linear:
    return Linear(L.IDENTITY, shape, node.values)


def _delay(node: nir.Delay, shape: Shape, reading: Reading) -> Linear:
    steps = parameter(node, "delay", shape) / reading.dt
    whole = np.rint(steps)
    if np.ptp(whole) != 0 or (np.abs(steps - whole) > WHOLE).any():
        raise L.CannotFold(
            f"a delay of {span(steps)} steps of {reading.dt:g} s; all values of a Delay must wait the "
            "same whole number of steps"
        )
    if not 0 <= whole.flat[0] <= MAX_STEPS:
        raise L.CannotFold(f"a delay of {span(steps)} steps is not in 0..{MAX_STEPS}")
    return Linear(L.IDENTITY, shape, delay=int(whole.flat[0]))


def _nothing(_node: nir.ir.NIRNode, shape: Shape, _reading: Reading) -> Linear:
    return Linear(L.IDENTITY, shape)


LINEAR: dict[type, Callable[[Any, Shape, Reading], Linear]] = {
    nir.Affine: _dense,
    nir.Linear: _dense,
    nir.Scale: _scale,
    nir.Conv1d: _conv,
    nir.Conv2d: _conv,
    nir.SumPool2d: _pool,
    nir.AvgPool2d: _pool,
    nir.Flatten: _flatten,
    nir.Delay: _delay,
    nir.Output: _nothing,
    G.BatchNorm: _batchnorm,
    G.InputScale: _input_scale,
    G.Dropout: _nothing,
    G.Place: _place,
    G.Shift: _shift,
}
# Of nodes that change it. Other shapes are looked at where the node is read.
SHAPES: dict[type, Callable[[Any, Shape], Shape]] = {
    nir.Affine: _dense_shape,
    nir.Linear: _dense_shape,
    nir.Conv1d: lambda node, shape: _conv_of(node, shape).out_shape,
    nir.Conv2d: lambda node, shape: _conv_of(node, shape).out_shape,
    nir.SumPool2d: lambda node, shape: _pool_of(node, shape).out_shape,
    nir.AvgPool2d: lambda node, shape: _pool_of(node, shape).out_shape,
    nir.Flatten: _flattened,
}
