"""Events to T frames, the steps of a network: uint8 [T, polarity, H, W], or [T, channels].

``count``: frames of equally many events, floor(E/T) each, and the last one has the rest as well.
``time``: frames of equal duration, floor((t_last - t_first)/T) each, and the last one has the rest.
These are the two rules of SpikingJelly's datasets (``split_by="number"`` and ``"time"``), with which
the results of the literature were made. ``window`` begins at zero instead and ends at a fixed time,
so that a frame means the same time in every sample; what comes later is left out, and counted.

An entry counts the events of its place and frame, and is cut off at ``levels``; 1 gives spikes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
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
        inside = step < self.timesteps
        address = [step] + [
            values.astype(np.int64) * new // old
            for values, old, new in zip(events.address, self.sensor, self.shape, strict=True)
        ]
        out = np.zeros((self.timesteps, *self.shape), np.uint8)
        flat = np.ravel_multi_index(tuple(a[inside] for a in address), out.shape)
        places, counts = np.unique(flat, return_counts=True)
        kept = np.minimum(counts, self.levels)
        out.reshape(-1)[places] = kept
        late = len(events) - int(inside.sum())
        return out, Tally(len(events), int((counts - kept).sum()), late)

    def steps(self, t: NDArray[np.int64]) -> NDArray[np.int64]:
        """The frame of each event, by its time or its place in the order; T or more: in none."""
        last = self.timesteps - 1
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
    """Events of some samples: all, those cut off by ``levels``, those after the window."""

    events: int = 0
    clipped: int = 0
    late: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.events + other.events, self.clipped + other.clipped, self.late + other.late
        )
