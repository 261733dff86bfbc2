"""Run an exported spiking network on Lava, bit for bit as on Loihi.

    python lava_network.py --input spikes.npz --out out.npz [--limit N] [--states] [--progress]

Needs Python 3.10, numpy < 2, lava-nc 0.10.0 and ``lava_params.npz`` beside this file. Keep the two
in a folder of their own: Lava's compiler executes every Python file beside one that defines a
process (lava/magma/compiler/compiler_graphs.py, ``_find_proc_models``).

Input: ``spikes`` [N, T, *shape], or ``spikes/<input>`` of each where the network has several; whole
numbers within what the input takes. An input that is held has a single step, which is read in all T.
Output: ``spikes/<population>`` uint8 [N, T, *shape], int16 where neurons send values, and ``prediction``
int64 [N], the class of each sample; with ``--states`` also ``u/<population>`` and ``v/<population>`` int32, v
after the reset, and where neurons have them a second current ``u2``, ``q``, which is added to thresholds, and
``rest``, the steps left to rest. The v that the classes are scored by is there in any case. Step t of every
population is the one of input step t.

Inside Lava a population (C, H, W) is held as (W, H, C), all axes reversed. Each Conv, Dense and
Sparse takes one step, so a population of depth d, with inputs at 0, works on step t of sample k at
Lava's time step k T + t + d + 1 (Lava counts from 1). Spikes that come too early for their target wait in
a ring. The samples run back to back: every population clears its state when the first step of a sample
reaches it, and a spike that would be heard after the end of its sample is dropped.
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
from lava.magma.compiler.compiler_graphs import find_processes
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

FORMAT = "stl-deploy-lava/5"
PARAMS = Path(__file__).resolve().parent / "lava_params.npz"
STATES = ("u", "v", "u2", "q", "rest")
RESETS = ("zero", "subtract", "constant", "none")
RULES = ("votes", "last", "mean", "max", "first")


# What reading a damaged npz file can raise.
DAMAGED = (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error)


class InputError(Exception):
    """Input that does not fit the network."""


class SpikeSource(AbstractProcess):
    """Sends row t of the array in the file ``path`` at time step t + 1 + ``waits``.

    ``rows`` is the number of time steps of all samples, of which each has ``interval``. With ``held`` the
    file has one row a sample, which is sent in each of its steps. Zeros are sent otherwise, and where
    ``delay`` steps later the sample is over.
    """

    def __init__(
        self,
        *,
        path: str,
        shape: tuple[int, ...],
        rows: int,
        interval: int,
        held: bool,
        waits: int,
        delay: int,
    ) -> None:
        times = {"rows": rows, "interval": interval, "held": held, "waits": waits, "delay": delay}
        super().__init__(path=path, shape=shape, **times)
        self.s_out = OutPort(shape=shape)
        self.joined = InPort(shape=(1,))
        self.joins = OutPort(shape=(1,))


@implements(proc=SpikeSource, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PySpikeSource(PyLoihiProcessModel):
    """Reads its rows straight from the file."""

    s_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32)
    joined: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32)
    joins: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32)

    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)
        self.given = np.load(proc_params["path"], mmap_mode="r")
        self.rows, self.interval = proc_params["rows"], proc_params["interval"]
        self.each = self.interval if proc_params["held"] else 1
        self.waits, self.delay = proc_params["waits"], proc_params["delay"]

    def run_spk(self) -> None:
        """One time step."""
        row = self.time_step - 1 - self.waits
        if 0 <= row < self.rows and row % self.interval + self.delay < self.interval:
            self.s_out.send(self.given[row // self.each].astype(np.int32))
        else:
            self.s_out.send(np.zeros(self.given.shape[1:], np.int32))


class SpikeRing(AbstractProcess):
    """Sends what it receives ``waits`` time steps later; 0 in the same one.

    ``first`` is the time step of a population's first step of the first sample, and each sample has
    ``interval``. What would be heard ``delay`` steps later, in the next sample, is dropped.
    """

    def __init__(
        self, *, shape: tuple[int, ...], first: int, interval: int, waits: int, delay: int
    ) -> None:
        super().__init__(shape=shape, first=first, interval=interval, waits=waits, delay=delay)
        self.s_in = InPort(shape=shape)
        self.s_out = OutPort(shape=shape)


@implements(proc=SpikeRing, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PySpikeRing(PyLoihiProcessModel):
    """Holds the last spikes, those of time step t in row t modulo their number."""

    s_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32)
    s_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32)

    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)
        self.first, self.interval = proc_params["first"], proc_params["interval"]
        self.waits, self.delay = proc_params["waits"], proc_params["delay"]
        self.rows = np.zeros((self.waits + 1, *proc_params["shape"]), np.int32)

    def run_spk(self) -> None:
        """One time step."""
        spikes = self.s_in.recv()
        over = (self.time_step - self.first) % self.interval + self.delay >= self.interval
        self.rows[self.time_step % len(self.rows)] = 0 if over else spikes
        self.s_out.send(self.rows[(self.time_step - self.waits) % len(self.rows)])


class SpikeSink(AbstractProcess):
    """Writes what a population does into files in ``folder``, from time step ``first`` on.

    ``spikes.npy``, and a file for each of ``states``, take a row a step; ``done.npy`` counts the rows.
    """

    def __init__(
        self, *, shape: tuple[int, ...], folder: Path, first: int, states: tuple[str, ...]
    ) -> None:
        super().__init__(shape=shape, folder=str(folder), first=first, states=states)
        self.s_in = InPort(shape=shape)
        self.u_in = InPort(shape=shape)
        self.v_in = InPort(shape=shape)
        self.u2_in = InPort(shape=shape)
        self.q_in = InPort(shape=shape)
        self.rest_in = InPort(shape=shape)


@implements(proc=SpikeSink, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PySpikeSink(PyLoihiProcessModel):
    """Fills arrays that it shares with the script through memory-mapped files."""

    s_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32)
    u_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32)
    v_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32)
    u2_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32)
    q_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32)
    rest_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32)

    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)
        folder, self.first = Path(proc_params["folder"]), proc_params["first"]
        self.ports = {"spikes": "s_in"} | {name: f"{name}_in" for name in proc_params["states"]}
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


class GraphLIF(AbstractLIF):
    """LIF with thresholds and decays of each neuron and further rules, cleared when a sample begins.

    The first sample begins at time step ``first``, and each lasts ``interval`` steps: before the input of its
    first one, u is 0 and v is v0. ``rules`` are the fields of the population in the JSON, and the arrays of
    the rules that it has. ``a2_in`` feeds the second current. ``<state>_out`` show the state after the step.

    ``joins`` and ``joined`` carry nothing. Lava runs what is connected, and they connect the parts of a
    network that are not.
    """

    def __init__(
        self,
        *,
        shape: tuple[int, ...],
        vth: np.ndarray,
        bias_mant: np.ndarray,
        bias_exp: int,
        du: np.ndarray,
        dv: np.ndarray,
        interval: int,
        first: int,
        rules: dict[str, Any],
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
            interval=interval,
            first=first,
            rules=rules,
        )
        # Lava's own LIF declares a single threshold and decay; these have one for each neuron.
        self.vth = Var(shape=shape, init=vth)
        self.du = Var(shape=shape, init=du)
        self.dv = Var(shape=shape, init=dv)
        self.a2_in = InPort(shape=shape)
        self.u_out = OutPort(shape=shape)
        self.v_out = OutPort(shape=shape)
        self.u2_out = OutPort(shape=shape)
        self.q_out = OutPort(shape=shape)
        self.rest_out = OutPort(shape=shape)
        self.joins = OutPort(shape=(1,))
        self.joined = InPort(shape=(1,))


@implements(proc=GraphLIF, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyGraphLIF(AbstractPyLifModelFixed):
    """Lava's bit-accurate Loihi neuron (lava/proc/lif/models.py) with arrays of parameters and more rules.

    Lava's own step of u and v stands in the middle; the rules change what goes into it and what follows.
    """

    # Sums over several connections may need more than the 16 bits of Lava's neuron.
    a_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int64)
    a2_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int64)
    s_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32, precision=24)
    u_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32, precision=24)
    v_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32, precision=24)
    u2_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32, precision=24)
    q_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32, precision=24)
    rest_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32, precision=24)
    joins: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32)
    joined: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32)
    vth: np.ndarray = LavaPyType(np.ndarray, np.int32, precision=17)
    du: np.ndarray = LavaPyType(np.ndarray, np.uint16, precision=12)
    dv: np.ndarray = LavaPyType(np.ndarray, np.uint16, precision=12)

    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)
        self.interval, self.first = proc_params["interval"], proc_params["first"]
        self.rules = proc_params["rules"]
        shape = proc_params["shape"]
        self.u2, self.q, self.rest = (np.zeros(shape, np.int32) for _ in range(3))
        self.effective_vth: Any = 0
        self.effective_bias: Any = 0
        if "gain" in self.rules:
            self.act_shift = 0  # what arrives is brought to the units of u before it is scaled

    def run_spk(self) -> None:
        """One time step, in the order of docs/numerics.md."""
        t = (self.time_step - self.first) % self.interval
        if t == 0:
            self.begin()
        arrived = self.a_in.recv()
        self.scale_bias()
        if not self.isthrscaled:
            self.scale_threshold()
        before = self.v.copy()
        self.subthr_dynamics(self.drive(t, arrived))
        resting = self.rest != 0
        self.v[resting] = before[resting]
        if "floor" in self.rules:
            np.maximum(self.v, self.rules["floor"], out=self.v)
        spikes = self.spiking_activation() & ~resting
        self.s_out.send(self.sent(spikes, arrived))
        self.reset_voltage(spikes)
        self.settle(spikes)
        self.u_out.send(self.u)
        self.v_out.send(self.v)
        self.u2_out.send(self.u2)
        self.q_out.send(self.q)
        self.rest_out.send(self.rest)

    def begin(self) -> None:
        """The state before the first step of a sample."""
        for state in (self.u, self.u2, self.q, self.rest):
            state[:] = 0
        self.v[:] = self.rules.get("v0", 0)

    def drive(self, t: int, arrived: np.ndarray) -> np.ndarray:
        """What Lava's step adds to u, where ``arrived`` arrives; what it adds to v is ``effective_bias``."""
        if "gain" in self.rules:
            arrived = self.amplified(t, arrived, self.effective_bias)
            self.effective_bias = np.zeros_like(self.v)
        if "du2" in self.rules:
            second = self.a2_in.recv()
            if "gain" in self.rules:
                second = self.amplified(t, second, 0)
            else:
                second = np.left_shift(second, self.act_shift)
            self.step_second(second)
            self.effective_bias = self.effective_bias + self.u2
        return arrived.astype(np.int32)

    def amplified(self, t: int, arrived: np.ndarray, bias: Any) -> np.ndarray:
        """What arrives, in the units of u and with the bias, times the gain of step ``t``."""
        shifted = np.int64(np.left_shift(arrived.astype(np.int32), self.vth_shift)) + bias
        product = np.int64(shifted.astype(np.int32)) * self.rules["gain"][t]
        scaled: np.ndarray = np.sign(product) * np.right_shift(np.abs(product), self.decay_shift)
        return scaled

    def step_second(self, added: np.ndarray) -> None:
        """The second current, by the same step as Lava's own."""
        u2 = self.decayed(self.u2, self.rules["du2"] + self.ds_offset) + added
        u2, most = u2.astype(np.int32).astype(np.int64), self.max_uv_val
        self.u2[:] = np.where(u2 > most, u2 - 2 * most, np.where(u2 <= -most, u2 + 2 * most, u2))

    def decayed(self, state: np.ndarray, constant: Any) -> np.ndarray:
        """What a step leaves of ``state``, truncated toward zero; int64."""
        product = np.int64(state) * (self.decay_unity - constant)
        left: np.ndarray = np.sign(product) * np.right_shift(np.abs(product), self.decay_shift)
        return left

    def scale_threshold(self) -> None:
        """Thresholds count 64 units of v."""
        self.effective_vth = np.left_shift(self.vth, self.vth_shift)
        self.isthrscaled = True

    def spiking_activation(self) -> np.ndarray:
        """Spike where the voltage exceeds the neuron's threshold, if there is one."""
        if not self.rules["fires"]:
            return np.zeros(self.v.shape, np.bool_)
        spikes: np.ndarray = self.v > self.effective_vth + self.q
        return spikes

    def sent(self, spikes: np.ndarray, arrived: np.ndarray) -> np.ndarray:
        """Spikes, or the values that are sent instead."""
        if (graded := self.rules["graded"]) is None:
            return spikes
        fires = self.rules["fires"]
        value = np.right_shift(self.v if fires else arrived, graded["shift"])
        value = np.clip(value, -graded["levels"], graded["levels"])
        return np.where(spikes, value, 0) if fires else value

    def reset_voltage(self, spike_vector: np.ndarray) -> None:
        """What a spike does to the voltage."""
        reset = self.rules["reset"]
        if reset == "subtract":
            self.v[spike_vector] -= self.effective_vth[spike_vector]
        elif reset == "constant":
            self.v[spike_vector] = self.rules["v_reset"][spike_vector]
        elif reset == "zero":
            super().reset_voltage(spike_vector)

    def settle(self, spikes: np.ndarray) -> None:
        """What a spike does to everything else."""
        if self.rules["reset_current"]:
            self.u[spikes] = 0
            self.u2[spikes] = 0
        if self.rules["hold"]:
            self.rest[self.rest > 0] -= 1
            self.rest[spikes] = self.rules["hold"]
        if "adapt" in self.rules:
            q = self.decayed(self.q, self.rules["dq"]) + np.where(spikes, self.rules["adapt"], 0)
            self.q[:] = np.clip(q, 1 - self.max_uv_val, self.max_uv_val - 1)


