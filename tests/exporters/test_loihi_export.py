"""The files of target loihi, read back with numpy by the rules of Lava and netx alone.

The rules restated here are those of lava-nc 0.10.0 (lava/proc/conv/utils.py, dense/models.py,
lif/models.py, lava/utils/weightutils.py) and lava-dl 0.6.0 (lava/lib/dl/netx).
"""

import ast
import json
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import nir
import numpy as np
import pytest
from numpy.typing import NDArray

import stl_deploy
from stl_deploy.backends import lava_env
from stl_deploy.chips import facts as chips
from stl_deploy.errors import LoweringError
from stl_deploy.exporters import lava, loihi, netx, netx_layers
from stl_deploy.formats import integer_nir as nir_file
from stl_deploy.formats import nir_io
from stl_deploy.formats import raster as rasters
from stl_deploy.hw_sim import reference
from stl_deploy.ir import nir_graph as graphs
from stl_deploy.ir.network import Connection, Input, IntegerNetwork, Population
from stl_deploy.ir.neurons import Lif, Or
from stl_deploy.ir.readouts import Readout
from stl_deploy.ir.synapses import Conv, Dense, OneToOne
from stl_deploy.lower import relays
from stl_deploy.verify import against_reference, check
from tests.build import random_graphs
from tests.build.networks import after, chain, lif, pool, raster, weights

Ints = NDArray[np.int64]
M = 1 << 23


# Networks


def random_lif(
    name: str,
    synapses: Conv | Dense,
    input_shape: tuple[int, ...] | None = None,
    shape: tuple[int, ...] | None = None,
    **fields: Any,
) -> Any:
    """A layer with random biases and one threshold for every neuron."""
    shape = shape or after(synapses, input_shape or ())
    rng = np.random.default_rng(len(name) + synapses.weight.size)
    fields.setdefault("bias", rng.integers(-60, 60, shape[0]))
    fields.setdefault("vth", rng.integers(0, 300, shape))
    return lif(name, synapses, input_shape, shape, **fields)


def one_dense(weight: NDArray[Any], levels: int = 1, **fields: Any) -> IntegerNetwork:
    return chain(random_lif("fc", Dense(weight), **fields), levels=levels)


def one_conv(
    conv: Conv, shape: tuple[int, int, int], levels: int = 1, **fields: Any
) -> IntegerNetwork:
    return chain(random_lif("conv", conv, shape, **fields), levels=levels)


def convolutional(levels: int = 1) -> IntegerNetwork:
    """Kernels, strides, paddings and windows that differ between the axes; pool, dense, dense."""
    rng = np.random.default_rng(levels)
    return chain(
        random_lif(
            "lif1",
            Conv(weights(rng, 4, 2, 3, 2), (1, 2), (2, 1), (1, 1), 1),
            (2, 6, 9),
            (4, 8, 5),
            vth=rng.integers(200 * levels, 800 * levels, (4, 8, 5)).astype(np.int32),
        ),
        pool((4, 8, 5), (2, 5)),
        random_lif(
            "lif2",
            Conv(weights(rng, 6, 2, 2, 1), (1, 1), (0, 1), (2, 1), 2),
            (4, 4, 1),
            (6, 2, 3),
        ),
        random_lif("lif3", Dense(weights(rng, 7, 36)), (6, 2, 3), (7,)),
        random_lif("lif4", Dense(weights(rng, 5, 7)), (7,), (5,)),
        levels=levels,
    )


# What Lava does with what it is given


@dataclass
class Layer:
    """One of netx: synapses that map spikes (W, H, C) or (N,), and LIF neurons."""

    weigh: Callable[[Ints], Ints]
    shape: tuple[int, ...]
    vth: Ints
    bias: Ints
    du: int
    dv: int


def lava_conv(s: Ints, w: Ints, stride: Any, padding: Any, dilation: Any, groups: int) -> Ints:
    """A true convolution (W, H, C); Lava keeps groups and the pairs in int8, sums in 24 bits."""
    assert max(groups, *w.shape[1:3], *stride, *padding, *dilation) <= 127
    s = np.pad(s, [(padding[0],) * 2, (padding[1],) * 2, (0, 0)])
    outputs, kw, kh, inputs = w.shape
    size = [
        (s.shape[i] - dilation[i] * (w.shape[i + 1] - 1) - 1) // stride[i] + 1 for i in range(2)
    ]
    a = np.zeros((*size, outputs), np.int64)
    for x, y, o in np.ndindex(*a.shape):
        first = o // (outputs // groups) * inputs
        for i, j in np.ndindex(kw, kh):
            column = x * stride[0] + dilation[0] * (kw - 1 - i)
            row = y * stride[1] + dilation[1] * (kh - 1 - j)
            a[x, y, o] += w[o, i, j] @ s[column, row, first : first + inputs]
    return (a + M) % (2 * M) - M


def lava_dense(s: Ints, w: Ints, exp: int, bits: int = 8, mode: str | None = None) -> Ints:
    """Weights clipped and truncated by sign mode, the exponent after the sum."""
    if mode is None:
        inhibits = w.max() <= 0 and w.min() < 0
        mode = "INHIBITORY" if inhibits else "MIXED" if w.min() < 0 else "EXCITATORY"
    sign, mixed = -1 if mode == "INHIBITORY" else 1, mode == "MIXED"
    drop = 8 - bits + mixed
    w = sign * ((np.clip(sign * w, -256 if mixed else 0, 255) >> drop) << drop)
    return w @ s << exp if exp > 0 else w @ s >> -exp


def channels_first(s: Ints) -> Ints:
    """(W, H, C) flattened in the order C, H, W, as both tools do before a dense layer."""
    return s.transpose().ravel()


def int32(values: Ints) -> Ints:
    return (values + (1 << 31)) % (1 << 32) - (1 << 31)


