"""Datasets of events in tonic: the same files become the same events and frames.

tonic is there on Python 3.11 alone: one of its dependencies has no wheels for later ones.
"""

from __future__ import annotations

import struct
import sys
from collections import Counter

import numpy as np
import pytest

from stl_deploy.data import aedat, nmnist
from stl_deploy.data.catalogue import EVENT_SETS
from stl_deploy.data.load import Wanted, load
from tests.build import event_files

if sys.version_info >= (3, 12):
    pytest.importorskip("tonic", reason="tonic's expelliarmus has no wheel for this Python")

import tonic.datasets
import tonic.functional
import tonic.io

from tests.build.event_files import write


class NoDownload:
    """tonic's datasets as they stand in a folder: it would fetch what is fewer than it expects."""

    def _check_exists(self):
        return True

    def download(self):
        raise AssertionError("tonic wants to download")


def tonic_frames(recording, sensor, steps):
    return tonic.functional.to_frame_numpy(recording, sensor, n_event_bins=steps)


@pytest.mark.parametrize("layout", ["nmnist", "dvs128gesture-cut", "cifar10dvs-4"])
def test_tonic_makes_the_same_frames(layout, tmp_path):
    """Of its own datasets at full size; events divide into the frames, so that none is left over."""
    kind = {
        "nmnist": tonic.datasets.NMNIST,
        "dvs128gesture-cut": tonic.datasets.DVSGesture,
        "cifar10dvs-4": tonic.datasets.CIFAR10DVS,
    }[layout]
    write(layout, tmp_path / kind.__name__)
    local = type(kind.__name__, (NoDownload, kind), {})
    parts = [()] if layout == "cifar10dvs-4" else [(True,), (False,)]
    theirs = Counter()
    for train in parts:
        for recording, label in local(str(tmp_path), *train):
            theirs[label, tonic_frames(recording, local.sensor_size, 10).tobytes()] += 1
    name = layout.split("-")[0]
    ours = Counter()
    for split in ("train", "test"):
        size = EVENT_SETS[name].sensor[-1]
        raster, _ = load(name, tmp_path, split, Wanted(10, size, "count", 255))
        for spikes, label in zip(raster.spikes, raster.labels, strict=True):
            ours[int(label), spikes.astype(np.int16).tobytes()] += 1
    assert ours == theirs


def test_tonic_reads_the_same_spikes_of_shd(tmp_path):
    write("shd", tmp_path / "SHD")
    local = type("SHD", (NoDownload, tonic.datasets.SHD), {})
    raster, _ = load("shd", tmp_path, "test", Wanted(14, None, None, 255))
    for spikes, label, (theirs, theirs_label) in zip(
        raster.spikes, raster.labels, local(str(tmp_path), train=False), strict=True
    ):
        assert label == theirs_label
        expected = np.zeros((14, 700), int)
        np.add.at(expected, (theirs["t"] // 100_000, theirs["x"]), 1)
        np.testing.assert_array_equal(spikes, expected)


def test_tonic_reads_the_same_words_of_aedat(tmp_path):
    """Its readers of whole files fail (1.7.0: a header of three values, two are unpacked); the one
    below them does not."""
    sample = event_files.draw(np.random.default_rng(1), 64, (2, 128, 128))
    path = tmp_path / "a.aedat"
    path.write_bytes(event_files.aedat_2(sample))
    version, start, _ = tonic.io.read_aedat_header_from_file(str(path))
    theirs = tonic.io.get_aer_events_from_file(str(path), version, start)
    t, address, _ = aedat.read_2(path)
    np.testing.assert_array_equal(t, theirs["timeStamp"])
    np.testing.assert_array_equal(address, theirs["address"])
    data = event_files.aedat_31(sample, packet=64)
    special = struct.pack("<HHIIIIII", 0, 1, 8, 4, 0, 1, 1, 1) + b"special!"
    path.write_bytes(data.replace(special, b""))  # it takes every packet for one of pixels
    start = data.index(special)
    theirs = tonic.io.get_aer_events_from_file(str(path), 3.1, start)
    word = theirs["address"]
    ours = aedat.read_31(path)
    np.testing.assert_array_equal(ours.t, theirs["timeStamp"])
    # The fields as tonic's read_dvs_ibm takes them apart.
    for got, expected in zip(
        ours.address, (word >> 1 & 1, word >> 2 & 8191, word >> 17), strict=True
    ):
        np.testing.assert_array_equal(got, expected)


def test_marks_of_nmnist_move_the_clock(tmp_path):
    """As tonic has it: y = 240 is no event, and 2^13 us are added from there on."""
    path = tmp_path / "a.bin"
    one, two = event_files.nmnist_event(5, 1, 2, 3), event_files.nmnist_event(9, 0, 33, 0)
    path.write_bytes(one + event_files.nmnist_event(0, 0, 240, 0) + two + two)
    ours = nmnist.read(path)
    theirs = tonic.io.read_mnist_file(str(path), tonic.datasets.NMNIST.dtype)
    assert ours.t.tolist() == theirs["t"].tolist() == [5, 9 + 8192, 9 + 8192]
    for got, key in zip(ours.address, "pyx", strict=True):
        assert got.tolist() == theirs[key].tolist()
