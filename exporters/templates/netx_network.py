"""Run ``network.net`` with lava-dl's netx, and record every layer.

    python netx_network.py network.net --input spikes.npz --out out.npz
        [--lowest 0] [--levels 1] [--hold T] [--limit N] [--states] [--progress]

Needs Python 3.10, numpy < 2, h5py, lava-nc 0.10.0 and lava-dl 0.6.0 (installed with --no-deps: torch
is not used). Keep this file in a folder of its own: Lava's compiler executes every Python file beside
one that defines a process model (lava/magma/compiler/compiler_graphs.py, ``_find_proc_models``).

Input: ``spikes`` [N, T, *input_shape], whole numbers from ``--lowest`` to ``--levels``; with ``--hold T``
they are [N, 1, *input_shape], and read in each of T steps. Output: ``spikes/<layer>`` uint8 [N, T, *shape];
with ``--states`` also ``u/<layer>`` and ``v/<layer>`` int32 after the step. Layers are numbered from 0.
Step t of every layer is the one of input step t.

The network is what netx builds from the file: its synapses, its neurons, its resets. Only the model
of its ``LIFReset`` neurons is replaced, by one that takes the very same step and then writes down the
neuron's own u and v and the spikes, which are where v was reset.
"""

# mypy: disable-error-code="import-not-found, misc, untyped-decorator"
from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
import types
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from lava.magma.core.decorator import implements, requires, tag
from lava.magma.core.model.py.ports import PyOutPort
from lava.magma.core.model.py.type import LavaPyType
from lava.magma.core.resources import CPU
from lava.magma.core.run_conditions import RunSteps
from lava.magma.core.run_configs import Loihi2SimCfg
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol
from lava.proc.io.source import RingBuffer
from lava.proc.lif.models import PyLifResetModelBitAcc
from lava.proc.lif.process import LIFReset


def stub_training_library() -> None:
    """Put empty modules where netx imports lava-dl's training library, which needs torch."""
    for name in (
        "lava.lib.dl.slayer",
        "lava.lib.dl.slayer.neuron",
        "lava.lib.dl.slayer.neuron.rf",
        "lava.lib.dl.netx.sequential_modules",
    ):
        module: Any = types.ModuleType(name)
        # Lava's compiler executes every Python file beside a module of netx: here there is none.
        module.__path__, module.__file__ = [], str(Path(os.devnull, "stub.py"))
        sys.modules[name] = module
    sys.modules["lava.lib.dl.slayer.neuron.rf"].neuron_params = None  # type: ignore[attr-defined]


# What reading a damaged npz file can raise.
DAMAGED = (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error)


class InputError(Exception):
    """Input that does not fit."""


class SpyPort:
    """An output port that remembers what was sent last."""

    def __init__(self, port: Any) -> None:
        self.port, self.last = port, np.zeros(1)

    def send(self, data: np.ndarray) -> None:
        """Pass on."""
        self.last = data
        self.port.send(data)


@implements(proc=LIFReset, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class RecordedLIF(PyLifResetModelBitAcc):
    """Lava's neuron (lava/proc/lif/models.py) with a look at it after every step."""

    s_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32, precision=24)
    vth: int = LavaPyType(int, np.int32, precision=17)

    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)
        folder, self.first = Path(proc_params["record"]), proc_params["first"]
        self.files = {p.stem: np.load(p, mmap_mode="r+") for p in folder.glob("*.npy")}

    def run_spk(self) -> None:
        """One time step."""
        port = self.s_out
        self.s_out = spy = SpyPort(port)
        super().run_spk()
        self.s_out = port
        row = self.time_step - self.first
        for name, value in (("spikes", spy.last), ("u", self.u), ("v", self.v)):
            if name in self.files and 0 <= row < len(self.files[name]):
                self.files[name][row] = value
        self.files["done"][0] = row + 1


def record(layers: list[Any], rows: int, folder: Path, states: bool) -> None:
    """Give every layer's neurons files to fill."""
    kinds = {"spikes": np.uint8, "u": np.int32, "v": np.int32}
    for i, layer in enumerate(layers):
        (folder / str(i)).mkdir()
        np.save(folder / str(i) / "done.npy", np.zeros(1, np.int64))
        for name in kinds if states else ["spikes"]:
            shape = (rows, *layer.neuron.s_out.shape)
            np.lib.format.open_memmap(folder / str(i) / f"{name}.npy", "w+", kinds[name], shape)
        layer.neuron.proc_params["record"] = str(folder / str(i))
        # Every layer delays by one step, and Lava counts steps from 1.
        layer.neuron.proc_params["first"] = i + 2


def run(process: Any, layers: int, rows: int, folder: Path, end: str | None) -> None:
    """Run until every layer has ``rows`` rows. Raises RuntimeError when a process of Lava dies.

    ``end`` follows the number of the step on stderr; None shows no steps.

    Lava hangs when a process dies, so the script waits by itself and watches them.
    """
    try:
        config = Loihi2SimCfg(
            select_tag="fixed_pt", exception_proc_model_map={LIFReset: RecordedLIF}
        )
        process.run(condition=RunSteps(num_steps=rows + layers, blocking=False), run_cfg=config)
        children = multiprocessing.active_children()
        done = [np.load(folder / str(i) / "done.npy", mmap_mode="r") for i in range(layers)]
        told = 0.0
        while (least := min(max(int(d[0]), 0) for d in done)) < rows:
            if end is not None and time.monotonic() - told > 0.5:
                told = time.monotonic()
                print(f"step {least} of {rows}", end=end, file=sys.stderr, flush=True)
            dead = [child for child in children if not child.is_alive()]
            if dead:
                _, trace = getattr(dead[0], "exception", None) or (None, dead[0].name)
                raise RuntimeError(f"a process of Lava died: {trace}")
            time.sleep(0.02)
        process.wait()
        process.stop()
    finally:
        for child in multiprocessing.active_children():
            child.terminate()