def convolution(connection: dict[str, Any], weight: np.ndarray, spikes: Any, bits: int) -> Any:
    """The output of a Conv that ``spikes`` lead into; ``bits`` as in ``weighted``."""
    process = Conv(
        weight=weight,
        input_shape=spikes.shape,
        stride=tuple(connection["stride"]),
        padding=tuple(connection["padding"]),
        dilation=tuple(connection["dilation"]),
        groups=connection["groups"],
        num_message_bits=bits,
    )
    spikes.connect(process.s_in)
    return process.a_out


def weighted(
    connection: dict[str, Any], params: Any, i: int, spikes: Any, bits: int, shape: tuple[int, ...]
) -> list[Any]:
    """The outputs, of ``shape``, of the synapses of connection ``i``, one for each group.

    ``spikes`` is the port that leads into them, ``bits`` the width of the payload of a spike, 0 where
    spikes are binary.
    """
    if connection["kind"] == "conv":
        return [convolution(connection, params[f"c{i}/weight"], spikes, bits)]
    outputs = []
    for g, group in enumerate(connection["synapse_groups"]):
        weight = params[f"c{i}/weight/{g}"]
        # The sign mode is named because Lava would clip a mixed matrix without positive weights at -255.
        how = {
            "weight_exp": group["weight_exp"],
            "sign_mode": SignMode[group["sign"]],
            "num_message_bits": bits,
        }
        if connection["kind"] == "sparse":
            places = params[f"c{i}/row/{g}"], params[f"c{i}/column/{g}"]
            size = int(np.prod(shape)), int(np.prod(spikes.shape))
            process = Sparse(weights=csr_matrix((weight, places), shape=size), **how)
        else:
            process = Dense(weights=weight, **how)
        spikes.flatten().connect(process.s_in)
        outputs.append(process.a_out.reshape(shape))
    return outputs