def step(u: Ints, v: Ints, a: Ints, du: Any, dv: Any, bias: Ints) -> tuple[Ints, Ints]:
    """Current, wrapped, and voltage, saturated, before the threshold, of Lava's LIF."""
    u = int32(np.sign(u) * (np.abs(u) * (4095 - du) >> 12) + int32(a << 6))
    once = np.where(u > M, u - 2 * M, u)
    u = np.where(once <= -M, u + 2 * M, once)
    v = int32(np.sign(v) * (np.abs(v) * (4096 - dv) >> 12) + u + bias)
    return u, np.clip(v, 1 - M, M - 1)


def run_netx(layers: list[Layer], spikes: NDArray[np.uint8]) -> list[Ints]:
    """Spikes [N, T, *shape] of every layer, axes in the model's order."""
    outputs = []
    samples, steps = spikes.shape[:2]
    rows = [[frame.T.astype(np.int64) for frame in sample] for sample in spikes]
    for p in layers:
        for sample in rows:
            u = v = np.zeros(p.shape, np.int64)
            for t in range(steps):
                u, v = step(u, v, p.weigh(sample[t]), p.du, p.dv, p.bias)
                sample[t] = (v > p.vth << 6).astype(np.int64)
                v = np.where(sample[t] == 1, 0, v)
        stacked = np.array(rows).reshape(samples, steps, *p.shape)
        outputs.append(stacked.transpose(0, 1, *range(stacked.ndim)[:1:-1]))
    return outputs


class LavaFile:
    """lava_params.npz as lava_network.py hands it to Lava, run by Lava's time steps."""

    def __init__(self, path: Path) -> None:
        self.arrays = dict(np.load(path))
        self.network = json.loads(str(self.arrays["network"]))
        assert self.network["format"] in (path.parent / "lava_network.py").read_text()
        self.shapes = {
            one["name"]: tuple(one["shape"])[::-1]
            for one in self.network["inputs"] + self.network["populations"]
        }
        self.depth = {one["name"]: one.get("depth", 0) for one in self.network["inputs"]}
        self.depth |= {one["name"]: one["depth"] for one in self.network["populations"]}

    def run(self, rasters: dict[str, NDArray[Any]]) -> dict[str, Ints]:
        """Spikes [N, T, *shape] of every population, axes in the model's order."""
        steps = self.network["timesteps"]
        samples = len(next(iter(rasters.values())))
        rows = samples * steps
        sent: dict[str, list[Ints]] = {name: [] for name in self.shapes}
        state = {name: np.zeros((2, *shape), np.int64) for name, shape in self.shapes.items()}
        for now in range(1, rows + max(self.depth.values()) + 1):
            arrived = {name: self.arrived(name, sent, now, steps) for name in self.shapes}
            for name, given in rasters.items():
                flat = given.reshape(-1, *given.shape[2:])
                row = (now - 1) // (rows // len(flat))
                sent[name].append(
                    flat[row].T.astype(np.int64) if now <= rows else 0 * arrived[name]
                )
            for i, one in enumerate(self.network["populations"]):
                name = one["name"]
                vth, bias, du, dv = (
                    self.arrays[f"p{i}/{key}"].astype(np.int64)
                    for key in ("vth", "bias_mant", "du", "dv")
                )
                if (now - 1 - one["depth"]) % steps == 0:
                    state[name] *= 0
                u, v = step(*state[name], arrived[name], du, dv, bias << one["bias_exp"])
                sent[name].append((v > vth << 6).astype(np.int64))
                left = v - (vth << 6) if one["reset"] == "subtract" else 0 * v
                state[name] = np.array([u, np.where(sent[name][-1], left, v)])
        found = {}
        for one in self.network["populations"]:
            own = np.array(sent[one["name"]][one["depth"] : one["depth"] + rows])
            own = own.transpose(0, *range(own.ndim)[:0:-1])
            found[one["name"]] = own.reshape(samples, steps, *one["shape"])
        return found

    def arrived(self, target: str, sent: dict[str, list[Ints]], now: int, steps: int) -> Ints:
        """What all connections into ``target`` have summed up one time step before ``now``."""
        total = np.zeros(self.shapes[target], np.int64)
        for i, c in enumerate(self.network["connections"]):
            at = now - 1 - c["waits"]  # when it was sent; time steps count from 1
            late = (at - 1 - self.depth[c["source"]]) % steps + c["delay"] >= steps
            if c["target"] == target and at >= 1 and not late:
                total += self.weigh(i, c, sent[c["source"]][at - 1])
        return total

    def weigh(self, i: int, c: dict[str, Any], s: Ints) -> Ints:
        shape = self.shapes[c["target"]]
        if c["kind"] == "conv":
            w = self.arrays[f"c{i}/weight"].astype(np.int64)
            return lava_conv(s, w, c["stride"], c["padding"], c["dilation"], c["groups"])
        total = np.zeros(int(np.prod(shape)), np.int64)
        for g, group in enumerate(c["synapse_groups"]):
            w = self.arrays[f"c{i}/weight/{g}"].astype(np.int64)
            if c["kind"] == "sparse":
                at = self.arrays[f"c{i}/row/{g}"], self.arrays[f"c{i}/column/{g}"]
                full = np.zeros((total.size, s.size), np.int64)
                full[at] = w
                w = full
            total += lava_dense(s.ravel(), w, group["weight_exp"], mode=group["sign"])
        return total.reshape(shape)


def optimize_weight_bits(w: Ints) -> tuple[Ints, int, int]:
    """netx's scaling of a dense matrix: matrix, bits, exponent."""
    low, high = w.min(), w.max()
    mixed = not (high < 0 or low >= 0)
    if high < 0:
        scale = -256 / low
    elif low >= 0:
        scale = 255 / high
    else:
        scale = min(127 / high if high else np.inf, -128 / low)
    shift = int(np.floor(np.log2(scale))) + mixed
    zeros = next(n for n in range(8, -1, -1) if n == 0 or not (w % (1 << n)).any())
    return w << shift, 8 - shift - (zeros - mixed), -shift


