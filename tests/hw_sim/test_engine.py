"""The engine against the reference: every spike, u, v and count of every network is the same."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from stl_deploy.chips import arithmetic, bounds
from stl_deploy.errors import InputError
from stl_deploy.formats.raster import Raster, RasterFile, check_fits, load, save, stream
from stl_deploy.hw_sim import compiled, engine, kernels, plans, proofs, reference
from stl_deploy.ir.network import Input, IntegerNetwork
from stl_deploy.ir.readouts import Readout
from stl_deploy.ir.synapses import Conv, Dense, Kernel, Sparse
from stl_deploy.ir.units import FRACTION_BITS
from tests.build.networks import after, chain, lif, random_cores
from tests.build.networks import raster as inputs_for
from tests.build.random_networks import draw
from tests.build.strategies import networks
from tests.build.traces import assert_layer, assert_same

EXAMPLES = settings(max_examples=200)


# Kernels that only compiled functions can call.


@njit
def plain_step(neurons, block, acc, v, did, row, active):
    kernels.update_plain(neurons, block, acc, v, did, row, active)


@njit
def wide_step(*arguments):
    return kernels.fire_wide(*arguments)


# Random networks


@EXAMPLES
@given(networks(), st.booleans(), st.integers(0, 99))
def test_random_networks(case, states, seed):
    network, raster = case
    cores = random_cores(np.random.default_rng(seed), network)
    raster = np.concatenate([raster, raster[::-1], raster[:1]])
    want = reference.run(network, raster, states, cores)
    assert_same(engine.run(network, raster, states, cores), want)
    sent = {"input": raster} | {name: did.spikes for name, did in want.layers.items()}
    for population in network.populations:
        name, did = population.name, want.layers[population.name]
        if proofs.never_overflows(network, population, raster.shape[1]):
            assert not did.overflow.any()
        alone = network.alone(name)
        # The inputs as the reference leaves them, in C order.
        inputs = {source: np.ascontiguousarray(sent[source]) for source in alone.inputs}
        assert_layer(engine.run(alone, inputs, states, cores).layers[name], did, name)


@pytest.mark.parametrize("seed", range(40))
def test_working_networks(seed):
    """Networks whose layers fire and mind their thresholds, on Loihi 1 and 2."""
    network, raster = draw(seed)
    for states in (False, True):
        assert_same(engine.run(network, raster, states), reference.run(network, raster, states))


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("seed", [0, 4, 30, 32, 34, 39])  # with layers that take the plain step
def test_sums_of_a_part_of_a_sample(seed, steps, monkeypatch):
    """Where the sums of a sample are too large, voltages go from part to part."""
    network, raster = draw(seed)
    monkeypatch.setattr(plans, "_together", lambda samples, all_steps, size: steps)
    plain = [getattr(plan(network, p), "plain", False) for p in network.populations]
    assert any(plain)
    assert_same(engine.run(network, raster), reference.run(network, raster))


@pytest.mark.parametrize("seed", range(20))
def test_single_connections(seed):
    """Folded convolutions, some with a soft reset or bounds that prove nothing, and weight exponents."""
    rng = np.random.default_rng(seed)
    network, raster = draw(seed, process_graph=True)
    softer = [
        neurons_of(network, p.name, reset="subtract", vth=np.maximum(p.neurons.vth, 0))
        for p in network.weighted
        if rng.random() < 0.3
    ]
    chip = str(rng.choice(["ideal", "loihi2"]))
    network = replace(network.changed(*softer), chip=chip)
    cores = random_cores(rng, network)
    assert any(c.synapses.kind == "sparse" for c in network.connections)
    for population in network.populations[1:]:
        assert plan(network, population) is not None
    for states in (False, True):
        want = reference.run(network, raster, states, cores)
        assert_same(engine.run(network, raster, states, cores), want)


def single(weight, vth, **fields):
    """A layer of single connections, weights [neurons, *input shape], zero where there is none."""
    rows = weight.reshape(len(weight), -1)
    row, column = (index.astype(np.int32) for index in np.nonzero(rows))
    kernel = Kernel(np.zeros((1, 1, 1, 1)), np.zeros(1), (1, 1), (0, 0), (1, 1), 1)
    found = Sparse(row, column, rows[row, column].astype(np.int8), rows.shape, kernel)
    return lif("lif", found, weight.shape[1:], vth=vth, **fields)


@pytest.mark.parametrize("levels", [1, 7])
@pytest.mark.parametrize("vth", [-5, 3000, 1 << 17])
def test_single_connections_at_the_edge(levels, vth):
    """Sums beyond 16 bits and registers that overflow."""
    rng = np.random.default_rng(vth & 7)
    weight = rng.choice([-128, 127, 0], (9, 3, 19, 17), p=[0.1, 0.8, 0.1])
    for chip in ("loihi1", "ideal"):
        layer = single(weight, vth, dv=0)
        network = chain(layer, chip=chip, steps=5, levels=levels)
        raster = rng.integers(0, levels + 1, (20, 5, 3, 19, 17)).astype(np.uint8)
        assert plan(network, network.populations[0]) is not None
        for states in (False, True):
            want = reference.run(network, raster, states)
            assert chip == "ideal" or want.layers["lif"].overflow.any()
            assert_same(engine.run(network, raster, states), want)


@pytest.mark.parametrize("seed", range(20))
def test_working_recurrent_networks(seed):
    """Also with currents and the soft reset; no layer of these needs the reference."""
    network, raster = draw(seed, recurrent=True)
    cores = random_cores(np.random.default_rng(seed), network)
    for population in network.weighted:
        assert plan(network, population) is not None
    for states in (False, True):
        want = reference.run(network, raster, states, cores)
        assert_same(engine.run(network, raster, states, cores), want)


@pytest.mark.parametrize("weight", [-128, 127, None])
@pytest.mark.parametrize("levels", [1, 255])
@pytest.mark.parametrize("reset", ["zero", "subtract"])
def test_a_large_layer_that_hears_itself(weight, levels, reset):
    """Three blocks of outputs, two phases of its own spikes, which are all there in some steps."""
    rng = np.random.default_rng(levels)
    own = rng.integers(-128, 128, (300, 300)) if weight is None else np.full((300, 300), weight)
    forward = rng.integers(-128, 128, (300, 40)).astype(np.int8)
    # In the first step everything fires.
    layer = lif(
        "lif",
        Dense(forward),
        vth=rng.integers(0, 50, 300),
        bias=1 << 20,
        recurrent=Dense(own.astype(np.int8)),
        du=900,
        reset=reset,
    )
    network = chain(layer, chip="ideal", levels=levels, steps=6)
    raster = inputs_for(network, 5, 0.3, rng)
    cores = {"lif": rng.integers(0, 3, 300)}
    for states in (False, True):
        want = reference.run(network, raster, states, cores)
        assert want.layers["lif"].spikes[:, 0].all()
        assert_same(engine.run(network, raster, states, cores), want)
    assert plan(network, network.populations[0]) is not None


@pytest.mark.parametrize("more", [0, 1])
def test_sums_about_32_bits(more):
    """255 * 65,793 weights of -128 are 2^31 - 128: what neurons send themselves adds to them elsewhere."""
    weight = np.full((9, 65_793 + more), -128, np.int8)
    layer = lif(
        "lif", Dense(weight), vth=-(1 << 31), recurrent=Dense(np.full((9, 9), -128, np.int8))
    )
    network = chain(layer, chip="ideal", steps=2, levels=255)
    population, (way, _) = network.populations[0], network.connections
    assert proofs.fits_32_bits(network, way) == (not more)
    assert not proofs.total_fits_32_bits(network, population)
    assert proofs.total_fits_32_bits(
        network.changed(replace(way, synapses=Dense(weight // 2))), population
    )
    assert (plan(network, population) is None) == bool(more)
    raster = np.full((2, 2, 65_793 + more), 255, np.uint8)
    want = reference.run(network, raster, states=True)
    assert want.layers["lif"].u[0, 1, 0] < -(1 << 37)
    assert_same(engine.run(network, raster, states=True), want)


@pytest.mark.parametrize("chip", ["ideal", "loihi1", "loihi2"])
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("stride", [(1, 1), (2, 1), (1, 2)])
@pytest.mark.parametrize("padding", [(0, 0), (2, 1), (4, 5)])
@pytest.mark.parametrize("dilation", [(1, 1), (1, 2)])
@pytest.mark.parametrize("levels", [1, 255])
def test_convolutions_of_many_channels(chip, groups, stride, padding, dilation, levels):
    """More than one vector register of outputs, more events a pixel than go together."""
    rng = np.random.default_rng(groups)
    weight = rng.integers(-128, 128, (40, 12 // groups, 3, 4)).astype(np.int8)
    conv = Conv(weight, stride, padding, dilation, groups)
    network = one_layer(rng, chip, conv, (12, 9, 8), levels, 300 * levels)
    raster = inputs_for(network, 3, 0.5, rng)
    cores = {"lif": rng.integers(0, 3, network.populations[0].size)}
    for states in (False, True):
        want = reference.run(network, raster, states, cores)
        assert 0.02 < want.layers["lif"].spikes.mean() < 0.6
        assert_same(engine.run(network, raster, states, cores), want)


# Sums at the edges of the narrow types


@pytest.mark.parametrize("weight", [-128, 127])
@pytest.mark.parametrize("levels", [1, 255])
def test_all_inputs_of_a_linear_layer_fire(weight, levels):
    """More outputs than a block and inputs than a phase, all of one sign, the sums as far as they go."""
    rng = np.random.default_rng(0)
    network = one_layer(rng, "ideal", Dense(np.full((300, 1000), weight, np.int8)), (1000,), levels)
    raster = np.full((2, 3, 1000), levels, np.uint8)
    want = reference.run(network, raster, states=True)
    assert abs(want.layers["lif"].u).max() == 1000 * abs(weight) * levels * 64
    assert_same(engine.run(network, raster, states=True), want)
    assert len(plan(network, network.populations[0]).synapses.wiring.phases) == (
        5 if levels == 1 else 2
    )


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("weight", [-128, 127])
def test_all_inputs_of_a_convolution_fire(weight, groups):
    """25 * 64 * 127 is six times what 16 bits hold: the channels are summed in parts."""
    rng = np.random.default_rng(0)
    conv = Conv(np.full((6, 64 // groups, 5, 5), weight, np.int8), (1, 1), (2, 2), (1, 1), groups)
    network = one_layer(rng, "ideal", conv, (64, 7, 7), 1)
    raster = np.ones((2, 3, 64, 7, 7), np.uint8)
    assert len(plan(network, network.populations[0]).synapses.wiring.phases) > 3
    for states in (False, True):
        want = reference.run(network, raster, states)
        assert_same(engine.run(network, raster, states), want)
    assert abs(want.layers["lif"].u).max() == 25 * 64 // groups * abs(weight) * 64


def test_a_kernel_too_large_for_16_bits_runs_in_the_reference():
    rng = np.random.default_rng(0)
    conv = Conv(np.full((2, 1, 17, 17), 127, np.int8), (1, 1), (8, 8), (1, 1), 1)
    network = one_layer(rng, "loihi2", conv, (1, 20, 20), 1, 1000)
    raster = inputs_for(network, 2, 0.9, rng)
    assert plan(network, network.populations[0]) is None
    assert_same(engine.run(network, raster), reference.run(network, raster))


# Registers


@pytest.mark.parametrize("chip", ["loihi1", "loihi2"])
@pytest.mark.parametrize("du", [0, 1000, 4095])
@pytest.mark.parametrize("dv", [0, 2048])
@pytest.mark.parametrize("exp", [0, 7])
def test_registers_that_overflow(chip, du, dv, exp):
    """Accumulators, currents that wrap and voltages that saturate are the same, and counted."""
    rng = np.random.default_rng(du)
    weight = np.sort(rng.integers(-128, 128, (40, 900)).astype(np.int8), axis=0)
    network = one_layer(rng, chip, Dense(weight), (900,), 255, 100_000, du=du, dv=dv, exp=exp)
    raster = inputs_for(network, 4, 0.7, rng)
    want = reference.run(network, raster, states=True)
    assert want.layers["lif"].overflow.any()
    for states in (False, True):
        got = engine.run(network, raster, states)
        assert_same(got, want if states else reference.run(network, raster))


@pytest.mark.parametrize("exp", [0, 16, 24])
def test_voltages_beyond_32_bits(exp):
    """Chip ideal has no registers: with dv = 0 voltages pass 2^31 in a convolution too."""
    rng = np.random.default_rng(0)
    conv = Conv(rng.integers(100, 128, (6, 8, 3, 3)).astype(np.int8), (1, 1), (1, 1), (1, 1), 1)
    network = one_layer(rng, "ideal", conv, (8, 5, 5), 1, 2**31 - 9, dv=0, exp=exp)
    raster = np.ones((1, 4, 8, 5, 5), np.uint8)
    want = reference.run(network, raster, states=True)
    assert (exp == 0) == (max(want.layers["lif"].u.max(), want.layers["lif"].v.max()) < 1 << 31)
    assert proofs.never_overflows(network, network.populations[0], 4) == (exp == 0)
    assert_same(engine.run(network, raster, states=True), want)
    assert_same(engine.run(network, raster), reference.run(network, raster))


@pytest.mark.parametrize("chip", ["ideal", "loihi1", "loihi2"])
def test_a_proof_ends_where_a_register_does(chip):
    """A sum, a voltage or a bias one too large for the registers is not called impossible."""
    limits = {"ideal": 1 << 25, "loihi1": 1 << 15, "loihi2": 1 << 17}
    rng = np.random.default_rng(0)
    for exp in range(17):
        for weight in (1, -1, 127, -128):
            network = one_layer(rng, chip, ones(1, 1, weight), (1, 1, 1), 1, 9, exp=exp, dv=4095)
            fits = abs(weight) << exp < limits[chip]
            assert proofs.never_overflows(network, network.populations[0], 1) == fits, (exp, weight)
    network = one_layer(rng, chip, ones(1, 1), (1, 1, 1), 1, dv=4095)
    edge = (1 << 23) - 1 if chip != "ideal" else (1 << 31) - 1
    for bias in (edge - 64, edge - 63, -edge - 1, -edge, -edge - 2):
        tried = neurons_of(network, "lif", bias_mant=np.array([[[bias]]], np.int64), bias_exp=0)
        fits = bias + 64 <= edge and bias >= -edge
        assert proofs.never_overflows(network.changed(tried), tried, 1) == fits, bias


@pytest.mark.parametrize(("steps", "fits"), [(2, True), (3, False)])
def test_a_proof_minds_currents_that_a_bias_hides_from_the_voltage(steps, fits):
    """65,000 * 64 a step, of which all is kept: 2^23 is passed in the third; v is held far below."""
    weight = np.full((1, 520), 125, np.int8)
    network = one_layer(np.random.default_rng(0), "loihi2", Dense(weight), (520,), 1, du=0, dv=4096)
    bias = np.array([-((1 << 23) - 99)], np.int64)
    tried = neurons_of(network, "lif", bias_mant=bias, bias_exp=0)
    network = network.changed(tried)
    up = bounds.voltage_range(network, tried, steps)[1]
    assert up.max() < 1 << 23
    assert proofs.never_overflows(network, tried, steps) == fits


@pytest.mark.parametrize("dv", [0, 1, 2048, 3001, 4095, 4096, None])
@pytest.mark.parametrize("exp", [0, 3])
@pytest.mark.parametrize("reset", ["zero", "subtract"])
@pytest.mark.parametrize("hears", [False, True])
def test_the_plain_step(dv, exp, reset, hears):
    """Its voltages, which no trace shows: those of the reference, for all that fits into 31 bits."""
    rng = np.random.default_rng(dv)
    edges = np.array([0, 1, -1, 4095, 4096, -4096, 2**30 - 1, 1 - 2**30])
    v = np.concatenate([edges, rng.integers(-(2**30), 2**30, 5000), rng.integers(-99, 99, 5000)])
    if dv is None:
        dv = rng.integers(0, 4097, len(v))
    a = rng.integers(-(1 << 15), 1 << 15, len(v)) * rng.integers(0, 2, len(v))
    bias = rng.integers(-9, 9, len(v)) * rng.integers(0, 2, len(v))
    own = rng.integers(-(1 << 15), 1 << 15, len(v)) * rng.integers(0, 2, len(v)) * hears
    before = rng.integers(0, 2, len(v)) * hears
    total = (a << exp) + own * before
    u, _ = arithmetic.step_current(v * 0, total, 4095, None)
    want, _ = arithmetic.step_voltage(v, u, bias, dv, None)
    vth = (want + rng.integers(-40, 100, len(v))) >> 6
    want, spikes = arithmetic.fire(want, vth, reset)
    active = (v != 0) | (total != 0) | (bias != 0)
    mine, fired, busy = plainly(v, a, bias, vth, exp, 4096 - dv, reset, own, before)
    assert (mine == want).all()
    assert (fired == spikes).all()
    assert 0.1 < spikes.mean() < 0.9
    assert (busy == active).all()
    assert not active.all()


def plainly(v, a, bias, vth, exp, keep, reset, own, before):
    """One plain step from voltages ``v`` on, as the third of three, the first with spikes ``before``."""
    n = len(v)
    neurons = kernels.Neurons(
        bias=bias.astype(np.int32),
        threshold=(vth << 6).astype(np.int32),
        u_keep=np.zeros(1, np.int64),
        v_keep=np.broadcast_to(np.asarray(keep, np.int32), n).copy(),
        own=(own << 6).astype(np.int32),
        delay=2 if own.any() else 0,
        exp=exp,
        limit=0,
        too_large=1 << 62,
        subtract=reset == "subtract",
        halves=np.all(np.asarray(keep) == 2048),
        bare=reset == "zero" and not own.any(),
        pieces=kernels.Pieces(np.array([0, 1]), np.array([0]), np.array([n]), np.array([0])),
        block_run=np.array([0, 0]),
        run_first=np.array([0]),
        run_length=np.array([n]),
        run_core=np.array([0]),
    )
    both = np.stack([v, v]).astype(np.int32)
    spikes, active = np.zeros((1, 3, n), np.uint8), np.zeros((1, n), np.uint8)
    spikes[0, 0], spikes[0, 1] = before, 1 - before
    none, wide = (np.zeros((0, 0, 0), kind) for kind in (np.int32, np.int64))
    counts = np.zeros((1, 3, 1), np.int64)
    did = kernels.Did(spikes, counts, counts[..., 0], none, none, wide, wide)
    # Two phases, whose sum is what counts.
    acc = np.stack([a - 7, np.full(n, 7)]).astype(np.int32)[None]
    plain_step(neurons, 0, acc, both, did, 2, active)
    assert (both[0] == v).all()
    assert (spikes[0, 0] == before).all()
    return both[1], spikes[0, 2], active[0]


@pytest.mark.parametrize("limit", [None, 1 << 23])
@pytest.mark.parametrize("du", [0, 7, 4095, None])
@pytest.mark.parametrize("dv", [0, 2048, 3001, None])
@pytest.mark.parametrize("reset", ["zero", "subtract"])
def test_the_wide_step(limit, du, dv, reset):
    """The reference's, at the edges of every register: u and v one short of M, at M and beyond."""
    rng = np.random.default_rng((du or 0) + (dv or 0))
    size, big = 40_000, 1 << 23
    du, dv = (rng.integers(0, 4096, size) if d is None else np.array([d]) for d in (du, dv))
    near = np.array([-big, 1 - big, -1, 0, 1, big - 1, big])
    u = np.where(rng.random(size) < 0.5, rng.choice(near, size), rng.integers(-4, 5, size))
    v = np.where(rng.random(size) < 0.5, rng.choice(near, size), rng.integers(-big, big, size))
    a = rng.choice([0, 1 << 17, -(1 << 17), (1 << 17) - 1, 1 << 18, 1 << 25, 5], size)
    a += rng.integers(-1, 2, size)
    wanted_u, wrapped = arithmetic.step_current(u, a, du, limit)
    # A bias that takes v to an edge, or past 32 bits.
    target = rng.choice([*near, big + 1, -big - 1, 1 << 31, -(1 << 31) - 1], size)
    bias = np.where(rng.random(size) < 0.9, target - arithmetic.decay(v, dv) - wanted_u, 0)
    wanted_v, saturated = arithmetic.step_voltage(v, wanted_u, bias, dv, limit)
    vth = (wanted_v + rng.integers(-40, 100, size)) >> 6
    wanted_v, spikes = arithmetic.fire(wanted_v, vth, reset)
    active = (arithmetic.decay(u, du + 1) != 0) | (v != 0) | (a != 0) | (bias != 0)
    overflow = (abs(a) >= 1 << 17) | wrapped | saturated
    mine_u, mine_v, fired = u.copy(), v.copy(), np.zeros(size, np.uint8)
    busy = np.zeros(size, np.uint8)
    beyond = wide_step(
        a.astype(np.int32),
        mine_u,
        mine_v,
        bias,
        vth << 6,
        4096 - (du + 1),
        4096 - dv,
        0,
        limit or 0,
        1 << 17,
        reset == "subtract",
        fired,
        busy,
    )
    assert (mine_u == wanted_u).all()
    assert (mine_v == wanted_v).all()
    assert (fired == spikes).all()
    assert (busy == active).all()
    assert beyond == overflow.sum()


