"""The integer network again, fast: equal to ``reference`` bit for bit, and tested against it.

Weights stay int8 and sums are int16 or int32, whichever the layer's worst one-sided sum fits; weights of more
than 8 bits stay int16, with sums of int32. Every partial sum of any input lies between the sum of the
negative and the sum of the positive weights, times the largest input. Voltages are int32 where
``bounds.voltage_range`` shows that no register can overflow, else int64 with the reference's rules
(docs/numerics.md, "The engine"). What neither covers runs in the reference.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from stl_deploy.chips import facts as chips
from stl_deploy.hw_sim import kernels, reference
from stl_deploy.hw_sim.layouts import memory_shape
from stl_deploy.hw_sim.plans import PLANS, Bytes, Int64, Plan, core_count
from stl_deploy.hw_sim.reference import LayerTrace, Trace
from stl_deploy.ir import kinds
from stl_deploy.ir.chain import Layer
from stl_deploy.ir.network import IntegerNetwork
from stl_deploy.ir.synapses import IntArray
from stl_deploy.spread import cores

Part = TypeVar("Part")
TASK = 1 << 6  # samples that one thread takes at a time
TASK_BYTES = 8 << 20  # and no more than so many bytes of one layer's spikes
MEMORY = 128 << 20  # bytes that the traces of a batch may take
BYTES_OF_STATES = 17  # of one entry: a spike, u and v


def run(
    network: IntegerNetwork,
    raster: IntArray,
    states: bool = False,
    cores: Mapping[str, IntArray] | None = None,
) -> Trace:
    """Run ``network`` on a raster [N, T, *input_shape]; the arguments are the reference's."""
    return Engine(network, cores).run(raster, states)


def run_layer(
    network: IntegerNetwork,
    layer: Layer,
    inputs: IntArray,
    states: bool = False,
    cores: IntArray | None = None,
) -> LayerTrace:
    """Run one layer of ``network`` on the spikes of the layer before it."""
    given = None if cores is None else {layer.name: cores}
    return Engine(network, given).run_layer(layer, inputs, states)


