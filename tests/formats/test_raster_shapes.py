"""Rasters as people bring them: other shapes, types and containers, read where nothing is lost."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import stl_deploy
from stl_deploy.errors import InputError
from stl_deploy.formats import raster as rasters
from stl_deploy.hw_sim import reference
from stl_deploy.ir.network import Input
from tests.build.nets import random_net
from tests.build.networks import chain, dense_lif

STEPS = 4
RNG = np.random.default_rng(5)
SPIKES = RNG.integers(0, 2, (5, STEPS, 1, 2, 3)).astype(np.uint8)
LABELS = np.array([0, 1, 2, 1, 0])


def network(shape=(1, 2, 3), **fields):
    """Six inputs of ``shape`` into three neurons, over four steps."""
    weight = np.array([[3, 0, 1, 0, 2, 0], [0, 2, 0, 1, 0, 3], [1, 1, 1, 1, 1, 1]])
    net = chain(dense_lif(weight, vth=2), chip="ideal")
    return replace(net, inputs={"input": replace(Input(shape), **fields)})


def steps_of(raster, net, where="r.npz"):
    """All values as the network gets them."""
    fits = rasters.check_fits(raster, where, net)
    return np.concatenate(list(fits.batches(2)))


def readings(tmp_path, spikes, labels=None):
    """The raster as each command and function reads it."""
    named = {} if labels is None else {"labels": labels}
    np.savez(tmp_path / "r.npz", spikes=spikes, **named)
    yield rasters.load(tmp_path / "r.npz")
    yield rasters.stream(tmp_path / "r.npz")
    yield rasters.Raster.given(spikes, labels)


LAYOUTS = [
    *(((1, 2, 3), given) for given in [(6,), (2, 3), (1, 6), (2, 1, 3), (1, 2, 3)]),
    *(((6,), given) for given in [(1, 2, 3), (2, 3), (1, 6), (6,), (3, 2, 1), (6, 1)]),
    ((2, 3), (1, 2, 3)),
    ((2, 3), (6,)),
]


@pytest.mark.parametrize(("reads", "given"), LAYOUTS)
def test_a_step_may_be_flat_or_have_axes_of_one(tmp_path, reads, given):
    net = network(reads)
    expected = SPIKES.reshape(5, STEPS, *reads)
    for raster in readings(tmp_path, SPIKES.reshape(5, STEPS, *given), LABELS):
        found = steps_of(raster, net)
        assert found.shape == expected.shape
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(rasters.check_fits(raster, "", net).labels, LABELS)
    trace = stl_deploy.simulate(net, SPIKES.reshape(5, STEPS, *given))
    np.testing.assert_array_equal(
        trace.layers["lif"].spikes, reference.run(net, expected).layers["lif"].spikes
    )


@pytest.mark.parametrize(
    ("reads", "given", "remedy"),
    [
        ((1, 2, 3), (STEPS, 1, 2, 3), "add the axis of samples: spikes[None]"),
        ((6,), (STEPS, 6), "add the axis of samples: spikes[None]"),
        ((1, 2, 3), (STEPS, 5, 1, 2, 3), "samples come first: give spikes.swapaxes(0, 1)"),
        ((6,), (STEPS, 5, 2, 3), "samples come first: give spikes.swapaxes(0, 1)"),
        ((1, 2, 3), (5, 2, 3), "add the axis of time: np.repeat(spikes[:, None], 4, axis=1)"),
        ((1, 2, 3), (5, 1, 2, 3), "add the axis of time: np.repeat(spikes[:, None], 4, axis=1)"),
        ((1, 2, 3), (STEPS, 6), "add the axis of samples: spikes[None]"),
        ((6,), (5, 6), "add the axis of time: np.repeat(spikes[:, None], 4, axis=1)"),
        ((3, 1, 2), (5, STEPS, 1, 2, 3), "channels come first: give np.moveaxis(spikes, -1, 2)"),
        # Not the same in C order, whatever their sizes: another order of axes is another network.
        ((1, 2, 3), (5, STEPS, 1, 3, 2), "give samples, steps, and (1, 2, 3) or (6,) values"),
        ((1, 2, 3), (5, STEPS, 3, 2), "give samples, steps, and (1, 2, 3) or (6,) values"),
        ((6,), (5, STEPS, 7), "give samples, steps, and (6,) values"),
    ],
)
def test_other_shapes_are_refused_with_what_to_do(tmp_path, reads, given, remedy):
    spikes = np.ones(given, np.uint8)
    with pytest.raises(InputError) as error:
        rasters.check_fits(rasters.Raster.given(spikes), "spikes", network(reads))
    said = str(error.value)
    wanted = ", ".join(map(str, reads))
    assert f"spikes: has shape {given}, the network reads [N, 4, {wanted}]" in said
    assert remedy in said
    assert "docs/rasters.md" in said or "give " in said or "spikes[None]" in said


def test_an_axis_of_time_for_a_frame_that_is_held():
    net = network((2, 3), held=True)
    frames = SPIKES[:, 0, 0]
    with pytest.raises(InputError, match=r"add the axis of time: spikes\[:, None\]"):
        stl_deploy.simulate(net, frames)
    one = stl_deploy.simulate(net, frames[:, None]).layers["lif"].spikes
    flat = stl_deploy.simulate(net, frames.reshape(5, 1, 6)).layers["lif"].spikes
    np.testing.assert_array_equal(one, flat)


KINDS = [
    np.uint8,
    np.int8,
    np.int16,
    np.int64,
    np.float32,
    np.float64,
    np.float16,
    np.bool_,
    np.uint64,
]


@pytest.mark.parametrize("kind", KINDS)
def test_whole_numbers_of_any_type(tmp_path, kind):
    labels = LABELS if kind is np.bool_ else LABELS.astype(kind)
    for raster in readings(tmp_path, SPIKES.astype(kind), labels):
        found = steps_of(raster, network())
        assert found.dtype in (np.uint8, np.int8, np.int16)
        np.testing.assert_array_equal(found, SPIKES)
        assert raster.labels.dtype == np.int64
        np.testing.assert_array_equal(raster.labels, LABELS)


CONTAINERS = {
    "list": np.ndarray.tolist,
    "list of arrays": list,
    "tuple of tensors": lambda x: tuple(map(torch.from_numpy, x)),
    "torch": torch.from_numpy,
    "torch float": lambda x: torch.from_numpy(x).float(),
    "torch half": lambda x: torch.from_numpy(x).to(torch.bfloat16),
    "torch bool": lambda x: torch.from_numpy(x) == 1,
    "torch with a gradient": lambda x: torch.from_numpy(x).double().requires_grad_(),
    "torch view": lambda x: torch.from_numpy(np.moveaxis(x, 0, -1).copy()).movedim(-1, 0),
    "torch sparse": lambda x: torch.from_numpy(x).to_sparse(),
    "numpy view": lambda x: np.moveaxis(np.moveaxis(x, 0, -1).copy(), -1, 0),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_spikes_in_any_container(name):
    net = network()
    given = CONTAINERS[name](SPIKES)
    expected = reference.run(net, SPIKES)
    trace = stl_deploy.simulate(net, given)
    np.testing.assert_array_equal(trace.layers["lif"].spikes, expected.layers["lif"].spikes)
    np.testing.assert_array_equal(trace.predictions, expected.predictions)


@pytest.fixture
def model(tmp_path):
    """A small STL-SNN of inputs 1x4x4, its integers, and a raster."""
    path = tmp_path / "m.pt"
    net = random_net("4C3-BN-LIF-FC6-LIF-AvgPool2", shape=(1, 4, 4))
    stl_deploy.save_checkpoint(net, path)
    spikes = RNG.integers(0, 2, (6, 4, 1, 4, 4)).astype(np.uint8)
    return net, stl_deploy.from_torch(net), spikes, np.array([0, 1, 2, 0, 1, 2])


@pytest.mark.parametrize(
    "labels",
    [list, np.ndarray.tolist, torch.from_numpy, lambda y: list(torch.from_numpy(y)), np.float32],
)
def test_parity_and_calibration_take_what_people_have(model, labels):
    net, graph, spikes, right = model
    plain = stl_deploy.quantize(graph, chip="loihi2", calib=spikes)
    given = stl_deploy.quantize(
        graph, chip="loihi2", calib=torch.from_numpy(spikes).float().flatten(2)
    )
    for a, b in zip(plain.connections, given.connections, strict=True):
        np.testing.assert_array_equal(a.synapses.weight, b.synapses.weight)
    expected = stl_deploy.parity(net, plain, spikes, right)
    report = stl_deploy.parity(net, plain, torch.from_numpy(spikes).flatten(2), labels(right))
    assert report == expected


@pytest.mark.parametrize(
    ("spikes", "labels", "said"),
    [
        (SPIKES * 0.5, None, "spikes: holds float64 values that are not whole numbers; spikes[0, "),
        (SPIKES.astype(object), None, "spikes: has type object, not whole numbers -> use uint8"),
        ([SPIKES[0], SPIKES[0][:2]], None, "spikes: is not an array"),
        (np.where(SPIKES, 2, 0), None, "give spikes 0 and 1, or import a model that reads counts"),
        (SPIKES.astype(int) - 1, None, "import a model that reads a sign with --signed"),
        (SPIKES * 40000.0, None, "holds values 0..40000, beyond int16; spikes["),
        (SPIKES * -40000.0, None, "holds values -40000..0, beyond int16; spikes["),
        (
            SPIKES,
            LABELS + 0.5,
            "labels: holds float64 values that are not whole numbers; labels[0] is 0.5",
        ),
        (SPIKES, np.eye(5)[LABELS], "labels: has shape (5, 5); one label per sample is needed"),
        (SPIKES, LABELS[:4], "labels (4,) for 5 samples"),
        (
            SPIKES,
            LABELS - 1,
            "labels -1..1 for 3 classes -> give labels from 0 to 2; labels[0] is -1",
        ),
        (SPIKES, LABELS.astype(float) * 1e12, "labels[1] is 1000000000000.0"),
        (SPIKES, ["a"] * 5, "labels: has type <U1, not whole numbers"),
        (SPIKES * 0.5, LABELS + 0.5, "labels: holds float64"),  # all problems at once
        (SPIKES * 0.5, LABELS + 0.5, "spikes: holds float64"),
    ],
)
def test_what_is_refused_is_named_by_its_place(spikes, labels, said):
    def read():
        raster = rasters.Raster.given(spikes, labels)
        return rasters.check_fits(raster, "spikes", network())

    with pytest.raises(InputError) as error:
        read()
    assert said in str(error.value)
    assert all(len(str(p).split()) <= 40 for p in error.value.problems)


def test_a_file_names_the_place_of_a_value(tmp_path):
    spikes = SPIKES.copy()
    spikes[3, 2, 0, 1, 1] = 7
    for raster in readings(tmp_path, spikes):
        with pytest.raises(InputError, match=r"spikes\[3, 2, 0, 1, 1\] is 7"):
            steps_of(raster, network())


def test_commands_read_the_same(model, tmp_path, command, monkeypatch):
    """stl-export --calib and --eval, hw_sim, stl-parity: with float spikes, flat, and float labels."""
    monkeypatch.chdir(tmp_path)
    _, _, spikes, labels = model
    np.savez("plain.npz", spikes=spikes, labels=labels)
    np.savez(
        "other.npz", spikes=spikes.reshape(6, 4, 16).astype(np.float32), labels=labels.astype(float)
    )
    said = {}
    for name in ("plain", "other"):
        with_ = ["--calib", f"{name}.npz", "--eval", f"{name}.npz", "--chip", "loihi2"]
        code, out, err = command(
            "stl-export", "m.pt", "--target", "nir", *with_, "-o", name, "--json"
        )
        assert code == 0, err
        file = f"{name}/model.nir"
        code, out, err = command("hw_sim", file, "--input", f"{name}.npz", "--json")
        assert code == 0, err
        code, parity, err = command("stl-parity", "m.pt", file, "--input", f"{name}.npz", "--json")
        assert code == 0, err
        said[name] = (out, parity, (tmp_path / file).read_bytes())
    assert said["plain"] == said["other"]
