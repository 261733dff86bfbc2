"""Tiny event datasets, written in the formats of the published ones.

Each ``write_*`` puts a dataset into a folder and returns, by split, its samples in the order in
which they are to be read: (label, [(t, p, y, x) or (t, channel), ...]), t in microseconds.
"""

from __future__ import annotations

import struct

import flatbuffers
import h5py
import numpy as np

CIFAR = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def draw(rng, n, sensor, duration=300_000, start=0):
    """``n`` random events with times that do not go back."""
    t = np.sort(rng.integers(start, start + duration, n))
    return [(int(s), *(int(rng.integers(size)) for size in sensor)) for s in t]


def write_nmnist(folder, each=2, seed=0):
    """N-MNIST: x, y, then polarity and time in 3 bytes."""
    rng = np.random.default_rng(seed)
    out = {}
    for split in ("Train", "Test"):
        table = {}
        for i in range(each):
            for label in range(10):
                path = folder / split / str(label) / f"{i + 1:05d}.bin"
                path.parent.mkdir(parents=True, exist_ok=True)
                table[i, label] = draw(rng, 40, (2, 34, 34))
                path.write_bytes(b"".join(nmnist_event(*e) for e in table[i, label]))
        out[split.lower()] = [(label, table[i, label]) for i, label in sorted(table)]
    return out


def nmnist_event(t, p, y, x):
    return bytes([x, y, p << 7 | t >> 16, t >> 8 & 255, t & 255])


def aedat_2(events):
    """AEDAT 2.0 of a DVS128: pixel (x, y) of SpikingJelly is (127 - bits 8-14, 127 - bits 1-7)."""
    head = b"#!AER-DAT2.0\r\n# This is a raw AE data file\r\n# created by nobody\r\n"
    return head + b"".join(
        struct.pack(">II", (127 - x) << 8 | (127 - y) << 1 | (1 - p), t) for t, p, y, x in events
    )


def aedat_31(events, packet=16):
    """AEDAT 3.1: packets of polarity events, with a packet of another type before each."""
    out = [b"#!AER-DAT3.1\r\n#Format: RAW\r\n#Source 1: DVS128\r\n#!END-HEADER\r\n"]
    for i in range(0, len(events), packet):
        part = events[i : i + packet]
        out.append(struct.pack("<HHIIIIII", 0, 1, 8, 4, 0, 1, 1, 1) + b"special!")
        over = part[0][0] >> 31
        assert all(e[0] >> 31 == over for e in part)
        out.append(struct.pack("<HHIIIIII", 1, 1, 8, 4, over, len(part), len(part), len(part)))
        out += [
            struct.pack("<II", x << 17 | y << 2 | p << 1 | 1, t & 0x7FFFFFFF) for t, p, y, x in part
        ]
    return b"".join(out)


def aedat_4(events, sensor=(128, 128)):
    """AEDAT 4 without compression: a header and one packet, both FlatBuffers."""
    info = (
        '<dv version="2.0"><node name="outInfo" path="/outInfo/"><node name="0" path="/outInfo/0/">'
        '<attr key="compression" type="string">NONE</attr>'
        '<attr key="originalModuleName" type="string">camera</attr>'
        '<attr key="originalOutputName" type="string">events</attr>'
        '<attr key="typeDescription" type="string">Array of events</attr>'
        '<attr key="typeIdentifier" type="string">EVTS</attr>'
        '<node name="info" path="/outInfo/0/info/">'
        f'<attr key="sizeX" type="int">{sensor[0]}</attr>'
        f'<attr key="sizeY" type="int">{sensor[1]}</attr>'
        "</node></node></node></dv>"
    )
    b = flatbuffers.Builder()
    b.StartVector(16, len(events), 8)
    for t, p, y, x in reversed(events):
        b.Prep(8, 16)
        b.Pad(3)
        b.PrependBool(bool(p))
        b.PrependInt16(y)
        b.PrependInt16(x)
        b.PrependInt64(t)
    vector = b.EndVector()
    b.StartObject(1)
    b.PrependUOffsetTRelativeSlot(0, vector, 0)
    b.FinishSizePrefixed(b.EndObject(), b"EVTS")
    body = struct.pack("<ii", 0, len(b.Output())) + bytes(b.Output())

    def head(end):
        b = flatbuffers.Builder()
        text = b.CreateString(info)
        b.StartObject(3)
        b.PrependInt64Slot(1, end, -1)  # where the packets end
        b.PrependUOffsetTRelativeSlot(2, text, 0)
        b.FinishSizePrefixed(b.EndObject(), b"IOHE")
        return b"#!AER-DAT4.0\r\n" + bytes(b.Output())

    return head(len(head(0)) + len(body)) + body


