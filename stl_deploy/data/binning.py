"""Events to T frames, the steps of a network: uint8 [T, polarity, H, W], or [T, channels].

``count``: frames of equally many events, floor(E/T) each, and the last one has the rest as well.
``time``: frames of equal duration, floor((t_last - t_first)/T) each, and the last one has the rest.
These are the two rules of SpikingJelly's datasets (``split_by="number"`` and ``"time"``), with which
the results of the literature were made. ``window`` begins at zero instead and ends at a fixed time,
so that a frame means the same time in every sample; what comes before or later is left out, and counted.
A sample without events has frames of zeros.

An entry counts the events of its place and frame, and is cut off at ``levels``; 1 gives spikes.
"""

from __future__ import annotations

import math
import operator
from dataclasses import astuple, dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from stl_deploy.data.events import Events

Binning = Literal["count", "time", "window"]


@dataclass(frozen=True)
class Frames:
    """How events become frames: of ``sensor`` (polarity, H, W) or (channels,), scaled to ``shape``.

    Scaling takes address a of n to floor(a * m / n), so that each new place has its share of old
    ones. ``window``: microseconds, for that binning.
    """

    sensor: tuple[int, ...]
    shape: tuple[int, ...]
    timesteps: int
    binning: Binning
    levels: int = 1
    window: int = 0

    def make(self, events: Events) -> tuple[NDArray[np.uint8], Tally]:
        """Frames uint8 [T, *shape] of one sample, and what was cut off or left out."""
        step = self.steps(events.t)
        inside = (step >= 0) & (step < self.timesteps)
        address = [step] + [
            values.astype(np.int64) * new // old
            for values, old, new in zip(events.address, self.sensor, self.shape, strict=True)
        ]
        out = np.zeros((self.timesteps, *self.shape), np.uint8)
        flat = np.ravel_multi_index(tuple(a[inside] for a in address), out.shape)
        places, counts = np.unique(flat, return_counts=True)
        kept = np.minimum(counts, self.levels)
        out.reshape(-1)[places] = kept
        return out, Tally(
            len(events),
            int((counts - kept).sum()),
            late=int((step >= self.timesteps).sum()),
            early=int((step < 0).sum()),
            empty=int(not len(events)),
            reordered=events.reordered,
            wrapped=events.wraps,
        )

    def steps(self, t: NDArray[np.int64]) -> NDArray[np.int64]:
        """The frame of each event, by its time or its place in the order; below 0, T or more: in none."""
        last = self.timesteps - 1
        if not len(t):
            return t
        if self.binning == "window":
            return np.asarray(t * self.timesteps // self.window, np.int64)
        if self.binning == "count":
            step, each = np.arange(len(t)), len(t) // self.timesteps
        else:
            step, each = t - t[0], int(t[-1] - t[0]) // self.timesteps
        return np.asarray(np.minimum(step // max(1, each), last), np.int64)

    @property
    def entries(self) -> int:
        """Entries of one sample."""
        return self.timesteps * math.prod(self.shape)


@dataclass(frozen=True)
class Tally:
    """Events of some samples: all, those cut off by ``levels``, those after and before the window.

    ``empty`` samples have no events; ``reordered`` events stood behind a later one in their file, and
    ``wrapped`` is how often clocks began again at zero.
    """

    events: int = 0
    clipped: int = 0
    late: int = 0
    early: int = 0
    empty: int = 0
    reordered: int = 0
    wrapped: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(*map(operator.add, astuple(self), astuple(other)))
