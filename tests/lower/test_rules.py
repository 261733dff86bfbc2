"""Every rule of the neurons and every readout in integers: what is kept, what is rounded, what is refused."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from stl_deploy.chips import facts
from stl_deploy.errors import InputError, LoweringError
from stl_deploy.hw_sim import reference
from stl_deploy.ir import execute
from stl_deploy.ir import nir_graph as G
from stl_deploy.ir.float_neurons import FloatNeurons
from stl_deploy.ir.floats import FloatConnection, FloatNetwork, FloatPopulation, OneToOne, Weights
from stl_deploy.ir.network import Connection, Input, IntegerNetwork, Population
from stl_deploy.ir.neurons import Graded, Lif
from stl_deploy.ir.readouts import FloatReadout, Readout
from stl_deploy.ir.synapses import Dense, Geometry
from stl_deploy.lower import graded, readouts, rules
from stl_deploy.lower.quantize import quantize
from tests.build import forced as forced_runs
from tests.build import rule_floats
from tests.build.float_networks import neurons


@pytest.mark.parametrize("rule", rule_floats.RULES)
def test_spikes_are_those_of_the_float_network(rule):
    floats, raster = rule_floats.network(rule)
    for precision, most in (("8", 0.01), ("2x8", 0.001)):
        wrong = rule_floats.wrong(quantize(floats, weight_precision=precision), floats, raster)
        assert rule_floats.share(wrong) < most, precision


# What becomes of each field


def small(given: FloatNeurons, ways=None, steps=6, readout=None, bias=0.0) -> FloatNetwork:
    """One population "lif" of three neurons behind four inputs."""
    weight = np.array([[1.0, -0.5, 0.25, 0.7], [2.0, 0.4, -1.0, 0.3], [-0.2, 0.9, 0.5, 1.5]])
    ways = ways or [FloatConnection("input", "lif", Weights("w", weight, None, None))]
    meta = G.FloatMeta(timesteps=steps, classes=3, population=1)
    population = FloatPopulation("lif", (3,), given, np.full(3, bias))
    return FloatNetwork({"input": (4,)}, (population,), tuple(ways), "lif", meta, readout)


THETA = np.array([1.0, 1.5, 0.8])


def test_values_of_v_are_rounded_to_its_least_unit():
    values = {
        "v0": np.array([-0.3, 0.2, 0.7]),
        "floor": np.full(1, -0.9),
        "adapt": np.full(3, 0.13),
    }
    made = neurons(
        THETA, 0.7, v_reset=np.array([0.1, -0.2, 0.3]), hold=3, adapt_step=np.full(1, 0.2), **values
    )
    mine = quantize(small(made)).by_name["lif"].neurons
    unit = mine.scale / 64
    for name, value in {**values, "v_reset": made.v_reset}.items():
        assert (np.abs(getattr(mine, name) * unit - value) <= unit / 2 * (1 + 1e-9)).all(), name
    assert (mine.reset, mine.hold, mine.dq, mine.fires) == ("constant", 3, round(0.2 * 4096), True)


def test_what_is_default_stays_default():
    mine = quantize(small(neurons(THETA, 0.7, reset_current=True, adapt=np.zeros(1)))).by_name[
        "lif"
    ]
    assert (mine.neurons.reset, mine.neurons.v_reset, mine.neurons.adapt) == ("zero", 0, 0)
    assert (
        not mine.neurons.reset_current
    )  # without a current that remembers there is nothing to reset


def test_what_some_neurons_have_all_have():
    """A reset to another value than zero, in one neuron of three; a threshold that never comes down."""
    made = neurons(THETA, 0.7, v_reset=np.array([0.0, 0.1, 0.0]), adapt=np.array([0.0, 0.0, 0.2]))
    mine = quantize(small(made)).by_name["lif"].neurons
    assert mine.reset == "constant"
    assert (mine.v_reset != 0).tolist() == [False, True, False]
    assert (mine.adapt != 0).tolist() == [False, False, True]
    assert mine.dq == 0


def test_a_spike_resets_a_second_current_without_a_first_that_remembers():
    second = {"current2": np.full(1, 0.25), "drive2": np.full(1, 0.5)}
    weight = np.ones((3, 4))
    ways = [
        FloatConnection("input", "lif", Weights(f"w{port}", weight, None, None), 0, port)
        for port in (0, 1)
    ]
    for resets in (True, False):
        made = neurons(THETA, 0.7, reset_current=resets, **second)
        assert quantize(small(made, ways)).by_name["lif"].neurons.reset_current == resets


@pytest.mark.parametrize(
    ("values", "form"),
    [
        ([[5, 5], [5, 5]], 5),
        ([[1, 1], [2, 2]], [[1], [2]]),
        ([[1, 1], [2, 3]], [[1, 1], [2, 3]]),
        ([[1, 2], [1, 2]], [[1, 2], [1, 2]]),
    ],
)
def test_values_take_the_smallest_form(values, form):
    """One for all neurons, one for each channel, or all."""
    found = rules.each(np.array(values), (2, 2))
    assert (found if isinstance(found, int) else found.tolist()) == form


@pytest.mark.parametrize("field", ["v0", "floor", "adapt", "v_reset"])
def test_units_grow_until_registers_hold_the_parameters(field):
    """4,000 is about twice what 24 bits of v hold in the unit that the weights would have."""
    value = np.array([-4000.0, 0.0, 0.0]) if field == "floor" else np.array([4000.0, 0.0, 0.0])
    mine = quantize(small(neurons(THETA, 0.7, **{field: value})), "loihi2").by_name["lif"].neurons
    held = getattr(mine, field)
    assert (1 << 22) < np.abs(held).max() < 1 << 23
    assert (np.abs(held * mine.scale / 64 - value) <= mine.scale / 64).all()


@pytest.mark.parametrize("share", [0.25, 0.3])
@pytest.mark.parametrize(
    ("said", "fields"),
    [
        ("decay of the second current", {"drive2": np.ones(1)}),
        ("decay of the threshold's rise", {"adapt": np.ones(1)}),
    ],
)
def test_decays_that_are_rounded_are_said(said, fields, share):
    field = "current2" if "drive2" in fields else "adapt_step"
    network = quantize(small(neurons(THETA, 0.75, **{field: np.full(1, share)}, **fields)))
    found = [d.what for d in network.diagnostics if said in d.what]
    kept = round(4096 * (1 - share))
    rounded = f"{said} {1 - share:.8g} is rounded to {kept}/4096 = {kept / 4096:.8g}"
    assert found == ([] if share == 0.25 else [rounded])


def test_how_far_v_goes_that_nothing_resets():
    """By one neuron after the other: start, current, gain for each step, leak and decay."""
    rng = np.random.default_rng(0)
    arrived = rng.normal(0, 1, (5, 7, 2, 3))
    amplify, start = rng.uniform(-2, 2, (7, 1, 1)), rng.normal(0, 1, (2, 3))
    made = neurons(
        np.ones((2, 3)),
        0.8,
        1.5,
        kind="cuba",
        current=np.full(1, 0.3),
        drive=np.full(1, 0.4),
        leak=np.full(1, 0.7),
        v0=start,
        amplify=amplify,
        fires=False,
    )
    most = np.zeros(2)
    for n, c, i in np.ndindex(5, 2, 3):
        current, v = 0.0, start[c, i]
        most[c] = max(most[c], abs(v))
        for t in range(7):
            current = 0.7 * current + 0.4 * amplify[t, 0, 0] * arrived[n, t, c, i]
            v = 0.8 * v + 1.5 * current + 0.7
            most[c] = max(most[c], abs(v))
    assert rules.added_up(made, arrived) == pytest.approx(most, rel=1e-12)
    assert not rules.resets(made)
    assert not rules.resets(neurons(THETA, 0.8, reset="none"))
    assert rules.resets(neurons(THETA, 0.8, reset="subtract"))


def test_the_second_current_has_weights_in_units_of_the_first():
    weight = np.array([[1.0, -0.5, 0.25, 0.7], [2.0, 0.4, -1.0, 0.3], [-0.2, 0.9, 0.5, 1.5]])
    ways = [
        FloatConnection("input", "lif", Weights("w", weight, None, None)),
        FloatConnection("input", "lif", Weights("w2", weight, None, None), 1, 1),
    ]
    made = neurons(
        THETA,
        0.7,
        kind="cuba",
        current=np.full(1, 0.5),
        drive=np.full(1, 0.5),
        current2=np.full(1, 0.25),
        drive2=np.full(1, -0.25),
    )
    network = quantize(small(made, ways), weight_precision="2x8")
    one, two = (network.into("lif")[i] for i in (0, 1))
    assert (one.port, two.port, two.delay) == (0, 1, 1)
    assert network.by_name["lif"].neurons.du2 == 1023
    assert np.abs(two.synapses.weight + 0.5 * one.synapses.weight.astype(float)).max() <= 0.75


@pytest.mark.parametrize(
    ("most", "factor"),
    [(1.0, 1), (2.0, 1), (7.9, 1), (8.0, 8), (40.0, 32), (0.7, 0.5), (0.02, 2.0**-6)],
)
def test_gains_take_a_common_factor_into_the_weights(most, factor):
    amplify = np.linspace(most / 3.3, most, 6)[:, None]
    made = neurons(THETA * most, 0.7, amplify=amplify)
    network, plain = quantize(small(made, bias=0.3)), quantize(small(neurons(THETA, 0.7)))
    mine = network.by_name["lif"].neurons
    assert rules.common_gain(made) == factor
    assert np.abs(mine.gain / 4096 * factor - amplify).max() <= factor / 8192
    assert mine.scale == pytest.approx(plain.by_name["lif"].neurons.scale * factor)
    assert mine.bias_mant * mine.scale == pytest.approx(0.3 * factor, abs=float(mine.scale.max()))
    assert any("gains of its steps" in d.what for d in network.diagnostics)


def test_a_bias_goes_through_the_gain_into_the_current():
    """A chip's gain is of what arrives, bias included: no neuron that fires in every step is needed."""
    made = neurons(
        THETA, 0.7, kind="cuba", current=np.full(1, 0.5), amplify=np.ones((6, 1)), reset="subtract"
    )
    network = quantize(small(made, bias=0.4))
    assert list(network.by_name) == ["lif"]
    assert network.by_name["lif"].neurons.bias_mant.all()


