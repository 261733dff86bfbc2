"""What synapses know of their weights, against a matrix with a row for each neuron."""

import numpy as np
import pytest

from stl_deploy.ir.conv import unroll
from stl_deploy.ir.synapses import Conv, Dense, Kernel, Sparse

BEFORE, SHAPE = (2, 5, 4), (3, 3, 2)
GEOMETRY = ((2, 2), (1, 1), (1, 2), 1)


def drawn(rng, *shape):
    return rng.integers(-9, 10, shape).astype(np.int8)


def sparse(conv: Conv) -> Sparse:
    row, column, weight = unroll(conv.weight, BEFORE, SHAPE, *conv.geometry)
    kernel = Kernel(conv.weight.astype(np.float64), np.zeros(3), *conv.geometry)
    stored = weight != 0
    return Sparse(row[stored], column[stored], weight[stored], (18, 40), kernel)


def test_scaled_weights_are_those_of_each_channel():
    rng = np.random.default_rng(0)
    conv, unit = Conv(drawn(rng, 3, 2, 3, 2), *GEOMETRY), rng.random(3)
    dense = Dense(drawn(rng, 3, 7))
    for o in range(3):
        assert (conv.scaled(unit)[o] == conv.weight[o] * unit[o]).all()
        assert (dense.scaled(unit)[o] == dense.weight[o] * unit[o]).all()
    mine, each = sparse(conv), rng.random(18)
    expected = mine.matrix.toarray() * each[:, None]
    assert (mine.scaled(each).toarray() == expected).all()
    assert np.count_nonzero(expected)


@pytest.mark.parametrize("neuron", range(18))
def test_weights_into_a_neuron_are_found_by_input_or_by_index(neuron):
    rng = np.random.default_rng(1)
    conv = Conv(drawn(rng, 3, 2, 3, 2), *GEOMETRY)
    mine = sparse(conv)
    inputs, nowhere = rng.permutation(40), np.zeros((40, 0), np.int64)
    held = mine.into(neuron, inputs, nowhere)
    assert held.tolist() == mine.matrix.toarray()[neuron, inputs].tolist()
    index = np.argwhere(conv.weight[neuron // 6 : neuron // 6 + 1] != 99)
    index[:, 0] = neuron // 6
    assert conv.into(neuron, inputs, index).tolist() == conv.weight[neuron // 6].ravel().tolist()


def test_weights_into_a_neuron_of_all_inputs():
    dense = Dense(drawn(np.random.default_rng(2), 4, 6))
    inputs = np.array([5, 0, 3])
    index = np.stack([np.full(3, 2), inputs], axis=1)
    assert dense.into(2, inputs, index).tolist() == dense.weight[2, inputs].tolist()