class Graph:
    """The process graph of ``network``, with sinks that write into ``folder``.

    ``samples`` of each input lie there as ``prepare`` writes them.
    """

    def __init__(
        self, params: Any, network: dict[str, Any], folder: Path, samples: int, states: bool
    ) -> None:
        self.params, self.network, self.folder = params, network, folder
        self.samples, self.interval = samples, network["timesteps"]
        self.inputs = {given["name"]: i for i, given in enumerate(network["inputs"])}
        self.places = {one["name"]: i for i, one in enumerate(network["populations"])}
        self.neurons = [self._neurons(i) for i in range(len(self.places))]
        self.ports: dict[tuple[str, int, int], Any] = {}
        self.sources: list[SpikeSource] = []
        for i, connection in enumerate(network["connections"]):
            self._connect(connection, i)
        for i, population in enumerate(network["populations"]):
            self._record(population, i, kept(network, population, states))
        self.process = self._joined()

    def _neurons(self, i: int) -> GraphLIF:
        population = self.network["populations"][i]
        arrays = {name: self.params[f"p{i}/{name}"] for name in population["arrays"]}
        return GraphLIF(
            shape=tuple(population["shape"])[::-1],
            vth=arrays.pop("vth"),
            bias_mant=arrays.pop("bias_mant"),
            bias_exp=population["bias_exp"],
            du=arrays.pop("du"),
            dv=arrays.pop("dv"),
            interval=self.interval,
            first=population["depth"] + 1,
            rules=population | arrays,
        )

    def _connect(self, connection: dict[str, Any], i: int) -> None:
        spikes = self._spikes(connection["source"], connection["waits"], connection["delay"])
        target = self.neurons[self.places[connection["target"]]]
        bits = self._bits(connection["source"])
        shape = target.a_in.shape
        port = target.a2_in if connection["port"] else target.a_in
        for output in weighted(connection, self.params, i, spikes, bits, shape):
            output.connect(port)

    def _bits(self, source: str) -> int:
        """The width of what a source sends, without its sign; 0 for spikes."""
        if source in self.inputs:
            given = self.network["inputs"][self.inputs[source]]
            lowest, highest = given["lowest"], given["levels"]
        else:
            lowest, highest = self.network["populations"][self.places[source]]["span"]
        bits: int = max(-lowest, highest).bit_length()
        return bits if highest > 1 or lowest < 0 else 0

    def _spikes(self, source: str, waits: int, delay: int) -> Any:
        """The port that sends what ``source`` sends, ``waits`` steps later."""
        key = source, waits, delay
        if key not in self.ports:
            how = {"waits": waits, "delay": delay, "interval": self.interval}
            if source in self.inputs:
                self.ports[key] = self._source(source, how)
            elif waits == 0 and delay == 0:
                self.ports[key] = self.neurons[self.places[source]].s_out
            else:
                self.ports[key] = self._ring(self.places[source], how)
        return self.ports[key]

    def _source(self, name: str, how: dict[str, int]) -> OutPort:
        i = self.inputs[name]
        given = self.network["inputs"][i]
        process = SpikeSource(
            path=str(self.folder / f"input{i}.npy"),
            shape=tuple(given["shape"])[::-1],
            rows=self.samples * self.interval,
            held=given["held"],
            **how,
        )
        self.sources.append(process)
        return process.s_out

    def _ring(self, i: int, how: dict[str, int]) -> OutPort:
        spikes = self.neurons[i].s_out
        first = self.network["populations"][i]["depth"] + 1
        ring = SpikeRing(shape=spikes.shape, first=first, **how)
        spikes.connect(ring.s_in)
        return ring.s_out

    def _record(self, population: dict[str, Any], i: int, states: tuple[str, ...]) -> None:
        neurons, first = self.neurons[i], population["depth"] + 1
        shape = neurons.s_out.shape
        sink = SpikeSink(shape=shape, folder=self.folder / str(i), first=first, states=states)
        neurons.s_out.connect(sink.s_in)
        for name in states:
            getattr(neurons, f"{name}_out").connect(getattr(sink, f"{name}_in"))

    def _joined(self) -> AbstractProcess:
        """A process that all others are connected to."""
        first, *others = [*self.sources, *self.neurons]
        joined = find_processes(first)
        for process in others:
            if process not in joined:
                first.joins.connect(process.joined)
                joined = find_processes(first)
        return first


