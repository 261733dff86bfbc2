"""Files that are damaged or hostile, thousands of them from seeds: refused cleanly, whatever they are.

For each: exit code 0, 1 or 2, no internal error and no traceback, no half-written folder, and bounds on
time and memory. ``STL_FUZZ=5000`` mutates as many files.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sys
import time
import zipfile
from collections import OrderedDict
from dataclasses import replace

import h5py
import nir
import numpy as np
import pytest
import torch

import stl_deploy
from stl_deploy.commands import common, export
from stl_deploy.commands import hw_sim as cli
from stl_deploy.formats import integer_nir, nir_io
from stl_deploy.formats import raster as rasters
from stl_deploy.hw_sim.simulate import Simulator
from tests.build import random_graphs
from tests.build.nets import random_net, random_spikes
from tests.build.nir_graphs import braille, chain, lif

N = int(os.environ.get("STL_FUZZ", "150"))
SECONDS = 20  # for one file, on a busy machine
MEMORY = 1 << 30  # more than before the first file


class Hangs(BaseException):
    """Not to be caught by the command."""


def run(function, *words):
    """(exit code, seconds) of a command line."""

    def ring(_signal, _frame):
        raise Hangs

    started = time.monotonic()
    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["command", *map(str, words)])
            with pytest.raises(SystemExit) as end:
                common.run(function, "command")
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return end.value.code, time.monotonic() - started


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """One small valid file of each kind, by its name."""
    folder = tmp_path_factory.mktemp("fuzz")
    net = random_net("3C3-LIF-P4-FC6-LIF-AvgPool2", shape=(1, 8, 8))
    graph = stl_deploy.from_torch(net)
    stl_deploy.save_checkpoint(net, folder / "model.pt")
    stl_deploy.export(stl_deploy.quantize(graph, "loihi2"), "nir", folder / "out", graph=graph)
    shutil.copy(folder / "out" / "model.nir", folder / "integer.nir")
    shutil.copy(folder / "out" / "model.float.nir", folder / "float.nir")
    nir_io.write(braille()[0], folder / "braille.nir")
    nir_io.write(image(), folder / "image.nir")
    np.savez_compressed(folder / "in.npz", spikes=random_spikes(net, 2), labels=np.array([0, 1]))
    np.save(folder / "in.npy", random_spikes(net, 2))
    shutil.copy(folder / "model.pt", folder / "wrapped.pt")
    for name in ("braille.h5", "integer.NIR", "image.bin"):
        shutil.copy((folder / name).with_suffix(".nir"), folder / name)
    network, inputs = branching()
    nir_io.write(integer_nir.to_nir(network), folder / "graph.nir")
    held = frozenset(name for name, port in network.inputs.items() if port.held)
    raster = rasters.Raster(inputs, held=held)
    rasters.save(folder / "graph.npz", raster, {})
    Simulator(network).run(raster)  # compiles, which no file is to be timed with
    return folder


def branching():
    """A network with two inputs, one of which is held, delays, a loop and one-to-one connections."""
    seed = 0
    while True:
        network, inputs = random_graphs.draw(seed, replace(random_graphs.EVERYTHING, sparse=False))
        held = [port.held for port in network.inputs.values()]
        words = {type(node) for node in integer_nir.to_nir(network).nodes.values()}
        if held.count(True) == held.count(False) == 1 and {nir.Delay, nir.Scale} <= words:
            return network, inputs
        seed += 1


def image():
    """Another tool's network: pooling, scales, a convolution, integrate-and-fire."""
    rng = np.random.default_rng(0)
    two, none = np.array([2, 2]), np.array([0, 0])
    return chain(
        nir.Conv2d((8, 8), rng.normal(0, 0.4, (3, 1, 3, 3)), 1, 1, 1, 1, np.zeros(3)),
        nir.IF(r=np.ones((3, 8, 8)), v_threshold=np.full((3, 8, 8), 0.7)),
        nir.AvgPool2d(two, two, none),
        nir.Scale(np.full((3, 4, 4), 1.5)),
        nir.Flatten({"input": np.array([3, 4, 4])}, 0, -1),
        nir.Affine(rng.normal(0, 0.4, (5, 48)), np.zeros(5)),
        lif(5),
        inputs=(1, 8, 8),
        outputs=(5,),
    )


