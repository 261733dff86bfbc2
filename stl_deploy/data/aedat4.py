"""AEDAT 4 files, decoded by the library aedat in a process of its own.

The library ends its whole process at some damaged files, where others make it panic: it believes the
sizes that they claim. So it works in a child with bounded memory, which takes paths on stdin, answers
on stdout, and ends when stdin does. Where the child dies, the file that it had is to blame.
"""

from __future__ import annotations

import atexit
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stl_deploy.data.events import REMEDY, Events, events
from stl_deploy.errors import InputError, Problem
from stl_deploy.files import check_readable

MAX_BYTES = 1 << 30
MAX_EVENTS = 1 << 25
MEMORY = 4 << 30  # of the child's address space
ROW = np.dtype([("t", "<i8"), ("x", "<i4"), ("y", "<i4"), ("p", "<i4")])

_children: list[subprocess.Popen[bytes]] = []


def read(path: Path) -> Events:
    """The events of a file, with addresses (polarity, y, x). Raises InputError where it is none."""
    check_readable(path, MAX_BYTES)
    if importlib.util.find_spec("aedat") is None:
        raise InputError(
            Problem(
                str(path),
                "is read by the library aedat, which is not installed",
                "pip install 'stl-deploy[data]', or use the dataset's original files, AEDAT 2.0",
            )
        )
    answer, rows = _ask(path)
    if answer is not None:
        raise InputError(Problem(str(path), f"is not a complete AEDAT 4 file: {answer}", REMEDY))
    return events(path, rows["t"], rows["p"], rows["y"], rows["x"])


def _ask(path: Path) -> tuple[str | None, NDArray[Any]]:
    """What was wrong, or None, and the events as ``ROW`` [E]."""
    child = _child()
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        request = {"path": str(path.resolve()), "most": MAX_EVENTS}
        child.stdin.write(json.dumps(request).encode() + b"\n")
        child.stdin.flush()
        said = json.loads(child.stdout.readline())
        data = child.stdout.read(said["events"] * ROW.itemsize)
        return said["error"], np.frombuffer(data, ROW)
    except (OSError, ValueError):  # it is dead: nothing, or half an answer, came
        close()
        return "its reader crashed", np.empty(0, ROW)
    except BaseException:
        close()
        raise


def _child() -> subprocess.Popen[bytes]:
    if not _children:
        _children.append(
            subprocess.Popen(
                [sys.executable, "-P", "-c", "from stl_deploy.data.aedat4 import serve; serve()"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        )
    return _children[0]


@atexit.register
def close() -> None:
    """End the child, if there is one."""
    while _children:
        child = _children.pop()
        child.kill()
        child.communicate()


def serve() -> None:
    """What the child does."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    except (ImportError, ValueError, OSError):  # no such limit on this system
        pass
    for line in sys.stdin:
        request = json.loads(line)
        error, rows = None, np.empty(0, ROW)
        try:
            rows = _decode(request["path"], request["most"])
        except BaseException as problem:  # a panic of Rust is no Exception
            error = str(problem)[:500] or type(problem).__name__
        sys.stdout.buffer.write(
            json.dumps({"error": error, "events": len(rows)}).encode() + b"\n" + rows.tobytes()
        )
        sys.stdout.flush()


def _decode(path: str, most: int) -> NDArray[Any]:
    import aedat

    parts: list[NDArray[Any]] = [np.empty(0, ROW)]
    for packet in aedat.Decoder(path):
        if "events" not in packet:
            continue
        made = np.empty(len(packet["events"]), ROW)
        for ours, theirs in zip(ROW.names or (), packet["events"].dtype.names, strict=True):
            made[ours] = packet["events"][theirs]
        parts.append(made)
        if sum(map(len, parts)) > most:
            raise ValueError(f"it holds more than {most} events")
    return np.concatenate(parts)