def kept(network: dict[str, Any], population: dict[str, Any], states: bool) -> tuple[str, ...]:
    """The states of a population that are recorded: all, or v where its classes are scored by it."""
    if states:
        return ("u", "v", *population["states"])
    readout = network["readout"]
    by_voltage = readout["rule"] != "votes" and readout["source"] == population["name"]
    return ("v",) if by_voltage else ()


def prepare(
    folder: Path, network: dict[str, Any], rasters: dict[str, np.ndarray], states: bool
) -> int:
    """Write the inputs as Lava takes them, and files for the sinks to fill; the number of samples."""
    samples = len(next(iter(rasters.values())))
    for i, given in enumerate(network["inputs"]):
        rows = rasters[given["name"]].reshape(-1, *given["shape"])
        np.save(folder / f"input{i}.npy", rows.transpose(0, *range(rows.ndim)[:0:-1]))
    for i, population in enumerate(network["populations"]):
        (folder / str(i)).mkdir()
        np.save(folder / str(i) / "done.npy", np.zeros(1, np.int64))
        sent = np.uint8 if population["graded"] is None else np.int16
        for name in ("spikes", *kept(network, population, states)):
            np.lib.format.open_memmap(
                folder / str(i) / f"{name}.npy",
                mode="w+",
                dtype=sent if name == "spikes" else np.int32,
                shape=(samples * network["timesteps"], *population["shape"][::-1]),
            )
    return samples


