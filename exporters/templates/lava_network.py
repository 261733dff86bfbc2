"""Run an exported spiking network on Lava, bit for bit as on Loihi.

    python lava_network.py --input spikes.npz --out out.npz [--limit N] [--states] [--progress]

Needs Python 3.10, numpy < 2, lava-nc 0.10.0 and ``lava_params.npz`` beside this file. Keep the two
in a folder of their own: Lava's compiler executes every Python file beside one that defines a
process (lava/magma/compiler/compiler_graphs.py, ``_find_proc_models``).

Input: ``spikes`` [N, T, *input_shape], whole numbers from 0 to the input levels of the network.
Output: ``spikes/<layer>`` uint8 [N, T, *shape]; with ``--states`` also ``u/<layer>`` and
``v/<layer>`` int32, v after the reset. Step t of every layer is the one that saw input step t.

Inside Lava a population (C, H, W) is held as (W, H, C), all axes reversed. Each Conv, Dense and
Sparse delays by one step, so layer l works on step t of sample k at Lava's time step k T + t + l + 2
(Lava counts from 1). The samples run back to back; every layer clears its state when the first
step of a sample reaches it, so that recurrent spikes of the sample before do not count.
"""

# mypy: disable-error-code="import-not-found, misc, untyped-decorator"
from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from lava.magma.core.decorator import implements, requires, tag
from lava.magma.core.model.py.model import PyLoihiProcessModel
from lava.magma.core.model.py.ports import PyInPort, PyOutPort
from lava.magma.core.model.py.type import LavaPyType
from lava.magma.core.process.ports.ports import InPort, OutPort
from lava.magma.core.process.process import AbstractProcess
from lava.magma.core.process.variable import Var
from lava.magma.core.resources import CPU
from lava.magma.core.run_conditions import RunSteps
from lava.magma.core.run_configs import Loihi2SimCfg
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol
from lava.proc.conv.process import Conv
from lava.proc.dense.process import Dense
from lava.proc.lif.models import AbstractPyLifModelFixed
from lava.proc.lif.process import AbstractLIF
from lava.proc.sparse.process import Sparse
from lava.utils.weightutils import SignMode
from scipy.sparse import csr_matrix

FORMAT = "stl-deploy-lava/3"
PARAMS = Path(__file__).resolve().parent / "lava_params.npz"


# What reading a damaged npz file can raise.
DAMAGED = (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error)


class InputError(Exception):
    """Input that does not fit the network."""


class SpikeSource(AbstractProcess):
    """Sends row t of the array in the file ``path`` at time step t + 1, and zeros afterwards."""

    def __init__(self, *, path: str, shape: tuple[int, ...]) -> None:
        super().__init__(path=path, shape=shape)
        self.s_out = OutPort(shape=shape)


@implements(proc=SpikeSource, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PySpikeSource(PyLoihiProcessModel):
    """Reads its rows straight from the file."""

    s_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32)

    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)
        self.rows = np.load(proc_params["path"], mmap_mode="r")

    def run_spk(self) -> None:
        """One time step."""
        row = self.time_step - 1
        over = row >= len(self.rows)
        self.s_out.send((np.zeros_like(self.rows[0]) if over else self.rows[row]).astype(np.int32))


class SpikeSink(AbstractProcess):
    """Writes what a population does into files in ``folder``, from time step ``first`` on.

    ``spikes.npy``, with ``states`` also ``u.npy`` and ``v.npy``, take a row a step; ``done.npy``
    counts the rows.
    """

    def __init__(self, *, shape: tuple[int, ...], folder: Path, first: int, states: bool) -> None:
        super().__init__(shape=shape, folder=str(folder), first=first, states=states)
        self.s_in = InPort(shape=shape)
        self.u_in = InPort(shape=shape)
        self.v_in = InPort(shape=shape)


