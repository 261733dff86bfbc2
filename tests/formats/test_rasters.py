"""Rasters with a sign, held frames and several inputs: what a network reads, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from stl_deploy.errors import InputError
from stl_deploy.formats import raster as rasters
from stl_deploy.hw_sim import reference
from stl_deploy.ir.network import Input
from stl_deploy.models import inputs as trained
from tests.build import random_graphs
from tests.build.files import write_idx
from tests.build.networks import chain, dense_lif

READERS = (rasters.load, rasters.stream)
SPIKES = np.random.default_rng(3).integers(-9, 10, (5, 4, 6)).astype(np.int16)


def network(**fields):
    """Six inputs into three neurons, over four steps."""
    net = chain(dense_lif(np.ones((3, 6)), vth=2), chip="ideal")
    return replace(net, inputs={"input": replace(Input((6,)), **fields)})


def saved(path, labels=None, held=None, **arrays):
    """A file with ``arrays``, whose names have ``__`` for a slash."""
    named = {name.replace("__", "/"): x for name, x in arrays.items()}
    if labels is not None:
        named["labels"] = labels
    if held is not None:
        named["held"] = np.array(held)
    np.savez(path, **named)
    return path


def all_of(raster, size=2):
    """The batches of a raster, one behind the other."""
    parts = list(raster.batches(size))
    if isinstance(parts[0], dict):
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return np.concatenate(parts)


def refused(raster, net, where="r.npz"):
    with pytest.raises(InputError) as error:
        all_of(rasters.check_fits(raster, where, net))
    return str(error.value)


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("kind", [np.int8, np.int16])
def test_values_with_a_sign(tmp_path, read, kind):
    path = saved(tmp_path / "r.npz", spikes=SPIKES.astype(kind))
    raster = read(path)
    assert isinstance(raster, rasters.Raster if read is rasters.load else rasters.RasterFile)
    found = all_of(rasters.check_fits(raster, "r.npz", network(levels=9, signed=True)))
    assert found.dtype == kind
    np.testing.assert_array_equal(found, SPIKES)
    assert "values -9..9, the network reads -8..8" in refused(
        raster, network(levels=8, signed=True)
    )
    assert "the network reads 0..9" in refused(raster, network(levels=9))


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize(
    ("kind", "becomes"),
    [
        (np.float32, np.int8),
        (np.float64, np.int8),
        (np.int32, np.int8),
        (">i2", np.int8),
        (np.int64, np.int8),
    ],
)
def test_whole_numbers_of_other_types_are_read(tmp_path, read, kind, becomes):
    found = read(saved(tmp_path / "r.npz", spikes=SPIKES.astype(kind)))
    assert found.spikes.dtype == becomes
    np.testing.assert_array_equal(found.spikes, SPIKES)
    large = read(saved(tmp_path / "r.npz", spikes=np.full((1, 2, 3), 300).astype(kind)))
    assert large.spikes.dtype == np.int16
    positive = read(saved(tmp_path / "r.npz", spikes=np.full((1, 2, 3), 200).astype(kind)))
    assert positive.spikes.dtype == np.uint8


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize(
    ("values", "what"),
    [
        (np.full((1, 2, 3), 0.5), "float64 values that are not whole numbers"),
        (np.full((1, 2, 3), np.nan), "values that are not whole numbers"),
        (np.full((1, 2, 3), 1 << 15), "holds values 0..32768, beyond int16"),
        (np.full((1, 2, 3), -(1 << 20)), "beyond int16"),
        (np.full((1, 2, 3), np.uint64(1 << 63)), "beyond int16"),
        (np.full((1, 2, 3), 1j), "has type complex128, not whole numbers"),
        (np.full((1, 2, 3), "x"), "not whole numbers"),
        (np.ones((1, 2)), "not [N, T, ...]"),
        (np.ones((1, 0, 2)), "is empty"),
    ],
)
def test_what_no_kind_holds_is_refused(tmp_path, read, values, what):
    with pytest.raises(InputError) as error:
        read(saved(tmp_path / "r.npz", spikes=values))
    assert what in str(error.value)
    assert "spikes" in str(error.value)


@pytest.mark.parametrize("read", READERS)
def test_a_frame_that_is_held(tmp_path, read):
    frame = SPIKES[:, :1]
    net = network(levels=9, signed=True, held=True)
    raster = read(saved(tmp_path / "r.npz", spikes=frame, held=True))
    assert raster.steps is None
    found = all_of(rasters.check_fits(raster, "r.npz", net))
    np.testing.assert_array_equal(found, frame)
    given = np.repeat(frame, 4, axis=1)
    np.testing.assert_array_equal(
        reference.run(net, found).layers["lif"].spikes,
        reference.run(network(levels=9, signed=True), given).layers["lif"].spikes,
    )


@pytest.mark.parametrize("read", READERS)
def test_one_frame_is_accepted_where_the_input_is_held_alone(tmp_path, read):
    frame = np.abs(SPIKES[:, :1])
    said, unsaid = (read(saved(tmp_path / f"{h}.npz", spikes=frame, held=h)) for h in (True, False))
    unheld, held = network(levels=9), network(levels=9, held=True)
    assert "is one frame (held), the network reads one in each of 4 steps" in refused(said, unheld)
    assert "stl-raster --timesteps 4" in refused(said, unheld)
    assert "has 1 time steps, the network was made for 4" in refused(unsaid, unheld)
    assert "stl-raster --held" in refused(unsaid, held)
    several = read(saved(tmp_path / "t.npz", spikes=np.abs(SPIKES)))
    assert "has 4 time steps, the network reads one frame in every step" in refused(several, held)
    # An array says no more than its shape.
    rasters.check_fits(rasters.Raster(frame), "spikes", held)


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("flag", [1, "yes", [True], np.array([True, False])])
def test_held_is_true_or_false(tmp_path, read, flag):
    with pytest.raises(InputError, match=r"held: is .*, not true or false"):
        read(saved(tmp_path / "r.npz", spikes=SPIKES[:, :1], held=flag))


@pytest.mark.parametrize("read", READERS)
def test_more_than_one_frame_cannot_be_held(tmp_path, read):
    with pytest.raises(InputError, match="one frame is held"):
        read(saved(tmp_path / "r.npz", spikes=SPIKES, held=True))


def several():
    """A network with two inputs, and rasters for them."""
    seed = 0
    while True:
        net, made = random_graphs.draw(seed)
        if len(net.inputs) == 2 and net.inputs["input1"].held != net.inputs["input"].held:
            return net, made
        seed += 1


@pytest.mark.parametrize("read", READERS)
def test_several_inputs(tmp_path, read):
    net, made = several()
    labels = np.arange(len(made["input"]))
    held = frozenset(name for name, port in net.inputs.items() if port.held)
    path = tmp_path / "r.npz"
    rasters.save(path, rasters.Raster(made, labels, held), {"seed": 1})
    raster = read(path)
    assert raster.held == held
    assert raster.shape == (len(labels), net.timesteps)
    assert raster.steps == net.timesteps
    fits = rasters.check_fits(raster, "r.npz", net)
    found = all_of(fits, 1)
    for name, x in made.items():
        assert found[name].dtype == x.dtype
        np.testing.assert_array_equal(found[name], x)
    first = fits.first(1)
    assert first.shape[0] == len(first.labels) == 1
    np.testing.assert_array_equal(
        reference.run(net, all_of(first)).predictions, reference.run(net, made).predictions[:1]
    )


@pytest.mark.parametrize("read", READERS)
def test_inputs_that_do_not_match_are_named(tmp_path, read):
    net, made = several()
    path = tmp_path / "r.npz"
    some = {"input": made["input"]}
    rasters.save(path, rasters.Raster(some, held=frozenset()), {})
    assert "has spikes/input, the network reads input, input1" in refused(read(path), net)
    rasters.save(path, rasters.Raster(made["input"], held=frozenset()), {})
    assert "save spikes/input, spikes/input1" in refused(read(path), net)
    wrong = {name: np.full_like(x, 127) for name, x in made.items()}
    held = frozenset(name for name, port in net.inputs.items() if port.held)
    rasters.save(path, rasters.Raster(wrong, held=held), {})
    said = refused(read(path), net)
    assert "spikes/input: holds values 127..127" in said
    assert "spikes/input1: holds values 127..127" in said
    uneven = {"input": made["input"], "input1": made["input1"][:1]}
    rasters.save(path, rasters.Raster(uneven), {})
    with pytest.raises(InputError, match="different numbers of samples"):
        read(path)


@pytest.mark.parametrize(
    "fields",
    [
        {"spikes": SPIKES},
        {"spikes": SPIKES[:, :1].astype(np.uint8), "held": True},
        {"spikes__a": np.ones((5, 4, 6), np.uint8), "spikes__b": np.ones((5, 4, 6), np.uint8)},
    ],
)
def test_stl_train_refuses_what_it_cannot_train_on(tmp_path, fields):
    path = saved(tmp_path / "r.npz", labels=np.arange(5), **fields)
    with pytest.raises(
        InputError, match=r"values with a sign, or one frame|one input is read here"
    ):
        trained.recorded(path, None)


@pytest.fixture
def images(tmp_path):
    rng = np.random.default_rng(0)
    write_idx(tmp_path / "t10k-images-idx3-ubyte.gz", rng.integers(0, 256, (10, 6, 5)))
    write_idx(tmp_path / "t10k-labels-idx1-ubyte", rng.integers(0, 10, 10), compress=False)
    return tmp_path


def test_stl_raster_writes_one_frame(command, images, tmp_path):
    out = tmp_path / "r.npz"
    args = ("--data", images, "--split", "test", "--encoding", "graded", "--held", "--limit", "3")
    code, said, err = command("stl-raster", *args, "-o", out, "--json")
    assert (code, err) == (0, "")
    assert json.loads(said)["shape"] == [3, 1, 1, 6, 5]
    raster = rasters.load(out)
    assert raster.held == frozenset({rasters.ONLY})
    assert raster.spikes.max() > 1


def test_stl_raster_refuses_options_that_contradict_held(command, images, tmp_path):
    args = ("--data", images, "--held", "--timesteps", "3", "-o", tmp_path / "r.npz")
    code, out, err = command("stl-raster", *args)
    assert (code, out) == (2, "")
    assert "--held: holds one frame, and --encoding bernoulli draws one for every step" in err
    assert "--timesteps: has no effect with --held" in err
    assert not (tmp_path / "r.npz").exists()
