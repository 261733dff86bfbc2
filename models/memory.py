"""Memory that training keeps, so that a CPU's time does not go into pages that were just given back."""

from __future__ import annotations

import ctypes
import sys

# Of glibc's malloc.h, mallopt(3).
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def keep() -> bool:
    """Let the process reuse large blocks instead of returning them; whether it can.

    glibc takes every block above 32 MiB from the kernel and gives it back, and the kernel clears its
    pages anew each time; the activations of a batch are such blocks, in every layer and step. For a
    process that trains and ends, as memory once taken stays its own.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is None:
        return False
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
