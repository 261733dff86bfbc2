"""Events of one sample, checked: what every reader of a dataset returns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from stl_deploy.errors import InputError, Problem
from stl_deploy.files import check_readable

Split = Literal["train", "test"]
REMEDY = "fetch the file again, or take it out of the folder"


@dataclass(frozen=True)
class Events:
    """E events: ``t`` int64 [E] in microseconds, ``address`` of (polarity, y, x), or of (channel,).

    ``where`` names the file they came from.
    """

    where: str
    t: NDArray[np.int64]
    address: tuple[NDArray[np.int32], ...]

    def __len__(self) -> int:
        return len(self.t)

    def checked(self, sensor: tuple[int, ...], ordered: bool = True) -> Events:
        """These events. Raises InputError where there are none, one lies outside ``sensor``, or,
        with ``ordered``, time goes backwards."""
        names = ("polarity", "y", "x") if len(sensor) == 3 else ("channel",)
        problems = [] if len(self) else [Problem(self.where, "holds no events", REMEDY)]
        for name, values, size in zip(names, self.address, sensor, strict=True):
            outside = np.flatnonzero((values < 0) | (values >= size))
            if outside.size:
                first = int(outside[0])
                problems.append(
                    Problem(
                        self.where,
                        f"{outside.size} events lie outside the sensor, the first is event {first} "
                        f"with {name} = {int(values[first])}, allowed are 0..{size - 1}",
                        REMEDY,
                    )
                )
        back = np.flatnonzero(np.diff(self.t) < 0) if ordered else np.empty(0, np.int64)
        if back.size:
            first = int(back[0]) + 1
            problems.append(
                Problem(
                    self.where,
                    f"time goes backwards {back.size} times, first at event {first}: "
                    f"{int(self.t[first])} us after {int(self.t[first - 1])} us",
                    REMEDY,
                )
            )
        if problems:
            raise InputError(problems)
        return self

    def between(self, start: int, end: int, where: str) -> Events:
        """Those with ``start`` <= t < ``end``, microseconds."""
        inside = (self.t >= start) & (self.t < end)
        return Events(where, self.t[inside], tuple(a[inside] for a in self.address))


@dataclass(frozen=True)
class Listing:
    """The samples of one split: ``labels`` int64 [N], and ``read(i)`` gives the events of one."""

    labels: NDArray[np.int64]
    read: Callable[[int], Events]


def events(where: Path | str, t: NDArray[Any], *address: NDArray[Any]) -> Events:
    """Events from arrays of any whole type."""
    return Events(str(where), t.astype(np.int64), tuple(a.astype(np.int32) for a in address))


def read_bytes(path: Path, limit: int) -> bytes:
    """A file of at most ``limit`` bytes. Raises InputError where it cannot be read."""
    check_readable(path, limit)
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(Problem(str(path), f"cannot be read: {error.strerror}", REMEDY)) from None


def first_folder(folder: Path, names: Sequence[str], holds: str) -> Path | None:
    """The first of ``folder``/<name> with a file or folder ``holds`` in it; "" is ``folder``."""
    return next((folder / name for name in names if (folder / name / holds).exists()), None)


def class_files(
    folder: Path, classes: Sequence[str], suffixes: Sequence[str], remedy: str
) -> list[list[Path]]:
    """The files of each class, in the order of their numbers. Raises InputError where a class has
    none, or files of several kinds."""
    problems, found = [], []
    for name in classes:
        files = [p for p in (folder / name).glob("*") if p.suffix in suffixes]
        kinds = {p.suffix for p in files}
        if len(kinds) != 1:
            held = " and ".join(sorted(kinds)) if kinds else "no"
            wanted = " or ".join(f"*{s}" for s in suffixes)
            problems.append(
                Problem(str(folder / name), f"holds {held} files, {wanted} are needed", remedy)
            )
        found.append(sorted(files, key=lambda p: (len(p.name), p.name)))
    if problems:
        raise InputError(problems)
    return found


def in_turn(files: Sequence[Sequence[Path]]) -> Iterator[tuple[int, Path]]:
    """(class, file): the first of every class, then the second of every class, and so on.

    So the first N samples hold all classes alike.
    """
    for row in zip_longest(*files):
        yield from ((label, path) for label, path in enumerate(row) if path is not None)
