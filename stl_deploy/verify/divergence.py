"""The first divergence: where the lowered network starts to differ from the float model, and why.

Not what a layer inherited: the earliest entry in the order sample, step, layer, neuron whose spike
differs. No earlier step of the sample differs anywhere, nor does an earlier layer in this step, so
that the layer had equal inputs up to here, and the neuron the same resets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stl_deploy.chips import arithmetic
from stl_deploy.chips import facts as chips
from stl_deploy.errors import Problem, StlError
from stl_deploy.hw_sim import reference
from stl_deploy.ir.kinds import entry
from stl_deploy.ir.chain import Layer, LifLayer
from stl_deploy.ir.network import IntegerNetwork
from stl_deploy.ir.synapses import Shape
from stl_deploy.ir.units import UNIT
from stl_deploy.verify import certificates
from stl_deploy.verify import faults as F
from stl_deploy.verify.certificates import Certifier, LifCertifier

Bytes = NDArray[np.uint8]
Part = Literal["weight", "bias", "decay", "register"]
Blame = Part | Literal["threshold", "float rounding", "execution", "unknown"]
STRONGEST = 5  # incoming synapses that are listed
SPOKEN = 3  # of them in the paragraph
WORDS: dict[Blame, str] = {
    "weight": "the rounding of the weights",
    "bias": "the rounding of the bias",
    "decay": "the rounding of the decay",
    "threshold": "the rounding of the threshold",
    "register": "the width of a register",
    "float rounding": "float rounding in the model itself",
    "execution": "the execution of the network",
    "unknown": "nothing that certificates cover",
}


class CertificateError(StlError):
    """A proof was contradicted, or a run is not what its definition computes: a bug (exit 1).

    ``divergence`` is the first divergence of the comparison so far, if there was one.
    """

    exit_code = 1

    def __init__(self, problem: Problem, divergence: Divergence | None) -> None:
        super().__init__(problem)
        self.divergence = divergence

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.problems[0], self.divergence)


@dataclass(frozen=True)
class Place:
    """One entry: ``neuron`` is its index in the layer's population."""

    sample: int
    step: int
    layer: str
    neuron: Shape


@dataclass(frozen=True)
class Synapse:
    """One incoming synapse and what its rounding did to the voltage, in the float model's units.

    ``input`` is the neuron it comes from, ``weight`` its index in the weights, ``held`` the integer,
    ``exact`` what it stands for in the same units; ``spikes`` what came since the last reset.
    """

    input: Shape
    weight: Shape
    held: int
    exact: float
    spikes: int
    error: float


@dataclass(frozen=True)
class Voltages:
    """Both sides in the step in which they part, before the reset.

    ``v``, ``theta`` of the float model; ``v_int``, ``vth`` the integers (v counts 1/64 of vth's
    units), ``fires_from`` the smallest v_int above 64 vth that the neuron can have in this step.
    ``v_lowered`` and ``theta_lowered`` are v_int and fires_from in the float model's units. ``margin``
    is |v - theta|, ``error`` v_lowered - v, ``bound`` what was proved of its magnitude. ``reset`` is
    the step of the neuron's last spike, None if it had none. ``contributions`` of weights, bias,
    decay and registers add up to ``error``.
    """

    v: float
    theta: float
    v_int: int
    vth: int
    fires_from: int
    v_lowered: float
    theta_lowered: float
    margin: float
    error: float
    bound: float
    reset: int | None
    contributions: dict[Part, float]