@pytest.mark.parametrize(
    ("chip", "channels", "steps"), [("ideal", 20, 14_000), ("loihi1", 2, 1000)]
)
def test_a_raster_of_more_steps_than_the_network_says(chip, channels, steps):
    """What one step cannot do to a register a thousand can: below -2^31, 32 bits begin again at the top."""
    rng = np.random.default_rng(0)
    of_input = channels, 1, 1
    network = one_layer(rng, chip, ones(40, channels, -127), of_input, 1, 2**25 - 9, dv=0)
    network = replace(network, timesteps=1)
    plans_of = engine.Engine(network)._plan
    assert (plans_of(0, 1, False).plain, plans_of(0, steps, False).plain) == (True, False)
    raster = np.ones((1, steps, *of_input), np.uint8)
    want = reference.run(network, raster)
    if chip == "ideal":
        assert (127 * channels * steps) << FRACTION_BITS > 2**31
    else:
        assert want.layers["lif"].overflow.any()
    assert_same(engine.run(network, raster), want)


def ones(outputs, inputs, value=1):
    weight = np.full((outputs, inputs, 1, 1), value, np.int8)
    return Conv(weight, (1, 1), (0, 0), (1, 1), 1)


# Inputs


@pytest.mark.parametrize("kind", [bool, np.uint16, np.int64, np.float64])
def test_other_types_of_rasters(kind):
    network, raster = draw(0)
    assert network.levels("input") == 1
    assert_same(engine.run(network, raster.astype(kind)), reference.run(network, raster))
    # Axes in another order, and read-only.
    other = np.asfortranarray(raster)
    other.flags.writeable = False
    assert_same(engine.run(network, other), reference.run(network, raster))