def run(process: Any, depths: list[int], rows: int, folder: Path, end: str | None) -> None:
    """Run until every sink has ``rows`` rows. Raises RuntimeError when a process of Lava dies.

    ``depths`` are those of the populations.

    ``end`` follows the number of the step on stderr; None shows no steps.

    Lava hangs when a process dies, so the script waits by itself and watches them.
    """
    try:
        process.run(
            condition=RunSteps(num_steps=rows + max(depths), blocking=False),
            run_cfg=Loihi2SimCfg(select_tag="fixed_pt"),
        )
        children = multiprocessing.active_children()
        done = [np.load(folder / str(i) / "done.npy", mmap_mode="r") for i in range(len(depths))]
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
    for i, population in enumerate(network["populations"]):
        for path in sorted((folder / str(i)).glob("*.npy")):
            if path.stem != "done":
                rows = np.load(path, mmap_mode="r")
                rows = rows.transpose(0, *range(rows.ndim)[:0:-1])
                size = (samples, network["timesteps"], *population["shape"])
                trace[f"{path.stem}/{population['name']}"] = rows.reshape(size)
    return trace


def predict(network: dict[str, Any], params: Any, trace: dict[str, np.ndarray]) -> np.ndarray:
    """The class of each sample, the first of those with the highest score."""
    readout = network["readout"]
    source = readout["source"]
    sent = trace[f"spikes/{source}"]
    sent = sent.reshape(*sent.shape[:2], -1).astype(np.int64)
    arrays = {name: params[f"r/{name}"] for name in readout["arrays"]}
    v = None
    if readout["rule"] != "votes":
        v = trace[f"v/{source}"].reshape(sent.shape).astype(np.int64)
    classes: np.ndarray = scores(readout, arrays, sent, v).argmax(axis=1)
    return classes


