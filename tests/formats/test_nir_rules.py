"""model.nir of neurons with further rules, and of readouts: all comes back, and nothing else gets in."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import nir
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as some

from stl_deploy.errors import InputError, LoweringError
from stl_deploy.formats import integer_nir as nir_file
from stl_deploy.formats import nir_io
from stl_deploy.hw_sim import reference
from stl_deploy.ir.network import Connection, Input, IntegerNetwork, Population
from stl_deploy.ir.neurons import Graded, Lif
from stl_deploy.ir.nir_graph import KEY
from stl_deploy.ir.readouts import Readout
from stl_deploy.ir.synapses import Dense
from tests.build import nir_interpreter, random_graphs
from tests.build.same import assert_same

CARRIED = replace(random_graphs.TABLE, sparse=False)
SHAPE = (2, 1, 3)
STEPS = 4
STATE = (1 << 23) - 1  # of loihi2


def network(shape=SHAPE, chip="loihi2", readout=None, port=0, **fields):
    """One population, with an input of its size."""
    size = int(np.prod(shape))
    channels = (shape[0], *[1] * (len(shape) - 1))
    lif = Lif(np.full(shape, 40, np.int32), np.zeros((), np.int32), np.ones(channels))
    population = Population("a", shape, replace(lif, **fields))
    weight = np.random.default_rng(0).integers(-90, 90, (size, 5)).astype(np.int8)
    way = Connection("w", "input", "a", Dense(weight), port=port)
    readout = Readout(size, 1, "a") if readout is None else readout
    return IntegerNetwork(chip, STEPS, {"input": Input((5,))}, (population,), (way,), readout)


def file_of(made):
    return nir_io.to_hdf5(nir_file.to_nir(made)).getvalue()


def returns(before, path):
    """Fail unless the network comes back from a file, and is written to the same bytes again."""
    nir_io.write(nir_file.to_nir(before), path)
    after = nir_file.read_network(path)
    assert_same(before, after)
    assert file_of(before) == file_of(after) == path.read_bytes()
    return after


@pytest.mark.parametrize("seed", range(60))
def test_random_graphs_come_back_byte_for_byte(seed, tmp_path):
    before, rasters = random_graphs.draw(seed, CARRIED)
    after = returns(before, tmp_path / "m.nir")
    ran, found = (reference.run(n, rasters, states=True) for n in (before, after))
    np.testing.assert_array_equal(ran.predictions, found.predictions)
    for name, layer in ran.layers.items():
        again = found.layers[name]
        pairs = [(getattr(layer, key), getattr(again, key)) for key in ("spikes", "u", "v")]
        pairs += [(states, again.more[key]) for key, states in layer.more.items()]
        for one, other in pairs:
            np.testing.assert_array_equal(one, other, err_msg=name)


def each(low, high, shape=SHAPE):
    """One value for all neurons, for the channels, or for every neuron."""
    number = st.integers(low, high)
    channels = (shape[0], *[1] * (len(shape) - 1))
    forms = [some.arrays(np.int32, size, elements=number) for size in (channels, shape)]
    return st.one_of(number, *forms)


def gains():
    number = st.integers(-(1 << 15), (1 << 15) - 1)
    sizes = [(STEPS, *rest) for rest in ((), (2, 1, 1), SHAPE, (3,))]
    return st.one_of([some.arrays(np.int16, size, elements=number) for size in sizes])


states = each(-STATE, STATE)
FIELDS = {
    "reset": st.sampled_from(["zero", "subtract", "constant", "none"]),
    "v_reset": states,
    "fires": st.booleans(),
    "reset_current": st.booleans(),
    "hold": st.integers(-1, 63),
    "floor": st.none() | states,
    "adapt": states,
    "dq": each(0, 4095),
    "du2": st.none() | each(0, 4095),
    "gain": st.none() | gains(),
    "v0": states,
    "graded": st.none() | st.builds(Graded, st.integers(0, 23), st.integers(1, 32767)),
    "du": each(0, 4095),
    "dv": each(0, 4095),
    "vth": some.arrays(np.int32, SHAPE, elements=st.integers(0, 131_071)),
    "bias_mant": each(-4096, 4095).map(np.int32),
    "bias_exp": st.integers(0, 7),
}


def test_the_fields_tried_are_all_of_them():
    assert {"scale", *FIELDS} == {field.name for field in fields(Lif)}


@pytest.mark.parametrize("name", FIELDS)
def test_a_single_field_comes_back(name, tmp_path):
    @settings(max_examples=15)
    @given(FIELDS[name])
    def comes_back(value):
        returns(network(**{name: value}), tmp_path / "m.nir")

    comes_back()


@settings(max_examples=60)
@given(st.fixed_dictionaries({}, optional=FIELDS), st.sampled_from(["loihi2", "ideal"]))
def test_fields_come_back_together(tmp_path_factory, fields, chip):
    port = int(fields.get("du2") is not None)
    path = tmp_path_factory.getbasetemp() / "together.nir"
    returns(network(chip=chip, port=port, **fields), path)


whole = st.integers(-(1 << 20), 1 << 20)


def rows(size, number=whole):
    return some.arrays(np.int64, size, elements=number)


@st.composite
def readouts(draw):
    rule = draw(st.sampled_from(["votes", "last", "mean", "max", "first"]))
    found, classes, population = {}, 3, 2
    if rule == "votes":
        if draw(st.booleans()):
            found["steps"] = tuple(draw(st.lists(whole, min_size=STEPS, max_size=STEPS)))
        if draw(st.booleans()):
            classes, population = draw(st.integers(1, 5)), draw(st.integers(1, 9))
            found["matrix"] = draw(rows((classes, 6)))
            if draw(st.booleans()):
                found["offset"] = draw(rows((classes,)))
    elif rule != "first" and draw(st.booleans()):
        found["factors"] = draw(rows((6,)))
    return Readout(classes, population, "a", rule, **found)


@settings(max_examples=80)
@given(readouts(), st.sampled_from([SHAPE, (6,)]), st.booleans())
def test_any_readout_comes_back(tmp_path_factory, readout, shape, fires):
    before = network(shape, readout=readout, fires=fires)
    after = returns(before, tmp_path_factory.getbasetemp() / "readout.nir")
    x = np.random.default_rng(0).integers(0, 2, (9, STEPS, 5)).astype(np.uint8)
    ran, found = (reference.run(n, x).predictions for n in (before, after))
    np.testing.assert_array_equal(ran, found)


# NIR's own words


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"fires": False}, nir.LI),
        ({"fires": False, "dv": 0}, nir.I),
        ({"fires": False, "du": 100}, nir.CubaLI),
        ({"fires": False, "dv": 0, "bias_mant": np.int32(3)}, nir.I),
        ({"fires": False, "dv": 0, "du": 7, "bias_mant": np.int32(3)}, nir.CubaLI),
        ({"du2": 100}, nir.CubaLIF),
        ({"dv": 0, "reset": "constant", "v_reset": -64}, nir.IF),
        ({"reset": "constant", "v_reset": -64}, nir.LIF),
        ({"reset": "constant", "v_reset": -64, "du": 100}, nir.CubaLIF),
    ],
)
def test_what_nir_has_a_word_for_stands_in_it_alone(fields, kind, tmp_path):
    made = nir_file.to_nir(network((5,), **fields))
    node = made.nodes["a"]
    assert type(node) is kind
    if "v_reset" in fields:
        assert (node.v_reset == -1).all()
    unsaid = {"vth"} if "fires" in fields else fields.keys() & {"du2"}
    assert node.metadata.keys() == unsaid


def test_a_matrix_is_a_node_behind_the_last_neurons():
    matrix, offset = np.arange(12).reshape(2, 6), np.array([5, -7])
    linear = nir_file.to_nir(network(readout=Readout(2, 1, "a", matrix=matrix)))
    assert isinstance(linear.nodes["readout"], nir.Linear)
    end = {("a", "readout_flatten"), ("readout_flatten", "readout"), ("readout", "output")}
    assert end <= set(linear.edges)
    affine = nir_file.to_nir(
        network((6,), readout=Readout(2, 1, "a", "votes", None, None, matrix, offset))
    )
    node = affine.nodes["readout"]
    np.testing.assert_array_equal(node.weight, matrix)
    np.testing.assert_array_equal(node.bias, offset)
    assert {("a", "readout"), ("readout", "output")} <= set(affine.edges)
    assert affine.nodes["output"].output_type["output"].tolist() == [2]


def test_a_reader_that_knows_only_nir_computes_the_same_with_constant_resets():
    before = network(
        (6,), "ideal", reset="constant", v_reset=np.arange(-3, 3, dtype=np.int32) * 640, dv=0
    )
    made = nir_file.to_nir(before)
    made.metadata = {}
    x = np.random.default_rng(0).integers(0, 2, (30, STEPS, 5)).astype(np.uint8)
    found, _ = nir_interpreter.run(made, {"input": x})
    expected = reference.run(before, x).layers["a"].spikes
    assert 0.05 < expected.mean() < 0.95
    np.testing.assert_array_equal(found["a"], expected)


def test_the_nodes_of_integrators_have_their_v():
    x = np.random.default_rng(0).integers(0, 2, (30, STEPS, 5)).astype(np.uint8)
    bias = np.arange(6, dtype=np.int32)
    for dv, shift in ((0, 0), (2048, 5)):
        before = network((6,), "ideal", fires=False, dv=dv, bias_mant=bias << shift)
        made = nir_file.to_nir(before)
        node, way = made.nodes["a"], made.nodes["w"]
        v = np.zeros((30, 6))
        for t in range(STEPS):
            arriving = x[:, t] @ way.weight.T.astype(float) + way.bias
            slope = node.r * arriving if dv == 0 else (node.r * arriving - v) / node.tau
            v = v + 1e-4 * slope
            layer = reference.run(before, x, states=True).layers["a"]
            np.testing.assert_allclose(v * 64, layer.v[:, t], rtol=1e-12, atol=1e-9)
    assert not layer.spikes.any()


def test_the_arrays_are_as_small_as_they_can_be():
    per_channel = np.repeat([[[3]], [[4]]], 3, axis=2).astype(np.int32)
    gain = np.full((STEPS, *SHAPE), 5, np.int16)
    node = nir_file.to_nir(
        network(v0=np.full(SHAPE, 7, np.int32), floor=per_channel, gain=gain)
    ).nodes["a"]
    assert {name: array.shape for name, array in node.metadata.items()} == {
        "v0": (1,),
        "floor": (2, 1, 1),
        "gain": (STEPS,),
    }


def test_equal_weights_into_two_currents_are_two_nodes(tmp_path):
    first = network(du2=3)
    again = replace(first.connections[0], port=1, name="w", source="other")
    ports = {"input": Input((5,)), "other": Input((5,))}
    both = replace(first, inputs=ports, connections=(*first.connections, again))
    assert {"w", "w_2"} <= set(nir_file.to_nir(both).nodes)
    returns(both, tmp_path / "m.nir")


# What a file cannot hold


@pytest.mark.parametrize(
    ("made", "what"),
    [
        (network(v0=STATE + 1), "v0 spans 8388608..8388608, outside -8388607..8388607"),
        (
            network(readout=Readout(2, 1, "a", matrix=np.full((2, 6), 1 << 41))),
            "matrix spans",
        ),
        (
            network(
                graded=Graded(0, 32767),
                readout=Readout(
                    2, 1, "a", steps=(1 << 20,) * 4, matrix=np.full((2, 6), 1 << 40, np.int64)
                ),
            ),
            "its scores may reach",
        ),
    ],
)
def test_values_that_no_file_holds_are_refused_before_one_is_written(made, what):
    with pytest.raises(LoweringError) as error:
        nir_file.to_nir(made)
    assert what in str(error.value)


# Untrusted files


def everything(**other):
    """A population whose node has every array."""
    each_neuron = np.arange(6, dtype=np.int32).reshape(SHAPE)
    fields = {
        "v0": each_neuron,
        "floor": each_neuron - 100,
        "adapt": each_neuron,
        "dq": each_neuron,
        "du2": each_neuron,
        "gain": np.arange(STEPS, dtype=np.int16),
        "v_reset": each_neuron,
        **other,
    }
    readout = Readout(2, 1, "a", steps=(1, 2, 3, 4), matrix=np.arange(12).reshape(2, 6))
    return network(readout=readout, port=1, **fields)


def arrays(**changes):
    def change(made):
        made.nodes["a"].metadata |= changes

    return change


def output(**changes):
    def change(made):
        made.nodes["output"].metadata |= changes

    return change


def node(name, make):
    def change(made):
        made.nodes[name] = make(made.nodes[name])

    return change


def edges(*new, without=()):
    def change(made):
        made.edges = [*(edge for edge in made.edges if edge not in without), *new]

    return change


def words(where, **changes):
    def change(made):
        data = json.loads(made.metadata[KEY])
        part = data[where] if where == "readout" else data[where][0]
        part.update(changes)
        made.metadata[KEY] = json.dumps(data)

    return change


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (arrays(v0=np.full(SHAPE, 1 << 23)), "v0 spans 8388608..8388608, outside"),
        (arrays(v0=np.full(SHAPE, 0.5)), "v0 in its metadata is not an array of integers"),
        (arrays(v0="7"), "v0 in its metadata is not an array of integers"),
        (arrays(v0=np.array([True])), "v0 in its metadata is not an array of integers"),
        (arrays(v0=np.zeros((3, 1, 2), int)), "v0 has shape (3, 1, 2), not (1,) or (2, 1, 1)"),
        (arrays(v0=np.zeros((0,), int)), "v0 has shape (0,)"),
        (arrays(floor=np.array([-(1 << 40)])), "floor spans"),
        (arrays(adapt=np.array([1 << 23])), "adapt spans"),
        (arrays(dq=np.array([4096])), "dq spans 4096..4096, outside 0..4095"),
        (arrays(du2=np.array([-1])), "du2 spans -1..-1, outside 0..4095"),
        (arrays(gain=np.full(STEPS, 1 << 15)), "gain spans"),
        (arrays(gain=np.ones(STEPS + 1, np.int16)), "gain has shape (5,), not (4,) or"),
        (arrays(vth=np.array([3])), "its metadata has 'vth', which is not a field of such neurons"),
        (arrays(reset="subtract"), "its metadata has 'reset'"),
        (arrays(surprise=np.array([3])), "its metadata has 'surprise'"),
        (words("populations", reset="constant"), "its metadata has 'v_reset'"),
        (words("populations", hold=64), "hold"),
        (words("populations", hold=-2), "hold"),
        (words("populations", graded={"shift": 24, "levels": 1}), "graded"),
        (words("populations", graded={"shift": 4, "levels": 1 << 15}), "graded"),
        (words("populations", graded=[4, 1]), "graded"),
        (words("populations", fires=False), "fires"),
        (words("connections", port=2), "port"),
        (
            node("a", lambda old: replace(old, v_reset=old.v_reset + 1)),
            "v_reset contradicts the reset",
        ),
        (
            node(
                "a", lambda old: nir.CubaLI(old.tau_syn, old.tau_mem, old.r, old.v_leak, old.w_in)
            ),
            "leads to current 1, which a does not have",
        ),
        (node("a", lambda old: nir.I(old.r)), "r contradicts decays"),
        (output(steps=np.arange(3)), "weights of 3 steps, and the network runs 4"),
        (output(steps=np.array([1, 1, 1, 1 << 21])), "steps spans"),
        (output(steps=np.ones(4)), "steps in the output's metadata is not a row of integers"),
        (output(factors=np.arange(6)), "a readout by 'votes' has no factors"),
        (output(matrix=np.arange(6)), "the output's metadata has 'matrix'"),
        (words("readout", rule="last"), "a readout by 'last' has no steps and matrix"),
        (words("readout", rule="median"), "readout.rule"),
        (words("readout", classes=3), "a matrix (2, 6) for 6 outputs and 3 classes"),
        (words("readout", node=None), "the graph does not end in a alone"),
        (words("readout", node="w"), "w does not lead to output alone"),
        (words("readout", node="a"), "is a CubaLIF; it should be Linear or Affine"),
        (words("readout", node="nothing"), "there is no such node"),
        (words("readout", source="input"), "0 populations 'input'"),
        (
            node("readout", lambda old: nir.Linear(old.weight + 0.5)),
            "matrix holds values that are not",
        ),
        (node("readout", lambda old: nir.Linear(old.weight + (1 << 41))), "matrix spans"),
        (node("readout", lambda old: nir.Linear(np.ones((2, 5)))), "Linear does not fit an input"),
        (node("readout", lambda old: nir.Affine(old.weight, np.ones(3))), "offsets of shape (3,)"),
        (node("readout", lambda old: nir.Linear(np.full((2, 6), np.nan))), "matrix holds values"),
        (edges(("w", "readout")), "w: leads to a, readout, not to a"),
        (edges(("a", "output")), "readout does not lead to output alone"),
        (edges(("readout", "a")), "readout does not lead to output alone"),
        (edges(("readout", "output"), without=[("readout", "output")]), None),
        (lambda made: None, None),
    ],
)
def test_contradictions_are_refused(change, what, tmp_path):
    made = nir_file.to_nir(everything())
    change(made)
    path = tmp_path / "m.nir"
    nir_io.write(made, path)
    if what is None:
        assert_same(nir_file.read_network(path), everything())
        return
    with pytest.raises(InputError) as error:
        nir_file.read_network(path)
    assert what in str(error.value)


def test_neurons_without_a_threshold_that_lead_on_are_refused(tmp_path):
    made = nir_file.to_nir(
        network((5,), fires=False, graded=Graded(4, 9), readout=Readout(5, 1, "a"))
    )
    words("populations", graded=None)(made)
    assert nir_file.from_nir(made).populations[0].neurons.span == (0, 0)
    loop = network((5,), fires=False, graded=Graded(4, 9))
    own = Connection("own", "a", "a", Dense(np.ones((5, 5), np.int8)), delay=1)
    made = nir_file.to_nir(replace(loop, connections=(*loop.connections, own)))
    words("populations", graded=None)(made)
    with pytest.raises(InputError, match="a sends nothing"):
        nir_file.from_nir(made)


def test_a_second_current_that_is_not_there_cannot_be_fed():
    made = nir_file.to_nir(network(du2=3, port=1))
    del made.nodes["a"].metadata["du2"]
    with pytest.raises(InputError, match="leads to current 1, which a does not have"):
        nir_file.from_nir(made)


@pytest.mark.parametrize("reset", ["subtract", "constant", "none"])
def test_a_chip_that_resets_to_zero_alone_has_no_other_reset(reset):
    made = nir_file.to_nir(network(reset=reset))
    data = json.loads(made.metadata[KEY])
    made.metadata[KEY] = json.dumps({**data, "chip": "loihi1"})
    with pytest.raises(InputError, match=f"reset '{reset}': a neuron of loihi1 resets to zero"):
        nir_file.from_nir(made)