@pytest.mark.parametrize("value", [2, 200, 256, 1000, -1])
def test_values_that_nobody_promised(value):
    """The reference is exact for them as well, so the engine must not be wrong."""
    rng = np.random.default_rng(0)
    network = one_layer(rng, "loihi2", ones(3, 2, 5), (2, 3, 3), 1, 10)
    raster = np.zeros((2, 3, 2, 3, 3), np.int64)
    raster[:, :, 1, 1] = value
    want = reference.run(network, raster, states=True)
    assert abs(want.layers["lif"].u).max() == abs(5 * 64 * value)
    assert_same(engine.run(network, raster, states=True), want)


def test_a_flat_layer_reads_a_plane_in_c_order():
    rng = np.random.default_rng(0)
    first = lif("lif", ones(3, 2, 5), (2, 3, 4), vth=rng.integers(1, 3, (3, 3, 4)), bias=1)
    weight = rng.integers(-9, 10, (7, 36)).astype(np.int8)
    # Once as a plane and once as a flat population.
    for before in ((3, 3, 4), (36,)):
        network = chain(first, lif("lif2", Dense(weight), before, vth=rng.integers(50, 100, 7)))
        raster = inputs_for(network, 5, 0.4, rng)
        want = reference.run(network, raster, states=True)
        assert_same(engine.run(network, raster, states=True), want)
        # The other way round: a convolution on a flat raster.
        flat = raster.reshape(*raster.shape[:2], -1)
        assert_same(engine.run(network, flat, states=True), want)


