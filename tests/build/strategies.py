"""Integer layers and networks drawn by hypothesis."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from hypothesis import strategies as st

from stl_deploy.chips import facts as chips
from stl_deploy.ir.network import Connection, Input, IntegerNetwork, Population
from stl_deploy.ir.neurons import Graded, Lif, Or
from stl_deploy.ir.readouts import Readout
from stl_deploy.ir.synapses import Conv, Dense, Kernel, OneToOne, Sparse
from tests.build.networks import chain, lif, pool

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


# Graphs

SHAPES = ((4,), (12, 2, 3), (2, 2, 3), (24,), (40,), (3, 1, 8))


@st.composite
def graphs(draw, rules=False):
    """Populations joined at random by any synapses, loops included, and a raster for each input.

    Registers overflow, exponents reach as far as 64 bits allow, and parameters are of every form; whether
    anything fires is left to chance. With ``rules`` neurons have any of the rules, whose values lie at the
    edges of registers, and the readout is any.
    """
    rng = np.random.default_rng(draw(SEEDS))
    chip = draw(st.sampled_from(["ideal", "loihi1", "loihi2"]))
    wild, steps = draw(st.booleans()), draw(st.integers(1, 5))
    # Of sums of 31 bits, or of 36 with graded values, which gains of 15 bits multiply.
    exps = 9 if chip != "ideal" else 5 if rules else 25
    inputs, rasters = {}, {}
    for i in range(draw(st.integers(1, 2))):
        levels = int(rng.choice([1, 1, 7, 255, 3000]))
        port = Input(_any_shape(rng), levels, bool(rng.random() < 0.3), bool(rng.random() < 0.3))
        size = 3, 1 if port.held else steps, *port.shape
        values = rng.integers(port.lowest, levels + 1, size) * (rng.random(size) < 0.6)
        inputs[f"in{i}"], rasters[f"in{i}"] = port, values.astype(rng.choice([np.int16, np.int64]))
    shapes = {name: port.shape for name, port in inputs.items()}
    populations, connections = [], []
    for i in range(draw(st.integers(1, 4))):
        name, shape = f"p{i}", _any_shape(rng)
        sources = rng.choice([*shapes], min(len(shapes), int(rng.integers(0, 4))), replace=False)
        shapes[name] = shape
        for source in (*map(str, sources), *[name] * int(rng.choice([0, 0, 1, 1, 2]))):
            late = int(rng.integers(0, 3)) + (source == name)
            key = f"{source}_{name}_{len(connections)}"
            connections.append(_connection(rng, key, source, name, shapes, late, wild, exps))
        neurons = _neurons(rng, shape, wild, chip)
        if rules and neurons.kind == "lif":
            neurons = _ruled(rng, neurons, shape, steps, chip)
        populations.append(Population(name, shape, neurons))
        if neurons.span == (0, 0):
            del shapes[name]
            connections = [c for c in connections if c.source != name]
    if len(populations) > 1 and populations[-1].name in shapes and draw(st.booleans()):
        first, last = populations[0].name, populations[-1].name
        late = int(rng.integers(1, 4))
        sizes = shapes | {first: populations[0].shape}
        connections.append(_connection(rng, "back", last, first, sizes, late, wild, exps))
    second = [p.name for p in populations if p.neurons.du2 is not None]
    connections = [
        replace(c, port=int(rng.integers(2))) if c.target in second else c for c in connections
    ]
    last = populations[-1]
    network = IntegerNetwork(
        chip,
        steps,
        inputs,
        tuple(populations),
        tuple(connections),
        _readout(rng, last, steps) if rules else Readout(last.size, 1, last.name),
    )
    return network, rasters


def _readout(rng, last, steps):
    """By any rule, with any of what belongs to it."""
    rule = rng.choice(["votes", "last", "mean", "max", "first"])
    some = {}
    if rule == "votes" and rng.random() < 0.5:
        some["steps"] = tuple(map(int, rng.integers(-9, 10, steps)))
    if rule == "votes" and rng.random() < 0.5:
        some["matrix"] = rng.integers(-99, 100, (3, last.size))
        some["offset"] = rng.integers(-99, 100, 3)
        return Readout(3, 1, last.name, **some)
    if rule in ("last", "mean", "max") and rng.random() < 0.5:
        some["factors"] = rng.integers(1, 1000, last.size)
    group = int(rng.choice([1, 2]))
    return Readout(last.size // group, group, last.name, rule, **some)


def _ruled(rng, lif, shape, steps, chip):
    """The neurons with some rules; values reach what registers can hold."""
    each = [(), (shape[0], *[1] * (len(shape) - 1)), shape]
    edge = (chips.load(chip).state_limit or 1 << 31) - 1

    def of_v(lowest=-1):
        size = each[rng.integers(3)]
        top = edge if rng.random() < 0.3 else 1 << int(rng.integers(1, edge.bit_length()))
        drawn = rng.integers(lowest * top, top + 1, size, endpoint=False)
        drawn = np.where(rng.random(size) < 0.2, rng.choice([edge, lowest * edge], size), drawn)
        return drawn.astype(np.int32) if size else int(drawn)

    def decay():
        size = each[rng.integers(3)]
        drawn = rng.choice([0, 1, 1000, 4094, 4095], size)
        return drawn.astype(np.int32) if size else int(drawn)

    may = {
        "reset": lambda: {"reset": str(rng.choice(["none", "constant"]))},
        "v_reset": lambda: {"reset": "constant", "v_reset": of_v()},
        "fires": lambda: {"fires": False},
        "reset_current": lambda: {"reset_current": True},
        "hold": lambda: {"hold": int(rng.choice([-1, 1, 2, 63]))},
        "floor": lambda: {"floor": of_v()},
        "adapt": lambda: {"adapt": of_v(), "dq": decay()},
        "du2": lambda: {"du2": decay()},
        "gain": lambda: {"gain": _gain(rng, (steps, *each[rng.integers(3)]))},
        "v0": lambda: {"v0": of_v()},
        "graded": lambda: {
            "graded": Graded(int(rng.integers(0, 24)), int(rng.choice([1, 15, 255, 256, 32_767])))
        },
    }
    fields = {}
    for name in may:
        if rng.random() < 0.25:
            fields |= may[name]()
    return replace(lif, **fields)


def _gain(rng, size):
    top = 1 << int(rng.integers(8, 16))
    return rng.choice([rng.integers(-top, top, size), np.full(size, 4096)]).astype(np.int16)


def _any_shape(rng):
    return SHAPES[rng.integers(len(SHAPES))]


def _connection(rng, name, source, target, shapes, delay, wild, exps):
    """Synapses of a kind that serves between the two shapes."""
    before, shape = shapes[source], shapes[target]
    size, inputs = math.prod(shape), math.prod(before)
    kinds = ["dense", "sparse"]
    kinds += ["one_to_one"] * 3 * (size == inputs)
    kinds += ["conv"] * 3 * (len(shape) == len(before) == 3 and before[1:] == shape[1:])
    kind, wide = rng.choice(kinds), rng.random() < 0.3
    top = 1 << (14 if wide and wild else 8 if wide else 7)

    def weights(*of):
        drawn = rng.integers(-top, top, of) * (rng.random(of) < 0.8)
        return drawn.astype(np.int16 if wide else np.int8)

    if kind == "dense":
        synapses = Dense(weights(size, inputs))
    elif kind == "one_to_one":
        synapses = OneToOne(weights(size))
    elif kind == "conv":
        groups = math.gcd(before[0], shape[0]) if rng.random() < 0.3 else 1
        kernel = int(rng.choice([1, 3]))
        place = (1, 1), (kernel // 2,) * 2, (1, 1), groups
        synapses = Conv(weights(shape[0], before[0] // groups, kernel, kernel), *place)
    else:
        row, column = (i.astype(np.int32) for i in np.nonzero(rng.random((size, inputs)) < 0.3))
        nothing = Kernel(np.zeros((1, 1, 1, 1)), np.zeros(1), (1, 1), (0, 0), (1, 1), 1)
        weight = weights(len(row))
        weight[weight == 0] = 1
        synapses = Sparse(row, column, weight, (size, inputs), nothing)
    exp = int(rng.choice([0, 0, 1, 2]))
    if wild:
        exp = int(rng.integers(0, exps))
    return Connection(name, source, target, synapses, exp, 8, "2x8" if wide else "8", delay)


def _neurons(rng, shape, wild, chip):
    if rng.random() < 0.15:
        return Or()
    each = [(), (shape[0], *[1] * (len(shape) - 1)), shape]

    def parameter(values, usual):
        of = each[rng.integers(3)]
        if rng.random() < 0.5:
            return usual
        return rng.choice(values, of).astype(np.int32) if of else int(rng.choice(values))

    vth = rng.integers(-300 if rng.random() < 0.3 else 0, 1 << int(rng.integers(2, 17)), shape)
    bias = rng.integers(-40, 41, each[rng.integers(1, 3)]) * (rng.random() < 0.6)
    bias_exp = int(rng.integers(0, 18)) if wild else 6
    du = parameter([4095, 0, 1000, 4094], 4095)
    dv = parameter([2048, 0, 1, 163, 3001, 4095, 4096], 2048)
    reset = "subtract" if chip != "loihi1" and rng.random() < 0.4 else "zero"
    return Lif(vth.astype(np.int32), bias.astype(np.int32), np.ones(1), bias_exp, du, dv, reset)
