"""How the compiled engine runs each layer: which kernels take it, with which arguments."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csc_array

from stl_deploy.chips import bounds
from stl_deploy.chips import facts as chips
from stl_deploy.hw_sim import kernels, lanes
from stl_deploy.hw_sim.account.windows import Windows
from stl_deploy.hw_sim.compiled import LANES
from stl_deploy.hw_sim.layouts import LAYOUTS, Layout, dense, memory_order, memory_shape
from stl_deploy.ir.chain import Layer, LifLayer, OrPool
from stl_deploy.ir.network import IntegerNetwork
from stl_deploy.ir.slices import Weights
from stl_deploy.ir.synapses import IntArray, Sparse
from stl_deploy.ir.units import DECAY_ONE, FORGETS, FRACTION_BITS

Bytes = NDArray[np.uint8]
Int64 = NDArray[np.int64]

SUMS = 256 << 10  # bytes of sums that a task keeps
SHIFTS = np.iinfo(np.int64).bits  # no integer can be shifted by so many


class Plan(Protocol):
    """How to run one layer, on inputs uint8 [N, T, ...] in memory order."""

    def run(self, x: Bytes, did: kernels.Did) -> None:
        """Write what the layer does on ``x``; ``did`` is zero before."""


def core_count(cores: IntArray | None) -> int:
    """How many cores ``cores`` names; one where none are named."""
    return 1 if cores is None else int(cores.max()) + 1


@dataclass(frozen=True)
class _Runs:
    """Runs of neurons that lie together in memory and on one core."""

    first: Int64
    length: Int64
    core: Int64

    @classmethod
    def of(cls, layer: Layer, starts: Int64, cores: IntArray | None) -> _Runs:
        """Runs that begin at ``starts`` and wherever the core changes."""
        core = np.zeros(layer.neurons, np.int64)
        if cores is not None:
            core = memory_order(np.asarray(cores, np.int64), layer.shape)
        first = np.union1d(starts, np.flatnonzero(np.diff(core)) + 1)
        return cls(first, np.diff(first, append=layer.neurons), core[first])


@dataclass(frozen=True)
class PoolPlan:
    """An OR pool."""

    layer: OrPool
    runs: _Runs

    @classmethod
    def of(
        cls,
        _network: IntegerNetwork,
        layer: OrPool,
        _steps: int,
        states: bool,
        cores: IntArray | None,
    ) -> PoolPlan | None:
        """None where states are wanted, or the windows do not tile the input."""
        c, h, w = layer.shape
        if states or layer.input_shape != (c, h * layer.kernel[0], w * layer.kernel[1]):
            return None
        return cls(layer, _Runs.of(layer, np.zeros(1, np.int64), cores))

    def run(self, x: Bytes, did: kernels.Did) -> None:
        """Pool, and count the windows that fire."""
        rows = x.shape[0] * x.shape[1]
        out = did.spikes.reshape(rows, *memory_shape(self.layer.shape))
        kernels.or_pool(x.reshape(rows, x.shape[2], -1), out)
        runs = self.runs
        lanes.count_rows(
            did.spikes.reshape(rows, -1),
            runs.first,
            runs.length,
            runs.core,
            did.active.reshape(rows, -1),
        )


@dataclass(frozen=True)
class LifPlan:
    """Synapses of a kind that has a layout, with their neurons.

    ``busy`` are the neurons of each core where all are active in every step, else None.
    """

    synapses: Layout
    neurons: kernels.Neurons
    plain: bool
    graded: bool
    busy: Int64 | None

    @classmethod
    def of(
        cls,
        network: IntegerNetwork,
        layer: LifLayer,
        steps: int,
        states: bool,
        cores: IntArray | None,
    ) -> LifPlan | None:
        """None where sums of 32 bits are not known to hold every input's, or shapes do not match."""
        levels = network.input_limit(layer)
        if not (fits_32_bits(layer, levels) and 0 <= layer.exp < SHIFTS):
            return None
        layout = LAYOUTS[layer.synapses.kind]
        synapses = layout(layer.synapses, layer.input_shape, layer.shape, levels)
        if synapses is None:
            return None
        plain = not states and in_lanes(synapses.first, layer)
        plain = plain and takes_the_plain_step(network, layer, steps)
        neurons, busy = _neurons(
            network, layer, (synapses.first, synapses.at, synapses.blocks), plain, cores
        )
        return cls(synapses, neurons, plain, levels > 1, busy)

    def run(self, x: Bytes, did: kernels.Did) -> None:
        """Run the samples of ``x`` from a state of zero."""
        mine = self.synapses
        rows, columns = mine.pixels
        size = mine.phases, mine.accumulators
        kind = np.int32 if self.graded else mine.sum_type
        together = _together(x.shape[0], x.shape[1], math.prod(size) * np.dtype(kind).itemsize)
        if self.busy is not None:
            did.active[:] = self.busy
        synapses = (
            x.reshape(*x.shape[:2], rows * columns, -1),
            np.empty(x.size + 1, np.uint8) if self.graded else None,
            mine.weights,
            mine.wiring,
            self.neurons,
            np.zeros((together, *size), kind),
        )
        bias = self.neurons.bias
        if self.plain:
            marks, v = np.zeros((together, len(bias)), np.uint8), np.stack([bias, bias])
            kernels.run_plain(*synapses, marks, v, did)
        else:
            sums, active = np.zeros(mine.accumulators, np.int32), np.zeros(len(bias), np.uint8)
            kernels.run_wide(*synapses, sums, active, np.zeros_like(bias), np.zeros_like(bias), did)