@dataclass(frozen=True)
class Divergence:
    """The first divergence of a comparison, or a spike that contradicts its proof.

    ``float_spike`` and ``integer_spike`` differ. ``voltages`` is None, and ``synapses`` empty, where
    certificates do not cover the layer; ``why`` says why not. ``faults`` are what of the network, or
    of its run, is no rounding: those of this layer first. ``calibrated``: the layer's values were
    fitted to data (``calibration.py``), so that single ones are no fault.
    """

    place: Place
    float_spike: bool
    integer_spike: bool
    blame: Blame
    voltages: Voltages | None = None
    synapses: tuple[Synapse, ...] = ()
    faults: tuple[F.Fault, ...] = ()
    why: str = ""
    calibrated: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain data; ``text`` is the paragraph."""
        place, voltages = self.place, self.voltages
        return {
            "sample": place.sample,
            "step": place.step,
            "layer": place.layer,
            "neuron": list(place.neuron),
            "float_spike": self.float_spike,
            "integer_spike": self.integer_spike,
            "blame": self.blame,
            "voltages": None if voltages is None else vars(voltages),
            "synapses": [
                {**vars(s), "input": list(s.input), "weight": list(s.weight)} for s in self.synapses
            ],
            "faults": [fault.to_json() for fault in self.faults],
            "text": self.text,
        }

    @property
    def text(self) -> str:
        """One paragraph for a person."""
        place = self.place
        parts = [
            f"The lowered network first differs from the float model in sample {place.sample}, step "
            f"{place.step}, at {place.layer} {_neuron(place.neuron)}, with equal inputs: the float "
            f"model {_does(self.float_spike)}, the integer network {_does(self.integer_spike)}."
        ]
        if self.voltages is None:
            parts.append(f"Its voltages are not compared: {self.why}.")
        else:
            parts += _in_words(self.voltages)
        if self.blame == "execution":
            parts.append(
                "On these inputs the network's own arithmetic gives the other spike: it is not "
                "rounding that differs, but how the network was run."
            )
        elif self.voltages is not None:
            parts.append(f"To blame: {self._blamed(self.voltages)}.")
        if self.synapses and self.blame == "weight":
            strongest = map(_synapse, self.synapses[:SPOKEN])
            parts.append("The synapses that erred most: " + "; ".join(strongest) + ".")
        parts += [f"Not rounding: {fault.layer}: {fault.text}." for fault in self.faults]
        if not self.faults and self.blame not in ("execution", "unknown"):
            parts.append(
                "This layer was fitted to calibration data: its values need not be the nearest ones."
                if self.calibrated
                else "Everything the network holds is what the float model rounds to."
            )
        return " ".join(parts)

    def _blamed(self, voltages: Voltages) -> str:
        words = WORDS[self.blame]
        if self.blame == "threshold":
            moved = voltages.theta_lowered - voltages.theta
            words += f", which {'raised' if moved > 0 else 'lowered'} it by {abs(moved):.3g}"
        rest = ", ".join(
            f"{name} {value:+.3g}" for name, value in voltages.contributions.items() if value
        )
        return words + (f" (the error of v is made of {rest})" if rest else "")


def find(
    network: IntegerNetwork, expected: Mapping[str, Bytes], lowered: Mapping[str, Bytes]
) -> Place | None:
    """The first entry that differs between two traces, spikes uint8 [N, T, *shape] by layer."""
    differs = []
    for layer in network.layers:
        off = expected[layer.name] != lowered[layer.name]
        differs.append(off.reshape(*off.shape[:2], -1).any(axis=2))
    where = np.argwhere(np.stack(differs, axis=2))
    if not len(where):
        return None
    sample, step, index = map(int, where[0])
    name = network.layers[index].name
    off = expected[name][sample, step] != lowered[name][sample, step]
    return Place(sample, step, name, tuple(map(int, np.argwhere(off)[0])))


def explain(
    network: IntegerNetwork,
    layer: Layer,
    certifier: Certifier | str,
    place: Place,
    inputs: Bytes,
    expected: Bytes,
    forced: Bytes,
    got: Bytes,
    faults: tuple[F.Fault, ...] = (),
) -> Divergence:
    """Why the spikes of one entry differ.

    Args:
        network, layer: the integers; ``certifier``: the layer's (see ``certificates.certifiers``).
        place: the entry.
        inputs: of its sample in the float model, [T, *input_shape].
        expected, forced: float and integer spikes of the layer [T, *shape] on these inputs.
        got: spikes of the layer in the network's own run, which had these inputs up to the entry.
        faults: what of the network is no rounding (``faults.of_network``).
    """
    at = (place.step, *place.neuron)
    if isinstance(certifier, str):
        found = _Comparison(why=certifier)
    else:
        compare = entry(COMPARISONS, layer.kind, layer.name, "the explanation of divergences")
        found = compare(network, certifier, place, inputs, expected)
    blame = found.blame
    how = network.precision.get(layer.name)
    ran = reference.run_layer(network, layer, inputs[None]).spikes[0]
    if (ran != got)[: place.step + 1, *place.neuron].any():
        blame = "execution"
        faults = (*F.of_execution(network, layer, inputs, forced), *faults)
    return Divergence(
        place=place,
        float_spike=bool(expected[at]),
        integer_spike=bool(got[at]),
        blame=blame,
        voltages=found.voltages,
        synapses=found.synapses,
        faults=tuple(sorted(faults, key=lambda fault: fault.layer != place.layer)),
        why=found.why,
        calibrated=how is not None and how.calibrated > 0,
    )


class _Comparison(NamedTuple):
    """What two voltages that differ say; ``why`` says why they are not compared."""

    voltages: Voltages | None = None
    synapses: tuple[Synapse, ...] = ()
    blame: Blame = "unknown"
    why: str = ""


def _compare_pool(*_: object) -> _Comparison:
    return _Comparison(why="a pool has none")


def _compare_lif(
    network: IntegerNetwork,
    certifier: LifCertifier,
    place: Place,
    inputs: Bytes,
    expected: Bytes,
) -> _Comparison:
    """Both voltages of the neuron in this step, what made them differ, and what of it matters."""
    layer = certifier.layer
    inputs, expected = inputs[: place.step + 1], expected[: place.step + 1]
    bound = certifier.run(inputs[None], expected[None], bounds=True).bound
    assert bound is not None
    course = _follow(certifier, place, inputs, expected, _integers(network, layer, place, inputs))
    flat = _flat(place.neuron, layer.shape)
    unit, slack = (float(x[flat]) for x in (certifier.cells.unit, certifier.cells.slack))
    theta = float(certifier.floats.theta[place.neuron])
    vth = int(layer.vth[place.neuron])
    since = place.step if course.reset is None else place.step - course.reset - 1
    grain = certificates.grain(layer, since)
    grain = grain if course.v_int % grain == 0 else 1
    fires_from = (UNIT * vth // grain + 1) * grain
    voltages = Voltages(
        v=course.v,
        theta=theta,
        v_int=course.v_int,
        vth=vth,
        fires_from=fires_from,
        v_lowered=course.v_int * unit,
        theta_lowered=fires_from * unit,
        margin=abs(course.v - theta),
        error=course.v_int * unit - course.v,
        bound=float(bound[(0, place.step, *place.neuron)]),
        reset=course.reset,
        contributions=course.parts,
    )
    left = np.zeros(len(inputs))
    left[place.step - since :] = certifier.kept ** np.arange(since + 1)[::-1]
    synapses = _synapses(certifier, place.neuron, inputs, left)
    fires = bool(expected[(place.step, *place.neuron)])
    return _Comparison(voltages, synapses, _blame(voltages, fires, slack))


# How the voltages of a layer's kind are compared, where a certifier covers it.
COMPARISONS: dict[str, Callable[[IntegerNetwork, Any, Place, Bytes, Bytes], _Comparison]] = {
    "lif": _compare_lif,
    "or_pool": _compare_pool,
}


@dataclass(frozen=True)
class _Course:
    """Where a neuron's voltages have come to, before the reset, and what their difference is made of."""

    v: float
    v_int: int
    reset: int | None
    parts: dict[Part, float]