def load(net: Path, timesteps: int, bits: int) -> Any:
    """What netx builds from the file, for inputs of ``bits``, 0 for spikes.

    Raises InputError where it cannot.
    """
    stub_training_library()
    from lava.lib.dl.netx.hdf5 import Network

    try:
        # The input layer of the file has no neurons, hence the offset.
        return Network(
            net_config=str(net),
            reset_interval=timesteps,
            reset_offset=1,
            input_message_bits=bits,
        )
    except Exception as error:  # netx checks nothing, so anything can come out of it
        raise InputError(f"{net}: netx cannot read it ({error!r})") from error


def source_of(spikes: np.ndarray, shape: tuple[int, ...], silence: int) -> RingBuffer:
    """A process that sends the raster step by step, and nothing for ``silence`` steps."""
    rows = spikes.reshape(-1, *spikes.shape[2:])
    if shape == (rows[0].size,):
        rows = rows.reshape(len(rows), -1)
    data = rows.transpose(*range(rows.ndim)[:0:-1], 0).astype(np.int32)  # (W, H, C, time)
    if data.shape[:-1] != shape:
        raise InputError(f"spikes is {spikes.shape}, the network takes {shape[::-1]} at each step")
    nothing = np.zeros((*shape, silence), np.int32)
    return RingBuffer(data=np.concatenate([data, nothing], axis=-1))


def simulate(
    net: Path,
    spikes: np.ndarray,
    bits: int,
    states: bool,
    end: str | None = None,
) -> dict[str, np.ndarray]:
    """Run a raster [N, T, *input_shape] and return the arrays of the output file.

    ``bits``: see ``load``.
    """
    network = load(net, spikes.shape[1], bits)
    layers = [layer for layer in network.layers if hasattr(layer, "neuron")]
    source_of(spikes, network.inp.shape, len(layers)).s_out.connect(network.inp)
    rows = spikes.shape[0] * spikes.shape[1]
    with tempfile.TemporaryDirectory(prefix="netx_network_") as name:
        folder = Path(name)
        record(layers, rows, folder, states)
        run(network, len(layers), rows, folder, end)
        return {
            f"{path.stem}/{i}": as_raster(np.load(path), spikes.shape[1])
            for i in range(len(layers))
            for path in sorted((folder / str(i)).glob("*.npy"))
            if path.stem != "done"
        }


def as_raster(rows: np.ndarray, timesteps: int) -> np.ndarray:
    """Rows (W, H, C), one a step, as [N, T, C, H, W]."""
    rows = rows.transpose(0, *range(rows.ndim)[:0:-1])
    return rows.reshape(-1, timesteps, *rows.shape[1:])


def read_input(path: Path, limit: int | None, lowest: int, levels: int) -> np.ndarray:
    """The first ``limit`` samples of a raster file. Raises InputError when they cannot be used."""
    try:
        with open(path, "rb") as raw, np.lib.npyio.NpzFile(raw) as file:
            spikes: np.ndarray = file["spikes"][:limit]
    except DAMAGED as error:
        raise InputError(f"{path}: not an npz file with an array 'spikes' ({error})") from error
    if spikes.ndim < 3 or not spikes.size or not np.issubdtype(spikes.dtype, np.integer):
        raise InputError(f"{path}: spikes is {spikes.dtype} {spikes.shape}, not whole [N, T, ...]")
    if spikes.min() < lowest or spikes.max() > levels:
        found = f"{spikes.min()} to {spikes.max()}"
        raise InputError(f"{path}: spikes holds {found}, not {lowest}..{levels}")
    return spikes


def save(path: Path, arrays: dict[str, Any]) -> None:
    """Write an npz file whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.npz")
    try:
        np.savez_compressed(temporary, **arrays)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def main() -> int:
    """Command line. Returns 0 when done, 1 when Lava failed, 2 for bad input."""
    parser = argparse.ArgumentParser(description="Run network.net with lava-dl's netx.")
    parser.add_argument("net", type=Path, help="network.net")
    parser.add_argument("--input", type=Path, required=True, help="npz file with `spikes`")
    parser.add_argument("--out", type=Path, required=True, help="npz file to write")
    parser.add_argument("--lowest", type=int, default=0, help="lowest input value")
    parser.add_argument(
        "--hold", type=int, default=0, metavar="T", help="read one frame in T steps"
    )
    parser.add_argument("--levels", type=int, default=1, help="largest input value")
    parser.add_argument("--limit", type=int, help="run the first LIMIT samples only")
    parser.add_argument("--states", action="store_true", help="also record u and v")
    parser.add_argument(
        "--progress", action="store_true", help="print the step in lines, into a pipe too"
    )
    options = parser.parse_args()
    try:
        if not options.net.is_file():
            raise InputError(f"{options.net}: is not a file")
        lowest, levels = options.lowest, options.levels
        spikes = read_input(options.input, options.limit, lowest, levels)
        if options.hold:
            spikes = np.repeat(spikes, options.hold, axis=1)
        bits = levels.bit_length() if levels > 1 or lowest < 0 else 0
        end = "\n" if options.progress else "\r" if sys.stderr.isatty() else None
        trace = simulate(options.net, spikes, bits, options.states, end)
        save(options.out, trace)
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
