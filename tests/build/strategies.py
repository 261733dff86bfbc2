"""Integer layers and networks drawn by hypothesis."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from hypothesis import strategies as st

from stl_deploy.ir.network import Readout
from stl_deploy.ir.synapses import Conv, Dense
from tests.build.networks import chain, dense_lif, lif, pool

SEEDS = st.integers(0, 2**32 - 1)


def random_lif(draw, rng, name, synapses, input_shape, shape, chip, levels):
    """Neurons behind ``synapses``; decays, exponents and biases of the whole range now and then."""
    wild = draw(st.booleans())
    exp = draw(st.integers(0, 7)) if wild else draw(st.sampled_from([0, 0, 1]))
    reach = levels * (int(np.abs(synapses.weight.astype(int)).max()) << exp) + 2
    vth = rng.integers(0, min(2 * reach, 131072), shape)
    if chip == "ideal":
        vth -= rng.integers(0, reach, shape)
    bias = rng.integers(-4096, 4096, shape[0]) if wild else rng.integers(-30, 31, shape[0])
    if draw(st.booleans()):
        bias *= 0
    recurrent = None
    if len(shape) == 1 and draw(st.booleans()):
        own = rng.integers(-reach // 2, reach // 2 + 1, (*shape, *shape)) >> exp
        recurrent = Dense(np.clip(own, -128, 127).astype(np.int8))
    return lif(
        name,
        synapses,
        input_shape,
        shape,
        vth,
        bias,
        exp=exp,
        bias_exp=draw(st.integers(0, 7)) if wild else 6,
        du=draw(st.sampled_from([4095, 4095, 0, 1000, 4094])),
        dv=draw(st.sampled_from([2048, 2048, 0, 1, 163, 3001, 4095])),
        recurrent=recurrent,
        recurrent_name="" if recurrent is None else f"{name}_rec",
        reset=draw(st.sampled_from(["zero", "subtract"])) if chip != "loihi1" else "zero",
    )


@st.composite
def networks(draw):
    """Convolution, OR pool, dense: sizes, geometry and registers at random, and a raster."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    chip = draw(st.sampled_from(["ideal", "loihi1", "loihi2"]))
    levels = draw(st.sampled_from([1, 1, 7, 255]))
    groups = draw(st.integers(1, 3))
    pairs = st.tuples(st.integers(1, 2), st.integers(1, 2))
    kernel = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    stride, dilation = draw(st.tuples(st.integers(1, 3), st.integers(1, 3))), draw(pairs)
    padding = draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
    window, tiles = draw(pairs), draw(pairs)
    # The last rows and columns may lie under no window.
    plane = [
        max(1, (k * n - 1) * s + d * (f - 1) + 1 - 2 * p + draw(st.integers(0, s - 1)))
        for k, n, s, d, f, p in zip(window, tiles, stride, dilation, kernel, padding, strict=True)
    ]
    size = tuple(
        (n + 2 * p - d * (f - 1) - 1) // s + 1
        for n, p, d, f, s in zip(plane, padding, dilation, kernel, stride, strict=True)
    )
    window = tuple(k if n % k == 0 else 1 for n, k in zip(size, window, strict=True))
    cin, cout = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    weight = rng.integers(-128, 128, (cout, cin // groups, *kernel)).astype(np.int8)
    weight[rng.random(weight.shape) < 0.2] = 0
    conv = Conv(weight, stride, padding, dilation, groups)
    small = (cout, size[0] // window[0], size[1] // window[1])
    dense = Dense(rng.integers(-127, 128, (4, math.prod(small))).astype(np.int8))
    layers = (
        random_lif(draw, rng, "lif1", conv, (cin, *plane), (cout, *size), chip, levels),
        pool((cout, *size), window),
        random_lif(draw, rng, "lif2", dense, small, (4,), chip, 1),
    )
    steps = draw(st.integers(1, 5))
    network = chain(*layers, chip=chip, steps=steps, levels=levels, readout=Readout(2, 2))
    raster = rng.integers(0, levels + 1, (2, steps, cin, *plane)).astype(np.uint8)
    return network, raster


@st.composite
def dense_layers(draw):
    """A dense layer with anything at random, and its input's largest value."""
    rng = np.random.default_rng(draw(SEEDS))
    inputs, outputs = draw(st.integers(1, 12)), draw(st.integers(1, 4))
    weight = rng.integers(-127, 128, (outputs, inputs)).astype(np.int8)
    reach = 127 * inputs
    vth = rng.integers(-reach if draw(st.booleans()) else 0, reach, outputs)
    layer = dense_lif(
        weight,
        vth,
        bias=rng.integers(-reach, reach, outputs),
        exp=draw(st.integers(0, 2)),
        bias_exp=draw(st.integers(0, 7)),
        du=draw(st.sampled_from([4095, 4095, 0, 1000, 4094])),
        dv=draw(st.sampled_from([0, 1, 163, 2048, 4095])),
        reset=draw(st.sampled_from(["zero", "subtract"])),
    )
    if draw(st.booleans()):
        own = rng.integers(-reach, reach, (outputs, outputs)) // inputs
        layer = replace(layer, recurrent=Dense(own.astype(np.int8)), recurrent_name="rec")
    return layer, draw(st.sampled_from([1, 1, 7, 255])), rng