# Mutations: each changes the file at ``path`` in place


def bytes_changed(rng, path):
    data = bytearray(path.read_bytes())
    for _ in range(int(rng.choice([1, 1, 4, 40]))):
        data[rng.integers(len(data))] = rng.integers(256)
    if rng.random() < 0.2:
        data = data[: rng.integers(len(data))]
    if rng.random() < 0.1:
        at = int(rng.integers(len(data) + 1))
        data[at:at] = rng.bytes(int(rng.integers(1, 64)))
    path.write_bytes(bytes(data))


WORDS = [
    b"LIF",
    b"IF",
    b"LI",
    b"CubaLIF",
    b"Linear",
    b"Affine",
    b"Conv2d",
    b"Conv1d",
    b"Flatten",
    b"Scale",
]
WORDS += [
    b"NIRGraph",
    b"Input",
    b"Output",
    b"Delay",
    b"AvgPool2d",
    b"SumPool2d",
    b"Threshold",
    b"I",
    b"?",
    b"",
]


def value_like(rng, old):
    """Something else in the place of an array."""
    old = np.asarray(old)
    numbers = [
        0,
        -1,
        1,
        3,
        2**31 - 1,
        -(2**31),
        2**62,
        0.5,
        1e300,
        -1e-300,
        np.nan,
        np.inf,
        -np.inf,
    ]
    choice = int(rng.integers(9))
    if old.dtype.kind not in "iufb" or choice == 0:
        return rng.choice(np.array(WORDS, object))
    if choice == 1:
        return np.float64(numbers[rng.integers(len(numbers))])
    if choice == 2:
        return np.full(old.shape, numbers[rng.integers(len(numbers))], np.float64)
    if choice == 3:
        return np.zeros((*old.shape, 2)) if rng.random() < 0.5 else old.reshape(-1)[:1]
    if choice == 4:
        return old.astype(rng.choice([np.complex128, np.int8, np.float16, np.bool_, np.uint64]))
    if choice == 5:
        return np.zeros((0,))
    if choice == 6:
        return np.asarray(old).T.copy()
    changed = np.array(old, np.float64)
    if changed.size:
        changed.reshape(-1)[rng.integers(changed.size)] = numbers[rng.integers(len(numbers))]
    return changed


def hdf5_changed(rng, path):
    with h5py.File(path, "r+") as file:
        names: list[str] = []
        file.visit(names.append)
        for _ in range(int(rng.integers(1, 3))):
            name = names[rng.integers(len(names))]
            if name not in file:
                continue
            one_changed(rng, file, name)


def one_changed(rng, file, name):
    item = file[name]
    what = rng.random()
    if isinstance(item, h5py.Group):
        if what < 0.4:
            del file[name]
        elif what < 0.6:
            file.move(name, f"{name}{rng.choice(['x', '.y', ' '])}")
        elif what < 0.8:
            file.copy(item, f"{name}2")
        else:
            item["surprise"] = np.arange(3)
        return
    if item.size is not None and item.size > 1 << 20:
        return  # it only says so
    old = item[()]
    if name.endswith("edges") and what < 0.7:
        edges = np.array(old, object)
        i = rng.integers(len(edges))
        ends = [*edges.reshape(-1), b"nowhere"]
        edges[i, rng.integers(2)] = ends[rng.integers(len(ends))]
        del file[name]
        file[name] = edges[rng.permutation(len(edges))[: rng.integers(1, len(edges) + 1)]]
        return
    if isinstance(old, bytes) and old.startswith(b"{"):
        text = json_changed(rng, old)
        del file[name]
        file[name] = text
        return
    del file[name]
    if what < 0.08:
        file.create_dataset(name, shape=(2**40,), chunks=(2**20,), dtype="f8")
    elif what < 0.16:
        shape = tuple(int(n) for n in rng.integers(1, 2**16, 2))
        file.create_dataset(name, shape=shape, chunks=(16, 16), dtype="f4", compression="gzip")
    elif what < 0.22:
        file[name] = (
            h5py.SoftLink("/node/nodes") if rng.random() < 0.5 else h5py.ExternalLink("/etc/x", "/")
        )
    elif what < 0.9:
        file[name] = value_like(rng, old)