def test_an_integrator_has_no_threshold():
    made = neurons(np.full(3, np.inf), 0.9, fires=False, v_reset=np.ones(1))
    read = FloatReadout(3, 1, "lif", "max")
    mine = quantize(small(made, readout=read)).by_name["lif"].neurons
    assert (mine.fires, mine.reset, mine.vth.any()) == (False, "zero", False)
    assert not np.ptp(mine.scale)  # all classes count v in one unit


# Graded values


def test_graded_values_are_counted_in_their_unit():
    floats, raster = rule_floats.network("graded sums", 1)
    network = quantize(floats)
    sent = execute.run(floats, raster)["a"]
    got = reference.run(network, raster).layers["a"].spikes
    neurons_of = network.by_name["a"].neurons
    unit = graded.worth(network.by_name["a"], floats.by_name["a"].neurons, neurons_of.graded.shift)
    assert np.abs(got * unit - sent).max() < 0.02 * np.abs(sent).max()
    assert np.abs(got).max() < neurons_of.graded.levels  # nothing is cut off
    calibrated = quantize(floats, calib=raster)
    assert calibrated.by_name["b"].neurons.graded.shift < network.by_name["b"].neurons.graded.shift
    assert any("graded values" in d.what for d in calibrated.diagnostics)


def sums(weight, levels, inputs=1, exp=0, chip="ideal", scale=0.5):
    """An integer network whose sums reach ``weight`` << exp times the levels of all ``inputs``."""
    lif = Lif(np.zeros(1, np.int32), np.zeros(1, np.int32), np.full(1, scale), fires=False)
    way = Connection("w", "input", "lif", Dense(np.full((1, inputs), weight, np.int8)), exp)
    port = Input((inputs,), levels)
    return IntegerNetwork(
        chip, 2, {"input": port}, (Population("lif", (1,), lif),), (way,), Readout(1, 1, "lif")
    )


