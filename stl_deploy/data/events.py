"""Events of one sample, checked: what every reader of a dataset returns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from stl_deploy.errors import InputError, Problem
from stl_deploy.files import check_readable

Split = Literal["train", "test"]
REMEDY = "fetch the file again, or take it out of the folder"
SLACK = 1000  # microseconds that an event may come late in its file, as cameras write them


@dataclass(frozen=True)
class Events:
    """E events: ``t`` int64 [E] in microseconds, ``address`` of (polarity, y, x), or of (channel,).

    ``where`` names the file they came from. ``reordered`` of them stood behind a later one there;
    ``wraps`` is how often the clock of the file began again at zero.
    """

    where: str
    t: NDArray[np.int64]
    address: tuple[NDArray[np.int32], ...]
    reordered: int = 0
    wraps: int = 0

    def __len__(self) -> int:
        return len(self.t)

    def checked(self, sensor: tuple[int, ...]) -> Events:
        """These events. Raises InputError where there are none, or one lies outside ``sensor``."""
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
        if problems:
            raise InputError(problems)
        return self

    def in_order(self, whatever: bool = False) -> Events:
        """These events by time; those of the same time stay in the order of the file.

        Raises InputError where one stands behind another that is later by more than SLACK, unless
        ``whatever`` the order is.
        """
        late = np.maximum.accumulate(self.t) - self.t
        reordered = int(np.count_nonzero(late))
        if not reordered:
            return self
        if late.max() > SLACK and not whatever:
            first = int(np.argmax(late > SLACK))
            what = (
                f"time goes backwards: event {first} at {int(self.t[first])} us stands behind one that is "
                f"{int(late[first])} us later; up to {SLACK} us are put in order"
            )
            remedy = "sort events of any disorder by --sort, or fetch the file again"
            raise InputError(Problem(self.where, what, remedy))
        order = np.argsort(self.t, kind="stable")
        address = tuple(a[order] for a in self.address)
        return replace(self, t=self.t[order], address=address, reordered=reordered)

    def between(self, start: int, end: int, where: str) -> Events:
        """Those with ``start`` <= t < ``end``, microseconds."""
        inside = (self.t >= start) & (self.t < end)
        address = tuple(a[inside] for a in self.address)
        return replace(self, where=where, t=self.t[inside], address=address)


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