@implements(proc=SpikeSink, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PySpikeSink(PyLoihiProcessModel):
    """Fills arrays that it shares with the script through memory-mapped files."""

    s_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32)
    u_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32)
    v_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32)

    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)
        folder, self.first = Path(proc_params["folder"]), proc_params["first"]
        self.ports = {"spikes": "s_in"}
        if proc_params["states"]:
            self.ports.update(u="u_in", v="v_in")
        self.files = {name: np.load(folder / f"{name}.npy", mmap_mode="r+") for name in self.ports}
        self.done = np.load(folder / "done.npy", mmap_mode="r+")

    def run_spk(self) -> None:
        """One time step."""
        row = self.time_step - self.first
        for name, rows in self.files.items():
            data = getattr(self, self.ports[name]).recv()
            if 0 <= row < len(rows):
                rows[row] = data
        self.done[0] = row + 1


class ThresholdLIF(AbstractLIF):
    """LIF with a threshold for every neuron, cleared when a sample begins.

    At time step t with t % reset_interval == reset_offset % reset_interval, u and v are set to 0
    before the input of the step. ``r_in`` takes what the neurons' own spikes of the step before add
    to ``a_in``; in such a step those are of the sample before, and left out. ``reset`` is what a spike
    does to v: "zero", or "subtract" the threshold. ``u_out`` and ``v_out`` show the state after the
    step.
    """

    def __init__(
        self,
        *,
        shape: tuple[int, ...],
        vth: np.ndarray,
        bias_mant: np.ndarray,
        bias_exp: int,
        du: int,
        dv: int,
        reset: str,
        reset_interval: int,
        reset_offset: int,
    ) -> None:
        super().__init__(
            shape=shape,
            u=0,
            v=0,
            du=du,
            dv=dv,
            bias_mant=bias_mant,
            bias_exp=bias_exp,
            name=None,
            log_config=None,
            reset=reset,
            reset_interval=reset_interval,
            reset_offset=reset_offset,
        )
        # Lava's own LIF declares a single threshold; this Var has one for each neuron.
        self.vth = Var(shape=shape, init=vth)
        self.r_in = InPort(shape=shape)
        self.u_out = OutPort(shape=shape)
        self.v_out = OutPort(shape=shape)


@implements(proc=ThresholdLIF, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyThresholdLIF(AbstractPyLifModelFixed):
    """Lava's bit-accurate Loihi neuron (lava/proc/lif/models.py) with the array of thresholds."""

    r_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32, precision=24)
    s_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32, precision=24)
    u_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32, precision=24)
    v_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32, precision=24)
    vth: np.ndarray = LavaPyType(np.ndarray, np.int32, precision=17)

    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)
        self.subtracts = proc_params["reset"] == "subtract"
        self.reset_interval = proc_params["reset_interval"]
        self.reset_offset = proc_params["reset_offset"] % self.reset_interval
        self.effective_vth: Any = 0

    def scale_threshold(self) -> None:
        """Thresholds count 64 units of v."""
        self.effective_vth = np.left_shift(self.vth, self.vth_shift)
        self.isthrscaled = True

    def spiking_activation(self) -> np.ndarray:
        """Spike where the voltage exceeds the neuron's threshold."""
        spikes: np.ndarray = self.v > self.effective_vth
        return spikes

    def begins(self) -> bool:
        """Whether this is the first step of a sample."""
        first: bool = self.time_step % self.reset_interval == self.reset_offset
        return first

    def subthr_dynamics(self, activation_in: np.ndarray) -> None:
        """Current and voltage before the threshold, with the recurrent input."""
        own = self.r_in.recv()  # in every step, or it would arrive in a later one
        super().subthr_dynamics(activation_in if self.begins() else activation_in + own)

    def reset_voltage(self, spike_vector: np.ndarray) -> None:
        """What a spike does to the voltage."""
        if self.subtracts:
            self.v[spike_vector] -= self.effective_vth[spike_vector]
        else:
            super().reset_voltage(spike_vector)

    def run_spk(self) -> None:
        """One time step."""
        if self.begins():
            self.u[:] = 0
            self.v[:] = 0
        super().run_spk()
        self.u_out.send(self.u)
        self.v_out.send(self.v)


