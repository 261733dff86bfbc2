"""Neurons of a float network, and the one table of NIR's nodes that say them.

All kinds are one equation, NIR's by forward Euler with a step ``dt``:

    I = (1 - current) I + drive S        current = dt / tau_syn; without a synaptic current I = S
    v = (1 - step) v + gain I + leak     step = dt / tau, 0 for an IF, 1 for a Threshold
    spike = v > threshold;  v = v_reset where it spikes, or v - threshold

What else neurons may do are fields that come with what they mean (``ir/execute.py`` has the order). A further
kind of neurons is a further entry of ``NEURONS``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import nir
import numpy as np
from numpy.typing import NDArray

from stl_deploy.ir import nir_graph as G
from stl_deploy.ir.synapses import Shape

Float = NDArray[np.float64]
Values = Mapping[str, Float]
Kind = Literal["lif", "if", "cuba", "threshold"]
FloatReset = Literal["zero", "subtract", "none"]  # "zero" is to v_reset, which may be another value
# dt / tau of neurons that keep all of v, where a node needs a tau: 1 - dt / tau is 1 in float64, and a
# power of two moves no digit of r and v_leak. NIR's IF has neither a constant input nor a current.
NO_LEAK = 2.0**-60


@dataclass(frozen=True, eq=False)
class FloatNeurons:
    """The neurons of a population. Arrays are float64, of the population's shape or broadcastable to it.

    ``threshold`` is NIR's, which v must exceed. ``kind`` names the node; ``drive`` and ``current`` are 1
    for neurons without a synaptic current.

    The rest is as in the integer neurons (``ir/neurons.py``), in the units of the graph: ``fires``,
    ``reset_current``, ``hold``, ``floor``, ``v0``; ``adapt`` is added to the threshold by a spike, and a step
    takes ``adapt_step`` of it; ``current2`` and ``drive2`` are those of a second current, None without one;
    ``amplify`` [T, ...] multiplies what arrives in each step, bias included; ``graded`` neurons send v where
    they spike, or without a threshold what arrives.
    """

    kind: Kind
    step: Float
    gain: Float
    leak: Float
    threshold: Float
    v_reset: Float
    current: Float
    drive: Float
    reset: FloatReset = "zero"
    fires: bool = True
    reset_current: bool = False
    hold: int = 0
    floor: Float | None = None
    v0: Float | None = None
    adapt: Float | None = None
    adapt_step: Float | None = None
    current2: Float | None = None
    drive2: Float | None = None
    amplify: Float | None = None
    graded: bool = False

    @property
    def shape(self) -> Shape:
        """Of the population."""
        return self.threshold.shape

    @property
    def has_current(self) -> bool:
        """Whether there is a synaptic current, which may remember."""
        return self.kind == "cuba"

    @property
    def has_state(self) -> bool:
        """Whether anything is left for the next step."""
        return self.kind != "threshold"

    @cached_property
    def keep(self) -> Float:
        """What a step leaves of v."""
        return 1 - self.step

    @cached_property
    def total_gain(self) -> Float:
        """What v gains for each unit of input, in the same step."""
        return self.gain * self.drive

    @cached_property
    def theta(self) -> Float:
        """The thresholds that v must reach: NIR's compare is strict, that of a trained model is not."""
        theta: Float = np.nextafter(self.threshold, np.inf) + 0.0  # and no negative zero
        return theta

    def scaled(self, factor: Float) -> FloatNeurons:
        """The same with v counted in units of ``factor``, above zero, and inputs as they were."""
        return replace(
            self,
            gain=self.gain / factor,
            leak=self.leak / factor,
            threshold=self.threshold / factor,
        )

    def reshaped(self, shape: Shape) -> FloatNeurons:
        """The same neurons, in C order, as a population of ``shape``."""

        def full(values: Float) -> Float:
            return np.broadcast_to(values, self.shape).reshape(shape).copy()

        return replace(
            self,
            step=full(self.step),
            gain=full(self.gain),
            leak=full(self.leak),
            threshold=full(self.threshold),
            v_reset=full(self.v_reset),
            current=full(self.current),
            drive=full(self.drive),
        )

    def node(self) -> nir.ir.NIRNode:
        """Their node in a lowered float graph."""
        made: G.Neurons
        whole = self.step == 0
        step = np.where(whole, NO_LEAK, self.step)
        if self.has_current:
            tau_mem, r = G.euler(step, self.gain)
            tau_syn, w_in = G.euler(self.current, self.drive)
            made = nir.CubaLIF(
                tau_syn=tau_syn,
                tau_mem=tau_mem,
                r=r,
                v_leak=self.leak / step,
                v_reset=np.zeros(self.shape),
                v_threshold=self.threshold,
                w_in=w_in,
            )
        elif whole.all() and not self.leak.any():
            made = G.integrate_and_fire(self.threshold)
            made.r = self.gain / G.DT
        else:
            tau, r = G.euler(step, self.gain)
            made = G.lif(self.threshold, tau=tau, r=r)
            made.v_leak = np.broadcast_to(self.leak / step, self.shape).copy()
        if self.reset != "zero":
            made.metadata["reset"] = self.reset
        return made


