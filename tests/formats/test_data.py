"""IDX files and rasters: what is read, and what is refused."""

from __future__ import annotations

import gzip
import io
import json
import zipfile

import numpy as np
import pytest

from stl_deploy.errors import InputError
from stl_deploy.formats import idx
from stl_deploy.formats import raster as rasters
from tests.build.files import write_idx


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for stem, n in (("train", 20), ("t10k", 10)):
        write_idx(tmp_path / f"{stem}-images-idx3-ubyte.gz", rng.integers(0, 256, (n, 6, 5)))
        write_idx(tmp_path / f"{stem}-labels-idx1-ubyte", rng.integers(0, 10, n), compress=False)
    return tmp_path


def test_images_and_labels(folder):
    images, labels = idx.load(folder, "train", limit=7)
    assert (images.shape, images.dtype) == ((7, 1, 6, 5), np.uint8)
    assert (labels.shape, labels.dtype) == ((7,), np.int64)


def test_broken_idx_files(folder):
    path = folder / "t10k-images-idx3-ubyte.gz"
    good = path.read_bytes()
    plain = gzip.decompress(good)
    for data in (
        b"",
        b"hello",
        good[:-9],
        gzip.compress(plain[:-1]),
        gzip.compress(plain + b"x"),
        gzip.compress(b"\0\0\x0d\x03" + plain[4:]),
        gzip.compress(plain[:6]),
        gzip.compress(b"\0\0\x08\x03" + b"\xff" * 12),
    ):
        path.write_bytes(data)
        with pytest.raises(InputError) as error:
            idx.load(folder, "test")
        assert str(path) in str(error.value)
    path.write_bytes(good)
    write_idx(folder / "t10k-labels-idx1-ubyte", np.arange(3), compress=False)
    with pytest.raises(InputError, match=r"\(3,\) labels for 10 images"):
        idx.load(folder, "test")


def test_bernoulli_rate_follows_the_pixel():
    images = np.zeros((1, 1, 2, 2), np.uint8)
    images[0, 0] = [[0, 255], [64, 128]]
    spikes = rasters.encode(images, 4000, "bernoulli", seed=1)
    rate = spikes.mean(axis=1)[0, 0]
    assert rate[0, 0] == 0
    assert rate[0, 1] == 1
    np.testing.assert_allclose(rate[1], [64 / 255, 128 / 255], atol=0.03)


def test_bernoulli_is_seeded_and_does_not_depend_on_later_images():
    images = np.random.default_rng(0).integers(0, 256, (9, 1, 4, 4)).astype(np.uint8)
    all_of_them = rasters.encode(images, 4, "bernoulli", seed=3)
    np.testing.assert_array_equal(rasters.encode(images[:5], 4, "bernoulli", 3), all_of_them[:5])
    assert (rasters.encode(images, 4, "bernoulli", 4) != all_of_them).any()


def test_bernoulli_draw_is_the_documented_one():
    """numpy's PCG64, one double a pixel and step, a spike where 255 u < pixel."""
    images = np.array([[[[10, 200]]]], np.uint8)
    u = np.random.Generator(np.random.PCG64(5)).random((3, 1, 1, 2))
    np.testing.assert_array_equal(
        rasters.encode(images, 3, "bernoulli", 5)[0], (u * 255 < images[0]).astype(np.uint8)
    )


def test_graded_repeats_the_pixels():
    images = np.arange(4, dtype=np.uint8).reshape(1, 1, 2, 2)
    np.testing.assert_array_equal(rasters.encode(images, 3, "graded", 0)[0], [images[0]] * 3)


def test_round_trip(tmp_path):
    spikes = np.random.default_rng(0).integers(0, 2, (3, 4, 1, 2, 2)).astype(np.uint8)
    raster = rasters.Raster(spikes, np.array([0, 1, 2]))
    rasters.save(tmp_path / "r.npz", raster, {"seed": 3})
    again = rasters.load(tmp_path / "r.npz")
    np.testing.assert_array_equal(again.spikes, raster.spikes)
    np.testing.assert_array_equal(again.labels, raster.labels)
    with np.load(tmp_path / "r.npz") as file:
        assert json.loads(str(file["source"])) == {"seed": 3}


@pytest.mark.parametrize("read", [rasters.load, rasters.stream])
def test_a_raster_whose_header_is_no_python(read, tmp_path):
    """numpy parses the header of an array with Python's own tokenizer, and its errors come out."""
    whole = io.BytesIO()
    np.save(whole, np.ones((2, 2, 3), np.uint8))
    path = tmp_path / "r.npz"
    for broken in (b" ", b")", b"'"):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("spikes.npy", whole.getvalue().replace(b"}", broken))
        with pytest.raises(InputError, match=r"r\.npz: is not a raster"):
            read(path)


def test_raster_command(folder, tmp_path, monkeypatch, capsys):
    import sys

    from stl_deploy.commands.raster import main

    out = tmp_path / "r.npz"
    args = ["--data", folder, "--split", "test", "--seed", "5", "--timesteps", "3", "--limit", "4"]
    monkeypatch.setattr(sys, "argv", ["stl-raster", *map(str, args), "-o", str(out), "--json"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["shape"], told["seed"], told["images"]) == ([4, 3, 1, 6, 5], 5, 4)
    assert len(told["sha256"]["images"]) == 64
    images, labels = idx.load(folder, "test", 4)
    raster = rasters.load(out)
    np.testing.assert_array_equal(raster.spikes, rasters.encode(images, 3, "bernoulli", 5))
    np.testing.assert_array_equal(raster.labels, labels)
