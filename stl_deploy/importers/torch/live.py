"""The user's own network, run on a raster: what it computes, and not what was read of it.

A raster [N, T, *shape] is put into the form in which forward takes its sample. Where each value goes is what
the record says of the sample: every place of it is followed to where the float graph reads it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from functools import cached_property
from typing import Any

import nir
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stl_deploy.importers.nir.graph import Options
from stl_deploy.importers.torch.check import doubled, factor, inputs_of, own_run, raster_of
from stl_deploy.importers.torch.trace import Trace
from stl_deploy.ir import nir_graph as G
from stl_deploy.ir.floats import decode

Array = NDArray[Any]
Sent = dict[str, Array]
WIDE = 25  # samples that are run at once, where the form of the sample leaves that open


class Live:
    """A network and its record: runs it on rasters of the float graph that was made of it.

    Args:
        net: the network, which is left as it was.
        sample: what was recorded; its form is that of what ``forward`` takes.
        trace: the record; ``graph`` the float graph; ``options`` how it was made.
        reset: puts the states of a module's neurons to zero.
    """

    def __init__(
        self,
        net: nn.Module,
        sample: Tensor,
        trace: Trace,
        graph: nir.NIRGraph,
        options: Options,
        reset: Callable[[nn.Module], None],
    ) -> None:
        self.net, self.sample, self.trace, self.graph, self.reset = net, sample, trace, graph, reset
        self.options = options
        self.whole = next(iter(inputs_of(trace)))
        self.steps = G.float_meta(graph).timesteps
        self.loop = max(len(calls) for calls in trace.calls.values())
        populations = decode(graph).by_name
        self.shapes = {
            name: populations[name].shape
            for name in trace.calls
            if name in populations and populations[name].neurons.fires
        }
        self.wide: bool | None = None

    @cached_property
    def double(self) -> nn.Module | None:
        """A copy in float64; None of a network that cannot be copied."""
        with suppress(Exception, SystemExit):
            return doubled(self.net, 0.0, self.trace)
        return None

    def run(self, raster: Array) -> tuple[Sent, Sent | None]:
        """Spikes [N, T, *shape] of its populations for a raster [N, T, *input shape].

        They come from the network as it is, and from a copy in float64; None where it runs in float32 alone.
        Raises ValueError where forward does not take a raster of these steps.
        """
        with redirect_stdout(sys.stderr):  # what the user's code prints is not part of a result
            if self.wide is None:
                self.wide = self._may_be_wide(raster)
            single = self._spikes(self.net, raster, self.wide)
            double = None
            if self.double is not None:
                with suppress(Exception, SystemExit):  # whatever the user's own code raises
                    double = self._spikes(self.double, raster, self.wide)
        self.reset(self.net)  # of which a copy's replaced methods may still be
        return single, double

    def _may_be_wide(self, raster: Array) -> bool:
        """Whether forward takes more samples at once than the sample has, and gives the same spikes."""
        if not self._free:
            return False
        few = raster[: 2 * self._batch + 1]
        with suppress(Exception, SystemExit):  # a batch that forward has written down
            wide, narrow = (self._spikes(self.net, few, how) for how in (True, False))
            return all(np.array_equal(wide[name], narrow[name]) for name in narrow)
        return False

    @property
    def _batch(self) -> int:
        """How many samples the sample has."""
        return int(self.sample.shape[self._axes()[0]])

    def _axes(self) -> tuple[int, int | None]:
        """The axes of batch and time in the sample; None where it has no time."""
        if self.whole.at is None:
            return self._origin(0), None
        batch, time = (1, 0) if self.whole.call == 0 else (0, 1)
        return self._origin(batch), self._origin(time)

    def _origin(self, axis: int) -> int:
        """Which axis of the sample an axis behind all moves is; the same one behind a reshape."""
        for move in reversed(self.whole.facts or ()):
            axis = move.sizes[axis] if move.kind == "permute" else axis
        return axis

    def _spikes(self, net: nn.Module, raster: Array, wide: bool) -> Sent:
        """Spikes of all populations, batch by batch. Raises ValueError, and what the network raises."""
        shape, axes = list(self.sample.shape), self._axes()
        if wide:
            shape[axes[0]] = WIDE
        if axes[1] is not None and self.loop != self.steps:
            if not self._free:
                raise ValueError(f"forward reshapes {self.loop} steps, the raster has {self.steps}")
            shape[axes[1]] = self.steps
        places = self._places(tuple(shape))
        size = len(places)
        parts: dict[str, list[Array]] = {name: [] for name in self.shapes}
        for start in range(0, len(raster), size):
            batch = self._normalized(raster[start : start + size])
            given = [x.to(self._kind(net)) for x in self._given(batch, places, tuple(shape))]
            done = own_run(net, given, self.trace, self.reset)
            for name, steps in parts.items():
                calls = done.spikes.get(name, [])
                if len(calls) != self.steps:
                    raise ValueError(f"{name} runs {len(calls)} times for {self.steps} steps")
                spikes = np.stack(calls, axis=1)[: len(batch)] / factor(self.trace.modules[name])
                steps.append(spikes.reshape(len(batch), self.steps, *self.shapes[name]))
        return {name: np.concatenate(steps) for name, steps in parts.items()}

    def _kind(self, net: nn.Module) -> torch.dtype:
        """In which numbers a network takes its input."""
        return self.sample.dtype if net is self.net else torch.float64

    def _places(self, shape: tuple[int, ...]) -> NDArray[np.int64]:
        """Where in a sample of ``shape``, as one row, the values [batch, T or 1, *input shape] go."""
        at = torch.arange(int(np.prod(shape)), dtype=torch.float64).reshape(shape)
        loop = self.steps if self.whole.at is not None else 1
        batch = shape[self._axes()[0]] if self._free else None
        found = raster_of([at], self.graph, self.whole, loop, batch)
        if self.whole.at is not None and found.shape[1] != self.steps:
            raise ValueError(f"the sample has {found.shape[1]} steps, the raster {self.steps}")
        return found.astype(np.int64)

    @property
    def _free(self) -> bool:
        """Whether the record leaves the number of samples open."""
        return not any(move.kind == "reshape" for move in self.whole.facts or ())

    def _given(
        self, batch: Array, places: NDArray[np.int64], shape: tuple[int, ...]
    ) -> list[Tensor]:
        """The input of each call of forward, float64."""
        by_step = self.whole.at is None and self.loop == 1
        calls = [batch[:, t : t + 1] for t in range(batch.shape[1])] if by_step else [batch]
        if by_step and len(calls) == 1:
            calls *= self.steps  # a frame that is held
        given = []
        for values in calls:
            x = np.zeros(int(np.prod(shape)))
            where = places[: len(values)]
            x[where.ravel()] = np.broadcast_to(
                values.reshape(*values.shape[:2], *where.shape[2:]), where.shape
            ).ravel()
            given.append(torch.from_numpy(x.reshape(shape)).to(self.sample.device))
        return given

    def _normalized(self, batch: Array) -> Array:
        """(x/levels - mean)/std where the network was trained on that, channel by channel."""
        if self.options.normalize is None:
            return batch.astype(np.float64)
        ones = [1] * (batch.ndim - 3)
        mean, std = (
            np.resize(np.asarray(values, np.float64), batch.shape[2]).reshape(-1, *ones)
            for values in self.options.normalize
        )
        found: Array = (batch / self.options.levels - mean) / std
        return found
