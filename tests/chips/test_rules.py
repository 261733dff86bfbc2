"""Which rules of neurons a chip carries, refuses by name, or is assumed to carry."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest

from stl_deploy.chips import facts, rules
from stl_deploy.ir import kinds
from stl_deploy.ir.neurons import ONCE, Graded, Lif
from tests.build.networks import chain, dense_lif
from tests.build.random_graphs import TABLE, draw

M = 1 << 23
# By the word of the rule, fields that make it, at the ends of their ranges.
HAS = {
    "gain for each step": {"gain": np.full((4, 1), 4096, np.int16)},
    "second current": {"du2": 0},
    "hold": {"hold": 62},
    "hold for all remaining steps": {"hold": ONCE},
    "floor of v": {"floor": 0},
    "no threshold": {"fires": False},
    "adaptive threshold": {"adapt": np.array([0, 1], np.int32)},
    "graded output": {"graded": Graded(0, 1)},
    "reset to a constant": {"reset": "constant", "v_reset": 0},
    "no reset": {"reset": "none"},
    "reset of the current": {"reset_current": True},
    "initial v": {"v0": np.array([0, -1], np.int32)},
}


def network(chip, **changed):
    """Two neurons on ``chip`` with these fields."""
    made = chain(dense_lif([[1], [1]]), chip=chip, steps=4)
    (population,) = made.populations
    return made.changed(replace(population, neurons=replace(population.neurons, **changed)))


def test_every_field_belongs_to_a_rule():
    """A new field of neurons that no rule knows would pass for what any chip does."""
    assert set(HAS) == set(rules.RULES)
    known = kinds.FIELDS | {"v_reset", "dq"}  # say nothing without their reset or ``adapt``
    of_rules = {name for given in HAS.values() for name in given}
    assert known | of_rules == {field.name for field in fields(Lif)}


@pytest.mark.parametrize("word", HAS)
def test_rules(word):
    """Ideal carries it; of loihi2 it is assumed; loihi1 refuses it by name, but for a hold."""
    for chip in ("ideal", "loihi1", "loihi2"):
        found = network(chip, **HAS[word])
        assert rules.words(found.populations[0].neurons) == [word]
        problems = rules.refused(found)
        assumed = rules.assumed(found)
        assert assumed == ({found.populations[0].name: [word]} if chip == "loihi2" else {})
        if chip != "loihi1" or word == "hold":
            assert problems == []
            continue
        (problem,) = problems
        assert problem.where == found.populations[0].name
        assert "loihi2" in problem.remedy
        assert "ideal" in problem.remedy
        assert len(str(problem).split()) <= 40


def test_a_hold_on_loihi1_is_one_less_than_its_register():
    """A refractory delay of 1 is no rest (nengo-loihi, Brian2Loihi), and the register ends at 63."""
    assert rules.refused(network("loihi1", hold=62)) == []
    (problem,) = rules.refused(network("loihi1", hold=63))
    assert problem.what == (
        "hold 63; after a spike v of Intel Loihi (first generation) rests for at most 62 steps"
    )


def test_networks_without_rules_are_those_of_any_chip():
    for chip in ("ideal", "loihi1", "loihi2"):
        assert rules.refused(network(chip)) == []
        assert rules.assumed(network(chip)) == {}
    assert rules.refused(network("loihi2", reset="subtract")) == []
    (problem,) = rules.refused(network("loihi1", reset="subtract"))
    assert "reset 'subtract'" in problem.what


def test_all_problems_at_once():
    found = rules.refused(network("loihi1", floor=-1, v0=M, reset="none", adapt=1))
    assert len(found) == 5
    assert len({problem.what for problem in found}) == 5


def test_what_neurons_without_a_threshold_do_at_spikes_means_nothing():
    found = network("loihi2", fires=False, reset="none", hold=3, adapt=4, reset_current=True)
    assert rules.words(found.populations[0].neurons) == ["no threshold"]


@pytest.mark.parametrize("field", rules.OF_V)
@pytest.mark.parametrize("sign", [1, -1])
def test_registers_hold_what_counts_like_v(field, sign):
    assert rules.refused(network("loihi2", **{field: sign * (M - 1)})) == []
    for value in (sign * M, np.array([0, sign * M], np.int32)):
        (problem,) = rules.refused(network("loihi2", **{field: value}))
        assert field in problem.what
        assert "8,388,607" in problem.what
    assert rules.refused(network("ideal", **{field: sign * M})) == []


def small(**changed):
    """The facts of loihi2 with others of neurons or registers, as those of a chip of its own."""
    data = facts.load("loihi2").model_dump(by_alias=True, exclude_none=True)
    for table, name in (("neurons", "rules"), ("registers", "graded_spike_bits")):
        if name in changed:
            data[table].pop(name)
            if changed[name] is not None:
                data[table][name] = {"value": changed[name], "source": "made for this test"}
    data |= {"name": "small", "profiles": {}}
    return facts.check(data, "small")


def test_payloads_of_a_chip_hold_what_neurons_send():
    chip = small(graded_spike_bits=8)
    for levels, spikes, fits in ((127, {}, True), (255, {}, True), (256, {}, False)):
        found = replace(
            network("loihi2", graded=Graded(0, levels), **spikes),
            chip="small",
            chip_facts=facts.carried(chip),
        )
        assert (rules.refused(found) == []) == fits, levels
    for levels, fits in ((127, True), (128, False)):
        found = network("loihi2", graded=Graded(0, levels), fires=False)
        found = replace(found, chip="small", chip_facts=facts.carried(chip))
        assert (rules.refused(found) == []) == fits, levels


def test_a_chip_file_that_says_nothing_of_rules_refuses_them():
    chip = small(rules=None)
    found = replace(network("loihi2", hold=1), chip="small", chip_facts=facts.carried(chip))
    (problem,) = rules.refused(found)
    assert "hold 1; after a spike v of" in problem.what
    assert rules.assumed(found) == {}


@pytest.mark.parametrize("seed", range(5))
def test_random_graphs_are_within_their_chip(seed):
    found, _ = draw(seed, TABLE)
    assert rules.refused(found) == []