def test_what_the_engine_does_not_know_runs_in_the_reference(monkeypatch):
    network, raster = draw(8)
    want = reference.run(network, raster, states=True)
    unknown = network.weighted[0].name
    known = plans.plan

    def forgetful(net, part, *rest):
        return None if part[0].name == unknown else known(net, part, *rest)

    monkeypatch.setattr(plans, "plan", forgetful)
    assert_same(engine.run(network, raster, states=True), want)


# Samples, threads, batches


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_samples_are_independent(monkeypatch, workers):
    monkeypatch.setattr(engine, "cores", lambda: workers)
    network, raster = draw(5)
    rng = np.random.default_rng(0)
    many = (rng.random((37, *raster.shape[1:])) < 0.5).astype(np.uint8)
    want = reference.run(network, many, states=True)
    runner = engine.Engine(network)
    assert_same(runner.run(many, states=True), want)
    assert_same(runner.run(many[:1], states=True), reference.run(network, many[:1], states=True))
    parts = [runner.run(part) for part in Raster(many).batches(10)]
    assert [len(part.predictions) for part in parts] == [10, 10, 10, 7]
    for name, did in want.layers.items():
        assert (np.concatenate([p.layers[name].spikes for p in parts]) == did.spikes).all()


def test_batches_fit_into_the_memory(monkeypatch):
    network, _ = draw(5)
    entries = network.size("input") + sum(p.size for p in network.populations)
    sample = entries * network.timesteps
    monkeypatch.setattr(engine, "MEMORY", 10 * sample)
    assert engine.batch_size(network) == 10
    assert engine.batch_size(network, states=True) == 1
    monkeypatch.setattr(engine, "MEMORY", 1 << 60)
    assert engine.batch_size(network) == 256
    monkeypatch.setattr(engine, "_free_memory", lambda: 8 * 7 * sample)
    assert engine.batch_size(network) == 7
    monkeypatch.undo()
    assert 0 < engine._free_memory() < 1 << 62


