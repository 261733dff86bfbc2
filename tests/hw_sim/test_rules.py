"""The rules of neurons against single neurons in Python's integers, at the ends of every register."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stl_deploy.chips import facts
from stl_deploy.hw_sim import reference
from stl_deploy.hw_sim.reference import Neurons
from stl_deploy.ir.network import Population
from stl_deploy.ir.neurons import MAX_HOLD, MAX_SHIFT, ONCE, Graded, Lif
from stl_deploy.ir.units import MAX_SIGNED
from tests.build import edges, one_by_one
from tests.build.one_by_one import Neuron

M = 1 << 23
# Where |x| reaches a register of a state or of a sum: 24 bits, and 32 bits of u or of what arrives.
ENDS = (0, 1, 63, 64, 1 << 15, M >> 6, 1 << 17, M - 1, M, 1 << 25, 1 << 31)
SIZE, STEPS = 2, 4


def near(ends, least, most):
    """Values of ``least``..``most``, mostly those next to ``ends``."""
    edges = [
        sign * end + off
        for end in ends
        for sign in (1, -1)
        for off in (-1, 0, 1)
        if least <= sign * end + off <= most
    ]
    return st.one_of(st.sampled_from([*edges, least, most]), st.integers(least, most))


def each(values, kind=np.int32):
    """One value of all neurons, or one for each."""
    several = st.lists(values, min_size=SIZE, max_size=SIZE).map(lambda x: np.array(x, kind))
    return st.one_of(values, several)


@st.composite
def neurons(draw, chip):
    """Neurons with any of the rules, at the ends of what the chip's registers allow."""
    top = (1 << 31) - 1 if chip == "ideal" else M - 1
    of_v = near(ENDS, -top, top)
    decays = each(st.sampled_from([0, 1, 163, 2048, 4094, 4095]))
    vth = near(ENDS, -top if chip == "ideal" else 0, top if chip == "ideal" else 131_071)

    def perhaps(values, otherwise=None):
        return draw(values) if draw(st.integers(0, 2)) == 0 else otherwise

    gains = st.sampled_from([-(1 << 15), -4096, -1, 0, 1, 4095, 4096, 4097, (1 << 15) - 1])
    gain = np.array(draw(st.lists(gains, min_size=STEPS, max_size=STEPS)), np.int16)
    graded = st.builds(
        Graded, st.sampled_from([0, 1, 6, MAX_SHIFT]), st.sampled_from([1, 255, MAX_SIGNED])
    )
    return Lif(
        np.array(draw(st.lists(vth, min_size=SIZE, max_size=SIZE)), np.int32),
        np.array([perhaps(near((0, 4095), -4096, 4095), 0) for _ in range(SIZE)], np.int32),
        np.ones(SIZE),
        draw(st.sampled_from([0, 6, 7])),
        du=draw(decays),
        dv=draw(decays),
        reset=draw(st.sampled_from(["zero", "subtract", "constant", "none"])),
        v_reset=perhaps(each(of_v), 0),
        fires=draw(st.integers(0, 4)) != 0,
        reset_current=draw(st.booleans()),
        hold=perhaps(st.sampled_from([ONCE, 1, 2, MAX_HOLD]), 0),
        floor=perhaps(each(of_v)),
        adapt=perhaps(each(of_v), 0),
        dq=draw(decays),
        du2=perhaps(decays),
        gain=gain if draw(st.integers(0, 2)) == 0 else None,
        v0=perhaps(each(of_v), 0),
        graded=perhaps(graded),
    )


def assert_steps(lif, sums, chip):
    """The step of the definition and that of single neurons agree on ``sums`` [T, 2, neurons]."""
    population = Population("p", (SIZE,), lif)
    together = Neurons(population, 1, facts.load(chip))
    apart = [Neuron(population, (i,), chip) for i in range(SIZE)]
    assert together.v[0].tolist() == [one.v for one in apart]
    for t, a in enumerate(sums):
        arrived = np.array(a, np.int64)[:, None]
        sent, active, over = together.step(t, *arrived)
        did = [one.step(t, a[0][i], a[1][i]) for i, one in enumerate(apart)]
        assert sent[0].tolist() == [one.s for one in did], t
        assert active[0].tolist() == [one.active for one in did], t
        assert over[0].tolist() == [one.overflow for one in did], t
        for name in ("u", "v", *lif.states):
            assert together.state(name)[0].tolist() == [one.states[name] for one in did], (t, name)


