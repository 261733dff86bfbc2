"""What the neurons of an integer network are in NIR's words, and back; the units of ``integer_nir.py``."""

from __future__ import annotations

from typing import Any, TypeAlias

import nir
import numpy as np
from numpy.typing import NDArray

from stl_deploy.ir import nir_graph as G
from stl_deploy.ir.network import Connection, IntegerNetwork, Population
from stl_deploy.ir.neurons import Each
from stl_deploy.ir.synapses import Shape
from stl_deploy.ir.units import DECAY_ONE, FORGETS, FRACTION_BITS, UNIT

Float = NDArray[np.float64]
Integrators: TypeAlias = nir.LI | nir.CubaLI | nir.I
Node: TypeAlias = G.Neurons | Integrators
# The time constant, in units of dt, of neurons that do not leak. v and inputs have at most 30 bits, so that
# 2^-83 of v is far below the last bit of a float64, both next to v and next to what is added to it.
NO_LEAK = 2.0**83


def base(network: IntegerNetwork, population: Population) -> int:
    """The exponent that the neurons' ``r`` carries: the smallest of all connections into them."""
    if population.kind == "or":
        return 0
    return min((c.exp for c in network.into(population.name)), default=0)


def never_leaks(dv: Each) -> bool:
    """Whether no neuron leaks."""
    return not np.any(dv)


def threshold(population: Population) -> nir.Threshold:
    """The node of an OR population."""
    return nir.Threshold(threshold=np.zeros(population.shape, np.int32))


def neurons(population: Population, exp: int, biased: bool) -> Node:
    """The node of LIF neurons whose inputs count 2^exp; its leak is the bias if ``biased``.

    Neurons that never leak are an IF, unless they have a current or a leak for a bias. Integrators are LI,
    CubaLI and I in the same way.
    """
    p, shape = population.neurons, population.shape
    threshold = np.broadcast_to(p.vth, shape).astype(np.int32)
    reset = _full(np.asarray(p.v_reset) / UNIT if p.reset == "constant" else 0.0, shape)
    fires = {"v_threshold": threshold, "v_reset": reset} if p.fires else {}
    if never_leaks(p.dv) and not p.has_current and not (biased and p.bias.any()):
        r = np.full(shape, 2.0**exp / G.DT)
        return nir.IF(r=r, **fires) if p.fires else nir.I(r=r)
    gain = membrane_gain(p.dv)
    parameters = fires | {
        "r": _full(gain * 2.0**exp, shape),
        "v_leak": _full(leak(p.bias, gain) if biased else 0.0, shape),
    }
    if not p.has_current:
        kind = nir.LIF if p.fires else nir.LI
        return kind(tau=_full(G.DT * gain, shape), **parameters)
    drive = current_gain(p.du)
    cuba = nir.CubaLIF if p.fires else nir.CubaLI
    return cuba(
        tau_mem=_full(G.DT * gain, shape),
        tau_syn=_full(G.DT * drive, shape),
        w_in=_full(drive, shape),
        **parameters,
    )


def fires(node: Node) -> bool:
    """Whether the neurons of a node have a threshold."""
    return isinstance(node, nir.LIF | nir.IF | nir.CubaLIF)


def has_current(node: Node) -> bool:
    """Whether the neurons of a node have a current that a step remembers."""
    return isinstance(node, nir.CubaLIF | nir.CubaLI)


def resets_to(node: Node, constant: bool) -> Float:
    """What v is reset to, in steps of v. Raises ValueError for anything but 0 where not ``constant``."""
    v_reset = np.asarray(getattr(node, "v_reset", np.zeros(1)), np.float64)
    if v_reset.any() and not constant:
        raise ValueError("v_reset contradicts the reset in the metadata")
    return v_reset * UNIT


