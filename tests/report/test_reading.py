"""How the populations of a network were read, in words."""

from __future__ import annotations

import pytest

from stl_deploy.commands.reading import print_reading
from stl_deploy.ir.read_as import ReadAs
from stl_deploy.report import reading

NOBODY = {"reset": "assumed", "when": "assumed", "dt": "assumed", "timesteps": "assumed"}


def record(name="lif", **fields):
    plain = {"neuron": "LIF", "reset": "zero", "when": "same step", "timesteps": 4, "source": name}
    return ReadAs(population=name, **plain | fields)


def cells(*records):
    header, rows = reading.table(records)
    return [dict(zip(header, row, strict=True)) for row in rows]


def test_populations_that_were_read_alike_share_a_row():
    many = [record(f"lif{i}") for i in range(16)]
    other = record("out", reset="none", when="", spikes=None)
    alike, last = cells(*many, other)
    assert alike["population"].value == "lif0, lif1 and 14 more"
    assert alike["reset"] == ("zero, same step", "")
    assert (last["population"].value, last["reset"].value, last["spikes"].value) == (
        "out",
        "none",
        "-",
    )
    # One that differs in who said something stands alone.
    apart = record("lif9", origin={"reset": "option"})
    assert [row["population"].value for row in cells(*many[:2], apart)] == ["lif0, lif1", "lif9"]


def test_columns_that_say_nothing_are_left_out():
    assert list(cells(record())[0]) == ["population", "neuron", "reset", "T", "spikes"]
    (row,) = cells(record(dt=1e-3, tau=0.5, source="body.3", origin={"tau": "option"}))
    assert (row["dt"], row["tau"]) == (("0.001 s", ""), ("0.5", "--tau"))
    assert row["from"].value == "body.3"


@pytest.mark.parametrize(
    ("who", "mark"),
    [("file", ""), ("option", "--timesteps"), ("raster", "raster"), ("assumed", "assumed")],
)
def test_who_said_a_value_stands_below_it(who, mark, capsys):
    made = record(origin={"timesteps": who})
    assert cells(made)[0]["T"] == ("4", mark)
    print_reading("n.nir", [made])
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert lines[0] == "How n.nir was read"
    assert all(len(line) <= 80 for line in lines)
    assert lines[4].split() == ([mark] if mark else [])
    assert ("assumed, as the model does not say: T (4)" in shown.err) == (who == "assumed")


def test_a_note_names_what_was_assumed_and_the_options_that_change_it():
    made = record(dt=1e-4, spikes=1, origin={**NOBODY, "spikes": "assumed"})
    (note,) = reading.note([made], "n.nir", {"reset", "dt", "timesteps"})
    assert note.what == (
        "assumed, as the model does not say: reset of lif (zero, same step), dt (0.0001 s), T (4), "
        "spikes per step (1)"
    )
    assert note.remedy.startswith("otherwise give --reset, --dt, --timesteps or --eval; snnTorch")
    (note,) = reading.note([made], "g", {"reset", "dt", "timesteps"}, python=True)
    assert note.remedy.startswith("otherwise give reset=, dt= or timesteps=; ")
    (note,) = reading.note([made], "n.nir")
    assert note.remedy == ""


def test_what_every_file_of_a_kind_leaves_open_is_no_note_of_its_own():
    """Spikes per step, which no NIR file states; and where a caller has a default, that."""
    assert reading.note([record(origin={"spikes": "assumed"})], "n.nir") == ()
    assert reading.assumed([record(origin={"spikes": "assumed"})]) == ""
    made = record(dt=1e-4, origin={"dt": "assumed"})
    assert reading.note([made], "n.nir", unless=frozenset({"dt"})) == ()
    assert reading.note([made], "n.nir") != ()