def sent_by(network, seen=None, **fields):
    """The form of what is sent, its worth, and problems."""
    target = SimpleNamespace(name="lif", neurons=neurons(np.ones(1), 0.5, fires=False, **fields))
    made, worth, problems = graded.sending(network, target, facts.of(network), seen)
    return made.by_name["lif"].neurons.graded, float(worth[0]), [p.what for p in problems]


@pytest.mark.parametrize(
    ("network", "shift", "levels"),
    [
        (sums(1, 32_767), 0, 32_767),
        (sums(2, 16_384), 1, 16_384),
        (sums(-2, 16_384), 1, 16_384),
        (sums(-128, 25_600), 7, 25_600),
        (sums(1, 255, chip="loihi2"), 0, 255),
        (sums(1, 256, chip="loihi2"), 1, 128),
        (sums(0, 7), 0, 1),
    ],
)
def test_values_are_shifted_by_as_few_bits_as_their_bound_allows(network, shift, levels):
    found, worth, problems = sent_by(network)
    assert (found.shift, found.levels, problems) == (shift, levels, [])
    assert worth == 0.5 * 2**shift


def test_calibration_leaves_twice_what_was_seen():
    """50 of 0.5 are 100 of the sums, and 200 fit."""
    found, worth, _ = sent_by(sums(127, 32_767, chip="loihi2"), seen=50.0)
    assert (found.shift, found.levels, worth) == (0, 200, 0.5)