def read_netx(path: Path) -> list[Layer]:
    """network.net as netx builds it."""
    layers: list[Layer] = []
    with h5py.File(path) as file:
        groups = [file[f"layer/{i}"] for i in range(len(file["layer"]))]
        kinds = [group["type"][0].decode() for group in groups]
        assert kinds[0] == "input"
        for (before, _), (kind, group) in pairwise(zip(kinds, groups, strict=True)):
            if kind == "flatten":
                continue
            fields = {key: group[key][()] for key in group if key not in ("type", "neuron")}
            w = fields["weight"].astype(np.int64)
            shape = tuple(int(n) for n in fields["shape"][::-1])
            bias = np.broadcast_to(fields.get("bias", 0), shape).astype(np.int64) << 6

            def conv(s: Ints, w: Ints = w, fields: dict[str, Any] = fields) -> Ints:
                flipped = w[:, :, ::-1, ::-1].transpose(0, 3, 2, 1)
                pairs = (fields[key][::-1] for key in ("stride", "padding", "dilation"))
                return lava_conv(s, flipped, *pairs, int(fields["groups"]))

            def dense(s: Ints, w: Ints = w, flatten: bool = before == "flatten") -> Ints:
                scaled, bits, exp = optimize_weight_bits(w)
                return lava_dense(channels_first(s) if flatten else s, scaled, exp, bits)

            neuron = {key: group["neuron"][key][()] for key in group["neuron"]}
            assert neuron["type"][0] == b"CUBA"
            layers.append(
                Layer(
                    {"conv": conv, "dense": dense}[kind],
                    shape,
                    neuron["vThMant"].astype(np.int64),
                    bias,
                    int(neuron["iDecay"] - 1),
                    int(neuron["vDecay"]),
                )
            )
    return layers


def assert_lava_runs(folder: Path, net: IntegerNetwork, rasters: Any = None) -> None:
    rasters = {"input": raster(net, seed=1)} if rasters is None else rasters
    expected = reference.run(net, rasters).layers
    got = LavaFile(folder / "lava_params.npz").run(rasters)
    for population in net.populations:
        name = population.name
        np.testing.assert_array_equal(got[name], expected[name].spikes, name)


def assert_netx_runs(folder: Path, net: IntegerNetwork, rasters: Any = None) -> None:
    rasters = {"input": raster(net, seed=1)} if rasters is None else rasters
    expected = reference.run(net, rasters).layers
    outputs = run_netx(read_netx(folder / "network.net"), net.rasters(rasters)["input"])
    got = netx.parts(net, {f"spikes/{i}": values for i, values in enumerate(outputs)})
    for population in net.populations:
        name = population.name
        np.testing.assert_array_equal(got[f"spikes/{name}"], expected[name].spikes, name)


def problems(write: Callable[[IntegerNetwork, Path], None], net: IntegerNetwork, folder: Path):
    with pytest.raises(LoweringError) as caught:
        write(net, folder)
    assert list(folder.iterdir()) == []
    assert all(problem.remedy for problem in caught.value.problems)
    return [str(problem) for problem in caught.value.problems]


# Both files


@pytest.mark.parametrize("levels", [1, 15])
def test_both_files_hold_the_network(levels, tmp_path):
    net = convolutional(levels)
    loihi.write(net, tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"network.net", "lava_network.py", "lava_params.npz"}
    assert_lava_runs(tmp_path, net)
    assert_netx_runs(tmp_path, net)
    some = reference.run(net, raster(net, seed=1)).layers
    assert all(0 < trace.spikes.mean() < 1 for trace in some.values())


def one_signed(low: int, high: int) -> NDArray[np.int8]:
    return np.random.default_rng(3).integers(low, high + 1, (6, 9)).astype(np.int8)


@pytest.mark.parametrize(
    "weight",
    [
        pytest.param(one_signed(0, 127), id="excitatory"),
        pytest.param(one_signed(1, 1), id="ones"),
        pytest.param(one_signed(-127, -1), id="inhibitory"),
        pytest.param(one_signed(-127, 0), id="inhibitory and zero"),
        pytest.param(one_signed(-63, 63) * 2, id="even"),
        pytest.param(one_signed(-63, 63) * 2 + 1, id="odd"),
        pytest.param(one_signed(-1, 1), id="ternary"),
        pytest.param(one_signed(-128, 127), id="full range"),
    ],
)
def test_dense_matrices_of_every_sign_are_exact(weight, tmp_path):
    net = one_dense(weight, bias=np.full(6, 200, np.int32))
    loihi.write(net, tmp_path)
    assert_lava_runs(tmp_path, net)
    assert_netx_runs(tmp_path, net)


@pytest.mark.parametrize("groups", [128, 130, 131])
def test_groups_beyond_int8_are_merged(groups, tmp_path):
    weight = weights(np.random.default_rng(0), 2 * groups, 1, 2, 1)
    conv = Conv(weight, (1, 1), (0, 0), (1, 1), groups)
    net = chain(random_lif("conv", conv, (groups, 2, 2)), pool((2 * groups, 1, 2), (1, 2)))
    loihi.write(net, tmp_path)
    assert_lava_runs(tmp_path, net)
    assert_netx_runs(tmp_path, net)


def test_a_dense_layer_reads_an_image_in_the_order_c_h_w(tmp_path):
    weight = weights(np.random.default_rng(0), 4, 30)
    net = chain(random_lif("fc", Dense(weight), (2, 3, 5), (4,)))
    loihi.write(net, tmp_path)
    assert_lava_runs(tmp_path, net)
    assert_netx_runs(tmp_path, net)


def test_decays_survive(tmp_path):
    net = chain(
        random_lif("fc", Dense(one_signed(-30, 30)), du=1000, dv=0),
        random_lif("b", Dense(np.eye(6, dtype=np.int8)), (6,), (6,)),
    )
    loihi.write(net, tmp_path)
    assert_lava_runs(tmp_path, net)
    assert_netx_runs(tmp_path, net)


def test_equal_networks_make_equal_bytes(tmp_path):
    """Also a second later: HDF5 keeps times in seconds. The zip format counts in steps of two."""
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
        loihi.write(convolutional(), folder)
        time.sleep(1.1)
    for path in folders[0].iterdir():
        assert path.read_bytes() == (folders[1] / path.name).read_bytes(), path.name
    with zipfile.ZipFile(folders[0] / "lava_params.npz") as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


# Graphs


