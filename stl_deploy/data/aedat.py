"""AEDAT files of event cameras, versions 2.0 and 3.1 (4 is in ``aedat4.py``).

Layouts: https://docs.inivation.com/software/software-advanced-usage/file-formats/ (2.0: events of
8 bytes, address and microseconds, big-endian; 3.1: packets with a header of 28 bytes, little-endian).
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stl_deploy.data.events import REMEDY, Events, events, read_bytes
from stl_deploy.errors import InputError, Problem

MAX_BYTES = 1 << 30
CLOCK = 1 << 32  # microseconds after which a time of 2.0 begins again at zero
POLARITY = 1  # the type of a 3.1 packet that holds what the pixels saw
PACKET = struct.Struct("<HHIIIIII")


def _body(path: Path, version: str) -> memoryview:
    """What follows the lines with # at the beginning. Raises InputError for another version."""
    raw = read_bytes(path, MAX_BYTES)
    first = f"#!AER-DAT{version}".encode()
    if not raw.startswith(first):
        raise InputError(Problem(str(path), f"does not begin with {first.decode()}", REMEDY))
    at = 0
    while raw.startswith(b"#", at):
        end = raw.find(b"\n", at)
        if end < 0:
            raise InputError(Problem(str(path), "ends inside its header", REMEDY))
        line, at = raw[at:end].rstrip(), end + 1
        if line == b"#!END-HEADER":
            break
    return memoryview(raw)[at:]


def read_2(path: Path) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """Times in microseconds and addresses, int64 [E] each, of an AEDAT 2.0 file.

    The third is how often its clock wrapped around; times go on there.
    """
    body = _body(path, "2.0")
    if len(body) % 8:
        raise InputError(
            Problem(str(path), f"has {len(body)} bytes of events, not a multiple of 8", REMEDY)
        )
    pairs = np.frombuffer(body, ">u4").reshape(-1, 2).astype(np.int64)
    turns = _turns(pairs[:, 1])
    return pairs[:, 1] + turns * CLOCK, pairs[:, 0], int(turns.max(initial=0))


def _turns(t: NDArray[np.int64]) -> NDArray[np.int64]:
    """How often the clock has wrapped around before each of the times ``t`` [E].

    It has where a time is lower than the one before by more than half of what the clock counts. An event that
    is late there stands behind the wrap and belongs before it.
    """
    step = np.diff(t, prepend=t[:1])
    turns = np.cumsum((step < -(CLOCK >> 1)).astype(np.int64) - (step > CLOCK >> 1))
    # A leap forward is a late event only where the clock wrapped before it.
    return turns - np.minimum(np.minimum.accumulate(turns), 0)


def read_31(path: Path) -> Events:
    """The polarity events of an AEDAT 3.1 file, with addresses (polarity, y, x).

    Marks of validity are not looked at, as in the readers with which published results were made.
    """
    body = _body(path, "3.1")
    times, data, at = [], [], 0
    while at < len(body):
        if at + PACKET.size > len(body):
            raise _torn(path, at, f"{len(body) - at} bytes are left, a header has {PACKET.size}")
        kind, _, size, _, overflow, capacity, number, _ = PACKET.unpack_from(body, at)
        at += PACKET.size
        if number > capacity or (kind == POLARITY and size != 8):
            raise _torn(
                path, at, f"a packet claims {number} of {capacity} events of {size} bytes each"
            )
        if size * capacity > len(body) - at:
            raise _torn(path, at, f"a packet of {size * capacity} bytes, {len(body) - at} are left")
        if kind == POLARITY:
            pairs = np.frombuffer(body, "<u4", 2 * number, at).reshape(-1, 2).astype(np.int64)
            data.append(pairs[:, 0])
            times.append(pairs[:, 1] + (overflow << 31))
        at += size * capacity
    t, a = (np.concatenate(x) if x else np.empty(0, np.int64) for x in (times, data))
    return events(path, t, a >> 1 & 1, a >> 2 & 0x7FFF, a >> 17 & 0x7FFF)


def _torn(path: Path, at: int, what: str) -> InputError:
    return InputError(Problem(str(path), f"is cut off or damaged after {at} bytes: {what}", REMEDY))
