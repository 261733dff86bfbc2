"""The reference simulator against loops over single neurons, and against traces of a real Loihi.

The loops are those of ``tests/build/one_by_one.py``.
"""

import csv
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stl_deploy.hw_sim import reference
from stl_deploy.ir import cut, kinds
from stl_deploy.ir.neurons import Lif
from stl_deploy.ir.readouts import Readout
from stl_deploy.ir.synapses import Dense
from tests.build.networks import chain, dense_lif
from tests.build.one_by_one import assert_same, naive
from tests.build.random_graphs import EVERYTHING, TABLE, draw
from tests.build.strategies import networks

REFERENCE = Path(__file__).parents[3] / "shared" / "reference"
needs_reference = pytest.mark.skipif(
    not REFERENCE.is_dir(), reason="the folder of reference traces is not next to the checkout"
)
EXAMPLES = settings(max_examples=200)


# Random networks


@EXAMPLES
@given(networks())
def test_random_networks(case):
    network, raster = case
    trace = reference.run(network, raster, states=True)
    assert_same(trace, naive(network, {"input": raster}))
    wide = np.int64 if network.chip == "ideal" else np.int32
    assert trace.layers["lif1"].v.dtype == trace.layers["lif1"].u.dtype == wide


@pytest.mark.parametrize("features", [EVERYTHING, TABLE], ids=["graphs", "rules"])
@pytest.mark.parametrize("seed", range(30))
def test_random_graphs(seed, features):
    """Several inputs, ways that join, loops, delays; also where others are given other spikes."""
    network, rasters = draw(seed, features)
    trace = reference.run(network, rasters, states=True)
    assert_same(trace, naive(network, rasters))
    rng = np.random.default_rng(seed)
    given = {
        name: (rng.random(did.spikes.shape) < 0.3).astype(np.uint8)
        for name, did in trace.layers.items()
        if rng.random() < 0.5 and network.span(name) != (0, 0)
    }
    cut_, rasters = network.cut(given), cut.rasters(network.inputs, rasters, given)
    assert_same(reference.run(cut_, rasters, states=True), naive(cut_, rasters))


def test_the_random_graphs_have_every_rule():
    """Each field of the table, and each reset, in three or more of the graphs above."""
    found = Counter()
    for seed in range(30):
        network, _ = draw(seed, TABLE)
        words = set()
        for population in network.populations:
            words |= set(kinds.unknown_fields(population.neurons))
        found.update(words)
    known = {field.name for field in fields(Lif)} - kinds.FIELDS | kinds.RESETS
    assert {word for word, times in found.items() if times >= 3} == known


@EXAMPLES
@given(networks(), st.data())
def test_samples_do_not_see_each_other(case, data):
    """Batches, their order and what ran before change nothing: every sample starts from zero."""
    network, raster = case
    raster = np.concatenate([raster, raster[::-1], raster[:1]])
    together = reference.run(network, raster, states=True)
    for i in range(len(raster)):
        alone = reference.run(network, raster[i : i + 1], states=True)
        for name, did in alone.layers.items():
            whole = together.layers[name]
            for field in ("spikes", "u", "v", "active", "overflow"):
                assert (getattr(did, field)[0] == getattr(whole, field)[i]).all(), (name, field)
        assert alone.predictions[0] == together.predictions[i]
    batch = data.draw(st.integers(1, 6))
    parts = []
    for at in range(0, len(raster), batch):
        parts.append((at, reference.run(network, raster[at : at + batch])))
    assert [at for at, _ in parts] == list(range(0, 5, batch))
    for name, did in together.layers.items():
        spikes = np.concatenate([trace.layers[name].spikes for _, trace in parts])
        assert (spikes == did.spikes).all()
    assert all(trace.layers["lif1"].v is None for _, trace in parts)


@EXAMPLES
@given(networks())
def test_an_or_pool_is_the_lif_it_stands_for(case):
    """A neuron that forgets everything (du = dv = 4095), vth = 0, behind weights of one."""
    network, raster = case
    zeros, ones = np.zeros((1, 1, 1), np.int32), np.ones((1, 1, 1))
    pool = replace(network.by_name["pool1"], neurons=Lif(zeros, zeros, ones, du=4095, dv=4095))
    one = reference.run(network, raster, states=True).layers["pool1"]
    two = reference.run(network.changed(pool), raster, states=True).layers["pool1"]
    for field in ("spikes", "u", "v", "active", "overflow"):
        assert (getattr(one, field) == getattr(two, field)).all(), field


# Sums


