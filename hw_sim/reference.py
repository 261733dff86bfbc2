"""The definition of the integer network, in numpy. Every other backend equals this, bit for bit.

Units: a weight is an integer; u and v carry six fractional bits; vth counts 64 units of v. One
time step of one neuron, as Loihi and Lava's ``fixed_pt`` model take it (docs/numerics.md):

    a   = sum over its connections of (sum of w * s) << exp
    u'  = wrap32( u * (4096 - (du + 1)) / 4096, toward zero  +  wrap32(a << 6) ), wrapped once into M
    v'  = saturate( wrap32( v * (4096 - dv) / 4096, toward zero  +  u' + (bias_mant << bias_exp) ) )
    s'  = v' > vth << 6;   where s':  v' = 0, or with reset "subtract" v' - (vth << 6)

s is what the connection's source sends in the step that lies the connection's delay before this one.
Populations step in the network's order, so that a spike crosses connections without a delay in its own
step. u, v and s are 0 before the first step of every sample. du = 4095 remembers no current, any other du
makes a CUBA neuron.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stl_deploy.chips import facts as chips
from stl_deploy.chips.arithmetic import decay, fire, step_current, step_voltage
from stl_deploy.ir.network import Connection, IntegerNetwork, Population, Raster
from stl_deploy.ir.synapses import IntArray, Shape

Int64 = NDArray[np.int64]


@dataclass
class LayerTrace:
    """What one layer did: arrays [N, T, *shape] and counts [N, T].

    ``u`` and ``v`` (after the reset) are kept on request. ``active`` counts the neurons with
    anything to compute (what is left of the state, input or bias not zero); ``overflow`` those with
    an accumulator, current or voltage outside the chip's registers. ``active_by_core`` [N, T, G]
    splits ``active`` by the cores that the neurons were said to lie on, None where none were named.
    """

    spikes: NDArray[np.uint8]
    active: Int64
    overflow: Int64
    u: IntArray | None = None
    v: IntArray | None = None
    active_by_core: Int64 | None = None

    @classmethod
    def zeros(cls, shape: Shape, size: tuple[int, int], states: bool, wide: bool) -> LayerTrace:
        """Room for [N, T] steps of a population of ``shape``; ``wide`` states are of 64 bits."""
        kind, full = np.int64 if wide else np.int32, (*size, *shape)
        u, v = (np.zeros(full, kind), np.zeros(full, kind)) if states else (None, None)
        counts = np.zeros(size, np.int64), np.zeros(size, np.int64)
        return cls(np.zeros(full, np.uint8), *counts, u, v)


class ByCore:
    """Sums over the neurons of each core, for neurons [*shape] whose cores are ``cores`` [neurons]."""

    def __init__(self, cores: IntArray) -> None:
        self.order = np.argsort(cores, kind="stable")
        self.held, self.starts = np.unique(cores[self.order], return_index=True)
        self.cores = int(cores.max()) + 1

    def __call__(self, values: NDArray[Any]) -> Int64:
        """int64 [..., G] of values [..., neurons]; a core that holds none has none."""
        total = np.zeros((*values.shape[:-1], self.cores), np.int64)
        ordered = values[..., self.order]
        total[..., self.held] = np.add.reduceat(ordered, self.starts, axis=-1, dtype=np.int64)
        return total


class _Run:
    """A population on its way through the steps of all samples, its state in ``u`` and ``v``.

    ``arrived`` int64 [N, T, *shape] is what comes from outside the part that it runs with, known
    before the first step; ``within`` are its connections from inside it.
    """

    def __init__(
        self,
        network: IntegerNetwork,
        population: Population,
        size: tuple[int, int],
        states: bool,
        cores: IntArray | None,
    ) -> None:
        self.network, self.population = network, population
        self.chip = chips.of(network)
        self.trace = LayerTrace.zeros(population.shape, size, states, self.chip.state_limit is None)
        self.by_core = None if cores is None else ByCore(cores)
        if self.by_core is not None:
            self.trace.active_by_core = np.zeros((*size, self.by_core.cores), np.int64)
        self.u = self.v = np.zeros((size[0], *population.shape), np.int64)
        self.arrived = np.zeros((*size, *population.shape), np.int64)
        self.within: list[Connection] = []

    def hear(self, sent: Mapping[str, IntArray], part: Sequence[Population]) -> None:
        """Add up what comes from outside ``part``, all steps at once."""
        inside = {population.name for population in part}
        samples, steps = self.arrived.shape[:2]
        for c in self.network.into(self.population.name):
            if c.source in inside:
                self.within.append(c)
            elif c.delay < steps:
                early = sent[c.source][:, : steps - c.delay]
                flat = early.reshape(-1, *early.shape[2:])
                sums = c.sums(flat, self.network.levels(c.source))
                self.arrived[:, c.delay :] += sums.reshape(samples, -1, *self.population.shape)

    def step(self, t: int, sent: Mapping[str, IntArray]) -> None:
        """Step ``t``, after that of all populations of the part that stand before this one."""
        a, neurons, limit = self.arrived[:, t], self.population.neurons, self.chip.state_limit
        for c in self.within:
            if t >= c.delay:
                sums = c.sums(sent[c.source][:, t - c.delay], 1)
                a = a + sums.reshape(a.shape)
        active = (
            (decay(self.u, neurons.du + 1) != 0) | (self.v != 0) | (a != 0) | (neurons.bias != 0)
        )
        self.u, wrapped = step_current(self.u, a, neurons.du, limit)
        v, saturated = step_voltage(self.v, self.u, neurons.bias, neurons.dv, limit)
        self.v, s = fire(v, neurons.vth, neurons.reset)
        most = (1 << 62) if self.chip.accumulator_limit is None else self.chip.accumulator_limit
        self._write(t, s, active, (np.abs(a) >= most) | wrapped | saturated)

    def _write(
        self, t: int, spikes: NDArray[np.bool_], active: NDArray[np.bool_], over: NDArray[np.bool_]
    ) -> None:
        trace, axes = self.trace, tuple(range(1, spikes.ndim))
        trace.spikes[:, t] = spikes
        trace.active[:, t] = active.sum(axes)
        trace.overflow[:, t] = over.sum(axes)
        if self.by_core is not None and trace.active_by_core is not None:
            trace.active_by_core[:, t] = self.by_core(active.reshape(len(active), -1))
        if trace.u is not None and trace.v is not None:
            trace.u[:, t], trace.v[:, t] = self.u, self.v


@dataclass
class Trace:
    """What a network did on N samples, layer by layer, hop-aligned: step t saw the input of step t."""

    layers: dict[str, LayerTrace] = field(default_factory=dict)
    predictions: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))


def run(
    network: IntegerNetwork,
    raster: Raster,
    states: bool = False,
    cores: Mapping[str, IntArray] | None = None,
) -> Trace:
    """Run ``network`` on a raster [N, T, *input_shape], or one by input, all samples at once.

    ``cores`` holds, for each population that ``active_by_core`` is wanted of, the core of every neuron:
    int [neurons], in C order, counted from 0 within the population.
    """
    sent: dict[str, IntArray] = network.rasters(raster)
    size = next(iter(sent.values())).shape[:2]
    trace = Trace()
    for part in network.parts:
        runs = [
            _Run(network, population, size, states, (cores or {}).get(population.name))
            for population in part
        ]
        sent |= {run.population.name: run.trace.spikes for run in runs}
        for run in runs:
            run.hear(sent, part)
        for t in range(size[1]):
            for run in runs:
                run.step(t, sent)
        trace.layers |= {run.population.name: run.trace for run in runs}
    trace.layers = {p.name: trace.layers[p.name] for p in network.populations}
    trace.predictions = network.readout.predict(trace.layers[network.readout.source].spikes)
    return trace