def _together(samples: int, steps: int, size: int) -> int:
    """Steps whose sums, ``size`` bytes each, are kept at a time: of whole samples, or of a part of one."""
    fit = max(1, SUMS // size)
    return fit if fit < steps else min(samples, fit // steps) * steps


@dataclass(frozen=True)
class RecurrentPlan:
    """A recurrent linear layer: its plan without recurrence, and its recurrent weights."""

    layer: LifPlan
    own: Layout

    @classmethod
    def of(
        cls,
        network: IntegerNetwork,
        layer: LifLayer,
        steps: int,
        _states: bool,
        cores: IntArray | None,
    ) -> RecurrentPlan | None:
        """None where the reference has to do it, see ``LifPlan``. The kernel always writes states."""
        assert layer.recurrent is not None  # by the key in PLANS
        alone = LifPlan.of(network, layer, steps, states=True, cores=cores)
        own = dense(layer.recurrent, layer.shape, layer.shape, levels=1)
        return None if alone is None or own is None else cls(alone, own)

    def run(self, x: Bytes, did: kernels.Did) -> None:
        """Run the samples of ``x`` from a state of zero."""
        mine, neurons = self.layer.synapses, self.layer.neurons
        size = len(mine.blocks), x.shape[0] * x.shape[1], mine.accumulators
        if self.layer.busy is not None:
            did.active[:] = self.layer.busy
        kernels.run_recurrent(
            x.reshape(*x.shape[:2], 1, -1),
            np.empty(x.size + 1, np.uint8) if self.layer.graded else None,
            mine.weights,
            mine.wiring,
            self.own.weights,
            self.own.wiring,
            neurons,
            np.zeros(
                (1, mine.phases, mine.accumulators),
                np.int32 if self.layer.graded else mine.sum_type,
            ),
            np.zeros((self.own.phases, self.own.accumulators), self.own.sum_type),
            np.empty(size, np.int32),
            np.empty(self.own.accumulators, np.int32),
            np.zeros(len(neurons.bias), np.uint8),
            np.zeros_like(neurons.bias),
            np.zeros_like(neurons.bias),
            did,
        )


@dataclass(frozen=True)
class SinglePlan:
    """Single connections: each input has its own weights to its own neurons."""

    weights: Windows
    neurons: kernels.Neurons
    plain: bool
    busy: Int64 | None

    @classmethod
    def of(
        cls,
        network: IntegerNetwork,
        layer: LifLayer,
        steps: int,
        states: bool,
        cores: IntArray | None,
    ) -> SinglePlan | None:
        """None where inputs are graded, or sums of 32 bits are not known to hold every input's."""
        synapses = cast(Sparse, layer.synapses)  # by the key in PLANS
        fits = synapses.size[1] * _most(synapses.weight) < 1 << 31
        if not fits or network.input_limit(layer) > 1 or not 0 <= layer.exp < SHIFTS:
            return None
        start = np.zeros(1, np.int64)
        plain = not states and in_lanes(start, layer)
        plain = plain and takes_the_plain_step(network, layer, steps)
        neurons, busy = _neurons(network, layer, (start, start, start), plain, cores)
        after, before = (
            memory_order(np.arange(size), shape)
            for size, shape in zip(synapses.size, (layer.shape, layer.input_shape), strict=True)
        )
        matrix = csc_array(synapses.matrix[after][:, before])
        matrix.sort_indices()
        return cls(Windows.of(matrix), neurons, plain, busy)

    def run(self, x: Bytes, did: kernels.Did) -> None:
        """Run the samples of ``x`` from a state of zero."""
        if self.busy is not None:
            did.active[:] = self.busy
        sums = self.weights.add(x.reshape(x.shape[0] * x.shape[1], -1))
        sums, bias = sums.reshape(*x.shape[:2], 1, -1), self.neurons.bias
        if self.plain:
            marks, v = np.zeros((x.shape[1], len(bias)), np.uint8), np.stack([bias, bias])
            kernels.sums_plain(sums, self.neurons, marks, v, did)
        else:
            active, u, v = np.zeros(len(bias), np.uint8), np.zeros_like(bias), np.zeros_like(bias)
            kernels.sums_wide(sums, self.neurons, active, u, v, did)


def _neurons(
    network: IntegerNetwork,
    layer: LifLayer,
    pieces: tuple[Int64, Int64, Int64],
    plain: bool,
    cores: IntArray | None,
) -> tuple[kernels.Neurons, Int64 | None]:
    """The neurons in pieces (first neurons, first accumulators, first neurons of blocks).

    Also the neurons of each core where all are active in every step, else None.
    """
    (first, at, blocks), chip = pieces, chips.of(network)
    runs = _Runs.of(layer, blocks, cores)
    # A bias keeps a neuron busy in every step: then there is nothing to count.
    busy = np.bincount(runs.core, runs.length).astype(np.int64) if layer.bias.all() else None
    kind = np.int32 if plain else np.int64
    far = np.iinfo(kind)
    threshold = np.clip(layer.vth.astype(np.int64) << FRACTION_BITS, far.min, far.max)
    ends = np.append(blocks, layer.neurons)
    limit = chip.accumulator_limit
    neurons = kernels.Neurons(
        bias=_of_each(layer.bias, layer).astype(kind),
        threshold=_of_each(threshold, layer).astype(kind),
        u_keep=DECAY_ONE - (layer.du + 1),
        v_keep=DECAY_ONE - layer.dv,
        exp=layer.exp,
        limit=chip.state_limit or 0,
        too_large=1 << 62 if limit is None else limit,
        subtract=layer.reset == "subtract",
        block_first=np.searchsorted(first, ends).astype(np.int64),
        first=first,
        length=np.diff(first, append=layer.neurons),
        at=at,
        block_run=np.searchsorted(runs.first, ends).astype(np.int64) * (busy is None),
        run_first=runs.first,
        run_length=runs.length,
        run_core=runs.core,
    )
    return neurons, busy


def _of_each(values: NDArray[Any], layer: LifLayer) -> NDArray[Any]:
    """One value for each neuron, in memory order."""
    return memory_order(np.broadcast_to(values, layer.shape), layer.shape)


def fits_32_bits(layer: LifLayer, levels: int) -> bool:
    """Whether no sum of inputs 0..``levels``, and no part of one, can pass 32 bits before ``exp``."""
    weight, largest = layer.synapses.weight, 0
    if layer.recurrent is not None:
        if layer.recurrent.weight.dtype != weight.dtype:
            return False
        largest = layer.neurons * _most(layer.recurrent.weight)
    return largest + int(weight[0].size) * levels * _most(weight) < 1 << 31


def _most(weight: Weights) -> int:
    """What no weight of this type exceeds; more than 32 bits hold for types that are not foreseen."""
    return {np.dtype(np.int8): 1 << 7, np.dtype(np.int16): 1 << 15}.get(weight.dtype, 1 << 62)


def in_lanes(first: Int64, layer: LifLayer) -> bool:
    """Whether all pieces of neurons, from ``first`` on, are as many as the plain step takes together."""
    return bool(np.diff(first, append=layer.neurons).min() >= LANES)


def takes_the_plain_step(network: IntegerNetwork, layer: LifLayer, steps: int) -> bool:
    """Whether ``lanes.step`` does all that a layer can need in so many steps."""
    simple = not layer.has_current and layer.reset == "zero"
    return simple and never_overflows(network, layer, steps)


def never_overflows(network: IntegerNetwork, layer: LifLayer, steps: int) -> bool:
    """Whether no input of so many steps can bring a register to its limit, or past 32 bits.

    Such a layer neither wraps nor saturates nor counts overflow.
    """
    chip = chips.of(network)
    if not (0 <= layer.du <= FORGETS and 0 <= layer.dv <= DECAY_ONE and 0 <= layer.exp <= 16):
        return False
    levels = network.input_limit(layer)
    register = 1 << 31 if chip.state_limit is None else min(chip.state_limit, 1 << 31)
    accumulator = register if chip.accumulator_limit is None else chip.accumulator_limit
    worst = _largest(bounds.layer_one_sided_sums(layer, levels))
    if worst >= accumulator or worst << FRACTION_BITS >= register:
        return False
    current = _largest(bounds.layer_current_range(layer, levels, steps))
    voltage = _largest(bounds.layer_voltage_range(layer, levels, steps))
    return max(current, voltage, int(np.abs(layer.bias).max())) < register


def _largest(span: tuple[Int64, Int64]) -> int:
    """The largest magnitude between lower bounds of at most and upper bounds of at least zero."""
    return max(-int(span[0].min()), int(span[1].max()))


Planner = Callable[[IntegerNetwork, Any, int, bool, IntArray | None], Plan | None]
# By the kinds of the layer, its synapses and its recurrent synapses. A function takes the network, a layer of
# these kinds, the steps, whether states are wanted, and the neurons' cores; it returns None where it has no
# plan. The reference runs every layer without a plan.
PLANS: dict[tuple[str, str, str | None], Planner] = {
    ("or_pool", "conv", None): PoolPlan.of,
    **{("lif", kind, None): LifPlan.of for kind in LAYOUTS},
    ("lif", "dense", "dense"): RecurrentPlan.of,
    ("lif", "sparse", None): SinglePlan.of,
}