def test_without_a_cache_the_kernels_are_still_compiled():
    """numba finds no folder to write to for a function that comes from no file."""
    names = {}
    exec("def plus_one(x): return x + 1", names)
    with pytest.raises(RuntimeError, match="no locator available"):
        compiled._Cache(names["plus_one"])
    made = compiled.compiled(names["plus_one"])
    assert made(2) == 3
    assert made.targetoptions["nogil"]


# Rasters that stay on disk


@pytest.fixture
def saved(tmp_path):
    rng = np.random.default_rng(0)
    spikes = (rng.random((11, 3, 2, 4)) < 0.5).astype(np.uint8)
    save(tmp_path / "raster.npz", Raster(spikes, np.arange(11) % 3), {})
    return tmp_path / "raster.npz", spikes


@pytest.mark.parametrize("size", [1, 4, 11, 50])
@pytest.mark.parametrize("limit", [None, 1, 6, 99])
def test_a_raster_is_read_in_batches(saved, size, limit):
    path, spikes = saved
    raster = stream(path).first(limit)
    assert isinstance(raster, RasterFile)
    assert raster.shape == spikes[:limit].shape
    assert (raster.labels == load(path).first(limit).labels).all()
    for _ in range(2):
        parts = list(raster.batches(size))
        assert {len(part) for part in parts[:-1]} <= {size}
        assert (np.concatenate(parts) == spikes[:limit]).all()


