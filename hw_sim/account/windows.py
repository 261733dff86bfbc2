"""Columns that spikes add up, in windows of LANES rows that whole vector registers hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csc_array

from stl_deploy.hw_sim.account import kernels
from stl_deploy.hw_sim.compiled import LANES

Bytes = NDArray[np.uint8]
Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class Windows:
    """A sparse matrix [counters, neurons], to be multiplied with spikes.

    Neuron n has the windows ``windows[n]..windows[n + 1]``; the ``values`` of each, LANES together,
    belong to the counters from ``start`` on.
    """

    counters: int
    windows: Int64
    start: Int64
    values: NDArray[np.int16 | np.int32]

    @classmethod
    def of(cls, columns: csc_array) -> Windows:
        """For columns [counters, neurons], their entries in order."""
        counters, neurons = columns.shape
        neuron = np.repeat(np.arange(neurons), np.diff(columns.indptr))
        opens = _opens(columns.indptr, columns.indices)
        window = np.cumsum(opens) - 1
        start = columns.indices[opens].astype(np.int64)
        small = np.abs(columns.data.astype(np.int64)).max(initial=0) < 1 << 15
        values = np.zeros((len(start), LANES), np.int16 if small else np.int32)
        values[window, columns.indices - start[window]] = columns.data
        windows = np.searchsorted(neuron[opens], np.arange(neurons + 1))
        return cls(counters, windows.astype(np.int64), start, values.reshape(-1))

    def add(self, spikes: Bytes) -> Int32:
        """The sums of the columns of all spikes uint8 [rows, neurons]: int32 [rows, counters + LANES].

        A window may reach beyond the last counter, with zeros.
        """
        total = np.zeros((len(spikes), self.counters + LANES), np.int32)
        kernels.add_windows(spikes, self.windows, self.start, self.values, total)
        return total


def _opens(pointers: NDArray[Any], indices: NDArray[Any]) -> NDArray[np.bool_]:
    """Entries [n] of columns that begin a window: those that the one before does not reach."""
    opens = np.zeros(len(indices), np.bool_)
    # The entry that opens the next window of each column that has one, all columns at once.
    at, end = pointers[:-1].astype(np.int64), pointers[1:].astype(np.int64)
    keys = indices.astype(np.int64) + np.repeat(np.arange(len(at)) * (1 << 32), end - at)
    while len(at):
        at, end = at[at < end], end[at < end]
        opens[at] = True
        at = np.searchsorted(keys, keys[at] + LANES)
    return opens
