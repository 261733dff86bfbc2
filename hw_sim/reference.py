"""The definition of the integer network, in numpy. Every other backend equals this, bit for bit.

Units: a weight is an integer; u and v carry six fractional bits; vth counts 64 units of v. One
time step of one neuron, as Loihi and Lava's ``fixed_pt`` model take it (docs/numerics.md):

    a   = (sum of w * s_in  +  sum of w_recurrent * s) << exp
    u'  = wrap32( u * (4096 - (du + 1)) / 4096, toward zero  +  wrap32(a << 6) ), wrapped once into M
    v'  = saturate( wrap32( v * (4096 - dv) / 4096, toward zero  +  u' + (bias_mant << bias_exp) ) )
    s'  = v' > vth << 6;   where s':  v' = 0, or with reset "subtract" v' - (vth << 6)

s_in are the inputs of this step, s the layer's own spikes of the step before. u, v and s are 0 before
the first step of every sample. du = 4095 remembers no current, any other du makes a CUBA neuron.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stl_deploy.chips import facts as chips
from stl_deploy.chips.arithmetic import decay, fire, step_current, step_voltage
from stl_deploy.ir.network import IntegerNetwork, Layer
from stl_deploy.ir.synapses import IntArray

Int64 = NDArray[np.int64]


def accumulate(layer: Layer, spikes: IntArray, levels: int = 1) -> Int64:
    """a [N, *shape] for inputs 0..levels [N, *input_shape]: the weighted sum, shifted by ``exp``."""
    return layer.synapses.sums(spikes, levels).reshape(-1, *layer.shape) << layer.exp


def feed_back(layer: Layer, spikes: NDArray[Any]) -> Int64:
    """What the layer's own ``spikes`` [N, *shape] of the step before add to a [N, *shape]."""
    if layer.recurrent is None:
        return np.zeros(spikes.shape, np.int64)
    return layer.recurrent.sums(spikes).reshape(-1, *layer.shape) << layer.exp


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


def run_lif(
    layer: Layer,
    inputs: IntArray,
    chip: chips.Chip,
    levels: int = 1,
    states: bool = False,
    cores: IntArray | None = None,
) -> LayerTrace:
    """Run a layer on inputs [N, T, *input_shape]; the state starts at zero for every sample.

    An OR pool is a LIF too (``network.OrPool``). ``cores`` int [neurons] numbers each neuron's core within
    the layer, for ``active_by_core``.
    """
    n, steps = inputs.shape[:2]
    size = (n, steps, *layer.shape)
    a = accumulate(layer, inputs.reshape(-1, *layer.input_shape), levels).reshape(size)
    trace = LayerTrace(
        np.zeros(size, np.uint8), np.zeros((n, steps), np.int64), np.zeros((n, steps), np.int64)
    )
    if states:
        wide = np.int64 if chip.state_limit is None else np.int32
        trace.u, trace.v = np.zeros(size, wide), np.zeros(size, wide)
    by_core = None if cores is None else ByCore(cores)
    if by_core is not None:
        trace.active_by_core = np.zeros((n, steps, by_core.cores), np.int64)
    axes = tuple(range(1, len(layer.shape) + 1))
    too_large = (1 << 62) if chip.accumulator_limit is None else chip.accumulator_limit
    bias, vth = layer.bias, layer.vth
    u = v = np.zeros((n, *layer.shape), np.int64)
    s = np.zeros((n, *layer.shape), np.bool_)
    for t in range(steps):
        now = a[:, t] + feed_back(layer, s)
        active = (decay(u, layer.du + 1) != 0) | (v != 0) | (now != 0) | (bias != 0)
        u, wrapped = step_current(u, now, layer.du, chip.state_limit)
        v, saturated = step_voltage(v, u, bias, layer.dv, chip.state_limit)
        v, s = fire(v, vth, layer.reset)
        trace.spikes[:, t] = s
        trace.active[:, t] = active.sum(axes)
        if by_core is not None and trace.active_by_core is not None:
            trace.active_by_core[:, t] = by_core(active.reshape(n, -1))
        trace.overflow[:, t] = ((np.abs(now) >= too_large) | wrapped | saturated).sum(axes)
        if trace.u is not None and trace.v is not None:
            trace.u[:, t], trace.v[:, t] = u, v
    return trace


def run_layer(
    network: IntegerNetwork,
    layer: Layer,
    inputs: IntArray,
    states: bool = False,
    cores: IntArray | None = None,
) -> LayerTrace:
    """Run one layer of ``network`` on the spikes of the layer before it.

    With ``cores`` (the core of each neuron, C order) active neurons are counted by core too.
    """
    levels = network.input_limit(layer)
    return run_lif(layer, inputs, chips.of(network), levels, states, cores)


@dataclass
class Trace:
    """What a network did on N samples, layer by layer, hop-aligned: step t saw the input of step t."""

    layers: dict[str, LayerTrace] = field(default_factory=dict)
    predictions: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))


def run(
    network: IntegerNetwork,
    raster: IntArray,
    states: bool = False,
    cores: Mapping[str, IntArray] | None = None,
) -> Trace:
    """Run ``network`` on a raster [N, T, *input_shape], all samples at once.

    ``cores`` holds, for each layer that ``active_by_core`` is wanted of, the core of every neuron:
    int [neurons], in C order, counted from 0 within the layer.
    """
    trace = Trace()
    spikes: IntArray = raster
    for layer in network.layers:
        own = None if cores is None else cores.get(layer.name)
        trace.layers[layer.name] = run_layer(network, layer, spikes, states, own)
        spikes = trace.layers[layer.name].spikes
    trace.predictions = network.readout.predict(spikes)
    return trace
