"""Values and sizes that no network has are refused where it is made."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from stl_deploy.ir.neurons import MAX_HOLD, ONCE, Graded, Lif
from stl_deploy.ir.readouts import MAX_FACTOR, Readout
from tests.build.networks import chain, dense_lif

TOP = (1 << 31) - 1
PARAMETERS = np.zeros(3, np.int32), np.zeros(3, np.int32), np.ones(3)
LIMITS = {
    **dict.fromkeys(("v_reset", "floor", "adapt", "v0"), (-TOP - 1, TOP)),
    **dict.fromkeys(("dq", "du2"), (0, 4095)),
    "hold": (ONCE, MAX_HOLD),
}


@pytest.mark.parametrize("field", LIMITS)
def test_fields_end_where_they_say(field):
    low, high = LIMITS[field]
    for value in (low, high):
        assert getattr(Lif(*PARAMETERS, **{field: value}), field) == value
    for value in (low - 1, high + 1, np.array([low, high + 1, 0], np.int64)):
        with pytest.raises(ValueError, match=rf"{field} -?\d+, not {low}\.\.{high}"):
            Lif(*PARAMETERS, **{field: value})


def test_all_that_is_wrong_is_said_at_once():
    gain = np.zeros((), np.int16)
    with pytest.raises(ValueError, match=r"called 'soft'; dq 5000.*; hold 64.*; gain int16 \[\]"):
        Lif(*PARAMETERS, reset="soft", dq=5000, hold=64, gain=gain)
    with pytest.raises(ValueError, match="gain float64"):
        Lif(*PARAMETERS, gain=np.ones((4, 3)))


@pytest.mark.parametrize(("shift", "levels"), [(-1, 1), (24, 1), (0, 0), (0, 32_768)])
def test_graded_values_end_where_connections_do(shift, levels):
    with pytest.raises(ValueError, match="are possible"):
        Graded(shift, levels)


def made(readout=None, **fields):
    """A network of three neurons over four steps."""
    network = chain(dense_lif(np.ones((3, 2))), chip="ideal", steps=4)
    (population,) = network.populations
    neurons = replace(population.neurons, **fields)
    readout = readout or network.readout
    return replace(network.changed(replace(population, neurons=neurons)), readout=readout)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"gain": np.ones((3, 1), np.int16)}, "a gain for 3 steps; 4 are needed"),
        ({"gain": np.ones((4, 2), np.int16)}, r"gain \[2\] does not broadcast to neurons \[3\]"),
        ({"v0": np.ones(2, np.int32)}, r"v0 \[2\] does not"),
        ({"floor": np.ones((1, 3), np.int32)}, r"floor \[1, 3\] does not"),
        ({"du2": np.ones(4, np.int32)}, r"du2 \[4\] does not"),
        ({"dv": np.ones(2, np.int32)}, r"dv \[2\] does not"),
    ],
)
def test_sizes_of_fields(fields, message):
    with pytest.raises(ValueError, match=message):
        made(**fields)


def test_fields_for_all_for_each_and_for_more_steps():
    gain = np.ones((9, 3), np.int16)
    assert made(gain=gain, v0=np.ones(1, np.int32), floor=np.ones(3, np.int32)) is not None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"classes": 2}, "3 neurons; the readout is of 2 classes of 1"),
        ({"matrix": np.ones((3, 2), np.int64)}, r"3 neurons; .* \[3, 2\] \[classes, neurons\]"),
        ({"rule": "last", "factors": np.ones(2, np.int64)}, "2 factors for 3 neurons"),
        ({"steps": (1, 1, 1)}, "weights of 3 steps; 4 are needed"),
        (
            {"matrix": np.ones((3, 3), np.int64), "offset": np.ones(1, np.int64)},
            "1 offsets for 3 classes",
        ),
    ],
)
def test_readouts_fit_their_source(fields, message):
    source = made().populations[0].name
    with pytest.raises(ValueError, match=message):
        made(Readout(**{"classes": 3, "population": 1, "source": source} | fields))


@pytest.mark.parametrize(
    "fields",
    [
        {"steps": (1, 0.5, 1, 1)},
        {"matrix": np.full((3, 3), 0.25)},
        {"rule": "max", "factors": np.array([1, np.nan, 1])},
    ],
)
def test_integer_networks_are_read_out_in_whole_numbers(fields):
    with pytest.raises(ValueError, match="in whole numbers"):
        Readout(3, 1, **fields)


def test_no_readout_is_called_otherwise():
    with pytest.raises(ValueError, match="no readout is by 'sum'"):
        Readout(3, 1, rule="sum")
    assert Readout(1, 1, rule="last", factors=np.array([MAX_FACTOR])).factors is not None
