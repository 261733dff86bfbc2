"""The arithmetic of one time step against whole numbers of unlimited size, at the edges of fields.

The rules are those of lava-nc 0.10.0's ``fixed_pt`` LIF (lava/proc/lif/models.py), written here once
more with Python's integers, one neuron at a time:

    b  = bias_mant << bias_exp
    u' = w32( u * (4096 - (du + 1)) / 4096 toward zero  +  w32(a << 6) ), wrapped once into -M < u <= M
    v' = w32( v * (4096 - dv) / 4096 toward zero  +  u' + b ), saturated at -(M - 1) and M - 1
    s  = v' > vth << 6, and v' = 0 where s
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stl_deploy.chips.arithmetic import decay, fire, step_current, step_voltage, wrap32
from stl_deploy.ir.neurons import Lif

M = 1 << 23
EXAMPLES = settings(max_examples=150)


# The model


def w32(x):
    low = x % 2**32
    return low if low < 2**31 else low - 2**32


def shrink(x, constant):
    size = abs(x) * (4096 - constant) // 4096
    return size if x >= 0 else -size


def current(u, a, du, limit):
    if limit is None:
        return shrink(u, du + 1) + 64 * a, False
    u = w32(shrink(u, du + 1) + w32(64 * a))
    if u > limit:
        return u - 2 * limit, True
    if u <= -limit:
        return u + 2 * limit, True
    return u, False


def voltage(v, u, b, dv, limit):
    v = shrink(v, dv) + u + b
    if limit is None:
        return v, False
    v = w32(v)
    held = max(-(limit - 1), min(limit - 1, v))
    return held, held != v


# Values


def around(*edges, reach=2):
    """Whole numbers within ``reach`` of an edge of either sign."""
    signed = sorted({sign * edge for edge in edges for sign in (1, -1)})
    return st.builds(int.__add__, st.sampled_from(signed), st.integers(-reach, reach))


def integers(bits, *edges):
    """Whole numbers of up to ``bits`` bits and a sign, often at an edge."""
    return st.one_of(around(0, *edges), st.integers(-(1 << bits), 1 << bits))


STATE = st.one_of(around(0, 1, 64, M // 2, M - 3), st.integers(-(M - 1), M - 1))
SUM = integers(31, 1 << 15, 1 << 17, (1 << 18) - 1, 1 << 25, 1 << 26, 1 << 31)
SMALL_SUM = integers(17, 1, 1 << 15, 1 << 17)
DECAY = st.one_of(st.sampled_from([0, 1, 163, 2047, 2048, 2049, 4094, 4095]), st.integers(0, 4095))
MANTISSA = st.one_of(st.sampled_from([-4096, -4095, -1, 0, 1, 4094, 4095, 4096]))
LIMIT = st.sampled_from([M, None])


def column(values):
    return np.array(values, np.int64)


def many(*strategies):
    """Columns of equal length, a value of each strategy in every row."""
    return st.lists(st.tuples(*strategies), min_size=1, max_size=12).map(
        lambda rows: tuple(zip(*rows, strict=True))
    )


# wrap32 and decay


@EXAMPLES
@given(st.lists(integers(40, 1 << 31, 1 << 32, 3 << 31), min_size=1, max_size=20))
def test_wrap32_is_twos_complement(values):
    assert wrap32(column(values)).tolist() == [w32(x) for x in values]


@pytest.mark.parametrize(
    ("x", "wrapped"),
    [
        (2**31 - 1, 2**31 - 1),
        (2**31, -(2**31)),
        (-(2**31), -(2**31)),
        (-(2**31) - 1, 2**31 - 1),
        (2**32, 0),
        (3 * 2**31 + 5, -(2**31) + 5),
    ],
)
def test_wrap32_at_the_edges(x, wrapped):
    assert wrap32(column([x])).tolist() == [wrapped]


@EXAMPLES
@given(st.lists(integers(32, 1, 2, 4095, 4096, M, 1 << 31), min_size=1, max_size=20), DECAY)
def test_decay_truncates_toward_zero(values, constant):
    got = decay(column(values), constant).tolist()
    assert got == [shrink(x, constant) for x in values]
    assert all(abs(after) <= abs(before) for after, before in zip(got, values, strict=True))
    assert decay(-column(values), constant).tolist() == [-x for x in got]


@pytest.mark.parametrize(
    ("x", "constant", "left"),
    [
        (-1, 2048, 0),
        (-3, 2048, -1),
        (3, 2048, 1),
        (1600, 163, 1536),
        (-1600, 163, -1536),
        (M, 0, M),
        (M, 4096, 0),
        (4095, 4095, 0),
        (-4096, 4095, -1),
    ],
)
def test_decay_by_hand(x, constant, left):
    assert decay(column([x]), constant).tolist() == [left]


# Current


@EXAMPLES
@given(many(STATE, st.one_of(SUM, SMALL_SUM)), DECAY, LIMIT)
def test_current(rows, du, limit):
    us, sums = rows
    u, wrapped = step_current(column(us), column(sums), du, limit)
    expected = [current(u, a, du, limit) for u, a in zip(us, sums, strict=True)]
    assert list(zip(u.tolist(), wrapped.tolist(), strict=True)) == expected
    assert u.dtype == np.int64


@pytest.mark.parametrize(
    ("a", "u", "wrapped"),
    [
        ((1 << 17) - 1, M - 64, False),
        (1 << 17, M, False),
        ((1 << 17) + 1, -M + 64, True),
        (-(1 << 17) + 1, -M + 64, False),
        (-(1 << 17), M, True),
        (1 << 25, 2 * M - (1 << 31), True),
        (1 << 26, 0, False),
    ],
)
def test_current_wraps_once_into_24_bits(a, u, wrapped):
    """M itself is held, -M is not; what 32 bits lose is gone before."""
    got, flag = step_current(column([0]), column([a]), 4095, M)
    assert (got.tolist(), flag.tolist()) == ([u], [wrapped])


@EXAMPLES
@given(STATE, SMALL_SUM)
def test_du_4095_forgets_the_current(u, a):
    for limit in (M, None):
        fresh, _ = step_current(column([0]), column([a]), 4095, limit)
        kept, _ = step_current(column([u]), column([a]), 4095, limit)
        assert fresh.tolist() == kept.tolist()


# Voltage


@EXAMPLES
@given(
    many(STATE, st.one_of(STATE, integers(31, M, 1 << 31)), MANTISSA),
    st.integers(0, 7),
    DECAY,
    LIMIT,
)
def test_voltage(rows, bias_exp, dv, limit):
    vs, us, mantissas = rows
    biases = [m << bias_exp for m in mantissas]
    v, saturated = step_voltage(column(vs), column(us), column(biases), dv, limit)
    expected = [voltage(v, u, b, dv, limit) for v, u, b in zip(vs, us, biases, strict=True)]
    assert list(zip(v.tolist(), saturated.tolist(), strict=True)) == expected
    assert v.dtype == np.int64


@pytest.mark.parametrize(
    ("u", "v", "saturated"),
    [
        (M - 1, M - 1, False),
        (M, M - 1, True),
        (-M + 1, -M + 1, False),
        (-M, -M + 1, True),
        (2**31 - 1, M - 1, True),
        (2**31, -M + 1, True),
    ],
)
def test_voltage_saturates_inside_24_bits(u, v, saturated):
    zero = column([0])
    got, flag = step_voltage(zero, column([u]), zero, 2048, M)
    assert (got.tolist(), flag.tolist()) == ([v], [saturated])
    free, flag = step_voltage(zero, column([u]), zero, 2048, None)
    assert (free.tolist(), flag.tolist()) == ([u], [False])


@EXAMPLES
@given(st.lists(MANTISSA, min_size=1, max_size=5), st.integers(0, 7), st.booleans())
def test_bias_of_neurons(mantissas, bias_exp, conv):
    """One bias a channel, mantissa << exponent, that broadcasts over the channel's plane."""
    n = len(mantissas)
    shape = (n, 2, 3) if conv else (n,)
    each = np.array(mantissas, np.int32).reshape(-1, *[1] * (len(shape) - 1))
    neurons = Lif(np.zeros(shape, np.int32), each, np.ones(1), bias_exp)
    full = np.broadcast_to(neurons.bias, shape)
    assert neurons.bias.dtype == np.int64
    for channel, mantissa in enumerate(mantissas):
        assert set(full[channel].ravel().tolist()) == {mantissa * 2**bias_exp}


