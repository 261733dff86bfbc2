"""Neurons of SpikingJelly (``spikingjelly.activation_based.neuron``) as nodes of NIR.

A neuron charges, fires where h >= v_threshold, and resets in the same step: h to v_reset, or h - v_threshold
where v_reset is None. v begins at v_reset. With v_rest = v_reset, or 0 without one:

    IFNode                             h = v + x
    LIFNode, decay_input               h = v + (x - (v - v_rest)) / tau
    LIFNode, decay_input=False         h = v - (v - v_rest) / tau + x
    ParametricLIFNode                  the same with 1/tau = sigmoid(w)
    KLIFNode                           relu(k * h) of the h of a LIFNode
    CUBALIFNode                        i = c_decay i + x; h = v_decay v + i
    ActivationAwareIFNode              h = v + x, which fires where h + v_offset >= v_threshold

The v of the node of the last one is v + v_offset. v_threshold and v_offset may be one number a channel.

With scale_reset, h and the threshold of a KLIFNode are divided by k before the reset: k v is the v of a node
that keeps 1 - 1/tau of it, and is reset to k v_reset.

A threshold is put one float64 lower, as NIR's compare is strict and this one is not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import nir
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from stl_deploy.errors import LoweringError, Problem
from stl_deploy.importers.torch.families import NEURONS_OF_SPIKINGJELLY
from stl_deploy.ir.float_neurons import FloatNeurons
from stl_deploy.ir.read_as import Origin, ReadAs
from stl_deploy.ir.synapses import Shape

Array = NDArray[Any]
What = tuple[str, str]  # what is wrong, and the remedy
# What a subclass may bring without computing anything else.
HARMLESS = {"__init__", "__module__", "__doc__", "__qualname__", "extra_repr", "__annotations__"}
HARMLESS |= {"__static_attributes__", "__firstlineno__", "__parameters__", "__abstractmethods__"}
HARMLESS |= {"_abc_impl"}
OLD = "spikingjelly.clock_driven"


class Charge(NamedTuple):
    """What a step keeps of v, and by what it multiplies its input.

    ``leak`` is added, ``keep_current`` is what a step keeps of a current, None without one, and ``floor``
    the lowest h. ``unit`` is what the v of the node is of that of the neuron.
    """

    keep: float
    gain: float
    leak: float = 0.0
    keep_current: float | None = None
    floor: float | None = None
    unit: float = 1.0


def _integrates(_module: Any) -> Charge:
    return Charge(1.0, 1.0)


def _leaks(module: Any, step: float, k: float = 1.0) -> Charge:
    rest = 0.0 if module.v_reset is None else module.v_reset
    gain = step if module.decay_input else 1.0
    return Charge(k * (1 - step), k * gain, k * step * rest)


def _lif(module: Any) -> Charge:
    return _leaks(module, 1 / module.tau)


def _parametric(module: Any) -> Charge:
    return _leaks(module, float(module.w.detach().double().sigmoid()))


def _klif(module: Any) -> Charge:
    k = float(module.k.detach())
    charge = _leaks(module, 1 / module.tau, k)._replace(floor=0.0)
    return charge._replace(keep=1 - 1 / module.tau, unit=k) if module.scale_reset else charge


def _with_current(module: Any) -> Charge:
    return Charge(module.v_decay, 1.0, keep_current=module.c_decay)


NEURONS: dict[str, Callable[[Any], Charge]] = {
    "IFNode": _integrates,
    "SimpleIFNode": _integrates,
    "HalfThresholdIFNode": _integrates,
    "ActivationAwareIFNode": _integrates,
    "LIFNode": _lif,
    "SimpleLIFNode": _lif,
    "OTTTLIFNode": _lif,
    "SLTTLIFNode": _lif,
    "ParametricLIFNode": _parametric,
    "KLIFNode": _klif,
    "CUBALIFNode": _with_current,
}
LEAKY = "use a LIFNode, IFNode or ParametricLIFNode"
LATER = "computes a step from several steps of its input at once, and nothing is reset"
GRADED = "sends several spikes a step, or numbers, where a spike is 0 or 1"
NOISE = "draws noise in every step"
NONLINEAR = "charges by an equation that is not linear in v"
TWO = "has two states that drive each other"
NAMED = {
    **dict.fromkeys(("QIFNode", "EIFNode"), NONLINEAR),
    "IzhikevichNode": f"{NONLINEAR} and {TWO}",
    "AdaptBaseNode": TWO,
    "RAFNode": TWO,
    "ComplementaryLIFNode": TWO,
    **dict.fromkeys(("PSN", "MaskedPSN", "SlidingPSN"), LATER),
    "GatedLIFNode": "weights its input and its reset by step and by channel",
    **dict.fromkeys(("LIAFNode", "ILIFNode", "DSRIFNode", "DSRLIFNode"), GRADED),
    **dict.fromkeys(("TernaryIFNode", "TernaryLIFNode", "STBIFNode"), "sends spikes of -1"),
    **dict.fromkeys(("FewSpikeNode", "OutlierAwareThresholdNode", "HGNode"), GRADED),
    **dict.fromkeys(("MPBNBaseNode", "MPBNLIFNode"), "normalizes v in every step"),
    **dict.fromkeys(
        ("ILCBaseNode", "ILCIFNode", "ILCLIFNode", "ILCCUBALIFNode"),
        "takes its input from several populations by a rule of its own",
    ),
    "FlexSN": "computes what the user's own function says",
}


def neuron(
    name: str, module: Any, shape: Shape, factors: Sequence[float] | None = None
) -> nir.ir.NIRNode:
    """The node of the neurons ``name``; ``factors`` multiply what arrives in each step.

    Raises LoweringError with everything that is not exact.
    """
    wrong = problems(name, module)
    if wrong:
        raise LoweringError(wrong)
    charge = NEURONS[kind_of(module)](module)
    one = np.ones(shape)
    threshold, reset = _each(module, module.v_threshold, shape), module.v_reset
    offset = _each(module, getattr(module, "v_offset", 0.0), shape)
    silent = bool((threshold == np.inf).all())
    start = charge.unit * _start(module) + offset
    current = charge.keep_current
    return FloatNeurons(
        kind="lif" if current is None else "cuba",
        step=one * (1 - charge.keep),
        gain=one * charge.gain,
        leak=one * charge.leak,
        threshold=0 * one if silent else np.nextafter(threshold, -np.inf),
        v_reset=charge.unit * (reset or 0.0) + offset,
        current=one if current is None else one * (1 - current),
        drive=one,
        reset="none" if silent else "subtract" if reset is None else "zero",
        fires=not silent,
        floor=None if charge.floor is None else np.full(1, charge.floor),
        v0=start if start.any() else None,
        amplify=None if factors is None else np.reshape(factors, (-1, *[1] * len(shape))),
    ).node()


def read_as(name: str, module: Any, silent: bool, timesteps: int, steps_from: Origin) -> ReadAs:
    """How the neurons ``name`` are read; ``silent`` where v is read out and spikes are not."""
    fires = bool((torch.as_tensor(module.v_threshold) != np.inf).any())
    reset = "subtract" if fires else "none"
    if fires and module.v_reset is not None:
        reset = f"to {module.v_reset:g}" if module.v_reset else "zero"
    return ReadAs(
        population=name,
        neuron=f"spikingjelly.{type(module).__name__}",
        reset=reset,
        when="same step" if fires else "",
        timesteps=timesteps,
        spikes=None if silent else 1,
        source=name,
        origin={"timesteps": steps_from},
    )


def _each(module: Any, value: Any, shape: Shape) -> NDArray[np.float64]:
    """A parameter for every neuron, as SpikingJelly broadcasts it.

    Raises ValueError where it does not fit.
    """
    array = torch.as_tensor(value).detach().cpu().double().numpy()
    if array.ndim == 1 and hasattr(module, "channel_dim"):
        axes = [1] * (len(shape) + 1)
        axes[module.channel_dim] = -1
        array = array.reshape(axes)
    try:
        full: NDArray[np.float64] = np.broadcast_to(array, (1, *shape))[0].copy()
    except ValueError:
        what = f"a parameter of shape {array.shape} does not fit neurons of {shape}"
        raise ValueError(what) from None
    return full


def _start(module: Any) -> float:
    """v before the first step."""
    values = getattr(module, "_memories_rv", {})
    return float(values.get("v", 0.0))


def kind_of(module: nn.Module) -> str:
    """The class of SpikingJelly that says what a neuron computes; a subclass may add nothing to it."""
    own = type(module)
    for cls in own.__mro__:
        if cls.__module__.startswith(NEURONS_OF_SPIKINGJELLY):
            return cls.__name__ if cls.__name__ in NEURONS or cls is own else own.__name__
        if set(vars(cls)) - HARMLESS:
            return own.__name__
    return own.__name__


def all_at_once(net: nn.Module) -> list[Problem]:
    """Neurons of a network that have no node, and those of the time before activation_based."""
    found = []
    for name, module in net.named_modules():
        where = type(module).__module__
        if where.startswith(OLD):
            what = f"is a {type(module).__name__} of {OLD}, which SpikingJelly has replaced"
            found.append(Problem(name, what, "make it with spikingjelly.activation_based"))
        elif where.startswith(NEURONS_OF_SPIKINGJELLY) and kind_of(module) not in NEURONS:
            found.append(why_not(name, module))
    return found


def why_not(name: str, module: nn.Module) -> Problem:
    """Why the neurons ``name`` are refused."""
    kind = kind_of(module)
    if not type(module).__module__.startswith(NEURONS_OF_SPIKINGJELLY):
        return Problem(name, f"{kind} changes what a neuron of SpikingJelly computes", LEAKY)
    if kind.startswith("NonSpiking"):
        what = f"SpikingJelly's {kind} returns its voltage, not spikes"
        return Problem(
            name, what, "use an IFNode or LIFNode with v_threshold=float('inf'), and its v"
        )
    why = NOISE if kind.startswith("Noisy") else NAMED.get(kind, "is not supported")
    return Problem(name, f"SpikingJelly's {kind} {why}", LEAKY)


def problems(name: str, module: Any) -> list[Problem]:
    """Everything of a neuron that has no exact node."""
    if kind_of(module) not in NEURONS:
        return [why_not(name, module)]
    charge = NEURONS[kind_of(module)](module)
    wrong = [*_numbers(module, charge), *_function(module)]
    return [Problem(name, *what) for what in wrong]


def _numbers(module: Any, charge: Charge) -> list[What]:
    """What is wrong with its parameters."""
    wrong = []
    threshold, offset = (
        torch.as_tensor(getattr(module, key, 0.0)).detach().cpu().double().numpy()
        for key in ("v_threshold", "v_offset")
    )
    values = [module.v_reset or 0.0, charge.keep, charge.gain, charge.leak]
    values += [charge.keep_current or 0.0, charge.unit]
    if not all(isinstance(value, int | float) for value in values):
        return [("has a v_reset, tau or decay that is not a number", "make it with a float")]
    finite = np.isfinite(threshold).all() or (threshold == np.inf).all()
    if not (finite and np.isfinite(offset).all() and np.isfinite(values).all()):
        wrong.append(("has parameters that are NaN or infinite", "train it again"))
    elif not 0 <= charge.keep <= 1:
        what = f"keeps {charge.keep:g} of v in a step, which must be from 0 to 1"
        wrong.append((what, "train with a tau of at least 1 (and a k of at most tau / (tau - 1))"))
    if charge.unit <= 0 or charge.gain <= 0:
        wrong.append(("multiplies its input by a k that is not above 0", "train with a k above 0"))
    if charge.keep_current is not None and not 0 <= charge.keep_current < 1:
        what = f"keeps {charge.keep_current:g} of its current, which must be from 0 to below 1"
        wrong.append((what, "train with a c_decay from 0 to below 1"))
    return wrong


def _function(module: Any) -> list[What]:
    """Whether its surrogate function gives a spike from 0 on, as the neuron does in evaluation."""
    size = torch.logspace(-6, 3, 400)
    probe = torch.cat([-size.flip(0), torch.zeros(1), size])
    with torch.no_grad():
        fired = module.surrogate_function(probe).detach().double()
    for x, y in zip(probe.tolist(), fired.tolist(), strict=True):
        if y != (x >= 0):
            what = f"its surrogate function gives {y:.6g} for {x:.6g}, not spikes from 0 on"
            return [
                (what, "use one of SpikingJelly's, such as surrogate.ATan(), with spiking=True")
            ]
    return []
