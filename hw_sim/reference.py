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
makes a CUBA neuron. What else neurons may do (``ir/neurons.py``) is in ``Neurons.step``, in this order: gain,
currents, rest, floor, threshold, what is sent, resets, adaptation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stl_deploy.chips import facts as chips
from stl_deploy.chips.arithmetic import (
    add_current,
    after_spike,
    arriving,
    decay,
    saturate,
    step_voltage,
)
from stl_deploy.ir.network import Connection, IntegerNetwork, Population, Raster
from stl_deploy.ir.synapses import IntArray
from stl_deploy.ir.units import FRACTION_BITS

Int64 = NDArray[np.int64]


@dataclass
class LayerTrace:
    """What one layer did: arrays [N, T, *shape] and counts [N, T].

    ``u`` and ``v`` (after the reset) are kept on request. ``active`` counts the neurons with
    anything to compute (what is left of the state, input or bias not zero); ``overflow`` those with
    an accumulator, current or voltage outside the chip's registers. ``active_by_core`` [N, T, G]
    splits ``active`` by the cores that the neurons were said to lie on, None where none were named.
    ``spikes`` are uint8, and int16 values where neurons send these instead. ``more`` holds the states after
    each step that only some neurons have (``Lif.states``), where u and v are kept.
    """

    spikes: NDArray[Any]
    active: Int64
    overflow: Int64
    u: IntArray | None = None
    v: IntArray | None = None
    active_by_core: Int64 | None = None
    more: dict[str, IntArray] = field(default_factory=dict)

    def __repr__(self) -> str:
        kept = [name for name, x in (("u", self.u), ("v", self.v)) if x is not None] + [*self.more]
        states = f", with {', '.join(kept)}" if kept else ""
        return (
            f"LayerTrace(spikes {self.spikes.shape}: {np.count_nonzero(self.spikes):,} are not 0, "
            f"{int(self.overflow.sum()):,} overflows{states})"
        )

    @classmethod
    def zeros(
        cls, population: Population, size: tuple[int, int], states: bool, wide: bool
    ) -> LayerTrace:
        """Room for [N, T] steps of a population; ``wide`` states are of 64 bits."""
        kind, full = np.int64 if wide else np.int32, (*size, *population.shape)
        u, v = (np.zeros(full, kind), np.zeros(full, kind)) if states else (None, None)
        counts = np.zeros(size, np.int64), np.zeros(size, np.int64)
        sent = np.uint8 if population.neurons.graded is None else np.int16
        more = {name: np.zeros(full, kind) for name in population.neurons.states if states}
        return cls(np.zeros(full, sent), *counts, u, v, more=more)


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


class Neurons:
    """A population's neurons of N samples and their state: int64 [N, *shape] each.

    ``u2`` is the second current, ``q`` what is added to thresholds, ``rest`` the steps left to rest.
    """

    def __init__(self, population: Population, samples: int, chip: chips.Chip) -> None:
        self.neurons, self.limit = population.neurons, chip.state_limit
        self.most = (1 << 62) if chip.accumulator_limit is None else chip.accumulator_limit
        self.u = np.zeros((samples, *population.shape), np.int64)
        self.u2, self.q, self.rest = (np.zeros_like(self.u) for _ in range(3))
        self.v = self.u + self.neurons.v0

    def step(
        self, t: int, a: Int64, a2: Int64
    ) -> tuple[IntArray, NDArray[np.bool_], NDArray[np.bool_]]:
        """What is sent in step ``t``, where ``a`` and ``a2`` arrive at the currents.

        With it, where there was anything to compute, and where a register overflowed.
        """
        n, limit = self.neurons, self.limit
        gain = None if n.gain is None else n.gain[t]
        active = (decay(self.u, n.du + 1) != 0) | (self.v != 0) | (a != 0) | (n.bias != 0)
        active |= (self.q != 0) | (self.rest != 0)
        over = (np.abs(a) >= self.most) | (np.abs(a2) >= self.most)
        self.u, wrapped = add_current(self.u, arriving(a, limit, n.bias, gain), n.du, limit)
        over |= wrapped
        if n.du2 is not None:
            active |= (decay(self.u2, n.du2 + 1) != 0) | (a2 != 0)
            self.u2, wrapped = add_current(self.u2, arriving(a2, limit, 0, gain), n.du2, limit)
            over |= wrapped
        bias = n.bias if gain is None else np.zeros((), np.int64)
        v, saturated = step_voltage(self.v, self.u + self.u2, bias, n.dv, limit)
        resting = self.rest != 0
        v = np.where(resting, self.v, v)
        over |= saturated & ~resting
        if n.floor is not None:
            v = np.maximum(v, n.floor)
        threshold = n.vth.astype(np.int64) << FRACTION_BITS
        s = (v > threshold + self.q) & ~resting if n.fires else np.zeros(v.shape, np.bool_)
        sent: IntArray = s.astype(np.uint8)
        if n.graded is not None:
            value = (v if n.fires else a) >> n.graded.shift
            value = np.clip(value, -n.graded.levels, n.graded.levels)
            sent = np.where(s | (not n.fires), value, 0).astype(np.int16)
        self.v = after_spike(v, s, threshold, n.reset, n.v_reset)
        if n.reset_current:
            self.u, self.u2 = np.where(s, 0, self.u), np.where(s, 0, self.u2)
        self.rest = np.where(s, n.hold, np.where(self.rest > 0, self.rest - 1, self.rest))
        if n.adapts:
            self.q = saturate(decay(self.q, n.dq) + np.where(s, n.adapt, 0), limit)
        return sent, active, over

    def state(self, name: str) -> Int64:
        """One of the states, by its name in a trace."""
        states = {"u": self.u, "v": self.v, "u2": self.u2, "q": self.q, "rest": self.rest}
        return states[name]