def test_values_are_looked_at_when_they_are_read(saved, tmp_path):
    path, spikes = saved
    spikes[9, 1, 1, 2] = 3
    save(path, Raster(spikes), {})
    network = IntegerNetwork("ideal", 3, {"input": Input((2, 4), 2)}, (), (), Readout(3, 1))
    raster = check_fits(stream(path), str(path), network)
    with pytest.raises(InputError, match=r"values 0\.\.3, the network reads 0\.\.2"):
        list(raster.batches(4))
    assert len(list(raster.first(9).batches(4))) == 3
    with pytest.raises(
        InputError, match=r"has shape \(\d+, 3, 2, 4\), the network reads \[N, 3, 4, 2\]"
    ):
        check_fits(stream(path), str(path), replace(network, inputs={"input": Input((4, 2), 2)}))
    with pytest.raises(InputError, match="3 time steps"):
        check_fits(stream(path), str(path), replace(network, timesteps=4))


def test_damage_is_found_when_it_is_read(saved):
    path, _ = saved
    whole = path.read_bytes()
    # In the compressed spikes, behind the header.
    at = whole.index(b"spikes.npy") + 120
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :])
    with pytest.raises(InputError, match="is not a raster"):
        list(stream(path).batches(4))


def test_what_cannot_be_streamed_is_loaded(saved):
    path, spikes = saved
    np.savez(path, spikes=np.asfortranarray(spikes))
    assert isinstance(stream(path), Raster)
    assert (stream(path).spikes == spikes).all()
    np.savez(path, spikes=spikes.astype(np.int32))
    assert (stream(path).spikes == spikes).all()
    np.savez(path, spikes=spikes / 2)
    with pytest.raises(InputError, match="values that are not whole numbers"):
        stream(path)
    np.savez(path, other=spikes)
    with pytest.raises(InputError, match="no array 'spikes'"):
        stream(path)
    np.savez(path, spikes=spikes.astype(bool))
    assert (next(stream(path).batches(99)) == spikes).all()
    np.savez(path, spikes=spikes, labels=np.arange(4))
    with pytest.raises(InputError, match="labels"):
        stream(path)


# Helpers


def plan(network, population, states=False):
    return plans.plan(network, (population,), network.timesteps, states, {})


def neurons_of(network, name, **fields):
    """A population of ``network`` with other fields of its neurons."""
    population = network.by_name[name]
    return replace(population, neurons=replace(population.neurons, **fields))


def one_layer(rng, chip, synapses, input_shape, levels, reach=100, **fields):
    """A network of one layer with thresholds up to ``reach`` and biases."""
    shape = after(synapses, input_shape)
    bias, vth = rng.integers(-3, 4, shape[0]), rng.integers(reach // 2, reach, shape)
    layer = lif("lif", synapses, input_shape, shape, vth, bias, **fields)
    return chain(layer, chip=chip, levels=levels)