def scores(
    readout: dict[str, Any], arrays: dict[str, np.ndarray], sent: np.ndarray, v: Any
) -> np.ndarray:
    """The score of each class [N, classes] for what neurons sent, and their v, both [N, T, neurons].

    ``steps`` weighs the votes of each step, ``matrix`` those of each neuron; ``offset`` is added to the score
    of a class as often as there are votes. ``factors`` make voltages of neurons comparable.
    """
    rule, grouped = readout["rule"], (len(sent), readout["classes"], -1)
    if rule == "votes":
        steps = arrays.get("steps", np.ones(sent.shape[1], np.int64))[: sent.shape[1]]
        values = np.einsum("t,nti->ni", steps, sent)
        if "matrix" in arrays:
            scores: np.ndarray = values @ arrays["matrix"].T
            scores = scores + arrays.get("offset", 0) * steps.sum()
            return scores
    elif rule == "first":
        best: np.ndarray = ranks(sent, v).reshape(grouped).max(axis=2)
        return best
    else:
        values = {"last": v[:, -1], "mean": v.sum(axis=1), "max": v.max(axis=1)}[rule]
        values = values * arrays.get("factors", 1)
    total: np.ndarray = values.reshape(grouped).sum(axis=2)
    return total


def ranks(sent: np.ndarray, v: np.ndarray) -> np.ndarray:
    """How many neurons come behind each: later first spike, then lower v after it, then higher index.

    Of neurons that never spiked the v of the last step counts.
    """
    steps = sent.shape[1]
    fired = sent != 0
    first = np.where(fired.any(axis=1), fired.argmax(axis=1), steps)
    at = np.take_along_axis(v, np.minimum(first, steps - 1)[:, None], axis=1)[:, 0]
    index = np.broadcast_to(np.arange(sent.shape[2]), first.shape)
    order = np.lexsort((index, -at, first), axis=1)
    behind: np.ndarray = sent.shape[2] - 1 - order.argsort(axis=1)
    return behind


