"""How loops are compiled, and which form of the engine's innermost operations they are compiled with.

There are two forms, with results equal bit for bit. ``vectors.py`` is written in LLVM through private
interfaces of numba and llvmlite. ``plain.py`` uses only what numba documents, and is slower. The
environment variable STL_PLAIN_KERNELS chooses, once, when this module is imported: 1 for the plain form; 0,
empty or not set for the vectors.
"""

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
from numba import njit
from numpy.typing import NDArray

from stl_deploy.errors import InputError, Problem
from stl_deploy.ir import units

Array = NDArray[Any]
Int = int | np.integer[Any]
Function = TypeVar("Function", bound=Callable[..., Any])
# Runs of weights are padded with zeros to a multiple of this many, which whole vector registers hold.
LANES = 32
SWITCH = "STL_PLAIN_KERNELS"


def asks_for_plain(value: str) -> bool:
    """Whether this value of the environment variable asks for the plain form."""
    if value not in ("", "0", "1"):
        raise InputError(
            Problem(
                f"environment variable {SWITCH}",
                f"is {value!r}; it must be 0 or 1",
                "set it to 1 for the plain kernels, or unset it",
            )
        )
    return value == "1"


PLAIN = asks_for_plain(os.environ.get(SWITCH, ""))


def _form() -> str:
    """The chosen form and the sources that are compiled into functions of other files, as a word."""
    folder = Path(__file__).parent
    sources = b"".join(
        path.read_bytes()
        for path in (
            *(
                folder / f"{name}.py"
                for name in ("compiled", "kernels", "buffers", "lanes", "vectors", "plain")
            ),
            Path(units.__file__),  # its constants are compiled in
        )
    )
    return ("plain" if PLAIN else "vectors") + hashlib.sha256(sources).hexdigest()[:8]


FORM = _form()

if not PLAIN:
    from numba.core.caching import FunctionCache

    class _Cache(FunctionCache):
        """numba's cache, which does without a file that cannot be written, say on a full disk."""

        def save_overload(self, sig: Any, data: Any) -> None:
            """Keep what was compiled."""
            with suppress(OSError):
                super().save_overload(sig, data)  # type: ignore[no-untyped-call]


def compiled(function: Function) -> Function:
    """``function`` compiled at its first call; the result is kept on disk where that is possible.

    numba finds a result on disk by the function's qualified name, and discards it when the function's own
    file has changed. What the function calls in other files is compiled into the result and not looked
    at, so the qualified name tells the form.
    """
    return _compiled(function)


def inner(function: Function) -> Function:
    """``function`` compiled for other compiled functions only; Python cannot call it.

    What unpacks the arguments of a call from Python can take longer to compile than the function.
    """
    return _compiled(function, no_cpython_wrapper=True)


def uncounted(function: Function) -> Function:
    """``function`` compiled without counts of references to arrays.

    The counts cost more than short loops. It makes and returns no arrays but views, which no one keeps.
    """
    return _compiled(function, _nrt=False)


def merged(function: Function) -> Function:
    """As ``inner`` and ``uncounted``, and part of whoever calls it: calls with dozens of arrays are slow."""
    return _compiled(function, _nrt=False, forceinline=True, no_cpython_wrapper=True)


def _compiled(function: Function, **undocumented: bool) -> Function:
    """``function`` compiled with options that numba does not document; the plain form does without them."""
    function.__qualname__ = f"{function.__qualname__}.{FORM}"
    options: dict[str, Any] = {} if PLAIN else undocumented
    made: Any = njit(nogil=True, **options)(function)
    with suppress(RuntimeError):  # No folder that numba could write to: compile in every process.
        if PLAIN:
            made.enable_caching()
        else:
            made._cache = _Cache(function)  # type: ignore[no-untyped-call]
    return cast(Function, made)