def test_the_common_gain_counts_in_what_a_sum_is_worth():
    found, worth, _ = sent_by(sums(1, 100), amplify=np.full((2, 1), 40.0), gain=0.25)
    assert (found.levels, worth) == (100, 0.5 / (0.25 * 32))


def test_values_that_no_shift_brings_down_are_refused():
    chip = facts.load("ideal")
    for inputs, fits in ((500, True), (600, False)):
        network = sums(127, 32_767, inputs, 7)
        found, _, problems = sent_by(network)
        assert found.shift == 23
        assert (problems == []) == fits
        assert graded.excess(network, chip) == 127 * 128 * 32_767 * inputs / (32_767 << 23)


# Readouts


@pytest.mark.parametrize(
    ("given_", "whole", "error"),
    [
        ([3.0, -2.0, 0.0], [3, -2, 0], 0),
        ([0.75, 0.5, 0.25], [3, 2, 1], 0),
        ([1 / 3, 1 / 2], [2, 3], 0),
        ([0.0, 0.0], [0, 0], 0),
        ([1.0, 1e6], [0, 1 << 15], 2.0**-19),
        ([1.0, np.pi / 4], [1 << 15, round(np.pi / 4 * (1 << 15))], 2.0**-16),
    ],
)
def test_numbers_keep_their_ratio(given_, whole, error):
    found = readouts.ratio(np.array(given_), 1 << 15)
    assert found.values.tolist() == whole
    assert found.error <= error


def whole(read, size=4, scale=1.0, worth=None, timesteps=4, levels=None):
    """The readout in whole numbers and problems, of neurons that send spikes or ``levels``."""
    none = np.zeros(size, np.int32)
    sends = None if levels is None else Graded(0, levels)
    lif = Lif(none, none, np.full(size, 1.0) * scale, graded=sends)
    made, problems, notes = readouts.whole(
        read, Population("out", (size,), lif), None if worth is None else np.array(worth), timesteps
    )
    return made, [p.what for p in problems], [n.what for n in notes]


def test_values_of_different_worth_are_weighed_by_a_matrix():
    made, problems, notes = whole(FloatReadout(2, 2, "out"), worth=[1.0, 2.0, 3.0, 4.0], levels=9)
    assert made.matrix.tolist() == [[1, 2, 0, 0], [0, 0, 3, 4]]
    assert (made.offset, problems, notes) == (None, [], [])
    assert whole(FloatReadout(2, 2, "out"), worth=[0.5], levels=9)[0].matrix is None


