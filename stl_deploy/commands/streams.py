"""The standard streams of a command, whatever it is given: closed, full, cut off by ``head``, or ASCII.

What cannot be written is dropped, so that a command always does its work and ends with the code of that
work. A reader that closes a pipe has seen enough. Any other failure of stdout is told at the end.
"""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class _Dropping(io.FileIO):
    """A descriptor whose writes always succeed; ``error`` is the first failure."""

    error: OSError | None = None

    def write(self, data: ReadableBuffer, /) -> int:
        """Write ``data``, or drop it; in either case it counts as written."""
        try:
            return super().write(data)
        except OSError as error:
            self.error = self.error or error
            return memoryview(data).nbytes


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a stream is open and a terminal."""
    return stream is not None and stream.isatty()


def prepare() -> None:
    """Let every write to stdout and stderr succeed, in any encoding, also where they are closed."""
    for descriptor in range(3):
        _open(descriptor)
    for name in ("stdout", "stderr"):
        stream: TextIO | None = getattr(sys, name)
        if stream is None:
            null = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - until the command ends
            setattr(sys, name, null)
        elif stream is getattr(sys, f"__{name}__") and isinstance(stream, io.TextIOWrapper):
            # A path may contain what its encoding lacks, or bytes that are no text at all.
            stream.reconfigure(errors="backslashreplace")
            if not stream.isatty():
                setattr(sys, name, _dropping(stream))


def _open(descriptor: int) -> None:
    """Give a closed descriptor to the null device; the next file that is opened would get its number."""
    try:
        os.fstat(descriptor)
    except OSError:
        null = os.open(os.devnull, os.O_RDWR)
        if null == descriptor:
            os.set_inheritable(null, True)
        else:
            os.dup2(null, descriptor)
            os.close(null)


def _dropping(stream: io.TextIOWrapper) -> TextIO:
    """``stream``, whose writes always succeed."""
    raw = _Dropping(stream.fileno(), "w", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        stream.encoding,
        "backslashreplace",
        line_buffering=stream.line_buffering,
    )


def failure() -> OSError | None:
    """Why stdout could not be written, after all of it was; None where its reader left or nothing failed."""
    sys.stdout.flush()
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    if not isinstance(raw, _Dropping) or isinstance(raw.error, BrokenPipeError):
        return None
    return raw.error