def check_connection(
    connection: dict[str, Any], params: dict[str, np.ndarray], i: int, size: tuple[int, int]
) -> None:
    """Raise ValueError unless connection ``i``, with (neurons, inputs), has the arrays that it names."""
    if connection["kind"] not in ("conv", "dense", "sparse"):
        raise ValueError(f"connection {i}: kind {connection['kind']!r}")
    if connection["port"] not in (0, 1):
        raise ValueError(f"connection {i}: port {connection['port']!r}")
    if connection["waits"] < 0 or connection["delay"] < 0:
        raise ValueError(f"connection {i}: a delay below zero")
    if connection["kind"] == "conv" and params[f"c{i}/weight"].ndim != 4:
        raise ValueError(f"c{i}/weight is no kernel")
    for g, group in enumerate(connection["synapse_groups"]):
        if group["sign"] not in SignMode.__members__:
            raise ValueError(f"connection {i}: a group of synapses has an unknown sign")
        weight = params[f"c{i}/weight/{g}"]
        if connection["kind"] == "dense" and weight.shape != size:
            raise ValueError(f"c{i}/weight/{g} does not fit its populations")
        if connection["kind"] == "sparse":
            places = [params[f"c{i}/{name}/{g}"] for name in ("row", "column")]
            if any(place.shape != weight.shape for place in places):
                raise ValueError(f"connection {i}: row, column and weight differ in length")


def check_network(network: dict[str, Any], params: dict[str, np.ndarray]) -> None:
    """Raise ValueError or KeyError unless ``params`` has the arrays that ``network`` names."""
    shapes = {one["name"]: one["shape"] for one in network["inputs"] + network["populations"]}
    for i, connection in enumerate(network["connections"]):
        ends = shapes[connection["target"]], shapes[connection["source"]]
        check_connection(connection, params, i, (int(np.prod(ends[0])), int(np.prod(ends[1]))))
    for i, population in enumerate(network["populations"]):
        check_population(population, params, i, network["timesteps"])
    check_readout(network, params)


def check_population(
    population: dict[str, Any], params: dict[str, np.ndarray], i: int, steps: int
) -> None:
    """Raise ValueError or KeyError unless population ``i`` has the arrays that it names."""
    if population["reset"] not in RESETS:
        raise ValueError(f"population {i}: reset {population['reset']!r}")
    if not set(population["states"]) <= set(STATES):
        raise ValueError(f"population {i}: a state that this script does not know")
    needed = {"constant": ["v_reset"]}.get(population["reset"], [])
    if missing := {"vth", "bias_mant", "du", "dv", *needed} - set(population["arrays"]):
        raise ValueError(f"population {i}: no {', '.join(sorted(missing))}")
    shape = tuple(population["shape"])[::-1]
    for name in population["arrays"]:
        if params[f"p{i}/{name}"].shape != ((steps, *shape) if name == "gain" else shape):
            raise ValueError(f"p{i}/{name} has another shape than its population")


def check_readout(network: dict[str, Any], params: dict[str, np.ndarray]) -> None:
    """Raise ValueError or KeyError unless the readout has the arrays that it names."""
    readout = network["readout"]
    if readout["rule"] not in RULES:
        raise ValueError(f"readout {readout['rule']!r}")
    shapes = {one["name"]: one["shape"] for one in network["populations"]}
    neurons, classes = int(np.prod(shapes[readout["source"]])), readout["classes"]
    sizes = {
        "steps": (network["timesteps"],),
        "factors": (neurons,),
        "matrix": (classes, neurons),
        "offset": (classes,),
    }
    for name in readout["arrays"]:
        if params[f"r/{name}"].shape != sizes[name]:
            raise ValueError(f"r/{name} does not fit the population that it reads")
    if "matrix" not in readout["arrays"] and neurons != classes * readout["population"]:
        raise ValueError("the readout does not fit the population that it reads")


