"""Integer layers and networks by hand, and rasters for them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stl_deploy.ir.network import Connection, IntegerNetwork
from stl_deploy.ir.readouts import Readout
from stl_deploy.ir.synapses import Conv, Dense, Sparse, Synapses
from tests.build import layers as L
from tests.build.layers import Layer, LifLayer, OrPool

Shape = tuple[int, ...]


def lif(
    name: str,
    synapses: Synapses,
    input_shape: Shape | None = None,
    shape: Shape | None = None,
    vth: ArrayLike = 0,
    bias: ArrayLike = 0,
    scale: ArrayLike = 1.0,
    **fields: Any,
) -> LifLayer:
    """Neurons behind ``synapses``; one threshold, bias or scale serves for all of them.

    ``input_shape`` may be left out where the synapses are dense, ``shape`` always. Other fields are
    those of ``LifLayer``; the weights are called ``name``_w, recurrent ones ``name``_r.
    """
    input_shape = synapses.weight.shape[1:] if input_shape is None else input_shape
    shape = after(synapses, input_shape) if shape is None else shape
    channels = shape[0]
    names = {"synapse_name": f"{name}_w"}
    if fields.get("recurrent") is not None:
        names["recurrent_name"] = f"{name}_r"
    return LifLayer(
        name=name,
        synapses=synapses,
        input_shape=input_shape,
        shape=shape,
        bias_mant=np.broadcast_to(np.asarray(bias, np.int32), channels).copy(),
        vth=np.broadcast_to(np.asarray(vth, np.int32), shape).copy(),
        scale=np.broadcast_to(np.asarray(scale, np.float64), channels).copy(),
        **(names | fields),
    )


def after(synapses: Synapses, input_shape: Shape) -> Shape:
    """The shape of the neurons behind ``synapses``."""
    if isinstance(synapses, Conv):
        sizes = zip(
            input_shape[1:],
            synapses.weight.shape[2:],
            synapses.stride,
            synapses.padding,
            synapses.dilation,
            strict=True,
        )
        plane = ((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sizes)
        return (len(synapses.weight), *plane)
    return (synapses.size[0] if isinstance(synapses, Sparse) else len(synapses.weight),)


def dense_lif(
    weight: ArrayLike,
    vth: ArrayLike = 1000,
    name: str = "lif",
    kind: type[np.integer[Any]] = np.int8,
    **fields: Any,
) -> LifLayer:
    """Neurons behind dense weights [outputs, inputs] of the type ``kind``."""
    return lif(name, Dense(np.array(weight, kind)), vth=vth, **fields)


def pool(input_shape: Shape, kernel: tuple[int, int], name: str = "pool1") -> OrPool:
    """Max pooling of windows of ``kernel``, which tile the plane."""
    c, h, w = input_shape
    return OrPool(name, f"{name}_w", input_shape, (c, h // kernel[0], w // kernel[1]), kernel)


def chain(
    *layers: Layer,
    chip: str = "loihi2",
    steps: int = 4,
    levels: int = 1,
    readout: Readout | None = None,
    **fields: Any,
) -> IntegerNetwork:
    """The layers one behind the other; every neuron of the last is a class of its own."""
    return L.network(layers, chip, steps, levels, readout, **fields)


def weights(
    rng: np.random.Generator, *shape: int, low: int = -128, high: int = 128, zeros: float = 0.0
) -> NDArray[np.int8]:
    """Random int8 weights from ``low`` to below ``high``, of which a part is zero."""
    weight = rng.integers(low, high, shape)
    if zeros:
        weight = np.where(rng.random(shape) < zeros, 0, weight)
    return weight.astype(np.int8)


def recurrent(
    network: IntegerNetwork, rng: np.random.Generator, low: int, high: int
) -> IntegerNetwork:
    """``network`` with recurrent weights in its flat populations, a third of which are zero."""
    more: list[Connection] = []
    for population in network.populations:
        if population.kind == "or" or len(population.shape) > 1:
            continue
        size = population.size
        weight = weights(rng, size, size, low=low, high=high, zeros=0.33)
        (before,) = network.into(population.name)
        own = {"name": f"{population.name}_rec", "source": population.name, "delay": 1}
        more.append(replace(before, synapses=Dense(weight), **own))
    return replace(network, connections=(*network.connections, *more))


def random_cores(rng: np.random.Generator, network: IntegerNetwork) -> dict[str, NDArray[np.int64]]:
    """Neurons dealt to cores in blocks of memory, or each at random; those of the last are not asked."""
    cores = {}
    for population in network.populations[:-1]:
        count = int(rng.integers(1, 5))
        dealt = rng.integers(0, count, population.size)
        if rng.random() < 0.5:
            blocks = np.sort(dealt).reshape(*population.shape[1:], -1)
            dealt = np.moveaxis(blocks, -1, 0).ravel()
        cores[population.name] = dealt
    return cores


def raster(
    network: IntegerNetwork,
    samples: int = 3,
    density: float = 0.5,
    seed: int | np.random.Generator = 3,
) -> NDArray[np.uint8]:
    """Values for the only input of ``network``: ``density`` of them are from 1 to its levels, others 0."""
    (given,) = network.inputs.values()
    return values((samples, network.timesteps, *given.shape), density, given.levels, seed)


def values(
    size: Iterable[int],
    density: float = 0.5,
    levels: int = 1,
    seed: int | np.random.Generator = 0,
) -> NDArray[np.uint8]:
    """A raster of this size [N, T, *input]: ``density`` of its values are 1..levels, others 0."""
    rng, size = np.random.default_rng(seed), tuple(size)
    drawn = rng.integers(1, levels + 1, size)
    return np.where(rng.random(size) < density, drawn, 0).astype(np.uint8)