def _follow(
    certifier: LifCertifier, place: Place, inputs: Bytes, expected: Bytes, integers: list[int]
) -> _Course:
    """Follow a neuron up to the step of ``place``; ``integers`` are its integer voltages so far."""
    flat = _flat(place.neuron, certifier.layer.shape)
    sums = certifier.sums(inputs[None])[0, :, :, flat]
    spikes = expected.reshape(len(expected), -1)[:, flat]
    cells, keep, kept = certifier.cells, certifier.floats.keep, certifier.kept
    unit, slack = float(cells.unit[flat]), float(cells.slack[flat])
    nothing: dict[Part, float] = {"weight": 0.0, "bias": 0.0, "decay": 0.0, "register": 0.0}
    course = _Course(0.0, 0, None, nothing)
    for t, v_int in enumerate(integers):
        if t and spikes[t - 1]:
            course = _Course(0.0, 0, t - 1, nothing)
        # What both voltages lose and gain in this step, and so their difference.
        parts = {name: kept * value for name, value in course.parts.items()}
        cut = _decayed(course.v_int, certifier.layer.dv) - kept * course.v_int
        parts["decay"] += (kept - keep) * course.v + cut * unit
        parts["weight"] += float(sums[t, 1])
        parts["bias"] += float(cells.bias_error[flat])
        v = keep * course.v + float(sums[t, 0]) + float(cells.bias[flat])
        # A register that wrapped or saturated is all that can be left over.
        left = v_int * unit - v - sum(parts.values())
        if abs(left) > 2 * slack:
            parts["register"] += left
        course = _Course(v, v_int, course.reset, parts)
    return course


def _blame(voltages: Voltages, fires: bool, slack: float) -> Blame:
    """Which rounding turned the spike over.

    Where the integer voltage lies on the same side of theta as the float one, the voltage's error
    changed nothing and the integer threshold did. Else it is the largest part of the voltage's error
    that goes the same way. Differences within ``slack`` are none.
    """
    if (
        voltages.v_lowered >= voltages.theta - slack
        if fires
        else voltages.v_lowered < voltages.theta
    ):
        return "threshold"
    if abs(voltages.error) <= slack:
        return "float rounding"
    sign = math.copysign(1, voltages.error)
    return max(voltages.contributions, key=lambda name: sign * voltages.contributions[name])


def _decayed(v: int, dv: int) -> int:
    """The voltage's decay as the reference defines it."""
    return int(arithmetic.decay(np.array([v], np.int64), dv)[0])