# Spike


THRESHOLD = st.one_of(
    st.sampled_from([0, 1, 131070, 131071, -1, -2, -131072, 2**31 - 1, -(2**31)]),
    st.integers(-300, 131071),
)


@EXAMPLES
@given(st.data(), st.lists(THRESHOLD, min_size=1, max_size=12))
def test_fire_is_strict_and_resets_to_zero(data, thresholds):
    vs = [
        data.draw(st.one_of(STATE, st.integers(-65, 65).map(lambda d, t=t: 64 * t + d)))
        for t in thresholds
    ]
    v, s = fire(column(vs), np.array(thresholds, np.int32))
    assert s.dtype == np.bool_
    assert s.tolist() == [x > 64 * t for x, t in zip(vs, thresholds, strict=True)]
    assert v.tolist() == [0 if x > 64 * t else x for x, t in zip(vs, thresholds, strict=True)]


@pytest.mark.parametrize("vth", [-(2**31), -1, 0, 25, 131071, 2**31 - 1])
def test_fire_at_the_threshold(vth):
    below, at, above = 64 * vth - 1, 64 * vth, 64 * vth + 1
    v, s = fire(column([below, at, above]), np.full(3, vth, np.int32))
    assert s.tolist() == [False, False, True]
    assert v.tolist() == [below, at, 0]


def test_the_largest_threshold_of_the_register_is_still_reached():
    """131071 << 6 = M - 64 is below the largest voltage M - 1; 131072 would never fire."""
    _, s = fire(column([M - 1, M - 1]), np.array([131071, 131072], np.int32))
    assert s.tolist() == [True, False]


# The step as a whole


@EXAMPLES
@given(many(STATE, STATE, SUM, MANTISSA, THRESHOLD), DECAY, DECAY, st.integers(0, 7), LIMIT)
def test_whole_step_leaves_its_arguments_alone(rows, du, dv, bias_exp, limit):
    us, vs, sums, mantissas, thresholds = rows
    arrays = [column(x) for x in (us, vs, sums)]
    copies = [x.copy() for x in arrays]
    bias = column([m << bias_exp for m in mantissas])
    u, _ = step_current(arrays[0], arrays[2], du, limit)
    v, _ = step_voltage(arrays[1], u, bias, dv, limit)
    v, s = fire(v, np.array(thresholds, np.int32))
    for i in range(len(us)):
        u_i, _ = current(us[i], sums[i], du, limit)
        v_i, _ = voltage(vs[i], u_i, mantissas[i] << bias_exp, dv, limit)
        s_i = v_i > 64 * thresholds[i]
        assert (u[i], v[i], s[i]) == (u_i, 0 if s_i else v_i, s_i)
    assert all((x == y).all() for x, y in zip(arrays, copies, strict=True))