def json_changed(rng, old):
    if rng.random() < 0.3:
        data = bytearray(old)
        data[rng.integers(len(data))] = rng.integers(32, 127)
        return bytes(data).decode("latin1")
    data = json.loads(old)
    at = data
    while True:
        key = rng.choice(list(at)) if isinstance(at, dict) else int(rng.integers(len(at)))
        if isinstance(at[key], dict | list) and at[key] and rng.random() < 0.7:
            at = at[key]
            continue
        others = [None, -1, 0, 7, 4095, 2**40, 0.5, 1e400, "x", [], {}, [[]], True]
        at[key] = others[rng.integers(len(others))]
        return json.dumps(data)


def npz_changed(rng, path):
    with np.load(path) as data:
        arrays = dict(data)
    key = rng.choice(list(arrays))
    if rng.random() < 0.2:
        del arrays[key]
    else:
        arrays[key] = value_like(rng, arrays[key])
    if key in arrays and np.asarray(arrays[key]).dtype == object:
        arrays[key] = np.array("x")
    np.savez_compressed(path, **arrays)
    if rng.random() < 0.2:
        header = (
            b"\x93NUMPY\x01\x00v\x00{'descr': '|u1', 'fortran_order': False, 'shape': (%d, 4, 1), }"
        )
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("spikes.npy", (header % 2 ** int(rng.integers(3, 62))).ljust(127) + b"\n")


def checkpoint_changed(rng, path):
    data = torch.load(path, weights_only=True)
    state = data["state_dict"]
    key = rng.choice(list(state))
    what = rng.random()
    if what < 0.3:
        try:
            data["arch"] = json.loads(json_changed(rng, json.dumps(data["arch"]).encode()))
        except json.JSONDecodeError:
            data["arch"] = "{"
    elif what < 0.4:
        del state[key]
    elif what < 0.5:
        data[str(rng.choice(["format", "arch", "state_dict"]))] = [None, "x", 5][rng.integers(3)]
    else:
        value = value_like(rng, state[key].numpy())
        numbers = isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "iufbc"
        state[key] = torch.as_tensor(value.copy()) if numbers else str(value)
    torch.save(data, path)


WRAPPERS = [
    *("state_dict", "model_state_dict", "model", "net", "best_net", "ema", "module", "params"),
    *("", "arch", "format", "x" * 300),
]
PREFIXES = ["module.", "_orig_mod.", "model.", "net.", "backbone.", "module.module.", ".", ""]
OTHERS = [
    *(None, 3, -1.5, "text", b"bytes", [], [[]], {}, (), True, torch.zeros(2), torch.zeros(0)),
    *(torch.tensor(3), torch.tensor([1 + 2j]), [torch.ones(2), None], {"a": {"b": {}}}, {3: 4}),
]


def wrapped(rng, path):
    """A state_dict in dictionaries and under prefixes, as training scripts save it, or nearly so."""
    state = torch.load(path, weights_only=True)
    state = {**state["state_dict"]} if rng.random() < 0.9 else state
    for _ in range(int(rng.integers(3))):
        prefix = str(rng.choice(PREFIXES))
        share = rng.choice([1.0, 1.0, 0.8])
        state = {f"{prefix}{k}" if rng.random() < share else k: v for k, v in state.items()}
    data = state if rng.random() < 0.8 else [OrderedDict(state), *state.values()]
    for _ in range(int(rng.integers(5))):
        others = {key: OTHERS[rng.integers(len(OTHERS))] for key in rng.choice(WRAPPERS, 3)}
        name = str(rng.choice(WRAPPERS))
        kind = rng.random()
        if kind < 0.7:
            data = {**others, name: data} if rng.random() < 0.5 else {name: data, "epoch": 3}
        elif kind < 0.8:
            data = [data, others]
        elif kind < 0.9 and isinstance(data, dict):
            data = {**data, **others}
        else:
            data = {name: data, "ema": data, 5: data}
    torch.save(data, path)


