"""Which float layers can become integer layers: all problems of a network at once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from stl_deploy.errors import LoweringError, Problem
from stl_deploy.ir.float_neurons import Float, FloatNeurons
from stl_deploy.ir.float_chain import FloatLayer
from stl_deploy.ir.floats import FloatNetwork
from stl_deploy.ir.units import DECAY_ONE, FORGETS

NAMED = 5  # neurons that a message lists before it says "..."
GAIN = {"lif": "r * dt / tau", "if": "r * dt", "cuba": "w_in * dt / tau_syn * r * dt / tau_mem"}
CHAIN = (
    "what can be lowered is convolution or linear -> LIF, IF or CubaLIF, and max pooling of spikes"
)


def check(network: FloatNetwork) -> None:
    """Raise LoweringError naming everything of ``network`` that no integer layer can be."""
    problems = [problem for layer in network.layers for problem in _problems(layer)]
    if problems:
        raise LoweringError(problems)


def rounded_decays(neurons: FloatNeurons) -> tuple[int, int]:
    """The decay constants du and dv of neurons that have the same ones."""
    du, dv = _decays(neurons)
    return int(du.flat[0]), int(dv.flat[0])


def _decays(neurons: FloatNeurons) -> tuple[Float, Float]:
    du = np.clip(np.rint(DECAY_ONE * neurons.current) - 1, 0, FORGETS)
    # dv = 0 would be no leak, which an IF has, and 4096 does not fit 12 bits; what rounding changes is
    # reported.
    leaky = np.clip(np.rint(DECAY_ONE * neurons.step), 1, FORGETS)
    dv = np.where(neurons.step == 0, 0, leaky)
    return du, dv


def _problems(layer: FloatLayer) -> Iterator[Problem]:
    if layer.kind == "lif":
        yield from _of_neurons(layer)
    elif layer.kind == "other":
        yield from _of_form(layer)


def _of_form(layer: FloatLayer) -> Iterator[Problem]:
    """Why ``layer`` is neither weights and neurons nor a pool."""
    *before, last = (*(way.name for way in layer.ways), layer.name)
    first = layer.ways[0] if layer.ways else None
    if len(layer.ways) > 1:
        for name, follows in zip([way.name for way in layer.ways][1:], before, strict=False):
            yield Problem(name, f"follows {follows} without neurons in between; {CHAIN}")
    elif first is not None and first.kind == "window" and not layer.neurons.has_state:
        if not first.tiles:
            yield Problem(first.name, "pooling windows overlap or are padded")
        else:
            yield Problem(last, "does not fire as soon as one input of its window does")
    else:
        follows = first.name if first is not None else "spikes"
        yield Problem(last, f"a {layer.neurons.kind} population follows {follows}; {CHAIN}")


def _of_neurons(layer: FloatLayer) -> Iterator[Problem]:
    """What the neurons of a layer with weights cannot have."""
    neurons, name = layer.neurons, layer.name
    leaks = not neurons.has_current and neurons.leak.any()
    if (neurons.v_reset != 0).any() or leaks:
        yield Problem(name, "v_leak or v_reset is not zero")
    du, dv = _decays(neurons)
    for tau, share, rounded in (("tau", neurons.step, dv), ("tau_syn", neurons.current, du)):
        decay = 1 - share
        integrates = (share == 0).all()  # an IF, which keeps all of v
        if not integrates and (np.ptp(rounded) != 0 or not (share.min() > 0 and share.max() <= 1)):
            yield Problem(
                name,
                f"decay 1 - dt/{tau} ranges from {decay.min():g} to {decay.max():g}; all neurons of a "
                "layer must share one decay in [0, 1)",
                f"give all neurons of the layer one {tau}",
            )
    gain = neurons.total_gain
    if np.ptp(gain) > 1e-12 * np.abs(gain).max() or not gain.flat[0] > 0:
        yield Problem(name, f"{GAIN[neurons.kind]} differs between neurons or is not positive")
    bias = layer.weights.bias
    if bias is not None and bias.any() and (neurons.current != 1).any():
        yield Problem(
            layer.weights.name,
            f"has a bias, which would pass through the current of {name}; a chip adds it to v",
            "give it as v_leak, or train the layer without a bias",
        )
    leak = np.broadcast_to(neurons.leak, layer.shape).reshape(layer.shape[0], -1)
    if neurons.has_current and (leak != leak[:, :1]).any():
        yield Problem(name, "v_leak differs between the neurons of a channel")
