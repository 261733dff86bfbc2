"""The LIF steps of ``layers.py`` as compiled loops over one sample at a time, for training on a CPU.

PyTorch runs each operation of a step over the whole batch, and memory is what it waits for. Here a
sample's steps stay in cache. Forward results equal those of PyTorch's operations bit for bit; sums over
the batch are taken in another order. A current that is the same at every step is stored once.
"""

# No ``from __future__ import annotations``: numba reads the functions as they are.
import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stl_deploy.hw_sim.compiled import compiled

Array = NDArray[Any]


@compiled
def _forward(current: Array, theta: Array, tau: Any, h: Array, s: Array) -> None:
    """``h`` and ``s`` [B, T, N] from ``current`` [B, T or 1, N] and ``theta`` [N]."""
    zero, one = theta.dtype.type(0), theta.dtype.type(1)
    last = current.shape[1] - 1
    for b in range(h.shape[0]):
        for t in range(h.shape[1]):
            i = current[b, min(t, last)]
            for n in range(h.shape[2]):
                v = h[b, t - 1, n] * (one - s[b, t - 1, n]) if t else zero
                x = tau[0] * v + i[n]
                h[b, t, n] = x
                s[b, t, n] = x >= theta[n]


@compiled
def _backward(
    grad_s: Array, h: Array, s: Array, theta: Array, scale: Array, grad_i: Array, grad_theta: Array
) -> None:
    """Add to ``grad_i`` [B, T or 1, N] and ``grad_theta`` [N]; ``scale`` is (tau, alpha/2, alpha*pi/2)."""
    tau, half, slope = scale[0], scale[1], scale[2]
    one = scale.dtype.type(1)
    last = grad_i.shape[1] - 1
    grad_v = np.empty_like(theta)
    for b in range(h.shape[0]):
        grad_v[:] = 0
        for t in range(h.shape[1] - 1, -1, -1):
            out = grad_i[b, min(t, last)]
            for n in range(h.shape[2]):
                x = (h[b, t, n] - theta[n]) * slope
                through = (grad_s[b, t, n] - grad_v[n] * h[b, t, n]) * (half / (one + x * x))
                grad_theta[n] -= through
                g = grad_v[n] * (one - s[b, t, n]) + through
                out[n] += g
                grad_v[n] = g * tau


def forward(current: Tensor, theta: Tensor, tau: float, steps: int) -> tuple[Tensor, Tensor]:
    """Membranes before the reset and spikes, both [B, steps, *shape], for [B, steps or 1, *shape]."""
    h = current.new_empty(current.shape[0], steps, *theta.shape)
    s = torch.empty_like(h)
    i, th, decay = _rows(current), _flat(theta), _numbers(theta, tau)
    h_rows, s_rows = _rows(h), _rows(s)
    _split(len(h_rows), lambda part: _forward(i[part], th, decay, h_rows[part], s_rows[part]))
    return h, s


def backward(
    grad_s: Tensor, h: Tensor, s: Tensor, theta: Tensor, tau: float, alpha: float, constant: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of the current, [B, 1, *shape] where it is ``constant``, and of the thresholds."""
    steps = 1 if constant else h.shape[1]
    grad_i = h.new_zeros(h.shape[0], steps, *theta.shape)
    rows = [_rows(x) for x in (grad_s, h, s, grad_i)]
    th, scale = _flat(theta), _numbers(theta, tau, alpha / 2, alpha * np.pi / 2)

    def part_of(part: slice) -> Array:
        grad_theta = np.zeros_like(th)
        g, x, y, out = (r[part] for r in rows)
        _backward(g, x, y, th, scale, out, grad_theta)
        return grad_theta

    parts = _split(len(rows[0]), part_of)
    return grad_i, torch.from_numpy(sum(parts[1:], parts[0])).reshape(theta.shape)


def _split(samples: int, do: Callable[[slice], Any]) -> list[Any]:
    """``do`` for as many parts of the batch as PyTorch has threads, each on a thread; in order."""
    count = max(1, min(torch.get_num_threads(), samples))
    edges = [samples * k // count for k in range(count + 1)]
    parts = [slice(a, b) for a, b in itertools.pairwise(edges)]
    if count == 1:
        return [do(parts[0])]
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(do, parts))


def _rows(x: Tensor) -> Array:
    """[B, T, *shape] as [B, T, N], without a copy where that is possible."""
    array: Array = x.detach().contiguous().flatten(2).numpy()
    return array


def _flat(x: Tensor) -> Array:
    array: Array = x.detach().contiguous().flatten().numpy()
    return array


def _numbers(like: Tensor, *values: float) -> Array:
    """Factors in the precision of ``like``, as PyTorch rounds them."""
    array: Array = torch.tensor(values, dtype=like.dtype).numpy()
    return array