def npy_changed(rng, path):
    value = value_like(rng, np.load(path))
    if np.asarray(value).dtype == object:
        value = np.array("x")
    np.save(path, value)
    if rng.random() < 0.2:
        shape = b"{'descr': '|u1', 'fortran_order': False, 'shape': (%d, 4, 1, 8, 8), }"
        header = (shape % 2 ** int(rng.integers(3, 62))).ljust(117) + b"\n"
        path.write_bytes(b"\x93NUMPY\x01\x00v\x00" + header)


STRUCTURE = {
    **dict.fromkeys((".nir", ".h5", ".NIR", ".bin"), hdf5_changed),
    **{".npz": npz_changed, ".npy": npy_changed, ".pt": checkpoint_changed},
}
FILES = [
    *("integer.nir", "float.nir", "braille.nir", "image.nir", "in.npz", "model.pt"),
    *("graph.nir", "graph.npz", "wrapped.pt", "in.npy", "braille.h5", "integer.NIR", "image.bin"),
]
NOT_EXPORTED = {
    "in.npy": ("integer.nir", "in.npy"),
    "in.npz": ("integer.nir", "in.npz"),
    "graph.nir": ("graph.nir", "graph.npz"),
    "graph.npz": ("graph.nir", "graph.npz"),
}


def mutated(rng, path):
    changes = [bytes_changed, wrapped if path.stem == "wrapped" else STRUCTURE[path.suffix]]
    changes[int(rng.random() < 0.6)](rng, path)


@pytest.mark.parametrize("name", FILES)
def test_mutated_files(name, originals, tmp_path, capsys, monkeypatch):
    # Drawing the report takes most of the time, and nothing of the file but what was read.
    monkeypatch.setattr("stl_deploy.report.sections.render", lambda *_args, **_more: "")
    monkey_home = tmp_path / "work"
    monkey_home.mkdir()
    path, out = monkey_home / name, monkey_home / "out"
    codes: dict[int, int] = {}
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    for seed in range(-(-N // len(FILES))):
        rng = np.random.default_rng([FILES.index(name), seed])
        shutil.copy(originals / name, path)
        mutated(rng, path)
        if name in NOT_EXPORTED:
            model, raster = (path if n == name else originals / n for n in NOT_EXPORTED[name])
            words = cli.simulate, model, "--input", raster, "--json"
        else:
            words = export.export, path, "--target", "nir", "-o", out, "--json"
        code, _ = run(*words)
        said = capsys.readouterr()
        assert code in (0, 1, 2), (seed, code, said.err)
        assert "internal error" not in said.err, (seed, said.err)
        assert "Traceback" not in said.err, (seed, said.err)
        assert code == 0 or said.err, seed
        left = {p.name for p in monkey_home.iterdir()} - {name}
        assert left == ({"out"} if code == 0 and name not in NOT_EXPORTED else set()), (seed, left)
        if code == 0 and out.exists():
            assert {"model.nir", "manifest.json", "report.html"} <= {p.name for p in out.iterdir()}
            shutil.rmtree(out)
        codes[code] = codes.get(code, 0) + 1
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - base
    assert grown < MEMORY, f"{grown:,} bytes"
    # The mutations bite, and do not always break the file.
    assert codes.get(2, 0) > 0.3 * sum(codes.values()), codes
    if path.suffix not in (".npz", ".npy"):
        assert codes.get(0, 0) > 0, codes