@pytest.mark.parametrize("seed", range(12))
def test_lava_carries_random_graphs(seed, tmp_path):
    """Delays, several inputs, loops, decays and biases of each neuron, by Lava's rules alone."""
    net, rasters = random_graphs.draw(seed, replace(random_graphs.EVERYTHING, chips=("loihi2",)))
    lava.write(net, tmp_path)
    assert_lava_runs(tmp_path, net, rasters)


CARRIED = random_graphs.Features(
    inputs=1,
    graded=False,
    signed=False,
    delays=0,
    loops=False,
    own=False,
    sparse=False,
    decays_per_neuron=False,
    bias_per_neuron=False,
    currents=False,
    exponents=False,
    precisions=("8",),
    subtract=False,
)


def test_netx_carries_random_graphs(tmp_path):
    """Of graphs of one input; the rest has other decays at one depth."""
    kinds = []
    for seed in range(40):
        net, rasters = random_graphs.draw(seed, CARRIED)
        if netx.problems(net) or loihi.loihi_layers.problems(net):
            continue
        folder = tmp_path / str(seed)
        folder.mkdir()
        netx.write(net, folder)
        assert_netx_runs(folder, net, rasters)
        with h5py.File(folder / "network.net") as file:
            kinds += [file[f"layer/{i}/type"][0].decode() for i in range(len(file["layer"]))]
    assert kinds.count("input") >= 10
    assert kinds.count("dense") >= 10


def neurons(shape: tuple[int, ...], **fields: Any) -> Lif:
    rng = np.random.default_rng(len(shape))
    bias = rng.integers(-30, 60, (shape[0], *[1] * (len(shape) - 1))).astype(np.int32)
    vth = rng.integers(20, 300, shape).astype(np.int32)
    return Lif(vth, bias, np.ones((1,) * len(shape)), **fields)


