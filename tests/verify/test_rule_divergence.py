"""The first divergence of every rule of neurons: its account adds up, and what is wrong is named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from stl_deploy.formats.raster import Raster
from stl_deploy.ir import execute
from stl_deploy.ir.network import IntegerNetwork
from stl_deploy.verify import certificates, course, divergence, faults, rule_faults, runs
from stl_deploy.verify.against_float import compare
from stl_deploy.verify.divergence import Divergence, Place
from tests.build import rule_floats, rule_runs

CERTIFIED = [rule for rule in rule_floats.RULES if not rule.startswith("graded")]
PLACES = 6  # of a population, whose divergences are taken apart


def places(ran: rule_runs.Ran, name: str) -> list[Place]:
    """The first entries of some neurons that differ in the forced run."""
    off = (ran.sent[name] != 0) != (ran.forced.layers[name].spikes != 0)
    found = []
    for sample, neuron in np.argwhere(off.any(axis=1))[:PLACES]:
        step = int(off[sample, :, neuron].argmax())
        found.append(Place(int(sample), step, name, (int(neuron),)))
    return found


def explained(ran: rule_runs.Ran, place: Place) -> Divergence:
    certifier = certificates.certifier(ran.network, ran.network.by_name[place.layer], ran.floats)
    here = {name: values[place.sample] for name, values in ran.sent.items()}
    forced = ran.forced.layers[place.layer].spikes[place.sample]
    return divergence.explain(ran.network, certifier, place, here, forced, forced)


@pytest.mark.parametrize("rule", CERTIFIED)
def test_the_account_of_a_divergence_adds_up(rule):
    ran = rule_runs.of(rule)
    seen = 0
    for name in ("a", "b"):
        v = execute.trace(replace(ran.floats, output=name), ran.raster).v
        for place in places(ran, name):
            found, at = explained(ran, place), (place.sample, place.step, *place.neuron)
            x = found.voltages
            assert x is not None
            assert found.integer_spike == bool(ran.forced.layers[name].spikes[at])
            assert found.float_spike == (x.v >= x.theta) != found.integer_spike
            assert found.integer_spike == (x.v_int >= x.fires_from)
            # The side that does not spike keeps the voltage that it came to.
            if found.float_spike:
                assert x.v_int == ran.forced.layers[name].v[at]
            else:
                assert x.v == pytest.approx(v[at], abs=1e-9)
            assert abs(x.error) <= x.bound
            assert x.contributions["register"] == 0
            assert sum(x.contributions.values()) == pytest.approx(x.error, abs=1e-9)
            parts = x.contributions["weight"] + x.contributions.get("second current", 0)
            assert abs(parts) > 0
            assert found.blame in (*x.contributions, "threshold", "adaptive threshold")
            assert found.faults == ()
            assert found.text
            seen += 1
    assert seen > 4


@pytest.mark.parametrize(
    ("rule", "part"),
    [
        ("second current", "second current"),
        ("gain", "gain"),
        ("constant", "v_reset"),
        ("current", "current"),
        ("start", "start"),
        ("floor", "floor"),
    ],
)
def test_each_rule_has_a_part_in_the_error(rule, part):
    """Somewhere it is not zero, and no other population has it."""
    ran = rule_runs.of(rule)
    parts = [explained(ran, p).voltages.contributions for n in "ab" for p in places(ran, n)]
    assert any(found[part] for found in parts)
    plain = rule_runs.of("zero")
    for place in places(plain, "a"):
        assert set(explained(plain, place).voltages.contributions) == {
            "weight",
            "bias",
            "decay",
            "register",
        }


@pytest.mark.parametrize("rule", ["current", "second current", "gain", "hold", "constant"])
def test_the_synapses_are_the_contribution_of_the_weights(rule, monkeypatch):
    monkeypatch.setattr(divergence, "STRONGEST", 10_000)
    ran = rule_runs.of(rule)
    for place in places(ran, "a"):
        found = explained(ran, place)
        x = found.voltages
        assert x is not None
        ways = {c.name: c.port for c in ran.network.into("a")}
        first = sum(s.error for s in found.synapses if not ways[s.connection])
        assert first == pytest.approx(x.contributions["weight"], abs=1e-9)
        if rule == "second current":
            # What is left over is that current's own decay.
            rest = sum(s.error for s in found.synapses) - first
            assert rest == pytest.approx(x.contributions["second current"], abs=0.01 * x.theta)


# What the network holds that no rounding explains


def changed(network: IntegerNetwork, name: str = "a", **fields: Any) -> IntegerNetwork:
    population = network.by_name[name]
    return network.changed(replace(population, neurons=replace(population.neurons, **fields)))


def one_more(values: Any, by: int) -> np.ndarray:
    """Values of 100 neurons, one of them off."""
    moved = np.broadcast_to(values, (rule_floats.HIDDEN,)).astype(np.int32)
    moved[7] += by
    return moved


def swapped(network: IntegerNetwork) -> IntegerNetwork:
    return network.changed(*(replace(c, port=1 - c.port) for c in network.into("a")[:1]))


def biased(network: IntegerNetwork) -> IntegerNetwork:
    """The weights of the neuron that brings the biases are too large by 20."""
    way = next(c for c in network.into("a") if c.source not in ("input", "a"))
    weight = (way.synapses.weight + 20).astype(way.synapses.weight.dtype)
    return network.changed(replace(way, synapses=way.synapses.with_weights(weight)))


def field(**change: Callable[[Any], Any] | Any) -> Callable[[IntegerNetwork], IntegerNetwork]:
    """Neurons "a" with fields that are off: a value, or a function of the right one."""

    def make(network: IntegerNetwork) -> IntegerNetwork:
        right = network.by_name["a"].neurons
        fields = {k: f(getattr(right, k)) if callable(f) else f for k, f in change.items()}
        return changed(network, **fields)

    return make


FAULTS: list[tuple[str, str, Callable[[IntegerNetwork], IntegerNetwork], str]] = [
    (
        "constant",
        "reset",
        field(v_reset=lambda v: one_more(v, 300)),
        "7 is {}, not {} (300 too high)",
    ),
    (
        "constant",
        "reset",
        field(reset="zero", v_reset=0),
        "a spike sets v to 0; in the float model it sets v to",
    ),
    ("none", "reset", field(reset="zero"), "in the float model it leaves v as it is"),
    (
        "subtract",
        "reset",
        field(reset="none"),
        "leaves v as it is; in the float model it subtracts",
    ),
    (
        "zero",
        "reset",
        field(reset="subtract"),
        "a spike subtracts the threshold from v; in the float",
    ),
    (
        "reset of the current",
        "reset",
        field(reset_current=False),
        "leaves the currents as they are; in",
    ),
    (
        "current",
        "reset",
        field(reset_current=True),
        "a spike sets the currents to 0; in the float model",
    ),
    ("hold", "hold", field(hold=3), "it rests 3 steps after a spike, not 2 steps"),
    ("hold", "hold", field(hold=-1), "it rests for good after a spike, not 2 steps"),
    ("once", "hold", field(hold=1), "it rests 1 step after a spike, not for good"),
    ("floor", "floor", field(floor=None), "the float model has a lowest voltage; it has none"),
    ("floor", "floor", field(floor=lambda v: v + 700), "lowest voltages"),
    (
        "adaptive threshold",
        "adaptive threshold",
        field(adapt=lambda v: one_more(v, -400)),
        "(400 too low)",
    ),
    (
        "adaptive threshold",
        "decay",
        field(dq=lambda v: v + 90),
        "(dq) of the threshold's rise are 500, not 410 (90 too high)",
    ),
    (
        "second current",
        "decay",
        field(du2=lambda v: v - 200),
        "(du2) of the second current are 413, not 613",
    ),
    (
        "current",
        "decay",
        field(du=lambda v: v + 200),
        "(du) of the current are 1,837, not 1,637 (200 too high)",
    ),
    (
        "second current",
        "port",
        swapped,
        "connection a_w feeds the second current, not the first current",
    ),
    (
        "gain",
        "gain",
        field(gain=lambda g: np.roll(g, 1, axis=0)),
        "those of the float model, one time step later",
    ),
    (
        "gain",
        "gain",
        field(gain=lambda g: np.roll(g, -1, axis=0)),
        "those of the float model, one time step earlier",
    ),
    ("gain", "gain", field(gain=None), "the float model has a gain for each step; it has none"),
    (
        "gain",
        "gain",
        field(gain=lambda g: (g + 400 * (np.arange(20) == 3)[:, None]).astype(np.int16)),
        "1 of 20 gains (step, ...)",
    ),
    ("start", "start", field(v0=lambda v: one_more(v, 9000)), "(9000 too high)"),
    ("start", "start", field(v0=0), "voltages before the first step"),
    ("zero", "start", field(v0=5000), "voltages before the first step"),
    ("current", "bias", lambda n: biased(n), "100 of 100 biases ("),
]


def test_gains_are_compared_step_by_step_whatever_axes_they_have():
    ran = rule_runs.of("gain")
    network = field(gain=lambda g: g.reshape(-1))(ran.network)
    theirs = ran.floats.by_name["a"].neurons
    assert theirs.amplify is not None
    theirs = replace(theirs, amplify=theirs.amplify.reshape(-1, 1))
    assert not list(rule_faults._gains(network.by_name["a"], theirs))


@pytest.mark.parametrize(
    ("rule", "kind", "fault", "words"),
    FAULTS,
    ids=[f"{i}-{f[0]}: {f[1]}" for i, f in enumerate(FAULTS)],
)
def test_a_rule_that_is_off_is_found_and_named(rule, kind, fault, words):
    ran = rule_runs.of(rule)
    broken = fault(ran.network)
    report = compare(None, ran.graph, broken, Raster(ran.raster), batch=5)
    found = report.first_divergence
    assert found is not None
    (one,) = found.faults
    assert (one.layer, one.kind) == ("a", kind)
    assert words.split("{}")[0] in one.text
    assert f"Not rounding: a: {one.text}." in found.text


@pytest.mark.parametrize("rule", rule_floats.RULES)
def test_what_the_quantizer_makes_has_no_faults(rule):
    ran = rule_runs.of(rule, "max" if rule == "graded sums" else "votes")
    for population in ran.network.populations:
        if population.name in ran.floats.by_name:
            assert certificates.comparable(ran.network, population, ran.floats)
            assert faults.of_network(ran.network, population, ran.floats) == []


def test_faults_of_what_is_not_certified_are_found_too():
    ran = rule_runs.of("graded spikes")
    for broken, kind in (
        (changed(ran.network, "b", dv=1000), "decay"),
        (changed(ran.network, "b", graded=None), "output"),
    ):
        found = faults.of_network(broken, broken.by_name["b"], ran.floats)
        assert [one.kind for one in found] == [kind]
    weight = ran.network.into("b")[0].synapses.weight.copy()
    weight[3, 4] += 5
    (way,) = ran.network.into("b")
    broken = ran.network.changed(replace(way, synapses=way.synapses.with_weights(weight)))
    (fault,) = faults.of_network(broken, broken.by_name["b"], ran.floats)
    assert "(5 too high)" in fault.text
    silent = rule_runs.of("current", "max")
    out = silent.network.by_name["out"]
    assert faults.of_network(silent.network, out, silent.floats) == []
    broken = changed(silent.network, "out", fires=True)
    assert "threshold" in {
        f.kind for f in faults.of_network(broken, broken.by_name["out"], silent.floats)
    }


# Words


def test_a_neuron_that_rests_on_one_side_alone():
    ran = rule_runs.of("hold")
    longer = changed(ran.network, hold=6)
    found = compare(None, ran.graph, longer, Raster(ran.raster)).first_divergence
    assert found is not None
    assert found.blame == "hold"
    assert found.voltages.rests[0] == 0 < found.voltages.rests[1]
    assert "The integer neuron rests from an earlier spike, this step included, for" in found.text
    assert "the float neuron does not rest." in found.text
    assert "To blame: how many steps it rests after a spike" in found.text
    assert found.to_json()["voltages"]["rests"] == list(found.voltages.rests)
    shorter = changed(ran.network, hold=0)
    found = compare(None, ran.graph, shorter, Raster(ran.raster)).first_divergence
    assert "The float neuron rests from an earlier spike" in found.text


def test_a_threshold_that_spikes_have_moved():
    ran = rule_runs.of("adaptive threshold")
    broken = changed(ran.network, adapt=ran.network.by_name["a"].neurons.adapt + 3000)
    for place in places(replace_runs(ran, broken), "a"):
        found = explained(replace_runs(ran, broken), place)
        rise = found.voltages.rise
        if rise is None or not rise.v:
            continue
        assert f"of which earlier spikes added {rise.v:.6g}" in found.text
        assert f"and {rise.v_int:,} added by earlier spikes" in found.text
        assert found.to_json()["voltages"]["rise"]["v_int"] == rise.v_int
        assert found.blame in ("adaptive threshold", "weight", "bias", "decay")
        if found.blame == "adaptive threshold":
            assert (
                "To blame: the rounding of what earlier spikes added to the threshold" in found.text
            )
            return
    pytest.fail("the rise of no threshold was to blame")


def replace_runs(ran: rule_runs.Ran, network: IntegerNetwork) -> rule_runs.Ran:
    """The runs of another network on what the float model sends."""
    given = {name: ran.sent[name] for name in ran.floats.by_name}
    forced = rule_runs.forced.run(network, ran.raster, given, states=True)
    return replace(ran, network=network, forced=forced)


def test_parts_that_are_to_blame_have_words():
    assert set(divergence.WORDS) >= {*course.PARTS, "adaptive threshold", "unknown"}


def test_values_are_told_apart_from_spikes():
    ran = rule_runs.of("graded spikes")
    found = compare(None, ran.graph, ran.network, Raster(ran.raster)).first_divergence
    assert found is not None
    assert found.blame == "unknown"
    sends = f"the float model {'sends a value' if found.float_spike else 'sends none'}"
    assert sends in found.text
    where = "with values from the same neurons" if found.place.layer == "b" else "with equal inputs"
    assert where in found.text
    assert "Its voltages are not compared: its float neurons send values" in found.text


# A run that is not what the network says


def ran_as(network: IntegerNetwork, sent: dict[str, np.ndarray]) -> np.ndarray:
    return runs.run_alone(network, "a", sent)


RUNS: list[tuple[str, Callable[[IntegerNetwork], IntegerNetwork], str]] = [
    ("constant", field(reset="zero", v_reset=0), "spikes set v to 0"),
    ("subtract", field(reset="zero"), "spikes set v to 0"),
    ("reset of the current", field(reset_current=False), "spikes left its currents as they are"),
    ("current", field(reset_current=True), "spikes set its currents to 0"),
    ("hold", field(hold=0), "it never rested"),
    ("hold", field(hold=1), "it rested one step shorter"),
    ("hold", field(hold=3), "it rested one step longer"),
    ("once", field(hold=0), "it never rested"),
    ("floor", field(floor=None), "it had no floor"),
    ("start", field(v0=0), "it started from 0"),
    ("adaptive threshold", field(adapt=0), "its threshold did not move"),
    ("gain", field(gain=lambda g: np.full_like(g, 4096)), "it had no gain"),
    ("gain", field(gain=lambda g: np.roll(g, 1, axis=0)), "its gains came one time step late"),
    ("gain", field(gain=lambda g: np.roll(g, -1, axis=0)), "its gains came one time step early"),
    ("second current", swapped, ""),
]


@pytest.mark.parametrize(("rule", "fault", "words"), RUNS)
def test_a_run_with_another_rule_is_named(rule, fault, words):
    ran = rule_runs.of(rule)
    if rule == "second current":
        crossed = ran.network.changed(*(replace(c, port=1 - c.port) for c in ran.network.into("a")))
        fault, words = (lambda _: crossed), "its currents were exchanged"
    for sample in range(rule_floats.SAMPLES):
        sent = {name: values[sample] for name, values in ran.sent.items()}
        got = ran_as(fault(ran.network), sent)
        if (got != ran_as(ran.network, sent)).any():
            (one,) = runs.of_execution(ran.network, "a", sent, got)
            assert one.text == f"it ran as if {words}"
            return
    pytest.fail("the fault changes no spike")


@pytest.mark.parametrize(
    ("rule", "name"),
    [("current", "du"), ("zero", "dv"), ("adaptive threshold", "dq")],
)
def test_decays_that_count_one_more_are_named(rule, name):
    ran = rule_runs.of(rule)
    texts = set()
    for sample in range(rule_floats.SAMPLES):
        sent = {key: values[sample] for key, values in ran.sent.items()}
        got = ran_as(field(**{name: lambda value: value + 1})(ran.network), sent)
        if (got != ran_as(ran.network, sent)).any():
            (one,) = runs.of_execution(ran.network, "a", sent, got)
            assert one.kind == "decay"
            texts.add(one.text)
    # Where few spikes differ, another decay may explain them as well.
    assert f"it ran as if {name} were one more" in texts