def batch_size(network: IntegerNetwork, states: bool = False) -> int:
    """Samples at a time whose traces fit into MEMORY, and into a part of the memory that is free."""
    entries = math.prod(network.input_shape) + sum(layer.neurons for layer in network.layers)
    sample = entries * network.timesteps * (BYTES_OF_STATES if states else 1)
    return max(1, min(256, min(MEMORY, _free_memory() // 8) // sample))


def _free_memory() -> int:
    """Bytes of memory that nobody uses; as good as endless where the system does not say."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 1 << 62


class Engine:
    """A network prepared to run on many rasters; ``cores`` as in ``reference.run``."""

    def __init__(
        self, network: IntegerNetwork, cores: Mapping[str, IntArray] | None = None
    ) -> None:
        self.network = network
        self.cores = cores or {}
        self._plans: dict[tuple[int, int, bool], tuple[Layer, Plan | None]] = {}

    def run(
        self,
        raster: IntArray,
        states: bool = False,
        forced: Mapping[str, IntArray] | None = None,
    ) -> Trace:
        """Run all layers on a raster [N, T, *input_shape]; ``forced`` as in ``reference.run``."""
        layers = self.network.layers
        if forced is not None:
            return reference.run(self.network, raster, states, self.cores, forced)
        traces = self._run(layers, raster, states)
        return Trace(
            {layer.name: did for layer, did in zip(layers, traces, strict=True)},
            self.network.readout.predict(traces[-1].spikes),
        )

    def run_layer(self, layer: Layer, inputs: IntArray, states: bool = False) -> LayerTrace:
        """Run one layer on inputs [N, T, *its input_shape]."""
        return self._run((layer,), inputs, states)[0]

    def _run(self, layers: tuple[Layer, ...], raster: IntArray, states: bool) -> list[LayerTrace]:
        """Run a chain of layers, samples in parallel, each task through all layers."""
        wide = chips.of(self.network).state_limit is None
        outs = [
            _Out.zeros(layer, raster.shape[:2], states, wide, self.cores.get(layer.name))
            for layer in layers
        ]
        plans = [self._plan(layer, raster.shape[1], states) for layer in layers]
        levels = self.network.input_limit(layers[0])

        def task(part: slice) -> None:
            x: IntArray = raster[part]
            for layer, plan, out in zip(layers, plans, outs, strict=True):
                ready = _in_memory_order(x, layer, levels if out is outs[0] else None)
                if plan is None or ready is None:
                    cores = self.cores.get(layer.name)
                    out.put(part, reference.run_layer(self.network, layer, x, states, cores))
                else:
                    plan.run(ready, out.part(part))
                x = out.trace(part).spikes

        in_parallel(task, _parts(raster, layers))
        return [out.trace(slice(None)) for out in outs]

    def _plan(self, layer: Layer, steps: int, states: bool) -> Plan | None:
        """The plan of ``layer`` for rasters of so many steps, made once."""
        key = id(layer), steps, states
        if key not in self._plans:
            # The layer is kept with its plan, so that its id stays its own.
            self._plans[key] = (
                layer,
                _plan(self.network, layer, steps, states, self.cores.get(layer.name)),
            )
        return self._plans[key][1]


def _plan(
    network: IntegerNetwork, layer: Layer, steps: int, states: bool, cores: IntArray | None
) -> Plan | None:
    """How to run ``layer``, None where the reference has to."""
    if kinds.layer_unknown_fields(layer):
        return None
    recurrent = None if layer.recurrent is None else layer.recurrent.kind
    planner = PLANS.get((layer.kind, layer.synapses.kind, recurrent))
    return None if planner is None else planner(network, layer, steps, states, cores)


def in_parallel(task: Callable[[Part], None], parts: Sequence[Part]) -> None:
    """Do all parts; the compiled loops run without Python's lock."""
    workers = min(cores(), len(parts))
    if workers <= 1:
        for part in parts:
            task(part)
        return
    with ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(task, parts):
            pass


def _parts(raster: IntArray, layers: tuple[Layer, ...]) -> list[slice]:
    """Samples of each task: few enough for the caches."""
    samples, steps = raster.shape[:2]
    largest = steps * max(max(layer.neurons, math.prod(layer.input_shape)) for layer in layers)
    return in_turns(samples, min(TASK, max(1, TASK_BYTES // max(1, largest))))


def in_turns(count: int, most: int) -> list[slice]:
    """Parts of at most ``most`` of ``count``, as alike as can be and as many for every thread."""
    tasks = -(-count // most)
    tasks = min(count, -(-tasks // cores()) * cores())
    ends = [count * i // tasks for i in range(tasks + 1)] if tasks else [0]
    return [slice(*ends) for ends in itertools.pairwise(ends)]


def _in_memory_order(x: IntArray, layer: Layer, levels: int | None) -> Bytes | None:
    """Inputs [N, T, ...] as uint8 in memory order; None where a value is not in 0..``levels``.

    Without ``levels`` they are the engine's own spikes and not looked at.
    """
    if x.dtype.kind not in "bui" or not x.size:
        return None
    if x.shape[2:] != layer.input_shape:
        x = x.reshape(*x.shape[:2], *layer.input_shape)
    if len(layer.input_shape) == 3:
        x = np.moveaxis(x, 2, -1)
    x = np.ascontiguousarray(x.view(np.uint8) if x.dtype == np.bool_ else x)
    if levels is not None and (x.min() < 0 or x.max() > min(levels, 255)):
        return None
    # Writable as well: numba would compile everything again for a read-only array.
    return np.require(x, np.uint8, ["C", "W"])


@dataclass
class _Out:
    """The results of one layer for all samples, in memory order."""

    layer: Layer
    spikes: Bytes
    active: Int64
    overflow: Int64
    u: IntArray | None
    v: IntArray | None
    by_core: bool

    @classmethod
    def zeros(
        cls,
        layer: Layer,
        size: tuple[int, ...],
        states: bool,
        wide: bool,
        cores: IntArray | None,
    ) -> _Out:
        """Results of ``size`` [N, T]."""
        shape = (*size, *memory_shape(layer.shape))
        kind = np.int64 if wide else np.int32
        return cls(
            layer,
            np.empty(shape, np.uint8),
            np.zeros((*size, core_count(cores)), np.int64),
            np.zeros(size, np.int64),
            np.zeros(shape, kind) if states else None,
            np.zeros(shape, kind) if states else None,
            cores is not None,
        )

    def part(self, part: slice) -> kernels.Did:
        """Where to write the results of some samples."""
        none = np.zeros((0, 0, 0), np.int32)
        size = (*self.spikes[part].shape[:2], self.layer.neurons)
        return kernels.Did(
            self.spikes[part].reshape(size),
            self.active[part],
            self.overflow[part],
            none if self.u is None else self.u[part].reshape(size),
            none if self.v is None else self.v[part].reshape(size),
        )

    def put(self, part: slice, did: LayerTrace) -> None:
        """Take over what the reference did on some samples."""
        mine = self.trace(part)
        mine.spikes[:] = did.spikes
        self.overflow[part] = did.overflow
        self.active[part] = (
            did.active[:, :, None] if did.active_by_core is None else did.active_by_core
        )
        for here, there in ((mine.u, did.u), (mine.v, did.v)):
            if here is not None and there is not None:
                here[:] = there

    def trace(self, part: slice) -> LayerTrace:
        """The results of some samples as [N, T, *shape]: views, not copies."""

        def view(x: NDArray[Any]) -> NDArray[Any]:
            return np.moveaxis(x[part], -1, 2) if len(self.layer.shape) == 3 else x[part]

        return LayerTrace(
            view(self.spikes),
            self.active[part].sum(axis=2),
            self.overflow[part],
            None if self.u is None else view(self.u),
            None if self.v is None else view(self.v),
            self.active[part] if self.by_core else None,
        )
