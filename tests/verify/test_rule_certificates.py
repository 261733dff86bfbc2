"""Certificates of every rule of neurons: never wrong, tight enough to be of use, and able to be wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from stl_deploy.ir import execute, floats
from stl_deploy.ir import nir_graph as G
from stl_deploy.ir.neurons import Graded
from stl_deploy.verify import certificates, sides
from stl_deploy.verify.certificates import Certifier
from tests.build import random_graphs, rule_floats, rule_runs
from tests.build.float_networks import near
from tests.build.forced import run as run_forced
from tests.build.random_graphs import Features

CERTIFIED = [rule for rule in rule_floats.RULES if not rule.startswith("graded")]
RULES = random_graphs.RULES - {"graded", "integrator"}
GRAPHS = Features(rules=RULES, chips=("ideal", "loihi2"))


def of(ran: rule_runs.Ran, name: str) -> Certifier:
    found = certificates.certifier(ran.network, ran.network.by_name[name], ran.floats)
    assert isinstance(found, Certifier), found
    return found


@pytest.mark.parametrize("rule", CERTIFIED)
def test_nearly_all_of_a_medium_network_is_certified(rule):
    """And all that is said of it holds, voltages included."""
    ran = rule_runs.of(rule)
    for name in ("a", "b", "out"):
        want, got = ran.sent[name], ran.forced.layers[name].spikes
        verdicts = of(ran, name).run(ran.sent, want, bounds=True)
        assert not verdicts.wrong(got).any()
        certified = verdicts.certified(want)
        assert (want == got)[certified].all()
        spiking = (want | got) != 0
        assert certified.mean() > 0.98
        assert certified[spiking].mean() > 0.88
        # What agrees but is not proved lies at the threshold.
        assert certified.mean() > (want == got).mean() - 0.002
        v = execute.trace(replace(ran.floats, output=name), ran.raster).v
        whole = ran.forced.layers[name].v * ran.network.by_name[name].neurons.scale / 64
        apart = np.abs(whole - v)
        assert (apart <= verdicts.bound)[~spiking].all()


def test_no_certificate_is_wrong_in_random_graphs_of_all_rules():
    met: dict[str, np.ndarray] = {}
    for seed in range(24):
        network, rasters = random_graphs.draw(seed, GRAPHS)
        rng = np.random.default_rng(seed)
        network, known = near(rng, network, float(rng.choice([0, 0.5, 3])))
        given = network.rasters(rasters)
        sent = {**given, **execute.run(known, given)}
        forced = run_forced(network, rasters, {n: sent[n] for n in network.by_name})
        for population in network.populations:
            name, n = population.name, population.neurons
            got = forced.layers[name].spikes
            verdicts = Certifier(network, population, known).run(sent, sent[name])
            assert not (verdicts.fires & verdicts.silent).any(), (seed, name)
            assert not verdicts.wrong(got).any(), (seed, name)
            certified = verdicts.certified(sent[name])
            assert (got == sent[name])[certified].all()
            for rule in {
                *sides_of(n.reset in ("none", "constant"), n.reset),
                *sides_of(n.hold, "once" if n.hold < 0 else "hold"),
                *sides_of(n.reset_current and n.has_current, "reset_current"),
                *sides_of(n.floor is not None, "floor"),
                *sides_of(n.adapts, "adapt"),
                *sides_of(n.du2 is not None, "du2"),
                *sides_of(n.gain is not None, "gain"),
                *sides_of(np.any(n.v0), "v0"),
            }:
                counts = np.array([certified.size, certified.sum()])
                met[rule] = met.get(rule, 0) + counts
    assert set(met) == RULES
    for rule, (entries, certified) in met.items():
        assert certified > 0.9 * entries, rule


def sides_of(there: Any, rule: str) -> list[str]:
    return [rule] if there else []


def shifted(side: str, name: str, by: float) -> Callable[[Certifier], None]:
    """A parameter of a side that is off, by so many units of v or 1/4096."""

    def change(certifier: Certifier) -> None:
        cells = certifier.cells
        of_side = getattr(cells, side)
        old = getattr(of_side, name)
        whole_current = side == "whole" and name in ("first", "second")
        share = name in ("keep", "first", "second", "rise_keep")
        step = by if whole_current else by / 4096 if share else by * cells.unit
        new = np.asarray(old + step, old.dtype)
        certifier.cells = cells._replace(**{side: of_side._replace(**{name: new})})

    return change


def other(**fields: Any) -> Callable[[Certifier], None]:
    """Another kind of integer neurons."""

    def change(certifier: Certifier) -> None:
        rules = certifier.rules
        certifier.rules = rules._replace(whole=rules.whole._replace(**fields))

    return change


def late_gain(certifier: Certifier) -> None:
    floats_, whole = certifier.amplified()
    certifier.amplified = lambda: (floats_, np.roll(whole, 1, axis=0))  # type: ignore[method-assign]


FAULTS: list[tuple[str, str, Callable[[Certifier], None]]] = [
    ("zero", "reset", shifted("whole", "reset", 200)),
    ("constant", "v_reset", shifted("whole", "reset", 200)),
    ("constant", "float v_reset", shifted("floats", "reset", 200)),
    ("none", "a reset to zero", other(keeps=False)),
    ("subtract", "what is subtracted", shifted("whole", "drop", 200)),
    ("current", "du", shifted("whole", "first", 100)),
    ("current", "float current", shifted("floats", "first", 100)),
    ("reset of the current", "currents that stay", other(clears=False)),
    ("current", "currents that are reset", other(clears=True)),
    ("second current", "du2", shifted("whole", "second", 200)),
    ("second current", "float current2", shifted("floats", "second", 200)),
    ("hold", "one step less", other(hold=1)),
    ("hold", "one step more", other(hold=3)),
    ("once", "no rest", other(hold=0)),
    ("floor", "a lower floor", shifted("whole", "floor", -500)),
    ("floor", "a higher floor", shifted("whole", "floor", 500)),
    ("adaptive threshold", "the rise", shifted("whole", "rise", 200)),
    ("adaptive threshold", "its decay", shifted("whole", "rise_keep", 200)),
    ("adaptive threshold", "float decay", shifted("floats", "rise_keep", -200)),
    ("start", "v0", shifted("whole", "start", 500)),
    ("gain", "a gain of the step before", late_gain),
]


@pytest.mark.parametrize(
    ("rule", "what", "change"), FAULTS, ids=[f"{f[0]}: {f[1]}" for f in FAULTS]
)
def test_a_wrong_coefficient_is_contradicted(rule, what, change):
    """The runs show that a proof with any other equation is wrong: these tests can fail."""
    ran = rule_runs.of(rule)
    wrong = 0
    for name in ("a", "b"):
        found = of(ran, name)
        change(found)
        verdicts = found.run(ran.sent, ran.sent[name])
        wrong += int(verdicts.wrong(ran.forced.layers[name].spikes).sum())
    assert wrong


def test_the_steps_before_are_those_of_the_float_side_too():
    """A float gain that is not what the model multiplied with refutes the float spikes themselves."""
    ran = rule_runs.of("gain")
    found = of(ran, "a")
    amplified, gain = found.amplified()
    found.amplified = lambda: (np.roll(amplified, 1, axis=0), gain)  # type: ignore[method-assign]
    assert found.run(ran.sent, ran.sent["a"]).refuted.any()


@pytest.mark.parametrize("rule", ["graded spikes", "graded sums"])
def test_values_are_not_certified_and_it_is_said_why(rule):
    ran = rule_runs.of(rule, "max" if rule == "graded sums" else "votes")
    got = certificates.certifiers(ran.network, ran.graph)
    assert "send values instead of spikes" in str(got["a"])
    why = "have no threshold" if rule == "graded sums" else "its source b sends values"
    assert why in str(got["out"])


def test_rules_of_one_side_alone_are_told():
    """Of the integers what certificates leave out, and what lies outside of a chip's registers."""
    ran = rule_runs.of("zero")
    a = ran.network.by_name["a"]
    for chip, fields, why in (
        ("ideal", {"graded": Graded(0, 9)}, "its neurons send values instead of spikes"),
        ("loihi2", {"v0": 1 << 23}, "its v0 is outside the registers"),
        ("loihi2", {"reset": "constant", "v_reset": -(1 << 23)}, "its v_reset is outside"),
        ("loihi2", {"floor": 1 << 30}, "its floor is outside the registers"),
    ):
        changed = replace(a, neurons=replace(a.neurons, **fields))
        network = replace(ran.network.changed(changed), chip=chip)
        assert why in str(certificates.certifier(network, changed, ran.floats))