def residual(skip: str = "identity", chip: str = "loihi2", **fields: Any) -> IntegerNetwork:
    """Two blocks of two convolutions with a skip each; behind them a pool and a dense layer.

    ``skip`` "identity" is one-to-one, "projection" a 1x1 convolution of stride 2 beside one of 3x3.
    """
    rng = np.random.default_rng(7)
    stride = (2, 2) if skip == "projection" else (1, 1)
    small = (4, 4, 4) if skip == "projection" else (4, 8, 8)

    def conv(name: str, source: str, target: str, c: int, k: int, s: tuple[int, int]) -> Connection:
        weight = weights(rng, 4, c, k, k, low=-60, high=70)
        return Connection(name, source, target, Conv(weight, s, (k // 2, k // 2), (1, 1), 1))

    def over(name: str, source: str, target: str, size: int) -> Connection:
        if skip == "projection" and source == "lif1":
            return conv(name, source, target, 4, 1, stride)
        return Connection(name, source, target, OneToOne(np.full(size, 100, np.int8)))

    rows, columns = (small[1] // 2, small[2] // 2)
    ones = Conv(np.ones((4, 1, 2, 2), np.int8), (2, 2), (0, 0), (1, 1), 4)
    dense = Dense(weights(rng, 5, 4 * rows * columns, low=-60, high=70))
    shapes = {"lif1": (4, 8, 8), "lif2": (4, 8, 8), "lif3": small, "lif4": small, "lif5": small}
    populations = [Population(name, s, neurons(s, **fields)) for name, s in shapes.items()]
    populations.append(Population("pool", (4, rows, columns), Or()))
    populations.append(Population("fc", (5,), neurons((5,), **fields)))
    return IntegerNetwork(
        chip,
        4,
        {"input": Input((2, 8, 8))},
        tuple(populations),
        (
            conv("conv1", "input", "lif1", 2, 3, (1, 1)),
            conv("conv2", "lif1", "lif2", 4, 3, (1, 1)),
            conv("conv3", "lif2", "lif3", 4, 3, stride),
            over("skip1", "lif1", "lif3", 256),
            conv("conv4", "lif3", "lif4", 4, 3, (1, 1)),
            conv("conv5", "lif4", "lif5", 4, 3, (1, 1)),
            over("skip2", "lif3", "lif5", int(np.prod(small))),
            Connection("pool_w", "lif5", "pool", ones, bits=1),
            Connection("fc_w", "pool", "fc", dense),
        ),
        Readout(5, 1, "fc"),
    )


@pytest.mark.parametrize("skip", ["identity", "projection"])
def test_a_residual_network_stays_convolutional(skip, tmp_path):
    net = residual(skip)
    loihi.write(net, tmp_path)
    assert_lava_runs(tmp_path, net)
    assert_netx_runs(tmp_path, net)
    with h5py.File(tmp_path / "network.net") as file:
        groups = [file[f"layer/{i}"] for i in range(len(file["layer"]))]
        kinds = [group["type"][0].decode() for group in groups]
        assert kinds == ["input", *["conv"] * 6, "flatten", "dense"]
        channels = [int(group["shape"][0]) for group in groups[1:7]]
    assert channels == [4, 8, 4, 8, 4, 4]
    rates = [did.spikes.mean() for did in reference.run(net, raster(net, seed=1)).layers.values()]
    assert min(rates) > 0.02
    assert max(rates) < 0.9


def changed(net: IntegerNetwork, name: str, **fields: Any) -> IntegerNetwork:
    """``net`` with other fields of a connection."""
    return net.changed(*[replace(c, **fields) for c in net.connections if c.name == name])


def wide(weight: int, name: str = "skip1", skips: str = "delay") -> IntegerNetwork:
    """The residual network with one-to-one weights of up to ``weight`` in two slices."""
    values = np.linspace(-weight, weight, 256).astype(np.int16)
    net = changed(residual(), name, synapses=OneToOne(values), precision="2x8")
    return relays.relayed(net, chips.load("loihi2"), skips)


@pytest.mark.parametrize("skips", ["delay", "relay"])
def test_wide_weights_of_a_skip_take_several_relays(skips, tmp_path):
    """Of 700 = 5 * 127 + 65: as six layers of relays, whose weights of 8 bits add up."""
    net = wide(700, skips=skips)
    loihi.write(net, tmp_path)
    assert_lava_runs(tmp_path, net)
    assert_netx_runs(tmp_path, net)
    with h5py.File(tmp_path / "network.net") as file:
        kinds = [file[f"layer/{i}/type"][0].decode() for i in range(len(file["layer"]))]
        assert kinds == ["input", "conv", "conv", "flatten", *["dense"] * 5]
        assert file["layer/4/weight"].shape == (256, 7 * 256)


def test_wide_weights_that_no_relays_carry_leave_netx_out(tmp_path):
    assert not netx.problems(wide(32 * 127))
    (line,) = problems(netx.write, wide(32 * 127 + 1), tmp_path)
    assert line.startswith(
        "network.net (netx), skip1 (lif1 to lif3): weight precision 2x8, where netx has one group"
    )
    net = residual()
    direct = Connection(
        "own", "lif4", "lif5", OneToOne(np.full(256, 700, np.int16)), precision="2x8"
    )
    (line,) = problems(netx.write, replace(net, connections=(*net.connections, direct)), tmp_path)
    assert line.startswith("network.net (netx), own (lif4 to lif5): weight precision 2x8")


def test_a_skip_over_a_pool_is_unrolled(tmp_path):
    """From the planes before the pool to the neurons behind it: nothing there is a convolution."""
    net = residual()
    over = Dense(weights(np.random.default_rng(3), 5, 256, low=-20, high=20))
    skip = Connection("skip3", "lif5", "fc", over)
    net = replace(net, connections=(*net.connections, skip))
    loihi.write(net, tmp_path)
    assert_lava_runs(tmp_path, net)
    assert_netx_runs(tmp_path, net)
    with h5py.File(tmp_path / "network.net") as file:
        kinds = [file[f"layer/{i}/type"][0].decode() for i in range(len(file["layer"]))]
    assert kinds == ["input", *["conv"] * 5, "flatten", "dense", "dense"]


def two_inputs() -> IntegerNetwork:
    net = residual()
    own = Connection("extra_w", "extra", "fc", Dense(np.full((5, 3), 9, np.int8)))
    inputs = {**net.inputs, "extra": Input((3,))}
    return replace(net, inputs=inputs, connections=(*net.connections, own))


def with_neurons(name: str, **fields: Any) -> IntegerNetwork:
    net = residual()
    one = net.by_name[name]
    return net.changed(replace(one, neurons=replace(one.neurons, **fields)))


def with_loop() -> IntegerNetwork:
    net = residual()
    kernel = next(c.synapses for c in net.connections if c.name == "conv5")
    back = Connection("back", "lif5", "lif3", kernel, delay=3)
    return replace(net, connections=(*net.connections, back))


def with_graded_skip() -> IntegerNetwork:
    net = residual()
    kernel = next(c.synapses for c in net.connections if c.name == "conv1")
    skip = Connection("raw", "input", "lif3", kernel)
    inputs = {"input": replace(net.inputs["input"], levels=7, signed=True)}
    return replace(net, inputs=inputs, connections=(*net.connections, skip))


def with_branch(**fields: Any) -> IntegerNetwork:
    """Another population at the depth of lif3."""
    net = residual()
    kernel = next(c.synapses for c in net.connections if c.name == "conv3")
    other = Population("side", (4, 8, 8), neurons((4, 8, 8), **fields))
    ways = Connection("side_w", "lif2", "side", kernel), Connection("out", "side", "lif4", kernel)
    return replace(
        net,
        populations=(*net.populations[:3], other, *net.populations[3:]),
        connections=(*net.connections, *ways),
    )


@pytest.mark.parametrize(
    ("net", "what"),
    [
        (two_inputs(), "input, extra: 2 inputs; netx has one"),
        (with_loop(), "back (lif5 to lif3): a delay of 3; in netx spikes go to the next layer"),
        (changed(residual(), "skip1", delay=1), "skip1 (lif1 to lif3): a delay of 1; in netx"),
        (
            with_neurons("lif2", dv=np.arange(256, dtype=np.int32).reshape(4, 8, 8)),
            "lif2: decays of each neuron; netx has one a layer",
        ),
        (
            with_neurons("lif2", bias_mant=np.arange(256, dtype=np.int32).reshape(4, 8, 8)),
            "lif2: biases that differ within a channel; netx has one a channel",
        ),
        (
            with_graded_skip(),
            "raw (input to lif3): waits 2 steps, and a relay passes on spikes, not values -7 to 7",
        ),
        (
            residual(du=2000),
            "lif2, lif1_relay1: lie at one depth, where spikes can be passed on only by neurons",
        ),
        (
            with_branch(dv=1000),
            "lif3, side: lie at one depth and differ in their decays, of which netx has one a layer",
        ),
        (
            replace(
                residual(),
                connections=(
                    *residual().connections,
                    Connection("again", "lif4", "lif5", OneToOne(np.full(256, 100, np.int8))),
                ),
            ),
            "lif5: connections from one source add up to weights ",
        ),
    ],
)
def test_netx_refuses_what_no_chain_of_its_layers_is(net, what, tmp_path):
    """By name, and the process graph is written alone."""
    lines = problems(netx.write, net, tmp_path)
    assert any(line.startswith(f"network.net (netx), {what}") for line in lines), lines
    notes = loihi.write(net, tmp_path)
    assert any(note.what.startswith(f"not written: {what}") for note in notes)
    assert not (tmp_path / "network.net").exists()
    assert (tmp_path / "lava_network.py").exists()


def test_a_skip_that_would_be_a_huge_matrix_is_refused(tmp_path, monkeypatch):
    net = residual()
    skip = Connection("skip3", "lif5", "fc", Dense(np.ones((5, 256), np.int8)))
    net = replace(net, connections=(*net.connections, skip))
    monkeypatch.setattr(netx_layers, "MOST_ENTRIES", 80_000)
    (line,) = problems(netx.write, net, tmp_path)
    assert line.startswith(
        "network.net (netx), lif5_relay1, pool: would be a dense layer of 320 x 256 in netx"
    )


def test_a_loop_without_enough_delay_is_refused_by_name(tmp_path):
    net = changed(replace(with_loop(), chip="ideal"), "back", delay=1)
    for write in (lava.write, netx.write, loihi.write):
        lines = problems(write, net, tmp_path)
        assert lines[0].startswith("lif3, lif4, lif5: a loop of 3 hops has 1 step of delay; Lava")


# The process graph alone


@pytest.mark.parametrize("exp", [1, 2, 7])
def test_lava_carries_weight_and_bias_exponents(exp, tmp_path):
    rng = np.random.default_rng(exp)
    conv = random_lif(
        "conv",
        Conv(weights(rng, 3, 1, 2, 2), (1, 1), (0, 0), (1, 1), 1),
        (1, 4, 3),
        exp=exp,
        bias_exp=3,
        vth=rng.integers(0, 300 << exp, (3, 3, 2)).astype(np.int32),
    )
    dense = Dense(weights(rng, 5, 18))
    net = chain(conv, random_lif("fc", dense, (3, 3, 2), (5,), exp=exp, bias_exp=0))
    lava.write(net, tmp_path)
    assert_lava_runs(tmp_path, net)


@pytest.mark.parametrize("value", [0, -128])
def test_lava_carries_matrices_that_netx_refuses(value, tmp_path):
    net = one_dense(np.full((3, 4), value, np.int8), bias=np.full(3, 300, np.int32))
    lava.write(net, tmp_path)
    assert_lava_runs(tmp_path, net)


def test_the_script_is_the_template_and_stands_alone(tmp_path):
    lava.write(convolutional(), tmp_path)
    text = (tmp_path / "lava_network.py").read_text("utf-8")
    template = resources.files("stl_deploy.exporters") / "templates" / "lava_network.py"
    assert text == template.read_text("utf-8")
    tree = ast.parse(text, feature_version=(3, 10))
    compile(tree, "lava_network.py", "exec")
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add(str(node.module).split(".")[0])
    assert imported - set(sys.stdlib_module_names) == {"lava", "numpy", "scipy"}


def test_the_script_can_be_imported(tmp_path):
    """Lava executes every file beside that of a process: nothing may run but definitions."""
    lava.write(convolutional(), tmp_path)
    body = ast.parse((tmp_path / "lava_network.py").read_text("utf-8")).body
    allowed = (ast.Import, ast.ImportFrom, ast.ClassDef, ast.FunctionDef, ast.Assign)
    docstring, *others, last = body
    assert isinstance(docstring, ast.Expr)
    assert all(isinstance(node, allowed) for node in others)
    assert ast.unparse(last).startswith("if __name__ == '__main__':")


# Refusals


@pytest.mark.parametrize(
    ("net", "what"),
    [
        (one_dense(one_signed(-9, 9), bias_exp=5), "fc: bias exponent 5; netx fixes 6"),
        (one_dense(np.zeros((2, 3), np.int8)), "fc: all weights are 0"),
        (one_dense(one_signed(-128, -128)), "fc: no weight is positive and the smallest is -128"),
        (one_dense(one_signed(-1, 0)), "fc: no weight is positive and the smallest is -1;"),
    ],
)
def test_netx_refuses_by_name(net, what, tmp_path):
    (line,) = problems(loihi.write, net, tmp_path)
    assert line.startswith(f"network.net (netx), {what}")
    assert problems(netx.write, net, tmp_path) == [line]
    lava.write(net, tmp_path)


def test_a_weight_exponent_leaves_netx_out_and_says_so(tmp_path):
    net = one_dense(one_signed(-9, 9), exp=1)
    (line,) = problems(netx.write, net, tmp_path)
    assert line.startswith(
        "network.net (netx), fc_w (input to fc): weight exponent 1; netx knows 0 only"
    )
    (note,) = loihi.write(net, tmp_path)
    assert note.where == "network.net (netx)"
    assert note.what == "not written: fc_w (input to fc): weight exponent 1; netx knows 0 only"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["lava_network.py", "lava_params.npz"]


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"recurrent": 1}, "rec (fc to fc): recurrent weights, for which netx has no field"),
        ({"reset": "subtract"}, "fc: reset 'subtract'; netx's neurons reset to zero"),
    ],
)
def test_what_cuba_neurons_cannot_leaves_netx_out_and_says_so(fields, what, tmp_path):
    if "recurrent" in fields:
        fields = {"recurrent": Dense(np.full((6, 6), -3, np.int8)), "recurrent_name": "rec"}
    net = one_dense(one_signed(-9, 9), du=100, **fields)
    (line,) = problems(netx.write, net, tmp_path)
    assert line.startswith(f"network.net (netx), {what}")
    assert line.endswith("use the process graph, lava_network.py")
    (note,) = loihi.write(net, tmp_path)
    assert note.where == "network.net (netx)"
    assert note.what == f"not written: {what}"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["lava_network.py", "lava_params.npz"]
    arrays = np.load(tmp_path / "lava_params.npz")
    network = json.loads(str(arrays["network"]))
    (row,) = network["populations"]
    assert row["reset"] == fields.get("reset", "zero")
    own = [c["name"] for c in network["connections"] if c["source"] == c["target"] == "fc"]
    assert own == ["rec"] * ("recurrent" in fields)
    assert ("c1/weight/0" in arrays) == ("recurrent" in fields)