@pytest.mark.parametrize("chip", ["ideal", "loihi1", "loihi2"])
@settings(max_examples=400)
@given(st.data())
def test_every_rule_at_the_ends_of_its_registers(chip, data):
    lif = data.draw(neurons("loihi" if chip != "ideal" else chip))
    sums = st.lists(near(ENDS, -(1 << 31), 1 << 31), min_size=SIZE, max_size=SIZE)
    pair = st.tuples(sums, sums if lif.du2 is not None else st.just([0] * SIZE))
    assert_steps(lif, data.draw(st.lists(pair, min_size=STEPS, max_size=STEPS)), chip)


@pytest.mark.parametrize("chip", ["ideal", "loihi2"])
def test_every_register_comes_to_its_edges(chip):
    network, rasters = edges.network(chip)
    trace = reference.run(network, rasters, states=True)
    edges.assert_reached(network, trace)
    one_by_one.assert_same(trace, one_by_one.naive(network, rasters))


# By hand: the order of operations


def one_neuron(sums, chip="loihi2", **rules):
    """What one neuron without a leak (vth 2, nothing kept of a current) sends, and the v it keeps."""
    parameters = {"vth": 2, "bias_mant": 0, "dv": 0, **rules}
    vth, bias = (np.array([parameters.pop(name)], np.int32) for name in ("vth", "bias_mant"))
    lif = Lif(vth, bias, np.ones(1), **parameters)
    one, sent, v = Neurons(Population("p", (1,), lif), 1, facts.load(chip)), [], []
    for t, a in enumerate(sums):
        sent.append(int(one.step(t, np.array([[a]]), np.zeros((1, 1), np.int64))[0][0, 0]))
        v.append(int(one.v[0, 0]))
    return sent, v


def test_a_neuron_rests_for_as_many_steps_as_it_is_held():
    assert one_neuron([3, 9, 9, 9], hold=2) == ([1, 0, 0, 1], [0, 0, 0, 0])
    assert one_neuron([3, 9, 9, 9], hold=ONCE) == ([1, 0, 0, 0], [0, 0, 0, 0])
    assert one_neuron([3, 9], hold=1, reset="constant", v_reset=-5) == ([1, 0], [-5, -5])


def test_currents_run_on_while_v_rests():
    """u = 4, 2, 1 (times 64): what is left of the current after the hold arrives at v."""
    sent, v = one_neuron([4, 0, 0], hold=1, du=2047)
    assert (sent, v) == ([1, 0, 0], [0, 0, 64])
    assert one_neuron([4, 0, 0], hold=1, du=2047, reset_current=True)[1] == [0, 0, 0]


def test_a_floor_stands_before_the_threshold_and_also_while_v_rests():
    assert one_neuron([-9, 1], floor=-10) == ([0, 0], [-10, 54])
    assert one_neuron([0], floor=129) == ([1], [0])
    assert one_neuron([3, 0], hold=1, reset="constant", v_reset=-50, floor=-10)[1] == [-50, -10]


def test_a_threshold_moves_from_the_step_after_the_spike_on():
    """q = 64, 32, 16 + 64: 2 * 64 + q is what the next v must pass."""
    sent, v = one_neuron([3, 3, 0, 3], adapt=64, dq=2048)
    assert (sent, v) == ([1, 0, 1, 0], [0, 192, 0, 192])
    assert one_neuron([3, 3], adapt=63, dq=0)[0] == [1, 1]
    assert one_neuron([3, 3], adapt=64, dq=0)[0] == [1, 0]


def test_a_gain_counts_for_the_bias_too_and_truncates_toward_zero():
    gain = np.array([4096, -2048, 1], np.int16)
    assert one_neuron([1, 1, 1], bias_mant=1, bias_exp=0, vth=9, gain=gain)[1] == [65, 33, 33]


def test_what_is_sent_is_v_before_the_reset_or_the_sum_that_arrives():
    graded = Graded(4, 20)
    assert one_neuron([3, 9, 1], graded=graded) == ([12, 20, 0], [0, 0, 64])
    assert one_neuron([3, -9, 0], graded=Graded(1, 4), fires=False)[0] == [1, -4, 0]
    assert one_neuron([-1], vth=-3, chip="ideal", graded=Graded(0, 99))[0] == [-64]


def test_neurons_without_a_threshold_add_up():
    assert one_neuron([3, 9, 1], fires=False, v0=5) == ([0, 0, 0], [197, 773, 837])
    assert one_neuron([3, 9, 1], reset="none") == ([1, 1, 1], [192, 768, 832])
