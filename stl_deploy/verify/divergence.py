"""The first divergence: where the lowered network starts to differ from the float model, and why.

Not what a population inherited: the earliest entry in the order sample, step, population, neuron whose spike
differs. No earlier step of the sample differs anywhere, nor does an earlier population in this step, so
that the population had equal inputs up to here, and the neuron the same resets. That holds in loops too:
populations are in the order in which a step computes them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stl_deploy.errors import Problem, StlError
from stl_deploy.ir.network import IntegerNetwork
from stl_deploy.ir.synapses import Shape
from stl_deploy.ir.units import UNIT
from stl_deploy.verify import certificates, pairs, runs
from stl_deploy.verify.certificates import Certifier
from stl_deploy.verify.course import Course, Follower, Part
from stl_deploy.verify.fault import Fault

Bytes = NDArray[np.uint8]
Blame = Part | Literal["threshold", "adaptive threshold", "float rounding", "execution", "unknown"]
STRONGEST = 5  # incoming synapses that are listed
SPOKEN = 3  # of them in the paragraph
WORDS: dict[Blame, str] = {
    "weight": "the rounding of the weights",
    "bias": "the rounding of the bias",
    "decay": "the rounding of the decay",
    "threshold": "the rounding of the threshold",
    "adaptive threshold": "the rounding of what earlier spikes added to the threshold",
    "register": "the width of a register",
    "reset": "the rounding of the threshold that earlier resets subtracted",
    "v_reset": "the rounding of the voltage that a spike resets it to",
    "start": "the rounding of the voltage that it starts from",
    "floor": "the rounding of the lowest voltage that it can have",
    "hold": "how many steps it rests after a spike",
    "gain": "the rounding of the gains of its steps",
    "current": "the rounding of its current's decay",
    "second current": "the rounding of what its second current brings",
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
    """One entry: ``neuron`` is its index in the population ``layer``."""

    sample: int
    step: int
    layer: str
    neuron: Shape


@dataclass(frozen=True)
class Synapse:
    """One incoming synapse and what its rounding did to the voltage, in the float model's units.

    ``input`` is the neuron of ``source`` that it comes from, ``weight`` its index in the weights of
    ``connection``, ``held`` the integer, ``exact`` what it stands for in the same units; ``spikes`` what came
    since the last reset.
    """

    connection: str
    source: str
    input: Shape
    weight: Shape
    held: int
    exact: float
    spikes: int
    error: float


@dataclass(frozen=True)
class Rise:
    """What earlier spikes added to both thresholds; ``v_int`` in units of v, ``v_lowered`` in float units."""

    v: float
    v_int: int
    v_lowered: float


@dataclass(frozen=True)
class Voltages:
    """Both sides in the step in which they part, before the reset.

    ``v``, ``theta`` of the float model; ``v_int``, ``vth`` the integers (v counts 1/64 of vth's
    units), ``fires_from`` the smallest v_int above 64 vth that the neuron can have in this step.
    ``v_lowered`` and ``theta_lowered`` are v_int and fires_from in the float model's units. ``margin``
    is |v - theta|, ``error`` v_lowered - v, ``bound`` what was proved of its magnitude. ``reset`` is
    the step of the last spike after which both sides began at a voltage that is set, None if there was none.
    ``contributions`` of weights, bias, decay and registers add up to ``error``; of neurons with more rules,
    what these do is among them. ``rise`` is that of thresholds that spikes move, which ``theta``,
    ``fires_from`` and ``theta_lowered`` include. ``rests`` are the steps that both sides still rest from an
    earlier spike, this one included; None where neither does.
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
    rise: Rise | None = None
    rests: tuple[int, int] | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data; ``rise`` and ``rests`` only where there are such."""
        more = {
            "rise": None if self.rise is None else vars(self.rise),
            "rests": None if self.rests is None else list(self.rests),
        }
        own = {name: value for name, value in vars(self).items() if name not in more}
        return own | {name: value for name, value in more.items() if value is not None}


@dataclass(frozen=True)
class Divergence:
    """The first divergence of a comparison, or a spike that contradicts its proof.

    ``float_spike`` and ``integer_spike`` differ. ``voltages`` is None, and ``synapses`` empty, where
    certificates do not cover the population; ``why`` says why not. ``faults`` are what of the network, or
    of its run, is no rounding: those of this population first. ``calibrated``: the population's values were
    fitted to data (``calibration.py``), so that single ones are no fault. ``sends_values``: the population
    sends values instead of spikes; ``receives_values``: one of its sources does, and values may differ where
    both sides send one.
    """

    place: Place
    float_spike: bool
    integer_spike: bool
    blame: Blame
    voltages: Voltages | None = None
    synapses: tuple[Synapse, ...] = ()
    faults: tuple[Fault, ...] = ()
    why: str = ""
    calibrated: bool = False
    sends_values: bool = False
    receives_values: bool = False

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
            "voltages": None if voltages is None else voltages.to_json(),
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
            f"{place.step}, at {place.layer} {_neuron(place.neuron)}, {self._inputs}: the float "
            f"model {self._does(self.float_spike)}, the integer network {self._does(self.integer_spike)}."
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
        if self.synapses and self.blame in ("weight", "second current"):
            strongest = map(_synapse, self.synapses[:SPOKEN])
            parts.append("The synapses that erred most: " + "; ".join(strongest) + ".")
        parts += [f"Not rounding: {fault.layer}: {fault.text}." for fault in self.faults]
        if not self.faults and self.blame not in ("execution", "unknown"):
            parts.append(
                "This population was fitted to calibration data: its values need not be the nearest ones."
                if self.calibrated
                else "Everything the network holds is what the float model rounds to."
            )
        return " ".join(parts)

    @property
    def _inputs(self) -> str:
        if self.receives_values:
            return "with values from the same neurons"
        return "with equal inputs"

    def _does(self, sends: bool) -> str:
        if self.sends_values:
            return "sends a value" if sends else "sends none"
        return "spikes" if sends else "does not spike"

    def _blamed(self, voltages: Voltages) -> str:
        words = WORDS[self.blame]
        if self.blame in ("threshold", "adaptive threshold"):
            moved = voltages.theta_lowered - voltages.theta
            words += f", which {'raised' if moved > 0 else 'lowered'} it by {abs(moved):.3g}"
        rest = ", ".join(
            f"{name} {value:+.3g}" for name, value in voltages.contributions.items() if value
        )
        return words + (f" (the error of v is made of {rest})" if rest else "")


def differ(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.bool_]:
    """Where the spikes of two runs differ; of values only whether there is one is compared."""
    values = np.uint8 not in (a.dtype, b.dtype)
    off: NDArray[np.bool_] = (a != 0) != (b != 0) if values else a != b
    return off


def find(
    network: IntegerNetwork, expected: Mapping[str, Bytes], lowered: Mapping[str, Bytes]
) -> Place | None:
    """The first entry that differs between two traces, spikes [N, T, *shape] by population.

    Populations of a step are in the order of the network, in which connections without a delay lead forward.
    """
    names = [population.name for population in network.populations if population.name in expected]
    differs = []
    for name in names:
        off = differ(expected[name], lowered[name])
        differs.append(off.reshape(*off.shape[:2], -1).any(axis=2))
    where = np.argwhere(np.stack(differs, axis=2))
    if not len(where):
        return None
    sample, step, index = map(int, where[0])
    name = names[index]
    off = differ(expected[name][sample, step], lowered[name][sample, step])
    return Place(sample, step, name, tuple(map(int, np.argwhere(off)[0])))


def explain(
    network: IntegerNetwork,
    certifier: Certifier | str,
    place: Place,
    sent: Mapping[str, NDArray[Any]],
    forced: Bytes,
    got: Bytes,
    faults: tuple[Fault, ...] = (),
) -> Divergence:
    """Why the spikes of one entry differ.

    Args:
        network: the integers; ``certifier``: the population's (see ``certificates.certifiers``).
        place: the entry.
        sent: what each source of the population, and it itself, sends in its sample in the float model,
            [T, *shape].
        forced: integer spikes of the population [T, *shape] for these.
        got: spikes of the population in the network's own run, whose sources sent the same up to the entry.
        faults: what of the network is no rounding (``faults.of_network``).
    """
    at = (place.step, *place.neuron)
    found = (
        _Comparison(why=certifier)
        if isinstance(certifier, str)
        else _compare(network, certifier, place, sent)
    )
    blame = found.blame
    how = network.precision.get(place.layer)
    ran = runs.run_alone(network, place.layer, sent)
    if (ran != got)[: place.step + 1, *place.neuron].any():
        blame = "execution"
        faults = (*runs.of_execution(network, place.layer, sent, forced), *faults)
    return Divergence(
        place=place,
        float_spike=not got[at],
        integer_spike=bool(got[at]),
        blame=blame,
        voltages=found.voltages,
        synapses=found.synapses,
        faults=tuple(sorted(faults, key=lambda fault: fault.layer != place.layer)),
        why=found.why,
        calibrated=how is not None and how.calibrated > 0,
        sends_values=network.by_name[place.layer].neurons.graded is not None,
        receives_values=any(
            c.source in network.by_name and network.by_name[c.source].neurons.graded is not None
            for c in network.into(place.layer)
        ),
    )


class _Comparison(NamedTuple):
    """What two voltages that differ say; ``why`` says why they are not compared."""

    voltages: Voltages | None = None
    synapses: tuple[Synapse, ...] = ()
    blame: Blame = "unknown"
    why: str = ""


def _compare(
    network: IntegerNetwork,
    certifier: Certifier,
    place: Place,
    sent: Mapping[str, NDArray[Any]],
) -> _Comparison:
    """Both voltages of the neuron in this step, what made them differ, and what of it matters."""
    sent = {name: values[: place.step + 1] for name, values in sent.items()}
    batch = {name: values[None] for name, values in sent.items()}
    bound = certifier.run(batch, batch[place.layer], bounds=True).bound
    assert bound is not None
    follower = Follower(certifier, place.neuron, sent)
    course = follower.run()
    voltages = _voltages(certifier, place, course, float(bound[(0, place.step, *place.neuron)]))
    synapses = _synapses(certifier, place.neuron, sent, course.left, follower.common)
    fires = bool(sent[certifier.known.name][(place.step, *place.neuron)])
    return _Comparison(voltages, synapses, _blame(voltages, fires, follower.slack))


def _voltages(certifier: Certifier, place: Place, course: Course, bound: float) -> Voltages:
    """What a course has come to."""
    network, population, cells = certifier.network, certifier.population, certifier.cells
    flat = _flat(place.neuron, population.shape)
    unit, slack = float(cells.unit[flat]), float(cells.slack[flat])
    theta, stays = float(cells.theta[flat]), float(cells.stays[flat])
    vth = round(stays / unit / UNIT)
    grain = certificates.grain(network, population, place.neuron, course.decays - 1)
    grain = grain if course.v_int % grain == 0 else 1
    fires_from = ((UNIT * vth + course.whole_rise) // grain + 1) * grain
    rises = certifier.rules.rises
    theta = theta + course.rise if rises else theta
    return Voltages(
        v=course.v,
        theta=theta,
        v_int=course.v_int,
        vth=vth,
        fires_from=fires_from,
        v_lowered=course.v_int * unit,
        theta_lowered=fires_from * unit,
        margin=abs(course.v - theta),
        error=course.v_int * unit - course.v,
        bound=bound,
        reset=course.reset,
        contributions={
            name: part if abs(part) > slack else 0.0 for name, part in course.parts.items()
        },
        rise=Rise(course.rise, course.whole_rise, course.whole_rise * unit) if rises else None,
        rests=(course.rests, course.whole_rests) if course.rests or course.whole_rests else None,
    )


def _blame(voltages: Voltages, fires: bool, slack: float) -> Blame:
    """Which rounding turned the spike over.

    Where the integer voltage lies on the same side of theta as the float one, the voltage's error
    changed nothing and the integer threshold did. Else it is the largest part of the voltage's error
    that goes the same way. Differences within ``slack`` are none. A neuron that rests on one side alone
    differs for that reason.
    """
    if voltages.rests is not None and 0 in voltages.rests:
        return "hold"
    if (
        voltages.v_lowered >= voltages.theta - slack
        if fires
        else voltages.v_lowered < voltages.theta
    ):
        return _of_threshold(voltages)
    if abs(voltages.error) <= slack:
        return "float rounding"
    sign = math.copysign(1, voltages.error)
    return max(voltages.contributions, key=lambda name: sign * voltages.contributions[name])


def _of_threshold(voltages: Voltages) -> Blame:
    """Which part of the threshold was rounded most."""
    rise = voltages.rise
    if rise is None:
        return "threshold"
    of_rise = rise.v_lowered - rise.v
    rest = voltages.theta_lowered - voltages.theta - of_rise
    return "adaptive threshold" if abs(of_rise) > abs(rest) else "threshold"


def _synapses(
    certifier: Certifier,
    neuron: Shape,
    sent: Mapping[str, NDArray[Any]],
    left: NDArray[np.float64],
    common: float,
) -> tuple[Synapse, ...]:
    """The incoming synapses whose errors moved the voltage most, over all connections.

    ``left`` float64 [2, T] says how much of what came to each current in a step is left; ``common`` is the
    factor of the gains that stands in the weights.
    """
    network, population = certifier.network, certifier.population
    flat = _flat(neuron, population.shape)
    scale = float(certifier.unit[flat]) * UNIT
    found = []
    for mine, theirs, origin, _ in pairs.of(network, population.name, certifier.floats):
        if mine is None or theirs is None or not pairs.alike(mine, theirs):
            continue
        weights, gain = left[mine.port], float(certifier.gains[theirs.port][flat]) * common
        source = network.shape(mine.source)
        inputs, index, exact = pairs.row(theirs.way, source, population.shape, neuron)
        held = mine.synapses.into(flat, inputs, index)
        own = scale * 2.0**mine.exp
        came, meant = (
            _delayed(sent[name].reshape(len(weights), -1)[:, inputs], steps)
            for name, steps in ((mine.source, mine.delay), (theirs.source, theirs.delay))
        )
        errors = (weights @ came) * (held * own - exact * gain)
        errors += (weights @ (came - meant)) * exact * gain
        spikes = ((weights != 0) @ came).astype(np.int64)
        found += [
            Synapse(
                connection=mine.name,
                source=origin,
                input=tuple(map(int, np.unravel_index(inputs[i], source))),
                weight=tuple(map(int, index[i])),
                held=int(held[i]),
                exact=float(exact[i] * gain / own),
                spikes=int(spikes[i]),
                error=float(errors[i]),
            )
            for i in np.flatnonzero(errors)
        ]
    return tuple(sorted(found, key=lambda synapse: -abs(synapse.error))[:STRONGEST])


def _delayed(values: NDArray[Any], delay: int) -> NDArray[np.float64]:
    """Values [T, ...] as they come so many steps later."""
    late = np.zeros(values.shape)
    late[delay:] = values[: len(values) - delay]
    return late


def _flat(neuron: Shape, shape: Shape) -> int:
    return int(np.ravel_multi_index(neuron, shape))


# Words


def _neuron(neuron: Shape) -> str:
    if len(neuron) == 3:
        return f"channel {neuron[0]}, row {neuron[1]}, column {neuron[2]}"
    return "neuron " + ", ".join(map(str, neuron))


def _in_words(voltages: Voltages) -> list[str]:
    x = voltages
    since = "its first step" if x.reset is None else f"its spike in step {x.reset}"
    side = "above" if x.v >= x.theta else "below"
    added, held = "", f"vth = {x.vth:,}"
    if x.rise is not None and (x.rise.v or x.rise.v_int):
        added = f", of which earlier spikes added {x.rise.v:.6g}"
        held += f" and {x.rise.v_int:,} added by earlier spikes"
    parts = [
        f"Since {since} the float voltage has come to {x.v:.6g}, which is {x.margin:.3g} {side} "
        f"theta = {x.theta:.6g}{added}. The integer voltage has come to {x.v_int:,}, in float units "
        f"{x.v_lowered:.6g}, and with {held} the neuron spikes from {x.fires_from:,} on, "
        f"{x.theta_lowered:.6g}."
    ]
    if x.rests is not None:
        parts.append(_resting(*x.rests))
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


def _resting(floats: int, whole: int) -> str:
    """Which side rests from an earlier spike, for ``floats`` and ``whole`` steps from this one on."""
    sides = {"float": floats, "integer": whole}
    rests = [name for name, steps in sides.items() if steps]
    if len(rests) == 2:
        return "Both neurons rest from an earlier spike."
    steps = sides[rests[0]]
    left = "all remaining steps" if steps < 0 else f"{steps} more step{'s' if steps > 1 else ''}"
    other = "integer" if rests[0] == "float" else "float"
    return (
        f"The {rests[0]} neuron rests from an earlier spike, this step included, for {left}; the {other} "
        "neuron does not rest."
    )


def _synapse(synapse: Synapse) -> str:
    return (
        f"weight {synapse.weight} of {synapse.connection} from {synapse.source} {synapse.input}, which is "
        f"{synapse.held} for "
        f"{synapse.exact:.2f} ({synapse.error:+.3g})"
    )