def convolution(
    layer: dict[str, Any], weight: np.ndarray, source: OutPort, bits: int
) -> list[OutPort]:
    """Connect ``source`` to a Conv and return its output; ``bits`` as in ``synapses``."""
    process = Conv(
        weight=weight,
        input_shape=source.shape,
        stride=tuple(layer["stride"]),
        padding=tuple(layer["padding"]),
        dilation=tuple(layer["dilation"]),
        groups=layer["groups"],
        num_message_bits=bits,
    )
    source.connect(process.s_in)
    return [process.a_out]


def synapses(
    layer: dict[str, Any], params: Any, i: int, which: str, source: OutPort, bits: int
) -> list[OutPort]:
    """Connect ``source`` to the synapses of layer ``i`` and return their outputs, one a group.

    ``which`` names their weights, "weight" or "recurrent". ``bits`` is the width of the payload of a
    spike, 0 where spikes are binary.
    """
    if which == "weight" and layer["kind"] == "conv":
        return convolution(layer, params[f"{i}/weight"], source, bits)
    outputs = []
    for g, group in enumerate(groups_of(layer, which)):
        weight = params[f"{i}/{which}/{g}"]
        # The sign mode is named because Lava would clip a mixed matrix without positive weights at -255.
        how = {
            "weight_exp": group["weight_exp"],
            "sign_mode": SignMode[group["sign"]],
            "num_message_bits": bits,
        }
        if which == "weight" and layer["kind"] == "sparse":
            shape = tuple(layer["shape"])[::-1]
            size = int(np.prod(shape)), int(np.prod(source.shape))
            places = params[f"{i}/row/{g}"], params[f"{i}/column/{g}"]
            single = Sparse(weights=csr_matrix((weight, places), shape=size), **how)
            source.flatten().connect(single.s_in)
            outputs.append(single.a_out.reshape(shape))
            continue
        dense = Dense(weights=weight, **how)
        inputs = source
        if len(source.shape) > 1:  # the columns count the inputs in the order C, H, W
            axes = list(range(len(source.shape)))[::-1]
            inputs = source.transpose(axes).flatten()
        inputs.connect(dense.s_in)
        outputs.append(dense.a_out)
    return outputs


def groups_of(layer: dict[str, Any], which: str) -> list[dict[str, Any]]:
    """The groups of synapses, of one sign mode and exponent each, from the inputs or the layer itself."""
    groups: list[dict[str, Any]] = layer[
        "synapse_groups" if which == "weight" else "recurrent_groups"
    ]
    return groups


def build(params: Any, network: dict[str, Any], folder: Path, states: bool) -> Any:
    """The process graph from ``folder``/input.npy to the sinks; returns the source."""
    reset_interval = network["timesteps"]
    shape = tuple(network["input_shape"])[::-1]
    source = SpikeSource(path=str(folder / "input.npy"), shape=shape)
    before = source.s_out
    bits = network["input_levels"].bit_length() if network["input_levels"] > 1 else 0
    for i, layer in enumerate(network["layers"]):
        weighted = synapses(layer, params, i, "weight", before, bits)
        neurons = ThresholdLIF(
            shape=tuple(layer["shape"])[::-1],
            vth=params[f"{i}/vth"],
            bias_mant=params[f"{i}/bias_mant"],
            bias_exp=layer["bias_exp"],
            du=layer["du"],
            dv=layer["dv"],
            reset=layer["reset"],
            reset_interval=reset_interval,
            reset_offset=i + 2,
        )
        for group in weighted:
            group.connect(neurons.a_in)
        for group in synapses(layer, params, i, "recurrent", neurons.s_out, 0):
            group.connect(neurons.r_in)
        sink = SpikeSink(
            shape=neurons.s_out.shape, folder=folder / str(i), first=i + 2, states=states
        )
        neurons.s_out.connect(sink.s_in)
        if states:
            neurons.u_out.connect(sink.u_in)
            neurons.v_out.connect(sink.v_in)
        before, bits = neurons.s_out, 0
    return source