class _Run:
    """A population on its way through the steps of all samples.

    ``arrived`` int64 [2, N, T, *shape] is what comes to each current from outside the part that it runs with,
    known before the first step; ``within`` are its connections from inside it.
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
        wide, states = (
            self.chip.state_limit is None,
            states or _is_read_by_voltage(network, population),
        )
        self.trace = LayerTrace.zeros(population, size, states, wide)
        self.by_core = None if cores is None else ByCore(cores)
        if self.by_core is not None:
            self.trace.active_by_core = np.zeros((*size, self.by_core.cores), np.int64)
        self.neurons = Neurons(population, size[0], self.chip)
        self.arrived = np.zeros((2, *size, *population.shape), np.int64)
        self.within: list[Connection] = []

    def hear(self, sent: Mapping[str, IntArray], part: Sequence[Population]) -> None:
        """Add up what comes from outside ``part``, all steps at once."""
        inside = {population.name for population in part}
        samples, steps = self.arrived.shape[1:3]
        for c in self.network.into(self.population.name):
            if c.source in inside:
                self.within.append(c)
            elif c.delay < steps:
                early = sent[c.source][:, : steps - c.delay]
                flat = early.reshape(-1, *early.shape[2:])
                sums = c.sums(flat, self.network.levels(c.source))
                self.arrived[c.port, :, c.delay :] += sums.reshape(
                    samples, -1, *self.population.shape
                )

    def step(self, t: int, sent: Mapping[str, IntArray]) -> None:
        """Step ``t``, after that of all populations of the part that stand before this one."""
        a = [self.arrived[0, :, t], self.arrived[1, :, t]]
        for c in self.within:
            if t >= c.delay:
                sums = c.sums(sent[c.source][:, t - c.delay], self.network.levels(c.source))
                a[c.port] = a[c.port] + sums.reshape(a[c.port].shape)
        spikes, active, over = self.neurons.step(t, *a)
        trace, axes = self.trace, tuple(range(1, spikes.ndim))
        trace.spikes[:, t] = spikes
        trace.active[:, t] = active.sum(axes)
        trace.overflow[:, t] = over.sum(axes)
        if self.by_core is not None and trace.active_by_core is not None:
            trace.active_by_core[:, t] = self.by_core(active.reshape(len(active), -1))
        kept = {"u": trace.u, "v": trace.v, **trace.more}
        for name, room in kept.items():
            if room is not None:
                room[:, t] = self.neurons.state(name)


def _is_read_by_voltage(network: IntegerNetwork, population: Population) -> bool:
    return network.readout.by_voltage and network.readout.source == population.name


@dataclass
class Trace:
    """What a network did on N samples, layer by layer, hop-aligned: step t saw the input of step t."""

    layers: dict[str, LayerTrace] = field(default_factory=dict)
    predictions: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    def __repr__(self) -> str:
        lines = [
            f"Trace of {len(self.predictions):,} samples, predictions {self.predictions.shape}"
        ]
        return "\n".join(lines + [f"  {name}: {layer!r}" for name, layer in self.layers.items()])


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
    last = trace.layers[network.readout.source]
    trace.predictions = network.readout.predict(last.spikes, last.v)
    return trace
