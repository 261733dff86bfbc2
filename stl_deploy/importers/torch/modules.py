"""Modules of PyTorch and snnTorch as nodes of NIR.

snnTorch fires where mem > threshold and resets one step late unless told otherwise. With reset "zero"
a Leaky forgets what it held before the next input arrives, which is a reset in the same step. By
subtraction it takes the threshold, not decayed, from the next step: beta*mem + I - theta. A chip
takes it at once, beta*(mem - theta) + I, so a connection of each neuron to itself of w = -(1 - beta)*theta
makes up the difference exactly; without a reset, one of beta*theta gives back all that was taken. With a
current, what arrives would be there in later steps too; -alpha*w a step later takes it out again.

Neurons other than Leaky, reset to zero a step late, also lose the input of that step, while a current runs
on: they rest for one step (``hold``). Neurons whose membrane is read out have no reset here: by subtraction,
a connection of -theta takes the threshold away in the next step, so that v is snnTorch's own membrane.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import nir
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stl_deploy.errors import LoweringError, Problem
from stl_deploy.importers.torch.classes import neuron_kind, overridden
from stl_deploy.importers.torch.values import Value
from stl_deploy.ir import nir_graph as G
from stl_deploy.ir.float_neurons import FloatNeurons
from stl_deploy.ir.read_as import Origin, ReadAs
from stl_deploy.ir.synapses import Shape

Array = NDArray[Any]
STEPS = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.MaxPool2d,
    nn.Flatten,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.Identity,
)
NEURONS = ("Leaky", "Lapicque", "Synaptic", "RLeaky", "RSynaptic")
RECURRENT = ("RLeaky", "RSynaptic")
WHY = {
    "Alpha": (
        "an Alpha of snnTorch has two currents of opposite sign, which a spike resets in ways of their own",
        "use a Synaptic",
    ),
    "LeakyParallel": (
        "a LeakyParallel of snnTorch computes all steps at once, and its membrane stays above 0",
        "use a Leaky in a loop over time, with reset_mechanism='none'",
    ),
}
What = tuple[str, str]  # what is wrong, and the remedy
RESETS = ("subtract", "zero", "none")  # by snnTorch's reset_mechanism_val


def stateless(value: Value) -> nir.ir.NIRNode:
    """The node of an operation or a module of torch.nn.

    Raises ValueError for settings that are not known here.
    """
    return _op(value) if value.kind == "op" else _module(value)


def _op(value: Value) -> nir.ir.NIRNode:
    kind, *facts = value.facts
    if kind == "scale":
        return nir.Scale(scale=np.full(value.shape[1:], facts[0]))
    if kind == "flatten":
        return G.flatten(value.args[0].shape[1:])
    if kind == "and":  # of spikes, from which those behind a "not" are taken off
        positive = sum(not is_not(part) for part in value.args)
        return nir.Threshold(threshold=np.full(value.shape[1:], positive - 0.5))
    if kind == "not":
        return nir.Scale(scale=np.full(value.shape[1:], -1.0))
    return G.Dropout((), ())  # several in-edges add up


def is_not(value: Value) -> bool:
    """Whether it is 1 - x of another value x."""
    return value.kind == "op" and bool(value.facts[0] == "not")


def are_spikes(value: Value) -> bool:
    """Whether it can be told that all of a value is 0 or 1."""
    if value.kind == "neuron":
        return value.at == 0
    if value.kind == "op" and value.facts[0] in ("and", "not", "flatten"):
        return all(map(are_spikes, value.args))
    silent = (nn.Dropout, nn.Dropout2d, nn.Flatten, nn.Identity, nn.MaxPool2d)
    return value.kind == "module" and isinstance(value.facts, silent) and are_spikes(value.args[0])


def _module(value: Value) -> nir.ir.NIRNode:
    """The node of a module of torch.nn. Raises ValueError for settings that are not known here."""
    module, before, after = value.facts, value.args[0].shape[1:], value.shape[1:]
    match module:
        case nn.Linear():
            if len(before) != 1:
                raise ValueError(_axes(before, "flatten it first"))
            weight = _array(module.weight)
            if module.bias is None:
                return nir.Linear(weight=weight)
            return nir.Affine(weight=weight, bias=_array(module.bias))
        case nn.Conv1d() | nn.Conv2d():
            if len(before) != (2 if isinstance(module, nn.Conv1d) else 3):
                raise ValueError(_axes(before, "reshape it before the network"))
            return _conv(module)
        case nn.BatchNorm1d() | nn.BatchNorm2d():
            if module.running_mean is None or module.running_var is None:
                raise ValueError("BatchNorm without running statistics differs from input to input")
            ones, zeros = np.ones(module.num_features), np.zeros(module.num_features)
            gamma = ones if module.weight is None else _array(module.weight)
            beta = zeros if module.bias is None else _array(module.bias)
            statistics = _array(module.running_mean), _array(module.running_var)
            return G.BatchNorm(before, after, gamma, beta, *statistics, module.eps)
        case nn.AvgPool2d():
            padding = G.pair(module.padding)
            kernel = G.pair(module.kernel_size)
            stride = kernel if module.stride is None else G.pair(module.stride)
            if module.divisor_override not in (None, math.prod(kernel)):
                raise ValueError("divisor_override of a pool is not supported; scale its output")
            if padding != (0, 0) and not module.count_include_pad:
                raise ValueError("a padded pool with count_include_pad=False is not supported")
            if module.ceil_mode and not _exactly(before[1:], kernel, stride, padding):
                raise ValueError(
                    f"ceil_mode, and windows {kernel} that leave a part of {before}; crop or pad it"
                )
            return nir.AvgPool2d(*map(np.array, (kernel, stride, padding)))
        case nn.AdaptiveAvgPool2d():
            if any(n % k for n, k in zip(before[1:], after[1:], strict=True)):
                raise ValueError(
                    f"pools {before[1:]} to {after[1:]}, of which no windows are alike"
                )
            windows = np.array(before[1:]) // np.array(after[1:])
            return nir.AvgPool2d(windows, windows, np.zeros(2, np.int64))
        case nn.MaxPool2d():
            kernel = G.pair(module.kernel_size)
            stride = kernel if module.stride is None else G.pair(module.stride)
            plain = G.pair(module.padding) == (0, 0) and G.pair(module.dilation) == (1, 1)
            tiles = all(n % k == 0 for n, k in zip(before[1:], kernel, strict=True))
            if stride != kernel or not plain or not tiles:
                raise ValueError(
                    f"max pooling of windows {kernel} that do not tile {before}; they must"
                )
            return G.MaxPool2d(before, after, kernel)
        case nn.Flatten():
            if after != (math.prod(before),):
                raise ValueError(f"flattens {before} to {after}; only a whole sample can be")
            return G.flatten(before)
    return G.Dropout((), ())


def _exactly(plane: Shape, kernel: Shape, stride: Shape, padding: Shape) -> bool:
    """Whether windows at all their strides end with the plane, so that rounding up changes nothing."""
    sizes = zip(plane, kernel, stride, padding, strict=True)
    return all((n + 2 * p - k) % s == 0 for n, k, s, p in sizes)


def _axes(before: Shape, remedy: str) -> str:
    text = "reads an input of shape"
    return (
        f"{text} {before}, batch (and time) left out; {remedy}, or is that an axis of the sample?"
    )


def _conv(module: nn.Conv1d | nn.Conv2d) -> nir.ir.NIRNode:
    if module.padding_mode != "zeros":
        raise ValueError(f"padding_mode {module.padding_mode!r}; only zeros can be padded")
    weight = _array(module.weight)
    bias = np.zeros(len(weight), weight.dtype) if module.bias is None else _array(module.bias)
    flat = isinstance(module, nn.Conv1d)
    padding: Any = module.padding
    if not isinstance(padding, str):
        padding = int(padding[0]) if flat else tuple(map(int, padding))
    stride, dilation = module.stride, module.dilation
    return (nir.Conv1d if flat else nir.Conv2d)(
        input_shape=None,
        weight=weight,
        stride=int(stride[0]) if flat else tuple(map(int, stride)),
        padding=padding,
        dilation=int(dilation[0]) if flat else tuple(map(int, dilation)),
        groups=module.groups,
        bias=bias,
    )


class Neurons(NamedTuple):
    """Neurons as a node, and ``own``: by steps of delay, what each sends to itself after a spike."""

    node: nir.ir.NIRNode
    own: dict[int, Array]


def neuron(name: str, module: Any, shape: Shape, membrane: bool = False) -> Neurons:
    """The snnTorch layer ``name``; of one that is read out by its ``membrane``, v is what snnTorch returns.

    Raises LoweringError with everything that cannot be lowered exactly, and ValueError for parameters of
    another shape.
    """
    kind = neuron_kind(module)
    if kind not in NEURONS:
        raise LoweringError(why_not(name, kind))
    if changed := overridden(module):
        what = (
            f"its class {type(module).__name__} overrides {', '.join(changed)} of snnTorch's {kind}"
        )
        remedy = f"use {kind} itself, or override nothing but __init__"
        raise LoweringError(Problem(name, what, remedy))
    theta, (keep, gain) = _full(module.threshold, shape), _decay(module, shape)
    current = "Synaptic" in kind
    alpha = np.clip(_full(module.alpha, shape), 0, 1) if current else np.zeros(shape)
    reset = RESETS[int(module.reset_mechanism_val)]
    wrong = _strange(module, reset, theta, alpha, keep)
    wrong += _reset_problems(module, reset, theta, membrane)
    if wrong:
        raise LoweringError(Problem(name, *what) for what in wrong)
    back = np.zeros(shape)  # what a spike sends to its neuron, to arrive in the next step
    fields: dict[str, Any] = {}
    if membrane and reset != "zero":
        # v then is the membrane before anything is taken from it.
        recurrent = kind in RECURRENT
        back = -theta if reset == "subtract" else back
        fields = {"reset": "none", "fires": recurrent or reset == "subtract"}
    elif reset != "zero":
        back = -(1 - keep) * theta if reset == "subtract" else keep * theta
        fields = {"reset": "subtract"}
    elif kind != "Leaky" and _is_late(module):
        fields = {"hold": 1}
    own = {delay: w / gain for delay, w in ((1, back), (2, -alpha * back)) if w.any()}
    made = FloatNeurons(
        kind="cuba" if current else "lif",
        step=1 - keep,
        gain=gain,
        leak=np.zeros(1),
        threshold=theta,
        v_reset=np.zeros(1),
        current=1 - alpha if current else np.ones(1),
        drive=np.ones(1),
        **fields,
    )
    return Neurons(made.node(), own)


def read_as(name: str, module: Any, silent: bool, timesteps: int, steps_from: Origin) -> ReadAs:
    """How the layer ``name`` is read; ``silent`` where its membrane is read out and its spikes are not."""
    reset = RESETS[int(module.reset_mechanism_val)]
    late = reset != "none" and _is_late(module)
    return ReadAs(
        population=name,
        neuron=f"snntorch.{neuron_kind(module)}",
        reset=reset,
        when="" if reset == "none" else "next step" if late else "same step",
        timesteps=timesteps,
        spikes=None if silent else 1,
        source=name,
        origin={"timesteps": steps_from},
    )


def why_not(name: str, kind: str) -> Problem:
    """Why the neurons ``name`` of this class are refused."""
    instead = f"use one of {', '.join(NEURONS)}"
    return Problem(name, *WHY.get(kind, (f"a {kind} of snnTorch is not supported", instead)))


def _decay(module: Any, shape: Shape) -> tuple[Array, Array]:
    """What a step leaves of a membrane, and by what it multiplies the input."""
    if neuron_kind(module) != "Lapicque":
        return np.clip(_full(module.beta, shape), 0, 1), np.ones(shape)
    # The decay is of a step of Euler's, which is not the beta that the neurons were made with.
    step = module.time_step / (module.R * module.C)
    return 1 - _full(step, shape), _full(module.R * step, shape)


def _is_late(module: Any) -> bool:
    """Whether it resets in the step after a spike, as all do that cannot say otherwise."""
    # snnTorch 1.0's RSynaptic ignores reset_delay=False: the states that it returns are not reset.
    return neuron_kind(module) == "RSynaptic" or getattr(module, "reset_delay", True)


def _reset_problems(module: Any, reset: str, theta: Array, membrane: bool) -> list[What]:
    """What of its reset cannot be lowered exactly."""
    late = _is_late(module)
    wrong = []
    if reset == "subtract" and not late:
        what = (
            "reset by subtraction with reset_delay=False: snnTorch then fires by another rule while a "
            "neuron is still above its threshold after a reset"
        )
        wrong.append((what, "train with the default, reset_delay=True, which is exact"))
    raise_it = "train with thresholds of at least 0"
    if reset == "subtract" and (theta < 0).any():
        what = "thresholds below 0 with a reset by subtraction: snnTorch resets at step 0"
        wrong.append((what, raise_it))
    if reset == "zero" and (theta < 0).any() and not (late and neuron_kind(module) == "Leaky"):
        what = "thresholds below 0 with reset_mechanism='zero', where snnTorch resets twice"
        wrong.append((what, raise_it))
    if reset == "zero" and late and membrane:
        what = "its membrane is returned as it is before a reset to zero, which comes a step late"
        never = "read out neurons with reset_mechanism='none'"
        at_once = hasattr(module, "reset_delay") and neuron_kind(module) != "RSynaptic"
        wrong.append((what, f"{never}, or with reset_delay=False" if at_once else never))
    return wrong


def _strange(module: Any, reset: str, theta: Array, alpha: Array, keep: Array) -> list[What]:
    """Settings of a neuron that no chip has."""
    wrong = [
        (f"{key} is set, which no chip has", "train without it")
        for key in ("inhibition", "state_quant")
        if getattr(module, key, False)
    ]
    size = torch.logspace(-6, 3, 400)
    probe = torch.cat([-size, torch.zeros(1), size])
    fired = module.spike_grad(probe).detach().double()
    for x, y in zip(probe.tolist(), fired.tolist(), strict=True):
        if y != (x > 0):
            what = f"its spike function gives {y:.6g} for {x:.6g}, not spikes above 0"
            wrong.append((what, "use one of snntorch.surrogate, such as atan or fast_sigmoid"))
            break
    made = {"_base_sub": "subtract", "_base_zero": "zero", "_base_int": "none"}
    used = made.get(getattr(module.state_function, "__name__", ""))
    if used != reset:
        what = f"is made with reset_mechanism={used!r}, and the state_dict says {reset!r}"
        wrong.append((what, f"make it with reset_mechanism={reset!r}"))
    factor = factor_of(module)
    if neuron_kind(module) in RECURRENT and factor != 1:
        what = "graded_spikes_factor of recurrent neurons is not supported"
        wrong.append((what, "give 1, and put the factor into the weights that the spikes meet"))
    if factor is None:
        what = "graded_spikes_factor is not one number for all neurons"
        wrong.append((what, "give one number"))
    elif factor <= 0:
        wrong.append(("graded_spikes_factor is not above zero", "give a number above 0"))
    for key, values in (("threshold", theta), ("beta", keep), ("alpha", alpha)):
        if not np.isfinite(values).all():
            wrong.append((f"{key} contains NaN or infinite values", "train it again"))
    if (alpha == 1).any():
        wrong.append(("alpha is 1: a chip's current decays", "train with an alpha below 1"))
    return wrong


def recurrent(module: Any, shape: Shape) -> nir.ir.NIRNode:
    """The recurrent connections of snnTorch neurons as a node."""
    inner = module.recurrent
    if isinstance(inner, nn.Linear):
        weight, bias = _array(inner.weight), inner.bias
        if bias is None:
            return nir.Linear(weight=weight)
        return nir.Affine(weight=weight, bias=_array(bias))
    if isinstance(inner, nn.Conv2d):
        return _conv(inner)
    if hasattr(inner, "V"):
        return nir.Scale(scale=_full(inner.V, shape))
    raise ValueError(f"a {type(inner).__name__} is not supported as recurrent connections")


def _full(value: Any, shape: Shape) -> Array:
    """A parameter as float64 of the population's shape, as PyTorch would broadcast it to a batch."""
    array = torch.as_tensor(value).detach().cpu().double().numpy()
    try:
        full: Array = np.broadcast_to(array, (1, *shape))[0].copy()
    except ValueError:
        raise ValueError(
            f"a parameter of shape {array.shape} does not fit neurons of {shape}"
        ) from None
    return full


def _array(value: Tensor) -> Array:
    return value.detach().cpu().numpy().copy()


def factor_of(module: nn.Module) -> float | None:
    """graded_spikes_factor, None where it is not a single number."""
    factor = torch.as_tensor(getattr(module, "graded_spikes_factor", 1.0)).detach()
    return float(factor) if factor.numel() == 1 else None