def prepare(folder: Path, network: dict[str, Any], spikes: np.ndarray, states: bool) -> None:
    """Write the input as Lava takes it, and files for the sinks to fill."""
    rows = spikes.reshape(-1, *network["input_shape"])
    np.save(folder / "input.npy", rows.transpose(0, *range(rows.ndim)[:0:-1]))
    kinds = {"spikes": np.uint8, "u": np.int32, "v": np.int32}
    for i, layer in enumerate(network["layers"]):
        (folder / str(i)).mkdir()
        np.save(folder / str(i) / "done.npy", np.zeros(1, np.int64))
        for name in kinds if states else ["spikes"]:
            np.lib.format.open_memmap(
                folder / str(i) / f"{name}.npy",
                mode="w+",
                dtype=kinds[name],
                shape=(len(rows), *layer["shape"][::-1]),
            )


def run(process: Any, layers: int, rows: int, folder: Path, end: str | None) -> None:
    """Run until every sink has ``rows`` rows. Raises RuntimeError when a process of Lava dies.

    ``end`` follows the number of the step on stderr; None shows no steps.

    Lava hangs when a process dies, so the script waits by itself and watches them.
    """
    try:
        process.run(
            condition=RunSteps(num_steps=rows + layers, blocking=False),
            run_cfg=Loihi2SimCfg(select_tag="fixed_pt"),
        )
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


def collect(folder: Path, network: dict[str, Any], samples: int) -> dict[str, np.ndarray]:
    """The arrays of the output file, axes in the model's order."""
    trace = {}
    for i, layer in enumerate(network["layers"]):
        for path in sorted((folder / str(i)).glob("*.npy")):
            if path.stem != "done":
                rows = np.load(path, mmap_mode="r")
                rows = rows.transpose(0, *range(rows.ndim)[:0:-1])
                size = (samples, network["timesteps"], *layer["shape"])
                trace[f"{path.stem}/{layer['name']}"] = rows.reshape(size)
    return trace


def check_synapses(layer: dict[str, Any], params: dict[str, np.ndarray], i: int) -> None:
    """Raise ValueError unless layer ``i`` has the arrays that its description names."""
    groups = {which: groups_of(layer, which) for which in ("weight", "recurrent")}
    if any(group["sign"] not in SignMode.__members__ for own in groups.values() for group in own):
        raise ValueError(f"layer {i}: a group of synapses has an unknown sign")
    weights = [params[f"{i}/weight/{g}"] for g in range(len(groups["weight"]))]
    if layer["kind"] == "conv":
        weights.append(params[f"{i}/weight"])
    if not any(weight.size for weight in weights):
        raise ValueError(f"layer {i} has no weights")
    for g in range(len(weights) if layer["kind"] == "sparse" else 0):
        sizes = {params[f"{i}/{name}/{g}"].shape for name in ("weight", "row", "column")}
        if len(sizes) > 1:
            raise ValueError(f"layer {i}: row, column and weight differ in length")
    for g in range(len(groups["recurrent"])):
        if params[f"{i}/recurrent/{g}"].shape != tuple(layer["shape"]) * 2:
            raise ValueError(f"{i}/recurrent/{g} does not fit its layer")


