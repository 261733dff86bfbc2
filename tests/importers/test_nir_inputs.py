"""Inputs of NIR files that count batch or time: read as one step where the weights say what that is."""

from __future__ import annotations

import warnings

import nir
import numpy as np
import pytest

import stl_deploy
from stl_deploy.errors import StlError, UncheckedWarning
from stl_deploy.formats import nir_io
from stl_deploy.importers.nir import graph as nir_graph
from stl_deploy.ir import nir_graph as G
from tests.build.nir_graphs import chain, lif

RNG = np.random.default_rng(3)
DENSE = RNG.normal(0, 0.5, (3, 12))
CONV = RNG.normal(0, 0.5, (2, 1, 3, 3))
LAST = RNG.normal(0, 0.5, (3, 8))


def dense():
    return nir.Affine(DENSE, np.zeros(3))


def neurons(n=3):
    """With their reset said, so that a note is about the input."""
    node = lif(n)
    node.metadata["reset"] = "zero"
    return node


def conv(groups=1):
    return nir.Conv2d(None, CONV, 1, 0, 1, groups, np.zeros(2))


def images(start=1, end=-1):
    """A convolution of 1x4x4 to 2x2x2, neurons, and all of these laid flat to three neurons."""
    flatten = nir.Flatten({"input": np.array([2, 2, 2])}, start, end)
    return conv(), neurons((2, 2, 2)), flatten, nir.Linear(LAST), neurons()


def flat(start=1, end=-1):
    flatten = nir.Flatten({"input": None}, start, end)
    return flatten, dense(), neurons()


def read(graph):
    """The lowered graph, and what was said of the input."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        lowered = stl_deploy.from_nir(graph, timesteps=4)
    return lowered, [str(w.message) for w in said if w.category is UncheckedWarning]


def same(a, b):
    """Whether two lowered graphs hold the same nodes."""
    assert a.nodes.keys() == b.nodes.keys()
    for name, node in a.nodes.items():
        other = b.nodes[name]
        assert type(node) is type(other)
        for key, value in vars(node).items():
            if isinstance(value, np.ndarray):
                np.testing.assert_array_equal(value, getattr(other, key))
    assert a.edges == b.edges
    assert G.in_shape(a) == G.in_shape(b)


SAME = [
    # nodes, the shape of a step, and shapes with more axes: (declared, whether a note says so)
    (lambda: (dense(), neurons()), (12,), [(100, 12), (1, 5, 12), (7, 5, 12)]),
    (lambda: (dense(), neurons()), (12,), [(1, 12), (1, 1, 12), (12, 1), (1, 3, 4), (3, 4), (12,)]),
    (lambda: (dense(), neurons()), (12,), [(5, 1, 3, 4), (2, 5, 3, 4)]),
    (flat, (1, 3, 4), [(1, 1, 3, 4), (9, 1, 3, 4), (2, 9, 1, 3, 4)]),
    (images, (1, 4, 4), [(1, 1, 4, 4), (5, 1, 4, 4), (2, 5, 1, 4, 4)]),
    (lambda: (neurons(12), dense(), neurons()), (12,), [(5, 12), (1, 5, 12)]),
    (lambda: (nir.Scale(np.arange(1.0, 13)), dense(), neurons()), (12,), [(5, 12)]),
    (lambda: (nir.Delay(np.array([1e-4])), dense(), neurons()), (12,), [(5, 12)]),
]


@pytest.mark.parametrize(
    ("nodes", "step", "declared"),
    [(nodes, step, shape) for nodes, step, shapes in SAME for shape in shapes],
)
@pytest.mark.parametrize("counted", [False, True])
def test_an_input_that_counts_batch_or_time(nodes, step, declared, counted):
    """The same network as with the shape of a step; the Output may count the same axes."""
    expected, nothing = read(chain(*nodes(), inputs=step))
    assert not nothing
    before = declared[: [np.prod(declared[i:]) for i in range(5)].index(np.prod(step))]
    outputs = (*before, 3) if counted else (3,)
    lowered, said = read(chain(*nodes(), inputs=declared, outputs=outputs))
    same(lowered, expected)
    assert len(said) == (np.prod(declared) > np.prod(step))
    for text in said:
        assert f"input in: the shape {declared} counts batch or time; a step is read as" in text


@pytest.mark.parametrize(("start", "end"), [(2, -1), (2, 4), (1, -1)])
def test_a_flatten_that_counts_batch_and_time(start, end):
    expected, _ = read(chain(*images(), inputs=(1, 4, 4)))
    lowered, _ = read(chain(*images(start, end), inputs=(7, 5, 1, 4, 4)))
    same(lowered, expected)


@pytest.mark.parametrize(
    ("nodes", "declared", "where", "text"),
    [
        # The axis of time comes last, or stands in the middle: nothing is guessed.
        (
            lambda: (dense(), neurons()),
            (12, 5),
            "in.shape",
            "read 12 values in each step -> set its shape",
        ),
        (
            lambda: (dense(), neurons()),
            (5, 12, 2),
            "in.shape",
            "set its shape to [12], without axes of",
        ),
        (lambda: (dense(), neurons()), (11,), "n0", "for an input of shape (11,)"),
        (images, (5, 4, 4), "n0", "5"),  # channels that the kernel does not have
        (images, (1, 4, 4, 5), "in.shape", "is not a valid shape"),
        (flat, (13,), "n1", "for an input of shape (13,)"),
        # Two readers that mean different steps.
        (lambda: (dense(), neurons()), (0, 12), "in.shape", "0"),
    ],
)
def test_what_is_not_clear_is_refused_with_a_remedy(nodes, declared, where, text):
    with pytest.raises(StlError) as error:
        nir_graph.to_float(chain(*nodes(), inputs=declared))
    found = [p for p in error.value.problems if p.where == where]
    assert found
    assert text in str(found[0])


def test_readers_that_mean_different_steps_are_not_settled():
    graph = chain(dense(), neurons(), inputs=(4, 3))
    graph.nodes["other"] = nir.Linear(RNG.normal(0, 1, (3, 3)))
    graph.edges += [("in", "other"), ("other", "n1")]
    with pytest.raises(StlError, match=r"in.shape|for an input of shape"):
        nir_graph.to_float(graph)


def test_a_file_with_a_batch_runs_on_a_raster_of_one_step(tmp_path, command):
    path = tmp_path / "net.nir"
    nir_io.write(chain(dense(), neurons(), inputs=(1, 5, 12), outputs=(1, 5, 3)), path)
    spikes = RNG.integers(0, 2, (4, 6, 12))
    np.savez(tmp_path / "r.npz", spikes=spikes)
    out = tmp_path / "out"
    args = ["--target", "nir", "--eval", tmp_path / "r.npz", "-o", out]
    code, _, err = command("stl-export", path, *args)
    assert code == 0, err
    assert "counts batch or time; a step is read as (12,)" in err
    network = stl_deploy.load(out / "model.nir")
    assert network.inputs["input"].shape == (12,)
    assert network.timesteps == 6