def heard(weight: int, n: int = 1, **fields: Any) -> Any:
    """A layer of ``n`` neurons that hear each other with this weight, and their input with 1."""
    own = Dense(np.full((n, n), weight, np.int16).astype(fields.pop("kind", np.int8)))
    fields = {"bias": 0, **fields}
    ones = Dense(np.ones((n, 1), np.int8))
    return random_lif("fc", ones, (1,), (n,), recurrent=own, recurrent_name="rec", **fields)


def test_neurons_of_loihi_1_reset_to_zero(tmp_path):
    net = chain(heard(1, reset="subtract"), chip="loihi1")
    for write in (loihi.write, lava.write):
        (line,) = problems(write, net, tmp_path)
        assert line.startswith("fc: reset 'subtract': a spike of Intel Loihi (first generation) se")
        assert line.endswith("use --chip ideal or loihi2, or train with a reset to zero")


def test_registers_of_recurrent_weights(tmp_path):
    (line,) = problems(lava.write, chain(heard(200, kind=np.int16)), tmp_path)
    assert line.startswith("rec (fc to fc): weight 200 is outside -128..127")
    # 1 + 127 n, a step of u in 64ths, of which nothing is lost, against 2^23.
    for n, fits in ((344, True), (345, False)):
        ideal = chain(heard(127, n, du=0, dv=4095), chip="ideal", steps=3)
        if fits:
            lava.write(ideal, tmp_path)
            (tmp_path / "lava_params.npz").unlink()
            (tmp_path / "lava_network.py").unlink()
        else:
            (line,) = problems(lava.write, ideal, tmp_path)
            assert line.startswith("fc: a state can reach 8")