@pytest.mark.parametrize("levels", [1, 255])
def test_large_sums_are_exact(levels):
    """700 inputs of 255 with weights of 127 pass 2^24, where float32 holds no odd number."""
    rng = np.random.default_rng(levels)
    weight = rng.integers(120, 128, (3, 700)).astype(np.int8)
    weight[1] *= -1
    layer = dense_lif(weight)
    (way,) = chain(layer).connections
    x = (rng.integers(0, 2, (4, 700)) * levels).astype(np.uint8)
    x[0] = levels
    x[0, :3] = levels - 1
    expected = x.astype(np.int64) @ weight.astype(np.int64).T
    assert levels == 1 or expected.max() > 1 << 24
    assert (way.sums(x, levels) == expected).all()
    assert (replace(way, exp=7).sums(x, levels) == expected * 128).all()


def alone(layer, raster, chip, levels=1):
    """What a layer does on ``chip`` on a raster of ``levels``, with u and v."""
    network = chain(layer, chip=chip, steps=raster.shape[1], levels=levels)
    return reference.run(network, raster, states=True).layers[layer.name]


# Recurrence and the reset by subtraction, by hand


def test_a_neuron_hears_itself_one_step_late_and_nothing_of_the_sample_before():
    """Weight 3 on the input, 2 on itself, vth 2, nothing kept: fires on 3, then again on 3 + 2."""
    layer = dense_lif([[3]], vth=np.array([2], np.int32), dv=4095, recurrent=Dense(ONE_OF_TWO))
    raster = np.array([[1, 1, 0, 0], [0, 0, 1, 1]], np.uint8).reshape(2, 4, 1)
    trace = alone(layer, raster, "loihi2")
    assert (trace.u[..., 0] // 64).tolist() == [[3, 5, 2, 0], [0, 0, 3, 5]]
    assert trace.spikes[..., 0].tolist() == [[1, 1, 0, 0], [0, 0, 1, 1]]
    # The first spike of the second sample comes after steps in which nothing was heard.
    assert trace.active.tolist() == [[1, 1, 1, 1], [0, 0, 1, 1]]
    shifted = replace(layer, exp=2, vth=np.array([11], np.int32))
    trace = alone(shifted, raster, "loihi2")
    assert (trace.u[0, :, 0] // 64).tolist() == [12, 20, 8, 0]


ONE_OF_TWO = np.array([[2]], np.int8)


def test_a_row_of_recurrent_weights_belongs_to_the_neuron_that_hears():
    layer = dense_lif([[9], [0]], vth=np.array([3, 3], np.int32), dv=4095)
    own = np.array([[0, 0], [5, 0]], np.int8)
    layer = replace(layer, recurrent=Dense(own), recurrent_name="rec")
    raster = np.array([1, 0, 0], np.uint8).reshape(1, 3, 1)
    trace = alone(layer, raster, "loihi2")
    assert trace.spikes[0].tolist() == [[1, 0], [0, 1], [0, 0]]


def test_what_a_spike_leaves_by_hand():
    """Weight 10, vth 4, no leak: 10 - 4 = 6, then 6 - 4 = 2; not delayed, and not above its limit."""
    layer = dense_lif([[10]], vth=np.array([4], np.int32), dv=0, reset="subtract")
    raster = np.array([1, 0, 0], np.uint8).reshape(1, 3, 1)
    trace = alone(layer, raster, "loihi2")
    assert (trace.v[0, :, 0] / 64).tolist() == [6, 2, 2]
    assert trace.spikes[0, :, 0].tolist() == [1, 1, 0]
    edge = replace(layer, vth=np.array([10], np.int32))
    trace = alone(edge, raster, "loihi2")
    assert (trace.v[0, :, 0] / 64).tolist() == [10, 10, 10]
    assert not trace.spikes.any()


@pytest.mark.parametrize(("own", "overflows"), [(1, 0), (2, 1)])
def test_the_accumulator_holds_both_sums(own, overflows):
    """127 * 258 = 32766 from outside; 1 more from inside fits below 2^15, 2 do not."""
    layer = dense_lif(np.full((1, 258), 127), vth=np.zeros(1, np.int32), dv=4095)
    layer = replace(layer, recurrent=Dense(np.array([[own]], np.int8)), recurrent_name="rec")
    raster = np.ones((1, 2, 258), np.uint8)
    trace = alone(layer, raster, "loihi1")
    assert trace.overflow.tolist() == [[0, overflows]]


# Counts, by hand


def test_active_by_hand():
    """Two neurons, weights 1 and 0, a spike in the first of four steps, dv = 2048.

    v of the first is 64, 32, 16, 8: active in all four steps. The second has nothing to do.
    """
    layer = dense_lif([[1], [0]])
    raster = np.array([1, 0, 0, 0], np.uint8).reshape(1, 4, 1)
    trace = alone(layer, raster, "loihi2")
    assert trace.v[0, :, 0].tolist() == [64, 32, 16, 8]
    assert trace.active.tolist() == [[1, 1, 1, 1]]
    # dv = 4095 leaves nothing of 64: it is there to be forgotten in step 2, and gone in step 3.
    trace = alone(replace(layer, dv=4095), raster, "loihi2")
    assert trace.active.tolist() == [[1, 1, 0, 0]]
    # A spike resets: nothing is left.
    fired = replace(layer, vth=np.zeros(2, np.int32))
    assert alone(fired, raster, "loihi2").active.tolist() == [[1, 0, 0, 0]]
    # A bias keeps its neuron busy for ever.
    biased = replace(layer, bias_mant=np.array([0, 5], np.int32))
    assert alone(biased, raster, "loihi2").active.tolist() == [[2] * 4]


@pytest.mark.parametrize(
    ("chip", "inputs", "overflows"),
    [
        # 127 * 258 = 32766, 127 * 259 = 32893, limit 2^15
        ("loihi1", 258, 0),
        ("loihi1", 259, 1),
        # 127 * 1032 = 131064, 127 * 1033 = 131191, limit 2^17
        ("loihi2", 1032, 0),
        ("loihi2", 1033, 1),
        ("ideal", 1033, 0),
    ],
)
@pytest.mark.parametrize("sign", [1, -1])
def test_overflow_of_the_accumulator(chip, inputs, overflows, sign):
    """The second neuron hears half of the inputs and is never counted."""
    weight = np.full((2, inputs), 127 * sign, np.int8)
    weight[1, ::2] = 0
    raster = np.ones((1, 1, inputs), np.uint8)
    trace = alone(dense_lif(weight), raster, chip)
    assert trace.overflow.tolist() == [[overflows]]


@pytest.mark.parametrize(("last", "overflows"), [(1, 0), (2, 1)])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_accumulator_does_not_hold_its_limit(last, overflows, sign):
    """127 * 258 + 1 = 2^15 - 1 fits, 127 * 258 + 2 = 2^15 does not."""
    weight = np.array([[127] * 258 + [last]]) * sign
    raster = np.ones((1, 1, 259), np.uint8)
    trace = alone(dense_lif(weight), raster, "loihi1")
    assert trace.overflow.tolist() == [[overflows]]


def test_overflow_of_the_voltage():
    """Without leak (dv = 0) sums within the accumulator pile up to the end of the register."""
    weight = np.full((1, 1000), -127, np.int8)
    raster = np.ones((1, 3, 1000), np.uint8)
    trace = alone(dense_lif(weight, dv=0), raster, "loihi2")
    assert trace.v[0, :, 0].tolist() == [-8128000, -(1 << 23) + 1, -(1 << 23) + 1]
    assert trace.overflow.tolist() == [[0, 1, 1]]
    free = alone(dense_lif(weight, dv=0), raster, "ideal")
    assert free.v[0, :, 0].tolist() == [-8128000, -16256000, -24384000]
    assert free.overflow.tolist() == [[0, 0, 0]]


# Readout


def test_readout_counts_votes_and_takes_the_first_of_equals():
    spikes = np.zeros((3, 2, 6), np.uint8)
    spikes[0, :, 3] = 1  # class 1 twice
    spikes[1, 0, [0, 5]] = 1  # classes 0 and 2 once each
    votes = Readout(3, 2).scores(spikes)
    assert votes.tolist() == [[0, 2, 0], [1, 0, 1], [0, 0, 0]]
    assert Readout(3, 2).predict(spikes).tolist() == [1, 0, 0]


# A chip's own trace


def rows(name):
    with (REFERENCE / name).open(newline="") as file:
        return [[float(x) for x in row] for row in csv.reader(file)]


def replayed(table):
    """The file's neuron (dv 163, weight 640 = 10 << 6, vth 25) on its input, one step late."""
    late = [0, *(int(row[0]) for row in table[:-1])]
    raster = np.array(late, np.uint8).reshape(1, -1, 1)
    layer = dense_lif([[10]], vth=np.array([25], np.int32), dv=163)
    return alone(layer, raster, "loihi1", int(raster.max()))


@needs_reference
def test_lava_on_the_cpu():
    table = rows("lif_lava_cpu_fixed.csv")
    trace = replayed(table)
    assert len(table) == 1000
    assert trace.spikes[0, :, 0].tolist() == [row[2] for row in table]
    assert trace.v[0, :, 0].tolist() == [row[1] for row in table]


@needs_reference
def test_a_real_loihi():
    """All spikes agree. The register of v reads 128 in the spike steps, where the model has reset."""
    table = rows("lif_lava_loihi_fixed.csv")
    trace = replayed(table)
    assert len(table) == 1000
    fired = [i for i, row in enumerate(table) if row[2]]
    assert fired == [461, 511, 711, 761]
    assert np.flatnonzero(trace.spikes).tolist() == fired
    v = trace.v[0, :, 0].tolist()
    assert [i for i, row in enumerate(table) if row[1] != v[i]] == fired
    assert [(v[i], table[i][1]) for i in fired] == [(0, 128)] * 4
