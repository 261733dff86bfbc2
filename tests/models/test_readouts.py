"""Scores that are learned from order classes as the readout of the network does."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stl_deploy.ir.readouts import FloatReadout
from stl_deploy.models import readouts


def drawn(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Spikes and voltages [30, 6, 8]; many neurons spike first together, many never."""
    rng = np.random.default_rng(seed)
    spikes = (rng.random((30, 6, 8)) < rng.choice([0.05, 0.3], (30, 1, 1))).astype(np.float64)
    return spikes, rng.normal(0, 2, (30, 6, 8))


@pytest.mark.parametrize("rule", ["votes", "last", "mean", "max", "first"])
def test_the_highest_score_wins(rule):
    spikes, v = drawn(0)
    made, told = readouts.make(rule, 2), FloatReadout(4, 2, "", rule)
    given = [torch.from_numpy(x) for x in ((spikes,) if rule == "votes" else (spikes, v))]
    scores = made(*given).numpy()
    assert scores.shape == (30, 4)
    order, expected = (
        np.argsort(s, axis=1, kind="stable") for s in (scores, told.scores(spikes, v))
    )
    np.testing.assert_array_equal(order, expected)
    np.testing.assert_array_equal(scores.argmax(1), told.predict(spikes, v))


def test_neurons_that_tie_are_told_apart_by_their_voltage():
    """The first wins; of two that spike together, or never, the one with the higher v."""
    spikes = torch.tensor([[[0, 0, 1, 0, 0], [1, 1, 0, 0, 0.0]]])
    v = torch.tensor([[[9, 9, -5, 9, 9.0], [2, 3, 0, -1, -2]]])
    (scores,) = readouts.spiked_first(spikes, v)
    assert scores.argsort(descending=True).tolist() == [2, 1, 0, 3, 4]
    assert scores.floor().tolist() == [1, 1, 2, 0, 0]


def test_a_neuron_that_never_spiked_can_learn_to_and_one_that_spiked_can_learn_to_spike_later():
    spikes = torch.tensor([[[0, 0], [0, 1], [0, 1.0]]], requires_grad=True)
    readouts.spiked_first(spikes, torch.zeros(1, 3, 2)).sum().backward()
    assert spikes.grad is not None
    # A spike in the first of three steps is worth three; one behind the first spike is worth nothing.
    assert spikes.grad[0].T.tolist() == [[3, 2, 1], [1, 1, 0]]


@pytest.mark.parametrize("rule", ["last", "mean", "max", "first"])
def test_gradients_are_finite_differences(rule):
    spikes, v = (torch.from_numpy(x[:3]).requires_grad_() for x in drawn(1))
    made = readouts.make(rule, 2)

    def loss(given: torch.Tensor, voltages: torch.Tensor) -> torch.Tensor:
        return made.loss(made(given, voltages), torch.tensor([0, 3, 1]))

    assert torch.autograd.gradcheck(loss, (spikes, v))


def test_nothing_is_scored_without_samples():
    empty = torch.zeros(0, 6, 8)
    assert readouts.make("votes", 2)(empty).shape == (0, 4)
    for rule in ("last", "mean", "max", "first"):
        assert readouts.make(rule, 2)(empty, empty).shape == (0, 4)
