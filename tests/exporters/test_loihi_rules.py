"""Rules of neurons and readouts in the files for Loihi: carried, marked as assumed, or refused by name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from stl_deploy.chips import facts
from stl_deploy.errors import LoweringError
from stl_deploy.exporters import folder, lava, loihi_layers, netx
from stl_deploy.ir.network import Connection, Input, IntegerNetwork, Population
from stl_deploy.ir.neurons import MAX_HOLD, ONCE, Graded, Lif
from stl_deploy.ir.readouts import Readout
from stl_deploy.ir.synapses import Dense
from stl_deploy.report import rows

STEPS, NEURONS = 4, 3
GAIN = np.full((STEPS,), 2048, np.int16)
# The fields of each rule, and the words that the manifest has for it.
RULES: dict[str, tuple[dict[str, Any], str]] = {
    "none": ({"reset": "none"}, "no reset"),
    "constant": ({"reset": "constant", "v_reset": -70}, "reset to a constant"),
    "reset_current": ({"reset_current": True}, "reset of the current"),
    "hold": ({"hold": MAX_HOLD}, "hold"),
    "once": ({"hold": ONCE}, "hold for all remaining steps"),
    "floor": ({"floor": 0}, "floor of v"),
    "adapt": ({"adapt": 640, "dq": 100}, "adaptive threshold"),
    "du2": ({"du2": 300}, "second current"),
    "gain": ({"gain": GAIN}, "gain for each step"),
    "v0": ({"v0": 64}, "initial v"),
    "graded": ({"graded": Graded(6, 100)}, "graded output"),
    "integrator": ({"fires": False}, "no threshold"),
}


def network(chip: str, readout: Readout | None = None, **fields: Any) -> IntegerNetwork:
    """Two populations; the second one has the rules."""
    none, ones = np.zeros(NEURONS, np.int32), np.ones(NEURONS)
    plain = Lif(np.full(NEURONS, 5, np.int32), none, ones)
    weight = np.arange(-2, 7, dtype=np.int8).reshape(NEURONS, NEURONS)
    return IntegerNetwork(
        chip,
        STEPS,
        {"input": Input((NEURONS,))},
        (
            Population("first", (NEURONS,), plain),
            Population("odd", (NEURONS,), replace(plain, **fields)),
        ),
        (
            Connection("w1", "input", "first", Dense(weight)),
            Connection("w2", "first", "odd", Dense(weight + 3), port=int("du2" in fields)),
        ),
        readout or Readout(NEURONS, 1, "odd"),
    )


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_on_loihi2_is_marked_as_assumed(tmp_path, rule):
    fields, word = RULES[rule]
    manifest = folder.export(network("loihi2", **fields), "loihi", tmp_path / "out")
    first, odd = manifest["layers"]
    assert (first["rules"], first["assumed"]) == ([], [])
    assert odd["rules"] == odd["assumed"] == [word]
    (note,) = [d for d in manifest["diagnostics"] if "assumed" in d["what"]]
    assert note["where"] == "odd"
    assert note["what"].startswith(f"{word}: assumed. Intel Loihi 2 needs a neuron program")
    files = sorted(path.name for path in (tmp_path / "out" / "loihi").iterdir())
    assert files == ["lava_network.py", "lava_params.npz"]


def test_what_needs_no_program_is_not_marked(tmp_path):
    manifest = folder.export(network("loihi2", reset="subtract"), "loihi", tmp_path / "out")
    assert [row["assumed"] for row in manifest["layers"]] == [[], []]
    assert not [d for d in manifest["diagnostics"] if "assumed" in d["what"]]


def test_populations_with_the_same_rules_share_a_note(tmp_path):
    whole = network("loihi2", hold=2, gain=GAIN)
    odd = whole.by_name["odd"]
    both = whole.changed(replace(odd, name="first"))
    diagnostics = folder.export(both, "nir", tmp_path / "out")["diagnostics"]
    (note,) = [d for d in diagnostics if "assumed" in d["what"]]
    assert note["where"] == "first, odd"
    assert note["what"].startswith("gain for each step, hold: assumed. ")


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_on_chip_ideal_is_carried_and_not_assumed(tmp_path, rule):
    fields, word = RULES[rule]
    manifest = folder.export(network("ideal", **fields), "loihi", tmp_path / "out")
    assert [row["assumed"] for row in manifest["layers"]] == [[], []]
    assert [row["rules"] for row in manifest["layers"]] == [[], [word]]


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "hold"])
def test_loihi1_refuses_a_rule_by_name(tmp_path, rule):
    fields, word = RULES[rule]
    with pytest.raises(LoweringError) as caught:
        folder.export(network("loihi1", **fields), "loihi", tmp_path / "out")
    (problem,) = caught.value.problems
    assert problem.where == "odd"
    named = f"reset '{rule}'" if rule in ("none", "constant") else word
    assert problem.what.startswith(named)
    assert "loihi2" in problem.remedy
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("steps", [1, facts.load("loihi1").hold_max])
def test_loihi1_carries_a_hold(tmp_path, steps):
    manifest = folder.export(network("loihi1", hold=steps), "loihi", tmp_path / "out")
    assert manifest["layers"][1]["rules"] == ["hold"]
    assert not [d for d in manifest["diagnostics"] if "assumed" in d["what"]]


@pytest.mark.parametrize("rule", RULES)
def test_netx_refuses_a_rule_by_name(rule):
    fields, _ = RULES[rule]
    (note,) = netx.notes(network("loihi2", **fields))
    where = "not written: odd: "
    named = next(iter(fields))
    if named == "reset":
        assert note.what == f"{where}reset {rule!r}; netx's neurons reset to zero"
    else:
        assert note.what == f"{where}{named!r} of its neurons, which netx's do not have"
    (problem,) = netx.problems(network("loihi2", **fields))
    assert problem.remedy == "use the process graph, lava_network.py"


EACH = np.array([3, 1, 2])
READOUTS = {
    "readout last": Readout(NEURONS, 1, "odd", "last"),
    "readout mean": Readout(NEURONS, 1, "odd", "mean"),
    "readout max": Readout(NEURONS, 1, "odd", "max"),
    "readout first": Readout(NEURONS, 1, "odd", "first"),
    "readout steps": Readout(NEURONS, 1, "odd", steps=(1, 2, 3, 4)),
    "readout matrix": Readout(NEURONS, 1, "odd", matrix=np.eye(NEURONS, dtype=np.int64)),
}


@pytest.mark.parametrize("word", READOUTS)
def test_netx_refuses_a_readout_by_name(word):
    read = network("loihi2", READOUTS[word])
    assert not loihi_layers.problems(read)
    (note,) = netx.notes(read)
    assert (
        note.what
        == f"not written: odd: {word!r}, by which its classes are scored; netx has no readout"
    )


def test_the_manifest_says_how_classes_are_scored(tmp_path):
    readout = Readout(NEURONS, 1, "odd", "mean", factors=EACH)
    manifest = folder.export(network("loihi1", readout), "loihi", tmp_path / "out")
    assert manifest["readout"] == rows.readout_row(readout)
    assert (manifest["readout"]["source"], manifest["readout"]["rule"]) == ("odd", "mean")


@pytest.mark.parametrize("field", ["v_reset", "floor", "adapt", "v0"])
@pytest.mark.parametrize("chip", ["ideal", "loihi2"])
def test_a_value_of_v_that_24_bits_do_not_hold_is_refused(chip, field):
    reset = {"reset": "constant"} if field == "v_reset" else {}
    for value in ((1 << 23) - 1 - 64 * 50, -(1 << 23) + 1 + 64 * 50):
        assert not loihi_layers.problems(network("loihi2", **{field: value}, **reset))
    for value in (1 << 23, -(1 << 23)):
        (problem,) = loihi_layers.problems(network(chip, **{field: value}, **reset))
        assert problem.where == "odd"
        assert "8,388,60" in problem.what or "838860" in problem.what


def test_gains_and_weights_of_steps_that_are_not_run_are_left_out():
    gain = np.arange(STEPS + 2, dtype=np.int16)
    readout = Readout(NEURONS, 1, "odd", steps=tuple(range(STEPS + 2)))
    arrays = lava.params(network("loihi2", readout, gain=gain))
    assert arrays["p1/gain"].tolist() == [[step] * NEURONS for step in range(STEPS)]
    assert arrays["r/steps"].tolist() == list(range(STEPS))
