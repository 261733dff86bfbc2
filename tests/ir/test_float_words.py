"""Nodes of a float graph say every rule of neurons, connections and readouts, and files keep them."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from itertools import pairwise

import nir
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stl_deploy.errors import InputError, LoweringError
from stl_deploy.formats import float_nir, nir_io
from stl_deploy.ir import execute, floats
from stl_deploy.ir import nir_graph as G
from stl_deploy.ir import nir_words as words
from stl_deploy.ir.float_neurons import FloatNeurons, decode

STEPS = 5
SHAPES = [(4,), (2, 3, 2)]
EXACT = (
    "threshold",
    "v_reset",
    "floor",
    "v0",
    "adapt",
    "adapt_step",
    "current2",
    "drive2",
    "amplify",
)


def arrays(shape, low=-4, high=4):
    """Numbers of ``shape``, or of one that broadcasts to it."""
    sizes = [shape, (shape[0], *[1] * (len(shape) - 1)), (1,) * len(shape)]
    numbers = st.integers(low * 64, high * 64).map(lambda n: n / 64)

    def filled(size):
        count = int(np.prod(size))
        return st.lists(numbers, min_size=count, max_size=count).map(
            lambda v: np.array(v, np.float64).reshape(size)
        )

    return st.sampled_from(sizes).flatmap(filled)


@st.composite
def neurons(draw, shape=None):
    """Neurons of any rule; steps and gains are powers of two, which survive a node as they are."""
    shape = shape or draw(st.sampled_from(SHAPES))
    kind = draw(st.sampled_from(["lif", "if", "cuba"]))
    fires = draw(st.booleans())

    def full(low, high):
        return np.broadcast_to(draw(arrays(shape, low, high)), shape).copy()

    def power():
        return np.full(shape, 2.0 ** -draw(st.integers(0, 3)))

    def maybe(low=-4, high=4):
        return draw(st.none() | arrays(shape, low, high))

    zero, reset = np.zeros(shape), draw(st.sampled_from(["zero", "subtract", "none"]))
    second = draw(st.booleans())
    adapt = maybe()
    steps = draw(st.sampled_from([(STEPS,), (STEPS, *[1] * len(shape)), (STEPS, *shape)]))
    gains = np.arange(1, 1 + np.prod(steps)).reshape(steps) / 8
    return FloatNeurons(
        kind=kind,
        step=zero if kind == "if" else power(),
        gain=power(),
        leak=zero if kind == "if" else power() * draw(st.sampled_from([0, -1, 1])),
        threshold=full(0, 2) if fires else zero,
        v_reset=zero,
        current=power() if kind == "cuba" else np.ones(1),
        drive=power() if kind == "cuba" else np.ones(1),
        reset=reset if fires else "zero",
        fires=fires,
        reset_current=draw(st.booleans()),
        hold=draw(st.integers(-1, 63)),
        floor=maybe(),
        v0=maybe(),
        adapt=adapt,
        adapt_step=None if adapt is None else maybe(0, 1),
        current2=draw(arrays(shape, 0, 1)) if second else None,
        drive2=draw(arrays(shape)) if second else None,
        amplify=draw(st.sampled_from([None, gains])),
        graded=draw(st.booleans()),
    )


def assert_same(found: FloatNeurons, known: FloatNeurons) -> None:
    for field in fields(known):
        a, b = getattr(found, field.name), getattr(known, field.name)
        if isinstance(b, np.ndarray) and field.name not in words.ARRAYS:
            a, b = (np.broadcast_to(x, known.shape) for x in (a, b))
        np.testing.assert_array_equal(a, b, err_msg=field.name)


def test_a_number_for_all_neurons_is_written_to_a_file(tmp_path):
    """h5py compresses metadata and takes no scalars then."""
    zero, one = np.zeros(3), np.ones(3)
    node = nir.LIF(tau=one, r=one, v_leak=zero, v_threshold=one, v_reset=zero)
    words.say(node, {"v0": np.float64(0.3), "floor": -1, "adapt": None})
    ends = {"input": nir.Input(np.array([3])), "output": nir.Output(np.array([3]))}
    graph = nir.NIRGraph({"n": node, **ends}, [("input", "n"), ("n", "output")])
    nir.write(tmp_path / "n.nir", graph)
    found = words.arrays(nir.read(tmp_path / "n.nir").nodes["n"], (3,))
    assert {name: values.tolist() for name, values in found.items()} == {"v0": [0.3], "floor": [-1]}


@settings(deadline=None)
@given(neurons(), st.booleans())
def test_neurons_come_back_from_their_node(known, to_value):
    if known.fires and known.reset == "zero" and to_value:
        known = replace(known, v_reset=np.full(known.shape, -0.25))
    assert_same(decode(known.node()), known)


def graph_of(known, readout=None, classes=None, more=(), **meta):
    """Input -> Linear -> the neurons ``known``, one for each of ``classes``."""
    size = known.shape[0]
    nodes = {
        "input": nir.Input({"input": np.array([size])}),
        "w": nir.Linear(np.eye(size)),
        "last": known.node(),
        **dict(more),
        "output": nir.Output({"output": np.array([classes or size])}),
    }
    names = list(nodes)
    said = {"timesteps": STEPS, "classes": classes or size, "population": 1, "readout": readout}
    meta = G.FloatMeta(**(said | {"version": G.NEWEST} | meta)).text()
    edges = list(pairwise(names))
    return nir.NIRGraph(nodes, edges, metadata={G.KEY: meta}, type_check=False)


def through_file(graph, tmp_path):
    path = tmp_path / "model.float.nir"
    nir_io.write(graph, path)
    return floats.decode(float_nir.read(path))


@settings(deadline=None, max_examples=40)
@given(neurons(shape=(4,)))
def test_a_file_keeps_what_neurons_say(tmp_path_factory, known):
    silent = not (known.fires or known.graded)
    graph = graph_of(known, G.Read(rule="last") if silent else None)
    found = through_file(graph, tmp_path_factory.mktemp("files")).by_name["last"]
    leaks = known.amplify is not None and known.kind != "cuba" and known.leak.any()
    if leaks:  # the gain multiplies v_leak, which is a bias
        np.testing.assert_array_equal(found.bias, known.leak / known.gain + np.zeros(4))
        known = replace(known, leak=np.zeros(1))
    assert_same(found.neurons, known)


def li(size=4, **more):
    one = np.ones(size)
    return replace(decode(nir.LI(tau=2 * G.DT * one, r=2 * one, v_leak=0 * one)), **more)


@pytest.mark.parametrize("rule", ["last", "mean", "max", "first"])
def test_a_file_keeps_a_readout_by_voltage(tmp_path, rule):
    factors = None if rule == "first" else (1.0, 2.0, 0.5, 3.0)
    read = through_file(graph_of(li(), G.Read(rule=rule, factors=factors)), tmp_path).readout
    assert (read.classes, read.population, read.source, read.rule) == (4, 1, "last", rule)
    assert (None if read.factors is None else tuple(read.factors)) == factors


def test_a_file_keeps_a_matrix_on_counts(tmp_path):
    matrix, offset = np.arange(12.0).reshape(3, 4), np.array([0.5, -1, 0])
    steps = tuple(range(STEPS))
    known = decode(G.lif(np.ones(4), 2e-4, 2))
    more = {"fc": nir.Affine(matrix, offset)}
    read = through_file(graph_of(known, G.Read(steps=steps), 3, more), tmp_path).readout
    np.testing.assert_array_equal(read.matrix, matrix)
    np.testing.assert_array_equal(read.offset, offset)
    assert (read.classes, read.steps) == (3, steps)
    read = through_file(graph_of(known, None, 3, {"fc": nir.Linear(matrix)}), tmp_path).readout
    np.testing.assert_array_equal(read.matrix, matrix)
    assert read.offset is None


def two_currents(port=1, bias=0.0, **more):
    """The input leads to both currents of the last neurons."""
    second = {"current2": np.full(1, 0.5), "drive2": np.full(1, 0.25), **more}
    graph = graph_of(replace(decode(G.lif(np.ones(4), 2e-4, 2)), **second))
    graph.nodes["w2"] = nir.Affine(np.full((4, 4), -0.25), np.full(4, bias))
    words.say(graph.nodes["w2"], port=port)
    return nir.NIRGraph(
        graph.nodes,
        [*graph.edges, ("input", "w2"), ("w2", "last")],
        metadata=graph.metadata,
        type_check=False,
    )


def test_a_file_keeps_the_port_of_a_connection(tmp_path):
    network = through_file(two_currents(), tmp_path)
    assert {c.name: c.port for c in network.connections} == {"w": 0, "w2": 1}
    raster = np.ones((1, STEPS, 4), np.uint8)
    first = execute.trace(network, raster).v
    assert not np.array_equal(first, execute.trace(two_currents(port=0), raster).v)


@pytest.mark.parametrize(
    ("graph", "what"),
    [
        (two_currents(bias=1.0), "w2: has a bias, and leads to a second current"),
        (two_currents(current2=None, drive2=None), "second current, which last has not"),
        (two_currents(drive2=None), "a second current needs current2 and drive2"),
        (graph_of(li(adapt_step=np.ones(4))), "adapt_step without adapt"),
        (graph_of(li()), "counts spikes, and last has no threshold"),
        (
            graph_of(li(amplify=np.ones((STEPS - 1, 1)), graded=True)),
            "has a gain for 4 steps; the network has 5",
        ),
        (
            graph_of(li(v0=np.ones(3))),
            r"metadata.stl_deploy.v0 has shape \(3,\), its neurons \(4,\)",
        ),
        (graph_of(li(v0=np.full(4, np.nan))), "v0 contains what is not a finite number"),
        (graph_of(li(), G.Read(rule="last"), population=3), "4 classes of 3 neurons; last has 4"),
        (graph_of(li(), G.Read(rule="last", factors=(1,))), "1 factors; last has 4 neurons"),
        (graph_of(li(graded=True), G.Read(steps=(1,))), "weights of 1 steps, not of 5"),
        (
            graph_of(li(), G.Read(rule="last"), 3, {"fc": nir.Linear(np.ones((3, 4)))}),
            "a readout by 'last' has no matrix",
        ),
        (
            graph_of(li(), None, 4, {"w3": nir.Linear(np.eye(4)), "l": G.lif(np.ones(4), 1e-4, 1)}),
            "last: has no threshold, and other neurons receive its voltage",
        ),
    ],
)
def test_what_contradicts_itself_is_named(graph, what):
    with pytest.raises((InputError, LoweringError), match=what):
        floats.decode(graph)


@pytest.mark.parametrize(
    ("key", "value", "what"),
    [
        ("stl_deploy", '{"hold": 64}', "hold: Input should be less than or equal to 63"),
        ("stl_deploy", '{"hold": -2}', "hold: Input should be greater than or equal to -1"),
        ("stl_deploy", '{"port": 1}', "a port is that of weights"),
        ("stl_deploy", '{"later": 1}', "later: Extra inputs are not permitted"),
        ("stl_deploy", "[", "is not valid"),
        ("stl_deploy", 3, "is not valid"),
        ("stl_deploy.later", np.ones(4), "metadata.stl_deploy.later is not known"),
        ("stl_deploy.v0", "text", "v0 contains what is not a finite number"),
        ("reset", "later", "reset 'later' in its metadata is not one of zero, subtract, none"),
    ],
)
def test_unknown_words_of_a_file_are_named(tmp_path, key, value, what):
    graph = graph_of(decode(G.lif(np.ones(4), 2e-4, 2)))
    graph.nodes["last"].metadata[key] = value
    with pytest.raises(InputError, match=f"last: .*{what}"):
        through_file(graph, tmp_path)


def test_weights_have_no_rules_of_neurons(tmp_path):
    graph = graph_of(decode(G.lif(np.ones(4), 2e-4, 2)))
    words.say(graph.nodes["w"], hold=2)
    with pytest.raises(InputError, match="w: has rules of neurons"):
        through_file(graph, tmp_path)


@pytest.mark.parametrize("version", [1, 3])
def test_an_older_version_has_none_of_it(version):
    old = {"version": version, "held": version == 3}
    for known in (li(graded=True), decode(G.lif(np.ones(4), 2e-4, 2))):
        graph = graph_of(known, **old)
        if known.plain:
            assert floats.decode(graph).meta.version == version
            continue
        with pytest.raises(InputError, match=f"version {version} has no such neurons"):
            floats.decode(graph)
    with pytest.raises(ValueError, match=f"version {version} with a readout"):
        G.FloatMeta(timesteps=4, classes=1, population=1, readout=G.Read(), **old)


def test_what_older_versions_say_is_written_as_before():
    text = G.FloatMeta(timesteps=4, classes=2, population=3).text()
    assert json.loads(text) == {
        "format": "stl-deploy/float",
        "version": 1,
        "timesteps": 4,
        "input_levels": 1,
        "classes": 2,
        "population": 3,
    }
