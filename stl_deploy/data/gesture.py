"""DVS128 Gesture: the published recordings with their tables of gestures, or tonic's cut ones.

The recordings (https://research.ibm.com/interactive/dvsgesture/) are AEDAT 3.1 files of several
gestures; ``*_labels.csv`` says when each begins and ends, ``trials_to_*.txt`` which file is whose.
tonic distributes gestures already cut out: ``ibmGestureTrain/user01_led/0.npy``, rows (x, y,
polarity, milliseconds), the number in the name being the class.
"""

from __future__ import annotations

import csv
import re
from functools import lru_cache
from pathlib import Path

import numpy as np

from stl_deploy.data import aedat
from stl_deploy.data.events import REMEDY, Events, Listing, Split, events, first_folder, read_bytes
from stl_deploy.errors import InputError, Problem
from stl_deploy.files import check_readable

SENSOR = (2, 128, 128)
CLASSES = 11
MAX_TEXT = 1 << 20
# A recording belongs to one split, and to its list once.
OTHER = {"trials_to_train.txt": "trials_to_test.txt", "trials_to_test.txt": "trials_to_train.txt"}


def listing(folder: Path, split: Split, remedy: str) -> Listing:
    """The gestures of one split, by user and lighting."""
    trials = f"trials_to_{split}.txt"
    if root := first_folder(folder, ("", "DvsGesture", "extract/DvsGesture"), trials):
        return _recordings(root, root / trials)
    cut = f"ibmGesture{split.capitalize()}"
    if root := first_folder(folder, ("", "DVSGesture"), cut):
        return _cut(root / cut, remedy)
    raise InputError(
        Problem(str(folder), f"holds neither {trials} nor a folder {cut}", remedy),
    )


def _recordings(root: Path, trials: Path) -> Listing:
    found: list[tuple[Path, int, int, int]] = []
    problems = []
    seen = _names(root / OTHER[trials.name]) if (root / OTHER[trials.name]).exists() else []
    for name in _names(trials):
        if name in seen:
            what = f"names {name!r} twice, or {OTHER[trials.name]} names it too"
            problems.append(Problem(str(trials), what, "fetch both lists again, or take one out"))
        seen.append(name)
        if not re.fullmatch(r"[A-Za-z0-9_]+\.aedat", name):
            problems.append(
                Problem(str(trials), f"names {name!r}, which is not a recording", REMEDY)
            )
            continue
        table = root / f"{name.removesuffix('.aedat')}_labels.csv"
        found += [(root / name, *row) for row in _gestures(table)]
    if not found:
        problems.append(Problem(str(trials), "names no gestures", REMEDY))
    if problems:
        raise InputError(problems)

    # Gestures of a recording follow each other, so that each is read once.
    recording = lru_cache(maxsize=1)(aedat.read_31)

    def read(i: int) -> Events:
        path, _, start, end = found[i]
        where = f"{path}, {start} to {end} us"
        return recording(path).between(start, end, where).checked(SENSOR)

    return Listing(np.array([label for _, label, _, _ in found], np.int64), read)


def _names(trials: Path) -> list[str]:
    """The recordings that a list names."""
    return list(filter(None, map(str.strip, _text(trials).splitlines())))


def _gestures(table: Path) -> list[tuple[int, int, int]]:
    """(class from 0, begin, end in microseconds) of every row of a table."""
    rows, problems = [], []
    for number, row in enumerate(csv.reader(_text(table).splitlines()), 1):
        if number == 1 or not row:
            continue
        try:
            label, start, end = map(int, row)
        except ValueError:
            label, start, end = 0, 0, 0
        if not (1 <= label <= CLASSES and 0 <= start < end < 1 << 62):
            what = f"{','.join(row)[:80]!r} is not a class 1..{CLASSES}, a begin and a later end"
            problems.append(Problem(f"{table}, line {number}", what, REMEDY))
        rows.append((label - 1, start, end))
    if problems:
        raise InputError(problems)
    return rows


def _cut(root: Path, remedy: str) -> Listing:
    files = sorted(root.glob("user*_*/*.npy"), key=lambda p: (p.parent.name, len(p.name), p.name))
    odd = [p for p in files if not (p.stem.isdecimal() and int(p.stem) < CLASSES)]
    problems = [
        Problem(str(p), f"is not named by a class 0..{CLASSES - 1}", REMEDY) for p in odd[:10]
    ]
    if not files:
        problems.append(Problem(str(root), "holds no files user*_*/*.npy", remedy))
    if problems:
        raise InputError(problems)
    labels = np.array([int(p.stem) for p in files], np.int64)
    return Listing(labels, lambda i: read_cut(files[i]))


def read_cut(path: Path) -> Events:
    """The events of one of tonic's files."""
    check_readable(path, aedat.MAX_BYTES)
    try:
        # Mapped, so that a header cannot claim more than the file holds.
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # a damaged header is parsed as Python, with errors of all kinds
        raise InputError(Problem(str(path), f"is not a valid array: {error}", REMEDY)) from None
    if rows.ndim != 2 or rows.shape[1] != 4 or rows.dtype.kind not in "iuf":
        what = f"holds {rows.dtype} {rows.shape}, not rows (x, y, polarity, milliseconds)"
        raise InputError(Problem(str(path), what, REMEDY))
    numbers = rows.astype(np.float64)
    if not (np.abs(numbers) < 1 << 50).all() or (numbers % 1).any():
        raise InputError(Problem(str(path), "holds numbers that are not whole", REMEDY))
    x, y, p, t = numbers.astype(np.int64).T
    return events(path, t * 1000, p, y, x).checked(SENSOR)


def _text(path: Path) -> str:
    try:
        return read_bytes(path, MAX_TEXT).decode()
    except UnicodeDecodeError:
        raise InputError(Problem(str(path), "is not text", REMEDY)) from None