def test_a_field_of_float_neurons_that_is_not_known_is_refused(monkeypatch):
    ran = rule_runs.of("hold")
    monkeypatch.setattr(sides, "KNOWN_FLOAT", sides.KNOWN_FLOAT - {"hold"})
    found = certificates.certifier(ran.network, ran.network.by_name["a"], ran.floats)
    assert found == "the hold of its float neurons is not known here"


def test_what_arrives_from_graded_neurons_has_no_bound():
    """Magnitudes of sums are those of spikes; behind values there are none."""
    ran = rule_runs.of("graded spikes")
    assert set(floats.magnitudes(ran.graph)) == {"a"}
    assert set(floats.magnitudes(rule_runs.of("zero").graph)) == {"a", "b", "out"}


def test_networks_trained_on_integers_have_no_rules():
    ran = rule_runs.of("hold")
    assert ran.floats.meta is not None
    scale = {name: [1.0] * len(p.neurons.threshold) for name, p in ran.floats.by_name.items()}
    trained = G.Trained(weight_bits=8, scale=scale)
    meta = ran.floats.meta.model_copy(update={"trained": trained, "timesteps": 4})
    half = [
        replace(p, neurons=replace(p.neurons, step=np.full(1, 0.5))) for p in ran.floats.populations
    ]
    known = replace(ran.floats, meta=meta, populations=tuple(half))
    found = certificates.certifier(ran.network, ran.network.by_name["a"], known)
    assert found == "it was trained on integers with rules that the proof does not know"
