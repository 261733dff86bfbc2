"""Small trained-like networks that several tests share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

import stl_deploy
from stl_deploy.ir.arch import Architecture
from stl_deploy.ir.chain import Layer, OrPool
from stl_deploy.ir.network import IntegerNetwork
from stl_deploy.ir.synapses import Dense, Sparse
from stl_deploy.models.net import STLNet
from tests.build.networks import values

SMALL = "4C3-BN-LIF-P4-6C3-BN-LIF-P2-FC30-LIF-FC20-LIF-AvgPool2"
CONVOLUTIONAL = "4C3-BN-LIF-P4-FC20-LIF-AvgPool2"
ROOT = Path(__file__).resolve().parents[2]
ZOO = ROOT / "models" / "zoo" / "fashion-stl.pt"
ZOO_RASTER = ROOT / "models" / "zoo" / "fashion-mnist-test500.npz"


def random_net(
    text: str | Architecture = SMALL, seed: int = 0, shape: tuple[int, ...] = (1, 8, 8)
) -> STLNet:
    """A network with random weights, statistics and thresholds, all per neuron and positive."""
    torch.manual_seed(seed)
    net = STLNet(Architecture.parse(text, shape) if isinstance(text, str) else text)
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in net.state_dict().items():
            if name.endswith("thresh"):
                value.uniform_(0.2, 0.9, generator=rng)
            elif name.endswith("running_mean"):
                value.uniform_(-0.2, 0.2, generator=rng)
            elif name.endswith("running_var"):
                value.uniform_(0.05, 0.5, generator=rng)
            elif name.startswith("bn") and value.is_floating_point():
                value.uniform_(0.1, 1.0, generator=rng)
    return net.eval()


def quantized(text: str = CONVOLUTIONAL, seed: int = 0, **options: Any) -> IntegerNetwork:
    """``random_net`` as integers; other options are those of ``stl_deploy.quantize``."""
    return stl_deploy.quantize(stl_deploy.from_torch(random_net(text, seed)), **options)


def random_spikes(net: STLNet, samples: int, seed: int = 0) -> np.ndarray:
    """A Bernoulli raster [N, T, *input] that fits ``net``."""
    return values((samples, net.arch.timesteps, *net.arch.input.shape), 0.4, seed=seed)


def taken(weight: int, precision: str) -> int:
    """How many synapses a weight takes: one where any one of 8 bits can be it, none for zero."""
    if precision == "2x8" and not -128 <= weight <= 127 and weight % 128:
        return 2
    return int(weight != 0)


def synapses(layer: Layer) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(source, target) of every stored, non-zero, in-bounds synapse, as indices of neurons."""
    if isinstance(layer, OrPool):
        yield from _single(layer)
        return
    weight = layer.synapses.weight
    for most in (1, 2):
        held = np.array([taken(w, layer.weight_precision) >= most for w in weight.ravel().tolist()])
        kept = held.reshape(weight.shape).astype(weight.dtype)
        if not isinstance(layer.synapses, Sparse):
            yield from _single(replace(layer, synapses=replace(layer.synapses, weight=kept)))
            continue
        at = kept != 0
        row, column = layer.synapses.row[at], layer.synapses.column[at]
        some = replace(layer.synapses, row=row, column=column, weight=kept[at])
        yield from _single(replace(layer, synapses=some))


def _single(layer: Layer) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The same where every weight is one synapse."""
    if isinstance(layer, OrPool):
        kh, kw = layer.kernel
        for c, i, j in np.ndindex(layer.input_shape):
            yield (c, i, j), (c, i // kh, j // kw)
    elif isinstance(layer.synapses, Sparse):
        sources, targets = list(np.ndindex(layer.input_shape)), list(np.ndindex(layer.shape))
        for row, column in zip(layer.synapses.row, layer.synapses.column, strict=True):
            yield sources[column], targets[row]
    elif isinstance(layer.synapses, Dense):
        sources = list(np.ndindex(layer.input_shape))
        for o, k in np.ndindex(layer.synapses.weight.shape):
            if layer.synapses.weight[o, k]:
                yield sources[k], (o,)
    else:
        conv = layer.synapses
        c_in, height, width = layer.input_shape
        o_out, rows, cols = layer.shape
        for o, k, p, q in np.ndindex(conv.weight.shape):
            if not conv.weight[o, k, p, q]:
                continue
            c = o // (o_out // conv.groups) * (c_in // conv.groups) + k
            for i, j in product(range(rows), range(cols)):
                y = i * conv.stride[0] + p * conv.dilation[0] - conv.padding[0]
                x = j * conv.stride[1] + q * conv.dilation[1] - conv.padding[1]
                if 0 <= y < height and 0 <= x < width:
                    yield (c, y, x), (o, i, j)


def recurrent_synapses(layer: Layer) -> Iterator[tuple[tuple[int], tuple[int]]]:
    """(neuron that spikes, neuron that hears it) of every stored, non-zero recurrent synapse."""
    if not isinstance(layer, OrPool) and layer.recurrent is not None:
        weight = layer.recurrent.weight
        for o, k in np.argwhere(weight).tolist():
            for _ in range(taken(int(weight[o, k]), layer.weight_precision)):
                yield (k,), (o,)