@dataclass(frozen=True)
class NeuronNode:
    """How a NIR node says neurons: its ``parameters``, and what they mean for a step of ``dt`` seconds."""

    parameters: tuple[str, ...]
    decode: Callable[[Values, float], FloatNeurons]


def _kept(step: Float) -> Float:
    """``step``, and 0 where it takes nothing from v."""
    return np.where(1 - step == 1, 0.0, step)


def _lif(p: Values, dt: float) -> FloatNeurons:
    step = dt / p["tau"]
    return FloatNeurons(
        kind="lif",
        step=_kept(step),
        gain=step * p["r"],
        leak=step * p["v_leak"],
        threshold=p["v_threshold"],
        v_reset=p["v_reset"],
        current=np.ones(1),
        drive=np.ones(1),
    )


def _if(p: Values, dt: float) -> FloatNeurons:
    zero = np.zeros(p["r"].shape)
    return FloatNeurons(
        kind="if",
        step=zero,
        gain=dt * p["r"],
        leak=zero,
        threshold=p["v_threshold"],
        v_reset=p["v_reset"],
        current=np.ones(1),
        drive=np.ones(1),
    )


def _cuba(p: Values, dt: float) -> FloatNeurons:
    step, current = dt / p["tau_mem"], dt / p["tau_syn"]
    return FloatNeurons(
        kind="cuba",
        step=_kept(step),
        gain=step * p["r"],
        leak=step * p["v_leak"],
        threshold=p["v_threshold"],
        v_reset=p["v_reset"],
        current=current,
        drive=current * p["w_in"],
    )


def _threshold(p: Values, _dt: float) -> FloatNeurons:
    one, zero = np.ones(1), np.zeros(1)
    return FloatNeurons("threshold", one, one, zero, p["threshold"], zero, one, one)


NEURONS: dict[type, NeuronNode] = {
    nir.LIF: NeuronNode(("tau", "r", "v_leak", "v_reset", "v_threshold"), _lif),
    nir.IF: NeuronNode(("r", "v_reset", "v_threshold"), _if),
    nir.CubaLIF: NeuronNode(
        ("tau_mem", "tau_syn", "r", "w_in", "v_leak", "v_reset", "v_threshold"), _cuba
    ),
    nir.Threshold: NeuronNode(("threshold",), _threshold),
}


def decode(node: Any, values: Values | None = None, dt: float = G.DT) -> FloatNeurons:
    """The neurons of ``node``, whose class has an entry in ``NEURONS``.

    ``values`` are its parameters where they are not taken as they stand. Raises ValueError for a reset
    that is not known.
    """
    entry = NEURONS[type(node)]
    if values is None:
        values = {key: np.asarray(getattr(node, key), np.float64) for key in entry.parameters}
    neurons = entry.decode(values, dt)
    return replace(neurons, reset=G.reset_of(node)) if neurons.has_state else neurons