def read_params(path: Path) -> dict[str, np.ndarray]:
    """lava_params.npz. Raises InputError when it is damaged or of another format."""
    remedy = "export the network again"
    try:
        with open(path, "rb") as raw, np.lib.npyio.NpzFile(raw) as file:
            params: dict[str, np.ndarray] = {key: file[key] for key in file.files}
        network = json.loads(str(params["network"]))
        version = network["format"]
        if version == FORMAT:
            check_network(network, params)
    except DAMAGED as error:
        raise InputError(f"{path}: cannot be read ({error}); {remedy}") from error
    if version != FORMAT:
        raise InputError(f"{path}: format {version!r} is not {FORMAT!r}; {remedy}")
    return params


def read_input(path: Path, network: dict[str, Any], limit: int | None) -> dict[str, np.ndarray]:
    """The first ``limit`` samples of each input. Raises InputError when they do not fit."""
    inputs = network["inputs"]
    keys = {
        one["name"]: "spikes" if len(inputs) == 1 else f"spikes/{one['name']}" for one in inputs
    }
    rasters: dict[str, np.ndarray] = {}
    try:
        with open(path, "rb") as raw, np.lib.npyio.NpzFile(raw) as file:
            for name, key in keys.items():
                rasters[name] = np.atleast_1d(file[key])[:limit]
    except DAMAGED as error:
        needed = ", ".join(map(repr, keys.values()))
        raise InputError(f"{path}: not an npz file with {needed} ({error})") from error
    for given in inputs:
        check_raster(f"{path}: {keys[given['name']]}", rasters[given["name"]], given, network)
    if len({len(raster) for raster in rasters.values()}) > 1:
        raise InputError(f"{path}: the inputs differ in their number of samples")
    return rasters


def check_raster(
    where: str, spikes: np.ndarray, given: dict[str, Any], network: dict[str, Any]
) -> None:
    """Raise InputError unless ``spikes`` is what the input ``given`` takes."""
    expected = (1 if given["held"] else network["timesteps"], *given["shape"])
    if spikes.shape[1:] != expected or len(spikes) == 0:
        wanted = ", ".join(map(str, expected))
        raise InputError(f"{where} is {spikes.shape}, the network takes (N, {wanted})")
    if not np.issubdtype(spikes.dtype, np.integer) and spikes.dtype != np.bool_:
        raise InputError(f"{where} is {spikes.dtype}, the network takes whole numbers")
    low, high = int(spikes.min()), int(spikes.max())
    if low < given["lowest"] or high > given["levels"]:
        takes = f"{given['lowest']} to {given['levels']}"
        raise InputError(f"{where} holds {low} to {high}, the network takes {takes}")


def simulate(
    rasters: dict[str, np.ndarray], params: Any, states: bool = False, end: str | None = None
) -> dict[str, np.ndarray]:
    """Run the network on a raster [N, T, *shape] of each input; the arrays of the output file.

    ``end``: see ``run``.
    """
    network = json.loads(str(params["network"]))
    with tempfile.TemporaryDirectory(prefix="lava_network_") as name:
        folder = Path(name)
        samples = prepare(folder, network, rasters, states)
        process = Graph(params, network, folder, samples, states).process
        depths = [population["depth"] for population in network["populations"]]
        run(process, depths, samples * network["timesteps"], folder, end)
        trace = {key: np.array(a) for key, a in collect(folder, network, samples).items()}
    return trace | {"prediction": predict(network, params, trace)}


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
    parser.add_argument("--states", action="store_true", help="also record all states")
    parser.add_argument(
        "--progress", action="store_true", help="print the step in lines, into a pipe too"
    )
    options = parser.parse_args()
    try:
        if not options.out.parent.is_dir():
            raise InputError(f"{options.out}: the folder {options.out.parent} does not exist")
        params = read_params(PARAMS)
        network = json.loads(str(params["network"]))
        rasters = read_input(options.input, network, options.limit)
        end = "\n" if options.progress else "\r" if sys.stderr.isatty() else None
        trace = simulate(rasters, params, options.states, end)
        save(options.out, trace)
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    samples, populations = len(next(iter(rasters.values()))), len(network["populations"])
    print(f"{options.out}: {samples} samples, {populations} populations")
    return 0


if __name__ == "__main__":
    sys.exit(main())