def test_an_unused_bias_exponent_is_no_problem_for_netx(tmp_path):
    net = one_dense(one_signed(-9, 9), bias_exp=0, bias=np.zeros(6, np.int32))
    loihi.write(net, tmp_path)
    assert_netx_runs(tmp_path, net)


def test_netx_refuses_a_graded_sum_that_it_adds_in_32_bits(tmp_path):
    weight = np.ones((1, 40_000), np.int8)
    net = one_dense(weight, levels=255)
    (line,) = problems(loihi.write, net, tmp_path)
    assert line.startswith("network.net (netx), fc: a scaled sum can reach 2611200000")
    lava.write(net, tmp_path)


WIDE = np.array([[1]], np.int8)


@pytest.mark.parametrize("write", [loihi.write, lava.write, netx.write])
@pytest.mark.parametrize(
    ("net", "what"),
    [
        (
            one_dense(np.array([[128, -129]])),
            "fc_w (input to fc): weight -129 is outside -128..127 (2 of 2",
        ),
        (
            one_dense(WIDE, vth=np.array([131072], np.int32)),
            "fc: threshold vth 131072 is outside 0..131071",
        ),
        (one_dense(WIDE, vth=np.array([-1], np.int32)), "fc: threshold vth -1 is outside 0..1310"),
        (
            one_dense(WIDE, bias=np.array([4096], np.int32)),
            "fc: bias mantissa 4096 is outside -4096..4095",
        ),
        (one_dense(WIDE, du=4096), "fc: current decay du 4096 is outside 0..4095"),
        (one_dense(WIDE, dv=-1), "fc: voltage decay dv -1 is outside 0..4095"),
        (
            one_dense(np.full((1, 34_000), 127, np.int8), levels=255),
            "fc_w (input to fc): a sum can reach 1101090000; Lava's Dense adds in 32 bits",
        ),
        (
            one_conv(
                Conv(np.full((1, 300, 1, 1), 127, np.int8), (1, 1), (0, 0), (1, 1), 1),
                (300, 1, 1),
                levels=255,
            ),
            "conv_w (input to conv): a sum can reach 9715500; Lava's Conv wraps at 8388608",
        ),
        (
            one_conv(
                Conv(np.ones((1, 1, 1, 130), np.int8), (1, 1), (0, 0), (1, 1), 1), (1, 1, 130)
            ),
            "conv_w (input to conv): kernel (1, 130): Lava's Conv counts to 127",
        ),
        (
            one_conv(Conv(np.ones((1, 1, 1, 1), np.int8), (128, 1), (0, 0), (1, 1), 1), (1, 2, 2)),
            "conv_w (input to conv): stride (128, 1): Lava's Conv counts to 127",
        ),
        (
            one_conv(Conv(np.ones((1, 1, 1, 1), np.int8), (1, 1), (0, 128), (1, 1), 1), (1, 1, 1)),
            "conv_w (input to conv): padding (0, 128): Lava's Conv counts to 127",
        ),
        (
            one_conv(
                Conv(np.ones((1, 1, 1, 2), np.int8), (1, 1), (0, 0), (1, 128), 1), (1, 1, 129)
            ),
            "conv_w (input to conv): dilation (1, 128): Lava's Conv counts to 127",
        ),
    ],
)
def test_registers_that_do_not_hold_a_value_are_named(write, net, what, tmp_path):
    lines = problems(write, net, tmp_path)
    assert lines[0].startswith(what), lines


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"exp": 8}, "fc_w (input to fc): weight exponent 8 is outside 0..7"),
        ({"exp": -1}, "fc_w (input to fc): weight exponent -1 is outside 0..7"),
        ({"bias_exp": 8}, "fc: bias exponent 8 is outside 0..7"),
    ],
)
def test_exponents_have_limits_on_lava_too(fields, what, tmp_path):
    (line,) = problems(lava.write, one_dense(WIDE, **fields), tmp_path)
    assert line.startswith(what)


def test_all_problems_come_at_once(tmp_path):
    first = random_lif(
        "a", Dense(one_signed(-9, 9)), (9,), (6,), bias_exp=3, vth=np.full(6, 1 << 17, np.int32)
    )
    second = random_lif("b", Dense(np.zeros((2, 6), np.int8)), (6,), (2,), du=5000, bias_exp=4)
    lines = problems(loihi.write, chain(first, second), tmp_path)
    places = [line.split(":")[0] for line in lines]
    assert places == ["a", "b", *["network.net (netx), a"], *["network.net (netx), b"] * 2]


def test_an_ideal_network_that_fits_the_registers_goes_as_it_is(tmp_path):
    net = replace(convolutional(), chip="ideal")
    loihi.write(net, tmp_path)
    assert_lava_runs(tmp_path, net)
    assert_netx_runs(tmp_path, net)


def test_an_ideal_network_with_a_decay_out_of_range_is_refused_once(tmp_path):
    (line,) = problems(lava.write, replace(one_dense(WIDE, du=-1), chip="ideal"), tmp_path)
    assert line.startswith("fc: current decay du -1 is outside 0..4095 (Intel Loihi 2)")


