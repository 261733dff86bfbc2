"""The integer arithmetic of one neuron's time step, as ``hw_sim/reference.py`` puts it together.

u and v carry six fractional bits; a decay constant counts 1/4096; see docs/numerics.md.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stl_deploy.ir.neurons import Each, Reset
from stl_deploy.ir.synapses import IntArray
from stl_deploy.ir.units import DECAY_BITS, DECAY_ONE, FORGETS, FRACTION_BITS

Int64 = NDArray[np.int64]


def wrap32(x: Int64) -> Int64:
    """Two's complement wrap into 32 bits."""
    return ((x + (1 << 31)) & ((1 << 32) - 1)) - (1 << 31)


def decay(x: Int64, constant: Each) -> Int64:
    """x * (4096 - constant) / 4096, truncated toward zero."""
    kept = DECAY_ONE - np.asarray(constant, np.int64)
    magnitude: Int64 = (np.abs(x) * kept) >> DECAY_BITS
    return np.where(x < 0, -magnitude, magnitude)


def kept_voltage(dv: int) -> float:
    """The share of v that a step leaves, before it is truncated."""
    return (DECAY_ONE - dv) / DECAY_ONE


def kept_current(du: int) -> float:
    """The share of u that a step leaves, before it is truncated."""
    return (FORGETS - du) / DECAY_ONE


def step_current(
    u: Int64, a: Int64, du: Each, limit: int | None
) -> tuple[Int64, NDArray[np.bool_]]:
    """The current after one step, and where it overflowed. ``limit`` is M, None for chip ideal."""
    return add_current(u, arriving(a, limit), du, limit)


def arriving(a: Int64, limit: int | None, bias: Int64 | int = 0, gain: Each | None = None) -> Int64:
    """What a sum adds to a current; with a ``gain``, which counts 1/4096, the bias goes the same way."""
    x = a << FRACTION_BITS
    if gain is None:
        return x if limit is None else wrap32(x)
    x = x + bias if limit is None else wrap32(wrap32(x) + bias)
    return scaled(x, gain)


def scaled(x: Int64, gain: Each) -> Int64:
    """x * gain / 4096, truncated toward zero; ``gain`` may be negative."""
    product = x * np.asarray(gain, np.int64)
    magnitude: Int64 = np.abs(product) >> DECAY_BITS
    return np.where(product < 0, -magnitude, magnitude)


def add_current(u: Int64, x: Int64, du: Each, limit: int | None) -> tuple[Int64, NDArray[np.bool_]]:
    """The current after one step in which ``x`` of u arrives, and where it overflowed."""
    if limit is None:
        return decay(u, du + 1) + x, np.zeros(u.shape, np.bool_)
    u = wrap32(decay(u, du + 1) + wrap32(x))
    wrapped = (u > limit) | (u <= -limit)
    return np.where(u > limit, u - 2 * limit, np.where(u <= -limit, u + 2 * limit, u)), wrapped


def step_voltage(
    v: Int64, u: Int64, bias: Int64, dv: Each, limit: int | None
) -> tuple[Int64, NDArray[np.bool_]]:
    """The voltage after one step, before the threshold, and where it saturated."""
    v = decay(v, dv) + u + bias
    if limit is None:
        return v, np.zeros(v.shape, np.bool_)
    v = wrap32(v)
    return np.clip(v, -limit + 1, limit - 1), np.abs(v) > limit - 1


def fire(v: Int64, vth: IntArray, reset: Reset = "zero") -> tuple[Int64, NDArray[np.bool_]]:
    """The voltage after the reset, and the spikes."""
    threshold = vth.astype(np.int64) << FRACTION_BITS
    s = v > threshold
    return after_spike(v, s, threshold, reset), s


def after_spike(
    v: Int64, s: NDArray[np.bool_], threshold: Int64, reset: Reset, v_reset: Each = 0
) -> Int64:
    """The voltage after the reset of the neurons that spiked."""
    if reset == "none":
        return v
    if reset == "subtract":
        return np.where(s, v - threshold, v)
    return np.where(s, np.int64(0) if reset == "zero" else np.asarray(v_reset, np.int64), v)


def saturate(x: Int64, limit: int | None) -> Int64:
    """x within the registers of v."""
    return x if limit is None else np.clip(x, -limit + 1, limit - 1)
