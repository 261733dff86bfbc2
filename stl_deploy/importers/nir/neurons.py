"""Neurons of any NIR graph, brought to what a lowered float graph holds.

Forward Euler with a step dt gives v = (1 - dt/tau) v + (dt/tau) (v_leak + r I), and the float graph has
the same with dt = 1e-4 and the same dt/tau. ``v_leak`` is a constant input v_leak / r. Factors that
differ from neuron to neuron go into the weights; behind a convolution, whose weights are shared, into
the thresholds, since v, inputs and threshold may be scaled together.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import nir
import numpy as np
from numpy.typing import NDArray

from stl_deploy.ir import nir_graph as G
from stl_deploy.ir.network import Reset
from stl_deploy.ir.synapses import Shape

Array = NDArray[Any]
PARAMETERS: dict[type, tuple[str, ...]] = {
    nir.LIF: ("tau", "r", "v_leak", "v_reset", "v_threshold"),
    nir.IF: ("r", "v_reset", "v_threshold"),
    nir.CubaLIF: ("tau_mem", "tau_syn", "r", "w_in", "v_leak", "v_reset", "v_threshold"),
    nir.Threshold: ("threshold",),
}
WHY_ZERO = "a chip resets v to 0, and v starts there"


@dataclass(frozen=True, eq=False)
class Neurons:
    """A population: ``step`` and ``current`` are dt/tau of voltage and current, 1 without a current.

    All arrays are float64 of ``shape``. A step does I = (1 - current) I + S and v = (1 - step) v + gain I
    + leak; a spike, where v > threshold, resets v. ``step`` 0 is an IF. ``same`` is the node itself where
    it can be kept as it is.
    """

    shape: Shape
    step: Array
    current: Array
    gain: Array
    leak: Array
    threshold: Array
    cuba: bool
    reset: Reset
    same: G.Neurons | None

    def with_unit_gain(self) -> Neurons:
        """The same behind inputs that have been multiplied by ``gain``."""
        return replace(self, gain=np.ones(self.shape), same=None)

    def scaled(self, factor: Array) -> Neurons:
        """The same with v counted in units of ``factor``, above zero, and inputs as they were."""
        return replace(
            self,
            gain=self.gain / factor,
            leak=self.leak / factor,
            threshold=self.threshold / factor,
            same=None,
        )

    def node(self) -> G.Neurons:
        """The node of the float graph; ``leak`` of neurons without a current is not in it."""
        if self.same is not None:
            return self.same
        made: G.Neurons
        if self.cuba:
            tau_mem, r = G.euler(self.step, self.gain)
            tau_syn, w_in = G.euler(self.current, np.ones(self.shape))
            made = nir.CubaLIF(
                tau_syn=tau_syn,
                tau_mem=tau_mem,
                r=r,
                v_leak=self.leak / self.step,
                v_reset=np.zeros(self.shape),
                v_threshold=self.threshold,
                w_in=w_in,
            )
        elif (self.step == 0).all():
            made = G.integrate_and_fire(self.threshold)
            made.r = self.gain / G.DT
        else:
            tau, r = G.euler(self.step, self.gain)
            made = G.lif(self.threshold, tau=tau, r=r)
        if self.reset != "zero":
            made.metadata["reset"] = self.reset
        return made


def read(node: Any, shape: Shape, dt: float) -> tuple[Neurons, list[str]]:
    """The neurons of ``node``, of ``shape``, and what of them cannot be lowered, in words.

    Raises ValueError for parameters that do not fit.
    """
    values = {key: parameter(node, key, shape) for key in PARAMETERS[type(node)]}
    threshold = values.get("v_threshold", values.get("threshold"))
    assert threshold is not None
    zero, one = np.zeros(shape), np.ones(shape)
    why: list[str] = []
    if (values.get("v_reset", zero) != 0).any():
        why.append(f"v_reset is not zero ({_span(values['v_reset'])}); {WHY_ZERO}")
    reset: Reset = "zero" if isinstance(node, nir.Threshold) else G.reset_of(node)
    cuba = isinstance(node, nir.CubaLIF)
    if isinstance(node, nir.Threshold):
        return Neurons(shape, one, one, one, zero, threshold, False, reset, None), why
    if isinstance(node, nir.IF):
        # Norse, sinabs, spyx and snnTorch write and read r = 1 for v + I; by NIR's equation, as
        # SpikingJelly writes it, that is r = 1/dt.
        gain = one if (values["r"] == 1).all() else values["r"] * dt
        kept = node if dt == G.DT and (values["r"] != 1).any() else None
        made = Neurons(shape, zero, one, gain, zero, threshold, False, reset, kept)
        return replace(made, same=_whole(made)), why
    taus = ("tau_mem", "tau_syn") if cuba else ("tau",)
    for key in taus:
        decay = 1 - dt / values[key]
        if decay.min() < 0:
            why.append(
                f"decay 1 - dt/{key} is {_span(decay)}, below 0 for dt = {dt:g}; give the time step "
                "that the model was trained with as --dt"
            )
    step = dt / values[taus[0]]
    current = dt / values["tau_syn"] if cuba else one
    gain = step * values["r"] * (current * values["w_in"] if cuba else 1)
    made = Neurons(
        shape, step, current, gain, step * values["v_leak"], threshold, cuba, reset, node
    )
    return replace(made, same=_whole(made) if dt == G.DT else None), why


def reshaped(made: Neurons, shape: Shape) -> Neurons:
    """The same neurons, in C order, as a population of ``shape``."""
    fields = ("step", "current", "gain", "leak", "threshold")
    arrays = {key: getattr(made, key).reshape(shape) for key in fields}
    return replace(made, shape=shape, same=None, **arrays)


def parameter(node: Any, key: str, shape: Shape) -> Array:
    """A parameter of neurons as float64 of their full ``shape``; a single value serves for all."""
    value = np.asarray(getattr(node, key), np.float64)
    if (
        value.size != 1
        and value.shape != tuple(n for n in shape if n != 1)
        and value.shape != shape
    ):
        squeezed = tuple(n for n in value.shape if n != 1)
        if squeezed != tuple(n for n in shape if n != 1):
            raise ValueError(f"{key} has shape {value.shape}, its neurons {shape}")
    if key.startswith("tau") and not (value > 0).all():
        raise ValueError(f"{key} is not above zero everywhere ({_span(value)})")
    full = value.reshape(-1) if value.size == 1 else value.reshape(shape)
    return np.broadcast_to(full, shape).copy()


def _whole(made: Neurons) -> G.Neurons | None:
    """The node as it came, where it has no leak that goes elsewhere and full shapes."""
    node = made.same
    if node is None or (not made.cuba and made.leak.any()):
        return None
    names = PARAMETERS[type(node)]
    full = all(np.shape(getattr(node, key)) == made.shape for key in names)
    return node if full else None


def _span(values: Array) -> str:
    low, high = float(values.min()), float(values.max())
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"