def test_an_ideal_network_that_could_overflow_is_refused(tmp_path):
    net = replace(one_dense(np.full((1, 600), 127, np.int8)), chip="ideal")
    (line,) = problems(loihi.write, net, tmp_path)
    assert line.startswith("fc: a state can reach ")
    assert line.endswith("-> quantize for chip loihi2")
    loihi.write(replace(net, chip="loihi2"), tmp_path)


# Chips whose arithmetic is not Lava's


def own_chip(monkeypatch, name="mychip", **registers):
    """Loihi 2 with other ``registers`` (bits, or None for no limit), known by ``name``."""
    base, load, names = chips.load("loihi2"), chips.load, chips.names()
    counts = {
        key: None if bits is None else chips.Count(value=bits, source="an imagined chip")
        for key, bits in registers.items()
    }
    mine = base.model_copy(
        update={
            "name": name,
            "registers": base.registers.model_copy(update=counts),
            "profiles": {},
        }
    )
    monkeypatch.setattr(chips, "load", lambda asked: mine if asked == name else load(asked))
    monkeypatch.setattr(chips, "names", lambda: (*names, name))
    return mine


def saturating():
    """Sums that pass 2^19, where 20 bits of state end, and not 2^23, where Lava's end."""
    weight = np.random.default_rng(0).integers(60, 127, (20, 150)).astype(np.int8)
    return one_dense(weight, vth=np.full(20, 9000, np.int32))


def test_a_chip_of_other_state_bits_is_refused_where_lava_computes(tmp_path, monkeypatch):
    own_chip(monkeypatch, state_bits=20)
    net, spikes = replace(saturating(), chip="mychip"), raster(saturating(), 20)
    here = reference.run(net, spikes).layers["fc"].spikes
    lavas = reference.run(replace(net, chip="loihi2"), spikes).layers["fc"].spikes
    assert (here != lavas).mean() > 0.1  # so that the refusal is needed
    for write in (loihi.write, lava.write, netx.write):
        (line,) = problems(write, net, tmp_path)
        assert line == (
            "chip mychip: state_bits is 20; Lava computes with 24 -> quantize for --chip loihi1 or "
            "loihi2, or use --target onnx, which computes as the chip does"
        )


@pytest.mark.parametrize(
    ("registers", "lines"),
    [
        ({"state_bits": 25}, ["state_bits is 25; Lava computes with 24"]),
        ({"threshold_bits": 18}, ["threshold_bits is 18; Lava holds at most 17"]),
        ({"threshold_bits": None}, ["threshold_bits has no limit; Lava holds at most 17"]),
        ({"bias_mant_bits": 14}, ["bias_mant_bits is 14; Lava holds at most 13"]),
        ({"bias_exp_bits": 4}, ["bias_exp_bits is 4; Lava holds at most 3"]),
        ({"weight_bits": 9}, ["weight_bits is 9; Lava holds at most 8"]),
        ({"fraction_bits": 7}, ["fraction_bits is 7; Lava computes with 6"]),
        (
            {"decay_bits": 13, "state_bits": 23},
            ["decay_bits is 13; Lava computes with 12", "state_bits is 23; Lava computes with 24"],
        ),
        # Narrower values fit into wider fields, and what is only reported changes nothing.
        ({"threshold_bits": 16, "bias_mant_bits": 12, "accumulator_bits": 10}, []),
    ],
)
def test_every_register_is_compared_with_lavas(registers, lines, tmp_path, monkeypatch):
    own_chip(monkeypatch, **registers)
    net = replace(one_dense(np.ones((2, 3), np.int8)), chip="mychip")
    if lines:
        found = problems(loihi.write, net, tmp_path)
        assert [line.partition(" -> ")[0] for line in found] == [f"chip mychip: {x}" for x in lines]
    else:
        loihi.write(net, tmp_path)
        assert_lava_runs(tmp_path, net)


def test_an_arithmetic_that_lava_does_not_know_is_refused(tmp_path, monkeypatch):
    mine = own_chip(monkeypatch)
    other = mine.model_copy(update={"arithmetic": "stochastic"})
    load = chips.load
    monkeypatch.setattr(chips, "load", lambda name: other if name == "mychip" else load(name))
    (line,) = problems(
        loihi.write, replace(one_dense(np.ones((2, 3), np.int8)), chip="mychip"), tmp_path
    )
    assert line.startswith("chip mychip: arithmetic 'stochastic'; Lava computes 'loihi' -> ")


@pytest.mark.parametrize("backends", [("lava",), ("netx",), ("lava", "netx")])
def test_parity_does_not_run_lava_for_another_arithmetic(backends, tmp_path, monkeypatch):
    """Before anything is run; hw_sim and ONNX compute with the chip's own registers."""
    own_chip(monkeypatch, state_bits=20)
    monkeypatch.setattr(lava_env, "python", lambda: pytest.fail("Lava was asked for"))
    net = replace(saturating(), chip="mychip")
    spikes = raster(net, 20)
    for name in ("hw_sim", "onnx"):
        assert against_reference.measure(name, net, spikes).exact
    lif = graphs.lif(np.full(20, 9000.0), 2 * graphs.DT, 2.0)
    nodes = {"fc_w": nir.Linear(net.connections[0].synapses.weight.astype(float)), "fc": lif}
    graph = graphs.chain_graph(nodes, (150,), (20,), "{}")
    graph.metadata = {}  # as of any other tool
    nir_io.write(graph, tmp_path / "float.nir")
    nir_io.write(nir_file.to_nir(net), tmp_path / "model.nir")
    rasters.save(tmp_path / "in.npz", rasters.Raster(spikes), {})
    paths = (tmp_path / name for name in ("float.nir", "model.nir", "in.npz"))
    with pytest.raises(LoweringError, match="chip mychip: state_bits is 20; Lava computes with 24"):
        check.run(check.Settings(*paths, backends))


def test_export_refuses_the_whole_folder_for_another_arithmetic(tmp_path, monkeypatch):
    own_chip(monkeypatch, state_bits=20)
    net = replace(saturating(), chip="mychip")
    with pytest.raises(LoweringError, match="state_bits is 20"):
        stl_deploy.export(net, "loihi", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    stl_deploy.export(net, "onnx", tmp_path / "out")
