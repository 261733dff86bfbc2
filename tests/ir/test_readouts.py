"""What the host makes of the last neurons, by hand and against loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stl_deploy.ir.readouts import MAX_FACTOR, FloatReadout, Readout


def steps_of(*rows):
    """[1, T, neurons] for what each step shows."""
    return np.array([rows])


# By hand


def test_votes_are_added_up_over_the_neurons_of_a_class():
    spikes = steps_of([0, 1, 1, 0], [0, 1, 1, 1]).astype(np.uint8)
    assert Readout(2, 2).scores(spikes).tolist() == [[2, 3]]
    assert Readout(4, 1).predict(spikes).tolist() == [1]
    many = np.ones((1, 300, 2), np.uint8)
    assert Readout(1, 2).scores(many).tolist() == [[600]]


def test_graded_votes_count_by_what_they_carry():
    sent = steps_of([-300, 5], [200, -200]).astype(np.int16)
    assert Readout(2, 1).scores(sent).tolist() == [[-100, -195]]
    large = np.full((1, 3, 1), 32_767, np.int16)
    assert Readout(1, 1).scores(large).tolist() == [[98_301]]


def test_steps_weigh_the_votes():
    spikes = steps_of([1, 0], [0, 1], [0, 1]).astype(np.uint8)
    assert Readout(2, 1, steps=(5, 2, -1)).scores(spikes).tolist() == [[5, 1]]
    # A raster of fewer steps takes the weights of the first.
    assert Readout(2, 1, steps=(5, 2, -1)).scores(spikes[:, :2]).tolist() == [[5, 2]]


def test_a_matrix_weighs_counts_and_adds_its_offset_in_every_step():
    spikes = steps_of([1, 0, 1], [1, 0, 0]).astype(np.uint8)
    matrix, offset = np.array([[1, 7, -2], [0, 7, 3]]), np.array([0, 2])
    assert Readout(2, 1, matrix=matrix).scores(spikes).tolist() == [[0, 3]]
    assert Readout(2, 1, matrix=matrix, offset=offset).scores(spikes).tolist() == [[0, 7]]
    weighted = Readout(2, 1, matrix=matrix, offset=offset, steps=(3, 1))
    assert weighted.scores(spikes).tolist() == [[4 - 6, 9 + 8]]
    # One step of two: its weight alone counts for the offset too.
    assert weighted.scores(spikes[:, :1]).tolist() == [[3 - 6, 9 + 6]]


V = steps_of([5, -1, 0, 4], [-7, 2, 9, -6], [3, -4, 1, 1])


@pytest.mark.parametrize(
    ("rule", "scores", "weighted"),
    [
        ("last", [-1, 2], [9 - 4, 10 + 1]),
        # 5 - 7 + 3 = 1, -1 + 2 - 4 = -3, 10, -1
        ("mean", [-2, 9], [3 - 3, 100 - 1]),
        ("max", [7, 13], [15 + 2, 90 + 4]),
    ],
)
def test_voltages(rule, scores, weighted):
    spikes, factors = np.zeros(V.shape, np.uint8), np.array([3, 1, 10, 1])
    assert Readout(2, 2, rule=rule).scores(spikes, V.astype(np.int32)).tolist() == [scores]
    assert Readout(2, 2, rule=rule, factors=factors).scores(spikes, V).tolist() == [weighted]


def test_voltages_of_31_bits_add_up():
    v = np.full((1, 4096, 1), (1 << 31) - 1, np.int32)
    sent, factors = np.zeros(v.shape, np.uint8), np.array([2])
    total = 4096 * ((1 << 31) - 1)
    assert Readout(1, 1, rule="mean", factors=factors).scores(sent, v).tolist() == [[2 * total]]


@pytest.mark.parametrize(
    ("spikes", "v", "winner"),
    [
        # The earliest spike wins, whatever v says.
        ([[0, 1, 0], [1, 0, 1]], [[0, 0, 99], [9, 9, 9]], 1),
        # Of two in one step the larger v after it, then the lower index.
        ([[0, 1, 1], [1, 0, 0]], [[9, 3, 4], [9, 9, 0]], 2),
        ([[0, 1, 1], [1, 0, 0]], [[9, 4, 4], [9, 0, 9]], 1),
        # A second spike changes nothing.
        ([[0, 1, 0], [1, 1, 0]], [[9, 0, 0], [9, 9, 9]], 1),
        # Neurons that never spike come behind, by the v of the last step.
        ([[0, 0, 0], [0, 0, 1]], [[0, 0, 0], [9, 9, -9]], 2),
        ([[0, 0, 0], [0, 0, 0]], [[9, 0, 0], [1, 2, 2]], 1),
        ([[0, 0, 0], [0, 0, 0]], [[1, 2, 3], [-5, -5, -5]], 0),
    ],
)
def test_the_first_spike_wins(spikes, v, winner):
    sent, v = steps_of(*spikes).astype(np.uint8), steps_of(*v).astype(np.int32)
    assert Readout(3, 1, rule="first").predict(sent, v).tolist() == [winner]
    graded = (sent * np.array([-3, 5, -7])).astype(np.int16)
    assert Readout(3, 1, rule="first").predict(graded, v).tolist() == [winner]


def test_the_first_of_several_neurons_speaks_for_its_class():
    """Neurons 1 and 2 spike first and in one step; v of 2 is larger, so that class 1 wins."""
    spikes = steps_of([0, 1, 1, 0], [1, 0, 0, 1]).astype(np.uint8)
    v = steps_of([0, 3, 4, 0], [9, 9, 9, 9])
    assert Readout(2, 2, rule="first").predict(spikes, v).tolist() == [1]
    assert Readout(2, 2, rule="first").scores(spikes, v).tolist() == [[2, 3]]


def test_the_first_of_equal_classes_is_predicted():
    nothing = np.zeros((1, 2, 3), np.uint8)
    for rule in ("votes", "last", "mean", "max", "first"):
        assert Readout(3, 1, rule=rule).predict(nothing, nothing.astype(np.int32)).tolist() == [0]


def test_float_readouts_do_not_round():
    sent, v = np.full((1, 2, 2), 0.5), steps_of([0.25, 0.5], [0.25, 0.375])
    assert FloatReadout(2, 1, steps=(0.5, 0.25)).scores(sent).tolist() == [[0.375, 0.375]]
    assert FloatReadout(2, 1, rule="mean").scores(sent, v).tolist() == [[0.5, 0.875]]


# Against loops


def plain(readout, sent, v):
    """The prediction of one sample: lists [T][neurons]."""
    steps, neurons = len(sent), len(sent[0])
    if readout.rule == "first":

        def place(i):
            fired = [t for t in range(steps) if sent[t][i]]
            first = fired[0] if fired else steps
            return first, -v[min(first, steps - 1)][i], i

        return min(range(neurons), key=place) // readout.population
    value = {
        "votes": lambda i: sum(sent[t][i] for t in range(steps)),
        "last": lambda i: v[-1][i],
        "mean": lambda i: sum(v[t][i] for t in range(steps)),
        "max": lambda i: max(v[t][i] for t in range(steps)),
    }[readout.rule]
    factors = [1] * neurons if readout.factors is None else readout.factors.tolist()
    score = [0] * readout.classes
    for i in range(neurons):
        score[i // readout.population] += value(i) * factors[i]
    return score.index(max(score))


@given(
    st.sampled_from(["votes", "last", "mean", "max", "first"]),
    st.tuples(*[st.integers(1, 4)] * 3),
    st.integers(1, 3),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_predictions_with_many_ties(rule, sizes, spread, weighted, seed):
    rng, (classes, population, steps) = np.random.default_rng(seed), sizes
    size = 20, steps, classes * population
    sent = (rng.random(size) < 0.3).astype(np.uint8)
    v = rng.integers(-spread, spread + 1, size).astype(np.int32)
    by_factor = weighted and rule in ("last", "mean", "max")
    factors = rng.integers(1, 3, size[2]) if by_factor else None
    readout = Readout(classes, population, rule=rule, factors=factors)
    expected = [plain(readout, *one) for one in zip(sent.tolist(), v.tolist(), strict=True)]
    assert readout.predict(sent, v).tolist() == expected


# Refused


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rule": "last", "steps": (1,)}, "'last' has no steps"),
        ({"rule": "first", "matrix": np.ones((2, 2))}, "'first' has no matrix"),
        ({"factors": np.ones(2)}, "'votes' has no factors"),
        ({"rule": "first", "factors": np.ones(2)}, "'first' has no factors"),
        ({"offset": np.ones(2)}, "no offset"),
        ({"steps": (1, MAX_FACTOR + 1)}, f"{MAX_FACTOR} is the largest"),
        ({"rule": "max", "factors": np.array([-MAX_FACTOR - 1])}, f"{MAX_FACTOR} is the largest"),
    ],
)
def test_what_contradicts_itself(fields, message):
    with pytest.raises(ValueError, match=message):
        Readout(2, 1, **fields)


def test_voltages_must_be_given():
    with pytest.raises(ValueError, match="'last' needs v"):
        Readout(1, 1, rule="last").scores(np.zeros((1, 1, 1), np.uint8))


def test_a_source_must_have_as_many_neurons_as_the_classes_take():
    assert Readout(2, 3).fits(6)
    assert not Readout(2, 3).fits(7)
    assert Readout(2, 3, matrix=np.ones((2, 5))).fits(5)
    assert not Readout(2, 3, matrix=np.ones((2, 5))).fits(6)
