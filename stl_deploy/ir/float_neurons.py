"""Neurons of a float network, and the one table of NIR's nodes that say them.

All kinds are one equation, NIR's by forward Euler with a step ``dt``:

    I = (1 - current) I + drive S        current = dt / tau_syn; without a synaptic current I = S
    v = (1 - step) v + gain I + leak     step = dt / tau, 0 for an IF, 1 for a Threshold
    spike = v > threshold;  v = v_reset where it spikes, or v - threshold

A LI, CubaLI or I is the same without a threshold. What else neurons may do are fields that come with what
they mean (``ir/execute.py`` has the order); what NIR has no words for stands in the node's metadata
(``ir/nir_words.py``). A further kind of neurons is a further entry of ``NEURONS``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Literal

import nir
import numpy as np
from numpy.typing import NDArray

from stl_deploy.ir import nir_graph as G
from stl_deploy.ir import nir_words as words
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

    @property
    def plain(self) -> bool:
        """Whether they are what they were before float graphs of version 4 (``nir_graph.FloatMeta``)."""
        more = self.reset_current or self.hold or self.graded or self.reset == "none"
        arrays = any(getattr(self, name) is not None for name in words.ARRAYS)
        return self.fires and not (more or arrays)

    def scaled(self, factor: Float) -> FloatNeurons:
        """The same with v counted in units of ``factor``, above zero, and inputs as they were.

        Raises ValueError for neurons that send v.
        """
        if self.graded and self.fires:
            raise ValueError("sends its voltage, which others receive in the units of the graph")

        def over(values: Float | None) -> Float | None:
            return None if values is None else values / factor

        return replace(
            self,
            gain=self.gain / factor,
            leak=self.leak / factor,
            threshold=self.threshold / factor,
            v_reset=self.v_reset / factor,
            floor=over(self.floor),
            v0=over(self.v0),
            adapt=over(self.adapt),
        )

    def reshaped(self, shape: Shape) -> FloatNeurons:
        """The same neurons, in C order, as a population of ``shape``."""

        def full(values: Float | None) -> Any:
            if values is None:
                return None
            return np.broadcast_to(values, self.shape).reshape(shape).copy()

        amplify = self.amplify
        if amplify is not None and amplify[0].size == 1:
            amplify = amplify.reshape(-1, *[1] * len(shape))
        elif amplify is not None:
            steps = len(amplify)
            amplify = np.broadcast_to(amplify, (steps, *self.shape)).reshape(steps, *shape)
        named = {f.name: getattr(self, f.name) for f in fields(self)}
        arrays = {
            name: full(values)
            for name, values in named.items()
            if isinstance(values, np.ndarray) and name != "amplify"
        }
        return replace(self, **arrays, amplify=amplify)

    def node(self) -> nir.ir.NIRNode:
        """Their node in a lowered float graph, which ``decode`` reads again."""
        made = self._firing() if self.fires else self._silent()
        if self.fires and self.reset != "zero":
            made.metadata["reset"] = self.reset
        words.say(
            made,
            {name: getattr(self, name) for name in words.ARRAYS},
            reset_current=self.reset_current,
            hold=self.hold,
            graded=self.graded,
        )
        return made

    def _firing(self) -> nir.ir.NIRNode:
        """NIR's node of neurons with a threshold."""
        made: G.Neurons
        v_reset = np.broadcast_to(self.v_reset, self.shape) if self.reset == "zero" else 0.0
        if self.has_current:
            made = nir.CubaLIF(
                **self._cuba(),
                v_reset=np.zeros(self.shape),
                v_threshold=self.threshold,
            )
        elif self._keeps_all:
            made = G.integrate_and_fire(self.threshold)
            made.r = G.over_dt(self.gain)
        else:
            made = G.lif(self.threshold, *self._tau(self.gain)[:2])
            made.v_leak = self._leak
        made.v_reset = made.v_reset + v_reset
        return made

    def _silent(self) -> nir.ir.NIRNode:
        """NIR's node of neurons without a threshold."""
        if self.has_current:
            return nir.CubaLI(**self._cuba())
        if self._keeps_all:
            return nir.I(r=self._full(G.over_dt(self.gain)))
        tau, r = self._tau(self.gain)
        return nir.LI(tau=self._full(tau), r=self._full(r), v_leak=self._leak)

    def _cuba(self) -> dict[str, Float]:
        tau_mem, r = self._tau(self.gain)
        tau_syn, w_in = G.euler(*np.broadcast_arrays(_stepped(self.current), self.drive))
        found = {"tau_syn": tau_syn, "tau_mem": tau_mem, "r": r, "w_in": w_in, "v_leak": self._leak}
        return {key: self._full(value) for key, value in found.items()}

    def _tau(self, gain: Float) -> tuple[Float, Float]:
        return G.euler(*np.broadcast_arrays(_stepped(self.step), gain))

    def _full(self, values: Float) -> Float:
        return np.broadcast_to(values, self.shape).copy()

    @property
    def _keeps_all(self) -> bool:
        return not self.step.any() and not self.leak.any()

    @property
    def _leak(self) -> Float:
        return self._full(self.leak / _stepped(self.step))


