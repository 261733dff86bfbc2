"""Random integer networks in which every layer works: fires 2 to 60 %, and minds its thresholds."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stl_deploy.chips import facts as chips
from stl_deploy.exporters import loihi_layers, netx
from stl_deploy.ir import slices
from stl_deploy.ir.conv import unroll
from stl_deploy.ir.network import IntegerNetwork
from stl_deploy.ir.slices import WeightPrecision
from stl_deploy.ir.synapses import Conv, Dense, Kernel, Sparse
from tests.build import layers as L
from tests.build.layers import Layer, LifLayer, OrPool
from tests.build.networks import chain, lif, pool

LOW, HIGH = 0.02, 0.60
Made = tuple[IntegerNetwork, NDArray[np.uint8]]


def draw(
    seed: int,
    process_graph: bool = False,
    recurrent: bool = False,
    precision: WeightPrecision = "8",
) -> Made:
    """A network and a raster of two to four samples, the same for the same seed.

    With ``process_graph`` it has what netx cannot carry: folded convolutions, whose neurons have
    kernels of their own, and weight exponents. With ``recurrent`` at least one layer hears itself, and
    on Loihi 2 every other layer resets by subtraction. Weights are of ``precision``.
    """
    rng = np.random.default_rng(seed)
    while True:
        made = _attempt(rng, process_graph, recurrent, precision)
        if made is not None:
            return made


def single(rng: np.random.Generator, layer: LifLayer) -> LifLayer:
    """A convolution with a weight of its own for every synapse, a tenth of them missing."""
    conv = layer.synapses
    if not isinstance(conv, Conv):
        return layer
    (c, h, w), (o, y, x) = layer.input_shape, layer.shape
    geometry = conv.stride, conv.padding, conv.dilation, conv.groups
    row, column, _ = unroll(conv.weight, (c, h, w), (o, y, x), *geometry)
    top = (1 << (layer.weight_bits - 1)) - 1
    weight = rng.integers(-top, top + 1, len(row)).astype(np.int8)
    weight[rng.random(len(row)) < 0.1] = 0
    stored = weight != 0
    size = layer.neurons, math.prod(layer.input_shape)
    # What it was folded from does not matter here.
    kernel = Kernel(conv.weight.astype(np.float64), np.zeros(o), *geometry)
    synapses = Sparse(row[stored], column[stored], weight[stored], size, kernel)
    bias = np.repeat(layer.bias_mant, layer.neurons // o)
    bias += rng.integers(-3, 4, bias.shape).astype(np.int32) * (bias != 0)
    return replace(layer, synapses=synapses, bias_mant=bias, scale=np.ones(layer.neurons))


def hears_itself(rng: np.random.Generator, layer: LifLayer, chip: str) -> LifLayer:
    """The layer with weights of its own where it is flat, now and then, and with either reset."""
    if len(layer.shape) == 1 and rng.random() < 0.8:
        weight = _weights(rng, layer.weight_bits, (layer.neurons, layer.neurons))
        own = {"recurrent": Dense(weight), "recurrent_name": f"{layer.name}_r"}
        layer = replace(layer, **own, exp=int(rng.integers(0, 3)))
    if chip == "loihi2" and rng.random() < 0.5:
        layer = replace(layer, reset="subtract")
    return layer


def widened(rng: np.random.Generator, layer: LifLayer, precision: WeightPrecision) -> LifLayer:
    """The layer with weights all over the grid of ``precision``, small ones as often as large ones."""
    if precision == "8":
        return layer
    if precision == "2x8":
        layer = replace(layer, weight_bits=8, exp=0)
    top = slices.largest(precision, layer.weight_bits)

    def drawn(old: NDArray[Any]) -> NDArray[np.int16]:
        size = np.minimum(np.floor(2 ** rng.uniform(0, np.log2(top + 1), old.shape)), top)
        some = size * rng.choice([-1, 1], old.shape) * (old != 0)
        return some.astype(np.int16)

    own = layer.recurrent
    return replace(
        layer,
        weight_precision=precision,
        synapses=replace(layer.synapses, weight=drawn(layer.synapses.weight)),
        recurrent=None if own is None else Dense(drawn(own.weight)),
    )


def _attempt(
    rng: np.random.Generator, process_graph: bool, recurrent: bool, precision: WeightPrecision
) -> Made | None:
    """One try; None when a layer cannot be brought to work or a tool refuses it."""
    chip = "loihi2" if rng.random() < 0.8 else "loihi1"
    timesteps = int(rng.integers(1, 7))
    levels = 1 if rng.random() < 0.75 else 7
    image = rng.random() < 0.7
    shape: tuple[int, ...] = (
        (int(rng.integers(1, 5)), int(rng.integers(4, 9)), int(rng.integers(4, 9)))
        if image
        else (int(rng.integers(8, 40)),)
    )
    size = (int(rng.integers(2, 5)), timesteps, *shape)
    raster = (rng.integers(1, levels + 1, size) * (rng.random(size) < 0.5)).astype(np.uint8)
    layers: list[Layer] = []
    spikes: NDArray[np.uint8] = raster
    for i, kind in enumerate(_kinds(rng, image)):
        layer = _layer(rng, kind, f"{kind}{i}", spikes.shape[2:])
        if isinstance(layer, LifLayer):
            if process_graph:
                layer = replace(single(rng, layer), exp=int(rng.integers(0, 4)))
            if recurrent:
                layer = hears_itself(rng, layer, chip)
            layer = widened(rng, layer, precision)
            layer = _tuned(rng, layer, spikes, chips.load(chip), levels if i == 0 else 1)
        if layer is None:
            return None
        layers.append(layer)
        network = chain(*layers, chip=chip, steps=timesteps, levels=levels)
        at = levels if i == 0 else 1
        spikes = L.run(layer, spikes, chips.load(chip), at).spikes
        if not LOW <= spikes.mean() <= HIGH:
            return None
    elsewhere = process_graph or recurrent or precision != "8"
    if loihi_layers.problems(network) or (not elsewhere and netx.problems(network)):
        return None
    if recurrent and all(c.source != c.target for c in network.connections):
        return None
    if process_graph and not any(isinstance(c.synapses, Sparse) for c in network.connections):
        return None
    return network, raster


def _kinds(rng: np.random.Generator, image: bool) -> list[str]:
    if not image:
        return ["dense"] * int(rng.integers(1, 4))
    kinds = ["conv"] * int(rng.integers(1, 3)) + ["pool"] * int(rng.random() < 0.4)
    return kinds + ["dense"] * int(rng.integers(0, 3))


def _layer(
    rng: np.random.Generator, kind: str, name: str, shape: tuple[int, ...]
) -> LifLayer | OrPool | None:
    if kind == "pool":
        _, h, w = shape
        kh, kw = int(rng.choice(_divisors(h))), int(rng.choice(_divisors(w)))
        return pool(shape, (kh, kw), name)
    bits = int(rng.integers(2, 9))
    if kind == "dense":
        size = (int(rng.integers(4, 30)),)
        weight = _weights(rng, bits, (*size, math.prod(shape)))
        return _lif(rng, name, Dense(weight), shape, size, bits)
    return _conv(rng, name, shape, bits)


def _conv(
    rng: np.random.Generator, name: str, shape: tuple[int, ...], bits: int
) -> LifLayer | None:
    c, *plane = shape
    groups = int(rng.choice(_divisors(c)))
    outputs = groups * int(rng.integers(1, 4))
    kernel, stride = rng.integers(1, 4, 2), rng.integers(1, 3, 2)
    padding, dilation = rng.integers(0, 3, 2), rng.integers(1, 3, 2)
    size = (np.array(plane) + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    if size.min() < 1:
        return None
    weight = _weights(rng, bits, (outputs, c // groups, *map(int, kernel)))
    conv = Conv(weight, _pair(stride), _pair(padding), _pair(dilation), groups)
    return _lif(rng, name, conv, shape, (outputs, *map(int, size)), bits)


def _lif(
    rng: np.random.Generator,
    name: str,
    synapses: Conv | Dense,
    before: tuple[int, ...],
    shape: tuple[int, ...],
    bits: int,
) -> LifLayer:
    biased = rng.random() < 0.6
    span = 1 << (bits - 1)
    return lif(
        name,
        synapses,
        before,
        shape,
        bias=rng.integers(-span, 2 * span, shape[0]) * biased,
        weight_bits=bits,
        du=4095 if rng.random() < 0.7 else int(rng.integers(0, 4096)),
        dv=2048 if rng.random() < 0.6 else int(rng.integers(0, 4096)),
    )


def _weights(rng: np.random.Generator, bits: int, size: tuple[int, ...]) -> NDArray[np.int8]:
    """Of both signs, or of one: Lava treats those otherwise."""
    top = (1 << (bits - 1)) - 1
    low, high = [(-top, top), (0, top), (1, top)][rng.choice(3, p=[0.7, 0.2, 0.1])]
    return rng.integers(low, high + 1, size).astype(np.int8)


def _tuned(
    rng: np.random.Generator,
    layer: LifLayer,
    inputs: NDArray[np.uint8],
    chip: chips.Chip,
    levels: int,
) -> LifLayer | None:
    """Thresholds, one a neuron, with which the layer fires and that one spike hangs on."""
    spread = rng.uniform(0.6, 1.4, layer.shape)
    for base in rng.permutation(np.geomspace(1, 60_000, 24)):
        tried = replace(layer, vth=np.minimum(base * spread, 131_000).astype(np.int32))
        rate = L.run(tried, inputs, chip, levels).spikes.mean()
        if 2 * LOW <= rate <= 0.8 * HIGH:
            return _on_the_edge(rng, tried, inputs, chip, levels)
    return None


def _on_the_edge(
    rng: np.random.Generator,
    layer: LifLayer,
    inputs: NDArray[np.uint8],
    chip: chips.Chip,
    levels: int,
) -> LifLayer | None:
    """One neuron's threshold raised as far as its first spike of some sample allows."""
    spikes = L.run(layer, inputs, chip, levels).spikes
    where: Any = np.argwhere(spikes)
    sample, _, *neuron = where[rng.integers(len(where))]
    at = tuple(neuron)
    step = int(spikes[(sample, slice(None), *at)].argmax())
    vth = layer.vth.copy()
    vth[at] = 131_071
    silent = L.run(replace(layer, vth=vth), inputs, chip, levels, states=True)
    assert silent.v is not None
    edge = (int(silent.v[(sample, step, *at)]) - 1) >> 6
    if not 0 <= edge < 131_071:
        return None
    vth[at] = edge
    return replace(layer, vth=vth)


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def _pair(values: NDArray[Any]) -> tuple[int, int]:
    return int(values[0]), int(values[1])