def test_an_offset_counts_in_the_worth_of_values():
    matrix, offset = np.array([[1.0, 2.0, 0.0, 1.0], [3.0, 0.0, 1.0, 2.0]]), np.array([4.0, -3.0])
    read = FloatReadout(2, 1, "out", matrix=matrix, offset=offset)
    made, *_ = whole(read, worth=[0.5], levels=9)
    assert made.matrix.tolist() == matrix.tolist()
    assert made.offset.tolist() == [8, -6]


def test_weights_of_steps_take_fifteen_bits():
    steps = (1.0, -np.pi / 4, 0.3, 0.0)
    made, _, notes = whole(FloatReadout(4, 1, "out", steps=steps))
    assert made.steps == tuple(np.rint(np.array(steps) * (1 << 15)))
    assert "weights of steps are rounded" in notes[0]


def test_factors_of_voltages_count_units_and_signs():
    read = FloatReadout(4, 1, "out", "last")
    assert whole(read)[0].factors is None
    assert whole(read, scale=np.array([1.0, 2.0, 1.0, 3.0]))[0].factors.tolist() == [1, 2, 1, 3]
    turned = replace(read, factors=-np.ones(4))
    assert whole(turned)[0].factors.tolist() == [-1] * 4
    both = replace(read, factors=np.array([1.0, -2.0, 3.0, 1.0]))
    found, *_ = whole(both, scale=np.array([1.0, 2.0, 1.0, 3.0]))
    assert found.factors.tolist() == [1, -4, 3, 3]