def membrane_gain(dv: Each) -> Float:
    """tau_mem / dt of neurons with these decays."""
    decays = np.asarray(dv, np.float64)
    gain: Float = np.where(decays == 0, NO_LEAK, DECAY_ONE / np.where(decays == 0, 1, decays))
    return gain


def current_gain(du: Each) -> Float:
    """tau_syn / dt of neurons with these decays."""
    gain: Float = np.asarray(DECAY_ONE / (np.asarray(du, np.float64) + 1))
    return gain


def leak(bias: NDArray[np.int64], gain: Float) -> Float:
    """v_leak of neurons whose step adds ``bias`` to v."""
    found: Float = bias / UNIT * gain
    return found


def _full(values: Any, shape: Shape) -> Float:
    return np.broadcast_to(np.asarray(values, np.float64), shape).copy()


def decays(node: Node, exp: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(du, dv) of the node's shape. Raises ValueError unless the node is what ``neurons`` makes of them."""
    shape = node.r.shape
    du, dv = np.full(shape, FORGETS), np.zeros(shape, np.int64)
    expected: dict[str, Any]
    if isinstance(node, nir.IF | nir.I):
        expected = {"r": 2.0**exp / G.DT}
    else:
        key = "tau_mem" if has_current(node) else "tau"
        slow = G.DT * NO_LEAK
        tau = np.asarray(getattr(node, key), np.float64)
        dv = np.where(tau == slow, 0, _decay(tau, key, FORGETS))
        gain = membrane_gain(dv.astype(np.int32))
        expected = {key: G.DT * gain, "r": gain * 2.0**exp}
    if has_current(node):
        du = _decay(node.tau_syn, "tau_syn", DECAY_ONE) - 1
        drive = current_gain(du.astype(np.int32))
        expected |= {"tau_syn": G.DT * drive, "w_in": drive}
    for name, value in expected.items():
        if np.any(np.asarray(getattr(node, name)) != value):
            raise ValueError(f"{name} contradicts decays of {DECAY_ONE} parts and exp {exp}")
    return du, dv


def _decay(tau: NDArray[Any], name: str, most: int) -> NDArray[np.int64]:
    """4096 dt / tau, rounded, 1 where tau is that of no leak. Raises ValueError outside 1..``most``."""
    with np.errstate(all="ignore"):
        found = np.rint(DECAY_ONE / (np.asarray(tau, np.float64) / G.DT))
    slow = np.asarray(tau) == G.DT * NO_LEAK
    if not (slow | ((found >= 1) & (found <= most))).all():
        raise ValueError(f"{name} is not dt * {DECAY_ONE} / n, n from 1 to {most}")
    return np.where(slow, 1, found).astype(np.int64)


def leaked(node: Node, dv: NDArray[np.int64], bias_exp: int) -> Float:
    """The bias mantissas that ``v_leak`` says. Raises ValueError where it says none."""
    gain, step = membrane_gain(dv.astype(np.int32)), 2.0**bias_exp
    found = np.asarray(node.v_leak, np.float64)
    with np.errstate(all="ignore"):
        mant: Float = np.rint(found / gain * UNIT / step) + 0.0
        again = leak(np.asarray(mant * step), gain)
    if not np.isfinite(found).all() or (again != found).any():
        raise ValueError("v_leak is not a bias")
    return mant


def in_weights(bias: NDArray[np.int64], exp: int) -> Float:
    """The bias of weights that count 2^exp."""
    found: Float = bias / 2.0 ** (FRACTION_BITS + exp)
    return found


def from_weights(bias: Float, exp: int, bias_exp: int) -> Float:
    """The mantissas of such a bias."""
    found: Float = bias * 2.0 ** (FRACTION_BITS + exp - bias_exp)
    return found


def stored(connection: Connection, exp: int) -> NDArray[np.integer[Any]]:
    """The weights of a connection as they stand in front of neurons that count 2^exp."""
    shift, weight = connection.exp - exp, connection.synapses.weight
    return weight if shift == 0 else weight.astype(np.int32) << shift
