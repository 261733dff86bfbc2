"""Datasets of events: their files, frames, splits, and what is refused.

The files are written here in the published formats. Readers and frames are compared with loops over
the events as they were drawn, and with SpikingJelly; test_events_tonic.py compares them with tonic.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from stl_deploy.backends import tool_env
from stl_deploy.backends.consumers import run as runs
from stl_deploy.data import aedat, aedat4, cifar10dvs, gesture, nmnist
from stl_deploy.data.binning import Frames, Tally
from stl_deploy.data.catalogue import EVENT_SETS
from stl_deploy.data.events import events
from stl_deploy.data.load import Wanted, load
from stl_deploy.errors import BackendError, InputError
from stl_deploy.formats import raster as rasters
from tests.build import event_files
from tests.build.nets import ROOT

SENSOR = (2, 128, 128)
LAYOUTS = ("nmnist", "dvs128gesture", "dvs128gesture-cut", "cifar10dvs", "cifar10dvs-4", "shd")


def frames_by_loop(sample, sensor, shape, steps, binning, levels, window=1_400_000):
    """Frames event by event, in plain Python."""
    sample = sorted(sample, key=lambda e: e[0]) if len(sensor) == 1 else sample
    out = np.zeros((steps, *shape), int)
    first, last = sample[0][0], sample[-1][0]
    for i, (t, *address) in enumerate(sample):
        if binning == "count":
            step = i // (len(sample) // steps)
        elif binning == "time":
            step = (t - first) // ((last - first) // steps)
        else:
            step = int(t * steps / window)
        place = tuple(int(a * m / n) for a, n, m in zip(address, sensor, shape, strict=True))
        out[(min(step, steps - 1), *place)] += 1
    return np.minimum(out, levels)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("binning", "levels"), [("count", 1), ("time", 3), (None, 255)])
def test_rasters_are_what_a_loop_over_the_events_makes(layout, binning, levels, tmp_path):
    made = event_files.write(layout, tmp_path)
    name = layout.split("-")[0]
    dataset = EVENT_SETS[name]
    size = 70 if name == "shd" else 9
    for split in ("train", "test"):
        raster, source = load(name, tmp_path, split, Wanted(7, size, binning, levels))
        assert raster.labels.tolist() == [label for label, _ in made[split]]
        shape = (70,) if name == "shd" else (2, 9, 9)
        assert raster.spikes.shape == (len(made[split]), 7, *shape)
        for spikes, (_, sample) in zip(raster.spikes, made[split], strict=True):
            expected = frames_by_loop(
                sample, dataset.sensor, shape, 7, binning or dataset.binning, levels
            )
            np.testing.assert_array_equal(spikes, expected)
        total = sum(len(sample) for _, sample in made[split])
        assert source["events"] == total == int(raster.spikes.sum()) + source["clipped"]
        assert (source["late"], source["levels"], source["split"]) == (0, levels, split)


def simple(t, sensor=(4,)):
    return events("here", np.array(t), np.zeros(len(t), int)).checked(sensor)


@pytest.mark.parametrize(
    ("binning", "t", "steps", "expected"),
    [
        ("count", [0, 1, 2, 3, 4, 5, 6], 3, [2, 2, 3]),
        ("count", [0, 0], 3, [1, 1, 0]),
        ("time", [10, 11, 13, 16, 19, 20], 3, [2, 1, 3]),
        ("time", [7, 7, 7], 2, [3, 0]),
        ("window", [0, 24, 25, 99, 100, 101], 4, [2, 1, 0, 1]),
    ],
)
def test_binning_by_hand(binning, t, steps, expected):
    made, tally = Frames((4,), (4,), steps, binning, 255, 100).make(simple(t))
    assert made[:, 0].tolist() == expected
    assert tally == Tally(len(t), 0, len(t) - sum(expected))


def test_counts_are_cut_off_and_told():
    made, tally = Frames((4,), (2,), 1, "count", 2).make(simple([0, 1, 2, 3, 4]))
    assert (made.tolist(), tally) == ([[2, 0]], Tally(5, 3, 0))


def test_scaling_gives_every_place_its_share():
    address = np.arange(34)
    sample = events("here", address, 0 * address, 0 * address, address)
    made, _ = Frames((2, 34, 34), (2, 17, 17), 1, "count", 255).make(sample)
    assert made[0, 0, 0].tolist() == [2] * 17


def test_splits_of_cifar10dvs_share_nothing_and_do_not_change(tmp_path):
    files = [tmp_path / f"{i}.aedat" for i in range(1000)]
    for label in range(10):
        train = cifar10dvs.part(files, label, "train")
        test = cifar10dvs.part(files, label, "test")
        assert (len(train), len(test)) == (900, 100)
        assert sorted(train + test) == sorted(files)
    first = [int(p.stem) for p in cifar10dvs.part(files, 3, "test")[:6]]
    assert first == [3, 4, 6, 13, 14, 19]


def test_gestures_of_two_recordings_are_read_once_each(tmp_path, monkeypatch):
    event_files.write_gesture(tmp_path)
    read, calls = aedat.read_31, []
    monkeypatch.setattr(aedat, "read_31", lambda path: calls.append(path.name) or read(path))
    load("dvs128gesture", tmp_path, "train", Wanted(2, 8))
    assert calls == ["user01_led.aedat", "user02_led.aedat"]


# What is refused: a fault in one file, and what the error says of it.
EVENT = event_files.nmnist_event(10, 1, 3, 3)
LATER = event_files.nmnist_event(1011, 1, 3, 3)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "is empty"),
        (EVENT + b"12", "has 7 bytes, not a multiple of 5"),
        (event_files.nmnist_event(0, 0, 0, 34), "x = 34, allowed are 0..33"),
        (EVENT + event_files.nmnist_event(11, 0, 99, 0), "event 1 with y = 99"),
        (
            LATER + EVENT,
            "time goes backwards: event 1 at 10 us stands behind one that is 1001 us later; up to 1000 us "
            "are put in order -> sort events of any disorder by --sort, or fetch the file again",
        ),
        (event_files.nmnist_event(0, 0, 240, 0), "holds no events"),
    ],
)
def test_broken_files_of_nmnist(data, what, tmp_path):
    event_files.write_nmnist(tmp_path)
    path = tmp_path / "Test" / "7" / "00002.bin"
    path.write_bytes(data)
    refused("nmnist", tmp_path, path, what)


def refused(name, folder, path, what, split="test"):
    with pytest.raises(InputError) as error:
        load(name, folder, split, Wanted(4, 8))
    assert str(path) in str(error.value)
    assert what in str(error.value)


GOOD = event_files.draw(np.random.default_rng(0), 24, (2, 128, 128))
ABORTS = bytearray(event_files.aedat_4(GOOD))  # aedat 2.3.0 ends its process at this one
ABORTS[430] = 0xD7
ABORTS = bytes(ABORTS)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"nothing", "does not begin with #!AER-DAT2.0"),
        (b"#!AER-DAT2.0", "ends inside its header"),
        (event_files.aedat_31(GOOD), "does not begin with #!AER-DAT2.0"),
        (event_files.aedat_2(GOOD)[:-3], "not a multiple of 8"),
        (event_files.aedat_2([]), "holds no events"),
        (event_files.aedat_2(GOOD[::-1]), "time goes backwards: event 1 at"),
        (b"#!AER-DAT2.0\r\n" + struct.pack(">II", 1 << 15, 0), "holds address 32768"),
    ],
)
def test_broken_files_of_cifar10dvs(data, what, tmp_path):
    event_files.write_cifar10dvs(tmp_path)
    path = tmp_path / "cat" / f"cifar10_cat_{event_files.in_split(3, 10, 'test')[0]}.aedat"
    path.write_bytes(data)
    refused("cifar10dvs", tmp_path, path, what)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"nothing", "is not a complete AEDAT 4 file"),
        (b"#!AER-DAT4.0\r\n" + bytes(400), "is not a complete AEDAT 4 file"),  # its library panics
        (event_files.aedat_4(GOOD)[:-7], "is not a complete AEDAT 4 file"),
        (ABORTS, "is not a complete AEDAT 4 file"),
        (event_files.aedat_4([]), "holds no events"),
        (event_files.aedat_4([(0, 1, 128, 0)], (999, 999)), "y = 128, allowed are 0..127"),
        (event_files.aedat_4(GOOD[::-1]), "time goes backwards"),
    ],
)
def test_broken_files_of_aedat_4(data, what, tmp_path, capfd):
    event_files.write_cifar10dvs(tmp_path, suffix=".aedat4")
    path = tmp_path / "cat" / f"cifar10_cat_{event_files.in_split(3, 10, 'test')[0]}.aedat4"
    path.write_bytes(data)
    refused("cifar10dvs", tmp_path, path, what)


def test_too_many_events_of_aedat_4(tmp_path, monkeypatch):
    monkeypatch.setattr(aedat4, "MAX_EVENTS", 23)
    path = tmp_path / "a.aedat4"
    path.write_bytes(event_files.aedat_4(GOOD))
    with pytest.raises(InputError, match="more than 23 events"):
        aedat4.read(path)


def test_a_reader_that_dies_blames_its_file_and_is_replaced(tmp_path):
    path = tmp_path / "a.aedat4"
    path.write_bytes(event_files.aedat_4(GOOD))
    before = aedat4.read(path)
    aedat4._child().kill()
    with pytest.raises(
        InputError, match=r"a.aedat4: is not a complete AEDAT 4 file: its reader crashed"
    ):
        aedat4.read(path)
    assert aedat4.read(path).t.tolist() == before.t.tolist() == [e[0] for e in GOOD]
    first = aedat4._child()
    aedat4.read(path)
    assert aedat4._child() is first
    aedat4.close()
    assert first.returncode is not None


def test_without_its_library_aedat_4_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "aedat", None)
    path = tmp_path / "a.aedat4"
    path.write_bytes(event_files.aedat_4(GOOD))
    with pytest.raises(InputError, match=r"pip install 'stl-deploy\[data\]'"):
        aedat4.read(path)


def packet(kind=1, size=8, capacity=1, number=1):
    return struct.pack("<HHIIIIII", kind, 1, size, 4, 0, capacity, number, number)


HEAD = b"#!AER-DAT3.1\r\n#!END-HEADER\r\n"
RECORDING = event_files.aedat_31(GOOD)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (event_files.aedat_2(GOOD), "does not begin with #!AER-DAT3.1"),
        (RECORDING[:-1], "a packet of 64 bytes, 63 are left"),
        (RECORDING + b"abc", "3 bytes are left, a header has 28"),
        (HEAD + packet(size=16) + bytes(16), "claims 1 of 1 events of 16 bytes"),
        (HEAD + packet(number=2) + bytes(8), "claims 2 of 1 events"),
        (HEAD + packet(capacity=0xFFFFFFFF, number=0xFFFFFFFF), "0 are left"),
        (HEAD + packet(kind=0, size=0xFFFFFFFF, capacity=0xFFFFFFFF), "0 are left"),
        (HEAD, "holds no events"),
        (HEAD + packet() + struct.pack("<II", 128 << 17, 1), "holds no events"),  # in no gesture
    ],
)
def test_broken_recordings_of_gestures(data, what, tmp_path):
    event_files.write_gesture(tmp_path)
    path = tmp_path / "user03_led.aedat"
    path.write_bytes(data)
    refused("dvs128gesture", tmp_path, path, what)


def test_a_gesture_outside_the_sensor(tmp_path):
    event_files.write_gesture(tmp_path)
    path = tmp_path / "user03_led.aedat"
    path.write_bytes(HEAD + packet() + struct.pack("<II", 128 << 17, 1_000_001))
    refused("dvs128gesture", tmp_path, path, "x = 128, allowed are 0..127")


@pytest.mark.parametrize(
    ("name", "text", "what"),
    [
        ("trials_to_test.txt", "../../etc/passwd\n", "which is not a recording"),
        ("trials_to_test.txt", "\n", "names no gestures"),
        ("trials_to_test.txt", b"\xff\xfe", "is not text"),
        ("trials_to_test.txt", "user03_led.aedat\nuser03_led.aedat\n", "twice"),
        ("trials_to_test.txt", "user03_led.aedat\nuser01_led.aedat\n", "names it too"),
        (
            "user03_led_labels.csv",
            "class,a,b\n12,0,5\n1,9,5\nx,y\n",
            "'12,0,5' is not a class 1..11",
        ),
        ("user03_led_labels.csv", "class,a,b\n1,9,5\n", "line 2"),
    ],
)
def test_broken_tables_of_gestures(name, text, what, tmp_path):
    event_files.write_gesture(tmp_path)
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    refused("dvs128gesture", tmp_path, path, what)


def npy(array):
    import io

    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


ROW = np.array([[1, 2, 1, 3]], float)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"nothing", "is not a valid array"),
        (npy(ROW)[:-1], "is not a valid array"),
        (npy(np.array([None])), "is not a valid array"),
        (npy(ROW).replace(b"(1, 4)", b"(9999999999, 4)"), "is not a valid array"),
        (npy(ROW[0]), "not rows (x, y, polarity, milliseconds)"),
        (npy(ROW.astype(complex)), "not rows"),
        (npy(ROW + 0.5), "not whole"),
        (npy(ROW * np.nan), "not whole"),
        (npy(ROW * 1e30), "not whole"),
        (npy(ROW * [1, 1, 2, 1]), "polarity = 2, allowed are 0..1"),
        (npy(ROW[:0]), "holds no events"),
    ],
)
def test_broken_files_of_cut_gestures(data, what, tmp_path):
    event_files.write_cut_gesture(tmp_path)
    path = tmp_path / "ibmGestureTest" / "user01_led" / "4.npy"
    path.write_bytes(data)
    refused("dvs128gesture", tmp_path, path, what)


def test_a_cut_gesture_of_no_class(tmp_path):
    event_files.write_cut_gesture(tmp_path)
    path = tmp_path / "ibmGestureTest" / "user01_led" / "11.npy"
    path.write_bytes(npy(ROW))
    refused("dvs128gesture", tmp_path, path, "not named by a class 0..10")


def shd(times=(0.1, 0.2), units=(1, 2), labels=(0,), **more):
    return {"times": [np.array(times)], "units": [np.array(units)], "labels": labels, **more}


@pytest.mark.parametrize(
    ("made", "what"),
    [
        (shd(times=(0.1,)), "has 1 times for 2 units"),
        (shd(units=(1, 700)), "channel = 700, allowed are 0..699"),
        (shd(times=(0.1, np.nan)), "times that are not finite or beyond 1e+06 s"),
        (shd(times=(0.1, -np.inf)), "times that are not finite"),
        (shd(labels=(20,)), "20..20, allowed are 0..19"),
        (shd(labels=(0, 1)), "2 labels, 1 arrays of times"),
    ],
)
def test_broken_samples_of_shd(made, what, tmp_path):
    path = tmp_path / "shd_test.h5"
    event_files.shd_file(path, made["times"], made["units"], made["labels"])
    refused("shd", tmp_path, path, what)


def test_broken_files_of_shd(tmp_path):
    import h5py

    path = tmp_path / "shd_test.h5"
    event_files.write_shd(tmp_path, 3)
    good = path.read_bytes()
    path.write_bytes(good[:-500])
    refused("shd", tmp_path, path, "cannot be read")
    path.write_bytes(b"nothing")
    refused("shd", tmp_path, path, "cannot be read")
    path.write_bytes(good)
    with h5py.File(path, "a") as file:
        del file["spikes/times"]
        file["spikes/times"] = np.zeros((3, 4))
    refused("shd", tmp_path, path, "spikes/times is not a plain list")
    with h5py.File(path, "a") as file:
        del file["spikes/times"]
        file["spikes/times"] = np.zeros(3)
    refused("shd", tmp_path, path, "spikes/times holds float64, not an array for each sample")
    with h5py.File(path, "a") as file:
        del file["spikes/times"]
        file["spikes/times"] = h5py.ExternalLink("/etc/passwd", "x")
    refused("shd", tmp_path, path, "spikes/times points elsewhere")
    with h5py.File(path, "a") as file:
        del file["spikes"]
    refused("shd", tmp_path, path, "spikes/times is missing")
    with h5py.File(path, "a") as file:
        del file["labels"]
        file.create_dataset("labels", (1 << 40,), np.uint8, chunks=(1 << 20,))
    refused("shd", tmp_path, path, "more than 1048576")


def test_spikes_outside_the_window_are_left_out_and_counted(tmp_path):
    made = shd(times=(0.1, 1.5, -0.001), units=(1, 2, 3))
    event_files.shd_file(tmp_path / "shd_test.h5", made["times"], made["units"], made["labels"])
    raster, source = load("shd", tmp_path, "test", Wanted(14))
    assert (int(raster.spikes.sum()), source["late"], source["early"]) == (1, 1, 1)
    assert (source["events"], source["reordered"]) == (3, 0)
    raster, source = load("shd", tmp_path, "test", Wanted(14, binning="time"))
    assert (int(raster.spikes.sum()), source["late"], source["early"]) == (3, 0, 0)


@pytest.mark.parametrize("binning", ["window", "time", "count"])
def test_a_word_without_spikes_has_frames_of_zeros(binning, tmp_path):
    word = [np.array([0.1, 0.2]), np.array([])]
    event_files.shd_file(tmp_path / "shd_test.h5", word, [10 * w for w in word], (0, 1))
    raster, source = load("shd", tmp_path, "test", Wanted(14, binning=binning))
    assert raster.spikes.reshape(2, -1).sum(1).tolist() == [2, 0]
    assert (source["empty"], source["samples"]) == (1, 2)


# Events that are late in their files, and clocks that wrap.


def nmnist_file(path, sample):
    path.write_bytes(b"".join(event_files.nmnist_event(*e) for e in sample))
    return nmnist.read(path)


def aedat_file(path, sample, write, read):
    path.write_bytes(write(sample))
    return read(path)


def cut_file(path, sample):
    np.save(path, np.array([(x, y, p, t // 1000) for t, p, y, x in sample], float))
    return gesture.read_cut(path)


FILES = {
    "a.bin": nmnist_file,
    "a.aedat": lambda *a: aedat_file(*a, event_files.aedat_2, cifar10dvs.read),
    "b.aedat": lambda *a: aedat_file(*a, event_files.aedat_31, aedat.read_31),
    "a.aedat4": lambda *a: aedat_file(*a, event_files.aedat_4, cifar10dvs.read),
    "a.npy": cut_file,
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("late", [1000, 1001])
def test_events_that_are_slightly_late_are_sorted_and_counted(name, late, tmp_path):
    """In every format: up to 1 ms; beyond, only where that is asked for."""
    times = [0, 2000, 2000, 4000, 5000, 6000, 6000, 9000]
    if name != "a.npy":  # whose times are milliseconds
        times[4] = 4000 + late
    elif late > 1000:
        times[4] = 6000
    sample = [(t, i % 2, i, 2 * i) for i, t in enumerate(times)]
    stored = [*sample[:3], sample[4], sample[3], *sample[5:]]
    read = FILES[name](tmp_path / name, stored)
    if late > 1000:
        with pytest.raises(InputError, match=r"event 4 at 4000 us stands behind one .* --sort"):
            read.in_order()
    found = read.in_order(whatever=late > 1000)
    # Events of the same time stay as they stand in the file.
    expected = sorted(stored, key=lambda e: e[0])
    assert list(zip(found.t, *found.address, strict=True)) == expected
    assert found.reordered == 1
    again = FILES[name](tmp_path / name, expected).in_order()
    assert again.reordered == 0
    np.testing.assert_array_equal(again.t, found.t)


CLOCK = 1 << 32


@pytest.mark.parametrize(
    ("stored", "times", "wraps"),
    [
        ([CLOCK - 2, CLOCK - 1, 0, 3], [-2, -1, 0, 3], 1),
        # An event that is late behind the wrap belongs before it.
        ([CLOCK - 5, 1, CLOCK - 4, 2], [-5, 1, -4, 2], 1),
        ([CLOCK - 1, 0, CLOCK // 2, CLOCK - 1, 0], [-1, 0, CLOCK // 2, CLOCK - 1, CLOCK], 2),
        # A leap forward is a long break where nothing wrapped, and no wrap backward.
        ([1, CLOCK - 9, CLOCK - 8], [1 - CLOCK, -9, -8], 0),
        ([1, CLOCK - 9, 3], [1 - CLOCK, -9, 3], 1),
        ([0, 5, 4], [0, 5, 4], 0),
    ],
)
def test_the_clock_of_aedat_2_goes_on_where_it_wraps(stored, times, wraps, tmp_path):
    path = tmp_path / "a.aedat"
    path.write_bytes(event_files.aedat_2([(t, 1, 2, 3) for t in stored]))
    t, _, found = aedat.read_2(path)
    assert found == wraps
    assert (t - t[0]).tolist() == [time - times[0] for time in times]


def test_commands_say_what_was_sorted(tmp_path, command):
    """stl-raster and stl-train: with a count, in --json too; --sort where the disorder is large."""
    event_files.write_nmnist(tmp_path)
    path = tmp_path / "Train" / "7" / "00002.bin"
    good = path.read_bytes()
    how = ["--dataset", "nmnist", "--data", tmp_path, "--size", 8, "--timesteps", 4]
    small, large = (event_files.nmnist_event(t, 1, 3, 3) for t in (0x7FFFF, 10))
    near = event_files.nmnist_event(0x7FFFF - 600, 1, 3, 3)
    train = ["--arch", "4C3-BN-LIF-P4-FC20-LIF-AvgPool2", "--epochs", 1, "--batch", 8]
    commands = {"stl-raster": ["--split", "train"], "stl-train": train}
    for name, options in commands.items():
        path.write_bytes(good + small + near)
        out = tmp_path / f"{name}.near"
        code, _, err = command(name, *how, *options, "-o", out)
        assert code == 0, err
        assert "1 of 802 events stood behind a later one in their file; they were sorted" in err
        path.write_bytes(good + small + large)
        out = tmp_path / f"{name}.far"
        code, _, err = command(name, *how, *options, "-o", out)
        assert (code, out.exists()) == (2, False)
        assert f"{path}: time goes backwards: event 41 at 10 us" in err
        assert "--sort" in err
        code, said, err = command(name, *how, *options, "--sort", "-o", out, "--json")
        assert code == 0, err
        told = json.loads(said)
        assert told.get("data", told)["reordered"] == 1
    code, _, err = command("stl-raster", "--sort", "-o", tmp_path / "x")
    assert code == 2
    assert "--sort: does not go with --dataset fashion-mnist" in err


@pytest.mark.parametrize("name", EVENT_SETS)
def test_an_empty_folder_is_told_what_it_lacks(name, tmp_path):
    with pytest.raises(InputError) as error:
        load(name, tmp_path, "train", Wanted())
    assert EVENT_SETS[name].files in str(error.value)
    assert EVENT_SETS[name].published in str(error.value)
    with pytest.raises(InputError, match="is not a folder"):
        load(name, tmp_path / "none", "train", Wanted())
    assert list(tmp_path.iterdir()) == []


def test_a_missing_class_is_named(tmp_path):
    event_files.write_nmnist(tmp_path)
    for path in (tmp_path / "Train" / "3").iterdir():
        path.unlink()
    (tmp_path / "Train" / "5" / "note.txt").write_text("not an event")
    refused("nmnist", tmp_path, tmp_path / "Train" / "3", "holds no files, *.bin are", "train")
    assert load("nmnist", tmp_path, "test", Wanted(2, 8))[0].spikes.shape[0] == 20


def test_too_large_a_raster_is_refused_before_it_is_made(tmp_path, monkeypatch):
    event_files.write_nmnist(tmp_path)
    monkeypatch.setattr(rasters, "MAX_BYTES", 20 * 4 * 2 * 8 * 8 - 1)
    with pytest.raises(InputError, match=r"make 10240 bytes, more than 10239.*--limit"):
        load("nmnist", tmp_path, "test", Wanted(4, 8))
    load("nmnist", tmp_path, "test", Wanted(4, 8, limit=19))


def test_what_a_dataset_cannot_have(tmp_path):
    with pytest.raises(InputError, match="35 is more than the 34 of N-MNIST"):
        load("nmnist", tmp_path, "test", Wanted(size=35))
    with pytest.raises(InputError, match="has no window of time"):
        load("nmnist", tmp_path, "test", Wanted(binning="window"))


def test_nothing_is_ever_fetched(tmp_path, monkeypatch):
    import socket

    def no_network(*args, **kwargs):
        raise AssertionError("a network is asked for")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    for name in EVENT_SETS:
        with pytest.raises(InputError):
            load(name, tmp_path, "train", Wanted())


def test_defaults_are_networks_that_fit_their_frames():
    from stl_deploy.ir.arch import Architecture

    for name, dataset in EVENT_SETS.items():
        shape = dataset.shape(None)
        arch = Architecture.parse(dataset.network(shape), shape, tau=dataset.tau)
        assert arch.classes == dataset.classes, name
        keys = {"arch", "timesteps", "binning", "size", "levels", "tau", "threshold", "batch", "lr"}
        assert set(dataset.sources) == keys
    # 128 x 8 x 8 and 128 x 4 x 4 features, a quarter of them in the first linear layer (PLIF's 2fc).
    for name, features in (("nmnist", 8192), ("cifar10dvs", 8192), ("dvs128gesture", 2048)):
        shape = EVENT_SETS[name].shape(None)
        shapes = Architecture.parse(EVENT_SETS[name].network(shape), shape).shapes
        pools = [shape for layer, shape in shapes.items() if layer.startswith("pool")]
        assert np.prod(pools[-1]) == features
        assert shapes["fc1"] == (features // 4,)


SMALL = {
    "nmnist": ("4C3-BN-LIF-P4-FC20-LIF-AvgPool2", 8),
    "dvs128gesture": ("4C3-BN-LIF-P4-FC22-LIF-AvgPool2", 16),
    "dvs128gesture-cut": ("4C3-BN-LIF-P4-FC22-LIF-AvgPool2", 16),
    "cifar10dvs": ("4C3-BN-LIF-P4-FC20-LIF-AvgPool2", 16),
    "cifar10dvs-4": ("4C3-BN-LIF-P4-FC20-LIF-AvgPool2", 16),
    "shd": ("FC30-LIF-FC40-LIF-AvgPool2", 35),
}


@pytest.mark.parametrize(
    ("layout", "levels"), [*((x, 1) for x in LAYOUTS), ("nmnist", 4), ("shd", 2)]
)
def test_from_events_to_the_chip(layout, levels, tmp_path, command):
    """stl-raster, stl-train, stl-export, hw_sim, stl-parity."""
    event_files.write(layout, tmp_path)
    arch, size = SMALL[layout]
    name = layout.split("-")[0]
    how = [
        "--dataset",
        name,
        "--data",
        tmp_path,
        "--size",
        size,
        "--timesteps",
        4,
        "--levels",
        levels,
    ]
    for split in ("train", "test"):
        code, out, err = command(
            "stl-raster", *how, "--split", split, "-o", tmp_path / f"{split}.npz", "--json"
        )
        assert code == 0, err
        told = json.loads(out)
        assert told["levels"] == levels
        assert told["shape"][1:] == [4, *((size,) if name == "shd" else (2, size, size))]
    train = ["--arch", arch, "--epochs", 1, "--batch", 8]
    code, out, err = command("stl-train", *how, *train, "-o", tmp_path / "m.pt", "--json")
    assert code == 0, err
    record = json.loads(out)
    assert record["settings"]["encoding"] == "recorded"
    assert record["data"]["dataset"] == name
    # The same from the raster, which says T, size, levels and the dataset, so its defaults.
    code, out, err = command(
        *(
            "stl-train",
            "--raster",
            tmp_path / "train.npz",
            *train,
            "-o",
            tmp_path / "r.pt",
            "--json",
        )
    )
    assert code == 0, err
    assert json.loads(out)["history"] == record["history"]
    test = tmp_path / "test.npz"
    code, _, err = command(
        *("stl-export", tmp_path / "m.pt", "--target", "loihi", "--clamp-thresholds"),
        *("--eval", test, "-o", tmp_path / "out"),
    )
    assert code == 0, err
    code, out, err = command("hw_sim", tmp_path / "out" / "model.nir", "--input", test, "--json")
    assert code == 0, err
    result = json.loads(out)
    assert result["samples"] == len(rasters.load(test).spikes)
    assert 0 <= result["accuracy"] <= 1
    code, _, err = command(
        *("stl-parity", tmp_path / "m.pt", tmp_path / "out" / "model.nir", "--input", test)
    )
    assert code == 0, err


def test_the_default_network_follows_the_size():
    network = EVENT_SETS["cifar10dvs"].network((2, 48, 48))
    assert network == (
        "128C3-BN-LIF-P24-128C3-BN-LIF-P12-128C3-BN-LIF-P6-128C3-BN-LIF-P3-"
        "D0.5-FC288-LIF-D0.5-FC100-LIF-AvgPool10"
    )
    for shape in ((2, 40, 40), (2, 32, 16), (64,)):
        with pytest.raises(InputError, match=r"cannot be halved 4 times.*multiple of 16"):
            EVENT_SETS["cifar10dvs"].network(shape)


def test_training_on_events_learns(tmp_path, command):
    """Each class of spikes has channels of its own; a network that did not see them could not know."""
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 20
    units = [35 * label + rng.integers(0, 35, 60) for label in labels]
    times = [rng.uniform(0, 1.39, 60) for _ in labels]
    event_files.shd_file(tmp_path / "shd_train.h5", times, units, labels)
    code, out, err = command(
        *("stl-train", "--dataset", "shd", "--data", tmp_path, "--timesteps", 10, "--size", 140),
        *("--epochs", 12, "--lr", "1e-2", "--batch", 20, "-o", tmp_path / "m.pt", "--json"),
    )
    assert code == 0, err
    assert json.loads(out)["history"][-1]["accuracy"] > 0.8


def test_qat_on_events(tmp_path, command):
    event_files.write_nmnist(tmp_path)
    how = ["--dataset", "nmnist", "--data", tmp_path, "--size", 8, "--timesteps", 4]
    train = ["--epochs", 1, "--batch", 8]
    arch = "4C3-BN-LIF-P4-FC20-LIF-AvgPool2"
    assert command("stl-train", *how, *train, "--arch", arch, "-o", tmp_path / "m.pt")[0] == 0
    assert command("stl-raster", *how, "--split", "train", "-o", tmp_path / "t.npz")[0] == 0
    qat = ["--qat", "--init", tmp_path / "m.pt", *train]
    code, _, err = command(
        "stl-train", *qat, "--raster", tmp_path / "t.npz", "-o", tmp_path / "q.pt"
    )
    assert code == 0, err
    assert command("stl-raster", *how[:-1], 5, "--split", "train", "-o", tmp_path / "5.npz")[0] == 0
    code, _, err = command(
        "stl-train", *qat, "--raster", tmp_path / "5.npz", "-o", tmp_path / "x.pt"
    )
    assert code == 2
    assert "in 4 steps up to 1, the images are (2, 8, 8) in 5 steps up to 1" in err


def test_options_that_do_not_go_together(tmp_path, command):
    out = ["-o", tmp_path / "x"]
    np.savez(tmp_path / "no.npz", spikes=np.ones((2, 2, 3), np.uint8))
    event_files.write_shd(tmp_path, 3)
    for name, args, what in (
        ("stl-raster", ["--size", 8], "--size: does not go with --dataset fashion-mnist"),
        ("stl-raster", ["--dataset", "nmnist"], "--data: is required with --dataset nmnist"),
        ("stl-raster", ["--dataset", "mnist"], "--data: is required with --dataset mnist"),
        (
            "stl-raster",
            ["--dataset", "shd", "--data", tmp_path, "--encoding", "graded"],
            "--levels",
        ),
        ("stl-train", ["--dataset", "shd", "--data", tmp_path, "--flip"], "have no left and right"),
        ("stl-train", ["--raster", tmp_path / "no.npz"], "holds no labels"),
        ("stl-train", ["--raster", tmp_path / "no.npz", "--timesteps", 2], "comes from the raster"),
        ("stl-train", ["--levels", 2], "--levels: does not go with --dataset fashion-mnist"),
    ):
        code, _, err = command(name, *args, *out)
        assert code == 2, args
        assert what in err
    assert not Path(tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("largest", "source", "levels"),
    [(1, None, 1), (3, None, 255), (3, '{"levels": 7}', 7), (3, '{"levels": 2}', 255)],
)
def test_levels_of_a_raster(largest, source, levels, tmp_path):
    from stl_deploy.models import inputs

    spikes = np.zeros((2, 2, 3), np.uint8)
    spikes[0, 0, 0] = largest
    arrays = {"spikes": spikes, "labels": np.array([0, 1])}
    if source is not None:
        arrays["source"] = np.array(source)
    np.savez(tmp_path / "r.npz", **arrays)
    assert inputs.recorded(tmp_path / "r.npz", None).levels == levels


@pytest.mark.parametrize(
    "source", ["", "[", "[1]", '{"levels": "x"}', '{"levels": 900}', "[" * 9999]
)
def test_an_odd_origin_of_a_raster_is_not_believed(source, tmp_path):
    from stl_deploy.models import inputs

    np.savez(
        tmp_path / "r.npz", spikes=np.ones((1, 2, 3), np.uint8), labels=np.array([0]), source=source
    )
    given = inputs.recorded(tmp_path / "r.npz", None)
    assert (given.levels, given.dataset) == (1, None)


def test_gesture_files_of_a_reader_are_events(tmp_path):
    made = event_files.write_cut_gesture(tmp_path)
    got = gesture.read_cut(tmp_path / "ibmGestureTest" / "user01_fluorescent" / "0.npy")
    assert list(zip(got.t, *got.address, strict=True)) == made["test"][0][1]


def test_spikingjelly_reads_and_frames_the_same(tmp_path):
    """Of AEDAT 2.0 and 3.1 files, where events are left over in the last frame."""
    try:
        tool_env.ensure(runs.environment("current"))
    except BackendError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI must run SpikingJelly: {error}")
        pytest.skip(str(error))
    (packages,) = runs.environment("current").folder.glob("lib/python*/site-packages")
    sample = event_files.draw(np.random.default_rng(2), 403, (2, 128, 128))
    (tmp_path / "a.aedat2").write_bytes(event_files.aedat_2(sample))
    (tmp_path / "b.aedat31").write_bytes(event_files.aedat_31(sample))
    driver = ROOT / "tests" / "build" / "spikingjelly_driver.py"
    done = subprocess.run(
        [sys.executable, driver, packages, tmp_path, "5,7,20", tmp_path / "out.npz"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    theirs = np.load(tmp_path / "out.npz")
    for name, read in (("a.aedat2", cifar10dvs.read), ("b.aedat31", aedat.read_31)):
        ours = read(tmp_path / name)
        for key, values in zip("tpyx", (ours.t, *ours.address), strict=True):
            np.testing.assert_array_equal(values, theirs[f"{name}/{key}"])
        for binning, by in (("count", "number"), ("time", "time")):
            for steps in (5, 7, 20):
                how = Frames(SENSOR, SENSOR, steps, binning, 255)
                np.testing.assert_array_equal(how.make(ours)[0], theirs[f"{name}/{by}/{steps}"])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_mutated_files_are_read_or_refused(layout, tmp_path):
    """Bytes changed, cut out or doubled: an InputError that names the folder, or frames; nothing else."""
    event_files.write(layout, tmp_path)
    name = layout.split("-")[0]
    listing = EVENT_SETS[name].listing(tmp_path, "test")
    paths = {Path(listing.read(0).where.split(",")[0])}
    paths |= set(tmp_path.glob("user03_led*")) | set(tmp_path.glob("trials_to_test.txt"))
    rng = np.random.default_rng(0)
    refusals = []
    for path in sorted(paths):
        good = path.read_bytes()
        for _ in range(int(os.environ.get("STL_FUZZ", 60))):
            path.write_bytes(mutated(good, rng))
            try:
                load(name, tmp_path, "test", Wanted(4, 8, limit=3))
            except InputError as error:
                refusals.append(str(error))
        path.write_bytes(good)
    assert refusals
    assert all(str(tmp_path) in said for said in refusals)
    load(name, tmp_path, "test", Wanted(4, 8, limit=3))


def mutated(data, rng):
    data = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        at = int(rng.integers(len(data)))
        if (kind := rng.integers(4)) == 0:
            data[at] = int(rng.integers(256))
        elif kind == 1:
            data[at] ^= 1 << int(rng.integers(8))
        elif kind == 2:
            del data[at : at + int(rng.integers(1, 20))]
        else:
            data[at:at] = data[at : at + int(rng.integers(1, 20))]
        data = data or bytearray(b"\0")
    return bytes(data)


def test_the_page_has_the_defaults_of_every_dataset():
    page = (ROOT / "docs" / "data.md").read_text()
    for name, d in EVENT_SETS.items():
        shape = " x ".join(map(str, d.shape(None)))
        row = (name, shape, d.timesteps, d.binning, d.tau, d.threshold, d.batch, d.lr)
        assert "| `{}` | {} | {} | {} | {} | {} | {} | {} |".format(*row) in page
        assert f"{name:15}{d.network(d.shape(None))}\n" in page
        assert f"| `{name}` | {d.title} | <{d.published}> |" in page