@pytest.mark.parametrize(("steps", "fits"), [(1000, False), (700, True)])
def test_scores_that_leave_no_bits_for_a_matrix_are_refused(steps, fits):
    """Steps of either sign count: 32,767 levels, up to 2^15 a step, 101 numbers of up to 2^15 a row."""
    rng = np.random.default_rng(0)
    weights = tuple(np.tile([1.0, -np.pi / 4], steps // 2))
    read = FloatReadout(2, 1, "out", steps=weights, matrix=rng.normal(0, 1, (2, 100)))
    _, problems, _ = whole(read, 100, timesteps=steps, levels=32_767)
    assert (problems == []) == fits
    assert fits or "leave fewer than 15 bits for a matrix" in problems[0]


def _read(rule, rng):
    """A readout of ten classes, by its name here."""
    more = {
        "steps": {"steps": tuple(rng.uniform(0.1, 2, rule_floats.STEPS))},
        "matrix": {
            "matrix": rng.normal(0, 1, (10, 10)),
            "offset": rng.normal(0, 0.1, 10),
        },
    }.get(rule, {})
    return FloatReadout(10, 1, "out", "votes" if more else rule, **more)


@pytest.mark.parametrize("rule", ["votes", "steps", "matrix", "last", "mean", "max", "first"])
def test_predictions_are_those_of_the_float_network(rule):
    read = _read(rule, np.random.default_rng(3))
    floats, raster = rule_floats.network("zero", 2, read=read.rule)
    floats = replace(floats, readout=read)
    network = quantize(floats, weight_precision="2x8")
    want = execute.trace(floats, raster)
    got = forced_runs.run(network, raster, want.sent)
    expected = read.predict(want.sent["out"], want.v)
    assert (got.predictions == expected).mean() >= 11 / 12
    out = got.layers["out"]
    mine = network.readout.scores(out.spikes, out.v).astype(np.float64)
    theirs = read.scores(want.sent["out"], want.v)
    assert np.unique(np.rint(theirs / theirs.std())).size > 2
    unit = (mine * theirs).sum() / (mine**2).sum()
    assert np.abs(mine * unit - theirs).mean() < 0.01 * theirs.std()


def test_voltages_in_units_of_their_own_get_whole_factors():
    """Neurons that fire keep the unit of their channel, which the host multiplies with."""
    floats = small(neurons(THETA, 0.7), readout=FloatReadout(3, 1, "lif", "mean"))
    network = quantize(floats)
    factors, scale = network.readout.factors, network.by_name["lif"].neurons.scale.reshape(-1)
    assert factors / factors.max() == pytest.approx(scale / scale.max(), rel=1e-5)


# What cannot be had


def refused(floats, chip="ideal", **options):
    with pytest.raises(LoweringError) as error:
        quantize(floats, chip, **options)
    return "\n".join(str(problem) for problem in error.value.problems)


def test_all_that_cannot_be_had_is_said_at_once():
    made = neurons(
        THETA,
        0.7,
        hold=64,
        leak=np.full(1, 0.1),
        amplify=np.ones((3, 1)),
        adapt=np.ones(1),
        adapt_step=np.full(1, 1.5),
    )
    said = refused(small(made))
    for what in ("64 steps", "v_leak", "gains for 3 steps", "adapt_step ranges"):
        assert what in said
    made = neurons(THETA, 0.7, hold=63, amplify=np.ones((6, 1)))  # as much as there can be
    assert quantize(small(made)).by_name["lif"].neurons.hold == 63


def test_what_sends_nothing_leads_nowhere():
    made = small(neurons(THETA, 0.7, fires=False))
    back = FloatConnection("lif", "lif", OneToOne("back", np.ones(3)), 1)
    made = replace(made, connections=(*made.connections, back))
    assert "sends nothing over back" in refused(made)


def test_graded_values_do_not_go_back():
    made = small(neurons(THETA, 0.7, graded=True))
    back = FloatConnection("lif", "lif", OneToOne("back", np.ones(3)), 1)
    made = replace(made, connections=(*made.connections, back))
    assert "graded values back over back" in refused(made)


@pytest.mark.parametrize("calibrated", [False, True])
def test_what_is_behind_graded_values_that_cannot_be_lowered(calibrated):
    """Neurons of a channel send values in four units: that is said, and nothing else fails."""
    geometry, theta = Geometry((1, 1), (0, 0), (1, 1), 1), np.ones((1, 2, 2))
    keep = np.array([[[0.5, 0.6], [0.7, 0.8]]])
    ways, populations, source = [], [], "input"
    for name, made in (
        ("a", neurons(theta, keep, 1 - keep, graded=True)),
        ("b", neurons(theta, 0.5, graded=True)),
        ("c", neurons(theta, 0.5)),
    ):
        kernel = Weights(f"to_{name}", np.full((1, 1, 1, 1), 0.7), None, geometry)
        ways.append(FloatConnection(source, name, kernel))
        populations.append(FloatPopulation(name, theta.shape, made, np.zeros((1, 1, 1))))
        source = name
    meta = G.FloatMeta(timesteps=5, classes=4, population=1)
    floats = FloatNetwork({"input": theta.shape}, tuple(populations), tuple(ways), "c", meta, None)
    options = {"calib": np.ones((4, 5, *theta.shape), np.uint8)} if calibrated else {}
    said = refused(floats, **options)
    assert said.startswith("b: the neurons of a channel send values in different units")


READ_AS = {
    "classes": ((5, 2), None, "3 neurons; the readout is of 5 classes of 2"),
    "matrix": ((3, 1), {"matrix": np.ones((3, 2))}, "the readout is of [3, 2] [classes, neurons]"),
    "offset": (
        (3, 1),
        {"matrix": np.ones((3, 3)), "offset": np.ones(2)},
        "2 offsets for 3 classes",
    ),
    "factors": ((3, 1), {"rule": "last", "factors": np.ones(2)}, "2 factors for 3 neurons"),
    "steps": ((3, 1), {"steps": (1.0, 2.0)}, "weights of 2 steps; 6 are needed"),
}


@pytest.mark.parametrize("case", READ_AS)
def test_a_readout_that_does_not_fit_is_bad_input(case):
    (classes, population), fields, words = READ_AS[case]
    read = None if fields is None else FloatReadout(3, 1, "lif", **fields)
    made = small(neurons(THETA, 0.7), readout=read)
    meta = made.meta.model_copy(update={"classes": classes, "population": population})
    with pytest.raises(InputError) as caught:
        quantize(replace(made, meta=meta))
    (problem,) = caught.value.problems
    assert problem.where == "lif"
    assert words in problem.what
    assert problem.remedy.startswith("correct classes, population and timesteps")


def test_a_leak_that_a_gain_would_multiply_is_refused():
    """In float v_leak is added to v as it is; a chip's neuron has one bias, which its gain multiplies."""
    gains = np.array([1.0, 2, 1, 2, 1, 2]).reshape(6, 1)
    made = small(neurons(THETA, 0.7, amplify=gains, leak=np.full(1, 0.1)))
    assert "lif: has a gain for each step and v_leak, which a chip would multiply too" in refused(
        made
    )
    quantize(
        replace(
            made,
            populations=(replace(made.populations[0], neurons=neurons(THETA, 0.7, amplify=gains)),),
        )
    )


def test_sums_that_are_sent_have_no_bias_that_passes_a_current():
    """Where neurons fire they send v, which the bias belongs to."""
    current = {"kind": "cuba", "current": np.full(1, 0.5), "graded": True}
    said = refused(small(neurons(THETA, 0.7, fires=False, **current), bias=0.4))
    assert "sends what arrives" in said
    for fires, bias in ((True, 0.4), (False, 0.0)):
        mine = quantize(small(neurons(THETA, 0.7, fires=fires, **current), bias=bias))
        assert mine.by_name["lif"].neurons.graded is not None


def test_first_spikes_need_one_unit():
    made = neurons(THETA, 0.7, np.array([1.0, 2.0, 3.0]))
    said = refused(small(made, readout=FloatReadout(3, 1, "lif", "first")))
    assert "different units" in said


def test_folding_refuses_values_of_v():
    said = refused(small(neurons(THETA, 0.7, floor=np.zeros(1))), thresholds="fold")
    assert "has a floor, which cannot be folded" in said


def test_a_chip_refuses_rules_by_name():
    made = neurons(THETA, 0.7, v0=np.ones(1), v_reset=np.full(1, 0.2), hold=5)
    said = refused(small(made), "loihi1")
    assert "initial v" in said
    assert "reset 'constant'" in said
    assert quantize(small(made), "loihi2").by_name["lif"].neurons.hold == 5


# Overflow


@pytest.mark.parametrize(
    "rule", ["none", "integrator", "second current", "gain", "adaptive threshold"]
)
def test_what_is_proved_holds_for_inputs_that_drive_it_furthest(rule):
    fields = rule_floats.RULES.get(rule, lambda _: {"fires": False})(np.random.default_rng(0))
    fields = {name: x[:3] if np.shape(x) == (100,) else x for name, x in fields.items()}
    rng, size = np.random.default_rng(1), (3, 60)
    ways = [FloatConnection("input", "lif", Weights("w", rng.normal(0, 1, size), None, None))]
    if "current2" in fields:
        way = Weights("w2", rng.normal(0, 1, size), None, None)
        ways.append(FloatConnection("input", "lif", way, 0, 1))
    floats = replace(small(neurons(THETA, 0.99, **fields), ways, steps=20), inputs={"input": (60,)})
    network = quantize(floats, "loihi2", overflow="proven")
    assert network.precision["lif"].mode == "proven"
    up = (ways[0].way.weight > 0).astype(np.uint8)
    raster = np.repeat(np.concatenate([up, 1 - up])[:, None], 20, axis=1)
    assert not reference.run(network, raster).layers["lif"].overflow.any()


def test_a_voltage_that_nothing_resets_is_proved_or_refused():
    """Over many steps proven units would leave no weights, and data says how far v goes."""
    rng = np.random.default_rng(1)
    ways = [FloatConnection("input", "lif", Weights("w", rng.normal(0, 1, (3, 60)), None, None))]
    made = small(neurons(THETA, 1.0, fires=False), ways, steps=3000)
    floats = replace(made, inputs={"input": (60,)}, readout=FloatReadout(3, 1, "lif", "last"))
    said = refused(floats, "loihi2")
    assert "voltages that nothing resets in 3000 steps" in said
    assert "--calib" in said
    raster = (rng.random((4, 3000, 60)) < 0.02).astype(np.uint8)
    network = quantize(floats, "loihi2", raster)
    assert network.precision["lif"].mode == "checked"
    assert not reference.run(network, raster).layers["lif"].overflow.any()