def _integers(network: IntegerNetwork, layer: LifLayer, place: Place, inputs: Bytes) -> list[int]:
    """The neuron's integer voltage in every step, before the reset, by the reference's own steps."""
    limit = chips.of(network).state_limit
    a = reference.accumulate(layer, inputs, network.input_limit(layer))
    a = a.reshape(len(inputs), *layer.shape)
    bias = np.broadcast_to(layer.bias, layer.shape)
    u = v = np.zeros(layer.shape, np.int64)
    path = []
    for t in range(len(inputs)):
        u, _ = arithmetic.step_current(u, a[t], layer.du, limit)
        v, _ = arithmetic.step_voltage(v, u, bias, layer.dv, limit)
        path.append(int(v[place.neuron]))
        v, _ = arithmetic.fire(v, layer.vth)
    return path


def _synapses(
    certifier: LifCertifier, neuron: Shape, inputs: Bytes, weights: NDArray[np.float64]
) -> tuple[Synapse, ...]:
    """The incoming synapses whose errors moved the voltage most.

    ``weights`` float64 [T] say how much of what came in a step is left.
    """
    layer = certifier.layer
    columns, index, held, exact = _incoming(certifier, neuron)
    unit = layer.scale * 2.0**layer.exp
    own = float(unit[neuron[0] if len(unit) != layer.neurons else _flat(neuron, layer.shape)])
    came = inputs.reshape(len(inputs), -1)[:, columns].astype(np.float64)
    errors = (weights @ came) * (held * own - exact)
    spikes = ((weights != 0) @ came).astype(np.int64)
    order = np.argsort(-np.abs(errors), kind="stable")[:STRONGEST]
    return tuple(
        Synapse(
            input=tuple(map(int, np.unravel_index(columns[i], layer.input_shape))),
            weight=tuple(map(int, index[i])),
            held=int(held[i]),
            exact=float(exact[i] / own),
            spikes=int(spikes[i]),
            error=float(errors[i]),
        )
        for i in order
        if errors[i]
    )


def _incoming(
    certifier: LifCertifier, neuron: Shape
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[np.float64]]:
    """Of each in-bounds synapse of a neuron: input, index of the weight, integer and float weight."""
    layer, floats = certifier.layer, certifier.floats
    if floats.geometry is None:
        row = neuron[0]
        columns = np.arange(floats.weight.shape[1])
        index = np.stack([np.full_like(columns, row), columns], axis=1)
    else:
        row, i, j = neuron
        (sh, sw), (ph, pw), (dh, dw), groups = floats.geometry
        _, per_group, kh, kw = floats.weight.shape
        first = row // (len(floats.weight) // groups) * per_group
        taps = np.indices((per_group, kh, kw)).reshape(3, -1)
        y, x = i * sh + taps[1] * dh - ph, j * sw + taps[2] * dw - pw
        _, height, width = layer.input_shape
        inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        columns = (((first + taps[0]) * height + y) * width + x)[inside]
        index = np.concatenate([np.full((1, taps.shape[1]), row), taps]).T[inside]
    exact = floats.weight[tuple(index.T)]
    held = layer.synapses.into(_flat(neuron, layer.shape), columns, index)
    return columns, index, held, exact


def _flat(neuron: Shape, shape: Shape) -> int:
    return int(np.ravel_multi_index(neuron, shape))


# Words


def _does(spike: bool) -> str:
    return "spikes" if spike else "does not spike"


def _neuron(neuron: Shape) -> str:
    if len(neuron) == 3:
        return f"channel {neuron[0]}, row {neuron[1]}, column {neuron[2]}"
    return "neuron " + ", ".join(map(str, neuron))


def _in_words(voltages: Voltages) -> list[str]:
    x = voltages
    since = "its first step" if x.reset is None else f"its spike in step {x.reset}"
    side = "above" if x.v >= x.theta else "below"
    parts = [
        f"Since {since} the float voltage has come to {x.v:.6g}, which is {x.margin:.3g} {side} "
        f"theta = {x.theta:.6g}. The integer voltage has come to {x.v_int:,}, in float units "
        f"{x.v_lowered:.6g}, and with vth = {x.vth:,} the neuron spikes from {x.fires_from:,} on, "
        f"{x.theta_lowered:.6g}."
    ]
    if x.bound > x.margin:
        parts.append(
            f"That is an error of {x.error:+.3g}; up to {x.bound:.3g} was proved possible, which is "
            "more than the margin."
        )
    else:
        parts.append(
            f"That is an error of {x.error:+.3g}, within the {x.bound:.3g} proved possible."
        )
    return parts


def _synapse(synapse: Synapse) -> str:
    return (
        f"weight {synapse.weight} from input {synapse.input}, which is {synapse.held} for "
        f"{synapse.exact:.2f} ({synapse.error:+.3g})"
    )