def write_cifar10dvs(folder, each=10, seed=0, suffix=".aedat"):
    """CIFAR10-DVS; returned by class and number, because the split is the reader's."""
    rng = np.random.default_rng(seed)
    out = {}
    for label, name in enumerate(CIFAR):
        (folder / name).mkdir(parents=True)
        for i in range(each):
            out[label, i] = draw(rng, 60, (2, 128, 128), 1_300_000)
            data = (aedat_2 if suffix == ".aedat" else aedat_4)(out[label, i])
            (folder / name / f"cifar10_{name}_{i}{suffix}").write_bytes(data)
    return out


def write_gesture(folder, seed=0, users=2):
    """DVS128 Gesture as published: recordings of eleven gestures, with tables and lists."""
    rng = np.random.default_rng(seed)
    out, number = {}, 0
    for split in ("train", "test"):
        names, samples = [], []
        for _ in range(users):
            number += 1
            name = f"user{number:02d}_led"
            names.append(f"{name}.aedat")
            # The clock of one recording passes 2^31 us, where AEDAT 3.1 counts an overflow.
            start = 1_000_000 if number > 1 else (1 << 31) - 3_000_000
            recording, rows = [], ["class,startTime_usec,endTime_usec"]
            for label in range(11):
                begin = start + label * 600_000
                gesture = draw(rng, 48, (2, 128, 128), 400_000, begin)
                noise = draw(rng, 16, (2, 128, 128), 100_000, begin + 500_000)
                rows.append(f"{label + 1},{begin},{begin + 400_000}")
                recording += gesture + noise
                samples.append((label, gesture))
            (folder / f"{name}.aedat").write_bytes(aedat_31(recording))
            (folder / f"{name}_labels.csv").write_text("\n".join(rows) + "\n")
        (folder / f"trials_to_{split}.txt").write_text("\n".join(names) + "\n\n")
        out[split] = samples
    return out


def write_cut_gesture(folder, seed=0):
    """DVS128 Gesture as tonic distributes it: rows (x, y, polarity, milliseconds)."""
    rng = np.random.default_rng(seed)
    out = {}
    for split in ("Train", "Test"):
        samples = []
        for light in ("fluorescent", "led"):
            for label in range(11):
                path = folder / f"ibmGesture{split}" / f"user01_{light}" / f"{label}.npy"
                path.parent.mkdir(parents=True, exist_ok=True)
                rows = sorted(
                    [int(rng.integers(4000)), *(int(rng.integers(n)) for n in (2, 128, 128))]
                    for _ in range(50)
                )
                np.save(path, np.array([(x, y, p, t) for t, p, y, x in rows], np.float64))
                samples.append((label, [(1000 * t, p, y, x) for t, p, y, x in rows]))
        out[split.lower()] = samples
    return out


def write_shd(folder, n=30, seed=0):
    """Spiking Heidelberg Digits: times as float16 seconds, in no order."""
    rng = np.random.default_rng(seed)
    out = {}
    for split in ("train", "test"):
        samples, times, units = [], [], []
        for i in range(n):
            seconds = rng.uniform(0, 1.37, 80).astype(np.float16)
            channel = rng.integers(0, 700, 80).astype(np.uint16)
            times.append(seconds)
            units.append(channel)
            pairs = [(round(float(s) * 1e6), int(c)) for s, c in zip(seconds, channel, strict=True)]
            samples.append((i % 20, pairs))
        shd_file(folder / f"shd_{split}.h5", times, units, [label for label, _ in samples])
        out[split] = samples
    return out


def shd_file(path, times, units, labels):
    with h5py.File(path, "w") as file:
        file["labels"] = np.array(labels, np.uint16)
        for name, arrays, kind in (("times", times, np.float16), ("units", units, np.uint16)):
            made = file.create_dataset(
                f"spikes/{name}", (len(arrays),), dtype=h5py.vlen_dtype(kind)
            )
            for i, values in enumerate(arrays):
                made[i] = values
        file["extra/keys"] = np.array([b"zero"] * 20)
        file["extra/speaker"] = np.zeros(len(labels), np.uint16)


def write(layout, folder):
    """A tiny dataset: its samples by split, each (label, events)."""
    folder.mkdir(exist_ok=True)
    if layout.startswith("cifar10dvs"):
        suffix = ".aedat4" if layout.endswith("4") else ".aedat"
        made = write_cifar10dvs(folder, suffix=suffix)
        out = {}
        for split in ("train", "test"):
            chosen = {label: in_split(label, 10, split) for label in range(10)}
            order = [(chosen[label][i], label) for i in range(len(chosen[0])) for label in chosen]
            out[split] = [(label, made[label, number]) for number, label in order]
        return out
    writer = {
        "nmnist": write_nmnist,
        "dvs128gesture": write_gesture,
        "dvs128gesture-cut": write_cut_gesture,
        "shd": write_shd,
    }[layout]
    return writer(folder)


def in_split(label, n, split):
    """The documented draw: PCG64 of (0, class), nine of ten for training, in the order of names."""
    order = np.random.Generator(np.random.PCG64([0, label])).permutation(n)
    return sorted(order[: n * 9 // 10] if split == "train" else order[n * 9 // 10 :])