def _stepped(step: Float) -> Float:
    """``step``, and something for a node that needs a tau where it is 0."""
    return np.where(step == 0, NO_LEAK, step)


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
        current=_kept(current),
        drive=current * p["w_in"],
    )


def _threshold(p: Values, _dt: float) -> FloatNeurons:
    one, zero = np.ones(1), np.zeros(1)
    return FloatNeurons("threshold", one, one, zero, p["threshold"], zero, one, one)


def _without_threshold(
    decode: Callable[[Values, float], FloatNeurons], last: str
) -> Callable[[Values, float], FloatNeurons]:
    """The reading of neurons that are those of ``decode`` without a threshold; ``last`` has their shape."""

    def read(p: Values, dt: float) -> FloatNeurons:
        zero = np.zeros(p[last].shape)
        return replace(decode({**p, "v_threshold": zero, "v_reset": zero}, dt), fires=False)

    return read


NEURONS: dict[type, NeuronNode] = {
    nir.LIF: NeuronNode(("tau", "r", "v_leak", "v_reset", "v_threshold"), _lif),
    nir.IF: NeuronNode(("r", "v_reset", "v_threshold"), _if),
    nir.CubaLIF: NeuronNode(
        ("tau_mem", "tau_syn", "r", "w_in", "v_leak", "v_reset", "v_threshold"), _cuba
    ),
    nir.Threshold: NeuronNode(("threshold",), _threshold),
    nir.LI: NeuronNode(("tau", "r", "v_leak"), _without_threshold(_lif, "v_leak")),
    nir.I: NeuronNode(("r",), _without_threshold(_if, "r")),
    nir.CubaLI: NeuronNode(
        ("tau_mem", "tau_syn", "r", "w_in", "v_leak"), _without_threshold(_cuba, "v_leak")
    ),
}


def decode(node: Any, values: Values | None = None, dt: float = G.DT) -> FloatNeurons:
    """The neurons of ``node``, whose class has an entry in ``NEURONS``.

    ``values`` are its parameters where they are not taken as they stand. Raises ValueError for a reset, or
    anything else in the metadata, that is not known.
    """
    entry = NEURONS[type(node)]
    if values is None:
        values = {key: np.asarray(getattr(node, key), np.float64) for key in entry.parameters}
    neurons = entry.decode(values, dt)
    said = words.read(node)
    if said.port:
        raise ValueError(f"metadata.{G.KEY}: a port is that of weights, not of neurons")
    rules: dict[str, Any] = {**said.neurons, **words.arrays(node, neurons.shape)}
    neurons = replace(neurons, **rules)
    if (neurons.current2 is None) != (neurons.drive2 is None):
        raise ValueError(f"metadata.{G.KEY}: a second current needs current2 and drive2")
    if neurons.adapt is None and neurons.adapt_step is not None:
        raise ValueError(f"metadata.{G.KEY}: adapt_step without adapt")
    if not neurons.has_state and not neurons.plain:
        raise ValueError(f"metadata.{G.KEY}: a Threshold keeps nothing; a LIF has such rules")
    if not neurons.fires or not neurons.has_state:
        return neurons
    return replace(neurons, reset=G.reset_of(node))