def read_params(path: Path) -> dict[str, np.ndarray]:
    """lava_params.npz. Raises InputError when it is damaged or of another format."""
    remedy = "export the network again"
    try:
        with open(path, "rb") as raw, np.lib.npyio.NpzFile(raw) as file:
            params: dict[str, np.ndarray] = {key: file[key] for key in file.files}
        network = json.loads(str(params["network"]))
        version = network["format"]
        if version == FORMAT:
            for i, layer in enumerate(network["layers"]):
                check_synapses(layer, params, i)
                size = tuple(layer["shape"])
                if layer["reset"] not in ("zero", "subtract"):
                    raise ValueError(f"layer {i}: reset {layer['reset']!r}")
                for name in ("vth", "bias_mant"):
                    if params[f"{i}/{name}"].shape != size[::-1]:
                        raise ValueError(f"{i}/{name} has another shape than its layer")
    except DAMAGED as error:
        raise InputError(f"{path}: cannot be read ({error}); {remedy}") from error
    if version != FORMAT:
        raise InputError(f"{path}: format {version!r} is not {FORMAT!r}; {remedy}")
    return params


def read_input(path: Path, network: dict[str, Any], limit: int | None) -> np.ndarray:
    """The first ``limit`` samples of a raster file. Raises InputError when they do not fit."""
    try:
        with open(path, "rb") as raw, np.lib.npyio.NpzFile(raw) as file:
            spikes: np.ndarray = np.atleast_1d(file["spikes"])[:limit]
    except DAMAGED as error:
        raise InputError(f"{path}: not an npz file with an array 'spikes' ({error})") from error
    expected = (network["timesteps"], *network["input_shape"])
    if spikes.shape[1:] != expected or len(spikes) == 0:
        wanted = ", ".join(map(str, expected))
        raise InputError(f"{path}: spikes is {spikes.shape}, the network takes (N, {wanted})")
    if not np.issubdtype(spikes.dtype, np.integer) and spikes.dtype != np.bool_:
        raise InputError(f"{path}: spikes is {spikes.dtype}, the network takes whole numbers")
    low, high, levels = int(spikes.min()), int(spikes.max()), network["input_levels"]
    if low < 0 or high > levels:
        raise InputError(f"{path}: spikes holds {low} to {high}, the network takes 0 to {levels}")
    return spikes


def simulate(
    spikes: np.ndarray, params: Any, states: bool = False, end: str | None = None
) -> dict[str, np.ndarray]:
    """Run the network on a raster [N, T, *input_shape] and return the arrays of the output file.

    ``end``: see ``run``.
    """
    network = json.loads(str(params["network"]))
    with tempfile.TemporaryDirectory(prefix="lava_network_") as name:
        folder = Path(name)
        prepare(folder, network, spikes, states)
        source = build(params, network, folder, states)
        run(source, len(network["layers"]), spikes.shape[0] * spikes.shape[1], folder, end)
        return {key: np.array(a) for key, a in collect(folder, network, len(spikes)).items()}


def save(path: Path, arrays: dict[str, Any]) -> None:
    """Write an npz file whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.npz")
    try:
        np.savez_compressed(temporary, **arrays)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def positive(text: str) -> int:
    """A whole number above zero."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def main() -> int:
    """Command line. Returns 0 when done, 1 when Lava failed, 2 for bad input."""
    parser = argparse.ArgumentParser(description="Run the exported network on Lava.")
    parser.add_argument(
        "--input", type=Path, required=True, help="npz file with `spikes` [N, T, ...]"
    )
    parser.add_argument("--out", type=Path, required=True, help="npz file to write")
    parser.add_argument("--limit", type=positive, help="run the first LIMIT samples only")
    parser.add_argument("--states", action="store_true", help="also record u and v")
    parser.add_argument(
        "--progress", action="store_true", help="print the step in lines, into a pipe too"
    )
    options = parser.parse_args()
    try:
        if not options.out.parent.is_dir():
            raise InputError(f"{options.out}: the folder {options.out.parent} does not exist")
        params = read_params(PARAMS)
        network = json.loads(str(params["network"]))
        spikes = read_input(options.input, network, options.limit)
        end = "\n" if options.progress else "\r" if sys.stderr.isatty() else None
        trace = simulate(spikes, params, options.states, end)
        save(options.out, trace)
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{options.out}: {len(spikes)} samples, {len(network['layers'])} layers")
    return 0


if __name__ == "__main__":
    sys.exit(main())
